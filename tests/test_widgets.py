"""The crop that a person moves: what is scored is what is drawn."""

import matplotlib.pyplot as plt
import pytest
import torch

from lib import evaluation
from lib.figures import widgets

IMAGES = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_the_figure_shows_the_image_and_the_crop_with_their_scores():
    seen = []
    figure = widgets.crop_figure(
        IMAGES[1], 0.25, 0.5, 0.5, lambda image: seen.append(image) or 100.0 + len(seen)
    )
    torch.testing.assert_close(seen[0], IMAGES[1])
    torch.testing.assert_close(seen[1], evaluation.square_crop(0.25, 0.5, 0.5)(IMAGES[1:2])[0])
    titles = [
        "".join(ax.get_title(loc=side) for side in ("left", "center", "right"))
        for ax in figure.axes
    ]
    assert titles == ["image: κ = 101", "crop: κ = 102"]
    square = figure.axes[0].patches[0]
    assert (square.get_x(), square.get_y(), square.get_width(), square.get_height()) == (
        7.5,
        3.5,
        8,
        8,
    )
    odd = widgets.crop_figure(IMAGES[1], 0, 0, 0.55, lambda image: 1.0).axes[0].patches[0]
    assert (
        odd.get_width() == evaluation.pixels_of_square(0, 0, 0.55, 16)[2] == 8
    )  # drawn as it is scored, where the share is no whole pixel
    grey = widgets.crop_figure(IMAGES[0, :1], 0, 0, 1, lambda image: 1.0)
    assert grey.axes[0].images[0].get_array().shape == (16, 16)


def test_sliders_move_the_crop_and_keep_it_inside(monkeypatch):
    drawn = []
    monkeypatch.setattr(
        widgets,
        "crop_figure",
        lambda image, *place: drawn.append((image, place[:3])) or plt.figure(),
    )
    number, side, top, left, _ = widgets.crop_explorer(IMAGES, lambda image: 1.0).children
    assert drawn[-1][1] == (0.25, 0.25, 0.5)
    number.value = 2
    assert torch.equal(drawn[-1][0], IMAGES[2])
    top.value, left.value = 1.0, 0.4
    side.value = 0.8
    assert drawn[-1][1] == pytest.approx((0.2, 0.2, 0.8))
    with pytest.raises(ValueError, match="must be"):
        widgets.crop_explorer(IMAGES[:0], lambda image: 1.0)


def test_a_live_notebook_gets_the_picture_of_every_position(monkeypatch):
    """The notebooks' backend shows no figure by itself (reproduction.begin): what is displayed counts."""
    displayed = []
    plt.close("all")
    monkeypatch.setattr(widgets, "display", displayed.append)
    plt.switch_backend("agg")
    children = widgets.crop_explorer(IMAGES, lambda image: 1.0).children
    children[0].value = 1
    assert len(displayed) == 2 and all(
        picture.data.startswith(b"\x89PNG") and picture.alt for picture in displayed
    )
    assert displayed[0].data != displayed[1].data
    assert not plt.get_fignums()
