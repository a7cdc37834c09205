"""The jobs of a profile: which notebooks run with which parameters, and when one is done.

One job is one papermill run of one notebook. A job is done when its stamp exists. The name of the
stamp holds a hash of the notebook, of lib, of the settings, of its parameters and of the jobs that
it needs. So an edit of any of these runs the notebook again. A finished training is recognised by
its own run hash and is never repeated for such an edit.
"""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from lib.pipeline.notebooks import begin as begin  # notebooks call these two by this module
from lib.pipeline.notebooks import cells, computing, find_notebook
from lib.pipeline.notebooks import headless as headless
from lib.runs import settings, store

PAPERS = ("all", *settings.PAPERS)
# The jobs that measure what was trained: group -> papers whose parts of the suite it measures.
MEASURING = {
    "vi_simsiam": ("vs1", "vs2"),
    "simvae": ("simvae",),
    "prosmin": ("prosmin",),
    "vje": ("vje",),
}


@dataclass(frozen=True)
class Job:
    """One run of one notebook; needs: the names of the jobs that come before it."""

    name: str
    notebook: str
    parameters: dict = field(hash=False)
    needs: tuple[str, ...] = ()


def jobs(profile: str, paper: str = "all") -> list[Job]:
    """Every job of a profile and a paper, those that others need first."""
    settings.profile_settings(profile)
    if paper not in PAPERS:
        raise ValueError(f"Unknown paper {paper!r}; choose one of {list(PAPERS)}.")
    planned = _training_jobs(profile, paper)
    if not planned:
        return []
    planned += _measuring_jobs(profile, paper, tuple(job.name for job in planned))
    for entry in settings.notebooks(profile):
        if paper in ("all", *entry["papers"]):
            needed = {find_notebook(number) for number in entry["needs"]}
            needs = tuple(job.name for job in planned if job.notebook in needed)
            parameters = {"profile": profile} | computing(entry["name"])
            planned.append(Job(entry["name"], entry["name"], parameters, needs))
    return planned


def _training_jobs(profile: str, paper: str) -> list[Job]:
    notebook = settings.pipeline()["training"]
    planned = []
    for group, names in training_groups(profile, paper).items():
        parameters = {"profile": profile, "runs": " ".join(names), "train_missing": True}
        planned.append(Job(f"{notebook}--{group}", notebook, parameters))
    return planned


def _measuring_jobs(profile: str, paper: str, needs: tuple[str, ...]) -> list[Job]:
    notebook = settings.pipeline()["evaluation"]
    planned = []
    for group, papers in MEASURING.items():
        if paper == "all" or paper in papers:
            parameters = {"profile": profile, "papers": " ".join(papers), "train_missing": True}
            planned.append(Job(f"{notebook}--{group}", notebook, parameters, needs))
    return planned


def listed_jobs(profile: str, paper: str = "all") -> dict[str, Job]:
    """The jobs of a profile and a paper by their names."""
    return {job.name: job for job in jobs(profile, paper)}


def training_groups(profile: str, paper: str) -> dict[str, list[str]]:
    """The names of the runs that one job trains, by the name of the group.

    Each job costs the start of a kernel, so that a profile of short runs has few of them
    (``one_job_per`` in the settings: run, method, group or profile). With method and profile, runs
    of the common protocol are kept apart from others; searches of learning rates always are. Runs
    on a set that is not available are left out.
    """
    one_job_per = settings.plan(profile)["one_job_per"]
    absent_sets = settings.absent_sets(profile)
    groups: dict[str, list[str]] = {}
    listed = set()
    for compared_in in settings.GROUPS:  # of a run in several groups the first counts
        for run in settings.runs(profile, paper, compared_in):
            name = settings.run_name(run)
            if name not in listed and run["dataset"] not in absent_sets:
                group = _training_group(one_job_per, run, compared_in)
                groups.setdefault(group, []).append(name)
            listed.add(name)
    for run in settings.tuning_runs(profile, paper):
        groups.setdefault(f"tuning-{run['method']}", []).append(settings.run_name(run))
    return groups


def _training_group(one_job_per: str, run: dict, compared_in: str) -> str:
    """The name of the group that a run is trained in."""
    if one_job_per == "run":
        return settings.run_name(run)
    if one_job_per == "group":
        return compared_in
    group = run["method"] if one_job_per == "method" else "all"
    return group if compared_in == settings.PROTOCOL else f"{group}-apart"


# ------------------------------------------------------------------------- when a job is done
def stamp(job: Job, listed: dict[str, Job]) -> Path:
    """The empty file that says that this very job was done."""
    needs = "".join(stamp(listed[name], listed).name for name in job.needs)
    parameters = repr(sorted(job.parameters.items()))
    digest = store.sha256(source_hash(job.notebook) + parameters + needs)[:12]
    return stamp_folder(job.parameters["profile"]) / f"{job.name}.{digest}"


def stamp_folder(profile: str) -> Path:
    """Where the stamps of a profile lie, with Snakemake's log."""
    return store.results_dir(profile) / ".done"


def source_hash(notebook: str) -> str:
    """Hash of all that a notebook's numbers and figures depend on, data and parameters aside."""
    return store.sha256("".join(cell["source"] for cell in cells(notebook)) + _shared_hash())


@cache
def _shared_hash() -> str:
    """Hash of what every notebook depends on: lib, the settings and the style of figures."""
    files = [path for path in (store.ROOT / "lib").rglob("*") if path.suffix in (".py", ".j2")]
    files += [*(store.ROOT / "settings").glob("*.toml"), store.ROOT / "figures" / "style.mplstyle"]
    return store.sha256("".join(store.sha256(path) for path in sorted(files)))
