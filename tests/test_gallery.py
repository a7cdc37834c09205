"""The gallery: what it lists, that every string is escaped, and, in a headless browser, that it is complete, fits and needs no network."""

import ast
import base64
import itertools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest

from lib import figures as plotting
from lib.claims import ledger
from lib.pipeline import site as gallery
from lib.runs import settings
from lib.runs import store as artifacts

BROWSER = next(
    filter(
        None,
        map(
            shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
        ),
    ),
    None,
)
DRIVER = shutil.which("chromedriver")
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"
CAPTION = (
    f"Concentration falls with blur & {HOSTILE}. "
    + "Each box shows the quartiles of one severity level here. " * 4
)
ALT = 'Five "boxes" stand <b>side by side</b>. Their medians fall.'
OTHER_ALT = 'A "curve" rises <b>fast</b>. It ends high.'
LINKS = re.compile(
    r'(?:href="?|src=")([^"#:>\s]+)[#">\s]'
)  # to files, in quotation marks or, of names that are escaped for a URL, without


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A small gallery: three figures, a wide table, an executed notebook and a hostile string in every place that takes one."""
    with pytest.MonkeyPatch.context() as patch, plt.rc_context():
        patch.setattr(artifacts, "RESULTS", tmp_path_factory.mktemp("gallery") / "results")
        plotting.use_style()
        folder = artifacts.results_dir("standard")
        folder.mkdir(parents=True, exist_ok=True)
        source = folder / "metrics" / "30.csv"
        artifacts.write_text(source, "a\n1\n")
        for id, size in (
            ("20_accuracy", plotting.TEXT),
            ("30_kappa", plotting.COLUMN),
            ("30_roc", plotting.SQUARE),
        ):
            figure, ax = plt.subplots(figsize=size)
            data = pd.DataFrame({"x": np.arange(5.0), "kappa": 2.0 ** np.arange(5)})
            ax.plot(data["x"], data["kappa"])
            notebook = f"{id[:2]}_some_notebook"
            alt = OTHER_ALT if id == "30_roc" else ALT
            plotting.save_figure(
                figure,
                id,
                caption=CAPTION,
                alt=alt,
                data=data,
                profile="standard",
                notebook=notebook,
                inputs=[source],
            )
        wide = pd.DataFrame(
            {
                f"column_number_{i}": [HOSTILE * (i == 1) + f"0.123456{row}" for row in range(30)]
                for i in range(30)
            }
        )
        wide["in_every_row"], wide["runs"], wide["second"] = (
            HOSTILE,
            [f"name-of-run-seed{row}" for row in range(30)],
            "name-of-run",
        )
        artifacts.write_csv(folder / "tables" / "20_accuracy.csv", wide)
        row = {
            "id": "VS2-3",
            "paper": "vs2",
            "part": "AUROC of κ",
            "where": "§6",
            "statement": HOSTILE,
            "kind": "number",
            "unit": "AUROC",
            "published": 0.72,
            "ours": 0.6131,
            "ci_low": 0.6018,
            "ci_high": 0.6249,
            "seeds": 3,
            "verdict": "same direction",
            "reason": HOSTILE,
        }
        artifacts.write_csv(folder / "tables" / "90_claims.csv", pd.DataFrame([row]))
        artifacts.write_json(
            folder / "runs" / "simsiam-x" / "config.json", {"seconds": 90, "commit": HOSTILE}
        )
        artifacts.write_json(
            folder / "run.json",
            {"commit": "abc", "hardware": {"processor": HOSTILE, "cores": 2}, "minutes": 7.5},
        )
        write_notebook(folder / "notebooks" / "30_some_notebook.ipynb")
        artifacts.write_text(folder / "notebooks" / "20_some_notebook.ipynb", "{}")
        gallery.notebook_html(folder / "notebooks" / "30_some_notebook.ipynb")
        gallery.build("standard")
        yield folder


@pytest.mark.parametrize(
    ("ours", "low", "high", "shown"),
    [
        (0.6867, 0.28, 1.1, ("0.69", "[0.28, 1.10]")),
        (0.2933, -2.01, 2.821, ("0.3", "[-2.0, 2.8]")),
        (52.05667, 50, 52, ("52.1", "[50.0, 52.0]")),
        (1234.5, 1000, 1500, ("1234", "[1000, 1500]")),
        (-0.1033, -0.95349, 0.08008, ("-0.10", "[-0.95, 0.08]")),
        (97.5, np.nan, np.nan, ("97.5", "")),
        (3.0, 3.0, 3.0, ("3", "[3, 3]")),
    ],
)
def test_a_number_has_the_digits_that_its_intervals_width_needs(ours, low, high, shown):
    part = gallery._part(
        {"published": 98.4, "ours": ours, "ci_low": low, "ci_high": high, "seeds": 3}
    )
    assert (part["ours"], part["interval"]) == shown and (part["published"], part["seeds"]) == (
        "98.4",
        "3",
    )


def write_notebook(path, extra=()):
    figure, ax = plt.subplots()
    ax.plot([1, 2])
    picture = plotting.notebook_picture(figure, "A line.").data
    table = pd.DataFrame(np.zeros((2, 40))).to_html()
    outputs = [
        nbformat.v4.new_output("stream", text="x" * 400),
        nbformat.v4.new_output(
            "display_data",
            {"image/png": base64.b64encode(picture).decode()},
            metadata={"image/png": {"alt": "A line."}},
        ),
        nbformat.v4.new_output(
            "display_data",
            {"image/png": base64.b64encode(picture).decode()},
            metadata={"image/png": {"alt": OTHER_ALT}},
        ),
        nbformat.v4.new_output(
            "display_data",
            {"image/jpeg": base64.b64encode(picture).decode()},
            metadata={"image/jpeg": {"alt": OTHER_ALT}},
        ),
        nbformat.v4.new_output("execute_result", {"text/html": table, "text/plain": "table"}),
        nbformat.v4.new_output(
            "display_data",
            {
                "application/vnd.jupyter.widget-view+json": {"model_id": "1"},
                "text/plain": "a slider",
            },
        ),
        nbformat.v4.new_output(
            "display_data", {"application/javascript": "alert(3)", "text/plain": "a script"}
        ),
        *extra,
    ]
    cells = [
        nbformat.v4.new_markdown_cell(
            "# κ under <blur>\n\nSee $\\log C(\\kappa)$ and [a paper](https://arxiv.org/abs/2305.05276)."
        ),
        nbformat.v4.new_code_cell(
            "print('a long line', " + "1, " * 100 + ")", outputs=outputs, execution_count=1
        ),
    ]
    artifacts.write_text(path, nbformat.writes(nbformat.v4.new_notebook(cells=cells)))


# ---------------------------------------------------------------------------------------------------------------- pages as text


def test_page_lists_everything_once(results):
    page = (results / "index.html").read_text()
    assert re.findall(r'<img src="figures/(\w+)\.png"', page) == [
        "20_accuracy",
        "30_kappa",
        "30_roc",
    ]
    for id in ("20_accuracy", "30_kappa", "30_roc"):
        assert f"href=figures/{id}.csv " in page
    assert (
        "href=notebooks/30_some_notebook.html>" in page
        and "href=notebooks/20_some_notebook.ipynb>" in page
    )
    assert (
        'href="tables/20_accuracy.csv"' in page
        and f"{gallery.TABLE_ROWS} of 30 rows; in all of them in_every_row: &lt;" in page
    )
    assert "name-of-run" not in page, "what lies behind a row stands in the CSV"
    assert "<th>column_number_29\n<tbody>" in page  # what every row repeats is no column
    assert page.count("<tbody>") == 4  # verdicts, a claim, a table, runs
    assert (
        'id="t-90_claims"' in page and "0 of 1 rows (they stand above)" in page
    )  # what the page begins with is not told twice
    assert page.index('id="n20"') < page.index('id="n30"')
    assert (
        "<dd>3 at 1 commits; each names its own\n" in page
        and "commit abc" in page
        and "cores 2" in page
    )
    assert "<strong>Concentration falls with blur &amp; " in page  # the claim is set bold
    readme = (results / "README.md").read_text()
    assert readme.count("](figures/30_roc.png)") == 1 and "](tables/20_accuracy.csv)" in readme


def test_neighbours_in_a_table_share_the_cells_of_their_first_columns(results):
    rows = [("a", "x", 1), ("a", "x", 2), ("a", "y", 2), ("b", "y", 2), ("b", "y", 3)]
    artifacts.write_csv(
        results / "tables" / "80_differences.csv",
        pd.DataFrame(rows, columns=["measure", "method", "minus"]),
    )
    artifacts.write_csv(
        results / "tables" / "80_ranks.csv",
        pd.DataFrame(rows[2:3] * 2, columns=["measure", "method", "best"]),
    )
    page = gallery.build("standard").read_text()
    lines = page.split('id="t-80_differences"')[1].split("</table>")[0].splitlines()
    written = [re.findall(r'<td(?: rowspan="(\d)")?>(\w)', line) for line in lines]
    shared = [
        [("2", "a"), ("2", "x"), ("", "1")],
        [("", "2")],
        [("", "a"), ("", "y"), ("", "2")],
        [("2", "b"), ("2", "y"), ("", "2")],
        [("", "3")],
    ]
    assert [row for row in written if row] == shared
    assert '<tr><td rowspan="2">a<td rowspan="2">y<td>2\n<tr><td>2\n</table>' in page, (
        "a row that repeats another keeps a cell"
    )


def test_a_stale_run_is_marked_as_such(results, monkeypatch):
    assert "stale:" not in (results / "index.html").read_text()
    monkeypatch.setattr(gallery.settings, "stale_runs", lambda profile: ["simsiam-x"])
    page = gallery.build("standard").read_text()
    assert (
        re.search(
            r'<tr id="simsiam-x">.*?stale: today.*?settings would train it differently', page, re.S
        )
        and page.count("stale: today") == 1
    )
    monkeypatch.undo()
    assert "stale:" not in gallery.build("standard").read_text()


def test_every_string_is_escaped(results, monkeypatch):
    page, readme = (results / "index.html").read_text(), (results / "README.md").read_text()
    assert "<script" not in page and "onerror=alert(2)>" not in page and "<b>" not in page
    assert (
        page.count("&lt;script&gt;") >= 3 + gallery.TABLE_ROWS + 1 + 1 + 2
    )  # captions, table cells, what all rows repeat, hardware, claim
    assert "<script" not in readme and "<img" not in readme
    assert not (results.parent / "README.md").exists(), (
        "a page of the repository, and these results lie elsewhere"
    )
    monkeypatch.setattr(artifacts, "RESULTS", results.parent)
    assert "VS2-3" in gallery._hours() and "<script" not in gallery._hours()


def test_links_lead_to_files(results):
    page, readme = (results / "index.html").read_text(), (results / "README.md").read_text()
    links = LINKS.findall(page) + re.findall(r"\]\(([^)#]+)\)", readme)
    assert len(links) > 20
    for link in links:
        assert (results / unquote(link)).exists(), link
    headings = {gallery._anchor(heading) for heading in re.findall(r"^#+ (.+)$", readme, re.M)}
    assert set(re.findall(r"\]\(#([^)]+)\)", readme)) <= headings


def test_published_and_measured_stand_side_by_side(results):
    page, readme = (results / "index.html").read_text(), (results / "README.md").read_text()
    assert "<th scope=row>AUROC of κ<td>AUROC<td>0.72<td>0.613<td>[0.602, 0.625]<td>3<td" in page
    assert (
        "| same direction | 1 of 1 | AUROC of κ | 0.72 | 0.613 \\[0.602, 0.625\\] AUROC |" in readme
    )
    assert (
        '<tr id="simsiam-x"><th scope=row><a href=runs/simsiam-x/config.json>simsiam-x</a><td>1.5<td>'
        in page
    )
    assert "| 1 | 0 | 1 |\n" in readme  # the sum over papers


@pytest.mark.parametrize(
    ("reason", "why"),
    [
        (
            "our interval lies on the other side (claimed: within 2 of 97.2), 3 seeds; 100 epochs, not 600",
            "on the other side (within 2); 100 epochs, not 600",
        ),
        (
            "our interval includes the bound (claimed: within 0.3 of -0.2), 1 seed; too few seeds",
            "includes the bound (within 0.3)",
        ),
        (
            "our interval, 1 seed; 40 epochs, not 100, too few seeds, another probe",
            "interval; 40 epochs, not 100, another probe",
        ),
        ("our interval, 1 seed; too few seeds, another probe", "interval; another probe"),
        (
            "our interval, 3 seeds (Student's t over them alone includes the bound: -1.00 to +2.00)",
            "interval, 3 seeds (Student's t over them alone includes the bound: -1.00 to +2.00)",
        ),
    ],
)
def test_a_part_is_told_why_without_what_its_other_cells_say(reason, why):
    assert gallery._why(reason) == why


def test_a_claim_whose_runs_are_gone_is_still_shown(results, monkeypatch):
    monkeypatch.setattr(artifacts, "RESULTS", results.parent)
    monkeypatch.setattr(ledger, "runs", lambda part, profile: ["gone-seed0"])
    (claim,) = gallery._claims("standard", {})
    assert claim["id"] == "VS2-3" and claim["runs"] == [] and claim["hours"] == "0"


def test_same_results_same_bytes(results, monkeypatch):
    monkeypatch.setattr(artifacts, "RESULTS", results.parent)
    before = [(results / name).read_bytes() for name in ("index.html", "README.md")]
    assert gallery.build("standard") == results / "index.html"
    assert [(results / name).read_bytes() for name in ("index.html", "README.md")] == before


def test_changed_inputs_are_said(results, monkeypatch, tmp_path):
    copy = tmp_path / "results" / "standard"
    shutil.copytree(results, copy)
    monkeypatch.setattr(artifacts, "RESULTS", copy.parent)
    assert "Stale" not in gallery.build("standard").read_text()
    (copy / "metrics" / "30.csv").write_text("a\n2\n")
    assert (
        gallery.build("standard").read_text().count("Stale: results/standard/metrics/30.csv") == 3
    )
    (copy / "run.json").unlink()
    (copy / "metrics" / "30.csv").unlink()
    page = gallery.build("standard").read_text()
    assert "Stale" not in page and "commit abc" not in page


def test_bad_results_are_errors(monkeypatch, tmp_path):
    monkeypatch.setattr(artifacts, "RESULTS", tmp_path)
    with pytest.raises(FileNotFoundError, match="make reproduce PROFILE=quick"):
        gallery.build("quick")
    (tmp_path / "quick" / "tables").mkdir(parents=True)
    assert "make reproduce PROFILE=quick" in gallery.build("quick").read_text()
    (tmp_path / "quick" / "tables" / "20_empty.csv").write_text("")
    with pytest.raises(ValueError, match="20_empty.csv is not a readable CSV file"):
        gallery.build("quick")
    (tmp_path / "half.ipynb").write_text('{"cells": [')
    with pytest.raises(ValueError, match="half.ipynb is truncated"):
        gallery.notebook_html(tmp_path / "half.ipynb")


def test_notebook_page(results, tmp_path):
    page = (results / "notebooks" / "30_some_notebook.html").read_text()
    assert "<script" not in page and "alert(3)" not in page and not gallery.FETCHES.search(page)
    assert (
        "<title>κ under &lt;blur&gt;</title>" in page
        and 'alt="A line."' in page
        and "data:image/png;base64," in page
    )
    assert r"\log C(\kappa)" in page and "a slider" in page and "a script" in page
    assert len(page) < 200_000
    linked = re.findall(r'src="(\.\./figures/[^"]*)"', page)
    assert [(results / "notebooks" / link).resolve() for link in linked] == [
        results.resolve() / "figures" / "30_roc.png"
    ] * 2
    remote = nbformat.v4.new_output(
        "display_data", {"text/html": '<img alt="x" src="https://example.org/x.png">'}
    )
    write_notebook(tmp_path / "10_remote.ipynb", [remote])
    with pytest.raises(ValueError, match="from the network"):
        gallery.notebook_html(tmp_path / "10_remote.ipynb")


# ---------------------------------------------------------------------------------------------------------------- pages in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not (BROWSER and DRIVER):
        pytest.skip(
            "no browser: install chromium and chromium-driver (or Google Chrome and chromedriver) to run this test"
        )
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--no-first-run",
        "--disable-sync",
        "--disable-component-update",
        "--disable-default-apps",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={tmp_path_factory.mktemp('browser')}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("page", ["index.html", "notebooks/30_some_notebook.html"])
def test_page_in_a_browser(results, browser, page, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get((results / page).as_uri())
    # Lazy pictures load when they come into view.
    pictures = browser.execute_async_script(
        """const done = arguments[0], images = [...document.images];
        images.forEach(image => { image.loading = "eager"; });
        Promise.all(images.map(image => image.decode().catch(() => null))).then(
            () => done(images.map(image => [image.src, image.naturalWidth, image.alt, image.getBoundingClientRect().width])));"""
    )
    assert len(pictures) == 3
    for source, natural, alt, shown in pictures:
        assert natural > 0, f"{source[:80]} did not load"
        assert alt and 0 < shown <= width
    inner, room, needed = browser.execute_script(
        "const e = document.documentElement; return [innerWidth, e.clientWidth, e.scrollWidth]"
    )
    assert inner == width and needed <= room
    wide = browser.execute_script(
        "return [...document.querySelectorAll('body *')].filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1"
        " && !e.closest('.scroll, .output_area, pre, .skip')).map(e => e.outerHTML.slice(0, 80))"
    )
    assert wide == []
    assert browser.execute_script("return document.documentElement.lang") == "en"
    assert browser.execute_script("return document.querySelectorAll('main').length") == 1
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    requests = [
        request["request"]["url"] for request in sent if request["documentURL"].startswith("file:")
    ]  # not the browser's own start page
    assert requests and all(url.startswith(("file:", "data:")) for url in requests), requests
    assert [
        entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")
    ] == []


# ---------------------------------------------------------------------------------------------------------------- questions


@pytest.fixture(scope="module")
def committed(tmp_path_factory):
    """The gallery of the committed evidence, built anew over links to its files."""
    stored, folder = (
        artifacts.ROOT / "results" / gallery.EVIDENCE,
        tmp_path_factory.mktemp("committed") / "results" / gallery.EVIDENCE,
    )
    folder.mkdir(parents=True)
    (folder.parents[1] / "figures").symlink_to(artifacts.ROOT / "figures")
    for path in stored.iterdir():
        if path.name not in ("index.html", "README.md"):
            (folder / path.name).symlink_to(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifacts, "RESULTS", folder.parent)
        gallery.build(gallery.EVIDENCE)
        yield folder


def cell(table, column, **where):
    """A number of a committed table, to as many digits as the page shows at least."""
    frame = pd.read_csv(artifacts.ROOT / "results" / gallery.EVIDENCE / "tables" / f"{table}.csv")
    for name, value in where.items():
        frame = frame[frame[name] == value]
    value = frame[column].iloc[0]
    return value if isinstance(value, str) else f"{value:.3g}"


def first(measure):
    """The method that may be first and has the highest mean, as figures name it."""
    frame = pd.read_csv(artifacts.ROOT / "results" / gallery.EVIDENCE / "tables" / "80_ranks.csv")
    frame = frame[
        (frame.measure == measure) & (frame.best == 1) & (frame.methods == frame.methods.max())
    ]
    return plotting.method_style(frame.loc[frame.value.idxmax(), "method"]).label


def config(run):
    return artifacts.read_json(
        artifacts.ROOT / "results" / gallery.EVIDENCE / "runs" / run / "config.json"
    )


def needs(claim):
    return ledger.claims()[claim]["needs"]


def count(paper, verdict):
    frame = pd.read_csv(
        artifacts.ROOT / "results" / gallery.EVIDENCE / "tables" / "90_verdicts.csv"
    )
    return str(((frame.paper == paper) & (frame.verdict == verdict)).sum())


def held():
    """How sure a claim is, and the claims that are as sure, as the page lists those that hold."""
    frame = pd.read_csv(
        artifacts.ROOT / "results" / gallery.EVIDENCE / "tables" / "90_verdicts.csv"
    )
    surely = ~frame.unsettled & ~frame.few_seeds
    return [
        f"{verdict.capitalize()}: {', '.join(frame.id[surely & (frame.verdict == verdict)])}."
        for verdict in ("reproduced", "same direction")
    ]


def advised(use):
    """The best score without labels for a use, as its table says it."""
    table = pd.read_csv(artifacts.ROOT / "results" / gallery.EVIDENCE / "tables" / "80_advice.csv")
    best = table[(table.use == use) & (table.kind == "without labels")].iloc[0]
    return [f"{best.score} of {plotting.method_style(best.method).label}"]


def hours(claim):
    """The hours of training behind a claim, as results/README.md has them."""
    return re.search(
        rf"^\| \[{claim}\].*\| ([\d.]+) \|$",
        (artifacts.ROOT / "results" / "README.md").read_text(),
        re.M,
    )[1]


# A question of the page; the texts of the links clicked one after another; where the answer stands (an id, or a file); what it holds.
ASKED = [
    (0, ["what holds"], "holds", held),
    (1, ["claim VS2-3"], "VS2-3", lambda: [cell("90_verdicts", "verdict", id="VS2-3")]),
    (
        2,
        ["claim VS2-3", "32_auroc.csv"],
        "tables/32_auroc.csv",
        lambda: [cell("90_claims", "ours", id="VS2-3")],
    ),
    (
        3,
        ["claim VS2-3", "vi_simsiam-cifar10-e40-seed0"],
        "vi_simsiam-cifar10-e40-seed0",
        lambda: [f"{config('vi_simsiam-cifar10-e40-seed0')['seconds'] / 60:.1f}"],
    ),
    (
        4,
        ["figure 80_ranks"],
        "80_ranks",
        lambda: [first("linear_correctness_auroc"), "correctness"],
    ),
    (4, ["figure 80_against_trivial"], "80_against_trivial", lambda: ["behind"]),
    (4, ["which score to use"], "advice", lambda: advised("correctness (linear)")),
    (5, ["which score to use"], "advice", lambda: advised("far OOD")),
    (5, ["figure 80_ranks"], "80_ranks", lambda: [first("near_ood_auroc"), "near OOD"]),
    (
        6,
        ["table 20_difference", "20_difference.csv"],
        "tables/20_difference.csv",
        lambda: [cell("20_difference", "ci_low", epochs=40, classifier="linear", measure="top-1")],
    ),
    (
        7,
        ["all runs"],
        "simclr-cifar10-e40-seed0",
        lambda: [f"{config('simclr-cifar10-e40-seed0')['seconds'] / 60:.1f}"],
    ),
    (
        8,
        ["figure 31_kappa_by_augmentation", "csv"],
        "figures/31_kappa_by_augmentation.csv",
        lambda: ["random crop", "median", "q1"],
    ),
    (9, ["claim VJ-4"], "VJ-4", lambda: [cell("90_verdicts", "verdict", id="VJ-4"), "interval"]),
    (10, ["claim PM-1"], "PM-1", lambda: ["not tested", needs("PM-1")]),
    (
        11,
        ["counts of verdicts"],
        "verdicts",
        lambda: ["same direction", count("vs2", "same direction")],
    ),
    (12, ["claim VJ-1"], "VJ-1", lambda: [f"({hours('VJ-1')} hours of training)"]),
    (13, ["table 50_calibration"], "t-50_calibration", lambda: ["ECE", "prosmin_vit"]),
    (14, ["which score to use"], "advice", lambda: advised("how far blurred")),
    (
        15,
        ["tables and figures of the papers", "figure 41_generated"],
        "41_generated",
        lambda: ["distance of generated to test images"],
    ),
]


def test_every_claim_that_holds_is_listed_once(committed):
    frame = pd.read_csv(
        artifacts.ROOT / "results" / gallery.EVIDENCE / "tables" / "90_verdicts.csv"
    )
    holding = frame.id[frame.verdict.isin(["reproduced", "same direction"])].tolist()
    (page,) = re.findall(r'<p id="holds">.*?</p>', (committed / "index.html").read_text(), re.S)
    assert sorted(re.findall(r'href="#([^"]+)"', page)) == sorted(holding)
    (table,) = re.findall(
        r"<!-- holds -->(.*?)<!-- end -->",
        gallery.with_results((artifacts.ROOT / "README.md").read_text()),
        re.S,
    )
    assert sorted(re.findall(r"\| \[([A-Z0-9]+-\d+)\]", table)) == sorted(holding)
    in_part = frame[frame.id.isin(holding) & (frame.parts_tested < frame.parts)]
    said = {
        id: (int(tested), int(parts))
        for id, tested, parts in re.findall(
            r"\[(\S+)\].* \((\d+) of (\d+) parts tested\) \|", table
        )
    }
    assert said == {row.id: (row.parts_tested, row.parts) for row in in_part.itertuples()} and said
    doubts = [
        words
        for words, _ in gallery._holding(
            [
                {
                    "id": str(place),
                    "verdict": "same direction",
                    "said": "same direction" + " (open)" * unsettled,
                    "few_seeds": few,
                    "unsettled": unsettled,
                }
                for place, (few, unsettled) in enumerate(itertools.product((True, False), repeat=2))
            ]
        )
    ]
    assert doubts == [
        "same direction",
        "same direction (open)",
        "same direction, on fewer than three seeds",
        "same direction (open), on fewer than three seeds",
    ]


def test_numbers_typed_in_the_readme_are_those_of_the_tables():
    tables = artifacts.ROOT / "results" / gallery.EVIDENCE / "tables"
    table, advice = (pd.read_csv(tables / f"{name}.csv") for name in ("80_benchmark", "80_advice"))

    def value(method, score, measure):
        return table.value[
            (table.method == method) & (table.score == score) & (table.measure == measure)
        ].item()

    def best(use, kind):
        return advice[(advice.use == use) & (advice.kind == kind)].value.max()

    nearest = (
        table[(table.measure == "far_ood_auroc") & (table.score == "knn_distance")]
        .set_index("method")
        .value
    )
    untrained = nearest[["random", "random_latent", "random_vit", "raw_pixels"]]
    trained = nearest.drop([*untrained.index, "supervised"])
    kappa = value("vi_simsiam", "uncertainty", "linear_correctness_auroc")
    foreign = (
        pd.read_csv(tables / "32_ood.csv")
        .query("method == 'vi_simsiam'")
        .set_index("evaluated_on")
        .κ[["mnist", "fashion_mnist"]]
    )
    supervised = [
        value("supervised", score, measure)
        for score, measure in (
            ("knn_distance", "near_ood_auroc"),
            ("knn_distance", "far_ood_auroc"),
            ("max_softmax", "linear_correctness_auroc"),
        )
    ]
    accuracy = [
        100 * value(method, "uncertainty", f"{classifier}_accuracy")
        for classifier in ("linear", "knn")
        for method in ("moco_v3", "simclr")
    ]
    native, leads = (
        pd.read_csv(tables / f"{name}.csv")
        for name in ("32_native_uncertainty", "32_against_baselines")
    )
    inside = native.set_index(["trained_on", "method"]).linear_within_class["cifar10", "vi_simsiam"]
    ahead = leads.set_index(["among", "classifier", "against"]).difference[
        "images of one class", "linear", "feature norm"
    ]
    readme = " ".join((artifacts.ROOT / "README.md").read_text().split())
    for words, *numbers in (
        ("better than chance (AUROC {:.2f})", kappa),
        ("than of its own test images (AUROC {:.2f} and {:.2f}", *foreign),
        ("a weak sign of errors (AUROC {:.2f})", kappa),
        ("(among images of one class it does: {:.2f} against {:.2f})", inside, inside - ahead),
        (
            "which are not told apart, by the linear probe ({:.1f} and {:.1f} %) and by k-NN ({:.1f} and {:.1f} %)",
            *accuracy,
        ),
        (
            "where MoCo v2 ({:.1f}) may be first too",
            100 * value("moco_v2", "uncertainty", "knn_accuracy"),
        ),
        ("of a linear probe (AUROC {:.2f})", best("correctness (linear)", "with labels")),
        ("without labels nothing is good ({:.2f})", best("correctness (linear)", "without labels")),
        (
            "For CIFAR-100 nothing is good either ({:.2f})",
            max(best("near OOD", "with labels"), best("near OOD", "without labels")),
        ),
        ("({:.2f} to {:.2f}): training without labels", untrained.min(), untrained.max()),
        ("makes it worse ({:.2f} to {:.2f})", trained.min(), trained.max()),
        (
            "its k-NN distance has {:.2f} near and {:.2f} far, its softmax {:.2f} for errors",
            *supervised,
        ),
    ):
        assert words.format(*numbers) in readme, words.format(*numbers)
    ranks = (
        pd.read_csv(artifacts.ROOT / "results" / gallery.EVIDENCE / "tables" / "80_ranks.csv")
        .set_index(["measure", "method"])
        .best
    )
    assert (
        ranks.loc[["linear_accuracy", "knn_accuracy"]].unstack()[["moco_v3", "simclr"]] == 1
    ).all(axis=None), "one of the two is first"
    assert ranks["knn_accuracy", "moco_v2"] == 1


def test_every_question_is_asked():
    assert {number for number, *_ in ASKED} == set(range(len(gallery.QUESTIONS)))


@pytest.mark.parametrize(
    ("number", "clicks", "place", "answer"),
    ASKED,
    ids=[f"{number}-{'-'.join(clicks)}" for number, clicks, *_ in ASKED],
)
def test_questions_are_answered_in_three_clicks(committed, browser, number, clicks, place, answer):
    """Each click is a real one, on what is visible, in the question, the claim or the figure that the last one led to."""
    from selenium.webdriver.common.by import By

    assert len(clicks) <= 3
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    browser.get("about:blank")  # or it may only scroll
    browser.get((committed / "index.html").as_uri())
    asked = browser.find_elements(By.CSS_SELECTOR, "section:first-of-type li")
    (within,) = [item for item in asked if item.text.startswith(gallery.QUESTIONS[number][0])]
    target = None
    for text in clicks:
        (clicked,) = [
            link
            for link in within.find_elements("tag name", "a")
            if link.is_displayed() and link.text == text
        ]
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", clicked)
        target = clicked.get_attribute("href")
        clicked.click()
        if target and "#" in target:
            within = browser.find_element(By.ID, target.split("#")[1])
            within = (
                within
                if within.tag_name in ("div", "figure", "tr")
                else within.find_element(By.XPATH, "..")
            )  # div: of a claim
            assert browser.execute_script(
                "const r = arguments[0].getBoundingClientRect(); return r.top < innerHeight && r.bottom > 0",
                within,
            )
    if "/" in place:
        assert target == (committed / place).as_uri()
        text = (committed / place).read_text()
    else:
        shown = browser.find_element(By.ID, place)
        beside = {"h2": "..", "h3": "following-sibling::div[1]"}.get(
            shown.tag_name
        )  # a section, a table
        shown = shown.find_element(By.XPATH, beside) if beside else shown
        assert shown.is_displayed()
        text = shown.text
    assert all(part in text for part in answer()), (answer(), text)


def test_ids_are_unique_and_links_within_the_page_lead_somewhere(committed):
    page = (committed / "index.html").read_text()
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids)) > 100
    assert set(re.findall(r'href="?#([^">\s]+)', page)) <= set(ids)
    for link in set(LINKS.findall(page)) | set(
        re.findall(r"\]\(([^)#]+)\)", (committed / "README.md").read_text())
    ):
        assert (committed / link).exists(), link
    assert len(page) < 500_000  # without pictures, which come when they are looked at


def test_every_run_is_linked_once_and_those_of_a_search_stand_together(committed):
    page = (committed / "index.html").read_text()
    configs = artifacts.run_configs("standard")
    assert sorted(re.findall(r"href=runs/([^/>]+)/config\.json>", page)) == sorted(
        folder.name for folder in configs
    )
    tried = [folder.name for folder, run in configs.items() if run["settings"]["split"] == "fit"]
    assert tried and not any(f'<tr id="{name}"' in page for name in tried)
    rows = re.findall(
        r"<th scope=row>(\w+-\w+-e\d+)<td>(.*?)<td>([\d.]+)$", page.split('id="searches"')[1], re.M
    )
    same = [
        run["seconds"]
        for folder, run in configs.items()
        if folder.name.startswith("simclr-cifar10-e5-fit-")
    ]
    ((links, minutes),) = [row[1:] for row in rows if row[0] == "simclr-cifar10-e5"]
    assert links.count("<a ") == len(same) > 1 and float(minutes) == pytest.approx(
        sum(same) / 60, abs=0.051
    )


def test_tables_that_a_question_leads_to_answer_it(committed):
    page = (committed / "index.html").read_text()
    for place, text in {
        place: text
        for text, *places in gallery.QUESTIONS
        for place in places
        if place.startswith("t-")
    }.items():
        table = pd.read_csv(committed / "tables" / f"{place[2:]}.csv")
        first, rows = table.columns[0], len(table)
        if len(table) > gallery.ASKED_ROWS:  # what is asked of a long one stands at its head
            rows = (table[first] == table[first][0]).sum()
            assert table[first][0].replace("_", " ") in text
        assert re.search(
            f"<span>{rows} of {len(table)} rows(</span>|; in all of them )",
            page[page.index(f'id="{place}"') :].split("</p>")[0],
        ), place


def test_claims_are_filtered_by_paper_with_the_keyboard(committed, browser):
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.wait import WebDriverWait

    browser.get("about:blank")  # or it may only scroll
    browser.get((committed / "index.html").as_uri())
    papers = [claim["paper"] for claim in ledger.claims().values()]

    def shown():
        return [
            element.get_attribute("class")
            for element in browser.find_elements("tag name", "details")
            if element.is_displayed()
        ]

    drawn = WebDriverWait(browser, 30)  # on a busy machine after it has answered
    drawn.until(lambda _: sorted(shown()) == sorted(papers), "all claims are shown")
    browser.find_element("id", "only-all").send_keys(Keys.ARROW_LEFT)  # the last one
    drawn.until(lambda _: set(shown()) == {"vje"}, "one paper's claims are shown")
    assert (
        shown() == ["vje"] * papers.count("vje")
        and not browser.find_element("id", "VJ-1").is_displayed()
    )
    browser.find_element("xpath", "//details[*[@id='VJ-1']]/summary").send_keys(Keys.ENTER)
    assert (
        browser.find_element("id", "VJ-1").is_displayed()
        and "published" in browser.find_element("id", "VJ-1").text
    )


def test_text_stands_out(committed, browser):
    """4.5 to 1 against the white page, by WCAG's relative luminance."""
    browser.get((committed / "index.html").as_uri())
    colours = browser.execute_script(
        "return [...new Set([...document.querySelectorAll('main *, header *, nav *')].filter(e => e.innerText).map(e => getComputedStyle(e).color))]"
    )
    assert len(colours) > 3
    for colour in colours:
        red, green, blue = (int(part) / 255 for part in re.findall(r"\d+", colour)[:3])
        linear = [
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
            for part in (red, green, blue)
        ]
        assert 1.05 / (np.dot([0.2126, 0.7152, 0.0722], linear) + 0.05) >= 4.5, colour


def test_focus_is_visible(results, browser):
    from selenium.webdriver.common.keys import Keys

    browser.get((results / "index.html").as_uri())
    body = browser.find_element("tag name", "body")
    body.send_keys(Keys.TAB)
    first = browser.switch_to.active_element
    assert first.text == "Skip to the results" and first.rect["x"] >= 0
    first.send_keys(Keys.TAB)
    link = browser.switch_to.active_element
    assert link.tag_name == "a" and link.value_of_css_property("outline-style") == "solid"


# ---------------------------------------------------------------------------------------------------------------- what is committed


@pytest.fixture
def repository(monkeypatch):
    """The committed results, to be read."""
    monkeypatch.setattr(artifacts, "RESULTS", artifacts.ROOT / "results")
    return artifacts.ROOT


def test_readme_has_the_verdicts_of_the_committed_ledger(repository):
    readme = (repository / "README.md").read_text()
    assert gallery.with_results(readme) == readme, "run `make gallery PROFILE=standard`"
    verdicts = pd.read_csv(repository / "results" / gallery.EVIDENCE / "tables" / "90_verdicts.csv")
    table = readme.split("<!-- verdicts -->")[1].split("<!-- end -->")[0].strip()
    head, *rows = (
        [cell.strip() for cell in line.strip("| ").split("|")]
        for line in table.splitlines()
        if "---" not in line
    )
    assert [row[0] for row in rows] == [*gallery.PAPERS.values(), "all"] and set(
        verdicts.verdict
    ) == set(head[1:-2])
    for (name, *cells), own in zip(
        rows,
        [*(verdicts[verdicts.paper == paper] for paper in gallery.PAPERS), verdicts],
        strict=True,
    ):
        for verdict, cell in zip(head[1:-2], cells, strict=False):
            found = own[own.verdict == verdict]
            assert cell == f"{len(found)}" + f" ({found.few_seeds.sum()})" * bool(
                found.few_seeds.any()
            ), (name, verdict)
        assert cells[-2:] == [str(own.inconclusive.sum()), str(len(own))], name
    assert gallery.with_results(readme.replace(f"| {len(verdicts)} |", "| 0 |")) == readme


def test_readme_says_of_how_many_seeds_each_compared_method_is(repository):
    readme = (repository / "README.md").read_text()
    listed = readme.split("<!-- runs -->")[1].split("<!-- end -->")[0]
    said = re.findall(r"(\d+) seeds? each of (.*?)\.(?= \d+ seed| A run)", listed)
    seeds = {label: int(number) for number, labels in said for label in labels.split("; ")}
    for method in ("vi_simsiam", "dino", "prosmin", "directpred"):
        stored = (repository / "results" / gallery.EVIDENCE / "metrics").glob(
            f"10_pretraining--{method}-cifar10-e40-seed?.csv"
        )
        assert seeds[plotting.method_style(method).label] == len(list(stored))
    assert (
        gallery.with_results(readme.replace(listed, "\n"))
        == readme
        == gallery.with_results(readme.replace(listed, "\n\nstale\n\n"))
    )


def test_readme_has_its_headlines_from_the_committed_ledger(repository, monkeypatch):
    readme = (repository / "README.md").read_text()
    ledger = pd.read_csv(
        repository / "results" / gallery.EVIDENCE / "tables" / "90_claims.csv"
    ).set_index(["id", "part"])
    for id, part in gallery.HEADLINES:
        row = ledger.loc[(id, part)]
        verdict = (
            f"{row.verdict} (inconclusive)"
            if row.verdict == "not reproduced" and "interval includes the bound" in row.reason
            else row.verdict
        )
        if not verdict.endswith("(inconclusive)") and (
            "Student" in row.reason or "another precision or seed" in row.reason
        ):
            verdict += " (open by its seeds)"
        told = re.search(
            rf"\| {re.escape(gallery._escape(part))} \|[^|]*\| (\S+) [^|]*\| {row.seeds:g} \| {re.escape(verdict)} \|",
            readme,
        )
        assert abs(float(told[1]) - row.ours) <= (row.ci_high - row.ci_low) / 40
    assert (
        gallery.with_results(readme.replace("| same direction |\n", "| reproduced |\n")) == readme
    )
    monkeypatch.setattr(gallery, "HEADLINES", (("VS2-1", "of no such part"),))
    with pytest.raises(ValueError, match="no part VS2-1, of no such part"):
        gallery.with_results(readme)


def test_committed_pages_link_to_committed_files():
    """A page of quick that is built beside notebooks' own pages, which git ignores, would link to them."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=artifacts.ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    folders = {str(parent) for path in listed for parent in Path(path).parents}
    pages = [
        path
        for path in listed
        if re.fullmatch(r"README\.md|(results|figures)/(\w+/)?(index\.html|README\.md)", path)
    ]
    assert {
        "README.md",
        "results/README.md",
        "results/quick/index.html",
        "results/standard/README.md",
    } <= set(pages)
    for page in pages:
        text = (artifacts.ROOT / page).read_text()
        links = LINKS.findall(text) + re.findall(r"\]\(([^)#:\s]+)[#)]", text)
        targets = {os.path.normpath(Path(page).parent / unquote(link)) for link in links}
        assert links and not targets - {*listed, *folders}, page


def test_hours_behind_each_claim_are_those_of_its_runs(repository):
    page = (repository / "results" / "README.md").read_text()
    assert page == gallery._hours(), "run `make gallery PROFILE=standard`"
    verdicts = pd.read_csv(
        repository / "results" / gallery.EVIDENCE / "tables" / "90_verdicts.csv"
    ).set_index("id")
    for id, row in verdicts[(verdicts.parts_tested > 0) & (verdicts.kind != "recipe")].iterrows():
        assert f"| [{id}]({gallery.EVIDENCE}/README.md#" in page and row.verdict in page
    hours = sum(config(f"vi_simsiam-cifar10-e40-seed{seed}")["seconds"] for seed in range(3)) / 3600
    assert re.search(rf"\[VS2-3\].*\| 3 \| 3 \| {hours:.1f} \|", page)


def test_a_claim_is_shown_by_a_part_that_decides_its_verdict(repository):
    folder = repository / "results" / gallery.EVIDENCE
    parts, verdicts = (
        pd.read_csv(folder / "tables" / name) for name in ("90_claims.csv", "90_verdicts.csv")
    )
    judged = parts.merge(verdicts[["id", "verdict"]], on=["id", "verdict"])
    decided = set(judged.id[~judged.part.str.contains(ledger.BEYOND, regex=False)])
    rows = re.findall(r"^\| (\w+-\d+) \|(.*)$", (folder / "README.md").read_text(), re.M)
    assert decided and decided <= {id for id, _ in rows}
    assert [id for id, row in rows if id in decided and ledger.BEYOND in row] == []


def test_the_lines_of_the_readme_run(repository, capsys):
    (lines,) = re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(), re.S)
    assert len(lines.split("\n\n")[0].splitlines()) + len(lines.split("\n\n")[1].splitlines()) == 6
    exec(lines, {})
    assert "torch.Size([8, " in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------------- the published set


def test_published_figures_belong_together(repository):
    folder, names = (
        repository / "figures",
        {path.stem for path in (repository / "figures").glob("[0-9][0-9]_*")},
    )
    assert len(names) > 10
    for name in sorted(names):
        record = artifacts.read_json(folder / f"{name}.json")
        assert (
            record["id"] == name
            and record["commit"]
            and not record["commit"].endswith("+")
            and name[:2] == record["notebook"][:2]
        )
        assert {path.name for path in folder.glob(f"{name}.*")} == {
            f"{name}.{kind}" for kind in (*gallery.PUBLISHED, "json")
        }
        assert record["sha256"] == {
            f"{name}.{kind}": artifacts.sha256(folder / f"{name}.{kind}")
            for kind in gallery.PUBLISHED
        }
        results = repository / "results" / record["profile"]
        assert (results / "figures" / f"{name}.csv").read_bytes() == (
            folder / f"{name}.csv"
        ).read_bytes(), f"{name}: run `make figures`"
        assert (
            artifacts.read_json(results / "figures" / f"{name}.json").items() <= record.items()
        ), f"{name}: run `make figures`"
        assert all((results / "runs" / run / "config.json").exists() for run in record["runs"])
        assert (
            record["runs"]
            or not record["inputs"]
            or all("/tables/" in path for path in record["inputs"])
        )
        drawn = (repository / "notebooks" / f"{record['notebook']}.ipynb").read_text()
        patterns = re.findall(rf"{name[:2]}_[\w{{}}]+", drawn)
        assert any(
            re.fullmatch(re.sub(r"{\w*}", r"\\w+", pattern), name) for pattern in patterns
        ), f"{record['notebook']} draws no {name}"


@pytest.fixture
def publishable(results, monkeypatch, tmp_path):
    """A copy of the small gallery as profile standard, and a figures folder with a stale figure in it."""
    folder = tmp_path / "repository" / "results" / "standard"
    shutil.copytree(results, folder)
    for path in (folder / "figures").glob("*.json"):
        artifacts.write_json(
            path,
            artifacts.read_json(path)
            | {"inputs": {}, "notebook": f"{path.stem[:2]}_some_notebook", "claims": ["VS2-3"]},
        )
    for name in ("simsiam-x", "vi_simsiam-cifar10-e40-seed0"):
        artifacts.write_json(
            folder / "runs" / name / "config.json", {"seconds": 90, "finished": True}
        )
    artifacts.write_json(folder / "run.json", {"seconds": 90})
    artifacts.write_text(folder / "metrics" / "10_pretraining--simsiam-x.csv", "a\n1\n")
    for name in ("30_gone.csv", "style.mplstyle"):
        artifacts.write_text(tmp_path / "repository" / "figures" / name, "old")
    monkeypatch.setattr(artifacts, "ROOT", tmp_path / "repository")
    monkeypatch.setattr(artifacts, "RESULTS", folder.parent)
    monkeypatch.setattr(artifacts, "commit", lambda: "abc")
    return folder


def test_publishing_replaces_the_set_and_names_its_runs(publishable, monkeypatch):
    published = artifacts.ROOT / "figures"
    shutil.copytree(publishable, publishable.with_name("quick"))
    assert len(gallery.publish_figures()) == 3  # of the better of two complete profiles
    assert not (published / "30_gone.csv").exists() and (published / "style.mplstyle").exists()
    record = artifacts.read_json(published / "30_roc.json")
    assert record["runs"] == ["vi_simsiam-cifar10-e40-seed0"] and record["profile"] == "standard"
    for kind in gallery.PUBLISHED:
        assert record["sha256"][f"30_roc.{kind}"] == artifacts.sha256(
            publishable / "figures" / f"30_roc.{kind}"
        )


def test_figures_are_of_commits_that_are_there(repository):
    git = ["git", "-C", str(repository), "rev-parse"]
    if (
        subprocess.run(
            [*git, "--is-shallow-repository"], capture_output=True, text=True
        ).stdout.strip()
        != "false"
    ):
        pytest.skip("no checkout with its whole history")
    paths = (*repository.glob("figures/*.json"), *repository.glob("results/*/figures/[0-9]*.json"))
    records = [artifacts.read_json(path, ("commit",)) for path in paths]
    named = {
        record[key].rstrip("+")
        for record in records
        for key in ("commit", "pictures_of")
        if key in record
    }
    assert {
        name
        for name in named
        if subprocess.run(
            [*git, "-q", "--verify", f"{name}^{{commit}}"], capture_output=True
        ).returncode
    } == set()


def test_vector_graphics_are_kept_and_linked_where_they_are_published(publishable):
    path = publishable / "figures" / "30_roc.json"
    assert list(gallery._figure(path, "standard")["files"]) == ["png", "csv", "json"], (
        "nothing is published yet"
    )
    gallery.publish_figures("standard")
    published = {
        kind: (artifacts.ROOT / "figures" / f"30_roc.{kind}").read_bytes()
        for kind in gallery.VECTORS
    }
    for kind in gallery.VECTORS:  # as in a fresh clone
        path.with_suffix(f".{kind}").unlink()
    files = gallery._figure(path, "standard")["files"]
    assert (
        list(files) == ["png", "pdf", "csv", "json"] and files["pdf"] == "../../figures/30_roc.pdf"
    )
    gallery.publish_figures("standard")
    assert {
        kind: (artifacts.ROOT / "figures" / f"30_roc.{kind}").read_bytes()
        for kind in gallery.VECTORS
    } == published
    path.with_suffix(".png").write_bytes(
        path.with_name("20_accuracy.png").read_bytes() + b"redrawn"
    )
    assert gallery._wanting("standard") == "lacks 30_roc.pdf"


def test_vector_graphics_of_profiles_are_not_kept_by_git():
    ignored = (artifacts.ROOT / ".gitignore").read_text()
    assert all(f"results/*/figures/*.{kind}\n" in ignored for kind in gallery.VECTORS)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "figures" / "30_roc.pdf").unlink(), "standard lacks 30_roc.pdf"),
        (lambda folder: (folder / "run.json").unlink(), "no run.json"),
        (
            lambda folder: (folder / "notebooks" / "20_some_notebook.ipynb").unlink(),
            "has not executed 20_some_notebook",
        ),
        (lambda folder: shutil.rmtree(folder / "runs" / "simsiam-x"), "has lost runs simsiam-x"),
        (
            lambda folder: artifacts.write_json(folder / "runs" / "simsiam-x" / "config.json", {}),
            "has unfinished runs simsiam-x",
        ),
        (lambda folder: shutil.rmtree(folder / "figures"), "standard has no figures"),
    ],
)
def test_incomplete_results_are_not_published(publishable, damage, message):
    damage(publishable)
    with pytest.raises(RuntimeError, match=message):
        gallery.publish_figures("standard")
    assert (artifacts.ROOT / "figures" / "30_gone.csv").exists()


def test_one_papers_part_of_a_profile_is_not_published_over_the_others(publishable):
    notebook = "60_vje_likelihood"
    record = artifacts.read_json(publishable / "figures" / "30_roc.json") | {
        "id": "60_roc",
        "notebook": notebook,
    }
    artifacts.write_json(artifacts.ROOT / "figures" / "60_roc.json", record)
    with pytest.raises(RuntimeError, match=f"standard has not executed {notebook}"):
        gallery.publish_figures("standard")
    artifacts.write_text(publishable / "notebooks" / f"{notebook}.ipynb", "{}")
    assert len(gallery.publish_figures("standard")) == 3, "executed, and it draws nothing now"


def test_uncommitted_changes_are_not_published(publishable, monkeypatch):
    monkeypatch.setattr(artifacts, "commit", lambda: "abc+")
    with pytest.raises(RuntimeError, match="uncommitted changes"):
        gallery.publish_figures("standard")


# ---------------------------------------------------------------------------------------------------------------- deviations
def test_the_page_of_deviations_is_what_notebooks_recipes_and_docstrings_say():
    page = gallery.deviations()
    assert (artifacts.ROOT / "results" / "DEVIATIONS.md").read_text() == page, (
        "build a gallery anew: python -m lib.pipeline.site standard"
    )
    for path in (artifacts.ROOT / "notebooks").glob("*.ipynb"):
        if "## Deviations" in path.read_text():
            assert f"### [{path.stem}](../notebooks/{path.name})\n\n- " in page
    own = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `lib.")]
    recipes = [
        line.split("`")[1]
        for line in page.split("## Recipes")[1].split("## Code")[0].splitlines()
        if line.startswith("| `")
    ]
    assert len(recipes) == (artifacts.ROOT / "settings" / "recipes.toml").read_text().count(
        "Deviation:"
    ) and {"simclr", "moco_v3"} <= set(recipes)
    assert "on CIFAR-10 App. B.9 has a temperature of 0.5; the projector's hidden layer" in page
    runs = {
        line.split("`")[1]: line
        for line in page.split("\n## Runs")[1].splitlines()
        if line.startswith("| `")
    }
    assert set(runs) == {run["method"] for run in settings.runs("standard") if run["epochs"]}
    assert (
        "optimizer sgd (lars)" in runs["barlow_twins"]
        and "dimension 256 (8192)" in runs["barlow_twins"]
        and "local_size" not in runs["simclr"]
    )
    assert {
        "lib.losses.simvae_loss",
        "lib.methods.simsiam.VISimSiam",
        "lib.networks.to_concentration",
    } <= set(own) and len(set(own)) == len(own)


def test_a_docstring_that_deviates_is_found_where_it_stands():
    source = '''
class Outer:
    """A sum. Deviation: it is a
    mean.

    More.
    """
    def inner(self):
        """Nothing said."""
    def other(self):
        """Deviation from Someone (2020), who takes a | b."""
'''
    assert gallery._said_to_deviate(ast.parse(source)) == [
        ("Outer", "it is a mean."),
        ("Outer.other", r"Deviation from Someone (2020), who takes a \| b."),
    ]


def test_a_page_shows_three_digits_and_every_whole_one():
    shown = {
        "0.0123456": "0.0123",
        "-0.98765": "-0.988",
        "1234.5678": "1235",
        "0.5": "0.5",
        "12.34": "12.34",
        "1e-05": "1e-05",
    }
    assert {cell: gallery._short(cell) for cell in shown} == shown


@pytest.mark.parametrize(
    "where, places",
    [
        ("Figures 5 right and 6", ["Figure 5", "Figure 6"]),
        ("§7, Fig. 7b", ["Figure 7"]),
        ("Table 5, Figure 2", ["Table 5", "Figure 2"]),
        ("Tables 2, 3 and 4", ["Table 2", "Table 3", "Table 4"]),
        ("§7, Figure 3b and c", ["Figure 3"]),
        ("Claims 4.3 and 4.7, Eq. 33, Table 1", ["Table 1"]),
        ("§6.1, App. E", []),
    ],
)
def test_the_tables_and_figures_that_a_claims_place_names(where, places):
    assert gallery.named_places(where) == places


def test_every_table_and_figure_of_the_papers_leads_to_ours():
    papers, folder = settings.read("papers"), artifacts.ROOT / "results" / "standard"
    for paper, numbers in {
        "vs1": (2, 9),
        "vs2": (3, 7),
        "simvae": (7, 10),
        "prosmin": (7, 4),
    }.items():
        entries = papers.pop(paper)
        wanted = [
            f"{kind} {number + 1}"
            for kind, count in zip(("Table", "Figure"), numbers, strict=True)
            for number in range(count)
        ]
        assert [entry["place"] for entry in entries] == wanted
        shown = [
            folder / "figures" / f"{id}.png" for entry in entries for id in entry.get("figures", ())
        ]
        shown += [
            folder / "tables" / f"{id}.csv" for entry in entries for id in entry.get("tables", ())
        ]
        assert [path.name for path in shown if not path.exists()] == [] and all(
            "figures" in entry or "tables" in entry for entry in entries
        )
        own = [claim["where"] for claim in ledger.claims().values() if claim["paper"] == paper]
        assert {place for where in own for place in gallery.named_places(where)} <= set(wanted)
    assert not papers
