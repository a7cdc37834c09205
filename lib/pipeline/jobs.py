"""From settings/runs.toml to a run of the whole companion: the jobs, their hashes, the checks before them and the bar over them.

One job is one papermill run of one notebook with one set of parameters. A job is done when its stamp exists; the stamp's name holds a hash of the
notebook, of every lib module it imports, of the settings files, of its parameters and of the jobs it needs. So an edit of any of these, of a
comment too, executes the notebook again; a finished pretraining run is recognised by its own run hash and never trained again, whatever is edited
around it; its measures are taken again when the code that takes them is edited (protocol.is_measured).
"""

import argparse
import ast
import contextlib
import errno
import math
import os
import pkgutil
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import NamedTuple, TextIO

import psutil
from tqdm import tqdm

from lib.pipeline import forkserver, sources
from lib.runs import settings
from lib.runs import store as artifacts

NOTEBOOKS = artifacts.ROOT / "notebooks"
START_SECONDS = 600  # for a kernel to answer, on a machine with much else to do
THREADS = 1  # of a job: two small networks side by side train faster than one after the other on two threads each
CONTAINER = Path("/sys/fs/cgroup")  # where Linux tells a container its limits
JOB_BYTES = (
    3 * 2**29
)  # of memory that a job at once may take; profile quick's largest, with another, took 2.8 GiB
EXECUTOR_PLUGIN = (
    "snakemake_executor_plugin_"  # how Snakemake finds its executors: packages of this name
)
RETRIES = (
    2  # of a job on a cluster: each has twice the memory of the one before, and as much time again
)
INTERRUPTED = 130  # exit status, as a shell has it
TO_CONTINUE = "Interrupted. Call the same command again to continue."
DRIFTED = (
    3  # exit status of a reproduction that is complete and whose numbers are not those expected
)
PAPERS = ("all", *settings.PAPERS)
# Notebooks that put images through a network; the others read stored numbers, and a GPU given to them would idle.
ON_GPU = (
    "01_ssl_as_inference",
    "10_pretraining",
    "21_semi_supervised_evaluation",
    "30_kappa_distributions",
    "31_kappa_and_augmentation",
    "33_kappa_closed_form",
    "36_kappa_across_data_sets",
    "40_simvae_content_and_style",
    "41_simvae_reconstruction_and_generation",
    "42_simvae_ablations",
    "43_simvae_as_ssl_model",
    "44_simvae_and_collapse",
    "50_prosmin_calibration_and_shift",
    "51_prosmin_low_shot_and_transfer",
    "52_prosmin_ablations",
    "60_vje_likelihood",
    "70_your_own_images",
)


class Job(NamedTuple):
    name: str
    notebook: str
    parameters: dict
    needs: tuple[str, ...] = ()


# ---------------------------------------------------------------------------------------------------------------- notebooks and parameters
def find_notebook(name: str) -> str:
    """The full name of a notebook given by its name or its number: "10" -> "10_pretraining"."""
    names = sorted(path.stem for path in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    found = [stem for stem in names if stem == name or stem.split("_")[0] == str(name).zfill(2)]
    if len(found) != 1:
        raise ValueError(f"No notebook {name!r}; the notebooks are {names}.")
    return found[0]


@cache
def cells(notebook: str) -> list[dict]:
    """The notebook's cells with their sources as text. Read as the JSON that it is: nbformat takes seconds to import, and every process would."""
    read = artifacts.read_json(NOTEBOOKS / f"{notebook}.ipynb")["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in read]


@cache
def declared_parameters(notebook: str) -> dict:
    """Names and defaults in the notebook's cell tagged ``parameters``; it may hold literals only."""
    tagged = [cell for cell in cells(notebook) if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise ValueError(
            f"Notebook {notebook} has {len(tagged)} cells tagged 'parameters'; it must have one."
        )
    return {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(tagged[0]["source"]).body
    }


def check_parameters(notebook: str, parameters: dict) -> dict:
    """The parameters, if the notebook declares each with that type and its figures can draw the methods named; else ValueError, before it runs."""
    from lib import methods
    from lib.figures import charts as plotting

    declared = declared_parameters(notebook)
    for name, value in parameters.items():
        if name not in declared:
            raise ValueError(
                f"Notebook {notebook} has no parameter {name!r}; its parameters are {declared}."
            )
        settings.same_type(name, value, declared[name], f"{notebook}: parameter")
    if "profile" in parameters:
        settings.profile_settings(parameters["profile"])
    runs = parameters.get("runs", "").split()
    for method in dict.fromkeys(
        [name.split("-")[0] for name in runs] or filter(None, [parameters.get("method")])
    ):
        settings.check_recipe(method)
        methods.check_known(method)
        plotting.method_style(method)
    return parameters


def begin(notebook: str, namespace: dict) -> None:
    """First call of every notebook: refuse parameters that the notebook does not declare (papermill itself only warns), load the style."""
    import matplotlib.pyplot as plt  # slow to import

    from lib.figures import charts as plotting

    given = {
        name: value
        for name, value in namespace.items()
        if isinstance(value, (str, int, float, bool, list, dict))
    }
    given = {
        name: value
        for name, value in given.items()
        if not name.startswith("_") and name not in ("In", "Out", "NOTEBOOK")
    }
    names = namespace.setdefault(
        "_parameters", list(given)
    )  # called again, it would take the notebook's own variables for parameters
    check_parameters(notebook, {name: given[name] for name in names if name in given})
    plotting.use_style()
    plt.switch_backend(
        "agg"
    )  # a figure is shown when it is saved, with its caption, and not half drawn at the end of every cell


def headless() -> bool:
    """Whether a job runs this notebook, so that nobody is there to move anything."""
    return "COMPANION_HEADLESS" in os.environ


def parse_parameters(text: str, notebook: str) -> dict:
    """ "method=simsiam seed=1" -> {"method": "simsiam", "seed": 1}, typed as the notebook declares them."""
    declared, parsed = declared_parameters(notebook), {}
    try:
        items = shlex.split(text)
    except ValueError as error:
        raise ValueError(
            f'{text!r} has an unclosed quotation mark ({error}); write PARAMS="method=simsiam seed=1".'
        ) from error
    for item in items:
        name, sign, value = item.partition("=")
        if not sign:
            raise ValueError(f'{item!r} is not name=value; write PARAMS="method=simsiam seed=1".')
        if name == "profile" in parsed:
            raise ValueError("Give the profile once, as PROFILE=smoke and not in PARAMS.")
        if name in parsed:
            raise ValueError(f"Parameter {name!r} is there twice, in {text!r}; give it once.")
        parsed[name] = value
        if not isinstance(declared.get(name), str):
            with contextlib.suppress(ValueError, SyntaxError):
                parsed[name] = ast.literal_eval(value)
    _check_values(notebook, check_parameters(notebook, parsed))
    return parsed


def _check_values(notebook: str, parameters: dict) -> None:
    """ValueError for a value that the notebook would stop at, or pass over, once its stored copy is gone; a default may stand for "as usual"."""
    given = {
        name: value
        for name, value in parameters.items()
        if value != declared_parameters(notebook)[name]
    }
    for name, value in given.items():
        if type(value) in (int, float) and not 0 <= value < float("inf"):
            raise ValueError(
                f"Parameter {name!r} of {notebook} is {value}; it must be finite and 0 or more."
            )
    if "dataset" in given:
        from lib.data import sources as data  # slow to import

        data.check_name(given["dataset"])
    if "runs" in given:
        settings.find_runs(given["runs"].split(), given.get("profile", "quick"))


# ---------------------------------------------------------------------------------------------------------------- jobs
def jobs(profile: str, paper: str = "all") -> list[Job]:
    """Every job of a profile and a paper, those that others need first; without runs on settings.absent_sets."""
    settings.profile_settings(profile)
    if paper not in PAPERS:
        raise ValueError(f"Unknown paper {paper!r}; choose one of {list(PAPERS)}.")
    grouping = settings.plan(profile)["one_job_per"]
    groups: dict[str, list[str]] = {}
    compared = {settings.run_name(run) for run in settings.runs(profile, paper, settings.PROTOCOL)}
    absent = settings.absent_sets(profile)
    for run in settings.runs(profile, paper):
        if run["dataset"] in absent:
            continue
        name = settings.run_name(run)
        own = run["method"] if name in compared else f"{run['method']}-apart"
        half = "all" if name in compared else "all-apart"
        groups.setdefault({"run": name, "method": own, "profile": half}[grouping], []).append(name)
    for run in settings.tuning_runs(profile, paper):
        groups.setdefault(f"tuning-{run['method']}", []).append(settings.run_name(run))
    listed = [
        Job(
            f"{artifacts.MEASURED_BY}--{group}",
            artifacts.MEASURED_BY,
            {"profile": profile, "runs": " ".join(names), "train_missing": True},
        )
        for group, names in groups.items()
    ]
    for entry in settings.notebooks() if listed else []:
        if paper != "all" and paper not in entry["papers"]:
            continue
        needed = {find_notebook(number) for number in entry["needs"]}
        needs = tuple(job.name for job in listed if job.notebook in needed)
        listed.append(
            Job(entry["name"], entry["name"], {"profile": profile, "train_missing": True}, needs)
        )
    return listed


@cache
def source_hash(notebook: str) -> str:
    code = "\n".join(cell["source"] for cell in cells(notebook) if cell["cell_type"] == "code")
    files = sources.source_files(code)
    judges = (
        artifacts.ROOT / "lib" / "claims" / "ledger.py" in files
    )  # nobody else reads the rules, and only the gallery where the papers' figures are
    unread = {"papers.toml"} if judges else {"papers.toml", "claims.toml"}
    files += [
        path
        for path in sorted((artifacts.ROOT / "settings").glob("*.toml"))
        if path.name not in unread
    ]
    files.append(artifacts.ROOT / "figures" / "style.mplstyle")
    files += [artifacts.ROOT / "lib" / "pipeline" / "own_images.html.j2"] * (
        artifacts.ROOT / "lib" / "pipeline" / "score.py" in files
    )
    return artifacts.sha256(
        "\n".join(cell["source"] for cell in cells(notebook))
        + "".join(artifacts.sha256(path) for path in files)
    )


def stamp(job: Job, listed: dict[str, Job]) -> Path:
    """The empty file that says this very job was done."""
    needs = "".join(stamp(listed[name], listed).name for name in job.needs)
    digest = artifacts.sha256(
        source_hash(job.notebook) + repr(sorted(job.parameters.items())) + needs
    )[:12]
    return artifacts.results_dir(job.parameters["profile"]) / ".done" / f"{job.name}.{digest}"


def rule_name(job: Job) -> str:
    """The job's name in the letters that Snakemake allows."""
    return job.name.replace("-", "_").replace(".", "_")


# ---------------------------------------------------------------------------------------------------------------- running
def execute(job: Job) -> Path:
    """Run one job here with papermill. One that fails raises RuntimeError, leaves what is stored, and is kept in results/<profile>/failed."""
    import papermill

    from lib.pipeline import site as gallery

    check_parameters(job.notebook, job.parameters)
    os.environ["COMPANION_HEADLESS"] = "1"  # the kernel inherits it
    path = artifacts.results_dir(job.parameters["profile"]) / "notebooks" / f"{job.name}.ipynb"
    failed = path.parent.with_name("failed") / path.name
    # In /tmp: the path of a socket has about 100 characters at most, and that of another temporary folder can be longer.
    with (
        artifacts.atomic_path(path) as output,
        tempfile.TemporaryDirectory(prefix="companion-", dir="/tmp") as folder,
    ):
        try:
            papermill.execute_notebook(
                NOTEBOOKS / f"{job.notebook}.ipynb",
                output,
                job.parameters,
                kernel_name="python3",
                progress_bar=False,
                cwd=str(artifacts.ROOT),
                kernel_manager_class=_kernel_manager(folder),
                start_timeout=START_SECONDS,
            )
        except Exception as error:
            with contextlib.suppress(Exception):  # of two faults the first is told
                clean_metadata(output)
                failed.parent.mkdir(exist_ok=True)
                os.replace(output, failed)
            raise RuntimeError(
                f"{job.name} failed: {_training_of(job)}{_said_by(error)} Look at the last cells of {failed}."
            ) from error
        clean_metadata(output)
    failed.unlink(missing_ok=True)
    gallery.notebook_html(path)
    return path


def _kernel_manager(folder: str) -> type:
    """The usual manager of kernels, but that a kernel is forked where a fork server listens, and that it is reached through sockets in a folder.

    Not through ports: one that was free when it was chosen may be taken when the kernel asks for it, and every user of the machine can reach it.
    """
    from jupyter_client.manager import AsyncKernelManager  # slow to import

    class KernelManager(AsyncKernelManager):
        def __init__(self, **options):
            super().__init__(
                **options, transport="ipc", connection_file=os.path.join(folder, "kernel.json")
            )

        def format_kernel_cmd(self, extra_arguments=None) -> list[str]:
            words = super().format_kernel_cmd(extra_arguments)
            module = words.index("-m") + 1
            return [
                *words[:module],
                "lib.pipeline.forkserver",
                "run",
                "ipykernel.kernelapp:launch_new_instance",
                *words[module + 1 :],
            ]

    return KernelManager


def _training_of(job: Job) -> str:
    """The run that a failed job was training: its progress file is still there."""
    runs = [
        artifacts.run_dir(job.parameters["profile"], name)
        for name in job.parameters.get("runs", "").split()
    ]
    return "".join(f"{run.name}: " for run in runs if (run / "progress.json").exists())


def _said_by(error: Exception) -> str:
    from nbclient.exceptions import DeadKernelError

    if isinstance(error, DeadKernelError) or str(error).startswith("Kernel died"):
        return "Its kernel died, as it does when memory runs out: close other programs, or run fewer jobs at once (JOBS=1), and call it again."
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def clean_metadata(path: Path) -> None:
    """Drop from an executed notebook what differs between machines and runs (paths, times, the kernel's version), and text that is there as HTML or
    Markdown.

    A row of a table is a line, and what shows a notebook has a style for tables: with one in each, and a line for each cell, tables of HTML
    would take a tenth of all notebooks.
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
            data = output.get("data", {})
            if {"text/html", "text/markdown"} & set(data):
                data.pop("text/plain", None)
            if "text/html" in data:
                data["text/html"] = re.sub(
                    r"\n\s*(?=<t[dh]\b|</tr>)|(?s:<style scoped>.*?</style>\n)|(?m:^ +)",
                    "",
                    data["text/html"],
                )
    text = re.sub(
        "(?m)^ +", "", nbformat.writes(notebook)
    )  # the spaces before its lines are a fourteenth of the file
    artifacts.write_text(path, text.replace(str(artifacts.ROOT) + "/", "") + "\n")


def run_job(profile: str, paper: str, name: str, asked: str = "") -> None:
    """One job of the DAG and its stamp; at once if it is done, after the other process if another is at it.

    asked: the stamp that whoever planned the DAG waits for; sources edited since then give the next call another one, and it runs the job again.
    """
    listed = {job.name: job for job in jobs(profile, paper)}
    if name not in listed:
        raise ValueError(
            f"Profile {profile!r}, paper {paper!r} has no job {name!r}; its jobs are {sorted(listed)}."
        )
    path = Path(asked) if asked else stamp(listed[name], listed)
    with artifacts.exclusive(path.parent / f"{name}.lock"):
        if path.exists():
            return
        execute(listed[name])
        sources.write_stamp(path)


def executor_options(executor: str, cores: int, gpus: int) -> list[str]:
    """Snakemake's options for where the jobs run; ValueError or FileNotFoundError, before any work, if they cannot run there."""
    if not executor and gpus:
        raise ValueError(
            f"GPUS={gpus} asks a cluster for GPUs: add EXECUTOR=slurm. On this machine a GPU that torch finds is used without asking."
        )
    if not executor:
        return ["--cores", str(cores)]
    plugins = [
        module.name for module in pkgutil.iter_modules() if module.name.startswith(EXECUTOR_PLUGIN)
    ]
    executors = sorted(
        ["local", "dryrun", "touch"]
        + [name.removeprefix(EXECUTOR_PLUGIN).replace("_", "-") for name in plugins]
    )
    if executor not in executors:
        raise ValueError(
            f"EXECUTOR={executor} is none that Snakemake has here; choose one of {', '.join(executors)}, or leave it out to run here."
        )
    # A file written on another machine may be seen late here; what a job printed there is shown in the log here when it fails.
    options = [
        "--executor",
        executor,
        "--jobs",
        str(cores),
        "--latency-wait",
        "60",
        "--show-failed-logs",
        "--retries",
        str(RETRIES),
    ]
    if executor == "slurm":
        if not shutil.which("sbatch"):
            raise FileNotFoundError(
                "EXECUTOR=slurm found no sbatch on the PATH: call it where you submit jobs, or leave EXECUTOR out to run here."
            )
        options += ["--slurm-init-seconds-before-status-checks", "10"]
        # Without accounting sacct is installed and fails; the plugin would ask it all the same, and wait for ever.
        if (
            shutil.which("sacct")
            and subprocess.run(["sacct", "--starttime", "now"], capture_output=True).returncode
        ):
            options += ["--slurm-status-command", "squeue"]
    return options


def usable_cores() -> int:
    """Cores that this process and its container may use, but no more than there is memory for that many jobs (JOB_BYTES); at least one."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    memory = min(
        os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), _container_limit("memory.max")
    )
    return max(1, int(min(cores, _container_limit("cpu.max"), memory // JOB_BYTES)))


def _container_limit(name: str) -> float:
    """A limit of the container that this process runs in (cgroup v2): cores of "cpu.max", bytes of "memory.max"; infinite where there is none."""
    try:
        limit, *period = (CONTAINER / name).read_text().split()
    except (OSError, ValueError):
        return math.inf
    return math.inf if limit == "max" else int(limit) / int(*period or (1,))


def reproduce(
    profile: str, paper: str, executor: str = "", cores: int | None = None, gpus: int = 0
) -> int:
    """Drive the Snakefile: a bar over all jobs, one per training under way, then the gallery. Returns Snakemake's status, INTERRUPTED or DRIFTED."""
    cores = max(1, cores or usable_cores())
    where = executor_options(executor, cores, gpus)
    listed = jobs(profile, paper)
    by_name = {job.name: job for job in listed}
    for job in listed:
        check_parameters(job.notebook, job.parameters)
    stamps = {job.name: stamp(job, by_name) for job in listed}
    folder = artifacts.results_dir(profile)
    artifacts.check_writable(folder)
    log_path = folder / ".done" / "snakemake.log"
    log_path.parent.mkdir(exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        str(artifacts.ROOT / "Snakefile"),
        "--directory",
        str(artifacts.ROOT),
        "--config",
        f"profile={profile}",
        f"paper={paper}",
        f"gpus={gpus}",
        "--keep-going",
        "--rerun-triggers",
        "mtime",
        "--nolock",
        "--rerun-incomplete",
        *where,
    ]
    started = time.perf_counter()
    already = sum(path.exists() for path in stamps.values())
    print(
        f"{len(listed)} jobs, profile {profile}, paper {paper}; {already} already done. Log: {_shown(log_path)}"
    )
    for name in settings.absent_sets(profile):
        print(
            f"Left out are runs on {name}, which nothing fetches: put it in {artifacts.default_data_dir() / name}. What is stored of them counts."
        )
    for reason in _not_to_be_had((job for job in listed if not stamps[job.name].exists()), profile):
        print(f"Jobs that need this set will fail, the others go on: {reason}")
    busy = f"Another make reproduce PROFILE={profile} is running; wait for it, or stop it first."
    with artifacts.exclusive(folder / ".done" / "reproduce.lock", busy), open(log_path, "w") as log:
        artifacts.remove_unfinished(folder)
        if not executor and already < len(listed) and forkserver.is_possible():
            command = [sys.executable, "-m", "lib.pipeline.forkserver", "serve", *command]
        status, peak = _run_watched(
            command, log, stamps, folder, env=os.environ | thread_limits(THREADS)
        )
    if status is None:
        return INTERRUPTED
    missing = [name for name, path in stamps.items() if not path.exists()]
    if status or missing:
        print(f"Not done: {', '.join(missing)}.")
        # slurmstepd: a job that Slurm ended, for its time or memory, says nothing itself.
        for line in [
            line
            for line in log_path.read_text().splitlines()
            if "failed:" in line or "slurmstepd: error:" in line
        ][:10]:
            print("  " + line.strip())
        print(f"The log is {_shown(log_path)}.")
        if shutil.disk_usage(folder).free < artifacts.FREE_BYTES:
            print(f"{folder} is full. {artifacts.NEXT_STEP}")
        else:
            print("What is done stays done: call the same command again.")
        return status or 1
    _record_run(profile, paper, cores, time.perf_counter() - started, peak)
    from lib.pipeline import site as gallery  # slow to import

    print(f"Done. Open the gallery: {_shown(gallery.build(profile))}")
    return _compare_with_expected(profile, paper)


def _not_to_be_had(waiting: Iterable[Job], profile: str) -> list[str]:
    """Why data sets that these jobs need cannot be loaded (protocol.missing_sets)."""
    from lib.evaluation import measure as protocol  # slow to import

    names = [name for job in waiting for name in job.parameters.get("runs", "").split()]
    return protocol.missing_sets(settings.find_runs(names, profile))


def _compare_with_expected(profile: str, paper: str) -> int:
    """Print how far the numbers are from the expected ones; DRIFTED where one is not within its tolerance."""
    from lib.pipeline import drift

    if not drift.has_expected(profile):
        return 0
    table = drift.compare(profile, whole=paper == "all")
    print(drift.report(table, profile))
    return 0 if table.within.all() else DRIFTED


def thread_limits(number: int) -> dict[str, str]:
    """What numpy and torch look at, when they are imported, for the number of threads."""
    return {"OMP_NUM_THREADS": str(number), "MKL_NUM_THREADS": str(number)}


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _record_run(profile: str, paper: str, cores: int, seconds: float, peak_memory: int) -> None:
    """results/<profile>/run.json: how long all trainings took, and of all calls the longest, since one that finds everything done takes seconds: what
    it ran, where, and the most memory that all its processes held."""
    trained = {
        config["run"]: config["seconds"]
        for config in artifacts.run_configs(profile).values()
        if config.get("finished")
    }
    call = {
        "profile": profile,
        "paper": paper,
        "cores": cores,
        "seconds": round(seconds, 1),
        "peak_memory_gib": round(peak_memory / 2**30, 2),
        "training_seconds": trained,
        **artifacts.provenance(),
    }
    path = artifacts.results_dir(profile) / "run.json"
    earlier = artifacts.read_json(path) if path.exists() else {}
    artifacts.write_json(
        path,
        (earlier if earlier.get("seconds", 0) > call["seconds"] else call)
        | {"training_seconds": trained},
    )


def memory_of(process: int) -> int:
    """Bytes held by a process and all it started; what several share counts once (on Linux, elsewhere it counts for each)."""
    total = 0
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(process)
        for member in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.Error):
                total += getattr(
                    member.memory_full_info() if sys.platform == "linux" else member.memory_info(),
                    "pss",
                    member.memory_info().rss,
                )
    return total


def _run_watched(
    command: list[str], log: TextIO, stamps: dict[str, Path], folder: Path, **options
) -> tuple[int | None, int]:
    """Run a command under the bars of _watch: its exit status, None if it was interrupted, and the most memory it held.

    Being asked to end, or losing the terminal, is an interruption too: trainings would go on unseen. What nohup ignores stays ignored.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    streams = {"stdout": log, "stderr": subprocess.STDOUT}
    process = subprocess.Popen(
        command, **streams, start_new_session=True, preexec_fn=forkserver.end_with_parent, **options
    )
    try:
        peak = _watch(process, stamps, folder)
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGINT)
        process.wait()
        print(TO_CONTINUE)
        return None, 0
    return process.returncode, peak


def _watch(process: subprocess.Popen, stamps: dict[str, Path], folder: Path) -> int:
    """Draw the bars until the process ends: all jobs, and every training that writes a progress file. Returns the peak of memory_of in bytes."""
    peak, looked = 0, 0.0
    bar = tqdm(total=len(stamps), desc="all jobs", unit="job", position=0, disable=not stamps)
    running: dict[str, tqdm] = {}
    while True:
        finished = process.poll() is not None
        bar.n = sum(path.exists() for path in stamps.values())
        bar.refresh()
        states = {}
        for path in (folder / "runs").glob("*/progress.json"):
            with contextlib.suppress(FileNotFoundError, ValueError):
                states[path.parent.name] = artifacts.read_json(path)
        for name, state in states.items():
            if name not in running:
                running[name] = tqdm(
                    total=state["steps"],
                    desc=state["run"],
                    unit="step",
                    position=len(running) + 1,
                    leave=False,
                )
            running[name].n = state["step"]
            running[name].set_postfix(
                {"images/s": state["images_per_second"], "loss": state["loss"]}
            )
        for name in set(running) - set(states):
            running.pop(name).close()
        if finished:
            break
        if time.perf_counter() - looked > 5:  # a look at all their pages takes a tenth of a second
            peak, looked = max(peak, memory_of(process.pid)), time.perf_counter()
        time.sleep(0.5)
    for inner in running.values():
        inner.close()
    bar.close()
    return peak


def score(images: str, profile: str, encoder: str = "", epochs: int = 0, out: str = "") -> int:
    """Run notebook 70 on a folder of images, with bars over reading and training, and say where the page is. Returns an exit status.

    Everything goes to ``out`` (results/own/<folder>): page, tables and contact sheets, and below them the run and the executed notebook.
    """
    folder = Path(images).expanduser().resolve()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder: give one that holds images, IMAGES=folder."
        )
    if any(
        "\udc80" <= letter <= "\udcff" for letter in str(folder)
    ):  # bytes of a name that are no UTF-8, as Python keeps them
        raise ValueError(
            f"The name {str(folder)!r} is not UTF-8, and files that name it are: rename the folder."
        )
    output = (
        Path(out).expanduser() if out else artifacts.results_dir("own") / (folder.name or "images")
    ).resolve()
    if output.is_relative_to(folder):
        raise ValueError(
            f"The results would go to {output}, inside the folder that is scored: give another place, OUT=folder."
        )
    if output.exists() and not output.is_dir():
        raise ValueError(
            f"The results would go to {output}, which is not a folder: give another place, OUT=folder."
        )
    from lib.pipeline import score as own_images  # slow to import

    own_images.check_encoder(encoder)
    name = find_notebook("70")
    given = {
        "profile": profile,
        "images": str(folder),
        "encoder": encoder,
        "epochs": epochs,
        "out": str(output),
    }
    text = " ".join(
        shlex.quote(f"{key}={value}")
        for key, value in check_parameters(name, given).items()
        if key != "profile"
    )
    command = [
        sys.executable,
        "-m",
        "lib.pipeline.jobs",
        "--notebook",
        name,
        "--profile",
        profile,
        "--params",
        text,
    ]
    log_path, page = output / "log.txt", output / "index.html"
    output.mkdir(parents=True, exist_ok=True)
    scored = output / "scored_folder.txt"

    def refuse_what_is_not_ours() -> None:
        made = page.exists() or any(
            output.glob("*/runs/*")
        )  # a folder that was refused leaves neither
        if made and scored.exists() and (other := scored.read_text()) != str(folder):
            raise ValueError(
                f"{output} holds the results of {other}: give another place, OUT=folder, or remove it first."
            )
        if not scored.exists() and (
            theirs := [path.name for path in (page, log_path) if path.exists()]
        ):
            raise ValueError(
                f"{output} holds {' and '.join(theirs)}, not of make score: give another place, OUT=folder."
            )

    refuse_what_is_not_ours()
    with artifacts.exclusive(
        output / ".lock", f"{output} is being written by another make score; wait for it."
    ):
        refuse_what_is_not_ours()  # another may have begun since
        artifacts.write_text(scored, str(folder))
        before = page.stat().st_mtime_ns if page.exists() else 0
        print(
            f"Scoring {folder}"
            + (
                f" with the committed encoder {encoder}"
                if encoder
                else ": reading, training, scoring"
            )
        )
        with open(log_path, "w") as log:
            status, _ = _run_watched(
                command,
                log,
                {},
                output / profile,
                env=os.environ | {"RESULTS_DIR": str(output)},
                cwd=artifacts.ROOT,
            )
    if status is None:
        return INTERRUPTED
    if status or not page.exists() or page.stat().st_mtime_ns == before:
        failed = [line for line in log_path.read_text().splitlines() if "failed:" in line] or [
            f"Look at {log_path}."
        ]
        print(failed[-1].partition("failed: ")[2] or failed[-1], file=sys.stderr)
        return status or 1
    print(f"Done. Open the page: {_shown(page)}")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Run the companion, one notebook of it, or one job of its DAG."
    )
    parser.add_argument(
        "--profile", default="", help="default: quick; for --figures the best complete one"
    )
    parser.add_argument("--paper", default="all", help=f"one of {', '.join(PAPERS)}")
    parser.add_argument(
        "--executor", default="", help="a Snakemake executor, e.g. slurm; empty: this machine"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=None,
        help="jobs at once, one core each; default: as many as cores and memory allow",
    )
    parser.add_argument(
        "--gpus",
        default="0",
        help="GPUs that every job with a network asks the cluster for; default: 0",
    )
    parser.add_argument(
        "--notebook", default="", help="run this one notebook (name or number) instead of the DAG"
    )
    parser.add_argument("--params", default="", help='for --notebook: "method=simsiam seed=1"')
    parser.add_argument(
        "--job", default="", help="run this one job of the DAG (what the Snakefile calls)"
    )
    parser.add_argument("--stamp", default="", help="for --job: the stamp to write")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--score", default="", help="score this folder of images (notebook 70)")
    parser.add_argument(
        "--encoder", default="", help="for --score: a committed encoder; empty: train on the folder"
    )
    parser.add_argument(
        "--epochs", default="0", help="for --score: epochs of training; 0: by the number of images"
    )
    parser.add_argument(
        "--out", default="", help="for --score: where the page goes; empty: results/own/<folder>"
    )
    parser.add_argument(
        "--figures", action="store_true", help="copy the profile's figures to figures/"
    )
    arguments = parser.parse_args()
    chosen, arguments.profile = arguments.profile, arguments.profile or "quick"
    if arguments.threads:
        os.environ.update(thread_limits(arguments.threads))
    try:
        if arguments.figures:
            from lib.pipeline import site as gallery

            print(f"{len(gallery.publish_figures(chosen))} figures copied to figures/.")
        elif arguments.score:
            if not arguments.epochs.isdecimal():
                raise ValueError(
                    f"EPOCHS={arguments.epochs} is not a number of epochs; give a whole number, 0 for a number by the images."
                )
            if arguments.encoder and int(arguments.epochs):
                raise ValueError(
                    f"EPOCHS={arguments.epochs} trains, and ENCODER={arguments.encoder} is trained: leave one of them out."
                )
            return score(
                arguments.score,
                arguments.profile,
                arguments.encoder,
                int(arguments.epochs),
                arguments.out,
            )
        elif arguments.job:
            run_job(arguments.profile, arguments.paper, arguments.job, arguments.stamp)
        elif arguments.notebook:
            notebook = find_notebook(arguments.notebook)
            given = parse_parameters(f"profile={arguments.profile} {arguments.params}", notebook)
            print(_shown(execute(Job(notebook, notebook, {"train_missing": True} | given))))
        else:
            if not arguments.gpus.isdecimal():
                raise ValueError(
                    f"GPUS={arguments.gpus} is not a number of GPUs; give a whole number, 0 or more: GPUS=1."
                )
            if arguments.jobs is not None and arguments.jobs < 1:
                raise ValueError(
                    f"JOBS={arguments.jobs} is not a number of jobs at once; give a whole number, 1 or more, or leave it out."
                )
            return reproduce(
                arguments.profile,
                arguments.paper,
                arguments.executor,
                arguments.jobs,
                int(arguments.gpus),
            )
    except KeyboardInterrupt:
        print(TO_CONTINUE, file=sys.stderr)
        return INTERRUPTED
    except (ValueError, OSError, RuntimeError) as error:
        advice = (
            f". {artifacts.NEXT_STEP}"
            if isinstance(error, OSError)
            and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
            else ""
        )
        named = (
            f"{arguments.job} failed: " if arguments.job and "failed: " not in str(error) else ""
        )  # lines that say so are shown to whoever called
        print(f"{named}{type(error).__name__}: {error}{advice}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
