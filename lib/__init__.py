"""A small library of probabilistic self-supervised learning.

Distributions, losses, methods and uncertainty measures of five papers.

Its modules are imported when they are used, as torch is slow to import:

    import lib
    lib.distributions.PowerSpherical
"""

from importlib import import_module

_MODULES = (
    "claims",
    "data",
    "distributions",
    "evaluation",
    "figures",
    "losses",
    "methods",
    "networks",
    "runs",
    "training",
)


def load(name: str):
    """The committed encoder of a method, e.g.

    ``lib.load("vi_simsiam")``; see ``lib.evaluation.encoders.load``.
    """
    from lib.evaluation import encoders

    return encoders.load(name)


def __getattr__(name: str):
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
