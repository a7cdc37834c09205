"""VJE (TMLR 2026): a latent variable explains each view's embedding from the other's."""

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
    """Variational joint embedding, in the formulation of losses.vje_loss.

    The paper's abstract fixes the parts of the objective, not their formulas. Encoder s = f(x),
    which is the representation; no projection head. The inference network predicts a posterior
    q(z | s) = N(m, diag v) from one view's embedding, and z explains the other view's embedding.
    The objective is the mean of the two conditional ELBOs with weights of radial factor and KL,
    divided by D, so that its gradient is of SimSiam's size. The uncertainty is the mean over
    features of log v.

    Our choices, each a setting of the recipe:

    - ``standardise``: batch norm without parameters ends the encoder, so that embeddings have the
      mean and the length that N(0, I) expects.
    - ``stop_gradient``: the target is a constant. Nothing else keeps embeddings from becoming one.
    - log v lies in (``log_variance_low``, ``log_variance_high``), a scaled sigmoid, and starts at
      log ``initial_variance``. ``feature_wise`` false: one variance an image.
    - ``samples`` draws of z a view. During the first ``kl_warmup_epochs`` z is the posterior's mean
      and the weight of the KL rises linearly to ``kl_weight``.
    - ``radial_weight``: the radial factor is one term beside D directional ones. With the usual
      weight, 32, a training of 12 epochs was level with SimSiam's; it was not searched.
    - ``radial_scale``: where the learned scale of the radial factor starts.

    Why the weight of the KL is small: inside the elliptical likelihood most of the variance cancels
    (-½ log v from the determinant, ½ log v from the distance). Where v is small, a share
    ν / (ν + p) of the distance's pull on it is left, with p = D - 1: at D = 128 3 % for ν = 4 and a
    third for ν = 64. A full KL to N(0, I) then fixes v near 1, and z = m + √v ε is mostly noise: at
    ν = 4 the cosine of z and m is 0.39 and the gradient a third of SimSiam's. The way out that
    training finds is to prune dimensions. ``kl_weight`` = 1 shows it (notebook 61).

    Why ν is of the order of D: a pair of views at the squared distance δ² weighs
    (ν + p) / (ν + δ²). With ν = 4 that is nearly p / δ². Pairs that agree are then
    drawn ever closer, and pairs that disagree hardly count, so that a few images come to carry the
    variance that batch norm asks for. With ν = 64 and D = 128 no pair weighs more than three times
    as under a Gaussian. A high learning rate before the features are formed does the same harm,
    hence a warm-up of a quarter of the training (notebook 60 has both).

    Deviation: what the paper has in place of these choices is not available to us.

    Example:
        >>> method = VJE(settings.resolve("vje", "smoke"))
        >>> sorted(method.embed(first).native)
        ['log_variance', 'negative_log_likelihood']
    """

    embeds_with = ("backbone", "inference", "log_radial_scale")

    def __init__(self, settings: dict, channels: int = 3):
        super().__init__()
        if settings["local_views"]:
            raise ValueError(
                f"{settings['method']} takes two standard views; "
                f"set local_views to 0, not {settings['local_views']}."
            )
        self.settings = settings
        network = networks.backbone(settings, channels)
        self.dimension = network.features
        self.backbone = network
        if settings["standardise"]:
            norm = nn.BatchNorm1d(self.dimension, affine=False)
            self.backbone = nn.Sequential(network, norm)
        hidden = settings["predictor_hidden"]
        self.inference = networks.predictor(self.dimension, hidden, 2 * self.dimension)
        self.log_radial_scale = nn.Parameter(torch.tensor(math.log(settings["radial_scale"])))
        self.low = settings["log_variance_low"]
        self.high = settings["log_variance_high"]
        self._start_at_variance(settings["initial_variance"])
        # A tensor: a compiled step would be compiled again for every new number.
        self.register_buffer("kl_weight", torch.tensor(0.0), persistent=False)
        self.set_epoch(0.0)

    @torch.no_grad()
    def _start_at_variance(self, variance: float) -> None:
        """Make the inference network give this variance for every image and feature."""
        share = (math.log(variance) - self.low) / (self.high - self.low)
        if not 0 < share < 1:
            raise ValueError(
                f"initial_variance is {variance}; its logarithm must lie between "
                f"log_variance_low {self.low} and log_variance_high {self.high}."
            )
        last = self.inference[-1]
        last.weight[self.dimension :].zero_()
        last.bias[self.dimension :] = math.log(share / (1 - share))

    def set_epoch(self, epoch: float) -> None:
        """The KL's weight rises over its warm-up, in which z is the posterior's mean."""
        warmup = self.settings["kl_warmup_epochs"]
        self.warming_up = epoch < warmup
        share = epoch / warmup if self.warming_up else 1.0
        self.kl_weight.fill_(self.settings["kl_weight"] * share)

    def posterior(self, embedding: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z | s), [B, D] each, in float32."""
        mean, raw = self.inference(embedding).float().chunk(2, dim=1)
        log_variance = self.low + (self.high - self.low) * torch.sigmoid(raw)
        if not self.settings["feature_wise"]:
            log_variance = log_variance.mean(1, keepdim=True).expand_as(mean)
        return mean, log_variance

    def forward(self, view: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s = self.backbone(view)
        return s.float(), *self.posterior(s)

    def elbo_terms(self, mean: Tensor, log_variance: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The terms of losses.vje_loss, mean over batch and samples of z; all [B, D]."""
        if self.warming_up:
            z = mean
        else:
            samples = self.settings["samples"]
            mean, log_variance, target = (
                tensor.repeat(samples, 1) for tensor in (mean, log_variance, target)
            )  # each [S B, D]
            z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        options = {name: self.settings[name] for name in (*LIKELIHOOD, "prior_variance")}
        return losses.vje_loss(
            target,
            mean,
            log_variance,
            z,
            radial_scale=self.log_radial_scale.exp(),
            radial_weight=self.settings["radial_weight"],
            kl_weight=self.kl_weight,
            **options,
        )

    def loss(self, views: list[Tensor]) -> dict[str, Tensor]:
        s, mean, log_variance = zip(*forward_by_size(self, views), strict=True)  # V x [B, D]
        target = [part.detach() for part in s] if self.settings["stop_gradient"] else s
        pairs = [
            self.elbo_terms(mean[i], log_variance[i], target[j]) for i, j in view_pairs(len(views))
        ]
        terms = {}
        for name in pairs[0]:
            values = torch.stack([pair[name] for pair in pairs])
            terms[name] = values.mean() / self.dimension
        with torch.no_grad():
            length = s[0].norm(dim=1)
            logged = {
                "cosine": agreement(mean[0], s[1]),
                "spread": spread(s[0]),
                "variance": log_variance[0].exp().mean(),
                "log_variance_spread": log_variance[0].std(1).mean(),
                "norm": length.mean(),
                "norm_spread": length.std() / length.mean(),
            }
        return watched(terms) | logged

    def embed(self, images: Tensor) -> Embedding:
        s = self.backbone(images).float()
        mean, log_variance = self.posterior(s)
        parts = self._parts(mean, log_variance, s)
        native = {name: parts[name] for name in ("log_variance", "negative_log_likelihood")}
        return Embedding(s, parts["log_variance"], native)

    @torch.no_grad()
    def uncertainties(self, images: Tensor, samples: int = 64) -> Embedding:
        """As ``embed``, with every part of what the model says of an image's own embedding.

        With z at the posterior's mean, higher = less likely:

        - directional -log p(u | m/|m|, v), radial -log p(r | |m|), and their sum
          negative_log_likelihood; kl KL( q(z | s) || p(z) ); likelihood_and_kl, the sum of all.
        - other_view: negative_log_likelihood of the mirrored image's embedding, given this one's.
        - density_likelihood: negative_log_likelihood + (D - 1) log r, of the embedding itself,
          where direction and length are densities over sphere and radius; under "euclidean"
          negative_log_likelihood is that already.

        Training maximises the bound with z drawn from q: averaged_likelihood is
        -E_q log p(u, r | z), a mean over ``samples`` z from the same noise for all images;
        negative_bound adds the KL, both with weight 1, unlike the loss.
        """
        s = self.backbone(images).float()
        mirrored = self.backbone(images.flip(-1)).float()
        mean, log_variance = self.posterior(s)
        native = self._parts(mean, log_variance, s)
        averaged = self._averaged_likelihood(mean, log_variance, s, samples)
        likelihood = native["negative_log_likelihood"]
        density = likelihood
        if self.settings["likelihood"] != "euclidean":
            density = likelihood + (self.dimension - 1) * s.norm(dim=1).log()
        of_mirrored = self._parts(mean, log_variance, mirrored)
        native["other_view"] = of_mirrored["negative_log_likelihood"]
        native["averaged_likelihood"] = averaged
        native["negative_bound"] = averaged + native["kl"]
        native["density_likelihood"] = density
        return Embedding(s, native["log_variance"], native)

    def _averaged_likelihood(
        self, mean: Tensor, log_variance: Tensor, target: Tensor, samples: int
    ) -> Tensor:
        """-E_q log p(target | z), [B], over ``samples`` z."""
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(samples, self.dimension, generator=generator).to(mean)
        log_likelihoods = []
        for sample in noise:
            z = mean + (log_variance / 2).exp() * sample
            directional, radial = self._log_p(target, z, log_variance)
            log_likelihoods.append(directional + radial)
        return -torch.stack(log_likelihoods).mean(0)

    def _parts(self, mean: Tensor, log_variance: Tensor, target: Tensor) -> dict[str, Tensor]:
        """What a posterior says of targets, [B] each; all arguments [B, D]."""
        log_directional, log_radial = self._log_p(target, mean, log_variance)
        kl = losses.kl_to_prior(mean, log_variance, self.settings["prior_variance"])
        likelihood = -log_directional - log_radial
        return {
            "log_variance": log_variance.mean(1),
            "directional": -log_directional,
            "radial": -log_radial,
            "negative_log_likelihood": likelihood,
            "kl": kl,
            "likelihood_and_kl": likelihood + kl,
        }

    def _log_p(self, target: Tensor, latent: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
        options = {name: self.settings[name] for name in LIKELIHOOD}
        scale = self.log_radial_scale.exp()
        return losses.vje_likelihood(target, latent, log_variance, radial_scale=scale, **options)
