"""lib.evaluation.shift: corruptions, what is measured on them, and scores of other sets."""

import random

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from lib.data import sources
from lib.evaluation import shift, uncertainty
from lib.evaluation.measure import Run
from lib.runs import settings, store
from lib.training import loop

BLURS = {"defocus_blur", "zoom_blur"}
WITHOUT_CHANCE = BLURS | {"brightness", "contrast", "pixelate", "jpeg_compression"}


def colour(count=6, size=16):
    return sources.generated(count, size)


# ------------------------------------------------------------------------------------- corruptions
@pytest.mark.parametrize("corruption", shift.CORRUPTIONS)
def test_corruptions_depend_on_the_place_only(corruption):
    images = colour()
    state = (torch.get_rng_state().tolist(), random.getstate())
    whole = shift.corrupted(images, corruption, 5)
    assert (torch.get_rng_state().tolist(), random.getstate()) == state
    assert whole.images.shape == images.images.shape and whole.images.dtype == np.uint8
    assert not np.array_equal(whole.images, images.images)
    np.testing.assert_array_equal(whole.labels, images.labels)
    torch.manual_seed(99)
    part = shift.corrupted(images.subset(range(3)), corruption, 5)
    np.testing.assert_array_equal(part.images, whole.images[:3])


@pytest.mark.parametrize("corruption", sorted(set(shift.CORRUPTIONS) - WITHOUT_CHANCE))
def test_every_image_has_random_numbers_of_its_own(corruption):
    twice = colour(2).subset([0, 0])
    first, second = shift.corrupted(twice, corruption, 5).images
    assert not np.array_equal(first, second)


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


def test_corruption_errors_are_relative_to_the_untrained_network():
    generator = np.random.default_rng(0)
    runs = []
    correct = []
    for method, seed in (("prosmin", 1), ("prosmin", 0), ("random", 1), ("random", 0)):
        run = settings.resolve(method, "smoke", seed=seed) | {"bootstrap_draws": 400}
        runs.append(run)
        correct.append(generator.random((400, 15, 5)) < (0.7 if method == "prosmin" else 0.5))
        scores = {"correct": correct[-1]}
        store.write_scores("smoke", settings.run_name(run), "digits_corrupted", scores)
    errors = shift.corruption_errors(runs)
    assert errors.seed.tolist() == [1, 0, 1, 0]
    expected = [shift.mean_corruption_error(right, correct[3]) for right in correct]
    assert errors.value.tolist() == pytest.approx(expected)
    assert errors.value[3] == pytest.approx(1)
    assert errors.ci_low[0] < 0.6 < errors.ci_high[0]
    with pytest.raises(FileNotFoundError, match="make reproduce PROFILE=smoke"):
        shift.corruption_errors(runs[:2])


def test_rows_are_the_measures_on_corrupted_images():
    run = settings.resolve("prosmin", "smoke", train_images=256) | {"condition_images": 20}
    loop.train(run)
    ready = Run(run)
    rows = pd.DataFrame(shift.measure_corruptions(ready))
    correct = store.read_scores("smoke", ready.name, "digits_corrupted")["correct"]
    graded = shift.graded_accuracy(rows).set_index(["family", "corruption", "severity"]).value
    fog = shift.CORRUPTIONS.index("fog")
    assert graded["weather", "fog", 3] == correct[:, fog, 2].mean()
    assert len(graded) == 15 * 6 and graded.index.is_unique

    few = ready.test().sample(20)
    uncertainties = [ready.embed_unstored(few)["uncertainty"]]
    for severity in shift.SEVERITIES:
        changed = shift.corrupted(few, "snow", severity)
        uncertainties.append(ready.embed_unstored(changed)["uncertainty"])
    values = rows.set_index(["condition", "metric"]).value
    assert values["snow_4", "mean"] == pytest.approx(uncertainties[4].mean(), rel=1e-4)
    images = np.transpose(uncertainties)
    per_image = [stats.spearmanr(range(6), image).statistic for image in images]
    expected = pytest.approx(np.mean(per_image), abs=1e-4)
    assert values["snow", "severity_spearman"] == expected
