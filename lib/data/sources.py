"""Data sets by name, wherever they are.

    images = load("cifar10", "train")                    an ImageSet
    python -m lib.data.sources fetch fashion_mnist       fetch a set and say where it was found

A set is looked for under DATA_DIR (environment; default ./data), in this order:

1. DATA_DIR/<name>/<split>.npz
2. DATA_DIR/<name>/<split>/<class>/*.jpg, and other image files
3. as torchvision stores it
4. torchvision's download, or Debian's package of Fashion-MNIST

digits, avatars and the generated sets need nothing. "styled_<name>" is any set with a drawn style,
and "<name>_class_<k>" are the images of one class of a set.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import warnings
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from lib.data import downloads, layouts
from lib.data.catalogue import (
    CELEBA_ATTRIBUTES,
    DATASETS,
    SEEDS,
    has_styles,
    style_factors,
    terms,
)
from lib.data.downloads import INCEPTION, inception_weights
from lib.data.drawn import generated, styled
from lib.data.files import square
from lib.data.sets import ImageSet, image_folder, read_npz, train_validation_split
from lib.runs import store
from lib.runs.settings import ONE_CLASS
from lib.runs.store import default_data_dir

__all__ = [
    "CELEBA_ATTRIBUTES",
    "DATASETS",
    "INCEPTION",
    "check_name",
    "generated",
    "has_styles",
    "inception_weights",
    "load",
    "style_factors",
    "terms",
]


@dataclass(frozen=True)
class Request:
    """What ``load`` is to find."""

    root: Path
    name: str
    split: str
    image_size: int | None
    download: bool


def load(
    name: str,
    split: str = "train",
    data_dir: Path | None = None,
    image_size: int | None = None,
    download: bool = True,
) -> ImageSet:
    """The images of ``split``, from the first place that has them.

    ``image_size`` resizes the shorter side and keeps the centre square. A set that only has
    ``all`` is split 80/20, stratified, seed 0. A set of one's own may call its test images
    ``val``.

    ValueError for malformed data. FileNotFoundError for an unknown or missing set; the error names
    every way to provide it.

    Example:
        images = load("cifar10", "test", image_size=32)
    """
    root = default_data_dir() if data_dir is None else Path(data_dir).absolute()
    store.plain_name(split, "a set or split")
    check_name(name, root, split)
    is_whole = isinstance(image_size, (int, np.integer))
    if image_size is not None and (not is_whole or image_size < 1):
        raise ValueError(f"image_size is {image_size!r}: give a number of pixels above 0.")
    images = _find(Request(root, name, split, image_size, download))
    if name in DATASETS and split in DATASETS[name].splits:
        images = replace(images, whole=DATASETS[name].splits[split].count)
    # Results are committed: they name the place, not somebody's folder.
    images = replace(images, source=images.source.replace(str(root), "DATA_DIR"))
    return _resized(images, image_size)


def check_name(name: str, root: Path | None = None, split: str = "train") -> None:
    """FileNotFoundError if ``load`` could know no set of this name; nothing is read.

    ValueError if the name is not plain, or DATA_DIR no folder. root: DATA_DIR by default. split:
    for the message.
    """
    root = root or default_data_dir()
    if root.exists() and not root.is_dir():
        raise ValueError(
            f"DATA_DIR is {root}, which is not a folder: give one that holds data sets, "
            "or a path that can be created."
        )
    if store.plain_name(name, "a set or split") in DATASETS or (root / name).is_dir():
        return
    one_class = ONE_CLASS.fullmatch(name)
    if one_class:
        check_name(one_class["name"], root, split)
    elif name.startswith("styled_"):
        check_name(name.removeprefix("styled_"), root, split)
    else:
        raise FileNotFoundError(
            f"There is no set {name!r}: choose one of {', '.join(DATASETS)}, "
            f"or bring your own as {_own_places(root, name, split)}."
        )


def _find(request: Request) -> ImageSet:
    images = _from_files(request)
    if images is not None:
        return images
    folder = request.root / request.name
    if request.name not in DATASETS and folder.is_dir():
        visible = [path for path in folder.iterdir() if not path.name.startswith(".")]
        stored = ", ".join(sorted({path.stem for path in visible}))
        raise ValueError(f"{folder} has no split {request.split!r}: it has {stored or 'nothing'}.")
    if ONE_CLASS.fullmatch(request.name):
        return _one_class(request)
    if request.name.startswith("styled_"):
        return _styled(request)
    return _known_set(request)


def _part_of_all(everything: ImageSet, split: str) -> ImageSet:
    """The stratified 80 % (train) or 20 % (test), seed 0, of a set without splits."""
    train, test = train_validation_split(everything.labels, 0.2, seed=0)
    return replace(everything.subset(train if split == "train" else test), split=split)


def _resized(images: ImageSet, image_size: int | None) -> ImageSet:
    """Every image as a square of image_size, if that is given and the images are in memory."""
    in_memory = isinstance(images.images, np.ndarray)
    if not image_size or not in_memory or images.images.shape[1:3] == (image_size, image_size):
        return images
    resized = []
    for image in images.images:
        resized.append(np.asarray(square(Image.fromarray(image.squeeze()), image_size)))
    pixels = np.stack(resized).reshape(len(images), image_size, image_size, -1)
    return replace(images, images=pixels)


# ---------------------------------------------------------------------------------- own files
def _from_files(request: Request) -> ImageSet | None:
    folder = request.root / request.name
    test_names = _names_of_test(request.name)
    for stored_as in test_names if request.split == "test" else [request.split]:
        path = _own_path(folder, stored_as)
        if path:
            return _read_own(path, request)
    # Where train or test has files of its own, nothing is taken out of "all": it could overlap.
    path = _own_path(folder, "all")
    has_parts = any(_own_path(folder, part) for part in ("train", *test_names))
    if request.split in ("train", "test") and path and not has_parts:
        return _part_of_all(_read_own(path, replace(request, split="all")), request.split)
    return None


def _names_of_test(name: str) -> list[str]:
    """Names of the test images; ``val`` is one, unless a set has another split of that name."""
    if name in DATASETS and "val" in DATASETS[name].splits:
        return ["test"]
    return ["test", "val"]


def _own_path(folder: Path, split: str) -> Path | None:
    packed = folder / f"{split}.npz"
    if packed.exists():
        return packed
    if (folder / split).is_dir():
        return folder / split
    return None


def _read_own(path: Path, request: Request) -> ImageSet:
    if path.is_dir():
        return image_folder(path, request.image_size, request.name, request.split)
    return read_npz(path, request.name, request.split)


# ----------------------------------------------------------------------------------- known sets
def _known_set(request: Request) -> ImageSet:
    known_set = DATASETS[request.name]
    only_all = list(known_set.splits) == ["all"]
    is_part = only_all and request.split in ("train", "test")
    if request.split not in known_set.splits and not is_part:
        raise ValueError(
            f"{request.name} has no split {request.split!r}: it has {', '.join(known_set.splits)}."
        )
    if not known_set.provider:
        return _made_here(request)
    if known_set.size is None and request.image_size is None:
        raise ValueError(
            f"{request.name} has images of many sizes: give image_size, as in image_size=64."
        )
    stored = replace(request, split="all") if is_part else request
    reasons: list[str] = []
    images = _in_place(stored, reasons)
    if images is None:
        images = _fetched(stored, reasons)
    if images is None:
        raise FileNotFoundError(_every_way(request, reasons))
    return _part_of_all(images, request.split) if is_part else images


# These two return None where they have no images, and add the reason to ``reasons``.
def _in_place(request: Request, reasons: list[str]) -> ImageSet | None:
    """The set as torchvision stores it."""
    folder = request.root / DATASETS[request.name].folder
    if not folder.is_dir():
        return None
    try:
        return _read(request)
    except Exception as error:  # readers of images, archives and annotations raise a dozen types
        problem = f"{folder} is incomplete or damaged: {store.one_line(error)}"
        if problem not in reasons:
            reasons.append(problem)
        return None


def _fetched(request: Request, reasons: list[str]) -> ImageSet | None:
    """The set by the first route that gives it, moved into its place."""
    routes = downloads.routes(request.name, request.download)
    if not routes:
        reasons.append("Nothing was fetched (download=False).")
        return None
    if reasons:
        warnings.warn(f"{reasons[-1]}; fetching {request.name} again.", stacklevel=5)
    with contextlib.ExitStack() as stack:
        try:
            staging = stack.enter_context(downloads.staging_folder(request.root, request.name))
        except OSError as error:
            reasons.append(
                f"DATA_DIR is {request.root}, which cannot be written ({store.one_line(error)})."
            )
            return None
        # Another job may have fetched it while this one waited for the lock.
        images = _in_place(request, reasons)
        if images is not None:
            return images
        for route, fetch in routes.items():
            try:
                fetch(staging, request.name, request.split)
            except Exception as error:  # torchvision, gdown and archives raise a dozen types
                reasons.append(f"{route} failed: {store.one_line(error)}.")
                continue
            downloads.put_in_place(staging, request.root)
            folder = request.root / DATASETS[request.name].folder
            return replace(_read(request), source=f"{route}, now in {folder}")
    return None


def _read(request: Request) -> ImageSet:
    return layouts.read_torchvision(request.root, request.name, request.split, request.image_size)


def _own_places(root: Path, name: str, split: str) -> str:
    place = root / name / split
    return (
        f"{place}.npz (images uint8 [N, H, W(, C)], labels [N], classes) or {place}/<class>/*.jpg"
    )


def _every_way(request: Request, reasons: list[str]) -> str:
    """The message for a set that was not found: why, and every way to provide it."""
    name = request.name
    known_set = DATASETS[name]
    layout = request.root / known_set.folder
    lines = [
        f"{name} ({request.split}) was not found and could not be fetched.",
        *reasons,
        f"You can provide it as {_own_places(request.root, name, request.split)}",
        f"or as torchvision's {known_set.provider} stores it, in {layout}.",
    ]
    if name in downloads.DEBIAN:
        package, _ = downloads.DEBIAN[name]
        lines.append(
            f"Debian and Ubuntu have it: `apt-get install {package}`; "
            "after `apt-get update` it is fetched without root."
        )
    if known_set.note:
        lines.append(f"About {name}: {known_set.note}.")
    return "\n  ".join(lines)


# ------------------------------------------------------------------------ sets made from others
def _one_class(request: Request) -> ImageSet:
    """The images of one class of a set, with a class of their own."""
    name = ONE_CLASS.fullmatch(request.name)
    label = int(name["label"])
    whole = load(name["name"], request.split, request.root, request.image_size, request.download)
    if label >= len(whole.classes):
        raise ValueError(f"{request.name}: {whole.name} has classes 0 to {len(whole.classes) - 1}.")
    images = whole.subset(np.flatnonzero(whole.labels == label))
    return replace(
        images,
        name=request.name,
        labels=np.zeros(len(images), np.int64),
        classes=[whole.classes[label]],
        extra={},
        whole=len(images),
    )


_drawn: dict[tuple, ImageSet] = {}  # the last few: drawing takes seconds, and runs share them


def _styled(request: Request) -> ImageSet:
    """A set with styles drawn by lib.data; every split has its own."""
    plain_name = request.name.removeprefix("styled_")
    plain_size = None if _has_one_size(request, plain_name) else request.image_size
    plain = load(plain_name, request.split, request.root, plain_size, request.download)
    size = request.image_size
    if size is None and request.name in DATASETS:
        size = DATASETS[request.name].size
    if size is None:
        size = plain.images.shape[1]
    key = (plain.checksum, plain.name, plain.split, size)
    if key not in _drawn:
        while len(_drawn) > 3:
            del _drawn[next(iter(_drawn))]
        _drawn[key] = styled(plain, size, SEEDS.get(plain.split, len(SEEDS)))
    return _drawn[key]


def _has_one_size(request: Request, plain_name: str) -> bool:
    """Whether a set's images have one size; then styles are drawn on images of that size."""
    if plain_name in DATASETS:
        return bool(DATASETS[plain_name].size)
    stored = [request.split, "all"]
    if request.split == "test":
        stored.append("val")
    folder = request.root / plain_name
    return any((folder / f"{split}.npz").exists() for split in stored)


def _made_here(request: Request) -> ImageSet:
    """digits, avatars, and the generated sets."""
    if request.name == "digits":
        return _part_of_all(_digits(request.image_size), request.split)
    if request.name == "avatars":
        return _avatars(request)
    count = DATASETS[request.name].splits[request.split].count
    drawn = generated(count, request.image_size or 32, SEEDS[request.split])
    return replace(drawn, name=request.name, split=request.split)


def _avatars(request: Request) -> ImageSet:
    """The avatars, drawn once and kept in DATA_DIR."""
    from lib.data import avatars  # slow to import

    drawn = avatars.draw_split(request.split)
    path = request.root / request.name / f"{request.split}.npz"
    arrays = {"images": drawn.images, "labels": drawn.labels, "classes": np.array(drawn.classes)}
    with contextlib.suppress(OSError):  # where nothing can be kept they are drawn again
        store.write_npz(path, **arrays, **drawn.extra)
    return drawn


@lru_cache(maxsize=4)
def _digits(image_size: int | None) -> ImageSet:
    """All digits, read once in a process; a split of them has copies."""
    from sklearn.datasets import load_digits  # slow to import

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    classes = [str(label) for label in bunch.target_names]
    everything = ImageSet("digits", "all", images, bunch.target, classes, source="scikit-learn")
    return _resized(everything, image_size)


# --------------------------------------------------------------------------------- command line
def _fetch(name: str) -> None:
    """Fetch a set, or Inception's weights, and print where it is and what it holds."""
    if name == "inception":
        print(f"inception: {inception_weights(download=True)}")
        return
    many_sizes = name in DATASETS and DATASETS[name].size is None
    for split in ("train", "test"):
        images = load(name, split, image_size=224 if many_sizes else None)
        shape = " x ".join(map(str, images.images.shape[1:]))
        print(
            f"{name}/{split}: {len(images):,} images, {shape}, {len(images.classes)} classes, "
            f"{images.source}, sha256 {images.checksum}"
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lib.data.sources", description="Fetch data sets into DATA_DIR."
    )
    parser.add_argument("command", choices=["fetch"])
    parser.add_argument(
        "names", nargs="+", metavar="NAME", help=", ".join([*DATASETS, "inception"])
    )
    options = parser.parse_args(arguments)
    print(f"DATA_DIR is {default_data_dir()}")
    failed = False
    for name in options.names:
        try:
            _fetch(name)
        except (ValueError, OSError) as error:
            print(error, file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
