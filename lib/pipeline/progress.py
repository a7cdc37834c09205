"""results/<profile>/README.md: what is done and to come, verdicts, and a wall of figures."""

import time
from html import escape
from pathlib import Path

import pandas as pd

from lib.runs import settings, store

RECENT_SECONDS = 600  # a training that is running writes its progress every second
WALL = "## Notebooks and figures"
STATES = ("done", "running", "to come", "left out")


def plan(profile: str) -> pd.DataFrame:
    """Every run that the settings list, with its state and hours.

    Columns: run, method, dataset, purpose (final or tuning), state (one of STATES) and hours. The
    hours of a finished run are measured; those of another are estimated from stored runs.
    """
    finals = [(run, "final") for run in settings.runs(profile)]
    searches = [(run, "tuning") for run in settings.tuning_runs(profile)]
    stored = stored_runs(profile)
    stale = set(settings.stale_runs(profile))
    absent_sets = settings.absent_sets(profile)
    rows = []
    for run, purpose in finals + searches:
        name = settings.run_name(run)
        config = stored.get(name, {})
        if config.get("finished") and name not in stale:
            state = "done"
            hours = config["seconds"] / 3600
        else:
            state = _state_of_unfinished(profile, run, absent_sets)
            hours = estimated_hours(run, stored)
        rows.append(
            {
                "run": name,
                "method": run["method"],
                "dataset": run["dataset"],
                "purpose": purpose,
                "state": state,
                "hours": hours,
            }
        )
    columns = ["run", "method", "dataset", "purpose", "state", "hours"]
    return pd.DataFrame(rows, columns=columns).drop_duplicates("run", ignore_index=True)


def stored_runs(profile: str) -> dict[str, dict]:
    """The config.json of every stored run, by the run's name."""
    return {config["run"]: config for config in store.run_configs(profile).values()}


def estimated_hours(run: dict, stored: dict[str, dict]) -> float:
    """Hours that a run will take: its epochs times the median time per epoch of similar runs.

    Similar are finished runs of the same method on the same data set, or else of any method on that
    set. NaN where none is finished: networks and views differ too much between sets.
    """
    if run["epochs"] == 0:
        return 0.0
    on_set = []
    of_method = []
    for config in stored.values():
        trained = config["settings"]
        is_finished = config.get("finished") and trained["epochs"] > 0
        if is_finished and trained["dataset"] == run["dataset"]:
            seconds = config["seconds"] / trained["epochs"]
            on_set.append(seconds)
            if trained["method"] == run["method"]:
                of_method.append(seconds)
    per_epoch = pd.Series(of_method or on_set, dtype=float).median()
    return float(run["epochs"] * per_epoch / 3600)


def _state_of_unfinished(profile: str, run: dict, absent_sets: list[str]) -> str:
    path = store.run_dir(profile, settings.run_name(run)) / "progress.json"
    if path.exists() and time.time() - path.stat().st_mtime < RECENT_SECONDS:
        return "running"
    if run["dataset"] in absent_sets:
        return "left out"
    return "to come"


def write_readme(profile: str) -> Path:
    """Write results/<profile>/README.md and return its path."""
    settings.profile_settings(profile)
    folder = store.results_dir(profile)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There are no results of profile {profile}: call make reproduce PROFILE={profile}."
        )
    runs = plan(profile)
    parts = [
        f"# Results of profile {profile}",
        "This page is written by `python -m lib progress` and at the end of `make reproduce`.",
        "## Progress",
        _summary(runs),
        _progress_table(runs),
        *_running(profile, runs),
        *_verdicts(profile),
        *_links(folder),
        *_wall(profile),
    ]
    path = folder / "README.md"
    store.write_text(path, "\n\n".join(parts) + "\n")
    return path


def _summary(runs: pd.DataFrame) -> str:
    lines = []
    for state in STATES:
        chosen = runs[runs.state == state]
        if len(chosen):
            about = "" if state == "done" else "about "
            hours = _sum_of_hours(chosen)
            lines.append(f"- {state}: {len(chosen)} of {len(runs)} runs, {about}{hours} hours")
    if runs.hours.isna().any():
        lines.append("\n+: more, as no run on some of these data sets is finished.")
    if (runs.state == "left out").any():
        lines.append("\nRuns are left out where their data set is not in DATA_DIR.")
    return "\n".join(lines)


def _sum_of_hours(runs: pd.DataFrame) -> str:
    """With a "+" where the time of some is not known yet."""
    more = "+" if runs.hours.isna().any() else ""
    return f"{runs.hours.sum():.1f}{more}"


def _progress_table(runs: pd.DataFrame) -> str:
    """One row per data set and purpose: runs and hours done and to come."""
    rows = [["data set", "purpose", "runs", "done", "hours done", "hours to come", "to come"]]
    datasets = runs.dataset.str.replace(settings.ONE_CLASS, r"\g<name> (one class)", regex=True)
    for (dataset, purpose), group in runs.groupby([datasets, "purpose"], sort=True):
        done = group[group.state == "done"]
        remaining = group[group.state.isin(["running", "to come"])]
        methods = ", ".join(sorted(remaining.method.unique()))
        rows.append(
            [
                dataset,
                purpose,
                len(group),
                len(done),
                f"{done.hours.sum():.1f}",
                _sum_of_hours(remaining),
                methods,
            ]
        )
    return store.markdown_table(rows)


def _running(profile: str, runs: pd.DataFrame) -> list[str]:
    """What the trainings under way have reached; empty where none is running."""
    lines = []
    for name in runs.run[runs.state == "running"]:
        state = store.read_json(store.run_dir(profile, name) / "progress.json")
        hours_left = state.get("seconds_left", float("nan")) / 3600
        lines.append(
            f"- {name}: step {state['step']:,} of {state['steps']:,}, {hours_left:.1f} hours left"
        )
    if not lines:
        return []
    return ["Running now:", "\n".join(lines)]


def _verdicts(profile: str) -> list[str]:
    """How many claims of each paper have which verdict."""
    from lib.claims import ledger  # slow to import

    counts = ledger.verdict_counts(ledger.ledger(profile))
    rows = [["paper", *counts.columns]]
    for paper, title in settings.PAPERS.items():
        rows.append([title, *counts.loc[paper]])
    return ["## Verdicts of claims", store.markdown_table(rows)]


def stored_figures(profile: str) -> dict[str, dict]:
    """The records of all stored figures by id, each with the path of its picture."""
    figures = {}
    for path in sorted((store.results_dir(profile) / "figures").glob("*.json")):
        record = store.read_json(path, ("id", "caption", "alt", "notebook"))
        figures[record["id"]] = record | {"picture": path.with_suffix(".png")}
    return figures


def _wall(profile: str) -> list[str]:
    """Every executed notebook with its figures as thumbnails, each with what is to be seen."""
    from lib.figures.save import split_caption  # slow to import: matplotlib

    figures: dict[str, list[dict]] = {}
    for record in stored_figures(profile).values():
        figures.setdefault(record["notebook"], []).append(record)
    sections = []
    for path in sorted((store.results_dir(profile) / "notebooks").glob("*.ipynb")):
        name = path.stem.split("--")[0]
        sections.append(f"### [{path.stem}](notebooks/{path.name})")
        pictures = []
        sentences = []
        for record in figures.pop(name, []):
            file = f"figures/{record['id']}.png"
            alt = escape(record["alt"], quote=True)
            pictures.append(f'<a href="{file}"><img src="{file}" alt="{alt}" height="140"></a>')
            sentences.append(split_caption(record["caption"])[0])
        if pictures:
            sections += ["\n".join(pictures), " ".join(sentences)]
    if not sections:
        return []
    return [WALL, *sections]


def _links(folder: Path) -> list[str]:
    """What else is stored, in a line."""
    links = []
    for name in ("tables", "runs", "encoders"):
        if (folder / name).is_dir():
            links.append(f"[{name}]({name})")
    return [f"Stored beside this page: {', '.join(links)}."] if links else []
