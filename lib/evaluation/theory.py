"""Self-supervised objectives as variational inference: J_align, J_uniform and J_KL of each method, and the product of experts behind them.

A latent z of an image is read twice: q(z | x_i) from the target network's output for view i, p(z | x_j) from the online network's output for
view j. With a prior p(z) these give the terms of VI-SimSiam 2023 (ICCV), Eq. 10 to 17; which distributions make which method is its Table 1,
here ``READINGS``. The terms are differentiable, detach nothing, and keep the floating type of their arguments.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd
import scipy
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution
from torch.nn import functional as F

from lib import methods, training
from lib.data import sources as data
from lib.data import views as augmentations
from lib.distributions import HypersphericalUniform, PowerSpherical, VonMisesFisher, mean_cosine
from lib.evaluation.uncertainty import UndefinedStatistic, effective_rank
from lib.methods.base import agreement, forward_by_size, spread, view_pairs


class PointMass(NamedTuple):
    """The deterministic q(z | x) = δ(z - f(x)) of a batch: ``value`` f(x) [B, D]."""

    value: Tensor


# ---------------------------------------------------------------------------------------------------------------- Table 1
def point_mass(output: Tensor) -> PointMass:
    """δ(z - f / |f|) from outputs f [B, D] (Eq. 19)."""
    return PointMass(F.normalize(output, dim=-1))


def von_mises_fisher(output: Tensor, kappa: float = 1.0) -> VonMisesFisher:
    """vMF(z; g / |g|, κ) with one constant κ, from outputs g [B, D] (Eq. 20 and 21)."""
    return VonMisesFisher(F.normalize(output, dim=-1), kappa)


def power_spherical(output: Tensor, kappa: Tensor) -> PowerSpherical:
    """PS(z; g / |g|, κ) with a κ for every image, from outputs g [B, D] and κ [B] (Eq. 31 and 32)."""
    return PowerSpherical(F.normalize(output, dim=-1), kappa)


def softmax(
    output: Tensor, temperature: float | Tensor, centre: Tensor | float = 0.0
) -> Categorical:
    """Cat(z; softmax((output - c) / τ)) over the K vertices of the simplex, from outputs [B, K] (Eq. 4 and 5)."""
    return Categorical(logits=(output - centre) / temperature)


def uniform_on_vertices(output: Tensor) -> Categorical:
    """The prior of DINO's z. Deviation: Eq. 27 names the uniform of the whole simplex, to which a distribution on its vertices has no finite KL."""
    return Categorical(logits=torch.zeros_like(output[0]))


class Reading(NamedTuple):
    """A column of Table 1: how a method's outputs become distributions of z, and where the terms of the objective are."""

    prior: Callable[[Tensor], Distribution]  # from an output, for its size
    q: Callable[..., PointMass | Categorical]  # from the target network's output
    p: Callable[..., Distribution]  # from the online network's output
    align: str
    uniform: str
    kl: str


def _uniform_on_sphere(output: Tensor) -> HypersphericalUniform:
    return HypersphericalUniform(output.shape[-1], dtype=output.dtype, device=output.device)


_COSINE, _CONSTANT = "g_j · f_i (Eq. 22)", "constant"
READINGS = {
    "simsiam": Reading(
        _uniform_on_sphere,
        point_mass,
        von_mises_fisher,
        _COSINE,
        "predictor (Claim 4.4)",
        _CONSTANT,
    ),
    "directpred": Reading(
        _uniform_on_sphere,
        point_mass,
        von_mises_fisher,
        _COSINE,
        "predictor set to U sqrt(Λ) U' (Eq. 23)",
        _CONSTANT,
    ),
    "simclr": Reading(
        _uniform_on_sphere,
        point_mass,
        von_mises_fisher,
        _COSINE,
        "in the loss: denominator (Eq. 26)",
        _CONSTANT,
    ),
    "dino": Reading(
        uniform_on_vertices,
        softmax,
        softmax,
        "Σ P_i log P_j (Eq. 30)",
        "centring (Claim 4.8)",
        "sharpening (Claim 4.9)",
    ),
    "vi_simsiam": Reading(
        _uniform_on_sphere,
        point_mass,
        power_spherical,
        "log C(κ_j) + κ_j log(1 + μ_j · z_i) (Eq. 33)",
        "predictor (Claim 4.4)",
        _CONSTANT,
    ),
}


# ---------------------------------------------------------------------------------------------------------------- the three terms
def expectation(q: PointMass | Categorical, p: Distribution) -> Tensor:
    """E_{q(z | x)}[log p(z | x)] of every image [B]: log p at the point, or Σ_k q_k log p_k."""
    return (q.probs * p.logits).sum(-1) if isinstance(q, Categorical) else p.log_prob(q.value)


def j_align(q: Sequence[PointMass | Categorical], p: Sequence[Distribution]) -> Tensor:
    """Σ_{i ≠ j} E_{q(z | x_i)}[log p(z | x_j)] of every image [B], for the q and p of M views (Eq. 17 without its log η).

    Deviation: Eq. 17 as printed is M times the J_align of Eq. 11, since q is the mean of its M experts; for M = 2 all three terms here are M times
    the paper's, so that their ratio is that of Eq. 10. Pairs i = j are left out, as in §4.
    """
    return torch.stack([expectation(q[i], p[j]) for j, i in view_pairs(len(p), len(q))]).sum(0)


def marginal_log_prob(q: PointMass | Categorical, p: Distribution) -> Tensor:
    """E_{q(z | x)}[log p_D(z)] of every image [B], p_D(z) = mean over the batch of p(z | x) (Eq. 14, a single expert)."""
    batch = math.log(p.batch_shape[0])
    if isinstance(q, Categorical):
        return (q.probs * (p.logits.logsumexp(0) - batch)).sum(-1)
    z = q.value[:, None].expand(-1, p.batch_shape[0], -1)  # [B, B, D]
    return p.log_prob(z).logsumexp(1) - batch


def j_uniform(q: Sequence[PointMass | Categorical], p: Sequence[Distribution]) -> Tensor:
    """Σ_{i ≠ j} E_{q(z | x_i)}[-log p_D(z)] of every image [B], p_D the batch mean of p(z | x_j): a term for each pair of j_align, as in Eq. 26.

    For M = 2 it is M times Eq. 12, with single experts.
    """
    return torch.stack([-marginal_log_prob(q[i], p[j]) for j, i in view_pairs(len(p), len(q))]).sum(
        0
    )


def j_kl(q: Sequence[PointMass | Categorical]) -> Tensor:
    """-M KL[q(z | X) || p(z)] of every image [B] (M times Eq. 13), q the mean of its experts and p(z) uniform: M (H(q) - log K).

    For point masses it is a constant, which is minus infinity: 0 here.
    """
    if isinstance(q[0], PointMass):
        return torch.zeros_like(q[0].value[:, 0])
    mixture = Categorical(probs=torch.stack([expert.probs for expert in q]).mean(0))
    return len(q) * (mixture.entropy() - math.log(mixture.probs.shape[-1]))


# ---------------------------------------------------------------------------------------------------------------- product of experts
def product_of_experts(loc: Tensor, kappa: Tensor) -> VonMisesFisher:
    """The normalised product over M of vMF(z; μ_m, κ_m): a vMF again, whose natural parameter is Σ_m κ_m μ_m (Proposition 4.1, Eq. 15).

    loc: unit vectors [..., M, D]; kappa: [..., M]. ValueError where the experts cancel exactly, as the product then has no direction.
    """
    natural = (kappa[..., None] * loc).sum(-2)
    return VonMisesFisher(
        F.normalize(natural, dim=-1), natural.norm(dim=-1), validate_args=True
    )  # torch.compile turns the default off


def log_eta(loc: Tensor, kappa: Tensor) -> Tensor:
    """log η [...] of that product, η = 1 / ∫ Π_m vMF(z; μ_m, κ_m) dz = C(|Σ κ_m μ_m|) / Π C(κ_m): what the paper leaves out of Eq. 17."""
    product = product_of_experts(loc, kappa)
    experts = VonMisesFisher(loc, kappa)
    return product.log_prob(product.loc) - experts.log_prob(
        product.loc[..., None, :].expand_as(loc)
    ).sum(-1)


# ---------------------------------------------------------------------------------------------------------------- measures
def uniformity(z: Tensor) -> Tensor:
    """log of the mean over pairs of exp(-2 |z_a - z_b|²), z normalised (Wang & Isola 2020, §4.1.2): 0 collapsed, near -4 uniform for large D.

    z: [B, D]. At κ = 4, and with experts at z itself, it is, up to a constant, the log of the mean over z of the density that J_uniform takes the
    mean log of.
    """
    return torch.pdist(F.normalize(z, dim=-1)).square().mul(-2).exp().mean().log()


@torch.no_grad()
def predictor_gains(method: nn.Module, views: list[Tensor]) -> pd.DataFrame:
    """Eigenvalues λ of E[z z'] over two views, falling, and a predictor's gain ``E[(u_k · p)(u_k · z)] / λ_k`` along each eigenvector u_k.

    z, p: normalised projections and predictions of SimSiam, BYOL or DirectPred. A predictor set by Eq. 23 has gains proportional to sqrt(λ) before p
    is normalised, and nearly so after, as each image is normalised by its own length. Directions with λ below a thousandth of the largest are left
    out: there is nothing along them to predict from.
    """
    z, *p = (
        torch.cat(outputs).float() for outputs in zip(*forward_by_size(method, views), strict=True)
    )
    p = p[0] if p else z @ method.predictor
    z, p = F.normalize(z, dim=-1), F.normalize(p, dim=-1)
    values, vectors = torch.linalg.eigh(z.T @ z / len(z))
    gains = ((z @ vectors) * (p @ vectors)).mean(0) / values
    kept = values > 1e-3 * values[-1]
    return pd.DataFrame(
        {"eigenvalue": values[kept].flip(0).cpu(), "gain": gains[kept].flip(0).cpu()}
    )


@torch.no_grad()
def view_cosines(
    method: nn.Module,
    images: Tensor,
    strengths: dict,
    generators: Sequence[torch.Generator],
    whole: bool = True,
) -> dict[str, Tensor]:
    """Means over pairs of random views of each image, [N]: ``cosine`` of the first view's prediction with the second's projection, and ``expected``.

    expected: E[T] = κ / (D - 1 + κ) of a Power Spherical with the κ of that same first view, where the method learns κ. images: [N, C, S, S] in
    0..1; a generator for each pair. whole = False: of a network without projector and predictor, so without the cosine.
    """
    found: dict[str, Tensor] = {}
    for generator in generators:
        first, second = (
            augmentations.augment(images, images.shape[-1], strengths, generator) for _ in range(2)
        )
        one = {}
        if whole:
            _, prediction, *kappa = method(first)
            one["cosine"] = F.cosine_similarity(prediction.float(), method(second)[0].float())
        else:
            kappa = [method.embed(first).native["kappa"]]
        if kappa:
            one["expected"] = mean_cosine(kappa[0].float(), method.dimension)
        found = {name: found.get(name, 0) + value / len(generators) for name, value in one.items()}
    return found


def sphere_grid() -> tuple[Tensor, Tensor]:
    """Points [N, 3] on the sphere in three dimensions and the area [N] each stands for, by SciPy's Lebedev rule of the highest degree; float64."""
    points, area = scipy.integrate.lebedev_rule(131)
    return torch.from_numpy(points.T), torch.from_numpy(area)


def normaliser_share(dimension: int, kappa: float, cosine: Tensor) -> Tensor:
    """Gradient in the cosine c of two experts, of the ignored M log η over that of the kept terms i ≠ j [C]; targets stay at the experts' directions.

    Two vMF of one κ; ``-2 A(r) / sqrt(2 + 2 c)`` with r = κ sqrt(2 + 2 c) and A the mean resultant length, here by automatic differentiation.
    dimension >= 2; cosine: [C], strictly between -1 (where the experts cancel: ValueError) and 1 (NaN).
    """
    c = cosine.detach().requires_grad_()
    rest = c.new_zeros(len(c), dimension - 2)
    first, second = (
        torch.cat([torch.stack(pair, 1), rest], 1)
        for pair in ((torch.ones_like(c), 0 * c), (c, (1 - c**2).sqrt()))
    )
    concentration = torch.full_like(c, kappa)
    kept = j_align(
        [PointMass(first), PointMass(second.detach())],
        [VonMisesFisher(mu, concentration) for mu in (first, second)],
    )
    ignored = 2 * log_eta(torch.stack([first, second], 1), concentration[:, None].expand(-1, 2))
    slopes = [torch.autograd.grad(term.sum(), c, retain_graph=True)[0] for term in (ignored, kept)]
    return slopes[0] / slopes[1]


# ---------------------------------------------------------------------------------------------------------------- checks and short trainings
def compare(step: str, against: str, ours: Tensor, theirs: Tensor, *inputs: Tensor) -> dict:
    """A row of a table of equalities: the largest difference in value, and in the gradient of the sum with respect to ``inputs``."""
    slopes = [
        torch.autograd.grad(value.sum(), inputs, retain_graph=True) for value in (ours, theirs)
    ]
    gradient = max(float((a - b).abs().max()) for a, b in zip(*slopes, strict=True))
    return {
        "step": step,
        "checked against": against,
        "value": float((ours - theirs).detach().abs().max()),
        "gradient": gradient,
    }


def take_out(method: nn.Module, part: str) -> nn.Module:
    """A SimSiam without its "predictor" (the identity instead) or without its "stop-gradient" (J_align / (2κ), whose targets are trained too)."""
    if part == "predictor":
        method.predictor = nn.Identity()
    elif part == "stop-gradient":

        def loss(views: list[Tensor]) -> dict[str, Tensor]:
            (z1, p1), (z2, p2) = forward_by_size(method, views)
            return {
                "loss": -(F.cosine_similarity(p1, z2).mean() + F.cosine_similarity(p2, z1).mean())
                / 2
            }

        method.loss = loss
    else:
        raise ValueError(f"Unknown part {part!r}; choose 'predictor' or 'stop-gradient'.")
    return method


@torch.no_grad()
def measures(method: nn.Module, views: list[Tensor]) -> dict[str, float]:
    """What the outputs for two views [B, C, S, S] say now, with this batch's statistics as in training.

    DINO: the three terms, the entropy of the teacher's softmax and that of its mean over images, in nats. Others: cosine of the views' projections,
    uniformity, spread and effective rank (NaN where all are one point) of the first view's; with a predictor of its own also ``e_step_gap``: the mean
    cosine with the predictions that is lost by q's points f(x_i) against the mode of the product of experts, where an E-step would put it.
    """
    online = forward_by_size(method, views)
    if hasattr(method, "teacher"):
        outputs = method.teacher(torch.cat(views)).float().chunk(len(views))
        q = [softmax(output, method.teacher_temperature, method.centre) for output in outputs]
        p = [softmax(output.float(), method.settings["temperature"]) for (output,) in online]
        terms = {
            "align": j_align(q, p),
            "uniform": j_uniform(q, p),
            "kl": j_kl(q),
            "entropy": q[0].entropy(),
        }
        return {name: float(value.mean()) for name, value in terms.items()} | {
            "entropy_of_mean": float(Categorical(q[0].probs.mean(0)).entropy())
        }
    z = [F.normalize(output[0].float(), dim=1) for output in online]
    try:
        rank = effective_rank(z[0].cpu().numpy())
    except UndefinedStatistic:
        rank = math.nan
    found = {
        "cosine": agreement(*z),
        "uniformity": uniformity(z[0]),
        "spread": spread(z[0]),
        "effective_rank": rank,
    }
    if len(online[0]) == 2:
        both = sum(F.normalize(output[1].float(), dim=1) for output in online)
        f = (
            [F.normalize(target.float(), dim=1) for target in method.targets(views)]
            if hasattr(method, "target")
            else z
        )
        found["e_step_gap"] = (
            both.norm(dim=1) - sum((both * target).sum(1) for target in f) / 2
        ).mean() / 2
    return {name: float(value) for name, value in found.items()}


def watch(run: dict, steps: int, without: str = "") -> tuple[nn.Module, list[Tensor], pd.DataFrame]:
    """Train resolved settings for a few steps, one part taken out if named; the method, two views of 256 test images, and ``measures`` of them.

    The measures, columns beside ``step``, are taken before the first step and six times along the way, on the same views for every method.
    """
    images = training.training_images(run)
    bank = (
        data.load(run["dataset"], "test", image_size=run["image_size"])
        .batch(range(256))
        .to(training.best_device())
    )
    views = augmentations.make_views(
        bank, run, torch.Generator().manual_seed(training.seed_of(run["seed"], "watched views", 0))
    )
    method = methods.build(run, images.images.shape[3]).to(training.best_device()).train()
    method = take_out(method, without) if without else method
    rows, when = (
        [{"step": 0, **measures(method, views)}],
        {round(look * steps / 6) for look in range(1, 7)},
    )
    for step, _ in enumerate(training.first_steps(method, images, run, steps), 1):
        rows += [{"step": step, **measures(method, views)}] if step in when else []
    return method, views, pd.DataFrame(rows)


def table_1() -> dict[str, dict[str, str]]:
    """The rows of Table 1 by method, from ``READINGS``: the distributions are built from random outputs and asked for their names and entropies.

    A method is aware of uncertainty if the entropy of its p(z | x) differs between images.
    """
    generator = torch.Generator().manual_seed(0)
    output, kappa = (
        torch.randn(16, 12, generator=generator),
        20 * torch.rand(16, generator=generator),
    )
    columns = {}
    for name, reading in READINGS.items():
        q = reading.q(output, 0.04) if reading.q is softmax else reading.q(output)
        p = reading.p(output, *{softmax: (0.1,), power_spherical: (kappa,)}.get(reading.p, ()))
        named = {"p(z)": reading.prior(output), "q(z | x_i)": q, "p(z | x_j)": p}
        columns[name] = {row: type(distribution).__name__ for row, distribution in named.items()}
        columns[name] |= {
            "J_align": reading.align,
            "J_uniform": reading.uniform,
            "J_KL": reading.kl,
        }
        columns[name]["uncertainty aware"] = (
            "yes" if float(p.entropy().std()) > 1e-5 else "no (κ is constant)"
        )
    columns["barlow_twins"] = {
        "J_align": "-Σ (1 - C_ii)²",
        "J_uniform": "-λ Σ C_ij² (i ≠ j)",
        "uncertainty aware": "no (no density)",
    }
    return columns
