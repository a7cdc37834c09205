"""The one interval of this project.

A number that several seeds give is their mean with 95 % Student's t over the seeds, and two methods
are compared by the differences within each seed. Fewer than ``SEEDS`` seeds say nothing of how much
seeds vary. Their interval is a percentile bootstrap over test images, and the column ``seeds``
marks it: wherever it is below ``SEEDS`` the interval is over images only.
"""

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd
import scipy
from numpy.typing import ArrayLike

from lib.evaluation.uncertainty import bootstrap_interval

SEEDS = 3  # the fewest with which an interval over seeds is taken


# ------------------------------------------------------------------------------------ over seeds
def mean_over_seeds(values: ArrayLike) -> dict[str, float]:
    """Mean of one value a seed with its 95 % Student's t interval.

    ``mean ± t_{0.975, n-1} s/√n``. values: [N]. Returns mean, ci_low, ci_high, seeds; the interval
    is NaN for fewer than ``SEEDS`` values. ValueError for no value, or one that is not finite.

    Example:
        mean_over_seeds([0.61, 0.63, 0.62])  # mean 0.62, 0.595 to 0.645, of 3 seeds
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not values.size or not np.isfinite(values).all():
        raise ValueError(
            f"values must be [N] with N >= 1 finite numbers, one a seed, got {values}."
        )
    mean = float(values.mean())
    half = np.nan
    if len(values) >= SEEDS:
        half = scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values)
    return {
        "mean": mean,
        "ci_low": float(mean - half),
        "ci_high": float(mean + half),
        "seeds": len(values),
    }


def paired_difference(first: ArrayLike, second: ArrayLike) -> dict[str, float]:
    """``mean_over_seeds`` of first - second; row i of both [N] has the same seed.

    The mean is called difference.

    Example:
        >>> round(paired_difference([0.6, 0.7, 0.8], [0.5, 0.6, 0.7])["difference"], 4)
        0.1
    """
    first, second = np.stack([first, second]).astype(np.float64)
    interval = mean_over_seeds(first - second)
    return {"difference": interval.pop("mean")} | interval


def statistic_over_seeds(
    statistic: Callable[..., float],
    *per_seed: Sequence[ArrayLike],
    draws: int = 2000,
) -> dict[str, float]:
    """The mean over seeds of a statistic of test images, with the one interval.

    per_seed: for each argument of the statistic a list with one array [N, ...] a seed; row i is the
    same image for every seed. The statistic is taken within a seed, so that scores of different
    scale are never pooled. With fewer than ``SEEDS`` seeds the interval is a percentile bootstrap
    of that mean over images, with ``draws`` resamples (``uncertainty.bootstrap_interval``). Returns
    mean, ci_low, ci_high, seeds, n (images).

    Example:
        statistic_over_seeds(auroc, [score_0, score_1], [correct_0, correct_1])
    """
    seeds = list(zip(*per_seed, strict=True))
    interval = mean_over_seeds([statistic(*map(np.asarray, arrays)) for arrays in seeds])
    interval["n"] = len(per_seed[0][0])
    if len(seeds) >= SEEDS:
        return interval

    arguments = len(per_seed)
    seed_after_seed = list(itertools.chain(*seeds))  # one bootstrap resamples all of them alike

    def mean_of_resample(*resampled: np.ndarray) -> float:
        starts = range(0, len(resampled), arguments)
        return np.mean([statistic(*resampled[i : i + arguments]) for i in starts])

    low, high = bootstrap_interval(mean_of_resample, *seed_after_seed, draws=draws)
    return interval | {"ci_low": low, "ci_high": high}


def difference_over_seeds(
    statistic: Callable[..., float],
    first: Mapping[int, Sequence[ArrayLike]],
    second: Mapping[int, Sequence[ArrayLike]],
    draws: int = 2000,
) -> dict[str, float]:
    """``statistic_over_seeds`` of statistic(*first) - statistic(*second), paired by seed and image.

    first, second: seed -> the arrays that the statistic takes, all of the same images in the same
    order. Seeds that only one side has are left out; ValueError where none is common. The mean is
    called difference.
    """
    both = sorted(set(first) & set(second))
    if not both:
        raise ValueError(
            f"the two have no seed in common: {sorted(first)} and {sorted(second)}; train one more."
        )
    arguments = len(first[both[0]])

    def difference(*arrays: np.ndarray) -> float:
        return statistic(*arrays[:arguments]) - statistic(*arrays[arguments:])

    pairs = [(*first[seed], *second[seed]) for seed in both]
    interval = statistic_over_seeds(difference, *zip(*pairs, strict=True), draws=draws)
    return {"difference": interval.pop("mean")} | interval


def metric_over_seeds(rows: pd.DataFrame) -> dict[str, float]:
    """The one interval of stored metrics: rows (value, ci_low, ci_high, n), one a seed.

    Each row has its own bootstrap interval over images. With fewer than ``SEEDS`` rows the ends are
    the means of theirs, as if the images moved all seeds alike. Returns mean, ci_low, ci_high,
    seeds, n.
    """
    interval = mean_over_seeds(rows.value)
    interval["n"] = rows.n.max()
    if len(rows) < SEEDS:
        interval |= {"ci_low": rows.ci_low.mean(), "ci_high": rows.ci_high.mean()}
    return interval


def metric_difference(
    first: pd.DataFrame, second: pd.DataFrame, scale: float = 1.0, ratio: bool = False
) -> dict[str, float]:
    """The one interval of first - second, or of first / second, of stored metrics paired by seed.

    first, second: rows (value, ci_low, ci_high) with the seed as their index; seeds that only one
    has are left out. scale: of a difference. With fewer than ``SEEDS`` seeds the two bootstrap
    intervals over images are combined in quadrature, as if their errors were independent. Returns
    difference, ci_low, ci_high, seeds; all NaN but seeds where no seed is common.
    """
    seeds = first.index.intersection(second.index)
    if not len(seeds):
        return {"difference": np.nan, "ci_low": np.nan, "ci_high": np.nan, "seeds": 0}
    first = first.loc[seeds]
    second = second.loc[seeds]
    values = first.value / second.value if ratio else scale * (first.value - second.value)
    interval = mean_over_seeds(values)
    mean = interval.pop("mean")
    if len(seeds) < SEEDS:
        first_half = (first.ci_high - first.ci_low).mean() / 2
        second_half = (second.ci_high - second.ci_low).mean() / 2
        if ratio:
            relative = np.hypot(first_half / first.value.mean(), second_half / second.value.mean())
            half = abs(mean) * relative
        else:
            half = scale * np.hypot(first_half, second_half)
        interval |= {"ci_low": mean - half, "ci_high": mean + half}
    return {"difference": mean} | interval


def over_seeds(rows: pd.DataFrame, *keys: str, scale: float = 1.0) -> pd.DataFrame:
    """``metric_over_seeds`` for every value of the columns ``keys``, times ``scale``.

    Columns: keys, mean, ci_low, ci_high, seeds, n.

    Example:
        >>> accuracy = metrics[metrics.metric == "accuracy"]
        >>> percent = over_seeds(accuracy, "method", "classifier", scale=100)
    """
    columns = ["value", "ci_low", "ci_high"]
    scaled = rows.assign(**{column: scale * rows[column] for column in columns})
    table = []
    for key, part in scaled.groupby(list(keys), sort=False):
        table.append(dict(zip(keys, key, strict=True)) | metric_over_seeds(part))
    return pd.DataFrame(table, columns=[*keys, "mean", "ci_low", "ci_high", "seeds", "n"])


def paired_over_seeds(
    rows: pd.DataFrame, first: str, second: str, *keys: str, by: str = "method", scale: float = 1.0
) -> pd.DataFrame:
    """``metric_difference`` of first and second for each value of the columns ``keys``.

    rows: stored metrics with a column run, one a seed, value of keys and value of ``by``, such as
    the method or the score; first and second are two values of ``by``. Keys without a seed in
    common are left out. scale: of values and differences.
    Columns: keys, by (first), minus (second), mean and mean_minus of the two over the common seeds,
    difference, ci_low, ci_high, seeds, runs (of both, names with a blank between).

    Example:
        >>> accuracy = metrics[metrics.metric == "accuracy"]
        >>> points = paired_over_seeds(
        ...     accuracy, "vi_simsiam", "simsiam", "classifier", scale=100
        ... )
    """
    table = []
    for key, part in rows.groupby(list(keys), sort=False):
        ours = part[part[by] == first].set_index("seed")
        theirs = part[part[by] == second].set_index("seed")
        seeds = ours.index.intersection(theirs.index)
        if len(seeds):
            row = dict(zip(keys, key, strict=True)) | {by: first, "minus": second}
            row["mean"] = scale * ours.value[seeds].mean()
            row["mean_minus"] = scale * theirs.value[seeds].mean()
            row |= metric_difference(ours, theirs, scale)
            runs = dict.fromkeys([*ours.run[seeds], *theirs.run[seeds]])
            table.append(row | {"runs": " ".join(runs)})
    columns = [*keys, by, "minus", "mean", "mean_minus"]
    columns += ["difference", "ci_low", "ci_high", "seeds", "runs"]
    return pd.DataFrame(table, columns=columns)
