"""bzip2, xz and lz4 streams become plain bytes: xz by Python's lzma, the others by libarchive's filters.

Blocks of a compressed stream come in by a callback, plain blocks go out. No result is silently short: a cut stream, a
broken one, and anything but zeros behind its end are errors. xz may ask for 4 GiB of memory in a hundred bytes, and
libarchive would allocate them; lzma takes a limit.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from layerstore.errors import LimitExceededError, NotSupportedError, TarFormatError

_BLOCK = 1 << 20
_ARCHIVE_FATAL = -30
# More than any file system holds behind a stream only to align it.
_PADDING_LIMIT = 1 << 20
_XZ_MAGIC = b"\xfd7zXZ\0"
# What a decoder of xz takes beside its window.
_XZ_SPARE = 1 << 20


def decompress(kind: str, read: Callable[[], bytes], give: Callable[[bytes], bool], max_window: int = 0) -> None:
    """Decompress a stream.

    kind         "bzip2", "xz" or "lz4"
    read         gives the next bytes of the stream, b"" at its end; what it raises passes through
    give         takes the next plain bytes; True: no more are wanted
    max_window   the most bytes that xz may look back, which takes as much memory; 0: any

    Raises  TarFormatError       the stream is cut, broken, or followed by something else
            LimitExceededError   max_window
            NotSupportedError    libarchive, or Python's lzma, cannot be loaded
    """
    if kind == "xz":
        _decompress_xz(read, give, max_window)
    else:
        _decompress_by_libarchive(kind, read, give)


def _decompress_xz(read: Callable[[], bytes], give: Callable[[bytes], bool], max_window: int) -> None:
    try:
        import lzma
    except ImportError as err:
        raise NotSupportedError(f"xz streams take Python's lzma, which cannot be loaded: {err}") from err
    given, data = 0, read()
    while True:  # a stream
        decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, max_window + _XZ_SPARE if max_window else None)
        while not decoder.eof:
            try:
                block = decoder.decompress(data, _BLOCK)
            except lzma.LZMAError as err:
                # By its words alone: there is no class of its own for it.
                if max_window and "emory usage limit" in str(err):
                    what = f"xz: the stream looks back too far: more than {max_window} bytes (max_window)"
                    raise LimitExceededError(f"{what} (at byte {given})", offset=given, option="max_window") from None
                raise TarFormatError(f"the xz stream cannot be decompressed: {err}") from None
            given += len(block)
            if block and give(block):
                return
            data = b""
            if decoder.needs_input and not decoder.eof:
                data = read()
                if not data:
                    raise TarFormatError("the xz stream cannot be decompressed: it is cut")
        seen, rest = _past_padding("xz", decoder.unused_data, read)
        if not rest:
            return
        while len(rest) < len(_XZ_MAGIC) and (data := read()):
            rest += data
        if seen % 4 or seen > _PADDING_LIMIT or not rest.startswith(_XZ_MAGIC):
            raise _followed("xz")
        data = rest


def _decompress_by_libarchive(kind: str, read: Callable[[], bytes], give: Callable[[bytes], bool]) -> None:
    # Here, so that a machine without the library can do everything else.
    try:
        import libarchive
        from libarchive import ffi
        from libarchive.read import ArchiveRead, new_archive_read
    except (ImportError, OSError, AttributeError) as err:
        needed = "libarchive (Debian: libarchive13)"
        raise NotSupportedError(f"{kind} streams take {needed}, which cannot be loaded: {err}") from err
    failure: list[BaseException] = []
    # libarchive looks at a block until it asks for the next one.
    held: list[bytes] = [b""]
    given = 0

    def read_block(_archive: object, _context: object, where: object) -> int:
        nonlocal given
        if failure:
            return _ARCHIVE_FATAL
        try:
            data = read()
        except BaseException as err:  # ctypes would print it and go on
            failure.append(err)
            return _ARCHIVE_FATAL
        held[0] = data
        slot = ctypes.cast(where, ctypes.POINTER(ctypes.c_void_p))  # type: ignore[arg-type]
        slot[0] = ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p)
        given += len(data)
        return len(data)

    def cut(err: Exception) -> BaseException:
        if failure:
            return failure[0]
        # libarchive has no words for some streams that end too early; its numbers do not help.
        reason = getattr(err, "msg", str(err)) or "it is cut, or damaged"
        return TarFormatError(f"the {kind} stream cannot be decompressed: {reason}")

    try:
        callback = ffi.READ_CALLBACK(read_block)
        with _heard(read_block, failure), new_archive_read("raw", kind) as pointer:
            # A stream of no bytes is a stream, too; "raw" alone does not know it.
            ffi.get_read_format_function("empty")(pointer)
            ffi.read_open(pointer, None, ffi.NO_OPEN_CB, callback, ffi.NO_CLOSE_CB)
            archive = ArchiveRead(pointer)
            # Without a filter "raw" would hand the compressed bytes on; with two it was packed twice.
            found = [name.decode() if isinstance(name, bytes) else name for name in archive.filter_names]
            if found != [kind]:
                raise failure[0] if failure else TarFormatError(f"not one whole {kind} stream")
            room = ctypes.create_string_buffer(_BLOCK)
            for _entry in archive:
                while size := ffi.read_data(pointer, room, _BLOCK):
                    if give(room.raw[:size] if size < _BLOCK else room.raw):
                        return
            used = archive.bytes_read
    except libarchive.ArchiveError as err:
        raise cut(err) from None
    if failure:
        raise failure[0]
    if _past_padding(kind, held[0][len(held[0]) - (given - used) :] if given > used else b"", read)[1]:
        raise _followed(kind)


@contextlib.contextmanager
def _heard(callback: object, failure: list[BaseException]) -> Iterator[None]:
    """Keep what a callback of ctypes raises before its first line, which a signal does: else it is printed and lost."""
    if threading.current_thread() is not threading.main_thread():
        yield                                # no signal is handled here
        return
    before = sys.unraisablehook

    def hear(told: Any) -> None:
        # From Python 3.13 on the object is named in the message only.
        if told.object is callback or (told.object is None and repr(callback) in (told.err_msg or "")):
            failure.append(told.exc_value)
        else:
            before(told)

    sys.unraisablehook = hear
    try:
        yield
    finally:
        sys.unraisablehook = before


def _past_padding(kind: str, data: bytes, read: Callable[[], bytes]) -> tuple[int, bytes]:
    """Pass over the zeros behind a stream. Return how many there are, and what follows, b"" at the end."""
    seen = 0
    while not (rest := data.lstrip(b"\0")):
        seen += len(data)
        if seen > _PADDING_LIMIT:
            raise _followed(kind)
        data = read()
        if not data:
            break
    return seen + len(data) - len(rest), rest


def _followed(kind: str) -> TarFormatError:
    return TarFormatError(f"something else follows the {kind} stream")
