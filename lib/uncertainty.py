"""How good an uncertainty is: ranking, selective prediction, calibration, and the intervals and tests that go with them.

Raw scores are compared by order in float64 and are never squashed, so that a concentration of 1e6 ranks as well as one of 1e-3
(torchmetrics' AUROC sends scores outside [0, 1] through a sigmoid and would tie them all). `uncertainty` means higher = less certain.
Inputs are NumPy arrays with one row per image; NaN, unequal lengths, empty input and a single class are ValueErrors.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy
from numpy.typing import ArrayLike

ROUNDING = 1e-12  # what is constant up to this share of its size differs by rounding alone


class UndefinedStatistic(ValueError):
    """The statistic has no value on these data: one class alone is present, or nothing varies; bootstrap draws that hit this are drawn again."""


def _binary(score: ArrayLike, positive: ArrayLike, names: tuple[str, str] = ("score", "positive")) -> tuple[np.ndarray, np.ndarray]:
    score, positive = np.asarray(score, dtype=np.float64), np.asarray(positive)
    if score.ndim != 1 or score.shape != positive.shape:
        raise ValueError(f"{names[0]} and {names[1]} must both be [N], got shapes {score.shape} and {positive.shape}; flatten them.")
    if score.size == 0:
        raise ValueError(f"{names[0]} and {names[1]} are empty; pass at least one image of each class.")
    if np.isnan(score).any():
        raise ValueError(f"{names[0]} has {np.isnan(score).sum()} NaN of {score.size}; a NaN has no rank, so find where it comes from.")
    if positive.dtype != bool:
        if not np.isin(positive, (0, 1)).all():
            raise ValueError(f"{names[1]} must be boolean or 0/1, got {np.unique(positive)[:4]}; compare labels and predictions first.")
        positive = positive.astype(bool)
    if positive.all() or not positive.any():
        raise UndefinedStatistic(f"{names[1]} holds a single class ({positive[0]} for all {positive.size}), so there is nothing to rank.")
    return score, positive


def matrix(values: ArrayLike, name: str, like: np.ndarray | None = None) -> np.ndarray:
    """The values as an array [N, D], neither empty nor NaN nor infinite, of as many columns as ``like``; ValueError where they are no such array."""
    values = np.asarray(values)
    if values.ndim != 2 or 0 in values.shape or (like is not None and values.shape[1] != like.shape[1]):
        wanted = "[N, D]" if like is None else f"[N, {like.shape[1]}], of the same network as what it is compared with,"
        raise ValueError(f"{name} must be {wanted} with at least one row and column, got shape {values.shape}.")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} has {np.sum(~np.isfinite(values))} NaN or infinite values of {values.size}; find where they come from.")
    return values


# ---------------------------------------------------------------------------------------------------------------- ranking


def _cumulative_counts(score: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True and false positives at every distinct threshold, highest first, with the empty prediction in front; thresholds."""
    order = np.argsort(score, kind="stable")[::-1]
    score, positive = score[order], positive[order]
    last = np.flatnonzero(np.append(score[1:] != score[:-1], True))  # [T] last row of each group of tied scores
    true = np.cumsum(positive)[last]
    return np.append(0, true), np.append(0, last + 1 - true), score[last]


def auroc(score: ArrayLike, positive: ArrayLike) -> float:
    """P(score of a positive > score of a negative) + ½ P(tie), the area under the ROC curve (Hanley & McNeil 1982). Both: [N]."""
    true, false, _ = _cumulative_counts(*_binary(score, positive))
    return float(np.sum(np.diff(false) * (true[1:] + true[:-1])) / (2 * true[-1] * false[-1]))


def roc_curve(score: ArrayLike, positive: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """False-positive rate, true-positive rate and threshold (positive: score >= threshold), from (0, 0, inf) to (1, 1, min score)."""
    true, false, threshold = _cumulative_counts(*_binary(score, positive))
    return false / false[-1], true / true[-1], np.append(np.inf, threshold)


def average_precision(score: ArrayLike, positive: ArrayLike) -> float:
    """Σ (recall_t - recall_{t-1}) precision_t over distinct thresholds, without interpolation. score, positive: [N]."""
    true, false, _ = _cumulative_counts(*_binary(score, positive))
    return float(np.sum(np.diff(true) / true[-1] * true[1:] / (true[1:] + false[1:])))


def fpr_at_95_tpr(score: ArrayLike, positive: ArrayLike) -> float:
    """False-positive rate at the highest threshold that finds at least 95 % of the positives (no interpolation). score, positive: [N]."""
    true, false, _ = _cumulative_counts(*_binary(score, positive))
    return float(false[np.argmax(true / true[-1] >= 0.95)] / false[-1])


# --------------------------------------------------------------------------------------------------- selective prediction


def _expected_errors(uncertainty: ArrayLike, correct: ArrayLike) -> np.ndarray:
    """Errors among the k most certain images for k = 1 … N, in expectation over a random order within ties: [N]."""
    uncertainty, correct = _binary(uncertainty, correct, ("uncertainty", "correct"))
    wrong, right, _ = _cumulative_counts(uncertainty, ~correct)  # among the least certain
    kept, errors = correct.size - (wrong + right)[::-1], wrong[-1] - wrong[::-1]
    # k of m tied images with e errors hold e·k/m errors in expectation: linear between the ends of the tied groups.
    return np.interp(np.arange(1, correct.size + 1), kept, errors)


def risk_coverage_curve(uncertainty: ArrayLike, correct: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Coverage k/N [N] and the error rate among the k most certain images [N] (El-Yaniv & Wiener 2010), ties averaged."""
    errors = _expected_errors(uncertainty, correct)
    kept = np.arange(1, errors.size + 1)
    return kept / kept.size, errors / kept


def aurc(uncertainty: ArrayLike, correct: ArrayLike) -> float:
    """Area under the risk-coverage curve: mean over coverages 1/N … 1 of the error among the most certain (Geifman et al. 2019).

    Ties are averaged exactly (the expectation over all orders of tied images), so a constant score gives the error rate.
    """
    return float(risk_coverage_curve(uncertainty, correct)[1].mean())


def excess_aurc(uncertainty: ArrayLike, correct: ArrayLike) -> float:
    """AURC minus the AURC of a perfect order, all correct images first (E-AURC, Geifman et al. 2019); 0 is best."""
    wrong = np.asarray(correct) == 0
    return aurc(uncertainty, correct) - aurc(wrong, correct)


def augrc(uncertainty: ArrayLike, correct: ArrayLike) -> float:
    """Area under the generalised risk-coverage curve (Traub et al. 2024): mean over coverages 1/N … 1 of P(wrong and selected).

    Equals the paper's (1 - AUROC) a (1 - a) + (1 - a)²/2, with a the accuracy, plus (1 - a)/(2N). Deviation: that last term, because the
    mean over coverages is taken as in `aurc` where the paper integrates from coverage 0.
    """
    errors = _expected_errors(uncertainty, correct)
    return float(errors.mean() / errors.size)


def nearest_neighbour_correct(embeddings: ArrayLike, labels: ArrayLike, chunk: int = 1024) -> np.ndarray:
    """Whether each image's cosine nearest neighbour, itself excluded, has its label: bool [N]. embeddings: [N, D], labels: [N].

    A zero vector has cosine 0 with everything; among equally near neighbours the first counts.
    """
    embeddings, labels = matrix(embeddings, "embeddings").astype(np.float64), np.asarray(labels)
    if labels.shape != embeddings.shape[:1] or labels.size < 2 or (labels.dtype.kind == "f" and np.isnan(labels).any()):
        raise ValueError(f"labels must be [N] with N >= 2 like embeddings {embeddings.shape}, and no NaN; got shape {labels.shape}.")
    unit = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    nearest = np.empty(labels.size, dtype=np.int64)
    for start in range(0, labels.size, chunk):
        similarity = unit[start : start + chunk] @ unit.T  # [chunk, N]
        rows = np.arange(similarity.shape[0])
        similarity[rows, start + rows] = -np.inf
        nearest[start : start + chunk] = similarity.argmax(axis=1)
    return labels[nearest] == labels


def recall_auroc(embeddings: ArrayLike, labels: ArrayLike, uncertainty: ArrayLike) -> float:
    """AUROC of -uncertainty for "my cosine nearest neighbour, self excluded, has my label" (Kirchhof et al. 2023, URL benchmark)."""
    return auroc(-np.asarray(uncertainty, dtype=np.float64), nearest_neighbour_correct(embeddings, labels))


# ------------------------------------------------------------------------------------------------------------ calibration


def _probabilities(probabilities: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    probabilities, labels = matrix(probabilities, "probabilities").astype(np.float64), np.asarray(labels)
    if probabilities.shape[1] < 2:
        raise ValueError(f"probabilities must be [N, C] with C >= 2 classes (one is always right), got shape {probabilities.shape}.")
    if labels.shape != probabilities.shape[:1]:
        raise ValueError(f"labels must be [N] like probabilities {probabilities.shape}, got shape {labels.shape}.")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= probabilities.shape[1]:
        found = f"{labels.dtype} in {labels.min()} … {labels.max()}"
        raise ValueError(f"labels must be integers in 0 … {probabilities.shape[1] - 1}, got {found}.")
    total = probabilities.sum(axis=1)
    if probabilities.min() < 0 or np.abs(total - 1).max() > 1e-3:
        found = f"minimum {probabilities.min():.3g} and sums {total.min():.3g} … {total.max():.3g}"
        raise ValueError(f"probabilities must be >= 0 with rows summing to 1, got {found}; apply a softmax to logits.")
    return probabilities, labels


def nll_per_image(probabilities: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """-log p(label) in nats: [N]; infinite where the label has probability 0."""
    probabilities, labels = _probabilities(probabilities, labels)
    with np.errstate(divide="ignore"):
        return -np.log(probabilities[np.arange(labels.size), labels])


def negative_log_likelihood(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Mean of -log p(label) in nats. probabilities: [N, C], labels: [N]."""
    return float(nll_per_image(probabilities, labels).mean())


def brier_per_image(probabilities: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """Σ_c (p_c - [c = label])²: [N], between 0 and 2 (Brier 1950)."""
    probabilities, labels = _probabilities(probabilities, labels)
    return np.sum((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2, axis=1)


def brier_score(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Mean over images of the squared error summed over classes (not averaged): 0 … 2. probabilities: [N, C], labels: [N]."""
    return float(brier_per_image(probabilities, labels).mean())


def confidence_bins(confidence: ArrayLike, correct: ArrayLike, bins: int = 15, equal_mass: bool = False) -> dict[str, np.ndarray]:
    """Bins (low, high] of confidence [N] in (0, 1]: low, high, count, mean confidence and accuracy of each, NaN where a bin is empty.

    equal_mass puts the edges on order statistics; images of equal confidence share a bin, so there may be fewer bins than asked for.
    """
    confidence, correct = np.asarray(confidence, dtype=np.float64), np.asarray(correct)
    if confidence.ndim != 1 or confidence.size == 0 or confidence.shape != correct.shape:
        raise ValueError(f"confidence and correct must both be [N] with N >= 1, got shapes {confidence.shape} and {correct.shape}.")
    if not np.isin(correct, (0, 1)).all():
        raise ValueError(f"correct must be boolean or 0/1, got {np.unique(correct)[:4]}; compare labels and predictions first.")
    if not (confidence.min() > 0 and confidence.max() <= 1 + 1e-3):
        found = f"{confidence.min():.3g} … {confidence.max():.3g}"
        raise ValueError(f"confidence must lie in (0, 1], got {found}; pass probabilities, not scores.")
    if bins < 1 or bins != int(bins):
        raise ValueError(f"bins must be a whole number of at least 1, got {bins}.")
    edges = np.arange(bins + 1) / bins
    if equal_mass:
        edges = np.unique(np.append(0.0, np.sort(confidence)[-(-confidence.size * np.arange(1, bins + 1) // bins) - 1]))
    index = np.minimum(np.searchsorted(edges, confidence, side="left") - 1, edges.size - 2)  # a float32 softmax may sum to 1 + 1e-7
    count = np.bincount(index, minlength=edges.size - 1)
    with np.errstate(invalid="ignore"):
        mean_confidence, accuracy = (np.bincount(index, weights=values, minlength=count.size) / count for values in (confidence, correct))
    return {"low": edges[:-1], "high": edges[1:], "count": count, "confidence": mean_confidence, "accuracy": accuracy}


def confidence_calibration_error(confidence: ArrayLike, correct: ArrayLike, bins: int = 15, equal_mass: bool = False) -> float:
    """ECE from the top-label confidence [N] and its correctness [N]; see expected_calibration_error."""
    binned = confidence_bins(confidence, correct, bins, equal_mass)
    return float(np.nansum(binned["count"] * np.abs(binned["accuracy"] - binned["confidence"])) / binned["count"].sum())


def expected_calibration_error(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15, equal_mass: bool = False) -> float:
    """Top-label ECE = Σ_b (n_b / N) |accuracy_b - confidence_b| over bins (low, high] (Guo et al. 2017, Eq. 3).

    probabilities: [N, C], labels: [N]. Bins are of equal width, or of equal mass (Nixon et al. 2019). Biased upwards for small N / bins.
    """
    probabilities, labels = _probabilities(probabilities, labels)
    return confidence_calibration_error(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels, bins, equal_mass)


def effective_rank(features: ArrayLike) -> float:
    """exp(-Σ p_i log p_i) with p_i = σ_i / Σ σ, σ the singular values of the centred features [N, D]: 1 … min(N - 1, D).

    Roy & Vetterli 2007, Definition 1. Deviation from RankMe (Garrido et al. 2023), which does not centre and adds 1e-7 to each p_i.
    """
    given = matrix(features, "features")
    # of a network that has collapsed to one point, float32 leaves this much
    rounding = max(ROUNDING, 4 * np.finfo(given.dtype).eps) if given.dtype.kind == "f" else ROUNDING
    features = given.astype(np.float64)
    centred = features - features.mean(axis=0)
    if np.abs(centred).max() <= rounding * np.abs(features).max():
        raise ValueError(f"all {len(features)} feature rows are equal, so no rank is defined; the representation has collapsed (or N = 1).")
    return float(np.exp(scipy.stats.entropy(np.linalg.svd(centred, compute_uv=False))))  # of σ / Σ σ


# ---------------------------------------------------------------------------------------------------- intervals and tests


def _check_draws(draws: int) -> None:
    if draws < 1:
        raise ValueError(f"draws must be >= 1, got {draws}.")


def _defined(draw: Callable[[], ArrayLike], draws: int, estimate: ArrayLike) -> np.ndarray:
    """That many results of draw(), drawn again where it is undefined, or NaN where the estimate is not: [B, ...]."""
    _check_draws(draws)
    values, undefined, expected = [], 0, ~np.isnan(estimate)
    while len(values) < draws:
        try:
            value = np.asarray(draw(), dtype=np.float64)
            if np.isnan(value[expected]).any():
                raise UndefinedStatistic("The draw has no variance.")
            values.append(value)
        except UndefinedStatistic as error:
            undefined += 1
            if undefined > draws:
                raise UndefinedStatistic(f"{undefined} draws held a single class or no variance: too few images to resample.") from error
    return np.asarray(values)


def _percentiles(draws: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level must be in (0, 1), got {level}.")


def _columns(arrays: Sequence[ArrayLike]) -> tuple[list[np.ndarray], np.ndarray]:
    """Arrays of one length, and an order of rows that sorts the first: a resample taken in that order is cheap to rank."""
    arrays = [np.asarray(array) for array in arrays]
    if not arrays or any(array.ndim == 0 or len(array) != len(arrays[0]) for array in arrays) or len(arrays[0]) == 0:
        raise ValueError(f"pass at least one array, all with the same N >= 1 rows, got shapes {[array.shape for array in arrays]}.")
    if missing := [f"{np.isnan(array).sum()} of {array.size}" for array in arrays if array.dtype.kind == "f" and np.isnan(array).any()]:
        raise ValueError(f"NaN in what is to be resampled ({', '.join(missing)} values); find where it comes from.")
    return arrays, np.argsort(arrays[0], kind="stable") if arrays[0].ndim == 1 else np.arange(len(arrays[0]))


def bootstrap_interval(
    statistic: Callable[..., float], *arrays: ArrayLike, draws: int = 2000, level: float = 0.95, seed: int = 0, recentred: bool = False
) -> tuple[float, float]:
    """Percentile bootstrap (low, high) of statistic(*arrays) over images (Efron & Tibshirani 1993, section 13.3).

    recentred: the draws are shifted so that their mean is the statistic of all images. For a calibration error: a resample holds images twice, so
    that its bins are noisier and its error larger, and the plain interval may lie above the number itself.

    Every array has N rows and gets the same resample, so a difference of two scores is paired by image. The statistic must not depend on the order
    of rows. Draws on which it raises UndefinedStatistic (a single class) or is NaN (no variance) are drawn again; more of these than `draws` is
    an error. A statistic that is NaN on all images has the interval (NaN, NaN).
    """
    _check_level(level)
    arrays, order = _columns(arrays)
    estimate = statistic(*arrays)  # an error on all images is the caller's, not a matter of the draw
    generator = np.random.default_rng(seed)
    drawn = _defined(lambda: _resampled(statistic, arrays, order, _image_counts(generator, len(order))), draws, estimate)
    return _percentiles(drawn + (estimate - drawn.mean(axis=0) if recentred else 0), level)


def _image_counts(generator: np.random.Generator, size: int) -> np.ndarray:
    """How often each image is in a resample: [N]."""
    return np.bincount(generator.integers(size, size=size), minlength=size)


def _resampled(statistic: Callable, arrays: list[np.ndarray], order: np.ndarray, counts: np.ndarray) -> ArrayLike:
    rows = np.repeat(order, counts[order])
    return statistic(*(array[rows] for array in arrays))


def hierarchical_interval(statistic: Callable[..., float], *per_seed: Sequence[ArrayLike], draws: int = 2000) -> tuple[float, float]:
    """Percentile bootstrap (low, high) over seeds, then images, of the mean over seeds of the statistic, 95 %.

    Each argument is a list with one array per seed: hierarchical_interval(auroc, [score_0, score_1], [correct_0, correct_1]); row i is the same
    image for every seed. The statistic is taken within a seed, so scores of different scale are never pooled. With three seeds the spread between
    seeds is underestimated by a factor of about sqrt(2/3), as by any bootstrap of three.
    """
    if not per_seed or len({len(arrays) for arrays in per_seed}) != 1 or len(per_seed[0]) == 0:
        raise ValueError(f"pass lists with one array per seed, all of one length >= 1, got lengths {[len(arrays) for arrays in per_seed]}.")
    return _percentiles(hierarchical_draws(statistic, [list(zip(*per_seed, strict=True))], draws)[1])


def hierarchical_draws(
    statistic: Callable[..., ArrayLike], methods: Sequence[Sequence[Sequence[ArrayLike]]], draws: int = 2000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Estimates [M, ...] and bootstrap draws [B, M, ...] of the mean over seeds of a statistic of M methods, paired by image.

    methods: for each method a list over its seeds of the arrays that the statistic takes, row i the same image everywhere; the statistic is a
    number or an array of numbers (several scores of one method). A draw resamples images once for all methods, then each method's own seeds,
    whose number may differ: a method of one seed has no spread over seeds in it. The difference of two columns is a draw of the paired difference.
    """
    prepared = [[_columns(arrays) for arrays in per_seed] for per_seed in methods]
    sizes = {len(order) for per_seed in prepared for _, order in per_seed}
    if len(sizes) != 1 or not all(prepared):
        raise ValueError(f"pass at least one method and one seed of each, all on the same test images, got {sorted(sizes)} images.")
    estimates = [np.mean([statistic(*arrays) for arrays, _ in per_seed], axis=0) for per_seed in prepared]
    generator, (size,) = np.random.default_rng(seed), sizes

    def mean_over_drawn_seeds(per_seed: list, counts: np.ndarray) -> np.ndarray:
        drawn = generator.integers(len(per_seed), size=len(per_seed))
        return np.mean([_resampled(statistic, *per_seed[chosen], counts) for chosen in drawn], axis=0)

    def draw() -> list[np.ndarray]:
        counts = _image_counts(generator, size)
        return [mean_over_drawn_seeds(per_seed, counts) for per_seed in prepared]

    estimates = np.asarray(estimates, dtype=np.float64)
    return estimates, _defined(draw, draws, estimates)


def hierarchical_difference(
    statistic: Callable[..., float], first: Mapping[int, Sequence[ArrayLike]], second: Mapping[int, Sequence[ArrayLike]], draws: int = 2000
) -> dict[str, float]:
    """statistic(*first) - statistic(*second), mean over seeds, with the interval of hierarchical_interval: paired by seed and by image.

    first, second: by seed the arrays that the statistic takes, all of the same images in the same order; seeds that one alone has are left out.
    Returns difference, ci_low, ci_high, seeds and n (images).
    """
    both = sorted(set(first) & set(second))
    if not both:
        raise ValueError(f"the two have no seed in common: {sorted(first)} and {sorted(second)}; train one more.")
    arity = len(first[both[0]])

    def gap(*arrays: np.ndarray) -> float:
        return statistic(*arrays[:arity]) - statistic(*arrays[arity:])

    per_seed = [(*first[seed], *second[seed]) for seed in both]
    (mean,), drawn = hierarchical_draws(gap, [per_seed], draws)
    low, high = _percentiles(drawn)
    return {"difference": float(mean), "ci_low": low, "ci_high": high, "seeds": len(both), "n": len(per_seed[0][0])}


def permutation_test_auroc(score: ArrayLike, positive: ArrayLike, draws: int = 10_000, seed: int = 0) -> float:
    """Two-sided p-value of AUROC = 0.5: the share of label permutations at least as far from 0.5, counting the observed one."""
    score, positive = _binary(score, positive)
    _check_draws(draws)
    ranks = scipy.stats.rankdata(score)
    generator, count = np.random.default_rng(seed), positive.sum()
    expected = count * (ranks.size + 1) / 2
    # Rank sums are multiples of ½, exact in float64, so "at least as far" needs no tolerance.
    distances = np.array([abs(generator.permutation(ranks)[:count].sum() - expected) for _ in range(draws)])
    return float((1 + np.sum(distances >= abs(ranks[positive].sum() - expected))) / (1 + draws))


def rank_correlation(first: ArrayLike, second: ArrayLike) -> float:
    """Spearman's rank correlation of two [N], N >= 2, row by row; NaN where one of the two is constant."""
    first, second = _paired(_sample(first, "first"), _sample(second, "second"))
    return float(scipy.stats.spearmanr(first, second).statistic) if np.ptp(first) and np.ptp(second) else np.nan


class TestResult(NamedTuple):
    """A two-sided t-test: statistic, p-value, mean of first minus mean of second, and that difference's 95 % confidence interval."""

    __test__ = False  # not a test case, whatever its name suggests to pytest

    statistic: float
    p_value: float
    mean_difference: float
    ci_low: float
    ci_high: float


def _sample(values: ArrayLike, name: str) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or values.size < 2 or not np.isfinite(values).all():
        raise ValueError(f"{name} must be [N] with N >= 2 finite values, got shape {values.shape}.")
    return values


def is_constant(values: ArrayLike) -> bool:
    """Whether values [N] differ by rounding alone."""
    return np.ptp(values) <= ROUNDING * np.abs(values).max()


def _paired(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if first.shape != second.shape:
        raise ValueError(f"first and second must be paired row by row, got shapes {first.shape} and {second.shape}.")
    return first, second


def welch_test(first: ArrayLike, second: ArrayLike) -> TestResult:
    """Welch's t-test of equal means for independent samples of unequal variance (Welch 1947). first: [N], second: [M]."""
    first, second = _sample(first, "first"), _sample(second, "second")
    if is_constant(first) and is_constant(second):
        raise ValueError(f"both samples are constant ({first[0]:g} and {second[0]:g}); a t-test needs variance.")
    result = scipy.stats.ttest_ind(first, second, equal_var=False)
    low, high = result.confidence_interval(0.95)
    return TestResult(*map(float, (result.statistic, result.pvalue, first.mean() - second.mean(), low, high)))


def paired_test(first: ArrayLike, second: ArrayLike) -> TestResult:
    """Paired t-test of equal means; row i of both [N] is the same image."""
    first, second = _paired(_sample(first, "first"), _sample(second, "second"))
    if np.ptp(first - second) <= ROUNDING * max(np.abs(first).max(), np.abs(second).max()):
        raise ValueError(f"all differences equal {first[0] - second[0]:g}; a t-test needs variance.")
    result = scipy.stats.ttest_rel(first, second)
    low, high = result.confidence_interval(0.95)
    return TestResult(*map(float, (result.statistic, result.pvalue, (first - second).mean(), low, high)))


def mean_over_seeds(values: ArrayLike) -> dict[str, float]:
    """Mean of one value [N] a seed with Student's 95 % interval (NaN for one seed): mean, ci_low, ci_high, seeds."""
    values = np.asarray(values, float)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ValueError(f"values must be [N] with N >= 1 finite numbers, one a seed, got {values}.")
    mean = values.mean()
    half = scipy.stats.t.isf(0.025, len(values) - 1) * scipy.stats.sem(values) if len(values) > 1 else np.nan
    return {"mean": float(mean), "ci_low": float(mean - half), "ci_high": float(mean + half), "seeds": len(values)}


def paired_difference(first: ArrayLike, second: ArrayLike) -> dict[str, float]:
    """mean_over_seeds of first minus second [N], row i of both of the same seed; its mean is called difference."""
    first, second = _paired(np.asarray(first, float), np.asarray(second, float))
    found = mean_over_seeds(first - second)
    return {"difference": found.pop("mean")} | found


def holm(p_values: ArrayLike) -> np.ndarray:
    """Holm-adjusted p-values [M] in the given order: running maximum of (M - rank) p, at most 1 (Holm 1979)."""
    p_values = np.asarray(p_values, dtype=np.float64)
    if p_values.ndim != 1 or p_values.size == 0 or not ((p_values >= 0) & (p_values <= 1)).all():
        raise ValueError(f"p_values must be [M] with M >= 1 numbers in 0 … 1, got {p_values}.")
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p_values[order] * np.arange(p_values.size, 0, -1)))
    return adjusted


def _estimates_and_draws(estimates: ArrayLike, draws: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    estimates, draws = np.asarray(estimates, dtype=np.float64), matrix(draws, "draws").astype(np.float64)
    if estimates.ndim != 1 or draws.shape[1:] != estimates.shape or len(draws) < 2 or not np.isfinite(estimates).all():
        raise ValueError(f"estimates must be [M], finite, and draws [B, M] with B >= 2, got shapes {estimates.shape} and {draws.shape}.")
    return estimates, draws


def bootstrap_p_values(estimates: ArrayLike, draws: ArrayLike) -> np.ndarray:
    """Two-sided p-values [M] of "the quantity is zero": the share of draws at least as far from the estimate as that is from zero.

    (1 + #{|draw - estimate| >= |estimate|})/(1 + B), Davison & Hinkley 1997, section 4.4, with the draws recentred on the null. estimates: [M],
    draws: [B, M].
    """
    estimates, draws = _estimates_and_draws(estimates, draws)
    return (1 + np.sum(np.abs(draws - estimates) >= np.abs(estimates), axis=0)) / (1 + len(draws))


def simultaneous_intervals(estimates: ArrayLike, draws: ArrayLike, level: float = 0.95) -> tuple[np.ndarray, np.ndarray]:
    """(low [M], high [M]) that hold all M quantities at once with probability `level`: estimate ± c·se.

    se: standard deviation of a quantity's draws [B, M]; c: the `level` quantile over draws of max_m |draw_m - estimate_m|/se_m (the maximum
    statistic; Romano & Wolf 2005, Montiel Olea & Plagborg-Møller 2019). Draws of all quantities must come from one resample where the quantities
    depend on each other. A quantity that no draw changes has an interval of no width.
    """
    estimates, draws = _estimates_and_draws(estimates, draws)
    _check_level(level)
    error = draws.std(axis=0, ddof=1)
    away = np.abs(draws - estimates)
    constant = away.max(axis=0) <= 1e-12 * np.maximum(1, np.abs(estimates))  # rounding is no spread
    largest = np.max(np.where(constant, 0, away / np.where(constant, 1, error)), axis=1)
    half = np.quantile(largest, level) * error
    return estimates - half, estimates + half


def rank_intervals(count: int, low: ArrayLike, high: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest rank (best [M], worst [M]) that M = count methods can have; rank 1 is the largest quantity.

    low, high [M (M - 1)/2]: simultaneous intervals of first minus second for all pairs in the order of itertools.combinations. best = 1 + the number
    of methods that are surely larger (the interval of the difference lies above zero), worst = M - the number that are surely smaller (Mogstad,
    Romano, Shaikh & Wilhelm 2024). If the intervals hold all differences at once with 95 %, so do the rank intervals all ranks; methods of equal
    truth share the ranks between them.
    """
    low, high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    pairs = (count * (count - 1) // 2,)
    if count < 1 or low.shape != pairs or high.shape != pairs or not (low <= high).all():
        raise ValueError(f"{count} methods need {pairs[0]} intervals with low <= high, got shapes {low.shape} and {high.shape}, or NaN.")
    first, second = np.triu_indices(count, 1)
    larger = np.zeros((count, count), dtype=bool)  # [i, j]: method i is surely larger than method j
    larger[first, second], larger[second, first] = low > 0, high < 0
    return 1 + larger.sum(axis=0), count - larger.sum(axis=1)
