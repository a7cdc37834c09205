"""VJE: the mass of its directional factor over the sphere, its bound on an evidence that a grid
gives, and what its gradients keep apart.
"""

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import integrate, optimize, special, stats
from torch.nn import functional as F

from lib import losses, methods
from lib.distributions import DirectionalStudentT
from lib.evaluation.theory import mass_over_sphere
from lib.methods.vje import VJE
from lib.runs import settings

SCALES = (0.01, 0.1, 0.5, 2.0)
FREEDOMS = (1.0, 4.0, 1e6)


# ------------------------------------------------------------------------ the mass over the sphere
def mass_of_isotropic(dim: int, scale: float, freedom: float) -> float:
    """∫ p(u) du with one scale for all coordinates, by scipy.

    A Student-t of the angle, times the ring at that angle.
    """
    log_area = (
        math.log(2) + (dim - 1) / 2 * math.log(math.pi) - math.lgamma((dim - 1) / 2)
    )  # of S^{D-2}; 2 for D = 2
    tangent = stats.multivariate_t(np.zeros(dim - 1), scale**2 * np.eye(dim - 1), df=freedom)

    def integrand(angle: float) -> float:
        log_ring = log_area + (dim - 2) * math.log(max(math.sin(angle), 1e-300))
        return math.exp(float(tangent.logpdf(np.append(angle, np.zeros(dim - 2)))) + log_ring)

    edges = [0.0, *np.geomspace(scale * 1e-2, math.pi, 16)]
    return sum(
        integrate.quad(integrand, low, high)[0] for low, high in zip(edges, edges[1:], strict=False)
    )


@pytest.mark.parametrize("dim", [2, 3, 16, 128, 2048])
def test_the_mass_over_the_sphere_is_at_most_one(dim):
    masses = {
        (scale, freedom): mass_over_sphere(dim, scale / math.sqrt(dim), freedom)
        for scale in SCALES
        for freedom in FREEDOMS
    }
    assert max(masses.values()) <= 1 + 1e-6, masses
    # a Gaussian of angles θ with θ² near 0.01² loses what (sin θ / θ)^{D-2} says
    assert masses[0.01, 1e6] == pytest.approx(math.exp(-(dim - 2) * 0.01**2 / 6), abs=1e-3)
    assert masses[2.0, 1.0] < 0.9


@pytest.mark.parametrize("dim", [2, 3, 16, 64])
@pytest.mark.parametrize("freedom", FREEDOMS)
def test_the_mass_is_what_scipy_finds(dim, freedom):
    for scale in (0.02, 0.7):
        assert mass_over_sphere(dim, scale, freedom) == pytest.approx(
            mass_of_isotropic(dim, scale, freedom), rel=1e-4
        )


def test_a_density_normalised_in_the_space_around_the_sphere_exceeds_one():
    """The trap: for an isotropic Gaussian kernel the surface integral is about 1 / (σ √(2π)) at
    small σ.
    """
    assert mass_over_sphere(16, 0.05, 1e6, intrinsic=False) == pytest.approx(
        1 / (0.05 * math.sqrt(2 * math.pi)), rel=0.1
    )
    assert mass_over_sphere(3, 0.1, 4.0, intrinsic=False) > 1.5


def log_projected_normal(u: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Log-density on the sphere of the direction of N(mean, diag variance), u [N, D].

    The Gaussian integrated along the ray.
    """
    dim = u.shape[1]
    a = (u**2 / variance).sum(1)
    b = (u * mean / variance).sum(1)
    c = (mean**2 / variance).sum()
    t = b / np.sqrt(a)  # log ∫_0^∞ x^{D-1} exp(-x²/2 + t x) dx around its mode
    mode = (t + np.sqrt(t**2 + 4 * (dim - 1))) / 2
    width = 1 / np.sqrt(1 + (dim - 1) / mode**2)
    nodes, weights = np.polynomial.legendre.leggauss(80)
    low = np.maximum(mode - 12 * width, 0)
    high = mode + 12 * width
    half = (high - low)[:, None] / 2
    x = low[:, None] + half * (nodes + 1)
    log_integral = special.logsumexp(
        (dim - 1) * np.log(x) - x**2 / 2 + t[:, None] * x, axis=1, b=weights * half
    )
    return (
        -dim / 2 * np.log(2 * np.pi)
        - np.log(variance).sum() / 2
        - dim / 2 * np.log(a)
        - c / 2
        + log_integral
    )


def test_the_projected_normal_of_the_next_test_is_a_density():
    angles = np.linspace(0, 2 * np.pi, 4001)
    u = np.stack([np.cos(angles), np.sin(angles)], 1)
    density = np.exp(log_projected_normal(u, np.array([0.7, -0.2]), np.array([0.3, 1.4])))
    assert integrate.trapezoid(density, angles) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("dim", [2, 3, 8, 32, 64])
def test_the_mass_with_unequal_scales_is_at_most_one(dim):
    """Importance sampling from a mixture of projected normals of the same axes."""
    generator = np.random.default_rng(dim)
    loc = generator.normal(size=dim)
    loc /= np.linalg.norm(loc)
    squared = np.exp(generator.normal(size=dim)) * 0.02 / dim  # scales e times apart
    count = 40_000
    proposals = [factor * squared for factor in (0.5, 1, 2, 5, 20)]
    draws = [
        loc + np.sqrt(v) * generator.normal(size=(count // len(proposals), dim)) for v in proposals
    ]
    u = np.concatenate(draws)
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    log_proposal = special.logsumexp(
        [log_projected_normal(u, loc, v) for v in proposals], axis=0
    ) - math.log(len(proposals))
    loc = torch.tensor(loc)
    squared = torch.tensor(squared)
    u = torch.tensor(u)
    for freedom in (4.0, 1e6):
        target = DirectionalStudentT(loc, squared, freedom, validate_args=False).log_prob(u).numpy()
        weights = np.exp(target - log_proposal)
        effective = weights.sum() ** 2 / (weights**2).sum()
        mass = weights.mean()
        error = weights.std() / math.sqrt(count)
        assert effective >= 1000
        assert 0.3 < mass <= 1 + 3 * error and error < 0.02
        ambient = (
            DirectionalStudentT(loc, squared, freedom, False, validate_args=False)
            .log_prob(u)
            .numpy()
        )
        assert np.exp(ambient - log_proposal).mean() > 1.2


def test_the_log_density_is_scipys_student_t_of_the_tangent_vector():
    """In a basis of the tangent space, with the angle from arccos: another way."""
    generator = torch.Generator().manual_seed(0)
    loc, u = (
        F.normalize(torch.randn(7, 5, generator=generator, dtype=torch.float64), dim=1)
        for _ in range(2)
    )
    u[0], u[1] = (
        F.normalize(factor * loc[row] + 1e-4 * u[row], dim=0) for row, factor in ((0, 1), (1, -1))
    )  # near loc, near its antipode
    squared = torch.rand(7, 5, generator=generator, dtype=torch.float64) + 0.1
    ours = DirectionalStudentT(loc, squared, 3.0).log_prob(u)
    for row in range(7):
        basis = np.linalg.qr(np.concatenate([loc[row].numpy()[:, None], np.eye(5)], 1))[0][
            :, 1:
        ]  # [D, D - 1]
        angle = math.acos(float(loc[row] @ u[row]))
        e = basis.T @ u[row].numpy() * angle / math.sin(angle)
        shape = np.linalg.inv(basis.T @ np.diag(1 / squared[row].numpy()) @ basis)
        assert ours[row].item() == pytest.approx(
            stats.multivariate_t(np.zeros(4), shape, df=3).logpdf(e), rel=1e-7
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_antipode_is_as_unlikely_as_what_lies_beside_it(dtype):
    generator = torch.Generator().manual_seed(2)
    loc = torch.cat([torch.eye(5), F.normalize(torch.randn(20, 5, generator=generator), dim=1)]).to(
        dtype
    )
    density = DirectionalStudentT(loc, torch.full_like(loc, 0.1), 3.0, validate_args=False)
    expected = stats.multivariate_t(np.zeros(4), 0.1 * np.eye(4), df=3).logpdf([math.pi, 0, 0, 0])
    assert density.log_prob(-loc).tolist() == pytest.approx([expected] * 25, rel=1e-5)
    assert density.log_prob(loc).min() > expected + 5


def test_the_radial_factor_is_exact_in_float32_for_many_degrees_of_freedom():
    target = torch.tensor([[3.0, 4.0]])
    latent = torch.tensor([[0.0, 4.5]])
    for freedom in (4.0, 1e3, 1e6):
        _, radial = losses.vje_likelihood(target, latent, torch.zeros(1, 2), 4.0, freedom, 0.7)
        assert radial.item() == pytest.approx(
            stats.t.logpdf(5.0, freedom, loc=4.5, scale=0.7), rel=1e-6
        )


def test_many_degrees_of_freedom_are_a_gaussian():
    generator = torch.Generator().manual_seed(1)
    loc = F.normalize(torch.randn(6, 4, generator=generator, dtype=torch.float64), dim=1)
    u = F.normalize(loc + 0.3 * torch.randn(6, 4, generator=generator, dtype=torch.float64), dim=1)
    v = 0.1
    angle = torch.acos((loc * u).sum(1))
    gaussian = -3 / 2 * math.log(2 * math.pi * v) - angle**2 / (2 * v)
    assert torch.allclose(
        DirectionalStudentT(loc, torch.full_like(loc, v), 1e8).log_prob(u), gaussian, atol=1e-5
    )
    assert not torch.allclose(
        DirectionalStudentT(loc, torch.full_like(loc, v), 10.0).log_prob(u), gaussian, atol=1e-2
    )


@pytest.mark.parametrize("angle", [0.0, 1e-4, 0.05, 1.0, 3.1, math.pi])
def test_gradients_are_finite_from_the_direction_itself_to_its_antipode(angle):
    loc = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    u = torch.tensor([math.cos(angle), math.sin(angle), 0.0], dtype=torch.float64)
    squared = torch.full((3,), 0.3, dtype=torch.float64, requires_grad=True)
    value = DirectionalStudentT(loc, squared, 4.0, validate_args=False).log_prob(u)
    value.backward()
    assert (
        torch.isfinite(value)
        and torch.isfinite(loc.grad).all()
        and torch.isfinite(squared.grad).all()
    )


def test_wrong_arguments_are_refused():
    loc = F.normalize(torch.ones(2, 3), dim=1)
    with pytest.raises(ValueError, match="squared_scale"):
        DirectionalStudentT(loc, torch.ones(2, 1), 4.0)
    with pytest.raises(ValueError, match="positive, but one is -1"):
        DirectionalStudentT(loc, -torch.ones(2, 3), 4.0)
    with pytest.raises(ValueError, match="degrees_of_freedom is 0"):
        DirectionalStudentT(loc, torch.ones(2, 3), 0)
    with pytest.raises(ValueError, match="norm"):
        DirectionalStudentT(loc, torch.ones(2, 3), 4.0).log_prob(torch.ones(2, 3))
    with pytest.raises(ValueError, match="Unknown likelihood 'sphere'"):
        losses.vje_loss(*[torch.ones(2, 3)] * 4, likelihood="sphere")


# --------------------------------------------------------------------------------------- the bound
class Toy:
    """A target in the plane, whose evidence and posterior a grid over the latent gives."""

    def __init__(self, **options):
        self.options = {
            "directional_freedom": 3.0,
            "radial_freedom": 3.0,
            "radial_scale": 0.5,
            "scale_directions": False,
        } | options
        axis = torch.linspace(-7, 7, 451, dtype=torch.float64)
        self.cell = (axis[1] - axis[0]).item() ** 2
        self.z = torch.cartesian_prod(
            axis + 1e-3, axis
        )  # [G, 2], beside the origin, where a latent has no direction
        self.target = torch.tensor([0.9, 0.7], dtype=torch.float64)
        self.log_v = torch.tensor([-1.2, -0.3], dtype=torch.float64)

    def log_likelihood(self, z):
        parts = losses.vje_likelihood(
            self.target.expand_as(z), z, self.log_v.expand_as(z), **self.options
        )
        return parts[0] + parts[1]

    def evidence(self):
        log_prior = -self.z.square().sum(1) / 2 - math.log(2 * math.pi)
        return torch.logsumexp(self.log_likelihood(self.z) + log_prior, 0) + math.log(self.cell)

    def expected_loss(self, mean):
        """-ELBO with the expectation over q taken on the grid.

        The loss of every grid point as the sample, weighted by q.
        """
        q = (
            torch.distributions.Normal(mean, (self.log_v / 2).exp()).log_prob(self.z).sum(1).exp()
            * self.cell
        )
        one = {"target": self.target[None], "mean": mean[None], "log_variance": self.log_v[None]}
        terms = losses.vje_loss(**one, sample=mean[None], **self.options)
        return terms["kl"] - (q * self.log_likelihood(self.z)).sum(), q

    def gap(self, mean):
        """KL( q || p(z | target) ) on the grid."""
        log_joint = self.log_likelihood(self.z) - self.z.square().sum(1) / 2 - math.log(2 * math.pi)
        log_posterior = log_joint - self.evidence()
        log_q = torch.distributions.Normal(mean, (self.log_v / 2).exp()).log_prob(self.z).sum(1)
        return (log_q.exp() * (log_q - log_posterior)).sum() * self.cell


@pytest.mark.parametrize(
    "options", [{}, {"log_radius": True}, {"likelihood": "euclidean"}, {"scale_directions": True}]
)
@pytest.mark.parametrize("mean", [(0.0, 0.0), (0.9, 0.7), (-1.0, 0.5)])
def test_the_loss_is_the_evidence_plus_the_distance_of_the_posteriors(options, mean):
    toy = Toy(**options)
    mean = torch.tensor(mean, dtype=torch.float64)
    loss, q = toy.expected_loss(mean)
    assert q.sum().item() == pytest.approx(1, abs=1e-6)
    assert loss.item() == pytest.approx((toy.gap(mean) - toy.evidence()).item(), abs=1e-4)
    assert toy.gap(mean) > 0.05


def test_the_sampled_loss_is_the_expected_one():
    toy = Toy()
    mean = torch.tensor([0.4, 0.8], dtype=torch.float64)
    count = 200_000
    noise = torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = [part.expand(count, 2) for part in (toy.target, mean, toy.log_v)]
    sampled = losses.vje_loss(*rows, mean + (toy.log_v / 2).exp() * noise, **toy.options)["loss"]
    assert sampled.item() == pytest.approx(toy.expected_loss(mean)[0].item(), abs=0.02)


def test_the_evidence_of_the_polar_model_sums_to_at_most_one_and_the_ambient_one_does_not():
    """The model's mass over all targets, for a latent far from the origin and small scales.

    So only "polar" bounds the evidence of a density.
    """
    angles = np.linspace(0, 2 * np.pi, 1501)[:-1]
    radii = np.linspace(0.01, 8, 800)
    target = torch.tensor(
        np.stack([np.outer(np.cos(angles), radii), np.outer(np.sin(angles), radii)], -1).reshape(
            -1, 2
        )
    )
    z = torch.tensor([[1.5, -0.4]], dtype=torch.float64).expand_as(target)
    log_v = torch.full_like(target, math.log(0.02))
    masses = {}
    for likelihood in ("polar", "ambient"):
        parts = losses.vje_likelihood(
            target, z, log_v, 4.0, 4.0, 0.2, likelihood, scale_directions=False
        )
        masses[likelihood] = (
            (parts[0] + parts[1]).exp().sum().item()
            * (angles[1] - angles[0])
            * (radii[1] - radii[0])
        )
    assert 0.9 < masses["polar"] <= 1.001
    assert masses["ambient"] > 2
    nowhere = losses.vje_likelihood(
        target, z, log_v + torch.tensor([0.0, 1.0]), 4.0, 4.0, 0.2, "euclidean"
    )[0].exp()
    area = target.norm(dim=1) * (angles[1] - angles[0]) * (radii[1] - radii[0])
    assert (nowhere * area).sum().item() == pytest.approx(1, abs=1e-4), (
        "a density of the embedding itself, in the plane"
    )


def test_the_radial_factor_of_a_logarithm_is_a_density_of_the_length():
    radii = torch.linspace(
        -40, 40, 160_001, dtype=torch.float64
    ).exp()  # far tails: Student-t in log r
    target = radii[:, None] * torch.tensor([[0.6, 0.8]])
    z = torch.tensor([[1.5, -0.4]], dtype=torch.float64).expand(len(radii), 2)
    radial = losses.vje_likelihood(target, z, torch.zeros_like(z), 4.0, 4.0, 0.2, log_radius=True)[
        1
    ]
    assert torch.trapezoid(radial.exp(), radii).item() == pytest.approx(1, abs=1e-4)


# ---------------------------------------------------------------------------- gradients and optima
def embeddings(count=6, dim=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    target, latent = (
        torch.randn(count, dim, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    return target, latent, torch.full_like(latent, -0.5)


def test_the_directional_factor_moves_directions_and_the_radial_factor_lengths():
    target, latent, log_v = embeddings()
    target.requires_grad_(), latent.requires_grad_()
    directional, radial = losses.vje_likelihood(target, latent, log_v, 4.0, 4.0, 1.0)
    for part, moves_length in ((directional, False), (radial, True)):
        gradients = torch.autograd.grad(part.sum(), (target, latent), retain_graph=True)
        for gradient, vector in zip(gradients, (target, latent), strict=True):
            along = (gradient * F.normalize(vector, dim=1)).sum(1)
            across = (gradient - along[:, None] * F.normalize(vector, dim=1)).norm(dim=1)
            assert (across if moves_length else along).abs().max() < 1e-9
            assert (along if moves_length else across).abs().min() > 1e-3


def test_a_common_factor_of_lengths_changes_the_euclidean_likelihood_and_not_the_directional_one():
    target, latent, log_v = embeddings()
    polar = [
        losses.vje_likelihood(scale * target, scale * latent, log_v, 4.0, 4.0, 1.0)[0]
        for scale in (1, 3)
    ]
    euclidean = [
        losses.vje_likelihood(scale * target, scale * latent, log_v, 4.0, 4.0, 1.0, "euclidean")[0]
        for scale in (1, 3)
    ]
    assert torch.allclose(*polar)
    assert not torch.allclose(*euclidean, atol=0.5)


def test_the_pull_of_an_outlier_fades_with_heavy_tails_and_grows_without():
    """|d log p / d angle| at a small and at a large angle: the reason for the t."""
    loc = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    pulls = {}
    for freedom in (2.0, 1e6):
        for angle in (0.3, 2.0):
            theta = torch.tensor(angle, dtype=torch.float64, requires_grad=True)
            u = torch.stack([theta.cos(), theta.sin(), 0 * theta, 0 * theta])
            DirectionalStudentT(
                loc, torch.full_like(loc, 0.05), freedom, validate_args=False
            ).log_prob(u).backward()
            pulls[freedom, angle] = -theta.grad.item()
    assert pulls[2.0, 2.0] < 0.5 * pulls[2.0, 0.3]
    assert (
        pulls[1e6, 2.0] == pytest.approx(2.0 / 0.05, rel=1e-3)
        and pulls[1e6, 2.0] > 6 * pulls[1e6, 0.3]
    )


def test_equal_views_leave_the_variance_that_quadrature_finds():
    """Both views have one embedding and q is centred on it.

    The best v is where the cost of the prior and the gain in the likelihood meet.
    """
    dim = 3
    length = 2.0
    freedom = 4.0
    target = torch.tensor([length, 0.0, 0.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(20_000, dim, dtype=torch.float64, generator=generator)
    noise = torch.cat([noise, -noise])

    def sampled(log_v):
        rows = [
            target.expand(len(noise), dim),
            target.expand(len(noise), dim),
            log_v.expand(len(noise), dim),
        ]
        return losses.vje_loss(
            *rows,
            target + (log_v / 2).exp() * noise,
            freedom,
            freedom,
            scale_directions=False,
            radial_weight=0.0,
        )["loss"]

    log_v = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([log_v], line_search_fn="strong_wolfe", max_iter=50)

    def closure():
        optimiser.zero_grad()
        loss = sampled(log_v)
        loss.backward()
        return loss

    optimiser.step(closure)

    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    along, first, second = np.meshgrid(nodes, nodes, nodes, indexing="ij")
    weight = (
        np.prod(np.meshgrid(weights, weights, weights, indexing="ij"), axis=0) / weights.sum() ** 3
    )

    def expected(value):
        v = math.exp(value)
        x = length + math.sqrt(v) * along
        across = math.sqrt(v) * np.hypot(first, second)
        angle = np.arctan2(across, x)
        log_p = stats.multivariate_t(np.zeros(2), v * np.eye(2), df=freedom).logpdf(
            np.stack([angle, 0 * angle], -1)
        )
        return -(weight * log_p).sum() + (dim * (v - 1 - value) + length**2) / 2

    best = optimize.minimize_scalar(expected, bounds=(-6, 2), method="bounded")
    assert log_v.item() == pytest.approx(best.x, abs=0.03)
    assert sampled(torch.tensor(best.x)).item() == pytest.approx(best.fun, abs=0.02)
    assert -3 < best.x < -0.1  # inside: equal views do not make the posterior a point


# -------------------------------------------------------------------------------------- the method
def small(**changes) -> VJE:
    network = methods.build(settings.resolve("vje", "smoke", **changes), 1)
    assert isinstance(network, VJE)
    return network


def views(count=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(count, 1, 16, 16, generator=generator) for _ in range(2)]


@pytest.mark.parametrize(
    "weights",
    [{}, {"kl_weight": 0.1, "radial_weight": 0.0}, {"kl_weight": 3.0, "radial_weight": 2.0}],
)
def test_the_loss_is_symmetric_and_that_of_its_parts(weights):
    first, second = views()
    network = small(**weights).eval()
    network.set_epoch(1.0)  # after the warm-up
    torch.manual_seed(0)
    terms = network.loss([first, second])
    parts = terms["directional"] + terms["radial"] + terms["kl"]
    assert terms["loss"].item() == pytest.approx(parts.item(), rel=1e-5)

    outputs = [network(first), network(second)]
    samples = network.settings["samples"]
    torch.manual_seed(0)
    names = ("directional_freedom", "radial_freedom", "likelihood", "scale_directions")
    options = {name: network.settings[name] for name in (*names, "log_radius", "prior_variance")}
    options |= {name: network.settings[name] for name in ("kl_weight", "radial_weight")}
    # pairs (view 0 predicts view 1), then (view 1 predicts view 0)
    losses_of_pairs = []
    for own, other in ((0, 1), (1, 0)):
        _, mean, log_v = (part.repeat(samples, 1) for part in outputs[own])
        target = outputs[other][0].repeat(samples, 1)
        sample = mean + (log_v / 2).exp() * torch.randn_like(mean)
        scale = network.log_radial_scale.exp()
        pair = losses.vje_loss(target, mean, log_v, sample, radial_scale=scale, **options)
        losses_of_pairs.append(pair["loss"].item())
    expected = sum(losses_of_pairs) / 2 / network.dimension
    assert terms["loss"].item() == pytest.approx(expected, rel=1e-4)


def test_in_the_warm_up_z_is_the_mean_and_the_weight_of_the_kl_rises():
    first, second = views()
    network = small(kl_weight=0.5, kl_warmup_epochs=0.8).eval()
    network.set_epoch(0.2)
    once = network.loss([first, second])
    again = network.loss([first, second])
    assert once["loss"] == again["loss"]  # nothing is drawn
    network.set_epoch(0.4)
    later = network.loss([first, second])
    assert later["kl"].item() == pytest.approx(2 * once["kl"].item(), rel=1e-5)
    assert later["directional"] == once["directional"]
    network.set_epoch(0.8)
    assert network.kl_weight.item() == pytest.approx(0.5)
    assert network.loss([first, second])["directional"] != once["directional"]


def test_product_likelihood_is_a_sum_of_univariate_student_t():
    generator = torch.Generator().manual_seed(0)
    target, latent, log_v = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    log_p, _ = losses.vje_likelihood(target, latent, log_v, 3.0, 4.0, 1.0, likelihood="product")
    u = (target / target.norm(dim=1, keepdim=True)).numpy()
    centre = (latent / latent.norm(dim=1, keepdim=True)).numpy()
    scale = (log_v.exp() / 4).sqrt().numpy()
    expected = stats.t(df=3.0, loc=centre, scale=scale).logpdf(u).sum(1)
    assert log_p.numpy() == pytest.approx(expected, rel=1e-10)


def test_features_are_standardised_unless_asked():
    x = 5 * views(64)[0] + 3
    for standardise in (True, False):
        s = small(standardise=standardise).train()(x)[0]
        unit = (s.mean(0).abs().max() < 1e-4) and (s.var(0, correction=0) - 1).abs().max() < 0.05
        assert bool(unit) == standardise


def test_the_target_is_a_constant_unless_asked():
    gradients = {}
    for stop in (True, False):
        network = small(stop_gradient=stop)
        torch.manual_seed(0)
        network.loss(views())["loss"].backward()
        gradients[stop] = next(network.backbone.parameters()).grad.clone()
    assert gradients[True].abs().max() > 0
    assert not torch.allclose(gradients[True], gradients[False])


def test_a_fresh_posterior_has_the_variance_that_the_recipe_says_and_one_variance_an_image_is_one():
    network = small(initial_variance=0.3).eval()
    image = views()[0]
    assert torch.allclose(
        network.forward(image)[2], torch.full((16, network.dimension), math.log(0.3)), atol=1e-5
    )
    shared = small(feature_wise=False)
    torch.nn.init.normal_(shared.inference[-1].weight)
    log_v = shared.eval().forward(image)[2]
    assert log_v.std(1).max() < 1e-6 < log_v.std(0).max()


def test_the_variance_stays_within_its_bounds():
    network = small(log_variance_low=-2.0, log_variance_high=1.0)
    torch.nn.init.normal_(network.inference[-1].weight, std=100.0)
    log_v = network.eval().forward(views()[0])[2]
    assert -2.0 <= log_v.min() < -1.9 and 0.9 < log_v.max() <= 1.0


def test_embeddings_say_what_the_likelihood_says():
    network = small().eval()
    image = views()[0]
    torch.nn.init.normal_(network.inference[-1].weight)
    embedding = network.embed(image)
    more = network.uncertainties(image)
    s, mean, log_v = network(image)
    assert torch.allclose(embedding.features, s) and torch.allclose(
        embedding.uncertainty, log_v.mean(1)
    )
    zero = [
        torch.allclose(
            more.native["likelihood_and_kl"],
            more.native["directional"] + more.native["radial"] + more.native["kl"],
        )
    ]
    terms = losses.vje_loss(s, mean, log_v, mean, radial_scale=network.log_radial_scale.exp())
    assert all(zero) and more.native["likelihood_and_kl"].mean().item() == pytest.approx(
        terms["loss"].item(), rel=1e-5
    )
    assert torch.allclose(
        embedding.native["negative_log_likelihood"],
        more.native["directional"] + more.native["radial"],
    )
    mirrored = torch.cat([image, image.flip(-1)])
    both = torch.cat([image.flip(-1), image])
    assert torch.allclose(
        network.uncertainties(mirrored).features,
        network.uncertainties(both).features.roll(16, 0),
        atol=1e-5,
    )
    same = (image + image.flip(-1)) / 2
    alone = network.uncertainties(image[3:4]).native
    many = network.uncertainties(image, samples=4000).native
    assert torch.allclose(
        alone["averaged_likelihood"], more.native["averaged_likelihood"][3], rtol=1e-4
    )
    drawn = mean + (log_v / 2).exp() * torch.randn(
        4000, *mean.shape, generator=torch.Generator().manual_seed(1)
    )
    terms = [
        losses.vje_loss(s, mean, log_v, z, radial_scale=network.log_radial_scale.exp())[
            "loss"
        ].item()
        for z in drawn
    ]
    assert many["negative_bound"].mean().item() == pytest.approx(
        np.mean(terms), abs=8 * np.std(terms) / 4000**0.5 + 1e-3
    )
    assert torch.allclose(many["negative_bound"], many["averaged_likelihood"] + many["kl"])
    shift = (s.shape[1] - 1) * s.norm(dim=1).log()
    assert torch.allclose(
        many["density_likelihood"] - many["negative_log_likelihood"], shift, rtol=1e-4
    )
    flat = small(likelihood="euclidean").eval().uncertainties(image).native
    assert torch.equal(flat["density_likelihood"], flat["negative_log_likelihood"])
    symmetric = network.uncertainties(same).native
    assert torch.allclose(
        symmetric["other_view"], symmetric["negative_log_likelihood"], rtol=1e-4, atol=1e-3
    )


@pytest.mark.parametrize(
    "name, value",
    [
        ("directional_freedom", 0.0),
        ("radial_scale", -1.0),
        ("initial_variance", 1e9),
        ("local_views", 2),
    ],
)
def test_settings_that_make_no_sense_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        small(**{name: value})


def test_the_log_of_vje_is_of_the_first_views_variances_and_lengths():
    network = small().eval()
    (first, second) = views()
    torch.nn.init.normal_(network.inference[-1].weight)
    s, mean, log_v = network(first)
    terms = network.loss([first, second])
    length = s.norm(dim=1)
    expected = {
        "variance": log_v.exp().mean(),
        "log_variance_spread": log_v.std(1).mean(),
        "norm": length.mean(),
        "norm_spread": length.std() / length.mean(),
        "cosine": F.cosine_similarity(mean, network(second)[0]).mean(),
    }
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-3, abs=1e-5), name


def test_the_other_view_is_the_mirrored_image():
    network = small().eval()
    image = views()[0]
    torch.nn.init.normal_(network.inference[-1].weight)
    (_, mean, log_v) = network(image)
    (mirrored, *_) = network(image.flip(-1))
    likelihood = losses.vje_likelihood(
        mirrored, mean, log_v, 4.0, 4.0, network.log_radial_scale.exp()
    )
    found = network.uncertainties(image).native
    torch.testing.assert_close(found["other_view"], -sum(likelihood), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found["other_view"], found["negative_log_likelihood"], rtol=1e-3)


def test_the_kl_of_the_loss_is_to_the_prior_that_is_given():
    target, mean, log_v, sample = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(3))
    prior = torch.distributions.Normal(torch.zeros_like(mean), 2.5**0.5)
    expected = (
        torch.distributions.kl_divergence(
            torch.distributions.Normal(mean, (log_v / 2).exp()), prior
        )
        .sum(1)
        .mean()
    )
    assert losses.vje_loss(target, mean, log_v, sample, prior_variance=2.5)[
        "kl"
    ].item() == pytest.approx(expected.item(), rel=1e-5)


def test_directions_are_scaled_by_the_square_root_of_the_dimension():
    target, latent, log_v = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(3))
    scaled = losses.vje_likelihood(target, latent, log_v, 4, 4, 1.0)[0]
    torch.testing.assert_close(
        scaled,
        losses.vje_likelihood(
            target, latent, log_v - math.log(6), 4, 4, 1.0, scale_directions=False
        )[0],
    )


def test_a_standardised_embedding_has_no_scale_and_no_shift_to_learn():
    assert not list(small(standardise=True).backbone[-1].parameters())


def test_the_kl_of_an_image_is_to_the_prior_of_the_settings():
    network = small(prior_variance=2.5).eval()
    image = views()[0]
    _, mean, log_v = network(image)
    prior = torch.distributions.Normal(torch.zeros_like(mean), 2.5**0.5)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(mean, (log_v / 2).exp()), prior
    ).sum(1)
    torch.testing.assert_close(
        network.uncertainties(image).native["kl"], expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("likelihood", ["polar", "product", "ambient", "euclidean"])
@pytest.mark.parametrize("log_variance", [-300.0, -110.0, -20.0, 0.0, 110.0])
def test_log_variances_of_any_size_stay_logarithms(likelihood, log_variance):
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(5, 8, generator=generator)
    latent = torch.randn(5, 8, generator=generator).requires_grad_()
    log_v = (log_variance + torch.randn(5, 8, generator=generator)).requires_grad_()
    arguments = (3.0, 4.0, 1.0, likelihood)
    single, _ = losses.vje_likelihood(target, latent, log_v, *arguments)
    single.sum().backward()
    assert latent.grad.isfinite().all() and log_v.grad.isfinite().all()
    exact = exact_directional(target, latent.detach(), log_v.detach(), 3.0, likelihood)
    assert single.tolist() == pytest.approx(exact, rel=2e-5, abs=2e-4)


def exact_directional(target, latent, log_variance, freedom, likelihood):
    """The directional factor of every row, with 60 digits from the formulas of the docstrings."""
    rows = zip(target.tolist(), latent.tolist(), log_variance.tolist(), strict=True)
    with mpmath.workdps(60):
        return [float(_exact_row(*row, mpmath.mpf(freedom), likelihood)) for row in rows]


def _exact_row(target, latent, log_variance, nu, likelihood):
    u = mpmath.matrix(target)
    mu = mpmath.matrix(latent)
    log_scale = [mpmath.mpf(x) for x in log_variance]
    dim = len(log_scale)
    if likelihood != "euclidean":
        u = u / mpmath.norm(u)
        mu = mu / mpmath.norm(mu)
        log_scale = [x - mpmath.log(dim) for x in log_scale]
    scale = [mpmath.exp(x) for x in log_scale]
    residual = u - mu
    if likelihood == "product":
        parts = zip(residual, scale, strict=True)
        return sum(_exact_student_t(e**2 / v, mpmath.log(v), 1, nu) for e, v in parts)
    log_determinant = sum(log_scale)
    if likelihood == "polar":
        cosine = (mu.T * u)[0]
        angle = mpmath.acos(cosine)
        residual = (u - cosine * mu) * angle / mpmath.sin(angle)
        log_determinant -= mpmath.log(sum(m**2 * v for m, v in zip(mu, scale, strict=True)))
        dim -= 1
    distance = sum(e**2 / v for e, v in zip(residual, scale, strict=True))
    return _exact_student_t(distance, log_determinant, dim, nu)


def _exact_student_t(distance, log_determinant, dim, nu):
    constant = mpmath.loggamma((nu + dim) / 2) - mpmath.loggamma(nu / 2)
    constant -= dim * mpmath.log(nu * mpmath.pi) / 2
    return constant - log_determinant / 2 - (nu + dim) / 2 * mpmath.log1p(distance / nu)


def test_the_loss_of_tiny_variances_is_finite():
    generator = torch.Generator().manual_seed(0)
    target, mean = torch.randn(2, 5, 8, generator=generator)
    terms = losses.vje_loss(target, mean, torch.full((5, 8), -110.0), mean)
    assert all(value.isfinite() for value in terms.values())
