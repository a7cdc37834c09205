"""The claims ledger: every published claim, the stored number that answers it, and the verdict of a rule.

Rules are written before the runs, but for those that notebook 90 names. settings/claims.toml holds the claims; results/<profile>/tables and metrics
hold our numbers. Nothing is computed from checkpoints here.
"""

import re
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch

from lib import methods, networks
from lib.claims import differences as comparisons
from lib.data import views as augmentations
from lib.evaluation import generation
from lib.evaluation import intervals as statistics
from lib.evaluation import measure as protocol
from lib.evaluation import probes as evaluation
from lib.evaluation import style as factors
from lib.runs import settings as resolution
from lib.runs import store as artifacts
from lib.runs.settings import ILLUSTRATIONS

REPRODUCED, SAME, NOT_REPRODUCED, CONTRADICTED = (
    "reproduced",
    "same direction",
    "not reproduced",
    "contradicted",
)
NOT_TESTED, NOT_TESTABLE, FOLLOWED, DEVIATES = "not tested", "not testable", "followed", "deviates"
# From worst to best: a claim of several parts is as good as the worst of those that were tested.
ORDER = (
    CONTRADICTED,
    NOT_REPRODUCED,
    DEVIATES,
    SAME,
    REPRODUCED,
    FOLLOWED,
    NOT_TESTED,
    NOT_TESTABLE,
)
SIDES = {
    "above": "above",
    "below": "below",
    "at_most": "at most",
    "within": "within",
}  # the kinds of rules, in words
KINDS = ("number", "direction", "qualitative", "recipe")
SEEDS = 3
PUBLISHED_RUNS = 3  # behind every published standard error
ALONE = " (its interval is over images alone)"  # said of one seed, where nothing else varies
INCLUDES = "includes the bound"  # said of an interval that settles nothing
UNSETTLED = "Student's t over them alone includes the bound"  # said of seeds so few, or so unlike, that by them alone nothing is settled
MOVED_BY_ONE_RUN = "another precision or seed may move one run by more"
BEYOND = (
    "(not in the paper)"  # in the name of a part that is shown, but decides nothing about its claim
)
# Tables and notebooks that read other runs than those of the protocol, by how their names start, and the groups of these runs in runs.toml.
GROUPS = {
    "40": ("simvae", resolution.PROTOCOL),
    "41": ("simvae", resolution.PROTOCOL),
    "44": ("simvae", resolution.PROTOCOL),
    "42": ("ablations",),
    "43": (),
    "52": ("scoring",),
    "60_one_class": ("one_class",),
    "61": ("likelihood",),
}
# What a claim and a part of it may say in settings/claims.toml, first what they must; a claim says for all its parts what is in SHARED.
SHARED = ("data", "epochs", "family", "about", "methods", "over", "form")
OF_A_CLAIM = (
    ("paper", "where", "statement", "kind"),
    (*SHARED, "unit", "needs", "recipe", "published", "parts", "at_standard", "unlike"),
)
OF_A_PART = (
    ("name",),
    (
        *SHARED,
        "query",
        "rule",
        "published",
        "on",
        "error",
        "unit",
        "recipe",
        "lacks",
        "why",
        "never",
        "at_standard",
        "unlike",
    ),
)
COLUMNS = [
    "id",
    "part",
    "paper",
    "where",
    "statement",
    "kind",
    "unit",
    "published",
    "claimed",
    "bound",
    "ours",
    "ci_low",
    "ci_high",
    "n",
    "seeds",
    "verdict",
    "reason",
    "commit",
]


class Printed(float):
    """A number of settings/claims.toml that knows its digits: 0.500 is printed with three."""

    def __new__(cls, text: str):
        number = super().__new__(cls, text)
        number.text = text
        return number


class Found(NamedTuple):
    """Our number for one part of a claim: mean over seeds, 95 % interval, images, seeds, the commits that measured it; epochs, runs and Student's t
    interval over the seeds alone if stored; idle: whether of the two runs that it compares neither is surely above the untrained network;
    repetition: what training one such run again, with another precision or seed, may move it by, if that is known."""

    value: float
    low: float
    high: float
    n: float
    seeds: int
    commit: str
    epochs: float = np.nan
    runs: tuple[str, ...] = ()
    t_low: float = np.nan
    t_high: float = np.nan
    idle: bool = False
    repetition: float = np.nan


# ---------------------------------------------------------------------------------------------------------------- what is claimed
@cache
def claims() -> dict[str, dict]:
    """Every claim of settings/claims.toml by id, each with a list of parts; ValueError for one that cannot be judged."""
    found = {}
    for name, claim in resolution.read("claims", Printed).items():
        for of, (needed, further) in (
            (claim, OF_A_CLAIM),
            *((part, OF_A_PART) for part in claim.get("parts", [])),
        ):
            where = f"Claim {name}, part {of.get('name')!r}" if of is not claim else f"Claim {name}"
            if absent := [key for key in needed if key not in of]:
                raise ValueError(f"{where} does not say its {', '.join(absent)}.")
            if unknown := sorted(set(of) - {*needed, *further}):
                raise ValueError(
                    f"{where}: nothing reads {', '.join(unknown)}; it may say {', '.join(sorted({*needed, *further}))}."
                )
        if claim["kind"] not in KINDS:
            raise ValueError(
                f"Claim {name} has the kind {claim['kind']!r}; choose one of {list(KINDS)}."
            )
        shared = {key: claim[key] for key in SHARED if key in claim}
        parts = [{"unit": claim.get("unit", "")} | shared | part for part in claim.get("parts", [])]
        for part in parts:
            for key in ("at_standard", "unlike"):
                if told := [of[key] for of in (claim, part) if key in of]:
                    part[key] = ", ".join(told)
        if "recipe" in claim:  # a claim of one recipe is a part of its own
            parts.insert(
                0,
                {
                    "name": f"recipe {claim['recipe']}",
                    "recipe": claim["recipe"],
                    "published": claim["published"],
                },
            )
        for part in parts:
            if "recipe" in part:
                continue
            if ("query" in part) != ("rule" in part) or sum(
                key in part for key in ("query", "why", "never")
            ) != 1:
                raise ValueError(
                    f"Claim {name}, part {part['name']!r}: give a query and its rule, or why there is none, or why there can never be."
                )
            if unknown := sorted(
                {key for key, value in part.get("query", {}).items() if isinstance(value, dict)}
                - set(resolution.read("profiles"))
            ):
                raise ValueError(
                    f"Claim {name}, part {part['name']!r}: its query asks something else in {unknown}, which are no profiles."
                )
            if "rule" in part and (len(part["rule"]) != 1 or not set(part["rule"]) <= set(SIDES)):
                raise ValueError(
                    f"Claim {name}, part {part['name']!r}: the rule {part['rule']} is not one of {', '.join(SIDES)}."
                )
        names = [part["name"] for part in parts]
        if twice := sorted({part for part in names if names.count(part) > 1}):
            raise ValueError(
                f"Claim {name} has several parts called {', '.join(twice)}; name what sets them apart."
            )
        found[name] = claim | {"parts": parts}
    return found


def in_profile(part: dict, profile: str) -> dict:
    """The part as this profile answers it: columns of the query under the profile's name take the place of those beside them, and what is unlike the
    paper's experiment at profile standard (at_standard) is said there, before what is so anywhere (unlike)."""
    part = dict(part)
    here = [part.pop("at_standard", "")] * (profile == "standard")
    if unlike := ", ".join(filter(None, [*here, part.pop("unlike", "")])):
        part["unlike"] = unlike
    if "query" in part:
        part["query"] = {
            key: value for key, value in part["query"].items() if not isinstance(value, dict)
        } | part["query"].get(profile, {})
    return part


def takes(name: str) -> str:
    """What the full test of a claim takes, in words, with what another claim says of it."""
    needs = claims()[name].get("needs", "")
    other = re.search(r"\bas ([A-Z]+\d?-\d+)", needs)
    return f"{needs} ({claims()[other[1]]['needs']})" if other else needs


def published(part: dict) -> float:
    """The published number of a part: as printed, a difference or ratio of two printed cells, or NaN where the paper prints none."""
    value = part.get("published", np.nan)
    if isinstance(value, dict):
        value = value["of"] - value["minus"] if "minus" in value else value["of"] / value["over"]
    return float(value)


def printed(*names: str) -> str:
    """What the papers print for the parts of these claims, in words and with their digits: one cell, or two that are compared."""
    told = []
    for name in names:
        claim = claims()[name]
        parts = [
            part for part in claim["parts"] if isinstance(part.get("published"), (dict, float))
        ]
        cells = "; ".join(
            f"{part['name'].replace(f' {BEYOND}', '')} ({_cells(part)})" for part in parts
        )
        told.append(f"{name} ({claim['statement']}), published: {cells}.")
    return " ".join(told)


def _cells(part: dict) -> str:
    value = part["published"]
    cells = map(_digits, value.values() if isinstance(value, dict) else [value])
    return " against ".join(cells) + " %" * part["unit"].startswith("points")


def rounding(part: dict) -> float:
    """How far the published number may be from what was measured, for the digits it is printed with: half a last digit of every printed cell."""
    value = part.get("published", np.nan)
    if not isinstance(value, dict):
        return _half_digit(value)
    if "minus" in value:
        return _half_digit(value["of"]) + _half_digit(value["minus"])
    return abs(published(part)) * (
        _half_digit(value["of"]) / abs(value["of"])
        + _half_digit(value["over"]) / abs(value["over"])
    )


def _half_digit(printed: float) -> float:
    return float(Decimal(5).scaleb(Decimal(_digits(printed)).as_tuple().exponent - 1))


def _digits(printed: float) -> str:
    """A number of claims.toml as it stands there, a last zero included."""
    return getattr(printed, "text", str(printed))


# ---------------------------------------------------------------------------------------------------------------- what was measured
def find(query: dict, profile: str) -> Found | None:
    """Our number for a query: one row of a table, or the metrics of all seeds of the protocol; None if it is not stored.

    Of metrics the value is the mean over seeds, and the interval reaches from the lowest to the highest end of any seed's own: it holds each of
    them. ValueError if the query has an unknown column or more than one answer.
    """
    if "table" in query:
        return _in_table(query, profile)
    query = dict(query)
    return _in_metrics(query.pop("notebook"), query, profile)


def _row(query: dict, profile: str) -> pd.Series | None:
    """The one row of a table that answers a query; None if there is none."""
    query, path = dict(query), artifacts.results_dir(profile) / "tables" / f"{query['table']}.csv"
    column, _ = query.pop("value"), query.pop("table")
    rows = (
        _select(artifacts.read_csv(path, (column,)), query, path.name).dropna(subset=[column])
        if path.exists()
        else pd.DataFrame()
    )
    if len(rows) > 1:
        raise ValueError(
            f"{len(rows)} rows of {path.name} answer {query}; name more of its columns."
        )
    return None if rows.empty else rows.iloc[0]


def _in_table(query: dict, profile: str) -> Found | None:
    row = _row(query, profile)
    if row is None:
        return None
    low, high, n = (row.get(name, np.nan) for name in ("ci_low", "ci_high", "n"))
    runs = row.get("runs", "")
    if not isinstance(runs, str) or np.isnan(row.get("seeds", 1)):
        raise ValueError(
            f"Table {query['table']} has a row without its runs or seeds, which answers {query}; draw its notebook again."
        )
    known = (
        "",
        row.get("epochs", np.nan),
        tuple(runs.split()),
        row.get("t_low", np.nan),
        row.get("t_high", np.nan),
    )
    weak = set(str(row.get("not_above_untrained")).split())
    known += (
        bool(
            row.get(
                "idle", "first" in row and {*row["first"].split(), *row["second"].split()} <= weak
            )
        ),
        row.get("repetition", np.nan),
    )
    return Found(row[query["value"]], low, high, n, int(row.get("seeds", 1)), *known)


def _in_metrics(notebook: str, query: dict, profile: str) -> Found | None:
    runs = [
        run
        for run in resolution.runs(profile, group=resolution.PROTOCOL)
        if run["method"] == query["method"]
    ]
    runs = [
        run for run in runs if run["dataset"] == _usual(run, "dataset", profile)
    ]  # profile paper has one method on several sets
    stored = [artifacts.read_metrics(profile, notebook, resolution.run_name(run)) for run in runs]
    stored = [rows for rows in stored if len(rows)]
    rows = (
        _select(pd.concat(stored), query, notebook).dropna(subset=["value"])
        if stored
        else pd.DataFrame()
    )
    if rows.empty:
        return None
    if rows.seed.duplicated().any():
        raise ValueError(
            f"Several metrics of one seed of {notebook} answer {query}; name more of their columns."
        )
    over = statistics.mean_over_seeds(rows.value)
    commits = " ".join(rows.commit.unique())
    return Found(
        rows.value.mean(),
        rows.ci_low.min(),
        rows.ci_high.max(),
        rows.n.max(),
        len(rows),
        commits,
        t_low=over["ci_low"],
        t_high=over["ci_high"],
    )


def _select(rows: pd.DataFrame, query: dict, where: str) -> pd.DataFrame:
    unknown = set(query) - set(rows.columns)
    if unknown:
        raise ValueError(f"{where} has no columns {sorted(unknown)}; it has {list(rows.columns)}.")
    for column, wanted in query.items():
        same = (
            np.isclose(rows[column].astype(float), wanted)
            if isinstance(wanted, (int, float))
            else rows[column] == wanted
        )
        rows = rows[same]
    return rows


def runs(part: dict, profile: str) -> list[str]:
    """Names of the stored runs behind the number of a part: those that its row names (in runs, or first and second), or of those seeds that all its
    methods have; none for theory and recipes."""
    query = part.get("query", {})
    if not query or part.get("about") == "theory":
        return []
    row = _row(query, profile) if "table" in query else None
    if told := [
        column for column in ("runs", "first", "second") if row is not None and column in row.index
    ]:
        return " ".join(row[told]).split()
    source = query.get("table") or query["notebook"]
    own = next((groups for start, groups in GROUPS.items() if source.startswith(start)), None)
    groups = (resolution.PROTOCOL, "lengths", "datasets", "vit") if own is None else own
    named = {
        query.get("method", "vi_simsiam"),
        query.get("minus"),
        query.get("other"),
        *part.get("methods", ()),
    }
    found = [run for group in groups for run in _listed(profile, group) if run["method"] in named]
    for key in ("dataset", "epochs"):
        found = [
            run
            for run in found
            if run[key] == query.get(key, _usual(run, key, profile) if own is None else run[key])
        ]
    if (
        "name" in query
    ):  # one or two changes of many, against the usual run, or against the second alone
        changed = [resolution.short(*change.split(" ", 1)) for change in query["name"].split(", ")]
        varied = [set(resolution.variant(run).split("-")) for run in found]
        changes = {*changed, *(set.intersection(*varied) if varied else ())}
        least = {changed[-1]} if query.get("against") == "same_rate" else set()
        found = [run for run, names in zip(found, varied, strict=True) if least <= names <= changes]
    found = [
        run for run in found if artifacts.config_path(profile, resolution.run_name(run)).exists()
    ]
    if (
        source.startswith(("40", "41", "44")) and "epochs" not in query
    ):  # of several lengths these notebooks take the shortest
        found = comparisons.by_length(found)[0]
    seeds = [
        {run["seed"] for run in found if run["method"] == method}
        for method in {run["method"] for run in found}
    ]
    return list(
        dict.fromkeys(
            resolution.run_name(run) for run in found if run["seed"] in set.intersection(*seeds)
        )
    )


def _usual(run: dict, key: str, profile: str):
    """What the profile gives a run's method: its data set, or its epochs on the run's own data set."""
    on = {} if key == "dataset" else {"dataset": run["dataset"]}
    return resolution.resolve(run["method"], profile, **on)[key]


def measured_at(names: list[str], profile: str) -> str:
    """The commits that measured these runs, each once."""
    stored = [artifacts.read_metrics(profile, protocol.MEASURED_BY, name).commit for name in names]
    return " ".join(dict.fromkeys(commit for commits in stored for commit in commits.unique()))


@cache
def _listed(profile: str, group: str) -> list[dict]:
    return resolution.runs(profile, group=group)  # resolved once, not for every claim


@cache
def _by_name(profile: str) -> dict[str, dict]:
    return {resolution.run_name(run): run for run in resolution.runs(profile)}


def is_trained(method: str, profile: str) -> bool:
    """Whether the method's runs of the protocol learned enough to say anything about their uncertainty (comparisons.is_evidence, every seed)."""
    listed = protocol.compared_runs(profile)
    found = [comparisons.gains(run, listed) for run in listed if run["method"] == method]
    return bool(found) and comparisons.is_evidence(pd.concat(found))


# ---------------------------------------------------------------------------------------------------------------- what follows
def side(part: dict, found: Found) -> int:
    """1 if our interval lies where the part's rule says, -1 if it lies on the other side, 0 if it does neither.

    within: as near to the published number as that, on either side.
    """
    ((kind, bound),) = part["rule"].items()
    if kind == "at_most":
        return 1 if found.value <= bound else -1
    if np.isnan(found.low) or np.isnan(found.high):
        return 0
    if kind == "within":
        nearest, farthest = (
            choose(found.low - published(part), published(part) - found.high)
            for choose in (max, min)
        )
        return int(-farthest < bound) - int(nearest > bound)
    above, below = found.low > bound, found.high < bound
    return int(above) - int(below) if kind == "above" else int(below) - int(above)


def decide(
    part: dict,
    kind: str,
    found: Found | None,
    profile: str,
    trained: Callable[[str, str], bool] | None = None,
) -> tuple[str, str]:
    """Verdict of one part and the reason in words; trained: is_trained, or what remembers its answers.

    "reproduced" and "contradicted" need the claim's own data, family of network, half its epochs, three seeds, and that nothing else is known to
    differ (``unlike``); a published number then has to lie in our interval, to its printed digits, a direction our interval on its side. A number
    outside contradicts nothing if its own 95 % interval, where a standard error is printed (``error``, Student's t of three runs), reaches ours.
    Of a difference its sign has to hold besides. Otherwise, as on other data, our interval gives "same direction" or "not reproduced".
    """
    if "never" in part:
        return NOT_TESTABLE, part["never"]
    if found is None:
        absent = (
            part.get("why")
            or part.get("lacks")
            or f"no such run in profile {profile}, or none that can be judged"
        )
        return NOT_TESTED, f"budget: {absent}"
    holds = side(part, found)
    if part.get("about") == "theory":
        fails = NOT_REPRODUCED if BEYOND in part["name"] else CONTRADICTED
        return (
            (REPRODUCED, "holds up to rounding")
            if holds > 0
            else (fails, f"ours is {found.value:.3g}")
        )
    if profile in ILLUSTRATIONS:
        return NOT_TESTED, f"profile: {profile} is an illustration"
    method = part["query"].get("method", "vi_simsiam")
    judged = (
        dict.fromkeys((method, *part.get("methods", ()))) if part.get("about") == "kappa" else ()
    )
    if untrained := [name for name in judged if not (trained or is_trained)(name, profile)]:
        return (
            NOT_TESTED,
            f"under-trained: k-NN on {' and '.join(untrained)} does not beat its references in every seed",
        )
    if found.idle:
        return (
            NOT_TESTED,
            "under-trained: neither of the two runs is surely above the untrained network",
        )
    usual = resolution.resolve(method, profile, **({"dataset": part["on"]} if "on" in part else {}))
    behind = [_by_name(profile)[name] for name in found.runs if name in _by_name(profile)]
    asked = (part["query"].get(key) for key in ("method", "minus"))
    given = [
        name
        for name in dict.fromkeys((*(run["method"] for run in behind), *asked))
        if name in _unsearched(profile, artifacts.RESULTS)
    ]
    lacking = _lacking(part, behind or [usual], found, given)
    seeds = (
        f"{found.seeds} seeds"
        if found.seeds > 1
        else "1 seed" + (f" (its interval is over {part['over']})" if "over" in part else ALONE)
    )
    if part.get("about") == "cost":
        seeds = f"{found.n:g} timings" if found.low < found.high else "counted"
    if not np.isnan(found.t_low) and holds not in (
        0,
        side(part, found._replace(low=found.t_low, high=found.t_high)),
    ):
        seeds += f" ({UNSETTLED}: {found.t_low:+.2f} to {found.t_high:+.2f})"
    if np.isnan([found.low, found.high]).any():
        return NOT_TESTED, f"no interval to judge our number by, {seeds}"
    if lacking:
        where = {1: "lies on the claimed side", 0: INCLUDES, -1: "lies on the other side"}[holds]
        ((rule, bound),) = part["rule"].items()
        claimed = f"{SIDES[rule]} {bound:g}{f' of {published(part):g}' if rule == 'within' else ''}"
        return (
            SAME if holds > 0 else NOT_REPRODUCED
        ), f"our interval {where} (claimed: {claimed}), {seeds}; {lacking}"
    if kind == "number" and not np.isnan(published(part)):
        outside = max(found.low - published(part), published(part) - found.high)
        if outside <= rounding(part):
            if holds > 0 or "within" in part["rule"]:
                return REPRODUCED, f"the published value lies in our interval, {seeds}"
            where = INCLUDES if holds == 0 else "lies on the other side of the bound"
            return (
                NOT_REPRODUCED,
                f"our interval {where}, although the published value lies in it, {seeds}",
            )
        from scipy import stats  # slow to import

        reach = (
            stats.t.ppf(0.975, PUBLISHED_RUNS - 1) * max(part["error"], _half_digit(part["error"]))
            if "error" in part
            else 0.0
        )
        if outside <= reach:
            where = {
                1: "",
                0: f"our interval {INCLUDES}, ",
                -1: "our interval lies on the other side of the bound, ",
            }[holds]
            reason = f"{where}the published value lies outside our interval, but its own, ±{reach:.2g}, reaches ours, {seeds}"
            return (SAME if holds > 0 else NOT_REPRODUCED), reason
        return CONTRADICTED, f"the published value lies outside our interval, {seeds}"
    return {1: REPRODUCED, 0: NOT_REPRODUCED, -1: CONTRADICTED}[
        holds
    ], f"our interval{'' if holds else ' ' + INCLUDES}, {seeds}"


@cache
def _unsearched(profile: str, results: Path) -> tuple[str, ...]:
    """comparisons.unsearched, read once: every part asks."""
    return tuple(comparisons.unsearched(profile))


def _lacking(part: dict, behind: list[dict], found: Found, given: list[str]) -> str:
    """What keeps our runs from being the claim's own experiment; empty if nothing does. given: methods whose learning rate no search chose."""
    lacking = []
    own = part.get("data", [])
    own = [own] if isinstance(own, str) else own
    others = list(dict.fromkeys(run["dataset"] for run in behind if run["dataset"] not in own))
    if others and (own or "unlike" not in part):
        lacking.append(
            f"other data ({' and '.join(others)}, not {' or '.join(own) or 'in the paper'})"
        )
    trained = [run["epochs"] for run in behind if run["epochs"]]
    epochs = part["query"].get(
        "epochs", min(trained, default=0) if np.isnan(found.epochs) else int(found.epochs)
    )
    if epochs < part.get("epochs", 0) / 2:
        lacking.append(f"{epochs} epochs, not {part['epochs']}")
    if backbones := [
        run["backbone"] for run in behind if not run["backbone"].startswith(part.get("family", ""))
    ]:
        lacking.append(f"another network ({backbones[0]})")
    if (
        forms := {run["method"] for run in behind if part["form"].startswith(f"{run['method']}_")}
        if "form" in part
        else ()
    ):
        lacking.append(f"the form {forms.pop()}, not {part['form']}")
    if given:
        lacking.append(f"a learning rate of {' and '.join(given)} that no whole search has chosen")
    if found.seeds < SEEDS and part.get("about") != "cost":
        lacking.append("too few seeds")
    if abs(found.value) < found.repetition:
        lacking.append(MOVED_BY_ONE_RUN)
    if "unlike" in part:
        lacking.append(part["unlike"])
    return ", ".join(lacking)


@cache
def recipes() -> dict[str, dict]:
    """What a recipe claim is compared with: the recipes of settings/recipes.toml, views, classifiers, decoders, and SimVAE's networks."""
    views = {f"views {name}": strengths for name, strengths in augmentations.RECIPES.items()}
    probes = {
        "linear probe": evaluation.PAPER_PROBE,
        "linear probe to its optimum": evaluation.OWN_PROBE,
        "mlp probe": factors.PAPER_PROBE,
    }
    probes |= {"nearest neighbours": factors.NEIGHBOURS, "mixture": factors.MIXTURE}
    decoders = {"decoder of a frozen encoder": generation.PAPER_DECODER}
    layers = {
        f"networks of SimVAE, {dataset}": _layers(dataset, channels)
        for dataset, channels in (("mnist", 1), ("celeba", 3))
    }
    return (
        {name: resolution.recipe(name) for name in resolution.read("recipes")}
        | views
        | probes
        | decoders
        | layers
    )


def _layers(dataset: str, channels: int) -> dict[str, list[str]]:
    """What the layers of SimVAE's encoder, to the posterior's mean, and of its decoder put out."""
    settings = resolution.resolve("simvae", "paper", dataset=dataset)
    network, image = (
        methods.build(settings, channels),
        torch.zeros(2, channels, settings["image_size"], settings["image_size"]),
    )
    mean, _ = network.encode(image)
    encoder = networks.layer_outputs(network.backbone, image) + [str(mean.shape[1])]
    return {"encoder": encoder, "decoder": networks.layer_outputs(network.decoder, mean)}


def published_settings(part: dict) -> pd.DataFrame:
    """Every setting that a part about a recipe publishes, beside ours: columns setting, published, ours, followed."""
    if part["recipe"] not in recipes():
        raise ValueError(
            f"Unknown recipe {part['recipe']!r} in settings/claims.toml; choose one of {sorted(recipes())}."
        )
    ours = recipes()[part["recipe"]]
    ours = {
        name: list(value) if isinstance(value, tuple) else value for name, value in ours.items()
    }  # TOML has no tuples
    rows = [
        {"setting": name, "published": value, "ours": ours.get(name)}
        for name, value in part["published"].items()
    ]
    return pd.DataFrame(rows, dtype=object).assign(
        followed=[row["published"] == row["ours"] for row in rows]
    )


def beside_runs(paper: str, runs: list[dict]) -> pd.DataFrame:
    """published_settings of all recipes of a paper, and what these runs had.

    More columns: claim, what, recipe, in_these_runs (the values of the recipe's runs; empty where it has none, or is no method's) and held: as
    published in the recipe and in all of these runs. The length of a representation is no run's deviation: papers and recipes give it by data set.
    """
    found = []
    for name, claim in claims().items():
        for part in claim["parts"] if claim["paper"] == paper and claim["kind"] == "recipe" else ():
            frame, of = (
                published_settings(part),
                [run for run in runs if run["method"] == part["recipe"]],
            )
            had = [
                {str(run[setting]) for run in of if setting != "representation"}
                for setting in frame.setting
            ]
            held = [
                ours and values <= {str(value)}
                for ours, values, value in zip(frame.followed, had, frame.published, strict=True)
            ]
            told = {"claim": name, "what": part["name"], "recipe": part["recipe"]}
            found.append(
                frame.assign(
                    **told, in_these_runs=[", ".join(sorted(values)) for values in had], held=held
                )
            )
    return pd.concat(found, ignore_index=True)


def decide_recipe(part: dict) -> tuple[str, str]:
    """Whether our recipe has the published settings, and where it has others."""
    settings = published_settings(part)
    other = [
        f"no {row.setting} (published: {row.published})"
        if row.ours is None
        else f"{row.setting} is {row.ours}, not {row.published}"
        for row in settings[~settings.followed].itertuples()
    ]
    return (
        (DEVIATES, "; ".join(other))
        if other
        else (FOLLOWED, f"{len(settings)} setting{'s' * (len(settings) != 1)} as published")
    )


def ledger(profile: str) -> pd.DataFrame:
    """One row for every part of every claim: the published and our number, interval, seeds, verdict and reason. Columns: COLUMNS."""
    rows, trained = [], cache(is_trained)  # bootstraps, the same for all parts of a method
    for name, claim in claims().items():
        common = {"id": name, "unit": claim.get("unit", "")} | {
            key: claim[key] for key in ("paper", "where", "statement", "kind")
        }
        for part in (in_profile(part, profile) for part in claim["parts"]):
            if "recipe" in part:
                verdict, reason = decide_recipe(part)
                rows.append(
                    common
                    | {
                        "part": part["name"],
                        "verdict": verdict,
                        "reason": reason,
                        "commit": artifacts.commit(),
                    }
                )
                continue
            found = find(part["query"], profile) if "query" in part else None
            verdict, reason = decide(part, claim["kind"], found, profile, trained)
            row = common | {"unit": part["unit"]}
            row |= {
                "part": part["name"],
                "published": published(part),
                "verdict": verdict,
                "reason": reason,
            }
            row |= next(
                ({"claimed": rule, "bound": bound} for rule, bound in part.get("rule", {}).items()),
                {},
            )
            if found is not None:
                row |= {
                    "ours": found.value,
                    "ci_low": found.low,
                    "ci_high": found.high,
                    "n": found.n,
                }
                row |= {"seeds": found.seeds} if part.get("about") != "cost" else {}
                row["commit"] = found.commit or measured_at(runs(part, profile), profile)
            rows.append(row)
    return pd.DataFrame(rows, columns=COLUMNS)


def settles_nothing(reason: str) -> bool:
    """Whether a part's reason is that our interval includes the bound."""
    return f"our interval {INCLUDES}" in reason


def is_unsettled(reason: str) -> bool:
    """Whether a part's interval lies on one side of the bound, and that of its seeds alone does not, or a repetition may move a run by more."""
    return UNSETTLED in reason or MOVED_BY_ONE_RUN in reason


def qualified(found: dict) -> str:
    """The verdict of a claim or a part (verdict, inconclusive, unsettled); one whose intervals, or their seeds, include the bound is called so."""
    if found["inconclusive"] and found["verdict"] == NOT_REPRODUCED:
        return f"{NOT_REPRODUCED} (inconclusive)"
    return found["verdict"] + " (open by its seeds)" * found["unsettled"]


def tested_in_part(found: dict) -> str:
    """How many parts of a claim were tested, where not all were."""
    return (
        f" ({found['parts_tested']} of {found['parts']} parts tested)"
        if found["parts_tested"] < found["parts"]
        else ""
    )


def verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """One row for every claim of a ledger: the worst verdict of its own tested parts (not of those BEYOND), how many parts were tested, whether it is
    inconclusive (not reproduced, and no interval lies on the other side), whether it rests on intervals that their seeds alone do not settle
    (unsettled: one part of the same direction; of what is not reproduced each part that fails, and is not inconclusive), and whether a verdict about
    data rests on fewer than SEEDS seeds in a part (few_seeds)."""
    rows = []
    for name, parts in table.groupby("id", sort=False):
        own = parts[~parts.part.str.contains(BEYOND, regex=False)]
        tested = own[~own.verdict.isin([NOT_TESTED, NOT_TESTABLE])]
        worst = min((tested if len(tested) else own).verdict, key=ORDER.index)
        deciding = tested[tested.verdict == worst].reason
        nothing, open_ = (
            deciding.map(settles_nothing).astype(bool),
            deciding.map(is_unsettled).astype(bool),
        )
        inconclusive = worst == NOT_REPRODUCED and nothing.all()
        unsettled = (worst == SAME and open_.any()) or (
            worst == NOT_REPRODUCED and open_.any() and (nothing | open_).all()
        )
        first = parts.iloc[0]
        rows.append(
            {
                "id": name,
                "paper": first.paper,
                "where": first["where"],
                "statement": first.statement,
                "kind": first.kind,
                "verdict": worst,
                "parts": len(own),
                "parts_tested": len(tested),
                "inconclusive": inconclusive,
                "unsettled": unsettled,
                "few_seeds": worst in (SAME, NOT_REPRODUCED) and tested.seeds.min() < SEEDS,
            }
        )
    return pd.DataFrame(rows)
