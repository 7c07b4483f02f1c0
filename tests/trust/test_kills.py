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

# What does not hold yet, act by act: to be deleted as it is mended.
MARK = "the temporary file of a parent's `committed` mark stays in its layerdb directory, and cleanup() does not see it"
MERGED = "cleanup() unmounts a box and leaves its empty merged directory"
NOT_YET = {"register on": MARK, "create": MARK, "mount": MERGED}
NOT_YET_CUT = {"mount": MERGED}


def walked(plan, figures, seconds):
    result = ownspace.call("killwalk.py", plan, seconds)
    what = f"power cuts: {plan['kind']:4} at each of" if "kind" in plan else "kills at"
    figures.append(f"{what} {result['kills']:4} system calls of {plan['act']}{' (every one)' if plan.get('all') else ''}, "
                   f"problems {len(result['problems'])}")
    return result


def acts(not_yet, names=tuple(killwalk.ACTS)):
    return [pytest.param(act, marks=[pytest.mark.xfail(strict=True, reason=not_yet[act])] if act in not_yet else [])
            for act in names]


@pytest.mark.parametrize("act", acts(NOT_YET))
def test_killed_at_each_system_call_that_changes_something(act, figures):
    # "open" needs a new interpreter for each kill, so a spread of its calls has to do.
    result = walked({"act": act, "step": 4 if act == "open" and not EVERY_CALL else 1}, figures, 80)
    assert result["problems"] == []
    assert result["kills"] >= min(12, result["of"])


if EVERY_CALL:

    @pytest.mark.parametrize("act", acts(NOT_YET))
    def test_killed_at_each_system_call_whatever_it_is(act, figures):
        assert walked({"act": act, "all": True}, figures, 1000)["problems"] == []


@pytest.mark.parametrize("kind", cutdisk.KINDS)
@pytest.mark.parametrize("act", acts(NOT_YET_CUT, killwalk.ACTS if EVERY_CALL else ("register", "create", "release", "release box")))
def test_the_power_cut_at_system_calls(act, kind, figures, the_round):
    step = 1 if EVERY_CALL else 4 if act == "create" else 12
    assert walked({"act": act, "kind": kind, "step": step, "first": 1 + the_round.seed % step}, figures, 1000)["problems"] == []
