"""Which stored runs are compared, and paired differences.

Everything is read from stored metrics and scores. Functions return numbers: a data frame with
difference, ci_low, ci_high, seeds and n, by the one interval of lib.evaluation.intervals.
"""

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd

from lib.evaluation import intervals, results
from lib.runs import settings, store

COMPARED_WITH = ("dino", "moco_v3", "dino_vit", "ibot")  # with ProSMin
OTHER_VAES = ("vae", "beta_vae", "cr_vae")  # what SimVAE is compared with
GAP = ["dataset", "method", "lower", "upper", "percent", "lower_percent", "upper_percent"]
GAP += ["share", "ci_low", "ci_high", "seeds", "n", "runs"]
USUAL_TEMPERATURE = 0.04  # of DINO's teacher
TUNING = ["method", "epochs", "setting", "value", "validation_knn_percent", "effective_rank"]


# -------------------------------------------------------------------------------- what is compared
def prosmin_pairs(runs: Sequence[dict]) -> list[tuple[str, str]]:
    """(method, other) for each form of ProSMin and each of COMPARED_WITH on the same backbone."""
    backbones = {run["method"]: run["backbone"] for run in runs}
    pairs = []
    for method in ("prosmin", "prosmin_vit"):
        for other in COMPARED_WITH:
            if method in backbones and backbones.get(other) == backbones[method]:
                pairs.append((method, other))
    return pairs


def with_usual(changed: Sequence[dict], methods: Collection[str]) -> list[dict]:
    """Runs of an ablation, and those of the protocol that they are compared with.

    changed: the runs, on the same images for the same epochs. Added are the measured runs of
    ``methods`` on these images for as many epochs, where the protocol has them. FileNotFoundError
    with the command that makes them where no run changes anything.
    """
    if all(settings.is_usual_at_any_length(run) for run in changed):
        raise FileNotFoundError(
            "Only usual runs of this ablation have stored metrics, and nothing to compare them "
            f"with. Make the others: make reproduce PROFILE={changed[0]['profile']}."
        )
    listed = {settings.run_name(run): run for run in changed}
    first = changed[0]
    for run in results.measured(settings.runs(first["profile"], group=settings.PROTOCOL)):
        is_alike = all(run[key] == first[key] for key in ("dataset", "epochs", "train_images"))
        if is_alike and run["method"] in methods:
            listed.setdefault(settings.run_name(run), run)
    return list(listed.values())


def changed_settings(runs: Sequence[dict]) -> dict[str, dict]:
    """What each run of an ablation changes, by the name of the run: {"samples": 16}.

    The settings that differ among the runs of its method on its data set and are not as the profile
    has them, in the order of their names.
    """
    values: dict[tuple[str, str, str], set] = {}
    for run in runs:
        for key, value in run.items():
            values.setdefault((run["method"], run["dataset"], key), set()).add(str(value))
    changed = {}
    for run in runs:
        changed[settings.run_name(run)] = {
            key: value
            for key, value in sorted(settings.differences(run).items())
            if len(values[run["method"], run["dataset"], key]) > 1
        }
    return changed


def variants(runs: Sequence[dict]) -> dict[str, str]:
    """The method and ``changed_settings`` of each run in words, by the name of the run.

    "vje directional_freedom 100000, learning_rate 0.03".
    """
    changed = changed_settings(runs)
    names = {}
    for run in runs:
        name = settings.run_name(run)
        changes = []
        for key, value in changed[name].items():
            text = f"{value:g}" if isinstance(value, float) else str(value)
            changes.append(f"{key} {text}")
        names[name] = " ".join([run["method"], ", ".join(changes)]).strip()
    return names


def tuning(profile: str) -> pd.DataFrame:
    """What was tried before the runs, a row a value of a method's learning rate (β of the β-VAE).

    Columns: method, epochs, setting, value, validation_knn_percent (NaN where not run),
    effective_rank of the features, and chosen: the best of a method all of whose values are run.
    The untrained network and raw pixels are rows of it.
    """
    rows = []
    for run in settings.tuning_runs(profile):
        setting = "beta" if run["method"] == "beta_vae" else "learning_rate"
        if set(settings.differences(run)) - {"split", setting}:  # an ablation at one rate
            continue
        metrics = store.read_metrics(profile, store.SUITE, settings.run_name(run))
        accuracy = metrics[metrics.metric == "accuracy"].value
        rank = metrics[metrics.metric == "effective_rank"].value
        rows.append(
            {
                "method": run["method"],
                "epochs": run["epochs"],
                "setting": setting,
                "value": run[setting],
                "validation_knn_percent": 100 * accuracy.mean(),
                "effective_rank": rank.mean(),
            }
        )
    frame = pd.DataFrame(rows, columns=TUNING)
    reached = frame.groupby("method").validation_knn_percent
    is_complete = reached.transform("count") == reached.transform("size")
    is_best = reached.rank(ascending=False, method="first") == 1
    is_trained = frame.epochs > 0
    return frame.assign(chosen=is_complete & is_best & is_trained)


def sharpening(profile: str) -> pd.DataFrame:
    """DINO's k-NN accuracy by the temperature of its teacher (VI-SimSiam 2023, Claim 4.9).

    One row a temperature: temperature, knn_percent, untrained (the untrained network's),
    points_behind (k-NN at the usual temperature minus at this one) with ci_low, ci_high and
    seeds, the entropies in nats of the teacher's softmax for one image and for the mean of a batch
    at the end of training, and runs. Empty for a profile without such runs.
    """
    columns = ["temperature", "knn_percent", "untrained", "points_behind", "ci_low", "ci_high"]
    columns += ["seeds", "entropy", "entropy_of_mean", "runs"]
    listed = results.measured(settings.runs(profile, group="sharpening"))
    if not listed:
        return pd.DataFrame(columns=columns)
    knn = pd.DataFrame([_knn_by_temperature(run) for run in listed])
    untrained = results.learned(listed).untrained.iloc[0]
    at_usual = knn[np.isclose(knn.temperature, USUAL_TEMPERATURE)].set_index("seed")
    rows = []
    for temperature, part in knn.groupby("temperature"):
        part = part.set_index("seed")
        difference = intervals.metric_difference(at_usual, part, scale=100)
        row = {"temperature": temperature, "points_behind": difference.pop("difference")}
        row |= {"knn_percent": 100 * part.value.mean(), "untrained": untrained}
        row |= {name: part[name].mean() for name in ("entropy", "entropy_of_mean")}
        row["runs"] = " ".join(dict.fromkeys([*at_usual.run, *part.run]))
        rows.append(row | difference)
    return pd.DataFrame(rows, columns=columns)


def _knn_by_temperature(run: dict) -> dict:
    """k-NN accuracy of one run with its interval, and the last entropies of its log."""
    name = settings.run_name(run)
    metrics = results.read(store.SUITE, [run])
    is_knn = (metrics.metric == "accuracy") & (metrics.classifier == "knn")
    knn = metrics[is_knn & (metrics.condition == "clean")].iloc[0]
    last = store.read_csv(store.run_dir(run["profile"], name) / "log.csv").iloc[-1]
    return {
        "temperature": run["teacher_temperature"],
        "run": name,
        "seed": run["seed"],
        "value": knn.value,
        "ci_low": knn.ci_low,
        "ci_high": knn.ci_high,
        "entropy": last.entropy,
        "entropy_of_mean": last.entropy_of_mean,
    }


# -------------------------------------------------------------------------------------- differences
def over_pairs(
    rows: pd.DataFrame,
    pairs: Sequence[tuple[str, str]],
    *keys: str,
    by: str = "method",
    scale: float = 1.0,
) -> pd.DataFrame:
    """``intervals.paired_over_seeds`` of each pair of values of ``by`` that has rows."""
    tables = [intervals.paired_over_seeds(rows, *pair, *keys, by=by, scale=scale) for pair in pairs]
    filled = [table for table in tables if len(table)]
    if not filled:
        return intervals.paired_over_seeds(rows[:0], "", "", *keys, by=by)
    return pd.concat(filled, ignore_index=True)


# ------------------------------------------------------------------------------------------ SimVAE
def minus_others(rows: pd.DataFrame, method: str, *keys: str, scale: float = 1.0) -> pd.DataFrame:
    """``over_pairs`` of one method and each other, with ``other`` for minus."""
    pairs = [(method, other) for other in rows.method.unique() if other != method]
    table = over_pairs(rows, pairs, *keys, scale=scale)
    return table.rename(columns={"minus": "other", "mean_minus": "mean_other"})


def setting_changes(rows: pd.DataFrame, setting: str) -> pd.DataFrame:
    """Accuracy at the largest value of a setting minus that at the smallest, in points.

    rows: stored accuracies with columns run, dataset and the setting; where a run has several, by
    different classifiers, their mean is taken. One row a data set, method and seed that has both:
    dataset, method, seed, run (both names), lowest and highest (the two values), value, ci_low and
    ci_high, in which the two intervals over images are combined in quadrature, and n.
    """
    keys = ["dataset", "method", "seed", "run", setting]
    means = rows.groupby(keys, as_index=False)[["value", "ci_low", "ci_high", "n"]].mean()
    tables = []
    for _, part in means.groupby(["dataset", "method"], sort=False):
        lowest = part[setting].min()
        highest = part[setting].max()
        ends = part[part[setting] == lowest].merge(
            part[part[setting] == highest], on=["dataset", "method", "seed"], suffixes=("", "_high")
        )
        if lowest == highest or ends.empty:
            continue
        change = 100 * (ends.value_high - ends.value)
        widths = (ends.ci_high - ends.ci_low, ends.ci_high_high - ends.ci_low_high)
        half = 50 * np.hypot(*widths)
        table = ends[["dataset", "method", "seed", "n"]].assign(
            run=ends.run + " " + ends.run_high, lowest=lowest, highest=highest
        )
        tables.append(table.assign(value=change, ci_low=change - half, ci_high=change + half))
    columns = ["dataset", "method", "seed", "run", "lowest", "highest"]
    columns += ["value", "ci_low", "ci_high", "n"]
    if not tables:
        return pd.DataFrame(columns=columns)
    return pd.concat(tables, ignore_index=True)[columns]


def content_gaps(scores: pd.DataFrame, method: str, draws: int) -> pd.DataFrame:
    """The share that a method closes of the gap in MLP accuracy from VAEs to predictive methods.

    ``(accuracy - lower) / (upper - lower)``, where lower is the best of OTHER_VAES and upper the
    best predictive method: 0 is as good as the lower, 1 as the upper. scores:
    results.read_scores(runs, "_content"). A row for each data set where the upper is significantly
    above the lower: dataset, method, lower, upper (names), their accuracies in per cent over the
    seeds that all three have, share with ci_low and ci_high, seeds, n, runs.
    """
    from lib.methods import GENERATIVE  # slow to import, with torch

    def gap(upper: np.ndarray, lower: np.ndarray) -> float:
        return upper.mean() - lower.mean()

    def share(ours: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> float:
        return gap(ours, lower) / gap(upper, lower)

    not_predictive = {*GENERATIVE, *results.REFERENCES}
    rows = []
    for dataset, part in scores.groupby("dataset", sort=False):
        correct = part.pivot(index="index", columns=["method", "seed"], values="mlp_paper_correct")
        correct = correct.astype(float)
        percent = 100 * correct.mean().groupby("method").mean()
        lower = percent[percent.index.isin(OTHER_VAES)]
        upper = percent[~percent.index.isin(not_predictive)]
        if method not in percent or lower.empty or upper.empty:
            continue
        compared = {"method": method, "lower": lower.idxmax(), "upper": upper.idxmax()}
        seeds = _common_seeds(part, compared.values())
        if not seeds:
            continue
        ours, lower, upper = (list(correct[name][seeds].to_numpy().T) for name in compared.values())
        lead = intervals.statistic_over_seeds(gap, upper, lower, draws=draws)
        if lead["ci_low"] <= 0:
            continue
        interval = intervals.statistic_over_seeds(share, ours, lower, upper, draws=draws)
        row = {"dataset": dataset, "share": interval.pop("mean")} | compared | interval
        row["percent"] = 100 * np.mean(ours)
        row["lower_percent"] = 100 * np.mean(lower)
        row["upper_percent"] = 100 * np.mean(upper)
        is_behind = part.method.isin(compared.values()) & part.seed.isin(seeds)
        row["runs"] = " ".join(part.run[is_behind].unique())
        rows.append(row)
    return pd.DataFrame(rows, columns=GAP)


def _common_seeds(rows: pd.DataFrame, methods: Collection[str]) -> list[int]:
    """The seeds that each of these methods has."""
    seeds = [set(rows.seed[rows.method == method]) for method in methods]
    return sorted(set.intersection(*seeds))
