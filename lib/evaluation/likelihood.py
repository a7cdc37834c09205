"""What a likelihood on embeddings is and says: its mass over the sphere, and what VJE's variances follow (notebook 60)."""

import math
from itertools import pairwise

import numpy as np
import torch
from torch.nn import functional as F

from lib.distributions import DirectionalStudentT, log_sphere_area
from lib.evaluation import measure as protocol
from lib.evaluation import uncertainty
from lib.runs import store as artifacts

NODES = 200
# What VJE and the battery say of an image, as figures and tables call it; FORMS are one likelihood, under different z and measures.
SCORES = {
    "negative_log_likelihood": "likelihood",
    "directional": "direction alone",
    "radial": "length alone",
    "kl": "KL alone",
    "likelihood_and_kl": "likelihood and KL",
    "other_view": "other view",
    "averaged_likelihood": "averaged over z",
    "negative_bound": "negative bound",
    "density_likelihood": "density of s",
    "log_variance": "mean log v",
    "mahalanobis": "Mahalanobis distance",
    "knn_distance": "k-NN distance",
    "feature_norm": "feature norm",
    "max_softmax": "max softmax (labels)",
}
FORMS = ["likelihood", "averaged over z", "negative bound", "density of s"]


def mass_over_sphere(
    dim: int, scale: float, degrees_of_freedom: float, intrinsic: bool = True
) -> float:
    """∫ p(u) du over S^{D-1} of DirectionalStudentT with one scale for all coordinates, in closed form but for the angle θ between u and loc.

    ``|S^{D-2}| ∫_0^π p(θ) sin^{D-2} θ dθ`` by Gauss-Legendre quadrature on intervals that grow from the scale on. dim: D >= 2; scale: the square
    root of squared_scale, in radians. One for a density; at most one for a sub-density. ValueError for D < 2 or a scale that is not positive.
    """
    if dim < 2 or not 0 < scale < math.inf:
        raise ValueError(
            f"dim is {dim} and scale {scale}; they must be at least 2, and positive and finite."
        )
    from scipy.integrate import fixed_quad  # slow to import

    loc, across = torch.eye(dim, dtype=torch.float64)[:2]
    density = DirectionalStudentT(
        loc, torch.full_like(loc, scale**2), degrees_of_freedom, intrinsic, validate_args=False
    )

    def ring(angle: np.ndarray) -> np.ndarray:
        angle = torch.from_numpy(angle)
        u = angle.cos()[:, None] * loc + angle.sin()[:, None] * across  # [NODES, D]
        return (
            (
                density.log_prob(u)
                + log_sphere_area(dim - 1)
                + (dim - 2) * angle.sin().clamp(min=1e-300).log()
            )
            .exp()
            .numpy()
        )

    edges = np.unique(np.clip(np.geomspace(scale * 1e-3, math.pi, 24), 0, math.pi))
    return float(
        sum(fixed_quad(ring, low, high, n=NODES)[0] for low, high in pairwise([0.0, *edges]))
    )


@torch.no_grad()
def measure_variances(run: protocol.Run, notebook: str) -> None:
    """How far a VJE run's variances differ, and what they follow, as metrics of ``notebook`` and scores <dataset>_variances.

    From two views of ``condition_images`` training images (sample): v of the first, and the residual ``D (u' - m/|m|)²`` of the second's direction
    from what the first predicts, which v is the scale of. Scores: mean over images of log v and of the residual for each feature, and mean over
    features for each image. Metrics of condition features and images: spread, the standard deviation of those mean log v over features or
    images; residual_spearman, their rank correlation with the mean residuals.
    """
    few, views = protocol.embed_views(run, 2)
    first, second = (torch.from_numpy(view["features"]) for view in views)  # [N, D]
    method = run.method.cpu().eval()
    mean, log_variance = method.posterior(first)
    residual = first.shape[1] * (F.normalize(second, dim=1) - F.normalize(mean, dim=1)).square()
    scores, rows = {}, []
    for condition, axis in (("features", 0), ("images", 1)):
        own, apart = (values.mean(axis).double().numpy() for values in (log_variance, residual))
        scores |= {
            f"{condition}_log_variance": own.astype(np.float32),
            f"{condition}_residual": apart.astype(np.float32),
        }
        for metric, statistic, arrays in (
            ("spread", np.std, [own]),
            ("residual_spearman", uncertainty.rank_correlation, [own, apart]),
        ):
            row = {
                "evaluated_on": few.title,
                "condition": condition,
                "score": "log_variance",
                "metric": metric,
                "n": len(own),
            }
            rows.append(
                row
                | uncertainty.with_interval(
                    statistic, *arrays, draws=run.settings["bootstrap_draws"]
                )
            )
    artifacts.write_scores(run.profile, run.name, f"{run.settings['dataset']}_variances", scores)
    run.write_metrics(rows, notebook, "variances")
