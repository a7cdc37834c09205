"""Drawn posteriors are what they say, and the ceiling is the exact posterior."""

import numpy as np
import pytest
import torch
from scipy import integrate, optimize, special, stats

from lib import losses
from lib.distributions import PowerSpherical, best_concentration, concentration_of
from lib.evaluation import toys as known_truth


@pytest.mark.parametrize("dimension", [16, 128])
def test_samples_have_the_mean_cosine_of_their_concentration(dimension):
    drawn = known_truth.draw_posteriors(4000, dimension, views=4, seed=3)
    assert drawn.views.shape == (
        4000,
        4,
        dimension,
    ) and drawn.target.shape == drawn.location.shape == (4000, dimension)
    for vectors in (drawn.location, drawn.views, drawn.target):
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(vectors.shape[:-1]))
    low, high = (concentration_of(cosine, dimension) for cosine in known_truth.COSINES)
    log_kappa = np.log(drawn.concentration.numpy())
    assert stats.kstest(log_kappa, stats.uniform(np.log(low), np.log(high / low)).cdf).pvalue > 1e-3
    expected = (drawn.concentration / (dimension - 1 + drawn.concentration)).mean().item()
    assert known_truth.cosines(drawn).mean().item() == pytest.approx(expected, abs=0.01)
    again = known_truth.draw_posteriors(4000, dimension, views=4, seed=3)
    assert torch.equal(drawn.views, again.views) and not torch.equal(
        drawn.views, known_truth.draw_posteriors(4000, dimension, seed=4).views
    )


def test_the_ceiling_is_the_posterior_mean_by_quadrature():
    drawn = known_truth.draw_posteriors(5, 16, views=3, seed=0)
    low, high = (np.log(concentration_of(cosine, 16)) for cosine in known_truth.COSINES)
    for i, found in enumerate(known_truth.bayes_log_concentration(drawn)):
        location, views = drawn.location[i].double(), drawn.views[i].double()

        def density(log_kappa, location=location, views=views):
            posterior = PowerSpherical(
                location.expand(3, -1),
                torch.full((3,), np.exp(log_kappa), dtype=torch.float64),
                validate_args=False,
            )
            return float(posterior.log_prob(views).sum().exp())

        mass = integrate.quad(density, low, high)[0]
        expected = (
            integrate.quad(lambda value, density=density: value * density(value), low, high)[0]
            / mass
        )
        assert found == pytest.approx(expected, rel=1e-3)


def test_the_loss_alone_comes_near_the_ceiling_and_nothing_passes_it():
    train, test = (known_truth.draw_posteriors(3000, 16, seed=seed) for seed in (0, 1))
    with torch.no_grad():
        learned = known_truth.learn_concentration(train, epochs=15)(
            known_truth.cosines(test)
        ).numpy()
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
        first, again = (
            known_truth.learn_spread(train, method)(known_truth.cosines(test)).numpy()
            for _ in range(2)
        )
    np.testing.assert_array_equal(first, again)
    best = stats.spearmanr(known_truth.bayes_log_concentration(test), test.concentration).statistic
    assert (
        best - loses_at_most < -stats.spearmanr(first, test.concentration).statistic < best + 0.005
    )


def test_a_loss_without_a_spread_is_refused():
    with pytest.raises(
        ValueError, match="No loss of 'dino' is put to known posteriors; choose prosmin or vje"
    ):
        known_truth.learn_spread(known_truth.draw_posteriors(10, 4), "dino")


def test_the_images_of_the_linear_gaussian_model_have_its_covariance():
    model = known_truth.LinearGaussian(3, images=40_000)
    expected = model.stacked_w @ model.prior @ model.stacked_w.T + model.noise * torch.eye(
        15, dtype=torch.float64
    )
    torch.testing.assert_close(
        model.stacked_x.T.cov(correction=0),
        expected,
        atol=0.05 * expected.diagonal().max().item(),
        rtol=0,
    )
    assert expected[0, 5] > 0.2 * expected[0, 0]  # the first pixel of two views of an image


def test_the_latents_of_the_linear_gaussian_model_are_those_its_images_were_drawn_from():
    model = known_truth.LinearGaussian(3, images=40_000)
    together = model.z.movedim(0, 1).flatten(1)  # [B, J L]
    torch.testing.assert_close(together.T.cov(correction=0), model.prior, atol=0.02, rtol=0)
    assert (model.x - model.z @ model.w.T).var().item() == pytest.approx(model.noise, rel=0.02)


def test_prior_and_reconstruction_pull_latents_to_one_optimum_from_any_start():
    model = known_truth.LinearGaussian(8)
    centre = (
        model.x.mean(0) @ torch.linalg.pinv(model.w).T
    )  # of an image: the least squares of its mean image
    precision = torch.eye(2, dtype=torch.float64) / model.sigma2 + model.w.T @ model.w / model.noise
    optimum = centre + torch.linalg.solve(
        precision, ((model.x - model.x.mean(0)) @ model.w / model.noise).movedim(2, 0).flatten(1)
    ).T.view(8, 3, 2)
    for start in (model.z, model.mean):
        torch.testing.assert_close(
            model.pulled("prior + reconstruction", start, 2000, 0.01), optimum
        )
        torch.testing.assert_close(
            model.pulled("prior", start, 2000, 0.01), start.mean(0).expand(8, -1, -1)
        )


def test_prior_and_entropy_say_which_image_it_is_and_have_no_finite_optimum():
    model = known_truth.LinearGaussian(8)
    best = model.objective(
        "prior", torch.zeros_like(model.z)
    ).item()  # of views at one point, of images infinitely far apart
    distances = (model.z[:, :, None] - model.z.mean(0)).square().sum(3) / (
        2 * model.sigma2
    )  # [J, B, B]
    own = (-distances).log_softmax(2).diagonal(dim1=1, dim2=2).sum().item()
    assert model.objective("prior + entropy", model.z).item() == pytest.approx(best + own)
    reached = [model.pulled("prior + entropy", model.z, steps, 0.01) for steps in (0, 500, 2000)]
    values, apart = (
        [measure(z) for z in reached]
        for measure in (
            lambda z: model.objective("prior + entropy", z).item(),
            lambda z: (z.mean(0) - z.mean((0, 1))).square().mean().item(),
        )
    )
    assert (
        values == sorted(values)
        and values[-1] < best
        and apart == sorted(apart)
        and apart[0] < apart[1] < apart[2]
    )


def test_an_objective_that_is_none_of_the_three_is_refused():
    model = known_truth.LinearGaussian(2)
    with pytest.raises(
        ValueError,
        match="Unknown objective 'entropy'; choose one of .*'prior', 'prior . entropy', 'prior . reconstruction'",
    ):
        model.pulled("entropy", model.z, 1, 0.01)


@pytest.mark.parametrize(
    ("dimension", "tolerance"), [(4, 0.07), (64, 1e-3), (256, 1e-3), (2048, 1e-3)]
)
def test_the_closed_form_is_near_the_root_of_the_gradient(dimension, tolerance):
    beta = (dimension - 1) / 2
    for cosine in (0.05, 0.3, 0.6, 0.9):
        root = optimize.brentq(
            lambda k, s=cosine: (
                special.digamma(2 * beta + k) - special.digamma(beta + k) + np.log((1 + s) / 2)
            ),
            1e-9,
            1e7,
        )
        assert best_concentration(
            torch.tensor(cosine, dtype=torch.float64), dimension
        ).item() == pytest.approx(root, rel=tolerance)
    assert best_concentration(torch.tensor([-0.5, 1.0]), dimension).tolist() == [
        0,
        pytest.approx((dimension - 1) * 1e6, rel=1e-3),
    ]


# ---------------------------------------------------------------------------------------------------------------- scoring rules
def test_the_loss_is_least_where_the_closed_form_has_the_deviation():
    found = known_truth.dispersions(powers=(1.0, 1.5), weights=(0.4545, 0.5, 0.6))
    lowest = found[found.kind == "minimum"].set_index(["beta", "trade_off"]).ratio
    assert list(lowest.index) == [(1.0, 0.4545), (1.0, 0.5), (1.0, 0.6), (1.5, 0.5), (1.5, 0.6)], (
        "0.4545 is below the critical weight of β = 1.5"
    )
    assert lowest[:, 0.5].tolist() == pytest.approx([1, 1], rel=0.04), (
        "a proper score has the true deviation"
    )
    for (beta, weight), ratio in lowest.items():
        assert ratio == pytest.approx(losses.best_dispersion(weight, beta), rel=0.04), (
            "but for the grid's steps"
        )
    curve = found[(found.kind == "closed form") & (found.beta == 1)]
    assert (curve.trade_off > curve.critical).all() and (curve.ratio.diff().dropna() < 0).all()


@pytest.mark.parametrize("method, name", [("vje", "vje_loss"), ("prosmin", "scoring_rule")])
def test_what_is_learned_of_a_spread_is_that_of_its_samples(method, name, monkeypatch):
    loss, expand, log_spread, ratios = getattr(losses, name), torch.Tensor.expand_as, [], []

    def watched(*arguments):
        if method == "vje":
            _, mean, log_variance, sample = arguments
            ratios.append(((sample - mean).square().mean() / log_variance.exp().mean()).item())
        else:
            ratios.append((arguments[0].var(0).mean() / (2 * log_spread[-1]).exp().mean()).item())
        return loss(*arguments)

    monkeypatch.setattr(
        torch.Tensor,
        "expand_as",
        lambda tensor, other: log_spread.append(expand(tensor, other)) or log_spread[-1],
    )
    monkeypatch.setattr(losses, name, watched)
    known_truth.learn_spread(known_truth.draw_posteriors(2000, 16), method, epochs=3)
    assert np.mean(ratios[-8:]) == pytest.approx(1, rel=0.05)
