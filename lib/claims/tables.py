"""The benchmark of notebook 80: accuracy, uncertainty, calibration and cost of every method in one table, and which differences are sure.

Everything is read from stored metrics, scores, tables and config.json.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
import scipy

from lib import evaluation, methods
from lib.claims import differences as comparisons
from lib.claims import ledger as claims
from lib.claims.differences import label
from lib.evaluation import image_scores, shift, uncertainty
from lib.evaluation import intervals as statistics
from lib.evaluation import measure as protocol
from lib.evaluation import style as factors
from lib.runs import settings as resolution
from lib.runs import store as artifacts

CORRUPTIONS, STYLES = (
    "50_prosmin_calibration_and_shift",
    "40_style",
)  # the notebook and the table that are read
RETAINED = (
    "retention",
    "retention_low",
    "retention_high",
)  # of that table, read as value, ci_low and ci_high
SCORES = {
    "uncertainty": "own",
    "feature_norm": "feature norm",
    "knn_distance": "k-NN distance",
    "max_softmax": "max softmax",
    "image_entropy": "image entropy",
    "file_size": "file size",
}
CERTAINTIES = (
    "feature_norm",
    "max_softmax",
)  # of these scores, those that fall with the uncertainty, so that minus one is meant
# what a method says besides its own uncertainty -> its name; the metrics where its paper's notebook left how well it tells foreign images apart
SECOND = {
    "negative_log_likelihood": "negative log-likelihood",
    "target_energy": "energy of the target",
}
SECOND_IN = ("60_vje_likelihood-ood", "50_prosmin_calibration_and_shift-ood")
REFERENCES = (*protocol.REFERENCES, "supervised")  # untrained, no network, or trained on the labels
PREDICTIVE = tuple(
    name for name in methods.METHODS if name not in (*methods.GENERATIVE, *REFERENCES)
)  # self-supervised, without a decoder
RANKED, FEW_SEEDS, NO_SCORES = "ranked", "too few seeds", "no per-image scores"

CLASSIFIERS = ("linear", "knn")
# measure -> metric, classifier and condition of its rows in the stored battery
MEASURES = {
    f"{classifier}_{metric}": (metric, classifier, "clean")
    for metric in ("accuracy", "correctness_auroc", "aurc", "excess_aurc", "augrc")
    for classifier in CLASSIFIERS
}
MEASURES |= {"recall_auroc": ("recall_auroc", "nearest_neighbour", "clean")}
MEASURES |= {
    f"{distance}_{metric}": (metric, "", f"{distance}_ood")
    for distance in ("near", "far")
    for metric in evaluation.OOD_MEASURES
}
MEASURES |= {f"{family}_spearman": ("severity_spearman", "", family) for family in ("crop", "blur")}
MEASURES |= {
    metric: (metric, "linear", "clean") for metric in ("nll", "ece", "ece_equal_mass", "brier")
}
MEASURES |= {"effective_rank": ("effective_rank", "", "clean")}
MAIN = {
    "linear_correctness_auroc": "correctness (linear)",
    "near_ood_auroc": "near OOD",
    "far_ood_auroc": "far OOD",
}
# how much of an image is lost: of these the rank correlation with the method's one score is stored, whatever that is
GRADED = {
    "crop_spearman": "how far cropped",
    "blur_spearman": "how far blurred",
    "corruption_spearman": "how far corrupted",
}
RANKS = {
    "linear_accuracy": "accuracy (linear)",
    "knn_accuracy": "accuracy (k-NN)",
} | MAIN  # what methods are ranked by
# what other notebooks and the training left, and why it may be missing
ELSEWHERE = {
    "corruption_spearman": "not measured by notebook 50",
    "style_retention": "not measured by notebook 40",
    "images_per_second": "not trained",
    "training_seconds": "not trained",
}
# The measures by what they are of, as a person reads them.
GROUPS = {
    "Accuracy on frozen features (fractions), effective rank, and style retained": (
        "linear_accuracy",
        "knn_accuracy",
        "effective_rank",
        "style_retention",
    ),
    "Right and wrong told apart: AUROC of correctness, and of whether the nearest neighbour is of the same class (recall)": (
        "linear_correctness_auroc",
        "knn_correctness_auroc",
        "recall_auroc",
    ),
    "Error left when the least certain images are: area under the risk-coverage curve (AURC), in excess of the least that is possible, and of the "
    "generalised risk (AUGRC)": tuple(
        f"{name}_{metric}" for metric in ("aurc", "excess_aurc", "augrc") for name in CLASSIFIERS
    ),
    "Foreign images told apart: AUROC, false positive rate where 95 % are noticed, average precision (chance: the share of foreign images, "
    "{near} near, {far} far)": tuple(
        f"{distance}_{metric}" for distance in ("near", "far") for metric in evaluation.OOD_MEASURES
    ),
    "How far an image is cropped, blurred or corrupted: Spearman's ρ with the severity": tuple(
        GRADED
    ),
    "Probabilities of the linear probe: NLL (nats), ECE with 15 bins of equal width and of equal mass, Brier score": (
        "nll",
        "ece",
        "ece_equal_mass",
        "brier",
    ),
    "Cost, of each run's own machine and load; in brackets the lowest and the highest seed": (
        "images_per_second",
        "training_seconds",
    ),
}
KEYS = ["method", "score", "measure", "seed"]
DIFFERENCES = [
    "method",
    "score",
    "minus_method",
    "minus_score",
    "measure",
    "difference",
    "ci_low",
    "ci_high",
    "p_holm",
    "seeds",
    "pairing",
    "sure",
]


# ---------------------------------------------------------------------------------------------------------------- what is stored
def _listed(profile: str) -> list[dict]:
    """All runs that the profile lists for the comparison of methods on its own data set, stored or not."""
    dataset = resolution.profile_settings(profile)["dataset"]
    return [
        run
        for group in (resolution.PROTOCOL, "vit", "simvae")
        for run in resolution.runs(profile, group=group)
        if run["dataset"] == dataset
    ]


def runs(profile: str) -> dict[str, list[dict]]:
    """Settings of the measured runs on the profile's data set by method, one a seed; FileNotFoundError where there is none."""
    found: dict[str, dict[int, dict]] = {}
    for run in protocol.required(_listed(profile), profile):
        found.setdefault(run["method"], {}).setdefault(run["seed"], run)
    return {method: list(by_seed.values()) for method, by_seed in found.items()}


def measurements(profile: str) -> pd.DataFrame:
    """Every stored number of the benchmark: columns KEYS, value, ci_low, ci_high (95 %, images of one seed), n.

    score is one of SCORES or SECOND; what depends on no score (accuracy, calibration, cost) stands under "uncertainty". OOD measures are means over
    the sets of one distance, corruption_spearman over the 15 corruptions, style_retention over the factors of the profile's first set with drawn
    styles; so are the ends of their intervals. Cost is of the runs on what most were trained on.
    """
    measure_of = {where: name for name, where in MEASURES.items()}
    images, path = (
        image_scores.stored_metrics(profile),
        artifacts.results_dir(profile) / "tables" / f"{STYLES}.csv",
    )
    styles = (
        artifacts.read_csv(path)
        if path.exists()
        else pd.DataFrame(columns=["method", "trained_on", "set", "seed", "condition", *RETAINED])
    )
    styles = styles[
        ~styles.condition.isin(factors.CONTENT)
        & (styles.set == resolution.profile_settings(profile)["factor_sets"][0])
    ]
    trained_on = styles.trained_on.str.split(" (", regex=False).str[
        0
    ]  # without the number of images
    frames, found = [], runs(profile)
    accelerator = _accelerator(run for listed in found.values() for run in listed)
    for method, listed in found.items():
        for run in listed:
            name, seed = resolution.run_name(run), run["seed"]
            second = pd.concat(
                [artifacts.read_metrics(profile, notebook, name) for notebook in SECOND_IN]
            )
            battery = pd.concat(
                [protocol.metrics([run]), images, second[second.score.isin(SECOND)]]
            )
            battery["measure"] = [
                measure_of.get(where)
                for where in zip(battery.metric, battery.classifier, battery.condition, strict=True)
            ]
            shifted = pd.concat(
                [
                    artifacts.read_metrics(profile, notebook, name)
                    for notebook in (CORRUPTIONS, f"{CORRUPTIONS}-{shift.SEVERITY}")
                ]
            )
            shifted = shifted[shifted.metric == "severity_spearman"].assign(
                measure="corruption_spearman"
            )
            style = styles[
                (styles.method == method) & (trained_on == run["dataset"]) & (styles.seed == seed)
            ]
            style = (
                style[list(RETAINED)]
                .set_axis(["value", "ci_low", "ci_high"], axis=1)
                .assign(measure="style_retention", score="")
            )
            rows = pd.concat(
                [battery, shifted, style, _cost(run, accelerator), _further_correctness(run)]
            ).dropna(subset=["measure", "value"])
            frames.append(
                rows.assign(method=method, seed=seed, score=rows.score.replace("", "uncertainty"))
            )
    return (
        pd.concat(frames)
        .groupby(KEYS, sort=False)[["value", "ci_low", "ci_high", "n"]]
        .mean()
        .reset_index()
    )


def _config(run: dict) -> dict:
    path = artifacts.config_path(run["profile"], resolution.run_name(run))
    return artifacts.read_json(path) if path.exists() and run["epochs"] else {}


def _trained_on(config: dict) -> str:
    return config.get("hardware", {}).get("accelerator", "none")  # "none": a CPU


def _accelerator(every: Iterable[dict]) -> str:
    """What most of these runs were trained on: seconds on another say nothing beside theirs."""
    counts = Counter(_trained_on(_config(run)) for run in every if run["epochs"])
    return max(counts, key=counts.get, default="none")


def _cost(run: dict, accelerator: str) -> pd.DataFrame:
    config = _config(run)
    config = config if _trained_on(config) == accelerator else {}
    values = {
        "images_per_second": config.get("images_per_second", np.nan),
        "training_seconds": config.get("seconds", np.nan),
    }
    rows = pd.DataFrame({"measure": values.keys(), "score": "", "value": values.values()})
    return rows.assign(
        ci_low=rows.value, ci_high=rows.value
    )  # so that over seeds the lowest and the highest are told


def _further_correctness(run: dict) -> pd.DataFrame:
    """Correctness AUROC of SECOND and of what the images alone say, for the run's classifiers; no rows where either is not stored."""
    table, rows, draws = scores(run), [], max(20, run["bootstrap_draws"] // 10)
    for score in [name for name in (*SECOND, *image_scores.NAMES) if name in table]:
        for classifier in CLASSIFIERS:
            arrays = -evaluation.as_uncertainty(table, score), table[f"{classifier}_correct"]
            row = {
                "measure": f"{classifier}_correctness_auroc",
                "score": score,
                "n": len(arrays[0]),
            }
            rows.append(row | evaluation.with_interval(uncertainty.auroc, *arrays, draws=draws))
    return pd.DataFrame(rows)


def scores(run: dict) -> dict[str, np.ndarray]:
    """The stored per-image scores of a run on its test set, with those of the images alone, where these are of images in the same order; empty where
    the run's own are not stored."""
    table = artifacts.stored_scores(run["profile"], resolution.run_name(run), run["dataset"])
    if "feature_norm" not in table:  # the battery's, not a part of them
        return {}
    images = image_scores.stored(run["profile"], run["dataset"])
    return table | images if np.array_equal(images.get("label"), table.get("label")) else table


# ---------------------------------------------------------------------------------------------------------------- the table
def statuses(profile: str) -> dict[str, str]:
    """For each of METHODS "ranked", or why not: "not run (…)", "reference", "no per-image scores", "under-trained", too few seeds."""
    found = runs(profile)
    every, state = [run for listed in found.values() for run in listed], {}
    references = [run for run in every if run["method"] in protocol.REFERENCES and scores(run)]
    for method in methods.METHODS:
        listed = found.get(method, [])
        if not listed:
            state[method] = f"not run ({_why_not_run(method, profile, every)})"
        elif method in REFERENCES:
            state[method] = "reference"
        elif not all(map(scores, listed)):
            state[method] = NO_SCORES
        elif not comparisons.is_evidence(
            pd.concat([comparisons.gains(run, references) for run in listed])
        ):
            state[method] = "under-trained"
        elif profile in claims.ILLUSTRATIONS:
            state[method] = f"illustration, {FEW_SEEDS}"
        else:
            state[method] = RANKED if len(listed) >= claims.SEEDS else FEW_SEEDS
    return state


def _why_not_run(method: str, profile: str, stored: list[dict]) -> str:
    missing = [run for run in _listed(profile) if run["method"] == method]
    if missing:
        accelerator = _accelerator(stored)
        cost = pd.concat([_cost(run, accelerator) for run in stored])
        hours = len(missing) * cost[cost.measure == "training_seconds"].value.median() / 3600
        about = (
            ""
            if np.isnan(hours)
            else f", about {hours:.1f} hours at the median of the methods here"
        )
        return f"budget: {len(missing)} run{'s' * (len(missing) > 1)} listed{about}"
    elsewhere = [run for run in resolution.runs(profile) if run["method"] == method]
    if elsewhere:
        return f"in other comparisons alone, such as {resolution.run_name(elsewhere[0])}"
    return f"profile {profile} lists no run of it"


def table(profile: str, values: pd.DataFrame) -> pd.DataFrame:
    """One row for each method, score and measure: value (mean over seeds), ci_low, ci_high, n, seeds, and a note where there is no value.

    The interval reaches from the lowest to the highest end of any seed's own, and holds each of them. Every key of METHODS has rows; one that was
    not run has a single row, whose status says why. backbone: what rows may be compared within.
    """
    found, state, rows = runs(profile), statuses(profile), []
    for method in methods.METHODS:
        backbone = found[method][0]["backbone"] if method in found else ""
        about = {
            "method": method,
            "backbone": "" if method == "raw_pixels" else backbone,
            "status": state[method],
        }
        about["uncertainty"] = methods.own_uncertainty(method)[1]
        part = values[values.method == method].groupby(["score", "measure"])
        summary = part.agg(**evaluation.OVER_SEEDS)
        if method not in found:
            rows.append(about | {"score": "uncertainty", "seeds": 0})
            continue
        for score in (*SCORES, *SECOND):
            for measure in (*MEASURES, *ELSEWHERE):
                if (score, measure) in summary.index:
                    rows.append(
                        about
                        | {"score": score, "measure": measure}
                        | summary.loc[(score, measure)].to_dict()
                    )
                elif score == "uncertainty":
                    note = ELSEWHERE.get(
                        measure, f"no such row in the battery of profile {profile}"
                    )
                    rows.append(
                        about | {"score": score, "measure": measure, "seeds": 0, "note": note}
                    )
    columns = [
        "method",
        "backbone",
        "uncertainty",
        "status",
        "score",
        "measure",
        "value",
        "ci_low",
        "ci_high",
        "n",
        "seeds",
        "note",
    ]
    return pd.DataFrame(rows, columns=columns)


def tables_to_read(summary: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """table() by GROUPS: a row a method by its own uncertainty, its seeds, and each value as text with its interval, and its seeds where fewer."""
    from lib.figures.charts import kappa_text  # slow to import

    own, tables = summary[(summary.score == "uncertainty") & summary.value.notna()], {}
    ends = [
        f" [{kappa_text(row.ci_low)}, {kappa_text(row.ci_high)}]" if pd.notna(row.ci_low) else ""
        for row in own.itertuples()
    ]
    own = own.assign(cell=own.value.map(kappa_text) + ends)
    images = own.groupby("measure").n.max()
    share = {
        distance: 1
        - images.get("linear_accuracy", np.nan) / images.get(f"{distance}_ood_auroc", np.nan)
        for distance in ("near", "far")
    }
    for title, names in GROUPS.items():
        title = title.format(**{distance: f"{value:.2f}" for distance, value in share.items()})
        part = own[own.measure.isin(names)]
        seeds = part.groupby("method").seeds.max()
        fewer = part.seeds < part.method.map(seeds)
        part = part.assign(
            cell=part.cell
            + part.seeds.map(lambda n: f" ({n:.0f} seed{'s' * (n > 1)})").where(fewer, "")
        )
        cells = (
            part.pivot(index="method", columns="measure", values="cell")
            .fillna("")
            .assign(seeds=seeds)
        )
        cells = cells[[name for name in (*names, "seeds") if name in cells]]
        tables[title] = cells.loc[[name for name in methods.METHODS if name in cells.index]].rename(
            index=label
        )
    return {title: cells for title, cells in tables.items() if len(cells)}


def told_unlike(profile: str) -> list[str]:
    """What the runs of the table are not alike in, a sentence each: learning rates and their search, views of an image a step, precision, and the
    order of their test images, as where a set is from elsewhere."""
    found = runs(profile)
    every = [run for same in found.values() for run in same]
    more = ", ".join(
        dict.fromkeys(
            f"{label(run['method'])} ({2 + run['local_views']})"
            for run in every
            if run["epochs"] and run.get("local_views")
        )
    )
    views = f"More than two views of an image a step: {more or 'none'}."
    stored = {
        method: [table for run in same if (table := scores(run))] for method, same in found.items()
    }
    _, *others = sorted(
        orders_of_images({method: of for method, of in stored.items() if of}), key=len, reverse=True
    ) or [[]]
    apart = ", ".join(label(method) for together in others for method in together)
    apart = (
        f"Test images in another order than the others': {apart}; their differences from those are not paired by image."
        * bool(apart)
    )
    return [
        sentence
        for sentence in (
            *comparisons.told_rates(every),
            views,
            comparisons.mixed_precision(every),
            apart,
        )
        if sentence
    ]


# ---------------------------------------------------------------------------------------------------------------- comparisons
def advice(summary: pd.DataFrame, top: int = 3) -> pd.DataFrame:
    """What to use for what: for each use of MAIN and GRADED the ``top`` highest means of all scores on all networks in table(), of three kinds.

    Where none of these has three seeds, the highest that has stands beside them.
    Columns use, kind, score, method, value (AUROC; of GRADED Spearman's ρ with the severity), ci_low, ci_high, seeds. kind: "without labels"; "with
    labels", as max softmax has seen them; and, of the first once more, "a method's own", what methods say of an image that is no trivial score.
    Means, not tests. The supervised network is left out; a method's own uncertainty that is a trivial score stands under the trivial score's name,
    and how well the images alone tell foreign ones apart, which is the same for all networks, once, with the raw pixels.
    """
    uses = MAIN | GRADED
    found = summary[
        summary.measure.isin(uses) & summary.value.notna() & (summary.method != "supervised")
    ]
    found = found[
        (found.score != "uncertainty")
        | (found.uncertainty != methods.TRIVIAL[1])
        | found.measure.isin(GRADED)
    ]
    no_network = found.score.isin(image_scores.NAMES) & found.measure.str.endswith("_ood_auroc")
    found = found.assign(method=found.method.mask(no_network, "raw_pixels")).drop_duplicates(
        ["measure", "score", "method"]
    )
    kinds = ["without labels", "with labels", "a method's own"]
    own = (found.score == "uncertainty") & (found.uncertainty != methods.TRIVIAL[1])
    names = (
        found.score.replace("uncertainty", "feature_norm")
        .map(SCORES | SECOND)
        .mask(own, found.uncertainty)
    )
    names = ("-" + names).where(names.isin([SCORES[name] for name in CERTAINTIES]), names)
    kind = np.where(found.score == "max_softmax", kinds[1], kinds[0])
    found = found.assign(
        use=found.measure.map(uses), score=names, kind=kind, own=own | found.score.isin(SECOND)
    )
    found = pd.concat([found, found[found.own].assign(kind=kinds[2])])
    order = {"use": list(uses.values()).index, "kind": kinds.index}
    found = found.sort_values("value", ascending=False, kind="stable").reset_index(drop=True)
    each, enough = ["use", "kind"], found.seeds >= claims.SEEDS
    highest_of_enough = enough & (enough.groupby([found[key] for key in each]).cumsum() == 1)
    best = found[(found.groupby(each).cumcount() < top) | highest_of_enough]
    best = best.sort_values(
        ["use", "kind"], key=lambda column: column.map(order[column.name]), kind="stable"
    )
    return best[
        ["use", "kind", "score", "method", "value", "ci_low", "ci_high", "seeds"]
    ].reset_index(drop=True)


def differences(
    profile: str,
    values: pd.DataFrame,
    measure: str,
    pairs: list[tuple[tuple[str, str], tuple[str, str]]],
) -> pd.DataFrame:
    """measure of the first minus that of the second (method, score) of every pair, with intervals that hold all pairs at once with 95 %.

    Draws of what images vary by and of what seeds vary by are added up, and the maximum statistic (statistics.simultaneous_intervals) holds the
    pairs together. Images: of accuracy and correctness AUROC a bootstrap, the same images for all that have them in one order (pairing); scores of
    other sets are not stored by image of every method, so for OOD the standard errors of a seed's two numbers are added up, which bounds that of
    their difference whatever the dependence. Seeds: between methods ``statistics.seed_noise`` of each one's numbers; between scores of one network
    Student's t of their differences in each seed, whose spreads are too unlike for that: ``statistics.moderated_errors``. p_holm: Holm-adjusted over
    the pairs, beside the interval, which holds all pairs at once and decides. sure: the interval excludes zero.
    """
    entries = list(dict.fromkeys(entry for pair in pairs for entry in pair))
    first, second = ([entries.index(pair[side]) for pair in pairs] for side in (0, 1))
    # accuracy depends on no score
    by_seed = (
        values[(values.measure == measure) & values.value.notna()]
        .set_index(["method", "score", "seed"])
        .sort_index()
    )
    numbers = [
        by_seed.loc[method, "uncertainty" if measure.endswith("_accuracy") else score]
        for method, score in entries
    ]
    count, generator = (
        max(20, resolution.profile_settings(profile)["bootstrap_draws"] // 2),
        np.random.default_rng(1),
    )
    if measure.endswith(("_accuracy", "correctness_auroc")):
        estimates, draws, order = _image_draws(profile, entries, *measure.split("_", 1), count)
        gap, drawn = estimates[first] - estimates[second], draws[:, first] - draws[:, second]
        how = np.where(order[first] == order[second], "paired by image", "images in another order")
    else:
        estimates = np.array([rows.value.mean() for rows in numbers])
        errors = np.array([(rows.ci_high - rows.ci_low).mean() for rows in numbers]) / (
            2 * scipy.stats.norm.isf(0.025)
        )
        gap, how = estimates[first] - estimates[second], "bound"
        drawn = gap + generator.normal(size=(count, len(pairs))) * (errors[first] + errors[second])
    if all(one == other for (one, _), (other, _) in pairs):
        seeds, freedom = statistics.moderated_errors(
            [
                numbers[one].value - numbers[other].value
                for one, other in zip(first, second, strict=True)
            ]
        )
        error = np.hypot(drawn.std(axis=0, ddof=1), seeds)
        drawn = drawn + generator.standard_t(freedom, size=drawn.shape) * seeds
        away = np.divide(np.abs(gap), error, out=np.where(gap == 0, 0.0, np.inf), where=error > 0)
        # Welch and Satterthwaite, of images without end
        freedom = (
            freedom * np.divide(error, seeds, out=np.full_like(error, np.inf), where=seeds > 0) ** 4
        )
        p = 2 * scipy.stats.t.sf(away, freedom)
    else:
        noise, error = statistics.seed_noise([rows.value for rows in numbers], count), None
        drawn = drawn + noise[:, first] - noise[:, second]
        p = statistics.bootstrap_p_values(gap, drawn)
    low, high = np.clip(
        statistics.simultaneous_intervals(gap, drawn, error), -1, 1
    )  # no fraction differs from another by more
    named = [(*a, *b) for a, b in pairs]
    frame = pd.DataFrame(named, columns=["method", "score", "minus_method", "minus_score"]).assign(
        measure=measure, difference=gap
    )
    fewest = [
        min(len(numbers[one]), len(numbers[other]))
        for one, other in zip(first, second, strict=True)
    ]
    return frame.assign(
        ci_low=low,
        ci_high=high,
        p_holm=statistics.holm(p),
        seeds=fewest,
        pairing=how,
        sure=(low > 0) | (high < 0),
    )


def _image_draws(
    profile: str, entries: list[tuple[str, str]], classifier: str, what: str, count: int
) -> tuple[np.ndarray, ...]:
    """Accuracy or correctness AUROC (``what``) of every (method, score): estimates [E], draws [B, E] over images alone, and which of the
    ``orders_of_images`` each has [E]: a draw has the same images for all of one order, and others for those of another.
    """
    found, names = runs(profile), list(dict.fromkeys(score for _, score in entries))
    tables = {method: [scores(run) for run in found[method]] for method, _ in entries}

    def columns(of: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return [
            *(-evaluation.as_uncertainty(of, name) for name in names),
            of[f"{classifier}_correct"],
        ]

    def measured(*columns: np.ndarray) -> list[float]:
        return [
            columns[-1].mean() if what == "accuracy" else uncertainty.auroc(column, columns[-1])
            for column in columns[:-1]
        ]

    drawn = {}  # method -> estimates [S], draws [B, S] and order
    for seed, together in enumerate(orders_of_images(tables)):
        arrays = [[columns(one) for one in tables[method]] for method in together]
        estimates, draws = statistics.hierarchical_draws(
            measured, arrays, draws=count, seed=seed, over_seeds=False
        )
        drawn |= {
            method: (estimates[place], draws[:, place], seed)
            for place, method in enumerate(together)
        }
    each = [(*drawn[method], names.index(score)) for method, score in entries]
    estimates, draws = (
        np.array([of[at] for of, _, _, at in each]),
        np.stack([of[:, at] for _, of, _, at in each], axis=1),
    )
    return estimates, draws, np.array([order for _, _, order, _ in each])


def orders_of_images(tables: Mapping[str, Sequence[Mapping]]) -> list[list[str]]:
    """Of these methods (-> stored scores of each seed) those together whose test images stand in one order, by their labels; the first's first.

    ValueError for one whose seeds are of several orders.
    """
    groups: dict[bytes, list[str]] = {}
    for method, of in tables.items():
        orders = {one["label"].tobytes() if "label" in one else b"" for one in of}
        if len(orders) > 1:
            raise ValueError(
                f"The stored scores of {method} are of test images in several orders: measure all its seeds on one copy of the set."
            )
        groups.setdefault(orders.pop(), []).append(method)
    return list(groups.values())


def ranks(
    profile: str, values: pd.DataFrame, summary: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rank intervals of the ranked methods, their own uncertainties, in each of RANKS within each backbone, and the differences they follow from.

    Ranks: measure, backbone, method, value, best, worst, methods (how many are ranked). Both are empty where fewer than two methods are ranked.
    Differences begin with measure and backbone too, and have p_seeds: Welch's t over the seeds' values alone, Holm-adjusted, as a bootstrap of three
    seeds is too sure of itself.
    """
    by_seed = values[values.score == "uncertainty"].groupby(["measure", "method"]).value
    columns = [
        "measure",
        "backbone",
        *(name for name in DIFFERENCES if name != "measure"),
        "p_seeds",
    ]
    pairwise = [pd.DataFrame(columns=columns)]
    rows = [
        pd.DataFrame(columns=["measure", "backbone", "method", "value", "best", "worst", "methods"])
    ]
    ranked = summary[
        (summary.status == RANKED) & (summary.score == "uncertainty") & summary.measure.isin(RANKS)
    ].dropna(subset=["value"])
    for (backbone, measure), part in ranked.groupby(["backbone", "measure"], sort=False):
        if len(part) > 1:
            pairs = [
                ((a, "uncertainty"), (b, "uncertainty")) for a, b in combinations(part.method, 2)
            ]
            found = differences(profile, values, measure, pairs).assign(backbone=backbone)
            over_seeds = [
                _p_over_seeds(*(by_seed.get_group((measure, name)) for name in pair))
                for pair in combinations(part.method, 2)
            ]
            found["p_seeds"] = statistics.holm(over_seeds)
            best, worst = statistics.rank_intervals(len(part), found.ci_low, found.ci_high)
            rows.append(
                part[["measure", "backbone", "method", "value"]].assign(
                    best=best, worst=worst, methods=len(part)
                )
            )
            pairwise.append(found[columns])
    return tuple(pd.concat(frames[1:] or frames, ignore_index=True) for frames in (rows, pairwise))


def open_by_seeds(
    placed: pd.DataFrame, pairwise: pd.DataFrame, measure: str, backbone: str
) -> list[str]:
    """The methods behind the first rank, best mean first, that p_seeds (Holm-adjusted) does not tell from every method that may have it, at 5 %.

    placed, pairwise: as ``ranks`` gives them.
    """
    here, pairs = (
        frame[(frame.measure == measure) & (frame.backbone == backbone)]
        for frame in (placed, pairwise)
    )
    first, weak = set(here.method[here.best == 1]), pairs[pairs.p_seeds >= 0.05]
    left = {
        name
        for pair in zip(weak.method, weak.minus_method, strict=True)
        if len(first & set(pair)) == 1
        for name in {*pair} - first
    }
    return [name for name in here.sort_values("value", ascending=False).method if name in left]


def told_first(
    placed: pd.DataFrame, pairwise: pd.DataFrame, summary: pd.DataFrame, measure: str, backbone: str
) -> str:
    """Who can be first of the ranked methods, in words; of a use of MAIN also whose own uncertainty is surely below one half, and of a single first
    whom the seeds alone leave open (``open_by_seeds``).

    placed, pairwise: as ``ranks`` gives them; summary: as ``table`` does.
    """
    here = placed[(placed.measure == measure) & (placed.backbone == backbone)].sort_values(
        "value", ascending=False
    )
    first = here[here.best == 1]
    front = [f"{label(row.method)} (1 to {row.worst})" for row in first.itertuples()]
    if len(front) == 1:
        told = f"{front[0]} is first"
        if measure in MAIN and (left_open := open_by_seeds(placed, pairwise, measure, backbone)):
            told += (
                f", which its seeds alone leave open against {' and '.join(map(label, left_open))}"
            )
    elif len(front) > 3:
        told = f"{len(front)} methods (highest mean: {label(first.method.iloc[0])}) share the first rank"
    else:
        told = f"{'; '.join(front[:-1])} and {front[-1]} share the first rank"
    own = summary[
        (summary.score == "uncertainty")
        & (summary.measure == measure)
        & summary.method.isin(first.method)
    ]
    below = (own.ci_high < 0.5).sum() if measure in MAIN else 0
    return (
        told
        + f", {'itself' if len(front) == 1 else f'{below} of these'} surely below one half"
        * bool(below)
    )


def _p_over_seeds(first: pd.Series, second: pd.Series) -> float:
    """p of Welch's t; where neither varies over its seeds no t is defined, and they differ or are the same."""
    if uncertainty.is_constant(first) and uncertainty.is_constant(second):
        return float(np.isclose(first.iloc[0], second.iloc[0], rtol=uncertainty.ROUNDING, atol=0))
    return statistics.welch_test(first, second).p_value


def against_trivial(profile: str, values: pd.DataFrame, summary: pd.DataFrame) -> pd.DataFrame:
    """Differences of every uncertainty that a method has of its own from each trivial score on the same network, for each column of MAIN."""
    frames = [pd.DataFrame(columns=DIFFERENCES)]
    own = summary[
        (summary.uncertainty != methods.TRIVIAL[1])
        & summary.value.notna()
        & (summary.status != NO_SCORES)
    ]
    for measure in MAIN:
        there = own[
            (own.measure == measure) & own.score.isin(SCORES) & (own.score != "uncertainty")
        ]
        pairs = [
            ((row.method, "uncertainty"), (row.method, row.score)) for row in there.itertuples()
        ]
        frames += [differences(profile, values, measure, pairs)] if pairs else []
    return pd.concat(frames[1:] or frames, ignore_index=True)
