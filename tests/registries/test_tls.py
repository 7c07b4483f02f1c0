"""A registry with a certificate of its own: by ca=, by the directories that docker and podman read, or not at all."""

import shutil

import pytest
import realregistry

from layerstore import Registry, RegistryError


@pytest.fixture(scope="module")
def secure(start, skopeo, archive):
    server = start(tls=True, users={"ann": "secret"})
    skopeo.copy(f"docker-archive:{archive}", f"docker://{server.host}/app:1", "--dest-creds", "ann:secret")
    return server


@pytest.fixture(scope="module")
def mutual(start):
    return start(client_tls=True)


AUTH = "ann", "secret"


def names(server) -> list[str]:
    """The names that its certificate has."""
    return [server.host, f"localhost:{server.port}"]


def test_a_certificate_that_nobody_vouches_for_is_refused(secure, images):
    """Although it is the loopback: what speaks TLS is not asked in plain HTTP."""
    with pytest.raises(RegistryError, match="certificate") as caught:
        images.pull(f"{secure.host}/app:1")
    assert (type(caught.value), caught.value.status, caught.value.host) == (RegistryError, 0, secure.host)


@pytest.mark.parametrize("scheme", ["", "https://"])
def test_with_its_ca(secure, images, scheme):
    for name in names(secure):
        with Registry(scheme + name, auth=AUTH, ca=secure.ca) as registry:
            image = images.pull(f"{name}/app:1", registry=registry)
            assert f"{name}/app:1" in image.references
            assert images.push(image, f"{name}/pushed:1", registry=registry) == secure.tag("pushed", "1")


def test_with_a_directory_of_cas(secure, room):
    (room / "authorities").mkdir()
    shutil.copy(secure.ca, room / "authorities/ours.pem")
    with Registry(secure.host, auth=AUTH, ca=room / "authorities") as registry:
        assert registry.tags("app") == ["1"]


@pytest.mark.parametrize("where", ["home", "XDG_CONFIG_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_with_what_is_configured(secure, settings, monkeypatch, where):
    if where == "SSL_CERT_FILE":
        monkeypatch.setenv(where, str(secure.ca))
    elif where == "SSL_CERT_DIR":
        (settings / "authorities").mkdir()
        shutil.copy(secure.ca, settings / "authorities/ours.pem")
        realregistry.run("openssl", "rehash", settings / "authorities")
        monkeypatch.setenv(where, str(settings / "authorities"))
    else:
        config = settings / (".config" if where == "home" else "other")
        if where != "home":
            monkeypatch.setenv(where, str(config))
        place = config / "containers/certs.d" / secure.host
        place.mkdir(parents=True)
        shutil.copy(secure.ca, place / "ca.crt")
    with Registry(secure.host, auth=AUTH) as registry:
        assert registry.tags("app") == ["1"]


def test_with_a_certificate_of_the_client(mutual, settings):
    place = settings / ".config/containers/certs.d" / mutual.host
    place.mkdir(parents=True)
    shutil.copy(mutual.ca, place / "ca.crt")
    with Registry(mutual.host, retries=0) as registry, pytest.raises(RegistryError) as caught:
        registry.tags("app")
    assert caught.value.status == 0
    for file, name in zip(mutual.client, ("client.cert", "client.key"), strict=True):
        shutil.copy(file, place / name)
    with Registry(mutual.host) as registry, pytest.raises(RegistryError) as caught:
        registry.tags("app")
    assert (caught.value.status, caught.value.code) == (404, "NAME_UNKNOWN")


def test_insecure_takes_any_certificate(secure):
    with Registry(secure.host, auth=AUTH, insecure=True) as registry:
        assert registry.tags("app") == ["1"]


def test_plain_http_that_is_pinned_is_not_answered_by_tls(secure, registry):
    with Registry(f"https://{registry.host}", retries=0) as asked, pytest.raises(RegistryError) as caught:
        asked.tags("app")
    assert caught.value.status == 0
    with Registry(f"http://{registry.host}") as asked, pytest.raises(RegistryError) as caught:
        asked.tags("not/there")
    assert caught.value.status == 404
