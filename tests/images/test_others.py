"""What was scanned elsewhere is what runs here: an archive is the image that skopeo and Python see in it, or it is refused."""

import io
import json
import random
import shutil
import subprocess
import tarfile
import time

import imagekit
import pytest
import tarkit
from imagedraw import Draw
from imagekit import BASE, MIDDLE, OCI, blob, descriptor, encode, tar_of
from machine import needs

from layerstore import LayerStoreError
from layerstore.errors import ImageError
from layerstore.images.archive import FILE, entries, plain_path

SECONDS = 15


# ---- the tar around images, as Python's tarfile reads it -----------------------------------------
def ours(data: bytes) -> list[tuple[str, bytes]]:
    """The files that we see."""
    file = io.BytesIO(data)
    return [
        (entry.name, data[entry.offset : entry.offset + entry.size])
        for entry in entries(file.read, lambda n: file.seek(n, 1), file.tell) if entry.kind == FILE
    ]  # fmt: skip


def python_s(data: bytes) -> list[tuple[str, bytes]]:
    """The files that Python sees."""
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        return [(plain_path(member.name), data[member.offset_data : member.offset_data + member.size])
                for member in opened.getmembers() if member.isreg() and not member.issparse()]  # fmt: skip


def drawn_tar(pick: random.Random) -> bytes:
    """Entries with what writers of tars differ in: sizes where there is no payload, extensions of all kinds and orders."""
    inside = tarkit.file("manifest.json", b"[]") + tarkit.file("x", b"evil")

    def piece() -> bytes:
        name, data = pick.choice(["a", "manifest.json", "d/x", "./y", "/z", "n" * 100]), pick.choice([b"", b"text", b"x" * 600, inside])
        extensions = [tarkit.pax({"path": "pax/path"}), tarkit.pax({"size": str(len(data))}), tarkit.pax({"size": "512"}), tarkit.gnu_long("gnu/path"),
                      tarkit.global_pax({"comment": "x"}), tarkit.global_pax({"path": "global"}), tarkit.global_pax({"size": "512"}),
                      tarkit.pax({"mtime": "1.5"}), tarkit.gnu_long("target", b"K"), tarkit.pax({"path": "solaris"}, typeflag=b"X")]
        kind = pick.choice([b"0", b"0", b"0", b"\0", b"7", b"1", b"2", b"3", b"5", b"6", b"V", b"X"])
        body = data + bytes(-len(data) % 512)
        size = pick.choice([len(data), len(data), len(data), 512, tarkit.base256(len(data), 12)])
        return b"".join(pick.sample(extensions, k=pick.choice([0, 0, 0, 1, 1, 2]))) + tarkit.raw_header(name, typeflag=kind, size=size) + body

    return b"".join(piece() for _ in range(pick.randrange(1, 5))) + tarkit.end()


def test_files_are_those_that_python_sees_or_all_is_refused():
    taken = refused = 0
    for seed in range(3000):
        data = drawn_tar(random.Random(seed))
        try:
            found = ours(data)
        except ImageError:
            refused += 1
            continue
        taken += 1
        assert found == python_s(data), seed
    assert taken > 300
    assert refused > 300


# ---- whole archives, as skopeo reads them ---------------------------------------------------------
@pytest.fixture(scope="module")
def skopeo():
    needs("skopeo")

    def copy(source: str, room) -> str:
        """The id of the image that skopeo finds; "": it refuses."""
        shutil.rmtree(room / "seen", ignore_errors=True)
        words = ["skopeo", "--insecure-policy", "--override-os", "linux", "--override-arch", "amd64", "copy", "-q", source, f"dir:{room}/seen"]
        if subprocess.run(words, capture_output=True, check=False).returncode:
            return ""
        return json.loads((room / "seen/manifest.json").read_bytes())["config"]["digest"]

    return copy


def loaded_ids(images, data: bytes, **options) -> dict[str, str]:
    """{name: id} of what we load; {} where we refuse."""
    try:
        found = {name: image.id for image in images.load(data, **options) for name in image.references or ("",)}
    except LayerStoreError:
        return {}
    for image in images.list():
        images.remove(image, force=True)
    return found


def test_archives_are_the_images_that_skopeo_sees(images, room, skopeo):
    """Of what both take, each name is one image; skopeo looks at no platform where manifest.json lists several."""
    (room / "warm.tar").write_bytes(tar_of(imagekit.docker([([BASE], ["a/b:1"])])))
    assert skopeo(f"docker-archive:{room}/warm.tar:a/b:1", room)
    seed, both, until = 0, 0, time.monotonic() + SECONDS
    while time.monotonic() < until and seed < 400:
        seed += 1
        drawn = Draw(seed)
        if drawn.kind in ("dir", "v1"):
            continue
        data = drawn.tar()
        (room / "a.tar").write_bytes(data)
        for name, id in loaded_ids(images, data, platform="linux/amd64").items():
            kind = "oci-archive" if drawn.kind in ("oci", "nested") else "docker-archive"
            if not name or (kind == "oci-archive" and name.startswith("thing:")):
                continue
            raw = {"oci-archive": [name, f"docker.io/{name}", f"docker.io/library/{name}"], "docker-archive": [name]}[kind]
            seen = next(filter(None, (skopeo(f"{kind}:{room}/a.tar:{each}", room) for each in raw)), "")
            elsewhere = {imagekit.digest(data) for _, more, data in drawn.some if more.get("architecture", "amd64") != "amd64"}
            assert seen in ("", id) or (kind == "docker-archive" and seen in elsewhere), (seed, drawn.kind, name)
            both += bool(seen)
    assert both > 5


# ---- those that were made to be read in two ways ---------------------------------------------------
HARMLESS, EVIL = [BASE], [MIDDLE]


def docker_text(text: str) -> bytes:
    """docker's archive with this manifest.json; h and e are the files of the two images."""
    files = {f"{w}.tar": layers[0] for w, layers in (("h", HARMLESS), ("e", EVIL))}
    files |= {f"{w}.json": imagekit.config(layers) for w, layers in (("h", HARMLESS), ("e", EVIL))}
    return tar_of({"manifest.json": text.encode(), **files})


def hybrid(saved, listed, name="a:1", listed_name="a:1") -> bytes:
    """manifest.json with one image, index.json with another."""
    files = imagekit.oci(listed, "plain", f"docker.io/library/{listed_name}")
    return tar_of(files | imagekit.docker([(saved, [name])]))


def twice(first: bytes, second: bytes) -> bytes:
    return first[:-1024] + second


def two_in_one(kind: str) -> bytes:
    document, blobs = imagekit.manifest(EVIL)
    harmless, more = imagekit.manifest(HARMLESS)
    made = json.loads(document) | {"manifests": [descriptor(harmless, OCI + "manifest.v1+json", platform={"os": "linux", "architecture": "amd64"})]}
    made["mediaType"] = OCI + kind
    data = encode(made)
    return tar_of(imagekit.layout([descriptor(data, OCI + kind)], blobs | more | dict(map(blob, (data, harmless)))))


def index_with(**more) -> bytes:
    files = imagekit.oci(HARMLESS, "plain", "docker.io/library/a:1")
    return tar_of(files | {"index.json": encode(json.loads(files["index.json"]) | more)})


def media_type(own: str, told: str) -> bytes:
    document, blobs = imagekit.manifest(HARMLESS)
    data = encode(json.loads(document) | {"mediaType": own})
    return tar_of(imagekit.layout([descriptor(data, told)], blobs | dict([blob(data)])))


ENTRY = '[{"Config":"%s.json","RepoTags":["a:1"],"Layers":["%s.tar"],%s}]'
TWO_WAYS = {
    "keys in another case": docker_text(ENTRY % ("h", "h", '"config":"e.json","layers":["e.tar"]')),
    "keys twice": docker_text(ENTRY % ("h", "h", '"Config":"e.json","Layers":["e.tar"]')),
    "a key with the Kelvin sign": docker_text(ENTRY % ("h", "h", '"RepoTag\u017f":["b:1"]')),
    "something behind the JSON": docker_text((ENTRY % ("h", "h", '"x":1')) + ENTRY % ("e", "e", '"x":1')),
    "the same name for two images": docker_text(
        '[{"Config":"h.json","RepoTags":["a:1"],"Layers":["h.tar"]},{"Config":"e.json","RepoTags":["a:1"],"Layers":["e.tar"]}]'),
    "two lists, one name": hybrid(HARMLESS, EVIL),
    "two lists, two images": hybrid(HARMLESS, EVIL, listed_name="b:1"),
    "two archives, one in front of the other": twice(tar_of(imagekit.docker([(HARMLESS, ["a:1"])])), tar_of(imagekit.docker([(EVIL, ["a:1"])]))),
    "a manifest that is an index": two_in_one("manifest.v1+json"),
    "an index that is a manifest": two_in_one("index.v1+json"),
    "an index.json with layers": index_with(layers=[]),
    "an index.json with a config": index_with(config={}),
    "an index.json that calls itself a manifest": index_with(mediaType=OCI + "manifest.v1+json"),
    "a manifest that calls itself an index": media_type(OCI + "index.v1+json", OCI + "manifest.v1+json"),
    "a manifest that is named as an index": media_type(OCI + "manifest.v1+json", OCI + "index.v1+json"),
    "a file below a link": tar_of(
        imagekit.docker([(HARMLESS, ["a:1"])]) | {"real/c.json": imagekit.config(HARMLESS), "manifest.json": encode(
            [{"Config": "real/c.json", "RepoTags": ["a:1"], "Layers": ["0/layer.tar"]}])}, {"x": "real"})[:-1024]
        + tarkit.file("x/c.json", imagekit.config(HARMLESS, author="evil")) + tarkit.end(),
}  # fmt: skip


@pytest.mark.parametrize("what", TWO_WAYS)
@pytest.mark.parametrize("platform", [None, "all"])
def test_what_can_be_read_in_two_ways_is_refused(images, what, platform):
    with pytest.raises(ImageError):
        images.load(TWO_WAYS[what], platform=platform)
    assert images.list() == []


def test_keys_in_another_case_alone_are_read_as_go_reads_them(images):
    text = '[{"config":"h.json","REPOTAGS":["a:1"],"Layers":["h.tar"]}]'
    assert images.load(docker_text(text))[0].references == ("a:1",)
    data = imagekit.config(HARMLESS).replace(b'"rootfs"', b'"RootFS"')
    files = {"l.tar": BASE, "c.json": data, "manifest.json": encode([{"Config": "c.json", "Layers": ["l.tar"]}])}
    with pytest.raises(ImageError, match="is not spelled as docker spells it"):
        images.load(tar_of(files))


