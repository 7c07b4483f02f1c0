"""Eight processes on one root, killed at random: each finds what it holds, and at the end all is well.

crowd.py does it. By hand: python tests/trust/ownspace.py crowd.py '{"seconds": 10, "seed": 1}'
The promise is its held_layer_is_kept(), together with this: whatever a process does with a layer that it holds works.
"""

import ownspace
import pytest

pytestmark = [pytest.mark.usefixtures("tmpfs"), pytest.mark.soak(180, 7200)]


@pytest.fixture(scope="module")
def crowd(the_round, figures):
    plan = {"seconds": the_round.seconds, "processes": 8, "seed": the_round.seed, "steps": 30 * the_round.seconds, "kills": the_round.seconds // 2}
    result = ownspace.call("crowd.py", plan, the_round.seconds + ownspace.PATIENCE + 60)
    figures.append(f"crowd: 8 processes, {the_round.seconds} s, {result['steps']} calls, {result['kills']} killed; "
                   f"held layers missed {len(result['broken'])}, other errors {len(result['errors'])}, problems at the end {len(result['problems'])}")
    return result


def test_a_crowd_did_something(crowd):
    assert crowd["steps"] >= crowd["plan"]["steps"]
    assert crowd["kills"] >= crowd["plan"]["kills"] >= 2


def test_after_a_crowd_all_is_well(crowd):
    assert crowd["problems"] == []


def test_a_layer_that_any_process_holds_is_never_deleted(crowd):
    assert crowd["broken"] == []


def test_nothing_else_fails_in_a_crowd(crowd):
    assert crowd["errors"] == []
