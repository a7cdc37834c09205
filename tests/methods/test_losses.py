"""lib.losses against explicit float64 formulas, lightly and the package power_spherical."""

import math
from functools import partial
from itertools import product

import power_spherical
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightly.loss import (
    BarlowTwinsLoss,
    DINOLoss,
    IBOTPatchLoss,
    NegativeCosineSimilarity,
    NTXentLoss,
    VICRegLoss,
)
from scipy import stats
from torch.autograd import gradcheck
from torch.nn import functional as F

from lib import losses
from lib.losses import vi_simsiam_loss
from tests.methods.comparison import close, normal


def draw(batch=6, dimension=12, seed=0):
    """Direction, concentration and target in float32, with cosines well inside (-1, 1)."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(batch, dimension, generator=generator)
    direction = torch.randn(batch, dimension, generator=generator) + target
    return direction, 1 + 50 * torch.rand(batch, generator=generator), target


# -------------------------------------------------------------------------------------- VI-SimSiam
@pytest.mark.parametrize("dimension", [2, 3, 16, 256, 2048])
def test_vi_simsiam_loss_and_its_gradients_are_those_of_the_package_power_spherical(dimension):
    direction, kappa, target = draw(8, dimension)
    ours = [direction.requires_grad_(), kappa.requires_grad_()]
    theirs = [leaf.detach().double().requires_grad_() for leaf in ours]
    loss = vi_simsiam_loss(*ours, target)
    mu = F.normalize(theirs[0], dim=1)
    density = power_spherical.PowerSpherical(mu, theirs[1])
    expected = -density.log_prob(F.normalize(target.double(), dim=1)).mean()
    close(loss, expected, rel=1e-5, abs=1e-4)
    gradients = torch.autograd.grad(loss, ours)
    exact = torch.autograd.grad(expected, theirs)
    torch.testing.assert_close(gradients, exact, rtol=1e-4, atol=1e-5, check_dtype=False)


# --------------------------------------------------------------------------------------- baselines
@pytest.mark.parametrize(
    ("ours", "theirs", "tolerance"),
    [
        (losses.simsiam_loss, NegativeCosineSimilarity(), 1e-6),
        (losses.info_nce_loss, NTXentLoss(0.5), 1e-5),
        (lambda x, y: losses.info_nce_loss(x, y, 0.1), NTXentLoss(0.1), 1e-5),
        (losses.barlow_twins_loss, BarlowTwinsLoss(0.0051), 1e-4),
        (lambda x, y: losses.vicreg_loss(x, y)["loss"], VICRegLoss(), 1e-4),
        (lambda x, y: losses.vicreg_loss(x, y, 3.0, 5.0, 7.0)["loss"], VICRegLoss(3, 5, 7), 1e-4),
    ],
)
def test_losses_and_their_gradients_are_lightlys(ours, theirs, tolerance):
    first, _, second = draw(32, 8)
    results = []
    for loss in (ours, theirs):
        leaves = [value.clone().requires_grad_() for value in (first, second)]
        value = loss(*leaves)
        value.backward()
        # The target of SimSiam is a constant in ours; lightly's caller detaches it.
        gradients = [leaf.grad for leaf in leaves[: 1 if ours is losses.simsiam_loss else 2]]
        results.append((value.detach(), gradients))
    torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_info_nce_without_negatives_of_the_same_view_is_a_classification(similarity):
    first, _, second = draw()
    z = first
    w = second
    if similarity == "cosine":
        z = F.normalize(z, dim=1)
        w = F.normalize(w, dim=1)
    logits = z @ w.T / 0.3
    labels = torch.arange(6)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    loss = losses.info_nce_loss(
        first, second, 0.3, same_view_negatives=False, similarity=similarity
    )
    close(loss, expected, rel=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        lambda a, b, rows: losses.info_nce_loss(a, b, 0.5, True, rows),
        lambda a, b, rows: losses.info_nce_loss(a, b, 0.5, False, rows),
        lambda a, b, rows: losses.moco_v3_loss(a[rows], b, 0.3, rows),
    ],
)
def test_losses_of_parts_of_the_anchors_average_to_the_whole(loss):
    a, _, b = draw()
    parts = [loss(a, b, slice(start, start + 2)) for start in (0, 2, 4)]
    close(torch.stack(parts).mean(), loss(a, b, slice(None)), rel=1e-6)


def test_byol_is_the_squared_distance_of_unit_vectors():
    p, _, z = draw()
    expected = (F.normalize(p, dim=1) - F.normalize(z, dim=1)).square().sum(1).mean()
    close(losses.byol_loss(p, z), expected, rel=1e-5)


def test_moco_is_lightlys_nt_xent_with_a_memory_bank():
    q, _, k = draw()
    queue = F.normalize(torch.randn(16, 12, generator=torch.Generator().manual_seed(3)), dim=1)
    theirs = NTXentLoss(0.2, memory_bank_size=(16, 12))
    theirs.memory_bank.bank = queue.clone()
    theirs.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.long)
    close(losses.moco_loss(q, k, queue, 0.2), theirs(q, k), rel=1e-5)


def test_moco_v3_is_a_classification_among_the_keys_of_the_batch():
    q, _, k = draw()
    logits = F.normalize(q, dim=1) @ F.normalize(k, dim=1).T / 0.3
    expected = 2 * 0.3 * F.cross_entropy(logits.double(), torch.arange(6))
    close(losses.moco_v3_loss(q, k, 0.3), expected, rel=1e-6)


def test_dino_is_lightlys():
    s, _, t = draw()
    s2, _, t2 = draw(seed=1)
    theirs = DINOLoss(12, teacher_temp=0.05, student_temp=0.1)
    centre = torch.randn(1, 1, 12, generator=torch.Generator().manual_seed(3))
    theirs.center = centre.clone()  # moved on in place by every call
    expected = theirs([t, t2], [s, s2])
    pairs = [losses.dino_loss(a, b, centre[0, 0], 0.1, 0.05) for a, b in ((s, t2), (s2, t))]
    close(torch.stack(pairs).mean(), expected, rel=1e-5)


def test_the_patch_loss_of_ibot_is_lightlys():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 3, 4, 12, generator=generator)
    mask = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]]).bool()
    theirs = IBOTPatchLoss(12, teacher_temp=0.05, student_temp=0.1)
    expected = theirs(teacher[mask], student[mask], mask.view(3, 2, 2))
    ours = losses.ibot_patch_loss(student, teacher, mask, torch.zeros(12), 0.1, 0.05)
    close(ours, expected, rel=1e-5)


def test_targets_are_constants():
    first, kappa, second = draw()
    for loss in (
        losses.simsiam_loss,
        losses.byol_loss,
        losses.moco_v3_loss,
        lambda a, b: vi_simsiam_loss(a, kappa, b),
        lambda a, b: losses.moco_loss(a, b, torch.eye(12)),
        lambda a, b: losses.dino_loss(a, b, torch.zeros(12)),
        lambda a, b: losses.scoring_rule(a[None] + torch.randn(2, 1, 12), b).mean(),
    ):
        prediction = first.clone().requires_grad_()
        target = second.clone().requires_grad_()
        loss(prediction, target).backward()
        assert prediction.grad.abs().sum() > 0 and target.grad is None


ONE = torch.ones(1, 3)
TWO = torch.ones(2, 3)
MANY = torch.ones(4, 2, 3)
VIEWS = torch.ones(2, 1, 3)


@pytest.mark.parametrize(
    ("call", "culprit"),
    [
        (lambda: losses.simsiam_loss(TWO, ONE), "shape"),
        (lambda: vi_simsiam_loss(TWO, torch.ones(2, 1), TWO), "concentration"),
        (lambda: vi_simsiam_loss(TWO, -torch.ones(2), TWO), "concentration"),
        (lambda: losses.info_nce_loss(TWO, ONE), "shape"),
        (lambda: losses.info_nce_loss(TWO, TWO, -1.0), "temperature"),
        (lambda: losses.vicreg_loss(ONE, ONE), "row"),
        (lambda: losses.scoring_rule(MANY, ONE), "samples"),
        (lambda: losses.scoring_rule(MANY, TWO, trade_off=1.1), "trade_off"),
        (lambda: losses.scoring_rule(MANY, TWO, beta=2.5), "beta"),
        (lambda: losses.simvae_loss(VIEWS, MANY, VIEWS, VIEWS, VIEWS), "shape"),
        (lambda: losses.vae_loss(2 * TWO, 2 * TWO, TWO, TWO, "bernoulli"), "Pixels"),
        (lambda: losses.vje_loss(TWO, TWO, TWO, TWO, radial_scale=-1.0), "radial_scale"),
    ],
)
def test_what_would_silently_give_a_wrong_loss_is_refused(call, culprit):
    with pytest.raises(ValueError, match=culprit):
        call()


# ----------------------------------------------------------------------------------- scoring rules
KERNELS = {"energy": {"beta": 0.7}, "crps": {"beta": 1.3}, "gaussian": {"bandwidth": 1.7}}


def draw_scored(samples=5, batch=4, dimension=3):
    return normal(samples, batch, dimension), normal(batch, dimension, seed=1)


def measure(difference, kernel):
    """m of a vector."""
    if kernel == "energy":
        return difference.norm() ** 0.7
    if kernel == "crps":
        return (difference.abs() ** 1.3).mean()
    return -math.exp(-difference.square().sum() / (2 * 1.7**2))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("trade_off", [0.3, 0.8])
def test_the_scoring_rule_is_the_double_sum_of_the_paper(kernel, trade_off):
    z, t = draw_scored()
    r = len(z)
    total = 0.0
    for b in range(z.shape[1]):
        for j in range(r):
            total += 2 * trade_off / r * measure(z[j, b] - t[b], kernel)
            others = [measure(z[j, b] - z[k, b], kernel) for k in range(r) if k != j]
            total -= (1 - trade_off) / (r * (r - 1)) * sum(others)
    value = losses.scoring_rule(z, t, trade_off, kernel=kernel, **KERNELS[kernel]).mean()
    close(value, total / z.shape[1], rel=1e-12)


@pytest.mark.parametrize("sigma, target", [(0.5, 0.0), (2.0, -4.0)])
@pytest.mark.parametrize("kernel", ["energy", "crps"])
def test_in_one_dimension_the_score_is_the_crps_of_a_gaussian(sigma, target, kernel):
    w = target / sigma  # Gneiting & Raftery 2007, Eq. 21
    crps = sigma * (w * (2 * stats.norm.cdf(w) - 1) + 2 * stats.norm.pdf(w) - math.pi**-0.5)
    z = sigma * normal(4, 200_000, 1)
    scores = losses.scoring_rule(z, torch.full((200_000, 1), target), kernel=kernel)
    close(scores.mean(), crps, abs=4 * scores.std().item() / len(scores) ** 0.5)


WEIGHTS = [(0.5, 1.0), (1 / 2.2, 1.0), (0.6, 1.0), (0.5, 1.5), (0.48, 0.5)]  # trade-off, beta


@pytest.mark.parametrize(
    "kernel, weights", [*product(["energy", "crps"], WEIGHTS), ("gaussian", WEIGHTS[0])]
)
def test_the_best_deviation_is_the_true_one_at_one_half_and_else_has_its_closed_form(
    kernel, weights
):
    """The σ of N(0, σ² I) with the lowest mean score of targets from N(0, 0.7² I)."""
    noise, target = draw_scored(2, 50_000, 4)

    def score(sigma):
        arguments = (sigma * noise, 0.7 * target, *weights, kernel, 1.0)
        return losses.scoring_rule(*arguments).mean().item()

    tolerance = 0.02 if weights == WEIGHTS[0] else 0.03
    best = scipy.optimize.minimize_scalar(score, bounds=(0.05, 6.0), options={"xatol": 1e-3})
    assert best.x == pytest.approx(0.7 * losses.best_dispersion(*weights), rel=tolerance)


@pytest.mark.parametrize("beta", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("kernel", ["energy", "crps"])
def test_below_the_critical_trade_off_the_score_falls_without_bound(beta, kernel):
    noise, target = draw_scored(2, 50_000, 3)
    critical = losses.critical_trade_off(beta)
    assert losses.best_dispersion(critical, beta) == math.inf
    for trade_off, falls in ((critical - 0.02, True), (critical + 0.02, False)):
        near = losses.scoring_rule(1e3 * noise, target, trade_off, beta, kernel).mean()
        far = losses.scoring_rule(1e4 * noise, target, trade_off, beta, kernel).mean()
        assert (far < near < 0) if falls else (far > near > 0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradcheck_of_the_scoring_rules_in_mean_and_deviation(kernel):
    noise, target = draw_scored(4, 3, 5)
    mean = normal(3, 5, seed=2).requires_grad_()
    sigma = (0.2 + normal(3, 5, seed=3).abs()).requires_grad_()

    def score(mean, sigma):
        samples = mean + sigma * noise
        return losses.scoring_rule(samples, target, 0.4, kernel=kernel, **KERNELS[kernel])

    assert gradcheck(score, (mean, sigma))


# ------------------------------------- properties: hypothesis draws the examples, always the same
drawn = settings(derandomize=True, deadline=None, max_examples=40)

seeds = st.integers(0, 2**31 - 1)
kappas = st.just(0.0) | st.floats(-30, 8).map(lambda power: 10.0**power)
scales = st.floats(-6, 6).map(lambda power: 10.0**power)
precise = st.sampled_from([torch.float32, torch.float64])
# Nothing is trained in float16, whose range these scales leave.
trained = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])


def sum_of_terms(terms):
    return sum(value for name, value in terms.items() if name != "loss").item()


# Losses of two batches of vectors: (loss, symmetric in its views, by length of the vectors too)
PAIRED = {
    "simsiam": (losses.simsiam_loss, True, False),
    "byol": (losses.byol_loss, True, False),
    "vi_simsiam": (
        lambda p, z: losses.vi_simsiam_loss(p, p.new_full((len(p),), 30.0), z),
        True,
        False,
    ),
    "info_nce": (losses.info_nce_loss, True, False),
    "info_nce across views": (
        partial(losses.info_nce_loss, same_view_negatives=False),
        True,
        False,
    ),
    "info_nce by dot product": (partial(losses.info_nce_loss, similarity="dot"), True, True),
    "barlow_twins": (losses.barlow_twins_loss, True, True),
    "vicreg": (lambda a, b: losses.vicreg_loss(a, b)["loss"], True, True),
    "moco_v3": (losses.moco_v3_loss, False, False),
    "dino": (lambda s, t: losses.dino_loss(s, t, t.new_zeros(t.shape[1])), False, True),
}
paired = pytest.mark.parametrize("loss, symmetric, by_length", PAIRED.values(), ids=PAIRED)
batches = {"batch": st.integers(2, 16), "dim": st.integers(2, 64), "seed": seeds}


@paired
@drawn
@given(scale=scales, dtype=trained, **batches)
def test_losses_are_finite_with_finite_gradients(
    loss, symmetric, by_length, scale, dtype, batch, dim, seed
):
    first = (scale * normal(batch, dim, seed=seed)).to(dtype).requires_grad_()
    value = loss(first, (scale * normal(batch, dim, seed=seed + 1)).to(dtype))
    value.backward()
    assert value.shape == ()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.isfinite() and first.grad.isfinite().all()


@paired
@drawn
@given(**batches)
def test_losses_do_not_depend_on_the_order_of_the_batch_nor_of_symmetric_views(
    loss, symmetric, by_length, batch, dim, seed
):
    first = normal(batch, dim, seed=seed)
    second = normal(batch, dim, seed=seed + 1)
    order = torch.randperm(batch, generator=torch.Generator().manual_seed(seed))
    value = loss(first, second).item()
    assert loss(first[order], second[order]).item() == pytest.approx(value, rel=1e-9, abs=1e-9)
    if symmetric:
        assert loss(second, first).item() == pytest.approx(value, rel=1e-9, abs=1e-9)
    if not by_length:
        lengths = normal(batch, 1, seed=seed + 2).exp()
        assert loss(lengths * first, 7 * second).item() == pytest.approx(value, rel=1e-9, abs=1e-9)


@paired
@drawn
@given(zero=st.integers(0, 3), dim=st.integers(2, 64), seed=seeds)
def test_collapsed_and_zero_vectors_leave_losses_finite(
    loss, symmetric, by_length, zero, dim, seed
):
    first = normal(4, dim, seed=seed).float()
    second = normal(4, dim, seed=seed + 1).float()
    first[zero] = 0
    second[zero] = 0
    collapsed = (first[:1].expand(4, dim), second[:1].expand(4, dim))
    for pair in ((first, second), collapsed, (first, first)):
        views = [view.clone().requires_grad_() for view in pair]
        value = loss(*views)
        value.backward()
        assert value.isfinite() and views[0].grad.isfinite().all()


@paired
def test_autocast_computes_in_float32(loss, symmetric, by_length):
    first = normal(8, 64).bfloat16()
    second = normal(8, 64, seed=1).bfloat16()
    expected = loss(first.float(), second.float()).item()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(first, second)
    assert value.dtype == torch.float32 and value.item() == pytest.approx(expected, rel=1e-6)


@drawn
@given(kappa=kappas, scale=scales, dtype=trained, **batches)
def test_the_loss_of_vi_simsiam_is_finite_at_every_concentration(
    kappa, scale, dtype, batch, dim, seed
):
    direction = (scale * normal(batch, dim, seed=seed)).to(dtype).requires_grad_()
    concentration = torch.full((batch,), kappa).to(dtype).requires_grad_()
    target = normal(batch, dim, seed=seed + 1).to(dtype)
    value = losses.vi_simsiam_loss(direction, concentration, target)
    value.backward()
    for quantity in (value, direction.grad, concentration.grad):
        assert quantity.isfinite().all()


@drawn
@given(
    kernel=st.sampled_from(["energy", "crps", "gaussian"]),
    beta=st.floats(0.1, 2),
    count=st.integers(2, 6),
    scale=scales,
    dtype=precise,
    **batches,
)
def test_scoring_rules(kernel, beta, count, scale, dtype, batch, dim, seed):
    """Finite with finite gradients, the same in any order of samples and images.

    The score is smallest where all samples lie on the target.
    """
    samples = (scale * normal(count, batch, dim, seed=seed)).to(dtype).requires_grad_()
    target = (scale * normal(batch, dim, seed=seed + 1)).to(dtype)
    options = {"beta": beta, "kernel": kernel, "bandwidth": scale}
    score = losses.scoring_rule(samples, target, **options)
    score.sum().backward()
    assert score.shape == (batch,) and score.isfinite().all() and samples.grad.isfinite().all()
    order = torch.randperm(count)
    images = torch.randperm(batch)
    again = losses.scoring_rule(samples.detach()[order][:, images], target[images], **options)
    torch.testing.assert_close(
        again, score.detach()[images], rtol=1e-4, atol=1e-4 * float(score.detach().abs().max())
    )
    met = target.expand(count, batch, dim).clone().requires_grad_()
    collapsed = losses.scoring_rule(met, target, **options)
    collapsed.sum().backward()
    assert met.grad.isfinite().all()
    least = -0.5 if kernel == "gaussian" else 0.0  # half of 2 m(0) - m(0)
    torch.testing.assert_close(
        collapsed.detach(),
        torch.full_like(collapsed, least),
        rtol=1e-4,
        atol=max(1e-4, 1e-10**beta),
    )


@drawn
@given(
    views=st.integers(1, 4),
    likelihood=st.sampled_from(["gaussian", "bernoulli"]),
    prior=st.sampled_from(["uniform", "normal", "public_code"]),
    width=st.floats(-12, 12),
    dtype=precise,
    batch=st.integers(1, 8),
    dim=st.integers(1, 16),
    seed=seeds,
)
def test_variational_losses_are_finite_sums_of_their_terms(
    views, likelihood, prior, width, dtype, batch, dim, seed
):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.rand(views, batch, 1, 4, 4, generator=generator).to(dtype)
    decoded = normal(views, batch, 1, 4, 4, seed=seed).to(dtype)
    mean = normal(views, batch, dim, seed=seed + 1).to(dtype).requires_grad_()
    sample = normal(views, batch, dim, seed=seed + 2).to(dtype).requires_grad_()
    log_variance = torch.full((views, batch, dim), width, dtype=dtype, requires_grad=True)
    inputs = (decoded, pixels, mean, log_variance, sample)
    simvae = losses.simvae_loss(*inputs, likelihood, mean_prior=prior)
    vae = losses.vae_loss(decoded[0], pixels[0], mean[0], log_variance[0], likelihood)
    for terms in (simvae, vae):
        assert all(value.isfinite() and value.shape == () for value in terms.values())
        assert sum_of_terms(terms) == pytest.approx(terms["loss"].item(), rel=1e-5)
    assert vae["kl"] >= -1e-5 * (1 + vae["kl"].abs())
    (simvae["loss"] + vae["loss"]).backward()
    assert log_variance.grad.isfinite().all()
    assert sample.grad.isfinite().all()
    order = torch.randperm(views, generator=generator)
    images = torch.randperm(batch, generator=generator)
    mixed = [tensor.detach()[order][:, images] for tensor in inputs]
    again = losses.simvae_loss(*mixed, likelihood, mean_prior=prior)
    assert again["loss"].item() == pytest.approx(simvae["loss"].item(), rel=1e-4, abs=1e-4)


@drawn
@given(
    likelihood=st.sampled_from(["polar", "ambient", "euclidean"]),
    log_radius=st.booleans(),
    width=st.floats(-12, 12),
    scale=scales,
    dtype=precise,
    **batches,
)
def test_the_loss_of_vje_is_a_finite_sum_of_its_terms(
    likelihood, log_radius, width, scale, dtype, batch, dim, seed
):
    target = (scale * normal(batch, dim, seed=seed)).to(dtype).requires_grad_()
    mean = (scale * normal(batch, dim, seed=seed + 1)).to(dtype).requires_grad_()
    sample = (scale * normal(batch, dim, seed=seed + 2)).to(dtype).requires_grad_()
    log_variance = torch.full((batch, dim), width, dtype=dtype, requires_grad=True)
    inputs = (target, mean, log_variance, sample)
    terms = losses.vje_loss(*inputs, likelihood=likelihood, log_radius=log_radius)
    assert all(value.isfinite() for value in terms.values())
    assert terms["kl"] >= -1e-4 * (1 + terms["kl"].abs())
    assert sum_of_terms(terms) == pytest.approx(terms["loss"].item(), rel=1e-4)
    terms["loss"].backward()
    for tensor in inputs:
        assert tensor.grad is None or tensor.grad.isfinite().all()
    order = torch.randperm(batch)
    mixed = [tensor.detach()[order] for tensor in inputs]
    again = losses.vje_loss(*mixed, likelihood=likelihood, log_radius=log_radius)
    assert again["loss"].item() == pytest.approx(terms["loss"].item(), rel=1e-4)
