"""Images drawn here: shapes, and other images with a style of known factors."""

from __future__ import annotations

import numpy as np
from PIL import Image

from lib.data.sets import ImageSet

SHAPES = ["disc", "square", "triangle", "cross", "ring"]
COLOURS = {
    "red": (220, 50, 47),
    "orange": (230, 140, 30),
    "green": (60, 170, 70),
    "blue": (50, 110, 220),
    "white": (235, 235, 235),
}


def generated(n: int = 512, size: int = 32, seed: int = 0) -> ImageSet:
    """``n`` images [size, size, 3] of a coloured shape on dark noise, the same for one seed.

    The label is the shape; ``extra`` has colour, scale (radius / image side), rotation (radians)
    and the centre x, y (part of the image side).

    Example:
        >>> generated(n=8).images.shape
        (8, 32, 32, 3)
    """
    if n < 1 or size < 1:
        raise ValueError(f"n = {n} and size = {size}: both must be above 0.")
    generator = np.random.default_rng([seed, size])
    labels = generator.permutation(np.arange(n) % len(SHAPES))
    colour = generator.integers(0, len(COLOURS), n)
    scale = generator.uniform(0.2, 0.4, n)
    rotation = generator.uniform(0, 2 * np.pi, n)
    centre_x, centre_y = generator.uniform(0.35, 0.65, (2, n))

    # Coordinates u, v [N, size, size] in radii, turned with the shape.
    unit = scale[:, None, None]
    cos = np.cos(rotation)[:, None, None]
    sin = np.sin(rotation)[:, None, None]
    grid = (np.arange(size) + 0.5) / size
    x = grid[None, None, :] - centre_x[:, None, None]
    y = grid[None, :, None] - centre_y[:, None, None]
    u = (cos * x + sin * y) / unit
    v = (cos * y - sin * x) / unit
    outlines = _outlines(u, v)
    outline = np.stack([outlines[shape] for shape in SHAPES])[labels, np.arange(n)]

    cover = np.clip(0.5 - outline * unit * size, 0, 1)[..., None]
    level = generator.uniform(10, 70, (n, 1, 1, 1))
    background = level + generator.normal(0, 8, (n, size, size, 3))
    paint = np.array(list(COLOURS.values()))[colour][:, None, None, :]
    pixels = cover * paint + (1 - cover) * background
    return ImageSet(
        name="generated",
        split="train",
        images=np.clip(np.round(pixels), 0, 255).astype(np.uint8),
        labels=labels,
        classes=SHAPES,
        extra={
            "colour": colour,
            "scale": scale,
            "rotation": rotation,
            "x": centre_x,
            "y": centre_y,
        },
        source="drawn by lib.data",
    )


def _outlines(u: np.ndarray, v: np.ndarray) -> dict[str, np.ndarray]:
    """Signed distance of points (u, v) to the outline of each shape, below zero inside."""
    radius = np.hypot(u, v)
    a = np.abs(u)
    b = np.abs(v)
    return {
        "disc": radius - 0.9,
        "square": np.maximum(a, b) - 0.75,
        "triangle": np.maximum(a * np.sqrt(3) / 2 + v / 2, -v) - 0.5,
        "cross": np.minimum(np.maximum(a - 1, b - 0.3), np.maximum(b - 1, a - 0.3)),
        "ring": np.abs(radius - 0.75) - 0.2,
    }


HUES = {
    "red": (230, 40, 40),
    "orange": (230, 130, 20),
    "yellow": (210, 210, 30),
    "green": (40, 190, 60),
    "cyan": (30, 190, 200),
    "blue": (60, 90, 240),
    "purple": (150, 60, 220),
    "pink": (240, 80, 170),
}


def styled(plain: ImageSet, size: int = 32, seed: int = 0) -> ImageSet:
    """Images with a style of known factors: coloured, scaled, turned and moved on black.

    Images are [size, size, 3], and the label stays the content. ``extra`` keeps what it had and
    gets these, independent of the label and of one another:

    - colour: one of HUES; for images that have colours already ``tint``, that hue mixed with as
      much white
    - scale: side of the image as a share of its full size, 0.5 to 1
    - rotation: -45 to 45 degrees
    - x, y: shift of the centre, at most a tenth of the side

    The same for the same arguments on any machine: the pixels are moved in fixed-point
    arithmetic.
    """
    count = len(plain)
    generator = np.random.default_rng([seed, size])
    colour = generator.integers(0, len(HUES), count)
    scale = generator.uniform(0.5, 1.0, count)
    rotation = generator.uniform(-45.0, 45.0, count)
    x, y = generator.uniform(-0.1, 0.1, (2, count))

    side = plain.images.shape[1]
    coefficients = _affine_coefficients(side, size, scale, rotation, x, y)
    moved = _moved(plain.images[np.arange(count)], size, coefficients)
    hues = np.array(list(HUES.values()), np.uint16)
    factor = "colour"
    if plain.images.shape[3] == 3:
        hues = (hues + 255) // 2
        factor = "tint"
    images = (moved * hues[colour][:, None, None, :] + 127) // 255
    style = {factor: colour, "scale": scale, "rotation": rotation, "x": x, "y": y}
    return ImageSet(
        name=f"styled_{plain.name}",
        split=plain.split,
        images=images.astype(np.uint8),
        labels=plain.labels,
        classes=plain.classes,
        extra=plain.extra | style,
        source=f"{plain.source}, styled by lib.data",
    )


def _affine_coefficients(
    side: int, size: int, scale: np.ndarray, rotation: np.ndarray, x: np.ndarray, y: np.ndarray
) -> np.ndarray:
    """What PIL's affine transform takes, [N, 6]: it maps a pixel of the result to the source.

    So shift, rotation and scale are undone, about the centres.
    """
    unit = side / size / scale
    angle = np.deg2rad(rotation)
    cos = np.cos(angle) * unit
    sin = np.sin(angle) * unit
    centre_x = (0.5 + x) * size
    centre_y = (0.5 + y) * size
    offset_x = side / 2 - cos * centre_x - sin * centre_y
    offset_y = side / 2 + sin * centre_x - cos * centre_y
    return np.stack([cos, sin, offset_x, -sin, cos, offset_y], 1)


def _moved(images: np.ndarray, size: int, coefficients: np.ndarray) -> np.ndarray:
    """The images [N, H, W, C] transformed, [N, size, size, C]."""
    moved = np.empty((len(images), size, size, images.shape[3]), np.uint8)
    for i, (image, row) in enumerate(zip(images, coefficients, strict=True)):
        picture = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        transformed = picture.transform(
            (size, size), Image.Transform.AFFINE, tuple(row), Image.Resampling.BILINEAR
        )
        moved[i] = np.asarray(transformed).reshape(size, size, -1)
    return moved
