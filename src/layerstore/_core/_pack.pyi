from typing import Any

from typing_extensions import disjoint_base

@disjoint_base
class Packer:
    """What zlib.compressobj gives: one gzip member, or one zstd frame. NotSupportedError: a build without libzstd."""
    def __init__(self, how: str) -> None:
        """how: "gzip" or "zstd"."""
    def compress(self, data: Any) -> bytes:
        """What has become ready."""
    def flush(self) -> bytes:
        """The rest; then it is over."""
