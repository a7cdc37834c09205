"""Any input gives a right value or one clear error: never NaN, never an error from deep inside.

hypothesis draws the type of an input, its scale, and what spoils it, the same examples every time.
A value is right if it is that of the same input in float64 at scale 1.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import losses
from lib.evaluation import intervals, kappa, probes, style, uncertainty

drawn = settings(derandomize=True, deadline=None, max_examples=25)
COUNT = 24
COLUMNS = 5
CLASSES = 3

generator = np.random.default_rng(0)
LABELS = np.arange(COUNT) % CLASSES
POSITIVE = np.arange(COUNT) % 2 == 0
SCORE = generator.normal(size=COUNT)
OTHER = generator.normal(size=COUNT)
FEATURES = generator.normal(size=(COUNT, COLUMNS)) + LABELS[:, None]

# ------------------------------------------------------------------------- evaluation
# Functions of a score [N] of which only the order counts
BY_ORDER = {
    "auroc": lambda score: uncertainty.auroc(score, POSITIVE[: len(score)]),
    "average_precision": lambda score: uncertainty.average_precision(score, POSITIVE[: len(score)]),
    "fpr_at_95_tpr": lambda score: uncertainty.fpr_at_95_tpr(score, POSITIVE[: len(score)]),
    "roc_curve": lambda score: uncertainty.roc_curve(score, POSITIVE[: len(score)])[:2],
    "aurc": lambda score: uncertainty.aurc(score, POSITIVE[: len(score)]),
    "excess_aurc": lambda score: uncertainty.excess_aurc(score, POSITIVE[: len(score)]),
    "augrc": lambda score: uncertainty.augrc(score, POSITIVE[: len(score)]),
    "risk_coverage_curve": lambda score: uncertainty.risk_coverage_curve(
        score, POSITIVE[: len(score)]
    ),
    "rank_correlation": lambda score: uncertainty.rank_correlation(score, OTHER[: len(score)]),
    "select": lambda score: kappa.select(score, LABELS[: len(score)], 0.5, "highest κ", seed=0),
    "bootstrap_interval": lambda score: uncertainty.bootstrap_interval(
        uncertainty.auroc, score, POSITIVE[: len(score)], draws=20
    ),
}
# Functions of features [N, D] that a common factor leaves alone
BY_DIRECTION = {
    "effective_rank": uncertainty.effective_rank,
    "nearest_neighbour_correct": lambda x: uncertainty.nearest_neighbour_correct(
        x, LABELS[: len(x)]
    ),
    "knn_predict": lambda x: probes.knn_predict(x, LABELS[: len(x)], x, k=3),
    "linear_probe": lambda x: probes.linear_probe(x, LABELS[: len(x)], [0.1]).probabilities(x),
    "mahalanobis_distance": lambda x: probes.mahalanobis_distance(x)(x),
    "variance_within": lambda x: style.variance_within(x, LABELS[: len(x)]),
}
# Functions of values, and the power of their scale that the result grows with
BY_SCALE = {
    "mean_over_seeds": intervals.mean_over_seeds,
    "frechet_distance": lambda x: style.frechet_distance(pairs(x, 1), pairs(x, 2)),
}
POWERS = {"mean_over_seeds": 1, "frechet_distance": 2}
TYPES = st.sampled_from([np.float32, np.float64, np.longdouble, object, list])
SCALES = st.floats(-30, 30).map(lambda power: 2.0 ** round(power / math.log10(2)))
SHORTER = {"empty": 0, "one row": 1}
PLAIN = {"constant": 3.0, "zeros": 0.0}
SPOILERS = st.sampled_from(["nan", "inf", "text", *SHORTER, *PLAIN])
TOLERANCE = 2e-4


def pairs(values, step):
    """Features [N, 2]: each value beside another one."""
    return np.stack([values, np.roll(values, step)], axis=1)


def numbers(result):
    """All numbers of a result, except how many seeds there were."""
    if isinstance(result, dict):
        result = [value for name, value in result.items() if name != "seeds"]
    if isinstance(result, (tuple, list)):
        return np.concatenate([numbers(value) for value in result])
    return np.asarray(result, dtype=float).ravel()


def converted(values, kind):
    return values.tolist() if kind is list else values.astype(kind)


def spoilt(values, spoiler):
    if spoiler == "text":
        return values.astype(str)
    if spoiler in SHORTER:
        return values[: SHORTER[spoiler]]
    if spoiler in PLAIN:
        return np.full_like(values, PLAIN[spoiler])
    values = values.copy()
    values.flat[3] = float(spoiler)  # nan or inf
    return values


ALL = BY_ORDER | BY_DIRECTION | BY_SCALE


@pytest.mark.parametrize("name", ALL)
@drawn
@given(kind=TYPES, scale=SCALES)
def test_type_changes_no_result_and_scale_as_it_should(name, kind, scale):
    function = ALL[name]
    values = FEATURES if name in BY_DIRECTION else SCORE
    values = values.astype(np.float32).astype(float)  # as float32 holds it exactly
    expected = numbers(function(values))
    try:
        result = numbers(function(converted(values * scale, kind)))
    except ValueError as error:
        assert name == "linear_probe" and scale > 1e15, error  # it says that squares overflow
    else:
        rescaled = result / scale ** POWERS.get(name, 0)
        np.testing.assert_allclose(rescaled, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", ALL)
@drawn
@given(spoiler=SPOILERS)
def test_spoilt_input_gives_a_number_or_a_sentence(name, spoiler):
    values = FEATURES if name in BY_DIRECTION else SCORE
    try:
        result = numbers(ALL[name](spoilt(values, spoiler)))
    except ValueError as error:
        assert len(str(error)) > 20
    else:
        is_interval_of_one_seed = name == "mean_over_seeds" and spoiler == "one row"
        assert not np.isnan(result).any() or is_interval_of_one_seed


# Functions of class probabilities [N, C]
PROBABILITIES = {
    "nll_per_image": uncertainty.nll_per_image,
    "brier_per_image": uncertainty.brier_per_image,
    "top5_correct": uncertainty.top5_correct,
    "calibrated_ece": lambda p, labels: uncertainty.calibrated_ece(
        np.asarray(p, float).max(1), draws=5
    ),
}


@pytest.mark.parametrize("name", PROBABILITIES)
@drawn
@given(
    kind=TYPES, spoiler=st.sampled_from(["", "nan", "inf", "empty", "one row", "sum", "negative"])
)
def test_probabilities_are_used_or_refused(name, kind, spoiler):
    raw = np.exp(FEATURES[:, :CLASSES]).astype(np.float32).astype(float)
    probabilities = raw / raw.sum(1, keepdims=True)
    labels = LABELS
    if spoiler == "sum":
        probabilities = probabilities * 2
    elif spoiler == "negative":
        probabilities[0] = [-0.5, 1.5, 0.0]
    elif spoiler:
        probabilities = spoilt(probabilities, spoiler)
        labels = LABELS[: len(probabilities)]
    function = PROBABILITIES[name]
    try:
        result = numbers(function(converted(probabilities, kind), labels))
    except ValueError as error:
        assert spoiler not in ("", "one row")
        assert len(str(error)) > 20
    else:
        assert spoiler in ("", "one row")
        expected = numbers(function(probabilities, labels))
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)


# ------------------------------------------------------------------------- losses
BATCH = 8
torch_generator = torch.Generator().manual_seed(0)
FIRST = torch.randn(BATCH, 16, generator=torch_generator)
SECOND = torch.randn(BATCH, 16, generator=torch_generator)
KAPPA = torch.linspace(1, 100, BATCH)
# Losses of two batches of vectors that only see directions
OF_DIRECTIONS = {
    "simsiam": losses.simsiam_loss,
    "byol": losses.byol_loss,
    "vi_simsiam": lambda p, z: losses.vi_simsiam_loss(p, KAPPA[: len(p)], z),
    "info_nce": losses.info_nce_loss,
    "moco": lambda q, k: losses.moco_loss(q, k, torch.nn.functional.normalize(SECOND, dim=1)),
    "moco_v3": losses.moco_v3_loss,
}
OF_VECTORS = {
    "barlow_twins": losses.barlow_twins_loss,
    "vicreg": lambda a, b: losses.vicreg_loss(a, b)["loss"],
    "info_nce by dot product": lambda a, b: losses.info_nce_loss(a, b, similarity="dot"),
    "dino": lambda s, t: losses.dino_loss(s, t, torch.zeros(t.shape[1])),
    "scoring_rule": lambda s, t: losses.scoring_rule(torch.stack([s, 2 * s]), t).mean(),
    "simvae": lambda r, x: losses.simvae_loss(
        r[None], x[None], r[None], x[None].clamp(-5, 5), r[None]
    )["loss"],
    "vae": lambda r, x: losses.vae_loss(r, x, r, x.clamp(-5, 5))["loss"],
    "vje": lambda t, m: losses.vje_loss(t, m, m.clamp(-5, 5), m)["loss"],
}
FLOATS = st.sampled_from([torch.float32, torch.float64])
SINGLE_SCALES = st.integers(-100, 100).map(lambda power: 2.0**power)


@pytest.mark.parametrize("name", OF_DIRECTIONS)
@drawn
@given(dtype=FLOATS, scale=SINGLE_SCALES)
def test_losses_of_directions_do_not_see_the_scale(name, dtype, scale):
    loss = OF_DIRECTIONS[name]
    expected = loss(FIRST.double(), SECOND.double()).item()
    value = loss((FIRST * scale).to(dtype), (SECOND / scale).to(dtype)).item()
    assert value == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("name", OF_DIRECTIONS | OF_VECTORS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_a_spoilt_batch_never_has_a_plausible_loss(name, bad, which):
    """Training stops at a loss that is not finite, or with the sentence of an error."""
    views = [FIRST.clone(), SECOND.clone()]
    views[which][2, 3] = bad
    try:
        value = (OF_DIRECTIONS | OF_VECTORS)[name](*views)
    except ValueError as error:
        assert len(str(error)) > 20
    else:
        assert not value.isfinite()


@pytest.mark.parametrize("name", OF_DIRECTIONS | OF_VECTORS)
@pytest.mark.parametrize("rows", [0, 1])
def test_an_empty_batch_is_refused_and_one_row_is_finite_or_refused(name, rows):
    loss = (OF_DIRECTIONS | OF_VECTORS)[name]
    try:
        value = loss(FIRST[:rows], SECOND[:rows])
    except ValueError as error:
        assert len(str(error)) > 20
    else:
        assert rows == 1
        assert value.isfinite()
