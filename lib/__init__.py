"""A small library of probabilistic self-supervised learning.

Distributions, losses, methods and uncertainty measures of five papers.
"""


def load(name: str):
    """The committed encoder of a method, e.g.

    ``lib.load("vi_simsiam")``; see ``lib.evaluation.encoders.load``.
    """
    from lib.evaluation import encoders

    return encoders.load(name)
