"""What the benchmarks share: interleaved repeats, medians with ranges, tables of results."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import torch
from torch.utils.benchmark import Timer
from tqdm import tqdm

from lib.runs import store

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
    """What is trained in the block goes to a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(store, "RESULTS", Path(folder)):
        yield


def speeds_and_ratios(
    timings: pd.DataFrame, unit: str, common: dict, aims: dict[str, float]
) -> list[dict]:
    """The speed of every arm, and arm a's relative to each other one in the same round."""
    by_round = timings.pivot(index="round", columns="arm", values="value")
    rows = []
    for arm, speed in by_round.items():
        quantities = {unit: speed}
        if arm != "a":
            quantities[f"ratio a / {arm}"] = by_round["a"] / speed
        for quantity, values in quantities.items():
            row = common | {"quantity": quantity, "arm": arm}
            row |= values.agg(median="median", low="min", high="max", repeats="size")
            rows.append(row | {"bar": np.nan if quantity == unit else aims.get(arm, np.nan)})
    return rows


def seconds_per_call(call: Callable[[], object], calls: int) -> float:
    """Seconds of one call, after some that do not count."""
    timer = Timer("call()", globals={"call": call}, num_threads=torch.get_num_threads())
    return timer.timeit(calls).mean


def update(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """Backward pass and step."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def replace_rows(name: str, rows: list[dict], case: str) -> None:
    """Put a case's rows in results/benchmarks/tables/<name>.csv in place of those stored, with the
    commit and the machine in each.
    """
    path = store.results_dir(FOLDER) / "tables" / f"{name}.csv"
    machine = store.provenance()["hardware"]
    frame = pd.DataFrame(rows).assign(
        commit=store.commit(),
        processor=machine["processor"],
        cores=machine["cores"],
        accelerator=machine["accelerator"],
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )
    if path.exists():
        stored = pd.read_csv(path)
        frame = pd.concat([stored[stored.case != case], frame], ignore_index=True)
    store.write_csv(path, frame)


def read_table(name: str) -> pd.DataFrame:
    return pd.read_csv(store.results_dir(FOLDER) / "tables" / f"{name}.csv")
