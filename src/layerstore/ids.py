"""Identifiers: digests checked once at the edge, how a ChainID is made, and random ids.

Text comes in, Digest / DiffID / ChainID (str subclasses) go out; their holder need not check them
again. Rules and texts are those of opencontainers/go-digest and of moby's layer package.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Self

from layerstore._core import _files
from layerstore.errors import InvalidDigestError, readable

# Bytes of each supported digest; the text has two hex digits for each.
_DIGEST_SIZES = {"sha256": 32, "sha384": 48, "sha512": 64}
_GRAMMAR = re.compile(r"[a-z0-9]+(?:[.+_-][a-z0-9]+)*:[a-zA-Z0-9=_-]+")
_HEX = re.compile(r"[a-f0-9]+")

_INVALID_FORMAT = "invalid checksum digest format"
_INVALID_LENGTH = "invalid checksum digest length"
_UNSUPPORTED = "unsupported digest algorithm"
_SHOWN = 200


def _invalid(words: str, text: str) -> InvalidDigestError:
    """Return the error for a text that is not a digest: moby's words, then as much of it as fits a line."""
    return InvalidDigestError(f"{words}: {readable(text[:_SHOWN])}" if text else words)


def _validate(text: str) -> None:
    algorithm, colon, encoded = text.partition(":")
    if not (algorithm and colon and encoded):
        raise _invalid(_INVALID_FORMAT, text)
    size = _DIGEST_SIZES.get(algorithm)
    if size is None:
        raise _invalid(_UNSUPPORTED if _GRAMMAR.fullmatch(text) else _INVALID_FORMAT, text)
    # Lengths are of bytes, as in Go, so that a non-ASCII text gets the same answer.
    if len(encoded.encode("utf-8", "surrogatepass")) != 2 * size:
        raise _invalid(_INVALID_LENGTH, text)
    if not _HEX.fullmatch(encoded):
        raise _invalid(_INVALID_FORMAT, text)


def is_digest(text: str) -> bool:
    """Return True if a text is a digest."""
    try:
        _validate(text)
    except InvalidDigestError:
        return False
    return True


class Digest(str):
    """`algorithm:encoded`: a checked text, equal to and usable as that text.

    Raises   InvalidDigestError   the text is not a digest, or of an unknown algorithm
    Source   opencontainers/go-digest, digest.go
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        """Check text and make it a digest."""
        if not isinstance(text, str):
            raise TypeError(f"a digest is a str, not {type(text).__name__}")
        if type(text) is not cls:
            _validate(text)
        return super().__new__(cls, text)

    @property
    def algorithm(self) -> str:
        """The part before the colon: "sha256", "sha384" or "sha512"."""
        return self.partition(":")[0]

    @property
    def encoded(self) -> str:
        """The part after the colon: lower-case hex."""
        return self.partition(":")[2]

    @property
    def raw(self) -> bytes:
        """The digest's bytes."""
        return bytes.fromhex(self.encoded)


def sha256_of(data: bytes) -> Digest:
    """Return the SHA-256 digest of some bytes."""
    return Digest(f"sha256:{hashlib.sha256(data).hexdigest()}")


class DiffID(Digest):
    """SHA-256 of one uncompressed layer tar, every byte to its end."""

    __slots__ = ()


class ChainID(Digest):
    """DiffIDs folded from the base up: names a layer together with all below it."""

    __slots__ = ()


OS = str

# The layer of 1024 zero bytes: a tar without entries.
EMPTY_LAYER_DIFF_ID = DiffID(
    "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"
)


def digest_of(algorithm: str, raw: bytes) -> Digest:
    """Make the Digest of digest bytes."""
    return Digest(f"{algorithm}:{raw.hex()}")


def diff_id_of(raw: bytes) -> DiffID:
    """Make the DiffID of 32 digest bytes."""
    return DiffID(f"sha256:{raw.hex()}")


def chain_on(parent: str, diff_id: str) -> ChainID:
    """Make the ChainID of the layer diff_id on top of parent ("" = it is the base)."""
    if not parent:
        return ChainID(diff_id)
    return ChainID(sha256_of(f"{parent} {diff_id}".encode()))


def create_chain_id(diff_ids: Sequence[str]) -> ChainID | str:
    """Fold DiffIDs, base first, into the ChainID of the topmost layer.

    diff_ids   any texts: they are not checked

    Returns  ChainID; "" for no DiffIDs; the one item itself where there is only one
    Source   moby, layer/layer.go, CreateChainID
    """
    if isinstance(diff_ids, (str, bytes)):
        raise TypeError("diff_ids is a sequence of digests, not one text")
    if not diff_ids:
        return ""
    chain: ChainID | str = diff_ids[0]
    if len(diff_ids) == 1:
        try:
            return ChainID(chain)
        except InvalidDigestError:
            return chain
    for diff_id in diff_ids[1:]:
        chain = ChainID(sha256_of(f"{chain} {diff_id}".encode("utf-8", "surrogateescape")))
    return chain


# Mount ids and init ids; until April 2018 cache ids too.
_DRIVER_ID = re.compile(r"[a-f0-9]{64}(?:-init)?")


def is_driver_id(text: str) -> bool:
    """Return True if text is 64 hex digits, perhaps with "-init" behind them."""
    return _DRIVER_ID.fullmatch(text) is not None


def random_id() -> str:
    """Draw a new cache or mount id: 64 hex digits whose first 12 are not all decimal.

    An id that began with 12 decimal digits could not be a host name.
    Source   moby, pkg/stringid
    """
    while True:
        drawn = _files.random(32).hex()
        if not drawn[:12].isdecimal():
            return drawn
