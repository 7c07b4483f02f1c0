"""image pull and image push, with a real docker-registry: what they print, how they end, and that a password stays unseen."""

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import gate
import pytest
import realregistry
from commandline import command
from disk import disk_state
from dockerd import image_archive
from tarkit import dir, end, file

import layerstore
from layerstore.cli import screen
from layerstore.cli.exits import OPTIONS_FOR, sentence

BASE = dir("etc/") + file("etc/motd", b"hello\n") + end()
APP = dir("app/") + file("app/main", b"print\n") + end()
NOISE = file("noise", os.urandom(4_000_000)) + end()
PASSWORD = "unseen Passwort"
_number = itertools.count()


@pytest.fixture(scope="module")
def registry(tmpfs):
    with realregistry.Registry(tmpfs / "registry-of-cli") as server:
        yield server


@pytest.fixture(scope="module")
def closed(tmpfs):
    """One that asks for a user and a password."""
    with realregistry.Registry(tmpfs / "closed-registry", users={"ann": PASSWORD}) as server:
        yield server


@pytest.fixture(autouse=True)
def home(environment, room, monkeypatch):
    """A home without credentials."""
    for name in ("DOCKER_AUTH_CONFIG", "REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(room / "home"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(room / "home/run"))
    return room / "home"


@pytest.fixture
def app(made, room):
    """A store with an image of two layers, app:latest."""
    (room / "app.tar").write_bytes(image_archive([BASE, APP], "app"))
    made("image", "load", room / "app.tar")
    return made


@pytest.fixture
def name(registry):
    """A name in a repository of its own."""
    return f"{registry.host}/t{next(_number)}/app:1"


@pytest.fixture
def pushed(app, cli, name):
    """The name of an image that is in the registry, and its facts."""
    done = cli("image", "push", "app", name, "--json")
    assert done.code == 0, done.err
    return name, done.json


@pytest.fixture
def other(cli, room):
    """Run a command line on another store."""
    root = room / "other"
    assert cli("--root", root, "init").code == 0
    return lambda *words: cli("--root", root, *words)


# ---- push ---------------------------------------------------------------------------------------
def test_push_prints_the_digest(app, cli, registry, name):
    digest, = app("image", "push", "app", name)
    assert registry.tag(*parts(name)) == digest
    assert app("image", "push", "app", name) == [digest]
    assert cli("image", "push", "app", name, "-q")[:2] == (0, f"{digest}\n")
    assert cli("image", "push", "app", name, "-q").err == ""


def parts(name):
    repository, _, tag = name.partition("/")[2].rpartition(":")
    return repository, tag


def test_push_as_json(app, cli, registry, name):
    first, second = (cli("image", "push", "app", name, "--json").json for _ in range(2))
    image = cli("image", "ls", "--json").json[0]
    assert image["digests"] == [f"{name.rpartition(':')[0]}@{first['digest']}"]
    manifest = registry.blob(first["digest"])
    assert json.loads(manifest)["mediaType"] == first["media_type"]
    assert (first["reference"], first["size"], first["image"]) == (name, len(manifest), image["id"])
    assert first["sent"] > 0 and (first["mounted"], first["present"]) == (0, 0)
    assert second == {**first, "sent": 0, "present": 3}
    elsewhere = cli("image", "push", "app", name.replace("/app:", "/more:"), "--json").json
    assert elsewhere["mounted"] == 2 and elsewhere["digest"] == first["digest"]
    assert cli("image", "ls", "--json").json[0]["digests"] == sorted(
        f"{n.rpartition(':')[0]}@{first['digest']}" for n in (name, name.replace("/app:", "/more:"))
    )


def test_push_under_the_name_that_it_has(app, cli, refused, name):
    app("image", "tag", "app", name)
    assert len(app("image", "push", name)) == 1
    id = cli("image", "inspect", name).json[0]["Id"]
    assert "give the reference" in refused(2, "image", "push", id)


@pytest.mark.parametrize(("option", "kind"), [("--gzip", "tar+gzip"), ("--zstd", "tar+zstd"), ("--plain", "tar"), (None, "tar+gzip")])
def test_how_layers_are_compressed(app, registry, name, option, kind):
    app("image", "push", "app", name.replace(":1", ":0"), "--zstd" if option == "--gzip" else "--gzip")
    app("image", "push", "app", name, *[option] * bool(option))
    layers = registry.manifest(*parts(name))["layers"]
    assert {layer["mediaType"] for layer in layers} == {f"application/vnd.oci.image.layer.v1.{kind}"}


# ---- pull ---------------------------------------------------------------------------------------
def test_pull_prints_id_and_name(pushed, cli, other):
    name, facts = pushed
    done = other("image", "pull", name)
    assert (done.code, done.out) == (0, f"{facts['image']}  {name}\n")
    assert done.err.splitlines()[0] == f"{facts['digest']} is what {name} means"
    assert re.fullmatch(r"fetched \d+ B, 0 of 2 layers were here", done.err.splitlines()[1])
    assert other("image", "pull", name).err.splitlines()[1] == "fetched 0 B, 2 of 2 layers were here"
    assert other("image", "pull", name, "-q") == (0, f"{facts['image']}  {name}\n", "")
    assert other("cat", name, "app/main").out == "print\n"
    assert cli("verify").code == 0


def test_pull_by_digest(pushed, other):
    name, facts = pushed
    by_digest = f"{name.rpartition(':')[0]}@{facts['digest']}"
    done = other("image", "pull", by_digest)
    assert (done.code, done.out) == (0, f"{facts['image']}  {by_digest}\n")
    assert "means" not in done.err
    [found] = other("image", "ls", "--json").json
    assert (found["references"], found["digests"]) == ([], [by_digest])
    assert other("image", "ls").out.splitlines()[1].split()[0] == by_digest
    [found] = other("image", "inspect", facts["image"]).json
    assert (found["RepoTags"], found["RepoDigests"]) == ([], [by_digest])


def test_pull_as_json(pushed, other):
    name, facts = pushed
    first, second = (other("image", "pull", name, "--json").json for _ in range(2))
    assert (first["id"], first["references"], first["digest"]) == (facts["image"], [name], facts["digest"])
    assert first["digests"] == [f"{name.rpartition(':')[0]}@{facts['digest']}"]
    assert first["present"] == 0 and 0 < first["fetched"] < facts["sent"]
    assert second == {**first, "fetched": 0, "present": 2}
    [listed] = other("image", "ls", "--json").json
    assert {key: first[key] for key in listed} == listed


def test_a_name_that_moves_is_told(pushed, cli, made, room, other):
    name, facts = pushed
    other("image", "pull", name)
    (room / "new.tar").write_bytes(image_archive([NOISE], "new"))
    made("image", "load", room / "new.tar")
    made("image", "push", "new", name)
    done = other("image", "pull", name)
    assert f"{name} was {facts['image'][7:19]} before, which is still there under its id: {facts['image']}" in done.err.splitlines()


def test_options_of_a_pull(pushed, other, registry):
    name, _ = pushed
    done = other("image", "pull", name, "--platform", "linux/s390x")
    assert done.code == 1 and "linux/s390x" in done.said
    assert other("image", "pull", name, "--mirror", f"http://{registry.host}", "--timeout", "5", "--retries", "0", "--connections", "1", "--keep",
                 "--durability", "none").code == 0  # fmt: skip


def test_a_bar_over_all_bytes_with_the_rate(made, cli, other, room, name, terminal, monkeypatch):
    (room / "new.tar").write_bytes(image_archive([file(f"f{n}", os.urandom(30_000_000)) + end() for n in range(2)], "new"))
    made("image", "load", room / "new.tar")
    monkeypatch.setattr(screen, "_PLAIN_SECONDS", 0.0)
    done = cli("image", "push", "new", name)
    assert re.search(r"^push: [0-9.]+ [kM]?B of 60.0 MB, \d+ %$", done.err, re.M)
    done = other("image", "pull", name)
    assert re.search(r"^pull: [0-9.]+ [kM]?B of 60.0 MB, \d+ %$", done.err, re.M)
    for words in (["init"], ["image", "pull", name]):
        code, shown = terminal("--root", room / "third", *words)
        assert code == 0, shown
    assert "pull" in shown and re.search(r"/60\.0 MB", shown) and re.search(r"MB/s|\?", shown)


# ---- wrong uses ---------------------------------------------------------------------------------
WRONG = [
    (2, ["pull", "No/Name"], "invalid reference format"),
    (2, ["pull", "https://ann:unseen@localhost:1/a:1"], "'https://...@localhost:1/a:1': the name of an image begins with the registry's host"),
    (2, ["push", "app", "ann:unseen@localhost:1/a:1"], "'...@localhost:1/a:1'"),
    (2, ["pull", "localhost:1/a:1", "--platform", "a/b/c/d"], "a/b/c/d"),
    (2, ["pull", "localhost:1/a:1", "--platform", "all"], "--platform"),
    (2, ["pull", "localhost:1/a:1", "--retries", "-1"], "--retries"),
    (2, ["pull", "localhost:1/a:1", "--connections", "0"], "--connections"),
    (2, ["pull", "localhost:1/a:1", "--timeout", "soon"], "--timeout"),
    (2, ["pull", "localhost:1/a:1", "--timeout", "0"], "--timeout"),
    (2, ["pull", "localhost:1/a:1", "--mirror", "ftp://here"], "ftp://here"),
    (2, ["pull", "localhost:1/a:1", "--user", "ann"], "--password-stdin"),
    (2, ["pull", "localhost:1/a:1", "--password-stdin"], "--user"),
    (2, ["push", "app", "No/Name"], "invalid reference format"),
    (2, ["push", "app", "localhost:1/a@sha256:" + "0" * 64], "digest"),
    (2, ["push", "app", "localhost:1/a:1", "--gzip", "--zstd"], "not allowed with"),
    (3, ["push", "nothing", "localhost:1/a:1"], "No such image: nothing:latest"),
    (3, ["pull", "localhost:1/a:1", "--ca", "/no/such.pem"], "/no/such.pem"),
    (1, ["pull", "localhost:1/a:1", "--retries", "0"], "localhost:1"),
    (1, ["push", "app", "localhost:1/a:1", "--retries", "0"], "localhost:1"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "words", "told"), WRONG, ids=[" ".join(words)[:60] for _, words, _ in WRONG])
def test_wrong_uses(app, refused, root, code, words, told):
    before = disk_state(root)
    said = refused(code, "image", *words)
    assert told in said and "unseen" not in said
    assert disk_state(root) == before


def test_what_is_not_there(pushed, refused, cli, registry):
    name, _ = pushed
    for reference in (name.replace(":1", ":2"), f"{registry.host}/nothing:1", f"{registry.host}/nothing@sha256:{'0' * 64}"):
        said = refused(3, "image", "pull", reference, "--root", os.environ["LAYERSTORE_ROOT"])
        assert "404" in said and registry.host in said


def test_no_store_is_made(refused, room, registry):
    assert "make one with" in refused(3, "--root", room / "none", "image", "pull", f"{registry.host}/a:1")
    assert not (room / "none").exists()


def test_without_urllib3(app, program, environment):
    without = "import sys; sys.modules['urllib3'] = None; from layerstore.cli.main import program; program()"
    for words in (["pull", "localhost:1/a:1"], ["push", "app", "localhost:1/a:1"]):
        done = subprocess.run([sys.executable, "-c", without, "image", *words], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (5, "")
        assert "pip install 'layerstore[registry]'" in done.stderr and len(done.stderr.splitlines()) == 1
    done = subprocess.run([sys.executable, "-c", without, "doctor", "--json"], capture_output=True, text=True, check=False)
    [told] = [check for check in json.loads(done.stdout) if check["name"] == "urllib3"]
    assert told["state"] == "note" and "pip install 'layerstore[registry]'" in told["todo"]


def test_advice_names_options():
    for words, option in OPTIONS_FOR.items():
        assert sentence(layerstore.RegistryError(f"GET /: {words}")) == f"GET /: {option}"
        assert sentence(layerstore.ImageError(words)) == words
    source = "".join(path.read_text() for path in (Path(layerstore.__file__).parent / "registry").glob("*.py"))
    assert [words for words in OPTIONS_FOR if words not in source] == []


# ---- passwords ----------------------------------------------------------------------------------
def test_a_password_from_standard_input(app, program, closed, monkeypatch):
    name = f"{closed.host}/t{next(_number)}/app:1"
    monkeypatch.setenv("LAYERSTORE_DEBUG", "1")
    for password in (PASSWORD, f"{PASSWORD}\n", f"{PASSWORD}\r\n"):
        done = program("image", "push", "app", name, "--user", "ann", "--password-stdin", "-v", input=password.encode())
        assert done.code == 0, done.err
        assert PASSWORD not in done.err
    done = program("image", "pull", name, "--user", "ann", "--password-stdin", input=PASSWORD.encode())
    assert done.code == 0, done.err


@pytest.mark.parametrize("data", [b"wrong", b"", b"\n", b"\xff", b"x" * 70_000], ids=["wrong", "none", "empty", "no text", "long"])
def test_a_wrong_password(app, program, closed, data):
    done = program("image", "push", "app", f"{closed.host}/app:1", "--user", "ann", "--password-stdin", input=data)
    assert (done.code, done.out, len(done.err.splitlines())) == (6 if data == b"wrong" else 2, "", 1)
    assert done.err.startswith("layerstore: ") and "xxxx" not in done.err


def test_nobody_is_let_in(app, cli, closed):
    done = cli("image", "pull", f"{closed.host}/app:1")
    assert done.code == 6 and closed.host in done.said and "401" in done.said and "--user" in done.said


def test_a_password_is_not_read_from_a_terminal(app, terminal, closed):
    code, shown = terminal("image", "pull", f"{closed.host}/app:1", "--user", "ann", "--password-stdin")
    assert code == 2 and "standard input, which is a terminal" in shown


def test_what_docker_login_keeps_counts(app, cli, closed, home):
    (home / ".docker").mkdir(parents=True)
    path = home / ".docker/config.json"
    path.write_text(json.dumps({"auths": {closed.host: {"username": "ann", "password": PASSWORD}}}))
    assert cli("image", "push", "app", f"{closed.host}/kept:1").code == 0
    told = {check["name"]: check for check in cli("doctor", "--json").json}
    assert told["urllib3"]["state"] == "ok"
    assert str(path) in told["credentials"]["found"] and PASSWORD not in json.dumps(told)
    path.write_text("{nonsense")
    done = cli("image", "push", "app", f"{closed.host}/kept:2")
    assert done.code == 6 and str(path) in done.said and "nonsense" not in done.said
    told = {check["name"]: check for check in cli("doctor", "--json").json}
    assert told["credentials"]["state"] == "note" and str(path) in told["credentials"]["found"]


# ---- TLS ----------------------------------------------------------------------------------------
def test_a_certificate_must_be_known(app, cli, tmpfs):
    with realregistry.Registry(tmpfs / f"registry-tls-{next(_number)}", tls=True) as server:
        done = cli("image", "push", "app", f"{server.host}/app:1")
        assert done.code == 1 and "certificate" in done.said and "--ca FILE" in done.said
        assert cli("image", "push", "app", f"{server.host}/app:1", "--ca", server.ca).code == 0
        assert cli("image", "pull", f"{server.host}/app:1", "--insecure").code == 0


# ---- ended --------------------------------------------------------------------------------------
@pytest.fixture
def large(made, room, name):
    """The name of an image of 12 MB that does not shrink, in the registry. Beside it a small layer, small.tar."""
    (room / "small.tar").write_bytes(BASE)
    (room / "large.tar").write_bytes(image_archive([file(f"f{n}", os.urandom(4_000_000)) + end() for n in range(3)], "large"))
    made("image", "load", room / "large.tar")
    made("image", "push", "large", name)
    return name


@pytest.mark.parametrize(
    ("numbers", "code", "said"),
    [([signal.SIGINT], 130, "interrupted"), ([signal.SIGTERM], 143, "terminated"), ([signal.SIGINT] * 5, 130, "interrupted")],
    ids=["Ctrl-C", "SIGTERM", "Ctrl-C often"],
)  # fmt: skip
@pytest.mark.parametrize("keep", [False, True], ids=["", "keep"])
def test_a_pull_that_is_ended_leaves_nothing(large, cli, room, numbers, code, said, keep):
    for words in (["init"], ["register", room / "small.tar"]):             # what the first use of a store makes
        assert cli("--root", room / "other", *words).code == 0
    before = disk_state(room / "other")
    with gate.Gate(large.partition("/")[0], down=9_000_000) as through:
        name = large.replace(large.partition("/")[0], through.host)
        process = subprocess.Popen([*command(), "--root", room / "other", "image", "pull", name, *["--keep"] * keep],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
        assert through.shut.wait(20)
        time.sleep(0.2)
        ended(process, numbers, code, said)
        assert through.left(1)
    if not keep:
        assert disk_state(room / "other") == before
    done = cli("--root", room / "other", "image", "pull", large, "--json")
    assert done.code == 0 and done.json["present"] + done.json["fetched"] // 4_000_000 == 3
    assert keep or done.json["present"] == 0


def ended(process, numbers, code, said) -> None:
    began = time.monotonic()
    for at, number in enumerate(numbers):
        process.send_signal(number)
        time.sleep(0.001 * at)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err.splitlines()[-1]) == (code, "", f"layerstore: {said}")
    assert time.monotonic() - began < 3


def test_a_push_that_is_ended_leaves_no_manifest(large, registry, root):
    with gate.Gate(registry.host, up=6_000_000) as through:
        name = f"{through.host}/t{next(_number)}/new:1"
        process = subprocess.Popen([*command(), "image", "push", "large", name], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert through.shut.wait(20)
        time.sleep(0.2)
        ended(process, [signal.SIGTERM], 143, "terminated")
    with pytest.raises(FileNotFoundError):
        registry.tag(*parts(name))
