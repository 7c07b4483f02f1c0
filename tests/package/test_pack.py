"""_pack.Packer is what zlib.compressobj is: used by one thread at a time, over after flush()."""

import gzip
import subprocess
import threading

import pytest
import recipes

from layerstore._core._pack import Packer

DATA = recipes.noise(5_000_000) + bytes(9_000_000)


def plain(how: str, data: bytes) -> bytes:
    if how == "gzip":
        return gzip.decompress(data)
    return subprocess.run(["zstd", "-dc"], input=data, capture_output=True, check=True).stdout


@pytest.mark.parametrize("how", ["gzip", "zstd"])
def test_blocks_of_every_kind(how):
    packer = Packer(how)
    made = [packer.compress(DATA[:3]), packer.compress(b""), packer.compress(memoryview(DATA)[3:]), packer.compress(bytearray(b"x"))]
    assert plain(how, b"".join(made) + packer.flush()) == DATA + b"x"


@pytest.mark.parametrize("how", ["gzip", "zstd"])
def test_nothing_at_all(how):
    assert plain(how, Packer(how).flush()) == b""


@pytest.mark.parametrize("how", ["gzip", "zstd"])
def test_after_the_end_and_what_is_no_bytes(how):
    packer = Packer(how)
    with pytest.raises(TypeError):
        packer.compress("text")
    with pytest.raises(RuntimeError):
        packer.__init__(how)
    packer.flush()
    for again in (lambda: packer.compress(b"x"), packer.flush):
        with pytest.raises(ValueError, match="over"):
            again()
    with pytest.raises(KeyError):
        Packer("lzw")


def test_one_thread_at_a_time():
    packer, refused, made = Packer("gzip"), [], []
    thread = threading.Thread(target=lambda: made.append(packer.compress(DATA)))
    thread.start()
    while thread.is_alive() and not refused:
        try:
            packer.compress(b"")
        except RuntimeError as err:
            refused.append(str(err))
    thread.join()
    assert refused == ["in use by another thread"]
    assert gzip.decompress(made[0] + packer.flush()) == DATA
