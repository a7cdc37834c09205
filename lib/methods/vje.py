"""VJE (TMLR 2026): a latent variable explains each view's embedding, inferred from the other's; heavy tails, direction and length apart."""

import math

import torch
from torch import Tensor, nn

from lib import losses, networks
from lib.methods.base import Embedding, agreement, forward_by_size, spread, view_pairs, watched

LIKELIHOOD = (
    "directional_freedom",
    "radial_freedom",
    "likelihood",
    "scale_directions",
    "log_radius",
)


class VJE(nn.Module):
    """Variational joint embedding, in the formulation of losses.vje_loss (the paper's abstract fixes the parts, not their formulas).

    Encoder s = f(x), which is the representation; no projection head. Inference network s -> (m, log v): the posterior q(z | s) = N(m, diag v), whose
    variances are the scale of the directional likelihood too. Objective: the conditional ELBO of each view's embedding given the other view's
    (symmetric), divided by D so that its gradient is of SimSiam's size. The uncertainty is the mean over features of log v.

    Our choices, each a setting: ``standardise``, batch norm without parameters ends the encoder, so that embeddings have the mean and the length
    that N(0, I) expects; ``stop_gradient``, the target is a constant, as nothing else keeps all embeddings from becoming one; log v is bounded by
    ``log_variance_bound`` (a tanh) and starts at log ``initial_variance``; ``feature_wise`` False: one variance an image; ``radial_scale`` is where
    the scale of the radial factor, one learned number, starts. The others are vje_loss's.

    Ours too, and no setting: given degrees of freedom, one elliptical Student-t for all features, one draw of z, and the posterior of a view's
    embedding from the other view's.

    Deviation: what the paper has in place of these choices is not available to us.
    """

    embeds_with = ("backbone", "inference", "log_radial_scale")

    def __init__(self, settings: dict, channels: int = 3):
        super().__init__()
        if settings["local_views"]:
            raise ValueError(
                f"{settings['method']} takes two standard views; set local_views to 0, not {settings['local_views']}."
            )
        self.settings = settings
        network = networks.backbone(settings, channels)
        dimension = self.dimension = network.features
        self.backbone = (
            nn.Sequential(network, nn.BatchNorm1d(dimension, affine=False))
            if settings["standardise"]
            else network
        )
        self.inference = networks.predictor(dimension, settings["predictor_hidden"], 2 * dimension)
        self.log_radial_scale = nn.Parameter(torch.tensor(math.log(settings["radial_scale"])))
        bound, start = settings["log_variance_bound"], math.log(settings["initial_variance"])
        if abs(start) >= bound:
            raise ValueError(
                f"initial_variance is {settings['initial_variance']}; its logarithm must lie within log_variance_bound, {bound}."
            )
        with torch.no_grad():
            self.inference[-1].weight[dimension:].zero_()
            self.inference[-1].bias[dimension:] = math.atanh(start / bound)

    def posterior(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z | s), [B, D] each, in float32."""
        mean, raw = self.inference(embedding).float().chunk(2, dim=1)
        log_variance = self.settings["log_variance_bound"] * torch.tanh(raw)
        return mean, log_variance if self.settings["feature_wise"] else log_variance.mean(
            1, keepdim=True
        ).expand_as(mean)

    def forward(self, view: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s = self.backbone(view)
        return s.float(), *self.posterior(s)

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        s, mean, log_variance = zip(*forward_by_size(self, views), strict=True)  # V x [B, D]
        target = [part.detach() for part in s] if self.settings["stop_gradient"] else s
        options = {
            name: self.settings[name]
            for name in (*LIKELIHOOD, "prior_variance", "kl_weight", "radial_weight")
        }
        found = []
        for i, j in view_pairs(len(views)):
            z = mean[i] + (log_variance[i] / 2).exp() * torch.randn_like(mean[i])
            found.append(
                losses.vje_loss(
                    target[j],
                    mean[i],
                    log_variance[i],
                    z,
                    radial_scale=self.log_radial_scale.exp(),
                    **options,
                )
            )
        terms = {
            name: torch.stack([term[name] for term in found]).mean() / self.dimension
            for name in found[0]
        }
        with torch.no_grad():
            length = s[0].norm(dim=1)
            also = {
                "cosine": agreement(mean[0], s[1]),
                "spread": spread(s[0]),
                "variance": log_variance[0].exp().mean(),
                "log_variance_spread": log_variance[0].std(1).mean(),
                "norm": length.mean(),
                "norm_spread": length.std() / length.mean(),
            }
        return watched(terms) | also

    def embed(self, images: Tensor) -> Embedding:
        s = self.backbone(images).float()
        parts = self._parts(self.posterior(s), s)
        return Embedding(
            s,
            parts["log_variance"],
            {name: parts[name] for name in ("log_variance", "negative_log_likelihood")},
        )

    @torch.no_grad()
    def uncertainties(self, images: Tensor, samples: int = 64) -> Embedding:
        """As ``embed``, with every part of what the model says of an image's own embedding, z at the posterior's mean; higher = less likely.

        directional -log p(u | m/|m|, v), radial -log p(r | |m|), their sum negative_log_likelihood, kl KL( q(z | s) || p(z) ), the sum of all
        likelihood_and_kl; other_view: the negative log-likelihood of the mirrored image's embedding, given this image's. What training maximises
        has z drawn from q: averaged_likelihood -E_q log p(u, r | z), a mean over ``samples`` z from the same noise for all images, and
        negative_bound, with the KL. density_likelihood: negative_log_likelihood + (D - 1) log r, of the embedding itself, where direction and
        length are densities over sphere and radius; under "euclidean" that of the embedding already.
        """
        s, mirrored = (self.backbone(view).float() for view in (images, images.flip(-1)))
        posterior = mean, log_variance = self.posterior(s)
        parts = self._parts(posterior, s)
        noise = torch.randn(samples, self.dimension, generator=torch.Generator().manual_seed(0)).to(
            mean
        )
        drawn = [
            torch.stack(self._log_p(s, mean + (log_variance / 2).exp() * one, log_variance)).sum(0)
            for one in noise
        ]  # samples x [B]
        averaged, volume = (
            -torch.stack(drawn).mean(0),
            (self.dimension - 1)
            * s.norm(dim=1).log()
            * (self.settings["likelihood"] != "euclidean"),
        )
        return Embedding(
            s,
            parts["log_variance"],
            parts
            | {
                "other_view": self._parts(posterior, mirrored)["negative_log_likelihood"],
                "averaged_likelihood": averaged,
                "negative_bound": averaged + parts["kl"],
                "density_likelihood": parts["negative_log_likelihood"] + volume,
            },
        )

    def _parts(self, posterior: tuple[Tensor, Tensor], target: Tensor) -> dict[str, Tensor]:
        """What a posterior, mean and log-variance, says of targets, [B] each; all [B, D]."""
        mean, log_variance = posterior
        directional, radial = (-part for part in self._log_p(target, mean, log_variance))
        kl = losses.kl_to_prior(mean, log_variance, self.settings["prior_variance"])
        return {
            "log_variance": log_variance.mean(1),
            "directional": directional,
            "radial": radial,
            "negative_log_likelihood": directional + radial,
            "kl": kl,
            "likelihood_and_kl": directional + radial + kl,
        }

    def _log_p(self, target: Tensor, latent: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
        options = {name: self.settings[name] for name in LIKELIHOOD}
        return losses.vje_likelihood(
            target, latent, log_variance, radial_scale=self.log_radial_scale.exp(), **options
        )
