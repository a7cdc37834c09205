"""The claims ledger: what the papers print, our number for it, and the verdict of one rule.

settings/claims.toml holds the claims; ``measured`` looks our numbers up. A part of a claim names
the side of a bound on which the paper sees its number. Our 95 % interval then decides:

    reproduced       the paper's own data, family of networks and at least half its epochs, and our
                     interval on the claimed side; of a level, the printed number in our interval
    same direction   our interval on the claimed side, under other conditions
    undecided        our interval includes the bound
    opposite         our interval on the other side
    not tested       no such run, or none that counts; the column ``needs`` says what it would take

Recipes are compared setting by setting (``recipes``): followed or deviates. A claim has the verdict
of its worst tested part. A run counts if its k-NN accuracy beats the untrained network's.

Example:
    from lib.claims import ledger
    rows = ledger.ledger("standard")        # one row for every part of every claim
    ledger.verdicts(rows).verdict.value_counts()
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal

import numpy as np
import pandas as pd

from lib.claims.measured import Measured, Stored
from lib.runs import settings
from lib.runs.settings import ILLUSTRATIONS

REPRODUCED = "reproduced"
SAME = "same direction"
UNDECIDED = "undecided"
OPPOSITE = "opposite"
NOT_TESTED = "not tested"
FOLLOWED = "followed"
DEVIATES = "deviates"
# From worst to best: a claim has the first of these that one of its parts has.
VERDICTS = (OPPOSITE, UNDECIDED, DEVIATES, SAME, REPRODUCED, FOLLOWED, NOT_TESTED)
# As figures and the site show them, in this order.
COLOURS = {
    REPRODUCED: "#1b7837",
    SAME: "#7fbf7b",
    FOLLOWED: "#4393c3",
    DEVIATES: "#92c5de",
    UNDECIDED: "#e0c868",
    OPPOSITE: "#c2533f",
    NOT_TESTED: "#bdbdbd",
}

SIDES = ("above", "below", "within", "at_most")
OF_A_CLAIM = {"paper", "title", "where", "text", "parts", "printed"}
OF_BOTH = {"unit", "experiment", "needs", "may_collapse", "ours"}
OF_AN_EXPERIMENT = {"data", "epochs", "family"}
OF_A_PART = {"part", "published", "recipe", "settings", *SIDES}
COLUMNS = [
    "claim",
    "paper",
    "title",
    "where",
    "text",
    "part",
    "unit",
    "published",
    "ours",
    "low",
    "high",
    "side",
    "bound",
    "seeds",
    "runs",
    "verdict",
    "needs",
]


@dataclass(frozen=True)
class Part:
    """One decision of a claim: what is printed, where our number is, and what is claimed of it."""

    claim: str
    paper: str
    title: str  # the claim in a few words
    where: str
    text: str
    part: str  # its name
    unit: str = ""
    published: float = np.nan
    rounding: float = 0.0  # half a last digit of what is printed
    # above or below the bound; within the bound of what is printed; an error of at_most the bound
    side: str = ""
    bound: float = np.nan
    lookup: dict = field(default_factory=dict)  # where our number is (measured.Stored.number)
    data: tuple[str, ...] = ()  # the paper's own data sets
    epochs: int | None = None
    family: str = ""
    needs: str = ""
    may_collapse: bool = False  # a network that learns nothing is an answer here
    recipe: str = ""
    settings: dict = field(default_factory=dict)


# -------------------------------------------------------------------------------- what is claimed
def claims() -> dict[str, list[Part]]:
    """The parts of every claim of settings/claims.toml; ValueError for a faulty entry."""
    return {name: _parts(name, entry) for name, entry in _entries().items()}


def _entries() -> dict[str, dict]:
    return settings.read("claims", Decimal)  # which keeps the printed digits


def _parts(claim: str, entry: dict) -> list[Part]:
    shared = {key: entry[key] for key in OF_BOTH if key in entry}
    needed = ("paper", "title", "where", "text", "parts")
    _check_keys(f"Claim {claim}", entry, OF_A_CLAIM | OF_BOTH, needed)
    parts = []
    for part in entry["parts"]:
        where = f"Claim {claim}, part {part.get('part')!r}"
        _check_keys(where, part, OF_A_PART | OF_BOTH, ("part",))
        merged = shared | part
        for key in ("ours", "experiment"):
            merged[key] = _numbers(shared.get(key, {}) | part.get(key, {}))
        _check_keys(where, merged["experiment"], OF_AN_EXPERIMENT, ())
        sides = [side for side in SIDES if side in part]
        if len(sides) > 1 or ("ours" in part and not sides):
            raise ValueError(f"{where} gives {sides}; give one of {', '.join(SIDES)}.")
        if not sides:  # nothing is claimed of a number of ours
            merged["ours"] = {}
        parts.append(_part(claim, entry, merged))
    names = [part.part for part in parts]
    if len(set(names)) < len(names):
        raise ValueError(f"Claim {claim} has two parts of one name: {names}.")
    return parts


def _check_keys(where: str, entry: dict, known: set[str], needed: tuple[str, ...]) -> None:
    missing = [key for key in needed if key not in entry]
    if missing:
        raise ValueError(f"{where} of settings/claims.toml lacks {', '.join(missing)}.")
    unknown = sorted(set(entry) - known)
    if unknown:
        raise ValueError(
            f"{where}: nothing reads {', '.join(unknown)}; it may have {sorted(known)}."
        )


def _part(claim: str, entry: dict, merged: dict) -> Part:
    published, rounding = _printed_number(merged.get("published"))
    side = next((side for side in SIDES if side in merged), "")
    experiment = merged["experiment"]
    data = experiment.get("data", merged["ours"].get("dataset", ()))
    return Part(
        claim=claim,
        paper=entry["paper"],
        title=entry["title"],
        where=entry["where"],
        text=entry["text"],
        part=merged["part"],
        unit=merged.get("unit", ""),
        published=published,
        rounding=rounding,
        side=side,
        bound=float(merged[side]) if side else np.nan,
        lookup=merged["ours"],
        data=(data,) if isinstance(data, str) else tuple(data),
        epochs=experiment.get("epochs"),
        family=experiment.get("family", ""),
        needs=merged.get("needs", ""),
        may_collapse=merged.get("may_collapse", False),
        recipe=merged.get("recipe", ""),
        settings=_numbers(merged.get("settings", {})),
    )


def _printed_number(value) -> tuple[float, float]:
    """A printed number, a difference or a ratio of two, and half a last digit of it."""
    if value is None:
        return np.nan, 0.0
    if not isinstance(value, dict):
        return float(value), _half_digit(value)
    first = value["of"]
    second = value["minus"] if "minus" in value else value["over"]
    if "minus" in value:
        return float(first - second), _half_digit(first) + _half_digit(second)
    ratio = float(first) / float(second)
    relative = _half_digit(first) / float(first) + _half_digit(second) / float(second)
    return ratio, abs(ratio) * relative


def _half_digit(printed: Decimal | int) -> float:
    return 0.5 * 10.0 ** Decimal(printed).as_tuple().exponent


def _numbers(value):
    """The same with floats for decimals, at every depth."""
    if isinstance(value, dict):
        return {key: _numbers(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_numbers(entry) for entry in value]
    return float(value) if isinstance(value, Decimal) else value


def printed_table(claim: str) -> pd.DataFrame:
    """The printed table that a claim is about: a row a method, a column as its header names it.

    Example:
        printed_table("SV-1").loc["SimVAE", "MNIST"]  # 98.4
    """
    printed = _numbers(_entries()[claim]["printed"])
    return pd.DataFrame.from_dict(printed["rows"], orient="index", columns=printed["columns"])


# ----------------------------------------------------------------------------------- the verdicts
def position(part: Part, number: Measured) -> int:
    """1 if our interval lies where the part's side says, -1 if on the other side, 0 if in both.

    within: inside published ± bound, or outside. at_most: of the value itself, as an identity has
    no interval.
    """
    if part.side == "at_most":
        return 1 if number.value <= part.bound else -1
    if part.side == "within":
        low = part.published - part.bound
        high = part.published + part.bound
        if low < number.low and number.high < high:
            return 1
        return -1 if number.high < low or high < number.low else 0
    above = int(number.low > part.bound)
    below = int(number.high < part.bound)
    return above - below if part.side == "above" else below - above


def is_own_data(part: Part, number: Measured) -> bool:
    """Whether all runs behind our number are trained on the paper's own data."""
    return bool(number.runs) and all(run["dataset"] in part.data for run in number.runs)


def is_own_experiment(part: Part, number: Measured) -> bool:
    """Whether the runs have the paper's data, family of networks and at least half its epochs.

    False where the paper does not say how long it trained, or is not at hand.
    """
    if part.epochs is None or not is_own_data(part, number):
        return False
    family = all(run["backbone"].startswith(part.family) for run in number.runs)
    trained = [run["epochs"] for run in number.runs if run["epochs"]]  # not the untrained ones
    return family and min(trained, default=part.epochs) >= part.epochs / 2


def judge(part: Part, number: Measured | None, has_learned: bool, profile: str) -> tuple[str, str]:
    """The verdict of one part, and what a test would take where there was none.

    number: ours, None if nothing is stored. has_learned: whether the runs behind it did.
    """
    if number is None:
        return NOT_TESTED, part.needs
    if part.side == "at_most":  # an identity: neither data nor seeds
        return (REPRODUCED if position(part, number) > 0 else OPPOSITE), ""
    missing = _what_is_missing(part, number, has_learned, profile)
    if missing:
        return NOT_TESTED, missing
    return _verdict(part, number), ""


def _what_is_missing(part: Part, number: Measured, has_learned: bool, profile: str) -> str:
    """Why our number decides nothing, as what a test would take; empty where it decides."""
    if profile in ILLUSTRATIONS:
        return "make reproduce PROFILE=standard"
    if part.side == "within" and not is_own_data(part, number):
        return part.needs
    if not has_learned:
        return "runs whose k-NN accuracy beats the untrained network's"
    if np.isnan(number.low) or np.isnan(number.high):
        return "three seeds"
    return ""


def _verdict(part: Part, number: Measured) -> str:
    is_own = is_own_experiment(part, number)
    is_level = part.side == "within"
    if is_own and is_level and _includes(number, part.published, part.rounding):
        return REPRODUCED
    where = position(part, number)
    if where == 0:
        return UNDECIDED
    if where < 0:
        return OPPOSITE
    # a level that is near the printed one, but does not hold it, is not reproduced
    return REPRODUCED if is_own and not is_level else SAME


def _includes(number: Measured, published: float, rounding: float) -> bool:
    return number.low - rounding <= published <= number.high + rounding


def ledger(profile: str, names: Sequence[str] = ()) -> pd.DataFrame:
    """One row for every part of every claim, or of those named, with the columns COLUMNS.

    side and bound: what is claimed. runs: names of the runs behind our number, separated by spaces.
    A part without a stored number has the verdict not tested.
    """
    stored = Stored(profile)
    rows = []
    parts_of = claims()
    for name in names or parts_of:
        for part in parts_of[name]:
            rows.append(vars(part) | _judged(part, stored))
    return pd.DataFrame(rows, columns=COLUMNS)


def _judged(part: Part, stored: Stored) -> dict:
    if part.recipe:
        from lib.claims import recipes  # slow to import, with torch

        compared = recipes.compare(part.recipe, part.settings)
        return {"verdict": FOLLOWED if compared.followed.all() else DEVIATES, "needs": ""}
    number = stored.number(part.lookup, part.data, part.epochs, part.unit)
    has_learned = number is not None and stored.has_learned(number, part.may_collapse)
    verdict, needs = judge(part, number, has_learned, stored.profile)
    row = {"verdict": verdict, "needs": needs}
    if number is not None:
        low, high = number.low, number.high
        if part.unit == "correlation":  # an interval over seeds may reach beyond what it can be
            low, high = np.clip([low, high], -1, 1)
        row |= {"ours": number.value, "low": low, "high": high}
        row |= {"seeds": number.seeds, "runs": " ".join(map(settings.run_name, number.runs))}
    return row


def verdicts(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for every claim of a ledger: the worst verdict of its tested parts.

    Columns: claim, paper, title, where, text, verdict, parts, tested (how many), seeds (fewest
    behind a tested number), needs (of the parts that are not tested).
    """
    claims_of = []
    for claim, parts in rows.groupby("claim", sort=False):
        tested = parts[parts.verdict != NOT_TESTED]
        untested = parts[parts.verdict == NOT_TESTED]
        first = parts.iloc[0]
        claims_of.append(
            {
                "claim": claim,
                "paper": first.paper,
                "title": first.title,
                "where": first["where"],
                "text": first.text,
                "verdict": min(parts.verdict, key=VERDICTS.index),
                "parts": len(parts),
                "tested": len(tested),
                "seeds": tested.seeds.min() if len(tested) else np.nan,
                "needs": "; ".join(dict.fromkeys(untested.needs[untested.needs != ""])),
            }
        )
    return pd.DataFrame(claims_of)


def verdict_counts(rows: pd.DataFrame) -> pd.DataFrame:
    """How many claims of a ledger have which verdict: a row a paper, columns as COLOURS."""
    of_claims = verdicts(rows)
    table = pd.crosstab(of_claims.paper, of_claims.verdict)
    return table.reindex(index=list(settings.PAPERS), columns=list(COLOURS), fill_value=0)


def claimed(side: str, bound: float, unit: str = "") -> str:
    """What is claimed of our number, in words: "above 0", "within 1 of published"."""
    if not side:
        return ""
    if side == "within":
        return f"within {bound:g} {unit} of published".replace("  ", " ")
    return f"{side.replace('_', ' ')} {bound:g}"


def show(names: Sequence[str], profile: str) -> pd.DataFrame:
    """The rows of these claims with what a reader compares: the printed number, ours, the verdict.

    Example:
        ledger.show(["VS2-3", "VS2-4"], "standard")
    """
    rows = ledger(profile, names)
    claims_of = [claimed(row.side, row.bound) for row in rows.itertuples()]
    rows.insert(rows.columns.get_loc("ours"), "claimed", claims_of)
    compared = ["published", "claimed", "ours", "low", "high", "seeds", "verdict"]
    return rows[["claim", "title", "part", "unit", *compared]]
