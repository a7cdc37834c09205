"""Every notebook is well formed, and every notebook runs: the whole DAG in profile smoke, killed three times on the way."""

import ast
import random
import re
import subprocess
import sys

import nbformat
import pytest

from lib.evaluation import measure
from lib.pipeline import drift
from lib.pipeline import jobs as reproduction
from lib.runs import store as artifacts
from tests import faults

KILLS = 3
NOTEBOOKS = sorted(reproduction.NOTEBOOKS.glob("*.ipynb"))
FORBIDDEN = {
    r"rcParams": "styles live in figures/style.mplstyle",
    r"#[0-9a-fA-F]{6}\b": "colours live in lib.figures.charts.METHODS",
    r"\bsavefig\(": "use plotting.save_figure",
    r"[\"'](/home|/root|/tmp|/work|/Users|[A-Z]:\\\\)": "no absolute paths",
    r"filterwarnings": "warnings are to be seen",
    r"import \*": "no star imports",
}


def code_of(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == sorted(
        ["10_pretraining", *(entry["name"] for entry in reproduction.settings.notebooks())]
    ), "settings/experiments.toml and notebooks/ list different notebooks"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_lint_of_notebook(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = code_of(path)
    assert all(not cell.outputs and cell.execution_count is None for cell in code), (
        "strip the outputs: executed copies live in results/"
    )
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids) and all(
        cell_id.startswith(path.stem[:2]) for cell_id in ids
    ), "cell ids are <number>-<position>"
    lines = [sum(bool(line.strip()) for line in cell.source.splitlines()) for cell in code]
    assert max(lines) <= 25, f"the longest cell has {max(lines)} lines (25 at most)"
    assert sum(lines) <= 250, f"{sum(lines)} code lines (250 at most)"
    source = "\n".join(cell.source for cell in code)
    functions = [
        node.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)
    ]
    assert len(functions) <= 3, f"{functions}: what is shared or long belongs in lib"
    for pattern, reason in FORBIDDEN.items():
        assert not re.search(pattern, source), f"{re.search(pattern, source).group()!r}: {reason}"
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("#"), (
        "it opens with its question"
    )
    declared = reproduction.declared_parameters(path.stem)
    assert declared["profile"] == "quick" and declared["train_missing"] is False, (
        "Run All shows stored results of profile quick"
    )


def test_lint_by_ruff():
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "."],
        cwd=artifacts.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The whole DAG in profile smoke, killed three times on the way, then called again until it is done."""
    results = tmp_path_factory.mktemp("results")
    moments, _ = faults.random_moments(random.Random(1), KILLS, 20.0)
    found = faults.reproduce_with_kills(results, moments, [False, True, True])
    return found | {"results": results / "smoke", "environment": faults.environment(results)}


def status_of(smoke, monkeypatch):
    """The exit status that a complete call has to have; with other versions than the pins numbers may drift."""
    monkeypatch.setattr(artifacts, "RESULTS", smoke["results"].parent)
    return 0 if drift.compare("smoke").within.all() else reproduction.DRIFTED


def test_all_jobs_done_after_kills(smoke, monkeypatch):
    assert smoke["kills"] == KILLS and smoke["finished_before"], (
        "the calls were to be killed, the last one after the first trained run"
    )
    assert smoke["done"].returncode == status_of(smoke, monkeypatch), (
        smoke["done"].stdout + smoke["done"].stderr
    )
    assert not smoke["broken"], "files with a final name that were not whole after a kill"
    assert not smoke["rewritten"], "a finished run was trained again"
    assert "index.html" in smoke["done"].stdout


def test_numbers_are_as_expected(smoke, monkeypatch):
    """The drift gate over the run just made, as make reproduce prints it."""
    monkeypatch.setattr(artifacts, "RESULTS", smoke["results"].parent)
    table = drift.compare("smoke")
    assert table.within.all(), drift.report(table, "smoke")
    assert drift.report(table, "smoke") in smoke["done"].stdout


def test_every_notebook_was_executed(smoke):
    executed = sorted((smoke["results"] / "notebooks").glob("*.ipynb"))
    assert {path.stem.split("--")[0] for path in executed} == {path.stem for path in NOTEBOOKS}
    for path in executed:
        cells = code_of(path)
        counts = [cell.execution_count for cell in cells]
        assert None not in counts and len(counts) > 3, f"{path.stem} has cells that did not run"
        assert not [
            output for cell in cells for output in cell.outputs if output.output_type == "error"
        ], path.stem
        shown = [output.data for cell in cells for output in cell.outputs if "data" in output]
        assert not [data for data in shown if data.get("text/plain", "").startswith("<Figure")], (
            f"{path.stem} shows a figure as text alone"
        )
        assert path.with_suffix(".html").exists() and path.stat().st_size < 1_000_000
        assert str(artifacts.ROOT) + "/" not in path.read_text(), (
            "an executed notebook names a path of this machine"
        )
        assert not re.search(r'^"\s*<td', path.read_text(), re.MULTILINE), (
            "a row of a table is a line"
        )


def test_every_figure_is_complete(smoke):
    figures = sorted((smoke["results"] / "figures").glob("*.json"))
    numbers = {path.stem[:2] for path in figures}
    assert numbers == {path.stem[:2] for path in NOTEBOOKS}, (
        "every notebook draws at least one figure"
    )
    for path in figures:
        assert all(
            path.with_suffix(suffix).stat().st_size for suffix in (".pdf", ".svg", ".png", ".csv")
        )


def test_a_second_call_does_nothing(smoke, monkeypatch):
    stamps = {
        path: path.stat().st_mtime_ns for path in (smoke["results"] / "notebooks").glob("*.ipynb")
    }
    done = subprocess.run(
        faults.COMMAND, cwd=artifacts.ROOT, env=smoke["environment"], capture_output=True, text=True
    )
    assert done.returncode == status_of(smoke, monkeypatch), done.stdout
    assert stamps and {path: path.stat().st_mtime_ns for path in stamps} == stamps


def test_stored_results_are_shown_without_training(smoke):
    """Of three notebooks, since each takes a while; tests/test_faults.py shows them all."""
    assert not faults.not_shown(
        smoke["results"].parent,
        ["00_start_here", "20_linear_and_knn_evaluation", "34_kappa_and_dino_entropy"],
    )


def test_committed_results_stay_small():
    listed = subprocess.run(
        ["git", "ls-files", "-z", "results"],
        cwd=artifacts.ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\0")
    files = [artifacts.ROOT / name for name in listed if name and (artifacts.ROOT / name).exists()]
    weights = [path for path in files if path.parent.name == "encoders"]
    assert len(files) > 1000 and weights
    assert sum(path.stat().st_size for path in files if path not in weights) <= 40_000_000
    assert all(path.stat().st_size <= measure.MOST_ENCODER_BYTES for path in weights)
    assert all(path.stat().st_size <= 1_000_000 for path in files if path.suffix == ".ipynb")
    assert all(path.stat().st_size <= 250_000 for path in files if path.parent.name == "scores")
