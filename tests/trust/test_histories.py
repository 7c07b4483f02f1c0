"""Random histories of two to four stores on one root: what must be there is there, and nothing else, after each step.

histories.py does it, and has the model. By hand: python tests/trust/ownspace.py histories.py '{"seconds": 10, "seed": 1}'
everyone.py has processes and threads that work at the same time, and release all they took.
"""

import ownspace
import pytest

pytestmark = [pytest.mark.usefixtures("tmpfs"), pytest.mark.soak(180, 7200)]
EVERY = {"register", "get", "release", "remove", "create_box", "release_box", "load", "make_image", "remove_image", "reopen", "fork", "kill"}


@pytest.fixture(scope="module")
def history(the_round, figures):
    seconds = 2 * the_round.seconds
    plan = {"seconds": seconds, "seed": the_round.seed, "least": max(250, 10 * seconds)}
    result = ownspace.call("histories.py", plan, seconds + ownspace.PATIENCE + 60)
    figures.append(f"histories: {seconds} s, {result['steps']} steps compared with the model, "
                   f"{result['verbs'].get('kill', 0)} kills, {result['verbs'].get('fork', 0)} forks")
    return result


def test_what_a_history_leaves_is_what_the_model_says(history):
    assert history["problems"] == []


def test_a_history_does_everything(history):
    assert set(history["verbs"]) >= EVERY
    assert history["steps"] >= history["plan"]["least"]


@pytest.fixture(scope="module")
def everyone(the_round, figures):
    seconds = max(3, the_round.seconds // 2)
    plan = {"seconds": seconds, "processes": 3, "seed": the_round.seed, "least": 4 * seconds}
    result = ownspace.call("everyone.py", plan, seconds + ownspace.PATIENCE + 60)
    figures.append(f"everyone: 3 processes with 2 threads each, {seconds} s, {result['steps']} calls; errors {len(result['errors'])}, "
                   f"left when all was given back {len(result['problems'])}")
    return result


def test_when_everyone_has_given_back_what_they_took_nothing_is_left(everyone):
    assert everyone["errors"] == [] and everyone["problems"] == []
    assert everyone["steps"] >= 6 * everyone["plan"]["least"]
