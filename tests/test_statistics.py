"""Intervals and tests over seeds and images, against their formulas, scipy and resampling by hand."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy import special, stats
from test_uncertainty import sample

from lib.evaluation import intervals as statistics
from lib.evaluation import uncertainty as u


def interval_over_seeds(*arguments, **options):
    found = statistics.hierarchical_mean(*arguments, **options)
    return found["ci_low"], found["ci_high"]


def test_hierarchical_mean_holds_both_sources_of_spread():
    generator = np.random.default_rng(0)
    images = generator.normal(size=400)

    def mean(x):
        return float(x.mean())

    alike = interval_over_seeds(mean, [images] * 3, draws=1000)
    assert alike == pytest.approx(u.bootstrap_interval(mean, images, draws=1000), abs=0.02)
    spread = interval_over_seeds(mean, [images, images + 10, images - 10], draws=1000)
    assert spread[0] < -5 and spread[1] > 5
    with pytest.raises(ValueError, match="same test images"):
        statistics.hierarchical_mean(mean, [images, images[:-1]])


def test_of_three_seeds_the_bootstrap_holds_the_truth_in_three_cases_of_four():
    """Where images say nothing its ends are the least and greatest seed, which leave the truth out if all lie on one side: 2/8 (README)."""
    generator = np.random.default_rng(0)
    runs = generator.normal(size=(400, 3))
    ends = [
        interval_over_seeds(np.mean, [np.full(4, value) for value in seeds], draws=300)
        for seeds in runs
    ]
    assert np.mean([low <= 0 <= high for low, high in ends]) == pytest.approx(0.75, abs=0.06)


def test_hierarchical_mean_equals_resampling_by_hand():
    (first, positive), (second, _) = sample(100), sample(100, seed=1)
    generator, values = np.random.default_rng(0), []
    for _ in range(40):
        rows = generator.integers(100, size=100)  # the same images for every seed
        drawn = [(first, second)[chosen] for chosen in generator.integers(2, size=2)]
        values.append(np.mean([u.auroc(score[rows], positive[rows]) for score in drawn]))
    found = statistics.hierarchical_mean(u.auroc, [first, second], [positive] * 2, draws=40)
    own = [u.auroc(score, positive) for score in (first, second)]
    assert (found["ci_low"], found["ci_high"]) == pytest.approx(
        tuple(np.quantile(values, [0.025, 0.975])), abs=1e-14
    )
    assert (found["mean"], found["seeds"], found["n"]) == (pytest.approx(np.mean(own)), 2, 100)
    assert (found["t_low"], found["t_high"]) == pytest.approx(
        stats.t.interval(0.95, 1, np.mean(own), stats.sem(own))
    )


def test_hierarchical_mean_never_pools_scores_of_different_scale():
    score, positive = sample()
    assert interval_over_seeds(
        u.auroc, [score, 1e6 * score + 5], [positive] * 2, draws=60
    ) == pytest.approx(
        interval_over_seeds(u.auroc, [score, score], [positive] * 2, draws=60), abs=1e-12
    )


def test_permutation_p_value_agrees_with_mann_whitney_and_is_uniform_under_the_null():
    score, positive = sample(60, seed=2)
    score = score - 0.7 * positive
    exact = stats.mannwhitneyu(score[positive], score[~positive], method="asymptotic").pvalue
    assert 0.01 < exact < 0.9
    assert statistics.permutation_test_auroc(score, positive, draws=4000) == pytest.approx(
        exact, abs=0.03
    )
    strong = np.arange(40) < 20
    assert statistics.permutation_test_auroc(np.arange(40.0), strong, draws=199) == 1 / 200
    generator = np.random.default_rng(0)
    null = [
        statistics.permutation_test_auroc(
            generator.normal(size=30), np.arange(30) < 12, draws=99, seed=i
        )
        for i in range(200)
    ]
    assert stats.kstest(null, "uniform").pvalue > 1e-3


def test_t_tests_agree_with_their_formulas():
    generator = np.random.default_rng(0)
    a, b = generator.normal(1, 2, size=30), generator.normal(0, 1, size=30)
    va, vb = a.var(ddof=1) / 30, b.var(ddof=1) / 30
    degrees = (va + vb) ** 2 / (va**2 / 29 + vb**2 / 29)
    welch = statistics.welch_test(a, b)
    t = (a.mean() - b.mean()) / np.sqrt(va + vb)
    half = stats.t.ppf(0.975, degrees) * np.sqrt(va + vb)
    difference = a.mean() - b.mean()
    assert welch == pytest.approx(
        (t, 2 * stats.t.sf(abs(t), degrees), difference, difference - half, difference + half)
    )
    paired, one = statistics.paired_test(a, b), stats.ttest_1samp(a - b, 0)
    assert paired[:3] == pytest.approx((one.statistic, one.pvalue, (a - b).mean()))
    assert paired[3:] == pytest.approx(tuple(one.confidence_interval(0.95)))
    assert statistics.paired_test(b, a).statistic == -paired.statistic


@pytest.mark.parametrize("test", [statistics.welch_test, statistics.paired_test])
def test_t_tests_refuse_what_has_no_variance(test):
    with pytest.raises(ValueError, match="variance"):
        test(np.ones(5), np.zeros(5))
    with pytest.raises(ValueError, match="finite"):
        test(np.array([1.0, np.nan]), np.zeros(2))


def test_paired_test_needs_pairs():
    with pytest.raises(ValueError, match="paired row by row"):
        statistics.paired_test(np.arange(4.0), np.arange(5.0))


def test_holm_by_hand_and_in_any_order():
    np.testing.assert_allclose(statistics.holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(statistics.holm([0.7, 0.9]), [1, 1])
    np.testing.assert_allclose(statistics.holm([0.2]), [0.2])
    for bad in ([], [0.1, np.nan], [1.2]):
        with pytest.raises(ValueError, match="p_values"):
            statistics.holm(bad)


def test_holm_rejects_what_bonferroni_and_the_step_down_procedure_say():
    generator = np.random.default_rng(0)
    for _ in range(20):
        p = generator.random(6) ** 3
        rejected, left = np.zeros(6, dtype=bool), set(range(6))
        while left and p[first := min(left, key=lambda i: p[i])] <= 0.05 / len(
            left
        ):  # the definition: one hypothesis at a time
            rejected[first] = True
            left.remove(first)
        np.testing.assert_array_equal(statistics.holm(p) <= 0.05, rejected)
        assert (statistics.holm(p) >= p).all() and (
            statistics.holm(p) <= np.minimum(1, 6 * p)
        ).all()
        np.testing.assert_allclose(statistics.holm(p[::-1]), statistics.holm(p)[::-1])


def resampled_means(values, draws=400, seed=0):
    """Means of the columns of values [N, M], and bootstrap draws of them [B, M], paired by row."""
    counts = np.random.default_rng(seed).multinomial(
        len(values), np.full(len(values), 1 / len(values)), size=draws
    )
    return values.mean(0), counts @ values / len(values)


def pairwise(estimates, draws):
    """Number of methods and simultaneous intervals of all their differences, as rank_intervals takes them."""
    first, second = np.triu_indices(len(estimates), 1)
    empty = np.zeros((2, 0))
    gaps = estimates[first] - estimates[second], draws[:, first] - draws[:, second]
    return len(estimates), *(statistics.simultaneous_intervals(*gaps) if len(first) else empty)


def test_hierarchical_draws_are_the_bootstrap_of_the_hierarchical_mean():
    (first, positive), (second, _) = sample(100), sample(100, seed=1)
    estimates, drawn = statistics.hierarchical_draws(
        u.auroc, [[(first, positive), (second, positive)]], draws=60
    )
    assert estimates == pytest.approx(
        [(u.auroc(first, positive) + u.auroc(second, positive)) / 2]
    ) and drawn.shape == (60, 1)
    expected = interval_over_seeds(u.auroc, [first, second], [positive] * 2, draws=60)
    assert tuple(np.quantile(drawn[:, 0], [0.025, 0.975])) == pytest.approx(expected, abs=1e-14)


def test_hierarchical_draws_pair_methods_by_image_whatever_their_seeds():
    generator = np.random.default_rng(0)
    images = generator.normal(size=300)
    estimates, drawn = statistics.hierarchical_draws(
        np.mean, [[(images,)] * 3, [(images + 0.25,)], [(images - 1,), (images + 1,)]], draws=200
    )
    assert estimates == pytest.approx(images.mean() + np.array([0, 0.25, 0]))
    assert np.ptp(drawn[:, 1] - drawn[:, 0]) < 1e-12 and drawn[:, 0].std() == pytest.approx(
        images.std() / 300**0.5, rel=0.2
    )
    assert (drawn[:, 2] - drawn[:, 0]).std() == pytest.approx(
        2**-0.5, rel=0.2
    )  # two seeds, one apart from their mean
    several, drawn = statistics.hierarchical_draws(
        lambda x: [x.mean(), x.max()], [[(images,)], [(2 * images,)]], draws=10
    )
    assert (
        several.shape == (2, 2)
        and drawn.shape == (10, 2, 2)
        and np.allclose(drawn[:, 1], 2 * drawn[:, 0])
    )
    for methods in ([], [[]], [[(images,)], [(images[:-1],)]]):
        with pytest.raises(ValueError, match="at least one method"):
            statistics.hierarchical_draws(np.mean, methods)


def test_draws_of_images_alone_keep_every_seed():
    apart = np.random.default_rng(0).normal(size=(2, 80))
    estimates, drawn = statistics.hierarchical_draws(
        np.mean, [[(apart[0],), (apart[1] + 9,)]], draws=40, over_seeds=False
    )
    _, together = statistics.hierarchical_draws(
        np.mean, [[(apart.mean(0) + 4.5,)]], draws=40, over_seeds=False
    )
    assert (
        estimates == pytest.approx([apart.mean() + 4.5]) and drawn.std() < 0.2
    )  # seeds are nine apart
    assert drawn.std() == pytest.approx(together.std(), rel=0.5)


def test_seed_noise_is_students_t_of_the_larger_spread():
    groups = [[0.0, 1.0, 2.0], [5.0, 5.1], [-7.0, 3.0, -2.0], [4.0]]
    noise, own = statistics.seed_noise(groups, 200_000), np.array([1.0, 0.005**0.5, 5.0, 0.0])
    pooled = np.sqrt((2 * own[0] ** 2 + own[1] ** 2 + 2 * own[2] ** 2) / 5)
    for column, group, sd in zip(noise.T, groups, np.maximum(own, pooled), strict=True):
        assert stats.kstest(column / (sd / len(group) ** 0.5), stats.t(5).cdf).statistic < 0.005
    assert not statistics.seed_noise([[1.0], [2.0]], 10).any()
    assert not statistics.seed_noise([[1.0, 1.0], [2.0, 2.0]], 10).any()
    for bad in ([], [[]], [[1.0, np.nan]]):
        with pytest.raises(ValueError, match="none of them empty"):
            statistics.seed_noise(bad, 10)


# Standard deviations (points) over the three seeds of 13 methods, as measured: accuracy of k-NN on CIFAR-10; and all the same.
@pytest.mark.parametrize(
    "spread", [[1.2, 4.4, 1.8, 1.8, 1.4, 0.3, 0.9, 0.7, 0.7, 0.5, 1.0, 1.7, 1.2], [1.4] * 13]
)
def test_of_methods_of_equal_truth_seed_noise_tells_few_families_apart_and_a_bootstrap_many(spread):
    generator, first, second = np.random.default_rng(0), *np.triu_indices(13, 1)
    wrong = {"seed noise": 0, "bootstrap": 0}
    for trial in range(200):
        seeds = generator.normal(size=(13, 3)) * np.array(spread)[:, None]
        means = seeds.mean(1)
        drawn = generator.integers(3, size=(300, 13, 3))
        draws = {"seed noise": means + statistics.seed_noise(seeds, 300, trial)}
        draws["bootstrap"] = np.take_along_axis(np.broadcast_to(seeds, drawn.shape), drawn, 2).mean(
            2
        )
        for name, by in draws.items():
            low, high = statistics.simultaneous_intervals(
                means[first] - means[second], by[:, first] - by[:, second]
            )
            wrong[name] += bool(((low > 0) | (high < 0)).any())
    assert (
        wrong["seed noise"] <= 24 and wrong["bootstrap"] > 100
    )  # of 200: 5 % and its chance, against more than half


# Standard deviations over three seeds of what two scores of one network differ by: as unlike as the AUROCs of far sets are, and all the same.
@pytest.mark.parametrize(
    "spread", [[0.006, 0.03, 0.05, 0.1, 0.18, 0.01, 0.02, 0.09, 0.05, 0.04], [0.05] * 10]
)
def test_of_scores_of_equal_truth_moderated_errors_tell_few_families_apart(spread):
    generator, wrong = np.random.default_rng(0), {"moderated": 0, "pooled": 0}
    for trial in range(200):
        own, others = (
            generator.normal(size=(10, 1, 3)),
            generator.normal(size=(10, 3, 3)),
        )  # network, score, seed: three scores share one rival
        apart = ((own - others) / 2**0.5 * np.array(spread)[:, None, None]).reshape(30, 3)
        gap, (errors, freedom) = apart.mean(1), statistics.moderated_errors(apart)
        draws = {"moderated": gap + generator.standard_t(freedom, size=(1000, 30)) * errors}
        draws["pooled"] = gap + statistics.seed_noise(apart, 1000, trial)
        for name, by in draws.items():
            low, high = statistics.simultaneous_intervals(
                gap, by, errors if name == "moderated" else None
            )
            wrong[name] += bool(((low > 0) | (high < 0)).any())
    assert wrong["moderated"] <= 20  # of 200: 5 % and its chance
    assert max(spread) == min(spread) or wrong["pooled"] > 30, (
        "for spreads so unlike the larger of own and pooled is too small"
    )


def test_moderated_errors_are_those_of_smyth():
    generator = np.random.default_rng(0)
    true = 0.3 * 5 / generator.chisquare(5, size=4000)  # scaled inverse χ²: d0 = 5, s0² = 0.3
    groups = generator.normal(size=(4000, 3)) * np.sqrt(true)[:, None] + generator.normal(
        size=(4000, 1)
    )
    errors, freedom = statistics.moderated_errors(groups)
    assert set(freedom) == {freedom[0]} and freedom[0] == pytest.approx(5 + 2, rel=0.1)
    own = groups.var(axis=1, ddof=1)
    np.testing.assert_allclose(errors, np.sqrt((5 * 0.3 + 2 * own) / 7 / 3), rtol=0.05)
    centred = generator.normal(size=(4000, 3)) * np.sqrt(true)[:, None]
    errors, freedom = statistics.moderated_errors(centred)
    assert stats.kstest(centred.mean(1) / errors, stats.t(freedom[0]).cdf).pvalue > 0.01

    alike = generator.normal(size=(3, 3)) * 1e-9 + [
        [0.0, 1.0, 2.0]
    ]  # no more unlike than by chance: pooled, with all degrees of freedom
    errors, freedom = statistics.moderated_errors(alike)
    assert freedom.tolist() == [6, 6, 6] and errors == pytest.approx([1 / 3**0.5] * 3)
    errors, freedom = statistics.moderated_errors([[0.0, 1.0, 2.0], [5.0, 5.0, 5.0], [7.0]])
    assert errors == pytest.approx([1 / 3**0.5, 0, 1]) and freedom.tolist() == [2, 2, 2], (
        "equal values have no error, one alone that of the others"
    )
    assert statistics.moderated_errors([[1.0], [2.0]])[0].tolist() == [0, 0]
    hardly = np.exp(
        ((special.polygamma(1, 1) + 5e-10) / 2) ** 0.5
    )  # an excess of 5e-10, for which d0 is as good as endless
    errors, freedom = statistics.moderated_errors([[0.0, 1.0, 2.0], [0.0, hardly, 2 * hardly]])
    assert freedom.tolist() == [4, 4] and errors[0] == errors[1] == pytest.approx(
        ((1 + hardly**2) / 2 / 3) ** 0.5
    )
    for bad in ([], [[]], [[1.0, np.nan]]):
        with pytest.raises(ValueError, match="none of them empty"):
            statistics.moderated_errors(bad)


def test_simultaneous_intervals_are_the_maximum_statistic_by_hand():
    estimates, draws = resampled_means(np.random.default_rng(1).normal(size=(50, 3)) * [1, 5, 0.2])
    low, high = statistics.simultaneous_intervals(estimates, draws)
    error = [np.std(draws[:, m], ddof=1) for m in range(3)]
    largest = sorted(max(abs(row[m] - estimates[m]) / error[m] for m in range(3)) for row in draws)
    half = np.quantile(largest, 0.95) * np.array(error)
    np.testing.assert_allclose([low, high], [estimates - half, estimates + half])
    assert np.mean(((draws >= low) & (draws <= high)).all(1)) == pytest.approx(0.95, abs=0.01)
    alone = statistics.simultaneous_intervals(estimates[:1], draws[:, :1])
    assert (
        1.8 < (alone[1] - alone[0])[0] / error[0] / 2 < 2.1 < half[0] / error[0] < 2.6
    )  # between one normal and three
    constant = statistics.simultaneous_intervals([0.5, 0.1], np.full((20, 2), [0.5, 0.1]))
    np.testing.assert_array_equal(constant, [[0.5, 0.1]] * 2)
    of_both = np.column_stack([np.full(400, 0.5), draws[:400, 1]])
    given = statistics.simultaneous_intervals([0.5, estimates[1]], of_both, [0.1, 2.0])
    assert (
        given[0][0] == given[1][0] == 0.5 and given[1][1] - given[0][1] > 0
    )  # whatever error it is given
    with pytest.raises(ValueError, match="errors must be positive where draws vary, got 0"):
        statistics.simultaneous_intervals([0.5, estimates[1]], of_both, [0.1, 0.0])


def test_bootstrap_p_values_are_those_of_shares_of_draws_without_their_floor():
    estimates, draws = resampled_means(
        np.random.default_rng(2).normal([0, 0.2, 1], size=(100, 3)), draws=4000
    )
    shares = np.mean(np.abs(draws - estimates) >= np.abs(estimates), axis=0)
    np.testing.assert_allclose(statistics.bootstrap_p_values(estimates, draws), shares, atol=0.02)
    assert (
        statistics.bootstrap_p_values([5.0], np.random.default_rng(0).normal(5, 1, size=(99, 1)))[0]
        < 1e-4
    )
    assert statistics.bootstrap_p_values([0.0, 1.0], np.tile([0.0, 1.0], (9, 1))).tolist() == [1, 0]
    rounded = [[1e-17, 1.0], [2e-17, 1.0 + 2e-16]]
    assert statistics.bootstrap_p_values([1e-17, 1.0], rounded).tolist() == [1, 0], (
        "rounding is no spread, and no difference"
    )


def test_rank_intervals_by_brute_force():
    generator = np.random.default_rng(0)
    for _ in range(20):
        estimates, draws = resampled_means(
            generator.normal(generator.integers(3, size=5), 2, size=(40, 5)), 200
        )
        count, low, high = pairwise(estimates, draws)
        best, worst = statistics.rank_intervals(count, low, high)
        interval = {}
        for (i, j), *ends in zip(combinations(range(5), 2), low, high, strict=True):
            assert ends[0] <= estimates[i] - estimates[j] <= ends[1]
            interval[i, j], interval[j, i] = ends, [-ends[1], -ends[0]]
        for i in range(5):
            assert best[i] == 1 + sum(interval[j, i][0] > 0 for j in range(5) if j != i)
            assert worst[i] == 5 - sum(interval[i, j][0] > 0 for j in range(5) if j != i)
            assert best[i] <= 1 + np.sum(estimates > estimates[i]) <= worst[i]


def test_rank_intervals_of_methods_that_are_alike_alone_or_far_apart():
    values = np.random.default_rng(0).normal(size=(60, 1))
    tied = statistics.rank_intervals(*pairwise(*resampled_means(np.repeat(values, 3, 1))))
    np.testing.assert_array_equal(tied, [[1, 1, 1], [3, 3, 3]])
    np.testing.assert_array_equal(
        statistics.rank_intervals(*pairwise(*resampled_means(values))), [[1], [1]]
    )
    apart = statistics.rank_intervals(
        *pairwise(*resampled_means(100 * values + [2, 1, 3]))
    )  # paired, so exact
    np.testing.assert_array_equal(apart, [[2, 3, 1], [2, 3, 1]])
    np.testing.assert_array_equal(statistics.rank_intervals(2, [1e6], [2e6]), [[1, 2], [1, 2]])
    np.testing.assert_array_equal(statistics.rank_intervals(2, [0.0], [0.0]), [[1, 1], [2, 2]])


def test_rank_intervals_hold_all_true_ranks_as_often_as_they_say():
    truth, generator, held, sharp = np.array([0.0, 0.0, 0.5, 1.5]), np.random.default_rng(0), 0, 0
    for simulation in range(200):
        shared = generator.normal(size=(80, 1))  # what all methods find hard: pairing takes it out
        estimates, draws = resampled_means(
            truth + shared + generator.normal(size=(80, 4)), 300, simulation
        )
        best, worst = statistics.rank_intervals(*pairwise(estimates, draws))
        held += (best <= [3, 3, 2, 1]).all() and (worst >= [4, 4, 2, 1]).all()
        sharp += worst[3] == 1
    assert held / 200 >= 0.93 and sharp / 200 > 0.9


def test_paired_difference_is_the_paired_test_and_has_no_interval_for_one_pair():
    first, second = np.random.default_rng(0).normal(size=(2, 5))
    found, test = statistics.paired_difference(first, second), statistics.paired_test(first, second)
    expected = {
        "difference": np.mean(first - second),
        "ci_low": test.ci_low,
        "ci_high": test.ci_high,
        "seeds": 5,
    }
    assert found == pytest.approx(expected)
    one = statistics.paired_difference(first[:1], second[:1])
    assert (
        one["difference"] == pytest.approx(first[0] - second[0])
        and np.isnan([one["ci_low"], one["ci_high"]]).all()
        and one["seeds"] == 1
    )


def test_a_mean_over_seeds_of_nothing_or_of_nan_is_refused():
    for values in ([], [1.0, np.nan], [[1.0, 2.0]]):
        with pytest.raises(ValueError, match="finite numbers, one a seed"):
            statistics.mean_over_seeds(values)
    with pytest.raises(ValueError, match="no NaN"):
        u.nearest_neighbour_correct(np.eye(3), np.array([0, np.nan, 1]))


def test_the_mean_over_seeds_has_scipys_t_interval():
    values = np.random.default_rng(1).normal(size=4)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert statistics.mean_over_seeds(values) == pytest.approx(
        {"mean": values.mean(), "ci_low": low, "ci_high": high, "seeds": 4}
    )
    assert statistics.mean_over_seeds([0.3, 0.3]) == {
        "mean": 0.3,
        "ci_low": 0.3,
        "ci_high": 0.3,
        "seeds": 2,
    }


def test_a_hierarchical_difference_is_paired_by_seed_and_image():
    generator = np.random.default_rng(0)
    base = [generator.random(400) for _ in range(3)]
    ours, theirs = [[values + 0.1] for values in base], [[values] for values in base]
    by_seed = [dict(enumerate(side)) for side in (ours, theirs)]
    found = statistics.hierarchical_difference(
        np.mean, by_seed[0], by_seed[1] | {7: [base[0] + 5]}, draws=50
    )
    assert found["difference"] == pytest.approx(0.1) and found["seeds"] == 3 and found["n"] == 400
    assert found["ci_low"] == pytest.approx(0.1) and found["ci_high"] == pytest.approx(
        0.1
    )  # the images' own spread cancels
    right = [generator.random(400) < 0.5 for _ in range(3)]
    first, second = (
        [[values, correct] for values, correct in zip(scores, right, strict=True)]
        for scores in (base, base[::-1])
    )
    found = statistics.hierarchical_difference(
        u.auroc, dict(enumerate(first)), dict(enumerate(second)), draws=100
    )
    expected = np.mean([u.auroc(*a) - u.auroc(*b) for a, b in zip(first, second, strict=True)])
    assert (
        found["difference"] == pytest.approx(expected)
        and found["ci_low"] <= expected <= found["ci_high"]
    )
    with pytest.raises(ValueError, match=r"no seed in common: \[0, 1, 2\] and \[3\]"):
        statistics.hierarchical_difference(np.mean, by_seed[0], {3: theirs[0]})


def test_seeds_alone_stand_beside_the_bootstrap():
    sides = [
        {seed: [level + np.arange(4.0)] for seed, level in enumerate(levels)}
        for levels in ([3.0, 5.0, 9.0], [1.0, 2.0, 3.0])
    ]
    found, gap = statistics.hierarchical_difference(np.mean, *sides, 200), np.array([2.0, 3.0, 6.0])
    assert found["difference"] == pytest.approx(gap.mean())
    assert (found["t_low"], found["t_high"]) == pytest.approx(
        stats.t.interval(0.95, 2, gap.mean(), stats.sem(gap))
    )
    alone = statistics.hierarchical_difference(np.mean, *({0: side[0]} for side in sides), 200)
    assert np.isnan([alone["t_low"], alone["t_high"]]).all()


def test_a_recentred_difference_lies_around_the_difference_of_all_images():
    """The ECE of a resample is larger than that of the images, the more so the fewer of them are wrong: by hand, the draws moved to the estimate."""
    generator = np.random.default_rng(0)
    confidence = generator.random((2, 400))
    correct = generator.random((2, 400)) < confidence ** [[1], [8]]
    sides = [{0: [confidence[side], correct[side]]} for side in (0, 1)]
    plain, moved = (
        statistics.hierarchical_difference(u.confidence_calibration_error, *sides, 300, recentred)
        for recentred in (False, True)
    )
    (estimate,), drawn = statistics.hierarchical_draws(
        lambda *both: (
            u.confidence_calibration_error(*both[:2]) - u.confidence_calibration_error(*both[2:])
        ),
        [[(*sides[0][0], *sides[1][0])]],
        300,
    )
    assert plain["difference"] == moved["difference"] == pytest.approx(estimate)
    assert (
        moved["ci_low"] - plain["ci_low"]
        == pytest.approx(estimate - drawn.mean())
        == pytest.approx(moved["ci_high"] - plain["ci_high"])
    )
    assert abs(estimate - drawn.mean()) > 1e-3


def test_percent_over_seeds_holds_every_seeds_interval_or_is_students():
    rows = pd.DataFrame(
        {
            "method": list("aaab"),
            "kind": "knn",
            "value": [0.5, 0.6, 0.7, 0.9],
            "ci_low": [0.4, 0.5, 0.6, 0.8],
            "ci_high": [0.6, 0.7, 0.8, 0.95],
            "n": 10,
        }
    )
    table = statistics.percent_over_seeds(rows, "method", "kind").set_index("method")
    assert table.percent.to_list() == pytest.approx([60, 90]) and table.seeds.to_list() == [3, 1]
    assert table.loc["a", ["ci_low", "ci_high"]].to_list() == pytest.approx([40, 80])
    assert table.standard_error["a"] == pytest.approx(10 / 3**0.5)
    bare = statistics.percent_over_seeds(rows.assign(ci_low=np.nan), "method", "kind").set_index(
        "method"
    )
    assert bare.loc["a", ["ci_low", "ci_high"]].to_list() == pytest.approx(
        stats.t.interval(0.95, 2, 60, 10 / 3**0.5)
    )
    assert np.isnan(bare.ci_low["b"])


def test_a_seed_reaches_as_far_as_two_runs_of_one_distribution_differ():
    """Of three values known, two others of the same distribution differ by less in 95 of 100 cases; by less than their range in seven of ten."""
    draws = np.random.default_rng(0).normal(size=(4000, 5))
    reach = np.array([statistics.reach_of_a_seed(row[:3]) for row in draws])
    apart = np.abs(draws[:, 3] - draws[:, 4])
    assert np.mean(apart <= reach) == pytest.approx(0.95, abs=0.012)
    assert np.mean(apart <= np.ptp(draws[:, :3], axis=1)) == pytest.approx(0.7, abs=0.05)
    assert np.isnan(statistics.reach_of_a_seed([1.0])) and np.isnan(
        statistics.reach_of_a_seed([1.0, 2.0], ["a", "b"])
    )
    pooled = statistics.reach_of_a_seed(
        [1.0, 3.0, 50.0, 9.0, 13.0, 11.0], ["a", "a", "alone", "b", "b", "b"]
    )
    assert pooled == pytest.approx(stats.t.isf(0.025, 3) * np.sqrt(2 * (2.0 + 8.0) / 3))


def test_percent_over_seeds_is_students_where_one_seed_has_no_interval():
    rows = pd.DataFrame(
        {
            "method": "a",
            "value": [0.5, 0.6, 0.7],
            "ci_low": [0.4, np.nan, 0.6],
            "ci_high": [0.6, np.nan, 0.8],
            "n": 10,
        }
    )
    (found,) = statistics.percent_over_seeds(rows, "method").itertuples()
    assert (found.ci_low, found.ci_high) == pytest.approx(
        stats.t.interval(0.95, 2, 60, 10 / 3**0.5)
    )


def test_rounding_in_the_draws_of_one_quantity_widens_no_other():
    draws, rounded = np.random.default_rng(0).normal(size=(1000, 1)), np.full((1000, 1), 0.25)
    rounded[:60] += 2.0**-45
    alone = statistics.simultaneous_intervals([0.0], draws)
    low, high = statistics.simultaneous_intervals([0.0, 0.25], np.c_[draws, rounded])
    assert (low[0], high[0]) == (alone[0][0], alone[1][0]) and high[1] - low[1] < 1e-13 * 2


def test_rounding_of_large_values_is_no_variance_of_small_differences():
    values = np.geomspace(1e3, 1e9, 5)
    with pytest.raises(ValueError, match="all differences equal"):
        statistics.paired_test(values, values - 0.1)
