"""What is stored of runs, as tables: metrics, scores of each image and training logs.

Nothing here needs a network, so that a notebook that only draws does not import torch.

Example:
    >>> from lib.evaluation import results
    >>> runs = results.measured_runs("standard")
    >>> rows = results.read("augmentation", runs)   # FileNotFoundError where nothing is stored
"""

from collections.abc import Callable, Iterable, Sequence

import pandas as pd

from lib.evaluation import intervals
from lib.runs import settings as run_settings
from lib.runs import store
from lib.runs.store import SUITE

COMPARED = (run_settings.PROTOCOL, "vit")  # the groups of runs that methods are compared by
UNTRAINED = ("random", "random_vit", "random_latent")
REFERENCES = (*UNTRAINED, "raw_pixels")  # rows of every accuracy table that a run has to beat
KNN_KEYS = ["dataset", "epochs", "method", "backbone"]
FACTORS = "factors"  # parts of the suite whose name begins so probe content and style


# ---------------------------------------------------------------------------------- which runs
def measured(runs: Iterable[dict]) -> list[dict]:
    """The runs whose metrics are stored."""
    return [
        run for run in runs if store.has_metrics(run["profile"], SUITE, run_settings.run_name(run))
    ]


def required(runs: Iterable[dict], profile: str, paper: str = "all") -> list[dict]:
    """The runs whose metrics are stored.

    FileNotFoundError with the command that makes them where there is none.

    Example:
        runs = required(settings.runs("standard", group="lengths"), "standard")
    """
    stored = measured(runs)
    if not stored:
        command = f"make reproduce PROFILE={profile}"
        if paper != "all":
            command += f" PAPER={paper}"
        shorter = ""
        if profile == "standard":
            shorter = ' (many hours), or call make reproduce and set profile = "quick"'
        raise FileNotFoundError(
            f"No run of profile {profile!r} has stored metrics. Make them: {command}{shorter}."
        )
    return stored


def measured_runs(
    profile: str, paper: str = "all", group: str = run_settings.PROTOCOL
) -> list[dict]:
    """``required`` of the runs that a profile lists."""
    return required(run_settings.runs(profile, paper, group), profile, paper)


def compared_runs(profile: str, paper: str = "all") -> list[dict]:
    """The measured runs that methods are compared by: the protocol's, and those on a ViT.

    Example:
        runs = compared_runs("standard", paper="vs2")
    """
    return measured(listed_to_compare(profile, paper))


def listed_to_compare(profile: str, paper: str = "all") -> list[dict]:
    """The runs that a profile lists to compare methods by, measured or not."""
    runs = []
    for group in COMPARED:
        runs += run_settings.runs(profile, paper, group)
    return runs


# ------------------------------------------------------------------------------ what they have
def stacked(
    runs: Iterable[dict], read_run: Callable[[dict], pd.DataFrame], what: str
) -> pd.DataFrame:
    """What is stored of each of these runs, as one table: a row's run comes first.

    read_run: from a run's settings to its rows, none where nothing is stored. Columns: run, method,
    seed, dataset, epochs, and those that are read. FileNotFoundError with the command that makes
    ``what`` where no run has any.
    """
    frames = []
    profile = "standard"
    for run in runs:
        profile = run["profile"]
        frame = read_run(run)
        if frame.empty:
            continue
        place = {"run": run_settings.run_name(run)}
        place |= {column: run[column] for column in ("method", "seed", "dataset", "epochs")}
        frame = frame.drop(columns=[column for column in place if column in frame])
        for position, (column, value) in enumerate(place.items()):
            frame.insert(position, column, value)
        frames.append(frame)
    if not frames:
        raise FileNotFoundError(
            f"None of these runs has stored {what}; make it with: make reproduce PROFILE={profile}"
        )
    return pd.concat(frames, ignore_index=True)


def read(name: str, runs: Iterable[dict]) -> pd.DataFrame:
    """The stored metrics of one part ("*": of all), of those of these runs that have it.

    Columns as lib.runs.store.read_metrics, with run, dataset and epochs of the run.
    FileNotFoundError with the command that makes them where no run has any.
    """

    def of_run(run: dict) -> pd.DataFrame:
        return store.read_metrics(run["profile"], name, run_settings.run_name(run))

    return stacked(runs, of_run, f"metrics of the part {name!r}")


def read_factors(runs: Iterable[dict]) -> pd.DataFrame:
    """The probes of content and style of these runs, of all sets with known styles.

    Columns: those of ``read``, and set, whose factors are probed. Empty where none is probed.
    """
    rows = read("*", runs)
    rows = rows[rows.part.str.startswith(f"{FACTORS}-")].reset_index(drop=True)
    return rows.assign(set=rows.part.str.removeprefix(f"{FACTORS}-"))


def read_scores(runs: Iterable[dict], suffix: str = "") -> pd.DataFrame:
    """Scores of each image, of those of these runs that have them: a row a run and image.

    suffix: "" for the scores of the suite on the test set, or that of a part, such as "_augmented".
    Columns: run, method, seed, dataset, epochs, and one for each stored array. FileNotFoundError
    as ``read``.
    """

    def of_run(run: dict) -> pd.DataFrame:
        name = f"{run['dataset']}{suffix}"
        arrays = store.stored_scores(run["profile"], run_settings.run_name(run), name)
        return pd.DataFrame({key: values for key, values in arrays.items() if values.ndim == 1})

    return stacked(runs, of_run, f"scores{suffix}")


def read_logs(runs: Iterable[dict]) -> pd.DataFrame:
    """The training logs of these runs: run, method, seed, dataset, epochs and the logged columns.

    FileNotFoundError as ``read``, where none of them has one.
    """

    def of_run(run: dict) -> pd.DataFrame:
        path = store.run_dir(run["profile"], run_settings.run_name(run)) / "log.csv"
        return store.read_csv(path) if path.exists() else pd.DataFrame()

    return stacked(runs, of_run, "log")


def learned(runs: Sequence[dict]) -> pd.DataFrame:
    """Whether these runs learned something: k-NN accuracy beside the untrained network's.

    One row a data set, length and method: knn in per cent with its interval, seeds, and untrained
    and raw_pixels on the same data, NaN where these are not stored. A number of a method that is
    not above the untrained network says nothing of the method.

    Example:
        learned(compared_runs("standard"))[["method", "knn", "untrained"]]
    """
    rows = []
    by_method = _knn_beside_references(runs).groupby(KNN_KEYS, sort=False)
    for (dataset, epochs, method, _), part in by_method:
        row = {"dataset": dataset, "epochs": epochs, "method": method}
        interval = intervals.metric_over_seeds(part)
        row["knn"] = interval.pop("mean")
        row |= part[["untrained", "raw_pixels"]].iloc[0].to_dict()
        rows.append(row | interval)
    return pd.DataFrame(rows)


def beats_untrained(runs: Sequence[dict]) -> pd.Series:
    """Whether the interval of a run's k-NN accuracy lies above the untrained network's.

    The untrained network: of the same backbone, on the same data, mean over its seeds. Indexed by
    method and run. False where no untrained network is stored; a run without k-NN has no row.

    Example:
        beats_untrained(compared_runs("standard")).groupby("method").all()
    """
    rows = _knn_beside_references(runs).set_index(["method", "run"])
    return rows.ci_low > rows.untrained


def _knn_beside_references(runs: Sequence[dict]) -> pd.DataFrame:
    """The k-NN accuracy of each trained run in per cent, with untrained and raw_pixels."""
    listed = run_settings.runs(runs[0]["profile"])
    references = _knn_rows(run for run in listed if run["method"] in REFERENCES)
    is_raw = references.method == "raw_pixels"
    untrained = references[~is_raw].groupby(["dataset", "backbone"]).value.mean()
    raw_pixels = references[is_raw].groupby("dataset").value.mean()
    rows = _knn_rows(run for run in runs if run["method"] not in REFERENCES)
    rows = rows.join(untrained.rename("untrained"), on=["dataset", "backbone"])
    return rows.join(raw_pixels.rename("raw_pixels"), on="dataset")


def _knn_rows(runs: Iterable[dict]) -> pd.DataFrame:
    frames = []
    for run in runs:
        name = run_settings.run_name(run)
        frame = store.read_metrics(run["profile"], SUITE, name)
        if frame.empty:
            continue
        is_knn = (frame.metric == "accuracy") & (frame.classifier == "knn")
        frame = frame[is_knn & (frame.condition == "clean")]
        place = {column: run[column] for column in ("dataset", "epochs", "backbone")}
        frames.append(frame.assign(run=name, **place))
    if not frames:
        return pd.DataFrame(columns=[*KNN_KEYS, "run", "value", "ci_low"])
    rows = pd.concat(frames, ignore_index=True)
    columns = ["value", "ci_low", "ci_high"]
    return rows.assign(**{column: 100 * rows[column] for column in columns})
