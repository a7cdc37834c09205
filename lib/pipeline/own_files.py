"""A folder of a user's images: every file is read, or reported by its name."""

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageOps, UnidentifiedImageError

from lib.data import files as image_files
from lib.data.sets import ImageSet
from lib.training.progress import Progress

NAME = "own_images"  # of the set, in settings and runs
FEWEST = 64  # images: one batch
SMALLEST_SIDE = 16  # px; below, an enlarged image is blur only
MOST_PIXELS = Image.MAX_IMAGE_PIXELS  # against files that are small on disk and fill the memory
UPRIGHT = 1
STATUS = {
    "used": "scored",
    "broken": "unreadable",
    "tiny": "too small",
    "huge": "too large",
    "link": "linked from elsewhere",
    "other": "of other kinds",
}
LEFT_OUT = {"hidden": "other", "link": "link", "other": "other", "unreadable": "broken"}
COLUMNS = ["file", "folder", "status", "width", "height", "mode", "note"]


@dataclass
class File:
    """A file and what is known of it; ``pixels`` [S, S, 3] only where its status is "used"."""

    path: Path
    status: str = "used"
    note: str = ""
    width: int | None = None
    height: int | None = None
    mode: str | None = None
    pixels: np.ndarray | None = None

    def left_out(self, status: str, note: str) -> "File":
        """This file with the reason why it is not used."""
        self.status = status
        self.note = note
        self.pixels = None
        return self


# ------------------------------------------------------------------------- reading a folder
def survey(
    folder: str | Path, image_size: int, progress: Path | None = None
) -> tuple[ImageSet, pd.DataFrame]:
    """Every file below a folder, read as far as it can be: the images, and one row a file.

    Images are uint8 [N, S, S, 3]: shorter side to S = ``image_size`` and the centre square,
    upright by EXIF, the first frame, transparency on white, 16 bits by their full range, 32 bits
    and floats by their own. Their label is the first sub-folder.

    Columns of the table: file (relative), folder, status (one of STATUS), width, height, mode as
    stored, note. The rows with status "used" are the images in order. A file that cannot be read
    is a row, never an error. progress: a progress.json to write.

    ValueError if fewer than FEWEST images can be used; FileNotFoundError without a folder.
    """
    root = Path(folder).expanduser().resolve()
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root} is not a folder: give one that holds images, in sub-folders or not."
        )
    if image_size < SMALLEST_SIDE:
        raise ValueError(f"image_size is {image_size} px; give at least {SMALLEST_SIDE}.")
    files = read_all(root, image_size, progress)
    table = pd.DataFrame([_row(file, root) for file in files], columns=COLUMNS)
    table = table.astype({"width": "Int64", "height": "Int64"})
    used = [file for file in files if file.status == "used"]
    if len(used) < FEWEST:
        raise ValueError(_too_few(root, table))
    labels, classes = pd.factorize(table.folder[table.status == "used"], sort=True)
    pixels = np.stack([file.pixels for file in used])
    source = f"folder {printable(root.name)}"
    return ImageSet(NAME, "train", pixels, labels, list(classes), source=source), table


def read_all(root: Path, image_size: int, progress: Path | None) -> list[File]:
    """All files below a folder, sorted by path, each read as far as it can be."""
    waiting = listed(root)
    bar = Progress(progress, "reading files", len(waiting), done=0, batch_size=1, show=False)
    files = []
    with (
        contextlib.closing(bar),
        large_images_opened(),
        ThreadPoolExecutor(image_files.DECODERS) as pool,
    ):
        for file in pool.map(lambda file: read(file, image_size), waiting):
            files.append(file)
            bar.update(len(files), None)
    if progress:
        with contextlib.suppress(OSError):
            progress.parent.rmdir()  # made for that file
    return files


def _row(file: File, root: Path) -> dict:
    parts = file.path.relative_to(root).parts
    return {
        "file": printable("/".join(parts)),
        "folder": printable(parts[0]) if len(parts) > 1 else ".",
        "status": file.status,
        "width": file.width,
        "height": file.height,
        "mode": file.mode,
        "note": file.note,
    }


def _too_few(root: Path, table: pd.DataFrame) -> str:
    """How many images a folder has, and why the first files are not counted."""
    counts = [f"{count} {status}" for status, count in table.status.value_counts().items()]
    left_out = table[table.status != "used"].head(3)
    reasons = [f" {row.file}: {row.note}." for row in left_out.itertuples()]
    return (
        f"{root} has {(table.status == 'used').sum()} images that can be used, fewer than "
        f"{FEWEST} ({', '.join(counts) or 'no files'}).{''.join(reasons)} "
        "Add images, or give another folder."
    )


def listed(root: Path) -> list[File]:
    """Every file and link below a folder, sorted; those that are not opened have their reason."""
    files = []
    for entry in image_files.walk(root):
        file = File(entry.path)
        if not entry.is_image:
            file.left_out(LEFT_OUT[entry.kind], entry.note)
        files.append(file)
    return files


def printable(name: str) -> str:
    """A file name as text; bytes that are not UTF-8 become escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


@contextlib.contextmanager
def large_images_opened() -> Iterator[None]:
    """Lift Pillow's limit, which is checked before a JPEG can be asked for a smaller decoding.

    ``read`` has the same limit, after that.
    """
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def read(file: File, size: int) -> File:
    """The file with its pixels [size, size, 3], or with the reason why it has none."""
    if file.status != "used":
        return file
    try:
        with Image.open(file.path, formats=image_files.FORMATS) as image:
            return _decoded(file, image, size)
    except UnidentifiedImageError:
        is_empty = file.path.stat().st_size == 0
        note = "empty" if is_empty else "no image of a known kind, or damaged at its start"
        return file.left_out("broken", note)
    except Exception as error:  # decoders raise a dozen types on damaged files
        message = str(error).replace(str(file.path), file.path.name)
        return file.left_out("broken", f"{type(error).__name__}: {message}"[:200])


def _decoded(file: File, image: Image.Image, size: int) -> File:
    file.width = image.width
    file.height = image.height
    file.mode = image.mode
    shorter = min(image.size)
    if shorter < SMALLEST_SIDE:
        note = f"{image.width} x {image.height} px, the shorter side below {SMALLEST_SIDE}"
        return file.left_out("tiny", note)
    image_files.decode_smaller(image, size)
    pixels = image.width * image.height
    if pixels > MOST_PIXELS:
        return file.left_out("huge", f"{pixels:,} pixels to decode, more than {MOST_PIXELS:,}")
    notes = []
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        notes.append(f"first of {frames} frames")
    if image.getexif().get(image_files.ORIENTATION, UPRIGHT) != UPRIGHT:
        notes.append("turned by its EXIF orientation")
    if shorter < size:
        notes.append(f"enlarged to {size} px, which blurs it")
    rgb, conversions = image_files.to_rgb(ImageOps.exif_transpose(image))
    file.pixels = np.asarray(image_files.square(rgb, size))
    file.note = ", ".join(notes + conversions)
    return file
