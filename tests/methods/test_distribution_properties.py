"""Properties of densities over shapes, dtypes and extreme values.

hypothesis draws the examples, the same ones every time.
"""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.distributions import kl_divergence
from torch.nn import functional as F

from lib.distributions import (
    DirectionalStudentT,
    HypersphericalUniform,
    PowerSpherical,
    VonMisesFisher,
)
from tests.methods.comparison import normal, unit

drawn = settings(derandomize=True, deadline=None, max_examples=40)
both = pytest.mark.parametrize("family", [PowerSpherical, VonMisesFisher])

seeds = st.integers(0, 2**31 - 1)
dimensions = st.integers(2, 512)
kappas = st.floats(-6, 6).map(lambda power: 10.0**power)
scales = st.floats(-6, 6).map(lambda power: 10.0**power)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
precise = st.sampled_from([torch.float32, torch.float64])
shapes = st.lists(st.integers(1, 4), max_size=3).map(tuple)


def rotation(dim, seed):
    return torch.linalg.qr(normal(dim, dim, seed=seed))[0]


def rounding(kappa, dim):
    """Log-densities are differences of terms of the size of κ + D: what float64 leaves of them."""
    return 1e-12 * (kappa + dim) * math.log(2 + kappa + dim)


@both
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


@both
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


@both
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


@drawn
@given(
    dim=dimensions,
    freedom=st.floats(-1, 3).map(lambda power: 10.0**power),
    scale=scales,
    intrinsic=st.booleans(),
    dtype=precise,
    seed=seeds,
)
def test_the_directional_student_t_is_finite_with_finite_gradients(
    dim, freedom, scale, intrinsic, dtype, seed
):
    loc = unit(4, dim, seed=seed).to(dtype).requires_grad_()
    value = unit(4, dim, seed=seed + 1).to(dtype)
    squared = (scale * (0.1 + normal(4, dim, seed=seed + 2).square())).to(dtype).requires_grad_()
    log_prob = DirectionalStudentT(loc, squared, freedom, intrinsic).log_prob(
        torch.cat([value[:3], loc[3:].detach()])
    )
    log_prob.sum().backward()
    assert log_prob.shape == (4,)
    for quantity in (log_prob, loc.grad, squared.grad):
        assert quantity.isfinite().all()
