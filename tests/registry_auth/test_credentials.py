"""Which credentials count: every file and variable in its order, every key in a file, and no secret in an error."""

import base64
import json
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from layerstore.errors import AuthenticationError
from layerstore.registry import credentials
from layerstore.registry.credentials import Credentials, Source

HOST = "registry.example.com:5000"


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def auths(**entries: Any) -> dict[str, Any]:
    return {"auths": entries}


def of(user: str, host: str = HOST) -> dict[str, Any]:
    """A document with one entry."""
    return {"auths": {host: {"auth": encoded(f"{user}:of-{user}")}}}


def find(*arguments: Any) -> Credentials | None:
    """What is found, wherever it is."""
    known = credentials.find(*arguments)
    return known.credentials if known else None


def no_helper(helper: str, server: str) -> Credentials | None:
    raise AssertionError(f"{helper} is asked for {server}")


def found(document: Any, key: str = HOST, repository: str = "a/b", ask: Any = no_helper) -> Credentials | None:
    return find(key, repository, ask, {"DOCKER_AUTH_CONFIG": document if isinstance(document, str) else json.dumps(document), "HOME": "/nonexistent"})


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, Any], str]:
    def written(name: str, document: Any) -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return str(path)

    return written


# ---- the places, in order ----


def environment(tmp_path: Path) -> dict[str, str]:
    return {
        "HOME": f"{tmp_path}/home", "XDG_RUNTIME_DIR": f"{tmp_path}/run", "XDG_CONFIG_HOME": f"{tmp_path}/config", "DOCKER_CONFIG": f"{tmp_path}/docker",
        "DOCKER_AUTH_CONFIG": json.dumps(of("variable")),
    }  # fmt: skip


FILES = ["run/containers/auth.json", "config/containers/auth.json", "docker/config.json"]


def test_each_place_counts_before_those_behind_it(tmp_path: Path, write: Callable[[str, Any], str]) -> None:
    environ = environment(tmp_path)
    for name in FILES:
        write(name, of(name))
    write("home/.dockercfg", of("legacy")["auths"])
    users = []
    while known := find(HOST, "a/b", no_helper, environ):
        users.append(known.user)
        if "DOCKER_AUTH_CONFIG" in environ:
            del environ["DOCKER_AUTH_CONFIG"]
        else:
            (tmp_path / (known.user if known.user in FILES else "home/.dockercfg")).unlink()
    assert users == ["variable", *FILES, "legacy"]


def test_a_place_that_knows_another_registry_only_is_passed_over(tmp_path: Path, write: Callable[[str, Any], str]) -> None:
    environ = environment(tmp_path) | {"DOCKER_AUTH_CONFIG": json.dumps(of("other", "other.example.com"))}
    write(FILES[0], {})
    write(FILES[1], {"auths": {HOST: {}}})
    write(FILES[2], of("docker"))
    assert find(HOST, "", no_helper, environ) == Credentials("docker", "of-docker")


def test_a_registry_auth_file_counts_alone(tmp_path: Path, write: Callable[[str, Any], str]) -> None:
    environ = environment(tmp_path) | {"REGISTRY_AUTH_FILE": write("own.json", of("other", "other.example.com"))}
    for name in FILES:
        write(name, of(name))
    assert find(HOST, "", no_helper, environ) == Credentials("variable", "of-variable")
    del environ["DOCKER_AUTH_CONFIG"]
    assert find(HOST, "", no_helper, environ) is None
    write("own.json", of("own"))
    assert find(HOST, "", no_helper, environ) == Credentials("own", "of-own")
    os.unlink(environ["REGISTRY_AUTH_FILE"])
    assert find(HOST, "", no_helper, environ) is None
    environ["REGISTRY_AUTH_FILE"] = ""
    assert find(HOST, "", no_helper, environ) == Credentials(FILES[0], f"of-{FILES[0]}")


def test_without_variables_the_places_are_those_of_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [place.name for place in credentials.places({"HOME": "/home/u"})] == [
        f"/run/containers/{os.getuid()}/auth.json", "/home/u/.config/containers/auth.json", "/home/u/.docker/config.json", "/home/u/.dockercfg",
    ]  # fmt: skip
    monkeypatch.setenv("HOME", "/home/v")
    assert credentials.places({})[-1].name == "/home/v/.dockercfg"


def test_the_variables_are_those_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_AUTH_CONFIG", json.dumps(of("process")))
    assert find(HOST, "", no_helper) == Credentials("process", "of-process")


@pytest.mark.parametrize("there", ["", " \n", "{}", '{"auths": null}', "null"])
def test_an_empty_file_knows_nothing(there: str, tmp_path: Path, write: Callable[[str, Any], str]) -> None:
    environ = {"REGISTRY_AUTH_FILE": write("auth.json", there)}
    if there == "null":
        with pytest.raises(AuthenticationError):
            find(HOST, "", no_helper, environ)
    else:
        assert find(HOST, "", no_helper, environ) is None


@pytest.mark.parametrize("path", ["/dev/null", "/nonexistent/auth.json", "/dev/null/auth.json"])
def test_files_that_are_not_there_are_passed_over(path: str) -> None:
    assert find(HOST, "", no_helper, {"REGISTRY_AUTH_FILE": path}) is None


def test_a_fifo_that_no_one_writes_to_is_empty(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert find(HOST, "", no_helper, {"REGISTRY_AUTH_FILE": str(tmp_path / "fifo")}) is None


@pytest.mark.parametrize("path", ["/", "/dev/zero"])
def test_what_is_no_file_is_named(path: str) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(AuthenticationError, match=f"from {path}: ") as raised:
        find(HOST, "", no_helper, {"REGISTRY_AUTH_FILE": path})
    assert raised.value.path == path and sorted(os.listdir("/proc/self/fd")) == before


# ---- one file ----

SECRET = "pass-word"
MALFORMED = [
    "{", f'"{SECRET}"', "[1]", f'{{"auths": "{SECRET}"}}', f'{{"auths": {{"{HOST}": "{SECRET}"}}}}', f'{{"auths": {{"{HOST}": {{"auth": ["{SECRET}"]}}}}}}',
    f'{{"auths": {{"{HOST}": {{"auth": "{SECRET}"}}}}}}', f'{{"auths": {{"{HOST}": {{"auth": "{encoded(SECRET)}"}}}}}}',
    f'{{"auths": {{"{HOST}": {{"password": "{SECRET}", "username": 7}}}}}}', f'{{"credsStore": ["{SECRET}"]}}', f'{{"credHelpers": {{"{HOST}": 5}}, "x": "{SECRET}"}}', f'{{"x": "{SECRET}" ',
    f'{{"auths": {{}}, "auths": {{"{SECRET}": {{}}}}}}', f'{{"{SECRET}": NaN}}', "[" * 100_000, '{"x": "\\ud800"}', '{"x": "' + "y" * (1 << 20) + '"}',
    *(json.dumps({"auths": {HOST: {"registrytoken": f"{SECRET}{odd}"}}}) for odd in ("\r\nX: y", "€", " ", "\x7f", "\0")),
    '{"credsStore": "../evil"}', '{"credsStore": "a b"}', f'{{"credHelpers": {{"{HOST}": "a;b"}}}}', '{"credsStore": "a/b"}', '{"credsStore": "a\\u0000"}',
]  # fmt: skip


@pytest.mark.parametrize("text", MALFORMED, ids=range(len(MALFORMED)))
def test_a_malformed_file_is_named_and_not_quoted(text: str, write: Callable[[str, Any], str]) -> None:
    path = write("auth.json", text)
    with pytest.raises(AuthenticationError) as raised:
        find(HOST, "a/b", no_helper, {"REGISTRY_AUTH_FILE": path})
    err = raised.value
    assert path in str(err) and err.path == path and (err.status, err.code, err.host) == (0, "", "")
    told = "".join(traceback.format_exception(err)) + repr(err.__context__) + repr(err.__cause__) + repr(getattr(err, "__notes__", ""))
    assert SECRET not in told and encoded(SECRET) not in told
    assert err.__context__ is None


def test_a_malformed_variable_is_named_and_not_quoted() -> None:
    with pytest.raises(AuthenticationError, match="from DOCKER_AUTH_CONFIG: ") as raised:
        found(f'{{"auths": "{SECRET}"')
    assert SECRET not in "".join(traceback.format_exception(raised.value)) and raised.value.path == ""


def test_a_file_behind_the_one_that_counts_is_not_read(tmp_path: Path, write: Callable[[str, Any], str]) -> None:
    write(FILES[0], "{")
    environ = environment(tmp_path)
    assert find(HOST, "", no_helper, environ) == Credentials("variable", "of-variable")
    with pytest.raises(AuthenticationError, match=FILES[0]):
        find("other.example.com", "", no_helper, environ)


def test_a_malformed_entry_of_another_registry_is_not_looked_at() -> None:
    document = of("user")
    document["auths"]["other.example.com"] = {"auth": "!"}
    assert found(document) == Credentials("user", "of-user")


@pytest.mark.parametrize(("entry", "known"), [
    ({"auth": encoded("user:pass:word")}, Credentials("user", "pass:word")),
    ({"auth": encoded("user:pass\0\0\0")}, Credentials("user", "pass")),
    ({"auth": encoded("user:")}, Credentials("user", "")),
    ({"auth": encoded("bär:wört") + "\n"}, Credentials("bär", "wört")),
    ({"auth": base64.b64encode(b"user:\xff\xfe").decode()}, Credentials("user", "\udcff\udcfe")),
    ({"username": "user", "password": "word"}, Credentials("user", "word")),
    ({"username": "user"}, Credentials("user", "")),
    ({"auth": encoded("user:word"), "username": "other", "password": "x"}, Credentials("user", "word")),
    ({"auth": "", "username": "other", "password": "x"}, Credentials("other", "x")),
    ({"identitytoken": "id", "auth": encoded("user:word")}, Credentials(refresh="id")),
    ({"registrytoken": "reg", "auth": "malformed"}, Credentials(bearer="reg")),
    ({"IdentityToken": "id"}, Credentials(refresh="id")),
    ({"email": "a@example.com", "auth": encoded("user:word")}, Credentials("user", "word")),
    ({}, None), ({"auth": ""}, None), ({"email": "a@example.com"}, None), ({"password": "x"}, None), (None, None), ({"auth": None, "identitytoken": ""}, None),
])  # fmt: skip
def test_what_an_entry_holds(entry: Any, known: Credentials | None) -> None:
    assert found({"auths": {HOST: entry}}) == known


def test_bytes_that_are_no_text_are_sent_as_they_are() -> None:
    auth = base64.b64encode(b"user:\xff\xfe").decode()
    known = found({"auths": {HOST: {"auth": auth}}})
    assert known and known.basic() == f"Basic {auth}"


@pytest.mark.parametrize("names", [
    [f"{HOST}/a/b", f"{HOST}/a", HOST, f"https://{HOST}/v1/"],
    [f"{HOST}/a/b", f"{HOST}/a", HOST, f"http://{HOST}"],
    [f"{HOST}/a/b", f"{HOST}/a", HOST, f"https://{HOST}/v2/x"],
])  # fmt: skip
def test_the_narrowest_entry_counts(names: list[str]) -> None:
    entries: dict[str, Any] = {name: {"username": name} for name in reversed(names)}
    entries |= {f"{HOST}/a/b/c": {"username": "x"}, f"{HOST}/": {"username": "x"}, "registry.example.com": {"username": "x"}, f"https://x.{HOST}/": {"username": "x"}}
    for name in names:
        known = found({"auths": entries})
        assert known and known.user == name
        entries[name] = {}               # an empty one is none
    assert found({"auths": entries}) is None


def test_an_entry_of_a_repository_is_not_for_another() -> None:
    document = {"auths": {f"{HOST}/a": {"username": "u"}}}
    assert found(document, repository="a/c") and found(document, repository="a")
    assert found(document, repository="ab/c") is None and found(document, repository="") is None


HUB = ["https://index.docker.io/v1/", "index.docker.io", "docker.io", "registry-1.docker.io"]


def test_the_keys_of_the_hub() -> None:
    entries: dict[str, Any] = {name: {"username": name} for name in ["https://registry-1.docker.io/v2/", *reversed(HUB), "docker.io/library/app"]}
    for name in ["docker.io/library/app", *HUB, "https://registry-1.docker.io/v2/"]:
        known = found({"auths": entries}, key="docker.io", repository="library/app")
        assert known and known.user == name
        del entries[name]
    assert found({"auths": entries}, key="docker.io") is None
    assert found({"auths": {name: {"username": "x"} for name in HUB}}) is None


def test_the_entries_of_dockercfg_have_no_level_above_them(write: Callable[[str, Any], str], tmp_path: Path) -> None:
    write(".dockercfg", {f"https://{HOST}/v1/": {"auth": encoded("user:word"), "email": "x"}, "auths": {HOST: {"username": "no"}}})
    assert find(HOST, "", no_helper, {"HOME": str(tmp_path)}) == Credentials("user", "word")


# ---- helpers that a file names ----


class Helpers:
    """Helpers that know what they are given, and note what they are asked."""

    def __init__(self, **known: Credentials) -> None:
        self.known = known
        self.asked: list[tuple[str, str]] = []

    def __call__(self, helper: str, server: str) -> Credentials | None:
        self.asked.append((helper, server))
        return self.known.get(helper)


def test_the_helper_of_a_host_then_the_store_then_the_entries() -> None:
    document = {"credHelpers": {HOST: "own", "other.example.com": "other"}, "credsStore": "store", **of("entry")}
    ask = Helpers(own=Credentials("own"), store=Credentials("store"))
    assert found(document, ask=ask) == Credentials("own") and ask.asked == [("own", HOST)]
    ask = Helpers(store=Credentials("store"))
    assert found(document, ask=ask) == Credentials("store") and ask.asked == [("own", HOST), ("store", HOST)]
    ask = Helpers()
    assert found(document, ask=ask) == Credentials("entry", "of-entry") and len(ask.asked) == 2


def test_it_is_known_where_credentials_come_from(write: Callable[[str, Any], str]) -> None:
    path = write("auth.json", {"credsStore": "store", **of("entry")})
    told = []
    for ask in (Helpers(store=Credentials("store")), Helpers(store=Credentials(refresh="x")), Helpers(store=Credentials(bearer="x")), Helpers()):
        known = credentials.find(HOST, "", ask, {"REGISTRY_AUTH_FILE": path})
        told.append(str(known))
    assert told == ["the credentials of docker-credential-store", "the identity token of docker-credential-store", "the token of docker-credential-store", f"the credentials of {path}"]


def test_a_helper_without_a_name_is_none() -> None:
    assert found({"credHelpers": {HOST: ""}, "credsStore": "", **of("entry")}) == Credentials("entry", "of-entry")
    assert found({"credHelpers": {HOST: None}, "credsStore": None, **of("entry")}) == Credentials("entry", "of-entry")


@pytest.mark.parametrize("name", HUB)
def test_helpers_are_asked_for_the_hub_by_its_usual_key(name: str) -> None:
    ask = Helpers(own=Credentials("own"))
    assert found({"credHelpers": {name: "own"}}, key="docker.io", ask=ask) and ask.asked == [("own", HUB[0])]


# ---- doctor ----


def test_sources_say_what_counts_and_nothing_secret(tmp_path: Path, write: Callable[[str, Any], str]) -> None:
    environ = environment(tmp_path) | {"DOCKER_AUTH_CONFIG": json.dumps(of("variable", "other.example.com"))}
    write(FILES[1], {"credHelpers": {HOST: "pass"}, "auths": {HOST: {"auth": encoded(f"u:{SECRET}")}}})
    write(FILES[2], f'{{"auths": {{"{HOST}": {{"auth": "{SECRET}"}}}}}}')
    write("home/.dockercfg", {HOST: {"auth": encoded(f"u:{SECRET}")}})
    told = credentials.sources(HOST, environ=environ)
    assert told == [
        Source("DOCKER_AUTH_CONFIG", "silent"), Source(f"{tmp_path}/{FILES[0]}", "absent"), Source(f"{tmp_path}/{FILES[1]}", "helper", "docker-credential-pass"),
        Source(f"{tmp_path}/{FILES[2]}", "malformed"), Source(f"{tmp_path}/home/.dockercfg", "entry"),
    ]  # fmt: skip
    assert SECRET not in repr(told) and encoded(f"u:{SECRET}") not in repr(told)


def test_credentials_are_not_shown() -> None:
    known = Credentials("user", SECRET, refresh="r-secret", bearer="b-secret")
    assert f"{known!r} {known} {[known]}" == "<credentials> <credentials> [<credentials>]"
    assert {*known.secrets()} == {SECRET, "r-secret", "b-secret", encoded(f"user:{SECRET}")}
