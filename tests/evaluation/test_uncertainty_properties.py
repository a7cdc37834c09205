"""Properties of uncertainty measures over sizes, ties and extreme values.

hypothesis draws the examples, the same ones every time.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.evaluation import uncertainty

drawn = settings(derandomize=True, deadline=None, max_examples=40)

seeds = st.integers(0, 2**31 - 1)
scales = st.floats(-6, 6).map(lambda power: 10.0**power)


# ------------------------------------------------------------------------- scores and ranks
def ranked(values):
    """A score [N] and a truth [N] that holds both classes."""
    rows = st.lists(st.tuples(values, st.booleans()), min_size=2, max_size=60)
    rows = rows.filter(lambda pairs: len({positive for _, positive in pairs}) == 2)
    return rows.map(lambda pairs: tuple(np.array(column) for column in zip(*pairs, strict=True)))


any_size = st.floats(-1e12, 1e12, allow_subnormal=False)
with_ties = ranked(st.one_of(st.integers(-3, 3).map(float), any_size))
# Whole numbers, which no monotone map below rounds onto one another.
whole = ranked(st.integers(-(10**6), 10**6).map(float))
MONOTONE = [
    lambda x: 1e6 + x,
    lambda x: 1e-6 * x,
    lambda x: x**3,
    lambda x: np.arctan(x / 1e3),
    np.arcsinh,
]
DISCRIMINATION = (uncertainty.auroc, uncertainty.average_precision, uncertainty.fpr_at_95_tpr)
RISKS = (uncertainty.aurc, uncertainty.excess_aurc, uncertainty.augrc)


@drawn
@given(with_ties)
def test_the_auroc_of_the_negated_score_and_of_the_other_class_is_the_complement(rows):
    score, positive = rows
    value = uncertainty.auroc(score, positive)
    assert 0 <= value <= 1
    assert uncertainty.auroc(-score, positive) == pytest.approx(1 - value, abs=1e-12)
    assert uncertainty.auroc(score, ~positive) == pytest.approx(1 - value, abs=1e-12)
    precision = uncertainty.average_precision(score, positive)
    assert positive.mean() / len(score) < precision <= 1
    assert 0 <= uncertainty.fpr_at_95_tpr(score, positive) <= 1
    false, true, threshold = uncertainty.roc_curve(score, positive)
    assert (np.diff(false) >= 0).all()
    assert (np.diff(true) >= 0).all()
    assert (np.diff(threshold) < 0).all()
    assert np.trapezoid(true, false) == pytest.approx(value, abs=1e-12)


@drawn
@given(whole, st.sampled_from(MONOTONE), seeds)
def test_only_ranks_count(rows, monotone, seed):
    score, positive = rows
    order = np.random.default_rng(seed).permutation(len(score))
    for measure in DISCRIMINATION + RISKS:
        value = measure(score, positive)
        assert measure(monotone(score), positive) == value
        assert measure(score[order], positive[order]) == pytest.approx(value, abs=1e-12)


@drawn
@given(with_ties)
def test_selective_risks_lie_between_those_of_the_best_and_the_worst_order(rows):
    score, correct = rows
    wrong = ~correct
    error = wrong.mean()
    for measure in (uncertainty.aurc, uncertainty.augrc):
        best = measure(wrong, correct)
        worst = measure(correct, correct)
        value = measure(score, correct)
        assert 0 < best <= value + 1e-12
        assert value <= worst + 1e-12
        assert worst <= 1
        assert best <= error
    assert uncertainty.excess_aurc(score, correct) >= -1e-12
    assert uncertainty.excess_aurc(wrong, correct) == 0
    without_order = np.zeros(len(correct))
    assert uncertainty.aurc(without_order, correct) == pytest.approx(error)
    coverage, risk = uncertainty.risk_coverage_curve(score, correct)
    assert coverage[-1] == 1
    assert risk[-1] == pytest.approx(error)
    assert (risk >= 0).all() and (risk <= 1 + 1e-12).all()


@drawn
@given(with_ties)
def test_augrc_in_closed_form(rows):
    """From AUROC and accuracy a: (1 - AUROC) a (1 - a) + (1 - a)²/2 + (1 - a)/(2N)."""
    score, correct = rows
    accuracy = correct.mean()
    ranking = (1 - uncertainty.auroc(-score, correct)) * accuracy * (1 - accuracy)
    errors = (1 - accuracy) ** 2 / 2 + (1 - accuracy) / (2 * len(correct))
    assert uncertainty.augrc(score, correct) == pytest.approx(ranking + errors, abs=1e-9)


@drawn
@given(with_ties, st.sampled_from([math.nan, math.inf, -math.inf]), st.integers(0, 59))
def test_an_infinite_score_has_a_rank_and_nan_has_none(rows, bad, place):
    score, positive = rows
    spoilt = score.copy()
    spoilt[place % len(score)] = bad
    for measure in DISCRIMINATION + RISKS:
        if math.isnan(bad):
            with pytest.raises(ValueError, match="NaN"):
                measure(spoilt, positive)
        else:
            assert -1e-12 <= measure(spoilt, positive) <= 1 + 1e-12
        with pytest.raises(ValueError, match="shapes"):
            measure(score, positive[1:])
    features = np.stack([spoilt, score], 1)
    with pytest.raises(ValueError, match="NaN"):
        uncertainty.effective_rank(features)
    with pytest.raises(ValueError, match="NaN"):
        uncertainty.brier_score(features, positive.astype(int))
    with pytest.raises(ValueError, match="NaN"):
        uncertainty.recall_auroc(features, positive, score)


@drawn
@given(with_ties)
def test_one_class_has_no_discrimination_and_no_risk(rows):
    score, _ = rows
    all_correct = np.ones(len(score), bool)
    for measure in DISCRIMINATION:
        with pytest.raises(ValueError, match="class"):
            measure(score, all_correct)
    for measure in RISKS:
        assert measure(score, all_correct) == 0


# ------------------------------------------------------------------------- calibration
def predictions(count, classes, sharpness, seed):
    """Probabilities [N, K], the sharper the larger the logits, and labels [N] drawn apart."""
    generator = np.random.default_rng(seed)
    logits = sharpness * generator.normal(size=(count, classes))
    exponential = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = exponential / exponential.sum(1, keepdims=True)
    return probabilities, generator.integers(classes, size=count)


@drawn
@given(
    count=st.integers(1, 200),
    classes=st.integers(2, 12),
    sharpness=st.just(0.0) | scales,
    bins=st.integers(1, 40),
    equal_mass=st.booleans(),
    seed=seeds,
)
def test_calibration_and_proper_scores_keep_their_bounds(
    count, classes, sharpness, bins, equal_mass, seed
):
    probabilities, labels = predictions(count, classes, sharpness, seed)
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == labels
    error = uncertainty.expected_calibration_error(probabilities, labels, bins, equal_mass)
    error_of_one_bin = abs(correct.mean() - confidence.mean())
    assert error_of_one_bin - 1e-9 <= error <= 1 + 1e-9
    binned = uncertainty.confidence_bins(confidence, correct, bins, equal_mass)
    filled = binned["count"] > 0
    within = binned["confidence"][filled]
    assert binned["count"].sum() == count and len(binned["count"]) <= bins
    assert (within > binned["low"][filled]).all()
    assert (within <= binned["high"][filled] + 1e-9).all()
    brier = uncertainty.brier_score(probabilities, labels)
    assert 0 <= brier <= 2
    assert uncertainty.negative_log_likelihood(probabilities, labels) >= 0

    order = np.random.default_rng(seed).permutation(classes)  # names of classes do not matter
    renamed = (probabilities[:, order], np.argsort(order)[labels])
    assert uncertainty.brier_score(*renamed) == pytest.approx(brier)
    if sharpness:  # of classes with the same probability the first is predicted
        again = uncertainty.expected_calibration_error(*renamed, bins, equal_mass)
        assert again == pytest.approx(error, abs=1e-9)


# ------------------------------------------------------------------------- features
@drawn
@given(
    count=st.integers(2, 40),
    dim=st.integers(1, 24),
    power=st.floats(-8, 8),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=seeds,
)
def test_the_effective_rank_lies_between_one_and_the_dimension(count, dim, power, dtype, seed):
    generator = np.random.default_rng(seed)
    features = (10.0**power * generator.normal(size=(count, dim))).astype(dtype)
    rank = uncertainty.effective_rank(features)
    assert 1 - 1e-9 <= rank <= min(count - 1, dim) * (1 + 1e-9)
    turn = np.linalg.qr(generator.normal(size=(dim, dim)))[0]
    turned = features[generator.permutation(count)].astype(np.float64) @ turn * 3
    assert uncertainty.effective_rank(turned) == pytest.approx(rank, rel=1e-6)
    line = np.outer(generator.normal(size=count), generator.normal(size=dim))
    assert uncertainty.effective_rank(line) == pytest.approx(1, abs=1e-6)


@drawn
@given(
    count=st.integers(2, 60),
    dim=st.integers(2, 16),
    chunk=st.integers(1, 64),
    scale=scales,
    seed=seeds,
)
def test_neighbours_do_not_depend_on_lengths_rotations_or_chunks(count, dim, chunk, scale, seed):
    generator = np.random.default_rng(seed)
    embeddings = generator.normal(size=(count, dim))
    labels = generator.integers(3, size=count)
    correct = uncertainty.nearest_neighbour_correct(embeddings, labels)
    turn = np.linalg.qr(generator.normal(size=(dim, dim)))[0]
    lengths = scale * generator.uniform(0.5, 2, (count, 1))
    again = uncertainty.nearest_neighbour_correct(lengths * embeddings @ turn, labels, chunk)
    assert (again == correct).all()
    if len(set(correct)) == 2:
        kappa = generator.normal(size=count)
        recall = uncertainty.recall_auroc(embeddings, labels, -kappa)
        assert recall == uncertainty.auroc(kappa, correct)


# ------------------------------------------------------------------------- intervals
@drawn
@given(count=st.integers(2, 40), constant=st.floats(-1e6, 1e6), seed=seeds)
def test_bootstrap_intervals_hold_a_constant_and_lie_within_the_data(count, constant, seed):
    values = np.random.default_rng(seed).normal(size=count)
    low, high = uncertainty.bootstrap_interval(np.mean, values, draws=50, seed=seed)
    assert values.min() <= low <= high <= values.max()
    interval = uncertainty.bootstrap_interval(np.mean, np.full(count, constant), draws=20)
    assert interval == pytest.approx((constant, constant), rel=1e-12, abs=1e-9)
