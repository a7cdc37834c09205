"""Every notebook is well formed and runs: all jobs of profile smoke, killed once."""

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
    """All jobs of profile smoke: killed once, then called again, which completes them."""
    results = tmp_path_factory.mktemp("results")
    faults.kill_under_way(results, seconds=2.0)
    finished = faults.finished_runs(results)
    done = faults.call(results)
    assert done.returncode == 0, done.stdout + done.stderr
    after = faults.finished_runs(results)
    assert finished and finished.items() <= after.items(), "a finished run was trained again"
    return results / "smoke"


def test_every_notebook_was_executed(smoke):
    executed = sorted((smoke / "notebooks").glob("*.ipynb"))
    assert {path.stem.split("--")[0] for path in executed} == {path.stem for path in PATHS}
    for path in executed:
        cells = code_cells(path)
        assert all(cell.execution_count for cell in cells), f"{path.stem}: cells did not run"
        outputs = [output for cell in cells for output in cell.outputs]
        assert not [output for output in outputs if output.output_type == "error"]
        assert str(store.ROOT) + "/" not in path.read_text(), "it names a path of this machine"


def test_a_second_call_does_nothing(smoke):
    executed = list((smoke / "notebooks").glob("*.ipynb"))
    written = {path: path.stat().st_mtime_ns for path in executed}
    done = faults.call(smoke.parent)
    assert done.returncode == 0, done.stdout
    assert written == {path: path.stat().st_mtime_ns for path in executed}


@pytest.mark.long
def test_every_notebook_shows_stored_results_without_weights(smoke):
    assert not faults.not_shown(smoke.parent, [entry["name"] for entry in settings.notebooks()])


# ----------------------------------------------------------------------------------- the site
def test_every_link_of_the_site_leads_somewhere(smoke):
    for page in (smoke / "site").glob("*.html"):
        broken = [path for path in browser.local_targets(page) if not path.exists()]
        assert not broken, f"{page.name}: {broken}"


@pytest.fixture
def chromium():
    window = browser.open_browser(1280)
    yield window
    window.quit()


def test_pages_in_a_browser(smoke, chromium):
    """Nothing overflows, pictures load, formulas are rendered."""
    for page in sorted((smoke / "site").glob("[0-9i]*.html")):
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
