"""A docker-registry that takes tokens of a token server: who may pull, push and mount, and what is asked for it."""

import json
import traceback

import programs
import pytest
import tokenserver
from realregistry import split

from layerstore import AuthenticationError, NotInRegistryError, Registry

USERS = {"ann": "se:cret pass", "bob": "another"}
RIGHTS = {"": {"public/": "pull"}, "ann": {"": "pull,push"}, "bob": {"team/": "pull"}}
ANN, BOB = tuple(USERS.items())


@pytest.fixture
def tokens(room):
    with tokenserver.TokenServer(room / "tokens", users=USERS, rights=RIGHTS) as server:
        yield server


@pytest.fixture
def server(tokens, start, skopeo, archive):
    """A registry with public/app and team/app."""
    server = start(auth=tokens.settings)
    for name in ("public", "team"):
        skopeo.copy(f"docker-archive:{archive}", f"docker://{server.host}/{name}/app:1", "--dest-creds", ":".join(ANN))
    tokens.asked.clear()
    return server


def wanted(asked: tokenserver.Asked) -> dict[str, set[str]]:
    """What a token was to allow: actions by repository. The registry says its actions in any order."""
    found: dict[str, set[str]] = {}
    for scope in asked.scopes:
        kind, name, actions = scope.split(":")
        assert kind == "repository"
        found.setdefault(name, set()).update(actions.split(","))
    return found


def test_anybody_pulls_what_is_public_with_one_token(server, tokens, images):
    assert images.pull(f"{server.host}/public/app:1")
    assert tokens.asked == [("", "", ["repository:public/app:pull"], 200)]
    with pytest.raises(AuthenticationError) as caught:
        images.pull(f"{server.host}/team/app:1")
    assert (caught.value.status, caught.value.host) == (401, server.host)


def test_a_registry_keeps_its_tokens(server, tokens, images):
    with Registry(server.host, auth=ANN) as registry:
        for _ in range(3):
            images.pull(f"{server.host}/team/app:1", registry=registry)
        assert tokens.asked == [("ann", "", ["repository:team/app:pull"], 200)]
        assert registry.tags("team/app") == ["1"]
        with pytest.raises(NotInRegistryError):
            registry.manifest("team/none")


def test_a_push_asks_for_both_and_a_mount_for_its_source_too(server, tokens, images, archive):
    images.load(archive)
    with Registry(server.host, auth=ANN) as registry:
        digest = images.push("app:1", f"{server.host}/first/app:1", registry=registry)
        assert all(wanted(one) == {"first/app": {"pull", "push"}} for one in tokens.asked)
        assert len(tokens.asked) == 1
        tokens.asked.clear()
        before = len(server.requests())
        assert images.push("app:1", f"{server.host}/second/app:1", registry=registry) == digest
    mounts = [one for one in server.requests(before) if "mount=" in one.uri and one.status != 401]
    assert [one.status for one in mounts] == [201] * len(programs.layers())
    both = {"second/app": {"pull", "push"}, "first/app": {"pull"}}
    for_mounts = [one for one in tokens.asked if wanted(one) == both]
    assert for_mounts, tokens.asked
    assert all(one.scopes[0].startswith("repository:second/app:") for one in for_mounts), "the target comes first"
    assert server.tag("second/app", "1") == digest


def test_what_one_may_not_push_is_refused_and_not_noted(server, tokens, images, archive):
    images.load(archive)
    with Registry(server.host, auth=BOB) as registry:
        assert images.pull(f"{server.host}/team/app:1", registry=registry)
        with pytest.raises(AuthenticationError) as caught:
            images.push("app:1", f"{server.host}/team/app:2", registry=registry)
    assert {one.user for one in tokens.asked} == {"bob"}
    assert len(tokens.asked) < 10
    assert BOB[1] not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(FileNotFoundError):
        server.tag("team/app", "2")


def test_tokens_that_the_registry_no_longer_takes_are_got_anew(server, tokens, images, archive):
    """The token server's key has changed, and the tokens said that they would last."""
    images.load(archive)
    with Registry(server.host, auth=ANN) as registry:
        images.pull(f"{server.host}/team/app:1", registry=registry)
        tokens.renew()
        server.stop()
        server.start()
        assert registry.tags("team/app") == ["1"]
        assert images.push("app:1", f"{server.host}/team/ours:1", registry=registry) == server.tag("team/ours", "1")


def test_the_identity_token_of_docker_login_gets_tokens(server, tokens, docker, images, settings):
    """docker keeps a refresh token in place of the password, if the token server gives one."""
    env = programs.environment(settings, DOCKER_HOST=docker.address)
    programs.run("docker", "login", "-u", ANN[0], "--password-stdin", server.host, feed=ANN[1].encode(), env=env)
    [entry] = json.loads((settings / ".docker/config.json").read_text())["auths"].values()
    assert entry["identitytoken"] in tokens.refresh
    tokens.asked.clear()
    image = images.pull(f"{server.host}/team/app:1")
    assert tokens.asked == [("ann", "refresh_token", ["repository:team/app:pull"], 200)]
    images.push(image, f"{server.host}/team/again:1")
    assert {(one.user, one.grant) for one in tokens.asked} == {("ann", "refresh_token")}
    assert server.tag("team/again", "1") == server.tag(*split(image.references[0]))


@pytest.mark.parametrize("program", ["podman", "skopeo"])
def test_the_password_of_podman_and_skopeo_login_gets_tokens(server, tokens, images, settings, program):
    (settings / "run").mkdir()
    env = programs.environment(settings, XDG_RUNTIME_DIR=str(settings / "run"))
    words = ["login", "--tls-verify=false", "-u", ANN[0], "--password-stdin", server.host]
    programs.run(program, *words, feed=ANN[1].encode(), env=env)
    tokens.asked.clear()
    assert images.pull(f"{server.host}/team/app:1")
    assert tokens.asked == [("ann", "", ["repository:team/app:pull"], 200)]


def test_a_wrong_password_is_the_token_servers_no(server, tokens, images):
    with Registry(server.host, auth=("ann", "wrong one")) as registry, pytest.raises(AuthenticationError) as caught:
        images.pull(f"{server.host}/team/app:1", registry=registry)
    assert caught.value.status == 401
    assert "wrong one" not in "".join(traceback.format_exception(caught.value))
    assert [one.answer for one in tokens.asked] == [401]
