"""The numbers that charts draw, as tidy frames: from one row an image to one row a point or a box.

A notebook computes such a frame, draws it with lib.figures.charts and saves it with the figure.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.cbook import boxplot_stats

from lib.evaluation.intervals import mean_over_seeds
from lib.evaluation.uncertainty import (
    auroc,
    confidence_bins,
    confidence_calibration_error,
    risk_coverage_curve,
    roc_curve,
)

POINTS = 100  # of a curve, at most
SMALLEST_COVERAGE = 0.01  # below, single images make a risk-coverage curve jump


def box_summary(
    data: pd.DataFrame,
    by: str | list[str],
    *,
    whiskers: float | tuple[float, float] = 1.5,
) -> pd.DataFrame:
    """What the box plots of `kappa` show, one row a box: n, median, quartiles, whiskers.

    whiskers: interquartile ranges of log κ, or two percentiles.

    Example:
        >>> figures.box_summary(images, "class")[["class", "n"]]
          class   n
        0   cat  20
        1   dog  20
    """
    columns = [by] if isinstance(by, str) else by
    rows = []
    for group, part in data.groupby(columns, sort=False, observed=True):
        box = boxplot_stats(np.log(part["kappa"].to_numpy(float)), whis=whiskers)[0]
        row = dict(zip(columns, group, strict=True))
        row["n"] = len(part)
        row["median"] = part["kappa"].median()
        row["q1"] = part["kappa"].quantile(0.25)
        row["q3"] = part["kappa"].quantile(0.75)
        row["whisker_low"] = np.exp(box["whislo"])
        row["whisker_high"] = np.exp(box["whishi"])
        rows.append(row)
    return pd.DataFrame(rows)


def log_histogram(data: pd.DataFrame, by: str, *, bins: int = 40) -> pd.DataFrame:
    """Densities of log₁₀ κ by group over common bins: each group integrates to one.

    The bins end three interquartile ranges beyond the quartiles of the groups: a few extremes would
    squeeze all others.

    Returns by, bin_low, bin_high, count, density (per decade).

    Example:
        >>> bins = figures.log_histogram(images, "class", bins=10)
        >>> int(bins["count"].sum())
        40
    """
    logs = np.log10(data["kappa"])
    groups = logs.groupby(data[by], sort=False, observed=True)
    lower, upper = groups.quantile(0.25), groups.quantile(0.75)
    reach = 3 * (upper - lower)
    ends = max((lower - reach).min(), logs.min()), min((upper + reach).max(), logs.max())
    edges = np.linspace(*ends, bins + 1)
    tables = []
    for name, part in groups:
        counts, _ = np.histogram(part, edges)
        density = counts / counts.sum() / np.diff(edges)
        columns = {"bin_low": 10 ** edges[:-1], "bin_high": 10 ** edges[1:]}
        tables.append(pd.DataFrame({by: name, **columns, "count": counts, "density": density}))
    return pd.concat(tables, ignore_index=True)


def roc_curves(data: pd.DataFrame) -> pd.DataFrame:
    """ROC curves from one row an image and curve: `curve`, `score` (high: positive), `positive`.

    Returns curve, false_positive_rate, true_positive_rate (at most POINTS points a curve), auroc.

    Example:
        >>> scores = ["kappa", "max_softmax"]
        >>> long = images.melt("correct", scores, var_name="curve", value_name="score")
        >>> curves = roc_curves(long.rename(columns={"correct": "positive"}))
    """
    return _by_curve(data, _roc_curve)


def _roc_curve(part: pd.DataFrame) -> pd.DataFrame:
    false_positive, true_positive, _ = roc_curve(part["score"], part["positive"])
    kept = _evenly_spaced(len(false_positive))
    return pd.DataFrame(
        {
            "false_positive_rate": false_positive[kept],
            "true_positive_rate": true_positive[kept],
            "auroc": auroc(part["score"], part["positive"]),
        }
    )


def risk_coverage_curves(data: pd.DataFrame) -> pd.DataFrame:
    """Error among the most certain images, from `curve`, `uncertainty` and `correct`.

    Images of equal uncertainty share their mean error. The last point of a curve is the error of
    the whole set, which an uninformative score has everywhere.
    Returns curve, coverage, error (fractions, at most POINTS points a curve).

    Example:
        >>> curves = figures.risk_coverage_curves(scores)
        >>> list(curves)
        ['curve', 'coverage', 'error']
    """
    return _by_curve(data, _risk_coverage_curve)


def _risk_coverage_curve(part: pd.DataFrame) -> pd.DataFrame:
    coverage, error = risk_coverage_curve(part["uncertainty"], part["correct"])
    first = np.searchsorted(coverage, SMALLEST_COVERAGE)
    kept = first + _evenly_spaced(len(coverage) - first)
    return pd.DataFrame({"coverage": coverage[kept], "error": error[kept]})


def reliability_bins(data: pd.DataFrame) -> pd.DataFrame:
    """Accuracy in 15 bins of confidence, from `curve`, `confidence` and `correct`.

    ece = Σ n_b/N |accuracy_b - confidence_b| over these bins (Guo et al. 2017, Eq. 3).
    Returns curve, bin_low, bin_high, count, confidence, accuracy, ece.

    Example:
        >>> int(figures.reliability_bins(confidences)["count"].sum())
        40
    """
    return _by_curve(data, _reliability_bins)


def _reliability_bins(part: pd.DataFrame) -> pd.DataFrame:
    table = pd.DataFrame(confidence_bins(part["confidence"], part["correct"]))
    table = table.rename(columns={"low": "bin_low", "high": "bin_high"})
    return table.assign(ece=confidence_calibration_error(part["confidence"], part["correct"]))


def _by_curve(data: pd.DataFrame, table: Callable[[pd.DataFrame], pd.DataFrame]) -> pd.DataFrame:
    """The tables of all curves under one another, with a column `curve` before the others."""
    tables = []
    for name, part in data.groupby("curve", sort=False, observed=True):
        of_curve = table(part)
        of_curve.insert(0, "curve", name)
        tables.append(of_curve)
    return pd.concat(tables, ignore_index=True)


def seed_interval(values: pd.Series) -> tuple[float, float]:
    """Student's 95 % interval of the mean of one value a seed, as ``mean_over_seeds``."""
    interval = mean_over_seeds(values)
    return interval["ci_low"], interval["ci_high"]


def tsne_plane(features: np.ndarray) -> np.ndarray:
    """Features [N, D] in the plane, [N, 2], by t-SNE: perplexity 30, PCA start, seed 0.

    Example:
        >>> figures.tsne_plane(features).shape
        (40, 2)
    """
    from sklearn.manifold import TSNE  # slow to import

    return TSNE(perplexity=30, init="pca", random_state=0).fit_transform(features)


def _evenly_spaced(points: int) -> np.ndarray:
    """Indices of at most POINTS evenly spaced points, both ends included."""
    places = np.linspace(0, points - 1, min(points, POINTS))
    return np.unique(places.round().astype(int))
