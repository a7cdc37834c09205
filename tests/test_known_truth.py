"""Drawn posteriors are what they say, and the ceiling is the exact posterior."""

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, special, stats

from lib import known_truth
from lib.distributions import PowerSpherical, best_concentration, concentration_of


@pytest.mark.parametrize("dimension", [16, 128])
def test_samples_have_the_mean_cosine_of_their_concentration(dimension):
    drawn = known_truth.draw_posteriors(4000, dimension, views=4, seed=3)
    assert drawn.views.shape == (4000, 4, dimension) and drawn.target.shape == drawn.location.shape == (4000, dimension)
    for vectors in (drawn.location, drawn.views, drawn.target):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(vectors.shape[:-1]))
    low, high = (concentration_of(cosine, dimension) for cosine in known_truth.COSINES)
    log_kappa = np.log(drawn.concentration.numpy())
    assert stats.kstest(log_kappa, stats.uniform(np.log(low), np.log(high / low)).cdf).pvalue > 1e-3
    expected = (drawn.concentration / (dimension - 1 + drawn.concentration)).mean().item()
    assert known_truth.cosines(drawn).mean().item() == pytest.approx(expected, abs=0.01)
    again = known_truth.draw_posteriors(4000, dimension, views=4, seed=3)
    assert torch.equal(drawn.views, again.views) and not torch.equal(drawn.views, known_truth.draw_posteriors(4000, dimension, seed=4).views)


def test_the_ceiling_is_the_posterior_mean_by_quadrature():
    drawn = known_truth.draw_posteriors(5, 16, views=3, seed=0)
    low, high = (np.log(concentration_of(cosine, 16)) for cosine in known_truth.COSINES)
    for i, found in enumerate(known_truth.bayes_log_concentration(drawn)):
        location, views = drawn.location[i].double(), drawn.views[i].double()

        def density(log_kappa, location=location, views=views):
            posterior = PowerSpherical(location.expand(3, -1), torch.full((3,), np.exp(log_kappa), dtype=torch.float64), validate_args=False)
            return float(posterior.log_prob(views).sum().exp())

        mass = integrate.quad(density, low, high)[0]
        expected = integrate.quad(lambda value, density=density: value * density(value), low, high)[0] / mass
        assert found == pytest.approx(expected, rel=1e-3)


def test_the_loss_alone_comes_near_the_ceiling_and_nothing_passes_it():
    train, test = (known_truth.draw_posteriors(3000, 16, seed=seed) for seed in (0, 1))
    with torch.no_grad():
        learned = known_truth.learn_concentration(train, epochs=15)(known_truth.cosines(test)).numpy()
    truth, ceiling = np.log(test.concentration.numpy()), known_truth.bayes_log_concentration(test)
    best = stats.spearmanr(ceiling, truth).statistic
    assert best - 0.02 < stats.spearmanr(learned, truth).statistic < best + 0.005
    assert np.mean((np.log(learned) - truth) ** 2) > np.mean((ceiling - truth) ** 2)
    assert stats.spearmanr(known_truth.cosines(test).mean(1), truth).statistic < best + 0.005
    with torch.no_grad():
        again = known_truth.learn_concentration(train, epochs=15)(known_truth.cosines(test)).numpy()
    np.testing.assert_array_equal(learned, again)


@pytest.mark.parametrize(("method", "loses_at_most"), [("prosmin", 0.06), ("vje", 0.02)])
def test_spreads_of_other_losses_fall_as_the_concentration_grows(method, loses_at_most):
    train, test = (known_truth.draw_posteriors(3000, 16, seed=seed) for seed in (0, 1))
    with torch.no_grad():
        first, again = (known_truth.learn_spread(train, method)(known_truth.cosines(test)).numpy() for _ in range(2))
    np.testing.assert_array_equal(first, again)
    best = stats.spearmanr(known_truth.bayes_log_concentration(test), test.concentration).statistic
    assert best - loses_at_most < -stats.spearmanr(first, test.concentration).statistic < best + 0.005


def test_a_loss_without_a_spread_is_refused():
    with pytest.raises(ValueError, match="No loss of 'dino' is put to known posteriors; choose prosmin or vje"):
        known_truth.learn_spread(known_truth.draw_posteriors(10, 4), "dino")


def test_the_images_of_the_linear_gaussian_model_have_its_covariance():
    model = known_truth.LinearGaussian(3, images=40_000)
    expected = model.stacked_w @ model.prior @ model.stacked_w.T + model.noise * torch.eye(15, dtype=torch.float64)
    torch.testing.assert_close(model.stacked_x.T.cov(correction=0), expected, atol=0.05 * expected.diagonal().max().item(), rtol=0)
    assert expected[0, 5] > 0.2 * expected[0, 0]  # the first pixel of two views of an image


@pytest.mark.parametrize(("dimension", "tolerance"), [(4, 0.07), (64, 1e-3), (256, 1e-3), (2048, 1e-3)])
def test_the_closed_form_is_near_the_root_of_the_gradient(dimension, tolerance):
    beta = (dimension - 1) / 2
    for cosine in (0.05, 0.3, 0.6, 0.9):
        root = optimize.brentq(lambda k, s=cosine: special.digamma(2 * beta + k) - special.digamma(beta + k) + np.log((1 + s) / 2), 1e-9, 1e7)
        assert best_concentration(torch.tensor(cosine, dtype=torch.float64), dimension).item() == pytest.approx(root, rel=tolerance)
    assert best_concentration(torch.tensor([-0.5, 1.0]), dimension).tolist() == [0, pytest.approx((dimension - 1) * 1e6, rel=1e-3)]
