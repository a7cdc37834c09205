"""Every method over many steps: finite at ten times its rate, and bfloat16 like float32."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from lib import methods, networks
from lib.data.views import resize
from lib.methods import simsiam
from lib.methods.base import forward_by_size, spread
from lib.runs.settings import recipe, resolve
from lib.training.batches import training_images
from lib.training.checkpoints import load_trained
from lib.training.health import TrainingStopped
from lib.training.loop import first_steps, train

TRAINED = [name for name in methods.METHODS if recipe(name)["epochs"]]
EPOCHS = 6


def digits(method, **changed):
    return resolve(method, "smoke", train_images=640, batch_size=64, **changed)


@pytest.mark.long
@pytest.mark.parametrize("method", TRAINED)
def test_ten_times_the_learning_rate_stays_finite(method):
    """Losses, weights and embeddings are finite after 60 steps, and κ keeps its bound."""
    rate = digits(method)["learning_rate"]
    settings = digits(method, epochs=EPOCHS, learning_rate=10 * rate)
    log = pd.read_csv(train(settings) / "log.csv")
    assert np.isfinite(log.dropna(axis=1).to_numpy(float)).all()
    assert log["loss"].notna().all()

    network = load_trained(settings, 1)
    images = training_images(settings).batch(range(128)).float() / 255
    embedding = network.embed(resize(images, settings["image_size"]))
    assert embedding.features.isfinite().all()
    for name, values in embedding.native.items():
        assert values.isfinite().all(), name
    if "kappa" in embedding.native:
        bound = (settings["dimension"] - 1) * networks.MAX_COSINE / (1 - networks.MAX_COSINE)
        assert embedding.native["kappa"].min() >= 0
        assert embedding.native["kappa"].max() <= 1.001 * bound


class PullTogether(simsiam.SimSiam):
    """SimSiam without predictor, stop-gradient and batch norm: nothing keeps the outputs apart."""

    def __init__(self, settings, channels):
        super().__init__(settings, channels)
        self.projector = torch.nn.Linear(self.backbone.features, settings["dimension"])

    def loss(self, views):
        (z1, _), (z2, _) = forward_by_size(self, views)
        return {"loss": -F.cosine_similarity(z1, z2).mean(), "spread": spread(z1)}


def test_a_real_collapse_stops_the_run(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "simsiam", PullTogether)
    with pytest.raises(TrainingStopped, match="collapsed to one point"):
        train(digits("simsiam", epochs=40, learning_rate=0.3))


@pytest.mark.long
@pytest.mark.parametrize("method", TRAINED)
def test_bfloat16_starts_like_float32(method):
    """The first loss within 3 % or 0.03: the eight bits of bfloat16, averaged over a batch."""
    losses = {}
    for precision in ("float32", "bf16"):
        settings = digits(method, precision=precision)
        torch.manual_seed(0)
        steps = first_steps(methods.build(settings, 1), training_images(settings), settings, 1)
        losses[precision] = next(steps)["loss"]
    assert math.isfinite(losses["bf16"])
    assert losses["bf16"] == pytest.approx(losses["float32"], rel=0.03, abs=0.03)
