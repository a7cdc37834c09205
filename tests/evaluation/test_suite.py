"""lib.evaluation.suite: rows are the measures, and scores what the classifiers predict."""

from functools import partial

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.neighbors import NearestNeighbors

from lib.evaluation import probes, suite, uncertainty


class Measured:
    """Clusters that went through the suite."""

    def __init__(self, clusters):
        self.train = clusters(600, 1)
        self.test = clusters(300, 2)
        self.conditions = {
            "crop_0.05": self.condition(3.0, 4.0),
            "crop_0.5": self.condition(2.0, 2.0),
            "crop_1": self.condition(1.0, 0.0),
            "blur_1": self.condition(1.5, 2.0),
            "blur_2": self.condition(2.5, 4.0),
        }
        far = clusters(250, 4)
        far["uncertainty"] = far["uncertainty"] + 1e9
        rows, self.scores = suite.evaluate(
            self.train,
            self.test,
            "blobs",
            near_ood={"other": clusters(200, 3)},
            far_ood={"distant": far},
            conditions=self.conditions,
            draws=40,
        )
        self.rows = pd.DataFrame(rows)
        self.probe = probes.linear_probe(self.train["features"], self.train["label"])
        self.probabilities = self.probe.probabilities(self.test["features"])

    def condition(self, factor, noise):
        """The test images with κ divided by a factor, and noisy features."""
        features = self.test["features"]
        noisy = features + noise * np.random.default_rng(7).normal(size=features.shape)
        changed = {name: self.test[name] / factor for name in ("uncertainty", "kappa")}
        return self.test | changed | {"features": noisy.astype(np.float32)}

    def row(self, **wanted):
        chosen = self.rows
        for column, value in wanted.items():
            chosen = chosen[chosen[column] == value]
        assert len(chosen) == 1, wanted
        return chosen.iloc[0]


@pytest.fixture(scope="module")
def measured(clusters):
    return Measured(clusters)


# ---------------------------------------------------------------------------- scores of each image
def test_scores_are_those_of_the_classifiers(measured):
    scores = measured.scores
    label = measured.test["label"]
    features = measured.test["features"]
    linear = measured.probabilities.argmax(1)
    knn, _ = probes.knn_predict(measured.train["features"], measured.train["label"], features)
    expected = {
        "linear_prediction": linear,
        "linear_correct": linear == label,
        "linear_top5_correct": uncertainty.top5_correct(measured.probabilities, label),
        "knn_prediction": knn,
        "knn_correct": knn == label,
        "nearest_neighbour_correct": uncertainty.nearest_neighbour_correct(features, label),
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(scores[name], values)
    np.testing.assert_allclose(scores["linear_max_softmax"], measured.probabilities.max(1))
    np.testing.assert_allclose(scores["feature_norm"], np.linalg.norm(features, axis=1), rtol=1e-6)
    for name in ("kappa", "uncertainty"):
        assert stats.spearmanr(scores[name], measured.test[name]).statistic == pytest.approx(1)


def test_knn_distance_is_the_mean_cosine_distance_to_20_neighbours(measured):
    neighbours = NearestNeighbors(n_neighbors=20, metric="cosine").fit(measured.train["features"])
    distance = neighbours.kneighbors(measured.test["features"])[0].mean(1)
    np.testing.assert_allclose(measured.scores["knn_distance"], distance, rtol=2e-3, atol=1e-6)


# ----------------------------------------------------------------------------------------- metrics
@pytest.mark.parametrize("classifier", ["linear", "knn"])
@pytest.mark.parametrize("score", suite.UNCERTAINTIES)
def test_rows_of_correctness_are_the_measures(measured, classifier, score):
    correct = measured.scores[f"{classifier}_correct"]
    values = suite.as_uncertainty(measured.scores, score)
    place = {"condition": "clean", "classifier": classifier, "score": score}
    auroc = measured.row(metric="correctness_auroc", **place).value
    assert auroc == uncertainty.auroc(-values, correct)
    for metric in ("aurc", "excess_aurc", "augrc"):
        expected = getattr(uncertainty, metric)(values, correct)
        assert measured.row(metric=metric, **place).value == expected
    hit = measured.scores["nearest_neighbour_correct"]
    recall = measured.row(metric="recall_auroc", score=score).value
    assert recall == uncertainty.auroc(-values, hit)


def test_rows_of_calibration_are_the_measures(measured):
    label = measured.test["label"]
    confidence = measured.scores["linear_max_softmax"]
    correct = measured.scores["linear_correct"]
    for metric, equal_mass in (("ece", False), ("ece_equal_mass", True)):
        row = measured.row(metric=metric)
        error = partial(uncertainty.confidence_calibration_error, equal_mass=equal_mass)
        assert row.value == pytest.approx(error(confidence, correct), abs=1e-6)
        interval = uncertainty.bootstrap_interval(
            error, confidence, correct, draws=10, recentred=True
        )
        assert (row.ci_low, row.ci_high) == pytest.approx(interval, abs=1e-12)
    nll = uncertainty.nll_per_image(measured.probabilities, label).mean()
    brier = uncertainty.brier_per_image(measured.probabilities, label).mean()
    assert measured.row(metric="nll").value == pytest.approx(nll, rel=1e-3)
    assert measured.row(metric="brier").value == pytest.approx(brier, rel=1e-3)
    rank = uncertainty.effective_rank(measured.test["features"])
    assert measured.row(metric="effective_rank").value == rank


def test_conditions_are_measured_with_the_probe_of_clean_features(measured):
    for name, embedded in measured.conditions.items():
        correct = measured.probe.predict(embedded["features"]) == measured.test["label"]
        accuracy = measured.row(metric="accuracy", condition=name).value
        auroc = measured.row(metric="correctness_auroc", condition=name).value
        mean = measured.row(metric="mean", condition=name, score="kappa").value
        assert accuracy == correct.mean()
        assert auroc == pytest.approx(uncertainty.auroc(embedded["kappa"], correct))
        assert mean == pytest.approx(embedded["kappa"].mean())


def test_other_sets_and_severities_have_the_right_sign(measured):
    far = {"evaluated_on": "distant", "condition": "far_ood", "score": "uncertainty"}
    assert measured.row(metric="ood_auroc", **far).value == 1
    assert measured.row(metric="ood_fpr95", **far).value == 0
    assert measured.row(metric="ood_average_precision", **far).value == 1
    assert measured.row(metric="ood_auroc", **far).n == 550
    near = measured.row(metric="ood_auroc", condition="near_ood", score="uncertainty").value
    assert 0.3 < near < 0.7
    for family in ("crop", "blur"):  # κ falls with the blur, and with the area that a crop leaves
        assert measured.row(metric="severity_spearman", condition=family).value > 0.95


def test_what_is_undefined_is_nan(clusters):
    train = clusters(200, 1, spread=0.01)
    rows, _ = suite.evaluate(train, clusters(60, 2, spread=0.01), "blobs", draws=10)
    rows = pd.DataFrame(rows).query("classifier == 'linear'").set_index(["metric", "score"])
    assert rows.value["accuracy", ""] == 1
    assert np.isnan(rows.value["correctness_auroc", "uncertainty"])
    risk = rows.loc[("aurc", "uncertainty")]
    assert risk.value == risk.ci_low == risk.ci_high == 0
