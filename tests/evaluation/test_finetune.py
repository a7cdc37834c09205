"""lib.evaluation.finetune: fine-tuning, the search of its learning rate, and two measures."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from lib import training
from lib.data.sets import ImageSet, train_validation_split
from lib.evaluation import finetune, probes
from lib.runs import store

GRID = {
    "fine_tune_shares": [0.05, 0.2],
    "fine_tune_epochs": [8, 4],
    "fine_tune_learning_rates": [0.01, 0.3],
    "transfer_images": 60,
    "transfer_epochs": 8,
}


# ------------------------------------------------------------------------------------ one network
def stripes(count, seed=0):
    """Noise with striped rows or columns: two classes that no pixel's mean separates."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(2, size=count)
    wave = 60 * np.where(np.arange(12) % 4 < 2, 1, -1)
    rows = labels[:, None, None] == 0
    pattern = np.where(rows, wave[None, :, None], wave[None, None, :])  # [N, H, W]
    sign = np.sign(generator.normal(size=(count, 1, 1)))
    pixels = 128 + sign * pattern + generator.normal(0, 20, (count, 12, 12))
    pixels = pixels.clip(0, 255).astype(np.uint8)[..., None]
    return ImageSet("stripes", "train", pixels, labels, ["rows", "columns"])


class Convolutional(nn.Module):
    """A small method with dropout and batch norm; pretraining did not train its convolution."""

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
        features = self.network(batch).float()
        return SimpleNamespace(features=features, uncertainty=-features.norm(dim=1), native={})


def fine_tune(labelled, test, method=None, **changed):
    arguments = {"epochs": 12, "learning_rate": 0.1, "batch_size": 32, "precision": "float32"}
    return finetune.fine_tune(method or Convolutional(), labelled, test, **(arguments | changed))


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.1), ("adamw", 0.01)])
def test_fine_tuning_learns_and_leaves_the_method_unchanged(optimizer, rate):
    method = Convolutional().train()
    test = stripes(200, seed=1)
    before = {name: value.clone() for name, value in method.state_dict().items()}
    labelled = stripes(100)
    probabilities = fine_tune(labelled, test, method, optimizer=optimizer, learning_rate=rate)
    assert probabilities.shape == (200, 2)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert np.mean(probabilities.argmax(1) == test.labels) > 0.95
    assert method.training
    assert not method.network[0].weight.requires_grad
    for name, value in method.state_dict().items():
        assert torch.equal(value, before[name])


def test_all_layers_are_fine_tuned(monkeypatch):
    monkeypatch.setattr(finetune, "deepcopy", lambda method: method)
    method = Convolutional()
    fine_tune(stripes(40), stripes(10), method, epochs=1)
    for after, before in zip(method.parameters(), Convolutional().parameters(), strict=True):
        assert not torch.equal(after, before)


def test_fine_tuning_follows_from_its_seed():
    labelled = stripes(50)
    test = stripes(20, seed=1)
    first = fine_tune(labelled, test, epochs=2)
    torch.manual_seed(77)
    np.testing.assert_array_equal(fine_tune(labelled, test, epochs=2), first)
    assert not np.array_equal(fine_tune(labelled, test, epochs=2, seed=1), first)


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [(33, 32, [17, 16]), (33, 256, [33]), (7, 3, [3, 2, 2])],
)
def test_an_epoch_sees_every_image_once_in_batches_of_two_or_more(count, batch_size, sizes):
    batches = list(finetune._batches_of_epoch(count, batch_size, seed=0, epoch=1))
    assert [len(rows) for rows in batches] == sizes
    assert sorted(np.concatenate(batches)) == list(range(count))


def test_a_diverging_loss_stops_fine_tuning():
    with pytest.raises(training.TrainingStopped, match="lower learning_rate"):
        fine_tune(stripes(20), stripes(5), learning_rate=1e30)


# --------------------------------------------------------------------------- measures with a stub
@pytest.fixture
def calls(monkeypatch):
    """Every fine-tuning; a stub gets one image right, and two with the larger learning rate."""
    calls = []

    def stub(method, labelled, test, epochs, learning_rate, **options):
        call = {"labelled": labelled, "test": test, "epochs": epochs, "rate": learning_rate}
        calls.append(SimpleNamespace(**call))
        correct = np.arange(len(test)) < (1 if learning_rate == 0.01 else 2)
        predicted = np.where(correct, test.labels, (test.labels + 1) % 10)
        return np.eye(10)[predicted]

    monkeypatch.setattr(finetune, "fine_tune", stub)
    return calls


@pytest.fixture
def few(run, monkeypatch):
    """The run of seed 0 with a grid of two learning rates and two shares of the labels."""
    monkeypatch.setattr(run, "settings", run.settings | GRID)
    return run


def few_labels(run):
    return run.write_metrics(finetune.measure_few_labels(run), finetune.FEW_LABELS)


def test_few_labels_are_searched_on_train_and_measured_once_on_test(few, calls):
    frame = few_labels(few)
    held_out = len(train_validation_split(few.train.labels)[1])
    assert [call.epochs for call in calls] == [2, 2, 8, 1, 1, 4]
    assert [call.rate for call in calls] == [0.01, 0.3, 0.3] * 2
    assert [len(call.test) for call in calls] == [held_out, held_out, 359] * 2
    for call in (calls[0], calls[3]):
        labelled = {image.tobytes() for image in call.labelled.images}
        validation = {image.tobytes() for image in call.test.images}
        assert not labelled & validation
    small = calls[2].labelled
    assert set(small.index) < set(calls[5].labelled.index)

    scores = store.read_scores("smoke", few.name, "digits_few_labels")
    accuracy = frame.query("condition == 'labels_0.05' and metric == 'accuracy'")
    for row in accuracy.itertuples():
        assert row.value == scores[f"{row.classifier}_0.05"].mean()
        assert row.ci_low <= row.value <= row.ci_high
    assert accuracy.set_index("classifier").value["fine_tuned"] == pytest.approx(2 / 359)
    embedded = few.embed(small, "labels_0.05")
    test_x = few.embed(few.test())["features"]
    expected, _ = probes.knn_predict(embedded["features"], embedded["label"], test_x, k=len(small))
    np.testing.assert_array_equal(scores["knn_0.05"], expected == few.test().labels)


def test_the_end_of_a_grid_is_that_of_the_rates_that_were_tried(few, calls):
    searches = finetune.rate_searches(few_labels(few))
    assert searches.apply(finetune.end_of_grid, axis=1).tolist() == ["highest", "highest"]
    assert finetune.end_of_grid(pd.Series({0.1: 6.0, 0.2: 5.0, 0.3: np.nan})) == "lowest"
    assert finetune.end_of_grid(pd.Series({0.1: 3.0, 0.2: 5.0, 0.3: 4.0})) == ""


def test_transfer_searches_on_the_other_sets_train_and_is_tested_once(few, calls):
    values = pd.DataFrame(finetune.measure_transfer(few, "generated")).set_index("metric").value
    assert [call.rate for call in calls] == [0.01, 0.3, 0.3]
    assert [len(call.labelled) for call in calls] == [55, 55, 60]
    assert [len(call.test) for call in calls] == [5, 5, 256]
    assert [call.test.split for call in calls] == ["train", "train", "test"]
    for call in calls:
        assert call.labelled.images.shape[3] == call.test.images.shape[3] == few.channels
    correct = store.read_scores("smoke", few.name, "generated_transfer")["fine_tuned_correct"]
    assert values["accuracy"] == correct.mean()
    assert values[["images", "epochs", "learning_rate"]].tolist() == [60, 8, 0.3]


def test_a_rate_that_diverges_is_the_worst_of_its_search(few, monkeypatch):
    def diverging(run, labelled, test, epochs, rate):
        if rate == 0.3:
            raise training.TrainingStopped("Fine-tuning's loss is nan at step 1")
        return np.eye(10)[test.labels]

    monkeypatch.setattr(finetune, "fine_tuned_probabilities", diverging)
    accuracies = finetune.search_learning_rate(few, few.train, 8, 0.05)
    assert accuracies == {0.01: 1.0, 0.3: 0.0}
