"""What a GPU computes is what the CPU computes: views, losses, training and its resumption. Skipped where there is no GPU."""

import pytest
import torch

from lib import methods
from lib.data import views as augmentations
from lib.runs import settings
from lib.training import loop as training
from tests.test_methods import LEARNED, TOLERANCE, draw_views, loss_of, small
from tests.test_training import fresh_results, interrupted, tiny, weights

__all__ = ["fresh_results"]
DEVICE = torch.device("cuda")
DRAWS = 8  # losses that draw noise are compared with so many of the CPU's
pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
    pytest.mark.usefixtures("data_dir"),
]


@pytest.mark.parametrize("recipe", ["simsiam", "dino", "simvae_colour", "simvae_grey"])
@pytest.mark.parametrize("channels", [1, 3])
def test_views_are_those_of_the_cpu(recipe, channels):
    images = (torch.rand(140, channels, 24, 30) * 255).byte()
    described = {"augmentation": recipe, "image_size": 20, "local_views": 2, "local_size": 9}
    expected, views = (
        augmentations.make_views(where, described, torch.Generator().manual_seed(0))
        for where in (images, images.to(DEVICE))
    )
    for view, other in zip(views, expected, strict=True):
        torch.testing.assert_close(view.cpu(), other, rtol=0, atol=5e-5)


@pytest.mark.parametrize("method", LEARNED)
def test_losses_and_gradients_are_those_of_the_cpu(method, monkeypatch):
    """Of a loss that draws noise, whose numbers are others on a GPU: as near the mean of several draws as those are to each other."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    described = small(method, local_views=2 if settings.recipe(method)["local_views"] else 0)
    if described["backbone"] == "vit":
        pytest.importorskip("lightly")
    network = methods.build(described).train()
    start = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    def loss_and_gradient(device, seed):
        network.load_state_dict(start)
        network.to(device).zero_grad()
        torch.manual_seed(seed)
        views = [view.to(device) for view in draw_views(described["local_views"])]
        with torch.device(device):
            loss = loss_of(network, views)["loss"]
        loss.backward()
        squares = [
            parameter.grad.double().square().sum().cpu()
            for parameter in network.parameters()
            if parameter.grad is not None
        ]
        return torch.stack([loss.double().cpu().detach(), sum(squares).sqrt()])

    expected = torch.stack([loss_and_gradient("cpu", seed) for seed in range(DRAWS)])
    found = loss_and_gradient(DEVICE, 0)
    assert (
        (found - expected.mean(0)).abs()
        <= 6 * expected.std(0) + 10 * TOLERANCE * expected.mean(0).abs()
    ).all(), (found, expected)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("method", ["simsiam", "vi_simsiam", "vicreg"])
def test_a_run_is_that_of_the_cpu(method, compiled, fresh_results, distance, monkeypatch):
    """Tolerance: 5 % of the way that the weights have gone in 10 steps."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    run, trained = tiny(method, epochs=1, learning_rate=1e-3), []
    for device in ("cpu", "cuda"):
        fresh_results(device)
        monkeypatch.setattr(training, "best_device", lambda device=device: torch.device(device))
        training.train(run, compiled=compiled and device == "cuda")
        trained.append(weights(run))
    start = methods.build(run, 1).state_dict()
    assert 0 < distance(*trained) < 0.05 * distance(start, trained[0])


def test_resumed_is_as_uninterrupted(fresh_results, distance):
    """Not bit for bit, as on a CPU: a GPU adds in an order that changes. Tolerance: 5 % of the way that the weights have gone."""
    run = tiny("vi_simsiam", learning_rate=1e-3)
    training.train(run, compiled=False)
    whole = weights(run)
    fresh_results("resumed")
    interrupted(run, 4, 12)
    training.train(run, compiled=False)
    assert distance(weights(run), whole) < 0.05 * distance(
        methods.build(run, 1).state_dict(), whole
    )
