"""Random views of images: the recipes, the random numbers, and the operations.

    views = make_views(images, settings, torch.Generator().manual_seed(0))

gives two views of uint8 images [B, C, H, W], or as many as the settings say, as floats in 0..1.
Every image of a batch is cropped, jittered and blurred with random parameters of its own.

Crop, resize, flip and blur are linear and separable, so each is two small matrix products an
image, ``A_y @ image @ A_x^T`` [S, H] [H, W] [W, S]. The resampling matrix is the anti-aliased
bilinear filter of PIL and torchvision. Colour operations follow torchvision's definitions.

All random numbers are drawn on the CPU from one generator and then moved. So views do not depend
on the device, and drawing them never waits for it.

The functions here define the mathematics, for whole batches on any device. On a CPU views are
made by lib.data.kernels: the same mathematics, compiled, and several times faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lib.data.constants import BLUR_REACH, GREY_WEIGHTS

# ------------------------------------------------------------------------------------- recipes
# "scale" and "ratio" of a crop are ranges of its share of the area and of width / height.
# "flip", "jitter", "grey", "blur", "solarise" and "upside_down" are probabilities. "brightness",
# "contrast", "saturation" and "hue" are strengths as in torchvision.transforms.ColorJitter.
# "sigma" is the range of the blur's standard deviation in pixels.

# SimSiam (Chen & He 2021, App. A), as used by VI-SimSiam 2022, App. 9.1
SIMSIAM = {
    "scale": (0.2, 1.0),
    "ratio": (3 / 4, 4 / 3),
    "flip": 0.5,
    "jitter": 0.8,
    "brightness": 0.4,
    "contrast": 0.4,
    "saturation": 0.4,
    "hue": 0.1,
    "grey": 0.2,
    "blur": 0.5,
    "sigma": (0.1, 2.0),
}
# SimCLR (Chen et al. 2020, App. A), colour distortion of strength 1
SIMCLR = SIMSIAM | {
    "scale": (0.08, 1.0),
    "brightness": 0.8,
    "contrast": 0.8,
    "saturation": 0.8,
    "hue": 0.2,
}
# BYOL (Grill et al. 2020, App. B), also Barlow Twins and VICReg; "second" is what the second view
# has of its own
BYOL = SIMSIAM | {
    "scale": (0.08, 1.0),
    "saturation": 0.2,
    "blur": 1.0,
    "solarise": 0.0,
    "second": {"blur": 0.1, "solarise": 0.2},
}
COLOURS_UNCHANGED = dict.fromkeys(
    ("jitter", "brightness", "contrast", "saturation", "hue", "grey", "blur"), 0.0
)
# SimVAE (Bizeul et al. 2024, Table 2): crop, and flip upside down
SIMVAE = {"ratio": (3 / 4, 1.3), "flip": 0.0, "upside_down": 0.5}
# Its colour images, CIFAR-10 and CelebA: neither greyscale nor blur
SIMVAE_COLOUR = SIMCLR | SIMVAE | {"scale": (0.6, 1.0), "grey": 0.0, "blur": 0.0}

RECIPES = {
    "simsiam": SIMSIAM,
    # SimSiam on CIFAR-10 (App. D): the same without blur
    "simsiam_small": SIMSIAM | {"blur": 0.0},
    # For training with labels: only crop and flip, as for ResNets (He et al. 2016, §3.4)
    "crop_and_flip": SIMSIAM | COLOURS_UNCHANGED,
    "simclr": SIMCLR,
    "byol": BYOL,
    # DINO's code: BYOL's with other crops; low-resolution views are blurred half of the time
    "dino": BYOL | {"scale": (0.4, 1.0), "local": {"scale": (0.05, 0.4), "blur": 0.5}},
    # ProSMin (ICLR 2024, §5) does not give the probabilities of flip, jitter and greyscale:
    # SimSiam's
    "prosmin": SIMCLR | {"scale": (0.8, 1.0)},
    # SimVAE on MNIST and Fashion-MNIST
    "simvae_grey": SIMSIAM | COLOURS_UNCHANGED | SIMVAE | {"scale": (0.4, 1.0)},
    "simvae_colour": SIMVAE_COLOUR,
    # SimVAE's Figure 7: other crops
    "simvae_colour_crop_0.2": SIMVAE_COLOUR | {"scale": (0.2, 1.0)},
    "simvae_colour_crop_1": SIMVAE_COLOUR | {"scale": (1.0, 1.0)},
}
# Low-resolution views of multi-crop (VI-SimSiam 2022, App. 9.1), where neither the settings nor
# the recipe name an area. All else is as for the standard views.
LOCAL_SCALE = (0.05, 0.2)


def recipe(name: str) -> dict:
    """The strengths of one of RECIPES. ValueError for another name.

    Example:
        >>> recipe("simsiam")["scale"]
        (0.2, 1.0)
    """
    if name not in RECIPES:
        raise ValueError(f"Unknown augmentation recipe {name!r}; choose one of {sorted(RECIPES)}.")
    return RECIPES[name]


@dataclass(frozen=True)
class ViewKind:
    """``count`` views of ``size`` pixels, drawn with the same strengths."""

    count: int
    size: int
    strengths: dict


def view_kinds(settings: dict) -> list[ViewKind]:
    """The views of a run by kind, standard ones first.

    Read from the settings: ``augmentation`` (the recipe), ``image_size``, ``views`` (2 if
    absent), and of the low-resolution views of multi-crop ``local_views``, ``local_size`` and
    ``local_scale`` ([least, most] share of the area). An absent ``local_scale`` is the recipe's
    own, or LOCAL_SCALE. ValueError for settings that cannot be followed.
    """
    name = settings["augmentation"]
    strengths = recipe(name)
    count = settings.get("views", 2)
    size = settings["image_size"]
    if "second" not in strengths:
        kinds = [ViewKind(count, size, strengths)]
    elif count == 2:
        second = strengths | strengths["second"]
        kinds = [ViewKind(1, size, strengths), ViewKind(1, size, second)]
    else:
        raise ValueError(
            f"The augmentation recipe {name!r} is for two views, not {count}; "
            "choose another recipe."
        )
    if settings["local_views"]:
        local = local_strengths(strengths, settings.get("local_scale"))
        kinds.append(ViewKind(settings["local_views"], settings["local_size"], local))
    return kinds


def local_strengths(strengths: dict, scale: list[float] | None) -> dict:
    """The strengths of low-resolution views; ``scale``, if given, replaces the recipe's own."""
    local = strengths | strengths.get("local", {"scale": LOCAL_SCALE})
    if not scale:
        return local
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(
            f"local_scale is {scale}; give the least and the most share of the area, "
            "above 0 and at most 1."
        )
    return local | {"scale": tuple(scale)}


# --------------------------------------------------------------------------------------- views
@dataclass(frozen=True)
class Draws:
    """The random parameters of a batch of views, one row a view, on the CPU."""

    box: Tensor  # [B, 4]: top, left, height, width
    flip: Tensor  # [B]
    jitter: Tensor  # [B]
    factors: Tensor  # [B, 4]: brightness, contrast, saturation, hue
    grey: Tensor  # [B]
    blur: Tensor  # [B]
    sigma: Tensor  # [B], pixels
    order: Tensor  # [B, 4]: the order of the jitter's parts, the same within BLOCK rows
    solarise: Tensor  # [B]
    upside_down: Tensor  # [B]

    def rows(self, index: Tensor | slice) -> Draws:
        return Draws(**{name: values[index] for name, values in vars(self).items()})


def make_views(
    images: Tensor, settings: dict, generator: torch.Generator, part: int = 0, parts: int = 1
) -> list[Tensor]:
    """The views of a run (``view_kinds``) of uint8 images [B, C, H, W]: floats in 0..1.

    With ``parts`` > 1 the images are the ``part``-th of equal parts of a batch. The parameters of
    the whole batch are drawn, and those of the part are used. So several processes together make
    the views that one process would have made.
    """
    batch, _, height, width = images.shape
    views: list[Tensor] = []
    for kind in view_kinds(settings):
        total = kind.count * parts * batch
        draws = draw(total, height, width, kind.strengths, generator)
        rows = torch.arange(total).view(kind.count, parts, batch)[:, part].flatten()
        chosen = torch.arange(batch).repeat(kind.count)
        views += render(images, chosen, draws.rows(rows), kind.size).chunk(kind.count)
    return views


def augment(images: Tensor, size: int, strengths: dict, generator: torch.Generator) -> Tensor:
    """One random view of every uint8 or 0..1 float image [B, C, H, W].

    Returns floats in 0..1, [B, C, size, size], channels last. Crop and flip come first, then
    colour jitter in random order, greyscale, blur and solarisation, as in SimSiam and BYOL.

    Deviation: flip comes first, not last (the same distribution, as the other steps commute with
    it), and the jitter's order is drawn per block of images, not per image.

    Example:
        >>> images, generator = torch.rand(8, 3, 40, 40), torch.Generator().manual_seed(0)
        >>> augment(images, 32, recipe("simsiam"), generator).shape
        torch.Size([8, 3, 32, 32])
    """
    batch, _, height, width = images.shape
    draws = draw(batch, height, width, strengths, generator)
    return render(images, torch.arange(batch), draws, size)


def render(images: Tensor, chosen: Tensor, draws: Draws, size: int) -> Tensor:
    """Views [B, C, size, size] in 0..1, channels last, of uint8 or 0..1 float images [N, C, H, W].

    View b is of image chosen[b], with row b of the draws. On a CPU lib.data.kernels makes one
    view after the other, a share of them in every thread; elsewhere all are made together.
    """
    views = torch.empty(
        len(chosen),
        images.shape[1],
        size,
        size,
        device=images.device,
        memory_format=torch.channels_last,
    )
    if images.device.type == "cpu":
        _render_compiled(images, chosen, draws, views)
    else:
        _render_batched(images, chosen, draws, views)
    return views


def _render_compiled(images: Tensor, chosen: Tensor, draws: Draws, views: Tensor) -> None:
    from lib.data import kernels  # slow to import, and compiled at first use

    source = images.permute(0, 2, 3, 1).contiguous().flatten(2).numpy()  # [N, H, W * C]
    scale = np.float32(1 / 255) if images.dtype == torch.uint8 else np.float32(1)
    # contiguous: every other layout would be compiled of its own
    parameters = {name: values.contiguous().numpy() for name, values in vars(draws).items()}
    parameters["chosen"] = chosen.numpy()
    parameters["views"] = views.permute(0, 2, 3, 1).numpy()

    def render_share(rows: slice) -> None:
        share = {name: values[rows] for name, values in parameters.items()}
        kernels.render(source=source, scale=scale, **share)

    threads = torch.get_num_threads()
    length = math.ceil(len(chosen) / threads)
    shares = [slice(start, start + length) for start in range(0, len(chosen), length)]
    others = [_pool(threads).submit(render_share, rows) for rows in shares[1:]]
    render_share(shares[0])
    for share in others:
        share.result()  # waits, and raises what a thread raised


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "views")


def compile_views() -> None:
    """Compile lib.data.kernels for uint8 images, which takes a quarter of a minute.

    The result is stored beside the code, for all later processes.
    """
    augment(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 8, SIMSIAM, torch.Generator())


def _render_batched(images: Tensor, chosen: Tensor, draws: Draws, views: Tensor) -> None:
    view = images[chosen.to(images.device, non_blocking=True)]
    if view.dtype == torch.uint8:
        view = view.float().div_(255)
    view = crop_and_resize(view, draws.box, views.shape[-1], draws.flip, draws.upside_down)
    for order in draws.order.unique(dim=0).tolist():
        in_this_order = (draws.order == torch.tensor(order)).all(1)

        def jitter(some: Tensor, rows: Draws, order=order) -> Tensor:
            return color_jitter(some, rows.factors, order)

        _change(view, draws.jitter & in_this_order, jitter, draws)
    if view.shape[1] == 3:
        _change(view, draws.grey, lambda some, rows: to_grey(some), draws)
    _change(view, draws.blur, lambda some, rows: gaussian_blur(some, rows.sigma), draws)
    _change(view, draws.solarise, lambda some, rows: torch.where(some < 0.5, some, 1 - some), draws)
    views.copy_(view)


def _change(
    views: Tensor, applied: Tensor, function: Callable[[Tensor, Draws], Tensor], draws: Draws
) -> None:
    """Replace the views where ``applied`` [B] by ``function(those views, their draws)``.

    Which ones they are is known on the CPU, so nothing waits for the device.
    """
    rows = applied.nonzero()[:, 0]
    if len(rows):
        index = rows.to(views.device, non_blocking=True)
        changed = function(views[index], draws.rows(rows))
        views[index] = changed.expand(-1, views.shape[1], -1, -1)


# ---------------------------------------------------------------------------- random parameters
BLOCK = 64  # views in a row whose colour jitter has one order


def draw(batch: int, height: int, width: int, strengths: dict, generator: torch.Generator) -> Draws:
    """The random parameters of one view each of ``batch`` images of height x width."""
    box = random_boxes(batch, height, width, strengths["scale"], strengths["ratio"], generator)
    flip = chance(batch, strengths["flip"], generator)
    jitter = chance(batch, strengths["jitter"], generator)
    factors = jitter_factors(batch, strengths, generator)
    grey = chance(batch, strengths["grey"], generator)
    blur = chance(batch, strengths["blur"], generator)
    low, high = strengths["sigma"]
    sigma = low + (high - low) * torch.rand(batch, generator=generator)
    orders = torch.stack([torch.randperm(4, generator=generator) for _ in range(0, batch, BLOCK)])
    return Draws(
        box=box,
        flip=flip,
        jitter=jitter,
        factors=factors,
        grey=grey,
        blur=blur,
        sigma=sigma,
        order=orders.repeat_interleave(BLOCK, 0)[:batch],
        solarise=_chance_if_any(batch, strengths.get("solarise"), generator),
        upside_down=_chance_if_any(batch, strengths.get("upside_down"), generator),
    )


def chance(batch: int, probability: float, generator: torch.Generator) -> Tensor:
    """Truth values [B], each true with this probability."""
    return torch.rand(batch, generator=generator) < probability


def _chance_if_any(batch: int, probability: float | None, generator: torch.Generator) -> Tensor:
    """As ``chance``; without a probability nothing is drawn, and later draws stay the same."""
    if not probability:
        return torch.zeros(batch, dtype=torch.bool)
    return chance(batch, probability, generator)


def random_boxes(
    batch: int,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: torch.Generator,
) -> Tensor:
    """Crop boxes (top, left, height, width) [B, 4] in whole pixels.

    They are distributed as those of torchvision's RandomResizedCrop: of ten tries of area and
    log-uniform aspect ratio the first that fits is taken, otherwise the largest central box
    within the ratio's bounds.
    """
    share = scale[0] + (scale[1] - scale[0]) * torch.rand(batch, 10, generator=generator)
    area = height * width * share
    low = math.log(ratio[0])
    high = math.log(ratio[1])
    log_ratio = low + (high - low) * torch.rand(batch, 10, generator=generator)
    widths = (area * log_ratio.exp()).sqrt().round()
    heights = (area * (-log_ratio).exp()).sqrt().round()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.int().argmax(1, keepdim=True)
    box_width = widths.gather(1, first)[:, 0]
    box_height = heights.gather(1, first)[:, 0]
    top = (torch.rand(batch, generator=generator) * (height - box_height + 1)).floor()
    left = (torch.rand(batch, generator=generator) * (width - box_width + 1)).floor()

    central_width = float(min(width, round(height * ratio[1])))
    central_height = float(min(height, round(width / ratio[0])))
    none_fits = ~fits.any(1)
    return torch.stack(
        [
            torch.where(none_fits, float((height - int(central_height)) // 2), top),
            torch.where(none_fits, float((width - int(central_width)) // 2), left),
            torch.where(none_fits, central_height, box_height),
            torch.where(none_fits, central_width, box_width),
        ],
        1,
    )


def jitter_factors(batch: int, strengths: dict, generator: torch.Generator) -> Tensor:
    """Factors of brightness, contrast and saturation, and the hue shift in turns, [B, 4]."""
    parts = ("brightness", "contrast", "saturation", "hue")
    width = torch.tensor([strengths[part] for part in parts])
    centre = torch.tensor([1.0, 1.0, 1.0, 0.0])
    low = torch.where(centre > 0, (centre - width).clamp(min=0), -width)
    return low + (centre + width - low) * torch.rand(4, batch, generator=generator).T


# ---------------------------------------------------------------------------- linear operations
def resampling_matrix(
    start: Tensor, extent: Tensor, source: int, size: int, flip: Tensor | None = None
) -> Tensor:
    """Anti-aliased bilinear resampling of [start, start + extent) to ``size`` samples.

    Returns matrices [B, size, source]. Row i is a triangle of half-width max(1, extent / size)
    around the sample's centre, cut at the box and normalised.
    """
    step = (extent / size)[:, None, None]
    sample = torch.arange(size, device=start.device, dtype=torch.float32)[None, :, None]
    if flip is not None:
        sample = torch.where(flip[:, None, None], size - 1 - sample, sample)
    centre = start[:, None, None] + (sample + 0.5) * step  # [B, size, 1]
    pixel = torch.arange(source, device=start.device, dtype=torch.float32)
    distance = (pixel + 0.5 - centre).abs()  # [B, size, source]
    weight = (1 - distance / step.clamp(min=1)).clamp_(min=0)
    inside = (pixel >= start[:, None]) & (pixel < (start + extent)[:, None])  # [B, source]
    weight = weight * inside[:, None]
    return weight / weight.sum(-1, keepdim=True)


def crop_and_resize(
    images: Tensor,
    box: Tensor,
    size: int,
    flip: Tensor | None = None,
    upside_down: Tensor | None = None,
) -> Tensor:
    """Crop [B, C, H, W] to the boxes [B, 4] and resize to ``size``, anti-aliased bilinear.

    Images where ``flip`` [B] or ``upside_down`` [B] is true are mirrored left-right or
    top-bottom.
    """
    device = images.device
    box = box.to(device, non_blocking=True)
    if flip is not None:
        flip = flip.to(device, non_blocking=True)
    if upside_down is not None:
        upside_down = upside_down.to(device, non_blocking=True)
    batch, channels, height, width = images.shape
    rows = resampling_matrix(box[:, 0], box[:, 2], height, size, upside_down)  # [B, S, H]
    columns = resampling_matrix(box[:, 1], box[:, 3], width, size, flip)  # [B, S, W]
    narrow = torch.bmm(images.reshape(batch, channels * height, width), columns.mT)
    narrow = narrow.view(batch, channels, height, size)
    planes = [torch.bmm(rows, narrow[:, channel]) for channel in range(channels)]
    return torch.stack(planes, 1)  # [B, C, S, S]


def resize(images: Tensor, size: int) -> Tensor:
    """Whole images [B, C, H, W] to [B, C, size, size], anti-aliased; those of that size as is."""
    if images.shape[-2:] == (size, size):
        return images
    resized = F.interpolate(
        images, (size, size), mode="bilinear", antialias=True, align_corners=False
    )
    return resized.clamp(0, 1)


def gaussian_blur(images: Tensor, sigma: Tensor, cut: float = BLUR_REACH) -> Tensor:
    """Gaussian blur of [B, C, H, W] with one sigma [B] in pixels an image, borders reflected.

    Deviation: SimSiam's PIL filter approximates the Gaussian by box filters; this is the
    Gaussian, cut at ``cut`` times the batch's largest sigma (on a CPU, lib.data.kernels, at that
    many of an image's own).
    """
    reach = math.ceil(cut * float(sigma.max()))
    sigma = sigma.to(images.device, non_blocking=True)
    rows = _blur_matrix(images.shape[2], reach, sigma)
    columns = _blur_matrix(images.shape[3], reach, sigma)
    return rows[:, None] @ images @ columns[:, None].mT


def _blur_matrix(length: int, reach: int, sigma: Tensor) -> Tensor:
    """The blur along one side of this length as matrices [B, length, length]."""
    reach = min(reach, length - 1)
    offset = torch.arange(-reach, reach + 1, device=sigma.device)
    kernel = torch.exp(-0.5 * (offset / sigma[:, None].clamp(min=1e-3)) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)  # [B, 2 reach + 1]
    source = torch.arange(length, device=sigma.device)[:, None] + offset
    source = source.abs()  # [length, 2 reach + 1]
    source = torch.where(source >= length, 2 * (length - 1) - source, source)
    blur = torch.zeros(len(sigma), length, length, device=sigma.device)
    index = source.expand(len(sigma), -1, -1)
    return blur.scatter_add_(2, index, kernel[:, None].expand(-1, length, -1))


# --------------------------------------------------------------------------------------- colour
def to_grey(images: Tensor) -> Tensor:
    """Luma of [B, 3, H, W] in one channel: [B, 1, H, W]; grey images as they are."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    return (GREY_WEIGHTS[0] * red + GREY_WEIGHTS[1] * green + GREY_WEIGHTS[2] * blue)[:, None]


def blend(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """weight * first + (1 - weight) * second, clipped to 0..1; ``weight`` [B, 1, 1, 1]."""
    return torch.addcmul((1 - weight) * second, weight, first).clamp_(0, 1)


def color_jitter(images: Tensor, factors: Tensor, order=(0, 1, 2, 3)) -> Tensor:
    """Brightness, contrast, saturation and hue in the given order, as torchvision defines them.

    factors: [B, 4], as ``jitter_factors`` draws them. Grey images keep saturation and hue.
    """
    factors = factors.to(images.device, non_blocking=True)[:, :, None, None, None]
    for part in order:
        if part == 0:
            images = (images * factors[:, 0]).clamp_(0, 1)
        elif part == 1:
            images = blend(images, to_grey(images).mean((2, 3), keepdim=True), factors[:, 1])
        elif part == 2 and images.shape[1] == 3:
            images = blend(images, to_grey(images), factors[:, 2])
        elif part == 3 and images.shape[1] == 3:
            images = shift_hue(images, factors[:, 3])
    return images


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the HSV hue of [B, 3, H, W] by ``shift`` [B, 1, 1, 1] turns, at most half a turn.

    Value V (the largest channel) and chroma C (the largest less the smallest) stay. A channel is
    V within one sixth of a turn of its pure colour, and falls to V - C over the next sixth. With
    d its hue's signed distance from the pure colour, in sixths, it is

        clip(V + C - C |d|, V - C, V).

    C |d| is linear in the channels, ``V - 2 (V - C) + R + G + B - 2 x`` for channel x, and the
    sign of d is that of the difference of the other two. So neither the hue nor its case
    distinction is ever needed.
    """
    red, green, blue = images.unbind(1)
    highest = torch.maximum(torch.maximum(red, green), blue)[:, None]  # [B, 1, H, W]
    lowest = torch.minimum(torch.minimum(red, green), blue)[:, None]
    chroma = highest - lowest
    side = torch.stack([green - blue, blue - red, red - green], 1)  # [B, 3, H, W]
    distance = images.sum(1, keepdim=True).add_(highest).sub_(2 * lowest) - 2 * images
    distance = torch.copysign(distance, side)
    distance = distance.addcmul_(chroma, 6 * shift).abs_()
    distance = torch.minimum(distance, 6 * chroma - distance)  # the shorter way round the circle
    return torch.minimum(torch.maximum((highest + chroma) - distance, lowest), highest)


# --------------------------------------------------------------------------------------- checks
def check_range(images: Tensor, wanted: str = "floats in 0..1") -> None:
    """ValueError if there are no images, or they are no floats, or not in 0..1 up to rounding."""
    if not len(images):
        raise ValueError(
            f"There are no images in a batch of shape {tuple(images.shape)}; {wanted}: "
            "give at least one."
        )
    if not images.is_floating_point():
        dtype = str(images.dtype).removeprefix("torch.")
        raise ValueError(
            f"These images are {dtype} of shape {tuple(images.shape)}; {wanted}: "
            "images.float() / 255 makes them of bytes."
        )
    extremes = images.aminmax()
    low = extremes.min.item()
    high = extremes.max.item()
    if math.isnan(low):
        raise ValueError(f"These images hold NaN; {wanted}: look where it comes from.")
    if low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(
            f"These images go from {low:.3g} to {high:.3g}; {wanted}: divide bytes by 255 "
            "(16-bit pixels by 65,535), and leave out any normalisation."
        )
