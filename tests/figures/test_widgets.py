"""The crop that a person moves: what is scored is what is drawn."""

import matplotlib.pyplot as plt
import pytest
import torch

from lib.evaluation import embed
from lib.figures import widgets

IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_the_figure_shows_the_image_and_the_crop_that_are_scored():
    scored = []

    def score(image):
        scored.append(image)
        return 100.0 + len(scored)

    figure = widgets.crop_figure(IMAGES[1], 0.25, 0.5, 0.5, score)
    torch.testing.assert_close(scored[0], IMAGES[1])
    torch.testing.assert_close(scored[1], embed.square_crop(0.25, 0.5, 0.5)(IMAGES[1:2])[0])
    square = figure.axes[0].patches[0]
    assert square.get_bbox().bounds == (7.5, 3.5, 8, 8)
    for ax, image in zip(figure.axes, scored, strict=True):
        shown = torch.as_tensor(ax.images[0].get_array())
        torch.testing.assert_close(shown, image.movedim(0, -1))


def test_sliders_move_the_crop_and_keep_it_inside(monkeypatch):
    drawn = []

    def crop_figure(image, top, left, side, score):
        drawn.append((image, top, left, side))
        return plt.figure()

    monkeypatch.setattr(widgets, "crop_figure", crop_figure)
    monkeypatch.setattr(widgets, "display", lambda image: None)
    number, side, top, left, _ = widgets.crop_explorer(IMAGES, lambda image: 1.0).children
    number.value = 2
    assert torch.equal(drawn[-1][0], IMAGES[2])
    top.value = 1.0
    left.value = 0.4
    side.value = 0.8
    assert drawn[-1][1:] == pytest.approx((0.2, 0.2, 0.8))
