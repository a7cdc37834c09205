"""What an image says without any network: entropy and compressed file size, the baselines of notebook 80 that cost nothing.

Functions of the test images alone: `measure` stores them once, as scores and metrics of a pseudo-run named RUN, and later reads need no data.
"""

import io

import numpy as np
import pandas as pd
from PIL import Image
from torch import Tensor

from lib.data import sources as data
from lib.data.sets import to_bytes
from lib.evaluation import measure as protocol
from lib.evaluation import probes as evaluation
from lib.runs import settings as resolution
from lib.runs import store as artifacts

NOTEBOOK, RUN = "80_uncertainty_benchmark", "images"
NAMES = ("image_entropy", "file_size")


def grey_entropy(pixels: np.ndarray) -> np.ndarray:
    """Σ -p log₂ p in bits, p the histogram of 256 grey levels (mean over channels, rounded) of each image: uint8 [N, H, W, C] -> float32 [N]."""
    grey = pixels.mean(axis=-1).round().astype(np.uint8)
    return np.array([Image.fromarray(image).entropy() for image in grey], dtype=np.float32)


def png_size(pixels: np.ndarray) -> np.ndarray:
    """Bytes of each image as a PNG file: uint8 [N, H, W, C] -> int32 [N]."""

    def size(image: np.ndarray) -> int:
        buffer = io.BytesIO()
        Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(buffer, "PNG")
        return buffer.tell()

    return np.array([size(image) for image in pixels], dtype=np.int32)


def to_be_seen(images: Tensor) -> dict[str, np.ndarray]:
    """What anyone can see in images [B, C, H, W] of 0..1, [B] each.

    contrast: standard deviation of all pixels; edges: mean absolute difference of neighbouring pixels, down plus across; colours, of three channels:
    colourfulness (Hasler & Süsstrunk 2003, Eq. 10), ``|σ| + 0.3 |μ|`` of the pairs red - green and ½ (red + green) - blue over an image's pixels.
    """
    seen = {
        "contrast": images.std((1, 2, 3)),
        "edges": images.diff(dim=2).abs().mean((1, 2, 3))
        + images.diff(dim=3).abs().mean((1, 2, 3)),
    }
    if images.shape[1] == 3:
        red, green, blue = images.flatten(2).unbind(1)  # [B, H W]
        opponent = [red - green, (red + green) / 2 - blue]
        seen["colours"] = (
            sum(part.var(1, correction=0) for part in opponent).sqrt()
            + 0.3 * sum(part.mean(1) ** 2 for part in opponent).sqrt()
        )
    return {name: values.double().numpy(force=True) for name, values in seen.items()}


def stored(profile: str, dataset: str) -> dict[str, np.ndarray]:
    """The stored NAMES [N] of a test set; empty where they are not."""
    return artifacts.stored_scores(profile, RUN, dataset)


def stored_metrics(profile: str) -> pd.DataFrame:
    """OOD measures of both scores, as rows of METRIC_COLUMNS."""
    return artifacts.read_metrics(profile, NOTEBOOK, RUN)


def measure(profile: str) -> None:
    """Store both scores of the profile's test set and of its other sets, and their OOD measures; what is stored of these very test images stays.

    Images are as a run takes them (size, channels). Higher = less certain, for both: more to see, harder to name. Where the test set is not at hand
    what is stored stays; FileNotFoundError, before anything is written, where nothing is.
    """
    settings = resolution.profile_settings(profile)
    others = {
        name: f"{distance}_ood"
        for distance in ("near", "far")
        for name in settings[f"ood_{distance}"]
    }
    whole = "label" in stored(profile, settings["dataset"]) and all(
        stored(profile, name) for name in others
    )
    kept = set(stored_metrics(profile).run_hash) if whole else set()
    try:
        test = data.load(settings["dataset"], "test", image_size=settings["image_size"])
    except FileNotFoundError:
        if kept:
            return
        raise
    if kept == {test.checksum}:
        return
    sets = {settings["dataset"]: test} | {
        name: data.load(name, "test", image_size=settings["image_size"]) for name in others
    }
    fitted, found, rows = protocol.fit(settings, test.images.shape[3]), {}, []
    for name, images in sets.items():
        batches = (
            fitted(images.batch(part).float() / 255)
            for part in np.array_split(np.arange(len(images)), max(1, len(images) // 500))
        )
        pixels = np.concatenate(list(map(to_bytes, batches)))  # [N, H, W, C]
        found[name] = {"image_entropy": grey_entropy(pixels), "file_size": png_size(pixels)}
    for name, condition in others.items():
        outside = np.repeat([False, True], [len(test), len(sets[name])])
        scores = {
            score: np.append(found[settings["dataset"]][score], found[name][score]).astype(
                np.float64
            )
            for score in NAMES
        }
        rows += evaluation.ood_rows(
            scores,
            outside,
            settings["bootstrap_draws"] // 4,
            evaluated_on=name,
            condition=condition,
        )
    found[settings["dataset"]]["label"] = test.labels.astype(
        np.int16
    )  # what is merged by row is asked for its order
    for name, arrays in found.items():
        artifacts.write_scores(
            profile, RUN, name, {"index": np.arange(len(sets[name]), dtype=np.int32)} | arrays
        )
    config = {
        "run": RUN,
        "run_hash": test.checksum,
        "settings": {"method": RUN, "dataset": settings["dataset"], "epochs": 0},
        "data": {"title": "", "checksum": test.checksum},
    }
    artifacts.write_json(artifacts.config_path(profile, RUN), config)
    artifacts.write_metrics(profile, NOTEBOOK, RUN, rows, run_hash=test.checksum)
