"""The examples of docstrings that need no files give what they say."""

import doctest
from importlib import import_module

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from lib import figures
from lib.evaluation import linear_probe
from lib.runs import settings, store

# What some examples take for granted.
GENERATOR = np.random.default_rng(0)
FEATURES = GENERATOR.normal(size=(40, 4))
LABELS = np.arange(40) % 2
EMBEDDED = {"features": FEATURES, "label": LABELS, "uncertainty": FEATURES[:, 0]}
ACCURACY = {"metric": "accuracy", "classifier": "knn", "n": 100, "run": "run"}
METRICS = pd.DataFrame(
    {
        "method": ["vi_simsiam", "simsiam"] * 3,
        "seed": [0, 0, 1, 1, 2, 2],
        "value": [0.6, 0.5, 0.7, 0.6, 0.6, 0.6],
    }
).assign(**ACCURACY, ci_low=0.5, ci_high=0.7)
SEEDS = pd.DataFrame({"method": ["vi_simsiam", "simsiam"] * 3, "seed": [0, 0, 1, 1, 2, 2]})
CLAIMS = pd.DataFrame({"name": ["crop", "blur"], "published": [0.6, 0.5], "ours": [0.5, 0.6]})
IMAGES = pd.DataFrame({"class": np.array(["cat", "dog"])[LABELS], "correct": LABELS == 1})
CURVES = pd.DataFrame({"curve": "κ", "correct": LABELS == 1})
PICTURES = GENERATOR.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
VIEWS = torch.rand(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
GIVEN = {
    "settings": settings,
    "first": VIEWS[0],  # two views of a batch, [B, 3, 16, 16]
    "second": VIEWS[1],
    "labels": torch.arange(4),
    "figures": figures,
    "plt": plt,
    "accuracy": SEEDS.assign(epochs=40, linear=0.6, knn=0.5, dataset="cifar10"),
    "style": SEEDS.assign(attribute="hair colour", accuracy=0.9),
    "claims": CLAIMS.assign(ci_low=0.4, ci_high=0.7),
    "images": IMAGES.assign(kappa=GENERATOR.uniform(100, 1000, 40), max_softmax=FEATURES[:, 1]),
    "log": SEEDS.assign(epoch=1.0, effective_rank=20.0),
    "scores": CURVES.assign(uncertainty=FEATURES[:, 0], positive=LABELS == 0),
    "confidences": CURVES.assign(confidence=GENERATOR.uniform(0.5, 1, 40)),
    "points": IMAGES.assign(x=FEATURES[:, 0], y=FEATURES[:, 1], kappa=200.0),
    "pictures": PICTURES,
    "metrics": METRICS,
    "train": EMBEDDED,
    "test": EMBEDDED,
    "features": FEATURES,
    "animals": np.array(["cat", "dog"])[LABELS],
    "kappa": FEATURES[:, 0],
    "correct": LABELS == 1,
    "linear_probe": linear_probe,
}
# Their examples read stored runs.
NEED_FILES = {
    "lib.evaluation.encoders",
    "lib.evaluation.measure",
    "lib.evaluation.parts",
    "lib.evaluation.results",
    "lib.figures.save",
    "lib.pipeline.site",
    "lib.runs.settings",
    "lib.runs.store",
}


def modules_with_examples():
    names = set()
    for path in (store.ROOT / "lib").rglob("*.py"):
        if ">>>" in path.read_text():
            module = path.relative_to(store.ROOT).with_suffix("")
            names.add(".".join(module.parts).removesuffix(".__init__"))
    return sorted(names - NEED_FILES)


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples(name):
    result = doctest.testmod(import_module(name), extraglobs=GIVEN)
    plt.close("all")
    assert result.attempted and not result.failed
