"""The published figures: figures/<id>.pdf and .png, copied from one profile."""

import re
from collections.abc import Sequence
from pathlib import Path

from lib.runs import settings, store

KINDS = ("pdf", "png")


def published_ids() -> list[str]:
    """The ids of the figures that are published now."""
    return sorted({path.stem for path in _published_files()})


def publish(profile: str = "standard", ids: Sequence[str] = ()) -> list[Path]:
    """Copy the figures ``ids`` (default: those published now) of a profile to figures/.

    figures/ then holds these figures and no others. RuntimeError, before anything is copied, if a
    figure is missing.

    Example:
        publish("standard", ["32_roc", "90_verdicts"])
    """
    settings.profile_settings(profile)
    ids = sorted(set(ids)) or published_ids()
    folder = store.results_dir(profile) / "figures"
    for figure_id in ids:
        _check_figure(folder, figure_id)
    target = store.ROOT / "figures"
    wanted = []
    for figure_id in ids:
        wanted += [f"{figure_id}.{kind}" for kind in KINDS]
    for path in _published_files():
        if path.name not in wanted:
            path.unlink()
    for name in wanted:
        store.write_bytes(target / name, (folder / name).read_bytes())
    return [target / name for name in wanted]


def _published_files() -> list[Path]:
    """The files of figures in figures/: their names begin with a notebook's number."""
    files = (store.ROOT / "figures").iterdir()
    return sorted(path for path in files if re.match(r"\d\d_", path.name))


def _check_figure(folder: Path, figure_id: str) -> None:
    for kind in KINDS:
        if not (folder / f"{figure_id}.{kind}").exists():
            raise RuntimeError(
                f"{folder} has no {figure_id}.{kind}; draw it with "
                f"make notebook N={figure_id[:2]} PROFILE={folder.parent.name}."
            )
