"""CIFAR-10H: counts in the order of the labels, checked numbers, and the entropy of people."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats

from lib.data import cifar10h
from lib.evaluation import people
from lib.runs import store

generator = np.random.default_rng(0)
LABELS = generator.integers(0, 10, 200)


def drawn_counts(labels):
    """Some 50 people, most of whom give the label."""
    shares = 0.02 * np.ones((len(labels), 10))
    shares[np.arange(len(labels)), labels] = 0.82
    return np.stack([generator.multinomial(50, share) for share in shares]).astype(np.int16)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(cifar10h, "SHAPE", (len(LABELS), 10))


def test_counts_and_official_index_are_in_the_order_of_the_labels(small, tmp_path):
    counts = drawn_counts(LABELS)
    order = generator.permutation(len(LABELS))  # row k of the file is official image order[k]
    arrays = {"counts": counts[order], "official_index": order}
    store.write_npz(tmp_path / "cifar10h" / "test.npz", **arrays)
    np.testing.assert_array_equal(cifar10h.label_counts(LABELS, tmp_path), counts)
    np.testing.assert_array_equal(cifar10h.label_counts(LABELS[order], tmp_path), counts[order])
    np.testing.assert_array_equal(cifar10h.official_index(LABELS[order], tmp_path), order)
    official = cifar10h.official_index(LABELS, tmp_path)
    np.testing.assert_array_equal(official, np.arange(len(LABELS)))


def test_counts_of_another_order_are_refused(small, tmp_path):
    store.write_npz(tmp_path / "cifar10h" / "test.npz", counts=drawn_counts(LABELS))
    with pytest.raises(FileNotFoundError, match="another order"):
        cifar10h.label_counts(np.roll(LABELS, 1), tmp_path)


def test_the_entropy_of_people_is_in_bits():
    counts = np.array([[50] + [0] * 9, [25, 25] + [0] * 8, [5] * 10])
    np.testing.assert_allclose(cifar10h.human_entropy(counts), [0, 1, np.log2(10)])


def test_the_agreement_is_spearmans_of_stored_scores(small, tmp_path, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    counts = drawn_counts(LABELS)
    store.write_npz(tmp_path / "cifar10h" / "test.npz", counts=counts)
    scores = {name: generator.normal(size=len(LABELS)) for name in ("uncertainty", "knn_distance")}
    scores |= {"feature_norm": -scores["uncertainty"], "linear_max_softmax": generator.random(200)}
    monkeypatch.setattr(store, "stored_scores", lambda *_: scores | {"label": LABELS})
    run = SimpleNamespace(profile="smoke", name="x", settings={"bootstrap_draws": 20})
    rows = {row["score"]: row for row in people.measure_agreement(run)}
    entropy = cifar10h.human_entropy(counts)
    expected = scipy.stats.spearmanr(scores["uncertainty"], entropy)
    assert rows["uncertainty"]["value"] == pytest.approx(expected.statistic)
    assert rows["feature_norm"]["value"] == pytest.approx(expected.statistic)
    assert rows["max_softmax"]["ci_low"] < rows["max_softmax"]["ci_high"]
