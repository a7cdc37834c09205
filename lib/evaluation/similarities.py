"""What SimCLR keeps of style by the similarity in its loss (SimVAE, §4.3.2 and App. A.5).

SimCLR is trained shortly with the cosine and with the dot product, on images of known style. Its
encoder and its projector are compared: the style that probes read from each, and how much of the
variance is among views of an image.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
import torch
from torch import nn

from lib.data import sources
from lib.data.sets import ImageSet
from lib.evaluation import probes, theory
from lib.evaluation.style import chance, mlp_probe, skill, truth_of, variance_within
from lib.evaluation.uncertainty import with_interval
from lib.runs import settings

# What is changed in the usual recipe of SimCLR
SIMILARITIES = {
    "cosine, τ = 0.5": {"temperature": 0.5},
    "dot product, τ = 10": {"temperature": 10.0, "similarity": "dot"},
    "untrained": {},
}
SIMCLR = {"learning_rate": 1e-3, "representation": 64}  # of all of them
KNN = "content, k-NN"  # beside the factors, which an MLP predicts


# ------------------------------------------------------------------------- differences over images
@dataclass
class ProbedFactor:
    """One factor of N images, and what the probes of two representations predict of it.

    scale: the skill of a probe of raw pixels minus chance, of all images.
    """

    truth: np.ndarray  # [N]
    first: np.ndarray  # [N]
    second: np.ndarray  # [N]
    scale: float


def retention_difference(factors: Sequence[ProbedFactor], draws: int = 2000) -> dict[str, float]:
    """Retention by the first minus that by the second representation, mean over factors.

    Returns difference, its 95 % bootstrap interval over images (ci_low, ci_high), and n. All
    factors are of the same images in the same order, and a draw takes an image with all factors.
    """

    def mean_difference(images: np.ndarray) -> float:
        differences = []
        for factor in factors:
            truth = factor.truth[images]
            gain = skill(factor.first[images], truth) - skill(factor.second[images], truth)
            differences.append(gain / factor.scale)
        return float(np.mean(differences))

    return _difference_over_images(mean_difference, len(factors[0].truth), draws)


def _difference_over_images(
    difference: Callable[[np.ndarray], float], count: int, draws: int
) -> dict[str, float]:
    """A function of the indices of images: difference, ci_low, ci_high and n."""
    interval = with_interval(difference, np.arange(count), draws=draws)
    return {"difference": interval.pop("value"), **interval, "n": count}


def variance_difference(
    first: np.ndarray, second: np.ndarray, draws: int = 500
) -> dict[str, float]:
    """``variance_within`` the N images of first minus that of second, [V, N, L] in V views each.

    Returns difference, its 95 % bootstrap interval over images (ci_low, ci_high), and n.
    """

    def share(features: np.ndarray, images: np.ndarray) -> float:
        views, _, length = features.shape
        groups = np.tile(np.arange(len(images)), views)
        return variance_within(features[:, images].reshape(-1, length), groups)

    def difference(images: np.ndarray) -> float:
        return share(first, images) - share(second, images)

    return _difference_over_images(difference, first.shape[1], draws)


# --------------------------------------------------------------------------------- short trainings
@dataclass
class ProbedLayer:
    """The outputs [V, N, L] of a layer for V views of N images, and what probes predict from it.

    predicted: factor -> predictions for the test images.
    """

    views: np.ndarray
    predicted: dict[str, np.ndarray]


@dataclass
class Similarities:
    """What the layers of SimCLR keep after short trainings by the similarities of SIMILARITIES.

    - layers: one row a similarity, layer (encoder, projector) and factor (the style factors,
      "content" by the MLP probe, and KNN): skill, chance, pixels (skill from raw pixels) and
      retention; variance_within views of an image, of the layer.
    - differences: one row a question, with difference, its bootstrap interval over images, seeds
      (one) and counts. Questions: "style kept" and "variance among views", encoder minus projector,
      of each similarity; k-NN accuracy of one similarity minus another ("cosine minus dot
      product"), which counts only if both beat the untrained network.
    """

    layers: pd.DataFrame
    differences: pd.DataFrame


@cache
def measure_similarities(profile: str) -> Similarities:
    """Train SimCLR shortly by each similarity on images of known style, and probe its layers."""
    budget = settings.profile_settings(profile)
    dataset = budget["factor_sets"][0]
    base = settings.resolve("simclr_latent", profile, dataset=dataset) | SIMCLR
    train_count, test_count = budget["factor_images"]
    size = base["image_size"]
    train = sources.load(dataset, "train", image_size=size).sample(train_count)
    test = sources.load(dataset, "test", image_size=size).sample(test_count)
    layers = {}
    for name, changes in SIMILARITIES.items():
        steps = budget["similarity_steps"] if changes else 0
        training = theory.short_training(base | changes, steps)
        method = training.method
        projector = nn.Sequential(method.backbone, method.projector)
        for layer, network in (("encoder", method.backbone), ("projector", projector)):
            layers[name, layer] = _probe_layer(network, training.views, train, test)
    pixels = _probe_layer(nn.Flatten(), training.views, train, test)
    table = _layers_table(layers, pixels, train, test)
    return Similarities(table, _differences(layers, table, test, budget["bootstrap_draws"]))


@torch.no_grad()
def _probe_layer(
    network: nn.Module, views: list[torch.Tensor], train: ImageSet, test: ImageSet
) -> ProbedLayer:
    network = network.eval().cpu()
    train_x = network(train.batch(range(len(train))).float() / 255).float().numpy()
    test_x = network(test.batch(range(len(test))).float() / 255).float().numpy()
    predicted = {KNN: probes.knn_predict(train_x, train.labels, test_x)[0]}
    for factor in ("content", *sources.style_factors(train)):
        predicted[factor] = mlp_probe(train_x, _truth(train, factor), test_x)
    outputs = torch.stack([network(view.cpu()) for view in views])
    return ProbedLayer(outputs.float().numpy(), predicted)


def _layers_table(
    layers: dict[tuple[str, str], ProbedLayer], pixels: ProbedLayer, train: ImageSet, test: ImageSet
) -> pd.DataFrame:
    rows = []
    for (similarity, layer), probed in layers.items():
        views, count, length = probed.views.shape
        groups = np.tile(np.arange(count), views)
        share = variance_within(probed.views.reshape(-1, length), groups)
        for factor, predicted in probed.predicted.items():
            truth = _truth(test, factor)
            row = {"similarity": similarity, "layer": layer, "factor": factor}
            row["skill"] = skill(predicted, truth)
            row["chance"] = chance(_truth(train, factor), truth)
            row["pixels"] = skill(pixels.predicted[factor], truth)
            rows.append(row | {"variance_within": share})
    table = pd.DataFrame(rows)
    range_of_skill = (table.pixels - table.chance).where(table.pixels > table.chance)
    return table.assign(retention=(table.skill - table.chance) / range_of_skill)


def _differences(
    layers: dict[tuple[str, str], ProbedLayer], table: pd.DataFrame, test: ImageSet, draws: int
) -> pd.DataFrame:
    rows = []
    is_style = ~table.factor.isin(["content", KNN]) & table.retention.notna()
    scales = table[is_style].groupby("factor").first().eval("pixels - chance")
    for similarity in SIMILARITIES:
        encoder = layers[similarity, "encoder"]
        projector = layers[similarity, "projector"]
        factors = []
        for factor, scale in scales.items():
            factors.append(
                ProbedFactor(
                    truth=_truth(test, factor),
                    first=encoder.predicted[factor],
                    second=projector.predicted[factor],
                    scale=scale,
                )
            )
        kept = retention_difference(factors, draws)
        variance = variance_difference(encoder.views, projector.views, draws // 4)
        for question, difference in (("style kept", kept), ("variance among views", variance)):
            row = {"question": f"{question}, encoder minus projector", "similarity": similarity}
            rows.append(row | difference)
    accuracy = {}
    for name in SIMILARITIES:
        accuracy[name] = (layers[name, "encoder"].predicted[KNN] == test.labels).astype(float)
    for first, second in itertools.combinations(SIMILARITIES, 2):
        interval = with_interval(np.mean, accuracy[first] - accuracy[second], draws=draws)
        question = f"{first.split(',')[0]} minus {second.split(',')[0]}"
        row = {"question": question, "difference": interval.pop("value")}
        rows.append(row | interval | {"n": len(test)})
    frame = pd.DataFrame(rows)
    gains = frame[frame.question.str.endswith("minus untrained")]
    is_compared = frame.question == "cosine minus dot product"
    return frame.assign(seeds=1, counts=~is_compared | (gains.ci_low > 0).all())


def _truth(images: ImageSet, factor: str) -> np.ndarray:
    return images.labels if factor == KNN else truth_of(images, factor)
