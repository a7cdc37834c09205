"""A GPU computes what the CPU computes: views, losses, gradients, training and its resumption."""

import pytest
import torch

from lib import methods
from lib.data.views import make_views
from lib.runs.settings import recipe
from lib.training import loop
from lib.training.devices import Processes
from tests.methods.test_methods import LEARNED, TOLERANCE, draw_views, loss_of, small
from tests.training.tiny_runs import interrupted, tiny, weights

GPU = torch.device("cuda")
DRAWS = 8  # losses that draw noise are compared with so many on the CPU
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
    pytest.mark.usefixtures("data_dir"),
]


@pytest.fixture(autouse=True)
def exact_products(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("augmentation", ["simsiam", "dino", "simvae_colour", "simvae_grey"])
@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_those_of_the_cpu(augmentation, channels):
    images = (torch.rand(140, channels, 24, 30) * 255).byte()
    settings = {"augmentation": augmentation, "image_size": 20, "local_views": 2, "local_size": 9}
    on_cpu = make_views(images, settings, torch.Generator().manual_seed(0))
    on_gpu = make_views(images.to(GPU), settings, torch.Generator().manual_seed(0))
    for view, expected in zip(on_gpu, on_cpu, strict=True):
        torch.testing.assert_close(view.cpu(), expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("method", LEARNED)
def test_losses_and_gradients_are_those_of_the_cpu(method):
    """A loss that draws noise is as near the mean of several draws as those are to each other."""
    settings = small(method, local_views=2 if recipe(method)["local_views"] else 0)
    network = methods.build(settings).train()
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    def loss_and_gradient(device, seed):
        network.load_state_dict(start)
        network.to(device).zero_grad()
        torch.manual_seed(seed)
        views = [view.to(device) for view in draw_views(settings["local_views"])]
        with torch.device(device):
            loss = loss_of(network, views)["loss"]
        loss.backward()
        gradients = [p.grad.flatten() for p in network.parameters() if p.grad is not None]
        length = torch.cat(gradients).double().norm()
        return torch.stack([loss.double(), length]).detach().cpu()

    draws = torch.stack([loss_and_gradient("cpu", seed) for seed in range(DRAWS)])
    difference = (loss_and_gradient(GPU, 0) - draws.mean(0)).abs()
    assert (difference <= 6 * draws.std(0) + 10 * TOLERANCE * draws.mean(0).abs()).all()


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("method", ["simsiam", "vi_simsiam", "vicreg"])
def test_a_run_is_that_of_the_cpu(method, compiled, fresh_results, distance, monkeypatch):
    """Tolerance: 5 % of the way that the weights have moved in 10 steps."""
    settings = tiny(method, epochs=1, learning_rate=1e-3)
    trained = {}
    for device in ("cpu", "cuda"):
        alone = Processes(torch.device(device))
        fresh_results(device)
        with monkeypatch.context() as patch:
            patch.setattr(loop, "join_processes", lambda alone=alone: alone)
            loop.train(settings, compiled=compiled and device == "cuda")
        trained[device] = weights(settings)
    moved = distance(methods.build(settings, 1).state_dict(), trained["cpu"])
    assert 0 < distance(*trained.values()) < 0.05 * moved


def test_resumed_is_close_to_uninterrupted(fresh_results, distance):
    """Not bit for bit, as a GPU adds in a changing order. Tolerance: 5 % of the way moved."""
    settings = tiny("vi_simsiam", learning_rate=1e-3)
    loop.train(settings, compiled=False)
    whole = weights(settings)
    fresh_results("resumed")
    interrupted(settings, 4, 12)
    loop.train(settings, compiled=False)
    moved = distance(methods.build(settings, 1).state_dict(), whole)
    assert distance(weights(settings), whole) < 0.05 * moved
