"""The mount and quota calls, and what a file system is asked. Made by cffi from ext/core/mount.

A path is the bytes of the system, without a NUL. Every call gives 0 or more, or a negative errno; none raises.
"""
from typing import Any, type_check_only

@type_check_only
class _FFI:
    """Of cffi's FFI what is used: memory of C, which lives as long as the object."""
    NULL: Any
    def new(self, cdecl: str, init: Any = ...) -> Any: ...
    def string(self, cdata: Any, maxlen: int = ...) -> bytes: ...
    def buffer(self, cdata: Any, size: int = ...) -> Any: ...

@type_check_only
class _Lib:
    def lay_mount_overlay(self, o: Any, log: Any, log_size: int) -> int:
        """Mount what a lay_overlay says; the kernel's reason for a failure goes to log, char[log_size] or NULL."""
    def lay_umount(self, path: bytes, flags: int) -> int: ...
    def lay_syncfs(self, fd: int) -> int: ...
    def lay_fs_magic(self, path: bytes) -> int:
        """statfs(2)'s f_type."""
    def lay_dirents_typed(self, path: bytes) -> int:
        """1: every entry of the directory comes with its type; 0: not."""
    def lay_quota_get_project(self, dir: bytes, project: Any) -> int: ...
    def lay_quota_set_project(self, dir: bytes, project: int) -> int: ...
    def lay_quota_set_limit(self, device: bytes, project: int, size: int) -> int:
        """size   hard and soft limit of the project, in bytes; rounded down to 512"""
    def lay_uses(self, major: int, minor: int, ours: Any, n_ours: int, out: Any, size: Any) -> int:
        """Which processes use a device: see ext/core/mount/inside.h. Gives how many could not be looked into."""
    def lay_uses_free(self, out: Any) -> None: ...
    def lay_count_mounts(self, major: int, minor: int, here: Any, elsewhere: Any) -> int:
        """How often a device is mounted in this mount namespace (int *here), and whether in others (int *elsewhere)."""
    def lay_upper_in_use(self, upper: bytes) -> int:
        """1: an overlay, attached or not, has this directory as its upper; 0: none has."""
    def lay_quota_state(self, device: bytes) -> int:
        """1: project quotas are counted and enforced on the device; 0: not."""

ffi: _FFI
lib: _Lib
