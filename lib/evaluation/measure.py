"""What every run is measured by: its data sets, conditions and the files it leaves."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lib import training
from lib.data import sources as data
from lib.data import views as augmentations
from lib.evaluation import encoders, uncertainty
from lib.evaluation import probes as evaluation
from lib.runs import settings as resolution
from lib.runs import store as artifacts
from lib.runs.store import MEASURED_BY

KEPT_AREAS = (1.0, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05)
BLUR_SIGMAS = (0.0, 0.5, 1.0, 2.0, 3.0)
COMPARED = (resolution.PROTOCOL, "vit")  # the groups of runs that methods are compared by
READ_OF_OTHERS = (
    "index",
    "linear_correct",
    "linear_top5_correct",
    "knn_correct",
)  # the scores that are read of runs of other groups
WITH_TOP5 = (
    "vi_simsiam",
    "vi_simsiam_2022",
    "simsiam",
)  # whose paper has a table of it: top-5 of each image is read of these alone
UNTRAINED = ("random", "random_vit", "random_latent")
REFERENCES = (
    *UNTRAINED,
    "raw_pixels",
)  # rows of every accuracy table that a run has to beat to count
MEASURING = "from lib.evaluation import finetune, generation, measure, shift, style"  # an edit to what these import makes measures and embeddings old


# ---------------------------------------------------------------------------------------------------------------- images as a method takes them
def fit(settings: dict, channels: int) -> Callable[[Tensor], Tensor]:
    """Transform any float batch [B, C, H, W] in 0..1, grey or in colour, to the size and number of channels the run was trained with.

    The transform raises ValueError for other shapes, types and ranges.
    """

    def transform(images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"These images are of shape {tuple(images.shape)}: give floats [B, C, H, W] with C = 1 or 3, in 0..1."
            )
        augmentations.check_range(images)
        if images.shape[1] != channels:
            images = (
                augmentations.to_grey(images)
                if channels == 1
                else images.expand(-1, channels, -1, -1)
            )
        return augmentations.resize(images, settings["image_size"])

    return transform


def centre_crop(area: float) -> Callable[[Tensor], Tensor]:
    """Keep the central square with this share of the area and resize it to the whole."""

    def transform(images: Tensor) -> Tensor:
        size = images.shape[-1]
        side = max(2, round(size * area**0.5))
        return _square(images, (size - side) // 2, (size - side) // 2, side)

    return transform


def square_crop(top: float, left: float, side: float = 0.5) -> Callable[[Tensor], Tensor]:
    """Keep the square with this corner and side, as shares of the image's side, and resize it to the whole."""
    pixels_of_square(
        top, left, side, 1
    )  # what is not inside is refused here, before there is an image
    return lambda images: _square(images, *pixels_of_square(top, left, side, images.shape[-1]))


def pixels_of_square(top: float, left: float, side: float, size: int) -> tuple[int, int, int]:
    """Top, left and side in pixels of a square given as shares of an image's side; ValueError if it is not inside the image."""
    if not (
        0 <= top <= 1 and 0 <= left <= 1 and 0 < side <= 1 and max(top, left) + side <= 1 + 1e-9
    ):
        raise ValueError(
            f"The square with top {top:g}, left {left:g} and side {side:g} is not inside the image (shares of its side)."
        )
    pixels = max(2, int(size * side))
    return min(round(size * top), size - pixels), min(round(size * left), size - pixels), pixels


def _square(images: Tensor, top: int, left: int, side: int) -> Tensor:
    box = torch.tensor([[top, left, side, side]], dtype=torch.float32, device=images.device)
    return augmentations.crop_and_resize(images, box.expand(len(images), -1), images.shape[-1])


def blur(sigma: float) -> Callable[[Tensor], Tensor]:
    """Gaussian blur with sigma in pixels (0: none), cut at 3 sigma."""
    return lambda images: (
        augmentations.gaussian_blur(images, torch.full((len(images),), sigma), cut=3)
        if sigma
        else images
    )


def conditions() -> dict[str, Callable[[Tensor], Tensor]]:
    """The graded conditions every run is measured under, by "<family>_<severity>"."""
    return {f"crop_{area:g}": centre_crop(area) for area in KEPT_AREAS} | {
        f"blur_{sigma:g}": blur(sigma) for sigma in BLUR_SIGMAS
    }


# ---------------------------------------------------------------------------------------------------------------- one run
class Run:
    """A finished run with its data: ``embed`` answers from its store, else computes and stores."""

    def __init__(self, settings: dict):
        self.settings, self.name, self.profile = (
            settings,
            resolution.run_name(settings),
            settings["profile"],
        )
        self.train = training.training_images(settings)
        self.hash = resolution.run_hash(settings, self.train.checksum)
        self.channels = self.train.images.shape[3]

    @cached_property
    def method(self) -> nn.Module:
        """The trained network; without its weights the committed encoder, if it is of exactly this run (float16: the third digit differs)."""
        if training.is_finished(self.profile, self.name, self.hash):
            return training.load_trained(self.settings, self.channels)
        if self._has_encoder():
            return encoders.load(self.settings["method"])
        raise FileNotFoundError(
            f"Run {self.name} has no weights here that were trained with these settings and data; "
            f"train it with: make reproduce PROFILE={self.profile}"
        )

    @property
    def is_at_hand(self) -> bool:
        """Whether ``method`` can be asked."""
        return (
            "method" in vars(self)
            or training.is_finished(self.profile, self.name, self.hash)
            or self._has_encoder()
        )

    def _has_encoder(self) -> bool:
        path = artifacts.encoder_path(self.settings["method"])
        return (
            path.exists()
            and artifacts.read_tensors_info(path, encoders.INFO)["run_hash"] == self.hash
        )

    @property
    def bank(self) -> data.ImageSet:
        """The labelled images that probe and k-NN learn from: all of train, or ``bank_images`` of it (sample)."""
        count = self.settings["bank_images"]
        return self.train.sample(count) if 0 < count < len(self.train) else self.train

    def test(self) -> data.ImageSet:
        test = self.other(self.settings["dataset"])
        check_classes(self.train, test)
        return test

    def other(self, name: str) -> data.ImageSet:
        """The test split of any set."""
        return data.load(name, "test", image_size=self.settings["image_size"])

    def embed(
        self, images: data.ImageSet, condition: str = "clean", transform: Callable | None = None
    ) -> evaluation.Embedded:
        """Everything the run says of ``images`` under ``condition``; ``transform`` says what the condition does to a batch.

        A part of a set has a file of its own beside the whole's; of parts of one size under one condition the latest is stored.
        """
        fitted = fit(self.settings, self.channels)
        full = fitted if transform is None else lambda batch: transform(fitted(batch))

        def compute():
            embedded = evaluation.embed(self.method, images, transform=full)
            training.check_embedded(self.settings, embedded)
            return embedded

        if self.settings["method"] == "raw_pixels":
            return compute()
        path = (
            artifacts.run_dir(self.profile, self.name)
            / "embeddings"
            / f"{images.name}-{images.split}-{len(images)}-{condition}.npz"
        )
        key = {
            "run": self.hash,
            "data": images.checksum,
            "condition": condition,
            "code": artifacts.code_hash(MEASURING),
        }
        return evaluation.embed_cached(path, key, compute)

    def ask(self, images: data.ImageSet, answer: Callable | None = None) -> evaluation.Embedded:
        """What the run says of images that are asked for once, not stored; answer: another function of the method than ``embed``."""
        return evaluation.embed(
            self.method, images, transform=fit(self.settings, self.channels), answer=answer
        )

    def identity(self, notebook: str) -> dict:
        """The columns of a metrics row that are the same for the whole run."""
        return {
            "method": self.settings["method"],
            "trained_on": self.train.title,
            "variant": resolution.variant(self.settings),
            "seed": self.settings["seed"],
            "profile": self.profile,
            "notebook": notebook,
            "run_hash": self.hash,
            "commit": artifacts.commit(),
        }

    def write_metrics(self, rows: list[dict], notebook: str, part: str = "") -> pd.DataFrame:
        """Store metrics rows as those of ``notebook``, or as a ``part`` of them that does not replace others; the whole rows."""
        name = f"{notebook}-{part}" if part else notebook
        frame = artifacts.write_metrics(
            self.profile, name, self.name, rows, **self.identity(notebook)
        )
        artifacts.write_stamp(_measured_stamp(self, name))
        return frame


def check_classes(train: data.ImageSet, test: data.ImageSet) -> None:
    """ValueError where the two splits do not have the same classes in the same order."""
    if unlike := set(test.classes) ^ set(train.classes):
        raise ValueError(
            f"Train and test of {train.name} differ in the classes {sorted(unlike)[:5]}, so that their numbers mean different "
            "things; give both splits the same folders, or the same classes in their files."
        )
    if list(test.classes) != list(train.classes):
        raise ValueError(
            f"Train and test of {train.name} have their classes in another order, {train.classes[:3]} and {test.classes[:3]}, so that a label means "
            "another class in each; give both files the same order, and labels by it."
        )


def check_several(images: data.ImageSet) -> None:
    """ValueError where a set has one class."""
    if len(images.classes) == 1:
        raise ValueError(
            f"{images.title} has one class, {images.classes[0]!r}, so there is nothing to tell apart: give labels of two or more."
        )


def metrics(runs: list[dict]) -> pd.DataFrame:
    """The stored battery of these runs as one table; FileNotFoundError with the command that makes it where one is missing."""
    frames = []
    for settings in runs:
        profile, name = settings["profile"], resolution.run_name(settings)
        frames.append(artifacts.read_metrics(profile, MEASURED_BY, name))
        if frames[-1].empty:
            raise FileNotFoundError(
                f"Run {name} has no stored metrics; make them with: make reproduce PROFILE={profile}"
            )
    return pd.concat(frames, ignore_index=True)


def is_measured(run: Run, notebook: str) -> bool:
    """Whether ``notebook`` has stored metrics of exactly this run, its settings and its data, taken by today's code.

    Without the run's weights they cannot be taken again, and those that are stored count; their rows name the commit that took them.
    """
    stored = artifacts.read_metrics(run.profile, notebook, run.name)
    if not len(stored) or (stored.run_hash != run.hash).any():
        return False
    return _measured_stamp(run, notebook).exists() or not training.is_finished(
        run.profile, run.name, run.hash
    )


def _measured_stamp(run: Run, notebook: str) -> Path:
    """The empty file that says: measured by this code, with all of these settings (some of them are of measuring alone)."""
    digest = artifacts.sha256(artifacts.code_hash(MEASURING) + repr(sorted(run.settings.items())))[
        :12
    ]
    return (
        artifacts.results_dir(run.profile)
        / ".done"
        / "measured"
        / f"{notebook}--{run.name}.{digest}"
    )


def measured_runs(profile: str, paper: str = "all", group: str = resolution.PROTOCOL) -> list[dict]:
    """``required`` of the runs that a profile lists."""
    return required(resolution.runs(profile, paper, group), profile)


def required(listed: list[dict], profile: str) -> list[dict]:
    """Those of these settings whose metrics are stored; FileNotFoundError with the command that makes them where there is none."""
    if found := measured(listed):
        return found
    raise FileNotFoundError(
        f"No run of profile {profile!r} has stored metrics; make them with: make reproduce PROFILE={profile}"
    )


def compared_runs(profile: str, paper: str = "all") -> list[dict]:
    """Settings of the measured runs that methods are compared by: the protocol's, and those on a vision transformer."""
    return measured(_listed_to_compare(profile, paper))


def measured(listed: list[dict]) -> list[dict]:
    """Those of these settings whose metrics are stored."""
    return [
        run
        for run in listed
        if artifacts.metrics_path(run["profile"], MEASURED_BY, resolution.run_name(run)).exists()
    ]


def measure(run: Run) -> pd.DataFrame:
    """Embed and evaluate one run, write its metrics and per-image scores, and return the metrics rows.

    A run that methods are compared by goes through the whole battery, most others through its part on the clean test set (_is_graded); a tuning run
    (trained on train without its validation part) is measured by k-NN on that part alone, so that tuning never sees the test set; a run on one
    class by how it tells the others apart.
    """
    if run.settings["split"] == "fit":
        rows, scores = [_validation_accuracy(run)], None
    elif len(run.train.classes) == 1:
        rows, scores = _one_class_detection(run), None
    else:
        rows, scores = _battery(run, graded=_is_graded(run.settings))
    frame = run.write_metrics(rows, MEASURED_BY)
    if scores is not None:
        kept = (
            dict(scores)
            if _is_compared(run.settings)
            else {name: scores[name] for name in READ_OF_OTHERS}
        )
        if run.settings["method"] not in WITH_TOP5:
            del kept["linear_top5_correct"]
        if run.settings in resolution.runs(run.profile, group="simvae") and not np.allclose(
            scores["uncertainty"], -scores["feature_norm"]
        ):
            kept |= {"uncertainty": scores["uncertainty"]}  # one of its own
        artifacts.write_scores(run.profile, run.name, run.settings["dataset"], kept)
        if run.profile == "standard" and _leaves_encoder(run.settings):
            encoders.write(run, frame)
    return frame


def _leaves_encoder(settings: dict) -> bool:
    """A method has one committed encoder: of its run that is compared, seed 0; not of shorter runs, or on other data."""
    return (
        settings["seed"] == 0
        and settings["epochs"] > 0
        and settings in _listed_to_compare(settings["profile"])
    )


def _is_compared(settings: dict) -> bool:
    """Whether methods are compared by this run, or no group has it, as where it is one's own."""
    return settings in _listed_to_compare(settings["profile"]) or settings not in resolution.runs(
        settings["profile"]
    )


def _is_graded(settings: dict) -> bool:
    """Whether a run is also measured on other sets and under graded conditions: a compared one, or one of SimVAE's comparison on the same data."""
    usual = settings["dataset"] == resolution.profile_settings(settings["profile"])["dataset"]
    return _is_compared(settings) or (
        usual and settings in resolution.runs(settings["profile"], group="simvae")
    )


def _listed_to_compare(profile: str, paper: str = "all") -> list[dict]:
    return [run for group in COMPARED for run in resolution.runs(profile, paper, group)]


def missing_sets(runs: Sequence[dict]) -> list[str]:
    """Why sets cannot be loaded that these runs are trained on or asked about once they are trained, each once; what can be fetched is fetched."""
    needed = set()
    for run in runs:
        needed.add(run["dataset"])
        further = {
            *run["ood_near"],
            *run["ood_far"],
        } - needed  # whether a run is asked about them takes a look at all that its profile lists
        if (
            further
            and run["split"] != "fit"
            and not resolution.ONE_CLASS.fullmatch(run["dataset"])
            and _is_graded(run)
        ):
            needed |= further
    reasons, trained = [], {run["dataset"] for run in runs}
    own = data.default_data_dir()  # a folder there is a set, whatever its name
    plain = {
        name: resolution.ONE_CLASS.sub(r"\g<name>", name).removeprefix("styled_") for name in needed
    }
    for name in sorted({name if (own / name).is_dir() else plain[name] for name in needed}):
        try:
            test = data.load(name, "test", image_size=8)  # any size: it is not kept
            if name not in data.DATASETS and name in trained:  # a set of one's own
                test.images[
                    np.arange(len(test))
                ]  # an unreadable image is told before the training, not after it
                check_classes(train := data.load(name, "train", image_size=8), test)
                check_several(train)
        except (FileNotFoundError, ValueError) as error:
            reasons.append(str(error))
    return reasons


def _battery(run: Run, graded: bool) -> tuple[list[dict], evaluation.Embedded]:
    """evaluation.battery of the test set, and where ``graded`` also of the other sets and of the graded conditions."""
    test = run.test()
    few = test.sample(run.settings["condition_images"])

    def others(distance: str) -> dict:
        return {name: run.embed(run.other(name)) for name in run.settings[f"ood_{distance}"]}

    more = {}
    if graded:
        more = {"near_ood": others("near"), "far_ood": others("far")}
        more["conditions"] = {
            name: run.embed(few, name, transform) for name, transform in conditions().items()
        }
    return evaluation.battery(
        run.embed(run.bank),
        run.embed(test),
        test.title,
        draws=run.settings["bootstrap_draws"],
        **more,
    )


def _one_class_detection(run: Run) -> list[dict]:
    """AUROC, on the test set with all classes, of every uncertainty that needs no labels; positive: another class than the run was trained on.

    score: the method's own, its native quantities and those of ``uncertainties``, feature_norm, knn_distance, mahalanobis. Interval: bootstrap.
    """
    single = resolution.ONE_CLASS.fullmatch(run.settings["dataset"])
    if not single:
        check_several(run.train)
    test = data.load(single["name"], "test", image_size=run.settings["image_size"])
    known, asked = (
        run.ask(images, getattr(run.method, "uncertainties", None)) for images in (run.train, test)
    )
    scores = evaluation.unsupervised_uncertainties(known, asked) | {
        name: asked[name] for name in evaluation.native_scores(asked)
    }
    scores["mahalanobis"] = evaluation.mahalanobis_distance(known["features"])(asked["features"])
    scores.pop("kappa", None)  # its negative is the uncertainty
    other, draws = test.labels != int(single["label"]), run.settings["bootstrap_draws"] // 4
    return evaluation.ood_rows(
        scores, other, draws, ("ood_auroc",), evaluated_on=test.title, condition="one_class"
    )


def _validation_accuracy(run: Run) -> dict:
    whole = data.load(run.settings["dataset"], "train", image_size=run.settings["image_size"])
    held_out = run.embed(whole.subset(data.train_validation_split(whole.labels)[1]), "validation")
    fitted = run.embed(run.train, "fit")
    accuracy = evaluation.knn_accuracy(
        fitted["features"], fitted["label"], held_out["features"], held_out["label"]
    )
    return {
        "evaluated_on": whole.name,
        "condition": "validation",
        "classifier": "knn",
        "metric": "accuracy",
        "value": accuracy,
        "n": len(held_out["label"]),
    }


def at_hand(listed: Iterable[dict]) -> Iterator[Run]:
    """Those of these runs whose data and network are here, each read as it is asked for."""
    for settings in listed:
        if (
            settings["dataset"] not in resolution.absent_sets(settings["profile"])
            and (run := Run(settings)).is_at_hand
        ):
            yield run


def probe_by_the_paper(runs: list[dict], notebook: str) -> None:
    """Top-1 and top-5 accuracy of the paper's linear probe (evaluation.paper_probe) for all runs, as metrics of ``notebook``.

    A run whose metrics are stored, or that is not at hand, is left as it is.
    """
    for ready in at_hand(runs):
        if is_measured(ready, notebook):
            continue
        bank, test = ready.embed(ready.bank), ready.test()
        probe = evaluation.paper_probe(
            bank["features"], bank["label"], device=training.best_device()
        )
        probabilities = probe.probabilities(ready.embed(test)["features"])
        right = {
            "accuracy": probabilities.argmax(1) == test.labels,
            "top5_accuracy": uncertainty.top5_correct(probabilities, test.labels),
        }
        common = {
            "evaluated_on": test.title,
            "condition": "clean",
            "classifier": "linear_paper",
            "n": len(test),
        }
        draws = ready.settings["bootstrap_draws"]
        found = {
            metric: evaluation.with_interval(np.mean, values.astype(float), draws=draws)
            for metric, values in right.items()
        }
        ready.write_metrics(
            [common | {"metric": metric} | row for metric, row in found.items()], notebook
        )


# ---------------------------------------------------------------------------------------------------------------- augmented training images
def embed_views(run: Run, views: int) -> tuple[data.ImageSet, list[evaluation.Embedded]]:
    """``condition_images`` training images (sample), and what the run says of ``views`` random views of each."""
    few = run.train.sample(run.settings["condition_images"])
    size, strengths, embedded = (
        run.settings["image_size"],
        augmentations.recipe(run.settings["augmentation"]),
        [],
    )
    for i in range(views):
        generator = torch.Generator().manual_seed(
            training.seed_of(run.settings["seed"], "kappa views", i)
        )
        augment = partial(
            augmentations.augment, size=size, strengths=strengths, generator=generator
        )
        embedded.append(run.embed(few, f"view_{i}", augment))
    return few, embedded


def kappa_of_views(run: Run, views: int = 8) -> tuple[data.ImageSet, np.ndarray]:
    """``condition_images`` training images (sample) and κ of random views of each, [views, N] (VI-SimSiam 2022, Table 1: 8 of every image)."""
    few, embedded = embed_views(run, views)
    return few, np.stack([view["kappa"] for view in embedded])
