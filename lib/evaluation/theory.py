"""Self-supervised objectives as variational inference (VI-SimSiam 2023), and VJE's likelihood.

A latent z of an image is inferred twice: q(z | x_i) is made from the target network's output for
view i, p(z | x_j) from the online network's output for view j. With a prior p(z) they give the
three terms J_align, J_uniform and J_KL (Eq. 10 to 17). Which distributions make which method is
``table_1``. The terms are differentiable, detach nothing, and keep the floating type of their
arguments. What a part of a method does is measured in short trainings with and without it:
``SHORT_RUNS`` and ``CORRESPONDENCES``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pandas as pd
import torch
from scipy import integrate, optimize, special
from torch import Tensor, nn
from torch.distributions import Beta, Categorical, Distribution
from torch.nn import functional as F

from lib import methods, training
from lib.data import sources
from lib.data.views import augment, make_views
from lib.distributions import (
    DirectionalStudentT,
    HypersphericalUniform,
    PowerSpherical,
    VonMisesFisher,
    log_sphere_area,
    mean_cosine,
)
from lib.evaluation import measure
from lib.evaluation.suite import metrics_row
from lib.evaluation.uncertainty import rank_correlation
from lib.methods.base import agreement, forward_by_size, spread, view_pairs
from lib.runs import settings as run_settings
from lib.runs import store

WATCHED_IMAGES = 256  # test images on which a short training is measured
MEASUREMENTS = 6  # along a short training
QUADRATURE_NODES = 200  # of each interval
SMALLEST_SPREAD = 0.2  # of outputs that have not collapsed; 1 is isotropic
SMALLEST_INFORMATION = 0.01  # nats about the image, of a teacher that has not collapsed


# -------------------------------------------------------------------------------- stored tables
def stored_table(
    profile: str, name: str, compute: Callable[[], pd.DataFrame], again: bool = False
) -> pd.DataFrame:
    """The table of a short computation: read where it is stored, else computed and stored.

    name: of results/<profile>/tables/<name>.csv. again: compute it even if it is stored.
    """
    path = store.table_path(profile, name)
    if again or not path.exists():
        store.write_csv(path, compute())
    return store.read_csv(path)


# ------------------------------------------------------------------------- Table 1: distributions
@dataclass
class PointMass:
    """The deterministic q(z | x) = δ(z - f(x)) of a batch."""

    value: Tensor  # f(x) [B, D]


def point_mass(output: Tensor) -> PointMass:
    """δ(z - f / |f|) from outputs f [B, D] (Eq. 19)."""
    return PointMass(F.normalize(output, dim=-1))


def von_mises_fisher(output: Tensor, kappa: float = 1.0) -> VonMisesFisher:
    """vMF(z; g / |g|, κ) with one constant κ, from outputs g [B, D] (Eq. 20 and 21)."""
    return VonMisesFisher(F.normalize(output, dim=-1), kappa)


def power_spherical(output: Tensor, kappa: Tensor) -> PowerSpherical:
    """PS(z; g / |g|, κ) with a κ for every image, from outputs g [B, D] and κ [B] (Eq. 31, 32)."""
    return PowerSpherical(F.normalize(output, dim=-1), kappa)


def categorical(
    output: Tensor, temperature: float | Tensor, centre: Tensor | float = 0.0
) -> Categorical:
    """Cat(z; softmax((output - c) / τ)) over the K vertices of the simplex (Eq. 4 and 5).

    output: [B, K].
    """
    return Categorical(logits=(output - centre) / temperature)


def table_1() -> dict[str, dict[str, str]]:
    """Which distributions make which method, and what plays the part of each term, by method.

    The distributions are built from random outputs, which gives their names and entropies. A method
    is aware of uncertainty if the entropy of its p(z | x) differs between images.
    """
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(16, 12, generator=generator)
    kappa = 20 * torch.rand(16, generator=generator)
    on_sphere = HypersphericalUniform(output.shape[-1])
    # Eq. 27 names the uniform of the whole simplex, to which no distribution on its vertices has a
    # finite KL.
    on_vertices = Categorical(logits=torch.zeros_like(output[0]))
    point = point_mass(output)
    vmf = von_mises_fisher(output)
    teacher = categorical(output, temperature=0.04)
    student = categorical(output, temperature=0.1)

    def column(prior, q, p, align: str, uniform: str, kl: str) -> dict[str, str]:
        is_aware = float(p.entropy().std()) > 1e-5
        return {
            "p(z)": type(prior).__name__,
            "q(z | x_i)": type(q).__name__,
            "p(z | x_j)": type(p).__name__,
            "J_align": align,
            "J_uniform": uniform,
            "J_KL": kl,
            "uncertainty aware": "yes" if is_aware else "no (κ is constant)",
        }

    simsiam = column(
        on_sphere,
        point,
        vmf,
        align="g_j · f_i (Eq. 22)",
        uniform="predictor (Claim 4.4)",
        kl="constant",
    )
    return {
        "simsiam": simsiam,
        "directpred": simsiam | {"J_uniform": "predictor set to U sqrt(Λ) U' (Eq. 23)"},
        "simclr": simsiam | {"J_uniform": "in the loss: denominator (Eq. 26)"},
        "dino": column(
            on_vertices,
            teacher,
            student,
            align="Σ P_i log P_j (Eq. 30)",
            uniform="centring (Claim 4.8)",
            kl="sharpening (Claim 4.9)",
        ),
        "vi_simsiam": column(
            on_sphere,
            point,
            power_spherical(output, kappa),
            align="log C(κ_j) + κ_j log(1 + μ_j · z_i) (Eq. 33)",
            uniform="predictor (Claim 4.4)",
            kl="constant",
        ),
        "barlow_twins": {
            "J_align": "-Σ (1 - C_ii)²",
            "J_uniform": "-λ Σ C_ij² (i ≠ j)",
            "uncertainty aware": "no (no density)",
        },
    }


# ------------------------------------------------------------------------------- the three terms
def expected_log_prob(q: PointMass | Categorical, p: Distribution) -> Tensor:
    """E_{q(z | x)}[log p(z | x)] of every image [B]: log p at the point, or Σ_k q_k log p_k."""
    if isinstance(q, Categorical):
        return (q.probs * p.logits).sum(-1)
    return p.log_prob(q.value)


def j_align(q: Sequence[PointMass | Categorical], p: Sequence[Distribution]) -> Tensor:
    """Σ_{i ≠ j} E_{q(z | x_i)}[log p(z | x_j)] of every image [B] (Eq. 17 without its log η).

    q: of the global views, p: of all M views. Pairs i = j are left out, as in §4. Deviation: Eq. 17
    as printed is M times the J_align of Eq. 11, since q is the mean of its M experts. For M = 2 all
    three terms here are M times the paper's, so that their ratio is that of Eq. 10.

    Example:
        q = [point_mass(f1), point_mass(f2)]
        p = [von_mises_fisher(g1, 4.0), von_mises_fisher(g2, 4.0)]
        loss = -j_align(q, p).mean()  # SimSiam's, times κ and up to a constant
    """
    pairs = view_pairs(len(p), len(q))
    return torch.stack([expected_log_prob(q[i], p[j]) for j, i in pairs]).sum(0)


def marginal_log_prob(q: PointMass | Categorical, p: Distribution) -> Tensor:
    """E_{q(z | x)}[log p_D(z)] of every image [B] (Eq. 14, a single expert).

    p_D(z) is the mean over the batch of p(z | x).
    """
    count = p.batch_shape[0]
    if isinstance(q, Categorical):
        return (q.probs * (p.logits.logsumexp(0) - math.log(count))).sum(-1)
    z = q.value[:, None].expand(-1, count, -1)  # [B, B, D]
    return p.log_prob(z).logsumexp(1) - math.log(count)


def j_uniform(q: Sequence[PointMass | Categorical], p: Sequence[Distribution]) -> Tensor:
    """Σ_{i ≠ j} E_{q(z | x_i)}[-log p_D(z)] of every image [B], p_D the batch mean of p(z | x_j).

    It has a term for each pair of j_align, as in Eq. 26. For M = 2 it is M times Eq. 12, with
    single experts.
    """
    pairs = view_pairs(len(p), len(q))
    return torch.stack([-marginal_log_prob(q[i], p[j]) for j, i in pairs]).sum(0)


def j_kl(q: Sequence[PointMass | Categorical]) -> Tensor:
    """-M KL[q(z | X) || p(z)] of every image [B] (M times Eq. 13): M (H(q) - log K).

    q is the mean of its experts, p(z) uniform. For point masses it is a constant, minus infinity,
    which is left out: 0.
    """
    if isinstance(q[0], PointMass):
        return torch.zeros_like(q[0].value[:, 0])
    mixture = Categorical(probs=torch.stack([expert.probs for expert in q]).mean(0))
    return len(q) * (mixture.entropy() - math.log(mixture.probs.shape[-1]))


# ----------------------------------------------------------------------------- product of experts
def product_of_experts(loc: Tensor, kappa: Tensor) -> VonMisesFisher:
    """The normalised product over M of vMF(z; μ_m, κ_m), a vMF again (Proposition 4.1, Eq. 15).

    Its natural parameter is Σ_m κ_m μ_m. loc: unit vectors [..., M, D]; kappa: [..., M]. ValueError
    where the experts cancel exactly, as the product then has no direction.
    """
    natural = (kappa[..., None] * loc).sum(-2)
    direction = F.normalize(natural, dim=-1)
    # torch.compile turns the check of arguments off
    return VonMisesFisher(direction, natural.norm(dim=-1), validate_args=True)


def log_eta(loc: Tensor, kappa: Tensor) -> Tensor:
    """log η [...] of that product, which the paper leaves out of Eq. 17.

    η = 1 / ∫ Π_m vMF(z; μ_m, κ_m) dz = C(|Σ κ_m μ_m|) / Π C(κ_m).
    """
    product = product_of_experts(loc, kappa)
    mode = product.loc
    experts = VonMisesFisher(loc, kappa).log_prob(mode[..., None, :].expand_as(loc))
    return product.log_prob(mode) - experts.sum(-1)


def normaliser_gradient_ratio(dimension: int, kappa: float, cosine: Tensor) -> Tensor:
    """Gradient of the ignored term M log η over that of the kept terms i ≠ j, [C].

    Both are derivatives in the cosine c of two vMF experts of one κ, whose targets stay at the
    experts' directions. In closed form ``-2 A(r) / sqrt(2 + 2 c)`` with r = κ sqrt(2 + 2 c) and A
    the mean resultant length; here by automatic differentiation. dimension >= 2; cosine: [C],
    strictly between -1 (where the experts cancel: ValueError) and 1 (NaN).
    """
    c = cosine.detach().requires_grad_()
    first, second = at_cosine(c, dimension)
    concentration = torch.full_like(c, kappa)
    targets = [PointMass(first), PointMass(second.detach())]
    experts = [VonMisesFisher(first, concentration), VonMisesFisher(second, concentration)]
    kept = j_align(targets, experts)
    both = torch.stack([first, second], 1)
    ignored = 2 * log_eta(both, concentration[:, None].expand(-1, 2))
    (ignored_gradient,) = torch.autograd.grad(ignored.sum(), c, retain_graph=True)
    (kept_gradient,) = torch.autograd.grad(kept.sum(), c)
    return ignored_gradient / kept_gradient


def at_cosine(cosine: Tensor, dimension: int) -> tuple[Tensor, Tensor]:
    """Two unit vectors [C, D] at each of the cosines [C]: the first axis, and one beside it."""
    zeros = cosine.new_zeros(len(cosine), dimension - 2)
    axis = torch.stack([torch.ones_like(cosine), torch.zeros_like(cosine)], 1)
    beside = torch.stack([cosine, (1 - cosine**2).sqrt()], 1)
    return torch.cat([axis, zeros], 1), torch.cat([beside, zeros], 1)


def sphere_grid() -> tuple[Tensor, Tensor]:
    """Points [N, 3] on the sphere in three dimensions and the area [N] of each, in float64.

    SciPy's Lebedev rule of the highest degree.
    """
    points, area = integrate.lebedev_rule(131)
    return torch.from_numpy(points.T), torch.from_numpy(area)


def log_prob_by_beta(mu: Tensor, kappa: Tensor, z: Tensor) -> Tensor:
    """log PS(z; μ, κ) [B] from the law of its cosine, without the closed form of C(κ).

    (1 + μ·z)/2 ~ Beta((D-1)/2 + κ, (D-1)/2). The area of the sphere across μ at that cosine turns
    the density of the cosine into that of z. mu, z: unit vectors [B, D]; kappa: [B].
    """
    half = (mu.shape[-1] - 1) / 2
    cosine = (mu * z).sum(-1)
    share = Beta(half + kappa, torch.full_like(kappa, half)).log_prob((1 + cosine) / 2)
    log_area = log_sphere_area(mu.shape[-1] - 1) + (half - 1) * torch.log1p(-(cosine**2))
    return share - math.log(2) - log_area


def exact_concentration(cosine: float, dimension: int) -> float:
    """The κ at which the Power Spherical density of a sample at this cosine is highest.

    The root of ψ(D - 1 + κ) - ψ((D - 1)/2 + κ) + log((1 + s)/2), of which
    ``distributions.best_concentration`` is the closed form. cosine: s in 0..1.
    """
    half = (dimension - 1) / 2

    def gradient(kappa: float) -> float:
        digammas = special.digamma(2 * half + kappa) - special.digamma(half + kappa)
        return digammas + math.log((1 + cosine) / 2)

    return optimize.brentq(gradient, 1e-9, 1e7)


def compare(step: str, against: str, ours: Tensor, theirs: Tensor, *inputs: Tensor) -> dict:
    """A row of a table of equalities.

    value: the largest difference of ours and theirs; gradient: that of the gradients of their sums
    in ``inputs``.
    """
    our_gradients = torch.autograd.grad(ours.sum(), inputs, retain_graph=True)
    their_gradients = torch.autograd.grad(theirs.sum(), inputs, retain_graph=True)
    differences = []
    for our_gradient, their_gradient in zip(our_gradients, their_gradients, strict=True):
        differences.append(float((our_gradient - their_gradient).abs().max()))
    return {
        "step": step,
        "checked against": against,
        "value": float((ours - theirs).detach().abs().max()),
        "gradient": max(differences),
    }


# ------------------------------------------------------------------ measures of a network's outputs
def uniformity(z: Tensor) -> Tensor:
    """log of the mean over pairs of exp(-2 |z_a - z_b|²), z [B, D] normalised.

    0 if collapsed, near -4 if uniform for large D (Wang & Isola 2020, §4.1.2). At κ = 4, and with
    experts at z itself, it is up to a constant the log of the mean over z of the density of which
    J_uniform takes the mean log.
    """
    return torch.pdist(F.normalize(z, dim=-1)).square().mul(-2).exp().mean().log()


@torch.no_grad()
def measure_outputs(method: nn.Module, views: list[Tensor]) -> dict[str, float]:
    """Measures of the outputs for two views [B, C, S, S], with the batch's statistics.

    - DINO: align, uniform and kl (the three terms), entropy of the teacher's softmax, and
      entropy_of_mean, that of its mean over images; in nats.
    - Others: cosine of the views' projections; uniformity and spread of the first view's.
    - With a predictor of its own also e_step_gap: how much higher the mean cosine with the
      predictions is at the mode of the product of experts, where an E-step puts z, than at q's
      points f(x_i).
    """
    online = forward_by_size(method, views)
    if hasattr(method, "teacher"):
        measures = _teacher_measures(method, views, [student for (student,) in online])
    else:
        z = [F.normalize(output[0].float(), dim=1) for output in online]
        measures = {"cosine": agreement(*z), "uniformity": uniformity(z[0]), "spread": spread(z[0])}
        if len(online[0]) == 2:
            predictions = [F.normalize(output[1].float(), dim=1) for output in online]
            if hasattr(method, "target"):
                projections = method.targets(views)
            else:
                projections = [output[0] for output in online]
            points = [F.normalize(projection.float(), dim=1) for projection in projections]
            measures["e_step_gap"] = _e_step_gap(predictions, points)
    return {name: float(value) for name, value in measures.items()}


def _teacher_measures(
    method: nn.Module, views: list[Tensor], students: list[Tensor]
) -> dict[str, Tensor]:
    """DINO's measures, from the student's outputs for the views."""
    teachers = method.teacher(torch.cat(views)).float().chunk(len(views))
    q = [categorical(output, method.teacher_temperature, method.centre) for output in teachers]
    p = [categorical(output.float(), method.settings["temperature"]) for output in students]
    return {
        "align": j_align(q, p).mean(),
        "uniform": j_uniform(q, p).mean(),
        "kl": j_kl(q).mean(),
        "entropy": q[0].entropy().mean(),
        "entropy_of_mean": Categorical(q[0].probs.mean(0)).entropy(),
    }


def _e_step_gap(predictions: list[Tensor], points: list[Tensor]) -> Tensor:
    """Mean cosine with two predictions at their mode, minus that at the points; [B, D] each."""
    both = sum(predictions)
    at_points = sum((both * point).sum(1) for point in points) / 2
    return (both.norm(dim=1) - at_points).mean() / 2


@torch.no_grad()
def view_cosines(
    method: nn.Module,
    images: Tensor,
    strengths: dict,
    generators: Sequence[torch.Generator],
    has_predictor: bool = True,
) -> dict[str, Tensor]:
    """Means over pairs of random views of each image, [N] each; a generator for each pair.

    - cosine: of the first view's prediction with the second's projection; not for a network
      without projector and predictor (has_predictor False).
    - expected: E[T] = κ / (D - 1 + κ) of a Power Spherical with the κ of the first view, where the
      method learns κ.

    images: [N, C, S, S] in 0..1; strengths: the recipe of the views.
    """
    means: dict[str, Tensor] = {}
    for generator in generators:
        first = augment(images, images.shape[-1], strengths, generator)
        second = augment(images, images.shape[-1], strengths, generator)
        values = {}
        if has_predictor:
            _, prediction, *kappa = method(first)
            projection = method(second)[0]
            values["cosine"] = F.cosine_similarity(prediction.float(), projection.float())
        else:
            kappa = [method.embed(first).native["kappa"]]
        if kappa:
            values["expected"] = mean_cosine(kappa[0].float(), method.dimension)
        for name, value in values.items():
            means[name] = means.get(name, 0) + value / len(generators)
    return means


# ------------------------------------------------------------------------------- short trainings
@dataclass
class ShortTraining:
    """A method after a few steps, two views of test images, and its measures on them by step."""

    method: nn.Module
    views: list[Tensor]  # [B, C, S, S] each
    measures: pd.DataFrame  # step and those of measure_outputs


def short_training(settings: dict, steps: int, without: str = "") -> ShortTraining:
    """Train resolved settings for a few steps, without one part if it is named (remove_part).

    The measures are taken before the first step and MEASUREMENTS times along the way, on the same
    two views of WATCHED_IMAGES test images for every method.
    """
    device = training.best_device()
    images = training.training_images(settings)
    test = sources.load(settings["dataset"], "test", image_size=settings["image_size"])
    watched = test.batch(range(WATCHED_IMAGES)).to(device)
    generator = torch.Generator().manual_seed(
        training.seed_of(settings["seed"], "watched views", 0)
    )
    views = make_views(watched, settings, generator)
    method = methods.build(settings, images.images.shape[3]).to(device).train()
    if without:
        method = remove_part(method, without)
    measured_steps = {round(k * steps / MEASUREMENTS) for k in range(1, MEASUREMENTS + 1)}
    rows = [{"step": 0, **measure_outputs(method, views)}]
    for step, _ in enumerate(training.first_steps(method, images, settings, steps), 1):
        if step in measured_steps:
            rows.append({"step": step, **measure_outputs(method, views)})
    return ShortTraining(method=method, views=views, measures=pd.DataFrame(rows))


def remove_part(method: nn.Module, part: str) -> nn.Module:
    """A SimSiam without its "predictor" or without its "stop-gradient", changed in place.

    The predictor becomes the identity. Without stop-gradient the loss is J_align / (2κ), whose
    targets are trained too.
    """
    if part == "predictor":
        method.predictor = nn.Identity()
        return method

    def loss(views: list[Tensor]) -> dict[str, Tensor]:
        (z1, p1), (z2, p2) = forward_by_size(method, views)
        cosines = F.cosine_similarity(p1, z2).mean() + F.cosine_similarity(p2, z1).mean()
        return {"loss": -cosines / 2}

    method.loss = loss
    return method


# ------------------------------------------------------------------- what a part of a method does
@dataclass(frozen=True)
class ShortRun:
    """A short training: the recipe, what is changed of it, and the part that is removed."""

    method: str
    changes: dict = field(default_factory=dict)
    without: str = ""


@dataclass(frozen=True)
class Correspondence:
    """A claim of §4 about a part of a method: the measure and the two runs that it compares.

    claimed: whether the measure is higher or lower with the part.
    """

    claim: str
    part: str
    measure: str
    whole: str  # runs of SHORT_RUNS
    without: str
    claimed: str


# One small network and optimiser for all, but for DINO, which does not learn with SGD.
SHORT = {
    "batch_size": 128,
    "optimizer": "sgd",
    "learning_rate": 0.06,
    "warmup_epochs": 0.0,
}
WIDTH = 8  # of the network, at most
SHORT_DINO = {
    "optimizer": "adamw",
    "learning_rate": 5e-4,
    "weight_decay": 1e-4,
    "weight_decay_end": 1e-4,
    "head_hidden": 64,
    "bottleneck": 32,
    "frozen_prototypes_epochs": 0.0,
    "target_momentum": 0.99,
    "teacher_temperature_warmup_epochs": 0.0,
    "teacher_temperature": 0.04,
    "teacher_temperature_start": 0.04,
}
AS_SIMSIAM = ("dimension", "projector_layers", "augmentation", "weight_decay")
COPIED = {"target_momentum": 0.0, "target_schedule": "constant"}  # the target is a copy
AVERAGED = {"target_momentum": 0.9, "target_schedule": "constant"}
SAME_TEMPERATURE = {"teacher_temperature": 0.1, "teacher_temperature_start": 0.1}  # the student's
SHORT_RUNS = {
    "SimSiam": ShortRun("simsiam"),
    "without predictor": ShortRun("simsiam", without="predictor"),
    "without stop-gradient": ShortRun("simsiam", without="stop-gradient"),
    "DirectPred": ShortRun("directpred", COPIED),
    "BYOL": ShortRun("byol", AVERAGED),
    "BYOL without average": ShortRun("byol", COPIED),
    "Barlow Twins": ShortRun("barlow_twins"),
    "Barlow Twins, λ = 0": ShortRun("barlow_twins", {"redundancy_weight": 0.0}),
    "DINO": ShortRun("dino_two_views", SHORT_DINO),
    # a centre that keeps all of its past stays zero
    "without centring": ShortRun("dino_two_views", SHORT_DINO | {"centre_momentum": 1.0}),
    "without sharpening": ShortRun("dino_two_views", SHORT_DINO | SAME_TEMPERATURE),
}
CORRESPONDENCES = (
    Correspondence("4.4", "predictor", "uniformity", "SimSiam", "without predictor", "lower"),
    Correspondence("4.4", "Eq. 23", "uniformity", "DirectPred", "without predictor", "lower"),
    Correspondence(
        "§4.4", "off-diagonal", "uniformity", "Barlow Twins", "Barlow Twins, λ = 0", "lower"
    ),
    Correspondence(
        "§4.4", "stop-gradient", "e_step_gap", "SimSiam", "without stop-gradient", "lower"
    ),
    Correspondence(
        "§4.4", "averaged target", "e_step_gap", "BYOL", "BYOL without average", "lower"
    ),
    Correspondence("4.8", "centring", "entropy_of_mean", "DINO", "without centring", "higher"),
    Correspondence("4.9", "sharpening", "entropy", "DINO", "without sharpening", "lower"),
)


def train_short_runs(profile: str) -> pd.DataFrame:
    """The measures of SHORT_RUNS on a profile's data, as ``short_training`` has them, with run."""
    simsiam = run_settings.resolve("simsiam", profile)
    frames = []
    for name, run in SHORT_RUNS.items():
        changes = SHORT | {"width": min(WIDTH, simsiam["width"])} | run.changes
        if run.method == "directpred":
            changes |= {key: simsiam[key] for key in AS_SIMSIAM}
        resolved = run_settings.resolve(run.method, profile, **changes)
        trained = short_training(resolved, resolved["short_steps"], run.without)
        frames.append(trained.measures.assign(run=name))
    return pd.concat(frames, ignore_index=True)


def correspondences(short_runs: pd.DataFrame) -> pd.DataFrame:
    """Every claim of CORRESPONDENCES at the end of the short runs, one row each.

    Columns: claim, part, measure, with_part, without_part, claimed (higher or lower), as_claimed,
    and collapsed: whether the outputs have collapsed without the part, so that the difference says
    only that.
    """
    last = short_runs[short_runs.step == short_runs.step.max()].set_index("run")
    information = last.entropy_of_mean - last.entropy
    is_collapsed = (last.spread < SMALLEST_SPREAD) | (information < SMALLEST_INFORMATION)
    rows = []
    for row in CORRESPONDENCES:
        values = last[row.measure]
        difference = values[row.whole] - values[row.without]
        rows.append(
            {
                "claim": row.claim,
                "part": row.part,
                "measure": row.measure,
                "with_part": values[row.whole],
                "without_part": values[row.without],
                "claimed": row.claimed,
                "as_claimed": difference > 0 if row.claimed == "higher" else difference < 0,
                "collapsed": is_collapsed[row.without],
            }
        )
    return pd.DataFrame(rows)


# ---------------------------------------------------------------------------- VJE's likelihood
def mass_over_sphere(
    dim: int, scale: float, degrees_of_freedom: float, intrinsic: bool = True
) -> float:
    """∫ p(u) du over S^{D-1} of a DirectionalStudentT with one scale for all coordinates.

    ``|S^{D-2}| ∫_0^π p(θ) sin^{D-2} θ dθ``, θ the angle between u and loc, by Gauss-Legendre
    quadrature on intervals that grow from the scale on. It is one for a density and at most one for
    a sub-density. dim: D >= 2; scale > 0: the square root of squared_scale, in radians.
    """
    loc, orthogonal = torch.eye(dim, dtype=torch.float64)[:2]
    squared_scale = torch.full_like(loc, scale**2)
    distribution = DirectionalStudentT(
        loc, squared_scale, degrees_of_freedom, intrinsic, validate_args=False
    )

    def mass_at_angle(angle: np.ndarray) -> np.ndarray:
        angle = torch.from_numpy(angle)
        u = angle.cos()[:, None] * loc + angle.sin()[:, None] * orthogonal  # [nodes, D]
        log_sine = angle.sin().clamp(min=1e-300).log()
        log_mass = distribution.log_prob(u) + log_sphere_area(dim - 1) + (dim - 2) * log_sine
        return log_mass.exp().numpy()

    edges = np.unique(np.clip(np.geomspace(scale * 1e-3, math.pi, 24), 0, math.pi))
    mass = 0.0
    for low, high in pairwise([0.0, *edges]):
        mass += integrate.fixed_quad(mass_at_angle, low, high, n=QUADRATURE_NODES)[0]
    return float(mass)


@torch.no_grad()
def measure_variances(run: measure.Run) -> list[dict]:
    """How much a VJE run's variances v differ, and whether they predict the residual.

    From two views of ``condition_images`` training images (sample): v of the first, and the
    residual ``D (u' - m/|m|)²`` of the second's direction u' from the mean m that the first
    predicts. v is the scale of that residual.

    - Scores ``<dataset>_variances``: means of log v and of the residual, over images for each
      feature ("features_...") and over features for each image ("images_...").
    - Metrics of condition features and images: spread, the standard deviation of those mean log v;
      residual_spearman, their rank correlation with the mean residuals.
    """
    images, views = measure.embed_views(run, 2)
    first = torch.from_numpy(views[0]["features"])  # [N, D]
    second = torch.from_numpy(views[1]["features"])
    mean, log_variance = run.method.cpu().eval().posterior(first)
    difference = F.normalize(second, dim=1) - F.normalize(mean, dim=1)
    residual = first.shape[1] * difference.square()
    draws = run.settings["bootstrap_draws"]
    scores = {}
    rows = []
    for condition, axis in (("features", 0), ("images", 1)):
        log_variances = log_variance.mean(axis).double().numpy()
        residuals = residual.mean(axis).double().numpy()
        scores[f"{condition}_log_variance"] = log_variances.astype(np.float32)
        scores[f"{condition}_residual"] = residuals.astype(np.float32)
        common = {
            "evaluated_on": images.title,
            "condition": condition,
            "score": "log_variance",
        }
        pair = log_variances, residuals
        rows += [
            metrics_row("spread", np.std, log_variances, draws=draws, **common),
            metrics_row("residual_spearman", rank_correlation, *pair, draws=draws, **common),
        ]
    store.write_scores(run.profile, run.name, f"{run.settings['dataset']}_variances", scores)
    return rows
