"""lib.evaluation.theory against sums written out, quadrature and the training losses, in float64."""

import math

import pytest
import torch
from torch.nn import functional as F

from lib import losses, methods
from lib.data import views as augmentations
from lib.distributions import VonMisesFisher
from lib.evaluation import theory as inference
from lib.evaluation.theory import PointMass
from lib.runs import settings

BATCH, DIMENSION = 7, 5


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def outputs():
    """Target outputs f of two views, online outputs g, and κ, in float64."""
    f, g = draw(2, BATCH, DIMENSION), draw(2, BATCH, DIMENSION, seed=1).requires_grad_()
    return f, g, (1 + draw(2, BATCH, seed=2).abs()).requires_grad_()


# ---------------------------------------------------------------------------------------------------------------- cosines between views
def test_view_cosines_are_of_the_views_that_kappa_is_of():
    run = settings.resolve("vi_simsiam", "smoke")
    method, images = (
        methods.build(run, 3).eval(),
        torch.rand(6, 3, 16, 16, generator=torch.Generator().manual_seed(0)),
    )
    torch.nn.init.normal_(method.concentration_head[-1].weight)
    strengths = augmentations.recipe("simsiam_small")

    def generators():
        return [torch.Generator().manual_seed(pair) for pair in (1, 2)]

    found = inference.view_cosines(method, images, strengths, generators())
    expected, cosine = torch.zeros(6), torch.zeros(6)
    for generator in generators():
        first, second = (augmentations.augment(images, 16, strengths, generator) for _ in range(2))
        _, mu, kappa = method(first)
        expected += kappa.detach() / (run["dimension"] - 1 + kappa.detach()) / 2
        cosine += F.cosine_similarity(mu, method(second)[0]).detach() / 2
    assert torch.allclose(found["expected"], expected, rtol=1e-4) and torch.allclose(
        found["cosine"], cosine, atol=1e-5
    )
    assert expected.std() > 1e-3
    alone = inference.view_cosines(
        method, images, strengths, generators(), whole=False
    )  # as a committed encoder
    assert set(alone) == {"expected"} and torch.allclose(alone["expected"], expected, rtol=1e-4)
    without = methods.build(settings.resolve("simsiam", "smoke"), 3).eval()
    assert set(inference.view_cosines(without, images, strengths, generators())) == {"cosine"}


# ---------------------------------------------------------------------------------------------------------------- the three terms
def test_terms_on_the_sphere_are_their_sums(outputs):
    f, g, kappa = outputs
    q, p = (
        [inference.point_mass(x) for x in f],
        [inference.power_spherical(x, k) for x, k in zip(g, kappa, strict=True)],
    )

    def density(z, view, image):
        return p[view].expand(torch.Size([BATCH])).log_prob(z.expand(BATCH, -1))[image]

    for image in range(BATCH):
        z = [F.normalize(x[image], dim=0) for x in f]
        align = density(z[0], 1, image) + density(z[1], 0, image)
        marginal = [
            torch.stack([density(z[1 - view], view, other).exp() for other in range(BATCH)])
            .mean()
            .log()
            for view in (0, 1)
        ]
        assert inference.j_align(q, p)[image].item() == pytest.approx(align.item(), abs=1e-12)
        assert inference.j_uniform(q, p)[image].item() == pytest.approx(
            -sum(marginal).item(), abs=1e-12
        )
    assert inference.j_kl(q).eq(0).all()


def test_terms_on_the_simplex_are_their_sums():
    f, g = draw(2, BATCH, DIMENSION), draw(2, BATCH, DIMENSION, seed=1)
    q, p = [inference.softmax(x, 0.5, 0.3) for x in f], [inference.softmax(x, 2.0) for x in g]
    teacher, student = (
        ((x - 0.3).div(0.5).softmax(1) for x in f),
        [x.div(2.0).softmax(1) for x in g],
    )
    teacher = list(teacher)
    align = (teacher[0] * student[1].log() + teacher[1] * student[0].log()).sum(1)
    uniform = -(teacher[0] * student[1].mean(0).log() + teacher[1] * student[0].mean(0).log()).sum(
        1
    )
    mean = (teacher[0] + teacher[1]) / 2
    for ours, expected in (
        (inference.j_align(q, p), align),
        (inference.j_uniform(q, p), uniform),
        (inference.j_kl(q), -2 * (mean * (mean * DIMENSION).log()).sum(1)),
    ):
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-12)


def test_where_the_marginal_is_the_prior_the_objective_of_2023_is_that_of_2022():
    """VI-SimSiam 2023, Eq. 10 to 13 (lib.evaluation.theory has M times them), against 2022, Eq. 5 with its sign turned: E_q[log p(z | X)] + H[q]."""
    logits = draw(DIMENSION)
    shifted = torch.stack(
        [logits.roll(k) for k in range(DIMENSION)]
    )  # over these X the mean of p(z | X) is uniform, as p(z) is
    p, q = (
        torch.distributions.Categorical(logits=values)
        for values in (shifted, draw(DIMENSION, DIMENSION, seed=1))
    )
    torch.testing.assert_close(
        p.probs.mean(0), torch.full((DIMENSION,), 1 / DIMENSION, dtype=torch.float64)
    )
    ours = (
        inference.j_align([q, q], [p, p])
        + inference.j_uniform([q, q], [p, p])
        + inference.j_kl([q, q])
    ) / 2
    torch.testing.assert_close(ours, (q.probs * p.logits).sum(1) + q.entropy(), rtol=0, atol=1e-12)


def test_local_views_predict_but_are_no_targets(outputs):
    f, g, _ = outputs
    q, p = (
        [inference.point_mass(x) for x in f],
        [inference.von_mises_fisher(x) for x in (*g, draw(BATCH, DIMENSION, seed=5))],
    )
    pairs = [(0, 1), (1, 0), (2, 0), (2, 1)]  # (view of p, view of q)
    expected = sum(p[i].log_prob(q[j].value) for i, j in pairs)
    torch.testing.assert_close(inference.j_align(q, p), expected)


def test_terms_are_the_training_losses(outputs):
    """Claims 4.3, 4.5, 4.7, Eq. 33 and §4.4, values and gradients."""
    f, g, kappa = outputs
    points = [inference.point_mass(x) for x in f]
    power = inference.j_align(
        points, [inference.power_spherical(x, k) for x, k in zip(g, kappa, strict=True)]
    ).mean()
    experts = [inference.von_mises_fisher(x, 4.0) for x in g]
    log_c = experts[0].log_prob(experts[0].loc)[0].detach() - 4
    cosine = (inference.j_align(points, experts).mean() - 2 * log_c) / 4
    same = [inference.point_mass(x) for x in g]
    contrast = (
        inference.j_align(same, experts) + inference.j_uniform(same, experts)
    ).mean() - 2 * math.log(BATCH)
    teacher = [inference.softmax(x, 0.04, 0.1) for x in f]
    dino = inference.j_align(teacher, [inference.softmax(x, 0.1) for x in g]).mean()
    centre = torch.full((DIMENSION,), 0.1, dtype=torch.float64)
    pairs = {
        "VI-SimSiam": (
            power,
            -losses.vi_simsiam_loss(g[0], kappa[0], f[1])
            - losses.vi_simsiam_loss(g[1], kappa[1], f[0]),
        ),
        "SimSiam": (cosine, -losses.simsiam_loss(g[0], f[1]) - losses.simsiam_loss(g[1], f[0])),
        "SimCLR": (
            contrast,
            -2 * losses.info_nce_loss(g[0], g[1], 1 / 4, same_view_negatives=False),
        ),
        "DINO": (
            dino,
            -losses.dino_loss(g[0], f[1], centre) - losses.dino_loss(g[1], f[0], centre),
        ),
    }
    for name, (ours, theirs) in pairs.items():
        row = inference.compare(name, "", ours, theirs, g)
        assert (
            ours.dtype == theirs.dtype == torch.float64
            and row["value"] < 1e-12
            and row["gradient"] < 1e-12
        ), row


def test_of_three_views_alignment_and_uniformity_are_simclrs_loss_of_every_pair():
    """Eq. 26: Claim 4.5 for any number of views."""
    g = draw(3, BATCH, DIMENSION, seed=3)
    points, experts = (
        [inference.point_mass(x) for x in g],
        [inference.von_mises_fisher(x, 4.0) for x in g],
    )
    both = (
        inference.j_align(points, experts) + inference.j_uniform(points, experts)
    ).mean() - 6 * math.log(BATCH)
    pairs = [
        losses.info_nce_loss(g[i], g[j], 1 / 4, same_view_negatives=False)
        for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    assert both.item() == pytest.approx(-2 * sum(pairs).item(), abs=1e-12)


def test_compare_sees_values_and_gradients():
    x = draw(3).requires_grad_()
    row = inference.compare("a", "b", (x**2).sum(), (x**2).sum() + 0.5, x)
    assert row["value"] == pytest.approx(0.5) and row["gradient"] == 0
    assert inference.compare("a", "b", x.sum(), x.detach().sum() + 0 * x.sum(), x)["gradient"] == 1


# ---------------------------------------------------------------------------------------------------------------- product of experts
@pytest.mark.parametrize("kappas", [(0.5, 2.0), (30.0, 1.0, 8.0)])
def test_product_and_log_eta_by_quadrature(kappas):
    points, area = inference.sphere_grid()
    assert area.sum().item() == pytest.approx(4 * math.pi, rel=1e-12)
    kappa = torch.tensor(kappas, dtype=torch.float64)
    loc = F.normalize(draw(len(kappas), 3), dim=1)
    log_product = sum(
        VonMisesFisher(mu.expand_as(points), k.expand(len(points))).log_prob(points)
        for mu, k in zip(loc, kappa, strict=True)
    )
    log_eta = -(area * log_product.exp()).sum().log()
    assert inference.log_eta(loc, kappa).item() == pytest.approx(log_eta.item(), abs=1e-10)
    product = inference.product_of_experts(loc, kappa).expand(torch.Size([len(points)]))
    torch.testing.assert_close(product.log_prob(points), log_product + log_eta, rtol=0, atol=1e-10)


def test_experts_that_cancel_have_no_product():
    loc = torch.eye(3, dtype=torch.float64)[:1]
    with pytest.raises(ValueError, match="unit vectors"):
        inference.product_of_experts(torch.cat([loc, -loc]), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("kappa", [1.0, 300.0])
def test_share_of_the_ignored_gradient_has_its_closed_form(kappa):
    cosine = torch.tensor([-0.9, 0.0, 0.7], dtype=torch.float64)
    root = (2 + 2 * cosine).sqrt()
    length = VonMisesFisher(torch.eye(16, dtype=torch.float64)[:3], kappa * root).mean.norm(dim=1)
    torch.testing.assert_close(
        inference.normaliser_share(16, kappa, cosine), -2 * length / root, rtol=1e-8, atol=0
    )


# ---------------------------------------------------------------------------------------------------------------- measures
def test_uniformity():
    z = draw(6, 4)
    unit = F.normalize(z, dim=1)
    pairs = [
        math.exp(-2 * float((unit[a] - unit[b]).square().sum())) for a in range(6) for b in range(a)
    ]
    assert inference.uniformity(z).item() == pytest.approx(
        math.log(sum(pairs) / len(pairs)), abs=1e-12
    )
    assert inference.uniformity(torch.ones(5, 4)).item() == pytest.approx(0, abs=1e-6)
    assert inference.uniformity(draw(500, 512)).item() == pytest.approx(-4, abs=0.05)


def run(method="simsiam", **changed):
    return settings.resolve(method, "smoke", **changed)


def two_views(resolved):
    images = torch.randint(
        0, 256, (64, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    return augmentations.make_views(images, resolved, torch.Generator().manual_seed(0))


def test_gains_of_a_set_predictor_go_with_the_root():
    resolved = run("directpred", eigenvalue_boost=0.0, correlation_memory=0.0)
    views, method = two_views(resolved), methods.build(resolved, 1)
    method.loss(views)
    gains = inference.predictor_gains(method, views)
    assert gains.eigenvalue.is_monotonic_decreasing and gains.eigenvalue.sum() == pytest.approx(
        1, abs=1e-2
    )
    # Normalising each prediction blurs the law a little.
    relative, root = gains.gain / gains.gain[0], (gains.eigenvalue / gains.eigenvalue[0]) ** 0.5
    assert (relative - root).abs().max() < 0.15 and relative.corr(root) > 0.95


def test_measures_of_every_kind():
    for method in ("simsiam", "byol", "barlow_twins"):
        found = inference.measures(methods.build(run(method), 1), two_views(run(method)))
        assert ("e_step_gap" in found) == (method != "barlow_twins")
        assert -4.5 < found["uniformity"] < 0 and 1 <= found["effective_rank"] <= 16
    dino = inference.measures(methods.build(run("dino_two_views"), 1), two_views(run()))
    assert 0 <= dino["entropy"] <= dino["entropy_of_mean"] <= math.log(16) + 1e-6


def test_a_network_that_is_one_point_up_to_float32_has_no_rank():
    method, views = methods.build(run(), 1).train(), two_views(run())
    point = draw(1, 16).float() * (1 + 1e-7 * draw(len(views[0]), 16, seed=1)).float()
    method.forward = lambda x: (point, point)
    assert math.isnan(inference.measures(method, views)["effective_rank"])


def test_measures_are_those_of_the_projections():
    method, views = methods.build(run(), 1).train(), two_views(run())
    with torch.no_grad():
        first, second = (
            F.normalize(projection.double(), dim=1)
            for projection, _ in inference.forward_by_size(method, views)
        )
    found = inference.measures(method, views)
    assert found["cosine"] == pytest.approx((first * second).sum(1).mean().item(), abs=1e-5)
    assert found["spread"] == pytest.approx(
        first.std(0).mean().item() * first.shape[1] ** 0.5, rel=1e-4
    )
    apart = torch.pdist(first) ** 2
    assert found["uniformity"] == pytest.approx(apart.mul(-2).exp().mean().log().item(), abs=1e-4)


def test_a_run_is_watched_before_the_first_step_and_six_times_on_the_same_views():
    resolved = run()
    method, views, seen = inference.watch(resolved, 12)
    assert (
        seen.step.tolist() == [0, 2, 4, 6, 8, 10, 12]
        and len(views) == 2
        and views[0].shape[0] == 256
    )
    for row, network in ((0, methods.build(resolved, 1).train()), (6, method)):
        expected = inference.measures(network, views)
        assert {name: seen[name][row] for name in expected} == pytest.approx(
            expected, rel=1e-4, abs=1e-5
        )
    assert seen.cosine.nunique() > 1


def test_parts_taken_out():
    views = two_views(run())
    method = methods.build(run(), 1)
    assert inference.take_out(method, "predictor").predictor(views[0]) is views[0]
    with torch.no_grad():
        z = [
            F.normalize(projection, dim=1)
            for projection, _ in inference.forward_by_size(method, views)
        ]
    gap = (sum(z).norm(dim=1) / 2 - (1 + (z[0] * z[1]).sum(1)) / 2).mean().item()
    assert inference.measures(method, views)["e_step_gap"] == pytest.approx(gap, abs=1e-5)
    whole, full = (
        methods.build(run(), 1),
        inference.take_out(methods.build(run(), 1), "stop-gradient"),
    )
    stopped, through = (model.loss(views)["loss"] for model in (whole, full))
    assert through.item() == pytest.approx(stopped.item(), abs=1e-6)
    slopes = [
        torch.autograd.grad(loss, model.projector[0].weight)[0]
        for loss, model in ((stopped, whole), (through, full))
    ]
    assert (slopes[0] - slopes[1]).abs().max() > 1e-4
    (z1, p1), (z2, p2) = inference.forward_by_size(full, views)
    expected = torch.autograd.grad(
        -(F.cosine_similarity(p1, z2) + F.cosine_similarity(p2, z1)).mean() / 2,
        full.projector[0].weight,
    )[0]
    torch.testing.assert_close(slopes[1], expected)
    with pytest.raises(ValueError, match="Unknown part 'head'"):
        inference.take_out(method, "head")


# ---------------------------------------------------------------------------------------------------------------- Table 1
def test_table_1():
    table = inference.table_1()
    aware = {name for name, column in table.items() if column["uncertainty aware"] == "yes"}
    assert aware == {"dino", "vi_simsiam"}
    assert (
        table["simsiam"]["p(z | x_j)"] == "VonMisesFisher"
        and table["vi_simsiam"]["p(z | x_j)"] == "PowerSpherical"
    )
    assert isinstance(inference.READINGS["simclr"].q(torch.randn(3, 4)), PointMass)


def test_gains_are_of_directions_that_hold_something():
    resolved = run("directpred", eigenvalue_boost=0.0, correlation_memory=0.0)
    views, method = [view[:4] for view in two_views(resolved)], methods.build(resolved, 1)
    method.loss(views)
    gains = inference.predictor_gains(method, views)
    assert (
        len(gains) <= 8 < resolved["dimension"]
        and gains.eigenvalue.min() > 1e-3 * gains.eigenvalue.max()
    )


def test_dinos_measures_are_of_its_centred_teacher():
    method, views = methods.build(run("dino_two_views"), 1), two_views(run())
    method.centre.normal_(generator=torch.Generator().manual_seed(0)).div_(20)
    with torch.no_grad():
        share = torch.softmax(
            (method.teacher(torch.cat(views)).chunk(2)[0] - method.centre)
            / method.teacher_temperature,
            dim=1,
        )
        outputs = method.teacher(torch.cat(views)).chunk(2)
        teacher = [
            torch.softmax((output - method.centre) / method.teacher_temperature, dim=1)
            for output in outputs
        ]
        student = [
            F.log_softmax(output / method.settings["temperature"], dim=1)
            for (output,) in inference.forward_by_size(method, views)
        ]
    expected = torch.distributions.Categorical(share).entropy().mean().item()
    found = inference.measures(method, views)
    assert found["entropy"] == pytest.approx(expected, rel=1e-4)
    q, p = (
        [torch.distributions.Categorical(probs=of) for of in teacher],
        [torch.distributions.Categorical(logits=of) for of in student],
    )
    assert found["align"] == pytest.approx(inference.j_align(q, p).mean().item(), rel=1e-4), (
        "the student has its own temperature"
    )


def test_an_e_steps_points_are_the_target_networks_where_there_is_one():
    method, views = methods.build(run("byol"), 1).train(), two_views(run("byol"))
    torch.nn.init.normal_(method.target[1][-1].weight)  # unlike the trained network
    with torch.no_grad():
        predictions = [
            F.normalize(predicted, dim=1)
            for _, predicted in inference.forward_by_size(method, views)
        ]
        points = [F.normalize(target, dim=1) for target in method.targets(views)]
    both = sum(predictions)
    expected = (both.norm(dim=1) - sum((both * point).sum(1) for point in points) / 2).mean() / 2
    assert inference.measures(method, views)["e_step_gap"] == pytest.approx(
        expected.item(), rel=1e-3
    )
