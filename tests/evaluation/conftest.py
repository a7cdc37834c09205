"""Embeddings with a known structure, for the tests of this room."""

import numpy as np
import pytest


def _clusters(count, seed=0, classes=4, dimension=6, spread=1.0):
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=count)
    centres = 2 * np.random.default_rng(99).normal(size=(classes, dimension))
    width = spread * generator.uniform(0.3, 2.5, size=count)
    features = centres[labels] + width[:, None] * generator.normal(size=(count, dimension))
    kappa = 1e3 / width**2
    return {
        "features": features.astype(np.float32),
        "uncertainty": -kappa,
        "label": labels,
        "kappa": kappa,
    }


@pytest.fixture(scope="session")
def clusters():
    """A function that draws labelled Gaussian clusters; κ is lower for images far from centres."""
    return _clusters
