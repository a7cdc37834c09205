"""Images as a network takes them, and the embedding of a whole set.

An embedding is a dict of arrays with one row per image: features float32 [N, D], uncertainty
float64 [N], label int64 [N], and the method's own quantities (kappa float64 [N]). Everything else
in this room takes such dicts or plain arrays, so it works on stored embeddings without a network.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from lib.data import views
from lib.data.sets import ImageSet
from lib.methods.base import Embedding, checked
from lib.runs.store import read_npz, write_npz

Embedded = dict[str, np.ndarray]
Transform = Callable[[Tensor], Tensor]  # float images [B, C, H, W] in 0..1 to others

KEPT_AREAS = (1.0, 0.8, 0.6, 0.4, 0.2, 0.1, 0.05)
BLUR_SIGMAS = (0.0, 0.5, 1.0, 2.0, 3.0)


# ------------------------------------------------------------------- images as a network takes them
def input_transform(settings: dict, channels: int) -> Transform:
    """Float images [B, C, H, W] in 0..1 in the size and number of channels of a trained network.

    settings: those the network was trained with; channels: 1 (grey) or 3. The transform raises
    ValueError for other shapes, types and ranges.

    Example:
        >>> transform = input_transform({"image_size": 32}, channels=3)
        >>> transform(first).shape
        torch.Size([4, 3, 32, 32])
    """

    def transform(images: Tensor) -> Tensor:
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise ValueError(
                f"These images are of shape {tuple(images.shape)}: give floats [B, C, H, W] with "
                "C = 1 or 3, in 0..1."
            )
        views.check_range(images)
        if images.shape[1] == 3 and channels == 1:
            images = views.to_grey(images)
        elif images.shape[1] != channels:
            images = images.expand(-1, channels, -1, -1)
        return views.resize(images, settings["image_size"])

    return transform


def centre_crop(area: float) -> Transform:
    """Keep the central square with this share of the area, resized to the size of the image.

    Example:
        >>> centre_crop(area=0.25)(first).shape
        torch.Size([4, 3, 16, 16])
    """

    def transform(images: Tensor) -> Tensor:
        size = images.shape[-1]
        side = max(2, round(size * area**0.5))
        start = (size - side) // 2
        return _square(images, start, start, side)

    return transform


def square_crop(top: float, left: float, side: float = 0.5) -> Transform:
    """Keep the square with this corner and side, resized to the size of the image.

    top, left and side are shares of the image's side.

    Example:
        >>> square_crop(top=0, left=0.5)(first).shape
        torch.Size([4, 3, 16, 16])
    """
    pixels_of_square(top, left, side, 1)  # an error here, before there is an image

    def transform(images: Tensor) -> Tensor:
        return _square(images, *pixels_of_square(top, left, side, images.shape[-1]))

    return transform


def pixels_of_square(top: float, left: float, side: float, size: int) -> tuple[int, int, int]:
    """Top, left and side in pixels of a square given as shares of an image's side.

    ValueError if the square is not inside the image.

    Example:
        >>> pixels_of_square(top=0.25, left=0.5, side=0.5, size=32)
        (8, 16, 16)
    """
    starts_inside = 0 <= top <= 1 and 0 <= left <= 1 and 0 < side <= 1
    if not (starts_inside and max(top, left) + side <= 1 + 1e-9):
        raise ValueError(
            f"The square with top {top:g}, left {left:g} and side {side:g} is not inside the image "
            "(shares of its side)."
        )
    pixels = max(2, int(size * side))
    return min(round(size * top), size - pixels), min(round(size * left), size - pixels), pixels


def _square(images: Tensor, top: int, left: int, side: int) -> Tensor:
    box = torch.tensor([[top, left, side, side]], dtype=torch.float32, device=images.device)
    return views.crop_and_resize(images, box.expand(len(images), -1), images.shape[-1])


def blur(sigma: float) -> Transform:
    """Gaussian blur with sigma in pixels (0: none), cut at 3 sigma.

    Example:
        >>> blur(sigma=2.0)(first).shape
        torch.Size([4, 3, 16, 16])
    """

    def transform(images: Tensor) -> Tensor:
        if sigma == 0:
            return images
        return views.gaussian_blur(images, torch.full((len(images),), sigma), cut=3)

    return transform


def conditions() -> dict[str, Transform]:
    """The graded conditions that runs are measured under, by "<family>_<severity>".

    Example:
        >>> list(conditions())[:3]
        ['crop_1', 'crop_0.8', 'crop_0.6']
    """
    crops = {f"crop_{area:g}": centre_crop(area) for area in KEPT_AREAS}
    blurs = {f"blur_{sigma:g}": blur(sigma) for sigma in BLUR_SIGMAS}
    return crops | blurs


# --------------------------------------------------------------------------------------- embedding
def embed_images(
    method: nn.Module,
    images: ImageSet,
    batch_size: int = 512,
    transform: Transform | None = None,
    embed: Callable[[Tensor], Embedding] | None = None,
) -> Embedded:
    """The embedding of every image of a set: in eval mode, without gradients or augmentation.

    transform: applied to float images [B, C, H, W] in 0..1 (a crop, a blur). embed: a function of a
    batch to use in place of ``method.embed``. The training mode of every submodule is restored.
    Native entries [B] become float64, those of [B, K] float32.

    Example:
        embedded = embed_images(method, data.load("digits", "test"))
        embedded["features"].shape  # (359, 512)
    """
    count = len(images.labels)
    if count == 0:
        raise ValueError(
            f"{images.name} {images.split} has no images to embed; check how it was built."
        )
    embed = embed or method.embed
    device = next(method.parameters(), torch.empty(0)).device
    modes = {module: module.training for module in method.modules()}
    batches = []
    method.eval()
    try:
        with torch.no_grad():
            for start in range(0, count, batch_size):
                indices = np.arange(start, min(start + batch_size, count))
                batch = images.batch(indices).to(device).float() / 255  # [B, C, H, W]
                if transform is not None:
                    batch = transform(batch)
                embedding = embed(batch.contiguous(memory_format=torch.channels_last))
                batches.append(_arrays(embedding, len(indices)))
    finally:
        for module, training in modes.items():
            module.training = training
    embedded = {}
    for name in batches[0]:
        embedded[name] = np.concatenate([batch[name] for batch in batches])
    embedded["label"] = np.asarray(images.labels, dtype=np.int64)
    return embedded


def _arrays(embedding: Embedding, count: int) -> Embedded:
    """The tensors of one batch as arrays; ValueError for wrong shapes and NaN."""
    embedding = checked(embedding, count)
    arrays = {
        "features": embedding.features.float().cpu().numpy(),
        "uncertainty": embedding.uncertainty.double().cpu().numpy(),
    }
    for name, values in embedding.native.items():
        values = values.double() if values.ndim == 1 else values.float()
        arrays[name] = values.cpu().numpy()
    for name, values in arrays.items():
        if np.isnan(values).any():
            raise ValueError(
                f"method.embed returned NaN in {name}; train again from the last good checkpoint "
                "with a lower learning rate."
            )
    return arrays


def embed_cached(path: Path, key: dict | str, compute: Callable[[], Embedded]) -> Embedded:
    """The embedding stored at ``path`` under this key; otherwise compute() is stored there.

    key names all that the result depends on: run hash, data checksum, condition. An unreadable file
    is a ValueError.
    """
    path = Path(path)
    key = json.dumps(key, sort_keys=True)
    if path.exists():
        stored = read_npz(path)
        if str(stored.pop("cache_key", "")) == key:
            return stored
    embedded = compute()
    write_npz(path, cache_key=np.array(key), **embedded)
    return embedded


def native_names(embedded: Embedded) -> list[str]:
    """Names of the method's own scalar quantities.

    Example:
        >>> native_names({"features": features, "uncertainty": kappa, "kappa": kappa})
        ['kappa']
    """
    names = [name for name, values in embedded.items() if values.ndim == 1]
    return [name for name in names if name not in ("uncertainty", "label")]
