"""lib.networks: sizes against torchvision, and the map from raw outputs to concentrations."""

import math

import pytest
import torch
import torchvision
from torch import nn

from lib import networks
from lib.losses import vi_simsiam_loss
from lib.runs import settings

MAPPINGS = ["natural", "softplus", "exp"]


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


# --------------------------------------------------------------------------------------- backbones
def test_resnet18_of_width_64_is_torchvisions_without_its_classifier():
    ours = networks.resnet18(64, "imagenet").eval()
    theirs = torchvision.models.resnet18().eval()
    theirs.fc = nn.Identity()
    assert parameters(ours) == parameters(theirs) == 11_176_512
    # The names differ, the order is the same.
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images), theirs(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("stem", "reduction"), [("imagenet", 32), ("stride2", 16), ("small", 8)])
def test_stems_reduce_as_they_say(stem, reduction):
    network = networks.resnet18(4, stem, channels=1).eval()
    maps = network[:-2](torch.rand(2, 1, 64, 64))
    assert maps.shape == (2, 32, 64 // reduction, 64 // reduction)
    assert network(torch.rand(2, 1, 40, 56)).shape == (2, network.features) == (2, 32)


def test_unknown_backbone_and_stem_are_errors():
    settings = {
        "backbone": "resnet18",
        "width": 4,
        "stem": "stride2",
        "image_size": 32,
        "local_views": 0,
    }
    assert networks.backbone(settings, 3).features == 32
    with pytest.raises(ValueError, match="Unknown backbone 'vgg'; choose one of"):
        networks.backbone(settings | {"backbone": "vgg"}, 3)
    with pytest.raises(ValueError, match="Unknown stem 'big'; choose one of .*'small'"):
        networks.backbone(settings | {"stem": "big"}, 3)


# ------------------------------------------------------------------------------------------- heads
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_projector_has_batch_norm_everywhere_and_relu_but_last(layers):
    projector = networks.projector(8, 16, layers)
    kinds = [type(module).__name__ for module in projector]
    assert kinds == (["Linear", "BatchNorm1d", "ReLU"] * layers)[:-1]
    assert projector(torch.randn(4, 8)).shape == (4, 16)
    assert parameters(projector) == 8 * 16 + (layers - 1) * 16 * 16 + layers * 32


def test_predictor_is_a_bottleneck_with_a_plain_output():
    predictor = networks.predictor(16, 4)
    assert parameters(predictor) == 16 * 4 + 8 + 4 * 16 + 16
    assert predictor(torch.randn(3, 16)).shape == (3, 16) and networks.predictor(16, 4, 17)(
        torch.randn(3, 16)
    ).shape == (3, 17)
    assert networks.predictor(8, 8, 1)(torch.randn(3, 8)).shape == (
        3,
        1,
    )  # the concentration head's form


# ----------------------------------------------------------------------------------- concentration
@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize("dimension", [2, 16, 2048])
@pytest.mark.parametrize("cosine", [0.02, 0.15, 0.6])
def test_start_at_cosine(mapping, dimension, cosine):
    """Every input starts with the κ whose mean cosine κ / (D - 1 + κ) is the given one (the smooth
    bound takes at most a part in 30).
    """
    last = nn.Linear(5, 3)
    before = last.weight[:-1].clone()
    networks.start_at_cosine(last, dimension, cosine, mapping)
    kappa = networks.to_concentration(last(torch.randn(7, 5))[:, -1], dimension, mapping)
    assert kappa.shape == (7,) and (kappa == kappa[0]).all()
    assert kappa[0].item() == pytest.approx(
        (dimension - 1) * cosine / (1 - cosine), rel=0.035 if mapping == "natural" else 1e-5
    )
    assert torch.equal(last.weight[:-1], before)


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_concentration_is_positive_and_rises_with_the_raw_output(mapping):
    raw = torch.linspace(-20, 8, 200)
    kappa = networks.to_concentration(raw, 64, mapping)
    assert kappa.dtype == torch.float32 and (kappa > 0).all() and (kappa.diff() > 0).all()


@pytest.mark.parametrize("dimension", [2, 256, 4096])
def test_natural_concentration_is_the_logit_of_the_mean_cosine_up_to_its_bound(dimension):
    raw = torch.tensor([-1000.0, -10.0, -3.0, -1.735, 0.0, 20.0, 1e6])
    kappa = networks.to_concentration(raw, dimension).double()
    rho = kappa / (dimension - 1 + kappa)
    assert (
        (kappa >= 0).all()
        and rho.max() <= networks.MAX_COSINE + 1e-6
        and rho[-1].item() == pytest.approx(0.98, abs=1e-6)
    )
    torch.testing.assert_close(rho[1:4], torch.sigmoid(raw[1:4].double()), rtol=4e-3, atol=0)


@pytest.mark.parametrize("dimension", [16, 256, 2048])
def test_gradient_of_the_divided_loss_in_the_raw_output_is_of_order_one(dimension):
    """-e^a log[((1+s)/2)(D-1+κ)/((D-1)/2+κ)] for large D, whatever D is.

    with softplus it falls like 1/D.
    """
    s = 0.6
    start = 0.15
    direction = torch.zeros(1, dimension)
    target = torch.zeros(1, dimension)
    direction[0, 0] = 1
    target[0, 0] = s
    target[0, 1] = math.sqrt(1 - s**2)
    raw = torch.tensor([math.log(start / (1 - start))], requires_grad=True)
    kappa = networks.to_concentration(raw, dimension)
    (vi_simsiam_loss(direction, kappa, target) / (dimension - 1)).backward()
    n = dimension - 1
    k = kappa.item()
    expected = -k / n * math.log((1 + s) / 2 * (n + k) / (n / 2 + k))
    assert raw.grad.item() == pytest.approx(expected, rel=0.1)
    assert 0.02 < abs(raw.grad.item()) < 1


def test_concentration_ignores_autocast_and_half_precision():
    raw = torch.tensor([0.3, -1.0], dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        kappa = networks.to_concentration(raw, 2048)
    torch.testing.assert_close(kappa, networks.to_concentration(raw.float(), 2048))
    assert kappa.dtype == torch.float32


def test_unknown_mapping_is_an_error():
    message = "Unknown concentration_map 'square'"
    with pytest.raises(ValueError, match=message):
        networks.to_concentration(torch.zeros(2), 8, "square")
    with pytest.raises(ValueError, match=message):
        networks.start_at_cosine(nn.Linear(2, 1), 8, 0.1, "square")


@pytest.mark.parametrize(("stem", "smallest"), [("imagenet", 17), ("stride2", 9), ("small", 5)])
def test_views_that_leave_one_pixel_for_the_last_stage_are_refused(stem, smallest):
    settings = {
        "backbone": "resnet18",
        "stem": stem,
        "width": 2,
        "image_size": smallest,
        "local_views": 0,
        "local_size": 1,
    }
    shapes = []
    network = networks.backbone(settings, 3)
    network[-4].conv1.register_forward_hook(
        lambda module, inputs, output: shapes.append(inputs[0].shape[-1])
    )
    network(torch.zeros(2, 3, smallest, smallest))
    assert shapes == [2]
    for change in ({"image_size": smallest - 1}, {"local_views": 2, "local_size": smallest - 1}):
        with pytest.raises(ValueError, match=f"{smallest - 1} px; .* needs at least {smallest} px"):
            networks.backbone(settings | change, 3)


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
    networks.update_average(target, online, 0.0)
    torch.testing.assert_close(parameters, dict(online.named_parameters()))
    with pytest.raises(ValueError, match="argument"):
        networks.update_average(target, online[:1], 0.9)


def test_layer_outputs_are_those_of_the_main_parts():
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        networks.UpsamplingBlock(4, 2, 2),
        nn.Flatten(),
        nn.Linear(288, 3),
    )
    assert networks.layer_outputs(network, torch.zeros(2, 1, 14, 14)) == ["4@6×6", "2@12×12", "3"]
    reshaped = nn.Sequential(nn.Linear(3, 8), nn.Unflatten(1, (2, 2, 2)), nn.Conv2d(2, 1, 1))
    assert networks.layer_outputs(reshaped, torch.zeros(2, 3)) == ["2@2×2", "1@2×2"]


# ------------------------------------------------------------------------------ vision transformer
def test_attention_is_plain_where_patches_are_few_and_gives_what_fused_attention_gives():
    network = networks.vit(16, 2, 2, 4, 16).eval()
    many = networks.vit(16, 1, 2, 2, 32)
    images = torch.rand(3, 3, 16, 16)
    blocks = network.vit.blocks
    assert not any(block.attn.fused_attn for block in blocks) and all(
        block.attn.fused_attn for block in many.vit.blocks
    )
    plain = network(images)
    for block in blocks:
        block.attn.fused_attn = True
    torch.testing.assert_close(network(images), plain)


def test_a_vit_takes_views_of_any_side_that_patches_divide():
    network = networks.vit(16, 2, 2, 4, 16).eval()
    with torch.no_grad():
        assert (
            network.features == 16
            and network(torch.rand(3, 3, 16, 16)).shape
            == (3, 16)
            == network(torch.rand(3, 3, 8, 8)).shape
        )
        assert network.encode(torch.rand(2, 3, 8, 8)).shape == (2, 1 + 4, 16)
    described = settings.resolve("prosmin_vit", "smoke")
    assert networks.backbone(described, 1)(torch.rand(2, 1, 16, 16)).shape == (2, 16)
    with pytest.raises(
        ValueError, match="local_size is 10 px; a vit needs a multiple of its patch_size 4"
    ):
        networks.backbone(described | {"local_size": 10}, 3)
    with pytest.raises(ValueError, match="The recipe of simsiam says nothing of a vit"):
        networks.backbone(settings.resolve("simsiam", "smoke") | {"backbone": "vit"}, 3)
    with pytest.raises(
        ValueError, match="multiple of 4 and of its heads, got width 16 and 3 heads"
    ):
        networks.vit(16, 2, 3, 4, 16)


def test_positions_tell_patches_apart():
    network = networks.vit(16, 1, 2, 4, 16).eval()
    images = torch.rand(1, 3, 16, 16)
    moved = torch.roll(images, 4, 3)
    with torch.no_grad():
        assert not torch.allclose(network(images), network(moved), atol=1e-4)


@pytest.mark.parametrize("inputs, stride", [(2, 2), (4, 2), (6, 2), (4, 1)])
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


@pytest.mark.parametrize("width", [2, 4, 8])
def test_narrow_networks_have_no_strided_convolution_of_few_channels(width):
    network = networks.resnet18(width, "stride2", channels=1)
    risky = [
        m
        for m in network.modules()
        if type(m) is torch.nn.Conv2d
        and m.kernel_size == (1, 1)
        and m.stride != (1, 1)
        and m.in_channels < 8
    ]
    assert not risky
