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

SIGMA2 = 0.15
GAMMA2 = 0.7
FAMILY = ["vae", "beta_vae", "cr_vae", "simvae", "simvae_public_code"]


@pytest.mark.parametrize("views", [1, 2])
def test_the_evidence_is_the_integral_over_all_latents(views):
    """By Gauss-Hermite quadrature over ψ and the noise of every z_j."""
    model = LinearGaussian(views, latents=1, pixels=2)
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    grids = np.meshgrid(*[nodes] * (1 + views), indexing="ij")
    weight = np.prod(np.meshgrid(*[weights / weights.sum()] * (1 + views), indexing="ij"), axis=0)
    z = [math.sqrt(GAMMA2) * grids[0] + math.sqrt(SIGMA2) * grid for grid in grids[1:]]
    for image in range(3):
        density = np.ones_like(weight)
        for j in range(views):
            for d in range(2):
                error = model.x[j, image, d].item() - model.w[d, 0].item() * z[j]
                density = (
                    density
                    * np.exp(-(error**2) / (2 * model.noise))
                    / math.sqrt(2 * math.pi * model.noise)
                )
        assert model.evidence()[image].item() == pytest.approx(
            math.log(np.sum(weight * density)), rel=1e-6
        )


@pytest.mark.parametrize("views", [1, 2, 4])
def test_the_loss_is_the_evidence_plus_the_distance_of_the_posteriors(views):
    toy = LinearGaussian(views)
    loss = toy.expected_loss(mean_prior="normal", mean_prior_variance=GAMMA2)["loss"]
    gap = kl_divergence(toy.approximate(), toy.posterior())
    assert loss.item() == pytest.approx((gap - toy.evidence()).mean().item(), rel=1e-12)
    assert (gap > 0.1).all()  # so a bound, and not one by chance


@pytest.mark.parametrize("views", [2, 4])
def test_a_flat_mean_is_the_limit_of_a_wide_one(views):
    wide = 1e9
    toy = LinearGaussian(views, gamma2=wide)
    near = LinearGaussian(views)
    toy.x, toy.stacked_x = (
        near.x,
        near.stacked_x,
    )  # images of a near mean: those of a wide one have a loss that hides the constant
    flat_evidence = toy.evidence() + toy.latents / 2 * math.log(
        2 * math.pi * wide
    )  # p(ψ) = 1 in place of its density at the centre
    gap = kl_divergence(toy.approximate(), toy.posterior())
    assert toy.expected_loss(mean_prior="uniform")["loss"].item() == pytest.approx(
        (gap - flat_evidence).mean().item(), rel=1e-6
    )


def test_the_public_codes_prior_on_the_mean_is_a_marginal_at_one_width_alone():
    toy = LinearGaussian(3)
    width = 1 - SIGMA2 / 3
    assert toy.expected_loss(mean_prior="public_code")["loss"].item() == pytest.approx(
        toy.expected_loss(mean_prior="normal", mean_prior_variance=width)["loss"].item(), rel=1e-12
    )
    assert (
        abs(
            toy.expected_loss(mean_prior="public_code")["loss"]
            - toy.expected_loss(mean_prior="normal", mean_prior_variance=1.0)["loss"]
        )
        > 1e-3
    )


def test_one_view_is_a_vae():
    toy = LinearGaussian(1)
    own = {
        name: value.item() for name, value in toy.expected_loss(mean_prior="public_code").items()
    }
    z = toy.mean[0] + (toy.log_variance[0] / 2).exp() * torch.randn(
        20_000, *toy.mean[0].shape, dtype=torch.float64
    )
    x = toy.x[0].expand(len(z), -1, -1)
    mean, log_variance = (
        tensor[0].expand(len(z), -1, -1).flatten(0, 1) for tensor in (toy.mean, toy.log_variance)
    )
    vae = losses.vae_loss(
        (z @ toy.w.T).flatten(0, 1), x.flatten(0, 1), mean, log_variance, variance=toy.noise
    )
    assert own["loss"] == pytest.approx(vae["loss"].item(), rel=2e-3)  # 60,000 draws
    assert own["entropy"] + own["prior"] == pytest.approx(vae["kl"].item(), rel=1e-6)
    posterior = Normal(toy.mean[0], (toy.log_variance[0] / 2).exp())
    normal = {"mean_prior": "normal", "mean_prior_variance": GAMMA2}
    for options, scale in (
        ({"mean_prior": "public_code"}, 1.0),
        (normal, math.sqrt(GAMMA2 + SIGMA2)),
    ):
        terms = toy.expected_loss(**options)
        assert (terms["entropy"] + terms["prior"]).item() == pytest.approx(
            kl_divergence(posterior, Normal(torch.zeros(2).double(), scale)).sum(1).mean().item(),
            rel=1e-12,
        )
    assert toy.expected_loss(mean_prior="uniform")["prior"].item() == pytest.approx(0, abs=1e-14)


def test_terms_are_what_torch_says_they_are():
    toy = LinearGaussian(3)
    z = toy.mean + 0.1
    logits = z @ toy.w.T
    pixels = (toy.x > 0).double()
    terms = losses.simvae_loss(logits, pixels, toy.mean, toy.log_variance, z, "bernoulli")
    assert terms["reconstruction"].item() == pytest.approx(
        -Bernoulli(logits=logits).log_prob(pixels).sum((0, 2)).mean().item()
    )
    assert terms["entropy"].item() == pytest.approx(
        -Normal(toy.mean, (toy.log_variance / 2).exp()).entropy().sum((0, 2)).mean().item()
    )
    assert terms["loss"].item() == pytest.approx(
        sum(terms[name].item() for name in ("reconstruction", "entropy", "prior"))
    )
    heavier = losses.simvae_loss(
        logits, pixels, toy.mean, toy.log_variance, z, "bernoulli", entropy_weight=2 * math.pi
    )
    assert heavier["entropy"].item() == pytest.approx(2 * math.pi * terms["entropy"].item())
    gaussian = losses.simvae_loss(logits, toy.x, toy.mean, toy.log_variance, z, variance=0.5)
    assert gaussian["reconstruction"].item() == pytest.approx(
        -Normal(logits, 0.5**0.5).log_prob(toy.x).sum((0, 2)).mean().item()
    )


@pytest.mark.parametrize(
    ("scale", "said"), [(2.0, "\\[0, 2\\]"), (-1.0, "\\[-1, "), (math.nan, "nan")]
)
def test_a_bernoulli_likelihood_refuses_images_outside_its_range(scale, said):
    toy = LinearGaussian(3)
    pixels = (toy.x > 0).double() * scale
    with pytest.raises(ValueError, match=f"{said}.*a Bernoulli likelihood is of images in 0..1"):
        losses.simvae_loss(
            toy.mean @ toy.w.T, pixels, toy.mean, toy.log_variance, toy.mean, "bernoulli"
        )
    losses.simvae_loss(
        toy.mean @ toy.w.T,
        (toy.x > 0).double() * (1 + 1e-6),
        toy.mean,
        toy.log_variance,
        toy.mean,
        "bernoulli",
    )
    losses.simvae_loss(
        toy.mean @ toy.w.T, pixels.nan_to_num(), toy.mean, toy.log_variance, toy.mean, "gaussian"
    )


def test_the_entropy_weight_of_the_public_code_widens_the_posterior_as_derived():
    # Between prior and entropy alone a posterior variance v minimises w (-½ log v) + v (1 - 1/J) /
    # (2 σ²), so v = w σ² J / (J - 1).
    for weight, views, expected in (
        (1.0, 10, 1 / 6),
        (2 * math.pi, 10, 1.047),
        (1.0, 2, 0.3),
        (2 * math.pi, 2, 1.885),
    ):
        grid = torch.linspace(
            math.log(expected) - 1, math.log(expected) + 1, 2001, dtype=torch.float64
        )
        values = [
            # E |z_j - z̄|² = v (1 - 1/J) for every view: a sample that has exactly this spread
            losses.simvae_loss(
                torch.zeros(views, 1, 1).double(),
                torch.zeros(views, 1, 1).double(),
                torch.zeros(views, 1, 1).double(),
                log_v.expand(views, 1, 1),
                spread(views) * (log_v / 2).exp(),
                entropy_weight=weight,
            )["loss"]
            for log_v in grid
        ]
        assert grid[int(torch.stack(values).argmin())].exp().item() == pytest.approx(
            expected, rel=2e-3
        )


def spread(views: int) -> torch.Tensor:
    """J numbers [J, 1, 1] of mean 0 whose squares add up to J - 1."""
    values = torch.linspace(-1, 1, views, dtype=torch.float64)
    return (values * math.sqrt((views - 1) / values.square().sum().item())).view(views, 1, 1)


def test_kl_of_gaussians_is_torchs():
    generator = torch.Generator().manual_seed(0)
    first, log_v, second, other = torch.randn(4, 6, 3, generator=generator)
    expected = kl_divergence(
        Normal(first, (log_v / 2).exp()), Normal(second, (other / 2).exp())
    ).sum(1)
    torch.testing.assert_close(losses.gaussian_kl(first, log_v, second, other), expected)
    zero = torch.zeros(6, 3)
    near = losses.gaussian_kl(
        zero, zero, zero, zero + 2**-17
    )  # of nearly equal ones float32 would leave no digit of exp(x) - 1 - x
    torch.testing.assert_close(near, torch.full((6,), 3 * 2**-34 / 4), rtol=1e-2, atol=0)
    beta = (
        losses.vae_loss(first, second, first, log_v, beta=4.0)["kl"]
        / losses.vae_loss(first, second, first, log_v)["kl"]
    )
    assert beta.item() == pytest.approx(4)


def test_order_of_views_and_rotation_of_the_latents_change_nothing():
    toy = LinearGaussian(3)
    z = toy.mean + 0.1
    turned = torch.linalg.qr(torch.randn(2, 2, dtype=torch.float64))[0]
    zero = torch.zeros_like(toy.mean)

    def loss(z, x, r):
        return losses.simvae_loss(r, x, zero, zero, z, mean_prior="normal")["loss"].item()

    usual = loss(z, toy.x, z @ toy.w.T)
    order = [2, 0, 1]
    assert loss(z[order], toy.x[order], z[order] @ toy.w.T) == pytest.approx(usual)
    assert loss(z @ turned, toy.x, z @ toy.w.T) == pytest.approx(usual)


def test_computed_in_float32_under_autocast():
    toy = LinearGaussian(2)
    x, m, v = (tensor.float() for tensor in (toy.x, toy.mean, toy.log_variance))
    with torch.autocast("cpu", torch.bfloat16):
        inside = losses.simvae_loss(x + 0.1, x, m, v, m)
    assert inside["loss"].dtype == torch.float32
    torch.testing.assert_close(inside["loss"], losses.simvae_loss(x + 0.1, x, m, v, m)["loss"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"likelihood": "poisson"}, "Unknown likelihood 'poisson'"),
        ({"mean_prior": "flat"}, "Unknown mean_prior 'flat'"),
        ({"variance": 0.0}, "^variance is 0.0; it must be positive"),
        ({"prior_variance": -1.0}, "prior_variance is -1.0"),
        ({"sample": torch.zeros(2, 3)}, r"\[J, B, L\]"),
        ({"images": torch.zeros(2, 3, 4)}, "must have one shape"),
    ],
)
def test_what_cannot_be_is_refused(change, message):
    toy = LinearGaussian(2)
    arguments = {
        "reconstruction": toy.x,
        "images": toy.x,
        "mean": toy.mean,
        "log_variance": toy.mean,
        "sample": toy.mean,
    }
    with pytest.raises(ValueError, match=message):
        losses.simvae_loss(**(arguments | change))
    with pytest.raises(ValueError, match="as many as the 3 means"):
        losses.vae_loss(toy.x[0, :2], toy.x[0, :2], toy.mean[0], toy.mean[0])


# ---------------------------------------------------------------------------------------- networks
def test_fully_connected_networks_are_those_of_table_3():
    encoder = networks.mlp(1, 28)
    decoder = networks.decoder(10, 1, 28, "mlp")

    def shapes(network):
        layers = [layer for layer in network if isinstance(layer, torch.nn.Linear)]
        return [tuple(layer.weight.shape) for layer in layers]

    assert shapes(encoder) == [(500, 784), (500, 500), (2000, 500)] and encoder.features == 2000
    assert shapes(decoder) == [(2000, 10), (500, 2000), (500, 500), (784, 500)]
    assert encoder(torch.zeros(3, 1, 28, 28)).shape == (3, 2000) and decoder(
        torch.zeros(3, 10)
    ).shape == (3, 1, 28, 28)


def outputs_of(network, x, kinds):
    """Sizes [C, H, W] behind every module of these kinds."""
    sizes = []
    for module in network:
        x = module(x)
        if isinstance(module, kinds):
            sizes.append(tuple(x.shape[1:]))
    return sizes


@pytest.mark.parametrize("size", [16, 17, 31, 32, 63, 64, 65, 81, 96])
def test_the_length_of_what_the_convolutions_say_is_stated(size):
    network = networks.resnet_simvae(1, size).eval()
    assert network(torch.zeros(1, 1, size, size)).shape == (1, network.features)


def test_convolutional_networks_have_the_sizes_of_table_4():
    block = networks.residual_block()
    assert outputs_of(
        networks.resnet_simvae(3, 64), torch.zeros(2, 3, 64, 64), (torch.nn.MaxPool2d, block)
    ) == [
        (16, 32, 32),
        (32, 32, 32),
        (64, 16, 16),
        (128, 8, 8),
        (256, 4, 4),
    ]
    assert outputs_of(
        networks.decoder(64, 3, 64, "resnet"),
        torch.zeros(2, 64),
        (torch.nn.Unflatten, networks.UpsamplingBlock, torch.nn.Conv2d),
    ) == [
        (256, 4, 4),
        (128, 8, 8),
        (64, 16, 16),
        (32, 32, 32),
        (16, 64, 64),
        (3, 64, 64),
    ]
    assert networks.decoder(64, 3, 64, "resnet")[0].weight.shape == (4096, 64)  # fc 64 x 4096


@pytest.mark.parametrize(("size", "features"), [(16, 1024), (28, 4096), (32, 4096), (64, 4096)])
def test_convolutional_networks_fit_every_size(size, features):
    encoder = networks.resnet_simvae(1, size)
    assert encoder.features == features and encoder(torch.zeros(2, 1, size, size)).shape == (
        2,
        features,
    )
    assert networks.decoder(5, 1, size, "resnet")(torch.zeros(2, 5)).shape == (2, 1, size, size)


@pytest.mark.parametrize("size", [7, 9])
def test_sizes_that_no_decoder_doubles_to_are_refused(size):
    with pytest.raises(ValueError, match=f"image_size is {size} px; the decoder doubles"):
        networks.decoder(5, 1, size, "resnet")
    with pytest.raises(ValueError, match="needs at least 16 px"):
        networks.resnet_simvae(1, size)


def test_a_backbone_may_have_a_threshold_in_front_and_a_short_representation_behind():
    described = {
        "backbone": "mlp",
        "image_size": 8,
        "local_views": 0,
        "representation": 3,
        "binarise": 0.5,
    }
    network = networks.backbone(described, 1)
    images = torch.rand(4, 1, 8, 8)
    assert network.features == 3 and network(images).shape == (4, 3)
    assert torch.equal(network(images), network((images > 0.5).float()))
    with pytest.raises(ValueError, match="views of one size; set local_views to 0, not 2"):
        networks.backbone(described | {"local_views": 2}, 1)


# ----------------------------------------------------------------------------------------- methods
def small(method, **other):
    resolved = settings.recipe(method) | {
        "method": method,
        "seed": 0,
        "image_size": 16,
        "backbone": "mlp",
        "representation": 4,
    }
    return methods.build(resolved | other, channels=1).train()


def draw_views(count=2, batch=5):
    return list(torch.rand(count, batch, 1, 16, 16, generator=torch.Generator().manual_seed(1)))


def terms_of(network, views, seed=0):
    torch.manual_seed(seed)
    return {name: value.item() for name, value in network.loss(views).items()}


@pytest.mark.parametrize("method", FAMILY)
def test_a_loss_is_its_function_of_one_sample_of_the_posterior(method):
    network = small(method)
    views = draw_views()
    x = torch.cat(views)
    mean, log_variance = network.posterior(network.backbone(x)).chunk(2, 1)
    torch.manual_seed(0)
    z = mean + torch.randn_like(mean) * log_variance.exp().sqrt()
    r = torch.sigmoid(network.decoder(z))
    group = lambda tensor: tensor.view(2, 5, *tensor.shape[1:])  # noqa: E731
    recipe = settings.recipe(method)
    if method.startswith("simvae"):
        options = {
            name: recipe[name]
            for name in ("variance", "prior_variance", "mean_prior", "entropy_weight")
        }
        expected = losses.simvae_loss(*map(group, (r, x, mean, log_variance, z)), **options)["loss"]
    else:
        expected = losses.vae_loss(r, x, mean, log_variance, variance=0.02, beta=recipe["beta"])[
            "loss"
        ]
        if method == "cr_vae":
            (m1, m2) = group(mean)
            (v1, v2) = group(log_variance)
            expected = 2 * expected + 0.1 * losses.gaussian_kl(m2, v2, m1, v1).mean()
    terms = terms_of(network, views)
    assert terms["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert terms["mse"] == pytest.approx((r - x).square().mean().item(), rel=1e-5)
    torch.testing.assert_close(network.picture(z), r)


def test_views_of_one_image_are_drawn_together():
    network = small("simvae")
    (first, second) = draw_views()
    network.posterior.weight.data *= 30
    apart = [1, 2, 3, 4, 0]
    own = terms_of(network, [first, second])
    others = terms_of(network, [first, first])
    assert others["prior"] < own["prior"]  # equal views differ by their noise alone
    mixed = terms_of(network, [first, first[apart]])
    assert mixed["prior"] > others["prior"] + 0.1 and mixed["reconstruction"] == pytest.approx(
        others["reconstruction"], rel=1e-2
    )


def test_cr_vae_measures_the_second_view_from_the_first():
    """Sinha & Dieng 2021, Eq.

    5: KL( q(z | x') || q(z | x) ), whose two directions differ once posteriors do.
    """
    network = small("cr_vae")
    views = draw_views()
    network.posterior.weight.data *= 200
    (m1, v1), (m2, v2) = (network.posterior(network.backbone(view)).chunk(2, 1) for view in views)
    forward, backward = (
        0.1 * losses.gaussian_kl(*order).mean().item()
        for order in ((m2, v2, m1, v1), (m1, v1, m2, v2))
    )
    assert terms_of(network, views)["consistency"] == pytest.approx(forward, rel=1e-4)
    assert backward != pytest.approx(forward, rel=0.05)


def test_cr_vae_asks_for_consistency_between_exactly_two_views():
    network = small("cr_vae")
    (first, second) = draw_views()
    assert (
        terms_of(network, [first, first])["consistency"]
        == 0
        < terms_of(network, [first, second])["consistency"]
    )
    with pytest.raises(ValueError, match="set views to 2, not 3"):
        network.loss([first] * 3)


@pytest.mark.parametrize("method", ["vae", "simvae"])
def test_an_image_is_embedded_as_it_was_trained_on_binarised(method):
    network = small(method, binarise=0.5).eval()
    images = draw_views()[0]
    assert torch.equal(
        network.embed(images).features, network.embed((images > 0.5).float()).features
    )
    assert not torch.equal(
        network.embed(images).features, small(method).eval().embed(images).features
    )


@pytest.mark.parametrize("method", FAMILY)
def test_a_bernoulli_likelihood_takes_logits_and_binarised_images_are_what_is_explained(method):
    network = small(method, likelihood="bernoulli", binarise=0.5)
    views = draw_views()
    thresholded = [(view > 0.5).float() for view in views]
    assert terms_of(network, views) == terms_of(network, thresholded)
    z = torch.randn(3, 4)
    torch.testing.assert_close(network.picture(z), torch.sigmoid(network.decode(z)))
    assert terms_of(network, views)["reconstruction"] > 0  # no density: a probability


def test_the_public_codes_weight_counts_reconstruction_more():
    network = small("simvae_public_code", likelihood="bernoulli", binarise=0.5)
    views = draw_views()
    weighted = small(
        "simvae_public_code", likelihood="bernoulli", binarise=0.5, reconstruction_weight=99.5
    )
    plain = terms_of(network, views)
    heavy = terms_of(weighted, views)
    assert heavy["loss"] - plain["loss"] == pytest.approx(98.5 * plain["reconstruction"], rel=1e-4)
    assert settings.resolve("simvae_public_code", "paper", dataset="mnist")[
        "reconstruction_weight"
    ] == pytest.approx(math.exp(4.6), rel=1e-12)
    public = settings.recipe("simvae_public_code")
    assert (public["variance"], public["entropy_weight"]) == pytest.approx(
        (math.exp(-4.6), 2 * math.pi), rel=1e-12
    )


def test_a_vae_learns_to_reconstruct():
    network = small("vae")
    views = draw_views(1)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    before = terms_of(network, views)
    for _ in range(60):
        optimizer.zero_grad()
        network.loss(views)["loss"].backward()
        optimizer.step()
    after = terms_of(network, views)
    assert after["loss"] < before["loss"] - 100 and after["mse"] < 0.8 * before["mse"]
    assert (
        0 < after["active_latents"] <= 4
        and after["posterior_variance"] < before["posterior_variance"]
    )


def test_the_log_of_a_vae_counts_the_latents_whose_means_differ_between_images():
    network = small("vae")
    views = draw_views(2, 20)
    network.posterior.weight.data[:2] *= 50
    network.posterior.weight.data[2:4] = 0
    network.posterior.weight.data[4:] *= 30
    mean, log_variance = network.encode(torch.cat(views))
    terms = network.loss(views)
    assert terms["active_latents"].item() == 2 == (mean.var(0) > 0.01).sum()
    assert terms["posterior_variance"].item() == pytest.approx(
        log_variance.exp().mean().item(), rel=1e-4
    )


def test_the_squared_error_of_a_bernoulli_vae_is_of_its_mean_image():
    network = small("vae", likelihood="bernoulli", binarise=0.5)
    views = draw_views()
    x = (torch.cat(views) > 0.5).float()
    mean, log_variance = network.encode(x)
    torch.manual_seed(0)
    z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
    torch.manual_seed(0)
    assert network.loss(views)["mse"].item() == pytest.approx(
        torch.nn.functional.mse_loss(network.picture(z), x).item(), rel=1e-4
    )
