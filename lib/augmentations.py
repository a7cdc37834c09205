"""Batched view recipes: every image of a batch is cropped, jittered and blurred with its own random parameters, on its own device.

Crop, resize, flip and blur are linear and separable, so each is two small matrix products per image, ``A_y @ image @ A_x^T`` [S, H] [H, W] [W, S];
the resampling matrix is the anti-aliased bilinear filter of PIL and torchvision. Colour operations follow torchvision's definitions. All random
numbers are drawn on the CPU from one generator and moved over, so views do not depend on the device and drawing them never waits for it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# Probabilities and strengths; "brightness" ... "hue" as in torchvision.transforms.ColorJitter, "blur" is the range of sigma in pixels.
RECIPES = {
    # SimSiam (Chen & He 2021, App. A), as used by VI-SimSiam 2022, App. 9.1
    "simsiam": {
        "scale": (0.2, 1.0), "ratio": (3 / 4, 4 / 3), "flip": 0.5, "jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4,
        "hue": 0.1, "grey": 0.2, "blur": 0.5, "sigma": (0.1, 2.0),
    },
    # SimSiam (App. D, CIFAR-10): the same without blur
    "simsiam_small": {
        "scale": (0.2, 1.0), "ratio": (3 / 4, 4 / 3), "flip": 0.5, "jitter": 0.8, "brightness": 0.4, "contrast": 0.4, "saturation": 0.4,
        "hue": 0.1, "grey": 0.2, "blur": 0.0, "sigma": (0.1, 2.0),
    },
}  # fmt: skip
# Low-resolution views of multi-crop (VI-SimSiam 2022, App. 9.1); everything else as the standard views.
LOCAL_SCALE = (0.05, 0.2)
GREY_WEIGHTS = (0.2989, 0.587, 0.114)
# Images per block: small enough that the intermediate colour images stay in a core's cache.
BLOCK = 64


def recipe(name: str) -> dict:
    if name not in RECIPES:
        raise ValueError(f"Unknown augmentation recipe {name!r}; choose one of {sorted(RECIPES)}.")
    return RECIPES[name]


def make_views(images: Tensor, settings: dict, generator: torch.Generator) -> list[Tensor]:
    """Two standard views and ``local_views`` low-resolution ones of uint8 images [B, C, H, W]; floats in 0..1, global views first."""
    strengths = recipe(settings["augmentation"])
    views = list(augment(images.repeat(2, 1, 1, 1), settings["image_size"], strengths, generator).chunk(2))
    if settings["local_views"]:
        copies = images.repeat(settings["local_views"], 1, 1, 1)
        local = augment(copies, settings["local_size"], strengths | {"scale": LOCAL_SCALE}, generator)
        views += local.chunk(settings["local_views"])
    return views


def augment(images: Tensor, size: int, strengths: dict, generator: torch.Generator) -> Tensor:
    """One random view of every uint8 or 0..1 float image [B, C, H, W] -> [B, C, size, size] in 0..1, channels last.

    Crop and flip, then colour jitter (in random order), greyscale and blur, as in SimSiam. Deviations: flip comes first instead of last (the
    same distribution, as the other steps commute with it), and the order of the jitter's four parts is drawn per block of images, not per image.
    """
    batch, channels, height, width = images.shape
    box = random_boxes(batch, height, width, strengths["scale"], strengths["ratio"], generator)
    flip = chance(batch, strengths["flip"], generator)
    jitter = chance(batch, strengths["jitter"], generator)
    factors = jitter_factors(batch, strengths, generator)
    grey = chance(batch, strengths["grey"], generator)
    blur = chance(batch, strengths["blur"], generator)
    low, high = strengths["sigma"]
    sigma = low + (high - low) * torch.rand(batch, generator=generator)
    orders = [torch.randperm(4, generator=generator).tolist() for _ in range(0, batch, BLOCK)]

    device = images.device
    parameters = (box, flip, jitter, factors, grey, blur, sigma)
    box, flip, jitter, factors, grey, blur, sigma = (value.to(device, non_blocking=True) for value in parameters)
    views = torch.empty(batch, channels, size, size, device=device)
    for order, start in zip(orders, range(0, batch, BLOCK), strict=True):
        block = slice(start, start + BLOCK)
        view = images[block]
        view = view.float().div_(255) if view.dtype == torch.uint8 else view
        view = crop_and_resize(view, box[block], size, flip[block])
        view = color_jitter(view, factors[:, block], jitter[block], order)
        if channels == 3:
            view = torch.where(grey[block, None, None, None], to_grey(view), view)
        if strengths["blur"]:
            view = torch.where(blur[block, None, None, None], gaussian_blur(view, sigma[block]), view)
        views[block] = view
    return views.contiguous(memory_format=torch.channels_last)


# ---------------------------------------------------------------------------------------------------------------- random parameters
def chance(batch: int, probability: float, generator: torch.Generator) -> Tensor:
    return torch.rand(batch, generator=generator) < probability


def random_boxes(batch: int, height: int, width: int, scale, ratio, generator: torch.Generator) -> Tensor:
    """Crop boxes (top, left, height, width) [B, 4] in whole pixels, distributed as torchvision's RandomResizedCrop draws them.

    Ten tries of area and log-uniform aspect ratio; the first that fits is taken, else the largest central box within the ratio's bounds.
    """
    area = height * width * (scale[0] + (scale[1] - scale[0]) * torch.rand(batch, 10, generator=generator))
    log_ratio = math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * torch.rand(batch, 10, generator=generator)
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
    """Factors of brightness, contrast and saturation, and the hue shift in turns, [4, B]."""
    width = torch.tensor([strengths["brightness"], strengths["contrast"], strengths["saturation"], strengths["hue"]])[:, None]
    centre = torch.tensor([1.0, 1.0, 1.0, 0.0])[:, None]
    low = torch.where(centre > 0, (centre - width).clamp(min=0), -width)
    return low + (centre + width - low) * torch.rand(4, batch, generator=generator)


# ---------------------------------------------------------------------------------------------------------------- linear operations
def resampling_matrix(start: Tensor, extent: Tensor, source: int, size: int, flip: Tensor | None = None) -> Tensor:
    """Anti-aliased bilinear resampling of [start, start + extent) to ``size`` samples as matrices [B, size, source].

    Row i is a triangle of half-width max(1, extent/size) around the sample's centre, cut at the box and normalised.
    """
    step = (extent / size)[:, None, None]
    sample = torch.arange(size, device=start.device, dtype=torch.float32)[None, :, None]
    if flip is not None:
        sample = torch.where(flip[:, None, None], size - 1 - sample, sample)
    centre = start[:, None, None] + (sample + 0.5) * step  # [B, size, 1]
    pixel = torch.arange(source, device=start.device, dtype=torch.float32)
    weight = (1 - (pixel + 0.5 - centre).abs() / step.clamp(min=1)).clamp_(min=0)  # [B, size, source]
    inside = (pixel >= start[:, None]) & (pixel < (start + extent)[:, None])  # [B, source]
    weight = weight * inside[:, None]
    return weight / weight.sum(-1, keepdim=True)


def crop_and_resize(images: Tensor, box: Tensor, size: int, flip: Tensor | None = None) -> Tensor:
    """Crop [B, C, H, W] to the boxes [B, 4], resize to ``size`` (anti-aliased bilinear), mirror left-right where ``flip``."""
    rows = resampling_matrix(box[:, 0], box[:, 2], images.shape[2], size)  # [B, S, H]
    columns = resampling_matrix(box[:, 1], box[:, 3], images.shape[3], size, flip)  # [B, S, W]
    return rows[:, None] @ images @ columns[:, None].mT  # [B, C, S, S]


def resize(images: Tensor, size: int) -> Tensor:
    """Whole images [B, C, H, W] to [B, C, size, size], anti-aliased; unchanged if they have that size."""
    if images.shape[-2:] == (size, size):
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of [B, C, H, W] with one sigma [B] in pixels an image, borders reflected.

    Deviation: SimSiam's PIL filter approximates the Gaussian by box filters; this is the Gaussian, cut at 4 sigma.
    """

    def matrix(length: int) -> Tensor:
        reach = min(int(math.ceil(4 * float(sigma.max()))), length - 1) if sigma.device.type == "cpu" else min(8, length - 1)
        offset = torch.arange(-reach, reach + 1, device=sigma.device)
        kernel = torch.exp(-0.5 * (offset / sigma[:, None].clamp(min=1e-3)) ** 2)  # [B, 2 reach + 1]
        kernel = kernel / kernel.sum(1, keepdim=True)
        source = torch.arange(length, device=sigma.device)[:, None] + offset  # [length, 2 reach + 1]
        source = source.abs()
        source = torch.where(source >= length, 2 * (length - 1) - source, source)
        blur = torch.zeros(len(sigma), length, length, device=sigma.device)
        return blur.scatter_add_(2, source.expand(len(sigma), -1, -1), kernel[:, None].expand(-1, length, -1))

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
    return torch.lerp(second, first, weight).clamp_(0, 1)


def color_jitter(images: Tensor, factors: Tensor, applied: Tensor, order=(0, 1, 2, 3)) -> Tensor:
    """Brightness, contrast, saturation and hue (torchvision's definitions) in the given order, where ``applied`` [B]; factors [4, B]."""
    neutral = torch.tensor([1.0, 1.0, 1.0, 0.0], device=images.device)[:, None]
    factors = torch.where(applied, factors, neutral)[:, :, None, None, None]
    for part in order:
        if part == 0:
            images = (images * factors[0]).clamp_(0, 1)
        elif part == 1:
            images = blend(images, to_grey(images).mean((2, 3), keepdim=True), factors[1])
        elif part == 2 and images.shape[1] == 3:
            images = blend(images, to_grey(images), factors[2])
        elif part == 3 and images.shape[1] == 3:
            images = shift_hue(images, factors[3, :, 0])
    return images


def shift_hue(images: Tensor, shift: Tensor) -> Tensor:
    """Turn the HSV hue of [B, 3, H, W] by ``shift`` [B, 1, 1] turns, keeping value and chroma."""
    red, green, blue = images.unbind(1)
    value, least = torch.maximum(torch.maximum(red, green), blue), torch.minimum(torch.minimum(red, green), blue)
    chroma = value - least  # [B, H, W]
    scale = 1 / chroma.clamp(min=1e-8)
    hue = torch.where(
        value == red, (green - blue) * scale, torch.where(value == green, (blue - red) * scale + 2, (red - green) * scale + 4)
    )  # in sixths of a turn
    hue = hue + 6 * shift

    def channel(offset: int) -> Tensor:
        position = torch.remainder(hue + offset, 6)
        return value - chroma * torch.minimum(position, 4 - position).clamp_(0, 1)

    return torch.stack([channel(5), channel(3), channel(1)], 1)
