"""lib.evaluation.embed: images as a network takes them, and the embedding of a set."""

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.transforms import functional as tv

from lib.data import views
from lib.data.sets import ImageSet
from lib.evaluation import embed
from lib.methods.base import Embedding


def noise(channels=3, size=24):
    return torch.rand(4, channels, size, size, generator=torch.Generator().manual_seed(0))


class Method(nn.Module):
    """Dropout and batch norm, so that the mode matters, and a part that stays in eval mode."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layers = (nn.Flatten(), nn.Linear(108, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.network = nn.Sequential(*layers)
        self.frozen = nn.BatchNorm1d(8)

    def embed(self, images):
        assert not torch.is_grad_enabled()
        features = self.network(images)
        native = {"kappa": features.exp()[:, 0], "direction": features[:, :4]}
        return Embedding(features, -features.norm(dim=1), native)


# ------------------------------------------------------------------- images as a network takes them
@pytest.mark.parametrize(("given", "wanted"), [(3, 3), (1, 3), (3, 1)])
def test_images_get_the_channels_and_size_of_a_network(given, wanted):
    images = noise(channels=given)
    expected = tv.rgb_to_grayscale(images) if given > wanted else images.expand(-1, wanted, -1, -1)
    torch.testing.assert_close(embed.input_transform({"image_size": 24}, wanted)(images), expected)
    for size in (12, 40):
        fitted = embed.input_transform({"image_size": size}, wanted)(images)
        assert fitted.shape == (4, wanted, size, size)
        assert fitted.min() >= 0 and fitted.max() <= 1


def test_a_centre_crop_keeps_its_share_of_the_area():
    images = noise()
    assert torch.equal(embed.centre_crop(1.0)(images), images)
    for area in embed.KEPT_AREAS:
        side = max(2, round(24 * area**0.5))
        start = (24 - side) // 2
        expected = tv.resized_crop(images, start, start, side, side, [24, 24], antialias=True)
        torch.testing.assert_close(embed.centre_crop(area)(images), expected, rtol=0, atol=2e-5)


def test_a_square_crop_keeps_the_square_at_its_place():
    images = noise(size=16)
    for top, left in ((0, 0), (0.25, 0.5), (0.5, 0.5)):
        row = int(16 * top)
        column = int(16 * left)
        expected = views.resize(images[:, :, row : row + 8, column : column + 8], 16)
        torch.testing.assert_close(embed.square_crop(top, left)(images), expected)
    assert embed.pixels_of_square(0.99, 0.98, 0.01, 32) == (30, 30, 2)  # two pixels, and inside


def test_blur_is_torchvisions():
    images = noise()
    assert embed.blur(0.0)(images) is images
    expected = tv.gaussian_blur(images, [13, 13], [2.0, 2.0])
    torch.testing.assert_close(embed.blur(2.0)(images), expected, rtol=0, atol=1e-5)


# --------------------------------------------------------------------------------------- embedding
def test_embed_images_equals_direct_computation_and_restores_the_mode():
    method = Method().train()
    method.frozen.eval()
    generator = np.random.default_rng(0)
    pixels = generator.integers(256, size=(25, 6, 6, 3), dtype=np.uint8)
    images = ImageSet("random", "test", pixels, generator.integers(3, size=25), ["a", "b", "c"])
    embedded = embed.embed_images(method, images, batch_size=7)
    assert method.training and method.network[3].training and not method.frozen.training
    method.eval()
    with torch.no_grad():
        expected = method.network(images.batch(np.arange(25)).float() / 255)
    np.testing.assert_allclose(embedded["features"], expected, atol=1e-6)
    np.testing.assert_allclose(embedded["uncertainty"], -expected.norm(dim=1), atol=1e-6)
    np.testing.assert_allclose(embedded["kappa"], expected.exp()[:, 0], rtol=1e-5)
    np.testing.assert_array_equal(embedded["label"], images.labels)
    assert embed.native_names(embedded) == ["kappa"]
