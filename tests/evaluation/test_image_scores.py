"""lib.evaluation.image_scores: entropy and file size of images, and how they are stored."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from lib.data.sets import ImageSet
from lib.evaluation import image_scores
from lib.runs import store


def noise(name, split, image_size):
    """In place of sources.load."""
    pixels = np.random.default_rng(0).integers(255, size=(60, 16, 16, 1)).astype(np.uint8)
    return ImageSet(name, split, pixels, np.arange(60) % 3, ["a", "b", "c"])


def reversed_noise(name, split, image_size):
    images = noise(name, split, image_size)
    return replace(images, images=images.images[::-1])


def test_entropy_and_file_size():
    pixels = np.zeros((3, 8, 8, 3), dtype=np.uint8)
    pixels[1, :4] = 255
    pixels[2] = np.random.default_rng(0).integers(256, size=(8, 8, 3))
    counts = np.unique(pixels[2].mean(-1).round(), return_counts=True)[1]
    expected = [0, 1, stats.entropy(counts, base=2)]
    assert image_scores.grey_entropy(pixels) == pytest.approx(expected, rel=1e-6)
    sizes = image_scores.png_size(pixels)
    assert sizes[0] < sizes[1] < pixels[2].size <= sizes[2]


def test_scores_of_another_copy_of_the_set_are_taken_again(monkeypatch):
    """Two copies may be in another order, and scores are merged with those of runs by row."""
    monkeypatch.setattr(image_scores.sources, "load", noise)
    image_scores.measure_images("smoke")
    first = store.stored_scores("smoke", image_scores.RUN, "digits")["image_entropy"]
    monkeypatch.setattr(image_scores.sources, "load", reversed_noise)
    image_scores.measure_images("smoke")
    again = store.stored_scores("smoke", image_scores.RUN, "digits")["image_entropy"]
    np.testing.assert_array_equal(again, first[::-1])
