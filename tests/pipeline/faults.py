"""Faults for a reproduction under way, and what must hold after each.

Kills at random moments; no half-written file; finished runs left alone; the same numbers.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from PIL import Image

from lib.pipeline import notebooks, reproduce
from lib.runs import store

# One job more than there are cores: each waits for its kernel to start and to end.
AT_ONCE = (os.cpu_count() or 1) + 1
COMMAND = [sys.executable, "-m", "lib", "reproduce", "--profile", "smoke", "--jobs", str(AT_ONCE)]
ENDINGS = {".pdf": b"%%EOF", ".svg": b"</svg>", ".html": b"</html>"}


def environment(results: Path, **more: str) -> dict[str, str]:
    """The environment of a call whose results go to a folder of its own."""
    limits = reproduce.thread_limits(reproduce.THREADS)
    return os.environ | limits | {"RESULTS_DIR": str(results)} | more


def run(command: list, results: Path, **variables: str) -> subprocess.CompletedProcess:
    """A command to its end."""
    return subprocess.run(
        command,
        cwd=store.ROOT,
        env=environment(results, **variables),
        capture_output=True,
        text=True,
        timeout=3600,
    )


def call(results: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """make reproduce PROFILE=smoke, to its end."""
    return run([*COMMAND, *arguments], results, **variables)


# ------------------------------------------------------------------------- kills
@dataclass
class Killed:
    """A reproduction that was killed again and again, then completed."""

    done: subprocess.CompletedProcess | None = None
    kills: int = 0
    finished_before: int = 0  # runs that were finished before the last kill
    broken: list[str] = field(default_factory=list)  # files that were not whole after a kill
    rewritten: list[Path] = field(default_factory=list)  # weights of finished runs written again


@dataclass(frozen=True)
class Kill:
    """SIGKILL after so many seconds, to the command alone or to all that it started."""

    seconds: float
    everything: bool


def reproduce_with_kills(results: Path, kills: list[Kill]) -> Killed:
    """Call make reproduce again and again, end each call by a kill, and let the last one finish.

    The seconds of the last kill count from when a run is finished, however slow the machine, so
    that there is a finished run to be left alone. After each kill every file is read.
    """
    outcome = Killed()
    finished: dict[Path, tuple[int, int]] = {}
    for kill in kills:
        process = subprocess.Popen(
            COMMAND,
            cwd=store.ROOT,
            env=environment(results),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while kill is kills[-1] and process.poll() is None and not finished_runs(results):
            time.sleep(0.2)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(kill.seconds)
            break  # all was done before the kill
        if kill.everything:
            kill_all(process)
        else:
            process.send_signal(signal.SIGKILL)
            process.wait()
        outcome.kills += 1
        outcome.broken += not_whole(results)
        outcome.rewritten += changed_runs(results, finished)
        finished = finished_runs(results)
    outcome.finished_before = len(finished)
    outcome.done = call(results)
    outcome.rewritten += changed_runs(results, finished)
    return outcome


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    return []


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL to a process and all that it started, as when the power goes.

    They are halted first, so that none starts another.
    """
    halted: set[psutil.Process] = set()
    while new := set(family(process.pid)) - halted:
        for member in new:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.suspend()
        halted |= new
    for member in halted:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    while any(is_alive(member) for member in halted):  # a signal takes effect after a while
        time.sleep(0.01)


def is_alive(process: psutil.Process) -> bool:
    """Whether a process still runs."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


# ------------------------------------------------------------------------- what must hold
def finished_runs(results: Path) -> dict[Path, tuple[int, int]]:
    """The trained weights of every finished run: which file, written when."""
    states = {}
    for path in results.glob("*/runs/*/model.safetensors"):
        state = path.stat()
        states[path] = (state.st_ino, state.st_mtime_ns)
    return states


def changed_runs(results: Path, finished: dict[Path, tuple[int, int]]) -> list[Path]:
    """Weights of finished runs that were written again or are gone."""
    now = finished_runs(results)
    return [path for path, state in finished.items() if now.get(path) != state]


def not_whole(results: Path) -> list[str]:
    """Files with a final name that cannot be read to their end; hidden ones are none of these."""
    broken = []
    for path in results.rglob("*"):
        relative = path.relative_to(results)
        if path.is_dir() or any(part.startswith(".") for part in relative.parts):
            continue
        try:
            read_whole(path)
        except FileNotFoundError:
            continue  # a job that is being stopped may still clear up
        except Exception as error:
            broken.append(f"{relative}: {error!r}")
    return broken


def read_whole(path: Path) -> None:
    """Read a file to its end; an error if it is cut short."""
    if path.suffix in (".json", ".ipynb"):
        json.loads(path.read_bytes())
    elif path.suffix == ".csv":
        pd.read_csv(path)
        assert path.read_bytes().endswith(b"\n"), "the last line has no end"
    elif path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            assert all(archive[name] is not None for name in archive.files)
    elif path.suffix == ".safetensors":
        store.read_tensors(path)
    elif path.suffix == ".png":
        with Image.open(path) as picture:
            picture.load()
    elif path.suffix in ENDINGS:
        assert path.read_bytes().rstrip().endswith(ENDINGS[path.suffix]), "cut short"


def numbers(results: Path) -> set[Path]:
    """The files of metrics, scores and weights."""
    kinds = ("metrics.csv", "scores-*.npz", "model.safetensors")
    paths = [path for kind in kinds for path in results.glob(f"*/runs/*/{kind}")]
    return {path.relative_to(results) for path in paths}


def different_results(first: Path, second: Path) -> list[str]:
    """Metrics, scores and weights that are not the same, byte by byte, in two folders."""
    ours = numbers(first)
    theirs = numbers(second)
    assert ours and theirs, "one of the two has no results"
    different = [f"{name} is in one only" for name in sorted(ours ^ theirs)]
    for name in sorted(ours & theirs):
        if (first / name).read_bytes() != (second / name).read_bytes():
            different.append(f"{name} differs")
    return different


def not_shown(results: Path, names: list[str]) -> list[str]:
    """The notebooks that need more than stored results, and what they printed.

    Weights and embeddings are put away meanwhile, and ``train_missing`` is False.
    """
    away = [
        *results.glob("smoke/runs/*/model.safetensors"),
        *results.glob("smoke/runs/*/embeddings/*"),
    ]
    for path in away:
        path.rename(path.with_name(path.name + ".away"))

    def show(name: str) -> str:
        command = [sys.executable, "-m", "lib", "notebook", name, "--profile", "smoke"]
        if "train_missing" in notebooks.declared_parameters(name):
            command += ["--params", "train_missing=False"]
        done = run(command, results)
        return f"{name}: {done.stdout}{done.stderr}" if done.returncode else ""

    try:
        with ThreadPoolExecutor(2) as pool:
            return [message for message in pool.map(show, names) if message]
    finally:
        for path in away:
            path.with_name(path.name + ".away").rename(path)
