"""ProSMin (ICLR 2024): a predicted distribution of the target's output, and a score for it."""

import torch
from torch import Tensor, nn

from lib import losses, networks
from lib.methods.base import Embedding, agreement, forward_by_size, recentre, view_pairs


class ProSMin(nn.Module):
    """ProSMin (§4, Figure 1).

    q(g(f(x))) is a Gaussian, of which r samples are scored against the target of another view.
    Online network: backbone f, projector g, predictor q. Target network: f and g, another random
    start, moved by ``ξ <- α ξ + (1 - α) θ``, α from ``target_momentum`` to 1 on a cosine (Eq. 3).
    The target network sees the standard views, the online network all of them; every pair of
    different views counts. Targets are centred; ``centre_momentum`` 1 keeps the centre at zero.
    Embeddings are the online backbone's (§6); the uncertainty is the mean over coordinates of
    log σ.

    Settings: kernel, trade_off (λ), beta and bandwidth of the scoring rule
    (losses.scoring_rule); samples, r of each view, or with ``pool_views`` of all views that a
    target is compared with (§10.5.6); learned_deviation false: the mean alone is scored, which
    needs λ = 1.

    ValueError where λ does not exceed losses.critical_trade_off(beta): σ would grow without
    bound. Samples pooled over views are a mixture's:
    ``|z_j - z_k| <= |z_j - t| + |z_k - t|`` keeps their score above zero for λ >= ½ and β <= 1,
    which is required; below ½ one view's samples may go to infinity and take it with them.

    Deviation:

    - The authors' code starts the target network at the online network's weights, the paper at
      random ones, as here. That code's second head gives log σ², ours log σ.
    - §10.5.6 and the authors' code also pair a view with its own target. That code's centre
      settles at half the mean, here at the mean.
    - The paper calls λ and β learnable; they are constants there and here. For its rows of the
      mean alone "λ and σ are zero" (§7); λ = 1 keeps Eq. 2's first term, which is then all.
    - ``clip_norm`` bounds the norm of the whole gradient, where that code bounds each tensor's.
    - The rows of the projector's last layer have unit length (networks.PrototypeHead), where that
      code trains their length.

    Example:
        >>> method = ProSMin(settings.resolve("prosmin", "smoke"))
        >>> method.embed(first).native["log_sigma"].shape
        torch.Size([4])
    """

    embeds_with = ("backbone", "projector", "predictor")

    def __init__(self, settings: dict, channels: int = 3):
        super().__init__()
        self._check_score(settings)
        self.settings = settings
        dimension = settings["dimension"]
        batch_norm = settings["head_batch_norm"]
        self.backbone, self.projector = self._network(settings, channels)
        self.predictor = networks.GaussianPredictor(
            dimension, settings["predictor_hidden"], settings["bottleneck"] ** -0.5, batch_norm
        )
        self.target = nn.Sequential(*self._network(settings, channels)).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(dimension))

    @staticmethod
    def _check_score(settings: dict) -> None:
        """ValueError for a scoring rule without a minimum."""
        trade_off = settings["trade_off"]
        beta = settings["beta"]
        critical = losses.critical_trade_off(beta)
        sampled = settings["kernel"] != "gaussian" and settings["learned_deviation"]
        if sampled and trade_off <= critical:
            raise ValueError(
                f"trade_off is {trade_off:g}; with beta {beta:g} it must exceed {critical:.3f}: "
                "below that the score falls without bound as the standard deviation grows."
            )
        if settings["pool_views"] and sampled and (trade_off < 0.5 or beta > 1):
            raise ValueError(
                f"trade_off is {trade_off:g} and beta {beta:g}; with pool_views the first must be "
                "at least 0.5 and the second at most 1: one view's samples, far from the others, "
                "may otherwise lower the score without bound."
            )
        if not settings["learned_deviation"] and trade_off != 1:
            raise ValueError(
                "Without a learned deviation there are no samples to compare: "
                f"set trade_off to 1, not {trade_off:g}."
            )

    @staticmethod
    def _network(settings: dict, channels: int) -> tuple[nn.Module, nn.Module]:
        """A backbone f and a projector g."""
        backbone = networks.backbone(settings, channels)
        projector = networks.PrototypeHead(
            backbone.features,
            settings["head_hidden"],
            settings["bottleneck"],
            settings["dimension"],
            settings["head_batch_norm"],
        )
        return backbone, projector

    def forward(self, view: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log σ of the prediction, [B, K] each."""
        return self.predictor(self.projector(self.backbone(view)))

    def samples(self, mean: Tensor, log_sigma: Tensor) -> Tensor:
        """z_j = μ + σ ε_j, [R, B, K]; the mean, [1, B, K], where no deviation is learned."""
        if not self.settings["learned_deviation"]:
            return mean[None]
        mean = mean.float()
        sigma = log_sigma.float().exp()
        noise = torch.randn(self.settings["samples"], *mean.shape, device=mean.device)
        return mean + sigma * noise

    def score(self, samples: Tensor, target: Tensor) -> Tensor:
        """The batch mean of the scoring rule."""
        scores = losses.scoring_rule(
            samples,
            target,
            trade_off=self.settings["trade_off"],
            beta=self.settings["beta"],
            kernel=self.settings["kernel"],
            bandwidth=self.settings["bandwidth"],
        )
        return scores.mean()

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        outputs = forward_by_size(self, views)  # V x (mean, log σ), each [B, K]
        with torch.no_grad():
            raw = self.target(torch.cat(views[:2])).float()  # [2 B, K]
        targets = [target - self.centre for target in raw.chunk(2)]
        samples = [self.samples(mean, log_sigma) for mean, log_sigma in outputs]
        pairs = view_pairs(len(views))
        if self.settings["pool_views"]:
            terms = []
            for j, target in enumerate(targets):
                pool = torch.cat([samples[i] for i, other in pairs if other == j])
                terms.append(self.score(pool, target))  # pool [R (V - 1), B, K]
        else:
            terms = [self.score(samples[i], targets[j]) for i, j in pairs]
        with torch.no_grad():
            recentre(self.centre, raw, self.settings["centre_momentum"])
            mean, log_sigma = outputs[0]
            sigma = log_sigma.float().exp().mean()
            target_std = raw.std(0).mean()
        return {
            "loss": torch.stack(terms).mean(),
            "sigma": sigma,
            "cosine": agreement(mean, targets[1]),
            "target_std": target_std,
        }

    def update_target(self, progress: float) -> None:
        """Move the target network (Eq. 3)."""
        alpha = networks.cosine_between(self.settings["target_momentum"], 1.0, progress)
        networks.update_average(self.target, nn.Sequential(self.backbone, self.projector), alpha)

    def embed(self, images: Tensor) -> Embedding:
        features = self.backbone(images)
        _, log_sigma = self.predictor(self.projector(features))
        mean_log_sigma = log_sigma.float().mean(1)  # [B]
        return Embedding(features.float(), mean_log_sigma, {"log_sigma": mean_log_sigma})

    @torch.no_grad()
    def uncertainties(self, images: Tensor, samples: int = 16) -> Embedding:
        """As ``embed``, with what else the prediction may say of an image.

        The paper does not name the score of its out-of-distribution results. mean_sigma: mean
        over coordinates of σ; sample_spread: root mean square distance of two samples, sqrt(2)
        |σ|; target_energy: half the energy score (λ = ½, β = 1) of the target network's output
        for the same image, estimated with one fixed set of samples for all images.
        """
        if not hasattr(self, "target"):
            raise ValueError(
                "A committed encoder of ProSMin has no target network, which its energy needs: "
                "train the run first."
            )
        features = self.backbone(images)
        mean, log_sigma = (output.float() for output in self.predictor(self.projector(features)))
        sigma = log_sigma.exp()
        target = self.target(images).float() - self.centre
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(samples, 1, mean.shape[1], generator=generator).to(mean.device)
        energy = losses.scoring_rule(mean + sigma * noise, target)
        mean_log_sigma = log_sigma.mean(1)
        native = {
            "log_sigma": mean_log_sigma,
            "mean_sigma": sigma.mean(1),
            "sample_spread": 2**0.5 * sigma.norm(dim=1),
            "target_energy": energy,
        }
        return Embedding(features.float(), mean_log_sigma, native)
