"""Bad input at every public door: one table. Each case ends in one clear sentence, before any work starts, and changes nothing that is stored."""

import json
import os
import re
import sys
from io import BytesIO
from pathlib import Path
from shutil import copytree
from typing import NamedTuple
from zipfile import ZipFile

import numpy as np
import papermill
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import lib
from lib import distributions, losses, methods, training
from lib.claims import differences as comparisons
from lib.claims import ledger as claims
from lib.data import sources as data
from lib.evaluation import intervals as statistics
from lib.evaluation import measure as protocol
from lib.evaluation import probes as evaluation
from lib.evaluation import style as factors
from lib.evaluation import theory
from lib.evaluation import uncertainty as measures
from lib.pipeline import jobs as reproduction
from lib.pipeline import own_files
from lib.pipeline import score as own_images
from lib.pipeline import site as gallery
from lib.runs import settings
from lib.runs import store as artifacts
from lib.training import __main__ as training_command
from lib.training import checkpoints, loop, optim

REFUSED = (ValueError, FileNotFoundError, RuntimeError)  # what the commands turn into one sentence
FINISHED, INTERRUPTED = settings.resolve("random", "smoke"), settings.resolve("simsiam", "smoke")
NAME, BEGUN = settings.run_name(FINISHED), settings.run_name(INTERRUPTED)
PIXELS, LABELS = (
    np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8),
    np.arange(8) % 2,
)


class Place(NamedTuple):
    """A results folder and a data folder of the case's own."""

    root: Path
    patch: pytest.MonkeyPatch

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def run(self) -> Path:
        return artifacts.run_dir("smoke", NAME)

    @property
    def begun(self) -> Path:
        return artifacts.run_dir("smoke", BEGUN)

    def open(self) -> "Place":
        self.patch.setattr(artifacts, "RESULTS", self.root / "results")
        self.patch.setenv("DATA_DIR", str(self.data))
        return self

    def snapshot(self) -> dict[str, str]:
        """What is there, by path: the hash of every file; of folders, links and pipes that they are."""
        return {
            str(path): artifacts.sha256(path)
            if path.is_file() and not path.is_symlink()
            else "no file"
            for path in self.root.rglob("*")
        }


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """What a person may have: a finished run, an interrupted one, metrics, scores, an encoder, an executed notebook, a gallery, sets of their own."""
    with pytest.MonkeyPatch.context() as patch:
        place = Place(tmp_path_factory.mktemp("stored"), patch).open()
        training.train(FINISHED)
        digest = settings.run_hash(INTERRUPTED, training.training_images(INTERRUPTED).checksum)
        method = methods.build(INTERRUPTED, 1)
        info = {"run_hash": digest, "step": 3, "log": [], "seconds": 1.0}
        checkpoints.save_checkpoint(
            place.begun / "checkpoint.safetensors",
            method,
            optim.make_optimizer(method, INTERRUPTED),
            info,
        )
        artifacts.write_json(
            place.begun / "config.json",
            {"run": BEGUN, "run_hash": digest, "data": {"checksum": "0"}, "finished": False},
        )
        row = {
            "method": "random",
            "evaluated_on": "digits",
            "condition": "clean",
            "metric": "accuracy",
            "value": 0.5,
            "seed": 0,
            "profile": "smoke",
        }
        artifacts.write_metrics("smoke", protocol.MEASURED_BY, NAME, [row])
        artifacts.write_scores("smoke", NAME, "digits", {"knn_correct": np.array([True, False])})
        own = settings.resolve("vi_simsiam", "smoke", width=1, dimension=4)
        info = {
            "run": settings.run_name(own),
            "run_hash": "0" * 12,
            "channels": 3,
            "classes": ["a"],
            "settings": settings.trained_with(own),
        }
        artifacts.write_tensors(
            artifacts.encoder_path("vi_simsiam"), methods.build(own, 3).state_dict(), info
        )
        artifacts.write_text(
            artifacts.results_dir("smoke") / "notebooks" / "10_pretraining.ipynb",
            "an executed notebook",
        )
        artifacts.write_text(artifacts.results_dir("smoke") / "index.html", "a gallery")
        artifacts.write_text(place.root / "README.md", "not a result")
        for split in ("train", "test"):
            artifacts.write_npz(place.data / "mine" / f"{split}.npz", images=PIXELS, labels=LABELS)
        for name in ("cat/1.png", "dog/2.png", "dog/3.png"):
            file = place.data / "pets" / "train" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(PIXELS[0]).save(file)
        yield place.root


@pytest.fixture
def place(stored, tmp_path, monkeypatch):
    """A copy of what is stored, where no notebook, process or training may start."""

    def started(*_, **__):
        pytest.fail("work was started")

    for where, name in (
        (papermill, "execute_notebook"),
        (reproduction.subprocess, "Popen"),
        (loop.Training, "run"),
        (data, "_staging"),
    ):
        monkeypatch.setattr(where, name, started)
    monkeypatch.setattr(
        artifacts, "commit", lambda: "0123456789"
    )  # whatever is being edited in this checkout
    yield Place(copytree(stored, tmp_path / "stored"), monkeypatch).open()
    settings.read.cache_clear(), claims.claims.cache_clear()


# ---------------------------------------------------------------------------------------------------------------- what is spoilt before
def npz(split="train", **arrays):
    """A set of one's own with these arrays in place of its own; None leaves one out."""

    def spoil(place):
        kept = {"images": PIXELS, "labels": LABELS} | arrays
        np.savez(
            place.data / "mine" / f"{split}.npz",
            **{key: value for key, value in kept.items() if value is not None},
        )

    return spoil


def written(content, *names):
    """The file of this name, below the case's folder, holds these bytes alone."""

    def spoil(place):
        path = place.root.joinpath(*names)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return spoil


def cut(*names, keep=0.5):
    """The file keeps only its first part."""

    def spoil(place):
        path = place.root.joinpath(*names)
        path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])

    return spoil


def tensors(*names, drop="", info=None, **changed):
    """A safetensors file without the tensors whose name begins with ``drop``, with others added, or with another ``info``."""

    def spoil(place):
        path = place.root.joinpath(*names)
        kept, said = artifacts.read_tensors(path)
        kept = {
            name: value for name, value in kept.items() if not (drop and name.startswith(drop))
        } | changed
        save_file(kept, path, {"info": json.dumps(said) if info is None else info})

    return spoil


def toml(**texts):
    """The project's settings with text added at their end, or with (old, new) replaced."""

    def spoil(place):
        for path in (settings.ROOT / "settings").glob("*.toml"):
            text, change = path.read_text(), texts.get(path.stem, "")
            text = text + change if isinstance(change, str) else text.replace(*change, 1)
            artifacts.write_text(place.root / "settings" / path.name, text)
        place.patch.setattr(settings, "ROOT", place.root)
        settings.read.cache_clear(), claims.claims.cache_clear()

    return spoil


def images(count=70, **odd):
    """A folder of images to score: ``count`` good ones, and files of these names and contents (a path: a link to it)."""

    def spoil(place):
        folder = place.root / "photos"
        folder.mkdir()
        for index in range(count):
            Image.fromarray(PIXELS[index % 8].repeat(4, 0).repeat(4, 1)).save(
                folder / f"{index}.png"
            )
        for name, content in odd.items():
            file = folder / name.replace("_", ".")
            file.symlink_to(content) if isinstance(content, Path) else file.write_bytes(content)

    return spoil


def picture(values, kind="tiff", **options):
    buffer = BytesIO()
    (values if isinstance(values, Image.Image) else Image.fromarray(values)).save(
        buffer, kind, **options
    )
    return buffer.getvalue()


def links(place):
    (place.root / "photos").mkdir()
    for index in range(70):
        (place.root / "photos" / f"{index}.png").symlink_to(
            place.data / "pets" / "train" / "cat" / "1.png"
        )


def pipe(place):
    """A class that holds a named pipe alone: to open it would be to wait for ever."""
    (place.data / "pets" / "train" / "pipe").mkdir()
    os.mkfifo(place.data / "pets" / "train" / "pipe" / "1.png")
    place.patch.setattr(Image, "open", lambda *_, **__: pytest.fail("it was opened"))


def both(*spoils):
    return lambda place: [spoil(place) for spoil in spoils]


def claimed_size(place):
    """An npz file of a few bytes whose header says that it holds an exabyte."""
    header = BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6, 10**6, 1)}
    )
    with ZipFile(place.data / "mine" / "train.npz", "w") as archive:
        archive.writestr("images.npy", header.getvalue())


# ---------------------------------------------------------------------------------------------------------------- doors
def command(module, *arguments):
    """What ``python -m lib.<module> <arguments>``, and so make, would do."""

    def door(place):
        place.patch.setattr(
            sys,
            "argv",
            [module.__name__, *(str(argument).format(root=place.root) for argument in arguments)],
        )
        try:
            return module.main()
        except REFUSED as error:
            raise AssertionError(f"a traceback and not a sentence: {error}") from error

    return door


def make(*arguments):
    return command(reproduction, *arguments)


def notebook(params, name="10"):
    return make("--notebook", name, "--profile", "smoke", "--params", params)


def resolve(method="simsiam", profile="smoke", **parameters):
    return lambda place: settings.resolve(method, profile, **parameters)


def train(method="simsiam", **parameters):
    return lambda place: training.train(settings.resolve(method, "smoke", **parameters))


def load(*arguments, **options):
    return lambda place: data.load(*arguments, **options)


def survey(folder="photos", size=64):
    return lambda place: own_files.survey(place.root / folder, size)


def given(function, *arguments, **options):
    return lambda place: function(*arguments, **options)


RUNS, ENCODERS = (
    ("results", "smoke", "runs"),
    ("results", "standard", "encoders", "vi_simsiam.safetensors"),
)
MODEL, CHECKPOINT = (*RUNS, NAME, "model.safetensors"), (*RUNS, BEGUN, "checkpoint.safetensors")
TRAIN = ("data", "mine", "train.npz")
METRICS = ("results", "smoke", "metrics", f"{protocol.MEASURED_BY}--{NAME}.csv")
ENTRY = '\n[[smoke.runs]]\npapers = ["vs1"]\nmethods = ["simsiam"]\nseeds = [0]\n'
SCORES, RIGHT = np.linspace(0, 1, 6), np.array([0, 1, 0, 1, 1, 0])
HALVES = np.full((6, 2), 0.5)

# id: (door, pattern of the message, what is spoilt before)
CASES = {
    # make reproduce, make notebook, make score, make figures, make gallery
    "profile misspelt": (
        make("--profile", "quik"),
        r"Unknown profile 'quik'; choose one of \['paper', 'quick'",
        None,
    ),
    "paper misspelt": (make("--paper", "vs3"), "Unknown paper 'vs3'; choose one of", None),
    "GPUs below zero": (
        make("--profile", "smoke", "--executor", "slurm", "--gpus", "-1"),
        "GPUS=-1 is not a number of GPUs; give",
        None,
    ),
    "GPUs without a cluster": (
        make("--profile", "smoke", "--gpus", "1"),
        "GPUS=1 asks a cluster for GPUs: add EXECUTOR=slurm",
        None,
    ),
    "no jobs at once": (
        make("--profile", "smoke", "--jobs", "0"),
        "JOBS=0 is not a number of jobs at once; give a whole number, 1 or more",
        None,
    ),
    "jobs in words": (
        make("--profile", "smoke", "--jobs", "two"),
        "invalid int value: 'two'",
        None,
    ),
    "score into a file": (
        make("--score", "{root}/data", "--out", "{root}/README.md"),
        "README.md, which is not a folder: give another place, OUT=",
        None,
    ),
    "figures in part": (
        make("--figures", "--profile", "quick"),
        r"30_b.json .*'id'.*; delete it and run the job that writes it again",
        written(b"{}", "results", "quick", "figures", "30_b.json"),
    ),
    "figures that show nothing": (
        make("--figures", "--profile", "smoke"),
        "'smoke' show that everything runs, and no more: publish those of paper, standard, quick",
        None,
    ),
    "job unknown": (
        make("--profile", "smoke", "--job", "nothing"),
        r"has no job 'nothing'; its jobs are \['00_start_here'",
        None,
    ),
    "notebook unknown": (
        make("--notebook", "11"),
        r"No notebook '11'; the notebooks are \['00_start_here'",
        None,
    ),
    "notebook elsewhere": (
        make("--notebook", "../10_pretraining"),
        r"No notebook '../10_pretraining'; the notebooks are",
        None,
    ),
    "figures of no profile": (
        make("--figures", "--profile", "quik"),
        "Unknown profile 'quik'; choose one of",
        None,
    ),
    "figures from elsewhere": (
        make("--figures", "--profile", "../data"),
        r"Unknown profile '../data'; choose one of",
        None,
    ),
    "parameter misspelt": (
        notebook("sed=1"),
        r"has no parameter 'sed'; its parameters are .*'seed'",
        None,
    ),
    "parameter without a value": (
        notebook("seed"),
        r"'seed' is not name=value; write PARAMS=",
        None,
    ),
    "parameter in words": (
        notebook("seed=one"),
        r"10_pretraining: parameter 'seed' is 'one' \(str\); it must be a int",
        None,
    ),
    "parameter of another type": (
        notebook("epochs=1.5"),
        r"10_pretraining: parameter 'epochs' is 1.5 \(float\); it must be a int",
        None,
    ),
    "parameter that is code": (
        notebook("seed=__import__(1).getpid()"),
        r"10_pretraining: parameter 'seed' is '__import__.* it must be a int",
        None,
    ),
    "parameter twice": (
        notebook("seed=1 seed=2"),
        "'seed' is there twice, in .*seed=1 seed=2.*; give it once",
        None,
    ),
    "quotation mark left open": (
        notebook("method='simsiam"),
        "method='simsiam.* has an unclosed quotation mark .*; write PARAMS=",
        None,
    ),
    "method misspelt": (
        notebook("method=simclear"),
        r"Unknown method 'simclear'; choose one of \[.*'simsiam'",
        None,
    ),
    "seed below zero": (
        notebook("seed=-1"),
        "'seed' of 10_pretraining is -1; it must be finite and 0 or more",
        None,
    ),
    "epochs below zero": (
        notebook("epochs=-5"),
        "'epochs' of 10_pretraining is -5; it must be finite and 0 or more",
        None,
    ),
    "learning rate without bound": (
        notebook("learning_rate=1e999"),
        "'learning_rate' of 10_pretraining is inf; it must be finite and 0 or more",
        None,
    ),
    "run unknown": (
        notebook(f"runs='{NAME} {NAME}x'"),
        f"Profile 'smoke' lists no run '{NAME}x'; its runs are",
        None,
    ),
    "dataset misspelt": (
        notebook("dataset=cifar01"),
        "There is no set 'cifar01': choose one of mnist, .* or bring your own as",
        None,
    ),
    "dataset elsewhere": (
        notebook("dataset=../mine"),
        r"'../mine' cannot name a set or split: use letters",
        None,
    ),
    "score of nothing": (
        make("--score", "{root}/nowhere"),
        "nowhere is not a folder: give one that holds images, IMAGES=folder",
        None,
    ),
    "score of a file": (
        make("--score", "{root}/README.md"),
        "README.md is not a folder: give one that holds images",
        None,
    ),
    "score into the folder": (
        make("--score", "{root}/data", "--out", "{root}/data/out"),
        "inside the folder that is scored: give another",
        None,
    ),
    "score for many epochs": (
        make("--score", "{root}/data", "--epochs", "many"),
        "EPOCHS=many is not a number of epochs; give a whole",
        None,
    ),
    "score for epochs below zero": (
        make("--score", "{root}/data", "--epochs", "-3"),
        "EPOCHS=-3 is not a number of epochs; give a whole",
        None,
    ),
    "score by no encoder": (
        make("--score", "{root}/data", "--encoder", "dinoo"),
        r"no committed encoder 'dinoo' .*choose one of \['vi_sim",
        None,
    ),
    "score in no profile": (
        make("--score", "{root}/data", "--profile", "quik"),
        "Unknown profile 'quik'; choose one of",
        None,
    ),
    "gallery of nothing": (
        command(gallery, "paper"),
        "no results for profile 'paper': run `make reproduce PROFILE=paper`",
        None,
    ),
    "gallery elsewhere": (command(gallery, ".."), r"Unknown profile '\.\.'; choose one of", None),
    "training of no run": (
        command(training_command, f"{NAME}x", "--profile", "smoke"),
        f"Profile 'smoke' lists no run '{NAME}x'; its runs are",
        None,
    ),
    "gallery of half a record": (
        command(gallery, "smoke"),
        r"30_a.json lacks \['id', 'caption'.*\]; delete it and run the job",
        written(b"{}", "results", "smoke", "figures", "30_a.json"),
    ),
    "gallery of half a table": (
        command(gallery, "smoke"),
        r"30_a.csv is not a readable CSV file .*; delete it and run the job",
        written(b"", "results", "smoke", "tables", "30_a.csv"),
    ),
    "training in no profile": (
        command(training_command, NAME, "--profile", "notebooks"),
        r"'notebooks'; choose one of \['paper', 'quick'",
        None,
    ),
    "training in a misspelt profile": (
        command(training_command, NAME, "--profile", "quik"),
        "Unknown profile .*'quik'; choose one of",
        None,
    ),
    "fetch of no set": (
        command(data, "fetch", "cifar01"),
        "There is no set 'cifar01': choose one of mnist",
        None,
    ),
    "fetch of nothing": (command(data, "fetch"), "fetch needs at least one NAME", None),
    "table of a damaged set": (
        command(data, "table"),
        "train.npz is truncated or not an npz file .*delete it, or write it",
        written(b"", "data", "digits", "train.npz"),
    ),
    # settings: parameters and files
    "method unknown": (
        resolve("simclear"),
        r"Unknown method 'simclear'; choose one of \[.*'simsiam'",
        None,
    ),
    "setting misspelt": (
        resolve(learning_rat=0.1),
        r"Unknown parameter 'learning_rat' for method 'simsiam'; choose from \[",
        None,
    ),
    "setting of another type": (
        resolve(learning_rate="0.1"),
        r"'learning_rate' is '0.1' \(str\); it must be a float",
        None,
    ),
    "setting not a number": (
        resolve(learning_rate=float("nan")),
        "'learning_rate' is nan; it must be finite and not negative",
        None,
    ),
    "batch of one": (resolve(batch_size=1), "'batch_size' is 1; it must be at least 2", None),
    "local views of no size": (
        resolve(local_views=2, local_size=0),
        "'local_size' is 0; it must be at least",
        None,
    ),
    "settings not TOML": (
        resolve(),
        "profiles.toml is not valid TOML: .*; correct that line",
        toml(profiles="[smoke\n"),
    ),
    "profile with a misspelt setting": (
        resolve(),
        r"'smoke' of settings/profiles.toml sets 'batchsize', which no recipe has; choose from \[.*'batch_size'",
        toml(profiles="\n[smoke.methods.simsiam]\nbatchsize = 3\n"),
    ),
    "profile with a setting in words": (
        resolve(),
        r"Profile 'smoke' of settings/profiles.toml: parameter 'epochs' is 'ten' \(str\); it must be a int",
        toml(profiles=("epochs = 1\n", 'epochs = "ten"\n')),
    ),
    "recipe inherits from itself": (
        resolve("odd"),
        "Method 'odd' inherits from itself .*; take one of these out of settings/recipes.toml",
        toml(recipes="\n[odd]\ninherits = 'odd'\n"),
    ),
    "recipe inherits from none": (
        resolve("odd"),
        "Unknown method 'evn'; choose one of",
        toml(recipes="\n[odd]\ninherits = 'evn'\n"),
    ),
    "recipe without a batch": (
        resolve("odd", "paper"),
        r"Method 'odd' lacks \['batch_size'.*; add them in settings/recipes.toml",
        toml(recipes="\n[odd]\nepochs = 1\n"),
    ),
    "runs without methods": (
        lambda place: settings.runs("smoke"),
        r"settings/experiments.toml lacks \['methods'\]; it has \['papers', 'seeds'\]: add them",
        toml(experiments='\n[[smoke.runs]]\npapers = ["vs1"]\nseeds = [0]\n'),
    ),
    "runs of an unknown method": (
        lambda place: settings.runs("smoke"),
        "Unknown method 'simclear'",
        toml(experiments=ENTRY.replace("simsiam", "simclear")),
    ),
    "runs with a seed twice": (
        lambda place: settings.runs("smoke"),
        r"has the seeds \[0, 1, 0\]; name each once",
        toml(experiments=ENTRY.replace("[0]", "[0, 1, 0]")),
    ),
    "claim without a kind": (
        given(claims.claims),
        "Claim VS0 does not say its where, statement, kind",
        toml(claims="\n[VS0]\npaper = 'vs1'\n"),
    ),
    # sets: npz files
    "set misspelt": (
        load("fashion_mnits"),
        "There is no set 'fashion_mnits': choose one of .*fashion_mnist",
        None,
    ),
    "set elsewhere": (load("../mine"), r"'../mine' cannot name a set or split: use letters", None),
    "split elsewhere": (
        load("mine", "../pets"),
        r"'../pets' cannot name a set or split: use letters",
        None,
    ),
    "split unknown": (load("mine", "valid"), "mine has no split 'valid': it has test, train", None),
    "data folder that is a file": (
        load("mnist"),
        "DATA_DIR is .*README.md, which is not a folder: give one",
        lambda place: place.patch.setenv("DATA_DIR", str(place.root / "README.md")),
    ),
    "image size below zero": (
        load("digits", image_size=-8),
        "image_size is -8: give a number of pixels above 0",
        None,
    ),
    "image size in words": (
        load("digits", image_size="32"),
        "image_size is '32': give a number of pixels above 0",
        None,
    ),
    "class out of range": (load("digits_class_10"), "digits has classes 0 to 9", None),
    "float images": (
        load("mine"),
        "images have dtype float32: store them as uint8",
        npz(images=PIXELS.astype(np.float32) / 255),
    ),
    "NaN pixels": (
        load("mine"),
        "images have dtype float64: store them as uint8",
        npz(images=np.where(PIXELS > 9, np.nan, 1.0)),
    ),
    "infinite pixels": (
        load("mine"),
        "images have dtype float16: store them as uint8",
        npz(images=np.full(PIXELS.shape, np.inf, np.float16)),
    ),
    "wrong channels": (
        load("mine"),
        r"images have 4 channels \(shape \[8, 8, 8, 4\]\): give 1 .* or 3",
        npz(images=np.zeros((8, 8, 8, 4), np.uint8)),
    ),
    "channels first": (
        load("mine"),
        r"images have 8 channels .*: give 1 .* or 3 .*as the last axis",
        npz(images=np.zeros((8, 3, 8, 8), np.uint8)),
    ),
    "empty split": (
        load("mine"),
        "there are no images .*: give at least one",
        npz(images=PIXELS[:0], labels=LABELS[:0]),
    ),
    "labels out of range": (
        load("mine"),
        "labels run from 0 to 7 but there are 2 classes: they count from 0 to 1",
        npz(labels=np.arange(8), classes=np.array(["a", "b"])),
    ),
    "labels below zero": (load("mine"), "labels run from -1 to", npz(labels=LABELS - 1)),
    "labels for others": (
        load("mine"),
        r"labels has shape \[5\] but there are 8 images: give one value an image",
        npz(labels=LABELS[:5]),
    ),
    "labels with fractions": (
        load("mine"),
        "labels have dtype float64: give whole numbers from 0",
        npz(labels=LABELS / 2),
    ),
    "labels left out": (
        load("mine"),
        "lacks labels .it has images.: it needs images and labels",
        npz(labels=None),
    ),
    "classes no list": (
        load("mine"),
        r"train.npz: classes has shape \[\]: give a list of names",
        npz(classes=np.array("cat")),
    ),
    "names no list": (
        load("mine"),
        r"train.npz: hue_names has shape \[\]: give a list of names",
        npz(hue=LABELS, hue_names=np.array("red")),
    ),
    "a pickle in it": (
        load("mine"),
        "train.npz is truncated or not an npz file .*; store arrays of numbers and text, not Python objects",
        npz(images=np.array([{}] * 8, object)),
    ),
    "a pickle for it": (
        load("mine"),
        "npz file .it holds pickled objects, which are never loaded.; .*store arrays of numbers and text, not Python objects",
        written(b"\x80\x04}\x94.", *TRAIN),
    ),
    "text for it": (
        load("mine"),
        "train.npz is truncated or not an npz file .it begins unlike one.; delete it",
        written(b"text", *TRAIN),
    ),
    "half a file": (
        load("mine"),
        "train.npz is truncated or not an npz file .*; delete it, or write it again",
        cut(*TRAIN),
    ),
    "a file of nothing": (
        load("mine"),
        "train.npz is truncated or not an npz file .*; delete it, or write it again",
        written(b"", *TRAIN),
    ),
    "more than there is memory": (
        load("mine"),
        "train.npz is truncated or not an npz file .*; delete it, or write it again",
        claimed_size,
    ),
    # sets: folders of images
    "a folder of nothing": (
        load("pets"),
        "hollow holds no images .*: add some, or remove the folder",
        lambda place: (place.data / "pets/train/hollow").mkdir(),
    ),
    "not an image": (
        load("pets"),
        "4.png is not a readable image .*: replace or remove it",
        written(b"<html>", "data", "pets", "train", "cat", "4.png"),
    ),
    "not a file": (load("pets"), "pipe holds no images .*: add some, or remove the folder", pipe),
    "a link to nowhere": (
        load("pets"),
        "4.png is not a readable image .*: replace or remove it",
        lambda place: (place.data / "pets/train/cat/4.png").symlink_to("../../../nowhere.png"),
    ),
    "a link to itself": (
        load("pets"),
        "4.png is not a readable image .*: replace or remove it",
        lambda place: (place.data / "pets/train/cat/4.png").symlink_to("4.png"),
    ),
    "images of many sizes": (
        load("pets"),
        "have 2 sizes, from .*: give image_size",
        written(
            picture(np.zeros((9, 9), np.uint8), "png"), "data", "pets", "train", "cat", "4.png"
        ),
    ),
    "an image of a million pixels across": (
        load("pets"),
        "4.png is not a readable image .*decompression bomb.*: replace or remove it",
        written(
            picture(Image.new("1", (1_000_000, 200)), "png"),
            "data",
            "pets",
            "train",
            "cat",
            "4.png",
        ),
    ),
    "a broken image in training": (
        train(dataset="pets", batch_size=2),
        "4.png is not a readable image .*: replace or remove it",
        written(b"<html>", "data", "pets", "train", "cat", "4.png"),
    ),
    # folders to score
    "folder to score is none": (
        survey("nowhere"),
        "nowhere is not a folder: give one that holds images",
        None,
    ),
    "folder at no size": (survey("data", 4), "image_size is 4 px; give at least 16", None),
    "too few images": (
        survey(),
        "has 5 images that can be used, fewer than 64 .*Add images, or give another folder",
        images(5),
    ),
    "links from elsewhere": (
        survey(),
        "has 0 images that can be used.*0.png: a symbolic link, not followed.*Add images",
        links,
    ),
    "a broken image to score": (
        survey(),
        "63 used, 1 broken.*bad.png: .*damaged at its start.*Add images",
        images(63, bad_png=b"\x89PNG"),
    ),
    "a NaN image to score": (
        survey(),
        "bad.tiff: .*not finite.*Add images",
        images(63, bad_tiff=picture(np.full((32, 32), np.nan, np.float32))),
    ),
    "an infinite image to score": (
        survey(),
        "bad.tiff: .*not finite.*Add images",
        images(63, bad_tiff=picture(np.full((32, 32), np.inf, np.float32))),
    ),
    "a million pixels across to score": (
        survey(),
        "bad.png: 200,000,000 pixels to decode, more than .*Add images",
        images(63, bad_png=picture(Image.new("1", (1_000_000, 200)), "png")),
    ),
    "a sliver to score": (
        survey(),
        "bad.png: 1000000 x 1 px, the shorter side below 16.*Add images",
        images(63, bad_png=picture(Image.new("1", (1_000_000, 1)), "png")),
    ),
    "encoder unknown": (
        given(own_images.check_encoder, "../vi_simsiam"),
        r"no committed encoder '../vi_simsiam' .*choose one of \['vi_simsiam'\]",
        None,
    ),
    # training
    "batch larger than the data": (
        train(batch_size=2000),
        r"digits \(768 images\) has 768 images, fewer than one batch of 2000: give more images",
        None,
    ),
    "few images": (
        train(train_images=100),
        r"digits \(100 images\) has 100 images, fewer than one batch of 128: give more images",
        None,
    ),
    "split unknown to training": (
        train(split="test"),
        "Unknown split 'test'; a run trains on 'train' or on 'fit'",
        None,
    ),
    "optimiser unknown": (train(optimizer="lion"), "Unknown optimizer 'lion'; choose 'sgd'", None),
    "schedule unknown": (
        train(schedule="step"),
        "Unknown schedule 'step'; choose 'cosine' or 'constant'",
        None,
    ),
    "precision unknown": (train(precision="int8"), "Unknown precision 'int8'; choose 'auto'", None),
    "augmentation unknown": (
        train(augmentation="simclear"),
        "Unknown augmentation recipe 'simclear'; choose one of",
        None,
    ),
    "three views of a recipe for two": (
        train("simvae", augmentation="byol", views=3),
        "recipe 'byol' is for two views, not 3; choose another recipe",
        None,
    ),
    "backbone unknown": (
        train(backbone="resnet19"),
        "Unknown backbone 'resnet19'; choose one of",
        None,
    ),
    "stem unknown": (train(stem="stride3"), "Unknown stem 'stride3'; choose one of", None),
    "patches that do not fit": (
        train("dino_vit", image_size=18),
        "image_size is 18 px; a vit needs a multiple of its patch_size 4",
        None,
    ),
    "classes of another set": (
        train("supervised", classes=7),
        r"digits \(768 images\) has 10 classes, supervised was set up for 7; set classes",
        None,
    ),
    "one class with labels": (
        train("supervised", dataset="digits_class_3", batch_size=16),
        "digits_class_3 has 1 classes, supervised was set up for 10; set classes",
        None,
    ),
    "set unknown to training": (
        train(dataset="cifar01"),
        "There is no set 'cifar01': choose one of",
        None,
    ),
    "no validation part": (
        train(dataset="mine", split="fit", batch_size=2),
        "A fraction of 0.1 of 8 images leaves 8 and 0: choose another",
        None,
    ),
    # stored runs, encoders, metrics
    "half a model": (
        train("random"),
        "model.safetensors is truncated or not a safetensors file .*; delete it and train the run again",
        cut(*MODEL),
    ),
    "a pickle for a model": (
        train("random"),
        "model.safetensors is truncated or not a safetensors file .*; delete it",
        written(b"\x80\x04}\x94.", *MODEL),
    ),
    "a model that says nothing of itself": (
        train("random"),
        r"model.safetensors says \['run_hash'\] of itself.*; delete it and train the run again",
        tensors(*MODEL, info='["run_hash"]'),
    ),
    "a model of other shapes": (
        lambda place: training.load_trained(FINISHED, 1),
        r"model.safetensors does not fit .*another shape \['backbone.0.weight'\].; delete it and train the run again",
        tensors(*MODEL, **{"backbone.0.weight": torch.zeros(3)}),
    ),
    "a model with tensors missing": (
        lambda place: training.load_trained(FINISHED, 1),
        "model.safetensors does not fit .*missing.*; delete it and train the run again",
        tensors(*MODEL, drop="backbone."),
    ),
    "half a checkpoint": (
        train(),
        "checkpoint.safetensors is truncated or not a safetensors file .*; delete it and train the run again",
        cut(*CHECKPOINT),
    ),
    "a checkpoint with tensors missing": (
        train(),
        "checkpoint.safetensors does not fit .*; delete it and train the run again",
        tensors(*CHECKPOINT, drop="method.backbone"),
    ),
    "a checkpoint without its step": (
        train(),
        r"checkpoint.safetensors lacks \['step', 'log', 'seconds'\]; delete it and train the run again",
        lambda place: tensors(
            *CHECKPOINT,
            info=json.dumps(
                {"run_hash": artifacts.read_json(place.begun / "config.json")["run_hash"]}
            ),
        )(place),
    ),
    "a run not trained": (
        lambda place: training.load_trained(INTERRUPTED, 1),
        f"Run {BEGUN} has no trained weights here; train it with: make",
        None,
    ),
    "a run of another hash": (
        lambda place: protocol.Run(FINISHED).method,
        f"Run {NAME} has no weights here that were trained with these settings and data; train it with",
        tensors(*MODEL, info='{"run_hash": "feedfacecafe"}'),
    ),
    "a config that is none": (
        lambda place: settings.stale_runs("smoke"),
        r"config.json lacks \['run', 'run_hash', 'data'\]; delete it and run the job that writes it again",
        written(b"[]", *RUNS, NAME, "config.json"),
    ),
    "half a config": (
        lambda place: settings.stale_runs("smoke"),
        "config.json is not readable JSON .*; delete it and run",
        cut(*RUNS, NAME, "config.json"),
    ),
    "encoder misspelt": (
        given(lib.load, "vi_simsia"),
        r"There is no committed encoder 'vi_simsia'; there are \['vi_simsiam'\]",
        None,
    ),
    "encoder elsewhere": (
        given(lib.load, "../encoders/vi_simsiam"),
        r"no committed encoder '../encoders/vi_simsiam'; there are",
        None,
    ),
    "half an encoder": (
        given(lib.load, "vi_simsiam"),
        "vi_simsiam.safetensors is truncated or not a safetensors file",
        cut(*ENCODERS),
    ),
    "encoder with tensors missing": (
        given(lib.load, "vi_simsiam"),
        "vi_simsiam.safetensors does not fit .*missing",
        tensors(*ENCODERS, drop="backbone"),
    ),
    "encoder of other shapes": (
        given(lib.load, "vi_simsiam"),
        "vi_simsiam.safetensors does not fit .*another shape .'backbone.0.weight'",
        tensors(*ENCODERS, **{"backbone.0.weight": torch.zeros(3)}),
    ),
    "encoder without settings": (
        given(lib.load, "vi_simsiam"),
        r"vi_simsiam.safetensors lacks \['run', 'run_hash', 'settings', 'channels'\]; delete",
        tensors(*ENCODERS, info="{}"),
    ),
    "metrics of nothing": (
        lambda place: artifacts.read_metrics("smoke"),
        "csv is not a readable CSV file .No columns.*; delete it and run the job",
        written(b"", *METRICS),
    ),
    "metrics that are binary": (
        lambda place: artifacts.read_metrics("smoke"),
        "csv is not a readable CSV file .*; delete it",
        written(bytes(range(256)), *METRICS),
    ),
    "metrics without columns": (
        lambda place: artifacts.read_metrics("smoke"),
        r"csv lacks \['trained_on', .*'condition'.*\]; delete it and run the job",
        written(b"method,value\nsimsiam,1\n", *METRICS),
    ),
    "metrics in words": (
        lambda place: artifacts.read_metrics("smoke"),
        "csv is not a readable CSV file .*'half'.*; delete it and run the job",
        lambda place: written(
            place.root.joinpath(*METRICS).read_bytes().replace(b",0.5,", b",half,"), *METRICS
        )(place),
    ),
    "metrics from elsewhere": (
        given(artifacts.read_metrics, "../data"),
        "'../data' cannot name a folder of results: use letters",
        None,
    ),
    "metrics twice": (
        lambda place: artifacts.write_metrics(
            "smoke", "20", NAME, 2 * artifacts.read_metrics("smoke").to_dict("records")
        ),
        "name the same quantity twice",
        None,
    ),
    "metrics misspelt": (
        given(artifacts.write_metrics, "smoke", "20", NAME, [{"acuracy": 1}]),
        r"unknown columns \['acuracy'\]; the columns are",
        None,
    ),
    "half of the scores": (
        lambda place: artifacts.read_scores("smoke", NAME, "digits"),
        "npz is truncated or not an npz file .*; delete it and run the job",
        cut("results", "smoke", "scores", f"{NAME}--digits.npz"),
    ),
    "scores without an answer": (
        lambda place: comparisons.gains(FINISHED, [FINISHED]),
        r"digits.npz lacks \['knn_correct'\]; delete it and run the job",
        lambda place: artifacts.write_scores("smoke", NAME, "digits", {"index": np.arange(2)}),
    ),
    "half of an embedding": (
        lambda place: (run := protocol.Run(FINISHED)).embed(run.test()),
        "digits-test-359-clean.npz is truncated or not an npz file .*; delete it and run the job",
        written(b"PK\x03\x04", *RUNS, NAME, "embeddings", "digits-test-359-clean.npz"),
    ),
    "a battery of one class": (
        lambda place: protocol.measure(
            protocol.Run(settings.resolve("random", "smoke", dataset="mine"))
        ),
        r"mine \(8 images\) has one class, 'cat', so there is nothing to tell apart: give labels of two or more",
        npz(labels=LABELS * 0, classes=np.array(["cat"])),
    ),
    "a ledger's table without its column": (
        given(claims.find, {"table": "20_accuracy", "value": "ours"}, "smoke"),
        r"20_accuracy.csv lacks \['ours'\]; delete it and run the job",
        written(b"method,theirs\nrandom,1\n", "results", "smoke", "tables", "20_accuracy.csv"),
    ),
    # densities, losses and measures
    "a concentration below zero": (
        given(distributions.PowerSpherical, torch.tensor([1.0, 0.0]), torch.tensor(-1.0)),
        "concentration must be finite and >= 0, but one is -1.0; map the",
        None,
    ),
    "a concentration of NaN": (
        given(distributions.VonMisesFisher, torch.tensor([1.0, 0.0]), torch.tensor(float("nan"))),
        "must be finite and >= 0, but one is nan; .*look for NaN",
        None,
    ),
    "a direction of length two": (
        given(distributions.PowerSpherical, torch.tensor([2.0, 0.0]), 1.0),
        "must hold unit vectors .* one has norm 2; normalise",
        None,
    ),
    "views of two shapes": (
        given(losses.simsiam_loss, torch.ones(4, 2), torch.ones(4, 3)),
        r"tensors of one shape \[B, D\], got .*\(4, 3\)",
        None,
    ),
    "a concentration that would broadcast": (
        given(losses.vi_simsiam_loss, torch.ones(4, 2), torch.ones(4, 1), torch.ones(4, 2)),
        r"must have shape \[B\] = \[4\], got \[4, 1\]; .*squeeze it",
        None,
    ),
    "a score of one sample": (
        given(losses.scoring_rule, torch.ones(1, 4, 2), torch.ones(4, 2)),
        "One sample has no pair to compare: draw at least two",
        None,
    ),
    "a kernel misspelt": (
        given(losses.scoring_rule, torch.ones(2, 4, 2), torch.ones(4, 2), kernel="enrgy"),
        r"Unknown kernel 'enrgy'; choose one of \['crps'",
        None,
    ),
    "seeds of one method alone": (
        given(
            statistics.hierarchical_difference,
            measures.auroc,
            {0: [SCORES, RIGHT]},
            {1: [SCORES, RIGHT]},
        ),
        r"no seed in common: \[0\] and \[1\]",
        None,
    ),
    "a measure of one class": (
        given(measures.auroc, SCORES, RIGHT * 0),
        "positive holds a single class .False for all 6.",
        None,
    ),
    "a measure of NaN": (
        given(measures.aurc, SCORES * np.nan, RIGHT),
        "uncertainty has 6 NaN of 6; .*find where it comes from",
        None,
    ),
    "a measure of nothing": (
        given(measures.auroc, [], []),
        "score and positive are empty; pass at least one image of each class",
        None,
    ),
    "probabilities that are logits": (
        given(measures.brier_score, HALVES * 9, RIGHT),
        "rows summing to 1, got .*; apply a softmax to logits",
        None,
    ),
    "labels beyond the probabilities": (
        given(measures.brier_score, HALVES, RIGHT + 1),
        r"labels must be integers in 0 … 1, got int64 in 1 … 2",
        None,
    ),
    "more neighbours than images": (
        given(evaluation.knn_predict, HALVES, RIGHT, HALVES, k=7),
        "k must be between 1 and the 6 training images, got 7",
        None,
    ),
    "a probe of one class": (
        given(evaluation.linear_probe, HALVES, RIGHT * 0),
        "train_y holds a single class .0.; a probe needs at least two",
        None,
    ),
    "a probe of infinite features": (
        given(evaluation.linear_probe, HALVES * np.inf, RIGHT),
        "train_x has 12 NaN or infinite values of 12; find where",
        None,
    ),
    "a probe for content of one class": (
        given(factors.mlp_probe, HALVES, RIGHT * 0, HALVES),
        "train_y holds a single value .0.; a probe needs at least two",
        None,
    ),
    "embedding of NaN": (
        lambda place: evaluation.embed(
            protocol.Run(FINISHED).method,
            data.load("digits", "test"),
            transform=lambda batch: batch * float("nan"),
        ),
        "method.embed returned NaN in features; train again",
        None,
    ),
    "images that are bytes": (
        lambda place: lib.load("vi_simsiam").embed(torch.zeros(2, 3, 16, 16, dtype=torch.uint8)),
        r"images are uint8 of shape \(2, 3, 16, 16\); vi_simsiam was trained on 3 channels and .*protocol.fit\(encoder.settings",
        None,
    ),
    "images that are an array": (
        lambda place: lib.load("vi_simsiam").embed(np.zeros((2, 3, 16, 16))),
        "of type ndarray; .*give a torch tensor .B, C, H, W.",
        None,
    ),
    "no images": (
        lambda place: lib.load("vi_simsiam").embed(torch.zeros(0, 3, 16, 16)),
        r"batch of shape \(0, 3, 16, 16\); vi_simsiam",
        None,
    ),
    "bytes as floats, made to fit": (
        given(protocol.fit({"image_size": 8}, 3), 255 * torch.ones(2, 3, 16, 16)),
        "go from 255 to 255; .*divide bytes by 255",
        None,
    ),
    "bytes, made to fit": (
        given(protocol.fit({"image_size": 8}, 3), torch.ones(2, 3, 16, 16, dtype=torch.uint8)),
        r"are uint8 of shape .*float\(\) / 255",
        None,
    ),
    "images with an alpha channel, made to fit": (
        given(protocol.fit({"image_size": 8}, 3), torch.ones(2, 4, 16, 16)),
        r"of shape \(2, 4, 16, 16\): give floats .*C = 1 or 3",
        None,
    ),
    "one image, made to fit": (
        given(protocol.fit({"image_size": 8}, 3), torch.ones(3, 16, 16)),
        r"of shape \(3, 16, 16\): give floats",
        None,
    ),
    "an executor misspelt": (
        given(reproduction.executor_options, "slrum", 1, 0),
        "EXECUTOR=slrum is none .*choose one of .*slurm",
        None,
    ),
    "a gallery of no profile": (
        given(gallery.build, "qick"),
        "Unknown profile 'qick'; choose one of",
        None,
    ),
    "a mean cosine of one": (
        given(distributions.concentration_of, 1.0, 8),
        "cosine of 1 belongs to no concentration",
        None,
    ),
    "a temperature of zero": (
        given(
            losses.ibot_patch_loss,
            torch.ones(2, 3, 4),
            torch.ones(2, 3, 4),
            torch.ones(2, 3),
            torch.zeros(4),
            0.0,
        ),
        "student_temperature",
        None,
    ),
    "latents without views": (
        given(losses.log_shared_mean, torch.ones(4, 2)),
        r"Expected latents \[J, B, L\], got \[4, 2\]",
        None,
    ),
    "one neighbour to choose from": (
        given(factors.knn_chosen, HALVES[:1], RIGHT[:1], HALVES),
        "1 training images leave 0 neighbours to choose from; pass two or more",
        None,
    ),
    "no seeds": (
        given(statistics.hierarchical_mean, np.mean, []),
        r"one array per seed, all of one length >= 1, got lengths \[0\]",
        None,
    ),
    "a scale below zero": (
        given(theory.mass_over_sphere, 3, -1.0, 4.0),
        "dim is 3 and scale -1.0; they must be at least 2, and positive",
        None,
    ),
    "several rows for one number": (
        given(claims.find, {"table": "20_accuracy", "value": "ours"}, "smoke"),
        r"2 rows of 20_accuracy.csv answer \{\}; name more of its columns",
        written(b"ours\n1\n2\n", "results", "smoke", "tables", "20_accuracy.csv"),
    ),
    "a number without its seeds": (
        given(claims.find, {"table": "20_accuracy", "value": "ours"}, "smoke"),
        "20_accuracy has a row without its runs or seeds, .*draw its",
        written(b"ours,seeds\n1,\n", "results", "smoke", "tables", "20_accuracy.csv"),
    ),
    "a record of reproduction that is a list": (
        lambda place: gallery._provenance(artifacts.results_dir("smoke") / "run.json", []),
        "run.json must hold one JSON object: it holds a list",
        written(b"[]", "results", "smoke", "run.json"),
    ),
    "images of another size": (
        lambda place: lib.load("vi_simsiam").embed(torch.zeros(2, 3, 224, 224)),
        r"float32 of shape \(2, 3, 224, 224\); .*16 x 16 pixels",
        None,
    ),
    "grey images for an encoder of coloured ones": (
        lambda place: lib.load("vi_simsiam").embed(torch.zeros(2, 1, 16, 16)),
        r"shape \(2, 1, 16, 16\); .*3 channels and 16 x 16",
        None,
    ),
    "images that are normalised": (
        lambda place: lib.load("vi_simsiam").embed(torch.full((2, 3, 16, 16), -2.1)),
        "go from -2.1 to -2.1; .*leave out any normalisation",
        None,
    ),
    "images of NaN": (
        lambda place: lib.load("vi_simsiam").embed(torch.full((2, 3, 16, 16), float("nan"))),
        "These images hold NaN; ",
        None,
    ),
}


def said(door, place, capsys) -> str:
    """The message that the door ends in: its exception's, or the last line on stderr of a command that fails."""
    try:
        status = door(place)
    except REFUSED as error:
        return str(error)
    except SystemExit as stop:  # argparse
        status = stop.code
    err = capsys.readouterr().err
    assert status and isinstance(status, int), "it was accepted"
    assert "Traceback" not in err
    return err.strip().splitlines()[-1]


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_sentence_before_any_work(case, place, capsys):
    door, pattern, spoil = CASES[case]
    if spoil:
        spoil(place)
    before = place.snapshot()
    message = said(door, place, capsys)
    assert re.search(pattern, message), message
    assert "\n" not in message and 4 <= len(message.split()) and len(message) < 2000, message
    assert place.snapshot() == before


def test_there_are_enough_cases_and_every_door_lets_good_input_in(place):
    said = re.search(r"tries (\d+) inputs", (artifacts.ROOT / "tests" / "README.md").read_text())
    assert len(CASES) == int(said[1])
    assert len(data.load("mine")) == 8 and len(data.load("pets")) == 3 and lib.load("vi_simsiam")
    assert training.train(FINISHED) == place.run and protocol.Run(FINISHED).method
    assert len(artifacts.read_metrics("smoke")) == 1 and settings.stale_runs("smoke") == [BEGUN]
