"""Methods that follow a moving average of themselves: BYOL, DirectPred, MoCo v3, DINO and iBOT."""

import math
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import losses, networks
from lib.methods.base import (
    AveragedTarget,
    Embedding,
    agreement,
    forward_by_size,
    recentre,
    spread,
    view_pairs,
)
from lib.methods.simsiam import SimSiam


class BYOL(AveragedTarget, SimSiam):
    """BYOL (Grill et al. 2020, §3.1).

    Each view's prediction is drawn to the target network's projection of the other view. With
    ``target_momentum`` 0 the target is the trained network itself, its gradient stopped.

    Example:
        >>> method = BYOL(settings.resolve("byol", "smoke"))
        >>> method.loss([first, second])["loss"].backward()
        >>> method.update_target(progress=0.5)
    """

    takes_local_views = False

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        (z, p1), (_, p2) = forward_by_size(self, views)  # [B, D]
        return self.regression(views, p1, p2, z)


class DirectPred(AveragedTarget):
    """DirectPred (Tian et al. 2021, §4): BYOL whose predictor is set, not trained.

    ``W = U diag(sqrt(s) + ε max sqrt(s)) U^T``, where U diag(s) U^T is the moving average, with
    weight ρ on the past, of the correlation E[f f^T] of the predictor's input f.

    Deviation: f is normalised first and ε multiplies max sqrt(s), where the paper prints max s,
    so that W does not depend on the scale of f.

    Example:
        >>> method = DirectPred(settings.resolve("directpred", "smoke"))
        >>> method.loss([first, second])["loss"].backward()
        >>> method.predictor.shape
        torch.Size([16, 16])
    """

    def __init__(self, settings: dict, channels: int = 3):
        super().__init__(settings, channels)
        dimension = settings["dimension"]
        self.register_buffer("correlation", torch.eye(dimension) / dimension)
        self.register_buffer("predictor", torch.eye(dimension))

    @torch.no_grad()
    def set_predictor(self, f: Tensor) -> None:
        """Update the correlation with the inputs f [B, D], and the predictor from it."""
        f = F.normalize(f.float(), dim=1)
        self.correlation.lerp_(f.T @ f / len(f), 1 - self.settings["correlation_memory"])
        values, vectors = torch.linalg.eigh(self.correlation)
        root = values.clamp(min=0).sqrt()
        boosted = root + self.settings["eigenvalue_boost"] * root.max()
        self.predictor.copy_(vectors * boosted @ vectors.T)

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        (z1,), (z2,) = forward_by_size(self, views)  # [B, D]
        with torch.autocast(z1.device.type, enabled=False):
            inputs = [networks.gather(z1.detach()), networks.gather(z2.detach())]
            self.set_predictor(torch.cat(inputs))
            p1 = z1.float() @ self.predictor
            p2 = z2.float() @ self.predictor
        return self.regression(views, p1, p2, z1)


class MoCoV3(BYOL):
    """MoCo v3 (Chen et al. 2021, Algorithm 1).

    Each view's prediction is to find its image's key, of another view, among the batch's keys.

    Deviation: low-resolution views, of which the paper has none, are queries too where a profile
    asks for them. The loss is the mean over the pairs of views, where the algorithm adds its two.

    Example:
        >>> method = MoCoV3(settings.resolve("moco_v3", "smoke"))
        >>> method.loss([first, second])["loss"].backward()
        >>> method.update_target(progress=0.5)
    """

    takes_local_views = True

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        outputs = forward_by_size(self, views)  # V x (z, q), each [B, D]
        keys = [networks.gather(key) for key in self.targets(views[:2])]
        rows = networks.own_rows(len(views[0]))
        temperature = self.settings["temperature"]
        terms = []
        for i, j in view_pairs(len(views)):
            query = outputs[i][1]
            terms.append(losses.moco_v3_loss(query, keys[j], temperature, rows))
        return {
            "loss": torch.stack(terms).mean(),
            "cosine": agreement(outputs[0][1], keys[1][rows]),
            "spread": spread(outputs[0][0]),
        }


class DINO(nn.Module):
    """DINO (Caron et al. 2021, Algorithm 1).

    The student's softmax over K prototypes follows the averaged teacher's, centred and sharpened.
    The teacher sees the standard views, the student all of them; every pair of different views
    counts. ``dimension`` is K. Embeddings are the teacher's, and the uncertainty is the entropy,
    in nats, of its softmax((f(x) - c) / τ_t) (VI-SimSiam 2023, §6.4).

    Deviation: ``clip_norm`` bounds the norm of the whole gradient, where the authors' code bounds
    that of each tensor.

    Example:
        >>> method = DINO(settings.resolve("dino", "smoke"))
        >>> sorted(method.loss([first, second]))
        ['entropy', 'entropy_of_mean', 'loss']
    """

    embeds_with = ("teacher", "centre")

    def __init__(self, settings: dict, channels: int = 3):
        super().__init__()
        self.settings = settings
        self.backbone = networks.backbone(settings, channels)
        self.head = networks.PrototypeHead(
            self.backbone.features,
            settings["head_hidden"],
            settings["bottleneck"],
            settings["dimension"],
            settings["head_batch_norm"],
        )
        self.teacher = deepcopy(nn.Sequential(self.backbone, self.head)).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(settings["dimension"]))
        # A tensor: a compiled step would be compiled again for every new number.
        self.register_buffer("teacher_temperature", torch.tensor(0.0), persistent=False)
        self.set_epoch(0.0)

    def set_epoch(self, epoch: float) -> None:
        """Move the teacher's temperature along its warm-up (Caron et al. 2021, App. C).

        The first step has the first value, without a warm-up too.
        """
        first = self.settings["teacher_temperature_start"]
        last = self.settings["teacher_temperature"]
        warmup = max(self.settings["teacher_temperature_warmup_epochs"], 1e-9)
        self.teacher_temperature.fill_(first + (last - first) * min(1.0, epoch / warmup))
        self.frozen = epoch < self.settings["frozen_prototypes_epochs"]

    def forward(self, view: Tensor) -> tuple[Tensor]:
        return (self.head(self.backbone(view), frozen=self.frozen),)

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        outputs = [output for (output,) in forward_by_size(self, views)]  # V x [B, K]
        with torch.no_grad():
            targets = self.teacher(torch.cat(views[:2])).float().chunk(2)
        terms = self.distillation_terms(outputs, targets)
        recentre(self.centre, torch.cat(targets), self.settings["centre_momentum"])
        return terms

    def distillation_terms(
        self, outputs: list[Tensor], targets: tuple[Tensor, Tensor]
    ) -> dict[str, Tensor]:
        """The terms of the loss.

        outputs: the student's for all views; targets: the teacher's for the standard ones;
        [B, K] each.
        """
        student_temperature = self.settings["temperature"]
        temperature = self.teacher_temperature
        terms = []
        for i, j in view_pairs(len(outputs)):
            terms.append(
                losses.dino_loss(
                    outputs[i], targets[j], self.centre, student_temperature, temperature
                )
            )
        with torch.no_grad():
            probabilities = torch.softmax((targets[0] - self.centre) / temperature, dim=1)
            entropy = torch.special.entr(probabilities).sum(1).mean()
            entropy_of_mean = torch.special.entr(probabilities.mean(0)).sum()
        return {
            "loss": torch.stack(terms).mean(),
            "entropy": entropy,
            "entropy_of_mean": entropy_of_mean,
        }

    def update_target(self, progress: float) -> None:
        """The teacher's momentum rises to 1 on a cosine (§3.1)."""
        m = networks.cosine_between(self.settings["target_momentum"], 1.0, progress)
        networks.update_average(self.teacher, nn.Sequential(self.backbone, self.head), m)

    def embed(self, images: Tensor) -> Embedding:
        backbone, head = self.teacher
        features = backbone(images)
        logits = (head(features).float() - self.centre) / self.settings["teacher_temperature"]
        entropy = torch.distributions.Categorical(logits=logits).entropy()  # [B]
        return Embedding(features.float(), entropy, {"entropy": entropy})


class IBOT(DINO):
    """iBOT (Zhou et al. 2022, Algorithm 1).

    DINO on class tokens, and the same loss on patches of standard views that are hidden from the
    student. One head for both, with a centre each.

    Deviation: the hidden patches of an image are one rectangle, not several. Half of the images
    have none, as in the paper.

    Example:
        >>> method = IBOT(settings.resolve("ibot", "smoke"))
        >>> sorted(method.loss([first, second]))
        ['entropy', 'entropy_of_mean', 'loss', 'patches']
    """

    def __init__(self, settings: dict, channels: int = 3):
        if settings["backbone"] != "vit":
            raise ValueError(
                "ibot hides patches from a vit; "
                f"set backbone to 'vit', not {settings['backbone']!r}."
            )
        super().__init__(settings, channels)
        self.backbone.mask_token.requires_grad_(True)
        self.register_buffer("patch_centre", torch.zeros(settings["dimension"]))

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        standard = torch.cat(views[:2])  # [2 B, C, S, S]
        side = views[0].shape[-1] // self.settings["patch_size"]
        hidden = hidden_patches(len(standard), side).to(standard.device)  # [2 B, N]
        class_token_shown = torch.zeros_like(hidden[:, :1])
        mask = torch.cat([class_token_shown, hidden], 1)  # [2 B, 1 + N]
        tokens = self.backbone.encode(standard, mask=mask)
        student = self.head(tokens, frozen=self.frozen)  # [2 B, 1 + N, K]
        with torch.no_grad():
            teacher_backbone, teacher_head = self.teacher
            teacher = teacher_head(teacher_backbone.encode(standard)).float()  # [2 B, 1 + N, K]
        with networks.keep_running_statistics(self):  # these are not the largest views
            local = [output for (output,) in forward_by_size(self, views[2:])]
        outputs = [*student[:, 0].chunk(2), *local]
        targets = teacher[:, 0].chunk(2)  # of the class tokens
        terms = self.distillation_terms(outputs, targets)
        patch_loss = losses.ibot_patch_loss(
            student[:, 1:],
            teacher[:, 1:],
            hidden,
            self.patch_centre,
            self.settings["temperature"],
            self.teacher_temperature,
        )
        recentre(self.centre, torch.cat(targets), self.settings["centre_momentum"])
        recentre(self.patch_centre, teacher[:, 1:].flatten(0, 1), self.settings["centre_momentum"])
        return terms | {"loss": terms["loss"] + patch_loss, "patches": patch_loss.detach()}


def hidden_patches(batch: int, side: int) -> Tensor:
    """Which of side x side patches are hidden, [B, side²] (iBOT, App. E).

    None in every other image, else a random rectangle. Its area is a uniform share of the image,
    0.1 to 0.5, its aspect log-uniform between 0.3 and its inverse, before it is cut to the image.
    """
    area = side**2 * torch.empty(batch).uniform_(0.1, 0.5)
    aspect = torch.empty(batch).uniform_(math.log(0.3), -math.log(0.3)).exp()
    rows = _random_interval((area * aspect).sqrt(), side)  # [B, side]
    columns = _random_interval((area / aspect).sqrt(), side)
    mask = rows[:, :, None] & columns[:, None, :]  # [B, side, side]
    mask[::2] = False
    return mask.flatten(1)


def _random_interval(length: Tensor, side: int) -> Tensor:
    """Which of ``side`` places lie in a random interval of the given lengths [B]; [B, side]."""
    length = length.round().clamp(1, side)
    start = (torch.rand(len(length)) * (side - length + 1)).floor()
    place = torch.arange(side)
    return (place >= start[:, None]) & (place < (start + length)[:, None])
