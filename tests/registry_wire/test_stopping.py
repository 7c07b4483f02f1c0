"""What is blocked ends within a second of being stopped, whatever it waits for."""

import asyncio
import gc
import os
import signal
import socket
import threading
import time
import warnings

import pytest
from wirekit import Server, answer, certificate, server_tls, until

from layerstore.aio.calls import in_thread
from layerstore.registry.calls import Call, started
from layerstore.registry.registry import Registry
from layerstore.registry.sockets import Wire

OK = answer(200, b"{}")


class StoppedError(Exception):
    pass


def hang(client):
    """Read, and say nothing."""
    while client.recv(65536):
        pass


def begin_body(client):
    client.recv(4096)
    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nabc")
    hang(client)


def take_nothing(client):
    client.recv(10)
    released.wait(20)


released = threading.Event()


def blocks():
    while True:
        yield bytes(1 << 20)


def ask(registry, call):
    registry.session.ask(call, "GET", "/v2/", limit=1 << 20)


def send(registry, call):
    registry.session.ask(call, "PATCH", "/v2/", body=blocks, upload=True)


@pytest.fixture(autouse=True)
def _release():
    released.clear()
    yield
    released.set()


def full_listener():
    """A socket whose queue is full: connecting to it hangs."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    fillers = []
    for _ in range(8):
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
        fillers.append(filler)
    time.sleep(0.1)
    return listener, fillers


@pytest.mark.parametrize("phase", ["connect", "handshake", "header", "body", "send", "pause", "resolve"])
def test_stop(phase, monkeypatch):
    script = {"body": begin_body, "send": take_nothing}.get(phase, hang)
    fillers, listener = [], None
    with Server(lambda request: answer(503), connection=None if phase == "pause" else script, raw=lambda client: True) as server:
        host = f"{'' if phase == 'handshake' else 'http://'}{server.host}"
        if phase == "connect":
            listener, fillers = full_listener()
            host = f"http://127.0.0.1:{listener.getsockname()[1]}"
        if phase == "resolve":
            host = "http://localhost:1"
            real = socket.getaddrinfo
            monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **rest: real(*args, **rest) if rest.get("flags") else time.sleep(3) or real(*args, **rest))
        with Registry(host, timeout=30) as registry, started() as call:
            threading.Timer(0.3, call.stop, [StoppedError()]).start()
            began = time.monotonic()
            with pytest.raises(StoppedError):
                (send if phase == "send" else ask)(registry, call)
            assert 0.25 < time.monotonic() - began < 1.3
            with pytest.raises(StoppedError):
                call.check()
            with pytest.raises(StoppedError):
                ask(registry, call)
        released.set()
    for each in (*fillers, *([listener] if listener else ())):
        each.close()


def test_the_first_reason_counts_and_other_calls_go_on():
    with Server(lambda request: OK) as server, Registry(f"http://{server.host}") as registry:
        with started() as call, started() as other:
            ask(registry, other)
            call.stop(StoppedError())
            call.stop(KeyboardInterrupt())
            with pytest.raises(StoppedError):
                call.wait(10)
            ask(registry, other)
    assert server.connections == 1


def test_a_reply_that_is_read_by_another_thread():
    with Server(connection=begin_body) as server, Registry(f"http://{server.host}", timeout=30) as registry, started() as call:
        failed = []

        def read():
            try:
                with registry.session.open(call, "/v2/x") as reply:
                    while reply.read():
                        pass
            except BaseException as err:
                failed.append(err)

        thread = threading.Thread(target=read)
        thread.start()
        time.sleep(0.2)
        why = StoppedError()
        call.stop(why)
        thread.join(1)
        assert not thread.is_alive()
        assert failed == [why]


def test_a_hold_that_comes_late_is_refused():
    class Thing:
        cuts = 0

        def cut(self):
            self.cuts += 1

    call, first, second, third = Call(), Thing(), Thing(), Thing()
    call.hold(first)
    call.hold(second)
    call.drop(second)
    call.drop(second)
    call.stop(StoppedError())
    with pytest.raises(StoppedError):
        call.hold(third)
    assert (first.cuts, second.cuts, third.cuts) == (1, 0, 0)


def test_a_task_that_is_cancelled():
    def work(_):
        with started() as call:
            ask(registry, call)

    async def main():
        task = asyncio.ensure_future(in_thread(work, None))
        await asyncio.sleep(0.3)
        began = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - began < 1

    with Server(connection=hang) as server, Registry(f"http://{server.host}", timeout=30) as registry:
        asyncio.run(main())


@pytest.mark.parametrize("phase", ["header", "handshake", "resolve"])
def test_ctrl_c_is_heard(phase, monkeypatch):
    with Server(connection=hang, raw=lambda client: True) as server:
        host = server.host if phase == "handshake" else f"http://{server.host}"
        if phase == "resolve":
            host = "http://localhost:1"
            real = socket.getaddrinfo
            monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **rest: real(*args, **rest) if rest.get("flags") else time.sleep(3) or real(*args, **rest))
        with Registry(host, timeout=30) as registry, started() as call:
            threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]).start()
            began = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                ask(registry, call)
            assert time.monotonic() - began < 1.3


def test_a_socket_without_an_owner_is_closed_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wire = Wire()
        descriptor = wire.fileno()
        del wire
        Wire.__new__(Wire)
        gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


def test_nothing_is_left_open(tmp_path):
    pair = certificate(tmp_path, "server")

    def descriptors():
        return {name for name in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{name}") and os.readlink(f"/proc/self/fd/{name}").startswith("socket:")}

    before = descriptors()
    for tls in (None, server_tls(pair)):
        with Server(connection=begin_body, tls=tls) as server:
            with Registry(server.host, insecure=True, timeout=0.3, retries=0) as registry:
                with started() as call, pytest.raises(Exception, match="in time"):
                    ask(registry, call)
                with started() as call, registry.session.open(call, "/v2/x"):
                    pass
                with started() as call:
                    threading.Timer(0.1, call.stop, [StoppedError()]).start()
                    with pytest.raises(StoppedError), registry.session.open(call, "/v2/x") as reply:
                        while True:
                            reply.read()
    until(lambda: descriptors() <= before)
