from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics
from torch_uncertainty.metrics.classification import AUGRC, AURC
from torchmetrics.functional.classification import multiclass_calibration_error

from lib.evaluation import intervals as statistics
from lib.evaluation import uncertainty as u

RANKED = [
    u.auroc,
    u.average_precision,
    u.fpr_at_95_tpr,
    u.roc_curve,
    statistics.permutation_test_auroc,
]
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
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True), generator.integers(
        classes, size=n
    )


binary = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=30).filter(
    lambda rows: len({y for _, y in rows}) == 2
)


@settings(max_examples=60, deadline=None)
@given(binary)
def test_ranking_measures_agree_with_scikit_learn_ties_included(rows):
    score, positive = (np.array(column) for column in zip(*rows, strict=True))
    false, true, threshold = metrics.roc_curve(positive, score, drop_intermediate=False)
    assert u.auroc(score, positive) == pytest.approx(
        metrics.roc_auc_score(positive, score), abs=1e-12
    )
    assert u.average_precision(score, positive) == pytest.approx(
        metrics.average_precision_score(positive, score), abs=1e-12
    )
    for ours, theirs in zip(u.roc_curve(score, positive), (false, true, threshold), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-15)
    assert u.fpr_at_95_tpr(score, positive) == false[true >= 0.95].min()


def test_auroc_equals_the_count_over_all_pairs():
    score, positive = sample(120, levels=5)
    pairs = score[positive][:, None] - score[~positive][None]
    assert u.auroc(score, positive) == pytest.approx(
        np.mean((pairs > 0) + 0.5 * (pairs == 0)), abs=1e-14
    )


def test_auroc_within_groups_equals_the_count_over_their_pairs():
    score, positive = sample(120, levels=5)
    group = np.random.default_rng(2).choice(["cat", "deer", "frog"], size=120)
    group[np.flatnonzero(positive)[:9]] = "of one class alone"  # no pair
    higher = score[positive][:, None] - score[~positive][None]
    same = group[positive][:, None] == group[~positive][None]
    assert u.auroc(score, positive, group) == pytest.approx(
        np.mean(((higher > 0) + 0.5 * (higher == 0))[same]), abs=1e-14
    )
    assert u.auroc(score, positive, np.full(120, 3)) == u.auroc(score, positive)


def test_auroc_within_groups_leaves_out_what_sets_groups_apart():
    score, positive = sample(300)
    group = np.arange(300) % 3
    positive[group == 2] = (
        np.arange(100) < 99
    )  # a class that is nearly always right, and has the highest scores
    apart = score + 50 * group
    assert (
        u.auroc(apart, positive, group)
        == u.auroc(score, positive, group)
        < u.auroc(apart, positive)
    )
    assert u.auroc(group, positive, group) == 0.5 < u.auroc(group, positive)


def test_auroc_within_groups_says_what_is_wrong_with_them():
    score, positive = sample(20)
    with pytest.raises(u.UndefinedStatistic, match="none of the 2 groups"):
        u.auroc(score, positive, positive)
    with pytest.raises(ValueError, match=r"group must be \[N\] like score \(20,\)"):
        u.auroc(score, positive, np.arange(19))
    with pytest.raises(ValueError, match="no NaN"):
        u.auroc(score, positive, np.full(20, np.nan))


@pytest.mark.parametrize(
    "transform", [lambda x: 1e6 + x, lambda x: 1e6 * np.exp(x), lambda x: np.arctan(x) * 1e-6]
)
def test_ranking_is_unchanged_by_a_monotone_transform_and_by_the_order_of_images(transform):
    score, positive = sample()
    shuffled = np.random.default_rng(1).permutation(len(score))
    for measure in (u.auroc, u.average_precision, u.fpr_at_95_tpr, u.aurc, u.excess_aurc, u.augrc):
        assert measure(transform(score), positive) == measure(score, positive)
        assert measure(score[shuffled], positive[shuffled]) == pytest.approx(
            measure(score, positive), abs=1e-13
        )


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
    assert statistics.permutation_test_auroc(constant, positive, draws=50) == 1


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6, 1e12])
def test_scores_of_the_size_of_kappa_agree_with_scikit_learn_ties_included(scale):
    score, positive = sample(300, seed=4, levels=40)
    score = scale * (score + 10)
    assert u.auroc(score, positive) == pytest.approx(
        metrics.roc_auc_score(positive, score), abs=1e-12
    )
    assert u.average_precision(score, positive) == pytest.approx(
        metrics.average_precision_score(positive, score), abs=1e-12
    )
    false, true, _ = metrics.roc_curve(positive, score, drop_intermediate=False)
    assert u.fpr_at_95_tpr(score, positive) == false[true >= 0.95].min()
    for measure in (*SELECTIVE[1:], statistics.permutation_test_auroc):
        options = {"draws": 50} if measure is statistics.permutation_test_auroc else {}
        assert measure(score, positive, **options) == measure(
            np.round(score / scale, 6), positive, **options
        )
    embeddings = np.random.default_rng(0).normal(size=(300, 4))
    hit = u.nearest_neighbour_correct(embeddings, positive)
    assert u.recall_auroc(embeddings, positive, score) == pytest.approx(
        metrics.roc_auc_score(hit, -score), abs=1e-12
    )


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
        assert u.confidence_calibration_error(
            confidence, correct, equal_mass=equal_mass
        ) == pytest.approx(0.7 - 0.4)
        assert u.confidence_calibration_error(
            confidence, np.ones(50, bool), equal_mass=equal_mass
        ) == pytest.approx(0.3)  # a single class is fine
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
    score = np.where(
        positive, 20.0 - np.arange(40), 1.5
    )  # 19 of 20 positives lie above every negative
    score[score == 1] = 0.0
    assert u.fpr_at_95_tpr(score, positive) == 0
    score[18] = 0.5  # now only 18 do
    assert u.fpr_at_95_tpr(score, positive) == 1


# ------------------------------------------------------------------------------------------------ selective prediction


def by_all_tie_orders(uncertainty, correct):
    """AURC and generalised AURC as means over every order that sorts the uncertainty."""
    wrong, n = ~np.asarray(correct), len(correct)
    orders = [
        order
        for order in permutations(range(n))
        if all(np.diff(np.asarray(uncertainty)[list(order)]) >= 0)
    ]
    errors = np.array([np.cumsum(wrong[list(order)]) for order in orders])
    return (errors / np.arange(1, n + 1)).mean(), (errors / n).mean()


@pytest.mark.parametrize(
    "scores",
    [[0, 1, 2, 3, 4, 5, 6], [0, 0, 1, 1, 1, 2, 2], [3, 3, 3, 3, 3, 3, 3], [2, 1, 1, 0, 0, 0, 5]],
)
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
        assert (values.sum() - (values[0] + values[-1]) / 2) / 199 == pytest.approx(
            metric.compute().item(), abs=1e-6
        )


def test_augrc_has_its_closed_form():
    uncertainty, wrong = sample(300, levels=9)
    accuracy = 1 - wrong.mean()
    expected = (
        (1 - u.auroc(-uncertainty, ~wrong)) * accuracy * (1 - accuracy)
        + (1 - accuracy) ** 2 / 2
        + (1 - accuracy) / 600
    )
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
    nearest = (
        NearestNeighbors(n_neighbors=2, metric="cosine")
        .fit(embeddings)
        .kneighbors(embeddings, return_distance=False)[:, 1]
    )
    hit = labels[nearest] == labels
    np.testing.assert_array_equal(u.nearest_neighbour_correct(embeddings, labels), hit)
    np.testing.assert_array_equal(
        u.nearest_neighbour_correct(embeddings * 1e-3, labels, chunk=37), hit
    )
    uncertainty = generator.normal(size=150) - hit
    assert u.recall_auroc(embeddings, labels, uncertainty) == pytest.approx(
        metrics.roc_auc_score(hit, -uncertainty), abs=1e-12
    )


def test_a_neighbour_is_never_the_image_itself():
    embeddings = np.eye(4) + 0.01
    assert not u.nearest_neighbour_correct(embeddings, np.arange(4)).any()


# --------------------------------------------------------------------------------------------------------- calibration


def test_calibration_error_agrees_with_torchmetrics():
    probabilities, labels = softmax()
    theirs = multiclass_calibration_error(
        torch.tensor(probabilities), torch.tensor(labels), num_classes=7, n_bins=15, norm="l1"
    )
    assert u.expected_calibration_error(probabilities, labels) == pytest.approx(
        theirs.item(), abs=1e-6
    )


def test_calibration_bins_are_open_below_and_closed_above():
    probabilities = np.array(
        [[0.6, 0.4], [0.8, 0.2], [1.0, 0.0]]
    )  # 0.6 = 9/15 and 0.8 = 12/15 are edges
    binned = u.confidence_bins(probabilities.max(1), np.ones(3, bool))
    assert np.flatnonzero(binned["count"]).tolist() == [8, 11, 14]
    np.testing.assert_array_equal(binned["high"][[8, 11, 14]], [0.6, 0.8, 1.0])
    assert np.isnan(binned["accuracy"][0]) and binned["accuracy"][8] == 1
    assert u.expected_calibration_error(probabilities, np.array([0, 0, 0])) == pytest.approx(
        (0.4 + 0.2) / 3
    )


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
    assert u.expected_calibration_error(probabilities, labels, 10, equal_mass) == pytest.approx(
        total, abs=1e-14
    )
    assert binned["count"].sum() == 600
    if equal_mass:
        assert (binned["count"] == 60).all()


def test_equal_mass_bins_keep_ties_together():
    binned = u.confidence_bins(
        np.repeat([0.3, 0.9], [70, 30]), np.ones(100, dtype=bool), bins=10, equal_mass=True
    )
    assert binned["count"].tolist() == [70, 30]


def test_likelihood_and_brier_agree_with_scikit_learn():
    probabilities, labels = softmax()
    assert u.negative_log_likelihood(probabilities, labels) == pytest.approx(
        metrics.log_loss(labels, probabilities, labels=range(7))
    )
    assert u.brier_score(probabilities, labels) == pytest.approx(
        ((probabilities - np.eye(7)[labels]) ** 2).sum(1).mean()
    )
    assert u.brier_score(np.eye(2)[[0, 0]], np.array([1, 1])) == 2
    assert u.negative_log_likelihood(np.eye(2), np.array([1, 1])) == np.inf
    two, target = softmax(
        classes=2
    )  # scikit-learn's binary Brier score counts one of the two classes
    assert u.brier_score(two, target) == pytest.approx(
        2 * metrics.brier_score_loss(target, two[:, 1])
    )


def test_top_five_agrees_with_scikit_learn():
    probabilities, labels = softmax(classes=9)
    expected = metrics.top_k_accuracy_score(
        labels, probabilities, k=5, normalize=False, labels=range(9)
    )
    assert u.top5_correct(probabilities, labels).sum() == expected < len(labels)
    assert u.top5_correct(*softmax(classes=4)).all()  # with four classes every label is among them


def test_effective_rank_of_known_spectra():
    generator = np.random.default_rng(0)
    left = np.linalg.qr(generator.normal(size=(100, 6)))[0]
    left = np.linalg.qr(left - left.mean(0))[0]
    right = np.linalg.qr(generator.normal(size=(8, 6)))[0]
    values = np.array([5.0, 4.0, 3.0, 1.0, 0.5, 0.1])
    features = left * values @ right.T + 3
    assert u.effective_rank(features) == pytest.approx(np.exp(stats.entropy(values)), rel=1e-9)
    assert u.effective_rank(left @ right.T * 1e-5 + 1) == pytest.approx(6, rel=1e-6)
    assert u.effective_rank(
        np.outer(generator.normal(size=50), generator.normal(size=9))
    ) == pytest.approx(1, abs=1e-9)
    with pytest.raises(
        u.UndefinedStatistic, match="collapsed"
    ):  # a NaN in a battery, and no end of it
        u.effective_rank(np.full((10, 3), 0.1))


# -------------------------------------------------------------------------------------------------- intervals and tests


def test_bootstrap_of_a_mean_matches_the_normal_interval():
    values = np.random.default_rng(0).normal(size=2000)
    low, high = u.bootstrap_interval(lambda x: float(x.mean()), values, draws=4000)
    error = values.std() / np.sqrt(2000)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)


def test_bootstrap_of_auroc_equals_resampling_by_hand():
    score, positive = sample(200, levels=9)
    generator = np.random.default_rng(0)
    values = [
        u.auroc(score[rows], positive[rows])
        for rows in (generator.integers(200, size=200) for _ in range(50))
    ]
    assert u.bootstrap_interval(u.auroc, score, positive, draws=50) == pytest.approx(
        tuple(np.quantile(values, [0.025, 0.975])), abs=1e-14
    )


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
    low, high = u.bootstrap_interval(
        u.auroc, score, positive, draws=100
    )  # a third of the draws holds no positive
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


def test_draws_and_intervals_that_are_none_are_errors():
    for estimates, draws in (
        ([1.0], np.zeros((5, 2))),
        ([1.0], np.zeros((1, 1))),
        ([np.nan], np.zeros((5, 1))),
        (1.0, np.zeros((5, 1))),
    ):
        with pytest.raises(ValueError, match="estimates must be"):
            statistics.simultaneous_intervals(estimates, draws)
    with pytest.raises(ValueError, match="NaN"):
        statistics.bootstrap_p_values([1.0], np.full((5, 1), np.nan))
    for count, low, high in (
        (0, [], []),
        (3, [1], [2]),
        (2, [1], [0.5]),
        (2, [np.nan], [1]),
        (2, [[0]], [[1]]),
    ):
        with pytest.raises(ValueError, match="low <= high"):
            statistics.rank_intervals(count, low, high)


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
    for single in (np.ones(20, dtype=bool), np.zeros(20, dtype=bool)) if measure in RANKED else ():
        with pytest.raises(ValueError, match="single class"):
            measure(score, single)


def test_selective_risks_are_defined_where_all_are_right_or_all_are_wrong():
    uncertainty, right = np.arange(20.0), np.ones(20, dtype=bool)
    assert [measure(uncertainty, right) for measure in (u.aurc, u.excess_aurc, u.augrc)] == [
        0,
        0,
        0,
    ]
    assert [measure(uncertainty, ~right) for measure in (u.aurc, u.excess_aurc, u.augrc)] == [
        1,
        0,
        pytest.approx(21 / 40),
    ]
    one_wrong = np.arange(20) == 7  # a third of the resamples holds no error: they count
    for measure in (u.aurc, u.augrc):
        assert u.bootstrap_interval(measure, uncertainty, ~one_wrong, draws=100)[0] == 0


@pytest.mark.parametrize(
    "measure",
    [u.negative_log_likelihood, u.brier_score, u.expected_calibration_error, u.top5_correct],
)
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
    assert u.rank_correlation(first, second) == pytest.approx(
        np.corrcoef(stats.rankdata(first), stats.rankdata(second))[0, 1]
    )
    assert np.isnan(u.rank_correlation(first, np.ones(50))) and np.isnan(
        u.rank_correlation(np.ones(50), second)
    )
    assert np.isnan(u.rank_correlation([0.1 + 0.2, 0.3, 0.3], [1, 2, 3])), (
        "which differ by rounding alone"
    )


def test_rank_correlation_per_image_is_scipys_and_0_for_what_is_constant():
    values, severity = (
        np.random.default_rng(0).integers(4, size=(30, 6)).astype(float),
        np.array([1, 2, 3, 4, 5, 6.5]),
    )
    values[0] = 1
    expected = [stats.spearmanr(severity, row).statistic for row in values[1:]]
    np.testing.assert_allclose(
        u.rank_correlation_per_image(severity, values), [0, *expected], atol=1e-12
    )
    np.testing.assert_array_equal(u.rank_correlation_per_image(np.ones(6), values), np.zeros(30))
    for own, of, message in (
        (severity[:5], values, "each of the 5 severities"),
        (severity, np.where(values == 2, np.nan, values), "NaN"),
        (severity[:1], values[:, :1], "N >= 2"),
        (severity, values[0], "must be"),
    ):
        with pytest.raises(ValueError, match=message):
            u.rank_correlation_per_image(own, of)


def test_a_recentred_interval_has_the_same_width_around_the_number_of_all_images():
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.5, 1, 4000)
    correct = (
        generator.uniform(size=4000) < confidence
    )  # calibrated: what is left is the noise of bins, which a resample doubles
    error = u.confidence_calibration_error(confidence, correct)
    plain, shifted = (
        u.bootstrap_interval(
            u.confidence_calibration_error, confidence, correct, draws=300, recentred=on
        )
        for on in (False, True)
    )
    assert shifted[0] < error < shifted[1] and plain[0] - shifted[0] > error / 5
    assert shifted[1] - shifted[0] == pytest.approx(plain[1] - plain[0])


def test_nan_is_refused_or_drawn_again_and_never_an_interval():
    with pytest.raises(ValueError, match=r"NaN in what is to be resampled \(1 of 3 values\)"):
        u.bootstrap_interval(np.mean, [1.0, 2.0, np.nan], draws=10)
    with pytest.raises(ValueError, match="NaN in what is to be resampled"):
        statistics.hierarchical_mean(np.mean, [[1.0, np.nan], [1.0, 2.0]], draws=10)
    low, high = u.bootstrap_interval(
        u.rank_correlation, [1.0, 2.0, 3.0], [1.0, 2.0, 4.0], draws=200
    )  # one draw in nine is of one image alone
    assert low == high == 1
    assert np.isnan(
        u.bootstrap_interval(u.rank_correlation, [1.0, 1.0, 1.0], [1.0, 2.0, 4.0], draws=20)
    ).all()  # nor is the estimate defined
    for arrays, message in (
        (([1, 2, np.nan], [1, 2, 3]), "N >= 2 finite"),
        (([], []), "N >= 2"),
        (([1, 2], [1, 2, 3]), "paired row by row"),
    ):
        with pytest.raises(ValueError, match=message):
            u.rank_correlation(*arrays)
    with pytest.raises(ValueError, match="draws must be >= 1, got 0"):
        statistics.permutation_test_auroc([1.0, 2.0, 3.0], [True, False, True], draws=0)


def test_rounding_is_no_variance():
    generator = np.random.default_rng(0)
    collapsed = (
        generator.standard_normal(64) * (1 + 1e-7 * generator.standard_normal((1000, 64)))
    ).astype(np.float32)
    with pytest.raises(ValueError, match="the representation has collapsed"):
        u.effective_rank(collapsed)
    values = np.array([0.3, 0.5, 0.7, 0.9])
    with pytest.raises(ValueError, match="all differences equal"):
        statistics.paired_test(values, values - 0.1)
    with pytest.raises(ValueError, match="both samples are constant"):
        statistics.welch_test([0.1 + 0.2, 0.3, 0.3], [0.4, 0.4, 0.4])


def test_bins_of_equal_mass_hold_as_many_images_each():
    confidence = (np.arange(100) + 0.5) / 100
    assert (
        u.confidence_bins(confidence, np.ones(100, bool), 20, equal_mass=True)["count"] == 5
    ).all()


def test_a_float32_confidence_above_one_lies_in_the_last_bin():
    binned = u.confidence_bins(np.array([0.5, 1 + 1e-7]), np.ones(2, bool))
    assert len(binned["count"]) == len(binned["low"]) == 15 and binned["count"][-1] == 1


def test_probabilities_are_refused_from_a_thousandth_off_one():
    probabilities = np.full((4, 2), 0.5)
    u.brier_score(probabilities * 1.0009, np.zeros(4, int))
    with pytest.raises(ValueError, match="summing to 1"):
        u.brier_score(probabilities * 1.01, np.zeros(4, int))


def test_a_calibrated_classifier_has_the_ece_that_chance_leaves():
    probabilities, _ = softmax(n=4000)
    confidence = probabilities.max(axis=1)
    one_bin = np.full(900, 0.9)  # mean absolute deviation of a binomial share: √(2/π) σ
    assert u.calibrated_ece(one_bin, draws=2000) == pytest.approx(
        np.sqrt(2 / np.pi * 0.9 * 0.1 / 900), rel=0.05
    )
    floor = u.calibrated_ece(confidence)
    correct = np.random.default_rng(7).random(4000) < confidence
    assert u.confidence_calibration_error(confidence, correct) == pytest.approx(floor, rel=0.5)
    assert (
        u.confidence_calibration_error(np.sqrt(confidence), correct)
        > 3 * floor
        > 3 * u.calibrated_ece(np.tile(confidence, 9), draws=20)
    )
    assert u.calibrated_ece(np.ones(50), draws=5) == 0
    with pytest.raises(ValueError, match="confidence"):
        u.calibrated_ece([0.5, np.nan])
