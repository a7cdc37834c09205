"""Measures of a trained network.

Its modules, and the names that notebooks use most, are loaded when they are used.

Example:
    >>> from lib import evaluation
    >>> probe = evaluation.linear_probe(train["features"], train["label"])
"""

from lib.lazy import lazily

_MODULES = (
    "embed",
    "encoders",
    "finetune",
    "generation",
    "image_scores",
    "intervals",
    "kappa",
    "measure",
    "parts",
    "people",
    "probes",
    "results",
    "salience",
    "shift",
    "similarities",
    "style",
    "suite",
    "theory",
    "toys",
    "uncertainty",
)
_HOMES = {
    "Embedded": "embed",
    "embed_images": "embed",
    "input_transform": "embed",
    "Run": "measure",
    "available": "measure",
    "copied_images": "measure",
    "measure_run": "measure",
    "missing_other_sets": "measure",
    "missing_sets": "measure",
    "linear_probe": "probes",
    "compared_runs": "results",
    "learned": "results",
    "measured": "results",
    "measured_runs": "results",
    "required": "results",
    "as_uncertainty": "suite",
    "auroc": "uncertainty",
    "calibrated_ece": "uncertainty",
    "rank_correlation": "uncertainty",
    "with_interval": "uncertainty",
}
__all__ = [*_HOMES, *_MODULES]
__getattr__, __dir__ = lazily(__name__, _MODULES, _HOMES)
