"""Where every stored file lies, how it is written and read, and where it came from.

One run is one folder, results/<profile>/runs/<run>:

    config.json         what the run is: settings, data, hash, commit, versions, hardware, seconds
    log.csv             the training, by step
    metrics.csv         what was measured, one row a number
    scores-<set>.npz    arrays with one entry for each image of a set

Weights, checkpoints and embeddings lie beside them and are not in git.

Every kind of file has one writer here, and every write is atomic: the content goes to a folder of
its own beside the file and is moved into place when complete. A reader never meets half a file, and
an interrupted writer leaves the old one.
"""

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
import uuid
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
# A relative RESULTS_DIR is below the repository, wherever a kernel was started.
RESULTS = ROOT / (os.environ.get("RESULTS_DIR") or "results")
UNFINISHED = ".unfinished-"  # begins the name of a folder in which a file is being written
FREE_BYTES = 50_000_000  # with less free space nothing is begun
NEXT_STEP = (
    "Free space or make it writable, or choose another folder (RESULTS_DIR). What is done stays "
    "done: call the same command again."
)
AGAIN = "delete it and run the job that writes it again"
TRAIN_AGAIN = "delete it and train the run again"

# The part of the evaluation suite that every run has; lib.evaluation.parts lists the others.
SUITE = "suite"
MEASURED_COLUMNS = [
    "evaluated_on",
    "condition",
    "classifier",
    "score",
    "metric",
    "value",
    "ci_low",
    "ci_high",
    "n",
]
# The columns of metrics.csv. part: the part of the evaluation suite that measured the row.
ROW_COLUMNS = ["part", *MEASURED_COLUMNS, "run_hash", "evaluation_hash", "commit"]
# What read_metrics adds from config.json.
RUN_COLUMNS = ["method", "trained_on", "variant", "seed", "profile"]
METRIC_COLUMNS = RUN_COLUMNS + ROW_COLUMNS
QUANTITY = ["part", "evaluated_on", "condition", "classifier", "score", "metric"]
NUMBERS = ("value", "ci_low", "ci_high", "n")
METRIC_DIGITS = 5  # significant digits: some thousand images give no more


# ------------------------------------------------------------------------------------------- paths
def default_data_dir() -> Path:
    """The folder of data sets: DATA_DIR, a relative one below the repository, or data."""
    return ROOT / (os.environ.get("DATA_DIR") or "data")


def plain_name(name: str, purpose: str) -> str:
    """The name, if it can be that of one file or folder and leads nowhere else.

    ValueError otherwise; purpose: "a folder of results", as the message has it.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]*", name):
        raise ValueError(
            f"{name!r} cannot name {purpose}: use letters, digits and _ . + - (no folders)."
        )
    return name


def results_dir(profile: str) -> Path:
    return RESULTS / plain_name(profile, "a folder of results")


def run_dir(profile: str, run: str) -> Path:
    return results_dir(profile) / "runs" / run


def config_path(profile: str, run: str) -> Path:
    return run_dir(profile, run) / "config.json"


def metrics_path(profile: str, run: str) -> Path:
    return run_dir(profile, run) / "metrics.csv"


def scores_path(profile: str, run: str, evaluated_on: str) -> Path:
    return run_dir(profile, run) / f"scores-{evaluated_on}.npz"


def encoder_path(name: str, profile: str = "standard") -> Path:
    return results_dir(profile) / "encoders" / f"{name}.safetensors"


def table_path(profile: str, name: str) -> Path:
    """The CSV file of a notebook's table."""
    return results_dir(profile) / "tables" / f"{plain_name(name, 'a table')}.csv"


def run_configs(profile: str) -> dict[Path, dict]:
    """config.json of every stored run, by its folder.

    Runs on somebody's own images are left out: they are not in git.
    """
    configs = {}
    for path in sorted((results_dir(profile) / "runs").glob("*/config.json")):
        if "-own_images-" not in path.parent.name:
            configs[path.parent] = read_json(path)
    return configs


# --------------------------------------------------------------------------------- atomic writers
@contextlib.contextmanager
def atomic_path(path: Path):
    """Yield a path of the same name in a new folder beside ``path``; move it into place at the end.

    Where the block fails it is removed. The folder hides what a killed writer left from patterns
    that look for finished files.
    """
    path = Path(path)
    folder = path.parent / f"{UNFINISHED}{uuid.uuid4().hex[:8]}"
    folder.mkdir(parents=True)
    try:
        yield folder / path.name
        os.replace(folder / path.name, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_writable(folder: Path) -> None:
    """Make ``folder`` if need be and write to it; RuntimeError where that fails or it is full."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(folder / ".writable") as probe:
            probe.touch()
        # Another process may have done the same at the same time.
        (folder / ".writable").unlink(missing_ok=True)
    except OSError as error:
        raise RuntimeError(f"{folder} cannot be written: {error.strerror}. {NEXT_STEP}") from error
    free = shutil.disk_usage(folder).free
    if free < FREE_BYTES:
        raise RuntimeError(
            f"{folder} has {free / 1e6:.0f} MB of free space left, fewer than "
            f"{FREE_BYTES / 1e6:.0f}. {NEXT_STEP}"
        )


@contextlib.contextmanager
def exclusive(path: Path, busy: str = ""):
    """Hold a lock file, which the system releases when this process ends, however it ends.

    A lock that another process holds is awaited; with ``busy`` it is a RuntimeError of that text.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    operation = fcntl.LOCK_EX | fcntl.LOCK_NB if busy else fcntl.LOCK_EX
    with open(path, "w") as file:
        try:
            fcntl.flock(file, operation)
        except BlockingIOError:
            raise RuntimeError(busy) from None
        yield


def write_bytes(path: Path, content: bytes) -> None:
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, content) -> None:
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: Path, frame: pd.DataFrame, digits: int = 10) -> None:
    """Ten significant digits: enough to recompute any statement, and short enough for a diff."""
    write_text(path, frame.to_csv(index=False, float_format=f"%.{digits}g", lineterminator="\n"))


def write_npz(path: Path, **arrays: np.ndarray) -> None:
    """Named arrays; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    write_bytes(path, buffer.getvalue())


def write_tensors(path: Path, tensors: dict, info: dict) -> None:
    """Named tensors with JSON-able ``info`` in the header (safetensors: no pickle)."""
    from safetensors.torch import save  # slow to import: torch

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_bytes(path, save(tensors, metadata={"info": json.dumps(info)}))


def markdown_table(rows: list) -> str:
    """Rows of cells as a table of Markdown, the first row its head."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


# ----------------------------------------------------------------------------------------- readers
# ``needs`` are the names that a file must have; ``advice`` says what to do with a bad file.
def read_json(path: Path, needs: tuple[str, ...] = ()):
    try:
        content = json.loads(Path(path).read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable JSON ({error}); {AGAIN}.") from error
    return _complete(path, content, needs)


def read_npz(path: Path, needs: tuple[str, ...] = (), advice: str = AGAIN) -> dict[str, np.ndarray]:
    with _readable(path, "an npz file", advice), np.load(path, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    return _complete(path, arrays, needs, advice)


def read_csv(path: Path, needs: tuple[str, ...] = (), **options) -> pd.DataFrame:
    """options: those of pandas.read_csv."""
    try:
        frame = pd.read_csv(path, **options)
    except ValueError as error:  # empty, ragged, not UTF-8, words in place of numbers
        raise ValueError(
            f"{path} is not a readable CSV file ({one_line(error)}); {AGAIN}."
        ) from error
    return _complete(path, frame, needs)


def read_tensors(path: Path, needs: tuple[str, ...] = ()) -> tuple[dict, dict]:
    """The tensors and the ``info`` of a file that ``write_tensors`` wrote."""
    from safetensors.torch import load_file  # slow to import: torch

    info = read_tensors_info(path, needs)
    with _readable(path, "a safetensors file", TRAIN_AGAIN):
        return load_file(str(path)), info


def read_tensors_info(path: Path, needs: tuple[str, ...] = ()) -> dict:
    """The ``info`` of such a file, without reading its tensors."""
    from safetensors import safe_open

    with _readable(path, "a safetensors file", TRAIN_AGAIN):
        with safe_open(str(path), framework="numpy") as file:
            info = json.loads((file.metadata() or {}).get("info", "{}"))
    if not isinstance(info, dict):
        raise ValueError(f"{path} describes itself by {info!r}, not by names; {TRAIN_AGAIN}.")
    return _complete(path, info, needs, TRAIN_AGAIN)


def one_line(error: BaseException) -> str:
    """The message of another library's error, short enough to be part of a sentence."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300]


def _complete(path: Path, content, needs: tuple[str, ...], advice: str = AGAIN):
    """The content, if it has all the names it needs. Without needs it may be anything."""
    names = content if isinstance(content, (dict, pd.DataFrame)) else ()
    missing = [name for name in needs if name not in names]
    if missing:
        raise ValueError(f"{path} lacks {missing}; {advice}.")
    return content


@contextlib.contextmanager
def _readable(path: Path, kind: str, advice: str):
    """Turn any error of a reader but a missing file into a ValueError that names the file.

    np.load takes whatever it does not know for a pickle, and its message tells how to load that
    after all. So pickles have a message of our own.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        reason = one_line(error)
        if "pickle" in reason:
            reason = "it begins unlike one"
            with path.open("rb") as file:
                is_pickle = file.read(1) == b"\x80"  # every pickle since protocol 2
            if is_pickle or "Object arrays" in str(error):
                reason = "it holds pickled objects, which are never loaded"
        raise ValueError(f"{path} is truncated or not {kind} ({reason}); {advice}.") from error


# -------------------------------------------------------------------------------- metrics of a run
def write_metrics(
    profile: str,
    part: str,
    run: str,
    rows: list[dict],
    run_hash: str = "",
    evaluation_hash: str = "",
) -> pd.DataFrame:
    """Store rows of metrics as a part of a run's metrics.csv, and return them with RUN_COLUMNS.

    Rows have columns of MEASURED_COLUMNS; an absent text is empty, an absent number NaN. They
    replace those of the same part. The run must have its config.json. ValueError for an unknown
    column and for the same quantity twice.
    """
    unknown = sorted(set().union(*rows) - set(MEASURED_COLUMNS))
    if unknown:
        raise ValueError(
            f"Metrics rows have unknown columns {unknown}; the columns are {MEASURED_COLUMNS}."
        )
    frame = pd.DataFrame(rows, columns=ROW_COLUMNS).assign(
        part=part, run_hash=run_hash, evaluation_hash=evaluation_hash, commit=commit()
    )
    frame = _with_types(frame)
    twice = frame[frame.duplicated(QUANTITY, keep=False)]
    if len(twice):
        raise ValueError(
            f"Metrics rows of {run} name the same quantity twice: "
            f"{twice[QUANTITY].head(2).to_dict('records')}."
        )
    path = metrics_path(profile, run)
    with exclusive(results_dir(profile) / ".done" / "locks" / f"{run}.lock"):
        parts = [frame]
        if path.exists():
            stored = _read_rows(path)
            parts.append(stored[stored.part != part])
        together = pd.concat(parts).sort_values("part", kind="stable").astype({"n": "Int64"})
        write_csv(path, together, digits=METRIC_DIGITS)
    return _of_run(profile, run, frame)


def read_metrics(profile: str, part: str = "*", run: str = "*") -> pd.DataFrame:
    """Stored metrics with METRIC_COLUMNS; part or run "*": of all.

    Example:
        >>> rows = read_metrics("standard", "suite")
        >>> rows[rows.metric == "accuracy"].groupby(["method", "classifier"]).value.mean()
    """
    frames = []
    for path in sorted((results_dir(profile) / "runs").glob(f"{run}/metrics.csv")):
        rows = _read_rows(path)
        if part != "*":
            rows = rows[rows.part == part]
        if len(rows):
            frames.append(_of_run(profile, path.parent.name, rows))
    if not frames:
        return pd.DataFrame(columns=METRIC_COLUMNS)
    return pd.concat(frames, ignore_index=True)


def has_metrics(profile: str, part: str, run: str) -> bool:
    path = metrics_path(profile, run)
    return path.exists() and (_read_rows(path).part == part).any()


def _read_rows(path: Path) -> pd.DataFrame:
    """metrics.csv as it is stored. Every write is a new file, which is read again."""
    stat = path.stat()
    return _parsed_rows(path, stat.st_ino, stat.st_mtime_ns)


# Notebooks ask for the same few hundred small files again and again.
@lru_cache(maxsize=1024)
def _parsed_rows(path: Path, inode: int, modified: int) -> pd.DataFrame:
    types = dict.fromkeys(ROW_COLUMNS, str) | dict.fromkeys(NUMBERS, float)
    return _with_types(read_csv(path, tuple(ROW_COLUMNS), dtype=types))


def _with_types(frame: pd.DataFrame) -> pd.DataFrame:
    """Absent texts as "", absent numbers as NaN."""
    typed = {}
    for name in ROW_COLUMNS:
        if name in NUMBERS:
            typed[name] = frame[name].astype(float)
        else:
            typed[name] = frame[name].astype(object).fillna("")
    return pd.DataFrame(typed)


def _of_run(profile: str, run: str, rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of one run with RUN_COLUMNS before them; n whole where every row has one."""
    config = read_json(config_path(profile, run), ("settings", "data"))
    settings = config["settings"]
    method = settings["method"]
    seed = settings.get("seed", np.nan)
    columns = {
        "method": method,
        "trained_on": config["data"]["title"],
        "variant": _variant(run, method, settings["dataset"], seed),
        "seed": seed,
        "profile": profile,
    }
    if rows.n.notna().all():
        columns["n"] = rows.n.astype(np.int64)
    return rows.assign(**columns)[METRIC_COLUMNS]


def _variant(run: str, method: str, dataset: str, seed: int) -> str:
    """What a run's name has between data set and seed."""
    match = re.fullmatch(re.escape(f"{method}-{dataset}-") + f"(.*)-seed{seed}", run)
    return match[1] if match else ""


# ---------------------------------------------------------------------------- scores of each image
def write_scores(profile: str, run: str, evaluated_on: str, arrays: dict[str, np.ndarray]) -> None:
    """One array a score, with one entry for each image of a set."""
    write_npz(scores_path(profile, run, evaluated_on), **arrays)


def read_scores(
    profile: str, run: str, evaluated_on: str, needs: tuple[str, ...] = ()
) -> dict[str, np.ndarray]:
    """The arrays that ``write_scores`` stored; ValueError where one of ``needs`` is missing."""
    return read_npz(scores_path(profile, run, evaluated_on), needs)


def stored_scores(profile: str, run: str, evaluated_on: str) -> dict[str, np.ndarray]:
    """What ``read_scores`` reads; empty where no such scores are stored."""
    if scores_path(profile, run, evaluated_on).exists():
        return read_scores(profile, run, evaluated_on)
    return {}


# -------------------------------------------------------------------------------------- provenance
def sha256(content: Path | str) -> str:
    """Hex digest of a file (Path) or a text."""
    if isinstance(content, str):
        return hashlib.sha256(content.encode()).hexdigest()
    return hashlib.sha256(content.read_bytes()).hexdigest()


def _git(*arguments: str) -> str:
    """What git prints; empty where it fails or is not there."""
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


@cache
def commit() -> str:
    """Short commit of the code: the last that changed lib, notebooks or settings.

    It ends in ``+`` where these differ from it, and is ``unknown`` outside a git checkout. A commit
    of results is not it: on another branch the same results have another.
    """
    code = ("--", "lib", "notebooks", "settings")
    name = _git("log", "-1", "--format=%h", "--abbrev=10", *code) or "unknown"
    if _git("status", "--porcelain", *code):
        name += "+"
    return name


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
    import torch  # slow to import

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
