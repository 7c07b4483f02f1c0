"""What the flows say at the end of a run: loudly, if no real dockerd stood beside us."""

import dockerd


def pytest_terminal_summary(terminalreporter):
    ran = any("test_dockerd.py" in r.nodeid for kind in ("passed", "failed") for r in terminalreporter.getreports(kind))
    skipped = any("test_dockerd.py" in str(r.nodeid) for r in terminalreporter.getreports("skipped"))
    if skipped and not ran and dockerd.programs() is None:
        terminalreporter.section("NOT TESTED: dockerd", sep="!", red=True, bold=True)
        terminalreporter.line("warning: no dockerd on this machine, so nothing showed that Docker agrees with what lies on disk.")
        terminalreporter.line("         On Debian: apt-get install --no-install-recommends docker.io (and docker-cli, where there is one)")
