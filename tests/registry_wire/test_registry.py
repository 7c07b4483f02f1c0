"""The Registry object: its arguments, what it tells of itself, forks, and what it needs."""

import gc
import math
import os
import pathlib
import subprocess
import sys
import threading
import warnings

import pytest
from wirekit import Server, answer

import layerstore
from layerstore.registry.calls import started
from layerstore.registry.registry import Registry

OK = answer(200, b"{}")


@pytest.mark.parametrize(("arguments", "kind"), [
    ({"auth": ()}, ValueError), ({"auth": ("ann",)}, ValueError), ({"auth": ("ann", "secret", "x")}, ValueError), ({"auth": ("ann", b"secret")}, TypeError),
    ({"auth": ("ann", None)}, TypeError), ({"auth": b"secret"}, TypeError), ({"auth": 5}, TypeError), ({"auth": ["ann", "secret"]}, TypeError), ({"auth": ""}, ValueError),
    ({"auth": "secret\r\nX: y"}, ValueError), ({"auth": "secret token"}, ValueError), ({"auth": "secrét"}, ValueError), ({"auth": "secret\x7f"}, ValueError),
    ({"auth": ("a:b", "secret")}, ValueError),
    ({"insecure": "no"}, TypeError), ({"insecure": None}, TypeError), ({"ca": 5}, TypeError), ({"ca": "/nowhere"}, OSError), ({"ca": "/dev/null"}, OSError),
    ({"mirrors": "mirror.example.com"}, TypeError), ({"mirrors": 5}, TypeError), ({"mirrors": [5]}, TypeError), ({"mirrors": ["a b"]}, ValueError), ({"mirrors": [""]}, ValueError),
    ({"mirrors": ["http://user:secret@host"]}, ValueError),
    ({"timeout": 0}, ValueError), ({"timeout": -1}, ValueError), ({"timeout": math.nan}, ValueError), ({"timeout": math.inf}, ValueError), ({"timeout": "3"}, TypeError),
    ({"timeout": None}, TypeError), ({"timeout": True}, TypeError), ({"retries": -1}, ValueError), ({"retries": 1.0}, TypeError), ({"retries": True}, TypeError), ({"retries": None}, TypeError),
    ({"connections": 0}, ValueError), ({"connections": 2.0}, TypeError), ({"connections": None}, TypeError), ({"chunk": 0}, ValueError), ({"chunk": -5}, ValueError), ({"chunk": 1.5}, TypeError),
    ({"chunk": "1"}, TypeError),
])  # fmt: skip
def test_a_wrong_argument(arguments, kind):
    with pytest.raises(kind) as caught:
        Registry("registry.example.com", **arguments)
    assert "ecr" not in str(caught.value)


def test_arguments_are_by_name():
    with pytest.raises(TypeError):
        Registry("registry.example.com", ("ann", "secret"))
    with pytest.raises(TypeError):
        Registry()


def test_right_arguments():
    for arguments in ({"auth": ("", "")}, {"auth": "token"}, {"timeout": 1}, {"timeout": 1e9}, {"retries": 0}, {"connections": 64}, {"chunk": 1}, {"mirrors": ()}, {"mirrors": {"mirror.example.com"}}):
        Registry("registry.example.com", **arguments).close()


@pytest.mark.parametrize(("host", "told"), [("registry.example.com:5000", "registry.example.com:5000"), ("http://localhost", "localhost"), ("docker.io", "docker.io"), ("[::1]:5", "[::1]:5")])
def test_repr_tells_class_and_host(host, told):
    with Registry(host, auth=("ann", "secret"), mirrors=["mirror.example.com"]) as registry:
        assert repr(registry) == str(registry) == f"<Registry {told}>"


def test_it_is_a_public_name():
    assert layerstore.Registry is Registry


def test_mirrors_have_hosts_and_paths_of_their_own():
    with Server(lambda request: OK) as mirror, Server(lambda request: OK) as server:
        with Registry(server.host, mirrors=[f"http://{mirror.host}/hub/", "http://mirror.example.com", "docker.io"], auth="token") as registry, started() as call:
            registry.mirrors[0].ask(call, "GET", "/v2/app/manifests/1")
            assert [each.place.name for each in registry.mirrors] == [mirror.host, "mirror.example.com", "registry-1.docker.io"]
            assert [each.retries for each in registry.mirrors] == [1, 1, 1]
    assert mirror.requests[0].path == "/hub/v2/app/manifests/1"
    assert "authorization" not in mirror.requests[0].headers
    assert server.connections == 0


def run(program, **environment):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def test_importing_the_package_loads_neither_urllib3_nor_ssl():
    done = run("import layerstore, sys; layerstore.Registry; from layerstore import RegistryError; print([m for m in ('urllib3', 'ssl', '_ssl', 'http.client') if m in sys.modules])")
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_without_urllib3(tmp_path):
    pathlib.Path(tmp_path / "urllib3").mkdir()
    (tmp_path / "urllib3/__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'urllib3'\", name='urllib3')")
    done = run("import layerstore\ntry: layerstore.Registry('localhost')\nexcept layerstore.NotSupportedError as err: print(err)", PYTHONPATH=str(tmp_path))
    assert "layerstore[registry]" in done.stdout, done.stderr


def test_an_old_urllib3(tmp_path):
    pathlib.Path(tmp_path / "urllib3").mkdir()
    (tmp_path / "urllib3/__init__.py").write_text("__version__ = '1.26.18'")
    done = run("import layerstore\ntry: layerstore.Registry('localhost')\nexcept layerstore.NotSupportedError as err: print(err)", PYTHONPATH=str(tmp_path))
    assert "2.2" in done.stdout and "1.26.18" in done.stdout, done.stderr


@pytest.mark.parametrize("under_way", [False, True])
def test_a_forked_child_makes_connections_of_its_own(under_way):
    with Server(lambda request: OK) as server, Registry(f"http://{server.host}", connections=2) as registry, started() as call:
        registry.session.ask(call, "GET", "/v2/")
        if under_way:
            registry.slots.acquire()
            registry.slots.acquire()
            registry.session._lock.acquire()
            registry.session._pool._lock.acquire()
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                with started() as own:
                    assert registry.slots.acquire(timeout=1)
                    assert registry.session.ask(own, "GET", "/v2/").body == b"{}"
                    os.write(write, str(server.connections).encode())
                    status = 0
            finally:
                os._exit(status)
        os.close(write)
        assert os.waitpid(pid, 0)[1] == 0
        os.close(read)
        assert server.connections == 2                 # the child's is another one
        if under_way:
            registry.session._lock.release()
            registry.session._pool._lock.release()
        assert registry.session.ask(call, "GET", "/v2/").body == b"{}"
        assert server.connections == 2


def test_one_that_is_forgotten_closes_its_connections():
    with Server(lambda request: OK) as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        registry = Registry(f"http://{server.host}")
        with started() as call:
            registry.session.ask(call, "GET", "/v2/")
        del registry, call
        gc.collect()


@pytest.mark.parametrize("reads", [True, False])
def test_a_child_that_unwinds_leaves_the_parents_connection_alone(reads):
    """The child closes its copy of a reply, stops its copy of the call, and closes its copy of the registry."""
    body = bytes(1 << 20)
    with Server(lambda request: answer(200, body)) as server, Registry(f"http://{server.host}") as registry, started() as call:
        with registry.session.open(call, "/v2/x") as reply:
            came = reply.read(1000)
            pid = os.fork()
            if pid == 0:
                try:
                    if reads:
                        reply._response.length_remaining = 0           # as if it had read all
                    reply.close()
                    call.stop(SystemExit())
                    with started() as own:
                        registry.session.ask(own, "GET", "/v2/y", limit=1 << 20)
                    registry.close()
                    gc.collect()
                finally:
                    os._exit(0)
            os.waitpid(pid, 0)
            while block := reply.read():
                came += block
    assert came == body
    assert [request.path for request in server.requests] == ["/v2/x", "/v2/y"]
    assert server.connections == 2


def test_what_is_closed_ends_though_a_child_has_its_socket():
    ended = threading.Event()

    def script(client):
        client.recv(4096)
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while client.recv(4096):
            pass
        ended.set()

    with Server(connection=script) as server, Registry(f"http://{server.host}") as registry, started() as call:
        with registry.session.open(call, "/v2/x"):
            read, write = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(write)
                os.read(read, 1)                       # until the parent is done
                os._exit(0)
            os.close(read)
        try:
            assert ended.wait(5)
        finally:
            os.close(write)
            os.waitpid(pid, 0)
