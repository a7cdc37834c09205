"""lib.evaluation.encoders: committed encoders, their cards, and likeness to their training sets."""

import json

import numpy as np
import pytest
import torch

import lib
from lib import training
from lib.evaluation import encoders
from lib.evaluation import measure as protocol
from lib.runs import settings as resolution
from lib.runs import store as artifacts


@pytest.fixture
def encoder(run, frame, monkeypatch):
    """The smoke run's encoder, where standard's would be."""
    monkeypatch.setattr(run, "profile", "standard")
    path = encoders.write(run, frame)
    yield path
    for file in path.parent.iterdir():
        file.unlink()


def test_a_committed_encoder_embeds_as_the_run_does(run, encoder):
    loaded = lib.load("vi_simsiam")
    assert {name for name, _ in loaded.named_children()} == set(
        loaded.embeds_with
    )  # an untrained part would answer all the same
    images = run.test().batch(np.arange(50)).float() / 255
    with torch.no_grad():
        ours, expected = loaded.embed(images), run.method.embed(images)
    torch.testing.assert_close(ours.features, expected.features, rtol=5e-3, atol=5e-3)
    torch.testing.assert_close(ours.native["kappa"], expected.native["kappa"], rtol=1e-2, atol=0)
    assert not loaded.training and {p.dtype for p in loaded.parameters()} == {torch.float32}
    tensors, info = artifacts.read_tensors(encoder)
    assert {name.split(".")[0] for name in tensors} == {"backbone", "concentration_head"}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16, torch.int64}
    assert encoder.stat().st_size <= encoders.MOST_BYTES
    assert (
        info["run_hash"] == run.hash
        and info["channels"] == 1
        and info["classes"] == list("0123456789")
    )
    assert str(artifacts.RESULTS) not in json.dumps(info)


def test_a_run_without_weights_answers_with_its_own_committed_encoder(run, encoder, monkeypatch):
    images = torch.rand(4, 1, 9, 9)
    expected = run.method.embed(images)
    monkeypatch.setattr(training, "is_finished", lambda *_: False)
    bare = protocol.Run(run.settings)
    assert bare.is_at_hand
    torch.testing.assert_close(
        bare.method.embed(images).features, expected.features, rtol=5e-3, atol=5e-3
    )
    other = protocol.Run(run.settings | {"seed": 1})
    assert not other.is_at_hand
    with pytest.raises(FileNotFoundError, match="has no weights here"):
        bool(other.method)


def test_the_model_card_says_what_the_encoder_takes_and_what_was_measured(run, frame, encoder):
    card = encoder.with_suffix(".md").read_text()
    chosen = (
        frame[(frame.condition == "clean") | (frame.metric == "ood_auroc")]
        .set_index(["metric", "classifier", "score", "evaluated_on"])
        .value
    )
    (accuracy,), (right,) = (
        chosen["accuracy"]["knn"],
        chosen["correctness_auroc"]["linear"]["uncertainty"],
    )
    foreign = chosen["ood_auroc"][""]["uncertainty"]["generated"]
    for part in (
        run.name,
        run.hash,
        "[B, 1, 9, 9]",
        "digits (256 images), 256 images",
        f"{run.settings['epochs']} epochs without labels",
        'lib.load("vi_simsiam")',
        f"accuracy, k-NN | {accuracy:.1%} [",
        f"by -κ | {right:.3f} [",
        f"near OOD (generated), by -κ | {foreign:.3f} [",
        "**Limits.**",
    ):
        assert part in card, part


def test_the_committed_cards_are_what_the_committed_metrics_give(monkeypatch):
    monkeypatch.setattr(artifacts, "RESULTS", artifacts.ROOT / "results")
    cards = {
        path: path.read_text()
        for path in sorted((artifacts.RESULTS / "standard" / "encoders").glob("*.md"))
    }
    written = {}
    monkeypatch.setattr(artifacts, "write_text", written.__setitem__)
    assert encoders.write_cards() == list(cards) and written == cards


def test_a_card_names_foreign_sets_that_the_encoder_is_surer_of(frame):
    info = {
        "settings": resolution.resolve("vi_simsiam", "smoke"),
        "run": "r",
        "run_hash": "h",
        "channels": 1,
    }
    changed = frame.copy()
    foreign = (changed.metric == "ood_auroc") & (changed.score == "uncertainty")
    for high, surer in ((0.4, True), (0.6, False)):
        changed.loc[foreign, "ci_high"] = high
        assert (
            "surer of generated than of its own"
            in encoders.model_card(info, {"title": "digits", "images": 9}, changed)
        ) == surer
    trivial = info | {"settings": resolution.resolve("simsiam", "smoke")}
    assert "no uncertainty of its own" in encoders.model_card(
        trivial, {"title": "digits", "images": 9}, changed
    )


def test_unlikeness_is_the_kolmogorov_smirnov_distance_to_the_test_images_own():
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(5, 5))
    train, test, same, wide, narrow = (
        scale * generator.normal(size=(4000, 5)) @ mixing + 3 for scale in (1, 1, 1, 2, 0.4)
    )
    spread = encoders.training_statistics(train, test)
    expected = np.linalg.norm(np.linalg.solve(mixing.T, (same - 3).T), axis=0) ** 2
    np.testing.assert_allclose(encoders._distances(same, spread), expected, rtol=0.15, atol=0.15)
    ours, theirs = np.sort(encoders._distances(wide, spread)), encoders._distances(test, spread)
    direct = max(abs(np.mean(theirs <= level) - np.mean(ours <= level)) for level in ours)
    assert abs(encoders.unlikeness(wide, spread) - direct) < 0.02
    assert (
        encoders.unlikeness(same, spread)
        < 0.05
        < encoders.UNLIKE
        < min(encoders.unlikeness(other, spread) for other in (wide, narrow, same + 9))
    )


def test_images_may_be_of_any_precision(encoder):
    ready, images = lib.load("vi_simsiam"), torch.rand(3, 1, 9, 9)
    assert ready.embed(images).features.numpy().shape[0] == 3  # frozen: no graph behind it
    assert ready.embed(images.double()).features.equal(ready.embed(images).features)
    assert ready.embed(images.half()).features.dtype == torch.float32


def test_a_spread_is_that_of_its_encoder(encoder):
    spread = encoders.statistics_beside(encoder)
    assert len(spread["percentiles"]) == 101
    artifacts.write_npz(encoder.with_suffix(".npz"), **spread | {"run_hash": np.array("another")})
    with pytest.raises(
        ValueError, match="of the run with hash another, vi_simsiam.safetensors of .*restore both"
    ):
        encoders.statistics_beside(encoder)


def test_encoders_that_came_with_the_code_are_found_from_any_results_folder(encoder):
    assert encoders.stored() == {"vi_simsiam": encoder}
    aside = encoder.rename(encoder.with_name("aside"))
    assert {"vi_simsiam", "dino"} <= set(encoders.stored())
    aside.rename(encoder)


def test_an_encoder_that_is_too_large_is_not_kept_and_stops_nothing(run, frame, monkeypatch):
    monkeypatch.setattr(run, "profile", "standard")
    monkeypatch.setattr(encoders, "MOST_BYTES", 1000)
    with pytest.warns(UserWarning, match=r"more than 1,000, and is not kept; the run is whole"):
        assert encoders.write(run, frame) is None
    assert not artifacts.encoder_path("vi_simsiam").exists()


def test_loading_what_is_not_there_lists_what_is(run, encoder):
    with pytest.raises(
        ValueError, match=r"no committed encoder 'simvae'; there are \['vi_simsiam'\]"
    ):
        encoders.load("simvae")
    tensors, info = artifacts.read_tensors(encoder)
    artifacts.write_tensors(
        encoder,
        {name: t for name, t in tensors.items() if not name.startswith("concentration_head")},
        info,
    )
    with pytest.raises(
        ValueError,
        match=r"does not fit VISimSiam \(missing \['concentration_head.*train the run again",
    ):
        encoders.load("vi_simsiam")


def test_committed_encoders_are_of_runs_that_are_compared():
    names = {
        resolution.run_name(settings)
        for group in protocol.COMPARED
        for settings in resolution.runs("standard", group=group)
    }
    found = sorted((artifacts.ROOT / "results" / "standard" / "encoders").glob("*.safetensors"))
    assert found and {artifacts.read_tensors_info(path)["run"] for path in found} <= names
