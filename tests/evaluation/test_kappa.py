"""lib.evaluation.kappa: which runs are shown, κ of other sets, augmented κ, chosen images."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from lib.evaluation import kappa
from lib.runs import settings, store
from tests.stored_runs import store_run

KAPPA = np.array([3.0, 9.0, 1.0, 7.0, 5.0, 8.0, 2.0, 6.0])
LABELS = np.array([0, 0, 0, 0, 0, 0, 1, 1])


# --------------------------------------------------------------------------- which runs are shown
@pytest.fixture
def stored():
    """Store one metrics row of a run of profile standard, as if it had been measured."""

    def measured(method, **changes):
        run = settings.resolve(method, "standard", **changes)
        store_run(run, [{"metric": "accuracy", "value": 0.5}])
        return run

    return measured


def names(runs):
    return [settings.run_name(run) for run in runs]


def test_the_median_run_of_each_set_is_the_lower_of_two():
    mean = {"a": 1.0, "b": 3.0, "c": 2.0, "d": 5.0, "e": 4.0}
    sets = {"a": "x", "b": "x", "c": "x", "d": "y", "e": "y"}
    images = pd.DataFrame({"run": 2 * list(mean)})
    images["dataset"] = images.run.map(sets)
    images["kappa"] = images.run.map(mean) + np.repeat([-0.5, 0.5], 5)
    assert kappa.median_runs(images).to_dict() == {"x": "c", "y": "e"}


def test_of_each_set_one_form_at_its_longest_training_is_shown(stored):
    expected = [stored("vi_simsiam", seed=seed) for seed in (0, 1)]
    stored("vi_simsiam", epochs=5)
    stored("simsiam")
    stored("vi_simsiam", dataset="imagenette", epochs=50)
    stored("vi_simsiam_2022", dataset="imagenette", epochs=50)
    expected.append(stored("vi_simsiam_2022", dataset="imagenette", epochs=100))
    other_rate = {"learning_rate": 1e-3, "batch_size": 64, "divide_loss": False}
    stored("vi_simsiam_2022", dataset="imagenette", epochs=100, **other_rate)
    assert names(kappa.shown_runs("standard")) == names(expected)


def test_simsiam_beside_a_run_has_its_data_length_and_views_at_the_usual_rate(stored):
    shown = [stored("vi_simsiam"), stored("vi_simsiam_2022", dataset="imagenette", epochs=50)]
    stored("simsiam", epochs=5)
    expected = [stored("simsiam", seed=seed) for seed in (0, 1)]
    expected.append(stored("simsiam", dataset="imagenette", epochs=50, local_views=6))
    rate = {"learning_rate": 1e-3, "batch_size": 64}
    stored("simsiam", dataset="imagenette", epochs=50, local_views=6, **rate)
    assert names(kappa.simsiam_beside(shown)) == names(expected)


@pytest.mark.parametrize("profile", ["smoke", "quick", "standard", "paper"])
def test_every_profile_has_simsiam_beside_vi_simsiam(profile, monkeypatch):
    monkeypatch.setattr(kappa, "required", lambda runs, profile: runs)  # all are measured
    shown = kappa.shown_runs(profile)
    beside = kappa.simsiam_beside(shown)
    assert {run["dataset"] for run in beside} == {run["dataset"] for run in shown}


# -------------------------------------------------------------------------------------- other sets
def test_kappa_of_other_sets_is_that_of_the_network_and_read_by_set(run, frame):
    with pytest.raises(FileNotFoundError, match="PROFILE=smoke"):
        kappa.read_by_set([run.settings | {"seed": 5}])
    rows = pd.DataFrame(kappa.measure_distribution(run))
    generated = run.embed(run.other("generated"))["kappa"]
    rows = rows[rows.condition == "other set"].set_index("metric")
    assert set(rows.evaluated_on) == {"generated"}
    assert rows.value["mean"] == pytest.approx(generated.mean())
    digits = run.embed(run.test())["kappa"]
    ahead = stats.mannwhitneyu(digits, generated).statistic / (len(digits) * len(generated))
    assert rows.value["ood_auroc"] == pytest.approx(ahead)
    images = kappa.read_by_set([run.settings])
    assert set(images.dataset) == {"digits"}
    for name, expected in (("digits", digits), ("generated", generated)):
        read = images.kappa[images.evaluated_on == name]
        np.testing.assert_allclose(read, expected, rtol=1e-6)


# ----------------------------------------------------------------------------------- augmentations
def test_kappa_under_augmentations_is_that_of_the_same_images(run, frame):
    rows = pd.DataFrame(kappa.measure_augmentation(run)).set_index(["condition", "metric"]).value
    stored = store.read_scores("smoke", run.name, "digits_augmented")
    few = run.test().sample(run.settings["condition_images"])
    crops = kappa.fixed_crops(few.batch(range(len(few))).float() / 255)
    assert set(crops) == {"plain", *(f"{place} square" for place in kappa.PLACES)}
    for name, images in crops.items():
        with torch.no_grad():
            expected = run.method.embed(images).native["kappa"]
        np.testing.assert_allclose(stored[name], expected, rtol=1e-5)
    draws = []
    for draw in range(kappa.VIEWS_PER_AUGMENTATION):
        view = kappa.random_view("random crop", run.settings["seed"], draw)
        with torch.no_grad():
            draws.append(run.method.embed(view(crops["plain"])).native["kappa"].numpy())
    assert rows["random crop", "std"] == pytest.approx(np.std(draws), rel=1e-4)
    difference = (stored["blur"].astype(float) - stored["plain"]).mean()
    assert rows["blur", "mean_difference"] == pytest.approx(difference)
    higher = stored["centre square"] > stored["right square"]
    assert rows["centre against right", "share_higher"] == higher.mean()


def test_changes_are_relative_to_the_plain_images_of_the_same_run():
    rows = pd.DataFrame(
        [
            (0, "plain", "mean", 200.0, np.nan, np.nan),
            (0, "blur", "mean_difference", -50.0, -60.0, -40.0),
            (0, "random crop against the others", "mean_difference", 1.0, 0.0, 2.0),
            (1, "plain", "mean", 400.0, np.nan, np.nan),
            (1, "blur", "mean_difference", 40.0, 20.0, 60.0),
        ],
        columns=["seed", "condition", "metric", "value", "ci_low", "ci_high"],
    )
    change = kappa.relative_change(rows.assign(dataset="cifar10"))
    assert change.condition.tolist() == ["blur", "blur"]
    ours = change[["seed", "value", "ci_low", "ci_high"]].to_numpy().tolist()
    assert ours == [[0, -0.25, -0.3, -0.2], [1, 0.1, 0.05, 0.15]]


# ---------------------------------------------------------------------------------- data selection
@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("highest κ", [1, 5, 3, 7]),
        ("lowest κ", [2, 6, 0, 4]),
        ("highest κ in each class", [1, 5, 3, 7]),
        ("lowest κ in each class", [2, 0, 4, 6]),
    ],
)
def test_a_rule_chooses_by_kappa(rule, expected):
    assert kappa.select(KAPPA, LABELS, 0.5, rule, seed=0).tolist() == expected


def test_a_random_choice_depends_on_the_seed_only():
    first = kappa.select(KAPPA, LABELS, 0.5, "random", seed=0)
    assert len(set(first)) == 4
    assert first.tolist() == kappa.select(-KAPPA, LABELS, 0.5, "random", seed=0).tolist()
    others = [kappa.select(KAPPA, LABELS, 0.5, "random", seed=seed).tolist() for seed in range(9)]
    assert len(set(map(tuple, others))) > 1


def test_a_random_choice_can_have_the_classes_of_the_highest_kappa():
    generator = np.random.default_rng(0)
    labels = generator.integers(3, size=300)
    values = generator.random(300) + labels
    highest = kappa.select(values, labels, 0.4, "highest κ", seed=1)
    alike = kappa.select(values, labels, 0.4, "random, classes as highest κ", seed=1)
    np.testing.assert_array_equal(np.sort(labels[alike]), np.sort(labels[highest]))
    assert set(alike) != set(highest)
