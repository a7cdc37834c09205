"""The charts of the notebooks: each takes a tidy data frame and returns the axes it drew on.

Without `ax` a chart makes a figure of its own. The frames of curves, bins and boxes come from
lib.figures.summaries. Rows are sorted, names stand beside what they name, and an interval is
Student's t over seeds, drawn from three seeds on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import patheffects, ticker
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression
from scipy.spatial import cKDTree

from lib.figures.style import (
    BLACK,
    BLUE,
    CHANCE,
    COLUMN,
    GREY,
    INK,
    SQUARE,
    TEXT,
    MethodStyle,
    curve_styles,
    in_order,
    kappa_text,
    method_style,
    safe_text,
)
from lib.figures.summaries import seed_interval

TILE = 0.5  # inches of an image in a grid
LABEL_SIZE = 6.5
FEWEST_IN_BIN = 50  # images of a bin whose accuracy is worth reading
REFERENCE = {"color": CHANCE, "linewidth": 0.6, "zorder": 1}
WHITE_OUTLINE = [patheffects.withStroke(linewidth=2, foreground="white")]


# ------------------------------------------------------------------------------- distributions


def kappa_boxplot(
    data: pd.DataFrame,
    by: str,
    *,
    hue: str | None = None,
    order: Sequence | None = None,
    hue_order: Sequence | None = None,
    whiskers: float | tuple[float, float] = 1.5,
    ax: Axes | None = None,
) -> Axes:
    """Box plots of `kappa`, one row for each value of `by`, the highest median at the top.

    Box: quartiles. Line: median. Whiskers: furthest values within 1.5 interquartile ranges of
    log κ, or two percentiles. Outliers are not drawn. The number of images is at the right.

    Args:
        hue: a column of two values, such as right and wrong: filled and hollow boxes.

    Example:
        >>> ax = figures.kappa_boxplot(images, "class")
        >>> ax = figures.kappa_boxplot(images, "class", hue="correct")
    """
    if order is None:
        medians = data.groupby(by, observed=True)["kappa"].median()
        order = medians.sort_values(ascending=False, kind="stable").index
    order = list(order)
    if ax is None:
        ax = _new_axes(COLUMN[0], 0.6 + 0.2 * len(order))
    shown = data.assign(**{by: data[by].astype(str)})
    names = [str(name) for name in order]
    look = {"linecolor": BLUE, "linewidth": 0.7, "width": 0.7, "showfliers": False}
    look["medianprops"] = {"color": INK, "linewidth": 1.1}
    if hue is None:
        look["color"] = _tint(BLUE, 0.45)
    else:
        hue_order = list(hue_order or pd.unique(data[hue]))
        look |= {"hue": hue, "hue_order": hue_order, "gap": 0.15, "saturation": 1}
        look["palette"] = [_tint(BLUE, 0.45), "white"][: len(hue_order)]
    sns.boxplot(shown, x="kappa", y=by, order=names, whis=whiskers, log_scale=True, ax=ax, **look)
    plain_log_axis(ax.xaxis)
    ax.set(xlabel="Concentration κ", ylabel="")
    _name_rows(ax, [safe_text(name) for name in names])
    _count_rows(ax, [int((shown[by] == name).sum()) for name in names])
    if hue is not None:
        sns.move_legend(ax, "lower left", bbox_to_anchor=(0, 1), ncols=2, title=None)
    return ax


def kappa_histogram(bins: pd.DataFrame, by: str, *, ax: Axes | None = None) -> Axes:
    """Histograms of κ, one row a group, the highest median at the top.

    bins: summaries.log_histogram; its first group is blue, the others are grey. Every histogram is
    as high as its row.

    Example:
        >>> bins = figures.log_histogram(images, "class")
        >>> ax = figures.kappa_histogram(bins, "class")
    """
    groups = dict(list(bins.groupby(by, sort=False)))
    colours = dict.fromkeys(groups, GREY) | {bins[by].iloc[0]: BLUE}
    medians = {}
    for name, part in groups.items():
        below = part["count"].cumsum().searchsorted(part["count"].sum() / 2)
        medians[name] = part["bin_low"].iloc[below]
    order = sorted(medians, key=medians.get)  # from the bottom up
    if ax is None:
        ax = _new_axes(COLUMN[0], 0.6 + 0.35 * len(order))
    for row, name in enumerate(order):
        part = groups[name]
        height = row + 0.85 * part["count"] / part["count"].max()
        edges = [*part["bin_low"], part["bin_high"].iloc[-1]]
        tint = _tint(colours[name], 0.45)
        ax.stairs(height, edges, baseline=row, fill=True, color=tint)
        ax.stairs(height, edges, baseline=row, color=colours[name], linewidth=0.8)
    ax.set_xscale("log")
    ax.set(xlabel="Concentration κ", ylim=(0, len(order)))
    _name_rows(ax, [safe_text(name) for name in order], va="bottom")
    plain_log_axis(ax.xaxis)
    return ax


def tsne_plot(points: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """t-SNE of features (`x`, `y`), coloured by `class`.

    The name of a class, in its colour, is where its points are densest. Points are drawn in a
    random order, so that no class hides another.

    Example:
        >>> ax = figures.tsne_plot(points)
    """
    if ax is None:
        ax = _new_axes(*SQUARE)
    points = points.sample(frac=1, random_state=0)
    classes = sorted(points["class"].unique())
    palette = dict(zip(classes, sns.color_palette("colorblind", len(classes)), strict=True))
    colours = points["class"].map(palette).tolist()
    size = np.clip(8000 / len(points), 1, 8)
    ax.scatter(points["x"], points["y"], c=colours, s=size, linewidths=0, rasterized=True)
    ax.set_aspect("equal", adjustable="box")
    ax.axis("off")
    labels = []
    for name, part in points.groupby("class"):
        place = _densest(part[["x", "y"]].to_numpy())
        colour = tuple(0.5 * np.array(palette[name]))  # darker, to be read
        labels.append(Label(safe_text(name), place[0], place[1], colour))
    write_apart(ax, labels, ha="center", outline=True, near=0.2)
    return ax


def _densest(places: np.ndarray) -> np.ndarray:
    """The one of places [N, 2] whose nearest tenth of the others is nearest."""
    tree = cKDTree(places)
    distances, _ = tree.query(places, k=max(2, len(places) // 10))
    return places[distances[:, -1].argmin()]


# ---------------------------------------------------------------------------- detecting errors


def roc_plot(curves: pd.DataFrame, *, positive: str = "", ax: Axes | None = None) -> Axes:
    """ROC curves, each named with its AUROC; curves: summaries.roc_curves.

    positive: the positive class in words.

    Example:
        >>> curves = figures.roc_curves(scores.rename(columns={"uncertainty": "score"}))
        >>> ax = figures.roc_plot(curves, positive="wrong prediction")
    """
    if ax is None:
        ax = _new_axes(*SQUARE)
    styles = curve_styles(curves["curve"].unique())
    for name, part in curves.groupby("curve", sort=False):
        style = styles[name]
        ax.plot(
            part["false_positive_rate"],
            part["true_positive_rate"],
            color=style.colour,
            linestyle=style.line,
            label=f"{style.label} {part['auroc'].iloc[0]:.2f}",
        )
    ax.plot([0, 1], [0, 1], **REFERENCE)
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ax.set(xlabel="False positive rate", ylabel="True positive rate")
    ax.set(xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])
    if positive:
        ax.set_title(f"positive: {positive}", fontsize=7)
    corner = "lower right" if curves["auroc"].mean() >= 0.5 else "upper left"
    _coloured_legend(ax, styles, loc=corner, title="AUROC")
    return ax


def risk_coverage_plot(curves: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Error against the share of images kept, the most certain first.

    curves: summaries.risk_coverage_curves. Grey: the error of all images, which an uninformative
    score has everywhere.

    Example:
        >>> ax = figures.risk_coverage_plot(figures.risk_coverage_curves(scores))
    """
    if ax is None:
        ax = _new_axes(COLUMN[0], 2.4)
    styles = curve_styles(curves["curve"].unique())
    for name, part in curves.groupby("curve", sort=False):
        style = styles[name]
        ax.axhline(100 * part["error"].iloc[-1], **REFERENCE)
        ax.plot(
            100 * part["coverage"],
            100 * part["error"],
            color=style.colour,
            linestyle=style.line,
            label=style.label,
        )
    ax.set(xlim=(0, 100), ylim=(0, None))
    ax.set(xlabel="Images kept, most certain first (%)", ylabel="Error (%)")
    _coloured_legend(ax, styles, loc="lower right")
    return ax


def reliability_diagram(
    bins: pd.DataFrame, *, axes: Sequence[Axes] | None = None
) -> Sequence[Axes]:
    """Accuracy against confidence, and below it the number of images in each bin.

    bins: summaries.reliability_bins. Bins of fewer than FEWEST_IN_BIN images are hollow. A curve
    below the diagonal is overconfident. axes: the upper and the lower one.

    Example:
        >>> bins = figures.reliability_bins(confidences)
        >>> upper, lower = figures.reliability_diagram(bins)
    """
    if axes is None:
        size = {"figsize": (SQUARE[0], 3.2), "height_ratios": [3, 1], "layout": "constrained"}
        _, axes = plt.subplots(2, 1, sharex=True, **size)
    upper, lower = axes
    styles = curve_styles(bins["curve"].unique())
    if len(styles) == 1:
        styles = {name: MethodStyle(style.label, BLUE) for name, style in styles.items()}
    for name, part in bins.groupby("curve", sort=False):
        style = styles[name]
        look = {"color": style.colour, "linestyle": style.line}
        filled = part[part["count"] > 0]
        few = filled[filled["count"] < FEWEST_IN_BIN]
        label = f"{style.label}, ECE {part['ece'].iloc[0]:.3f}"
        upper.plot(
            filled["confidence"], filled["accuracy"], marker=style.marker, label=label, **look
        )
        upper.plot(
            few["confidence"], few["accuracy"], style.marker, color=style.colour, mfc="white"
        )
        lower.stairs(part["count"], [*part["bin_low"], 1.0], **look)
    upper.plot([0, 1], [0, 1], **REFERENCE)
    upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="Accuracy")
    lower.set(xlim=(0, 1), ylim=(0, None), xlabel="Confidence", ylabel="Images")
    _coloured_legend(upper, styles, loc="upper left")
    return axes


# -------------------------------------------------------------------------------- comparisons


def dot_plot(
    data: pd.DataFrame,
    x: str,
    y: str = "method",
    *,
    order: Sequence[str] | None = None,
    xlabel: str = "",
    lead: str = BLUE,
    reference: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """One row for each value of `y`: every seed a dot, the mean a bar across, its interval a line.

    Rows are sorted by their mean unless `order` says otherwise. Methods have their own colours;
    of other rows the first is drawn in `lead` and the others grey.

    Example:
        >>> ax = figures.dot_plot(accuracy, "linear", xlabel="Accuracy of the linear probe")
    """
    if order is None:
        means = data.groupby(y, observed=True)[x].mean()
        order = means.sort_values(ascending=False, kind="stable").index
    order = list(order)
    if ax is None:
        ax = _new_axes(COLUMN[0], 0.6 + 0.18 * len(order))
    styles = {}
    for name in order:
        if y == "method":
            styles[name] = method_style(name)
        else:
            styles[name] = MethodStyle(str(name), GREY if styles else lead)
    palette = {name: style.colour for name, style in styles.items()}
    rows = {"data": data, "x": x, "y": y, "order": order, "orient": "h", "ax": ax}
    rows |= {"hue": y, "palette": palette, "legend": False}
    sns.stripplot(**rows, jitter=False, size=3, alpha=0.5)
    sns.pointplot(
        **rows,
        errorbar=seed_interval,
        err_kws={"linewidth": 1.2},
        linestyle="none",
        marker="|",
        markersize=8,
        markeredgewidth=1.2,
    )
    if reference is not None:
        ax.axvline(reference, **REFERENCE)
    ax.set(xlabel=xlabel or x, ylabel="")
    _name_rows(ax, [style.label for style in styles.values()])
    ax.set_ylim(len(order) - 0.5, -0.5)
    _few_ticks(ax)
    ax.grid(axis="x")
    return ax


def attribute_bars(
    data: pd.DataFrame,
    x: str,
    y: str = "attribute",
    *,
    xlabel: str = "",
    reference: float | None = None,
) -> Axes:
    """Bars from zero, one group for each value of `y` and one bar for each method.

    A bar is the mean over seeds with its interval; groups are sorted by the first method.

    Example:
        >>> ax = figures.attribute_bars(style, "accuracy", reference=0.5)
    """
    methods = in_order(data["method"].unique())
    first = data[data["method"] == methods[0]]
    order = first.groupby(y)[x].mean().sort_values(ascending=False).index
    ax = _new_axes(COLUMN[0], 0.6 + 0.14 * len(order) * len(methods))
    styles = {name: method_style(name) for name in methods}
    colours = [style.colour for style in styles.values()]
    sns.barplot(
        data,
        x=x,
        y=y,
        hue="method",
        order=list(order),
        hue_order=methods,
        palette=_distinct(colours),
        saturation=1,
        errorbar=seed_interval,
        err_kws={"linewidth": 0.8, "color": INK},
        orient="h",
        ax=ax,
    )
    if reference is not None:
        ax.axvline(reference, **REFERENCE)
    ax.set(xlabel=xlabel or x, ylabel="")
    ax.tick_params(axis="y", length=0)
    sns.move_legend(ax, "lower left", bbox_to_anchor=(0, 1), ncols=2, title=None)
    for text, style in zip(ax.get_legend().get_texts(), styles.values(), strict=True):
        text.set_text(style.label)
    return ax


def method_scatter(
    data: pd.DataFrame,
    x: str,
    y: str,
    *,
    xlabel: str = "",
    ylabel: str = "",
    ax: Axes | None = None,
) -> Axes:
    """`y` against `x`: a small mark for each seed, and the mean of each `method` with its name.

    Example:
        >>> ax = figures.method_scatter(accuracy, "linear", "knn")
    """
    if ax is None:
        ax = _new_axes(*SQUARE)
    labels = []
    for name in in_order(data["method"].unique()):
        part = data[data["method"] == name]
        style = method_style(name)
        face = style.colour if style.fill else "white"
        look = {"marker": style.marker, "color": style.colour, "linestyle": "none"}
        ax.plot(part[x], part[y], markersize=2, alpha=0.35, **look)
        mean = part[x].mean(), part[y].mean()
        ax.plot(*mean, markersize=5, markerfacecolor=face, zorder=4, **look)  # above all labels
        text = f" {style.label}"  # clear of the mark
        labels.append(Label(text, part[x].mean(), part[y].mean(), style.text_colour))
    ax.margins(0.1)
    ax.set(xlabel=xlabel or x, ylabel=ylabel or y)
    write_apart(ax, labels, outline=True, near=0.15)
    return ax


def dumbbell_plot(
    data: pd.DataFrame,
    *,
    xlabel: str = "",
    reference: float | None = None,
    style: MethodStyle | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The published number beside ours, one row a claim, in the order of `data`.

    data: `name`, `published` (hollow diamond), `ours` (dot), `ci_low` and `ci_high` (line through
    the dot); any of the numbers may be NaN. Grey joins the two numbers. Without published numbers
    it is a plot of intervals.

    Args:
        reference: a line, such as no difference or chance.
        style: of ours, blue by default.

    Example:
        >>> ax = figures.dumbbell_plot(claims, xlabel="points", reference=0)
    """
    if ax is None:
        ax = _new_axes(COLUMN[0], 0.6 + 0.22 * len(data))
    style = style or MethodStyle("ours", BLUE)
    rows = np.arange(len(data))
    face = style.colour if style.fill else "white"
    if reference is not None:
        ax.axvline(reference, **REFERENCE)
    if data["published"].notna().any():
        ax.hlines(rows, data["published"], data["ours"], color=CHANCE, linewidth=0.8)
        ax.plot(data["published"], rows, "D", color=INK, mfc="white", label="published", zorder=3)
    ax.hlines(rows, data["ci_low"], data["ci_high"], color=style.colour, linewidth=1.2)
    ax.plot(data["ours"], rows, style.marker, color=style.colour, mfc=face, label="ours", zorder=4)
    ax.set(xlabel=xlabel, ylim=(len(data) - 0.5, -0.5))
    _name_rows(ax, data["name"])
    _few_ticks(ax)
    ax.grid(axis="x")
    if data["published"].notna().any():
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
    return ax


# -------------------------------------------------------------------------------------- curves


def line_plot(
    data: pd.DataFrame,
    x: str,
    y: str,
    hue: str = "method",
    *,
    styles: Mapping[str, MethodStyle] | None = None,
    xlabel: str = "",
    ylabel: str = "",
    log: str = "",
    reference: float | None = None,
    names: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """`y` against `x`, one line for each value of `hue`: the mean over seeds and its interval.

    For accuracy by severity, by labels per class or by training length.

    Args:
        styles: of the lines, in this order; by default a method's own.
        log: the logarithmic axes, "x", "y" or "xy".
        reference: a value of y, drawn as a thin line.
        names: whether to write the names of the lines at their ends.

    Example:
        >>> ax = figures.line_plot(accuracy, "epochs", "linear", log="x")
    """
    if ax is None:
        ax = _new_axes(*COLUMN)
    if styles is None:
        styles = curve_styles(data[hue].unique())
    ends = []
    for name, style in styles.items():
        part = data[data[hue] == name]
        if part.empty:
            continue
        look = {"color": style.colour, "linestyle": style.line, "marker": style.marker}
        look |= {"markerfacecolor": "white", "markeredgecolor": style.colour, "markersize": 3.5}
        look |= {"label": style.label, "legend": False}
        sns.lineplot(
            part, x=x, y=y, errorbar=seed_interval, err_kws={"linewidth": 0}, ax=ax, **look
        )
        mean = part.groupby(x)[y].mean()
        ends.append(Label(style.label, mean.index[-1], mean.iloc[-1], style.text_colour))
    if reference is not None:
        ax.axhline(reference, **REFERENCE)
    _log_axes(ax, log)
    if "x" not in log and pd.api.types.is_integer_dtype(data[x]):
        ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    ax.set(xlabel=xlabel or x, ylabel=ylabel or ax.get_ylabel())
    if names:
        write_apart(ax, ends)
    return ax


def training_curves(
    log: pd.DataFrame,
    measures: Mapping[str, str],
    *,
    axes: Sequence[Axes] | None = None,
) -> Sequence[Axes]:
    """Small multiples over training, one panel for each of `measures` (column: label).

    log: `method`, `seed`, `epoch` and the columns; every seed is a thin line in the colour of its
    method, which is named at the end of the first panel's lines. Rows without a measure are left
    out of its panel.

    Example:
        >>> axes = figures.training_curves(log, {"effective_rank": "Effective rank"})
    """
    methods = in_order(log["method"].unique())
    if axes is None:
        height = max(1.9, 0.17 * len(methods))  # room for a label of each method
        size = {"figsize": (TEXT[0], height), "layout": "constrained"}
        _, axes = plt.subplots(1, len(measures), squeeze=False, **size)
    axes = np.ravel(axes)
    for ax, (measure, label) in zip(axes, measures.items(), strict=True):
        ends = []
        for method in methods:
            style = method_style(method)
            part = log[log["method"] == method].dropna(subset=measure)
            if part.empty:
                continue
            look = {"color": style.colour, "linewidth": 0.8, "alpha": 0.8}
            sns.lineplot(part, x="epoch", y=measure, units="seed", estimator=None, ax=ax, **look)
            last_epoch = part["epoch"].max()
            mean = part.loc[part["epoch"] == last_epoch, measure].mean()
            ends.append(Label(style.label, last_epoch, mean, style.text_colour))
        ax.set(xlabel="Epoch", ylabel=label)
        if len(methods) == 1:
            ax.set_title(ends[0].text if ax is axes[0] else "")
        else:
            write_apart(ax, ends)
    return axes


# -------------------------------------------------------------------------------------- images


def image_grid(
    images: np.ndarray,
    *,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    notes: Sequence[Sequence[str]] = (),
) -> Figure:
    """A grid of images, uint8 [R, C, H, W] or [R, C, H, W, 1 or 3], each half an inch wide.

    Args:
        rows: a text at the left of each row.
        columns: a text above each column.
        notes: a text under each image, such as its κ, [R][C].

    Example:
        >>> figure = figures.image_grid(pictures[:6].reshape(2, 3, 8, 8, 3), rows=["plain", "blur"])
    """
    images = np.asarray(images)
    if images.dtype != np.uint8 or images.ndim not in (4, 5):
        raise ValueError(
            f"images must be uint8 [R, C, H, W] or [R, C, H, W, 1 or 3], "
            f"got {images.dtype} {images.shape}"
        )
    height, width = images.shape[:2]
    label_width = 0.065 * max((_longest_line(text) for text in rows), default=0)
    note_height = 0.16 if len(notes) else 0.02
    title_height = 0.13 * max((str(text).count("\n") + 1 for text in columns), default=0)
    size = (width * (TILE + 0.02) + label_width, height * (TILE + note_height) + title_height)
    figure, axes = plt.subplots(height, width, figsize=size, squeeze=False, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    for (i, j), ax in np.ndenumerate(axes):
        ax.imshow(images[i, j], cmap="gray", vmin=0, vmax=255)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
        if len(notes):
            ax.set_xlabel(notes[i][j], fontsize=6, labelpad=1.5)
    for ax, text in zip(axes[0], columns, strict=False):
        ax.set_title(text, fontsize=6, loc="center", pad=2)
    for ax, text in zip(axes[:, 0], rows, strict=False):
        ax.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=LABEL_SIZE)
    return figure


def images_by_kappa(images: np.ndarray, kappa: np.ndarray, *, columns: int = 8) -> Figure:
    """The images [N, H, W(, C)] of highest and of lowest κ [N], with their κ under them.

    Example:
        >>> figure = figures.images_by_kappa(pictures, images.kappa.to_numpy(), columns=4)
    """
    order = np.argsort(kappa, kind="stable")
    picked = np.stack([order[::-1][:columns], order[:columns]])
    notes = [list(map(kappa_text, row)) for row in kappa[picked]]
    return image_grid(images[picked], rows=["highest κ", "lowest κ"], notes=notes)


def reconstruction_grid(
    images: np.ndarray, reconstructions: Mapping[str, np.ndarray], errors: Mapping[str, float]
) -> Figure:
    """Images [N, H, W(, C)] above what each method makes of them, with each method's mean error.

    reconstructions: by method, shaped like the images, drawn in order of their error. errors: by
    method, over all test images.

    Example:
        >>> mean = {"vae": pictures[:4] // 2 + 64}
        >>> figure = figures.reconstruction_grid(pictures[:4], mean, {"vae": 0.08})
    """
    names = sorted(reconstructions, key=errors.get)
    rows = ["Input"]
    for name in names:
        rows.append(f"{method_style(name).label}\n{errors[name]:.4f}")
    tiles = [images, *(reconstructions[name] for name in names)]
    return image_grid(np.stack(tiles), rows=rows)


# ------------------------------------------------------------------------------------- helpers


def panel_letters(axes) -> None:
    """Bold a, b, c at the top left of each of the axes.

    Example:
        >>> drawing, axes = plt.subplots(1, 2)
        >>> figures.panel_letters(axes)
    """
    for letter, ax in zip("abcdefghijkl", np.ravel(axes), strict=False):
        ax.annotate(
            letter,
            (0, 1),
            (-20, 5),  # points
            "axes fraction",
            "offset points",
            fontsize=8,
            fontweight="bold",
        )


def plain_log_axis(axis: Axis) -> None:
    """Ticks of a log axis as plain numbers, also where it spans less than a decade."""
    low, high = axis.get_view_interval()
    if high < 4 * low:
        axis.set_major_locator(ticker.MaxNLocator(4, steps=[1, 2, 5, 10]))
        axis.set_minor_locator(ticker.NullLocator())
    elif high < 30 * low:
        axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    elif high < 100 * low:
        axis.set_major_locator(ticker.LogLocator(subs=(1, 3)))
    else:
        axis.set_major_locator(ticker.LogLocator())
    axis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value >= 10 else f"{value:g}")
    axis.set_minor_formatter(ticker.NullFormatter())


@dataclass(frozen=True)
class Label:
    """A text at a place in the data of a chart."""

    text: str
    x: float
    y: float
    colour: str | tuple[float, ...]


def write_apart(
    ax: Axes,
    labels: list[Label],
    *,
    ha: str = "left",
    outline: bool = False,
    near: float = np.inf,
) -> None:
    """Write labels at their places, moved up or down where they overlap.

    near: labels further apart than this share of the width do not overlap. Left-aligned labels are
    three points right of their places. Limits of the axes have to be set before.
    """
    if not labels:
        return
    ax.figure.draw_without_rendering()  # the layout moves the axes
    to_points = ax.transData + ax.figure.dpi_scale_trans.inverted()
    places = 72 * to_points.transform([(label.x, label.y) for label in labels])
    near *= 72 * _inches(ax)[0]
    by_x = np.argsort(places[:, 0], kind="stable")
    new_column = np.diff(places[by_x, 0], prepend=places[by_x[0], 0]) > near
    heights = places[:, 1].copy()
    for column in np.split(by_x, np.flatnonzero(new_column)):
        heights[column] = moved_apart(places[column, 1], gap=8.5)
    right = 3 if ha == "left" else 0
    for label, up in zip(labels, heights - places[:, 1], strict=True):
        text = ax.annotate(
            label.text,
            (label.x, label.y),
            (right, up),
            textcoords="offset points",
            color=label.colour,
            fontsize=LABEL_SIZE,
            ha=ha,
            va="center",
            annotation_clip=False,
        )
        if outline:
            text.set_path_effects(WHITE_OUTLINE)


def moved_apart(positions: np.ndarray, gap: float) -> np.ndarray:
    """Positions moved apart until neighbours are at least `gap` away, in the same order."""
    order = np.argsort(positions, kind="stable")
    steps = gap * np.arange(len(positions))
    moved = np.empty(len(positions))
    moved[order] = isotonic_regression(positions[order] - steps).x + steps
    return moved


def _new_axes(width: float, height: float) -> Axes:
    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def _name_rows(ax: Axes, names: Sequence[str], **look) -> None:
    ax.set_yticks(range(len(names)), names, **look)
    ax.tick_params(axis="y", length=0)


def _log_axes(ax: Axes, log: str) -> None:
    for name in log:
        ax.set(**{f"{name}scale": "log"})
        plain_log_axis(getattr(ax, f"{name}axis"))


def _coloured_legend(ax: Axes, styles: Mapping[str, MethodStyle], **options) -> None:
    colours = [style.text_colour for style in styles.values()]
    ax.legend(labelcolor=colours, handlelength=1.8, labelspacing=0.35, **options)


def _count_rows(ax: Axes, counts: Sequence[int]) -> None:
    """The number of images right of each row."""
    look = {"fontsize": 6, "va": "center", "color": GREY, "textcoords": "offset points"}
    for row, count in enumerate(counts):
        ax.annotate(f"{count:,}", (1, row), (3, 0), ax.get_yaxis_transform(), **look)
    ax.annotate("n", (1, 1), (3, 2), "axes fraction", **(look | {"fontstyle": "italic"}))


def _tint(colour: str, share: float) -> tuple[float, ...]:
    """This share of the colour, the rest white."""
    return tuple(1 - share * (1 - channel) for channel in to_rgb(colour))


def _distinct(colours: Sequence[str]) -> list[tuple[float, ...]]:
    """These colours, paler from one use of a colour to the next; greys are uses of black."""
    shares = (1, 0.6, 0.35, 0.15)
    families = [BLACK if colour == GREY else colour for colour in colours]
    distinct = []
    for place, colour in enumerate(families):
        uses = families[:place].count(colour)
        distinct.append(_tint(colour, shares[min(uses, len(shares) - 1)]))
    return distinct


def _few_ticks(ax: Axes) -> None:
    """Few enough ticks along x for their numbers to stand apart."""
    most = 5 if _inches(ax)[0] > 1.6 else 3
    ax.xaxis.set_major_locator(ticker.MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))


def _inches(ax: Axes) -> np.ndarray:
    return ax.bbox.size / ax.figure.dpi


def _longest_line(text: str) -> int:
    return max(len(line) for line in str(text).splitlines() or [""])
