"""Every exception of layerstore, and the one table from the core's codes to classes.

A failure enters here either as a class of its own (policy, in Python) or as a lay_error of the C
core, which the bindings hand to from_core() at the moment of raising. Texts are moby's
(daemon/internal/layer/layer.go), so that a search for one finds the other.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple, Self


class LayerStoreError(Exception):
    """The base class of all errors of layerstore.

    chain_id   the layer that the error is about, or ""
    name       the writable layer or the image that it is about, or ""
    path       the file, directory or entry of a tar that it is about, or ""
    text       of the class: what an error says that is made without words; moby's text, if moby has the error
    The text of an error contains these names, with control characters escaped.
    """

    text: ClassVar[str] = ""

    def __init__(self, *args: object, chain_id: str = "", name: str = "", path: str = "") -> None:
        subjects = [subject for subject in (chain_id, name, path) if subject]
        super().__init__(*(args or ((": ".join([self.text, *subjects]),) if self.text else ())))
        self.chain_id: str = str(chain_id)
        self.name: str = name
        self.path: str = path
        self._say(chain_id, name, path)

    def _say(self, *subjects: str) -> None:
        """Make the text readable, and end it with the subjects that it does not name."""
        if len(self.args) != 1 or not isinstance(self.args[0], str):
            return
        text = readable(self.args[0])
        for subject in filter(None, subjects):
            if not _is_named(subject, text):
                text += f": {readable(subject)}"
        self.args = (text,)

    def about(self, *, chain_id: str = "", name: str = "", path: str = "") -> Self:
        """Name what the error is about, as far as it does not say so already; return the error."""
        self.chain_id, self.name, self.path = self.chain_id or str(chain_id), self.name or name, self.path or path
        self._say(self.chain_id, self.name, self.path)
        return self


def _is_named(subject: str, text: str) -> bool:
    """Return True if a text has a name in it, whole: as it is shown, or as Python quotes it."""
    shown = {re.escape(readable(subject)), re.escape(repr(subject)[1:-1])}
    return any(re.search(rf"(?<![\w/.-]){each}(?![\w/-])", text) for each in shown)


class InvalidDigestError(LayerStoreError, ValueError):
    """A text is not a digest; the message says what is wrong with it."""

    text = "invalid checksum digest format"


class InvalidMetadataError(LayerStoreError, ValueError):
    """A file of the layerdb or of a driver cannot be parsed."""


class InvalidOptionError(LayerStoreError, ValueError):
    """An unknown option, or a value that an option cannot have."""


class LayerDoesNotExistError(LayerStoreError, LookupError):
    """No layer with this ChainID is in the store."""

    text = "layer does not exist"


class LayerNotRetainedError(LayerStoreError):
    """The object given to release() is no reference: it was released before, or is bare."""

    text = "layer not retained"


class MountDoesNotExistError(LayerStoreError, LookupError):
    """No writable layer with this name is in the store."""

    text = "mount does not exist"


class MountNameConflictError(LayerStoreError):
    """A writable layer with this name exists already."""

    text = "mount already exists with name"


class Holder(NamedTuple):
    """A process that has something of a mounted box in use.

    pid       of the process; 0: the kernel itself (a loop device), or a mount that no process uses
    command   as in /proc/PID/comm; "kernel" for pid 0
    uses      of "root", "cwd", "directory" (an open one), "write", "map" and "read", in this order, each once
    paths     inside the box, sorted, 16 at most; those of deleted files end in " (deleted)"
    """

    pid: int
    command: str
    uses: tuple[str, ...]
    paths: tuple[str, ...]


class ActiveMountError(LayerStoreError):
    """A mount is still in use.

    holders   the processes that use it, as Holder objects by pid; pid 0 is the kernel itself
    """

    text = "mount still active"

    def __init__(self, *args: object, holders: Iterable[Holder] = (), name: str = "") -> None:
        super().__init__(*args, name=name)
        self.holders: tuple[Holder, ...] = tuple(holders)


class NotMountedError(LayerStoreError):
    """Something is not mounted. It exists for moby's interface; the store never raises it."""

    text = "not mounted"


class MaxDepthExceededError(LayerStoreError):
    """The parent has as many layers below it as a layer may have."""

    text = "max depth exceeded"


class NotSupportedError(LayerStoreError):
    """This kernel, file system or build cannot do what was asked."""

    text = "not support on this host operating system"


class StoreClosedError(LayerStoreError, ValueError):
    """The store was closed, or the layer belongs to one that was."""

    text = "layer store is closed"


class ReadOnlyStoreError(LayerStoreError):
    """The store is read-only: by its option, or because a dockerd uses its root."""

    text = "the store is open for reading only"


class StoreInUseError(LayerStoreError):
    """The root is in use by a dockerd or another store, or a layer is in use; the text says by what."""

    text = "the root is in use"


class _AtOffsetError(LayerStoreError):
    """An error at a byte of a tar."""

    def __init__(self, *args: object, offset: int | None = None, **subjects: str) -> None:
        super().__init__(*args, **subjects)
        self.offset: int | None = offset


class TarFormatError(_AtOffsetError, ValueError):
    """A layer tar, or the compression around it, is malformed or cut short.

    offset   bytes from the start of the (decompressed) tar, or None if that is unknown
    path     the entry's name, or ""
    """

    text = "archive/tar: invalid tar header"


class LimitExceededError(TarFormatError):
    """A layer tar asks for more than a limit allows.

    offset   bytes from the start of the (decompressed) tar, or None if that is unknown
    path     the entry's name, or ""
    option   the store's option that sets the limit ("max_entries"), or "" if there is none
    """

    text = "the layer's tar exceeds a limit"

    def __init__(self, *args: object, offset: int | None = None, option: str = "", **subjects: str) -> None:
        super().__init__(*args, offset=offset, **subjects)
        self.option: str = option


class BreakoutError(_AtOffsetError):
    """An entry would leave the root of its layer.

    path     that entry's name
    offset   bytes from the start of the (decompressed) tar, or None if that is unknown
    """

    text = "entry is outside of the layer"


class CorruptLayerError(LayerStoreError):
    """What is stored is not what was registered.

    path   the file whose bytes changed, as the layer's tar names it, or ""
    """

    text = "layer data is corrupt"


class ImageError(LayerStoreError):
    """An image, an archive of images or a name of one is malformed, or still in use."""

    text = "invalid image"


class ImageDoesNotExistError(ImageError, LookupError):
    """No image has this name or id."""

    text = "No such image"


class RegistryError(LayerStoreError):
    """A registry could not be asked, or did not do what it was asked for.

    status   the HTTP status of its answer; 0: none came
    code     the registry's own word for it, for example "MANIFEST_UNKNOWN"; ""
    host     who answered, or did not: "name:port"; ""
    """

    text = "the registry failed"

    def __init__(self, *args: object, status: int = 0, code: str = "", host: str = "", **subjects: str) -> None:
        super().__init__(*args, **subjects)
        self.status: int = status
        self.code: str = code
        self.host: str = host


class NotInRegistryError(RegistryError, LookupError):
    """The registry has no such manifest, tag, repository or blob: it answered 404."""

    text = "not in the registry"


class AuthenticationError(RegistryError):
    """A registry, or its token server, does not know the user, or does not let the user do this.

    Also: a credential helper failed, or a file with credentials cannot be read.
    """

    text = "the registry denied access"


# ---- from the core ----------------------------------------------------------------------------

# lay_code of ext/core/lay.h, in order; LAY_OK (0) is no error.
CORE_CLASSES: dict[str, type[Exception]] = {
    "LAY_E_OS": OSError,
    "LAY_E_NOMEM": MemoryError,
    "LAY_E_TAR": TarFormatError,
    "LAY_E_TRUNCATED": TarFormatError,
    "LAY_E_LIMIT": LimitExceededError,
    "LAY_E_BREAKOUT": BreakoutError,
    "LAY_E_SPLIT": CorruptLayerError,
    "LAY_E_MISMATCH": CorruptLayerError,
    "LAY_E_UNSUPPORTED": NotSupportedError,
    "LAY_E_BUSY": RuntimeError,
    "LAY_E_STATE": RuntimeError,
    "LAY_E_IMAGE": InvalidMetadataError,
}


# With what the core's sentence ends where a limit has an option.
_OPTION = re.compile(r"\((max_\w+)\)$")


def readable(text: str) -> str:
    """Return text that any stream and any terminal can print.

    Control characters, what turns the direction of writing, and bytes that are not UTF-8 become \\n, \\xNN or \\uNNNN.
    """
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:                # a byte of a name that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()


def from_core(
    code: int, sys_errno: int, offset: int, path: bytes, text: str, target: bytes = b""
) -> BaseException:
    """Make the exception for one lay_error. Only the bindings and disk/mounts.py call this.

    code        a lay_code
    sys_errno   of LAY_E_OS, else 0
    offset      bytes from the start of the tar, or negative
    path        the entry or file concerned, or b""
    text        the core's sentence
    target      where a hard link leads that cannot be made, or b""

    Returns  the exception, not raised; RuntimeError for a code that has no row
    """
    name, text = os.fsdecode(path), readable(text)
    if not 0 < code <= len(CORE_CLASSES):
        return RuntimeError(f"unknown code {code} from the core: {text}")
    kind = [*CORE_CLASSES.values()][code - 1]
    err = _made(kind, sys_errno, offset, name, text)
    if target and isinstance(err, OSError):
        err.filename2 = os.fsdecode(target)
    if offset >= 0 and not issubclass(kind, TarFormatError):
        # The text stays moby's or the kernel's own.
        entry = f'entry "{readable(name)}", ' if name else ""
        err.add_note(f"{entry}at byte {offset} of the tar")
    return err


def _made(kind: type[Exception], sys_errno: int, offset: int, name: str, text: str) -> Exception:
    if kind is OSError and sys_errno:
        # Three arguments: Python picks FileNotFoundError, PermissionError ... by errno.
        return OSError(sys_errno, text or os.strerror(sys_errno), name or None)
    about: dict[str, Any] = {"path": name} if issubclass(kind, LayerStoreError) else {}
    if issubclass(kind, _AtOffsetError):
        about["offset"] = offset if offset >= 0 else None
    if issubclass(kind, LimitExceededError) and (option := _OPTION.search(text)):
        about["option"] = option[1]
    if issubclass(kind, TarFormatError):
        where = [f'entry "{readable(name)}"'] if name else []
        if offset >= 0:
            where.append(f"at byte {offset}")
        if where:
            text = f"{text or kind.text} ({', '.join(where)})"
    return kind(*([text] if text else []), **about)


# What `from layerstore.errors import *` gives, and what the reference has a row for: the exceptions.
__all__ = sorted(name for name, kind in globals().items() if name[0] != "_" and isinstance(kind, type)
                 and issubclass(kind, LayerStoreError))  # fmt: skip
