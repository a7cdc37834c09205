"""lib.losses against explicit float64 formulas, closed-form gradients and two independent
libraries.
"""

import math

import power_spherical as oracle
import pytest
import torch
from lightly.loss import (
    BarlowTwinsLoss,
    DINOLoss,
    IBOTPatchLoss,
    NegativeCosineSimilarity,
    NTXentLoss,
    VICRegLoss,
)
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
    d = direction.shape[1]
    kappa = kappa.double()
    mu = direction.double() / direction.double().pow(2).sum(1, keepdim=True).sqrt()
    z = target.double() / target.double().pow(2).sum(1, keepdim=True).sqrt()
    beta = torch.tensor((d - 1) / 2, dtype=torch.float64)
    alpha = beta + kappa
    log_c = -(
        (alpha + beta) * math.log(2)
        + torch.lgamma(alpha)
        - torch.lgamma(alpha + beta)
        + beta * math.log(math.pi)
    )
    return log_c + kappa * torch.log1p((mu * z).sum(1))


# ----------------------------------------------------------------------------------------- SimSiam
def test_simsiam_loss_is_the_negative_mean_cosine():
    p, _, z = draw()
    expected = -sum((p[i] @ z[i]) / (p[i].norm() * z[i].norm()) for i in range(len(p))) / len(p)
    assert simsiam_loss(p, z).item() == pytest.approx(expected.item(), abs=1e-6)
    assert simsiam_loss(p, z).item() == pytest.approx(
        NegativeCosineSimilarity()(p, z).item(), abs=1e-6
    )
    assert simsiam_loss(z, z).item() == pytest.approx(-1) and simsiam_loss(
        -z, z
    ).item() == pytest.approx(1)


# -------------------------------------------------------------------------------------- VI-SimSiam
@pytest.mark.parametrize("dimension", [2, 3, 16, 256, 2048])
def test_vi_simsiam_loss_is_the_negative_log_density(dimension):
    direction, kappa, target = draw(8, dimension)
    expected = -log_density(direction, kappa, target).mean().item()
    assert vi_simsiam_loss(direction, kappa, target).item() == pytest.approx(
        expected, rel=1e-5, abs=1e-4
    )


@pytest.mark.parametrize("dimension", [3, 64])
def test_vi_simsiam_loss_agrees_with_the_oracle(dimension):
    direction, kappa, target = draw(8, dimension)
    other = oracle.PowerSpherical(F.normalize(direction.double(), dim=1), kappa.double())
    expected = -other.log_prob(F.normalize(target.double(), dim=1)).mean().item()
    assert vi_simsiam_loss(direction, kappa, target).item() == pytest.approx(
        expected, rel=1e-5, abs=1e-4
    )


@pytest.mark.parametrize("dimension", [4, 256])
def test_gradients_have_their_closed_form(dimension):
    """dl/dκ = ψ(α+β) - ψ(α) + log((1+s)/2) and dl/ds = κ/(1+s), with s = μ.z."""
    direction, kappa, target = draw(5, dimension)
    direction.requires_grad_(), kappa.requires_grad_()
    vi_simsiam_loss(direction, kappa, target).backward()
    mu = F.normalize(direction.detach().double(), dim=1)
    z = F.normalize(target.double(), dim=1)
    k = kappa.detach().double()
    s = (mu * z).sum(1)
    beta = (dimension - 1) / 2
    by_kappa = -(torch.digamma(2 * beta + k) - torch.digamma(beta + k) + torch.log((1 + s) / 2)) / 5
    torch.testing.assert_close(kappa.grad.double(), by_kappa, rtol=1e-4, atol=1e-7)
    tangent = (z - s[:, None] * mu) / direction.detach().double().norm(
        dim=1, keepdim=True
    )  # ds/d(direction)
    by_direction = -(k / (1 + s))[:, None] * tangent / 5
    torch.testing.assert_close(direction.grad.double(), by_direction, rtol=1e-4, atol=1e-5)


def test_the_gradient_in_kappa_vanishes_at_the_best_kappa():
    """κ*(s) is close to (D - 1) s / (1 - s) + 1/2."""
    dimension = 256
    for s in (0.1, 0.5, 0.9):
        direction = torch.zeros(1, dimension)
        target = torch.zeros(1, dimension)
        direction[0, 0] = 1
        target[0, 0] = s
        target[0, 1] = math.sqrt(1 - s**2)
        best = (dimension - 1) * s / (1 - s) + 0.5
        slopes = []
        for factor in (0.98, 1.02):
            kappa = torch.tensor([best * factor], requires_grad=True)
            vi_simsiam_loss(direction, kappa, target).backward()
            slopes.append(kappa.grad.item())
        assert slopes[0] < 0 < slopes[1]


# -------------------------------------------------------------------------------------------- both
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
    assert loss(direction @ rotation, kappa, target @ rotation).item() == pytest.approx(
        loss(direction, kappa, target).item(), rel=1e-5
    )
    single = [
        loss(direction[i : i + 1], kappa[i : i + 1], target[i : i + 1]).item() for i in range(6)
    ]
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
    assert (
        loss.isfinite() and concentration.grad.isfinite().all() and direction.grad.isfinite().all()
    )
    if kappa == 0:  # the uniform density: one over the area of the sphere
        area = math.log(2) + dimension / 2 * math.log(math.pi) - math.lgamma(dimension / 2)
        assert loss.item() == pytest.approx(area, rel=1e-6)


def test_a_negative_concentration_is_refused():
    direction, _, target = draw(4, 16)
    concentration = torch.tensor([3.0, -9.0, 1.0, 2.0])
    with pytest.raises(ValueError, match="concentration is -9"):
        vi_simsiam_loss(direction, concentration, target)
    # A compiled step asks nothing: the loss is NaN, and the training stops.
    compiled = torch.compile(vi_simsiam_loss, backend="eager", fullgraph=True)
    assert compiled(direction, concentration, target).isnan()
    valid = concentration.abs()
    assert compiled(direction, valid, target) == vi_simsiam_loss(direction, valid, target)
    # A NaN is left to the guard of the training loop, which names run and step.
    assert vi_simsiam_loss(direction, valid * math.nan, target).isnan()


# --------------------------------------------------------------------------------------- baselines
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
    same_with_gradients(
        lambda x, y: losses.info_nce_loss(x, y, temperature), NTXentLoss(temperature), a, b
    )


def test_info_nce_without_negatives_of_the_same_view_is_a_classification_across_views():
    a, _, b = draw()
    z = F.normalize(a, dim=1)
    w = F.normalize(b, dim=1)
    expected = 0.0
    for own, other in ((z, w), (w, z)):
        for i in range(len(z)):
            expected += -math.log(
                math.exp(own[i] @ other[i] / 0.3)
                / sum(math.exp(own[i] @ other[k] / 0.3) for k in range(len(z)))
            ) / (2 * len(z))
    assert losses.info_nce_loss(a, b, 0.3, same_view_negatives=False).item() == pytest.approx(
        expected, rel=1e-5
    )


def test_info_nce_by_dot_product_is_a_classification_with_lengths():
    first, _, second = draw()
    logits = first @ second.T / 3
    expected = (
        F.cross_entropy(logits, torch.arange(6)) + F.cross_entropy(logits.T, torch.arange(6))
    ) / 2
    assert losses.info_nce_loss(
        first, second, 3.0, same_view_negatives=False, similarity="dot"
    ).item() == pytest.approx(expected.item(), rel=1e-6)
    with pytest.raises(ValueError, match="Unknown similarity 'l2'"):
        losses.info_nce_loss(first, second, similarity="l2")


@pytest.mark.parametrize("negatives", [True, False])
def test_info_nce_of_parts_of_the_anchors_averages_to_the_whole(negatives):
    a, _, b = draw()
    parts = [
        losses.info_nce_loss(a, b, 0.5, negatives, slice(start, start + 2)) for start in (0, 2, 4)
    ]
    assert torch.stack(parts).mean().item() == pytest.approx(
        losses.info_nce_loss(a, b, 0.5, negatives).item(), rel=1e-6
    )


def test_barlow_twins_is_lightlys():
    a, _, b = draw(32, 8)
    same_with_gradients(
        lambda x, y: losses.barlow_twins_loss(x, y, 0.005),
        BarlowTwinsLoss(0.005),
        a,
        b,
        tolerance=1e-4,
    )
    standard = (a - a.mean(0)) / a.std(0, correction=0)
    correlation = standard.double().T @ standard.double() / len(a)
    assert losses.barlow_twins_loss(a, a, 0.0).item() == pytest.approx(
        (1 - correlation.diagonal()).square().sum().item(), abs=1e-6
    )


def test_vicreg_is_lightlys_and_the_sum_of_its_terms():
    a, _, b = draw(32, 8)
    same_with_gradients(
        lambda x, y: losses.vicreg_loss(x, y)["loss"], VICRegLoss(), a, b, tolerance=1e-4
    )
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
    theirs.memory_bank.bank = queue.clone()
    theirs.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.long)
    assert losses.moco_loss(q, k, queue, 0.2).item() == pytest.approx(theirs(q, k).item(), rel=1e-5)


def test_dino_is_lightlys():
    s, _, t = draw(6, 12)
    s2, _, t2 = draw(6, 12, seed=1)
    theirs = DINOLoss(12, teacher_temp=0.05, student_temp=0.1)
    centre = torch.randn(1, 1, 12, generator=torch.Generator().manual_seed(3))
    theirs.center = centre.clone()  # moved on in place by every call
    expected = theirs([t, t2], [s, s2]).item()
    pairs = [
        losses.dino_loss(s, t2, centre[0, 0], 0.1, 0.05),
        losses.dino_loss(s2, t, centre[0, 0], 0.1, 0.05),
    ]
    assert torch.stack(pairs).mean().item() == pytest.approx(expected, rel=1e-5)
    uniform = losses.dino_loss(torch.zeros(3, 12), torch.zeros(3, 12), torch.zeros(12))
    assert uniform.item() == pytest.approx(math.log(12), rel=1e-6)


def test_moco_v3_is_a_classification_among_the_keys_of_the_batch():
    q, _, k = draw()
    cosines = F.normalize(q.double(), dim=1) @ F.normalize(k.double(), dim=1).T
    expected = [2 * 0.3 * -torch.log_softmax(cosines[i] / 0.3, 0)[i] for i in range(len(q))]
    assert losses.moco_v3_loss(q, k, 0.3).item() == pytest.approx(
        torch.stack(expected).mean().item(), rel=1e-6
    )
    halves = [losses.moco_v3_loss(q[rows], k, 0.3, rows) for rows in (slice(0, 3), slice(3, 6))]
    assert torch.stack(halves).mean().item() == pytest.approx(
        losses.moco_v3_loss(q, k, 0.3).item(), rel=1e-6
    )


def test_the_patch_loss_of_ibot_is_lightlys():
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(3, 4, 12, generator=generator) for _ in range(2))
    mask = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]]).bool()
    theirs = IBOTPatchLoss(12, teacher_temp=0.05, student_temp=0.1)
    expected = theirs(teacher[mask], student[mask], mask.view(3, 2, 2)).item()
    assert losses.ibot_patch_loss(
        student, teacher, mask, torch.zeros(12), 0.1, 0.05
    ).item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match=r"student and teacher \[B, N, K\]"):
        losses.ibot_patch_loss(student, teacher, mask[:2], torch.zeros(12))


def test_targets_of_byol_moco_and_dino_are_constants():
    p, _, z = draw()
    for loss in (
        losses.byol_loss,
        lambda a, b: losses.moco_loss(a, b, torch.eye(12)),
        lambda a, b: losses.dino_loss(a, b, torch.zeros(12)),
        losses.moco_v3_loss,
        lambda a, b: losses.scoring_rule(a[None] + torch.randn(2, 1, 12), b).mean(),
    ):
        first = p.clone().requires_grad_()
        second = z.clone().requires_grad_()
        loss(first, second).backward()
        assert first.grad.abs().sum() > 0 and second.grad is None


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: losses.info_nce_loss(torch.ones(2, 3), torch.ones(3, 3)), "one shape"),
        (
            lambda: losses.info_nce_loss(torch.ones(2, 3), torch.ones(2, 3), 0.0),
            "temperature is 0.0",
        ),
        (lambda: losses.barlow_twins_loss(torch.ones(3), torch.ones(3)), "one shape"),
        (lambda: losses.vicreg_loss(torch.ones(2, 3), torch.ones(2, 4)), "one shape"),
        (
            lambda: losses.moco_loss(torch.ones(2, 3), torch.ones(2, 3), torch.eye(3), -1.0),
            "temperature is -1.0",
        ),
        (lambda: losses.moco_v3_loss(torch.ones(2, 3), torch.ones(2, 4)), "one shape"),
        (
            lambda: losses.moco_v3_loss(torch.ones(2, 3), torch.ones(2, 3), -1.0),
            "temperature is -1.0",
        ),
        (
            lambda: losses.dino_loss(torch.ones(2, 3), torch.ones(2, 3), torch.zeros(3), 0.1, 0.0),
            "teacher_temperature is 0.0",
        ),
        (
            lambda: losses.info_nce_loss(torch.ones(2, 3), torch.ones(2, 3), float("nan")),
            "temperature is nan; it must be positive and finite",
        ),
    ],
)
def test_baselines_refuse_what_cannot_be(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_float64_stays_float64():
    a, kappa, b = (values.double() for values in draw())
    for loss in (
        losses.simsiam_loss(a, b),
        losses.vi_simsiam_loss(a, kappa, b),
        losses.info_nce_loss(a, b),
        losses.barlow_twins_loss(a, b),
        losses.vicreg_loss(a, b)["loss"],
        losses.dino_loss(a, b, torch.zeros(12)),
        losses.moco_loss(a, b, torch.eye(12)),
        losses.moco_v3_loss(a, b),
        losses.scoring_rule(torch.stack([a, b]), b).mean(),
    ):
        assert loss.dtype == torch.float64
    assert losses.simsiam_loss(a.bfloat16(), b.bfloat16()).dtype == torch.float32


# ----------------------------------------------------------------------------------- scoring rules
KERNELS = {"energy": {"beta": 0.7}, "crps": {"beta": 1.3}, "gaussian": {"bandwidth": 1.7}}
each_kernel = pytest.mark.parametrize("kernel", KERNELS)


def draw_scored(samples=5, batch=4, dimension=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(samples, batch, dimension, generator=generator, dtype=torch.float64),
        torch.randn(batch, dimension, generator=generator, dtype=torch.float64),
    )


@each_kernel
@pytest.mark.parametrize("trade_off", [0.3, 0.5, 0.8, 1.0])
def test_the_scoring_rule_is_the_double_sum_of_the_paper(kernel, trade_off):
    z, t = draw_scored()
    r = len(z)
    total = 0.0

    def measure(first, second):
        d = [abs(float(a) - float(b)) for a, b in zip(first, second, strict=True)]
        if kernel == "energy":
            return sum(x * x for x in d) ** (0.7 / 2)
        return (
            sum(x**1.3 for x in d) / len(d)
            if kernel == "crps"
            else -math.exp(-sum(x * x for x in d) / (2 * 1.7**2))
        )

    for b in range(z.shape[1]):
        total += sum(2 * trade_off / r * measure(z[j, b], t[b]) for j in range(r))
        total -= sum(
            (1 - trade_off) / (r * (r - 1)) * measure(z[j, b], z[k, b])
            for j in range(r)
            for k in range(r)
            if j != k
        )
    value = losses.scoring_rule(z, t, trade_off, kernel=kernel, **KERNELS[kernel]).mean()
    assert value.item() == pytest.approx(total / z.shape[1], rel=1e-12)


@pytest.mark.parametrize("sigma, target", [(0.5, 0.0), (1.0, 1.5), (2.0, -4.0)])
@pytest.mark.parametrize("kernel", ["energy", "crps"])
def test_in_one_dimension_the_score_is_the_crps_of_a_gaussian(sigma, target, kernel):
    w = target / sigma  # Gneiting & Raftery 2007, Eq. 21
    crps = sigma * (
        w * math.erf(w / 2**0.5) + 2 * math.exp(-w * w / 2) / (2 * math.pi) ** 0.5 - math.pi**-0.5
    )
    z = sigma * torch.randn(
        4, 200_000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    estimates = torch.stack(
        [
            losses.scoring_rule(part, torch.full((10_000, 1), target), kernel=kernel).mean()
            for part in z.split(10_000, 1)
        ]
    )
    assert estimates.mean().item() == pytest.approx(
        crps, abs=4 * estimates.std().item() / len(estimates) ** 0.5
    )


def best_deviation(trade_off, beta, kernel, dimension, true=0.7, bandwidth=None):
    """The σ of N(0, σ² I) that minimises the mean score of targets from N(0, true² I), by golden
    section on common random numbers.
    """
    generator = torch.Generator().manual_seed(0)
    noise, target = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((2, 100_000, dimension), (100_000, dimension))
    )

    def score(sigma):
        return (
            losses.scoring_rule(sigma * noise, true * target, trade_off, beta, kernel, bandwidth)
            .mean()
            .item()
        )

    low = 0.05
    high = 6.0
    golden = (5**0.5 - 1) / 2
    for _ in range(24):
        a = high - golden * (high - low)
        b = low + golden * (high - low)
        low, high = (low, b) if score(a) < score(b) else (a, high)
    return (low + high) / 2


@pytest.mark.parametrize(
    "kernel, dimension", [("energy", 1), ("energy", 5), ("crps", 3), ("gaussian", 3)]
)
def test_at_one_half_the_true_deviation_is_the_best(kernel, dimension):
    assert best_deviation(0.5, 1.0, kernel, dimension, bandwidth=1.0) == pytest.approx(
        0.7, rel=0.02
    )


@pytest.mark.parametrize(
    "trade_off, beta", [(1 / 2.2, 1.0), (0.6, 1.0), (0.5, 0.5), (0.5, 1.5), (0.48, 0.5)]
)
@pytest.mark.parametrize("kernel", ["energy", "crps"])
def test_the_best_deviation_at_other_trade_offs_has_its_closed_form(trade_off, beta, kernel):
    assert best_deviation(trade_off, beta, kernel, 4) == pytest.approx(
        0.7 * losses.best_dispersion(trade_off, beta), rel=0.03
    )
    assert (
        losses.best_dispersion(losses.critical_trade_off(beta), beta)
        == losses.best_dispersion(0.1, 1.999)
        == math.inf
    )


@pytest.mark.parametrize("beta", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("kernel", ["energy", "crps"])
def test_below_the_critical_trade_off_the_score_falls_without_bound(beta, kernel):
    noise, target = draw_scored(2, 50_000, 3)
    critical = losses.critical_trade_off(beta)
    assert losses.critical_trade_off(1.0) == pytest.approx(1 / (1 + 2**0.5))
    for trade_off, falls in ((critical - 0.02, True), (critical + 0.02, False)):
        near, far = (
            losses.scoring_rule(sigma * noise, target, trade_off, beta, kernel).mean().item()
            for sigma in (1e3, 1e4)
        )
        assert (far < near < 0) if falls else (far > near > 0)


@pytest.mark.parametrize("beta", [0.5, 1.0, 1.5])
def test_the_gradients_of_the_energy_score_have_their_closed_form(beta):
    """ProSMin, §10.5.3, with the unit direction that the paper leaves out, and -ε_k where it prints
    +ε_k; in μ and σ.
    """
    noise, target = draw_scored(4, 3, 5)
    mean = torch.randn(
        3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True
    )
    sigma = (
        0.2 + torch.rand(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ).requires_grad_()
    losses.scoring_rule(mean + sigma * noise, target, 0.4, beta).mean().backward()
    to_mean = torch.zeros(3, 5, dtype=torch.float64)
    to_sigma = torch.zeros(3, 5, dtype=torch.float64)
    for i in range(3):
        for j in range(4):
            d = (mean + sigma * noise[j] - target)[i].detach()
            slope = 2 * 0.4 / 4 * beta * d.norm() ** (beta - 2) * d
            to_mean[i] += slope
            to_sigma[i] += slope * noise[j, i]
            for k in range(4):
                if k != j:
                    e = noise[j, i] - noise[k, i]
                    d = sigma[i].detach() * e
                    to_sigma[i] -= 0.6 / 12 * beta * d.norm() ** (beta - 2) * d * e
    assert torch.allclose(mean.grad, to_mean / 3, rtol=1e-10) and torch.allclose(
        sigma.grad, to_sigma / 3, rtol=1e-10
    )


@each_kernel
def test_the_estimate_is_unbiased_and_finite_where_points_meet(kernel):
    options = {"kernel": kernel, **KERNELS[kernel]}
    z, t = draw_scored(64, 500, 2)
    whole = losses.scoring_rule(z, t, 0.45, **options).mean().item()
    pairs = torch.stack(
        [losses.scoring_rule(z[2 * i : 2 * i + 2], t, 0.45, **options).mean() for i in range(32)]
    )
    assert pairs.mean().item() == pytest.approx(whole, abs=4 * pairs.std().item() / 32**0.5)
    same = torch.zeros(3, 2, 4, requires_grad=True)
    losses.scoring_rule(same, torch.zeros(2, 4), 0.45, **options).mean().backward()
    assert same.grad.isfinite().all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"trade_off": 0.0}, "trade_off is 0.0"),
        ({"trade_off": 1.1}, "trade_off is 1.1"),
        ({"beta": 2.5}, "beta 2.5"),
        (
            {"kernel": "laplace"},
            r"Unknown kernel 'laplace'",
        ),
        ({"kernel": "gaussian"}, "needs a positive bandwidth, got None"),
        ({"samples": torch.ones(1, 2, 3)}, "One sample has no pair"),
        ({"samples": torch.ones(2, 3)}, r"Expected samples \[R, B, D\]"),
        ({"samples": torch.ones(4, 3, 3)}, r"Expected samples \[R, B, D\]"),
    ],
)
def test_scoring_rules_refuse_what_cannot_be(options, message):
    with pytest.raises(ValueError, match=message):
        losses.scoring_rule(
            **({"samples": torch.ones(4, 2, 3), "target": torch.ones(2, 3)} | options)
        )


def test_losses_without_rows_or_of_impossible_numbers_are_refused():
    one = torch.ones(1, 4)
    with pytest.raises(ValueError, match="at least 2 row"):
        losses.vicreg_loss(one, one)
    with pytest.raises(ValueError, match="at least 1 row"):
        losses.simsiam_loss(one[:0], one[:0])
    for numbers in (
        {"prior_variance": 0.0},
        {"radial_scale": -1.0},
        {"radial_freedom": math.inf},
        {"directional_freedom": 0.0},
    ):
        (name,) = numbers
        with pytest.raises(
            ValueError, match=f"{name} is {numbers[name]}; it must be positive and finite"
        ):
            losses.vje_loss(one, one, one, one, **numbers)
    for freedom in (
        {"radial_freedom": 1e15},
        {"directional_freedom": 1e15, "likelihood": "euclidean"},
    ):
        with pytest.raises(
            ValueError, match=r"Degrees of freedom .*1e\+15"
        ):  # where the constants cancel
            losses.vje_loss(one, one, one, one, **freedom)
    with pytest.raises(ValueError, match="beta 2.0 in"):
        losses.best_dispersion(0.5, 2.0)


def test_vicreg_of_a_collapse_has_the_deviation_of_its_constant_and_finite_gradients():
    same = torch.ones(4, 3, requires_grad=True)
    terms = losses.vicreg_loss(same, same.detach())
    terms["loss"].backward()
    assert (
        terms["variance"].item() == pytest.approx(1 - 1e-2, rel=1e-6) and same.grad.isfinite().all()
    )


def test_the_kl_of_gaussians_with_tiny_variances_is_finite():
    mean = torch.tensor([[1e-20, 0.0]])
    tiny = torch.full((1, 2), -110.0)
    zero = torch.zeros(1, 2)
    kl = losses.gaussian_kl(mean, tiny, zero, tiny)
    assert kl.item() == pytest.approx(1e-40 * math.exp(110) / 2, rel=1e-5)
    assert losses.gaussian_kl(zero, tiny, zero, tiny).item() == 0
