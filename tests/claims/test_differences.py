"""lib.claims.differences: which stored runs are compared, and paired differences."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lib.claims import differences
from lib.runs import settings, store
from tests.stored_runs import store_run


# -------------------------------------------------------------------------------- what is compared
def test_prosmin_is_compared_on_its_own_backbone_only():
    methods = ("prosmin", "dino", "moco_v3", "prosmin_vit", "dino_vit", "simsiam")
    runs = [settings.resolve(method, "smoke") for method in methods]
    assert differences.prosmin_pairs(runs) == [
        ("prosmin", "dino"),
        ("prosmin", "moco_v3"),
        ("prosmin_vit", "dino_vit"),
    ]
    assert differences.prosmin_pairs(runs[1:3]) == []


def test_runs_of_an_ablation_are_named_by_what_they_change():
    changes = {"learning_rate": 0.03, "directional_freedom": 1e5}
    runs = {
        "vje": settings.resolve("vje", "smoke"),
        "vje likelihood product": settings.resolve("vje", "smoke", likelihood="product"),
        "vje directional_freedom 100000, learning_rate 0.03": settings.resolve(
            "vje", "smoke", **changes
        ),
        "random": settings.resolve("random", "smoke"),
    }
    names = {settings.run_name(run): name for name, run in runs.items()}
    assert differences.variants(list(runs.values())) == names


def test_the_best_of_a_tuning_is_chosen_once_all_of_it_is_run():
    rates = [run for run in settings.tuning_runs("standard") if run["method"] == "vicreg"]
    for place, run in enumerate(rates):
        if place == len(rates) - 1:
            assert not differences.tuning("standard").chosen.any()
        accuracy = 0.4 if place == 1 else 0.3
        row = {"metric": "accuracy", "classifier": "knn", "value": accuracy}
        store_run(run, [row, {"metric": "effective_rank", "value": 10.0 + place}])
    table = differences.tuning("standard")
    (best,) = table[table.chosen].itertuples()
    assert (best.method, best.value) == ("vicreg", rates[1]["learning_rate"])
    assert best.validation_knn_percent == pytest.approx(40)


def test_temperatures_are_compared_with_the_usual_one():
    assert differences.sharpening("smoke").empty
    accuracy = {0.04: 0.5, 0.2: 0.4}
    for run in settings.runs("smoke", group="sharpening"):
        value = accuracy[run["teacher_temperature"]]
        row = {"condition": "clean", "metric": "accuracy", "classifier": "knn", "n": 10}
        interval = {"value": value, "ci_low": value - 0.03, "ci_high": value + 0.03}
        name = store_run(run, [row | interval])
        log = pd.DataFrame({"entropy": [2.0, 1.0], "entropy_of_mean": [3.0, 2.5]})
        store.write_csv(store.run_dir("smoke", name) / "log.csv", log)
    table = differences.sharpening("smoke").set_index("temperature")
    assert table.points_behind.to_dict() == pytest.approx({0.04: 0, 0.2: 10})
    assert table.ci_high[0.2] == pytest.approx(10 + 3 * 2**0.5)
    assert table.entropy[0.2] == 1


# -------------------------------------------------------------------------------------- differences
def accuracies(method, levels, **columns):
    """Stored accuracies of a method, one a seed, each ± 0.01."""
    rows = pd.DataFrame({"method": method, "seed": range(len(levels)), "value": levels})
    rows["run"] = [f"{method}-{seed}" for seed in rows.seed]
    interval = {"ci_low": rows.value - 0.01, "ci_high": rows.value + 0.01, "n": 100}
    return rows.assign(dataset="mnist", **interval).assign(**columns)


def test_pairs_of_methods_are_compared_within_a_seed():
    rows = pd.concat(
        [accuracies("vje", [0.9, 0.8, 0.9]), accuracies("simsiam", [0.7, 0.7, 0.6, 0.1])]
    )
    pairs = [("vje", "simsiam"), ("vje", "byol")]
    (row,) = differences.over_pairs(rows, pairs, "dataset", scale=100).itertuples()
    low, high = stats.t.interval(0.95, 2, 20, stats.sem([20, 10, 30]))
    assert (row.method, row.minus, row.seeds) == ("vje", "simsiam", 3)
    assert (row.difference, row.ci_low, row.ci_high) == pytest.approx((20, low, high))
    assert row.runs == "vje-0 vje-1 vje-2 simsiam-0 simsiam-1 simsiam-2"
    assert differences.over_pairs(rows, pairs[1:], "dataset").empty


def test_one_method_minus_each_other_is_paired_by_seed():
    rows = pd.concat(
        [
            accuracies("simvae", [0.9, 0.8, 0.7]),
            accuracies("vae", [0.8, 0.6, 0.4, 0.1]),
            accuracies("vae", [0.5], dataset="digits"),
        ]
    )
    (row,) = differences.minus_others(rows, "simvae", "dataset", scale=100).itertuples()
    low, high = stats.t.interval(0.95, 2, 20, stats.sem([10, 20, 30]))
    assert (row.dataset, row.method, row.other, row.seeds) == ("mnist", "simvae", "vae", 3)
    assert (row.difference, row.ci_low, row.ci_high) == pytest.approx((20, low, high))


def test_a_setting_changes_accuracy_from_its_smallest_to_its_largest_value():
    rows = pd.concat(
        [
            accuracies("simvae", [0.5, 0.6], views=2),
            accuracies("simvae", [0.9], views=4),
            accuracies("simvae", [0.7, 0.9], views=10),
            accuracies("simvae", [0.8, 0.9], views=10),  # by another classifier
            accuracies("vae", [0.5], views=1),
        ]
    )
    changes = differences.setting_changes(rows, "views")
    assert changes.value.tolist() == pytest.approx([25, 30])
    assert (changes.ci_high - changes.value).tolist() == pytest.approx([np.sqrt(2)] * 2)
    assert changes[["method", "lowest", "highest"]].values.tolist() == [["simvae", 2, 10]] * 2
    assert differences.setting_changes(rows[rows.method == "vae"], "views").empty


def correct_images():
    """Which of 4,000 images the MLP probes of some methods get right, and their accuracy [%]."""
    chances = {"simvae": 0.55, "vae": 0.5, "beta_vae": 0.4, "simclr_latent": 0.7}
    chances["random_latent"] = 0.9
    generator = np.random.default_rng(0)
    hardness = generator.uniform(size=4000)
    frames = []
    for method, chance in chances.items():
        for seed in range(3 if method == "simvae" else 2):
            hits = hardness + generator.normal(scale=0.05, size=4000) < chance
            frame = pd.DataFrame({"index": range(4000), "mlp_paper_correct": hits})
            place = {"dataset": "mnist", "method": method, "seed": seed}
            frames.append(frame.assign(run=f"{method}-{seed}", **place))
    scores = pd.concat(frames, ignore_index=True)
    return scores, 100 * scores.groupby(["method", "seed"]).mlp_paper_correct.mean()


def test_the_share_of_a_gap_that_a_method_closes():
    scores, percent = correct_images()
    (row,) = differences.content_gaps(scores, "simvae", draws=200).itertuples()
    assert (row.lower, row.upper, row.seeds, row.n) == ("vae", "simclr_latent", 2, 4000)
    assert row.upper_percent == pytest.approx(percent.simclr_latent.mean())
    ours, lower, upper = (percent[name][:2] for name in ("simvae", "vae", "simclr_latent"))
    assert row.share == pytest.approx(((ours - lower) / (upper - lower)).mean())
    assert row.ci_low < 0.25 < row.ci_high
    without_predictive = scores[scores.method != "simclr_latent"]
    assert differences.content_gaps(without_predictive, "simvae", draws=10).empty
    within_chance = scores[scores.method == "vae"].assign(method="simclr_latent")
    wrong = within_chance.index[~within_chance.mlp_paper_correct]
    within_chance.loc[wrong[:2], "mlp_paper_correct"] = True
    both = pd.concat([without_predictive, within_chance])
    assert differences.content_gaps(both, "simvae", draws=100).empty
