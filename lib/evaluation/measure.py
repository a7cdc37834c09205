"""The evaluation suite of one run: its data sets, its conditions and the files it leaves.

``measure_run`` embeds the data sets of a trained run, evaluates the embeddings, and stores metrics,
scores of each image and the committed encoder. The measures themselves are in lib.evaluation.suite.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, partial

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from lib import training
from lib.data import sources, views
from lib.data.sets import ImageSet, is_copied, train_validation_split
from lib.evaluation import encoders, results
from lib.evaluation.embed import (
    Embedded,
    Transform,
    conditions,
    embed_cached,
    embed_images,
    input_transform,
    native_names,
)
from lib.evaluation.probes import knn_predict, mahalanobis_distance, paper_probe
from lib.evaluation.suite import (
    evaluate,
    metrics_row,
    ood_rows,
    unsupervised_uncertainties,
    value_rows,
)
from lib.evaluation.uncertainty import effective_rank, top5_correct
from lib.methods.base import Embedding
from lib.runs import settings as run_settings
from lib.runs import store
from lib.runs.store import SUITE

# The scores that are read of runs of other groups.
READ_OF_OTHERS = ("index", "linear_correct", "linear_top5_correct", "knn_correct")
# Methods whose paper has a table of top-5 accuracy: their top-5 correctness is stored per image.
WITH_TOP5 = ("vi_simsiam", "vi_simsiam_2022", "simsiam")
# These leave an encoder of each of VI-SimSiam 2022's own sets too
ON_OTHER_DATA = ("vi_simsiam_2022", "simsiam")


# ---------------------------------------------------------------------------------------- one run
class Run:
    """A finished run with its data and its network.

    settings: as resolved; name, profile, hash: of the run; train: its training images; channels: of
    the images it takes.

    Example:
        >>> run = Run(settings.resolve("vi_simsiam", "quick"))
        >>> kappa = run.embed(run.test())["kappa"]
    """

    def __init__(self, settings: dict):
        self.settings = settings
        self.name = run_settings.run_name(settings)
        self.profile = settings["profile"]
        self.train = training.training_images(settings)
        self.hash = run_settings.run_hash(settings, self.train.checksum)
        self.channels = self.train.images.shape[3]

    @cached_property
    def method(self) -> nn.Module:
        """The trained network.

        Without its weights it is the committed encoder, if that is of exactly this run. (Its
        weights are float16: the third digit differs.)
        """
        if self._has_weights():
            return training.load_trained(self.settings, self.channels)
        if self._has_encoder():
            return encoders.load(encoders.name_of(self.settings)).method
        raise FileNotFoundError(
            f"Run {self.name} has no weights here that were trained with these settings and data; "
            f"train it with: make reproduce PROFILE={self.profile}"
        )

    @property
    def is_available(self) -> bool:
        """Whether there is a ``method``."""
        return "method" in vars(self) or self._has_weights() or self._has_encoder()

    def _has_weights(self) -> bool:
        return training.is_finished(self.profile, self.name, self.hash)

    def _has_encoder(self) -> bool:
        path = store.encoder_path(encoders.name_of(self.settings))
        if not path.exists():
            return False
        return store.read_tensors_info(path, encoders.INFO)["run_hash"] == self.hash

    @property
    def bank(self) -> ImageSet:
        """The labelled images that probe and k-NN learn from.

        These are all of train, or ``bank_images`` of it (sample).
        """
        count = self.settings["bank_images"]
        if 0 < count < len(self.train):
            return self.train.sample(count)
        return self.train

    def test(self) -> ImageSet:
        """The test split of the set that the run was trained on."""
        test = self.other(self.settings["dataset"])
        check_classes(self.train, test)
        return test

    def other(self, name: str) -> ImageSet:
        """The test split of any set."""
        return sources.load(name, "test", image_size=self.settings["image_size"])

    def embed(
        self, images: ImageSet, condition: str = "clean", transform: Transform | None = None
    ) -> Embedded:
        """The embedding of ``images`` under ``condition``: stored, or else computed and stored.

        transform: what the condition does to a batch of fitted images. A part of a set has a file
        of its own. Of parts of one size under one condition the latest is stored.
        """

        def compute() -> Embedded:
            return self.embed_unstored(images, transform=transform)

        if self.settings["method"] == "raw_pixels":
            return compute()
        name = f"{images.name}-{images.split}-{len(images)}-{condition}.npz"
        path = store.run_dir(self.profile, self.name) / "embeddings" / name
        key = {
            "run": self.hash,
            "data": images.checksum,
            "condition": condition,
            "version": run_settings.EVALUATION_VERSION,
        }
        return embed_cached(path, key, compute)

    def embed_unstored(
        self,
        images: ImageSet,
        embed: Callable[[Tensor], Embedding] | None = None,
        transform: Transform | None = None,
    ) -> Embedded:
        """The embedding of images that are needed once; embed: in place of the method's own."""
        fit = input_transform(self.settings, self.channels)

        def fit_and_transform(batch: Tensor) -> Tensor:
            fitted = fit(batch)
            return transform(fitted) if transform else fitted

        embedded = embed_images(self.method, images, transform=fit_and_transform, embed=embed)
        not_finite = [name for name, values in embedded.items() if not np.isfinite(values).all()]
        if not_finite:
            raise ValueError(
                f"{self.name} has diverged: of {images.name} its {', '.join(not_finite)} are not "
                "finite. Train it again with a smaller learning_rate."
            )
        return embedded

    def write_metrics(self, rows: list[dict], part: str) -> pd.DataFrame:
        """Store metrics rows as those of a part of the suite, and return them as a table."""
        return store.write_metrics(
            self.profile,
            part,
            self.name,
            rows,
            run_hash=self.hash,
            evaluation_hash=run_settings.evaluation_hash(self.settings),
        )


# ------------------------------------------------------------------------------------- data sets
def check_classes(train: ImageSet, test: ImageSet) -> None:
    """ValueError where the two splits do not have the same classes in the same order."""
    differing = set(test.classes) ^ set(train.classes)
    if differing:
        raise ValueError(
            f"Train and test of {train.name} differ in the classes {sorted(differing)[:5]}, so "
            "that their numbers mean different things; give both splits the same folders, or the "
            "same classes in their files."
        )
    if list(test.classes) != list(train.classes):
        raise ValueError(
            f"Train and test of {train.name} have their classes in another order, "
            f"{train.classes[:3]} and {test.classes[:3]}, so that a label means another class in "
            "each; give both files the same order, and labels by it."
        )


def check_several(images: ImageSet) -> None:
    """ValueError where a set has one class, or one image of each class."""
    if len(images.classes) == 1:
        raise ValueError(
            f"{images.title} has one class, {images.classes[0]!r}, so there is nothing to "
            "classify: give labels of two or more."
        )
    if len(images) and np.bincount(images.labels).max() == 1:
        raise ValueError(
            f"{images.title} has one image of each of its {len(images.classes)} classes, so that a "
            "probe has nothing to be validated on: give two or more images of a class."
        )


def missing_sets(runs: Sequence[dict]) -> list[str]:
    """Why data sets that these runs are trained on cannot be loaded, each reason once.

    What can be fetched is fetched. A set of one's own must also be one that can be measured.
    """

    def check(name: str, test: ImageSet) -> None:
        if name not in sources.DATASETS:
            _check_own_set(name, test)

    return _not_loaded({run["dataset"] for run in runs}, check)


def missing_other_sets(runs: Sequence[dict]) -> list[str]:
    """Why other sets, on which these runs detect OOD images, cannot be loaded, each reason once.

    A run goes without the measures on such a set.
    """
    return _not_loaded(_other_sets(runs))


def _not_loaded(
    names: Iterable[str], check: Callable[[str, ImageSet], None] | None = None
) -> list[str]:
    """Why sets cannot be loaded, or are refused by ``check``."""
    reasons = []
    for name in sorted({_plain_set(name) for name in names}):
        try:
            test = sources.load(name, "test", image_size=8)  # any size: it is not kept
            if check:
                check(name, test)
        except (FileNotFoundError, ValueError) as error:
            reasons.append(str(error))
    return reasons


def _other_sets(runs: Sequence[dict]) -> set[str]:
    needed: set[str] = set()
    for run in runs:
        others = {*run["ood_near"], *run["ood_far"]} - needed
        is_tuning = run["split"] == "fit"
        is_one_class = run_settings.ONE_CLASS.fullmatch(run["dataset"])
        # _is_graded reads all runs of a profile, so it is called only where it matters.
        if others and not is_tuning and not is_one_class and _is_graded(run):
            needed |= others
    return needed - {run["dataset"] for run in runs}


def _plain_set(name: str) -> str:
    """The set that a class of it, or a styled version, is made from. A folder is its own set."""
    if (store.default_data_dir() / name).is_dir():
        return name
    return run_settings.ONE_CLASS.sub(r"\g<name>", name).removeprefix("styled_")


def _check_own_set(name: str, test: ImageSet) -> None:
    """ValueError for a set of one's own that cannot be measured: before training, not after it."""
    test.images[np.arange(len(test))]  # an error for an unreadable image
    train = sources.load(name, "train", image_size=8)
    check_classes(train, test)
    check_several(train)


def copied_images(runs: Sequence[dict]) -> pd.DataFrame:
    """How many test images of one's own sets are copies of training images.

    Columns: dataset, test_images, copies; a row for each set that has any.
    """
    rows = []
    names = {_plain_set(run["dataset"]) for run in runs}
    for name in sorted(names - set(sources.DATASETS)):
        test = sources.load(name, "test", image_size=32)
        copies = int(is_copied(test, sources.load(name, "train", image_size=32)).sum())
        if copies:
            rows.append({"dataset": name, "test_images": len(test), "copies": copies})
    return pd.DataFrame(rows, columns=["dataset", "test_images", "copies"])


# -------------------------------------------------------------------------------- what is here
def is_measured(run: Run, part: str) -> bool:
    """Whether a part of the suite is stored of exactly this run, measured as it is today.

    Without the run's weights they cannot be taken again, and those that are stored count; their
    rows name the commit that took them.
    """
    stored = store.read_metrics(run.profile, part, run.name)
    if stored.empty or (stored.run_hash != run.hash).any():
        return False
    current = run_settings.evaluation_hash(run.settings)
    if (stored.evaluation_hash == current).all():
        return True
    return not training.is_finished(run.profile, run.name, run.hash)


def available(runs: Iterable[dict]) -> Iterator[Run]:
    """Those of these runs whose data and network are here, each read when it is reached."""
    for settings in runs:
        folder = store.run_dir(settings["profile"], run_settings.run_name(settings))
        files = [folder / "model.safetensors", store.encoder_path(encoders.name_of(settings))]
        if not any(path.exists() for path in files):  # its data need not be read
            continue
        if settings["dataset"] in run_settings.absent_sets(settings["profile"]):
            continue
        run = Run(settings)
        if run.is_available:
            yield run


def _is_compared(settings: dict) -> bool:
    """Whether methods are compared by this run, or no group lists it (a run of one's own)."""
    profile = settings["profile"]
    if settings in results.listed_to_compare(profile):
        return True
    return settings not in run_settings.runs(profile)


def _is_graded(settings: dict) -> bool:
    """Whether a run is also measured on other sets and under graded conditions.

    This is so of compared runs, and of SimVAE's comparison on the same data.
    """
    if _is_compared(settings):
        return True
    usual = run_settings.profile_settings(settings["profile"])["dataset"]
    return settings["dataset"] == usual and _is_of_simvaes_comparison(settings)


def _is_of_simvaes_comparison(settings: dict) -> bool:
    return settings in run_settings.runs(settings["profile"], group="simvae")


def _leaves_encoder(settings: dict) -> bool:
    """Whether the weights of a run are committed: of seed 0, of compared methods and ON_OTHER_DATA.

    On other data it is the longest training so far.
    """
    if settings["seed"] or not settings["epochs"]:
        return False
    if settings in results.listed_to_compare(settings["profile"]):
        return True
    if settings["method"] not in ON_OTHER_DATA:
        return False
    if not run_settings.is_usual_at_any_length(settings):
        return False
    path = store.encoder_path(encoders.name_of(settings))
    if not path.exists():
        return True
    return settings["epochs"] >= store.read_tensors_info(path, encoders.INFO)["settings"]["epochs"]


# -------------------------------------------------------------------------------------- measuring
def measure_run(run: Run) -> pd.DataFrame:
    """Embed and evaluate one run, write its metrics and scores, and return the metrics rows.

    A run that methods are compared by goes through the whole suite, most others through its part on
    the clean test set. A tuning run, trained on train without its validation part, is measured by
    k-NN on that part only, so that tuning never sees the test set. A run on one class is measured
    by how well it detects the other classes.

    Example:
        settings = resolve("simsiam", "quick", seed=3)
        training.train(settings)
        metrics = measure_run(Run(settings))
    """
    if run.settings["split"] == "fit":
        return run.write_metrics(_validation_rows(run), SUITE)
    if len(run.train.classes) == 1:
        return run.write_metrics(_one_class_detection(run), SUITE)
    rows, scores = _suite(run, graded=_is_graded(run.settings))
    frame = run.write_metrics(rows, SUITE)
    kept = _kept_scores(run.settings, scores)
    store.write_scores(run.profile, run.name, run.settings["dataset"], kept)
    if run.profile == "standard" and _leaves_encoder(run.settings):
        encoders.write(run, frame)
    return frame


def _suite(run: Run, graded: bool) -> tuple[list[dict], Embedded]:
    """The suite on the test set, and if ``graded`` on other sets and under graded conditions."""
    test = run.test()
    near_ood = {}
    far_ood = {}
    changed = {}
    if graded:
        near_ood = _embed_others(run, run.settings["ood_near"])
        far_ood = _embed_others(run, run.settings["ood_far"])
        few = test.sample(run.settings["condition_images"])
        for name, transform in conditions().items():
            changed[name] = run.embed(few, name, transform)
    return evaluate(
        run.embed(run.bank),
        run.embed(test),
        evaluated_on=test.title,
        near_ood=near_ood,
        far_ood=far_ood,
        conditions=changed,
        draws=run.settings["bootstrap_draws"],
    )


def _embed_others(run: Run, names: Sequence[str]) -> dict[str, Embedded]:
    """Embeddings of other test sets by name; one that cannot be loaded is a warning."""
    embedded = {}
    for name in names:
        try:
            images = run.other(name)
        except FileNotFoundError as error:
            warnings.warn(f"{name} is left out of the OOD measures: {error}", stacklevel=2)
        else:
            embedded[name] = run.embed(images)
    return embedded


def _kept_scores(settings: dict, scores: Embedded) -> Embedded:
    """The scores that are stored: all of compared runs and on other data sets, few of others."""
    on_other_data = settings in run_settings.runs(settings["profile"], group="datasets")
    if _is_compared(settings) or on_other_data:
        kept = dict(scores)
    else:
        kept = {name: scores[name] for name in READ_OF_OTHERS}
    if settings["method"] not in WITH_TOP5:
        del kept["linear_top5_correct"]
    if _is_of_simvaes_comparison(settings):
        is_trivial = np.allclose(scores["uncertainty"], -scores["feature_norm"])
        if not is_trivial:
            kept["uncertainty"] = scores["uncertainty"]
    return kept


def _one_class_detection(run: Run) -> list[dict]:
    """AUROC of every uncertainty that needs no labels; positive: another class than trained on.

    It is taken on the test set with all classes. score: the method's own, its native quantities and
    those of ``uncertainties``, feature_norm, knn_distance, mahalanobis. Interval: bootstrap.
    """
    single = run_settings.ONE_CLASS.fullmatch(run.settings["dataset"])
    if not single:
        check_several(run.train)
    test = sources.load(single["name"], "test", image_size=run.settings["image_size"])
    embed = getattr(run.method, "uncertainties", None)
    trained = run.embed_unstored(run.train, embed)
    embedded = run.embed_unstored(test, embed)
    scores = unsupervised_uncertainties(trained, embedded)
    for name in native_names(embedded):
        scores[name] = embedded[name]
    distance = mahalanobis_distance(trained["features"])
    scores["mahalanobis"] = distance(embedded["features"])
    scores.pop("kappa", None)  # its negative is the uncertainty
    return ood_rows(
        scores,
        outside=test.labels != int(single["label"]),
        draws=run.settings["bootstrap_draws"] // 4,
        names=("ood_auroc",),
        evaluated_on=test.title,
        condition="one_class",
    )


def _validation_rows(run: Run) -> list[dict]:
    """k-NN accuracy and effective rank on the validation part of train."""
    whole = sources.load(run.settings["dataset"], "train", image_size=run.settings["image_size"])
    _, held_out = train_validation_split(whole.labels)
    validation = run.embed(whole.subset(held_out), "validation")
    fitted = run.embed(run.train, "fit")
    predicted, _ = knn_predict(fitted["features"], fitted["label"], validation["features"])
    accuracy = np.mean(predicted == validation["label"])
    common = {
        "evaluated_on": whole.name,
        "condition": "validation",
        "n": len(validation["label"]),
    }
    rank = effective_rank(validation["features"])
    return [
        *value_rows({"accuracy": accuracy}, classifier="knn", **common),
        *value_rows({"effective_rank": rank}, **common),
    ]


def measure_paper_probe(run: Run) -> list[dict]:
    """Top-1 and top-5 accuracy of the linear probe that VI-SimSiam 2022 describes."""
    bank = run.embed(run.bank)
    test = run.test()
    probe = paper_probe(bank["features"], bank["label"], device=training.best_device())
    probabilities = probe.probabilities(run.embed(test)["features"])
    top1 = probe.classes[probabilities.argmax(axis=1)] == test.labels
    top5 = top5_correct(probabilities, test.labels, probe.classes)
    columns = {"evaluated_on": test.title, "condition": "clean", "classifier": "linear_paper"}
    draws = run.settings["bootstrap_draws"]
    return [
        metrics_row("accuracy", np.mean, top1, draws=draws, **columns),
        metrics_row("top5_accuracy", np.mean, top5, draws=draws, **columns),
    ]


# --------------------------------------------------------------------- views of training images
def embed_views(run: Run, count: int) -> tuple[ImageSet, list[Embedded]]:
    """``condition_images`` training images (sample), and embeddings of ``count`` views of each.

    Example:
        images, embedded = embed_views(Run(settings), count=2)
        embedded[0]["features"]  # of the first view of each image, [N, D]
    """
    few = run.train.sample(run.settings["condition_images"])
    strengths = views.recipe(run.settings["augmentation"])
    embedded = []
    for i in range(count):
        seed = training.seed_of(run.settings["seed"], "kappa views", i)
        augment = partial(
            views.augment,
            size=run.settings["image_size"],
            strengths=strengths,
            generator=torch.Generator().manual_seed(seed),
        )
        embedded.append(run.embed(few, f"view_{i}", augment))
    return few, embedded


def kappa_of_views(run: Run, count: int) -> tuple[ImageSet, np.ndarray]:
    """``condition_images`` training images (sample), and κ of random views of each [views, N].

    Example:
        images, kappa = kappa_of_views(Run(settings), count=8)  # kappa: [8, N]
    """
    few, embedded = embed_views(run, count)
    return few, np.stack([view["kappa"] for view in embedded])
