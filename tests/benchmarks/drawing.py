"""The figures of the benchmarks, from their tables."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd

from lib import figures as plotting
from lib.runs import store as artifacts
from tests.benchmarks import measuring

DRAWN_BY = "tests/benchmarks"
PARTS = ["fetch the batch", "draw parameters", "make the views", "forward", "backward", "optimiser"]
OTHERS = {
    "b": ("bare network", "s", plotting.INK),
    "c": ("lightly, float32", "o", plotting.BLUE),
    "c, bf16": ("lightly, bf16", "D", plotting.GREY),
    "d": ("torchvision v2, bf16", "^", plotting.GREY),
}


def title(case: pd.Series) -> str:
    return f"{case.image_size} px, width {case.width}, {case.stem}"


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Small images and narrow networks first."""
    return table.sort_values(["image_size", "width", "stem"], kind="stable")


def span(table: pd.DataFrame, arm: str) -> str:
    """The lowest and highest median ratio to an arm over the cases, in words."""
    medians = table[table.quantity == f"ratio a / {arm}"]["median"]
    return f"{medians.min():.2f} to {medians.max():.2f}"


def pretraining() -> None:
    table = in_order(measuring.read_table("pretraining"))
    shares = measuring.read_table("pretraining_shares")
    cases = list(dict.fromkeys(table.case))
    names = [title(table[table.case == case].iloc[0]) for case in cases]
    figure, (left, right) = plt.subplots(
        1,
        2,
        figsize=(plotting.PAGE[0], 0.42 * len(cases) + 1.1),
        width_ratios=[1.1, 1],
        layout="constrained",
    )
    drawn = []
    for arm, (label, marker, colour) in OTHERS.items():
        ratios = table[table.quantity == f"ratio a / {arm}"].set_index("case").reindex(cases)
        places = [
            place + {"b": -0.24, "c": -0.08, "c, bf16": 0.08, "d": 0.24}[arm]
            for place in range(len(cases))
        ]
        left.hlines(places, ratios.low, ratios.high, color=colour, linewidth=1)
        left.plot(
            ratios["median"],
            places,
            marker,
            color=colour,
            markerfacecolor=colour if arm in "bc" else "white",
            label=label,
            zorder=3,
        )
        if arm in ("b", "c"):
            aim = {
                "color": plotting.CHANCE,
                "linewidth": 2.5,
                "zorder": 1,
                "label": "aim" if arm == "b" else None,
            }
            left.vlines(
                ratios.bar,
                [place - 0.14 for place in places],
                [place + 0.14 for place in places],
                **aim,
            )
        drawn.append(ratios.reset_index()[["case", "quantity", "median", "low", "high", "bar"]])
    left.axvline(1, color=plotting.GREY, linewidth=0.6, zorder=0)
    left.set(xscale="log", xlabel="our images/s divided by theirs", ylim=(len(cases) - 0.5, -0.5))
    shown = table[table.quantity.str.startswith("ratio")]
    ticks = [
        tick
        for tick in (0.5, 1, 2, 3, 5, 8, 12)
        if shown.low.min() * 0.9 <= tick <= shown.high.max() * 1.1
    ]
    left.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    left.xaxis.set_minor_formatter(plt.NullFormatter())
    left.set_yticks(range(len(cases)), names)
    colours = plt.get_cmap("Greys")([0.75, 0.55, 0.0, 0.25, 0.4, 0.9])
    colours[2] = plt.matplotlib.colors.to_rgba(plotting.BLUE)
    for place, case in enumerate(cases):
        parts = (
            shares[shares.case == case].set_index("part").milliseconds.clip(lower=0).reindex(PARTS)
        )
        begin = 0.0
        for part, colour in zip(PARTS, colours, strict=True):
            width = parts[part] / parts.sum()
            right.barh(
                place,
                width,
                left=begin,
                color=colour,
                height=0.6,
                label=part if not place else None,
            )
            begin += width
        right.text(1.02, place, f"{parts.sum():.0f} ms", va="center", fontsize=6.5)
        drawn.append(
            pd.DataFrame(
                {
                    "case": case,
                    "quantity": [f"share of {part}" for part in PARTS],
                    "median": (parts / parts.sum()).to_numpy(),
                }
            )
        )
    right.set(
        xlabel="share of one step's time, each part timed alone",
        xlim=(0, 1.18),
        ylim=(len(cases) - 0.5, -0.5),
    )
    right.set_xticks([0, 0.5, 1], ["0", "½", "1"])
    right.set_yticks([])
    for axes, columns in ((left, 2), (right, 2)):
        axes.legend(
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            ncols=columns,
            fontsize=6.5,
            frameon=False,
            handlelength=1.2,
            columnspacing=1,
        )
    row = table.iloc[0]
    plotting.panel_letters([left, right])
    plotting.save_figure(
        figure,
        "benchmark_pretraining",
        profile=measuring.FOLDER,
        notebook=DRAWN_BY,
        caption=(
            f"Pretraining runs at {span(table, 'b')} of the bare network's speed. (a) Our images"
            " per second, end to end, divided by those of the same network alone on resident views"
            " and of the same method as a DataLoader loop, for ResNet-18 with SimSiam, batch 256;"
            f" median and range of {int(row.repeats)} interleaved repeats, grey bars: what we aim"
            f" at. (b) Where a step's time goes. {row.processor}, {row.threads} threads,"
            f" {'no GPU' if row.accelerator == 'none' else row.accelerator}."
        ),
        alt=(
            f"Our loop runs at {span(table, 'b')} of the bare network's speed, {span(table, 'c')}"
            f" times as fast as the documented loop in float32 and {span(table, 'c, bf16')} times"
            " in bf16. Views take a small share of a step, the backward pass the largest."
        ),
        data=pd.concat(drawn, ignore_index=True),
    )


def proportional(ax, middle: pd.DataFrame, power: int) -> None:
    """A thin line through the last point and, were there no fixed cost, through all others."""
    at = middle["at"]
    value = middle["median"]
    ax.plot(
        at,
        value.iloc[-1] * (at / at.iloc[-1]) ** power,
        color=plotting.GREY,
        linewidth=0.8,
        zorder=0,
    )


def growth() -> None:
    table = measuring.read_table("growth")
    panels = {
        "images": "images",
        "views": "views J",
        "image size": "image size, px",
        "epochs and runs": "runs of 8 epochs in one process",
    }
    figure, axes = plt.subplots(2, 2, figsize=(plotting.TEXT[0], 3.8), layout="constrained")
    axes = axes.ravel()
    drawn = []
    for ax, (against, label) in zip(axes, panels.items(), strict=True):
        rows = table[
            table.against == ("runs in one process" if against == "epochs and runs" else against)
        ]
        if against == "epochs and runs":
            rows = rows.assign(value=rows.value - rows.value.iloc[0])
        middle = rows.groupby("at").value.agg(["median", "min", "max"]).reset_index()
        ax.vlines(middle["at"], middle["min"], middle["max"], color=plotting.BLUE, linewidth=1)
        ax.plot(middle["at"], middle["median"], "o-", color=plotting.BLUE)
        if against in ("images", "views"):
            proportional(ax, middle, 1)
        if against == "image size":
            proportional(ax, middle, 2)
        ax.set(
            xlabel=label,
            ylabel={
                "s/epoch": "s per epoch",
                "ms/step": "ms per step",
                "MB more": "MB more than after the first",
            }[rows.unit.iloc[0]],
        )
        ax.set_xlim(0)
        ax.set_ylim(*((-50, 500) if against == "epochs and runs" else (0, None)))
        drawn.append(middle.assign(against=rows.against.iloc[0], unit=rows.unit.iloc[0]))
    axes[0].set_xticks([0, 10_000, 20_000], ["0", "10k", "20k"])
    plotting.panel_letters(axes)
    row = table.iloc[0]
    plotting.save_figure(
        figure,
        "benchmark_growth",
        profile=measuring.FOLDER,
        notebook=DRAWN_BY,
        caption=(
            "The cost of pretraining grows in proportion to the work, and memory stays flat."
            " SimSiam with ResNet-18 of width 16 on drawn images: (a) seconds an epoch against the"
            " number of images, (b) milliseconds a step of 256 images against the number of"
            " full-size views, (c) against the image size, (d) memory after each run in one"
            " process above the first's. Grey: proportional to images, views, pixels. Median and"
            f" range; {row.processor}, {row.threads} threads."
        ),
        alt=(
            "Time rises in proportion to the number of images and of views and with the number of"
            " pixels. Memory does not rise with further runs."
        ),
        data=pd.concat(drawn, ignore_index=True),
    )


def autoencoders() -> list[str]:
    """SimVAE's table, in lines."""
    header = ["SimVAE", "batch", "precision", "our views/s", "a / b", "aim"]
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for _, rows in measuring.read_table("autoencoders").groupby("case", sort=False):
        case = rows.iloc[0]
        by = rows.set_index(["quantity", "arm"])
        speed = by.loc[("views/s", "a")]
        ratio = by.loc[("ratio a / b", "b")]
        cells = [
            f"{case.data}, {case.network}",
            f"{case.images} images of {case.views} views",
            case.precision,
            cell(speed, 0),
            cell(ratio, 2),
        ]
        lines.append("| " + " | ".join([*cells, aim(ratio)]) + " |")
    return [
        *lines,
        "",
        (
            "a: our loop end to end, views included. b: encoder and decoder alone with their"
            " optimiser, in the same precision."
        ),
        "",
    ]


def cell(row: pd.Series, digits: int) -> str:
    return f"{row['median']:.{digits}f} [{row.low:.{digits}f}, {row.high:.{digits}f}]"


def aim(ratio: pd.Series) -> str:
    return f"≥ {ratio.bar:g}: {'yes' if ratio['median'] >= ratio.bar else 'no'}"


def page() -> None:
    """results/benchmarks/README.md: tables and figures on one page, with what they say."""
    table = in_order(measuring.read_table("pretraining"))
    evaluation = measuring.read_table("evaluation")
    lines = [
        "# Benchmarks",
        "",
        (
            "Written by `make benchmark`: paired, interleaved timings in one run; median, and range"
            " in brackets."
        ),
        "",
    ]
    lines += ["![Speed of pretraining](figures/benchmark_pretraining.png)", ""]
    header = [
        "case",
        "our images/s",
        "a / b",
        "aim",
        "a / c, float32",
        "aim",
        "a / c, bf16",
        "a / d",
        "b / matrix multiply",
    ]
    lines += ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]

    below = []
    for _, rows in table.groupby("case", sort=False):
        by = rows.set_index(["quantity", "arm"])
        cells = [title(rows.iloc[0]), cell(by.loc[("images/s", "a")], 0)]
        for arm in ("b", "c"):
            ratio = by.loc[(f"ratio a / {arm}", arm)]
            cells += [cell(ratio, 2), aim(ratio)]
            if ratio["median"] < ratio.bar:
                bare = by.loc[("images/s", "b"), "median"] / by.loc[("images/s", arm), "median"]
                reason = (
                    f"the bare network itself is {bare:.2f} times as fast as c here, which bounds"
                    " the ratio"
                )
                if arm == "b":
                    side = "around" if ratio["high"] >= ratio.bar else "below"
                    reason = (
                        f"the repeats range from {ratio['low']:.2f} to {ratio['high']:.2f},"
                        f" {side} it"
                    )
                short = f"{ratio.bar - ratio['median']:.3f} below the aim"
                below.append(
                    f"- {title(rows.iloc[0])}: a / {arm} is {ratio['median']:.3f}, {short};"
                    f" {reason}."
                )
        cells += [cell(by.loc[(f"ratio a / {arm}", arm)], 2) for arm in ("c, bf16", "d")]
        cells.append(cell(by.loc[("share of the matrix-multiply rate", "b")], 2))
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        (
            "a: our loop end to end. b: the bare network with its optimiser. c: lightly's"
            " documented loop. d: torchvision v2, bf16."
        ),
    ]
    lines += (
        ["", "Below the aim:", "", *below, ""]
        if below
        else ["", "Every ratio reaches its aim.", ""]
    )
    compiled = table[(table.quantity == "ratio a / b, compiled")]
    for row in compiled.itertuples():
        lines += [
            (
                f"Compiling the bare network (torch.compile) on `{row.case}`: a / b becomes"
                f" {row.median:.2f} [{row.low:.2f}, {row.high:.2f}]."
            ),
            "",
        ]
    gpu = table[table.accelerator != "none"]
    lines += [
        "GPU (images/s, model FLOP utilisation, peak memory): "
        + ("see the rows with an accelerator." if len(gpu) else "not measured."),
        "",
    ]
    lines += autoencoders()
    lines += [
        "![Growth](figures/benchmark_growth.png)",
        "",
        "| evaluation | | |",
        "| --- | --- | --- |",
    ]
    for row in evaluation.itertuples():
        digits = 0 if row.median > 50 else 2
        note = "" if pd.isna(row.note) else row.note
        lines.append(
            f"| {row.what} | {row.median:,.{digits}f} {row.unit} [{row.low:,.{digits}f},"
            f" {row.high:,.{digits}f}] | {note} |"
        )
    row = table.iloc[0]
    lines += [
        "",
        (
            f"{row.processor}, {row.cores} cores, {row.threads} threads, torch {row.torch}, commit"
            f" {row.commit}."
        ),
    ]
    artifacts.write_text(
        artifacts.results_dir(measuring.FOLDER) / "README.md", "\n".join(lines) + "\n"
    )
