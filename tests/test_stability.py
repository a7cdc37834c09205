"""Every method over many steps: finite at ten times its learning rate, κ bounded, collapse seen, bfloat16 like float32, one seed the same twice."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from lib import methods, networks
from lib.data import views as augmentations
from lib.methods import simsiam
from lib.methods.base import forward_by_size, spread
from lib.runs import settings as resolution
from lib.runs import store as artifacts
from lib.training import loop as training

TRAINED = [name for name in methods.METHODS if resolution.recipe(name)["epochs"]]
EPOCHS = 6


def digits(method, **changed):
    return resolution.resolve(method, "smoke", train_images=640, batch_size=64, **changed)


def test_the_same_seed_gives_the_same_weights(tmp_path, monkeypatch):
    """Bit for bit, on one machine; another processor adds up in another order."""
    weights = {}
    for sitting, seed in (("first", 0), ("again", 0), ("other", 1)):
        monkeypatch.setattr(artifacts, "RESULTS", tmp_path / sitting)
        weights[sitting] = artifacts.read_tensors(
            training.train(digits("vi_simsiam", seed=seed)) / "model.safetensors"
        )[0]
    assert all(
        torch.equal(value, weights["again"][name]) for name, value in weights["first"].items()
    )
    assert not all(
        torch.equal(value, weights["other"][name]) for name, value in weights["first"].items()
    )


@pytest.mark.long
@pytest.mark.parametrize("method", TRAINED)
def test_ten_times_the_learning_rate_stays_finite(method):
    """Losses, weights and embeddings are finite after 60 steps, no outputs have collapsed, and κ keeps its bound."""
    usual = digits(method)
    settings = digits(method, epochs=EPOCHS, learning_rate=10 * usual["learning_rate"])
    folder = training.train(settings)  # none collapses, which would stop it
    log = pd.read_csv(folder / "log.csv")
    of_every_row = [
        name for name in log if name not in ("effective_rank", "feature_spread")
    ]  # those two stand at the end of an epoch
    assert np.isfinite(log[of_every_row].to_numpy(float)).all()
    network = training.load_trained(settings, 1)
    assert all(value.isfinite().all() for value in network.state_dict().values())
    images = training.training_images(settings)
    embedding = network.embed(
        augmentations.resize(images.batch(range(128)).float() / 255, settings["image_size"])
    )
    assert embedding.features.isfinite().all()
    for name, values in embedding.native.items():
        assert values.isfinite().all(), f"{method}'s {name} is not finite"
    if "kappa" in embedding.native:
        highest = (settings["dimension"] - 1) * networks.MAX_COSINE / (1 - networks.MAX_COSINE)
        assert (embedding.native["kappa"] >= 0).all() and (
            embedding.native["kappa"] <= 1.001 * highest
        ).all()


class PullTogether(simsiam.SimSiam):
    """SimSiam without predictor, stop-gradient and the batch norm of its projections: nothing is left that holds images apart."""

    def __init__(self, settings, channels):
        super().__init__(settings, channels)
        self.projector = torch.nn.Linear(self.backbone.features, settings["dimension"])

    def loss(self, views):
        (z1, _), (z2, _) = forward_by_size(self, views)
        return {"loss": -F.cosine_similarity(z1, z2).mean(), "spread": spread(z1)}


def test_a_collapse_is_seen_within_an_epoch_and_its_measure_named(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "simsiam", PullTogether)
    settings = digits("simsiam", epochs=40, learning_rate=0.3)
    with pytest.raises(
        training.TrainingStopped, match=r"collapsed to one point at step \d+ \(spread .* of 1\)"
    ):
        training.train(settings)
    assert not (
        artifacts.run_dir("smoke", resolution.run_name(settings)) / "model.safetensors"
    ).exists()


@pytest.mark.long
@pytest.mark.parametrize("method", TRAINED)
def test_bfloat16_starts_like_float32(method):
    """The first loss, of the same weights and views, within 3 % or 0.03: the eight bits of bfloat16's mantissa, averaged over a batch."""
    losses = {}
    for precision in ("float32", "bf16"):
        settings = digits(method, precision=precision)
        images = training.training_images(settings)
        torch.manual_seed(0)
        network = methods.build(settings, 1)
        losses[precision] = next(training.first_steps(network, images, settings, 1))["loss"]
    assert math.isfinite(losses["bf16"]) and losses["bf16"] == pytest.approx(
        losses["float32"], rel=0.03, abs=0.03
    )
