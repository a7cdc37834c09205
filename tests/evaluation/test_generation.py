"""lib.evaluation.generation on latents whose images are known."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d
from torchmetrics.image.fid import FrechetInceptionDistance

from lib import training
from lib.evaluation import generation, measure
from lib.evaluation.style import frechet_distance
from lib.runs import settings

SETTINGS = {"backbone": "mlp", "image_size": 8}


def drawn_images(count=400, seed=0):
    """Latents [N, 3] of unlike mean and scale, and the images [N, 1, 8, 8] that they determine."""
    z = np.random.default_rng(seed).uniform(0, 1, size=(count, 3)).astype(np.float32)
    pixels = np.zeros((count, 1, 8, 8), np.float32)
    pixels += 0.2 * z[:, 0, None, None, None]  # a level
    pixels[:, 0, :, :3] += 0.7 * z[:, 1, None, None]  # and two bars
    pixels[:, 0, 5:, :] += 0.7 * z[:, 2, None, None]
    return z * [100, 1, 0.01] + [500, 0, 3], torch.from_numpy(pixels.clip(0, 1))


def test_a_decoder_learns_the_images_of_frozen_features(monkeypatch):
    monkeypatch.setitem(generation.PAPER_DECODER, "learning_rate", 3e-3)
    z, pixels = drawn_images()
    test_z, test_pixels = drawn_images(100, seed=1)
    decoder = generation.fit_decoder(z, pixels, SETTINGS, epochs=15)
    variance = test_pixels.var(0).mean().item()
    assert generation.mse(decoder, test_z, test_pixels) < 0.15 * variance


def test_the_weights_with_the_lowest_validation_error_are_kept(monkeypatch):
    errors = iter([3.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 0.5])
    weights = []

    def mse(decoder, *_):
        weights.append(decoder.network[0].weight.clone())
        return next(errors)

    with monkeypatch.context() as patch:
        patch.setattr(generation, "mse", mse)
        decoder = generation.fit_decoder(*drawn_images(60), SETTINGS)
    assert len(weights) == 2 + generation.PATIENCE
    assert torch.equal(decoder.network[0].weight, weights[1])
    again = generation.fit_decoder(*drawn_images(60), SETTINGS, epochs=1)
    assert torch.equal(again.network[0].weight, weights[0]), "it follows its seed"


def test_samples_of_a_class_have_its_mean_and_covariance():
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(2, 3, 3))
    first = generator.normal(size=(500, 3)) @ mixing[0]
    second = generator.normal(size=(500, 3)) @ mixing[1] + 5
    labels = np.repeat([4, 9], 500)
    latents, classes = generation.sample_classes(np.concatenate([first, second]), labels, 20_000)
    assert latents.shape == (40_000, 3)
    for label, members in ((4, first), (9, second)):
        sample = latents[classes == label]
        np.testing.assert_allclose(sample.mean(0), members.mean(0), atol=0.1)
        np.testing.assert_allclose(np.cov(sample.T), np.cov(members.T), rtol=0.1, atol=0.2)


def first_pixels(images):
    """Features [N, 9] of bytes [N, 3, S, S], in place of those of Inception."""
    assert images.dtype == torch.uint8
    return adaptive_avg_pool2d(images[:, 1].float(), 3).flatten(1)


def test_fid_is_the_frechet_distance_of_features_of_coloured_bytes(monkeypatch):
    extractor = torch.nn.Module()
    extractor.forward = first_pixels

    def metric(reset_real_features, **_):
        return FrechetInceptionDistance(extractor, reset_real_features=reset_real_features)

    monkeypatch.setattr("torchmetrics.image.fid.FrechetInceptionDistance", metric)
    real, other = torch.rand(2, 60, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    distances = generation.fid({"same": real, "other": other}, real, "weights", batch_size=25)
    features = []
    for images in (other, real):
        colour = (255 * images).round().byte().expand(-1, 3, -1, -1)
        features.append(first_pixels(colour).numpy())
    assert distances["other"] == pytest.approx(frechet_distance(*features), rel=1e-3)
    assert abs(distances["same"]) < 1e-3 * distances["other"]


# ----------------------------------------------------------------------------------------- of a run
def test_an_encoder_without_decoder_gets_one_that_is_trained_once(vae_run, monkeypatch, tiny):
    assert generation.decoder_of(vae_run) is vae_run.method
    latent = tiny | {"representation": 6, "image_size": 16}
    bare = settings.resolve("random_latent", "smoke", **latent)
    training.train(bare)
    decoder = generation.decoder_of(measure.Run(bare))
    trained = []

    def fit_decoder(features, pixels, settings, seed, epochs, progress_path):
        trained.append(epochs)
        return decoder

    monkeypatch.setattr(generation, "fit_decoder", fit_decoder)
    stored = generation.decoder_of(measure.Run(bare))
    assert not trained
    torch.testing.assert_close(stored.state_dict(), decoder.state_dict(), rtol=0, atol=0)
    longer = bare | {"decoder_epochs": 7}
    generation.decoder_of(measure.Run(longer))
    generation.decoder_of(measure.Run(longer))
    assert trained == [7]


def test_generation_is_measured_beside_training_images(vae_run, run):
    frame = pd.DataFrame(generation.measure_generation(vae_run, run))
    values = frame.set_index(["condition", "metric"]).value
    features = torch.from_numpy(vae_run.embed(vae_run.test())["features"])
    difference = vae_run.method.picture(features) - generation.pixels_of(vae_run, vae_run.test())
    mse = difference.square().mean().item()
    assert values["reconstructed", "mse"] == pytest.approx(mse, rel=1e-4)
    distances = values.xs("frechet_distance", level="metric")
    assert set(distances.index) == {"generated", "reconstructed", "train"}
    assert 0 <= distances["train"] < distances["reconstructed"]
    assert distances["generated"] > 0
    without_judge = pd.DataFrame(generation.measure_generation(vae_run, None))
    assert without_judge.metric.tolist() == ["mse"]
    assert without_judge.value.iloc[0] == values["reconstructed", "mse"]
