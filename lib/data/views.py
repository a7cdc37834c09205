"""View recipes: every image of a batch is cropped, jittered and blurred with its own random parameters, on its own device.

Crop, resize, flip and blur are linear and separable, so each is two small matrix products per image, ``A_y @ image @ A_x^T`` [S, H] [H, W] [W, S];
the resampling matrix is the anti-aliased bilinear filter of PIL and torchvision. Colour operations follow torchvision's definitions. All random
numbers are drawn on the CPU from one generator and moved over, so views do not depend on the device and drawing them never waits for it.

The functions here define the mathematics, for whole batches on any device; on a CPU views are made by lib.data.kernels, which is the same
mathematics compiled, and several times faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# Probabilities and strengths; "brightness" ... "hue" as in torchvision.transforms.ColorJitter, "blur" is a probability, "sigma" its range in pixels.
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
BYOL = SIMSIAM | {
    "scale": (0.08, 1.0),
    "saturation": 0.2,
    "blur": 1.0,
    "solarise": 0.0,
    "second": {"blur": 0.1, "solarise": 0.2},
}
COLOURS_AS_THEY_ARE = dict.fromkeys(
    ("jitter", "brightness", "contrast", "saturation", "hue", "grey", "blur"), 0.0
)
SIMVAE = {
    "ratio": (3 / 4, 1.3),
    "flip": 0.0,
    "upside_down": 0.5,
}  # Bizeul et al. 2024, Table 2: crop, and flip upside down
RECIPES = {
    "simsiam": SIMSIAM,
    # SimSiam (App. D, CIFAR-10): the same without blur
    "simsiam_small": SIMSIAM | {"blur": 0.0},
    # for training with labels: crop and flip alone, as for ResNets (He et al. 2016, §3.4), the crop as SimSiam's
    "crop_and_flip": SIMSIAM | COLOURS_AS_THEY_ARE,
    "simclr": SIMCLR,
    # BYOL (Grill et al. 2020, App. B), also Barlow Twins and VICReg: the second view has parameters of its own
    "byol": BYOL,
    # DINO's code: BYOL's, with crops of its own, and low-resolution views that are blurred half of the time
    "dino": BYOL | {"scale": (0.4, 1.0), "local": {"scale": (0.05, 0.4), "blur": 0.5}},
    # ProSMin (ICLR 2024, §5); the probabilities of flip, jitter and greyscale are not given: SimSiam's
    "prosmin": SIMCLR | {"scale": (0.8, 1.0)},
    # SimVAE, MNIST and Fashion-MNIST
    "simvae_grey": SIMSIAM | COLOURS_AS_THEY_ARE | SIMVAE | {"scale": (0.4, 1.0)},
    # the same table, CIFAR-10 and CelebA; neither greyscale nor blur
    "simvae_colour": SIMCLR | SIMVAE | {"scale": (0.6, 1.0), "grey": 0.0, "blur": 0.0},
}
# SimVAE's Figure 7: the views of its colour images with other crops, and with a weaker jitter (its steps are not published)
RECIPES |= {
    f"simvae_colour_crop_{least:g}": RECIPES["simvae_colour"] | {"scale": (least, 1.0)}
    for least in (0.2, 1.0)
}
RECIPES["simvae_colour_jitter_0"] = RECIPES["simvae_colour"] | dict.fromkeys(
    ("brightness", "contrast", "saturation", "hue"), 0.0
)
# Low-resolution views of multi-crop (VI-SimSiam 2022, App. 9.1), where a recipe says nothing of them; everything else as the standard views.
LOCAL_SCALE = (0.05, 0.2)
GREY_WEIGHTS = (0.2989, 0.587, 0.114)
BLUR_REACH = 4  # standard deviations at which the blur's Gaussian is cut
BLOCK = 64  # views in a row whose colour jitter has one order


def recipe(name: str) -> dict:
    if name not in RECIPES:
        raise ValueError(f"Unknown augmentation recipe {name!r}; choose one of {sorted(RECIPES)}.")
    return RECIPES[name]


class Draws(NamedTuple):
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

    def rows(self, index) -> Draws:
        return Draws(*(value[index] for value in self))


def view_kinds(settings: dict) -> list[tuple[int, int, dict]]:
    """What views a run has: how many of each kind, their size and strengths, global ones first. ValueError where the settings cannot be followed."""
    strengths, standard = recipe(settings["augmentation"]), settings.get("views", 2)
    kinds = [(standard, settings["image_size"], strengths)]
    if "second" in strengths:
        if standard != 2:
            raise ValueError(
                f"The augmentation recipe {settings['augmentation']!r} is for two views, not {standard}; choose another recipe."
            )
        kinds = [
            (1, settings["image_size"], strengths),
            (1, settings["image_size"], strengths | strengths["second"]),
        ]
    if settings["local_views"]:
        local = strengths | strengths.get("local", {"scale": LOCAL_SCALE})
        if "local_scale" in settings:
            local = local | {"scale": tuple(settings["local_scale"])}
        kinds.append((settings["local_views"], settings["local_size"], local))
    return kinds


def make_views(
    images: Tensor, settings: dict, generator: torch.Generator, part: int = 0, parts: int = 1
) -> list[Tensor]:
    """Two standard views (or ``views``, where a recipe says so) and ``local_views`` low-resolution ones of uint8 images [B, C, H, W].

    Floats in 0..1, global views first.

    With ``parts`` > 1 the images are the ``part``-th of equal parts of a batch: the parameters of the whole batch are drawn, and those of the
    part used, so that several processes make together the views that one would have made.
    """
    batch = len(images)
    views: list[Tensor] = []
    for count, size, wanted in view_kinds(settings):
        draws = draw(count * parts * batch, images.shape[2], images.shape[3], wanted, generator)
        mine = torch.arange(count * parts * batch).view(count, parts, batch)[:, part].flatten()
        views += render(images, torch.arange(batch).repeat(count), draws.rows(mine), size).chunk(
            count
        )
    return views


def augment(images: Tensor, size: int, strengths: dict, generator: torch.Generator) -> Tensor:
    """One random view of every uint8 or 0..1 float image [B, C, H, W] -> [B, C, size, size] in 0..1, channels last.

    Crop and flip, then colour jitter (in random order), greyscale, blur, solarisation, as in SimSiam and BYOL. Deviations: flip comes first,
    not last (the same distribution, as the other steps commute with it), and the jitter's order is drawn per block of images, not per image.
    """
    return render(
        images,
        torch.arange(len(images)),
        draw(len(images), images.shape[2], images.shape[3], strengths, generator),
        size,
    )


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
    # Drawn where a recipe has them, so that the others keep their random numbers.
    solarise, upside_down = (
        chance(batch, strengths[name], generator)
        if strengths.get(name)
        else torch.zeros(batch, dtype=torch.bool)
        for name in ("solarise", "upside_down")
    )
    return Draws(
        box,
        flip,
        jitter,
        factors,
        grey,
        blur,
        sigma,
        orders.repeat_interleave(BLOCK, 0)[:batch],
        solarise,
        upside_down,
    )


def render(images: Tensor, chosen: Tensor, draws: Draws, size: int) -> Tensor:
    """Views [B, C, size, size] in 0..1, channels last: view b is image chosen[b] of uint8 or 0..1 float images [N, C, H, W] under draws[b].

    On a CPU one image after the other in compiled code (lib.data.kernels), a share of them in every thread; elsewhere all together.
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
        _render_fused(images, chosen, draws, views)
    else:
        _render_batched(images, chosen, draws, views)
    return views


def _render_fused(images: Tensor, chosen: Tensor, draws: Draws, views: Tensor) -> None:
    from lib.data import kernels as fused_views  # compiles at first use

    source = images.permute(0, 2, 3, 1).contiguous().flatten(2).numpy()  # [N, H, W * C]
    scale = np.float32(1 / 255) if images.dtype == torch.uint8 else np.float32(1)

    def share(rows: slice) -> None:
        parameters = (
            value[rows].contiguous().numpy() for value in draws
        )  # it would be compiled anew for every other layout
        fused_views.render(
            source,
            chosen[rows].numpy(),
            *parameters,
            scale,
            views[rows].permute(0, 2, 3, 1).numpy(),
        )

    threads = torch.get_num_threads()
    length = -(-len(chosen) // threads)
    list(
        _pool(threads).map(
            share, [slice(start, start + length) for start in range(0, len(chosen), length)]
        )
    )


def compile_views() -> None:
    """Compile lib.data.kernels for uint8 images, which takes a quarter of a minute; it is stored beside the code, for all processes after this one."""
    augment(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), 8, RECIPES["simsiam"], torch.Generator())


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "views")


def _render_batched(images: Tensor, chosen: Tensor, draws: Draws, views: Tensor) -> None:
    view = images[chosen.to(images.device, non_blocking=True)]
    view = view.float().div_(255) if view.dtype == torch.uint8 else view
    view = crop_and_resize(view, draws.box, views.shape[-1], draws.flip, draws.upside_down)
    for order in sorted(set(map(tuple, draws.order.tolist()))):
        here = draws.jitter & (draws.order == torch.tensor(order)).all(1)
        _change(
            view,
            here,
            lambda some, rows, order=order: color_jitter(some, rows.factors, order),
            draws,
        )
    if view.shape[1] == 3:
        _change(view, draws.grey, lambda some, rows: to_grey(some), draws)
    _change(view, draws.blur, lambda some, rows: gaussian_blur(some, rows.sigma), draws)
    _change(view, draws.solarise, lambda some, rows: torch.where(some < 0.5, some, 1 - some), draws)
    views.copy_(view)


def _change(
    views: Tensor, applied: Tensor, function: Callable[[Tensor, Draws], Tensor], draws: Draws
) -> None:
    """Replace the views where ``applied`` [B] by ``function(those views, their draws)``; which ones is known on the CPU, so nothing waits."""
    rows = applied.nonzero()[:, 0]
    if len(rows):
        index = rows.to(views.device, non_blocking=True)
        views[index] = function(views[index], draws.rows(rows)).expand(-1, views.shape[1], -1, -1)


# ---------------------------------------------------------------------------------------------------------------- random parameters
def chance(batch: int, probability: float, generator: torch.Generator) -> Tensor:
    return torch.rand(batch, generator=generator) < probability


def random_boxes(
    batch: int, height: int, width: int, scale, ratio, generator: torch.Generator
) -> Tensor:
    """Crop boxes (top, left, height, width) [B, 4] in whole pixels, distributed as torchvision's RandomResizedCrop draws them.

    Ten tries of area and log-uniform aspect ratio; the first that fits is taken, else the largest central box within the ratio's bounds.
    """
    area = (
        height
        * width
        * (scale[0] + (scale[1] - scale[0]) * torch.rand(batch, 10, generator=generator))
    )
    log_ratio = math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * torch.rand(
        batch, 10, generator=generator
    )
    widths = (area * log_ratio.exp()).sqrt().round()
    heights = (area * (-log_ratio).exp()).sqrt().round()
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    first = fits.int().argmax(1, keepdim=True)
    w, h = widths.gather(1, first)[:, 0], heights.gather(1, first)[:, 0]
    top = (torch.rand(batch, generator=generator) * (height - h + 1)).floor()
    left = (torch.rand(batch, generator=generator) * (width - w + 1)).floor()
    fallback_w = float(min(width, round(height * ratio[1])))
    fallback_h = float(min(height, round(width / ratio[0])))
    none = ~fits.any(1)
    w, h = torch.where(none, fallback_w, w), torch.where(none, fallback_h, h)
    top = torch.where(none, float((height - int(fallback_h)) // 2), top)
    left = torch.where(none, float((width - int(fallback_w)) // 2), left)
    return torch.stack([top, left, h, w], 1)


def jitter_factors(batch: int, strengths: dict, generator: torch.Generator) -> Tensor:
    """Factors of brightness, contrast and saturation, and the hue shift in turns, [B, 4]."""
    width = torch.tensor(
        [strengths["brightness"], strengths["contrast"], strengths["saturation"], strengths["hue"]]
    )
    centre = torch.tensor([1.0, 1.0, 1.0, 0.0])
    low = torch.where(centre > 0, (centre - width).clamp(min=0), -width)
    return low + (centre + width - low) * torch.rand(4, batch, generator=generator).T


# ---------------------------------------------------------------------------------------------------------------- linear operations
def resampling_matrix(
    start: Tensor, extent: Tensor, source: int, size: int, flip: Tensor | None = None
) -> Tensor:
    """Anti-aliased bilinear resampling of [start, start + extent) to ``size`` samples as matrices [B, size, source].

    Row i is a triangle of half-width max(1, extent/size) around the sample's centre, cut at the box and normalised.
    """
    step = (extent / size)[:, None, None]
    sample = torch.arange(size, device=start.device, dtype=torch.float32)[None, :, None]
    if flip is not None:
        sample = torch.where(flip[:, None, None], size - 1 - sample, sample)
    centre = start[:, None, None] + (sample + 0.5) * step  # [B, size, 1]
    pixel = torch.arange(source, device=start.device, dtype=torch.float32)
    weight = (1 - (pixel + 0.5 - centre).abs() / step.clamp(min=1)).clamp_(
        min=0
    )  # [B, size, source]
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
    """Crop [B, C, H, W] to the boxes [B, 4], resize to ``size`` (anti-aliased bilinear), mirror left-right and top-bottom where those say so."""
    box = box.to(images.device, non_blocking=True)
    flip, upside_down = (
        None if mirror is None else mirror.to(images.device, non_blocking=True)
        for mirror in (flip, upside_down)
    )
    rows = resampling_matrix(box[:, 0], box[:, 2], images.shape[2], size, upside_down)  # [B, S, H]
    columns = resampling_matrix(box[:, 1], box[:, 3], images.shape[3], size, flip)  # [B, S, W]
    batch, channels, height, width = images.shape
    narrow = torch.bmm(images.reshape(batch, channels * height, width), columns.mT).view(
        batch, channels, height, size
    )
    return torch.stack(
        [torch.bmm(rows, narrow[:, channel]) for channel in range(channels)], 1
    )  # [B, C, S, S]


def check_range(images: Tensor, wanted: str = "floats in 0..1") -> None:
    """ValueError if images are empty, no floats, or not in 0..1, up to rounding."""
    if not len(images):
        raise ValueError(
            f"There are no images in a batch of shape {tuple(images.shape)}; {wanted}: give at least one."
        )
    if not images.is_floating_point():
        found = f"{images.dtype} of shape {tuple(images.shape)}".removeprefix("torch.")
        raise ValueError(
            f"These images are {found}; {wanted}: images.float() / 255 makes them of bytes."
        )
    low, high = (value.item() for value in images.aminmax())
    if low != low:
        raise ValueError(f"These images hold NaN; {wanted}: look where it comes from.")
    if low < -1e-3 or high > 1 + 1e-3:
        advice = "divide bytes by 255 (16-bit pixels by 65,535), and leave out any normalisation"
        raise ValueError(f"These images go from {low:.3g} to {high:.3g}; {wanted}: {advice}.")


def resize(images: Tensor, size: int) -> Tensor:
    """Whole images [B, C, H, W] to [B, C, size, size], anti-aliased; unchanged if they have that size."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(
        images, (size, size), mode="bilinear", antialias=True, align_corners=False
    ).clamp(0, 1)


def gaussian_blur(images: Tensor, sigma: Tensor, cut: float = BLUR_REACH) -> Tensor:
    """Gaussian blur of [B, C, H, W] with one sigma [B] in pixels an image, borders reflected.

    Deviation: SimSiam's PIL filter approximates the Gaussian by box filters; this is the Gaussian, cut at ``cut`` times the batch's largest
    sigma (on a CPU, lib.data.kernels, at that many of an image's own).
    """
    reach = math.ceil(cut * float(sigma.max()))
    sigma = sigma.to(images.device, non_blocking=True)

    def matrix(length: int) -> Tensor:
        offset = torch.arange(
            -min(reach, length - 1), min(reach, length - 1) + 1, device=sigma.device
        )
        kernel = torch.exp(
            -0.5 * (offset / sigma[:, None].clamp(min=1e-3)) ** 2
        )  # [B, 2 reach + 1]
        kernel = kernel / kernel.sum(1, keepdim=True)
        source = (
            torch.arange(length, device=sigma.device)[:, None] + offset
        )  # [length, 2 reach + 1]
        source = source.abs()
        source = torch.where(source >= length, 2 * (length - 1) - source, source)
        blur = torch.zeros(len(sigma), length, length, device=sigma.device)
        return blur.scatter_add_(
            2, source.expand(len(sigma), -1, -1), kernel[:, None].expand(-1, length, -1)
        )

    return matrix(images.shape[2])[:, None] @ images @ matrix(images.shape[3])[:, None].mT


# ---------------------------------------------------------------------------------------------------------------- colour
def to_grey(images: Tensor) -> Tensor:
    """Luma of [B, 3, H, W], one channel kept: [B, 1, H, W]."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.unbind(1)
    return (GREY_WEIGHTS[0] * red + GREY_WEIGHTS[1] * green + GREY_WEIGHTS[2] * blue)[:, None]


def blend(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """weight * first + (1 - weight) * second, clipped to 0..1; ``weight`` [B, 1, 1, 1]."""
    return torch.addcmul((1 - weight) * second, weight, first).clamp_(0, 1)


def color_jitter(images: Tensor, factors: Tensor, order=(0, 1, 2, 3)) -> Tensor:
    """Brightness, contrast, saturation and hue (torchvision's definitions) in the given order; factors [B, 4] as jitter_factors draws them."""
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
    """Turn the HSV hue of [B, 3, H, W] by ``shift`` [B, 1, 1, 1] turns, at most half a turn, keeping value V and chroma C.

    A channel is V within one sixth of a turn of its pure colour, and falls to V - C over the next sixth. So with d its hue's signed distance
    from the pure colour, in sixths, it is ``clip(V + C - C |d|, V - C, V)``; and C |d| is linear in the channels, ``V - 2 (V - C) + R + G + B - 2 x``
    for channel x, the sign of d being that of the difference of the other two. Neither the hue nor its case distinction is ever needed.
    """
    red, green, blue = images.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)[:, None]  # [B, 1, H, W]
    least = torch.minimum(torch.minimum(red, green), blue)[:, None]
    chroma = value - least
    side = torch.stack([green - blue, blue - red, red - green], 1)  # [B, 3, H, W]
    distance = torch.copysign(
        images.sum(1, keepdim=True).add_(value).sub_(2 * least) - 2 * images, side
    )
    distance = distance.addcmul_(chroma, 6 * shift).abs_()
    distance = torch.minimum(distance, 6 * chroma - distance)  # the shorter way round the circle
    return torch.minimum(torch.maximum((value + chroma) - distance, least), value)
