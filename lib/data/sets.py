"""Sets of labelled images: arrays in memory or files decoded as they are needed, their batches, splits and subsets; sets drawn here.

lib.data.sources finds sets by name and re-exports what is here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from lib.data.views import GREY_WEIGHTS
from lib.runs import store as artifacts

RESIDENT_BYTES = (
    2 * 2**30
)  # sets of files up to this size are decoded once by ImageSet.to, larger ones stream
DECODERS = min(8, os.cpu_count() or 1)
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".tif", ".tiff"}
SHAPES = ["disc", "square", "triangle", "cross", "ring"]
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
COLOURS = {
    "red": (220, 50, 47),
    "orange": (230, 140, 30),
    "green": (60, 170, 70),
    "blue": (50, 110, 220),
    "white": (235, 235, 235),
}


# ------------------------------------------------------------------------------------------------------------ image sets
@dataclass(frozen=True)
class LazyImages:
    """Image files that answer like a uint8 array [N, H, W, 3]: ``lazy[indices]`` decodes them in threads.

    With ``image_size`` the shorter side is resized to it and the centre square kept; without, all files must have ``size`` (width, height).
    """

    files: list[Path]
    root: Path
    size: tuple[int, int]
    image_size: int | None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (len(self.files), self.size[1], self.size[0], 3)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, indices) -> np.ndarray:
        chosen = np.arange(len(self))[indices]
        if chosen.ndim == 0:
            return self._decode(self.files[chosen])
        with ThreadPoolExecutor(DECODERS) as pool:
            return np.stack(list(pool.map(self._decode, (self.files[i] for i in chosen))))

    def _decode(self, file: Path) -> np.ndarray:
        with _opened(file) as image:
            if image.mode.startswith(("I", "F")):
                raise ValueError(
                    f"{file} has more than 8 bits a channel (mode {image.mode}): convert it to 8 bits."
                )
            upright = to_rgb(ImageOps.exif_transpose(image))[0]
        if self.image_size:
            upright = square(upright, self.image_size)
        if upright.size != self.size:
            raise ValueError(
                f"{file} is {upright.size} pixels when upright, others are {self.size}: give image_size."
            )
        return np.asarray(upright)


def to_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """The image in 8-bit RGB, and what was done to it."""
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image, np.float64)
        sixteen = image.mode.startswith("I;16")
        low, high = (0.0, 65535.0) if sixteen else (values.min(), values.max())
        if not np.isfinite([low, high]).all():
            raise ValueError("it holds values that are not finite")
        scaled = np.rint(255 * (values - low) / max(high - low, 1e-12)).astype(np.uint8)
        return Image.fromarray(scaled).convert("RGB"), [
            "16 bits, scaled to 8" if sixteen else f"from {low:g} to {high:g}, scaled to 8 bits"
        ]
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque).convert(
            "RGB"
        ), ["transparency put on white"]
    return image.convert("RGB"), ["CMYK converted to RGB"] if image.mode == "CMYK" else []


def lazy_images(files: list[Path], root: Path, image_size: int | None) -> LazyImages:
    if image_size:
        return LazyImages(files, root, (image_size, image_size), image_size)

    def header(file: Path) -> tuple[int, int]:
        with _opened(file) as image:
            turned = (
                image.format in ("JPEG", "MPO") and image.getexif().get(0x0112, 1) > 4
            )  # by a quarter; to ask a PNG decodes it
            return image.size[::-1] if turned else image.size

    with ThreadPoolExecutor(DECODERS) as pool:
        sizes = sorted(set(pool.map(header, files)))
    if len(sizes) > 1:
        raise ValueError(
            f"The images in {root} have {len(sizes)} sizes, from {sizes[0]} to {sizes[-1]}: give image_size, as in 64."
        )
    return LazyImages(files, root, sizes[0], None)


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(file) as image:
            yield image
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{file} is not a readable image ({error}): replace or remove it."
        ) from error


def square(image: Image.Image, size: int) -> Image.Image:
    """Shorter side to ``size``, centre square."""
    return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)


def to_bytes(images: torch.Tensor) -> np.ndarray:
    """Floats [..., C, H, W] in 0..1 as an ImageSet has them, uint8 [..., H, W, C]."""
    return (255 * images).round().clamp(0, 255).byte().movedim(-3, -1).numpy()


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images with labels.

    images uint8 [N, H, W, C] (array or LazyImages), C = 1 or 3; labels int64 [N], indices into ``classes``; ``extra`` further label
    arrays [N]; ``source`` says how it was found; ``index`` are the positions in the source's own order (None: all).
    Malformed arrays raise ValueError.
    """

    name: str
    split: str
    images: np.ndarray | LazyImages
    labels: np.ndarray
    classes: list[str]
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    source: str = "given arrays"
    index: np.ndarray | None = None
    whole: int | None = None  # how many images the whole set has, where that is known
    device: torch.device = torch.device("cpu")
    pixels: torch.Tensor | None = None  # [N, H, W, C], what .to() put on the device

    def __post_init__(self):
        def wrong(what: str):
            raise ValueError(f"{self.name}/{self.split} ({self.source}): {what}.")

        if isinstance(self.images, np.ndarray) and self.images.dtype != np.uint8:
            wrong(f"images have dtype {self.images.dtype}: store them as uint8, 0 to 255")
        shape = tuple(self.images.shape)
        if len(shape) != 4:
            wrong(f"images have shape {list(shape)}: give [N, H, W] or [N, H, W, C]")
        if shape[3] not in (1, 3):
            wrong(
                f"images have {shape[3]} channels (shape {list(shape)}): give 1 (grey) or 3 (RGB) as the last axis"
            )
        if 0 in shape:
            wrong(f"there are no images (shape {list(shape)}): give at least one")
        if self.labels.dtype.kind not in "iu":
            wrong(f"labels have dtype {self.labels.dtype}: give whole numbers from 0")
        for key, values in {"labels": self.labels, **self.extra}.items():
            if values.shape != (shape[0],):
                wrong(
                    f"{key} has shape {list(values.shape)} but there are {shape[0]} images: give one value an image"
                )
        low, high = self.labels.min(), self.labels.max()
        if low < 0 or high >= len(self.classes):
            wrong(
                f"labels run from {low} to {high} but there are {len(self.classes)} classes: they count from 0 to {len(self.classes) - 1}"
            )
        object.__setattr__(self, "labels", self.labels.astype(np.int64, copy=False))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def title(self) -> str:
        """The name; with the number of images wherever that is not the whole of a known set."""
        return (
            self.name
            if len(self) == self.whole
            else f"{self.name} ({len(self):,} image{'s' * (len(self) > 1)})"
        )

    @cached_property
    def checksum(self) -> str:
        """First 16 hex digits of SHA-256 over shape, images and labels; for files over their relative names, sizes and labels, and over what they
        hold where all of them take at most RESIDENT_BYTES."""
        digest = hashlib.sha256(repr(tuple(self.images.shape)).encode())
        if isinstance(self.images, LazyImages):
            sizes = [file.stat().st_size for file in self.images.files]
            read = sum(sizes) <= RESIDENT_BYTES
            for file, size in zip(self.images.files, sizes, strict=True):
                digest.update(f"{file.relative_to(self.images.root).as_posix()}\0{size}\0".encode())
                digest.update(file.read_bytes() if read else b"")
        else:
            digest.update(np.ascontiguousarray(self.images))
        digest.update(np.ascontiguousarray(self.labels))
        return digest.hexdigest()[:16]

    def batch(self, indices) -> torch.Tensor:
        """uint8 [B, C, H, W] (channels last in memory) on ``device``, for whole-number indices [B]."""
        indices = self._within(indices)
        if self.pixels is None:
            chosen = torch.from_numpy(self.images[indices]).to(self.device)
        else:
            chosen = self.pixels[torch.from_numpy(indices).to(self.device)]
        return chosen.permute(0, 3, 1, 2)  # [B, H, W, C] -> [B, C, H, W]

    def _within(self, indices) -> np.ndarray:
        """Indices of this set's images as whole numbers [B]; ValueError for a mask, for none and for what is not in the set."""
        indices = np.asarray(indices)
        if indices.ndim != 1 or indices.dtype.kind not in "iu" or not indices.size:
            raise ValueError(
                f"indices have shape {list(indices.shape)} and dtype {indices.dtype}: give a non-empty list of whole numbers."
            )
        if indices.min() < 0 or indices.max() >= len(self):
            raise ValueError(
                f"indices run from {indices.min()} to {indices.max()}, but {self.title} has images 0 to {len(self) - 1}."
            )
        return indices.astype(np.int64)

    def to(self, device: str | torch.device) -> ImageSet:
        """The same set with its pixels kept on ``device`` if they take at most RESIDENT_BYTES; otherwise batches travel one by one."""
        device = torch.device(device)
        lazy = isinstance(self.images, LazyImages)
        pixels = None
        if np.prod(self.images.shape) <= RESIDENT_BYTES and (lazy or device.type != "cpu"):
            pixels = torch.empty(self.images.shape, dtype=torch.uint8, device=device)
            for start in range(0, len(self), 1024):
                pixels[start : start + 1024] = torch.from_numpy(
                    np.array(self.images[start : start + 1024])
                )
        return replace(self, device=device, pixels=pixels)

    @property
    def is_sorted(self) -> bool:
        """Whether the images of each of several classes stand together, as in a folder of folders: the first of them, or the last, stand for none."""
        return 0 < np.count_nonzero(np.diff(self.labels)) < len(np.unique(self.labels))

    def places(self, count: int) -> np.ndarray:
        """Where ``count`` images are that stand for the set, or all, ascending: the first; of a set sorted by class a random choice (seed 0)."""
        if count >= len(self) or not self.is_sorted:
            return np.arange(min(count, len(self)))
        return np.sort(np.random.default_rng(0).permutation(len(self))[:count])

    def sample(self, count: int) -> ImageSet:
        """The images at ``places``."""
        return self.subset(self.places(count))

    def subset(self, indices) -> ImageSet:
        """The images at ``indices``; its title says how many they are."""
        indices = self._within(indices)
        if isinstance(self.images, LazyImages):
            images = replace(self.images, files=[self.images.files[i] for i in indices])
        else:
            images = self.images[indices]
        return replace(
            self,
            images=images,
            labels=self.labels[indices],
            extra={key: values[indices] for key, values in self.extra.items()},
            index=indices if self.index is None else self.index[indices],
            pixels=None
            if self.pixels is None
            else self.pixels[torch.from_numpy(indices).to(self.device)],
        )


def batches(image_set: ImageSet, index_batches: Iterable) -> Iterator[torch.Tensor]:
    """``image_set.batch`` of every element of ``index_batches``; for files the next batch is decoded while this one is used."""
    if image_set.pixels is not None or not isinstance(image_set.images, LazyImages):
        yield from map(image_set.batch, index_batches)
        return
    with ThreadPoolExecutor(1) as background:
        decoding = (background.submit(image_set.batch, indices) for indices in index_batches)
        for pending, _ in pairwise(
            chain(decoding, [None])
        ):  # the next has begun when one is handed out
            yield pending.result()


# ------------------------------------------------------------------------------------------------------------ own files
def read_npz(path: Path, name: str, split: str) -> ImageSet:
    arrays = artifacts.read_npz(
        path,
        advice="delete it, or write it again; store arrays of numbers and text, not Python objects",
    )
    if missing := [key for key in ("images", "labels") if key not in arrays]:
        raise ValueError(
            f"{path} lacks {' and '.join(missing)} (it has {', '.join(arrays) or 'nothing'}): it needs images and labels."
        )
    for key, values in arrays.items():
        if (key == "classes" or key.endswith("_names")) and values.ndim != 1:
            raise ValueError(f"{path}: {key} has shape {list(values.shape)}: give a list of names.")
    images, labels = arrays.pop("images"), arrays.pop("labels")
    classes = arrays.pop("classes", None)
    if classes is None:
        highest = labels.max() if labels.dtype.kind in "iu" and labels.size else 0
        classes = np.arange(max(highest, 0) + 1)
    extra = {key: values for key, values in arrays.items() if not key.endswith("_names")}
    images = images[..., None] if images.ndim == 3 else images
    return ImageSet(
        name, split, images, labels, [str(c) for c in classes], extra, f"npz file {path}"
    )


def image_folder(
    folder: Path, image_size: int | None = None, name: str = "", split: str = "all"
) -> ImageSet:
    """Images of <folder>/<class>/ (any depth below), or of the folder itself as one class "unlabelled"; decoded when used."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder: give one that holds images, or one sub-folder of images for each class."
        )
    directories = sorted(d for d in folder.iterdir() if d.is_dir() and not d.name.startswith("."))
    classes = [d.name for d in directories] or ["unlabelled"]
    loose = sorted(
        f.name
        for f in folder.iterdir()
        if directories
        and f.suffix.lower() in SUFFIXES
        and f.is_file()
        and not f.name.startswith(".")
    )
    if loose:
        raise ValueError(
            f"{folder} holds {len(loose)} image(s) beside its sub-folders ({loose[0]}): move each into a class, or remove it."
        )
    files, labels = [], []
    for label, directory in enumerate(directories or [folder]):
        images = sorted(
            f
            for f in directory.rglob("*")
            if f.suffix.lower() in SUFFIXES and not f.name.startswith(".") and not f.is_fifo()
        )
        if not images:
            raise ValueError(
                f"{directory} holds no images ({', '.join(sorted(SUFFIXES))}): add some, or remove the folder."
            )
        files += images
        labels += [label] * len(images)
    images = lazy_images(files, folder, image_size)
    return ImageSet(
        name or folder.name,
        split,
        images,
        np.array(labels),
        classes,
        source=f"image folder {folder}",
    )


# ------------------------------------------------------------------------------------------------------------ splits and subsets
def choose_per_class(
    labels: np.ndarray, fraction: float, seed: int, least: int, spared: int = 0
) -> np.ndarray:
    """Sorted indices of round(fraction · n_c) images of every class c, at least ``least`` and at most n_c - ``spared``, without replacement."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or not labels.size:
        raise ValueError(f"labels have shape {list(labels.shape)}: give one label an image.")
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is {fraction}: give a number above 0 and up to 1.")
    generator = np.random.default_rng(seed)
    members = [
        generator.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)
    ]
    return np.sort(
        np.concatenate(
            [m[: min(max(least, round(fraction * len(m))), len(m) - spared)] for m in members]
        )
    )


def with_channels(images: ImageSet, channels: int) -> ImageSet:
    """The same images in ``channels`` (1 or 3) channels: grey ones repeated, colours weighted as luma."""
    if images.images.shape[3] == channels:
        return images
    pixels = images.images[np.arange(len(images))]
    changed = (
        np.repeat(pixels, 3, 3)
        if channels == 3
        else np.rint(pixels @ np.array(GREY_WEIGHTS)[:, None]).astype(np.uint8)
    )
    return replace(images, images=changed, pixels=None)


def train_validation_split(
    labels: np.ndarray, fraction: float = 0.1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """(train, validation) indices, sorted and disjoint; validation has the same fraction of every class, to the nearest image."""
    validation = choose_per_class(labels, fraction, seed, least=0)
    train = np.setdiff1d(np.arange(len(labels)), validation)
    if not len(validation) or not len(train):
        raise ValueError(
            f"A fraction of {fraction} of {len(labels)} images leaves {len(train)} and {len(validation)}: choose another."
        )
    return train, validation


def label_subset(labels: np.ndarray, fraction: float, seed: int = 0) -> np.ndarray:
    """Sorted indices of the same fraction of every class (1 % and 10 % protocols), at least one image a class."""
    return choose_per_class(labels, fraction, seed, least=1)


# ------------------------------------------------------------------------------------------------------------ drawn sets
def generated(kind: str = "shapes", n: int = 512, size: int = 32, seed: int = 0) -> ImageSet:
    """``n`` drawn images [size, size, 3], the same for the same arguments.

    "shapes": one coloured shape on dark noise; the label is the shape; extra has colour, scale (radius / image side), rotation (radians)
    and the centre x, y (part of the image side). "noise": independent uniform pixels.
    """
    generator = np.random.default_rng([seed, size])
    if n < 1 or size < 1:
        raise ValueError(f"n = {n} and size = {size}: both must be above 0.")
    if kind == "noise":
        noise = generator.integers(0, 256, (n, size, size, 3), dtype=np.uint8)
        return ImageSet(
            "generated_noise",
            "train",
            noise,
            np.zeros(n, np.int64),
            ["noise"],
            source="drawn by lib.data.sources",
        )
    if kind != "shapes":
        raise ValueError(f"kind is {kind!r}: choose 'shapes' or 'noise'.")
    labels, colour = (
        generator.permutation(np.arange(n) % len(SHAPES)),
        generator.integers(0, len(COLOURS), n),
    )
    scale, rotation = generator.uniform(0.2, 0.4, n), generator.uniform(0, 2 * np.pi, n)
    centre_x, centre_y = generator.uniform(0.35, 0.65, (2, n))
    grid = (np.arange(size) + 0.5) / size
    x, y = (
        grid[None, None, :] - centre_x[:, None, None],
        grid[None, :, None] - centre_y[:, None, None],
    )
    cos, sin, unit = (v[:, None, None] for v in (np.cos(rotation), np.sin(rotation), scale))
    u, v = (cos * x + sin * y) / unit, (cos * y - sin * x) / unit  # [N, size, size], in radii
    radius, a, b = np.hypot(u, v), np.abs(u), np.abs(v)
    # Signed distance to the outline, below zero inside.
    outlines = {
        "disc": radius - 0.9,
        "square": np.maximum(a, b) - 0.75,
        "triangle": np.maximum(a * np.sqrt(3) / 2 + v / 2, -v) - 0.5,
        "cross": np.minimum(np.maximum(a - 1, b - 0.3), np.maximum(b - 1, a - 0.3)),
        "ring": np.abs(radius - 0.75) - 0.2,
    }
    outline = np.stack([outlines[shape] for shape in SHAPES])[labels, np.arange(n)]
    cover = np.clip(0.5 - outline * unit * size, 0, 1)[..., None]
    background = generator.uniform(10, 70, (n, 1, 1, 1)) + generator.normal(
        0, 8, (n, size, size, 3)
    )
    pixels = (
        cover * np.array(list(COLOURS.values()))[colour][:, None, None, :]
        + (1 - cover) * background
    )
    images = np.clip(np.round(pixels), 0, 255).astype(np.uint8)
    extra = {"colour": colour, "scale": scale, "rotation": rotation, "x": centre_x, "y": centre_y}
    return ImageSet(
        "generated", "train", images, labels, SHAPES, extra, "drawn by lib.data.sources"
    )


def styled(plain: ImageSet, size: int = 32, seed: int = 0) -> ImageSet:
    """Images with a style of known factors: coloured, scaled, turned and moved on black, [size, size, 3]; the label stays the content.

    extra has, beside what it had, independent of the label and of one another: colour (one of eight; of images that have colours already a tint,
    that colour mixed with as much white), scale (side of the image as a share of its full size, 0.5 to 1), rotation (-45 to 45 degrees) and the shift
    x, y of the centre (at most a tenth of the side). The same for the same arguments on any machine: the pixels are moved by fixed-point arithmetic.
    """
    if size < 8:
        raise ValueError(f"size is {size} px; give at least 8.")
    generator, count = np.random.default_rng([seed, size]), len(plain)
    colour = generator.integers(0, len(HUES), count)
    scale, rotation = generator.uniform(0.5, 1.0, count), generator.uniform(-45.0, 45.0, count)
    x, y = generator.uniform(-0.1, 0.1, (2, count))
    side, grey = plain.images.shape[1], plain.images.shape[3] == 1
    # PIL maps a pixel of the result to one of the source: undo the shift, the rotation and the scale, about the centres.
    unit, angle = side / size / scale, np.deg2rad(rotation)
    cos, sin = np.cos(angle) * unit, np.sin(angle) * unit
    centre_x, centre_y = (0.5 + x) * size, (0.5 + y) * size
    coefficients = np.stack(
        [
            cos,
            sin,
            side / 2 - cos * centre_x - sin * centre_y,
            -sin,
            cos,
            side / 2 + sin * centre_x - cos * centre_y,
        ],
        1,
    )
    pixels = plain.images[np.arange(count)]
    moved = np.stack(
        [
            np.asarray(
                Image.fromarray(image).transform(
                    (size, size), Image.Transform.AFFINE, tuple(row), Image.Resampling.BILINEAR
                )
            )
            for image, row in zip(pixels[..., 0] if grey else pixels, coefficients, strict=True)
        ]
    )
    hues = np.array(list(HUES.values()), np.uint16)
    name, hues = ("colour", hues) if grey else ("tint", (hues + 255) // 2)
    images = (
        ((moved[..., None] if grey else moved) * hues[colour][:, None, None, :] + 127) // 255
    ).astype(np.uint8)
    extra = plain.extra | {name: colour, "scale": scale, "rotation": rotation, "x": x, "y": y}
    return ImageSet(
        f"styled_{plain.name}",
        plain.split,
        images,
        plain.labels,
        plain.classes,
        extra,
        f"{plain.source}, styled by lib.data.sources",
    )
