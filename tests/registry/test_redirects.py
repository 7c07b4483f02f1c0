"""Redirects: how many, where to, and what does not go along."""

import logging
import traceback

import pytest
from guards import BasicGuard, Proxy, basic
from imagekit import BASE, TOP, encode
from scripted import Answer, Server
from shelf import Shelf

from layerstore import AuthenticationError, Registry, RegistryError

LINK_LOCAL = ["http://169.254.169.254/latest/meta-data", "https://169.254.0.1/x", "http://[fe80::1]/x", "http://[fe80::1%25eth0]/x", "http://[::ffff:169.254.169.254]/x", "http://[febf::1]:80/x",
              "http://0xa9fea9fe/x", "http://2852039166/x", "http://169.254.43518/x", "http://0251.0376.0251.0376/x", "http://169.254.169.254./x"]  # fmt: skip


@pytest.fixture
def put(shelf):
    return shelf.put([BASE, TOP])


@pytest.fixture
def other(serve):
    return serve(Server())


def to(place, status=307):
    return Answer(status, {"Location": place})


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_blobs_come_from_elsewhere(shelf, serve, pull, check, put, status):
    elsewhere = serve(Server())
    for number, blob in enumerate(put.blobs):
        shelf.on("GET", put.blob_path(number), to(f"{elsewhere.url}/blob/{number}?signature=s3cret&x=%2F+a", status))
        elsewhere.on("GET", f"/blob/{number}", Answer(200, {}, blob))
    check(pull(put.reference), put)
    assert {request.target for request in elsewhere.requests} == {f"/blob/{number}?signature=s3cret&x=%2F+a" for number in range(2)}


@pytest.mark.parametrize("form", ["/v2/app/manifests/2", "2", "./2", "../manifests/2", "{url}/v2/app/manifests/2", "//{host}/v2/app/manifests/2"])
def test_forms_of_a_location(shelf, connect, put, form):
    shelf.put([TOP], tag="2")
    shelf.on("GET", "/v2/app/manifests/1", to(form.format(url=shelf.url, host=shelf.host)))
    assert connect().manifest("app:1")[1] == shelf.manifests["app"]["2"][1]


def test_heads_are_redirected_too(shelf, connect, put):
    shelf.on("HEAD", "/v2/app/manifests/1", to("/v2/app/manifests/2"))
    other = shelf.put([TOP], tag="2")
    connect().referrers("app:1")
    assert shelf.paths()[-1] == f"GET /v2/app/referrers/{other.digest}"


def test_ten_are_followed_and_eleven_are_not(shelf, connect, put):
    for count, fine in ((10, True), (11, False)):
        shelf.forget()
        for number in range(count):
            shelf.always("GET", f"/v2/app/manifests/{'1' if number == 0 else f'hop{number}'}", to(f"/v2/app/manifests/hop{number + 1}"))
        shelf.always("GET", f"/v2/app/manifests/hop{count}", Answer(200, {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}, put.manifest))
        if fine:
            assert connect().manifest("app:1")[1] == put.manifest
        else:
            with pytest.raises(RegistryError):
                connect(retries=2).manifest("app:1")
        assert len(shelf.requests) == min(count, 10) + 1


def test_circles_end(shelf, connect, put, within):
    cases = {"itself": {"1": "1"}, "two": {"1": "x", "x": "1"}, "behind": {"1": "x", "x": "y", "y": "x"}}
    for hops in cases.values():
        shelf.forget()
        for here, there in hops.items():
            shelf.always("GET", f"/v2/app/manifests/{here}", to(f"/v2/app/manifests/{there}"))
        with within(1), pytest.raises(RegistryError):
            connect(retries=2).manifest("app:1")
        assert len(shelf.requests) <= len(hops)


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://127.0.0.1/x", "gopher://127.0.0.1/", "data:,hello", "javascript:1", "http:///x", "http://", "https://user@HOST/x", "https://user:pw@HOST/x", "http://:80/x",
                                   "http://HOST:99999/x", "http://a b/x", "http://[::1/x", "", "\x00", "http://HOST:x/"], ids=repr)  # fmt: skip
def test_places_that_are_refused(shelf, connect, put, place):
    location = place.replace("HOST", shelf.host)
    shelf.always("GET", "/v2/app/manifests/1", Answer(307, {"Location": location}))
    with pytest.raises(RegistryError) as caught:
        connect(retries=1).manifest("app:1")
    assert "pw" not in str(caught.value)
    assert len(shelf.requests) == 1


def test_no_location(shelf, connect, put):
    shelf.always("GET", "/v2/app/manifests/1", Answer(307))
    with pytest.raises(RegistryError):
        connect(retries=1).manifest("app:1")
    assert len(shelf.requests) == 1


@pytest.mark.parametrize("place", LINK_LOCAL)
def test_link_local_addresses_are_refused(shelf, connect, put, place, within):
    shelf.always("GET", "/v2/app/manifests/1", to(place))
    with within(1), pytest.raises(RegistryError) as caught:
        connect(retries=1, timeout=3).manifest("app:1")
    assert caught.value.status in (0, 307)
    assert len(shelf.requests) == 1
    assert "169.254" in str(caught.value) or "fe80" in str(caught.value) or "febf" in str(caught.value) or any(name in str(caught.value) for name in ("0xa9fea9fe", "2852039166", "0251"))


def test_loopback_is_refused_where_the_registry_is_elsewhere(serve, authority, monkeypatch, connect):
    """A registry of another name, reached through a proxy that finds it here."""
    shelf = serve(Shelf())
    victim = serve(Server())
    proxy = serve(Proxy())
    monkeypatch.setenv("http_proxy", f"http://{proxy.host}")
    host = f"registry.example.com:{shelf.port}"
    put = shelf.put([BASE])
    with Registry(f"http://{host}", insecure=True, retries=0, timeout=5) as registry:
        assert registry.manifest("app:1")[1] == put.manifest
        for place in (f"http://127.0.0.1:{victim.port}/x", f"http://localhost:{victim.port}/x", f"http://[::1]:{victim.port}/x", f"http://127.1:{victim.port}/x", f"http://0.0.0.0:{victim.port}/x",
                      f"http://[::ffff:127.0.0.1]:{victim.port}/x", f"http://2130706433:{victim.port}/x"):  # fmt: skip
            shelf.on("GET", ".*", to(place))
            with pytest.raises(RegistryError):
                registry.manifest("app:1")
    assert victim.requests == [] and victim.connections == 0


# ---- what does not go along ----
def test_no_authorization_elsewhere(shelf, serve, images, connect, check, put):
    elsewhere = serve(Server())
    shelf.guard = BasicGuard("user", "pw")
    for number, blob in enumerate(put.blobs):
        shelf.always("GET", put.blob_path(number), lambda request, number=number: to(f"{elsewhere.url}/{number}") if request.header("Authorization") else shelf.guard(request))
        elsewhere.always("GET", f"/{number}", Answer(200, {}, blob))
    check(images.pull(put.reference, registry=connect(auth=("user", "pw"))), put)
    assert [request.header("Authorization") for request in elsewhere.requests] == ["", ""]
    assert {request.header("Authorization") for request in shelf.requests[1:]} == {basic("user", "pw")}


def test_on_the_same_host_it_goes_along(shelf, connect, put):
    shelf.guard = BasicGuard("user", "pw")
    shelf.on("GET", "/v2/app/manifests/1", lambda request: shelf.guard(request), to("/v2/app/manifests/2"))
    shelf.put([TOP], tag="2")
    connect(auth=("user", "pw")).manifest("app:1")
    assert shelf.requests[-1].path.endswith("/2") and shelf.requests[-1].header("Authorization") == basic("user", "pw")


def test_a_token_that_was_given_stays_here(shelf, serve, connect, put):
    elsewhere = serve(Server())
    elsewhere.always("GET", "/x", Answer(200, {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}, put.manifest))
    shelf.always("GET", "/v2/app/manifests/1", to(f"{elsewhere.url}/x"))
    connect(auth="bear3r").manifest("app:1")
    assert shelf.requests[0].header("Authorization") == "Bearer bear3r"
    assert elsewhere.requests[0].header("Authorization") == ""


def test_a_401_elsewhere_is_an_error(shelf, serve, connect, put):
    elsewhere = serve(Server())
    elsewhere.always("GET", ".*", Answer(401, {"WWW-Authenticate": "Basic realm=x"}))
    shelf.always("GET", "/v2/app/manifests/1", to(f"{elsewhere.url}/x"))
    with pytest.raises(RegistryError) as caught:
        connect(auth=("user", "pw"), retries=1).manifest("app:1")
    assert caught.value.status == 401 and caught.value.host == elsewhere.host
    assert isinstance(caught.value, AuthenticationError) or type(caught.value) is RegistryError
    assert [request.header("Authorization") for request in elsewhere.requests] == [""]


def test_a_403_and_a_404_elsewhere(shelf, serve, connect, put):
    elsewhere = serve(Server())
    for status in (403, 404):
        elsewhere.on("GET", ".*", Answer(status, {}, encode({"errors": [{"code": "X", "message": "m"}]})))
        shelf.on("GET", "/v2/app/manifests/1", to(f"{elsewhere.url}/x?secret=1"))
        with pytest.raises(RegistryError) as caught:
            connect().manifest("app:1")
        assert caught.value.status == status and caught.value.host == elsewhere.host
        assert "secret" not in str(caught.value)


def test_from_tls_to_plain_is_refused(serve, authority, connect):
    shelf = serve(Shelf(authority.server()))
    plain = serve(Server())
    shelf.always("GET", "/v2/app/manifests/1", to(f"{plain.url}/x"))
    with Registry(shelf.host, ca=authority.file, retries=0, timeout=5) as registry, pytest.raises(RegistryError):
        registry.manifest("app:1")
    assert plain.connections == 0


def test_from_plain_to_tls_is_followed(serve, authority, shelf, connect, put):
    safe = serve(Server(authority.server()))
    safe.always("GET", "/x", Answer(200, {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}, put.manifest))
    shelf.always("GET", "/v2/app/manifests/1", to(f"{safe.url}/x"))
    assert connect(ca=authority.file).manifest("app:1")[1] == put.manifest


def test_no_client_certificate_elsewhere(serve, authority, home):
    asked = serve(Shelf(authority.server(clients=True)))
    put = asked.put([BASE])
    crt, key = authority.issue("client", "DNS:client")
    place = home / f".config/containers/certs.d/{asked.host}"
    place.mkdir(parents=True)
    (place / "client.cert").write_bytes(crt.read_bytes())
    (place / "client.key").write_bytes(key.read_bytes())
    (place / "ca.crt").write_bytes(authority.file.read_bytes())
    other = serve(Server(authority.server(clients=True)))
    with Registry(asked.host, ca=authority.file, retries=0, timeout=5) as registry:
        assert registry.manifest("app:1")[1] == put.manifest
        asked.on("GET", ".*", to(f"{other.url}/x"))
        with pytest.raises(RegistryError):
            registry.manifest("app:1")
    assert other.requests == []


def test_signed_queries_are_never_told(shelf, serve, connect, put, caplog):
    elsewhere = serve(Server())
    elsewhere.always("GET", ".*", Answer(500))
    shelf.always("GET", "/v2/app/manifests/1", to(f"{elsewhere.url}/p?X-Sig=s1gned"))
    with caplog.at_level(logging.DEBUG), pytest.raises(RegistryError) as caught:
        connect(retries=1).manifest("app:1")
    assert f"{elsewhere.url}/p" in str(caught.value)
    assert "s1gned" not in caplog.text + "".join(traceback.format_exception(caught.value)) + repr(caught.value.__dict__)
