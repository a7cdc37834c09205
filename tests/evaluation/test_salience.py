"""lib.evaluation.salience: an untrained network finds objects, and κ of its crops is stored."""

import numpy as np
import pytest
import torch

from lib.evaluation import salience
from lib.runs import store

SETTINGS = {"width": 16, "stem": "stride2"}


def objects(count=64, size=64, side=20):
    """A textured square on a smooth ground, and the centre of each square in cells."""
    generator = np.random.default_rng(0)
    images = np.empty((count, 3, size, size), dtype=np.float32)
    centres = np.empty((count, 2))
    for image, centre in zip(images, centres, strict=True):
        ramp = np.linspace(0.3, 0.6, size, dtype=np.float32)
        image[:] = ramp[None, :, None] + 0.02 * generator.normal(size=(3, size, size))
        top, left = generator.integers(0, size - side, 2)
        image[:, top : top + side, left : left + side] = generator.random((3, side, side))
        centre[:] = (top + side / 2) / 8, (left + side / 2) / 8
    return torch.from_numpy(images), centres


def test_the_most_salient_crop_holds_the_object_and_the_least_salient_one_does_not():
    images, centres = objects()
    most, least = salience.extreme_crops(salience.salience_map(images, SETTINGS))

    def holds(corners):
        offset = centres - 8 * corners
        return ((offset >= 0) & (offset <= salience.SIDE)).all(axis=1).mean()

    assert holds(most) > 0.95
    assert holds(least) < 0.05


def test_no_place_is_preferred():
    """The map of a smooth image is even, up to its border."""
    constant = torch.full((8, 3, 64, 64), 0.5) + 1e-3 * torch.rand(8, 3, 64, 64)
    maps = salience.salience_map(constant, SETTINGS)
    assert maps.mean(0).std() < 0.1 * maps.std(0).mean() + 0.1 * maps.mean()


def test_the_share_is_of_images_whose_salient_crop_has_the_higher_kappa(run):
    (row,) = salience.measure_object_crops(run)
    scores = store.read_scores("smoke", run.name, "digits_crops")
    assert row["value"] == pytest.approx((scores["salient"] > scores["plain"]).mean())
    assert row["ci_low"] <= row["value"] <= row["ci_high"]
    first = run.test().sample(run.settings["condition_images"]).subset([0])
    top, left = scores["salient_corner"][0]
    crop = run.embed_unstored(first, transform=salience.square_crop(top, left))
    assert scores["salient"][0] == pytest.approx(crop["kappa"][0], rel=1e-5)
