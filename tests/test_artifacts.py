"""lib.runs.store: atomic writes, round trips, and errors that name the file."""

import json
import os
import subprocess
import time

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from lib.evaluation import uncertainty
from lib.runs import store as artifacts
from lib.runs.store import (
    METRIC_COLUMNS,
    read_json,
    read_metrics,
    read_npz,
    read_tensors,
    write_csv,
    write_json,
    write_metrics,
    write_npz,
    write_tensors,
    write_text,
)

ROW = {
    "method": "simsiam",
    "trained_on": "digits",
    "variant": "e1",
    "evaluated_on": "digits",
    "condition": "clean",
    "classifier": "knn",
    "score": "",
    "metric": "accuracy",
    "value": 0.5,
    "ci_low": 0.4,
    "ci_high": 0.6,
    "n": 100,
    "seed": 0,
    "profile": "smoke",
    "notebook": "20",
    "run_hash": "0012",
    "commit": "1e5",
}


# ---------------------------------------------------------------------------------------------------------------- atomic writes
WRITERS = {
    "text": lambda path: write_text(path, "new"),
    "json": lambda path: write_json(path, {"a": 1}),
    "csv": lambda path: write_csv(path, pd.DataFrame({"a": [1]})),
    "npz": lambda path: write_npz(path, a=np.arange(3)),
    "tensors": lambda path: write_tensors(path, {"a": torch.ones(2)}, {}),
}
every_writer = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


@every_writer
@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_the_old_file_and_nothing_else(
    tmp_path, monkeypatch, write, broken
):
    path = tmp_path / "file.dat"
    path.write_text("old")

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, broken, crash)
    with pytest.raises(KeyboardInterrupt):
        write(path)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file.dat"]


@every_writer
def test_writers_make_folders_and_replace(tmp_path, write):
    path = tmp_path / "a" / "b" / "file.dat"
    write(path)
    path.write_text("old")
    write(path)
    assert path.read_bytes() != b"old" and os.listdir(path.parent) == ["file.dat"]


def test_what_is_half_written_is_never_seen(tmp_path):
    path = tmp_path / "file.txt"
    with artifacts.atomic_path(path) as temporary:
        temporary.write_text("half")
        assert (
            not path.exists() and temporary.name == path.name and not list(tmp_path.glob("*.txt"))
        )
    assert path.read_text() == "half" and os.listdir(tmp_path) == ["file.txt"]


def test_readers_do_not_find_what_a_killed_writer_left(monkeypatch):
    """A metrics table cut short beside the whole one: the pattern of the reader must not match it."""
    write_metrics("smoke", "10_pretraining", "run", [dict(ROW, metric="a")])
    monkeypatch.setattr(artifacts.shutil, "rmtree", lambda *_, **__: None)
    monkeypatch.setattr(
        artifacts.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        write_metrics("smoke", "10_pretraining", "other", [dict(ROW, metric="b")])
    left = list(artifacts.results_dir("smoke").rglob("10_pretraining--other.csv"))
    assert len(left) == 1 and left[0].parent.name.startswith(artifacts.UNFINISHED)
    assert list(read_metrics("smoke").metric) == ["a"]


def test_what_killed_writers_left_is_removed_when_it_is_old(tmp_path):
    old, new = tmp_path / "runs" / f"{artifacts.UNFINISHED}1", tmp_path / f"{artifacts.UNFINISHED}2"
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "half.csv").touch()
    os.utime(old, (0, 0))
    os.utime(
        new, (time.time() - 86_400,) * 2
    )  # a long training's page, whose folder was made a day ago
    artifacts.remove_unfinished(tmp_path)
    assert not old.exists() and (new / "half.csv").exists()


def test_what_another_process_removes_meanwhile_stops_no_cleaning(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / f"{artifacts.UNFINISHED}{name}").mkdir(parents=True)
        os.utime(tmp_path / f"{artifacts.UNFINISHED}{name}", (0, 0))
    scandir = os.scandir

    def vanishing(path):
        found = scandir(path)
        for left in tmp_path.glob(f"{artifacts.UNFINISHED}a"):
            left.rmdir()
        return found

    monkeypatch.setattr(os, "scandir", vanishing)
    artifacts.remove_unfinished(tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_used_is_refused(tmp_path, monkeypatch):
    artifacts.check_writable(tmp_path / "new")
    assert os.listdir(tmp_path / "new") == []
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeError, match="file cannot be written: .*RESULTS_DIR"):
        artifacts.check_writable(tmp_path / "file")
    monkeypatch.setattr(artifacts, "FREE_BYTES", 10**18)
    with pytest.raises(RuntimeError, match="MB of free space left, fewer than"):
        artifacts.check_writable(tmp_path)


def test_json_without_nan(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert os.listdir(tmp_path) == []


# ---------------------------------------------------------------------------------------------------------------- round trips
def test_round_trips(tmp_path):
    content = {"κ": [1, 2.5, None, "ä"], "nested": {"a": True}}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content and "κ" in (tmp_path / "a.json").read_text(
        encoding="utf-8"
    )

    arrays = {
        "x": np.arange(6, dtype=np.float16).reshape(2, 3),
        "names": np.array(["a", "bc"]),
        "flag": np.array([True]),
    }
    arrays |= {
        "many": np.arange(11) % 3 == 0,
        "none": np.empty(0, np.int16),
        "a:b": np.linspace(-1, 1, 7, dtype=np.float32)[::2],
    }
    for compact in (False, True):
        write_npz(tmp_path / "a.npz", compact=compact, **arrays)
        stored = read_npz(tmp_path / "a.npz")
        assert set(stored) == set(arrays)
        assert all(
            np.array_equal(stored[name], arrays[name]) and stored[name].dtype == arrays[name].dtype
            for name in arrays
        )

    transposed = (
        torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last).requires_grad_()
    )
    tensors = {"a": transposed, "b": torch.tensor(3), "c": torch.ones(2, dtype=torch.bfloat16)}
    write_tensors(tmp_path / "a.safetensors", tensors, {"step": 3, "log": [{"loss": 0.1}]})
    stored, info = read_tensors(tmp_path / "a.safetensors")
    assert info == {"step": 3, "log": [{"loss": 0.1}]}
    assert all(
        torch.equal(stored[name], tensors[name]) and stored[name].dtype == tensors[name].dtype
        for name in tensors
    )

    frame = pd.DataFrame({"a": [1 / 3, 1e-12, np.nan], "b": ["x, y", 'q"', ""]})
    write_csv(tmp_path / "a.csv", frame)
    assert (tmp_path / "a.csv").read_text().startswith("a,b\n0.3333333333,")
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "a.csv", keep_default_na=False, na_values={"a": [""]}),
        frame,
        rtol=1e-9,
    )


def test_equal_content_makes_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_npz(tmp_path / f"{name}.npz", x=np.arange(5))
        write_tensors(tmp_path / f"{name}.safetensors", {"x": torch.ones(3)}, {"k": 1})
    for suffix in ("npz", "safetensors"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


# ---------------------------------------------------------------------------------------------------------------- unreadable files
@pytest.mark.parametrize(
    ("name", "read", "write"),
    [
        ("a.json", read_json, lambda path: write_json(path, list(range(50)))),
        ("a.npz", read_npz, lambda path: write_npz(path, x=np.arange(99))),
        ("b.npz", read_npz, lambda path: write_npz(path, compact=True, x=np.arange(99))),
        (
            "a.safetensors",
            read_tensors,
            lambda path: write_tensors(path, {"x": torch.ones(99)}, {}),
        ),
    ],
)
def test_reading_errors_name_the_file(tmp_path, name, read, write):
    path = tmp_path / name
    with pytest.raises(FileNotFoundError, match=name):
        read(path)
    write(path)
    whole = path.read_bytes()
    for content in (
        b"",
        whole[: len(whole) // 2],
        whole[:-1] if name != "a.json" else whole[:-3],
        b"\xff\xfe\x00 nonsense",
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name} is .*delete it and"):
            read(path)


def test_python_objects_are_not_loaded(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(ValueError, match=r"a\.npz"):
        read_npz(tmp_path / "a.npz")


# ---------------------------------------------------------------------------------------------------------------- metrics and scores
def test_metrics_round_trip():
    rows = [ROW, ROW | {"metric": "nll", "value": 1 / 3, "classifier": ""}]
    write_metrics("smoke", "20", "run-a", rows)
    write_metrics("smoke", "20", "run-b", [ROW | {"seed": 1}])
    few = write_metrics(
        "smoke", "30", "run-a", [{name: ROW[name] for name in ("metric", "value")}], method="m"
    )
    assert (
        list(few) == METRIC_COLUMNS
        and few.method.tolist() == ["m"]
        and few.classifier.tolist() == [""]
        and np.isnan(few.seed[0])
    )
    frame = read_metrics("smoke", "20", "run-a")
    assert list(frame) == METRIC_COLUMNS and frame.value.tolist() == [0.5, 0.33333]
    assert (
        frame.run_hash.tolist() == ["0012"] * 2
        and frame.commit.tolist() == ["1e5"] * 2
        and frame.classifier.tolist() == ["knn", ""]
    )
    assert (
        len(read_metrics("smoke")) == 4
        and len(read_metrics("smoke", "20")) == 3
        and len(read_metrics("smoke", run="run-a")) == 3
    )
    assert (
        artifacts.metrics_path("smoke", "20", "run-a")
        == artifacts.RESULTS / "smoke" / "metrics" / "20--run-a.csv"
    )
    assert list(read_metrics("quick")) == METRIC_COLUMNS and read_metrics("quick").empty


def test_metrics_with_unknown_columns_or_twice_the_same_quantity_are_refused():
    with pytest.raises(ValueError, match=r"unknown columns \['acuracy'\]; the columns are"):
        write_metrics("smoke", "20", "run", [ROW | {"acuracy": 1}])
    with pytest.raises(ValueError, match="run name the same quantity twice.*accuracy"):
        write_metrics("smoke", "20", "run", [ROW, ROW | {"value": 0.7}])
    incomplete = {name: ROW[name] for name in ("method", "metric", "value")}
    with pytest.raises(ValueError, match="twice"):
        write_metrics("smoke", "20", "run", [incomplete, incomplete])
    assert not artifacts.metrics_path("smoke", "20", "run").exists()


def test_metrics_that_cannot_be_read_are_named():
    write_metrics("smoke", "20", "run", [ROW])
    artifacts.metrics_path("smoke", "20", "run").write_text("")
    with pytest.raises(ValueError, match="20--run.csv"):
        read_metrics("smoke")


def test_scores_round_trip():
    artifacts.write_scores("smoke", "run", "digits", {"kappa": np.arange(3.0)})
    assert artifacts.read_scores("smoke", "run", "digits")["kappa"].tolist() == [0, 1, 2]
    assert artifacts.scores_path("smoke", "run", "digits").name == "run--digits.npz"


def test_a_score_is_stored_in_so_few_bits_that_its_order_does_not_suffer():
    spread = np.random.default_rng(0).lognormal(size=3000).astype(np.float32)
    some = np.where(spread > 1, spread, np.float32("nan"))
    scores = {
        "spread": spread,
        "crowded": -1 / (0.01 + spread**-4),
        "narrow": 1 + spread / 1e4,
        "with NaN": some,
    }
    scores |= {"double": spread.astype(np.float64), "linear_max_softmax": 1 / (1 + spread)}
    artifacts.write_scores("smoke", "run", "digits", scores)
    read = artifacts.read_scores("smoke", "run", "digits")
    assert all(read[name].dtype == scores[name].dtype for name in scores)
    for name in ("spread", "crowded"):
        assert (
            2**-14 < np.abs(read[name] / scores[name] - 1).max()
            and np.mean(read[name][::2] == read[name][1::2]) < 4e-3
        ), name
        right = np.random.default_rng(1).random(3000) < stats.rankdata(scores[name]) / 3000
        for measure in (uncertainty.auroc, uncertainty.aurc):
            assert measure(read[name], right) == pytest.approx(
                measure(scores[name], right), abs=5e-5
            )
    assert not (read["spread"].view(np.uint32) & 0x3FF).any(), "bits that say nothing are zero"
    assert np.abs(read["linear_max_softmax"] / scores["linear_max_softmax"] - 1).max() <= 2**-16
    assert all(
        np.array_equal(read[name], scores[name], equal_nan=True)
        for name in ("narrow", "with NaN", "double")
    )


@pytest.mark.parametrize(
    "index",
    [np.arange(300), np.arange(300)[::-1], np.arange(1, 301)],
    ids=["counts", "backwards", "from 1"],
)
def test_an_index_that_counts_is_stored_empty_and_read_in_full(index):
    """Half of a file with what is right of each image would be its index."""
    arrays = {"index": index.astype(np.int32), "correct": index % 7 == 0}
    artifacts.write_scores("smoke", "run", "digits", arrays)
    read = artifacts.read_scores("smoke", "run", "digits")
    assert read["index"].dtype == np.int32 and all(
        np.array_equal(read[name], arrays[name]) for name in arrays
    )
    assert (len(read_npz(artifacts.scores_path("smoke", "run", "digits"))["index"]) == 0) == (
        index[0] == 0 and index[1] == 1
    )


def test_an_array_that_repeats_another_is_stored_as_its_name_and_read_in_full():
    """The uncertainty of a method without its own is the negative norm, once by torch and once by numpy: a third of a file."""
    norm = np.random.default_rng(0).gamma(4.0, size=300).astype(np.float32)
    apart = norm + np.float32(1e-3)
    rounded = np.nextafter(-norm, np.float32(0))
    scores = {
        "feature_norm": norm,
        "uncertainty": rounded,
        "again": norm,
        "apart": apart,
        "double": norm.astype(np.float64),
        "right": norm > 4,
    }
    artifacts.write_scores("smoke", "run", "digits", scores)
    stored = read_npz(artifacts.scores_path("smoke", "run", "digits"))
    assert {name: values.item() for name, values in stored.items() if values.ndim == 0} == {
        "uncertainty": "-feature_norm",
        "again": "feature_norm",
    }
    read = artifacts.read_scores("smoke", "run", "digits")
    assert list(read) == list(scores) and all(
        read[name].dtype == scores[name].dtype for name in scores
    )
    assert all(np.allclose(read[name], scores[name], rtol=2**-8, atol=0) for name in scores)


def test_which_predictions_are_right_is_stored_in_words_and_read_in_full():
    """Two arrays of a file follow from others; one that does not is kept."""
    draw = np.random.default_rng(0).integers
    label, linear, knn = (draw(3, size=300, dtype=np.int16) for _ in range(3))
    scores = {
        "linear_correct": linear == label,
        "linear_prediction": linear,
        "knn_prediction": knn,
        "label": label,
    }
    scores |= {"knn_correct": knn != label, "mlp_correct": knn == label}
    artifacts.write_scores("smoke", "run", "digits", scores)
    stored = read_npz(artifacts.scores_path("smoke", "run", "digits"))
    said = {name: values.item() for name, values in stored.items() if values.ndim == 0}
    assert said == {"linear_correct": "linear_prediction == label", "label": artifacts.LABELS}
    read = artifacts.read_scores("smoke", "run", "digits", ("linear_correct",))
    assert list(read) == list(scores) and all(
        read[name].dtype == scores[name].dtype for name in scores
    )
    assert all(np.array_equal(read[name], scores[name]) for name in scores)


def test_the_labels_of_a_set_stand_once_and_others_under_its_name_are_kept():
    """A fifth of a file with what is right of each image would be its labels."""
    labels = np.arange(300, dtype=np.int16) % 7
    given = {
        "first": labels,
        "same": labels,
        "others": labels[::-1],
        "wider": labels.astype(np.int64),
        "fewer": labels[:200],
    }
    for run, label in given.items():
        artifacts.write_scores(
            "smoke", run, "digits", {"label": label, "feature_norm": np.ones(len(label))}
        )
    stored = {
        run: read_npz(artifacts.scores_path("smoke", run, "digits"))["label"].ndim for run in given
    }
    assert stored == {"first": 0, "same": 0, "others": 1, "wider": 1, "fewer": 1}
    for run, label in given.items():
        read = artifacts.read_scores("smoke", run, "digits", ("label",))["label"]
        assert read.dtype == label.dtype and np.array_equal(read, label)
    artifacts.scores_path("smoke", artifacts.LABELS, "digits").unlink()
    assert np.array_equal(artifacts.read_scores("smoke", "others", "digits")["label"], labels[::-1])
    with pytest.raises(FileNotFoundError, match="labels--digits.npz"):
        artifacts.read_scores("smoke", "first", "digits")


def _classified(images: int = 300) -> dict[str, np.ndarray]:
    """Scores of a random classifier that is right of about half of the images."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(3, 0.3), size=images).astype(np.float32)
    label = np.array(
        [rng.choice(3, p=row / row.sum()) for row in probabilities.astype(float)], np.int16
    )
    scores = {
        "label": label,
        "linear_prediction": probabilities.argmax(1).astype(np.int16),
        "linear_max_softmax": probabilities.max(1),
    }
    return scores | {
        "linear_nll": -np.log(probabilities[np.arange(images), label]).astype(np.float16)
    }


def test_an_nll_is_stored_where_the_prediction_is_wrong_and_read_in_full():
    """Where it is right the largest softmax says it; an NLL of another kind, after a temperature say, is kept whole."""
    scores = _classified()
    scores |= {"knn_nll": 2 * scores["linear_nll"], "knn_prediction": scores["linear_prediction"]}
    scores |= {"knn_max_softmax": scores["linear_max_softmax"].copy()}  # stored as the other's name
    artifacts.write_scores("smoke", "run", "digits", scores)
    stored, wrong = (
        read_npz(artifacts.scores_path("smoke", "run", "digits")),
        scores["linear_prediction"] != scores["label"],
    )
    assert (
        np.array_equal(stored["linear_nll"], scores["linear_nll"][wrong]) and 50 < wrong.sum() < 250
    )
    assert np.array_equal(stored["knn_nll"], scores["knn_nll"])
    read = artifacts.read_scores("smoke", "run", "digits")
    assert list(read) == list(scores) and all(
        read[name].dtype == scores[name].dtype for name in scores
    )
    assert np.array_equal(read["linear_nll"][wrong], scores["linear_nll"][wrong])
    assert np.allclose(read["linear_nll"], scores["linear_nll"], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("missing", ["linear_max_softmax", "linear_prediction"])
def test_a_short_nll_without_its_source_is_named(missing):
    artifacts.write_scores("smoke", "run", "digits", _classified())
    path = artifacts.scores_path("smoke", "run", "digits")
    artifacts.write_npz(
        path, **{name: values for name, values in read_npz(path).items() if name != missing}
    )
    with pytest.raises(ValueError, match=f"run--digits.npz lacks .'{missing}'"):
        artifacts.read_scores("smoke", "run", "digits")


@pytest.mark.parametrize("missing", ["feature_norm", "linear_prediction", "label"])
def test_an_array_whose_source_is_missing_is_named(missing):
    path = artifacts.scores_path("smoke", "run", "digits")
    arrays = {"feature_norm": np.ones(2), "linear_prediction": np.ones(2), "label": np.ones(2)}
    said = {
        "uncertainty": np.array("-feature_norm"),
        "linear_correct": np.array("linear_prediction == label"),
    }
    artifacts.write_npz(
        path, **{name: values for name, values in arrays.items() if name != missing}, **said
    )
    with pytest.raises(ValueError, match=f"run--digits.npz lacks .'{missing}'"):
        artifacts.read_scores("smoke", "run", "digits")


# ---------------------------------------------------------------------------------------------------------------- provenance
def test_provenance():
    said = artifacts.provenance()
    assert set(said) == {"commit", "python", "versions", "hardware"}
    assert said["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert set(said["versions"]) == {
        "torch",
        "torchvision",
        "numpy",
        "scipy",
        "pandas",
        "scikit-learn",
        "matplotlib",
    }
    assert (
        set(said["hardware"]) == {"processor", "cores", "accelerator"}
        and said["commit"] == artifacts.commit()
    )
    json.dumps(said, allow_nan=False)


def test_commit_is_the_last_of_the_code_and_says_when_the_code_differs_from_it(
    monkeypatch, tmp_path
):
    def git(*words):
        named = ["git", "-C", tmp_path, "-c", "user.name=n", "-c", "user.email=e"]
        return subprocess.run([*named, *words], check=True, capture_output=True, text=True).stdout

    monkeypatch.setattr(artifacts, "ROOT", tmp_path)
    assert artifacts.commit.__wrapped__() == "unknown"
    git("init", "-q")
    assert artifacts.commit.__wrapped__() == "unknown", "nothing is committed yet"
    for folder in ("lib", "results"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a").touch()
        git("add", folder)
        git("commit", "-qm", folder)
    code = git("log", "-1", "--format=%h", "--abbrev=10", "HEAD^").strip()
    assert artifacts.commit.__wrapped__() == code, "a commit of results alone is none of the code"
    (tmp_path / "results" / "a").write_text("b")
    assert artifacts.commit.__wrapped__() == code
    (tmp_path / "lib" / "a").write_text("b")
    assert artifacts.commit.__wrapped__() == code + "+"


def test_git_need_not_be_there(monkeypatch, tmp_path):
    monkeypatch.setattr(artifacts, "ROOT", tmp_path)
    assert artifacts._git("rev-parse", "HEAD") == ""
    monkeypatch.setenv("PATH", "")
    assert artifacts._git("rev-parse", "HEAD") == ""


def test_sha256(tmp_path):
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "a").write_text("abc")
    assert (
        artifacts.sha256("abc")
        == artifacts.sha256(b"abc")
        == artifacts.sha256(tmp_path / "a")
        == known
    )
