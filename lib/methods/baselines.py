"""The methods that others are compared with, in the same loop: contrastive, redundancy-reducing, self-distilling, supervised, untrained."""

import math
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import losses, networks
from lib.methods.base import (
    Embedding,
    TwoViews,
    agreement,
    forward_by_size,
    recentre,
    spread,
    view_pairs,
    watched,
)
from lib.methods.simsiam import SimSiam


# ---------------------------------------------------------------------------------------------------------------- two views, one network
class SimCLR(TwoViews):
    """SimCLR (Chen et al. 2020, Algorithm 1): each view is to be recognised as its image's other view among all views of the batch."""

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        first, second = self.projections(views)
        similarity = self.settings.get("similarity", "cosine")
        loss = losses.info_nce_loss(
            first,
            second,
            self.settings["temperature"],
            rows=networks.own_rows(len(views[0])),
            similarity=similarity,
        )
        return {"loss": loss, "cosine": agreement(first, second), "spread": spread(first)}


class BarlowTwins(TwoViews):
    """Barlow Twins (Zbontar et al. 2021, Algorithm 1), the loss times ``loss_scale`` as the authors' code has it (their App.)."""

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        first, second = self.projections(views)
        loss = self.settings["loss_scale"] * losses.barlow_twins_loss(
            first, second, self.settings["redundancy_weight"]
        )
        return {"loss": loss, "cosine": agreement(first, second), "spread": spread(first)}


class VICReg(TwoViews):
    """VICReg (Bardes et al. 2022, Algorithm 1)."""

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        first, second = self.projections(views)
        terms = losses.vicreg_loss(
            first,
            second,
            *(self.settings[name] for name in ("invariance", "variance", "covariance")),
        )
        return watched(terms) | {"cosine": agreement(first, second), "spread": spread(first)}


class Supervised(TwoViews):
    """The same network and views trained with labels: what the labels would have given. Cross-entropy, mean over both views."""

    classes = True

    def __init__(self, settings: dict, channels: int = 3):
        super().__init__(settings, channels)
        self.projector = nn.Linear(self.backbone.features, settings["classes"])

    def loss(self, views: list[Tensor], labels: Tensor) -> dict[str, Tensor]:
        (first,), (second,) = forward_by_size(self, views)
        loss = (
            F.cross_entropy(first.float(), labels) + F.cross_entropy(second.float(), labels)
        ) / 2
        return {"loss": loss, "accuracy": (first.argmax(1) == labels).float().mean()}


# ---------------------------------------------------------------------------------------------------------------- with a target network
class _WithTarget(TwoViews):
    """A second backbone and projector whose weights follow the trained ones: ``target <- m target + (1 - m) online`` after every step."""

    def __init__(self, settings: dict, channels: int = 3):
        super().__init__(settings, channels)
        self.target = deepcopy(nn.Sequential(self.backbone, self.projector)).requires_grad_(False)

    def update_target(self, progress: float) -> None:
        """m rises from ``target_momentum`` to 1 on a cosine (BYOL, §3.3), or stays where it is."""
        m = self.settings["target_momentum"]
        if self.settings["target_schedule"] == "cosine":
            m = networks.cosine_between(m, 1.0, progress)
        networks.update_average(self.target, nn.Sequential(self.backbone, self.projector), m)

    @torch.no_grad()
    def targets(self, views: list[Tensor]) -> list[Tensor]:
        return list(self.target(torch.cat(views)).chunk(len(views)))  # each [B, D]

    def drawn_to_targets(
        self, views: list[Tensor], p1: Tensor, p2: Tensor, z: Tensor
    ) -> dict[str, Tensor]:
        """The terms of BYOL's symmetric loss for the predictions of the two views; z: projections [B, D] whose spread is watched."""
        t1, t2 = self.targets(views)
        loss = losses.byol_loss(p1, t2) + losses.byol_loss(p2, t1)
        return {"loss": loss, "cosine": 1 - loss.detach() / 4, "spread": spread(z)}


class BYOL(_WithTarget, SimSiam):
    """BYOL (Grill et al. 2020, §3.1): each view's prediction is drawn to the target network's projection of the other view.

    With ``target_momentum`` 0 the target is the trained network itself, its gradient stopped (recipe byol_without_average).
    """

    takes_local_views = False

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        (z, p1), (_, p2) = forward_by_size(self, views)
        return self.drawn_to_targets(views, p1, p2, z)


class DirectPred(_WithTarget):
    """DirectPred (Tian et al. 2021, §4): BYOL whose predictor is set, not trained, ``W = U diag(sqrt(s) + ε max sqrt(s)) U^T``.

    U diag(s) U^T is the moving average, with weight ρ on the past, of the correlation E[f f^T] of the predictor's input f.
    Deviation: f is normalised first and ε multiplies max sqrt(s) where the paper prints max s, so that W does not depend on the scale of f.
    """

    def __init__(self, settings: dict, channels: int = 3):
        super().__init__(settings, channels)
        dimension = settings["dimension"]
        self.register_buffer("correlation", torch.eye(dimension) / dimension)
        self.register_buffer("predictor", torch.eye(dimension))

    @torch.no_grad()
    def set_predictor(self, f: Tensor) -> None:
        f = F.normalize(f.float(), dim=1)
        self.correlation.lerp_(f.T @ f / len(f), 1 - self.settings["correlation_memory"])
        values, vectors = torch.linalg.eigh(self.correlation)
        root = values.clamp(min=0).sqrt()
        self.predictor.copy_(
            vectors * (root + self.settings["eigenvalue_boost"] * root.max()) @ vectors.T
        )

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        (z1,), (z2,) = forward_by_size(self, views)
        with torch.autocast(z1.device.type, enabled=False):
            self.set_predictor(
                torch.cat([networks.gather(z1.detach()), networks.gather(z2.detach())])
            )
            p1, p2 = z1.float() @ self.predictor, z2.float() @ self.predictor
        return self.drawn_to_targets(views, p1, p2, z1)


class MoCo(_WithTarget):
    """MoCo v2 (He et al. 2020, Algorithm 1; Chen et al. 2020b): a query against its key and a queue of keys from earlier batches.

    Deviation: both views are queries in turn, as in MoCo v3, so that a step costs what it costs the other methods; batch norm is not shuffled
    (with one process there is nothing to shuffle between).
    """

    def __init__(self, settings: dict, channels: int = 3):
        super().__init__(settings, channels)
        self.register_buffer(
            "queue",
            F.normalize(torch.randn(settings["queue_length"], settings["dimension"]), dim=1),
        )

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        (q1,), (q2,) = forward_by_size(self, views)
        k1, k2 = self.targets(views)
        queue = self.queue.clone()
        loss = (
            losses.moco_loss(q1, k2, queue, self.settings["temperature"])
            + losses.moco_loss(q2, k1, queue, self.settings["temperature"])
        ) / 2
        new = F.normalize(networks.gather(k1).float(), dim=1)
        self.queue.copy_(torch.cat([new, queue])[: len(queue)])
        return {"loss": loss, "cosine": agreement(q1, k2), "spread": spread(q1)}


class MoCoV3(BYOL):
    """MoCo v3 (Chen et al. 2021, Algorithm 1): each view's prediction is to find its image's key, of another view, among the keys of the batch.

    Deviation: low-resolution views, of which the paper has none, are queries too where a profile asks for them (quick and standard do); the mean over
    the pairs of views, where the algorithm adds its two.
    """

    takes_local_views = True

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        outputs = forward_by_size(self, views)  # V x (z, q), each [B, D]
        keys = [networks.gather(key) for key in self.targets(views[:2])]
        own = networks.own_rows(len(views[0]))
        terms = [
            losses.moco_v3_loss(outputs[i][1], keys[j], self.settings["temperature"], own)
            for i, j in view_pairs(len(views))
        ]
        return {
            "loss": torch.stack(terms).mean(),
            "cosine": agreement(outputs[0][1], keys[1][own]),
            "spread": spread(outputs[0][0]),
        }


class DINO(nn.Module):
    """DINO (Caron et al. 2021, Algorithm 1): the student's softmax over K prototypes follows the averaged teacher's, centred and sharpened.

    The teacher sees the standard views, the student all of them; every pair of different views counts. ``dimension`` is K. Embeddings are the
    teacher's, and the uncertainty is the entropy, in nats, of its softmax((f(x) - c) / τ_t) (VI-SimSiam 2023, §6.4).

    Deviation: ``clip_norm`` bounds the norm of the whole gradient, where the authors' code bounds that of each tensor.
    """

    embeds_with = ("teacher", "centre")

    def __init__(self, settings: dict, channels: int = 3):
        super().__init__()
        self.settings = settings
        self.backbone = networks.backbone(settings, channels)
        batch_norm = settings.get(
            "head_batch_norm", False
        )  # a setting of the vit's recipe: a ResNet has batch norm itself
        self.head = networks.PrototypeHead(
            self.backbone.features,
            settings["head_hidden"],
            settings["bottleneck"],
            settings["dimension"],
            batch_norm,
        )
        self.teacher = deepcopy(nn.Sequential(self.backbone, self.head)).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(settings["dimension"]))
        # A tensor: a compiled step would be compiled again for every new number.
        self.register_buffer("teacher_temperature", torch.tensor(0.0), persistent=False)
        self.set_epoch(0.0)

    def set_epoch(self, epoch: float) -> None:
        """The teacher's temperature goes from its first value to its last over its warm-up (Caron et al. 2021, App. C); the first step has the first
        value, without a warm-up too."""
        first, last = (
            self.settings["teacher_temperature_start"],
            self.settings["teacher_temperature"],
        )
        self.teacher_temperature.fill_(
            first
            + (last - first)
            * min(1.0, epoch / max(self.settings["teacher_temperature_warmup_epochs"], 1e-9))
        )
        self.frozen = epoch < self.settings["frozen_prototypes_epochs"]

    def forward(self, view: Tensor) -> tuple[Tensor]:
        return (self.head(self.backbone(view), frozen=self.frozen),)

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        outputs = [output for (output,) in forward_by_size(self, views)]  # V x [B, K]
        with torch.no_grad():
            targets = self.teacher(torch.cat(views[:2])).float().chunk(2)
        return self.distilled(outputs, targets)

    def distilled(self, outputs: list[Tensor], targets: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """The terms of the loss, from the student's outputs for all views and the teacher's for the standard ones, [B, K] each."""
        temperature = self.teacher_temperature
        pairs = view_pairs(len(outputs))
        terms = [
            losses.dino_loss(
                outputs[i], targets[j], self.centre, self.settings["temperature"], temperature
            )
            for i, j in pairs
        ]
        loss = torch.stack(terms).mean()
        with torch.no_grad():
            share = torch.softmax((targets[0] - self.centre) / temperature, dim=1)
            entropy, diversity = (
                torch.special.entr(share).sum(1).mean(),
                torch.special.entr(share.mean(0)).sum(),
            )
        recentre(self.centre, torch.cat(targets), self.settings["centre_momentum"])
        return {"loss": loss, "entropy": entropy, "entropy_of_mean": diversity}

    def update_target(self, progress: float) -> None:
        m = networks.cosine_between(self.settings["target_momentum"], 1.0, progress)
        networks.update_average(self.teacher, nn.Sequential(self.backbone, self.head), m)

    def embed(self, images: Tensor) -> Embedding:
        features = self.teacher[0](images)
        logits = (self.teacher[1](features).float() - self.centre) / self.settings[
            "teacher_temperature"
        ]
        entropy = torch.distributions.Categorical(logits=logits).entropy()
        return Embedding(features.float(), entropy, {"entropy": entropy})


class IBOT(DINO):
    """iBOT (Zhou et al. 2022, Algorithm 1): DINO on class tokens, and the same loss on patches of standard views that the student does not see.

    One head for both, with a centre each. Deviation: the hidden patches of an image are one rectangle, not several, and half of the images have
    none, as in the paper.
    """

    def __init__(self, settings: dict, channels: int = 3):
        if settings["backbone"] != "vit":
            raise ValueError(
                f"ibot hides patches from a vit; set backbone to 'vit', not {settings['backbone']!r}."
            )
        super().__init__(settings, channels)
        self.backbone.mask_token.requires_grad_(True)
        self.register_buffer("patch_centre", torch.zeros(settings["dimension"]))

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        standard = torch.cat(views[:2])  # [2 B, C, S, S]
        mask = hidden_patches(len(standard), views[0].shape[-1] // self.settings["patch_size"]).to(
            standard.device
        )  # [2 B, N]
        seen = torch.cat([torch.zeros_like(mask[:, :1]), mask], 1)
        student = self.head(
            self.backbone.encode(standard, mask=seen), frozen=self.frozen
        )  # [2 B, 1 + N, K]
        with torch.no_grad():
            teacher = self.teacher[1](self.teacher[0].encode(standard)).float()
        with networks.keep_running_statistics(self):  # these are not the largest views
            outputs = [
                *student[:, 0].chunk(2),
                *(output for (output,) in forward_by_size(self, views[2:])),
            ]
        terms = self.distilled(outputs, teacher[:, 0].chunk(2))
        temperatures = self.settings["temperature"], self.teacher_temperature
        patches = losses.ibot_patch_loss(
            student[:, 1:], teacher[:, 1:], mask, self.patch_centre, *temperatures
        )
        recentre(self.patch_centre, teacher[:, 1:].flatten(0, 1), self.settings["centre_momentum"])
        return terms | {"loss": terms["loss"] + patches, "patches": patches.detach()}


def hidden_patches(batch: int, side: int) -> Tensor:
    """Which of side x side patches are hidden, [B, side²]: none in every other image, else a random rectangle (iBOT, App. E).

    Its area is a uniform share of the image, 0.1 to 0.5, its aspect log-uniform between 0.3 and its inverse, before it is cut to the image.
    """
    area = side**2 * torch.empty(batch).uniform_(0.1, 0.5)
    aspect = torch.empty(batch).uniform_(math.log(0.3), -math.log(0.3)).exp()
    place, rows = torch.arange(side), []
    for length in ((area * aspect).sqrt(), (area / aspect).sqrt()):
        length = length.round().clamp(1, side)
        start = (torch.rand(batch) * (side - length + 1)).floor()
        rows.append((place >= start[:, None]) & (place < (start + length)[:, None]))  # [B, side]
    mask = rows[0][:, :, None] & rows[1][:, None, :]  # [B, side, side]
    mask[::2] = False
    return mask.flatten(1)


# ---------------------------------------------------------------------------------------------------------------- reference rows
class RandomInitialisation(SimSiam):
    """SimSiam's network as initialised: a reference row."""


class RawPixels(nn.Module):
    """The image itself, flattened: a reference row. Its uncertainty is the negative norm of the image, a trivial baseline."""

    embeds_with = ()

    def __init__(self, settings: dict, channels: int = 3):
        super().__init__()

    def embed(self, images: Tensor) -> Embedding:
        pixels = images.flatten(1).float()
        return Embedding(pixels, -pixels.norm(dim=1), {})
