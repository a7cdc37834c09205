"""Bad input at every public door ends in one sentence that names the culprit.

Doors are the commands, the parameters of a notebook, data sets, folders of images, and stored
files. Nothing is started, and nothing that is stored changes. Faults of settings files are in
tests/runs, those of data sets in tests/data.
"""

import pickle
import re
from shutil import copytree

import numpy as np
import papermill
import pytest
from PIL import Image

import lib
from lib import methods, training
from lib.data import sources
from lib.pipeline import cli, own_files, reproduce
from lib.runs import settings, store

FINISHED = settings.resolve("random", "smoke")
NAME = settings.run_name(FINISHED)
GENERATOR = np.random.default_rng(0)
PIXELS = GENERATOR.integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
LABELS = np.arange(8) % 2
MODEL = f"results/smoke/runs/{NAME}/model.safetensors"
CONFIG = f"results/smoke/runs/{NAME}/config.json"
ENCODER = "results/standard/encoders/vi_simsiam.safetensors"
METRICS = f"results/smoke/runs/{NAME}/metrics.csv"
SCORES = f"results/smoke/runs/{NAME}/scores-digits.npz"
TRAIN = "data/mine/train.npz"


def snapshot(folder):
    """Every path, with the hash of what is a file."""
    return {path: path.is_file() and store.sha256(path) for path in folder.rglob("*")}


def use(folder, patch):
    patch.setattr(store, "RESULTS", folder / "results")
    patch.setenv("DATA_DIR", str(folder / "data"))
    return folder


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """What a person may have: a finished run, metrics, scores, an encoder, sets of their own."""
    with pytest.MonkeyPatch.context() as patch:
        place = use(tmp_path_factory.mktemp("stored"), patch)
        training.train(FINISHED)
        row = {"evaluated_on": "digits", "metric": "accuracy", "value": 0.5}
        store.write_metrics("smoke", store.SUITE, NAME, [row])
        store.write_scores("smoke", NAME, "digits", {"knn_correct": np.array([True, False])})
        small = settings.resolve("vi_simsiam", "smoke", width=1, dimension=4)
        info = {
            "run": settings.run_name(small),
            "run_hash": "0" * 12,
            "channels": 3,
            "classes": ["a"],
            "settings": settings.trained_with(small),
        }
        weights = methods.build(small, 3).state_dict()
        store.write_tensors(store.encoder_path("vi_simsiam"), weights, info)
        for split in ("train", "test"):
            store.write_npz(place / f"data/mine/{split}.npz", images=PIXELS, labels=LABELS)
        store.write_text(place / "README.md", "not a result")
        yield place


@pytest.fixture
def place(stored, tmp_path, monkeypatch):
    """A copy of what is stored, where no notebook and no process may start."""

    def started(*_, **__):
        pytest.fail("work was started")

    monkeypatch.setattr(papermill, "execute_notebook", started)
    monkeypatch.setattr(reproduce.subprocess, "Popen", started)
    return use(copytree(stored, tmp_path / "stored"), monkeypatch)


@pytest.fixture
def refused(place, capsys):
    """Call a door, see that it refuses with one sentence that has the culprit, changing nothing."""

    def check(door, culprit):
        before = snapshot(place)
        message = message_of(door, capsys)
        assert re.search(culprit, message), message
        assert "\n" not in message, message
        assert snapshot(place) == before

    return check


def message_of(door, capsys):
    """The message of the exception, or the last line of a command that fails."""
    try:
        status = door()
    except SystemExit as stop:  # argparse
        status = stop.code
    except (ValueError, OSError, RuntimeError) as error:
        return str(error)
    printed = capsys.readouterr().err
    assert isinstance(status, int) and status, "it was accepted"
    assert "Traceback" not in printed
    return printed.strip().splitlines()[-1]


def test_every_door_lets_good_input_in(place):
    assert len(sources.load("mine")) == 8
    assert lib.load("vi_simsiam") and training.train(FINISHED)
    assert len(store.read_metrics("smoke")) == 1 and settings.stale_runs("smoke") == []


# ------------------------------------------------------------------------- commands
@pytest.mark.parametrize(
    ("command", "culprit"),
    [
        ("reproduce --profile quik", "quik"),
        ("reproduce --profile smoke --paper vs3", "vs3"),
        ("reproduce --profile smoke --executor slrum", "EXECUTOR=slrum.*slurm"),
        ("reproduce --profile smoke --gpus 1", "EXECUTOR=slurm"),
        ("reproduce --profile smoke --jobs 0", "JOBS=0"),
        ("job nothing --profile smoke", "nothing.*00_start_here"),
        ("figures --profile smoke", "draw it with make notebook"),
        ("progress ..", r"\.\."),
        ("score {root}/nowhere", "nowhere.*IMAGES"),
        ("score {root}/README.md", "README.md"),
        ("score {root}/data --out {root}/data/out", "OUT"),
        ("score {root}/data --epochs many", "EPOCHS=many"),
        ("score {root}/data --encoder vi_simsiam --epochs 3", "EPOCHS=3"),
        ("score {root}/data --encoder dinoo", "dinoo.*vi_simsiam"),
        ("notebook 12", "12"),
        ("unknown", "unknown"),
    ],
)
def test_commands(command, culprit, place, refused):
    arguments = command.format(root=place).split()
    refused(lambda: cli.main(arguments), culprit)


@pytest.mark.parametrize(
    ("parameters", "culprit"),
    [
        ("sed=1", "'sed'.*seed"),
        ("seed=one", "'one'"),
        ("epochs=1.5", "1.5"),
        ("seed=__import__(1).getpid()", "seed"),
        ("profile=smoke", "PROFILE=smoke"),
        ("method=simclear", "simclear"),
        (f"runs='{NAME} {NAME}x'", f"{NAME}x"),
        ("dataset=cifar01", "cifar01"),
    ],
)
def test_parameters_of_a_notebook(parameters, culprit, refused):
    command = ["notebook", "10", "--profile", "smoke", f"--params={parameters}"]
    refused(lambda: cli.main(command), culprit)


# ------------------------------------------------------------------------- data sets
@pytest.mark.parametrize("content", [b"", b"text", pickle.dumps({})])
def test_a_file_that_is_no_set(content, place, refused):
    (place / TRAIN).write_bytes(content)
    refused(lambda: sources.load("mine"), "train.npz")


def test_a_folder_to_score_with_too_few_images(place, refused):
    """The message says why one is not counted."""
    photos = place / "photos"
    photos.mkdir()
    for index in range(63):
        Image.new("RGB", (32, 32), (index, 0, 0)).save(photos / f"{index}.png")
    (photos / "bad.png").write_bytes(b"\x89PNG")
    refused(lambda: own_files.survey(photos, 64), "bad.png")


# ------------------------------------------------------------------------- stored files
DOORS = {
    MODEL: lambda: training.train(FINISHED),
    CONFIG: lambda: settings.stale_runs("smoke"),
    ENCODER: lambda: lib.load("vi_simsiam"),
    METRICS: lambda: store.read_metrics("smoke"),
    SCORES: lambda: store.read_scores("smoke", NAME, "digits"),
}


@pytest.mark.parametrize(
    "content", ["half", b"", b"\x80\x04}\x94."], ids=["half", "empty", "pickle"]
)
@pytest.mark.parametrize("name", DOORS)
def test_a_stored_file_that_is_damaged(name, content, place, refused):
    path = place / name
    whole = path.read_bytes()
    damaged = whole[: len(whole) // 2] if content == "half" else content
    if name == METRICS and content == "half":
        damaged = b'method,"value'
    path.write_bytes(damaged)
    refused(DOORS[name], path.name)
