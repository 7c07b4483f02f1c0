"""TLS first; plain HTTP where it may be; certificates, their places, and who is told them."""

import os
import random
import ssl
import subprocess
import sys
import threading

import pytest
import tarkit
from certificates import Authority
from guards import Proxy
from imagekit import BASE, TOP
from scripted import CUT, RESET, Answer
from shelf import Shelf
from stored import at_once

from layerstore import Registry, RegistryError


@pytest.fixture
def safe(serve, authority):
    return serve(Shelf(authority.server()))


def fails(host, words=None, **options):
    with Registry(host, **({"retries": 2, "timeout": 5} | options)) as registry, pytest.raises(RegistryError, match=words) as caught:
        registry.tags("app")
    assert caught.value.status == 0
    return caught.value


# ---- schemes ----
def test_tls_is_first_and_plain_follows_on_the_loopback(shelf, images, check):
    put = shelf.put([BASE, TOP])
    with Registry(shelf.host, retries=0, timeout=5) as registry:
        check(images.pull(put.reference, registry=registry), put)
        assert shelf.not_http == 1
        registry.tags("app")
        assert shelf.not_http == 1, "it is asked again whether it speaks TLS"


@pytest.mark.parametrize("end", [b"garbage\r\n", b"HTTP/1.0 400 Bad Request\r\n\r\n", b"\x00" * 50, CUT, RESET, b"\n"], ids=repr)
def test_what_speaks_no_tls(serve, end):
    class Odd(Shelf):
        to_not_http = (end,)

    shelf = serve(Odd())
    shelf.put([BASE])
    with Registry(shelf.host, retries=0, timeout=5) as registry:
        assert registry.tags("app") == ["1"]


def test_localhost_and_ipv6_are_the_loopback(serve, shelf):
    shelf.put([BASE])
    with Registry(f"localhost:{shelf.port}", retries=0, timeout=5) as registry:
        assert registry.tags("app") == ["1"]
    six = serve(Shelf(address="::1"))
    six.put([BASE])
    with Registry(f"[::1]:{six.port}", retries=0, timeout=5) as registry:
        assert registry.tags("app") == ["1"]
        assert registry.tags(f"[::1]:{six.port}/app") == ["1"]


def test_an_alert_is_no_plain_http(serve, authority):
    """A server that speaks TLS, and refuses: no fallback, nothing in clear."""
    context = authority.server()
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(authority.file)
    shelf = serve(Shelf(context))
    fails(shelf.host, ca=authority.file)
    assert shelf.requests == []


def test_a_raw_alert_is_no_plain_http(serve):
    class Alert(Shelf):
        to_not_http = (b"\x15\x03\x03\x00\x02\x02\x28", CUT)

    shelf = serve(Alert())
    fails(shelf.host, retries=0)
    assert shelf.requests == [] and shelf.not_http >= 1


def test_threads_agree_on_one(shelf):
    shelf.put([BASE])
    with Registry(shelf.host, retries=0, timeout=5) as registry:
        assert at_once(*[lambda: registry.tags("app")] * 8) == [["1"]] * 8
        assert shelf.not_http == 1


def test_a_pinned_scheme_is_kept(serve, shelf, safe, authority):
    shelf.put([BASE])
    fails(f"https://{shelf.host}")
    assert shelf.requests == []
    with Registry(f"http://{shelf.host}") as registry:
        registry.tags("app")
    assert shelf.not_http >= 1
    fails(f"http://{safe.host}")
    assert safe.requests == []
    safe.put([BASE])
    with Registry(f"https://{safe.host}", ca=authority.file) as registry:
        assert registry.tags("app") == ["1"]


def test_elsewhere_plain_http_needs_insecure(serve, monkeypatch):
    """Reached through a proxy, which finds every name here."""
    shelf, proxy = serve(Shelf()), serve(Proxy())
    shelf.put([BASE])
    monkeypatch.setenv("all_proxy", f"http://{proxy.host}")
    host = f"registry.example.com:{shelf.port}"
    fails(host, retries=0)
    assert shelf.requests == []
    with Registry(host, insecure=True, retries=0, timeout=5) as registry:
        assert registry.tags("app") == ["1"]
    with Registry(f"http://{host}", insecure=True, retries=0, timeout=5) as registry:
        assert registry.tags("app") == ["1"]


# ---- certificates ----
def test_a_good_certificate(safe, authority, images, check):
    put = safe.put([BASE, TOP])
    with Registry(safe.host, ca=authority.file, retries=0, timeout=5) as registry:
        check(images.pull(put.reference, registry=registry), put)
    assert safe.failed_handshakes == 0


def test_a_certificate_nobody_vouches_for(safe):
    error = fails(safe.host, "certificate")
    assert safe.connections == 1, "a wrong certificate is not retried"
    assert error.host == safe.host


WRONG = {
    "another name": ("other", "DNS:other.example.com", ()),
    "another address": ("address", "IP:127.0.0.2,DNS:localhost", ()),
    "expired": ("expired", "IP:127.0.0.1", ("-days", "-1")),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_certificates(serve, authority, name):
    file, names, more = WRONG[name]
    shelf = serve(Shelf(authority.server(file, names, *more)))
    fails(shelf.host, "certificate", ca=authority.file)
    assert shelf.connections == 1 and shelf.requests == []


def test_another_authority(serve, authority, tmp_path):
    other = Authority(tmp_path / "other", "another")
    shelf = serve(Shelf(other.server()))
    fails(shelf.host, "certificate", ca=authority.file)


def test_insecure_takes_any_certificate(serve, authority):
    shelf = serve(Shelf(authority.server("other", "DNS:other.example.com")))
    shelf.put([BASE])
    with Registry(shelf.host, insecure=True, retries=0, timeout=5) as registry:
        assert registry.tags("app") == ["1"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_old_tls_is_refused(serve, authority):
    context = authority.server()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    shelf = serve(Shelf(context))
    fails(shelf.host, ca=authority.file, retries=0)
    assert shelf.requests == []


@pytest.mark.parametrize("way", ["ca file", "ca directory", "SSL_CERT_FILE", "SSL_CERT_DIR", "config", "XDG_CONFIG_HOME"])
def test_ways_to_trust(safe, authority, home, tmp_path, monkeypatch, way):
    safe.put([BASE])
    options = {}
    directory = tmp_path / "hashed"
    directory.mkdir()
    if way == "ca file":
        options = {"ca": str(authority.file)}
    elif way in ("ca directory", "SSL_CERT_DIR"):
        (directory / "ca.pem").write_bytes(authority.file.read_bytes())
        subprocess.run(["openssl", "rehash", directory], check=True)
        if way == "ca directory":
            options = {"ca": directory}
        else:
            monkeypatch.setenv(way, str(directory))
    elif way == "SSL_CERT_FILE":
        monkeypatch.setenv(way, str(authority.file))
    else:
        base = home / ".config" if way == "config" else tmp_path / "xdg"
        if way != "config":
            monkeypatch.setenv(way, str(base))
        place = base / f"containers/certs.d/{safe.host}"
        place.mkdir(parents=True)
        (place / "any.crt").write_bytes(authority.file.read_bytes())
    with Registry(safe.host, retries=0, timeout=5, **options) as registry:
        assert registry.tags("app") == ["1"]


def test_the_first_directory_that_exists_counts(safe, authority, home):
    """One without a certificate hides those of the system."""
    script = f"""
mkdir -p /etc/containers && mount -t tmpfs none /etc/containers
mkdir -p /etc/docker && mount -t tmpfs none /etc/docker
mkdir -p /etc/docker/certs.d/{safe.host} && cp {authority.file} /etc/docker/certs.d/{safe.host}/x.crt
P=$0
one() {{ "$P" -c 'import layerstore, sys
try: print(layerstore.Registry(sys.argv[1], retries=0, timeout=5).tags("app"))
except layerstore.RegistryError as error: print("certificate" in str(error))' {safe.host}; }}
one
mkdir -p /etc/containers/certs.d/{safe.host}; one
cp {authority.file} /etc/containers/certs.d/{safe.host}/y.crt; one
mkdir -p ~/.config/containers/certs.d/{safe.host}; one
"""
    safe.put([BASE])
    made = [place for place in ("/etc/containers", "/etc/docker") if not os.path.isdir(place)]
    try:
        done = subprocess.run(["unshare", "--mount", "--propagation", "private", "bash", "-c", script, sys.executable], capture_output=True, text=True, timeout=50)
    finally:
        for place in made:
            subprocess.run(["rmdir", place], check=False)
    assert done.stdout.splitlines() == ["['1']", "True", "['1']", "True"], done.stderr


def test_a_client_certificate(serve, authority, home):
    shelf = serve(Shelf(authority.server(clients=True)))
    shelf.put([BASE])
    fails(shelf.host, ca=authority.file, retries=0)
    crt, key = authority.issue("client", "DNS:client")
    place = home / f".config/containers/certs.d/{shelf.host}"
    place.mkdir(parents=True)
    (place / "me.cert").write_bytes(crt.read_bytes())
    (place / "me.key").write_bytes(key.read_bytes())
    (place / "ca.crt").write_bytes(authority.file.read_bytes())
    with Registry(shelf.host, retries=0, timeout=5) as registry:
        assert registry.tags("app") == ["1"]


@pytest.mark.parametrize("content", [None, b"", b"no certificate", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"], ids=["missing", "empty", "text", "broken"])
def test_a_ca_that_is_none(tmp_path, safe, content):
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(OSError) as caught:
        with Registry(safe.host, ca=file) as registry:
            registry.tags("app")
    assert str(file) in str(caught.value) and caught.value.filename == str(file)
    assert safe.requests == []


def test_tls_ends_in_the_middle_of_a_body(serve, authority, images, check):
    """Closed without a word (no close_notify): a break, never an end."""
    shelf = serve(Shelf(authority.server()))
    put = shelf.put([tarkit.file("n", random.Random(1).randbytes(100_000)) + tarkit.end()])
    blob = put.blobs[0]
    shelf.on("GET", put.blob_path(0), Answer(200, {}, [blob[:50_000], CUT], None), Answer(200, {}, [blob[:50_000], CUT], len(blob)))
    with Registry(shelf.host, ca=authority.file, retries=1, timeout=5) as registry:
        check(images.pull(put.reference, registry=registry), put)


def test_many_threads_over_tls(safe, authority):
    safe.put([BASE])
    with Registry(safe.host, ca=authority.file, retries=0, timeout=5) as registry:
        for _ in range(3):
            assert at_once(*[lambda: registry.tags("app")] * 6) == [["1"]] * 6
    assert threading.active_count() < 50
