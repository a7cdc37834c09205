"""Image files: which files of a folder are read, and the one way from a path to pixels.

    entries = walk(folder)              every file below it, and why some are left out
    image = read_image(path, 96)        floats in 0..1, [3, 96, 96]: what a network takes

Training folders and the scoring of a folder both follow these rules. Read is every regular file
with the suffix of a format that Pillow decodes. Left out, and named, are hidden files and
folders, links, and everything else.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from lib.runs.store import one_line

DECODERS = min(8, os.cpu_count() or 1)  # threads
MOST_NAMED = 5  # files that a message names

Image.init()  # registers all formats
# Pillow starts Ghostscript for EPS, and recognises the others without decoding them.
NOT_DECODED = {"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF"}
FORMATS = tuple(sorted(set(Image.OPEN) - NOT_DECODED))
# MPO, several JPEGs in one file, is opened as JPEG.
SUFFIXES = {
    suffix for suffix, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO")
}
ORIENTATION = 0x0112  # EXIF
TURNED_BY_A_QUARTER = (5, 6, 7, 8)


# ------------------------------------------------------------------------------------- a folder
@dataclass(frozen=True)
class Entry:
    """A file, link or hidden folder below a folder.

    kind: "image", or why it is left out: "hidden", "link", "other" (of another kind) or
    "unreadable"; ``note`` says it in words.
    """

    path: Path
    kind: str
    note: str = ""

    @property
    def is_image(self) -> bool:
        return self.kind == "image"


def walk(folder: Path) -> list[Entry]:
    """Every file below a folder, sorted by path.

    Links and hidden folders are entries of their own and are not entered.
    """
    entries = []
    pending = [Path(folder)]
    while pending:
        current = pending.pop()
        try:
            folders, entries_here = list_folder(current)
        except OSError as error:
            entries.append(Entry(current, "unreadable", error.strerror or "cannot be listed"))
            continue
        pending += folders
        entries += entries_here
    return sorted(entries, key=lambda entry: entry.path)


def list_folder(folder: Path) -> tuple[list[Path], list[Entry]]:
    """The sub-folders that ``walk`` enters, and everything else in one folder."""
    folders = []
    entries = []
    with os.scandir(folder) as items:
        for item in items:
            path = Path(item.path)
            if item.name.startswith("."):
                entries.append(Entry(path, "hidden", "hidden"))
            elif item.is_symlink():
                entries.append(Entry(path, "link", "a symbolic link, not followed"))
            elif item.is_dir():
                folders.append(path)
            elif item.is_file():
                entries.append(_judged(path))
            else:
                entries.append(Entry(path, "other", "not a regular file"))
    return folders, entries


def _judged(path: Path) -> Entry:
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return Entry(path, "image")
    if suffix in (".heic", ".heif", ".avif"):
        note = f"{suffix} cannot be read here; save the image as JPEG or PNG"
    else:
        note = f"{suffix or 'no suffix'} is not a kind of image that is read"
    return Entry(path, "other", note)


def describe_left_out(entries: list[Entry], root: Path) -> str:
    """What ``walk`` left out, for a message: "3 left out: a/.thumbs (hidden), ..."; "" if none."""
    left_out = [entry for entry in entries if not entry.is_image]
    if not left_out:
        return ""
    named = [f"{entry.path.relative_to(root)} ({entry.note})" for entry in left_out[:MOST_NAMED]]
    if len(left_out) > MOST_NAMED:
        named.append(f"and {len(left_out) - MOST_NAMED:,} more")
    return f"{len(left_out):,} left out: {', '.join(named)}"


# ----------------------------------------------------------------------------------- an image
def read_image(path: str | Path, image_size: int) -> torch.Tensor:
    """An image file as floats in 0..1, [3, image_size, image_size].

    Upright by its EXIF orientation, transparency on white, 16 bits scaled by their full range,
    32 bits and floats by their own, the first frame; shorter side to ``image_size``, centre
    square. ValueError for a file that is no readable image.

    Example:
        images = torch.stack([read_image(path, 96) for path in paths])
    """
    pixels = read_pixels(Path(path), image_size)
    return torch.from_numpy(pixels.copy()).movedim(-1, 0).float() / 255


def read_pixels(path: Path, image_size: int | None = None) -> np.ndarray:
    """As ``read_image``, in bytes: uint8 [H, W, 3]; without a size the whole image."""
    with opened(path) as image:
        if image_size:
            decode_smaller(image, image_size)
        upright, _ = to_rgb(ImageOps.exif_transpose(image))
        if image_size:
            upright = square(upright, image_size)
        return np.asarray(upright)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """The file opened by Pillow; ValueError if it cannot be opened or decoded."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            yield image
    except MemoryError:
        raise
    except Exception as error:  # decoders raise a dozen types on damaged files
        raise ValueError(
            f"{path} is not a readable image ({one_line(error)}): replace or remove it."
        ) from error


def decode_smaller(image: Image.Image, image_size: int) -> None:
    """Let a JPEG be decoded at a half, a quarter or an eighth, if that has twice the size needed.

    A progressive JPEG keeps all coefficients in memory, whatever size is asked for.
    """
    if not image.info.get("progressive"):
        image.draft(None, (2 * image_size, 2 * image_size))


def to_rgb(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """The image in 8-bit RGB, and what was done to it.

    ValueError for an image of floats that are not all finite.
    """
    if image.mode.startswith(("I", "F")):
        return _scaled_to_bytes(image)
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        white = Image.new("RGBA", opaque.size, "white")
        return Image.alpha_composite(white, opaque).convert("RGB"), ["transparency put on white"]
    notes = ["CMYK converted to RGB"] if image.mode == "CMYK" else []
    return image.convert("RGB"), notes


def _scaled_to_bytes(image: Image.Image) -> tuple[Image.Image, list[str]]:
    """16 bits by their full range, 32 bits and floats by that of the image."""
    values = np.asarray(image, np.float64)
    if image.mode.startswith("I;16"):
        low = 0.0
        high = 65535.0
        note = "16 bits, scaled to 8"
    else:
        low = values.min()
        high = values.max()
        note = f"from {low:g} to {high:g}, scaled to 8 bits"
    if not np.isfinite([low, high]).all():
        raise ValueError("it holds values that are not finite")
    scaled = np.rint(255 * (values - low) / max(high - low, 1e-12)).astype(np.uint8)
    return Image.fromarray(scaled).convert("RGB"), [note]


def square(image: Image.Image, size: int) -> Image.Image:
    """Shorter side to ``size``, centre square."""
    return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)


# --------------------------------------------------------------------------------- many images
@dataclass(frozen=True)
class LazyImages:
    """Image files that answer like a uint8 array [N, H, W, 3]: ``lazy[indices]`` decodes them.

    With ``image_size`` they are read as ``read_image`` reads them; without, all files must have
    ``size`` (width, height).
    """

    files: list[Path]
    root: Path
    size: tuple[int, int]
    image_size: int | None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        width, height = self.size
        return (len(self.files), height, width, 3)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, indices) -> np.ndarray:
        chosen = np.arange(len(self))[indices]
        if chosen.ndim == 0:
            return self._read(chosen)
        with ThreadPoolExecutor(DECODERS) as pool:
            return np.stack(list(pool.map(self._read, chosen)))

    def _read(self, index: int) -> np.ndarray:
        file = self.files[index]
        pixels = read_pixels(file, self.image_size)
        height, width, _ = pixels.shape
        if (width, height) != self.size:
            raise ValueError(
                f"{file} is {(width, height)} pixels when upright, others are {self.size}: "
                "give image_size."
            )
        return pixels


def lazy_images(files: list[Path], root: Path, image_size: int | None) -> LazyImages:
    """The files as LazyImages; ValueError if they have several sizes and no image_size is given."""
    if image_size:
        return LazyImages(files, root, (image_size, image_size), image_size)
    with ThreadPoolExecutor(DECODERS) as pool:
        sizes = sorted(set(pool.map(_upright_size, files)))
    if len(sizes) > 1:
        raise ValueError(
            f"The images in {root} have {len(sizes)} sizes, from {sizes[0]} to {sizes[-1]}: "
            "give image_size, as in 64."
        )
    return LazyImages(files, root, sizes[0], None)


def _upright_size(file: Path) -> tuple[int, int]:
    """Width and height of an image as it is seen, from the file's header."""
    with opened(file) as image:
        width, height = image.size
        # Asking a PNG for its orientation would decode it.
        if image.format not in ("JPEG", "MPO"):
            return width, height
        if image.getexif().get(ORIENTATION, 1) in TURNED_BY_A_QUARTER:
            return height, width
        return width, height
