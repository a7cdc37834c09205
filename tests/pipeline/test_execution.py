"""One job: its kernel, its stamp, and the cause that is named when it fails."""

import errno
import sys

import nbformat
import pytest

from lib.pipeline import cli, execution, jobs, notebooks
from lib.pipeline.jobs import Job
from lib.runs import store

NAME = "98_tiny"
KERNEL = {"name": "python3", "language": "python", "display_name": "Python 3"}


@pytest.fixture
def tiny_notebook(tmp_path, monkeypatch):
    """Write a notebook of one code cell, and return the job that runs it."""
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path)

    def write(source):
        parameters = nbformat.v4.new_code_cell("profile = 'quick'\ntrain_missing = False")
        parameters.metadata["tags"] = ["parameters"]
        cells = [parameters, nbformat.v4.new_code_cell(source)]
        notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL})
        nbformat.write(notebook, tmp_path / f"{NAME}.ipynb")
        return Job(NAME, NAME, {"profile": "smoke", "train_missing": True})

    yield write
    notebooks.cells.cache_clear()
    notebooks.declared_parameters.cache_clear()


def shown(path):
    """All text that the cells of an executed notebook printed."""
    cells = nbformat.read(path, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs)


def failure_of(job):
    with pytest.raises(RuntimeError) as failed:
        execution.execute(job)
    return str(failed.value)


def test_the_kernel_is_this_python_whatever_kernels_are_installed(
    tiny_notebook, tmp_path, monkeypatch
):
    spec = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    store.write_json(
        spec, {"argv": ["/bin/false"], "display_name": "Another", "language": "python"}
    )
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    path = execution.execute(tiny_notebook("import sys\nprint(sys.executable, train_missing)"))
    # as executed notebooks name paths
    executable = sys.executable.removeprefix(f"{store.ROOT}/")
    assert shown(path).split() == [executable, "True"]


def test_a_kernel_is_reached_through_no_port(tiny_notebook):
    """Other users of the machine reach a port, and another program may have taken it."""
    source = "import ipykernel.connect, json\n"
    source += "print(json.loads(ipykernel.connect.get_connection_info())['transport'])"
    assert shown(execution.execute(tiny_notebook(source))).strip() == "ipc"


def test_an_error_of_a_cell_is_named_whole(tiny_notebook):
    message = failure_of(tiny_notebook("raise ValueError('the cause\\nand what to do')"))
    assert f"{NAME} failed: ValueError: the cause and what to do" in message
    assert str(store.results_dir("smoke") / "failed" / f"{NAME}.ipynb") in message
    assert not list((store.results_dir("smoke") / "notebooks").glob("*.ipynb"))


def test_a_kernel_that_was_killed_is_named(tiny_notebook):
    message = failure_of(tiny_notebook("import os\nos.kill(os.getpid(), 9)"))
    assert "kernel died" in message and "JOBS=1" in message


def test_a_job_writes_the_stamp_that_is_waited_for(tmp_path, monkeypatch):
    """Sources edited while the jobs run must not leave Snakemake waiting for another stamp."""
    executed = []
    monkeypatch.setattr(execution, "execute", executed.append)
    job = jobs.jobs("smoke")[0]
    expected = tmp_path / f"{job.name}.0123456789ab"
    for _ in range(2):
        execution.run_job("smoke", "all", job.name, str(expected))
    assert expected.exists() and executed == [job]


def test_whatever_ends_a_job_names_it(monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(execution, "run_job", full)
    assert cli.main(["job", "10_pretraining--all", "--profile", "smoke"]) == 1
    output = capsys.readouterr().err
    assert output.startswith("10_pretraining--all failed: ") and "RESULTS_DIR" in output
