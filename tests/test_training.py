"""lib.training.loop on a tiny network and digits: exact resume, guards, schedules, and what a run leaves behind."""

import json
import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from lib import methods, networks
from lib.data import sets as image_sets
from lib.data import sources as data
from lib.evaluation import uncertainty
from lib.methods.base import spread
from lib.runs import settings as resolution
from lib.runs import store as artifacts
from lib.training import loop as training

pytestmark = pytest.mark.usefixtures("data_dir")

# 10 steps an epoch, a log row every second step
TINY = {
    "width": 2,
    "dimension": 8,
    "predictor_hidden": 4,
    "image_size": 9,
    "batch_size": 16,
    "train_images": 160,
    "epochs": 2,
    "precision": "float32",
}
PARTS = {"vi_simsiam": {"concentration_warmup_epochs": 0.5}, "vi_simsiam_2022": {"local_views": 1}}


def tiny(method="simsiam", **other):
    return resolution.resolve(method, "smoke", **(TINY | PARTS.get(method, {}) | other))


def weights(settings):
    path = artifacts.run_dir("smoke", resolution.run_name(settings)) / "model.safetensors"
    return artifacts.read_tensors(path)[0]


def log_of(settings):
    return pd.read_csv(artifacts.run_dir("smoke", resolution.run_name(settings)) / "log.csv")


def equal(first, second):
    return set(first) == set(second) and all(
        torch.equal(first[name], second[name]) for name in first
    )


@pytest.fixture
def fresh_results(tmp_path, monkeypatch):
    """Call it to go on in another, empty results folder."""

    def go(name):
        monkeypatch.setattr(artifacts, "RESULTS", tmp_path / name)

    return go


def interrupted(settings, *steps):
    """Train with a checkpoint at every log row, and Ctrl-C after each of ``steps``; returns the run's folder."""
    left, update = list(steps), training.Progress.update

    def hook(self, step, loss):
        update(self, step, loss)
        if left and step == left[0]:
            left.pop(0)
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "CHECKPOINT_SECONDS", -1)
        patch.setattr(training.Progress, "update", hook)
        for _ in steps:
            with pytest.raises(KeyboardInterrupt):
                training.train(settings)
    return artifacts.run_dir("smoke", resolution.run_name(settings))


def test_step_costs_are_of_every_run_in_every_round():
    runs = [tiny("simsiam"), tiny("vi_simsiam"), tiny("simsiam", batch_size=32)]
    assert runs[0]["batch_size"] == 16
    found = training.step_costs(runs, training.training_images(runs[0]), rounds=2, steps=1)
    assert found["round"].tolist() == [0, 0, 0, 1, 1, 1] and (found.images_per_second > 0).all()
    plain, probabilistic, double = (found.iloc[place] for place in range(3))
    trained = sum(p.numel() for p in methods.build(runs[0], 1).parameters())
    assert (
        plain.backbone_parameters + plain.head_parameters == trained
        and plain.backbone_parameters == probabilistic.backbone_parameters
    )
    assert (
        double.saved_bytes / plain.saved_bytes == pytest.approx(2, rel=0.05)
        and probabilistic.head_parameters > plain.head_parameters
    )


def test_ratios_of_costs_are_taken_round_by_round():
    fixed = {
        "prosmin": {"head_parameters": 5, "saved_bytes": 40},
        "dino": {"head_parameters": 15, "saved_bytes": 120},
    }
    cost = pd.DataFrame(
        [
            {"method": method, "round": turn, "images_per_second": speed, "backbone_parameters": 10}
            | fixed[method]
            for method, speeds in (("prosmin", (90.0, 80.0, 30.0)), ("dino", (100.0, 100.0, 40.0)))
            for turn, speed in enumerate(speeds)
        ]
    )
    found = training.cost_ratios(cost, "prosmin", "dino").set_index("measure")
    assert found.loc[
        "images per second", ["value", "ci_low", "ci_high", "n"]
    ].tolist() == pytest.approx([0.8, 0.75, 0.9, 3])
    exact = found.value[
        ["backbone parameters", "head parameters", "trained parameters", "saved bytes"]
    ]
    assert exact.tolist() == pytest.approx([1, 1 / 3, 0.6, 1 / 3])


def test_costs_are_taken_anew_where_those_of_other_runs_are_stored(tmp_path, monkeypatch):
    taken, runs = [], [tiny("simsiam"), tiny("vi_simsiam")]
    hashes = [resolution.run_hash(run, training.training_images(run).checksum) for run in runs]
    monkeypatch.setattr(
        training,
        "step_costs",
        lambda *_: taken.append(1) or pd.DataFrame({"run_hash": hashes, "round": 0}),
    )
    with pytest.raises(FileNotFoundError, match="No stored costs"):
        training.stored_step_costs(tmp_path / "cost.csv", runs, measure=False)
    for _ in range(2):
        assert (
            training.stored_step_costs(tmp_path / "cost.csv", runs, measure=True).run_hash.tolist()
            == hashes
            and len(taken) == 1
        )
    training.stored_step_costs(tmp_path / "cost.csv", runs[:1], measure=False)
    assert len(taken) == 1
    training.stored_step_costs(tmp_path / "cost.csv", runs[:1], measure=True)
    assert len(taken) == 2, "one of the stored runs is not asked for"


# ---------------------------------------------------------------------------------------------------------------- resume
@pytest.mark.parametrize(
    ("method", "steps", "other"),
    [
        ("simsiam", (7,), {}),  # between two log rows
        ("simsiam", (1,), {}),  # before any checkpoint
        (
            "vi_simsiam",
            (3, 10, 19),
            {},
        ),  # in the warm-up, at the end of an epoch, just before the end
        ("vi_simsiam_2022", (11,), {"clip_norm": 0.5, "warmup_epochs": 0.5}),
        ("vi_simsiam", (9,), {"optimizer": "adamw", "learning_rate": 1e-3}),  # channels last
        ("simvae", (9,), {}),  # fused
        ("dino", (11,), {}),
        ("moco_v2", (11,), {}),
        ("directpred", (11,), {}),
        ("prosmin", (11,), {}),  # what they remember of earlier steps
    ],
)
def test_resumed_equals_uninterrupted_bit_for_bit(method, steps, other, fresh_results):
    settings = tiny(method, **other)
    training.train(settings)
    expected, log = weights(settings), log_of(settings)
    fresh_results("interrupted")
    folder = interrupted(settings, *steps)
    assert not (folder / "model.safetensors").exists() and (
        folder / "checkpoint.safetensors"
    ).exists() == (steps[-1] >= 2)
    assert (
        json.loads((folder / "config.json").read_text())["finished"] is False
        and not (folder / "progress.json").exists()
    )
    done = []
    with pytest.MonkeyPatch.context() as patch:
        update = training.Progress.update
        patch.setattr(
            training.Progress,
            "update",
            lambda self, at, loss: done.append(at) or update(self, at, loss),
        )
        training.train(settings)
    assert done[0] == steps[-1] // 2 * 2 + 1 and done[-1] == 20  # it went on from the last log row
    assert equal(weights(settings), expected)
    pd.testing.assert_frame_equal(
        log_of(settings).drop(columns="seconds"), log.drop(columns="seconds"), check_exact=True
    )
    assert log_of(settings).seconds.is_monotonic_increasing
    assert not (folder / "checkpoint.safetensors").exists()


@pytest.mark.parametrize(
    "processor, able, expected",
    [
        ("Intel(R) Xeon(R) Processor", ["avx512_bf16"], "float32"),
        ("Intel(R) Xeon(R) Platinum 8480+", ["avx512_bf16", "amx_bf16"], "bf16"),
        ("AMD EPYC", ["avx512_bf16"], "bf16"),
        ("AMD EPYC", ["avx2"], "float32"),
        ("aarch64", ["bf16"], "bf16"),
    ],
)
def test_bf16_is_chosen_where_it_is_faster(processor, able, expected, monkeypatch):
    """Matrix products of 1,024 took 0.51 times as long in float32 as in bf16 on a Xeon with AVX512_BF16 and without AMX (torch 2.11, one thread)."""
    monkeypatch.setattr(artifacts, "processor", lambda: processor)
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: dict.fromkeys(able, True), raising=False
    )
    assert training.precision_of({"precision": "auto"}, torch.device("cpu")) == expected
    assert training.precision_of({"precision": "bf16"}, torch.device("cpu")) == "bf16"


def test_a_checkpoint_in_another_precision_is_not_gone_on_from(fresh_results, monkeypatch):
    """A run of which machines decide the precision would otherwise be half in one and half in the other, and say the last."""
    settings = tiny("simsiam", precision="auto")
    monkeypatch.setattr(training, "precision_of", lambda *_: "float32")
    training.train(settings)
    expected = weights(settings)
    fresh_results("interrupted")
    monkeypatch.setattr(training, "precision_of", lambda *_: "bf16")
    interrupted(settings, 7)
    monkeypatch.setattr(training, "precision_of", lambda *_: "float32")
    training.train(settings)
    assert equal(weights(settings), expected)


def test_one_image_a_process_is_refused(monkeypatch):
    monkeypatch.setattr(
        training,
        "join_processes",
        lambda: SimpleNamespace(world_size=64, device=torch.device("cpu"), is_global_zero=True),
    )
    with pytest.raises(ValueError, match="batch_size 64 leaves each of 64 processes one image"):
        training.train(tiny(batch_size=64))


def test_an_interrupted_run_of_other_data_leaves_what_is_said_of_the_finished_one():
    settings, others = tiny(epochs=1), data.load("digits", "test")
    folder = training.train(settings)
    said = (folder / "config.json").read_text()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training._Loop, "run", interrupt)
        with pytest.raises(KeyboardInterrupt):
            training.train(settings, others)
    assert training.train(settings) == folder and (folder / "config.json").read_text() == said


def interrupt(*_):
    raise KeyboardInterrupt


def test_seeds(fresh_results):
    training.train(tiny("vi_simsiam"))
    first = weights(tiny("vi_simsiam"))
    training.train(tiny("vi_simsiam", seed=1))
    assert not equal(first, weights(tiny("vi_simsiam", seed=1)))
    fresh_results("again")
    torch.manual_seed(99)
    training.train(tiny("vi_simsiam"))
    assert equal(weights(tiny("vi_simsiam")), first)


def test_a_finished_run_is_left_as_it_is(monkeypatch):
    settings = tiny(epochs=1)
    folder = training.train(settings)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.setattr(methods.SimSiam, "loss", lambda *_: pytest.fail("trained again"))
    assert training.train(settings) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    assert {path.name for path in before} == {"config.json", "log.csv", "model.safetensors"}


def test_other_settings_or_data_are_trained():
    settings = tiny(epochs=1)
    folder, images = training.train(settings), training.training_images(settings)
    assert training.train(tiny(epochs=1, learning_rate=0.01)) != folder
    before = weights(settings)
    changed = replace(images, images=255 - images.images)
    assert training.train(settings, changed) == folder and not equal(weights(settings), before)
    assert training.is_finished(
        "smoke", folder.name, resolution.run_hash(settings, changed.checksum)
    )
    assert not training.is_finished(
        "smoke", folder.name, resolution.run_hash(settings, images.checksum)
    )


def test_a_checkpoint_of_other_data_is_not_continued(fresh_results):
    settings = tiny(epochs=1)
    images = training.training_images(settings)
    changed = replace(images, images=255 - images.images)
    training.train(settings, changed)
    expected = weights(settings)
    fresh_results("other")
    interrupted(settings, 5)
    training.train(settings, changed)
    assert equal(weights(settings), expected)


@pytest.mark.parametrize("file", ["checkpoint.safetensors", "model.safetensors"])
def test_a_truncated_file_is_a_clear_error(file):
    settings = tiny(epochs=1)
    folder = interrupted(settings, 5)
    whole = (folder / "checkpoint.safetensors").read_bytes()
    (folder / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        ValueError,
        match=rf"{file} is truncated or not a safetensors file.*delete it and train the run again",
    ):
        training.train(settings)


def test_a_crash_while_a_checkpoint_is_written_leaves_the_one_before(monkeypatch):
    settings = tiny(epochs=1)
    folder = interrupted(settings, 5)
    before = (folder / "checkpoint.safetensors").read_bytes()
    monkeypatch.setattr(
        artifacts.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full"))
    )
    method = methods.build(settings, 1)
    with pytest.raises(OSError, match="disk full"):
        training.save_checkpoint(
            folder / "checkpoint.safetensors",
            method,
            training.make_optimizer(method, settings),
            {"step": 0},
        )
    assert (folder / "checkpoint.safetensors").read_bytes() == before
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


# ---------------------------------------------------------------------------------------------------------------- guards
def spoiled(monkeypatch, at, **terms):
    """From call ``at`` on the loss has these terms instead of its own."""
    loss, calls = methods.SimSiam.loss, []

    def spoil(self, views):
        calls.append(1)
        own = loss(self, views)
        return (
            own | {name: own[name] * 0 + value for name, value in terms.items()}
            if len(calls) >= at
            else own
        )

    monkeypatch.setattr(methods.SimSiam, "loss", spoil)
    return calls


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(monkeypatch, value):
    settings = tiny()
    folder = interrupted(settings, 5)
    before = (folder / "checkpoint.safetensors").read_bytes()
    calls = spoiled(monkeypatch, 8, loss=value)  # goes on after step 4, so this is step 12
    with pytest.raises(
        training.TrainingStopped,
        match=r"not finite at step 12 .*checkpoint is kept.*smaller learning_rate",
    ):
        training.train(settings)
    assert len(calls) == 8 and (folder / "checkpoint.safetensors").read_bytes() == before
    assert not (folder / "model.safetensors").exists() and not (folder / "progress.json").exists()


def test_weights_that_are_not_finite_stop_the_run():
    with pytest.raises(training.TrainingStopped, match="not finite"):
        training.train(tiny(learning_rate=1e30))


def test_collapsed_outputs_stop_the_run_after_the_first_epoch(monkeypatch):
    spoiled(monkeypatch, 1, spread=0.001)
    with pytest.raises(
        training.TrainingStopped,
        match=r"collapsed to one point at step 10 \(spread 0.001 of 1\).*checkpoint is kept",
    ):
        training.train(tiny())


def test_a_real_collapse_is_seen(monkeypatch):
    """Without the stop-gradient and the predictor, minimising the distance of the views makes all outputs alike."""
    forward = methods.SimSiam.forward
    monkeypatch.setattr(
        methods.SimSiam,
        "forward",
        lambda self, view: (forward(self, view)[0] * 1e-3 + 1.0, forward(self, view)[1]),
    )
    with pytest.raises(training.TrainingStopped, match="collapsed"):
        training.train(tiny())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            {"batch_size": 161},
            "digits .160 images. has 160 images, fewer than one batch of 161: give more images, or a smaller batch_size",
        ),
        ({"augmentation": "none"}, "Unknown augmentation recipe 'none'"),
        ({"precision": "float16"}, "Unknown precision 'float16'"),
        ({"schedule": "linear"}, "Unknown schedule 'linear'"),
        ({"schedule": "linear", "warmup_epochs": 1.0}, "Unknown schedule 'linear'"),
        ({"optimizer": "lion"}, "Unknown optimizer 'lion'"),
        ({"split": "test"}, "Unknown split 'test'"),
        ({"stem": "none"}, "Unknown stem 'none'"),
    ],
)
def test_what_cannot_work_is_an_error_before_any_training(monkeypatch, other, message):
    monkeypatch.setattr(methods.SimSiam, "loss", lambda *_: pytest.fail("training began"))
    with pytest.raises(ValueError, match=message):
        training.train(tiny(**other))


# ---------------------------------------------------------------------------------------------------------------- schedules and optimizer
def test_learning_rate_factor():
    factors = [training.learning_rate_factor(step, 12, 2, "cosine") for step in range(12)]
    assert factors[:3] == [0.5, 1.0, 1.0] and factors[7] == pytest.approx(0.5)
    assert factors[2:] == pytest.approx([0.5 * (1 + math.cos(math.pi * t / 10)) for t in range(10)])
    assert [training.learning_rate_factor(step, 5, 2, "constant") for step in range(5)] == [
        0.5,
        1,
        1,
        1,
        1,
    ]
    assert training.learning_rate_factor(0, 1, 0, "cosine") == 1
    with pytest.raises(
        ValueError, match="Unknown schedule 'linear'; choose 'cosine' or 'constant'"
    ):
        training.learning_rate_factor(3, 5, 0, "linear")


@pytest.mark.parametrize("constant", [True, False])
def test_the_predictors_learning_rate_stays_constant(monkeypatch, constant):
    rates, clipped, make = [], [], training.make_optimizer

    def recording(method, settings):
        optimizer = make(method, settings)
        optimizer.register_step_pre_hook(
            lambda o, *_: rates.append(
                [(group["constant"], group["lr"]) for group in o.param_groups]
            )
        )
        return optimizer

    clip = nn.utils.clip_grad_norm_
    monkeypatch.setattr(training, "make_optimizer", recording)
    monkeypatch.setattr(
        nn.utils,
        "clip_grad_norm_",
        lambda parameters, norm: clipped.append(norm) or clip(parameters, norm),
    )
    settings = tiny(constant_predictor_learning_rate=constant, warmup_epochs=0.2, clip_norm=0.5)
    training.train(settings)
    expected = [0.06 * training.learning_rate_factor(step, 20, 2, "cosine") for step in range(20)]
    assert [dict(row)[False] for row in rates] == pytest.approx(expected)
    assert [dict(row).get(True) for row in rates] == [0.06 if constant else None] * 20
    assert (
        log_of(settings).learning_rate.tolist()
        == pytest.approx([float(f"{rate:.5g}") for rate in expected[1::2]])
        and clipped == [0.5] * 20
    )


@pytest.mark.parametrize("method", ["simsiam", "vi_simsiam", "vi_simsiam_2022"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_every_weight_is_in_one_group_with_decay(method, optimizer):
    network = methods.build(tiny(method), 1)
    network.register_parameter("frozen", nn.Parameter(torch.ones(3), requires_grad=False))
    groups = training.make_optimizer(network, tiny(method, optimizer=optimizer)).param_groups
    listed = [id(parameter) for group in groups for parameter in group["params"]]
    wanted = {id(parameter) for name, parameter in network.named_parameters() if name != "frozen"}
    assert len(listed) == len(set(listed)) and set(listed) == wanted
    assert {group["weight_decay"] for group in groups} == {5e-4} and {
        group["lr"] for group in groups
    } == {0.06}
    predictor = [group for group in groups if group["constant"]]
    assert {id(p) for p in predictor[0]["params"]} == {
        id(p) for p in network.predictor.parameters()
    }


def test_matrices_alone_are_decayed_where_a_recipe_says_so_and_by_its_schedule(monkeypatch):
    seen, make = [], training.make_optimizer

    def recording(method, settings):
        optimizer = make(method, settings)
        step = optimizer.step
        optimizer.step = lambda: (
            seen.append([group["weight_decay"] for group in optimizer.param_groups]) or step()
        )
        return optimizer

    monkeypatch.setattr(training, "make_optimizer", recording)
    settings = tiny("prosmin", epochs=2, weight_decay=0.04)
    assert settings["decays_matrices_only"] and settings["weight_decay_end"] == 0.4
    training.train(settings)
    progress = [step / len(seen) for step in range(len(seen))]
    assert [decays[0] for decays in seen] == pytest.approx(
        [networks.cosine_between(0.04, 0.4, part) for part in progress]
    )
    assert {decays[1] for decays in seen} == {0.0}
    seen.clear()
    training.train(settings | {"weight_decay": 0.0})
    assert seen[0] == [0.0, 0.0] and seen[-1][0] > 0.3 and seen[-1][1] == 0
    network = methods.build(settings, 1)
    matrices, vectors = make(network, settings).param_groups
    assert all(p.ndim > 1 for p in matrices["params"]) and all(
        p.ndim < 2 for p in vectors["params"]
    )
    assert any(p is network.predictor.log_sigma.bias for p in vectors["params"])


def test_lars_adapts_the_rate_of_matrices_without_weight_decay_too():
    """The trust ratio 0.001 ‖w‖/‖g‖ of You et al. 2017 makes the step independent of the gradient's length."""
    network = nn.Linear(4, 4)
    settings = tiny("simclr", optimizer="lars", weight_decay=0.0, momentum=0.0, learning_rate=0.1)
    before = network.weight.detach().clone()
    network.weight.grad, network.bias.grad = torch.randn(4, 4), torch.zeros(4)
    training.make_optimizer(network, settings).step()
    assert float((network.weight.detach() - before).norm()) == pytest.approx(
        0.1 * 0.001 * float(before.norm()), rel=1e-3
    )


@pytest.mark.parametrize("layer", [lambda: nn.Linear(4, 4), lambda: nn.BatchNorm1d(4)])
def test_lars_neither_decays_nor_adapts_biases_and_batch_norm(layer):
    network = layer()
    vectors = {
        name: parameter for name, parameter in network.named_parameters() if parameter.ndim < 2
    }
    before = {name: parameter.detach().clone() for name, parameter in vectors.items()}
    for parameter in network.parameters():
        parameter.grad = torch.randn_like(parameter)
    training.make_optimizer(
        network, tiny("simclr", optimizer="lars", weight_decay=0.1, momentum=0.0, learning_rate=0.5)
    ).step()
    for name, parameter in vectors.items():
        torch.testing.assert_close(
            parameter.detach(), before[name] - 0.5 * parameter.grad, msg=name
        )


def test_the_loop_tells_a_method_epoch_and_progress(monkeypatch):
    told = {"epoch": [], "progress": []}

    class Listening(methods.SimSiam):
        def set_epoch(self, epoch):
            told["epoch"].append(epoch)

        def update_target(self, progress):
            told["progress"].append(progress)

    monkeypatch.setitem(methods.METHODS, "simsiam", Listening)
    training.train(tiny())
    assert told["epoch"] == pytest.approx([step / 10 for step in range(20)])
    assert told["progress"] == pytest.approx([step / 20 for step in range(1, 21)])


def test_kappa_keeps_its_start_in_the_warm_up_and_then_moves():
    settings = tiny("vi_simsiam", concentration_warmup_epochs=1.0)
    training.train(settings)
    log = log_of(settings).set_index("step")
    assert log.kappa.loc[:10].std() < 1e-5 and abs(log.kappa.loc[20] - log.kappa.loc[10]) > 1e-3
    assert log.kappa.loc[2] == pytest.approx(7 * 0.15 / 0.85, rel=5e-3)


# ---------------------------------------------------------------------------------------------------------------- data and files
def test_every_epoch_sees_every_image_once_in_another_order(monkeypatch):
    seen, batches = [], data.batches
    monkeypatch.setattr(
        data,
        "batches",
        lambda images, indices: batches(images, (seen.append(i) or i for i in indices)),
    )
    training.train(tiny())
    assert [len(indices) for indices in seen] == [16] * 20
    first, second = torch.cat(seen[:10]).tolist(), torch.cat(seen[10:]).tolist()
    assert sorted(first) == sorted(second) == list(range(160)) and first != second


def test_training_images():
    everything, fit = (
        training.training_images(tiny(train_images=0)),
        training.training_images(tiny(train_images=0, split="fit")),
    )
    validation = data.train_validation_split(everything.labels)[1]
    held_out = everything.subset(validation).index  # positions in the source
    assert (
        len(everything) == 1438
        and len(fit) == 1438 - len(held_out)
        and not set(fit.index) & set(held_out)
    )
    few = training.training_images(tiny())
    assert few.title == "digits (160 images)" and np.array_equal(
        few.images, everything.images[:160]
    )


def test_a_folder_of_images_trains_whether_it_fits_in_memory_or_not(
    data_dir, monkeypatch, fresh_results
):
    drawn = data.generated("shapes", 40, 12)
    for i, (image, label) in enumerate(zip(drawn.images, drawn.labels, strict=True)):
        path = data_dir / "mine" / "train" / drawn.classes[label] / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    settings = tiny(dataset="mine", train_images=0)
    folder = training.train(settings)
    resident = weights(settings)
    text = (folder / "config.json").read_text()
    assert "DATA_DIR/mine/train" in text and str(data_dir.parent) not in text
    fresh_results("streamed")
    monkeypatch.setattr(image_sets, "RESIDENT_BYTES", 0)
    training.train(settings)
    assert equal(weights(settings), resident)


def test_a_long_run_logs_fewer_rows_an_epoch_with_the_same_means(fresh_results, monkeypatch):
    settings, logs, write = tiny(epochs=2), [], artifacts.write_csv
    monkeypatch.setattr(
        artifacts, "write_csv", lambda path, frame, digits: write(path, frame)
    )  # the log's own digits are too few to compare by
    for rows in (training.LOG_ROWS, 2):
        fresh_results(str(rows))
        monkeypatch.setattr(training, "LOG_ROWS", rows)
        training.train(settings)
        logs.append(log_of(settings))
    whole, few = logs
    assert few.step.tolist() == [10, 20] and few.effective_rank.notna().all() and len(whole) == 10
    assert few.loss.tolist() == pytest.approx(
        whole.loss.groupby(np.arange(10) // 5).mean().tolist(), rel=1e-5
    )


def test_what_a_run_leaves(tmp_path):
    settings = tiny("vi_simsiam", epochs=1)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        close = training.Progress.close
        patch.setattr(
            training.Progress,
            "close",
            lambda self: seen.append(json.loads(self.path.read_text())) or close(self),
        )
        folder = training.train(settings)
    assert folder == artifacts.RESULTS / "smoke" / "runs" / resolution.run_name(settings)
    assert set(seen[0]) == {"run", "step", "steps", "images_per_second", "loss", "seconds_left"}
    assert (seen[0]["step"], seen[0]["steps"]) == (10, 10)
    log = pd.read_csv(folder / "log.csv")
    assert list(log) == [
        "step",
        "epoch",
        "seconds",
        "learning_rate",
        "loss",
        "negative_log_likelihood",
        "cosine",
        "cosine_q05",
        "cosine_q95",
        "kappa",
        "kappa_q05",
        "kappa_q95",
        "kappa_minus_best",
        "spread",
        "effective_rank",
        "feature_spread",
    ]
    at_epochs, always = (
        log[["effective_rank", "feature_spread"]],
        log.drop(columns=["effective_rank", "feature_spread"]),
    )
    assert (
        log.step.tolist() == [2, 4, 6, 8, 10]
        and log.epoch.tolist() == [0.2, 0.4, 0.6, 0.8, 1.0]
        and always.notna().all().all()
    )
    assert at_epochs[:-1].isna().all().all()
    images = training.training_images(settings)
    features = (
        training.load_trained(settings, 1)
        .embed(images.batch(range(160)).float() / 255)
        .features.detach()
    )
    expected = [uncertainty.effective_rank(features.numpy()), spread(features).item()]
    assert at_epochs.iloc[-1].tolist() == pytest.approx(expected, rel=1e-4)
    config = json.loads((folder / "config.json").read_text())
    assert (
        config["finished"]
        and config["settings"] == resolution.trained_with(settings)
        and config["precision"] == "float32"
    )
    assert config["data"] == {
        "title": "digits (160 images)",
        "checksum": training.training_images(settings).checksum,
        "images": 160,
        "source": "scikit-learn",
    }
    assert config["run_hash"] == resolution.run_hash(settings, config["data"]["checksum"])
    assert (
        config["parameters"] == sum(p.numel() for p in methods.build(settings, 1).parameters())
        and config["seconds"] >= 0
    )
    assert {"commit", "python", "versions", "hardware"} <= set(config)
    for path in (tmp_path, artifacts.ROOT, artifacts.ROOT.home()):
        assert f'"{path}' not in json.dumps(config) and f"{path}/" not in json.dumps(config)


def test_features_that_are_all_one_stop_nothing(monkeypatch):
    monkeypatch.setattr(
        methods.SimSiam,
        "embed",
        lambda self, images: methods.Embedding(
            torch.ones(len(images), 4), torch.zeros(len(images)), {}
        ),
    )
    log = pd.read_csv(training.train(tiny(epochs=1)) / "log.csv")
    assert np.isnan(log.effective_rank.iloc[-1]) and log.feature_spread.iloc[-1] == 0


@pytest.mark.parametrize("method", ["random", "raw_pixels"])
def test_references_are_stored_without_training(method):
    folder = training.train(tiny(method, epochs=0))
    assert list(pd.read_csv(folder / "log.csv")) == ["step", "epoch", "loss"]
    stored = training.load_trained(tiny(method, epochs=0), 1).state_dict()
    assert equal(stored, methods.build(tiny(method, epochs=0), 1).state_dict())


def test_load_trained():
    settings = tiny(epochs=1)
    run = resolution.run_name(settings)
    with pytest.raises(
        FileNotFoundError,
        match=f"Run {run} has no trained weights here.*make reproduce PROFILE=smoke",
    ):
        training.load_trained(settings, 1)
    training.train(settings)
    loaded = training.load_trained(settings, 1)
    assert not loaded.training and equal(
        {name: value.cpu() for name, value in loaded.state_dict().items()}, weights(settings)
    )


@pytest.mark.parametrize("method", ["simsiam", "byol"])
def test_first_steps_are_those_of_a_run(method, fresh_results):
    """A run of as many steps has the same losses and weights; nothing is stored."""
    fresh_results("first steps")
    settings = tiny(method)
    images = training.training_images(settings)
    short = methods.build(settings, 1)
    steps = 2 * (len(images) // settings["batch_size"])
    terms = list(training.first_steps(short, images, settings, steps))
    assert len(terms) == steps and not list(artifacts.RESULTS.rglob(resolution.run_name(settings)))
    training.train(settings)
    assert equal(
        weights(settings), {name: value.cpu() for name, value in short.state_dict().items()}
    )
    with pytest.raises(ValueError, match="fewer than one batch"):
        next(training.first_steps(short, images, settings | {"batch_size": 10**6}, 1))


def test_bf16_trains_close_to_float32():
    losses = {}
    for precision in ("float32", "bf16"):
        settings = tiny("vi_simsiam", epochs=1, precision=precision)
        training.train(settings)
        losses[precision] = log_of(settings).loss
    np.testing.assert_allclose(losses["bf16"], losses["float32"], atol=0.05)
    assert not np.array_equal(losses["bf16"], losses["float32"])


def test_seeds_of_randomness_are_apart():
    seeds = {
        training.seed_of(seed, purpose, index)
        for seed in (0, 1)
        for purpose in ("views", "order", "method")
        for index in range(50)
    }
    assert len(seeds) == 300 and all(0 <= seed < 2**63 for seed in seeds)
    assert training.seed_of(0, "views", 7) == training.seed_of(0, "views", 7)


def test_the_command_trains_a_listed_run(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(
        "sys.argv", ["training", "--run", "simsiam-digits-e1-seed0", "--profile", "smoke"]
    )
    monkeypatch.setattr(
        training, "train", lambda settings, show_progress: asked.append(settings) or "folder"
    )
    training.main()
    assert (
        asked == [resolution.resolve("simsiam", "smoke")] and capsys.readouterr().out == "folder\n"
    )


# ---------------------------------------------------------------------------------------------------------------- what a GPU does, on a CPU
@pytest.mark.long
@pytest.mark.parametrize("method", ["simsiam", "vi_simsiam"])
def test_a_compiled_loss_trains_the_same_run(method, fresh_results, distance):
    """What a GPU does by default; here only where a C++ compiler is. Tolerance: 1 % of the way that the weights have gone in 10 steps."""
    if not any(shutil.which(name) for name in ("g++", "clang++")):
        pytest.skip("torch.compile needs a C++ compiler on a CPU; there is none")
    settings = tiny(method, epochs=1, learning_rate=1e-3)
    fresh_results("eager")
    training.train(settings)
    eager = weights(settings)
    fresh_results("compiled")
    training.train(settings, compiled=True)
    compiled = weights(settings)
    start = methods.build(settings, 1).state_dict()
    assert 0 < distance(eager, compiled) < 0.01 * distance(start, eager)


def test_views_are_made_one_step_ahead():
    made = []

    def make(step):
        made.append(step)
        return None if step == 5 else [step]

    seen = []
    for views in training.one_ahead(make, 2, torch.device("cpu")):
        seen.append((views, list(made)))
    assert seen == [([2], [2, 3]), ([3], [2, 3, 4]), ([4], [2, 3, 4, 5])]
