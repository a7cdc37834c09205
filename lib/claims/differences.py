"""Which stored runs are compared, what a run gains over its references, and paired differences.

Everything is read from stored metrics and scores. Functions return numbers: a data frame with
difference, ci_low, ci_high, seeds and n, by the one interval of lib.evaluation.intervals.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd

from lib.evaluation import intervals, measure
from lib.evaluation.uncertainty import bootstrap_interval
from lib.runs import settings, store

COMPARED_WITH = ("dino", "moco_v3", "dino_vit", "ibot")  # with ProSMin
OF_A_DIFFERENCE = ["difference", "ci_low", "ci_high", "seeds", "n"]
TUNING = [
    "method",
    "dataset",
    "epochs",
    "setting",
    "value",
    "used",
    "validation_knn_percent",
    "effective_rank",
    "run",
]


# -------------------------------------------------------------------------------- what is compared
def simsiam_pairs(profile: str) -> dict[tuple[str, int], dict[str, dict[int, dict]]]:
    """Measured runs of VI-SimSiam and SimSiam: (data set, epochs) -> method -> seed -> settings.

    On every data set and at every length; a method without a run there is absent. Where a set has
    VI-SimSiam only in its form of 2022, that is "vi_simsiam".
    """
    pairs: dict[tuple[str, int], dict[str, dict[int, dict]]] = {}
    for group in (settings.PROTOCOL, "lengths", "datasets"):
        for run in measure.measured(settings.runs(profile, group=group)):
            if run["method"] in measure.WITH_TOP5:
                by_method = pairs.setdefault((run["dataset"], run["epochs"]), {})
                by_method.setdefault(run["method"], {}).setdefault(run["seed"], run)
    for by_method in pairs.values():
        older = by_method.pop("vi_simsiam_2022", None)
        if older:
            by_method.setdefault("vi_simsiam", older)
    return pairs


def prosmin_pairs(backbones: dict[str, str]) -> list[tuple[str, str]]:
    """(method, other) for each form of ProSMin and each of COMPARED_WITH on the same backbone.

    backbones: method -> backbone, of the methods that have runs.
    """
    pairs = []
    for method in ("prosmin", "prosmin_vit"):
        for other in COMPARED_WITH:
            if method in backbones and backbones.get(other) == backbones[method]:
                pairs.append((method, other))
    return pairs


def by_length(listed: Sequence[dict]) -> tuple[list[dict], list[dict]]:
    """These runs in two lists: of the fewest epochs of their method on their set, and longer."""
    fewest: dict[tuple[str, str], int] = {}
    for run in listed:
        key = run["dataset"], run["method"]
        fewest[key] = min(run["epochs"], fewest.get(key, run["epochs"]))
    shortest = []
    longer = []
    for run in listed:
        is_shortest = run["epochs"] == fewest[run["dataset"], run["method"]]
        (shortest if is_shortest else longer).append(run)
    return shortest, longer


def behind(
    listed: Sequence[dict], dataset: str, methods: Collection[str], seeds: Collection[int]
) -> dict:
    """epochs (the fewest of those that are trained) and runs (names) behind a row of a table."""
    runs = [
        run
        for run in listed
        if run["dataset"] == dataset and run["method"] in methods and run["seed"] in seeds
    ]
    epochs = [run["epochs"] for run in runs if run["epochs"]]
    return {
        "epochs": min(epochs, default=0),
        "runs": " ".join(settings.run_name(run) for run in runs),
    }


def tuning(profile: str) -> pd.DataFrame:
    """What was tried before the runs, a row a value of a method's learning rate (β of the β-VAE).

    Columns: method, dataset, epochs, setting, value, used (by the profile), validation_knn_percent
    (NaN where not run), effective_rank of the features, run, and chosen: the best of a method all
    of whose values are run. The untrained network and raw pixels are rows of it.
    """
    rows = []
    for run in settings.tuning_runs(profile):
        setting = "beta" if run["method"] == "beta_vae" else "learning_rate"
        name = settings.run_name(run)
        metrics = store.read_metrics(profile, store.SUITE, name)
        used = settings.resolve(run["method"], profile, dataset=run["dataset"])
        accuracy = metrics[metrics.metric == "accuracy"].value
        rank = metrics[metrics.metric == "effective_rank"].value
        rows.append(
            {
                "method": run["method"],
                "dataset": run["dataset"],
                "epochs": run["epochs"],
                "setting": setting,
                "value": run[setting],
                "used": used[setting],
                "validation_knn_percent": 100 * accuracy.mean(),
                "effective_rank": rank.mean(),
                "run": name,
            }
        )
    frame = pd.DataFrame(rows, columns=TUNING)
    reached = frame.groupby("method").validation_knn_percent
    is_complete = reached.transform("count") == reached.transform("size")
    is_best = reached.rank(ascending=False, method="first") == 1
    is_trained = frame.epochs > 0
    return frame.assign(chosen=is_complete & is_best & is_trained)


# ----------------------------------------------------------------------- gains over the references
def must_beat(reference: str, dataset: str) -> bool:
    """Whether a run on this set must beat the reference in k-NN accuracy to count as evidence.

    The untrained network always; raw pixels on photographs, where they say little.
    """
    return reference in measure.UNTRAINED or dataset.startswith(("cifar10", "imagenette"))


def gains(run: dict, listed: list[dict]) -> pd.DataFrame:
    """k-NN accuracy of a run minus that of the untrained network and of raw pixels.

    Paired by test image, with a 95 % bootstrap over images. Columns: reference (of those among
    ``listed`` one with the run's backbone and seed, else the first), value, ci_low, ci_high, n,
    must_beat.
    """
    rows = []
    test = run["dataset"]
    correct = _knn_correct(run)
    for methods in (measure.UNTRAINED, ("raw_pixels",)):
        references = [
            other for other in listed if other["method"] in methods and other["dataset"] == test
        ]
        if not references:
            continue
        nearest = min(
            references,
            key=lambda other: (other["backbone"] != run["backbone"], other["seed"] != run["seed"]),
        )
        gain = correct - _knn_correct(nearest)
        low, high = bootstrap_interval(np.mean, gain, draws=run["bootstrap_draws"])
        reference = nearest["method"]
        row = {"reference": reference, "value": gain.mean(), "ci_low": low, "ci_high": high}
        rows.append(row | {"n": len(gain), "must_beat": must_beat(reference, test)})
    return pd.DataFrame(rows, columns=["reference", "value", "ci_low", "ci_high", "n", "must_beat"])


def _knn_correct(run: dict) -> np.ndarray:
    name = settings.run_name(run)
    scores = store.read_scores(run["profile"], name, run["dataset"], ("knn_correct",))
    return scores["knn_correct"].astype(float)


def is_evidence(rows: pd.DataFrame) -> bool:
    """Whether all gains that must be positive exclude zero, and there is one."""
    counting = rows[rows.must_beat.astype(bool)]
    return len(counting) > 0 and bool((counting.ci_low > 0).all())


def is_trained(method: str, profile: str) -> bool:
    """``is_evidence`` of all seeds of a method among the runs that methods are compared by."""
    listed = measure.compared_runs(profile)
    frames = [gains(run, listed) for run in listed if run["method"] == method]
    return bool(frames) and is_evidence(pd.concat(frames))


# -------------------------------------------------------------------------------------- differences
def points_apart(
    first: Mapping[int, Mapping],
    second: Mapping[int, Mapping],
    column: str,
    draws: int,
    factor: float = 100.0,
) -> dict:
    """The mean of one stored score over images, first minus second, times ``factor``.

    first, second: seed -> stored scores. Returns what ``intervals.difference_over_seeds`` does.
    """

    def scaled(by_seed: Mapping[int, Mapping]) -> dict[int, list[np.ndarray]]:
        return {
            seed: [factor * scores[column].astype(np.float64)] for seed, scores in by_seed.items()
        }

    return intervals.difference_over_seeds(np.mean, scaled(first), scaled(second), draws)


def paired_differences(
    listed: list[dict],
    pairs: Sequence[tuple[str, str]],
    columns: dict[str, tuple[str, float]],
    draws: int,
) -> pd.DataFrame:
    """``points_apart`` of each pair of methods and each measure, with method, minus, measure.

    listed: measured runs on one data set; columns: measure -> (name in the stored scores, factor).
    """
    stored: dict[str, dict] = {}  # method -> seed -> scores
    compared = set().union(*pairs)
    for run in listed:
        if run["method"] in compared:
            scores = store.read_scores(run["profile"], settings.run_name(run), run["dataset"])
            stored.setdefault(run["method"], {})[run["seed"]] = scores
    rows = []
    for method, minus in pairs:
        for name, (column, factor) in columns.items():
            difference = points_apart(stored[method], stored[minus], column, draws, factor)
            rows.append({"method": method, "minus": minus, "measure": name} | difference)
    return pd.DataFrame(rows)


def over_classes(percent: pd.DataFrame, names: Mapping[tuple[str, str], str]) -> pd.DataFrame:
    """The first row of ``percent`` [scores, classes] minus every other, over the classes of both.

    Each class is a training of its own, so the interval is Student's t over classes. names:
    (method, score) -> row. Columns method, minus, difference, ci_low, ci_high, n (classes), seeds,
    and counts: whether one of the two methods beats the untrained network by the distance to its
    nearest features, without which a difference says nothing of what was learned.
    """

    def gap(first: str, second: str) -> dict[str, float]:
        both = percent.loc[[first, second]].dropna(axis=1).to_numpy()
        return intervals.paired_difference(both[0], both[1])

    rows_of_distance = {
        method: row for (method, score), row in names.items() if score == "knn_distance"
    }
    learned = set()
    for (method, _), _ in names.items():
        distance = rows_of_distance.get(method)
        untrained = rows_of_distance.get("random")
        if distance is None or untrained is None or gap(distance, untrained)["ci_low"] > 0:
            learned.add(method)
    listed = [(method, row) for (method, _), row in names.items()]
    rows = []
    for method, row in listed[1:]:
        difference = gap(listed[0][1], row)
        counts = listed[0][0] in learned or method in learned
        rows.append({"method": listed[0][0], "minus": row} | difference | {"counts": counts})
    columns = ["method", "minus", "difference", "ci_low", "ci_high", "seeds", "counts"]
    return pd.DataFrame(rows, columns=columns).rename(columns={"seeds": "n"}).assign(seeds=1)


# -------------------------------------------------------------------------------- content and style
def _content_scores(listed: Sequence[dict]) -> dict[str, dict[str, dict[int, dict]]]:
    """Stored scores of the content probes and of k-NN: data set -> method -> seed -> scores.

    ValueError for two runs of one seed.
    """
    stored: dict[str, dict] = {}
    for run in listed:
        by_seed = stored.setdefault(run["dataset"], {}).setdefault(run["method"], {})
        if run["seed"] in by_seed:
            names = behind(listed, run["dataset"], [run["method"]], [run["seed"]])["runs"]
            raise ValueError(
                f"Several runs of one method and seed: {names}; compare one of them at a time."
            )
        name = settings.run_name(run)
        test = run["dataset"]
        scores = store.read_scores(run["profile"], name, test, ("knn_correct",))
        by_seed[run["seed"]] = scores | store.read_scores(run["profile"], name, f"{test}_content")
    return stored


def content_differences(listed: Sequence[dict], method: str, draws: int) -> pd.DataFrame:
    """Content accuracy of ``method`` minus that of each other with a seed in common, in points.

    listed: measured runs, one for a data set, method and seed. Columns: method, dataset, other,
    classifier, epochs, difference_points, ci_low, ci_high, seeds, n, runs.
    """
    rows = []
    for dataset, by_method in _content_scores(listed).items():
        ours = by_method.pop(method, {})
        for other, theirs in by_method.items():
            seeds = set(ours) & set(theirs)
            if not seeds:
                continue
            runs = behind(listed, dataset, (method, other), seeds)
            for classifier in ("mlp_paper", "knn_chosen", "knn"):
                row = {"method": method, "dataset": dataset, "other": other}
                row |= {"classifier": classifier} | runs
                rows.append(row | points_apart(ours, theirs, f"{classifier}_correct", draws))
    columns = ["method", "dataset", "other", "classifier", "epochs", *OF_A_DIFFERENCE, "runs"]
    return pd.DataFrame(rows, columns=columns).rename(columns={"difference": "difference_points"})


def content_gaps(
    listed: Sequence[dict], method: str, below: Collection[str], above: Collection[str], draws: int
) -> pd.DataFrame:
    """The share of the gap in MLP accuracy, from the best of ``below`` to the best of ``above``.

    ``(accuracy - lower) / (upper - lower)``: 0 as good as the lower, 1 as the upper. A row for each
    data set that has all three in a common seed and the upper above the lower: method, dataset,
    lower, upper (names), lower_percent, upper_percent, share, ci_low, ci_high, seeds, n, epochs,
    runs. The best are so in the seeds that each has in common with ``method``.
    """

    def share(ours: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> float:
        return (ours.mean() - lower.mean()) / (upper.mean() - lower.mean())

    rows = []
    for dataset, by_method in _content_scores(listed).items():
        ours = by_method.pop(method, {})
        lower = _best(by_method, below, set(ours))
        upper = _best(by_method, above, set(ours))
        if lower is None or upper is None:
            continue
        seeds = sorted(set(ours) & set(by_method[lower]) & set(by_method[upper]))
        sides = (ours, by_method[lower], by_method[upper])
        arrays = [_correct(side, seeds) for side in sides]
        percent = [100 * np.mean(side) if seeds else np.nan for side in arrays[1:]]
        if not percent[0] < percent[1]:
            continue
        interval = intervals.statistic_over_seeds(share, *arrays, draws=draws)
        row = {"method": method, "dataset": dataset, "lower": lower, "upper": upper}
        row |= {"lower_percent": percent[0], "upper_percent": percent[1]}
        row |= {"share": interval.pop("mean")} | interval
        rows.append(row | behind(listed, dataset, (method, lower, upper), seeds))
    columns = ["method", "dataset", "lower", "upper", "lower_percent", "upper_percent", "share"]
    columns += ["ci_low", "ci_high", "seeds", "n", "epochs", "runs"]
    return pd.DataFrame(rows, columns=columns)


def _correct(by_seed: dict[int, dict], seeds: Collection[int]) -> list[np.ndarray]:
    """Which test images the MLP probe of each of these seeds has right, as 0 and 1."""
    return [by_seed[seed]["mlp_paper_correct"].astype(float) for seed in seeds]


def _best(by_method: dict[str, dict], names: Collection[str], seeds: set[int]) -> str | None:
    """The most accurate of these methods in the seeds that it shares; None where none does."""
    accuracy = {}
    for name in names:
        shared = seeds & set(by_method.get(name, {}))
        if shared:
            accuracy[name] = np.mean(_correct(by_method[name], shared))
    return max(accuracy, key=accuracy.get) if accuracy else None


def paired_retention(retained: pd.DataFrame, method: str, other: str) -> dict[str, float]:
    """Style kept by one method minus that by another, mean over their factors, paired by seed.

    retained: rows of style.retentions on one set. Returns difference, ci_low, ci_high, seeds. With
    fewer than three seeds the interval is over images: the two probes' intervals, mean over factors
    and seeds, combined in quadrature. ValueError for methods without a seed and factor in common.
    """
    values = ["retention", "retention_low", "retention_high"]
    keys = ["seed", "condition"]
    ours = retained[retained.method == method].set_index(keys)[values]
    theirs = retained[retained.method == other].set_index(keys)[values]
    both = ours.index.intersection(theirs.index)
    if both.empty:
        raise ValueError(f"{method} and {other} have no seed and factor of style in common.")
    ours = ours.loc[both].groupby("seed").mean()
    theirs = theirs.loc[both].groupby("seed").mean()
    interval = intervals.paired_difference(ours.retention, theirs.retention)
    if len(ours) < intervals.SEEDS:
        errors = [(side.retention_high - side.retention_low).mean() / 2 for side in (ours, theirs)]
        half = np.hypot(*errors)
        interval |= {
            "ci_low": interval["difference"] - half,
            "ci_high": interval["difference"] + half,
        }
    return interval


# -------------------------------------------------------------------------------------- other data
def differences_outside(
    own: str, name: str, rivals: dict[str, tuple[str, str]], shown: pd.DataFrame
) -> pd.DataFrame:
    """OOD AUROC of the likelihood of method ``own`` minus that of each rival, in points.

    rivals: name -> (method, score). shown: AUROC by columns name (``name`` is the likelihood;
    rivals without "its "), evaluated_on, value, ci_low, ci_high, n, seed. Columns: method, minus,
    on, auroc_minus, difference, ci_low, ci_high, seeds.
    """
    rows = []
    for on, part in shown.groupby("evaluated_on", sort=False):
        by_name = {key: of.set_index("seed") for key, of in part.groupby("name")}
        for rival in rivals:
            theirs = by_name.get(rival.removeprefix("its "))
            if theirs is None or name not in by_name:
                continue
            row = {"method": own, "minus": rival, "on": on, "auroc_minus": theirs.value.mean()}
            rows.append(row | intervals.metric_difference(by_name[name], theirs, scale=100))
    return pd.DataFrame(rows)
