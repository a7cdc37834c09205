"""lib.claims.differences: which stored runs are compared, gains, and paired differences."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lib.claims import differences
from lib.evaluation import measure
from lib.runs import settings, store


def write(run, on=None, **scores):
    store.write_scores(run["profile"], settings.run_name(run), on or run["dataset"], scores)


# -------------------------------------------------------------------------------- what is compared
def test_simsiam_and_vi_simsiam_are_paired_at_every_length_and_on_every_set(monkeypatch):
    monkeypatch.setattr(measure, "measured", lambda listed: listed)
    pairs = differences.simsiam_pairs("standard")
    assert {5, 10, 20, 40} <= {epochs for dataset, epochs in pairs if dataset == "cifar10"}
    for (dataset, epochs), by_method in pairs.items():
        for by_seed in by_method.values():
            for seed, run in by_seed.items():
                assert (run["dataset"], run["epochs"], run["seed"]) == (dataset, epochs, seed)


def test_of_two_forms_of_vi_simsiam_the_later_one_is_taken(monkeypatch):
    both = [
        settings.resolve(method, "standard", seed=seed)
        for method, seed in (("vi_simsiam", 0), ("vi_simsiam_2022", 0), ("vi_simsiam_2022", 1))
    ]
    monkeypatch.setattr(measure, "measured", lambda listed: both)
    (pair,) = differences.simsiam_pairs("standard").values()
    assert {run["method"] for run in pair["vi_simsiam"].values()} == {"vi_simsiam"}
    monkeypatch.setattr(measure, "measured", lambda listed: both[1:])
    (pair,) = differences.simsiam_pairs("standard").values()
    assert sorted(pair["vi_simsiam"]) == [0, 1]


def test_prosmin_is_compared_on_its_own_backbone_only():
    backbones = {
        "prosmin": "resnet18",
        "dino": "resnet18",
        "moco_v3": "vit",
        "prosmin_vit": "vit",
        "dino_vit": "vit",
        "simsiam": "resnet18",
    }
    assert differences.prosmin_pairs(backbones) == [
        ("prosmin", "dino"),
        ("prosmin_vit", "moco_v3"),
        ("prosmin_vit", "dino_vit"),
    ]
    assert differences.prosmin_pairs({"dino": "vit"}) == []


def test_runs_by_length_and_what_is_behind_a_row():
    lengths = {"vae": (3, 9), "simvae": (2,), "random_latent": (0,)}
    listed = [
        settings.resolve(
            method, "smoke", dataset="digits", **({"epochs": epochs} if epochs else {})
        )
        for method, of in lengths.items()
        for epochs in of
    ]
    shortest, longer = differences.by_length(listed)
    assert [run["epochs"] for run in shortest] == [3, 2, 0]
    assert [run["epochs"] for run in longer] == [9]
    behind = differences.behind(shortest, "digits", ("vae", "random_latent"), {0})
    assert behind["epochs"] == 3  # what is not trained has no epochs that could be too few
    assert behind["runs"].split() == [settings.run_name(run) for run in (shortest[0], shortest[2])]


def test_the_best_of_a_tuning_is_chosen_once_all_of_it_is_run():
    rates = [run for run in settings.tuning_runs("standard") if run["method"] == "vje"]
    for place, run in enumerate(rates):
        assert not differences.tuning("standard").chosen.any()
        row = {"metric": "accuracy", "classifier": "knn", "value": 0.3 + 0.1 * (place == 1)}
        name = settings.run_name(run)
        config = {"settings": run, "data": {"title": "cifar10"}}
        store.write_json(store.config_path("standard", name), config)
        rank = {"metric": "effective_rank", "value": 10.0 + place}
        store.write_metrics("standard", store.SUITE, name, [row, rank])
    table = differences.tuning("standard")
    (best,) = table[table.chosen].itertuples()
    assert (best.method, best.value) == ("vje", rates[1]["learning_rate"])
    assert best.validation_knn_percent == pytest.approx(40)
    assert best.effective_rank == pytest.approx(11)


# ------------------------------------------------------------------------ gains over the references
def test_gains_are_paired_differences_against_the_reference_of_the_same_seed():
    run = settings.resolve("simsiam", "smoke", seed=1)
    references = [settings.resolve("random", "smoke", seed=seed) for seed in (0, 1)]
    generator = np.random.default_rng(0)
    own = generator.random(400) < 0.8
    write(run, knn_correct=own)
    for reference in references:
        right = generator.random(400) < 0.5
        write(reference, knn_correct=right)
    gains = differences.gains(run, references)
    assert gains.reference.tolist() == ["random"]
    assert gains.value[0] == pytest.approx(own.mean() - right.mean())
    error = (own.astype(float) - right).std() / 20
    assert gains.ci_low[0] == pytest.approx(gains.value[0] - 1.96 * error, abs=0.02)
    assert differences.is_evidence(gains)
    assert not differences.is_evidence(gains.assign(ci_low=-0.01))
    assert not differences.is_evidence(gains.assign(must_beat=False))


def test_gains_are_over_the_untrained_network_of_the_same_backbone():
    run = settings.resolve("dino_vit", "smoke")
    references = [settings.resolve(name, "smoke") for name in ("random", "random_vit")]
    for other, right in zip((run, *references), (8, 9, 3), strict=True):
        write(other, knn_correct=np.arange(10) < right)
    gains = differences.gains(run, references)
    assert gains[["reference", "value"]].values.tolist() == [["random_vit", 0.5]]


def test_raw_pixels_must_be_beaten_on_photographs_only():
    photographs = {
        name: differences.must_beat("raw_pixels", name)
        for name in ("cifar10", "imagenette", "fashion_mnist", "mnist")
    }
    assert list(photographs.values()) == [True, True, False, False]
    assert differences.must_beat("random", "mnist")


# -------------------------------------------------------------------------------------- differences
def test_differences_between_methods_are_paired_by_seed_and_image():
    right = {
        ("vje", 0): [1, 1, 0, 0],
        ("vje", 1): [1, 1, 1, 0],
        ("simsiam", 0): [1, 0, 0, 0],
        ("simsiam", 2): [1, 1, 1, 1],
    }
    listed = [settings.resolve(method, "smoke", seed=seed) for method, seed in right]
    for run, values in zip(listed, right.values(), strict=True):
        write(run, knn_correct=np.array(values, bool))
    columns = {"knn": ("knn_correct", 100)}
    (row,) = differences.paired_differences(listed, [("vje", "simsiam")], columns, 50).itertuples()
    assert (row.method, row.minus, row.measure, row.seeds, row.n) == ("vje", "simsiam", "knn", 1, 4)
    assert row.difference == pytest.approx(25) and row.ci_low >= 0


def test_differences_over_classes_say_where_nothing_was_learned():
    generator = np.random.default_rng(0)
    names = {
        ("vje", "likelihood"): "L",
        ("vje", "knn_distance"): "N",
        ("other", "knn_distance"): "O",
        ("random", "knn_distance"): "R",
    }
    table = pd.DataFrame(60 + generator.normal(size=(4, 6)), index=[*names.values()])
    table.loc["O"] += 20  # the other method has learned
    table.loc["N", 5] = np.nan  # a class that one row lacks is left out
    rows = differences.over_classes(table, names).set_index("minus")
    gap = (table.loc["L"] - table.loc["N"]).dropna()
    low, high = stats.t.interval(0.95, 4, gap.mean(), stats.sem(gap))
    expected = [gap.mean(), low, high, 5]
    assert rows.loc["N", ["difference", "ci_low", "ci_high", "n"]].tolist() == pytest.approx(
        expected
    )
    assert rows.counts.to_dict() == {"N": False, "O": True, "R": False}
    assert differences.over_classes(pd.DataFrame(), {}).empty


def test_differences_outside_are_paired_by_seed():
    rows = []
    for seed, (own, other) in enumerate([(0.9, 0.7), (0.8, 0.7), (0.9, 0.6)]):
        for name, value in (("likelihood", own), ("κ", other)):
            rows.append({"name": name, "evaluated_on": "mnist", "seed": seed, "value": value})
    shown = pd.DataFrame(rows).assign(ci_low=0.0, ci_high=1.0, n=100)
    rivals = {"κ": ("vi_simsiam", "uncertainty"), "absent": ("byol", "uncertainty")}
    (row,) = differences.differences_outside("vje", "likelihood", rivals, shown).itertuples()
    low, high = stats.t.interval(0.95, 2, 20, stats.sem([20, 10, 30]))
    assert (row.minus, row.on, row.seeds) == ("κ", "mnist", 3)
    assert (row.difference, row.ci_low, row.ci_high) == pytest.approx((20, low, high))


# -------------------------------------------------------------------------------- content and style
@pytest.fixture
def content():
    """Runs and (method, seed) -> what their MLP probes get right [N], of known chances."""
    chances = {"simvae": 0.55, "vae": 0.5, "simclr_latent": 0.7, "beta_vae": 0.65}
    seeds = {"simvae": (0, 1), "vae": (0, 1, 2), "simclr_latent": (1, 2), "beta_vae": (3,)}
    generator = np.random.default_rng(0)
    hardness = generator.uniform(size=4000)
    runs, right = [], {}
    for method, chance in chances.items():
        for seed in seeds[method]:
            hits = hardness + generator.normal(scale=0.05, size=4000) < chance
            run = settings.resolve(method, "smoke", dataset="digits", seed=seed, epochs=2)
            write(run, "digits_content", mlp_paper_correct=hits, knn_chosen_correct=hits[::-1])
            write(run, knn_correct=~hits)
            runs.append(run)
            right[method, seed] = hits
    return runs, right


def test_content_is_compared_image_by_image_over_the_seeds_in_common(content):
    runs, right = content
    table = differences.content_differences(runs, "simvae", 200).set_index(["other", "classifier"])
    assert set(table.index.get_level_values("other")) == {"vae", "simclr_latent"}
    row = table.loc["vae", "mlp_paper"]
    gap = np.mean([right["simvae", seed].mean() - right["vae", seed].mean() for seed in (0, 1)])
    assert row.difference_points == pytest.approx(100 * gap)
    assert 3.5 < row.ci_low < row.ci_high < 6.5
    assert (row.seeds, row.n, row.epochs, len(row.runs.split())) == (2, 4000, 2, 4)
    assert table.loc["vae", "knn"].difference_points == pytest.approx(-100 * gap)
    assert differences.content_differences(runs[2:5], "simvae", 200).empty
    longer = settings.resolve("simvae", "smoke", dataset="digits", epochs=9)
    with pytest.raises(ValueError, match="simvae-digits-e9"):
        differences.content_differences([*runs, longer], "simvae", 200)


def test_the_share_of_a_gap_that_a_method_closes(content):
    runs, right = content
    generative, predictive = ("simvae", "vae", "beta_vae"), ("simclr_latent",)
    (row,) = differences.content_gaps(runs, "simvae", generative, predictive, 500).itertuples()
    assert (row.lower, row.upper, row.seeds) == ("vae", "simclr_latent", 1)
    ours, lower, upper = (right[name, 1].mean() for name in ("simvae", "vae", "simclr_latent"))
    assert row.share == pytest.approx((ours - lower) / (upper - lower))
    assert row.ci_low < 0.25 < row.ci_high
    assert (row.lower_percent, row.upper_percent) == pytest.approx((100 * lower, 100 * upper))
    assert differences.content_gaps(runs, "simvae", predictive, generative, 10).empty
    assert differences.content_gaps([], "simvae", generative, predictive, 10).empty


def test_style_kept_is_paired_by_seed_and_factor():
    def kept(method, levels):
        rows = [
            {"method": method, "seed": seed, "condition": factor, "retention": level + extra}
            for seed, level in enumerate(levels)
            for factor, extra in (("tint", 0.0), ("scale", 0.2))
        ]
        return pd.DataFrame(rows)

    rows = pd.concat([kept("simvae", [0.5, 0.6, 0.8]), kept("vae", [0.4, 0.4, 0.4])])
    rows["retention_low"] = rows.retention - 0.05
    rows["retention_high"] = rows.retention + 0.05
    three = differences.paired_retention(rows, "simvae", "vae")
    low, high = stats.t.interval(0.95, 2, 0.7 / 3, stats.sem([0.1, 0.2, 0.4]))
    assert (three["ci_low"], three["ci_high"]) == pytest.approx((low, high))
    one = differences.paired_retention(rows[rows.seed == 0], "simvae", "vae")
    half = 0.05 * 2**0.5
    assert (one["ci_low"], one["ci_high"]) == pytest.approx((0.1 - half, 0.1 + half))
    with pytest.raises(ValueError, match="in common"):
        differences.paired_retention(rows, "simvae", "byol")
