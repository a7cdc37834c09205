"""The one training loop: precision, schedules, target networks, checkpoints, exact resume, guards, log and progress.

Every random number of a step is a function of (seed, step) alone, so a run resumed from any checkpoint equals the uninterrupted run.

    python -m lib.training.loop NAME --profile standard                         one process
    torchrun --nproc-per-node 4 -m lib.training.loop NAME --profile standard    the same run, each batch shared by four; noise drawn inside a loss differs
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lib import methods, networks
from lib.data import sources as data
from lib.data import views as augmentations
from lib.evaluation import uncertainty
from lib.methods.base import checked, spread
from lib.runs import settings as resolution
from lib.runs import store as artifacts

CHECKPOINT_SECONDS = 30
LOGS_PER_EPOCH, LOG_ROWS = (
    5,
    120,
)  # log rows per epoch, and the most rows of a whole log (never fewer than one per epoch)
COLLAPSED_SPREAD = 0.02
HEALTH_IMAGES = 512


class TrainingStopped(RuntimeError):
    """The run cannot go on usefully: the loss is not finite, or the outputs have collapsed. The last good checkpoint, if any, is kept."""


# ---------------------------------------------------------------------------------------------------------------- pieces
def seed_of(seed: int, purpose: str, index: int) -> int:
    """A 60-bit seed for one use of randomness, independent between purposes and indices."""
    return int(artifacts.sha256(f"{seed}/{purpose}/{index}")[:15], 16)


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision_of(settings: dict, device: torch.device) -> str:
    """ "auto" becomes bf16 where the device is faster in it, else float32."""
    if settings["precision"] not in ("auto", "bf16", "float32"):
        raise ValueError(
            f"Unknown precision {settings['precision']!r}; choose 'auto', 'bf16' or 'float32'."
        )
    if settings["precision"] != "auto":
        return settings["precision"]
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    able = (
        torch.cpu.get_capabilities()
        if hasattr(torch.cpu, "get_capabilities")
        else {  # torch 2.9 has no list
            "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
            "amx_bf16": torch.cpu._is_amx_tile_supported(),
        }
    )
    # By vectors Intel's processors multiply bfloat16 at half the rate of float32: there it pays with AMX, which virtual machines may hide.
    by_vectors = able.get("avx512_bf16") and "Intel" not in artifacts.processor()
    return "bf16" if able.get("amx_bf16") or able.get("bf16") or by_vectors else "float32"


def learning_rate_factor(step: int, steps: int, warmup: int, schedule: str) -> float:
    """Factor on the learning rate at ``step`` of ``steps``: linear warm-up, then ``½(1 + cos(π t))`` or constant."""
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return networks.cosine_between(1.0, 0.0, (step - warmup) / max(1, steps - warmup))
    raise ValueError(f"Unknown schedule {schedule!r}; choose 'cosine' or 'constant'.")


def make_optimizer(method: nn.Module, settings: dict) -> torch.optim.Optimizer:
    """Parameter groups: the predictor, whose learning rate may stay constant (SimSiam, App. C), and everything else, matrices apart from vectors
    where these are not decayed.

    With LARS, biases and the parameters of batch norm are neither decayed nor adapted (You et al. 2017, as in SimCLR, BYOL, Barlow Twins); they are
    not decayed either where a recipe says ``decays_matrices_only``.
    """
    named = [
        (name, parameter)
        for name, parameter in method.named_parameters()
        if parameter.requires_grad
    ]
    constant = settings["constant_predictor_learning_rate"]
    predictor = [
        parameter for name, parameter in named if constant and name.startswith("predictor.")
    ]
    rest = [
        parameter for name, parameter in named if not (constant and name.startswith("predictor."))
    ]
    groups = [{"params": rest, "constant": False}] + (
        [{"params": predictor, "constant": True}] if predictor else []
    )
    rate, decay = settings["learning_rate"], settings["weight_decay"]
    if settings["optimizer"] == "lars" or settings.get("decays_matrices_only"):
        matrices = [
            {
                **group,
                "params": [p for p in group["params"] if p.ndim > 1],
                "weight_decay": decay,
                "always_adapt": True,
            }
            for group in groups
        ]
        vectors = [
            {
                **group,
                "params": [p for p in group["params"] if p.ndim < 2],
                "weight_decay": 0.0,
                "decays": False,
            }
            for group in groups
        ]
        groups = [group for group in matrices + vectors if group["params"]]
    if settings["optimizer"] == "lars":
        from timm.optim import Lars  # slow to import

        return Lars(groups, lr=rate, momentum=settings["momentum"])
    # The fused step is several times faster, but on a CPU (torch 2.11) pairs a parameter with its moments by their place in memory, and those read
    # from a checkpoint are contiguous: with channels last it would be wrong in silence.
    fused = all(parameter.is_contiguous() for _, parameter in named)
    if settings["optimizer"] == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=settings["momentum"], weight_decay=decay)
    if settings["optimizer"] == "adamw":
        return torch.optim.AdamW(groups, lr=rate, weight_decay=decay, fused=fused)
    if settings["optimizer"] == "adam":
        return torch.optim.Adam(
            groups, lr=rate, weight_decay=decay, eps=settings["adam_epsilon"], fused=fused
        )
    raise ValueError(
        f"Unknown optimizer {settings['optimizer']!r}; choose 'sgd', 'lars', 'adamw' or 'adam'."
    )


def training_images(settings: dict) -> data.ImageSet:
    """The set a run trains on: all of train, or with split "fit" train without its validation part; or ``train_images`` of it (sample)."""
    images = data.load(settings["dataset"], "train", image_size=settings["image_size"])
    if settings["split"] == "fit":
        images = images.subset(data.train_validation_split(images.labels)[0])
    elif settings["split"] != "train":
        raise ValueError(
            f"Unknown split {settings['split']!r}; a run trains on 'train' or on 'fit' (train without validation)."
        )
    return images.sample(settings["train_images"]) if settings["train_images"] else images


# ---------------------------------------------------------------------------------------------------------------- stored runs
def save_checkpoint(
    path: Path, method: nn.Module, optimizer: torch.optim.Optimizer, info: dict
) -> None:
    tensors = {f"method.{name}": tensor for name, tensor in method.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {
            f"optimizer.{index}.{name}": value
            for name, value in state.items()
            if isinstance(value, Tensor)
        }
    artifacts.write_tensors(path, tensors, info)


def fill(
    module: nn.Module, tensors: dict[str, Tensor], path: Path, needed: tuple[str, ...] | None = None
) -> None:
    """Put stored tensors into a module, all or those of the parts named in ``needed``; ValueError naming the file where they do not fit."""
    own = module.state_dict()
    missing = [
        name
        for name in own
        if name not in tensors and (needed is None or name.split(".")[0] in needed)
    ]
    unexpected = [name for name in tensors if name not in own]
    differing = [name for name in tensors if name in own and tensors[name].shape != own[name].shape]
    if missing or unexpected or differing:
        found = (
            f"missing {missing[:3]}, unexpected {unexpected[:3]}, of another shape {differing[:3]}"
        )
        raise ValueError(
            f"{path} does not fit {type(module).__name__} ({found}); {artifacts.TRAIN_AGAIN}."
        )
    module.load_state_dict(tensors, strict=False)


def load_checkpoint(path: Path, method: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    tensors, info = artifacts.read_tensors(path, ("step", "log", "seconds"))
    fill(
        method,
        {
            name.removeprefix("method."): value
            for name, value in tensors.items()
            if name.startswith("method.")
        },
        path,
    )
    state: dict[int, dict] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return info


def is_finished(profile: str, run: str, run_hash: str) -> bool:
    """Whether the run's trained weights are there and belong to exactly these settings and data."""
    path = artifacts.run_dir(profile, run) / "model.safetensors"
    return path.exists() and artifacts.read_tensors_info(path).get("run_hash") == run_hash


def load_trained(settings: dict, channels: int) -> nn.Module:
    """The trained method of a finished run, in evaluation mode. FileNotFoundError names the command where it is missing."""
    run = resolution.run_name(settings)
    path = artifacts.run_dir(settings["profile"], run) / "model.safetensors"
    if not path.exists():
        raise FileNotFoundError(
            f"Run {run} has no trained weights here; train it with: make reproduce PROFILE={settings['profile']}"
        )
    method = methods.build(settings, channels)
    fill(method, artifacts.read_tensors(path)[0], path)
    return method.to(best_device()).eval()


# ---------------------------------------------------------------------------------------------------------------- progress
class Progress:
    """Progress of one run: a tqdm bar where somebody looks, and progress.json for whoever watches from another process (path None: neither)."""

    def __init__(
        self, path: Path | None, run: str, steps: int, done: int, batch_size: int, show: bool
    ):
        self.path, self.run, self.steps, self.batch_size = path, run, steps, batch_size
        self.start, self.done_at_start, self.written = time.perf_counter(), done, 0.0
        self.bar = tqdm(
            total=steps, initial=done, desc=run, unit="step", disable=not show, leave=False
        )

    def update(self, step: int, loss: float | None) -> None:
        now = time.perf_counter()
        if self.path is None or (now - self.written < 1 and step < self.steps):
            return
        speed = (step - self.done_at_start) / max(1e-9, now - self.start)
        state = {
            "run": self.run,
            "step": step,
            "steps": self.steps,
            "images_per_second": round(speed * self.batch_size, 1),
            "loss": loss,
        }
        artifacts.write_json(
            self.path, state | {"seconds_left": round((self.steps - step) / max(speed, 1e-9), 1)}
        )
        self.bar.set_postfix(
            {"images/s": round(speed * self.batch_size), "loss": loss}, refresh=False
        )
        self.bar.update(step - self.bar.n)
        self.written = now

    def close(self) -> None:
        self.bar.close()
        if self.path:
            self.path.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------------- several processes
def join_processes():
    """Lightning's Fabric over the processes that torchrun started; None in a process of its own."""
    if not torch.distributed.is_torchelastic_launched():
        return None
    from lightning.fabric import Fabric  # slow to import
    from lightning.fabric.strategies import DDPStrategy

    here, everywhere = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
    # A head may be idle for a while: κ's during its warm-up.
    strategy = DDPStrategy(find_unused_parameters=True)
    fabric = Fabric(
        accelerator=best_device().type,
        devices=here,
        num_nodes=everywhere // here,
        strategy=strategy,
    )
    fabric.launch()
    return fabric


# ---------------------------------------------------------------------------------------------------------------- the loop
def train(
    settings: dict,
    images: data.ImageSet | None = None,
    show_progress: bool = False,
    compiled: bool | None = None,
) -> Path:
    """Train one run to its end and return its folder; a finished run is left as it is, an interrupted one goes on from its checkpoint.

    settings: from ``lib.runs.settings.resolve``. compiled: whether torch.compile builds the loss for this shape; None: on a GPU (on a CPU it
    needs a C++ compiler and a minute, and saves about 5 %). Under torchrun every process calls this; each takes an equal part of every
    batch, batch norm takes its statistics over all of them, gradients are averaged, and the first process writes. Raises ValueError for
    settings or data that cannot work, before any training, and TrainingStopped if the loss stops being finite or the outputs collapse.
    """
    images = training_images(settings) if images is None else images
    run, profile = resolution.run_name(settings), settings["profile"]
    folder, run_hash = (
        artifacts.run_dir(profile, run),
        resolution.run_hash(settings, images.checksum),
    )
    if is_finished(profile, run, run_hash):
        return folder
    batch_size, epochs = settings["batch_size"], settings["epochs"]
    steps_per_epoch = _steps_per_epoch(images, batch_size) if epochs else 0
    augmentations.view_kinds(settings)
    fabric = join_processes()
    processes = fabric.world_size if fabric else 1
    if batch_size % processes:
        raise ValueError(
            f"batch_size {batch_size} cannot be shared equally by {processes} processes; start a divisor of it."
        )
    if processes > 1 and batch_size < 2 * processes:
        raise ValueError(
            f"batch_size {batch_size} leaves each of {processes} processes one image, which has no spread; start fewer processes."
        )
    device = fabric.device if fabric else best_device()
    precision = precision_of(settings, device)
    if settings.get("classes", len(images.classes)) != len(images.classes):
        raise ValueError(
            f"{images.title} has {len(images.classes)} classes, {settings['method']} was set up for {settings['classes']}; set classes."
        )
    method = methods.build(settings, images.images.shape[3]).to(device).train()
    if fabric:
        method = networks.synchronise_batch_norm(method, device)
    steps, warmup = epochs * steps_per_epoch, round(settings["warmup_epochs"] * steps_per_epoch)
    learning_rate_factor(warmup, max(1, steps), warmup, settings["schedule"])

    config = {
        "run": run,
        "run_hash": run_hash,
        "settings": resolution.trained_with(settings),
        "precision": precision,
        "data": {
            "title": images.title,
            "checksum": images.checksum,
            "images": len(images),
            "source": images.source,
        },
        "parameters": sum(parameter.numel() for parameter in method.parameters()),
        "threads": torch.get_num_threads(),
        "processes": processes,
        **artifacts.provenance(),
    }
    first = fabric is None or fabric.is_global_zero
    log, seconds, loop = [], 0.0, None
    if steps:
        compiled = device.type == "cuda" if compiled is None else compiled
        loop = _Loop(
            method, images, settings, folder, run_hash, device, precision, fabric, compiled
        )
        loop.resume()
        loop.health()  # an answer of embed that cannot be measured is refused before the training, not behind it
    # Not before all that can be refused has been looked at, nor over what an earlier run of this name says of its weights.
    if first and not (folder / "model.safetensors").exists():
        artifacts.write_json(folder / "config.json", config | {"finished": False})
    if loop:
        log, seconds = loop.run(steps_per_epoch, warmup, show_progress and first)
    if first:
        speed = round(steps * batch_size / seconds, 1) if seconds else None
        artifacts.write_csv(
            folder / "log.csv",
            pd.DataFrame(log, columns=None if log else ["step", "epoch", "loss"]),
            digits=5,
        )
        artifacts.write_json(
            folder / "config.json",
            config | {"finished": True, "seconds": round(seconds, 1), "images_per_second": speed},
        )
        artifacts.write_tensors(
            folder / "model.safetensors", method.state_dict(), {"run": run, "run_hash": run_hash}
        )
        (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    if fabric:
        fabric.barrier()
    return folder


def _steps_per_epoch(images: data.ImageSet, batch_size: int) -> int:
    if len(images) < batch_size:
        raise ValueError(
            f"{images.title} has {len(images)} images, fewer than one batch of {batch_size}: give more images, or a smaller batch_size "
            f"for this set in settings/profiles.toml, [<profile>.datasets.{images.name}]."
        )
    return len(images) // batch_size


def first_steps(
    method: nn.Module, images: data.ImageSet, settings: dict, steps: int
) -> Iterator[dict[str, float]]:
    """Train ``method`` for a few steps of the loop that ``train`` runs, and yield the terms of the loss after each; nothing is stored.

    For measures along a short training, and for methods that no recipe has (a part taken out). The schedule ends with the last step.
    """
    per_epoch = _steps_per_epoch(images, settings["batch_size"])
    loop, all_views = _unstored(method, images, settings, per_epoch, steps)
    warmup = round(settings["warmup_epochs"] * per_epoch)
    for step, (*views, labels) in zip(range(steps), all_views, strict=False):
        factor = learning_rate_factor(step, steps, warmup, settings["schedule"])
        terms = loop.step(views, labels, step, step / per_epoch, factor, (step + 1) / steps)
        yield {name: float(value) for name, value in terms.items()}


def _unstored(
    method: nn.Module, images: data.ImageSet, settings: dict, per_epoch: int, steps: int
) -> tuple[_Loop, Iterator[list[Tensor]]]:
    """A loop of at least so many steps that leaves no files, and what its ``views`` gives."""
    device, settings = best_device(), settings | {"epochs": -(-steps // per_epoch)}
    loop = _Loop(
        method.to(device).train(),
        images,
        settings,
        Path(),
        "",
        device,
        precision_of(settings, device),
        None,
        False,
    )
    return loop, loop.views(per_epoch, 0)


def step_costs(
    runs: list[dict], images: data.ImageSet, rounds: int = 5, steps: int = 2
) -> pd.DataFrame:
    """What a training step of each run costs, in turns on the same machine: one row a run and round.

    Columns: method, round, images_per_second (views, forward, backward, optimiser, target), saved_bytes (tensors kept for the backward pass of one
    step, each once), backbone_parameters, head_parameters (all others that are trained), run_hash. A first step of each run is not timed.
    """

    def started(settings: dict):
        method = methods.build(settings, images.images.shape[3])
        return _unstored(
            method,
            images,
            settings,
            _steps_per_epoch(images, settings["batch_size"]),
            rounds * steps + 1,
        )

    def advance(loop, views, step: int) -> None:
        *batch, labels = next(views)
        float(loop.step(batch, labels, step, float(step), 1.0, 0.5)["loss"])  # waits for the device

    rows, ready = [], [started(settings) for settings in runs]
    for settings, (loop, views) in zip(runs, ready, strict=True):
        kept: dict[int, int] = {}

        def keep(tensor: Tensor, kept=kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            advance(loop, views, 0)
        weights = {parameter.untyped_storage().data_ptr() for parameter in loop.method.parameters()}
        trained = {name: p.numel() for name, p in loop.method.named_parameters() if p.requires_grad}
        own = sum(count for name, count in trained.items() if name.startswith("backbone."))
        fixed = {
            "saved_bytes": sum(size for place, size in kept.items() if place not in weights),
            "backbone_parameters": own,
        }
        fixed |= {
            "head_parameters": sum(trained.values()) - own,
            "run_hash": resolution.run_hash(settings, images.checksum),
        }
        rows.append({"method": settings["method"]} | fixed)
    timed = []
    for turn in range(rounds):
        for settings, row, (loop, views) in zip(runs, rows, ready, strict=True):
            start = time.perf_counter()
            for step in range(steps):
                advance(loop, views, 1 + turn * steps + step)
            timed.append(
                row
                | {
                    "round": turn,
                    "images_per_second": steps
                    * settings["batch_size"]
                    / (time.perf_counter() - start),
                }
            )
    return pd.DataFrame(timed)


def stored_step_costs(path: Path, runs: list[dict], measure: bool) -> pd.DataFrame:
    """step_costs as stored at ``path``; with ``measure`` taken anew if they are not of these very runs. FileNotFoundError where there are none."""
    if measure:
        images = training_images(runs[0])
        if not path.exists() or set(artifacts.read_csv(path).get("run_hash", ())) != {
            resolution.run_hash(run, images.checksum) for run in runs
        }:
            artifacts.write_csv(path, step_costs(runs, images))
    if not path.exists():
        raise FileNotFoundError(
            f"No stored costs: set train_missing = True, or run make reproduce PROFILE={runs[0]['profile']} PAPER=prosmin."
        )
    return artifacts.read_csv(path)


def cost_ratios(cost: pd.DataFrame, first: str, second: str) -> pd.DataFrame:
    """What a step of the method ``first`` costs over one of ``second``, by step_costs: one row a measure.

    Columns: measure, value, ci_low, ci_high (of images per second the median over rounds and their range; the rest is exact), n (rounds), seeds.
    """
    speed = cost.pivot(index="round", columns="method", values="images_per_second")
    once = cost.groupby("method")[["backbone_parameters", "head_parameters", "saved_bytes"]].first()
    once["trained_parameters"] = once.backbone_parameters + once.head_parameters
    exact = (once.loc[first] / once.loc[second]).to_dict()
    found = {"images_per_second": speed[first] / speed[second]} | {
        name: pd.Series([ratio]) for name, ratio in exact.items()
    }
    rows = [
        {
            "measure": name.replace("_", " "),
            "value": of.median(),
            "ci_low": of.min(),
            "ci_high": of.max(),
        }
        for name, of in found.items()
    ]
    return pd.DataFrame(rows).assign(n=len(speed), seeds=1)


def one_ahead(
    make: Callable[[int], list[Tensor] | None], begin: int, device: torch.device
) -> Iterator[list[Tensor]]:
    """make(begin), make(begin + 1), ... until it is None, each started before the one before it is handed out.

    On a GPU they are computed on a stream of their own, beside whatever is done with the one handed out.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    if stream:
        stream.wait_stream(
            torch.cuda.current_stream(device)
        )  # the images may still be on their way

    def start(step: int):
        with torch.cuda.stream(stream) if stream else nullcontext():
            views = make(step)
            return views, stream.record_event() if stream else None

    views, ready = start(begin)
    step = begin
    while views is not None:
        step += 1
        following = start(step)
        if stream:
            current = torch.cuda.current_stream(device)
            current.wait_event(ready)
            for view in views:
                view.record_stream(current)
        yield views
        views, ready = following


class _Loop:
    """One run under way: everything that a step needs."""

    def __init__(
        self, method, images, settings, folder, run_hash, device, precision, fabric, compiled
    ):
        self.method, self.images, self.settings, self.device, self.precision = (
            method,
            images.to(device),
            settings,
            device,
            precision,
        )
        self.folder, self.run_hash, self.fabric = folder, run_hash, fabric
        self.name, self.checkpoint = (
            resolution.run_name(settings),
            folder / "checkpoint.safetensors",
        )
        self.begin: tuple[int, list[dict], float] = 0, [], 0.0  # step, rows of the log, seconds
        self.process, self.processes = (fabric.global_rank, fabric.world_size) if fabric else (0, 1)
        self.optimizer = make_optimizer(method, settings)
        if compiled:
            method.loss = torch.compile(method.loss, dynamic=False)
        self.trained = method
        if fabric:
            self.trained = fabric.setup_module(method)
            self.trained.mark_forward_method("loss")

    def views(self, steps_per_epoch: int, begin: int) -> Iterator[list[Tensor]]:
        """The views of every step from ``begin`` to the last, and behind them the labels: this process's part of each batch."""
        batch_size, seed, epochs = (
            self.settings["batch_size"],
            self.settings["seed"],
            self.settings["epochs"],
        )
        own = networks.own_rows(batch_size // self.processes)

        def index_batches():
            for epoch in range(begin // steps_per_epoch, epochs):
                order = torch.randperm(
                    len(self.images),
                    generator=torch.Generator().manual_seed(seed_of(seed, "order", epoch)),
                )
                first = max(0, begin - epoch * steps_per_epoch)
                for batch in order[first * batch_size : steps_per_epoch * batch_size].split(
                    batch_size
                ):
                    labels.append(torch.from_numpy(self.images.labels[batch[own]]))
                    yield batch[own]

        labels: deque[Tensor] = deque()
        batches, generator = data.batches(self.images, index_batches()), torch.Generator()

        def make(step: int) -> list[Tensor] | None:
            batch = next(batches, None)
            generator.manual_seed(seed_of(seed, "views", step))
            if batch is None:
                return None
            views = augmentations.make_views(
                batch, self.settings, generator, self.process, self.processes
            )
            return [*views, labels.popleft().to(self.device, non_blocking=True)]

        return one_ahead(make, begin, self.device)

    def step(
        self,
        views: list[Tensor],
        labels: Tensor,
        step: int,
        epoch: float,
        factor: float,
        progress: float,
    ) -> dict[str, Tensor]:
        """One step of the optimiser, with which the share ``progress`` of all is done; the named terms of its loss."""
        torch.manual_seed(
            seed_of(
                self.settings["seed"],
                "method" if not self.process else f"method of process {self.process}",
                step,
            )
        )
        if hasattr(self.method, "set_epoch"):
            self.method.set_epoch(epoch)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            terms = (
                self.trained.loss(views, labels)
                if hasattr(self.method, "classes")
                else self.trained.loss(views)
            )
        if not (
            isinstance(terms, dict)
            and "loss" in terms
            and all(value.ndim == 0 for value in terms.values())
        ):
            found = (
                {name: tuple(value.shape) for name, value in terms.items()}
                if isinstance(terms, dict)
                else type(terms).__name__
            )
            raise ValueError(
                f"{self.settings['method']}: loss must return named scalar terms, one of them 'loss', got {found}."
            )
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        if self.settings["clip_norm"]:
            nn.utils.clip_grad_norm_(self.method.parameters(), self.settings["clip_norm"])
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings["learning_rate"] * (1.0 if group["constant"] else factor)
            if "weight_decay_end" in self.settings and group.get("decays", True):
                # DINO, App. C; ProSMin, §5
                first, last = self.settings["weight_decay"], self.settings["weight_decay_end"]
                group["weight_decay"] = networks.cosine_between(
                    first, last, epoch / self.settings["epochs"]
                )
        self.optimizer.step()
        if hasattr(self.method, "update_target"):
            self.method.update_target(progress)
        return {name: value.detach() for name, value in terms.items()}

    def resume(self) -> None:
        """Go on from the checkpoint, if there is one of exactly this run, in this precision: another machine may have another."""
        info = artifacts.read_tensors_info(self.checkpoint) if self.checkpoint.exists() else {}
        if (
            info.get("run_hash") == self.run_hash
            and info.get("precision", self.precision) == self.precision
        ):
            info = load_checkpoint(self.checkpoint, self.method, self.optimizer)
            self.begin = info["step"], info["log"], info["seconds"]

    def run(
        self, steps_per_epoch: int, warmup: int, show_progress: bool
    ) -> tuple[list[dict], float]:
        """Train to the end; returns the log rows and the seconds spent over all sittings."""
        settings, steps = self.settings, self.settings["epochs"] * steps_per_epoch
        step, log, seconds = self.begin
        rows_per_epoch = max(
            1, min(LOGS_PER_EPOCH, steps_per_epoch, LOG_ROWS // settings["epochs"])
        )
        path = None if self.process else self.folder / "progress.json"
        rows, loss, started, saved = [], None, time.perf_counter() - seconds, time.perf_counter()
        with closing(
            Progress(path, self.name, steps, step, settings["batch_size"], show_progress)
        ) as progress:
            for *views, labels in self.views(steps_per_epoch, step):
                factor = learning_rate_factor(step, steps, warmup, settings["schedule"])
                rows.append(
                    self.step(
                        views, labels, step, step / steps_per_epoch, factor, (step + 1) / steps
                    )
                )
                step += 1
                if (
                    step * rows_per_epoch // steps_per_epoch
                    > (step - 1) * rows_per_epoch // steps_per_epoch
                ):
                    means = self._means(rows)
                    rows, loss = [], round(means["loss"], 4)
                    _guard(means, step, steps_per_epoch, self.method, self.name)
                    elapsed = time.perf_counter() - started
                    row = {
                        "step": step,
                        "epoch": step / steps_per_epoch,
                        "seconds": round(elapsed, 2),
                    }
                    row |= {"learning_rate": settings["learning_rate"] * factor} | means
                    log.append(
                        row
                        | (
                            self.health()
                            if step % steps_per_epoch == 0 and not self.process
                            else {}
                        )
                    )
                    if (
                        time.perf_counter() - saved > CHECKPOINT_SECONDS
                        and step < steps
                        and not self.process
                    ):
                        info = {
                            "run_hash": self.run_hash,
                            "precision": self.precision,
                            "step": step,
                            "log": log,
                            "seconds": elapsed,
                        }
                        save_checkpoint(self.checkpoint, self.method, self.optimizer, info)
                        saved = time.perf_counter()
                progress.update(step, loss)
        return log, time.perf_counter() - started

    @torch.no_grad()
    def health(self) -> dict[str, float]:
        """How many dimensions the features of the first training images use: their effective rank and their spread over the sphere.

        NaN where all features are one: that is for the reader of the log, not a reason to stop.
        """
        images = self.images.batch(range(min(HEALTH_IMAGES, len(self.images)))).float() / 255
        images = augmentations.resize(images, self.settings["image_size"])
        features = checked(self.method.eval().embed(images.to(self.device)), len(images)).features
        self.method.train()
        try:
            rank = uncertainty.effective_rank(features.cpu().numpy())
        except uncertainty.UndefinedStatistic:
            rank = math.nan
        return {"effective_rank": rank, "feature_spread": float(spread(features))}

    def _means(self, rows: list[dict[str, Tensor]]) -> dict[str, float]:
        """Every term averaged over the steps since the last log row, and over the processes; the only place where the device is waited for."""
        values = torch.stack(
            [torch.stack([row[name].float() for row in rows]).mean() for name in rows[0]]
        )
        values = self.fabric.all_reduce(values, reduce_op="mean") if self.fabric else values
        return dict(zip(rows[0], values.tolist(), strict=True))


def _guard(means: dict, step: int, steps_per_epoch: int, method: nn.Module, run: str) -> None:
    advice = "Try a smaller learning_rate, a clip_norm of 1, or precision='float32'."
    finite = torch.stack([parameter.isfinite().all() for parameter in method.parameters()]).all()
    if not all(math.isfinite(value) for value in means.values()) or not finite:
        raise TrainingStopped(
            f"{run}: loss or weights are not finite at step {step} ({means}). The last checkpoint is kept, if any. {advice}"
        )
    if step >= steps_per_epoch and means.get("spread", 1.0) < COLLAPSED_SPREAD:
        raise TrainingStopped(
            f"{run}: the outputs have collapsed to one point at step {step} (spread {means['spread']:.2g} of 1). "
            "The last checkpoint is kept, if any. Check that the target is detached and the predictor is there, or try a smaller learning_rate."
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Train one run listed in settings/runs.toml."
    )
    # torchrun takes --run for an abbreviation of an option of its own, so the name may also stand alone.
    parser.add_argument(
        "name", nargs="?", help="the run's name, <method>-<dataset>-<variant>-seed<k>"
    )
    parser.add_argument("--run", default="", help="the same")
    parser.add_argument("--profile", default="quick")
    arguments = parser.parse_args()
    name = arguments.name or arguments.run
    if not name:
        parser.error("which run? Give its name, <method>-<dataset>-<variant>-seed<k>.")
    try:
        print(train(resolution.find_runs([name], arguments.profile)[0], show_progress=True))
    except (ValueError, OSError, TrainingStopped) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
