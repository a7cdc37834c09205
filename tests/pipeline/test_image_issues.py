"""Planted faults are all named, and sharp photographs are left alone."""

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter
from sklearn.datasets import load_sample_images

from lib.pipeline.image_issues import find_issues

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


def noise(side):
    pixels = 128 + 80 * np.random.default_rng(0).normal(size=(side, side, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def test_planted_faults_are_named_and_nothing_else():
    photos = photographs(COUNT + 2)
    planted = {
        "white": (Image.new("RGB", (128, 128), "white"), {"light", "flat"}),
        "black": (Image.new("RGB", (128, 128), "black"), {"dark", "flat"}),
        "grey": (Image.new("RGB", (128, 128), "grey"), {"flat"}),
        "noise": (noise(64), {"noisy"}),
        "larger noise": (noise(300), {"noisy"}),
        "blurred": (photos[0].filter(ImageFilter.GaussianBlur(8)), {"blurred"}),
        "dark": (photos[1].point(lambda value: value // 5), {"dark"}),
    }
    images = [*photos[2:], *(image for image, _ in planted.values())]
    _, by_issue = judged(images, sizes=[(128, 128)] * len(images))
    for place, (name, (_, expected)) in enumerate(planted.items(), start=COUNT):
        assert {issue for issue, index in by_issue.items() if place in index} == expected, name
    of_photographs = {issue for issue, index in by_issue.items() if min(index) < COUNT}
    assert of_photographs <= {"blurred"}


def test_copies_are_grouped():
    """Exact, compressed, smaller and brighter copies, and one that is exact beside a smaller one.

    Plain images are exact copies of those of their colour, and near copies of none.
    """
    images = photographs()
    small = images[1].resize((50, 50))
    brighter = images[2].point(lambda value: min(255, value + 20))
    both = images[2].resize((90, 90))
    chain = [images[3], images[3].resize((70, 70))]
    plain = [Image.new("RGB", (80, 80), colour) for colour in ("red", "blue", "red")]
    issues, _ = judged([*images, images[0], small, brighter, both, *chain, *plain])
    exact = issues[issues.issue == "exact duplicate"].groupby("group")["index"].agg(set)
    near = issues[issues.issue == "near duplicate"].groupby("group")["index"].agg(set)
    copy = COUNT  # the number of the first copy
    assert sorted(exact, key=min) == [{0, copy}, {3, copy + 4}, {copy + 6, copy + 8}]
    assert sorted(near, key=min) == [
        {1, copy + 1},
        {2, copy + 2, copy + 3},
        {3, copy + 4, copy + 5},
    ]


def test_sizes_and_shapes_are_those_of_the_files():
    images = photographs()
    sizes = [(640, 480 + index) for index in range(COUNT)]
    sizes[3] = (40, 30)
    sizes[4] = (1700, 190)
    _, by_issue = judged(images, sizes)
    assert by_issue["odd size"] == {3}
    assert by_issue["odd shape"] == {4}
