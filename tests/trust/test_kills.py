"""Killed at each system call: what was there is there, the work is whole or gone, and cleanup() leaves no trace.

killwalk.py does it and says what is looked at. A failure names the plan that does it again:
    python tests/trust/ownspace.py killwalk.py '{"act": "create", "first": 60, "step": 1000}'
"""

import os

import cutdisk
import killwalk
import ownspace
import pytest

EVERY_CALL = bool(os.environ.get("TRUST_EVERY_CALL"))      # make soak
pytestmark = [pytest.mark.usefixtures("tmpfs"), pytest.mark.time_limit(1200 if EVERY_CALL else 90)]


def walked(plan, figures, seconds):
    result = ownspace.call("killwalk.py", plan, seconds)
    what = f"power cuts: {plan['kind']:4} at each of" if "kind" in plan else "kills at"
    figures.append(f"{what} {result['kills']:4} system calls of {plan['act']}{' (every one)' if plan.get('all') else ''}, "
                   f"problems {len(result['problems'])}")
    return result


@pytest.mark.parametrize("act", list(killwalk.ACTS))
def test_killed_at_each_system_call_that_changes_something(act, figures):
    # "open" needs a new interpreter for each kill, so a spread of its calls has to do.
    # A load makes a whole image, of more calls than the others.
    result = walked({"act": act, "step": 1 if EVERY_CALL else {"open": 4, "load": 12}.get(act, 1)}, figures, 80)
    assert result["problems"] == []
    assert result["kills"] >= min(12, result["of"])


if EVERY_CALL:

    @pytest.mark.parametrize("act", list(killwalk.ACTS))
    def test_killed_at_each_system_call_whatever_it_is(act, figures):
        assert walked({"act": act, "all": True}, figures, 1000)["problems"] == []


@pytest.mark.parametrize("kind", cutdisk.KINDS)
@pytest.mark.parametrize("act", list(killwalk.ACTS) if EVERY_CALL else ["register", "create", "release", "release box"])
def test_the_power_cut_at_system_calls(act, kind, figures, the_round):
    step = 1 if EVERY_CALL else 4 if act == "create" else 12
    assert walked({"act": act, "kind": kind, "step": step, "first": 1 + the_round.seed % step}, figures, 1000)["problems"] == []
