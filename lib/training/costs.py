"""What a training step costs: time, memory for the backward pass, and parameters."""

import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from lib import methods
from lib.data.sets import ImageSet
from lib.runs import store
from lib.runs.settings import run_hash
from lib.training.batches import training_images
from lib.training.devices import Processes, best_device, precision_of
from lib.training.loop import Training

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
    running = [_Running(settings, images, 1 + rounds * steps) for settings in runs]
    exact = [run.first_step() for run in running]
    rows = []
    for number in range(rounds):
        for run, costs in zip(running, exact, strict=True):
            start = time.perf_counter()
            for _ in range(steps):
                run.step()
            seconds = time.perf_counter() - start
            row = {"method": run.settings["method"], **costs}
            row["run_hash"] = run_hash(run.settings, images.checksum)
            row["round"] = number
            row["images_per_second"] = steps * run.settings["batch_size"] / seconds
            rows.append(row)
    return pd.DataFrame(rows)


class _Running:
    """A training of ``steps`` steps that is advanced step by step; nothing is stored.

    Every step sees the same images, as an epoch of its own. So what a method does only in its
    first epoch, such as DINO's constant prototypes, is over after the first step.
    """

    def __init__(self, settings: dict, images: ImageSet, steps: int):
        self.settings = settings
        device = best_device()
        method = methods.build(settings, images.images.shape[3]).to(device).train()
        self.training = Training(
            method,
            images.sample(settings["batch_size"]),
            settings | {"epochs": steps},
            Processes(device),
            precision_of(settings, device),
        )
        self.batches: Iterator[tuple[list[Tensor], Tensor]] = self.training.batches.from_step(0)
        self.done = 0

    def step(self) -> None:
        views, labels = next(self.batches)
        terms = self.training.step(views, labels, self.done)
        terms["loss"].item()  # waits for the device
        self.done += 1

    def first_step(self) -> dict[str, int]:
        """Take a step and count what it keeps for its backward pass, and what is trained."""
        sizes: dict[int, int] = {}  # by address

        def note(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            self.step()
        for parameter in self.training.method.parameters():
            sizes.pop(parameter.untyped_storage().data_ptr(), None)
        backbone, head = _trained_parameters(self.training.method)
        return {
            "saved_bytes": sum(sizes.values()),
            "backbone_parameters": backbone,
            "head_parameters": head,
        }


def _trained_parameters(method: nn.Module) -> tuple[int, int]:
    """How many trained numbers are in the backbone, and in everything else."""
    backbone = head = 0
    for name, parameter in method.named_parameters():
        if parameter.requires_grad and name.startswith("backbone."):
            backbone += parameter.numel()
        elif parameter.requires_grad:
            head += parameter.numel()
    return backbone, head


def stored_step_costs(path: Path, runs: list[dict], measure: bool) -> pd.DataFrame:
    """The ``step_costs`` of these runs as stored at ``path``.

    measure: whether to measure them where the stored ones are missing or of other runs.
    FileNotFoundError if none are stored.
    """
    if measure:
        images = training_images(runs[0])
        hashes = {run_hash(run, images.checksum) for run in runs}
        stored = store.read_csv(path).get("run_hash", ()) if path.exists() else ()
        if set(stored) != hashes:
            store.write_csv(path, step_costs(runs, images))
    if not path.exists():
        raise FileNotFoundError(
            "No stored costs: set train_missing = True, or run make reproduce "
            f"PROFILE={runs[0]['profile']} PAPER=prosmin."
        )
    return store.read_csv(path)


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
