"""The gallery: what it lists, that every string is escaped, and, in a headless browser, that it is complete, fits and needs no network."""

import base64
import json
import re
import shutil

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest

from lib import artifacts, gallery, plotting

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None)
DRIVER = shutil.which("chromedriver")
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"
CAPTION = f"Concentration falls with blur & {HOSTILE}. " + "Each box shows the quartiles of one severity level here. " * 4
ALT = 'Five "boxes" stand <b>side by side</b>. Their medians fall.'
OTHER_ALT = 'A "curve" rises <b>fast</b>. It ends high.'


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A small gallery: three figures, a wide table, an executed notebook and a hostile string in every place that takes one."""
    with pytest.MonkeyPatch.context() as patch, plt.rc_context():
        patch.setattr(artifacts, "RESULTS", tmp_path_factory.mktemp("gallery") / "results")
        plotting.use_style()
        folder = artifacts.results_dir("smoke")
        source = folder / "metrics" / "30.csv"
        artifacts.write_text(source, "a\n1\n")
        for id, size in (("20_accuracy", plotting.TEXT), ("30_kappa", plotting.COLUMN), ("30_roc", plotting.SQUARE)):
            figure, ax = plt.subplots(figsize=size)
            data = pd.DataFrame({"x": np.arange(5.0), "kappa": 2.0 ** np.arange(5)})
            ax.plot(data["x"], data["kappa"])
            notebook = f"{id[:2]}_some_notebook"
            alt = OTHER_ALT if id == "30_roc" else ALT
            plotting.save_figure(figure, id, caption=CAPTION, alt=alt, data=data, profile="smoke", notebook=notebook, inputs=[source])
        wide = pd.DataFrame({f"column_number_{i}": [HOSTILE if i == 1 else "0.123456789"] * 20 for i in range(30)})
        artifacts.write_csv(folder / "tables" / "20_accuracy.csv", wide)
        artifacts.write_json(folder / "run.json", {"commit": "abc", "hardware": {"processor": HOSTILE, "cores": 2}, "minutes": 7.5})
        write_notebook(folder / "notebooks" / "30_some_notebook.ipynb")
        artifacts.write_text(folder / "notebooks" / "20_some_notebook.ipynb", "{}")
        gallery.notebook_html(folder / "notebooks" / "30_some_notebook.ipynb")
        gallery.build("smoke")
        yield folder


def write_notebook(path, extra=()):
    figure, ax = plt.subplots()
    ax.plot([1, 2])
    picture = plotting._render(figure, "png", {})
    plt.close(figure)
    table = pd.DataFrame(np.zeros((2, 40))).to_html()
    outputs = [
        nbformat.v4.new_output("stream", text="x" * 400),
        nbformat.v4.new_output("display_data", {"image/png": base64.b64encode(picture).decode()}, metadata={"image/png": {"alt": "A line."}}),
        nbformat.v4.new_output("display_data", {"image/png": base64.b64encode(picture).decode()}, metadata={"image/png": {"alt": OTHER_ALT}}),
        nbformat.v4.new_output("execute_result", {"text/html": table, "text/plain": "table"}),
        nbformat.v4.new_output("display_data", {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "a slider"}),
        nbformat.v4.new_output("display_data", {"application/javascript": "alert(3)", "text/plain": "a script"}),
        *extra,
    ]
    cells = [
        nbformat.v4.new_markdown_cell("# κ under <blur>\n\nSee $\\log C(\\kappa)$ and [a paper](https://arxiv.org/abs/2305.05276)."),
        nbformat.v4.new_code_cell("print('a long line', " + "1, " * 100 + ")", outputs=outputs, execution_count=1),
    ]
    artifacts.write_text(path, nbformat.writes(nbformat.v4.new_notebook(cells=cells)))


# ---------------------------------------------------------------------------------------------------------------- pages as text


def test_page_lists_everything_once(results):
    page = (results / "index.html").read_text()
    assert re.findall(r'<img src="figures/(\w+)\.png"', page) == ["20_accuracy", "30_kappa", "30_roc"]
    for id in ("20_accuracy", "30_kappa", "30_roc"):
        for kind in ("pdf", "svg", "csv"):
            assert f'href="figures/{id}.{kind}"' in page
    assert 'href="notebooks/30_some_notebook.html"' in page and 'href="notebooks/20_some_notebook.ipynb"' in page
    assert 'href="tables/20_accuracy.csv"' in page and "12 of 20 rows" in page and page.count("<tbody>") == 1
    assert page.index('id="n20"') < page.index('id="n30"') and "<dd>abc</dd>" in page and "cores 2" in page
    assert '<strong>Concentration falls with blur &amp; ' in page  # the claim is set bold
    readme = (results / "README.md").read_text()
    assert readme.count("](figures/30_roc.png)") == 1 and "](tables/20_accuracy.csv)" in readme


def test_vector_graphics_are_linked_where_git_keeps_them(results):
    path = results / "figures" / "30_roc.json"
    assert list(gallery._figure(path, "standard")["files"]) == ["png", "pdf", "svg", "csv", "json"]
    assert list(gallery._figure(path, "quick")["files"]) == ["png", "csv", "json"]
    ignored = (artifacts.ROOT / ".gitignore").read_text()
    assert all(f"results/{profile}/figures/*.{kind}\n" in ignored for profile in gallery.PICTURES_ALONE for kind in gallery.VECTORS)


def test_every_string_is_escaped(results):
    page, readme = (results / "index.html").read_text(), (results / "README.md").read_text()
    assert "<script" not in page and "onerror=alert(2)>" not in page and "<b>" not in page
    assert page.count("&lt;script&gt;") >= 3 + 12 + 1  # captions, table cells, hardware
    assert "<script" not in readme and "<img" not in readme


def test_links_lead_to_files(results):
    page, readme = (results / "index.html").read_text(), (results / "README.md").read_text()
    links = re.findall(r'(?:href|src)="([^"#:]+)"', page) + re.findall(r"\]\(([^)]+)\)", readme)
    assert len(links) > 20
    for link in links:
        assert (results / link).is_file(), link


def test_same_results_same_bytes(results, monkeypatch):
    monkeypatch.setattr(artifacts, "RESULTS", results.parent)
    before = [(results / name).read_bytes() for name in ("index.html", "README.md")]
    assert gallery.build("smoke") == results / "index.html"
    assert [(results / name).read_bytes() for name in ("index.html", "README.md")] == before


def test_changed_inputs_are_said(results, monkeypatch, tmp_path):
    copy = tmp_path / "results" / "smoke"
    shutil.copytree(results, copy)
    monkeypatch.setattr(artifacts, "RESULTS", copy.parent)
    assert "Stale" not in gallery.build("smoke").read_text()
    (copy / "metrics" / "30.csv").write_text("a\n2\n")
    assert gallery.build("smoke").read_text().count("Stale: results/smoke/metrics/30.csv") == 3
    (copy / "run.json").unlink()
    (copy / "metrics" / "30.csv").unlink()
    page = gallery.build("smoke").read_text()
    assert "Stale" not in page and f"<dd>{artifacts.commit()}</dd>" in page


def test_bad_results_are_errors(monkeypatch, tmp_path):
    monkeypatch.setattr(artifacts, "RESULTS", tmp_path)
    with pytest.raises(FileNotFoundError, match="make reproduce PROFILE=quick"):
        gallery.build("quick")
    (tmp_path / "quick" / "tables").mkdir(parents=True)
    assert "make reproduce PROFILE=quick" in gallery.build("quick").read_text()
    (tmp_path / "quick" / "tables" / "20_empty.csv").write_text("")
    with pytest.raises(ValueError, match="20_empty.csv is empty"):
        gallery.build("quick")
    (tmp_path / "half.ipynb").write_text('{"cells": [')
    with pytest.raises(ValueError, match="half.ipynb is truncated"):
        gallery.notebook_html(tmp_path / "half.ipynb")


def test_notebook_page(results, tmp_path):
    page = (results / "notebooks" / "30_some_notebook.html").read_text()
    assert "<script" not in page and "alert(3)" not in page and not gallery.FETCHES.search(page)
    assert "<title>κ under &lt;blur&gt;</title>" in page and 'alt="A line."' in page and "data:image/png;base64," in page
    assert r"\log C(\kappa)" in page and "a slider" in page and "a script" in page
    assert len(page) < 200_000
    (stored,) = re.findall(r'src="(\.\./figures/[^"]*)"', page)
    assert (results / "notebooks" / stored).resolve() == results.resolve() / "figures" / "30_roc.png"
    remote = nbformat.v4.new_output("display_data", {"text/html": '<img alt="x" src="https://example.org/x.png">'})
    write_notebook(tmp_path / "10_remote.ipynb", [remote])
    with pytest.raises(ValueError, match="from the network"):
        gallery.notebook_html(tmp_path / "10_remote.ipynb")


# ---------------------------------------------------------------------------------------------------------------- pages in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if not (BROWSER and DRIVER):
        pytest.skip("no browser: install chromium and chromium-driver (or Google Chrome and chromedriver) to run this test")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking", "--no-first-run",
        "--disable-sync", "--disable-component-update", "--disable-default-apps", "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={tmp_path_factory.mktemp('browser')}",
    ):  # fmt: skip
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
    assert len(pictures) == (3 if page == "index.html" else 2)
    for source, natural, alt, shown in pictures:
        assert natural > 0, f"{source[:80]} did not load"
        assert alt and 0 < shown <= width
    inner, room, needed = browser.execute_script("const e = document.documentElement; return [innerWidth, e.clientWidth, e.scrollWidth]")
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
    requests = [request["request"]["url"] for request in sent if request["documentURL"].startswith("file:")]  # not the browser's own start page
    assert requests and all(url.startswith(("file:", "data:")) for url in requests), requests
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


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
