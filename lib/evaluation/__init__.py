"""Measures of a trained network. Their names can be imported from here, and are loaded when used.

Example:
    >>> from lib import evaluation
    >>> probe = evaluation.linear_probe(train["features"], train["label"])
"""

from lib.lazy import lazily

_NAMES = {
    "embed": (
        "Embedded blur centre_crop conditions embed_cached embed_images input_transform "
        "native_names pixels_of_square square_crop"
    ),
    "encoders": "Encoder UNLIKE unlikeness",
    "measure": (
        "Run available copied_images embed_views is_measured kappa_of_views "
        "measure_paper_probe measure_run missing_other_sets missing_sets"
    ),
    "probes": (
        "NEAREST OWN_PROBE PAPER_PROBE PENALTIES Probe TEMPERATURE knn_predict "
        "linear_probe mahalanobis_distance paper_probe"
    ),
    "results": "REFERENCES UNTRAINED compared_runs learned measured measured_runs required",
    "shift": (
        "CORRUPTIONS corrupted corruption_errors mean_corruption_error measure_corruptions "
        "measure_own_scores"
    ),
    "suite": (
        "OOD_MEASURES as_uncertainty evaluate ood_rows score_images unsupervised_uncertainties"
    ),
    "uncertainty": (
        "UndefinedStatistic aurc augrc auroc average_precision bootstrap_interval "
        "calibrated_ece confidence_bins confidence_calibration_error effective_rank excess_aurc "
        "fpr_at_95_tpr nearest_neighbour_correct nll_per_image "
        "rank_correlation risk_coverage_curve roc_curve "
        "with_interval"
    ),
}
_HOMES = {}
for _module, _names in _NAMES.items():
    _HOMES |= dict.fromkeys(_names.split(), _module)
_MODULES = (
    *_NAMES,
    "finetune",
    "generation",
    "image_scores",
    "intervals",
    "kappa",
    "parts",
    "style",
    "theory",
    "toys",
)
__all__ = [*_HOMES, *_MODULES]
__getattr__, __dir__ = lazily(__name__, _MODULES, _HOMES)
