"""The benchmark on a small results folder made by hand."""

import pytest
from scipy import stats

from lib.claims import tables
from lib.evaluation import results
from lib.runs import settings
from tests.stored_runs import store_run

ACCURACY = {"vi_simsiam": 0.6, "simsiam": 0.5, "random": 0.3, "raw_pixels": 0.4}
SCORES = {"uncertainty": 0.7, "feature_norm": 0.6, "knn_distance": 0.65, "max_softmax": 0.8}


def write(method, seed, accelerator="none"):
    """Metrics and config.json of one run of profile standard; value + 0.01 a seed."""
    run = settings.resolve(method, "standard", seed=seed)

    def row(metric, value, **more):
        value += 0.01 * seed
        entry = {"metric": metric, "classifier": "linear", "condition": "clean", "n": 100}
        entry |= {"value": value, "ci_low": value - 0.05, "ci_high": value + 0.05}
        return entry | {"evaluated_on": "cifar10"} | more

    rows = [row("accuracy", ACCURACY[method])]
    rows.append(row("accuracy", ACCURACY[method], classifier="knn"))
    rows += [row("correctness_auroc", value, score=score) for score, value in SCORES.items()]
    foreign = {"classifier": "", "condition": "far_ood", "score": "uncertainty"}
    rows.append(row("ood_auroc", 0.9, evaluated_on="mnist", **foreign))
    rows.append(row("ood_auroc", 0.7, evaluated_on="fashion_mnist", **foreign))
    cost = {"images_per_second": 10.0, "seconds": 100.0 * (seed + 1)}
    store_run(run, rows, hardware={"accelerator": accelerator}, **cost)


@pytest.fixture
def values():
    for method in ("vi_simsiam", "simsiam", "random"):
        for seed in range(3):
            write(method, seed)
    write("raw_pixels", 0)
    return tables.measurements("standard")


def test_the_table_has_means_over_seeds_with_the_one_interval(values):
    table = tables.benchmark(values).set_index(["method", "score", "measure"])
    row = table.loc["vi_simsiam", "uncertainty", "linear_accuracy"]
    expected = stats.t.interval(0.95, 2, 0.61, stats.sem([0.6, 0.61, 0.62]))
    assert row.value == pytest.approx(0.61)
    assert (row.ci_low, row.ci_high) == pytest.approx(expected)
    assert (row.seeds, row.n) == (3, 100)
    one = table.loc["raw_pixels", "uncertainty", "linear_accuracy"]
    assert (one.ci_low, one.ci_high, one.seeds) == (pytest.approx(0.35), pytest.approx(0.45), 1)


def test_raw_pixels_and_untrained_networks_are_rows_and_other_data_a_mean(values):
    table = tables.benchmark(values)
    assert set(table.method) == set(ACCURACY)
    foreign = table.query("method == 'simsiam' and measure == 'far_ood_auroc'")
    assert foreign.value.item() == pytest.approx(0.81)


def test_cost_is_of_runs_on_what_most_were_trained_on(values):
    seconds = tables.benchmark(values).query("measure == 'training_seconds'").set_index("method")
    assert seconds.value["simsiam"] == pytest.approx(200)
    assert "random" not in seconds.index  # not trained
    write("simsiam", 2, accelerator="a GPU")
    again = tables.benchmark(tables.measurements("standard"))
    seconds = again.query("measure == 'training_seconds'").set_index("method")
    assert (seconds.value["simsiam"], seconds.seeds["simsiam"]) == (pytest.approx(150), 2)


def test_own_uncertainty_is_compared_with_scores_of_the_same_network(values):
    against = tables.against_trivial(values)
    # SimSiam has no uncertainty of its own
    assert set(against.method) == {"vi_simsiam"}
    row = against.set_index(["measure", "minus"]).loc["linear_correctness_auroc", "max_softmax"]
    assert row.difference == pytest.approx(-0.1)
    assert (row.ci_low, row.ci_high, row.seeds) == (pytest.approx(-0.1), pytest.approx(-0.1), 3)


def test_a_method_has_learned_if_every_seed_beats_the_untrained_network(values, monkeypatch):
    def learned():
        beats = results.beats_untrained(tables.runs("standard"))
        return beats.groupby("method").all().to_dict()

    assert learned() == {"simsiam": True, "vi_simsiam": True}
    monkeypatch.setitem(ACCURACY, "simsiam", 0.34)
    write("simsiam", 1)  # 0.35 ± 0.05; the untrained network has 0.31
    assert learned() == {"simsiam": False, "vi_simsiam": True}
