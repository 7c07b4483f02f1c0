"""Hosts as they are written, and URLs as servers name them."""

import pytest

from layerstore import RegistryError
from layerstore.registry.places import (
    Place,
    asked_at,
    check_named,
    is_link_local,
    is_loopback,
    mirror_of,
    name_of,
    place_of,
)


@pytest.mark.parametrize(("text", "place", "name"), [
    ("registry.example.com", Place("", "registry.example.com"), "registry.example.com"),
    ("registry.example.com:5000", Place("", "registry.example.com", 5000), "registry.example.com:5000"),
    ("Registry.Example.COM:65535", Place("", "registry.example.com", 65535), "registry.example.com:65535"),
    ("localhost:1", Place("", "localhost", 1), "localhost:1"),
    ("[::1]:5000", Place("", "::1", 5000), "[::1]:5000"),
    ("[::1]", Place("", "::1"), "[::1]"),
    ("http://localhost:5000", Place("http", "localhost", 5000), "localhost:5000"),
    ("https://127.0.0.1", Place("https", "127.0.0.1"), "127.0.0.1"),
    ("docker.io", Place("", "docker.io"), "docker.io"),
    ("index.docker.io", Place("", "index.docker.io"), "docker.io"),
])  # fmt: skip
def test_a_host(text, place, name):
    assert place_of(text) == place
    assert name_of(place) == name


def test_the_hub_is_asked_elsewhere():
    assert asked_at(place_of("docker.io")) == Place("", "registry-1.docker.io")
    assert asked_at(place_of("index.docker.io")) == Place("", "registry-1.docker.io")
    assert asked_at(place_of("docker.io:5000")) == Place("", "docker.io", 5000)
    assert asked_at(place_of("localhost")) == Place("", "localhost")


@pytest.mark.parametrize("text", [
    "", " ", "a b", "host/path", "host/", "http://host/", "https://host/v2", "host:", "host:0", "host:65536", "host:99999999", "host:-1", "host:5a",
    "user@host", "user:secret@host:5000", "https://user:secret@host", "ftp://host", "file:///etc", "//host", "host?x", "host#x", "host\n", "host\0",
    "::1", "[::1", "[::g]", "[1.2.3.4]:5000", "[fe80::1%eth0]", "-host", "host-", "a..b", ".a", "a.", "ho%73t", "hé", "http://", "http:host", "HTTP://host",
])  # fmt: skip
def test_no_host(text):
    with pytest.raises(ValueError) as caught:
        place_of(text)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("wrong", [None, 5, b"host", ["host"]])
def test_a_host_is_a_text(wrong):
    with pytest.raises(TypeError):
        place_of(wrong)
    with pytest.raises(TypeError):
        mirror_of(wrong)


@pytest.mark.parametrize(("text", "found"), [
    ("mirror.example.com", (Place("", "mirror.example.com"), "")),
    ("mirror.example.com:5000/", (Place("", "mirror.example.com", 5000), "")),
    ("http://mirror.example.com/a/b-c/", (Place("http", "mirror.example.com"), "/a/b-c")),
    ("https://[::1]:5000/hub", (Place("https", "::1", 5000), "/hub")),
])  # fmt: skip
def test_a_mirror(text, found):
    assert mirror_of(text) == found


@pytest.mark.parametrize("text", ["", "/path", "host//a", "host/../a", "host/a/..", "host/.", "host/a?b", "host/a b", "host/%2e", "u@host/a", "http:///a"])
def test_no_mirror(text):
    with pytest.raises(ValueError):
        mirror_of(text)


REGISTRY = Place("https", "registry.example.com")
LOCAL = Place("http", "127.0.0.1", 5000)


@pytest.mark.parametrize(("url", "registry", "base", "found"), [
    ("https://cdn.example.com/a?b=%2f&c=d%20e", REGISTRY, "", "https://cdn.example.com/a?b=%2f&c=d%20e"),
    ("HTTPS://CDN.example.com", REGISTRY, "", "https://cdn.example.com/"),
    ("https://cdn.example.com?a=b", REGISTRY, "", "https://cdn.example.com/?a=b"),
    ("https://cdn.example.com/a#b", REGISTRY, "", "https://cdn.example.com/a"),
    ("https://10.0.0.1/a", REGISTRY, "", "https://10.0.0.1/a"),
    ("https://my_store./a", REGISTRY, "", "https://my_store./a"),
    ("/a?b", REGISTRY, "https://registry.example.com/v2/x", "https://registry.example.com/a?b"),
    ("a?b", REGISTRY, "https://registry.example.com/v2/x", "https://registry.example.com/v2/a?b"),
    ("?b", REGISTRY, "https://registry.example.com/v2/x?c", "https://registry.example.com/v2/x?b"),
    ("//cdn.example.com/a", REGISTRY, "https://registry.example.com/v2/x", "https://cdn.example.com/a"),
    ("http://localhost:99/a", LOCAL, "", "http://localhost:99/a"),
    ("https://[::1]/a", LOCAL, "", "https://[::1]/a"),
])  # fmt: skip
def test_a_url_that_is_asked(url, registry, base, found):
    assert check_named(url, registry, base).url == found


@pytest.mark.parametrize(("url", "why"), [
    ("", "empty"), ("https://a b/", "characters"), ("https://a/\r\nX: y", "characters"), ("https://a/é", "characters"), ("https://a/\0", "characters"),
    ("/relative", "no host"), ("//host/x", "no host"), ("https:/host", "no host"), ("https://", "host is malformed"), ("https:///etc/passwd", "host is malformed"),
    ("file:///etc/passwd", "its scheme is 'file'"), ("ftp://host/", "its scheme is 'ftp'"), ("gopher://host/", "its scheme is 'gopher'"),
    ("https://user@host/", "user in it: host"), ("https://user:secret@host/", "user in it: host"), ("https://host:65536/", "malformed"), ("https://host:0/", "malformed"),
    ("https://host:x/", "malformed"), ("https://[::1", "malformed"), ("https://ho%73t/", "malformed"), ("https://host\\@other/", "user in it|malformed"),
    ("http://registry.example.com/", "it leaves TLS: http://registry.example.com"),
    ("https://169.254.169.254/latest", "169.254.169.254 is a link-local address"), ("https://[fe80::1]/", "link-local"), ("https://[::ffff:169.254.169.254]/", "link-local"),
    ("https://0xa9fea9fe/", "link-local"), ("https://2852039166/", "link-local"), ("https://169.254.43518/", "link-local"), ("https://0251.0376.0251.0376/", "link-local"),
    ("https://[::169.254.169.254]/", "link-local"), ("https://169.254.169.254./", "link-local"), ("https://[febf::1]/", "link-local"),
    ("https://127.0.0.1/", "127.0.0.1 is this machine"), ("https://127.9.9.9:5000/", "this machine"), ("https://[::1]/", "this machine"), ("https://localhost/", "this machine"),
    ("https://LOCALHOST./", "this machine"), ("https://a.localhost/", "this machine"), ("https://127.1/", "this machine"), ("https://0x7f000001/", "this machine"),
    ("https://0.0.0.0/", "this machine"), ("https://[::]/", "this machine"), ("https://[::ffff:127.0.0.1]/", "this machine"), ("https://017700000001/", "this machine"),
])  # fmt: skip
def test_a_url_that_is_not_asked(url, why):
    with pytest.raises(RegistryError, match=why) as caught:
        check_named(url, REGISTRY)
    assert caught.value.host == "registry.example.com:443"
    assert "secret" not in str(caught.value)
    assert str(caught.value).startswith("registry.example.com names a URL that is not asked: ")


@pytest.mark.parametrize("url", [f"https://{'a' * 5000}/", f"{'a' * 5000}://host/", f"https://{'a' * 5000}@host/", f"https://user@{'a' * 5000}/"])
def test_what_is_refused_is_told_with_an_end(url):
    with pytest.raises(RegistryError) as caught:
        check_named(url, REGISTRY)
    assert len(str(caught.value)) < 700
    assert len(check_named(f"https://host/{'a' * 5000}", REGISTRY).told) < 700


def test_link_local_is_refused_by_a_registry_of_this_machine_too():
    with pytest.raises(RegistryError, match="link-local"):
        check_named("http://169.254.169.254/", LOCAL)


def test_kinds_of_hosts():
    assert all(map(is_loopback, ["localhost", "LOCALHOST", "127.0.0.1", "127.255.255.255", "::1", "0.0.0.0", "x.localhost"]))
    assert not any(map(is_loopback, ["localhost.example.com", "128.0.0.1", "::2", "10.0.0.1", "example.com", "127.example.com"]))
    assert all(map(is_link_local, ["169.254.0.1", "fe80::1", "febf::"]))
    assert not any(map(is_link_local, ["169.253.0.1", "fec0::1", "example.com", "10.0.0.1", "fe80"]))


def test_what_is_told_has_no_query():
    target = check_named("https://cdn.example.com/a/b?X-Signature=secret", REGISTRY)
    assert target.told == "https://cdn.example.com/a/b"
    assert target.place.full_name == "cdn.example.com:443"
