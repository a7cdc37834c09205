"""lib.evaluation.uncertainty against scikit-learn, torchmetrics, sums and closed forms."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics
from sklearn.neighbors import NearestNeighbors
from torch_uncertainty.metrics.classification import AUGRC, AURC
from torchmetrics.functional.classification import multiclass_calibration_error

from lib.evaluation import uncertainty as u

RANKED = [u.auroc, u.average_precision, u.fpr_at_95_tpr, u.roc_curve]
SELECTIVE = [u.risk_coverage_curve, u.aurc, u.excess_aurc, u.augrc]


def scored(n=400, seed=0, levels=None):
    """Scores that rank positives somewhat higher; `levels`: rounded to that many values."""
    generator = np.random.default_rng(seed)
    positive = generator.random(n) < 0.6
    score = generator.normal(size=n) + positive
    if levels:
        score = np.round(score * levels / 6)
    return score, positive


def predicted(n=500, classes=7, seed=0):
    """Random class probabilities and labels."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(n, classes)) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probabilities, generator.integers(classes, size=n)


def holds_both_classes(rows):
    return len({positive for _, positive in rows}) == 2


tied_scores = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30)


# ----------------------------------------------------------------------------------------- ranking
@settings(max_examples=60, deadline=None)
@given(tied_scores.filter(holds_both_classes), st.sampled_from([1e-6, 1.0, 1e12]))
def test_ranking_measures_are_scikit_learns_ties_included(rows, scale):
    score = scale * np.array([score for score, _ in rows])
    positive = np.array([positive for _, positive in rows])
    auroc = metrics.roc_auc_score(positive, score)
    precision = metrics.average_precision_score(positive, score)
    false, true, _ = metrics.roc_curve(positive, score, drop_intermediate=False)
    assert u.auroc(score, positive) == pytest.approx(auroc, abs=1e-12)
    assert u.average_precision(score, positive) == pytest.approx(precision, abs=1e-12)
    assert u.fpr_at_95_tpr(score, positive) == false[true >= 0.95].min()


def test_auroc_equals_the_count_over_all_pairs_and_over_those_of_a_group():
    score, positive = scored(120, levels=5)
    group = np.random.default_rng(2).choice(["cat", "deer", "frog"], size=120)
    group[np.flatnonzero(positive)[:9]] = "positives only"  # no pair
    difference = score[positive][:, None] - score[~positive][None]
    wins = (difference > 0) + 0.5 * (difference == 0)
    same = group[positive][:, None] == group[~positive][None]
    assert u.auroc(score, positive) == pytest.approx(wins.mean(), abs=1e-14)
    assert u.auroc(score, positive, group) == pytest.approx(wins[same].mean(), abs=1e-14)
    assert u.auroc(score, positive, np.full(120, 3)) == u.auroc(score, positive)


def test_differences_between_groups_do_not_enter():
    score, positive = scored(300)
    group = np.arange(300) % 3
    positive[group == 2] = np.arange(100) < 99  # nearly always right, and with the highest scores
    shifted = score + 50 * group
    within = u.auroc(score, positive, group)
    assert u.auroc(shifted, positive, group) == within < u.auroc(shifted, positive)


def test_groups_must_hold_pairs():
    score, positive = scored(20)
    with pytest.raises(u.UndefinedStatistic):
        u.auroc(score, positive, positive)
    for group in (np.arange(19), np.full(20, np.nan)):
        with pytest.raises(ValueError, match="group"):
            u.auroc(score, positive, group)


@pytest.mark.parametrize(
    "transform", [lambda x: 1e6 + x, lambda x: 1e6 * np.exp(x), lambda x: np.arctan(x) * 1e-6]
)
def test_only_the_order_of_scores_counts(transform):
    score, positive = scored()
    shuffled = np.random.default_rng(1).permutation(len(score))
    for measure in (*RANKED[:3], *SELECTIVE[1:]):
        value = measure(score, positive)
        assert measure(transform(score), positive) == value
        assert measure(score[shuffled], positive[shuffled]) == pytest.approx(value, abs=1e-13)


def test_a_constant_score_is_as_good_as_chance():
    _, positive = scored()
    constant = np.full(len(positive), 7.0)
    rate = positive.mean()
    count = len(positive)
    assert u.auroc(constant, positive) == 0.5
    assert u.average_precision(constant, positive) == pytest.approx(rate)
    assert u.fpr_at_95_tpr(constant, positive) == 1
    assert u.aurc(constant, positive) == pytest.approx(1 - rate)
    assert u.augrc(constant, positive) == pytest.approx((1 - rate) * (count + 1) / (2 * count))


def test_a_threshold_that_finds_exactly_95_percent_counts():
    positive = np.arange(40) < 20
    score = np.where(positive, 20.0 - np.arange(40), 1.5)
    score[score == 1] = 0.0  # 19 of 20 positives lie above every negative
    assert u.fpr_at_95_tpr(score, positive) == 0
    score[18] = 0.5  # now only 18 do
    assert u.fpr_at_95_tpr(score, positive) == 1


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


@pytest.mark.parametrize(
    "scores", [[0, 1, 2, 3, 4, 5, 6], [0, 0, 1, 1, 1, 2, 2], [2, 1, 1, 0, 0, 0, 5]]
)
def test_ties_are_averaged_over_every_order(scores):
    correct = np.array([1, 0, 1, 0, 1, 0, 1], bool)
    aurc, augrc = by_all_tie_orders(np.array(scores), correct)
    assert u.aurc(scores, correct) == pytest.approx(aurc, abs=1e-14)
    assert u.augrc(scores, correct) == pytest.approx(augrc, abs=1e-14)


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


def test_augrc_has_its_closed_form():
    uncertainty, wrong = scored(300, levels=9)
    accuracy = 1 - wrong.mean()
    pairs = (1 - u.auroc(-uncertainty, ~wrong)) * accuracy * (1 - accuracy)
    expected = pairs + (1 - accuracy) ** 2 / 2 + (1 - accuracy) / 600
    assert u.augrc(uncertainty, ~wrong) == pytest.approx(expected, abs=1e-14)


def test_a_perfect_order_has_no_excess():
    correct = np.random.default_rng(0).random(50) < 0.7
    perfect = (~correct).astype(float)
    random = np.random.default_rng(1).normal(size=50)
    assert u.excess_aurc(perfect, correct) == 0
    assert 0 < u.excess_aurc(random, correct) < u.excess_aurc(-perfect, correct)
    assert u.excess_aurc(random, correct.astype(int)) == u.excess_aurc(random, correct)


def test_selective_risks_are_defined_for_a_single_class():
    uncertainty = np.arange(20.0)
    right = np.ones(20, dtype=bool)
    assert [measure(uncertainty, right) for measure in SELECTIVE[1:]] == [0, 0, 0]
    wrong = [measure(uncertainty, ~right) for measure in SELECTIVE[1:]]
    assert wrong == [1, 0, pytest.approx(21 / 40)]


# -------------------------------------------------------------------------------------- neighbours
@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_nearest_neighbours_are_scikit_learns(scale):
    generator = np.random.default_rng(0)
    embeddings = generator.normal(size=(150, 5))
    labels = generator.integers(3, size=150)
    neighbours = NearestNeighbors(n_neighbors=1, metric="cosine").fit(embeddings)
    nearest = neighbours.kneighbors(return_distance=False)[:, 0]
    hit = labels[nearest] == labels
    ours = u.nearest_neighbour_correct(scale * embeddings, labels, chunk=37)
    np.testing.assert_array_equal(ours, hit)
    named = np.array(["cat", "dog", "frog"])[labels]
    np.testing.assert_array_equal(u.nearest_neighbour_correct(embeddings, named), hit)
    uncertainty = generator.normal(size=150) - hit
    expected = metrics.roc_auc_score(hit, -uncertainty)
    assert u.recall_auroc(embeddings, labels, uncertainty) == pytest.approx(expected, abs=1e-12)


def test_an_image_is_never_its_own_neighbour():
    assert not u.nearest_neighbour_correct(np.eye(4) + 0.01, np.arange(4)).any()


# ------------------------------------------------------------------------------------- calibration
def test_calibration_error_is_torchmetrics():
    probabilities, labels = predicted()
    expected = multiclass_calibration_error(
        torch.tensor(probabilities), torch.tensor(labels), num_classes=7, n_bins=15, norm="l1"
    )
    ours = u.expected_calibration_error(probabilities, labels)
    assert ours == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("names", [list("abcdefg"), range(2018, 2025)])
def test_labels_may_be_strings_and_any_numbers(names):
    probabilities, labels = predicted()
    names = np.array(names)
    for measure in (u.expected_calibration_error, u.negative_log_likelihood, u.brier_score):
        value = measure(probabilities, labels)
        assert measure(probabilities, names[labels]) == value
        assert measure(probabilities, names[labels], classes=names) == value
        turned = measure(probabilities[:, ::-1], names[labels], classes=names[::-1])
        assert turned == pytest.approx(value, abs=1e-14)


def test_a_label_without_a_column_is_wrong():
    probabilities = np.array([[0.75, 0.25], [0.5, 0.5]])
    labels = ["cat", "fish"]
    classes = ["cat", "dog"]
    assert u.nll_per_image(probabilities, labels, classes).tolist() == [-np.log(0.75), np.inf]
    assert u.brier_per_image(probabilities, labels, classes).tolist() == [0.125, 0.5]
    assert u.top5_correct(probabilities, labels, classes).tolist() == [True, False]
    error = u.expected_calibration_error(probabilities, labels, classes=classes)
    assert error == pytest.approx((0.25 + 0.5) / 2)


def test_bins_are_open_below_and_closed_above():
    confidence = np.array([0.6, 0.8, 1 + 1e-7])  # 9/15, 12/15, and a float32 softmax above 1
    binned = u.confidence_bins(confidence, np.ones(3, bool))
    assert np.flatnonzero(binned["count"]).tolist() == [8, 11, 14]
    assert np.isnan(binned["accuracy"][0]) and binned["accuracy"][8] == 1
    error = u.confidence_calibration_error(confidence, np.ones(3, bool))
    assert error == pytest.approx((0.4 + 0.2) / 3, abs=1e-6)


@pytest.mark.parametrize("equal_mass", [False, True])
def test_calibration_error_is_the_gap_of_its_bins(equal_mass):
    probabilities, labels = predicted(600)
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == labels
    binned = u.confidence_bins(confidence, correct, 10, equal_mass)
    total = 0
    for low, high, count in zip(binned["low"], binned["high"], binned["count"], strict=True):
        inside = (confidence > low) & (confidence <= high)
        assert inside.sum() == count
        total += abs(correct[inside].sum() - confidence[inside].sum()) / 600
    error = u.expected_calibration_error(probabilities, labels, 10, equal_mass)
    assert error == pytest.approx(total, abs=1e-14)
    if equal_mass:
        assert (binned["count"] == 60).all()


def test_bins_of_equal_mass_keep_ties_together():
    confidence = np.repeat([0.3, 0.9], [70, 30])
    binned = u.confidence_bins(confidence, np.ones(100, bool), bins=10, equal_mass=True)
    assert binned["count"].tolist() == [70, 30]


def test_likelihood_brier_and_top_five_are_scikit_learns():
    probabilities, labels = predicted(classes=9)
    log_loss = metrics.log_loss(labels, probabilities, labels=range(9))
    top5 = metrics.top_k_accuracy_score(labels, probabilities, k=5, labels=range(9))
    assert u.negative_log_likelihood(probabilities, labels) == pytest.approx(log_loss)
    assert u.top5_correct(probabilities, labels).mean() == pytest.approx(top5)
    two, target = predicted(classes=2)
    one_class = metrics.brier_score_loss(target, two[:, 1])  # it counts one of the two classes
    assert u.brier_score(two, target) == pytest.approx(2 * one_class)
    assert u.brier_score(np.eye(2)[[0, 0]], [1, 1]) == 2
    assert u.negative_log_likelihood(np.eye(2), [1, 1]) == np.inf


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
    pearson_of_ranks = np.corrcoef(stats.rankdata(first), stats.rankdata(second))[0, 1]
    assert u.rank_correlation(first, second) == pytest.approx(pearson_of_ranks)
    assert np.isnan(u.rank_correlation(first, np.ones(50)))
    assert np.isnan(u.rank_correlation([0.1 + 0.2, 0.3, 0.3], [1, 2, 3]))  # equal up to rounding


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


def test_bootstrap_equals_resampling_by_hand():
    score, positive = scored(200, levels=9)
    generator = np.random.default_rng(0)
    values = []
    for _ in range(50):
        rows = generator.integers(200, size=200)
        values.append(u.auroc(score[rows], positive[rows]))
    expected = tuple(np.quantile(values, [0.025, 0.975]))
    interval = u.bootstrap_interval(u.auroc, score, positive, draws=50)
    assert interval == pytest.approx(expected, abs=1e-14)
    assert interval != u.bootstrap_interval(u.auroc, score, positive, draws=50, seed=1)


def test_bootstrap_is_paired():
    score, positive = scored()
    other = score + 0.1 * np.random.default_rng(1).normal(size=len(score))

    def difference(first, second, positive):
        return u.auroc(first, positive) - u.auroc(second, positive)

    assert u.bootstrap_interval(difference, score, score, positive, draws=50) == (0, 0)
    low, high = u.bootstrap_interval(difference, score, other, positive, draws=200)
    single_low, single_high = u.bootstrap_interval(u.auroc, score, positive, draws=200)
    assert high - low < 0.5 * (single_high - single_low)


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
    assert list(undefined) == ["value", "ci_low", "ci_high"]
    assert np.isnan(list(undefined.values())).all()
    without = u.with_interval(np.mean, score, draws=0)
    assert without["value"] == 9.5 and np.isnan(without["ci_low"])


# ------------------------------------------------------------------------------------------ errors
@pytest.mark.parametrize("measure", RANKED + SELECTIVE)
def test_bad_scores_are_errors(measure):
    score, positive = scored(20)
    for arguments, culprit in [
        ((np.append(score[:-1], np.nan), positive), "NaN"),
        ((score[:-1], positive), "shapes"),
        ((score[:, None], positive[:, None]), "shapes"),
        ((score[:0], positive[:0]), "empty"),
        ((score, np.arange(20)), "0/1"),
    ]:
        with pytest.raises(ValueError, match=culprit):
            measure(*arguments)
    if measure in RANKED:
        with pytest.raises(u.UndefinedStatistic):
            measure(score, np.ones(20, dtype=bool))


@pytest.mark.parametrize(
    "measure",
    [u.negative_log_likelihood, u.brier_score, u.expected_calibration_error, u.top5_correct],
)
def test_bad_probabilities_are_errors(measure):
    probabilities, labels = predicted(20)
    with_nan = np.where(probabilities == probabilities.max(), np.nan, probabilities)
    for arguments, culprit in [
        ((with_nan, labels), "NaN"),
        ((probabilities, labels[:-1]), "labels"),
        ((probabilities[:0], labels[:0]), "at least one row"),
        ((np.ones((20, 1)), labels), "C >= 2"),
        ((probabilities * 1.01, labels), "summing to 1"),
        ((probabilities, labels + 1), "pass classes"),
        ((probabilities, labels + 0.5), "labels"),
        ((probabilities, ["cat"] * 20), "pass classes"),
    ]:
        with pytest.raises(ValueError, match=culprit):
            measure(*arguments)
    measure(probabilities * 1.0009, labels)
    with pytest.raises(ValueError, match="among the classes"):
        measure(probabilities, labels, classes=list("abcdefg"))


def test_bad_confidences_are_errors():
    confidence = np.full(50, 0.7)
    correct = np.arange(50) < 20
    for bad in (np.where(correct, np.nan, 0.7), confidence * 1e6, -confidence, np.zeros(50)):
        with pytest.raises(ValueError, match="confidence"):
            u.confidence_calibration_error(bad, correct)
    for bad in (np.arange(50), np.where(correct, 1.0, np.nan)):
        with pytest.raises(ValueError, match="correct"):
            u.confidence_calibration_error(confidence, bad)
    for bins in (2.5, 0, np.nan):
        with pytest.raises(ValueError, match="bins"):
            u.confidence_calibration_error(confidence, correct, bins=bins)


def test_bad_embeddings_and_samples_are_errors():
    embeddings = np.random.default_rng(0).normal(size=(10, 3))
    labels = np.arange(10) % 2
    with pytest.raises(ValueError, match="NaN"):
        u.recall_auroc(np.where(embeddings > 1, np.nan, embeddings), labels, np.arange(10))
    with pytest.raises(ValueError, match="labels"):
        u.recall_auroc(embeddings, labels[:-1], np.arange(10))
    for arrays in ((), (np.arange(3), np.arange(4)), (np.array([]),), (np.array([1, np.nan]),)):
        with pytest.raises(ValueError, match=r"same N|NaN"):
            u.bootstrap_interval(np.mean, *arrays)
    for draws in (0, np.nan):
        with pytest.raises(ValueError, match="draws"):
            u.bootstrap_interval(np.mean, np.arange(3), draws=draws)
    for arrays in (([1, 2, np.nan], [1, 2, 3]), ([], []), ([1, 2], [1, 2, 3])):
        with pytest.raises(ValueError):
            u.rank_correlation(*arrays)
    for severity, values in (
        (np.arange(5), embeddings),
        (np.arange(1), embeddings[:, :1]),
        (np.arange(3), embeddings[0]),
    ):
        with pytest.raises(ValueError):
            u.rank_correlation_per_image(severity, values)
