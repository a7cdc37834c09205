"""The rules of the ledger on small frames made by hand, and its entries in settings/claims.toml."""

from dataclasses import replace
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from lib.claims import ledger, recipes
from lib.claims.ledger import (
    DEVIATES,
    FOLLOWED,
    NOT_TESTED,
    OPPOSITE,
    REPRODUCED,
    SAME,
    UNDECIDED,
    Part,
)
from lib.claims.measured import Measured, Stored
from lib.runs import settings, store
from tests.stored_runs import store_run

OWN = {"dataset": "imagenette", "backbone": "resnet18", "epochs": 50}
PART = Part(
    claim="X-1",
    paper="vs1",
    where="Table 1",
    title="A beats B",
    text="A is more accurate than B",
    part="A minus B",
    published=2.0,
    side="above",
    bound=0.0,
    data=("imagenette",),
    epochs=100,
    family="resnet",
    needs="a week",
)


def verdict(part, low, high, run=OWN, counts=True, profile="standard"):
    number = Measured(value=(low + high) / 2, low=low, high=high, seeds=3, runs=(run,))
    return ledger.judge(part, number, counts, profile)[0]


# -------------------------------------------------------------------------------------- the rules
@pytest.mark.parametrize(
    ("side", "low", "high", "expected"),
    [
        ("above", 1.0, 3.0, REPRODUCED),
        ("above", 0.5, 0.6, REPRODUCED),  # the sign decides, not the printed difference
        ("above", -1.0, 3.0, UNDECIDED),
        ("above", -3.0, -1.0, OPPOSITE),
        ("below", -3.0, -1.0, REPRODUCED),
        ("below", 1.0, 3.0, OPPOSITE),
    ],
)
def test_an_interval_of_the_papers_own_experiment(side, low, high, expected):
    assert verdict(replace(PART, side=side), low, high) == expected


@pytest.mark.parametrize(
    "change", [{"dataset": "cifar10"}, {"backbone": "vit"}, {"epochs": 49}], ids=str
)
def test_under_other_conditions_it_has_the_same_direction_at_most(change):
    run = OWN | change
    assert verdict(PART, 1.0, 3.0, run) == SAME
    assert verdict(PART, -1.0, 3.0, run) == UNDECIDED
    assert verdict(PART, -3.0, -1.0, run) == OPPOSITE
    assert verdict(replace(PART, epochs=None), 1.0, 3.0) == SAME  # the paper gives no length


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (97.9, 98.6, REPRODUCED),  # 98.4 is in it
        (98.0, 98.36, REPRODUCED),  # within the printed digit
        (98.0, 98.3, SAME),  # near, but does not hold it
        (95.5, 97.0, UNDECIDED),  # the edge of what is near, 96.4, is in it
        (94.0, 96.0, OPPOSITE),
    ],
)
def test_a_level_is_compared_with_the_printed_number(low, high, expected):
    level = replace(PART, side="within", bound=2.0, published=98.4, rounding=0.05)
    assert verdict(level, low, high) == expected
    assert verdict(level, low, high, OWN | {"dataset": "cifar10"}) == NOT_TESTED


def test_an_identity_holds_up_to_its_bound_whatever_the_profile():
    identity = replace(PART, side="at_most", bound=1e-8)
    for value, expected in ((1e-9, REPRODUCED), (1e-7, OPPOSITE)):
        number = Measured(value=value, low=np.nan, high=np.nan, seeds=1)
        assert ledger.judge(identity, number, True, "smoke")[0] == expected


def test_what_is_not_tested_says_what_it_would_take():
    assert ledger.judge(PART, None, False, "standard") == (NOT_TESTED, "a week")
    assert verdict(PART, 1.0, 3.0, counts=False) == NOT_TESTED
    assert verdict(PART, np.nan, np.nan) == NOT_TESTED
    assert verdict(PART, 1.0, 3.0, profile="smoke") == NOT_TESTED


def test_a_claim_has_the_verdict_of_its_worst_tested_part():
    def claim(*parts):
        rows = pd.DataFrame({"verdict": parts})
        rows = rows.assign(
            claim="X-1", paper="vs1", title="", where="", text="", seeds=3, needs="a week"
        )
        return ledger.verdicts(rows).iloc[0]

    assert claim(REPRODUCED, SAME, NOT_TESTED).verdict == SAME
    assert claim(SAME, UNDECIDED).verdict == UNDECIDED
    assert claim(UNDECIDED, OPPOSITE).verdict == OPPOSITE
    assert claim(FOLLOWED, DEVIATES).verdict == DEVIATES
    untested = claim(NOT_TESTED, NOT_TESTED)
    assert (untested.verdict, untested.tested, untested.needs) == (NOT_TESTED, 0, "a week")


# ----------------------------------------------------------------------------- the looked-up number
def write(method, seed, value, epochs=0, dataset="cifar10", half=0.02, **more):
    """One metric of a run of profile standard, as a notebook stores it."""
    changes = {"epochs": epochs} if epochs else {}
    run = settings.resolve(method, "standard", dataset=dataset, seed=seed, **changes)
    row = {"metric": "accuracy", "classifier": "knn", "condition": "clean", "value": value}
    row |= {"ci_low": value - half, "ci_high": value + half, "n": 100, "evaluated_on": dataset}
    part = more.pop("notebook", store.SUITE)
    return store_run(run, [row | more], part)


ACCURACY = {"method": "vi_simsiam", "metric": "accuracy", "classifier": "knn"}
AGAINST = ACCURACY | {"minus": {"method": "simsiam"}}


def test_nothing_stored_is_no_number():
    assert Stored("standard").number(AGAINST, unit="points") is None
    assert Stored("standard").number({"table": "32_auroc", "value": "auroc"}) is None
    rows = ledger.ledger("standard")
    assert set(rows.verdict) <= {NOT_TESTED, FOLLOWED, DEVIATES}


def test_a_difference_of_two_methods_is_paired_by_seed():
    gaps = {0: 0.10, 1: 0.12, 2: 0.14}
    for seed, gap in gaps.items():
        write("simsiam", seed, 0.5)
        write("vi_simsiam", seed, 0.5 + gap)
    number = Stored("standard").number(AGAINST, unit="points")
    half = 4.302652729911275 * 2 / 3**0.5  # Student's t of two degrees of freedom
    assert (number.value, number.low, number.high) == pytest.approx((12, 12 - half, 12 + half))
    assert number.seeds == 3 and len(number.runs) == 6


def test_two_seeds_have_an_interval_over_images():
    for seed in (0, 1):
        write("vi_simsiam", seed, 0.6, half=0.03)
        write("simsiam", seed, 0.5, half=0.04)
    number = Stored("standard").number(AGAINST, unit="points")
    assert (number.low, number.high, number.seeds) == (pytest.approx(5), pytest.approx(15), 2)


def test_the_length_is_the_named_one_or_the_longest_that_both_have():
    for epochs, value in ((5, 0.3), (40, 0.6)):
        write("vi_simsiam", 0, value, epochs)
        write("simsiam", 0, 0.5, epochs)
    stored = Stored("standard")
    assert stored.number(AGAINST).value == pytest.approx(0.1)
    assert stored.number(AGAINST | {"epochs": 5}).value == pytest.approx(-0.2)
    assert stored.number(AGAINST | {"epochs": 20}) is None


def test_the_papers_own_data_come_first(monkeypatch):
    listed = [
        settings.resolve("vi_simsiam", "standard", dataset=dataset)
        for dataset in ("cifar10", "mnist")
    ]
    monkeypatch.setattr(settings, "runs", lambda profile: listed)
    write("vi_simsiam", 0, 0.6)
    write("vi_simsiam", 0, 0.9, dataset="mnist")
    stored = Stored("standard")
    assert stored.number(ACCURACY, ("mnist",)).value == pytest.approx(0.9)
    assert stored.number(ACCURACY, ("imagenet100",)).value == pytest.approx(0.6)


def test_a_metric_that_two_notebooks_store_counts_once_and_of_two_sets_one_is_named():
    write("vi_simsiam", 0, 0.6)
    write("vi_simsiam", 0, 0.6, notebook="20_other")
    stored = Stored("standard")
    assert stored.number(ACCURACY).seeds == 1
    write("vi_simsiam", 0, 0.7, notebook="36_other", evaluated_on="mnist (500 images)")
    with pytest.raises(ValueError, match="evaluated_on"):
        Stored("standard").number(ACCURACY)
    number = Stored("standard").number(ACCURACY | {"evaluated_on": "mnist"})
    assert number.value == pytest.approx(0.7)


def test_a_row_of_a_table():
    name = write("vi_simsiam", 0, 0.6)
    rows = pd.DataFrame({"name": ["a", "b"], "share": [0.1, 0.5], "value": [1.0, 2.0]})
    rows["runs"] = [f"{name} retired-run-seed0", ""]
    rows = rows.assign(ci_low=0.5, ci_high=2.5, seeds=3)
    store.write_csv(store.results_dir("standard") / "tables" / "99_effects.csv", rows)
    stored = Stored("standard")
    number = stored.number({"table": "99_effects", "value": "value", "name": "a", "share": 0.1})
    assert (number.value, number.low, number.high, number.seeds) == (1.0, 0.5, 2.5, 3)
    assert [run["method"] for run in number.runs] == ["vi_simsiam"]
    assert stored.number({"table": "99_effects", "value": "value", "name": "c"}) is None
    with pytest.raises(ValueError, match="2 rows"):
        stored.number({"table": "99_effects", "value": "value", "seeds": 3})


def test_a_run_counts_if_its_knn_beats_the_untrained_network():
    write("vi_simsiam", 0, 0.33)
    write("simsiam", 0, 0.6)
    number = Stored("standard").number(AGAINST)
    write("random", 0, 0.32)
    stored = Stored("standard")
    assert not stored.has_learned(number)  # 0.33 ± 0.02 includes 0.32
    assert stored.has_learned(number, may_collapse=True)  # one of the two has learned
    untrained = settings.find_runs(["random-cifar10-e0-seed0"], "standard")
    lost = [run for run in number.runs if not stored.beats_untrained[settings.run_name(run)]]
    not_beaten = replace(number, runs=(*lost, *untrained))
    assert stored.has_learned(not_beaten, may_collapse=True)  # which is what it says
    assert not stored.has_learned(not_beaten)
    write("random", 0, 0.25)
    stored = Stored("standard")
    assert stored.has_learned(number)
    assert not stored.has_learned(replace(number, has_learned=False))


# ----------------------------------------------------------------------------------- the entries
def test_every_claim_can_be_read_and_says_what_a_test_takes():
    for parts in ledger.claims().values():
        for part in parts:
            assert part.paper in settings.PAPERS
            assert part.recipe or part.needs, part.claim
            assert part.recipe == "" or part.settings
            assert not (part.side == "within" and np.isnan(part.published)), part.claim


def test_printed_numbers_keep_their_digits():
    assert ledger._printed_number(Decimal("0.900")) == (0.9, pytest.approx(0.0005))
    difference = {"of": Decimal("90.7"), "minus": Decimal("88.2")}
    assert ledger._printed_number(difference) == (pytest.approx(2.5), pytest.approx(0.1))
    ratio, rounding = ledger._printed_number({"of": 13087, "over": 170})
    assert ratio == pytest.approx(13087 / 170)
    assert rounding == pytest.approx(ratio * (0.5 / 13087 + 0.5 / 170))
    assert ledger.printed_table("SV-1").loc["SimVAE", "MNIST"] == 98.4


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"ours": {"method": "byol"}}, "give one of"),
        ({"published": 1, "abvoe": 0}, "abvoe"),
    ],
)
def test_a_part_that_cannot_be_judged_is_refused(monkeypatch, change, named):
    entry = dict.fromkeys(("title", "where", "text"), "")
    entry |= {"paper": "vs1", "parts": [{"part": "a"} | change]}
    monkeypatch.setattr(ledger, "_entries", lambda: {"X-1": entry})
    with pytest.raises(ValueError, match=named):
        ledger.claims()


# ------------------------------------------------------------------------------------------ recipes
def test_a_recipe_is_followed_or_deviates():
    recipe = settings.recipe("simsiam")
    kept = recipes.compare("simsiam", {"batch_size": recipe["batch_size"]})
    assert kept.followed.all()
    other = recipes.compare("simsiam", {"batch_size": -1, "unheard_of": 3})
    assert other[["setting", "published", "followed"]].values.tolist() == [
        ["batch_size", -1, False],
        ["unheard_of", 3, False],
    ]
