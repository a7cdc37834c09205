"""Our number for a part of a claim: from the metrics of runs, or from a notebook's table.

Everything is read from what is stored; a number that is not stored is None, never an error.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from lib.evaluation import intervals, results
from lib.runs import settings, store

KEY = ("metric", "classifier", "condition", "score")
IN_METRICS = {"condition": "clean", "classifier": "", "score": ""}  # where ``ours`` does not say
VALUES = ["value", "ci_low", "ci_high", "n"]
OF_A_METRIC = {*KEY, "method", "dataset", "epochs", "evaluated_on", "minus", "over"}
PER_CENT = ("%", "points")  # units in which stored fractions are multiplied by 100


@dataclass(frozen=True)
class Measured:
    """A number with its 95 % interval, how many seeds it has, and the settings of its runs."""

    value: float
    low: float
    high: float
    seeds: int
    runs: tuple[dict, ...] = ()
    has_learned: bool = True  # False: a table says that nothing behind it learned anything


class Stored:
    """What a profile has stored, read once for all parts."""

    def __init__(self, profile: str):
        self.profile = profile
        self.runs = {settings.run_name(run): run for run in settings.runs(profile)}
        self._usual: dict[tuple[str, str], dict[str, dict]] = {}  # (method, data set) -> runs
        for name, run in self.runs.items():
            if settings.is_usual_at_any_length(run):
                self._usual.setdefault((run["method"], run["dataset"]), {})[name] = run
        self._metrics: dict[str, dict[tuple, list[dict]]] = {}

    # ------------------------------------------------------------------------------- the number
    def number(
        self, ours: dict, data: Sequence[str] = (), epochs: int | None = None, unit: str = ""
    ) -> Measured | None:
        """Our number for what settings/claims.toml says under ``ours``; None if nothing is stored.

        ours: {table, value, <column>: <value>, ...}, one row of a table; or {method, metric,
        classifier, condition, score, evaluated_on, dataset, epochs}, one metric of the method's
        usual runs, and of these ``minus`` or ``over`` the same with other values, paired by seed.
        data, epochs: the paper's own. Without a dataset in ``ours`` the paper's is taken where it
        is stored, otherwise the one that the profile compares methods on. epochs in ``ours`` is the
        length that stands for the paper's on such another set; without it the longest is taken.
        """
        if not ours:
            return None
        if "table" in ours:
            return self._in_table(ours)
        unknown = sorted(set(ours) - OF_A_METRIC)
        if unknown:
            raise ValueError(f"{ours} of settings/claims.toml: nothing reads {unknown}.")
        scale = 100.0 if unit in PER_CENT else 1.0
        if "dataset" in ours:
            sets = [ours["dataset"]]
        else:
            sets = [*data, settings.profile_settings(self.profile)["dataset"]]
        for dataset in dict.fromkeys(sets):
            number = self._in_metrics(ours, dataset, dataset in data, epochs, scale)
            if number is not None:
                return number
        return None

    def _in_metrics(
        self, ours: dict, dataset: str, is_papers: bool, epochs: int | None, scale: float
    ) -> Measured | None:
        query = {key: value for key, value in ours.items() if key not in ("minus", "over")}
        query["dataset"] = dataset
        first = self._by_length(query)
        second = first
        other = ours.get("minus", ours.get("over"))
        if other is not None:
            second = self._by_length(query | other)
        wanted = epochs if is_papers else ours.get("epochs")
        lengths = _lengths(first, second, wanted, "epochs" in ours)
        if lengths is None:
            return None
        if other is None:
            return _level(first[lengths[0]], scale, self.runs)
        sides = first[lengths[0]], second[lengths[1]]
        return _compared(*sides, scale, self.runs, ratio="over" in ours)

    def _by_length(self, query: dict) -> dict[int, pd.DataFrame]:
        """Epochs -> the metric of the method's usual runs on a set, a row a seed (the index)."""
        lengths: dict[int, list] = {}
        for name, run in self._usual.get((query["method"], query["dataset"]), {}).items():
            row = self._metric(name, query)
            if row is not None:
                lengths.setdefault(run["epochs"], []).append(row | {"seed": run["seed"]})
        return {epochs: pd.DataFrame(rows).set_index("seed") for epochs, rows in lengths.items()}

    def _metric(self, name: str, query: dict) -> dict | None:
        """One metric of one run: value, ci_low, ci_high, n, run; ValueError for more than one."""
        key = tuple(query.get(column, IN_METRICS.get(column)) for column in KEY)
        rows = self._of_run(name).get(key, [])
        if "evaluated_on" in query:
            rows = [row for row in rows if row["evaluated_on"] == query["evaluated_on"]]
        if not rows:
            return None
        sets = {row["evaluated_on"] for row in rows}
        if len(sets) > 1:
            raise ValueError(
                f"{query} of settings/claims.toml is measured on {sorted(sets)}; "
                "name one as evaluated_on."
            )
        return {column: rows[0][column] for column in VALUES} | {"run": name}

    def _of_run(self, name: str) -> dict[tuple, list[dict]]:
        """The stored metrics of a run by KEY; what several notebooks measured is there twice."""
        if name not in self._metrics:
            by_key: dict[tuple, list[dict]] = {}
            rows = store.read_metrics(self.profile, "*", name).dropna(subset=["value"])
            # the title of a set may have its number of images behind
            rows["evaluated_on"] = rows.evaluated_on.str.split(" (", regex=False).str[0]
            for row in rows[[*KEY, *VALUES, "evaluated_on"]].to_dict("records"):
                by_key.setdefault(tuple(row[column] for column in KEY), []).append(row)
            self._metrics[name] = by_key
        return self._metrics[name]

    def _in_table(self, ours: dict) -> Measured | None:
        path = store.table_path(self.profile, ours["table"])
        if not path.exists() or path.stat().st_size < 2:  # a table without rows may have no header
            return None
        rows = store.read_csv(path)
        wanted = {key: value for key, value in ours.items() if key not in ("table", "value")}
        if rows.empty:
            return None
        missing = {*wanted, ours["value"]} - set(rows.columns)
        if missing:
            raise ValueError(f"{path.name} has no columns {sorted(missing)}, which {ours} names.")
        for column, value in wanted.items():
            is_number = isinstance(value, float)
            rows = rows[np.isclose(rows[column], value) if is_number else rows[column] == value]
        rows = rows.dropna(subset=[ours["value"]])
        if len(rows) > 1:
            raise ValueError(f"{len(rows)} rows of {path.name} answer {ours}; name more columns.")
        if rows.empty:
            return None
        row = rows.iloc[0]
        return Measured(
            value=row[ours["value"]],
            low=row.get("ci_low", np.nan),
            high=row.get("ci_high", np.nan),
            seeds=int(row.get("seeds", 1)),
            runs=self._named_runs(row),
            has_learned=bool(row.get("counts", True)),
        )

    def _named_runs(self, row: pd.Series) -> tuple[dict, ...]:
        """The settings of the runs that a row of a table names; a retired run has none."""
        named = row.get("runs")
        names = named.split() if isinstance(named, str) else []
        return tuple(self.runs[name] for name in dict.fromkeys(names) if name in self.runs)

    # ---------------------------------------------------------------------------- which runs count
    def has_learned(self, number: Measured, may_collapse: bool = False) -> bool:
        """Whether the runs behind a number learned something: each beats the untrained network.

        may_collapse: one that does is enough, as a network that collapses is part of the answer.
        A comparison with the untrained network itself needs none: that it is not beaten is the
        answer. So with a number that names no runs.
        """
        if not number.has_learned:
            return False
        names = [settings.run_name(run) for run in number.runs if run["epochs"]]
        if may_collapse and len(names) < len(number.runs):
            return True
        beats = [self.beats_untrained.get(name, False) for name in names]
        if not beats:
            return True
        return any(beats) if may_collapse else all(beats)

    @cached_property
    def beats_untrained(self) -> dict[str, bool]:
        """Run name -> whether its k-NN accuracy lies above the untrained network's."""
        return results.beats_untrained(list(self.runs.values())).droplevel("method").to_dict()


def _lengths(first: dict, second: dict, wanted: int | None, exact: bool) -> tuple[int, int] | None:
    """The epochs of the two sides: those wanted, else the most in common, else each one's most.

    exact: the wanted ones or none. None where the two have no seed in common. A network that is not
    trained has every length.
    """

    common = []
    for epochs, rows in first.items():
        others = epochs if epochs in second else 0
        if others in second and _share_a_seed(rows, second[others]):
            if epochs == wanted:
                return epochs, others
            common.append((epochs, others))
    if exact or not first or not second:
        return None
    if common:
        return max(common)
    longest = max(first), max(second)
    return longest if _share_a_seed(first[longest[0]], second[longest[1]]) else None


def _share_a_seed(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    return len(first.index.intersection(second.index)) > 0


def _level(rows: pd.DataFrame, scale: float, runs: dict[str, dict]) -> Measured:
    interval = intervals.metric_over_seeds(rows)
    return Measured(
        value=scale * interval["mean"],
        low=scale * interval["ci_low"],
        high=scale * interval["ci_high"],
        seeds=interval["seeds"],
        runs=tuple(runs[name] for name in rows.run),
    )


def _compared(
    first: pd.DataFrame, second: pd.DataFrame, scale: float, runs: dict[str, dict], ratio: bool
) -> Measured:
    """first minus second, or over it, in the seeds that both have."""
    difference = intervals.metric_difference(first, second, scale, ratio)
    seeds = first.index.intersection(second.index)
    names = dict.fromkeys([*first.run[seeds], *second.run[seeds]])
    return Measured(
        value=difference["difference"],
        low=difference["ci_low"],
        high=difference["ci_high"],
        seeds=difference["seeds"],
        runs=tuple(runs[name] for name in names),
    )
