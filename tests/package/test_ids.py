"""Digest, DiffID and ChainID: what is one, what is refused, how a ChainID is folded."""

import hashlib
import pickle

import pytest
import tarkit

import layerstore
from layerstore import ChainID, DiffID, Digest, InvalidDigestError, create_chain_id

HEX = "0123456789abcdef" * 4
CLASSES = [Digest, DiffID, ChainID]


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize(("algorithm", "digits"), [("sha256", 64), ("sha384", 96), ("sha512", 128)])
def test_a_valid_digest_is_its_text_in_two_parts(kind, algorithm, digits):
    text = f"{algorithm}:{'a' * digits}"
    digest = kind(text)
    assert (digest, digest.algorithm, digest.encoded) == (text, algorithm, "a" * digits)
    assert isinstance(digest, str)
    assert str(digest) == text
    assert hash(digest) == hash(text)


INVALID = {
    "empty": "", "no colon": "abc", "colon first": ":abc", "colon last": "sha256:", "too short": "sha256:abc",
    "63 digits": f"sha256:{HEX[:-1]}", "65 digits": f"sha256:{HEX}a", "capital among hex": f"sha256:{HEX[:-1]}G",
    "upper-case hex": f"sha256:{HEX.upper()}",
    "algorithm not supported": "md5:d41d8cd98f00b204e9800998ecf8427e",
    "algorithm unknown": "bean:0123456789abcdef", "algorithm not in the grammar": "foo@bar:1",
    "algorithm in capitals": f"SHA256:{HEX}", "sha384 with 64 digits": f"sha384:{HEX}",
    "sha512 with 96 digits": f"sha512:{'a' * 96}",
    "blank before": f" sha256:{HEX}", "newline behind": f"sha256:{HEX}\n",
    "newline for a digit": f"sha256:{HEX[:-1]}\n",
    "second colon": f"sha256:{HEX[:-2]}:a", "digits beyond ASCII": f"sha256:{'٣' * 64}", "NUL": f"sha256:{HEX[:-1]}\0",
}


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("text", INVALID.values(), ids=INVALID.keys())
def test_an_invalid_digest_is_refused(kind, text):
    with pytest.raises(InvalidDigestError) as caught:
        kind(text)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("abc", "invalid checksum digest format"),
        ("foo@bar:1", "invalid checksum digest format"),
        (f"sha256:{HEX[:-1]}G", "invalid checksum digest format"),
        ("sha256:abc", "invalid checksum digest length"),
        ("md5:d41d8cd98f00b204e9800998ecf8427e", "unsupported digest algorithm"),
        ("bean:0123456789abcdef", "unsupported digest algorithm")]
)
def test_the_refusal_says_what_is_wrong_in_mobys_words(text, sentence):
    with pytest.raises(InvalidDigestError, match=sentence):
        Digest(text)


def test_the_length_is_judged_before_the_characters():
    with pytest.raises(InvalidDigestError, match="length"):
        Digest("sha256:XYZ")


@pytest.mark.parametrize("value", [None, 5, b"sha256:" + HEX.encode(), ["sha256"]])
def test_what_is_no_text_is_no_digest(value):
    with pytest.raises((TypeError, InvalidDigestError)):
        Digest(value)


def test_diff_and_chain_ids_are_digests():
    assert issubclass(DiffID, Digest)
    assert issubclass(ChainID, Digest)


def test_a_digest_survives_pickling():
    digest = DiffID(f"sha256:{HEX}")
    again = pickle.loads(pickle.dumps(digest))
    assert (again, type(again)) == (digest, DiffID)


A, B, C = (f"sha256:{letter * 64}" for letter in "abc")
EMPTY = "sha256:" + hashlib.sha256(bytes(1024)).hexdigest()
FOLDED = [
    ([], ""),
    ([A], A),
    ([A, B], "sha256:ccd722928bd92476ba1745586fed6e45a102504185ad88cd89e01ff116fd146c"),
    ([A, B, C], "sha256:c1377126441fb2f5ec2c21ae2a60255331d639e830f0ee1b40a36e52d4c40588"),
    ([EMPTY, EMPTY], "sha256:170b376f64fb30995c140276be3d71dfb256b308d86183ca3b22aa93a79ad548"),
    ([tarkit.T1_DIFF_ID, tarkit.T2_DIFF_ID], tarkit.T2_ON_T1_CHAIN_ID),
]


@pytest.mark.parametrize(("diff_ids", "chain"), FOLDED)
def test_create_chain_id_folds_from_the_base_up(diff_ids, chain):
    assert create_chain_id(diff_ids) == chain
    assert create_chain_id(tuple(diff_ids)) == chain


def test_create_chain_id_gives_a_chain_id():
    assert type(create_chain_id([A, B])) is ChainID


def test_the_empty_layer_is_1024_zero_bytes():
    assert EMPTY == layerstore.EMPTY_LAYER_DIFF_ID
    assert type(layerstore.EMPTY_LAYER_DIFF_ID) is DiffID
