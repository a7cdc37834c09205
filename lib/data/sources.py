"""Data sets by name, wherever they are: npz files, image folders, torchvision, a Debian package, scikit-learn, or generated.

    images = load("cifar10", "train")              an ImageSet; looks under DATA_DIR (environment, default ./data), then downloads
    images.batch([0, 1, 2])                        uint8 [3, C, H, W] on images.device
    python -m lib.data.sources fetch fashion_mnist         fetch a set and say where it was found

Small sets are arrays in memory; sets of image files are decoded as they are needed. Both answer to the same names.
"""

import argparse
import contextlib
import gzip
import io
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import urllib.request
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from lib.data.sets import (
    ImageSet,
    batches,
    generated,
    image_folder,
    label_subset,
    lazy_images,
    read_npz,
    square,
    styled,
    train_validation_split,
)
from lib.runs import store as artifacts
from lib.runs.settings import ONE_CLASS
from lib.runs.store import default_data_dir

__all__ = [
    "DATASETS",
    "ImageSet",
    "batches",
    "data_table",
    "generated",
    "has_styles",
    "image_folder",
    "inception_weights",
    "label_subset",
    "load",
    "style_factors",
    "styled",
    "train_validation_split",
]

NETWORK_TIMEOUT = 20  # seconds without an answer
# Inception-v3, the network that the FID is defined in, as torch-fidelity converted it; the name ends with the beginning of the file's sha256.
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
DEBIAN = {"fashion_mnist": ("dataset-fashion-mnist", Path("/usr/share/datasets/fashion-mnist"))}

# CelebA's style in SimVAE (Bizeul et al. 2024, §6 and Figures 5 and 6): hair colour, and attributes of which the paper names none. These are those
# that the authors' code can ask for, hair apart.
HAIR = ("Bald", "Brown_Hair", "Blond_Hair", "Gray_Hair", "Black_Hair")
CELEBA_ATTRIBUTES = (
    "5_o_Clock_Shadow",
    "Arched_Eyebrows",
    "Bags_Under_Eyes",
    "Bald",
    "Bangs",
    "Big_Lips",
    "Big_Nose",
    "Blurry",
    "Bushy_Eyebrows",
    "Eyeglasses",
    "Heavy_Makeup",
    "High_Cheekbones",
    "Male",
    "Mouth_Slightly_Open",
    "Mustache",
    "Narrow_Eyes",
    "No_Beard",
    "Oval_Face",
    "Pale_Skin",
    "Pointy_Nose",
    "Receding_Hairline",
    "Rosy_Cheeks",
    "Sideburns",
    "Smiling",
    "Straight_Hair",
    "Wavy_Hair",
    "Wearing_Earrings",
    "Wearing_Hat",
    "Wearing_Lipstick",
    "Young",
)
BALANCED = 20
AIRCRAFT_MD5 = "d4acdd33327262359767eeaa97a4f732"  # its authors'; torchvision, which checks every other archive, has none for this one


# ------------------------------------------------------------------------------------------------------------ known sets
class Known(NamedTuple):
    provider: str  # class in torchvision.datasets; "" for sets made here
    folder: str  # what that class reads under DATA_DIR
    splits: dict[
        str, tuple[int, dict]
    ]  # split -> official number of images, arguments of the class
    size: int | None  # pixels; None where images differ, and load() needs image_size
    terms: str
    note: str = ""  # what to know when it cannot be downloaded


def _splits(**splits: tuple) -> dict:
    """split=(count, value of torchvision's split argument), or =count where the class has no such argument."""
    return {
        name: (s, {}) if isinstance(s, int) else (s[0], {"split": s[1]})
        for name, s in splits.items()
    }


def _train_test(train: int, test: int) -> dict:
    return {"train": (train, {"train": True}), "test": (test, {"train": False})}


DATASETS = {
    "mnist": Known(
        "MNIST", "MNIST/raw", _train_test(60_000, 10_000), 28, "CC BY-SA 3.0 (LeCun & Cortes)"
    ),
    "fashion_mnist": Known(
        "FashionMNIST",
        "FashionMNIST/raw",
        _train_test(60_000, 10_000),
        28,
        "MIT (Xiao et al. 2017)",
    ),
    "cifar10": Known(
        "CIFAR10",
        "cifar-10-batches-py",
        _train_test(50_000, 10_000),
        32,
        "no licence stated, research use (Krizhevsky 2009)",
    ),
    "cifar100": Known(
        "CIFAR100",
        "cifar-100-python",
        _train_test(50_000, 10_000),
        32,
        "no licence stated, research use (Krizhevsky 2009)",
    ),
    "stl10": Known(
        "STL10",
        "stl10_binary",
        {
            s: (n, {"split": s})
            for s, n in {
                "train": 5_000,
                "test": 8_000,
                "unlabeled": 100_000,
                "train+unlabeled": 105_000,
            }.items()
        },
        96,
        "no licence stated, images from ImageNet (Coates et al. 2011)",
    ),
    "celeba": Known(
        "CelebA",
        "celeba",
        _splits(
            train=(162_770, "train"),
            val=(19_867, "valid"),
            test=(19_962, "test"),
            all=(202_599, "all"),
        ),
        None,
        "non-commercial research, not to be passed on (Liu et al. 2015)",
        "its Google Drive often refuses downloads: put img_align_celeba/ and the .txt files in DATA_DIR/celeba by hand",
    ),
    "imagenette": Known(
        "Imagenette",
        "imagenette2-320",
        _splits(train=(9_469, "train"), test=(3_925, "val")),
        None,
        "ImageNet terms (fast.ai)",
    ),
    "imagewoof": Known(
        "ImageFolder",
        "imagewoof2-320",
        _splits(train=9_025, test=3_929),
        None,
        "ImageNet terms (fast.ai)",
        "torchvision does not have it: unpack fast.ai's imagewoof2-320.tgz in DATA_DIR",
    ),
    "flowers102": Known(
        "Flowers102",
        "flowers-102",
        _splits(train=(1_020, "train"), val=(1_020, "val"), test=(6_149, "test")),
        None,
        "no licence stated, research use (Nilsback & Zisserman 2008)",
    ),
    "food101": Known(
        "Food101",
        "food-101",
        _splits(train=(75_750, "train"), test=(25_250, "test")),
        None,
        "research use (Bossard et al. 2014)",
    ),
    "dtd": Known(
        "DTD",
        "dtd",
        _splits(train=(1_880, "train"), val=(1_880, "val"), test=(1_880, "test")),
        None,
        "research use (Cimpoi et al. 2014)",
    ),
    "aircraft": Known(
        "FGVCAircraft",
        "fgvc-aircraft-2013b",
        _splits(train=(3_334, "train"), val=(3_333, "val"), test=(3_333, "test")),
        None,
        "non-commercial research (Maji et al. 2013)",
    ),
    "sun397": Known(
        "SUN397",
        "SUN397",
        _splits(all=108_754),
        None,
        "research use (Xiao et al. 2010)",
        "its server may no longer answer: unpack SUN397.tar.gz from another source in DATA_DIR",
    ),
    "pets": Known(
        "OxfordIIITPet",
        "oxford-iiit-pet",
        _splits(train=(3_680, "trainval"), test=(3_669, "test")),
        None,
        "CC BY-SA 4.0 (Parkhi et al. 2012)",
    ),
    "cars": Known(
        "StanfordCars",
        "stanford_cars",
        _splits(train=(8_144, "train"), test=(8_041, "test")),
        None,
        "non-commercial research (Krause et al. 2013)",
        "its download no longer exists: put devkit/, cars_train/, cars_test/ and cars_test_annos_withlabels.mat in DATA_DIR/stanford_cars",
    ),
    "imagenet": Known(
        "ImageFolder",
        "imagenet",
        _splits(train=1_281_167, test=50_000),
        None,
        "non-commercial research (Russakovsky et al. 2015)",
        "it needs an account: put it in DATA_DIR/imagenet/train/<class>/ and DATA_DIR/imagenet/val/<class>/",
    ),
    "digits": Known(
        "",
        "",
        _splits(train=1_438, test=359),
        8,
        "CC BY 4.0 (Alpaydin & Kaynak 1998, from scikit-learn)",
    ),
    "styled_fashion_mnist": Known(
        "",
        "",
        _splits(train=60_000, test=10_000),
        32,
        "as fashion_mnist; colour, size, turn and place drawn by lib.data.sources",
    ),
    "styled_digits": Known(
        "",
        "",
        _splits(train=1_438, test=359),
        32,
        "as digits; colour, size, turn and place drawn by lib.data.sources",
    ),
    "generated": Known("", "", _splits(train=512, test=256), 32, "none: drawn by lib.data.sources"),
    "generated_noise": Known(
        "", "", _splits(train=512, test=256), 32, "none: drawn by lib.data.sources"
    ),
}


# ------------------------------------------------------------------------------------------------------------ finding a set
def load(
    name: str,
    split: str = "train",
    data_dir: Path | None = None,
    image_size: int | None = None,
    download: bool = True,
) -> ImageSet:
    """The images of ``split``, from the first place that has them.

    DATA_DIR/<name>/<split>.npz, DATA_DIR/<name>/<split>/<class>/*.jpg, the torchvision layout under DATA_DIR, a torchvision download,
    a Debian package; digits and generated sets need nothing, "styled_<name>" is any set with a drawn style (styled), and "<name>_class_<k>" the
    images of one of its classes. A set that only has ``all`` is split 80/20, stratified, seed 0.
    ``image_size`` resizes the shorter side and keeps the centre square.
    ValueError: malformed or unknown; FileNotFoundError: known, but nowhere to be had.
    """
    root = Path(data_dir).absolute() if data_dir is not None else default_data_dir()
    check_name(name, root, artifacts.plain_name(split, "a set or split"))
    if image_size is not None and (not isinstance(image_size, (int, np.integer)) or image_size < 1):
        raise ValueError(f"image_size is {image_size!r}: give a number of pixels above 0.")
    reasons: list[str] = []
    found = _from_files(root, name, split, image_size)
    if found is None and name not in DATASETS and (root / name).is_dir():
        there = sorted(
            {path.stem for path in (root / name).iterdir() if not path.name.startswith(".")}
        )
        raise ValueError(
            f"{root / name} has no split {split!r}: it has {', '.join(there) or 'nothing'}."
        )
    if found is None and (single := ONE_CLASS.fullmatch(name)):
        found = _one_class(
            load(single["name"], split, data_dir, image_size, download), int(single["label"]), name
        )
    if found is None and name.startswith("styled_"):
        plain = name.removeprefix("styled_")
        sized = (
            DATASETS[plain].size
            if plain in DATASETS
            else any((root / plain / f"{which}.npz").exists() for which in (split, "all"))
        )
        needed = (
            None if sized else image_size
        )  # styles are drawn on images of a set's own size, where it has one
        found = _styled(load(plain, split, data_dir, needed, download), image_size)
    if found is None:
        known = DATASETS[name]
        only_all = set(known.splits) == {"all"}
        if split not in known.splits and not (only_all and split in ("train", "test")):
            raise ValueError(f"{name} has no split {split!r}: it has {', '.join(known.splits)}.")
        if not known.provider:
            found = _made_here(name, split, image_size)
        elif known.size is None and image_size is None:
            raise ValueError(
                f"{name} has images of many sizes: give image_size, as in image_size=64."
            )
        else:
            found = _split_all(
                lambda which: _from_torchvision(root, name, which, image_size, download, reasons),
                split,
                only_all,
            )
    if found is None:
        raise FileNotFoundError(_every_way(root, name, split, reasons))
    if name in DATASETS and split in DATASETS[name].splits:
        found = replace(found, whole=DATASETS[name].splits[split][0])
    # Results are committed: they name the place, not somebody's folder.
    found = replace(found, source=found.source.replace(str(root), "DATA_DIR"))
    return _resized(found, image_size)


def _resized(found: ImageSet, image_size: int | None) -> ImageSet:
    """Every image as a square of image_size, where that is given and the images are in memory."""
    if (
        not image_size
        or not isinstance(found.images, np.ndarray)
        or found.images.shape[1:3] == (image_size, image_size)
    ):
        return found
    resized = [
        np.asarray(square(Image.fromarray(image.squeeze()), image_size)) for image in found.images
    ]
    return replace(found, images=np.stack(resized).reshape(len(found), image_size, image_size, -1))


def check_name(name: str, root: Path | None = None, split: str = "train") -> None:
    """ValueError if ``load`` could know no set of this name; nothing is read."""
    root = root or default_data_dir()
    if root.exists() and not root.is_dir():
        raise ValueError(
            f"DATA_DIR is {root}, which is not a folder: give one that holds data sets, or a path that can be created."
        )
    if artifacts.plain_name(name, "a set or split") in DATASETS or (root / name).is_dir():
        return
    if single := ONE_CLASS.fullmatch(name):
        check_name(single["name"], root, split)
    elif name.startswith("styled_"):
        check_name(name.removeprefix("styled_"), root, split)
    else:
        own = _own_files(root, name, split)
        raise ValueError(
            f"There is no set {name!r}: choose one of {', '.join(DATASETS)}, or bring your own as {own}."
        )


def _own_files(root: Path, name: str, split: str) -> str:
    return f"{root / name / split}.npz (images uint8 [N, H, W(, C)], labels [N], classes) or {root / name / split}/<class>/*.jpg"


def _every_way(root: Path, name: str, split: str, reasons: list[str]) -> str:
    known = DATASETS[name]
    lines = [f"{name} ({split}) was not found and could not be fetched.", *reasons]
    lines.append(f"You can provide it as {_own_files(root, name, split)}")
    lines.append(f"or as torchvision's {known.provider} stores it, in {root / known.folder}.")
    if name in DEBIAN:
        lines.append(
            f"Debian and Ubuntu have it: `apt-get install {DEBIAN[name][0]}`; after `apt-get update` it is fetched without root."
        )
    if known.note:
        lines.append(f"About {name}: {known.note}.")
    return "\n  ".join(lines)


def _split_all(find, split: str, only_all: bool) -> ImageSet | None:
    """``find(split)``; where there is only "all", its stratified 80 % (train) or 20 % (test), seed 0."""
    if not only_all or split == "all":
        return find(split)
    everything = find("all")
    if everything is None:
        return None
    train, test = train_validation_split(everything.labels, 0.2, seed=0)
    return replace(everything.subset(train if split == "train" else test), split=split)


def _from_files(root: Path, name: str, split: str, image_size: int | None) -> ImageSet | None:
    folder = root / name

    def place(which: str) -> Path | None:
        packed, classes = folder / f"{which}.npz", folder / which
        return packed if packed.exists() else classes if classes.is_dir() else None

    def find(which: str) -> ImageSet | None:
        if (path := place(which)) is None:
            return None
        return (
            image_folder(path, image_size, name, which)
            if path.name == which
            else read_npz(path, name, which)
        )

    only_all = (
        split in ("train", "test") and place("all") and not place("train") and not place("test")
    )
    return _split_all(find, split, only_all)


# ------------------------------------------------------------------------------------------------------------ torchvision and Debian
def _from_torchvision(
    root: Path, name: str, split: str, image_size: int | None, download: bool, reasons: list[str]
) -> ImageSet | None:
    folder = root / DATASETS[name].folder

    def in_place() -> ImageSet | None:
        if not folder.is_dir():
            return None
        try:
            return _read_torchvision(root, name, split, image_size)
        except (
            Exception
        ) as error:  # what reads images, archives and annotations raises a dozen types
            problem = f"{folder} is incomplete or damaged: {artifacts.one_line(error)}"
            if problem not in reasons:
                reasons.append(problem)
            return None

    if (found := in_place()) is not None:
        return found
    fetchers = {"torchvision download": _torchvision_download} if download else {}
    if name in DEBIAN and (download or DEBIAN[name][1].is_dir()):
        fetchers[f"Debian package {DEBIAN[name][0]}"] = _debian_package
    if not fetchers:
        reasons.append("Nothing was fetched (download=False).")
        return None
    if reasons:
        warnings.warn(f"{reasons[-1]}; fetching {name} again.", stacklevel=5)
    with contextlib.ExitStack() as stack:
        try:
            staging = stack.enter_context(_staging(root, name))
        except OSError as error:
            reasons.append(
                f"DATA_DIR is {root}, which cannot be written ({artifacts.one_line(error)})."
            )
            return None
        # Another job may have fetched it while this one waited for the lock.
        if (found := in_place()) is not None:
            return found
        for route, fetch in fetchers.items():
            try:
                fetch(staging, name, split)
            except Exception as error:  # torchvision, gdown and archives raise a dozen types; each reason is reported
                reasons.append(f"{route} failed: {artifacts.one_line(error)}.")
            else:
                _put_in_place(staging, root)
                return replace(
                    _read_torchvision(root, name, split, image_size),
                    source=f"{route}, now in {folder}",
                )
    return None


def _read_torchvision(root: Path, name: str, split: str, image_size: int | None) -> ImageSet:
    known = DATASETS[name]
    source = f"torchvision layout {root / known.folder}"
    if known.provider in ("MNIST", "FashionMNIST"):
        prefix = f"{root / known.folder}/{'train' if split == 'train' else 't10k'}"
        images, labels = (
            _read_idx(Path(f"{prefix}-images-idx3-ubyte"))[..., None],
            _read_idx(Path(f"{prefix}-labels-idx1-ubyte")),
        )
        return ImageSet(
            name, split, images, labels, list(_torchvision_class(name).classes), source=source
        )
    if known.provider == "ImageFolder":
        folder = root / known.folder / {"test": "val"}.get(split, split)
        return replace(image_folder(folder, image_size, name, split), source=source)
    provided = _provider(root, name, split, download=False)
    classes, extra = getattr(provided, "classes", None), {}
    if name == "stl10":
        images, labels = (
            np.ascontiguousarray(provided.data.transpose(0, 2, 3, 1)),
            provided.labels,
        )  # [N, C, H, W] -> [N, H, W, C]
        if (labels < 0).any():
            labels, classes = np.where(labels < 0, len(classes), labels), [*classes, "unlabelled"]
    elif isinstance(getattr(provided, "data", None), np.ndarray):
        images, labels = provided.data, provided.targets
    elif name == "celeba":
        attributes = provided.attr.numpy()
        names = [attribute for attribute in provided.attr_names if attribute]
        extra = {
            **dict(zip(names, attributes.T, strict=True)),
            "identity": provided.identity.numpy().squeeze(1),
        }
        extra |= {"hair": hair_colour(extra)} if set(HAIR) <= set(extra) else {}
        images = [root / "celeba" / "img_align_celeba" / file for file in provided.filename]
        labels, classes = extra["Male"], ["not male", "male"]
    elif hasattr(provided, "_samples"):
        images, labels = zip(*provided._samples, strict=True)
    else:
        images = provided._images if name == "pets" else provided._image_files
        images, labels = zip(
            *sorted(zip(map(Path, images), provided._labels, strict=True)), strict=True
        )
    labels = np.asarray(labels, dtype=np.int64)
    if not isinstance(images, np.ndarray):
        images = lazy_images([Path(file) for file in images], root, image_size)
    classes = [
        c if isinstance(c, str) else c[0] for c in classes or map(str, range(labels.max() + 1))
    ]
    return ImageSet(name, split, images, labels, classes, extra, source)


def hair_colour(attributes: dict[str, np.ndarray]) -> np.ndarray:
    """CelebA's hair as one of five classes [N], in the order of HAIR; -1 where none of the five attributes is given, or more than one.

    SimVAE, §6. Deviation: the authors' code has "none of the others" as its fifth class, where the paper has bald.
    """
    given = np.stack([attributes[name] == 1 for name in HAIR])  # [5, N]
    return np.where(given.sum(0) == 1, given.argmax(0), -1)


def style_factors(train: ImageSet) -> list[str]:
    """The labels beside the class that a set has for the style of its images; of CelebA the hair and the 20 most balanced of CELEBA_ATTRIBUTES.

    Balanced: nearest to one half in these images. The class itself is content and left out, under any name.
    """
    if train.name != "celeba":
        return [
            name for name, values in train.extra.items() if not np.array_equal(values, train.labels)
        ]
    candidates = [name for name in CELEBA_ATTRIBUTES if name in train.extra and name != "Male"]
    balanced = sorted(candidates, key=lambda name: abs(train.extra[name].mean() - 0.5))[:BALANCED]
    return [name for name in ("hair", *balanced) if name in train.extra]


def has_styles(name: str) -> bool:
    """Whether a set's style is known, so that it can be asked what a representation keeps of it."""
    return name == "celeba" or name.startswith("styled_")


def _provider(root: Path, name: str, split: str, download: bool):
    known = DATASETS[name]
    if known.provider == "ImageFolder":
        raise FileNotFoundError("torchvision cannot download it")
    arguments = dict(known.splits[split][1])
    if name == "imagenette":
        arguments["size"] = "320px"
    if name == "celeba":
        arguments["target_type"] = ["attr", "identity"]
    return _torchvision_class(name)(root, download=download, **arguments)


def _torchvision_class(name: str) -> type:
    import torchvision  # slow to import

    return getattr(torchvision.datasets, DATASETS[name].provider)


def _torchvision_download(staging: Path, name: str, split: str) -> None:
    # No member of an archive leaves the folder it is unpacked in, by its path or by a link: what Python does by itself from 3.14 on.
    if hasattr(tarfile, "data_filter"):  # since 3.11.4
        tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    with _time_limit():
        if name == "aircraft":
            from torchvision.datasets.utils import download_and_extract_archive

            download_and_extract_archive(
                _torchvision_class(name)._URL, str(staging), md5=AIRCRAFT_MD5
            )
        if name == "celeba":
            # gdown itself has no time limit: find out first whether the server answers.
            urllib.request.urlopen("https://drive.google.com").close()
        with contextlib.redirect_stdout(io.StringIO()):
            _provider(staging, name, split, download=True)


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    """Let no server be waited for longer than NETWORK_TIMEOUT, by downloaders that set no limit themselves."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _debian_package(staging: Path, name: str, split: str) -> None:
    """Copy the files of the installed package, or fetch and unpack it without root (apt checks it against its signed lists)."""
    package, folder = DEBIAN[name]
    if not folder.is_dir():
        if not (shutil.which("apt-get") and shutil.which("dpkg")):
            raise OSError("this system has no apt-get and dpkg")
        limits = [
            f"Acquire::http::Timeout={NETWORK_TIMEOUT}",
            f"Acquire::https::Timeout={NETWORK_TIMEOUT}",
            "Acquire::Retries=1",
        ]
        command = [
            "apt-get",
            *(part for limit in limits for part in ("-o", limit)),
            "download",
            package,
        ]
        quiet = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
        done = subprocess.run(command, cwd=staging, env={**os.environ, "LC_ALL": "C"}, **quiet)
        if done.returncode:
            said = (
                " ".join(line for line in done.stderr.splitlines() if line.startswith("E:"))
                or done.stderr
            )
            unknown = "Unable to locate" in said or "No packages found" in said
            raise OSError(
                f"apt does not know {package}: run `apt-get update` (as root) and try again"
                if unknown
                else said
            )
        (archive,) = staging.glob("*.deb")
        subprocess.run(
            ["dpkg", "-x", archive.name, "unpacked"], cwd=staging, check=True, capture_output=True
        )
        folder = staging / "unpacked" / folder.relative_to("/")
        archive.unlink()
    raw = staging / DATASETS[name].folder
    # What a torchvision download that failed half-way left here must not be mixed in.
    shutil.rmtree(raw.parent, ignore_errors=True)
    raw.mkdir(parents=True)
    for file in folder.glob("*.gz"):
        shutil.copyfile(file, raw / file.name)
    shutil.rmtree(staging / "unpacked", ignore_errors=True)


@contextlib.contextmanager
def _staging(root: Path, name: str) -> Iterator[Path]:
    """An empty folder on the disk of ``root`` for one download of ``name`` at a time; other processes wait."""
    staging = root / f".{name}.download"
    with artifacts.exclusive(root / f".{name}.lock"):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def _put_in_place(staging: Path, root: Path) -> None:
    """Move what was fetched into ``root`` by renaming; what was there is kept as <name>.damaged, a person's own npz files in place."""
    for entry in staging.iterdir():
        target, aside = root / entry.name, None
        if target.exists():
            aside = next(
                path
                for path in (
                    root / f"{entry.name}.damaged{number}" for number in ("", *range(2, 1000))
                )
                if not path.exists()
            )
            target.rename(aside)
        entry.rename(target)
        for own in aside.glob("*.npz") if aside and aside.is_dir() else ():
            own.rename(target / own.name)


def _read_idx(path: Path) -> np.ndarray:
    """The array of one of MNIST's idx files, packed (.gz) or not."""
    try:
        content = (
            path.read_bytes()
            if path.exists()
            else gzip.decompress(path.with_name(path.name + ".gz").read_bytes())
        )
        shape = np.frombuffer(
            content, ">i4", content[3], offset=4
        )  # the fourth byte is the number of dimensions
        return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise OSError(f"{path} is missing, truncated or no idx file ({error})") from error


# ------------------------------------------------------------------------------------------------------------ sets that need no files
_drawn: dict[
    tuple, ImageSet
] = {}  # the last styled sets: drawing one takes seconds, and every run of a job asks for the same


def _styled(plain: ImageSet, image_size: int | None) -> ImageSet:
    """The set with styles drawn by lib.data.sources; every split has its own."""
    usual = (
        DATASETS[f"styled_{plain.name}"].size
        if f"styled_{plain.name}" in DATASETS
        else plain.images.shape[1]
    )
    key = (plain.checksum, plain.name, plain.split, image_size or usual)
    if key not in _drawn:
        while len(_drawn) > 3:
            del _drawn[next(iter(_drawn))]
        _drawn[key] = styled(
            plain, image_size or usual, seed={"train": 0, "test": 1}.get(plain.split, 2)
        )
    return _drawn[key]


def _one_class(whole: ImageSet, label: int, name: str) -> ImageSet:
    """The images of one class under a name and with a class of their own."""
    if label >= len(whole.classes):
        raise ValueError(f"{name}: {whole.name} has classes 0 to {len(whole.classes) - 1}.")
    own = whole.subset(np.flatnonzero(whole.labels == label))
    return replace(
        own,
        name=name,
        labels=np.zeros(len(own), np.int64),
        classes=[whole.classes[label]],
        extra={},
        whole=len(own),
    )


@lru_cache(maxsize=4)
def _digits(image_size: int | None) -> ImageSet:
    """All digits, read once in a process: whoever has a split of them has copies."""
    from sklearn.datasets import load_digits  # slow to import

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    everything = ImageSet(
        "digits",
        "all",
        images,
        bunch.target,
        [str(c) for c in bunch.target_names],
        source="scikit-learn",
    )
    return _resized(everything, image_size)


def _made_here(name: str, split: str, image_size: int | None) -> ImageSet:
    if name == "digits":
        return _split_all(lambda _: _digits(image_size), split, only_all=True)
    kind = "noise" if name == "generated_noise" else "shapes"
    drawn = generated(
        kind, DATASETS[name].splits[split][0], image_size or 32, seed=["train", "test"].index(split)
    )
    return replace(drawn, name=name, split=split)


# ------------------------------------------------------------------------------------------------------------ terms table, command line
def terms(name: str) -> str:
    """Under whose terms a set's images may be shown."""
    return DATASETS[name].terms if name in DATASETS else "as given by its owner"


def data_table(data_dir: Path | None = None) -> pd.DataFrame:
    """One row a known set: splits, images, size, terms, how to get it; checksums and source of what is here (nothing is fetched)."""
    rows = []
    for name, known in DATASETS.items():
        here = []
        for split in known.splits:
            found = None  # one split in memory at a time
            with contextlib.suppress(FileNotFoundError):
                found = load(
                    name, split, data_dir, image_size=None if known.size else 224, download=False
                )
                here.append(f"{split}: {len(found):,} images, sha256 {found.checksum}")
        rows.append(
            {
                "name": name,
                "splits": ", ".join(known.splits),
                "images": ", ".join(f"{count:,}" for count, _ in known.splits.values()),
                "image size": f"{known.size} x {known.size}" if known.size else "varies",
                "terms": known.terms,
                "how it is found": f"torchvision {known.provider}"
                if known.provider
                else "no files needed",
                "note": known.note,
                "here": "; ".join(here),
            }
        )
    return pd.DataFrame(rows)


def write_data_page(path: Path) -> None:
    """results/DATA.md: the known sets with their terms, the checksums of those that are here, and what the stored results are of."""
    table = data_table().rename(
        columns={"here": "at hand when this page was written (checksum of images and labels)"}
    )
    text = (
        "# Data\n\n"
        "The sets the companion knows by name, and under whose terms. None is part of this repository. A set is looked for in `DATA_DIR`: as\n"
        "npz files (`<name>/<split>.npz`), as a folder of images, then as torchvision stores it; otherwise torchvision fetches it, and of\n"
        "Fashion-MNIST the Debian package serves too. The last five of the table are made from what is installed or from other sets. A set of\n"
        "your own needs no entry here; see `lib/data/sources.py`.\n\n"
        "A checksum is of images and labels in their order; `config.json` of a run has that of its data, and where they came from. Of the\n"
        "results in this repository MNIST and Fashion-MNIST are the official files, the other sets npz files: cifar10 has the official images\n"
        'in another order ("the first" test images are others than torchvision\'s), cifar100 5,000 of the 10,000 test images, 38 to 66 of a\n'
        "class.\n\n"
        "Four sets are npz files that nothing fetches, and are left out where `DATA_DIR` has none: imagenette96 (of imagenette 300 and 50\n"
        "images a class, centre crops of 96 px), dtd10_128 (the first ten classes of dtd by name, 1,200 images of 128 px, 80 % of them train\n"
        "and 20 % test, not dtd's own splits), cue_conflict128 (1,280 images of 128 px, whose shape and texture are of different classes in\n"
        "all but 80; Geirhos et al. 2019) and fairface64 (10,000 faces of 64 px; Karkkainen and Joo 2021), the last two CC BY 4.0. The\n"
        "photographs of imagenette96, dtd10_128 and fairface64 were compressed as JPEG again, which blurs and corruptions may feel.\n\n"
        "Profile paper asks for imagenet100, 100 classes of ImageNet, which nothing fetches: put them in DATA_DIR/imagenet100/train and\n"
        "DATA_DIR/imagenet100/test, a folder of images for each class.\n\n"
    )
    artifacts.write_text(
        path,
        text + artifacts.markdown_table([table.columns, *table.itertuples(index=False)]) + "\n",
    )


def inception_weights(download: bool = False) -> Path | None:
    """DATA_DIR's file of Inception-v3's weights (INCEPTION); None if it is absent and not to be fetched. ValueError for a damaged file."""
    path, expected = default_data_dir() / INCEPTION, Path(INCEPTION).stem.rsplit("-", 1)[1]
    if download and not path.exists():
        from torch.hub import download_url_to_file
        from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with _time_limit():
                download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix=expected)  # atomic
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"Could not fetch {URL_INCEPTION_V3} ({artifacts.one_line(error)}); put that file at {path} by hand."
            ) from error
    if not path.exists():
        return None
    if not artifacts.sha256(path).startswith(expected):
        again = "python -m lib.data.sources fetch inception"
        raise ValueError(
            f"{path} is damaged: its sha256 does not begin with {expected}. Delete it, and fetch it again: {again}"
        )
    return path


def _fetch(name: str) -> None:
    """Fetch a known set, or Inception's weights, and print what there is to say of each of its splits."""
    if name == "inception":
        print(f"inception: {inception_weights(download=True)}")
        return
    known = DATASETS.get(name)
    for split in ("train", "test"):
        found = load(name, split, image_size=None if known is None or known.size else 224)
        shape = " x ".join(map(str, found.images.shape[1:]))
        print(
            f"{name}/{split}: {len(found):,} images, {shape}, {len(found.classes)} classes, {found.source}, sha256 {found.checksum}"
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m lib.data.sources", description="Fetch data sets, or write results/DATA.md."
    )
    parser.add_argument("command", choices=["fetch", "table"])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=", ".join([*DATASETS, "inception"])
    )
    options = parser.parse_args(arguments)
    tasks, failed = [partial(write_data_page, artifacts.RESULTS / "DATA.md")], False
    if options.command == "fetch":
        if not options.names:
            parser.error("fetch needs at least one NAME")
        print(f"DATA_DIR is {default_data_dir()}")
        tasks = [partial(_fetch, name) for name in options.names]
    for task in tasks:
        try:
            task()
        except (ValueError, OSError) as error:
            print(error, file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
