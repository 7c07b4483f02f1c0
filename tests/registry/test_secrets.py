"""Passwords, tokens and signed queries are in no log record, error, note, traceback, repr or progress, whatever goes wrong."""

import logging
import os
import subprocess
import sys
import traceback

import imagekit
import pytest
from guards import PASSWORD, USER, BasicGuard, BearerGuard, Tokens, basic
from imagekit import BASE, TOP, encode
from scripted import HANG_UP, RESET, STALL, Answer, Server, cut

from layerstore import LayerStoreError, Registry

SIGNED = "X-Amz-Signature=s1gn3d-qu3ry"
SECRETS = [PASSWORD, basic().split()[1], "s1gn3d", "r3fr3sh", "b3ar3r", "gr%3A", "gr:"]


@pytest.fixture
def silent(caplog, capfd):
    """Run; whatever it raises and whatever is logged has no secret, nor what it holds."""

    def run(call, *more):
        caplog.clear()
        with caplog.at_level(1):
            try:
                call()
            except LayerStoreError as error:
                told = "".join(traceback.format_exception(error)) + repr(error) + repr(error.args) + repr(vars(error)) + "".join(getattr(error, "__notes__", []))
                seen, here = "", error
                while here is not None:
                    seen += str(here) + repr(here)
                    here = here.__cause__ or here.__context__
            else:
                told = seen = ""
        logged = "".join(logging.Formatter().format(record) + repr(record.args) + repr({key: value for key, value in vars(record).items() if key not in vars(logging.makeLogRecord({}))}) for record in caplog.records)
        out = "".join(capfd.readouterr())
        for secret in (*SECRETS, *more):
            assert secret not in told, f"{secret} in what is raised: {told}"
            assert secret not in logged, f"{secret} in a log: {logged}"
            assert secret not in out
        return told, seen, logged

    return run


ENDS = {
    "200 and nonsense": Answer(200, {}, b"nonsense"), "404": Answer(404), "500": Answer(500), "hangs up": HANG_UP, "resets": Answer(raw=[RESET]), "stalls": Answer(raw=[STALL]),
    "a bad header": Answer(raw=[b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nbad header\r\n\r\n{}"]), "no HTTP": Answer(raw=[b"SSH-2.0\r\n"]), "a bad status": Answer(raw=[b"HTTP/1.1 abc\r\n\r\n"]),
    "bad chunks": Answer(raw=[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"]), "too long a line": Answer(raw=[b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n"]),
    "a circle": Answer(307, {"Location": f"?{SIGNED}"}), "a redirect to a file": Answer(307, {"Location": f"file:///x?{SIGNED}"}), "with a user": Answer(307, {"Location": f"http://s1gn3d:s1gn3d@127.0.0.1/x?{SIGNED}"}),
    "a cut": Answer(200, {}, [b"x" * 10, RESET], 100), "many headers": Answer(raw=[b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n"]), "two lengths": Answer(raw=[b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}"]),
}  # fmt: skip


@pytest.mark.parametrize("end", ENDS)
def test_signed_queries(shelf, serve, images, connect, silent, end):
    put = shelf.put([BASE, TOP])
    elsewhere = serve(Server())
    elsewhere.always("GET|HEAD", ".*", ENDS[end])
    for path in ("/v2/app/manifests/1", put.blob_path(1)):
        shelf.forget()
        shelf.always("GET", path, Answer(307, {"Location": f"{elsewhere.url}/p?{SIGNED}"}))
        silent(lambda: images.pull(put.reference, registry=connect(timeout=0.6)))
    assert elsewhere.requests and elsewhere.requests[0].query == SIGNED


@pytest.mark.parametrize("method", ["POST", "PATCH"])
@pytest.mark.parametrize("end", ENDS)
def test_signed_upload_locations(shelf, serve, images, connect, silent, end, method):
    [image] = images.load(imagekit.tar_of(imagekit.docker([([BASE], [])])))
    elsewhere = serve(Server())
    elsewhere.always("POST|PATCH|PUT|DELETE|GET", ".*", lambda request: (request.body, ENDS[end])[1])
    shelf.always(method, ".*", lambda request: (request.body, Answer(202, {"Location": f"{elsewhere.url}/p?{SIGNED}"}))[1])
    silent(lambda: images.push(image, f"{shelf.host}/app:1", registry=connect(timeout=0.6)))


@pytest.mark.parametrize("end", ENDS)
def test_passwords_and_the_token_server(shelf, serve, connect, silent, end):
    tokens = serve(Tokens(users={USER: PASSWORD}))
    tokens.always("GET", "/token", ENDS[end])
    shelf.guard = BearerGuard(tokens)
    registry = connect(auth=(USER, PASSWORD), timeout=0.6)
    silent(lambda: registry.tags("app"))
    assert PASSWORD not in repr(registry)


@pytest.mark.parametrize("end", ENDS)
def test_refresh_tokens(shelf, serve, connect, silent, home, end):
    tokens = serve(Tokens(refresh="r3fr3sh"))
    posted = []
    tokens.always("POST", "/token", lambda request: (posted.append(request.body.decode()), ENDS[end])[1])
    shelf.guard = BearerGuard(tokens)
    (home / ".docker").mkdir()
    (home / ".docker/config.json").write_bytes(encode({"auths": {shelf.host: {"identitytoken": "r3fr3sh"}}}))
    silent(lambda: connect(timeout=0.6).tags("app"))
    assert "r3fr3sh" in posted[0]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("auth", [(USER, PASSWORD), "b3ar3r"], ids=["basic", "token"])
def test_what_goes_with_each_request(shelf, connect, silent, end, auth):
    good = BasicGuard()
    shelf.always("GET", ".*", lambda request: ENDS[end] if request.header("Authorization") else good(request))
    silent(lambda: connect(auth=auth, timeout=0.6).tags("app"))


def test_tokens_of_a_good_course(shelf, serve, images, connect, silent):
    tokens = serve(Tokens(users={USER: PASSWORD}))
    put = shelf.put([BASE, TOP])
    shelf.guard = BearerGuard(tokens)
    registry = connect(auth=(USER, PASSWORD), retries=1)
    shelf.on("GET", put.blob_path(1), cut(Answer(200, {}, put.blobs[1]), 50))
    told, _, logged = silent(lambda: images.push(images.pull(put.reference, registry=registry), f"{shelf.host}/new:1", registry=registry))
    for token in tokens.granted:
        assert token not in logged + told


def test_a_refresh_token_is_not_posted_elsewhere(shelf, serve, connect, home):
    elsewhere = serve(Server())
    posted = []
    elsewhere.always("GET|POST", ".*", lambda request: (posted.append(request.target + request.body.decode()), Answer(200, {}, b'{"token":"x"}'))[1])
    for status in (301, 302, 303, 307, 308):
        tokens = serve(Tokens(refresh="r3fr3sh"))
        tokens.always("POST", "/token", Answer(status, {"Location": f"{elsewhere.url}/t"}))
        shelf.guard = BearerGuard(tokens)
        (home / ".docker").mkdir(exist_ok=True)
        (home / ".docker/config.json").write_bytes(encode({"auths": {shelf.host: {"identitytoken": "r3fr3sh"}}}))
        with pytest.raises(LayerStoreError):
            connect().tags("app")
    assert all("r3fr3sh" not in each for each in posted)


@pytest.mark.parametrize("entry", [{"registrytoken": "b3ar3r\r\nX-Evil: y"}, {"registrytoken": "b3ar3r x"}, {"registrytoken": "b3ar3r\u20ac"}, {"identitytoken": "r3fr3sh\r\nX-Evil: y"}, {"username": "u\r\nX-Evil: y", "password": PASSWORD}, {"auth": basic("u", PASSWORD + "\r\nX-Evil: y").split()[1]}, {"username": 5, "password": PASSWORD}, {"auth": [PASSWORD]}], ids=lambda entry: repr(entry)[:30])  # fmt: skip
def test_secrets_in_files_that_break_headers(shelf, serve, connect, silent, home, entry):
    tokens = serve(Tokens(refresh="none"))
    good = BearerGuard(tokens)
    shelf.guard = lambda request: Answer(401, [("WWW-Authenticate", 'Basic realm="x"'), *good(request).fields()]) if good(request) else None
    (home / ".docker").mkdir()
    (home / ".docker/config.json").write_bytes(encode({"auths": {shelf.host: entry}}))
    silent(lambda: connect().tags("app"))
    for request in (*shelf.requests, *tokens.requests):
        assert not request.header("X-Evil")


def test_http_client_debugging_is_the_users_own(shelf, images):
    """With all of Python's logging on, in a program of its own."""
    put = shelf.put([BASE])
    shelf.guard = BasicGuard()
    script = """
import logging, sys, layerstore
logging.basicConfig(level=1)
with layerstore.Store(sys.argv[1]) as store, layerstore.Registry(sys.argv[2], auth=(sys.argv[4], sys.argv[5]), retries=0) as registry:
    layerstore.Images(store).pull(sys.argv[3], registry=registry)
    try: layerstore.Images(store).pull(sys.argv[3] + "x", registry=registry)
    except layerstore.LayerStoreError: logging.exception("no")
"""
    done = subprocess.run([sys.executable, "-X", "dev", "-c", script, str(images.store.root) + "2", shelf.url, put.reference, USER, PASSWORD], capture_output=True, text=True, timeout=30, env=os.environ)
    assert done.returncode == 0, done.stderr
    for secret in SECRETS:
        assert secret not in done.stdout + done.stderr
    assert "MANIFEST_UNKNOWN" in done.stderr


def test_wrong_arguments_do_not_tell_them():
    for wrong in ({"auth": (USER, PASSWORD, "x")}, {"auth": [PASSWORD]}, {"auth": PASSWORD.encode()}, {"auth": f"{PASSWORD} ü"}, {"mirrors": [f"http://u:{PASSWORD}@h"]}, {"auth": {"user": PASSWORD}}):
        with pytest.raises((TypeError, ValueError)) as caught:
            Registry("localhost:1", **wrong)
        assert PASSWORD not in str(caught.value)
    with pytest.raises(ValueError) as caught:
        Registry(f"https://u:{PASSWORD}@registry.example.com")
    assert PASSWORD not in str(caught.value)
