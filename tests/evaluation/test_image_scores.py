"""lib.evaluation.image_scores: entropy and file size of images, and how they are stored."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from lib.data.sets import ImageSet
from lib.evaluation import image_scores
from lib.runs import store


def loader(levels):
    """A stand-in for sources.load: noise of that many grey levels by the name of the set."""

    def load(name, split, image_size):
        generator = np.random.default_rng(0)
        pixels = generator.integers(levels[name], size=(60, 16, 16, 1)).astype(np.uint8)
        return ImageSet(name, split, pixels, np.arange(60) % 3, ["a", "b", "c"])

    return load


def test_entropy_and_file_size():
    pixels = np.zeros((3, 8, 8, 3), dtype=np.uint8)
    pixels[1, :4] = 255
    pixels[2] = np.random.default_rng(0).integers(256, size=(8, 8, 3))
    counts = np.unique(pixels[2].mean(-1).round(), return_counts=True)[1]
    expected = [0, 1, stats.entropy(counts, base=2)]
    assert image_scores.grey_entropy(pixels) == pytest.approx(expected, rel=1e-6)
    sizes = image_scores.png_size(pixels)
    assert sizes[0] < sizes[1] < pixels[2].size <= sizes[2]


def test_scores_are_stored_once_and_need_no_data_afterwards(monkeypatch):
    load = loader({"digits": 1, "generated": 255})
    monkeypatch.setattr(image_scores.sources, "load", load)
    image_scores.measure_images("smoke")
    metrics = store.read_metrics("smoke", run=image_scores.RUN).set_index(["score", "metric"])
    for score in image_scores.NAMES:
        assert metrics.value[score, "ood_auroc"] == 1  # noise against black

    def missing(*_, **__):
        raise FileNotFoundError("no data here")

    monkeypatch.setattr(image_scores.sources, "load", missing)
    image_scores.measure_images("smoke")
    store.scores_path("smoke", image_scores.RUN, "digits").unlink()
    with pytest.raises(FileNotFoundError, match="no data"):
        image_scores.measure_images("smoke")


def test_scores_of_another_copy_of_the_set_are_taken_again(monkeypatch):
    """Two copies may be in another order, and scores are merged with those of runs by row."""
    load = loader({"digits": 255, "generated": 32})
    monkeypatch.setattr(image_scores.sources, "load", load)
    image_scores.measure_images("smoke")
    first = store.stored_scores("smoke", image_scores.RUN, "digits")["image_entropy"]

    def reversed_load(*arguments, **options):
        images = load(*arguments, **options)
        return replace(images, images=images.images[::-1])

    monkeypatch.setattr(image_scores.sources, "load", reversed_load)
    image_scores.measure_images("smoke")
    again = store.stored_scores("smoke", image_scores.RUN, "digits")["image_entropy"]
    np.testing.assert_array_equal(again, first[::-1])
