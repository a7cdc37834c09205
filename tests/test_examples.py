"""The examples of docstrings that need no files give what they say."""

import doctest
from importlib import import_module

import numpy as np
import pandas as pd
import pytest

from lib.evaluation import linear_probe

# What some examples take for granted.
GENERATOR = np.random.default_rng(0)
FEATURES = GENERATOR.normal(size=(40, 4))
LABELS = np.arange(40) % 2
ACCURACY = {"metric": "accuracy", "classifier": "knn", "n": 100, "run": "run"}
METRICS = pd.DataFrame(
    {
        "method": ["vi_simsiam", "simsiam"] * 3,
        "seed": [0, 0, 1, 1, 2, 2],
        "value": [0.6, 0.5, 0.7, 0.6, 0.6, 0.6],
    }
).assign(**ACCURACY, ci_low=0.5, ci_high=0.7)
GIVEN = {
    "metrics": METRICS,
    "train": {"features": FEATURES, "label": LABELS},
    "test": {"features": FEATURES, "label": LABELS},
    "features": FEATURES,
    "animals": np.array(["cat", "dog"])[LABELS],
    "kappa": FEATURES[:, 0],
    "correct": LABELS == 1,
    "linear_probe": linear_probe,
}
MODULES = [
    "losses",
    "distributions",
    "networks",
    "methods.base",
    "data.sets",
    "data.views",
    "evaluation.intervals",
    "evaluation.probes",
    "evaluation.uncertainty",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    result = doctest.testmod(import_module(f"lib.{name}"), extraglobs=GIVEN)
    assert result.attempted and not result.failed
