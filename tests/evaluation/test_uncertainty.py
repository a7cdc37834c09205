"""lib.evaluation.uncertainty against scikit-learn, torchmetrics, sums and closed forms."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import softmax
from sklearn import metrics
from sklearn.neighbors import NearestNeighbors
from torch_uncertainty.metrics.classification import AUGRC, AURC
from torchmetrics.functional.classification import multiclass_calibration_error

from lib.evaluation import uncertainty as u


def predicted(classes=7):
    """Random class probabilities and labels."""
    generator = np.random.default_rng(0)
    probabilities = softmax(2 * generator.normal(size=(500, classes)), axis=1)
    return probabilities, generator.integers(classes, size=500)


drawn = settings(derandomize=True, deadline=None, max_examples=40)
scales = st.floats(-6, 6).map(lambda power: 10.0**power)


def tied_scores(most):
    """Scores with ties, and a truth; up to so many images."""
    return st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=most)


# ----------------------------------------------------------------------------------------- ranking
@drawn
@given(tied_scores(30), scales)
def test_ranking_measures_are_scikit_learns_ties_included(rows, scale):
    score = scale * np.array([score for score, _ in rows])
    positive = np.array([positive for _, positive in rows])
    ranking = (u.auroc, u.average_precision, u.fpr_at_95_tpr)
    if positive.all() or not positive.any():
        for measure in ranking:
            with pytest.raises(u.UndefinedStatistic, match="class"):
                measure(score, positive)
        return
    false, true, _ = metrics.roc_curve(positive, score, drop_intermediate=False)
    expected = (
        metrics.roc_auc_score(positive, score),
        metrics.average_precision_score(positive, score),
        false[true >= 0.95].min(),
    )
    values = [measure(score, positive) for measure in ranking]
    assert values == pytest.approx(expected, abs=1e-12)
    our_false, our_true, _ = u.roc_curve(score, positive)
    assert np.trapezoid(our_true, our_false) == pytest.approx(expected[0], abs=1e-12)


# ---------------------------------------------------------------------------- selective prediction
def by_all_tie_orders(uncertainty, correct):
    """AURC and generalised AURC as means over every order that sorts the uncertainty."""
    n = len(correct)
    aurc = []
    augrc = []
    for order in map(list, permutations(range(n))):
        if (np.diff(uncertainty[order]) >= 0).all():
            errors = np.cumsum(~correct[order])
            aurc.append((errors / np.arange(1, n + 1)).mean())
            augrc.append((errors / n).mean())
    return np.mean(aurc), np.mean(augrc)


@drawn
@given(tied_scores(6), scales)
def test_ties_are_averaged_over_every_order(rows, scale):
    uncertainty = scale * np.array([score for score, _ in rows])
    correct = np.array([correct for _, correct in rows])
    aurc, augrc = by_all_tie_orders(uncertainty, correct)
    best, _ = by_all_tie_orders((~correct).astype(int), correct)
    assert u.aurc(uncertainty, correct) == pytest.approx(aurc, abs=1e-14)
    assert u.augrc(uncertainty, correct) == pytest.approx(augrc, abs=1e-14)
    assert u.excess_aurc(uncertainty, correct) == pytest.approx(aurc - best, abs=1e-14)


def test_risk_coverage_is_torch_uncertaintys_but_for_the_rule_of_integration():
    # Theirs is the trapezoidal rule from coverage 1/N to 1; ours the mean over the same points.
    confidence = np.random.default_rng(0).permutation(np.linspace(0.51, 0.99, 200))
    correct = np.random.default_rng(1).random(200) < confidence
    probabilities = torch.tensor(np.stack([confidence, 1 - confidence], 1))
    coverage, risk = u.risk_coverage_curve(-confidence, correct)
    for metric, values, ours in ((AURC(), risk, u.aurc), (AUGRC(), risk * coverage, u.augrc)):
        metric.update(probabilities, torch.tensor(~correct).long())
        trapezoid = (values.sum() - (values[0] + values[-1]) / 2) / 199
        assert metric.compute().item() == pytest.approx(trapezoid, abs=1e-6)
        assert ours(-confidence, correct) == pytest.approx(values.mean(), abs=1e-14)


# -------------------------------------------------------------------------------------- neighbours
@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_nearest_neighbours_are_scikit_learns(scale):
    generator = np.random.default_rng(0)
    embeddings = generator.normal(size=(150, 5))
    labels = np.array(["cat", "dog", "frog"])[generator.integers(3, size=150)]
    neighbours = NearestNeighbors(n_neighbors=1, metric="cosine").fit(embeddings)
    nearest = neighbours.kneighbors(return_distance=False)[:, 0]
    hit = labels[nearest] == labels
    ours = u.nearest_neighbour_correct(scale * embeddings, labels, chunk=37)
    np.testing.assert_array_equal(ours, hit)


# ------------------------------------------------------------------------------------- calibration
def test_calibration_error_is_torchmetrics():
    probabilities, labels = predicted()
    expected = multiclass_calibration_error(
        torch.tensor(probabilities), torch.tensor(labels), num_classes=7, n_bins=15, norm="l1"
    )
    correct = probabilities.argmax(1) == labels
    ours = u.confidence_calibration_error(probabilities.max(1), correct)
    assert ours == pytest.approx(expected.item(), abs=1e-6)


def test_bins_are_open_below_and_closed_above():
    confidence = np.array([0.6, 0.8, 1 + 1e-7])  # 9/15, 12/15, and a float32 softmax above 1
    binned = u.confidence_bins(confidence, np.ones(3, bool))
    assert np.flatnonzero(binned["count"]).tolist() == [8, 11, 14]
    assert np.isnan(binned["accuracy"][0]) and binned["accuracy"][8] == 1
    error = u.confidence_calibration_error(confidence, np.ones(3, bool))
    assert error == pytest.approx((0.4 + 0.2) / 3, abs=1e-6)


def test_bins_of_equal_mass_keep_ties_together():
    confidence = np.repeat([0.3, 0.9], [70, 30])
    binned = u.confidence_bins(confidence, np.ones(100, bool), bins=10, equal_mass=True)
    assert binned["count"].tolist() == [70, 30]
    error = u.confidence_calibration_error(confidence, np.ones(100, bool), 10, equal_mass=True)
    assert error == pytest.approx(0.7 * 0.7 + 0.3 * 0.1)
    binned = u.confidence_bins(np.linspace(0.1, 1, 90), np.ones(90, bool), 3, equal_mass=True)
    assert binned["count"].tolist() == [30, 30, 30]


def test_likelihood_brier_and_top_five_are_scikit_learns():
    probabilities, labels = predicted(classes=9)
    log_loss = metrics.log_loss(labels, probabilities, labels=range(9))
    top5 = metrics.top_k_accuracy_score(labels, probabilities, k=5, labels=range(9))
    assert u.nll_per_image(probabilities, labels).mean() == pytest.approx(log_loss)
    assert u.top5_correct(probabilities, labels).mean() == pytest.approx(top5)
    two, target = predicted(classes=2)
    one_class = metrics.brier_score_loss(target, two[:, 1])  # it counts one of the two classes
    assert u.brier_per_image(two, target).mean() == pytest.approx(2 * one_class)
    assert u.brier_per_image(np.eye(2)[[0, 0]], [1, 1]).tolist() == [2, 2]
    assert u.nll_per_image(np.eye(2), [1, 1]).tolist() == [np.inf, 0]


def test_classes_without_votes_are_not_among_the_first_five():
    votes = np.zeros((3, 8))
    votes[:, [2, 6]] = [0.25, 0.75]
    assert u.top5_correct(votes, [2, 6, 0]).tolist() == [True, True, False]
    three = np.array([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    assert u.top5_correct(three, [2, 0]).tolist() == [False, True]


def test_a_calibrated_classifier_has_the_ece_that_chance_gives():
    # One bin: the mean absolute deviation of a binomial share is √(2/π) σ.
    expected = np.sqrt(2 / np.pi * 0.9 * 0.1 / 900)
    assert u.calibrated_ece(np.full(900, 0.9), draws=2000) == pytest.approx(expected, rel=0.05)
    assert u.calibrated_ece(np.ones(50), draws=5) == 0


# ------------------------------------------------------------------------------------------- ranks
def test_effective_rank_of_known_spectra():
    generator = np.random.default_rng(0)
    left = np.linalg.qr(generator.normal(size=(100, 6)))[0]
    left = np.linalg.qr(left - left.mean(0))[0]
    right = np.linalg.qr(generator.normal(size=(8, 6)))[0]
    values = np.array([5.0, 4.0, 3.0, 1.0, 0.5, 0.1])
    rank = u.effective_rank(left * values @ right.T + 3)
    assert rank == pytest.approx(np.exp(stats.entropy(values)), rel=1e-9)
    assert u.effective_rank(left @ right.T * 1e-5 + 1) == pytest.approx(6, rel=1e-6)


def test_collapsed_features_have_no_rank():
    generator = np.random.default_rng(0)
    point = generator.standard_normal(64)
    rounding = 1 + 1e-7 * generator.standard_normal((1000, 64))
    for features in (np.full((10, 3), 0.1), (point * rounding).astype(np.float32)):
        with pytest.raises(u.UndefinedStatistic, match="collapsed"):
            u.effective_rank(features)


def test_rank_correlation_is_undefined_for_a_constant():
    first, second = np.random.default_rng(0).normal(size=(2, 50))
    expected = stats.spearmanr(first, second).statistic
    assert u.rank_correlation(first, second) == pytest.approx(expected)
    with pytest.raises(u.UndefinedStatistic, match="constant"):
        u.rank_correlation([0.1 + 0.2, 0.3, 0.3], [1, 2, 3])  # equal up to rounding


def test_rank_correlation_per_image_is_scipys():
    values = np.random.default_rng(0).integers(4, size=(30, 6)).astype(float)
    severity = np.array([1, 2, 3, 4, 5, 6.5])
    values[0] = 1
    expected = [0] + [stats.spearmanr(severity, row).statistic for row in values[1:]]
    np.testing.assert_allclose(u.rank_correlation_per_image(severity, values), expected, atol=1e-12)
    assert not u.rank_correlation_per_image(np.ones(6), values).any()


# --------------------------------------------------------------------------------------- bootstrap
def test_bootstrap_of_a_mean_is_the_normal_interval():
    values = np.random.default_rng(0).normal(size=2000)
    low, high = u.bootstrap_interval(np.mean, values, draws=4000)
    error = values.std() / np.sqrt(2000)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_undefined_draws_are_drawn_again_until_they_are_the_rule():
    score = np.arange(30.0)
    low, high = u.bootstrap_interval(u.auroc, score, score == 3, draws=100)
    assert 0 <= low <= high <= 1  # a third of the draws holds no positive
    pair = ([1.0, 2.0, 3.0], [1.0, 2.0, 4.0])  # one draw in nine is of a single image
    assert u.bootstrap_interval(u.rank_correlation, *pair, draws=200) == (1, 1)

    def mostly_undefined(values):
        if len(np.unique(values)) < 10:
            raise u.UndefinedStatistic("too few")
        return 0.0

    with pytest.raises(u.UndefinedStatistic, match="too few images"):
        u.bootstrap_interval(mostly_undefined, np.arange(10), draws=20)


def test_a_recentred_interval_lies_around_the_estimate():
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.5, 1, 4000)
    correct = generator.uniform(size=4000) < confidence  # calibrated: the error is that of chance
    arrays = (u.confidence_calibration_error, confidence, correct)
    error = u.confidence_calibration_error(confidence, correct)
    low, high = u.bootstrap_interval(*arrays, draws=300)
    shifted_low, shifted_high = u.bootstrap_interval(*arrays, draws=300, recentred=True)
    assert shifted_low < error < shifted_high
    assert low - shifted_low > error / 5
    assert shifted_high - shifted_low == pytest.approx(high - low)


def test_a_row_has_nan_where_something_is_undefined():
    score = np.arange(20.0)
    undefined = u.with_interval(u.auroc, score, np.ones(20, bool), draws=10)
    assert np.isnan(list(undefined.values())).all()
    without = u.with_interval(np.mean, score, draws=0)
    assert without["value"] == 9.5 and np.isnan(without["ci_low"])


# ------------------------------------------------------------------------------------------ errors
HALF = np.full((4, 2), 0.5)
RIGHT = np.array([True, False, True, True])


@pytest.mark.parametrize(
    ("call", "culprit"),
    [
        (lambda: u.brier_per_image(HALF, [0, 1]), "labels"),
        (lambda: u.nll_per_image(1.01 * HALF, [0, 1, 0, 1]), "sum"),
        (lambda: u.auroc(np.arange(4.0), np.arange(4)), "0/1"),
        (lambda: u.confidence_calibration_error(np.full(4, 1e6), RIGHT), "confidence"),
    ],
)
def test_what_would_silently_give_a_wrong_measure_is_refused(call, culprit):
    with pytest.raises(ValueError, match=culprit):
        call()
