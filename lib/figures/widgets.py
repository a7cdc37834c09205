"""What a person can move in a notebook: a crop of an image, with the κ that a network gives it."""

from collections.abc import Callable

import ipywidgets
import matplotlib.pyplot as plt
import torch
from IPython.display import display
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from lib import evaluation
from lib.figures import charts as plotting

CROP_ALT = (
    "An image with a square on it, and beside it the square as a whole image; κ stands over both."
)


def crop_figure(
    image: Tensor, top: float, left: float, side: float, score: Callable[[Tensor], float]
) -> Figure:
    """One image [C, S, S] in 0..1 with a square drawn on it, and beside it what the network sees: the square as a whole image, with both κ.

    top, left, side: shares of the side. score: κ of one image [C, S, S].
    """
    crop = evaluation.square_crop(top, left, side)(image[None])[0]
    y, x, width = evaluation.pixels_of_square(top, left, side, image.shape[-1])
    figure, axes = plt.subplots(1, 2, figsize=(3.4, 1.9), layout="constrained")
    for ax, shown, name in zip(axes, (image, crop), ("image", "crop"), strict=True):
        pixels = shown.clamp(0, 1).movedim(0, -1).numpy(force=True)
        ax.imshow(
            pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels,
            cmap="gray",
            vmin=0,
            vmax=1,
            interpolation="nearest",
        )
        ax.set_title(f"{name}: κ = {plotting.kappa_text(score(shown))}")
        ax.axis("off")
    axes[0].add_patch(
        Rectangle(
            (x - 0.5, y - 0.5), width, width, fill=False, edgecolor=plotting.BLUE, linewidth=1.5
        )
    )
    return figure


def crop_explorer(images: Tensor, score: Callable[[Tensor], float]) -> ipywidgets.VBox:
    """Sliders that choose one of ``images`` [N, C, S, S], and place and size a square on it; crop_figure follows them. The crop stays inside."""
    if images.ndim != 4 or images.shape[-1] != images.shape[-2] or not len(images):
        raise ValueError(f"images must be [N, C, S, S] with N > 0, got {tuple(images.shape)}.")
    number = ipywidgets.IntSlider(0, 0, len(images) - 1, description="image")
    side = ipywidgets.FloatSlider(0.5, min=0.2, max=1.0, step=0.05, description="side")
    top = ipywidgets.FloatSlider(0.25, min=0.0, max=1.0, step=0.05, description="top")
    left = ipywidgets.FloatSlider(0.25, min=0.0, max=1.0, step=0.05, description="left")

    def draw(number: int, side: float, top: float, left: float) -> None:
        with torch.no_grad():
            figure = crop_figure(
                images[number], min(top, 1 - side), min(left, 1 - side), side, score
            )
        display(plotting.picture(figure, CROP_ALT))

    controls = {"number": number, "side": side, "top": top, "left": left}
    return ipywidgets.VBox([*controls.values(), ipywidgets.interactive_output(draw, controls)])
