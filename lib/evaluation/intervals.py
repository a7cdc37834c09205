"""How sure a difference or an order is: intervals and tests over seeds and images, of several methods.

A bootstrap draws seeds, then images, the same images for all that is compared; over seeds alone it is Student's t. What one set of images says of
one run stands in lib.evaluation.uncertainty, and nothing here is part of measuring a run.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy
from numpy.typing import ArrayLike

from lib.evaluation.uncertainty import (
    ROUNDING,
    binary,
    check_draws,
    defined,
    image_counts,
    is_constant,
    matrix,
    paired,
    percentiles,
    resampled,
    sample,
    with_order,
)

UNCHANGED = 1e-12  # of an estimate in 0..1, or as a share of a larger one


def hierarchical_mean(
    statistic: Callable[..., float],
    *per_seed: Sequence[ArrayLike],
    draws: int = 2000,
    recentred: bool = False,
) -> dict[str, float]:
    """The mean over seeds of a statistic with its 95 % percentile bootstrap over seeds, then images, and Student's t over the seeds alone.

    Each argument is a list with one array per seed: hierarchical_mean(auroc, [score_0, score_1], [correct_0, correct_1]); row i is the same
    image for every seed. The statistic is taken within a seed, so scores of different scale are never pooled. recentred: as in
    uncertainty.bootstrap_interval. Returns mean, ci_low, ci_high, seeds, n (images), and t_low, t_high (NaN for one seed). A bootstrap of three
    seeds underestimates their spread by a factor of about sqrt(2/3), a t interval of three can be too wide: where they disagree nothing is settled.
    """
    if not per_seed or len({len(arrays) for arrays in per_seed}) != 1 or len(per_seed[0]) == 0:
        raise ValueError(
            f"pass lists with one array per seed, all of one length >= 1, got lengths {[len(arrays) for arrays in per_seed]}."
        )
    arrays = list(zip(*per_seed, strict=True))
    (mean,), drawn = hierarchical_draws(statistic, [arrays], draws)
    low, high = percentiles(drawn + (mean - drawn.mean() if recentred else 0))
    alone = mean_over_seeds([statistic(*map(np.asarray, of)) for of in arrays])
    found = {
        "mean": float(mean),
        "ci_low": low,
        "ci_high": high,
        "seeds": len(arrays),
        "n": len(arrays[0][0]),
    }
    return found | {"t_low": alone["ci_low"], "t_high": alone["ci_high"]}


def hierarchical_draws(
    statistic: Callable[..., ArrayLike],
    methods: Sequence[Sequence[Sequence[ArrayLike]]],
    draws: int = 2000,
    seed: int = 0,
    over_seeds: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """Estimates [M, ...] and bootstrap draws [B, M, ...] of the mean over seeds of a statistic of M methods, paired by image.

    methods: for each method a list over its seeds of the arrays that the statistic takes, row i the same image everywhere; the statistic is a
    number or an array of numbers (several scores of one method). A draw resamples images once for all methods, then each method's own seeds,
    whose number may differ: a method of one seed has no spread over seeds in it. The difference of two columns is a draw of the paired difference.
    over_seeds: False keeps every seed in every draw, so that images alone vary.
    """
    prepared = [[with_order(arrays) for arrays in per_seed] for per_seed in methods]
    sizes = {len(order) for per_seed in prepared for _, order in per_seed}
    if len(sizes) != 1 or not all(prepared):
        raise ValueError(
            f"pass at least one method and one seed of each, all on the same test images, got {sorted(sizes)} images."
        )
    estimates = [
        np.mean([statistic(*arrays) for arrays, _ in per_seed], axis=0) for per_seed in prepared
    ]
    generator, (size,) = np.random.default_rng(seed), sizes

    def mean_over_drawn_seeds(per_seed: list, counts: np.ndarray) -> np.ndarray:
        drawn = (
            generator.integers(len(per_seed), size=len(per_seed))
            if over_seeds
            else range(len(per_seed))
        )
        return np.mean(
            [resampled(statistic, *per_seed[chosen], counts) for chosen in drawn], axis=0
        )

    def draw() -> list[np.ndarray]:
        counts = image_counts(generator, size)
        return [mean_over_drawn_seeds(per_seed, counts) for per_seed in prepared]

    estimates = np.asarray(estimates, dtype=np.float64)
    return estimates, defined(draw, draws, estimates)


def hierarchical_difference(
    statistic: Callable[..., float],
    first: Mapping[int, Sequence[ArrayLike]],
    second: Mapping[int, Sequence[ArrayLike]],
    draws: int = 2000,
    recentred: bool = False,
) -> dict[str, float]:
    """hierarchical_mean of statistic(*first) - statistic(*second), paired by seed and by image; its mean is called difference.

    first, second: by seed the arrays that the statistic takes, all of the same images in the same order; seeds that one alone has are left out.
    """
    both = sorted(set(first) & set(second))
    if not both:
        raise ValueError(
            f"the two have no seed in common: {sorted(first)} and {sorted(second)}; train one more."
        )
    arity = len(first[both[0]])

    def gap(*arrays: np.ndarray) -> float:
        return statistic(*arrays[:arity]) - statistic(*arrays[arity:])

    found = hierarchical_mean(
        gap,
        *zip(*[(*first[seed], *second[seed]) for seed in both], strict=True),
        draws=draws,
        recentred=recentred,
    )
    return {"difference": found.pop("mean")} | found


def permutation_test_auroc(
    score: ArrayLike, positive: ArrayLike, draws: int = 10_000, seed: int = 0
) -> float:
    """Two-sided p-value of AUROC = 0.5: the share of label permutations at least as far from 0.5, counting the observed one."""
    score, positive = binary(score, positive)
    check_draws(draws)
    ranks = scipy.stats.rankdata(score)
    generator, count = np.random.default_rng(seed), positive.sum()
    expected = count * (ranks.size + 1) / 2
    # Rank sums are multiples of ½, exact in float64, so "at least as far" needs no tolerance.
    distances = np.array(
        [abs(generator.permutation(ranks)[:count].sum() - expected) for _ in range(draws)]
    )
    return float((1 + np.sum(distances >= abs(ranks[positive].sum() - expected))) / (1 + draws))


class TestResult(NamedTuple):
    """A two-sided t-test: statistic, p-value, mean of first minus mean of second, and that difference's 95 % confidence interval."""

    __test__ = False  # not a test case, whatever its name suggests to pytest

    statistic: float
    p_value: float
    mean_difference: float
    ci_low: float
    ci_high: float


def welch_test(first: ArrayLike, second: ArrayLike) -> TestResult:
    """Welch's t-test of equal means for independent samples of unequal variance (Welch 1947). first: [N], second: [M]."""
    first, second = sample(first, "first"), sample(second, "second")
    if is_constant(first) and is_constant(second):
        raise ValueError(
            f"both samples are constant ({first[0]:g} and {second[0]:g}); a t-test needs variance."
        )
    return _result(
        scipy.stats.ttest_ind(first, second, equal_var=False), first.mean() - second.mean()
    )


def paired_test(first: ArrayLike, second: ArrayLike) -> TestResult:
    """Paired t-test of equal means; row i of both [N] is the same image."""
    first, second = paired(sample(first, "first"), sample(second, "second"))
    if np.ptp(first - second) <= ROUNDING * max(np.abs(first).max(), np.abs(second).max()):
        raise ValueError(
            f"all differences equal {first[0] - second[0]:g}; a t-test needs variance."
        )
    return _result(scipy.stats.ttest_rel(first, second), (first - second).mean())


def _result(test, difference: float) -> TestResult:
    return TestResult(
        *map(float, (test.statistic, test.pvalue, difference, *test.confidence_interval(0.95)))
    )


def mean_over_seeds(values: ArrayLike) -> dict[str, float]:
    """Mean of one value [N] a seed with Student's 95 % interval (NaN for one seed): mean, ci_low, ci_high, seeds."""
    values = np.asarray(values, float)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ValueError(
            f"values must be [N] with N >= 1 finite numbers, one a seed, got {values}."
        )
    mean = values.mean()
    half = (
        scipy.stats.t.isf(0.025, len(values) - 1) * scipy.stats.sem(values)
        if len(values) > 1
        else np.nan
    )
    return {
        "mean": float(mean),
        "ci_low": float(mean - half),
        "ci_high": float(mean + half),
        "seeds": len(values),
    }


def reach_of_a_seed(values: ArrayLike, settings: ArrayLike | None = None) -> float:
    """By how much two runs may differ that differ in their seed alone, with 95 %: Student's t times √2 times the deviation of values [N].

    settings [N]: names of what each value was trained with, where that differs: the deviation is that within them, pooled. NaN where none has two
    values. The range of three values is no such bound: a difference of two others exceeds it in three of ten cases.
    """
    mean_over_seeds(values)  # its errors
    of = pd.Series(np.asarray(values, float)).groupby(
        np.zeros(len(values)) if settings is None else np.asarray(settings)
    )
    freedom = len(values) - of.ngroups
    pooled = np.sum((of.count() - 1) * of.var()) / freedom if freedom else np.nan
    return float(scipy.stats.t.isf(0.025, max(freedom, 1)) * np.sqrt(2 * pooled))


def paired_difference(first: ArrayLike, second: ArrayLike) -> dict[str, float]:
    """mean_over_seeds of first minus second [N], row i of both of the same seed; its mean is called difference."""
    first, second = paired(np.asarray(first, float), np.asarray(second, float))
    found = mean_over_seeds(first - second)
    return {"difference": found.pop("mean")} | found


def percent_over_seeds(rows: pd.DataFrame, *keys: str) -> pd.DataFrame:
    """Metrics rows (value, ci_low, ci_high, n, one a seed) in per cent over seeds: a row for every value of ``keys``.

    Columns: keys, percent (mean), standard_error, ci_low, ci_high, seeds, n. The interval reaches from the lowest to the highest end of any seed's
    own over images; where these have none, as a clustering's, it is Student's t over seeds (NaN for one seed).
    """
    found = []
    for key, part in rows.groupby(list(keys), sort=False):
        mean = mean_over_seeds(100 * part.value)
        if part.ci_low.notna().all():
            mean |= {"ci_low": 100 * part.ci_low.min(), "ci_high": 100 * part.ci_high.max()}
        named = dict(zip(keys, key, strict=True)) | {
            "percent": mean.pop("mean"),
            "standard_error": 100 * part.value.sem(),
        }
        found.append(named | mean | {"n": int(part.n.max())})
    return pd.DataFrame(found)


def holm(p_values: ArrayLike) -> np.ndarray:
    """Holm-adjusted p-values [M] in the given order: running maximum of (M - rank) p, at most 1 (Holm 1979)."""
    p_values = np.asarray(p_values, dtype=np.float64)
    if p_values.ndim != 1 or p_values.size == 0 or not ((p_values >= 0) & (p_values <= 1)).all():
        raise ValueError(f"p_values must be [M] with M >= 1 numbers in 0 … 1, got {p_values}.")
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(
        1, np.maximum.accumulate(p_values[order] * np.arange(p_values.size, 0, -1))
    )
    return adjusted


def _spread(
    estimates: ArrayLike, draws: ArrayLike
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Both in float64, the standard deviation of the draws [B, M] of M quantities, and which of these no draw changes by more than rounding."""
    estimates, draws = (
        np.asarray(estimates, dtype=np.float64),
        matrix(draws, "draws").astype(np.float64),
    )
    if (
        estimates.ndim != 1
        or draws.shape[1:] != estimates.shape
        or len(draws) < 2
        or not np.isfinite(estimates).all()
    ):
        raise ValueError(
            f"estimates must be [M], finite, and draws [B, M] with B >= 2, got shapes {estimates.shape} and {draws.shape}."
        )
    constant = np.abs(draws - estimates).max(axis=0) <= UNCHANGED * np.maximum(1, np.abs(estimates))
    return estimates, draws, draws.std(axis=0, ddof=1), constant


def bootstrap_p_values(estimates: ArrayLike, draws: ArrayLike) -> np.ndarray:
    """Two-sided p-values [M] of "the quantity is zero", ``2 Φ(-|estimate|/se)`` with the standard deviation of its draws [B, M] for se.

    Shares of draws would be no smaller than 1/(B + 1), which an adjustment for many quantities makes large. A quantity that no draw changes has 1
    where it is zero and 0 elsewhere.
    """
    estimates, draws, error, constant = _spread(estimates, draws)
    away = np.divide(
        np.abs(estimates),
        error,
        out=np.where(np.abs(estimates) <= UNCHANGED, 0.0, np.inf),
        where=~constant,
    )
    return 2 * scipy.stats.norm.sf(away)


def simultaneous_intervals(
    estimates: ArrayLike, draws: ArrayLike, errors: ArrayLike | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """(low [M], high [M]) that hold all M quantities at once with 95 %: estimate ± c·se.

    se: ``errors`` [M], or else the standard deviation of a quantity's draws [B, M], which has to exist; c: the 95 % quantile over draws of
    max_m |draw_m - estimate_m|/se_m (the maximum statistic; Romano & Wolf 2005, Montiel Olea & Plagborg-Møller 2019). Draws of all quantities
    must come from one resample where the quantities depend on each other. A quantity that no draw changes has an interval of no width.
    """
    estimates, draws, error, constant = _spread(estimates, draws)
    error = error if errors is None else np.asarray(errors, dtype=np.float64)
    if (error[~constant] <= 0).any():
        raise ValueError(
            f"errors must be positive where draws vary, got {error[~constant].min():g}."
        )
    away = np.abs(draws - estimates)
    largest = np.max(np.where(constant, 0, away / np.where(constant, 1, error)), axis=1)
    half = np.where(constant, 0.0, np.quantile(largest, 0.95) * error)
    return estimates - half, estimates + half


def _spreads(groups: Sequence[ArrayLike]) -> tuple[np.ndarray, np.ndarray]:
    """How many values [K] groups of seeds' values have, and their standard deviations [K], 0 of one value; ValueError for what is none."""
    groups = [np.asarray(values, dtype=np.float64) for values in groups]
    if not groups or not all(
        values.ndim == 1 and values.size and np.isfinite(values).all() for values in groups
    ):
        raise ValueError(
            f"groups must be lists of finite values, one a seed, none of them empty, got {groups}."
        )
    return np.array([values.size for values in groups]), np.array(
        [values.std(ddof=1) if values.size > 1 else 0.0 for values in groups]
    )


def seed_noise(groups: Sequence[ArrayLike], draws: int, seed: int = 0) -> np.ndarray:
    """Draws [B, K] of how far the means of K groups of seeds' values may be from what many seeds would give.

    Student's t of all groups' degrees of freedom together, times ``max(s_k, s)/√n_k``: s_k the standard deviation of the n_k values of group k, s
    that of all groups pooled, √(Σ (n_k - 1) s_k² / Σ (n_k - 1)). A group of one value has s. Zero where no group has two values.

    For the maximum statistic over many methods of three seeds: a bootstrap takes each method's own three for all there is, and of methods of equal
    truth it tells some pair apart in about half of all families; with s alone, or a method's own s_k alone, those that vary more or less than the
    others are told apart too often. With the larger of the two it is about one family in twenty (tests/test_statistics.py).
    """
    sizes, own = _spreads(groups)
    freedom = (sizes - 1).sum()
    if not freedom:
        return np.zeros((draws, len(groups)))
    pooled = np.sqrt(np.sum((sizes - 1) * own**2) / freedom)
    generator = np.random.default_rng(seed)
    student = generator.normal(size=(draws, len(groups))) / np.sqrt(
        generator.chisquare(freedom, size=(draws, 1)) / freedom
    )
    return student * np.maximum(own, pooled) / np.sqrt(sizes)


def moderated_errors(groups: Sequence[ArrayLike]) -> tuple[np.ndarray, np.ndarray]:
    """Standard errors [K] of the means of K groups of seeds' values, and the degrees of freedom [K] of these, by moderated variances.

    Of few seeds a variance is hardly known, and those of different groups may be far from alike. So the true ones are taken to be drawn from a
    scaled inverse χ² of d0 degrees of freedom around s0², which the groups' own s_k² of d_k degrees of freedom tell, by the mean and variance of
    their logarithms; each is estimated by (d0 s0² + d_k s_k²)/(d0 + d_k), with d0 + d_k degrees of freedom (Smyth 2004, §§3 and 6.2). Where groups
    vary alike d0 has no end, and that is the pooled variance. Values that are all equal have no error, and tell nothing of other groups.
    """
    sizes, spreads = _spreads(groups)
    own, variances, varying = sizes - 1, spreads**2, spreads > 0
    if not varying.any():
        return np.zeros(len(groups)), np.maximum(own, 1.0)
    of, known = own[varying], variances[varying]
    logs = np.log(known) - scipy.special.digamma(of / 2) + np.log(of / 2)
    excess = logs.var(ddof=1) - scipy.special.polygamma(1, of / 2).mean() if known.size > 1 else 0.0
    if excess > scipy.special.polygamma(1, 1e9):  # below, d0 has no end
        prior = 2 * scipy.optimize.brentq(
            lambda half: scipy.special.polygamma(1, half) - excess, 1e-6, 1e9
        )
        around = np.exp(logs.mean() + scipy.special.digamma(prior / 2) - np.log(prior / 2))
        moderated, freedom = (prior * around + own * variances) / (prior + own), prior + own
    else:
        moderated, freedom = (
            np.full(len(groups), np.sum(of * known) / of.sum()),
            np.full(len(groups), float(of.sum())),
        )
    return np.sqrt(np.where(varying | (own == 0), moderated, 0.0) / sizes), freedom


def rank_intervals(count: int, low: ArrayLike, high: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest rank (best [M], worst [M]) that M = count methods can have; rank 1 is the largest quantity.

    low, high [M (M - 1)/2]: simultaneous intervals of first minus second for all pairs in the order of itertools.combinations. best = 1 + the number
    of methods that are surely larger (the interval of the difference lies above zero), worst = M - the number that are surely smaller (Mogstad,
    Romano, Shaikh & Wilhelm 2024). If the intervals hold all differences at once with 95 %, so do the rank intervals all ranks; methods of equal
    truth share the ranks between them.
    """
    low, high = np.asarray(low, dtype=np.float64), np.asarray(high, dtype=np.float64)
    pairs = (count * (count - 1) // 2,)
    if count < 1 or low.shape != pairs or high.shape != pairs or not (low <= high).all():
        raise ValueError(
            f"{count} methods need {pairs[0]} intervals with low <= high, got shapes {low.shape} and {high.shape}, or NaN."
        )
    first, second = np.triu_indices(count, 1)
    larger = np.zeros((count, count), dtype=bool)  # [i, j]: method i is surely larger than method j
    larger[first, second], larger[second, first] = low > 0, high < 0
    return 1 + larger.sum(axis=0), count - larger.sum(axis=1)
