"""Avatars: cartoon faces of known content and style, drawn here, so that nothing is downloaded.

A face has a hair style, which is its class, and eleven attributes of style: colours of hair, skin,
beard, clothes and background, and kinds of glasses, beard, mouth, eyes, eyebrows and clothes. All
are independent and uniform. python-avatars (MIT) gives the parts, skia-python draws them.

Example:
    faces = draw(64, seed=0)
    faces.images.shape, faces.extra["hair_colour"]      (64, 64, 64, 3), 64 whole numbers
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import warnings
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from lib.data.catalogue import DATASETS, SEEDS
from lib.data.sets import ImageSet

NAME = "avatars"
SIDE = 64  # px
PICTURE = (264, 280)  # width and height of the drawing
# SHA-256 of the pixels of the first CHECKED faces of each split
CHECKED = 100
VERSIONS = {"python-avatars": "1.4.1", "skia-python": "144.1"}
PINNED = {  # as these versions draw them
    "train": "b4b5cdf16d671d891ecd39ec7965b499d42c53cd7909001b1ac017ff22d86718",
    "test": "1921902f1d163ec087f16264d68797e47bc1dc1164a03dc8e877c53dd479e1f9",
}

# The classes, each with the names of one or two styles in python-avatars
HAIR_STYLES = {
    "cropped": ("CAESAR", "BUZZCUT"),
    "quiff": ("QUIFF", "POMPADOUR"),
    "bob": ("BOB", "MIA_WALLACE"),
    "bun": ("BUN",),
    "long": ("STRAIGHT_STRAND", "STRAIGHT_1"),
    "waves": ("BIG_HAIR", "CURVY"),
    "dreadlocks": ("DREADS",),
    "afro": ("FRO", "CURLY"),
    "mohawk": ("MOHAWK",),
    "wild": ("WILD", "MOWGLI"),
}
HAIR_COLOURS = ("BLACK", "BROWN", "BLONDE", "RED", "PASTEL_PINK", "SILVER_GRAY")
# Attributes of style and their values, by the names of their values in python-avatars
ATTRIBUTES = {
    "hair_colour": HAIR_COLOURS,
    "skin": ("PALE", "LIGHT", "BROWN", "DARK_BROWN", "BLACK"),
    "glasses": ("NONE", "ROUND", "SUNGLASSES"),
    "beard": ("NONE", "MOUSTACHE_FANCY", "BEARD_MEDIUM"),
    "beard_colour": HAIR_COLOURS,
    "mouth": ("SMILE", "SERIOUS", "SCREAM_OPEN", "GRIMACE", "TONGUE"),
    "eyes": ("DEFAULT", "CLOSED", "SURPRISED"),
    "eyebrows": ("NONE", "DEFAULT", "ANGRY", "SAD_CONCERNED"),
    "clothes": ("BLAZER_SHIRT", "COLLAR_SWEATER", "HOODIE", "OVERALL", "SHIRT_V_NECK"),
    "clothes_colour": ("BLACK", "BLUE_03", "GRAY_01", "PASTEL_GREEN", "PINK", "RED"),
    "background": ("white", "blue", "green", "grey"),
}
BACKGROUNDS = ((255, 255, 255), (196, 224, 255), (204, 240, 204), (160, 160, 160))
UNKNOWN = -1  # of an attribute that cannot be seen


@dataclass(frozen=True)
class Faces:
    """What ``count`` faces look like: a hair style [N], which of its drawings, and attributes."""

    hair: np.ndarray
    variant: np.ndarray
    attributes: dict[str, np.ndarray]


def draw(count: int, seed: int = 0, split: str = "train") -> ImageSet:
    """``count`` faces as uint8 [N, 64, 64, 3], with the attributes as ``extra``.

    An attribute is -1 where it cannot be seen: the colour of no beard, eyes behind sunglasses. The
    same seed chooses the same faces on any machine; about 3 ms a face.
    """
    faces = chosen_faces(count, seed)
    numbers = tqdm(range(count), desc="drawing avatars", disable=count < 1000, leave=False)
    images = np.stack([_picture(faces, index) for index in numbers])
    extra = {name: values.copy() for name, values in faces.attributes.items()}
    extra["beard_colour"][extra["beard"] == ATTRIBUTES["beard"].index("NONE")] = UNKNOWN
    extra["eyes"][extra["glasses"] == ATTRIBUTES["glasses"].index("SUNGLASSES")] = UNKNOWN
    source = "drawn by lib.data.avatars"
    return ImageSet(NAME, split, images, faces.hair, list(HAIR_STYLES), extra, source)


def draw_split(split: str) -> ImageSet:
    """A whole split, checked against the pinned pixels: about a minute for train."""
    images = draw(DATASETS[NAME].splits[split].count, SEEDS[split], split)
    check_pixels(images)
    return images


def check_pixels(images: ImageSet) -> None:
    """ValueError where other versions of the two packages draw other faces.

    With the pinned versions another processor may round otherwise, which is a warning.
    """
    digest = digest_of(images)
    if digest == PINNED[images.split]:
        return
    pinned = ", ".join(f"{name} {version}" for name, version in VERSIONS.items())
    installed = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in VERSIONS)
    if installed != pinned:
        raise ValueError(
            f"The avatars drawn by {installed} are not those of the stored results (SHA-256 of the "
            f"first {CHECKED}: {digest[:12]}, not {PINNED[images.split][:12]}): install {pinned}."
        )
    warnings.warn(
        f"{installed} draw the avatars a little otherwise on this processor: numbers differ from "
        "the stored ones by more than the seed says.",
        stacklevel=3,
    )


def digest_of(images: ImageSet) -> str:
    """SHA-256 of the pixels of the first CHECKED images."""
    return hashlib.sha256(np.ascontiguousarray(images.images[:CHECKED])).hexdigest()


def chosen_faces(count: int, seed: int) -> Faces:
    """Hair style, its drawing and attributes of ``count`` faces, all independent and uniform.

    Each has a generator of its own, so that fewer faces are the first of more.
    """
    sizes = {"hair": len(HAIR_STYLES), "variant": 2}
    sizes |= {name: len(values) for name, values in ATTRIBUTES.items()}
    chosen = {}
    for number, (name, size) in enumerate(sizes.items()):
        chosen[name] = np.random.default_rng([seed, number]).integers(0, size, count)
    return Faces(chosen.pop("hair"), chosen.pop("variant"), chosen)


def _picture(faces: Faces, index: int) -> np.ndarray:
    """One face [64, 64, 3] on its background."""
    import skia  # slow to import

    width, height = PICTURE
    # Without a copy the stream reads bytes that are freed already, and now and then a face fails.
    stream = skia.MemoryStream(_svg(faces, index).encode(), copyData=True)
    drawing = skia.SVGDOM.MakeFromStream(stream)
    drawing.setContainerSize(skia.Size(width, height))
    surface = skia.Surface(SIDE, SIDE)
    canvas = surface.getCanvas()
    background = BACKGROUNDS[faces.attributes["background"][index]]
    canvas.clear(skia.Color(*background))
    scale = SIDE / height
    canvas.translate((SIDE - width * scale) / 2, 0)
    canvas.scale(scale, scale)
    drawing.render(canvas)
    pixels = surface.makeImageSnapshot().toarray(colorType=skia.kRGBA_8888_ColorType)
    return pixels[..., :3].copy()


def _svg(faces: Faces, index: int) -> str:
    import python_avatars as parts  # slow to import

    def value(attribute: str) -> str:
        return ATTRIBUTES[attribute][faces.attributes[attribute][index]]

    drawings = list(HAIR_STYLES.values())[faces.hair[index]]
    avatar = parts.Avatar(
        style=parts.AvatarStyle.TRANSPARENT,
        top=parts.HairType[drawings[faces.variant[index] % len(drawings)]],
        hair_color=parts.HairColor[value("hair_colour")],
        skin_color=parts.SkinColor[value("skin")],
        accessory=parts.AccessoryType[value("glasses")],
        facial_hair=parts.FacialHairType[value("beard")],
        facial_hair_color=parts.HairColor[value("beard_colour")],
        mouth=parts.MouthType[value("mouth")],
        eyes=parts.EyeType[value("eyes")],
        eyebrows=parts.EyebrowType[value("eyebrows")],
        nose=parts.NoseType.DEFAULT,
        clothing=parts.ClothingType[value("clothes")],
        clothing_color=parts.ClothingColor[value("clothes_colour")],
    )
    return avatar.render()
