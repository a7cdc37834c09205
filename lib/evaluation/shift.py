"""Test data unlike the training data: the 15 common corruptions, and other data sets."""

import contextlib
import random
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from lib.data import views
from lib.data.sets import ImageSet, to_bytes
from lib.evaluation.embed import Embedded, native_scores
from lib.evaluation.measure import Run, is_measured
from lib.evaluation.probes import Probe, linear_probe, mahalanobis_distance
from lib.evaluation.suite import ood_rows, unsupervised_uncertainties
from lib.evaluation.uncertainty import (
    UndefinedStatistic,
    rank_correlation_per_image,
    with_interval,
)
from lib.runs import store

SEVERITIES = (1, 2, 3, 4, 5)
FAMILIES = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic", "pixelate", "jpeg_compression"),
}
CORRUPTIONS = sum(FAMILIES.values(), ())
# The part of a notebook's metrics that holds the rank correlations with the severity only.
SEVERITY = "severity"


# ------------------------------------------------------------------------------------- corruptions
@cache
def _transforms() -> dict[str, type]:
    """torch-uncertainty's corruptions by name."""
    from torch_uncertainty.transforms.corruption import corruption_transforms  # slow to import

    transforms = {}
    for transform in corruption_transforms:
        words = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=JPEG)(?=C)", "_", transform.__name__)
        transforms[words.lower()] = transform
    if set(transforms) != set(CORRUPTIONS):
        raise ImportError(
            f"torch-uncertainty has the corruptions {sorted(transforms)}, expected "
            f"{sorted(CORRUPTIONS)}: install the pinned version."
        )
    return transforms


def corrupted(
    images: ImageSet, corruption: str, severity: int, show_progress: bool = False
) -> ImageSet:
    """The same images under one of the 15 corruptions of ImageNet-C, by torch-uncertainty.

    Hendrycks & Dietterich 2019. corruption: one of CORRUPTIONS; severity: 1 to 5. Each image has
    random numbers of its own, which depend on corruption, severity and its place in the set only.
    The strengths are ImageNet-C's at every size of images (CIFAR-10-C has weaker ones). Grey images
    are corrupted as three equal channels and made grey again. ValueError for an unknown corruption
    or severity.

    Example:
        >>> foggy = corrupted(data.load("cifar10", "test"), "fog", severity=3)
    """
    if corruption not in CORRUPTIONS or severity not in SEVERITIES:
        raise ValueError(
            f"Unknown corruption {corruption!r} of severity {severity!r}; choose one of "
            f"{', '.join(CORRUPTIONS)} and 1 to 5."
        )
    name = f"{images.name}-{corruption}_{severity}"
    seed = CORRUPTIONS.index(corruption) * len(SEVERITIES) + severity
    pixels = np.empty(images.images.shape, np.uint8)
    with _random_states_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the library's own, of numpy's
        transform = _transforms()[corruption](severity)
        places = range(len(images))
        for place in tqdm(places, desc=name, unit="image", disable=not show_progress, leave=False):
            # torch.manual_seed also seeds GPUs, which takes longer than the corruption.
            torch.default_generator.manual_seed(1000 * place + seed)
            random.seed(1000 * place + seed)
            if hasattr(transform, "rng"):
                transform.rng = np.random.default_rng([place, seed])
            image = images.batch([place])[0].float() / 255  # [C, H, W]
            changed = transform(image.expand(3, -1, -1)).float().clamp(0, 1)
            if len(image) == 1:
                changed = views.to_grey(changed[None])[0]
            pixels[place] = to_bytes(changed)
    return replace(images, name=name, images=pixels, pixels=None)


@contextlib.contextmanager
def _random_states_kept() -> Iterator[None]:
    """Restore the states of Python's and torch's random numbers. The library's import draws too."""
    state = random.getstate()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(state)


# -------------------------------------------------------------------------- measures on corruptions
@dataclass
class _Measuring:
    """One run while it is measured on corruptions."""

    run: Run
    probe: Probe | None  # None: only the rank correlation with the severity is taken
    clean: Embedded
    rows: list[dict] = field(default_factory=list)
    correct: list[np.ndarray] = field(default_factory=list)  # of each corruption, [N, 5]


def measure_corruptions(runs: Sequence[dict], notebook: str, others: Sequence[dict] = ()) -> None:
    """Accuracy and uncertainty of every run on corrupted test images, as metrics of ``notebook``.

    ``condition_images`` test images are taken (sample); the linear probe is fitted on clean
    features. Rows of condition "<corruption>_<severity>" (severity 0: clean) hold the accuracy of
    the probe and the mean of the run's uncertainty. Rows of condition "<corruption>" hold
    severity_spearman, the rank correlation of an image's uncertainty with the severity, mean over
    images. Which images are right is stored as scores <dataset>_corrupted, correct [N, 15, 5].

    Of ``others`` only the rank correlation is taken, as the part SEVERITY of the notebook's
    metrics. A run that is measured is left as it is. Runs on the same images are measured together,
    as corrupting images takes longest.
    """
    groups = {}
    for settings in runs:
        run = Run(settings)
        if not is_measured(run, notebook):
            groups.setdefault(_test_images(run), []).append((run, True))
    for settings in others:
        run = Run(settings)
        if not is_measured(run, f"{notebook}-{SEVERITY}"):
            groups.setdefault(_test_images(run), []).append((run, False))
    for group in groups.values():
        _measure_group(group, notebook)


def _test_images(run: Run) -> tuple:
    """What the corrupted test images of a run depend on."""
    return run.train.checksum, run.settings["image_size"], run.settings["condition_images"]


def _measure_group(group: list[tuple[Run, bool]], notebook: str) -> None:
    """Measure runs on the same test images; the booleans say which have a probe."""
    first, _ = group[0]
    test = first.test()
    places = test.places(first.settings["condition_images"])
    few = test.subset(places)
    measuring = []
    for run, with_probe in group:
        probe = None
        if with_probe:
            bank = run.embed(run.bank)
            probe = linear_probe(bank["features"], bank["label"])
        whole = run.embed(test)
        clean = {name: values[places] for name, values in whole.items()}
        measuring.append(_Measuring(run, probe, clean))
    for corruption in CORRUPTIONS:
        images = [
            corrupted(few, corruption, severity, show_progress=True) for severity in SEVERITIES
        ]
        for one in measuring:
            _measure_corruption(one, corruption, images, few)
    for one in measuring:
        if one.probe is None:
            one.run.write_metrics(one.rows, notebook, SEVERITY)
            continue
        correct = np.stack(one.correct, axis=1)  # [N, 15, 5]
        scores = f"{one.run.settings['dataset']}_corrupted"
        store.write_scores(one.run.profile, one.run.name, scores, {"correct": correct})
        one.run.write_metrics(one.rows, notebook)


def _measure_corruption(
    measuring: _Measuring, corruption: str, images: list[ImageSet], clean: ImageSet
) -> None:
    """Add one corruption's rows, and which images are right at each severity."""
    draws = measuring.run.settings["bootstrap_draws"] // 4
    common = {"evaluated_on": clean.title, "n": len(clean)}
    severities = (0, *SEVERITIES)
    embedded = [measuring.clean, *(measuring.run.embed_unstored(changed) for changed in images)]
    uncertainties = [values["uncertainty"] for values in embedded]
    correct = []
    if measuring.probe is not None:
        for severity, values in zip(severities, embedded, strict=True):
            right = measuring.probe.predict(values["features"]) == clean.labels
            correct.append(right)
            condition = common | {"condition": f"{corruption}_{severity}"}
            accuracy = {"classifier": "linear", "metric": "accuracy"}
            accuracy |= with_interval(np.mean, right.astype(float), draws=draws)
            mean = {"score": "uncertainty", "metric": "mean", "value": values["uncertainty"].mean()}
            measuring.rows += [condition | accuracy, condition | mean]
        measuring.correct.append(np.stack(correct[1:], axis=1))  # [N, 5]
    correlation = rank_correlation_per_image(np.array(severities), np.stack(uncertainties, axis=1))
    row = {"condition": corruption, "score": "uncertainty", "metric": "severity_spearman"}
    measuring.rows.append(common | row | with_interval(np.mean, correlation, draws=draws))


def mean_corruption_error(correct: np.ndarray, reference: np.ndarray) -> float:
    """mCE: mean over corruptions c of ``sum_s E_sc / sum_s E_sc(reference)``, in percent.

    Hendrycks & Dietterich 2019, §4. correct, reference: which images are right under each
    corruption and severity, [N, 15, 5], as measure_corruptions stores them. ValueError for other
    shapes; UndefinedStatistic where the reference makes no error under a corruption.
    """
    shape = (len(CORRUPTIONS), len(SEVERITIES))
    for right in (correct, reference):
        if np.shape(right)[1:] != shape or len(right) == 0:
            raise ValueError(f"An mCE needs arrays [N, 15, 5], got {list(np.shape(right))}.")
    errors = np.sum(1 - np.mean(correct, axis=0, dtype=np.float64), axis=1)  # [15]
    reference_errors = np.sum(1 - np.mean(reference, axis=0, dtype=np.float64), axis=1)
    if not reference_errors.all():
        raise UndefinedStatistic(
            f"The reference makes no error under {CORRUPTIONS[int(np.argmin(reference_errors))]}; "
            "take another reference."
        )
    return float(100 * np.mean(errors / reference_errors))


def corruption_errors(
    runs: dict[str, dict], correct: dict[str, np.ndarray], reference: str, draws: int
) -> pd.DataFrame:
    """The mCE of each run with a 95 % bootstrap interval over images, in percent.

    runs: settings by name; correct: by name of the run, as mean_corruption_error takes it;
    reference: one of the names. Columns: method, seed, mce, mce_low, mce_high, and corrupted, the
    accuracy on all corrupted images.
    """
    # On all images it has to be defined; draws on which it is not are drawn again.
    mean_corruption_error(correct[reference], correct[reference])
    rows = []
    for name, right in correct.items():
        error = with_interval(mean_corruption_error, right, correct[reference], draws=draws)
        rows.append(
            {
                "method": runs[name]["method"],
                "seed": runs[name]["seed"],
                "mce": error["value"],
                "mce_low": error["ci_low"],
                "mce_high": error["ci_high"],
                "corrupted": 100 * right.mean(),
            }
        )
    return pd.DataFrame(rows)


# -------------------------------------------------------------------------------------- other sets
def outside(settings: dict) -> str:
    """The other set that runs are compared on: the first near one, else the first far one."""
    return [*settings["ood_near"], *settings["ood_far"]][0]


def store_outside_scores(run: Run) -> None:
    """Store a run's scores of its test set and of the nearest other set, as <set>_outside.

    With them runs can be compared image by image. Arrays: uncertainty, knn_distance, outside, and
    those of the method's native quantities that are not the uncertainty again.
    """
    other = outside(run.settings)
    bank = run.embed(run.bank)
    embedded = [run.embed(run.test()), run.embed(run.other(other))]
    uncertainties = [unsupervised_uncertainties(bank, values) for values in embedded]
    arrays = {}
    for name in ("uncertainty", "knn_distance"):
        arrays[name] = np.concatenate([values[name] for values in uncertainties])
    test = embedded[0]
    for name in native_scores(test):
        if not np.array_equal(abs(test[name]), abs(test["uncertainty"])):
            native = np.concatenate([values[name] for values in embedded])
            arrays[name] = native.astype(np.float32)
    arrays["outside"] = np.repeat([False, True], [len(values["label"]) for values in embedded])
    store.write_scores(run.profile, run.name, f"{other}_outside", arrays)


def measure_other_scores(run: Run, notebook: str) -> None:
    """How well a method's ``uncertainties`` detect other data sets, as metrics of ``notebook``.

    AUROC, FPR95 and average precision; positive: the other set. Rows have condition near_ood or
    far_ood, and as score one of ``uncertainties`` or mahalanobis (mahalanobis_distance).
    """
    distance_from_bank = mahalanobis_distance(run.embed(run.bank)["features"])

    def scores_of(images: ImageSet) -> dict[str, np.ndarray]:
        embedded = run.embed_unstored(images, run.method.uncertainties)
        scores = {name: embedded[name] for name in native_scores(embedded)}
        scores["mahalanobis"] = distance_from_bank(embedded["features"])
        return scores

    test = run.test()
    test_scores = scores_of(test)
    rows = []
    for distance in ("near", "far"):
        for other in run.settings[f"ood_{distance}"]:
            images = run.other(other)
            both = {}
            for name, values in scores_of(images).items():
                both[name] = np.append(test_scores[name], values)
            rows += ood_rows(
                both,
                outside=np.repeat([False, True], [len(test), len(images)]),
                draws=run.settings["bootstrap_draws"] // 4,
                evaluated_on=other,
                condition=f"{distance}_ood",
            )
    run.write_metrics(rows, notebook, "ood")
