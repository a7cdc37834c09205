"""Embed a set of images once, then measure: k-NN, linear probe, per-image scores and the battery every run goes through.

An embedding is a dict of NumPy arrays with one row per image: features float32 [N, D], uncertainty float64 [N], label int64 [N], and
whatever the method calls its own (kappa float64 [N]). Everything but embed takes such dicts or plain arrays, so it works on stored
embeddings without a network.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.data.sets import choose_per_class
from lib.evaluation import uncertainty as measures
from lib.methods.base import checked
from lib.runs.store import read_npz, write_npz

Embedded = dict[str, np.ndarray]

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)  # strongest first: each fit starts from the one before
OWN_PROBE = {"optimizer": "L-BFGS", "weight_decay": PENALTIES, "chosen": "on a tenth of train"}
# VI-SimSiam 2022, App. 9.1, but for the choice of the epoch: the paper takes the best on validation.
PAPER_PROBE = {
    "optimizer": "lars",
    "learning_rate": 1.6,
    "weight_decay": 0.0,
    "momentum": 0.9,
    "batch_size": 512,
    "epochs": 200,
    "schedule": "cosine",
    "augmentation": "none",
    "chosen_epoch": "last",
}
NEAREST = 20  # neighbours that vote, and that a distance is taken to; all where there are fewer
TEMPERATURE = 0.07  # of the votes of neighbours
QUANTILES = (0.05, 0.95)
KEPT_AREA = {
    "crop"
}  # families whose number is the share of the image that is kept: smaller is more severe


# -------------------------------------------------------------------------------------------------------------- embedding


def embed(
    method: nn.Module,
    image_set,
    batch_size: int = 512,
    transform: Callable[[Tensor], Tensor] | None = None,
    answer: Callable | None = None,
) -> Embedded:
    """Everything `method.embed` says about every image, without augmentation: images are uint8 / 255, in eval mode, without gradients.

    transform maps a float batch [B, C, H, W] in 0..1 to another (a crop, a blur of some severity). answer: another function of a batch that returns
    an Embedding, in place of method.embed. The training mode of every submodule is restored. Native [B] entries become float64, [B, K] float32.
    """
    count = len(image_set.labels)
    if count == 0:
        raise ValueError(
            f"{image_set.name} {image_set.split} has no images to embed; check how it was built."
        )
    device = next(method.parameters(), torch.empty(0)).device
    modes = {module: module.training for module in method.modules()}
    method.eval()
    batches: list[dict[str, np.ndarray]] = []
    try:
        with torch.no_grad():
            for start in range(0, count, batch_size):
                indices = np.arange(start, min(start + batch_size, count))
                images = image_set.batch(indices).to(device).float() / 255  # [B, C, H, W]
                if transform is not None:
                    images = transform(images)
                batches.append(
                    _arrays(
                        (answer or method.embed)(
                            images.contiguous(memory_format=torch.channels_last)
                        ),
                        len(indices),
                    )
                )
    finally:
        for module, training in modes.items():
            module.training = training
    embedded = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    return embedded | {"label": np.asarray(image_set.labels, dtype=np.int64)}


def _arrays(embedding, count: int) -> dict[str, np.ndarray]:
    embedding = checked(embedding, count)
    arrays = {
        "features": embedding.features.float().cpu().numpy(),
        "uncertainty": embedding.uncertainty.double().cpu().numpy(),
    }
    for name, values in embedding.native.items():
        arrays[name] = (values.double() if values.ndim == 1 else values.float()).cpu().numpy()
    for name, values in arrays.items():
        if np.isnan(values).any():
            raise ValueError(
                f"method.embed returned NaN in {name}; train again from the last good checkpoint with a lower learning rate."
            )
    return arrays


def embed_cached(path: Path, key: dict | str, compute: Callable[[], Embedded]) -> Embedded:
    """The embedding stored at `path` if it was stored under the same key, else compute() stored there (atomically).

    key names all that the result depends on: run hash, data checksum, condition. An unreadable file is a ValueError, as everywhere.
    """
    key, path = json.dumps(key, sort_keys=True), Path(path)
    if path.exists():
        stored = read_npz(path)
        if str(stored.pop("cache_key", "")) == key:
            return stored
    embedded = compute()
    write_npz(path, cache_key=np.array(key), **embedded)
    return embedded


# ----------------------------------------------------------------------------------------------------- nearest neighbours


def _labels(values: np.ndarray, name: str, count: int) -> np.ndarray:
    values = np.asarray(values)
    if (
        not count
        or values.shape != (count,)
        or not np.issubdtype(values.dtype, np.integer)
        or values.min() < 0
    ):
        least = f", the least {values.min()}" if values.size else ""
        raise ValueError(
            f"{name} must be integers >= 0 of shape ({count},), at least one, got {values.dtype} of shape {values.shape}{least}."
        )
    return values.astype(np.int64)


def _neighbours(train_x: np.ndarray, test_x: np.ndarray, k: int) -> tuple[Tensor, Tensor]:
    """Cosine similarity and row of the k nearest training images, nearest first: [N, k] each. The full matrix is never built."""
    train_x = measures.matrix(train_x, "train_x")
    test_x = measures.matrix(test_x, "test_x", train_x)
    if not 1 <= k <= len(train_x):
        raise ValueError(f"k must be between 1 and the {len(train_x)} training images, got {k}.")
    bank = F.normalize(torch.as_tensor(train_x, dtype=torch.float32), dim=1).T  # [D, M]
    queries = F.normalize(torch.as_tensor(test_x, dtype=torch.float32), dim=1)
    chunk = max(1, 20_000_000 // len(train_x))  # 80 MB of similarities at a time
    nearest = [(rows @ bank).topk(k, dim=1) for rows in queries.split(chunk)]
    return torch.cat([top.values for top in nearest]), torch.cat([top.indices for top in nearest])


def _vote(
    similarity: Tensor, votes: Tensor, classes: int, temperature: float = TEMPERATURE
) -> np.ndarray:
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}.")
    weights = torch.softmax(
        similarity.double() / temperature, dim=1
    )  # exp(sim / T) up to a factor that cancels
    return (
        torch.zeros(len(votes), classes, dtype=torch.float64)
        .scatter_add_(1, votes, weights)
        .numpy()
    )


def knn_predict(
    train_x, train_y, test_x, k: int = NEAREST, temperature: float = TEMPERATURE
) -> tuple[np.ndarray, np.ndarray]:
    """Predictions [N] and class probabilities [N, C] of a cosine k-NN whose neighbours vote with weight exp(cosine / T).

    Wu et al. 2018 (instance discrimination), section 3.4. train_x: [M, D], train_y: [M] in 0 … C - 1, test_x: [N, D].
    """
    train_y = _labels(train_y, "train_y", len(train_x))
    similarity, rows = _neighbours(train_x, test_x, k)
    probabilities = _vote(
        similarity, torch.as_tensor(train_y)[rows], int(train_y.max()) + 1, temperature
    )
    return probabilities.argmax(axis=1), probabilities


def knn_accuracy(
    train_x, train_y, test_x, test_y, k: int = NEAREST, temperature: float = TEMPERATURE
) -> float:
    """Share of test images whose k-NN prediction is right; see knn_predict."""
    test_y = _labels(test_y, "test_y", len(test_x))
    return float(np.mean(knn_predict(train_x, train_y, test_x, k, temperature)[0] == test_y))


# ----------------------------------------------------------------------------------------------------------- linear probe


@dataclass(frozen=True)
class Probe:
    """softmax(((x - mean) / scale) weight + bias); penalty is the chosen L2 weight, validation the NLL in nats of each candidate."""

    mean: np.ndarray  # [D]
    scale: np.ndarray  # [D]
    weight: np.ndarray  # [D, C]
    bias: np.ndarray  # [C]
    penalty: float
    validation: dict[float, float]

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """Class probabilities in float64 [N, C] of features [N, D]."""
        x = measures.matrix(x, "x", self.mean[None])
        logits = ((x - self.mean) / self.scale).astype(np.float32) @ self.weight + self.bias
        return torch.softmax(torch.as_tensor(logits, dtype=torch.float64), dim=1).numpy()

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Most probable class [N] of features [N, D]."""
        return self.probabilities(x).argmax(axis=1)


def linear_probe(
    train_x: np.ndarray, train_y: np.ndarray, penalties: Iterable[float] = PENALTIES
) -> Probe:
    """A linear classifier on frozen features [M, D] with labels [M]. It never sees test data, so nothing can be chosen on them.

    Ours: features standardised by training statistics; minimises mean cross-entropy + penalty/2 ‖weight‖² (bias free) by full-batch L-BFGS; the
    penalty with the lowest NLL on a stratified split taken from train is chosen, then all of train is fitted. The paper's: paper_probe.
    """
    train_x, train_y, classes = _labelled(train_x, train_y)
    x, y = torch.as_tensor(train_x, dtype=torch.float32), torch.as_tensor(train_y)
    scale, mean = torch.std_mean(x, dim=0, correction=0)
    scale[scale <= 1e-6 * mean.abs()] = (
        1  # a constant feature carries nothing; dividing by its rounding noise would say otherwise
    )
    x = (x - mean) / scale
    penalties = sorted(penalties, reverse=True)
    if not penalties or penalties[-1] < 0:
        raise ValueError(f"penalties must be one or more numbers >= 0, got {penalties}.")
    chosen, validation, fits = penalties[0], {}, {}
    if len(penalties) > 1:
        outer = torch.as_tensor(_tenth(train_y))
        inner_x, inner_y, start = x[~outer].T.contiguous(), y[~outer], None
        for penalty in penalties:
            start = fits[penalty] = _logistic_regression(inner_x, inner_y, classes, penalty, start)
            validation[penalty] = F.cross_entropy(x[outer] @ start[0] + start[1], y[outer]).item()
        chosen = min(validation, key=validation.get)
    weight, bias = _logistic_regression(x.T.contiguous(), y, classes, chosen, fits.get(chosen))
    return Probe(
        *(values.contiguous().numpy() for values in (mean, scale, weight, bias)), chosen, validation
    )


def paper_probe(
    x: np.ndarray,
    y: np.ndarray,
    epochs: int = PAPER_PROBE["epochs"],
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Probe:
    """The paper's linear probe of features [M, D] with labels [M]: LARS (You et al. 2017, Algorithm 1) on the features as they are.

    VI-SimSiam 2022, App. 9.1: learning rate 1.6, momentum 0.9, weight decay 0, batch 512, cosine, 200 epochs. For each of the two tensors w with
    gradient g: ``v <- 0.9 v + λ g``, ``w <- w - η_t v``, with λ = 0.001 ‖w‖/‖g‖ (1 where either norm is zero) and η_t = η · ½(1 + cos(π t/T)).
    Deviation: η_t stands outside of the velocity, as in timm, where You et al. have it inside; last epoch, where the paper takes the best one by
    validation; no image augmentation, as features are computed once.
    """
    from timm.optim import Lars  # slow to import

    x, y, classes = _labelled(x, y)
    images, labels = (
        torch.as_tensor(x, dtype=torch.float32, device=device),
        torch.as_tensor(y, device=device),
    )
    generator, batch_size = torch.Generator().manual_seed(seed), PAPER_PROBE["batch_size"]
    classifier = nn.Linear(x.shape[1], classes, device=device)
    with torch.no_grad():
        classifier.weight.copy_(0.01 * torch.randn(x.shape[1], classes, generator=generator).T)
        classifier.bias.zero_()
    rate, momentum = PAPER_PROBE["learning_rate"], PAPER_PROBE["momentum"]
    optimizer = Lars(
        classifier.parameters(),
        lr=rate,
        momentum=momentum,
        trust_coeff=1e-3,
        always_adapt=True,
        eps=0,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, epochs * -(-len(y) // batch_size)
    )
    for _ in range(epochs):
        for rows in torch.randperm(len(y), generator=generator).to(device).split(batch_size):
            optimizer.zero_grad()
            F.cross_entropy(classifier(images[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
    weight, bias = (
        values.detach().cpu().numpy() for values in (classifier.weight.T, classifier.bias)
    )
    return Probe(
        np.zeros(x.shape[1], np.float32), np.ones(x.shape[1], np.float32), weight, bias, 0.0, {}
    )


def _labelled(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Features and labels as a probe takes them, and the number of classes."""
    x = measures.matrix(x, "train_x")
    y = _labels(y, "train_y", len(x))
    if len(np.unique(y)) < 2:
        raise ValueError(f"train_y holds a single class ({y[0]}); a probe needs at least two.")
    return x, y, int(y.max()) + 1


def _tenth(labels: np.ndarray) -> np.ndarray:
    """A mask [M] that holds out a tenth of each class, at least one image where there are two."""
    mask = np.zeros(len(labels), dtype=bool)
    mask[choose_per_class(labels, 0.1, seed=0, least=1, spared=1)] = True
    if not mask.any():
        raise ValueError(
            "every class has a single image, so none can be held out: give more images, a larger share of labels, or one penalty."
        )
    return mask


def _logistic_regression(
    x: Tensor, y: Tensor, classes: int, penalty: float, start: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Weight [D, C] and bias [C] at the optimum for features given as columns, x [D, M]: in this layout a step takes a fifth of the time."""
    from scipy.optimize import minimize  # slow to import

    rows, chosen = torch.arange(len(y)), torch.zeros(classes, len(y))
    chosen[y, rows] = 1

    def split(parameters: np.ndarray) -> tuple[Tensor, Tensor]:
        both = torch.as_tensor(parameters, dtype=torch.float32).view(classes, -1)
        return both[:, :-1], both[:, -1]  # [C, D], [C]

    def loss_and_gradient(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = split(parameters)
        logits = torch.addmm(bias[:, None], weight, x)  # [C, M]
        normaliser = logits.logsumexp(0)
        loss = (
            normaliser - logits[y, rows]
        ).double().mean() + penalty / 2 * weight.double().square().sum()
        error = ((logits - normaliser).exp_() - chosen).div_(len(y))
        gradient = torch.cat(
            [error @ x.T + penalty * weight, error.sum(1, keepdim=True)], dim=1
        )  # [C, D + 1]
        return loss.item(), gradient.double().numpy().ravel()

    first = (
        np.zeros(classes * (len(x) + 1))
        if start is None
        else torch.cat([start[0].T, start[1][:, None]], dim=1).double().numpy().ravel()
    )
    options = {"maxiter": 200, "maxfun": 300, "maxcor": 50, "gtol": 1e-5, "ftol": 1e-8}
    weight, bias = split(
        minimize(loss_and_gradient, first, jac=True, method="L-BFGS-B", options=options).x
    )
    return weight.T, bias


# ---------------------------------------------------------------------------------------------------------- scores, battery


def score_images(train: Embedded, test: Embedded, probe: Probe) -> Embedded:
    """What is stored per test image, each [N]: label, prediction and correctness of linear probe and k-NN, and every uncertainty score.

    nearest_neighbour_correct is k = 1 within the test set, itself excluded; knn_distance the mean cosine distance to the 20 nearest training
    images. Compact types, ≤ 250 kB compressed for 10,000 images and one native score: the method's own scores, the norm and the softmax
    keep float32, the rest float16 or less (linear_nll is capped at float16's 65504).
    """
    label = _labels(test["label"], "test label", len(test["features"]))
    probabilities = probe.probabilities(test["features"])
    similarity, rows = _neighbours(
        train["features"], test["features"], min(NEAREST, len(train["features"]))
    )
    votes = torch.as_tensor(train["label"])[rows]
    knn_prediction = _vote(similarity, votes, int(train["label"].max()) + 1).argmax(axis=1)
    linear_prediction = probabilities.argmax(axis=1)
    scores = {
        "index": np.arange(len(label), dtype=np.int32),
        "label": label.astype(np.int16),
        "linear_prediction": linear_prediction.astype(np.int16),
        "linear_correct": linear_prediction == label,
        "linear_top5_correct": measures.top5_correct(probabilities, label),
        "knn_prediction": knn_prediction.astype(np.int16),
        "knn_correct": knn_prediction == label,
        "nearest_neighbour_correct": measures.nearest_neighbour_correct(test["features"], label),
        "linear_nll": np.minimum(
            measures.nll_per_image(probabilities, label), np.finfo(np.float16).max
        ).astype(np.float16),
        "linear_brier": measures.brier_per_image(probabilities, label).astype(np.float16),
        "linear_max_softmax": probabilities.max(axis=1).astype(np.float32),
        "feature_norm": np.linalg.norm(test["features"], axis=1).astype(np.float32),
        "knn_distance": (1 - similarity).mean(dim=1).numpy().astype(np.float16),
        "uncertainty": test["uncertainty"].astype(np.float32),
    }
    native = [
        name for name in native_scores(test) if not np.array_equal(test[name], test["uncertainty"])
    ]  # often it is
    return scores | {name: test[name].astype(np.float32) for name in native}


def as_uncertainty(scores: dict[str, np.ndarray], name: str) -> np.ndarray:
    """One of the scores that score_images and lib.evaluation.image_scores store in float64 [N], turned so that higher = less certain."""
    sign, stored = {
        "feature_norm": (-1, "feature_norm"),
        "max_softmax": (-1, "linear_max_softmax"),
    }.get(name, (1, name))
    return sign * scores[stored].astype(np.float64)


def native_scores(embedded: Embedded) -> list[str]:
    """Names of the method's own scalar scores."""
    return [
        name
        for name, values in embedded.items()
        if values.ndim == 1 and name not in ("uncertainty", "label")
    ]


def with_interval(
    statistic: Callable[..., float], *arrays: np.ndarray, draws: int = 2000, recentred: bool = False
) -> dict[str, float]:
    """Columns value, ci_low and ci_high of a metrics row: the statistic of arrays [N], and its 95 % bootstrap interval over images.

    NaN is what is undefined: the value where only one class occurs, the interval there, of too few images to resample, and of no draws.
    recentred: as in uncertainty.bootstrap_interval.
    """
    found = {"value": np.nan, "ci_low": np.nan, "ci_high": np.nan}
    try:
        found["value"] = float(statistic(*arrays))
        if draws:
            found["ci_low"], found["ci_high"] = measures.bootstrap_interval(
                statistic, *arrays, draws=draws, recentred=recentred
            )
    except measures.UndefinedStatistic:
        pass  # said in the docstring
    return found


# For groupby().agg of metrics rows: the mean over seeds, and an interval that holds every seed's own.
OVER_SEEDS = {
    "value": ("value", "mean"),
    "ci_low": ("ci_low", "min"),
    "ci_high": ("ci_high", "max"),
    "n": ("n", "max"),
    "seeds": ("seed", "nunique"),
}


def in_percent(rows: pd.DataFrame) -> pd.DataFrame:
    """Metrics rows with their value and its interval in per cent beside them: percent, percent_low, percent_high."""
    return rows.assign(
        percent=100 * rows.value, percent_low=100 * rows.ci_low, percent_high=100 * rows.ci_high
    )


OOD_MEASURES = {
    "ood_auroc": measures.auroc,
    "ood_fpr95": measures.fpr_at_95_tpr,
    "ood_average_precision": measures.average_precision,
}


def ood_rows(
    scores: dict[str, np.ndarray],
    outside: np.ndarray,
    draws: int,
    names: Iterable[str] = tuple(OOD_MEASURES),
    **common,
) -> list[dict]:
    """Metrics rows: how well each score [N] tells the images that are ``outside`` [N] apart, by the measures of ``names``.

    Higher = more likely outside; intervals are 95 % bootstrap over images; ``common`` are columns that all rows share.
    """
    return [
        common
        | {"score": score, "metric": metric, "n": len(values)}
        | with_interval(OOD_MEASURES[metric], values, outside, draws=draws)
        for score, values in scores.items()
        for metric in names
    ]


def battery(
    train: Embedded,
    test: Embedded,
    evaluated_on: str,
    near_ood: dict[str, Embedded] | None = None,
    far_ood: dict[str, Embedded] | None = None,
    conditions: dict[str, Embedded] | None = None,
    draws: int = 2000,
) -> tuple[list[dict], Embedded]:
    """Every measure of the standard protocol on one run: (metrics rows, per-image scores as score_images gives them).

    near_ood, far_ood: embeddings of other sets by name (rows have condition near_ood or far_ood and evaluated_on that name; n counts both
    sets, of means and quantiles the other alone). conditions: embeddings of test images by "<family>_<severity>" ("crop_0.05", "blur_2"), the
    same images in the same order within a family; a crop's number is the area kept. score is uncertainty (the method's own), feature_norm,
    knn_distance or max_softmax (the trivial ones, turned so that higher = less certain) or a native quantity. Intervals: 95 % bootstrap over
    images with the classifier held fixed, `draws` draws for accuracy, NLL, Brier, correctness and recall AUROC on the clean test set, a quarter
    of them for all else that has an interval; recentred for calibration errors. A measure that is undefined because only one class occurs (every
    prediction right) has value NaN.
    """
    probe = linear_probe(train["features"], train["label"])
    scores = score_images(train, test, probe)
    rows: list[dict] = []
    few = max(1, draws // 4)

    def add(
        metric,
        statistic,
        *arrays,
        condition="clean",
        classifier="",
        score="",
        on=evaluated_on,
        draws=few,
    ):
        row = {
            "evaluated_on": on,
            "condition": condition,
            "classifier": classifier,
            "score": score,
            "metric": metric,
            "n": len(arrays[0]),
        }
        rows.append(
            row | with_interval(statistic, *arrays, draws=draws, recentred=metric.startswith("ece"))
        )

    def describe(embedded, condition, on=evaluated_on):
        native = native_scores(embedded)
        for name in ["uncertainty", *native]:
            values = embedded[name].astype(np.float64)
            add("mean", np.mean, values, condition=condition, score=name, on=on)
            for level in (
                QUANTILES if name in native or not native else ()
            ):  # the uncertainty is a native quantity, or minus one
                add(
                    f"q{100 * level:02.0f}",
                    partial(np.quantile, q=level),
                    values,
                    condition=condition,
                    score=name,
                    on=on,
                    draws=0,
                )

    uncertainties = {
        name: as_uncertainty(scores, name)
        for name in ("uncertainty", "feature_norm", "knn_distance", "max_softmax")
    }
    for classifier in ("linear", "knn"):
        correct = scores[f"{classifier}_correct"]
        add("accuracy", np.mean, correct.astype(np.float64), classifier=classifier, draws=draws)
        if classifier == "linear":
            add(
                "top5_accuracy",
                np.mean,
                scores["linear_top5_correct"].astype(np.float64),
                classifier=classifier,
            )
        for name, values in uncertainties.items():
            add(
                "correctness_auroc",
                measures.auroc,
                -values,
                correct,
                classifier=classifier,
                score=name,
                draws=draws,
            )
            for metric in ("aurc", "excess_aurc", "augrc"):
                add(
                    metric,
                    getattr(measures, metric),
                    values,
                    correct,
                    classifier=classifier,
                    score=name,
                )
    hit = scores["nearest_neighbour_correct"]
    for name, values in uncertainties.items():
        add(
            "recall_auroc",
            measures.auroc,
            -values,
            hit,
            classifier="nearest_neighbour",
            score=name,
            draws=draws,
        )

    confidence, correct = scores["linear_max_softmax"], scores["linear_correct"]
    equal_mass = partial(measures.confidence_calibration_error, equal_mass=True)
    add("ece", measures.confidence_calibration_error, confidence, correct, classifier="linear")
    add("ece_equal_mass", equal_mass, confidence, correct, classifier="linear")
    add("nll", np.mean, scores["linear_nll"].astype(np.float64), classifier="linear", draws=draws)
    add(
        "brier",
        np.mean,
        scores["linear_brier"].astype(np.float64),
        classifier="linear",
        draws=draws,
    )
    add("effective_rank", measures.effective_rank, test["features"], draws=0)
    describe(test, "clean")

    for condition, sets in (("near_ood", near_ood), ("far_ood", far_ood)):
        for other, embedded in (sets or {}).items():
            is_other = np.repeat([False, True], [len(test["features"]), len(embedded["features"])])
            confidence = probe.probabilities(embedded["features"]).max(axis=1).astype(np.float32)
            found = unsupervised_uncertainties(train, embedded) | {"max_softmax": -confidence}
            scored = {
                name: np.append(uncertainties[name], values) for name, values in found.items()
            }
            rows += ood_rows(
                scored, is_other, few, evaluated_on=other, condition=condition, classifier=""
            )
            describe(embedded, condition, other)

    for condition, embedded in (conditions or {}).items():
        correct = probe.predict(embedded["features"]) == embedded["label"]
        add(
            "accuracy",
            np.mean,
            correct.astype(np.float64),
            condition=condition,
            classifier="linear",
        )
        own = -embedded["uncertainty"].astype(np.float64)
        add(
            "correctness_auroc",
            measures.auroc,
            own,
            correct,
            condition=condition,
            classifier="linear",
            score="uncertainty",
        )
        describe(embedded, condition)
    for family, (severity, values) in _families(conditions or {}).items():
        add(
            "severity_spearman",
            np.mean,
            measures.rank_correlation_per_image(severity, values),
            condition=family,
            score="uncertainty",
        )
    return rows, scores


def unsupervised_uncertainties(train: Embedded, embedded: Embedded) -> dict[str, np.ndarray]:
    """The uncertainties [N] that need no label anywhere: the method's own, the negative norm of the features, the mean cosine distance to the 20
    nearest training images (all, where there are fewer)."""
    similarity, _ = _neighbours(
        train["features"], embedded["features"], min(NEAREST, len(train["features"]))
    )
    return {
        "uncertainty": embedded["uncertainty"].astype(np.float32),
        "feature_norm": -np.linalg.norm(embedded["features"], axis=1).astype(np.float32),
        "knn_distance": (1 - similarity).mean(dim=1).numpy().astype(np.float16),
    }


def fitted_gaussian(train_x: np.ndarray):
    """One Gaussian of training features [M, D], without labels, as scikit-learn's LedoitWolf: location_, precision_, mahalanobis.

    The covariance is shrunk as by Ledoit & Wolf 2004, which makes it invertible for any M.
    """
    from sklearn.covariance import LedoitWolf  # slow to import

    return LedoitWolf().fit(measures.matrix(train_x, "train_x").astype(np.float64))


def mahalanobis_distance(train_x: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The squared Mahalanobis distance x [N, D] -> [N] from the fitted_gaussian of training features [M, D] (Lee et al. 2018, Eq. 2, one class)."""
    gaussian = fitted_gaussian(train_x)
    return lambda x: gaussian.mahalanobis(measures.matrix(x, "x", train_x).astype(np.float64))


def _families(conditions: dict[str, Embedded]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For every family with two or more severities: severities [S] and the uncertainty of each image at each [N, S]."""
    members: dict[str, list[tuple[float, Embedded]]] = {}
    for condition, embedded in conditions.items():
        family, _, number = condition.rpartition("_")
        try:
            severity = float(number)
        except ValueError:
            raise ValueError(
                f'condition must be "<family>_<severity>" such as "blur_2", got {condition!r}.'
            ) from None
        members.setdefault(family, []).append(
            (1 - severity if family in KEPT_AREA else severity, embedded)
        )
    families = {}
    for family, steps in members.items():
        if any(not np.array_equal(step["label"], steps[0][1]["label"]) for _, step in steps):
            raise ValueError(
                f"the severities of {family} were not embedded on the same images in the same order; embed them again."
            )
        if len(steps) > 1:
            families[family] = (
                np.array([severity for severity, _ in steps]),
                np.stack([step["uncertainty"] for _, step in steps], axis=1),
            )
    return families
