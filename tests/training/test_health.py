"""What the log says of features and κ, and that looking changes nothing."""

import math

import pytest
import torch

from lib import methods
from lib.data.views import resize
from lib.evaluation import uncertainty
from lib.training import health
from lib.training.batches import training_images
from lib.training.checkpoints import load_trained
from lib.training.health import TrainingStopped, effective_rank
from lib.training.loop import train
from tests.training.tiny_runs import equal, log_of, tiny, weights

pytestmark = pytest.mark.usefixtures("data_dir")


def test_weights_and_buffers_that_are_not_finite_stop_the_run(tmp_path):
    layer = torch.nn.BatchNorm1d(3)
    health.check_finite({"loss": 1.0}, layer, "a run", 5, tmp_path / "none")
    layer.running_var[1] = math.inf
    with pytest.raises(TrainingStopped, match="a run.*weights at step 5; no checkpoint"):
        health.check_finite({"loss": 1.0}, layer, "a run", 5, tmp_path / "none")


@pytest.mark.parametrize("shape", [(40, 8), (8, 40)])
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_effective_rank_is_that_of_the_uncertainty_measures(shape, scale):
    features = scale * torch.randn(shape) + 3 * scale
    expected = uncertainty.effective_rank(features.numpy())
    assert effective_rank(features) == pytest.approx(expected, rel=1e-9)
    assert math.isnan(effective_rank(torch.full((10, 3), 0.1)))


def test_the_log_has_the_features_of_the_trained_network():
    settings = tiny("vi_simsiam", epochs=1)
    train(settings)
    images = training_images(settings).batch(range(160)).float() / 255
    with torch.no_grad():
        embedding = load_trained(settings, 1).embed(resize(images, settings["image_size"]))
    length = embedding.features.norm(dim=1)
    expected = {
        "effective_rank": effective_rank(embedding.features),
        "feature_length": length.mean(),
        "feature_length_spread": length.std() / length.mean(),
        "kappa_plain": embedding.native["kappa"].mean(),
    }
    last = log_of(settings).iloc[-1]
    for name, value in expected.items():
        assert last[name] == pytest.approx(float(value), rel=1e-4), name


class Sharpness(torch.nn.Module):
    """κ is the mean contrast of neighbouring pixels, so that blurred images have less."""

    def embed(self, images):
        contrast = images.diff(dim=3).abs().mean((1, 2, 3))
        return methods.Embedding(images.flatten(1), -contrast, {"kappa": contrast})


def test_kappa_of_crops_and_blurred_images():
    images = training_images(tiny(train_images=300))
    row = health.kappa_health(Sharpness(), images, 16)
    # A crop of a tenth of the area is magnified three times: its edges are as much smoother.
    assert row["kappa_blurred"] < 0.9 * row["kappa_plain"]
    assert 0.1 * row["kappa_plain"] < row["kappa_cropped"] < 0.8 * row["kappa_plain"]
    torch.manual_seed(5)
    assert health.kappa_health(Sharpness(), images, 16) == row


def test_looking_changes_no_weight(fresh_results, monkeypatch):
    settings = tiny("vi_simsiam", epochs=1)
    train(settings)
    expected = weights(settings)
    fresh_results("unwatched")
    monkeypatch.setattr(health, "logs_kappa", lambda *_: False)
    monkeypatch.setattr(health, "feature_health", lambda _: {})
    train(settings)
    assert "kappa_plain" not in log_of(settings)
    assert equal(weights(settings), expected)
