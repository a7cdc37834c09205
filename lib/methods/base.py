"""What methods share: the embedding they answer with, and how views pass a network."""

from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import networks


class Embedding(NamedTuple):
    """What a method says of images: ``uncertainty`` is higher where it is less certain; ``native`` holds the method's own quantities."""

    features: Tensor  # [B, F]
    uncertainty: Tensor  # [B]
    native: dict[str, Tensor]


def checked(embedding: Embedding, count: int) -> Embedding:
    """What ``embed`` answered for ``count`` images, if features are [B, F], the uncertainty [B] and native entries [B] or [B, K]; else ValueError."""
    if not all(hasattr(embedding, name) for name in Embedding._fields):
        raise ValueError(
            f"method.embed must return an Embedding of features, uncertainty and native entries, got {type(embedding).__name__}."
        )
    features, uncertainty, native = embedding.features, embedding.uncertainty, embedding.native
    if taken := {"features", "uncertainty", "label"} & set(native):
        raise ValueError(
            f"native entries {sorted(taken)} would overwrite the embedding's own; rename them in the method."
        )
    if features.ndim != 2 or len(features) != count or uncertainty.shape != (count,):
        found = f"{tuple(features.shape)} and {tuple(uncertainty.shape)}"
        raise ValueError(
            f"method.embed must return features [B, D] and uncertainty [B] with B = {count}, got {found}."
        )
    for name, values in native.items():
        if (
            values.ndim not in (1, 2)
            or len(values) != count
            or (values.ndim == 2 and values.shape[1] == 1)
        ):
            raise ValueError(
                f"native {name} must be [B] or [B, K] with B = {count} and K > 1, got {tuple(values.shape)}."
            )
    return embedding


def forward_by_size(network, views: list[Tensor]) -> list[tuple[Tensor, ...]]:
    """The outputs of ``network`` for every view, with one forward pass (and one batch of statistics) for all views of one size.

    The running statistics of batch norm are those of the largest views alone: images that are embedded have that size, and in low-resolution
    views activations have other means and variances.
    """
    outputs, sizes = {}, dict.fromkeys(view.shape[-1] for view in views)
    for size in sizes:
        same = [index for index, view in enumerate(views) if view.shape[-1] == size]
        with nullcontext() if size == max(sizes) else networks.keep_running_statistics(network):
            stacked = network(torch.cat([views[index] for index in same]))
        for index, *parts in zip(
            same, *(output.chunk(len(same)) for output in stacked), strict=True
        ):
            outputs[index] = tuple(parts)
    return [outputs[index] for index in range(len(views))]


class TwoViews(nn.Module):
    """Backbone and projector over two standard views, and local ones where a method takes them; uncertainty: the negative norm of features."""

    embeds_with = ("backbone",)
    takes_local_views = False

    def __init__(self, settings: dict, channels: int = 3):
        super().__init__()
        if settings["local_views"] and not self.takes_local_views:
            raise ValueError(
                f"{settings['method']} compares two standard views; set local_views to 0, not {settings['local_views']}."
            )
        self.settings = settings
        self.backbone = networks.backbone(settings, channels)
        self.projector = networks.projector(
            self.backbone.features,
            settings["dimension"],
            settings["projector_layers"],
            ends_in_norm=settings.get("projector_ends_in_norm", True),
        )

    def forward(self, view: Tensor) -> tuple[Tensor]:
        return (self.projector(self.backbone(view)),)

    def projections(self, views: list[Tensor]) -> tuple[Tensor, Tensor]:
        """The two views' projections [B, D], over the batch of all processes."""
        (first,), (second,) = forward_by_size(self, views)
        return networks.gather(first), networks.gather(second)

    def embed(self, images: Tensor) -> Embedding:
        features = self.backbone(images).float()
        return Embedding(features, -features.norm(dim=1), {})


def watched(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Named scalar terms, all but the loss without gradient: a compiled step would carry a graph for each of them."""
    return {name: value if name == "loss" else value.detach() for name, value in terms.items()}


def view_pairs(views: int, global_views: int = 2) -> list[tuple[int, int]]:
    """Pairs (i, j): view i predicts the target of global view j, never its own."""
    return [(i, j) for i in range(views) for j in range(global_views) if i != j]


@torch.no_grad()
def recentre(centre: Tensor, targets: Tensor, momentum: float) -> None:
    """``c <- m c + (1 - m) mean(targets)`` in place, over the targets [N, K] of all processes; momentum 1 leaves the centre as it is."""
    centre.mul_(momentum).add_(networks.gather(targets).mean(0), alpha=1 - momentum)


def spread(target: Tensor) -> Tensor:
    """Standard deviation of the normalised outputs [B, D] over the batch, times sqrt(D): 1 if isotropic, 0 if collapsed."""
    return F.normalize(target.detach().float(), dim=1).std(0).mean() * target.shape[1] ** 0.5


def agreement(first: Tensor, second: Tensor) -> Tensor:
    """Mean cosine of the rows of two batches [B, D], without gradient."""
    return F.cosine_similarity(first.detach().float(), second.detach().float()).mean()
