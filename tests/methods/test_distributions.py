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
from torch.autograd import gradcheck, gradgradcheck
from torch.distributions import kl_divergence

from lib.distributions import (
    DirectionalStudentT,
    HypersphericalUniform,
    PowerSpherical,
    VonMisesFisher,
    _tangent,
    concentration_of,
    mean_cosine,
)

FAMILIES = [PowerSpherical, VonMisesFisher]
DIMS = [2, 3, 4, 5, 16, 66, 128, 2048, 4096]
KAPPAS = [0.0, 1e-3, 0.5, 1.0, 20.0, 300.0, 1e4, 1e6]


def f64(x):
    return torch.as_tensor(x, dtype=torch.float64)


def unit(*shape, seed=0):
    return F.normalize(
        torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)),
        dim=-1,
    )


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
    values = torch.zeros(len(angle), dim, dtype=torch.float64)
    values[:, 0] = f64(np.cos(angle))
    values[:, 1] = f64(np.sin(angle))
    log_prob = distribution.log_prob(values).numpy()
    mass = np.exp(log_prob + log_weight)
    return angle, np.where(mass > 0, log_prob, 0), mass  # 0 log 0 = 0, at the antipode


def tolerance(dim, kappa):
    """Log-densities of magnitude L carry rounding errors of a few L eps in float64.

    Within 1e-8 of the antipode the cosine rounds to -1: on the circle that much mass of a nearly
    uniform density is lost.
    """
    return 1e-11 + 1e-14 * (dim + kappa) * math.log(2 + dim + kappa) + (1e-8 if dim == 2 else 0)


@cache
def bessel_terms(dim, kappa):
    """log M(κ) and A(κ) of von Mises-Fisher with 40 digits."""
    with mpmath.workdps(40):
        order = mpmath.mpf(dim) / 2 - 1
        kappa = mpmath.mpf(kappa)
        lower = mpmath.besseli(order, kappa)
        upper = mpmath.besseli(order + 1, kappa)
        return float(
            mpmath.loggamma(order + 1) + order * mpmath.log(2 / kappa) + mpmath.log(lower)
        ), float(upper / lower)


# ---- densities, entropies, means and divergences against quadrature ----


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dim", DIMS)
def test_quadrature_integral_entropy_mean_and_kl(family, dim):
    uniform = HypersphericalUniform(dim, dtype=torch.float64)
    for kappa in KAPPAS:
        p = at_e1(family, dim, kappa)
        angle, log_prob, mass = density_on(p, family, dim, kappa)
        tol = tolerance(dim, kappa)
        assert mass.sum() == pytest.approx(1, abs=tol), kappa
        mass = mass / mass.sum()
        assert p.entropy().item() == pytest.approx(
            -(mass * log_prob).sum(), abs=10 * tol, rel=1e-9
        ), kappa
        assert p.mean[0].item() == pytest.approx(
            (mass * np.cos(angle)).sum(), abs=min(tol, 1e-8)
        ), kappa
        assert p.mean[1:].abs().max() == 0
        expected = (mass * (log_prob + uniform.entropy().item())).sum()
        assert kl_divergence(p, uniform).item() == pytest.approx(
            expected, abs=10 * tol, rel=1e-9
        ), kappa


@pytest.mark.parametrize(
    "dim, kappa", [(2, 0.0), (2, 5.0), (3, 0.5), (16, 40.0), (128, 1e3), (2048, 1e4)]
)
def test_power_spherical_variance_by_quadrature(dim, kappa):
    p = at_e1(PowerSpherical, dim, kappa)
    angle, _, mass = density_on(p, PowerSpherical, dim, kappa)
    along = (mass * np.cos(angle) ** 2).sum() - (mass * np.cos(angle)).sum() ** 2
    across = (mass * np.sin(angle) ** 2).sum() / (dim - 1)
    assert p.variance[0].item() == pytest.approx(along, rel=1e-6)
    assert p.variance[1:].numpy() == pytest.approx(np.full(dim - 1, across), rel=1e-9)


@pytest.mark.parametrize(
    "dim, kappa, kappa_q",
    [(2, 3.0, 0.0), (3, 10.0, 4.0), (16, 40.0, 25.0), (128, 500.0, 400.0), (2048, 3e3, 1e4)],
)
def test_kl_power_spherical_von_mises_fisher(dim, kappa, kappa_q):
    p = at_e1(PowerSpherical, dim, kappa)
    q = at_e1(VonMisesFisher, dim, kappa_q)
    angle, log_p, mass = density_on(p, PowerSpherical, dim, kappa)
    values = torch.zeros(len(angle), dim, dtype=torch.float64)
    values[:, 0] = f64(np.cos(angle))
    values[:, 1] = f64(np.sin(angle))
    assert kl_divergence(p, q).item() == pytest.approx(
        (mass * (log_p - q.log_prob(values).numpy())).sum(), abs=1e-8
    )
    tilted = VonMisesFisher(
        unit(dim, seed=3), f64(kappa_q)
    )  # another direction: E[loc_q·x] = (loc_q·loc_p) E[t]
    difference = kappa_q * p.mean[0] * (1 - tilted.loc[0])
    assert kl_divergence(p, tilted).item() == pytest.approx(
        (kl_divergence(p, q) + difference).item(), abs=1e-9
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_integral_over_the_circle_and_the_sphere_for_any_direction(family):
    # Trapezoidal rule on the circle, and Gauss-Legendre in height times trapezoidal in longitude:
    # nothing of the 1-D marginal is assumed.
    turn = np.arange(2000) * 2 * math.pi / 2000
    circle = f64(np.stack([np.cos(turn), np.sin(turn)], -1))
    height, weight = np.polynomial.legendre.leggauss(200)
    ring = np.sqrt(1 - height**2)[:, None]
    longitude = np.arange(400) * 2 * math.pi / 400
    sphere = f64(
        np.stack(
            np.broadcast_arrays(
                ring * np.cos(longitude), ring * np.sin(longitude), height[:, None]
            ),
            -1,
        )
    )  # [200, 400, 3]
    for seed, kappa in enumerate([0.0, 2.0, 30.0]):
        p = family(unit(2, seed=seed), f64(kappa))
        q = family(unit(3, seed=seed), f64(kappa))
        mass = q.log_prob(sphere).exp() * f64(weight)[:, None] * 2 * math.pi / 400
        assert p.log_prob(circle).exp().sum().item() * 2 * math.pi / 2000 == pytest.approx(
            1, abs=1e-12
        )
        assert mass.sum().item() == pytest.approx(1, abs=1e-12)
        assert (mass[..., None] * sphere).sum((0, 1)).numpy() == pytest.approx(
            q.mean.numpy(), abs=1e-12
        )


def test_uniform():
    assert HypersphericalUniform(2).entropy().item() == pytest.approx(math.log(2 * math.pi))
    assert HypersphericalUniform(3).entropy().item() == pytest.approx(math.log(4 * math.pi))
    torch.manual_seed(0)
    p = HypersphericalUniform(4, dtype=torch.float64)
    x = p.sample((20_000,))
    assert x.norm(dim=-1).numpy() == pytest.approx(1)
    assert p.log_prob(x[:3]).numpy() == pytest.approx(-math.log(2 * math.pi**2))
    assert p.mean.shape == (4,) and not p.mean.any()
    assert (x.T @ x / len(x) - torch.eye(4) / 4).abs().max() < 0.01
    q = p.expand((3, 2))
    assert (
        q.sample((5,)).shape == (5, 3, 2, 4)
        and q.entropy().shape == (3, 2)
        and q.mean.shape == (3, 2, 4)
    )


# ---- independent implementations ----


@pytest.mark.parametrize("dim", [2, 3, 16, 128, 2048])
def test_power_spherical_against_oracle(dim):
    kappa = f64([0.1, 1.0, 30.0, 1e3, 1e4])
    loc = unit(5, dim, seed=1)
    x = unit(7, 5, dim, seed=2)
    ours = PowerSpherical(loc, kappa)
    theirs = oracle.PowerSpherical(loc, kappa)
    assert ours.log_prob(x).numpy() == pytest.approx(
        theirs.log_prob(x).numpy(), abs=1e-8, rel=1e-11
    )
    assert ours.entropy().numpy() == pytest.approx(theirs.entropy().numpy(), abs=1e-8, rel=1e-11)
    means = [
        oracle.PowerSpherical(m, k).mean.numpy() for m, k in zip(loc, kappa, strict=True)
    ]  # its batched mean does not broadcast
    assert ours.mean.numpy() == pytest.approx(np.stack(means), abs=1e-12)
    expected = torch.distributions.kl_divergence(
        theirs, oracle.HypersphericalUniform(dim, dtype=torch.float64)
    )
    assert kl_divergence(ours, HypersphericalUniform(dim)).numpy() == pytest.approx(
        expected.numpy(), abs=1e-4
    )  # float32 lgamma in it


@pytest.mark.parametrize("dim", [2, 3, 10, 64, 128])
def test_von_mises_fisher_against_scipy(dim):
    loc = unit(dim, seed=1)
    x = unit(6, dim, seed=2)
    for kappa in (1.0, 7.0, 100.0, 500.0):
        ours = VonMisesFisher(loc, f64(kappa))
        theirs = scipy.stats.vonmises_fisher(loc.numpy(), kappa)
        assert ours.log_prob(x).numpy() == pytest.approx(theirs.logpdf(x.numpy()), abs=1e-9)
        assert ours.entropy().item() == pytest.approx(theirs.entropy(), abs=1e-9)
        ratio = sp.ive(dim / 2, kappa) / sp.ive(dim / 2 - 1, kappa)
        assert ours.mean.norm().item() == pytest.approx(ratio, rel=1e-11)


@pytest.mark.parametrize("dim", [*DIMS, 65, 67, 68, 100, 500])
def test_von_mises_fisher_against_mpmath(dim):
    for kappa in (1e-3, 0.1, 1.0, 5.0, 20.0, 50.0, 100.0, 300.0, 1e3, 1e4, 1e5, 1e6):
        log_m, ratio = bessel_terms(dim, kappa)
        p = at_e1(VonMisesFisher, dim, kappa)
        ours = kappa - p.log_prob(p.loc) - HypersphericalUniform(dim, dtype=torch.float64).entropy()
        assert ours.item() == pytest.approx(log_m, abs=2e-11, rel=1e-13), kappa
        assert p.mean[0].item() == pytest.approx(ratio, rel=1e-13), kappa


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
@pytest.mark.parametrize("dim", [2, 3, 16, 127, 128, 2048, 4096])
def test_every_term_is_right_from_the_uniform_to_the_largest_concentration(family, dim):
    uniform = HypersphericalUniform(dim, dtype=torch.float64)
    for kappa in (1e-8, 1e-3, 0.9999, 1.0, dim - 1.01, dim - 0.99, 300.0, 1e4, 1e6, 4e6):
        p = family(unit(dim), kappa)
        ours = [p.log_prob(p.loc), p.entropy(), kl_divergence(p, uniform), p.mean.norm()]
        ours = [value.item() for value in ours]
        assert ours == pytest.approx(exact_terms(family, dim, kappa), rel=1e-8, abs=0), kappa


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype, rounding", [(torch.float32, 1e-6), (torch.float64, 1e-9)])
def test_vectors_a_little_off_the_sphere_are_normalised(family, dtype, rounding):
    loc = unit(128).to(dtype)
    for kappa in (6223.0, 1e5):
        exact = exact_terms(family, 128, kappa)[0]
        for first, second in ((1 + 9e-5, 1 - 9e-5), (1 + 9e-5, 1 + 9e-5), (1.0, 1 - 9e-5)):
            log_prob = family(first * loc, kappa).log_prob(second * loc).item()
            assert log_prob == pytest.approx(exact, rel=rounding)
        p = family((1 + 9e-5) * loc, kappa)
        assert p.mean.norm().item() == pytest.approx(exact_terms(family, 128, kappa)[3], rel=1e-6)
    student = DirectionalStudentT(loc * (1 + 9e-5), torch.full_like(loc, 1e-8), 4.0)
    expected = DirectionalStudentT(loc, torch.full_like(loc, 1e-8), 4.0).log_prob(loc)
    assert student.log_prob(loc * (1 - 9e-5)).item() == pytest.approx(expected.item(), rel=1e-4)


def exact_student_t(squared_distance, log_determinant, dim, freedom):
    with mpmath.workdps(60):
        nu = mpmath.mpf(freedom)
        ratio = mpmath.loggamma((nu + dim) / 2) - mpmath.loggamma(nu / 2)
        constant = ratio - mpmath.mpf(dim) / 2 * mpmath.log(nu * mpmath.pi)
        tail = (nu + dim) / 2 * mpmath.log1p(mpmath.mpf(squared_distance) / nu)
        return float(constant - mpmath.mpf(log_determinant) / 2 - tail)


@pytest.mark.parametrize("dim", [2, 3, 128, 4096])
@pytest.mark.parametrize("freedom", [0.1, 4.0, 1999.0, 2001.0, 1e6, 1e9])
def test_the_student_t_is_right_for_all_dimensions_and_degrees_of_freedom(dim, freedom):
    loc = torch.eye(dim, dtype=torch.float64)[0]
    value = torch.zeros(dim, dtype=torch.float64)
    value[0] = math.cos(0.3)
    value[1] = math.sin(0.3)
    for scale in (1e-12, 0.05, 1e6):
        density = DirectionalStudentT(loc, torch.full_like(loc, scale), freedom)
        log_determinant = (dim - 1) * math.log(scale)
        for point, distance in ((loc, 0.0), (value, 0.3**2 / scale)):
            exact = exact_student_t(distance, log_determinant, dim - 1, freedom)
            assert density.log_prob(point).item() == pytest.approx(exact, rel=1e-8)


def test_von_mises_fisher_on_the_sphere_in_closed_form():
    kappa = np.array([0.3, 2.0, 50.0])
    p = VonMisesFisher(unit(3, 3), f64(kappa))
    assert p.log_prob(p.loc).numpy() == pytest.approx(
        kappa - np.log(4 * np.pi * np.sinh(kappa) / kappa), abs=1e-12
    )
    assert p.mean.norm(dim=-1).numpy() == pytest.approx(1 / np.tanh(kappa) - 1 / kappa, abs=1e-12)


# ---- awkward places ----


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dim", [2, 3, 64, 4096])
def test_zero_concentration_is_the_uniform(family, dim):
    uniform = HypersphericalUniform(dim, dtype=torch.float64)
    kappa = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    p = family(unit(2, dim), kappa)
    for x in (unit(2, dim, seed=1), p.loc, -p.loc, -torch.eye(dim, dtype=torch.float64)[:2]):
        assert torch.equal(p.log_prob(x), uniform.log_prob(x))
    assert torch.equal(p.entropy(), uniform.entropy().expand(2))
    assert not kl_divergence(p, uniform).any() and not p.mean.any()
    p.log_prob(unit(2, dim, seed=1)).sum().backward()
    t = (p.loc * unit(2, dim, seed=1)).sum(-1)
    expected = (
        t
        if family is VonMisesFisher
        else torch.log1p(t) - (math.log(2) + sp.digamma((dim - 1) / 2) - sp.digamma(dim - 1))
    )
    assert kappa.grad.numpy() == pytest.approx(expected.numpy(), abs=1e-12)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_everywhere(family, dtype):
    for dim in (2, 3, 63, 2048, 4096):
        e1 = torch.eye(dim, dtype=dtype)[0]
        loc = torch.stack([e1, -e1, unit(dim).to(dtype)]).repeat_interleave(4, 0).requires_grad_()
        kappa = torch.tensor([0.0, 1e-3, 1e4, 1e6], dtype=dtype).repeat(3).requires_grad_()
        p = family(loc, kappa)
        x = unit(12, dim, seed=5).to(dtype)
        terms = [
            p.log_prob(x),
            p.log_prob(loc.detach()),
            p.entropy(),
            p.mean,
            kl_divergence(p, HypersphericalUniform(dim)),
        ]
        assert all(term.dtype == dtype and term.isfinite().all() for term in terms)
        assert all(
            g.isfinite().all()
            for g in torch.autograd.grad(sum(term.sum() for term in terms), [loc, kappa])
        )


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
    assert (
        PowerSpherical(loc, kappa, validate_args=False)
        .log_prob(torch.full((3, 4), math.nan))
        .isnan()
        .all()
    )
    # On von Mises-Fisher the antipode is an ordinary point.
    assert VonMisesFisher(loc, kappa).log_prob(-loc.detach()).isfinite().all()


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_agrees_with_float64(family):
    # Arguments are float32 numbers in both, so that only the computation differs; lgamma in float32
    # would be off by 3e-3 to 3e-2 here.
    for dim, kappa in ((2048, 1e4), (2048, 1e5), (4096, 1e5)):
        loc = unit(4, dim).float()
        x = F.normalize(loc + 0.3 * unit(4, dim, seed=1).float(), dim=-1)
        single = family(loc, kappa)
        double = family(loc.double(), kappa)
        cosine_error = kappa * 1e-7 / 2
        assert single.log_prob(x).numpy() == pytest.approx(
            double.log_prob(x.double()).numpy(), rel=2e-7, abs=cosine_error
        )
        assert single.entropy().numpy() == pytest.approx(double.entropy().numpy(), rel=1e-7)
        assert single.mean.numpy() == pytest.approx(double.mean.numpy(), abs=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(family, dtype):
    loc = unit(8, 512).to(dtype)
    x = unit(8, 512, seed=1).to(dtype)
    kappa = torch.linspace(0, 2e4, 8).to(dtype)
    reference = family(F.normalize(loc.double(), dim=-1), kappa.double())
    expected = reference.log_prob(F.normalize(x.double(), dim=-1)).numpy()
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            p = family(loc, kappa)
            log_prob = p.log_prob(x)
            entropy = p.entropy()
            divergence = kl_divergence(p, HypersphericalUniform(512))
        assert log_prob.dtype == entropy.dtype == divergence.dtype == torch.float32
        assert log_prob.numpy() == pytest.approx(expected, rel=1e-6, abs=5e-3)
        assert entropy.numpy() == pytest.approx(reference.entropy().numpy(), rel=1e-6)
        assert divergence.numpy() == pytest.approx(
            kl_divergence(reference, HypersphericalUniform(512)).numpy(), rel=1e-6
        )


def test_samples_under_autocast():
    samples = []
    for enabled in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            samples.append(PowerSpherical(unit(8, 512).float(), 1e4).rsample())
    assert samples[0].dtype == torch.float32 and torch.equal(*samples)


# ---- gradients ----


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dim", [2, 3, 24, 66])
def test_gradcheck(family, dim):
    direction = (
        2 * unit(3, dim)
    ).requires_grad_()  # normalised inside, so that gradcheck's steps stay on the sphere
    kappa = f64([0.01, 5.0, 150.0]).requires_grad_()
    x = unit(3, dim, seed=1)
    uniform = HypersphericalUniform(dim)

    def log_prob(direction, kappa):
        return family(F.normalize(direction, dim=-1), kappa).log_prob(x)

    def others(direction, kappa):
        p = family(F.normalize(direction, dim=-1), kappa)
        return p.entropy(), p.mean, kl_divergence(p, uniform)

    along_one_direction = (
        dim > 3
    )  # a random one: every coordinate would take a hundred times as long
    assert gradcheck(
        log_prob, (direction, kappa), atol=1e-6, rtol=1e-5, fast_mode=along_one_direction
    )
    assert gradcheck(
        others, (direction, kappa), atol=1e-6, rtol=1e-5, fast_mode=along_one_direction
    )
    assert gradgradcheck(log_prob, (direction, kappa), atol=1e-5, rtol=1e-4, fast_mode=True)


def test_gradcheck_kl_to_von_mises_fisher():
    p_loc = (2 * unit(3, 8)).requires_grad_()
    q_loc = (2 * unit(3, 8, seed=1)).requires_grad_()
    kappa = f64([0.5, 5.0, 80.0]).requires_grad_()
    kappa_q = f64([2.0, 3.0, 90.0]).requires_grad_()
    assert gradcheck(
        lambda a, k, b, q: kl_divergence(
            PowerSpherical(F.normalize(a, dim=-1), k), VonMisesFisher(F.normalize(b, dim=-1), q)
        ),
        (p_loc, kappa, q_loc, kappa_q),
        atol=1e-6,
        rtol=1e-5,
    )


@pytest.mark.parametrize("dim", DIMS)
def test_normaliser_slope_is_minus_the_mean_resultant_length(dim):
    for value in (0.0, 1e-3, 1.0, 20.0, 300.0, 1e4, 1e6):
        kappa = f64(value).requires_grad_()
        p = VonMisesFisher(torch.eye(dim, dtype=torch.float64)[0], kappa)
        orthogonal = torch.eye(dim, dtype=torch.float64)[1]  # κ·t = 0, which leaves log C
        (slope,) = torch.autograd.grad(p.log_prob(orthogonal), kappa, create_graph=True)
        expected = bessel_terms(dim, value)[1] if value else 0.0
        assert slope.item() == pytest.approx(-expected, rel=1e-12, abs=1e-15)
        if 0 < value <= 1e4:
            ratio = expected
            (curvature,) = torch.autograd.grad(slope, kappa)
            assert curvature.item() == pytest.approx(
                -(1 - ratio**2 - (dim - 1) / value * ratio), rel=1e-6
            )


@pytest.mark.parametrize("dim", [2, 4, 64, 2048])
@pytest.mark.parametrize("cosine", [0.05, 0.3, 0.8, 0.99])
def test_stationary_concentration(dim, cosine):
    """The κ that maximises log p at cosine s solves ψ(α+β) - ψ(α) + log((1+s)/2) = 0, close to
    (D-1) s/(1-s) + 1/2.
    """
    beta = (dim - 1) / 2
    root = scipy.optimize.brentq(
        lambda k: sp.digamma(2 * beta + k) - sp.digamma(beta + k) + math.log((1 + cosine) / 2),
        1e-9,
        1e7,
    )
    kappa = f64(root).requires_grad_()
    x = torch.zeros(dim, dtype=torch.float64)
    x[0] = cosine
    x[1] = math.sqrt(1 - cosine**2)
    p = PowerSpherical(torch.eye(dim, dtype=torch.float64)[0], kappa)
    (slope,) = torch.autograd.grad(p.log_prob(x), kappa, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, kappa)
    assert (
        abs(slope / curvature).item() < 1e-6 * root and curvature < 0
    )  # a Newton step from the root goes nowhere
    if dim >= 64:
        assert root == pytest.approx((dim - 1) * cosine / (1 - cosine) + 0.5, rel=1e-3)


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
    assert p.variance.numpy() == pytest.approx(covariance.diagonal().numpy())
    marginal = scipy.stats.beta(2 + kappa, 2)
    assert scipy.stats.kstest(((x @ loc + 1) / 2).numpy(), marginal.cdf).pvalue > 1e-3
    side = F.normalize(x - (x @ loc)[:, None] * loc, dim=-1) @ F.normalize(
        unit(5, seed=9) - (unit(5, seed=9) @ loc) * loc, dim=-1
    )
    assert (
        scipy.stats.kstest(((side + 1) / 2).numpy(), scipy.stats.beta(1.5, 1.5).cdf).pvalue > 1e-3
    )  # uniform on the tangent S^3


@pytest.mark.parametrize("dim, kappa", [(2, 0.0), (2, 1e6), (3, 1e6), (2048, 1e4), (4096, 1e6)])
def test_sample_cosine_where_rounding_hurts(dim, kappa):
    torch.manual_seed(0)
    p = PowerSpherical(unit(dim).float(), kappa)
    n = 4000 if dim < 100 else 400
    x = p.sample((n,)).double()
    half_squared_distance = ((x - p.loc.double()) ** 2).sum(
        -1
    ) / 4  # (1 - t)/2, without cancellation
    assert x.dtype == torch.float64 and (x.norm(dim=-1) - 1).abs().max() < 1e-5
    beta = (dim - 1) / 2
    assert (
        scipy.stats.kstest(
            half_squared_distance.numpy(), scipy.stats.beta(beta, beta + kappa).cdf
        ).pvalue
        > 1e-3
    )


def test_entropy_by_samples_and_shapes():
    torch.manual_seed(0)
    p = PowerSpherical(unit(3, 2, 6), f64([[0.0, 1.0], [5.0, 20.0], [100.0, 1e3]]))
    x = p.rsample((20_000,))
    assert x.shape == (20_000, 3, 2, 6) and p.rsample().shape == (3, 2, 6)
    log_prob = p.log_prob(x)
    error = log_prob.std(0) / math.sqrt(len(x))
    assert ((-log_prob.mean(0) - p.entropy()).abs() <= 4.5 * error + 1e-12).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_rotation_equivariance(family):
    rotation = torch.linalg.qr(
        torch.randn(7, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    )[0]
    loc = unit(4, 7)
    x = unit(4, 7, seed=1)
    kappa = f64([0.0, 1.0, 10.0, 500.0])
    p = family(loc, kappa)
    rotated = family(loc @ rotation.T, kappa)
    assert rotated.log_prob(x @ rotation.T).numpy() == pytest.approx(
        p.log_prob(x).numpy(), abs=1e-10
    )
    assert rotated.mean.numpy() == pytest.approx((p.mean @ rotation.T).numpy(), abs=1e-12)


@pytest.mark.parametrize(
    "direction", [E1, -E1, E1.roll(1), unit(5, seed=4)], ids=["e1", "-e1", "e2", "random"]
)
@pytest.mark.parametrize("kappa_value", [0.5, 8.0, 200.0])
def test_reparameterised_gradient(direction, kappa_value):
    """d E[(aᵀx)² + bᵀx] by samples against the exact expectation, differentiated."""
    torch.manual_seed(0)
    a = unit(5, seed=7)
    b = unit(5, seed=8)
    inputs = [(1.5 * direction).requires_grad_(), f64(kappa_value).requires_grad_()]

    def distribution():
        return PowerSpherical(F.normalize(inputs[0], dim=-1), inputs[1])

    p = distribution()
    alpha = 2 + inputs[1]
    beta = 2.0
    across = 4 * alpha * beta / ((alpha + beta) * (alpha + beta + 1)) / 4  # E[1 - t²]/(D-1)
    exact = (
        across + (1 - 5 * across) * (p.loc @ a) ** 2 + p.mean @ b
    )  # E[xxᵀ] = across I + (1 - D across) loc locᵀ
    expected = torch.autograd.grad(exact, inputs)

    groups = []
    for _ in range(40):
        x = distribution().rsample((1000,))
        groups.append(
            torch.cat(
                [g.reshape(-1) for g in torch.autograd.grad(((x @ a) ** 2 + x @ b).mean(), inputs)]
            )
        )
    estimates = torch.stack(groups)  # [40, 6]
    error = estimates.std(0) / math.sqrt(len(estimates))
    difference = (estimates.mean(0) - torch.cat([g.reshape(-1) for g in expected])).abs()
    assert estimates.isfinite().all()
    assert (difference < 4.5 * error + 1e-9).all(), difference / error


def test_sampling_gradient_is_finite_at_the_poles_in_float32():
    torch.manual_seed(0)
    for dim in (2, 3, 256):
        e1 = torch.eye(dim)[0]
        loc = torch.stack([e1, -e1, torch.eye(dim)[1]]).repeat(3, 1).requires_grad_()
        kappa = torch.tensor([0.0, 1.0, 1e6]).repeat_interleave(3).requires_grad_()
        x = PowerSpherical(loc, kappa).rsample((500,))
        assert x.isfinite().all()
        assert all(
            g.isfinite().all()
            for g in torch.autograd.grad((x * unit(dim).float()).sum(), [loc, kappa])
        )


# ---- shapes and errors ----


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_and_expand(family):
    p = family(unit(3, 6), f64([1.0, 2.0, 3.0]))
    assert (p.batch_shape, p.event_shape) == ((3,), (6,)) and family.__name__ in repr(p)
    q = p.expand((4, 3))
    assert (
        type(q) is family
        and q.batch_shape == (4, 3)
        and q.mean.shape == (4, 3, 6)
        and q.entropy().shape == (4, 3)
    )
    x = unit(4, 3, 6, seed=1)
    assert torch.equal(q.log_prob(x), p.log_prob(x))
    with pytest.raises(ValueError, match="unit vectors"):
        q.log_prob(2 * x)
    assert torch.equal(
        family(unit(3, 6), 2.0).entropy(), family(unit(3, 6), f64([2.0] * 3)).entropy()
    )
    assert family(unit(6), 2.0).log_prob(x).shape == (4, 3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("validate", [True, False])
def test_wrong_shapes_are_errors(family, validate):
    loc = unit(4, 6)
    for shape in ((4, 1), (1,), (), (1, 4), (6,)):
        with pytest.raises(ValueError, match=r"concentration has shape .* squeeze or expand"):
            family(loc, torch.ones(shape), validate_args=validate)
    with pytest.raises(ValueError, match="D >= 2"):
        family(torch.ones(4, 1), torch.ones(4), validate_args=validate)
    p = family(loc, torch.ones(4), validate_args=validate)
    for shape in ((6,), (3, 6), (4, 1, 6), (1, 6), (4, 5), ()):
        with pytest.raises(ValueError, match="value has shape"):
            p.log_prob(torch.ones(shape))
    with pytest.raises(ValueError, match="value has shape"):
        HypersphericalUniform(6).log_prob(unit(4, 5))
    with pytest.raises(ValueError, match="at least 2"):
        HypersphericalUniform(1)


@pytest.mark.parametrize("family", FAMILIES)
def test_wrong_values_are_errors(family):
    loc = unit(4, 6)
    for bad in (-1.0, 4.1e6, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"concentration .* one is {bad}"):
            family(loc, f64([1.0, bad, 2.0, 3.0]))
    for bad in (2 * loc, 0 * loc, math.nan * loc):
        with pytest.raises(ValueError, match="loc must hold unit vectors"):
            family(bad, torch.ones(4))
        with pytest.raises(ValueError, match="value must hold unit vectors"):
            family(loc, torch.ones(4)).log_prob(bad)
    assert family(2 * loc, torch.ones(4), validate_args=False).batch_shape == (4,)


def test_kl_between_different_shapes_is_an_error():
    p = PowerSpherical(unit(4, 6), torch.ones(4))
    with pytest.raises(ValueError, match="KL divergence"):
        kl_divergence(p, HypersphericalUniform(5))
    with pytest.raises(ValueError, match="KL divergence"):
        kl_divergence(p, VonMisesFisher(unit(4, 1, 6), torch.ones(4, 1)))
    assert kl_divergence(p, VonMisesFisher(unit(6), 2.0)).shape == (4,)


def test_a_number_keeps_its_digits_beside_directions_of_any_kind():
    whole = torch.tensor([1, 0, 0])
    half = torch.tensor([1.0, 0, 0]).half()
    exact = PowerSpherical(torch.tensor([1.0, 0, 0]), 2.5)
    assert PowerSpherical(whole, 2.5).log_prob(exact.loc) == exact.log_prob(exact.loc)
    assert PowerSpherical(half, 70000.0).concentration == 70000 and PowerSpherical(
        half.bfloat16(), 1001.3
    ).concentration == torch.tensor(1001.3)
    assert HypersphericalUniform(3).log_prob(whole).item() == pytest.approx(-math.log(4 * math.pi))


def test_degrees_of_freedom_beyond_the_gaussian_are_refused():
    loc = torch.tensor([1.0, 0.0])
    with pytest.raises(ValueError, match="degrees_of_freedom is inf; it must be positive, and 1e6"):
        DirectionalStudentT(loc, torch.ones(2), math.inf)


@pytest.mark.parametrize("dim", [2, 16, 256])
@pytest.mark.parametrize("kappa", [0.0, 3.0, 1e4])
def test_the_mean_cosine_is_that_of_its_beta_variable_and_gives_the_concentration_back(dim, kappa):
    mean = mean_cosine(kappa, dim)
    assert mean == pytest.approx(
        2 * scipy.stats.beta((dim - 1) / 2 + kappa, (dim - 1) / 2).mean() - 1, abs=1e-12
    )
    assert concentration_of(mean, dim) == pytest.approx(kappa)


@pytest.mark.parametrize("q", [1e-12, 1e-6, 9e-4, 1.1e-3, 0.3])
def test_the_logarithm_map_is_as_long_as_the_angle_on_both_sides_of_its_series(q):
    angle = 2 * math.asin(math.sqrt(q))
    loc = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    chord = torch.tensor(
        [[-2 * q, math.sin(angle), 0.0]], dtype=torch.float64
    )  # cos θ - 1 = -2 sin²(θ/2)
    assert _tangent(loc, chord).norm().item() == pytest.approx(angle, rel=1e-11)
