"""The crop that a person moves: what is scored is what is drawn."""

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
