"""What the documents of an archive may hold: dockerd's own fields and kinds, JSON as Go reads it, and bounded memory."""

import gzip
import json
import lzma
import os

import imagekit
import pytest
import tarkit
from another import growth
from imagekit import BASE, MIDDLE, TOP, Once, encode, tar_of

from layerstore import ImageError, LimitExceededError
from layerstore.documents.configs import parse_config
from layerstore.documents.platforms import parse_platform

# ---- configs -------------------------------------------------------------------------------------
VALUES = {
    "a text": "x", "no text": "", "a number": 1, "zero": 0, "a fraction": 1.5, "1e2": 100.0, "true": True, "a list": ["a"], "an empty list": [],
    "a list of numbers": [1], "a list with null": [None], "an object": {"a": "b"}, "an empty object": {}, "numbers in an object": {"a": 1},
    "objects in an object": {"a": {}}, "2^63": 1 << 63, "-2^63": -(1 << 63), "a time": "2024-02-29T23:59:59.5+23:59",
}  # fmt: skip
TEXT = {"a text", "no text", "a time"}
WHOLE = {"a number", "zero", "-2^63"}
TEXTS = {"a list", "an empty list", "a list with null"}
SET = {"an empty object", "objects in an object"}
MAP = {"an empty object", "an object"}
KINDS = {
    "text": TEXT, "whole": WHOLE, "flag": {"true"}, "texts": TEXTS, "words": TEXTS | TEXT, "set": SET, "map": MAP, "time": {"a time"},
    "struct": {"an empty object", "an object", "numbers in an object", "objects in an object"},
}  # fmt: skip
# Go's structs, field by field, as dockerd has them: (where, kind).
RUN = {
    "Hostname": "text", "Domainname": "text", "User": "text", "AttachStdin": "flag", "AttachStdout": "flag", "AttachStderr": "flag",
    "ExposedPorts": "set", "Tty": "flag", "OpenStdin": "flag", "StdinOnce": "flag", "Env": "texts", "Cmd": "words", "Healthcheck": "struct",
    "ArgsEscaped": "flag", "Image": "text", "Volumes": "set", "WorkingDir": "text", "Entrypoint": "words", "NetworkDisabled": "flag",
    "MacAddress": "text", "OnBuild": "texts", "Labels": "map", "StopSignal": "text", "StopTimeout": "whole", "Shell": "words",
}  # fmt: skip
FIELDS = {
    (key,): kind for key, kind in {
        "id": "text", "parent": "text", "comment": "text", "created": "time", "container": "text", "container_config": "struct",
        "docker_version": "text", "author": "text", "config": "struct", "architecture": "text", "variant": "text", "Size": "whole",
        "os.version": "text", "os.features": "texts",
    }.items()
}  # fmt: skip
FIELDS |= {(where, key): kind for where in ("config", "container_config") for key, kind in RUN.items()}
FIELDS |= {("config", "Healthcheck", key): kind for key, kind in {
    "Test": "texts", "Interval": "whole", "Timeout": "whole", "StartPeriod": "whole", "StartInterval": "whole", "Retries": "whole"}.items()}  # fmt: skip
FIELDS |= {("history", key): kind for key, kind in {
    "created": "time", "author": "text", "created_by": "text", "comment": "text", "empty_layer": "flag"}.items()}  # fmt: skip
FIELDS |= {("rootfs", "type"): "text"}


def config_with(path, value) -> bytes:
    found = json.loads(imagekit.config([BASE]))
    at = found
    for key in path[:-1]:
        at = at.setdefault(key, {}) if key != "history" else found["history"][0]
    at[path[-1]] = value
    return encode(found)


@pytest.mark.parametrize("path", FIELDS, ids=".".join)
def test_each_field_of_a_config_is_of_its_kind(path):
    for called, value in VALUES.items():
        data = config_with(path, value)
        if called in KINDS[FIELDS[path]] or (path == ("created",) and called == "a time"):
            parse_config(data, "it")
        else:
            with pytest.raises(ImageError) as raised:
                parse_config(data, "the config c.json")
            assert str(raised.value).startswith("the config c.json: ")
            assert path[-1] in str(raised.value), called
    parse_config(config_with(path, None), "it")
    other = path[-1].swapcase()
    with pytest.raises(ImageError, match=r"twice|is not spelled as docker spells it"):
        parse_config(config_with((*path[:-1], other), None), "it")


@pytest.mark.parametrize("system", ["Linux", "LINUX"])
def test_a_system_that_ends_dockerd_is_refused(images, nothing_left, system):
    """It looks its layers up by this very text, and no longer starts on a root that has such an image."""
    with nothing_left(), pytest.raises(ImageError, match=rf"os is '{system}', not 'linux'"):
        images.load(as_archive(imagekit.config([BASE], os=system)))


@pytest.mark.parametrize("time", [
    "", "yesterday", "2024-13-01T00:00:00Z", "2023-02-29T00:00:00Z", "2024-01-01T24:00:00Z", "2024-01-01T00:00:60Z", "2024-01-01 00:00:00Z",
    "2024-01-01T00:00:00", "2024-01-01T00:00:00,5Z", "2024-01-01T00:00:00+24:00", "2024-01-01T00:00:00.Z", "2024-01-01t00:00:00z",
    "\u0662024-01-01T00:00:00Z",
])  # fmt: skip
def test_times_that_there_are_not(time):
    with pytest.raises(ImageError, match="is not a time"):
        parse_config(config_with(("created",), time), "it")


def as_archive(data: bytes) -> bytes:
    return tar_of({"c.json": data, "l.tar": BASE, "manifest.json": encode([{"Config": "c.json", "RepoTags": ["x:1"], "Layers": ["l.tar"]}])})


NO_JSON = [
    b'"x":NaN', b'"x":Infinity', b'"x":-Infinity', b'"x":"\\ud800"', b'"\\udfff":1', b'"x":["\\udc00\\ud800"]', b'"x":"\xff"', b'"x":"\xed\xa0\x80"',
    b'"x":1e999', b'"x":01', b'"x":"a\nb"', b'"x":1,"x":2', b'"x":tru', b'"x":' + b"[" * 100_000, b'"x":' + b"9" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("text", NO_JSON, ids=lambda text: repr(text[:20]))
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_no_json_is_refused(images, nothing_left, text, stream):
    data = as_archive(imagekit.config([BASE])[:-1] + b"," + text + b"}")
    with nothing_left(), pytest.raises(ImageError, match=r"the config c\.json|not valid JSON"):
        images.load(Once(data) if stream else data)


@pytest.mark.parametrize("tail", [b"x", b"{}", b"\0"])
def test_nothing_follows_a_document(images, tail):
    with pytest.raises(ImageError, match="not valid JSON"):
        images.load(as_archive(imagekit.config([BASE]) + tail))
    assert images.load(as_archive(imagekit.config([BASE]) + b" \r\n\t"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", "\udc80", {1, 2}, b"x", object()], ids=repr)
def test_create_refuses_what_json_cannot_say(images, store, value):
    with store.register(BASE) as layer:
        with pytest.raises(ImageError):
            images.create(layer, {"x": value})
        with pytest.raises(ImageError):
            images.create(layer, {"config": {"Labels": {"x": value}}})
    assert images.list() == []


# ---- platforms -----------------------------------------------------------------------------------
@pytest.mark.parametrize(("text", "wanted"), {
    "x86_64": "linux/amd64", "x86-64": "linux/amd64", "AMD64": "linux/amd64", "linux/amd64/v1": "linux/amd64", "amd64/v3": "linux/amd64/v3",
    "i386": "linux/386", "i686": "linux/386", "aarch64": "linux/arm64", "arm64/v8": "linux/arm64", "linux/arm64/8": "linux/arm64",
    "armhf": "linux/arm/v7", "armel": "linux/arm/v6", "armv7l": "linux/arm/v7", "linux/armv6l": "linux/arm/v6", "arm/7": "linux/arm/v7",
    "arm": "linux/arm", "ppc64el": "linux/ppc64le", "macos/arm64": "darwin/arm64", " linux/arm64 ": "linux/arm64", "Linux/ARM64": "linux/arm64",
}.items())  # fmt: skip
def test_platforms_as_people_spell_them(text, wanted):
    assert str(parse_platform(text)) == wanted


@pytest.mark.parametrize("text", ["", "/", "linux/", "a/b/c/d", "linux/amd64/v1/x", "linux/am d64", "l\u00efnux"])
def test_what_is_no_platform(text):
    with pytest.raises(ImageError, match="is not a platform"):
        parse_platform(text)


@pytest.mark.parametrize("said", [{}, {"os": "linux"}, {"architecture": "arm64"}, {"os": "", "architecture": ""}, {"variant": "v8"}])
@pytest.mark.parametrize(("platform", "wanted"), [("linux/amd64", "amd64"), ("arm64", "arm64")])
def test_a_platform_that_an_index_tells_by_half_is_that_of_the_config(images, said, platform, wanted):
    both = [imagekit.image([layer], entry={"platform": said}, architecture=name) for layer, name in ((TOP, "amd64"), (MIDDLE, "arm64"))]
    [image] = images.load(tar_of(imagekit.layout_of(*both)), platform=platform)
    assert image.architecture == wanted


def test_an_archive_s_own_spelling_is_understood(images):
    platform = {"os": "linux", "architecture": "aarch64"}
    files = imagekit.layout_of(imagekit.image([TOP], entry={"platform": platform}, architecture="aarch64"))
    assert images.load(tar_of(files), platform="linux/arm64/v8")


# ---- names by digest -----------------------------------------------------------------------------
@pytest.mark.parametrize("how", ["alone", "behind a tag", "of another"])
def test_a_repository_digest_is_kept_where_it_is_true(images, how):
    entry, blobs = imagekit.image([MIDDLE])
    said = entry["digest"] if how != "of another" else imagekit.digest(b"x")
    name = "ghcr.io/a/b:1@" if how == "behind a tag" else "ghcr.io/a/b@"
    entry["annotations"] = {"io.containerd.image.name": name + said}
    [image] = images.load(tar_of(imagekit.layout([entry], blobs)))
    assert image.digests == ((f"ghcr.io/a/b@{said}",) if how != "of another" else ())
    assert image.references == (("ghcr.io/a/b:1",) if how == "behind a tag" else ())


# ---- memory --------------------------------------------------------------------------------------
LOAD = """
try: Images(store).load(subprocess.Popen(["cat", sys.argv[2]], stdout=-1).stdout if sys.argv[3] == "stream" else sys.argv[2])
except LayerStoreError: pass
"""
STORE = """
import subprocess
from layerstore import Images, LayerStoreError
store = layerstore.Store(sys.argv[1], options={"durability": "none"})
"""


def configs_of(data: bytes, count: int = 5) -> bytes:
    saved = [{"Config": f"{n}.json", "Layers": []} for n in range(count)]
    return tar_of({"manifest.json": encode(saved)} | {f"{n}.json": data.replace(b"@", str(n).encode()) for n in range(count)})


def filled(item: bytes, size: int) -> bytes:
    return b'{"n":"@","rootfs":{},"x":[' + b",".join([item] * (size // (len(item) + 1))) + b"]}"


def long_names(number: int) -> bytes:
    def one(n: int) -> bytes:
        records = {"path": b"\xf0\x9f\x98\x80%07d" % n + b"/nnn" * 900, "linkpath": b"t/" * 900 + b"t"}
        return tarkit.pax(records) + tarkit.raw_header("l", typeflag=b"2")

    return b"".join(map(one, range(number))) + tarkit.end()


SIZE = 7 << 20
BOMBS = {
    "a list of lists": lambda: configs_of(filled(b"[]", SIZE)), "a list of objects": lambda: configs_of(filled(b'{"a":[]}', SIZE)),
    "as many objects as there may be": lambda: configs_of(filled(b'{"a":[]}', 250_000), 20),
    "numbers": lambda: configs_of(filled(b"1", SIZE)), "commas in a text": lambda: configs_of(filled(b'"' + b"," * SIZE + b'"', SIZE + 9)),
    "four bytes a character": lambda: configs_of(filled(b'"\xf0\x9f\x98\x80' + b"x" * SIZE + b'"', SIZE + 9)),
    "long names": lambda: long_names(4000), "many names": lambda: b"".join(tarkit.file(f"{n:064}/x") for n in range(60_000)) + tarkit.end(),
}  # fmt: skip


@pytest.mark.parametrize(("what", "how"), [*((what, "file") for what in BOMBS), ("a list of objects", "stream"), ("many names", "stream")])
def test_memory_follows_what_is_needed(room, what, how):
    (room / "archive").write_bytes(gzip.compress(BOMBS[what](), 1))
    assert growth(LOAD, room / "store", room / "archive", how, before=STORE) < 65 + (12 if what == "many names" else 0)


def test_large_documents_that_no_image_needs_are_not_kept(images):
    """Attestations in front of the documents that say what is needed."""
    large = {f"blobs/sha256/{n:064x}": encode({"predicate": os.urandom(3 << 20).hex()}) for n in range(6)}
    assert images.load(Once(tar_of(large | imagekit.layout_of(imagekit.image([BASE]))), 1 << 20))


def test_an_xz_window_is_bounded(images):
    data = tar_of(imagekit.docker([([BASE], ["a:1"])]))
    for size, fits in ((64 << 20, True), (256 << 20, False)):
        packed = lzma.compress(data, filters=[{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": size}])
        if fits:
            assert images.load(packed)
        else:
            with pytest.raises(LimitExceededError, match="max_window"):
                images.load(packed)
