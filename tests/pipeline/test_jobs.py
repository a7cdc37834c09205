"""The jobs of a profile, and what makes one of them run again."""

from dataclasses import replace
from pathlib import Path

import pytest

from lib.pipeline import jobs, notebooks
from lib.runs import settings, store


def trained_by(listed):
    training = settings.pipeline()["training"]
    trained = [job.parameters["runs"].split() for job in listed if job.notebook == training]
    return sum(trained, [])


def listed_runs(profile):
    return {
        settings.run_name(run): run["dataset"]
        for run in settings.runs(profile) + settings.tuning_runs(profile)
    }


@pytest.mark.parametrize("profile", ["smoke", "quick", "standard"])
def test_jobs_are_unique_checked_and_ordered(profile, monkeypatch):
    monkeypatch.setattr(settings, "absent_sets", lambda profile: [])
    listed = jobs.jobs(profile)
    names = [job.name for job in listed]
    assert len(set(names)) == len(names) > 3
    for position, job in enumerate(listed):
        assert set(job.needs) <= set(names[:position]), f"{job.name} needs a job that comes later"
        notebooks.check_parameters(job.notebook, job.parameters)
    assert sorted(trained_by(listed)) == sorted(listed_runs(profile))


def test_runs_on_a_set_that_is_not_available_are_left_out(monkeypatch):
    absent = "cifar10"
    monkeypatch.setattr(settings, "absent_sets", lambda profile: [absent])
    expected = [name for name, dataset in listed_runs("standard").items() if dataset != absent]
    tuning = {settings.run_name(run) for run in settings.tuning_runs("standard")}
    trained = trained_by(jobs.jobs("standard"))
    assert sorted(set(trained) - tuning) == sorted(set(expected) - tuning)


def test_a_stamp_follows_parameters_sources_and_needs(monkeypatch):
    listed = jobs.listed_jobs("smoke")
    before = {name: jobs.stamp(job, listed) for name, job in listed.items()}

    def restamped(changed):
        return {name for name, job in changed.items() if jobs.stamp(job, changed) != before[name]}

    def with_dependent(needed):
        return {needed, *(name for name, job in listed.items() if needed in job.needs)}

    first = next(iter(listed))
    other = replace(listed[first], parameters=listed[first].parameters | {"seed": 7})
    assert with_dependent(first) <= restamped(listed | {first: other})
    edited = "32_kappa_as_confidence"
    hashed = jobs.source_hash
    monkeypatch.setattr(
        jobs, "source_hash", lambda name: "edited" if name == edited else hashed(name)
    )
    assert with_dependent(edited) <= restamped(listed)
    assert first not in restamped(listed)


@pytest.mark.parametrize("edited", ["claims.toml", "networks.py", "own_images.html.j2"])
def test_an_edit_of_lib_or_of_the_settings_runs_a_notebook_again(edited, monkeypatch):
    before = jobs.source_hash("33_kappa_closed_form")
    hashed = store.sha256

    def hash_of_edited(content):
        is_edited = isinstance(content, Path) and content.name == edited
        return "edited" if is_edited else hashed(content)

    monkeypatch.setattr(store, "sha256", hash_of_edited)
    jobs._shared_hash.cache_clear()
    assert jobs.source_hash("33_kappa_closed_form") != before
    jobs._shared_hash.cache_clear()
