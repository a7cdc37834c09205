"""Which stored runs are compared, by what they differ, and what must be said beside it: gains, learning rates, precision.

Everything is read from stored metrics, scores and config.json. What runs are measured by is in lib/evaluation/measure.py, which knows nothing of this, so
that a sentence that changes here makes no measure old.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pandas as pd

from lib import evaluation
from lib.evaluation import intervals as statistics
from lib.evaluation import measure as protocol
from lib.evaluation import shift, uncertainty
from lib.runs import settings as resolution
from lib.runs import store as artifacts
from lib.runs.store import MEASURED_BY

LEFT_OPEN = (
    ", which Student's t over the seeds alone leaves open"  # said behind a verdict of a bootstrap
)
OPEN = "open by the seeds alone"  # the same in a list
COMPARED_WITH = ("dino", "moco_v3", "dino_vit", "ibot")  # with ProSMin
NEAR = 0.002  # an end of an AUROC's bootstrap interval that is nearer to zero may cross it with other draws


def simsiam_pairs(profile: str) -> dict[tuple[str, int], dict[str, dict[int, dict]]]:
    """Measured runs of VI-SimSiam and SimSiam, as its papers compare them: (data set, epochs) -> method -> seed -> settings.

    On every data set and at every length, by the profile's recipe for it; a method without a run there is absent. Where a set has VI-SimSiam in its
    form of 2022 alone, that is "vi_simsiam".
    """
    found: dict[tuple[str, int], dict[str, dict[int, dict]]] = {}
    for run in protocol.measured(
        [
            run
            for group in (resolution.PROTOCOL, "lengths", "datasets")
            for run in resolution.runs(profile, group=group)
        ]
    ):
        if run["method"] in protocol.WITH_TOP5:
            found.setdefault((run["dataset"], run["epochs"]), {}).setdefault(
                run["method"], {}
            ).setdefault(run["seed"], run)
    for of in found.values():
        if older := of.pop("vi_simsiam_2022", None):
            of.setdefault("vi_simsiam", older)
    return found


def prosmin_pairs(backbones: dict[str, str]) -> list[tuple[str, str]]:
    """(method, other) for each form of ProSMin and each of COMPARED_WITH, on the same backbone; backbones: by method."""
    ours = [name for name in ("prosmin", "prosmin_vit") if name in backbones]
    return [
        (name, other)
        for name in ours
        for other in COMPARED_WITH
        if backbones.get(other) == backbones[name]
    ]


# ---------------------------------------------------------------------------------------------------------------- what must be said beside
def tuning(profile: str) -> pd.DataFrame:
    """What was tried before the runs: columns method, dataset, epochs, setting, value, used (by the profile), validation_knn_percent (NaN where not
    run), run, and chosen: the best of a method all of whose values are run.
    """
    rows = []
    for run in resolution.tuning_runs(profile):
        setting, name = (
            "beta" if run["method"] == "beta_vae" else "learning_rate",
            resolution.run_name(run),
        )
        found, used = (
            artifacts.read_metrics(profile, MEASURED_BY, name),
            resolution.resolve(run["method"], profile, dataset=run["dataset"]),
        )
        rows.append(
            {key: run[key] for key in ("method", "dataset", "epochs")}
            | {"setting": setting, "value": run[setting], "used": used[setting]}
            | {
                "validation_knn_percent": 100 * found.value.iloc[0] if len(found) else np.nan,
                "run": name,
            }
        )
    frame = pd.DataFrame(
        rows,
        columns=[
            "method",
            "dataset",
            "epochs",
            "setting",
            "value",
            "used",
            "validation_knn_percent",
            "run",
        ],
    )
    reached = frame.groupby("method").validation_knn_percent
    complete = reached.transform("count") == reached.transform("size")
    return frame.assign(chosen=complete & (reached.rank(ascending=False, method="first") == 1))


def unsearched(
    profile: str, listed: Sequence[dict] = (), tried: pd.DataFrame | None = None
) -> dict[str, str]:
    """The methods whose runs have a learning rate that nothing has chosen, and why: their search is not whole, or chose another one since.

    Of the methods of ``listed`` runs also those that were searched on another data set or, in a profile that searches at all, not at all.
    tried: ``tuning(profile)``, where it has been read.
    """
    tried = tuning(profile) if tried is None else tried
    on, reasons = tried.groupby("method").dataset.first(), {}
    sets: dict[str, list[str]] = {}
    for run in listed if len(tried) else ():
        if run["epochs"]:
            sets.setdefault(run["method"], []).append(run["dataset"])
    for method, on_sets in sets.items():
        elsewhere = [name for name in dict.fromkeys(on_sets) if name != on.get(method)]
        if elsewhere:
            but = f", not on {' and '.join(elsewhere)}" * (on.get(method) in on_sets)
            reasons[method] = f"searched on {on[method]}{but}" if method in on else "no search"
    for method, rows in tried.groupby("method", sort=False):
        best = rows[rows.chosen]
        if best.empty:
            reasons[method] = (
                f"{rows.validation_knn_percent.notna().sum()} of {len(rows)} rates are tried"
            )
        elif not ((best.value == best.used) | (best.setting != "learning_rate")).any():
            reasons[method] = (
                f"the search chose {best.value.iloc[0]:g}, the runs have {best.used.iloc[0]:g}"
            )
    return reasons


def at_an_end(tried: pd.DataFrame) -> str:
    """Of which methods the best learning rate of a whole search (rows of ``tuning``) is an end of its grid, in words; empty where of none."""
    tried = tried[tried.setting == "learning_rate"]
    grid, best = (
        tried.groupby("method", sort=False).value,
        tried[tried.chosen].set_index("method").value,
    )
    ends = {
        words: best.index[best == end[best.index]]
        for words, end in (("least", grid.min()), ("largest", grid.max()))
    }
    told = [
        f"the {words} of its grid for {'; '.join(map(label, of))}"
        for words, of in ends.items()
        if len(of)
    ]
    return (
        f"The best rate is {', and '.join(told)}: there a better one may lie beyond."
        if told
        else ""
    )


def label(method: str) -> str:
    """A method's name in words; some are there twice, on the protocol's network and on SimVAE's encoder."""
    from lib.figures.charts import method_style  # slow to import

    return method_style(method).label + ", SimVAE's encoder" * method.endswith("_latent")


def told_rates(listed: list[dict]) -> list[str]:
    """The learning rates of runs of one profile in words, and which of them no whole search on these data has chosen: a sentence each."""
    rates = {
        run["method"]: f"{label(run['method'])} {run['learning_rate']:g}"
        for run in listed
        if run["epochs"]
    }
    profile, named = listed[0]["profile"], {run["method"] for run in listed}
    tried = tuning(profile)
    reasons = {
        name: reason for name, reason in unsearched(profile, listed, tried).items() if name in named
    }
    sentences = [
        f"Learning rates: {'; '.join(rates.values())}.",
        at_an_end(tried[tried.method.isin(named)]),
    ]
    for words, elsewhere in (
        ("No whole search chose those of", False),
        ("Searched on other data were those of", True),
    ):
        if why := [
            f"{label(name)} ({reason})"
            for name, reason in reasons.items()
            if reason.startswith("searched on") == elsewhere
        ]:
            sentences.append(f"{words}: {'; '.join(why)}.")
    if len({reasons.get(name, "") for name in rates}) > 1:
        sentences[-1] += " Comparisons with them are not even-handed."
    return list(filter(None, sentences))


def mixed_precision(listed: list[dict]) -> str:
    """Which of these measured runs differ in precision from most on their data set, in words: machines without bfloat16 train in float32.

    Seeds are named where those of one run are unlike. Empty where no run differs; a run that is listed twice counts once.
    """
    found: dict[
        str, dict[str, dict[str, list[str]]]
    ] = {}  # data set -> precision -> run but for its seed -> seeds
    for name, run in {resolution.run_name(run): run for run in listed}.items():
        path = artifacts.config_path(run["profile"], name)
        if run["epochs"] and path.exists():
            precision = artifacts.read_json(path, ("precision",))["precision"]
            found.setdefault(run["dataset"], {}).setdefault(precision, {}).setdefault(
                name.rsplit("-seed", 1)[0], []
            ).append(str(run["seed"]))
    told = []
    for by_precision in found.values():
        usual = max(
            by_precision, key=lambda precision: sum(map(len, by_precision[precision].values()))
        )
        for precision, runs in by_precision.items():
            if precision != usual:
                split = {
                    name for name in runs if sum(name in of for of in by_precision.values()) > 1
                }
                named = [
                    name + f" (seed {' and '.join(seeds)})" * (name in split)
                    for name, seeds in runs.items()
                ]
                told.append(f"{precision} for {', '.join(named)}, where the others have {usual}")
    return (
        f"Runs on one data set in unlike precision, as the machines were able: {'; '.join(told)}."
        if told
        else ""
    )


def by_length(listed: Sequence[dict]) -> tuple[list[dict], list[dict]]:
    """These runs in two lists: those of the fewest epochs that their method has on their data set, and those that are longer."""
    fewest = {
        (run["dataset"], run["method"]): run["epochs"]
        for run in sorted(listed, key=lambda run: -run["epochs"])
    }
    is_longer = [run["epochs"] > fewest[run["dataset"], run["method"]] for run in listed]
    return tuple(
        [run for run, late in zip(listed, is_longer, strict=True) if late == asked]
        for asked in (False, True)
    )


def must_beat(reference: str, dataset: str) -> bool:
    """Whether a run on this set must beat the reference row in k-NN accuracy before it says anything about κ, σ or a likelihood."""
    return reference in protocol.UNTRAINED or dataset.startswith(("cifar10", "imagenette"))


def gains(run: dict, listed: list[dict]) -> pd.DataFrame:
    """k-NN accuracy of a run minus that of an untrained network and of raw pixels: their stored scores, paired by test image, 95 % bootstrap.

    Columns: reference (of those among ``listed`` one with the run's backbone and seed, else the first), value, ci_low, ci_high, n, must_beat.
    """
    profile, test, rows = run["profile"], run["dataset"], []
    own = artifacts.read_scores(profile, resolution.run_name(run), test, ("knn_correct",))[
        "knn_correct"
    ].astype(float)
    for kind in (protocol.UNTRAINED, ("raw_pixels",)):
        same = [other for other in listed if other["method"] in kind and other["dataset"] == test]
        found = sorted(
            same,
            key=lambda other: (other["backbone"] != run["backbone"], other["seed"] != run["seed"]),
        )
        if found:
            reference = found[0]["method"]
            gain = (
                own
                - artifacts.read_scores(
                    profile, resolution.run_name(found[0]), test, ("knn_correct",)
                )["knn_correct"]
            )
            row = {"reference": reference, "n": len(gain), "must_beat": must_beat(reference, test)}
            rows.append(row | evaluation.with_interval(np.mean, gain, draws=run["bootstrap_draws"]))
    return pd.DataFrame(rows, columns=["reference", "value", "ci_low", "ci_high", "n", "must_beat"])


def told_gains(run: dict, listed: list[dict]) -> list[str]:
    """``gains`` in words, a sentence each: whether the run has learned enough for its uncertainty to be tested."""
    from lib.figures.charts import method_style  # slow to import

    sentences = []
    for gain in gains(run, listed).itertuples():
        short = (
            "**not learned more: its uncertainty is not tested (under-trained)**"
            if gain.must_beat
            else "not required on this set"
        )
        sentences.append(
            f"{method_style(run['method']).label}, seed {run['seed']}, k-NN accuracy minus {method_style(gain.reference).label}: "
            f"{100 * gain.value:+.1f} points [{100 * gain.ci_low:+.1f}, {100 * gain.ci_high:+.1f}], {'learned more' if gain.ci_low > 0 else short}."
        )
    return sentences


def is_evidence(found: pd.DataFrame) -> bool:
    """Whether all gains that count, of all runs in ``found``, exclude zero; otherwise the runs are under-trained."""
    counting = found[found.must_beat.astype(bool)]
    return len(counting) > 0 and bool((counting.ci_low > 0).all())


# ---------------------------------------------------------------------------------------------------------------- differences
def points_apart(
    first: Mapping[int, Mapping],
    second: Mapping[int, Mapping],
    column: str,
    draws: int,
    factor: float = 100.0,
) -> dict:
    """``statistics.hierarchical_difference`` of the means of one stored score, times ``factor``; first, second: seed -> stored scores."""
    sides = (
        {seed: [factor * scores[column].astype(np.float64)] for seed, scores in of.items()}
        for of in (first, second)
    )
    return statistics.hierarchical_difference(np.mean, *sides, draws)


def paired_differences(
    listed: list[dict],
    pairs: Sequence[tuple[str, str]],
    columns: dict[str, tuple[str, float]],
    draws: int,
) -> pd.DataFrame:
    """Mean of what is stored of each test image, of the first method of a pair minus the second: paired by seed and by image.

    listed: measured runs on one data set; columns: measure -> (name in the stored scores, factor). Returns method, minus, measure and what
    ``points_apart`` says, a row for each pair and measure.
    """
    stored: dict[str, dict] = {
        name: {} for pair in pairs for name in pair
    }  # method -> seed -> scores
    for run in [run for run in listed if run["method"] in stored]:
        stored[run["method"]][run["seed"]] = artifacts.read_scores(
            run["profile"], resolution.run_name(run), run["dataset"]
        )
    rows = []
    for pair in pairs:
        for measure, (column, factor) in columns.items():
            found = points_apart(*(stored[method] for method in pair), column, draws, factor)
            rows.append({"method": pair[0], "minus": pair[1], "measure": measure} | found)
    return pd.DataFrame(rows)


def over_classes(percent: pd.DataFrame, names: Mapping[tuple[str, str], str]) -> pd.DataFrame:
    """The first row of ``percent`` [scores, classes], one training a class, minus every other: Student's t over the classes that both have.

    names: (method, score) -> row. Columns method, minus, difference, ci_low, ci_high, n (classes), seeds, and idle: whether of the two methods
    neither is surely above the untrained network by the distance to its nearest features, so that the difference says nothing of what was learned.
    """

    def gap(first: str, second: str) -> dict[str, float]:
        return statistics.paired_difference(*percent.loc[[first, second]].dropna(axis=1).to_numpy())

    near = {method: row for (method, score), row in names.items() if score == "knn_distance"}
    weak = {
        method
        for method, row in near.items()
        if "random" in near and gap(row, near["random"])["ci_low"] <= 0
    }
    listed = [(method, row) for (method, _), row in names.items()]
    rows = [
        {"method": listed[0][0], "minus": row}
        | gap(listed[0][1], row)
        | {"idle": {listed[0][0], method} <= weak}
        for method, row in listed[1:]
    ]
    columns = ["method", "minus", "difference", "ci_low", "ci_high", "seeds", "idle"]
    return pd.DataFrame(rows, columns=columns).rename(columns={"seeds": "n"}).assign(seeds=1)


def open_over_seeds(difference) -> bool:
    """Whether Student's t interval over the seeds alone (t_low, t_high) includes zero; False where there is none, of one seed."""
    return bool(difference.t_low <= 0 <= difference.t_high)


def side(difference, better_high: bool = True, published: bool = False) -> str:
    """Which of two methods is ahead, in words: of a difference as statistics.hierarchical_difference has it.

    published: whether the paper has this comparison; all of its own have ProSMin ahead. The interval of one seed is over images alone.
    """
    if difference.ci_low <= 0 <= difference.ci_high:
        return "the two are not told apart"
    ahead = (difference.difference > 0) == better_high
    where = " on these images" if difference.seeds < 2 else ""
    against = (", as published" if ahead else ", the other way round") * published
    return (
        ("ahead" if ahead else "behind") + where + against + LEFT_OPEN * open_over_seeds(difference)
    )


def told_auroc(difference) -> str:
    """The first AUROC minus the second with its intervals, and whether the first ranks better, in words; given as for ``side``.

    An end of the interval that is nearer to zero than NEAR tells nothing: other draws may move it across.
    """
    low, high, form = difference.ci_low, difference.ci_high, "+.3f"
    verdict = "better" if low > NEAR else "**worse**" if high < -NEAR else "not told apart"
    if verdict == "not told apart":
        verdict += " (other draws would move an end that near to zero across it)" * bool(
            min(abs(low), abs(high)) < NEAR
        )
    else:
        verdict += LEFT_OPEN * open_over_seeds(difference)
    alone = (
        f" (t over {difference.seeds} seeds: [{difference.t_low:{form}}, {difference.t_high:{form}}])"
        if difference.seeds > 1
        else " (one seed)"
    )
    return f"{difference.difference:{form}} [{low:{form}}, {high:{form}}]{alone}, {verdict}"


def sides(differences: pd.DataFrame, names: Sequence[str]) -> str:
    """For which of these differences (ci_low, ci_high; named one by one) the interval lies above zero, below, and includes it, in words.

    Where Student's t over the seeds (t_low, t_high, if given) includes zero all the same, it says so.
    """
    above, below, unsettled = _told_from_zero(differences)
    where = {"above zero": above, "below zero": below, "not told from zero": ~(above | below)}
    said = np.array(
        [name + f" ({OPEN})" * bool(open_) for name, open_ in zip(names, unsettled, strict=True)]
    )
    return "; ".join(
        f"{words} for {', '.join(said[of])}" for words, of in where.items() if of.any()
    )


def tally(differences: pd.DataFrame, names: Mapping[str, str], falling: Sequence[str] = ()) -> str:
    """Of each measure's differences (names: measure -> words), how many are ahead and behind by their interval, in words, and how many of these
    the seeds alone leave open; falling: better low."""
    told = []
    for measure, part in differences.groupby("measure", sort=False):
        above, below, unsettled = (of.sum() for of in _told_from_zero(part))
        ahead, behind = (below, above) if measure in falling else (above, below)
        but = f" ({unsettled} of these {OPEN})" * bool(unsettled)
        told.append(
            f"{names[measure]}: {ahead} ahead, {behind} behind{but}, {len(part) - ahead - behind} not told apart"
        )
    return "; ".join(told)


def _told_from_zero(differences: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which intervals lie above zero, which below, and which of these Student's t over the seeds, where there is one, leaves open."""
    above, below = (differences.ci_low > 0).to_numpy(), (differences.ci_high < 0).to_numpy()
    over_seeds = differences.reindex(columns=["t_low", "t_high"])
    return (
        above,
        below,
        (above | below)
        & np.array([open_over_seeds(row) for row in over_seeds.itertuples()], dtype=bool),
    )


def told_over_seeds(difference) -> str:
    """Whether the seeds alone exclude a difference of zero: t_low and t_high of ``points_apart``, in words."""
    if difference.seeds < 2:
        return "one seed, open"
    found = "open" if open_over_seeds(difference) else "without zero"
    return f"by a paired t-test over the {difference.seeds} seeds alone [{difference.t_low:+.1f}, {difference.t_high:+.1f}], {found}"


def behind(
    listed: Sequence[dict], dataset: str, methods: Collection[str], seeds: Collection[int]
) -> dict:
    """What a row of a table says of the runs that it compares: the fewest epochs of those that are trained, and their names."""
    runs = [
        run
        for run in listed
        if run["dataset"] == dataset and run["method"] in methods and run["seed"] in seeds
    ]
    return {
        "epochs": min((run["epochs"] for run in runs if run["epochs"]), default=0),
        "runs": " ".join(map(resolution.run_name, runs)),
    }


def _content_scores(
    listed: Sequence[dict],
) -> dict[str, dict[str, dict[int, dict[str, np.ndarray]]]]:
    """What ``factors.measure_content`` stored of each test image, and the battery's k-NN: data set -> method -> seed -> scores.

    ValueError for two runs of one seed.
    """
    stored: dict[str, dict] = {}
    for run in listed:
        of = stored.setdefault(run["dataset"], {}).setdefault(run["method"], {})
        if run["seed"] in of:
            names = behind(listed, run["dataset"], [run["method"]], [run["seed"]])["runs"]
            raise ValueError(
                f"Several runs of one method and seed: {names}; compare one of them at a time."
            )
        profile, name, test = run["profile"], resolution.run_name(run), run["dataset"]
        of[run["seed"]] = artifacts.read_scores(
            profile, name, test, ("knn_correct",)
        ) | artifacts.read_scores(profile, name, f"{test}_content")
    return stored


def content_differences(listed: Sequence[dict], method: str, draws: int) -> pd.DataFrame:
    """Accuracy of ``method`` minus that of each other with a seed in common, in points: paired by seed and by image.

    listed: measured runs, one for a data set, method and seed. A row for each data set, other method and classifier, with what ``points_apart`` says
    and the runs ``behind`` it.
    """
    rows = []
    for dataset, by_method in _content_scores(listed).items():
        ours = by_method.get(method, {})
        for other in [
            name for name, theirs in by_method.items() if name != method and set(ours) & set(theirs)
        ]:
            told = behind(listed, dataset, (method, other), set(ours) & set(by_method[other]))
            for classifier in ("mlp_paper", "knn_chosen", "knn"):
                row = {
                    "method": method,
                    "dataset": dataset,
                    "other": other,
                    "classifier": classifier,
                }
                rows.append(
                    row
                    | told
                    | points_apart(ours, by_method[other], f"{classifier}_correct", draws)
                )
    columns = [
        "method",
        "dataset",
        "other",
        "classifier",
        "epochs",
        "difference",
        "ci_low",
        "ci_high",
        "seeds",
        "n",
        "t_low",
        "t_high",
        "runs",
    ]
    return pd.DataFrame(rows, columns=columns).rename(columns={"difference": "difference_points"})


def content_gaps(
    listed: Sequence[dict], method: str, below: Collection[str], above: Collection[str], draws: int
) -> pd.DataFrame:
    """The share of the distance in accuracy (MLP probe) from the best method of ``below`` to the best of ``above`` that ``method`` closes.

    ``(accuracy - lower) / (upper - lower)``: 0 as good as the lower, 1 as the upper. listed: as of ``content_differences``. A row for each data set
    with all three in a seed, where the upper is above the lower: their names and percent, share, what statistics.hierarchical_mean says of it in the
    seeds in common, and the runs ``behind`` it. The best are so on the same test images, in the seeds that each has in common with ``method``;
    the percent are those of the seeds of all three.
    """

    def share(ours: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> float:
        return (ours.mean() - lower.mean()) / (upper.mean() - lower.mean())

    rows = []
    for dataset, by_method in _content_scores(listed).items():
        right = {
            name: {seed: scores["mlp_paper_correct"].astype(float) for seed, scores in of.items()}
            for name, of in by_method.items()
        }
        ours = right.get(method, {})
        percent = {
            name: 100 * np.mean([of[seed] for seed in of.keys() & ours])
            for name, of in right.items()
            if of.keys() & ours
        }
        ends = [
            max(
                (name for name in percent if name in names and name != method),
                key=percent.get,
                default="",
            )
            for names in (below, above)
        ]
        if not all(ends):
            continue
        seeds = sorted(set.intersection(*(set(right[name]) for name in (method, *ends))))
        arrays = [[right[name][seed] for seed in seeds] for name in (method, *ends)]
        lower, upper = (100 * np.mean(of) if seeds else np.nan for of in arrays[1:])
        if lower < upper:
            found = statistics.hierarchical_mean(share, *arrays, draws=draws)
            row = {
                "method": method,
                "dataset": dataset,
                "lower": ends[0],
                "upper": ends[1],
                "lower_percent": lower,
                "upper_percent": upper,
            }
            row |= {"share": found.pop("mean")} | found
            rows.append(row | behind(listed, dataset, (method, *ends), seeds))
    columns = [
        "method",
        "dataset",
        "lower",
        "upper",
        "lower_percent",
        "upper_percent",
        "share",
        "ci_low",
        "ci_high",
        "seeds",
        "n",
        "t_low",
        "t_high",
    ]
    return pd.DataFrame(rows, columns=[*columns, "epochs", "runs"])


def differences_outside(
    runs: list[dict],
    own: str,
    name: str,
    rivals: dict[str, tuple[str, str]],
    shown: pd.DataFrame,
    draws: int,
) -> pd.DataFrame:
    """AUROC for other data sets of the likelihood of method ``own`` minus that of each rival, in points.

    runs: measured runs, of one data set. rivals: method and score by name. shown: AUROC by columns name (``name`` is the likelihood; rivals without
    "its "), evaluated_on, value, ci_low, ci_high, seed. Where every seed's scores are stored by image (store_outside_scores) the interval is the
    hierarchical bootstrap's, paired by image; elsewhere it reaches between the opposite ends of both, and n is NaN. t_low, t_high: Student's t over
    the seeds alone, which can be wider than either. Columns: method, minus, on, auroc_minus, difference, ci_low, ci_high, seeds, n, t_low, t_high.
    """
    other = shift.outside(runs[0])
    tables = [
        artifacts.stored_scores(run["profile"], resolution.run_name(run), f"{other}_outside")
        for run in runs
    ]
    held, rows = (
        {
            (run["method"], run["seed"]): table
            for run, table in zip(runs, tables, strict=True)
            if table
        },
        [],
    )

    def by_seed(method: str, score: str) -> dict[int, list[np.ndarray]]:
        return {
            seed: [table[score], table["outside"]]
            for (stored, seed), table in held.items()
            if stored == method and score in table
        }

    likely, seeds = (
        by_seed(own, "negative_log_likelihood"),
        {run["seed"] for run in runs if run["method"] == own},
    )
    for on in dict.fromkeys(shown.evaluated_on):
        ends = shown[shown.evaluated_on == on].groupby("name").agg(**evaluation.OVER_SEEDS)
        each = 100 * shown[shown.evaluated_on == on].pivot_table(
            index="name", columns="seed", values="value"
        )
        for rival in [rival for rival in rivals if rival.removeprefix("its ") in ends.index]:
            first, second = ends.loc[name], ends.loc[rival.removeprefix("its ")]
            found = {
                "difference": 100 * (first.value - second.value),
                "seeds": int(min(first.seeds, second.seeds)),
                "n": np.nan,
            }
            found |= {
                "ci_low": 100 * (first.ci_low - second.ci_high),
                "ci_high": 100 * (first.ci_high - second.ci_low),
            }
            if len(common := each.loc[[name, rival.removeprefix("its ")]].dropna(axis=1).T):
                over = statistics.paired_difference(*common.to_numpy().T)
                found |= {"t_low": over["ci_low"], "t_high": over["ci_high"]}
            if (
                on == other
                and likely.keys() == seeds
                and (stored := by_seed(*rivals[rival])).keys() >= seeds
            ):
                found = statistics.hierarchical_difference(
                    lambda *arrays: 100 * uncertainty.auroc(*arrays), likely, stored, draws
                )
            rows.append(
                {"method": own, "minus": rival, "on": on, "auroc_minus": second.value} | found
            )
    return pd.DataFrame(rows)


def paired_retention(retained: pd.DataFrame, method: str, other: str) -> dict[str, float]:
    """Retention by one method minus that by another, mean over the factors of both, paired by seed: difference, ci_low, ci_high (95 %), seeds.

    retained: rows of factors.retentions on one set. The interval is Student's t over seeds. For one seed it is over images: the ends of the two
    probes' intervals crosswise, mean over factors, which is wider than the interval of the difference would be. ValueError for methods without a
    seed and a factor in common.
    """
    values, keys = ["retention", "retention_low", "retention_high"], ["seed", "condition"]
    ours, theirs = (
        retained[retained.method == name].set_index(keys)[values] for name in (method, other)
    )
    both = ours.index.intersection(theirs.index)
    if both.empty:
        raise ValueError(f"{method} and {other} have no seed and factor of style in common.")
    ours, theirs = (side.loc[both].groupby("seed").mean() for side in (ours, theirs))
    found = statistics.paired_difference(ours.retention, theirs.retention)
    if len(ours) == 1:
        found |= {
            "ci_low": (ours.retention_low - theirs.retention_high).item(),
            "ci_high": (ours.retention_high - theirs.retention_low).item(),
        }
    return found
