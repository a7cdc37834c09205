"""How figures look: colours by meaning, names as readers know them, sizes in inches.

A method has one colour, line and marker in all figures. Whoever adds a method need not touch this
file: a name that is not listed is drawn in grey and shown as it is.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from lib.runs import store
from lib.runs.settings import ONE_CLASS

STYLE_FILE = store.ROOT / "figures" / "style.mplstyle"

# Width and height of one row of panels, in inches.
COLUMN = (3.25, 2.0)
TEXT = (5.5, 2.0)
PAGE = (6.875, 2.2)
SQUARE = (2.6, 2.6)

BLUE = "#0072B2"
SKY = "#3A9BD9"
NAVY = "#003A5C"
VERMILION = "#D55E00"
GREEN = "#009E73"
PURPLE = "#CC79A7"
OCHRE = "#9A6A00"
BLACK = "#000000"
GREY = "#595959"
INK = "#222222"  # of text
CHANCE = "#8c8c8c"  # of lines of reference: chance, no difference, the untrained network

# Some colours are too light for letters on white.
TEXT_COLOURS = {
    SKY: BLUE,
    VERMILION: "#C15500",
    GREEN: "#008661",
    PURPLE: "#A26085",
    BLACK: INK,
    CHANCE: GREY,
}

SOLID = "-"
DOTTED = ":"
DASHDOT = "-."
LONGEST_LABEL = 30  # letters of a name that somebody else chose


@dataclass(frozen=True)
class MethodStyle:
    """How a method, or another curve, is drawn; `fill`: whether its markers are filled."""

    label: str
    colour: str = GREY
    marker: str | tuple = "o"
    line: str | tuple = SOLID
    fill: bool = True

    @property
    def text_colour(self) -> str:
        """The colour of its name: at least 4.5:1 on white."""
        return TEXT_COLOURS.get(self.colour, self.colour)


# The methods of the papers have a colour, which keeps its distance from the others under all three
# forms of colour blindness. Baselines are black, references grey.
METHODS = {
    "vi_simsiam": MethodStyle("VI-SimSiam", BLUE, "o", SOLID),
    "vi_simsiam_2022": MethodStyle("VI-SimSiam (2022)", BLUE, "P", (0, (1, 0.8))),
    "vi_simsiam_undivided": MethodStyle("VI-SimSiam (undivided)", BLUE, "*", (0, (8, 1, 2, 1))),
    "vi_simsiam_detached": MethodStyle("VI-SimSiam (κ detached)", SKY, "p", (0, (3, 1, 1, 1))),
    "vi_simsiam_read_out": MethodStyle("κ read out of SimSiam", NAVY, "d", (0, (2, 1)), fill=False),
    "vi_simsiam_fixed": MethodStyle("VI-SimSiam (κ fixed)", NAVY, "2", (0, (5, 1, 1, 1))),
    "simvae": MethodStyle("SimVAE", VERMILION, "s", (0, (6, 1.5))),
    "simvae_public_code": MethodStyle("SimVAE (public code)", VERMILION, "3", (0, (2, 1.5))),
    "prosmin": MethodStyle("ProSMin", GREEN, "^", (0, (3, 1.5))),
    "prosmin_public_code": MethodStyle("ProSMin (public code)", GREEN, "4", (0, (1, 1, 3, 1))),
    "prosmin_vit": MethodStyle("ProSMin, ViT", GREEN, "X", (0, (5, 2, 1, 2))),
    "vje": MethodStyle("VJE", PURPLE, "D", DASHDOT),
    "simsiam": MethodStyle("SimSiam", BLACK, "o", DOTTED, fill=False),
    "simclr": MethodStyle("SimCLR", BLACK, "s", (0, (4, 1, 1, 1, 1, 1)), fill=False),
    "barlow_twins": MethodStyle("Barlow Twins", BLACK, "p", (0, (9, 1)), fill=False),
    "byol": MethodStyle("BYOL", BLACK, "h", (0, (1, 1, 4, 1)), fill=False),
    "byol_without_average": MethodStyle(
        "BYOL without average", BLACK, "X", (0, (1, 3)), fill=False
    ),
    "directpred": MethodStyle("DirectPred", BLACK, "D", (0, (3, 2, 1, 2)), fill=False),
    "dino": MethodStyle("DINO", BLACK, "v", (0, (2, 1)), fill=False),
    "dino_two_views": MethodStyle("DINO, two views", BLACK, "1", (0, (2, 3)), fill=False),
    "dino_vit": MethodStyle("DINO, ViT", BLACK, "P", (0, (2, 1, 2, 3)), fill=False),
    "ibot": MethodStyle("iBOT, ViT", BLACK, "<", (0, (5, 1, 2, 1)), fill=False),
    "moco": MethodStyle("MoCo", BLACK, "8", (0, (6, 1, 1, 2)), fill=False),
    "moco_v2": MethodStyle("MoCo v2", BLACK, ">", (0, (1, 2)), fill=False),
    "moco_v3": MethodStyle("MoCo v3", BLACK, "*", (0, (1, 2, 3, 2)), fill=False),
    "vicreg": MethodStyle("VICReg", BLACK, "^", (0, (7, 2)), fill=False),
    "vae": MethodStyle("VAE", GREY, "v", (0, (4, 2))),
    "beta_vae": MethodStyle("β-VAE", GREY, "<", (0, (3, 1, 1, 1))),
    "cr_vae": MethodStyle("CR-VAE", GREY, ">", (0, (1, 1))),
    "supervised": MethodStyle("Supervised", GREY, "x", SOLID, fill=False),
    "random": MethodStyle("Untrained network", GREY, "+", (0, (1, 3)), fill=False),
    "random_vit": MethodStyle("Untrained network, ViT", GREY, "1", (0, (1, 3, 1, 1)), fill=False),
    "raw_pixels": MethodStyle("Raw pixels", GREY, "d", (0, (6, 3)), fill=False),
}

DATASETS = {
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar100": "CIFAR-100",
    "stl10": "STL-10",
    "celeba": "CelebA",
    "avatars": "Avatars",
    "imagenette": "Imagenette",
    "imagewoof": "Imagewoof",
    "imagenet": "ImageNet",
    "imagenet100": "ImageNet-100",
    "flowers102": "Flowers-102",
    "food101": "Food-101",
    "dtd": "DTD",
    "dtd10": "DTD (10 classes)",
    "aircraft": "FGVC-Aircraft",
    "sun397": "SUN397",
    "pets": "Oxford-IIIT Pet",
    "cars": "Stanford Cars",
    "fairface": "FairFace",
    "cue_conflict": "Cue conflict",
    "digits": "Digits",
    "generated": "Drawn shapes",
}

# The looks of curves that are no methods, in this order.
CURVES = (
    (BLUE, SOLID),
    (BLACK, (0, (4, 1.2))),
    (GREY, (0, (1, 1))),
    (OCHRE, (0, (6, 1, 1, 1))),
    (NAVY, (0, (2, 1))),
    (CHANCE, (0, (8, 2))),
)


def use_style() -> None:
    """Draw all figures that follow in the style of figures/style.mplstyle.

    Example:
        >>> figures.use_style()
    """
    import matplotlib.pyplot as plt  # slow to import

    plt.style.use(STYLE_FILE)


def safe_text(name: str) -> str:
    """A name as matplotlib can write it, whatever its letters: no formula, no line break, short."""
    text = " ".join(str(name).split())
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    if len(text) > LONGEST_LABEL:
        text = text[: LONGEST_LABEL - 1] + "…"
    return text.replace("$", r"\$")


def plain_label(name: str) -> str:
    """The label of a name that is not listed: the name, with spaces for underscores."""
    words = str(name).replace("_", " ").strip()
    return safe_text(words or name)


def method_style(name: str) -> MethodStyle:
    """The look of a method in all figures; grey under its own name where METHODS does not list it.

    `<method>_latent`, a method on SimVAE's short representation, looks like the method.

    Example:
        >>> figures.method_style("vi_simsiam").label
        'VI-SimSiam'
    """
    name = str(name).removesuffix("_latent")
    return METHODS.get(name) or MethodStyle(plain_label(name), BLACK, fill=False)


def dataset_label(name: str) -> str:
    """A data set as readers know it: "dtd10_128" is "DTD (10 classes)", at whatever resolution.

    Example:
        >>> dataset_label("fashion_mnist"), dataset_label("fairface64")
        ('Fashion-MNIST', 'FairFace')
    """
    name = str(name)
    if name in DATASETS:
        return DATASETS[name]
    if name.startswith("styled_"):
        return f"Styled {dataset_label(name.removeprefix('styled_'))}"
    one_class = ONE_CLASS.fullmatch(name)
    if one_class:
        return f"{dataset_label(one_class['name'])}, class {one_class['label']}"
    without_size = re.sub(r"_?\d+$", "", name)
    return DATASETS.get(without_size) or plain_label(name)


def labelled(table: pd.DataFrame) -> pd.DataFrame:
    """A table to be shown: display names in its columns method, minus, other, dataset.

    Example:
        >>> figures.labelled(accuracy[["method", "dataset"]]).iloc[0].tolist()
        ['VI-SimSiam', 'CIFAR-10']
    """
    shown = table.copy()
    for column in shown.columns.intersection(["method", "minus", "other"]):
        shown[column] = [method_style(name).label for name in table[column]]
    if "dataset" in shown:
        shown["dataset"] = [dataset_label(name) for name in table["dataset"]]
    return shown


def in_order(methods: Iterable[str]) -> list[str]:
    """These methods in the order of METHODS, `<method>_latent` after its method, others last.

    Example:
        >>> figures.in_order(["random", "vje", "simsiam"])
        ['vje', 'simsiam', 'random']
    """
    places = {name: place for place, name in enumerate(METHODS)}

    def key(name: str) -> tuple[int, str]:
        return places.get(name.removesuffix("_latent"), len(places)), name

    return sorted(methods, key=key)


def curve_styles(names: Iterable[str]) -> dict[str, MethodStyle]:
    """The look of each curve: a method's own, otherwise the next of CURVES.

    Example:
        >>> [style.label for style in figures.curve_styles(["κ", "simsiam"]).values()]
        ['κ', 'SimSiam']
    """
    styles = {}
    for place, name in enumerate(names):
        colour, line = CURVES[place % len(CURVES)]
        method = METHODS.get(str(name).removesuffix("_latent"))
        styles[name] = method or MethodStyle(plain_label(name), colour, line=line)
    return styles


def kappa_text(value: float) -> str:
    """A concentration as text: a whole number from 100 on, three digits below.

    Example:
        >>> figures.kappa_text(2180.4), figures.kappa_text(0.98765)
        ('2,180', '0.988')
    """
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"
