"""What a run is: its settings, its name and its hash.

Settings come in three flat layers, recipe <- profile <- run. A recipe has the values of a method's
paper, a profile the data and the budget, and a run what differs from both. The files are
settings/recipes.toml, whose head shows the order of all tables, settings/profiles.toml, and
settings/runs.toml, which lists the runs of each profile.

Resolved settings are one flat dictionary. The hash of a run covers them and its data.
"""

import difflib
import itertools
import json
import math
import re
import tomllib
from collections.abc import Collection, Sequence
from functools import cache

from lib.runs import store
from lib.runs.store import ROOT, sha256

# Raise it by hand when a measure of lib.evaluation changes its numbers: all runs whose weights are
# available are then measured again.
EVALUATION_VERSION = 1
BASE = "simsiam"  # the recipe that every other starts from
PAPERS = {
    "vs1": "VI-SimSiam 2022",
    "vs2": "VI-SimSiam 2023",
    "simvae": "SimVAE",
    "prosmin": "ProSMin",
    "vje": "VJE",
}
PROTOCOL = "protocol"
GROUPS = {  # what the runs of a group are compared in
    PROTOCOL: "all methods, one budget",
    "lengths": "SimSiam and VI-SimSiam, trained shorter and longer",
    "controls": "what VI-SimSiam's loss does to the learning rate",
    "sharpening": "DINO at other temperatures",
    "datasets": "on other data",
    "vit": "on a vision transformer",
    "scoring": "what ProSMin depends on",
    "simvae": "SimVAE's comparison, on its own encoder",
    "views": "a VAE with as many views of an image as SimVAE",
    "ablations": "what SimVAE depends on",
    "likelihood": "what VJE depends on",
    "one_class": "trained on the images of one class",
}
# Settings that belong together: a learning rate is that of an optimiser.
OPTIMISATION = ("optimizer", "learning_rate", "weight_decay", "momentum", "warmup_epochs")
ILLUSTRATIONS = ("smoke", "quick")  # profiles that are no evidence

# One class of another set: cifar10_class_3.
ONE_CLASS = re.compile(r"(?P<name>.+)_class_(?P<label>\d+)\Z")

# Settings that every run has and no recipe names.
DEFAULTS = {
    "seed": 0,
    "split": "train",
    "train_images": 0,
    "precision": "auto",
    "bank_images": 0,
    "fine_tune_optimizer": "sgd",
}
# Settings of evaluation and tuning. They are no part of what is trained.
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
# Settings that may differ from the usual: on its sets SimSiam has VI-SimSiam 2022's views.
MAY_DIFFER = {"simsiam": {"local_views"}}
# Parts of a training, in epochs of the length that the same file states. A shorter run has the
# same share of them.
SCHEDULES = (
    "warmup_epochs",
    "kl_warmup_epochs",
    "concentration_warmup_epochs",
    "teacher_temperature_warmup_epochs",
    "frozen_prototypes_epochs",
)

# What values must be. Those of AT_LEAST and NOT_NEGATIVE are settings that every method has.
AT_LEAST = {
    "epochs": 0,
    "batch_size": 2,
    "seed": 0,
    "image_size": 8,
    "width": 1,
    "dimension": 2,
    "local_views": 0,
    "train_images": 0,
}
NOT_NEGATIVE = ("learning_rate", "weight_decay", "momentum", "warmup_epochs", "clip_norm")
SHARES = ("momentum", "target_momentum", "centre_momentum", "correlation_memory")
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

# How a run's name abbreviates settings.
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
# What an entry of runs.toml has beside settings.
ENTRY = ("papers", "methods", "seeds", "cases")


# ------------------------------------------------------------------------------------------- files
@cache
def read(name: str, parse_float: type[float] = float) -> dict:
    """The content of settings/<name>.toml; ValueError where it is not valid TOML."""
    path = ROOT / "settings" / f"{name}.toml"
    try:
        return tomllib.loads(path.read_text(), parse_float=parse_float)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}; correct that line.") from error


def check_known(name: str, known: Collection[str], what: str, advice: str = "") -> None:
    """ValueError for a name that is not known; it has the nearest one, or all if none is near."""
    if name in known:
        return
    message = f"Unknown {what} {name!r}"
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if nearest:
        message += f"; do you mean {nearest[0]!r}?"
    else:
        message += f"; there are {', '.join(sorted(known))}."
    raise ValueError(f"{message} {advice}".strip())


def _with_parent(tables: dict, name: str, where: str) -> list[dict]:
    """The table of this name, and before it the one that it inherits from."""
    table = tables[name]
    if "inherits" not in table:
        return [table]
    parent = table["inherits"]
    if not isinstance(parent, str):
        raise ValueError(f"{name!r} in {where} inherits from {parent!r}; name one table.")
    check_known(parent, tables, f"table that {name!r} inherits from in {where}")
    if "inherits" in tables[parent]:
        raise ValueError(
            f"{name!r} in {where} inherits from {parent!r}, which inherits itself; "
            "write out what it takes from there."
        )
    return [tables[parent], table]


def _merged(tables: list[dict]) -> dict:
    """The settings of these tables, later ones over earlier ones."""
    settings = {}
    for table in tables:
        settings |= table
    for key in ("inherits", "datasets", "methods"):
        settings.pop(key, None)
    return settings


# ----------------------------------------------------------------------------------------- recipes
def _recipe_tables(method: str) -> list[dict]:
    recipes = read("recipes")
    advice = "Or add its recipe to settings/recipes.toml."
    check_known(method, recipes, "method", advice)
    base = [recipes[BASE]] if BASE in recipes else []
    return base + _with_parent(recipes, method, "settings/recipes.toml")


def recipe(method: str) -> dict:
    """The settings of a method's paper, without those for single data sets."""
    settings = _merged(_recipe_tables(method))
    for name in NOT_NEGATIVE:
        if name in settings:
            where = f"Recipe {method!r} of settings/recipes.toml: parameter"
            settings[name] = same_type(name, settings[name], 0.0, where)
    return settings


def recipe_of_set(method: str, dataset: str) -> dict:
    """What a method's recipe sets for one data set alone; empty for most."""
    tables = [table.get("datasets", {}) for table in _recipe_tables(method)]
    return _merged([datasets[dataset] for datasets in tables if dataset in datasets])


def check_recipe(method: str) -> None:
    """ValueError for an unknown method, and for a setting that looks misspelt.

    A recipe may have settings of its own. One that differs by a letter or two from a setting of
    another recipe is taken for a slip, because nothing would read it.
    """
    _recipe_tables(method)
    recipes = dict(read("recipes"))
    recipe_table = recipes.pop(method)
    known = _known_settings(recipes) | {"inherits", "datasets"}
    for name in sorted(set(recipe_table) - known):
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.9)
        if nearest:
            raise ValueError(
                f"Recipe {method!r} of settings/recipes.toml sets {name!r}, which no other recipe "
                f"has. Do you mean {nearest[0]!r}? If not, give it a name less like that."
            )


def _known_settings(recipes: dict) -> set[str]:
    """The settings that every run has, and those of these recipes."""
    everywhere = {*DEFAULTS, *NOT_TRAINED_WITH, "dataset"}
    return everywhere.union(*recipes.values()) - {"inherits", "datasets"}


# ---------------------------------------------------------------------------------------- profiles
def _profile(profile: str) -> dict:
    profiles = read("profiles")
    check_known(profile, profiles, "profile")
    for method in profiles[profile].get("methods", {}):
        check_known(method, read("recipes"), f"method of profile {profile!r}")
    return profiles[profile]


def profile_settings(profile: str) -> dict:
    """The profile's own settings, without those for single methods and data sets."""
    return _merged([_profile(profile)])


def _profile_part(profile: str, kind: str, name: str) -> dict:
    """The profile's table for one of its ``methods`` or ``datasets``; empty where it has none.

    A method without a table has what belongs to the optimiser from the method that its recipe
    inherits: a learning rate is no use with an optimiser that it was not chosen for.
    """
    tables = _profile(profile).get(kind, {})
    if name in tables:
        return _merged(_with_parent(tables, name, f"{kind} of profile {profile!r}"))
    parent = read("recipes").get(name, {}).get("inherits") if kind == "methods" else None
    if not parent:
        return {}
    inherited = _profile_part(profile, kind, parent)
    return {key: value for key, value in inherited.items() if key in OPTIMISATION}


def absent_sets(profile: str) -> list[str]:
    """Data sets that nothing can fetch (own_sets of the profile) and that DATA_DIR lacks."""
    folder = store.default_data_dir()
    return [name for name in plan(profile).get("own_sets", ()) if not (folder / name).is_dir()]


# ---------------------------------------------------------------------------------------- resolving
def resolve(method: str, profile: str, **parameters) -> dict:
    """Settings of one run: recipe <- profile <- parameters (settings/recipes.toml has the order).

    One class of a data set has the settings of that set. A method that its recipe leaves untrained
    is trained in no profile. Raises ValueError for an unknown method, profile or parameter, and for
    a value of the wrong type or out of range.

    Example:
        >>> run = resolve("vi_simsiam", "standard", seed=1)
        >>> run["epochs"], run["learning_rate"]
    """
    from_recipe = recipe(method)
    from_method = _profile_part(profile, "methods", method)
    from_profile = profile_settings(profile)
    usual_set = from_method.get("dataset", from_profile.get("dataset"))
    dataset = str(parameters.get("dataset", usual_set))
    whole_set = ONE_CLASS.sub(r"\g<name>", dataset)
    in_profile = f"Profile {profile!r} of settings/profiles.toml"
    in_recipe = f"Recipe {method!r} of settings/recipes.toml, data set {whole_set!r}"
    budget = _typed(from_profile, from_recipe, in_profile)
    budget |= _typed(_profile_part(profile, "datasets", whole_set), from_recipe, in_profile)
    budget |= _typed(recipe_of_set(method, whole_set), from_recipe, in_recipe)
    budget |= _typed(from_method, from_recipe, in_profile)
    if from_recipe.get("epochs") == 0:
        budget.pop("epochs", None)

    settings = {**DEFAULTS, "method": method, "profile": profile, **from_recipe, **budget}
    usual_epochs = settings.get("epochs")
    for name, value in parameters.items():
        check_known(name, settings, f"parameter of method {method!r}")
        settings[name] = same_type(name, value, settings[name])
    for name in SCHEDULES:
        if name in settings and name not in parameters:
            stated_for = usual_epochs if name in budget else from_recipe.get("epochs")
            settings[name] = _scaled(settings[name], stated_for, settings["epochs"])
    _check_values(settings)
    return settings


def _scaled(epochs: float, length: int, trained: int) -> float:
    """A part of a training of ``length`` epochs as the same share of ``trained`` epochs."""
    return round(epochs * trained / length, 6) if length else epochs


def same_type(name: str, value, current, what: str = "Parameter"):
    """The value in the type of the current one; ValueError for any other type.

    A whole number is taken for a float.
    """
    if isinstance(current, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not type(current):
        raise ValueError(
            f"{what} {name!r} is {value!r} ({type(value).__name__}); "
            f"it must be a {type(current).__name__} like {current!r}."
        )
    return value


def _typed(table: dict, from_recipe: dict, where: str) -> dict:
    """The table in the types of the recipe; ValueError for a setting that no recipe has."""
    model = DEFAULTS | from_recipe
    everywhere = _known_settings(read("recipes"))
    typed = {}
    for name, value in table.items():
        if name in model:
            value = same_type(name, value, model[name], f"{where}: parameter")
        else:
            check_known(name, everywhere, f"setting in {where}:")
        typed[name] = value
    return typed


def _check_values(settings: dict) -> None:
    missing = sorted({*AT_LEAST, *NOT_NEGATIVE, "dataset"} - set(settings))
    if missing:
        raise ValueError(
            f"Method {settings['method']!r} lacks {missing}; add them in settings/recipes.toml."
        )
    bounds = dict(AT_LEAST)
    if settings["local_views"]:
        bounds["local_size"] = 8
    for name, least in bounds.items():
        if same_type(name, settings[name], least) < least:
            raise ValueError(
                f"Parameter {name!r} is {settings[name]}; it must be at least {least}."
            )
    for name, value in settings.items():
        fault = _range_fault(name, value)
        if fault:
            raise ValueError(f"Parameter {name!r} is {value}; it must be {fault}.")


def _range_fault(name: str, value) -> str:
    """What a value must be and is not; empty for a good one."""
    if name in NOT_NEGATIVE and not 0 <= value < math.inf:
        return "finite and not negative"
    if name in SHARES and not 0 <= value <= 1:
        return "in 0..1"
    if name in POSITIVE and not 0 < value < math.inf:
        return "finite and above 0"
    if isinstance(value, float) and not math.isfinite(value):
        return "finite"
    if name == "initial_cosine" and not 0 < value < 1:
        return "above 0 and below 1"
    return ""


# --------------------------------------------------------------------------------- names and hashes
def differences(settings: dict) -> dict:
    """Settings that differ from what the profile gives this method on this data set.

    Seed, epochs and settings of evaluation are left out.
    """
    usual = _usual(settings["method"], settings["profile"], settings["dataset"], settings["epochs"])
    differing = {}
    for name, value in trained_with(settings).items():
        if name not in ("epochs", "seed", "dataset") and value != usual.get(name):
            differing[name] = value
    return differing


@cache
def _usual(method: str, profile: str, dataset: str, epochs: int) -> dict:
    """What the profile gives a method on a data set; asked for the name of every run."""
    return resolve(method, profile, dataset=dataset, epochs=epochs)


def variant(settings: dict) -> str:
    """The epochs, and what else differs from recipe and profile: ``e40``, ``e5-fit-lr0.03``.

    A tuning run states its learning rate even where it is the usual one.
    """
    differing = set(differences(settings))
    if settings["split"] == "fit" and settings["epochs"]:
        differing.add("learning_rate")
    parts = [f"e{settings['epochs']}"]
    for name, value in settings.items():
        if name in differing:
            text = f"{value:g}" if isinstance(value, float) else str(value)
            parts.append(text if name == "split" else short(name, text))
    return "-".join(parts)


def short(name: str, value: str) -> str:
    """A setting and its value as in the name of a run: ``lr0.03``, ``likelihoodambient``."""
    return SHORT.get(name, name.replace("_", "")) + value


def run_name(settings: dict) -> str:
    """``<method>-<dataset>-<variant>-seed<k>``."""
    return f"{settings['method']}-{settings['dataset']}-{variant(settings)}-seed{settings['seed']}"


def is_usual(settings: dict) -> bool:
    """Whether nothing but data set and seed differs from what the profile gives the method."""
    method = settings["method"]
    profile = settings["profile"]
    return settings == resolve(method, profile, dataset=settings["dataset"], seed=settings["seed"])


def is_usual_at_any_length(settings: dict) -> bool:
    """Whether nothing but data set, seed, epochs and MAY_DIFFER differs from the usual settings."""
    return set(differences(settings)) <= MAY_DIFFER.get(settings["method"], set())


def unlike_recipe(settings: dict) -> dict[str, tuple]:
    """Where a run differs from its method's recipe: setting -> (here, in the recipe).

    What describes another backbone, or views that there are none of, is left out. A part of the
    training, such as a warm-up, is compared as its share: see SCHEDULES.
    """
    method = settings["method"]
    paper = recipe(method) | recipe_of_set(method, settings["dataset"])
    length = paper["epochs"]
    for name in SCHEDULES:
        if name in paper:
            paper[name] = _scaled(paper[name], length, settings["epochs"])
    unread = set()
    if not settings["local_views"]:
        unread.add("local_size")
    if settings["backbone"] != "resnet18":
        unread |= {"width", "stem"}
    pairs = {}
    for name, published in paper.items():
        value = settings.get(name, published)
        if name not in unread and value != published:
            pairs[name] = (value, published)
    return pairs


def trained_with(settings: dict) -> dict:
    """The settings without those of evaluation and tuning."""
    return {name: value for name, value in settings.items() if name not in NOT_TRAINED_WITH}


def run_hash(settings: dict, data_checksum: str) -> str:
    """Identifies a training: the settings (with the method's version) and the data.

    The profile's name does not count, what it sets does.
    """
    content = trained_with(settings)
    content.pop("profile", None)
    return sha256(json.dumps(content, sort_keys=True) + data_checksum)[:12]


def evaluation_hash(settings: dict) -> str:
    """Identifies how a run is measured: EVALUATION_VERSION and the settings of evaluation."""
    content = {name: value for name, value in settings.items() if name in NOT_TRAINED_WITH}
    text = json.dumps(content, sort_keys=True)
    return f"{EVALUATION_VERSION}-{sha256(text)[:8]}"


# -------------------------------------------------------------------------------- the plan of runs
def plan(profile: str) -> dict:
    """The profile's table of settings/runs.toml: its groups of runs, and how they become jobs."""
    profiles = {name: table for name, table in read("runs").items() if name != "notebooks"}
    check_known(profile, profiles, "profile of settings/runs.toml")
    keys = ("one_job_per", "own_sets", "tuning", *GROUPS)
    for name in profiles[profile]:
        check_known(name, keys, f"key of profile {profile!r} in settings/runs.toml:")
    return profiles[profile]


def _entries(profile: str, group: str, paper: str, needs: tuple[str, ...]) -> list[dict]:
    """The entries of a group for a paper; ValueError for one without what it needs.

    A seed that is named twice would look like two runs.
    """
    where = f"An entry of [[{profile}.{group}]] in settings/runs.toml"
    entries = []
    for entry in plan(profile).get(group, []):
        missing = [name for name in needs if name not in entry]
        if missing:
            raise ValueError(f"{where} lacks {missing}; it has {sorted(entry)}: add them.")
        seeds = entry.get("seeds", [])
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"{where} has the seeds {seeds}; name each once.")
        if paper in ("all", *entry["papers"]):
            entries.append(entry)
    return entries


def _varied(entry: dict) -> dict[str, list]:
    """The settings of which an entry has several values."""
    varied = {}
    for name, values in entry.items():
        if name not in ENTRY and isinstance(values, list):
            varied[name] = values
    return varied


def _changes(entry: dict) -> list[dict]:
    """The settings of each run of an entry: its cases, and every combination of its lists."""
    varied = _varied(entry)
    fixed = {name: value for name, value in entry.items() if name not in (*ENTRY, *varied)}
    changes = []
    for values in itertools.product(*varied.values()):
        combination = dict(zip(varied, values, strict=True))
        for case in entry.get("cases", [{}]):
            changes.append(fixed | combination | case)
    return changes


def runs(profile: str, paper: str = "all", group: str = "all") -> list[dict]:
    """Settings of the runs that a profile lists for a paper and a group, each once."""
    return [dict(settings) for settings in _listed(profile, paper, group)]


@cache
def _listed(profile: str, paper: str, group: str) -> list[dict]:
    if group != "all":
        check_known(group, GROUPS, "group of runs")
    groups = GROUPS if group == "all" else (group,)
    listed = {}
    for name in groups:
        for entry in _entries(profile, name, paper, ("papers", "methods", "seeds")):
            changes = _changes(entry)
            for seed, method, change in itertools.product(
                entry["seeds"], entry["methods"], changes
            ):
                settings = resolve(method, profile, seed=seed, **change)
                listed.setdefault(run_name(settings), settings)
    return list(listed.values())


def tuning_runs(profile: str, paper: str = "all") -> list[dict]:
    """The runs of the search that every method gets, seed 0, on train without its validation part.

    A method is trained for ``tuning_epochs`` with every rate of ``tuning_learning_rates``, or with
    every value of what its entry varies instead. Methods without training have one run.
    """
    listed = []
    for entry in _entries(profile, "tuning", paper, ("papers", "methods")):
        for method, change in itertools.product(entry["methods"], _changes(entry)):
            usual = resolve(method, profile, **change)
            if usual["epochs"] == 0:
                listed.append(resolve(method, profile, split="fit", **change))
                continue
            searched = [{}]
            if not _varied(entry):
                searched = [{"learning_rate": rate} for rate in usual["tuning_learning_rates"]]
            for values in searched:
                parameters = change | values | {"epochs": usual["tuning_epochs"], "split": "fit"}
                listed.append(resolve(method, profile, **parameters))
    return listed


def find_runs(names: Sequence[str], profile: str) -> list[dict]:
    """The settings of listed runs and tuning runs by their names; ValueError for another name."""
    listed = {run_name(settings): settings for settings in runs(profile) + tuning_runs(profile)}
    for name in names:
        if name not in listed:
            nearest = difflib.get_close_matches(name, listed, n=3, cutoff=0)
            raise ValueError(
                f"Profile {profile!r} lists no run {name!r}. The nearest of its {len(listed)} "
                f"runs are {', '.join(nearest)}."
            )
    return [listed[name] for name in names]


def stale_runs(profile: str) -> list[str]:
    """Names of stored runs that today's settings would train differently."""
    stale = []
    for settings in runs(profile) + tuning_runs(profile):
        path = store.config_path(profile, run_name(settings))
        if path.exists():
            config = store.read_json(path, ("run", "run_hash", "data"))
            if config["run_hash"] != run_hash(settings, config["data"]["checksum"]):
                stale.append(config["run"])
    return stale


def pipeline() -> dict:
    """Which notebooks train, measure and show the ledger, and the front page's figures."""
    return read("runs")["pipeline"]


def notebooks(profile: str = "") -> list[dict]:
    """The notebooks after these, in order: name, papers, numbers of those they need, group.

    profile: leave out those that are about a group of runs that it does not have.
    """
    entries = []
    for name, entry in read("runs")["notebooks"].items():
        group = entry.get("group", "")
        if not profile or not group or runs(profile, group=group):
            entries.append({"name": name, "group": ""} | entry)
    return entries
