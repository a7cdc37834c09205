"""Files of trained weights: checkpoints of a run under way, and the weights of a finished one."""

from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor, nn

from lib import methods
from lib.runs import store
from lib.runs.settings import run_name
from lib.training.devices import best_device


def save_checkpoint(
    path: Path, method: nn.Module, optimizer: torch.optim.Optimizer, info: dict
) -> None:
    """Write the method, the state of its optimiser and ``info`` to one file, atomically."""
    tensors = {}
    for name, tensor in method.state_dict().items():
        tensors[f"method.{name}"] = tensor
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value
    store.write_tensors(path, tensors, info)


def load_checkpoint(path: Path, method: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Put what ``save_checkpoint`` wrote into method and optimiser; returns its ``info``."""
    tensors, info = store.read_tensors(path, ("step", "log", "seconds"))
    weights: dict[str, Tensor] = {}
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        owner, rest = name.split(".", 1)
        if owner == "method":
            weights[rest] = tensor
        else:
            index, key = rest.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
    fill(method, weights, path)
    optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
    return info


def fill(
    module: nn.Module,
    tensors: dict[str, Tensor],
    path: Path,
    parts: Collection[str] | None = None,
) -> None:
    """Put stored tensors into a module.

    path: the file they come from, which the error names. parts: the parts of the module that must
    be stored, by default all. ValueError where names or shapes do not fit.
    """
    state = module.state_dict()
    required = list(state)
    if parts is not None:
        required = [name for name in state if name.split(".")[0] in parts]
    missing = [name for name in required if name not in tensors]
    unexpected = [name for name in tensors if name not in state]
    shared = [name for name in tensors if name in state]
    misshapen = [name for name in shared if tensors[name].shape != state[name].shape]
    if missing or unexpected or misshapen:
        raise ValueError(
            f"{path} does not fit {type(module).__name__} (missing {missing[:3]}, unexpected "
            f"{unexpected[:3]}, of another shape {misshapen[:3]}); {store.TRAIN_AGAIN}."
        )
    module.load_state_dict(tensors, strict=False)


def is_finished(profile: str, run: str, run_hash: str) -> bool:
    """Whether the run's weights are stored and belong to exactly these settings and data.

    Example:
        is_finished("standard", "simsiam-cifar10-e40-seed0", run_hash)
    """
    path = store.run_dir(profile, run) / "model.safetensors"
    return path.exists() and store.read_tensors_info(path).get("run_hash") == run_hash


def with_classes(settings: dict, classes: int) -> dict:
    """The settings with the number of classes of the data, where a method has classes."""
    if "classes" in settings:
        return settings | {"classes": classes}
    return settings


def load_trained(settings: dict, channels: int) -> nn.Module:
    """The method of a finished run, in evaluation mode; channels: of its images, 1 or 3.

    FileNotFoundError names the command that trains it, where its weights are missing.

    Example:
        method = load_trained(settings, channels=3)
    """
    run = run_name(settings)
    path = store.run_dir(settings["profile"], run) / "model.safetensors"
    if not path.exists():
        raise FileNotFoundError(
            f"Run {run} has no trained weights here; train it with: "
            f"python -m lib.training {run} --profile {settings['profile']}"
        )
    if "classes" in settings:
        config = store.read_json(store.config_path(settings["profile"], run), ("settings",))
        settings = with_classes(settings, config["settings"]["classes"])
    method = methods.build(settings, channels)
    fill(method, store.read_tensors(path)[0], path)
    return method.to(best_device()).eval()
