"""κ of the crop that keeps the object, and of the one that loses it.

Where the object is, nobody has labelled. An untrained network is a weak detector: the sum of its
activations is larger on objects than on the background (Cao and Wu, A random CNN sees objects, AAAI
2022). It has seen neither labels nor the images, and knows nothing of κ.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import networks
from lib.data.sets import ImageSet
from lib.evaluation.embed import square_crop
from lib.evaluation.measure import Run
from lib.evaluation.suite import metrics_row
from lib.runs import store

PART = "object_crops"  # of the evaluation suite
CELLS = 8  # a map has as many rows and columns
SIDE = CELLS // 2  # of a crop, in cells: half the image's side
PLACES = CELLS - SIDE + 1  # of a crop along one side
CONDITION = "salient against plain crop"
BATCH = 500


@torch.no_grad()
def salience_map(images: Tensor, settings: dict) -> Tensor:
    """Summed activations of an untrained network of this form: [N, C, S, S] -> [N, 8, 8].

    settings: of a run on a ResNet. The activations are those before the last stage. Images are
    mirrored at their edges, so that the zeros around them make no border. Batch norm has the
    statistics of the batch.

    Example:
        where = salience_map(images, run.settings).flatten(1).argmax(1)
    """
    margin = images.shape[-1] // 4
    padded = F.pad(images - images.mean(), (margin,) * 4, mode="reflect")  # [N, C, 3S/2, 3S/2]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = networks.resnet18(settings["width"], settings["stem"], images.shape[1])
    stages = nn.Sequential(*list(network)[:-4])  # without last stage (two blocks), pooling, flatten
    activation = stages.train()(padded).sum(1, keepdim=True)  # [N, 1, h, w]
    cells = CELLS * 3 // 2
    resized = F.interpolate(activation, (cells, cells), mode="bilinear", antialias=True)
    inside = slice(CELLS // 4, CELLS // 4 + CELLS)
    return resized[:, 0, inside, inside]


def extreme_crops(maps: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Top and left of the most and of the least salient crop: [N, 8, 8] -> two of [N, 2].

    In shares of the image's side; a crop has half of it.
    """
    means = F.avg_pool2d(maps[:, None], SIDE, stride=1).flatten(1)  # [N, 25]
    corners = []
    for place in (means.argmax(1), means.argmin(1)):
        corner = torch.stack([place // PLACES, place % PLACES], dim=1)
        corners.append(corner.numpy() / CELLS)
    return corners[0], corners[1]


def measure_object_crops(run: Run) -> list[dict]:
    """Whether the most salient crop of an image has a higher κ than the least salient one.

    One row, condition CONDITION and metric share_higher: the share of test images, with its
    bootstrap interval. Scores ``<dataset>_crops``: κ of both crops, and where they are.
    VI-SimSiam 2022, Fig. 8b, with the object found by ``salience_map``.
    """
    images = run.test().sample(run.settings["condition_images"])
    maps = []
    for indices in np.array_split(np.arange(len(images)), max(1, len(images) // BATCH)):
        maps.append(salience_map(images.batch(indices).float() / 255, run.settings))
    most, least = extreme_crops(torch.cat(maps))
    salient = _kappa_of_crops(run, images, most)
    plain = _kappa_of_crops(run, images, least)
    arrays = {
        "index": images.index.astype(np.int32),
        "salient": salient,
        "plain": plain,
        "salient_corner": most.astype(np.float32),
        "plain_corner": least.astype(np.float32),
    }
    store.write_scores(run.profile, run.name, f"{run.settings['dataset']}_crops", arrays)
    columns = {"evaluated_on": run.test().title, "condition": CONDITION, "score": "kappa"}
    draws = run.settings["bootstrap_draws"]
    return [metrics_row("share_higher", np.mean, salient > plain, draws=draws, **columns)]


def _kappa_of_crops(run: Run, images: ImageSet, corners: np.ndarray) -> np.ndarray:
    """κ of one crop of every image: corners [N, 2] -> [N]."""
    kappa = np.empty(len(images), dtype=np.float32)
    for corner in np.unique(corners, axis=0):
        chosen = np.flatnonzero((corners == corner).all(axis=1))
        embedded = run.embed_unstored(images.subset(chosen), transform=square_crop(*corner))
        kappa[chosen] = embedded["kappa"]
    return kappa
