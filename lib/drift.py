"""The drift gate: the numbers that a profile is expected to give, with tolerances, and how far the stored ones are from them.

settings/expected_<profile>.csv holds them, accepted once from runs that were looked at. On one machine with the same versions the same seed gives the
same numbers; across machines the order of summation differs, trainings part ways after some steps, and a number may move as far as between two
seeds. The tolerances allow that and no more: a wrong loss, augmentation, split or measure moves numbers further. A processor with bfloat16 trains in
another precision than one without, from the first step on: numbers of such runs may move OTHER_PRECISION times as far.

    python -m lib.drift quick             compare what is stored with what is expected
    python -m lib.drift quick --accept    take what is stored as what is expected from now on
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from lib import artifacts
from lib.artifacts import MEASURED_BY

PROFILES = ("smoke", "quick")
KEYS = artifacts.METRIC_KEYS
# Absolute floor and share of the value that a number may move; proportions are also given their own sampling error, SAMPLING half intervals.
TOLERANCES = {
    "accuracy": (0.08, 0.0), "correctness_auroc": (0.08, 0.0), "ood_auroc": (0.25, 0.0), "effective_rank": (2.0, 0.5), "nll": (0.25, 0.3),
    "aurc": (0.15, 0.0),  # it moves with the accuracy and with the order of the images: by more than either
}  # fmt: skip
SAMPLING = 2.0
OTHER_PRECISION = 2.0
REMEDY = "If a change was meant to move them, look at the figures, then accept: python -m lib.drift {profile} --accept"


def has_expected(profile: str) -> bool:
    return profile in PROFILES and expected_path(profile).exists()


def expected_path(profile: str) -> Path:
    if profile not in PROFILES:
        raise ValueError(f"Profile {profile!r} has no expected values; those that have are {list(PROFILES)}.")
    return artifacts.ROOT / "settings" / f"expected_{profile}.csv"


def gated(metrics: pd.DataFrame) -> pd.DataFrame:
    """The rows of metrics that the gate looks at: the battery of every run, of the measures that have a tolerance, not under altered images."""
    asked = (metrics.condition == "clean") | (metrics.metric == "ood_auroc")
    return metrics[(metrics.notebook == MEASURED_BY) & asked & metrics.metric.isin(list(TOLERANCES))]


def tolerance(metrics: pd.DataFrame) -> np.ndarray:
    """How far each row may move: max(floor, share x |value|) + SAMPLING x half its confidence interval (none: 0)."""
    floor, share = np.array([TOLERANCES[name] for name in metrics.metric]).reshape(-1, 2).T
    half = np.nan_to_num((metrics.ci_high - metrics.ci_low).to_numpy(float) / 2)
    return np.maximum(floor, share * metrics.value.abs().to_numpy(float)) + SAMPLING * half


def _precisions(profile: str) -> dict[str, str]:
    """What the stored runs were trained in, by their hash."""
    return {config["run_hash"]: config["precision"] for config in artifacts.run_configs(profile).values() if "precision" in config}


def accept(profile: str) -> Path:
    """Write the stored numbers of a profile as the expected ones; FileNotFoundError where there are none."""
    rows = gated(artifacts.read_metrics(profile))
    if rows.empty:
        raise FileNotFoundError(f"Profile {profile!r} has no stored metrics: run make reproduce PROFILE={profile} first.")
    if rows.value.isna().any():
        raise ValueError(f"Not a number cannot be expected: {rows[rows.value.isna()][KEYS].iloc[0].to_dict()}.")
    rows = rows.assign(tolerance=tolerance(rows).round(4), precision=rows.run_hash.map(_precisions(profile)))
    table = rows[[*KEYS, "value", "tolerance", "precision"]]
    artifacts.write_csv(expected_path(profile), table.sort_values(KEYS))
    return expected_path(profile)


def compare(profile: str, whole: bool = True) -> pd.DataFrame:
    """Expected and stored numbers side by side: KEYS, value, tolerance, precision, stored, trained_in, unlike, difference, within.

    unlike: whether a run was trained in another precision than the expected one; then its tolerance is OTHER_PRECISION times as large.
    A number that is not a number, one that was expected and is not there, and with it one that nobody expected, are not within. whole: False
    leaves out expected numbers of runs that have no stored metrics at all (a part of the companion was run).
    """
    text = {key: str for key in KEYS if key != "seed"}
    expected = artifacts.read_csv(expected_path(profile), dtype=text).fillna({key: "" for key in text})
    expected = expected.reindex(columns=[*KEYS, "value", "tolerance", "precision"])  # older files have no precision
    stored = gated(artifacts.read_metrics(profile))
    stored = stored.assign(trained_in=stored.run_hash.map(_precisions(profile)), stored=stored.value)[[*KEYS, "stored", "trained_in"]].astype(text)
    stored["seed"] = stored.seed.astype(int)
    run = ["method", "trained_on", "variant", "seed"]
    if not whole:
        expected = expected.merge(stored[run].drop_duplicates(), on=run)
    table = expected.merge(stored, on=KEYS, how="outer")
    table["unlike"] = table.precision.notna() & table.trained_in.notna() & (table.precision != table.trained_in)
    table["tolerance"] *= np.where(table.unlike, OTHER_PRECISION, 1.0)
    table["difference"] = table.stored - table.value
    return table.assign(within=(table.difference.abs() <= table.tolerance))


def report(table: pd.DataFrame, profile: str) -> str:
    """The comparison in words: how many numbers are within, the largest move of each measure, and every number that is not within."""
    share = (table.difference.abs() / table.tolerance).groupby(table.metric).max()
    lines = [f"Drift: {table.within.sum()} of {len(table)} numbers are as expected, within their tolerances."]
    lines += [f"  {name:18} moved by at most {100 * worst:3.0f} % of its tolerance" for name, worst in share.items() if np.isfinite(worst)]
    if table.unlike.any():
        found = table.loc[table.unlike, ["trained_in", "precision"]].drop_duplicates().to_numpy()
        pairs = " and ".join(f"{trained_in}, expected in {precision}" for trained_in, precision in found)
        lines.append(f"  {table.unlike.sum()} are of runs trained in {pairs}: their tolerances are {OTHER_PRECISION:g} times as large.")
    for row in table[~table.within].itertuples():
        name = " ".join(filter(None, [row.method, row.variant, f"seed {row.seed}", row.evaluated_on, row.classifier, row.score, row.metric]))
        lines.append(f"  {name}: expected {row.value:.4g} ± {row.tolerance:.2g}, stored {row.stored:.4g}")
    return "\n".join(lines + ([] if table.within.all() else [REMEDY.format(profile=profile)]))


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare the stored numbers of a profile with the expected ones, or accept them.")
    parser.add_argument("profile", choices=PROFILES)
    parser.add_argument("--accept", action="store_true", help="take the stored numbers as the expected ones")
    arguments = parser.parse_args()
    try:
        if arguments.accept:
            print(f"Accepted: {accept(arguments.profile)}")
            return 0
        table = compare(arguments.profile)
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(report(table, arguments.profile))
    return 0 if table.within.all() else 1


if __name__ == "__main__":
    sys.exit(main())
