"""The one training loop: precision, schedules, target networks, checkpoints, exact resume, guards, log and progress.

Every random number of a step is a function of (seed, step) alone, so a run resumed from any checkpoint equals the uninterrupted run.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from lib import artifacts, augmentations, data, methods
from lib import settings as resolution

CHECKPOINT_SECONDS = 30
LOGS_PER_EPOCH = 5
COLLAPSED_SPREAD = 0.02


class TrainingStopped(RuntimeError):
    """The run cannot go on usefully: the loss is not finite, or the outputs have collapsed. The last good checkpoint is kept."""


# ---------------------------------------------------------------------------------------------------------------- pieces
def seed_of(seed: int, purpose: str, index: int) -> int:
    """A 63-bit seed for one use of randomness, independent between purposes and indices."""
    return int(artifacts.sha256(f"{seed}/{purpose}/{index}")[:15], 16)


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision_of(settings: dict, device: torch.device) -> str:
    """"auto" becomes bf16 where the device computes in it, else float32."""
    if settings["precision"] not in ("auto", "bf16", "float32"):
        raise ValueError(f"Unknown precision {settings['precision']!r}; choose 'auto', 'bf16' or 'float32'.")
    if settings["precision"] != "auto":
        return settings["precision"]
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    able = torch.cpu.get_capabilities()
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") or able.get("bf16") else "float32"


def learning_rate_factor(step: int, steps: int, warmup: int, schedule: str) -> float:
    """Factor on the learning rate at ``step`` of ``steps``: linear warm-up, then ``½(1 + cos(π t))`` or constant."""
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
    raise ValueError(f"Unknown schedule {schedule!r}; choose 'cosine' or 'constant'.")


def make_optimizer(method: nn.Module, settings: dict) -> torch.optim.Optimizer:
    """Two parameter groups: the predictor, whose learning rate may stay constant (SimSiam, App. C), and everything else."""
    named = [(name, parameter) for name, parameter in method.named_parameters() if parameter.requires_grad]
    constant = settings["constant_predictor_learning_rate"]
    predictor = [parameter for name, parameter in named if constant and name.startswith("predictor.")]
    rest = [parameter for name, parameter in named if not (constant and name.startswith("predictor."))]
    groups = [{"params": rest, "constant": False}] + ([{"params": predictor, "constant": True}] if predictor else [])
    rate, decay = settings["learning_rate"], settings["weight_decay"]
    if settings["optimizer"] == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=settings["momentum"], weight_decay=decay)
    if settings["optimizer"] == "adamw":
        return torch.optim.AdamW(groups, lr=rate, weight_decay=decay)
    raise ValueError(f"Unknown optimizer {settings['optimizer']!r}; choose 'sgd' or 'adamw'.")


@torch.no_grad()
def update_average(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """Exponential moving average of weights, ``target <- m target + (1 - m) online``; buffers are copied."""
    for average, current in zip(target.parameters(), online.parameters(), strict=True):
        average.lerp_(current, 1 - momentum)
    for average, current in zip(target.buffers(), online.buffers(), strict=True):
        average.copy_(current)


def training_images(settings: dict) -> data.ImageSet:
    """The set a run trains on: all of train, or with split "fit" train without its validation part; or the first ``train_images`` of it."""
    images = data.load(settings["dataset"], "train", image_size=settings["image_size"])
    if settings["split"] == "fit":
        images = images.subset(data.train_validation_split(images.labels)[0])
    elif settings["split"] != "train":
        raise ValueError(f"Unknown split {settings['split']!r}; a run trains on 'train' or on 'fit' (train without validation).")
    if settings["train_images"]:
        images = images.subset(range(min(settings["train_images"], len(images))))
    return images


# ---------------------------------------------------------------------------------------------------------------- stored runs
def save_checkpoint(path: Path, method: nn.Module, optimizer: torch.optim.Optimizer, info: dict) -> None:
    tensors = {f"method.{name}": tensor for name, tensor in method.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items() if isinstance(value, Tensor)}
    artifacts.write_tensors(path, tensors, info)


def load_checkpoint(path: Path, method: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    tensors, info = artifacts.read_tensors(path)
    method.load_state_dict({name.removeprefix("method."): value for name, value in tensors.items() if name.startswith("method.")})
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
    return path.exists() and artifacts.read_tensors(path)[1].get("run_hash") == run_hash


def load_trained(settings: dict, channels: int) -> nn.Module:
    """The trained method of a finished run, in evaluation mode. FileNotFoundError names the command where it is missing."""
    run = resolution.run_name(settings)
    path = artifacts.run_dir(settings["profile"], run) / "model.safetensors"
    if not path.exists():
        raise FileNotFoundError(f"Run {run} has no trained weights here; train it with: make reproduce PROFILE={settings['profile']}")
    method = methods.build(settings, channels)
    method.load_state_dict(artifacts.read_tensors(path)[0])
    return method.to(best_device()).eval()


# ---------------------------------------------------------------------------------------------------------------- progress
class Progress:
    """Progress of one run: a tqdm bar where somebody looks, and progress.json for whoever watches from another process."""

    def __init__(self, path: Path, run: str, steps: int, done: int, batch_size: int, show: bool):
        self.path, self.run, self.steps, self.batch_size = path, run, steps, batch_size
        self.start, self.done_at_start, self.written = time.perf_counter(), done, 0.0
        self.bar = tqdm(total=steps, initial=done, desc=run, unit="step", disable=not show, leave=False)

    def update(self, step: int, loss: float | None) -> None:
        now = time.perf_counter()
        if now - self.written < 1 and step < self.steps:
            return
        speed = (step - self.done_at_start) / max(1e-9, now - self.start)
        state = {"run": self.run, "step": step, "steps": self.steps, "images_per_second": round(speed * self.batch_size, 1), "loss": loss}
        artifacts.write_json(self.path, state | {"seconds_left": round((self.steps - step) / max(speed, 1e-9), 1)})
        self.bar.set_postfix({"images/s": round(speed * self.batch_size), "loss": loss}, refresh=False)
        self.bar.update(step - self.bar.n)
        self.written = now

    def close(self) -> None:
        self.bar.close()
        self.path.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------------------------- the loop
def train(settings: dict, images: data.ImageSet | None = None, show_progress: bool = False) -> Path:
    """Train one run to its end and return its folder; a finished run is left as it is, an interrupted one goes on from its checkpoint.

    settings: from ``lib.settings.resolve``. Raises ValueError for settings or data that cannot work, before any training, and
    TrainingStopped if the loss stops being finite or the outputs collapse.
    """
    images = training_images(settings) if images is None else images
    run, profile = resolution.run_name(settings), settings["profile"]
    folder, run_hash = artifacts.run_dir(profile, run), resolution.run_hash(settings, images.checksum)
    if is_finished(profile, run, run_hash):
        return folder
    batch_size, epochs = settings["batch_size"], settings["epochs"]
    steps_per_epoch = len(images) // batch_size
    if epochs and not steps_per_epoch:
        raise ValueError(f"{images.title} has {len(images)} images, fewer than one batch of {batch_size}; lower batch_size.")
    augmentations.recipe(settings["augmentation"])
    device = best_device()
    precision = precision_of(settings, device)
    method = methods.build(settings, images.images.shape[3]).to(device).train()
    steps, warmup = epochs * steps_per_epoch, round(settings["warmup_epochs"] * steps_per_epoch)
    learning_rate_factor(warmup, max(1, steps), warmup, settings["schedule"])

    config = {
        "run": run, "run_hash": run_hash, "settings": resolution.trained_with(settings), "precision": precision,
        "data": {"title": images.title, "checksum": images.checksum, "images": len(images), "source": images.source},
        "parameters": sum(parameter.numel() for parameter in method.parameters()), "threads": torch.get_num_threads(),
        **artifacts.provenance(),
    }  # fmt: skip
    artifacts.write_json(folder / "config.json", config | {"finished": False})
    log: list[dict] = []
    seconds = 0.0
    if steps:
        log, seconds = _optimise(method, images, settings, folder, run_hash, device, precision, steps_per_epoch, warmup, show_progress)
    speed = round(steps * batch_size / seconds, 1) if seconds else None
    artifacts.write_csv(folder / "log.csv", pd.DataFrame(log, columns=None if log else ["step", "epoch", "loss"]))
    artifacts.write_json(folder / "config.json", config | {"finished": True, "seconds": round(seconds, 1), "images_per_second": speed})
    artifacts.write_tensors(folder / "model.safetensors", method.state_dict(), {"run": run, "run_hash": run_hash})
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)
    return folder


def _optimise(method, images, settings, folder, run_hash, device, precision, steps_per_epoch, warmup, show_progress):
    """Train from the last checkpoint to the end; returns the log rows and the seconds spent over all sittings."""
    batch_size, seed, steps = settings["batch_size"], settings["seed"], settings["epochs"] * steps_per_epoch
    run, checkpoint = resolution.run_name(settings), folder / "checkpoint.safetensors"
    optimizer = make_optimizer(method, settings)
    step, log, seconds = 0, [], 0.0
    if checkpoint.exists() and artifacts.read_tensors(checkpoint)[1].get("run_hash") == run_hash:
        info = load_checkpoint(checkpoint, method, optimizer)
        step, log, seconds = info["step"], info["log"], info["seconds"]
    resident = images.to(device)
    log_every = max(1, steps_per_epoch // LOGS_PER_EPOCH)
    generator = torch.Generator()
    progress = Progress(folder / "progress.json", run, steps, step, batch_size, show_progress)
    terms, loss, started, saved = [], None, time.perf_counter() - seconds, time.perf_counter()

    def index_batches(begin: int):
        for epoch in range(begin // steps_per_epoch, settings["epochs"]):
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed_of(seed, "order", epoch)))
            first = max(0, begin - epoch * steps_per_epoch)
            yield from order[first * batch_size : steps_per_epoch * batch_size].split(batch_size)

    try:
        for batch in data.batches(resident, index_batches(step)):
            torch.manual_seed(seed_of(seed, "method", step))
            if hasattr(method, "set_epoch"):
                method.set_epoch(step / steps_per_epoch)
            views = augmentations.make_views(batch, settings, generator.manual_seed(seed_of(seed, "views", step)))
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                named = method.loss(views)
            optimizer.zero_grad(set_to_none=True)
            named["loss"].backward()
            if settings["clip_norm"]:
                nn.utils.clip_grad_norm_(method.parameters(), settings["clip_norm"])
            factor = learning_rate_factor(step, steps, warmup, settings["schedule"])
            for group in optimizer.param_groups:
                group["lr"] = settings["learning_rate"] * (1.0 if group["constant"] else factor)
            optimizer.step()
            step += 1
            if hasattr(method, "update_target"):
                method.update_target(step / steps)
            terms.append({name: value.detach() for name, value in named.items()})

            if step % log_every == 0 or step == steps:
                means = {name: torch.stack([row[name] for row in terms]).float().mean().item() for name in terms[0]}
                terms, loss = [], round(means["loss"], 4)
                _guard(means, step, steps_per_epoch, method, run)
                elapsed = time.perf_counter() - started
                row = {"step": step, "epoch": step / steps_per_epoch, "seconds": round(elapsed, 2)}
                log.append(row | {"learning_rate": settings["learning_rate"] * factor} | means)
                if time.perf_counter() - saved > CHECKPOINT_SECONDS and step < steps:
                    save_checkpoint(checkpoint, method, optimizer, {"run_hash": run_hash, "step": step, "log": log, "seconds": elapsed})
                    saved = time.perf_counter()
            progress.update(step, loss)
    finally:
        progress.close()
    return log, time.perf_counter() - started


def _guard(means: dict, step: int, steps_per_epoch: int, method: nn.Module, run: str) -> None:
    advice = "Try a smaller learning_rate, a clip_norm of 1, or precision='float32'."
    if not all(math.isfinite(value) for value in means.values()) or not all(bool(p.isfinite().all()) for p in method.parameters()):
        raise TrainingStopped(f"{run}: loss or weights are not finite at step {step} ({means}). The last checkpoint is kept. {advice}")
    if step >= steps_per_epoch and means.get("spread", 1.0) < COLLAPSED_SPREAD:
        raise TrainingStopped(
            f"{run}: the outputs have collapsed to one point at step {step} (spread {means['spread']:.2g} of 1). "
            "The last checkpoint is kept. Check that the target is detached and the predictor is there, or try a smaller learning_rate."
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Train one run listed in settings/experiments.toml.")
    parser.add_argument("--run", required=True, help="its name, <method>-<dataset>-<variant>-seed<k>")
    parser.add_argument("--profile", default="quick")
    arguments = parser.parse_args()
    print(train(resolution.find_run(arguments.run, arguments.profile), show_progress=True))


if __name__ == "__main__":
    main()
