"""Random histories of two to four stores on one root: what must be there is there, and nothing else, after each step.

histories.py does it, and has the model. By hand: python tests/trust/ownspace.py histories.py '{"seconds": 10, "seed": 1}'
"""

import os

import ownspace
import pytest

SECONDS = int(os.environ.get("TRUST_SECONDS", "10"))
pytestmark = [pytest.mark.usefixtures("tmpfs"), pytest.mark.time_limit(2 * SECONDS + 120)]
EVERY = {"register", "get", "release", "remove", "create_box", "release_box", "load", "make_image", "remove_image", "reopen", "fork", "kill"}


@pytest.fixture(scope="module")
def history(the_round, figures):
    seconds = 2 * the_round.seconds
    result = ownspace.call("histories.py", {"seconds": seconds, "seed": the_round.seed}, seconds + 90)
    figures.append(f"histories: {seconds} s, {result['steps']} steps compared with the model, "
                   f"{result['verbs'].get('kill', 0)} kills, {result['verbs'].get('fork', 0)} forks")
    return result


def test_what_a_history_leaves_is_what_the_model_says(history):
    assert history["problems"] == []


def test_a_history_does_everything(history):
    assert set(history["verbs"]) >= EVERY
    assert history["steps"] > 10 * history["plan"]["seconds"]
