"""The data sets that have a name here: sizes, terms, where they lie, and what is known of them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from lib.data.sets import ImageSet


@dataclass(frozen=True)
class Split:
    count: int  # of images, the official number
    arguments: dict = field(default_factory=dict)  # of the class in torchvision


@dataclass(frozen=True)
class KnownSet:
    """A data set by the class of torchvision.datasets that reads it; ``provider`` "": made here."""

    provider: str
    folder: str  # what that class reads under DATA_DIR
    splits: dict[str, Split]
    size: int | None  # pixels; None where images differ, and load() needs image_size
    terms: str
    note: str = ""  # what to know when it cannot be downloaded


def _train_test(train: int, test: int) -> dict[str, Split]:
    return {"train": Split(train, {"train": True}), "test": Split(test, {"train": False})}


def _by_name(**images: int) -> dict[str, Split]:
    """Splits that torchvision calls by the same names."""
    return {name: Split(count, {"split": name}) for name, count in images.items()}


def _plain(**images: int) -> dict[str, Split]:
    return {name: Split(count) for name, count in images.items()}


def _made_here(size: int, terms: str, **images: int) -> KnownSet:
    """A set that this repository makes, or that comes with a package."""
    return KnownSet(provider="", folder="", splits=_plain(**images), size=size, terms=terms)


SEEDS = {"train": 0, "test": 1}  # of the splits of sets that are drawn here
DATASETS = {
    "mnist": KnownSet(
        provider="MNIST",
        folder="MNIST/raw",
        splits=_train_test(60_000, 10_000),
        size=28,
        terms="CC BY-SA 3.0 (LeCun & Cortes)",
    ),
    "fashion_mnist": KnownSet(
        provider="FashionMNIST",
        folder="FashionMNIST/raw",
        splits=_train_test(60_000, 10_000),
        size=28,
        terms="MIT (Xiao et al. 2017)",
    ),
    "cifar10": KnownSet(
        provider="CIFAR10",
        folder="cifar-10-batches-py",
        splits=_train_test(50_000, 10_000),
        size=32,
        terms="no licence stated, research use (Krizhevsky 2009)",
    ),
    "cifar100": KnownSet(
        provider="CIFAR100",
        folder="cifar-100-python",
        splits=_train_test(50_000, 10_000),
        size=32,
        terms="no licence stated, research use (Krizhevsky 2009)",
    ),
    "stl10": KnownSet(
        provider="STL10",
        folder="stl10_binary",
        splits=_by_name(
            **{"train": 5_000, "test": 8_000, "unlabeled": 100_000, "train+unlabeled": 105_000}
        ),
        size=96,
        terms="no licence stated, images from ImageNet (Coates et al. 2011)",
    ),
    "celeba": KnownSet(
        provider="CelebA",
        folder="celeba",
        splits={
            "train": Split(162_770, {"split": "train"}),
            "val": Split(19_867, {"split": "valid"}),
            "test": Split(19_962, {"split": "test"}),
            "all": Split(202_599, {"split": "all"}),
        },
        size=None,
        terms="non-commercial research, not to be passed on (Liu et al. 2015)",
        note="its Google Drive often refuses downloads: put img_align_celeba/ and the .txt files "
        "in DATA_DIR/celeba by hand",
    ),
    "imagenette": KnownSet(
        provider="Imagenette",
        folder="imagenette2-320",
        splits={
            "train": Split(9_469, {"split": "train", "size": "320px"}),
            "test": Split(3_925, {"split": "val", "size": "320px"}),
        },
        size=None,
        terms="ImageNet terms (fast.ai)",
    ),
    "imagewoof": KnownSet(
        provider="ImageFolder",
        folder="imagewoof2-320",
        splits=_plain(train=9_025, test=3_929),
        size=None,
        terms="ImageNet terms (fast.ai)",
        note="torchvision does not have it: unpack fast.ai's imagewoof2-320.tgz in DATA_DIR",
    ),
    "flowers102": KnownSet(
        provider="Flowers102",
        folder="flowers-102",
        splits=_by_name(train=1_020, val=1_020, test=6_149),
        size=None,
        terms="no licence stated, research use (Nilsback & Zisserman 2008)",
    ),
    "food101": KnownSet(
        provider="Food101",
        folder="food-101",
        splits=_by_name(train=75_750, test=25_250),
        size=None,
        terms="research use (Bossard et al. 2014)",
    ),
    "dtd": KnownSet(
        provider="DTD",
        folder="dtd",
        splits=_by_name(train=1_880, val=1_880, test=1_880),
        size=None,
        terms="research use (Cimpoi et al. 2014)",
    ),
    "aircraft": KnownSet(
        provider="FGVCAircraft",
        folder="fgvc-aircraft-2013b",
        splits=_by_name(train=3_334, val=3_333, test=3_333),
        size=None,
        terms="non-commercial research (Maji et al. 2013)",
    ),
    "sun397": KnownSet(
        provider="SUN397",
        folder="SUN397",
        splits=_plain(all=108_754),
        size=None,
        terms="research use (Xiao et al. 2010)",
        note="its server may no longer answer: unpack SUN397.tar.gz from another source in "
        "DATA_DIR",
    ),
    "pets": KnownSet(
        provider="OxfordIIITPet",
        folder="oxford-iiit-pet",
        splits={
            "train": Split(3_680, {"split": "trainval"}),
            "test": Split(3_669, {"split": "test"}),
        },
        size=None,
        terms="CC BY-SA 4.0 (Parkhi et al. 2012)",
    ),
    "cars": KnownSet(
        provider="StanfordCars",
        folder="stanford_cars",
        splits=_by_name(train=8_144, test=8_041),
        size=None,
        terms="non-commercial research (Krause et al. 2013)",
        note="its download no longer exists: put devkit/, cars_train/, cars_test/ and "
        "cars_test_annos_withlabels.mat in DATA_DIR/stanford_cars",
    ),
    "imagenet": KnownSet(
        provider="ImageFolder",
        folder="imagenet",
        splits=_plain(train=1_281_167, test=50_000),
        size=None,
        terms="non-commercial research (Russakovsky et al. 2015)",
        note="it needs an account: put it in DATA_DIR/imagenet/train/<class>/ and "
        "DATA_DIR/imagenet/val/<class>/",
    ),
    "digits": _made_here(
        size=8,
        terms="CC BY 4.0 (Alpaydin & Kaynak 1998, from scikit-learn)",
        train=1_438,
        test=359,
    ),
    "avatars": _made_here(
        size=64,
        terms="none: drawn by lib.data with python-avatars (MIT)",
        train=20_000,
        test=4_000,
    ),
    "styled_fashion_mnist": _made_here(
        size=32,
        terms="as fashion_mnist; colour, size, turn and place drawn by lib.data",
        train=60_000,
        test=10_000,
    ),
    "styled_digits": _made_here(
        size=32,
        terms="as digits; colour, size, turn and place drawn by lib.data",
        train=1_438,
        test=359,
    ),
    "generated": _made_here(
        size=32,
        terms="none: drawn by lib.data",
        train=512,
        test=256,
    ),
}


def terms(name: str) -> str:
    """Under whose terms a set's images may be shown."""
    if name not in DATASETS:
        return "as given by its owner"
    return DATASETS[name].terms


# ---------------------------------------------------------------------------------------- style
# CelebA's style in SimVAE (Bizeul et al. 2024, §6 and Figures 5 and 6) is hair colour, and
# attributes of which the paper names none. These are the ones that the authors' code can ask for,
# except hair.
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
BALANCED = 20  # attributes


def hair_colour(attributes: dict[str, np.ndarray]) -> np.ndarray:
    """CelebA's hair as one of five classes [N], in the order of HAIR.

    -1 where none of the five attributes is given, or more than one. SimVAE, §6. Deviation: the
    authors' code has "none of the others" as its fifth class, where the paper has bald.
    """
    present = np.stack([attributes[name] == 1 for name in HAIR])  # [5, N]
    return np.where(present.sum(0) == 1, present.argmax(0), -1)


def has_styles(name: str) -> bool:
    """Whether the style of a set's images is known, beside their content."""
    return name in ("celeba", "avatars") or name.startswith("styled_")


def style_factors(train: ImageSet) -> list[str]:
    """The further labels of a set that say what the style of its images is.

    Of CelebA these are the hair and the 20 most balanced of CELEBA_ATTRIBUTES: those nearest to
    one half in these images. The class itself is content and left out, under any name.
    """
    labels = train.extra
    if train.name != "celeba":
        return [name for name in labels if not np.array_equal(labels[name], train.labels)]

    def imbalance(name: str) -> float:
        return abs(labels[name].mean() - 0.5)

    stored = [name for name in CELEBA_ATTRIBUTES if name in labels]
    candidates = [name for name in stored if name != "Male"]
    balanced = sorted(candidates, key=imbalance)[:BALANCED]
    return [name for name in ("hair", *balanced) if name in labels]
