"""What every run is measured by: its data sets, conditions and the files it leaves (the battery of one run, and the committed encoder)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import scipy
import torch
from torch import Tensor, nn

from lib import artifacts, augmentations, data, evaluation, factors, generation, image_sets, methods, training, uncertainty
from lib import settings as resolution
from lib.artifacts import MEASURED_BY

KEPT_AREAS = (1.0, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05)
BLUR_SIGMAS = (0.0, 0.5, 1.0, 2.0, 3.0)
ENCODER_BYTES = 3 * 2**19  # 1.5 MiB
ENCODER_INFO = ("run", "run_hash", "settings", "channels")  # what a committed encoder says of itself
# groups of runs that are compared by clean accuracy alone, and those of whose per-image scores no more than what is right is read
BY_ACCURACY = ("ablations", "scoring", "likelihood", "sharpening")
SCORED_APART = ("lengths", "datasets", "controls", "simvae", *BY_ACCURACY)
RIGHT = ("index", "linear_correct", "linear_top5_correct", "knn_correct")
COMPARED = (resolution.PROTOCOL, "vit")  # the groups of runs that methods are compared by
UNTRAINED = ("random", "random_vit", "random_latent")
REFERENCES = (*UNTRAINED, "raw_pixels")  # rows of every accuracy table that a run has to beat to count
MEASURING = "from lib import protocol, shift"  # an edit to what these import makes measures and embeddings old
# Kolmogorov-Smirnov distance; to the committed encoders photographs of things and faces stay below, digits and clothes above (but for those of
# TOLD_BADLY), and textures, noise and drawn shapes lie on either side (tests/test_own_images.py)
UNLIKE = 0.3
TOLD_BADLY = {"prosmin": "digits and clothes", "dino_vit": "digits"}  # by the features of these encoders


# ---------------------------------------------------------------------------------------------------------------- images as a method takes them
def fit(settings: dict, channels: int) -> Callable[[Tensor], Tensor]:
    """Transform any float batch [B, C, H, W] to the size and number of channels the run was trained with."""

    def transform(images: Tensor) -> Tensor:
        if images.shape[1] != channels:
            images = augmentations.to_grey(images) if channels == 1 else images.expand(-1, channels, -1, -1)
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
    pixels_of_square(top, left, side, 1)  # what is not inside is refused here, before there is an image

    def transform(images: Tensor) -> Tensor:
        return _square(images, *pixels_of_square(top, left, side, images.shape[-1]))

    return transform


def pixels_of_square(top: float, left: float, side: float, size: int) -> tuple[int, int, int]:
    """Top, left and side in pixels of a square given as shares of an image's side; ValueError if it is not inside the image."""
    if not (0 <= top <= 1 and 0 <= left <= 1 and 0 < side <= 1 and max(top, left) + side <= 1 + 1e-9):
        raise ValueError(f"The square with top {top:g}, left {left:g} and side {side:g} is not inside the image (shares of its side).")
    return round(size * top), round(size * left), max(2, int(size * side))


def _square(images: Tensor, top: int, left: int, side: int) -> Tensor:
    box = torch.tensor([[top, left, side, side]], dtype=torch.float32, device=images.device)
    return augmentations.crop_and_resize(images, box.expand(len(images), -1), images.shape[-1])


def blur(sigma: float) -> Callable[[Tensor], Tensor]:
    """Gaussian blur with sigma in pixels (0: none)."""
    from kornia.filters import gaussian_blur2d  # slow to import

    def transform(images: Tensor) -> Tensor:
        if not sigma:
            return images
        width = 2 * min(round(3 * sigma), *(length - 1 for length in images.shape[-2:])) + 1
        return gaussian_blur2d(images, (width, width), (sigma, sigma), border_type="reflect")

    return transform


def conditions() -> dict[str, Callable[[Tensor], Tensor]]:
    """The graded conditions every run is measured under, by "<family>_<severity>"."""
    return {f"crop_{area:g}": centre_crop(area) for area in KEPT_AREAS} | {f"blur_{sigma:g}": blur(sigma) for sigma in BLUR_SIGMAS}


# ---------------------------------------------------------------------------------------------------------------- one run
class Run:
    """A finished run with its data: ``embed`` answers from its store, else computes and stores."""

    def __init__(self, settings: dict):
        self.settings, self.name, self.profile = settings, resolution.run_name(settings), settings["profile"]
        self.train = training.training_images(settings)
        self.hash = resolution.run_hash(settings, self.train.checksum)
        self.channels = self.train.images.shape[3]
        self._method: nn.Module | None = None

    @property
    def method(self) -> nn.Module:
        """The trained network; without its weights the committed encoder, if it is of exactly this run (float16: the third digit differs)."""
        if self._method is None:
            if training.is_finished(self.profile, self.name, self.hash):
                self._method = training.load_trained(self.settings, self.channels)
            elif self._has_encoder():
                self._method = load(self.settings["method"])
            else:
                raise FileNotFoundError(
                    f"Run {self.name} has no weights here that were trained with these settings and data; "
                    f"train it with: make reproduce PROFILE={self.profile}"
                )
        return self._method

    @property
    def is_at_hand(self) -> bool:
        """Whether ``method`` can be asked."""
        return self._method is not None or training.is_finished(self.profile, self.name, self.hash) or self._has_encoder()

    def _has_encoder(self) -> bool:
        path = artifacts.encoder_path(self.settings["method"])
        return path.exists() and artifacts.read_tensors_info(path, ENCODER_INFO)["run_hash"] == self.hash

    @property
    def bank(self) -> data.ImageSet:
        """The labelled images that probe and k-NN learn from: all of train, or ``bank_images`` of it (sample)."""
        count = self.settings["bank_images"]
        return self.train.sample(count) if 0 < count < len(self.train) else self.train

    def test(self) -> data.ImageSet:
        test = self.other(self.settings["dataset"])
        if unlike := set(test.classes) ^ set(self.train.classes):
            raise ValueError(
                f"Train and test of {self.settings['dataset']} differ in the classes {sorted(unlike)[:5]}, so that their numbers mean different "
                "things; give both splits the same folders, or the same classes in their files."
            )
        return test

    def other(self, name: str) -> data.ImageSet:
        """The test split of any set."""
        return data.load(name, "test", image_size=self.settings["image_size"])

    def embed(self, images: data.ImageSet, condition: str = "clean", transform: Callable | None = None) -> evaluation.Embedded:
        """Everything the run says of ``images`` under ``condition``; ``transform`` says what the condition does to a batch."""
        fitted = fit(self.settings, self.channels)
        full = fitted if transform is None else lambda batch: transform(fitted(batch))

        def compute():
            return evaluation.embed(self.method, images, transform=full)

        if self.settings["method"] == "raw_pixels":
            return compute()
        path = artifacts.run_dir(self.profile, self.name) / "embeddings" / f"{images.name}-{images.split}-{condition}.npz"
        key = {"run": self.hash, "data": images.checksum, "condition": condition, "code": artifacts.code_hash(MEASURING)}
        return evaluation.embed_cached(path, key, compute)

    def ask(self, images: data.ImageSet, answer: Callable | None = None) -> evaluation.Embedded:
        """What the run says of images that are asked for once, not stored; answer: another function of the method than ``embed``."""
        return evaluation.embed(self.method, images, transform=fit(self.settings, self.channels), answer=answer)

    def identity(self, notebook: str) -> dict:
        """The columns of a metrics row that are the same for the whole run."""
        return {
            "method": self.settings["method"], "trained_on": self.train.title, "variant": resolution.variant(self.settings),
            "seed": self.settings["seed"], "profile": self.profile, "notebook": notebook, "run_hash": self.hash, "commit": artifacts.commit(),
        }  # fmt: skip

    def write_metrics(self, rows: list[dict], notebook: str, part: str = "") -> pd.DataFrame:
        """Store rows for evaluation.metrics_rows as those of ``notebook``, or as a ``part`` of them that does not replace others; the whole rows."""
        frame, name = evaluation.metrics_rows(rows, **self.identity(notebook)), f"{notebook}-{part}" if part else notebook
        artifacts.write_metrics(self.profile, name, self.name, frame)
        artifacts.write_stamp(_measured_stamp(self, name))
        return frame


def metrics(runs: list[dict]) -> pd.DataFrame:
    """The stored battery of these runs as one table; FileNotFoundError with the command that makes it where one is missing."""
    frames = []
    for settings in runs:
        profile, name = settings["profile"], resolution.run_name(settings)
        frames.append(artifacts.read_metrics(profile, MEASURED_BY, name))
        if frames[-1].empty:
            raise FileNotFoundError(f"Run {name} has no stored metrics; make them with: make reproduce PROFILE={profile}")
    return pd.concat(frames, ignore_index=True)


def is_measured(run: Run, notebook: str) -> bool:
    """Whether ``notebook`` has stored metrics of exactly this run, its settings and its data, taken by today's code.

    Without the run's weights they cannot be taken again, and those that are stored count; their rows name the commit that took them.
    """
    stored = artifacts.read_metrics(run.profile, notebook, run.name)
    if not len(stored) or (stored.run_hash != run.hash).any():
        return False
    return _measured_stamp(run, notebook).exists() or not training.is_finished(run.profile, run.name, run.hash)


def _measured_stamp(run: Run, notebook: str) -> Path:
    """The empty file that says: measured by this code, with all of these settings (some of them are of measuring alone)."""
    digest = artifacts.sha256(artifacts.code_hash(MEASURING) + repr(sorted(run.settings.items())))[:12]
    return artifacts.results_dir(run.profile) / ".done" / "measured" / f"{notebook}--{run.name}.{digest}"


def measured_runs(profile: str, paper: str = "all", group: str = resolution.PROTOCOL) -> list[dict]:
    """Settings of the listed runs whose metrics are stored; FileNotFoundError with the command that makes them where there is none."""
    found = _measured(resolution.runs(profile, paper, group))
    if not found:
        raise FileNotFoundError(f"No run of profile {profile!r} has stored metrics; make them with: make reproduce PROFILE={profile}")
    return found


def compared_runs(profile: str, paper: str = "all") -> list[dict]:
    """Settings of the measured runs that methods are compared by: the protocol's, and those on a vision transformer."""
    return _measured([run for group in COMPARED for run in resolution.runs(profile, paper, group)])


def simsiam_pairs(profile: str) -> dict[tuple[str, int], dict[str, dict[int, dict]]]:
    """Measured runs of VI-SimSiam and SimSiam, as its papers compare them: (data set, epochs) -> method -> seed -> settings.

    On every data set and at every length, by the profile's recipe for it; a method without a run there is absent. Where a set has VI-SimSiam in its
    form of 2022 alone, that is "vi_simsiam".
    """
    found: dict[tuple[str, int], dict[str, dict[int, dict]]] = {}
    for run in _measured([run for group in (resolution.PROTOCOL, "lengths", "datasets") for run in resolution.runs(profile, group=group)]):
        if run["method"] in ("vi_simsiam", "vi_simsiam_2022", "simsiam"):
            of = found.setdefault((run["dataset"], run["epochs"]), {})
            of.setdefault(run["method"].removesuffix("_2022"), {}).setdefault(run["seed"], run)
    return found


def _measured(listed: list[dict]) -> list[dict]:
    return [run for run in listed if artifacts.metrics_path(run["profile"], MEASURED_BY, resolution.run_name(run)).exists()]


def tuning(profile: str) -> pd.DataFrame:
    """What was tried before the runs: columns method, dataset, epochs, setting, value, used (by the profile), validation_knn_percent (NaN where not
    run), run, and chosen: the best of a method all of whose values are run.
    """
    rows = []
    for run in resolution.tuning_runs(profile):
        setting, name = "beta" if run["method"] == "beta_vae" else "learning_rate", resolution.run_name(run)
        found, used = artifacts.read_metrics(profile, MEASURED_BY, name), resolution.resolve(run["method"], profile, dataset=run["dataset"])
        rows.append({key: run[key] for key in ("method", "dataset", "epochs")} | {"setting": setting, "value": run[setting], "used": used[setting]}
                    | {"validation_knn_percent": 100 * found.value.iloc[0] if len(found) else np.nan, "run": name})  # fmt: skip
    frame = pd.DataFrame(rows, columns=["method", "dataset", "epochs", "setting", "value", "used", "validation_knn_percent", "run"])
    reached = frame.groupby("method").validation_knn_percent
    complete = reached.transform("count") == reached.transform("size")
    return frame.assign(chosen=complete & (reached.rank(ascending=False, method="first") == 1))


def unsearched(profile: str) -> list[str]:
    """The methods whose runs have values that nothing has chosen: the search before them is not whole, or chose another learning rate since."""
    tried = tuning(profile)
    followed = tried.chosen & ((tried.value == tried.used) | (tried.setting != "learning_rate"))
    return list(dict.fromkeys(tried.method[~tried.method.isin(tried.method[followed])]))


def mixed_precision(listed: list[dict]) -> str:
    """Which of these measured runs differ in precision from others of the same run but for the seed, in words: machines without bfloat16 train in
    float32. Empty where none does; a run that is listed twice counts once."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, run in {resolution.run_name(run): run for run in listed}.items():
        path = artifacts.run_dir(run["profile"], name) / "config.json"
        if run["epochs"] and path.exists():
            precision = artifacts.read_json(path, ("precision",))["precision"]
            found.setdefault(name.rsplit("-seed", 1)[0], {}).setdefault(precision, []).append(str(run["seed"]))
    mixed = {name: seeds for name, seeds in found.items() if len(seeds) > 1}
    told = "; ".join(
        f"{name}: " + ", ".join(f"{precision} for seed {' and '.join(which)}" for precision, which in seeds.items()) for name, seeds in mixed.items()
    )
    return f"Seeds of one run in unlike precision, as the machines were able: {told}." if told else ""


def must_beat(reference: str, dataset: str) -> bool:
    """Whether a run on this set must beat the reference row in k-NN accuracy before it says anything about κ, σ or a likelihood."""
    return reference in UNTRAINED or dataset.startswith(("cifar10", "imagenette"))


def gains(run: dict, listed: list[dict]) -> pd.DataFrame:
    """k-NN accuracy of a run minus that of an untrained network and of raw pixels: their stored scores, paired by test image, 95 % bootstrap.

    Columns: reference (of those among ``listed`` one with the run's backbone and seed, else the first), value, ci_low, ci_high, n, must_beat.
    """
    profile, test, rows = run["profile"], run["dataset"], []
    own = artifacts.read_scores(profile, resolution.run_name(run), test, ("knn_correct",))["knn_correct"].astype(float)
    for kind in (UNTRAINED, ("raw_pixels",)):
        same = [other for other in listed if other["method"] in kind and other["dataset"] == test]
        found = sorted(same, key=lambda other: (other["backbone"] != run["backbone"], other["seed"] != run["seed"]))
        if found:
            reference = found[0]["method"]
            gain = own - artifacts.read_scores(profile, resolution.run_name(found[0]), test, ("knn_correct",))["knn_correct"]
            row = {"reference": reference, "n": len(gain), "must_beat": must_beat(reference, test)}
            rows.append(row | evaluation.with_interval(np.mean, gain, draws=run["bootstrap_draws"]))
    return pd.DataFrame(rows, columns=["reference", "value", "ci_low", "ci_high", "n", "must_beat"])


def told_gains(run: dict, listed: list[dict]) -> list[str]:
    """``gains`` in words, a sentence each: whether the run has learned enough for its uncertainty to be tested."""
    from lib.plotting import method_style  # slow to import

    sentences = []
    for gain in gains(run, listed).itertuples():
        short = "**not learned more: its uncertainty is not tested (under-trained)**" if gain.must_beat else "not required on this set"
        sentences.append(
            f"{method_style(run['method']).label}, seed {run['seed']}, k-NN accuracy minus {method_style(gain.reference).label}: "
            f"{100 * gain.value:+.1f} points [{100 * gain.ci_low:+.1f}, {100 * gain.ci_high:+.1f}], {'learned more' if gain.ci_low > 0 else short}."
        )
    return sentences


def paired_differences(listed: list[dict], pairs: Sequence[tuple[str, str]], columns: dict[str, tuple[str, float]], draws: int) -> pd.DataFrame:
    """Mean of what is stored of each test image, of the first method of a pair minus the second: paired by seed and by image.

    listed: measured runs on one data set; columns: measure -> (name in the stored scores, factor). Returns method, minus, measure and what
    uncertainty.hierarchical_difference says, a row for each pair and measure.
    """
    stored: dict[str, dict] = {name: {} for pair in pairs for name in pair}  # method -> seed -> scores
    for run in [run for run in listed if run["method"] in stored]:
        stored[run["method"]][run["seed"]] = artifacts.read_scores(run["profile"], resolution.run_name(run), run["dataset"])
    rows = []
    for pair in pairs:
        for measure, (column, factor) in columns.items():
            sides = [{seed: [factor * table[column].astype(np.float64)] for seed, table in stored[method].items()} for method in pair]
            found = uncertainty.hierarchical_difference(np.mean, *sides, draws)
            rows.append({"method": pair[0], "minus": pair[1], "measure": measure} | found)
    return pd.DataFrame(rows)


def is_evidence(found: pd.DataFrame) -> bool:
    """Whether all gains that count, of all runs in ``found``, exclude zero; otherwise the runs are under-trained."""
    counting = found[found.must_beat.astype(bool)]
    return len(counting) > 0 and bool((counting.ci_low > 0).all())


def measure(run: Run) -> pd.DataFrame:
    """Embed and evaluate one run, write its metrics and per-image scores, and return the metrics rows.

    A run that is compared by the standard protocol goes through the whole battery; a tuning run (trained on train without its validation part)
    is measured by k-NN on that part alone, so that tuning never sees the test set; a run on one class by how it tells the others apart.
    """
    if run.settings["split"] == "fit":
        rows, scores = [_validation_accuracy(run)], None
    elif len(run.train.classes) == 1:
        rows, scores = _one_class_detection(run), None
    else:
        rows, scores = _battery(run, graded=_reads_more(run.settings, BY_ACCURACY))
    frame = run.write_metrics(rows, MEASURED_BY)
    if scores is not None:
        kept = scores if _reads_more(run.settings, SCORED_APART) else {name: scores[name] for name in RIGHT}
        if not _reads_more(run.settings, ("simvae",)):  # compared by their uncertainties too (32)
            kept |= {"uncertainty": scores["uncertainty"]}
        artifacts.write_scores(run.profile, run.name, run.settings["dataset"], kept)
        if run.profile == "standard" and _leaves_encoder(run.settings):
            write_encoder(run, frame)
    return frame


def _reads_more(settings: dict, groups: tuple[str, ...]) -> bool:
    """Whether a run is in the protocol, or in none of these groups, of which less is stored than the whole battery."""
    own = [run for group in groups for run in resolution.runs(settings["profile"], group=group)]
    return settings not in own or settings in resolution.runs(settings["profile"], group=resolution.PROTOCOL)


def missing_sets(runs: Sequence[dict]) -> list[str]:
    """Why sets cannot be loaded that these runs are trained on or asked about once they are trained, each once; what can be fetched is fetched."""
    needed = set()
    for run in runs:
        needed.add(run["dataset"])
        further = {*run["ood_near"], *run["ood_far"]} - needed  # whether a run is asked about them takes a look at all that its profile lists
        if further and run["split"] != "fit" and not resolution.ONE_CLASS.fullmatch(run["dataset"]) and _reads_more(run, BY_ACCURACY):
            needed |= further
    reasons = []
    for name in sorted({resolution.ONE_CLASS.sub(r"\g<name>", name).removeprefix("styled_") for name in needed}):
        try:
            data.load(name, "test", image_size=8)  # any size: it is not kept
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
        more["conditions"] = {name: run.embed(few, name, transform) for name, transform in conditions().items()}
    return evaluation.battery(run.embed(run.bank), run.embed(test), test.title, draws=run.settings["bootstrap_draws"], **more)


def _one_class_detection(run: Run) -> list[dict]:
    """AUROC, on the test set with all classes, of every uncertainty that needs no labels; positive: another class than the run was trained on.

    score: the method's own, its native quantities and those of ``uncertainties``, feature_norm, knn_distance, mahalanobis. Interval: bootstrap.
    """
    single = resolution.ONE_CLASS.fullmatch(run.settings["dataset"])
    if not single:
        raise ValueError(f"{run.train.title} has one class, {run.train.classes[0]!r}, so there is nothing to tell apart: give labels of two or more.")
    test = data.load(single["name"], "test", image_size=run.settings["image_size"])
    known, asked = (run.ask(images, getattr(run.method, "uncertainties", None)) for images in (run.train, test))
    scores = evaluation.unsupervised_uncertainties(known, asked) | {name: asked[name] for name in evaluation.native_scores(asked)}
    scores["mahalanobis"] = evaluation.mahalanobis_distance(known["features"])(asked["features"])
    scores.pop("kappa", None)  # its negative is the uncertainty
    other, draws = test.labels != int(single["label"]), run.settings["bootstrap_draws"] // 4
    return evaluation.ood_rows(scores, other, draws, ("ood_auroc",), evaluated_on=test.title, condition="one_class")


def _validation_accuracy(run: Run) -> dict:
    whole = data.load(run.settings["dataset"], "train", image_size=run.settings["image_size"])
    held_out = run.embed(whole.subset(data.train_validation_split(whole.labels)[1]), "validation")
    fitted = run.embed(run.train, "fit")
    right = evaluation.knn_predict(fitted["features"], fitted["label"], held_out["features"])[0] == held_out["label"]
    return {
        "evaluated_on": whole.name, "condition": "validation", "classifier": "knn", "metric": "accuracy", "value": right.mean(), "n": len(right),
    }  # fmt: skip


def probe_by_the_paper(runs: list[dict], notebook: str) -> None:
    """Top-1 and top-5 accuracy of the paper's linear probe (evaluation.linear_probes) for all runs at once, as metrics of ``notebook``.

    A run whose metrics are stored is left as it is.
    """
    together: dict[tuple, list[Run]] = {}
    for ready in map(Run, runs):
        if not is_measured(ready, notebook):
            together.setdefault((ready.train.checksum, ready.settings["backbone"], ready.settings["width"]), []).append(ready)
    for group in together.values():
        banks, test = [ready.embed(ready.bank) for ready in group], group[0].test()
        probes = evaluation.linear_probes([bank["features"] for bank in banks], [bank["label"] for bank in banks], device=training.best_device())
        for ready, probe in zip(group, probes, strict=True):
            probabilities = probe.probabilities(ready.embed(test)["features"])
            right = {"accuracy": probabilities.argmax(1) == test.labels, "top5_accuracy": evaluation.in_top5(probabilities, test.labels)}
            common = {"evaluated_on": test.title, "condition": "clean", "classifier": "linear_paper", "n": len(test)}
            draws = ready.settings["bootstrap_draws"]
            found = {metric: evaluation.with_interval(np.mean, values.astype(float), draws=draws) for metric, values in right.items()}
            ready.write_metrics([common | {"metric": metric} | row for metric, row in found.items()], notebook)


# ---------------------------------------------------------------------------------------------------------------- augmented training images
def embed_views(run: Run, views: int) -> tuple[data.ImageSet, list[evaluation.Embedded]]:
    """``condition_images`` training images (sample), and what the run says of ``views`` random views of each."""
    few = run.train.sample(run.settings["condition_images"])
    size, strengths, embedded = run.settings["image_size"], augmentations.recipe(run.settings["augmentation"]), []
    for i in range(views):
        generator = torch.Generator().manual_seed(training.seed_of(run.settings["seed"], "kappa views", i))
        augment = partial(augmentations.augment, size=size, strengths=strengths, generator=generator)
        embedded.append(run.embed(few, f"view_{i}", augment))
    return few, embedded


def kappa_of_views(run: Run, views: int = 8) -> tuple[data.ImageSet, np.ndarray]:
    """``condition_images`` training images (sample) and κ of random views of each, [views, N] (VI-SimSiam 2022, Table 1: 8 of every image)."""
    few, embedded = embed_views(run, views)
    return few, np.stack([view["kappa"] for view in embedded])


# ---------------------------------------------------------------------------------------------------------------- few labels
def fine_tuned(run: Run, labelled: data.ImageSet, test: data.ImageSet, epochs: int, learning_rate: float) -> evaluation.Embedded:
    """Label [N] and class probabilities [N, C] of ``test`` after fine-tuning a copy of the run's network; stored with the run."""
    folder = artifacts.run_dir(run.profile, run.name)

    def compute():
        found = evaluation.fine_tune(
            run.method, labelled, test, epochs, learning_rate, seed=run.settings["seed"], precision=run.settings["precision"],
            progress_path=folder / "progress.json", optimizer=run.settings["fine_tune_optimizer"],
        )  # fmt: skip
        return {"label": test.labels, "probabilities": found.astype(np.float32)}

    path = folder / "embeddings" / f"{test.name}-{test.split}-{len(test)}-fine_tuned_{len(labelled)}_e{epochs}_lr{learning_rate:g}.npz"
    key = {"run": run.hash, "labelled": labelled.checksum, "data": test.checksum, "epochs": epochs, "learning_rate": learning_rate}
    key |= {"optimizer": run.settings["fine_tune_optimizer"], "code": artifacts.code_hash(MEASURING)}
    return evaluation.embed_cached(path, key, compute)


def fine_tuning_search(run: Run, images: data.ImageSet, epochs: int, share: float = 1.0) -> dict[float, float]:
    """Validation accuracy of every learning rate of the profile's grid for fine-tuning on ``share`` of the labels, the same effort for all.

    One search a method: its seed-0 run, a quarter of the epochs, labels from ``images`` without their validation part, judged on that part. The
    test set is never seen. A rate with which the loss is no longer finite gets no image right: 0. A grid of one rate is not searched: NaN.
    """
    rates = run.settings["fine_tune_learning_rates"]
    if len(rates) == 1:
        return {rates[0]: np.nan}
    run = Run(run.settings | {"seed": 0}) if run.settings["seed"] else run
    fitted, held_out = data.train_validation_split(images.labels)
    labelled, held_out = images.subset(fitted[data.label_subset(images.labels[fitted], share)]), images.subset(held_out)
    found = dict.fromkeys(rates, 0.0)
    for rate in rates:
        with contextlib.suppress(training.TrainingStopped):
            table = fine_tuned(run, labelled, held_out, max(1, epochs // 4), rate)
            found[rate] = float(np.mean(table["probabilities"].argmax(1) == table["label"]))
    return found


def searched_rates(metrics: pd.DataFrame, profile: str) -> tuple[pd.DataFrame, str]:
    """The stored searches of fine-tuning's learning rate, and in words which ended at an end of the grid: validation accuracy in per cent, one row
    a search (trained_on, condition, method), one column a rate; empty where nothing was searched."""
    search = metrics[metrics.condition.str.endswith("_validation")]
    if search.empty:
        rates = resolution.profile_settings(profile)["fine_tune_learning_rates"]
        return pd.DataFrame(), f"This profile takes the rate {rates[0]:g} as given." if len(rates) == 1 else "No stored search."
    search = search.assign(learning_rate=search.score.str.removeprefix("learning_rate_").astype(float), percent=100 * search.value)
    table = search.pivot_table(index=["trained_on", "condition", "method"], columns="learning_rate", values="percent", sort=False).sort_index(axis=1)
    ends = {}  # methods may have grids of their own
    for (dataset, share, method), row in table.iterrows():
        tried = row.dropna().index
        if end := {tried[0]: "lowest", tried[-1]: "highest"}.get(row.idxmax()):
            ends.setdefault(end, []).append(f"{method} ({dataset}, {share.split('_')[1]})")
    named = "; ".join(f"the {end} for {', '.join(searches)}" for end, searches in ends.items())
    count = f"The best rate lies at an end of the grid for {sum(map(len, ends.values()))} of {len(table)} searches"
    return table, f"{count} ({named}): there a wider grid might find more, which would help those methods alone." if named else f"{count}."


def measure_few_labels(run: Run, notebook: str) -> pd.DataFrame:
    """Fine-tune and probe one run with each share of the labels, write metrics and per-image correctness, and return the metrics rows.

    Every method sees the same labelled images for the same seed, those of a smaller share among those of a larger one. Classifiers: fine_tuned
    (all layers; not for a method without weights), and on frozen features linear and knn (k = 20). Rows of condition "labels_<share>" hold the
    accuracy with its 95 % bootstrap interval over test images, nll and ece of the first two, the number of labelled images, epochs and learning
    rate; of "labels_<share>_validation", for seed 0, the search of the learning rate. Scores "<classifier>_<share>" [N] say which test images are
    right.
    """
    settings, test = run.settings, run.test()
    whole = run.embed(test)
    scores, rows = {"index": np.arange(len(test), dtype=np.int32), "label": test.labels.astype(np.int16)}, []
    for share, epochs in zip(settings["fine_tune_shares"], settings["fine_tune_epochs"], strict=True):
        common = {"condition": f"labels_{share:g}", "evaluated_on": test.title, "n": len(test)}
        labelled = run.train.subset(data.label_subset(run.train.labels, share, settings["seed"]))
        few = run.embed(labelled, common["condition"])
        probabilities = {"linear": evaluation.linear_probe(few["features"], few["label"]).probabilities(whole["features"])}
        predictions = {"knn": evaluation.knn_predict(few["features"], few["label"], whole["features"], k=min(20, len(labelled)))[0]}
        rows.append(common | {"metric": "labelled_images", "value": len(labelled)})
        if settings["method"] != "raw_pixels":
            search = fine_tuning_search(run, run.train, epochs, share)
            rate = max(search, key=search.get)
            probabilities["fine_tuned"] = fine_tuned(run, labelled, test, epochs, rate)["probabilities"]
            used = {"epochs": epochs, "learning_rate": rate}
            rows += [common | {"classifier": "fine_tuned", "metric": name, "value": value} for name, value in used.items()]
            tried = {"condition": f"labels_{share:g}_validation", "evaluated_on": run.train.name, "classifier": "fine_tuned", "metric": "accuracy"}
            if settings["seed"] == 0 and len(search) > 1:
                rows += [tried | {"score": f"learning_rate_{rate:g}", "value": value} for rate, value in search.items()]
        for classifier, shares in probabilities.items():
            calibration = _calibration(shares, test.labels).items()
            rows += [common | {"classifier": classifier, "metric": name, "value": value} for name, value in calibration]
        for classifier, prediction in (predictions | {name: shares.argmax(1) for name, shares in probabilities.items()}).items():
            right = scores[f"{classifier}_{share:g}"] = prediction == test.labels
            accuracy = evaluation.with_interval(np.mean, right.astype(float), draws=settings["bootstrap_draws"])
            rows.append(common | {"classifier": classifier, "metric": "accuracy"} | accuracy)
    artifacts.write_scores(run.profile, run.name, f"{settings['dataset']}_few_labels", scores)
    return run.write_metrics(rows, notebook)


def _calibration(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """nll and ece of class probabilities [N, C]."""
    measured = {"nll": uncertainty.negative_log_likelihood, "ece": uncertainty.expected_calibration_error}
    return {name: measure(probabilities.astype(np.float64), labels) for name, measure in measured.items()}


def measure_transfer(run: Run, dataset: str, notebook: str) -> pd.DataFrame:
    """Fine-tune a run on another set and test it there (ProSMin, §11.1), write metrics and per-image correctness, and return the metrics rows.

    ``transfer_images`` of train (sample), ``transfer_epochs`` epochs; the learning rate is chosen on a validation part of those images, by the
    run of seed 0. Rows of evaluated_on that set: accuracy with its 95 % bootstrap interval, nll, ece, images, epochs and learning rate.
    """
    settings, size = run.settings, run.settings["image_size"]
    train, test = (image_sets.with_channels(data.load(dataset, split, image_size=size), run.channels) for split in ("train", "test"))
    labelled = train.sample(settings["transfer_images"])
    epochs = settings["transfer_epochs"]
    search = fine_tuning_search(run, labelled, epochs)
    rate = max(search, key=search.get)
    probabilities = fine_tuned(run, labelled, test, epochs, rate)["probabilities"]
    right = probabilities.argmax(1) == test.labels
    common = {"condition": "transfer", "evaluated_on": test.title, "classifier": "fine_tuned", "n": len(test)}
    rows = [common | {"metric": "accuracy"} | evaluation.with_interval(np.mean, right.astype(float), draws=settings["bootstrap_draws"])]
    values = _calibration(probabilities, test.labels) | {"images": len(labelled), "epochs": epochs, "learning_rate": rate}
    rows += [common | {"metric": name, "value": value} for name, value in values.items()]
    artifacts.write_scores(run.profile, run.name, f"{dataset}_transfer", {"index": np.arange(len(test), dtype=np.int32), "fine_tuned_correct": right})
    return run.write_metrics(rows, notebook, dataset)


# ---------------------------------------------------------------------------------------------------------------- content and style
CLUSTERED_IMAGES = 10_000  # that the Gaussian mixture is fitted to
GROUP_VIEWS = 4


def measure_content(run: Run, notebook: str) -> pd.DataFrame:
    """Content in a representation (SimVAE, App. A.7.5): metrics of ``notebook`` on the test set, and the scores of its two classifiers.

    accuracy of mlp_paper (the paper's MLP probe) and of knn_chosen (Euclidean, k of 1 to 15 by a validation part of train, given as metric k);
    accuracy, ari and nmi of gmm (full covariances, fitted to CLUSTERED_IMAGES of train, without labels); variance_within: of views of one image
    (condition views) and of classes (condition classes), over the total variance.
    """
    images, labelled = run.test(), run.bank
    bank, test = run.embed(labelled), run.embed(images)
    common = {"evaluated_on": images.title, "condition": "clean", "n": len(images)}
    predictions = {"mlp_paper": factors.mlp_probe(bank["features"], bank["label"], test["features"], "paper", run.settings["seed"])}
    predictions["knn_chosen"], k = factors.knn_chosen(bank["features"], bank["label"], test["features"])
    rows, scores = [common | {"classifier": "knn_chosen", "metric": "k", "value": k}], {"index": np.arange(len(images), dtype=np.int32)}
    for classifier, predicted in predictions.items():
        right = scores[f"{classifier}_correct"] = predicted == test["label"]
        accuracy = evaluation.with_interval(np.mean, right.astype(float), draws=run.settings["bootstrap_draws"])
        rows.append(common | {"classifier": classifier, "metric": "accuracy"} | accuracy)
    classes = len(run.train.classes)
    fitted_to = bank["features"][labelled.places(CLUSTERED_IMAGES)]
    clustering = factors.cluster(fitted_to, test["features"], test["label"], classes, seed=run.settings["seed"])
    rows += [common | {"classifier": "gmm", "metric": name, "value": value} for name, value in clustering._asdict().items()]
    few, views = embed_views(run, GROUP_VIEWS)
    groups = {
        "classes": (test["features"], test["label"]),
        "views": (np.concatenate([view["features"] for view in views]), np.tile(np.arange(len(few)), GROUP_VIEWS)),
    }  # fmt: skip
    for condition, (features, group) in groups.items():
        within = factors.variance_within(features, group)
        rows.append(common | {"condition": condition, "metric": "variance_within", "value": within, "n": len(features)})
    artifacts.write_scores(run.profile, run.name, f"{run.settings['dataset']}_content", scores)
    return run.write_metrics(rows, notebook)


def measure_factors(run: Run, dataset: str, notebook: str) -> pd.DataFrame:
    """What a frozen representation tells of the content and of each style_factors of ``dataset``: the skill of an MLP probe, and chance.

    Rows of condition <factor> ("content" is the label): metric accuracy, or r2 for a numeric factor, and chance. The probe learns from
    ``factor_images`` of train and is tested on those of test (sample); a network that reads grey images sees them grey. Images without
    a label (-1) are left out.
    """
    parts = []
    for split, most in zip(("train", "test"), run.settings["factor_images"], strict=True):
        parts.append(data.load(dataset, split, image_size=run.settings["image_size"]).sample(most))
    features, rows = [run.embed(part)["features"] for part in parts], []
    for factor in ("content", *data.style_factors(parts[0])):
        labels = [part.labels if factor == "content" else part.extra[factor] for part in parts]
        given = [values >= 0 if values.dtype.kind == "i" else np.full(len(values), True) for values in labels]
        known, asked = (values[rows] for values, rows in zip(labels, given, strict=True))
        predicted = factors.mlp_probe(features[0][given[0]], known, features[1][given[1]], seed=run.settings["seed"])
        common = {"evaluated_on": parts[1].title, "condition": factor, "classifier": "mlp", "n": len(asked)}
        metric = "r2" if asked.dtype.kind == "f" else "accuracy"
        rows.append(common | {"metric": metric} | evaluation.with_interval(factors.skill, predicted, asked, draws=run.settings["bootstrap_draws"]))
        rows.append(common | {"metric": "chance", "value": factors.chance(known, asked)})
    return run.write_metrics(rows, notebook, dataset)


# ---------------------------------------------------------------------------------------------------------------- reconstruction and generation
def pixels_of(run: Run, images: data.ImageSet) -> Tensor:
    """What reconstructions of ``images`` are compared with, [N, C, S, S] in 0..1: as the run takes them."""
    fitted = fit(run.settings, run.channels)(images.batch(range(len(images))).float() / 255)
    return generation.target_pixels(run.settings, fitted)


def decoder_of(run: Run) -> nn.Module:
    """A VAE itself, or a decoder of the same form trained on the run's frozen features of its labelled images; stored with the run."""
    if isinstance(run.method, generation.VAE):
        return run.method.cpu()
    path, bank = artifacts.run_dir(run.profile, run.name) / "decoder.safetensors", run.bank
    features = run.embed(bank)["features"]
    if path.exists() and artifacts.read_tensors_info(path).get("run_hash") == run.hash:
        decoder = generation.Decoder(run.settings, features.shape[1], run.channels)
        training.fill(decoder, artifacts.read_tensors(path)[0], path)
        return decoder.eval()
    pixels = pixels_of(run, bank)
    if bank.is_sorted:  # the last of these validate the decoder
        order = np.random.default_rng(0).permutation(len(bank))
        features, pixels = features[order], pixels[order]
    decoder = generation.fit_decoder(features, pixels, run.settings, run.settings["seed"], run.settings["decoder_epochs"])
    artifacts.write_tensors(path, decoder.state_dict(), {"run": run.name, "run_hash": run.hash})
    return decoder


def measure_generation(run: Run, judge: Run, notebook: str) -> pd.DataFrame:
    """mse of reconstructed test images (SimVAE, Table 7; of each image in the scores), and Fréchet distances of generated and reconstructed ones.

    Generated: as many of each class as the test set has on average, from class-conditional Gaussians. ``judge`` is the run whose features the
    distance is taken in, named in the column score; train: the distance of as many training images, the least to be expected. The FID besides,
    where the weights of its network are at hand (data.inception_weights).
    """
    bank, test = run.bank, run.test()
    decoder, known, asked, pixels = decoder_of(run), run.embed(bank), run.embed(test), pixels_of(run, test)
    latents, _ = generation.sample_classes(known["features"], known["label"], len(pixels) // len(run.train.classes), run.settings["seed"])
    pictures = {
        "generated": generation.decode(decoder, latents), "reconstructed": generation.decode(decoder, asked["features"]),
        "train": pixels_of(run, bank.subset(np.random.default_rng(0).permutation(len(bank))[: len(pixels)])),
    }  # fmt: skip

    def judged(images: Tensor) -> np.ndarray:
        whole = image_sets.to_bytes(images)
        found = data.ImageSet("pictures", "test", whole, np.zeros(len(whole), np.int64), ["picture"])
        return evaluation.embed(judge.method, found, transform=fit(judge.settings, judge.channels))["features"]

    common, real = {"evaluated_on": test.title, "n": len(pixels)}, judged(pixels)
    error = (pictures["reconstructed"] - pixels).square().flatten(1).mean(1).numpy()  # [N]
    mse = evaluation.with_interval(np.mean, error, draws=run.settings["bootstrap_draws"])
    rows = [common | {"condition": "reconstructed", "metric": "mse"} | mse]
    for condition, images in pictures.items():
        distance = factors.frechet_distance(judged(images), real)
        rows.append(common | {"condition": condition, "metric": "frechet_distance", "score": judge.name, "value": distance})
    if weights := data.inception_weights():
        found = generation.fid(pictures, pixels, weights)
        rows += [common | {"condition": condition, "metric": "fid", "value": value} for condition, value in found.items()]
    artifacts.write_scores(run.profile, run.name, f"{run.settings['dataset']}_reconstruction", {"squared_error": error.astype(np.float32)})
    return run.write_metrics(rows, notebook)


# ---------------------------------------------------------------------------------------------------------------- committed encoders
def _leaves_encoder(settings: dict) -> bool:
    """A method has one committed encoder: of its run that is compared, seed 0; not of shorter runs, or on other data."""
    compared = [run for group in COMPARED for run in resolution.runs(settings["profile"], group=group)]
    return settings["seed"] == 0 and settings["epochs"] > 0 and settings in compared


def write_encoder(run: Run, metrics: pd.DataFrame) -> Path:
    """What ``embed`` needs of the run's method, in float16 (at most 1.5 MiB), with a model card beside it."""
    state = run.method.state_dict()
    needed = {name: value for name, value in state.items() if name.split(".")[0] in run.method.embeds_with}
    kept = {name: value.half() if value.is_floating_point() else value for name, value in needed.items()}
    path = artifacts.encoder_path(run.settings["method"], run.profile)
    settings = resolution.trained_with(run.settings)
    info = {"run": run.name, "run_hash": run.hash, "channels": run.channels, "classes": run.train.classes, "settings": settings}
    size = sum(value.nbytes for value in kept.values())
    if size > ENCODER_BYTES:
        raise ValueError(f"The encoder of {run.name} takes {size} bytes, more than {ENCODER_BYTES}; commit a smaller network.")
    artifacts.write_tensors(path, kept, info)
    artifacts.write_text(path.with_suffix(".md"), model_card(info, {"title": run.train.title, "images": len(run.train)}, metrics))
    spread = feature_spread(run.embed(run.train)["features"], run.embed(run.test())["features"])
    artifacts.write_npz(path.with_suffix(".npz"), run_hash=np.array(run.hash), **spread)
    return path


def model_card(info: dict, trained_on: dict, metrics: pd.DataFrame) -> str:
    """The card of a committed encoder in Markdown; no weights are needed.

    info: what the encoder's file says of itself. trained_on: title and number of images, as in the run's config.json. metrics: the run's stored
    battery; an out-of-distribution set that it was not measured on has no row.
    """
    settings, rows = info["settings"], []
    name, size, terms = settings["method"], settings["image_size"], data.terms(settings["dataset"])
    native, own = methods.own_uncertainty(name)
    clean, foreign = metrics[metrics.condition == "clean"], metrics[(metrics.metric == "ood_auroc") & (metrics.score == "uncertainty")]
    for classifier, words in (("linear", "linear probe"), ("knn", "k-NN")):
        (accuracy,) = clean[(clean.metric == "accuracy") & (clean.classifier == classifier)].itertuples()
        rows.append(f"| accuracy, {words} | {accuracy.value:.1%} [{accuracy.ci_low:.1%}, {accuracy.ci_high:.1%}] |")
    right = clean[(clean.metric == "correctness_auroc") & (clean.classifier == "linear")].set_index("score")
    for score, words in (("uncertainty", own), ("max_softmax", "the probe's maximum softmax (trivial)")):
        rows.append(f"| AUROC, right or wrong (linear probe), by {words} | {_with_interval(right.loc[score])} |")
    for _, row in foreign.iterrows():
        rows.append(f"| AUROC, {row.condition.replace('_ood', '')} OOD ({row.evaluated_on}), by {own} | {_with_interval(row)} |")
    for _, row in clean[clean.metric == "effective_rank"].iterrows():
        rows.append(f"| effective rank of the features | {row.value:.1f} |")
    limits = [f"One run, one seed, {size} px; what is not in the table was not measured.", "Not for decisions about people."]
    if not native:
        limits.insert(0, "It has no uncertainty of its own: the norm of the features stands in.")
    if name == "vje":
        limits.insert(0, "The formulation is this repository's own: the paper's text was not at hand.")
        limits.insert(1, "Its likelihood, another score, is measured in notebook 60.")
    if name in TOLD_BADLY:
        limits.insert(0, f"Its features hardly tell {TOLD_BADLY[name]} from photographs: that images resemble its training set says little.")
    if surer := list(foreign[foreign.ci_high < 0.5].evaluated_on):
        limits.insert(0, f"It is surer of {' and '.join(surer)} than of its own test images (AUROC below 0.5): it does not warn of foreign images.")
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


def write_cards(profile: str = "standard") -> list[Path]:
    """Write the card of every committed encoder again, from the stored config and metrics of its run."""
    cards = []
    for path in sorted(artifacts.encoder_path("", profile).parent.glob("*.safetensors")):
        info = artifacts.read_tensors_info(path, ENCODER_INFO)
        config = artifacts.read_json(artifacts.run_dir(profile, info["run"]) / "config.json")
        cards.append(path.with_suffix(".md"))
        artifacts.write_text(cards[-1], model_card(info, config["data"], artifacts.read_metrics(profile, MEASURED_BY, info["run"])))
    return cards


# ---------------------------------------------------------------------------------------------------------------- likeness to the training set
def feature_spread(train: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    """What is kept of the features [M, D] of a training set, so that other images can be compared with it when it is not at hand.

    mean [D] and precision [D, D] (inverse covariance) of evaluation.fitted_gaussian, and the percentiles 0 to 100 of the squared Mahalanobis
    distance ``(x - mean)ᵀ precision (x - mean)`` over test images of the same set (Lee et al. 2018, one Gaussian for all classes).
    """
    gaussian = evaluation.fitted_gaussian(train)
    spread = {"mean": gaussian.location_.astype(np.float32), "precision": gaussian.precision_.astype(np.float32)}
    return spread | {"percentiles": np.percentile(_distances(test, spread), np.arange(101)).astype(np.float32)}


def _distances(features: np.ndarray, spread: dict[str, np.ndarray]) -> np.ndarray:
    away = features.astype(np.float64) - spread["mean"]
    return np.einsum("nd,de,ne->n", away, spread["precision"].astype(np.float64), away)


def unlikeness(features: np.ndarray, spread: dict[str, np.ndarray]) -> float:
    """How far images [N, D] are from a training set: the Kolmogorov-Smirnov distance (0 to 1) between their distances and its test images'.

    Above UNLIKE they do not resemble it: at some distance the shares of images beyond it differ by more than that.
    """
    known = spread["percentiles"].astype(np.float64)
    return float(scipy.stats.ks_1samp(_distances(features, spread), lambda x: np.interp(x, known, np.arange(101) / 100)).statistic)


def encoders() -> dict[str, Path]:
    """The committed encoders by method: those of the results folder, or where it has none those that came with the code."""
    for results in (artifacts.RESULTS, artifacts.ROOT / "results"):
        if found := sorted((results / "standard" / "encoders").glob("*.safetensors")):
            return {path.stem: path for path in found}
    return {}


def load(name: str) -> nn.Module:
    """The committed encoder of a method, in float32 and evaluation mode, ready to ``embed`` float images [B, C, H, W] in 0..1.

    Only the parts that embedding needs are there, so that the loss cannot be evaluated; ``settings`` are those it was trained with. ValueError for
    an unknown name, with the names there are, and from ``embed`` for images of another size, number of channels or range than it was trained on.
    """
    there = encoders()
    if name not in there:
        raise ValueError(f"There is no committed encoder {name!r}; there are {sorted(there)}.")
    path = there[name]
    tensors, info = artifacts.read_tensors(path, ENCODER_INFO)
    method = methods.build(info["settings"], info["channels"])
    tensors = {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
    training.fill(method, tensors, path, method.embeds_with)
    for part in [name for name, _ in method.named_children() if name not in method.embeds_with]:
        delattr(method, part)  # untrained, it would answer all the same
    method.settings = info["settings"]
    backbone = next(module for module in method.modules() if hasattr(module, "features"))
    backbone.register_forward_pre_hook(partial(_refuse_other_images, info))
    return method.eval()


def _refuse_other_images(info: dict, backbone: nn.Module, given: tuple[Tensor]) -> None:
    (images,), channels, size = given, info["channels"], info["settings"]["image_size"]
    trained = f"{info['settings']['method']} was trained on {channels} channels and {size} x {size} pixels, as floats in 0..1"
    if images.ndim != 4 or images.shape[1:] != (channels, size, size) or not images.is_floating_point():
        found = f"{images.dtype} of shape {tuple(images.shape)}".removeprefix("torch.")
        mend = "lib.protocol.fit(encoder.settings, channels) makes floats [B, C, H, W] in 0..1 fit."
        raise ValueError(f"These images are {found}; {trained}: {mend}")
    low, high = (value.item() for value in images.aminmax())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # NaN too
        raise ValueError(f"These images go from {low:.3g} to {high:.3g}; {trained}: divide bytes by 255, and leave out any normalisation.")
