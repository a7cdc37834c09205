"""VJE: the mass of its directional factor over the sphere, its bound on an evidence that a grid
gives, and what its gradients keep apart.
"""

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from lib import losses, methods
from lib.distributions import DirectionalStudentT
from lib.evaluation.theory import mass_over_sphere, sphere_grid
from lib.runs import settings
from tests.methods.comparison import close, exact_student_t, f64, normal, unit

FREEDOMS = (1.0, 4.0, 1e6)


# ------------------------------------------------------------------------ the mass over the sphere
def mass_of_isotropic(dim, scale, freedom):
    """∫ p(u) du with one scale for all coordinates, by scipy.

    A Student-t of the angle, times the ring at that angle.
    """
    # of S^{D-2}; 2 for D = 2
    log_area = math.log(2) + (dim - 1) / 2 * math.log(math.pi) - math.lgamma((dim - 1) / 2)
    tangent = stats.multivariate_t(np.zeros(dim - 1), scale**2 * np.eye(dim - 1), df=freedom)

    def integrand(angle):
        log_ring = log_area + (dim - 2) * math.log(max(math.sin(angle), 1e-300))
        return math.exp(float(tangent.logpdf(np.append(angle, np.zeros(dim - 2)))) + log_ring)

    edges = np.geomspace(scale * 1e-2, 3, 16)
    return integrate.quad(integrand, 0, math.pi, points=edges, limit=800)[0]


@pytest.mark.parametrize("dim", [2, 3, 16, 64, 512])
@pytest.mark.parametrize("freedom", FREEDOMS)
def test_the_mass_over_the_sphere_is_at_most_one(dim, freedom):
    for scale in (0.01, 0.1, 0.5, 2.0):
        mass = mass_over_sphere(dim, scale / math.sqrt(dim), freedom)
        assert mass <= 1 + 1e-6
        if dim <= 64:
            expected = mass_of_isotropic(dim, scale / math.sqrt(dim), freedom)
            assert mass == pytest.approx(expected, rel=1e-4)
        if (scale, freedom) == (0.01, 1e6):
            # A Gaussian of angles θ with θ² near 0.01² loses what (sin θ / θ)^{D-2} says.
            assert mass == pytest.approx(math.exp(-(dim - 2) * 0.01**2 / 6), abs=1e-3)
        if (scale, freedom) == (2.0, 1.0):
            assert mass < 0.9


def test_a_density_normalised_in_the_space_around_the_sphere_exceeds_one():
    """For an isotropic Gaussian kernel the integral is about 1 / (σ √(2π)) at small σ."""
    mass = mass_over_sphere(16, 0.05, 1e6, intrinsic=False)
    assert mass == pytest.approx(1 / (0.05 * math.sqrt(2 * math.pi)), rel=0.1)
    assert mass_over_sphere(3, 0.1, 4.0, intrinsic=False) > 1.5


@pytest.mark.parametrize("freedom", [4.0, 1e6])
def test_the_mass_with_unequal_scales_is_at_most_one(freedom):
    points, area = sphere_grid()
    for squared in ([0.02, 0.01, 0.05], [0.5, 0.02, 2.0]):
        density = DirectionalStudentT(unit(3, seed=1), f64(squared), freedom)
        mass = (density.log_prob(points).exp() * area).sum().item()
        assert 0.3 < mass <= 1 + 1e-6


def test_the_log_density_is_scipys_student_t_of_the_tangent_vector():
    """In a basis of the tangent space, with the angle from arccos: another way."""
    loc = unit(7, 5)
    u = unit(7, 5, seed=1)
    for row, factor in ((0, 1), (1, -1)):  # near loc, near its antipode
        u[row] = F.normalize(factor * loc[row] + 1e-4 * u[row], dim=0)
    squared = normal(7, 5, seed=2).square() + 0.1
    ours = DirectionalStudentT(loc, squared, 3.0).log_prob(u)
    for row in range(7):
        axes = np.concatenate([loc[row].numpy()[:, None], np.eye(5)], 1)
        basis = np.linalg.qr(axes)[0][:, 1:]  # [D, D - 1]
        angle = math.acos(float(loc[row] @ u[row]))
        e = basis.T @ u[row].numpy() * angle / math.sin(angle)
        shape = np.linalg.inv(basis.T @ np.diag(1 / squared[row].numpy()) @ basis)
        close(ours[row], stats.multivariate_t(np.zeros(4), shape, df=3).logpdf(e), rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_antipode_is_as_unlikely_as_what_lies_beside_it(dtype):
    loc = torch.cat([torch.eye(5), unit(20, 5)]).to(dtype).requires_grad_()
    density = DirectionalStudentT(loc, torch.full_like(loc, 0.1), 3.0, validate_args=False)
    log_prob = density.log_prob(-loc.detach())
    expected = stats.multivariate_t(np.zeros(4), 0.1 * np.eye(4), df=3).logpdf([math.pi, 0, 0, 0])
    assert log_prob.tolist() == pytest.approx([expected] * 25, rel=1e-5)
    (log_prob + density.log_prob(loc.detach())).sum().backward()
    assert loc.grad.isfinite().all()


@pytest.mark.parametrize("freedom", [4.0, 1e3, 1e6])
def test_the_radial_factor_is_scipys_student_t_of_the_length_or_its_logarithm(freedom):
    inputs = (torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 4.5]]), torch.zeros(1, 2))
    _, radial = losses.vje_likelihood(*inputs, 4.0, freedom, 0.7)
    close(radial, [stats.t.logpdf(5.0, freedom, 4.5, 0.7)], rel=1e-6)
    _, radial = losses.vje_likelihood(*inputs, 4.0, freedom, 0.7, log_radius=True)
    log_density = stats.t.logpdf(math.log(5.0), freedom, math.log(4.5), 0.7) - math.log(5.0)
    close(radial, [log_density], rel=1e-6)


# --------------------------------------------------------------------------------------- the bound
class Toy:
    """A target in the plane, whose evidence and posterior a grid over the latent gives."""

    def __init__(self, **options):
        self.options = {
            "directional_freedom": 3.0,
            "radial_freedom": 3.0,
            "radial_scale": 0.5,
            "scale_directions": False,
        } | options
        axis = torch.linspace(-7, 7, 451, dtype=torch.float64)
        self.cell = (axis[1] - axis[0]).item() ** 2
        # [G, 2], beside the origin, where a latent has no direction
        self.z = torch.cartesian_prod(axis + 1e-3, axis)
        self.target = f64([0.9, 0.7])
        self.log_v = f64([-1.2, -0.3])
        rows = [value.expand_as(self.z) for value in (self.target, self.log_v)]
        self.log_likelihood = sum(losses.vje_likelihood(rows[0], self.z, rows[1], **self.options))
        self.log_joint = self.log_likelihood - self.z.square().sum(1) / 2 - math.log(2 * math.pi)
        self.evidence = torch.logsumexp(self.log_joint, 0) + math.log(self.cell)

    def log_q(self, mean):
        return Normal(mean, (self.log_v / 2).exp()).log_prob(self.z).sum(1)

    def expected_loss(self, mean):
        """-ELBO with the expectation over q taken on the grid."""
        q = self.log_q(mean).exp() * self.cell
        assert q.sum().item() == pytest.approx(1, abs=1e-6)
        one = [value[None] for value in (self.target, mean, self.log_v, mean)]
        return losses.vje_loss(*one, **self.options)["kl"] - (q * self.log_likelihood).sum()

    def gap(self, mean):
        """KL( q || p(z | target) ) on the grid."""
        log_q = self.log_q(mean)
        log_posterior = self.log_joint - self.evidence
        return (log_q.exp() * (log_q - log_posterior)).sum() * self.cell


@pytest.mark.parametrize(
    "options", [{}, {"log_radius": True}, {"likelihood": "euclidean"}, {"scale_directions": True}]
)
@pytest.mark.parametrize("mean", [(0.9, 0.7), (-1.0, 0.5)])
def test_the_loss_is_the_evidence_plus_the_distance_of_the_posteriors(options, mean):
    toy = Toy(**options)
    mean = f64(mean)
    close(toy.expected_loss(mean), toy.gap(mean) - toy.evidence, abs=1e-4)
    assert toy.gap(mean) > 0.05


def test_the_sampled_loss_is_the_expected_one():
    toy = Toy()
    mean = f64([0.4, 0.8])
    noise = normal(200_000, 2)
    rows = [part.expand_as(noise) for part in (toy.target, mean, toy.log_v)]
    sampled = losses.vje_loss(*rows, mean + (toy.log_v / 2).exp() * noise, **toy.options)["loss"]
    close(sampled, toy.expected_loss(mean), abs=0.02)


# ---------------------------------------------------------------------------- gradients and optima
def test_the_directional_factor_moves_directions_and_the_radial_factor_lengths():
    target = normal(6, 5).requires_grad_()
    latent = normal(6, 5, seed=1).requires_grad_()
    log_v = torch.full_like(latent, -0.5)
    directional, radial = losses.vje_likelihood(target, latent, log_v, 4.0, 4.0, 1.0)
    for part, moves_length in ((directional, False), (radial, True)):
        gradients = torch.autograd.grad(part.sum(), (target, latent), retain_graph=True)
        for gradient, vector in zip(gradients, (target, latent), strict=True):
            along = (gradient * F.normalize(vector, dim=1)).sum(1)
            across = (gradient - along[:, None] * F.normalize(vector, dim=1)).norm(dim=1)
            moved, unmoved = (along, across) if moves_length else (across, along)
            assert unmoved.abs().max() < 1e-9
            assert moved.abs().min() > 1e-3


def test_the_kl_of_the_loss_is_to_the_prior_that_is_given():
    target, mean, log_v, sample = normal(4, 5, 6)
    prior = Normal(torch.zeros_like(mean), 2.5**0.5)
    expected = kl_divergence(Normal(mean, (log_v / 2).exp()), prior).sum(1).mean()
    terms = losses.vje_loss(target, mean, log_v, sample, prior_variance=2.5)
    close(terms["kl"], expected, rel=1e-5)


# ---------------------------------------------------------------------------- against exact numbers
@pytest.mark.parametrize("likelihood", ["polar", "product", "ambient", "euclidean"])
@pytest.mark.parametrize("log_variance", [-300.0, -110.0, -20.0, 0.0, 110.0])
def test_log_variances_of_any_size_stay_logarithms(likelihood, log_variance):
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(5, 8, generator=generator)
    latent = torch.randn(5, 8, generator=generator).requires_grad_()
    log_v = (log_variance + torch.randn(5, 8, generator=generator)).requires_grad_()
    single, _ = losses.vje_likelihood(target, latent, log_v, 3.0, 4.0, 1.0, likelihood)
    single.sum().backward()
    assert latent.grad.isfinite().all() and log_v.grad.isfinite().all()
    rows = zip(target.tolist(), latent.tolist(), log_v.tolist(), strict=True)
    with mpmath.workdps(60):
        exact = [float(exact_directional(*row, mpmath.mpf(3), likelihood)) for row in rows]
    close(single, exact, rel=2e-5, abs=2e-4)


def exact_directional(target, latent, log_variance, nu, likelihood):
    """The directional factor of one row from the formulas of the docstrings."""
    u = mpmath.matrix(target)
    mu = mpmath.matrix(latent)
    log_scale = [mpmath.mpf(x) for x in log_variance]
    dim = len(log_scale)
    if likelihood != "euclidean":
        u = u / mpmath.norm(u)
        mu = mu / mpmath.norm(mu)
        log_scale = [x - mpmath.log(dim) for x in log_scale]
    scale = [mpmath.exp(x) for x in log_scale]
    residual = u - mu
    if likelihood == "product":
        parts = zip(residual, scale, strict=True)
        return sum(exact_student_t(e**2 / v, mpmath.log(v), 1, nu) for e, v in parts)
    log_determinant = sum(log_scale)
    if likelihood == "polar":
        cosine = (mu.T * u)[0]
        angle = mpmath.acos(cosine)
        residual = (u - cosine * mu) * angle / mpmath.sin(angle)
        log_determinant -= mpmath.log(sum(m**2 * v for m, v in zip(mu, scale, strict=True)))
        dim -= 1
    distance = sum(e**2 / v for e, v in zip(residual, scale, strict=True))
    return exact_student_t(distance, log_determinant, dim, nu)


# -------------------------------------------------------------------------------------- the method
def small(**changes):
    return methods.build(settings.resolve("vje", "smoke", **changes), 1)


def with_variances_of_images(**changes):
    network = small(**changes).eval()
    torch.nn.init.normal_(network.inference[-1].weight)
    return network


def views(count=16):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(count, 1, 16, 16, generator=generator) for _ in range(2)]


@pytest.mark.parametrize("weights", [{}, {"kl_weight": 3.0, "radial_weight": 2.0}])
def test_the_loss_is_symmetric_and_that_of_its_parts(weights):
    first, second = views()
    network = with_variances_of_images(**weights)
    network.set_epoch(1.0)  # after the warm-up
    torch.manual_seed(0)
    terms = network.loss([first, second])
    close(terms["loss"], terms["directional"] + terms["radial"] + terms["kl"], rel=1e-5)

    names = ("directional_freedom", "radial_freedom", "likelihood", "scale_directions")
    names += ("log_radius", "prior_variance", "kl_weight", "radial_weight")
    options = {name: network.settings[name] for name in names}
    samples = network.settings["samples"]
    outputs = [network(first), network(second)]
    torch.manual_seed(0)
    pairs = []
    for predicting, predicted in ((0, 1), (1, 0)):
        _, mean, log_v = (part.repeat(samples, 1) for part in outputs[predicting])
        target = outputs[predicted][0].repeat(samples, 1)
        sample = mean + (log_v / 2).exp() * torch.randn_like(mean)
        scale = network.log_radial_scale.exp()
        pair = losses.vje_loss(target, mean, log_v, sample, radial_scale=scale, **options)
        pairs.append(pair["loss"].item())
    close(terms["loss"], sum(pairs) / 2 / network.dimension, rel=1e-4)

    s, mean, log_v = outputs[0]
    length = s.norm(dim=1)
    logged = {
        "variance": log_v.exp().mean(),
        "log_variance_spread": log_v.std(1).mean(),
        "norm": length.mean(),
        "norm_spread": length.std() / length.mean(),
        "cosine": F.cosine_similarity(mean, outputs[1][0]).mean(),
    }
    for name, value in logged.items():
        close(terms[name], value, rel=1e-3, abs=1e-5)


def test_in_the_warm_up_z_is_the_mean_and_the_weight_of_the_kl_rises():
    network = small(kl_weight=0.5, kl_warmup_epochs=0.8).eval()
    network.set_epoch(0.2)
    once = network.loss(views())
    assert once["loss"] == network.loss(views())["loss"]  # nothing is drawn
    network.set_epoch(0.4)
    later = network.loss(views())
    close(later["kl"], 2 * once["kl"], rel=1e-5)
    assert later["directional"] == once["directional"]
    network.set_epoch(0.8)
    assert network.kl_weight.item() == pytest.approx(0.5)
    assert network.loss(views())["directional"] != once["directional"]


@pytest.mark.parametrize("standardise", [True, False])
def test_features_are_standardised_unless_asked(standardise):
    network = small(standardise=standardise).train()
    s = network(5 * views(64)[0] + 3)[0]
    is_centred = s.mean(0).abs().max() < 1e-4
    is_scaled = (s.var(0, correction=0) - 1).abs().max() < 0.05
    assert bool(is_centred and is_scaled) == standardise
    assert not (standardise and list(network.backbone[-1].parameters()))  # nothing to learn


def test_the_target_is_a_constant_unless_asked():
    gradients = []
    for stop in (True, False):
        network = small(stop_gradient=stop)
        torch.manual_seed(0)
        network.loss(views())["loss"].backward()
        gradients.append(next(network.backbone.parameters()).grad.clone())
    assert gradients[0].abs().max() > 0
    assert not torch.allclose(*gradients)


def test_variances_start_at_the_recipes_and_stay_within_their_bounds():
    image = views()[0]
    log_v = small(initial_variance=0.3).eval()(image)[2]
    torch.testing.assert_close(log_v, torch.full_like(log_v, math.log(0.3)), rtol=0, atol=1e-5)
    log_v = with_variances_of_images(feature_wise=False)(image)[2]
    assert log_v.std(1).max() < 1e-6 < log_v.std(0).max()  # one an image
    bounded = small(log_variance_low=-2.0, log_variance_high=1.0).eval()
    torch.nn.init.normal_(bounded.inference[-1].weight, std=100.0)
    log_v = bounded(image)[2]
    assert -2.0 <= log_v.min() < -1.9 and 0.9 < log_v.max() <= 1.0


def test_uncertainties_of_an_image_are_those_of_the_likelihood():
    network = with_variances_of_images(prior_variance=2.5)
    image = views()[0]
    embedding = network.embed(image)
    native = network.uncertainties(image).native
    s, mean, log_v = network(image)
    torch.testing.assert_close(embedding.features, s)
    torch.testing.assert_close(embedding.uncertainty, log_v.mean(1))

    scale = network.log_radial_scale.exp()
    directional, radial = losses.vje_likelihood(s, mean, log_v, 64.0, 64.0, scale)
    kl = losses.kl_to_prior(mean, log_v, 2.5)
    mirrored = network(image.flip(-1))[0]
    other_view = sum(losses.vje_likelihood(mirrored, mean, log_v, 64.0, 64.0, scale))
    expected = {
        "directional": -directional,
        "radial": -radial,
        "negative_log_likelihood": -directional - radial,
        "kl": kl,
        "likelihood_and_kl": -directional - radial + kl,
        "other_view": -other_view,
        "density_likelihood": -directional - radial + (s.shape[1] - 1) * s.norm(dim=1).log(),
        "negative_bound": native["averaged_likelihood"] + kl,
    }
    for name, value in expected.items():
        torch.testing.assert_close(native[name], value, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(native["other_view"], native["negative_log_likelihood"], rtol=1e-3)
    flat = small(likelihood="euclidean").eval().uncertainties(image).native
    assert torch.equal(flat["density_likelihood"], flat["negative_log_likelihood"])


def test_the_averaged_likelihood_of_an_image_is_over_samples_of_z():
    network = with_variances_of_images()
    image = views()[0]
    s, mean, log_v = network(image)
    scale = network.log_radial_scale.exp()
    generator = torch.Generator().manual_seed(1)
    terms = []
    for noise in torch.randn(400, mean.shape[1], generator=generator):  # one for all images
        sample = mean + (log_v / 2).exp() * noise
        directional, radial = losses.vje_likelihood(s, sample, log_v, 64.0, 64.0, scale)
        terms.append(-(directional + radial).mean().item())
    averaged = network.uncertainties(image, samples=400).native["averaged_likelihood"]
    close(averaged.mean(), np.mean(terms), abs=8 * np.std(terms) / 400**0.5 + 1e-3)
    single = network.uncertainties(image[3:4], samples=400).native["averaged_likelihood"]
    torch.testing.assert_close(single[0], averaged[3], rtol=1e-4, atol=1e-8)
