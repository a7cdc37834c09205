"""make reproduce: Snakemake over the jobs of a profile, with bars and the causes of failures."""

import contextlib
import ctypes
import math
import os
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from lib.pipeline import jobs, notebooks, progress
from lib.pipeline.jobs import Job
from lib.runs import settings, store

THREADS = 1  # of a job here: two small networks at once train faster than two threads on one
JOB_BYTES = 3 * 2**29  # of memory that a job may take
CONTAINER = Path("/sys/fs/cgroup")  # where Linux tells a container its limits
EXECUTOR_PACKAGE = "snakemake_executor_plugin_"  # Snakemake finds executors by this name
CLUSTER_PROFILE = store.ROOT / "settings" / "slurm"
DRY_RUN = "dryrun"  # an executor that prints the jobs and starts none
EVIDENCE = "standard"  # the profile whose results are committed
CAUSES_SHOWN = 10
INTERRUPTED = 130  # exit status, as a shell has it
TO_CONTINUE = "Interrupted. Call the same command again to continue."


def reproduce(
    profile: str, paper: str, executor: str = "", jobs_at_once: int | None = None, gpus: int = 0
) -> int:
    """Run all jobs of a profile and a paper that are not done. Returns an exit status.

    executor: a Snakemake executor, "" for this machine. jobs_at_once: None for as many as cores and
    memory allow. gpus: GPUs that a training asks a cluster for.
    """
    jobs_at_once = jobs_at_once or most_jobs_at_once()
    where = executor_options(executor, jobs_at_once, gpus)
    listed = jobs.listed_jobs(profile, paper)
    for job in listed.values():
        notebooks.check_parameters(job.notebook, job.parameters)
    stamps = {name: jobs.stamp(job, listed) for name, job in listed.items()}
    waiting = [job for name, job in listed.items() if not stamps[name].exists()]
    folder = store.results_dir(profile)
    store.check_writable(folder)
    log_path = jobs.stamp_folder(profile) / "snakemake.log"
    log_path.parent.mkdir(exist_ok=True)
    done = len(listed) - len(waiting)
    print(f"{len(listed)} jobs, profile {profile}, paper {paper}; {done} done.")
    print_missing_sets(profile, waiting)
    print(f"The log is {log_path}.")
    # A file, so that `config` of a Snakemake profile is not overruled as it is by --config.
    config_path = log_path.with_name("config.json")
    busy = f"Another make reproduce PROFILE={profile} is running; wait for it, or stop it first."
    with store.exclusive(log_path.with_name("reproduce.lock"), busy), open(log_path, "w") as log:
        store.write_json(config_path, {"profile": profile, "paper": paper, "gpus": gpus})
        command = [*snakemake_command(config_path), *where]
        environment = os.environ | thread_limits(THREADS)
        shown = {} if executor == DRY_RUN else stamps
        status = run_watched(command, log, shown, folder, env=environment)
    if status is None:
        return INTERRUPTED
    if executor == DRY_RUN:
        print(log_path.read_text())
        return status
    missing = [name for name, path in stamps.items() if not path.exists()]
    if status or missing:
        report_failure(missing, log_path, folder)
        return status or 1
    show_results(profile, is_new=bool(waiting))
    return 0


def show_results(profile: str, is_new: bool) -> None:
    """Write the pages of a profile, if its results are new or it has none, and print where."""
    folder = store.results_dir(profile)
    front_page = folder / "site" / "index.html"
    if is_new or not front_page.exists():
        write_pages(profile)
    print(f"Done. Open {front_page}. Executed notebooks are in {folder / 'notebooks'}.")


def write_pages(profile: str) -> None:
    """Build the site of a profile and, of the evidence, the page of results."""
    from lib.pipeline import site  # slow to import

    if profile == EVIDENCE:
        progress.write_readme(profile)
    print("Building the site.")
    site.build(profile)


def snakemake_command(config_path: Path) -> list[str]:
    """Snakemake over the Snakefile, with options that hold wherever the jobs run."""
    command = [sys.executable, "-m", "snakemake"]
    command += ["--snakefile", str(store.ROOT / "Snakefile"), "--directory", str(store.ROOT)]
    command += ["--configfile", str(config_path)]
    command += ["--keep-going", "--rerun-triggers", "mtime", "--nolock", "--rerun-incomplete"]
    return command


def thread_limits(number: int) -> dict[str, str]:
    """What numpy and torch look at, when they are imported, for the number of threads."""
    return {"OMP_NUM_THREADS": str(number), "MKL_NUM_THREADS": str(number)}


# ------------------------------------------------------------------------- where jobs run
def executor_options(executor: str, jobs_at_once: int, gpus: int) -> list[str]:
    """Snakemake's options for where jobs run; ValueError or FileNotFoundError if they cannot.

    A cluster's CPUs, memory, time, partition and account are in the Snakemake profile
    settings/slurm, or in the one that SNAKEMAKE_PROFILE names.
    """
    if not executor:
        if gpus:
            raise ValueError(
                f"GPUS={gpus} asks a cluster for GPUs: add EXECUTOR=slurm. On this machine a GPU "
                "that torch finds is used without asking."
            )
        return ["--cores", str(jobs_at_once)]
    executors = known_executors()
    if executor not in executors:
        raise ValueError(
            f"EXECUTOR={executor} is none that Snakemake has here; choose one of "
            f"{', '.join(executors)}, or leave it out to run here."
        )
    options = ["--executor", executor, "--jobs", str(jobs_at_once), "--show-failed-logs"]
    if "SNAKEMAKE_PROFILE" not in os.environ:
        options += ["--profile", str(CLUSTER_PROFILE)]
    if executor == "slurm":
        options += slurm_options()
    return options


def known_executors() -> list[str]:
    """The names of Snakemake's executors that are installed."""
    modules = [module.name for module in pkgutil.iter_modules()]
    plugins = [name for name in modules if name.startswith(EXECUTOR_PACKAGE)]
    names = [name.removeprefix(EXECUTOR_PACKAGE).replace("_", "-") for name in plugins]
    return sorted(["local", DRY_RUN, "touch", *names])


def slurm_options() -> list[str]:
    """Options of the Slurm executor that depend on what is installed here."""
    if not shutil.which("sbatch"):
        raise FileNotFoundError(
            "EXECUTOR=slurm found no sbatch on the PATH: call it where you submit jobs, or leave "
            "EXECUTOR out to run here."
        )
    options = ["--slurm-init-seconds-before-status-checks", "10"]
    if shutil.which("sacct"):
        accounting = subprocess.run(["sacct", "--starttime", "now"], capture_output=True)
        # Without accounting sacct is installed and fails, and the plugin would wait for it.
        if accounting.returncode:
            options += ["--slurm-status-command", "squeue"]
    return options


def most_jobs_at_once() -> int:
    """Jobs that cores and memory of this process and its container allow; at least one."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    memory = min(physical, container_limit("memory.max"))
    return max(1, int(min(cores, container_limit("cpu.max"), memory // JOB_BYTES)))


def container_limit(name: str) -> float:
    """A limit of this process's container (cgroup v2); infinite where there is none.

    "cpu.max" is in cores, "memory.max" in bytes.
    """
    try:
        limit, *period = (CONTAINER / name).read_text().split()
    except (OSError, ValueError):
        return math.inf
    if limit == "max":
        return math.inf
    return int(limit) / int(period[0]) if period else int(limit)


# ------------------------------------------------------------------------- before and after
def print_missing_sets(profile: str, waiting: Iterable[Job]) -> None:
    """Print which data sets are missing that the waiting jobs need, and how to provide them."""
    from lib.evaluation import measure  # slow to import

    for name in settings.absent_sets(profile):
        print(
            f"Runs on {name} are left out: nothing fetches it. Put it in "
            f"{store.default_data_dir() / name}."
        )
    names = []
    for job in waiting:
        names += job.parameters.get("runs", "").split()
    runs = settings.find_runs(names, profile)
    for reason in measure.missing_sets(runs):
        print(f"Jobs that need this set will fail, the others go on: {reason}")
    for reason in measure.missing_other_sets(runs):
        print(f"OOD measures on this set are left out: {reason}")


def report_failure(missing: list[str], log_path: Path, folder: Path) -> None:
    """Print which jobs are not done, what each said of its failure, and what to do."""
    print(f"Not done: {', '.join(missing)}.")
    for line in causes(log_path.read_text())[:CAUSES_SHOWN]:
        print(f"  {line}")
    print(f"The log is {log_path}.")
    if shutil.disk_usage(folder).free < store.FREE_BYTES:
        print(f"{folder} is full. {store.NEXT_STEP}")
    else:
        print("What is done stays done: call the same command again.")


def causes(log: str) -> list[str]:
    """The lines of Snakemake's log that name a cause, each once.

    A job names its failure in one line. Of a job that Slurm ended, for its time or its memory,
    slurmstepd speaks.
    """
    lines = [line.strip() for line in log.splitlines()]
    named = [line for line in lines if re.search("failed:|slurmstepd: error:", line)]
    return list(dict.fromkeys(named))


# ------------------------------------------------------------------------- watching
def end_with_parent() -> None:
    """In a child process: be asked to stop when the parent dies, also of SIGKILL (Linux).

    SIGINT is heard too, also where a shell started everything in the background, ignoring it.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.platform == "linux":
        set_death_signal = 1
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)


def run_watched(
    command: list[str], log: TextIO, stamps: dict[str, Path], folder: Path, **options
) -> int | None:
    """Run a command under bars: its exit status, or None if it was interrupted.

    A request to end (SIGTERM) or a lost terminal (SIGHUP) is an interruption too: trainings would
    go on unseen. What nohup ignores stays ignored. options: of subprocess.Popen.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)
    process = subprocess.Popen(
        command,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=end_with_parent,
        **options,
    )
    try:
        watch(process, stamps, folder)
    except KeyboardInterrupt:
        os.killpg(process.pid, signal.SIGINT)
        process.wait()
        print(TO_CONTINUE)
        return None
    return process.returncode


def watch(process: subprocess.Popen, stamps: dict[str, Path], folder: Path) -> None:
    """Draw a bar over all jobs and one for each training, until the process ends."""
    all_jobs = tqdm(total=len(stamps), desc="all jobs", unit="job", disable=not stamps)
    trainings: dict[str, tqdm] = {}
    running = True
    while running:
        running = process.poll() is None
        all_jobs.n = sum(path.exists() for path in stamps.values())
        all_jobs.refresh()
        draw_trainings(trainings, training_states(folder))
        if running:
            time.sleep(0.5)
    for bar in trainings.values():
        bar.close()
    all_jobs.close()


def training_states(folder: Path) -> dict[str, dict]:
    """What every training under way says in its progress file, by the name of its folder."""
    states = {}
    for path in (folder / "runs").glob("*/progress.json"):
        with contextlib.suppress(FileNotFoundError, ValueError):  # it may end at this moment
            states[path.parent.name] = store.read_json(path)
    return states


def draw_trainings(bars: dict[str, tqdm], states: dict[str, dict]) -> None:
    """Bring the bars of trainings up to date: new ones open, those of ended trainings close."""
    for name, state in states.items():
        if name not in bars:
            bars[name] = tqdm(
                total=state["steps"],
                desc=state["run"],
                unit="step",
                position=len(bars) + 1,
                leave=False,
            )
        bars[name].n = state["step"]
        bars[name].set_postfix({"images/s": state["images_per_second"], "loss": state["loss"]})
    for name in set(bars) - set(states):
        bars.pop(name).close()
