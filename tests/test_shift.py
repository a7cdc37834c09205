"""lib.evaluation.shift: corruptions that depend on nothing but the image's place, and what is measured on them."""

import random

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from sklearn.covariance import LedoitWolf

from lib import training
from lib.data import sources as data
from lib.evaluation import measure as protocol
from lib.evaluation import probes as evaluation
from lib.evaluation import shift, uncertainty
from lib.runs import settings
from lib.runs import store as artifacts


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "RESULTS", tmp_path / "results")


def colour(count=6, size=16):
    return data.generated("shapes", count, size)


@pytest.mark.parametrize("corruption", shift.CORRUPTIONS)
def test_corruptions_depend_on_the_place_alone(corruption):
    images = colour()
    before, python = torch.get_rng_state(), random.getstate()
    whole = shift.corrupted(images, corruption, 5)
    assert torch.equal(torch.get_rng_state(), before) and random.getstate() == python
    assert whole.images.shape == images.images.shape and whole.images.dtype == np.uint8
    assert not np.array_equal(whole.images, images.images) and np.array_equal(
        whole.labels, images.labels
    )
    assert np.array_equal(
        shift.corrupted(images.subset(range(3)), corruption, 5).images, whole.images[:3]
    )
    torch.manual_seed(99)
    assert np.array_equal(shift.corrupted(images, corruption, 5).images, whole.images)
    assert whole.name == f"{images.name}-{corruption}_5" and whole.checksum != images.checksum


@pytest.mark.parametrize(
    "corruption",
    [
        "gaussian_noise",
        "shot_noise",
        "impulse_noise",
        "brightness",
        "contrast",
        "pixelate",
        "jpeg_compression",
    ],
)
def test_more_severe_is_further_from_the_image(corruption):
    images = colour(24, 32)
    moved = [
        np.abs(
            shift.corrupted(images, corruption, severity).images.astype(int) - images.images
        ).mean()
        for severity in (1, 3, 5)
    ]
    assert 0 < moved[0] < moved[1] < moved[2]


@pytest.mark.parametrize("corruption", ["snow", "frost", "elastic", "gaussian_noise"])
def test_grey_images_stay_grey(corruption):
    images = data.load("digits", "test", image_size=16).subset(range(3))
    assert shift.corrupted(images, corruption, 3).images.shape == (3, 16, 16, 1)


def test_gaussian_noise_has_the_published_strengths():
    flat = data.ImageSet(
        "flat", "test", np.full((40, 16, 16, 3), 128, np.uint8), np.zeros(40, int), ["grey"]
    )
    for severity, scale in zip(shift.SEVERITIES, (0.08, 0.12, 0.18, 0.26, 0.38), strict=True):
        noise = shift.corrupted(flat, "gaussian_noise", severity).images / 255.0
        inside = np.random.default_rng(0).normal(128 / 255, scale, noise.shape).clip(0, 1).std()
        assert noise.std() == pytest.approx(inside, rel=0.03)
    assert len(shift.CORRUPTIONS) == 15 == len(set(shift.CORRUPTIONS))


@pytest.mark.parametrize("corruption, severity", [("rain", 1), ("snow", 0), ("snow", 6)])
def test_unknown_corruptions_are_errors(corruption, severity):
    with pytest.raises(
        ValueError,
        match=f"Unknown corruption '{corruption}' of severity {severity}; choose one of gaussian_noise, .* and 1 to 5",
    ):
        shift.corrupted(colour(), corruption, severity)


# ---------------------------------------------------------------------------------------------------------------- measures
def test_mce_is_the_mean_of_the_ratios_of_sums():
    generator = np.random.default_rng(0)
    ours, theirs = (generator.random((40, 15, 5)) < 0.6 for _ in range(2))
    rows = [
        sum((~ours[:, k, s]).mean() for s in range(5))
        / sum((~theirs[:, k, s]).mean() for s in range(5))
        for k in range(15)
    ]
    assert shift.mean_corruption_error(ours, theirs) == pytest.approx(100 * sum(rows) / 15)
    assert shift.mean_corruption_error(ours, ours) == pytest.approx(100)
    with pytest.raises(ValueError, match=r"arrays \[N, 15, 5\], got \[40, 14, 5\]"):
        shift.mean_corruption_error(ours[:, 1:], theirs)
    with pytest.raises(ValueError, match="no error under gaussian_noise"):
        shift.mean_corruption_error(ours, np.ones((40, 15, 5), bool))
    rarely_wrong = np.arange(200)[:, None, None] * np.ones((1, 15, 5)) >= 3
    error = evaluation.with_interval(
        shift.mean_corruption_error, rarely_wrong, rarely_wrong, draws=200
    )
    assert error["ci_low"] == error["ci_high"] == pytest.approx(100), (
        "draws without an error of the reference are drawn again"
    )


def test_corruption_errors_are_the_runs_own_with_intervals_over_images():
    generator = np.random.default_rng(0)
    correct = {
        name: generator.random((400, 15, 5)) < chance
        for name, chance in {"a": 0.7, "b": 0.5}.items()
    }
    runs = {"a": {"method": "prosmin", "seed": 1}, "b": {"method": "random", "seed": 0}}
    with pytest.raises(ValueError, match="no error under gaussian_noise"):
        shift.corruption_errors(runs, correct | {"b": np.ones((400, 15, 5), bool)}, "b", 20)
    found = shift.corruption_errors(runs, correct, "b", draws=100)
    assert found[["method", "seed"]].values.tolist() == [["prosmin", 1], ["random", 0]]
    assert found.mce.tolist() == pytest.approx(
        [shift.mean_corruption_error(correct["a"], correct["b"]), 100]
    )
    assert found.mce_low[0] < 60 < found.mce_high[
        0
    ] < 65 and found.corrupted.tolist() == pytest.approx([70, 50], abs=1)


def test_a_run_is_measured_on_every_corruption_once(results, monkeypatch):
    runs = [
        settings.resolve(name, "smoke", train_images=256) | {"condition_images": 8}
        for name in ("prosmin", "random")
    ]
    for run in runs:
        training.train(run)
    shift.measure_corruptions(runs, "50_test")
    ready = protocol.Run(runs[0])
    found = artifacts.read_metrics("smoke", "50_test", ready.name)
    accuracy = found[found.metric == "accuracy"]
    assert (
        len(accuracy) == 15 * 6
        and len(found[found.metric == "mean"]) == 15 * 6
        and len(found[found.metric == "severity_spearman"]) == 15
    )
    correct = artifacts.read_scores("smoke", ready.name, "digits_corrupted")["correct"]
    place = shift.CORRUPTIONS.index("fog"), 2
    assert (
        correct.shape == (8, 15, 5)
        and accuracy[accuracy.condition == "fog_3"].value.item() == correct[:, *place].mean()
    )
    assert (
        accuracy[accuracy.condition.str.endswith("_0")].value.nunique() == 1
        and (accuracy.n == 8).all()
    )

    images = shift.corrupted(ready.test().subset(range(8)), "snow", 4)
    features = torch.stack([protocol.fit(runs[0], 1)(images.batch(range(8)).float() / 255)])[0]
    method = ready.method.eval()
    with torch.no_grad():
        embedding = method.embed(features)
    snow = found[(found.condition == "snow_4") & (found.metric == "mean")].value.item()
    as_stored = float(f"{embedding.uncertainty.mean().item():.{artifacts.METRIC_DIGITS}g}")
    assert snow == pytest.approx(as_stored, rel=1e-5)
    few = ready.test().subset(ready.test().places(8))
    said = [
        ready.ask(few if severity == 0 else shift.corrupted(few, "snow", severity))["uncertainty"]
        for severity in range(6)
    ]
    expected = np.mean([stats.spearmanr(range(6), own).statistic for own in np.stack(said, 1)])
    told = found[(found.condition == "snow") & (found.metric == "severity_spearman")].value.item()
    assert told == pytest.approx(expected, abs=1e-4) and abs(told) > 0.01

    def corrupt_again(*arguments, **options):
        raise AssertionError("measured twice")

    monkeypatch.setattr(shift, "corrupted", corrupt_again)
    shift.measure_corruptions(runs, "50_test")


def test_of_a_set_sorted_by_class_severity_0_is_of_the_same_images(results, monkeypatch):
    run = settings.resolve("random", "smoke", train_images=256) | {"condition_images": 20}
    training.train(run)
    test = protocol.Run(run).test()
    ordered = test.subset(np.argsort(test.labels, kind="stable"))
    monkeypatch.setattr(protocol.Run, "test", lambda self: ordered)
    shift.measure_corruptions([run], "50_test")
    found = (
        artifacts.read_metrics("smoke", "50_test", settings.run_name(run))
        .query("condition == 'fog_0'")
        .set_index("metric")
        .value
    )
    ready, few = protocol.Run(run), ordered.sample(20)
    bank, asked = ready.embed(ready.bank), ready.ask(few)
    right = (
        shift.evaluation.linear_probe(bank["features"], bank["label"]).predict(asked["features"])
        == few.labels
    )
    assert found["accuracy"] == right.mean() and found["mean"] == pytest.approx(
        asked["uncertainty"].mean(), rel=1e-5
    )


def test_of_other_runs_the_rank_correlation_with_the_severity_alone_is_stored(results, monkeypatch):
    runs = [
        settings.resolve(name, "smoke", train_images=256) | {"condition_images": 8}
        for name in ("random", "simsiam")
    ]
    for run in runs:
        training.train(run)
    shift.measure_corruptions(runs, "50_whole")
    monkeypatch.setattr(
        shift.evaluation, "linear_probe", lambda *_: pytest.fail("no probe is asked for")
    )
    shift.measure_corruptions([], "50_test", runs)
    for name in map(settings.run_name, runs):
        whole, brief = (
            artifacts.read_metrics("smoke", notebook, name)
            for notebook in ("50_whole", f"50_test-{shift.SEVERITY}")
        )
        same = whole[whole.metric == "severity_spearman"]
        pd.testing.assert_frame_equal(
            brief.drop(columns="notebook"), same.drop(columns="notebook").reset_index(drop=True)
        )
        assert len(brief) == 15 and artifacts.read_metrics("smoke", "50_test", name).empty
    monkeypatch.setattr(shift, "corrupted", lambda *_, **__: pytest.fail("measured twice"))
    shift.measure_corruptions([], "50_test", runs)


def test_other_scores_are_the_methods_own_by_the_common_measures(results):
    run = settings.resolve("prosmin", "smoke", train_images=256)
    training.train(run)
    ready = protocol.Run(run)
    shift.measure_other_scores(ready, "50_test")
    found = artifacts.read_metrics("smoke", "50_test-ood", ready.name)
    assert set(found.score) == {
        "log_sigma",
        "mean_sigma",
        "sample_spread",
        "target_energy",
        "mahalanobis",
    } and set(found.condition) == {"near_ood"}
    known, other = (
        ready.embed(images)["log_sigma"] for images in (ready.test(), ready.other("generated"))
    )
    expected = uncertainty.auroc(
        np.append(known, other), np.repeat([False, True], [len(known), len(other)])
    )
    row = found[(found.score == "log_sigma") & (found.metric == "ood_auroc")].iloc[0]
    assert (
        row.value == float(f"{expected:.{artifacts.METRIC_DIGITS}g}")
        and row.ci_low <= row.value <= row.ci_high
    )
    gaussian = LedoitWolf().fit(ready.embed(ready.bank)["features"].astype(np.float64))
    known, other = (
        gaussian.mahalanobis(ready.embed(images)["features"].astype(np.float64))
        for images in (ready.test(), ready.other("generated"))
    )
    distance = uncertainty.auroc(
        np.append(known, other), np.repeat([False, True], [len(known), len(other)])
    )
    assert found[
        (found.score == "mahalanobis") & (found.metric == "ood_auroc")
    ].value.item() == pytest.approx(distance, abs=1e-4)
    shift.store_outside_scores(ready)
    stored = artifacts.read_scores("smoke", ready.name, "generated_outside")
    assert [shift.outside({"ood_near": near, "ood_far": ["b"]}) for near in (["a"], [])] == [
        "a",
        "b",
    ]
    assert shift.outside(run) == "generated" and uncertainty.auroc(
        stored["uncertainty"], stored["outside"]
    ) == pytest.approx(expected, abs=1e-4)


WITHOUT_CHANCE = {
    "defocus_blur",
    "zoom_blur",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg_compression",
}


@pytest.mark.parametrize("corruption", sorted(set(shift.CORRUPTIONS) - WITHOUT_CHANCE))
def test_every_image_has_random_numbers_of_its_own(corruption):
    twice = colour(2).subset([0, 0])
    first, second = shift.corrupted(twice, corruption, 5).images
    assert not np.array_equal(first, second)


def test_runs_measured_together_have_each_its_own_probe(results, monkeypatch):
    monkeypatch.setattr(shift, "CORRUPTIONS", ("contrast", "pixelate"))
    runs = [
        settings.resolve("random", "smoke", train_images=256, seed=seed) | {"condition_images": 30}
        for seed in (0, 1)
    ]
    for run in runs:
        training.train(run)
    shift.measure_corruptions(runs, "50_together")
    shift.measure_corruptions(runs[1:], "50_alone")
    together, alone = (
        artifacts.read_metrics("smoke", notebook, settings.run_name(runs[1]))
        for notebook in ("50_together", "50_alone")
    )
    pd.testing.assert_frame_equal(together.drop(columns="notebook"), alone.drop(columns="notebook"))
