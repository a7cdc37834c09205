"""What evaluation costs.

Embedding, nearest neighbours, probes and t-SNE, each beside the plain way of doing it.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.manifold import TSNE
from torch.nn import functional as F

from lib import methods
from lib.evaluation import probes as linear
from lib.evaluation.embed import embed_images
from lib.runs import settings as resolution
from tests.benchmarks import measuring
from tests.benchmarks.pretraining import load

BANK = 60_000
QUERIES = 10_000
DIMENSION = 512
CLASSES = 10
RUNS = 3
TSNE_POINTS = 2000  # what notebook 32 draws at most


def clustered(count: int, dimension: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, D] around one centre a class, overlapping as a trained network has them."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, count)
    centres = np.random.default_rng(0).normal(size=(CLASSES, dimension)) * 4 / dimension**0.5
    return (centres[labels] + generator.normal(size=(count, dimension))).astype(np.float32), labels


def embedding() -> dict:
    settings = resolution.resolve("simsiam", "standard")
    network = methods.build(settings, 3).eval()
    images = load("cifar10", 32).subset(np.arange(10_000) % 3000)
    batch = torch.rand(512, 3, 32, 32).contiguous(memory_format=torch.channels_last)

    def ours() -> float:
        return len(images) / measuring.seconds_per_call(
            lambda: embed_images(network, images), 1, warm=0
        )

    def bare() -> float:
        with torch.no_grad():
            return 512 / measuring.seconds_per_call(lambda: network.backbone(batch), 10)

    return {"ours": ours, "plain": bare}


def neighbours() -> dict:
    (bank, labels) = clustered(BANK, DIMENSION, 1)
    (queries, _) = clustered(QUERIES, DIMENSION, 2)

    def ours() -> float:
        return measuring.seconds_per_call(
            lambda: linear.knn_predict(bank, labels, queries), 1, warm=0
        )

    def whole_matrix() -> torch.return_types.topk:
        similarity = F.normalize(torch.from_numpy(queries)) @ F.normalize(torch.from_numpy(bank)).T
        return similarity.topk(20, dim=1)

    return {
        "ours": ours,
        "plain": lambda: measuring.seconds_per_call(whole_matrix, 1, warm=0),
        "whole_matrix": whole_matrix,
    }


def probes() -> dict:
    """RUNS logistic regressions, one after the other (ours) and as one problem that a single L-BFGS
    minimises (together).
    """
    runs = [clustered(20_000, 128, seed) for seed in range(RUNS)]
    x = torch.stack(
        [torch.from_numpy(features).T.contiguous() for features, _ in runs]
    )  # [R, D, M]
    y = torch.stack([torch.from_numpy(labels) for _, labels in runs])  # [R, M]

    def in_turn() -> None:
        for features, labels in zip(x, y, strict=True):
            linear._logistic_regression(features, labels, CLASSES, 1e-3)

    def together() -> None:
        weight = torch.zeros(RUNS, CLASSES, x.shape[1], requires_grad=True)
        bias = torch.zeros(RUNS, CLASSES, 1, requires_grad=True)
        optimizer = torch.optim.LBFGS(
            [weight, bias],
            max_iter=200,
            max_eval=300,
            tolerance_grad=1e-5,
            tolerance_change=1e-8,
            line_search_fn="strong_wolfe",
        )

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            logits = torch.baddbmm(bias, weight, x)  # [R, C, M]
            loss = (logits.logsumexp(1) - logits.gather(1, y[:, None])[:, 0]).mean(
                1
            ).sum() + 5e-4 * weight.square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)

    return {
        "ours": lambda: measuring.seconds_per_call(in_turn, 1, 0),
        "plain": lambda: measuring.seconds_per_call(together, 1, 0),
    }


def run(repeats: int) -> None:
    row = {"unit": "s", "note": ""}
    rows = []

    arms = embedding()
    timings = measuring.interleaved(arms, repeats, "embedding")
    rows.append(
        row
        | {
            "what": "embed 10,000 images, 32 px, width 16",
            "unit": "images/s",
            **measuring.summary(timings[timings.arm == "ours"].value),
        }
    )
    ratio = measuring.paired_ratio(timings, "ours", "plain")
    rows.append(
        row
        | {
            "what": "embed 10,000 images, 32 px, width 16",
            "unit": "ratio",
            "note": "to the bare backbone's images/s",
            **ratio,
        }
    )

    arms = neighbours()
    whole = arms.pop("whole_matrix")
    timings = measuring.interleaved(arms, repeats, "k-NN")
    what = f"k-NN, {QUERIES:,} queries in {BANK:,} x {DIMENSION}"
    rows.append(row | {"what": what, **measuring.summary(timings[timings.arm == "ours"].value)})
    ratio = measuring.paired_ratio(timings, "ours", "plain")
    rows.append(
        row
        | {
            "what": what,
            "unit": "ratio",
            "note": "to the time with the whole matrix of similarities",
            **ratio,
        }
    )
    memory = measuring.summary([measuring.peak_megabytes(arms["ours"])])
    rows.append(
        row | {"what": what, "unit": "MB", "note": "peak memory above what is loaded", **memory}
    )
    memory = measuring.summary([measuring.peak_megabytes(whole)])
    rows.append(
        row | {"what": what, "unit": "MB", "note": "the same with the whole matrix", **memory}
    )

    timings = measuring.interleaved(probes(), repeats, "probes")
    what = f"{RUNS} linear probes, 20,000 x 128"
    rows.append(
        row
        | {
            "what": what,
            "note": "one after the other, as here",
            **measuring.summary(timings[timings.arm == "ours"].value),
        }
    )
    ratio = measuring.paired_ratio(timings, "plain", "ours")
    rows.append(
        row
        | {
            "what": what,
            "unit": "ratio",
            "note": "time of all together in one L-BFGS to one after the other",
            **ratio,
        }
    )

    runs = [clustered(20_000, 128, seed) for seed in range(repeats)]
    seconds = [
        measuring.seconds_per_call(lambda given=given: linear.paper_probe(*given, epochs=10), 1, 0)
        for given in runs
    ]
    rows.append(
        row
        | {
            "what": "linear probe by LARS, 20,000 x 128, 10 epochs",
            **measuring.summary(seconds),
        }
    )

    points, _ = clustered(TSNE_POINTS, 128, 3)
    seconds = [
        measuring.seconds_per_call(lambda: TSNE(random_state=0).fit_transform(points), 1, 0)
        for _ in range(2)
    ]
    rows.append(
        row
        | {
            "what": f"t-SNE of {TSNE_POINTS:,} x 128",
            "note": "the most that a notebook draws",
            **measuring.summary(seconds),
        }
    )
    measuring.replace_rows(
        "evaluation", [entry | {"part": "evaluation"} for entry in rows], part="evaluation"
    )
