"""Faults for a reproduction under way, and what must hold after each: kills at random moments, whole files, finished runs left alone."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from PIL import Image

from lib.pipeline import jobs as reproduction
from lib.runs import store as artifacts

# One job more than there are cores: each waits for its kernel to start and to end.
COMMAND = [
    sys.executable,
    "-m",
    "lib.pipeline.jobs",
    "--profile",
    "smoke",
    "--jobs",
    str((os.cpu_count() or 1) + 1),
]


def environment(results: Path, **more: str) -> dict[str, str]:
    return (
        os.environ
        | reproduction.thread_limits(reproduction.THREADS)
        | {"RESULTS_DIR": str(results)}
        | more
    )


def family(process: int) -> list[psutil.Process]:
    """The process and all it started."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process)
        return [parent, *parent.children(recursive=True)]
    return []


def kill_all(process: subprocess.Popen) -> None:
    """SIGKILL to the process and all it started, as when the power goes; they are halted first, so that none starts another."""
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
    while any(
        map(is_alive, halted)
    ):  # on a busy machine a signal takes effect some time after it is sent
        time.sleep(0.01)


def is_alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def reproduce_with_kills(
    results: Path, moments: list[float], whole_family: list[bool], arguments=()
) -> dict:
    """Call make reproduce (smoke) again and again; end call k by SIGKILL after moments[k] seconds, and let the call after the last one finish.

    The seconds of the last kill are counted from when a run is finished, however slow the machine, so that there is one to be left alone.

    whole_family: whether everything is killed at once, or the command alone, whose jobs are then asked to stop. After each kill every file is read
    and every finished run remembered. Returns: kills that hit a running call, the finished last call, the names of files that were not whole, the
    finished runs that were written again, and whether all was done before the last moment came.
    """
    broken, rewritten, kills, finished = [], [], 0, {}
    for number, (moment, everything) in enumerate(zip(moments, whole_family, strict=True), start=1):
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=artifacts.ROOT,
            env=environment(results),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while number == len(moments) and process.poll() is None and not finished_runs(results):
            time.sleep(0.2)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moment)
            break
        if everything:
            kill_all(process)
        else:
            process.send_signal(signal.SIGKILL)
            process.wait()
        kills += 1
        broken += not_whole(results)
        now = finished_runs(results)
        rewritten += [path for path, state in finished.items() if now.get(path) != state]
        finished |= now
    early = kills < len(moments)
    done = subprocess.run(
        [*COMMAND, *arguments],
        cwd=artifacts.ROOT,
        env=environment(results),
        capture_output=True,
        text=True,
    )
    now = finished_runs(results)
    rewritten += [path for path, state in finished.items() if now.get(path) != state]
    return {
        "kills": kills,
        "done": done,
        "broken": broken,
        "rewritten": rewritten,
        "early": early,
        "finished_before": len(finished),
    }


def random_moments(
    generator: random.Random, count: int, longest: float
) -> tuple[list[float], list[bool]]:
    return [generator.uniform(0.5, longest) for _ in range(count)], [
        generator.random() < 0.5 for _ in range(count)
    ]


def finished_runs(results: Path) -> dict[Path, tuple[int, int]]:
    """The trained weights of every finished run: which file, written when."""
    found = {path: path.stat() for path in results.glob("*/runs/*/model.safetensors")}
    return {path: (state.st_ino, state.st_mtime_ns) for path, state in found.items()}


def not_whole(results: Path) -> list[str]:
    """Files with a final name that cannot be read to their end; logs grow and locks are empty by design."""
    bad = []
    for path in results.rglob("*"):
        if path.is_dir() or any(part.startswith(".") for part in path.relative_to(results).parts):
            continue
        with contextlib.suppress(
            FileNotFoundError
        ):  # a job that is being stopped may still clear up
            try:
                _read_whole(path)
            except FileNotFoundError:
                raise
            except Exception as error:
                bad.append(f"{path.relative_to(results)}: {error!r}")
    return bad


def _read_whole(path: Path) -> None:
    if path.suffix in (".json", ".ipynb"):
        json.loads(path.read_bytes())
    elif path.suffix == ".csv":
        pd.read_csv(path)
        assert path.read_bytes().endswith(b"\n"), "the last line has no end"
    elif path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            assert all(archive[name] is not None for name in archive.files)
    elif path.suffix == ".safetensors":
        artifacts.read_tensors(path)
    elif path.suffix == ".png":
        with Image.open(path) as picture:
            picture.load()
    else:
        endings = {".pdf": b"%%EOF\n", ".svg": b"</svg>\n", ".html": b"</html>", ".md": b"\n"}
        assert path.read_bytes().endswith(
            endings[path.suffix]
        ) or path.read_bytes().rstrip().endswith(endings[path.suffix].rstrip()), "cut short"


def different_results(first: Path, second: Path) -> list[str]:
    """Metrics, scores and trained weights that are not the same, to the last digit, in two results folders."""
    kinds = ("*/metrics/*.csv", "*/scores/*.npz", "*/runs/*/model.safetensors")
    names = [
        {path.relative_to(folder) for kind in kinds for path in folder.glob(kind)}
        for folder in (first, second)
    ]
    assert names[0] and names[1], "one of the two has no results"
    lacking = [f"{name} is in one alone" for name in sorted(names[0] ^ names[1])]
    return lacking + [
        f"{name} differs"
        for name in sorted(names[0] & names[1])
        if _content(first / name) != _content(second / name)
    ]


def _content(path: Path):
    if path.suffix == ".npz":
        return {
            name: (array.dtype, array.shape, array.tobytes())
            for name, array in artifacts.read_npz(path).items()
        }
    if path.suffix == ".safetensors":
        tensors, info = artifacts.read_tensors(path)
        return info, {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
    return path.read_bytes()


def not_shown(results: Path, names: list[str]) -> list[str]:
    """The notebooks that do not run with their defaults (train_missing=False) when weights and embeddings are gone, and what they said."""
    away = [
        *results.glob("smoke/runs/*/model.safetensors"),
        *results.glob("smoke/runs/*/embeddings/*"),
    ]
    for path in away:
        path.rename(path.with_name(path.name + ".away"))

    def show(name: str) -> str:
        words = ["--notebook", name, "--profile", "smoke", "--params", "train_missing=False"]
        done = subprocess.run(
            [sys.executable, "-m", "lib.pipeline.jobs", *words],
            cwd=artifacts.ROOT,
            env=environment(results),
            capture_output=True,
            text=True,
        )
        return f"{name}: {done.stdout}{done.stderr}" if done.returncode else ""

    try:
        with ThreadPoolExecutor(2) as pool:
            return [said for said in pool.map(show, names) if said]
    finally:
        for path in away:
            path.with_name(path.name + ".away").rename(path)


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
