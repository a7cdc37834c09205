"""The page of progress: what is done, running and to come, and how long that takes."""

import pytest

from lib.pipeline import progress, publish
from lib.runs import settings, store

RUN = settings.resolve("simsiam", "smoke")
NAME = settings.run_name(RUN)


def store_run(run):
    """Store what a training of two hours leaves."""
    config = {"run": settings.run_name(run), "run_hash": settings.run_hash(run, "0")}
    config |= {"settings": run, "data": {"checksum": "0"}, "finished": True, "seconds": 7200.0}
    store.write_json(store.config_path(run["profile"], config["run"]), config)


def state_of(name):
    runs = progress.plan("smoke").set_index("run")
    return runs.state[name], runs.hours[name]


def test_a_run_is_to_come_running_and_done():
    assert state_of(NAME)[0] == "to come"
    progress_file = store.run_dir("smoke", NAME) / "progress.json"
    store.write_json(progress_file, {"step": 1, "steps": 6, "seconds_left": 60})
    assert state_of(NAME)[0] == "running"
    assert f"{NAME}: step 1 of 6" in progress.write_readme("smoke").read_text()
    progress_file.unlink()
    store_run(RUN | {"learning_rate": 9.0})  # the same name, other settings
    assert state_of(NAME)[0] == "to come"
    store_run(RUN)
    assert state_of(NAME) == ("done", 2.0)


# ------------------------------------------------------------------------- published figures
@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with one published figure, and a profile with two."""
    monkeypatch.setattr(store, "ROOT", tmp_path)
    store.write_text(tmp_path / "figures" / "style.mplstyle", "")
    store.write_text(tmp_path / "figures" / "30_old.pdf", "old")
    folder = store.results_dir("standard") / "figures"
    for name in ("30_old", "32_roc"):
        for kind in publish.KINDS:
            store.write_text(folder / f"{name}.{kind}", f"{name} {kind}")
    return tmp_path


def published(repository):
    return sorted(path.name for path in (repository / "figures").iterdir())


def test_chosen_figures_replace_the_published_ones(repository):
    publish.publish()
    assert published(repository) == ["30_old.pdf", "30_old.png", "style.mplstyle"]
    publish.publish("standard", ["32_roc"])
    assert published(repository) == ["32_roc.pdf", "32_roc.png", "style.mplstyle"]
    assert (repository / "figures" / "32_roc.pdf").read_text() == "32_roc pdf"


def test_nothing_is_published_where_a_figure_is_missing(repository):
    before = published(repository)
    with pytest.raises(RuntimeError, match="33_none"):
        publish.publish("standard", ["32_roc", "33_none"])
    assert published(repository) == before
