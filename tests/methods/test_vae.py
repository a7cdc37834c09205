"""SimVAE and the VAEs.

Their bounds on a linear-Gaussian model, whose evidence and posterior are known in closed form,
their networks and methods.
"""

import math

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from lib import losses, methods, networks
from lib.evaluation.toys import LinearGaussian
from lib.runs import settings
from tests.methods.comparison import close, f64, normal

SIGMA2 = 0.15
GAMMA2 = 0.7
FAMILY = ["vae", "beta_vae", "cr_vae", "simvae", "simvae_public_code"]
BINARY = {"likelihood": "bernoulli", "binarise": 0.5}


@pytest.mark.parametrize("views", [1, 2])
def test_the_evidence_is_the_integral_over_all_latents(views):
    """By Gauss-Hermite quadrature over ψ and the noise of every z_j."""
    model = LinearGaussian(views, latents=1, pixels=2)
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    grids = np.meshgrid(*[nodes] * (1 + views), indexing="ij")
    weight = np.prod(np.meshgrid(*[weights / weights.sum()] * (1 + views), indexing="ij"), axis=0)
    for image in range(3):
        log_density = np.zeros_like(weight)
        for j in range(views):
            z = math.sqrt(GAMMA2) * grids[0] + math.sqrt(SIGMA2) * grids[1 + j]
            for d in range(2):
                error = model.x[j, image, d].item() - model.w[d, 0].item() * z
                log_density -= error**2 / (2 * model.noise)
                log_density -= math.log(2 * math.pi * model.noise) / 2
        evidence = math.log(np.sum(weight * np.exp(log_density)))
        close(model.evidence()[image], evidence, rel=1e-6)


# --------------------------------------------------------------------------------------- the bound
@pytest.mark.parametrize("views", [1, 2, 4])
def test_the_loss_is_the_evidence_plus_the_distance_of_the_posteriors(views):
    toy = LinearGaussian(views)
    loss = toy.expected_loss(mean_prior="normal", mean_prior_variance=GAMMA2)["loss"]
    gap = kl_divergence(toy.approximate(), toy.posterior())
    close(loss, (gap - toy.evidence()).mean(), rel=1e-12)
    assert (gap > 0.1).all()  # so a bound, and not one by chance


@pytest.mark.parametrize("views", [2, 4])
def test_a_flat_mean_is_the_limit_of_a_wide_one(views):
    wide = 1e9
    toy = LinearGaussian(views, gamma2=wide)
    near = LinearGaussian(views)
    # Images of a near mean: those of a wide one have a loss that hides the constant.
    toy.x = near.x
    toy.stacked_x = near.stacked_x
    # p(ψ) = 1 in place of its density at the centre
    flat_evidence = toy.evidence() + toy.latents / 2 * math.log(2 * math.pi * wide)
    gap = kl_divergence(toy.approximate(), toy.posterior())
    loss = toy.expected_loss(mean_prior="uniform")["loss"]
    close(loss, (gap - flat_evidence).mean(), rel=1e-6)


def test_the_public_codes_prior_on_the_mean_is_a_marginal_at_one_width_alone():
    toy = LinearGaussian(3)
    public = toy.expected_loss(mean_prior="public_code")["loss"]

    def marginal(width):
        return toy.expected_loss(mean_prior="normal", mean_prior_variance=width)["loss"]

    close(public, marginal(1 - SIGMA2 / 3), rel=1e-12)
    assert abs(public - marginal(1.0)) > 1e-3


@pytest.mark.parametrize(
    ("options", "scale"),
    [
        ({"mean_prior": "public_code"}, 1.0),
        ({"mean_prior": "normal", "mean_prior_variance": GAMMA2}, math.sqrt(GAMMA2 + SIGMA2)),
    ],
)
def test_one_view_is_a_vae(options, scale):
    toy = LinearGaussian(1)
    terms = toy.expected_loss(**options)
    posterior = Normal(toy.mean[0], (toy.log_variance[0] / 2).exp())
    kl = kl_divergence(posterior, Normal(torch.zeros(2).double(), scale)).sum(1).mean()
    close(terms["entropy"] + terms["prior"], kl, rel=1e-12)


def test_terms_are_what_torch_says_they_are():
    toy = LinearGaussian(3)
    z = toy.mean + 0.1
    logits = z @ toy.w.T
    pixels = (toy.x > 0).double()
    terms = losses.simvae_loss(logits, pixels, toy.mean, toy.log_variance, z, "bernoulli")
    log_p = Bernoulli(logits=logits).log_prob(pixels)
    close(terms["reconstruction"], -log_p.sum((0, 2)).mean())
    entropy = Normal(toy.mean, (toy.log_variance / 2).exp()).entropy()
    close(terms["entropy"], -entropy.sum((0, 2)).mean())
    close(terms["loss"], terms["reconstruction"] + terms["entropy"] + terms["prior"])
    gaussian = losses.simvae_loss(logits, toy.x, toy.mean, toy.log_variance, z, variance=0.5)
    log_p = Normal(logits, 0.5**0.5).log_prob(toy.x)
    close(gaussian["reconstruction"], -log_p.sum((0, 2)).mean())


@pytest.mark.parametrize(
    ("weight", "views", "expected"), [(1.0, 10, 1 / 6), (2 * math.pi, 10, 1.047), (1.0, 2, 0.3)]
)
def test_the_entropy_weight_of_the_public_code_widens_the_posterior_as_derived(
    weight, views, expected
):
    """Between prior and entropy alone a posterior variance v minimises
    w (-½ log v) + v (1 - 1/J) / (2 σ²), so v = w σ² J / (J - 1).
    """
    # J numbers of mean 0 whose squares add up to J - 1: E |z_j - z̄|² = v (1 - 1/J)
    spread = torch.linspace(-1, 1, views, dtype=torch.float64).view(views, 1, 1)
    spread *= math.sqrt((views - 1) / spread.square().sum().item())
    zero = torch.zeros_like(spread)
    log_v = f64(math.log(expected)).requires_grad_()
    sample = spread * (log_v / 2).exp()
    terms = losses.simvae_loss(
        zero, zero, zero, log_v.expand_as(zero), sample, entropy_weight=weight
    )
    (slope,) = torch.autograd.grad(terms["loss"], log_v, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, log_v)
    assert curvature > 0
    assert abs(slope / curvature) < 2e-3


def test_kl_of_gaussians_is_torchs():
    generator = torch.Generator().manual_seed(0)
    first, log_v, second, other = torch.randn(4, 6, 3, generator=generator)
    posterior = Normal(first, (log_v / 2).exp())
    expected = kl_divergence(posterior, Normal(second, (other / 2).exp())).sum(1)
    torch.testing.assert_close(losses.gaussian_kl(first, log_v, second, other), expected)
    # Of nearly equal ones float32 would leave no digit of exp(x) - 1 - x.
    zero = torch.zeros(6, 3)
    near = losses.gaussian_kl(zero, zero, zero, zero + 2**-17)
    torch.testing.assert_close(near, torch.full((6,), 3 * 2**-34 / 4), rtol=1e-2, atol=0)
    tiny = torch.full((1, 2), -110.0)
    kl = losses.gaussian_kl(torch.tensor([[1e-20, 0.0]]), tiny, torch.zeros(1, 2), tiny)
    close(kl, [1e-40 * math.exp(110) / 2], rel=1e-5)


@pytest.mark.parametrize("prior", ["uniform", "normal", "public_code"])
def test_a_rotation_of_the_latents_changes_no_prior(prior):
    z = normal(3, 4, 2)
    turn = torch.linalg.qr(normal(2, 2, seed=1))[0]
    close(
        losses.log_shared_mean(z @ turn, mean_prior=prior),
        losses.log_shared_mean(z, mean_prior=prior),
    )


# ---------------------------------------------------------------------------------------- networks
def test_networks_are_those_of_tables_3_and_4():
    encoder = networks.mlp(1, 28)
    decoder = networks.decoder(10, 1, 28, "mlp")
    images = torch.zeros(2, 1, 28, 28)
    assert networks.layer_outputs(encoder, images) == ["500", "500", "2000"]
    outputs = networks.layer_outputs(decoder, torch.zeros(2, 10))
    assert outputs == ["2000", "500", "500", "1@28×28"]

    encoder = networks.resnet_simvae(3, 64)
    decoder = networks.decoder(64, 3, 64, "resnet")
    outputs = networks.layer_outputs(encoder, torch.zeros(2, 3, 64, 64))
    assert outputs == ["16@32×32", "32@32×32", "64@16×16", "128@8×8", "256@4×4"]
    outputs = networks.layer_outputs(decoder, torch.zeros(2, 64))
    stages = ["256@4×4", "128@8×8", "64@16×16", "32@32×32", "16@64×64"]
    assert outputs == [*stages, "3@64×64"]


@pytest.mark.parametrize("size", [16, 17, 28, 32, 63, 64, 96])
def test_convolutional_networks_fit_every_size(size):
    encoder = networks.resnet_simvae(1, size)
    assert encoder(torch.zeros(2, 1, size, size)).shape == (2, encoder.features)
    if size % 2 == 0:
        decoder = networks.decoder(5, 1, size, "resnet")
        assert decoder(torch.zeros(2, 5)).shape == (2, 1, size, size)


# ----------------------------------------------------------------------------------------- methods
def small(method, **other):
    base = {"method": method, "seed": 0, "image_size": 16, "backbone": "mlp", "representation": 4}
    return methods.build(settings.recipe(method) | base | other, channels=1).train()


def draw_views(count=2, batch=5):
    return list(torch.rand(count, batch, 1, 16, 16, generator=torch.Generator().manual_seed(1)))


def terms_of(network, views):
    torch.manual_seed(0)
    return {name: value.item() for name, value in network.loss(views).items()}


@pytest.mark.parametrize("change", [{}, BINARY])
@pytest.mark.parametrize("method", FAMILY)
def test_a_loss_is_its_function_of_one_sample_of_the_posterior(method, change):
    network = small(method, **change)
    network.posterior.weight.data *= 30  # posteriors of images differ
    views = draw_views()
    x = torch.cat(views)
    if change:
        x = (x > 0.5).float()
    mean, log_variance = network.posterior(network.backbone(x)).chunk(2, 1)
    torch.manual_seed(0)
    z = mean + torch.randn_like(mean) * log_variance.exp().sqrt()
    decoded = network.decoder(z)
    picture = torch.sigmoid(decoded)
    inputs = (decoded if change else picture, x, mean, log_variance)
    recipe = network.settings

    def by_view(tensor):
        return tensor.view(2, 5, *tensor.shape[1:])

    if method.startswith("simvae"):
        names = ("likelihood", "variance", "prior_variance", "mean_prior", "entropy_weight")
        options = {name: recipe[name] for name in names}
        tensors = [by_view(tensor) for tensor in (*inputs, z)]
        expected = losses.simvae_loss(*tensors, **options)["loss"]
    else:
        options = {name: recipe[name] for name in ("likelihood", "variance", "beta")}
        expected = losses.vae_loss(*inputs, **options)["loss"]
    terms = terms_of(network, views)
    if method == "cr_vae":
        # Sinha & Dieng 2021, Eq. 5: KL( q(z | x') || q(z | x) )
        (m1, m2) = by_view(mean)
        (v1, v2) = by_view(log_variance)
        consistency = 0.1 * losses.gaussian_kl(m2, v2, m1, v1).mean()
        close(terms["consistency"], consistency, rel=1e-4)
        expected = 2 * expected + consistency
    close(terms["loss"], expected, rel=1e-5)
    close(terms["mse"], (picture - x).square().mean(), rel=1e-5)
    close(terms["posterior_variance"], log_variance.exp().mean(), rel=1e-4)
    torch.testing.assert_close(network.picture(z), picture)


def test_an_image_is_embedded_as_it_was_trained_on_binarised():
    images = draw_views()[0]
    features = small("vae", binarise=0.5).eval().embed(images).features
    plain = small("vae").eval().embed((images > 0.5).float()).features
    assert torch.equal(features, plain)


def test_the_public_codes_weight_counts_reconstruction_more():
    views = draw_views()
    plain = terms_of(small("simvae_public_code", **BINARY), views)
    heavy = terms_of(small("simvae_public_code", **BINARY, reconstruction_weight=99.5), views)
    close(heavy["loss"] - plain["loss"], 98.5 * plain["reconstruction"], rel=1e-4)
