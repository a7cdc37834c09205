"""What every test shares.

One thread, fixed seeds, matplotlib's own style, and results and data folders of its own.
"""

import os

# Read when numpy is loaded; several threads beside other work are many times slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import matplotlib as mpl
import numpy as np
import pytest
import torch

from lib import training
from lib.evaluation import measure as protocol
from lib.runs import settings as resolution
from lib.runs import store as artifacts

RESULTS = artifacts.RESULTS
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    """The notebooks first: they take longest, and another worker does the rest meanwhile."""
    items.sort(key=lambda item: item.path.stem != "test_notebooks")


@pytest.fixture(autouse=True)
def isolated(request, monkeypatch):
    """Fixed seeds, no style left over for the next test, and a results folder of the test's own
    unless a fixture of its module has set one.
    """
    torch.manual_seed(0)
    np.random.seed(0)
    # torch.compile turns it off for all that follows.
    monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)
    if artifacts.RESULTS == RESULTS:
        monkeypatch.setattr(artifacts, "RESULTS", request.getfixturevalue("tmp_path") / "results")
    with mpl.rc_context():
        yield


@pytest.fixture(scope="session")
def distance():
    """Euclidean distance of two state dicts, all tensors together."""

    def between(first, second):
        assert first.keys() == second.keys()
        squares = [(first[name].double() - second[name].double()).square().sum() for name in first]
        return sum(squares).item() ** 0.5

    return between


@pytest.fixture
def data_dir(tmp_path, monkeypatch):
    """An empty DATA_DIR: only the sets that need no files are there."""
    folder = tmp_path / "data"
    monkeypatch.setenv("DATA_DIR", str(folder))
    return folder


@pytest.fixture(scope="module")
def shared_results(tmp_path_factory):
    """One results folder, and an empty DATA_DIR, for all tests of a module."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("shared")
        patch.setattr(artifacts, "RESULTS", folder / "results")
        patch.setenv("DATA_DIR", str(folder / "data"))
        yield folder / "results"


@pytest.fixture(scope="session")
def tiny():
    """Settings of a network that learns within a second."""
    return {
        "width": 2,
        "dimension": 8,
        "predictor_hidden": 4,
        "image_size": 9,
        "batch_size": 64,
        "train_images": 256,
        "precision": "float32",
        "condition_images": 40,
    }


@pytest.fixture(scope="module")
def run(shared_results, tiny):
    """A trained VI-SimSiam."""
    settings = resolution.resolve("vi_simsiam", "smoke", **tiny)
    training.train(settings)
    return protocol.Run(settings)


@pytest.fixture(scope="module")
def frame(run):
    """Its stored metrics."""
    return protocol.measure_run(run)


@pytest.fixture(scope="module")
def vae_run(shared_results, tiny):
    """A trained SimVAE."""
    changes = {"views": 2, "representation": 6, "image_size": 16, "learning_rate": 1e-3}
    settings = resolution.resolve("simvae", "smoke", **(tiny | changes))
    training.train(settings)
    return protocol.Run(settings)
