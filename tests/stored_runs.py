"""Stored runs that nobody trained."""

from lib.runs import settings, store


def store_run(run, rows, part=store.SUITE, **config):
    """Store metrics of a run with these settings, and return its name."""
    name = settings.run_name(run)
    config = {"settings": run, "data": {"title": run["dataset"]}} | config
    store.write_json(store.config_path(run["profile"], name), config)
    store.write_metrics(run["profile"], part, name, rows)
    return name
