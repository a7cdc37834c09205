"""Figures: what save_figure refuses and writes, that redrawing gives the same bytes, legible and distinct looks, charts that draw the data."""

import io
import itertools
import json
import re
import xml.etree.ElementTree as ElementTree

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from fontTools import subset
from matplotlib.colors import to_rgb
from matplotlib.patches import PathPatch
from PIL import Image

from lib.evaluation import uncertainty
from lib.figures import charts as plotting
from lib.runs import store as artifacts

CAPTION = (
    "Concentration falls with blur. "
    + "Each box shows the quartiles of one severity level here. " * 4
)
ALT = "Five boxes stand side by side. Their medians fall from left to right."


@pytest.fixture(autouse=True)
def style(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "RESULTS", tmp_path / "results")
    with plt.rc_context():
        plotting.use_style()
        yield
    plt.close("all")


def draw(points: int = 30, rasterized: bool = False):
    figure, ax = plt.subplots(figsize=plotting.COLUMN)
    data = pd.DataFrame(np.random.default_rng(0).normal(size=(points, 2)), columns=["x", "y"])
    ax.scatter(data["x"], data["y"], rasterized=rasterized)
    ax.set(xlabel="κ", title="Title")
    return figure, data


def save(figure, data, id="30_points", **changes):
    arguments = {
        "caption": CAPTION,
        "alt": ALT,
        "data": data,
        "profile": "quick",
        "notebook": "30_kappa_distributions",
        "claims": ["VS1-1"],
    }
    plotting.save_figure(figure, id, **(arguments | changes))


def kappas(n: int = 500) -> pd.DataFrame:
    generator = np.random.default_rng(1)
    group = np.array(["a", "b", "c"])[generator.integers(0, 3, n)]
    return pd.DataFrame(
        {
            "group": group,
            "kappa": np.exp(generator.normal(5, 0.6, n)),
            "correct": generator.random(n) < 0.7,
        }
    )


# ---------------------------------------------------------------------------------------------------------------- saving


def test_five_files_with_provenance(tmp_path):
    source = tmp_path / "results" / "quick" / "metrics" / "30.csv"
    artifacts.write_text(source, "a\n1\n")
    figure, data = draw()
    save(figure, data, inputs=[source])
    folder = tmp_path / "results" / "quick" / "figures"
    assert sorted(path.name for path in folder.iterdir()) == [
        f"30_points.{kind}" for kind in ("csv", "json", "pdf", "png", "svg")
    ]
    record = json.loads((folder / "30_points.json").read_text())
    assert record["caption"].endswith(
        "Drawn by 30_kappa_distributions, data in 30_points.csv."
    ) and record["caption"].startswith("Concentration")
    assert (
        record["alt"] == ALT
        and record["claims"] == ["VS1-1"]
        and record["profile"] == "quick"
        and record["id"] == "30_points"
    )
    assert (
        record["inputs"] == {"results/quick/metrics/30.csv": artifacts.sha256(source)}
        and record["commit"] == artifacts.commit()
    )
    pd.testing.assert_frame_equal(pd.read_csv(folder / "30_points.csv"), data, rtol=5e-5)
    save(*draw(), profile="standard")
    sizes = [
        Image.open(path / "figures" / "30_points.png").size
        for path in (folder.parent, folder.parents[1] / "standard")
    ]
    assert sizes == [
        (487, 300),
        (975, 600),
    ]  # 3.25 x 2.0 in at 150 dpi, for the screen, and at 300: exactly the size asked for


def test_stored_pictures_are_kept_with_the_numbers_of_today(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no stored picture of 30_points"):
        save(None, draw()[1])
    figure, data = draw()
    monkeypatch.setattr(artifacts, "commit", lambda: "0123456789")
    save(figure, data)
    folder = tmp_path / "results" / "quick" / "figures"
    before = {kind: (folder / f"30_points.{kind}").read_bytes() for kind in plotting.CANVASES}
    for today in ("1111111111", "2222222222"):
        monkeypatch.setattr(artifacts, "commit", lambda now=today: now)
        save(None, data + 1, caption=CAPTION.replace("Concentration", "Today"))
        record = json.loads((folder / "30_points.json").read_text())
        assert (
            record["caption"].startswith("Today")
            and record["commit"] == today
            and record["pictures_of"] == "0123456789"
        )
        assert (
            "The pictures are those of commit 0123456789, older than the numbers. Drawn by"
            in record["caption"]
        )
        pd.testing.assert_frame_equal(pd.read_csv(folder / "30_points.csv"), data + 1, rtol=5e-5)
        assert {
            kind: (folder / f"30_points.{kind}").read_bytes() for kind in plotting.CANVASES
        } == before
    save(*draw())
    assert "pictures_of" not in json.loads((folder / "30_points.json").read_text())


def test_a_long_page_is_drawn_coarser():
    figure, _ = plt.subplots(figsize=(2, 20))
    picture = Image.open(io.BytesIO(plotting._render(figure, "png")))
    assert (
        picture.size == (400, plotting.MOST_PIXELS)
        and picture.info["dpi"] == pytest.approx((200, 200), abs=1)
        and figure.dpi != 200
    )


def test_a_slim_svg_draws_what_matplotlib_wrote():
    plotting.use_style()
    figure, axes = plt.subplots(1, 2)
    axes[0].plot([0, 1 / 3, 1], [0.1, 0.7, 0.2], "o--", label="a line")
    axes[0].fill_between([0, 1], 0, 1, hatch="//", alpha=0.3)
    axes[0].set_title("turned", rotation=30)
    axes[0].legend()
    axes[1].imshow(np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8))
    axes[1].scatter(np.arange(8), np.arange(8), c=np.arange(8), s=np.arange(1, 9))
    whole = io.BytesIO()
    figure.savefig(whole, format="svg")
    slim = plotting._slim(whole.getvalue())
    assert len(slim) < 0.75 * len(whole.getvalue())
    before, after = (ElementTree.fromstring(svg) for svg in (whole.getvalue(), slim))
    before.remove(before.find(f"{plotting.SVG}metadata"))
    before, after = list(before.iter()), list(after.iter())
    assert [element.tag for element in before] == [element.tag for element in after]
    rules = dict(re.findall(r"\.(s\d+)\{([^}]*)\}", slim.decode()))
    named = {element.get("id"): number for number, element in enumerate(after) if element.get("id")}
    origin = {
        element.get("id"): number for number, element in enumerate(before) if element.get("id")
    }

    def target(value, places):  # what a link leads to is the same element
        return re.sub(
            r"(?<=#)[\w.-]+(?=\)|$)",
            lambda link: str(places[link[0]]) if link[0] in places else link[0],
            value,
        )

    for old, new in zip(before, after, strict=True):
        assert target(rules.get(new.get("class"), ""), named) == target(
            old.get("style", ""), origin
        )
        for key in {*old.attrib, *new.attrib} - {"id", "style", "class"}:
            words = [
                re.findall(r"[A-Za-z]|-?[\d.]+", " ".join(svg.get(key).split()))
                for svg in (old, new)
            ]
            if key.endswith("href") or key == "clip-path":
                assert target(old.get(key), origin).split() == target(new.get(key), named).split()
            else:
                assert len(words[0]) == len(words[1])
                assert all(
                    a == b or abs(float(a) - float(b)) <= 0.0005001
                    for a, b in zip(*words, strict=True)
                )
    plt.close(figure)


def test_saving_leaves_a_figure_without_layout_engine_as_it_is(recwarn):
    figure = plotting.image_grid(np.zeros((1, 2, 8, 8), np.uint8))
    before = [ax.get_position().bounds for ax in figure.axes]
    save(figure, pd.DataFrame({"index": [0, 1]}))
    assert [ax.get_position().bounds for ax in figure.axes] == before
    assert not [warning for warning in recwarn if "layoutgrids" in str(warning.message)]


def test_redrawing_gives_the_same_bytes(tmp_path):
    contents = []
    for _ in range(2):
        figure, data = draw()
        save(figure, data)
        contents.append(
            {
                path.name: path.read_bytes()
                for path in (tmp_path / "results" / "quick" / "figures").iterdir()
            }
        )
    assert contents[0] == contents[1]
    assert (
        b"CreationDate" not in contents[0]["30_points.pdf"]
        and b"dc:date" not in contents[0]["30_points.svg"]
    )


def test_a_chart_is_stored_with_a_palette_and_a_photograph_as_it_is():
    figure, _ = draw()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    full, drawn = Image.open(buffer), plotting._render(figure, "png")
    compact = Image.open(io.BytesIO(drawn))
    before, after = (np.asarray(image.convert("RGB"), int) for image in (full, compact))
    change = np.abs(before - after).max(axis=2)
    assert (
        len(drawn) < 0.4 * len(buffer.getvalue())
        and np.quantile(change, 0.97) <= 5
        and change.max() <= 48
    )
    assert compact.mode == "P" and compact.info["dpi"] == pytest.approx(full.info["dpi"], abs=1)
    assert Image.open(io.BytesIO(plotting._render(figure, "png", dpi=120))).info[
        "dpi"
    ] == pytest.approx((120, 120), abs=1)
    assert len(compact.getcolors()) == 16
    ramp = (
        np.linspace([0, 90, 200], [250, 190, 20], 200).astype(np.uint8)[:, None].repeat(80, axis=1)
    )  # a colour bar: sixteen show as steps
    stored = Image.open(io.BytesIO(plotting._png(Image.fromarray(ramp), 300)))
    assert (
        len(stored.getcolors()) > 16
        and np.abs(np.asarray(stored.convert("RGB"), int) - ramp).max() <= 15
    )
    grey = np.tile(np.arange(256, dtype=np.uint8)[:, None, None], (1, 80, 3))
    noise = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    for picture, mode in ((grey, "L"), (noise, "RGB")):  # greys need no palette
        stored = Image.open(io.BytesIO(plotting._png(Image.fromarray(picture), 300)))
        assert stored.mode == mode
        assert np.abs(np.asarray(stored.convert("RGB"), int) - picture).max() <= (
            0 if mode == "RGB" else 15
        )


def test_a_notebook_holds_charts_exactly_and_photographs_as_jpeg():
    figure, ax = plt.subplots()
    generator = np.random.default_rng(0)
    ax.imshow(
        np.kron(generator.random((12, 12, 3)), np.ones((40, 40, 1))) * 0.8
        + 0.2 * generator.random((480, 480, 3))
    )
    photographs, chart = plotting.picture(figure, ALT), plotting.picture(draw()[0], ALT)
    assert (
        chart.data[:4] == b"\x89PNG"
        and photographs.data[:3] == b"\xff\xd8\xff"
        and photographs._repr_mimebundle_()[1]["image/jpeg"]["alt"] == ALT
    )
    png = plotting._render(figure, "png", dpi=plotting.NOTEBOOK_DPI)
    before, after = (
        np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), int)
        for data in (png, photographs.data)
    )
    assert len(photographs.data) <= 0.8 * len(png) and np.abs(before - after).mean() < 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"caption": ""}, "0 words"),
        ({"caption": "Too short."}, "words"),
        ({"caption": "word " * 130}, "words"),
        ({"alt": ""}, "0 sentences"),
        ({"alt": "One sentence only."}, "1 sentences"),
        ({"alt": "One. Two. Three."}, "3 sentences"),
        ({"data": pd.DataFrame()}, "empty"),
        ({"data": pd.DataFrame({"x": [np.nan, np.nan]})}, "NaN"),
        ({"data": pd.DataFrame({"name": ["a", "b"], "x": [np.nan, np.nan]})}, "NaN"),
        ({"id": "31_points"}, "number"),
        ({"id": "points"}, "number"),
    ],
)
def test_refuses_incomplete_figures_and_writes_nothing(tmp_path, changes, message):
    figure, data = draw()
    with pytest.raises(ValueError, match=message):
        save(figure, **({"data": data} | changes))
    assert not (tmp_path / "results").exists()


def test_refuses_small_text_and_text_outside_the_page():
    figure, data = draw()
    figure.axes[0].set_title("tiny", fontsize=5)
    with pytest.raises(ValueError, match="'tiny'.* 5 pt"):
        save(figure, data)
    figure, data = draw()
    figure.text(0.9, 0.5, "leaves the page on the right")
    with pytest.raises(ValueError, match="outside its page"):
        save(figure, data)


def test_a_label_just_outside_gets_room(monkeypatch):
    """Constrained layout may end with a tick's label outside, as ticks come and go with the size of the axes: the axes then get less of the page."""
    measured, calls = plotting._outside, []

    def once_outside(figure, page):
        calls.append(figure.get_layout_engine())
        return [0.0, 0.0, 0.5, 0.0] if len(calls) == 1 else measured(figure, page)

    monkeypatch.setattr(plotting, "_outside", once_outside)
    figure, data = draw()
    figure.set_layout_engine("constrained")
    figure.draw_without_rendering()
    width, before = figure.get_size_inches()[0], figure.axes[0].get_tightbbox().x1 / figure.dpi
    save(figure, data)
    assert len(calls) == 3 and figure.axes[0].get_tightbbox().x1 / figure.dpi == pytest.approx(
        before - 0.5, abs=0.05 * width
    )


def test_size_limits(monkeypatch):
    figure, data = draw(30000)
    with pytest.raises(ValueError, match=r"30_points.(pdf|svg) has .* rasterise"):
        save(figure, data)
    figure, data = draw(30000, rasterized=True)
    save(figure, data)
    monkeypatch.setitem(plotting.MAX_BYTES, "png", 1000)
    figure, data = draw()
    with pytest.raises(ValueError, match="30_points.png has"):
        save(figure, data)


def test_show_committed(capsys):
    figure, data = draw()
    save(figure, data)
    picture = plotting.show_committed("30_points", "quick")
    assert picture.data[:4] == b"\x89PNG" and picture.alt == ALT
    whole, shown = (
        Image.open(artifacts.results_dir("quick") / "figures" / "30_points.png"),
        Image.open(io.BytesIO(picture.data)),
    )
    scale = plotting.NOTEBOOK_DPI / whole.info["dpi"][0]
    assert shown.size == pytest.approx(
        [pixels * scale for pixels in whole.size], abs=1
    )  # as large as the picture of a figure just drawn
    assert "make reproduce PROFILE=quick" in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="make reproduce PROFILE=quick"):
        plotting.show_committed("30_absent", "quick")


def test_caption_splits_into_claim_and_rest():
    assert plotting.split_caption("κ falls by 0.5 units. Each box shows n = 9 images.") == (
        "κ falls by 0.5 units.",
        "Each box shows n = 9 images.",
    )
    assert plotting.split_caption("One claim") == ("One claim", "")


# ---------------------------------------------------------------------------------------------------------------- looks


def contrast(colour: str, background: str = "white") -> float:
    """WCAG 2.2 contrast ratio."""

    def luminance(name):
        channels = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(name)
        ]
        return np.dot([0.2126, 0.7152, 0.0722], channels)

    light, dark = sorted([luminance(colour), luminance(background)], reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_function_on_known_values():
    assert contrast("black") == pytest.approx(21) and contrast("#777777") == pytest.approx(
        4.48, abs=0.01
    )


@pytest.mark.parametrize("name", plotting.METHODS)
def test_method_colours_are_legible(name):
    style = plotting.method_style(name)
    assert contrast(style.colour) >= 3 and contrast(style.text_colour) >= 4.5


def test_panels_of_a_set_are_as_high_as_it_has_methods():
    rows = pd.DataFrame(
        {"dataset": ["b", "b", "b", "a"], "method": ["vae", "simvae", "vae", "vae"]}
    )
    figure, axes = plotting.panels_by_set(rows, 3)
    assert axes.shape == (2, 3) and list(
        axes[0, 0].get_gridspec().get_height_ratios()
    ) == pytest.approx([0.75 + 2 * 0.18, 0.75 + 0.18])
    assert figure.get_figheight() == pytest.approx(2 * 0.75 + 3 * 0.18)


def test_methods_are_told_apart_without_colour():
    for (_, a), (_, b) in itertools.combinations(plotting.METHODS.items(), 2):
        assert (a.marker, a.fill) != (b.marker, b.fill), f"{a.label} and {b.label} share a marker"
        assert a.line != b.line, f"{a.label} and {b.label} share a line"
        assert a.label != b.label


def test_unknown_method_is_an_error():
    with pytest.raises(ValueError, match="'vi_simsian'.*vi_simsiam"):
        plotting.method_style("vi_simsian")


def test_group_lines_are_distinct_and_legible():
    looks = list(plotting._looks(list("abcdefgh"), plotting.BLUE).values())
    assert len({str(line) for _, _, line, _ in looks}) == 8 and all(
        contrast(colour) >= 3 for _, colour, _, _ in looks
    )


def test_style_file():
    size = matplotlib.font_manager.FontProperties
    for key in (
        "font.size",
        "axes.titlesize",
        "axes.labelsize",
        "xtick.labelsize",
        "ytick.labelsize",
        "legend.fontsize",
        "figure.titlesize",
    ):
        assert size(size=plt.rcParams[key]).get_size_in_points() >= plotting.SMALLEST_TEXT, key
    assert (
        plt.rcParams["font.family"] == ["DejaVu Sans"]
        and plt.rcParams["mathtext.fontset"] == "dejavusans"
    )
    assert (
        plt.rcParams["text.usetex"] is False
        and plt.rcParams["pdf.fonttype"] == 42
        and plt.rcParams["svg.fonttype"] == "path"
    )
    assert (
        plt.rcParams["savefig.bbox"] is None
        and plt.rcParams["savefig.dpi"] == 300
        and plt.rcParams["svg.hashsalt"]
    )
    assert (
        contrast(plt.rcParams["text.color"]) >= 12
        and contrast(plt.rcParams["axes.edgecolor"]) >= 12
    )
    assert "DejaVuSans" in matplotlib.font_manager.findfont(
        "DejaVu Sans", fallback_to_default=False
    )


# ---------------------------------------------------------------------------------------------------------------- charts


@pytest.mark.parametrize("correct", [None, "correct"])
def test_boxes_are_the_quartiles(correct):
    data = kappas()
    _, ax = plt.subplots()
    drawn = plotting.kappa_boxplots(ax, data, "group", correct=correct)
    boxes = [patch.get_path().vertices for patch in ax.patches if isinstance(patch, PathPatch)]
    assert len(boxes) == len(drawn) == (6 if correct else 3) and ax.get_yscale() == "log"
    for box, row in zip(boxes, drawn.to_dict("records"), strict=True):
        chosen = data["group"] == row["group"]
        if correct:
            chosen &= data["correct"] == row["correct"]
        values = data.loc[chosen, "kappa"]
        q1, median, q3 = np.percentile(values, [25, 50, 75])
        assert (box[:, 1].min(), box[:, 1].max()) == pytest.approx((q1, q3))
        assert (row["q1"], row["median"], row["q3"], row["n"]) == pytest.approx(
            (q1, median, q3, len(values))
        )
        reach = 1.5 * (np.log(q3) - np.log(q1))
        inside = values[
            (np.log(values) >= np.log(q1) - reach) & (np.log(values) <= np.log(q3) + reach)
        ]
        assert (row["whisker_low"], row["whisker_high"]) == pytest.approx(
            (inside.min(), inside.max())
        )
        assert row["outliers_drawn"] == (len(values) - len(inside) if len(values) <= 200 else 0)
    if not correct:
        assert drawn["median"].is_monotonic_increasing
        assert {f"{n:,}" for n in drawn["n"]} <= {text.get_text() for text in ax.texts}


def test_large_groups_show_no_outliers():
    data = pd.DataFrame({"group": "a", "kappa": np.r_[np.full(300, 10.0), 1000.0]})
    assert plotting.kappa_boxplots(plt.subplots()[1], data, "group")["outliers_drawn"].tolist() == [
        0
    ]
    assert plotting.kappa_boxplots(plt.subplots()[1], data.iloc[200:], "group")[
        "outliers_drawn"
    ].tolist() == [1]


def test_histograms_share_bins_and_integrate_to_one():
    _, ax = plt.subplots()
    drawn = plotting.log_histogram(ax, kappas(), "group", bins=20)
    width = np.log10(drawn["bin_high"] / drawn["bin_low"])
    assert np.allclose((drawn["density"] * width).groupby(drawn["group"]).sum(), 1)
    assert (
        drawn.groupby("group")["count"].sum().to_dict()
        == kappas()["group"].value_counts().to_dict()
    )
    assert (drawn.groupby("bin_low").size() == 3).all() and ax.get_xscale() == "log"


def roc_data(n: int = 3000):
    data = (
        kappas(n).rename(columns={"kappa": "score", "correct": "positive"}).assign(curve="linear")
    )
    data["score"] += 60 * data["positive"]
    area = uncertainty.auroc(data["score"], data["positive"])
    return data, pd.DataFrame(
        [{"curve": "linear", "auroc": area, "ci_low": area - 0.01, "ci_high": area + 0.01}]
    )


def test_roc_encloses_its_auroc():
    data, summary = roc_data()
    figure, ax = plt.subplots(figsize=plotting.SQUARE)
    drawn = plotting.roc_plot(ax, data, summary, positive="correct prediction")
    assert np.trapezoid(drawn["true_positive_rate"], drawn["false_positive_rate"]) == pytest.approx(
        summary.loc[0, "auroc"], abs=2e-3
    )
    assert (
        len(drawn) <= 1000
        and ax.get_aspect() == 1
        and "correct prediction" in ax.get_title(loc="left")
    )
    assert f"{summary.loc[0, 'auroc']:.3f} [" in ax.get_legend().get_texts()[0].get_text()
    with pytest.raises(ValueError, match="one row for each"):
        plotting.roc_plot(ax, data, summary.assign(curve="other"), positive="x")
    with pytest.raises(ValueError):
        plotting.roc_plot(ax, data[data["positive"]], summary, positive="x")


def test_risk_coverage_ends_at_the_error_rate_and_averages_ties():
    data = pd.DataFrame(
        {"curve": "κ", "uncertainty": [0, 1, 1, 2], "correct": [True, False, True, False]}
    )
    drawn = plotting.risk_coverage_plot(plt.subplots()[1], data)
    assert drawn["error"].tolist() == pytest.approx([0, 0.25, 1 / 3, 0.5]) and drawn[
        "coverage"
    ].tolist() == [0.25, 0.5, 0.75, 1]


def test_stored_data_are_those_of_the_same_inputs(tmp_path):
    source, data = tmp_path / "scores.npz", pd.DataFrame({"x": [1.0, 2.5], "class": ["0", "1"]})
    source.write_text("as it was")
    figure, ax = plt.subplots()
    ax.plot(data["x"])
    save(figure, data, inputs=[source])
    pd.testing.assert_frame_equal(
        plotting.stored_data("30_points", "quick", [source]), data
    )  # digits that name a class stay text
    assert (
        plotting.stored_data("30_other", "quick", [source]) is None
        and plotting.stored_data("30_points", "quick", []) is None
    )
    source.write_text("made anew")
    assert plotting.stored_data("30_points", "quick", [source]) is None
    source.unlink()
    assert plotting.stored_data("30_points", "quick", [source]) is None


def test_tsne_draws_each_point_once_in_a_seeded_order():
    data = (
        kappas(300)
        .assign(x=np.arange(300.0), y=np.arange(300.0) % 7)
        .rename(columns={"group": "class"})
    )
    first, second = (plotting.tsne_plot(plt.subplots()[1], data) for _ in range(2))
    pd.testing.assert_frame_equal(first, second)
    assert not first["x"].equals(data["x"])
    assert sorted(first["x"]) == sorted(data["x"])
    _, ax = plt.subplots()
    plotting.tsne_plot(ax, data)
    assert (
        ax.collections[0].get_rasterized()
        and not ax.axison
        and {text.get_text() for text in ax.texts} == {"a", "b", "c"}
    )


def test_tsne_by_class_gives_each_class_its_colour():
    data = (
        kappas(300)
        .assign(x=np.arange(300.0), y=np.arange(300.0) % 7)
        .rename(columns={"group": "class"})
    )
    _, ax = plt.subplots()
    drawn = plotting.tsne_by_class(ax, data.drop(columns="kappa"))
    colours = pd.Series([tuple(colour) for colour in ax.collections[0].get_facecolors()])
    assert colours.groupby(drawn["class"]).nunique().eq(1).all() and colours.nunique() == 3
    assert sorted(drawn["x"]) == sorted(data["x"]) and {text.get_text() for text in ax.texts} == {
        "a",
        "b",
        "c",
    }
    handles, names = ax.get_legend_handles_labels()
    assert names == ["a", "b", "c"] and {handle.get_color() for handle in handles} == {
        colour[:3] for colour in colours
    }


def test_image_grid_shows_the_pixels_at_half_an_inch():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 8, 8, 3), dtype=np.uint8)
    figure = plotting.image_grid(images, rows=["Input", "Output"], notes=[["κ 1"] * 3] * 2)
    shown = [ax.images[0].get_array() for ax in figure.axes]
    assert all(
        np.array_equal(np.asarray(a), b)
        for a, b in zip(shown, images.reshape(6, 8, 8, 3), strict=True)
    )
    size = figure.axes[0].get_position().size * figure.get_size_inches()
    assert (
        size == pytest.approx([0.5, 0.5])
        and figure.axes[0].images[0].get_interpolation() == "nearest"
    )
    grey = [
        plotting.image_grid(some).axes[0].images[0].get_array()
        for some in (images[..., :1], images[..., 0])
    ]
    assert all(np.array_equal(np.asarray(one), images[0, 0, :, :, 0]) for one in grey)
    with pytest.raises(ValueError, match="uint8"):
        plotting.image_grid(images / 255)
    with pytest.raises(ValueError, match="2 columns for 3"):
        plotting.image_grid(images, columns=["a", "b"])
    with pytest.raises(ValueError, match="wide"):
        plotting.image_grid(np.zeros((1, 14, 8, 8), np.uint8))


def test_intervals_only_from_five_seeds():
    values = {"vi_simsiam": [60.0, 61.0, 62.0, 63.0, 64.0], "simsiam": [58.0, 59.0, 60.0]}
    data = pd.DataFrame(
        [
            {"method": m, "seed": s, "accuracy": v}
            for m, vs in values.items()
            for s, v in enumerate(vs)
        ]
    )
    drawn = plotting.dot_interval_plot(
        plt.subplots()[1], data, value="accuracy", label="Accuracy (%)"
    ).set_index("method")
    assert drawn.loc["simsiam", "ci_low"].isna().all() and len(drawn) == 8
    # t(0.975, 4) = 2.776445, s = sqrt(2.5), n = 5
    assert drawn.loc["vi_simsiam", "ci_high"].iloc[0] == pytest.approx(
        62 + 2.7764451 * np.sqrt(2.5 / 5)
    )
    with pytest.raises(ValueError, match="several rows for one seed"):
        plotting.dot_interval_plot(
            plt.subplots()[1], pd.concat([data, data]), value="accuracy", label="Accuracy (%)"
        )


def test_dots_of_the_scores_of_one_method():
    data = pd.DataFrame(
        {
            "score": ["κ", "κ", "feature norm", "feature norm"],
            "seed": [0, 1, 0, 1],
            "auroc": [0.7, 0.6, 0.5, 0.4],
        }
    )
    ax = plt.subplots()[1]
    drawn = plotting.dot_interval_plot(
        ax, data, value="auroc", label="AUROC", order=["κ", "feature norm"], group="score"
    )
    assert [text.get_text() for text in ax.get_yticklabels()] == ["κ", "feature norm"]
    assert list(drawn["score"]) == list(data["score"]) and drawn["mean"].tolist() == pytest.approx(
        [0.65, 0.65, 0.45, 0.45]
    )
    faces = [line.get_markerfacecolor() for line in ax.lines if line.get_marker() == "o"]
    assert faces == [plotting.BLUE, "white"]
    with pytest.raises(ValueError, match="no style for method"):
        plotting.dot_interval_plot(
            ax, data.rename(columns={"score": "method"}), value="auroc", label="AUROC"
        )
    drawn = plotting.dot_interval_plot(
        plt.subplots()[1],
        data.assign(auroc_low=0.3, auroc_high=0.8),
        value="auroc",
        label="AUROC",
        group="score",
    )
    lines = [
        path.vertices.tolist()
        for collection in plt.gca().collections
        for path in collection.get_paths()
    ]
    assert (
        lines == [[[0.3, place], [0.8, place]] for place in (-0.09, 0.09, 0.91, 1.09)]
        and drawn.auroc_high.tolist() == [0.8] * 4
    )


def test_forest_puts_published_and_ours_in_one_row():
    nan = np.nan
    data = pd.DataFrame(
        {
            "name": ["A", "B", "none", "C"],
            "published": [1.0, 2.0, nan, nan],
            "ours": [0.5, nan, nan, -1.0],
            "ci_low": [0.1, nan, nan, -2.0],
            "ci_high": [0.9, nan, nan, 0.0],
        }
    )
    ax = plt.subplots()[1]
    drawn = plotting.forest_plot(ax, data, label="points", reference=0.25)
    assert (
        drawn["name"].tolist()
        == ["A", "B", "C"]
        == [text.get_text() for text in ax.get_yticklabels()]
    )
    ours, published = ax.lines[1], ax.lines[2]
    assert ax.lines[0].get_xdata()[0] == 0.25 and published.get_markerfacecolor() == "none"
    np.testing.assert_array_equal(ours.get_xdata(), [0.5, nan, -1.0])
    np.testing.assert_array_equal(published.get_xdata(), [1.0, 2.0, nan])
    np.testing.assert_array_equal(ax.collections[0].get_segments()[0], [[0.1, 0], [0.9, 0]])
    with pytest.raises(ValueError, match="no number to draw"):
        plotting.forest_plot(ax, data.iloc[2:3], label="points")
    ax = plt.subplots()[1]
    plotting.forest_plot(ax, data, label="points", style=plotting.method_style("dino"))
    assert (
        ax.lines[1].get_marker() == plotting.METHODS["dino"].marker
        and ax.lines[1].get_markerfacecolor() == "white"
    )
    ax = plt.subplots()[1]
    plotting.forest_plot(
        ax,
        data.assign(claimed=["above", "at_most", nan, nan], bound=[0.3, 2.5, nan, nan]),
        label="points",
    )
    pointers = {line.get_marker(): line for line in ax.lines[3:]}
    assert (
        set(pointers) == {">", "<"}
        and sum(not line.get_label().startswith("_") for line in pointers.values()) == 1
    )
    assert (pointers[">"].get_xdata(), pointers["<"].get_xdata()) == ([0.3], [2.5]) and pointers[
        "<"
    ].get_ydata() == [1.2]
    ax = plt.subplots()[1]
    plotting.forest_plot(
        ax,
        data.assign(claimed=["within", "above", nan, nan], bound=[0.25, 1.5, nan, nan]),
        label="points",
    )
    right, left = ax.lines[3:]  # published 1.0: the level lies between them
    assert (
        (right.get_marker(), left.get_marker()) == (">", "<")
        and sorted(right.get_xdata()) == [0.75, 1.5]
        and left.get_xdata() == [1.25]
    )
    ax = plt.subplots()[1]
    plotting.forest_plot(ax, data.assign(seeds=[3, nan, nan, 1]), label="points")
    wide, thin = ax.collections
    assert thin.get_linewidth()[0] < wide.get_linewidth()[0] and [
        segment.tolist() for segment in thin.get_segments()
    ] == [[[-2, 2], [0, 2]]]


def test_reliability_uses_the_bins_of_the_ece():
    generator = np.random.default_rng(0)
    confidence = generator.uniform(0.1, 1, 800)
    data = pd.DataFrame(
        {
            "curve": "vi_simsiam",
            "confidence": confidence,
            "correct": generator.random(800) < confidence**2,
        }
    )
    _, axes = plt.subplots(2, 1)
    drawn = plotting.reliability_plot(axes, data)
    expected = uncertainty.confidence_calibration_error(data["confidence"], data["correct"])
    assert (
        drawn["ece"].iloc[0] == pytest.approx(expected)
        and drawn["count"].sum() == 800
        and len(drawn) == 15
    )
    assert f"{expected:.3f}, 15 bins" in axes[1].get_legend().get_texts()[0].get_text()


def test_training_curves_draw_the_mean_of_the_seeds():
    log = pd.DataFrame(
        [
            {"method": "simsiam", "seed": s, "epoch": e, "loss": -e - s}
            for s in range(3)
            for e in range(4)
        ]
    )
    _, ax = plt.subplots()
    drawn = plotting.training_curves(ax, log, y="loss", label="Loss")
    assert drawn.groupby("epoch")["mean"].first().tolist() == [-1, -2, -3, -4]
    assert (
        ax.lines[-1].get_ydata().tolist() == [-1, -2, -3, -4]
        and ax.get_title(loc="left") == "SimSiam"
    )
    plotting.training_curves(
        ax, pd.concat([log, log.assign(method="dino")]), y="loss", label="Loss"
    )
    assert {text.get_text() for text in ax.texts} == {"SimSiam", "DINO"}
    _, ax = plt.subplots()
    drawn = plotting.training_curves(
        ax,
        log.assign(low=log.loss - 2 * log.seed, high=log.loss + 2),
        y="loss",
        label="Loss",
        band=("low", "high"),
    )
    assert {"low", "high"} <= set(drawn)
    ends = ax.collections[-1].get_paths()[0].vertices
    assert (
        ends[:, 1].min() == -3 - 1 - 2 and ends[:, 1].max() == -1 + 2
    )  # means over the seeds 0, 1, 2


def test_the_mean_of_seeds_that_logged_at_other_steps_does_not_jump_between_them():
    """Two parallel lines, one a point above: halfway between them wherever both are there."""
    steps = {0: [1, 3, 6, 9], 1: [2, 4, 6, 8]}
    log = pd.DataFrame(
        [
            {"method": "simsiam", "seed": s, "epoch": e, "loss": 2.0 * e + s}
            for s, those in steps.items()
            for e in those
        ]
    )
    _, ax = plt.subplots()
    mean = (
        plotting.training_curves(ax, log, y="loss", label="Loss").groupby("epoch")["mean"].first()
    )
    assert mean.loc[2:8].tolist() == pytest.approx(
        [2 * e + 0.5 for e in (2, 3, 4, 6, 8)]
    ) and mean.loc[[1, 9]].tolist() == [2, 18]


def test_line_chart_draws_each_group_in_order_of_x():
    data = pd.DataFrame(
        {"step": [2, 1, 1, 2], "value": [4.0, 3.0, 10.0, 20.0], "run": ["a", "a", "b", "b"]}
    )
    _, ax = plt.subplots(figsize=plotting.COLUMN)
    looks = {"b": (plotting.BLACK, "--", "o"), "a": (plotting.GREY, "-", "s")}
    plotting.line_chart(
        ax, data, looks, x="step", y="value", group="run", label="Step", reference=5, log="y"
    )
    first, second, reference = ax.lines
    assert (first.get_label(), list(first.get_ydata())) == ("b", [10, 20]) and list(
        second.get_ydata()
    ) == [3, 4]
    assert (
        second.get_color() == plotting.GREY
        and first.get_linestyle() == "--"
        and set(reference.get_ydata()) == {5}
    )
    assert (ax.get_xscale(), ax.get_yscale()) == ("linear", "log")
    with pytest.raises(ValueError, match="order and data disagree"):
        plotting.line_chart(
            ax, data, {"a": looks["a"]}, x="step", y="value", group="run", label="Step"
        )


def test_flow_chart_draws_every_box_and_arrow():
    _, ax = plt.subplots(figsize=plotting.COLUMN)
    drawn = plotting.flow_chart(
        ax,
        {"x": (0, 0), "z": (1, 1), "p": (2, 0)},
        [("x", "z"), ("z", "p")],
        marked=["p"],
        dashed=[("z", "p")],
    )
    assert drawn.to_dict("list") == {"from": ["x", "z"], "to": ["z", "p"]}
    boxes = {text.get_text(): text.get_bbox_patch() for text in ax.texts if text.get_text()}
    assert set(boxes) == {"x", "z", "p"} and to_rgb(boxes["p"].get_edgecolor()) == to_rgb(
        plotting.BLUE
    ) != to_rgb(boxes["x"].get_edgecolor())
    arrows = [text.arrow_patch for text in ax.texts if not text.get_text()]
    assert [arrow.get_linestyle() for arrow in arrows] == ["-", "--"]
    with pytest.raises(ValueError, match="no node 'y'"):
        plotting.flow_chart(ax, {"x": (0, 0)}, [("x", "y")])


def test_spread_keeps_order_and_gap():
    spread = plotting._spread(np.array([0.5, 0.1, 0.51, 0.52, 0.9]), 0.1)
    assert np.diff(np.sort(spread)).min() >= 0.1 - 1e-12 and np.argsort(spread).tolist() == [
        1,
        0,
        2,
        3,
        4,
    ]
    assert spread[[1, 4]].tolist() == pytest.approx([0.1, 0.9]) and spread[
        [0, 2, 3]
    ].mean() == pytest.approx(0.51)


def test_bad_data_are_errors():
    _, ax = plt.subplots()
    data = kappas()
    for broken, message in [
        (data.drop(columns="kappa"), "no column kappa"),
        (data.iloc[:0], "no rows"),
        (data.assign(kappa=data["kappa"].where(data.index != 3)), "kappa holds NaN"),
        (data.assign(kappa=data["kappa"] - 1e6), "positive"),
    ]:
        with pytest.raises(ValueError, match=message):
            plotting.kappa_boxplots(ax, broken, "group")
        with pytest.raises(ValueError, match=message):
            plotting.log_histogram(ax, broken, "group")
    with pytest.raises(ValueError, match="order and data disagree"):
        plotting.kappa_boxplots(ax, data, "group", ["a", "b", "d"])


def test_a_log_axis_of_curves_stays_near_its_data():
    plotting.use_style()
    log = pd.DataFrame(
        {
            "method": "vi_simsiam",
            "seed": 0,
            "epoch": [5, 50, 100],
            "kappa": [700.0, 900.0, 2000.0],
            "low": 170.0,
            "high": 4900.0,
        }
    )
    figure, axes = plt.subplots(1, 2, figsize=plotting.TEXT, layout="constrained", sharey=True)
    axes[0].set_ylim(166, 5000)
    for ax in axes:
        plotting.training_curves(
            ax, log, y="kappa", label="κ", log_scale=True, band=("low", "high")
        )
    figure.draw_without_rendering()
    assert 75 < axes[0].get_ylim()[0] < 150 and 5000 < axes[0].get_ylim()[1] < 10_000


def test_kappa_in_words():
    assert [plotting.kappa_text(value) for value in (11104.2, 852.63, 2.6382)] == [
        "11,104",
        "853",
        "2.64",
    ]


@pytest.mark.parametrize("kind", ["pdf", "svg"])
def test_a_picture_drawn_once_is_that_of_savefig(kind):
    """Arrows between boxes included, whose ends depend on the boxes' places at the resolution of the format."""
    plotting.use_style()
    figure, axes = plt.subplots(1, 2, figsize=plotting.PAGE, layout="constrained")
    axes[0].set(xlim=(-1, 3), ylim=(-1, 2))
    plotting.flow_chart(
        axes[0],
        {"x": (0, 0), "μ, σ": (2, 1), "z": (2, 0)},
        [("x", "μ, σ"), ("μ, σ", "z")],
        circles=["μ, σ"],
    )
    axes[1].plot([1, 2, 3], label="line")
    axes[1].legend()
    plotting._settle(figure, "50_once")
    drawn, expected = plotting._render(figure, kind), io.BytesIO()
    with plotting.without_layout_tables():
        figure.savefig(expected, format=kind, metadata=plotting.UNDATED[kind])
    assert drawn == (plotting._slim(expected.getvalue()) if kind == "svg" else expected.getvalue())
    assert "GSUB" not in subset.Options().drop_tables, (
        "whoever imports lib.figures.charts keeps the fonts' tables elsewhere"
    )
    plt.close(figure)
