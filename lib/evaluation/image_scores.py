"""Scores of an image without any network: entropy and compressed file size.

They depend on the test images only. ``measure_images`` stores them once, as scores and metrics of a
pseudo-run named RUN, and later reads need no data. Higher counts as less certain for both: there is
more to see.
"""

import io

import numpy as np
from PIL import Image

from lib.data import cifar10h, sources
from lib.data.sets import ImageSet, to_bytes
from lib.evaluation.embed import Transform, input_transform
from lib.evaluation.suite import ood_rows_of_sets
from lib.runs import settings as run_settings
from lib.runs import store

RUN = "images"
PART = "image_scores"  # of the evaluation suite
NAMES = ("image_entropy", "file_size")
BATCH = 500


def grey_entropy(pixels: np.ndarray) -> np.ndarray:
    """Σ -p log₂ p in bits over the histogram of 256 grey levels of each image.

    Grey is the rounded mean over channels. pixels: uint8 [N, H, W, C]; returns float32 [N].
    """
    grey = pixels.mean(axis=-1).round().astype(np.uint8)
    return np.array([Image.fromarray(image).entropy() for image in grey], dtype=np.float32)


def png_size(pixels: np.ndarray) -> np.ndarray:
    """Bytes of each image as a PNG file: uint8 [N, H, W, C] -> int32 [N]."""
    sizes = []
    for image in pixels:
        buffer = io.BytesIO()
        plane_or_rgb = image.squeeze(-1) if image.shape[-1] == 1 else image
        Image.fromarray(plane_or_rgb).save(buffer, "PNG")
        sizes.append(buffer.tell())
    return np.array(sizes, dtype=np.int32)


def measure_images(profile: str) -> None:
    """Store both scores of the profile's test set and other sets, and their OOD measures.

    Images are as a run takes them (size, channels). What is stored of these very test images is
    left as it is. Without the test set, so is whatever is stored; FileNotFoundError, before
    anything is written, where nothing is.
    """
    settings = run_settings.profile_settings(profile)
    dataset = settings["dataset"]
    size = settings["image_size"]
    others = dict.fromkeys(settings["ood_near"], "near_ood")
    others |= dict.fromkeys(settings["ood_far"], "far_ood")
    measured_on = _stored_checksums(profile, dataset, others)
    try:
        test = sources.load(dataset, "test", image_size=size)
    except FileNotFoundError:
        if measured_on:
            return
        raise
    if measured_on == {test.checksum}:
        return
    sets = {dataset: test}
    for name in others:
        sets[name] = sources.load(name, "test", image_size=size)
    transform = input_transform(settings, test.images.shape[3])
    scores = {name: _scores(images, transform) for name, images in sets.items()}
    rows = []
    for name, condition in others.items():
        rows += ood_rows_of_sets(
            {score: scores[dataset][score] for score in NAMES},
            {score: scores[name][score] for score in NAMES},
            draws=settings["bootstrap_draws"] // 4,
            evaluated_on=name,
            condition=condition,
        )
    # Scores are merged with those of runs by row; the labels show whether the order is the same.
    scores[dataset]["label"] = test.labels.astype(np.int16)
    if dataset == cifar10h.CIFAR10:
        scores[dataset] |= _official_index(test.labels)
    for name, arrays in scores.items():
        store.write_scores(profile, RUN, name, arrays)
    config = {
        "run": RUN,
        "run_hash": test.checksum,
        "settings": {"method": RUN, "dataset": dataset, "epochs": 0},
        "data": {"title": "", "checksum": test.checksum},
    }
    store.write_json(store.config_path(profile, RUN), config)
    store.write_metrics(profile, PART, RUN, rows, run_hash=test.checksum)


def _stored_checksums(profile: str, dataset: str, others: dict[str, str]) -> set[str]:
    """Checksums of the test sets that metrics are stored of; empty if scores are missing."""
    if "label" not in store.stored_scores(profile, RUN, dataset):
        return set()
    if not all(store.stored_scores(profile, RUN, name) for name in others):
        return set()
    return set(store.read_metrics(profile, run=RUN).run_hash)


def _official_index(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Where torchvision has each test image of CIFAR-10, so that anybody's scores can be paired.

    Empty without CIFAR-10H, whose counts tell the order.
    """
    try:
        return {"official_index": cifar10h.official_index(labels).astype(np.int16)}
    except FileNotFoundError:
        return {}


def _scores(images: ImageSet, transform: Transform) -> dict[str, np.ndarray]:
    """The index and both scores of every image of a set."""
    batches = []
    for indices in np.array_split(np.arange(len(images)), max(1, len(images) // BATCH)):
        batches.append(to_bytes(transform(images.batch(indices).float() / 255)))
    pixels = np.concatenate(batches)  # [N, H, W, C]
    return {
        "index": np.arange(len(images), dtype=np.int32),
        "image_entropy": grey_entropy(pixels),
        "file_size": png_size(pixels),
    }
