"""Methods that compare two views of a batch: SimCLR, MoCo v2, Barlow Twins and VICReg."""

import torch
from torch import Tensor
from torch.nn import functional as F

from lib import losses, networks
from lib.methods.base import AveragedTarget, TwoViews, agreement, forward_by_size, spread, watched


class SimCLR(TwoViews):
    """SimCLR (Chen et al. 2020, Algorithm 1).

    Each view is to be recognised as its image's other view among all views of the batch.

    Example:
        >>> method = SimCLR(settings.resolve("simclr", "smoke"))
        >>> method.loss([first, second])["loss"].backward()
    """

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        first, second = self.projections(views)  # [B, D]
        loss = losses.info_nce_loss(
            first,
            second,
            self.settings["temperature"],
            rows=networks.own_rows(len(views[0])),
            similarity=self.settings.get("similarity", "cosine"),
        )
        return {"loss": loss, "cosine": agreement(first, second), "spread": spread(first)}


class BarlowTwins(TwoViews):
    """Barlow Twins (Zbontar et al. 2021, Algorithm 1).

    The loss is multiplied by ``loss_scale``, as in the authors' code (their appendix).

    Example:
        >>> method = BarlowTwins(settings.resolve("barlow_twins", "smoke"))
        >>> method.loss([first, second])["loss"].backward()
    """

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        first, second = self.projections(views)  # [B, D]
        loss = losses.barlow_twins_loss(first, second, self.settings["redundancy_weight"])
        return {
            "loss": self.settings["loss_scale"] * loss,
            "cosine": agreement(first, second),
            "spread": spread(first),
        }


class VICReg(TwoViews):
    """VICReg (Bardes et al. 2022, Algorithm 1).

    Example:
        >>> method = VICReg(settings.resolve("vicreg", "smoke"))
        >>> sorted(method.loss([first, second]))
        ['cosine', 'covariance', 'invariance', 'loss', 'spread', 'variance']
    """

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        first, second = self.projections(views)  # [B, D]
        terms = losses.vicreg_loss(
            first,
            second,
            invariance=self.settings["invariance"],
            variance=self.settings["variance"],
            covariance=self.settings["covariance"],
        )
        return watched(terms) | {"cosine": agreement(first, second), "spread": spread(first)}


class MoCo(AveragedTarget):
    """MoCo v2 (He et al. 2020, Algorithm 1; Chen et al. 2020b).

    A query is to be matched with its key among a queue of keys from earlier batches.

    Deviation: both views are queries in turn, as in MoCo v3, so that a step costs what it costs
    the other methods. Batch norm is not shuffled: one process has nothing to shuffle between.

    Example:
        >>> method = MoCo(settings.resolve("moco_v2", "smoke"))
        >>> method.queue.shape
        torch.Size([256, 16])
    """

    def __init__(self, settings: dict, channels: int = 3):
        super().__init__(settings, channels)
        queue = torch.randn(settings["queue_length"], settings["dimension"])  # [K, D]
        self.register_buffer("queue", F.normalize(queue, dim=1))

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        (q1,), (q2,) = forward_by_size(self, views)  # [B, D]
        k1, k2 = self.targets(views)
        queue = self.queue.clone()
        temperature = self.settings["temperature"]
        first = losses.moco_loss(q1, k2, queue, temperature)
        second = losses.moco_loss(q2, k1, queue, temperature)
        self._enqueue(networks.gather(k1), queue)
        return {
            "loss": (first + second) / 2,
            "cosine": agreement(q1, k2),
            "spread": spread(q1),
        }

    @torch.no_grad()
    def _enqueue(self, keys: Tensor, queue: Tensor) -> None:
        """Put the keys [B, D] at the head of the queue and drop the oldest."""
        keys = F.normalize(keys.float(), dim=1)
        self.queue.copy_(torch.cat([keys, queue])[: len(queue)])
