"""lib.evaluation.parts: what is measured of which runs, and how it is read."""

from lib.evaluation import parts, results
from lib.runs import settings
from tests.stored_runs import store_run


def test_factors_are_read_of_every_set_that_a_run_is_probed_on():
    probed = settings.resolve("simvae", "smoke", dataset="digits")
    other = settings.resolve("vae", "smoke", dataset="digits")
    assert results.read_factors([probed, other]).empty
    row = {"condition": "colour", "metric": "accuracy", "value": 0.5, "n": 10}
    for run, part in (
        (probed, f"{results.FACTORS}-styled_digits"),
        (probed, f"{results.FACTORS}-celeba"),
        (other, "content"),
    ):
        store_run(run, [row], part)
    rows = results.read_factors([probed, other])
    assert sorted(rows.set) == ["celeba", "styled_digits"]
    assert set(rows.run) == {settings.run_name(probed)}
    assert len(results.read("content", [probed, other])) == 1


def test_the_longest_training_of_the_papers_sets_is_fine_tuned(monkeypatch):
    stored = [
        settings.resolve("vi_simsiam_2022", "standard", dataset="imagenette", epochs=epochs)
        for epochs in (50, 100)
    ]
    other_rate = settings.resolve(
        "vi_simsiam_2022", "standard", dataset="imagenette", epochs=200, learning_rate=1e-3
    )
    monkeypatch.setattr(results, "measured", lambda runs: [*stored, other_rate])
    of_2022 = [part for part in parts.parts("standard") if part.papers == ("vs1",)]
    (few_labels,) = [part for part in of_2022 if part.name == "few_labels"]
    assert {run["epochs"] for run in few_labels.runs} == {100}
