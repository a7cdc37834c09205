"""The evaluation suite: every measure of the standard protocol, as rows of metrics.

Everything here takes embeddings and stored scores; what a run's data sets and files are is in
lib.evaluation.measure. Names of scores: uncertainty (the method's own), feature_norm, knn_distance
and max_softmax (the trivial ones), and the method's native quantities.
"""

from collections.abc import Callable, Iterable
from functools import partial

import numpy as np

from lib.evaluation.embed import Embedded, native_names
from lib.evaluation.probes import NEAREST, Probe, knn_predict, linear_probe, nearest_neighbours
from lib.evaluation.uncertainty import (
    augrc,
    aurc,
    auroc,
    average_precision,
    brier_per_image,
    confidence_calibration_error,
    effective_rank,
    excess_aurc,
    fpr_at_95_tpr,
    nearest_neighbour_correct,
    nll_per_image,
    rank_correlation_per_image,
    top5_correct,
    with_interval,
)

QUANTILES = (0.05, 0.95)
KEPT_AREA = {"crop"}  # families whose number is the share of the image that is kept
UNCERTAINTIES = ("uncertainty", "feature_norm", "knn_distance", "max_softmax")
OOD_MEASURES = {
    "ood_auroc": auroc,
    "ood_fpr95": fpr_at_95_tpr,
    "ood_average_precision": average_precision,
}
SELECTIVE_MEASURES = {"aurc": aurc, "excess_aurc": excess_aurc, "augrc": augrc}


# ---------------------------------------------------------------------------- scores of each image
def score_images(train: Embedded, test: Embedded, probe: Probe) -> Embedded:
    """The scores that are stored of every test image, [N] each.

    These are its label; prediction and correctness of the linear probe and of k-NN; whether its
    nearest neighbour within the test set has its label (nearest_neighbour_correct); the mean cosine
    distance to the 20 nearest training images (knn_distance); and every uncertainty.

    Types are compact, at most 250 kB compressed for 10,000 images and one native score. The
    method's own scores, the norm and the softmax keep float32, the others float16 or less;
    linear_nll is capped at float16's 65504.

    Example:
        >>> scores = score_images(train, test, linear_probe(features, train["label"]))
        >>> scores["linear_correct"].shape
        (40,)
    """
    features = test["features"]
    label = test["label"]
    probabilities = probe.probabilities(features)
    linear_prediction = probe.classes[probabilities.argmax(axis=1)]
    nll = nll_per_image(probabilities, label, probe.classes)

    neighbours = min(NEAREST, len(train["features"]))
    knn_prediction, similarity = knn_predict(
        train["features"], train["label"], features, neighbours
    )
    scores = {
        "index": np.arange(len(label), dtype=np.int32),
        "label": label.astype(np.int16),
        "linear_prediction": linear_prediction.astype(np.int16),
        "linear_correct": linear_prediction == label,
        "linear_top5_correct": top5_correct(probabilities, label, probe.classes),
        "knn_prediction": knn_prediction.astype(np.int16),
        "knn_correct": knn_prediction == label,
        "nearest_neighbour_correct": nearest_neighbour_correct(features, label),
        "linear_nll": np.minimum(nll, np.finfo(np.float16).max).astype(np.float16),
        "linear_brier": brier_per_image(probabilities, label, probe.classes).astype(np.float16),
        "linear_max_softmax": probabilities.max(axis=1).astype(np.float32),
        "feature_norm": np.linalg.norm(features, axis=1).astype(np.float32),
        "knn_distance": (1 - similarity).mean(dim=1).numpy().astype(np.float16),
        "uncertainty": test["uncertainty"].astype(np.float32),
    }
    for name in native_names(test):
        is_the_uncertainty = np.array_equal(test[name], test["uncertainty"])
        if not is_the_uncertainty:
            scores[name] = test[name].astype(np.float32)
    return scores


def as_uncertainty(scores: dict[str, np.ndarray], name: str) -> np.ndarray:
    """One of the stored scores in float64 [N], with the sign that makes higher less certain.

    scores: those of score_images or of lib.evaluation.image_scores.

    Example:
        >>> as_uncertainty({"feature_norm": kappa}, "feature_norm").shape
        (40,)
    """
    if name == "feature_norm":
        return -scores["feature_norm"].astype(np.float64)
    if name == "max_softmax":
        return -scores["linear_max_softmax"].astype(np.float64)
    return scores[name].astype(np.float64)


def unsupervised_uncertainties(train: Embedded, embedded: Embedded) -> dict[str, np.ndarray]:
    """The uncertainties [N] that need no labels.

    These are the method's own, the negative norm of the features, and the mean cosine distance to
    the 20 nearest training images (all, where there are fewer).

    Example:
        >>> sorted(unsupervised_uncertainties(train, test))
        ['feature_norm', 'knn_distance', 'uncertainty']
    """
    features = embedded["features"]
    k = min(NEAREST, len(train["features"]))
    similarity, _ = nearest_neighbours(train["features"], features, k)
    return {
        "uncertainty": embedded["uncertainty"].astype(np.float32),
        "feature_norm": -np.linalg.norm(features, axis=1).astype(np.float32),
        "knn_distance": (1 - similarity).mean(dim=1).numpy().astype(np.float16),
    }


# ----------------------------------------------------------------------------------------- metrics
def metrics_row(
    metric: str,
    statistic: Callable[..., float],
    *arrays: np.ndarray,
    draws: int,
    recentred: bool = False,
    **columns,
) -> dict:
    """One row of metrics: the statistic of arrays [N] with its interval, and further ``columns``.

    Columns that are not given are empty: evaluated_on, condition, classifier, score.
    """
    row = {"evaluated_on": "", "condition": "", "classifier": "", "score": ""}
    row |= columns | {"metric": metric, "n": len(arrays[0])}
    return row | with_interval(statistic, *arrays, draws=draws, recentred=recentred)


def value_rows(values: dict[str, float], **columns) -> list[dict]:
    """Rows of metrics without intervals: ``values`` by metric, and further ``columns``."""
    return [columns | {"metric": metric, "value": value} for metric, value in values.items()]


def evaluate(
    train: Embedded,
    test: Embedded,
    evaluated_on: str,
    near_ood: dict[str, Embedded] | None = None,
    far_ood: dict[str, Embedded] | None = None,
    conditions: dict[str, Embedded] | None = None,
    draws: int = 2000,
) -> tuple[list[dict], Embedded]:
    """Every measure of the standard protocol on one run: metrics rows, and scores of each image.

    near_ood, far_ood: embeddings of other sets by name. conditions: embeddings of test images by
    "<family>_<severity>" ("crop_0.05", "blur_2"), of the same images in the same order within a
    family. A crop's number is the area that is kept.

    The linear probe is fitted once, on clean features of ``train``. Intervals are 95 % bootstrap
    over images with the classifier held fixed. Accuracy, NLL, Brier score, correctness AUROC and
    recall AUROC on the clean test set take all ``draws``, everything else a quarter. A measure that
    is undefined because only one class occurs has value NaN.

    Example:
        rows, scores = evaluate(train, test, "cifar10", far_ood={"mnist": mnist})
        pd.DataFrame(rows).query("metric == 'accuracy'")
    """
    near_ood = near_ood or {}
    far_ood = far_ood or {}
    conditions = conditions or {}
    few_draws = max(1, draws // 4)
    probe = linear_probe(train["features"], train["label"])
    scores = score_images(train, test, probe)
    clean = {"evaluated_on": evaluated_on, "condition": "clean"}
    rows = [
        *_classification_rows(scores, clean, draws, few_draws),
        *_recall_rows(scores, clean, draws),
        *_calibration_rows(scores, clean, draws, few_draws),
        metrics_row("effective_rank", effective_rank, test["features"], draws=0, **clean),
        *_description_rows(test, clean, few_draws),
    ]
    test_scores = {name: as_uncertainty(scores, name) for name in UNCERTAINTIES}
    for condition, others in (("near_ood", near_ood), ("far_ood", far_ood)):
        for name, embedded in others.items():
            common = {"evaluated_on": name, "condition": condition}
            other_scores = _ood_scores(train, probe, embedded)
            rows += ood_rows_of_sets(test_scores, other_scores, draws=few_draws, **common)
            rows += _description_rows(embedded, common, few_draws)
    for condition, embedded in conditions.items():
        common = {"evaluated_on": evaluated_on, "condition": condition}
        rows += _condition_rows(probe, embedded, common, few_draws)
        rows += _description_rows(embedded, common, few_draws)
    for family, severities in _families(conditions).items():
        common = {"evaluated_on": evaluated_on, "condition": family, "score": "uncertainty"}
        uncertainties = [embedded["uncertainty"] for embedded in severities.values()]
        correlation = rank_correlation_per_image(
            np.array(list(severities)), np.stack(uncertainties, axis=1)
        )
        rows.append(
            metrics_row("severity_spearman", np.mean, correlation, draws=few_draws, **common)
        )
    return rows, scores


def _classification_rows(scores: Embedded, common: dict, draws: int, few_draws: int) -> list[dict]:
    """Accuracy of both classifiers, and how well each uncertainty detects their errors."""
    rows = []
    for classifier in ("linear", "knn"):
        common = common | {"classifier": classifier}
        correct = scores[f"{classifier}_correct"]
        rows.append(metrics_row("accuracy", np.mean, correct, draws=draws, **common))
        if classifier == "linear":
            top5 = scores["linear_top5_correct"]
            rows.append(metrics_row("top5_accuracy", np.mean, top5, draws=few_draws, **common))
        for name in UNCERTAINTIES:
            values = as_uncertainty(scores, name)
            columns = common | {"score": name}
            rows.append(
                metrics_row("correctness_auroc", auroc, -values, correct, draws=draws, **columns)
            )
            for metric, statistic in SELECTIVE_MEASURES.items():
                rows.append(
                    metrics_row(metric, statistic, values, correct, draws=few_draws, **columns)
                )
    return rows


def _recall_rows(scores: Embedded, common: dict, draws: int) -> list[dict]:
    """How well each uncertainty detects images whose nearest neighbour has another label."""
    rows = []
    for name in UNCERTAINTIES:
        certainty = -as_uncertainty(scores, name)
        columns = common | {"classifier": "nearest_neighbour", "score": name}
        hit = scores["nearest_neighbour_correct"]
        rows.append(metrics_row("recall_auroc", auroc, certainty, hit, draws=draws, **columns))
    return rows


def _calibration_rows(scores: Embedded, common: dict, draws: int, few_draws: int) -> list[dict]:
    """ECE, NLL and Brier score of the linear probe."""
    common = common | {"classifier": "linear"}
    rows = []
    for metric, equal_mass in (("ece", False), ("ece_equal_mass", True)):
        rows.append(
            metrics_row(
                metric,
                partial(confidence_calibration_error, equal_mass=equal_mass),
                scores["linear_max_softmax"],
                scores["linear_correct"],
                draws=few_draws,
                recentred=True,
                **common,
            )
        )
    for metric in ("nll", "brier"):
        values = scores[f"linear_{metric}"].astype(np.float64)
        rows.append(metrics_row(metric, np.mean, values, draws=draws, **common))
    return rows


def _description_rows(embedded: Embedded, common: dict, draws: int) -> list[dict]:
    """Mean and quantiles of the uncertainty and of the native quantities.

    The quantiles of the uncertainty itself are left out where there are native quantities, as it is
    one of them or its negative.
    """
    native = native_names(embedded)
    rows = []
    for name in ["uncertainty", *native]:
        values = embedded[name].astype(np.float64)
        columns = common | {"score": name}
        rows.append(metrics_row("mean", np.mean, values, draws=draws, **columns))
        if native and name == "uncertainty":
            continue
        for level in QUANTILES:
            quantile = partial(np.quantile, q=level)
            rows.append(metrics_row(f"q{100 * level:02.0f}", quantile, values, draws=0, **columns))
    return rows


def ood_rows(
    scores: dict[str, np.ndarray],
    outside: np.ndarray,
    draws: int,
    names: Iterable[str] = tuple(OOD_MEASURES),
    **common,
) -> list[dict]:
    """Metrics rows: how well each score [N] detects the images that are ``outside`` [N].

    Higher scores mean: more likely outside. names: the measures of OOD_MEASURES to take; common:
    columns of all rows. Intervals are 95 % bootstrap over images.
    """
    rows = []
    for score, values in scores.items():
        columns = common | {"score": score}
        for name in names:
            measure = OOD_MEASURES[name]
            rows.append(metrics_row(name, measure, values, outside, draws=draws, **columns))
    return rows


def ood_rows_of_sets(
    test: dict[str, np.ndarray], other: dict[str, np.ndarray], **options
) -> list[dict]:
    """``ood_rows`` of test images against those of another set, from the scores of each.

    options: further arguments of ``ood_rows``. n counts the images of both sets.
    """
    both = {}
    for name, values in other.items():
        both[name] = np.append(test[name], values)
        outside = np.repeat([False, True], [len(test[name]), len(values)])
    return ood_rows(both, outside, **options)


def _ood_scores(train: Embedded, probe: Probe, embedded: Embedded) -> dict[str, np.ndarray]:
    """UNCERTAINTIES of the images of another set."""
    confidence = probe.probabilities(embedded["features"]).max(axis=1)
    scores = unsupervised_uncertainties(train, embedded)
    return scores | {"max_softmax": -confidence.astype(np.float32)}


def _condition_rows(probe: Probe, embedded: Embedded, common: dict, draws: int) -> list[dict]:
    """Accuracy of the clean probe on changed images, and how uncertainty detects its errors."""
    common = common | {"classifier": "linear"}
    correct = probe.predict(embedded["features"]) == embedded["label"]
    certainty = -embedded["uncertainty"].astype(np.float64)
    columns = common | {"score": "uncertainty"}
    return [
        metrics_row("accuracy", np.mean, correct, draws=draws, **common),
        metrics_row("correctness_auroc", auroc, certainty, correct, draws=draws, **columns),
    ]


def _families(conditions: dict[str, Embedded]) -> dict[str, dict[float, Embedded]]:
    """The families with two or more severities: each with its embeddings by severity."""
    families = {}
    for condition, embedded in conditions.items():
        family, _, number = condition.rpartition("_")
        severity = float(number)
        if family in KEPT_AREA:
            severity = 1 - severity
        families.setdefault(family, {})[severity] = embedded
    return {family: severities for family, severities in families.items() if len(severities) > 1}
