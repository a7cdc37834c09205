"""Models whose truth is known: Power Spherical posteriors of drawn concentration, and a linear-Gaussian model of views with its evidence."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import special
from torch import Tensor, nn
from torch.distributions import MultivariateNormal
from torch.nn import functional as F

from lib import losses, networks
from lib.distributions import PowerSpherical, concentration_of

COSINES = (0.05, 0.95)  # mean cosines between which log κ is uniform


class Posteriors(NamedTuple):
    """N things, each with a posterior PS(location, concentration), the samples that are seen of it and one more that is to be predicted."""

    location: Tensor  # [N, D]
    concentration: Tensor  # [N]
    views: Tensor  # [N, V, D]
    target: Tensor  # [N, D]


def draw_posteriors(count: int, dimension: int, views: int = 4, seed: int = 0) -> Posteriors:
    """Locations uniform on the sphere, log κ uniform between the mean cosines 0.05 and 0.95, ``views`` samples of each posterior and a target."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        location = F.normalize(torch.randn(count, dimension, dtype=torch.float64), dim=1)
        low, high = (math.log(concentration_of(cosine, dimension)) for cosine in COSINES)
        concentration = torch.exp(low + (high - low) * torch.rand(count, dtype=torch.float64))
        samples = (
            PowerSpherical(location, concentration).rsample((views + 1,)).transpose(0, 1)
        )  # [N, V + 1, D]
    return Posteriors(
        location.float(), concentration.float(), samples[:, :-1].float(), samples[:, -1].float()
    )


def cosines(posteriors: Posteriors) -> Tensor:
    """Cosine of every view with the location, [N, V]: all that the views say of κ once the location is known."""
    return torch.einsum("nvd,nd->nv", posteriors.views, posteriors.location)


def bayes_log_concentration(posteriors: Posteriors, grid: int = 400) -> np.ndarray:
    """E[log κ | views, location] under the prior that κ was drawn from, [N]: no estimate of log κ has a smaller mean squared error.

    The likelihood of V cosines t is C(κ)^V exp(κ Σ log(1 + t)) up to a factor without κ, so the estimate is a rising function of Σ log(1 + t),
    and no function of the views ranks the concentrations better on average. Integrated on ``grid`` values of log κ.
    """
    t, dimension = cosines(posteriors).double().numpy(), posteriors.location.shape[1]
    low, high = (math.log(concentration_of(cosine, dimension)) for cosine in COSINES)
    log_kappa = np.linspace(low, high, grid)
    kappa, beta = np.exp(log_kappa), (dimension - 1) / 2
    # log C(κ) but for a constant: -[(2β + κ) log 2 + log Γ(β + κ) - log Γ(2β + κ)]
    log_c = -(
        kappa * math.log(2) + special.gammaln(beta + kappa) - special.gammaln(2 * beta + kappa)
    )
    log_weight = t.shape[1] * log_c + np.log1p(t).sum(1)[:, None] * kappa  # [N, G]
    log_weight[:, [0, -1]] -= math.log(2)  # the trapezoidal rule
    return special.softmax(log_weight, axis=1) @ log_kappa


def learn_concentration(posteriors: Posteriors, epochs: int = 30) -> Callable[[Tensor], Tensor]:
    """Learns κ from the views by VI-SimSiam's loss alone: a function of cosines [N, V], κ [N]; the true κ is never seen.

    The location is given, so that what is learned, and what can be learned, is the concentration: an MLP of two hidden layers on log(1 + t),
    ``to_concentration``, and ``-log PS(target; location, κ)/(D - 1)``, minimised by Adam with a cosine schedule.
    """
    dimension = posteriors.location.shape[1]

    def loss(raw: Tensor, location: Tensor, target: Tensor) -> Tensor:
        return losses.vi_simsiam_loss(
            location, networks.to_concentration(raw[:, 0], dimension), target
        ) / (dimension - 1)

    network = _learn(
        posteriors,
        1,
        loss,
        epochs,
        lambda last: networks.start_at_cosine(last, dimension, 0.15, "natural"),
    )
    return lambda t: networks.to_concentration(network(t)[:, 0], dimension)


def learn_spread(
    posteriors: Posteriors, method: str, epochs: int = 30
) -> Callable[[Tensor], Tensor]:
    """The same for the losses of "prosmin" and "vje", which have no κ: a function of cosines [N, V], the logarithm of their spread [N].

    A second output scales the given location to the mean. prosmin: half the energy score (λ = ½, β = 1) of four samples of N(a location, σ² I) for
    the target; log σ. vje: the bound for the target at length sqrt(D), where the prior expects it, with q = N(sqrt(D) a location, v I); log v.
    ValueError for another method.
    """
    if method not in ("prosmin", "vje"):
        raise ValueError(
            f"No loss of {method!r} is put to known posteriors; choose prosmin or vje."
        )
    length = math.sqrt(posteriors.location.shape[1])

    def loss(raw: Tensor, location: Tensor, target: Tensor) -> Tensor:
        mean, log_spread = (
            raw[:, :1].sigmoid() * location,
            raw[:, 1:].clamp(-12, 6).expand_as(location),
        )  # [B, D]
        if method == "prosmin":
            samples = mean + log_spread.exp() * torch.randn(4, *mean.shape)  # [R, B, D]
            return losses.scoring_rule(samples, target).mean()
        sample = length * mean + (log_spread / 2).exp() * torch.randn_like(mean)
        return losses.vje_loss(length * target, length * mean, log_spread, sample)["loss"]

    network = _learn(posteriors, 2, loss, epochs)
    return lambda t: network(t)[:, 1]


def dispersions(
    powers: tuple[float, ...] = (0.5, 1.0, 1.5),
    weights: tuple[float, ...] = (0.4545, 0.5, 0.6, 0.8),
) -> pd.DataFrame:
    """The best predicted deviation over the target's, by the weight λ (trade_off) of the energy score and its power β, for a right mean.

    Rows of kind "closed form" (losses.best_dispersion, λ from its critical value to 0.9) and, where λ is above it, "minimum": of the loss itself
    over common random samples and 187 deviations, 3.4 % apart. Columns: beta, trade_off, ratio, kind, critical.
    """
    grid, rows, generator = np.geomspace(0.02, 10, 187), [], torch.Generator().manual_seed(0)
    noise, target = (
        torch.randn(*shape, 8, generator=generator) for shape in ((4, 4000), (4000,))
    )  # samples and targets, drawn once
    for beta in powers:
        critical = losses.critical_trade_off(beta)
        for weight in np.linspace(critical + 0.004, 0.9, 200):
            rows.append(
                (beta, weight, losses.best_dispersion(weight, beta), "closed form", critical)
            )
        for weight in [weight for weight in weights if weight > critical + 0.01]:
            scores = [
                losses.scoring_rule(float(ratio) * noise, target, weight, beta).mean().item()
                for ratio in grid
            ]
            rows.append((beta, weight, grid[np.argmin(scores)], "minimum", critical))
    return pd.DataFrame(rows, columns=["beta", "trade_off", "ratio", "kind", "critical"])


@torch.enable_grad()
def _learn(
    posteriors: Posteriors,
    outputs: int,
    loss: Callable[..., Tensor],
    epochs: int,
    start: Callable[[nn.Linear], None] = lambda layer: None,
) -> Callable[[Tensor], Tensor]:
    """A network of cosines [B, V] -> [B, outputs] that minimises loss(its output, location, target); start: what its last layer begins with."""
    batch_size = 256
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        t = cosines(posteriors)
        mean, scale = torch.log1p(t).mean(), torch.log1p(t).std()
        layers = nn.Sequential(
            nn.Linear(t.shape[1], 64),
            nn.ReLU(),
            nn.Linear(64, 64),
            nn.ReLU(),
            nn.Linear(64, outputs),
        )
        start(layers[-1])

        def network(t: Tensor) -> Tensor:
            return layers((torch.log1p(t) - mean) / scale)  # [B, outputs]

        optimizer = torch.optim.Adam(layers.parameters(), lr=3e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            optimizer, epochs * -(-len(t) // batch_size)
        )
        for _ in range(epochs):
            for rows in torch.randperm(len(t)).split(batch_size):
                value = loss(network(t[rows]), posteriors.location[rows], posteriors.target[rows])
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                schedule.step()
    return network


# ---------------------------------------------------------------------------------------------------------------- views that share a mean
OBJECTIVES = ("prior", "prior + entropy", "prior + reconstruction")  # of free latents


class LinearGaussian:
    """SimVAE's model (§3, Figure 1) where all is Gaussian and linear: ψ ~ N(0, γ² I), z_j ~ N(ψ, σ² I), x_j ~ N(W z_j, v I), in float64.

    ``z`` [J, B, L] and ``x`` [J, B, D] are the latents and images of B images in J views, drawn from the model; ``mean`` and ``log_variance``
    [J, B, L] any diagonal q(z_j | x_j), not fitted: its means are draws of N(0, I) whatever x is. Evidence and posterior follow from conditioning
    Gaussians, with the views stacked.
    """

    def __init__(
        self,
        views: int,
        latents: int = 2,
        pixels: int = 5,
        images: int = 3,
        gamma2: float = 0.7,
        sigma2: float = 0.15,
        noise: float = 0.3,
        seed: int = 7,
    ):
        generator = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.views, self.latents, self.gamma2, self.sigma2, self.noise = (
            views,
            latents,
            gamma2,
            sigma2,
            noise,
        )
        self.w = draw(pixels, latents)
        self.z = math.sqrt(gamma2) * draw(images, latents) + math.sqrt(sigma2) * draw(
            views, images, latents
        )
        self.x = self.z @ self.w.T + math.sqrt(noise) * draw(views, images, pixels)
        self.mean, self.log_variance = (
            draw(views, images, latents),
            draw(views, images, latents) / 2 - 1,
        )
        together = gamma2 * torch.ones(views, views, dtype=torch.float64) + sigma2 * torch.eye(
            views, dtype=torch.float64
        )
        self.prior = torch.kron(together, torch.eye(latents, dtype=torch.float64))  # [J L, J L]
        self.stacked_w = torch.kron(torch.eye(views, dtype=torch.float64), self.w)  # [J D, J L]
        self.stacked_x = self.x.movedim(0, 1).flatten(1)  # [B, J D]

    def evidence(self) -> Tensor:
        """log p(x_1 .. x_J), [B]."""
        covariance = self.stacked_w @ self.prior @ self.stacked_w.T + self.noise * torch.eye(
            len(self.stacked_w), dtype=torch.float64
        )
        return MultivariateNormal(torch.zeros_like(self.stacked_x), covariance).log_prob(
            self.stacked_x
        )

    def posterior(self) -> MultivariateNormal:
        """p(z_1 .. z_J | x_1 .. x_J), over [B, J L]."""
        precision = torch.linalg.inv(self.prior) + self.stacked_w.T @ self.stacked_w / self.noise
        return MultivariateNormal(
            self.stacked_x @ self.stacked_w / self.noise @ torch.linalg.inv(precision),
            precision_matrix=precision,
        )

    def approximate(self) -> MultivariateNormal:
        """q(z_1 | x_1) .. q(z_J | x_J), over [B, J L]."""
        variance = self.log_variance.exp().movedim(0, 1).flatten(1)
        return MultivariateNormal(self.mean.movedim(0, 1).flatten(1), torch.diag_embed(variance))

    def expected_loss(self, **options) -> dict[str, Tensor]:
        """E_q of losses.simvae_loss and of its terms, exact.

        The terms are quadratic in z, so the mean over ± sqrt(n) standard deviations along each of the n = J L axes is their expectation.
        """
        count = self.views * self.latents
        axes = math.sqrt(count) * torch.eye(count, dtype=torch.float64)
        samples = [
            self.mean + (self.log_variance / 2).exp() * d.view(self.views, 1, self.latents)
            for d in torch.cat([axes, -axes])
        ]
        options = {"variance": self.noise, "prior_variance": self.sigma2} | options
        terms = [
            losses.simvae_loss(z @ self.w.T, self.x, self.mean, self.log_variance, z, **options)
            for z in samples
        ]
        return {name: torch.stack([term[name] for term in terms]).mean() for name in terms[0]}

    def objective(self, name: str, z: Tensor) -> Tensor:
        """Eq. 3 for latents z [J, B, L]: the prior with a flat ψ, and beside it what the name of OBJECTIVES says, up to a constant.

        The entropy is ``- Σ log Σ_i exp(- |z - z̄_i|² / 2σ²)``, over all latents and images i. With the prior it is Σ log p(y | z), which has no
        finite optimum: it rises as the images move apart. With the reconstruction the objective is concave, with one optimum. ValueError for
        another name.
        """
        if name not in OBJECTIVES:
            raise ValueError(f"Unknown objective {name!r}; choose one of {OBJECTIVES}.")
        value = losses.log_shared_mean(z, self.sigma2).sum()
        if name == "prior + entropy":
            value = (
                value
                - torch.logsumexp(
                    -(z[:, :, None] - z.mean(0)).square().sum(3) / (2 * self.sigma2), 2
                ).sum()
            )
        if name == "prior + reconstruction":
            value = value - (self.x - z @ self.w.T).square().sum() / (2 * self.noise)
        return value

    def pulled(self, name: str, start: Tensor, steps: int, rate: float) -> Tensor:
        """The latents [J, B, L] to which gradient ascent on an objective moves those of ``start``."""
        z = start.clone().requires_grad_()
        ascent = torch.optim.SGD([z], lr=rate, maximize=True)
        for _ in range(steps):
            ascent.zero_grad()
            self.objective(name, z).backward()
            ascent.step()
        return z.detach()
