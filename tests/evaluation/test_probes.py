"""lib.evaluation.probes against scikit-learn and formulas written out."""

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.covariance import EmpiricalCovariance
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from lib.evaluation import probes


# ------------------------------------------------------------------------------ nearest neighbours
@pytest.mark.parametrize("k", [1, 20, 90])
def test_knn_is_scikit_learns(clusters, k, monkeypatch):
    monkeypatch.setattr(probes, "SIMILARITIES", 90 * 7)  # in chunks of 7 rows
    train = clusters(90, 1)
    test = clusters(40, 2)

    def weights(distance):
        return np.exp((1 - distance) / probes.TEMPERATURE)

    reference = KNeighborsClassifier(k, weights=weights, metric="cosine")
    reference.fit(train["features"].astype(float), train["label"])
    prediction, cosines = probes.knn_predict(train["features"], train["label"], test["features"], k)
    expected = reference.predict(test["features"].astype(float))
    np.testing.assert_array_equal(prediction, expected)
    distances, _ = reference.kneighbors(test["features"].astype(float))
    np.testing.assert_allclose(np.sort(1 - cosines.numpy()), distances, atol=1e-5)


# ------------------------------------------------------------------------------------ linear probe
@pytest.mark.parametrize("penalty", [1e-1, 1e-3])
def test_the_probe_reaches_scikit_learns_optimum(clusters, penalty):
    train = clusters(600, 1, spread=2)
    x = train["features"]
    test_x = clusters(200, 2, spread=2)["features"]
    probe = probes.linear_probe(30 * x + 7, train["label"], penalties=[penalty])
    reference = LogisticRegression(C=1 / (600 * penalty), tol=1e-8, max_iter=5000)
    reference.fit((x - x.mean(0)) / x.std(0), train["label"])
    expected = reference.predict_proba((test_x - x.mean(0)) / x.std(0))
    np.testing.assert_allclose(probe.probabilities(30 * test_x + 7), expected, atol=2e-3)


def test_the_penalty_is_strong_for_noise_and_weak_for_signal(clusters):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(200, 60))
    noise = probes.linear_probe(x, generator.integers(2, size=200))
    assert noise.penalty == max(probes.PENALTIES)
    signal = clusters(400, spread=0.3)
    assert probes.linear_probe(signal["features"], signal["label"]).penalty < noise.penalty


def test_all_of_train_is_fitted_with_the_chosen_penalty():
    generator = np.random.default_rng(3)
    x = generator.normal(size=(200, 8)).astype(np.float32)
    y = generator.integers(3, size=200)
    probe = probes.linear_probe(x, y)
    direct = probes.linear_probe(x, y, penalties=[probe.penalty])
    weak = probes.linear_probe(x, y, penalties=[min(probes.PENALTIES)])
    np.testing.assert_allclose(probe.weight, direct.weight, atol=2e-3)
    assert np.abs(probe.weight - weak.weight).max() > 0.02


def test_a_constant_feature_has_no_effect(clusters):
    train = clusters(300)
    x = train["features"]
    generator = np.random.default_rng(0)
    constant = (100 + 1e-5 * generator.normal(size=(300, 1))).astype(np.float32)
    plain = probes.linear_probe(x, train["label"], penalties=[1e-2])
    probe = probes.linear_probe(np.c_[x, constant], train["label"], penalties=[1e-2])
    changed = np.c_[x, constant + np.float32(1e-3)]
    np.testing.assert_allclose(probe.probabilities(changed), plain.probabilities(x), atol=1e-3)


# ----------------------------------------------------------------------------- the paper's probe
def lars_written_out(x, y, classes, epochs):
    """Weights [D, C] and biases [C] by the formula of LARS, in float64."""
    generator = torch.Generator().manual_seed(0)
    weight = 0.01 * torch.randn(x.shape[1], classes, generator=generator).numpy().astype(float)
    parameters = [weight, np.zeros(classes)]
    velocities = [np.zeros_like(parameter) for parameter in parameters]
    steps = epochs * -(-len(x) // 512)
    step = 0
    for _ in range(epochs):
        order = torch.randperm(len(x), generator=generator).numpy()
        for rows in np.split(order, range(512, len(x), 512)):
            predicted = softmax(x[rows] @ parameters[0] + parameters[1], axis=1)
            error = (predicted - np.eye(classes)[y[rows]]) / len(rows)
            rate = 1.6 * (1 + np.cos(np.pi * step / steps)) / 2
            for i, gradient in enumerate((x[rows].T @ error, error.sum(0))):
                size = np.linalg.norm(parameters[i])
                trust = 1e-3 * size / np.linalg.norm(gradient) if size else 1
                velocities[i] = 0.9 * velocities[i] + trust * gradient
                parameters[i] = parameters[i] - rate * velocities[i]
            step += 1
    return parameters


def test_the_papers_probe_follows_the_formula_of_lars(clusters):
    train = clusters(1300, 1, spread=3.0)
    x = train["features"] + 5  # features are taken as they are
    probe = probes.paper_probe(x, train["label"], epochs=10)
    weight, bias = lars_written_out(x.astype(float), train["label"], classes=4, epochs=10)
    np.testing.assert_allclose(probe.weight, weight, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(probe.bias, bias, rtol=1e-3, atol=1e-5)
    expected = softmax(x.astype(float) @ probe.weight + probe.bias, axis=1)
    np.testing.assert_allclose(probe.probabilities(x), expected, atol=1e-5)


# ---------------------------------------------------------------------------- Mahalanobis distance
def test_mahalanobis_distance_is_from_the_mean_of_train():
    generator = np.random.default_rng(0)
    train = generator.normal(size=(2000, 4)) @ generator.normal(size=(4, 4)) + 10
    x = train[:50] + 1
    expected = EmpiricalCovariance().fit(train).mahalanobis(x)
    np.testing.assert_allclose(probes.mahalanobis_distance(train)(x), expected, rtol=0.05)
