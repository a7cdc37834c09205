"""How good an uncertainty is: ranking, selective prediction, calibration, bootstrap intervals.

``uncertainty`` means: higher is less certain. Inputs are arrays with one row per image. Scores are
compared by their order in float64 and are never squashed, so a concentration κ of 1e6 ranks as well
as one of 1e-3. torchmetrics' AUROC sends scores outside [0, 1] through a sigmoid, which ties them.

NaN, unequal lengths and empty input raise ValueError. A measure without a value, such as an AUROC
of a single class, raises UndefinedStatistic. Risk-coverage curves are defined for a single class.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import scipy
from numpy.typing import ArrayLike

ROUNDING = 1e-12  # values that vary by less than this share of their size differ by rounding only


class UndefinedStatistic(ValueError):
    """The statistic has no value on these data: only one class is present, or nothing varies."""


# ------------------------------------------------------------------------------------------ inputs
def checked_scores(score: ArrayLike, truth: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """score as float64 [N] and truth, boolean or 0/1, as bool [N].

    ValueError for other shapes, no image, NaN and other values.
    """
    score = np.asarray(score, dtype=np.float64)
    truth = np.asarray(truth)
    if score.ndim != 1 or score.size == 0 or score.shape != truth.shape:
        raise ValueError(
            "scores and their truth must both be [N] with N >= 1, got shapes "
            f"{score.shape} and {truth.shape}."
        )
    if np.isnan(score).any():
        raise ValueError(
            f"{np.isnan(score).sum()} of {score.size} scores are NaN; a NaN has no rank, so find "
            "where it comes from."
        )
    if truth.dtype != bool and not np.isin(truth, (0, 1)).all():
        raise ValueError(
            f"the truth must be boolean or 0/1, got {np.unique(truth)[:4]}; compare labels and "
            "predictions first."
        )
    return score, truth.astype(bool)


def checked_features(values: ArrayLike, name: str, like: np.ndarray | None = None) -> np.ndarray:
    """The values as an array [N, D] of finite numbers, with as many columns as ``like``.

    ValueError where they are no such array.
    """
    values = np.asarray(values)
    if values.dtype.kind not in "fiub" or values.dtype == np.longdouble:
        try:
            values = values.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{name} must be numbers: {error}.") from error
    other_columns = like is not None and values.shape[1:] != like.shape[1:]
    if values.ndim != 2 or 0 in values.shape or other_columns:
        wanted = "[N, D]"
        if like is not None:
            wanted = f"[N, {like.shape[1]}], from the same network as what it is compared with,"
        raise ValueError(
            f"{name} must be {wanted} with at least one row and column, got shape {values.shape}."
        )
    if not np.isfinite(values).all():
        raise ValueError(
            f"{name} has {np.sum(~np.isfinite(values))} NaN or infinite values of {values.size}; "
            "find where they come from."
        )
    return values


def checked_values(values: ArrayLike, name: str) -> np.ndarray:
    """The values as finite float64 [N] with N >= 2; otherwise ValueError."""
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or values.size < 2 or not np.isfinite(values).all():
        raise ValueError(f"{name} must be [N] with N >= 2 finite values, got shape {values.shape}.")
    return values


def class_indices(labels: ArrayLike, name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct labels in order [C], and the place of each of ``count`` labels among them [N].

    Labels are whole numbers or strings; they need not count from 0.

    Example:
        >>> class_indices([2021, 2019, 2021], "years", 3)
        (array([2019, 2021]), array([1, 0, 1]))
    """
    labels = np.asarray(labels)
    if labels.dtype.kind == "O":  # a column of a data frame, for example
        labels = np.array(labels.tolist())
    if labels.shape != (count,) or count == 0:
        raise ValueError(
            f"{name} must hold one label for each of {count} images, at least one; got shape "
            f"{labels.shape}."
        )
    is_fraction = labels.dtype.kind == "f" and (labels != np.floor(labels)).any()
    if is_fraction or labels.dtype.kind not in "biufU":
        raise ValueError(f"{name} must be whole numbers or strings, got {labels[:4]}.")
    classes, indices = np.unique(labels, return_inverse=True)
    return classes, indices.astype(np.int64)


def scaled_rows(features: np.ndarray) -> np.ndarray:
    """Each row of features [N, D] times the power of two that brings its largest value to 0.5 … 1.

    The scaling is exact and leaves directions unchanged. Without it the norm of a float32 row
    overflows at features of size 1e19. A row of zeros stays.
    """
    _, exponents = np.frexp(np.abs(features).max(axis=1, keepdims=True))
    return np.ldexp(features, -exponents)


# ----------------------------------------------------------------------------------------- ranking
def _cumulative_counts(score: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True and false positives [T + 1] at every distinct threshold, highest first.

    The first entry is that of the empty prediction.
    """
    order = np.argsort(score, kind="stable")[::-1]
    score = score[order]
    is_last_of_tie = np.append(score[1:] != score[:-1], True)
    last = np.flatnonzero(is_last_of_tie)  # [T]
    true = np.cumsum(positive[order])[last]
    false = last + 1 - true
    return np.append(0, true), np.append(0, false)


def _checked_ranking(score: ArrayLike, positive: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """``checked_scores``; UndefinedStatistic where all images are positive, or none is."""
    score, positive = checked_scores(score, positive)
    if positive.all() or not positive.any():
        raise UndefinedStatistic(
            f"all {positive.size} images are of a single class, so there is nothing to rank."
        )
    return score, positive


def auroc(score: ArrayLike, positive: ArrayLike) -> float:
    """P(score of a positive > score of a negative) + ½ P(tie): the area under the ROC curve.

    Hanley & McNeil 1982. score, positive: [N]. Equals scikit-learn's roc_auc_score up to the last
    digit, and takes a hundredth of its time on the sorted rows of a bootstrap.

    Example:
        >>> auroc(score=[0.1, 0.4, 0.35, 0.8], positive=[0, 0, 1, 1])
        0.75
    """
    true, false = _cumulative_counts(*_checked_ranking(score, positive))
    area = np.sum(np.diff(false) * (true[1:] + true[:-1]))
    return float(area / (2 * true[-1] * false[-1]))


def roc_curve(score: ArrayLike, positive: ArrayLike) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """False-positive rate, true-positive rate and threshold of every distinct score.

    An image counts as positive if score >= threshold. The curve starts at (0, 0, inf) and ends at
    (1, 1, smallest score). score, positive: [N].

    Example:
        >>> false_rate, true_rate, threshold = roc_curve([0.9, 0.1], [True, False])
        >>> true_rate.tolist()
        [0.0, 1.0, 1.0]
    """
    from sklearn import metrics  # slow to import

    score, positive = _checked_ranking(score, positive)
    return metrics.roc_curve(positive, score, drop_intermediate=False)


def average_precision(score: ArrayLike, positive: ArrayLike) -> float:
    """Σ (recall_t - recall_{t-1}) precision_t over distinct thresholds, without interpolation.

    score, positive: [N]. Equals scikit-learn's average_precision_score up to the last digit, and is
    faster in a bootstrap.

    Example:
        >>> average_precision([0.9, 0.8, 0.1], [True, False, True])
        0.8333333333333333
    """
    true, false = _cumulative_counts(*_checked_ranking(score, positive))
    gained_recall = np.diff(true) / true[-1]
    return float(np.sum(gained_recall * true[1:] / (true[1:] + false[1:])))


def fpr_at_95_tpr(score: ArrayLike, positive: ArrayLike) -> float:
    """False-positive rate at the highest threshold that finds at least 95 % of the positives.

    score, positive: [N]. There is no interpolation.

    Example:
        >>> fpr_at_95_tpr([0.9, 0.8, 0.1], [True, False, False])
        0.0
    """
    true, false = _cumulative_counts(*_checked_ranking(score, positive))
    first = np.argmax(true / true[-1] >= 0.95)
    return float(false[first] / false[-1])


# ---------------------------------------------------------------------------- selective prediction
def _expected_errors(uncertainty: ArrayLike, correct: ArrayLike) -> np.ndarray:
    """Errors among the k most certain images for k = 1 … N: [N].

    Within ties it is the expectation over a random order: k of m tied images with e errors hold
    e·k/m errors, which is linear between the ends of a tie.
    """
    uncertainty, correct = checked_scores(uncertainty, correct)
    wrong, right = _cumulative_counts(uncertainty, ~correct)  # among the least certain
    kept = correct.size - (wrong + right)[::-1]
    errors = wrong[-1] - wrong[::-1]
    return np.interp(np.arange(1, correct.size + 1), kept, errors)


def risk_coverage_curve(
    uncertainty: ArrayLike, correct: ArrayLike
) -> tuple[np.ndarray, np.ndarray]:
    """Coverage k/N [N] and the error rate among the k most certain images [N].

    El-Yaniv & Wiener 2010. Ties are averaged. uncertainty, correct: [N].

    Example:
        >>> coverage, risk = risk_coverage_curve([0.1, 0.9], [True, False])
        >>> risk.tolist()
        [0.0, 0.5]
    """
    errors = _expected_errors(uncertainty, correct)
    kept = np.arange(1, errors.size + 1)
    return kept / kept.size, errors / kept


def aurc(uncertainty: ArrayLike, correct: ArrayLike) -> float:
    """Area under the risk-coverage curve: mean error rate over the coverages 1/N … 1.

    Geifman et al. 2019. Ties are averaged over all their orders, so a constant score gives the
    error rate. torch-uncertainty's AURC uses the trapezoidal rule from coverage 1/N, and leaves
    tied images in their order, so the last digits differ and ours stays.

    Example:
        >>> aurc([0.1, 0.9], [True, False])
        0.25
    """
    _, risk = risk_coverage_curve(uncertainty, correct)
    return float(risk.mean())


def excess_aurc(uncertainty: ArrayLike, correct: ArrayLike) -> float:
    """AURC minus the AURC of a perfect order, all correct images first; 0 is best.

    E-AURC of Geifman et al. 2019.

    Example:
        >>> excess_aurc([0.1, 0.9], [True, False])  # a perfect order
        0.0
    """
    wrong = np.asarray(correct) == 0
    return aurc(uncertainty, correct) - aurc(wrong, correct)


def augrc(uncertainty: ArrayLike, correct: ArrayLike) -> float:
    """Area under the generalised risk-coverage curve: mean over coverages of P(wrong and kept).

    Traub et al. 2024. Equals the paper's (1 - AUROC) a (1 - a) + (1 - a)²/2, with a the accuracy,
    plus (1 - a)/(2N). Deviation: the last term is not the paper's, which integrates from coverage
    0; here coverages start at 1/N, as in ``aurc``. torch-uncertainty's AUGRC differs as its AURC.

    Example:
        >>> augrc([0.1, 0.9], [True, False])
        0.25
    """
    errors = _expected_errors(uncertainty, correct)
    return float(errors.mean() / errors.size)


def nearest_neighbour_correct(
    embeddings: ArrayLike, labels: ArrayLike, chunk: int = 1024
) -> np.ndarray:
    """Whether each image's cosine nearest neighbour, itself excluded, has its label: bool [N].

    embeddings: [N, D], labels: [N]. A zero vector has cosine 0 with every other. Among equally near
    neighbours the first counts, which scikit-learn's NearestNeighbors leaves open.

    Example:
        >>> nearest_neighbour_correct([[1, 0], [2, 0.1], [0, 1]], [0, 0, 1]).tolist()
        [True, True, False]
    """
    embeddings = checked_features(embeddings, "embeddings").astype(np.float64)
    _, labels = class_indices(labels, "labels", len(embeddings))
    if labels.size < 2:
        raise ValueError("embeddings and labels must have at least two rows, got one.")
    embeddings = scaled_rows(embeddings)
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    unit = embeddings / np.maximum(norms, np.finfo(np.float64).tiny)
    nearest = np.empty(labels.size, dtype=np.int64)
    for start in range(0, labels.size, chunk):
        similarity = unit[start : start + chunk] @ unit.T  # [chunk, N]
        rows = np.arange(similarity.shape[0])
        similarity[rows, start + rows] = -np.inf
        nearest[start : start + chunk] = similarity.argmax(axis=1)
    return labels[nearest] == labels


def _checked_probabilities(
    probabilities: ArrayLike, labels: ArrayLike, classes: ArrayLike | None
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities in float64 [N, C], and the column of each label [N]."""
    probabilities = checked_features(probabilities, "probabilities").astype(np.float64)
    if probabilities.shape[1] < 2:
        raise ValueError(
            "probabilities must be [N, C] with C >= 2 classes (one is always right), got shape "
            f"{probabilities.shape}."
        )
    total = probabilities.sum(axis=1)
    if probabilities.min() < 0 or np.abs(total - 1).max() > 1e-3:
        raise ValueError(
            "probabilities must be >= 0 with rows summing to 1, got minimum "
            f"{probabilities.min():.3g} and sums {total.min():.3g} … {total.max():.3g}; apply a "
            "softmax to logits."
        )
    return probabilities, _label_columns(labels, classes, *probabilities.shape)


def _label_columns(
    labels: ArrayLike, classes: ArrayLike | None, count: int, columns: int
) -> np.ndarray:
    """The column of each label [N]; -1 for a label that is not among the given ``classes``.

    Without ``classes`` the labels are columns.
    """
    distinct, indices = class_indices(labels, "labels", count)
    names = np.arange(columns) if classes is None else np.asarray(classes)
    if names.shape != (columns,):
        raise ValueError(
            f"classes must name each of the {columns} columns of probabilities, got shape "
            f"{names.shape}."
        )
    places = pd.Index(names).get_indexer(distinct)
    is_unknown = places < 0
    if is_unknown.all() or (classes is None and is_unknown.any()):
        raise ValueError(
            f"the labels {distinct[is_unknown][:4].tolist()} are not among the classes "
            f"{names[:4].tolist()}; pass classes, the label of each column (probe.classes)."
        )
    return places[indices]


def nll_per_image(
    probabilities: ArrayLike, labels: ArrayLike, classes: ArrayLike | None = None
) -> np.ndarray:
    """-log p(label) in nats: [N]; infinite where the label has probability 0 or no column.

    probabilities: [N, C], labels: [N], classes: the label of each column [C] (default 0 … C - 1).
    scikit-learn's log_loss clips probabilities, and is finite for a label of probability 0.

    Example:
        >>> nll_per_image([[0.5, 0.5]], [1]).round(4).tolist()  # log 2
        [0.6931]
    """
    probabilities, columns = _checked_probabilities(probabilities, labels, classes)
    likelihood = probabilities[np.arange(len(columns)), columns]
    with np.errstate(divide="ignore"):
        return -np.log(np.where(columns >= 0, likelihood, 0.0))


def top5_correct(
    probabilities: ArrayLike, labels: ArrayLike, classes: ArrayLike | None = None
) -> np.ndarray:
    """Whether the label is one of the five most probable classes of its image: bool [N].

    Of equally probable classes the first come first. A class of probability 0 does not count, as
    one that none of the k nearest neighbours voted for. Inputs: see nll_per_image.

    Example:
        >>> top5_correct([[0.5, 0.5]], [1]).tolist()
        [True]
    """
    probabilities, columns = _checked_probabilities(probabilities, labels, classes)
    first_five = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    is_possible = np.take_along_axis(probabilities, first_five, axis=1) > 0
    return ((first_five == columns[:, None]) & is_possible).any(axis=1)


def brier_per_image(
    probabilities: ArrayLike, labels: ArrayLike, classes: ArrayLike | None = None
) -> np.ndarray:
    """Σ_c (p_c - [c = label])²: [N], between 0 and 2 (Brier 1950). Inputs: see nll_per_image."""
    probabilities, columns = _checked_probabilities(probabilities, labels, classes)
    one_hot = columns[:, None] == np.arange(probabilities.shape[1])
    return np.sum((probabilities - one_hot) ** 2, axis=1)


def confidence_bins(
    confidence: ArrayLike, correct: ArrayLike, bins: int = 15, equal_mass: bool = False
) -> dict[str, np.ndarray]:
    """Bins (low, high] of the confidence [N] in (0, 1], for ECE and reliability diagrams.

    Returns low, high, count, mean confidence and accuracy of each bin; NaN where a bin is empty.
    ``equal_mass`` puts the edges on order statistics. Images of equal confidence share a bin, so
    there may be fewer bins than asked for.

    Example:
        >>> confidence_bins([0.6, 0.9], [False, True], bins=2)["accuracy"].tolist()
        [nan, 0.5]
    """
    confidence, correct = checked_scores(confidence, correct)
    if not (confidence.min() > 0 and confidence.max() <= 1 + 1e-3):
        raise ValueError(
            f"confidence must lie in (0, 1], got {confidence.min():.3g} … {confidence.max():.3g}; "
            "pass probabilities, not scores."
        )
    edges = _equal_mass_edges(confidence, bins) if equal_mass else np.arange(bins + 1) / bins
    index = np.searchsorted(edges, confidence, side="left") - 1
    index = np.minimum(index, edges.size - 2)  # a float32 softmax may sum to 1 + 1e-7
    count = np.bincount(index, minlength=edges.size - 1)
    with np.errstate(invalid="ignore"):
        mean_confidence = np.bincount(index, weights=confidence, minlength=count.size) / count
        accuracy = np.bincount(index, weights=correct, minlength=count.size) / count
    return {
        "low": edges[:-1],
        "high": edges[1:],
        "count": count,
        "confidence": mean_confidence,
        "accuracy": accuracy,
    }


def _equal_mass_edges(confidence: np.ndarray, bins: int) -> np.ndarray:
    """0 and the order statistics of rank ⌈N b / bins⌉, without repetitions."""
    ranks = -(-confidence.size * np.arange(1, bins + 1) // bins)
    return np.unique(np.append(0.0, np.sort(confidence)[ranks - 1]))


def confidence_calibration_error(
    confidence: ArrayLike, correct: ArrayLike, bins: int = 15, equal_mass: bool = False
) -> float:
    """Top-label ECE = Σ_b (n_b / N) |accuracy_b - confidence_b| over bins (low, high].

    Guo et al. 2017, Eq. 3. confidence: the largest probability [N]; correct: whether its class is
    the label [N]. Bins have equal width, or equal mass (Nixon et al. 2019). The error is biased
    upwards for small N / bins. torchmetrics' calibration error has no bins of equal mass, closes
    bins below and works in the precision of its input; on float32 confidences it differs from the
    seventh digit.

    Example:
        >>> round(confidence_calibration_error([0.6, 0.9], [False, True], bins=2), 2)
        0.25
    """
    binned = confidence_bins(confidence, correct, bins, equal_mass)
    gaps = binned["count"] * np.abs(binned["accuracy"] - binned["confidence"])
    return float(np.nansum(gaps) / binned["count"].sum())


def calibrated_ece(confidence: ArrayLike, draws: int = 200) -> float:
    """The mean ECE of a perfectly calibrated classifier with these confidences [N].

    Its correctness is drawn as Bernoulli(confidence). The result is above zero, as a bin of n
    images is off by about √(p (1 - p)/n) by chance. An ECE of this size does not show any
    miscalibration.
    """
    confidence = np.asarray(confidence, dtype=np.float64)
    generator = np.random.default_rng(0)
    errors = []
    for _ in range(draws):
        correct = generator.random(confidence.shape) < confidence
        errors.append(confidence_calibration_error(confidence, correct))
    return float(np.mean(errors))


# ------------------------------------------------------------------------------------------- ranks
def effective_rank(features: ArrayLike) -> float:
    """exp(-Σ p_i log p_i) with p_i = σ_i / Σ σ, σ the singular values of the centred features.

    Roy & Vetterli 2007, Definition 1. features: [N, D]; the rank is between 1 and min(N - 1, D).
    Deviation from RankMe (Garrido et al. 2023), which does not centre and adds 1e-7 to each p_i.

    Example:
        >>> round(effective_rank([[1, 0], [-1, 0], [0, 1], [0, -1]]), 6)
        2.0
    """
    singular_values = np.linalg.svd(
        centred(checked_features(features, "features")), compute_uv=False
    )
    return float(np.exp(scipy.stats.entropy(singular_values)))


def centred(features: np.ndarray) -> np.ndarray:
    """Features [N, D] minus their mean, in float64.

    UndefinedStatistic where all rows are equal up to rounding: they have no rank and no variance.
    """
    rounding = ROUNDING
    if features.dtype.kind == "f":
        # A network that has collapsed to one point leaves this much in float32.
        rounding = max(ROUNDING, 4 * np.finfo(features.dtype).eps)
    features = features.astype(np.float64)
    differences = features - features.mean(axis=0)
    if np.abs(differences).max() <= rounding * np.abs(features).max():
        raise UndefinedStatistic(
            f"all {len(features)} feature rows are equal: the representation has collapsed (or "
            "N = 1), and this is not defined."
        )
    return differences


def rank_correlation(first: ArrayLike, second: ArrayLike) -> float:
    """Spearman's rank correlation of two [N], N >= 2, row by row.

    UndefinedStatistic where one of the two is constant.

    Example:
        >>> rank_correlation([1, 2, 3], [10, 20, 30])
        1.0
    """
    both = np.stack([checked_values(first, "first"), checked_values(second, "second")])
    if (np.ptp(both, axis=1) <= ROUNDING * np.abs(both).max(axis=1)).any():
        raise UndefinedStatistic("one of the two is constant: a rank correlation is not defined.")
    return float(scipy.stats.spearmanr(*both).statistic)


def rank_correlation_per_image(severity: ArrayLike, values: ArrayLike) -> np.ndarray:
    """Spearman's rank correlation of every row of values [N, S] with severity [S], S >= 2: [N].

    0 where one of the two is constant. scipy's spearmanr has no such axis and would be called N
    times.
    """
    severity = checked_values(severity, "severity")
    values = checked_features(values, "values")
    if values.shape[1] != severity.size:
        raise ValueError(
            f"values must have a column for each of the {severity.size} severities, got shape "
            f"{values.shape}."
        )
    mean_rank = (severity.size + 1) / 2
    ranks = scipy.stats.rankdata(values, axis=1) - mean_rank
    steps = scipy.stats.rankdata(severity) - mean_rank
    length = np.linalg.norm(ranks, axis=1) * np.linalg.norm(steps)
    return np.divide(ranks @ steps, length, out=np.zeros(len(values)), where=length > 0)


# --------------------------------------------------------------------------------------- bootstrap
def _checked_rows(arrays: Sequence[ArrayLike]) -> list[np.ndarray]:
    """Arrays of one length without NaN; otherwise ValueError."""
    arrays = [np.asarray(array) for array in arrays]
    lengths = {len(array) for array in arrays}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            "pass at least one array, all with the same N >= 1 rows, got "
            f"{[len(array) for array in arrays]} rows."
        )
    for array in arrays:
        if array.dtype.kind == "f" and np.isnan(array).any():
            raise ValueError(
                f"NaN in what is to be resampled ({np.isnan(array).sum()} of {array.size} values); "
                "find where it comes from."
            )
    return arrays


def _resamples(arrays: list[np.ndarray], seed: int) -> Iterator[list[np.ndarray]]:
    """Resamples of the rows without end, the same for every array.

    They are in the order of the first array, if that is of numbers: sorted rows are cheap to rank.
    """
    size = len(arrays[0])
    order = np.arange(size)
    if arrays[0].ndim == 1:
        order = np.argsort(arrays[0], kind="stable")
    generator = np.random.default_rng(seed)
    while True:
        counts = np.bincount(generator.integers(size, size=size), minlength=size)
        rows = np.repeat(order, counts[order])
        yield [array[rows] for array in arrays]


def bootstrap_interval(
    statistic: Callable[..., float],
    *arrays: ArrayLike,
    draws: int = 2000,
    seed: int = 0,
    recentred: bool = False,
) -> tuple[float, float]:
    """95 % percentile bootstrap (low, high) of statistic(*arrays) over images.

    Efron & Tibshirani 1993, section 13.3. Every array has N rows and gets the same resample, so a
    difference of two scores is paired by image. The statistic must not depend on the order of rows.

    recentred: the draws are shifted so that their mean is the statistic of all images. This is for
    calibration errors. A resample holds images twice, so its bins are noisier and its error is
    larger, and the plain interval may lie above the estimate.

    Draws on which the statistic raises UndefinedStatistic or is NaN are drawn again; more of these
    than ``draws`` are an error. A statistic that is NaN on all images has the interval (NaN, NaN).
    scipy.stats.bootstrap does not draw again, and does not sort the rows that an AUROC ranks.

    Example:
        >>> low, high = bootstrap_interval(auroc, kappa, correct, draws=500)
    """
    if not draws >= 1:
        raise ValueError(f"draws must be >= 1, got {draws}.")
    arrays = _checked_rows(arrays)
    estimate = statistic(*arrays)  # an error on all images is the caller's, not one of a draw
    resamples = _resamples(arrays, seed)
    values = []
    undefined = 0
    while len(values) < draws:
        try:
            value = statistic(*next(resamples))
        except UndefinedStatistic:
            value = np.nan
        if np.isnan(value) and not np.isnan(estimate):
            undefined += 1
            if undefined > draws:
                raise UndefinedStatistic(
                    f"{undefined} draws held a single class or no variance: too few images to "
                    "resample."
                )
        else:
            values.append(value)
    low, high = np.quantile(values, (0.025, 0.975))
    shift = estimate - np.mean(values) if recentred else 0.0
    return float(low + shift), float(high + shift)


def with_interval(
    statistic: Callable[..., float], *arrays: np.ndarray, draws: int = 2000, recentred: bool = False
) -> dict[str, float]:
    """Columns value, ci_low and ci_high of a metrics row: the statistic and its 95 % interval.

    arrays: [N] each; the interval is that of bootstrap_interval. Undefined entries are NaN: the
    value where only one class occurs, and the interval there, of too few images, and of no draws.

    Example:
        >>> sorted(with_interval(np.mean, np.array([0.0, 1.0, 1.0]), draws=100))
        ['ci_high', 'ci_low', 'value']
    """
    row = {"value": np.nan, "ci_low": np.nan, "ci_high": np.nan}
    try:
        row["value"] = float(statistic(*arrays))
        if draws:
            interval = bootstrap_interval(statistic, *arrays, draws=draws, recentred=recentred)
            row["ci_low"], row["ci_high"] = interval
    except UndefinedStatistic:
        pass  # said in the docstring
    return row
