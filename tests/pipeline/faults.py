"""Faults for a reproduction under way, and what must hold after each.

Kills at random moments; no half-written file; finished runs left alone; the same numbers.
"""

import contextlib
import json
import os
import random
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


def call(results: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
    """make reproduce PROFILE=smoke, to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=store.ROOT,
        env=environment(results, **variables),
        capture_output=True,
        text=True,
    )


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


def random_kills(generator: random.Random, count: int, longest: float) -> list[Kill]:
    """Kills at random moments, half of them of the command alone."""
    return [Kill(generator.uniform(0.5, longest), generator.random() < 0.5) for _ in range(count)]


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


def family(process: int) -> list[psutil.Process]:
    """A process and all that it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process)
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


def kernel_of(process: subprocess.Popen, job: str, within: float = 300.0) -> psutil.Process:
    """The kernel of a job of a reproduction under way, once it has worked for two seconds."""
    deadline = time.time() + within
    while time.time() < deadline and process.poll() is None:
        for member in family(process.pid):
            with contextlib.suppress(psutil.Error, OSError):
                is_kernel = any("ipykernel" in word for word in member.cmdline())
                if is_kernel and job in member.parent().cmdline() and member.cpu_times().user > 2:
                    return member
        time.sleep(0.1)
    raise AssertionError(f"no kernel of {job} was seen")


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


def different_results(first: Path, second: Path) -> list[str]:
    """Metrics, scores and weights that are not the same, to the last digit, in two folders."""
    kinds = ("*/runs/*/metrics.csv", "*/runs/*/scores-*.npz", "*/runs/*/model.safetensors")
    names = []
    for folder in (first, second):
        names.append({path.relative_to(folder) for kind in kinds for path in folder.glob(kind)})
    assert names[0] and names[1], "one of the two has no results"
    different = [f"{name} is in one only" for name in sorted(names[0] ^ names[1])]
    for name in sorted(names[0] & names[1]):
        if content(first / name) != content(second / name):
            different.append(f"{name} differs")
    return different


def content(path: Path):
    """What a file of results holds, so that two can be compared."""
    if path.suffix == ".npz":
        arrays = store.read_npz(path)
        return {name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()}
    if path.suffix == ".safetensors":
        tensors, info = store.read_tensors(path)
        return info, {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
    return path.read_bytes()


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
        done = subprocess.run(
            command,
            cwd=store.ROOT,
            env=environment(results),
            capture_output=True,
            text=True,
        )
        return f"{name}: {done.stdout}{done.stderr}" if done.returncode else ""

    try:
        with ThreadPoolExecutor(2) as pool:
            return [message for message in pool.map(show, names) if message]
    finally:
        for path in away:
            path.with_name(path.name + ".away").rename(path)
