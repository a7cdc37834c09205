"""lib.protocol: images as a method takes them, the battery of one run, and committed encoders."""

import dataclasses
import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.covariance import LedoitWolf
from torchvision.transforms import functional as tv

import lib
from lib import artifacts, augmentations, data, evaluation, factors, protocol, training, uncertainty
from lib import settings as resolution

TINY = {
    "width": 2, "dimension": 8, "predictor_hidden": 4, "image_size": 9, "batch_size": 64, "train_images": 256, "precision": "float32",
    "condition_images": 40,
}  # fmt: skip


def noise(batch=4, channels=3, size=24):
    return torch.rand(batch, channels, size, size, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def run(shared_results):
    settings = resolution.resolve("vi_simsiam", "smoke", **TINY)
    training.train(settings)
    return protocol.Run(settings)


@pytest.fixture(scope="module")
def frame(run):
    return protocol.measure(run)


# ---------------------------------------------------------------------------------------------------------------- input
@pytest.mark.parametrize(("there", "wanted"), [(1, 1), (3, 3), (1, 3), (3, 1)])
@pytest.mark.parametrize("size", [24, 12, 40])
def test_fit_gives_channels_and_size(there, wanted, size):
    images = noise(channels=there)
    fitted = protocol.fit({"image_size": size}, wanted)(images)
    assert fitted.shape == (4, wanted, size, size) and fitted.min() >= 0 and fitted.max() <= 1
    if size == 24:
        expected = tv.rgb_to_grayscale(images) if there > wanted else images.repeat(1, wanted // there, 1, 1)
        torch.testing.assert_close(fitted, expected)


def test_centre_crop_keeps_its_share_of_the_area():
    images = noise()
    assert torch.equal(protocol.centre_crop(1.0)(images), images)
    for area in protocol.KEPT_AREAS:
        side = max(2, round(24 * area**0.5))
        assert abs(side**2 / 576 - area) < 0.05
        start = (24 - side) // 2
        expected = tv.resized_crop(images, start, start, side, side, [24, 24], antialias=True)
        torch.testing.assert_close(protocol.centre_crop(area)(images), expected, rtol=0, atol=2e-5)
    assert protocol.centre_crop(0.05)(noise(size=8)).shape == (4, 3, 8, 8)


def test_blur():
    images = noise()
    assert protocol.blur(0.0)(images) is images
    sharpness = [protocol.blur(sigma)(images).diff(dim=-1).abs().mean().item() for sigma in protocol.BLUR_SIGMAS]
    assert sharpness == sorted(sharpness, reverse=True) and len(set(sharpness)) == 5
    torch.testing.assert_close(protocol.blur(2.0)(images), tv.gaussian_blur(images, [13, 13], [2.0, 2.0]), rtol=0, atol=1e-5)
    assert torch.allclose(protocol.blur(3.0)(torch.full((1, 3, 24, 24), 0.4)), torch.tensor(0.4))


def test_conditions_are_named_by_family_and_severity():
    names = list(protocol.conditions())
    assert len(names) == len(protocol.KEPT_AREAS) + len(protocol.BLUR_SIGMAS)
    assert all(re.fullmatch(r"(crop|blur)_\d+(\.\d+)?", name) for name in names)
    assert {"crop_1", "crop_0.05", "blur_0", "blur_0.5"} <= set(names)
    assert all(condition(noise()).shape == (4, 3, 24, 24) for condition in protocol.conditions().values())


# ---------------------------------------------------------------------------------------------------------------- one run
def test_train_and_test_of_unlike_classes_are_an_error(run, monkeypatch):
    classes = [*run.train.classes[:-1], "other"]
    monkeypatch.setattr(run, "train", dataclasses.replace(run.train, classes=classes))
    with pytest.raises(ValueError, match="Train and test of digits differ in the classes .*'other'"):
        run.test()


def test_embed_answers_from_its_store(run, monkeypatch):
    test = run.test().subset(range(30))
    first = run.embed(test, "kept")
    assert first["features"].shape == (30, 16) and np.array_equal(first["uncertainty"], -first["kappa"])
    path = artifacts.run_dir("smoke", run.name) / "embeddings" / "digits-test-kept.npz"
    assert path.exists()
    with torch.no_grad():
        expected = run.method.embed(test.batch(np.arange(30)).float() / 255)
    np.testing.assert_allclose(first["features"], expected.features.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(first["kappa"], expected.native["kappa"].numpy(), rtol=1e-5)

    computed = []
    compute = evaluation.embed
    monkeypatch.setattr(evaluation, "embed", lambda *a, **k: computed.append(1) or compute(*a, **k))
    assert np.array_equal(run.embed(test, "kept")["features"], first["features"]) and not computed
    other = run.embed(run.test().subset(range(1, 31)), "kept")  # other images under the same name
    assert len(computed) == 1 and not np.array_equal(other["features"], first["features"])
    monkeypatch.setattr(run, "hash", "another")  # other weights
    monkeypatch.setattr(training, "is_finished", lambda *_: True)
    run.embed(run.test().subset(range(1, 31)), "kept")
    assert len(computed) == 2


def test_embed_applies_the_condition_after_fitting(run):
    images = data.load("generated", "test").subset(range(8))  # 32 x 32, three channels; the run takes 9 x 9, one
    seen = []
    run.embed(images, "seen", lambda batch: seen.append(tuple(batch.shape)) or batch)
    assert seen == [(8, 1, 9, 9)]
    blurred = run.embed(images, "blurred", protocol.blur(2.0))
    assert not np.allclose(blurred["features"], run.embed(images)["features"])


def test_weights_of_other_settings_are_not_used(run):
    stale = protocol.Run(run.settings)
    stale.hash = "another"
    with pytest.raises(FileNotFoundError, match=f"{run.name} has no weights here that were trained with these settings.*PROFILE=smoke"):
        _ = stale.method
    with pytest.raises(FileNotFoundError, match="make reproduce PROFILE=smoke"):
        _ = protocol.Run(run.settings | {"seed": 7}).method


def test_measure_writes_metrics_and_scores(run, frame):
    stored = artifacts.read_metrics("smoke", protocol.MEASURED_BY, run.name)
    pd.testing.assert_series_equal(stored.value, frame.value.astype(float), rtol=1e-8)
    identity = {"method": "vi_simsiam", "trained_on": "digits (256 images)", "seed": 0, "profile": "smoke", "notebook": protocol.MEASURED_BY,
                "run_hash": resolution.run_hash(run.settings, run.train.checksum), "commit": artifacts.commit(),
                "variant": resolution.variant(run.settings)}  # fmt: skip
    for column, value in identity.items():
        assert set(stored[column]) == {value}, column
    assert set(stored.evaluated_on) == {"digits", "generated"} and set(stored[stored.condition == "near_ood"].evaluated_on) == {"generated"}
    assert set(protocol.conditions()) <= set(stored.condition) and (stored[stored.condition == "crop_0.2"].n == 40).all()
    scores = artifacts.read_scores("smoke", run.name, "digits")
    assert len(scores["label"]) == 359 and {"linear_correct", "knn_correct", "kappa", "uncertainty"} <= set(scores)
    accuracy = stored[(stored.metric == "accuracy") & (stored.condition == "clean")].set_index("classifier")
    assert accuracy.value["knn"] == pytest.approx(scores["knn_correct"].mean()) and accuracy.n["knn"] == 359
    mean = stored[(stored.metric == "mean") & (stored.score == "kappa")].set_index("condition").value
    assert mean["clean"] == pytest.approx(scores["kappa"].mean(), rel=1e-5)
    assert mean["crop_1"] == pytest.approx(mean["blur_0"], rel=1e-6)  # two names of the untouched image
    assert not artifacts.encoder_path("vi_simsiam", "smoke").exists()  # encoders are those of standard


def test_the_papers_probe_is_stored_once_for_each_run(run, monkeypatch):
    notebook = "20_linear_and_knn_evaluation"
    protocol.probe_by_the_paper([run.settings], notebook)
    stored = artifacts.read_metrics("smoke", notebook, run.name)
    assert set(stored.run_hash) == {run.hash} and set(stored.classifier) == {"linear_paper"} and (stored.n == 359).all()
    bank, test = run.embed(run.bank), run.embed(run.test())
    (probe,) = evaluation.linear_probes([bank["features"]], [bank["label"]])
    value = stored.set_index("metric").value
    assert value["accuracy"] == pytest.approx(np.mean(probe.predict(test["features"]) == test["label"]), abs=1e-3)
    assert value["accuracy"] <= value["top5_accuracy"] <= 1
    monkeypatch.setattr(evaluation, "linear_probes", None)
    protocol.probe_by_the_paper([run.settings], notebook)


def test_runs_that_notebooks_of_their_own_compare_leave_no_scores_of_the_battery():
    kept = {name: protocol._reads_more(resolution.resolve(name, "smoke"), protocol.SCORED_APART) for name in ("vi_simsiam", "simvae", "simsiam")}
    assert kept == {"vi_simsiam": True, "simvae": False, "simsiam": True}
    assert protocol._reads_more(resolution.resolve("simvae", "smoke", seed=7), protocol.SCORED_APART), "a run that nobody lists"
    for other in ({"method": "simvae", "views": 3}, {"method": "simsiam", "epochs": 2}, {"method": "vi_simsiam", "dataset": "generated"}):
        assert not protocol._reads_more(resolution.resolve(profile="smoke", **other), protocol.SCORED_APART), other


def test_of_simvaes_comparison_the_uncertainty_is_stored_too(run, monkeypatch):
    monkeypatch.setattr(protocol, "_reads_more", lambda settings, groups: "simvae" not in groups)
    protocol.measure(run)
    stored = artifacts.read_scores("smoke", run.name, run.settings["dataset"])
    assert set(stored) == {*protocol.RIGHT, "uncertainty"} and stored["uncertainty"].shape == (359,)


def test_of_runs_that_are_compared_by_accuracy_the_clean_condition_is_stored(run, monkeypatch):
    assert {"clean", "crop_0.4", "near_ood"} <= set(protocol.measure(run).condition)
    monkeypatch.setattr(protocol, "_reads_more", lambda settings, groups: groups != protocol.BY_ACCURACY)
    assert set(protocol.measure(run).condition) == {"clean"}


def tiny_celeba(folder, generator):
    """200 drawn images in CelebA's layout; hair is darker the lower its class, and every fourth image has none."""
    names = [*data.HAIR, "Male", "Smiling", "Young", "Identity_Free"]
    given = {name: generator.integers(0, 2, 200) for name in names}
    hair = np.where(np.arange(200) % 4 == 3, -1, np.arange(200) % 3)
    given |= {name: (hair == place).astype(int) for place, name in enumerate(data.HAIR)}
    (folder / "img_align_celeba").mkdir(parents=True)
    for i in range(200):
        pixels = generator.integers(0, 60, (22, 18, 3)) + 60 * (hair[i] + 1)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "img_align_celeba" / f"{i:03}.png")
    lines = [f"{i:03}.png " + " ".join(str(2 * given[name][i] - 1) for name in names) for i in range(200)]
    (folder / "list_attr_celeba.txt").write_text("\n".join(["200", " ".join(names), *lines]) + "\n")
    (folder / "list_eval_partition.txt").write_text("".join(f"{i:03}.png {2 * (i >= 160)}\n" for i in range(200)))
    (folder / "identity_CelebA.txt").write_text("".join(f"{i:03}.png {i}\n" for i in range(200)))
    for name in ("list_bbox_celeba.txt", "list_landmarks_align_celeba.txt"):
        (folder / name).write_text("\n".join(["200", "x y", *(f"{i:03}.png 0 0" for i in range(200))]) + "\n")


def test_style_of_celeba_is_probed_where_it_is_labelled(run, tmp_path, monkeypatch):
    tiny_celeba(tmp_path / "celeba", np.random.default_rng(0))
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.setattr(torchvision.datasets.CelebA, "_check_integrity", lambda _: True)
    frame = protocol.measure_factors(run, "celeba", "40_test").set_index(["condition", "metric"])
    assert set(frame.index.get_level_values(0)) == {"content", "hair", "Bald", "Smiling", "Young"}
    assert frame.n["hair", "accuracy"] == 30 and frame.n["content", "accuracy"] == 40, "the images without hair are left out"
    assert frame.value["hair", "accuracy"] > frame.value["hair", "chance"]


def test_a_run_is_measured_if_the_stored_metrics_are_of_its_settings_and_data_by_todays_code(run, monkeypatch):
    assert not protocol.is_measured(run, "99_other")
    rows = [{"metric": "accuracy", "value": 0.5}]
    run.write_metrics(rows, "99_other")
    assert protocol.is_measured(run, "99_other") and not protocol.is_measured(run, "99_other-part")
    more = protocol.Run(run.settings | {"bootstrap_draws": 7})
    assert more.hash == run.hash and not protocol.is_measured(more, "99_other"), "a setting of measuring alone"

    with monkeypatch.context() as edited:
        edited.setattr(artifacts, "code_hash", lambda source: "another")
        assert not protocol.is_measured(run, "99_other"), "the code was edited"
        with monkeypatch.context() as away:
            away.setattr(protocol.training, "is_finished", lambda *names: False)
            assert protocol.is_measured(run, "99_other"), "without weights what is stored counts"
        run.write_metrics(rows, "99_other")
        assert protocol.is_measured(run, "99_other")
    assert not protocol.is_measured(run, "99_other"), "one measure, one stamp"

    frame = evaluation.metrics_rows(rows, **(run.identity("99_other") | {"run_hash": "another"}))
    artifacts.write_metrics("smoke", "99_other", run.name, frame)
    assert not protocol.is_measured(run, "99_other")


def test_stored_embeddings_are_of_todays_code(run, monkeypatch):
    few = run.test().sample(4)
    asked = []
    embed = protocol.evaluation.embed
    monkeypatch.setattr(protocol.evaluation, "embed", lambda *given, **more: asked.append(1) or embed(*given, **more))
    for code, times in (("a", 1), ("a", 1), ("b", 2)):
        monkeypatch.setattr(artifacts, "code_hash", lambda source, code=code: code)
        run.embed(few, "of_todays_code")
        assert len(asked) == times


def test_raw_pixels_are_not_stored(shared_results):
    settings = resolution.resolve("raw_pixels", "smoke", **TINY)
    training.train(settings)
    run = protocol.Run(settings)
    assert run.embed(run.test().subset(range(5)))["features"].shape == (5, 81)
    assert not (artifacts.run_dir("smoke", run.name) / "embeddings").exists()


# ---------------------------------------------------------------------------------------------------------------- committed encoders
def test_the_best_of_a_tuning_is_chosen_once_all_of_it_is_run(shared_results, frame):
    rates = [run for run in resolution.tuning_runs("standard") if run["method"] == "vje"]
    for place, run in enumerate(rates):
        before = protocol.tuning("standard").set_index("run").chosen
        assert not before.any() and len(before) == len(resolution.tuning_runs("standard"))
        row = frame.head(1).assign(value=0.3 + 0.1 * (place == 1), run_hash="")
        artifacts.write_metrics("standard", artifacts.MEASURED_BY, resolution.run_name(run), row)
    found = protocol.tuning("standard")
    chosen = found[found.chosen]
    assert chosen[["method", "value", "used", "validation_knn_percent"]].values.tolist() == [["vje", rates[1]["learning_rate"], 0.48, 40.0]]
    assert protocol.tuning("smoke").empty and "chosen" in protocol.tuning("smoke")
    assert ("vje" in protocol.unsearched("standard")) == (rates[1]["learning_rate"] != 0.48)  # chosen, but is it the one that runs have?
    best = next(run for run in rates if run["learning_rate"] == 0.48)
    artifacts.write_metrics("standard", artifacts.MEASURED_BY, resolution.run_name(best), frame.head(1).assign(value=0.9, run_hash=""))
    assert "vje" not in protocol.unsearched("standard") and "simclr" in protocol.unsearched("standard")


def test_differences_between_methods_are_paired_by_seed_and_image(shared_results):
    right = {("vje", 0): [1, 1, 0, 0], ("vje", 1): [1, 1, 1, 0], ("simsiam", 0): [1, 0, 0, 0], ("simsiam", 2): [1, 1, 1, 1]}
    listed = [resolution.resolve(method, "smoke", seed=seed) for method, seed in right]
    for run, values in zip(listed, right.values(), strict=True):
        artifacts.write_scores("smoke", resolution.run_name(run), run["dataset"], {"knn_correct": np.array(values, bool)})
    found = protocol.paired_differences(listed, [("vje", "simsiam")], {"knn": ("knn_correct", 100)}, 50)
    row = found.iloc[0]
    assert len(found) == 1 and [row.method, row.minus, row.measure, row.seeds, row.n] == ["vje", "simsiam", "knn", 1, 4]
    assert row.difference == pytest.approx(25) and row.ci_low >= 0


@pytest.fixture
def encoder(run, frame, monkeypatch):
    """The smoke run's encoder, where standard's would be."""
    monkeypatch.setattr(run, "profile", "standard")
    path = protocol.write_encoder(run, frame)
    yield path
    for file in path.parent.iterdir():
        file.unlink()


def test_a_committed_encoder_embeds_as_the_run_does(run, encoder):
    loaded = lib.load("vi_simsiam")
    assert {name for name, _ in loaded.named_children()} == set(loaded.embeds_with)  # an untrained part would answer all the same
    images = run.test().batch(np.arange(50)).float() / 255
    with torch.no_grad():
        ours, expected = loaded.embed(images), run.method.embed(images)
    torch.testing.assert_close(ours.features, expected.features, rtol=5e-3, atol=5e-3)
    torch.testing.assert_close(ours.native["kappa"], expected.native["kappa"], rtol=1e-2, atol=0)
    assert not loaded.training and {p.dtype for p in loaded.parameters()} == {torch.float32}
    tensors, info = artifacts.read_tensors(encoder)
    assert {name.split(".")[0] for name in tensors} == {"backbone", "concentration_head"}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16, torch.int64}
    assert encoder.stat().st_size <= protocol.ENCODER_BYTES
    assert info["run_hash"] == run.hash and info["channels"] == 1 and info["classes"] == list("0123456789")
    assert str(artifacts.RESULTS) not in json.dumps(info)


def test_a_run_without_weights_answers_with_its_own_committed_encoder(run, encoder, monkeypatch):
    images = torch.rand(4, 1, 9, 9)
    expected = run.method.embed(images)
    monkeypatch.setattr(training, "is_finished", lambda *_: False)
    bare = protocol.Run(run.settings)
    assert bare.is_at_hand
    torch.testing.assert_close(bare.method.embed(images).features, expected.features, rtol=5e-3, atol=5e-3)
    other = protocol.Run(run.settings | {"seed": 1})
    assert not other.is_at_hand
    with pytest.raises(FileNotFoundError, match="has no weights here"):
        bool(other.method)


def test_the_model_card_says_what_the_encoder_takes_and_what_was_measured(run, frame, encoder):
    card = encoder.with_suffix(".md").read_text()
    chosen = frame[(frame.condition == "clean") | (frame.metric == "ood_auroc")].set_index(["metric", "classifier", "score", "evaluated_on"]).value
    (accuracy,), (right,) = chosen["accuracy"]["knn"], chosen["correctness_auroc"]["linear"]["uncertainty"]
    foreign = chosen["ood_auroc"][""]["uncertainty"]["generated"]
    for part in (run.name, run.hash, "[B, 1, 9, 9]", "digits (256 images), 256 images", f"{run.settings['epochs']} epochs without labels",
                 'lib.load("vi_simsiam")', f"accuracy, k-NN | {accuracy:.1%} [", f"by -κ | {right:.3f} [",
                 f"near OOD (generated), by -κ | {foreign:.3f} [", "**Limits.**"):  # fmt: skip
        assert part in card, part


def test_the_committed_cards_are_what_the_committed_metrics_give(monkeypatch):
    monkeypatch.setattr(artifacts, "RESULTS", artifacts.ROOT / "results")
    cards = {path: path.read_text() for path in sorted((artifacts.RESULTS / "standard" / "encoders").glob("*.md"))}
    written = {}
    monkeypatch.setattr(artifacts, "write_text", written.__setitem__)
    assert protocol.write_cards() == list(cards) and written == cards


def test_a_card_names_foreign_sets_that_the_encoder_is_surer_of(frame):
    info = {"settings": resolution.resolve("vi_simsiam", "smoke"), "run": "r", "run_hash": "h", "channels": 1}
    changed = frame.copy()
    foreign = (changed.metric == "ood_auroc") & (changed.score == "uncertainty")
    for high, surer in ((0.4, True), (0.6, False)):
        changed.loc[foreign, "ci_high"] = high
        assert ("surer of generated than of its own" in protocol.model_card(info, {"title": "digits", "images": 9}, changed)) == surer
    trivial = info | {"settings": resolution.resolve("simsiam", "smoke")}
    assert "no uncertainty of its own" in protocol.model_card(trivial, {"title": "digits", "images": 9}, changed)


def test_unlikeness_is_the_kolmogorov_smirnov_distance_to_the_test_images_own():
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(5, 5))
    train, test, same, wide, narrow = (scale * generator.normal(size=(4000, 5)) @ mixing + 3 for scale in (1, 1, 1, 2, 0.4))
    spread = protocol.feature_spread(train, test)
    expected = np.linalg.norm(np.linalg.solve(mixing.T, (same - 3).T), axis=0) ** 2
    np.testing.assert_allclose(protocol._distances(same, spread), expected, rtol=0.15, atol=0.15)
    ours, theirs = np.sort(protocol._distances(wide, spread)), protocol._distances(test, spread)
    direct = max(abs(np.mean(theirs <= level) - np.mean(ours <= level)) for level in ours)
    assert abs(protocol.unlikeness(wide, spread) - direct) < 0.02
    assert protocol.unlikeness(same, spread) < 0.05 < protocol.UNLIKE < min(protocol.unlikeness(other, spread) for other in (wide, narrow, same + 9))


def test_encoders_that_came_with_the_code_are_found_from_any_results_folder(encoder):
    assert protocol.encoders() == {"vi_simsiam": encoder}
    aside = encoder.rename(encoder.with_name("aside"))
    assert {"vi_simsiam", "dino"} <= set(protocol.encoders())
    aside.rename(encoder)


def test_an_encoder_that_is_too_large_is_refused(run, frame, monkeypatch):
    monkeypatch.setattr(run, "profile", "standard")
    monkeypatch.setattr(protocol, "ENCODER_BYTES", 1000)
    with pytest.raises(ValueError, match=r"more than 1000; commit a smaller network"):
        protocol.write_encoder(run, frame)
    assert not artifacts.encoder_path("vi_simsiam").exists()


def test_loading_what_is_not_there_lists_what_is(run, encoder):
    with pytest.raises(ValueError, match=r"no committed encoder 'simvae'; there are \['vi_simsiam'\]"):
        protocol.load("simvae")
    tensors, info = artifacts.read_tensors(encoder)
    artifacts.write_tensors(encoder, {name: t for name, t in tensors.items() if not name.startswith("concentration_head")}, info)
    with pytest.raises(ValueError, match=r"does not fit VISimSiam \(missing \['concentration_head.*train the run again"):
        protocol.load("vi_simsiam")


@pytest.mark.parametrize("changes", [
    {}, {"method": "prosmin_vit"}, {"seed": 1}, {"epochs": 5}, {"dataset": "mnist"}, {"method": "random"}, {"method": "random_vit"},
])  # fmt: skip
def test_only_the_seed_0_run_that_is_compared_leaves_an_encoder(changes):
    settings = resolution.resolve(**({"method": "vi_simsiam", "profile": "standard"} | changes))
    assert protocol._leaves_encoder(settings) == (changes in ({}, {"method": "prosmin_vit"}))


@pytest.mark.parametrize("profile", ["standard", "smoke"])
def test_measuring_writes_the_encoder_in_standard_alone(profile, run, monkeypatch):
    asked = []
    monkeypatch.setattr(protocol, "write_encoder", lambda *_: asked.append(1))
    monkeypatch.setattr(protocol, "_leaves_encoder", lambda _: True)
    monkeypatch.setattr(protocol, "_battery", lambda run, graded: ([], {}))
    monkeypatch.setattr(artifacts, "write_metrics", lambda *_: None)
    monkeypatch.setattr(artifacts, "write_scores", lambda *_: None)
    monkeypatch.setattr(run, "profile", profile)
    protocol.measure(run)
    assert len(asked) == (profile == "standard")


def test_committed_encoders_are_of_runs_that_are_compared():
    names = {resolution.run_name(settings) for group in protocol.COMPARED for settings in resolution.runs("standard", group=group)}
    found = sorted((artifacts.ROOT / "results" / "standard" / "encoders").glob("*.safetensors"))
    assert found and {artifacts.read_tensors_info(path)["run"] for path in found} <= names


def test_a_tuning_run_is_measured_on_validation_alone(shared_results):
    settings = resolution.resolve("simsiam", "smoke", **(TINY | {"split": "fit", "train_images": 0}))
    training.train(settings)
    frame = protocol.measure(protocol.Run(settings))
    assert len(frame) == 1 and frame.condition[0] == "validation" and frame.n[0] == 143 and 0.1 < frame.value[0] <= 1
    assert not artifacts.scores_path("smoke", resolution.run_name(settings), "digits").exists()


def test_a_run_on_one_class_is_measured_by_how_it_tells_the_others_apart(shared_results):
    settings = resolution.resolve("vje", "smoke", dataset="digits_class_3")
    training.train(settings)
    run = protocol.Run(settings)
    frame = protocol.measure(run).set_index("score")
    assert set(frame.condition) == {"one_class"} and set(frame.metric) == {"ood_auroc"} and set(frame.n) == {359}
    assert {"uncertainty", "feature_norm", "knn_distance", "mahalanobis", "likelihood_and_kl", "other_view"} <= set(frame.index)
    test, fitted = data.load("digits", "test", image_size=16), protocol.fit(settings, 1)
    own = evaluation.embed(run.method, test, transform=fitted)
    expected = uncertainty.auroc(own["uncertainty"], test.labels != 3)
    own_row = frame.loc["uncertainty"]
    assert own_row.value == pytest.approx(expected, abs=1e-6) and own_row.ci_low < expected < own_row.ci_high
    train = evaluation.embed(run.method, run.train, transform=fitted)["features"].astype(np.float64)
    difference, precision = own["features"] - train.mean(0), np.linalg.inv(LedoitWolf().fit(train).covariance_)
    distance = np.einsum("nd,de,ne->n", difference, precision, difference)
    assert frame.value["mahalanobis"] == pytest.approx(uncertainty.auroc(distance, test.labels != 3), abs=1e-6)


def test_sets_that_cannot_be_had_are_named_before_any_training(tmp_path, monkeypatch):
    """Also those that networks are asked about and not trained on; each once, whatever is drawn on it; not where nothing is asked about them."""
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "nothing"))
    foreign = {"dataset": "styled_digits", "ood_near": ["own", "styled_own"], "ood_far": ["digits_class_3", "own_class_2"]}
    run = resolution.resolve("simsiam", "smoke") | foreign
    (reason,) = protocol.missing_sets([run, run])
    assert "no set 'own'" in reason
    assert protocol.missing_sets([run | {"split": "fit"}, run | {"dataset": "digits_class_1"}]) == [] == protocol.missing_sets([])
    monkeypatch.setattr(protocol, "_reads_more", lambda settings, groups: groups != protocol.BY_ACCURACY)
    assert protocol.missing_sets([run]) == []
    assert "no set 'other'" in protocol.missing_sets([run | {"dataset": "other", "split": "fit"}])[0]


def test_measured_runs_are_the_listed_ones_with_metrics(shared_results, monkeypatch):
    listed = [resolution.resolve("simsiam", "smoke", seed=seed, **TINY) for seed in (5, 6)]
    monkeypatch.setattr(resolution, "runs", lambda *_: listed)
    with pytest.raises(FileNotFoundError, match="make reproduce PROFILE=smoke"):
        protocol.measured_runs("smoke")
    artifacts.write_metrics("smoke", protocol.MEASURED_BY, resolution.run_name(listed[1]), [{"method": "simsiam", "value": 1.0}])
    assert protocol.measured_runs("smoke") == [listed[1]] and len(protocol.metrics([listed[1]])) == 1
    with pytest.raises(FileNotFoundError, match="seed5 has no stored metrics"):
        protocol.metrics(listed)


@pytest.mark.parametrize("place", [(-0.1, 0, 0.5), (0.6, 0, 0.5), (0, 0.6, 0.5), (0, 0, 0), (0, 0, 1.1)])
def test_a_square_outside_the_image_is_refused(place):
    with pytest.raises(ValueError, match="not inside the image"):
        protocol.square_crop(*place)


def test_square_crop_takes_the_square_at_its_place():
    images = noise(size=16)
    for top, left in ((0, 0), (0.25, 0.5), (0.5, 0.5)):
        row, column = int(16 * top), int(16 * left)
        whole = augmentations.resize(images[:, :, row : row + 8, column : column + 8], 16)
        torch.testing.assert_close(protocol.square_crop(top, left)(images), whole)


def test_the_bank_is_train_or_its_first_images(run, monkeypatch):
    assert run.bank is run.train
    monkeypatch.setattr(run, "settings", run.settings | {"bank_images": 100})
    assert len(run.bank) == 100 and (run.bank.labels == run.train.labels[:100]).all()
    monkeypatch.setattr(run, "settings", run.settings | {"bank_images": 10_000})
    assert run.bank is run.train


# ---------------------------------------------------------------------------------------------------------------- few labels
FEW = {"fine_tune_shares": [0.05, 0.2], "fine_tune_epochs": [8, 4], "fine_tune_learning_rates": [0.01, 0.3]}


@pytest.fixture
def calls(monkeypatch):
    """Every fine-tuning as (labelled, test, epochs, rate); its answer is right for the first image, and for one more with the larger rate."""
    made = []

    def fine_tune(method, labelled, test, epochs, learning_rate, seed, precision, progress_path, optimizer):
        assert optimizer == "sgd"
        made.append((labelled, test, epochs, learning_rate))
        right = np.arange(len(test)) < (1 if learning_rate == 0.01 else 2)
        return np.eye(10)[np.where(right, test.labels, (test.labels + 1) % 10)]

    monkeypatch.setattr(evaluation, "fine_tune", fine_tune)
    return made


def test_few_labels_are_searched_on_train_and_measured_once_on_test(run, calls, monkeypatch):
    monkeypatch.setattr(run, "settings", run.settings | FEW)
    monkeypatch.setattr(protocol, "Run", None)  # seed 0 searches with itself
    frame = protocol.measure_few_labels(run, "21_few")
    assert artifacts.read_metrics("smoke", "21_few", run.name).value.tolist() == pytest.approx(frame.value.tolist())
    held_out = len(data.train_validation_split(run.train.labels)[1])
    assert [(len(test), epochs, rate) for _, test, epochs, rate in calls] == [
        (held_out, 2, 0.01), (held_out, 2, 0.3), (359, 8, 0.3), (held_out, 1, 0.01), (held_out, 1, 0.3), (359, 4, 0.3),
    ]  # fmt: skip
    for labelled, validation, *_ in (calls[0], calls[3]):
        assert not {image.tobytes() for image in labelled.images} & {image.tobytes() for image in validation.images}
    small, large = calls[2][0], calls[5][0]
    assert set(small.index) < set(large.index) and len(np.unique(small.labels)) == 10

    scores = artifacts.read_scores("smoke", run.name, "digits_few_labels")
    rows = frame.set_index(["condition", "classifier", "metric"])
    for share in FEW["fine_tune_shares"]:
        for classifier in ("fine_tuned", "linear", "knn"):
            row = rows.loc[[(f"labels_{share:g}", classifier, "accuracy")]].iloc[0]
            assert row.value == scores[f"{classifier}_{share:g}"].mean() and row.ci_low <= row.value <= row.ci_high and row.n == 359
        fine_tuned = rows.loc[f"labels_{share:g}"].loc["fine_tuned"].value
        assert fine_tuned["accuracy"] == pytest.approx(2 / 359) and fine_tuned["learning_rate"] == 0.3
        assert {"nll", "ece"} <= set(rows.loc[f"labels_{share:g}"].loc["fine_tuned"].index) & set(rows.loc[f"labels_{share:g}"].loc["linear"].index)
        assert len(rows.loc[(f"labels_{share:g}_validation", "fine_tuned", "accuracy")]) == 2
    rates, heard = protocol.searched_rates(frame, "smoke")
    assert rates.columns.tolist() == [0.01, 0.3] and rates.idxmax(axis=1).tolist() == [0.3, 0.3] and "for 2 of 2 searches" in heard
    assert "the highest for simsiam" in heard or "the highest for vi_simsiam" in heard
    searched = rows.loc[("labels_0.05_validation", "fine_tuned", "accuracy")].value
    assert rates.iloc[0].tolist() == pytest.approx((100 * searched).tolist())
    assert protocol.searched_rates(frame[frame.condition == "labels_0.05"], "smoke")[0].empty
    few = run.embed(small, "labels_0.05")
    expected = evaluation.knn_predict(few["features"], few["label"], run.embed(run.test())["features"], k=len(small))[0]
    np.testing.assert_array_equal(scores["knn_0.05"], expected == run.test().labels)

    before = len(calls)
    pd.testing.assert_frame_equal(protocol.measure_few_labels(run, "21_few"), frame)
    assert len(calls) == before, "a stored fine-tuning was done again"
    monkeypatch.setattr(run, "settings", run.settings | {"fine_tune_epochs": [8, 8]})
    protocol.measure_few_labels(run, "21_few")
    assert [(epochs, rate) for *_, epochs, rate in calls[before:]] == [(2, 0.01), (2, 0.3), (8, 0.3)], "other epochs are another fine-tuning"


def test_transfer_searches_on_the_other_sets_train_and_is_tested_there_once(run, calls, monkeypatch):
    monkeypatch.setattr(run, "settings", run.settings | FEW | {"transfer_images": 60, "transfer_epochs": 8})
    frame = protocol.measure_transfer(run, "generated", "51_moved")
    assert [(len(labelled), len(test), epochs, rate) for labelled, test, epochs, rate in calls] == [
        (55, 5, 2, 0.01), (55, 5, 2, 0.3), (60, 256, 8, 0.3),
    ]  # fmt: skip
    assert all(labelled.images.shape[3] == run.channels == test.images.shape[3] for labelled, test, *_ in calls)
    stored = artifacts.read_metrics("smoke", "51_moved-generated", run.name).set_index("metric").value
    right = artifacts.read_scores("smoke", run.name, "generated_transfer")["fine_tuned_correct"]
    assert stored["accuracy"] == right.mean() and stored["images"] == 60 and stored["epochs"] == 8 and stored["learning_rate"] == 0.3
    assert set(frame.evaluated_on) == {"generated"} and frame.metric.tolist() == list(stored.index)


def test_a_rate_that_diverges_is_the_worst_of_its_search_and_ends_nothing(run, monkeypatch):
    def fine_tuned(_, labelled, test, epochs, rate):
        if rate == 0.3:
            raise training.TrainingStopped("Fine-tuning's loss is nan at step 1")
        return {"label": test.labels, "probabilities": np.eye(10)[test.labels] * 0.9}

    monkeypatch.setattr(protocol, "fine_tuned", fine_tuned)
    monkeypatch.setattr(run, "settings", run.settings | FEW)
    assert protocol.fine_tuning_search(run, run.train, 8, 0.05) == {0.01: 1.0, 0.3: 0.0}


def test_other_seeds_take_the_rate_that_seed_0_chose(run, calls, monkeypatch):
    asked = []
    monkeypatch.setattr(run, "settings", run.settings | FEW | {"seed": 3})
    monkeypatch.setattr(protocol, "Run", lambda settings: asked.append(settings["seed"]) or run)
    assert protocol.fine_tuning_search(run, run.train, 8, 0.05).keys() == {0.01, 0.3} and asked == [0]
    monkeypatch.setattr(run, "settings", run.settings | {"fine_tune_learning_rates": [0.1]})
    assert list(protocol.fine_tuning_search(run, run.train, 8, 0.05)) == [0.1] and asked == [0]


# ---------------------------------------------------------------------------------------------------------------- what counts as evidence
def test_simsiam_and_vi_simsiam_are_paired_at_every_length_and_on_every_set(monkeypatch):
    monkeypatch.setattr(protocol, "_measured", lambda listed: listed)
    standard, paper = protocol.simsiam_pairs("standard"), protocol.simsiam_pairs("paper")
    assert {epochs for dataset, epochs in standard if dataset == "cifar10"} == {5, 10, 20, 40} and ("imagenette96", 200) in standard
    for where, of in (standard | paper).items():
        assert all((run["dataset"], run["epochs"]) == where and run["seed"] == seed for method in of.values() for seed, run in method.items())
    of_2022, of_2023 = paper["cars", 100], paper["imagenet100", 100]
    assert of_2023["vi_simsiam"][0]["method"] == "vi_simsiam" and of_2022["vi_simsiam"][0]["method"] == "vi_simsiam_2022"
    assert of_2022["simsiam"][0]["local_views"] == of_2022["vi_simsiam"][0]["local_views"] == 6 and of_2023["simsiam"][0]["local_views"] == 0


def test_seeds_trained_in_unlike_precision_are_named(shared_results):
    def stored(precisions, **settings):
        runs = [resolution.resolve("simsiam", "smoke", seed=seed, **settings) for seed in range(len(precisions))]
        for run, precision in zip(runs, precisions, strict=True):
            artifacts.write_json(artifacts.run_dir("smoke", resolution.run_name(run)) / "config.json", {"precision": precision})
        return runs

    alike = stored(["bf16", "bf16"], epochs=7) + stored(["float32", "float32"], epochs=8)
    mixed = stored(["bf16", "float32", "bf16"], epochs=9)
    untrained, absent = resolution.resolve("random", "smoke"), resolution.resolve("simsiam", "smoke", epochs=9, seed=9)
    assert protocol.mixed_precision([*alike, untrained, absent]) == ""
    told = protocol.mixed_precision([*alike, *mixed, absent, *mixed])
    assert "simsiam-digits-e9: bf16 for seed 0 and 2, float32 for seed 1" in told and "e7" not in told and "e8" not in told


def test_gains_are_paired_differences_against_the_reference_of_the_same_seed():
    run, listed = resolution.resolve("simsiam", "smoke", seed=1), [resolution.resolve("random", "smoke", seed=seed) for seed in (0, 1)]
    generator = np.random.default_rng(0)
    right = {"own": generator.random(400) < 0.8, 0: generator.random(400) < 0.3, 1: generator.random(400) < 0.5}
    artifacts.write_scores("smoke", resolution.run_name(run), "digits", {"knn_correct": right["own"]})
    for other in listed:
        artifacts.write_scores("smoke", resolution.run_name(other), "digits", {"knn_correct": right[other["seed"]]})
    found = protocol.gains(run, listed)
    assert found.reference.tolist() == ["random"] and found.must_beat.tolist() == [True]
    assert found.value[0] == pytest.approx(right["own"].mean() - right[1].mean()) and found.n[0] == 400
    error = (right["own"].astype(float) - right[1]).std() / 20
    assert found.ci_low[0] == pytest.approx(found.value[0] - 1.96 * error, abs=0.02)
    assert protocol.is_evidence(found) and not protocol.is_evidence(found.assign(ci_low=-0.01)) and not protocol.is_evidence(found[:0])
    assert protocol.is_evidence(found.assign(ci_low=-0.01, must_beat=False)) is False


def test_gains_are_over_the_untrained_network_of_the_same_backbone():
    run, listed = resolution.resolve("dino_vit", "smoke"), [resolution.resolve(name, "smoke") for name in ("random", "random_vit")]
    for other in (run, *listed):
        right = np.arange(10) < {"dino_vit": 8, "random": 9, "random_vit": 3}[other["method"]]
        artifacts.write_scores("smoke", resolution.run_name(other), "digits", {"knn_correct": right})
    assert protocol.gains(run, listed)[["reference", "value"]].to_numpy().tolist() == [["random_vit", 0.5]]
    assert protocol.gains(run, listed[:1])[["reference", "value"]].to_numpy().tolist() == [["random", pytest.approx(-0.1)]]


def test_raw_pixels_must_be_beaten_on_natural_images_alone():
    assert [protocol.must_beat("raw_pixels", name) for name in ("cifar10", "imagenette96", "fashion_mnist", "mnist")] == [True, True, False, False]
    assert all(protocol.must_beat(untrained, name) for untrained in protocol.UNTRAINED for name in ("cifar10", "fashion_mnist"))


# ---------------------------------------------------------------------------------------------------------------- content and style
@pytest.fixture(scope="module")
def vae_run(shared_results):
    settings = resolution.resolve("simvae", "smoke", **(TINY | {"views": 2, "representation": 6, "image_size": 16, "learning_rate": 1e-3}))
    training.train(settings)
    return protocol.Run(settings)


def test_content_is_measured_as_its_functions_say(vae_run):
    frame = protocol.measure_content(vae_run, "40_test").set_index(["condition", "classifier", "metric"])
    bank, test = vae_run.embed(vae_run.bank), vae_run.embed(vae_run.test())
    predicted, k = factors.knn_chosen(bank["features"], bank["label"], test["features"])
    stored = artifacts.read_scores("smoke", vae_run.name, "digits_content")
    assert frame.value["clean", "knn_chosen", "accuracy"] == np.mean(predicted == test["label"]) == stored["knn_chosen_correct"].mean()
    assert frame.value["clean", "knn_chosen", "k"] == k and 0.1 < frame.value["clean", "mlp_paper", "accuracy"] <= 1
    low, high = frame.loc[("clean", "mlp_paper", "accuracy"), ["ci_low", "ci_high"]]
    assert low < frame.value["clean", "mlp_paper", "accuracy"] < high
    clustered = factors.cluster(bank["features"], test["features"], test["label"], 10)
    assert [frame.value["clean", "gmm", name] for name in ("accuracy", "ari", "nmi")] == pytest.approx(clustered)
    within = frame.xs("variance_within", level="metric").value.droplevel("classifier")
    assert within["classes"] == pytest.approx(factors.variance_within(test["features"], test["label"])) and 0 < within["views"] < 1
    stored = artifacts.read_metrics("smoke", "40_test", vae_run.name)
    assert len(stored) == len(frame) and set(stored.run_hash) == {vae_run.hash}


def test_factors_are_probed_with_chance_beside_them(vae_run):
    enough = protocol.Run(vae_run.settings | {"factor_images": [400, 200]})
    frame = protocol.measure_factors(enough, "styled_digits", "40_test").set_index(["condition", "metric"]).value
    assert set(frame.index.get_level_values(0)) == {"content", "colour", "scale", "rotation", "x", "y"}
    assert {metric for name, metric in frame.index if name in ("content", "colour")} == {"accuracy", "chance"}
    assert {metric for name, metric in frame.index if name not in ("content", "colour")} == {"r2", "chance"}
    assert frame["scale", "r2"] > 0.05 > frame["scale", "chance"] == 0 and 0.05 < frame["content", "chance"] < 0.2
    assert len(artifacts.read_metrics("smoke", "40_test-styled_digits", vae_run.name)) == 12


def test_decoders_are_the_vaes_own_or_trained_once_on_frozen_features(vae_run, monkeypatch):
    assert protocol.decoder_of(vae_run) is vae_run.method
    settings = resolution.resolve("random_latent", "smoke", **(TINY | {"representation": 6, "image_size": 16}))
    training.train(settings)
    decoder = protocol.decoder_of(protocol.Run(settings))
    monkeypatch.setattr(protocol.generation, "fit_decoder", None)  # not called again
    stored = protocol.decoder_of(protocol.Run(settings))
    assert all(torch.equal(stored.state_dict()[name], value) for name, value in decoder.state_dict().items())


def test_generation_is_measured_beside_training_images(vae_run, run):
    frame = protocol.measure_generation(vae_run, run, "41_test").set_index(["condition", "metric"])
    test = vae_run.embed(vae_run.test())
    expected = (vae_run.method.picture(torch.from_numpy(test["features"])) - protocol.pixels_of(vae_run, vae_run.test())).square().mean().item()
    assert frame.value["reconstructed", "mse"] == pytest.approx(expected, rel=1e-4)
    distance = frame.xs("frechet_distance", level="metric")
    assert set(distance.index) == {"generated", "reconstructed", "train"} and set(distance.score) == {run.name}
    assert 0 <= distance.value["train"] < distance.value["reconstructed"] and 0 < distance.value["generated"]
