"""Seeds of the random numbers of a run."""

from lib.runs import store


def seed_of(seed: int, purpose: str, index: int) -> int:
    """A 60-bit seed for one use of randomness, independent between purposes and indices.

    Example:
        >>> seed_of(0, "views", 7) == seed_of(1, "views", 7)
        False
    """
    return int(store.sha256(f"{seed}/{purpose}/{index}")[:15], 16)
