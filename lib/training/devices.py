"""Where a run is trained: device, precision, and the processes that share its batches."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lib.runs import store

if TYPE_CHECKING:
    from lightning.fabric import Fabric

PRECISIONS = ("auto", "bf16", "float32")


def best_device() -> torch.device:
    """The GPU if there is one, else the CPU.

    Example:
        >>> images = first.to(best_device())
    """
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def precision_of(settings: dict, device: torch.device) -> str:
    """The precision of the settings; "auto" becomes "bf16" where the device is faster in it.

    Example:
        >>> precision_of({"precision": "float32"}, best_device())
        'float32'
    """
    precision = settings["precision"]
    if precision not in PRECISIONS:
        raise ValueError(f"Unknown precision {precision!r}; choose 'auto', 'bf16' or 'float32'.")
    if precision != "auto":
        return precision
    if device.type == "cuda":
        is_fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        is_fast = _is_bf16_fast_on_cpu()
    return "bf16" if is_fast else "float32"


@contextmanager
def denormals_as_zero() -> Iterator[None]:
    """In this block the CPU takes numbers below 1.2e-38 for zero.

    Adam's moments of a unit that has fallen silent decay to such numbers, with which a CPU computes
    many times as slowly: SimVAE's steps with 12 images of 10 views take 1.5 times as long.

    Example:
        >>> with denormals_as_zero():
        ...     (torch.tensor([1e-38]) / 10).item()
        0.0
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def _is_bf16_fast_on_cpu() -> bool:
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
    else:  # torch 2.9 has no list
        capabilities = {
            "avx512_bf16": torch.cpu._is_avx512_bf16_supported(),
            "amx_bf16": torch.cpu._is_amx_tile_supported(),
        }
    if capabilities.get("amx_bf16") or capabilities.get("bf16"):
        return True
    # Intel's vector units multiply bfloat16 at half the rate of float32. There it pays only with
    # AMX, which virtual machines may hide.
    return bool(capabilities.get("avx512_bf16")) and "Intel" not in store.processor()


@dataclass(frozen=True)
class Processes:
    """The processes that train one run together: this one alone, or those torchrun started.

    rank: the number of this process. count: how many there are. fabric: Lightning's Fabric, which
    averages their gradients.
    """

    device: torch.device
    rank: int = 0
    count: int = 1
    fabric: "Fabric | None" = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def synchronise_batch_norm(self, method: nn.Module) -> nn.Module:
        """On GPUs, let batch norm use the statistics of the whole batch.

        torch has no such layer for CPUs: there each process uses the statistics of its own part.
        """
        if self.fabric and self.device.type == "cuda":
            return nn.SyncBatchNorm.convert_sync_batchnorm(method)
        return method

    def wrap(self, method: nn.Module) -> nn.Module:
        """The method whose ``loss`` averages gradients over the processes in its backward pass."""
        if not self.fabric:
            return method
        wrapped = self.fabric.setup_module(method)
        wrapped.mark_forward_method("loss")
        return wrapped

    def mean(self, values: Tensor) -> Tensor:
        """The mean of the values over the processes."""
        if self.fabric:
            return self.fabric.all_reduce(values, reduce_op="mean")
        return values

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.fabric:
            self.fabric.barrier()


def join_processes() -> Processes:
    """This process and those that torchrun started with it."""
    if not torch.distributed.is_torchelastic_launched():
        return Processes(best_device())
    from lightning.fabric import Fabric  # slow to import
    from lightning.fabric.strategies import DDPStrategy

    processes_per_node = int(os.environ["LOCAL_WORLD_SIZE"])
    nodes = int(os.environ["WORLD_SIZE"]) // processes_per_node
    fabric = Fabric(
        accelerator=best_device().type,
        devices=processes_per_node,
        num_nodes=nodes,
        # A head may be without gradient for a while, as that of κ is during its warm-up.
        strategy=DDPStrategy(find_unused_parameters=True),
    )
    fabric.launch()
    return Processes(fabric.device, fabric.global_rank, fabric.world_size, fabric)
