"""What a person can move in a notebook: a crop of an image, with the κ that a network gives it."""

from collections.abc import Callable

import ipywidgets
import matplotlib.pyplot as plt
import torch
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from lib.evaluation import embed
from lib.figures.save import notebook_picture
from lib.figures.style import BLUE, kappa_text

CROP_ALT = "An image with a square on it, and beside it the square as an image; κ is over both."


def crop_figure(
    image: Tensor, top: float, left: float, side: float, score: Callable[[Tensor], float]
) -> Figure:
    """An image with a square drawn on it, and beside it what the network sees: the crop.

    Args:
        image: [C, S, S] in 0..1.
        top, left, side: of the square, as shares of the image's side.
        score: κ of one image [C, S, S].
    """
    crop = embed.square_crop(top, left, side)(image[None])[0]
    y, x, width = embed.pixels_of_square(top, left, side, image.shape[-1])
    figure, (whole, cropped) = plt.subplots(1, 2, figsize=(3.4, 1.9), layout="constrained")
    _show(whole, image, f"image: κ = {kappa_text(score(image))}")
    _show(cropped, crop, f"crop: κ = {kappa_text(score(crop))}")
    corner = (x - 0.5, y - 0.5)
    whole.add_patch(Rectangle(corner, width, width, fill=False, edgecolor=BLUE, linewidth=1.5))
    return figure


def crop_explorer(images: Tensor, score: Callable[[Tensor], float]) -> ipywidgets.VBox:
    """Sliders that choose one of `images` [N, C, S, S] and move a square on it; see crop_figure.

    The square is kept inside the image.
    """
    if images.ndim != 4 or images.shape[-1] != images.shape[-2] or not len(images):
        raise ValueError(f"images must be [N, C, S, S] with N > 0, got {tuple(images.shape)}.")
    number = ipywidgets.IntSlider(0, 0, len(images) - 1, description="image")
    side = ipywidgets.FloatSlider(0.5, min=0.2, max=1.0, step=0.05, description="side")
    top = ipywidgets.FloatSlider(0.25, min=0.0, max=1.0, step=0.05, description="top")
    left = ipywidgets.FloatSlider(0.25, min=0.0, max=1.0, step=0.05, description="left")

    def draw(number: int, side: float, top: float, left: float) -> None:
        top = min(top, 1 - side)
        left = min(left, 1 - side)
        with torch.no_grad():
            figure = crop_figure(images[number], top, left, side, score)
        display(notebook_picture(figure, CROP_ALT))

    controls = {"number": number, "side": side, "top": top, "left": left}
    return ipywidgets.VBox([*controls.values(), ipywidgets.interactive_output(draw, controls)])


def _show(ax: Axes, image: Tensor, title: str) -> None:
    pixels = image.clamp(0, 1).movedim(0, -1).numpy(force=True)
    ax.imshow(pixels, cmap="gray", vmin=0, vmax=1)  # the map is for images of one channel
    ax.set_title(title)
    ax.axis("off")
