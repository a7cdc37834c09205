"""How good an uncertainty is: ranking, selective prediction, calibration, and the bootstrap over images that goes with them.

Raw scores are compared by order in float64 and are never squashed, so that a concentration of 1e6 ranks as well as one of 1e-3
(torchmetrics' AUROC sends scores outside [0, 1] through a sigmoid and would tie them all). `uncertainty` means higher = less certain.
Inputs are NumPy arrays with one row per image; NaN, unequal lengths and empty input are ValueErrors, and so is a single class where it leaves a
measure without value: not of risk-coverage curves.
"""

from collections.abc import Callable, Sequence

import numpy as np
import scipy
from numpy.typing import ArrayLike

ROUNDING = 1e-12  # what is constant up to this share of its size differs by rounding alone


class UndefinedStatistic(ValueError):
    """The statistic has no value on these data: one class alone is present, or nothing varies; bootstrap draws that hit this are drawn again."""


def binary(
    score: ArrayLike,
    positive: ArrayLike,
    names: tuple[str, str] = ("score", "positive"),
    both: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """score float64 [N] and positive bool [N]; ValueError for what is no such pair, UndefinedStatistic for a single class if ``both`` are needed."""
    score, positive = np.asarray(score, dtype=np.float64), np.asarray(positive)
    if score.ndim != 1 or score.shape != positive.shape:
        raise ValueError(
            f"{names[0]} and {names[1]} must both be [N], got shapes {score.shape} and {positive.shape}; flatten them."
        )
    if score.size == 0:
        raise ValueError(
            f"{names[0]} and {names[1]} are empty; pass at least one image of each class."
        )
    if np.isnan(score).any():
        raise ValueError(
            f"{names[0]} has {np.isnan(score).sum()} NaN of {score.size}; a NaN has no rank, so find where it comes from."
        )
    if positive.dtype != bool:
        if not np.isin(positive, (0, 1)).all():
            raise ValueError(
                f"{names[1]} must be boolean or 0/1, got {np.unique(positive)[:4]}; compare labels and predictions first."
            )
        positive = positive.astype(bool)
    if both and (positive.all() or not positive.any()):
        raise UndefinedStatistic(
            f"{names[1]} holds a single class ({positive[0]} for all {positive.size}), so there is nothing to rank."
        )
    return score, positive


def matrix(values: ArrayLike, name: str, like: np.ndarray | None = None) -> np.ndarray:
    """The values as an array [N, D], neither empty nor NaN nor infinite, of as many columns as ``like``; ValueError where they are no such array."""
    values = np.asarray(values)
    if (
        values.ndim != 2
        or 0 in values.shape
        or (like is not None and values.shape[1] != like.shape[1])
    ):
        wanted = (
            "[N, D]"
            if like is None
            else f"[N, {like.shape[1]}], of the same network as what it is compared with,"
        )
        raise ValueError(
            f"{name} must be {wanted} with at least one row and column, got shape {values.shape}."
        )
    if not np.isfinite(values).all():
        raise ValueError(
            f"{name} has {np.sum(~np.isfinite(values))} NaN or infinite values of {values.size}; find where they come from."
        )
    return values


# ---------------------------------------------------------------------------------------------------------------- ranking


def _cumulative_counts(
    score: np.ndarray, positive: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True and false positives at every distinct threshold, highest first, with the empty prediction in front; thresholds."""
    order = np.argsort(score, kind="stable")[::-1]
    score, positive = score[order], positive[order]
    last = np.flatnonzero(
        np.append(score[1:] != score[:-1], True)
    )  # [T] last row of each group of tied scores
    true = np.cumsum(positive)[last]
    return np.append(0, true), np.append(0, last + 1 - true), score[last]


def _groups(group: np.ndarray, shape: tuple[int]) -> list[np.ndarray]:
    """Where each group's members stand; ValueError where group is not one name [N] for each score."""
    if group.shape != shape or (group.dtype.kind == "f" and np.isnan(group).any()):
        raise ValueError(
            f"group must be [N] like score {shape}, and no NaN; got shape {group.shape}."
        )
    order = np.argsort(group, kind="stable")
    return np.split(order, np.flatnonzero(group[order][1:] != group[order][:-1]) + 1)


def auroc(score: ArrayLike, positive: ArrayLike, group: ArrayLike | None = None) -> float:
    """P(score of a positive > score of a negative) + ½ P(tie), the area under the ROC curve (Hanley & McNeil 1982). All: [N].

    With ``group``, only of a positive and a negative of the same group: the groups' AUROCs, weighted by their pairs. Whether a confidence knows more
    of an image than how often its class is classified rightly; what sets the groups apart does not enter.
    """
    score, positive = binary(score, positive)
    parts = [slice(None)] if group is None else _groups(np.asarray(group), score.shape)
    counts = [_cumulative_counts(score[part], positive[part])[:2] for part in parts]
    pairs = sum(true[-1] * false[-1] for true, false in counts)
    if not pairs:
        raise UndefinedStatistic(
            f"none of the {len(parts)} groups holds a positive and a negative, so there is nothing to rank."
        )
    return float(
        sum(np.sum(np.diff(false) * (true[1:] + true[:-1])) for true, false in counts) / (2 * pairs)
    )


def roc_curve(score: ArrayLike, positive: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """False-positive rate, true-positive rate and threshold (positive: score >= threshold), from (0, 0, inf) to (1, 1, min score)."""
    true, false, threshold = _cumulative_counts(*binary(score, positive))
    return false / false[-1], true / true[-1], np.append(np.inf, threshold)


def average_precision(score: ArrayLike, positive: ArrayLike) -> float:
    """Σ (recall_t - recall_{t-1}) precision_t over distinct thresholds, without interpolation. score, positive: [N]."""
    true, false, _ = _cumulative_counts(*binary(score, positive))
    return float(np.sum(np.diff(true) / true[-1] * true[1:] / (true[1:] + false[1:])))


def fpr_at_95_tpr(score: ArrayLike, positive: ArrayLike) -> float:
    """False-positive rate at the highest threshold that finds at least 95 % of the positives (no interpolation). score, positive: [N]."""
    true, false, _ = _cumulative_counts(*binary(score, positive))
    return float(false[np.argmax(true / true[-1] >= 0.95)] / false[-1])


# --------------------------------------------------------------------------------------------------- selective prediction


def _expected_errors(uncertainty: ArrayLike, correct: ArrayLike) -> np.ndarray:
    """Errors among the k most certain images for k = 1 … N, in expectation over a random order within ties: [N]."""
    uncertainty, correct = binary(uncertainty, correct, ("uncertainty", "correct"), both=False)
    wrong, right, _ = _cumulative_counts(uncertainty, ~correct)  # among the least certain
    kept, errors = correct.size - (wrong + right)[::-1], wrong[-1] - wrong[::-1]
    # k of m tied images with e errors hold e·k/m errors in expectation: linear between the ends of the tied groups.
    return np.interp(np.arange(1, correct.size + 1), kept, errors)


def risk_coverage_curve(
    uncertainty: ArrayLike, correct: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
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

    Equals the paper's (1 - AUROC) a (1 - a) + (1 - a)²/2, with a the accuracy, plus (1 - a)/(2N).
    Deviation: that last term is not the paper's, which integrates from coverage 0; here coverages start at 1/N, as in `aurc`.
    """
    errors = _expected_errors(uncertainty, correct)
    return float(errors.mean() / errors.size)


def nearest_neighbour_correct(
    embeddings: ArrayLike, labels: ArrayLike, chunk: int = 1024
) -> np.ndarray:
    """Whether each image's cosine nearest neighbour, itself excluded, has its label: bool [N]. embeddings: [N, D], labels: [N].

    A zero vector has cosine 0 with everything; among equally near neighbours the first counts.
    """
    embeddings, labels = matrix(embeddings, "embeddings").astype(np.float64), np.asarray(labels)
    if (
        labels.shape != embeddings.shape[:1]
        or labels.size < 2
        or (labels.dtype.kind == "f" and np.isnan(labels).any())
    ):
        raise ValueError(
            f"labels must be [N] with N >= 2 like embeddings {embeddings.shape}, and no NaN; got shape {labels.shape}."
        )
    unit = embeddings / np.maximum(
        np.linalg.norm(embeddings, axis=1, keepdims=True), np.finfo(np.float64).tiny
    )
    nearest = np.empty(labels.size, dtype=np.int64)
    for start in range(0, labels.size, chunk):
        similarity = unit[start : start + chunk] @ unit.T  # [chunk, N]
        rows = np.arange(similarity.shape[0])
        similarity[rows, start + rows] = -np.inf
        nearest[start : start + chunk] = similarity.argmax(axis=1)
    return labels[nearest] == labels


def recall_auroc(embeddings: ArrayLike, labels: ArrayLike, uncertainty: ArrayLike) -> float:
    """AUROC of -uncertainty for "my cosine nearest neighbour, self excluded, has my label" (Kirchhof et al. 2023, URL benchmark)."""
    return auroc(
        -np.asarray(uncertainty, dtype=np.float64), nearest_neighbour_correct(embeddings, labels)
    )


# ------------------------------------------------------------------------------------------------------------ calibration


def _probabilities(probabilities: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    probabilities, labels = (
        matrix(probabilities, "probabilities").astype(np.float64),
        np.asarray(labels),
    )
    if probabilities.shape[1] < 2:
        raise ValueError(
            f"probabilities must be [N, C] with C >= 2 classes (one is always right), got shape {probabilities.shape}."
        )
    if labels.shape != probabilities.shape[:1]:
        raise ValueError(
            f"labels must be [N] like probabilities {probabilities.shape}, got shape {labels.shape}."
        )
    if (
        not np.issubdtype(labels.dtype, np.integer)
        or labels.min() < 0
        or labels.max() >= probabilities.shape[1]
    ):
        found = f"{labels.dtype} in {labels.min()} … {labels.max()}"
        raise ValueError(
            f"labels must be integers in 0 … {probabilities.shape[1] - 1}, got {found}."
        )
    total = probabilities.sum(axis=1)
    if probabilities.min() < 0 or np.abs(total - 1).max() > 1e-3:
        found = f"minimum {probabilities.min():.3g} and sums {total.min():.3g} … {total.max():.3g}"
        raise ValueError(
            f"probabilities must be >= 0 with rows summing to 1, got {found}; apply a softmax to logits."
        )
    return probabilities, labels


def nll_per_image(probabilities: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """-log p(label) in nats: [N]; infinite where the label has probability 0."""
    probabilities, labels = _probabilities(probabilities, labels)
    with np.errstate(divide="ignore"):
        return -np.log(probabilities[np.arange(labels.size), labels])


def negative_log_likelihood(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Mean of -log p(label) in nats. probabilities: [N, C], labels: [N]."""
    return float(nll_per_image(probabilities, labels).mean())


def top5_correct(probabilities: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """Whether the label is one of the five most probable classes of its image: bool [N]; of equally probable classes the first come first."""
    probabilities, labels = _probabilities(probabilities, labels)
    return (np.argsort(-probabilities, axis=1, kind="stable")[:, :5] == labels[:, None]).any(axis=1)


def brier_per_image(probabilities: ArrayLike, labels: ArrayLike) -> np.ndarray:
    """Σ_c (p_c - [c = label])²: [N], between 0 and 2 (Brier 1950)."""
    probabilities, labels = _probabilities(probabilities, labels)
    return np.sum((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2, axis=1)


def brier_score(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Mean over images of the squared error summed over classes (not averaged): 0 … 2. probabilities: [N, C], labels: [N]."""
    return float(brier_per_image(probabilities, labels).mean())


def confidence_bins(
    confidence: ArrayLike, correct: ArrayLike, bins: int = 15, equal_mass: bool = False
) -> dict[str, np.ndarray]:
    """Bins (low, high] of confidence [N] in (0, 1]: low, high, count, mean confidence and accuracy of each, NaN where a bin is empty.

    equal_mass puts the edges on order statistics; images of equal confidence share a bin, so there may be fewer bins than asked for.
    """
    confidence, correct = np.asarray(confidence, dtype=np.float64), np.asarray(correct)
    if confidence.ndim != 1 or confidence.size == 0 or confidence.shape != correct.shape:
        raise ValueError(
            f"confidence and correct must both be [N] with N >= 1, got shapes {confidence.shape} and {correct.shape}."
        )
    if not np.isin(correct, (0, 1)).all():
        raise ValueError(
            f"correct must be boolean or 0/1, got {np.unique(correct)[:4]}; compare labels and predictions first."
        )
    if not (confidence.min() > 0 and confidence.max() <= 1 + 1e-3):
        found = f"{confidence.min():.3g} … {confidence.max():.3g}"
        raise ValueError(
            f"confidence must lie in (0, 1], got {found}; pass probabilities, not scores."
        )
    if bins < 1 or bins != int(bins):
        raise ValueError(f"bins must be a whole number of at least 1, got {bins}.")
    edges = np.arange(bins + 1) / bins
    if equal_mass:
        edges = np.unique(
            np.append(
                0.0, np.sort(confidence)[-(-confidence.size * np.arange(1, bins + 1) // bins) - 1]
            )
        )
    index = np.minimum(
        np.searchsorted(edges, confidence, side="left") - 1, edges.size - 2
    )  # a float32 softmax may sum to 1 + 1e-7
    count = np.bincount(index, minlength=edges.size - 1)
    with np.errstate(invalid="ignore"):
        mean_confidence, accuracy = (
            np.bincount(index, weights=values, minlength=count.size) / count
            for values in (confidence, correct)
        )
    return {
        "low": edges[:-1],
        "high": edges[1:],
        "count": count,
        "confidence": mean_confidence,
        "accuracy": accuracy,
    }


def confidence_calibration_error(
    confidence: ArrayLike, correct: ArrayLike, bins: int = 15, equal_mass: bool = False
) -> float:
    """ECE from the top-label confidence [N] and its correctness [N]; see expected_calibration_error."""
    binned = confidence_bins(confidence, correct, bins, equal_mass)
    return float(
        np.nansum(binned["count"] * np.abs(binned["accuracy"] - binned["confidence"]))
        / binned["count"].sum()
    )


def calibrated_ece(confidence: ArrayLike, draws: int = 200, bins: int = 15, seed: int = 0) -> float:
    """The mean ECE of a classifier with these confidences [N] that is perfectly calibrated: correctness is drawn as Bernoulli(confidence).

    Above zero, as a bin of n images is off by about √(p (1 - p)/n) by chance: an ECE at this level says nothing of miscalibration.
    """
    confidence, generator = np.asarray(confidence, dtype=np.float64), np.random.default_rng(seed)
    drawn = (generator.random(confidence.shape) < confidence for _ in range(draws))
    return float(
        np.mean([confidence_calibration_error(confidence, correct, bins) for correct in drawn])
    )


def expected_calibration_error(
    probabilities: ArrayLike, labels: ArrayLike, bins: int = 15, equal_mass: bool = False
) -> float:
    """Top-label ECE = Σ_b (n_b / N) |accuracy_b - confidence_b| over bins (low, high] (Guo et al. 2017, Eq. 3).

    probabilities: [N, C], labels: [N]. Bins are of equal width, or of equal mass (Nixon et al. 2019). Biased upwards for small N / bins.
    """
    probabilities, labels = _probabilities(probabilities, labels)
    return confidence_calibration_error(
        probabilities.max(axis=1), probabilities.argmax(axis=1) == labels, bins, equal_mass
    )


def effective_rank(features: ArrayLike) -> float:
    """exp(-Σ p_i log p_i) with p_i = σ_i / Σ σ, σ the singular values of the centred features [N, D]: 1 … min(N - 1, D).

    Roy & Vetterli 2007, Definition 1. Deviation from RankMe (Garrido et al. 2023), which does not centre and adds 1e-7 to each p_i.
    """
    return float(
        np.exp(
            scipy.stats.entropy(
                np.linalg.svd(centred(matrix(features, "features")), compute_uv=False)
            )
        )
    )  # of σ / Σ σ


def centred(features: np.ndarray) -> np.ndarray:
    """Features [N, D] less their mean, in float64. UndefinedStatistic where all rows are equal up to rounding: they have no rank and no variance."""
    # of a network that has collapsed to one point, float32 leaves this much
    rounding = (
        max(ROUNDING, 4 * np.finfo(features.dtype).eps) if features.dtype.kind == "f" else ROUNDING
    )
    x = features.astype(np.float64)
    found = x - x.mean(axis=0)
    if np.abs(found).max() <= rounding * np.abs(x).max():
        raise UndefinedStatistic(
            f"all {len(x)} feature rows are equal: the representation has collapsed (or N = 1), and this is not defined."
        )
    return found


# ---------------------------------------------------------------------------------------------------- intervals and tests


def check_draws(draws: int) -> None:
    if draws < 1:
        raise ValueError(f"draws must be >= 1, got {draws}.")


def defined(draw: Callable[[], ArrayLike], draws: int, estimate: ArrayLike) -> np.ndarray:
    """That many results of draw(), drawn again where it is undefined, or NaN where the estimate is not: [B, ...]."""
    check_draws(draws)
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
                raise UndefinedStatistic(
                    f"{undefined} draws held a single class or no variance: too few images to resample."
                ) from error
    return np.asarray(values)


def percentiles(draws: np.ndarray) -> tuple[float, float]:
    """The ends of the middle 95 % of the draws."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def with_order(arrays: Sequence[ArrayLike]) -> tuple[list[np.ndarray], np.ndarray]:
    """Arrays of one length, and an order of rows that sorts the first: a resample taken in that order is cheap to rank."""
    arrays = [np.asarray(array) for array in arrays]
    if (
        not arrays
        or any(array.ndim == 0 or len(array) != len(arrays[0]) for array in arrays)
        or len(arrays[0]) == 0
    ):
        raise ValueError(
            f"pass at least one array, all with the same N >= 1 rows, got shapes {[array.shape for array in arrays]}."
        )
    if missing := [
        f"{np.isnan(array).sum()} of {array.size}"
        for array in arrays
        if array.dtype.kind == "f" and np.isnan(array).any()
    ]:
        raise ValueError(
            f"NaN in what is to be resampled ({', '.join(missing)} values); find where it comes from."
        )
    return arrays, np.argsort(arrays[0], kind="stable") if arrays[0].ndim == 1 else np.arange(
        len(arrays[0])
    )


def bootstrap_interval(
    statistic: Callable[..., float],
    *arrays: ArrayLike,
    draws: int = 2000,
    seed: int = 0,
    recentred: bool = False,
) -> tuple[float, float]:
    """Percentile bootstrap (low, high), 95 %, of statistic(*arrays) over images (Efron & Tibshirani 1993, section 13.3).

    recentred: the draws are shifted so that their mean is the statistic of all images. For a calibration error: a resample holds images twice, so
    that its bins are noisier and its error larger, and the plain interval may lie above the number itself.

    Every array has N rows and gets the same resample, so a difference of two scores is paired by image. The statistic must not depend on the order
    of rows. Draws on which it raises UndefinedStatistic (a single class) or is NaN (no variance) are drawn again; more of these than `draws` is
    an error. A statistic that is NaN on all images has the interval (NaN, NaN).
    """
    arrays, order = with_order(arrays)
    estimate = statistic(
        *arrays
    )  # an error on all images is the caller's, not a matter of the draw
    generator = np.random.default_rng(seed)
    drawn = defined(
        lambda: resampled(statistic, arrays, order, image_counts(generator, len(order))),
        draws,
        estimate,
    )
    return percentiles(drawn + (estimate - drawn.mean(axis=0) if recentred else 0))


def image_counts(generator: np.random.Generator, size: int) -> np.ndarray:
    """How often each image is in a resample: [N]."""
    return np.bincount(generator.integers(size, size=size), minlength=size)


def resampled(
    statistic: Callable, arrays: list[np.ndarray], order: np.ndarray, counts: np.ndarray
) -> ArrayLike:
    rows = np.repeat(order, counts[order])
    return statistic(*(array[rows] for array in arrays))


def is_constant(values: ArrayLike) -> bool:
    """Whether values [N] differ by rounding alone."""
    return np.ptp(values) <= ROUNDING * np.abs(values).max()


def rank_correlation(first: ArrayLike, second: ArrayLike) -> float:
    """Spearman's rank correlation of two [N], N >= 2, row by row; NaN where one of the two is constant."""
    first, second = paired(sample(first, "first"), sample(second, "second"))
    return (
        np.nan
        if is_constant(first) or is_constant(second)
        else float(scipy.stats.spearmanr(first, second).statistic)
    )


def rank_correlation_per_image(severity: ArrayLike, values: ArrayLike) -> np.ndarray:
    """Spearman's rank correlation of every row of values [N, S] with severity [S], S >= 2: [N]; 0 where one of the two is constant."""
    severity, values = sample(severity, "severity"), matrix(values, "values")
    if values.shape[1] != severity.size:
        raise ValueError(
            f"values must have a column for each of the {severity.size} severities, got shape {values.shape}."
        )
    ranks = scipy.stats.rankdata(values, axis=1) - (severity.size + 1) / 2
    steps = scipy.stats.rankdata(severity) - (severity.size + 1) / 2
    length = np.linalg.norm(ranks, axis=1) * np.linalg.norm(steps)
    return np.divide(ranks @ steps, length, out=np.zeros(len(values)), where=length > 0)


def sample(values: ArrayLike, name: str) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or values.size < 2 or not np.isfinite(values).all():
        raise ValueError(f"{name} must be [N] with N >= 2 finite values, got shape {values.shape}.")
    return values


def paired(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if first.shape != second.shape:
        raise ValueError(
            f"first and second must be paired row by row, got shapes {first.shape} and {second.shape}."
        )
    return first, second
