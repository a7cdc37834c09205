"""Test data that are not like the training data: the 15 common corruptions, and scores that tell other data sets apart (notebook 50)."""

import contextlib
import random
import re
import warnings
from dataclasses import replace
from functools import cache

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from lib.data import views as augmentations
from lib.data.sets import ImageSet, to_bytes
from lib.evaluation import measure as protocol
from lib.evaluation import probes as evaluation
from lib.evaluation import uncertainty
from lib.runs import settings as resolution
from lib.runs import store as artifacts

SEVERITIES = (1, 2, 3, 4, 5)
FAMILIES = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic", "pixelate", "jpeg_compression"),
}
CORRUPTIONS = tuple(name for names in FAMILIES.values() for name in names)
SEVERITY = "severity"  # the part of a notebook's metrics that says how uncertainties follow the severity, of runs of which no more is asked


@cache
def _transforms() -> dict[str, type]:
    from torch_uncertainty.transforms.corruption import corruption_transforms  # slow to import

    found = {
        re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=JPEG)(?=C)", "_", transform.__name__).lower(): transform
        for transform in corruption_transforms
    }
    if set(found) != set(CORRUPTIONS):
        raise ImportError(
            f"torch-uncertainty has the corruptions {sorted(found)}, expected {sorted(CORRUPTIONS)}: install the pinned version."
        )
    return found


def corrupted(
    images: ImageSet, corruption: str, severity: int, show_progress: bool = False
) -> ImageSet:
    """The same images under one of the 15 corruptions of ImageNet-C (Hendrycks & Dietterich 2019), by torch-uncertainty.

    Each image has random numbers of its own, which depend on corruption, severity and its place in the set alone. corruption: one of CORRUPTIONS;
    severity: 1 to 5. The strengths are ImageNet-C's, whatever the size of the images (CIFAR-10-C has weaker ones). Grey images are corrupted as
    three equal channels and made grey again. ValueError for an unknown corruption or severity.
    """
    if corruption not in CORRUPTIONS or severity not in SEVERITIES:
        raise ValueError(
            f"Unknown corruption {corruption!r} of severity {severity!r}; choose one of {', '.join(CORRUPTIONS)} and 1 to 5."
        )
    state = random.getstate()  # the library's import draws too
    name, kind = f"{corruption}_{severity}", _transforms()[corruption]
    seed = CORRUPTIONS.index(corruption) * len(SEVERITIES) + severity
    transform = kind(severity)
    done = np.empty(images.images.shape, np.uint8)
    with (
        contextlib.ExitStack() as left_as_found,
        torch.random.fork_rng(devices=[]),
        warnings.catch_warnings(),
    ):
        left_as_found.callback(random.setstate, state)
        warnings.simplefilter("ignore", DeprecationWarning)  # the library's own, of numpy's
        for place in tqdm(
            range(len(images)),
            desc=f"{images.name}, {name}",
            unit="image",
            disable=not show_progress,
            leave=False,
        ):
            torch.default_generator.manual_seed(
                1000 * place + seed
            )  # torch.manual_seed also asks for GPUs, which takes longer than the corruption
            random.seed(1000 * place + seed)
            if hasattr(transform, "rng"):
                transform.rng = np.random.default_rng([place, seed])
            image = images.batch([place])[0].float() / 255
            changed = transform(image.expand(3, -1, -1)).float().clamp(0, 1)
            done[place] = to_bytes(
                augmentations.to_grey(changed[None])[0] if len(image) == 1 else changed
            )
    return replace(images, name=f"{images.name}-{name}", images=done, pixels=None)


def measure_corruptions(runs: list[dict], notebook: str, others: list[dict] = ()) -> None:
    """Accuracy and uncertainty of every run on corrupted test images, as metrics of ``notebook``; a run that is measured is left as it is.

    Which images are right is stored as scores <dataset>_corrupted, correct [N, 15, 5].

    ``condition_images`` test images (sample); the linear probe is the one that saw clean features alone. Rows of condition
    "<corruption>_<severity>" (severity 0: clean): accuracy of the probe, and mean of the run's own uncertainty; of condition "<corruption>":
    severity_spearman, the rank correlation of an image's uncertainty with the severity, mean over images. Of ``others`` these last rows alone are
    taken, as the part SEVERITY of the notebook's metrics.
    """
    brief, together = [resolution.run_name(run) for run in others], {}
    for ready in map(protocol.Run, [*runs, *others]):
        if not protocol.is_measured(
            ready, f"{notebook}-{SEVERITY}" if ready.name in brief else notebook
        ):
            together.setdefault(
                (
                    ready.train.checksum,
                    ready.settings["image_size"],
                    ready.settings["condition_images"],
                ),
                [],
            ).append(ready)
    for group in together.values():
        test = group[0].test()
        places = test.places(group[0].settings["condition_images"])
        few = test.subset(places)
        common = {"evaluated_on": few.title, "n": len(few)}
        probes, clean, found, correct = [], [], [[] for _ in group], [{} for _ in group]
        for ready in group:
            bank, whole = (
                (None if ready.name in brief else ready.embed(ready.bank)),
                ready.embed(test),
            )
            probes.append(bank and evaluation.linear_probe(bank["features"], bank["label"]))
            clean.append(
                _rows_of(
                    ready,
                    probes[-1],
                    {name: values[places] for name, values in whole.items()},
                    few.labels,
                )
            )

        for corruption in CORRUPTIONS:
            changed = [
                corrupted(few, corruption, severity, show_progress=True) for severity in SEVERITIES
            ]
            for place, ready in enumerate(group):
                said = [
                    clean[place],
                    *(
                        _rows_of(ready, probes[place], ready.ask(images), few.labels)
                        for images in changed
                    ),
                ]
                for severity, (rows, right, _) in enumerate(said):
                    found[place] += [
                        common | row | {"condition": f"{corruption}_{severity}"} for row in rows
                    ]
                    correct[place][corruption, severity] = right
                per_image = uncertainty.rank_correlation_per_image(
                    np.array((0, *SEVERITIES)), np.stack([own for *_, own in said], 1)
                )
                row = common | {
                    "condition": corruption,
                    "score": "uncertainty",
                    "metric": "severity_spearman",
                }
                found[place].append(
                    row
                    | evaluation.with_interval(
                        np.mean, per_image, draws=ready.settings["bootstrap_draws"] // 4
                    )
                )
        for ready, rows, right in zip(group, found, correct, strict=True):
            if ready.name in brief:
                ready.write_metrics(rows, notebook, SEVERITY)
                continue
            whole = np.stack(
                [
                    np.stack([right[corruption, severity] for severity in SEVERITIES], 1)
                    for corruption in CORRUPTIONS
                ],
                1,
            )  # [N, 15, 5]
            artifacts.write_scores(
                ready.profile,
                ready.name,
                f"{ready.settings['dataset']}_corrupted",
                {"correct": whole},
            )
            ready.write_metrics(rows, notebook)


def _rows_of(
    ready: protocol.Run, probe, embedded: evaluation.Embedded, labels: np.ndarray
) -> tuple[list[dict], np.ndarray | None, np.ndarray]:
    """Of embedded images [N]: rows of the probe's accuracy and of the mean uncertainty, which images are right [N], their uncertainties [N].

    Without a probe no rows, and nothing of what is right.
    """
    own = embedded["uncertainty"]
    if probe is None:
        return [], None, own
    right = probe.predict(embedded["features"]) == labels
    accuracy = evaluation.with_interval(
        np.mean, right.astype(float), draws=ready.settings["bootstrap_draws"] // 4
    )
    return (
        [
            accuracy | {"classifier": "linear", "metric": "accuracy"},
            {"score": "uncertainty", "metric": "mean", "value": own.mean()},
        ],
        right,
        own,
    )


def store_outside_scores(run: protocol.Run) -> None:
    """What a run says of its test set and of the nearest other set, as scores <set>_outside, so that runs can be compared image by image.

    uncertainty, knn_distance, and what of the method's native quantities is not the uncertainty again.
    """
    other, bank = outside(run.settings), run.embed(run.bank)
    parts = [run.embed(images) for images in (run.test(), run.other(other))]
    found = [evaluation.unsupervised_uncertainties(bank, part) for part in parts]
    arrays = {
        name: np.concatenate([part[name] for part in found])
        for name in ("uncertainty", "knn_distance")
    }
    for name in evaluation.native_scores(parts[0]):
        if not np.array_equal(abs(parts[0][name]), abs(parts[0]["uncertainty"])):
            arrays[name] = np.concatenate([part[name] for part in parts]).astype(np.float32)
    arrays["outside"] = np.repeat([False, True], [len(part["label"]) for part in parts])
    artifacts.write_scores(run.profile, run.name, f"{other}_outside", arrays)


def outside(settings: dict) -> str:
    """The other set that runs are compared on: the first near one of the profile, or where it has none the first far one."""
    return [*settings["ood_near"], *settings["ood_far"]][0]


def measure_other_scores(run: protocol.Run, notebook: str) -> None:
    """How well all that a method's ``uncertainties`` say tells other data sets apart, as metrics of ``notebook``.

    AUROC, FPR95 and average precision. Rows of condition near_ood and far_ood, score one of ``uncertainties`` or mahalanobis
    (evaluation.mahalanobis_distance); positive: the other set.
    """
    distance_from_bank = evaluation.mahalanobis_distance(run.embed(run.bank)["features"])

    def answers(images: ImageSet) -> dict[str, np.ndarray]:
        found = run.ask(images, run.method.uncertainties)
        return {name: found[name] for name in evaluation.native_scores(found)} | {
            "mahalanobis": distance_from_bank(found["features"])
        }

    test, rows = run.test(), []
    known = answers(test)
    for distance in ("near", "far"):
        for other in run.settings[f"ood_{distance}"]:
            images = run.other(other)
            scores = {
                name: np.append(known[name], values) for name, values in answers(images).items()
            }
            foreign = np.repeat([False, True], [len(test), len(images)])
            draws = run.settings["bootstrap_draws"] // 4
            rows += evaluation.ood_rows(
                scores, foreign, draws, evaluated_on=other, condition=f"{distance}_ood"
            )
    run.write_metrics(rows, notebook, "ood")


def mean_corruption_error(correct: np.ndarray, reference: np.ndarray) -> float:
    """mCE (Hendrycks & Dietterich 2019, §4): mean over corruptions c of ``sum_s E_sc / sum_s E_sc(reference)``, in percent.

    correct, reference: which images are right under each corruption and severity, [N, 15, 5], as measure_corruptions stores them. ValueError for
    other shapes, and where the reference makes no error under a corruption.
    """
    shape = (len(CORRUPTIONS), len(SEVERITIES))
    if (
        np.shape(correct)[1:] != shape
        or np.shape(reference)[1:] != shape
        or not len(correct)
        or not len(reference)
    ):
        raise ValueError(
            f"An mCE needs arrays [N, 15, 5], got {list(np.shape(correct))} and {list(np.shape(reference))}."
        )
    ours, theirs = (
        np.sum(1 - np.mean(right, axis=0, dtype=np.float64), axis=1)
        for right in (correct, reference)
    )
    if not theirs.all():
        raise uncertainty.UndefinedStatistic(
            f"The reference makes no error under {CORRUPTIONS[int(np.argmin(theirs))]}; take another reference."
        )
    return float(100 * np.mean(ours / theirs))


def corruption_errors(
    runs: dict[str, dict], correct: dict[str, np.ndarray], reference: str, draws: int
) -> pd.DataFrame:
    """Of each run (name -> settings) its mCE with a 95 % bootstrap interval over images, and the accuracy on all that is corrupted, in percent.

    correct: as mean_corruption_error takes it, by name of the run; reference: one of the names. Columns: method, seed, mce, mce_low, mce_high,
    corrupted. ValueError where the reference makes no error under a corruption.
    """
    mean_corruption_error(
        correct[reference], correct[reference]
    )  # on all images it has to be defined; draws on which it is not are drawn again
    rows = []
    for name, right in correct.items():
        error = evaluation.with_interval(
            mean_corruption_error, right, correct[reference], draws=draws
        )
        row = {"method": runs[name]["method"], "seed": runs[name]["seed"], "mce": error["value"]}
        rows.append(
            row
            | {
                "mce_low": error["ci_low"],
                "mce_high": error["ci_high"],
                "corrupted": 100 * right.mean(),
            }
        )
    return pd.DataFrame(rows)
