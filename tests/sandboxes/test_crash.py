"""Killed at each system call of what makes, changes or drops a snapshot: before or after, never between, and nothing stays.

crashwalk.py does it and says what is looked at. A failure names the plan that does it again:
    python tests/trust/ownspace.py $PWD/tests/sandboxes/crashwalk.py '{"act": "rollback", "first": 6, "step": 1000}'
"""

import sys
from pathlib import Path

import pytest
import soak
from soak import budget

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / "trust"))

import crashwalk  # noqa: E402
import ownspace  # noqa: E402

pytestmark = [pytest.mark.usefixtures("tmpfs"), pytest.mark.soak(90, 1800)]
KILLS = 3       # of an act, spread over its calls; another draw begins elsewhere


@pytest.mark.parametrize("act", list(crashwalk.ACTS))
def test_killed_at_system_calls(act):
    plan = {"act": act, **budget({"kills": KILLS, "first": 7 * soak.SEED}, {"step": 1})}
    result = ownspace.call(str(HERE / "crashwalk.py"), plan, budget(80, 1700))
    assert result["problems"] == [], "\n".join(result["problems"])
    assert result["kills"] >= min(KILLS - 1, result["of"])


@pytest.mark.parametrize("act, kind", budget([("snapshot, mounted", "ext4"), ("rollback, mounted", "xfs")],
                                              [(act, kind) for act in crashwalk.ACTS for kind in ("ext4", "xfs")]))
def test_the_power_cut_at_system_calls(act, kind):
    plan = {"act": act, "kind": kind, **budget({"kills": 3, "first": 7 * soak.SEED}, {"step": 1})}
    result = ownspace.call(str(HERE / "crashwalk.py"), plan, budget(80, 1700))
    assert result["problems"] == [], "\n".join(result["problems"])
