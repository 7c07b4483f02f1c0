"""Which blobs a push asks for: the layer's descriptor first, then docker's notes, the newest of this registry and of others."""

import pytest

from layerstore.ids import Digest
from layerstore.images.known import Candidate, candidates, oci_type, type_of
from layerstore.layerdb.distribution import Entry
from layerstore.values import Descriptor

OCI = "application/vnd.oci.image.layer.v1.tar"
DOCKER = "application/vnd.docker.image.rootfs.diff.tar"
HERE = ("localhost:5000", "a/app")


def blob(n: int) -> Digest:
    return Digest(f"sha256:{n:064x}")


@pytest.mark.parametrize(
    ("said", "expected"),
    [(OCI, OCI), (OCI + "+gzip", OCI + "+gzip"), (OCI + "+zstd", OCI + "+zstd"), (DOCKER, OCI), (DOCKER + ".gzip", OCI + "+gzip"),
     (DOCKER + ".zstd", OCI + "+zstd"), ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", OCI + "+gzip"),
     ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", OCI + "+zstd"), (OCI + "+gzip+encrypted", ""), ("", ""),
     ("application/octet-stream", ""), ("application/tar+gzip", ""), ("text/plain", ""), (OCI + "+gzip\n", ""), (OCI + "+bzip2", "")],
)  # fmt: skip
def test_types_are_ocis_of_the_same_compression_or_unknown(said, expected):
    assert oci_type(said) == expected


@pytest.mark.parametrize(("head", "how"), [(b"\x1f\x8b\x08\x00", "+gzip"), (b"\x28\xb5\x2f\xfd", "+zstd"), (b"etc/", ""), (b"", ""), (b"\x28\xb5\x2f\xfe", "")])
def test_four_bytes_tell(head, how):
    assert type_of(head) == OCI + how


def test_the_descriptor_is_first_and_newer_notes_before_older():
    found = candidates(
        Descriptor(DOCKER + ".gzip", blob(1), 7),
        [Entry(blob(2), "localhost:5000/a/app", OCI, 2), Entry(blob(3), "localhost:5000/b", "", None)],
        *HERE,
    )
    assert found == [
        Candidate(blob(1), 7, OCI + "+gzip"), Candidate(blob(2), 2, OCI), Candidate(blob(3), -1, "", ("b",)),
    ]  # fmt: skip


def test_one_blob_in_several_places_is_one_candidate():
    """What one of them does not say the other does; all places of this registry count, newest first, but not the target."""
    entries = [
        Entry(blob(1), "localhost:5000/new", "", None), Entry(blob(1), "docker.io/library/x", "", 9),
        Entry(blob(1), "localhost:5000/a/app", OCI + "+zstd", 8), Entry(blob(1), "localhost:5000/old", "", None),
    ]  # fmt: skip
    assert candidates(Descriptor("", blob(1), 0), entries, *HERE) == [Candidate(blob(1), 9, OCI + "+zstd", ("new", "old"))]


def test_five_of_this_registry_and_five_of_others():
    here = [Entry(blob(n), f"localhost:5000/r{n}", OCI, n) for n in range(8)]
    others = [Entry(blob(100 + n), f"docker.io/library/r{n}", OCI, n) for n in range(8)]
    found = [each.digest for each in candidates(None, [*here, *others], *HERE)]
    assert found == [blob(n) for n in (*range(5), *range(100, 105))]


@pytest.mark.parametrize("repository", ["", "upper/CASE", "a b", "localhost:5000/app:1", f"localhost:5000/app@{blob(1)}", "localhost:5000/../x", "x?y", "a\r\nb", "/a"])
def test_a_note_with_a_name_that_is_none_is_passed_over(repository):
    assert candidates(None, [Entry(blob(1), repository, OCI, 1)], *HERE) == []


def test_docker_hub_has_one_name():
    entries = [Entry(blob(1), "docker.io/library/busybox", OCI, 1)]
    assert candidates(None, entries, "docker.io", "user/app") == [Candidate(blob(1), 1, OCI, ("library/busybox",))]
    assert candidates(None, entries, "docker.io", "library/busybox") == [Candidate(blob(1), 1, OCI)]


def test_no_descriptor():
    assert candidates(None, [], *HERE) == candidates(Descriptor(), [], *HERE) == candidates(Descriptor(OCI, "sha256:12", 1), [], *HERE) == []
