"""What is not finite never becomes a plausible number: it is an error, or a loss that is NaN."""

import math

import numpy as np
import pytest
import torch

from lib import losses
from lib.evaluation import intervals, kappa, probes, style, uncertainty

COUNT = 24
COLUMNS = 5
CLASSES = 3

generator = np.random.default_rng(0)
LABELS = np.arange(COUNT) % CLASSES
POSITIVE = np.arange(COUNT) % 2 == 0
SCORE = generator.normal(size=COUNT)
OTHER = generator.normal(size=COUNT)
FEATURES = generator.normal(size=(COUNT, COLUMNS)) + LABELS[:, None]
PROBABILITIES = np.full((COUNT, CLASSES), 1 / CLASSES)

# ------------------------------------------------------------------------- evaluation
OF_SCORES = {
    "auroc": lambda score: uncertainty.auroc(score, POSITIVE),
    "average_precision": lambda score: uncertainty.average_precision(score, POSITIVE),
    "fpr_at_95_tpr": lambda score: uncertainty.fpr_at_95_tpr(score, POSITIVE),
    "roc_curve": lambda score: uncertainty.roc_curve(score, POSITIVE),
    "aurc": lambda score: uncertainty.aurc(score, POSITIVE),
    "augrc": lambda score: uncertainty.augrc(score, POSITIVE),
    "rank_correlation": lambda score: uncertainty.rank_correlation(score, OTHER),
    "select": lambda score: kappa.select(score, LABELS, 0.5, "highest κ", seed=0),
    "mean_over_seeds": intervals.mean_over_seeds,
}
OF_FEATURES = {
    "effective_rank": uncertainty.effective_rank,
    "nearest_neighbour_correct": lambda x: uncertainty.nearest_neighbour_correct(x, LABELS),
    "knn_predict": lambda x: probes.knn_predict(x, LABELS, x, k=3),
    "linear_probe": lambda x: probes.linear_probe(x, LABELS, [0.1]),
    "mahalanobis_distance": lambda x: probes.mahalanobis_distance(x),
    "variance_within": lambda x: style.variance_within(x, LABELS),
    "frechet_distance": lambda x: style.frechet_distance(x, FEATURES),
}
OF_PROBABILITIES = {
    "nll_per_image": uncertainty.nll_per_image,
    "brier_per_image": uncertainty.brier_per_image,
    "top5_correct": uncertainty.top5_correct,
}
MEASURES = {name: (SCORE, measure) for name, measure in OF_SCORES.items()}
MEASURES |= {name: (FEATURES, measure) for name, measure in OF_FEATURES.items()}
for name, measure in OF_PROBABILITIES.items():
    MEASURES[name] = (PROBABILITIES, lambda p, measure=measure: measure(p, LABELS))
CASES = [(name, math.nan) for name in MEASURES]
# An infinite score has a rank.
CASES += [(name, math.inf) for name in OF_FEATURES | OF_PROBABILITIES]


@pytest.mark.parametrize(("name", "bad"), CASES)
def test_a_measure_refuses_what_is_not_finite(name, bad):
    values, measure = MEASURES[name]
    measure(values)
    spoilt = values.copy()
    spoilt.flat[3] = bad
    with pytest.raises(ValueError):
        measure(spoilt)


# ------------------------------------------------------------------------- losses
BATCH = 8
torch_generator = torch.Generator().manual_seed(0)
FIRST = torch.randn(BATCH, 16, generator=torch_generator)
SECOND = torch.randn(BATCH, 16, generator=torch_generator)
KAPPA = torch.linspace(1, 100, BATCH)
# Losses of two batches of vectors
LOSSES = {
    "simsiam": losses.simsiam_loss,
    "byol": losses.byol_loss,
    "vi_simsiam": lambda p, z: losses.vi_simsiam_loss(p, KAPPA, z),
    "info_nce": losses.info_nce_loss,
    "moco": lambda q, k: losses.moco_loss(q, k, torch.nn.functional.normalize(SECOND, dim=1)),
    "moco_v3": losses.moco_v3_loss,
    "barlow_twins": losses.barlow_twins_loss,
    "vicreg": lambda a, b: losses.vicreg_loss(a, b)["loss"],
    "dino": lambda s, t: losses.dino_loss(s, t, torch.zeros(t.shape[1])),
    "scoring_rule": lambda s, t: losses.scoring_rule(torch.stack([s, 2 * s]), t).mean(),
    "simvae": lambda r, x: losses.simvae_loss(
        r[None], x[None], r[None], x[None].clamp(-5, 5), r[None]
    )["loss"],
    "vae": lambda r, x: losses.vae_loss(r, x, r, x.clamp(-5, 5))["loss"],
    "vje": lambda t, m: losses.vje_loss(t, m, m.clamp(-5, 5), m)["loss"],
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_a_spoilt_batch_never_has_a_plausible_loss(name, bad, which):
    """Training stops at a loss that is not finite, or with the sentence of an error."""
    views = [FIRST.clone(), SECOND.clone()]
    views[which][2, 3] = bad
    try:
        value = LOSSES[name](*views)
    except ValueError:
        return
    assert not value.isfinite()
