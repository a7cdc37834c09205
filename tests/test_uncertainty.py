from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics
from torch_uncertainty.metrics.classification import AUGRC, AURC
from torchmetrics.functional.classification import multiclass_calibration_error

from lib import uncertainty as u

RANKED = [u.auroc, u.average_precision, u.fpr_at_95_tpr, u.roc_curve, u.permutation_test_auroc]
SELECTIVE = [u.risk_coverage_curve, u.aurc, u.excess_aurc, u.augrc]


def sample(n=400, seed=0, levels=None):
    """Scores that rank the positives somewhat higher; with `levels`, rounded to that many distinct values."""
    generator = np.random.default_rng(seed)
    positive = generator.random(n) < 0.6
    score = generator.normal(size=n) + positive
    return (np.round(score * levels / 6) if levels else score), positive


def softmax(n=500, classes=7, seed=0):
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(n, classes)) * 2
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True), generator.integers(classes, size=n)


binary = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30).filter(lambda rows: len({y for _, y in rows}) == 2)


@settings(max_examples=60, deadline=None)
@given(binary)
def test_ranking_measures_agree_with_scikit_learn_ties_included(rows):
    score, positive = (np.array(column) for column in zip(*rows, strict=True))
    false, true, threshold = metrics.roc_curve(positive, score, drop_intermediate=False)
    assert u.auroc(score, positive) == pytest.approx(metrics.roc_auc_score(positive, score), abs=1e-12)
    assert u.average_precision(score, positive) == pytest.approx(metrics.average_precision_score(positive, score), abs=1e-12)
    for ours, theirs in zip(u.roc_curve(score, positive), (false, true, threshold), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-15)
    assert u.fpr_at_95_tpr(score, positive) == false[true >= 0.95].min()


def test_auroc_equals_the_count_over_all_pairs():
    score, positive = sample(120, levels=5)
    pairs = score[positive][:, None] - score[~positive][None]
    assert u.auroc(score, positive) == pytest.approx(np.mean((pairs > 0) + 0.5 * (pairs == 0)), abs=1e-14)


@pytest.mark.parametrize("transform", [lambda x: 1e6 + x, lambda x: 1e6 * np.exp(x), lambda x: np.arctan(x) * 1e-6])
def test_ranking_is_unchanged_by_a_monotone_transform_and_by_the_order_of_images(transform):
    score, positive = sample()
    shuffled = np.random.default_rng(1).permutation(len(score))
    for measure in (u.auroc, u.average_precision, u.fpr_at_95_tpr, u.aurc, u.excess_aurc, u.augrc):
        assert measure(transform(score), positive) == measure(score, positive)
        assert measure(score[shuffled], positive[shuffled]) == pytest.approx(measure(score, positive), abs=1e-13)


def test_kappa_sized_scores_are_not_squashed():
    kappa, correct = sample()
    assert u.auroc(1e6 + kappa, correct) == u.auroc(kappa, correct) > 0.6


def test_constant_scores_say_nothing():
    _, positive = sample()
    constant = np.full(len(positive), 7.0)
    rate = positive.mean()
    assert u.auroc(constant, positive) == 0.5
    assert u.average_precision(constant, positive) == pytest.approx(rate)
    assert u.fpr_at_95_tpr(constant, positive) == 1
    assert u.aurc(constant, positive) == pytest.approx(1 - rate)
    assert u.permutation_test_auroc(constant, positive, draws=50) == 1


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6, 1e12])
def test_scores_of_the_size_of_kappa_agree_with_scikit_learn_ties_included(scale):
    score, positive = sample(300, seed=4, levels=40)
    score = scale * (score + 10)
    assert u.auroc(score, positive) == pytest.approx(metrics.roc_auc_score(positive, score), abs=1e-12)
    assert u.average_precision(score, positive) == pytest.approx(metrics.average_precision_score(positive, score), abs=1e-12)
    false, true, _ = metrics.roc_curve(positive, score, drop_intermediate=False)
    assert u.fpr_at_95_tpr(score, positive) == false[true >= 0.95].min()
    for measure in (*SELECTIVE[1:], u.permutation_test_auroc):
        options = {"draws": 50} if measure is u.permutation_test_auroc else {}
        assert measure(score, positive, **options) == measure(np.round(score / scale, 6), positive, **options)
    embeddings = np.random.default_rng(0).normal(size=(300, 4))
    hit = u.nearest_neighbour_correct(embeddings, positive)
    assert u.recall_auroc(embeddings, positive, score) == pytest.approx(metrics.roc_auc_score(hit, -score), abs=1e-12)


def test_constant_scores_select_as_well_as_chance():
    _, correct = sample()
    constant, error, n = np.full(len(correct), -3e5), 1 - correct.mean(), len(correct)
    perfect = np.mean(np.maximum(0, np.arange(1, n + 1) - correct.sum()) / np.arange(1, n + 1))
    assert u.excess_aurc(constant, correct) == pytest.approx(error - perfect)
    assert u.augrc(constant, correct) == pytest.approx(error * (n + 1) / (2 * n))
    np.testing.assert_allclose(u.risk_coverage_curve(constant, correct)[1], error)
    embeddings = np.random.default_rng(0).normal(size=(n, 3))
    assert u.recall_auroc(embeddings, correct, constant) == 0.5
    with pytest.raises(ValueError, match="NaN"):
        u.recall_auroc(embeddings, correct, np.where(correct, np.nan, constant))


def test_confidences_that_are_none_are_errors_and_ties_share_a_bin():
    confidence, correct = np.full(50, 0.7), np.arange(50) < 20
    for equal_mass in (False, True):
        assert u.confidence_calibration_error(confidence, correct, equal_mass=equal_mass) == pytest.approx(0.7 - 0.4)
        assert u.confidence_calibration_error(confidence, np.ones(50, bool), equal_mass=equal_mass) == pytest.approx(0.3)  # a single class is fine
    for bad in (np.where(correct, np.nan, 0.7), confidence * 1e6, -confidence, np.zeros(50)):
        with pytest.raises(ValueError, match="confidence must lie"):
            u.confidence_calibration_error(bad, correct)
    for bad in (np.arange(50), np.full(50, np.nan), np.where(correct, 1.0, np.nan)):
        with pytest.raises(ValueError, match="correct must be boolean or 0/1"):
            u.confidence_calibration_error(confidence, bad)
    with pytest.raises(ValueError, match="bins must be a whole number"):
        u.confidence_calibration_error(confidence, correct, bins=2.5)
    with pytest.raises(ValueError, match="NaN"):
        u.effective_rank(np.where(np.eye(5) > 0, np.nan, 1.0))


def test_fpr_at_95_tpr_counts_a_threshold_that_reaches_exactly_95_percent():
    positive = np.arange(40) < 20
    score = np.where(positive, 20.0 - np.arange(40), 1.5)  # 19 of 20 positives lie above every negative
    score[score == 1] = 0.0
    assert u.fpr_at_95_tpr(score, positive) == 0
    score[18] = 0.5  # now only 18 do
    assert u.fpr_at_95_tpr(score, positive) == 1


# ------------------------------------------------------------------------------------------------ selective prediction


def by_all_tie_orders(uncertainty, correct):
    """AURC and generalised AURC as means over every order that sorts the uncertainty."""
    wrong, n = ~np.asarray(correct), len(correct)
    orders = [order for order in permutations(range(n)) if all(np.diff(np.asarray(uncertainty)[list(order)]) >= 0)]
    errors = np.array([np.cumsum(wrong[list(order)]) for order in orders])
    return (errors / np.arange(1, n + 1)).mean(), (errors / n).mean()


@pytest.mark.parametrize("scores", [[0, 1, 2, 3, 4, 5, 6], [0, 0, 1, 1, 1, 2, 2], [3, 3, 3, 3, 3, 3, 3], [2, 1, 1, 0, 0, 0, 5]])
@pytest.mark.parametrize("correct", [[1, 0, 1, 0, 1, 0, 1], [0, 0, 1, 1, 1, 1, 0]])
def test_ties_are_averaged_over_every_order(scores, correct):
    aurc, augrc = by_all_tie_orders(scores, np.array(correct, dtype=bool))
    assert u.aurc(scores, correct) == pytest.approx(aurc, abs=1e-14)
    assert u.augrc(scores, correct) == pytest.approx(augrc, abs=1e-14)


def test_risk_coverage_agrees_with_torch_uncertainty():
    # Theirs is the trapezoidal rule between coverages 1/N and 1 divided by that range; ours the mean over the same points.
    confidence = np.random.default_rng(0).permutation(np.linspace(0.51, 0.99, 200))
    correct = np.random.default_rng(1).random(200) < confidence
    probabilities = torch.tensor(np.stack([confidence, 1 - confidence], 1))
    coverage, risk = u.risk_coverage_curve(-confidence, correct)
    for metric, values, ours in ((AURC(), risk, u.aurc), (AUGRC(), risk * coverage, u.augrc)):
        metric.update(probabilities, torch.tensor(~correct).long())
        assert ours(-confidence, correct) == pytest.approx(values.mean(), abs=1e-14)
        assert (values.sum() - (values[0] + values[-1]) / 2) / 199 == pytest.approx(metric.compute().item(), abs=1e-6)


def test_augrc_has_its_closed_form():
    uncertainty, wrong = sample(300, levels=9)
    accuracy = 1 - wrong.mean()
    expected = (1 - u.auroc(-uncertainty, ~wrong)) * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2 + (1 - accuracy) / 600
    assert u.augrc(uncertainty, ~wrong) == pytest.approx(expected, abs=1e-14)


def test_a_perfect_order_has_no_excess_and_the_reverse_the_most():
    correct = np.random.default_rng(0).random(50) < 0.7
    wrong_count, n = int((~correct).sum()), 50
    ideal = sum((k - (n - wrong_count)) / k for k in range(n - wrong_count + 1, n + 1)) / n
    assert u.aurc((~correct).astype(float), correct) == pytest.approx(ideal, abs=1e-14)
    assert u.excess_aurc((~correct).astype(float), correct) == 0
    random = np.random.default_rng(1).normal(size=50)
    assert 0 < u.excess_aurc(random, correct) < u.excess_aurc(correct.astype(float), correct)
    assert u.excess_aurc(random, correct.astype(int)) == u.excess_aurc(random, correct)


def test_recall_auroc_against_scikit_learn_and_in_chunks():
    from sklearn.neighbors import NearestNeighbors

    generator = np.random.default_rng(0)
    embeddings, labels = generator.normal(size=(150, 5)), generator.integers(3, size=150)
    nearest = NearestNeighbors(n_neighbors=2, metric="cosine").fit(embeddings).kneighbors(embeddings, return_distance=False)[:, 1]
    hit = labels[nearest] == labels
    np.testing.assert_array_equal(u.nearest_neighbour_correct(embeddings, labels), hit)
    np.testing.assert_array_equal(u.nearest_neighbour_correct(embeddings * 1e-3, labels, chunk=37), hit)
    uncertainty = generator.normal(size=150) - hit
    assert u.recall_auroc(embeddings, labels, uncertainty) == pytest.approx(metrics.roc_auc_score(hit, -uncertainty), abs=1e-12)


def test_a_neighbour_is_never_the_image_itself():
    embeddings = np.eye(4) + 0.01
    assert not u.nearest_neighbour_correct(embeddings, np.arange(4)).any()


# --------------------------------------------------------------------------------------------------------- calibration


def test_calibration_error_agrees_with_torchmetrics():
    probabilities, labels = softmax()
    theirs = multiclass_calibration_error(torch.tensor(probabilities), torch.tensor(labels), num_classes=7, n_bins=15, norm="l1")
    assert u.expected_calibration_error(probabilities, labels) == pytest.approx(theirs.item(), abs=1e-6)


def test_calibration_bins_are_open_below_and_closed_above():
    probabilities = np.array([[0.6, 0.4], [0.8, 0.2], [1.0, 0.0]])  # 0.6 = 9/15 and 0.8 = 12/15 are edges
    binned = u.confidence_bins(probabilities.max(1), np.ones(3, bool))
    assert np.flatnonzero(binned["count"]).tolist() == [8, 11, 14]
    np.testing.assert_array_equal(binned["high"][[8, 11, 14]], [0.6, 0.8, 1.0])
    assert np.isnan(binned["accuracy"][0]) and binned["accuracy"][8] == 1
    assert u.expected_calibration_error(probabilities, np.array([0, 0, 0])) == pytest.approx((0.4 + 0.2) / 3)


@pytest.mark.parametrize("equal_mass", [False, True])
def test_calibration_error_is_the_gap_of_the_reliability_bins(equal_mass):
    probabilities, labels = softmax(600)
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    binned = u.confidence_bins(confidence, correct, 10, equal_mass)
    total = 0
    for low, high, count in zip(binned["low"], binned["high"], binned["count"], strict=True):
        inside = (confidence > low) & (confidence <= high)
        assert inside.sum() == count
        total += abs(correct[inside].sum() - confidence[inside].sum()) / 600
    assert u.expected_calibration_error(probabilities, labels, 10, equal_mass) == pytest.approx(total, abs=1e-14)
    assert binned["count"].sum() == 600
    if equal_mass:
        assert (binned["count"] == 60).all()


def test_equal_mass_bins_keep_ties_together():
    binned = u.confidence_bins(np.repeat([0.3, 0.9], [70, 30]), np.ones(100, dtype=bool), bins=10, equal_mass=True)
    assert binned["count"].tolist() == [70, 30]


def test_likelihood_and_brier_agree_with_scikit_learn():
    probabilities, labels = softmax()
    assert u.negative_log_likelihood(probabilities, labels) == pytest.approx(metrics.log_loss(labels, probabilities, labels=range(7)))
    assert u.brier_score(probabilities, labels) == pytest.approx(((probabilities - np.eye(7)[labels]) ** 2).sum(1).mean())
    assert u.brier_score(np.eye(2)[[0, 0]], np.array([1, 1])) == 2
    assert u.negative_log_likelihood(np.eye(2), np.array([1, 1])) == np.inf
    two, target = softmax(classes=2)  # scikit-learn's binary Brier score counts one of the two classes
    assert u.brier_score(two, target) == pytest.approx(2 * metrics.brier_score_loss(target, two[:, 1]))


def test_effective_rank_of_known_spectra():
    generator = np.random.default_rng(0)
    left = np.linalg.qr(generator.normal(size=(100, 6)))[0]
    left = np.linalg.qr(left - left.mean(0))[0]
    right = np.linalg.qr(generator.normal(size=(8, 6)))[0]
    values = np.array([5.0, 4.0, 3.0, 1.0, 0.5, 0.1])
    features = left * values @ right.T + 3
    assert u.effective_rank(features) == pytest.approx(np.exp(stats.entropy(values)), rel=1e-9)
    assert u.effective_rank(left @ right.T * 1e-5 + 1) == pytest.approx(6, rel=1e-6)
    assert u.effective_rank(np.outer(generator.normal(size=50), generator.normal(size=9))) == pytest.approx(1, abs=1e-9)
    with pytest.raises(ValueError, match="collapsed"):
        u.effective_rank(np.full((10, 3), 0.1))


# -------------------------------------------------------------------------------------------------- intervals and tests


def test_bootstrap_of_a_mean_matches_the_normal_interval():
    values = np.random.default_rng(0).normal(size=2000)
    low, high = u.bootstrap_interval(lambda x: float(x.mean()), values, draws=4000)
    error = values.std() / np.sqrt(2000)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    narrow = u.bootstrap_interval(lambda x: float(x.mean()), values, draws=4000, level=0.5)
    assert low < narrow[0] < values.mean() < narrow[1] < high


def test_bootstrap_of_auroc_equals_resampling_by_hand():
    score, positive = sample(200, levels=9)
    generator = np.random.default_rng(0)
    values = [u.auroc(score[rows], positive[rows]) for rows in (generator.integers(200, size=200) for _ in range(50))]
    assert u.bootstrap_interval(u.auroc, score, positive, draws=50) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])), abs=1e-14)


def test_bootstrap_is_paired():
    score, positive = sample()
    worse = score + np.random.default_rng(1).normal(size=len(score)) * 0.1

    def difference(a, b, y):
        return u.auroc(a, y) - u.auroc(b, y)

    assert u.bootstrap_interval(difference, score, score, positive, draws=50) == (0, 0)
    low, high = u.bootstrap_interval(difference, score, worse, positive, draws=200)
    alone = u.bootstrap_interval(u.auroc, score, positive, draws=200)
    assert high - low < 0.5 * (alone[1] - alone[0])


def test_bootstrap_redraws_single_class_samples_and_gives_up_if_they_are_the_rule():
    score, positive = np.arange(30.0), np.arange(30) == 3
    low, high = u.bootstrap_interval(u.auroc, score, positive, draws=100)  # a third of the draws holds no positive
    assert 0 <= low <= high <= 1

    def mostly_undefined(x):
        if len(set(x.tolist())) < 10:
            raise u.UndefinedStatistic("too few")
        return 0.0

    with pytest.raises(ValueError, match="single class"):
        u.bootstrap_interval(mostly_undefined, np.arange(10), draws=20)


def test_bootstrap_repeats_with_its_seed():
    score, positive = sample()
    first = u.bootstrap_interval(u.auroc, score, positive, draws=50)
    assert first == u.bootstrap_interval(u.auroc, score, positive, draws=50)
    assert first != u.bootstrap_interval(u.auroc, score, positive, draws=50, seed=1)


def test_hierarchical_interval_holds_both_sources_of_spread():
    generator = np.random.default_rng(0)
    images = generator.normal(size=400)

    def mean(x):
        return float(x.mean())

    alike = u.hierarchical_interval(mean, [images] * 3, draws=1000)
    assert alike == pytest.approx(u.bootstrap_interval(mean, images, draws=1000), abs=0.02)
    spread = u.hierarchical_interval(mean, [images, images + 10, images - 10], draws=1000)
    assert spread[0] < -5 and spread[1] > 5
    with pytest.raises(ValueError, match="same test images"):
        u.hierarchical_interval(mean, [images, images[:-1]])


def test_hierarchical_interval_equals_resampling_by_hand():
    (first, positive), (second, _) = sample(100), sample(100, seed=1)
    generator, values = np.random.default_rng(0), []
    for _ in range(40):
        rows = generator.integers(100, size=100)  # the same images for every seed
        drawn = [(first, second)[chosen] for chosen in generator.integers(2, size=2)]
        values.append(np.mean([u.auroc(score[rows], positive[rows]) for score in drawn]))
    expected = tuple(np.quantile(values, [0.025, 0.975]))
    assert u.hierarchical_interval(u.auroc, [first, second], [positive] * 2, draws=40) == pytest.approx(expected, abs=1e-14)


def test_hierarchical_interval_never_pools_scores_of_different_scale():
    score, positive = sample()
    assert u.hierarchical_interval(u.auroc, [score, 1e6 * score + 5], [positive] * 2, draws=60) == pytest.approx(
        u.hierarchical_interval(u.auroc, [score, score], [positive] * 2, draws=60), abs=1e-12
    )


def test_permutation_p_value_agrees_with_mann_whitney_and_is_uniform_under_the_null():
    score, positive = sample(60, seed=2)
    score = score - 0.7 * positive
    exact = stats.mannwhitneyu(score[positive], score[~positive], method="asymptotic").pvalue
    assert 0.01 < exact < 0.9
    assert u.permutation_test_auroc(score, positive, draws=4000) == pytest.approx(exact, abs=0.03)
    strong = np.arange(40) < 20
    assert u.permutation_test_auroc(np.arange(40.0), strong, draws=199) == 1 / 200
    generator = np.random.default_rng(0)
    null = [u.permutation_test_auroc(generator.normal(size=30), np.arange(30) < 12, draws=99, seed=i) for i in range(200)]
    assert stats.kstest(null, "uniform").pvalue > 1e-3


def test_t_tests_agree_with_their_formulas():
    generator = np.random.default_rng(0)
    a, b = generator.normal(1, 2, size=30), generator.normal(0, 1, size=30)
    va, vb = a.var(ddof=1) / 30, b.var(ddof=1) / 30
    degrees = (va + vb) ** 2 / (va**2 / 29 + vb**2 / 29)
    welch = u.welch_test(a, b)
    t = (a.mean() - b.mean()) / np.sqrt(va + vb)
    half = stats.t.ppf(0.975, degrees) * np.sqrt(va + vb)
    difference = a.mean() - b.mean()
    assert welch == pytest.approx((t, 2 * stats.t.sf(abs(t), degrees), difference, difference - half, difference + half))
    paired, one = u.paired_test(a, b), stats.ttest_1samp(a - b, 0)
    assert paired[:3] == pytest.approx((one.statistic, one.pvalue, (a - b).mean()))
    assert paired[3:] == pytest.approx(tuple(one.confidence_interval(0.95)))
    assert u.paired_test(b, a).statistic == -paired.statistic


@pytest.mark.parametrize("test", [u.welch_test, u.paired_test])
def test_t_tests_refuse_what_has_no_variance(test):
    with pytest.raises(ValueError, match="variance"):
        test(np.ones(5), np.zeros(5))
    with pytest.raises(ValueError, match="finite"):
        test(np.array([1.0, np.nan]), np.zeros(2))


def test_paired_test_needs_pairs():
    with pytest.raises(ValueError, match="paired row by row"):
        u.paired_test(np.arange(4.0), np.arange(5.0))


def test_holm_by_hand_and_in_any_order():
    np.testing.assert_allclose(u.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(u.holm([0.7, 0.9]), [1, 1])
    np.testing.assert_allclose(u.holm([0.2]), [0.2])
    for bad in ([], [0.1, np.nan], [1.2]):
        with pytest.raises(ValueError, match="p_values"):
            u.holm(bad)


def test_holm_rejects_what_bonferroni_and_the_step_down_procedure_say():
    generator = np.random.default_rng(0)
    for _ in range(20):
        p = generator.random(6) ** 3
        rejected, left = np.zeros(6, dtype=bool), set(range(6))
        while left and p[first := min(left, key=lambda i: p[i])] <= 0.05 / len(left):  # the definition: one hypothesis at a time
            rejected[first] = True
            left.remove(first)
        np.testing.assert_array_equal(u.holm(p) <= 0.05, rejected)
        assert (u.holm(p) >= p).all() and (u.holm(p) <= np.minimum(1, 6 * p)).all()
        np.testing.assert_allclose(u.holm(p[::-1]), u.holm(p)[::-1])


def resampled_means(values, draws=400, seed=0):
    """Means of the columns of values [N, M], and bootstrap draws of them [B, M], paired by row."""
    counts = np.random.default_rng(seed).multinomial(len(values), np.full(len(values), 1 / len(values)), size=draws)
    return values.mean(0), counts @ values / len(values)


def pairwise(estimates, draws):
    """Number of methods and simultaneous intervals of all their differences, as rank_intervals takes them."""
    first, second = np.triu_indices(len(estimates), 1)
    empty = np.zeros((2, 0))
    gaps = estimates[first] - estimates[second], draws[:, first] - draws[:, second]
    return len(estimates), *(u.simultaneous_intervals(*gaps) if len(first) else empty)


def test_hierarchical_draws_are_the_bootstrap_of_the_hierarchical_interval():
    (first, positive), (second, _) = sample(100), sample(100, seed=1)
    estimates, drawn = u.hierarchical_draws(u.auroc, [[(first, positive), (second, positive)]], draws=60)
    assert estimates == pytest.approx([(u.auroc(first, positive) + u.auroc(second, positive)) / 2]) and drawn.shape == (60, 1)
    expected = u.hierarchical_interval(u.auroc, [first, second], [positive] * 2, draws=60)
    assert tuple(np.quantile(drawn[:, 0], [0.025, 0.975])) == pytest.approx(expected, abs=1e-14)


def test_hierarchical_draws_pair_methods_by_image_whatever_their_seeds():
    generator = np.random.default_rng(0)
    images = generator.normal(size=300)
    estimates, drawn = u.hierarchical_draws(np.mean, [[(images,)] * 3, [(images + 0.25,)], [(images - 1,), (images + 1,)]], draws=200)
    assert estimates == pytest.approx(images.mean() + np.array([0, 0.25, 0]))
    assert np.ptp(drawn[:, 1] - drawn[:, 0]) < 1e-12 and drawn[:, 0].std() == pytest.approx(images.std() / 300**0.5, rel=0.2)
    assert (drawn[:, 2] - drawn[:, 0]).std() == pytest.approx(2**-0.5, rel=0.2)  # two seeds, one apart from their mean
    several, drawn = u.hierarchical_draws(lambda x: [x.mean(), x.max()], [[(images,)], [(2 * images,)]], draws=10)
    assert several.shape == (2, 2) and drawn.shape == (10, 2, 2) and np.allclose(drawn[:, 1], 2 * drawn[:, 0])
    for methods in ([], [[]], [[(images,)], [(images[:-1],)]]):
        with pytest.raises(ValueError, match="at least one method"):
            u.hierarchical_draws(np.mean, methods)


def test_simultaneous_intervals_are_the_maximum_statistic_by_hand():
    estimates, draws = resampled_means(np.random.default_rng(1).normal(size=(50, 3)) * [1, 5, 0.2])
    low, high = u.simultaneous_intervals(estimates, draws)
    error = [np.std(draws[:, m], ddof=1) for m in range(3)]
    largest = sorted(max(abs(row[m] - estimates[m]) / error[m] for m in range(3)) for row in draws)
    half = np.quantile(largest, 0.95) * np.array(error)
    np.testing.assert_allclose([low, high], [estimates - half, estimates + half])
    assert np.mean(((draws >= low) & (draws <= high)).all(1)) == pytest.approx(0.95, abs=0.01)
    alone = u.simultaneous_intervals(estimates[:1], draws[:, :1])
    assert 1.8 < (alone[1] - alone[0])[0] / error[0] / 2 < 2.1 < half[0] / error[0] < 2.6  # between one normal and three
    constant = u.simultaneous_intervals([0.5, 0.1], np.full((20, 2), [0.5, 0.1]))
    np.testing.assert_array_equal(constant, [[0.5, 0.1]] * 2)


def test_bootstrap_p_values_agree_with_the_normal_ones():
    estimates, draws = resampled_means(np.random.default_rng(2).normal([0, 0.2, 1], size=(100, 3)), draws=4000)
    expected = 2 * stats.norm.sf(np.abs(estimates) / draws.std(0))
    np.testing.assert_allclose(u.bootstrap_p_values(estimates, draws), expected, atol=0.02)
    assert u.bootstrap_p_values([5.0], np.random.default_rng(0).normal(5, 1e-3, size=(99, 1))) == pytest.approx([0.01])
    assert u.bootstrap_p_values([0.0], np.zeros((9, 1))) == [1]


def test_rank_intervals_by_brute_force():
    generator = np.random.default_rng(0)
    for _ in range(20):
        estimates, draws = resampled_means(generator.normal(generator.integers(3, size=5), 2, size=(40, 5)), 200)
        count, low, high = pairwise(estimates, draws)
        best, worst = u.rank_intervals(count, low, high)
        interval = {}
        for (i, j), *ends in zip(combinations(range(5), 2), low, high, strict=True):
            assert ends[0] <= estimates[i] - estimates[j] <= ends[1]
            interval[i, j], interval[j, i] = ends, [-ends[1], -ends[0]]
        for i in range(5):
            assert best[i] == 1 + sum(interval[j, i][0] > 0 for j in range(5) if j != i)
            assert worst[i] == 5 - sum(interval[i, j][0] > 0 for j in range(5) if j != i)
            assert best[i] <= 1 + np.sum(estimates > estimates[i]) <= worst[i]


def test_rank_intervals_of_methods_that_are_alike_alone_or_far_apart():
    values = np.random.default_rng(0).normal(size=(60, 1))
    tied = u.rank_intervals(*pairwise(*resampled_means(np.repeat(values, 3, 1))))
    np.testing.assert_array_equal(tied, [[1, 1, 1], [3, 3, 3]])
    np.testing.assert_array_equal(u.rank_intervals(*pairwise(*resampled_means(values))), [[1], [1]])
    apart = u.rank_intervals(*pairwise(*resampled_means(100 * values + [2, 1, 3])))  # paired, so exact
    np.testing.assert_array_equal(apart, [[2, 3, 1], [2, 3, 1]])
    np.testing.assert_array_equal(u.rank_intervals(2, [1e6], [2e6]), [[1, 2], [1, 2]])
    np.testing.assert_array_equal(u.rank_intervals(2, [0.0], [0.0]), [[1, 1], [2, 2]])


def test_rank_intervals_hold_all_true_ranks_as_often_as_they_say():
    truth, generator, held, sharp = np.array([0.0, 0.0, 0.5, 1.5]), np.random.default_rng(0), 0, 0
    for simulation in range(200):
        shared = generator.normal(size=(80, 1))  # what all methods find hard: pairing takes it out
        estimates, draws = resampled_means(truth + shared + generator.normal(size=(80, 4)), 300, simulation)
        best, worst = u.rank_intervals(*pairwise(estimates, draws))
        held += (best <= [3, 3, 2, 1]).all() and (worst >= [4, 4, 2, 1]).all()
        sharp += worst[3] == 1
    assert held / 200 >= 0.93 and sharp / 200 > 0.9


def test_draws_and_intervals_that_are_none_are_errors():
    for estimates, draws in (([1.0], np.zeros((5, 2))), ([1.0], np.zeros((1, 1))), ([np.nan], np.zeros((5, 1))), (1.0, np.zeros((5, 1)))):
        with pytest.raises(ValueError, match="estimates must be"):
            u.simultaneous_intervals(estimates, draws)
    with pytest.raises(ValueError, match="NaN"):
        u.bootstrap_p_values([1.0], np.full((5, 1), np.nan))
    with pytest.raises(ValueError, match="level"):
        u.simultaneous_intervals([1.0], np.zeros((5, 1)), level=95)
    for count, low, high in ((0, [], []), (3, [1], [2]), (2, [1], [0.5]), (2, [np.nan], [1]), (2, [[0]], [[1]])):
        with pytest.raises(ValueError, match="low <= high"):
            u.rank_intervals(count, low, high)


# --------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("measure", RANKED + SELECTIVE)
def test_scores_without_an_answer_are_errors(measure):
    score, positive = sample(20)
    with pytest.raises(ValueError, match="NaN"):
        measure(np.append(score[:-1], np.nan), positive)
    with pytest.raises(ValueError, match="shapes"):
        measure(score[:-1], positive)
    with pytest.raises(ValueError, match="shapes"):
        measure(score[:, None], positive[:, None])
    with pytest.raises(ValueError, match="empty"):
        measure(score[:0], positive[:0])
    with pytest.raises(ValueError, match="0/1"):
        measure(score, np.arange(20))
    for single in (np.ones(20, dtype=bool), np.zeros(20, dtype=bool)):
        with pytest.raises(ValueError, match="single class"):
            measure(score, single)


@pytest.mark.parametrize("measure", [u.negative_log_likelihood, u.brier_score, u.expected_calibration_error])
def test_probabilities_that_are_none_are_errors(measure):
    probabilities, labels = softmax(20)
    cases = [
        (np.where(probabilities == probabilities.max(), np.nan, probabilities), labels, "NaN"),
        (probabilities, labels[:-1], "shape"),
        (probabilities[:0], labels[:0], "at least one row"),
        (np.ones((20, 1)), np.zeros(20, dtype=int), "C >= 2"),
        (probabilities * 2, labels, "summing to 1"),
        (probabilities, labels + 1, "integers in"),
        (probabilities, labels.astype(float), "integers in"),
    ]
    for bad, target, message in cases:
        with pytest.raises(ValueError, match=message):
            measure(bad, target)


def test_embeddings_that_are_none_are_errors():
    embeddings, labels = np.random.default_rng(0).normal(size=(10, 3)), np.arange(10) % 2
    with pytest.raises(ValueError, match="NaN"):
        u.recall_auroc(np.where(embeddings > 1, np.nan, embeddings), labels, np.arange(10))
    with pytest.raises(ValueError, match="labels"):
        u.recall_auroc(embeddings, labels[:-1], np.arange(10))
    with pytest.raises(ValueError, match="single class"):
        u.recall_auroc(embeddings, np.zeros(10, dtype=int), np.arange(10))
    for arrays in ((), (np.arange(3), np.arange(4)), (np.array([]),)):
        with pytest.raises(ValueError, match="same N"):
            u.bootstrap_interval(np.mean, *arrays)


def test_rank_correlation_is_scipys_and_undefined_for_a_constant():
    first, second = np.random.default_rng(0).normal(size=(2, 50))
    assert u.rank_correlation(first, second) == pytest.approx(np.corrcoef(stats.rankdata(first), stats.rankdata(second))[0, 1])
    assert np.isnan(u.rank_correlation(first, np.ones(50))) and np.isnan(u.rank_correlation(np.ones(50), second))


def test_paired_difference_is_the_paired_test_and_has_no_interval_for_one_pair():
    first, second = np.random.default_rng(0).normal(size=(2, 5))
    found, test = u.paired_difference(first, second), u.paired_test(first, second)
    expected = {"difference": np.mean(first - second), "ci_low": test.ci_low, "ci_high": test.ci_high, "seeds": 5}
    assert found == pytest.approx(expected)
    one = u.paired_difference(first[:1], second[:1])
    assert one["difference"] == pytest.approx(first[0] - second[0]) and np.isnan([one["ci_low"], one["ci_high"]]).all() and one["seeds"] == 1


def test_a_recentred_interval_has_the_same_width_around_the_number_of_all_images():
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.5, 1, 4000)
    correct = generator.uniform(size=4000) < confidence  # calibrated: what is left is the noise of bins, which a resample doubles
    error = u.confidence_calibration_error(confidence, correct)
    plain, shifted = (u.bootstrap_interval(u.confidence_calibration_error, confidence, correct, draws=300, recentred=on) for on in (False, True))
    assert shifted[0] < error < shifted[1] and plain[0] - shifted[0] > error / 5
    assert shifted[1] - shifted[0] == pytest.approx(plain[1] - plain[0])


def test_a_mean_over_seeds_of_nothing_or_of_nan_is_refused():
    for values in ([], [1.0, np.nan], [[1.0, 2.0]]):
        with pytest.raises(ValueError, match="finite numbers, one a seed"):
            u.mean_over_seeds(values)
    with pytest.raises(ValueError, match="no NaN"):
        u.nearest_neighbour_correct(np.eye(3), np.array([0, np.nan, 1]))


def test_the_mean_over_seeds_has_scipys_t_interval():
    values = np.random.default_rng(1).normal(size=4)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert u.mean_over_seeds(values) == pytest.approx({"mean": values.mean(), "ci_low": low, "ci_high": high, "seeds": 4})
    assert u.mean_over_seeds([0.3, 0.3]) == {"mean": 0.3, "ci_low": 0.3, "ci_high": 0.3, "seeds": 2}


def test_a_hierarchical_difference_is_paired_by_seed_and_image():
    generator = np.random.default_rng(0)
    base = [generator.random(400) for _ in range(3)]
    ours, theirs = [[values + 0.1] for values in base], [[values] for values in base]
    by_seed = [dict(enumerate(side)) for side in (ours, theirs)]
    found = u.hierarchical_difference(np.mean, by_seed[0], by_seed[1] | {7: [base[0] + 5]}, draws=50)
    assert found["difference"] == pytest.approx(0.1) and found["seeds"] == 3 and found["n"] == 400
    assert found["ci_low"] == pytest.approx(0.1) and found["ci_high"] == pytest.approx(0.1)  # the images' own spread cancels
    right = [generator.random(400) < 0.5 for _ in range(3)]
    first, second = ([[values, correct] for values, correct in zip(scores, right, strict=True)] for scores in (base, base[::-1]))
    found = u.hierarchical_difference(u.auroc, dict(enumerate(first)), dict(enumerate(second)), draws=100)
    expected = np.mean([u.auroc(*a) - u.auroc(*b) for a, b in zip(first, second, strict=True)])
    assert found["difference"] == pytest.approx(expected) and found["ci_low"] <= expected <= found["ci_high"]
    with pytest.raises(ValueError, match=r"no seed in common: \[0, 1, 2\] and \[3\]"):
        u.hierarchical_difference(np.mean, by_seed[0], {3: theirs[0]})


def test_nan_is_refused_or_drawn_again_and_never_an_interval():
    with pytest.raises(ValueError, match=r"NaN in what is to be resampled \(1 of 3 values\)"):
        u.bootstrap_interval(np.mean, [1.0, 2.0, np.nan], draws=10)
    with pytest.raises(ValueError, match="NaN in what is to be resampled"):
        u.hierarchical_interval(np.mean, [[1.0, np.nan], [1.0, 2.0]], draws=10)
    low, high = u.bootstrap_interval(u.rank_correlation, [1.0, 2.0, 3.0], [1.0, 2.0, 4.0], draws=200)  # one draw in nine is of one image alone
    assert low == high == 1
    assert np.isnan(u.bootstrap_interval(u.rank_correlation, [1.0, 1.0, 1.0], [1.0, 2.0, 4.0], draws=20)).all()  # nor is the estimate defined
    for arrays, message in ((([1, 2, np.nan], [1, 2, 3]), "N >= 2 finite"), (([], []), "N >= 2"), (([1, 2], [1, 2, 3]), "paired row by row")):
        with pytest.raises(ValueError, match=message):
            u.rank_correlation(*arrays)
    with pytest.raises(ValueError, match="draws must be >= 1, got 0"):
        u.permutation_test_auroc([1.0, 2.0, 3.0], [True, False, True], draws=0)


def test_rounding_is_no_variance():
    generator = np.random.default_rng(0)
    collapsed = (generator.standard_normal(64) * (1 + 1e-7 * generator.standard_normal((1000, 64)))).astype(np.float32)
    with pytest.raises(ValueError, match="the representation has collapsed"):
        u.effective_rank(collapsed)
    values = np.array([0.3, 0.5, 0.7, 0.9])
    with pytest.raises(ValueError, match="all differences equal"):
        u.paired_test(values, values - 0.1)
    with pytest.raises(ValueError, match="both samples are constant"):
        u.welch_test([0.1 + 0.2, 0.3, 0.3], [0.4, 0.4, 0.4])


def test_bins_of_equal_mass_hold_as_many_images_each():
    confidence = (np.arange(100) + 0.5) / 100
    assert (u.confidence_bins(confidence, np.ones(100, bool), 20, equal_mass=True)["count"] == 5).all()
