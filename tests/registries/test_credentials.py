"""What `docker login`, `podman login` and `skopeo login` wrote is found, in the files and the helpers that they write to."""

import base64
import json
import traceback

import programs
import pytest

from layerstore import AuthenticationError, Registry

PASSWORD = "se:cret pass"
HELPER = """\
#!/bin/sh
# Keeps what docker gives it in a file, as the helpers of desktops do in a keychain.
case $1 in
    store) cat > "$HOME/keychain" ;;
    get) read -r host
         grep -qs "\\"$host\\"" "$HOME/keychain" || { echo 'credentials not found in native keychain'; exit 1; }
         cat "$HOME/keychain" ;;
    *) exit 1 ;;
esac
"""


@pytest.fixture(scope="module")
def guarded(start, skopeo, archive):
    """A registry that ann may use, with an image in it."""
    server = start(users={"ann": PASSWORD, "bob": "another"})
    skopeo.copy(f"docker-archive:{archive}", f"docker://{server.host}/team/app:1", "--dest-creds", f"ann:{PASSWORD}")
    return server


def login(program: str, env: dict[str, str], host: str, *words: str, user: str = "ann", password: str = PASSWORD) -> None:
    unverified = ["--tls-verify=false"] * (program != "docker")
    programs.run(program, "login", *unverified, *words, "-u", user, "--password-stdin", host, feed=password.encode() + b"\n", env=env)


def docker_login(docker, env: dict[str, str], host: str) -> None:
    login("docker", {**env, "DOCKER_HOST": docker.address}, host)


def refused(images, reference: str) -> AuthenticationError:
    """Pull it: refused, and not a word of a password."""
    with pytest.raises(AuthenticationError) as caught:
        images.pull(reference)
    said = "".join(traceback.format_exception(caught.value))
    for secret in (PASSWORD, base64.b64encode(f"ann:{PASSWORD}".encode()).decode(), "wrong one"):
        assert secret not in said
    return caught.value


def test_without_a_login_it_is_refused(guarded, images):
    error = refused(images, f"{guarded.host}/team/app:1")
    assert (error.status, error.code, error.host) == (401, "UNAUTHORIZED", guarded.host)


def test_after_docker_login(guarded, docker, images, settings):
    docker_login(docker, programs.environment(settings), guarded.host)
    assert (settings / ".docker/config.json").exists()
    assert images.pull(f"{guarded.host}/team/app:1").references == (f"{guarded.host}/team/app:1",)


def test_after_docker_login_elsewhere(guarded, docker, images, settings, monkeypatch):
    monkeypatch.setenv("DOCKER_CONFIG", str(settings / "elsewhere"))
    docker_login(docker, programs.environment(settings, DOCKER_CONFIG=str(settings / "elsewhere")), guarded.host)
    assert images.pull(f"{guarded.host}/team/app:1")


@pytest.mark.parametrize("way", ["credsStore", "credHelpers"])
def test_after_docker_login_with_a_helper(guarded, docker, images, settings, monkeypatch, way):
    """docker gives the password to the helper, and the file has none."""
    (settings / "bin").mkdir()
    helper = settings / "bin/docker-credential-keychain"
    helper.write_text(HELPER)
    helper.chmod(0o755)
    path = f"{settings / 'bin'}:{programs.environment(settings)['PATH']}"
    monkeypatch.setenv("PATH", path)
    (settings / ".docker").mkdir()
    (settings / ".docker/config.json").write_text(json.dumps({way: "keychain" if way == "credsStore" else {guarded.host: "keychain"}}))
    docker_login(docker, programs.environment(settings), guarded.host)
    written = json.loads((settings / ".docker/config.json").read_text())
    assert not written.get("auths", {}).get(guarded.host)
    assert PASSWORD in (settings / "keychain").read_text()
    assert images.pull(f"{guarded.host}/team/app:1")


@pytest.mark.parametrize("program", ["podman", "skopeo"])
@pytest.mark.parametrize("place", ["by default", "REGISTRY_AUTH_FILE", "--authfile"])
def test_after_podman_or_skopeo_login(guarded, images, settings, monkeypatch, program, place):
    env = programs.environment(settings, XDG_RUNTIME_DIR=str(settings / "run"))
    (settings / "run").mkdir()
    named = settings / "named.json"
    if place == "by default":
        login(program, env, guarded.host)
        assert (settings / "run/containers/auth.json").exists()
    elif place == "REGISTRY_AUTH_FILE":
        login(program, {**env, place: str(named)}, guarded.host)
        monkeypatch.setenv(place, str(named))
    else:
        (settings / ".config/containers").mkdir(parents=True)
        login(program, env, guarded.host, place, str(settings / ".config/containers/auth.json"))
    assert images.pull(f"{guarded.host}/team/app:1")


def test_after_logins_for_a_repository(guarded, images, settings):
    """podman and skopeo keep passwords for parts of a registry; the closest counts."""
    env = programs.environment(settings, XDG_RUNTIME_DIR=str(settings / "run"))
    (settings / "run").mkdir()
    login("podman", env, guarded.host + "/team")
    refused(images, f"{guarded.host}/other/app:1")
    assert images.pull(f"{guarded.host}/team/app:1")


def test_a_login_that_is_over_is_refused(guarded, docker, images, settings):
    docker_login(docker, programs.environment(settings), guarded.host)
    file = settings / ".docker/config.json"
    wrong = base64.b64encode(b"ann:wrong one").decode()
    file.write_text(json.dumps({"auths": {guarded.host: {"auth": wrong}}}))
    assert refused(images, f"{guarded.host}/team/app:1").status == 401


def test_credentials_that_are_given_count_alone(guarded, docker, images, settings):
    docker_login(docker, programs.environment(settings), guarded.host)
    with Registry(guarded.host, auth=("bob", "another")) as registry:
        assert images.pull(f"{guarded.host}/team/app:1", registry=registry)
        assert registry.tags("team/app") == ["1"]
        assert images.push(f"{guarded.host}/team/app:1", f"{guarded.host}/bob/app:1", registry=registry) == guarded.tag("bob/app", "1")
    with Registry(guarded.host, auth=("ann", "wrong one")) as registry, pytest.raises(AuthenticationError):
        registry.tags("team/app")
