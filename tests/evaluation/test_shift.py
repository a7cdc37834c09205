"""lib.evaluation.shift: corruptions, what is measured on them, and scores of other sets."""

import random

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from lib.data import sources
from lib.data.sets import ImageSet
from lib.evaluation import shift, uncertainty
from lib.evaluation.measure import Run
from lib.runs import settings, store
from lib.training import loop

WITHOUT_CHANCE = {
    "defocus_blur",
    "zoom_blur",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg_compression",
}


def trained(*methods, **parameters):
    """Settings of trained smoke runs; few test images are corrupted."""
    runs = []
    for method in methods:
        run = settings.resolve(method, "smoke", train_images=256, **parameters)
        runs.append(run | {"condition_images": 20})
        loop.train(runs[-1])
    return runs


def colour(count=6, size=16):
    return sources.generated("shapes", count, size)


# ------------------------------------------------------------------------------------- corruptions
@pytest.mark.parametrize("corruption", shift.CORRUPTIONS)
def test_corruptions_depend_on_the_place_only(corruption):
    images = colour()
    state = torch.get_rng_state()
    python_state = random.getstate()
    whole = shift.corrupted(images, corruption, 5)
    assert torch.equal(torch.get_rng_state(), state) and random.getstate() == python_state
    assert whole.images.shape == images.images.shape and whole.images.dtype == np.uint8
    assert not np.array_equal(whole.images, images.images)
    np.testing.assert_array_equal(whole.labels, images.labels)
    torch.manual_seed(99)
    part = shift.corrupted(images.subset(range(3)), corruption, 5)
    np.testing.assert_array_equal(part.images, whole.images[:3])
    assert whole.name == f"{images.name}-{corruption}_5" and whole.checksum != images.checksum


@pytest.mark.parametrize("corruption", sorted(set(shift.CORRUPTIONS) - WITHOUT_CHANCE))
def test_every_image_has_random_numbers_of_its_own(corruption):
    twice = colour(2).subset([0, 0])
    first, second = shift.corrupted(twice, corruption, 5).images
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("corruption", ["impulse_noise", "contrast", "jpeg_compression"])
def test_more_severe_is_further_from_the_image(corruption):
    images = colour(24, 32)
    distances = []
    for severity in (1, 3, 5):
        changed = shift.corrupted(images, corruption, severity).images
        distances.append(np.abs(changed.astype(int) - images.images).mean())
    assert 0 < distances[0] < distances[1] < distances[2]


def test_grey_images_stay_grey():
    images = sources.load("digits", "test", image_size=16).subset(range(3))
    assert shift.corrupted(images, "snow", 3).images.shape == (3, 16, 16, 1)


def test_gaussian_noise_has_the_published_strengths():
    pixels = np.full((40, 16, 16, 3), 128, np.uint8)
    flat = ImageSet("flat", "test", pixels, np.zeros(40, int), ["grey"])
    for severity, scale in zip(shift.SEVERITIES, (0.08, 0.12, 0.18, 0.26, 0.38), strict=True):
        noise = shift.corrupted(flat, "gaussian_noise", severity).images / 255.0
        expected = np.random.default_rng(0).normal(128 / 255, scale, noise.shape).clip(0, 1)
        assert noise.std() == pytest.approx(expected.std(), rel=0.03)


# -------------------------------------------------------------------------- measures on corruptions
def test_mce_is_the_mean_of_the_ratios_of_sums():
    generator = np.random.default_rng(0)
    correct = generator.random((40, 15, 5)) < 0.6
    reference = generator.random((40, 15, 5)) < 0.6
    ratios = (~correct).mean(0).sum(1) / (~reference).mean(0).sum(1)
    error = shift.mean_corruption_error(correct, reference)
    assert error == pytest.approx(ratios.mean())
    assert shift.mean_corruption_error(correct, correct) == pytest.approx(1)
    with pytest.raises(uncertainty.UndefinedStatistic, match="gaussian_noise"):
        shift.mean_corruption_error(correct, np.ones((40, 15, 5), bool))


def store_correct(chances, seeds=(0,)):
    """Settings of runs with stored correctness on corrupted images [400, 15, 5], and the arrays."""
    generator = np.random.default_rng(0)
    runs = []
    correct = []
    for method, chance in chances.items():
        for seed in seeds:
            run = settings.resolve(method, "smoke", seed=seed) | {"bootstrap_draws": 400}
            correct.append(generator.random((400, 15, 5)) < chance)
            scores = {"correct": correct[-1]}
            store.write_scores("smoke", settings.run_name(run), "digits_corrupted", scores)
            runs.append(run)
    return runs, correct


def test_corruption_errors_are_relative_to_the_untrained_network():
    runs, correct = store_correct({"prosmin": 0.7, "random": 0.5}, seeds=(1, 0))
    errors = shift.corruption_errors(runs)
    assert errors.seed.tolist() == [1, 0, 1, 0]
    expected = [shift.mean_corruption_error(right, correct[3]) for right in correct]
    assert errors.value.tolist() == pytest.approx(expected)
    assert errors.value[3] == pytest.approx(1)
    assert errors.ci_low[0] < 0.6 < errors.ci_high[0]
    with pytest.raises(FileNotFoundError, match="make reproduce PROFILE=smoke"):
        shift.corruption_errors(runs[:2])


def test_rows_are_the_measures_on_corrupted_images():
    (run,) = trained("prosmin")
    ready = Run(run)
    rows = pd.DataFrame(shift.measure_corruptions(ready))
    assert rows.metric.value_counts().to_dict() == {
        "accuracy": 15 * 6,
        "mean": 15 * 6,
        "severity_spearman": 15,
    }
    accuracy = rows[rows.metric == "accuracy"].set_index("condition").value
    correct = store.read_scores("smoke", ready.name, "digits_corrupted")["correct"]
    fog_3 = correct[:, shift.CORRUPTIONS.index("fog"), 2]
    assert correct.shape == (20, 15, 5) and accuracy["fog_3"] == fog_3.mean()
    assert accuracy.filter(regex="_0$").nunique() == 1  # the clean images
    graded = shift.graded_accuracy(rows).set_index(["family", "corruption", "severity"])
    assert graded.value["weather", "fog", 3] == accuracy["fog_3"]
    assert len(graded) == 15 * 6 and graded.index.is_unique

    few = ready.test().sample(20)
    uncertainties = [ready.embed_unstored(few)["uncertainty"]]
    for severity in shift.SEVERITIES:
        changed = shift.corrupted(few, "snow", severity)
        uncertainties.append(ready.embed_unstored(changed)["uncertainty"])
    mean = rows[(rows.condition == "snow_4") & (rows.metric == "mean")].value.item()
    assert mean == pytest.approx(uncertainties[4].mean(), rel=1e-4)
    per_image = [
        stats.spearmanr(range(6), values).statistic for values in np.transpose(uncertainties)
    ]
    correlation = rows[(rows.condition == "snow") & (rows.metric == "severity_spearman")]
    assert correlation.value.item() == pytest.approx(np.mean(per_image), abs=1e-4)
