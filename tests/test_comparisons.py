"""lib.claims.differences: which stored runs are compared, by what they differ, and what is said beside it."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from lib.claims import differences as comparisons
from lib.evaluation import measure as protocol
from lib.evaluation import shift, uncertainty
from lib.runs import settings as resolution
from lib.runs import store as artifacts


# ---------------------------------------------------------------------------------------------------------------- searches and differences
def test_the_best_of_a_tuning_is_chosen_once_all_of_it_is_run(shared_results, frame):
    rates = [run for run in resolution.tuning_runs("standard") if run["method"] == "vje"]
    for place, run in enumerate(rates):
        before = comparisons.tuning("standard").set_index("run").chosen
        assert not before.any() and len(before) == len(resolution.tuning_runs("standard"))
        row = frame.iloc[0].to_dict() | {"value": 0.3 + 0.1 * (place == 1), "run_hash": ""}
        artifacts.write_metrics("standard", artifacts.MEASURED_BY, resolution.run_name(run), [row])
    found = comparisons.tuning("standard")
    chosen = found[found.chosen]
    assert chosen[["method", "value", "used", "validation_knn_percent"]].values.tolist() == [
        ["vje", rates[1]["learning_rate"], 0.48, 40.0]
    ]
    assert comparisons.tuning("smoke").empty and "chosen" in comparisons.tuning("smoke")
    chose = f"the search chose {rates[1]['learning_rate']:g}, the runs have 0.48"
    assert rates[1]["learning_rate"] != 0.48 and comparisons.unsearched("standard")["vje"] == chose
    listed = [resolution.resolve(name, "standard", dataset="cifar10") for name in ("vje", "random")]
    assert comparisons.told_rates(listed) == [
        "Learning rates: VJE 0.48.",
        f"No whole search chose those of: VJE ({chose}).",
    ]
    best = next(run for run in rates if run["learning_rate"] == 0.48)
    artifacts.write_metrics(
        "standard", artifacts.MEASURED_BY, resolution.run_name(best), [row | {"value": 0.9}]
    )
    assert comparisons.told_rates(listed) == ["Learning rates: VJE 0.48."]
    assert "vje" not in comparisons.unsearched("standard") and comparisons.unsearched("standard")[
        "simclr"
    ].startswith("0 of ")


def test_a_rate_that_was_searched_elsewhere_or_nowhere_is_told(shared_results):
    listed = [
        resolution.resolve(name, "standard", dataset="cifar10")
        for name in ("simvae", "directpred", "random")
    ]
    said = comparisons.unsearched("standard", listed)
    assert (
        said["directpred"] == "no search"
        and "random" not in said
        and "directpred" not in comparisons.unsearched("standard")
    )
    assert said["simvae"].endswith("rates are tried"), (
        "that its search, on other data, is not whole comes first"
    )
    for run in [run for run in resolution.tuning_runs("standard") if run["method"] == "simvae"]:
        usual = resolution.resolve("simvae", "standard", dataset=run["dataset"])["learning_rate"]
        row = {"metric": "accuracy", "value": 0.5 + 0.1 * (run["learning_rate"] == usual)}
        artifacts.write_metrics("standard", artifacts.MEASURED_BY, resolution.run_name(run), [row])
    assert comparisons.unsearched("standard", listed)[
        "simvae"
    ] == "searched on mnist" and "simvae" not in comparisons.unsearched("standard")
    uneven = "Comparisons with them are not even-handed."
    assert comparisons.told_rates(listed)[1:] == [
        "No whole search chose those of: DirectPred (no search).",
        f"Searched on other data were those of: SimVAE (searched on mnist). {uneven}",
    ]
    assert comparisons.told_rates(listed[:1])[1:] == [
        "Searched on other data were those of: SimVAE (searched on mnist)."
    ], "all alike"
    both = [*listed, resolution.resolve("simvae", "standard", dataset="mnist")]
    assert (
        comparisons.unsearched("standard", both)["simvae"] == "searched on mnist, not on cifar10"
    ), "one of its two sets is the searched one"
    assert comparisons.unsearched("smoke", [resolution.resolve("directpred", "smoke")]) == {}, (
        "a profile that searches nothing"
    )


def test_a_best_rate_at_an_end_of_its_grid_is_told_by_the_end():
    best, grid = {"vje": 1.0, "dino": 4.0, "byol": 2.0}, (1.0, 2.0, 4.0)
    rows = [
        (method, "learning_rate", value, value == best[method]) for method in best for value in grid
    ] + [("prosmin", "trade_off", 0.5, True)]
    tried = pd.DataFrame(rows, columns=["method", "setting", "value", "chosen"])
    told = comparisons.at_an_end(tried)
    assert told.startswith(
        "The best rate is the least of its grid for VJE, and the largest of its grid for DINO: "
    )
    assert "BYOL" not in told and all(
        comparisons.at_an_end(tried[tried.method == name]) == "" for name in ("byol", "prosmin")
    )
    assert comparisons.at_an_end(tried[tried.method == "dino"]).startswith(
        "The best rate is the largest of its grid for DINO: "
    )


def test_whether_a_run_learned_enough_is_told_for_each_reference(shared_results):
    n, listed = (
        400,
        [
            resolution.resolve(name, "smoke", dataset="cifar10")
            for name in ("vi_simsiam", "random", "raw_pixels")
        ],
    )
    few = [
        resolution.resolve(name, "smoke", dataset="mnist") for name in ("vi_simsiam", "raw_pixels")
    ]
    for run, share in zip(listed + few, (0.5, 0.3, 0.5, 0.5, 0.6), strict=True):
        artifacts.write_scores(
            "smoke",
            resolution.run_name(run),
            run["dataset"],
            {"knn_correct": np.arange(n) < share * n},
        )
    more, level = comparisons.told_gains(listed[0], listed)
    assert "minus Untrained network: +20.0 points [" in more and more.endswith("], learned more.")
    assert "minus Raw pixels: +0.0 points [" in level and level.endswith(
        "**not learned more: its uncertainty is not tested (under-trained)**."
    )
    (not_asked,) = comparisons.told_gains(few[0], few)
    assert "minus Raw pixels: -10.0 points [" in not_asked and not_asked.endswith(
        "not required on this set."
    )


def test_differences_between_methods_are_paired_by_seed_and_image(shared_results):
    right = {
        ("vje", 0): [1, 1, 0, 0],
        ("vje", 1): [1, 1, 1, 0],
        ("simsiam", 0): [1, 0, 0, 0],
        ("simsiam", 2): [1, 1, 1, 1],
    }
    listed = [resolution.resolve(method, "smoke", seed=seed) for method, seed in right]
    for run, values in zip(listed, right.values(), strict=True):
        artifacts.write_scores(
            "smoke",
            resolution.run_name(run),
            run["dataset"],
            {"knn_correct": np.array(values, bool)},
        )
    found = comparisons.paired_differences(
        listed, [("vje", "simsiam")], {"knn": ("knn_correct", 100)}, 50
    )
    row = found.iloc[0]
    assert len(found) == 1 and [row.method, row.minus, row.measure, row.seeds, row.n] == [
        "vje",
        "simsiam",
        "knn",
        1,
        4,
    ]
    assert row.difference == pytest.approx(25) and row.ci_low >= 0


# ---------------------------------------------------------------------------------------------------------------- what counts as evidence
def test_simsiam_and_vi_simsiam_are_paired_at_every_length_and_on_every_set(monkeypatch):
    monkeypatch.setattr(protocol, "measured", lambda listed: listed)
    standard, paper = comparisons.simsiam_pairs("standard"), comparisons.simsiam_pairs("paper")
    assert {epochs for dataset, epochs in standard if dataset == "cifar10"} == {5, 10, 20, 40} and (
        "imagenette96",
        200,
    ) in standard
    for where, of in (standard | paper).items():
        assert all(
            (run["dataset"], run["epochs"]) == where and run["seed"] == seed
            for method in of.values()
            for seed, run in method.items()
        )
    of_2022, of_2023 = paper["cars", 100], paper["imagenet100", 100]
    assert (
        of_2023["vi_simsiam"][0]["method"] == "vi_simsiam"
        and of_2022["vi_simsiam"][0]["method"] == "vi_simsiam_2022"
    )
    assert (
        of_2022["simsiam"][0]["local_views"] == of_2022["vi_simsiam"][0]["local_views"] == 6
        and of_2023["simsiam"][0]["local_views"] == 0
    )
    both = [
        resolution.resolve(method, "standard", seed=seed)
        for method, seed in (("vi_simsiam", 0), ("vi_simsiam_2022", 0), ("vi_simsiam_2022", 1))
    ]
    monkeypatch.setattr(protocol, "measured", lambda listed: both)
    (pair,) = comparisons.simsiam_pairs("standard").values()
    assert {run["method"] for run in pair["vi_simsiam"].values()} == {"vi_simsiam"}, (
        "one form of the model, not seeds of both"
    )


def test_runs_trained_in_unlike_precision_are_named(shared_results):
    def stored(precisions, **settings):
        runs = [
            resolution.resolve("simsiam", "smoke", seed=seed, **settings)
            for seed in range(len(precisions))
        ]
        for run, precision in zip(runs, precisions, strict=True):
            artifacts.write_json(
                artifacts.run_dir("smoke", resolution.run_name(run)) / "config.json",
                {"precision": precision},
            )
        return runs

    alike, mixed = (
        stored(["bf16", "bf16", "bf16"], epochs=7),
        stored(["bf16", "float32", "bf16"], epochs=9),
    )
    other, elsewhere = (
        stored(["float32", "float32"], epochs=8),
        stored(["float32"], dataset="fashion_mnist"),
    )
    untrained, absent = (
        resolution.resolve("random", "smoke"),
        resolution.resolve("simsiam", "smoke", epochs=9, seed=9),
    )
    assert comparisons.mixed_precision([*alike, *elsewhere, untrained, absent]) == "", (
        "one on its own set is unlike none"
    )
    told = comparisons.mixed_precision([*alike, *mixed, *elsewhere, *other, absent, *mixed])
    assert told.endswith(
        ": float32 for simsiam-digits-e9 (seed 1), simsiam-digits-e8, where the others have bf16."
    )


def test_gains_are_paired_differences_against_the_reference_of_the_same_seed():
    run, listed = (
        resolution.resolve("simsiam", "smoke", seed=1),
        [resolution.resolve("random", "smoke", seed=seed) for seed in (0, 1)],
    )
    generator = np.random.default_rng(0)
    right = {
        "own": generator.random(400) < 0.8,
        0: generator.random(400) < 0.3,
        1: generator.random(400) < 0.5,
    }
    artifacts.write_scores(
        "smoke", resolution.run_name(run), "digits", {"knn_correct": right["own"]}
    )
    for other in listed:
        artifacts.write_scores(
            "smoke", resolution.run_name(other), "digits", {"knn_correct": right[other["seed"]]}
        )
    found = comparisons.gains(run, listed)
    assert found.reference.tolist() == ["random"] and found.must_beat.tolist() == [True]
    assert (
        found.value[0] == pytest.approx(right["own"].mean() - right[1].mean()) and found.n[0] == 400
    )
    error = (right["own"].astype(float) - right[1]).std() / 20
    assert found.ci_low[0] == pytest.approx(found.value[0] - 1.96 * error, abs=0.02)
    assert (
        comparisons.is_evidence(found)
        and not comparisons.is_evidence(found.assign(ci_low=-0.01))
        and not comparisons.is_evidence(found[:0])
    )
    assert comparisons.is_evidence(found.assign(ci_low=-0.01, must_beat=False)) is False


def test_gains_are_over_the_untrained_network_of_the_same_backbone():
    run, listed = (
        resolution.resolve("dino_vit", "smoke"),
        [resolution.resolve(name, "smoke") for name in ("random", "random_vit")],
    )
    for other in (run, *listed):
        right = np.arange(10) < {"dino_vit": 8, "random": 9, "random_vit": 3}[other["method"]]
        artifacts.write_scores(
            "smoke", resolution.run_name(other), "digits", {"knn_correct": right}
        )
    assert comparisons.gains(run, listed)[["reference", "value"]].to_numpy().tolist() == [
        ["random_vit", 0.5]
    ]
    assert comparisons.gains(run, listed[:1])[["reference", "value"]].to_numpy().tolist() == [
        ["random", pytest.approx(-0.1)]
    ]


def test_raw_pixels_must_be_beaten_on_natural_images_alone():
    assert [
        comparisons.must_beat("raw_pixels", name)
        for name in ("cifar10", "imagenette96", "fashion_mnist", "mnist")
    ] == [True, True, False, False]
    assert all(
        comparisons.must_beat(untrained, name)
        for untrained in protocol.UNTRAINED
        for name in ("cifar10", "fashion_mnist")
    )


# ---------------------------------------------------------------------------------------------------------------- methods compared
@pytest.fixture
def drawn_content(shared_results):
    """Runs and (data set, method, seed) -> what their MLP probes get right, of chances that are known; what two methods both get right is not by
    chance alone."""
    chances = {
        "simvae": 0.55,
        "vae": 0.5,
        "cr_vae": 0.45,
        "simclr_latent": 0.7,
        "moco_latent": 0.6,
        "beta_vae": 0.65,
    }
    seeds = {
        "simvae": (0, 1),
        "vae": (0, 1, 2),
        "cr_vae": (0, 1),
        "simclr_latent": (1, 2),
        "moco_latent": (0, 1),
        "beta_vae": (3,),
    }
    generator, runs, right = np.random.default_rng(0), [], {}
    hardness = generator.uniform(size=4000)
    for name, of in seeds.items():
        for seed in of:
            hits = hardness + generator.normal(scale=0.05, size=len(hardness)) < chances[name]
            for dataset in ("digits", "generated") if name in ("simvae", "vae") else ("digits",):
                run = resolution.resolve(
                    name, "smoke", dataset=dataset, seed=seed, epochs=2 + (name == "vae")
                )
                scores = {"mlp_paper_correct": hits, "knn_chosen_correct": hits[::-1]}
                artifacts.write_scores(
                    "smoke", resolution.run_name(run), f"{dataset}_content", scores
                )
                artifacts.write_scores(
                    "smoke", resolution.run_name(run), dataset, {"knn_correct": ~hits}
                )
                runs.append(run)
                right[dataset, name, seed] = hits
    return runs, right


def test_content_is_compared_image_by_image_over_the_seeds_in_common(drawn_content):
    runs, right = drawn_content
    found = comparisons.content_differences(runs, "simvae", 200).set_index(
        ["dataset", "other", "classifier"]
    )
    assert set(found.index.get_level_values(1)) == {
        "vae",
        "cr_vae",
        "simclr_latent",
        "moco_latent",
    }, "β-VAE has no seed in common"
    assert (
        found.seeds["digits", "simclr_latent", "mlp_paper"] == 1
        and found.seeds["generated", "vae", "knn_chosen"] == 2
        and (found.n == 4000).all()
    )
    ours, theirs = (
        np.mean([right["digits", name, seed] for seed in (0, 1)]) for name in ("simvae", "vae")
    )
    assert found.difference_points["digits", "vae", "mlp_paper"] == pytest.approx(
        100 * (ours - theirs)
    )
    assert found.loc[("digits", "vae", "mlp_paper"), ["ci_low", "ci_high"]].between(3.5, 6.5).all()
    assert found.difference_points["digits", "vae", "knn"] == pytest.approx(
        -100 * (ours - theirs)
    ), "the battery's own k-NN"
    compared = [
        run
        for run in runs
        if (run["dataset"], run["method"], run["seed"])
        in {("digits", name, 1) for name in ("simvae", "simclr_latent")}
    ]
    assert found.runs["digits", "simclr_latent", "mlp_paper"].split() == list(
        map(resolution.run_name, compared)
    ), "of the seed in common alone"
    assert set(found.epochs) == {2}, "the fewer of the two methods'"
    none = comparisons.content_differences(
        [run for run in runs if run["method"] == "vae"], "simvae", 200
    )
    assert none.empty and set(none) == set(found.reset_index())
    with pytest.raises(
        ValueError, match="simvae-digits-e2-seed0 simvae-digits-e9-seed0; compare one"
    ):
        comparisons.content_differences(
            [*runs, resolution.resolve("simvae", "smoke", dataset="digits", epochs=9)],
            "simvae",
            200,
        )


def test_the_share_of_a_gap_that_a_method_closes(drawn_content):
    """From 0.5 to 0.7 a method with 0.55 has gone a quarter of the way; the second set has nothing above to compare with."""
    runs, right = drawn_content
    generative, predictive = (
        ("simvae", "vae", "cr_vae", "beta_vae"),
        ("simclr_latent", "moco_latent"),
    )
    (row,) = comparisons.content_gaps(runs, "simvae", generative, predictive, 500).itertuples()
    assert (row.dataset, row.lower, row.upper, row.seeds, row.epochs) == (
        "digits",
        "vae",
        "simclr_latent",
        1,
        2,
    ), "three methods share seed 1"
    assert len(row.runs.split()) == 3
    ours, lower, upper = (
        right["digits", name, 1].mean() for name in ("simvae", "vae", "simclr_latent")
    )
    assert (
        row.share == pytest.approx((ours - lower) / (upper - lower))
        and row.ci_low < 0.25 < row.ci_high
    )
    assert (row.lower_percent, row.upper_percent) == pytest.approx((100 * lower, 100 * upper)), (
        "of the seed that the share is of"
    )
    by_hand = []
    for draw in np.random.default_rng(1).integers(4000, size=(500, 4000)):
        ours, lower, upper = (
            right["digits", name, 1][draw].mean() for name in ("simvae", "vae", "simclr_latent")
        )
        by_hand.append((ours - lower) / (upper - lower))
    assert [row.ci_low, row.ci_high] == pytest.approx(
        np.quantile(by_hand, [0.025, 0.975]), abs=0.02
    )
    assert comparisons.content_gaps(runs, "simvae", predictive, generative, 10).empty, (
        "no gap where the upper is below the lower"
    )
    assert comparisons.content_gaps([], "simvae", generative, predictive, 10).columns[6] == "share"


def test_a_row_names_the_runs_behind_it_and_their_fewest_epochs():
    """What is not trained has no epochs that could be too few."""
    named = {"vae": 3, "simvae": 2, "random_latent": 0}
    runs = [
        resolution.resolve(name, "smoke", dataset="digits", seed=seed, epochs=epochs)
        for name, epochs in named.items()
        for seed in (0, 1)
    ]
    told = comparisons.behind(runs, "digits", ("vae", "random_latent"), {1})
    assert told == {
        "epochs": 3,
        "runs": f"{resolution.run_name(runs[1])} {resolution.run_name(runs[5])}",
    }
    assert (
        comparisons.behind(runs, "digits", ("simvae", "random_latent", "vae"), {0})["epochs"] == 2
    )
    assert (
        comparisons.behind(runs, "digits", ("random_latent",), {0})["epochs"] == 0
        and comparisons.behind(runs, "mnist", named, {0})["runs"] == ""
    )


@pytest.mark.parametrize(
    ("low", "high", "seeds", "better_high", "published", "said"),
    [
        (-1, 2, 1, True, True, "the two are not told apart"),
        (1, 2, 3, True, False, "ahead"),
        (1, 2, 1, True, True, "ahead on these images, as published"),
        (1, 2, 1, False, False, "behind on these images"),
        (-2, -1, 2, False, True, "ahead, as published"),
        (-2, -1, 2, True, True, "behind, the other way round"),
    ],
)
def test_a_difference_in_words(low, high, seeds, better_high, published, said):
    row = pd.Series(
        {
            "difference": (low + high) / 2,
            "ci_low": low,
            "ci_high": high,
            "seeds": seeds,
            "t_low": np.nan,
            "t_high": np.nan,
        }
    )
    assert comparisons.side(row, better_high, published) == said
    wide = row.copy()
    wide[["t_low", "t_high"]] = -9, 9
    assert comparisons.side(
        wide, better_high, published
    ) == said + ", which Student's t over the seeds alone leaves open" * (low > 0 or high < 0)


@pytest.mark.parametrize(
    ("low", "high", "t_low", "verdict"),
    [
        (0.02, 0.04, 0.01, "better"),
        (0.02, 0.04, -0.01, "better, which Student's t over the seeds alone leaves open"),
        (-0.04, -0.02, -0.05, "**worse**, which Student's t over the seeds alone leaves open"),
        (-0.04, 0.04, -0.05, "not told apart"),
        (
            0.001,
            0.04,
            0.01,
            "not told apart (other draws would move an end that near to zero across it)",
        ),
        (
            -0.04,
            -0.001,
            0.01,
            "not told apart (other draws would move an end that near to zero across it)",
        ),
    ],
)
def test_a_difference_of_aurocs_is_told_with_its_intervals(low, high, t_low, verdict):
    row = SimpleNamespace(
        difference=(low + high) / 2, ci_low=low, ci_high=high, t_low=t_low, t_high=0.05, seeds=3
    )
    told = f"{row.difference:+.3f} [{low:+.3f}, {high:+.3f}] (t over 3 seeds: [{t_low:+.3f}, +0.050]), {verdict}"
    assert comparisons.told_auroc(row) == told
    alone = SimpleNamespace(**vars(row) | {"seeds": 1, "t_low": np.nan, "t_high": np.nan})
    assert (
        comparisons.told_auroc(alone)
        == f"{row.difference:+.3f} [{low:+.3f}, {high:+.3f}] (one seed), {verdict.partition(', which')[0]}"
    )


def test_whether_the_seeds_alone_exclude_zero_is_said():
    told = [
        comparisons.told_over_seeds(SimpleNamespace(seeds=seeds, t_low=low, t_high=high))
        for seeds, low, high in (
            (3, 0.04, 2.0),
            (3, -2.0, -0.04),
            (3, 0.0, 2.0),
            (1, np.nan, np.nan),
        )
    ]
    assert told[0] == "by a paired t-test over the 3 seeds alone [+0.0, +2.0], without zero"
    assert (
        told[1].endswith("[-2.0, -0.0], without zero")
        and told[2].endswith("[+0.0, +2.0], open")
        and told[3] == "one seed, open"
    )


def test_differences_over_classes_say_where_nothing_was_learned():
    """By hand with scipy; a class that one row lacks is left out."""
    generator = np.random.default_rng(0)
    names = {
        ("vje", "likelihood"): "L",
        ("vje", "knn_distance"): "N",
        ("other", "knn_distance"): "O",
        ("random", "knn_distance"): "R",
    }
    table = pd.DataFrame(
        60 + generator.normal(size=(4, 6)), index=[*names.values()], columns=range(6)
    )
    table.loc["O"] += 20  # the other method has learned
    table.loc["N", 5] = np.nan
    found = comparisons.over_classes(table, names).set_index("minus")
    gap = (table.loc["L"] - table.loc["N"]).dropna()
    low, high = stats.t.interval(0.95, 4, gap.mean(), stats.sem(gap))
    assert found.loc["N", ["difference", "ci_low", "ci_high", "n"]].tolist() == pytest.approx(
        [gap.mean(), low, high, 5]
    )
    assert found.idle.to_dict() == {"N": True, "O": False, "R": True} and (found.seeds == 1).all()
    del names["random", "knn_distance"]
    assert not comparisons.over_classes(table.drop("R"), names).idle.any(), (
        "without the floor nothing is known of it"
    )
    assert comparisons.over_classes(pd.DataFrame(), {}).empty


def test_differences_outside_are_paired_where_every_seed_is_stored_and_bounds_elsewhere(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(artifacts, "RESULTS", tmp_path / "results")
    runs = [
        resolution.resolve(method, "smoke", seed=seed)
        for method in ("vi_simsiam", "vje")
        for seed in (0, 1)
    ]
    on, generator = shift.outside(runs[0]), np.random.default_rng(0)
    names = {"vje": "likelihood", "vi_simsiam": "VI-SimSiam, −κ"}
    rows, stored = [], {}
    for run in runs:
        foreign = np.repeat([False, True], 60)
        score = foreign * (1.0 if run["method"] == "vje" else 0.2) + generator.normal(size=120)
        stored[run["method"], run["seed"]] = {
            "negative_log_likelihood" if run["method"] == "vje" else "uncertainty": score,
            "outside": foreign,
        }
        value = uncertainty.auroc(score, foreign)
        row = {"name": names[run["method"]], "evaluated_on": on, "seed": run["seed"], "n": 120}
        rows.append(row | {"value": value, "ci_low": value - 0.1, "ci_high": value + 0.1})
    shown = pd.DataFrame(rows)

    def asked():
        return comparisons.differences_outside(
            runs, "vje", "likelihood", {"VI-SimSiam, −κ": ("vi_simsiam", "uncertainty")}, shown, 50
        ).iloc[0]

    by_seed = shown.pivot_table(index="name", columns="seed", values="value")
    gap = 100 * (by_seed.loc["likelihood"] - by_seed.loc["VI-SimSiam, −κ"]).mean()
    for count, run in enumerate(runs):
        bound = asked()
        assert np.isnan(bound.n) and bound.difference == pytest.approx(gap) and bound.seeds == 2, (
            f"{count} of 4 runs are stored"
        )
        ends = shown.groupby("name").agg(low=("ci_low", "min"), high=("ci_high", "max"))
        assert bound.ci_low == pytest.approx(
            100 * (ends.low["likelihood"] - ends.high["VI-SimSiam, −κ"])
        )
        half = (
            stats.t.ppf(0.975, 1)
            * (100 * (by_seed.loc["likelihood"] - by_seed.loc["VI-SimSiam, −κ"])).sem()
        )
        assert (bound.t_low, bound.t_high) == pytest.approx((gap - half, gap + half))
        artifacts.write_scores(
            "smoke", resolution.run_name(run), f"{on}_outside", stored[run["method"], run["seed"]]
        )
    paired = asked()
    assert (paired.t_low, paired.t_high) == pytest.approx((bound.t_low, bound.t_high), abs=0.5)
    assert (
        paired.n == 120
        and paired.difference == pytest.approx(gap, abs=0.5)
        and paired.ci_low > bound.ci_low
        and paired.ci_high < bound.ci_high
    )


def test_prosmin_is_compared_on_its_own_backbone_alone():
    backbones = {
        "prosmin": "resnet18",
        "dino": "resnet18",
        "moco_v3": "vit",
        "prosmin_vit": "vit",
        "dino_vit": "vit",
        "simsiam": "resnet18",
    }
    assert comparisons.prosmin_pairs(backbones) == [
        ("prosmin", "dino"),
        ("prosmin_vit", "moco_v3"),
        ("prosmin_vit", "dino_vit"),
    ]
    assert comparisons.prosmin_pairs({"dino": "vit"}) == []


def test_sides_and_tallies_say_where_intervals_lie():
    rows = [
        ("linear", 0.1, 0.3),
        ("linear", -0.2, -0.1),
        ("linear", -0.1, 0.2),
        ("ece", -0.2, -0.1),
        ("ece", 0.0, 0.1),
    ]
    frame = pd.DataFrame(rows, columns=["measure", "ci_low", "ci_high"])
    assert (
        comparisons.sides(frame, list("abcde"))
        == "above zero for a; below zero for b, d; not told from zero for c, e"
    )
    assert comparisons.sides(frame.iloc[:1], ["a"]) == "above zero for a"
    said = comparisons.tally(frame, {"linear": "accuracy", "ece": "ECE"}, falling=("ece",))
    assert (
        said
        == "accuracy: 1 ahead, 1 behind, 1 not told apart; ECE: 1 ahead, 0 behind, 1 not told apart"
    )
    frame[["t_low", "t_high"]] = [
        (-0.1, 0.5),
        (-0.3, -0.01),
        (-0.4, 0.6),
        (np.nan, np.nan),
        (-0.1, 0.2),
    ]  # the fourth of one seed
    open_ = " (open by the seeds alone)"
    assert (
        comparisons.sides(frame, list("abcde"))
        == f"above zero for a{open_}; below zero for b, d; not told from zero for c, e"
    )
    said = comparisons.tally(frame, {"linear": "accuracy", "ece": "ECE"}, falling=("ece",))
    assert said.startswith(
        "accuracy: 1 ahead, 1 behind (1 of these open by the seeds alone), 1 not told apart; ECE: 1 ahead, 0 behind, 1 not"
    )
