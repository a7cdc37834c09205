"""What is wrong with the images of a folder: dark, light, flat, blurred, noisy, odd, or a copy.

κ detects none of this. CleanVision does, but for noise, which it does not look for, and blur: of
300 photographs (Imagenette, 128 px) blurred by 6 px, its threshold finds a third. The correlation
of neighbouring pixels finds 98 %, and 1 % of the sharp ones.

Example:
    images, files = survey("holiday", image_size=64)
    issues = find_issues(images.images, files[files.status == "used"])
"""

from dataclasses import dataclass

import imagehash
import numpy as np
import pandas as pd
from cleanvision import Imagelab
from cleanvision.issue_managers.image_property import AspectRatioProperty, SizeProperty
from PIL import Image
from scipy.sparse import csgraph
from sklearn.neighbors import radius_neighbors_graph
from torchvision.datasets import VisionDataset

ISSUES = {
    "dark": "even the brightest pixels are dark",
    "light": "even the darkest pixels are light",
    "flat": "hardly any information, as a plain colour",
    "blurred": "neighbouring pixels are nearly equal",
    "noisy": "neighbouring pixels hardly resemble each other",
    "odd size": "much larger or smaller than the other files",
    "odd shape": "one side is more than 2.8 times as long as the other",
    "exact duplicate": "the same pixels as another file",
    "near duplicate": "nearly the same picture as another file",
}
BY_PIXELS = {"dark": "dark", "light": "light", "low_information": "flat"}  # CleanVision's names
SIDE = 64  # px, of the images that are judged; larger ones are reduced
NOISY = 0.35  # correlation of neighbouring pixels
BLURRED = 0.985
NARROWEST = 0.35  # shorter by longer side: CleanVision's threshold
IMAGES_AT_ONCE = 1024  # as numbers in float64
HASH_BITS = 64
MOST_DIFFERENT_BITS = 8  # of the perceptual hashes of near duplicates


@dataclass(frozen=True)
class Marks:
    """Which images [N] have an issue, with a score [N] from 0, the worst, to 1, the best.

    group: the group of copies that each is in, 0: none.
    """

    has_issue: np.ndarray
    score: np.ndarray
    group: np.ndarray | int = 0


class Squares(VisionDataset):
    """Images [N, S, S, 3] as the kind of data set that CleanVision reads."""

    def __init__(self, images: np.ndarray):
        super().__init__(root=None)
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image]:
        return (Image.fromarray(self.images[index]),)


def find_issues(images: np.ndarray, files: pd.DataFrame) -> pd.DataFrame:
    """Every issue of every image, one row each, by kind and the worst first.

    images: uint8 [N, S, S, 3]; files: a row an image, with the stored width and height.

    Columns: index (of the image), issue (one of ISSUES), score (0 is the worst, 1 the best) and
    group (of copies; 0 for other issues). Size and shape are those of the files.
    """
    small = _reduced(images)
    correlation = neighbour_correlation(small)
    marks = _cleanvision(small) | _odd_files(files)
    is_flat = marks["flat"].has_issue
    exact = marks["exact duplicate"].group
    marks["blurred"] = Marks(~is_flat & (correlation > BLURRED), 1 - correlation)
    marks["noisy"] = Marks(~is_flat & (correlation < NOISY), correlation.clip(0))
    marks["near duplicate"] = _copies(near_duplicates(small, exact, is_flat))
    parts = []
    for issue in ISSUES:
        columns = {"index": np.arange(len(images)), "issue": issue}
        part = pd.DataFrame(columns | {"score": marks[issue].score, "group": marks[issue].group})
        part = part[marks[issue].has_issue]
        parts.append(part.sort_values(["group", "score", "index"]))
    return pd.concat(parts, ignore_index=True)


def issues_by_image(issues: pd.DataFrame, count: int) -> list[str]:
    """The issues of each of ``count`` images, joined by commas; "" where there are none."""
    joined = issues.groupby("index").issue.agg(", ".join)
    return joined.reindex(range(count), fill_value="").tolist()


def neighbour_correlation(images: np.ndarray) -> np.ndarray:
    """Correlation [N] of grey pixels with those to the right and below, 0 for plain images.

    images: [N, H, W, 3]. About 0 for white noise, 0.91 for sharp photographs of 64 px, 1 for what
    is smooth.
    """
    parts = []
    for start in range(0, len(images), IMAGES_AT_ONCE):
        grey = images[start : start + IMAGES_AT_ONCE].mean(3)  # [B, H, W]
        right = _correlation(grey[:, :, 1:], grey[:, :, :-1])
        below = _correlation(grey[:, 1:], grey[:, :-1])
        parts.append((right + below) / 2)
    return np.concatenate(parts)


def near_duplicates(images: np.ndarray, exact: np.ndarray, is_flat: np.ndarray) -> np.ndarray:
    """The group [N] of near duplicates that each image is in, from 1; 0: in none.

    Two images are near duplicates if their perceptual hashes of 64 bits differ by at most
    MOST_DIFFERENT_BITS; groups are what such pairs connect. Of 800 photographs (Imagenette) all
    are found again after JPEG compression of quality 60 or half their size, 99.5 % after
    brightening by a fifth, 60 % after a crop of 4 % at each side; none of 320,000 pairs is found
    wrongly. Mirrored and strongly cropped copies are not found.

    exact: groups of exact duplicates, which do not count here. Flat images all have one hash and
    are left out.
    """
    groups = np.zeros(len(images), int)
    kept = np.flatnonzero(~is_flat)
    if len(kept) < 2:
        return groups
    hashes = [imagehash.phash(Image.fromarray(images[index])).hash.ravel() for index in kept]
    unique, place = np.unique(np.array(hashes), axis=0, return_inverse=True)
    radius = (MOST_DIFFERENT_BITS + 0.5) / HASH_BITS
    pairs = radius_neighbors_graph(unique, radius, metric="hamming")
    _, component = csgraph.connected_components(pairs, directed=False)
    groups[kept] = component[place.ravel()] + 1
    return _without_repetition(groups, exact)


def _without_repetition(groups: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Groups numbered from 1, without those that hold one image, or one and its exact copies."""
    pictures = np.where(exact > 0, -exact, np.arange(len(groups)))
    frame = pd.DataFrame({"group": groups, "picture": pictures})
    counts = frame.groupby("group").picture.transform("nunique")
    is_copied = ((counts > 1) & (frame.group > 0)).to_numpy()
    numbered = np.zeros(len(groups), int)
    numbered[is_copied] = pd.factorize(groups[is_copied])[0] + 1
    return numbered


def _copies(group: np.ndarray) -> Marks:
    return Marks(group > 0, np.zeros(len(group)), group)


def _cleanvision(images: np.ndarray) -> dict[str, Marks]:
    """The issues that CleanVision finds in pixels, and exact copies."""
    lab = Imagelab(torchvision_dataset=Squares(images), verbose=False)
    kinds = dict.fromkeys([*BY_PIXELS, "exact_duplicates"], {})
    lab.find_issues(kinds, n_jobs=1, verbose=False)
    marks = {}
    for kind, issue in BY_PIXELS.items():
        has_issue = lab.issues[f"is_{kind}_issue"].to_numpy(bool)
        marks[issue] = Marks(has_issue, lab.issues[f"{kind}_score"].to_numpy(float))
    exact = np.zeros(len(images), int)
    for number, copies in enumerate(lab.info["exact_duplicates"]["sets"], start=1):
        exact[copies] = number
    return marks | {"exact duplicate": _copies(exact)}


def _odd_files(files: pd.DataFrame) -> dict[str, Marks]:
    """CleanVision's judgement of the sizes and shapes of files."""
    width = files.width.to_numpy(float)
    height = files.height.to_numpy(float)
    size = SizeProperty()
    sizes = size.get_scores(pd.DataFrame({"size": np.sqrt(width * height)}), "odd_size")
    is_odd_size = size.mark_issue(sizes, "odd_size").to_numpy(bool)[:, 0]
    ratio = np.minimum(width / height, height / width)
    shape = AspectRatioProperty()
    shapes = shape.get_scores(pd.DataFrame({"aspect_ratio": ratio}), "odd_aspect_ratio")
    return {
        "odd size": Marks(is_odd_size, sizes.to_numpy()[:, 0]),
        "odd shape": Marks(ratio < NARROWEST, shapes.to_numpy()[:, 0]),
    }


def _reduced(images: np.ndarray) -> np.ndarray:
    """Images of at most SIDE px; smaller ones as they are."""
    if images.shape[1] <= SIDE:
        return images
    reduced = [Image.fromarray(image).resize((SIDE, SIDE), Image.BICUBIC) for image in images]
    return np.stack([np.asarray(image) for image in reduced])


def _correlation(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Correlation [N] of the pixels of two stacks of images [N, H, W]; 0 for plain ones."""
    first = first - first.mean((1, 2), keepdims=True)
    second = second - second.mean((1, 2), keepdims=True)
    covariance = (first * second).mean((1, 2))
    scale = np.sqrt((first**2).mean((1, 2)) * (second**2).mean((1, 2)))
    return np.divide(covariance, scale, out=np.zeros(len(first)), where=scale > 0)
