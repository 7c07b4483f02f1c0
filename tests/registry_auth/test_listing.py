"""tags() and referrers(): pages, bounds, the tag that stands in for a missing API, and whom they never ask."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

import layerstore
from layerstore.documents import references
from layerstore.errors import ImageError, NotInRegistryError, RegistryError
from layerstore.registry.registry import Registry

from .conftest import Request, Said, Serve

DIGEST = "sha256:" + "a" * 64
INDEX = "application/vnd.oci.image.index.v1+json"


def paged(pages: dict[str, Said]) -> Callable[[Request], Said]:
    """Answer by path and query."""

    def answer(request: Request) -> Said:
        query = "&".join(f"{key}={value}" for key, values in request.query.items() for value in values)
        return pages.get(request.path + (f"?{query}" if query else ""), Said(404, {"errors": [{"code": "NAME_UNKNOWN", "message": "no such name"}]}))

    return answer


def link(target: str) -> tuple[tuple[str, str], ...]:
    return (("Link", f'<{target}>; rel="next"'),)


# ---- tags ----


def test_tags_in_the_registrys_order(serve: Serve) -> None:
    server = serve(paged({"/v2/a/b/tags/list": Said(200, {"name": "a/b", "tags": ["z", "a", "m"]})}))
    with Registry(server.host) as registry:
        assert registry.tags("a/b") == registry.tags(f"{server.host}/a/b") == ["z", "a", "m"]
        assert registry.tags("a/b:ignored") == ["z", "a", "m"]


@pytest.mark.parametrize("second", ["/v2/a/tags/list?n=1&last=z", "?n=1&last=z", "list?n=1&last=z", "http://HOST/v2/a/tags/list?n=1&last=z", "//HOST/v2/a/tags/list?n=1&last=z"])
def test_pages_are_followed(serve: Serve, second: str) -> None:
    pages: dict[str, Said] = {}
    server = serve(paged(pages))
    pages |= {
        "/v2/a/tags/list": Said(200, {"tags": ["z"]}, link(second.replace("HOST", server.host))),
        "/v2/a/tags/list?n=1&last=z": Said(200, {"tags": ["y"]}, link("/v2/a/tags/list?n=1&last=y")),
        "/v2/a/tags/list?n=1&last=y": Said(200, {"tags": ["x"]}, (("Link", '</v2/a>; rel="prev"'),)),
    }
    with Registry(server.url) as registry:
        assert registry.tags("a") == ["z", "y", "x"]
    assert server.connections == 1


@pytest.mark.parametrize("document", [{"tags": None}, {"name": "a"}, {"tags": []}, {"name": "a", "tags": None, "manifest": {"x": {"tag": ["y"]}}}])
def test_no_tags(serve: Serve, document: Any) -> None:
    with Registry(serve(paged({"/v2/a/tags/list": Said(200, document)})).host) as registry:
        assert registry.tags("a") == []


@pytest.mark.parametrize("document", [
    b"", b"not json", [], "a", {"tags": "a"}, {"tags": {"a": 1}}, {"tags": [1]}, {"tags": [None]}, {"tags": ["a\nb"]}, {"tags": [""]}, {"tags": ["a/b"]}, {"tags": ["\x1b[31m"]},
    {"tags": ["x" * 129]}, b"[" * 100_000, b'{"tags":[' + b"{}," * 200_000 + b'"a"]}', b'{"tags": [NaN]}', b"\xff",
])  # fmt: skip
def test_what_is_no_list_of_tags_is_refused(serve: Serve, document: Any) -> None:
    server = serve(paged({"/v2/a/tags/list": Said(200, document)}))
    with Registry(server.host) as registry, pytest.raises(RegistryError, match=rf"GET http://{server.host}/v2/a/tags/list: ") as raised:
        registry.tags("a")
    assert (raised.value.status, raised.value.host) == (200, server.host) and raised.value.__context__ is None


def test_a_repository_that_is_not_there(serve: Serve) -> None:
    with Registry(serve(paged({})).host) as registry, pytest.raises(NotInRegistryError, match="404 NAME_UNKNOWN: no such name") as raised:
        registry.tags("a")
    assert raised.value.code == "NAME_UNKNOWN"


@pytest.mark.parametrize(("target", "said"), [
    ("/v2/a/tags/list", "circle"), ("?", "circle"), ("http://other.example.com/v2/a/tags/list?n=1", "other.example.com"), ("http://127.0.0.1:1/v2/a/tags/list?n=1", "127.0.0.1:1"),
    ("https://HOST/v2/a/tags/list?n=1", "another place"), ("http://169.254.169.254/latest", "169.254.169.254"), ("file:///etc/passwd", "."), ("http://user:pw@HOST/x", "."),
])  # fmt: skip
def test_links_that_are_not_followed(serve: Serve, target: str, said: str) -> None:
    pages: dict[str, Said] = {}
    server = serve(paged(pages))
    pages["/v2/a/tags/list"] = Said(200, {"tags": ["a"]}, link(target.replace("HOST", server.host)))
    with Registry(server.host) as registry, pytest.raises(RegistryError, match=said) as raised:
        registry.tags("a")
    assert len(server.asked) == 1 and "pw" not in str(raised.value)


def test_a_page_twice_ends_it(serve: Serve) -> None:
    pages = {"/v2/a/tags/list": Said(200, {"tags": ["a"]}, link("?n=1"))}
    pages |= {f"/v2/a/tags/list?n={number}": Said(200, {"tags": ["b"]}, link(f"?n={(number + 1) % 5}")) for number in range(5)}
    server = serve(paged(pages))
    with Registry(server.host) as registry, pytest.raises(RegistryError, match="circle"):
        registry.tags("a")
    assert len(server.asked) == 6


def test_pages_without_end(serve: Serve) -> None:
    server = serve(lambda request: Said(200, {"tags": ["a"]}, link(f"?n={len(request.query) and int(request.query['n'][0]) + 1}")))
    with Registry(server.host) as registry, pytest.raises(RegistryError, match="more than 1000 pages"):
        registry.tags("a")
    assert len(server.asked) == 1000


def test_a_million_tags_are_enough(serve: Serve) -> None:
    body = json.dumps({"tags": ["a"] * 500_000}).encode()
    server = serve(lambda request: Said(200, body, link(f"?n={len(request.query) and int(request.query['n'][0]) + 1}") if request.query.get("n") != ["1"] else ()))
    with Registry(server.host) as registry:
        with pytest.raises(RegistryError, match="more than 1000000"):
            registry.tags("a")
        assert len(server.asked) == 3
        server.answer = lambda request: Said(200, body, () if request.query else link("?n=1"))
        assert len(registry.tags("a")) == 1_000_000


def test_a_page_has_4_mib_at_most(serve: Serve) -> None:
    server = serve(lambda _: Said(200, b'{"tags":["a"]' + b" " * (4 << 20) + b"}"))
    with Registry(server.host) as registry, pytest.raises(RegistryError, match="more than 4194304 bytes"):
        registry.tags("a")


@pytest.mark.parametrize("name", ["", "A/b", "a//b", "a/../b", "http://x/a", "user@host/a", "a b", "a\r\nX: y", "other.example.com/a", "127.0.0.1/a", "%61", "a?n=1"])
def test_names_that_are_not_asked_for(serve: Serve, name: str) -> None:
    server = serve(paged({}))
    with Registry(server.host) as registry:
        for ask in (registry.tags, registry.referrers):
            with pytest.raises(ImageError):
                ask(name)
    assert server.asked == []


@pytest.mark.parametrize(("host", "name", "path"), [
    ("LOCALHOST:PORT", "LocalHost:PORT/a", "a"), ("localhost:PORT", "library/a", "library/a"), ("127.0.0.1:PORT", "127.0.0.1:PORT/user/a@" + DIGEST, "user/a"),
])  # fmt: skip
def test_the_path_of_a_name(serve: Serve, host: str, name: str, path: str) -> None:
    server = serve(paged({f"/v2/{path}/tags/list": Said(200, {"tags": ["1"]})}))
    port = server.host.rpartition(":")[2]
    with Registry(host.replace("PORT", port)) as registry:
        assert registry.tags(name.replace("PORT", port)) == ["1"]


@pytest.mark.parametrize(("domain", "name", "path", "wanted"), [
    ("docker.io", "app", "library/app", "latest"), ("docker.io", "user/app:1", "user/app", "1"), ("docker.io", "index.docker.io/app", "library/app", "latest"), ("docker.io", f"docker.io/app:1@{DIGEST}", "library/app", DIGEST),
    ("registry", "app:2", "app", "2"), ("registry", "registry/app", "registry/app", "latest"), ("[::1]:5000", "[::1]:5000/app", "app", "latest"), ("[::1]:5000", "a/b", "a/b", "latest"),
])  # fmt: skip
def test_what_a_name_asks_for(domain: str, name: str, path: str, wanted: str) -> None:
    found = references.parse_within(domain, name)
    assert (found.path, found.wanted) == (path, wanted)


def test_what_is_no_name_is_a_type_error(serve: Serve) -> None:
    with Registry("localhost:1") as registry:
        with pytest.raises(TypeError):
            registry.tags(7)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            registry.referrers("a", 7)  # type: ignore[arg-type]


# ---- referrers ----


def entry(letter: str, kind: str = "application/vnd.example.sbom", **more: Any) -> dict[str, Any]:
    return {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": "sha256:" + letter * 64, "size": 7, "artifactType": kind, **more}


def index(*entries: dict[str, Any]) -> Said:
    return Said(200, {"schemaVersion": 2, "mediaType": INDEX, "manifests": list(entries)}, (("Content-Type", INDEX),))


def test_referrers_of_a_digest(serve: Serve) -> None:
    server = serve(paged({f"/v2/a/referrers/{DIGEST}": index(entry("b", annotations={"k": "v", "n": None}), entry("c", "other/type"), {"mediaType": "m", "digest": DIGEST, "size": 0})}))
    with Registry(server.host) as registry:
        found = registry.referrers(f"a@{DIGEST}")
    assert found == [
        layerstore.Descriptor("application/vnd.oci.image.manifest.v1+json", "sha256:" + "b" * 64, 7, (), {"k": "v", "n": ""}, "application/vnd.example.sbom"),
        layerstore.Descriptor("application/vnd.oci.image.manifest.v1+json", "sha256:" + "c" * 64, 7, (), None, "other/type"),
        layerstore.Descriptor("m", DIGEST, 0),
    ]  # fmt: skip


@pytest.mark.parametrize("told", [DIGEST, None, "sha256:cut", "md5:" + "a" * 32])
def test_a_tag_is_resolved_first(serve: Serve, told: str | None) -> None:
    manifest = b'{"schemaVersion":2}'
    headers = (("Docker-Content-Digest", told),) if told else ()
    digest = DIGEST if told == DIGEST else "sha256:" + hashlib.sha256(manifest).hexdigest()
    server = serve(paged({"/v2/a/manifests/latest": Said(200, manifest, headers), f"/v2/a/referrers/{digest}": index(entry("b"))}))
    with Registry(server.host) as registry:
        assert [each.digest for each in registry.referrers("a")] == ["sha256:" + "b" * 64]
    assert [request.method for request in server.asked] == (["HEAD", "GET"] if told == DIGEST else ["HEAD", "GET", "GET"])


def test_a_tag_that_is_not_there(serve: Serve) -> None:
    with Registry(serve(paged({})).host) as registry, pytest.raises(NotInRegistryError):
        registry.referrers("a:1")


@pytest.mark.parametrize("applied", [None, "artifactType", "other, ArtifactType", "other"])
def test_the_type_is_asked_for_and_filtered_here_too(serve: Serve, applied: str | None) -> None:
    answer = index(entry("b", "wanted/a+b"), entry("c", "other/type"))
    headers = (*answer.headers, *((("OCI-Filters-Applied", applied),) if applied else ()))
    server = serve(lambda _: answer._replace(headers=headers))
    with Registry(server.host) as registry:
        found = registry.referrers(f"a@{DIGEST}", "wanted/a+b")
    assert server.asked[0].query == {"artifactType": ["wanted/a+b"]}
    assert len(found) == (2 if applied and "artifacttype" in applied.lower() else 1) and found[0].artifact_type == "wanted/a+b"


def test_pages_of_referrers(serve: Serve) -> None:
    first, second = f"/v2/a/referrers/{DIGEST}", f"/v2/a/referrers/{DIGEST}?next=2"
    server = serve(paged({first: index(entry("b"))._replace(headers=link(second)), second: index(entry("c"))}))
    with Registry(server.host) as registry:
        assert [each.digest[-1] for each in registry.referrers(f"a@{DIGEST}")] == ["b", "c"]


def test_a_page_that_was_promised_is_no_end(serve: Serve) -> None:
    server = serve(paged({f"/v2/a/referrers/{DIGEST}": index(entry("b"))._replace(headers=link("?next=2"))}))
    with Registry(server.host) as registry, pytest.raises(RegistryError):
        registry.referrers(f"a@{DIGEST}")


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_without_the_api_there_is_a_tag_with_an_index(serve: Serve, algorithm: str) -> None:
    digest = f"{algorithm}:" + hashlib.new(algorithm).hexdigest()
    server = serve(paged({f"/v2/a/manifests/{digest.replace(':', '-')}": index(entry("b"), entry("c", "other/type"))}))
    with Registry(server.host) as registry:
        assert len(registry.referrers(f"a@{digest}")) == 2
        assert [each.digest[-1] for each in registry.referrers(f"a@{digest}", "other/type")] == ["c"]


@pytest.mark.parametrize("there", [None, Said(200, {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": {}, "layers": []})])
def test_without_the_api_and_without_an_index_there_are_none(serve: Serve, there: Said | None) -> None:
    server = serve(paged({f"/v2/a/manifests/{DIGEST.replace(':', '-')}": there} if there else {}))
    with Registry(server.host) as registry:
        assert registry.referrers(f"a@{DIGEST}") == []


@pytest.mark.parametrize("document", [
    b"", b"not json", [], {"manifests": {}}, {"manifests": [7]}, {"manifests": [None]}, {"manifests": [{}]}, {"manifests": [entry("b") | {"digest": "md5:x"}]},
    {"manifests": [entry("b") | {"digest": "sha256:" + "B" * 64}]}, {"manifests": [entry("b") | {"size": -1}]}, {"manifests": [entry("b") | {"size": 1.5}]},
    {"manifests": [entry("b") | {"size": 1 << 63}]}, {"manifests": [entry("b", annotations={"k": 1})]}, {"manifests": [entry("b") | {"artifactType": 7}]}, b"[" * 100_000,
])  # fmt: skip
def test_what_is_no_index_is_refused(serve: Serve, document: Any) -> None:
    server = serve(paged({f"/v2/a/referrers/{DIGEST}": Said(200, document, (("Content-Type", INDEX),))}))
    with Registry(server.host) as registry, pytest.raises(RegistryError, match="GET "):
        registry.referrers(f"a@{DIGEST}")


def test_a_closed_registry_says_so() -> None:
    registry = Registry("localhost:1")
    registry.close()
    for ask in (registry.tags, registry.referrers):
        with pytest.raises(RegistryError, match="closed"):
            ask("a")
