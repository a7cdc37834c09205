"""lib.fine_tuning: few labels and transfer, each with the search of its learning rate."""

import numpy as np
import pandas as pd
import pytest

from lib import artifacts, data, evaluation, fine_tuning, training

FEW = {"fine_tune_shares": [0.05, 0.2], "fine_tune_epochs": [8, 4], "fine_tune_learning_rates": [0.01, 0.3]}


@pytest.fixture
def calls(monkeypatch):
    """Every fine-tuning as (labelled, test, epochs, rate); its answer is right for the first image, and for one more with the larger rate."""
    made = []

    def fine_tune(method, labelled, test, epochs, learning_rate, seed, precision, progress_path, optimizer):
        assert optimizer == "sgd"
        made.append((labelled, test, epochs, learning_rate))
        right = np.arange(len(test)) < (1 if learning_rate == 0.01 else 2)
        return np.eye(10)[np.where(right, test.labels, (test.labels + 1) % 10)]

    monkeypatch.setattr(evaluation, "fine_tune", fine_tune)
    return made


def test_few_labels_are_searched_on_train_and_measured_once_on_test(run, calls, monkeypatch):
    monkeypatch.setattr(run, "settings", run.settings | FEW)
    monkeypatch.setattr(fine_tuning, "Run", None)  # seed 0 searches with itself
    frame = fine_tuning.measure_few_labels(run, "21_few")
    as_stored = [float(f"{value:.{artifacts.METRIC_DIGITS}g}") for value in frame.value]
    assert artifacts.read_metrics("smoke", "21_few", run.name).value.tolist() == as_stored
    held_out = len(data.train_validation_split(run.train.labels)[1])
    assert [(len(test), epochs, rate) for _, test, epochs, rate in calls] == [
        (held_out, 2, 0.01), (held_out, 2, 0.3), (359, 8, 0.3), (held_out, 1, 0.01), (held_out, 1, 0.3), (359, 4, 0.3),
    ]  # fmt: skip
    for labelled, validation, *_ in (calls[0], calls[3]):
        assert not {image.tobytes() for image in labelled.images} & {image.tobytes() for image in validation.images}
    small, large = calls[2][0], calls[5][0]
    assert set(small.index) < set(large.index) and len(np.unique(small.labels)) == 10

    scores = artifacts.read_scores("smoke", run.name, "digits_few_labels")
    rows = frame.set_index(["condition", "classifier", "metric"])
    for share in FEW["fine_tune_shares"]:
        for classifier in ("fine_tuned", "linear", "knn"):
            row = rows.loc[[(f"labels_{share:g}", classifier, "accuracy")]].iloc[0]
            assert row.value == scores[f"{classifier}_{share:g}"].mean() and row.ci_low <= row.value <= row.ci_high and row.n == 359
        fine_tuned = rows.loc[f"labels_{share:g}"].loc["fine_tuned"].value
        assert fine_tuned["accuracy"] == pytest.approx(2 / 359) and fine_tuned["learning_rate"] == 0.3
        assert {"nll", "ece"} <= set(rows.loc[f"labels_{share:g}"].loc["fine_tuned"].index) & set(rows.loc[f"labels_{share:g}"].loc["linear"].index)
        assert len(rows.loc[(f"labels_{share:g}_validation", "fine_tuned", "accuracy")]) == 2
    rates, heard = fine_tuning.searched_rates(frame, "smoke")
    assert rates.columns.tolist() == [0.01, 0.3] and rates.idxmax(axis=1).tolist() == [0.3, 0.3] and "for 2 of 2 searches" in heard
    assert "the highest for simsiam" in heard or "the highest for vi_simsiam" in heard
    searched = rows.loc[("labels_0.05_validation", "fine_tuned", "accuracy")].value
    assert rates.iloc[0].tolist() == pytest.approx((100 * searched).tolist())
    assert fine_tuning.searched_rates(frame[frame.condition == "labels_0.05"], "smoke")[0].empty
    few = run.embed(small, "labels_0.05")
    expected = evaluation.knn_predict(few["features"], few["label"], run.embed(run.test())["features"], k=len(small))[0]
    np.testing.assert_array_equal(scores["knn_0.05"], expected == run.test().labels)

    before = len(calls)
    pd.testing.assert_frame_equal(fine_tuning.measure_few_labels(run, "21_few"), frame)
    assert len(calls) == before, "a stored fine-tuning was done again"
    monkeypatch.setattr(run, "settings", run.settings | {"fine_tune_epochs": [8, 8]})
    fine_tuning.measure_few_labels(run, "21_few")
    assert [(epochs, rate) for *_, epochs, rate in calls[before:]] == [(2, 0.01), (2, 0.3), (8, 0.3)], "other epochs are another fine-tuning"


def test_transfer_searches_on_the_other_sets_train_and_is_tested_there_once(run, calls, monkeypatch):
    monkeypatch.setattr(run, "settings", run.settings | FEW | {"transfer_images": 60, "transfer_epochs": 8})
    frame = fine_tuning.measure_transfer(run, "generated", "51_moved")
    assert [(len(labelled), len(test), epochs, rate) for labelled, test, epochs, rate in calls] == [
        (55, 5, 2, 0.01), (55, 5, 2, 0.3), (60, 256, 8, 0.3),
    ]  # fmt: skip
    assert all(labelled.images.shape[3] == run.channels == test.images.shape[3] for labelled, test, *_ in calls)
    stored = artifacts.read_metrics("smoke", "51_moved-generated", run.name).set_index("metric").value
    right = artifacts.read_scores("smoke", run.name, "generated_transfer")["fine_tuned_correct"]
    assert stored["accuracy"] == right.mean() and stored["images"] == 60 and stored["epochs"] == 8 and stored["learning_rate"] == 0.3
    assert set(frame.evaluated_on) == {"generated"} and frame.metric.tolist() == list(stored.index)
    said = fine_tuning.transfer_rates_at_an_end(frame.assign(method="vje"), [run.settings | {"method": "vje"}])
    assert said == "For transfer 1 of 1 searches chose a rate at an end of their grid: vje (generated, 0.3)."
    for rates, said in (([0.1, 0.3, 0.9], "0 of 1 searches"), ([0.3], "no rate was searched")):
        grid = {"method": "vje", "fine_tune_learning_rates": rates}
        assert fine_tuning.transfer_rates_at_an_end(frame.assign(method="vje"), [grid]).startswith(f"For transfer {said}")


def test_a_rate_that_diverges_is_the_worst_of_its_search_and_ends_nothing(run, monkeypatch):
    def fine_tuned(_, labelled, test, epochs, rate):
        if rate == 0.3:
            raise training.TrainingStopped("Fine-tuning's loss is nan at step 1")
        return {"label": test.labels, "probabilities": np.eye(10)[test.labels] * 0.9}

    monkeypatch.setattr(fine_tuning, "fine_tuned", fine_tuned)
    monkeypatch.setattr(run, "settings", run.settings | FEW)
    assert fine_tuning.search_rate(run, run.train, 8, 0.05) == {0.01: 1.0, 0.3: 0.0}


def test_a_probability_that_rounds_to_nothing_has_a_finite_nll():
    measured = fine_tuning._calibration(np.array([[1, 0, 0], [0.5, 0.5, 0]], np.float32), np.array([1, 0]))
    assert measured["nll"] == pytest.approx((126 * np.log(2) + np.log(2)) / 2) and measured["ece"] == pytest.approx(0.75)


def test_other_seeds_take_the_rate_that_seed_0_chose(run, calls, monkeypatch):
    asked = []
    monkeypatch.setattr(run, "settings", run.settings | FEW | {"seed": 3})
    monkeypatch.setattr(fine_tuning, "Run", lambda settings: asked.append(settings["seed"]) or run)
    assert fine_tuning.search_rate(run, run.train, 8, 0.05).keys() == {0.01, 0.3} and asked == [0]
    monkeypatch.setattr(run, "settings", run.settings | {"fine_tune_learning_rates": [0.1]})
    assert list(fine_tuning.search_rate(run, run.train, 8, 0.05)) == [0.1] and asked == [0]
