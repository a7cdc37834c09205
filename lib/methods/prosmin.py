"""ProSMin (ICLR 2024): the online network predicts a distribution of the target network's output, and a scoring rule says how well."""

import torch
from torch import Tensor, nn

from lib import losses, networks
from lib.methods.base import Embedding, agreement, forward_by_size, recentre, view_pairs


class ProSMin(nn.Module):
    """ProSMin (§4, Figure 1): q(g(f(x))) is a Gaussian, of which r samples are scored against the target of another view.

    Online network: backbone f, projector g, predictor q; target network: f and g alone, another random start, moved by
    ``ξ <- α ξ + (1 - α) θ``, α from ``target_momentum`` to 1 on a cosine (Eq. 3). The target network sees the standard views, the online network
    all of them; every pair of different views counts. Targets are centred; ``centre_momentum`` 1 keeps the centre at zero. Embeddings are the
    online backbone's (§6), and the uncertainty is the mean over coordinates of log σ.

    kernel, trade_off (λ), beta, bandwidth: the scoring rule (losses.scoring_rule). samples: r, of each view; with ``pool_views`` those of all
    views that a target is compared with are taken together, as §10.5.6 has it. learned_deviation false: the mean alone is scored, which needs λ = 1.

    ValueError where λ does not exceed losses.critical_trade_off(beta): σ would grow without bound. Of samples pooled over views the score is that of
    a mixture: ``|z_j - z_k| <= |z_j - t| + |z_k - t|`` keeps it above zero for λ >= ½ and β <= 1, which is asked for; below ½ one view's samples
    may go to infinity and take it with them.

    Deviation: the authors' code starts the target network at the online network's weights, the paper at random ones, as here; that code's second
    head gives log σ², ours log σ. §10.5.6 and the authors' code also pair a view with its own target; the code's centre settles at half the mean,
    here at the mean. The paper calls λ and β learnable; they are constants there and here. For its rows of the mean alone "λ and σ are zero" (§7);
    λ = 1 keeps Eq. 2's first term, which is then all there is. Without ``pool_views``, the usual case here and the code's, r counts one view's
    samples. ``clip_norm`` bounds the norm of the whole gradient, where that code bounds that of each tensor.
    The rows of the projector's last layer have unit length (networks.PrototypeHead), where that code trains their length.
    """

    embeds_with = ("backbone", "projector", "predictor")

    def __init__(self, settings: dict, channels: int = 3):
        super().__init__()
        trade_off, critical = settings["trade_off"], losses.critical_trade_off(settings["beta"])
        sampled = settings["kernel"] != "gaussian" and settings["learned_deviation"]
        if sampled and trade_off <= critical:
            raise ValueError(
                f"trade_off is {trade_off:g}; with beta {settings['beta']:g} it must exceed {critical:.3f}: below that the score falls without bound "
                "as the predicted standard deviation grows."
            )
        if settings["pool_views"] and sampled and (trade_off < 0.5 or settings["beta"] > 1):
            raise ValueError(
                f"trade_off is {trade_off:g} and beta {settings['beta']:g}; with pool_views the first must be at least 0.5 and the second at most 1: "
                "pooled samples are a mixture's, and one view's, far from the others, may otherwise lower the score without bound."
            )
        if not settings["learned_deviation"] and trade_off != 1:
            raise ValueError(
                f"Without a learned deviation there are no samples to compare: set trade_off to 1, not {trade_off:g}."
            )
        self.settings = settings
        dimension, bottleneck, batch_norm = (
            settings["dimension"],
            settings["bottleneck"],
            settings["head_batch_norm"],
        )

        def network() -> tuple[nn.Module, nn.Module]:
            backbone = networks.backbone(settings, channels)
            return backbone, networks.PrototypeHead(
                backbone.features, settings["head_hidden"], bottleneck, dimension, batch_norm
            )

        self.backbone, self.projector = network()
        self.predictor = networks.GaussianPredictor(
            dimension, settings["predictor_hidden"], bottleneck**-0.5, batch_norm
        )
        self.target = nn.Sequential(*network()).requires_grad_(False)
        self.register_buffer("centre", torch.zeros(dimension))

    def forward(self, view: Tensor) -> tuple[Tensor, Tensor]:
        return self.predictor(self.projector(self.backbone(view)))

    def samples(self, mean: Tensor, log_sigma: Tensor) -> Tensor:
        """z_j = μ + σ ε_j, [R, B, K]; the mean alone, [1, B, K], where the deviation is not learned."""
        if not self.settings["learned_deviation"]:
            return mean[None]
        mean, sigma = mean.float(), log_sigma.float().exp()
        return mean + sigma * torch.randn(self.settings["samples"], *mean.shape, device=mean.device)

    def score(self, samples: Tensor, target: Tensor) -> Tensor:
        settings = self.settings
        return losses.scoring_rule(
            samples,
            target,
            settings["trade_off"],
            settings["beta"],
            settings["kernel"],
            settings["bandwidth"],
        ).mean()

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        outputs = forward_by_size(self, views)  # V x (mean, log σ), each [B, K]
        with torch.no_grad():
            raw = self.target(torch.cat(views[:2])).float()
        targets = [target - self.centre for target in raw.chunk(2)]
        samples, pairs = [self.samples(*output) for output in outputs], view_pairs(len(views))
        if self.settings["pool_views"]:
            pools = [
                torch.cat([samples[i] for i, own in pairs if own == j]) for j in range(2)
            ]  # [R (V - 1), B, K]
            terms = [self.score(pool, target) for pool, target in zip(pools, targets, strict=True)]
        else:
            terms = [self.score(samples[i], targets[j]) for i, j in pairs]
        loss = torch.stack(terms).mean()
        with torch.no_grad():
            recentre(self.centre, raw, self.settings["centre_momentum"])
            sigma, deviation = outputs[0][1].float().exp().mean(), raw.std(0).mean()
        return {
            "loss": loss,
            "sigma": sigma,
            "cosine": agreement(outputs[0][0], targets[1]),
            "target_std": deviation,
        }

    def update_target(self, progress: float) -> None:
        alpha = networks.cosine_between(self.settings["target_momentum"], 1.0, progress)
        networks.update_average(self.target, nn.Sequential(self.backbone, self.projector), alpha)

    def embed(self, images: Tensor) -> Embedding:
        features = self.backbone(images)
        log_sigma = self.predictor(self.projector(features))[1].float().mean(1)
        return Embedding(features.float(), log_sigma, {"log_sigma": log_sigma})

    @torch.no_grad()
    def uncertainties(self, images: Tensor, samples: int = 16) -> Embedding:
        """As ``embed``, with what else the prediction may say of an image; the paper does not name the score of its out-of-distribution results.

        mean_sigma: mean over coordinates of σ; sample_spread: root mean square distance of two samples, sqrt(2) |σ|; target_energy: half the energy
        score (λ = ½, β = 1) of the target network's output for the same image, estimated with one fixed set of samples for all images.
        """
        if not hasattr(self, "target"):
            raise ValueError(
                "A committed encoder of ProSMin has no target network, whose energy is asked for here: train the run first."
            )
        features = self.backbone(images)
        mean, log_sigma = (output.float() for output in self.predictor(self.projector(features)))
        sigma, target = log_sigma.exp(), self.target(images).float() - self.centre
        noise = torch.randn(
            samples, 1, mean.shape[1], generator=torch.Generator().manual_seed(0)
        ).to(mean.device)
        energy = losses.scoring_rule(mean + sigma * noise, target)
        native = {
            "mean_sigma": sigma.mean(1),
            "sample_spread": 2**0.5 * sigma.norm(dim=1),
            "target_energy": energy,
        }
        return Embedding(
            features.float(), log_sigma.mean(1), {"log_sigma": log_sigma.mean(1)} | native
        )
