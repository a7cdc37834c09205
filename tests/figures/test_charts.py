"""Charts draw their data, saved figures say where they come from, any name can be drawn."""

import json

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from lib import figures
from lib.runs import store

# Folders may have any of these names, so a person's own method or class may.
ODD_NAMES = ["$x^{2", "_hidden", "two\nlines", "\udcff", "x" * 255]


@pytest.fixture(autouse=True)
def in_style():
    figures.use_style()
    yield
    plt.close("all")


def kappas(n: int = 600) -> pd.DataFrame:
    generator = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "group": np.array(["a", "b", "c"])[generator.integers(0, 3, n)],
            "kappa": np.exp(generator.normal(5, 0.6, n)),
            "correct": generator.random(n) < 0.7,
        }
    )


def by_seed(**values: list[float]) -> pd.DataFrame:
    """One row a method and seed, with its accuracy."""
    frames = []
    for method, accuracies in values.items():
        seeds = range(len(accuracies))
        frames.append(pd.DataFrame({"method": method, "seed": seeds, "accuracy": accuracies}))
    return pd.concat(frames, ignore_index=True)


DATA = pd.DataFrame({"x": [1.0, 2.5], "y": [0.5, 1.25], "class": ["0", "1"]})


def save_figure(**changes) -> None:
    figure, ax = plt.subplots()
    ax.scatter(DATA["x"], DATA["y"])
    report = figures.Report("some_notebook", changes.pop("profile", "standard"))
    options = {"data": DATA, "caption": "κ falls. Dots: seeds."}
    report.figure("30_points", figure, **(options | changes))


# -------------------------------------------------------------------------------------- saving
def test_a_saved_figure_has_its_data_and_where_it_comes_from(tmp_path):
    source = tmp_path / "results" / "standard" / "scores.csv"
    store.write_text(source, "a\n1\n")
    save_figure(claims=["VS1-1"], inputs=[source])
    folder = store.results_dir("standard") / "figures"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["30_points.csv", "30_points.json", "30_points.pdf", "30_points.png"]
    record = json.loads((folder / "30_points.json").read_text())
    assert record["inputs"] == {"results/standard/scores.csv": store.sha256(source)}
    expected = {"claims": ["VS1-1"], "notebook": "some_notebook", "alt": "κ falls."}
    assert record.items() >= (expected | {"commit": store.commit()}).items()
    pd.testing.assert_frame_equal(figures.stored_data("30_points", "standard", [source]), DATA)
    source.write_text("changed")
    assert figures.stored_data("30_points", "standard", [source]) is None


def test_redrawing_gives_the_same_bytes():
    contents = []
    for _ in range(2):
        save_figure()
        folder = store.results_dir("standard") / "figures"
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[1]


# -------------------------------------------------------------------------------------- charts
def test_any_name_can_be_drawn():
    accuracy = by_seed(**{name: [1.0, 2.0, 3.0] for name in ODD_NAMES})
    log = accuracy.assign(epoch=accuracy.seed)
    kappa = pd.DataFrame(
        {"class": ODD_NAMES * 2, "kappa": np.arange(1.0, 11.0), "x": 1.0, "y": 2.0}
    )
    axes = [
        figures.dot_plot(accuracy, "accuracy"),
        figures.line_plot(log, "epoch", "accuracy"),
        figures.training_curves(log, {"accuracy": "Accuracy"})[0],
        figures.kappa_boxplot(kappa, "class"),
        figures.tsne_plot(kappa),
    ]
    for ax in axes:
        ax.figure.canvas.draw()


def test_the_summary_of_a_box_plot_has_its_quartiles_and_whiskers():
    data = kappas()
    boxes = figures.box_summary(data, "group").set_index("group")
    for name in boxes.index:
        values = data.loc[data["group"] == name, "kappa"]
        q1, median, q3 = np.percentile(values, [25, 50, 75])
        row = boxes.loc[name]
        assert (row.q1, row["median"], row.q3, row.n) == pytest.approx(
            (q1, median, q3, len(values))
        )
        reach = (q3 / q1) ** 1.5
        inside = values[values.between(q1 / reach, q3 * reach)]
        whiskers = (row.whisker_low, row.whisker_high)
        assert whiskers == pytest.approx((inside.min(), inside.max()))


def test_histograms_share_bins_and_integrate_to_one():
    bins = figures.log_histogram(kappas(), "group", bins=20)
    width = np.log10(bins["bin_high"] / bins["bin_low"])
    assert np.allclose((bins["density"] * width).groupby(bins["group"]).sum(), 1)
    counts = bins.groupby("group")["count"].sum()
    assert counts.to_dict() == kappas()["group"].value_counts().to_dict()
    figures.kappa_histogram(bins, "group")


def test_intervals_over_seeds_begin_with_three():
    data = by_seed(vi_simsiam=[60.0, 61.0, 62.0, 63.0, 64.0], simsiam=[58.0, 60.0])
    # t(0.975, 4) = 2.776445, s = sqrt(2.5), n = 5
    high = 62 + 2.7764451 * np.sqrt(2.5 / 5)
    ax = figures.dot_plot(data, "accuracy")
    ends = [line.get_xdata() for line in ax.lines if len(line.get_xdata()) == 2]
    assert max(np.nanmax(end) for end in ends) == pytest.approx(high)


def test_a_dumbbell_joins_the_published_number_and_ours():
    nan = np.nan
    rows = [("A", 1.0, 0.5, 0.1, 0.9), ("B", 2.0, nan, nan, nan), ("C", nan, -1.0, -2.0, 0.0)]
    data = pd.DataFrame(rows, columns=["name", "published", "ours", "ci_low", "ci_high"])
    ax = figures.dumbbell_plot(data, reference=0.25)
    lines = {line.get_label(): line for line in ax.lines}
    np.testing.assert_array_equal(lines["published"].get_xdata(), data["published"])
    np.testing.assert_array_equal(lines["ours"].get_xdata(), data["ours"])
    figures.dumbbell_plot(data.assign(published=nan))


def test_images_of_high_and_low_kappa():
    kappa = np.random.default_rng(0).permutation(20).astype(float)
    # Grey images [N, 4, 4] whose level is their number
    images = np.repeat(np.arange(20, dtype=np.uint8), 16).reshape(20, 4, 4)
    grid = figures.images_by_kappa(images, kappa, columns=3)
    levels = [ax.images[0].get_array()[0, 0] for ax in grid.axes]
    assert kappa[levels].tolist() == [19, 18, 17, 0, 1, 2]
