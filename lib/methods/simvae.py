"""SimVAE and the variational autoencoders it is compared with."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import losses, networks
from lib.methods.base import Embedding, watched

ACTIVE_VARIANCE = 0.01


class VAE(nn.Module):
    """A VAE (Kingma & Welling 2014), with ``beta`` a β-VAE (Higgins et al. 2017): every view is an image of its own, the prior is N(0, I).

    The representation is the posterior's mean; the uncertainty ½ sum_l log v_l, the log-volume of the posterior up to a constant.
    """

    embeds_with = ("pixels", "backbone", "posterior")

    def __init__(self, settings: dict, channels: int = 3):
        super().__init__()
        self.settings, latents = settings, settings["representation"]
        self.pixels = (
            networks.Binarise(settings["binarise"]) if settings["binarise"] else nn.Identity()
        )
        self.backbone = networks.backbone(
            settings | {"binarise": 0.0, "representation": 0}, channels
        )
        self.posterior = nn.Linear(self.backbone.features, 2 * latents)
        self.decoder = networks.decoder(
            latents, channels, settings["image_size"], settings["backbone"]
        )
        self.likelihood = {"likelihood": settings["likelihood"], "variance": settings["variance"]}

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z | x), [B, L] each, in float32."""
        mean, log_variance = self.posterior(self.backbone(pixels)).float().chunk(2, dim=1)
        return mean, log_variance

    def decode(self, z: Tensor) -> Tensor:
        """What the likelihood takes, [B, C, S, S]: a Gaussian's mean in 0..1, or a Bernoulli's logits."""
        return (
            self.decoder(z).float()
            if self.settings["likelihood"] == "bernoulli"
            else self.picture(z)
        )

    def picture(self, z: Tensor) -> Tensor:
        """The mean image of latents, [B, C, S, S] in 0..1."""
        return torch.sigmoid(self.decoder(z).float())

    def objective(
        self, x: Tensor, r: Tensor, mean: Tensor, log_variance: Tensor, z: Tensor, views: int
    ) -> dict[str, Tensor]:
        """The named terms for all views of a batch one after the other, [J B, ...]."""
        return losses.vae_loss(
            r, x, mean, log_variance, **self.likelihood, beta=self.settings["beta"]
        )

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        x = self.pixels(torch.cat(views))  # [J B, C, S, S]
        mean, log_variance = self.encode(x)
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        r = self.decode(z)
        terms = self.objective(x, r, mean, log_variance, z, len(views))
        with torch.no_grad():
            mean_image = torch.sigmoid(r) if self.settings["likelihood"] == "bernoulli" else r
            also = {
                "mse": F.mse_loss(mean_image, x),
                "posterior_variance": log_variance.exp().mean(),
                "active_latents": (mean.var(0) > ACTIVE_VARIANCE).float().sum(),
            }
        return watched(terms) | also

    def embed(self, images: Tensor) -> Embedding:
        mean, log_variance = self.encode(self.pixels(images))
        log_volume = log_variance.sum(1) / 2
        return Embedding(mean, log_volume, {"log_volume": log_volume})


class CRVAE(VAE):
    """CR-VAE (Sinha & Dieng 2021, Eq. 5): two views x and x', and ``consistency`` times KL( q(z | x') || q(z | x) ) beside the VAE of both.

    The loss is of two views, reconstruction and kl are logged of one. Deviation: x is a view as well, not the image itself, as all methods here see
    views only (SimVAE, §6: one augmentation strategy for all).
    """

    def objective(
        self, x: Tensor, r: Tensor, mean: Tensor, log_variance: Tensor, z: Tensor, views: int
    ) -> dict[str, Tensor]:
        if views != 2:
            raise ValueError(f"cr_vae compares two views; set views to 2, not {views}.")
        terms = super().objective(x, r, mean, log_variance, z, views)
        (first, second), (first_log_v, second_log_v) = mean.chunk(2), log_variance.chunk(2)
        consistency = (
            self.settings["consistency"]
            * losses.gaussian_kl(second, second_log_v, first, first_log_v).mean()
        )
        return terms | {"consistency": consistency, "loss": 2 * terms["loss"] + consistency}


class SimVAE(VAE):
    """SimVAE (Bizeul et al. 2024, Algorithm 1): J views of an image share a mean ψ, around which the prior holds their latents.

    ``reconstruction_weight``: 1, except in the authors' code, which multiplies a Bernoulli likelihood by 1 / exp(-4.6).
    """

    def objective(
        self, x: Tensor, r: Tensor, mean: Tensor, log_variance: Tensor, z: Tensor, views: int
    ) -> dict[str, Tensor]:
        by_view = [
            tensor.unflatten(0, (views, -1)) for tensor in (r, x, mean, log_variance, z)
        ]  # [J, B, ...]
        priors = {
            name: self.settings[name]
            for name in ("prior_variance", "mean_prior", "mean_prior_variance", "entropy_weight")
        }
        terms = losses.simvae_loss(*by_view, **self.likelihood, **priors)
        weight = self.settings["reconstruction_weight"]
        return terms | {"loss": terms["loss"] + (weight - 1) * terms["reconstruction"]}
