"""SimSiam, and VI-SimSiam in both published forms."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import losses, networks
from lib.distributions import best_concentration
from lib.methods.base import Embedding, TwoViews, forward_by_size, spread, view_pairs

QUANTILES = (0.05, 0.95)


class SimSiam(TwoViews):
    """SimSiam (Chen & He 2021, Algorithm 1).

    Each view's prediction is drawn to the other view's projection, which is held constant.

    Deviation: all views of one size pass the network together, so batch norm takes its statistics
    over both views. Low-resolution views, where a recipe has them, predict both standard views;
    the targets are standard views only.

    Example:
        >>> method = SimSiam(settings.resolve("simsiam", "smoke"))
        >>> sorted(method.loss([first, second]))
        ['cosine', 'loss', 'spread']
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
        terms = [losses.simsiam_loss(p[i], z[j]) for i, j in view_pairs(len(views))]
        loss = torch.stack(terms).mean()
        return {"loss": loss, "cosine": -loss.detach(), "spread": spread(z[0])}


class VISimSiam(TwoViews):
    """VI-SimSiam: SimSiam whose predictor also gives a concentration κ for every view.

    The prediction is a Power Spherical distribution over the other view's projection, and the
    loss is ``-log p_1(z_2) - log p_2(z_1)``, mean over the batch. ``concentration_from``:

    - "predictor": κ is one more output of the predictor (2022, App. 9.1, Algorithm 1);
    - "features": κ comes from a head u on the backbone's features (2023, §5, Algorithm 1).

    Deviation:

    - κ = (D - 1) exp(a), with a smoothly bounded at the logit of a cosine of 0.98
      (networks.to_concentration) and starting at that of ``initial_cosine``. The main texts name
      no positivity map.
    - The head u has one hidden layer; its layers are not published.
    - ``divide_loss`` divides the loss by D - 1. Undivided, its gradient exceeds SimSiam's by a
      factor of the order of D, and the learning rate must shrink by as much.
    - For the first ``concentration_warmup_epochs`` κ keeps its starting value, but for the weight
      decay of a bias that it shares with the predictor's last layer. While views are still
      unlike, the best κ is near zero, and with κ near zero nothing draws the views together.
    - The loss is a sum over two views, SimSiam's a mean. With more than two views the pairs are
      averaged and counted twice, so that the scale stays that of two views; the papers do not say.
    - ``alignment``, our controls: "detached" stops κ's gradient at the features; with "cosine"
      SimSiam's loss trains the network instead, and κ learns beside it.

    Example:
        >>> method = VISimSiam(settings.resolve("vi_simsiam", "smoke"))
        >>> method.embed(first).native["kappa"].shape
        torch.Size([4])
    """

    takes_local_views = True
    warming_up = False

    def __init__(self, settings: dict, channels: int = 3):
        super().__init__(settings, channels)
        self.dimension = settings["dimension"]
        self.mapping = settings["concentration_map"]
        self.scale = 1 / (self.dimension - 1) if settings["divide_loss"] else 1.0
        self.warmup_epochs = settings["concentration_warmup_epochs"]
        source = settings["concentration_from"]
        alignment = settings.get("alignment", "density")
        self._check_choices(source, alignment)
        self.detached = alignment != "density"
        self.reads_out = alignment == "cosine"
        last = self._add_heads(source, settings["predictor_hidden"])
        networks.start_at_cosine(last, self.dimension, settings["initial_cosine"], self.mapping)

    @staticmethod
    def _check_choices(source: str, alignment: str) -> None:
        if source not in ("features", "predictor"):
            raise ValueError(
                f"Unknown concentration_from {source!r}; "
                "choose 'features' (2023) or 'predictor' (2022)."
            )
        choices = ("density", "detached", "cosine") if source == "features" else ("density",)
        if alignment not in choices:
            raise ValueError(
                f"Unknown alignment {alignment!r} with κ from {source!r}; choose one of {choices}."
            )

    def _add_heads(self, source: str, hidden: int) -> nn.Linear:
        """Build predictor and κ's head; returns the layer whose last output gives κ."""
        if source == "features":
            self.predictor = networks.predictor(self.dimension, hidden)
            features = self.backbone.features
            self.concentration_head = networks.predictor(features, features, 1)
            self.embeds_with = ("backbone", "concentration_head")
            return self.concentration_head[-1]
        self.predictor = networks.predictor(self.dimension, hidden, self.dimension + 1)
        self.concentration_head = None
        self.embeds_with = ("backbone", "projector", "predictor")
        return self.predictor[-1]

    def set_epoch(self, epoch: float) -> None:
        self.warming_up = epoch < self.warmup_epochs

    def concentration(self, features: Tensor, prediction: Tensor | None = None) -> Tensor:
        """κ [B] from the features [B, F], or from the prediction [B, D + 1]."""
        if self.concentration_head is None:
            raw = prediction[:, -1]
        else:
            features = features.detach() if self.detached else features
            raw = self.concentration_head(features)[:, 0]
        if self.warming_up:
            raw = raw.detach()
        return networks.to_concentration(raw, self.dimension, self.mapping)

    def forward(self, view: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Projection z [B, D], direction μ [B, D] (of any length) and κ [B]."""
        y = self.backbone(view)
        z = self.projector(y)
        prediction = self.predictor(z)  # [B, D] or [B, D + 1]
        return z, prediction[:, : self.dimension], self.concentration(y, prediction)

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        z, mu, kappa = zip(*forward_by_size(self, views), strict=True)  # V x [B, D], .., V x [B]
        pairs = view_pairs(len(views))
        direction = [part.detach() for part in mu] if self.reads_out else mu
        terms = [losses.vi_simsiam_loss(direction[i], kappa[i], z[j]) for i, j in pairs]
        nll = 2 * torch.stack(terms).mean()
        loss = nll * self.scale
        if self.reads_out:
            cosines = [losses.simsiam_loss(mu[i], z[j]) for i, j in pairs]
            loss = loss + torch.stack(cosines).mean()
        logged = self._summary(z, mu, kappa, pairs)
        return {"loss": loss, "negative_log_likelihood": nll.detach()} | logged

    @torch.no_grad()
    def _summary(self, z, mu, kappa, pairs: list[tuple[int, int]]) -> dict[str, Tensor]:
        """What the log says of a batch: the cosine s, κ, and how far κ is from the best κ*(s)."""
        s = torch.cat([F.cosine_similarity(mu[i].float(), z[j].float()) for i, j in pairs])
        k = torch.cat([kappa[i] for i, _ in pairs])
        best = best_concentration(s, self.dimension)
        levels = torch.tensor(QUANTILES, device=k.device)
        s_low, s_high = torch.quantile(s, levels)
        k_low, k_high = torch.quantile(k, levels)
        return {
            "cosine": s.mean(),
            "cosine_q05": s_low,
            "cosine_q95": s_high,
            "kappa": k.mean(),
            "kappa_q05": k_low,
            "kappa_q95": k_high,
            "kappa_minus_best": (k - best).mean(),
            "spread": spread(z[0]),
        }

    def embed(self, images: Tensor) -> Embedding:
        y = self.backbone(images)
        prediction = None
        if self.concentration_head is None:
            prediction = self.predictor(self.projector(y))
        kappa = self.concentration(y, prediction)
        return Embedding(features=y.float(), uncertainty=-kappa, native={"kappa": kappa})
