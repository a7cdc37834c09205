"""The figure and the page of the benchmarks, from their tables."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from lib import figures
from lib.runs import store
from tests.benchmarks import measuring

MARKERS = {"b": "s", "c": "o", "c, bf16": "D", "d": "^"}
LABELS = {
    "b": "bare network",
    "c": "lightly, float32",
    "c, bf16": "lightly, bf16",
    "d": "torchvision v2, bf16",
}
PARTS = ["fetch the batch", "draw parameters", "make the views", "forward", "backward", "optimiser"]


def read_pretraining() -> pd.DataFrame:
    """The table of speeds, small images and narrow networks first."""
    table = measuring.read_table("pretraining")
    table = table.sort_values(["image_size", "width", "stem"], kind="stable")
    size = table.image_size.astype(str)
    return table.assign(title=size + " px, width " + table.width.astype(str) + ", " + table.stem)


def pretraining() -> None:
    """Our speed relative to that of others, and where the time of a step goes."""
    table = read_pretraining()
    titles = table.drop_duplicates("case").set_index("case").title
    shares = measuring.read_table("pretraining_shares")
    shares = shares.pivot(index="case", columns="part", values="milliseconds").clip(lower=0)
    shares = shares.loc[titles.index, PARTS].set_axis(titles.array)
    shares = shares.div(shares.sum(axis=1), axis=0)
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(figures.PAGE[0], 0.42 * len(titles) + 1.1), layout="constrained", sharey=True
    )
    shares.plot.barh(stacked=True, ax=right, colormap="Greys", edgecolor="black", linewidth=0.4)
    for number, (arm, marker) in enumerate(MARKERS.items()):
        ratios = table[table.quantity == f"ratio a / {arm}"].set_index("case").loc[titles.index]
        errors = [ratios["median"] - ratios.low, ratios.high - ratios["median"]]
        heights = np.arange(len(titles)) + 0.15 * (number - 1.5)
        left.errorbar(ratios["median"], heights, xerr=errors, fmt=marker, label=LABELS[arm])
    left.axvline(1, color=figures.GREY, linewidth=0.6, zorder=0)
    left.set(xscale="log", xlabel="our images/s divided by theirs")
    left.set_xticks([0.5, 1, 2, 3, 5], ["0.5", "1", "2", "3", "5"])
    left.minorticks_off()
    left.invert_yaxis()
    right.set(xlabel="share of one step's time, each part timed alone", ylabel="")
    for ax in (left, right):
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    figures.panel_letters([left, right])
    machine = table.iloc[0]
    drawn = table[table.quantity.str.startswith("ratio a / ")]
    report = figures.Report("tests/benchmarks", measuring.FOLDER)
    report.figure(
        "benchmark_pretraining",
        figure,
        caption=(
            "Speed of pretraining, relative to others and by its parts. (a) Our images per second,"
            " end to end, divided by those of the network alone and of the same method as a"
            f" DataLoader loop; median and range of {int(machine.repeats)} interleaved repeats."
            f" (b) Where a step's time goes. {machine.processor}, {machine.threads} threads."
        ),
        data=drawn[["case", "quantity", "median", "low", "high", "bar"]],
    )


def cell(row: pd.Series) -> str:
    """Median and range, and whether what we aim at is reached."""
    digits = 2 if row.quantity.startswith("ratio") else 0
    text = f"{row['median']:.{digits}f} [{row.low:.{digits}f}, {row.high:.{digits}f}]"
    if pd.isna(row.bar):
        return text
    return f"{text}, ≥ {row.bar:g}: {'yes' if row['median'] >= row.bar else 'no'}"


def markdown(table: pd.DataFrame, index: list[str]) -> list[str]:
    """The lines of a table: a row a case, our speed and its ratios to others as columns."""
    is_ours = (table.arm == "a") & table.quantity.str.endswith("/s")
    shown = table[is_ours | table.quantity.str.startswith("ratio")]
    shown = shown.assign(cell=shown.apply(cell, axis=1))
    wide = shown.pivot_table("cell", index, "quantity", aggfunc="first", sort=False)
    wide = wide.fillna("").reset_index()
    header = [name.removeprefix("ratio ") for name in wide]
    rows = [header, ["---"] * len(header), *wide.to_numpy().tolist()]
    return ["| " + " | ".join(row) + " |" for row in rows]


def page() -> None:
    """results/benchmarks/README.md: tables and the figure on one page."""
    table = read_pretraining().rename(columns={"title": "SimSiam"})
    autoencoders = measuring.read_table("autoencoders")
    autoencoders["SimVAE"] = autoencoders.data + ", " + autoencoders.network
    images = autoencoders.images.astype(str)
    autoencoders["batch"] = images + " images of " + autoencoders.views.astype(str) + " views"
    machine = table.iloc[0]
    lines = [
        "# Benchmarks",
        "",
        "Written by `make benchmark`: paired, interleaved timings; median, and range in brackets.",
        "",
        "![Speed of pretraining](figures/benchmark_pretraining.png)",
        "",
        *markdown(table, ["SimSiam"]),
        "",
        "a: our loop end to end, whose speed is given. b: the bare network with its optimiser."
        " c: lightly's documented loop, float32 or bf16. d: torchvision v2, bf16."
        " After ≥ stands what we aim at.",
        "",
        *markdown(autoencoders, ["SimVAE", "batch", "precision"]),
        "",
        f"{machine.processor}, {machine.cores} cores, accelerator {machine.accelerator},"
        f" {machine.threads} threads, torch {machine.torch}, commit {machine.commit}.",
    ]
    path = store.results_dir(measuring.FOLDER) / "README.md"
    store.write_text(path, "\n".join(lines) + "\n")
