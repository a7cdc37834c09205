"""lib.evaluation.theory against explicit sums, quadrature and the training losses."""

import math

import pandas as pd
import pytest
import torch
from scipy import stats
from torch.nn import functional as F

from lib import losses, methods, training
from lib.data.views import make_views
from lib.distributions import VonMisesFisher
from lib.evaluation import measure, theory
from lib.methods.base import forward_by_size
from lib.runs import settings

BATCH = 7
DIMENSION = 5


def draw(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def outputs():
    """Target outputs f of two views, online outputs g, and κ, in float64."""
    f = draw(2, BATCH, DIMENSION)
    g = draw(2, BATCH, DIMENSION, seed=1).requires_grad_()
    kappa = (1 + draw(2, BATCH, seed=2).abs()).requires_grad_()
    return f, g, kappa


def assert_equal(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------- the three terms
def test_terms_on_the_simplex_are_their_sums():
    f = draw(2, BATCH, DIMENSION)
    g = draw(2, BATCH, DIMENSION, seed=1)
    q = [theory.categorical(x, 0.5, 0.3) for x in f]
    p = [theory.categorical(x, 2.0) for x in g]
    teacher = ((f - 0.3) / 0.5).softmax(2)
    student = (g / 2.0).softmax(2)
    mean_student = student.mean(1, keepdim=True)
    mean_teacher = teacher.mean(0)
    align = (teacher[0] * student[1].log() + teacher[1] * student[0].log()).sum(1)
    uniform = -(teacher[0] * mean_student[1].log() + teacher[1] * mean_student[0].log()).sum(1)
    kl = -2 * (mean_teacher * (mean_teacher * DIMENSION).log()).sum(1)
    assert_equal(theory.j_align(q, p), align)
    assert_equal(theory.j_uniform(q, p), uniform)
    assert_equal(theory.j_kl(q), kl)


def test_local_views_predict_but_are_no_targets(outputs):
    f, g, _ = outputs
    q = [theory.point_mass(x) for x in f]
    p = [theory.von_mises_fisher(x) for x in (*g, draw(BATCH, DIMENSION, seed=5))]
    pairs = [(0, 1), (1, 0), (2, 0), (2, 1)]  # (view of p, view of q)
    expected = sum(p[i].log_prob(q[j].value) for i, j in pairs)
    torch.testing.assert_close(theory.j_align(q, p), expected)


@pytest.mark.parametrize("method", ["VI-SimSiam", "SimSiam", "SimCLR", "DINO"])
def test_terms_are_the_training_losses(outputs, method):
    """Eq. 33 and Claims 4.3, 4.5 and 4.7, values and gradients."""
    f, g, kappa = outputs
    points = [theory.point_mass(x) for x in f]
    experts = [theory.von_mises_fisher(x, 4.0) for x in g]
    if method == "VI-SimSiam":
        p = [theory.power_spherical(g[0], kappa[0]), theory.power_spherical(g[1], kappa[1])]
        ours = theory.j_align(points, p).mean()
        theirs = losses.vi_simsiam_loss(g[0], kappa[0], f[1])
        theirs = theirs + losses.vi_simsiam_loss(g[1], kappa[1], f[0])
    elif method == "SimSiam":
        log_c = experts[0].log_prob(experts[0].loc)[0].detach() - 4
        ours = (theory.j_align(points, experts).mean() - 2 * log_c) / 4
        theirs = losses.simsiam_loss(g[0], f[1]) + losses.simsiam_loss(g[1], f[0])
    elif method == "SimCLR":
        same = [theory.point_mass(x) for x in g]
        terms = theory.j_align(same, experts) + theory.j_uniform(same, experts)
        ours = terms.mean() - 2 * math.log(BATCH)
        theirs = 2 * losses.info_nce_loss(g[0], g[1], 1 / 4, same_view_negatives=False)
    else:
        teacher = [theory.categorical(x, 0.04, 0.1) for x in f]
        ours = theory.j_align(teacher, [theory.categorical(x, 0.1) for x in g]).mean()
        centre = torch.full((DIMENSION,), 0.1, dtype=torch.float64)
        theirs = losses.dino_loss(g[0], f[1], centre) + losses.dino_loss(g[1], f[0], centre)
    row = theory.compare(method, "", ours, -theirs, g)
    assert row["value"] < 1e-12
    assert row["gradient"] < 1e-12


def test_of_three_views_alignment_and_uniformity_are_simclrs_loss_of_every_pair():
    """Eq. 26: Claim 4.5 for any number of views."""
    g = draw(3, BATCH, DIMENSION, seed=3)
    points = [theory.point_mass(x) for x in g]
    experts = [theory.von_mises_fisher(x, 4.0) for x in g]
    terms = theory.j_align(points, experts) + theory.j_uniform(points, experts)
    loss = 0
    for i, j in ((0, 1), (0, 2), (1, 2)):
        loss += losses.info_nce_loss(g[i], g[j], 1 / 4, same_view_negatives=False)
    assert_equal(terms.mean() - 6 * math.log(BATCH), -2 * loss)
    assert theory.j_kl(points).eq(0).all()


# ----------------------------------------------------------------------------- product of experts
@pytest.mark.parametrize("kappas", [(0.5, 2.0), (30.0, 1.0, 8.0)])
def test_product_and_log_eta_by_quadrature(kappas):
    points, area = theory.sphere_grid()
    assert area.sum().item() == pytest.approx(4 * math.pi, rel=1e-12)
    kappa = torch.tensor(kappas, dtype=torch.float64)
    loc = F.normalize(draw(len(kappas), 3), dim=1)
    log_product = 0
    for direction, concentration in zip(loc, kappa, strict=True):
        expert = VonMisesFisher(direction.expand_as(points), concentration.expand(len(points)))
        log_product = log_product + expert.log_prob(points)
    log_eta = -(area * log_product.exp()).sum().log()
    assert theory.log_eta(loc, kappa).item() == pytest.approx(log_eta.item(), abs=1e-10)
    product = theory.product_of_experts(loc, kappa).expand(torch.Size([len(points)]))
    torch.testing.assert_close(product.log_prob(points), log_product + log_eta, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kappa", [1.0, 300.0])
def test_the_ratio_of_the_ignored_gradient_has_its_closed_form(kappa):
    cosine = torch.tensor([-0.9, 0.0, 0.7], dtype=torch.float64)
    root = (2 + 2 * cosine).sqrt()
    axes = torch.eye(16, dtype=torch.float64)[:3]
    resultant = VonMisesFisher(axes, kappa * root).mean.norm(dim=1)
    ratio = theory.normaliser_gradient_ratio(16, kappa, cosine)
    torch.testing.assert_close(ratio, -2 * resultant / root, rtol=1e-8, atol=0)


# ------------------------------------------------------------------ measures of a network's outputs
def test_uniformity():
    z = draw(6, 4)
    unit = F.normalize(z, dim=1)
    squares = torch.cdist(unit, unit).square()[torch.ones(6, 6).triu(1).bool()]
    expected = squares.mul(-2).exp().mean().log().item()
    assert theory.uniformity(z).item() == pytest.approx(expected, abs=1e-12)
    assert theory.uniformity(torch.ones(5, 4)).item() == pytest.approx(0, abs=1e-6)
    assert theory.uniformity(draw(500, 512)).item() == pytest.approx(-4, abs=0.05)


def build(name="simsiam", **changed):
    """A method in training mode, and two views of 64 images."""
    resolved = settings.resolve(name, "smoke", **changed)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (64, 1, 16, 16), dtype=torch.uint8, generator=generator)
    views = make_views(images, resolved, torch.Generator().manual_seed(0))
    return methods.build(resolved, 1).train(), views[:2]


def normalised(outputs):
    return [F.normalize(output.detach(), dim=1) for output in outputs]


@pytest.mark.parametrize("name", ["simsiam", "byol"])
def test_the_gap_to_an_e_step_is_that_of_the_targets(name):
    method, views = build(name)
    if name == "byol":
        torch.nn.init.normal_(method.target[1][-1].weight)  # unlike the trained network
        targets = method.targets(views)
    else:
        targets = [projection for projection, _ in forward_by_size(method, views)]
    both = sum(normalised(prediction for _, prediction in forward_by_size(method, views)))
    at_mode = both.norm(dim=1) / 2  # the mean cosine of a point on the sphere is both · point / 2
    at_points = [(both * point).sum(1) / 2 for point in normalised(targets)]
    gap = (at_mode - sum(at_points) / 2).mean().item()
    measured = theory.measure_outputs(method, views)["e_step_gap"]
    assert measured == pytest.approx(gap, rel=1e-3)


# ------------------------------------------------------------------------------- short trainings
def test_without_predictor_the_projection_predicts():
    method, views = build()
    theory.remove_part(method, "predictor")
    for projection, prediction in forward_by_size(method, views):
        assert torch.equal(projection, prediction)


def test_without_stop_gradient_the_targets_are_trained_too():
    whole, views = build()
    without, _ = build()
    theory.remove_part(without, "stop-gradient")
    loss = without.loss(views)["loss"]
    assert loss.item() == pytest.approx(whole.loss(views)["loss"].item(), abs=1e-6)
    (z1, p1), (z2, p2) = forward_by_size(without, views)
    expected = -(F.cosine_similarity(p1, z2) + F.cosine_similarity(p2, z1)).mean() / 2
    weight = without.projector[0].weight
    (gradient,) = torch.autograd.grad(loss, weight)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, weight)[0])
    stopped = torch.autograd.grad(whole.loss(views)["loss"], whole.projector[0].weight)[0]
    assert (gradient - stopped).abs().max() > 1e-4


# -------------------------------- VJE's likelihood (mass_over_sphere is tested in test_vje.py)
def test_variances_are_compared_with_the_residual_of_the_other_view(shared_results):
    resolved = settings.resolve("vje", "smoke", train_images=256) | {"condition_images": 60}
    training.train(resolved)
    run = measure.Run(resolved)
    with torch.no_grad():  # one epoch leaves the variances nearly equal
        torch.nn.init.normal_(run.method.inference[-1].weight, std=0.3)
    metrics = pd.DataFrame(theory.measure_variances(run)).set_index(["condition", "metric"])
    _, (first, second) = measure.embed_views(run, 2)
    with torch.no_grad():
        mean, log_variance = run.method.posterior(torch.from_numpy(first["features"]))
    direction = F.normalize(mean, dim=1).numpy()
    target = F.normalize(torch.from_numpy(second["features"]), dim=1).numpy()
    residual = target.shape[1] * (target - direction) ** 2
    for axis, condition in enumerate(("features", "images")):
        residuals = residual.mean(axis)
        log_variances = log_variance.mean(axis).numpy()
        assert metrics.value[condition, "spread"] == pytest.approx(log_variances.std(), rel=1e-4)
        correlation = metrics.loc[(condition, "residual_spearman")]
        expected = stats.spearmanr(log_variances, residuals).statistic
        assert correlation.value == pytest.approx(expected, abs=1e-3)
        assert correlation.n == len(log_variances)
        assert correlation.ci_low <= correlation.value <= correlation.ci_high
