"""One job: its notebook executed by papermill, its stamp written, its failure named by cause."""

import contextlib
import os
import sys
import tempfile
from pathlib import Path

from lib.pipeline import jobs, notebooks
from lib.pipeline.jobs import Job
from lib.runs import store

START_SECONDS = 600  # for a kernel to answer, on a machine with much else to do


def run_job(profile: str, paper: str, name: str, expected_stamp: str = "") -> None:
    """Run one job and write its stamp; nothing if it is done already.

    Another process at the same job is waited for. expected_stamp: the file that Snakemake waits
    for. Sources that were edited since it was named give the next call another stamp.
    """
    listed = jobs.listed_jobs(profile, paper)
    if name not in listed:
        raise ValueError(
            f"Profile {profile!r}, paper {paper!r} has no job {name!r}; its jobs are "
            f"{sorted(listed)}."
        )
    path = Path(expected_stamp) if expected_stamp else jobs.stamp(listed[name], listed)
    with store.exclusive(path.parent / f"{name}.lock"):
        if not path.exists():
            execute(listed[name])
            for earlier in path.parent.glob(f"{path.stem}.????????????"):  # with another digest
                earlier.unlink()
            store.write_text(path, "")


def execute(job: Job) -> Path:
    """Run one job here and return its executed notebook.

    A job that fails raises RuntimeError. What it stored stays, and its notebook is kept in
    results/<profile>/failed with the cell that failed.
    """
    import papermill  # slow to import
    from traitlets.config import Config

    notebooks.check_parameters(job.notebook, job.parameters)
    os.environ[notebooks.HEADLESS] = "1"  # the kernel inherits it
    path = store.results_dir(job.parameters["profile"]) / "notebooks" / f"{job.name}.ipynb"
    failed = path.parent.with_name("failed") / path.name
    # This environment's kernel, before another's of the same name.
    os.environ["JUPYTER_PATH"] = str(Path(sys.prefix, "share", "jupyter"))
    # The path of a socket has about 100 characters at most: a temporary folder may be too deep.
    sockets = tempfile.TemporaryDirectory(prefix="companion-", dir="/tmp")
    with store.atomic_path(path) as output, sockets as folder:
        # Sockets, as a port can be taken by another program and reached by every user.
        connection = {"transport": "ipc", "connection_file": f"{folder}/kernel.json"}
        try:
            papermill.execute_notebook(
                notebooks.NOTEBOOKS / f"{job.notebook}.ipynb",
                output,
                job.parameters,
                kernel_name="python3",
                config=Config({"KernelManager": connection}),
                progress_bar=False,
                cwd=str(store.ROOT),
                start_timeout=START_SECONDS,
            )
        except Exception as error:
            cause = cause_of_failure(error)
            kept = _keep_failed(output, failed)
            raise RuntimeError(f"{job.name} failed: {_training_of(job)}{cause}{kept}") from error
        clean_metadata(output)
    failed.unlink(missing_ok=True)
    return path


# ------------------------------------------------------------------------- failures
def cause_of_failure(error: Exception) -> str:
    """What ended a job, in one line: the error of its cell, or that its kernel died."""
    from nbclient.exceptions import DeadKernelError  # slow to import
    from papermill.exceptions import PapermillExecutionError

    if isinstance(error, DeadKernelError):
        return (
            "its kernel died. Where memory runs out, the system kills it: close other programs or "
            "run fewer jobs at once (JOBS=1), then call the same command again."
        )
    if isinstance(error, PapermillExecutionError):
        cause = f"{error.ename}: {error.evalue}" if error.evalue else error.ename
    else:
        cause = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return " ".join(cause.split())


def _keep_failed(output: Path, failed: Path) -> str:
    """Move the notebook of a failed job to its place; where it lies, in a sentence."""
    with contextlib.suppress(Exception):  # the first fault is reported, not a second one
        clean_metadata(output)
        failed.parent.mkdir(exist_ok=True)
        os.replace(output, failed)
        return f" See the last cells of {failed}."
    return ""


def _training_of(job: Job) -> str:
    """The run that a failed job was training, by its progress file, which is still there."""
    for name in job.parameters.get("runs", "").split():
        if (store.run_dir(job.parameters["profile"], name) / "progress.json").exists():
            return f"{name}: "
    return ""


# ------------------------------------------------------------------------- executed notebooks
def clean_metadata(path: Path) -> None:
    """Make an executed notebook the same on every machine.

    Paths of this machine, times and the kernel's version go. So does the text beside a richer form
    of the same output: it names an address in memory.
    """
    import nbformat  # slow to import

    notebook = nbformat.read(path, as_version=4)
    notebook.metadata = {
        "kernelspec": notebook.metadata.get("kernelspec", {}),
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        cell.metadata = {key: value for key, value in cell.metadata.items() if key == "tags"}
        for output in cell.get("outputs", ()):
            if len(output.get("data", {})) > 1:
                output.data.pop("text/plain", None)
    text = nbformat.writes(notebook)
    store.write_text(path, text.replace(str(store.ROOT) + "/", "") + "\n")
