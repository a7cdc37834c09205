"""What a training step costs: time, memory for the backward pass, and parameters."""

import time
from collections.abc import Iterator

import pandas as pd
import torch
from torch import Tensor, nn

from lib import methods
from lib.data.sets import ImageSet
from lib.runs.settings import run_hash
from lib.training.loop import first_steps

EXACT_COSTS = ["backbone_parameters", "head_parameters", "saved_bytes"]


def step_costs(runs: list[dict], images: ImageSet, rounds: int = 5, steps: int = 2) -> pd.DataFrame:
    """Costs of a training step of each run, measured in turns on the same machine.

    runs: resolved settings. One row a run and round, with the columns: method, run_hash, round,
    images_per_second (views, forward, backward, optimiser and target; ``steps`` steps a round),
    saved_bytes (tensors kept for the backward pass of one step, each once), backbone_parameters
    and head_parameters (all others that are trained). The first step of each run is not timed.

    Example:
        costs = step_costs([resolve("simsiam", "quick"), resolve("vi_simsiam", "quick")], images)
    """
    trainings = []
    exact = []
    for settings in runs:
        method = methods.build(settings, images.images.shape[3])
        # Every step is an epoch of the same images. So what a method does only in its first epoch,
        # such as DINO's constant prototypes, is over after the first step.
        batch = images.sample(settings["batch_size"])
        training = first_steps(method, batch, settings, 1 + rounds * steps)
        trainings.append(training)
        exact.append({"saved_bytes": _saved_bytes(training, method)} | _trained_parameters(method))
    rows = []
    for number in range(rounds):
        for settings, training, costs in zip(runs, trainings, exact, strict=True):
            start = time.perf_counter()
            for _ in range(steps):
                next(training)
            seconds = time.perf_counter() - start
            row = {"method": settings["method"], **costs}
            row["run_hash"] = run_hash(settings, images.checksum)
            row["round"] = number
            row["images_per_second"] = steps * settings["batch_size"] / seconds
            rows.append(row)
    return pd.DataFrame(rows)


def _saved_bytes(training: Iterator, method: nn.Module) -> int:
    """Take a step of the training; the bytes that it kept for its backward pass."""
    sizes: dict[int, int] = {}  # by address

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        next(training)
    for parameter in method.parameters():
        sizes.pop(parameter.untyped_storage().data_ptr(), None)
    return sum(sizes.values())


def _trained_parameters(method: nn.Module) -> dict[str, int]:
    """How many trained numbers are in the backbone, and in everything else."""
    counts = {"backbone_parameters": 0, "head_parameters": 0}
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            part = "backbone" if name.startswith("backbone.") else "head"
            counts[f"{part}_parameters"] += parameter.numel()
    return counts


def cost_ratios(costs: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """Costs of a step of the method ``first`` over those of ``second``: one row a measure.

    costs: from ``step_costs``. Columns: measure, value, ci_low, ci_high, n (rounds), seeds. For
    images per second these are the median over rounds and their range. The other costs are exact.
    """
    speed = costs.pivot(index="round", columns="method", values="images_per_second")
    ratios = {"images per second": speed[first] / speed[second]}
    exact = costs.groupby("method")[EXACT_COSTS].first()
    exact["trained_parameters"] = exact.backbone_parameters + exact.head_parameters
    for name in exact.columns:
        ratios[name.replace("_", " ")] = exact[name][[first]] / exact[name][second]
    rows = []
    for measure, ratio in ratios.items():
        rows.append(
            {
                "measure": measure,
                "value": ratio.median(),
                "ci_low": ratio.min(),
                "ci_high": ratio.max(),
            }
        )
    return pd.DataFrame(rows).assign(n=len(speed), seeds=1)
