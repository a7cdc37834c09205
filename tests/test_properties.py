"""Properties of densities, losses and measures over shapes, dtypes and extreme values, on examples
that hypothesis draws, the same every time.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.distributions import kl_divergence
from torch.nn import functional as F

from lib import losses
from lib.distributions import (
    DirectionalStudentT,
    HypersphericalUniform,
    PowerSpherical,
    VonMisesFisher,
    best_concentration,
)
from lib.evaluation import intervals as statistics
from lib.evaluation import uncertainty as u

drawn = settings(derandomize=True, deadline=None, max_examples=40)
FAMILIES = [PowerSpherical, VonMisesFisher]
both = pytest.mark.parametrize("family", FAMILIES)

seeds = st.integers(0, 2**31 - 1)
dimensions = st.integers(2, 512)
kappas = st.floats(-6, 6).map(lambda power: 10.0**power)
dtypes = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
precise = st.sampled_from([torch.float32, torch.float64])
trained = st.sampled_from(
    [torch.float32, torch.float64, torch.bfloat16]
)  # training.precision_of has no float16, whose range these scales leave
shapes = st.lists(st.integers(1, 4), max_size=3).map(tuple)
scales = st.floats(-6, 6).map(lambda power: 10.0**power)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unit(*shape, seed=0):
    return F.normalize(normal(*shape, seed=seed), dim=-1)


def rotation(dim, seed):
    return torch.linalg.qr(normal(dim, dim, seed=seed))[0]


def digits(kappa, dim):
    """Log-densities are differences of terms of the size of κ + D: what float64 leaves of them."""
    return 1e-12 * (kappa + dim) * math.log(2 + kappa + dim)


# --------------------------------------------------------------------------------------- densities
@both
@drawn
@given(dim=dimensions, kappa=kappas, shape=shapes, dtype=dtypes, seed=seeds)
def test_log_densities_are_finite_of_the_batch_shape_and_at_least_in_float32(
    family, dim, kappa, shape, dtype, seed
):
    assume(dtype != torch.float16 or kappa < 6e4)  # its largest number
    loc, value = unit(*shape, dim, seed=seed).to(dtype), unit(*shape, dim, seed=seed + 1).to(dtype)
    density = family(loc, torch.full(shape, kappa).to(dtype))
    log_prob, entropy = density.log_prob(value), density.entropy()
    assert log_prob.shape == entropy.shape == shape and density.mean.shape == (*shape, dim)
    assert log_prob.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert log_prob.isfinite().all() and entropy.isfinite().all() and density.mean.isfinite().all()
    peak = density.log_prob(loc)
    # Where log p is of the size of κ, the last digit of float32 is κ 2⁻²⁴.
    assert (log_prob <= peak + 1e-5 * (1 + peak.abs())).all(), "the density is highest at loc"


@both
@drawn
@given(dim=st.integers(2, 128), kappa=kappas, seed=seeds)
def test_densities_do_not_change_under_a_rotation_of_both(family, dim, kappa, seed):
    loc, value, turn = unit(3, dim, seed=seed), unit(3, dim, seed=seed + 1), rotation(dim, seed + 2)
    log_prob, turned = (
        family(loc, kappa).log_prob(value),
        family(F.normalize(loc @ turn, dim=1), kappa).log_prob(F.normalize(value @ turn, dim=1)),
    )
    # d log p / d cosine is κ, or κ/(1 + t): a cosine is rounded to a few 1e-16.
    slope = (
        kappa / (1 + (loc * value).sum(1)).clamp(min=1e-9)
        if family is PowerSpherical
        else torch.full((3,), kappa)
    )
    assert ((log_prob - turned).abs() <= digits(kappa, dim) + 1e-14 * slope).all()


@both
@drawn
@given(dim=dimensions, kappa=kappas, seed=seeds)
def test_the_normaliser_is_one(family, dim, kappa, seed):
    """H, KL to the uniform and E[t] come from the normaliser.

    so does its slope, d log M / dκ = E[g].
    """
    density, uniform = (
        family(unit(dim, seed=seed), torch.tensor(kappa, dtype=torch.float64)),
        HypersphericalUniform(dim, dtype=torch.float64),
    )
    divergence = kl_divergence(density, uniform)
    assert divergence >= -digits(kappa, dim)
    assert (uniform.entropy() - density.entropy() - divergence).abs() <= digits(kappa, dim)
    resultant = density.mean.norm().item()
    assert (
        0 <= resultant <= 1
        and (density.mean / max(resultant, 1e-300) - density.loc).abs().max() < 1e-9
    )
    k = torch.tensor(kappa, dtype=torch.float64, requires_grad=True)
    moving = family(density.loc, k)
    (slope,) = torch.autograd.grad(moving._log_m(), k)
    assert slope.item() == pytest.approx(moving._mean_g().item(), rel=1e-6, abs=1e-8)
    more = family(density.loc, torch.tensor(2 * kappa, dtype=torch.float64))
    assert more.entropy() <= density.entropy() + digits(kappa, dim), (
        "a more concentrated density has less entropy"
    )


@both
@drawn
@given(dim=dimensions, seed=seeds)
def test_no_concentration_is_the_uniform(family, dim, seed):
    value, uniform = unit(4, dim, seed=seed), HypersphericalUniform(dim)
    log_prob = family(unit(4, dim, seed=seed + 1), 0.0).log_prob(value)
    torch.testing.assert_close(log_prob, uniform.log_prob(value), rtol=1e-12, atol=1e-9)


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
    loc = (
        pole * torch.eye(dim, dtype=torch.float64)[0].expand(*shape, dim)
        if pole
        else unit(*shape, dim, seed=seed)
    )
    loc, k = (
        loc.to(dtype).clone().requires_grad_(),
        torch.full(shape, kappa, dtype=dtype, requires_grad=True),
    )
    samples = PowerSpherical(loc, k).rsample((3,))
    assert samples.shape == (3, *shape, dim) and samples.dtype == dtype
    assert (samples.norm(dim=-1) - 1).abs().max() < 1e-4
    (samples * unit(dim, seed=1).to(dtype)).sum().backward()
    assert loc.grad.isfinite().all() and k.grad.isfinite().all()


@drawn
@given(dim=st.integers(64, 512), cosine=st.floats(0.05, 0.99))
def test_the_best_concentration_is_where_the_density_is_highest(dim, cosine):
    value, loc = torch.zeros(dim, dtype=torch.float64), torch.eye(dim, dtype=torch.float64)[0]
    value[0], value[1] = cosine, math.sqrt(1 - cosine**2)
    best = best_concentration(torch.tensor(cosine, dtype=torch.float64), dim).item()
    at = [
        PowerSpherical(loc, best * factor).log_prob(F.normalize(value, dim=0)).item()
        for factor in (0.98, 1, 1.02)
    ]
    assert at[1] >= max(at[0], at[2])


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
    loc, value = (
        unit(4, dim, seed=seed).to(dtype).requires_grad_(),
        unit(4, dim, seed=seed + 1).to(dtype),
    )
    squared = (scale * (0.1 + normal(4, dim, seed=seed + 2).square())).to(dtype).requires_grad_()
    log_prob = DirectionalStudentT(loc, squared, freedom, intrinsic).log_prob(
        torch.cat([value[:3], loc[3:].detach()])
    )
    log_prob.sum().backward()
    assert (
        log_prob.shape == (4,)
        and log_prob.isfinite().all()
        and loc.grad.isfinite().all()
        and squared.grad.isfinite().all()
    )


@both
@drawn
@given(
    dim=dimensions,
    bad=st.sampled_from([-1e-6, math.nan, math.inf, -math.inf]),
    place=st.integers(0, 3),
)
def test_a_concentration_that_is_none_is_an_error(family, dim, bad, place):
    kappa = torch.ones(4, dtype=torch.float64)
    kappa[place] = bad
    with pytest.raises(ValueError, match="finite and >= 0"):
        family(unit(4, dim), kappa)
    direction = unit(4, dim)
    direction[place, 0] = math.nan
    with pytest.raises(ValueError, match="unit vectors"):
        family(direction, 1.0)


# ------------------------------------------------------------------------------------------ losses
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
        lambda a, b: losses.info_nce_loss(a, b, 0.2, same_view_negatives=False),
        True,
        False,
    ),
    "info_nce by dot product": (
        lambda a, b: losses.info_nce_loss(a, b, similarity="dot"),
        True,
        True,
    ),
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
    assert value.shape == () and value.dtype == (
        torch.float64 if dtype == torch.float64 else torch.float32
    )
    assert value.isfinite() and first.grad.isfinite().all()


@paired
@drawn
@given(**batches)
def test_losses_do_not_depend_on_the_order_of_the_batch_nor_of_symmetric_views(
    loss, symmetric, by_length, batch, dim, seed
):
    first, second = normal(batch, dim, seed=seed), normal(batch, dim, seed=seed + 1)
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
    first, second = normal(4, dim, seed=seed).float(), normal(4, dim, seed=seed + 1).float()
    first[zero], second[zero] = 0, 0
    for pair in (
        (first, second),
        (first[:1].expand(4, dim), second[:1].expand(4, dim)),
        (first, first),
    ):
        views = [view.clone().requires_grad_() for view in pair]
        value = loss(*views)
        value.backward()
        assert value.isfinite() and views[0].grad.isfinite().all()


@drawn
@given(kappa=kappas, scale=scales, dtype=trained, **batches)
def test_the_loss_of_vi_simsiam_is_finite_at_every_concentration(
    kappa, scale, dtype, batch, dim, seed
):
    direction = (scale * normal(batch, dim, seed=seed)).to(dtype).requires_grad_()
    concentration = torch.full((batch,), kappa).to(dtype).requires_grad_()
    value = losses.vi_simsiam_loss(
        direction, concentration, normal(batch, dim, seed=seed + 1).to(dtype)
    )
    value.backward()
    assert (
        value.isfinite() and direction.grad.isfinite().all() and concentration.grad.isfinite().all()
    )


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
    """Finite with finite gradients, whatever the order of samples and images.

    at samples that all lie on the target it is the least there is.
    """
    samples = (scale * normal(count, batch, dim, seed=seed)).to(dtype).requires_grad_()
    target, options = (
        (scale * normal(batch, dim, seed=seed + 1)).to(dtype),
        {"beta": beta, "kernel": kernel, "bandwidth": scale},
    )
    score = losses.scoring_rule(samples, target, **options)
    score.sum().backward()
    assert score.shape == (batch,) and score.isfinite().all() and samples.grad.isfinite().all()
    order, images = torch.randperm(count), torch.randperm(batch)
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
    kernel=st.sampled_from(["energy", "crps", "gaussian"]),
    beta=st.floats(0.1, 2),
    count=st.integers(2, 12),
    dim=st.integers(1, 16),
    seed=seeds,
)
def test_the_energy_distance_of_two_samples_is_not_negative(kernel, beta, count, dim, seed):
    """2 E m(x - y) - E m(x - x') - E m(y - y') >= 0 over two samples with themselves.

    M is conditionally negative definite for β in (0, 2].
    """
    x, y = normal(count, dim, seed=seed), 1 + 2 * normal(count, dim, seed=seed + 1)
    options = {"trade_off": 1.0, "beta": beta, "kernel": kernel, "bandwidth": 1.0}

    def mean(a, b):  # E m(a - b) over all pairs, each with itself too: 2 λ E m is what λ = 1 leaves
        return (
            losses.scoring_rule(a[:, None].expand(len(a), len(b), dim), b, **options).mean().item()
            / 2
        )

    assert 2 * mean(x, y) - mean(x, x) - mean(y, y) >= -1e-9


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
    pixels, guess = (
        torch.rand(views, batch, 1, 4, 4, generator=generator).to(dtype),
        normal(views, batch, 1, 4, 4, seed=seed).to(dtype),
    )
    mean, sample = (
        normal(views, batch, dim, seed=seed + place).to(dtype).requires_grad_() for place in (1, 2)
    )
    log_variance = torch.full((views, batch, dim), width, dtype=dtype, requires_grad=True)
    found = losses.simvae_loss(
        guess, pixels, mean, log_variance, sample, likelihood, mean_prior=prior
    )
    plain = losses.vae_loss(guess[0], pixels[0], mean[0], log_variance[0], likelihood)
    for terms in (found, plain):
        assert all(value.isfinite() and value.shape == () for value in terms.values())
        assert sum(
            value for name, value in terms.items() if name != "loss"
        ).item() == pytest.approx(terms["loss"].item(), rel=1e-5)
    assert plain["kl"] >= -1e-5 * (1 + plain["kl"].abs())
    (found["loss"] + plain["loss"]).backward()
    assert log_variance.grad.isfinite().all() and sample.grad.isfinite().all()
    order, images = (
        torch.randperm(views, generator=generator),
        torch.randperm(batch, generator=generator),
    )
    mixed = [
        tensor.detach()[order][:, images] for tensor in (guess, pixels, mean, log_variance, sample)
    ]
    again = losses.simvae_loss(*mixed, likelihood, mean_prior=prior)
    assert again["loss"].item() == pytest.approx(found["loss"].item(), rel=1e-4, abs=1e-4)


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
    target, mean, sample = (
        (scale * normal(batch, dim, seed=seed + place)).to(dtype).requires_grad_()
        for place in range(3)
    )
    log_variance = torch.full((batch, dim), width, dtype=dtype, requires_grad=True)
    terms = losses.vje_loss(
        target, mean, log_variance, sample, likelihood=likelihood, log_radius=log_radius
    )
    assert all(value.isfinite() for value in terms.values()) and terms["kl"] >= -1e-4 * (
        1 + terms["kl"].abs()
    )
    assert sum(value for name, value in terms.items() if name != "loss").item() == pytest.approx(
        terms["loss"].item(), rel=1e-4
    )
    terms["loss"].backward()
    assert all(
        tensor.grad is None or tensor.grad.isfinite().all()
        for tensor in (target, mean, log_variance, sample)
    )
    order = torch.randperm(batch)
    mixed = (tensor.detach()[order] for tensor in (target, mean, log_variance, sample))
    again = losses.vje_loss(*mixed, likelihood=likelihood, log_radius=log_radius)
    assert again["loss"].item() == pytest.approx(terms["loss"].item(), rel=1e-4)


# ---------------------------------------------------------------------------------------- measures
def ranked(values):
    """(score [N], positive [N]) with both classes; scores of any size, many of them tied."""
    rows = st.lists(st.tuples(values, st.booleans()), min_size=2, max_size=60).filter(
        lambda found: len({positive for _, positive in found}) == 2
    )
    return rows.map(lambda found: tuple(np.array(column) for column in zip(*found, strict=True)))


some = ranked(
    st.one_of(st.integers(-3, 3).map(float), st.floats(-1e12, 1e12, allow_subnormal=False))
)
whole = ranked(
    st.integers(-(10**6), 10**6).map(float)
)  # which no map below rounds onto one another


@drawn
@given(some)
def test_the_complement_of_an_auroc_is_that_of_the_negated_score_and_of_the_other_class(rows):
    score, positive = rows
    value = u.auroc(score, positive)
    assert 0 <= value <= 1
    assert u.auroc(-score, positive) == pytest.approx(1 - value, abs=1e-12) and u.auroc(
        score, ~positive
    ) == pytest.approx(1 - value, abs=1e-12)
    assert (
        positive.mean() / len(score) < u.average_precision(score, positive) <= 1
        and 0 <= u.fpr_at_95_tpr(score, positive) <= 1
    )
    false, true, threshold = u.roc_curve(score, positive)
    assert (
        (np.diff(false) >= 0).all()
        and (np.diff(true) >= 0).all()
        and (np.diff(threshold) < 0).all()
    )
    assert np.trapezoid(true, false) == pytest.approx(value, abs=1e-12)


@drawn
@given(
    whole,
    st.sampled_from(
        [
            lambda x: 1e6 + x,
            lambda x: 1e-6 * x,
            lambda x: x**3,
            lambda x: np.arctan(x / 1e3),
            np.arcsinh,
        ]
    ),
    seeds,
)
def test_ranks_alone_count(rows, monotone, seed):
    score, positive = rows
    order = np.random.default_rng(seed).permutation(len(score))
    for measure in (u.auroc, u.average_precision, u.fpr_at_95_tpr, u.aurc, u.excess_aurc, u.augrc):
        value = measure(score, positive)
        assert measure(monotone(score), positive) == value
        assert measure(score[order], positive[order]) == pytest.approx(value, abs=1e-12)


@drawn
@given(some)
def test_selective_risks_lie_between_those_of_the_best_and_the_worst_order(rows):
    uncertainty, correct = rows
    wrong, error = ~correct, 1 - correct.mean()
    for measure in (u.aurc, u.augrc):
        best, worst, value = (
            measure(wrong, correct),
            measure(correct, correct),
            measure(uncertainty, correct),
        )
        assert 0 < best <= value + 1e-12 and value <= worst + 1e-12 and worst <= 1
        assert best <= error
    assert u.excess_aurc(uncertainty, correct) >= -1e-12 and u.excess_aurc(wrong, correct) == 0
    assert u.aurc(np.zeros(len(correct)), correct) == pytest.approx(error), "chance"
    accuracy = correct.mean()
    closed = (
        (1 - u.auroc(-uncertainty, correct)) * accuracy * (1 - accuracy)
        + (1 - accuracy) ** 2 / 2
        + (1 - accuracy) / (2 * len(correct))
    )
    assert u.augrc(uncertainty, correct) == pytest.approx(closed, abs=1e-9)
    coverage, risk = u.risk_coverage_curve(uncertainty, correct)
    assert (
        coverage[-1] == 1
        and risk[-1] == pytest.approx(error)
        and (risk >= 0).all()
        and (risk <= 1 + 1e-12).all()
    )


def probabilities_of(count, classes, sharpness, seed):
    generator = np.random.default_rng(seed)
    logits = sharpness * generator.normal(size=(count, classes))
    exponential = np.exp(logits - logits.max(1, keepdims=True))
    return exponential / exponential.sum(1, keepdims=True), generator.integers(classes, size=count)


@drawn
@given(
    count=st.integers(1, 200),
    classes=st.integers(2, 12),
    sharp=st.just(0.0) | scales,
    bins=st.integers(1, 40),
    equal_mass=st.booleans(),
    seed=seeds,
)
def test_calibration_and_proper_scores_keep_their_bounds(
    count, classes, sharp, bins, equal_mass, seed
):
    probabilities, labels = probabilities_of(count, classes, sharp, seed)
    error = u.expected_calibration_error(probabilities, labels, bins, equal_mass)
    accuracy, confidence = np.mean(probabilities.argmax(1) == labels), probabilities.max(1).mean()
    assert abs(accuracy - confidence) - 1e-9 <= error <= 1 + 1e-9, "one bin has the least of all"
    binned = u.confidence_bins(
        probabilities.max(1), probabilities.argmax(1) == labels, bins, equal_mass
    )
    assert binned["count"].sum() == count and len(binned["count"]) <= bins
    filled = binned["count"] > 0
    low, high = (binned["confidence"][filled] - binned[edge][filled] for edge in ("low", "high"))
    assert (low > 0).all() and (high <= 1e-9).all(), "bins are open below and closed above"
    assert (
        0 <= u.brier_score(probabilities, labels) <= 2
        and u.negative_log_likelihood(probabilities, labels) >= 0
    )
    order = np.random.default_rng(seed).permutation(classes)  # names of classes do not matter
    renamed = probabilities[:, order], np.argsort(order)[labels]
    assert u.brier_score(*renamed) == pytest.approx(u.brier_score(probabilities, labels))
    if sharp:  # of classes that are alike the first is taken
        assert u.expected_calibration_error(*renamed, bins, equal_mass) == pytest.approx(
            error, abs=1e-9
        )


@drawn
@given(
    count=st.integers(2, 40),
    dim=st.integers(1, 24),
    power=st.floats(-8, 8),
    dtype=st.sampled_from([np.float32, np.float64]),
    seed=seeds,
)
def test_the_effective_rank_lies_between_one_and_the_dimension(count, dim, power, dtype, seed):
    generator = np.random.default_rng(seed)
    features = (10.0**power * generator.normal(size=(count, dim))).astype(dtype)
    rank = u.effective_rank(features)
    assert 1 - 1e-9 <= rank <= min(count - 1, dim) * (1 + 1e-9)
    turn = np.linalg.qr(generator.normal(size=(dim, dim)))[0]
    shifted = features[generator.permutation(count)].astype(np.float64) @ turn * 3
    assert u.effective_rank(shifted) == pytest.approx(rank, rel=1e-6)
    line = np.outer(generator.normal(size=count), generator.normal(size=dim))
    assert u.effective_rank(line) == pytest.approx(1, abs=1e-6)


@drawn
@given(
    count=st.integers(2, 60),
    dim=st.integers(2, 16),
    chunk=st.integers(1, 64),
    scale=scales,
    seed=seeds,
)
def test_neighbours_do_not_depend_on_lengths_rotations_or_chunks(count, dim, chunk, scale, seed):
    generator = np.random.default_rng(seed)
    embeddings, labels = generator.normal(size=(count, dim)), generator.integers(3, size=count)
    right = u.nearest_neighbour_correct(embeddings, labels)
    turn = np.linalg.qr(generator.normal(size=(dim, dim)))[0]
    assert (
        u.nearest_neighbour_correct(
            scale * generator.uniform(0.5, 2, (count, 1)) * embeddings @ turn, labels, chunk
        )
        == right
    ).all()
    if len(set(right)) == 2:
        kappa = generator.normal(size=count)
        assert u.recall_auroc(embeddings, labels, -kappa) == u.auroc(kappa, right)


@drawn
@given(some, st.sampled_from([math.nan, math.inf, -math.inf]), st.integers(0, 59))
def test_what_has_no_rank_or_no_value_is_an_error(rows, bad, place):
    score, positive = rows
    spoilt = score.copy()
    spoilt[place % len(score)] = bad
    for measure in (u.auroc, u.average_precision, u.fpr_at_95_tpr, u.aurc, u.excess_aurc, u.augrc):
        if math.isnan(bad):
            with pytest.raises(ValueError, match="NaN"):
                measure(spoilt, positive)
        else:
            assert 0 <= measure(spoilt, positive) + 1e-12 <= 1 + 2e-12, (
                "an infinite score has a rank"
            )
        if measure in (u.aurc, u.excess_aurc, u.augrc):
            assert measure(score, np.ones(len(score), bool)) == 0
        else:
            with pytest.raises(ValueError, match="single class"):
                measure(score, np.ones(len(score), bool))
        with pytest.raises(ValueError, match="shapes"):
            measure(score, positive[1:])
    rows = np.stack([spoilt, score], 1)
    for call in (
        lambda: u.effective_rank(rows),
        lambda: u.brier_score(rows, positive.astype(int)),
        lambda: u.recall_auroc(rows, positive, score),
    ):
        with pytest.raises(ValueError, match="NaN or infinite"):
            call()


@drawn
@given(count=st.integers(2, 40), constant=st.floats(-1e6, 1e6), seed=seeds)
def test_bootstrap_intervals_hold_a_constant_and_lie_within_the_data(count, constant, seed):
    values = np.random.default_rng(seed).normal(size=count)
    low, high = u.bootstrap_interval(np.mean, values, draws=50, seed=seed)
    assert values.min() <= low <= high <= values.max()
    assert u.bootstrap_interval(np.mean, np.full(count, constant), draws=20) == pytest.approx(
        (constant, constant), rel=1e-12, abs=1e-9
    )
    adjusted = statistics.holm(np.abs(values) / (1 + np.abs(values)))
    assert ((adjusted >= np.abs(values) / (1 + np.abs(values)) - 1e-15) & (adjusted <= 1)).all()
