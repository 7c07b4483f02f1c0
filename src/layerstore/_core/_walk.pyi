from typing_extensions import disjoint_base

@disjoint_base
class Walker:
    """Reads headers, and what extends them, as Go's archive/tar does."""
    def __init__(self, *args: object, **kwargs: object) -> None: ...
    def wants(self) -> int:
        """How many bytes feed() takes next, at most; 0 when the end of the archive has passed."""
    def feed(self, data: bytes) -> tuple[bytes, bytes, str, bool, int, int, str | None] | None:
        """An entry, when its header is whole: name, link, type, whether it is sparse, the bytes of its payload and of
        the padding behind, which are passed over elsewhere, and why others see another entry here. TarFormatError."""
    def end(self) -> None:
        """The stream ends here. TarFormatError: inside of something."""

def begins(block: bytes) -> bool:
    """Return True if a tar begins so: the first 512 bytes are a header with a right checksum, or all zero."""
