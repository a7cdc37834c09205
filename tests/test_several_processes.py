"""torchrun over lib.training.loop: the run of one process, shared by two (gloo on the CPU), and resumed after a worker was killed."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image

from lib import methods, networks
from lib.data import sources as data
from lib.runs import settings as resolution
from lib.runs import store as artifacts
from lib.training import loop as training
from tests.pipeline import faults

pytestmark = pytest.mark.long
ROOT = artifacts.ROOT

TRAIN = """
import os, signal, sys, torch
from lib import data, methods, settings, training

torch.set_num_threads(1)
training.CHECKPOINT_SECONDS = 0
method, kill_at = sys.argv[1], int(sys.argv[2])
run = settings.resolve(method, "smoke", precision="float32", train_images=640, epochs=1, batch_size=64, learning_rate=1e-3)
if kill_at and os.environ.get("RANK") == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    loss, calls = methods.METHODS[method].loss, []

    def killed(self, views):
        calls.append(1)
        if len(calls) == kill_at:
            open("was_killed", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(self, views)

    methods.METHODS[method].loss = killed
training.train(run)
"""


def start(tmp_path, name, processes, arguments, restarts=0):
    """Run a script or module under torchrun (or alone) with a results folder of its own; returns that folder."""
    results = tmp_path / name
    environment = os.environ | {
        "RESULTS_DIR": str(results),
        "DATA_DIR": str(tmp_path / "data"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    launcher = (
        [
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={processes}",
            f"--max-restarts={restarts}",
        ]
        if processes
        else []
    )
    said = "not started"
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, *launcher, *arguments],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            said = process.communicate(timeout=200)[1]
        except (
            subprocess.TimeoutExpired
        ):  # on a machine that is busy gloo may wait for a peer for ever, or give up meeting it
            faults.kill_all(process)
            said = "no answer within 200 s"
        if process.returncode == 0 or not ("connectFullMesh failed" in said or "no answer" in said):
            break
        shutil.rmtree(results, ignore_errors=True)
    assert process.returncode == 0, said[-3000:]
    return results


def stored(results):
    (folder,) = (results / "smoke" / "runs").iterdir()
    assert not (folder / "checkpoint.safetensors").exists()
    return artifacts.read_tensors(folder / "model.safetensors")[0], artifacts.read_json(
        folder / "config.json"
    )


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train_tiny.py"
    path.write_text(TRAIN)
    return str(path)


@pytest.mark.parametrize(
    "method, killed",
    [
        ("simsiam", True),
        ("vi_simsiam", True),
        ("simclr", True),
        ("dino", True),
        ("barlow_twins", False),
        ("vicreg", False),
        ("directpred", False),
        ("moco_v2", False),
        ("moco_v3", False),
        ("supervised", False),
    ],
)
def test_two_processes_train_what_one_trains_and_a_killed_worker_changes_nothing(
    tmp_path, script, distance, method, killed
):
    """Tolerance: 1 % of the way that the weights have gone in 10 steps, as the processes add up in another order.

    vi_simsiam's head and dino's prototypes idle at first; simclr's and moco_v3's negatives, moco_v2's queue, the correlations of barlow_twins,
    vicreg and directpred and supervised's labels come from both processes.
    """
    one, alone = stored(start(tmp_path, "one", 0, [script, method, "0"]))
    two, shared = stored(start(tmp_path, "two", 2, [script, method, "0"]))
    assert (alone["processes"], shared["processes"]) == (1, 2) and alone["run_hash"] == shared[
        "run_hash"
    ]
    start_of_both = methods.build(alone["settings"], 1).state_dict()
    gone = distance(start_of_both, one)
    assert gone > 0.1 and distance(one, two) < 0.01 * gone
    if killed:
        again, _ = stored(start(tmp_path, "killed", 2, [script, method, "7"], restarts=1))
        assert (tmp_path / "was_killed").exists(), "the worker was to be killed"
        assert distance(two, again) < 1e-4 * gone


def test_a_listed_run_under_torchrun_is_found_done(tmp_path, monkeypatch):
    name = "vi_simsiam-digits-e1-seed0"
    results = start(tmp_path, "listed", 2, ["-m", "lib.training.loop", name, "--profile", "smoke"])
    monkeypatch.setattr(artifacts, "RESULTS", results)
    settings = resolution.find_runs([name], "smoke")[0]
    images = training.training_images(settings)
    assert training.is_finished("smoke", name, resolution.run_hash(settings, images.checksum))
    assert sorted(path.name for path in (results / "smoke" / "runs" / name).iterdir()) == [
        "config.json",
        "log.csv",
        "model.safetensors",
    ]


def test_a_folder_of_images_streams_to_every_process(tmp_path, distance):
    """The pixels never lie in memory as a whole, and the run is that of the same images in memory."""
    script = tmp_path / "train_folder.py"
    script.write_text(
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from PIL import Image\n"
        "from lib import data, image_sets, settings, training\n"
        "torch.set_num_threads(1)\n"
        "folder = Path(sys.argv[1])\n"
        "if sys.argv[2] == 'stream':\n"
        "    image_sets.RESIDENT_BYTES = 0\n"
        ""
        "run = settings.resolve('simsiam', 'smoke', precision='float32', batch_size=32, learning_rate=1e-3)\n"
        "training.train(run, data.image_folder(folder, 16, 'folder'))\n"
    )
    for index, image in enumerate(data.generated("shapes", 96, 20).images):
        path = tmp_path / "pictures" / f"class{index % 3}" / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    folder = str(tmp_path / "pictures")
    memory, config = stored(start(tmp_path, "memory", 0, [str(script), folder, "memory"]))
    streamed, _ = stored(start(tmp_path, "streamed", 2, [str(script), folder, "stream"]))
    assert distance(memory, streamed) < 0.01 * distance(
        memory, methods.build(config["settings"], 3).state_dict()
    )


def test_synchronised_batch_norm_of_one_process_is_torchs(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1
    )
    try:
        for shape, affine in (((32, 5), True), ((8, 5, 4, 4), True), ((32, 5), False)):
            theirs = (torch.nn.BatchNorm1d if len(shape) == 2 else torch.nn.BatchNorm2d)(
                5, affine=affine
            )
            for parameter in theirs.parameters():
                torch.nn.init.uniform_(parameter, 0.5, 2)
            network = torch.nn.Sequential(theirs)
            ours = networks.synchronise_batch_norm(
                torch.nn.Sequential(torch.nn.BatchNorm1d(5, affine=affine)), torch.device("cpu")
            )
            ours.load_state_dict(network.state_dict())
            x, gradient = 3 * torch.randn(shape) + 1, torch.randn(shape)
            inputs = [x.clone().requires_grad_() for _ in range(2)]
            for module, input in zip((network, ours), inputs, strict=True):
                module(input).backward(gradient)
            torch.testing.assert_close(inputs[0].grad, inputs[1].grad, atol=1e-5, rtol=1e-4)
            for name, value in network.state_dict().items():
                torch.testing.assert_close(ours.state_dict()[name], value, msg=name)
            for ours_grad, their_grad in zip(ours.parameters(), network.parameters(), strict=True):
                torch.testing.assert_close(ours_grad.grad, their_grad.grad, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(ours.eval()(x), network.eval()(x))
    finally:
        torch.distributed.destroy_process_group()
