"""Charts draw their data, saved figures say where they come from, any name can be drawn."""

import json

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.patches import PathPatch

from lib import figures
from lib.evaluation import uncertainty
from lib.figures import save, style, summaries
from lib.figures.charts import spread
from lib.runs import store

# Folders may have any of these names, so a person's own method or class may.
ODD_NAMES = [
    "$x^{2",
    "a $b$ c",
    "_hidden",
    "___",
    "two\nlines",
    "\udcff",
    "x" * 255,
    "100 %",
    "日本",
]


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
    rows = []
    for method, accuracies in values.items():
        for seed, accuracy in enumerate(accuracies):
            rows.append({"method": method, "seed": seed, "accuracy": accuracy})
    return pd.DataFrame(rows)


def simple_figure() -> tuple[plt.Figure, pd.DataFrame]:
    data = pd.DataFrame({"x": [1.0, 2.5], "y": [0.5, 1.25], "class": ["0", "1"]})
    figure, ax = plt.subplots(figsize=figures.COLUMN)
    ax.scatter(data["x"], data["y"])
    return figure, data


def save_figure(figure, data, **changes) -> None:
    options = {
        "profile": "standard",
        "notebook": "some_notebook",
        "caption": "κ falls. Dots: seeds.",
    }
    figures.save_figure(figure, "30_points", data=data, **(options | changes))


# -------------------------------------------------------------------------------------- saving


def test_a_saved_figure_has_its_data_and_where_it_comes_from(tmp_path):
    source = tmp_path / "results" / "standard" / "scores.csv"
    store.write_text(source, "a\n1\n")
    figure, data = simple_figure()
    save_figure(figure, data, claims=["VS1-1"], inputs=[source])
    folder = store.results_dir("standard") / "figures"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["30_points.csv", "30_points.json", "30_points.pdf", "30_points.png"]
    record = json.loads((folder / "30_points.json").read_text())
    assert record["inputs"] == {"results/standard/scores.csv": store.sha256(source)}
    assert record["claims"] == ["VS1-1"]
    assert record["notebook"] == "some_notebook"
    assert record["alt"] == "κ falls."
    assert record["commit"] == store.commit()
    stored = pd.read_csv(folder / "30_points.csv", dtype={"class": str})
    pd.testing.assert_frame_equal(stored, data)


def test_redrawing_gives_the_same_bytes():
    contents = []
    for _ in range(2):
        save_figure(*simple_figure())
        folder = store.results_dir("standard") / "figures"
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[1]


def test_illustrations_have_no_pdf_and_a_report_knows_its_place():
    figure, data = simple_figure()
    report = figures.Report("some_notebook", "quick")
    report.figure("30_points", figure.axes, data=data, caption="A claim.")
    report.table("30_table", data)
    written = sorted(path.name for path in store.results_dir("quick").rglob("30_*"))
    assert written == ["30_points.csv", "30_points.json", "30_points.png", "30_table.csv"]


@pytest.mark.parametrize(
    "changes", [{"caption": " "}, {"data": pd.DataFrame()}, {"profile": "../elsewhere"}]
)
def test_an_incomplete_figure_is_not_written(changes):
    figure, data = simple_figure()
    with pytest.raises(ValueError):
        save_figure(figure, **({"data": data} | changes))
    assert not store.RESULTS.exists()


def test_stored_data_are_those_of_the_same_inputs(tmp_path):
    source = tmp_path / "scores.npz"
    source.write_text("as it was")
    figure, data = simple_figure()
    save_figure(figure, data, inputs=[source])
    pd.testing.assert_frame_equal(figures.stored_data("30_points", "standard", [source]), data)
    assert figures.stored_data("30_other", "standard", [source]) is None
    assert figures.stored_ids("30_", "standard") == ["30_points"]
    source.write_text("changed")
    assert figures.stored_data("30_points", "standard", [source]) is None


def test_an_absent_figure_names_the_command_that_draws_it():
    with pytest.raises(FileNotFoundError, match="make reproduce PROFILE=standard"):
        figures.show_stored("30_absent", "standard")


def test_a_caption_splits_after_its_first_sentence():
    parts = save.split_caption("κ falls by 0.5 units. Each box shows n = 9 images. Grey: chance.")
    assert parts == ("κ falls by 0.5 units.", "Each box shows n = 9 images. Grey: chance.")
    assert save.split_caption("One claim") == ("One claim", "")


# --------------------------------------------------------------------------------------- names


def test_methods_are_drawn_apart_without_colour():
    looks = [(look.marker, look.fill, look.line) for look in style.METHODS.values()]
    assert len(set(looks)) == len(looks)


def test_names_of_data_sets():
    assert figures.dataset_label("dtd10_128") == "DTD (10 classes)"
    assert figures.dataset_label("imagenette96") == "Imagenette"
    assert figures.dataset_label("styled_fashion_mnist") == "Styled Fashion-MNIST"
    assert figures.dataset_label("cifar10_class_3") == "CIFAR-10, class 3"
    assert figures.dataset_label("my_photos") == "my photos"


def test_a_table_is_shown_with_display_names():
    table = pd.DataFrame({"method": ["vje"], "minus": ["simsiam"], "dataset": ["cifar10"]})
    shown = figures.labelled(table.assign(seeds=3))
    assert shown.values.tolist() == [["VJE", "SimSiam", "CIFAR-10", 3]]
    assert table.method[0] == "vje"


def test_methods_keep_their_order_and_unknown_ones_come_last():
    methods = ["mine", "vae", "simvae_latent", "simvae", "another"]
    assert figures.in_order(methods) == ["simvae", "simvae_latent", "vae", "another", "mine"]


def test_any_name_can_be_drawn():
    accuracy = by_seed(**{name: [1.0, 2.0, 3.0] for name in ODD_NAMES})
    log = accuracy.assign(epoch=accuracy.seed)
    kappa = pd.DataFrame(
        {"class": ODD_NAMES * 2, "kappa": np.arange(1.0, 19.0), "x": 1.0, "y": 2.0}
    )
    axes = [
        figures.dot_plot(accuracy, "accuracy"),
        figures.line_plot(log, "epoch", "accuracy"),
        figures.training_curves(log, {"accuracy": "Accuracy"})[0],
        figures.kappa_boxplot(kappa, "class"),
        figures.tsne_plot(kappa, colour_by="class"),
    ]
    for ax in axes:
        ax.figure.canvas.draw()


# -------------------------------------------------------------------------------------- charts


def test_boxes_are_the_quartiles_and_the_summary_says_so():
    data = kappas()
    boxes = figures.box_summary(data, "group").set_index("group")
    ax = figures.kappa_boxplot(data, "group")
    order = [label.get_text() for label in ax.get_yticklabels()]
    assert order == list(boxes["median"].sort_values(ascending=False).index)
    drawn = [patch.get_path().vertices for patch in ax.patches if isinstance(patch, PathPatch)]
    for name, box in zip(order, drawn, strict=True):
        values = data.loc[data["group"] == name, "kappa"]
        q1, median, q3 = np.percentile(values, [25, 50, 75])
        row = boxes.loc[name]
        assert (row["q1"], row["median"], row["q3"]) == pytest.approx((q1, median, q3))
        assert row["n"] == len(values)
        # the chart interpolates between log κ, the summary between κ
        assert (box[:, 0].min(), box[:, 0].max()) == pytest.approx((q1, q3), rel=0.01)
        reach = (q3 / q1) ** 1.5
        inside = values[(values >= q1 / reach) & (values <= q3 * reach)]
        whiskers = (row["whisker_low"], row["whisker_high"])
        assert whiskers == pytest.approx((inside.min(), inside.max()))


SCALES = {"a": 9, "b": 1, "c": 3}  # of κ, far enough for the medians to lie in this order


def test_histograms_share_bins_and_integrate_to_one():
    bins = figures.log_histogram(kappas(), "group", bins=20)
    width = np.log10(bins["bin_high"] / bins["bin_low"])
    assert np.allclose((bins["density"] * width).groupby(bins["group"]).sum(), 1)
    counts = bins.groupby("group")["count"].sum()
    assert counts.to_dict() == kappas()["group"].value_counts().to_dict()
    data = kappas().assign(kappa=lambda frame: frame["kappa"] * frame["group"].map(SCALES))
    ax = figures.kappa_histogram(figures.log_histogram(data, "group"), "group")
    assert ax.get_xscale() == "log"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["b", "c", "a"]


def test_a_roc_curve_encloses_its_auroc():
    data = kappas(3000).rename(columns={"kappa": "score", "correct": "positive"})
    data["score"] += 60 * data["positive"]
    curves = figures.roc_curves(data.assign(curve="κ"))
    expected = uncertainty.auroc(data["score"], data["positive"])
    assert curves["auroc"].unique() == pytest.approx([expected])
    area = np.trapezoid(curves["true_positive_rate"], curves["false_positive_rate"])
    assert area == pytest.approx(expected, abs=2e-3)
    assert len(curves) <= summaries.POINTS
    label = figures.roc_plot(curves).get_legend().get_texts()[0].get_text()
    assert label == f"κ {expected:.2f}"


def test_risk_coverage_ends_at_the_error_rate_and_averages_ties():
    data = pd.DataFrame({"uncertainty": [0, 1, 1, 2], "correct": [True, False, True, False]})
    curves = figures.risk_coverage_curves(data.assign(curve="κ"))
    assert curves["coverage"].tolist() == [0.25, 0.5, 0.75, 1]
    assert curves["error"].tolist() == pytest.approx([0, 0.25, 1 / 3, 0.5])
    figures.risk_coverage_plot(curves)


def test_the_reliability_diagram_has_the_bins_of_the_ece():
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.1, 1, 800)
    correct = generator.random(800) < confidence**2
    data = pd.DataFrame({"curve": "vi_simsiam", "confidence": confidence, "correct": correct})
    bins = figures.reliability_bins(data)
    expected = uncertainty.confidence_calibration_error(confidence, correct)
    assert bins["ece"].unique() == pytest.approx([expected])
    assert bins["count"].sum() == 800
    filled = bins[bins["count"] > 0]
    upper, _ = figures.reliability_diagram(bins)
    assert upper.lines[0].get_ydata() == pytest.approx(filled["accuracy"])


def test_tsne_draws_each_point_once_with_the_names_of_the_classes():
    data = kappas(300).rename(columns={"group": "class"})
    data = data.assign(x=np.arange(300.0), y=np.arange(300.0) % 7)
    for colour_by in ("kappa", "class"):
        ax = figures.tsne_plot(data, colour_by=colour_by)
        drawn = ax.collections[0].get_offsets()
        assert not np.array_equal(drawn[:, 0], data["x"])
        assert sorted(drawn[:, 0]) == sorted(data["x"])
        assert {text.get_text() for text in ax.texts} == {"a", "b", "c"}


def test_intervals_over_seeds_begin_with_three():
    data = by_seed(vi_simsiam=[60.0, 61.0, 62.0, 63.0, 64.0], simsiam=[58.0, 60.0])
    # t(0.975, 4) = 2.776445, s = sqrt(2.5), n = 5
    high = 62 + 2.7764451 * np.sqrt(2.5 / 5)
    ax = figures.dot_plot(data, "accuracy")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["VI-SimSiam", "SimSiam"]
    ends = [line.get_xdata() for line in ax.lines if len(line.get_xdata()) == 2]
    assert max(np.nanmax(end) for end in ends) == pytest.approx(high)


def test_bars_are_the_means_over_seeds():
    data = by_seed(simvae=[50.0, 52.0, 54.0], simclr=[40.0, 42.0, 44.0])
    data = pd.concat([data.assign(attribute="hair"), data.assign(attribute="hat", accuracy=10.0)])
    ax = figures.attribute_bars(data, "accuracy")
    assert [label.get_text() for label in ax.get_yticklabels()] == ["hair", "hat"]
    widths = [bar.get_width() for container in ax.containers for bar in container]
    assert sorted(widths) == [10, 10, 42, 52]


def test_a_scatter_has_every_seed_and_the_means():
    data = by_seed(simvae=[50.0, 54.0], simclr=[40.0, 44.0])
    ax = figures.method_scatter(data.assign(style=data.accuracy / 100), "accuracy", "style")
    assert [line.get_xdata().tolist() for line in ax.lines] == [[50, 54], [52], [40, 44], [42]]
    assert [text.get_text().strip() for text in ax.texts] == ["SimVAE", "SimCLR"]


def test_a_dumbbell_joins_the_published_number_and_ours():
    nan = np.nan
    data = pd.DataFrame(
        {
            "name": ["A", "B", "C"],
            "published": [1.0, 2.0, nan],
            "ours": [0.5, nan, -1.0],
            "ci_low": [0.1, nan, -2.0],
            "ci_high": [0.9, nan, 0.0],
        }
    )
    ax = figures.dumbbell_plot(data, reference=0.25)
    lines = {line.get_label(): line for line in ax.lines}
    np.testing.assert_array_equal(lines["published"].get_xdata(), data["published"])
    np.testing.assert_array_equal(lines["ours"].get_xdata(), data["ours"])
    joined, intervals = ax.collections
    np.testing.assert_array_equal(joined.get_segments()[0], [[1.0, 0], [0.5, 0]])
    np.testing.assert_array_equal(intervals.get_segments()[0], [[0.1, 0], [0.9, 0]])
    figures.dumbbell_plot(data.assign(published=nan))


def test_lines_are_the_means_over_seeds():
    data = by_seed(simsiam=[1.0, 2.0, 3.0], dino=[4.0, 5.0, 6.0])
    data = pd.concat([data.assign(severity=step, accuracy=data.accuracy + step) for step in (1, 2)])
    ax = figures.line_plot(data, "severity", "accuracy", reference=5)
    assert [list(line.get_ydata()) for line in ax.lines] == [[3, 4], [6, 7], [5, 5]]
    assert {text.get_text() for text in ax.texts} == {"SimSiam", "DINO"}
    assert figures.line_plot(data, "severity", "accuracy", log="xy").get_xscale() == "log"


def test_training_curves_draw_every_seed_and_leave_out_what_was_not_logged():
    log = by_seed(simsiam=[1.0, 2.0])
    log = pd.concat([log.assign(epoch=epoch, loss=log.accuracy / epoch) for epoch in (1, 2)])
    log["kappa"] = np.where(log.epoch == 1, np.nan, 7.0)
    left, right = figures.training_curves(log, {"loss": "Loss", "kappa": "κ"}, log_scale=["kappa"])
    assert [line.get_ydata().tolist() for line in left.lines] == [[1, 0.5], [2, 1]]
    assert [line.get_ydata().tolist() for line in right.lines] == [[7], [7]]
    assert right.get_yscale() == "log"


def test_an_image_grid_shows_the_pixels():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8, 3), dtype=np.uint8)
    grid = figures.image_grid(images, rows=["Input", "Output"], notes=[["κ 1"] * 3] * 2)
    shown = [np.asarray(ax.images[0].get_array()) for ax in grid.axes]
    np.testing.assert_array_equal(shown, images.reshape(6, 8, 8, 3))
    assert grid.axes[0].images[0].get_interpolation() == "nearest"
    with pytest.raises(ValueError, match="uint8"):
        figures.image_grid(images / 255)


def test_images_of_high_and_low_kappa():
    images = np.arange(20, dtype=np.uint8)[:, None, None] * np.ones((20, 4, 4), np.uint8)
    kappa = np.random.default_rng(0).permutation(20).astype(float)
    grid = figures.images_by_kappa(images, kappa, columns=3)
    shown = [ax.images[0].get_array()[0, 0] for ax in grid.axes]
    assert kappa[shown].tolist() == [19, 18, 17, 0, 1, 2]


def test_reconstructions_are_sorted_by_their_error():
    images = np.arange(9, dtype=np.uint8)[:, None, None] * np.ones((9, 4, 4), np.uint8)
    drawn = {"vae": images[3:6], "simvae": images[6:]}
    grid = figures.reconstruction_grid(images[:3], drawn, {"vae": 0.5, "simvae": 0.25})
    names = [ax.get_ylabel() for ax in grid.axes[::3]]
    assert names == ["Input", "SimVAE\n0.2500", "VAE\n0.5000"]
    assert grid.axes[3].images[0].get_array()[0, 0] == 6


def test_labels_move_apart_and_keep_their_order():
    apart = spread(np.array([0.5, 0.1, 0.51, 0.52, 0.9]), 0.1)
    assert np.diff(np.sort(apart)).min() >= 0.1 - 1e-12
    assert np.argsort(apart).tolist() == [1, 0, 2, 3, 4]
    assert apart[[1, 4]].tolist() == pytest.approx([0.1, 0.9])


def test_kappa_as_text():
    texts = [figures.kappa_text(value) for value in (11104.2, 852.63, 2.6382)]
    assert texts == ["11,104", "853", "2.64"]
