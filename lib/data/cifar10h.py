"""CIFAR-10H: how some 50 people each labelled every test image of CIFAR-10.

Peterson et al. 2019 (Human uncertainty makes classification more robust), CC BY-NC-SA 4.0. No part
of it is in this repository. The counts are looked for under DATA_DIR, in this order:

1. DATA_DIR/cifar10h/test.npz: counts [10000, 10], and official_index [10000], the place of each row
   in the official test set, where the rows have another order
2. DATA_DIR/cifar10h/cifar10h-counts.npy: the authors' file, fetched if it is not there

Example:
    counts = label_counts(data.load("cifar10", "test").labels)
    human_entropy(counts)[:3]           bits of each image
"""

from __future__ import annotations

import hashlib
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.stats

from lib.data import downloads
from lib.runs import store
from lib.runs.store import default_data_dir

NAME = "cifar10h"
CIFAR10 = "cifar10"  # the set whose test images these are
URL = "https://raw.githubusercontent.com/jcpeterson/cifar-10h/master/data/cifar10h-counts.npy"
SHAPE = (10_000, 10)
# SHA-256 of the counts in the official order as little-endian int16
SHA256 = "2278ae0f5723f8ca74304fd4ee812aa197b3cf3f1999663a792bedca5c877a8b"
FEWEST_AGREEING = 0.95  # share of images whose most frequent label is CIFAR-10's; measured: 0.992


def label_counts(labels: np.ndarray, data_dir: Path | None = None) -> np.ndarray:
    """How many people gave each label to each test image: [10000, 10], in the order of ``labels``.

    labels: CIFAR-10's of all test images, in the order that the data have here. FileNotFoundError
    where the counts are neither here nor to be fetched, or not in the order of the labels.
    """
    return _matching(labels, data_dir).counts


def official_index(labels: np.ndarray, data_dir: Path | None = None) -> np.ndarray:
    """The place of each test image in the official test set, which torchvision reads: [10000].

    Arguments and errors as ``label_counts``.
    """
    return _matching(labels, data_dir).official_index


def human_entropy(counts: np.ndarray) -> np.ndarray:
    """Entropy in bits [N] of the labels that people gave, from counts [N, 10]."""
    return scipy.stats.entropy(counts, axis=1, base=2)


@dataclass(frozen=True)
class Rows:
    """Counts [N, 10], and the place of each row in the official test set [N]."""

    counts: np.ndarray
    official_index: np.ndarray

    def in_official_order(self) -> Rows:
        order = np.argsort(self.official_index)
        return Rows(self.counts[order], self.official_index[order])


def _matching(labels: np.ndarray, data_dir: Path | None) -> Rows:
    """The counts in the order of the labels: that of the file, or the official one."""
    root = default_data_dir() if data_dir is None else Path(data_dir)
    stored = root / NAME / "test.npz"
    if stored.exists():
        arrays = store.read_npz(stored, ("counts",))
        counts = arrays["counts"]
        rows = Rows(counts, arrays.get("official_index", np.arange(len(counts))))
    else:
        counts = _official_counts(root / NAME / "cifar10h-counts.npy")
        rows = Rows(counts, np.arange(len(counts)))
    for candidate in (rows, rows.in_official_order()):
        if _agreement(candidate.counts, labels) >= FEWEST_AGREEING:
            return candidate
    raise FileNotFoundError(
        f"The counts of CIFAR-10H in {root / NAME} agree with the labels of only "
        f"{100 * _agreement(rows.counts, labels):.0f} % of the test images: the images have "
        "another order. Use CIFAR-10 as torchvision stores it, or counts with official_index."
    )


def _official_counts(path: Path) -> np.ndarray:
    """The authors' file, fetched if need be, its numbers checked."""
    if not path.exists():
        try:
            with downloads.time_limit(), urllib.request.urlopen(URL) as answer:
                store.write_bytes(path, answer.read())
        except OSError as error:
            raise FileNotFoundError(
                f"CIFAR-10H was not found and could not be fetched ({error}). Put {URL} into "
                f"{path.parent}."
            ) from error
    counts = np.load(path, allow_pickle=False)
    digest = hashlib.sha256(np.ascontiguousarray(counts.astype("<i2"))).hexdigest()
    if counts.shape != SHAPE or digest != SHA256:
        raise ValueError(
            f"{path} does not hold CIFAR-10H's counts {list(SHAPE)} (SHA-256 {digest[:12]}, not "
            f"{SHA256[:12]}): delete it, and it is fetched again."
        )
    return counts


def _agreement(counts: np.ndarray, labels: np.ndarray) -> float:
    """Share of images whose most frequent label is the given one; 0 for other shapes."""
    labels = np.asarray(labels)
    if counts.shape != (len(labels), SHAPE[1]):
        return 0.0
    return float((counts.argmax(axis=1) == labels).mean())
