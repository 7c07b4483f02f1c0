"""The power goes, on a real ext4 and a real XFS: what had returned is there, and the rest is whole or gone.

powercut.py says what is looked at after each cut. A failure names the plan that does it again:
    python tests/trust/ownspace.py powercut.py '{"kind": "ext4", "durability": "full", "seed": 7, "cuts": 10}'
"""

import cutdisk
import ownspace
import pytest

pytestmark = [pytest.mark.usefixtures("tmpfs"), pytest.mark.soak(90, 3000)]

SHARE = {"full": 0.5, "ordered": 0.25, "none": 0.25}
ONE_DISK = 10       # cuts of one plan
OPTIONS = {"ext4": ("", "data=writeback", "commit=1"), "xfs": ("", "", "logbsize=256k")}     # of the plans of a long round, in turn


@pytest.fixture(scope="module")
def cuts(the_round, figures):
    """Do the share of cuts of this file system and durability once; return the results, a plan each."""
    done = {}

    def made(kind, durability):
        if (kind, durability) not in done:
            wanted, results = max(2, round(the_round.cuts * SHARE[durability] / len(cutdisk.KINDS))), []
            for n in range(0, wanted, ONE_DISK):
                plan = {"kind": kind, "durability": durability, "seed": the_round.seed * 1000 + n, "cuts": min(ONE_DISK, wanted - n),
                        "options": OPTIONS[kind][n // ONE_DISK % 3]}
                results.append(ownspace.call("powercut.py", plan, 300))
            done[kind, durability] = results
            total = {key: sum(result[key] for result in results) for key in results[0] if isinstance(results[0][key], int)}
            bad = sum(len(result["problems"]) for result in results)
            names = {"returned": "calls returned", "whole": "layers whole", "gone": "never were, or released", "lost": "LOST",
                     "damaged": "damaged", "told": "of them told by verify()", "kept bad": "repaired when registered again"}
            figures.append(f"power cuts: {kind:4} {durability:7} {total['cuts']:3} cuts, problems {bad}; "
                           + ", ".join(f"{total[key]} {name}" for key, name in names.items() if total[key]))
        return done[kind, durability]

    return made


@pytest.mark.parametrize("kind", cutdisk.KINDS)
def test_full_loses_nothing_that_had_returned(cuts, kind):
    results = cuts(kind, "full")
    problems = [problem for result in results for problem in result["problems"]]
    assert problems == []
    assert all(result["lost"] == result["damaged"] == 0 for result in results)
    assert sum(result["whole"] for result in results) > 0


@pytest.mark.parametrize("kind", cutdisk.KINDS)
@pytest.mark.parametrize("durability", ["ordered", "none"])
def test_less_opens_shows_no_damaged_layer_that_verify_does_not_name_and_begins_anew(cuts, kind, durability):
    # As in moby a layer that is visible after a cut need not be exact: its content had no time to follow its name.
    assert [problem for result in cuts(kind, durability) for problem in result["problems"]] == []


# ---- the test has teeth ----------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", cutdisk.KINDS)
def test_the_same_cut_right_behind_register_loses_the_layer_without_durability_and_not_with_it(kind, figures, the_round):
    lost = {}
    for durability in ("none", "full"):
        results = [ownspace.call("powercut.py", {"kind": kind, "durability": durability, "seed": the_round.seed * 1000 + seed, "cuts": 1,
                                                 "reports": 3, "stands": True, "stir": False}, 60) for seed in range(4)]
        lost[durability] = sum(result["lost"] + result["damaged"] for result in results)
        assert all(result["returned"] == 2 for result in results)       # the store was open, and one register was done
        assert [problem for result in results for problem in result["problems"]] == []
    figures.append(f"power cuts: {kind:4} right behind register, of 4 layers lost: {lost['none']} with none, {lost['full']} with full")
    assert lost["full"] == 0
    assert lost["none"] >= 2


# ---- what "full" stands on ----------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", cutdisk.KINDS)
@pytest.mark.parametrize(("what", "how"), [("upon", "register"), ("upon", "child"), ("upon", "box"),
                                           ("behind", "register"), ("behind", "create"), ("behind", "commit")])
def test_full_keeps_its_word_upon_careless_layers_and_behind_a_rename(kind, what, how):
    assert ownspace.call("powercut.py", {"kind": kind, what: how}, 60)["problems"] == []


@pytest.mark.parametrize("kind", cutdisk.KINDS)
@pytest.mark.parametrize(("marks", "left"), [("full", [True, False]), ("none", [False, True])])
def test_what_a_release_and_a_get_said_of_a_layer_is_on_the_disk_but_without_durability(kind, marks, left):
    result = ownspace.call("powercut.py", {"kind": kind, "marks": marks}, 60)
    assert result["problems"] == [] and result["left"] == left
