"""lib.losses against explicit float64 formulas, closed-form gradients and two independent libraries."""

import math

import power_spherical as oracle
import pytest
import torch
from lightly.loss import BarlowTwinsLoss, DINOLoss, NegativeCosineSimilarity, NTXentLoss, VICRegLoss
from torch.nn import functional as F

from lib import losses
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


# ---------------------------------------------------------------------------------------------------------------- baselines
def same_with_gradients(ours, theirs, *inputs, tolerance=1e-5):
    """Equal values, and equal gradients in every input."""
    gradients = []
    for loss in (ours, theirs):
        leaves = [value.clone().requires_grad_() for value in inputs]
        result = loss(*leaves)
        result.backward()
        gradients.append((result.detach(), [leaf.grad for leaf in leaves]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_info_nce_is_lightlys_nt_xent(temperature):
    a, _, b = draw()
    same_with_gradients(lambda x, y: losses.info_nce_loss(x, y, temperature), NTXentLoss(temperature), a, b)


def test_info_nce_without_negatives_of_the_same_view_is_a_classification_across_views():
    a, _, b = draw()
    z, w = F.normalize(a, dim=1), F.normalize(b, dim=1)
    expected = 0.0
    for own, other in ((z, w), (w, z)):
        for i in range(len(z)):
            expected += -math.log(math.exp(own[i] @ other[i] / 0.3) / sum(math.exp(own[i] @ other[k] / 0.3) for k in range(len(z)))) / (2 * len(z))
    assert losses.info_nce_loss(a, b, 0.3, same_view_negatives=False).item() == pytest.approx(expected, rel=1e-5)


def test_info_nce_by_dot_product_is_a_classification_with_lengths():
    first, _, second = draw()
    logits = first @ second.T / 3
    expected = (F.cross_entropy(logits, torch.arange(6)) + F.cross_entropy(logits.T, torch.arange(6))) / 2
    assert losses.info_nce_loss(first, second, 3.0, same_view_negatives=False, similarity="dot").item() == pytest.approx(expected.item(), rel=1e-6)
    with pytest.raises(ValueError, match="Unknown similarity 'l2'"):
        losses.info_nce_loss(first, second, similarity="l2")


@pytest.mark.parametrize("negatives", [True, False])
def test_info_nce_of_parts_of_the_anchors_averages_to_the_whole(negatives):
    a, _, b = draw()
    parts = [losses.info_nce_loss(a, b, 0.5, negatives, slice(start, start + 2)) for start in (0, 2, 4)]
    assert torch.stack(parts).mean().item() == pytest.approx(losses.info_nce_loss(a, b, 0.5, negatives).item(), rel=1e-6)


def test_barlow_twins_is_lightlys():
    a, _, b = draw(32, 8)
    same_with_gradients(lambda x, y: losses.barlow_twins_loss(x, y, 0.005), BarlowTwinsLoss(0.005), a, b, tolerance=1e-4)
    standard = (a - a.mean(0)) / a.std(0, correction=0)
    correlation = standard.double().T @ standard.double() / len(a)
    assert losses.barlow_twins_loss(a, a, 0.0).item() == pytest.approx((1 - correlation.diagonal()).square().sum().item(), abs=1e-6)


def test_vicreg_is_lightlys_and_the_sum_of_its_terms():
    a, _, b = draw(32, 8)
    same_with_gradients(lambda x, y: losses.vicreg_loss(x, y)["loss"], VICRegLoss(), a, b, tolerance=1e-4)
    terms = losses.vicreg_loss(a, b, 3.0, 5.0, 7.0)
    expected = 3 * terms["invariance"] + 5 * terms["variance"] + 7 * terms["covariance"]
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-6)


def test_byol_is_the_squared_distance_of_unit_vectors():
    p, _, z = draw()
    expected = (F.normalize(p, dim=1) - F.normalize(z, dim=1)).square().sum(1).mean().item()
    assert losses.byol_loss(p, z).item() == pytest.approx(expected, rel=1e-5)


def test_moco_is_lightlys_nt_xent_with_a_memory_bank():
    q, _, k = draw()
    queue = F.normalize(torch.randn(16, 12, generator=torch.Generator().manual_seed(3)), dim=1)
    theirs = NTXentLoss(0.2, memory_bank_size=(16, 12))
    theirs.memory_bank.bank, theirs.memory_bank.bank_ptr = queue.clone(), torch.zeros(1, dtype=torch.long)
    assert losses.moco_loss(q, k, queue, 0.2).item() == pytest.approx(theirs(q, k).item(), rel=1e-5)


def test_dino_is_lightlys():
    s, _, t = draw(6, 12)
    s2, _, t2 = draw(6, 12, seed=1)
    theirs = DINOLoss(12, teacher_temp=0.05, student_temp=0.1)
    centre = torch.randn(1, 1, 12, generator=torch.Generator().manual_seed(3))
    theirs.center = centre.clone()  # moved on in place by every call
    expected = theirs([t, t2], [s, s2]).item()
    pairs = [losses.dino_loss(s, t2, centre[0, 0], 0.1, 0.05), losses.dino_loss(s2, t, centre[0, 0], 0.1, 0.05)]
    assert torch.stack(pairs).mean().item() == pytest.approx(expected, rel=1e-5)
    uniform = losses.dino_loss(torch.zeros(3, 12), torch.zeros(3, 12), torch.zeros(12))
    assert uniform.item() == pytest.approx(math.log(12), rel=1e-6)


def test_targets_of_byol_moco_and_dino_are_constants():
    p, _, z = draw()
    for loss in (losses.byol_loss, lambda a, b: losses.moco_loss(a, b, torch.eye(12)), lambda a, b: losses.dino_loss(a, b, torch.zeros(12))):
        first, second = p.clone().requires_grad_(), z.clone().requires_grad_()
        loss(first, second).backward()
        assert first.grad.abs().sum() > 0 and second.grad is None


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: losses.info_nce_loss(torch.ones(2, 3), torch.ones(3, 3)), "one shape"),
        (lambda: losses.info_nce_loss(torch.ones(2, 3), torch.ones(2, 3), 0.0), "temperature is 0.0"),
        (lambda: losses.barlow_twins_loss(torch.ones(3), torch.ones(3)), "one shape"),
        (lambda: losses.vicreg_loss(torch.ones(2, 3), torch.ones(2, 4)), "one shape"),
        (lambda: losses.moco_loss(torch.ones(2, 3), torch.ones(2, 3), torch.eye(3), -1.0), "temperature is -1.0"),
        (lambda: losses.dino_loss(torch.ones(2, 3), torch.ones(2, 3), torch.zeros(3), 0.1, 0.0), "temperatures are 0.1 and 0.0"),
    ],
)
def test_baselines_refuse_what_cannot_be(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_float64_stays_float64():
    a, kappa, b = (values.double() for values in draw())
    for loss in (losses.simsiam_loss(a, b), losses.vi_simsiam_loss(a, kappa, b), losses.info_nce_loss(a, b), losses.barlow_twins_loss(a, b),
                 losses.vicreg_loss(a, b)["loss"], losses.dino_loss(a, b, torch.zeros(12)), losses.moco_loss(a, b, torch.eye(12))):  # fmt: skip
        assert loss.dtype == torch.float64
    assert losses.simsiam_loss(a.bfloat16(), b.bfloat16()).dtype == torch.float32
