"""lib.runs.store: atomic writes, round trips, metrics by part, errors that name the file."""

import json
import os
import subprocess
import threading
import time

import numpy as np
import pandas as pd
import pytest
import torch

from lib.runs import store
from lib.runs.store import read_json, read_metrics, read_npz, read_tensors, write_metrics

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
    config = {
        "settings": {"method": "simsiam", "dataset": "digits", "seed": 3},
        "data": {"title": "digits (768 images)"},
    }
    store.write_json(store.config_path("smoke", RUN), config)
    return RUN


# ----------------------------------------------------------------------------------- atomic writes
WRITERS = {
    "text": lambda path: store.write_text(path, "new"),
    "json": lambda path: store.write_json(path, {"a": 1}),
    "csv": lambda path: store.write_csv(path, pd.DataFrame({"a": [1]})),
    "npz": lambda path: store.write_npz(path, a=np.arange(3)),
    "tensors": lambda path: store.write_tensors(path, {"a": torch.ones(2)}, {}),
}
every_writer = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


def _interrupt(*_):
    raise KeyboardInterrupt


@every_writer
@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_file(tmp_path, monkeypatch, write, broken):
    path = tmp_path / "file.dat"
    path.write_text("old")
    monkeypatch.setattr(os, broken, _interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.dat"]


@every_writer
def test_writers_make_folders_and_replace(tmp_path, write):
    path = tmp_path / "a" / "b" / "file.dat"
    write(path)
    path.write_text("old")
    write(path)
    assert path.read_bytes() != b"old"
    assert os.listdir(path.parent) == ["file.dat"]


def test_half_a_file_is_never_seen(tmp_path):
    path = tmp_path / "file.txt"
    with store.atomic_path(path) as temporary:
        temporary.write_text("half")
        assert temporary.name == path.name
        assert not list(tmp_path.glob("*.txt"))
    assert path.read_text() == "half"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_what_killed_writers_left_is_removed_when_it_is_old(tmp_path):
    old = tmp_path / "runs" / f"{store.UNFINISHED}1"
    recent = tmp_path / f"{store.UNFINISHED}2"
    for folder in (old, recent):
        folder.mkdir(parents=True)
        (folder / "half.csv").touch()
    os.utime(old, (0, 0))
    day_ago = time.time() - 86_400  # a long training's page may be under way
    os.utime(recent, (day_ago, day_ago))
    store.remove_unfinished(tmp_path)
    assert not old.exists()
    assert (recent / "half.csv").exists()


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
def test_json_round_trip(tmp_path):
    content = {"κ": [1, 2.5, None, "ä"], "nested": {"a": True}}
    store.write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    assert "κ" in (tmp_path / "a.json").read_text(encoding="utf-8")
    with pytest.raises(ValueError):
        store.write_json(tmp_path / "b.json", {"a": float("nan")})
    assert os.listdir(tmp_path) == ["a.json"]


def test_npz_round_trip(tmp_path):
    arrays = {
        "half": np.arange(6, dtype=np.float16).reshape(2, 3),
        "names": np.array(["a", "bc"]),
        "flags": np.arange(11) % 3 == 0,
        "none": np.empty(0, np.int16),
        "strided": np.linspace(-1, 1, 7, dtype=np.float32)[::2],
    }
    store.write_npz(tmp_path / "a.npz", **arrays)
    stored = read_npz(tmp_path / "a.npz")
    assert list(stored) == list(arrays)
    for name, values in arrays.items():
        assert stored[name].dtype == values.dtype
        assert np.array_equal(stored[name], values)


def test_tensors_round_trip(tmp_path):
    tensors = {
        "transposed": torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        "learned": torch.tensor(3.0, requires_grad=True),
        "short": torch.ones(2, dtype=torch.bfloat16),
    }
    info = {"step": 3, "log": [{"loss": 0.1}]}
    store.write_tensors(tmp_path / "a.safetensors", tensors, info)
    stored, stored_info = read_tensors(tmp_path / "a.safetensors")
    assert stored_info == info
    for name, tensor in tensors.items():
        assert stored[name].dtype == tensor.dtype
        assert torch.equal(stored[name], tensor)


def test_csv_has_ten_digits(tmp_path):
    frame = pd.DataFrame({"a": [1 / 3, 1e-12, np.nan], "b": ["x, y", 'q"', "z"]})
    store.write_csv(tmp_path / "a.csv", frame)
    assert (tmp_path / "a.csv").read_text().startswith("a,b\n0.3333333333,")
    pd.testing.assert_frame_equal(store.read_csv(tmp_path / "a.csv"), frame, rtol=1e-9)


def test_equal_content_makes_equal_bytes(tmp_path):
    for name in ("a", "b"):
        store.write_npz(tmp_path / f"{name}.npz", x=np.arange(5))
        store.write_tensors(tmp_path / f"{name}.safetensors", {"x": torch.ones(3)}, {"k": 1})
    for suffix in ("npz", "safetensors"):
        first, second = tmp_path.glob(f"*.{suffix}")
        assert first.read_bytes() == second.read_bytes()


# -------------------------------------------------------------------------------- unreadable files
@pytest.mark.parametrize(
    ("name", "read", "write"),
    [
        ("a.json", read_json, lambda path: store.write_json(path, list(range(50)))),
        ("a.npz", read_npz, lambda path: store.write_npz(path, x=np.arange(99))),
        (
            "a.safetensors",
            read_tensors,
            lambda path: store.write_tensors(path, {"x": torch.ones(99)}, {}),
        ),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path, name, read, write):
    path = tmp_path / name
    with pytest.raises(FileNotFoundError, match=name):
        read(path)
    write(path)
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], whole[:-3], b"\xff\xfe\x00 nonsense"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} is .*delete it and"):
            read(path)


def test_pickles_are_not_loaded(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{"a": 1}], dtype=object))
    np.save(tmp_path / "b.npy", np.array([{"a": 1}], dtype=object))
    for name in ("a.npz", "b.npy"):
        with pytest.raises(ValueError, match=f"{name}.*pickled"):
            read_npz(tmp_path / name)


@pytest.mark.parametrize("read", [read_json, read_npz, store.read_csv])
def test_a_file_without_what_is_needed_is_named(tmp_path, read):
    store.write_json(tmp_path / "a", {"a": 1})
    if read is read_npz:
        store.write_npz(tmp_path / "a", a=np.arange(2))
    elif read is store.read_csv:
        store.write_csv(tmp_path / "a", pd.DataFrame({"a": [1]}))
    with pytest.raises(ValueError, match=r"lacks \['b'\]"):
        read(tmp_path / "a", ("a", "b"))


# ------------------------------------------------------------------------------ metrics and scores
def test_metrics_round_trip(run):
    rows = [ROW, {"metric": "nll", "value": 1 / 3}]
    returned = write_metrics("smoke", "20", run, rows, run_hash="0012", evaluation_hash="1-x")
    stored = read_metrics("smoke", "20", run)
    assert list(returned) == list(stored) == store.METRIC_COLUMNS
    assert stored.value.tolist() == [0.5, 0.33333]
    assert stored.classifier.tolist() == ["knn", ""]
    assert stored.n[0] == 123_456
    assert np.isnan(stored.ci_low[1])
    assert stored.run_hash.tolist() == ["0012", "0012"]
    assert set(stored.commit) == {store.commit()}


def test_metrics_say_which_run_they_are_of(run):
    write_metrics("smoke", "20", run, [ROW])
    row = read_metrics("smoke").iloc[0]
    assert row.method == "simsiam"
    assert row.trained_on == "digits (768 images)"
    assert row.variant == "e1-lr0.1"
    assert row.seed == 3
    assert row.profile == "smoke"


def test_a_part_of_the_metrics_replaces_itself_alone(run):
    write_metrics("smoke", "20", run, [ROW, ROW | {"metric": "nll"}])
    write_metrics("smoke", "10", run, [ROW | {"value": 0.1}])
    write_metrics("smoke", "20", run, [ROW | {"value": 0.7}])
    assert read_metrics("smoke")[["part", "value"]].values.tolist() == [["10", 0.1], ["20", 0.7]]
    assert read_metrics("smoke", "10").value.tolist() == [0.1]
    assert read_metrics("smoke", "30").empty
    assert list(read_metrics("quick")) == store.METRIC_COLUMNS


def test_counts_are_whole_whatever_other_parts_lack(run):
    write_metrics("smoke", "20", run, [ROW])
    write_metrics("smoke", "30", run, [{"metric": "loss", "value": 1.0}])
    assert read_metrics("smoke", "20").n.dtype == np.int64
    assert np.isnan(read_metrics("smoke", "30").n[0])


def test_parts_that_are_written_at_once_are_all_kept(run):
    parts = [f"{number}" for number in range(8)]
    threads = [
        threading.Thread(target=write_metrics, args=("smoke", part, run, [ROW])) for part in parts
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read_metrics("smoke").part.tolist() == parts


def test_readers_do_not_find_what_a_killed_writer_left(run, monkeypatch):
    write_metrics("smoke", "20", run, [ROW])
    monkeypatch.setattr(store.shutil, "rmtree", lambda *_, **__: None)
    monkeypatch.setattr(store.os, "replace", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_metrics("smoke", "20", run, [ROW | {"value": 0.1}])
    assert len(list(store.results_dir("smoke").rglob("metrics.csv"))) == 2
    assert read_metrics("smoke").value.tolist() == [0.5]


def test_bad_rows_are_refused_before_anything_is_written(run):
    with pytest.raises(ValueError, match="acuracy"):
        write_metrics("smoke", "20", run, [ROW | {"acuracy": 1}])
    with pytest.raises(ValueError, match="twice.*accuracy"):
        write_metrics("smoke", "20", run, [ROW, ROW | {"value": 0.7}])
    assert not store.metrics_path("smoke", run).exists()


@pytest.mark.parametrize("name", ["metrics.csv", "config.json"])
def test_metrics_that_cannot_be_read_are_named(run, name):
    write_metrics("smoke", "20", run, [ROW])
    (store.run_dir("smoke", run) / name).write_text("")
    with pytest.raises(ValueError, match=f"{RUN}/{name}"):
        read_metrics("smoke")


def test_scores_round_trip():
    arrays = {"label": np.arange(3, dtype=np.int16), "kappa": np.float32([0.1, 1 / 3, np.nan])}
    store.write_scores("smoke", RUN, "digits", arrays)
    read = store.read_scores("smoke", RUN, "digits", ("kappa",))
    for name, values in arrays.items():
        assert read[name].dtype == values.dtype
        assert np.array_equal(read[name], values, equal_nan=values.dtype.kind == "f")
    assert store.stored_scores("smoke", RUN, "mnist") == {}
    with pytest.raises(ValueError, match=r"scores-digits\.npz lacks \['entropy'\]"):
        store.read_scores("smoke", RUN, "digits", ("entropy",))


def test_a_folder_of_results_has_a_plain_name():
    with pytest.raises(ValueError, match=r"\.\./data"):
        store.results_dir("../data")


def test_runs_on_own_images_are_not_listed(run):
    other = "vi_simsiam-own_images-e1-seed0"
    store.write_json(store.config_path("smoke", other), {"run": other})
    assert [folder.name for folder in store.run_configs("smoke")] == [run]


# -------------------------------------------------------------------------------------- provenance
def test_provenance_can_be_stored_and_names_the_commit():
    provenance = store.provenance()
    json.dumps(provenance, allow_nan=False)
    assert provenance["commit"] == store.commit()
    assert provenance["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]


def test_commit_is_the_last_of_the_code_and_marked_where_the_code_differs(monkeypatch, tmp_path):
    def git(*words):
        command = ["git", "-C", tmp_path, "-c", "user.name=n", "-c", "user.email=e", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    commit = store.commit.__wrapped__
    monkeypatch.setattr(store, "ROOT", tmp_path)
    assert commit() == "unknown"
    git("init", "-q")
    assert commit() == "unknown"
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


def test_git_need_not_be_there(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert store.commit.__wrapped__() == "unknown"


def test_sha256(tmp_path):
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "a").write_text("abc")
    for content in ("abc", b"abc", tmp_path / "a"):
        assert store.sha256(content) == digest
