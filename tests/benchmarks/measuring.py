"""What the benchmarks share.

Interleaved repeats, medians with ranges, the rate of the machine, where results go.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import torch
from tqdm import tqdm

from lib.runs import store as artifacts

FOLDER = "benchmarks"


def interleaved(arms: dict[str, Callable[[], float]], repeats: int, title: str) -> pd.DataFrame:
    """Call every arm once a round, in an order that turns by one each round, so that what slows the
    machine for a while hits all; arm, round, value.

    An arm returns its own number (seconds a step, images a second): what it does before it starts
    its clock does not count.
    """
    names = list(arms)
    rows = []
    with tqdm(total=repeats * len(names), desc=title, unit="timing") as bar:
        for turn in range(repeats):
            for place in range(len(names)):
                name = names[(turn + place) % len(names)]
                rows.append({"arm": name, "round": turn, "value": arms[name]()})
                bar.update()
    return pd.DataFrame(rows)


@contextlib.contextmanager
def scratch_results():
    """What is trained in the block goes to a folder that is removed behind it."""
    with tempfile.TemporaryDirectory() as folder:
        results = artifacts.RESULTS
        artifacts.RESULTS = Path(folder)
        try:
            yield
        finally:
            artifacts.RESULTS = results


def summary(values) -> dict:
    values = np.asarray(values, float)
    return {
        "median": float(np.median(values)),
        "low": float(values.min()),
        "high": float(values.max()),
        "repeats": len(values),
    }


def paired_ratio(timings: pd.DataFrame, numerator: str, denominator: str) -> dict:
    """Median and range over rounds of one arm's value divided by the other's in the same round."""
    by_round = timings.pivot(index="round", columns="arm", values="value")
    return summary(by_round[numerator] / by_round[denominator])


def seconds_per_call(call: Callable[[], object], calls: int, warm: int = 1) -> float:
    for _ in range(warm):
        call()
    synchronise()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    synchronise()
    return (time.perf_counter() - start) / calls


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def megabytes() -> float:
    """Memory this process holds now."""
    return psutil.Process().memory_info().rss / 2**20


def peak_megabytes(call: Callable[[], object]) -> float:
    """The most memory held while ``call`` runs, above what was held before, sampled every 5 ms."""
    before = megabytes()
    peak = [0.0]
    done = threading.Event()

    def sample() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], megabytes() - before)

    thread = threading.Thread(target=sample)
    thread.start()
    call()
    done.set()
    thread.join()
    return peak[0]


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second of a large matrix product, the best of three sizes.

    What this machine can do at most in practice.
    """
    rates = []
    for size in (1024, 2048, 4096):
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        rates += [2 * size**3 / seconds_per_call(lambda a=a, b=b: a @ b, 2) for _ in range(2)]
    return max(rates)


def replace_rows(name: str, rows: list[dict], **key) -> None:
    """Put rows in results/benchmarks/tables/<name>.csv in place of those with the same ``key``,
    with the commit and the machine in each.
    """
    path = artifacts.results_dir(FOLDER) / "tables" / f"{name}.csv"
    machine = artifacts.provenance()["hardware"]
    frame = pd.DataFrame(rows).assign(
        commit=artifacts.commit(),
        processor=machine["processor"],
        cores=machine["cores"],
        accelerator=machine["accelerator"],
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )
    if path.exists():
        stored = pd.read_csv(path)
        same = np.logical_and.reduce([stored[column] == value for column, value in key.items()])
        frame = pd.concat([stored[~same], frame], ignore_index=True)
    artifacts.write_csv(path, frame)


def read_table(name: str) -> pd.DataFrame:
    return pd.read_csv(artifacts.results_dir(FOLDER) / "tables" / f"{name}.csv")
