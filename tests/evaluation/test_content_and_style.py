"""lib.evaluation.style against closed forms, scikit-learn and torchmetrics."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import r2_score
from sklearn.neighbors import KNeighborsClassifier
from torchmetrics.image.fid import _compute_fid

from lib.data import sources
from lib.evaluation import measure, similarities, style
from lib.runs import store


def rings(seed=0):
    """Points of two classes that no line separates, the classes, and their angle, a number."""
    generator = np.random.default_rng(seed)
    label = generator.integers(2, size=1500)
    angle = generator.uniform(-1.5, 1.5, 1500)
    radius = 1 + label + 0.1 * generator.normal(size=1500)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1), label, angle


# ------------------------------------------------------------------------------------ classifiers
def test_mlp_probe_learns_classes_that_no_line_separates():
    x, y, _ = rings()
    test_x, test_y, _ = rings(seed=1)
    predicted = style.mlp_probe(x, y, test_x)
    assert style.skill(predicted, test_y) > 0.97
    np.testing.assert_array_equal(style.mlp_probe(x, y, test_x), predicted)
    narrow = style.mlp_probe(x, y, test_x, "paper")  # as wide as the features: two units
    assert style.skill(narrow, test_y) < 0.97


def test_mlp_probe_of_numbers_is_a_regression():
    x, _, angle = rings()
    test_x, _, test_angle = rings(seed=1)
    target = 100 * test_angle + 7
    predicted = style.mlp_probe(x, 100 * angle + 7, test_x)
    assert style.skill(predicted, target) == pytest.approx(r2_score(target, predicted), rel=1e-9)
    assert style.skill(predicted, target) > 0.95
    assert style.chance(angle, test_angle) == 0
    noise = np.random.default_rng(0).normal(size=x.shape)
    assert style.skill(style.mlp_probe(noise, angle, test_x), test_angle) < 0.05


def test_a_feature_that_hardly_varies_in_training_does_not_dominate():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(2000, 8))
    y = x @ np.arange(8.0)
    rare = np.zeros((2000, 1))
    rare[:3] = 1e-2  # a pixel that three training images light a little, every test image fully
    train_x = np.c_[x, rare][:1000]
    test_x = np.c_[x, rare + 1][1000:]
    assert style.skill(style.mlp_probe(train_x, y[:1000], test_x), y[1000:]) > 0.9


def test_knn_chosen_is_scikit_learns_with_a_k_chosen_on_train():
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(5, 4))
    y = generator.integers(5, size=400)
    test_y = generator.integers(5, size=300)
    x = (centres[y] + generator.normal(size=(400, 4))).astype(np.float32)
    test_x = (centres[test_y] + generator.normal(size=(300, 4))).astype(np.float32)
    predicted, k = style.knn_chosen(x, y, test_x)
    votes = KNeighborsClassifier(k).fit(x, y).predict_proba(test_x)
    ordered = np.sort(votes, axis=1)
    untied = ordered[:, -1] > ordered[:, -2]
    assert 1 < k <= 15
    assert untied.mean() > 0.5
    np.testing.assert_array_equal(predicted[untied], votes[untied].argmax(1))
    nearest = KNeighborsClassifier(1).fit(x, y).predict(test_x)
    np.testing.assert_array_equal(style.knn_chosen(x, y, test_x, largest_k=1)[0], nearest)
    assert np.mean(predicted == test_y) > np.mean(nearest == test_y)


# ------------------------------------------------------------------------------ retention of style
def test_retentions_are_relative_to_the_pixels_of_their_set():
    skills = [
        ("raw_pixels", "set", "colour", 0.7),
        ("raw_pixels", "set", "turn", 0.6),
        ("raw_pixels", "set", "noise", 0.1),
        ("raw_pixels", "other set", "colour", 1.2),
        ("simvae", "set", "colour", 0.7),
        ("simvae", "set", "turn", 0.4),
        ("simvae", "set", "noise", 0.5),
        ("simvae", "other set", "colour", 0.7),
    ]
    rows = pd.DataFrame(skills, columns=["method", "set", "condition", "value"])
    r2 = rows.assign(metric="r2", ci_low=rows.value - 0.02, ci_high=rows.value + 0.02)
    chance = rows.assign(metric="chance", value=0.2)
    keys = ["method", "seed", "set", "condition"]
    table = style.retentions(pd.concat([r2, chance], ignore_index=True).assign(seed=0), keys)
    places = list(zip(table.set, table.condition, strict=True))
    assert places == [("other set", "colour"), ("set", "colour"), ("set", "turn")]  # no noise
    assert table.pixels.tolist() == [1.2, 0.7, 0.6]
    assert table.retention.tolist() == pytest.approx([0.5, 1, 0.5])
    half_widths = [0.02, 0.04, 0.05]
    assert (table.retention - table.retention_low).tolist() == pytest.approx(half_widths)
    assert (table.retention_high - table.retention).tolist() == pytest.approx(half_widths)


def test_a_difference_of_retention_is_the_mean_over_factors_and_paired_by_image():
    generator = np.random.default_rng(0)
    label = generator.integers(5, size=400)
    number = generator.normal(size=400)
    often = np.where(generator.uniform(size=400) < 0.6, label, 9)
    seldom = np.where(generator.uniform(size=400) < 0.5, label, 9)
    near = number + 0.3 * generator.normal(size=400)
    far = number + 0.9 * generator.normal(size=400)
    factors = [
        similarities.ProbedFactor(truth=label, first=often, second=seldom, scale=0.7),
        similarities.ProbedFactor(truth=number, first=near, second=far, scale=0.95),
    ]
    result = similarities.retention_difference(factors, draws=400)
    of_classes = (np.mean(often == label) - np.mean(seldom == label)) / 0.7
    of_numbers = (r2_score(number, near) - r2_score(number, far)) / 0.95
    assert result["difference"] == pytest.approx((of_classes + of_numbers) / 2)
    assert result["ci_low"] < result["difference"] < result["ci_high"]
    assert result["n"] == 400
    same = [similarities.ProbedFactor(truth=number, first=near, second=near, scale=0.95)]
    result = similarities.retention_difference(same, draws=20)
    assert result["difference"] == result["ci_low"] == result["ci_high"] == 0


# ----------------------------------------------------------- clusters, variances and distributions
def test_a_mixture_finds_elongated_clusters():
    label = np.arange(600) % 3
    x, test_x = np.random.default_rng(0).normal(size=(2, 600, 2)) * [1.0, 3.0]
    for points in (x, test_x):
        points[:, 0] += np.array([0, 8, 24])[label]
    scores = style.clustering_scores(x, test_x, label, 3, starts=3)
    assert min(scores.values()) > 0.97


def test_hungarian_accuracy_is_the_best_over_all_assignments():
    clusters, labels = np.random.default_rng(0).integers(4, size=(2, 200))
    accuracies = [np.mean(np.array(order)[clusters] == labels) for order in permutations(range(4))]
    best = pytest.approx(max(accuracies))
    assert style.hungarian_accuracy(clusters, labels) == best
    singles = style.hungarian_accuracy(np.arange(200), labels)
    assert singles == pytest.approx(4 / 200), "of one-image clusters one is assigned to a class"


def test_variance_within_is_the_analysis_of_variance():
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(50), 8)
    x = 3 * generator.normal(size=(50, 4))[groups] + generator.normal(size=(400, 4))
    means = np.stack([x[groups == group].mean(0) for group in range(50)])
    within = np.sum((x - means[groups]) ** 2)
    share = pytest.approx(within / (400 - 50) / x.var(0, ddof=1).sum(), rel=1e-4)
    assert style.variance_within(x, groups) == share
    rotation = np.linalg.qr(generator.normal(size=(4, 4)))[0]
    assert style.variance_within(x @ rotation * 5 + 2, groups) == share
    assert style.variance_within(means[groups], groups) == pytest.approx(0, abs=1e-6)


def test_variance_difference_is_taken_over_images():
    """Views lie 1 around images that lie 2 or 3 apart: shares of 1 / 5 and 1 / 10."""
    generator = np.random.default_rng(0)
    views = generator.normal(size=(2, 2, 800, 30))
    images = generator.normal(size=(2, 1, 800, 30))
    first = views[0] + 2 * images[0]
    second = views[1] + 3 * images[1]
    groups = np.tile(np.arange(800), 2)
    shares = [style.variance_within(np.concatenate(x), groups) for x in (first, second)]
    result = similarities.variance_difference(first, second, draws=200)
    assert result["difference"] == pytest.approx(shares[0] - shares[1])
    assert result["difference"] == pytest.approx(0.1, abs=0.01)
    assert result["ci_low"] < 0.1 < result["ci_high"] < result["ci_low"] + 0.02
    assert result["n"] == 800
    rescaled = similarities.variance_difference(first, 5 * first, draws=20)
    assert rescaled["difference"] == pytest.approx(0, abs=1e-8)


def test_frechet_distance_is_torchmetrics_and_that_of_known_gaussians():
    generator = np.random.default_rng(0)
    first = generator.normal(size=(500, 6))
    second = generator.normal(size=(700, 6)) @ generator.normal(size=(6, 6)) + 1
    moments = []
    for x in (torch.from_numpy(first), torch.from_numpy(second)):
        moments += [x.mean(0), x.T.cov()]
    theirs = _compute_fid(*moments).item()
    assert style.frechet_distance(first, second) == pytest.approx(theirs, rel=1e-6)
    assert style.frechet_distance(first, first + 2) == pytest.approx(4 * 6, rel=1e-5)
    few = 10 * generator.standard_normal((50, 200))  # fewer images than features
    assert style.frechet_distance(few, few) == pytest.approx(0, abs=1e-9)
    scaled = 4 * np.sum(first.mean(0) ** 2) + 4 * np.trace(np.cov(first.T))
    assert style.frechet_distance(first, 3 * first) == pytest.approx(scaled, rel=1e-5)


# ----------------------------------------------------------------------------------------- of a run
def test_content_is_measured_on_the_runs_features(vae_run):
    frame = pd.DataFrame(style.measure_content(vae_run)).fillna({"classifier": ""})
    values = frame.set_index(["condition", "classifier", "metric"]).value
    train = vae_run.embed(vae_run.bank)
    test = vae_run.embed(vae_run.test())
    arguments = (train["features"], train["label"], test["features"])
    predicted, k = style.knn_chosen(*arguments)
    correct = store.read_scores("smoke", vae_run.name, "digits_content")["knn_chosen_correct"]
    np.testing.assert_array_equal(correct, predicted == test["label"])
    assert values["clean", "knn_chosen", "accuracy"] == correct.mean()
    assert values["clean", "knn_chosen", "k"] == k
    predicted = style.mlp_probe(*arguments, "paper", vae_run.settings["seed"])
    assert values["clean", "mlp_paper", "accuracy"] == np.mean(predicted == test["label"])
    share = style.variance_within(test["features"], test["label"])
    assert values["classes", "", "variance_within"] == pytest.approx(share)
    _, views = measure.embed_views(vae_run, style.GROUP_VIEWS)
    features = np.concatenate([view["features"] for view in views])
    images = np.tile(np.arange(len(views[0]["label"])), style.GROUP_VIEWS)
    share = style.variance_within(features, images)
    assert values["views", "", "variance_within"] == pytest.approx(share)


def test_factors_are_probed_where_they_are_labelled(vae_run, monkeypatch):
    load = sources.load

    def load_without_some_colours(*arguments, **options):
        images = load(*arguments, **options)
        if "colour" not in images.extra:
            return images
        colour = np.where(np.arange(len(images)) % 4 == 3, -1, images.extra["colour"])
        return replace(images, extra=images.extra | {"colour": colour})

    monkeypatch.setattr(style.sources, "load", load_without_some_colours)
    run = measure.Run(vae_run.settings | {"factor_images": [400, 200]})
    frame = pd.DataFrame(style.measure_factors(run, "styled_digits"))
    frame = frame.set_index(["condition", "metric"])
    factors = {"content", "colour", "scale", "rotation", "x", "y"}
    assert set(frame.index.get_level_values("condition")) == factors
    train_y = sources.load("styled_digits", "train", image_size=16).sample(400).extra["colour"]
    test_y = sources.load("styled_digits", "test", image_size=16).sample(200).extra["colour"]
    chance = style.chance(train_y[train_y >= 0], test_y[test_y >= 0])
    assert frame.value["colour", "chance"] == pytest.approx(chance)
    assert frame.n["colour", "accuracy"] == (test_y >= 0).sum() < 200
    assert frame.value["scale", "r2"] > 0.05
