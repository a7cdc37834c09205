"""lib.runs.store: atomic writes, round trips, metrics by part, errors that name the file."""

import os
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest
import torch

from lib.runs import store
from lib.runs.store import read_metrics, read_npz, write_metrics

RUN = "simsiam-digits-e1-lr0.1-seed3"
ROW = {
    "evaluated_on": "digits",
    "condition": "clean",
    "classifier": "knn",
    "metric": "accuracy",
    "value": 0.5,
    "ci_low": 0.4,
    "ci_high": 0.6,
    "n": 123_456,
}


@pytest.fixture
def run():
    """A stored run that has only its config.json."""
    method = {"method": "simsiam", "dataset": "digits", "seed": 3}
    config = {"settings": method, "data": {"title": "digits (768 images)"}}
    store.write_json(store.config_path("smoke", RUN), config)
    return RUN


# ----------------------------------------------------------------------------------- atomic writes
WRITERS = {
    "text": lambda path: store.write_text(path, "new"),
    "json": lambda path: store.write_json(path, list(range(50))),
    "csv": lambda path: store.write_csv(path, pd.DataFrame({"a": [1]})),
    "npz": lambda path: store.write_npz(path, x=np.arange(99)),
    "safetensors": lambda path: store.write_tensors(path, {"x": torch.ones(99)}, {"k": 1}),
}


def _interrupt(*_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch, write, broken):
    path = tmp_path / "folder" / "file.dat"
    write(path)
    path.write_text("old")
    monkeypatch.setattr(os, broken, _interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(path)
    assert path.read_text() == "old"
    assert os.listdir(path.parent) == ["file.dat"]


def test_a_folder_that_cannot_be_used_is_refused(tmp_path, monkeypatch):
    store.check_writable(tmp_path / "new")
    assert os.listdir(tmp_path / "new") == []
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeError, match="file cannot be written"):
        store.check_writable(tmp_path / "file")
    monkeypatch.setattr(store, "FREE_BYTES", 10**18)
    with pytest.raises(RuntimeError, match="MB of free space"):
        store.check_writable(tmp_path)


def test_a_held_lock_is_awaited_or_refused(tmp_path):
    path = tmp_path / "a.lock"
    order = []

    def wait():
        with store.exclusive(path):
            order.append("second")

    thread = threading.Thread(target=wait)
    with store.exclusive(path):
        with pytest.raises(RuntimeError, match="in use"), store.exclusive(path, busy="in use"):
            pass
        thread.start()
        time.sleep(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


# ------------------------------------------------------------------------------------- round trips
def test_scores_round_trip():
    arrays = {
        "label": np.arange(3, dtype=np.int16),
        "kappa": np.float32([0.1, 1 / 3, np.nan]),
        "names": np.array(["a", "bc", ""]),
        "strided": np.linspace(-1, 1, 5, dtype=np.float16)[::2],
    }
    store.write_scores("smoke", RUN, "digits", arrays)
    stored = store.read_scores("smoke", RUN, "digits", ("kappa",))
    for name, values in arrays.items():
        assert stored[name].dtype == values.dtype
        np.testing.assert_array_equal(stored[name], values)
    assert store.stored_scores("smoke", RUN, "mnist") == {}
    with pytest.raises(ValueError, match=r"scores-digits\.npz lacks \['entropy'\]"):
        store.read_scores("smoke", RUN, "digits", ("entropy",))


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_equal_content_makes_equal_bytes(tmp_path, suffix):
    for name in ("a", "b"):
        WRITERS[suffix](tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# -------------------------------------------------------------------------------- unreadable files
def test_pickles_are_not_loaded(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{"a": 1}], dtype=object))
    np.save(tmp_path / "b.npy", np.array([{"a": 1}], dtype=object))
    for name in ("a.npz", "b.npy"):
        with pytest.raises(ValueError, match=f"{name}.*pickled"):
            read_npz(tmp_path / name)


# ----------------------------------------------------------------------------------------- metrics
def test_metrics_round_trip_with_the_facts_of_their_run(run):
    rows = [ROW, {"metric": "nll", "value": 1 / 3}]
    write_metrics("smoke", "20", run, rows, run_hash="0012", evaluation_hash="1-x")
    stored = read_metrics("smoke", "20", run)
    assert list(stored) == store.METRIC_COLUMNS
    assert stored.value.tolist() == [0.5, 0.33333]
    assert stored.classifier.tolist() == ["knn", ""]
    assert stored.n[0] == 123_456
    assert np.isnan(stored.ci_low[1])
    assert stored.run_hash.tolist() == ["0012", "0012"]
    assert set(stored.commit) == {store.commit()}
    facts = stored.iloc[0][["profile", "method", "trained_on", "variant", "seed"]]
    assert facts.tolist() == ["smoke", "simsiam", "digits (768 images)", "e1-lr0.1", 3]


def test_a_part_of_the_metrics_replaces_itself_alone(run):
    write_metrics("smoke", "20", run, [ROW, ROW | {"metric": "nll"}])
    write_metrics("smoke", "10", run, [{"metric": "loss", "value": 0.1}])
    write_metrics("smoke", "20", run, [ROW | {"value": 0.7}])
    assert read_metrics("smoke")[["part", "value"]].values.tolist() == [["10", 0.1], ["20", 0.7]]
    assert read_metrics("smoke", "10").value.tolist() == [0.1]
    assert read_metrics("smoke", "20").n.dtype == np.int64  # although part 10 has no n
    assert read_metrics("smoke", "30").empty
    assert list(read_metrics("quick")) == store.METRIC_COLUMNS


def test_parts_that_are_written_at_once_are_all_kept(run):
    parts = [f"{number}" for number in range(8)]
    with ThreadPoolExecutor(len(parts)) as pool:
        list(pool.map(lambda part: write_metrics("smoke", part, run, [ROW]), parts))
    assert read_metrics("smoke").part.tolist() == parts


def test_bad_rows_are_refused_before_anything_is_written(run):
    with pytest.raises(ValueError, match="acuracy"):
        write_metrics("smoke", "20", run, [ROW | {"acuracy": 1}])
    with pytest.raises(ValueError, match="twice.*accuracy"):
        write_metrics("smoke", "20", run, [ROW, ROW | {"value": 0.7}])
    assert not store.metrics_path("smoke", run).exists()


def test_runs_on_own_images_are_not_listed(run):
    other = "vi_simsiam-own_images-e1-seed0"
    store.write_json(store.config_path("smoke", other), {"run": other})
    assert [folder.name for folder in store.run_configs("smoke")] == [run]


# -------------------------------------------------------------------------------------- provenance
def test_commit_is_the_last_of_the_code_and_marked_where_the_code_differs(monkeypatch, tmp_path):
    def git(*words):
        command = ["git", "-C", tmp_path, "-c", "user.name=n", "-c", "user.email=e", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    commit = store.commit.__wrapped__
    monkeypatch.setattr(store, "ROOT", tmp_path)
    assert commit() == "unknown"
    git("init", "-q")
    for folder in ("lib", "results"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a").touch()
        git("add", folder)
        git("commit", "-qm", folder)
    code = git("log", "-1", "--format=%h", "--abbrev=10", "HEAD^")
    assert commit() == code
    (tmp_path / "results" / "a").write_text("b")
    assert commit() == code
    (tmp_path / "lib" / "a").write_text("b")
    assert commit() == code + "+"
