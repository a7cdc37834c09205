"""The drift gate: the numbers that a profile is expected to give, with tolerances, and how far the stored ones are from them.

settings/expected_<profile>.csv holds them, accepted from runs that were looked at. On one machine with the same versions the same seed gives the same
numbers; across machines the order of summation differs, trainings part ways after some steps, and a number may move as far as between two seeds: how
far, depends on the number. So a number is expected between the lowest and the highest that the same code gave on several processors, or with several
instruction sets of one, give or take a tolerance: a wrong loss, augmentation or split moves accuracies further. AUROCs of networks trained for so
short a time lie near one half, and most tolerances take in what lies beyond it: that an AUROC is right is shown by tests, not here. A processor with
bfloat16 trains in another precision than one without, from the first step on: where no run in that precision was seen, the tolerance is
OTHER_PRECISION times as large.

    python -m lib.pipeline.drift quick             compare what is stored with what is expected
    python -m lib.pipeline.drift quick --accept    take what is stored as what is expected from now on
    python -m lib.pipeline.drift quick --widen     expect what is stored too: of the same code, from another processor

The other instruction set of one processor is asked for by environment variables, and its results are kept apart:

    export RESULTS_DIR=results/own/avx2 ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2
    make reproduce PROFILE=quick; .venv/bin/python -m lib.pipeline.drift quick --widen
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from lib.runs import store as artifacts
from lib.runs.store import MEASURED_BY

PROFILES = ("smoke", "quick")
KEYS = [*artifacts.RUN_COLUMNS[:4], *artifacts.QUANTITY[1:]]
EXPECTED = ("lowest", "highest", "tolerance", "repetitions", "precisions")
# Absolute floor and share of the value that a number may move; proportions are also given their own sampling error, SAMPLING half intervals.
TOLERANCES = {
    "accuracy": (0.08, 0.0),
    "correctness_auroc": (0.08, 0.0),
    "ood_auroc": (0.25, 0.0),
    "effective_rank": (2.0, 0.5),
    "nll": (0.25, 0.3),
    "aurc": (
        0.15,
        0.0,
    ),  # it moves with the accuracy and with the order of the images: by more than either
}
SAMPLING = 2.0
OTHER_PRECISION = 2.0
REMEDY = "If a change was meant to move them, look at the figures, then accept: python -m lib.pipeline.drift {profile} --accept"


def has_expected(profile: str) -> bool:
    return profile in PROFILES and expected_path(profile).exists()


def expected_path(profile: str) -> Path:
    if profile not in PROFILES:
        raise ValueError(
            f"Profile {profile!r} has no expected values; those that have are {list(PROFILES)}."
        )
    return artifacts.ROOT / "settings" / f"expected_{profile}.csv"


def gated(metrics: pd.DataFrame) -> pd.DataFrame:
    """The rows of metrics that the gate looks at: the battery of every run, of the measures that have a tolerance, not under altered images."""
    asked = (metrics.condition == "clean") | (metrics.metric == "ood_auroc")
    return metrics[(metrics.part == MEASURED_BY) & asked & metrics.metric.isin(list(TOLERANCES))]


def tolerance(metrics: pd.DataFrame) -> np.ndarray:
    """How far each row may lie outside what was seen: max(floor, share x |value|) + SAMPLING x half its confidence interval (none: 0)."""
    floor, share = np.array([TOLERANCES[name] for name in metrics.metric]).reshape(-1, 2).T
    half = np.nan_to_num((metrics.ci_high - metrics.ci_low).to_numpy(float) / 2)
    return np.maximum(floor, share * metrics.value.abs().to_numpy(float)) + SAMPLING * half


def _read_expected(profile: str) -> pd.DataFrame:
    text = {key: str for key in KEYS if key != "seed"} | {"precisions": str}
    return artifacts.read_csv(expected_path(profile), (*KEYS, *EXPECTED), dtype=text).fillna(
        {key: "" for key in text}
    )


def _read_stored(profile: str) -> pd.DataFrame:
    """KEYS, value, tolerance, and the precision that the run was trained in ("" where its config is not there), of all stored numbers of the gate;
    FileNotFoundError where there are none."""
    rows = gated(artifacts.read_metrics(profile))
    if rows.empty:
        raise FileNotFoundError(
            f"Profile {profile!r} has no stored metrics: run make reproduce PROFILE={profile} first."
        )
    precisions = {
        config["run_hash"]: config["precision"]
        for config in artifacts.run_configs(profile).values()
        if "precision" in config
    }
    trained_in = [precisions.get(run_hash, "") for run_hash in rows.run_hash]
    rows = rows.assign(
        tolerance=tolerance(rows).round(4), precision=trained_in, seed=rows.seed.astype(int)
    )
    return rows[[*KEYS, "value", "tolerance", "precision"]].reset_index(drop=True)


def accept(profile: str, widen: bool = False) -> Path:
    """Write the stored numbers of a profile as the expected ones, or, with widen, move the ends of what is expected so far out to them.

    FileNotFoundError where nothing is stored; ValueError where a number is not a number, or, with widen, one is missing or new.
    """
    stored = _read_stored(profile)
    if stored.value.isna().any():
        raise ValueError(
            f"Not a number cannot be expected: {stored[stored.value.isna()][KEYS].iloc[0].to_dict()}."
        )
    table = stored.assign(
        lowest=stored.value, highest=stored.value, repetitions=1, precisions=stored.precision
    )
    if widen:
        table = table.merge(
            _read_expected(profile), on=KEYS, how="outer", suffixes=("", "_before"), indicator=True
        )
        if (unmatched := table[table._merge != "both"]).size:
            one = unmatched.iloc[0]
            state = (
                "is stored and not expected"
                if one._merge == "left_only"
                else "is expected and not stored"
            )
            raise ValueError(
                f"Only the same numbers can be widened; of {len(unmatched)}, this one {state}: {one[KEYS].to_dict()}. Use --accept."
            )
        table["lowest"], table["highest"] = (
            table[["lowest", "lowest_before"]].min(axis=1),
            table[["highest", "highest_before"]].max(axis=1),
        )
        table["tolerance"] = table[["tolerance", "tolerance_before"]].max(axis=1)
        table["repetitions"] = table.repetitions_before + 1
        table["precisions"] = [
            " ".join(sorted({*a.split(), b}))
            for a, b in zip(table.precisions_before, table.precision, strict=True)
        ]
    artifacts.write_csv(expected_path(profile), table[[*KEYS, *EXPECTED]].sort_values(KEYS))
    return expected_path(profile)


def compare(profile: str, whole: bool = True) -> pd.DataFrame:
    """Expected and stored numbers side by side: KEYS, EXPECTED, stored, trained_in, unlike, outside, within.

    outside: how far a number lies outside lowest and highest; unlike: whether its run was trained in a precision of which none was seen, where its
    tolerance is OTHER_PRECISION times as large.
    A number that is not a number, one that was expected and is not there, and with it one that nobody expected, are not within. whole: False
    leaves out expected numbers of runs that have no stored metrics at all (a part of the companion was run).
    """
    expected = _read_expected(profile)
    stored = (
        _read_stored(profile)
        .rename(columns={"value": "stored", "precision": "trained_in"})
        .drop(columns="tolerance")
    )
    run = ["method", "trained_on", "variant", "seed"]
    if not whole:
        expected = expected.merge(stored[run].drop_duplicates(), on=run)
    table = expected.merge(stored, on=KEYS, how="outer").fillna(
        {"precisions": "", "trained_in": ""}
    )
    seen = [
        trained_in in precisions.split()
        for trained_in, precisions in zip(table.trained_in, table.precisions, strict=True)
    ]
    table["unlike"] = (
        (table.precisions != "") & (table.trained_in != "") & ~np.array(seen, dtype=bool)
    )
    table["tolerance"] *= np.where(table.unlike, OTHER_PRECISION, 1.0)
    table["outside"] = np.maximum(
        np.maximum(table.lowest - table.stored, table.stored - table.highest), 0.0
    )
    return table.assign(within=table.outside <= table.tolerance)


def report(table: pd.DataFrame, profile: str) -> str:
    """The comparison in words: how many numbers are within, the farthest outside of each measure, and every number that is not within."""
    share = (table.outside / table.tolerance).groupby(table.metric).max().dropna()
    lines = [
        f"Drift: {table.within.sum()} of {len(table)} numbers are as expected, within their tolerances."
    ]
    lines += [
        f"  {name:18} {100 * worst:3.0f} % of its tolerance outside what was seen"
        for name, worst in share.items()
    ]
    if table.unlike.any():
        found = table.loc[table.unlike, ["trained_in", "precisions"]].drop_duplicates().to_numpy()
        pairs = " and ".join(
            f"{trained_in}, expected in {precisions}" for trained_in, precisions in found
        )
        lines.append(
            f"  {table.unlike.sum()} are of runs trained in {pairs}: their tolerances are {OTHER_PRECISION:g} times as large."
        )
    for row in table[~table.within].itertuples():
        name = " ".join(
            filter(
                None,
                [
                    row.method,
                    row.variant,
                    f"seed {row.seed}",
                    row.evaluated_on,
                    row.classifier,
                    row.score,
                    row.metric,
                ],
            )
        )
        seen = f"{row.lowest:.4g}" + (f" to {row.highest:.4g}" if row.highest > row.lowest else "")
        lines.append(f"  {name}: expected {seen} ± {row.tolerance:.2g}, stored {row.stored:.4g}")
    return "\n".join(lines + ([] if table.within.all() else [REMEDY.format(profile=profile)]))


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Compare the stored numbers of a profile with the expected ones, or accept them."
    )
    parser.add_argument("profile", choices=PROFILES)
    change = parser.add_mutually_exclusive_group()
    change.add_argument(
        "--accept", action="store_true", help="take the stored numbers as the expected ones"
    )
    change.add_argument(
        "--widen",
        action="store_true",
        help="expect the stored numbers too: of the same code, from another processor",
    )
    arguments = parser.parse_args()
    try:
        if arguments.accept or arguments.widen:
            print(
                f"{'Widened' if arguments.widen else 'Accepted'}: {accept(arguments.profile, widen=arguments.widen)}"
            )
            return 0
        table = compare(arguments.profile)
    except (ValueError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    print(report(table, arguments.profile))
    return 0 if table.within.all() else 1


if __name__ == "__main__":
    sys.exit(main())
