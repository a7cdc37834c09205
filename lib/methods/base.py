"""What methods share: the embedding they answer with, how views pass a network, their targets."""

from contextlib import nullcontext
from copy import deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import losses, networks


class Embedding(NamedTuple):
    """What a method says of images.

    ``uncertainty`` is higher where the method is less certain; ``native`` holds the method's own
    quantities, such as κ.
    """

    features: Tensor  # [B, F]
    uncertainty: Tensor  # [B]
    native: dict[str, Tensor]


def checked(embedding: Embedding, count: int) -> Embedding:
    """The embedding of ``count`` images, if its parts have the right shapes; else ValueError.

    A method of one's own is checked here before anything is stored.
    """
    if not all(hasattr(embedding, name) for name in Embedding._fields):
        raise ValueError(
            "method.embed must return an Embedding of features, uncertainty and native entries, "
            f"got {type(embedding).__name__}."
        )
    features = embedding.features
    uncertainty = embedding.uncertainty
    native = embedding.native
    reserved = {"features", "uncertainty", "label"} & set(native)
    if reserved:
        raise ValueError(
            f"native entries {sorted(reserved)} would overwrite the embedding's own; "
            "rename them in the method."
        )
    if features.ndim != 2 or len(features) != count or uncertainty.shape != (count,):
        raise ValueError(
            f"method.embed must return features [B, D] and uncertainty [B] with B = {count}, "
            f"got {tuple(features.shape)} and {tuple(uncertainty.shape)}."
        )
    for name, values in native.items():
        is_column = values.ndim == 2 and values.shape[1] == 1
        if values.ndim not in (1, 2) or len(values) != count or is_column:
            raise ValueError(
                f"native {name} must be [B] or [B, K] with B = {count} and K > 1, "
                f"got {tuple(values.shape)}."
            )
    return embedding


def forward_by_size(network: nn.Module, views: list[Tensor]) -> list[tuple[Tensor, ...]]:
    """The outputs of ``network`` for every view, in one forward pass for all views of one size.

    The running statistics of batch norm are those of the largest views only: images that are
    embedded have that size, and in low-resolution views activations have other means and
    variances.
    """
    sizes = [view.shape[-1] for view in views]
    outputs: dict[int, tuple[Tensor, ...]] = {}
    for size in dict.fromkeys(sizes):
        indices = [index for index, other in enumerate(sizes) if other == size]
        is_largest = size == max(sizes)
        with nullcontext() if is_largest else networks.keep_running_statistics(network):
            stacked = network(torch.cat([views[index] for index in indices]))
        by_view = [output.chunk(len(indices)) for output in stacked]
        for index, *parts in zip(indices, *by_view, strict=True):
            outputs[index] = tuple(parts)
    return [outputs[index] for index in range(len(views))]


class TwoViews(nn.Module):
    """Backbone and projector over two standard views, and local ones where a method takes them.

    The uncertainty, a trivial one, is minus the norm of the features.
    """

    embeds_with = ("backbone",)
    takes_local_views = False

    def __init__(self, settings: dict, channels: int = 3):
        super().__init__()
        if settings["local_views"] and not self.takes_local_views:
            raise ValueError(
                f"{settings['method']} compares two standard views; "
                f"set local_views to 0, not {settings['local_views']}."
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


class AveragedTarget(TwoViews):
    """A second backbone and projector whose weights follow the trained ones.

    ``target <- m target + (1 - m) online`` after every step.
    """

    def __init__(self, settings: dict, channels: int = 3):
        super().__init__(settings, channels)
        self.target = deepcopy(nn.Sequential(self.backbone, self.projector)).requires_grad_(False)

    def update_target(self, progress: float) -> None:
        """m rises from ``target_momentum`` to 1 on a cosine (BYOL, §3.3), or stays constant."""
        m = self.settings["target_momentum"]
        if self.settings["target_schedule"] == "cosine":
            m = networks.cosine_between(m, 1.0, progress)
        networks.update_average(self.target, nn.Sequential(self.backbone, self.projector), m)

    @torch.no_grad()
    def targets(self, views: list[Tensor]) -> list[Tensor]:
        """The target network's projections of the views, [B, D] each."""
        return list(self.target(torch.cat(views)).chunk(len(views)))

    def regression(
        self, views: list[Tensor], p1: Tensor, p2: Tensor, z: Tensor
    ) -> dict[str, Tensor]:
        """BYOL's symmetric loss of the two views' predictions [B, D]; z: a projection to watch."""
        t1, t2 = self.targets(views)
        loss = losses.byol_loss(p1, t2) + losses.byol_loss(p2, t1)
        return {"loss": loss, "cosine": 1 - loss.detach() / 4, "spread": spread(z)}


def watched(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """Named scalar terms, all but the loss without gradient.

    A compiled step would carry a graph for each of them.
    """
    return {name: value if name == "loss" else value.detach() for name, value in terms.items()}


def view_pairs(views: int, global_views: int = 2) -> list[tuple[int, int]]:
    """Pairs (i, j): view i predicts the target of global view j, never its own.

    Example:
        >>> view_pairs(3)
        [(0, 1), (1, 0), (2, 0), (2, 1)]
    """
    return [(i, j) for i in range(views) for j in range(global_views) if i != j]


@torch.no_grad()
def recentre(centre: Tensor, targets: Tensor, momentum: float) -> None:
    """``c <- m c + (1 - m) mean(targets)`` in place, over the targets [N, K] of all processes.

    Momentum 1 leaves the centre as it is.
    """
    centre.mul_(momentum).add_(networks.gather(targets).mean(0), alpha=1 - momentum)


def spread(outputs: Tensor) -> Tensor:
    """Standard deviation of the normalised outputs [B, D] over the batch, times sqrt(D).

    1: isotropic; 0: collapsed to one point.

    Example:
        >>> spread(torch.ones(8, 4))
        tensor(0.)
    """
    directions = F.normalize(outputs.detach().float(), dim=1)
    return directions.std(0).mean() * outputs.shape[1] ** 0.5


def agreement(first: Tensor, second: Tensor) -> Tensor:
    """Mean cosine of the rows of two batches [B, D], without gradient.

    Example:
        >>> agreement(torch.eye(3), 2 * torch.eye(3))
        tensor(1.)
    """
    return F.cosine_similarity(first.detach().float(), second.detach().float()).mean()
