"""Test data unlike the training data: the 15 common corruptions, and other data sets."""

import contextlib
import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, lru_cache

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from lib.data import sources, views
from lib.data.sets import ImageSet, to_bytes
from lib.evaluation.embed import Embedded, native_names
from lib.evaluation.measure import Run
from lib.evaluation.probes import Probe, linear_probe, mahalanobis_distance
from lib.evaluation.suite import metrics_row, ood_rows_of_sets
from lib.evaluation.uncertainty import (
    UndefinedStatistic,
    rank_correlation_per_image,
    with_interval,
)
from lib.runs import settings as run_settings
from lib.runs import store

SEVERITIES = (1, 2, 3, 4, 5)
FAMILIES = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic", "pixelate", "jpeg_compression"),
}
FAMILY_OF: dict[str, str] = {}
for _family, _corruptions in FAMILIES.items():
    FAMILY_OF |= dict.fromkeys(_corruptions, _family)
CORRUPTIONS = tuple(FAMILY_OF)


# ------------------------------------------------------------------------------------- corruptions
@cache
def _transforms() -> dict[str, type]:
    """torch-uncertainty's corruptions by name."""
    from torch_uncertainty.transforms.corruption import corruption_transforms  # slow to import

    by_name = {transform.__name__.lower(): transform for transform in corruption_transforms}
    return {name: by_name[name.replace("_", "")] for name in CORRUPTIONS}


def corrupted(
    images: ImageSet, corruption: str, severity: int, show_progress: bool = False
) -> ImageSet:
    """The same images under one of the 15 corruptions of ImageNet-C, by torch-uncertainty.

    Hendrycks & Dietterich 2019. corruption: one of CORRUPTIONS; severity: 1 to 5. Each image has
    random numbers of its own, which depend on corruption, severity and its place in the set only.
    The strengths are ImageNet-C's at every size of images (CIFAR-10-C has weaker ones). Grey images
    are corrupted as three equal channels and made grey again.

    Example:
        foggy = corrupted(data.load("cifar10", "test"), "fog", severity=3)
    """
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
def measure_corruptions(run: Run) -> list[dict]:
    """Metrics rows of a run's accuracy and uncertainty on corrupted test images.

    ``condition_images`` test images are taken (sample); the linear probe is fitted on clean
    features. Rows of condition "<corruption>_<severity>" (severity 0: clean) hold the accuracy of
    the probe and the mean of the run's uncertainty. Rows of condition "<corruption>" hold
    severity_spearman, the rank correlation of an image's uncertainty with the severity, mean over
    images. Which images are right is stored as scores <dataset>_corrupted, correct [N, 15, 5].
    """
    settings = run.settings
    test = run.test()
    places = test.places(settings["condition_images"])
    clean_images = test.subset(places)
    bank = run.embed(run.bank)
    probe = linear_probe(bank["features"], bank["label"])
    clean = {name: values[places] for name, values in run.embed(test).items()}
    rows = []
    correct = []
    for corruption in CORRUPTIONS:
        embedded = [clean]
        for severity in SEVERITIES:
            images = _corrupted_test_images(
                settings["dataset"],
                settings["image_size"],
                settings["condition_images"],
                corruption,
                severity,
            )
            embedded.append(run.embed_unstored(images))
        draws = settings["bootstrap_draws"] // 4
        new_rows, right = _corruption_rows(corruption, embedded, clean_images, probe, draws)
        rows += new_rows
        correct.append(right[:, 1:])
    stacked = np.stack(correct, axis=1)  # [N, 15, 5]
    store.write_scores(
        run.profile, run.name, f"{settings['dataset']}_corrupted", {"correct": stacked}
    )
    return rows


@lru_cache(maxsize=len(CORRUPTIONS) * len(SEVERITIES))
def _corrupted_test_images(
    dataset: str, image_size: int, count: int, corruption: str, severity: int
) -> ImageSet:
    """Corrupted test images, which are the same for every run: drawing them takes longest."""
    test = sources.load(dataset, "test", image_size=image_size)
    few = test.subset(test.places(count))
    return corrupted(few, corruption, severity, show_progress=True)


def _corruption_rows(
    corruption: str, embedded: Sequence[Embedded], clean: ImageSet, probe: Probe, draws: int
) -> tuple[list[dict], np.ndarray]:
    """One corruption's rows, and which images are right by severity (the first: clean) [N, 6]."""
    common = {"evaluated_on": clean.title, "n": len(clean)}
    severities = (0, *SEVERITIES)
    rows = []
    correct = []
    for severity, values in zip(severities, embedded, strict=True):
        right = probe.predict(values["features"]) == clean.labels
        correct.append(right)
        condition = common | {"condition": f"{corruption}_{severity}"}
        columns = condition | {"classifier": "linear"}
        rows.append(metrics_row("accuracy", np.mean, right, draws=draws, **columns))
        mean = {"score": "uncertainty", "metric": "mean", "value": values["uncertainty"].mean()}
        rows.append(condition | mean)
    uncertainties = np.stack([values["uncertainty"] for values in embedded], axis=1)  # [N, 6]
    correlation = rank_correlation_per_image(np.array(severities), uncertainties)
    columns = common | {"condition": corruption, "score": "uncertainty"}
    rows.append(metrics_row("severity_spearman", np.mean, correlation, draws=draws, **columns))
    return rows, np.stack(correct, axis=1)


def graded_accuracy(rows: pd.DataFrame) -> pd.DataFrame:
    """The accuracies among rows of measure_corruptions, with family, corruption and severity."""
    graded = rows[rows.metric == "accuracy"]
    place = graded.condition.str.rsplit("_", n=1, expand=True)
    return graded.assign(
        family=place[0].map(FAMILY_OF), corruption=place[0], severity=place[1].astype(int)
    )


def mean_corruption_error(correct: np.ndarray, reference: np.ndarray) -> float:
    """mCE: mean over corruptions c of ``sum_s E_sc / sum_s E_sc(reference)``, a fraction.

    Hendrycks & Dietterich 2019, §4. correct, reference: which images are right under each
    corruption and severity, [N, 15, 5], as measure_corruptions stores them. UndefinedStatistic
    where the reference makes no error under a corruption.

    Example:
        >>> none_correct = np.zeros((4, 15, 5), bool)
        >>> mean_corruption_error(none_correct, reference=none_correct)
        1.0
    """
    errors = np.sum(1 - np.mean(correct, axis=0, dtype=np.float64), axis=1)  # [15]
    reference_errors = np.sum(1 - np.mean(reference, axis=0, dtype=np.float64), axis=1)
    if not reference_errors.all():
        raise UndefinedStatistic(
            f"The reference makes no error under {CORRUPTIONS[int(np.argmin(reference_errors))]}; "
            "take another reference."
        )
    return float(np.mean(errors / reference_errors))


def corruption_errors(runs: Sequence[dict]) -> pd.DataFrame:
    """The mCE of these runs as stored metrics, a fraction, with a 95 % bootstrap over images.

    Of those that have scores on corrupted images; the reference is the first seed of the untrained
    ResNet, the method "random". Columns: run, method, seed, metric, value, ci_low, ci_high, n.
    FileNotFoundError where the reference is not stored.
    """
    by_name = {run_settings.run_name(run): run for run in runs}
    correct = {}
    for name, run in by_name.items():
        scores = store.stored_scores(run["profile"], name, f"{run['dataset']}_corrupted")
        if scores:
            correct[name] = scores["correct"]
    untrained = [name for name in correct if by_name[name]["method"] == "random"]
    if not untrained:
        raise FileNotFoundError(
            "No untrained network has stored scores on corrupted images; make them with: "
            f"make reproduce PROFILE={runs[0]['profile']}"
        )
    reference = correct[min(untrained)]
    rows = []
    for name, right in correct.items():
        run = by_name[name]
        draws = run["bootstrap_draws"] // 4
        error = with_interval(mean_corruption_error, right, reference, draws=draws)
        row = {"run": name, "method": run["method"], "seed": run["seed"], "metric": "mce"}
        rows.append(row | error | {"n": len(right)})
    return pd.DataFrame(rows)


# -------------------------------------------------------------------------------------- other sets
def measure_own_scores(run: Run) -> list[dict]:
    """Metrics rows of how well a method's ``uncertainties`` detect other data sets.

    AUROC, FPR95 and average precision; positive: the other set. Rows have condition near_ood or
    far_ood, and as score one of ``uncertainties`` or mahalanobis (mahalanobis_distance).
    """
    distance_from_bank = mahalanobis_distance(run.embed(run.bank)["features"])

    def scores_of(images: ImageSet) -> dict[str, np.ndarray]:
        embedded = run.embed_unstored(images, run.method.uncertainties)
        scores = {name: embedded[name] for name in native_names(embedded)}
        scores["mahalanobis"] = distance_from_bank(embedded["features"])
        return scores

    test_scores = scores_of(run.test())
    rows = []
    for distance in ("near", "far"):
        for other in run.settings[f"ood_{distance}"]:
            rows += ood_rows_of_sets(
                test_scores,
                scores_of(run.other(other)),
                draws=run.settings["bootstrap_draws"] // 4,
                evaluated_on=other,
                condition=f"{distance}_ood",
            )
    return rows
