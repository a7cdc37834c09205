"""The drift gate: what moves further than its tolerance, is missing, is new or is not a number is reported, and nothing else."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from lib.pipeline import drift
from lib.pipeline import jobs as reproduction
from lib.runs import store as artifacts

ROW = {
    "method": "simsiam",
    "trained_on": "digits",
    "variant": "e1",
    "evaluated_on": "digits",
    "condition": "clean",
    "classifier": "linear",
    "score": "",
    "metric": "accuracy",
    "value": 0.8,
    "ci_low": 0.76,
    "ci_high": 0.84,
    "n": 400,
    "seed": 0,
    "profile": "smoke",
    "notebook": "10_pretraining",
}
RANK = ROW | {
    "classifier": "",
    "metric": "effective_rank",
    "value": 10.0,
    "ci_low": np.nan,
    "ci_high": np.nan,
}
OTHER = ROW | {"seed": 1}


@pytest.fixture
def expected(tmp_path, monkeypatch):
    """Three numbers of two seeds, stored and accepted; returns a function that stores other numbers in their place."""
    monkeypatch.setattr(
        drift, "expected_path", lambda profile: tmp_path / f"expected_{profile}.csv"
    )

    def store(*rows):
        for path in (artifacts.results_dir("smoke") / "metrics").glob("*.csv"):
            path.unlink()
        for seed in {row["seed"] for row in rows}:
            artifacts.write_metrics(
                "smoke",
                drift.MEASURED_BY,
                f"simsiam-seed{seed}",
                [row for row in rows if row["seed"] == seed],
            )

    store(ROW, RANK, OTHER)
    drift.accept("smoke")
    return store


def outside(**options):
    table = drift.compare("smoke", **options)
    return [(row.metric, row.seed) for row in table[~table.within].itertuples()]


def test_the_tolerance_is_the_floor_or_share_and_the_sampling_error(expected):
    tolerance = drift.compare("smoke").set_index(["metric", "seed"]).tolerance
    assert tolerance["accuracy", 0] == pytest.approx(0.08 + 2 * 0.04)
    assert tolerance["effective_rank", 0] == pytest.approx(0.5 * 10)


@pytest.mark.parametrize(
    "move, reported",
    [(0.0, False), (0.159, False), (-0.159, False), (0.161, True), (-0.161, True), (np.nan, True)],
)
def test_what_moves_too_far_is_reported(expected, move, reported):
    expected(ROW | {"value": 0.8 + move}, RANK, OTHER)
    assert outside() == [("accuracy", 0)] * reported
    said = drift.report(drift.compare("smoke"), "smoke")
    assert f"Drift: {3 - reported} of 3 numbers" in said and ("--accept" in said) == reported
    assert (
        "simsiam e1 seed 0 digits linear accuracy: expected 0.8 ± 0.16, stored" in said
    ) == reported


@pytest.fixture
def trained_in(monkeypatch):
    """Says in which precision the runs of seed 0 and of seed 1 were trained."""

    def say(*precisions):
        configs = {
            str(seed): {"run_hash": f"of seed {seed}", "precision": precision}
            for seed, precision in enumerate(precisions)
        }
        monkeypatch.setattr(artifacts, "run_configs", lambda profile: configs)
        return [row | {"run_hash": f"of seed {row['seed']}"} for row in (ROW, RANK, OTHER)]

    return say


@pytest.mark.parametrize(
    "precision, move, reported",
    [
        ("float32", 0.161, True),
        ("bf16", 0.161, False),
        ("bf16", 0.319, False),
        ("bf16", 0.321, True),
    ],
)
def test_a_run_in_another_precision_may_move_twice_as_far(
    expected, trained_in, precision, move, reported
):
    rows = trained_in("float32", "float32")
    expected(*rows)
    drift.accept("smoke")
    trained_in(precision, "float32")
    expected(rows[0] | {"value": 0.8 - move}, *rows[1:])
    assert outside() == [("accuracy", 0)] * reported
    said = drift.report(drift.compare("smoke"), "smoke")
    assert (
        "2 are of runs trained in bf16, expected in float32: their tolerances are 2 times as large"
        in said
    ) == (precision == "bf16")


def test_what_several_processors_gave_is_expected_from_end_to_end(expected, trained_in):
    rows = trained_in("float32", "float32")
    expected(*rows)
    drift.accept("smoke")
    trained_in("bf16", "float32")
    expected(rows[0] | {"value": 0.5, "ci_low": 0.45, "ci_high": 0.55}, *rows[1:])
    assert outside() == []  # in another precision it may
    drift.accept("smoke", widen=True)
    seen = drift.compare("smoke").set_index(["metric", "seed"])
    assert tuple(seen.loc[("accuracy", 0), list(drift.EXPECTED)]) == (
        0.5,
        0.8,
        pytest.approx(0.08 + 2 * 0.05),
        2,
        "bf16 float32",
    )
    assert tuple(seen.loc[("accuracy", 1), list(drift.EXPECTED)]) == (
        0.8,
        0.8,
        pytest.approx(0.16),
        2,
        "float32",
    )
    for value, reported in (
        (0.5, False),
        (0.321, False),
        (0.319, True),
        (0.979, False),
        (0.981, True),
        (0.65, False),
    ):
        expected(rows[0] | {"value": value}, *rows[1:])
        assert outside() == [("accuracy", 0)] * reported, value
    expected(rows[0] | {"value": 0.319}, *rows[1:])
    assert "accuracy: expected 0.5 to 0.8 ± 0.18, stored 0.319" in drift.report(
        drift.compare("smoke"), "smoke"
    )
    trained_in("float32", "bf16")
    expected(*rows)
    assert drift.compare("smoke").unlike.tolist() == [False, False, True]


@pytest.mark.parametrize(
    "rows, state",
    [
        ((ROW, RANK), "is expected and not stored.*'seed': 1"),
        ((ROW, RANK, OTHER, RANK | {"seed": 1}), "is stored and not expected.*'effective_rank'"),
    ],
)
def test_only_the_same_numbers_are_widened(expected, rows, state):
    before = drift.expected_path("smoke").read_bytes()
    expected(*rows)
    with pytest.raises(ValueError, match=f"of 1, this one {state}"):
        drift.accept("smoke", widen=True)
    assert drift.expected_path("smoke").read_bytes() == before


def test_what_is_missing_or_new_is_reported(expected):
    expected(ROW, OTHER)
    assert outside() == [("effective_rank", 0)]
    expected(ROW, RANK, OTHER, OTHER | {"metric": "nll"})
    assert outside() == [("nll", 1)]
    expected(
        ROW,
        RANK,
        OTHER,
        OTHER | {"metric": "nll", "condition": "blur-3"},
        OTHER | {"metric": "spearman"},
    )
    assert outside() == []


def test_of_a_part_only_its_own_runs_are_asked(expected):
    expected(ROW, RANK)
    assert outside() == [("accuracy", 1)] and outside(whole=False) == []
    expected(ROW)
    assert outside(whole=False) == [("effective_rank", 0)]


def test_what_drifts_is_a_failure_of_the_command_and_of_make_reproduce(
    expected, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["drift", "smoke"])
    assert (drift.main(), reproduction._compare_with_expected("smoke", "all")) == (0, 0)
    expected(ROW | {"value": 0.5}, RANK, OTHER)
    assert (drift.main(), reproduction._compare_with_expected("smoke", "all")) == (
        1,
        reproduction.DRIFTED,
    ) and reproduction.DRIFTED != 0
    assert capsys.readouterr().out.count("linear accuracy: expected 0.8 ± 0.16, stored 0.5") == 2
    assert reproduction._compare_with_expected("standard", "all") == 0  # it has none


def test_nothing_stored_or_not_a_number_is_not_accepted(expected):
    before = drift.expected_path("smoke").read_bytes()
    expected(ROW | {"value": np.nan})
    with pytest.raises(ValueError, match="Not a number cannot be expected.*accuracy"):
        drift.accept("smoke")
    expected()
    with pytest.raises(
        FileNotFoundError, match="no stored metrics: run make reproduce PROFILE=smoke"
    ):
        drift.accept("smoke")
    assert drift.expected_path("smoke").read_bytes() == before


def test_a_profile_without_expected_values_is_refused():
    with pytest.raises(ValueError, match="Profile 'standard' has no expected values"):
        drift.expected_path("standard")
    assert not drift.has_expected("standard") and drift.has_expected("quick")


def test_committed_results_of_quick_are_the_expected_ones():
    """Through the door, on the results in this checkout."""
    done = subprocess.run(
        [sys.executable, "-m", "lib.pipeline.drift", "quick"],
        cwd=artifacts.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "numbers are as expected" in done.stdout, (
        done.stdout + done.stderr
    )


@pytest.mark.parametrize("profile", drift.PROFILES)
def test_expected_values_can_tell(profile):
    """Nothing is so wide that a classifier which guesses among ten classes would pass for one that was expected to be good."""
    table = pd.read_csv(drift.expected_path(profile))
    assert (
        len(table) > 50
        and table[["lowest", "highest"]].notna().all(axis=None)
        and (table.tolerance > 0).all()
    )
    good = table[(table.metric == "accuracy") & (table.highest > 0.5)]
    assert len(good) > 5 and (good.lowest - good.tolerance > 0.2).all()


def test_another_seed_is_within_the_tolerances():
    """Another processor moves a number at most as far as another seed does; of quick's two seeds nearly every number is within."""
    table = pd.read_csv(drift.expected_path("quick")).fillna("")
    keys = [key for key in drift.KEYS if key != "seed"]
    pairs = table[table.seed == 0].merge(table[table.seed == 1], on=keys)
    apart = np.maximum(pairs.lowest_x - pairs.highest_y, pairs.lowest_y - pairs.highest_x)
    assert len(pairs) > 20 and (apart <= pairs.tolerance_x).mean() > 0.95
