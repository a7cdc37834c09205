"""Whether a training goes well: guards that stop it, and what its log says of the features.

A run stops where a number is not finite or the outputs have collapsed to one point. The log has, at
the end of every epoch, statistics of the features of a few training images, and for methods with a
concentration κ how it answers to crops and blur.
"""

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from lib.data.sets import ImageSet
from lib.data.views import crop_and_resize, gaussian_blur, random_boxes, resize
from lib.methods.base import Embedding, checked, spread
from lib.runs import store

HEALTH_IMAGES = 512
KAPPA_EPOCHS = 40  # the most epochs of a run at which κ of crops and blurred images is logged
COLLAPSED_SPREAD = 0.02
CROPPED_AREA = (0.05, 0.2)
CROPPED_RATIO = (3 / 4, 4 / 3)
BLUR_SHARE = 1 / 16  # standard deviation of the blur over the side of the image
ROUNDING = 1e-12


class TrainingStopped(RuntimeError):
    """The run cannot go on: a number is not finite, or the outputs have collapsed.

    The last good checkpoint is kept, if there is one.
    """


# ----------------------------------------------------------------------------------------- guards
def diverged(run: str, step: int, where: str, checkpoint: Path) -> TrainingStopped:
    """The error to raise if values in ``where`` are not finite after ``step`` steps of a run.

    checkpoint: the file of its last checkpoint, which may not exist.
    """
    kept = "no checkpoint is kept"
    if checkpoint.exists():
        good_step = store.read_tensors_info(checkpoint, ("step",))["step"]
        kept = f"the last good checkpoint is that of step {good_step}"
    return TrainingStopped(
        f"{run}: NaN or infinite values in {where} at step {step}; {kept}. "
        "Try a smaller learning_rate, a clip_norm of 1, or precision='float32'."
    )


def check_finite(
    terms: dict[str, float], method: nn.Module, run: str, step: int, checkpoint: Path
) -> None:
    """TrainingStopped if a term of the loss, a weight or a buffer is not finite."""
    bad_terms = [name for name, value in terms.items() if not math.isfinite(value)]
    if bad_terms:
        raise diverged(run, step, f"the loss ({', '.join(bad_terms)})", checkpoint)
    tensors = [tensor for tensor in method.state_dict().values() if tensor.is_floating_point()]
    if not torch.stack([tensor.isfinite().all() for tensor in tensors]).all():
        raise diverged(run, step, "the weights", checkpoint)


def check_collapse(terms: dict[str, float], run: str, step: int) -> None:
    """TrainingStopped if the outputs, whose ``spread`` some methods log, are nearly one point."""
    if terms.get("spread", 1.0) < COLLAPSED_SPREAD:
        raise TrainingStopped(
            f"{run}: the outputs have collapsed to one point at step {step} "
            f"(spread {terms['spread']:.2g} of 1). The last checkpoint is kept, if any. Check that "
            "the target is detached and the predictor is used, or try a smaller learning_rate."
        )


def check_embedding(embedding: Embedding, run: str, step: int, checkpoint: Path) -> None:
    """TrainingStopped if features, uncertainty or a native quantity are not finite."""
    values = {"features": embedding.features, "uncertainty": embedding.uncertainty}
    for name, tensor in (values | embedding.native).items():
        if not tensor.isfinite().all():
            raise diverged(run, step, f"the {name} of images", checkpoint)


# --------------------------------------------------------------------------------- what is logged
@torch.no_grad()
def embed_health_images(method: nn.Module, images: ImageSet, image_size: int) -> Embedding:
    """What the method says of the training images at ``places``, in evaluation mode."""
    originals = _health_images(images)
    return _embed(method, resize(originals, image_size))


def feature_health(features: Tensor) -> dict[str, float]:
    """How many dimensions the features [N, F] use, how they spread, and how long they are.

    effective_rank: of the singular values. feature_spread: over the sphere, 1 if isotropic.
    feature_length: mean Euclidean length. feature_length_spread: its standard deviation over its
    mean. effective_rank is NaN where all features are equal. That is no reason to stop.
    """
    length = features.norm(dim=1)
    return {
        "effective_rank": effective_rank(features),
        "feature_spread": float(spread(features)),
        "feature_length": float(length.mean()),
        "feature_length_spread": float(length.std() / length.mean()),
    }


@torch.no_grad()
def kappa_health(method: nn.Module, images: ImageSet, image_size: int) -> dict[str, float]:
    """Mean κ of the training images at ``places``: plain, cropped and blurred.

    Cropped: a random box of 5 to 20 % of the area, resized to ``image_size``, always the same.
    Blurred: a Gaussian with a standard deviation of ``image_size / 16`` pixels.
    """
    originals = _health_images(images)
    plain = resize(originals, image_size)
    height, width = originals.shape[2:]
    boxes = random_boxes(
        len(originals),
        height,
        width,
        CROPPED_AREA,
        CROPPED_RATIO,
        torch.Generator().manual_seed(0),
    )
    sigma = torch.tensor([BLUR_SHARE * image_size])
    versions = {
        "kappa_plain": plain,
        "kappa_cropped": crop_and_resize(originals, boxes, image_size),
        "kappa_blurred": gaussian_blur(plain, sigma),
    }
    means = {}
    for name, version in versions.items():
        means[name] = float(_embed(method, version).native["kappa"].mean())
    return means


def logs_kappa(epoch: int, epochs: int) -> bool:
    """Whether κ is logged after ``epoch`` of ``epochs``: at most KAPPA_EPOCHS, evenly spread.

    The last epoch is always one of them.
    """
    return epoch * KAPPA_EPOCHS // epochs > (epoch - 1) * KAPPA_EPOCHS // epochs


def effective_rank(features: Tensor) -> float:
    """exp(-Σ p_i log p_i) with p_i = σ_i / Σ σ of the centred features [N, F]: 1 … min(N - 1, F).

    σ are the singular values (Roy & Vetterli 2007, Definition 1). NaN where all rows are equal up
    to rounding.
    """
    x = features.double().cpu()
    centred = x - x.mean(0)
    rounding = max(ROUNDING, 4 * torch.finfo(features.dtype).eps)
    if centred.abs().max() <= rounding * x.abs().max():
        return math.nan
    singular_values = torch.linalg.svdvals(centred)
    shares = singular_values / singular_values.sum()
    return float(torch.special.entr(shares).sum().exp())


def _health_images(images: ImageSet) -> Tensor:
    return images.batch(images.places(HEALTH_IMAGES)).float() / 255


def _embed(method: nn.Module, batch: Tensor) -> Embedding:
    method.eval()
    embedding = checked(method.embed(batch), len(batch))
    method.train()
    return embedding
