"""Names: which are asked for, where, and which never leave this host."""

import pytest
from guards import Proxy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from imagekit import BASE
from scripted import Answer

import layerstore
from layerstore import ImageError, Images, InvalidDigestError, Registry

BAD = ["", " ", ":", "/", "@", "app:", "app@", "/app", "app/", "a//b", "a/../b", "../a", "..", "a/./b", "app:ta g", "app: 1", "app\x00", "app\r\nX: y", "app:1\r\n", "app:1\n", "app%2f",
       "app?x", "app#x", "app:1?x=y", "app:1#x", "user@host/app", "http://HOST/app", "https://HOST/app:1", "docker://HOST/app", "App", "app:" + "t" * 129, "a" * 256, "-app", "app-", "app:-1",
       "app:.1", "app@sha256:" + "a" * 63, "app@sha256:" + "A" * 64, "app@sha256:" + "a" * 64 + "/x", "app@md5:" + "a" * 32, "app@sha256:" + "a" * 64 + "\n", "äpp", "app:é", "app\u202e", "a___b",
       "a..b", "app@sha256:" + "a" * 64 + "@sha256:" + "a" * 64, "app:1:2"]  # fmt: skip


@pytest.mark.parametrize("name", BAD, ids=repr)
def test_what_is_no_reference_asks_nobody(shelf, images, connect, name):
    registry = connect()
    text = name.replace("HOST", shelf.host)
    for reference in (text, f"{shelf.host}/{name}"):
        if "://" in name and reference != text:
            continue
        with pytest.raises((ImageError, InvalidDigestError)) as caught:
            images.pull(reference, registry=registry)
        assert str(caught.value).isprintable()
    if "://" not in name and name:
        for call in (registry.manifest, registry.tags, registry.referrers):
            with pytest.raises((ImageError, InvalidDigestError)):
                call(name)
            with pytest.raises((ImageError, InvalidDigestError)):
                call(f"{shelf.host}/{name}")
    assert shelf.requests == []


@pytest.mark.parametrize("value", [None, 5, b"app:1", ["app"]], ids=repr)
def test_other_types_are_errors(images, connect, shelf, value):
    with pytest.raises((TypeError, ImageError, layerstore.LayerStoreError, AttributeError)) as caught:
        images.pull(value, registry=connect())
    assert not isinstance(caught.value, AttributeError)
    assert shelf.requests == []


PATHS = {"app:1": ("app", "1"), "a/b/c/d:x.y-z_1": ("a/b/c/d", "x.y-z_1"), "a-b/c_d/e__f.g": ("a-b/c_d/e__f.g", "latest"), "0/1:2": ("0/1", "2"), "app:" + "t" * 128: ("app", "t" * 128),
         "app:UPPER": ("app", "UPPER"), "app:_x": ("app", "_x")}  # fmt: skip


@pytest.mark.parametrize("name", PATHS)
def test_what_is_asked(shelf, images, connect, name):
    path, tag = PATHS[name]
    put = shelf.put([BASE], name=path, tag=tag)
    image = images.pull(f"{shelf.host}/{name}", registry=connect())
    assert shelf.requests[0].path == f"/v2/{path}/manifests/{tag}"
    assert image.references == (f"{shelf.host}/{path}:{tag}",) and image.id == put.id


@pytest.mark.parametrize("form", ["{path}", "{host}/{path}"])
def test_registry_takes_paths_with_and_without_the_host(shelf, connect, form):
    put = shelf.put([BASE], name="a/b", tag="latest")
    registry = connect()
    name = form.format(path="a/b", host=shelf.host)
    assert registry.manifest(name)[1] == put.manifest
    assert registry.manifest(f"{name}@{put.digest}")[1] == put.manifest
    assert registry.tags(name) == ["latest"]
    assert registry.referrers(name) == []
    assert [request.path for request in shelf.requests] == ["/v2/a/b/manifests/latest", f"/v2/a/b/manifests/{put.digest}", "/v2/a/b/tags/list", "/v2/a/b/manifests/latest", f"/v2/a/b/referrers/{put.digest}"]


@pytest.mark.parametrize("name", ["other.example.com/app", "localhost:1/app", "docker.io/app", "127.0.0.1/app"])
def test_the_host_must_be_the_registrys(shelf, images, connect, name):
    registry = connect()
    for call in (registry.manifest, registry.tags, registry.referrers, lambda text: images.pull(text, registry=registry)):
        with pytest.raises(ImageError):
            call(name)
    assert shelf.requests == []


def test_familiar_names_are_the_hubs(shelf, images, connect):
    for name in ("app", "user/app", "app:1"):
        with pytest.raises(ImageError):
            images.pull(name, registry=connect())
    assert shelf.requests == []


def test_push_refuses_digests_and_nonsense(shelf, images, connect):
    put = shelf.put([BASE])
    images.pull(put.reference, registry=connect())
    shelf.requests.clear()
    for target in (put.by_digest, f"{shelf.host}/app:1@{put.digest}", f"{shelf.host}/App", "http://" + put.reference, "other.example.com/app:1", f"{shelf.host}/app:1\r\n"):
        with pytest.raises((ImageError, InvalidDigestError)):
            images.push(put.id, target, registry=connect())
    for image in ("none:1", "sha256:" + "0" * 64):
        with pytest.raises(ImageError):
            images.push(image, put.reference, registry=connect())
    assert shelf.requests == []


# ---- hosts ----
GOOD_HOSTS = ["docker.io", "registry.example.com", "registry.example.com:5000", "localhost", "localhost:5000", "127.0.0.1:5000", "[::1]:5000", "[::1]", "https://registry.example.com", "http://localhost:5000",
              "http://127.9.9.9", "http://[::1]:5", "a-b.c_d".replace("_", "-"), "REGISTRY.example.com", "10.0.0.1:80"]  # fmt: skip
BAD_HOSTS = ["", " ", "a b", "a/b", "https://a/b", "http://localhost/", "user@a", "https://user:pw@a", "a:0x10", "a:", "a:65536", "a:99999999999", "a:-1", "a:b", "ftp://a", "file:///etc/passwd", "://a", "a?x", "a#x", "a%41",
             "a\r\nb", "a\x00", "[::1", "::1", "[zz]:5", "http://", "https://", "http://https://a", "-", "a..b", "[]", "a:5:6", "[::1]x", "ä\u202e", "http://registry.example.com", "http://10.0.0.1:80", "http://128.0.0.1"]  # fmt: skip


@pytest.mark.parametrize("host", GOOD_HOSTS)
def test_hosts(host):
    with Registry(host) as registry:
        assert host.rpartition("/")[2].partition(":")[0].strip("[]").lower() in repr(registry).lower()


@pytest.mark.parametrize("host", BAD_HOSTS, ids=repr)
def test_what_is_no_host(host):
    with pytest.raises(ValueError) as caught:
        Registry(host)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize("host", [None, 5, b"localhost", ["localhost"]], ids=repr)
def test_hosts_of_other_types(host):
    with pytest.raises(TypeError):
        Registry(host)


def test_plain_http_for_another_host_needs_insecure():
    with Registry("http://registry.example.com", insecure=True) as registry:
        assert "registry.example.com" in repr(registry)


@pytest.mark.parametrize(("reference", "host"), [("app", "docker.io"), ("user/app:1", "docker.io"), ("docker.io/user/app", "docker.io"), ("index.docker.io/user/app", "docker.io")])
def test_the_hub_has_several_names(images, serve, monkeypatch, reference, host):
    """Each is asked at registry-1.docker.io; here through a proxy that is asked to go there, and refuses."""
    proxy = serve(Proxy())
    proxy.always("CONNECT", ".*", Answer(403, {}, b"", close=True))
    monkeypatch.setenv("https_proxy", f"http://{proxy.host}")
    with Registry(host, retries=0, timeout=5) as registry, pytest.raises(layerstore.RegistryError):
        images.pull(reference, registry=registry)
    assert {request.target for request in proxy.requests} == {"registry-1.docker.io:443"}


# ---- drawn ----
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(text=st.text(st.sampled_from("abA01._-/:@%?#\r\n\x00 ~ä\\\"'[]+&=") | st.characters(), min_size=1, max_size=30))
def test_drawn_texts_are_names_or_errors_of_ours(shelf, connect, text):
    """Whatever is asked, its path is made of the signs of the grammar alone."""
    registry = shelf.__dict__.setdefault("drawn", connect())
    for call in (registry.tags, registry.manifest):
        try:
            call(text)
        except layerstore.LayerStoreError:
            pass
    for request in shelf.requests:
        assert set(request.target) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-/:")
        assert request.target.startswith("/v2/") and ".." not in request.target.split("/")
    shelf.requests.clear()


@settings(max_examples=200, deadline=None, derandomize=True)
@given(text=st.text(st.sampled_from("ab.:/[]@0123456789-") | st.characters(), max_size=20), scheme=st.sampled_from(["", "http://", "https://"]))
def test_drawn_hosts_are_taken_or_value_errors(text, scheme):
    try:
        Registry(scheme + text, insecure=True).close()
    except ValueError:
        pass


def test_images_is_the_same_by_both_ways(shelf, store, connect):
    put = shelf.put([BASE])
    assert Images(store).pull(put.reference, registry=connect()).id == Images(store).pull(put.by_digest, registry=connect()).id
