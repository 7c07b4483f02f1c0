"""Interrupted, or forked, at one place after the other: no lock is kept, and none waits.

interruptwalk.py and forkwalk.py do it and say what is looked at. A failure names the plan that does it again:
    python tests/trust/ownspace.py interruptwalk.py '{"act": "commit", "only": [440]}'
"""

import interruptwalk
import ownspace
import pytest
from soak import budget

pytestmark = [pytest.mark.usefixtures("tmpfs"), pytest.mark.soak(90, 2400)]
FORKED = ("register", "create", "mount", "commit", "apply_diff", "tag", "load", "changes", "snapshot", "rollback", "fork", "commit snapshot", "squash")


def walked(script, act, sample, seed, figures):
    plan = {"act": act, **budget({"sample": sample, "seed": seed}, {})}
    result = ownspace.call(script, plan, budget(80, 2300))
    figures.append(f"{script[:-7]:9}: {result['walked']:4} of {result['of']:4} places of {act}, problems {len(result['problems'])}")
    assert result["problems"] == [], plan
    assert result["walked"] >= min(result["of"], sample)


@pytest.mark.parametrize("act", list(interruptwalk.ACTS))
def test_interrupted_at_the_entry_of_each_function(act, figures, the_round):
    walked("interruptwalk.py", act, 3, the_round.seed, figures)


@pytest.mark.parametrize("act", FORKED)
def test_forked_at_the_entry_of_each_function(act, figures, the_round):
    walked("forkwalk.py", act, 3, the_round.seed, figures)
