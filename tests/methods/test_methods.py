"""lib.methods on tiny networks.

``python -m tests.methods.test_methods`` rewrites golden.json, the first losses of every method.
"""

import json
import math
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lib import figures as plotting
from lib import losses, methods, networks
from lib.distributions import best_concentration
from lib.methods import METHODS, VISimSiam, distillation, forward_by_size, prosmin, view_pairs, vje
from lib.methods import simvae as vae
from lib.runs import settings

GOLDEN = Path(__file__).with_name("golden.json")
TOLERANCE = 2e-4
SMALL = {
    "seed": 0,
    "width": 4,
    "stem": "stride2",
    "projector_layers": 2,
    "dimension": 16,
    "predictor_hidden": 8,
    "image_size": 16,
    "local_size": 10,
}
# What only some recipes have.
SMALL_PARTS = {
    "head_hidden": 12,
    "bottleneck": 6,
    "queue_length": 24,
    "warmup_epochs": 0.0,
    "representation": 6,
}
SMALL_PARTS |= {"vit_width": 8, "vit_depth": 2, "vit_heads": 2, "patch_size": 2}
LEARNED = sorted(name for name in METHODS if settings.recipe(name)["epochs"] > 0)
MULTI_CROP = {
    "simsiam",
    "vi_simsiam",
    "vi_simsiam_undivided",
    "vi_simsiam_2022",
    "dino",
    "dino_two_views",
}
MULTI_CROP |= {"dino_vit", "ibot", "moco_v3", "prosmin", "prosmin_public_code", "prosmin_vit"}
PROBABILISTIC = sorted(name for name in LEARNED if METHODS[name] is VISimSiam)


def small(method, **other):
    """The method's recipe on a tiny network."""
    recipe = settings.recipe(method)
    return (
        recipe
        | {"method": method}
        | SMALL
        | {name: value for name, value in SMALL_PARTS.items() if name in recipe}
        | other
    )


def loss_of(network, views):
    """The method's terms; one that learns from labels is given 0, 1, 2, ..."""
    labels = [torch.arange(len(views[0])) % 10] if hasattr(network, "classes") else []
    return network.loss(views, *labels)


def draw_views(local=0, batch=8, channels=3, seed=0):
    generator = np.random.default_rng(seed)
    sizes = [16, 16] + [10] * local
    return [
        torch.from_numpy(generator.random((batch, channels, size, size), dtype=np.float32))
        for size in sizes
    ]


def kappa_of(cosine, dimension=16):
    return (dimension - 1) * cosine / (1 - cosine)


# ----------------------------------------------------------------------------------- golden losses
def first_losses(method):
    """Losses of three plain gradient steps at epochs 0, ½ and 2 of fixed views, so that a warm-up
    has begun, goes on and is over.
    """
    described = small(method, local_views=2 if settings.recipe(method)["local_views"] else 0)
    network = methods.build(described).train()
    # A loss of nats over all pixels is as much steeper.
    optimizer = torch.optim.SGD(
        network.parameters(), lr=1e-6 if isinstance(network, vae.VAE) else 0.02
    )
    values = []
    for step, epoch in enumerate((0.0, 0.5, 2.0)):
        if hasattr(network, "set_epoch"):
            network.set_epoch(epoch)
        torch.manual_seed(step)
        loss = loss_of(network, draw_views(described["local_views"], seed=step))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if hasattr(network, "update_target"):
            network.update_target((step + 1) / 3)
        values.append(loss.item())
    return values


def same_losses(values, stored):
    """Rounding, which is another on another processor, grows with every step.

    The third loss may differ by more.
    """
    tolerances = (TOLERANCE, TOLERANCE, 50 * TOLERANCE)
    return all(
        value == pytest.approx(other, rel=rel, abs=2e-5)
        for value, other, rel in zip(values, stored, tolerances, strict=True)
    )


@pytest.mark.parametrize("method", LEARNED)
def test_first_losses_are_those_of_the_methods_version(method):
    stored = json.loads(GOLDEN.read_text()).get(method)
    version = settings.recipe(method)["version"]
    assert stored and stored["version"] == version, (
        f"golden.json has no losses of {method} version {version}: write them with `python -m"
        " tests.methods.test_methods`."
    )
    values = first_losses(method)
    assert same_losses(values, stored["losses"]), (
        f"The losses of {method} changed from {stored['losses']} to {values}. If that is meant,"
        " raise its version in settings/recipes.toml (its stored runs become stale) and run"
        " `python -m tests.methods.test_methods`; a refactoring must leave them as they are."
    )


def rewrite_golden():
    stored = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    fresh = {
        method: {"version": settings.recipe(method)["version"], "losses": first_losses(method)}
        for method in LEARNED
    }
    for method in set(stored) & set(fresh):
        same = same_losses(fresh[method]["losses"], stored[method]["losses"])
        if not same and fresh[method]["version"] == stored[method]["version"]:
            sys.exit(
                f"The losses of {method} changed, but its version did not: raise it in"
                " settings/recipes.toml first."
            )
    GOLDEN.write_text(json.dumps(fresh, indent=1) + "\n")


# ------------------------------------------------------------------------------------- all methods
def test_methods_and_recipes_have_the_same_names():
    assert set(METHODS) == set(settings.read("recipes"))
    assert {name.removesuffix("_latent") for name in METHODS} <= set(plotting.METHODS)


@pytest.mark.parametrize("method", LEARNED)
@pytest.mark.parametrize("channels", [1, 3])
def test_loss_is_a_dict_of_scalars_that_reaches_every_weight(method, channels):
    network = methods.build(small(method), channels).train()
    if hasattr(network, "set_epoch"):
        network.set_epoch(1e9)
    terms = loss_of(network, draw_views(local=2 if method in MULTI_CROP else 0, channels=channels))
    assert all(value.shape == () and value.isfinite() for value in terms.values())
    assert [name for name, value in terms.items() if value.requires_grad] == ["loss"]
    terms["loss"].backward()
    trained = [
        (name, parameter)
        for name, parameter in network.named_parameters()
        if parameter.requires_grad
    ]
    assert [name for name, parameter in trained if parameter.grad is None] == []
    constant = [
        name for name, parameter in network.named_parameters() if not parameter.requires_grad
    ]
    assert {
        name.split(".")[0] for name in constant if not name.endswith(("pos_embed", "mask_token"))
    } <= {"target", "teacher"}


@pytest.mark.parametrize("method", sorted(METHODS))
def test_embedding_is_deterministic_and_does_not_depend_on_the_batch(method):
    network = methods.build(small(method)).eval()
    images = draw_views()[0]
    with torch.no_grad():
        whole = network.embed(images)
        again = network.embed(images)
        alone = network.embed(images[2:3])
    assert (
        whole.uncertainty.shape == (8,)
        and whole.features.ndim == 2
        and whole.features.dtype == torch.float32
    )
    for name, value in {
        "features": whole.features,
        "uncertainty": whole.uncertainty,
        **whole.native,
    }.items():
        one = alone.native[name] if name in whole.native else getattr(alone, name)
        same = again.native[name] if name in whole.native else getattr(again, name)
        assert torch.equal(value, same)
        torch.testing.assert_close(value[2:3], one, rtol=1e-4, atol=1e-5)
    if method in PROBABILISTIC:
        assert whole.native["kappa"].shape == (8,) and torch.equal(
            whole.uncertainty, -whole.native["kappa"]
        )
    elif issubclass(METHODS[method], vae.VAE):
        assert torch.equal(whole.uncertainty, whole.native["log_volume"])
        torch.testing.assert_close(
            whole.uncertainty, network.encode(images)[1].exp().prod(1).log() / 2
        )
    elif METHODS[method] is vje.VJE:
        assert torch.equal(whole.uncertainty, whole.native["log_variance"])
    elif METHODS[method] is prosmin.ProSMin:
        assert torch.equal(whole.uncertainty, whole.native["log_sigma"])
    elif issubclass(METHODS[method], distillation.DINO):
        assert (
            torch.equal(whole.uncertainty, whole.native["entropy"])
            and 0 < whole.uncertainty.min()
            and whole.uncertainty.max() < math.log(16)
        )
    else:
        assert torch.equal(whole.uncertainty, -whole.features.norm(dim=1)) and whole.native == {}


@pytest.mark.parametrize("method", sorted(METHODS))
def test_embeds_with_names_all_parts_that_embedding_needs(method):
    network = methods.build(small(method)).eval()
    images = draw_views()[0]
    expected = network.embed(images)
    for name, parameter in network.named_parameters():
        if name.split(".")[0] not in network.embeds_with:
            nn.init.normal_(parameter)
    assert torch.equal(network.embed(images).features, expected.features)
    assert torch.equal(network.embed(images).uncertainty, expected.uncertainty)
    parts = [
        *network.named_children(),
        *network.named_buffers(),
        *network.named_parameters(recurse=False),
    ]
    assert set(network.embeds_with) <= {name for name, _ in parts}
    for part in [name for name, _ in network.named_children() if name not in network.embeds_with]:
        delattr(
            network, part
        )  # as a committed encoder is without them, also without those that have no weights
    assert torch.equal(network.embed(images).features, expected.features)


def test_build_follows_the_seed_and_leaves_the_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, same, other = (
        methods.build(small("vi_simsiam", seed=seed)).state_dict() for seed in (0, 0, 1)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_unknown_names_are_errors():
    with pytest.raises(ValueError, match="Unknown method 'simclear'. Did you mean 'simclr'"):
        methods.build(small("simsiam") | {"method": "simclear"})
    with pytest.raises(
        ValueError, match="simclr compares two standard views; set local_views to 0, not 2"
    ):
        methods.build(small("simclr", local_views=2))
    with pytest.raises(ValueError, match="Unknown concentration_from 'nowhere'; choose 'features'"):
        methods.build(small("vi_simsiam", concentration_from="nowhere"))
    with pytest.raises(ValueError, match="Unknown concentration_map 'square'"):
        methods.build(small("vi_simsiam", concentration_map="square"))
    with pytest.raises(ValueError, match="Unknown backbone 'vgg'"):
        methods.build(small("simsiam", backbone="vgg"))


# ------------------------------------------------------------------------------------------- views
def test_view_pairs():
    assert view_pairs(2) == [(0, 1), (1, 0)]
    assert view_pairs(4) == [(0, 1), (1, 0), (2, 0), (2, 1), (3, 0), (3, 1)]
    assert len(view_pairs(8)) == 14


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_forward_by_size_equals_a_loop_over_sizes(mode):
    network = getattr(methods.build(small("vi_simsiam")), mode)()
    views = draw_views(local=2)
    views = [views[0], views[2], views[1], views[3]]  # the order of sizes must not matter
    with torch.no_grad():
        outputs = forward_by_size(network, views)
        for size in ([0, 2], [1, 3]):
            expected = [output.chunk(2) for output in network(torch.cat([views[i] for i in size]))]
            for place, index in enumerate(size):
                for got, wanted in zip(outputs[index], expected, strict=True):
                    torch.testing.assert_close(got, wanted[place], rtol=1e-5, atol=1e-6)
    assert [part.shape for part in outputs[1]] == [(8, 16), (8, 16), (8,)]


def test_running_statistics_are_those_of_the_standard_views():
    network = methods.build(small("vi_simsiam")).train()
    views = draw_views(local=2)
    alone = deepcopy(network)
    with torch.no_grad():
        forward_by_size(network, [views[2], views[0], views[3], views[1]])
        alone(torch.cat(views[:2]))
    found = dict(network.named_buffers())
    wanted = dict(alone.named_buffers())
    assert any(name.endswith("num_batches_tracked") and value == 1 for name, value in found.items())
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name])
    assert all(
        module.track_running_stats
        for module in network.modules()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
    )


@pytest.mark.parametrize("local", [0, 2])
def test_simsiam_is_its_algorithm_1(local):
    network = methods.build(small("simsiam")).eval()
    views = draw_views(local)
    z, p = zip(*(network(view) for view in views), strict=True)
    expected = [
        -F.cosine_similarity(p[i], z[j]).mean() for i in range(len(views)) for j in (0, 1) if i != j
    ]
    terms = network.loss(views)
    assert terms["loss"].item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-4)
    assert terms["cosine"].item() == -terms["loss"].item()


# -------------------------------------------------------------------------------------- VI-SimSiam
@pytest.mark.parametrize("method", PROBABILISTIC)
@pytest.mark.parametrize("local", [0, 2])
def test_vi_simsiam_is_its_algorithm_1(method, local):
    """-log p_1(z_2) - log p_2(z_1), undivided or divided by D - 1.

    more pairs are averaged and counted twice.
    """
    network = methods.build(small(method)).eval()
    views = draw_views(local)
    nn.init.normal_(
        network.get_parameter(
            "concentration_head.3.weight" if network.concentration_head else "predictor.3.weight"
        )
    )
    z, mu, kappa = zip(*(network(view) for view in views), strict=True)
    assert all(k.shape == (8,) and k.std() > 0 for k in kappa)
    pairs = [
        losses.vi_simsiam_loss(mu[i], kappa[i], z[j])
        for i in range(len(views))
        for j in (0, 1)
        if i != j
    ]
    if not local:
        assert len(pairs) == 2
    expected = 2 * torch.stack(pairs).mean().item()
    terms = network.loss(views)
    assert terms["negative_log_likelihood"].item() == pytest.approx(expected, rel=1e-4)
    scale = 1 if method in ("vi_simsiam_undivided", "vi_simsiam_2022") else 1 / 15
    alone = -terms["cosine"].item() if method == "vi_simsiam_read_out" else 0
    assert terms["loss"].item() == pytest.approx(expected * scale + alone, rel=1e-4)
    every = torch.cat([kappa[i] for i, _ in view_pairs(len(views))])
    assert terms["kappa"].item() == pytest.approx(every.mean().item(), rel=1e-4)
    assert terms["kappa_q05"].item() == pytest.approx(
        np.quantile(every.detach().numpy(), 0.05), rel=1e-4
    )
    assert terms["cosine_q05"] <= terms["cosine"] <= terms["cosine_q95"]


def test_the_two_published_forms_read_kappa_off_different_places():
    features = methods.build(small("vi_simsiam"))
    predictor = methods.build(small("vi_simsiam_2022"))
    assert predictor.predictor[-1].out_features == 17 and features.predictor[-1].out_features == 16
    assert (
        predictor.concentration_head is None and features.concentration_head[-1].out_features == 1
    )
    for network, source in ((features, "concentration_head"), (predictor, "predictor")):
        kappa = network.eval()(draw_views()[0])[2]
        names = [name for name, _ in network.named_parameters()]
        grads = torch.autograd.grad(kappa.sum(), list(network.parameters()), allow_unused=True)
        used = {
            name.split(".")[0] for name, grad in zip(names, grads, strict=True) if grad is not None
        }
        assert source in used and ("projector" in used) == (source == "predictor")


@pytest.mark.parametrize("method", PROBABILISTIC)
def test_kappa_starts_where_the_recipe_says(method):
    network = methods.build(small(method))
    views = draw_views()
    for mode in (network.train(), network.eval()):
        expected = kappa_of(settings.recipe(method)["initial_cosine"])
        torch.testing.assert_close(mode(views[0])[2], torch.full((8,), expected), rtol=0.02, atol=0)


@pytest.mark.parametrize("method", PROBABILISTIC)
def test_kappa_learns_nothing_while_it_warms_up(method):
    network = methods.build(small(method, concentration_warmup_epochs=1.5)).train()
    views = draw_views()
    last = network.concentration_head[-1] if network.concentration_head else network.predictor[-1]
    for epoch, learns in ((0.0, False), (1.49, False), (1.5, True), (7.0, True)):
        network.zero_grad()
        network.set_epoch(epoch)
        network.loss(views)["loss"].backward()
        assert (last.bias.grad is not None and bool(last.bias.grad[-1] != 0)) == learns
        assert network.backbone[0].weight.grad.abs().max() > 0


def test_read_out_trains_simsiam_and_beside_it_the_concentration_head():
    """The same seed gives the same network, and every weight of it SimSiam's gradient.

    κ's head gets that of the density alone.
    """
    simsiam, read_out, dense = (
        methods.build(small(method)).train()
        for method in ("simsiam", "vi_simsiam_read_out", "vi_simsiam")
    )
    nn.init.normal_(
        read_out.concentration_head[-1].weight
    )  # κ differs between images, and could move the features
    dense.concentration_head.load_state_dict(read_out.concentration_head.state_dict())
    assert read_out.concentration_head[0].out_features == read_out.backbone.features
    for network in (simsiam, read_out, dense):
        network.loss(draw_views())["loss"].backward()
    gradients = {name: parameter.grad for name, parameter in read_out.named_parameters()}
    for name, parameter in simsiam.named_parameters():
        torch.testing.assert_close(gradients.pop(name), parameter.grad, rtol=1e-4, atol=1e-7)
    head = dict(dense.concentration_head.named_parameters(prefix="concentration_head"))
    assert gradients.keys() == head.keys() and gradients["concentration_head.3.bias"].abs() > 0
    for name, parameter in head.items():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-7)


def test_detached_weighs_by_a_concentration_that_does_not_move_the_features():
    """Every weight but the head's has the gradient of the density at a κ that is held constant.

    the head has VI-SimSiam's.
    """
    detached, held, dense = (
        methods.build(small(method)).train()
        for method in ("vi_simsiam_detached", "vi_simsiam", "vi_simsiam")
    )
    for network in (detached, held, dense):
        nn.init.normal_(network.concentration_head[-1].weight)  # κ differs between images
        network.concentration_head.load_state_dict(detached.concentration_head.state_dict())
    detached.loss(draw_views())["loss"].backward()
    dense.loss(draw_views())["loss"].backward()
    held.warming_up = True  # holds κ
    held.loss(draw_views())["loss"].backward()
    assert all(a.grad is None for a in held.concentration_head.parameters())
    for name, parameter in detached.named_parameters():
        source = dense if name.startswith("concentration_head") else held
        torch.testing.assert_close(
            parameter.grad, source.get_parameter(name).grad, rtol=1e-4, atol=1e-7
        )
    assert not torch.allclose(
        detached.backbone[0].weight.grad, dense.backbone[0].weight.grad, rtol=1e-2
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"alignment": "euclidean"},
        *(
            {"alignment": name, "concentration_from": "predictor"}
            for name in ("detached", "cosine")
        ),
    ],
)
def test_read_out_needs_a_head_of_its_own(wrong):
    with pytest.raises(ValueError, match="alignment"):
        methods.build(small("vi_simsiam") | wrong)


@pytest.mark.parametrize("method", ["simsiam", *PROBABILISTIC])
def test_targets_are_constants(method):
    """Only predictions are drawn to targets.

    With the prediction cut off, nothing reaches the projector's last layer from a target.
    """
    network = methods.build(small(method)).train()
    views = draw_views()
    for parameter in network.predictor.parameters():
        nn.init.zeros_(parameter)
    nn.init.ones_(network.predictor[-1].bias)
    network.loss(views)["loss"].backward()
    assert network.projector[-2].weight.grad.abs().max() == 0


# --------------------------------------------------------------------------------------- baselines
def after_a_step(method, **other):
    """A tiny network after one step of gradient descent on fixed views, and the one it was."""
    network = methods.build(small(method, **other)).train()
    before = deepcopy(network)
    loss_of(network, draw_views())["loss"].backward()
    torch.optim.SGD(
        [parameter for parameter in network.parameters() if parameter.requires_grad], lr=0.5
    ).step()
    return network, before


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (("simclr", {}), lambda a, b: losses.info_nce_loss(a, b, 0.1)),
        (
            ("simclr", {"similarity": "dot"}),
            lambda a, b: losses.info_nce_loss(a, b, 0.1, similarity="dot"),
        ),
        (("barlow_twins", {}), lambda a, b: 0.024 * losses.barlow_twins_loss(a, b, 5.1e-3)),
        (("vicreg", {}), lambda a, b: losses.vicreg_loss(a, b, 25, 25, 1)["loss"]),
    ],
)
def test_two_view_methods_compare_the_projections_of_the_two_views(method, expected):
    name, other = method
    network = methods.build(small(name, **other)).eval()
    views = draw_views()
    projections = [network.projector(network.backbone(view)) for view in views]
    assert network.loss(views)["loss"].item() == pytest.approx(
        expected(*projections).item(), rel=1e-3
    )


def test_byol_predicts_the_targets_projection_of_the_other_view():
    network = methods.build(small("byol")).eval()
    views = draw_views()
    nn.init.normal_(network.target[0][0].weight)  # unlike the trained network
    p1, p2 = (network.predictor(network.projector(network.backbone(view))) for view in views)
    t1, t2 = (network.target(view) for view in views)
    assert network.loss(views)["loss"].item() == pytest.approx(
        (losses.byol_loss(p1, t2) + losses.byol_loss(p2, t1)).item(), rel=1e-4
    )


@pytest.mark.parametrize(
    ("method", "trained", "averaged"),
    [("byol", "backbone", 0), ("moco_v2", "backbone", 0), ("dino", "backbone", 0)],
)
def test_the_target_follows_and_comes_to_rest(method, trained, averaged):
    network, before = after_a_step(method, local_views=0)
    target = network.teacher if method == "dino" else network.target
    online = getattr(network, trained)[0].weight
    old = getattr(before, trained)[0].weight
    m = network.settings["target_momentum"]
    network.update_target(0.0)
    torch.testing.assert_close(target[averaged][0].weight, m * old + (1 - m) * online)
    assert not torch.equal(target[averaged][0].weight, old)
    kept = target[averaged][0].weight.clone()
    network.update_target(1.0)
    assert torch.equal(target[averaged][0].weight, kept) == (
        method != "moco_v2"
    )  # whose momentum stays


def test_byol_without_average_is_its_own_target():
    network, _ = after_a_step("byol_without_average")
    network.update_target(0.3)
    own = nn.Sequential(network.backbone, network.projector).state_dict()
    target = network.target.state_dict()
    assert all(torch.equal(own[name], target[name]) for name in own)


def test_directpred_has_the_eigenvectors_of_the_correlation_and_the_root_of_its_eigenvalues():
    network = methods.build(small("directpred"))
    f = torch.randn(500, 16) * torch.linspace(0.1, 2, 16)
    for _ in range(40):  # the average forgets where it began
        network.set_predictor(f)
    unit = F.normalize(f, dim=1)
    expected = torch.linalg.eigvalsh((unit.T @ unit / 500).double()).sqrt()
    got = torch.linalg.eigvalsh(network.predictor.double())
    torch.testing.assert_close(got, expected + 0.1 * expected.max(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        network.predictor @ network.correlation,
        network.correlation @ network.predictor,
        rtol=0,
        atol=1e-5,
    )
    before = network.predictor.clone()
    network.set_predictor(5 * f)
    torch.testing.assert_close(network.predictor, before, rtol=0, atol=1e-4)


def test_moco_keeps_the_newest_keys():
    network = methods.build(small("moco_v2")).eval()
    views = draw_views()
    before = network.queue.clone()
    network.loss(views)
    keys = F.normalize(network.target(views[0]), dim=1)
    torch.testing.assert_close(network.queue[:8], keys, rtol=1e-4, atol=1e-5)
    assert torch.equal(network.queue[8:], before[:16])


def test_dino_is_the_mean_over_pairs_of_different_views_and_moves_its_centre():
    network = methods.build(small("dino", local_views=2)).eval()
    views = draw_views(2)
    network.set_epoch(15.0)  # half of the temperature's warm-up
    assert network.teacher_temperature.item() == pytest.approx(0.055)
    outputs = [network.head(network.backbone(view)) for view in views]
    targets = [network.teacher(view) for view in views[:2]]
    pairs = [
        losses.dino_loss(outputs[i], targets[j], torch.zeros(16), 0.1, 0.055)
        for i in range(4)
        for j in (0, 1)
        if i != j
    ]
    assert network.loss(views)["loss"].item() == pytest.approx(
        torch.stack(pairs).mean().item(), rel=1e-4
    )
    torch.testing.assert_close(
        network.centre, 0.1 * torch.cat(targets).mean(0), rtol=1e-4, atol=1e-6
    )


def test_dinos_entropy_is_that_of_its_sharpened_and_centred_teacher():
    """VI-SimSiam 2023, §6.4.

    Of the softmax that the loss takes its targets from, here with a centre that is not zero.
    """
    network = methods.build(small("dino", local_views=0)).eval()
    images = draw_views()[0]
    network.centre += (
        torch.randn(network.centre.shape, generator=torch.Generator().manual_seed(0)) / 20
    )
    assert network.settings["teacher_temperature"] != network.settings["temperature"]
    logits = (network.teacher(images) - network.centre) / network.settings["teacher_temperature"]
    torch.testing.assert_close(
        network.embed(images).uncertainty, torch.distributions.Categorical(logits=logits).entropy()
    )


@pytest.mark.parametrize(("epoch", "learns"), [(0.9, False), (1.0, True)])
def test_dinos_prototypes_learn_nothing_in_the_first_epoch(epoch, learns):
    network = methods.build(small("dino", local_views=0)).train()
    network.set_epoch(epoch)
    network.loss(draw_views())["loss"].backward()
    assert (network.head.prototypes.grad is not None) == learns and network.head.mlp[
        0
    ].weight.grad is not None


def test_the_supervised_loss_is_the_mean_cross_entropy_of_both_views():
    network = methods.build(small("supervised")).eval()
    views = draw_views()
    labels = torch.arange(8) % 10
    logits = [network.projector(network.backbone(view)) for view in views]
    first, second = (F.cross_entropy(of, labels).item() for of in logits)
    assert abs(first - second) > 1e-4 and network.loss(views, labels)[
        "loss"
    ].item() == pytest.approx((first + second) / 2, rel=1e-4)


def test_supervised_learns_its_labels():
    network = methods.build(small("supervised")).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    accuracy = []
    for _ in range(60):
        terms = loss_of(network, [draw_views()[0]] * 2)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        accuracy.append(terms["accuracy"].item())
    assert accuracy[0] < 0.6 and accuracy[-1] == 1.0


def test_spread_is_one_when_isotropic_and_zero_when_collapsed():
    assert methods.spread(torch.randn(4000, 32)).item() == pytest.approx(1, abs=0.02)
    assert methods.spread(torch.ones(10, 32)).item() == pytest.approx(0, abs=1e-5)


def test_raw_pixels_are_the_images():
    images = draw_views()[0]
    assert torch.equal(methods.build(small("raw_pixels")).embed(images).features, images.flatten(1))


# ----------------------------------------------------------------------- ProSMin and its baselines
def test_prosmins_loss_scores_samples_of_each_view_against_the_centred_target_of_another():
    network = methods.build(small("prosmin", samples=3)).eval()
    views = draw_views(local=1)
    network.centre.normal_(generator=torch.Generator().manual_seed(1)).mul_(0.1)
    outputs = [network.predictor(network.projector(network.backbone(view))) for view in views]
    raw = [network.target(view) for view in views[:2]]
    targets = [target - network.centre for target in raw]
    torch.manual_seed(7)
    drawn = [mean + log_sigma.exp() * torch.randn(3, *mean.shape) for mean, log_sigma in outputs]
    expected = [
        losses.scoring_rule(drawn[i], targets[j], 0.4545).mean()
        for i, j in ((0, 1), (1, 0), (2, 0), (2, 1))
    ]
    centre = 0.9 * network.centre + 0.1 * torch.cat(raw).mean(0)
    torch.manual_seed(7)
    terms = network.loss(views)
    assert terms["loss"].item() == pytest.approx(torch.stack(expected).mean().item(), rel=1e-5)
    torch.testing.assert_close(network.centre, centre)

    pooled = methods.build(small("prosmin", samples=3, trade_off=0.5, pool_views=True)).eval()
    torch.manual_seed(7)
    pools = [
        losses.scoring_rule(torch.cat([drawn[i], drawn[2]]), target, 0.5).mean()
        for i, target in ((1, raw[0]), (0, raw[1]))
    ]
    assert pooled.loss(views)["loss"].item() == pytest.approx(
        torch.stack(pools).mean().item(), rel=1e-5
    )


def test_prosmins_target_network_is_another_one_and_follows_the_online_network():
    network = methods.build(small("prosmin"))
    online = list(network.backbone.parameters()) + list(network.projector.parameters())
    target = list(network.target.parameters())
    matrices = [
        (a, b) for a, b in zip(online, target, strict=True) if a.ndim > 1 and a.requires_grad
    ]
    assert len(matrices) > 10 and not any(
        torch.equal(a, b) or a.data_ptr() == b.data_ptr() for a, b in matrices
    )
    before = [b.clone() for b in target]
    network.update_target(0.0)  # ξ <- 0.9 ξ + 0.1 θ
    for a, b, old in zip(online, target, before, strict=True):
        torch.testing.assert_close(b, 0.9 * old + 0.1 * a)
    before = [b.clone() for b in target]
    network.update_target(1.0)
    assert all(torch.equal(b, old) for b, old in zip(target, before, strict=True))


def test_prosmins_deviation_starts_at_that_of_a_targets_coordinates():
    network = methods.build(small("prosmin", dimension=400, bottleneck=25)).eval()
    images = draw_views()[0]
    _, log_sigma = network(images)
    torch.testing.assert_close(log_sigma.exp(), torch.full_like(log_sigma, 0.2))
    assert network.target(images).std(1).mean().item() == pytest.approx(0.2, rel=0.1)


def test_prosmins_predictor_without_a_hidden_layer_is_one_linear_layer_each():
    network = methods.build(small("prosmin", predictor_hidden=0)).eval()
    images = draw_views()[0]
    mean, log_sigma = network.predictor(projection := network.projector(network.backbone(images)))
    torch.testing.assert_close(mean, projection @ network.predictor.mean.weight.T)
    start = methods.build(small("prosmin")).predictor.log_sigma.bias[0]
    assert (log_sigma == start).all() and [
        tuple(p.shape) for p in network.predictor.parameters()
    ] == [(16, 16), (16, 16), (16,)]


def test_prosmins_centre_settles_at_the_mean_and_stays_at_zero_without_centring():
    views = draw_views()
    for momentum, share in ((0.9, 1.0), (1.0, 0.0)):
        network = methods.build(small("prosmin", centre_momentum=momentum)).eval()
        for _ in range(120):  # 0.9¹²⁰ is 3e-6
            with torch.no_grad():
                network.loss(views)
        torch.testing.assert_close(
            network.centre,
            share * network.target(torch.cat(views)).detach().mean(0),
            rtol=1e-4,
            atol=1e-6,
        )


def test_prosmin_refuses_a_trade_off_at_which_sigma_diverges():
    for beta, trade_off in ((1.0, 0.41), (1.5, 0.4545)):
        with pytest.raises(
            ValueError,
            match=(
                f"trade_off is {trade_off:g}; with beta {beta:g} it must exceed"
                f" {losses.critical_trade_off(beta):.3f}"
            ),
        ):
            methods.build(small("prosmin", trade_off=trade_off, beta=beta))
    methods.build(small("prosmin", trade_off=0.42))
    with pytest.raises(ValueError, match="set trade_off to 1, not 0.5"):
        methods.build(small("prosmin", learned_deviation=False, trade_off=0.5))


@pytest.mark.parametrize("kernel", ["energy", "crps"])
def test_samples_of_several_views_have_a_score_with_a_minimum_from_one_half_on_alone(kernel):
    noise = torch.randn(
        10, 4, 200, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )  # [V, R, B, D]
    target = torch.zeros(200, 5, dtype=torch.float64)
    far = torch.zeros(10, 1, 1, 1, dtype=torch.float64)
    for trade_off, falls in ((0.4545, True), (0.5, False)):
        scores = []
        for distance in (0.0, 1e3, 1e4):
            far[0] = distance  # one view of ten
            scores.append(
                losses.scoring_rule((noise + far).flatten(0, 1), target, trade_off, 1.0, kernel)
                .mean()
                .item()
            )
        assert (scores[2] < scores[1] < scores[0]) if falls else (scores[2] > scores[1] > scores[0])
    for trade_off, beta in ((0.4545, 1.0), (0.6, 1.5)):
        with pytest.raises(
            ValueError, match=f"trade_off is {trade_off:g} and beta {beta:g}; with pool_views"
        ):
            methods.build(
                small("prosmin", pool_views=True, trade_off=trade_off, beta=beta, kernel=kernel)
            )


@pytest.mark.parametrize("kernel, beta", [("crps", 1.0), ("energy", 2.0)])
def test_prosmin_without_a_deviation_is_a_distance_of_the_mean(kernel, beta):
    network = methods.build(
        small("prosmin", learned_deviation=False, trade_off=1.0, kernel=kernel, beta=beta)
    ).eval()
    views = draw_views()
    means = [network(view)[0] for view in views]
    targets = [network.target(view) for view in views]
    distance = {"crps": lambda d: d.abs().mean(1), "energy": lambda d: d.square().sum(1)}[kernel]
    expected = sum(2 * distance(means[i] - targets[1 - i]).mean() for i in range(2)) / 2
    assert network.loss(views)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_prosmins_other_uncertainties_are_what_they_say():
    network = methods.build(small("prosmin")).eval()
    images = draw_views()[0]
    nn.init.normal_(network.predictor.log_sigma.weight, generator=torch.Generator().manual_seed(0))
    found = network.uncertainties(images).native
    mean, log_sigma = network(images)
    torch.testing.assert_close(found["mean_sigma"], log_sigma.exp().mean(1))
    z = mean + log_sigma.exp() * torch.randn(
        2, 20_000, *mean.shape, generator=torch.Generator().manual_seed(2)
    )
    torch.testing.assert_close(
        found["sample_spread"], (z[0] - z[1]).square().sum(-1).mean(0).sqrt(), rtol=0.02, atol=0
    )
    network.centre += torch.randn(network.centre.shape, generator=torch.Generator().manual_seed(3))
    target = network.target(images) - network.centre
    energy = (z[0] - target).norm(dim=-1).mean(0) - (z[0] - z[1]).norm(dim=-1).mean(0) / 2
    torch.testing.assert_close(
        network.uncertainties(images, samples=200).native["target_energy"],
        energy,
        rtol=0.1,
        atol=0.02,
    )
    found = network.uncertainties(images).native
    alone = network.uncertainties(images[2:3]).native
    assert torch.equal(found["log_sigma"], network.embed(images).uncertainty)
    assert all(value.shape == (8,) for value in found.values())
    torch.testing.assert_close(found["target_energy"][2:3], alone["target_energy"])


def test_moco_v2_finds_the_other_views_key_among_the_queue():
    network = methods.build(small("moco_v2")).eval()
    views = draw_views()
    nn.init.normal_(network.target[0][0].weight)  # unlike the trained network
    (q1, q2), (k1, k2) = (
        [of(view) for view in views]
        for of in (nn.Sequential(network.backbone, network.projector), network.target)
    )
    queue = network.queue.clone()
    temperature = network.settings["temperature"]
    expected = (
        losses.moco_loss(q1, k2, queue, temperature) + losses.moco_loss(q2, k1, queue, temperature)
    ) / 2
    assert network.loss(views)["loss"].item() == pytest.approx(expected.item(), rel=1e-5)


def test_moco_v3_finds_each_views_key_among_those_of_the_batch():
    network = methods.build(small("moco_v3", temperature=0.3)).eval()
    views = draw_views(local=1)
    queries = [network.predictor(network.projector(network.backbone(view))) for view in views]
    keys = [network.target(view) for view in views[:2]]
    expected = [
        losses.moco_v3_loss(queries[i], keys[j], 0.3) for i, j in ((0, 1), (1, 0), (2, 0), (2, 1))
    ]
    assert network.loss(views)["loss"].item() == pytest.approx(
        torch.stack(expected).mean().item(), rel=1e-5
    )


def test_ibot_hides_patches_from_the_student_alone():
    network = methods.build(small("ibot")).eval()
    images = draw_views(batch=4)[0]
    mask = torch.zeros(4, 1 + 64, dtype=torch.bool)
    mask[:, 1 + 9] = True  # the second patch of the second row: pixels 2, 3 of both sides
    changed = images.clone()
    changed[:, :, 2:4, 2:4] = 0.5
    nn.init.normal_(network.backbone.mask_token)
    encode = network.backbone.encode
    torch.testing.assert_close(encode(images, mask=mask), encode(changed, mask=mask))
    assert not torch.allclose(encode(images), encode(changed)) and not torch.allclose(
        encode(images), encode(images, mask=mask)
    )
    torch.testing.assert_close(encode(images)[:, 0], network.backbone(images))
    with pytest.raises(ValueError, match="set backbone to 'vit', not 'resnet18'"):
        methods.build(small("ibot", backbone="resnet18"))


def test_hidden_patches_are_rectangles_of_a_tenth_to_half_of_every_other_image():
    torch.manual_seed(0)
    masks = distillation.hidden_patches(4000, 8).view(-1, 8, 8)
    assert not masks[::2].any()
    share = masks[1::2].float().mean((1, 2))
    assert (
        share.min() >= 0.05
        and share.max() <= 0.6
        and share.mean().item() == pytest.approx(0.3, abs=0.02)
    )
    for mask in masks[1:40:2]:
        rows = mask.any(1).nonzero()[:, 0]
        columns = mask.any(0).nonzero()[:, 0]
        assert mask[
            rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1
        ].all() and mask.sum() == len(rows) * len(columns)
    assert masks[1::2].float().mean(0).std() < 0.15  # everywhere


def test_batch_norm_of_a_head_is_over_all_tokens():
    """Of iBOT's patches as of images."""
    torch.manual_seed(0)
    head = networks.PrototypeHead(8, 16, 4, 12, batch_norm=True)
    tokens = torch.randn(5, 3, 8)
    torch.testing.assert_close(head(tokens).flatten(0, 1), head(tokens.flatten(0, 1)))
    normed = methods.build(small("ibot", head_batch_norm=True))
    normed.train().loss(draw_views(local=1))
    counted = {
        int(layer.num_batches_tracked)
        for layer in normed.head.mlp
        if isinstance(layer, torch.nn.BatchNorm1d)
    }
    assert counted == {1}, "running statistics are those of the standard views"
    assert [type(layer).__name__ for layer in normed.head.mlp].count(
        "BatchNorm1d"
    ) == 2 and torch.isfinite(normed.loss(draw_views())["loss"])
    assert not any(
        isinstance(layer, torch.nn.BatchNorm1d)
        for name in ("ibot", "dino")
        for layer in methods.build(small(name)).head.mlp
    )


def test_ibots_loss_is_dinos_on_class_tokens_and_the_patch_loss():
    network = methods.build(small("ibot")).eval()
    views = draw_views(local=1)
    network.set_epoch(100.0)
    for centre in (network.centre, network.patch_centre):  # unlike, as after many steps
        centre.copy_(torch.randn(16))
    of_classes = network.centre.clone()
    of_patches = network.patch_centre.clone()
    torch.manual_seed(3)
    mask = distillation.hidden_patches(16, 8)
    seen = torch.cat([torch.zeros(16, 1, dtype=torch.bool), mask], 1)
    student = network.head(network.backbone.encode(torch.cat(views[:2]), mask=seen))
    teacher = network.teacher[1](network.teacher[0].encode(torch.cat(views[:2])))
    own = student[:, 0].chunk(2)
    local = network.head(network.backbone(views[2]))
    classes = teacher[:, 0].chunk(2)
    options = (0.1, 0.07)
    pairs = [(own[0], classes[1]), (own[1], classes[0]), (local, classes[0]), (local, classes[1])]
    expected = torch.stack([losses.dino_loss(s, t, of_classes, *options) for s, t in pairs]).mean()
    expected = expected + losses.ibot_patch_loss(
        student[:, 1:], teacher[:, 1:], mask, of_patches, *options
    )
    torch.manual_seed(3)
    loss = network.loss(views)["loss"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(
        network.patch_centre, 0.9 * of_patches + 0.1 * teacher[:, 1:].detach().mean((0, 1))
    )
    loss.backward()
    assert network.backbone.mask_token.grad.abs().max() > 0, (
        "what stands for a hidden patch is learned"
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    rewrite_golden()


def test_the_cosine_of_byols_log_is_that_of_predictions_and_targets():
    network = methods.build(small("byol")).eval()
    views = draw_views()
    (_, p1), (_, p2) = forward_by_size(network, views)
    t1, t2 = network.targets(views)
    expected = (F.cosine_similarity(p1, t2).mean() + F.cosine_similarity(p2, t1).mean()) / 2
    assert network.loss(views)["cosine"].item() == pytest.approx(expected.item(), abs=1e-5)


def test_dinos_log_has_the_entropies_of_its_centred_teacher():
    network = methods.build(small("dino", local_views=0)).eval()
    views = draw_views()
    network.centre += (
        torch.randn(network.centre.shape, generator=torch.Generator().manual_seed(0)) / 20
    )
    share = torch.softmax(
        (network.teacher(views[0]) - network.centre) / network.teacher_temperature, dim=1
    )
    expected = [
        torch.distributions.Categorical(probs).entropy().mean().item()
        for probs in (share, share.mean(0))
    ]
    assert expected[1] > expected[0] + 1e-3
    terms = network.loss(views)
    assert [terms["entropy"].item(), terms["entropy_of_mean"].item()] == pytest.approx(
        expected, rel=1e-4
    )


def test_without_a_warm_up_the_teachers_temperature_is_its_last_from_the_second_step_on():
    network = methods.build(small("dino", teacher_temperature_warmup_epochs=0.0))
    found = []
    for epoch in (0.0, 1e-3):
        network.set_epoch(epoch)
        found.append(network.teacher_temperature.item())
    names = ("teacher_temperature_start", "teacher_temperature")
    assert (
        found == pytest.approx([network.settings[name] for name in names]) and found[0] != found[1]
    )


@pytest.mark.parametrize(
    "method, buffers",
    [
        ("directpred", {"correlation", "predictor"}),
        ("moco_v2", {"queue"}),
        ("dino", {"centre"}),
        ("ibot", {"centre", "patch_centre"}),
        ("prosmin", {"centre"}),
    ],
)
def test_what_a_method_remembers_of_earlier_steps_is_in_its_state(method, buffers):
    assert buffers <= set(methods.build(small(method)).state_dict())


def test_directpred_averages_the_correlation_of_both_views_and_predicts_the_other_views_target():
    network = methods.build(small("directpred", correlation_memory=0.3)).eval()
    views = draw_views()
    nn.init.normal_(network.target[0][0].weight)  # unlike the trained network
    z1, z2 = (network.projector(network.backbone(view)) for view in views)
    before = network.correlation.clone()
    terms = network.loss(views)
    f = F.normalize(torch.cat([z1, z2]), dim=1)
    torch.testing.assert_close(
        network.correlation, 0.3 * before + 0.7 * f.T @ f / len(f), rtol=1e-4, atol=1e-6
    )
    t1, t2 = (network.target(view) for view in views)
    expected = losses.byol_loss(z1 @ network.predictor, t2) + losses.byol_loss(
        z2 @ network.predictor, t1
    )
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_directpred_takes_the_root_of_no_negative_eigenvalue():
    network = methods.build(small("directpred", correlation_memory=0.0))
    network.set_predictor(
        torch.randn(4, 16)
    )  # twelve of its eigenvalues are zero but for rounding, of either sign
    assert network.predictor.isfinite().all()


def test_the_log_of_prosmin_is_of_the_first_views_prediction_and_the_other_views_target():
    network = methods.build(small("prosmin")).eval()
    views = draw_views()
    nn.init.normal_(network.predictor.log_sigma.weight, generator=torch.Generator().manual_seed(0))
    network.centre.normal_(generator=torch.Generator().manual_seed(1)).mul_(0.1)
    mean, log_sigma = network(views[0])
    raw = [network.target(view) for view in views]
    centre = network.centre.clone()
    terms = network.loss(views)
    assert terms["sigma"].item() == pytest.approx(log_sigma.exp().mean().item(), rel=1e-4)
    assert terms["target_std"].item() == pytest.approx(
        torch.cat(raw).std(0).mean().item(), rel=1e-4
    )
    assert terms["cosine"].item() == pytest.approx(
        F.cosine_similarity(mean, raw[1] - centre).mean().item(), rel=1e-4
    )


def test_the_log_of_moco_is_of_a_query_and_the_other_views_key():
    network = methods.build(small("moco_v2")).eval()
    views = draw_views()
    query = network.projector(network.backbone(views[0]))
    keys = network.targets(views)
    assert network.loss(views)["cosine"].item() == pytest.approx(
        F.cosine_similarity(query, keys[1]).mean().item(), abs=1e-5
    )


def test_the_log_says_by_how_much_kappa_exceeds_the_best():
    network = methods.build(small("vi_simsiam")).eval()
    views = draw_views(2)
    nn.init.normal_(network.concentration_head[-1].weight)
    z, mu, kappa = zip(*(network(view) for view in views), strict=True)
    over = [
        kappa[i] - best_concentration(F.cosine_similarity(mu[i], z[j]), 16)
        for i, j in view_pairs(4)
    ]
    assert network.loss(views)["kappa_minus_best"].item() == pytest.approx(
        torch.cat(over).mean().item(), rel=1e-3
    )
