"""The benchmark: accuracy, uncertainty, calibration and time of every method on one data set.

Everything is read from the stored metrics and config.json of the runs that methods are compared by,
raw pixels and untrained networks among them. Beside a method's own uncertainty stand three scores
that every network has.
"""

import numpy as np
import pandas as pd

from lib.evaluation import intervals, results
from lib.runs import settings, store

# measure -> metric, classifier and condition of its rows in the stored metrics
MEASURES = {
    "linear_accuracy": ("accuracy", "linear", "clean"),
    "knn_accuracy": ("accuracy", "knn", "clean"),
    "linear_correctness_auroc": ("correctness_auroc", "linear", "clean"),
    "knn_correctness_auroc": ("correctness_auroc", "knn", "clean"),
    "linear_aurc": ("aurc", "linear", "clean"),
    "near_ood_auroc": ("ood_auroc", "", "near_ood"),
    "far_ood_auroc": ("ood_auroc", "", "far_ood"),
    "nll": ("nll", "linear", "clean"),
    "ece": ("ece", "linear", "clean"),
    "brier": ("brier", "linear", "clean"),
}
COST = ("images_per_second", "training_seconds")
# As a table's head has them.
LABELS = {
    "linear_accuracy": "linear probe",
    "knn_accuracy": "k-NN",
    "linear_correctness_auroc": "errors of the probe (AUROC)",
    "knn_correctness_auroc": "errors of k-NN (AUROC)",
    "linear_aurc": "AURC",
    "near_ood_auroc": "near OOD (AUROC)",
    "far_ood_auroc": "far OOD (AUROC)",
    "nll": "NLL",
    "ece": "ECE",
    "brier": "Brier",
    "images_per_second": "images/s",
    "training_seconds": "seconds",
}
# what an uncertainty is for: measure -> words
USES = {
    "linear_correctness_auroc": "wrong predictions",
    "near_ood_auroc": "near OOD",
    "far_ood_auroc": "far OOD",
}
OWN = "uncertainty"  # a method's own; measures without a score, such as accuracy, stand here too
TRIVIAL = {
    "feature_norm": "feature norm",
    "knn_distance": "k-NN distance",
    "max_softmax": "maximum softmax",
}
SCORES = {OWN: "own"} | TRIVIAL
KEYS = ["method", "backbone", "score", "measure"]


def runs(profile: str) -> list[dict]:
    """The measured runs that methods are compared by on the profile's data set, one a seed.

    FileNotFoundError, with the command that makes them, where there is none.
    """
    dataset = settings.profile_settings(profile)["dataset"]
    listed = []
    for group in (settings.PROTOCOL, "vit", "simvae"):
        for run in settings.runs(profile, group=group):
            if run["dataset"] == dataset:
                listed.append(run)
    first: dict[tuple[str, int], dict] = {}
    for run in results.required(listed, profile):
        first.setdefault((run["method"], run["seed"]), run)
    return list(first.values())


def measurements(profile: str) -> pd.DataFrame:
    """Every stored number of the benchmark: KEYS, seed, value, ci_low, ci_high (over images), n.

    OOD measures are means over the sets of one distance. Costs are of those runs that were trained
    on the same kind of accelerator as most.
    """
    frames = []
    listed = runs(profile)
    for run in listed:
        rows = results.read(store.SUITE, [run])
        for name, where in MEASURES.items():
            is_it = (rows[["metric", "classifier", "condition"]] == list(where)).all(axis=1)
            part = rows[is_it & rows.score.isin(["", *SCORES])].assign(measure=name)
            frames.append(_of_run(run, part))
    values = pd.concat([*frames, _costs(listed)]).dropna(subset=["value"])
    by_set = values.groupby([*KEYS, "seed"], sort=False)
    return by_set[["value", "ci_low", "ci_high", "n"]].mean().reset_index()


def _of_run(run: dict, rows: pd.DataFrame) -> pd.DataFrame:
    backbone = "" if run["method"] == "raw_pixels" else run["backbone"]
    rows = rows.assign(method=run["method"], backbone=backbone, seed=run["seed"])
    return rows.assign(score=rows.score.replace("", OWN))


def _costs(listed: list[dict]) -> pd.DataFrame:
    """images_per_second and training_seconds of the trained runs, from config.json."""
    frames = [pd.DataFrame(columns=["value", "accelerator"])]
    for run in listed:
        path = store.config_path(run["profile"], settings.run_name(run))
        if not run["epochs"] or not path.exists():
            continue
        config = store.read_json(path)
        rows = pd.DataFrame({"measure": COST, "score": OWN, "ci_low": np.nan, "ci_high": np.nan})
        rows["value"] = [config.get("images_per_second"), config.get("seconds")]
        rows["accelerator"] = config.get("hardware", {}).get("accelerator", "none")
        frames.append(_of_run(run, rows))
    costs = pd.concat(frames)
    most = costs.accelerator.mode()
    return costs[costs.accelerator.isin(most[:1])].astype({"value": float})


def benchmark(values: pd.DataFrame) -> pd.DataFrame:
    """``measurements`` over seeds, with the one interval: KEYS, value, ci_low, ci_high, seeds, n.

    Example:
        own = benchmark(measurements("standard")).query("score == 'uncertainty'")
        own.pivot(index="method", columns="measure", values="value")
    """
    return intervals.over_seeds(values, *KEYS).rename(columns={"mean": "value"})


def against_trivial(values: pd.DataFrame) -> pd.DataFrame:
    """A method's own uncertainty minus each trivial score of the same network, paired by seed.

    For each of USES; above zero the own one is better. Columns: method, backbone, minus, measure,
    difference, ci_low, ci_high, seeds. A method whose own uncertainty is the feature norm has none.
    """
    from lib import methods  # slow to import, with torch

    columns = ["method", "backbone", "minus", "measure", "difference", "ci_low", "ci_high", "seeds"]
    rows = []
    used = values[values.measure.isin(USES)]
    for (method, backbone, name), part in used.groupby(["method", "backbone", "measure"]):
        by_score = {score: scored.set_index("seed") for score, scored in part.groupby("score")}
        if OWN not in by_score or methods.own_uncertainty(method) == methods.TRIVIAL:
            continue
        for score in TRIVIAL:
            if score in by_score:
                row = {"method": method, "backbone": backbone, "minus": score, "measure": name}
                rows.append(row | intervals.metric_difference(by_score[OWN], by_score[score]))
    return pd.DataFrame(rows, columns=columns)
