"""A folder of somebody's images: every file read as far as it can be, or reported by its name; and which images are near-duplicates."""

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.nn import functional as F

from lib.data import sets as image_sets
from lib.data.files import DECODERS, FORMATS, SUFFIXES, square, to_rgb
from lib.training import loop as training

NAME = "own_images"  # of the set, in settings and runs
FEWEST = 64  # images: one batch
SMALLEST_SIDE = 16  # px; below, an enlarged image is blur alone
MOST_PIXELS = (
    Image.MAX_IMAGE_PIXELS
)  # Pillow's limit against files that are small on disk and fill the memory
UPRIGHT, ORIENTATION = 1, 0x0112  # EXIF
STATUS = {
    "used": "scored",
    "broken": "unreadable",
    "tiny": "too small",
    "huge": "too large",
    "link": "linked from elsewhere",
    "other": "of other kinds",
}
ALIKE, FLAT, THUMBNAIL = 0.96, 2.0, 16


# ---------------------------------------------------------------------------------------------------------------- reading a folder
def survey(
    folder: str | Path, image_size: int, progress: Path | None = None
) -> tuple[image_sets.ImageSet, pd.DataFrame]:
    """Every file below ``folder``, read as far as it can be: (the images that can be used, one row a file).

    Images are uint8 [N, S, S, 3], shorter side to S = ``image_size`` and the centre square, upright by EXIF, first frame, alpha on white, 16 bits by
    their full range, 32 bits and floats by their own; their label is the first sub-folder. Columns of the table: file (relative), folder, status
    (one of STATUS), width, height, mode as stored, note; the rows with status "used" are the images in order. A file that cannot be read is a row,
    never an error. progress: a progress.json for whoever watches. ValueError if fewer than FEWEST images can be used; FileNotFoundError.
    """
    root = Path(folder).expanduser().resolve()
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root} is not a folder: give one that holds images, in sub-folders or not."
        )
    if image_size < SMALLEST_SIDE:
        raise ValueError(f"image_size is {image_size} px; give at least {SMALLEST_SIDE}.")
    listed = sorted(_walk(root))
    rows, pixels, bar = (
        [],
        [],
        training.Progress(progress, "reading files", len(listed), 0, 1, show=False),
    )
    with (
        contextlib.closing(bar),
        _large_images_opened(),
        ThreadPoolExecutor(DECODERS) as pool,
    ):
        for (path, _), (row, image) in zip(
            listed, pool.map(lambda entry: _read(*entry, image_size), listed), strict=True
        ):
            parts = path.relative_to(root).parts
            rows.append(
                {
                    "file": _printable("/".join(parts)),
                    "folder": _printable(parts[0]) if len(parts) > 1 else ".",
                }
                | row
            )
            pixels += [] if image is None else [image]
            bar.update(len(rows), None)
    if progress:
        with contextlib.suppress(OSError):
            progress.parent.rmdir()  # made for that file alone
    files = pd.DataFrame(
        rows, columns=["file", "folder", "status", "width", "height", "mode", "note"]
    ).astype({"width": "Int64", "height": "Int64"})
    if len(pixels) < FEWEST:
        counts = (
            ", ".join(f"{count} {status}" for status, count in files.status.value_counts().items())
            or "no files"
        )
        reasons = "".join(
            f" {row.file}: {row.note}."
            for row in files[files.status != "used"].head(3).itertuples()
        )
        usable = f"{root} has {len(pixels)} images that can be used, fewer than {FEWEST}"
        raise ValueError(f"{usable} ({counts}).{reasons} Add images, or give another folder.")
    labels, classes = pd.factorize(files.folder[files.status == "used"], sort=True)
    return image_sets.ImageSet(
        NAME,
        "train",
        np.stack(pixels),
        labels,
        list(classes),
        source=f"folder {_printable(root.name)}",
    ), files


def _walk(root: Path) -> Iterator[tuple[Path, str]]:
    """Every file and link below ``root``, and why it is not to be opened, or ""."""
    unreadable: list[tuple[Path, str]] = []
    for folder, folders, files in os.walk(
        root,
        onerror=lambda error: unreadable.append(
            (Path(error.filename), f"broken: {error.strerror}")
        ),
    ):
        for name in [*folders, *files]:
            path = Path(folder, name)
            if path.is_symlink():
                yield path, "link: a symbolic link, not followed"
            elif name.startswith("."):
                yield path, "other: hidden"
            elif name in files and not path.is_file():
                yield path, "other: not a regular file"
            elif name in files:
                yield path, _other(path.suffix.lower())
        folders[:] = [name for name in folders if not name.startswith(".")]
    yield from unreadable


def _other(suffix: str) -> str:
    """Why a file with this suffix is not opened, or ""."""
    if suffix in SUFFIXES:
        return ""
    if suffix in (".heic", ".heif", ".avif"):
        return f"other: {suffix} cannot be read here; save the image as JPEG or PNG"
    return f"other: {suffix or 'no suffix'} is not a kind of image that is read"


def _printable(name: str) -> str:
    """A file name may hold bytes that are not UTF-8; they are shown as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


@contextlib.contextmanager
def _large_images_opened() -> Iterator[None]:
    """Pillow refuses large images before a JPEG can be asked for a smaller decoding; here _read has the same limit, after that."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _read(path: Path, left_out: str, size: int) -> tuple[dict, np.ndarray | None]:
    """The row of one file in survey's table, and its pixels [S, S, 3] if it can be used."""
    if left_out:
        status, note = left_out.split(": ", 1)
        return {"status": status, "note": note}, None
    row = {"status": "used", "note": ""}
    try:
        with Image.open(path, formats=FORMATS) as image:
            row |= {"width": image.width, "height": image.height, "mode": image.mode}
            if min(image.size) < SMALLEST_SIDE:
                return row | {
                    "status": "tiny",
                    "note": f"{image.width} x {image.height} px, the shorter side below {SMALLEST_SIDE}",
                }, None
            # Of a progressive JPEG all coefficients are held in memory, whatever size is asked for.
            if not image.info.get("progressive"):
                image.draft(None, (2 * size, 2 * size))
            if image.width * image.height > MOST_PIXELS:
                return row | {
                    "status": "huge",
                    "note": f"{image.width * image.height:,} pixels to decode, more than {MOST_PIXELS:,}",
                }, None
            notes = (
                [f"first of {image.n_frames} frames"] if getattr(image, "n_frames", 1) > 1 else []
            )
            notes += (
                ["turned by its EXIF orientation"]
                if image.getexif().get(ORIENTATION, UPRIGHT) != UPRIGHT
                else []
            )
            notes += (
                [f"enlarged to {size} px, which blurs it"]
                if min(row["width"], row["height"]) < size
                else []
            )
            rgb, converted = to_rgb(ImageOps.exif_transpose(image))
            return row | {"note": ", ".join(notes + converted)}, np.asarray(square(rgb, size))
    except UnidentifiedImageError:
        what = (
            "not an image of a kind that is read, or damaged at its start"
            if path.stat().st_size
            else "empty"
        )
        return row | {"status": "broken", "note": what}, None
    except Exception as error:  # decoders raise a dozen types on damaged files; each is reported by its file's name
        return row | {
            "status": "broken",
            "note": f"{type(error).__name__}: {str(error).replace(str(path), path.name)}"[:200],
        }, None


# ---------------------------------------------------------------------------------------------------------------- near-duplicates
def near_duplicates(images: np.ndarray) -> pd.DataFrame:
    """Groups of images [N, S, S, 3] that show nearly the same picture: columns group (from 1), index, similarity (to the most alike in the group).

    Rule: two images are near-duplicates if their thumbnails of 16 x 16 pixels, less the mean of each colour, correlate by at least ALIKE; of
    thumbnails that vary by less than FLAT levels of 255 if their mean colours differ by at most FLAT. Groups are what such pairs connect. It finds
    copies that were compressed, resized, brightened or cropped by a few per cent, not mirrored or strongly cropped ones; two smooth gradients of one
    direction count as alike too. Of 4.5 million pairs of 3,000 photographs (Imagenette) none correlates by more than 0.95.
    """
    pixels = torch.from_numpy(images)
    small = torch.cat(
        [
            F.adaptive_avg_pool2d(part.movedim(-1, 1).float(), THUMBNAIL)
            for part in pixels.split(1024)
        ]
    )  # [N, 3, 16, 16]
    colour = small.mean((2, 3))
    structure = (small - colour[..., None, None]).flatten(1)
    flat = structure.std(1) < FLAT
    unit = F.normalize(structure, dim=1) * ~flat[:, None]
    group, best = (
        np.arange(len(unit)),
        np.empty(len(unit)),
    )  # the group by its first image; pairs are not kept, as n alike images have n²
    for start in range(0, len(unit), 1024):
        rows = slice(start, start + 1024)
        similarity = unit[rows] @ unit.T
        same = flat[rows, None] & flat & (torch.cdist(colour[rows], colour, p=torch.inf) <= FLAT)
        similarity[same] = 1.0
        similarity[
            torch.arange(len(similarity)), torch.arange(start, start + len(similarity))
        ] = -torch.inf  # with itself
        best[rows], alike = similarity.max(1).values, similarity >= ALIKE
        for row in alike.any(1).nonzero().flatten().tolist():
            joined = np.unique(group[np.append(alike[row].numpy().nonzero()[0], start + row)])
            if len(joined) > 1:
                group[np.isin(group, joined)] = joined[0]
    index = np.flatnonzero(best >= ALIKE)
    groups = pd.DataFrame(
        {
            "group": pd.factorize(group[index])[0] + 1,
            "index": index,
            "similarity": best[index].clip(max=1),
        }
    )
    return groups.sort_values(["group", "index"], ignore_index=True)
