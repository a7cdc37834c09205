"""lib.losses against explicit float64 formulas, closed-form gradients and two independent libraries."""

import math

import power_spherical as oracle
import pytest
import torch
from lightly.loss import NegativeCosineSimilarity
from torch.nn import functional as F

from lib.losses import simsiam_loss, vi_simsiam_loss


def draw(batch=6, dimension=12, seed=0, similar=True):
    """Direction, concentration and target in float32, with cosines well inside (-1, 1)."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(batch, dimension, generator=generator)
    direction = torch.randn(batch, dimension, generator=generator) + (target if similar else 0)
    return direction, 1 + 50 * torch.rand(batch, generator=generator), target


def log_density(direction, kappa, target):
    """log C(κ) + κ log(1 + μ.z) of the Power Spherical in float64, written out."""
    d, kappa = direction.shape[1], kappa.double()
    mu = direction.double() / direction.double().pow(2).sum(1, keepdim=True).sqrt()
    z = target.double() / target.double().pow(2).sum(1, keepdim=True).sqrt()
    beta = torch.tensor((d - 1) / 2, dtype=torch.float64)
    alpha = beta + kappa
    log_c = -((alpha + beta) * math.log(2) + torch.lgamma(alpha) - torch.lgamma(alpha + beta) + beta * math.log(math.pi))
    return log_c + kappa * torch.log1p((mu * z).sum(1))


# ---------------------------------------------------------------------------------------------------------------- SimSiam
def test_simsiam_loss_is_the_negative_mean_cosine():
    p, _, z = draw()
    expected = -sum((p[i] @ z[i]) / (p[i].norm() * z[i].norm()) for i in range(len(p))) / len(p)
    assert simsiam_loss(p, z).item() == pytest.approx(expected.item(), abs=1e-6)
    assert simsiam_loss(p, z).item() == pytest.approx(NegativeCosineSimilarity()(p, z).item(), abs=1e-6)
    assert simsiam_loss(z, z).item() == pytest.approx(-1) and simsiam_loss(-z, z).item() == pytest.approx(1)


# ---------------------------------------------------------------------------------------------------------------- VI-SimSiam
@pytest.mark.parametrize("dimension", [2, 3, 16, 256, 2048])
def test_vi_simsiam_loss_is_the_negative_log_density(dimension):
    direction, kappa, target = draw(8, dimension)
    expected = -log_density(direction, kappa, target).mean().item()
    assert vi_simsiam_loss(direction, kappa, target).item() == pytest.approx(expected, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("dimension", [3, 64])
def test_vi_simsiam_loss_agrees_with_the_oracle(dimension):
    direction, kappa, target = draw(8, dimension)
    other = oracle.PowerSpherical(F.normalize(direction.double(), dim=1), kappa.double())
    expected = -other.log_prob(F.normalize(target.double(), dim=1)).mean().item()
    assert vi_simsiam_loss(direction, kappa, target).item() == pytest.approx(expected, rel=1e-5, abs=1e-4)


@pytest.mark.parametrize("dimension", [4, 256])
def test_gradients_have_their_closed_form(dimension):
    """dl/dκ = ψ(α+β) - ψ(α) + log((1+s)/2) and dl/ds = κ/(1+s) for the log-density l, with s = μ.z."""
    direction, kappa, target = draw(5, dimension)
    direction.requires_grad_(), kappa.requires_grad_()
    vi_simsiam_loss(direction, kappa, target).backward()
    mu, z, k = F.normalize(direction.detach().double(), dim=1), F.normalize(target.double(), dim=1), kappa.detach().double()
    s, beta = (mu * z).sum(1), (dimension - 1) / 2
    by_kappa = -(torch.digamma(2 * beta + k) - torch.digamma(beta + k) + torch.log((1 + s) / 2)) / 5
    torch.testing.assert_close(kappa.grad.double(), by_kappa, rtol=1e-4, atol=1e-7)
    tangent = (z - s[:, None] * mu) / direction.detach().double().norm(dim=1, keepdim=True)  # ds/d(direction)
    by_direction = -(k / (1 + s))[:, None] * tangent / 5
    torch.testing.assert_close(direction.grad.double(), by_direction, rtol=1e-4, atol=1e-5)


def test_the_gradient_in_kappa_vanishes_at_the_best_kappa():
    """κ*(s) is close to (D - 1) s / (1 - s) + 1/2."""
    dimension = 256
    for s in (0.1, 0.5, 0.9):
        direction, target = torch.zeros(1, dimension), torch.zeros(1, dimension)
        direction[0, 0], target[0, 0], target[0, 1] = 1, s, math.sqrt(1 - s**2)
        best = (dimension - 1) * s / (1 - s) + 0.5
        slopes = []
        for factor in (0.98, 1.02):
            kappa = torch.tensor([best * factor], requires_grad=True)
            vi_simsiam_loss(direction, kappa, target).backward()
            slopes.append(kappa.grad.item())
        assert slopes[0] < 0 < slopes[1]


# ---------------------------------------------------------------------------------------------------------------- both
LOSSES = {"simsiam": lambda d, k, z: simsiam_loss(d, z), "vi_simsiam": vi_simsiam_loss}
both = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


@both
def test_the_target_gets_no_gradient(loss):
    direction, kappa, target = draw()
    direction.requires_grad_(), target.requires_grad_()
    loss(direction, kappa, target).backward()
    assert target.grad is None and direction.grad.abs().max() > 0


@both
def test_lengths_do_not_matter(loss):
    direction, kappa, target = draw()
    scales = torch.tensor([1e-3, 0.1, 1.0, 7.0, 100.0, 1e3])[:, None]
    expected = loss(direction, kappa, target).item()
    assert loss(scales * direction, kappa, target).item() == pytest.approx(expected, rel=1e-5)
    assert loss(direction, kappa, scales * target).item() == pytest.approx(expected, rel=1e-5)


@both
def test_rotating_both_changes_nothing_and_the_batch_is_averaged(loss):
    direction, kappa, target = draw()
    rotation = torch.linalg.qr(torch.randn(12, 12)).Q
    assert loss(direction @ rotation, kappa, target @ rotation).item() == pytest.approx(loss(direction, kappa, target).item(), rel=1e-5)
    single = [loss(direction[i : i + 1], kappa[i : i + 1], target[i : i + 1]).item() for i in range(6)]
    assert loss(direction, kappa, target).item() == pytest.approx(sum(single) / 6, rel=1e-5)


@both
def test_autocast_computes_in_float32(loss):
    direction, kappa, target = draw(8, 64)
    low = [tensor.bfloat16() for tensor in (direction, kappa, target)]
    expected = loss(*(tensor.float() for tensor in low)).item()
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss(*low)
    assert inside.dtype == torch.float32 and inside.item() == pytest.approx(expected, rel=1e-6)


@both
def test_shapes_that_do_not_fit_are_errors(loss):
    direction, kappa, target = draw()
    with pytest.raises(ValueError, match="one shape"):
        loss(direction, kappa, target[:, :5])
    with pytest.raises(ValueError, match="one shape"):
        loss(direction, kappa, target[:3])
    with pytest.raises(ValueError, match="one shape"):
        loss(direction.T, kappa, target)
    with pytest.raises(ValueError, match=r"\[B, D\]"):
        loss(direction[0], kappa, target[0])
    with pytest.raises(ValueError, match=r"\[B, D\]"):
        loss(direction[None], kappa, target[None])


@pytest.mark.parametrize("shape", [(6, 1), (1, 6), (5,), (), (6, 12)])
def test_concentration_of_a_wrong_shape_is_an_error(shape):
    direction, _, target = draw()
    with pytest.raises(ValueError, match=r"must have shape \[B\] = \[6\], got \[.*squeeze"):
        vi_simsiam_loss(direction, torch.ones(shape), target)


@pytest.mark.parametrize("kappa", [0.0, 1e-30, 1e-6, 1e4, 1e6, 1e8])
@pytest.mark.parametrize("dimension", [2, 256, 2048])
def test_extreme_concentrations_stay_finite(kappa, dimension):
    direction, _, target = draw(4, dimension)
    concentration = torch.full((4,), kappa, requires_grad=True)
    direction.requires_grad_()
    loss = vi_simsiam_loss(direction, concentration, target)
    loss.backward()
    assert loss.isfinite() and concentration.grad.isfinite().all() and direction.grad.isfinite().all()
    if kappa == 0:  # the uniform density: one over the area of the sphere
        area = math.log(2) + dimension / 2 * math.log(math.pi) - math.lgamma(dimension / 2)
        assert loss.item() == pytest.approx(area, rel=1e-6)
