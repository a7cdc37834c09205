"""The one interval, against scipy, formulas and resampling by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lib.evaluation import intervals
from lib.evaluation.uncertainty import auroc, bootstrap_interval


def scores(images, seed=0):
    """A score [N] that knows something of which images are positive [N]."""
    generator = np.random.default_rng(seed)
    positive = np.arange(images) % 3 == 0
    return generator.normal(size=images) + positive, positive


# ------------------------------------------------------------------------------------ over seeds
def test_mean_over_seeds_is_scipys_t_interval():
    values = np.random.default_rng(1).normal(size=4)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    expected = {"mean": values.mean(), "ci_low": low, "ci_high": high, "seeds": 4}
    assert intervals.mean_over_seeds(values) == pytest.approx(expected)


def test_fewer_than_three_seeds_have_no_interval_over_seeds():
    for values in ([0.3], [0.3, 0.5]):
        interval = intervals.mean_over_seeds(values)
        assert interval["mean"] == pytest.approx(np.mean(values))
        assert interval["seeds"] == len(values)
        assert np.isnan([interval["ci_low"], interval["ci_high"]]).all()


def test_paired_difference_is_scipys_paired_test():
    first, second = np.random.default_rng(0).normal(size=(2, 5))
    difference = intervals.paired_difference(first, second)
    low, high = stats.ttest_rel(first, second).confidence_interval(0.95)
    expected = {"difference": np.mean(first - second), "ci_low": low, "ci_high": high, "seeds": 5}
    assert difference == pytest.approx(expected)


def test_a_statistic_of_three_seeds_has_students_interval_of_its_values():
    scored = [scores(100, seed) for seed in range(3)]
    values = [auroc(*arrays) for arrays in scored]
    interval = intervals.statistic_over_seeds(auroc, *zip(*scored, strict=True))
    low, high = stats.t.interval(0.95, 2, np.mean(values), stats.sem(values))
    expected = {"mean": np.mean(values), "ci_low": low, "ci_high": high, "seeds": 3, "n": 100}
    assert interval == pytest.approx(expected)


def test_a_statistic_of_one_or_two_seeds_has_the_bootstrap_over_images():
    (first, positive) = scores(100)
    (second, _) = scores(100, seed=1)
    one = intervals.statistic_over_seeds(auroc, [first], [positive], draws=60)
    assert (one["ci_low"], one["ci_high"]) == bootstrap_interval(auroc, first, positive, draws=60)

    generator = np.random.default_rng(0)
    by_hand = []
    for _ in range(60):
        rows = generator.integers(100, size=100)  # the same images for both seeds
        by_hand.append(np.mean([auroc(score[rows], positive[rows]) for score in (first, second)]))
    two = intervals.statistic_over_seeds(auroc, [first, second], [positive] * 2, draws=60)
    low, high = np.quantile(by_hand, [0.025, 0.975])
    assert (two["ci_low"], two["ci_high"]) == pytest.approx((low, high))
    assert (two["seeds"], two["n"]) == (2, 100)


def test_a_difference_is_paired_by_seed_and_image():
    generator = np.random.default_rng(0)
    base = {seed: [generator.random(400)] for seed in range(3)}
    better = {seed: [values + 0.1 + 0.01 * seed] for seed, (values,) in base.items()}
    # the spread of the images cancels; a seed that only one side has is left out
    difference = intervals.difference_over_seeds(np.mean, better, base | {7: [base[0][0] + 5]})
    assert difference["difference"] == pytest.approx(0.11)
    assert (difference["seeds"], difference["n"]) == (3, 400)
    expected = stats.t.interval(0.95, 2, 0.11, stats.sem([0.1, 0.11, 0.12]))
    assert (difference["ci_low"], difference["ci_high"]) == pytest.approx(expected)

    one = intervals.difference_over_seeds(np.mean, {0: better[0]}, base, draws=20)
    assert (one["ci_low"], one["ci_high"]) == pytest.approx((0.1, 0.1))
    with pytest.raises(ValueError, match="no seed in common"):
        intervals.difference_over_seeds(np.mean, base, {3: base[0]})


# --------------------------------------------------------------------------------- stored metrics
def metrics(values, half=0.1):
    values = np.array(values)
    frame = {"value": values, "ci_low": values - half, "ci_high": values + half, "n": 10}
    return pd.DataFrame(frame, index=range(len(values)))


def test_a_difference_of_metrics_is_paired_by_seed():
    first = metrics([0.5, 0.6, 0.8])
    second = metrics([0.4, 0.4, 0.4, 9.0])
    three = intervals.metric_difference(first, second, scale=100)
    low, high = stats.t.interval(0.95, 2, 100 * 0.7 / 3, stats.sem([10.0, 20.0, 40.0]))
    assert three["difference"] == pytest.approx(100 * 0.7 / 3)
    assert (three["ci_low"], three["ci_high"]) == pytest.approx((low, high))
    ratio = intervals.metric_difference(first, second, ratio=True)
    assert ratio["difference"] == pytest.approx(np.mean([1.25, 1.5, 2.0]))


def test_a_difference_of_metrics_of_one_seed_adds_the_errors_of_both_in_quadrature():
    one = intervals.metric_difference(metrics([0.5], half=0.03), metrics([0.3], half=0.04))
    assert (one["difference"], one["ci_low"], one["ci_high"]) == pytest.approx((0.2, 0.15, 0.25))
    ratio = intervals.metric_difference(
        metrics([0.6], half=0.018), metrics([0.3], half=0.012), ratio=True
    )
    assert (ratio["ci_low"], ratio["ci_high"]) == pytest.approx((1.9, 2.1))
    none = intervals.metric_difference(metrics([0.5]), metrics([0.5]).set_axis([3]))
    assert none["seeds"] == 0 and np.isnan(none["difference"])


def test_means_over_seeds_have_a_row_a_key():
    rows = metrics([0.5, 0.6, 0.7, 0.9, 0.7]).assign(method=list("aaabb"), kind="knn")
    table = intervals.over_seeds(rows, "method", "kind", scale=100).set_index("method")
    assert table["mean"].to_list() == pytest.approx([60, 80])
    assert table.seeds.to_list() == [3, 2]
    expected = stats.t.interval(0.95, 2, 60, 10 / 3**0.5)
    assert table.loc["a", ["ci_low", "ci_high"]].to_list() == pytest.approx(expected)
    assert table.loc["b", ["ci_low", "ci_high"]].to_list() == pytest.approx([70, 90])
