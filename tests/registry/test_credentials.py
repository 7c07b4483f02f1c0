"""Credential files and helpers: which are looked at, in which order, and what counts in them."""

import base64
import json
import os
import stat
import subprocess
import sys

import pytest
from guards import BasicGuard, BearerGuard, Tokens, basic
from imagekit import BASE, encode

from layerstore import AuthenticationError


def packed(user, password):
    return base64.b64encode(f"{user}:{password}".encode()).decode()


def write(path, document):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(document if isinstance(document, bytes) else encode(document))
    return path


@pytest.fixture
def guarded(shelf):
    """Who comes with whatever password: what was sent is what counts."""
    shelf.put([BASE])
    shelf.guard = lambda request: None if request.header("Authorization") else BasicGuard()(request)
    return shelf


@pytest.fixture
def used(guarded, connect):
    """Ask once; the credentials that went, as user:password, or the error."""

    def ask(name="app"):
        guarded.requests.clear()
        guarded.put([BASE], name=name)
        connect().tags(name)
        return base64.b64decode(guarded.requests[-1].header("Authorization").removeprefix("Basic ")).decode()

    return ask


@pytest.fixture
def config(home):
    return lambda document: write(home / ".docker/config.json", document)


@pytest.fixture
def helper(tmp_path, monkeypatch):
    """Put docker-credential-NAME, a shell script, into PATH; what it was given is in NAME.asked."""
    place = tmp_path / "bin"
    place.mkdir()
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")

    def made(name, script):
        path = place / f"docker-credential-{name}"
        path.write_text(f"#!/bin/sh\nprintf '%s|%s\\n' \"$*\" \"$(cat)\" >>{place}/{name}.asked\n{script}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return place / f"{name}.asked"

    return made


def says(user, secret):
    return f"printf '%s' '{json.dumps({'ServerURL': 'x', 'Username': user, 'Secret': secret})}'"


# ---- the order ----
def test_the_order_of_places(guarded, used, home, tmp_path, monkeypatch):
    """From the last to the first: each that is added wins."""
    def one(user):
        return {"auths": {guarded.host: {"auth": packed(user, "p")}}}

    with pytest.raises(AuthenticationError):
        used()
    write(home / ".dockercfg", one("dockercfg")["auths"])
    assert used() == "dockercfg:p"
    write(home / ".docker/config.json", one("docker"))
    assert used() == "docker:p"
    write(tmp_path / "dc/config.json", one("DOCKER_CONFIG"))
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "dc"))
    assert used() == "DOCKER_CONFIG:p"
    write(home / ".config/containers/auth.json", one("config"))
    assert used() == "config:p"
    write(tmp_path / "xdg/containers/auth.json", one("XDG_CONFIG_HOME"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert used() == "XDG_CONFIG_HOME:p"
    write(tmp_path / "run/containers/auth.json", one("run"))
    assert used() == "run:p"
    write(tmp_path / "own.json", one("REGISTRY_AUTH_FILE"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "own.json"))
    assert used() == "REGISTRY_AUTH_FILE:p"
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", json.dumps(one("DOCKER_AUTH_CONFIG")))
    assert used() == "DOCKER_AUTH_CONFIG:p"


def test_registry_auth_file_is_alone(guarded, used, config, tmp_path, monkeypatch):
    config({"auths": {guarded.host: {"auth": packed("u", "p")}}})
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(write(tmp_path / "own.json", {"auths": {}})))
    with pytest.raises(AuthenticationError):
        used()
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "not there"))
    with pytest.raises(AuthenticationError):
        used()


def test_docker_config_hides_the_home(guarded, used, config, tmp_path, monkeypatch):
    config({"auths": {guarded.host: {"auth": packed("u", "p")}}})
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "nothing"))
    with pytest.raises(AuthenticationError):
        used()


def test_a_file_that_knows_another_host_is_passed_over(guarded, used, config, home):
    write(home / ".config/containers/auth.json", {"auths": {"other.example.com": {"auth": packed("o", "p")}}})
    config({"auths": {guarded.host: {"auth": packed("u", "p")}}})
    assert used() == "u:p"


def test_looked_up_once_per_registry_and_repository(guarded, connect, helper, config):
    asked = helper("once", says("u", "p"))
    config({"credsStore": "once"})
    registry = connect()
    for _ in range(3):
        registry.tags("app")
    assert len(asked.read_text().splitlines()) == 1


# ---- what counts in a file ----
def keys(host):
    return {"host": host, "https": f"https://{host}", "http": f"http://{host}/", "v1": f"https://{host}/v1/", "v2": f"https://{host}/v2/"}


@pytest.mark.parametrize("form", ["host", "https", "http", "v1", "v2"])
def test_forms_of_a_key(guarded, used, config, form):
    config({"auths": {keys(guarded.host)[form]: {"auth": packed("u", "p")}}})
    assert used() == "u:p"


def test_the_longest_path_wins(guarded, used, config):
    host = guarded.host
    auths = {f"{host}/a/b": {"auth": packed("ab", "p")}, f"{host}/a": {"auth": packed("a", "p")}, host: {"auth": packed("host", "p")}, f"https://{host}/v1/": {"auth": packed("url", "p")}}
    config({"auths": auths})
    assert [used(name) for name in ("a/b", "a/b/c", "a/bc", "a/c", "ab", "app")] == ["ab:p", "ab:p", "a:p", "a:p", "host:p", "host:p"]


ENTRIES = {
    "auth": ({"auth": packed("u", "p:q")}, "u:p:q"),
    "user and password": ({"username": "u", "password": "p"}, "u:p"),
    "NULs": ({"auth": base64.b64encode(b"u:p\0\0\0").decode()}, "u:p"),
    "no password": ({"auth": packed("u", "")}, "u:"),
    "utf-8": ({"auth": packed("ü", "ñ")}, "ü:ñ"),
    "with others": ({"auth": packed("u", "p"), "email": "x@y", "more": [1]}, "u:p"),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_entries(guarded, used, config, name):
    entry, expected = ENTRIES[name]
    config({"auths": {guarded.host: entry}, "HttpHeaders": {"X": "y"}, "psFormat": "x"})
    assert used() == expected


@pytest.mark.parametrize("entry", [{}, {"email": "x"}, {"auth": ""}], ids=repr)
def test_an_entry_that_is_none(guarded, used, config, home, entry):
    config({"auths": {guarded.host: entry}})
    write(home / ".dockercfg", {guarded.host: {"auth": packed("next", "p")}})
    assert used() == "next:p"


def test_a_registry_token(guarded, connect, config):
    config({"auths": {guarded.host: {"registrytoken": "r.e.g", "auth": packed("u", "p")}}})
    guarded.guard = lambda request: None if request.header("Authorization") == "Bearer r.e.g" else BasicGuard(challenge='Bearer realm="http://127.0.0.1:1/t"')(request)
    assert connect().tags("app") == ["1"]
    assert guarded.requests[0].header("Authorization") == "", "nothing is sent unasked"


MALFORMED = [b"{", b"[]", b"5", b"null", b"\xff\xfe", b'{"auths": []}', b'{"auths": {"HOST": 5}}', b'{"auths": {"HOST": {"auth": 5}}}', b'{"auths": {"HOST": {"auth": "!!!"}}}', b'{"auths": {"HOST": {"auth": "bm9jb2xvbg=="}}}',
             b"[" * 90_000, b'{"credHelpers": 5}', b'{"credsStore": 5}', b'{"credHelpers": {"HOST": 5}}', b'{"credsStore": "../evil"}', b'{"credsStore": "a b"}', b'{"auths": {"HOST": {"identitytoken": 5}}}']  # fmt: skip


@pytest.mark.parametrize("text", MALFORMED, ids=lambda text: repr(text[:40]))
def test_a_file_that_is_malformed(guarded, used, connect, config, text):
    path = config(text.replace(b"HOST", guarded.host.encode()))
    guard, guarded.guard = guarded.guard, None
    assert connect().tags("app") == ["1"], "no challenge came"
    guarded.guard = guard
    with pytest.raises(AuthenticationError) as caught:
        used()
    if text not in (b"null",):
        assert str(path) in str(caught.value) or b"cred" in text
    assert "bm9jb2xvbg" not in str(caught.value)


def test_a_file_that_cannot_be_read(guarded, used, config, home):
    path = config({})
    path.unlink()
    path.mkdir()
    with pytest.raises(AuthenticationError, match=r"config\.json"):
        used()


def test_docker_auth_config_that_is_malformed(guarded, used, monkeypatch):
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", '{"auths": s3cret')
    with pytest.raises(AuthenticationError, match="DOCKER_AUTH_CONFIG") as caught:
        used()
    assert "s3cret" not in str(caught.value)


# ---- helpers ----
def test_a_helper_for_a_host_a_store_and_auths(guarded, used, config, helper):
    one, store = helper("one", says("one", "p")), helper("store", says("store", "p"))
    document = {"credHelpers": {guarded.host: "one"}, "credsStore": "store", "auths": {guarded.host: {"auth": packed("auths", "p")}}}
    config(document)
    assert used() == "one:p"
    assert one.read_text() == f"get|{guarded.host}\n" and not store.exists()
    config({key: value for key, value in document.items() if key != "credHelpers"})
    assert used() == "store:p"
    assert store.read_text() == f"get|{guarded.host}\n"


@pytest.mark.parametrize("words", ["credentials not found in native keychain", "no credentials server URL", "no credentials username"])
def test_a_helper_that_knows_nothing(guarded, used, config, helper, words):
    helper("none", f"echo '{words}'; exit 1")
    config({"credsStore": "none", "auths": {guarded.host: {"auth": packed("auths", "p")}}})
    assert used() == "auths:p"


def test_a_helpers_token_is_a_refresh_token(shelf, serve, connect, config, helper):
    tokens = serve(Tokens(refresh="fr0m-helper"))
    shelf.put([BASE])
    shelf.guard = BearerGuard(tokens)
    helper("tok", says("<token>", "fr0m-helper"))
    config({"credsStore": "tok"})
    assert connect().tags("app") == ["1"]
    assert tokens.requests[0].method == "POST"


BROKEN = {
    "fails": "echo 'it is locked'; echo 'second line'; echo 's3cret' >&2; exit 3", "prints no JSON": "echo s3cret-nonsense", "prints a list": "echo '[\"s3cret\"]'", "prints nothing": "true",
    "prints much": "head -c 200000 /dev/zero | tr '\\0' ' '; echo '{}'", "has no Secret": "echo '{\"Username\":\"s3cret\"}'", "has a number": "echo '{\"Username\":\"u\",\"Secret\":5}'", "is killed": "kill -9 $$",
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_helper_that_is_broken(guarded, used, config, helper, name):
    helper("broken", BROKEN[name])
    config({"credsStore": "broken", "auths": {guarded.host: {"auth": packed("auths", "p")}}})
    with pytest.raises(AuthenticationError, match="docker-credential-broken") as caught:
        used()
    assert "s3cret" not in str(caught.value) and "second line" not in str(caught.value)
    if name == "fails":
        assert "it is locked" in str(caught.value)


def test_a_helper_that_is_not_there(guarded, used, config):
    config({"credsStore": "gone-away"})
    with pytest.raises(AuthenticationError, match="docker-credential-gone-away"):
        used()


@pytest.mark.parametrize("name", ["../x", "a/b", "a b", "$(id)", "", "a;b", "a\nb"], ids=repr)
def test_names_of_helpers(guarded, used, config, home, name):
    config({"credsStore": name, "auths": {guarded.host: {"auth": packed("auths", "p")}}})
    if name == "":
        assert used() == "auths:p"
        return
    with pytest.raises(AuthenticationError):
        used()


def test_a_helper_is_killed_after_the_timeout(guarded, connect, config, helper, within):
    helper("slow", "sleep 61")
    config({"credsStore": "slow"})
    with within(4), pytest.raises(AuthenticationError, match="docker-credential-slow"):
        connect(timeout=0.8).tags("app")


def test_a_helper_that_leaves_a_child_with_its_output_open(guarded, connect, config, helper, within):
    helper("forks", "sleep 9 & " + says("u", "p"))
    config({"credsStore": "forks"})
    with within(4):
        try:
            connect(timeout=1).tags("app")
        except AuthenticationError:
            pass


def test_a_helper_that_reads_nothing(guarded, connect, config, tmp_path, monkeypatch):
    place = tmp_path / "bin"
    place.mkdir()
    path = place / "docker-credential-deaf"
    path.write_text("#!/bin/sh\nexec 0<&-\n" + says("u", "p") + "\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    config({"credsStore": "deaf"})
    assert connect().tags("app") == ["1"]


def test_no_secret_is_in_argv(guarded, used, config, helper, tmp_path):
    asked = helper("args", f"tr '\\0' ' ' </proc/self/cmdline >>{tmp_path}/argv; tr '\\0' ' ' </proc/$$/cmdline >>{tmp_path}/argv; " + says("u", "s3cret"))
    config({"credHelpers": {guarded.host: "args"}})
    assert used() == "u:s3cret"
    assert guarded.host not in (tmp_path / "argv").read_text().replace(str(asked), "")


def test_auth_that_was_given_looks_nowhere(guarded, connect, config, helper):
    asked = helper("never", says("u", "p"))
    config({"credsStore": "never"})
    connect(auth=("given", "pw")).tags("app")
    assert guarded.requests[-1].header("Authorization") == basic("given", "pw") and not asked.exists()


def test_the_default_without_xdg_runtime_dir(guarded, monkeypatch):
    """/run/containers/<uid>/auth.json, in a mount namespace of its own."""
    script = f"""mount -t tmpfs none /run && mkdir -p /run/containers/$(id -u)
printf '%s' '{{"auths":{{"{guarded.host}":{{"auth":"{packed('run', 'uid')}"}}}}}}' >/run/containers/$(id -u)/auth.json
exec "$0" -c 'import layerstore, sys; print(layerstore.Registry(sys.argv[1], retries=0, timeout=5).tags("app"))' {guarded.host}"""
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    done = subprocess.run(["unshare", "--mount", "--propagation", "private", "bash", "-c", script, sys.executable], capture_output=True, text=True, timeout=30)
    assert done.stdout == "['1']\n", done.stderr
    assert guarded.requests[-1].header("Authorization") == basic("run", "uid")
