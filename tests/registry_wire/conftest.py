import pytest

from layerstore.registry.calls import started
from layerstore.registry.registry import Registry


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch, tmp_path):
    """No proxies, no credentials, no certificates of the user who runs the tests."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ssl_cert_file", "ssl_cert_dir"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    for name in ("DOCKER_AUTH_CONFIG", "REGISTRY_AUTH_FILE", "DOCKER_CONFIG", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


@pytest.fixture
def asking():
    """Ask a host once: asking(host, "/v2/", timeout=1) -> Answer."""

    def ask(host, path="/v2/", method="GET", *, on=None, call=None, **arguments):
        options = {name: arguments.pop(name) for name in ("headers", "body", "expect", "limit", "beyond", "upload", "scopes") if name in arguments}
        with Registry(host, **{"retries": 0, "timeout": 10, **arguments}) as registry, started() as own:
            return (on or registry.session).ask(call or own, method, path, **options)

    return ask
