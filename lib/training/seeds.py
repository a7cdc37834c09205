"""Seeds of the random numbers of a run."""

import torch

from lib.runs import store


def seed_of(seed: int, purpose: str, index: int) -> int:
    """A 60-bit seed for one use of randomness, independent between purposes and indices.

    Example:
        >>> seed_of(0, "views", 7) == seed_of(1, "views", 7)
        False
    """
    return int(store.sha256(f"{seed}/{purpose}/{index}")[:15], 16)


def seed_noise(seed: int, device: torch.device) -> None:
    """Seed the noise that a loss draws on ``device``.

    As torch.manual_seed, which on a CPU also looks for GPUs of three makers: a twentieth of
    SimVAE's step with 12 images.

    Example:
        >>> seed_noise(0, torch.device("cpu"))
    """
    if device.type == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)
