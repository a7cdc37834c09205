"""lib.methods on tiny networks.

``python -m tests.methods.test_methods`` rewrites golden.json, the first losses of every method.
"""

import json
import sys
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lib import losses, methods, networks
from lib.distributions import best_concentration, concentration_of
from lib.methods import METHODS, VISimSiam, distillation, forward_by_size, view_pairs
from lib.methods.simvae import VAE
from lib.runs import settings
from tests.methods.comparison import close

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
SMALL_PARTS = {"head_hidden": 12, "bottleneck": 6, "queue_length": 24, "warmup_epochs": 0.0}
SMALL_PARTS |= {"representation": 6, "vit_width": 8, "vit_depth": 2, "vit_heads": 2}
SMALL_PARTS |= {"patch_size": 2}
LEARNED = sorted(name for name in METHODS if settings.recipe(name)["epochs"] > 0)
PROBABILISTIC = sorted(name for name in LEARNED if METHODS[name] is VISimSiam)


def small(method, **other):
    """The method's recipe on a tiny network."""
    recipe = settings.recipe(method)
    parts = {name: value for name, value in SMALL_PARTS.items() if name in recipe}
    return recipe | {"method": method} | SMALL | parts | other


def built(method, **other):
    """Its network in evaluation mode, where batches are not normalised."""
    return methods.build(small(method, **other)).eval()


def loss_of(network, views):
    """The method's terms; one that learns from labels is given 0, 1, 2, ..."""
    labels = [torch.arange(len(views[0])) % 10] if getattr(network, "takes_labels", False) else []
    return network.loss(views, *labels)


def mean_over_pairs(loss, predictions, targets):
    """The mean of a loss over all pairs of a view's prediction and another view's target."""
    pairs = view_pairs(len(predictions))
    return torch.stack([loss(predictions[i], targets[j]) for i, j in pairs]).mean()


def draw_views(local=0, batch=8, channels=3, seed=0):
    generator = np.random.default_rng(seed)
    sizes = [16, 16] + [10] * local
    return [
        torch.from_numpy(generator.random((batch, channels, size, size), dtype=np.float32))
        for size in sizes
    ]


# ----------------------------------------------------------------------------------- golden losses
def first_losses(method):
    """Losses of three plain gradient steps at epochs 0, ½ and 2 of fixed views, so that a warm-up
    has begun, goes on and is over.
    """
    described = small(method, local_views=2 if settings.recipe(method)["local_views"] else 0)
    network = methods.build(described).train()
    # A loss of nats over all pixels is as much steeper.
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6 if isinstance(network, VAE) else 0.02)
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
    rows = [f' "{name}": {json.dumps(entry)}' for name, entry in fresh.items()]
    GOLDEN.write_text("{\n" + ",\n".join(rows) + "\n}\n")


# ------------------------------------------------------------------------------------- all methods
def draw(tensor, scale=1.0, seed=0):
    """Fill a buffer or weight with normal numbers."""
    with torch.no_grad():
        tensor.normal_(generator=torch.Generator().manual_seed(seed)).mul_(scale)


@pytest.mark.parametrize("method", LEARNED)
def test_loss_is_a_dict_of_scalars_that_reaches_every_weight(method):
    network = methods.build(small(method), channels=1).train()
    if hasattr(network, "set_epoch"):
        network.set_epoch(1e9)
    local = 2 if settings.recipe(method)["local_views"] else 0
    terms = loss_of(network, draw_views(local, channels=1))
    assert all(value.shape == () and value.isfinite() for value in terms.values())
    assert [name for name, value in terms.items() if value.requires_grad] == ["loss"]
    terms["loss"].backward()
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
        elif not name.endswith(("pos_embed", "mask_token")):
            assert name.split(".")[0] in {"target", "teacher"}


@pytest.mark.parametrize("method", sorted(METHODS))
def test_embedding_is_deterministic_and_does_not_depend_on_the_batch(method):
    network = built(method)
    images = draw_views()[0]

    def embedded(images):
        embedding = methods.base.checked(network.embed(images), len(images))
        parts = {"features": embedding.features, "uncertainty": embedding.uncertainty}
        return parts | embedding.native

    with torch.no_grad():
        whole = embedded(images)
        again = embedded(images)
        single = embedded(images[2:3])
    for name, value in whole.items():
        assert torch.equal(value, again[name])
        torch.testing.assert_close(value[2:3], single[name], rtol=1e-4, atol=1e-5)
    native, _ = methods.own_uncertainty(method)
    if native == "kappa":
        expected = -whole["kappa"]
    elif native:
        expected = whole[native]
    else:
        expected = -whole["features"].norm(dim=1)
    assert torch.equal(whole["uncertainty"], expected)


def test_the_uncertainty_of_a_vae_is_the_logarithm_of_its_posteriors_volume():
    network = built("vae")
    images = draw_views()[0]
    expected = network.encode(images)[1].exp().prod(1).log() / 2
    torch.testing.assert_close(network.embed(images).uncertainty, expected)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_embeds_with_names_all_parts_that_embedding_needs(method):
    """A committed encoder is without the others."""
    network = built(method)
    images = draw_views()[0]
    expected = network.embed(images)
    parts = [*network.named_children(), *network.named_parameters(recurse=False)]
    for name, _ in parts:
        if name not in network.embeds_with:
            delattr(network, name)
    assert torch.equal(network.embed(images).features, expected.features)
    assert torch.equal(network.embed(images).uncertainty, expected.uncertainty)


@pytest.mark.parametrize(
    ("method", "change", "culprit"),
    [
        ("simclr", {"local_views": 2}, "local_views"),
        ("vi_simsiam", {"alignment": "cosine", "concentration_from": "predictor"}, "alignment"),
        ("ibot", {"backbone": "resnet18"}, "backbone"),
        ("prosmin", {"trade_off": 0.41, "beta": 1.0}, "trade_off"),  # falls without bound
        ("prosmin", {"pool_views": True, "trade_off": 0.4545}, "trade_off"),
    ],
)
def test_settings_that_no_method_can_have_are_errors(method, change, culprit):
    with pytest.raises(ValueError, match=culprit):
        methods.build(small(method) | change)


# ------------------------------------------------------------------------------------------- views
def test_forward_by_size_equals_a_loop_over_sizes():
    network = methods.build(small("vi_simsiam")).train()
    views = draw_views(local=2)
    views = [views[0], views[2], views[1], views[3]]  # the order of sizes must not matter
    with torch.no_grad():
        outputs = forward_by_size(network, views)
        for size in ([0, 2], [1, 3]):
            stacked = network(torch.cat([views[i] for i in size]))
            for place, index in enumerate(size):
                expected = [output.chunk(2)[place] for output in stacked]
                torch.testing.assert_close(list(outputs[index]), expected, rtol=1e-5, atol=1e-6)


def test_running_statistics_are_those_of_the_standard_views():
    network = methods.build(small("vi_simsiam")).train()
    standard_only = deepcopy(network)
    views = draw_views(local=2)
    with torch.no_grad():
        forward_by_size(network, [views[2], views[0], views[3], views[1]])
        standard_only(torch.cat(views[:2]))
    buffers = dict(network.named_buffers())
    torch.testing.assert_close(buffers, dict(standard_only.named_buffers()))
    assert any(name.endswith("num_batches_tracked") and buffers[name] == 1 for name in buffers)


# ------------------------------------------------------------------------- SimSiam and VI-SimSiam
@pytest.mark.parametrize("local", [0, 2])
def test_simsiam_is_its_algorithm_1(local):
    network = built("simsiam")
    views = draw_views(local)
    z, p = zip(*(network(view) for view in views), strict=True)
    cosine = mean_over_pairs(lambda p, z: F.cosine_similarity(p, z).mean(), p, z)
    terms = network.loss(views)
    close(terms["loss"], -cosine, rel=1e-4)
    assert terms["cosine"].item() == -terms["loss"].item()


def last_layer_of_kappa(network):
    return network.concentration_head[-1] if network.concentration_head else network.predictor[-1]


@pytest.mark.parametrize("method", PROBABILISTIC)
@pytest.mark.parametrize("local", [0, 2])
def test_vi_simsiam_is_its_algorithm_1(method, local):
    """-log p_1(z_2) - log p_2(z_1), undivided or divided by D - 1; the mean of more pairs counts
    twice.
    """
    network = built(method)
    views = draw_views(local)
    nn.init.normal_(last_layer_of_kappa(network).weight)
    z, mu, kappa = zip(*(network(view) for view in views), strict=True)
    pairs = view_pairs(len(views))
    densities = [losses.vi_simsiam_loss(mu[i], kappa[i], z[j]) for i, j in pairs]
    expected = 2 * torch.stack(densities).mean().item()
    terms = network.loss(views)
    close(terms["negative_log_likelihood"], expected, rel=1e-4)
    if method not in ("vi_simsiam_undivided", "vi_simsiam_2022"):
        expected /= 15
    if method == "vi_simsiam_read_out":
        expected -= terms["cosine"].item()
    close(terms["loss"], expected, rel=1e-4)

    predicting = torch.cat([kappa[i] for i, _ in pairs])
    cosines = torch.cat([F.cosine_similarity(mu[i], z[j]) for i, j in pairs])
    close(terms["kappa"], predicting.mean(), rel=1e-4)
    close(terms["kappa_q05"], np.quantile(predicting.detach().numpy(), 0.05), rel=1e-4)
    excess = predicting - best_concentration(cosines, 16)
    close(terms["kappa_minus_best"], excess.mean(), rel=1e-3)


@pytest.mark.parametrize("method", PROBABILISTIC)
def test_kappa_starts_where_the_recipe_says(method):
    network = methods.build(small(method))
    expected = concentration_of(settings.recipe(method)["initial_cosine"], 16)
    for mode in (network.train(), network.eval()):
        kappa = mode(draw_views()[0])[2]
        torch.testing.assert_close(kappa, torch.full((8,), expected), rtol=0.02, atol=0)


@pytest.mark.parametrize("method", PROBABILISTIC)
def test_kappa_learns_nothing_while_it_warms_up(method):
    network = methods.build(small(method, concentration_warmup_epochs=1.5)).train()
    bias = last_layer_of_kappa(network).bias
    for epoch, learns in ((1.49, False), (1.5, True)):
        network.zero_grad()
        network.set_epoch(epoch)
        network.loss(draw_views())["loss"].backward()
        assert (bias.grad is not None and bool(bias.grad[-1] != 0)) == learns
        assert network.backbone[0].weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("method", "like"), [("vi_simsiam_read_out", "simsiam"), ("vi_simsiam_detached", "vi_simsiam")]
)
def test_kappas_head_learns_from_the_density_and_moves_no_other_weight(method, like):
    """The others have SimSiam's gradient, or that of the density at a κ that is held constant."""
    gradients = []
    for name, holds_kappa in ((method, False), (like, True), ("vi_simsiam", False)):
        network = methods.build(small(name)).train()
        network.warming_up = holds_kappa
        if name != "simsiam":
            draw(network.concentration_head[-1].weight)  # κ differs between images
        network.loss(draw_views())["loss"].backward()
        gradients.append({name: part.grad for name, part in network.named_parameters()})
    gradient, of_others, of_density = gradients
    for name, value in gradient.items():
        expected = of_density if name.startswith("concentration_head") else of_others
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-7)
    first = "backbone.0.weight"
    assert not torch.allclose(gradient[first], of_density[first], rtol=1e-2)


# --------------------------------------------------------------------------------------- baselines
def projections(network, views):
    return [network.projector(network.backbone(view)) for view in views]


@pytest.mark.parametrize(
    ("method", "change", "expected"),
    [
        ("simclr", {}, lambda a, b: losses.info_nce_loss(a, b, 0.1)),
        (
            "simclr",
            {"similarity": "dot"},
            lambda a, b: losses.info_nce_loss(a, b, 0.1, similarity="dot"),
        ),
        ("barlow_twins", {}, lambda a, b: 0.024 * losses.barlow_twins_loss(a, b, 5.1e-3)),
        ("vicreg", {}, lambda a, b: losses.vicreg_loss(a, b, 25, 25, 1)["loss"]),
    ],
)
def test_two_view_methods_compare_the_projections_of_the_two_views(method, change, expected):
    network = built(method, **change)
    views = draw_views()
    close(network.loss(views)["loss"], expected(*projections(network, views)), rel=1e-3)


def test_byol_predicts_the_targets_projection_of_the_other_view():
    network = built("byol")
    views = draw_views()
    draw(network.target[0][0].weight)  # unlike the trained network
    predictions = [network.predictor(z) for z in projections(network, views)]
    targets = [network.target(view) for view in views]
    terms = network.loss(views)
    close(terms["loss"], 2 * mean_over_pairs(losses.byol_loss, predictions, targets), rel=1e-4)
    close(terms["cosine"], -mean_over_pairs(losses.simsiam_loss, predictions, targets), abs=1e-5)


@pytest.mark.parametrize("method", ["byol", "moco_v2", "dino", "prosmin", "byol_without_average"])
def test_the_target_follows_and_comes_to_rest(method):
    network = methods.build(small(method, local_views=0)).train()
    target = network.teacher if method == "dino" else network.target
    online = list(network.backbone.parameters())
    draw(online[0])  # as by a step of gradient descent
    m = network.settings["target_momentum"]
    before = [parameter.clone() for parameter in target[0].parameters()]
    network.update_target(0.0)
    for parameter, old, new in zip(target[0].parameters(), before, online, strict=True):
        torch.testing.assert_close(parameter, m * old + (1 - m) * new)
    first = next(target[0].parameters())
    before = first.clone()
    draw(online[0], seed=1)
    network.update_target(1.0)
    has_schedule = method not in ("moco_v2", "byol_without_average")
    assert torch.equal(first, before) == has_schedule


def test_directpred_has_the_eigenvectors_of_the_correlation_and_the_root_of_its_eigenvalues():
    network = built("directpred")
    f = torch.randn(500, 16) * torch.linspace(0.1, 2, 16)
    for _ in range(40):  # the average forgets where it began
        network.set_predictor(f)
    unit = F.normalize(f, dim=1)
    expected = torch.linalg.eigvalsh((unit.T @ unit / 500).double()).sqrt()
    roots = torch.linalg.eigvalsh(network.predictor.double())
    torch.testing.assert_close(roots, expected + 0.1 * expected.max(), rtol=1e-3, atol=1e-4)
    product = network.predictor @ network.correlation
    torch.testing.assert_close(product, product.T, rtol=0, atol=1e-5)
    before = network.predictor.clone()
    network.set_predictor(5 * f)
    torch.testing.assert_close(network.predictor, before, rtol=0, atol=1e-4)


def test_directpred_averages_the_correlation_of_both_views_and_predicts_the_other_views_target():
    network = built("directpred", correlation_memory=0.3)
    views = draw_views()
    draw(network.target[0][0].weight)  # unlike the trained network
    z1, z2 = projections(network, views)
    before = network.correlation.clone()
    terms = network.loss(views)
    f = F.normalize(torch.cat([z1, z2]), dim=1)
    correlation = 0.3 * before + 0.7 * f.T @ f / len(f)
    torch.testing.assert_close(network.correlation, correlation, rtol=1e-4, atol=1e-6)
    targets = [network.target(view) for view in views]
    predictions = [z @ network.predictor for z in (z1, z2)]
    close(terms["loss"], 2 * mean_over_pairs(losses.byol_loss, predictions, targets), rel=1e-4)


def test_directpred_takes_the_root_of_no_negative_eigenvalue():
    network = built("directpred", correlation_memory=0.0)
    # Twelve of its eigenvalues are zero but for rounding, of either sign.
    network.set_predictor(torch.randn(4, 16))
    assert network.predictor.isfinite().all()


def test_moco_v2_compares_with_the_other_views_key_and_keeps_the_newest_keys():
    network = built("moco_v2")
    views = draw_views()
    draw(network.target[0][0].weight)  # unlike the trained network
    q1, q2 = projections(network, views)
    k1, k2 = (network.target(view) for view in views)
    queue = network.queue.clone()
    first, second = (losses.moco_loss(q, k, queue, 0.2) for q, k in ((q1, k2), (q2, k1)))
    assert network.settings["temperature"] == 0.2
    terms = network.loss(views)
    close(terms["loss"], (first + second) / 2, rel=1e-5)
    close(terms["cosine"], F.cosine_similarity(q1, k2).mean(), abs=1e-5)
    torch.testing.assert_close(network.queue[:8], F.normalize(k1, dim=1), rtol=1e-4, atol=1e-5)
    assert torch.equal(network.queue[8:], queue[:16])


def test_moco_v3_compares_with_each_key_of_the_batch():
    network = built("moco_v3", temperature=0.3)
    views = draw_views(local=1)
    queries = [network.predictor(z) for z in projections(network, views)]
    keys = [network.target(view) for view in views[:2]]
    expected = mean_over_pairs(lambda q, k: losses.moco_v3_loss(q, k, 0.3), queries, keys)
    close(network.loss(views)["loss"], expected, rel=1e-5)


def test_dino_is_the_mean_over_pairs_of_different_views_and_moves_its_centre():
    network = built("dino", local_views=2)
    views = draw_views(2)
    draw(network.centre, 0.05)
    centre = network.centre.clone()
    network.set_epoch(15.0)  # half of the temperature's warm-up
    close(network.teacher_temperature, 0.055)
    outputs = [network.head(network.backbone(view)) for view in views]
    targets = [network.teacher(view) for view in views[:2]]
    terms = network.loss(views)
    expected = mean_over_pairs(
        lambda s, t: losses.dino_loss(s, t, centre, 0.1, 0.055), outputs, targets
    )
    close(terms["loss"], expected, rel=1e-4)
    moved = 0.9 * centre + 0.1 * torch.cat(targets).mean(0)
    torch.testing.assert_close(network.centre, moved, rtol=1e-4, atol=1e-6)
    share = torch.softmax((targets[0] - centre) / 0.055, dim=1)
    entropy = torch.distributions.Categorical(share).entropy().mean()
    close(terms["entropy"], entropy, rel=1e-4)
    entropy_of_mean = torch.distributions.Categorical(share.mean(0)).entropy()
    close(terms["entropy_of_mean"], entropy_of_mean, rel=1e-4)
    assert entropy_of_mean > entropy + 1e-3


def test_dinos_uncertainty_is_the_entropy_of_its_sharpened_and_centred_teacher():
    """VI-SimSiam 2023, §6.4, of the softmax that the loss takes its targets from."""
    network = built("dino", local_views=0)
    images = draw_views()[0]
    draw(network.centre, 0.05)
    assert network.settings["teacher_temperature"] != network.settings["temperature"]
    logits = (network.teacher(images) - network.centre) / network.settings["teacher_temperature"]
    expected = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(network.embed(images).uncertainty, expected)


@pytest.mark.parametrize(("epoch", "learns"), [(0.9, False), (1.0, True)])
def test_dinos_prototypes_learn_nothing_in_the_first_epoch(epoch, learns):
    network = methods.build(small("dino", local_views=0)).train()
    network.set_epoch(epoch)
    network.loss(draw_views())["loss"].backward()
    assert (network.head.prototypes.grad is not None) == learns
    assert network.head.mlp[0].weight.grad is not None


def test_without_a_warm_up_the_teachers_temperature_is_its_last_from_the_second_step_on():
    network = built("dino", teacher_temperature_warmup_epochs=0.0)
    for epoch, name in ((0.0, "teacher_temperature_start"), (1e-3, "teacher_temperature")):
        network.set_epoch(epoch)
        close(network.teacher_temperature, network.settings[name])


def test_the_supervised_loss_is_the_mean_cross_entropy_of_both_views():
    network = built("supervised")
    views = draw_views()
    labels = torch.arange(8) % 10
    first, second = (F.cross_entropy(z, labels).item() for z in projections(network, views))
    assert abs(first - second) > 1e-4
    close(network.loss(views, labels)["loss"], (first + second) / 2, rel=1e-4)


def test_spread_is_one_when_isotropic_and_zero_when_collapsed():
    close(methods.spread(torch.randn(4000, 32)), 1, abs=0.02)
    close(methods.spread(torch.ones(10, 32)), 0, abs=1e-5)


# ---------------------------------------------------------------------------------------- ProSMin
def three_samples(network, views):
    """Three samples of each view's prediction, as the loss draws them after the same seed."""
    outputs = [network(view) for view in views]
    torch.manual_seed(7)
    return [mean + log_sigma.exp() * torch.randn(3, *mean.shape) for mean, log_sigma in outputs]


def test_prosmins_loss_scores_samples_of_each_view_against_the_centred_target_of_another():
    network = built("prosmin", samples=3)
    views = draw_views(local=1)
    draw(network.centre, 0.1)
    draw(network.predictor.log_sigma.weight, seed=1)
    raw = [network.target(view) for view in views[:2]]
    targets = [target - network.centre for target in raw]
    centre = 0.9 * network.centre + 0.1 * torch.cat(raw).mean(0)
    samples = three_samples(network, views)
    torch.manual_seed(7)
    terms = network.loss(views)
    expected = mean_over_pairs(
        lambda z, t: losses.scoring_rule(z, t, 0.4545).mean(), samples, targets
    )
    close(terms["loss"], expected, rel=1e-5)
    torch.testing.assert_close(network.centre, centre)
    mean, log_sigma = network(views[0])
    close(terms["sigma"], log_sigma.exp().mean(), rel=1e-4)
    close(terms["target_std"], torch.cat(raw).std(0).mean(), rel=1e-4)
    close(terms["cosine"], F.cosine_similarity(mean, targets[1]).mean(), rel=1e-4)


def test_prosmin_may_pool_the_samples_of_several_views():
    network = built("prosmin", samples=3, trade_off=0.5, pool_views=True)
    views = draw_views(local=1)
    first, second, local = three_samples(network, views)
    pools = [torch.cat([first, local]), torch.cat([second, local])]
    targets = [network.target(view) for view in views[:2]]
    expected = mean_over_pairs(lambda z, t: losses.scoring_rule(z, t).mean(), pools, targets)
    torch.manual_seed(7)
    close(network.loss(views)["loss"], expected, rel=1e-5)


@pytest.mark.parametrize("kernel, beta", [("crps", 1.0), ("energy", 2.0)])
def test_prosmin_without_a_deviation_is_a_distance_of_the_mean(kernel, beta):
    network = built("prosmin", learned_deviation=False, trade_off=1.0, kernel=kernel, beta=beta)
    views = draw_views()
    total = 0.0
    for i in range(2):
        difference = network(views[i])[0] - network.target(views[1 - i])
        distance = difference.abs().mean(1) if kernel == "crps" else difference.square().sum(1)
        total += 2 * distance.mean().item() / 2
    close(network.loss(views)["loss"], total, rel=1e-5)


def test_prosmins_deviation_starts_at_that_of_a_targets_coordinates():
    network = built("prosmin", dimension=400, bottleneck=25)
    images = draw_views()[0]
    _, log_sigma = network(images)
    torch.testing.assert_close(log_sigma.exp(), torch.full_like(log_sigma, 0.2))
    close(network.target(images).std(1).mean(), 0.2, rel=0.1)


def test_prosmins_other_uncertainties_are_what_they_say():
    network = built("prosmin")
    images = draw_views()[0]
    draw(network.predictor.log_sigma.weight)
    draw(network.centre, seed=3)
    mean, log_sigma = network(images)
    generator = torch.Generator().manual_seed(2)
    z = mean + log_sigma.exp() * torch.randn(2, 20_000, *mean.shape, generator=generator)
    distance = (z[0] - z[1]).norm(dim=-1)
    target = network.target(images) - network.centre
    native = network.uncertainties(images, samples=200).native
    torch.testing.assert_close(native["mean_sigma"], log_sigma.exp().mean(1))
    spread = distance.square().mean(0).sqrt()
    torch.testing.assert_close(native["sample_spread"], spread, rtol=0.02, atol=0)
    energy = (z[0] - target).norm(dim=-1).mean(0) - distance.mean(0) / 2
    torch.testing.assert_close(native["target_energy"], energy, rtol=0.1, atol=0.02)
    single = network.uncertainties(images[2:3], samples=200).native
    torch.testing.assert_close(native["target_energy"][2:3], single["target_energy"])


# ------------------------------------------------------------------------------------------- iBOT
def test_ibot_hides_patches_from_the_student_alone():
    network = built("ibot")
    images = draw_views(batch=4)[0]
    mask = torch.zeros(4, 1 + 64, dtype=torch.bool)
    mask[:, 1 + 9] = True  # the second patch of the second row: pixels 2, 3 of both sides
    changed = images.clone()
    changed[:, :, 2:4, 2:4] = 0.5
    draw(network.backbone.mask_token)
    encode = network.backbone.encode
    torch.testing.assert_close(encode(images, mask=mask), encode(changed, mask=mask))
    assert not torch.allclose(encode(images), encode(changed))
    torch.testing.assert_close(encode(images)[:, 0], network.backbone(images))


def test_hidden_patches_are_rectangles_of_a_tenth_to_half_of_every_other_image():
    torch.manual_seed(0)
    masks = distillation.hidden_patches(4000, 8).view(-1, 8, 8)
    assert not masks[::2].any()
    share = masks[1::2].float().mean((1, 2))
    assert share.min() >= 0.05 and share.max() <= 0.6
    close(share.mean(), 0.3, abs=0.02)
    for mask in masks[1:40:2]:
        assert torch.equal(mask, mask.any(1)[:, None] & mask.any(0))
    assert masks[1::2].float().mean(0).std() < 0.15  # everywhere


def test_batch_norm_of_a_head_is_over_all_tokens():
    torch.manual_seed(0)
    head = networks.PrototypeHead(8, 16, 4, 12, batch_norm=True)
    tokens = torch.randn(5, 3, 8)
    torch.testing.assert_close(head(tokens).flatten(0, 1), head(tokens.flatten(0, 1)))
    network = methods.build(small("ibot", head_batch_norm=True)).train()
    network.loss(draw_views(local=1))
    layers = [layer for layer in network.head.mlp if isinstance(layer, nn.BatchNorm1d)]
    # Running statistics are those of the standard views.
    assert [int(layer.num_batches_tracked) for layer in layers] == [1, 1]


def test_ibots_loss_is_dinos_on_class_tokens_and_the_patch_loss():
    network = built("ibot")
    views = draw_views(local=1)
    network.set_epoch(100.0)
    draw(network.centre)  # as after many steps
    draw(network.patch_centre, seed=1)
    class_centre = network.centre.clone()
    patch_centre = network.patch_centre.clone()
    torch.manual_seed(3)
    mask = distillation.hidden_patches(16, 8)
    whole = torch.cat(views[:2])
    hidden = torch.cat([torch.zeros(16, 1, dtype=torch.bool), mask], 1)
    student = network.head(network.backbone.encode(whole, mask=hidden))
    teacher = network.teacher[1](network.teacher[0].encode(whole))
    predictions = [*student[:, 0].chunk(2), network.head(network.backbone(views[2]))]
    targets = teacher[:, 0].chunk(2)
    temperatures = (0.1, 0.07)
    class_loss = mean_over_pairs(
        lambda s, t: losses.dino_loss(s, t, class_centre, *temperatures), predictions, targets
    )
    patch_loss = losses.ibot_patch_loss(
        student[:, 1:], teacher[:, 1:], mask, patch_centre, *temperatures
    )
    torch.manual_seed(3)
    loss = network.loss(views)["loss"]
    close(loss, class_loss + patch_loss, rel=1e-5)
    moved = 0.9 * patch_centre + 0.1 * teacher[:, 1:].detach().mean((0, 1))
    torch.testing.assert_close(network.patch_centre, moved)
    loss.backward()
    assert network.backbone.mask_token.grad.abs().max() > 0  # it is learned


if __name__ == "__main__":
    torch.set_num_threads(1)
    rewrite_golden()
