"""lib.evaluation.toys: what is drawn has the law that it claims, and the ceiling is exact."""

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from lib.distributions import PowerSpherical, best_concentration, concentration_of
from lib.evaluation import theory, toys


# --------------------------------------------------------------- posteriors of known concentration
def test_the_ceiling_is_the_posterior_mean_by_quadrature():
    drawn = toys.draw_posteriors(5, 16, views=3, seed=0)
    low, high = (np.log(concentration_of(cosine, 16)) for cosine in toys.COSINES)
    estimates = toys.bayes_log_concentration(drawn)
    for location, views, estimate in zip(drawn.location, drawn.views, estimates, strict=True):
        loc = location.double().expand(3, -1)
        samples = views.double()

        def likelihood(log_kappa, loc=loc, samples=samples):
            kappa = torch.full((3,), np.exp(log_kappa), dtype=torch.float64)
            posterior = PowerSpherical(loc, kappa, validate_args=False)
            return float(posterior.log_prob(samples).sum().exp())

        def weighted(log_kappa, likelihood=likelihood):
            return log_kappa * likelihood(log_kappa)

        mass = integrate.quad(likelihood, low, high)[0]
        expected = integrate.quad(weighted, low, high)[0] / mass
        assert estimate == pytest.approx(expected, rel=1e-3)


@pytest.fixture(scope="module")
def drawn():
    """Posteriors to learn from, others to test on, and the best rank correlation with log κ."""
    train = toys.draw_posteriors(3000, 16, seed=0)
    test = toys.draw_posteriors(3000, 16, seed=1)
    best = stats.spearmanr(toys.bayes_log_concentration(test), test.concentration).statistic
    return train, test, best


def test_the_loss_alone_comes_near_the_ceiling_and_nothing_passes_it(drawn):
    train, test, best = drawn
    truth = np.log(test.concentration.numpy())
    with torch.no_grad():
        learned = toys.learn_concentration(train, epochs=15)(toys.cosines(test)).numpy()
        again = toys.learn_concentration(train, epochs=15)(toys.cosines(test)).numpy()
    np.testing.assert_array_equal(learned, again)
    assert best - 0.02 < stats.spearmanr(learned, truth).statistic < best + 0.005
    assert stats.spearmanr(toys.cosines(test).mean(1), truth).statistic < best + 0.005
    ceiling = toys.bayes_log_concentration(test)
    assert np.mean((np.log(learned) - truth) ** 2) > np.mean((ceiling - truth) ** 2)


@pytest.mark.parametrize(("method", "loss_of_rank"), [("prosmin", 0.06), ("vje", 0.02)])
def test_spreads_of_other_losses_fall_as_the_concentration_grows(drawn, method, loss_of_rank):
    train, test, best = drawn
    with torch.no_grad():
        spread = toys.learn_spread(train, method)(toys.cosines(test)).numpy()
    rank = -stats.spearmanr(spread, test.concentration).statistic
    assert best - loss_of_rank < rank < best + 0.005


@pytest.mark.parametrize(("dimension", "tolerance"), [(4, 0.07), (64, 1e-3), (2048, 1e-3)])
@pytest.mark.parametrize("cosine", [0.05, 0.6, 0.9])
def test_the_closed_form_of_kappa_is_near_the_root_of_the_gradient(dimension, tolerance, cosine):
    exact = theory.exact_concentration(cosine, dimension)
    mu, z = theory.at_cosine(torch.tensor([cosine], dtype=torch.float64), dimension)
    kappas = [torch.tensor([factor * exact], dtype=torch.float64) for factor in (0.99, 1, 1.01)]
    densities = [PowerSpherical(mu, kappa).log_prob(z).item() for kappa in kappas]
    assert densities[1] == max(densities)
    closed_form = best_concentration(torch.tensor(cosine, dtype=torch.float64), dimension).item()
    assert closed_form == pytest.approx(exact, rel=tolerance)


# -------------------------------------------------------------------- the energy score's deviation
# ------------------------------------------------------------------------ views that share a mean
def test_the_linear_gaussian_model_draws_from_its_own_law():
    model = toys.LinearGaussian(3, images=40_000)
    latents = model.z.movedim(0, 1).flatten(1)  # [B, J L]
    torch.testing.assert_close(latents.T.cov(correction=0), model.prior, atol=0.02, rtol=0)
    assert (model.x - model.z @ model.w.T).var().item() == pytest.approx(model.noise, rel=0.02)
    expected = model.stacked_w @ model.prior @ model.stacked_w.T
    expected = expected + model.noise * torch.eye(15, dtype=torch.float64)
    tolerance = 0.05 * expected.diagonal().max().item()
    images = model.stacked_x.T.cov(correction=0)
    torch.testing.assert_close(images, expected, atol=tolerance, rtol=0)
    assert expected[0, 5] > 0.2 * expected[0, 0], "the first pixel of two views of an image"


def test_prior_and_reconstruction_have_one_optimum_from_any_start():
    model = toys.LinearGaussian(8)
    centre = model.x.mean(0) @ torch.linalg.pinv(model.w).T  # least squares of the mean image
    precision = model.w.T @ model.w / model.noise
    precision += torch.eye(2, dtype=torch.float64) / model.sigma2
    pull = (model.x - model.x.mean(0)) @ model.w / model.noise  # [J, B, L]
    optimum = centre + pull @ torch.linalg.inv(precision)
    for start in (model.z, model.mean):
        reached = model.gradient_ascent("prior + reconstruction", start, 2000, 0.01)
        torch.testing.assert_close(reached, optimum)
        reached = model.gradient_ascent("prior", start, 2000, 0.01)
        torch.testing.assert_close(reached, start.mean(0).expand(8, -1, -1))


def test_prior_and_entropy_have_no_finite_optimum():
    model = toys.LinearGaussian(8)
    supremum = model.objective("prior", torch.zeros_like(model.z)).item()
    distances = (model.z[:, :, None] - model.z.mean(0)).square().sum(3)  # [J, B, B]
    log_classes = (-distances / (2 * model.sigma2)).log_softmax(2)
    expected = supremum + log_classes.diagonal(dim1=1, dim2=2).sum().item()
    assert model.objective("prior + entropy", model.z).item() == pytest.approx(expected)
    values = []
    spreads = []
    for steps in (0, 500, 2000):
        z = model.gradient_ascent("prior + entropy", model.z, steps, 0.01)
        values.append(model.objective("prior + entropy", z).item())
        spreads.append((z.mean(0) - z.mean((0, 1))).square().mean().item())
    assert values[0] < values[1] < values[2] < supremum
    assert spreads[0] < spreads[1] < spreads[2], "images move apart"


# ------------------------------------------------------------------- discrimination and similarity
def test_instance_discrimination_is_bounded_by_prior_and_entropy():
    clear = toys.instance_discrimination(0.05)
    noisy = toys.instance_discrimination(0.5)
    for row in (clear, noisy):
        assert row["terms"] == pytest.approx(row["bound"], abs=1e-6)
        assert row["bound"] < row["exact"] < 0
    assert clear["exact"] - clear["bound"] < 0.01 < noisy["exact"] - noisy["bound"]


def test_the_exact_ratio_is_the_best_similarity_and_below_the_information():
    table = toys.info_nce_by_similarity(pairs=1000, most_negatives=63)
    nats = table.pivot(index="negatives", columns="similarity", values="nats")
    assert nats.index.tolist() == [1, 3, 7, 15, 31, 63]
    assert (nats["exact ratio"].diff().dropna() > 0).all()
    for other in ("dot product", "cosine"):
        assert (nats["exact ratio"] > nats[other]).all()
    covariance = np.array([[1.0, 1 / 1.15], [1 / 1.15, 1.0]])
    information = -4 / 2 * np.log(np.linalg.det(covariance))
    assert toys.information_between_views() == pytest.approx(information)
    assert nats["exact ratio"].max() < information
