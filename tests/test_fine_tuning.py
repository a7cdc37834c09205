"""lib.evaluation.finetune: fine-tuning itself; few labels and transfer, each with the search of its learning rate."""

from copy import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from lib import evaluation
from lib.data import sources as data
from lib.data.sources import ImageSet
from lib.evaluation import finetune as fine_tuning
from lib.runs import store as artifacts
from lib.training import loop as training

FEW = {
    "fine_tune_shares": [0.05, 0.2],
    "fine_tune_epochs": [8, 4],
    "fine_tune_learning_rates": [0.01, 0.3],
}


@pytest.fixture
def calls(monkeypatch):
    """Every fine-tuning as (labelled, test, epochs, rate); its answer is right for the first image, and for one more with the larger rate."""
    made = []

    def fine_tune(
        method, labelled, test, epochs, learning_rate, seed, precision, progress_path, optimizer
    ):
        assert optimizer == "sgd"
        made.append((labelled, test, epochs, learning_rate))
        right = np.arange(len(test)) < (1 if learning_rate == 0.01 else 2)
        return np.eye(10)[np.where(right, test.labels, (test.labels + 1) % 10)]

    monkeypatch.setattr(fine_tuning, "fine_tune", fine_tune)
    return made


def test_few_labels_are_searched_on_train_and_measured_once_on_test(run, calls, monkeypatch):
    monkeypatch.setattr(run, "settings", run.settings | FEW)
    monkeypatch.setattr(fine_tuning, "Run", None)  # seed 0 searches with itself
    frame = fine_tuning.measure_few_labels(run, "21_few")
    as_stored = [float(f"{value:.{artifacts.METRIC_DIGITS}g}") for value in frame.value]
    assert artifacts.read_metrics("smoke", "21_few", run.name).value.tolist() == as_stored
    held_out = len(data.train_validation_split(run.train.labels)[1])
    assert [(len(test), epochs, rate) for _, test, epochs, rate in calls] == [
        (held_out, 2, 0.01),
        (held_out, 2, 0.3),
        (359, 8, 0.3),
        (held_out, 1, 0.01),
        (held_out, 1, 0.3),
        (359, 4, 0.3),
    ]
    for labelled, validation, *_ in (calls[0], calls[3]):
        assert not {image.tobytes() for image in labelled.images} & {
            image.tobytes() for image in validation.images
        }
    small, large = calls[2][0], calls[5][0]
    assert set(small.index) < set(large.index) and len(np.unique(small.labels)) == 10

    scores = artifacts.read_scores("smoke", run.name, "digits_few_labels")
    rows = frame.set_index(["condition", "classifier", "metric"])
    for share in FEW["fine_tune_shares"]:
        for classifier in ("fine_tuned", "linear", "knn"):
            row = rows.loc[[(f"labels_{share:g}", classifier, "accuracy")]].iloc[0]
            assert (
                row.value == scores[f"{classifier}_{share:g}"].mean()
                and row.ci_low <= row.value <= row.ci_high
                and row.n == 359
            )
        fine_tuned = rows.loc[f"labels_{share:g}"].loc["fine_tuned"].value
        assert (
            fine_tuned["accuracy"] == pytest.approx(2 / 359) and fine_tuned["learning_rate"] == 0.3
        )
        assert {"nll", "ece"} <= set(rows.loc[f"labels_{share:g}"].loc["fine_tuned"].index) & set(
            rows.loc[f"labels_{share:g}"].loc["linear"].index
        )
        assert len(rows.loc[(f"labels_{share:g}_validation", "fine_tuned", "accuracy")]) == 2
    rates, heard = fine_tuning.searched_rates(frame, "smoke")
    assert (
        rates.columns.tolist() == [0.01, 0.3]
        and rates.idxmax(axis=1).tolist() == [0.3, 0.3]
        and "for 2 of 2 searches" in heard
    )
    assert "the highest for simsiam" in heard or "the highest for vi_simsiam" in heard
    searched = rows.loc[("labels_0.05_validation", "fine_tuned", "accuracy")].value
    assert rates.iloc[0].tolist() == pytest.approx((100 * searched).tolist())
    assert fine_tuning.searched_rates(frame[frame.condition == "labels_0.05"], "smoke")[0].empty
    few = run.embed(small, "labels_0.05")
    expected = evaluation.knn_predict(
        few["features"], few["label"], run.embed(run.test())["features"], k=len(small)
    )[0]
    np.testing.assert_array_equal(scores["knn_0.05"], expected == run.test().labels)

    before = len(calls)
    pd.testing.assert_frame_equal(fine_tuning.measure_few_labels(run, "21_few"), frame)
    assert len(calls) == before, "a stored fine-tuning was done again"
    monkeypatch.setattr(run, "settings", run.settings | {"fine_tune_epochs": [8, 8]})
    fine_tuning.measure_few_labels(run, "21_few")
    assert [(epochs, rate) for *_, epochs, rate in calls[before:]] == [
        (2, 0.01),
        (2, 0.3),
        (8, 0.3),
    ], "other epochs are another fine-tuning"


def test_transfer_searches_on_the_other_sets_train_and_is_tested_there_once(
    run, calls, monkeypatch
):
    monkeypatch.setattr(
        run, "settings", run.settings | FEW | {"transfer_images": 60, "transfer_epochs": 8}
    )
    frame = fine_tuning.measure_transfer(run, "generated", "51_moved")
    assert [(len(labelled), len(test), epochs, rate) for labelled, test, epochs, rate in calls] == [
        (55, 5, 2, 0.01),
        (55, 5, 2, 0.3),
        (60, 256, 8, 0.3),
    ]
    assert all(
        labelled.images.shape[3] == run.channels == test.images.shape[3]
        for labelled, test, *_ in calls
    )
    assert [(labelled.split, test.split) for labelled, test, *_ in calls] == [
        ("train", "train")
    ] * 2 + [("train", "test")]
    stored = (
        artifacts.read_metrics("smoke", "51_moved-generated", run.name).set_index("metric").value
    )
    right = artifacts.read_scores("smoke", run.name, "generated_transfer")["fine_tuned_correct"]
    assert (
        stored["accuracy"] == right.mean()
        and stored["images"] == 60
        and stored["epochs"] == 8
        and stored["learning_rate"] == 0.3
    )
    assert set(frame.evaluated_on) == {"generated"} and frame.metric.tolist() == list(stored.index)
    said = fine_tuning.transfer_rates_at_an_end(
        frame.assign(method="vje"), [run.settings | {"method": "vje"}]
    )
    assert (
        said
        == "For transfer 1 of 1 searches chose a rate at an end of their grid: vje (generated, 0.3)."
    )
    for rates, said in (([0.1, 0.3, 0.9], "0 of 1 searches"), ([0.3], "no rate was searched")):
        grid = {"method": "vje", "fine_tune_learning_rates": rates}
        assert fine_tuning.transfer_rates_at_an_end(frame.assign(method="vje"), [grid]).startswith(
            f"For transfer {said}"
        )


def test_a_rate_that_diverges_is_the_worst_of_its_search_and_ends_nothing(run, monkeypatch):
    def fine_tuned(_, labelled, test, epochs, rate):
        if rate == 0.3:
            raise training.TrainingStopped("Fine-tuning's loss is nan at step 1")
        return {"label": test.labels, "probabilities": np.eye(10)[test.labels] * 0.9}

    monkeypatch.setattr(fine_tuning, "fine_tuned", fine_tuned)
    monkeypatch.setattr(run, "settings", run.settings | FEW)
    assert fine_tuning.search_rate(run, run.train, 8, 0.05) == {0.01: 1.0, 0.3: 0.0}


def test_a_probability_that_rounds_to_nothing_has_a_finite_nll():
    measured = fine_tuning._calibration(
        np.array([[1, 0, 0], [0.5, 0.5, 0]], np.float32), np.array([1, 0])
    )
    assert measured["nll"] == pytest.approx((126 * np.log(2) + np.log(2)) / 2) and measured[
        "ece"
    ] == pytest.approx(0.75)


def test_other_seeds_take_the_rate_that_seed_0_chose(run, calls, monkeypatch):
    asked = []
    monkeypatch.setattr(run, "settings", run.settings | FEW | {"seed": 3})
    monkeypatch.setattr(fine_tuning, "Run", lambda settings: asked.append(settings["seed"]) or run)
    assert fine_tuning.search_rate(run, run.train, 8, 0.05).keys() == {0.01, 0.3} and asked == [0]
    monkeypatch.setattr(run, "settings", run.settings | {"fine_tune_learning_rates": [0.1]})
    assert list(fine_tuning.search_rate(run, run.train, 8, 0.05)) == [0.1] and asked == [0]


def test_a_transfer_whose_rate_is_stored_needs_no_weights_of_seed_0(run, calls, monkeypatch):
    monkeypatch.setattr(
        run, "settings", run.settings | FEW | {"transfer_images": 40, "transfer_epochs": 4}
    )
    fine_tuning.measure_transfer(run, "generated", "51_stored")
    other, searched = copy(run), len(calls)
    other.settings, other.name = run.settings | {"seed": 3}, f"{run.name}-of-seed-3"
    monkeypatch.setattr(
        fine_tuning, "Run", lambda settings: SimpleNamespace(name=run.name, hash=run.hash)
    )
    fine_tuning.measure_transfer(other, "generated", "51_stored")
    assert [(epochs, rate) for *_, epochs, rate in calls[searched:]] == [(4, 0.3)]
    other.settings = other.settings | {"fine_tune_learning_rates": [0.01, 0.1]}
    asked = []
    monkeypatch.setattr(
        fine_tuning, "search_rate", lambda *given: asked.append(given) or {0.01: 0.0, 0.1: 1.0}
    )
    fine_tuning.measure_transfer(other, "generated", "51_stored")
    assert len(asked) == 1 and calls[-1][-1] == 0.1, "of another grid"


def test_a_search_that_is_stored_needs_no_weights_of_seed_0(run, calls, monkeypatch):
    monkeypatch.setattr(run, "settings", run.settings | FEW)
    fine_tuning.measure_few_labels(run, "21_few")
    other, searched = copy(run), len(calls)
    other.settings, other.name = run.settings | {"seed": 3}, f"{run.name}-of-seed-3"
    monkeypatch.setattr(
        fine_tuning, "Run", lambda settings: SimpleNamespace(name=run.name, hash=run.hash)
    )
    fine_tuning.measure_few_labels(other, "21_few")
    assert [(epochs, rate) for *_, epochs, rate in calls[searched:]] == [(8, 0.3), (4, 0.3)]
    images = len(data.train_validation_split(run.train.labels)[1])
    assert fine_tuning.stored_search(other, "21_few", 0.05) == pytest.approx(
        {0.01: 1 / images, 0.3: 2 / images}, rel=1e-4
    )
    assert (
        fine_tuning.stored_search(other, "21_few", 0.5)
        == {}
        == fine_tuning.stored_search(other, "21_other", 0.05)
    )
    monkeypatch.setattr(
        fine_tuning, "Run", lambda settings: SimpleNamespace(name=run.name, hash="another network")
    )
    assert fine_tuning.stored_search(other, "21_few", 0.05) == {}
    monkeypatch.setattr(
        fine_tuning, "Run", lambda settings: SimpleNamespace(name=run.name, hash=run.hash)
    )
    other.settings = other.settings | {"fine_tune_learning_rates": [0.01, 0.1]}
    assert fine_tuning.stored_search(other, "21_few", 0.05) == {}, "of another grid"


# ---------------------------------------------------------------------------------------------------------- one network


def stripes(n, seed=0):
    """Noise whose rows or columns are striped: two classes that neither crop nor flip confuses, and no pixel's mean tells apart."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(2, size=n)
    wave = 60 * np.where(np.arange(12) % 4 < 2, 1, -1)
    pattern = np.where(
        labels[:, None, None] == 0, wave[None, :, None], wave[None, None, :]
    )  # [N, H, W]
    pixels = (
        128
        + np.sign(generator.normal(size=(n, 1, 1))) * pattern
        + generator.normal(0, 20, (n, 12, 12))
    )
    return ImageSet(
        "stripes",
        "train",
        pixels.clip(0, 255).astype(np.uint8)[..., None],
        labels,
        ["rows", "columns"],
    )


class Convolutional(nn.Module):
    """A small method with dropout and batch norm; one of its weights, like a target network's, is not trained."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.network = nn.Sequential(
            nn.Conv2d(1, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.2),
        )
        self.network[0].requires_grad_(False)

    def embed(self, batch):
        features = self.network(batch)
        return SimpleNamespace(
            features=features.float(), uncertainty=-features.norm(dim=1), native={}
        )


def tuned(labelled, test, method=None, **changes):
    arguments = {
        "epochs": 12,
        "learning_rate": 0.1,
        "batch_size": 32,
        "precision": "float32",
    } | changes
    return fine_tuning.fine_tune(method or Convolutional(), labelled, test, **arguments)


def test_fine_tuning_learns_and_leaves_the_method_alone():
    method, labelled, test = Convolutional().train(), stripes(100), stripes(200, seed=1)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    probabilities = tuned(labelled, test, method)
    assert probabilities.shape == (200, 2) and probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert np.mean(probabilities.argmax(1) == test.labels) > 0.95
    assert (
        method.training
        and not method.network[0].weight.requires_grad
        and method.network[1].weight.requires_grad
    )
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())


def test_all_layers_are_fine_tuned(monkeypatch):
    trained, original = [], fine_tuning.embed_images
    monkeypatch.setattr(
        fine_tuning,
        "embed_images",
        lambda method, images: trained.append(method) or original(method, images),
    )
    tuned(stripes(40), stripes(10), epochs=1)
    assert all(
        not torch.equal(after, before)
        for after, before in zip(trained[0].parameters(), Convolutional().parameters(), strict=True)
    )


def test_no_batch_of_fine_tuning_is_of_one_image(monkeypatch):
    seen, original = [], Convolutional.embed
    monkeypatch.setattr(
        Convolutional,
        "embed",
        lambda self, batch: seen.append((self.training, len(batch))) or original(self, batch),
    )
    for count, size in ((5, 2), (7, 3), (40, 32)):
        tuned(stripes(count), stripes(10), epochs=1, batch_size=size)
    assert (
        min(images for training_now, images in seen if training_now) == 2
        and max(images for _, images in seen) <= 32
    )


def test_fine_tuning_follows_from_its_seed_alone():
    method, labelled, test = Convolutional(), stripes(50), stripes(20, seed=1)
    first = tuned(labelled, test, method, epochs=2)
    torch.manual_seed(77)
    np.testing.assert_array_equal(tuned(labelled, test, method, epochs=2), first)
    assert not np.array_equal(tuned(labelled, test, method, epochs=2, seed=1), first)


@pytest.mark.parametrize(
    ("batch_size", "sizes"), [(32, [17, 16] * 3), (33, [33] * 3), (256, [33] * 3)]
)
def test_an_epoch_sees_every_labelled_image_once(monkeypatch, batch_size, sizes):
    labelled, seen = stripes(33), []
    original = ImageSet.batch
    monkeypatch.setattr(
        ImageSet, "batch", lambda self, rows: seen.append(np.asarray(rows)) or original(self, rows)
    )
    monkeypatch.setattr(
        fine_tuning,
        "embed_images",
        lambda method, images: {"features": np.zeros((2, 8), np.float32)},
    )
    tuned(labelled, stripes(2), epochs=3, batch_size=batch_size)
    seen = seen[1:]  # the first asks for the number of features
    assert [len(rows) for rows in seen] == sizes
    for epoch in np.split(np.concatenate(seen), 3):
        assert sorted(epoch) == list(range(33))


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("sgd", torch.optim.SGD, {"momentum": 0.9, "weight_decay": 1e-4}),
        ("adamw", torch.optim.AdamW, {"weight_decay": 0.05}),
    ],
)
def test_the_optimisers_are_those_that_the_docstring_says(name, kind, expected):
    factory, _ = fine_tuning.FINE_TUNING[name]
    optimiser = factory([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    assert isinstance(optimiser, kind) and expected.items() <= optimiser.param_groups[0].items()


def test_the_learning_rate_falls_on_a_cosine_to_the_end(monkeypatch):
    rates, original = [], torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD,
        "step",
        lambda self: rates.append(self.param_groups[0]["lr"]) or original(self),
    )
    tuned(stripes(40), stripes(5), epochs=4, batch_size=20)
    np.testing.assert_allclose(rates, 0.05 * (1 + np.cos(np.pi * np.arange(8) / 8)))


def test_the_learning_rate_of_adamw_rises_in_the_first_tenth(monkeypatch):
    rates, original = [], torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self: rates.append(self.param_groups[0]["lr"]) or original(self),
    )
    tuned(stripes(40), stripes(5), epochs=10, batch_size=20, learning_rate=0.01, optimizer="adamw")
    np.testing.assert_allclose(
        rates, [0.005, 0.01, *(0.005 * (1 + np.cos(np.pi * np.arange(18) / 18)))]
    )


def test_fine_tuning_with_adamw_learns():
    test = stripes(200, seed=1)
    probabilities = tuned(stripes(100), test, epochs=12, learning_rate=0.01, optimizer="adamw")
    assert np.mean(probabilities.argmax(1) == test.labels) > 0.95


def test_fine_tuning_refuses_bad_input():
    labelled, test = stripes(20), stripes(5)
    with pytest.raises(ValueError, match="optimizer is 'adam'; choose from .*adamw"):
        tuned(labelled, test, optimizer="adam")
    with pytest.raises(ValueError, match="Flatten has no weights to fine-tune"):
        tuned(labelled, test, nn.Flatten())
    with pytest.raises(ValueError, match="at least 2 images"):
        tuned(labelled.subset([0]), test)
    with pytest.raises(ValueError, match="of the 2 classes of stripes"):
        tuned(replace(labelled, classes=["rows", "columns", "dots"]), test)
    for change in (
        {"epochs": 0},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"batch_size": 1},
    ):
        with pytest.raises(ValueError, match="epochs, learning_rate and batch_size must be"):
            tuned(labelled, test, **change)
    with pytest.raises(training.TrainingStopped, match="lower learning_rate"):
        tuned(labelled, test, learning_rate=1e30)
