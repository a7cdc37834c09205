"""The committed encoders: load them by name, read their cards, compare images with their training
sets, and write one.

A committed encoder is three files: the weights (safetensors), a card (Markdown) and statistics of
its training features (npz).
"""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import scipy
import torch
from torch import Tensor, nn

from lib import methods, training
from lib.data import sources, views
from lib.data.files import read_image
from lib.evaluation.embed import input_transform
from lib.evaluation.probes import fitted_gaussian
from lib.methods.base import Embedding
from lib.runs import settings as run_settings
from lib.runs import store

INFO = ("run", "run_hash", "settings", "channels")  # what a committed encoder says of itself
MOST_ENCODER_BYTES = 2**21  # 2 MiB
# The unlikeness above which images do not resemble a training set. With the committed encoders,
# photographs of things and faces stay below, and MNIST and Fashion-MNIST lie above. Textures, noise
# and drawn shapes lie on both sides.
UNLIKE = 0.3
# By the features of these encoders, these images are no more unlike than photographs are.
NOT_SEPARATED = {"prosmin": "MNIST and Fashion-MNIST", "dino_vit": "MNIST"}


def name_of(settings: dict) -> str:
    """The name of a run's encoder: its method; on other data than its profile's, with the set.

    VI-SimSiam 2022 is the form that is trained on its paper's sets: ``vi_simsiam_imagenette``.
    """
    method = settings["method"]
    if settings["dataset"] == run_settings.profile_settings(settings["profile"])["dataset"]:
        return method
    return f"{method.removesuffix('_2022')}_{settings['dataset']}"


def stored() -> dict[str, Path]:
    """The committed encoders by name: those of the results folder, or else the code's own."""
    for results in (store.RESULTS, store.ROOT / "results"):
        paths = sorted((results / "standard" / "encoders").glob("*.safetensors"))
        if paths:
            return {path.stem: path for path in paths}
    return {}


def load(name: str) -> "Encoder":
    """The committed encoder of this name, in float32 and evaluation mode.

    ValueError for an unknown name, with the names there are.

    Example:
        >>> encoder = load("vi_simsiam")
        >>> embedding = encoder.embed(encoder.prepare("cat.jpg"))
        >>> embedding.native["kappa"]
    """
    paths = stored()
    run_settings.check_known(name, paths, "committed encoder")
    path = paths[name]
    tensors, info = store.read_tensors(path, INFO)
    method = methods.build(info["settings"], info["channels"])
    for key, value in tensors.items():
        if value.is_floating_point():
            tensors[key] = value.float()
    training.fill(method, tensors, path, method.embeds_with)
    for part, _ in list(method.named_children()):
        if part not in method.embeds_with:
            delattr(method, part)  # it was not stored, and would answer untrained
    method.settings = info["settings"]
    return Encoder(method, info["channels"])


class Encoder(nn.Module):
    """A trained network that embeds images. It is frozen: ``requires_grad_(True)`` unfreezes it.

    method: the method with the parts that embedding needs; its loss cannot be evaluated.
    settings: those it was trained with; channels, image_size: of the images it takes.
    """

    def __init__(self, method: nn.Module, channels: int):
        super().__init__()
        self.method = method
        self.settings = method.settings
        self.channels = channels
        self.image_size = method.settings["image_size"]
        self.eval().requires_grad_(False)

    def prepare(self, images: str | Path | Sequence[str | Path] | Tensor) -> Tensor:
        """Float images [B, C, S, S] in 0..1, as the encoder takes them, from files or a tensor.

        images: the path of an image file, several paths, or a tensor [B, C, H, W] or [C, H, W] of
        bytes or of floats in 0..1. Files are turned upright by their EXIF data and put on white
        where they are transparent. Of images that are not square the central square is kept.
        """
        if isinstance(images, Tensor):
            images = images[None] if images.ndim == 3 else images
            images = images / 255 if images.dtype == torch.uint8 else images
            images = _central_square(images) if images.ndim == 4 else images
        else:
            files = [images] if isinstance(images, str | Path) else images
            images = torch.stack([read_image(file, self.image_size) for file in files])
        return input_transform(self.settings, self.channels)(images)

    def embed(
        self, images: Tensor, batch_size: int = 512, device: str | torch.device | None = None
    ) -> Embedding:
        """Features [B, F], uncertainty [B] and native quantities of float images [B, C, S, S].

        The images are embedded in batches, on ``device`` (default: where the encoder is; otherwise
        it is moved there). The results lie on the device of the images. ValueError for images of
        another size, number of channels or range than the encoder was trained on.
        """
        self._check(images)
        if device is not None:
            self.to(device)
        parameter = next(self.parameters())
        batches = []
        for batch in images.split(batch_size):
            batches.append(self.method.embed(batch.to(parameter.device, parameter.dtype)))
        native = {}
        for name in batches[0].native:
            native[name] = torch.cat([batch.native[name] for batch in batches]).to(images.device)
        return Embedding(
            features=torch.cat([batch.features for batch in batches]).to(images.device),
            uncertainty=torch.cat([batch.uncertainty for batch in batches]).to(images.device),
            native=native,
        )

    def forward(self, images: Tensor) -> Tensor:
        """The features [B, F] of ``embed``.

        Under torch.export, torch.compile and torch.jit.trace all images are one batch, of any size,
        and their range is not checked: a check would be evaluated once and for all.
        """
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return self.method.embed(images).features
        return self.embed(images).features

    def _check(self, images: Tensor) -> None:
        wanted = (
            f"{self.settings['method']} was trained on {self.channels} channels and "
            f"{self.image_size} x {self.image_size} pixels, as floats in 0..1"
        )
        size = (self.channels, self.image_size, self.image_size)
        is_batch = isinstance(images, Tensor) and images.ndim == 4 and images.shape[1:] == size
        if not is_batch or not images.is_floating_point():
            kind = getattr(images, "dtype", type(images).__name__)
            raise ValueError(
                f"These images are {kind} of shape {tuple(np.shape(images))}; {wanted}: "
                "encoder.prepare(images) makes images and files fit."
            )
        views.check_range(images, wanted)


def _central_square(images: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    side = min(height, width)
    top = (height - side) // 2
    left = (width - side) // 2
    return images[..., top : top + side, left : left + side]


# --------------------------------------------------------------------- likeness to the training set
def training_statistics(train: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    """Statistics of training features [M, D], to compare other images with the training set.

    These are mean [D] and precision [D, D] (inverse covariance) of the fitted_gaussian, and the
    percentiles 0 to 100 of the squared Mahalanobis distance ``(x - mean)ᵀ precision (x - mean)``
    over test images of the same set (Lee et al. 2018, one Gaussian for all classes).
    """
    gaussian = fitted_gaussian(train)
    statistics = {
        "mean": gaussian.location_.astype(np.float32),
        "precision": gaussian.precision_.astype(np.float32),
    }
    distances = _distances(test, statistics)
    statistics["percentiles"] = np.percentile(distances, np.arange(101)).astype(np.float32)
    return statistics


def statistics_beside(encoder: Path) -> dict[str, np.ndarray]:
    """The training_statistics stored with a committed encoder.

    ValueError where they are those of another run.
    """
    path = encoder.with_suffix(".npz")
    statistics = store.read_npz(path, ("run_hash", "mean", "precision", "percentiles"))
    run_hash = store.read_tensors_info(encoder, INFO)["run_hash"]
    if statistics["run_hash"].item() != run_hash:
        raise ValueError(
            f"{path} is of the run with hash {statistics['run_hash']}, {encoder.name} of "
            f"{run_hash}: restore both from one commit."
        )
    return statistics


def _distances(features: np.ndarray, statistics: dict[str, np.ndarray]) -> np.ndarray:
    difference = features.astype(np.float64) - statistics["mean"]
    precision = statistics["precision"].astype(np.float64)
    return np.einsum("nd,de,ne->n", difference, precision, difference)


def unlikeness(features: np.ndarray, statistics: dict[str, np.ndarray]) -> float:
    """How far images with features [N, D] are from a training set: 0 to 1.

    It is the Kolmogorov-Smirnov distance between their distances to the training set's Gaussian
    and those of its test images. Above UNLIKE they do not resemble the training set.
    """
    percentiles = statistics["percentiles"].astype(np.float64)

    def share_below(distance: np.ndarray) -> np.ndarray:
        return np.interp(distance, percentiles, np.arange(101) / 100)

    return float(scipy.stats.ks_1samp(_distances(features, statistics), share_below).statistic)


# ------------------------------------------------------------------------------------- writing them
def write(run, metrics: pd.DataFrame) -> Path | None:
    """Store what ``embed`` needs of the run's method in float16, with its card and statistics.

    run: a lib.evaluation.measure.Run. metrics: its suite. An encoder of more than 2 MiB is a
    warning, and is not stored.
    """
    tensors = {}
    for name, value in run.method.state_dict().items():
        if name.split(".")[0] in run.method.embeds_with:
            tensors[name] = value.half() if value.is_floating_point() else value
    size = sum(value.nbytes for value in tensors.values())
    if size > MOST_ENCODER_BYTES:
        warnings.warn(
            f"The encoder of {run.name} takes {size:,} bytes, more than {MOST_ENCODER_BYTES:,}, "
            "and is not stored; the run is complete.",
            stacklevel=2,
        )
        return None
    info = {
        "run": run.name,
        "run_hash": run.hash,
        "channels": run.channels,
        "classes": run.train.classes,
        "settings": run_settings.trained_with(run.settings),
    }
    train = run.embed(run.train)["features"]
    test = run.embed(run.test())["features"]
    statistics = training_statistics(train, test)
    trained_on = {"title": run.train.title, "images": len(run.train)}
    path = store.encoder_path(name_of(run.settings), run.profile)
    store.write_npz(path.with_suffix(".npz"), run_hash=np.array(run.hash), **statistics)
    store.write_text(path.with_suffix(".md"), model_card(info, trained_on, metrics))
    store.write_tensors(path, tensors, info)  # last: this file lists the encoder
    return path


CARD = """\
# {name}

{facts}

{measures}

This is one run with one seed. Intervals are 95 % bootstrap intervals over test images.
Uncertainty: higher is less certain. An OOD AUROC below 0.5 means that the encoder is more certain
of images of the other set than of its own test images. The weights are stored in float16, so
outputs differ from those of the trained network in the third digit. Not for decisions about people.

```python
import lib

encoder = lib.load("{name}")
embedding = encoder.embed(encoder.prepare("image.jpg"))
```
"""


def model_card(info: dict, trained_on: dict, metrics: pd.DataFrame) -> str:
    """The card of a committed encoder in Markdown.

    info: the header of the encoder's file. trained_on: title and number of images, as in the run's
    config.json. metrics: the run's suite; sets that it was not measured on have no row.
    """
    settings = info["settings"]
    method = settings["method"]
    name = name_of(settings)
    size = settings["image_size"]
    _, uncertainty = methods.own_uncertainty(method)
    has_labels = getattr(methods.METHODS[method], "takes_labels", False)
    facts = [
        ("encoder", name),
        ("run", f"`{info['run']}` ({info['run_hash']})"),
        ("data", f"{trained_on['title']}, {trained_on['images']:,} images"),
        ("terms of the data", sources.terms(settings["dataset"])),
        ("epochs", settings["epochs"]),
        ("labels", "used" if has_labels else "not used"),
        ("input", f"floats [B, {info['channels']}, {size}, {size}] in 0..1"),
        ("uncertainty", uncertainty),
    ]
    if method in NOT_SEPARATED:
        facts.append(("not separated from its data", NOT_SEPARATED[method]))
    measures = [("measure", "by", "value", "95 % interval"), *_card_measures(metrics)]
    return CARD.format(
        name=name,
        facts=store.markdown_table(facts),
        measures=store.markdown_table(measures),
    )


def _card_measures(metrics: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    """Rows of a card: measure, the classifier or score it is taken with, value and interval."""
    clean = metrics[metrics.condition == "clean"]
    accuracy = clean[(clean.metric == "accuracy") & clean.classifier.isin(["linear", "knn"])]
    correctness = clean[
        (clean.metric == "correctness_auroc")
        & (clean.classifier == "linear")
        & clean.score.isin(["uncertainty", "max_softmax"])
    ]
    ood = metrics[(metrics.metric == "ood_auroc") & (metrics.score == "uncertainty")]
    rank = clean[clean.metric == "effective_rank"]
    rows = []
    for row in accuracy.itertuples():
        classifier = {"linear": "linear probe", "knn": "k-NN"}[row.classifier]
        rows.append(("accuracy", classifier, f"{row.value:.3f}", _interval(row)))
    for row in correctness.itertuples():
        score = row.score.replace("_", " ")
        rows.append(("AUROC, correct predictions", score, f"{row.value:.3f}", _interval(row)))
    for row in ood.itertuples():
        measure = f"AUROC, OOD images of {row.evaluated_on}"
        rows.append((measure, "uncertainty", f"{row.value:.3f}", _interval(row)))
    for row in rank.itertuples():
        rows.append(("effective rank of the features", "", f"{row.value:.1f}", ""))
    return rows


def _interval(row) -> str:
    return f"{row.ci_low:.3f} to {row.ci_high:.3f}"
