"""A reproduction that is killed under way, and notebooks without their weights."""

import contextlib
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from lib.pipeline import notebooks, reproduce
from lib.runs import store

# One job more than there are cores: each waits for its kernel to start and to end.
AT_ONCE = (os.cpu_count() or 1) + 1
COMMAND = [sys.executable, "-m", "lib", "reproduce", "--profile", "smoke", "--jobs", str(AT_ONCE)]


def environment(results: Path) -> dict[str, str]:
    """The environment of a call whose results go to a folder of its own."""
    limits = reproduce.thread_limits(reproduce.THREADS)
    return os.environ | limits | {"RESULTS_DIR": str(results)}


def run(command: list, results: Path) -> subprocess.CompletedProcess:
    """A command to its end."""
    return subprocess.run(
        command,
        cwd=store.ROOT,
        env=environment(results),
        capture_output=True,
        text=True,
        timeout=3600,
    )


def call(results: Path, *arguments: str) -> subprocess.CompletedProcess:
    """make reproduce PROFILE=smoke, to its end."""
    return run([*COMMAND, *arguments], results)


def kill_under_way(results: Path, seconds: float) -> None:
    """Call make reproduce, and kill it some seconds after the first run is finished.

    Counted from then, so that there is a finished run to be left alone, however slow the machine.
    """
    process = subprocess.Popen(
        COMMAND,
        cwd=store.ROOT,
        env=environment(results),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None and not finished_runs(results):
        time.sleep(0.2)
    time.sleep(seconds)
    assert process.poll() is None, "it ended before it was killed"
    kill_all(process)


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


def finished_runs(results: Path) -> dict[Path, tuple[int, int]]:
    """The trained weights of every finished run: which file, written when."""
    states = {}
    for path in results.glob("*/runs/*/model.safetensors"):
        state = path.stat()
        states[path] = (state.st_ino, state.st_mtime_ns)
    return states


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
