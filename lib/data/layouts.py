"""Reading the known sets as torchvision stores them under DATA_DIR."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from lib.data.catalogue import DATASETS, HAIR, hair_colour
from lib.data.sets import ImageSet, image_folder, lazy_images


def read_torchvision(root: Path, name: str, split: str, image_size: int | None) -> ImageSet:
    """A known set from torchvision's files; of what is missing or damaged any exception."""
    known_set = DATASETS[name]
    folder = root / known_set.folder
    source = f"torchvision layout {folder}"
    if known_set.provider in ("MNIST", "FashionMNIST"):
        images = _read_mnist(folder, name, split)
    elif known_set.provider == "ImageFolder":
        images = _read_class_folders(folder, name, split, image_size)
    elif name == "stl10":
        images = _read_stl10(root, split)
    elif name == "celeba":
        images = _read_celeba(root, split, image_size)
    elif known_set.provider in ("CIFAR10", "CIFAR100"):
        dataset = torchvision_set(root, name, split)
        labels = np.asarray(dataset.targets, np.int64)
        images = ImageSet(name, split, dataset.data, labels, list(dataset.classes))
    else:
        images = _read_files(root, name, split, image_size)
    return replace(images, source=source)


def torchvision_class(name: str) -> type:
    import torchvision  # slow to import

    return getattr(torchvision.datasets, DATASETS[name].provider)


def torchvision_set(root: Path, name: str, split: str, download: bool = False):
    """torchvision's own data set; FileNotFoundError for those that it has not."""
    if DATASETS[name].provider == "ImageFolder":
        raise FileNotFoundError("torchvision cannot download it")
    arguments = dict(DATASETS[name].splits[split].arguments)
    if name == "celeba":
        arguments["target_type"] = ["attr", "identity"]
    return torchvision_class(name)(root, download=download, **arguments)


def _read_mnist(folder: Path, name: str, split: str) -> ImageSet:
    prefix = "train" if split == "train" else "t10k"
    images = _read_idx(folder / f"{prefix}-images-idx3-ubyte")
    labels = _read_idx(folder / f"{prefix}-labels-idx1-ubyte")
    return ImageSet(name, split, images[..., None], labels, list(torchvision_class(name).classes))


def _read_idx(path: Path) -> np.ndarray:
    """The array in one of MNIST's idx files, packed (.gz) or not."""
    try:
        if path.exists():
            content = path.read_bytes()
        else:
            content = gzip.decompress(path.with_name(path.name + ".gz").read_bytes())
        dimensions = content[3]
        shape = np.frombuffer(content, ">i4", dimensions, offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise OSError(f"{path} is missing, truncated or no idx file ({error})") from error


def _read_class_folders(folder: Path, name: str, split: str, image_size: int | None) -> ImageSet:
    if split == "test" and not (folder / "test").is_dir():
        return image_folder(folder / "val", image_size, name, split)
    return image_folder(folder / split, image_size, name, split)


def _read_stl10(root: Path, split: str) -> ImageSet:
    dataset = torchvision_set(root, "stl10", split)
    images = np.ascontiguousarray(dataset.data.transpose(0, 2, 3, 1))  # from [N, C, H, W]
    labels = np.asarray(dataset.labels, np.int64)
    classes = list(dataset.classes)
    if (labels < 0).any():
        labels = np.where(labels < 0, len(classes), labels)
        classes.append("unlabelled")
    return ImageSet("stl10", split, images, labels, classes)


def _read_celeba(root: Path, split: str, image_size: int | None) -> ImageSet:
    dataset = torchvision_set(root, "celeba", split)
    names = [name for name in dataset.attr_names if name]
    extra = dict(zip(names, dataset.attr.numpy().T, strict=True))
    extra["identity"] = dataset.identity.numpy().squeeze(1)
    if set(HAIR) <= set(extra):
        extra["hair"] = hair_colour(extra)
    files = [root / "celeba" / "img_align_celeba" / file for file in dataset.filename]
    images = lazy_images(files, root, image_size)
    labels = np.asarray(extra["Male"], np.int64)
    return ImageSet("celeba", split, images, labels, ["not male", "male"], extra)


def _read_files(root: Path, name: str, split: str, image_size: int | None) -> ImageSet:
    """A set of image files; torchvision has no common name for their paths and labels."""
    dataset = torchvision_set(root, name, split)
    if hasattr(dataset, "_samples"):
        pairs = [(Path(file), label) for file, label in dataset._samples]
    else:
        paths = dataset._images if name == "pets" else dataset._image_files
        pairs = sorted(zip(map(Path, paths), dataset._labels, strict=True))
    labels = np.array([label for _, label in pairs], np.int64)
    images = lazy_images([file for file, _ in pairs], root, image_size)
    classes = getattr(dataset, "classes", None) or range(labels.max() + 1)
    return ImageSet(name, split, images, labels, [_class_name(label) for label in classes])


def _class_name(label: str | int | tuple[str, ...]) -> str:
    """One name of a class, of which Imagenette has several."""
    return label[0] if isinstance(label, tuple) else str(label)
