"""Sets of labelled images: what they hold, how they are read and split.

An ImageSet has its images in memory, or in files that are decoded when they are needed. Both
answer to the same names. lib.data.sources finds sets by name.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from lib.data import files
from lib.data.constants import GREY_WEIGHTS
from lib.data.files import LazyImages, lazy_images
from lib.runs import store

# Sets of files up to this size are decoded once by ImageSet.to; larger ones stream.
RESIDENT_BYTES = 2 * 2**30


# ----------------------------------------------------------------------------------- image sets
@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with labels. Malformed arrays raise ValueError.

    Example:
        images = ImageSet("mine", "train", pixels, labels, ["cat", "dog"])
        images.batch([0, 1, 2])          # uint8 [3, C, H, W]
    """

    name: str
    split: str
    images: np.ndarray | LazyImages  # uint8 [N, H, W, C], C = 1 or 3
    labels: np.ndarray  # int64 [N], indices into classes
    classes: list[str]
    extra: dict[str, np.ndarray] = field(default_factory=dict)  # further labels [N] by name
    source: str = "given arrays"  # where the set was found
    index: np.ndarray | None = None  # positions in the source's own order [N]; None: all
    whole: int | None = None  # how many images the whole set has, where that is known
    device: torch.device = torch.device("cpu")
    pixels: torch.Tensor | None = None  # [N, H, W, C], what .to() put on the device

    def __post_init__(self):
        wrong = _malformed(self.images, self.labels, self.classes, self.extra)
        if wrong:
            raise ValueError(f"{self.name}/{self.split} ({self.source}): {wrong}.")
        object.__setattr__(self, "labels", self.labels.astype(np.int64, copy=False))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def title(self) -> str:
        """The name; with the number of images unless this is the whole of a known set."""
        if len(self) == self.whole:
            return self.name
        noun = "image" if len(self) == 1 else "images"
        return f"{self.name} ({len(self):,} {noun})"

    @cached_property
    def checksum(self) -> str:
        """First 16 hex digits of SHA-256 over shape, images and labels.

        Of files their relative names and sizes count, and what they hold if all of them take at
        most RESIDENT_BYTES.
        """
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        if isinstance(self.images, LazyImages):
            _digest_files(digest, self.images)
        else:
            digest.update(np.ascontiguousarray(self.images))
        digest.update(np.ascontiguousarray(self.labels))
        return digest.hexdigest()[:16]

    def batch(self, indices) -> torch.Tensor:
        """uint8 [B, C, H, W], channels last in memory, on ``device``; indices: [B] integers."""
        indices = self._checked(indices)
        if self.pixels is None:
            chosen = torch.from_numpy(self.images[indices]).to(self.device)
        else:
            chosen = self.pixels[torch.from_numpy(indices).to(self.device)]
        return chosen.permute(0, 3, 1, 2)  # [B, H, W, C] -> [B, C, H, W]

    def subset(self, indices) -> ImageSet:
        """The images at ``indices``; its title says how many they are."""
        indices = self._checked(indices)
        if isinstance(self.images, LazyImages):
            images = replace(self.images, files=[self.images.files[i] for i in indices])
        else:
            images = self.images[indices]
        pixels = self.pixels
        if pixels is not None:
            pixels = pixels[torch.from_numpy(indices).to(self.device)]
        return replace(
            self,
            images=images,
            labels=self.labels[indices],
            extra={key: values[indices] for key, values in self.extra.items()},
            index=indices if self.index is None else self.index[indices],
            pixels=pixels,
        )

    def _checked(self, indices) -> np.ndarray:
        """Indices as whole numbers [B]; ValueError for a mask, for none, or outside the set."""
        indices = np.asarray(indices)
        if indices.ndim != 1 or indices.dtype.kind not in "iu" or not indices.size:
            raise ValueError(
                f"indices have shape {list(indices.shape)} and dtype {indices.dtype}: "
                "give a non-empty list of whole numbers."
            )
        if indices.min() < 0 or indices.max() >= len(self):
            raise ValueError(
                f"indices run from {indices.min()} to {indices.max()}, "
                f"but {self.title} has images 0 to {len(self) - 1}."
            )
        return indices.astype(np.int64)

    def to(self, device: str | torch.device) -> ImageSet:
        """The same set with its pixels on ``device``, if they take at most RESIDENT_BYTES.

        Otherwise batches travel one by one.
        """
        device = torch.device(device)
        fits = np.prod(self.images.shape) <= RESIDENT_BYTES
        already_there = isinstance(self.images, np.ndarray) and device.type == "cpu"
        if not fits or already_there:
            return replace(self, device=device, pixels=None)
        pixels = torch.empty(self.images.shape, dtype=torch.uint8, device=device)
        for start in range(0, len(self), 1024):
            part = np.array(self.images[start : start + 1024])
            pixels[start : start + 1024] = torch.from_numpy(part)
        return replace(self, device=device, pixels=pixels)

    @property
    def is_sorted(self) -> bool:
        """Whether the set has several classes, the images of each in a row.

        Then neither its first images nor its last are typical of the set.
        """
        changes = np.count_nonzero(np.diff(self.labels))
        return 0 < changes < len(np.unique(self.labels))

    def places(self, count: int) -> np.ndarray:
        """Where ``count`` images are that represent the set, or all of them, ascending.

        The first; of a set sorted by class a random choice (seed 0).
        """
        if count >= len(self) or not self.is_sorted:
            return np.arange(min(count, len(self)))
        return np.sort(np.random.default_rng(0).permutation(len(self))[:count])

    def sample(self, count: int) -> ImageSet:
        """The images at ``places``."""
        return self.subset(self.places(count))


def _malformed(
    images: np.ndarray | LazyImages,
    labels: np.ndarray,
    classes: list[str],
    extra: dict[str, np.ndarray],
) -> str:
    """What is wrong with the arrays of a set, or ""."""
    if isinstance(images, np.ndarray) and images.dtype != np.uint8:
        return f"images have dtype {images.dtype}: store them as uint8, 0 to 255"
    shape = list(images.shape)
    if len(shape) != 4:
        return f"images have shape {shape}: give [N, H, W, C] (an npz file may also hold [N, H, W])"
    if shape[3] not in (1, 3):
        return (
            f"images have {shape[3]} channels (shape {shape}): "
            "give 1 (grey) or 3 (RGB) as the last axis"
        )
    if 0 in shape:
        return f"there are no images (shape {shape}): give at least one"
    if labels.dtype.kind not in "iu":
        return f"labels have dtype {labels.dtype}: give whole numbers from 0"
    for key, values in {"labels": labels, **extra}.items():
        if values.shape != (shape[0],):
            return (
                f"{key} has shape {list(values.shape)} but there are {shape[0]} images: "
                "give one value an image"
            )
    if labels.min() < 0 or labels.max() >= len(classes):
        return (
            f"labels run from {labels.min()} to {labels.max()} but there are {len(classes)} "
            f"classes: they count from 0 to {len(classes) - 1}"
        )
    return ""


def _digest_files(digest, images: LazyImages) -> None:
    sizes = [file.stat().st_size for file in images.files]
    read = sum(sizes) <= RESIDENT_BYTES
    for file, size in zip(images.files, sizes, strict=True):
        digest.update(f"{file.relative_to(images.root).as_posix()}\0{size}\0".encode())
        if read:
            digest.update(file.read_bytes())


def batches(image_set: ImageSet, index_batches: Iterable) -> Iterator[torch.Tensor]:
    """``image_set.batch`` of every element of ``index_batches``.

    Of a set of files the next batch is decoded while this one is used.
    """
    if image_set.pixels is not None or not isinstance(image_set.images, LazyImages):
        yield from map(image_set.batch, index_batches)
        return
    with ThreadPoolExecutor(1) as background:
        pending = None
        for indices in index_batches:
            following = background.submit(image_set.batch, indices)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()


def to_bytes(images: torch.Tensor) -> np.ndarray:
    """Floats [..., C, H, W] in 0..1 as an ImageSet has them, uint8 [..., H, W, C].

    Example:
        >>> to_bytes(torch.ones(2, 3, 8, 8)).shape
        (2, 8, 8, 3)
    """
    return (255 * images).round().clamp(0, 255).byte().movedim(-3, -1).numpy()


def with_channels(images: ImageSet, channels: int) -> ImageSet:
    """The same images in ``channels`` (1 or 3) channels: grey repeated, colours as their luma."""
    if images.images.shape[3] == channels:
        return images
    pixels = images.images[np.arange(len(images))]
    if channels == 3:
        changed = np.repeat(pixels, 3, axis=3)
    else:
        changed = np.rint(pixels @ np.array(GREY_WEIGHTS)[:, None]).astype(np.uint8)
    return replace(images, images=changed, pixels=None)


# -------------------------------------------------------------------------------- own files
def read_npz(path: Path, name: str, split: str) -> ImageSet:
    """The set in an npz file: images, labels, maybe classes, and any further labels.

    Arrays called ``<label>_names`` hold names of a further label's values and are not read.
    """
    arrays = store.read_npz(
        path,
        advice="delete it, or write it again; store arrays of numbers and text, not Python objects",
    )
    _check_npz(path, arrays)
    images = arrays.pop("images")
    labels = arrays.pop("labels")
    classes = arrays.pop("classes", None)
    if images.ndim == 3:
        images = images[..., None]
    if classes is None:
        numbered = labels.dtype.kind in "iu" and labels.size
        classes = np.arange(max(labels.max(), 0) + 1 if numbered else 1)
    return ImageSet(
        name=name,
        split=split,
        images=images,
        labels=labels,
        classes=[str(label) for label in classes],
        extra={key: values for key, values in arrays.items() if not key.endswith("_names")},
        source=f"npz file {path}",
    )


def _check_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    missing = [key for key in ("images", "labels") if key not in arrays]
    if missing:
        raise ValueError(
            f"{path} lacks {' and '.join(missing)} (it has {', '.join(arrays) or 'nothing'}): "
            "it needs images and labels."
        )
    for key, values in arrays.items():
        holds_names = key == "classes" or key.endswith("_names")
        if holds_names and values.ndim != 1:
            raise ValueError(f"{path}: {key} has shape {list(values.shape)}: give a list of names.")


def image_folder(
    folder: Path, image_size: int | None = None, name: str = "", split: str = "all"
) -> ImageSet:
    """The images of <folder>/<class>/, at any depth, decoded when they are used.

    A folder without sub-folders is one class, "unlabelled". A class folder may be a link to a
    folder. What is not read follows lib.data.files.walk and is named in a warning.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder: give one that holds images, "
            "or one sub-folder of images for each class."
        )
    class_folders, entries = _class_folders(folder)
    paths = []
    labels = []
    for label, class_folder in enumerate(class_folders or [folder]):
        entries_of_class = files.walk(class_folder)
        images = _images_of(class_folder, entries_of_class)
        paths += images
        labels += [label] * len(images)
        entries += entries_of_class
    left_out = files.describe_left_out(entries, folder)
    if left_out:
        warnings.warn(f"{folder}: {left_out}.", stacklevel=2)
    return ImageSet(
        name=name or folder.name,
        split=split,
        images=lazy_images(paths, folder, image_size),
        labels=np.array(labels),
        classes=[path.name for path in class_folders] or ["unlabelled"],
        source=f"image folder {folder}",
    )


def _images_of(class_folder: Path, entries: list[files.Entry]) -> list[Path]:
    images = [entry.path for entry in entries if entry.is_image]
    if not images:
        left_out = files.describe_left_out(entries, class_folder) or "no files"
        raise ValueError(
            f"{class_folder} holds no images ({left_out}): add some, or remove the folder."
        )
    return images


def _class_folders(folder: Path) -> tuple[list[Path], list[files.Entry]]:
    """The class folders, sorted, and what lies beside them; ValueError if that is an image."""
    class_folders, entries = files.list_folder(folder)
    links = [entry.path for entry in entries if entry.kind == "link"]
    class_folders += [path for path in links if path.is_dir()]
    if not class_folders:
        return [], []
    beside = [entry for entry in entries if entry.path not in class_folders]
    loose = sorted(entry.path.name for entry in beside if entry.is_image)
    if loose:
        raise ValueError(
            f"{folder} holds {len(loose)} image(s) beside its sub-folders ({loose[0]}): "
            "move each into a class, or remove it."
        )
    return sorted(class_folders), beside


# --------------------------------------------------------------------------- splits and subsets
def choose_per_class(
    labels: np.ndarray, fraction: float, seed: int, least: int, spared: int = 0
) -> np.ndarray:
    """Sorted indices of the same fraction of every class, drawn without replacement.

    Of a class of n images round(fraction · n) are taken, but at least ``least`` and at most
    n - ``spared``.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not labels.size:
        raise ValueError(f"labels have shape {list(labels.shape)}: give one label an image.")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is {fraction}: give a number above 0 and up to 1.")
    generator = np.random.default_rng(seed)
    chosen = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        wanted = max(least, round(fraction * len(members)))
        chosen.append(members[: min(wanted, len(members) - spared)])
    return np.sort(np.concatenate(chosen))


def is_copied(test: ImageSet, train: ImageSet) -> np.ndarray:
    """Which test images [N] are a training image again: the same pixels, of files the same bytes.

    Nothing is decoded, and of the training files only those are read whose size a test file has.

    Example:
        is_copied(load("mine", "test"), load("mine", "train")).sum()
    """
    same_size = np.isin(_sizes(train.images), _sizes(test.images))
    digests = {_digest(train.images, index) for index in np.flatnonzero(same_size)}
    return np.array([_digest(test.images, index) in digests for index in range(len(test))])


def _sizes(images: np.ndarray | LazyImages) -> list[int]:
    """Bytes of each image, of files as they are stored."""
    if isinstance(images, LazyImages):
        return [file.stat().st_size for file in images.files]
    return [images[0].nbytes] * len(images)


def _digest(images: np.ndarray | LazyImages, index: int) -> bytes:
    if isinstance(images, LazyImages):
        return hashlib.sha256(images.files[index].read_bytes()).digest()
    return hashlib.sha256(np.ascontiguousarray(images[index])).digest()


def train_validation_split(
    labels: np.ndarray, fraction: float = 0.1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(train, validation) indices, sorted and disjoint.

    Validation has the same fraction of every class, to the nearest image.

    Example:
        >>> train, validation = train_validation_split(np.arange(100) % 10)
        >>> len(train), len(validation)
        (90, 10)
    """
    validation = choose_per_class(labels, fraction, seed, least=0)
    train = np.setdiff1d(np.arange(len(labels)), validation)
    if not len(validation) or not len(train):
        raise ValueError(
            f"A fraction of {fraction} of {len(labels)} images leaves {len(train)} and "
            f"{len(validation)}: choose another."
        )
    return train, validation


def label_subset(labels: np.ndarray, fraction: float, seed: int = 0) -> np.ndarray:
    """Sorted indices of the same fraction of every class, at least one image a class.

    For the 1 % and 10 % protocols of semi-supervised evaluation.

    Example:
        >>> len(label_subset(np.arange(1000) % 10, fraction=0.1))
        100
    """
    return choose_per_class(labels, fraction, seed, least=1)
