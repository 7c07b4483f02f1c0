"""Passwords, tokens and signed queries are told only to the host that they are for."""

import base64
import contextlib
import gc
import logging
import traceback

import pytest
from wirekit import Server, answer

from layerstore.registry.calls import Broken, started
from layerstore.registry.registry import Registry

OK = answer(200, b"{}")
PASSWORD, TOKEN, QUERY = "pa55-word", "t0ken-token", "s1gned-query"
SECRETS = [PASSWORD, TOKEN, QUERY, base64.b64encode(f"ann:{PASSWORD}".encode()).decode()]


@pytest.fixture
def heard(caplog):
    """All that is logged, by anyone, and what it says."""
    with caplog.at_level(logging.DEBUG):
        for name in ("urllib3", "urllib3.connectionpool", "urllib3.connection", "layerstore"):
            logging.getLogger(name).setLevel(logging.DEBUG)
        yield caplog
        for name in ("urllib3", "urllib3.connectionpool", "urllib3.connection", "layerstore"):
            logging.getLogger(name).setLevel(logging.NOTSET)


def told(err):
    """All that an exception tells: with its notes, causes and contexts, whether they are shown or not."""
    texts = traceback.format_exception(err)
    while err is not None:
        texts += [str(err), repr(err), repr(err.__dict__), *traceback.format_exception(err)]
        err = err.__cause__ or err.__context__
    return "\n".join(texts)


def registry_of(*, token_says=None, blob=None, manifest=None):
    """A registry with a token server; a blob is a redirect with a signed query."""

    def script(request):
        if request.path.startswith("/token"):
            return token_says or answer(200, b'{"token": "%s"}' % TOKEN.encode())
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return answer(401, WWW_Authenticate=f'Bearer realm="http://{request.headers["host"]}/token",service="s",scope="repository:app:pull"')
        if "/blobs/" in request.path:
            return blob or answer(307, Location=f"/data?X-Signature={QUERY}")
        if request.path.startswith("/data"):
            return manifest
        return manifest

    return Server(script)


BAD = {
    "not found": answer(404, b'{"errors":[{"code":"X","message":"%s"}]}' % f"{PASSWORD} {TOKEN} {SECRETS[3]}".encode()),
    "denied": answer(403), "busy": answer(503), "hang up": None, "no http": b"junk " + QUERY.encode() + b"\r\n\r\n",
    "malformed header": b"HTTP/1.1 404 X\r\nContent-Length: 0\r\nno colon here\r\n folded\r\n: x\r\n\r\n", "cut": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nx",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nContent-Length: 20\r\n\r\nx", "warning": answer(200, Warning=f'299 - "{TOKEN} {PASSWORD}"'),
    "to plain": answer(302, Location=f"ftp://user:{PASSWORD}@host/?{QUERY}"), "to itself": answer(302, Location=f"/data?X-Signature={QUERY}"),
    "too long": answer(200, bytes(100)), "later": answer(503, Retry_After="3600"), "bad chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + QUERY.encode() + b"\r\n",
}  # fmt: skip


@pytest.mark.parametrize("path", ["/v2/app/manifests/1", "/v2/app/blobs/x"])
@pytest.mark.parametrize("said", BAD.values(), ids=BAD)
def test_of_failures(heard, said, path, monkeypatch):
    monkeypatch.setattr("layerstore.registry.calls.Call.wait", lambda self, seconds: None)
    with registry_of(manifest=said) as server, Registry(f"http://{server.host}", auth=("ann", PASSWORD), retries=1, timeout=0.5) as registry, started() as call:
        texts = [repr(registry), repr(registry.session), repr(vars(registry))]
        try:
            registry.session.ask(call, "GET", path, scopes=["repository:app:pull"], limit=10)
        except Exception as err:
            texts.append(told(err))
        with contextlib.suppress(Broken), contextlib.suppress(Exception):
            with registry.session.open(call, path, scopes=["repository:app:pull"]) as reply:
                reply.read()
                reply.read()
    texts += [record.getMessage() + repr(record.__dict__) for record in heard.records]
    assert server.requests
    for secret in SECRETS:
        assert secret not in "\n".join(texts)


@pytest.mark.parametrize("said", [answer(500, PASSWORD.encode()), answer(403, b'{"errors":[{"code":"X","message":"%s"}]}' % PASSWORD.encode()), answer(200, b'{"token": "a b"}'), answer(200, b"[" * 9999), None])
def test_of_a_token_server(heard, said):
    with Server(lambda request: said if request.path.startswith("/token") else answer(401, WWW_Authenticate=f'Bearer realm="http://{server.host}/token?x={QUERY}"')) as server:
        with Registry(f"http://{server.host}", auth=("ann", PASSWORD), retries=0, timeout=5) as registry, started() as call:
            with pytest.raises(Exception, match="/token") as caught:
                registry.session.ask(call, "GET", "/v2/app/manifests/1", scopes=["repository:app:pull"])
    text = told(caught.value) + "".join(record.getMessage() + repr(record.__dict__) for record in heard.records)
    for secret in SECRETS:
        assert secret not in text
    gc.collect()
