"""Eight processes on one root, killed at random: each finds what it holds, and at the end all is well.

crowd.py does it. By hand: python tests/trust/ownspace.py crowd.py '{"seconds": 10, "seed": 1}'
The promise is its held_layer_is_kept(), together with this: whatever a process does with a layer that it holds works.
"""

import os

import ownspace
import pytest

SECONDS = int(os.environ.get("TRUST_SECONDS", "10"))
pytestmark = [pytest.mark.usefixtures("tmpfs"), pytest.mark.time_limit(SECONDS + 120)]


@pytest.fixture(scope="module")
def crowd(the_round, figures):
    result = ownspace.call("crowd.py", {"seconds": the_round.seconds, "processes": 8, "seed": the_round.seed}, the_round.seconds + 90)
    figures.append(f"crowd: 8 processes, {the_round.seconds} s, {result['steps']} calls, {result['kills']} killed; "
                   f"held layers missed {len(result['broken'])}, other errors {len(result['errors'])}, problems at the end {len(result['problems'])}")
    return result


def test_a_crowd_did_something(crowd):
    assert crowd["steps"] > 30 * crowd["plan"]["seconds"]
    assert crowd["kills"] >= crowd["plan"]["seconds"] // 2


def test_after_a_crowd_all_is_well(crowd):
    assert crowd["problems"] == []


def test_a_layer_that_any_process_holds_is_never_deleted(crowd):
    assert crowd["broken"] == []


def test_nothing_else_fails_in_a_crowd(crowd):
    assert crowd["errors"] == []
