"""Properties of losses over shapes, dtypes and extreme values.

hypothesis draws the examples, the same ones every time.
"""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib import losses
from tests.methods.comparison import normal

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
