"""Planted faults are all named, and sharp photographs are left alone."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images

from lib.pipeline.image_issues import find_issues, neighbour_correlation

SIZE = 64
COUNT = 60


def photographs(count=COUNT):
    """Squares of 128 px, cut from scikit-learn's two photographs where these are not smooth."""
    squares = []
    for photo in load_sample_images().images:
        for top in range(0, photo.shape[0] - 127, 50):
            for left in range(0, photo.shape[1] - 127, 50):
                squares.append(photo[top : top + 128, left : left + 128])
    contrast = [np.abs(np.diff(square.astype(int), axis=1)).mean() for square in squares]
    sharpest = np.argsort(contrast)[::-1][:count]
    return [Image.fromarray(squares[index]) for index in sharpest]


def judged(images, sizes=None):
    """The issues of Pillow's images, with the numbers of the images that have each."""
    squares = np.stack([np.asarray(image.resize((SIZE, SIZE))) for image in images])
    files = pd.DataFrame(sizes or [image.size for image in images], columns=["width", "height"])
    issues = find_issues(squares, files)
    return issues, issues.groupby("issue")["index"].agg(set).to_dict()


def noise(side, deviation=80):
    pixels = 128 + deviation * np.random.default_rng(0).normal(size=(side, side, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


PLANTED = {
    "white": (Image.new("RGB", (128, 128), "white"), {"light", "flat"}),
    "black": (Image.new("RGB", (128, 128), "black"), {"dark", "flat"}),
    "grey": (Image.new("RGB", (128, 128), "grey"), {"flat"}),
    "noise of 64 px": (noise(64), {"noisy"}),
    "noise of 300 px": (noise(300), {"noisy", "odd size"}),
    "blurred": (photographs(1)[0].filter(ImageFilter.GaussianBlur(8)), {"blurred"}),
    "dark": (photographs(1)[0].point(lambda value: value // 5), {"dark"}),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_named_and_nothing_else(name):
    planted, expected = PLANTED[name]
    others = photographs()[1:]
    _, by_issue = judged([*others, planted])
    planted_issues = {issue for issue, index in by_issue.items() if len(others) in index}
    assert planted_issues - {"odd size"} == expected - {"odd size"}
    assert not set(by_issue) & {"dark", "light", "flat", "noisy"} - expected


def test_copies_are_grouped():
    """Exact copies, compressed, smaller, brighter ones; and a chain of copies is one group."""
    images = photographs()
    small = images[1].resize((50, 50))
    brighter = images[2].point(lambda value: min(255, value + 20))
    both = images[2].resize((90, 90))
    issues, by_issue = judged([*images, images[0], small, brighter, both])
    assert by_issue["exact duplicate"] == {0, COUNT}
    near = issues[issues.issue == "near duplicate"]
    groups = {frozenset(group["index"]) for _, group in near.groupby("group")}
    assert groups == {frozenset({1, COUNT + 1}), frozenset({2, COUNT + 2, COUNT + 3})}


def test_a_copy_of_an_exact_copy_is_a_near_duplicate_of_both():
    images = photographs()
    issues, _ = judged([*images, images[0], images[0].resize((70, 70))])
    near = issues[issues.issue == "near duplicate"]
    assert set(near["index"]) == {0, COUNT, COUNT + 1}


def test_plain_images_are_exact_duplicates_only_of_their_colour():
    plain = [Image.new("RGB", (80, 80), color) for color in ("red", "blue", "red")]
    issues, by_issue = judged([*photographs(), *plain])
    assert by_issue["exact duplicate"] == {COUNT, COUNT + 2}
    assert "near duplicate" not in by_issue


def test_sizes_and_shapes_are_those_of_the_files():
    images = photographs()
    sizes = [(640, 480 + index) for index in range(COUNT)]
    sizes[3] = (40, 30)
    sizes[4] = (1700, 190)
    _, by_issue = judged(images, sizes)
    assert by_issue["odd size"] == {3}
    assert by_issue["odd shape"] == {4}


def test_neighbour_correlation_is_numpys():
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    images[1] = 7
    correlation = neighbour_correlation(images)
    grey = images[0].mean(2)
    right = np.corrcoef(grey[:, 1:].ravel(), grey[:, :-1].ravel())[0, 1]
    below = np.corrcoef(grey[1:].ravel(), grey[:-1].ravel())[0, 1]
    assert correlation[0] == pytest.approx((right + below) / 2)
    assert correlation[1] == 0
