"""The committed encoders, one a method: written with a model card, loaded by name, and how far other images are from their training set."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy
from torch import Tensor, nn

from lib import methods, training
from lib.data import sources as data
from lib.data import views as augmentations
from lib.evaluation import probes as evaluation
from lib.runs import settings as resolution
from lib.runs import store as artifacts

if TYPE_CHECKING:
    from lib.evaluation.measure import Run

MOST_BYTES = 3 * 2**19  # 1.5 MiB
INFO = ("run", "run_hash", "settings", "channels")  # what a committed encoder says of itself
# Kolmogorov-Smirnov distance; to the committed encoders photographs of things and faces stay below, digits and clothes above (but for those of
# TOLD_BADLY), and textures, noise and drawn shapes lie on either side (tests/test_own_images.py)
UNLIKE = 0.3
TOLD_BADLY = {
    "prosmin": "digits and clothes",
    "dino_vit": "digits",
}  # by the features of these encoders


def stored() -> dict[str, Path]:
    """The committed encoders by method: those of the results folder, or where it has none those that came with the code."""
    for results in (artifacts.RESULTS, artifacts.ROOT / "results"):
        if found := sorted((results / "standard" / "encoders").glob("*.safetensors")):
            return {path.stem: path for path in found}
    return {}


def load(name: str) -> nn.Module:
    """The committed encoder of a method, in float32 and evaluation mode, ready to ``embed`` float images [B, C, H, W] in 0..1.

    It is frozen: ``encoder.requires_grad_(True)`` makes it trainable. Only the parts that embedding needs are there, so that the loss cannot be
    evaluated; ``settings`` are those it was trained with. ValueError for an unknown name, with the names there are, and from ``embed`` for images
    of another size, number of channels or range than it was trained on.
    """
    there = stored()
    if name not in there:
        raise ValueError(f"There is no committed encoder {name!r}; there are {sorted(there)}.")
    path = there[name]
    tensors, info = artifacts.read_tensors(path, INFO)
    method = methods.build(info["settings"], info["channels"])
    tensors = {
        key: value.float() if value.is_floating_point() else value for key, value in tensors.items()
    }
    training.fill(method, tensors, path, method.embeds_with)
    for part in [name for name, _ in method.named_children() if name not in method.embeds_with]:
        delattr(method, part)  # untrained, it would answer all the same
    method.settings = info["settings"]
    backbone = next(module for module in method.modules() if hasattr(module, "features"))
    backbone.register_forward_pre_hook(partial(_refuse_other_images, info))
    return method.eval().requires_grad_(False)


def _refuse_other_images(info: dict, backbone: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
    """The images in the precision of the backbone, if they are of the shape and range that it was trained on."""
    (images,), channels, size = given, info["channels"], info["settings"]["image_size"]
    trained = f"{info['settings']['method']} was trained on {channels} channels and {size} x {size} pixels, as floats in 0..1"
    if not isinstance(images, Tensor):
        raise ValueError(
            f"These images are of type {type(images).__name__}; {trained}: give a torch tensor [B, C, H, W]."
        )
    if (
        images.ndim != 4
        or images.shape[1:] != (channels, size, size)
        or not images.is_floating_point()
    ):
        found = f"{images.dtype} of shape {tuple(images.shape)}".removeprefix("torch.")
        mend = "lib.evaluation.measure.fit(encoder.settings, channels) makes floats [B, C, H, W] in 0..1 fit."
        raise ValueError(f"These images are {found}; {trained}: {mend}")
    augmentations.check_range(images, trained)
    return (images.to(next(backbone.parameters()).dtype),)


# ---------------------------------------------------------------------------------------------------------------- writing
def write(run: Run, metrics: pd.DataFrame) -> Path | None:
    """What ``embed`` needs of the run's method, in float16, with a model card beside it; of more than 1.5 MiB a warning, and nothing is kept."""
    state = run.method.state_dict()
    needed = {
        name: value for name, value in state.items() if name.split(".")[0] in run.method.embeds_with
    }
    kept = {
        name: value.half() if value.is_floating_point() else value for name, value in needed.items()
    }
    path = artifacts.encoder_path(run.settings["method"], run.profile)
    settings = resolution.trained_with(run.settings)
    info = {
        "run": run.name,
        "run_hash": run.hash,
        "channels": run.channels,
        "classes": run.train.classes,
        "settings": settings,
    }
    size = sum(value.nbytes for value in kept.values())
    if size > MOST_BYTES:
        warnings.warn(
            f"The encoder of {run.name} takes {size:,} bytes, more than {MOST_BYTES:,}, and is not kept; the run is whole.",
            stacklevel=2,
        )
        return None
    known = training_statistics(run.embed(run.train)["features"], run.embed(run.test())["features"])
    artifacts.write_npz(path.with_suffix(".npz"), run_hash=np.array(run.hash), **known)
    artifacts.write_text(
        path.with_suffix(".md"),
        model_card(info, {"title": run.train.title, "images": len(run.train)}, metrics),
    )
    artifacts.write_tensors(path, kept, info)  # last: an encoder is listed by it
    return path


def model_card(info: dict, trained_on: dict, metrics: pd.DataFrame) -> str:
    """The card of a committed encoder in Markdown; no weights are needed.

    info: what the encoder's file says of itself. trained_on: title and number of images, as in the run's config.json. metrics: the run's stored
    battery; an out-of-distribution set that it was not measured on has no row.
    """
    settings, rows = info["settings"], []
    name, size, terms = settings["method"], settings["image_size"], data.terms(settings["dataset"])
    native, own = methods.own_uncertainty(name)
    clean, foreign = (
        metrics[metrics.condition == "clean"],
        metrics[(metrics.metric == "ood_auroc") & (metrics.score == "uncertainty")],
    )
    for classifier, words in (("linear", "linear probe"), ("knn", "k-NN")):
        (accuracy,) = clean[
            (clean.metric == "accuracy") & (clean.classifier == classifier)
        ].itertuples()
        rows.append(
            f"| accuracy, {words} | {accuracy.value:.1%} [{accuracy.ci_low:.1%}, {accuracy.ci_high:.1%}] |"
        )
    right = clean[(clean.metric == "correctness_auroc") & (clean.classifier == "linear")].set_index(
        "score"
    )
    for score, words in (
        ("uncertainty", own),
        ("max_softmax", "the probe's maximum softmax (trivial)"),
    ):
        rows.append(
            f"| AUROC, right or wrong (linear probe), by {words} | {_with_interval(right.loc[score])} |"
        )
    for _, row in foreign.iterrows():
        rows.append(
            f"| AUROC, {row.condition.replace('_ood', '')} OOD ({row.evaluated_on}), by {own} | {_with_interval(row)} |"
        )
    for _, row in clean[clean.metric == "effective_rank"].iterrows():
        rows.append(f"| effective rank of the features | {row.value:.1f} |")
    limits = [
        f"One run, one seed, {size} px; what is not in the table was not measured.",
        "Not for decisions about people.",
    ]
    if not native:
        limits.insert(0, "It has no uncertainty of its own: the norm of the features stands in.")
    if name == "vje":
        limits.insert(
            0, "The formulation is this repository's own: the paper's text was not at hand."
        )
        limits.insert(
            1,
            "It has partly collapsed (effective rank). Its likelihood, another score, is measured in notebook 60.",
        )
    if name in TOLD_BADLY:
        limits.insert(
            0,
            f"Its features hardly tell {TOLD_BADLY[name]} from photographs: that images resemble its training set says little.",
        )
    if surer := list(foreign[foreign.ci_high < 0.5].evaluated_on):
        limits.insert(
            0,
            f"It is surer of {' and '.join(surer)} than of its own test images (AUROC below 0.5): it does not warn of foreign images.",
        )
    labels = "with" if hasattr(methods.METHODS[name], "classes") else "without"
    return (
        f"# {name}\n\n"
        f"- **Run:** `{info['run']}` (hash {info['run_hash']}).\n"
        f"- **Data:** {trained_on['title']}, {trained_on['images']:,} images; terms: {terms}.\n"
        f"- **Training:** {settings['epochs']} epochs {labels} labels.\n"
        f"- **Input:** float images [B, {info['channels']}, {size}, {size}] in 0..1.\n"
        f"- **Uncertainty** (higher is less certain): {own}.\n"
        f"- **Stored** in float16: outputs differ from the trained network's in the third digit.\n\n"
        f"Measured on the {clean.n.iloc[0]:,} images of the test set, with 95 % bootstrap intervals over images:\n\n"
        f"| measure | value |\n| --- | --- |\n" + "\n".join(rows) + "\n\n"
        "**Limits.** " + " ".join(limits) + "\n\n"
        f'```python\nimport lib\n\nencoder = lib.load("{name}")\nembedding = encoder.embed(images)\n```\n'
    )


def _with_interval(row: pd.Series) -> str:
    return f"{row.value:.3f} [{row.ci_low:.3f}, {row.ci_high:.3f}]"


def write_cards() -> list[Path]:
    """Write the card of every committed encoder again, from the stored config and metrics of its run."""
    profile, cards = "standard", []
    for path in sorted(artifacts.encoder_path("", profile).parent.glob("*.safetensors")):
        info = artifacts.read_tensors_info(path, INFO)
        config = artifacts.read_json(artifacts.config_path(profile, info["run"]))
        cards.append(path.with_suffix(".md"))
        artifacts.write_text(
            cards[-1],
            model_card(
                info,
                config["data"],
                artifacts.read_metrics(profile, artifacts.MEASURED_BY, info["run"]),
            ),
        )
    return cards


# ---------------------------------------------------------------------------------------------------------------- likeness to the training set
def training_statistics(train: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    """What is kept of the features [M, D] of a training set, so that other images can be compared with it when it is not at hand.

    mean [D] and precision [D, D] (inverse covariance) of evaluation.fitted_gaussian, and the percentiles 0 to 100 of the squared Mahalanobis
    distance ``(x - mean)ᵀ precision (x - mean)`` over test images of the same set (Lee et al. 2018, one Gaussian for all classes).
    """
    gaussian = evaluation.fitted_gaussian(train)
    known = {
        "mean": gaussian.location_.astype(np.float32),
        "precision": gaussian.precision_.astype(np.float32),
    }
    return known | {
        "percentiles": np.percentile(_distances(test, known), np.arange(101)).astype(np.float32)
    }


def statistics_beside(encoder: Path) -> dict[str, np.ndarray]:
    """The training_statistics that lies beside a committed encoder. ValueError where it is that of another run."""
    path = encoder.with_suffix(".npz")
    found = artifacts.read_npz(path, ("run_hash", "mean", "precision", "percentiles"))
    if found["run_hash"].item() != (own := artifacts.read_tensors_info(encoder, INFO)["run_hash"]):
        raise ValueError(
            f"{path} is of the run with hash {found['run_hash']}, {encoder.name} of {own}: restore both from one commit."
        )
    return found


def _distances(features: np.ndarray, known: dict[str, np.ndarray]) -> np.ndarray:
    away = features.astype(np.float64) - known["mean"]
    return np.einsum("nd,de,ne->n", away, known["precision"].astype(np.float64), away)


def unlikeness(features: np.ndarray, known: dict[str, np.ndarray]) -> float:
    """How far images [N, D] are from a training set: the Kolmogorov-Smirnov distance (0 to 1) between their distances and its test images'.

    Above UNLIKE they do not resemble it: at some distance the shares of images beyond it differ by more than that.
    """
    percentiles = known["percentiles"].astype(np.float64)
    return float(
        scipy.stats.ks_1samp(
            _distances(features, known), lambda x: np.interp(x, percentiles, np.arange(101) / 100)
        ).statistic
    )
