"""A small library of probabilistic self-supervised learning.

Distributions, losses, methods and uncertainty measures of five papers.

Its modules are imported when they are used, as torch is slow to import:

    import lib
    lib.distributions.PowerSpherical
"""

from lib.lazy import lazily

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
    """The committed encoder of a method; see ``lib.evaluation.encoders.load``.

    Example:
        encoder = lib.load("vi_simsiam")
        kappa = encoder.embed(encoder.prepare("cat.jpg")).native["kappa"]
    """
    from lib.evaluation import encoders

    return encoders.load(name)


__getattr__, __dir__ = lazily(__name__, _MODULES)
