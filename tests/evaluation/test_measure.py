"""lib.evaluation.measure and results: one run, its data, the files it leaves, and their rows."""

import dataclasses
from copy import copy
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score

from lib import training
from lib.data import sources, views
from lib.evaluation import embed, image_scores, measure, parts, results
from lib.runs import settings, store
from tests.stored_runs import store_run


# ---------------------------------------------------------------------------------------- one run
def test_splits_of_unlike_classes_are_errors(run, monkeypatch):
    test = run.test()
    turned = dataclasses.replace(test, classes=test.classes[::-1])
    with pytest.raises(ValueError, match="another order"):
        measure.check_classes(run.train, turned)
    renamed = dataclasses.replace(run.train, classes=[*run.train.classes[:-1], "other"])
    monkeypatch.setattr(run, "train", renamed)
    with pytest.raises(ValueError, match="'other'"):
        run.test()


def test_a_stored_embedding_is_used_for_the_same_images_weights_and_version(run, monkeypatch):
    computed = []

    def counted(*arguments, **options):
        computed.append(1)
        return embed.embed_images(*arguments, **options)

    monkeypatch.setattr(measure, "embed_images", counted)
    test = run.test()
    first = test.subset(range(30))
    run.embed(first, "kept")
    run.embed(first, "kept")
    assert len(computed) == 1
    run.embed(test.subset(range(1, 31)), "kept")  # other images under the same name
    assert len(computed) == 2
    monkeypatch.setattr(settings, "EVALUATION_VERSION", 99)
    run.embed(first, "kept")
    assert len(computed) == 3
    monkeypatch.setattr(run, "hash", "another")
    run.embed(first, "kept")
    assert len(computed) == 4


def test_views_are_those_of_the_recipe(run):
    few, kappa = measure.kappa_of_views(run, 2)
    assert kappa.shape == (2, run.settings["condition_images"])
    size = run.settings["image_size"]
    strengths = views.recipe(run.settings["augmentation"])
    for i, row in enumerate(kappa):
        seed = training.seed_of(run.settings["seed"], "kappa views", i)
        generator = torch.Generator().manual_seed(seed)
        view = partial(views.augment, size=size, strengths=strengths, generator=generator)
        expected = run.embed_unstored(few, transform=view)["kappa"]
        np.testing.assert_allclose(row, expected, rtol=1e-4)


# -------------------------------------------------------------------------------------- measuring
def test_metrics_and_scores_are_stored(run, frame):
    stored = store.read_metrics("smoke", measure.SUITE, run.name)
    np.testing.assert_allclose(stored.value, frame.value, rtol=1e-4)
    assert set(stored.run_hash) == {run.hash}
    assert set(embed.conditions()) | {"clean", "near_ood"} <= set(stored.condition)
    scores = store.read_scores("smoke", run.name, "digits")
    clean = stored[stored.condition == "clean"]
    accuracy = clean.query("metric == 'accuracy' and classifier == 'knn'")
    assert accuracy.value.item() == pytest.approx(scores["knn_correct"].mean(), rel=1e-4)
    assert accuracy.n.item() == len(scores["label"]) == 359
    means = stored.query("metric == 'mean' and score == 'kappa'").set_index("condition").value
    assert means["clean"] == pytest.approx(scores["kappa"].mean(), rel=1e-4)
    assert means["crop_1"] == pytest.approx(means["blur_0"], rel=1e-6)  # the unchanged images


def test_a_tuning_run_is_measured_on_validation_only(shared_results, tiny):
    resolved = settings.resolve("simsiam", "smoke", **tiny | {"split": "fit", "train_images": 0})
    training.train(resolved)
    frame = measure.measure_run(measure.Run(resolved))
    assert set(frame.condition) == {"validation"} and set(frame.n) == {143}
    assert 0.1 < frame.set_index("metric").value["accuracy"] <= 1
    assert not store.scores_path("smoke", settings.run_name(resolved), "digits").exists()


def test_a_run_on_one_class_is_measured_on_the_others(shared_results):
    resolved = settings.resolve("vje", "smoke", dataset="digits_class_3")
    training.train(resolved)
    run = measure.Run(resolved)
    frame = measure.measure_run(run).set_index("score")
    assert {"feature_norm", "knn_distance", "likelihood_and_kl"} <= set(frame.index)
    test = sources.load("digits", "test", image_size=16)
    outside = test.labels != 3
    embedded = run.embed_unstored(test)
    train = run.embed_unstored(run.train)["features"].astype(float)
    distance = LedoitWolf().fit(train).mahalanobis(embedded["features"].astype(float))
    for score, values in (("uncertainty", embedded["uncertainty"]), ("mahalanobis", distance)):
        expected = roc_auc_score(outside, values)
        assert frame.value[score] == pytest.approx(expected, abs=1e-6)


def test_a_run_is_measured_by_its_settings_data_and_todays_version(run, monkeypatch):
    rows = [{"metric": "accuracy", "value": 0.5}]
    assert not measure.is_measured(run, "99_other")
    run.write_metrics(rows, "99_other")
    assert measure.is_measured(run, "99_other")
    more_draws = measure.Run(run.settings | {"bootstrap_draws": 7})
    assert more_draws.hash == run.hash and not measure.is_measured(more_draws, "99_other")
    with monkeypatch.context() as edited:
        edited.setattr(settings, "EVALUATION_VERSION", 99)
        assert not measure.is_measured(run, "99_other")
        edited.setattr(training, "is_finished", lambda *_: False)
        assert measure.is_measured(run, "99_other")  # without weights what is stored counts
    current = settings.evaluation_hash(run.settings)
    store.write_metrics("smoke", "99_other", run.name, rows, "another", current)
    assert not measure.is_measured(run, "99_other")


def test_runs_without_data_or_network_are_not_available(run, monkeypatch, tmp_path):
    without_network = run.settings | {"seed": 7}
    without_data = settings.resolve("vi_simsiam", "standard", dataset="imagewoof")
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    available = measure.available([run.settings, without_network, without_data])
    assert [ready.name for ready in available] == [run.name]


# --------------------------------------------------------------------------------------- data sets
def test_a_set_that_is_missing_leaves_out_its_measures_only(run):
    changed = copy(run)
    changed.settings = run.settings | {"ood_near": ["generated"], "ood_far": ["cars"]}
    with pytest.warns(UserWarning, match="cars"):
        rows, _ = measure._suite(changed, graded=True)
    ood = {row["evaluated_on"] for row in rows if row["condition"].endswith("_ood")}
    assert ood == {"generated"}


def test_a_run_that_cannot_be_measured_leaves_the_others_to_be(run, monkeypatch):
    other = copy(run)
    other.name = "another"

    def measured(one):
        if one is run:
            raise FileNotFoundError("no decoder")
        raise training.TrainingStopped("no rate converges")

    part = parts.Part("kappa", ("vs1",), [], measured)
    monkeypatch.setattr(parts, "parts", lambda _: [part])
    monkeypatch.setattr(parts, "_measurable", lambda _: iter([run, other]))
    monkeypatch.setattr(image_scores, "measure_images", lambda _: None)
    assert parts.measure_parts("smoke") == ["kappa: no decoder", "kappa: no rate converges"]


# ------------------------------------------------------------------------------------ stored rows
def test_factors_are_read_of_every_set_that_a_run_is_probed_on():
    probed = settings.resolve("simvae", "smoke", dataset="digits")
    other = settings.resolve("vae", "smoke", dataset="digits")
    row = {"condition": "colour", "metric": "accuracy", "value": 0.5, "n": 10}
    for run, part in (
        (probed, f"{results.FACTORS}-styled_digits"),
        (probed, f"{results.FACTORS}-celeba"),
        (other, "content"),
    ):
        store_run(run, [row], part)
    assert results.read_factors([other]).empty
    rows = results.read_factors([probed, other])
    assert sorted(rows.set) == ["celeba", "styled_digits"]
    assert set(rows.run) == {settings.run_name(probed)}
    assert len(results.read("content", [probed, other])) == 1
