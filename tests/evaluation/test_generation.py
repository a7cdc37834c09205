"""lib.evaluation.generation on latents whose images are known."""

import copy
import socket

import numpy as np
import pandas as pd
import pytest
import torch

from lib import methods, training
from lib.data import sources
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


def test_a_decoder_learns_the_images_of_frozen_features(monkeypatch, tmp_path):
    monkeypatch.setitem(generation.PAPER_DECODER, "learning_rate", 3e-3)
    z, pixels = drawn_images()
    test_z, test_pixels = drawn_images(100, seed=1)
    progress_path = tmp_path / "progress.json"
    decoder = generation.fit_decoder(z, pixels, SETTINGS, epochs=15, progress_path=progress_path)
    images = generation.decode(decoder, test_z)
    variance = test_pixels.var(0).mean().item()
    assert generation.mse(decoder, test_z, test_pixels) < 0.15 * variance
    again = generation.fit_decoder(z, pixels, SETTINGS, epochs=15)
    assert torch.equal(generation.decode(again, test_z), images), "it follows its seed"
    assert not decoder.training
    assert not progress_path.exists(), "it is deleted at the end"


def test_the_weights_with_the_lowest_validation_error_are_kept(monkeypatch):
    errors = iter([3.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 0.5])
    weights = []

    def mse(decoder, *_):
        weights.append(decoder.network[0].weight.clone())
        return next(errors)

    monkeypatch.setattr(generation, "mse", mse)
    decoder = generation.fit_decoder(*drawn_images(60), SETTINGS)
    assert len(weights) == 2 + generation.PATIENCE
    assert torch.equal(decoder.network[0].weight, weights[1])


def test_a_vae_decodes_by_its_mean_image():
    own = {"method": "vae", "seed": 0, "representation": 3, "likelihood": "bernoulli"}
    vae = methods.build(settings.recipe("vae") | SETTINGS | own, 1).train()
    z = torch.randn(5, 3)
    images = generation.decode(vae, z.numpy(), batch_size=2)
    torch.testing.assert_close(images, vae.eval().picture(z).detach())


def test_reconstructions_are_compared_with_the_encoders_input():
    images = torch.rand(2, 1, 4, 4)
    binary = generation.target_pixels({"binarise": 0.5}, images)
    assert torch.equal(binary, (images > 0.5).float())
    assert torch.equal(generation.target_pixels({}, images), images)


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
        assert len(sample) == 20_000
        np.testing.assert_allclose(sample.mean(0), members.mean(0), atol=0.1)
        np.testing.assert_allclose(np.cov(sample.T), np.cov(members.T), rtol=0.1, atol=0.2)


def test_wrong_arguments_are_refused():
    images = torch.zeros(30, 1, 8, 8)
    with pytest.raises(ValueError, match="at least 20, got 30 and 29"):
        generation.fit_decoder(np.zeros((30, 2)), images[:29], SETTINGS)
    with pytest.raises(ValueError, match="60 NaN or infinite values"):
        generation.fit_decoder(np.full((30, 2), np.nan), images, SETTINGS)
    with pytest.raises(ValueError, match="divide bytes by 255"):
        generation.fit_decoder(np.zeros((30, 2)), images + 255, SETTINGS)
    with pytest.raises(ValueError, match="epochs is 0"):
        generation.fit_decoder(np.zeros((30, 2)), images, SETTINGS, epochs=0)
    with pytest.raises(ValueError, match="These images are uint8"):
        generation.fid({"bytes": images.byte()}, images, "no weights")
    with pytest.raises(ValueError, match="labels must be"):
        generation.sample_classes(np.zeros((3, 2)), np.zeros(2), 1)
    with pytest.raises(ValueError, match="Class 1 has 1 image"):
        generation.sample_classes(np.zeros((3, 2)), np.array([0, 0, 1]), 2)


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """Inception-v3 with random weights, and their file: the real ones need a download."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    download = "torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url"
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        patch.setattr(download, lambda *_, **__: {})
        patch.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: None)
        network = FeatureExtractorInceptionV3("random", ["2048"])
    torch.save(network.state_dict(), path)
    return network.eval(), path


def test_fid_is_the_distance_in_the_features_of_inception(inception):
    network, path = inception
    generator = torch.Generator().manual_seed(0)
    real = torch.rand(12, 1, 16, 16, generator=generator)
    other = torch.rand(12, 1, 16, 16, generator=generator)
    distances = generation.fid({"same": real, "other": other}, real, path, batch_size=5)
    features = []
    for images in (other, real):
        colour = (255 * images).round().byte().expand(-1, 3, -1, -1)
        with torch.no_grad():
            features.append(network(colour)[0].numpy())
    expected = frechet_distance(*features)
    assert distances["other"] == pytest.approx(expected, rel=1e-3)
    assert abs(distances["same"]) < 1e-3 * expected


def test_damaged_weights_of_inception_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    assert sources.inception_weights() is None
    (tmp_path / sources.INCEPTION).write_bytes(b"short")
    with pytest.raises(ValueError, match="is damaged"):
        sources.inception_weights()


def test_a_failed_download_says_where_to_put_the_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DATA_DIR", str(tmp_path))

    def offline(*_, **__):
        raise OSError(f"no route to host in {socket.getdefaulttimeout():g} s")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    assert sources.main(["fetch", "inception"]) == 1
    assert not any(tmp_path.iterdir())
    message = capsys.readouterr().err
    assert f"no route to host in {sources.NETWORK_TIMEOUT} s" in message
    assert str(tmp_path / sources.INCEPTION) in message


# ----------------------------------------------------------------------------------------- of a run
def test_an_encoder_without_decoder_gets_one_that_is_trained_once(vae_run, monkeypatch, tiny):
    assert generation.decoder_of(vae_run) is vae_run.method
    own = {"representation": 6, "image_size": 16}
    bare = settings.resolve("random_latent", "smoke", **(tiny | own))
    training.train(bare)
    decoder = generation.decoder_of(measure.Run(bare))
    trained = []

    def fit_decoder(features, pixels, settings, seed, epochs, progress_path):
        trained.append(epochs)
        return decoder

    monkeypatch.setattr(generation, "fit_decoder", fit_decoder)
    stored = generation.decoder_of(measure.Run(bare))
    assert not trained
    for name, value in decoder.state_dict().items():
        assert torch.equal(stored.state_dict()[name], value)
    longer = bare | {"decoder_epochs": 7}
    generation.decoder_of(measure.Run(longer))
    generation.decoder_of(measure.Run(longer))
    assert trained == [7]
    monkeypatch.setattr(generation, "EVALUATION_VERSION", 99)
    generation.decoder_of(measure.Run(longer))
    assert trained == [7, 7], "evaluation has another version"


def test_a_vae_without_its_weights_has_no_decoder(vae_run):
    encoder_only = measure.Run(vae_run.settings)
    encoder_only.method = copy.deepcopy(vae_run.method)
    del encoder_only.method.decoder  # as lib.load leaves it
    with pytest.raises(FileNotFoundError, match=vae_run.name):
        generation.decoder_of(encoder_only)


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
