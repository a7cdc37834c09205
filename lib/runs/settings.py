"""From names to resolved settings: recipe (paper values) <- profile (budget) <- parameters; run names and run hashes.

The files are settings/recipes.toml, settings/profiles.toml and settings/experiments.toml. Resolved settings are one flat dictionary of literals.
"""

import difflib
import itertools
import json
import math
import re
import tomllib
from collections.abc import Sequence
from functools import cache

from lib.runs import store as artifacts
from lib.runs.store import ROOT, sha256

# Said by the profile about evaluation and tuning; not part of what is trained.
NOT_TRAINED_WITH = (
    "ood_near",
    "ood_far",
    "condition_images",
    "bank_images",
    "bootstrap_draws",
    "tuning_learning_rates",
    "tuning_epochs",
    "fine_tune_shares",
    "fine_tune_epochs",
    "fine_tune_learning_rates",
    "fine_tune_optimizer",
    "known_posteriors",
    "short_steps",
    "similarity_steps",
    "factor_images",
    "factor_sets",
    "decoder_epochs",
    "transfer_sets",
    "transfer_images",
    "transfer_epochs",
)
PAPERS = {
    "vs1": "VI-SimSiam 2022",
    "vs2": "VI-SimSiam 2023",
    "simvae": "SimVAE",
    "prosmin": "ProSMin",
    "vje": "VJE",
}
SHARES = (
    "momentum",
    "target_momentum",
    "centre_momentum",
    "correlation_memory",
)  # settings in 0..1
POSITIVE = (
    "temperature",
    "teacher_temperature_start",
    "teacher_temperature",
    "bandwidth",
    "variance",
    "prior_variance",
    "loss_scale",
    "trade_off",
    "beta",
    "samples",
    "views",
    "queue_length",
    "radial_freedom",
    "directional_freedom",
    "radial_scale",
    "initial_variance",
)
FINITE = (
    "learning_rate",
    "weight_decay",
    "momentum",
    "warmup_epochs",
    "clip_norm",
)  # settings that every method has, finite and not negative
ONE_CLASS = re.compile(
    r"(?P<name>.+)_class_(?P<label>\d+)\Z"
)  # a data set of the images of one class of another
ILLUSTRATIONS = ("smoke", "quick")  # profiles that are no evidence
PROTOCOL = "protocol"  # the group of runs in which all methods are compared
DEFAULTS = {
    "seed": 0,
    "split": "train",
    "train_images": 0,
    "precision": "auto",
    "bank_images": 0,
    "fine_tune_optimizer": "sgd",
}


@cache
def read(name: str, parse_float: type[float] = float) -> dict:
    path = ROOT / "settings" / f"{name}.toml"
    try:
        return tomllib.loads(path.read_text(), parse_float=parse_float)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}; correct that line.") from error


def _choose(table: dict, name: str, what: str, further: str = "") -> dict:
    if name not in table:
        raise ValueError(f"Unknown {what} {name!r}; choose one of {sorted(table)}{further}.")
    return table[name]


def profile_settings(profile: str) -> dict:
    """The profile's own table, without its parts for single methods and data sets."""
    return {
        key: value
        for key, value in _choose(read("profiles"), profile, "profile").items()
        if key not in ("methods", "datasets")
    }


def absent_sets(profile: str) -> list[str]:
    """The profile's own_sets (settings/experiments.toml), which nothing can fetch, of which there is no folder in DATA_DIR."""
    return [
        name
        for name in experiments(profile).get("own_sets", ())
        if not (artifacts.default_data_dir() / name).is_dir()
    ]


def recipe(method: str) -> dict:
    """A method's paper values: its own table over those it inherits from, later ones over earlier ones; without its parts for single data sets."""
    return {
        key: value
        for key, value in _whole_recipe(method).items()
        if key not in ("datasets", "keeps")
    }


def check_recipe(method: str) -> None:
    """ValueError for an unknown method, or for a setting of its recipe that is another's but for a letter or two: nothing would read it."""
    recipes = read("recipes")
    _whole_recipe(method)
    others = {*DEFAULTS, *NOT_TRAINED_WITH, "dataset"}.union(
        *(table for name, table in recipes.items() if name != method)
    )
    for name in sorted(set(recipes[method]) - others):
        if meant := difflib.get_close_matches(name, others, n=1, cutoff=0.9):
            raise ValueError(
                f"Recipe {method!r} of settings/recipes.toml sets {name!r}, which no other recipe has: {meant[0]!r} is meant, or "
                "give it a name less like that."
            )


def _whole_recipe(method: str) -> dict:
    _choose(
        read("recipes"), method, "method", f", or add a recipe [{method}] to settings/recipes.toml"
    )
    return {"datasets": {}} | _inherited(read("recipes"), method, "method", "recipes")


def _inherited(tables: dict, name: str, what: str, file: str, heirs: tuple[str, ...] = ()) -> dict:
    """A table of settings/<file>.toml over those it ``inherits`` from, later ones over earlier ones, and so the tables within it."""
    table = dict(_choose(tables, name, what))
    if name in heirs:
        raise ValueError(
            f"{what.capitalize()} {name!r} inherits from itself ({' <- '.join((*heirs, name))}); take one of these out of settings/{file}.toml."
        )
    parents, merged = table.pop("inherits", []), {}
    for parent in [parents] if isinstance(parents, str) else parents:
        merged = _over(merged, _inherited(tables, parent, what, file, (*heirs, name)))
    return _over(merged, table)


def _over(below: dict, above: dict) -> dict:
    return below | {
        key: _over(below.get(key, {}), value) if isinstance(value, dict) else value
        for key, value in above.items()
    }


def _part_of_profile(tables: dict, name: str | None, what: str) -> dict:
    """One of the tables of methods or of data sets in a profile, over those it inherits from; empty for the most, which have none."""
    return _inherited(tables, name, what, "profiles") if name in tables else {}


def resolve(method: str, profile: str, **parameters) -> dict:
    """Settings of one run: recipe <- profile <- the data set's table in recipe, in profile <- the method's in profile, and its own for the data set
    <- ``parameters``.

    One class of a data set has that set's tables. What a recipe ``keeps``, the profile's own table does not change: an optimiser's learning rate
    means nothing to another optimiser.

    Raises ValueError for an unknown method, profile or parameter, and for a value of another type than the one it replaces.
    """
    of_recipe, whole = f"Recipe {method!r} of settings/recipes.toml", _whole_recipe(method)
    base = {
        name: same_type(name, value, 0.0, f"{of_recipe}: parameter") if name in FINITE else value
        for name, value in recipe(method).items()
    }
    of_profile = _choose(read("profiles"), profile, "profile")
    own = dict(
        _part_of_profile(of_profile.get("methods", {}), method, f"method of profile {profile!r}")
    )
    own_sets = own.pop("datasets", {})
    budget = {
        key: value
        for key, value in profile_settings(profile).items()
        if key not in whole.get("keeps", ())
    }
    dataset = parameters.get("dataset", own.get("dataset", budget.get("dataset")))
    of_set = ONE_CLASS.sub(
        r"\g<name>", dataset if isinstance(dataset, str) else ""
    )  # another type is refused below
    data_set = f"dataset of profile {profile!r}"
    on_set = _checked(
        f"{of_recipe}, data set {of_set!r}", whole["datasets"].get(of_set, {}), DEFAULTS | base
    )
    budget |= on_set | _part_of_profile(of_profile.get("datasets", {}), of_set, data_set)
    own |= _part_of_profile(own_sets, of_set, data_set)
    if base.get("epochs") == 0:
        budget.pop("epochs", None)
    budget = _checked(
        f"Profile {profile!r} of settings/profiles.toml", budget | own, DEFAULTS | base
    )
    settings = {**DEFAULTS, "method": method, "profile": profile, **base, **budget}
    lengths = dict.fromkeys(base, base.get("epochs")) | dict.fromkeys(budget, settings["epochs"])
    for name, value in parameters.items():
        if name not in settings:
            raise ValueError(
                f"Unknown parameter {name!r} for method {method!r}; choose from {sorted(settings)}."
            )
        settings[name] = same_type(name, value, settings[name])
    for name in SCHEDULES:
        if name in settings and name not in parameters:
            settings[name] = _scaled(settings[name], lengths[name], settings["epochs"])
    _check(settings)
    return settings


def _scaled(epochs: float, length: int, trained: int) -> float:
    """A part of a training of ``length`` epochs as the same share of one of ``trained`` epochs."""
    return round(epochs * trained / length, 6) if length else epochs


def same_type(name: str, value, current, what: str = "Parameter"):
    """The value in the type of the current one, whole numbers taken for floats; ValueError for any other type."""
    if isinstance(current, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not type(current):
        raise ValueError(
            f"{what} {name!r} is {value!r} ({type(value).__name__}); it must be a {type(current).__name__} like {current!r}."
        )
    return value


def _checked(where: str, values: dict, base: dict) -> dict:
    """A table of settings in the types of ``base``; ValueError for what it sets and no recipe has, or has with another type: it would be passed over
    in silence."""
    found = dict(values)
    for name, value in values.items():
        if name in base:
            found[name] = same_type(name, value, base[name], f"{where}: parameter")
        elif name not in ("dataset", *NOT_TRAINED_WITH):
            known = {*DEFAULTS, *NOT_TRAINED_WITH, "dataset"}.union(*read("recipes").values()) - {
                "inherits",
                "datasets",
                "keeps",
            }
            if name not in known:
                raise ValueError(
                    f"{where} sets {name!r}, which no recipe has; choose from {sorted(known)}."
                )
    return found


def _check(settings: dict) -> None:
    at_least = {
        "epochs": 0,
        "batch_size": 2,
        "seed": 0,
        "image_size": 8,
        "width": 1,
        "dimension": 2,
        "local_views": 0,
        "train_images": 0,
    }
    if missing := sorted({*at_least, *FINITE, "dataset"} - set(settings)):
        raise ValueError(
            f"Method {settings['method']!r} lacks {missing}; add them in settings/recipes.toml, or inherit from a recipe that has them."
        )
    for name, bound in (at_least | ({"local_size": 8} if settings["local_views"] else {})).items():
        if same_type(name, settings[name], bound) < bound:
            raise ValueError(
                f"Parameter {name!r} is {settings[name]}; it must be at least {bound}."
            )
    for name in FINITE:
        same_type(name, settings[name], 0.0)
    for names, holds, words in (
        (FINITE, lambda value: 0 <= value < math.inf, "finite and not negative"),
        (SHARES, lambda value: 0 <= value <= 1, "in 0..1"),
        (POSITIVE, lambda value: 0 < value < math.inf, "finite and above 0"),
        (
            [name for name, value in settings.items() if isinstance(value, float)],
            math.isfinite,
            "finite",
        ),
        (("initial_cosine",), lambda value: 0 < value < 1, "above 0 and below 1"),
    ):
        for name in filter(settings.__contains__, names):
            if not holds(settings[name]):
                raise ValueError(f"Parameter {name!r} is {settings[name]}; it must be {words}.")


# Parts of a training, in epochs of the length that the same file states: a shorter run has the
# same share of them.
SCHEDULES = (
    "warmup_epochs",
    "kl_warmup_epochs",
    "concentration_warmup_epochs",
    "teacher_temperature_warmup_epochs",
    "frozen_prototypes_epochs",
)
SHORT = {
    "learning_rate": "lr",
    "batch_size": "b",
    "width": "w",
    "dimension": "d",
    "weight_decay": "wd",
    "train_images": "n",
    "teacher_temperature": "tau",
    "teacher_temperature_warmup_epochs": "tauwarmup",
}


def differences(settings: dict) -> dict:
    """Settings that differ from the profile's for this method and data set, except seed, epochs and those of evaluation."""
    usual = resolve(
        settings["method"],
        settings["profile"],
        dataset=settings["dataset"],
        epochs=settings["epochs"],
    )
    apart = ("epochs", "seed", "dataset", *NOT_TRAINED_WITH)
    return {
        name: value
        for name, value in settings.items()
        if name not in apart and value != usual.get(name)
    }


def short(name: str, value: str) -> str:
    """A setting and its value as a run's name has them: ``lr0.03``, ``likelihoodambient``."""
    return f"{SHORT.get(name, name.replace('_', ''))}{value}"


def variant(settings: dict) -> str:
    """What differs from recipe and profile, always with the number of epochs: ``e40``, ``e5-fit-lr0.03``."""
    differing, parts = differences(settings), [f"e{settings['epochs']}"]
    for name, value in settings.items():
        tuned = (
            name == "learning_rate" and settings["split"] == "fit"
        )  # named even where it is the usual one
        if name in differing or tuned:
            text = f"{value:g}" if isinstance(value, float) else str(value)
            parts.append(short(name, text) if name != "split" else text)
    return "-".join(parts)


def run_name(settings: dict) -> str:
    """``<method>-<dataset>-<variant>-seed<k>``."""
    return f"{settings['method']}-{settings['dataset']}-{variant(settings)}-seed{settings['seed']}"


def is_usual(settings: dict) -> bool:
    """Whether nothing but data set and seed differs from what the profile gives the method."""
    return settings == resolve(
        settings["method"], settings["profile"], dataset=settings["dataset"], seed=settings["seed"]
    )


def unlike_recipe(settings: dict) -> dict[str, tuple]:
    """Where a run differs from its method's recipe, and from what that has for its data set: setting -> (here, in the recipe).

    What describes another backbone or views that there are none of is left out; other settings that the method does not read are not.
    """
    paper = recipe(settings["method"]) | _whole_recipe(settings["method"])["datasets"].get(
        settings["dataset"], {}
    )
    unread = ("local_size",) * (not settings["local_views"]) + ("width", "stem") * (
        settings["backbone"] != "resnet18"
    )
    return {
        name: (settings[name], own)
        for name, own in paper.items()
        if settings.get(name, own) != own and name not in unread
    }


def trained_with(settings: dict) -> dict:
    return {name: value for name, value in settings.items() if name not in NOT_TRAINED_WITH}


def run_hash(settings: dict, data_checksum: str) -> str:
    """Identifies a run: resolved settings (with the method's version) and data. The profile's name does not count, what it sets does."""
    content = {name: value for name, value in trained_with(settings).items() if name != "profile"}
    return sha256(json.dumps(content, sort_keys=True) + data_checksum)[:12]


def experiments(profile: str) -> dict:
    profiles = {name: table for name, table in read("experiments").items() if name != "notebooks"}
    return _choose(profiles, profile, "profile of settings/experiments.toml")


def _entries(profile: str, kind: str, *needs: str) -> list[dict]:
    """The profile's entries of a kind; ValueError for one without what it needs, or with a seed twice: it would look like two runs."""
    entries = experiments(profile).get(kind, [])
    for entry in entries:
        seeds, missing = entry.get("seeds", []), [name for name in needs if name not in entry]
        if missing:
            raise ValueError(
                f"An entry of [[{profile}.{kind}]] in settings/experiments.toml lacks {missing}; it has {sorted(entry)}: add them."
            )
        if len(set(seeds)) < len(seeds):
            raise ValueError(
                f"An entry of [[{profile}.{kind}]] in settings/experiments.toml has the seeds {seeds}; name each once."
            )
    return entries


def runs(profile: str, paper: str = "all", group: str = "all") -> list[dict]:
    """Resolved settings of every pretraining run that experiments.toml lists for a profile, a paper and a group, each once.

    An entry lists methods and seeds; ``set`` changes a setting for all its runs, ``vary`` makes a run for every combination of its values.
    """
    found = {}
    for entry in _entries(profile, "runs", "papers", "methods", "seeds"):
        if paper in ("all", *entry["papers"]) and group in ("all", entry.get("group", PROTOCOL)):
            vary = entry.get("vary", {})
            for seed, method, values in itertools.product(
                entry["seeds"], entry["methods"], itertools.product(*vary.values())
            ):
                run = resolve(
                    method,
                    profile,
                    seed=seed,
                    **entry.get("set", {}),
                    **dict(zip(vary, values, strict=True)),
                )
                found.setdefault(run_name(run), run)
    return list(found.values())


def tuning_runs(profile: str, paper: str = "all") -> list[dict]:
    """The equal tuning effort: for each method every learning rate of its grid, seed 0, few epochs, on train without its validation part.

    An entry of experiments.toml may ``set`` the data, and ``vary`` another grid or another setting in place of the learning rate.
    """
    listed = []
    for entry in _entries(profile, "tuning", "papers", "methods"):
        if paper == "all" or paper in entry["papers"]:
            for method in entry["methods"]:
                usual = resolve(method, profile, **entry.get("set", {}))
                vary = entry.get("vary", {"learning_rate": usual["tuning_learning_rates"]})
                for values in itertools.product(*vary.values()):
                    changed = entry.get("set", {}) | dict(zip(vary, values, strict=True))
                    listed.append(
                        resolve(
                            method, profile, epochs=usual["tuning_epochs"], split="fit", **changed
                        )
                    )
    return listed


def find_runs(names: Sequence[str], profile: str) -> list[dict]:
    """The settings of listed runs and tuning runs by their names; ValueError for a name that the profile does not list."""
    listed = {run_name(settings): settings for settings in runs(profile) + tuning_runs(profile)}
    for name in names:
        if name not in listed:
            nearest = difflib.get_close_matches(name, listed, n=5, cutoff=0)
            raise ValueError(
                f"Profile {profile!r} lists no run {name!r}; its runs are {nearest} and {len(listed) - len(nearest)} others."
            )
    return [listed[name] for name in names]


def stale_runs(profile: str) -> list[str]:
    """Names of stored runs that today's settings would train differently: another recipe, profile or method version."""
    stale = []
    for settings in runs(profile) + tuning_runs(profile):
        path = artifacts.config_path(profile, run_name(settings))
        if path.exists():
            config = artifacts.read_json(path, ("run", "run_hash", "data"))
            if config["run_hash"] != run_hash(settings, config["data"]["checksum"]):
                stale.append(config["run"])
    return stale


def notebooks() -> list[dict]:
    """The notebooks after pretraining: name, papers and the numbers of the notebooks they need."""
    return read("experiments")["notebooks"]
