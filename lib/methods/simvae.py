"""SimVAE and the variational autoencoders it is compared with."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import losses, networks
from lib.methods.base import Embedding, watched

ACTIVE_VARIANCE = 0.01  # of a posterior mean over a batch: a latent below it is not used


class VAE(nn.Module):
    """A VAE (Kingma & Welling 2014), with ``beta`` a β-VAE (Higgins et al. 2017).

    Every view is an image of its own, and the prior is N(0, I). The representation is the
    posterior's mean; the uncertainty ½ sum_l log v_l, the posterior's log-volume up to a constant.

    Example:
        >>> method = VAE(settings.resolve("vae", "smoke"))
        >>> method.picture(method.embed(first).features).shape
        torch.Size([4, 3, 16, 16])
    """

    embeds_with = ("pixels", "backbone", "posterior")

    def __init__(self, settings: dict, channels: int = 3):
        super().__init__()
        self.settings = settings
        latents = settings["representation"]
        threshold = settings["binarise"]
        self.pixels = networks.Binarise(threshold) if threshold else nn.Identity()
        without_ends = settings | {"binarise": 0.0, "representation": 0}
        self.backbone = networks.backbone(without_ends, channels)
        self.posterior = nn.Linear(self.backbone.features, 2 * latents)
        self.decoder = networks.decoder(
            latents, channels, settings["image_size"], settings["backbone"]
        )
        self.is_bernoulli = settings["likelihood"] == "bernoulli"
        self.likelihood = {"likelihood": settings["likelihood"], "variance": settings["variance"]}

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z | x), [B, L] each, in float32."""
        mean, log_variance = self.posterior(self.backbone(pixels)).float().chunk(2, dim=1)
        return mean, log_variance

    def decode(self, z: Tensor) -> Tensor:
        """A Gaussian's mean in 0..1, or a Bernoulli's logits, [B, C, S, S]."""
        return self.decoder(z).float() if self.is_bernoulli else self.picture(z)

    def picture(self, z: Tensor) -> Tensor:
        """The mean image of latents, [B, C, S, S] in 0..1."""
        return torch.sigmoid(self.decoder(z).float())

    def objective(
        self, x: Tensor, r: Tensor, mean: Tensor, log_variance: Tensor, z: Tensor, views: int
    ) -> dict[str, Tensor]:
        """The named terms for all views of a batch, one view after the other.

        x: pixels, and r: what ``decode`` gives for them, [J B, C, S, S]. mean, log_variance: of the
        posterior, and z: its sample, [J B, L]. views: J, for CRVAE and SimVAE.
        """
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
            mean_image = torch.sigmoid(r) if self.is_bernoulli else r
            logged = {
                "mse": F.mse_loss(mean_image, x),
                "posterior_variance": log_variance.exp().mean(),
                "active_latents": (mean.var(0) > ACTIVE_VARIANCE).float().sum(),
            }
        return watched(terms) | logged

    def embed(self, images: Tensor) -> Embedding:
        mean, log_variance = self.encode(self.pixels(images))
        log_volume = log_variance.sum(1) / 2
        return Embedding(mean, log_volume, {"log_volume": log_volume})


class CRVAE(VAE):
    """CR-VAE (Sinha & Dieng 2021, Eq. 5): a VAE of two views x and x' with a consistency term.

    ``consistency`` times KL( q(z | x') || q(z | x) ) is added to the VAE's loss of both views.
    Reconstruction and kl are logged of one view.

    Deviation: x is a view as well, not the image itself, as all methods here see views only
    (SimVAE, §6: one augmentation strategy for all).

    Example:
        >>> method = CRVAE(settings.resolve("cr_vae", "smoke"))
        >>> method.loss([first, second])["loss"].backward()
    """

    def objective(
        self, x: Tensor, r: Tensor, mean: Tensor, log_variance: Tensor, z: Tensor, views: int
    ) -> dict[str, Tensor]:
        if views != 2:
            raise ValueError(f"cr_vae compares two views; set views to 2, not {views}.")
        terms = super().objective(x, r, mean, log_variance, z, views)
        first, second = mean.chunk(2)
        first_log_v, second_log_v = log_variance.chunk(2)
        kl = losses.gaussian_kl(second, second_log_v, first, first_log_v).mean()
        consistency = self.settings["consistency"] * kl
        return terms | {"consistency": consistency, "loss": 2 * terms["loss"] + consistency}


class SimVAE(VAE):
    """SimVAE (Bizeul et al. 2024, Algorithm 1).

    J views of an image share a mean ψ, around which the prior holds their latents.
    ``reconstruction_weight`` is 1, except in the authors' code, which multiplies a Bernoulli
    likelihood by 1 / exp(-4.6).

    Example:
        >>> method = SimVAE(settings.resolve("simvae", "smoke"))
        >>> method.loss([first, second])["loss"].backward()
    """

    def objective(
        self, x: Tensor, r: Tensor, mean: Tensor, log_variance: Tensor, z: Tensor, views: int
    ) -> dict[str, Tensor]:
        by_view = [
            tensor.unflatten(0, (views, -1)) for tensor in (r, x, mean, log_variance, z)
        ]  # each [J, B, ...]
        terms = losses.simvae_loss(
            *by_view,
            **self.likelihood,
            prior_variance=self.settings["prior_variance"],
            mean_prior=self.settings["mean_prior"],
            mean_prior_variance=self.settings["mean_prior_variance"],
            entropy_weight=self.settings["entropy_weight"],
        )
        weight = self.settings["reconstruction_weight"]
        return terms | {"loss": terms["loss"] + (weight - 1) * terms["reconstruction"]}
