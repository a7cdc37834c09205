"""Models whose truth is known: Power Spherical posteriors, and a linear-Gaussian SimVAE.

The first tests whether κ is recovered: posteriors of drawn concentration, of which a loss sees
samples only. The second is SimVAE's model where evidence and posterior have closed forms. With it
come the claims about predictive objectives that can be computed: Eq. 3, 4 and 5.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy import special
from torch import Tensor, nn
from torch.distributions import MultivariateNormal, Normal
from torch.nn import functional as F

from lib import losses, networks
from lib.distributions import PowerSpherical, concentration_of

COSINES = (0.05, 0.95)  # mean cosines between which log κ is uniform
LATENTS = 4  # of the views that InfoNCE compares
EPOCHS = 30  # of learning from posteriors
DIMENSIONS = (16, 128)  # of posteriors
TESTED = 2000  # posteriors of each dimension, of another seed than those to learn from
OBJECTIVES = ("prior", "prior + entropy", "prior + reconstruction")  # of LinearGaussian.objective


# --------------------------------------------------------------- posteriors of known concentration
@dataclass
class Posteriors:
    """N posteriors PS(location, concentration), V samples that are seen of each, and a target.

    The target is one more sample, which is to be predicted.
    """

    location: Tensor  # [N, D]
    concentration: Tensor  # [N]
    views: Tensor  # [N, V, D]
    target: Tensor  # [N, D]


def draw_posteriors(count: int, dimension: int, views: int = 4, seed: int = 0) -> Posteriors:
    """Locations uniform on the sphere, log κ uniform between the mean cosines COSINES."""
    low, high = _log_concentration_range(dimension)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        location = F.normalize(torch.randn(count, dimension, dtype=torch.float64), dim=1)
        concentration = torch.exp(low + (high - low) * torch.rand(count, dtype=torch.float64))
        samples = PowerSpherical(location, concentration).rsample((views + 1,))  # [V + 1, N, D]
    samples = samples.transpose(0, 1).float()
    return Posteriors(
        location=location.float(),
        concentration=concentration.float(),
        views=samples[:, :-1],
        target=samples[:, -1],
    )


def _log_concentration_range(dimension: int) -> tuple[float, float]:
    """The smallest and the largest log κ that are drawn."""
    low, high = COSINES
    return (
        math.log(concentration_of(low, dimension)),
        math.log(concentration_of(high, dimension)),
    )


def cosines(posteriors: Posteriors) -> Tensor:
    """Cosine of every view with the location, [N, V]: given the location, sufficient for κ."""
    return torch.einsum("nvd,nd->nv", posteriors.views, posteriors.location)


def bayes_log_concentration(posteriors: Posteriors) -> np.ndarray:
    """E[log κ | views, location] [N], under the prior from which κ was drawn.

    No estimate of log κ has a lower mean squared error. The likelihood of V cosines t is
    C(κ)^V exp(κ Σ log(1 + t)) up to a factor without κ. So the estimate is a rising function of
    Σ log(1 + t), and no function of the views ranks the concentrations better on average.
    Integrated on 400 values of log κ.
    """
    t = cosines(posteriors).double().numpy()
    dimension = posteriors.location.shape[1]
    low, high = _log_concentration_range(dimension)
    log_kappa = np.linspace(low, high, 400)
    kappa = np.exp(log_kappa)
    beta = (dimension - 1) / 2
    # log C(κ) up to a constant: -[(2β + κ) log 2 + log Γ(β + κ) - log Γ(2β + κ)]
    log_c = -(
        kappa * math.log(2) + special.gammaln(beta + kappa) - special.gammaln(2 * beta + kappa)
    )
    log_weight = t.shape[1] * log_c + np.log1p(t).sum(1)[:, None] * kappa  # [N, 400]
    log_weight[:, [0, -1]] -= math.log(2)  # the trapezoidal rule
    return special.softmax(log_weight, axis=1) @ log_kappa


def learn_concentration(posteriors: Posteriors, epochs: int = EPOCHS) -> Callable[[Tensor], Tensor]:
    """Learn κ from the views by VI-SimSiam's loss: a function of cosines [N, V] with values κ [N].

    The true κ is not used, and the location is given, so that κ is all there is to learn. An MLP of
    two hidden layers on log(1 + t) minimises ``-log PS(target; location, κ) / (D - 1)`` by Adam
    with a cosine schedule.

    Example:
        estimate = learn_concentration(draw_posteriors(3000, 16, seed=0))
        kappa = estimate(cosines(draw_posteriors(3000, 16, seed=1)))
    """
    dimension = posteriors.location.shape[1]

    def loss(output: Tensor, location: Tensor, target: Tensor) -> Tensor:
        kappa = networks.to_concentration(output[:, 0], dimension)
        return losses.vi_simsiam_loss(location, kappa, target) / (dimension - 1)

    def start(last_layer: nn.Linear) -> None:
        networks.start_at_cosine(last_layer, dimension, 0.15, "natural")

    network = _learn(posteriors, 1, loss, epochs, start)
    return lambda t: networks.to_concentration(network(t)[:, 0], dimension)


def learn_spread(posteriors: Posteriors, method: str) -> Callable[[Tensor], Tensor]:
    """Learn the log of the spread by the loss of a method without κ: cosines [N, V] -> [N].

    The mean is a location, a in 0..1 being a second output of the network. Methods:

    - "prosmin": half the energy score (λ = ½, β = 1) of four samples of N(a location, σ² I) for the
      target; log σ.
    - "vje": the bound for the target at length sqrt(D), where the prior expects it, with
      q = N(sqrt(D) a location, v I); log v.
    """
    length = math.sqrt(posteriors.location.shape[1])

    def loss(output: Tensor, location: Tensor, target: Tensor) -> Tensor:
        mean = output[:, :1].sigmoid() * location  # [B, D]
        log_spread = output[:, 1:].clamp(-12, 6).expand_as(location)
        if method == "prosmin":
            samples = mean + log_spread.exp() * torch.randn(4, *mean.shape)  # [4, B, D]
            return losses.scoring_rule(samples, target).mean()
        mean = length * mean
        sample = mean + (log_spread / 2).exp() * torch.randn_like(mean)
        return losses.vje_loss(length * target, mean, log_spread, sample)["loss"]

    network = _learn(posteriors, 2, loss, EPOCHS)
    return lambda t: network(t)[:, 1]


def recover_concentrations(count: int) -> pd.DataFrame:
    """What the losses estimate of known concentrations, of TESTED posteriors of each of DIMENSIONS.

    count: other posteriors to learn from. One row a tested posterior: dimension, kappa (the truth),
    vi_simsiam and bayes (κ by the loss, and exp of the posterior mean of log κ, the ceiling),
    prosmin and vje (minus the log of their spread: it rises with κ, and only its order can be
    compared).
    """
    frames = []
    for dimension in DIMENSIONS:
        train = draw_posteriors(count, dimension, seed=0)
        test = draw_posteriors(TESTED, dimension, seed=1)
        t = cosines(test)
        estimates = {"vi_simsiam": learn_concentration(train)(t)}
        for method in ("prosmin", "vje"):
            estimates[method] = -learn_spread(train, method)(t)
        frame = pd.DataFrame({"dimension": dimension, "kappa": test.concentration.numpy()})
        frame["bayes"] = np.exp(bayes_log_concentration(test))
        for method, values in estimates.items():
            frame[method] = values.numpy(force=True)
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


@torch.enable_grad()
def _learn(
    posteriors: Posteriors,
    outputs: int,
    loss: Callable[..., Tensor],
    epochs: int,
    start: Callable[[nn.Linear], None] | None = None,
) -> Callable[[Tensor], Tensor]:
    """A network of cosines [B, V] -> [B, outputs] that minimises loss(output, location, target).

    start: sets the initial weights of its last layer.
    """
    batch_size = 256
    t = cosines(posteriors)
    mean = torch.log1p(t).mean()
    scale = torch.log1p(t).std()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = nn.Sequential(
            nn.Linear(t.shape[1], 64),
            nn.ReLU(),
            nn.Linear(64, 64),
            nn.ReLU(),
            nn.Linear(64, outputs),
        )
        if start is not None:
            start(layers[-1])

        def network(t: Tensor) -> Tensor:
            return layers((torch.log1p(t) - mean) / scale)

        optimizer = torch.optim.Adam(layers.parameters(), lr=3e-3)
        steps = epochs * math.ceil(len(t) / batch_size)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(epochs):
            for rows in torch.randperm(len(t)).split(batch_size):
                value = loss(network(t[rows]), posteriors.location[rows], posteriors.target[rows])
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                schedule.step()
    return network


# -------------------------------------------------------------------- the energy score's deviation
def dispersions(
    powers: tuple[float, ...] = (0.5, 1.0, 1.5),
    weights: tuple[float, ...] = (0.4545, 0.5, 0.6, 0.8),
) -> pd.DataFrame:
    """The best predicted deviation over the target's, for a Gaussian with the right mean.

    One row for each power β and weight λ (trade_off) of the energy score. Columns: beta,
    trade_off, ratio, kind, critical (the λ at and below which there is no best deviation). Kinds:

    - "closed form": losses.best_dispersion, λ from its critical value to 0.9
    - "minimum": of the loss itself over common random samples in 8 dimensions and 187 deviations
      3.4 % apart, for the ``weights`` above the critical one.
    """
    ratios = np.geomspace(0.02, 10, 187)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 4000, 8, generator=generator)  # samples of deviation 1
    target = torch.randn(4000, 8, generator=generator)
    rows = []
    for beta in powers:
        critical = losses.critical_trade_off(beta)
        common = {"beta": beta, "critical": critical}
        for weight in np.linspace(critical + 0.004, 0.9, 200):
            ratio = losses.best_dispersion(weight, beta)
            rows.append(common | {"trade_off": weight, "ratio": ratio, "kind": "closed form"})
        for weight in weights:
            if weight <= critical + 0.01:
                continue
            scores = []
            for ratio in ratios:
                score = losses.scoring_rule(float(ratio) * noise, target, weight, beta)
                scores.append(score.mean().item())
            best = ratios[np.argmin(scores)]
            rows.append(common | {"trade_off": weight, "ratio": best, "kind": "minimum"})
    return pd.DataFrame(rows)[["beta", "trade_off", "ratio", "kind", "critical"]]


# ------------------------------------------------------------------------ views that share a mean
class LinearGaussian:
    """SimVAE's model (§3, Figure 1) where all is Gaussian and linear, in float64.

    ψ ~ N(0, γ² I), z_j ~ N(ψ, σ² I), x_j ~ N(W z_j, v I), with γ² = gamma2, σ² = sigma2, v = noise.

    - ``z`` [J, B, L] and ``x`` [J, B, D]: latents and images of B images in J views, drawn from
      the model
    - ``mean`` and ``log_variance`` [J, B, L]: a diagonal q(z_j | x_j). It is not fitted: its means
      are draws of N(0, I) whatever x is.

    Evidence and posterior follow from conditioning Gaussians, with the views stacked.
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

        self.views = views
        self.latents = latents
        self.gamma2 = gamma2
        self.sigma2 = sigma2
        self.noise = noise
        self.w = draw(pixels, latents)
        psi = math.sqrt(gamma2) * draw(images, latents)
        self.z = psi + math.sqrt(sigma2) * draw(views, images, latents)
        self.x = self.z @ self.w.T + math.sqrt(noise) * draw(views, images, pixels)
        self.mean = draw(views, images, latents)
        self.log_variance = draw(views, images, latents) / 2 - 1
        between_views = gamma2 * torch.ones(views, views, dtype=torch.float64)
        between_views += sigma2 * _identity(views)
        self.prior = torch.kron(between_views, _identity(latents))  # covariance [J L, J L]
        self.stacked_w = torch.kron(_identity(views), self.w)  # [J D, J L]
        self.stacked_x = _stacked(self.x)  # [B, J D]

    def evidence(self) -> Tensor:
        """log p(x_1 .. x_J), [B]."""
        covariance = self.stacked_w @ self.prior @ self.stacked_w.T
        covariance = covariance + self.noise * _identity(len(self.stacked_w))
        model = MultivariateNormal(torch.zeros_like(self.stacked_x), covariance)
        return model.log_prob(self.stacked_x)

    def posterior(self) -> MultivariateNormal:
        """p(z_1 .. z_J | x_1 .. x_J), over [B, J L]."""
        precision = torch.linalg.inv(self.prior) + self.stacked_w.T @ self.stacked_w / self.noise
        mean = self.stacked_x @ self.stacked_w / self.noise @ torch.linalg.inv(precision)
        return MultivariateNormal(mean, precision_matrix=precision)

    def approximate(self) -> MultivariateNormal:
        """q(z_1 | x_1) .. q(z_J | x_J), over [B, J L]."""
        covariance = torch.diag_embed(_stacked(self.log_variance.exp()))
        return MultivariateNormal(_stacked(self.mean), covariance)

    def expected_loss(self, **options) -> dict[str, Tensor]:
        """E_q of losses.simvae_loss and of its terms, exact; options: further arguments of it.

        The terms are quadratic in z, so the mean over ± sqrt(n) standard deviations along each of
        the n = J L axes is their expectation.
        """
        options = {"variance": self.noise, "prior_variance": self.sigma2} | options
        count = self.views * self.latents
        axes = math.sqrt(count) * _identity(count)
        samples = []
        for direction in torch.cat([axes, -axes]):
            deviation = (self.log_variance / 2).exp() * direction.view(self.views, 1, self.latents)
            z = self.mean + deviation
            reconstruction = z @ self.w.T
            samples.append(
                losses.simvae_loss(
                    reconstruction, self.x, self.mean, self.log_variance, z, **options
                )
            )
        expectation = {}
        for name in samples[0]:
            expectation[name] = torch.stack([terms[name] for terms in samples]).mean()
        return expectation

    def objective(self, name: str, z: Tensor) -> Tensor:
        """Eq. 3 for latents z [J, B, L]: terms of OBJECTIVES, up to a constant.

        - prior: log s(z_1 .. z_J) with a flat ψ
        - entropy: ``- Σ log Σ_i exp(- |z - z̄_i|² / 2σ²)``, over all latents and images i. With the
          prior it is Σ log p(y | z), which has no finite optimum: it rises as images move apart.
        - reconstruction: Σ log p(x | z). With the prior it is concave and has one optimum.
        """
        prior = losses.log_shared_mean(z, self.sigma2).sum()
        if name == "prior + entropy":
            distances = (z[:, :, None] - z.mean(0)).square().sum(3)  # [J, B, B]
            return prior - torch.logsumexp(-distances / (2 * self.sigma2), 2).sum()
        if name == "prior + reconstruction":
            return prior - (self.x - z @ self.w.T).square().sum() / (2 * self.noise)
        return prior

    def gradient_ascent(self, name: str, start: Tensor, steps: int, rate: float) -> Tensor:
        """The latents [J, B, L] that gradient ascent on an objective reaches from ``start``."""
        z = start.clone().requires_grad_()
        ascent = torch.optim.SGD([z], lr=rate, maximize=True)
        for _ in range(steps):
            ascent.zero_grad()
            self.objective(name, z).backward()
            ascent.step()
        return z.detach()


def pulled_latents() -> pd.DataFrame:
    """Where each objective moves the latents of eight views of three images (SimVAE, Eq. 3).

    For ten models the latents start where the images were made from, and move by gradient ascent:
    1,000 steps at a rate of 0.02. One row a latent: draw, objective ("drawn": the start), image,
    view, z1, z2.
    """
    frames = []
    for draw in range(10):
        model = LinearGaussian(8, seed=draw)
        latents = {"drawn": model.z}
        for objective in OBJECTIVES:
            latents[objective] = model.gradient_ascent(objective, model.z, steps=1000, rate=0.02)
        for objective, z in latents.items():
            views, images, _ = z.shape
            frame = pd.DataFrame(z.flatten(0, 1).numpy(), columns=["z1", "z2"])
            frame.insert(0, "view", np.repeat(np.arange(views), images))
            frame.insert(0, "image", np.tile(np.arange(images), views))
            frame.insert(0, "objective", objective)
            frame.insert(0, "draw", draw)
            frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def pulls(latents: pd.DataFrame) -> pd.DataFrame:
    """Spread of ``pulled_latents`` by objective, mean over draws, images and coordinates.

    Columns: objective; within, the variance among views of an image, of which the model expects
    σ² (1 - 1/J); between, the variance among the means of images.
    """
    coordinates = ["z1", "z2"]
    rows = []
    for objective, part in latents.groupby("objective", sort=False):
        by_image = part.groupby(["draw", "image"])[coordinates]
        centres = by_image.mean()
        within = by_image.var(ddof=0).to_numpy().mean()
        between = centres.groupby("draw").var(ddof=0).to_numpy().mean()
        rows.append({"objective": objective, "within": within, "between": between})
    return pd.DataFrame(rows)


# ------------------------------------------------------------------- discrimination and similarity
def instance_discrimination(noise: float) -> dict[str, float]:
    """SimVAE's Eq. 4 on a mixture of three modes, by sums over a grid.

    z given y ~ N(m_y, 0.6²), x ~ N(z, noise²), all in one dimension. Returns noise; exact, which is
    E log p(y | x); bound, E of ∫ p(z | x) log p(y | z); and terms, the prior E log p(z | y) plus
    the entropy of p(z) plus log p(y), which equals the bound.
    """
    grid = torch.linspace(-9, 9, 1801, dtype=torch.float64)
    step = grid[1] - grid[0]
    modes = torch.tensor([-2.0, 0.3, 2.5], dtype=torch.float64)
    log_z_given_y = Normal(modes, 0.6).log_prob(grid[:, None])  # [Z, Y]
    z = log_z_given_y.exp().mean(1)  # [Z]
    x_given_z = Normal(grid, noise).log_prob(grid[:, None]).exp()  # [X, Z]
    xy = x_given_z @ log_z_given_y.exp() * step / len(modes)  # [X, Y]
    x = xy.sum(1, keepdim=True)
    z_given_x = x_given_z * z * step / x  # [X, Z], each row sums to one

    def mean(log_values: Tensor) -> float:
        return float((xy * log_values).sum() * step)

    entropy = float(-(z * z.log()).sum() * step)
    return {
        "noise": noise,
        "exact": mean((xy / x).log()),
        "bound": mean(z_given_x @ log_z_given_y.log_softmax(1)),
        "terms": mean(z_given_x @ log_z_given_y) + entropy - math.log(len(modes)),
    }


def information_between_views(sigma2: float = 0.15) -> float:
    """Mutual information in nats of two views z = ψ + σ ε with ψ ~ N(0, I): -L/2 log(1 - ρ²)."""
    return -LATENTS / 2 * math.log(1 - _correlation(sigma2) ** 2)


def _correlation(sigma2: float) -> float:
    return 1 / (1 + sigma2)


def info_nce_by_similarity(
    sigma2: float = 0.15, pairs: int = 4000, most_negatives: int = 511
) -> pd.DataFrame:
    """log(k + 1) minus InfoNCE's loss with k negatives, for Gaussian latents of two views.

    It is a lower bound of ``information_between_views``. Similarities: the exact log ratio
    log p(z, z')/(p(z) p(z')), and the dot product and the cosine, each over its best temperature of
    a grid. One row a similarity and k: similarity, negatives, nats.
    """
    generator = torch.Generator().manual_seed(0)
    rho = _correlation(sigma2)
    z = torch.randn(pairs, 1, LATENTS, generator=generator)  # of variance 1
    noise = torch.randn(pairs, 1, LATENTS, generator=generator)
    negatives = torch.randn(pairs, most_negatives, LATENTS, generator=generator)
    candidates = torch.cat([rho * z + math.sqrt(1 - rho**2) * noise, negatives], 1)  # [B, k+1, L]
    dot = (z * candidates).sum(2)
    lengths = (z.square() + candidates.square()).sum(2)
    similarities = {
        "exact ratio": (2 * rho * dot - rho**2 * lengths) / (2 * (1 - rho**2)),
        "dot product": dot,
        "cosine": torch.cosine_similarity(z, candidates, dim=2),
    }
    rows = []
    for name, values in similarities.items():
        scales = [1.0] if name == "exact ratio" else np.geomspace(0.3, 30, 25)
        for count in 2 ** np.arange(1, int(math.log2(most_negatives + 1)) + 1):
            nats = [_info_nce_bound(float(scale) * values[:, :count]) for scale in scales]
            rows.append({"similarity": name, "negatives": count - 1, "nats": max(nats)})
    return pd.DataFrame(rows)


def _info_nce_bound(scores: Tensor) -> float:
    """log(k + 1) minus the loss, from scores [B, k + 1] with those of the positives first."""
    log_share = scores[:, 0] - scores.logsumexp(1)
    return math.log(scores.shape[1]) + float(log_share.mean())


def _identity(size: int) -> Tensor:
    return torch.eye(size, dtype=torch.float64)


def _stacked(values: Tensor) -> Tensor:
    """Values [J, B, K] of J views as [B, J K]."""
    return values.movedim(0, 1).flatten(1)
