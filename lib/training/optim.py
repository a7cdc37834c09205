"""Optimisers and the schedules of their learning rate and weight decay."""

import torch
from torch import nn

from lib.networks import cosine_between


def make_optimizer(method: nn.Module, settings: dict) -> torch.optim.Optimizer:
    """The optimiser that the settings name, over the groups of ``parameter_groups``."""
    name = settings["optimizer"]
    rate = settings["learning_rate"]
    groups = parameter_groups(method, settings)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=rate, momentum=settings["momentum"])
    if name == "lars":
        from timm.optim import Lars  # slow to import

        return Lars(groups, lr=rate, momentum=settings["momentum"])

    # The fused step is several times faster. On a CPU (torch 2.11) it pairs a parameter with its
    # moments by their place in memory. Moments read from a checkpoint are contiguous, so for a
    # parameter with channels last the fused step would be silently wrong.
    fused = all(p.is_contiguous() for p in method.parameters() if p.requires_grad)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=rate, fused=fused)
    if name == "adam":
        return torch.optim.Adam(groups, lr=rate, eps=settings["adam_epsilon"], fused=fused)
    raise ValueError(f"Unknown optimizer {name!r}; choose 'sgd', 'lars', 'adamw' or 'adam'.")


def parameter_groups(method: nn.Module, settings: dict) -> list[dict]:
    """The trained parameters in up to four groups: matrices or vectors, of a predictor or not.

    The learning rate of a predictor may stay constant (SimSiam, §4.2). With LARS, biases and the
    parameters of batch norm are neither decayed nor adapted (You et al. 2017, as in SimCLR, BYOL
    and Barlow Twins). Where a recipe says ``decays_matrices_only`` they are not decayed either.
    Otherwise matrices and vectors share a group.

    Each group has ``constant`` (its learning rate) and ``decays`` (whether it has weight decay).
    """
    lars = settings["optimizer"] == "lars"
    separates_vectors = lars or settings.get("decays_matrices_only", False)
    parameters: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in method.named_parameters():
        if parameter.requires_grad:
            is_vector = separates_vectors and parameter.ndim < 2
            in_predictor = name.startswith("predictor.")
            is_constant = settings["constant_predictor_learning_rate"] and in_predictor
            parameters.setdefault((is_vector, is_constant), []).append(parameter)

    groups = []
    for is_vector, is_constant in sorted(parameters):
        group = {
            "params": parameters[is_vector, is_constant],
            "constant": is_constant,
            "decays": not is_vector,
            "weight_decay": 0.0 if is_vector else settings["weight_decay"],
        }
        if lars:
            group["always_adapt"] = not is_vector
        groups.append(group)
    return groups


def learning_rate_factor(step: int, steps: int, warmup: int, schedule: str) -> float:
    """Factor on the learning rate at ``step`` of ``steps``.

    It rises linearly over ``warmup`` steps. Then it is constant, or ``½ (1 + cos(π t))`` where t
    goes from 0 at the end of the warm-up to 1 at the end of the run.

    Example:
        learning_rate_factor(0, steps=10, warmup=2, schedule="cosine")  # 0.5
        learning_rate_factor(6, steps=10, warmup=2, schedule="cosine")  # 0.5, half the way down
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    if schedule == "cosine":
        return cosine_between(1.0, 0.0, (step - warmup) / max(1, steps - warmup))
    raise ValueError(f"Unknown schedule {schedule!r}; choose 'cosine' or 'constant'.")


def set_rates(
    optimizer: torch.optim.Optimizer, settings: dict, factor: float, progress: float
) -> None:
    """Set learning rate and weight decay of every group for the coming step.

    factor: from ``learning_rate_factor``. progress: the share of the epochs that are done. With
    ``weight_decay_end`` the decay moves to that value on half a cosine (DINO, App. C; ProSMin, §5).
    """
    for group in optimizer.param_groups:
        group["lr"] = settings["learning_rate"] * (1.0 if group["constant"] else factor)
        if "weight_decay_end" in settings and group["decays"]:
            group["weight_decay"] = cosine_between(
                settings["weight_decay"], settings["weight_decay_end"], progress
            )
