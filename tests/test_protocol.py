"""lib.evaluation.measure: images as a method takes them, and the battery of one run."""

import dataclasses
import itertools
import re

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.covariance import LedoitWolf
from torchvision.transforms import functional as tv

from lib import training
from lib.data import sources as data
from lib.data import views as augmentations
from lib.evaluation import encoders, uncertainty
from lib.evaluation import measure as protocol
from lib.evaluation import probes as evaluation
from lib.runs import settings as resolution
from lib.runs import store as artifacts


def noise(batch=4, channels=3, size=24):
    return torch.rand(batch, channels, size, size, generator=torch.Generator().manual_seed(0))


# ---------------------------------------------------------------------------------------------------------------- input
@pytest.mark.parametrize(("there", "wanted"), [(1, 1), (3, 3), (1, 3), (3, 1)])
@pytest.mark.parametrize("size", [24, 12, 40])
def test_fit_gives_channels_and_size(there, wanted, size):
    images = noise(channels=there)
    fitted = protocol.fit({"image_size": size}, wanted)(images)
    assert fitted.shape == (4, wanted, size, size) and fitted.min() >= 0 and fitted.max() <= 1
    if size == 24:
        expected = (
            tv.rgb_to_grayscale(images)
            if there > wanted
            else images.repeat(1, wanted // there, 1, 1)
        )
        torch.testing.assert_close(fitted, expected)


def test_classes_in_another_order_are_refused():
    train, test = (data.load("digits", split, image_size=8) for split in ("train", "test"))
    protocol.check_classes(train, test)
    with pytest.raises(
        ValueError, match="have their classes in another order, .*give both files the same order"
    ):
        protocol.check_classes(train, dataclasses.replace(test, classes=test.classes[::-1]))


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
    sharpness = [
        protocol.blur(sigma)(images).diff(dim=-1).abs().mean().item()
        for sigma in protocol.BLUR_SIGMAS
    ]
    assert sharpness == sorted(sharpness, reverse=True) and len(set(sharpness)) == 5
    torch.testing.assert_close(
        protocol.blur(2.0)(images),
        tv.gaussian_blur(images, [13, 13], [2.0, 2.0]),
        rtol=0,
        atol=1e-5,
    )
    assert torch.allclose(protocol.blur(3.0)(torch.full((1, 3, 24, 24), 0.4)), torch.tensor(0.4))


def test_conditions_are_named_by_family_and_severity():
    names = list(protocol.conditions())
    assert len(names) == len(protocol.KEPT_AREAS) + len(protocol.BLUR_SIGMAS)
    assert all(re.fullmatch(r"(crop|blur)_\d+(\.\d+)?", name) for name in names)
    assert {"crop_1", "crop_0.05", "blur_0", "blur_0.5"} <= set(names)
    assert all(
        condition(noise()).shape == (4, 3, 24, 24) for condition in protocol.conditions().values()
    )


# ---------------------------------------------------------------------------------------------------------------- one run
def test_train_and_test_of_unlike_classes_are_an_error(run, monkeypatch):
    classes = [*run.train.classes[:-1], "other"]
    monkeypatch.setattr(run, "train", dataclasses.replace(run.train, classes=classes))
    with pytest.raises(
        ValueError, match="Train and test of digits differ in the classes .*'other'"
    ):
        run.test()


def test_embed_answers_from_its_store(run, monkeypatch):
    test = run.test().subset(range(30))
    first = run.embed(test, "kept")
    assert first["features"].shape == (30, 16) and np.array_equal(
        first["uncertainty"], -first["kappa"]
    )
    path = artifacts.run_dir("smoke", run.name) / "embeddings" / "digits-test-30-kept.npz"
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
    for images in 2 * [run.test(), run.test().sample(40)]:
        run.embed(images, "kept")
    assert len(computed) == 3, "a set and a sample of it are stored side by side"
    computed.clear()
    monkeypatch.setattr(run, "hash", "another")  # other weights
    monkeypatch.setattr(training, "is_finished", lambda *_: True)
    run.embed(run.test().subset(range(1, 31)), "kept")
    assert len(computed) == 1


def test_embed_applies_the_condition_after_fitting(run):
    images = data.load("generated", "test").subset(
        range(8)
    )  # 32 x 32, three channels; the run takes 9 x 9, one
    seen = []
    run.embed(images, "seen", lambda batch: seen.append(tuple(batch.shape)) or batch)
    assert seen == [(8, 1, 9, 9)]
    blurred = run.embed(images, "blurred", protocol.blur(2.0))
    assert not np.allclose(blurred["features"], run.embed(images)["features"])


def test_weights_of_other_settings_are_not_used(run):
    stale = protocol.Run(run.settings)
    stale.hash = "another"
    with pytest.raises(
        FileNotFoundError,
        match=f"{run.name} has no weights here that were trained with these settings.*PROFILE=smoke",
    ):
        _ = stale.method
    with pytest.raises(FileNotFoundError, match="make reproduce PROFILE=smoke"):
        _ = protocol.Run(run.settings | {"seed": 7}).method


def test_measure_writes_metrics_and_scores(run, frame):
    stored = artifacts.read_metrics("smoke", protocol.MEASURED_BY, run.name)
    pd.testing.assert_series_equal(
        stored.value,
        frame.value.map(lambda value: float(f"{value:.{artifacts.METRIC_DIGITS}g}")),
        rtol=1e-8,
    )  # as stored
    identity = {
        "method": "vi_simsiam",
        "trained_on": "digits (256 images)",
        "seed": 0,
        "profile": "smoke",
        "notebook": protocol.MEASURED_BY,
        "run_hash": resolution.run_hash(run.settings, run.train.checksum),
        "commit": artifacts.commit(),
        "variant": resolution.variant(run.settings),
    }
    for column, value in identity.items():
        assert set(stored[column]) == {value}, column
    assert set(stored.evaluated_on) == {"digits", "generated"} and set(
        stored[stored.condition == "near_ood"].evaluated_on
    ) == {"generated"}
    assert (
        set(protocol.conditions()) <= set(stored.condition)
        and (stored[stored.condition == "crop_0.2"].n == 40).all()
    )
    scores = artifacts.read_scores("smoke", run.name, "digits")
    assert len(scores["label"]) == 359 and {
        "linear_correct",
        "knn_correct",
        "kappa",
        "uncertainty",
    } <= set(scores)
    accuracy = stored[(stored.metric == "accuracy") & (stored.condition == "clean")].set_index(
        "classifier"
    )
    rounding = 5 * 10**-artifacts.METRIC_DIGITS
    assert (
        accuracy.value["knn"] == pytest.approx(scores["knn_correct"].mean(), rel=rounding)
        and accuracy.n["knn"] == 359
    )
    mean = (
        stored[(stored.metric == "mean") & (stored.score == "kappa")].set_index("condition").value
    )
    assert mean["clean"] == pytest.approx(scores["kappa"].mean(), rel=rounding)
    assert mean["crop_1"] == pytest.approx(
        mean["blur_0"], rel=1e-6
    )  # two names of the untouched image
    assert not artifacts.encoder_path(
        "vi_simsiam", "smoke"
    ).exists()  # encoders are those of standard


def test_the_papers_probe_is_stored_once_for_each_run(run, monkeypatch):
    notebook = "20_linear_and_knn_evaluation"
    protocol.probe_by_the_paper(
        [run.settings, run.settings | {"seed": 7}], notebook
    )  # of the second there is no network
    stored = artifacts.read_metrics("smoke", notebook, run.name)
    assert (
        set(stored.run_hash) == {run.hash}
        and set(stored.classifier) == {"linear_paper"}
        and (stored.n == 359).all()
    )
    bank, test = run.embed(run.bank), run.embed(run.test())
    probe = evaluation.paper_probe(bank["features"], bank["label"])
    value = stored.set_index("metric").value
    assert value["accuracy"] == pytest.approx(
        np.mean(probe.predict(test["features"]) == test["label"]), abs=1e-3
    )
    assert value["accuracy"] <= value["top5_accuracy"] <= 1
    monkeypatch.setattr(evaluation, "paper_probe", None)
    protocol.probe_by_the_paper([run.settings], notebook)


def test_runs_on_a_set_that_is_not_here_are_not_at_hand(run, monkeypatch, tmp_path):
    absent = resolution.resolve("vi_simsiam", "standard", dataset="imagenette96")
    assert [
        found.name for found in protocol.at_hand([run.settings, run.settings | {"seed": 7}])
    ] == [run.name]
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    assert list(protocol.at_hand([absent])) == []


def test_runs_that_notebooks_of_their_own_compare_leave_no_scores_of_the_battery():
    kept = {
        name: protocol._is_compared(resolution.resolve(name, "smoke"))
        for name in ("vi_simsiam", "simvae", "simsiam", "ibot")
    }
    assert kept == {"vi_simsiam": True, "simvae": False, "simsiam": True, "ibot": True}
    assert protocol._is_compared(resolution.resolve("simvae", "smoke", seed=7)), (
        "a run that nobody lists"
    )
    for other in (
        {"method": "simvae", "views": 3},
        {"method": "simsiam", "epochs": 2},
        {"method": "vi_simsiam", "dataset": "generated"},
    ):
        assert not protocol._is_compared(resolution.resolve(profile="smoke", **other)), other


def test_a_run_that_methods_are_compared_by_is_so_in_whatever_other_groups_it_is(monkeypatch):
    run = resolution.resolve("simsiam", "smoke")
    groups = {"lengths": [run], "controls": [run]}
    monkeypatch.setattr(
        resolution,
        "runs",
        lambda profile, paper="all", group="all": groups.get(
            group, [run] if group == "all" else []
        ),
    )
    assert not protocol._is_compared(run), "two groups, of which neither compares methods"
    groups["vit"] = [run]
    assert protocol._is_compared(run)


def test_of_simvaes_comparison_an_uncertainty_of_its_own_is_stored_too(run, monkeypatch):
    monkeypatch.setattr(
        resolution,
        "runs",
        lambda profile, paper="all", group="all": (
            [run.settings] if group in ("simvae", "all") else []
        ),
    )
    of_all = set(protocol.READ_OF_OTHERS) - set(
        ["linear_top5_correct"] * (run.settings["method"] not in protocol.WITH_TOP5)
    )
    protocol.measure(run)
    stored = artifacts.read_scores("smoke", run.name, run.settings["dataset"])
    assert set(stored) == of_all | {"uncertainty"} and stored["uncertainty"].shape == (359,)
    rows, scores = protocol._battery(run, graded=False)
    monkeypatch.setattr(
        protocol,
        "_battery",
        lambda run, graded: (rows, scores | {"uncertainty": -scores["feature_norm"]}),
    )
    protocol.measure(run)
    assert set(artifacts.read_scores("smoke", run.name, run.settings["dataset"])) == of_all, (
        "no trivial uncertainty"
    )
    monkeypatch.setattr(
        protocol, "WITH_TOP5", () if "linear_top5_correct" in of_all else (run.settings["method"],)
    )
    protocol.measure(run)
    assert of_all ^ set(artifacts.read_scores("smoke", run.name, run.settings["dataset"])) == {
        "linear_top5_correct"
    }


def test_of_runs_that_are_compared_on_the_clean_test_set_that_alone_is_stored(run, monkeypatch):
    assert {"clean", "crop_0.4", "near_ood"} <= set(protocol.measure(run).condition)
    monkeypatch.setattr(protocol, "_is_graded", lambda settings: False)
    assert set(protocol.measure(run).condition) == {"clean"}


def test_simvaes_comparison_is_graded_on_the_data_that_methods_are_compared_on():
    usual, other, listed = (
        resolution.resolve("simvae", "smoke", **changes)
        for changes in ({}, {"dataset": "styled_digits"}, {"views": 3})
    )
    assert [protocol._is_graded(run) for run in (usual, other, listed)] == [True, False, False]


def test_a_run_is_measured_if_the_stored_metrics_are_of_its_settings_and_data_by_todays_code(
    run, monkeypatch
):
    assert not protocol.is_measured(run, "99_other")
    rows = [{"metric": "accuracy", "value": 0.5}]
    run.write_metrics(rows, "99_other")
    assert protocol.is_measured(run, "99_other") and not protocol.is_measured(run, "99_other-part")
    more = protocol.Run(run.settings | {"bootstrap_draws": 7})
    assert more.hash == run.hash and not protocol.is_measured(more, "99_other"), (
        "a setting of measuring alone"
    )

    with monkeypatch.context() as edited:
        edited.setattr(artifacts, "code_hash", lambda source: "another")
        assert not protocol.is_measured(run, "99_other"), "the code was edited"
        with monkeypatch.context() as away:
            away.setattr(protocol.training, "is_finished", lambda *names: False)
            assert protocol.is_measured(run, "99_other"), "without weights what is stored counts"
        run.write_metrics(rows, "99_other")
        assert protocol.is_measured(run, "99_other")
    assert not protocol.is_measured(run, "99_other"), "one measure, one stamp"

    artifacts.write_metrics(
        "smoke", "99_other", run.name, rows, **(run.identity("99_other") | {"run_hash": "another"})
    )
    assert not protocol.is_measured(run, "99_other")


def test_stored_embeddings_are_of_todays_code(run, monkeypatch):
    few = run.test().sample(4)
    asked = []
    embed = protocol.evaluation.embed
    monkeypatch.setattr(
        protocol.evaluation,
        "embed",
        lambda *given, **more: asked.append(1) or embed(*given, **more),
    )
    for code, times in (("a", 1), ("a", 1), ("b", 2)):
        monkeypatch.setattr(artifacts, "code_hash", lambda source, code=code: code)
        run.embed(few, "of_todays_code")
        assert len(asked) == times


def test_raw_pixels_are_not_stored(shared_results, tiny):
    settings = resolution.resolve("raw_pixels", "smoke", **tiny)
    training.train(settings)
    run = protocol.Run(settings)
    assert run.embed(run.test().subset(range(5)))["features"].shape == (5, 81)
    assert not (artifacts.run_dir("smoke", run.name) / "embeddings").exists()


# ---------------------------------------------------------------------------------------------------------------- stored runs
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"method": "prosmin_vit"},
        {"seed": 1},
        {"epochs": 5},
        {"dataset": "mnist"},
        {"method": "random"},
        {"method": "random_vit"},
    ],
)
def test_only_the_seed_0_run_that_is_compared_leaves_an_encoder(changes):
    settings = resolution.resolve(**({"method": "vi_simsiam", "profile": "standard"} | changes))
    assert protocol._leaves_encoder(settings) == (changes in ({}, {"method": "prosmin_vit"}))


@pytest.mark.parametrize("profile", ["standard", "smoke"])
def test_measuring_writes_the_encoder_in_standard_alone(profile, run, monkeypatch):
    asked = []
    monkeypatch.setattr(encoders, "write", lambda *_: asked.append(1))
    monkeypatch.setattr(protocol, "_leaves_encoder", lambda _: True)
    monkeypatch.setattr(protocol, "_battery", lambda run, graded: ([], {}))
    monkeypatch.setattr(artifacts, "write_metrics", lambda *_, **__: None)
    monkeypatch.setattr(artifacts, "write_scores", lambda *_: None)
    monkeypatch.setattr(run, "profile", profile)
    protocol.measure(run)
    assert len(asked) == (profile == "standard")


def test_a_tuning_run_is_measured_on_validation_alone(shared_results, tiny):
    settings = resolution.resolve(
        "simsiam", "smoke", **(tiny | {"split": "fit", "train_images": 0})
    )
    training.train(settings)
    frame = protocol.measure(protocol.Run(settings))
    assert (
        len(frame) == 1
        and frame.condition[0] == "validation"
        and frame.n[0] == 143
        and 0.1 < frame.value[0] <= 1
    )
    assert not artifacts.scores_path("smoke", resolution.run_name(settings), "digits").exists()


def test_a_run_on_one_class_is_measured_by_how_it_tells_the_others_apart(shared_results):
    settings = resolution.resolve("vje", "smoke", dataset="digits_class_3")
    training.train(settings)
    run = protocol.Run(settings)
    frame = protocol.measure(run).set_index("score")
    assert (
        set(frame.condition) == {"one_class"}
        and set(frame.metric) == {"ood_auroc"}
        and set(frame.n) == {359}
    )
    assert {
        "uncertainty",
        "feature_norm",
        "knn_distance",
        "mahalanobis",
        "likelihood_and_kl",
        "other_view",
    } <= set(frame.index)
    test, fitted = data.load("digits", "test", image_size=16), protocol.fit(settings, 1)
    own = evaluation.embed(run.method, test, transform=fitted)
    expected = uncertainty.auroc(own["uncertainty"], test.labels != 3)
    own_row = frame.loc["uncertainty"]
    assert (
        own_row.value == pytest.approx(expected, abs=1e-6)
        and own_row.ci_low < expected < own_row.ci_high
    )
    train = evaluation.embed(run.method, run.train, transform=fitted)["features"].astype(np.float64)
    difference, precision = (
        own["features"] - train.mean(0),
        np.linalg.inv(LedoitWolf().fit(train).covariance_),
    )
    distance = np.einsum("nd,de,ne->n", difference, precision, difference)
    assert frame.value["mahalanobis"] == pytest.approx(
        uncertainty.auroc(distance, test.labels != 3), abs=1e-6
    )


def test_sets_that_cannot_be_had_are_named_before_any_training(tmp_path, monkeypatch):
    """Also those that networks are asked about and not trained on; each once, whatever is drawn on it; not where nothing is asked about them."""
    monkeypatch.setenv("DATA_DIR", str(tmp_path / "nothing"))
    foreign = {
        "dataset": "styled_digits",
        "ood_near": ["own", "styled_own"],
        "ood_far": ["digits_class_3", "own_class_2"],
    }
    run = resolution.resolve("simsiam", "smoke") | foreign
    (reason,) = protocol.missing_sets([run, run])
    assert "no set 'own'" in reason
    assert (
        protocol.missing_sets([run | {"split": "fit"}, run | {"dataset": "digits_class_1"}])
        == []
        == protocol.missing_sets([])
    )
    monkeypatch.setattr(protocol, "_is_graded", lambda settings: False)
    assert protocol.missing_sets([run]) == []
    for split, labels in (("train", [0, 1, 2]), ("test", [0, 1])):
        pixels = np.zeros((len(labels), 8, 8, 3), np.uint8)
        artifacts.write_npz(
            tmp_path / "nothing" / "mine" / f"{split}.npz", images=pixels, labels=np.array(labels)
        )
    assert "differ in the classes ['2']" in protocol.missing_sets([run | {"dataset": "mine"}])[0]
    for split in ("train", "test"):
        artifacts.write_npz(
            tmp_path / "nothing" / "mine" / f"{split}.npz",
            images=np.zeros((3, 8, 8, 3), np.uint8),
            labels=np.zeros(3, int),
        )
    assert "has one class, '0'" in protocol.missing_sets([run | {"dataset": "mine"}])[0]
    (tmp_path / "nothing" / "mine").rename(tmp_path / "nothing" / "dogs_class_1")
    assert (
        "has one class, '0'"
        in protocol.missing_sets([run | {"dataset": "dogs_class_1", "split": "fit"}])[0]
    ), "a folder's name is its own"
    assert (
        "no set 'other'" in protocol.missing_sets([run | {"dataset": "other", "split": "fit"}])[0]
    )
    for split, name in itertools.product(("train", "test"), ("a", "b")):
        (tmp_path / "nothing" / "birds" / split / name).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(np.full((9, 9, 3), 9 * number, np.uint8)).save(
                tmp_path / "nothing" / "birds" / split / name / f"{number}.png"
            )
    assert protocol.missing_sets([run | {"dataset": "birds"}]) == []
    (tmp_path / "nothing" / "birds" / "test" / "b" / "1.png").write_bytes(b"no picture")
    assert "1.png is not a readable image" in protocol.missing_sets([run | {"dataset": "birds"}])[0]


def test_measured_runs_are_the_listed_ones_with_metrics(shared_results, monkeypatch, tiny):
    listed = [resolution.resolve("simsiam", "smoke", seed=seed, **tiny) for seed in (5, 6)]
    monkeypatch.setattr(resolution, "runs", lambda *_: listed)
    with pytest.raises(FileNotFoundError, match="make reproduce PROFILE=smoke"):
        protocol.measured_runs("smoke")
    artifacts.write_metrics(
        "smoke",
        protocol.MEASURED_BY,
        resolution.run_name(listed[1]),
        [{"method": "simsiam", "value": 1.0}],
    )
    assert (
        protocol.measured_runs("smoke") == [listed[1]] and len(protocol.metrics([listed[1]])) == 1
    )
    with pytest.raises(FileNotFoundError, match="seed5 has no stored metrics"):
        protocol.metrics(listed)


@pytest.mark.parametrize(
    "place", [(-0.1, 0, 0.5), (0.6, 0, 0.5), (0, 0.6, 0.5), (0, 0, 0), (0, 0, 1.1)]
)
def test_a_square_outside_the_image_is_refused(place):
    with pytest.raises(ValueError, match="not inside the image"):
        protocol.square_crop(*place)


def test_square_crop_takes_the_square_at_its_place():
    images = noise(size=16)
    for top, left in ((0, 0), (0.25, 0.5), (0.5, 0.5)):
        row, column = int(16 * top), int(16 * left)
        whole = augmentations.resize(images[:, :, row : row + 8, column : column + 8], 16)
        torch.testing.assert_close(protocol.square_crop(top, left)(images), whole)
    assert protocol.pixels_of_square(0.99, 0.98, 0.01, 32) == (30, 30, 2), (
        "two pixels at least, and those inside"
    )


def test_the_bank_is_train_or_its_first_images(run, monkeypatch):
    assert run.bank is run.train
    monkeypatch.setattr(run, "settings", run.settings | {"bank_images": 100})
    assert len(run.bank) == 100 and (run.bank.labels == run.train.labels[:100]).all()
    monkeypatch.setattr(run, "settings", run.settings | {"bank_images": 10_000})
    assert run.bank is run.train


def test_kappa_of_views_is_that_of_each_image_under_other_views(run):
    few, kappa = protocol.kappa_of_views(run, 3)
    assert (
        len(few) == run.settings["condition_images"]
        and kappa.shape == (3, len(few))
        and len(np.unique(kappa, axis=0)) == 3
    )
    images = protocol.fit(run.settings, run.channels)(
        few.batch(np.arange(len(few))).float() / 255
    )  # [N, C, S, S]
    strengths = augmentations.recipe(run.settings["augmentation"])
    for i, row in enumerate(kappa):
        generator = torch.Generator().manual_seed(
            training.seed_of(run.settings["seed"], "kappa views", i)
        )
        with torch.inference_mode():
            views = augmentations.augment(images, run.settings["image_size"], strengths, generator)
            expected = run.method.embed(views).native["kappa"]
        np.testing.assert_allclose(row, expected.numpy(), rtol=1e-4)
