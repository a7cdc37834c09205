"""lib.distributions against quadrature, closed forms, scipy, mpmath and the package
power_spherical.
"""

import math
from functools import cache

import mpmath
import numpy as np
import power_spherical as oracle
import pytest
import scipy.special as sp
import scipy.stats
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.distributions import kl_divergence

from lib.distributions import (
    DirectionalStudentT,
    HypersphericalUniform,
    PowerSpherical,
    VonMisesFisher,
    concentration_of,
    mean_cosine,
)
from tests.methods.comparison import close, exact_student_t, f64, normal, unit

FAMILIES = [PowerSpherical, VonMisesFisher]
DIMS = [2, 3, 4, 5, 16, 66, 128, 2048, 4096]
KAPPAS = [0.0, 1e-3, 0.5, 1.0, 20.0, 300.0, 1e4, 1e6]


def on_plane(cosine, sine, dim):
    """Unit vectors in the plane of the first two axes."""
    values = torch.zeros(*np.shape(cosine), dim, dtype=torch.float64)
    values[..., 0] = f64(cosine)
    values[..., 1] = f64(sine)
    return values


def at_e1(family, dim, kappa):
    return family(torch.eye(dim, dtype=torch.float64)[0], f64(kappa))


def log_tilt(family, angle):
    return np.log1p(np.cos(angle)) if family is PowerSpherical else np.cos(angle)


@cache
def angles(family, dim, kappa, nodes=600):
    """Angles to loc and weights of Gauss-Legendre quadrature over the sphere's area, around the
    mass of the density.
    """

    def log_mass(angle):  # of the angle, unnormalised
        return kappa * log_tilt(family, angle) + (dim - 2) * np.log(np.sin(angle))

    grid = np.concatenate([np.geomspace(1e-6, 0.1, 2000), np.linspace(0.1, math.pi - 1e-6, 4000)])
    heavy = np.flatnonzero(log_mass(grid) > log_mass(grid).max() - 45)
    low = 0.0 if heavy[0] == 0 else grid[heavy[0] - 1]
    high = math.pi if heavy[-1] == len(grid) - 1 else grid[heavy[-1] + 1]
    x, w = np.polynomial.legendre.leggauss(nodes)
    # Nodes crowd at both ends, where (1 + t)^κ has a cusp when κ is small.
    angle = low + (high - low) * (1 + np.sin(x * math.pi / 2)) / 2
    w = w * (high - low) * math.pi / 4 * np.cos(x * math.pi / 2)
    log_area = (
        math.log(2) + (dim - 1) / 2 * math.log(math.pi) - sp.gammaln((dim - 1) / 2)
    )  # of S^{D-2}
    return angle, np.log(w) + log_area + (dim - 2) * np.log(np.sin(angle))


def density_on(distribution, family, dim, kappa):
    """Angles, log-densities and probabilities of the quadrature nodes."""
    angle, log_weight = angles(family, dim, kappa)
    log_prob = distribution.log_prob(on_plane(np.cos(angle), np.sin(angle), dim)).numpy()
    mass = np.exp(log_prob + log_weight)
    return angle, np.where(mass > 0, log_prob, 0), mass  # 0 log 0 = 0, at the antipode


def tolerance(dim, kappa):
    """Log-densities of magnitude L carry rounding errors of a few L eps in float64.

    Within 1e-8 of the antipode the cosine rounds to -1: on the circle that much mass of a nearly
    uniform density is lost.
    """
    return 1e-11 + 1e-14 * (dim + kappa) * math.log(2 + dim + kappa) + (1e-8 if dim == 2 else 0)


# ---- densities, entropies, means and divergences against quadrature ----


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dim", DIMS)
def test_quadrature_integral_entropy_mean_and_kl(family, dim):
    uniform = HypersphericalUniform(dim, dtype=torch.float64)
    for kappa in KAPPAS:
        p = at_e1(family, dim, kappa)
        angle, log_prob, mass = density_on(p, family, dim, kappa)
        tol = tolerance(dim, kappa)
        close(mass.sum(), 1, abs=tol)
        mass = mass / mass.sum()
        close(p.entropy(), -(mass * log_prob).sum(), abs=10 * tol, rel=1e-9)
        close(p.mean[0], (mass * np.cos(angle)).sum(), abs=min(tol, 1e-8))
        assert p.mean[1:].abs().max() == 0
        divergence = (mass * (log_prob + uniform.entropy().item())).sum()
        close(kl_divergence(p, uniform), divergence, abs=10 * tol, rel=1e-9)


@pytest.mark.parametrize("dim, kappa", [(2, 0.0), (3, 0.5), (16, 40.0), (2048, 1e4)])
def test_power_spherical_variance_by_quadrature(dim, kappa):
    p = at_e1(PowerSpherical, dim, kappa)
    angle, _, mass = density_on(p, PowerSpherical, dim, kappa)
    along = (mass * np.cos(angle) ** 2).sum() - (mass * np.cos(angle)).sum() ** 2
    across = (mass * np.sin(angle) ** 2).sum() / (dim - 1)
    close(p.variance[0], along, rel=1e-6)
    close(p.variance[1:], np.full(dim - 1, across), rel=1e-9)


@pytest.mark.parametrize(
    "dim, kappa, kappa_q", [(2, 3.0, 0.0), (16, 40.0, 25.0), (128, 500.0, 400.0), (2048, 3e3, 1e4)]
)
def test_kl_power_spherical_von_mises_fisher(dim, kappa, kappa_q):
    p = at_e1(PowerSpherical, dim, kappa)
    q = at_e1(VonMisesFisher, dim, kappa_q)
    angle, log_p, mass = density_on(p, PowerSpherical, dim, kappa)
    log_q = q.log_prob(on_plane(np.cos(angle), np.sin(angle), dim)).numpy()
    close(kl_divergence(p, q), (mass * (log_p - log_q)).sum(), abs=1e-8)
    # Another direction: E[loc_q·x] = (loc_q·loc_p) E[t]
    tilted = VonMisesFisher(unit(dim, seed=3), f64(kappa_q))
    difference = kappa_q * p.mean[0] * (1 - tilted.loc[0])
    close(kl_divergence(p, tilted), kl_divergence(p, q) + difference, abs=1e-9)


def test_uniform():
    close(HypersphericalUniform(2).entropy(), math.log(2 * math.pi))
    close(HypersphericalUniform(3).entropy(), math.log(4 * math.pi))
    torch.manual_seed(0)
    p = HypersphericalUniform(4, dtype=torch.float64)
    x = p.sample((20_000,))
    close(p.log_prob(x[:3]), np.full(3, -math.log(2 * math.pi**2)))
    assert not p.mean.any()
    assert (x.T @ x / len(x) - torch.eye(4) / 4).abs().max() < 0.01


# ---- independent implementations ----


@pytest.mark.parametrize("dim", [2, 3, 16, 128, 2048])
def test_power_spherical_against_its_package(dim):
    x = unit(7, 5, dim, seed=2)
    parameters = (unit(5, dim, seed=1), f64([0.1, 1.0, 30.0, 1e3, 1e4]))
    ours = PowerSpherical(*parameters)
    theirs = oracle.PowerSpherical(*parameters)
    close(ours.log_prob(x), theirs.log_prob(x), abs=1e-8, rel=1e-11)
    close(ours.entropy(), theirs.entropy(), abs=1e-8, rel=1e-11)


@pytest.mark.parametrize("dim", [2, 3, 10, 64, 128])
def test_von_mises_fisher_against_scipy(dim):
    loc = unit(dim, seed=1)
    x = unit(6, dim, seed=2)
    for kappa in (1.0, 7.0, 100.0, 500.0):
        ours = VonMisesFisher(loc, f64(kappa))
        theirs = scipy.stats.vonmises_fisher(loc.numpy(), kappa)
        close(ours.log_prob(x), theirs.logpdf(x.numpy()), abs=1e-9)
        close(ours.entropy(), theirs.entropy(), abs=1e-9)


@cache
def exact_terms(family, dim, kappa):
    """Log-density at loc, entropy, KL to the uniform, and mean cosine, with 60 digits."""
    with mpmath.workdps(60):
        k = mpmath.mpf(kappa)
        half = mpmath.mpf(dim) / 2
        log_area = mpmath.log(2) + half * mpmath.log(mpmath.pi) - mpmath.loggamma(half)
        if family is PowerSpherical:
            beta = half - mpmath.mpf(1) / 2
            alpha = beta + k
            log_m = k * mpmath.log(2) + mpmath.loggamma(alpha) - mpmath.loggamma(beta)
            log_m += mpmath.loggamma(2 * beta) - mpmath.loggamma(alpha + beta)
            mean_g = mpmath.log(2) + mpmath.digamma(alpha) - mpmath.digamma(alpha + beta)
            mean = k / (2 * beta + k)
            at_loc = k * mpmath.log(2)
        else:
            bessel = mpmath.besseli(half - 1, k)
            mean = mean_g = mpmath.besseli(half, k) / bessel
            log_m = mpmath.loggamma(half) + (half - 1) * mpmath.log(2 / k) + mpmath.log(bessel)
            at_loc = k
        kl = k * mean_g - log_m
        return [float(x) for x in (at_loc - log_m - log_area, log_area - kl, kl, mean)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dim", [2, 3, 16, 65, 66, 67, 128, 2048, 4096])
def test_every_term_is_right_from_the_uniform_to_the_largest_concentration(family, dim):
    uniform = HypersphericalUniform(dim, dtype=torch.float64)
    for kappa in (1e-8, 1e-3, 0.9999, 1.0, 20.0, dim - 1.01, dim - 0.99, 300.0, 1e4, 1e6, 4e6):
        p = family(unit(dim), kappa)
        ours = [p.log_prob(p.loc), p.entropy(), kl_divergence(p, uniform), p.mean.norm()]
        close(torch.stack(ours), exact_terms(family, dim, kappa), rel=1e-8, abs=0)
        if family is VonMisesFisher:
            close(p.mean.norm(), exact_terms(family, dim, kappa)[3], rel=1e-13)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype, rounding", [(torch.float32, 1e-6), (torch.float64, 1e-9)])
def test_vectors_a_little_off_the_sphere_are_normalised(family, dtype, rounding):
    loc = unit(128).to(dtype)
    exact = exact_terms(family, 128, 1e5)
    for first, second in ((1 + 9e-5, 1 - 9e-5), (1 + 9e-5, 1 + 9e-5), (1.0, 1 - 9e-5)):
        close(family(first * loc, 1e5).log_prob(second * loc), exact[0], rel=rounding)
    close(family((1 + 9e-5) * loc, 1e5).mean.norm(), exact[3], rel=1e-6)
    squared = torch.full_like(loc, 1e-8)
    student = DirectionalStudentT(loc * (1 + 9e-5), squared, 4.0)
    expected = DirectionalStudentT(loc, squared, 4.0).log_prob(loc)
    close(student.log_prob(loc * (1 - 9e-5)), expected, rel=1e-4)


@pytest.mark.parametrize("dim", [2, 3, 128, 4096])
@pytest.mark.parametrize("freedom", [0.1, 4.0, 1999.0, 2001.0, 1e6, 1e9])
def test_the_student_t_is_right_for_all_dimensions_and_degrees_of_freedom(dim, freedom):
    loc = torch.eye(dim, dtype=torch.float64)[0]
    for scale in (1e-12, 0.05, 1e6):
        density = DirectionalStudentT(loc, torch.full_like(loc, scale), freedom)
        log_determinant = (dim - 1) * math.log(scale)
        for angle in (0.0, 0.06, 0.067, 0.3):  # the tangent vector has a series below 0.0632
            value = on_plane(math.cos(angle), math.sin(angle), dim)
            with mpmath.workdps(60):
                exact = exact_student_t(angle**2 / scale, log_determinant, dim - 1, freedom)
            close(density.log_prob(value), float(exact), rel=1e-8)


# ---- awkward places ----


def test_antipode():
    loc = torch.eye(4)[[0, 0, 1]].requires_grad_()
    kappa = torch.tensor([0.0, 2.0, 1e4], requires_grad=True)
    p = PowerSpherical(loc, kappa)
    log_prob = p.log_prob(-loc.detach())
    assert log_prob.tolist() == [pytest.approx(-math.log(2 * math.pi**2)), -math.inf, -math.inf]
    assert all(g.isfinite().all() for g in torch.autograd.grad(log_prob.sum(), [loc, kappa]))
    # A cosine that rounding leaves below -1 must not become NaN.
    assert not PowerSpherical(loc, kappa).log_prob(-loc.detach() * 1.00001).isnan().any()
    # NaN from upstream, where checks are off, must not be disguised as zero density.
    unchecked = PowerSpherical(loc, kappa, validate_args=False)
    assert unchecked.log_prob(torch.full((3, 4), math.nan)).isnan().all()
    # On von Mises-Fisher the antipode is an ordinary point.
    assert VonMisesFisher(loc, kappa).log_prob(-loc.detach()).isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(family, dtype):
    loc = unit(8, 512).to(dtype)
    x = unit(8, 512, seed=1).to(dtype)
    kappa = torch.linspace(0, 2e4, 8).to(dtype)
    uniform = HypersphericalUniform(512)
    reference = family(F.normalize(loc.double(), dim=-1), kappa.double())
    expected = reference.log_prob(F.normalize(x.double(), dim=-1))
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            p = family(loc, kappa)
            log_prob = p.log_prob(x)
            entropy = p.entropy()
            divergence = kl_divergence(p, uniform)
        assert log_prob.dtype == entropy.dtype == divergence.dtype == torch.float32
        close(log_prob, expected, rel=1e-6, abs=5e-3)
        close(entropy, reference.entropy(), rel=1e-6)
        close(divergence, kl_divergence(reference, uniform), rel=1e-6)


# ---- gradients ----


@pytest.mark.parametrize("dim", DIMS)
def test_normaliser_slope_is_minus_the_mean_resultant_length(dim):
    for value in (0.0, 1e-3, 1.0, 20.0, 300.0, 1e4, 1e6):
        kappa = f64(value).requires_grad_()
        p = at_e1(VonMisesFisher, dim, kappa)
        orthogonal = torch.eye(dim, dtype=torch.float64)[1]  # κ·t = 0, which leaves log C
        (slope,) = torch.autograd.grad(p.log_prob(orthogonal), kappa, create_graph=True)
        ratio = exact_terms(VonMisesFisher, dim, value)[3] if value else 0.0
        close(slope, -ratio, rel=1e-12, abs=1e-15)
        if 0 < value <= 1e4:
            (curvature,) = torch.autograd.grad(slope, kappa)
            close(curvature, -(1 - ratio**2 - (dim - 1) / value * ratio), rel=1e-6)


# ---- samples ----

E1 = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)


@pytest.mark.parametrize("loc", [E1, -E1, unit(5, seed=4)], ids=["e1", "-e1", "random"])
@pytest.mark.parametrize("kappa", [0.0, 3.0, 60.0])
def test_sample_moments_and_cosine(loc, kappa):
    torch.manual_seed(0)
    p = PowerSpherical(loc, f64(kappa))
    x = p.sample((40_000,))
    assert (x.norm(dim=-1) - 1).abs().max() < 1e-12
    error = p.variance.max().sqrt().item() / 200
    assert (x.mean(0) - p.mean).abs().max() < 4.5 * error
    along, across = at_e1(PowerSpherical, 5, kappa).variance[:2]
    covariance = across * torch.eye(5) + (along - across) * loc[:, None] * loc  # [5, 5]
    assert (torch.cov(x.T) - covariance).abs().max() < 6 * error * p.variance.max().sqrt()
    close(p.variance, covariance.diagonal())
    marginal = scipy.stats.beta(2 + kappa, 2)
    assert scipy.stats.kstest(((x @ loc + 1) / 2).numpy(), marginal.cdf).pvalue > 1e-3
    # Uniform on the tangent S^3
    other = unit(5, seed=9)
    tangent = F.normalize(x - (x @ loc)[:, None] * loc, dim=-1)
    side = tangent @ F.normalize(other - (other @ loc) * loc, dim=-1)
    marginal = scipy.stats.beta(1.5, 1.5)
    assert scipy.stats.kstest(((side + 1) / 2).numpy(), marginal.cdf).pvalue > 1e-3


@pytest.mark.parametrize("dim, kappa", [(2, 0.0), (2, 1e6), (3, 1e6), (2048, 1e4), (4096, 1e6)])
def test_sample_cosine_where_rounding_hurts(dim, kappa):
    torch.manual_seed(0)
    p = PowerSpherical(unit(dim).float(), kappa)
    x = p.sample((4000 if dim < 100 else 400,)).double()
    # (1 - t)/2, without cancellation
    half_squared_distance = ((x - p.loc.double()) ** 2).sum(-1) / 4
    assert (x.norm(dim=-1) - 1).abs().max() < 1e-5
    beta = (dim - 1) / 2
    marginal = scipy.stats.beta(beta, beta + kappa)
    assert scipy.stats.kstest(half_squared_distance.numpy(), marginal.cdf).pvalue > 1e-3


# ---- properties: hypothesis draws the examples, the same ones every time ----

drawn = settings(derandomize=True, deadline=None, max_examples=40)
seeds = st.integers(0, 2**31 - 1)
dimensions = st.integers(2, 512)
kappas = st.floats(-6, 6).map(lambda power: 10.0**power)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
precise = st.sampled_from([torch.float32, torch.float64])
shapes = st.lists(st.integers(1, 4), max_size=3).map(tuple)


def rotation(dim, seed):
    return torch.linalg.qr(normal(dim, dim, seed=seed))[0]


def rounding(kappa, dim):
    """Log-densities are differences of terms of the size of κ + D: what float64 leaves of them."""
    return 1e-12 * (kappa + dim) * math.log(2 + kappa + dim)


@pytest.mark.parametrize("family", FAMILIES)
@drawn
@given(
    dim=st.integers(2, 4096), kappa=st.just(0.0) | kappas, shape=shapes, dtype=dtypes, seed=seeds
)
def test_log_densities_are_finite_with_finite_gradients_and_at_least_in_float32(
    family, dim, kappa, shape, dtype, seed
):
    assume(dtype != torch.float16 or kappa < 6e4)  # its largest number
    loc = unit(*shape, dim, seed=seed).to(dtype).requires_grad_()
    value = unit(*shape, dim, seed=seed + 1).to(dtype)
    k = torch.full(shape, kappa).to(dtype).requires_grad_()
    density = family(loc, k)
    log_prob = density.log_prob(value)
    entropy = density.entropy()
    divergence = kl_divergence(density, HypersphericalUniform(dim))
    assert log_prob.shape == entropy.shape == divergence.shape == shape
    assert density.mean.shape == (*shape, dim)
    assert log_prob.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    terms = [log_prob, density.log_prob(loc.detach()), entropy, density.mean, divergence]
    gradients = torch.autograd.grad(sum(term.sum() for term in terms), [loc, k])
    for quantity in (*terms, *gradients):
        assert quantity.isfinite().all()
    peak = density.log_prob(loc)
    # Where log p is of the size of κ, the last digit of float32 is κ 2⁻²⁴.
    assert (log_prob <= peak + 1e-5 * (1 + peak.abs())).all(), "the density is highest at loc"


@pytest.mark.parametrize("family", FAMILIES)
@drawn
@given(dim=st.integers(2, 128), kappa=kappas, seed=seeds)
def test_densities_do_not_change_under_a_rotation_of_both(family, dim, kappa, seed):
    loc = unit(3, dim, seed=seed)
    value = unit(3, dim, seed=seed + 1)
    turn = rotation(dim, seed + 2)
    log_prob = family(loc, kappa).log_prob(value)
    turned_loc = F.normalize(loc @ turn, dim=1)
    turned = family(turned_loc, kappa).log_prob(F.normalize(value @ turn, dim=1))
    # d log p / d cosine is κ, or κ/(1 + t): a cosine is rounded to a few 1e-16.
    slope = torch.full((3,), kappa)
    if family is PowerSpherical:
        slope = kappa / (1 + (loc * value).sum(1)).clamp(min=1e-9)
    assert ((log_prob - turned).abs() <= rounding(kappa, dim) + 1e-14 * slope).all()


@pytest.mark.parametrize("family", FAMILIES)
@drawn
@given(dim=dimensions, kappa=kappas, seed=seeds)
def test_the_slope_of_the_normaliser_is_the_mean_and_concentration_lowers_the_entropy(
    family, dim, kappa, seed
):
    """d log M / dκ = E[g]."""
    k = torch.tensor(kappa, dtype=torch.float64, requires_grad=True)
    density = family(unit(dim, seed=seed), k)
    (slope,) = torch.autograd.grad(density._log_m(), k)
    assert slope.item() == pytest.approx(density._mean_g().item(), rel=1e-6, abs=1e-8)
    more = family(density.loc, 2 * k)
    assert more.entropy() <= density.entropy() + rounding(kappa, dim)


@drawn
@given(
    dim=st.integers(2, 256),
    kappa=kappas,
    shape=shapes,
    pole=st.sampled_from([0, 1, -1]),
    dtype=precise,
    seed=seeds,
)
def test_samples_are_unit_vectors_with_finite_gradients(dim, kappa, shape, pole, dtype, seed):
    """At the poles too, where the paper's sampler divides by zero."""
    torch.manual_seed(seed)
    loc = unit(*shape, dim, seed=seed)
    if pole:
        loc = pole * torch.eye(dim, dtype=torch.float64)[0].expand(*shape, dim)
    loc = loc.to(dtype).clone().requires_grad_()
    k = torch.full(shape, kappa, dtype=dtype, requires_grad=True)
    samples = PowerSpherical(loc, k).rsample((3,))
    assert samples.shape == (3, *shape, dim) and samples.dtype == dtype
    assert (samples.norm(dim=-1) - 1).abs().max() < 1e-4
    (samples * unit(dim, seed=1).to(dtype)).sum().backward()
    assert loc.grad.isfinite().all() and k.grad.isfinite().all()


# ---- errors ----

LOC = unit(4, 6)
ONES = torch.ones(4)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("loc", "concentration", "value", "culprit"),
    [
        (LOC, torch.ones(4, 1), LOC, "concentration"),  # it would be broadcast to [4, 4]
        (LOC, -ONES, LOC, "concentration"),
        (LOC, math.nan * ONES, LOC, "concentration"),
        (LOC, 4.1e6 * ONES, LOC, "concentration"),
        (2 * LOC, ONES, LOC, "loc"),
        (LOC, ONES, 2 * LOC, "value"),
        (LOC, ONES, LOC[0], "value"),
    ],
)
def test_what_is_no_density_or_no_direction_is_refused(family, loc, concentration, value, culprit):
    with pytest.raises(ValueError, match=culprit):
        family(loc, concentration).log_prob(value)


@pytest.mark.parametrize("dim", [2, 16, 256])
@pytest.mark.parametrize("kappa", [0.0, 3.0, 1e4])
def test_the_mean_cosine_is_that_of_its_beta_variable_and_gives_the_concentration_back(dim, kappa):
    mean = mean_cosine(kappa, dim)
    beta = scipy.stats.beta((dim - 1) / 2 + kappa, (dim - 1) / 2)
    assert mean == pytest.approx(2 * beta.mean() - 1, abs=1e-12)
    assert concentration_of(mean, dim) == pytest.approx(kappa)
