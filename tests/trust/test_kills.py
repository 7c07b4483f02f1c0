"""Killed at each system call: what was there is there, the work is whole or gone, and cleanup() leaves no trace.

killwalk.py does it and says what is looked at. A failure names the plan that does it again:
    python tests/trust/ownspace.py killwalk.py '{"act": "create", "first": 60, "step": 1000}'
"""

import cutdisk
import frozenacts
import killwalk
import ownspace
import pytest
from soak import budget

pytestmark = [pytest.mark.usefixtures("tmpfs"), pytest.mark.soak(90, 1200)]
KILLS = {False: 12, True: 5}     # of an act, spread over its calls; of one on snapshots


def walked(plan, figures, seconds):
    result = ownspace.call("killwalk.py", plan, seconds)
    what = f"power cuts: {plan['kind']:4} at each of" if "kind" in plan else "kills at"
    figures.append(f"{what} {result['kills']:4} system calls of {plan['act']}{' (every one)' if plan.get('all') else ''}, "
                   f"problems {len(result['problems'])}")
    return result


@pytest.mark.parametrize("act", list(killwalk.ACTS))
def test_killed_at_each_system_call_that_changes_something(act, figures):
    kills = KILLS[act in frozenacts.ACTS]
    result = walked({"act": act, **budget({"kills": kills}, {"step": 1})}, figures, budget(80, 1000))
    assert result["problems"] == []
    assert result["kills"] >= min(kills, result["of"])


@pytest.mark.parametrize("act", budget(["release"], list(killwalk.ACTS)))
def test_killed_at_each_system_call_whatever_it_is(act, figures):
    result = walked({"act": act, "all": True, **budget({"kills": KILLS[False]}, {"step": 1})}, figures, budget(80, 1000))
    assert result["problems"] == []


@pytest.mark.parametrize("kind", cutdisk.KINDS)
@pytest.mark.parametrize("act", budget(["register", "create", "release", "release box"], list(killwalk.ACTS)))
def test_the_power_cut_at_system_calls(act, kind, figures, the_round):
    step = budget(12, 1)
    assert walked({"act": act, "kind": kind, "step": step, "first": 1 + the_round.seed % step}, figures, budget(80, 1000))["problems"] == []
