"""The notebooks: finding them, the parameters that they declare, and the checks before they run."""

import ast
import contextlib
import math
import os
import shlex
from functools import cache
from typing import TYPE_CHECKING

from lib.runs import settings, store

if TYPE_CHECKING:
    from lib.figures import Report

NOTEBOOKS = store.ROOT / "notebooks"
HEADLESS = "COMPANION_HEADLESS"  # set in the environment of a notebook that a job runs


# ------------------------------------------------------------------------- reading notebooks
def find_notebook(name: str) -> str:
    """The full name of a notebook given by its name or its number: "10" -> "10_pretraining"."""
    names = sorted(path.stem for path in NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    wanted = str(name).zfill(2)
    matching = [stem for stem in names if wanted in (stem, stem[:2])]
    if len(matching) != 1:
        raise ValueError(f"No notebook {name!r}; the notebooks are {names}.")
    return matching[0]


@cache
def cells(notebook: str) -> list[dict]:
    """The notebook's cells, with their sources as text.

    They are read as JSON: nbformat takes a second to import.
    """
    stored = store.read_json(NOTEBOOKS / f"{notebook}.ipynb")["cells"]
    return [cell | {"source": "".join(cell["source"])} for cell in stored]


@cache
def declared_parameters(notebook: str) -> dict:
    """Names and defaults in the notebook's cell tagged ``parameters``; it holds literals only."""
    tagged = [cell for cell in cells(notebook) if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise ValueError(
            f"Notebook {notebook} has {len(tagged)} cells tagged 'parameters'; it must have one."
        )
    assignments = ast.parse(tagged[0]["source"]).body
    return {node.targets[0].id: ast.literal_eval(node.value) for node in assignments}


def computing(notebook: str) -> dict:
    """The parameters with which a job runs the notebook: those that compute do so, others read."""
    return {"train_missing": True} if "train_missing" in declared_parameters(notebook) else {}


# ------------------------------------------------------------------------- checking parameters
def check_parameters(notebook: str, parameters: dict) -> dict:
    """The parameters, if the notebook declares each with that type; else ValueError.

    A profile must exist, and a method must have a recipe, a class and a style for figures.
    """
    declared = declared_parameters(notebook)
    for name, value in parameters.items():
        settings.check_known(name, declared, f"parameter of notebook {notebook}")
        settings.same_type(name, value, declared[name], f"{notebook}: parameter")
    if "profile" in parameters:
        settings.profile_settings(parameters["profile"])
    runs = parameters.get("runs", "").split()
    named = {run.split("-")[0] for run in runs} or {parameters.get("method", "")}
    for method in sorted(named - {""}):
        _check_method(method)
    return parameters


def _check_method(method: str) -> None:
    from lib import (
        figures,
        methods,  # slow to import
    )

    settings.check_recipe(method)
    methods.check_known(method)
    figures.method_style(method)


def parse_parameters(text: str, notebook: str) -> dict:
    """The parameters in a text, typed as the notebook declares them, and checked.

    Example:
        parse_parameters("method=simsiam seed=1", "10_pretraining")
        # {"method": "simsiam", "seed": 1}
    """
    declared = declared_parameters(notebook)
    parsed = {}
    for name, value in split_parameters(text).items():
        is_text = isinstance(declared.get(name), str)
        parsed[name] = value if is_text else _literal(value)
    check_parameters(notebook, parsed)
    _check_values(notebook, parsed)
    return parsed


def split_parameters(text: str) -> dict[str, str]:
    """Names and values as they were typed: 'method=simsiam runs="a b"'."""
    try:
        items = shlex.split(text)
    except ValueError as error:
        raise ValueError(
            f'{text!r} has an open quotation mark; write PARAMS="method=simsiam seed=1".'
        ) from error
    values = {}
    for item in items:
        name, sign, value = item.partition("=")
        if not sign:
            raise ValueError(f'{item!r} is not name=value; write PARAMS="method=simsiam seed=1".')
        if name == "profile" and name in values:
            raise ValueError("Give the profile once, as PROFILE=smoke and not in PARAMS.")
        if name in values:
            raise ValueError(f"Parameter {name!r} is there twice, in {text!r}; give it once.")
        values[name] = value
    return values


def _literal(text: str):
    """The Python literal that a text is; the text itself where it is none."""
    with contextlib.suppress(ValueError, SyntaxError):
        return ast.literal_eval(text)
    return text


def _check_values(notebook: str, parameters: dict) -> None:
    """ValueError for a number below zero or not finite, an unknown data set, an unknown run.

    A parameter that has its default is not looked at: -1 may stand for "as the profile has it".
    """
    declared = declared_parameters(notebook)
    changed = {name: value for name, value in parameters.items() if value != declared[name]}
    for name, value in changed.items():
        if type(value) in (int, float) and not 0 <= value < math.inf:
            raise ValueError(
                f"Parameter {name!r} of {notebook} is {value}; it must be finite and 0 or more."
            )
    if "dataset" in changed:
        from lib.data import sources  # slow to import

        sources.check_name(changed["dataset"])
    if "runs" in changed:
        profile = parameters.get("profile", declared["profile"])
        settings.find_runs(changed["runs"].split(), profile)


# ------------------------------------------------------------------------- inside a notebook
def begin(notebook: str, namespace: dict) -> "Report":
    """First call of every notebook: check its parameters, see that what it reads is there, style.

    namespace: ``globals()``. Returns what saves and shows the notebook's figures and tables.
    """
    import matplotlib.pyplot as plt  # slow to import

    from lib import figures

    declared = declared_parameters(notebook)
    parameters = {name: namespace[name] for name in declared if name in namespace}
    check_parameters(notebook, parameters)
    profile = parameters.get("profile", declared["profile"])
    _check_stored_runs(notebook, profile)
    figures.use_style()
    plt.switch_backend("agg")  # a figure is shown once, with its caption, when it is saved
    if profile in settings.ILLUSTRATIONS:
        figures.show_note(
            f"**Illustration only.** Networks of profile {profile} are trained too shortly to "
            "decide a claim."
        )
    return figures.Report(notebook, profile)


def _check_stored_runs(notebook: str, profile: str) -> None:
    """FileNotFoundError where a notebook reads stored runs and none of its papers is stored."""
    entries = {entry["name"]: entry for entry in settings.notebooks()}
    entry = entries.get(notebook, {"needs": [], "papers": []})
    if not entry["needs"]:
        return
    for paper in entry["papers"]:
        for run in settings.runs(profile, paper):
            if store.config_path(profile, settings.run_name(run)).exists():
                return
    raise FileNotFoundError(
        f"{notebook} shows stored runs of profile {profile}, and {store.RESULTS} has none of them. "
        f"Call make reproduce PROFILE={profile} PAPER={entry['papers'][0]} first."
    )


def headless() -> bool:
    """Whether a job runs this notebook, so that nobody is there to move a slider."""
    return HEADLESS in os.environ
