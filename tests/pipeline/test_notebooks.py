"""Every notebook is well formed and runs: all jobs of profile smoke, killed once."""

import re

import nbformat
import pytest

from lib.pipeline import notebooks
from lib.runs import settings, store
from tests.pipeline import browser, faults

PATHS = sorted(notebooks.NOTEBOOKS.glob("*.ipynb"))


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_settings_list_every_notebook():
    pipeline = settings.pipeline()
    listed = [pipeline["training"], pipeline["evaluation"]]
    listed += [entry["name"] for entry in settings.notebooks()]
    assert sorted(listed) == [path.stem for path in PATHS]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_has_no_outputs_and_trains_nothing_by_itself(path):
    nbformat.validate(nbformat.read(path, as_version=4))
    assert not any(cell.outputs or cell.execution_count for cell in code_cells(path))
    declared = notebooks.declared_parameters(path.stem)
    settings.profile_settings(declared["profile"])
    assert not declared.get("train_missing", False), "Run All shows stored results"


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """All jobs of profile smoke: killed once, then called again until they are done."""
    results = tmp_path_factory.mktemp("results")
    kill = faults.Kill(seconds=2.0, everything=True)
    return results, faults.reproduce_with_kills(results, [kill])


def test_all_jobs_are_done_after_a_kill(smoke):
    _, killed = smoke
    assert killed.done.returncode == 0, killed.done.stdout + killed.done.stderr
    assert killed.kills == 1 and killed.finished_before
    assert not killed.broken, "files with a final name that were not whole after the kill"
    assert not killed.rewritten, "a finished run was trained again"


def test_every_notebook_was_executed(smoke):
    results, _ = smoke
    executed = sorted((results / "smoke" / "notebooks").glob("*.ipynb"))
    assert {path.stem.split("--")[0] for path in executed} == {path.stem for path in PATHS}
    for path in executed:
        cells = code_cells(path)
        assert all(cell.execution_count for cell in cells), f"{path.stem}: cells did not run"
        outputs = [output for cell in cells for output in cell.outputs]
        assert not [output for output in outputs if output.output_type == "error"]
        assert str(store.ROOT) + "/" not in path.read_text(), "it names a path of this machine"


def test_a_second_call_does_nothing(smoke):
    results, _ = smoke
    executed = list((results / "smoke" / "notebooks").glob("*.ipynb"))
    written = {path: path.stat().st_mtime_ns for path in executed}
    done = faults.call(results)
    assert done.returncode == 0, done.stdout
    assert written == {path: path.stat().st_mtime_ns for path in executed}


def test_stored_results_are_shown_without_training(smoke):
    """Of one notebook, since each takes a while; test_faults.py shows them all."""
    results, _ = smoke
    assert not faults.not_shown(results, ["20_linear_and_knn_evaluation"])


# ----------------------------------------------------------------------------------- the site
def site_of(smoke):
    results, _ = smoke
    return results / "smoke" / "site"


def test_every_notebook_is_within_three_clicks_of_the_front_page(smoke):
    reached = browser.pages_within(site_of(smoke) / "index.html", clicks=3)
    assert {path.stem for path in PATHS} <= {page.stem for page in reached}


def test_every_link_of_the_site_leads_somewhere(smoke):
    for page in site_of(smoke).glob("*.html"):
        broken = [path for path in browser.local_targets(page) if not path.exists()]
        assert not broken, f"{page.name}: {broken}"


def test_notebook_and_front_page_count_the_same_verdicts(smoke):
    results, _ = smoke
    counts = store.read_csv(results / "smoke" / "tables" / "90_counts.csv")
    front = browser.text_of(site_of(smoke) / "index.html")
    for verdict, total in counts.set_index("paper").sum().items():
        assert re.search(rf"\b{total} (recipe )?{verdict}\b", front), verdict


@pytest.fixture
def chromium():
    window = browser.open_browser(1280)
    yield window
    window.quit()


def test_pages_in_a_browser(smoke, chromium):
    """Nothing overflows, pictures load, formulas are rendered."""
    for page in sorted(site_of(smoke).glob("[0-9i]*.html")):
        chromium.get(page.as_uri())
        chromium.execute_async_script(
            "const done = arguments[0];"
            "window.MathJax?.startup ? MathJax.startup.promise.then(done) : done();"
        )
        for width in (1280, 390):
            browser.set_width(chromium, width)
            needed = chromium.execute_script("return document.documentElement.scrollWidth")
            assert needed <= width + 1, f"{page.name} takes {needed} px of {width}"
        broken = chromium.execute_script(
            "return [...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
        )
        assert not broken, f"{page.name}: {broken}"
        raw = chromium.execute_script(
            "return [...document.querySelectorAll('.math')]"
            ".filter(m => !m.querySelector('mjx-container')).length"
        )
        assert raw == 0, f"{page.name} has {raw} formulas that are not rendered"


def test_search_and_dark_mode(smoke, chromium):
    chromium.get((site_of(smoke) / "search.html").as_uri() + "?q=κ")
    chromium.implicitly_wait(20)
    assert chromium.find_elements("css selector", "ul.search li a"), "κ is not found"
    chromium.get((site_of(smoke) / "32_kappa_as_confidence.html").as_uri())
    chromium.execute_script("document.documentElement.dataset.theme = 'dark'")
    picture = chromium.find_element("css selector", ".cell_output img")
    colour = picture.value_of_css_property("background-color")
    red, green, blue = map(float, re.findall(r"[\d.]+", colour)[:3])
    assert min(red, green, blue) > 180, f"dark lines on {colour}"
