"""lib.evaluation.generation on latents whose images are known."""

import copy
import socket

import numpy as np
import pytest
import torch

from lib import methods, training
from lib.data import sources as data
from lib.evaluation import generation
from lib.evaluation import measure as protocol
from lib.evaluation import style as factors
from lib.runs import settings
from lib.runs import store as artifacts

SETTINGS = {"backbone": "mlp", "image_size": 8}


def drawn(n=400, seed=0):
    """Latents [N, 3] far from zero and of unlike scale, and images [N, 1, 8, 8] that they determine: a level, and two bars."""
    z = np.random.default_rng(seed).uniform(0, 1, size=(n, 3)).astype(np.float32)
    pixels = np.zeros((n, 1, 8, 8), np.float32) + 0.2 * z[:, 0, None, None, None]
    pixels[:, 0, :, :3] += 0.7 * z[:, 1, None, None]
    pixels[:, 0, 5:, :] += 0.7 * z[:, 2, None, None]
    return z * [100, 1, 0.01] + [500, 0, 3], torch.from_numpy(pixels.clip(0, 1))


def test_a_decoder_learns_the_images_of_frozen_features(monkeypatch):
    monkeypatch.setitem(generation.PAPER_DECODER, "learning_rate", 3e-3)
    z, pixels = drawn()
    decoder = generation.fit_decoder(z, pixels, SETTINGS, epochs=15)
    test_z, test_pixels = drawn(100, seed=1)
    assert (
        generation.decode(decoder, test_z) - test_pixels
    ).square().mean() < 0.15 * test_pixels.var(0).mean()
    again = generation.fit_decoder(z, pixels, SETTINGS, epochs=15)
    assert torch.equal(
        generation.decode(decoder, test_z), generation.decode(again, test_z)
    )  # follows its seed
    assert not decoder.training


def test_the_weights_of_least_validation_error_are_kept(monkeypatch):
    z, pixels = drawn(60)
    errors, states = iter([3.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0, 0.5]), []
    monkeypatch.setattr(
        generation,
        "mse",
        lambda decoder, *_: states.append(decoder.network[0].weight.clone()) or next(errors),
    )
    decoder = generation.fit_decoder(z, pixels, SETTINGS)
    assert len(states) == 2 + generation.PATIENCE and torch.equal(
        decoder.network[0].weight, states[1]
    )


def test_a_decoder_says_how_far_it_is_until_it_is_done(tmp_path, monkeypatch):
    z, pixels = drawn(600)
    told, write = [], artifacts.write_json
    monkeypatch.setattr(
        artifacts, "write_json", lambda path, state: told.append(state) or write(path, state)
    )
    generation.fit_decoder(z, pixels, SETTINGS, epochs=2, progress_path=tmp_path / "progress.json")
    assert (
        told[-1]["run"] == "decoder of 600 images"
        and (told[-1]["step"], told[-1]["steps"]) == (10, 10)
        and told[-1]["loss"] > 0
    )
    assert not any(tmp_path.iterdir())


def test_a_vae_decodes_by_its_mean_image():
    recipe = (
        settings.recipe("vae")
        | SETTINGS
        | {"method": "vae", "seed": 0, "representation": 3, "likelihood": "bernoulli"}
    )
    vae = methods.build(recipe, 1).train()
    z = torch.randn(5, 3)
    torch.testing.assert_close(
        generation.decode(vae, z.numpy(), batch_size=2), vae.eval().picture(z).detach()
    )


def test_what_is_reconstructed_is_what_the_encoder_sees():
    images = torch.rand(2, 1, 4, 4)
    assert torch.equal(generation.target_pixels({"binarise": 0.5}, images), (images > 0.5).float())
    assert torch.equal(generation.target_pixels({}, images), images)


def test_samples_of_a_class_have_its_mean_and_covariance():
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(2, 3, 3))
    features = np.concatenate([generator.normal(size=(500, 3)) @ mixing[k] + 5 * k for k in (0, 1)])
    labels = np.repeat([4, 9], 500)
    drawn, named = generation.sample_classes(features, labels, 20_000)
    assert drawn.shape == (40_000, 3) and named.tolist() == [4] * 20_000 + [9] * 20_000
    for name in (4, 9):
        own, sample = features[labels == name], drawn[named == name]
        np.testing.assert_allclose(sample.mean(0), own.mean(0), atol=0.1)
        np.testing.assert_allclose(np.cov(sample.T), np.cov(own.T), rtol=0.1, atol=0.2)
    with pytest.raises(ValueError, match="Class 1 has 1 image"):
        generation.sample_classes(features[:3], np.array([0, 0, 1]), 2)


def test_interpolation_is_straight():
    first, second = np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)
    path = generation.interpolate(first, second, 5)
    assert (
        path.shape == (2, 5, 3)
        and np.array_equal(path[:, 0], first)
        and np.array_equal(path[:, -1], second)
        and path[0, 1, 0] == 0.25
    )


def test_what_cannot_be_decoded_is_refused():
    with pytest.raises(ValueError, match="at least 20, got 30 and 29"):
        generation.fit_decoder(np.zeros((30, 2)), torch.zeros(29, 1, 8, 8), SETTINGS)
    with pytest.raises(ValueError, match="features has 60 NaN or infinite values of 60"):
        generation.fit_decoder(np.full((30, 2), np.nan), torch.zeros(30, 1, 8, 8), SETTINGS)
    with pytest.raises(ValueError, match="go from 0 to 255; floats in 0..1: divide bytes by 255"):
        generation.fit_decoder(
            np.zeros((30, 2)), torch.linspace(0, 255, 30 * 64).reshape(30, 1, 8, 8), SETTINGS
        )
    with pytest.raises(ValueError, match="These images are uint8 of shape"):
        generation.fid(
            {"bytes": torch.zeros(2, 1, 8, 8, dtype=torch.uint8)},
            torch.zeros(2, 1, 8, 8),
            "no weights",
        )
    with pytest.raises(ValueError, match="epochs is 0"):
        generation.fit_decoder(np.zeros((30, 2)), torch.zeros(30, 1, 8, 8), SETTINGS, epochs=0)
    with pytest.raises(ValueError, match=r"labels must be \[N\] = \[3\], got shape \(2,\)"):
        generation.sample_classes(np.zeros((3, 2)), np.zeros(2), 1)


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """A file of Inception-v3's weights, drawn: the real ones need the network."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    folder = tmp_path_factory.mktemp("inception")
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        patch.setattr(
            "torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url",
            lambda *_, **__: {},
        )
        patch.setattr(torch.nn.Module, "load_state_dict", lambda *_, **__: None)
        network = FeatureExtractorInceptionV3("drawn", ["2048"])
    torch.save(network.state_dict(), folder / "drawn.pth")
    return network.eval(), folder / "drawn.pth"


def test_fid_is_the_distance_in_the_features_of_inception(inception):
    network, path = inception
    generator = torch.Generator().manual_seed(0)
    real, other = (torch.rand(12, 1, 16, 16, generator=generator) for _ in range(2))
    found = generation.fid({"the same": real, "other": other}, real, path, batch_size=5)
    grey = [(255 * images).round().byte().expand(-1, 3, -1, -1) for images in (other, real)]
    with torch.no_grad():
        expected = factors.frechet_distance(*(network(images)[0].numpy() for images in grey))
    assert found["other"] == pytest.approx(expected, rel=1e-3)
    assert abs(found["the same"]) < 1e-3 * expected


def test_weights_of_inception_are_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    assert data.inception_weights() is None
    (tmp_path / data.INCEPTION).write_bytes(b"short")
    with pytest.raises(
        ValueError, match="is damaged: its sha256 does not begin with 6726825d. Delete it"
    ):
        data.inception_weights()


def test_weights_that_cannot_be_fetched_say_where_to_put_them(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DATA_DIR", str(tmp_path))

    def offline(*_, **__):
        raise OSError(f"no route to host in {socket.getdefaulttimeout():g} s")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    assert data.main(["fetch", "inception"]) == 1 and not any(tmp_path.iterdir())
    assert (
        f"no route to host in {data.NETWORK_TIMEOUT} s); put that file at {tmp_path / data.INCEPTION} by hand"
        in capsys.readouterr().err
    )


# ---------------------------------------------------------------------------------------------------------------- of a run
def test_decoders_are_the_vaes_own_or_trained_once_on_frozen_features(vae_run, monkeypatch, tiny):
    assert generation.decoder_of(vae_run) is vae_run.method
    bare = settings.resolve(
        "random_latent", "smoke", **(tiny | {"representation": 6, "image_size": 16})
    )
    training.train(bare)
    decoder = generation.decoder_of(protocol.Run(bare))
    asked = []
    monkeypatch.setattr(
        generation, "fit_decoder", lambda *given, **more: asked.append(given[4]) or decoder
    )
    stored = generation.decoder_of(protocol.Run(bare))
    assert not asked and all(
        torch.equal(stored.state_dict()[name], value)
        for name, value in decoder.state_dict().items()
    )
    generation.decoder_of(protocol.Run(bare | {"decoder_epochs": 7}))
    generation.decoder_of(protocol.Run(bare | {"decoder_epochs": 7}))
    assert asked == [7], "what is stored was trained for another time"
    monkeypatch.setattr(artifacts, "code_hash", lambda source: "another")
    generation.decoder_of(protocol.Run(bare | {"decoder_epochs": 7}))
    assert asked == [7, 7], "the code was edited"


def test_a_vae_without_its_weights_has_no_decoder(vae_run):
    """Its committed encoder answers for the run, but an encoder alone draws no images."""
    without = protocol.Run(vae_run.settings)
    without.method = copy.deepcopy(vae_run.method)
    del without.method.decoder  # as lib.load leaves it
    with pytest.raises(
        FileNotFoundError,
        match=f"{vae_run.name} only the committed encoder is here, not its decoder; train it: make reproduce",
    ):
        generation.decoder_of(without)


def test_generation_is_measured_beside_training_images(vae_run, run):
    frame = generation.measure_generation(vae_run, run, "41_test").set_index(
        ["condition", "metric"]
    )
    test = vae_run.embed(vae_run.test())
    expected = (
        (
            vae_run.method.picture(torch.from_numpy(test["features"]))
            - generation.pixels_of(vae_run, vae_run.test())
        )
        .square()
        .mean()
        .item()
    )
    assert frame.value["reconstructed", "mse"] == pytest.approx(expected, rel=1e-4)
    distance = frame.xs("frechet_distance", level="metric")
    assert set(distance.index) == {"generated", "reconstructed", "train"} and set(
        distance.score
    ) == {run.name}
    assert (
        0 <= distance.value["train"] < distance.value["reconstructed"]
        and 0 < distance.value["generated"]
    )
    alone = generation.measure_generation(vae_run, None, "41_without_judge")
    assert (
        alone.metric.tolist() == ["mse"]
        and alone.value.iloc[0] == frame.value["reconstructed", "mse"]
    )
