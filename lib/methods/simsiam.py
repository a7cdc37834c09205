"""SimSiam, and VI-SimSiam in both published forms."""

import torch
from torch import Tensor
from torch.nn import functional as F

from lib import losses, networks
from lib.distributions import best_concentration
from lib.methods.base import Embedding, TwoViews, forward_by_size, spread, view_pairs

QUANTILES = (0.05, 0.95)


class SimSiam(TwoViews):
    """SimSiam (Chen & He 2021, Algorithm 1): each view's prediction is drawn to the other view's projection, which is held constant.

    Deviation: all views of one size pass the network together, so batch norm takes its statistics over both views. Low-resolution views, where
    a recipe has them, predict both standard views; the targets are standard views only.
    """

    takes_local_views = True

    def __init__(self, settings: dict, channels: int = 3):
        super().__init__(settings, channels)
        self.predictor = networks.predictor(settings["dimension"], settings["predictor_hidden"])

    def forward(self, view: Tensor) -> tuple[Tensor, Tensor]:
        z = self.projector(self.backbone(view))
        return z, self.predictor(z)

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        z, p = zip(*forward_by_size(self, views), strict=True)  # each V x [B, D]
        loss = torch.stack(
            [losses.simsiam_loss(p[i], z[j]) for i, j in view_pairs(len(views))]
        ).mean()
        return {"loss": loss, "cosine": -loss.detach(), "spread": spread(z[0])}


class VISimSiam(TwoViews):
    """VI-SimSiam: the predictor also gives the concentration κ of a Power Spherical distribution over the other view's projection.

    concentration_from = "predictor": κ is one more output of the predictor (2022, App. 9.1, Algorithm 1); "features": κ comes from a head u on the
    backbone's features (2023, §5, Algorithm 1). Loss: ``-log p_1(z_2) - log p_2(z_1)``, mean over the batch.

    Deviation: κ = (D - 1) exp(a), a smoothly bounded at the logit of a cosine of 0.98 (networks.to_concentration) and starting at that of
    ``initial_cosine`` (the papers name no positivity map). The head u has one hidden layer (its layers are not published). With divide_loss the
    loss is divided by D - 1: undivided, its gradient exceeds SimSiam's by a factor of the order of D, and the learning rate must shrink by as
    much. For the first ``concentration_warmup_epochs`` κ keeps its starting value (but for the weight decay of a bias that it shares with the
    predictor's last layer): while views are still unlike, the best κ is near zero, and
    with κ near zero nothing draws the views together. With more than two views the pairs are averaged and counted twice, so that the scale
    stays that of two views (the papers do not say). alignment, no paper's: "detached" stops κ's gradient at the features; with "cosine"
    SimSiam's loss trains the network instead, and κ learns beside it.
    """

    takes_local_views = True
    warming_up = False

    def __init__(self, settings: dict, channels: int = 3):
        super().__init__(settings, channels)
        self.dimension, self.mapping = settings["dimension"], settings["concentration_map"]
        self.scale = 1 / (self.dimension - 1) if settings["divide_loss"] else 1.0
        source = settings["concentration_from"]
        if source == "features":
            self.predictor = networks.predictor(self.dimension, settings["predictor_hidden"])
            self.concentration_head = networks.predictor(
                self.backbone.features, self.backbone.features, 1
            )
            self.embeds_with, last = ("backbone", "concentration_head"), self.concentration_head[-1]
        elif source == "predictor":
            self.predictor = networks.predictor(
                self.dimension, settings["predictor_hidden"], self.dimension + 1
            )
            self.concentration_head = None
            self.embeds_with, last = ("backbone", "projector", "predictor"), self.predictor[-1]
        else:
            raise ValueError(
                f"Unknown concentration_from {source!r}; choose 'features' (2023) or 'predictor' (2022)."
            )
        alignment = settings.get("alignment", "density")
        if alignment not in ("density", "detached", "cosine") or (
            alignment != "density" and source != "features"
        ):
            raise ValueError(
                f"Unknown alignment {alignment!r} with κ from {source!r}; choose 'density', or with κ from 'features' "
                "'detached' or 'cosine'."
            )
        self.detached, self.reads_out = alignment != "density", alignment == "cosine"
        self.warmup_epochs = settings["concentration_warmup_epochs"]
        networks.start_at_cosine(last, self.dimension, settings["initial_cosine"], self.mapping)

    def set_epoch(self, epoch: float) -> None:
        self.warming_up = epoch < self.warmup_epochs

    def concentration(self, features: Tensor, prediction: Tensor | None = None) -> Tensor:
        features = features.detach() if self.detached else features
        raw = (
            self.concentration_head(features)[:, 0]
            if self.concentration_head
            else prediction[:, -1]
        )
        return networks.to_concentration(
            raw.detach() if self.warming_up else raw, self.dimension, self.mapping
        )  # [B]

    def forward(self, view: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = self.backbone(view)
        z = self.projector(y)
        prediction = self.predictor(z)  # [B, D] or [B, D + 1]
        return z, prediction[:, : self.dimension], self.concentration(y, prediction)

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        z, mu, kappa = zip(
            *forward_by_size(self, views), strict=True
        )  # V x [B, D], V x [B, D], V x [B]
        pairs = view_pairs(len(views))
        direction = [part.detach() for part in mu] if self.reads_out else mu
        nll = (
            2
            * torch.stack(
                [losses.vi_simsiam_loss(direction[i], kappa[i], z[j]) for i, j in pairs]
            ).mean()
        )
        loss = nll * self.scale
        if self.reads_out:
            loss = loss + torch.stack([losses.simsiam_loss(mu[i], z[j]) for i, j in pairs]).mean()
        with torch.no_grad():
            s = torch.cat([F.cosine_similarity(mu[i].float(), z[j].float()) for i, j in pairs])
            k = torch.cat([kappa[i] for i, _ in pairs])
            best = best_concentration(s, self.dimension)  # κ*(s), where the gradient in κ vanishes
            levels = torch.tensor(QUANTILES, device=k.device)
            low, high = torch.quantile(k, levels)
            s_low, s_high = torch.quantile(s, levels)
        return {
            "loss": loss,
            "negative_log_likelihood": nll.detach(),
            "cosine": s.mean(),
            "cosine_q05": s_low,
            "cosine_q95": s_high,
            "kappa": k.mean(),
            "kappa_q05": low,
            "kappa_q95": high,
            "kappa_minus_best": (k - best).mean(),
            "spread": spread(z[0]),
        }

    def embed(self, images: Tensor) -> Embedding:
        y = self.backbone(images)
        prediction = None if self.concentration_head else self.predictor(self.projector(y))
        kappa = self.concentration(y, prediction)
        return Embedding(y.float(), -kappa, {"kappa": kappa})
