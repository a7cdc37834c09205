"""lib.networks: sizes against torchvision, and the map from raw outputs to concentrations."""

import pytest
import torch
import torchvision
from torch import nn

from lib import networks
from tests.methods.comparison import close

MAPPINGS = ["natural", "softplus", "exp"]
RESNET = {"backbone": "resnet18", "width": 2, "stem": "stride2", "image_size": 32, "local_views": 0}


# --------------------------------------------------------------------------------------- backbones
def test_resnet18_of_width_64_is_torchvisions_without_its_classifier():
    ours = networks.resnet18(64, "imagenet").eval()
    theirs = torchvision.models.resnet18().eval()
    theirs.fc = nn.Identity()
    # The names differ, the order is the same.
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("stem", "reduction", "smallest"), [("imagenet", 32, 17), ("stride2", 16, 9), ("small", 8, 5)]
)
def test_views_that_leave_one_pixel_for_the_last_stage_are_refused(stem, reduction, smallest):
    network = networks.backbone(RESNET | {"stem": stem, "image_size": smallest}, 3).eval()
    assert network[:-2](torch.rand(2, 3, 64, 64)).shape[2:] == (64 // reduction, 64 // reduction)
    assert network[:-4](torch.zeros(2, 3, smallest, smallest)).shape[-1] == 2
    for change in ({"image_size": smallest - 1}, {"local_views": 2, "local_size": smallest - 1}):
        with pytest.raises(ValueError, match=f"{smallest - 1} px; .* needs at least {smallest} px"):
            networks.backbone(RESNET | {"stem": stem} | change, 3)


# ----------------------------------------------------------------------------------- concentration
@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("dimension", [2, 2048])
@pytest.mark.parametrize("cosine", [0.02, 0.6])
def test_start_at_cosine(mapping, dimension, cosine):
    """Every input starts with the κ whose mean cosine κ / (D - 1 + κ) is the given one (the smooth
    bound takes at most a part in 30).
    """
    last = nn.Linear(5, 3)
    before = last.weight[:-1].clone()
    networks.start_at_cosine(last, dimension, cosine, mapping)
    kappa = networks.to_concentration(last(torch.randn(7, 5))[:, -1], dimension, mapping)
    assert kappa.shape == (7,) and (kappa == kappa[0]).all()
    expected = (dimension - 1) * cosine / (1 - cosine)
    close(kappa[0], expected, rel=0.035 if mapping == "natural" else 1e-5)
    assert torch.equal(last.weight[:-1], before)


@pytest.mark.parametrize("dimension", [2, 256, 4096])
def test_natural_concentration_is_the_logit_of_the_mean_cosine_up_to_its_bound(dimension):
    raw = torch.tensor([-1000.0, -10.0, -3.0, -1.735, 0.0, 20.0, 1e6])
    kappa = networks.to_concentration(raw, dimension).double()
    rho = kappa / (dimension - 1 + kappa)
    assert (kappa >= 0).all() and rho.max() <= networks.MAX_COSINE + 1e-6
    close(rho[-1], 0.98, abs=1e-6)
    torch.testing.assert_close(rho[1:4], torch.sigmoid(raw[1:4].double()), rtol=4e-3, atol=0)


# --------------------------------------------------------------------------------- target networks
def test_update_average_is_the_moving_average():
    online = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    target = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    online(torch.randn(5, 3))
    before = {name: value.clone() for name, value in target.state_dict().items()}
    kept = {name: value.clone() for name, value in online.state_dict().items()}
    networks.update_average(target, online, 0.9)
    parameters = dict(target.named_parameters())
    for name, value in target.state_dict().items():
        expected = 0.9 * before[name] + 0.1 * kept[name] if name in parameters else before[name]
        torch.testing.assert_close(value, expected)
        assert torch.equal(online.state_dict()[name], kept[name])


# --------------------------------------------------------------------------------- narrow networks
@pytest.mark.parametrize("inputs, stride", [(2, 2), (6, 2), (4, 1)])
def test_narrow_shortcut_is_the_strided_convolution(inputs, stride):
    """Forward and weight gradient against the convolution in float64, which oneDNN does not
    compute.
    """
    torch.manual_seed(0)
    ours = networks.NarrowShortcut(inputs, 2 * inputs, 1, stride, bias=False).to(
        memory_format=torch.channels_last
    )
    theirs = torch.nn.Conv2d(inputs, 2 * inputs, 1, stride, bias=False).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(64, inputs, 9, 8).contiguous(memory_format=torch.channels_last)
    ours(x).square().sum().backward()
    theirs(x.double()).square().sum().backward()
    torch.testing.assert_close(ours(x).double(), theirs(x.double()))
    torch.testing.assert_close(ours.weight.grad.double(), theirs.weight.grad, rtol=1e-4, atol=1e-3)
