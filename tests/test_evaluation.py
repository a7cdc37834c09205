from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from torch import nn

from lib.evaluation import probes as evaluation
from lib.evaluation import uncertainty
from lib.runs.store import write_metrics, write_npz

COLUMNS = (
    "method, trained_on, variant, evaluated_on, condition, classifier, score, metric, value, ci_low, ci_high, n, seed, profile, notebook, "
    "run_hash, commit"
)


class Images(SimpleNamespace):
    """An image set of random pixels."""

    def batch(self, indices):
        return torch.as_tensor(self.images[indices]).permute(0, 3, 1, 2)


def images(n=25, seed=0):
    generator = np.random.default_rng(seed)
    pixels = generator.integers(256, size=(n, 6, 6, 3), dtype=np.uint8)
    return Images(name="random", split="test", images=pixels, labels=generator.integers(3, size=n))


class Dummy(nn.Module):
    """A method with dropout and batch norm, so that the mode matters, and a part that stays in eval mode."""

    def __init__(self, native=None):
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(
            nn.Flatten(), nn.Linear(108, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)
        )
        self.frozen = nn.BatchNorm1d(8)
        self.frozen.eval()
        self.native = native or (lambda x: {"kappa": x.exp()[:, 0], "direction": x[:, :4]})

    def embed(self, batch):
        assert not torch.is_grad_enabled() and batch.is_contiguous(
            memory_format=torch.channels_last
        )
        features = self.network(batch)
        return SimpleNamespace(
            features=features, uncertainty=-features.norm(dim=1), native=self.native(features)
        )


def clusters(n, seed=0, classes=4, dimension=6, spread=1.0):
    """Labelled Gaussian clusters, and κ that is lower in the wider ones, as an embedding."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=n)
    centres = 2 * np.random.default_rng(99).normal(size=(classes, dimension))
    width = spread * generator.uniform(0.3, 2.5, size=n)
    features = (centres[labels] + width[:, None] * generator.normal(size=(n, dimension))).astype(
        np.float32
    )
    kappa = 1e3 / width**2
    return {"features": features, "uncertainty": -kappa, "label": labels, "kappa": kappa}


# ------------------------------------------------------------------------------------------------------------ embedding


def test_embed_equals_direct_computation_and_restores_the_mode():
    method, image_set = Dummy().train(), images()
    method.frozen.eval()
    embedded = evaluation.embed(method, image_set, batch_size=7)
    assert method.training and method.network[3].training and not method.frozen.training
    method.eval()
    with torch.no_grad():
        expected = method.network(
            torch.as_tensor(image_set.images).permute(0, 3, 1, 2).float() / 255
        )
    np.testing.assert_allclose(embedded["features"], expected, atol=1e-6)
    np.testing.assert_allclose(embedded["uncertainty"], -expected.norm(dim=1), atol=1e-6)
    np.testing.assert_allclose(embedded["kappa"], expected.exp()[:, 0], rtol=1e-5)
    np.testing.assert_array_equal(embedded["label"], image_set.labels)
    assert {name: (values.dtype.name, values.ndim) for name, values in embedded.items()} == {
        "features": ("float32", 2),
        "uncertainty": ("float64", 1),
        "kappa": ("float64", 1),
        "direction": ("float32", 2),
        "label": ("int64", 1),
    }


def test_embed_applies_the_transform_to_images_in_0_to_1():
    seen = []

    def darken(batch):
        seen.append((batch.min().item(), batch.max().item(), batch.dtype))
        return batch * 0

    embedded = evaluation.embed(Dummy(), images(), transform=darken)
    assert np.ptp(embedded["features"], axis=0).max() == 0
    assert seen[0][0] >= 0 and 0.9 < seen[0][1] <= 1 and seen[0][2] == torch.float32


def test_embed_restores_the_mode_after_an_error_too():
    method = Dummy()
    with pytest.raises(RuntimeError):
        evaluation.embed(method, images(), transform=lambda batch: batch[:, :1])
    assert method.training and not method.frozen.training


@pytest.mark.parametrize(
    ("native", "message"),
    [
        (lambda x: {"kappa": x[:, :1]}, "native kappa must be"),
        (lambda x: {"kappa": x[:-1, 0]}, "native kappa must be"),
        (lambda x: {"label": x[:, 0]}, "rename"),
        (lambda x: {"kappa": x[:, 0] * float("nan")}, "NaN in kappa"),
    ],
)
def test_embed_refuses_what_it_cannot_store(native, message):
    with pytest.raises(ValueError, match=message):
        evaluation.embed(Dummy(native), images())


def test_embed_refuses_an_uncertainty_column_and_an_empty_set():
    method = Dummy()
    method.embed = lambda batch: SimpleNamespace(
        features=batch.flatten(1), uncertainty=batch.flatten(1)[:, :1], native={}
    )
    with pytest.raises(ValueError, match=r"uncertainty \[B\]"):
        evaluation.embed(method, images())
    with pytest.raises(ValueError, match="no images"):
        evaluation.embed(Dummy(), images(0))


def test_cache_is_used_for_the_same_key_only(tmp_path):
    path, calls = tmp_path / "cache" / "test.npz", []

    def compute():
        calls.append(1)
        return {"features": np.full((2, 2), len(calls), np.float32), "label": np.arange(2)}

    first = evaluation.embed_cached(path, {"run": "a", "condition": "clean"}, compute)
    again = evaluation.embed_cached(path, {"condition": "clean", "run": "a"}, compute)
    assert len(calls) == 1 and first.keys() == again.keys()
    np.testing.assert_array_equal(first["features"], again["features"])
    assert (
        evaluation.embed_cached(path, {"run": "b", "condition": "clean"}, compute)["features"][0, 0]
        == 2
    )
    assert (
        evaluation.embed_cached(path, {"run": "b", "condition": "clean"}, compute)["features"][0, 0]
        == 2
    )
    assert [file.name for file in path.parent.iterdir()] == ["test.npz"]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="truncated"):
        evaluation.embed_cached(path, {"run": "b"}, compute)


# --------------------------------------------------------------------------------------------------- nearest neighbours


def knn_by_hand(train_x, train_y, test_x, k, temperature):
    probabilities = np.zeros((len(test_x), train_y.max() + 1))
    for i, query in enumerate(test_x):
        cosine = [query @ row / np.sqrt(query @ query) / np.sqrt(row @ row) for row in train_x]
        for j in sorted(range(len(train_x)), key=lambda j: -cosine[j])[:k]:
            probabilities[i, train_y[j]] += np.exp(cosine[j] / temperature)
    return probabilities / probabilities.sum(1, keepdims=True)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (20, 0.07), (20, 1.0), (90, 0.2)])
def test_knn_against_a_loop(k, temperature):
    train, test = clusters(90, 1), clusters(40, 2)
    expected = knn_by_hand(
        train["features"].astype(np.float64),
        train["label"],
        test["features"].astype(np.float64),
        k,
        temperature,
    )
    prediction, probabilities = evaluation.knn_predict(
        train["features"], train["label"], test["features"], k, temperature
    )
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)
    np.testing.assert_array_equal(prediction, expected.argmax(1))
    accuracy = evaluation.knn_accuracy(
        train["features"], train["label"], test["features"], test["label"], k, temperature
    )
    assert accuracy == np.mean(expected.argmax(1) == test["label"])


def test_knn_in_chunks_equals_the_whole(monkeypatch):
    train, test = clusters(90, 1), clusters(40, 2)
    whole = evaluation.knn_predict(train["features"], train["label"], test["features"])
    split, sizes = torch.Tensor.split, []

    def small(tensor, size, dim=0):
        sizes.append(size)
        return split(tensor, 7, dim)

    monkeypatch.setattr(torch.Tensor, "split", small)
    chunked = evaluation.knn_predict(train["features"], train["label"], test["features"])
    assert sizes == [20_000_000 // 90]
    np.testing.assert_array_equal(whole[0], chunked[0])
    np.testing.assert_allclose(whole[1], chunked[1], atol=1e-5)


def test_knn_ignores_the_length_of_features():
    train, test = clusters(90, 1), clusters(40, 2)
    scale = np.random.default_rng(0).uniform(0.1, 10, size=(90, 1)).astype(np.float32)
    plain = evaluation.knn_predict(train["features"], train["label"], test["features"])[1]
    np.testing.assert_allclose(
        evaluation.knn_predict(train["features"] * scale, train["label"], 5 * test["features"])[1],
        plain,
        atol=1e-4,
    )


def test_knn_refuses_bad_input():
    train, test = clusters(30, 1), clusters(10, 2)
    x, y, query = train["features"], train["label"], test["features"]
    for arguments, message in [
        ((x, y, query, 31), "k must be"),
        ((x, y, query, 0), "k must be"),
        ((x, y, query, 5, 0.0), "temperature"),
        ((x, y[:-1], query), "train_y"),
        ((x, y.astype(float), query), "train_y"),
        ((x, y, query[:, :3]), "test_x must be"),
        ((np.where(x > 1, np.nan, x), y, query), "train_x has"),
        ((x, y, query[:0]), "test_x must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            evaluation.knn_predict(*arguments)


# --------------------------------------------------------------------------------------------------------- linear probe


@pytest.mark.parametrize("penalty", [1e-1, 1e-3])
def test_probe_reaches_the_optimum_that_scikit_learn_finds(penalty):
    train, test = clusters(600, 1, spread=2), clusters(200, 2, spread=2)
    probe = evaluation.linear_probe(train["features"] * 30 + 7, train["label"], penalties=[penalty])
    mean, scale = train["features"].mean(0), train["features"].std(0)
    oracle = LogisticRegression(C=1 / (600 * penalty), tol=1e-8, max_iter=5000).fit(
        (train["features"] - mean) / scale, train["label"]
    )
    expected = oracle.predict_proba((test["features"] - mean) / scale)
    np.testing.assert_allclose(probe.probabilities(test["features"] * 30 + 7), expected, atol=2e-3)
    assert probe.penalty == penalty and probe.validation == {}


def test_probe_separates_what_is_separable_and_is_deterministic():
    train, test = clusters(300, 1, spread=0.1), clusters(100, 2, spread=0.1)
    probe, again = (evaluation.linear_probe(train["features"], train["label"]) for _ in range(2))
    assert (probe.predict(test["features"]) == test["label"]).all()
    np.testing.assert_array_equal(probe.weight, again.weight)
    np.testing.assert_allclose(probe.probabilities(test["features"]).sum(1), 1)


def test_probe_chooses_a_strong_penalty_for_noise_and_a_weak_one_for_signal():
    generator = np.random.default_rng(0)
    noise = evaluation.linear_probe(
        generator.normal(size=(200, 60)), generator.integers(2, size=200)
    )
    assert (
        noise.penalty
        == max(evaluation.PENALTIES)
        == min(noise.validation, key=noise.validation.get)
    )
    signal = clusters(400, spread=0.3)
    assert evaluation.linear_probe(signal["features"], signal["label"]).penalty < noise.penalty


def test_all_of_train_is_fitted_with_the_penalty_that_was_chosen():
    generator = np.random.default_rng(3)
    x, y = generator.normal(size=(200, 8)).astype(np.float32), generator.integers(3, size=200)
    probe = evaluation.linear_probe(x, y)
    assert probe.penalty == max(evaluation.PENALTIES), "of noise"
    alone, weak = (
        evaluation.linear_probe(x, y, penalties=[penalty]).weight
        for penalty in (probe.penalty, min(evaluation.PENALTIES))
    )
    np.testing.assert_allclose(probe.weight, alone, atol=2e-3)
    assert np.abs(probe.weight - weak).max() > 0.02


def test_nearest_neighbours_are_those_of_the_protocol():
    """Wu et al. 2018, §3.4, as DINO has it: 20 neighbours by the cosine, weighted by exp(s / 0.07)."""
    assert (evaluation.NEAREST, evaluation.TEMPERATURE) == (20, 0.07)


def test_a_percentage_has_its_interval_beside_it():
    rows = evaluation.in_percent(
        pd.DataFrame({"value": [0.5], "ci_low": [0.4], "ci_high": [0.7]})
    ).iloc[0]
    assert rows[["percent", "percent_low", "percent_high"]].tolist() == pytest.approx([50, 40, 70])


def test_the_penalty_is_judged_on_images_that_were_not_fitted(monkeypatch):
    fitted, fit = [], evaluation._logistic_regression
    monkeypatch.setattr(
        evaluation,
        "_logistic_regression",
        lambda x, *rest: fitted.append(x.shape[1]) or fit(x, *rest),
    )
    train = clusters(200)
    evaluation.linear_probe(train["features"], train["label"])
    held_out = evaluation._tenth(train["label"])
    assert fitted == [200 - held_out.sum()] * len(evaluation.PENALTIES) + [200]
    np.testing.assert_allclose(
        np.bincount(train["label"][held_out]) / np.bincount(train["label"]), 0.1, atol=0.02
    )


def test_validation_keeps_a_training_image_of_every_class():
    held_out = evaluation._tenth(np.array([0, 0, 1, 2, 2, 2]))
    assert np.bincount(np.array([0, 0, 1, 2, 2, 2])[held_out], minlength=3).tolist() == [1, 0, 1]
    with pytest.raises(ValueError, match="single image"):
        evaluation._tenth(np.arange(3))


def test_probe_is_not_moved_by_a_constant_feature():
    train = clusters(300)
    x = np.concatenate([train["features"], np.full((300, 1), 0.1, np.float32)], axis=1)
    plain = evaluation.linear_probe(train["features"], train["label"], penalties=[1e-2])
    constant = evaluation.linear_probe(x, train["label"], penalties=[1e-2])
    np.testing.assert_allclose(
        constant.probabilities(x), plain.probabilities(train["features"]), atol=1e-3
    )


def test_paper_recipe_learns_with_layerwise_rates():
    train, test = clusters(2000, 1, spread=0.5), clusters(200, 2, spread=0.5)
    probe = evaluation.paper_probe(train["features"], train["label"])
    assert np.mean(probe.predict(test["features"]) == test["label"]) > 0.9
    # One LARS step moves the weights by lr · 0.001 · their norm, whatever the gradient; plain SGD would grow with the features.
    first = evaluation.paper_probe(1e3 * train["features"][:512], train["label"][:512], epochs=1)
    start = 0.01 * torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).numpy()
    assert np.linalg.norm(first.weight - start) == pytest.approx(
        1.6e-3 * np.linalg.norm(start), rel=1e-3
    )


def lars_written_out(x, y, classes, epochs):
    """Weights [D, C] and biases [C] of the paper's probe by the formula of LARS, with the gradient of softmax regression, in float64."""
    generator = torch.Generator().manual_seed(0)
    parameters = [
        0.01 * torch.randn(x.shape[1], classes, generator=generator).numpy().astype(float),
        np.zeros(classes),
    ]
    velocities, steps, step = (
        [np.zeros_like(parameter) for parameter in parameters],
        epochs * -(-len(x) // 512),
        0,
    )
    for _ in range(epochs):
        for rows in np.split(
            torch.randperm(len(x), generator=generator).numpy(), range(512, len(x), 512)
        ):
            error = (
                softmax(x[rows] @ parameters[0] + parameters[1], axis=1) - np.eye(classes)[y[rows]]
            ) / len(rows)
            for parameter, velocity, gradient in zip(
                parameters, velocities, (x[rows].T @ error, error.sum(0)), strict=True
            ):
                size = np.linalg.norm(parameter)
                velocity[:] = (
                    0.9 * velocity
                    + (1e-3 * size / np.linalg.norm(gradient) if size else 1) * gradient
                )
                parameter -= 1.6 * (1 + np.cos(np.pi * step / steps)) / 2 * velocity
            step += 1
    return parameters


@pytest.mark.parametrize("spread", [0.5, 1.0, 3.0])
def test_the_papers_probe_follows_the_formula_of_lars(spread):
    train = clusters(1300, 1, spread=spread)
    probe = evaluation.paper_probe(train["features"], train["label"], epochs=10)
    weight, bias = lars_written_out(train["features"].astype(float), train["label"], 4, epochs=10)
    np.testing.assert_allclose(probe.weight, weight, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(probe.bias, bias, rtol=1e-3, atol=1e-5)


def test_probe_refuses_bad_input():
    train = clusters(50)
    x, y = train["features"], train["label"]
    for arguments, options, message in [
        ((x, np.zeros(50, dtype=int)), {}, "single class"),
        ((x, y[:-1]), {}, "train_y"),
        ((np.where(x > 1, np.nan, x), y), {}, "NaN"),
        ((x, y), {"penalties": []}, "penalties"),
    ]:
        with pytest.raises(ValueError, match=message):
            evaluation.linear_probe(*arguments, **options)
    with pytest.raises(ValueError, match="x must be"):
        evaluation.linear_probe(x, y, penalties=[1.0]).predict(x[:, :2])


# ------------------------------------------------------------------------------------------------------ scores, battery


@pytest.fixture(scope="module")
def measured():
    train, test = clusters(600, 1), clusters(300, 2)
    conditions = {}
    for name, factor in [
        ("crop_0.05", 3.0),
        ("crop_0.5", 2.0),
        ("crop_1", 1.0),
        ("blur_1", 1.5),
        ("blur_2", 2.5),
    ]:
        conditions[name] = test | {
            "uncertainty": test["uncertainty"] / factor,
            "kappa": test["kappa"] / factor,
        }
    for name, noise in (
        ("crop_0.5", 2.0),
        ("blur_1", 4.0),
    ):  # the others have the features of the clean images
        degraded = noise * np.random.default_rng(7).normal(size=test["features"].shape).astype(
            np.float32
        )
        shaken = np.random.default_rng(8).uniform(
            0.9, 1.1, len(degraded)
        )  # less than from one severity to the next
        doubts = {score: shaken * conditions[name][score] for score in ("uncertainty", "kappa")}
        conditions[name] = conditions[name] | {"features": test["features"] + degraded} | doubts
    near, far = clusters(200, 3), clusters(250, 4)
    far["uncertainty"] = far["uncertainty"] + 1e9
    rows, scores = evaluation.battery(
        train, test, "blobs", {"other": near}, {"distant": far}, conditions, draws=40
    )
    return train, test, rows, scores, conditions, far


def find(rows, **wanted):
    found = [row for row in rows if all(row[name] == value for name, value in wanted.items())]
    assert len(found) == 1, (wanted, len(found))
    return found[0]


def test_scores_hold_what_the_classifiers_say(measured):
    train, test, _, scores, *_ = measured
    probe = evaluation.linear_probe(train["features"], train["label"])
    probabilities = probe.probabilities(test["features"])
    np.testing.assert_array_equal(
        scores["linear_top5_correct"], uncertainty.top5_correct(probabilities, test["label"])
    )
    np.testing.assert_array_equal(scores["linear_prediction"], probabilities.argmax(1))
    np.testing.assert_array_equal(
        scores["linear_correct"], probabilities.argmax(1) == test["label"]
    )
    assert scores["linear_nll"].astype(float).mean() == pytest.approx(
        uncertainty.negative_log_likelihood(probabilities, test["label"]), rel=1e-3
    )
    assert scores["linear_brier"].astype(float).mean() == pytest.approx(
        uncertainty.brier_score(probabilities, test["label"]), rel=1e-3
    )
    np.testing.assert_allclose(scores["linear_max_softmax"], probabilities.max(1), rtol=1e-6)
    np.testing.assert_array_equal(
        scores["knn_prediction"],
        evaluation.knn_predict(train["features"], train["label"], test["features"])[0],
    )
    np.testing.assert_array_equal(
        scores["nearest_neighbour_correct"],
        uncertainty.nearest_neighbour_correct(test["features"], test["label"]),
    )
    unit = [
        x["features"] / np.linalg.norm(x["features"], axis=1, keepdims=True) for x in (test, train)
    ]
    np.testing.assert_allclose(
        scores["knn_distance"],
        np.sort(1 - unit[0] @ unit[1].T, axis=1)[:, :20].mean(1),
        rtol=2e-3,
        atol=1e-6,
    )
    assert list(scores) == [
        "index",
        "label",
        "linear_prediction",
        "linear_correct",
        "linear_top5_correct",
        "knn_prediction",
        "knn_correct",
        "nearest_neighbour_correct",
        "linear_nll",
        "linear_brier",
        "linear_max_softmax",
        "feature_norm",
        "knn_distance",
        "uncertainty",
        "kappa",
    ]
    for name in ("kappa", "uncertainty"):
        np.testing.assert_array_equal(
            stats.rankdata(scores[name]), stats.rankdata(test[name].astype(np.float32))
        )


def test_score_files_of_ten_thousand_images_stay_under_the_bound(tmp_path):
    train, test = (
        clusters(2000, 1, classes=10, dimension=16),
        clusters(10_000, 2, classes=10, dimension=16),
    )
    scores = evaluation.score_images(
        train, test, evaluation.linear_probe(train["features"], train["label"])
    )
    assert len(np.unique(scores["kappa"])) > 9900  # as good as incompressible
    write_npz(tmp_path / "scores.npz", **scores)
    assert (tmp_path / "scores.npz").stat().st_size <= 250_000


def test_battery_rows_are_the_measures(measured):
    train, test, rows, scores, *_ = measured
    correct = scores["linear_correct"]
    accuracy = find(rows, metric="accuracy", classifier="linear", condition="clean")
    assert accuracy["value"] == correct.mean() and accuracy["n"] == 300
    assert accuracy["ci_low"] < accuracy["value"] < accuracy["ci_high"]
    own = dict(condition="clean", classifier="linear", score="uncertainty")
    kappa = scores["kappa"].astype(float)
    assert (
        find(rows, metric="correctness_auroc", **own)["value"]
        == uncertainty.auroc(kappa, correct)
        > 0.55
    )
    for metric in ("aurc", "excess_aurc", "augrc"):
        assert find(rows, metric=metric, **own)["value"] == getattr(uncertainty, metric)(
            -kappa, correct
        )
        by_neighbours = find(rows, metric=metric, **own | {"classifier": "knn"})["value"]
        assert (
            by_neighbours
            == getattr(uncertainty, metric)(-kappa, scores["knn_correct"])
            != getattr(uncertainty, metric)(-kappa, correct)
        )
    hit = scores["nearest_neighbour_correct"]
    assert find(rows, metric="recall_auroc", score="uncertainty")["value"] == uncertainty.auroc(
        kappa, hit
    )
    probabilities = evaluation.linear_probe(train["features"], train["label"]).probabilities(
        test["features"]
    )
    for metric, mass in (("ece", False), ("ece_equal_mass", True)):
        expected = uncertainty.expected_calibration_error(
            probabilities, test["label"], equal_mass=mass
        )
        assert find(rows, metric=metric)["value"] == pytest.approx(expected, abs=1e-6)
    assert find(rows, metric="effective_rank")["value"] == uncertainty.effective_rank(
        test["features"]
    )
    assert find(rows, metric="q95", score="kappa", condition="clean")["value"] == np.quantile(
        test["kappa"].astype(float), 0.95
    )
    assert not [row for row in rows if row["metric"] == "q95" and row["score"] == "uncertainty"], (
        "they are those of κ"
    )
    bare = [
        {name: part[name] for name in ("features", "uncertainty", "label")}
        for part in (train, test)
    ]
    alone, _ = evaluation.battery(*bare, "blobs", draws=4)
    assert find(alone, metric="q05", score="uncertainty")["value"] == np.quantile(
        test["uncertainty"].astype(float), 0.05
    )
    max_softmax = find(
        rows,
        metric="correctness_auroc",
        condition="clean",
        classifier="linear",
        score="max_softmax",
    )
    assert max_softmax["value"] == uncertainty.auroc(scores["linear_max_softmax"], correct) > 0.6
    feature_norm = find(
        rows,
        metric="correctness_auroc",
        condition="clean",
        classifier="linear",
        score="feature_norm",
    )
    assert feature_norm["value"] == uncertainty.auroc(
        scores["feature_norm"], correct
    )  # a long feature counts as certain
    assert find(
        rows, metric="correctness_auroc", condition="clean", classifier="knn", score="knn_distance"
    )["value"] == uncertainty.auroc(-scores["knn_distance"].astype(float), scores["knn_correct"])


def test_battery_asks_the_probe_of_clean_features_about_degraded_ones(measured):
    train, test, rows, _, conditions, far = measured
    probe = evaluation.linear_probe(train["features"], train["label"])
    right = {
        name: probe.predict(embedded["features"]) == test["label"]
        for name, embedded in conditions.items()
    }
    assert len({of.mean() for of in right.values()}) > 2
    for name, correct in right.items():
        assert find(rows, metric="accuracy", condition=name)["value"] == correct.mean()
        expected = uncertainty.auroc(conditions[name]["kappa"], correct)
        assert find(rows, metric="correctness_auroc", condition=name, score="uncertainty")[
            "value"
        ] == pytest.approx(expected)
        assert name not in ("crop_0.5", "blur_1") or expected != pytest.approx(
            uncertainty.auroc(test["kappa"], correct), abs=1e-4
        )
        assert find(rows, metric="mean", condition=name, score="kappa")["value"] == pytest.approx(
            conditions[name]["kappa"].mean()
        )
    assert find(rows, metric="mean", evaluated_on="distant", score="uncertainty")[
        "value"
    ] == pytest.approx(far["uncertainty"].mean())


def test_battery_tells_other_sets_and_severities_in_the_right_direction(measured):
    _, _, rows, *_ = measured
    far = dict(evaluated_on="distant", condition="far_ood", score="uncertainty")
    assert (
        find(rows, metric="ood_auroc", **far)["value"] == 1
        and find(rows, metric="ood_fpr95", **far)["value"] == 0
    )
    assert (
        find(rows, metric="ood_average_precision", **far)["value"] == 1
        and find(rows, metric="ood_auroc", **far)["n"] == 550
    )
    assert (
        0.3
        < find(
            rows,
            metric="ood_auroc",
            evaluated_on="other",
            condition="near_ood",
            score="uncertainty",
        )["value"]
        < 0.7
    )
    for family in ("crop", "blur"):  # κ falls with the blur and with the area that a crop leaves
        assert find(rows, metric="severity_spearman", condition=family)["value"] == pytest.approx(1)


def test_a_set_is_not_out_of_its_own_distribution_by_any_score():
    train, test = clusters(200, 1), clusters(60, 2)
    rows, _ = evaluation.battery(train, test, "blobs", near_ood={"itself": test}, draws=10)
    found = {row["score"]: row["value"] for row in rows if row["metric"] == "ood_auroc"}
    assert found == dict.fromkeys(
        ("uncertainty", "feature_norm", "knn_distance", "max_softmax"), 0.5
    )


def test_rows_have_the_columns_of_the_tidy_format_and_name_nothing_twice(measured):
    _, _, rows, *_ = measured
    same = {
        "method": "m",
        "trained_on": "d",
        "variant": "v",
        "seed": 0,
        "profile": "smoke",
        "notebook": "80",
        "run_hash": "h",
        "commit": "c",
    }
    frame = write_metrics("smoke", "80", "run", rows, **same)
    assert ", ".join(frame.columns) == COLUMNS
    assert not frame.duplicated(
        ["evaluated_on", "condition", "classifier", "score", "metric"]
    ).any()
    assert (
        frame["value"].notna().all()
        and (frame["ci_low"].dropna() <= frame["ci_high"].dropna()).all()
    )


def test_what_is_undefined_is_nan_and_without_draws_there_is_no_interval():
    score, right = np.arange(20.0), np.ones(20, bool)
    for found in (
        evaluation.with_interval(uncertainty.auroc, score, right, draws=10),
        evaluation.with_interval(np.mean, score, draws=0),
    ):
        assert (
            list(found) == ["value", "ci_low", "ci_high"]
            and np.isnan([found["ci_low"], found["ci_high"]]).all()
        )
    assert np.isnan(evaluation.with_interval(uncertainty.auroc, score, right, draws=10)["value"])
    assert evaluation.with_interval(np.mean, score, draws=0)["value"] == 9.5


def test_battery_gives_nan_where_every_prediction_is_right():
    train, test = clusters(200, 1, spread=0.01), clusters(60, 2, spread=0.01)
    rows, _ = evaluation.battery(train, test, "blobs", draws=10)
    assert find(rows, metric="accuracy", classifier="linear")["value"] == 1
    assert np.isnan(
        find(rows, metric="correctness_auroc", classifier="linear", score="uncertainty")["value"]
    )
    risk = find(rows, metric="aurc", classifier="linear", score="uncertainty")
    assert risk["value"] == risk["ci_low"] == risk["ci_high"] == 0


def test_conditions_without_severity_or_of_other_images_are_errors():
    step = clusters(20)
    with pytest.raises(ValueError, match="family"):
        evaluation._families({"blur": step})
    with pytest.raises(ValueError, match="same images"):
        evaluation._families({"blur_1": step, "blur_2": clusters(20, 5)})
    assert evaluation._families({"blur_1": step}) == {}


def test_battery_counts_a_high_uncertainty_as_wrong_under_every_condition(measured):
    _, _, rows, *_ = measured
    clean, *others = (
        find(
            rows,
            metric="correctness_auroc",
            classifier="linear",
            score="uncertainty",
            condition=condition,
        )["value"]
        for condition in ("clean", "crop_0.05", "blur_2")
    )
    assert others == pytest.approx([clean, clean])  # the same images, and κ times a factor


def test_battery_recentres_calibration_errors_and_draws_a_quarter(measured):
    _, _, rows, scores, *_ = measured
    for metric, equal_mass in (("ece", False), ("ece_equal_mass", True)):
        error = partial(uncertainty.confidence_calibration_error, equal_mass=equal_mass)
        low, high = uncertainty.bootstrap_interval(
            error, scores["linear_max_softmax"], scores["linear_correct"], draws=10, recentred=True
        )
        row = find(rows, metric=metric)
        assert (row["ci_low"], row["ci_high"]) == pytest.approx((low, high), abs=1e-12)


def test_battery_rows_of_nll_and_brier_are_means(measured):
    train, test, rows, *_ = measured
    probabilities = evaluation.linear_probe(train["features"], train["label"]).probabilities(
        test["features"]
    )
    for metric, measure in (
        ("nll", uncertainty.negative_log_likelihood),
        ("brier", uncertainty.brier_score),
    ):
        assert find(rows, metric=metric)["value"] == pytest.approx(
            measure(probabilities, test["label"]), rel=1e-3
        )


@pytest.mark.filterwarnings("error")
def test_the_nll_of_an_impossible_label_is_the_largest_float16():
    train, test = clusters(100, 1, classes=2), clusters(50, 2, classes=2)
    probe = evaluation.Probe(
        np.zeros(6, np.float32),
        np.ones(6, np.float32),
        1e6 * np.eye(6, 2, dtype=np.float32),
        np.zeros(2, np.float32),
        0.0,
        {},
    )
    scores = evaluation.score_images(train, test, probe)
    wrong = ~scores["linear_correct"]
    assert wrong.any() and (scores["linear_nll"][wrong] == np.finfo(np.float16).max).all()


def test_probe_is_not_moved_by_the_rounding_of_a_constant_feature():
    train = clusters(300)
    constant = (100 + 1e-5 * np.random.default_rng(0).normal(size=(300, 1))).astype(np.float32)
    assert 0 < constant.std() < 1e-4
    plain = evaluation.linear_probe(train["features"], train["label"], penalties=[1e-2])
    probe = evaluation.linear_probe(
        np.c_[train["features"], constant], train["label"], penalties=[1e-2]
    )
    elsewhere = np.c_[train["features"], constant + np.float32(1e-3)]
    np.testing.assert_allclose(
        probe.probabilities(elsewhere), plain.probabilities(train["features"]), atol=1e-3
    )


def test_the_papers_probe_takes_features_as_they_are():
    train = clusters(600, 1)
    probe = evaluation.paper_probe(train["features"] + 5, train["label"], epochs=2)
    expected = softmax((train["features"] + 5).astype(float) @ probe.weight + probe.bias, axis=1)
    np.testing.assert_allclose(probe.probabilities(train["features"] + 5), expected, atol=1e-5)


def test_mahalanobis_distance_is_from_the_mean_of_train():
    generator = np.random.default_rng(0)
    train = generator.normal(size=(2000, 4)) @ generator.normal(size=(4, 4)) + 10
    x = train[:50] + 1
    difference, precision = x - train.mean(0), np.linalg.inv(np.cov(train.T))
    expected = np.einsum("nd,de,ne->n", difference, precision, difference)
    np.testing.assert_allclose(evaluation.mahalanobis_distance(train)(x), expected, rtol=0.05)
