"""Paths, readers and writers of every stored file, and where each came from.

Every kind of file has one writer here, and every write is atomic: the content goes to a folder of its own beside the file and is moved into
place when complete, so a reader never meets half a file and an interrupted writer leaves the old one.
"""

import ast
import contextlib
import fcntl
import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import time
import uuid
import zipfile
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / (
    os.environ.get("RESULTS_DIR") or "results"
)  # a relative one is below the repository, wherever a kernel was started

UNFINISHED = ".unfinished-"  # starts the name of a folder in which a file is being written
WRITING = (
    7 * 86_400
)  # seconds that a job of one notebook may take, whose page is being written all the while
FREE_BYTES = 50_000_000  # below this much free space nothing is begun
NEXT_STEP = "Free space or make it writable, or choose another folder (RESULTS_DIR); what is done stays done: call the same command again."

METRIC_COLUMNS = [
    "method",
    "trained_on",
    "variant",
    "evaluated_on",
    "condition",
    "classifier",
    "score",
    "metric",
    "value",
    "ci_low",
    "ci_high",
    "n",
    "seed",
    "profile",
    "notebook",
    "run_hash",
    "commit",
]
METRIC_NUMBERS = ("value", "ci_low", "ci_high", "n", "seed")  # the other columns are text
METRIC_KEYS = [
    "method",
    "trained_on",
    "variant",
    "evaluated_on",
    "condition",
    "classifier",
    "score",
    "metric",
    "seed",
]
REPEATED = 2e-6  # of its size: what float32 rounding, in two orders of a sum, may set between a number and its repetition
METRIC_DIGITS = 5  # of a stored metric: of some thousand images more than it has
HALF = 1e-3  # of its size: twice what float16 rounds off
SIGNIFICANT_BITS = {
    "_max_softmax": 16,
    "_nll": 14,
    "_brier": 6,
}  # of a stored score, by the end of its name; the log of a softmax is a likelihood
MOST_BITS = 14  # of any other score
TIED = 1e-3  # the share of pairs of images that the fewer bits of any other score may make equal
PLANES = re.compile(
    r"(.+):([<>|][bif]\d):(\d+)"
)  # the name of an array stored in planes: its own, dtype, length
PICKLE = b"\x80"  # what every pickle since protocol 2 begins with
LABELS = "labels"  # in the place of a run's name, the labels of the set; in the place of labels, that they stand there
IS_THE_LABEL = (
    " == label"  # what an array of predictions is followed by where it says which are right
)
MEASURED_BY = "10_pretraining"  # the notebook that trains a run also measures it, before its checkpoint may go


# ---------------------------------------------------------------------------------------------------------------- paths
def default_data_dir() -> Path:
    return ROOT / (os.environ.get("DATA_DIR") or "data")  # a relative one is below the repository


def plain_name(name: str, of: str) -> str:
    """The name, if it can be that of one file or folder and leads nowhere else; otherwise ValueError."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", name):
        raise ValueError(
            f"{name!r} cannot name {of}: use letters, digits and _ . + - (no folders)."
        )
    return name


def results_dir(profile: str) -> Path:
    return RESULTS / plain_name(profile, "a folder of results")


def run_dir(profile: str, run: str) -> Path:
    """Folder of one pretraining run: config.json, log.csv, model.safetensors (not committed), embeddings/ (not committed)."""
    return results_dir(profile) / "runs" / run


def config_path(profile: str, run: str) -> Path:
    """What a run says of itself: its settings, and where, from which commit and in how many seconds it was trained."""
    return run_dir(profile, run) / "config.json"


def run_configs(profile: str) -> dict[Path, dict]:
    """What the stored runs say of themselves, by folder; those on somebody's own images are theirs, and not in git."""
    paths = sorted((results_dir(profile) / "runs").glob("*/config.json"))
    return {
        path.parent: read_json(path) for path in paths if "-own_images-" not in path.parent.name
    }


def metrics_path(profile: str, notebook: str, run: str) -> Path:
    return results_dir(profile) / "metrics" / f"{notebook}--{run}.csv"


def scores_path(profile: str, run: str, evaluated_on: str) -> Path:
    return results_dir(profile) / "scores" / f"{run}--{evaluated_on}.npz"


def encoder_path(method: str, profile: str = "standard") -> Path:
    return results_dir(profile) / "encoders" / f"{method}.safetensors"


# ---------------------------------------------------------------------------------------------------------------- atomic writers
@contextlib.contextmanager
def atomic_path(path: Path):
    """Yield a path of the same name in a new folder beside ``path``; move it into place if the block succeeds, remove it if not.

    In a folder of its own, what a killed writer left is found by no pattern that looks for finished files.
    """
    path = Path(path)
    folder = path.parent / f"{UNFINISHED}{uuid.uuid4().hex[:8]}"
    folder.mkdir(parents=True)
    try:
        yield folder / path.name
        os.replace(folder / path.name, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Remove below ``folder`` what killed writers left; what began within WRITING seconds may still be written by somebody."""
    for parent, names, _ in os.walk(folder):  # which passes over what is gone by then
        for left in [Path(parent, name) for name in names if name.startswith(UNFINISHED)]:
            with contextlib.suppress(FileNotFoundError):
                if time.time() - left.stat().st_mtime > WRITING:
                    shutil.rmtree(left, ignore_errors=True)


def check_writable(folder: Path) -> None:
    """Make ``folder`` if need be and write to it; RuntimeError that says what to do where that fails or where it is as good as full."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / ".writable") as probe:
            probe.touch()
        (folder / ".writable").unlink(
            missing_ok=True
        )  # another process may have asked at the same time
    except OSError as error:
        raise RuntimeError(f"{folder} cannot be written: {error.strerror}. {NEXT_STEP}") from error
    free = shutil.disk_usage(folder).free
    if free < FREE_BYTES:
        raise RuntimeError(
            f"{folder} has {free / 1e6:.0f} MB of free space left, fewer than {FREE_BYTES / 1e6:.0f}. {NEXT_STEP}"
        )


def write_bytes(path: Path, content: bytes) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, content) -> None:
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def exclusive(path: Path, busy: str = ""):
    """Hold a lock file that the system releases when this process ends, however it ends; a held lock is awaited, or with ``busy`` an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            raise RuntimeError(busy) from None
        yield


def write_csv(path: Path, frame: pd.DataFrame, digits: int = 10) -> None:
    """Ten significant digits: enough to recompute any statement, short enough to review in a diff. What was measured on some thousand images has
    fewer to begin with, and curves, which are looked at, need fewer still."""
    write_text(path, frame.to_csv(index=False, float_format=f"%.{digits}g", lineterminator="\n"))


def markdown_table(rows: list) -> str:
    """Rows of cells as a table of Markdown, the first row its head."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def write_npz(path: Path, *, compact: bool = False, **arrays: np.ndarray) -> None:
    """Arrays as np.load reads them; ``compact``: as ``read_npz`` does, a quarter smaller, and long to write: for what is committed."""
    compression, buffer = zipfile.ZIP_LZMA if compact else zipfile.ZIP_DEFLATED, io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, values in arrays.items():
            name, values = (
                _in_planes(name, np.asanyarray(values))
                if compact
                else (name, np.asanyarray(values))
            )
            member = zipfile.ZipInfo(
                f"{name}.npy"
            )  # its date is 1980: the same arrays are the same file
            member.compress_type = compression
            with archive.open(member, "w", force_zip64=values.nbytes > 2**30) as file:
                np.lib.format.write_array(file, values, allow_pickle=False)
    write_bytes(path, buffer.getvalue())


def _in_planes(name: str, values: np.ndarray) -> tuple[str, np.ndarray]:
    """The first bytes of all numbers together, then the second, ..., booleans by the bit; their dtype and number become part of the name."""
    if values.ndim != 1 or values.dtype.kind not in "bif":
        return name, values
    planes = (
        np.packbits(values)
        if values.dtype == bool
        else np.ascontiguousarray(values).view(np.uint8).reshape(len(values), values.itemsize).T
    )
    return f"{name}:{values.dtype.str}:{len(values)}", np.ascontiguousarray(planes)


def _whole_numbers(name: str, planes: np.ndarray) -> tuple[str, np.ndarray]:
    """What ``_in_planes`` was given; an array that it left as it was comes back as it is."""
    packed = PLANES.fullmatch(name)
    if not packed:
        return name, planes
    name, kind, count = packed.groups()
    if kind == "|b1":
        return name, np.unpackbits(planes, count=int(count)).astype(bool)
    return name, np.ascontiguousarray(planes.T).view(kind)[:, 0]


def write_tensors(path: Path, tensors: dict, info: dict) -> None:
    """Named tensors with JSON-able ``info`` in the header (safetensors: no pickle)."""
    from safetensors.torch import (
        save,  # with torch, which a process that only plans or shows does without
    )

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(tensors, metadata={"info": json.dumps(info)}))


# ---------------------------------------------------------------------------------------------------------------- readers
AGAIN, TRAIN_AGAIN = (
    "delete it and run the job that writes it again",
    "delete it and train the run again",
)


def one_line(error: BaseException) -> str:
    """What an error of another library says, short enough to be part of a sentence."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300]


def _complete(path: Path, content, needs: tuple[str, ...], advice: str = AGAIN):
    """The content, if it is an object that has the names ``needs``; without any it may be anything."""
    missing = (
        [name for name in needs if name not in content]
        if isinstance(content, (dict, pd.DataFrame))
        else list(needs)
    )
    if missing:
        raise ValueError(f"{path} lacks {missing}; {advice}.")
    return content


def read_json(path: Path, needs: tuple[str, ...] = ()):
    try:
        content = json.loads(Path(path).read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable JSON ({error}); {AGAIN}.") from error
    return _complete(path, content, needs)


def read_npz(path: Path, needs: tuple[str, ...] = (), advice: str = AGAIN) -> dict[str, np.ndarray]:
    with _whole(path, "an npz file", advice), np.load(path, allow_pickle=False) as archive:
        arrays = dict(_whole_numbers(name, archive[name]) for name in archive.files)
    return _complete(path, arrays, needs, advice)


def read_csv(path: Path, needs: tuple[str, ...] = (), **options) -> pd.DataFrame:
    try:
        frame = pd.read_csv(path, **options)
    except ValueError as error:  # empty, ragged, not UTF-8, words where numbers belong
        raise ValueError(
            f"{path} is not a readable CSV file ({one_line(error)}); {AGAIN}."
        ) from error
    return _complete(path, frame, needs)


def read_tensors(path: Path, needs: tuple[str, ...] = ()) -> tuple[dict, dict]:
    """The tensors and the ``info`` of a file that ``write_tensors`` wrote."""
    from safetensors.torch import load_file

    info = read_tensors_info(path, needs)
    with _whole(path, "a safetensors file", TRAIN_AGAIN):
        return load_file(str(path)), info


def read_tensors_info(path: Path, needs: tuple[str, ...] = ()) -> dict:
    """The ``info`` of such a file alone; its tensors are not read."""
    from safetensors import safe_open

    with (
        _whole(path, "a safetensors file", TRAIN_AGAIN),
        safe_open(str(path), framework="numpy") as file,
    ):
        info = json.loads((file.metadata() or {}).get("info", "{}"))
    if not isinstance(info, dict):
        raise ValueError(f"{path} says {info!r} of itself, not what it holds; {TRAIN_AGAIN}.")
    return _complete(path, info, needs, TRAIN_AGAIN)


@contextlib.contextmanager
def _whole(path: Path, kind: str, advice: str):
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        # np.load's own words on pickles tell how to load them after all, and it takes whatever it does not know for one
        why = one_line(error)
        if "pickle" in str(error):
            with path.open("rb") as file:
                pickled = "Object arrays" in str(error) or file.read(1) == PICKLE
            why = (
                "it holds pickled objects, which are never loaded"
                if pickled
                else "it begins unlike one"
            )
        raise ValueError(f"{path} is truncated or not {kind} ({why}); {advice}.") from error


# ---------------------------------------------------------------------------------------------------------------- metrics and scores
def write_metrics(
    profile: str, notebook: str, run: str, rows: list[dict], /, **same
) -> pd.DataFrame:
    """One tidy CSV per notebook and run, and that table: METRIC_COLUMNS of each of ``rows``, joined with what is the ``same`` for all (method, ...).

    Text that is absent is "", a number that is absent NaN; unknown columns and the same quantity twice are ValueErrors.
    """
    rows = [same | row for row in rows]
    if unknown := sorted({name for row in rows for name in row} - set(METRIC_COLUMNS)):
        raise ValueError(
            f"Metrics rows have unknown columns {unknown}; the columns are {METRIC_COLUMNS}."
        )
    values = [
        [row.get(name, np.nan if name in METRIC_NUMBERS else "") for name in METRIC_COLUMNS]
        for row in rows
    ]
    frame = pd.DataFrame(values, columns=METRIC_COLUMNS)
    twice = frame[frame.duplicated(METRIC_KEYS, keep=False)]
    if len(twice):
        raise ValueError(
            f"Metrics rows of {run} name the same quantity twice: {twice[METRIC_KEYS].head(2).to_dict('records')}."
        )
    write_csv(metrics_path(profile, notebook, run), frame, digits=METRIC_DIGITS)
    return frame


def read_metrics(profile: str, notebook: str = "*", run: str = "*") -> pd.DataFrame:
    """All stored metrics of a profile as one table (empty with the right columns when there are none)."""
    files = sorted((results_dir(profile) / "metrics").glob(f"{notebook}--{run}.csv"))
    text = {
        "condition": str,
        "classifier": str,
        "score": str,
        "run_hash": str,
        "commit": str,
        "variant": str,
    }
    numbers = dict.fromkeys(("value", "ci_low", "ci_high"), float)
    frames = [
        read_csv(file, tuple(METRIC_COLUMNS), dtype=text | numbers, keep_default_na=True)
        for file in files
    ]
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=METRIC_COLUMNS)
    for column in text:
        frame[column] = frame[column].fillna("").astype(object)
    return frame


def write_scores(profile: str, run: str, evaluated_on: str, arrays: dict[str, np.ndarray]) -> None:
    """One array per score, an entry per image; what says nothing new is stored short.

    An ``index`` that only counts 0, 1, 2, ... is stored empty. An array that repeats an earlier one, but for rounding, is stored as that one's name,
    with a minus where every sign is turned: the ``uncertainty`` of a method without its own is "-feature_norm". The labels of a set stand once, in
    labels--<set>.npz, unless a run was asked about others under its name. Where a prediction is right is
    stored as "linear_prediction == label", and of a ``linear_nll`` no more than where the prediction is wrong: elsewhere it is minus the log of the
    largest softmax. Of a softmax 16 significant bits are kept, of an NLL 14, of a Brier score, read for its mean, 6, of another float, read for
    its order, so few that a pair of a thousand becomes equal, and 14 at most; all of them where the values differ by less than a hundredth of
    their size.
    """
    stored: dict[str, np.ndarray] = {}
    for name, values in arrays.items():
        if name == "index" and np.array_equal(values, np.arange(len(values))):
            values = values[:0]
        stored[name] = np.asarray(
            _repeated(values, stored) or _derived(name, values, arrays) or values
        )
    if "label" in stored:
        labels = _labels(profile, evaluated_on, stored["label"])
        if labels.dtype == stored["label"].dtype and np.array_equal(labels, stored["label"]):
            stored["label"] = np.asarray(LABELS)
    stored = {name: _rounded(name, values) for name, values in stored.items()}
    for name in [
        name for name in arrays if name.endswith("_nll") and set(_behind_nll(name)) <= set(arrays)
    ]:
        implied = _nll_where_right(name, arrays)
        known = ~np.isnan(implied)
        if np.allclose(implied[known], stored[name][known], rtol=HALF, atol=HALF / 10):
            stored[name] = stored[name][~known]
    write_npz(scores_path(profile, run, evaluated_on), compact=True, **stored)


def _labels(profile: str, evaluated_on: str, found: np.ndarray | None = None) -> np.ndarray:
    """The labels that stand for a set; where none do, those ``found`` do from now on."""
    path = scores_path(profile, LABELS, evaluated_on)
    if found is not None and not path.exists():
        write_npz(path, compact=True, label=found)
    return read_npz(path, ("label",))["label"]


def _rounded(name: str, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind != "f" or values.itemsize > 4:
        return values
    if (
        not values.std(dtype=np.float64) > np.abs(values).max(initial=0) / 100
    ):  # not so of NaN or of nothing
        return values
    fraction, exponent = np.frexp(values.astype(np.float32))

    def kept(bits: int) -> np.ndarray:
        return np.ldexp(np.round(fraction * 2**bits) / 2**bits, exponent).astype(values.dtype)

    named = [bits for end, bits in SIGNIFICANT_BITS.items() if name.endswith(end)]
    if named:
        return kept(named[0])
    most = _tied(values) + TIED
    return kept(
        next((bits for bits in range(6, MOST_BITS) if _tied(kept(bits)) <= most), MOST_BITS)
    )


def _tied(values: np.ndarray) -> float:
    """The share of pairs of entries that are equal, an entry with itself included."""
    return float((np.unique(values, return_counts=True)[1] ** 2).sum() / values.size**2)


def _repeated(values: np.ndarray, earlier: dict[str, np.ndarray]) -> str:
    """The name of an earlier array of floats that these are, or "-" and its name if every sign is turned; else ""."""
    for name, other in earlier.items() if values.dtype.kind == "f" else ():
        if (other.dtype, other.shape) == (values.dtype, values.shape):
            for sign, turned in (("", values), ("-", -values)):
                if np.allclose(turned, other, rtol=REPEATED, atol=0, equal_nan=True):
                    return sign + name
    return ""


def _derived(name: str, values: np.ndarray, arrays: dict[str, np.ndarray]) -> str:
    """ "linear_prediction == label" for a ``linear_correct`` that says so; else ""."""
    prediction = name.removesuffix("_correct") + "_prediction"
    same = (
        prediction in arrays
        and "label" in arrays
        and np.array_equal(values, arrays[prediction] == arrays["label"])
    )
    return prediction + IS_THE_LABEL if same else ""


def _behind_nll(name: str) -> tuple[str, str, str]:
    """The arrays that say what a classifier's NLL is where it is right."""
    classifier = name.removesuffix("_nll")
    return f"{classifier}_max_softmax", f"{classifier}_prediction", "label"


def _nll_where_right(name: str, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """Minus the log of the largest softmax where the prediction is right, NaN elsewhere."""
    largest, prediction, label = (arrays[need] for need in _behind_nll(name))
    with np.errstate(divide="ignore"):
        return np.where(prediction == label, -np.log(largest.astype(np.float64)), np.nan).astype(
            np.float16
        )


def read_scores(
    profile: str, run: str, evaluated_on: str, needs: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    """The arrays that ``write_scores`` was given."""
    path = scores_path(profile, run, evaluated_on)
    arrays = read_npz(path, needs)
    if "label" in arrays and arrays["label"].dtype.kind == "U":
        arrays["label"] = _labels(profile, evaluated_on)
    for name, said in [
        (name, values.item()) for name, values in arrays.items() if values.dtype.kind == "U"
    ]:
        other = said.removeprefix("-").removesuffix(IS_THE_LABEL)
        complete = _complete(
            path, arrays, (other, "label") if said.endswith(IS_THE_LABEL) else (other,)
        )
        same = complete[other]
        arrays[name] = (
            same == complete["label"]
            if said.endswith(IS_THE_LABEL)
            else -same
            if said.startswith("-")
            else same.copy()
        )
    for name in [
        name
        for name in arrays
        if name.endswith("_nll") and len(arrays[name]) < max(map(len, arrays.values()))
    ]:
        whole = _nll_where_right(name, _complete(path, arrays, _behind_nll(name)))
        whole[np.isnan(whole)] = arrays[name]
        arrays[name] = whole
    if "index" in arrays and not len(arrays["index"]):
        arrays["index"] = np.arange(max(map(len, arrays.values())), dtype=arrays["index"].dtype)
    return arrays


def stored_scores(profile: str, run: str, evaluated_on: str) -> dict[str, np.ndarray]:
    """What ``read_scores`` reads; empty where no such scores are stored."""
    return (
        read_scores(profile, run, evaluated_on)
        if scores_path(profile, run, evaluated_on).exists()
        else {}
    )


# ---------------------------------------------------------------------------------------------------------------- what code depends on
# Read when the code itself is: a file that is edited while a run trains is not what measures the run.
_IMPORTED = {path: path.read_text() for path in (ROOT / "lib").rglob("*.py") if path.is_file()}


def _source(path: Path) -> str:
    return _IMPORTED[path] if path in _IMPORTED else path.read_text()


def _module_files(name: str) -> list[Path]:
    """The source files of lib.<name>, a module or a package; none if there is no such module."""
    path = ROOT / "lib" / name.replace(".", "/")
    module = path.with_suffix(".py")
    return [module] if module.exists() else sorted(path.glob("*.py"))


def source_files(source: str) -> list[Path]:
    """The files of all lib modules that Python source imports, those they import included; a package counts as one module."""
    found: dict[str, list[Path]] = {}
    waiting = set(_named_modules(source))
    while waiting:
        name = waiting.pop()
        found[name] = _module_files(name)
        for path in found[name]:
            waiting |= _named_modules(_source(path)) - found.keys()
    return [path for name in sorted(found) for path in found[name]]


@cache
def _named_modules(source: str) -> frozenset[str]:
    """Names of the lib modules that the source itself names in its imports."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "lib":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lib."):
            room = node.module.removeprefix("lib.")
            names |= {room} | {f"{room}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {
                alias.name.removeprefix("lib.")
                for alias in node.names
                if alias.name.startswith("lib.")
            }
    # Those start every notebook and change no number in it.
    known = {name for name in names if _module_files(name) and not name.startswith("pipeline")}
    rooms = {name for name in known if any(other.startswith(f"{name}.") for other in known)}
    return frozenset(known - rooms)


def write_stamp(path: Path) -> None:
    """Write the empty file <name>.<digest>, in place of any of that name with another digest."""
    for old in path.parent.glob(f"{path.stem}.????????????"):
        old.unlink()
    write_text(path, "")


@cache
def code_hash(source: str) -> str:
    """Hash of the code of all lib modules that Python source imports; comments, docstrings and layout aside."""
    trees = [ast.parse(_source(path)) for path in source_files(source)]
    for node in (node for tree in trees for node in ast.walk(tree)):
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and ast.get_docstring(node, clean=False) is not None
        ):
            node.body = node.body[1:]
    return sha256("".join(map(ast.dump, trees)))


# ---------------------------------------------------------------------------------------------------------------- provenance
def sha256(content: Path | str | bytes) -> str:
    """Hex digest of a file (Path), a text or bytes."""
    if isinstance(content, Path):
        content = content.read_bytes()
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


@cache
def commit() -> str:
    """Short commit of the code, the last that changed lib, notebooks or settings, with ``+`` where these differ from it; ``unknown`` outside a git
    checkout. One that adds results alone is not it: on another branch the same results have another.
    """
    code = ("--", "lib", "notebooks", "settings")
    name, changed = (
        _git("log", "-1", "--format=%h", "--abbrev=10", *code) or "unknown",
        _git("status", "--porcelain", *code),
    )
    return name + ("+" if changed else "")


def processor() -> str:
    """The processor's name, as its maker gives it where the system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


@cache
def provenance() -> dict:
    """Commit, library versions and hardware, as stored in every config.json and in run.json."""
    import torch

    packages = ["torch", "torchvision", "numpy", "scipy", "pandas", "scikit-learn", "matplotlib"]
    return {
        "commit": commit(),
        "python": platform.python_version(),
        "versions": {package: metadata.version(package) for package in packages},
        "hardware": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        },
    }
