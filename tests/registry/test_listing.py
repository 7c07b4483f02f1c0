"""Tags and referrers: in the registry's order, page by page, and only from where the registry itself is."""

import imagekit
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from imagekit import BASE, TOP, encode
from scripted import Answer, Server
from shelf import KINDS

from layerstore import Descriptor, ImageError, NotInRegistryError, RegistryError

SBOM, SIGNATURE = "application/vnd.example.sbom", "application/vnd.example.signature"


# ---- tags ----
def test_the_registrys_order(shelf, connect):
    for tag in ("b", "a", "C", "10", "9"):
        shelf.put([BASE], tag=tag)
    assert connect().tags("app") == ["b", "a", "C", "10", "9"]


@pytest.mark.parametrize("page", [1, 2, 7, 25])
def test_pages(shelf, connect, page):
    shelf.page = page
    for number in range(25):
        shelf.add_manifest(b"{}", tag=f"t{number}", kind=KINDS[1])
    assert connect().tags("app") == [f"t{number}" for number in range(25)]
    assert len(shelf.requests) == -(-25 // page)


LINKS = ['</v2/app/tags/list?last=1>; rel="next"', "</v2/app/tags/list?last=1>;rel=next", '<?last=1>; rel="next"', '<list?last=1>; title="a, b"; rel="next"', '<{url}/v2/app/tags/list?last=1>; rel="next"',
         '</other>; rel="prev", </v2/app/tags/list?last=1>; rel="next"', '</v2/app/tags/list?last=1>; REL="next last"', '  </v2/app/tags/list?last=1>  ;  rel="next"  ']  # fmt: skip


@pytest.mark.parametrize("link", LINKS)
def test_forms_of_a_link(shelf, connect, link):
    shelf.on("GET", ".*", Answer(200, {"Link": link.format(url=shelf.url)}, b'{"tags":["1"]}'), Answer(200, {}, b'{"tags":["2"]}'))
    assert connect().tags("app") == ["1", "2"]
    assert shelf.requests[1].target == "/v2/app/tags/list?last=1"


@pytest.mark.parametrize("link", ["", "nonsense", '</v2/x>; rel="prev"', "</v2/x>", "<>; rel=next", '<</v2/x>; rel="next"', "</v2/x; rel=next"], ids=repr)
def test_links_that_lead_nowhere(shelf, connect, link):
    shelf.always("GET", "/v2/app/tags/list", Answer(200, {"Link": link}, b'{"tags":["1"]}'))
    try:
        assert connect().tags("app") == ["1"]
    except RegistryError:
        pass
    assert len(shelf.requests) <= 2


ELSEWHERE = ["http://OTHER/v2/app/tags/list?last=1", "//OTHER/x", "https://HOST/v2/app/tags/list", "ftp://HOST/x", "file:///etc/passwd", "http://u:p@HOST/v2/x", "http://169.254.169.254/x", "http://localhost:PORT/x"]


@pytest.mark.parametrize("place", ELSEWHERE)
def test_links_elsewhere_are_not_followed(shelf, serve, connect, place):
    other = serve(Server())
    target = place.replace("OTHER", other.host).replace("HOST", shelf.host).replace("PORT", str(shelf.port))
    shelf.always("GET", "/v2/app/tags/list", Answer(200, {"Link": f'<{target}>; rel="next"'}, b'{"tags":["1"]}'))
    try:
        assert connect().tags("app") == ["1"]
    except RegistryError as error:
        assert "u:p" not in str(error)
    assert other.connections == 0 and len(shelf.requests) == 1


def test_a_page_twice_is_an_error(shelf, connect, within):
    shelf.always("GET", "/v2/app/tags/list", lambda request: Answer(200, {"Link": f'</v2/app/tags/list?n={1 - int(request.field("n", "0"))}>; rel="next"'}, b'{"tags":["1"]}'))
    with within(3), pytest.raises(RegistryError):
        connect(retries=2).tags("app")
    assert len(shelf.requests) <= 4


def test_a_thousand_pages(shelf, connect):
    shelf.always("GET", "/v2/app/tags/list", lambda request: Answer(200, {"Link": f'</v2/app/tags/list?n={int(request.field("n", "0")) + 1}>; rel="next"'}, b'{"tags":["1"]}'))
    with pytest.raises(RegistryError):
        connect().tags("app")
    assert 1000 <= len(shelf.requests) <= 1001


def test_a_million_tags(shelf, connect):
    page = encode({"tags": ["t"] * 400_000})
    shelf.always("GET", "/v2/app/tags/list", lambda request: Answer(200, {"Link": f'</v2/app/tags/list?n={int(request.field("n", "0")) + 1}>; rel="next"'}, page))
    with pytest.raises(RegistryError):
        connect().tags("app")
    assert len(shelf.requests) <= 4


@pytest.mark.parametrize("body", [b'{"tags":null}', b'{"name":"app"}', b"{}", b'{"tags":[]}'])
def test_no_tags(shelf, connect, body):
    shelf.always("GET", ".*", Answer(200, {}, body))
    assert connect().tags("app") == []


@pytest.mark.parametrize("body", [b"", b"[]", b"5", b"null", b'{"tags":5}', b'{"tags":{"a":1}}', b'{"tags":[5]}', b'{"tags":[null]}', b"{", b"\xff", b"[" * 90_000], ids=lambda body: repr(body[:14]))
def test_tags_of_other_kinds(shelf, connect, body):
    shelf.always("GET", ".*", Answer(200, {}, body))
    with pytest.raises(RegistryError):
        connect(retries=2).tags("app")
    assert len(shelf.requests) == 1


def test_no_such_repository(shelf, connect):
    with pytest.raises(NotInRegistryError) as caught:
        connect().tags("none")
    assert caught.value.code == "NAME_UNKNOWN"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(link=st.text(st.sampled_from('</v2ap>;rel="nxt ,=?\\') | st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=50))
def test_drawn_links(shelf, connect, link):
    shelf.forget()
    shelf.on("GET", ".*", Answer(200, {"Link": link}, b'{"tags":["1"]}'))
    registry = shelf.__dict__.setdefault("drawn", connect())
    try:
        assert registry.tags("app")
    except RegistryError:
        pass
    assert len(shelf.requests) <= 2


# ---- manifest ----
def test_manifest_gives_an_index_as_it_is(shelf, connect):
    put = shelf.put([BASE], tag="")
    digest = shelf.put_index([(put, {"platform": {"os": "linux", "architecture": "amd64"}})])
    found, data = connect().manifest("app:all")
    assert data == shelf.manifests["app"]["all"][1]
    assert (found.media_type, found.digest, found.size) == (KINDS[0], digest, len(data))
    assert isinstance(found, Descriptor)
    assert connect().manifest(f"app@{digest}") == (found, data)


def test_manifest_checks_the_digest(shelf, connect):
    put = shelf.put([BASE])
    shelf.on("GET", ".*", Answer(200, {"Content-Type": KINDS[1]}, put.manifest + b" "))
    with pytest.raises(ImageError, match=put.digest):
        connect().manifest(f"app@{put.digest}")


def test_manifest_gives_artifacts_too(shelf, connect):
    document = encode({"schemaVersion": 2, "mediaType": KINDS[1], "artifactType": SBOM, "config": imagekit.descriptor(b"{}", "application/vnd.oci.empty.v1+json"), "layers": []})
    shelf.add_manifest(document, tag="1")
    assert connect().manifest("app:1")[1] == document


# ---- referrers ----
def refer(shelf, put, kind, text="x"):
    document = {"schemaVersion": 2, "mediaType": KINDS[1], "artifactType": kind, "config": imagekit.descriptor(b"{}", "application/vnd.oci.empty.v1+json"), "layers": [],
                "subject": {"mediaType": KINDS[1], "digest": put.digest, "size": len(put.manifest)}, "annotations": {"text": text}}  # fmt: skip
    return shelf.add_manifest(document)


@pytest.fixture
def referred(shelf):
    put = shelf.put([BASE, TOP])
    return put, refer(shelf, put, SBOM, "a"), refer(shelf, put, SIGNATURE, "b")


@pytest.mark.parametrize("form", ["app:1", "app@{digest}", "{host}/app:1"])
def test_referrers(shelf, connect, referred, form):
    put, sbom, signature = referred
    found = connect().referrers(form.format(digest=put.digest, host=shelf.host))
    assert [(each.digest, each.artifact_type, dict(each.annotations), each.media_type) for each in found] == [(sbom, SBOM, {"text": "a"}, KINDS[1]), (signature, SIGNATURE, {"text": "b"}, KINDS[1])]
    assert all(each.size > 0 for each in found)


@pytest.mark.parametrize("filters", [True, False])
def test_referrers_of_a_type(shelf, connect, referred, filters):
    shelf.filters = filters
    found = connect().referrers("app:1", SBOM)
    assert [each.artifact_type for each in found] == [SBOM]
    assert shelf.requests[-1].field("artifactType") == SBOM


def test_a_type_is_quoted(shelf, connect, referred):
    connect().referrers(f"app@{referred[0].digest}", "a/b+c&d=e#f g")
    assert shelf.requests[-1].field("artifactType") == "a/b+c&d=e#f g"
    assert len(shelf.requests[-1].fields) == 1


def test_a_tag_is_resolved_by_head(shelf, connect, referred):
    connect().referrers("app:1")
    assert shelf.paths() == ["HEAD /v2/app/manifests/1", f"GET /v2/app/referrers/{referred[0].digest}"]


def test_a_head_without_a_digest_is_followed_by_get(shelf, connect, referred):
    shelf.on("HEAD", ".*", Answer(200, {"Content-Type": KINDS[1]}))
    assert len(connect().referrers("app:1")) == 2
    assert shelf.paths() == ["HEAD /v2/app/manifests/1", "GET /v2/app/manifests/1", f"GET /v2/app/referrers/{referred[0].digest}"]


@pytest.mark.parametrize("digest", ["nonsense", "sha256:" + "A" * 64, "sha256:" + "a" * 64 + "/../../x", "sha256:" + "a" * 64 + "?x"])
def test_a_head_with_a_digest_that_is_none(shelf, connect, referred, digest):
    shelf.on("HEAD", ".*", Answer(200, {"Docker-Content-Digest": digest}))
    try:
        connect().referrers("app:1")
    except RegistryError:
        pass
    assert shelf.paths()[-1] in (f"GET /v2/app/referrers/{referred[0].digest}", "HEAD /v2/app/manifests/1", "GET /v2/app/manifests/1")


def test_without_the_api_an_index_by_tag(shelf, connect, referred):
    put, sbom, signature = referred
    shelf.has_referrers = False
    registry = connect()
    assert registry.referrers(f"app@{put.digest}") == []
    tag = put.digest.replace(":", "-")
    shelf.add_manifest({"schemaVersion": 2, "mediaType": KINDS[0], "manifests": [{"mediaType": KINDS[1], "digest": sbom, "size": 5, "artifactType": SBOM}, {"mediaType": KINDS[1], "digest": signature, "size": 6, "artifactType": SIGNATURE}]}, tag=tag)
    assert [each.digest for each in registry.referrers(f"app@{put.digest}")] == [sbom, signature]
    assert [each.digest for each in registry.referrers(f"app@{put.digest}", SIGNATURE)] == [signature]
    assert f"GET /v2/app/manifests/{tag}" in shelf.paths()


def test_pages_of_referrers(shelf, connect, referred):
    put = referred[0]

    def page(number):
        return encode({"schemaVersion": 2, "manifests": [{"mediaType": KINDS[1], "digest": imagekit.digest(b"%d" % number), "size": number, "artifactType": SBOM}]})

    path = f"/v2/app/referrers/{put.digest}"
    shelf.on("GET", path, Answer(200, {"Content-Type": KINDS[0], "Link": f'<{path}?p=1>; rel="next"'}, page(0)), Answer(200, {"Content-Type": KINDS[0]}, page(1)))
    assert [each.size for each in connect().referrers(f"app@{put.digest}")] == [0, 1]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"manifests":5}', b'{"manifests":[5]}', b'{"manifests":[{"digest":5}]}', b'{"manifests":[{"digest":"sha256:x","size":1}]}', b'{"manifests":[{"digest":"sha256:' + b"a" * 64 + b'","size":-1}]}', b"[" * 90_000], ids=lambda body: repr(body[:30]))  # fmt: skip
def test_referrers_of_other_kinds(shelf, connect, body):
    shelf.always("GET", ".*", Answer(200, {"Content-Type": KINDS[0]}, body))
    with pytest.raises(RegistryError):
        connect().referrers("app@sha256:" + "a" * 64)


def test_referrers_of_a_tag_that_is_not_there(shelf, connect):
    with pytest.raises(NotInRegistryError):
        connect().referrers("app:none")


def test_artifact_type_is_the_last_field_and_empty():
    assert Descriptor._fields[-1] == "artifact_type" and Descriptor().artifact_type == ""


def test_an_index_of_nothing(shelf, connect, referred):
    shelf.always("GET", ".*/referrers/.*", Answer(200, {"Content-Type": KINDS[0]}, encode({"schemaVersion": 2, "manifests": []})))
    assert connect().referrers(f"app@{referred[0].digest}") == []
