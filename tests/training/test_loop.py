"""The training loop on a tiny network and digits: resume, guards, doors, and what a run leaves."""

import json
import math
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from lib import methods
from lib.data import sources
from lib.runs import store
from lib.runs.settings import run_hash, trained_with
from lib.training import batches, loop
from lib.training.batches import training_images
from lib.training.checkpoints import fill, is_finished, load_trained
from lib.training.devices import Processes
from lib.training.health import TrainingStopped
from lib.training.loop import first_steps, train
from lib.training.progress import Progress
from tests.training.tiny_runs import equal, interrupted, log_of, tiny, weights

pytestmark = pytest.mark.usefixtures("data_dir")


def stop(*_, **__):
    pytest.fail("training began")


# ----------------------------------------------------------------------------------------- resume
RESUMED = [
    ("simsiam", [7], {}),  # between two log rows
    ("simsiam", [1], {"epochs": 1}),  # before any checkpoint
    ("vi_simsiam", [3, 10, 19], {}),  # in the warm-up, at the end of an epoch, near the end
    ("vi_simsiam_2022", [7], {"epochs": 1, "clip_norm": 0.5, "warmup_epochs": 0.5}),
    ("vi_simsiam", [7], {"epochs": 1, "optimizer": "adamw"}),  # channels last
    ("simvae", [7], {"epochs": 1}),  # the fused optimiser
    # These remember something of earlier steps.
    ("dino", [11], {}),
    ("moco_v2", [7], {"epochs": 1}),
    ("directpred", [7], {"epochs": 1}),
    ("prosmin", [7], {"epochs": 1}),
]


@pytest.mark.parametrize(("method", "steps", "other"), RESUMED)
def test_resumed_equals_uninterrupted_bit_for_bit(method, steps, other, fresh_results, monkeypatch):
    settings = tiny(method, **other)
    train(settings)
    expected = weights(settings)
    log = log_of(settings).drop(columns="seconds")

    fresh_results("interrupted")
    folder = interrupted(settings, *steps)
    assert not (folder / "model.safetensors").exists()
    assert not (folder / "progress.json").exists()
    assert json.loads((folder / "config.json").read_text())["finished"] is False

    done = []
    update = Progress.update

    def record(self, step, loss):
        done.append(step)
        update(self, step, loss)

    monkeypatch.setattr(Progress, "update", record)
    train(settings)
    last_checkpoint = steps[-1] // 2 * 2
    assert done == list(range(last_checkpoint + 1, 10 * settings["epochs"] + 1))
    assert equal(weights(settings), expected)
    resumed = log_of(settings)
    pd.testing.assert_frame_equal(resumed.drop(columns="seconds"), log, check_exact=True)
    assert resumed.seconds.is_monotonic_increasing
    assert not (folder / "checkpoint.safetensors").exists()


def inverted(images):
    return replace(images, images=255 - images.images)


def test_a_checkpoint_of_other_data_or_precision_is_not_continued(fresh_results, monkeypatch):
    settings = tiny(epochs=1, precision="auto")
    other = inverted(training_images(settings))
    monkeypatch.setattr(loop, "precision_of", lambda *_: "float32")
    train(settings, other)
    expected = weights(settings)
    fresh_results("other data")
    interrupted(settings, 5)
    train(settings, other)
    assert equal(weights(settings), expected)

    fresh_results("other precision")
    with monkeypatch.context() as patch:
        patch.setattr(loop, "precision_of", lambda *_: "bf16")
        interrupted(settings, 5, images=other)
    train(settings, other)
    assert equal(weights(settings), expected)


def test_a_finished_run_is_left_as_it_is(monkeypatch):
    settings = tiny(epochs=1)
    folder = train(settings)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.setattr(methods.SimSiam, "loss", stop)
    assert train(settings) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert set(before) == {"config.json", "log.csv", "model.safetensors"}


def test_other_settings_or_data_are_trained():
    settings = tiny(epochs=1)
    folder = train(settings)
    assert train(tiny(epochs=1, learning_rate=0.01)) != folder

    images = training_images(settings)
    other = inverted(images)
    before = weights(settings)
    assert train(settings, other) == folder
    assert not equal(weights(settings), before)
    assert is_finished("smoke", folder.name, run_hash(settings, other.checksum))
    assert not is_finished("smoke", folder.name, run_hash(settings, images.checksum))


def test_a_seed_gives_the_same_weights_whatever_was_drawn_before(fresh_results):
    settings = tiny("vi_simsiam", epochs=1)
    train(settings)
    first = weights(settings)
    train(settings | {"seed": 1})
    assert not equal(first, weights(settings | {"seed": 1}))
    fresh_results("again")
    torch.manual_seed(99)
    train(settings)
    assert equal(weights(settings), first)


# ----------------------------------------------------------------------------------------- guards
def test_a_loss_that_is_not_finite_stops_the_run(monkeypatch):
    settings = tiny()
    folder = interrupted(settings, 5)
    before = (folder / "checkpoint.safetensors").read_bytes()
    loss = methods.SimSiam.loss
    calls = []

    def spoiled(self, views):
        calls.append(1)
        terms = loss(self, views)
        return terms | {"loss": terms["loss"] * (math.nan if len(calls) == 8 else 1)}

    monkeypatch.setattr(methods.SimSiam, "loss", spoiled)
    # It continues after step 4, so this is step 12.
    with pytest.raises(TrainingStopped, match="loss.* at step 12; .*checkpoint.* step 4"):
        train(settings)
    assert (folder / "checkpoint.safetensors").read_bytes() == before
    assert not (folder / "model.safetensors").exists()
    assert not (folder / "progress.json").exists()


# ------------------------------------------------------------------------------------------ doors
@pytest.mark.parametrize(
    ("other", "culprit"),
    [
        ({"batch_size": 161}, "161"),
        ({"optimizer": "lion"}, "lion"),
        ({"split": "test"}, "test"),
        ({"image_size": 8}, "image_size"),
    ],
)
def test_what_cannot_work_is_an_error_before_any_training(monkeypatch, other, culprit):
    monkeypatch.setattr(methods.SimSiam, "loss", stop)
    with pytest.raises(ValueError, match=culprit):
        train(tiny(**other))


def test_a_batch_that_cannot_be_shared_is_refused(monkeypatch):
    shared = Processes(torch.device("cpu"), count=3)
    monkeypatch.setattr(loop, "join_processes", lambda: shared)
    with pytest.raises(ValueError, match="3 processes"):
        train(tiny(batch_size=64))


def test_weights_of_another_network_are_refused(tmp_path):
    method = methods.build(tiny(), 1)
    state = method.state_dict()
    backbone = {name: value + 1 for name, value in state.items() if name.startswith("backbone.")}
    misshapen = {name: value.reshape(1, *value.shape) for name, value in state.items()}
    for tensors in (backbone, misshapen, state | {"another": torch.ones(1)}):
        with pytest.raises(ValueError, match="of_another"):
            fill(method, tensors, tmp_path / "of_another.safetensors")
    fill(method, backbone, tmp_path, parts=["backbone"])
    for name, value in backbone.items():
        assert torch.equal(method.state_dict()[name], value)


# ------------------------------------------------------------------------------------------- data
def test_every_epoch_sees_every_image_once_in_another_order(monkeypatch):
    drawn = []

    def recorded(images, indices):
        for chosen in indices:
            drawn.append(chosen)
            yield images.batch(chosen)

    monkeypatch.setattr(batches, "batches", recorded)
    train(tiny())
    assert [len(chosen) for chosen in drawn] == [16] * 20
    first = torch.cat(drawn[:10]).tolist()
    second = torch.cat(drawn[10:]).tolist()
    assert sorted(first) == sorted(second) == list(range(160))
    assert first != second


def test_labels_are_those_of_the_images():
    settings = tiny("supervised")
    images = training_images(settings)
    pixels = np.empty_like(images.images)
    pixels[:] = images.labels[:, None, None, None]  # an image is as bright as its label
    method = methods.build(settings, 1)
    settings = settings | {"augmentation": "crop_and_flip"}
    processes = Processes(torch.device("cpu"))
    training = loop.Training(method, replace(images, images=pixels), settings, processes, "float32")
    for views, labels in training.batches.from_step(3):
        brightness = (255 * views[0].mean((1, 2, 3))).round().long()
        assert torch.equal(brightness, labels)


def test_training_images():
    everything = training_images(tiny(train_images=0))
    fit = training_images(tiny(train_images=0, split="fit"))
    _, validation = sources.train_validation_split(everything.labels)
    held_out = set(everything.subset(validation).index)
    assert len(fit) == len(everything) - len(held_out)
    assert not set(fit.index) & held_out
    few = training_images(tiny())
    assert np.array_equal(few.images, everything.images[:160])


# ------------------------------------------------------------------------------------- log, files
def test_what_a_run_leaves(tmp_path):
    settings = tiny("vi_simsiam", epochs=1)
    folder = train(settings)
    log = log_of(settings)
    assert log.step.tolist() == [2, 4, 6, 8, 10]
    assert log.epoch.tolist() == [0.2, 0.4, 0.6, 0.8, 1.0]
    # Statistics of features are those of the end of an epoch.
    assert log["loss"].notna().all()
    assert log["kappa_plain"].notna().tolist() == [False] * 4 + [True]

    config = json.loads((folder / "config.json").read_text())
    images = training_images(settings)
    assert config["finished"]
    assert config["settings"] == trained_with(settings)
    assert config["data"]["checksum"] == images.checksum
    assert config["run_hash"] == run_hash(settings, images.checksum)
    assert {"commit", "python", "versions", "hardware"} <= set(config)
    for private in (tmp_path, store.ROOT, store.ROOT.home()):
        assert f"{private}/" not in json.dumps(config)


def test_references_are_stored_without_training():
    settings = tiny("random", epochs=0)
    train(settings)
    assert log_of(settings).empty
    assert equal(load_trained(settings, 1).state_dict(), methods.build(settings, 1).state_dict())


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this processor has no such mode")
def test_denormals_are_zero_in_training_and_only_there(monkeypatch):
    smallest = torch.tensor([1.2e-38])
    seen = []
    step = loop.Training.step

    def looking(*arguments):
        seen.append((smallest / 10).item())
        return step(*arguments)

    monkeypatch.setattr(loop.Training, "step", looking)
    train(tiny("simsiam", epochs=1))
    assert set(seen) == {0.0}
    assert (smallest / 10).item() > 0


def test_first_steps_are_those_of_a_run_and_store_nothing():
    settings = tiny("prosmin", epochs=1)
    images = training_images(settings)
    short = methods.build(settings, 1)
    terms = list(first_steps(short, images, settings, 10))
    assert len(terms) == 10
    assert not store.RESULTS.exists()
    train(settings)
    assert equal(weights(settings), short.state_dict())


# ----------------------------------------------------------------------------- methods, precision
def test_the_loop_gives_a_method_epoch_and_progress(monkeypatch):
    epochs = []
    progress = []

    class Listening(methods.SimSiam):
        def set_epoch(self, epoch):
            epochs.append(epoch)

        def update_target(self, done):
            progress.append(done)

    monkeypatch.setitem(methods.METHODS, "simsiam", Listening)
    train(tiny())
    assert epochs == pytest.approx([step / 10 for step in range(20)])
    assert progress == pytest.approx([step / 20 for step in range(1, 21)])


@pytest.mark.long
@pytest.mark.parametrize("method", ["simsiam", "vi_simsiam"])
def test_a_compiled_loss_trains_the_same_run(method, fresh_results, distance):
    """Tolerance: 1 % of the way that the weights have moved in 10 steps."""
    if not any(shutil.which(name) for name in ("g++", "clang++")):
        pytest.skip("torch.compile needs a C++ compiler on a CPU; there is none")
    settings = tiny(method, epochs=1, learning_rate=1e-3)
    trained = {}
    for compiled in (False, True):
        fresh_results(f"compiled {compiled}")
        train(settings, compiled=compiled)
        trained[compiled] = weights(settings)
    start = methods.build(settings, 1).state_dict()
    assert 0 < distance(*trained.values()) < 0.01 * distance(start, trained[False])
