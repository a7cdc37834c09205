"""Training objectives: one pure function of tensors each, in the letters of its paper."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.distributions import PowerSpherical


def _same_shape(**tensors: Tensor) -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) != 2:
        raise ValueError(f"Expected tensors of one shape [B, D], got {shapes}.")


def simsiam_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean negative cosine similarity, ``-mean_b p_b . z_b / (|p_b| |z_b|)``, the target a constant (SimSiam, Eq. 1 and 3).

    prediction, target: [B, D], of any length. Returns a scalar in [-1, 1]. ValueError if the shapes differ.
    """
    _same_shape(prediction=prediction, target=target)
    return -F.cosine_similarity(prediction.float(), target.detach().float()).mean()


def vi_simsiam_loss(direction: Tensor, concentration: Tensor, target: Tensor) -> Tensor:
    """Mean negative log-density of the target under the predicted Power Spherical distribution, in nats.

    ``-mean_b [ log C(κ_b) + κ_b log(1 + μ_b . z_b) ]`` (VI-SimSiam 2023, Eq. 33; 2022, Eq. 12, whose second sign is misprinted), with
    μ = direction / |direction| and z = target / |target|, the target a constant.

    direction, target: [B, D]; concentration κ: [B], positive. Returns a scalar. ValueError for other shapes, [B, 1] included.
    """
    _same_shape(direction=direction, target=target)
    if concentration.shape != direction.shape[:1]:
        raise ValueError(
            f"The concentration must have shape [B] = {list(direction.shape[:1])}, got {list(concentration.shape)}; "
            "a trailing dimension of one would broadcast to [B, B]: squeeze it."
        )
    with torch.autocast(direction.device.type, enabled=False):
        mu = F.normalize(direction.float(), dim=1)
        z = F.normalize(target.detach().float(), dim=1)
        return -PowerSpherical(mu, concentration.float(), validate_args=False).log_prob(z).mean()
