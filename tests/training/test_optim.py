"""Optimisers, their parameter groups and schedules."""

import math
from copy import deepcopy

import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lib import methods
from lib.networks import cosine_between
from lib.training import loop
from lib.training.optim import learning_rate_factor, make_optimizer, parameter_groups
from tests.training.tiny_runs import log_of, tiny

pytestmark = pytest.mark.usefixtures("data_dir")


@pytest.fixture
def steps():
    """The parameter groups of the optimiser at every step."""
    groups = []

    def record(optimizer, *_):
        groups.append([{**group, "params": None} for group in optimizer.param_groups])

    handle = register_optimizer_step_pre_hook(record)
    yield groups
    handle.remove()


def test_learning_rate_factor():
    factors = [learning_rate_factor(step, 12, 2, "cosine") for step in range(12)]
    cosine = [0.5 * (1 + math.cos(math.pi * t / 10)) for t in range(10)]
    assert factors == pytest.approx([0.5, 1.0, *cosine])
    constant = [learning_rate_factor(step, 5, 2, "constant") for step in range(5)]
    assert constant == [0.5, 1, 1, 1, 1]


@pytest.mark.parametrize("constant", [True, False])
def test_the_learning_rate_of_the_predictor_stays_constant(steps, constant):
    settings = tiny(constant_predictor_learning_rate=constant, epochs=1, warmup_epochs=0.2)
    loop.train(settings)
    expected = [0.06 * learning_rate_factor(step, 10, 2, "cosine") for step in range(10)]
    assert [groups[0]["lr"] for groups in steps] == pytest.approx(expected)
    assert [len(groups) for groups in steps] == [1 + constant] * 10
    if constant:
        assert {groups[1]["lr"] for groups in steps} == {0.06}
    assert log_of(settings).learning_rate.tolist() == pytest.approx(expected[1::2], rel=1e-4)


@pytest.mark.parametrize("method", ["simsiam", "vi_simsiam_2022"])
@pytest.mark.parametrize("optimizer", ["sgd", "lars"])
def test_every_trained_weight_is_in_one_group(method, optimizer):
    network = methods.build(tiny(method), 1)
    network.register_parameter("frozen", nn.Parameter(torch.ones(3), requires_grad=False))
    groups = parameter_groups(network, tiny(method, optimizer=optimizer))
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    trained = [id(parameter) for parameter in network.parameters() if parameter.requires_grad]
    assert sorted(listed) == sorted(trained)
    in_predictor = {id(parameter) for parameter in network.predictor.parameters()}
    for group in groups:
        for parameter in group["params"]:
            assert group["constant"] == (id(parameter) in in_predictor)


def test_only_matrices_are_decayed_where_a_recipe_says_so_and_by_its_schedule(steps):
    settings = tiny("prosmin", epochs=1, weight_decay=0.04)
    assert settings["decays_matrices_only"]
    assert settings["weight_decay_end"] == 0.4
    loop.train(settings)
    matrices = [groups[0]["weight_decay"] for groups in steps]
    vectors = [groups[1]["weight_decay"] for groups in steps]
    expected = [cosine_between(0.04, 0.4, step / 10) for step in range(10)]
    assert matrices == pytest.approx(expected)
    assert set(vectors) == {0.0}

    network = methods.build(settings, 1)
    matrices, vectors = parameter_groups(network, settings)
    assert all(parameter.ndim > 1 for parameter in matrices["params"])
    assert all(parameter.ndim < 2 for parameter in vectors["params"])


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_lars_adapts_the_rate_of_matrices_and_neither_decays_nor_adapts_vectors(weight_decay):
    """The trust ratio 0.001 ‖w‖/‖g‖ (You et al. 2017) undoes the length of the gradient."""
    network = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    before = deepcopy(network)
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    recipe = {"optimizer": "lars", "weight_decay": weight_decay, "momentum": 0.0}
    make_optimizer(network, tiny("simclr", learning_rate=0.1, **recipe)).step()
    for parameter, start in zip(network.parameters(), before.parameters(), strict=True):
        step = start.detach() - parameter.detach()
        if parameter.ndim < 2:
            torch.testing.assert_close(step, 0.1 * parameter.grad)
        elif not weight_decay:
            assert step.norm().item() == pytest.approx(1e-4 * start.norm().item(), rel=1e-3)
