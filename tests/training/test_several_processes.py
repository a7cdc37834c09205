"""torchrun on CPUs: a run shared by two processes, resumed after one was killed, from a folder."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from lib import methods
from lib.runs import store
from lib.runs.settings import find_runs, run_hash
from lib.training.batches import training_images
from lib.training.checkpoints import is_finished
from tests.pipeline import faults
from tests.training.train_tiny import NormalisedByImage

pytestmark = pytest.mark.long
HERE = Path(__file__).parent
SECONDS = 200


def start(tmp_path, name, processes, arguments, restarts=0):
    """Run a script or module in so many processes; 0: without torchrun. Returns its results."""
    command = [sys.executable]
    if processes:
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc-per-node={processes}", f"--max-restarts={restarts}"]
    environment = os.environ | {
        "RESULTS_DIR": str(tmp_path / name),
        "DATA_DIR": str(tmp_path / "data"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(store.ROOT),
    }
    for _ in range(3):
        process = subprocess.Popen(
            [*command, *map(str, arguments)],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        # On a busy machine gloo may wait for a peer for ever, or give up meeting it.
        try:
            errors = process.communicate(timeout=SECONDS)[1]
        except subprocess.TimeoutExpired:
            faults.kill_all(process)
            errors = "no answer"
        never_met = "connectFullMesh failed" in errors or errors == "no answer"
        if process.returncode == 0 or not never_met:
            break
        shutil.rmtree(tmp_path / name, ignore_errors=True)
    assert process.returncode == 0, errors[-3000:]
    return tmp_path / name


def stored(results):
    """Weights and configuration of the only run."""
    (folder,) = (results / "smoke" / "runs").iterdir()
    assert not (folder / "checkpoint.safetensors").exists()
    weights, _ = store.read_tensors(folder / "model.safetensors")
    return weights, store.read_json(folder / "config.json")


@pytest.mark.parametrize(
    ("method", "is_killed"),
    [
        ("simsiam", True),
        # Parts that have no gradient at first: κ's head, DINO's prototypes.
        ("vi_simsiam", True),
        ("dino", True),
        # What is taken over the whole batch: negatives, a queue, correlations, labels.
        ("simclr", True),
        ("moco_v2", False),
        ("moco_v3", False),
        ("barlow_twins", False),
        ("vicreg", False),
        ("directpred", False),
        ("supervised", False),
    ],
)
def test_two_processes_train_what_one_trains_also_if_one_is_killed(
    tmp_path, distance, monkeypatch, method, is_killed
):
    """Tolerance: 1 % of the way that the weights have moved in 10 steps, as sums are reordered."""
    script = HERE / "train_tiny.py"
    one, config_of_one = stored(start(tmp_path, "one", 0, [script, method, 0]))
    two, config_of_two = stored(start(tmp_path, "two", 2, [script, method, 0]))
    assert (config_of_one["processes"], config_of_two["processes"]) == (1, 2)
    assert config_of_one["run_hash"] == config_of_two["run_hash"]
    monkeypatch.setattr(nn, "BatchNorm1d", NormalisedByImage)
    monkeypatch.setattr(nn, "BatchNorm2d", NormalisedByImage)
    untrained = methods.build(config_of_one["settings"], 1).state_dict()
    moved = distance(untrained, one)
    assert moved > 0
    assert distance(one, two) < 0.01 * moved
    if is_killed:
        results = start(tmp_path, "killed", 2, [script, method, 7], restarts=1)
        resumed, _ = stored(results)
        assert (tmp_path / "was_killed").exists()
        assert distance(two, resumed) < 1e-4 * moved


def test_a_listed_run_under_torchrun_is_finished(tmp_path, monkeypatch):
    """With batch norm, each process its own."""
    name = "vi_simsiam-digits-e1-seed0"
    results = start(tmp_path, "listed", 2, ["-m", "lib.training", name, "--profile", "smoke"])
    monkeypatch.setattr(store, "RESULTS", results)
    (settings,) = find_runs([name], "smoke")
    assert is_finished("smoke", name, run_hash(settings, training_images(settings).checksum))
