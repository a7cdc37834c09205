"""lib.evaluation.encoders: committed encoders, their cards, and likeness to their training sets."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import lib
from lib import training
from lib.evaluation import encoders, measure
from lib.runs import settings, store


@pytest.fixture
def encoder(run, frame, monkeypatch):
    """The smoke run's encoder, where standard's would be."""
    monkeypatch.setattr(run, "profile", "standard")
    path = measure.write_encoder(run, frame)
    yield path
    for file in path.parent.iterdir():
        file.unlink()


def test_an_encoder_embeds_as_its_run_does(run, encoder):
    loaded = lib.load("vi_simsiam")
    parts = {name for name, _ in loaded.method.named_children()}
    assert parts == set(loaded.method.embeds_with)
    images = run.test().batch(np.arange(50)).float() / 255
    with torch.no_grad():
        expected = run.method.embed(images)
    ours = loaded.embed(images)
    torch.testing.assert_close(ours.features, expected.features, rtol=5e-3, atol=5e-3)
    torch.testing.assert_close(ours.native["kappa"], expected.native["kappa"], rtol=1e-2, atol=0)
    assert not loaded.training and {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded(images), ours.features)


def test_an_encoder_is_stored_in_float16_and_names_its_run(run, encoder):
    tensors, info = store.read_tensors(encoder)
    assert {name.split(".")[0] for name in tensors} == {"backbone", "concentration_head"}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16, torch.int64}
    assert info["run_hash"] == run.hash and info["channels"] == 1
    assert str(store.RESULTS) not in json.dumps(info)


def test_images_are_embedded_in_batches_and_any_precision(encoder):
    loaded = lib.load("vi_simsiam")
    images = torch.rand(7, 1, 9, 9)
    whole = loaded.embed(images)
    parts = loaded.embed(images, batch_size=3, device="cpu")
    torch.testing.assert_close(parts.features, whole.features)
    torch.testing.assert_close(parts.native["kappa"], whole.native["kappa"])
    assert whole.features.numpy().shape[0] == 7  # frozen: no graph behind it
    assert loaded.embed(images.double()).features.equal(whole.features)
    loaded.requires_grad_(True)
    assert loaded.embed(images).features.requires_grad


def test_an_encoder_can_be_exported_and_traced(encoder):
    loaded = lib.load("vi_simsiam")
    images = torch.rand(600, 1, 9, 9)
    expected = loaded(images)
    batch = {0: torch.export.Dim("batch", min=1)}
    exported = torch.export.export(loaded, (images[:4],), dynamic_shapes=(batch,))
    traced = torch.jit.trace(loaded, images[:4])
    for function in (exported.module(), traced):
        torch.testing.assert_close(function(images), expected)
        torch.testing.assert_close(function(images[:1]), expected[:1])


def test_images_and_files_are_prepared_alike(encoder, tmp_path):
    loaded = lib.load("vi_simsiam")
    pixels = np.random.default_rng(0).integers(256, size=(9, 15, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    turned = Image.fromarray(np.rot90(pixels).copy())
    turned.save(tmp_path / "turned.png", exif=exif)
    tensor = torch.from_numpy(pixels).movedim(-1, 0)
    expected = loaded.prepare(tensor[None])
    assert expected.shape == (1, 1, 9, 9)
    torch.testing.assert_close(loaded.prepare(tensor / 255), expected)
    files = loaded.prepare([tmp_path / "wide.png", str(tmp_path / "turned.png")])
    torch.testing.assert_close(files, expected.expand(2, -1, -1, -1), rtol=0, atol=1e-6)
    assert loaded.embed(files).features.shape == (2, loaded.method.backbone.features)


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((2, 1, 9, 9)),
        torch.zeros(2, 1, 9, 9, dtype=torch.uint8),
        torch.zeros(2, 3, 9, 9),
        torch.zeros(2, 1, 8, 8),
        torch.zeros(0, 1, 9, 9),
        torch.full((2, 1, 9, 9), 2.0),
        torch.full((2, 1, 9, 9), float("nan")),
    ],
)
def test_other_images_are_refused(encoder, images):
    with pytest.raises(ValueError, match="vi_simsiam was trained on 1 channels and 9 x 9"):
        lib.load("vi_simsiam").embed(images)


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


def test_a_card_has_the_stored_metrics(run, frame, encoder):
    card = encoders.card("vi_simsiam")
    knn = frame.query("metric == 'accuracy' and classifier == 'knn' and condition == 'clean'")
    ood = frame.query("metric == 'ood_auroc' and score == 'uncertainty'")
    for part in (run.name, run.hash, "[B, 1, 9, 9]", "digits (256 images)", "not used", "-κ"):
        assert part in card, part
    assert f"| accuracy | k-NN | {knn.value.item():.3f} |" in card
    assert f"| AUROC, OOD images of generated | uncertainty | {ood.value.item():.3f} |" in card


def test_committed_cards_are_those_of_the_committed_metrics(monkeypatch):
    monkeypatch.setattr(store, "RESULTS", store.ROOT / "results")
    paths = sorted((store.RESULTS / "standard" / "encoders").glob("*.safetensors"))
    assert paths
    for path in paths:
        info = store.read_tensors_info(path, encoders.INFO)
        config = store.read_json(store.config_path("standard", info["run"]))
        metrics = store.read_metrics("standard", store.SUITE, info["run"])
        card = measure.model_card(info, config["data"], metrics)
        assert path.with_suffix(".md").read_text() == card


def test_unlikeness_is_the_kolmogorov_smirnov_distance_to_test_images():
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(5, 5))

    def drawn(scale=1.0):
        return scale * generator.normal(size=(4000, 5)) @ mixing + 3

    train = drawn()
    test = drawn()
    same = drawn()
    wide = drawn(2.0)
    narrow = drawn(0.4)
    statistics = encoders.training_statistics(train, test)
    exact = np.linalg.norm(np.linalg.solve(mixing.T, (same - 3).T), axis=0) ** 2
    distances = encoders._distances(same, statistics)
    np.testing.assert_allclose(distances, exact, rtol=0.15, atol=0.15)

    of_wide = np.sort(encoders._distances(wide, statistics))
    of_test = encoders._distances(test, statistics)
    gaps = [abs(np.mean(of_test <= level) - np.mean(of_wide <= level)) for level in of_wide]
    assert encoders.unlikeness(wide, statistics) == pytest.approx(max(gaps), abs=0.02)
    assert encoders.unlikeness(same, statistics) < 0.05
    for other in (wide, narrow, same + 9):
        assert encoders.unlikeness(other, statistics) > encoders.UNLIKE


def test_statistics_are_those_of_their_encoder(encoder):
    statistics = encoders.statistics_beside(encoder)
    statistics["run_hash"] = np.array("another")
    store.write_npz(encoder.with_suffix(".npz"), **statistics)
    with pytest.raises(ValueError, match="another"):
        encoders.statistics_beside(encoder)


def test_the_codes_own_encoders_are_found_from_any_results_folder(encoder):
    assert encoders.stored() == {"vi_simsiam": encoder}
    moved = encoder.rename(encoder.with_name("moved"))
    assert {"vi_simsiam", "simclr"} <= set(encoders.stored())
    moved.rename(encoder)


def test_an_encoder_that_is_too_large_is_not_stored(run, frame, monkeypatch):
    monkeypatch.setattr(run, "profile", "standard")
    monkeypatch.setattr(measure, "MOST_ENCODER_BYTES", 1000)
    with pytest.warns(UserWarning, match="more than 1,000"):
        assert measure.write_encoder(run, frame) is None
    assert not store.encoder_path("vi_simsiam").exists()


def test_unknown_and_incomplete_encoders_are_refused(encoder):
    with pytest.raises(ValueError, match="simvae.*vi_simsiam"):
        encoders.load("simvae")
    tensors, info = store.read_tensors(encoder)
    kept = {name: t for name, t in tensors.items() if not name.startswith("concentration_head")}
    store.write_tensors(encoder, kept, info)
    with pytest.raises(ValueError, match="concentration_head"):
        encoders.load("vi_simsiam")


def test_committed_encoders_are_of_compared_runs():
    names = set()
    for group in measure.COMPARED:
        names |= set(map(settings.run_name, settings.runs("standard", group=group)))
    paths = sorted((store.ROOT / "results" / "standard" / "encoders").glob("*.safetensors"))
    assert paths
    assert {store.read_tensors_info(path)["run"] for path in paths} <= names
