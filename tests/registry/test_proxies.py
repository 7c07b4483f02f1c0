"""Proxies of the environment: who is asked through them, who is not, and who sees whose password."""

import base64
import logging

import pytest
from guards import BasicGuard, Proxy, basic
from imagekit import BASE, TOP
from scripted import Answer
from shelf import Shelf

from layerstore import Registry, RegistryError

AUTH = "Basic " + base64.b64encode(b"pr:p@xy").decode()


@pytest.fixture
def proxy(serve):
    return serve(Proxy())


@pytest.fixture
def plain(serve):
    shelf = serve(Shelf())
    shelf.put([BASE, TOP])
    shelf.outside = f"registry.example.com:{shelf.port}"
    return shelf


@pytest.fixture
def safe(serve, authority):
    shelf = serve(Shelf(authority.server("outside", "DNS:registry.example.com")))
    shelf.put([BASE, TOP])
    shelf.outside = f"registry.example.com:{shelf.port}"
    return shelf


def ask(host, **options):
    with Registry(host, **({"retries": 0, "timeout": 3} | options)) as registry:
        return registry.tags("app")


@pytest.mark.parametrize("variable", ["http_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_plain_requests_are_absolute(plain, proxy, monkeypatch, variable):
    monkeypatch.setenv(variable, f"http://{proxy.host}")
    assert ask(f"http://{plain.outside}", insecure=True) == ["1"]
    assert [request.target for request in proxy.requests] == [f"http://{plain.outside}/v2/app/tags/list"]
    assert plain.requests[0].header("Host") == plain.outside


@pytest.mark.parametrize("variable", ["https_proxy", "all_proxy", "HTTPS_PROXY", "ALL_PROXY"])
def test_tls_goes_by_connect(safe, proxy, authority, images, check, monkeypatch, variable):
    monkeypatch.setenv(variable, f"http://{proxy.host}")
    with Registry(safe.outside, ca=authority.file, retries=0, timeout=5) as registry:
        image = images.pull(f"{safe.outside}/app:1", registry=registry)
    assert image.references == (f"{safe.outside}/app:1",)
    assert {(request.method, request.target) for request in proxy.requests} == {("CONNECT", safe.outside)}


def test_a_proxy_without_a_scheme(plain, proxy, monkeypatch):
    monkeypatch.setenv("http_proxy", proxy.host)
    assert ask(f"http://{plain.outside}", insecure=True) == ["1"]


def test_lower_case_wins(plain, proxy, serve, monkeypatch):
    other = serve(Proxy())
    monkeypatch.setenv("http_proxy", f"http://{proxy.host}")
    monkeypatch.setenv("HTTP_PROXY", f"http://{other.host}")
    assert ask(f"http://{plain.outside}", insecure=True) == ["1"]
    assert len(proxy.requests) == 1 and other.connections == 0


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_never_for_the_loopback(plain, proxy, monkeypatch, host):
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(variable, f"http://{proxy.host}")
    assert ask(f"{host}:{plain.port}") == ["1"]
    assert proxy.connections == 0


NO_PROXY = {
    "*": True, "registry.example.com": True, "REGISTRY.EXAMPLE.COM": True, ".example.com": True, "example.com": True, "other.org, registry.example.com": True, "registry.example.com:PORT": True,
    "registry.example.com:1": False, "ample.com": False, ".org": False, "": False, " , ,": False, "10.0.0.0/8": False, "registry": False, ".example.com:PORT": True, ".example.com:1": False,
}  # fmt: skip


@pytest.mark.parametrize("text", NO_PROXY, ids=repr)
def test_no_proxy_by_names(plain, proxy, monkeypatch, text):
    """Where no proxy is asked the name cannot be found at all."""
    monkeypatch.setenv("all_proxy", f"http://{proxy.host}")
    monkeypatch.setenv("no_proxy", text.replace("PORT", str(plain.port)))
    if NO_PROXY[text]:
        with pytest.raises(RegistryError):
            ask(f"http://{plain.outside}", insecure=True)
        assert proxy.connections == 0
    else:
        assert ask(f"http://{plain.outside}", insecure=True) == ["1"]


ADDRESSES = {"198.51.100.7": True, "198.51.100.0/24": True, "198.51.100.7:PORT": True, "198.51.100.0/24:PORT": True, "198.51.100.7:1": False, "198.51.101.0/24": False, "198.51.100.0/33": False, "198.51.100": False, "0.0.0.0/0": True}


@pytest.mark.parametrize("text", ADDRESSES)
def test_no_proxy_by_addresses(plain, proxy, monkeypatch, text):
    monkeypatch.setenv("all_proxy", f"http://{proxy.host}")
    monkeypatch.setenv("no_proxy", text.replace("PORT", str(plain.port)))
    try:
        found = ask(f"http://198.51.100.7:{plain.port}", insecure=True, timeout=0.5)
    except RegistryError:
        found = None
    assert (found is None, proxy.connections == 0) == (ADDRESSES[text],) * 2


def test_no_proxy_in_capitals(plain, proxy, monkeypatch):
    monkeypatch.setenv("ALL_PROXY", f"http://{proxy.host}")
    monkeypatch.setenv("NO_PROXY", "registry.example.com")
    with pytest.raises(RegistryError):
        ask(f"http://{plain.outside}", insecure=True)
    assert proxy.connections == 0


def test_a_proxys_credentials_go_to_it_alone(plain, safe, proxy, authority, monkeypatch, caplog):
    proxy.needs = AUTH
    plain.guard = BasicGuard("user", "pw")
    monkeypatch.setenv("all_proxy", f"http://pr:p%40xy@{proxy.host}")
    with caplog.at_level(logging.DEBUG):
        assert ask(f"http://{plain.outside}", insecure=True, auth=("user", "pw")) == ["1"]
        assert ask(safe.outside, ca=authority.file) == ["1"]
    for request in (*plain.requests, *safe.requests):
        assert request.header("Proxy-Authorization") == ""
    assert {request.header("Proxy-Authorization") for request in proxy.requests} == {AUTH}
    assert {request.header("Authorization") for request in proxy.requests if request.method == "CONNECT"} == {""}
    assert plain.requests[-1].header("Authorization") == basic("user", "pw")
    for secret in ("p@xy", "p%40xy", AUTH.split()[1]):
        assert secret not in caplog.text


def test_a_proxy_that_refuses(plain, safe, proxy, authority, monkeypatch):
    proxy.needs = AUTH
    monkeypatch.setenv("all_proxy", f"http://wr:s3cr3t@{proxy.host}")
    for host, more in ((f"http://{plain.outside}", {"insecure": True}), (safe.outside, {"ca": authority.file})):
        with pytest.raises(RegistryError) as caught:
            ask(host, **more)
        assert "407" in str(caught.value) and "s3cr3t" not in str(caught.value)


def test_a_proxy_that_is_not_there(plain, monkeypatch):
    gone = Proxy()
    gone.close()
    monkeypatch.setenv("all_proxy", f"http://u:s3cr3t@{gone.host}")
    for host in (f"http://{plain.outside}", f"https://{plain.outside}"):
        with pytest.raises(RegistryError) as caught:
            ask(host, insecure=True)
        assert "s3cr3t" not in str(caught.value) and caught.value.status == 0
    assert plain.requests == []


@pytest.mark.parametrize("value", ["://", "http://", "socks5://127.0.0.1:1", "http://a:b:c", "http://[::1", "http://h:99999"], ids=repr)
def test_a_proxy_that_is_none(plain, monkeypatch, value):
    monkeypatch.setenv("all_proxy", value)
    with pytest.raises((RegistryError, ValueError)):
        ask(f"http://{plain.outside}", insecure=True)
    assert plain.requests == []


def test_connect_that_says_no(safe, proxy, authority, monkeypatch):
    monkeypatch.setenv("https_proxy", f"http://{proxy.host}")
    for status in (403, 502):
        proxy.forget()
        proxy.always("CONNECT", ".*", Answer(status, {}, b"<html>no</html>", close=True))
        with pytest.raises(RegistryError) as caught:
            ask(safe.outside, ca=authority.file)
        assert str(status) in str(caught.value)
