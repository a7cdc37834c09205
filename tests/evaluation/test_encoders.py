"""lib.evaluation.encoders: committed encoders, their cards, and likeness to their training sets."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

import lib
from lib import training
from lib.evaluation import encoders, measure
from lib.runs import store


@pytest.fixture
def encoder(run, frame, monkeypatch):
    """The smoke run's encoder, where standard's would be."""
    monkeypatch.setattr(run, "profile", "standard")
    path = encoders.write(run, frame)
    yield path
    for file in path.parent.iterdir():
        file.unlink()


def test_an_encoder_embeds_as_its_run_does(run, encoder):
    loaded = lib.load("vi_simsiam")
    images = run.test().batch(np.arange(50)).float() / 255
    with torch.no_grad():
        expected = run.method.embed(images)
    ours = loaded.embed(images)
    torch.testing.assert_close(ours.features, expected.features, rtol=5e-3, atol=5e-3)
    torch.testing.assert_close(ours.native["kappa"], expected.native["kappa"], rtol=1e-2, atol=0)
    assert not loaded.training and {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded(images), ours.features)


def test_images_and_files_are_prepared_alike(encoder, tmp_path):
    loaded = lib.load("vi_simsiam")
    pixels = np.random.default_rng(0).integers(256, size=(9, 15, 3), dtype=np.uint8)
    wide = Image.fromarray(pixels)
    wide.save(tmp_path / "wide.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    wide.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    tensor = torch.from_numpy(pixels).movedim(-1, 0)
    expected = loaded.prepare(tensor[None])
    assert expected.shape == (1, 1, 9, 9)
    torch.testing.assert_close(loaded.prepare(tensor / 255), expected)
    files = loaded.prepare([tmp_path / "wide.png", str(tmp_path / "turned.png")])
    torch.testing.assert_close(files, expected.expand(2, -1, -1, -1), rtol=0, atol=1e-6)
    assert loaded.embed(files).features.shape == (2, loaded.method.backbone.features)


def test_a_run_without_weights_uses_its_own_encoder(run, encoder, monkeypatch):
    images = torch.rand(4, 1, 9, 9)
    expected = run.method.embed(images)
    monkeypatch.setattr(training, "is_finished", lambda *_: False)
    bare = measure.Run(run.settings)
    assert bare.is_available
    features = bare.method.embed(images).features
    torch.testing.assert_close(features, expected.features, rtol=5e-3, atol=5e-3)
    other = measure.Run(run.settings | {"seed": 1})
    assert not other.is_available
    with pytest.raises(FileNotFoundError, match="has no weights here"):
        bool(other.method)


def test_unlikeness_is_the_kolmogorov_smirnov_distance_to_test_images():
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(5, 5))
    train, test, other = generator.normal(size=(3, 4000, 5)) @ mixing + 3
    statistics = encoders.training_statistics(train, test)
    assert encoders.unlikeness(other, statistics) < 0.05
    for shifted in (2 * other - 3, 0.4 * other + 1.8, other + 9):
        reference, ours = (
            np.linalg.norm(np.linalg.solve(mixing.T, (x - 3).T), axis=0) for x in (test, shifted)
        )
        expected = stats.ks_2samp(reference, ours).statistic
        assert encoders.unlikeness(shifted, statistics) == pytest.approx(expected, abs=0.02)
        assert expected > encoders.UNLIKE


def test_statistics_are_those_of_their_encoder(encoder):
    statistics = encoders.statistics_beside(encoder)
    statistics["run_hash"] = np.array("another")
    store.write_npz(encoder.with_suffix(".npz"), **statistics)
    with pytest.raises(ValueError, match="another"):
        encoders.statistics_beside(encoder)
