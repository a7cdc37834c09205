"""The benchmark on a small results folder made by hand: its rows, its numbers, who is ranked, and what is surely different."""

import numpy as np
import pandas as pd
import pytest
import scipy

from lib import evaluation, methods
from lib.claims import tables as benchmark
from lib.evaluation import image_scores, uncertainty
from lib.evaluation import intervals as statistics
from lib.evaluation import measure as protocol
from lib.runs import settings as resolution
from lib.runs import store as artifacts

N = 400
ACCURACY = {
    "simsiam": 0.7,
    "vi_simsiam": 0.8,
    "random": 0.2,
    "raw_pixels": 0.3,
    "byol": 0.2,
    "simclr": 0.75,
    "dino": 0.75,
}
SEEDS = {"raw_pixels": 1, "simclr": 2}
NEAR, FAR = {"simsiam": 0.6, "vi_simsiam": 0.8}, {"a": 0.9, "b": 0.7}


def near(method, seed):
    return NEAR.get(method, 0.5) + 0.01 * seed


def store(method, seed):
    """Scores and metrics of one run of profile standard: a share of the images is right, and its uncertainty tells which, more or less."""
    run = resolution.resolve(method, "standard", seed=seed)
    name, generator = resolution.run_name(run), np.random.default_rng([len(method), seed])
    correct = np.arange(N) % 10 < 10 * ACCURACY[method]
    own = (generator.normal(size=N) - (2.0 if method == "vi_simsiam" else 0.3) * correct).astype(
        np.float32
    )
    arrays = {
        "index": np.arange(N),
        "linear_correct": correct,
        "knn_correct": correct,
        "uncertainty": own,
    }
    arrays |= {
        "feature_norm": -own if method != "vi_simsiam" else generator.normal(size=N),
        "knn_distance": generator.normal(size=N),
    }
    arrays["linear_max_softmax"] = np.where(correct, 0.9, 0.5) + 0.01 * generator.random(N)
    artifacts.write_scores("standard", name, "cifar10", arrays)
    clean, rows = {"condition": "clean", "evaluated_on": "cifar10", "n": N}, []
    for classifier in ("linear", "knn"):
        rows.append(
            clean
            | {
                "classifier": classifier,
                "metric": "accuracy",
                "value": correct.mean(),
                "ci_low": 0.1,
                "ci_high": 0.9 + 0.01 * seed,
            }
        )
    for score in ("uncertainty", "feature_norm", "knn_distance", "max_softmax"):
        values = evaluation.as_uncertainty(arrays, score)
        row = clean | {
            "classifier": "linear",
            "score": score,
            "metric": "correctness_auroc",
            "value": uncertainty.auroc(-values, correct),
        }
        rows.append(row | {"ci_low": row["value"] - 0.05, "ci_high": row["value"] + 0.05})
        sets = {("near_ood", "other"): near(method, seed) if score == "uncertainty" else 0.95}
        sets |= {("far_ood", other): value for other, value in FAR.items()}
        for (condition, other), value in sets.items():
            row = {
                "condition": condition,
                "evaluated_on": other,
                "score": score,
                "metric": "ood_auroc",
                "value": value,
                "n": 2 * N,
            }
            rows.append(row | {"ci_low": value - 0.02, "ci_high": value + 0.02})
    rows.append(
        {
            "condition": "blur",
            "score": "uncertainty",
            "metric": "severity_spearman",
            "value": 0.5,
            "n": 9,
        }
    )
    rows.append({"condition": "blur_2", "score": "uncertainty", "metric": "mean", "value": 7.0})
    identity = {
        "method": method,
        "seed": seed,
        "profile": "standard",
        "notebook": protocol.MEASURED_BY,
    }
    artifacts.write_metrics("standard", protocol.MEASURED_BY, name, rows, **identity)
    config = {"seconds": 3600 + seed, "images_per_second": 500.0, "precision": "bf16"}
    artifacts.write_json(artifacts.run_dir("standard", name) / "config.json", config)
    return name


@pytest.fixture(scope="module", autouse=True)
def fewer_draws():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(resolution.read("profiles")["standard"], "bootstrap_draws", 300)
        yield


@pytest.fixture(scope="module")
def stored(shared_results):
    for method in ACCURACY:
        for seed in range(SEEDS.get(method, 3)):
            name = store(method, seed)
    row = {"score": "uncertainty", "metric": "severity_spearman"}
    shifted = [row | {"condition": "fog", "value": 0.2}, row | {"condition": "snow", "value": 0.6}]
    shifted.append(row | {"condition": "fog_1", "metric": "mean", "value": 9})
    artifacts.write_metrics("standard", benchmark.CORRUPTIONS, name, shifted, method="dino", seed=2)
    row = {"condition": "near_ood", "metric": "ood_auroc"}
    second = [
        row | {"score": "negative_log_likelihood", "value": 0.97},
        row | {"score": "radial", "value": 0.2},
    ]
    artifacts.write_metrics("standard", benchmark.SECOND_IN[0], name, second, method="dino", seed=2)
    style = {
        "trained_on": ["cifar10 (9,000 images)"] * 3 + ["mnist", "cifar10"],
        "condition": ["colour", "size", "content", "colour", "texture"],
    }
    style |= {
        "retention_low": [0.1, 0.3, 0.9, 0.0, 0.7],
        "retention_high": [0.5, 0.5, 0.9, 0.0, 0.7],
    }
    style |= {
        "retention": [0.2, 0.4, 0.9, 0.0, 0.7],
        "set": ["styled_fashion_mnist"] * 4 + ["cue_conflict128"],
    }
    style = pd.DataFrame(style).assign(method="vi_simsiam", seed=0, transfer=True)
    artifacts.write_csv(
        artifacts.results_dir("standard") / "tables" / f"{benchmark.STYLES}.csv", style
    )
    generator = np.random.default_rng(0)
    alone = {
        "image_entropy": generator.random(N).astype(np.float32),
        "file_size": generator.integers(9, size=N).astype(np.int32),
    }
    artifacts.write_scores("standard", image_scores.RUN, "cifar10", alone)
    row = {
        "condition": "near_ood",
        "score": "file_size",
        "metric": "ood_auroc",
        "value": 0.3,
        "ci_low": 0.29,
        "ci_high": 0.31,
    }
    artifacts.write_metrics(
        "standard", "80_uncertainty_benchmark", image_scores.RUN, [row], method="images"
    )
    values = benchmark.measurements("standard")
    return values, benchmark.table("standard", values).set_index(["method", "score", "measure"])


# ---------------------------------------------------------------------------------------------------------------- the table
def test_rows_are_the_keys_of_methods_and_the_trivial_scores(stored):
    _, table = stored
    assert list(dict.fromkeys(table.index.get_level_values("method"))) == list(methods.METHODS)
    for method, rows in table.groupby(level="method"):
        found = set(rows.index.get_level_values("score"))
        assert found - set(benchmark.SECOND) == (
            set(benchmark.SCORES) if method in ACCURACY else {"uncertainty"}
        )
        if method not in ACCURACY:
            assert (
                len(rows) == 1
                and rows.status.iloc[0].startswith("not run (")
                and rows.seeds.iloc[0] == 0
            )
        else:
            measures = rows.xs("uncertainty", level="score").index.get_level_values("measure")
            assert list(measures) == [*benchmark.MEASURES, *benchmark.ELSEWHERE]


def test_numbers_are_means_over_seeds_with_the_widest_of_their_intervals(stored):
    _, table = stored
    near_ood = table.loc[("vi_simsiam", "uncertainty", "near_ood_auroc")]
    assert near_ood[["value", "ci_low", "ci_high", "n", "seeds"]].tolist() == pytest.approx(
        [0.81, 0.78, 0.84, 2 * N, 3]
    )
    assert table.value[("simclr", "uncertainty", "far_ood_auroc")] == pytest.approx(
        0.8
    )  # mean over the sets
    assert table.loc[
        ("simclr", "uncertainty", "linear_accuracy"), ["ci_high", "seeds"]
    ].tolist() == pytest.approx([0.91, 2])
    assert (
        table.value[("dino", "uncertainty", "training_seconds")] == 3601
        and table.value[("dino", "uncertainty", "images_per_second")] == 500
    )
    assert table.value[("dino", "uncertainty", "blur_spearman")] == 0.5
    assert table.value[("dino", "uncertainty", "corruption_spearman")] == pytest.approx(0.4)
    assert table.value[("vi_simsiam", "uncertainty", "style_retention")] == pytest.approx(
        0.3
    )  # content, other sets apart
    row = table.loc[("vi_simsiam", "uncertainty", "style_retention")]
    assert [row.ci_low, row.ci_high] == pytest.approx([0.2, 0.5])
    assert table.value[("byol", "file_size", "near_ood_auroc")] == 0.3
    assert table.value[
        ("dino", "negative_log_likelihood", "near_ood_auroc")
    ] == 0.97 and "radial" not in table.index.get_level_values("score")
    run = resolution.resolve("simclr", "standard", seed=0)
    expected = [
        uncertainty.auroc(
            -benchmark.scores(run | {"seed": seed})["file_size"], np.arange(N) % 10 < 7.5
        )
        for seed in range(2)
    ]
    assert table.value[("simclr", "file_size", "knn_correctness_auroc")] == pytest.approx(
        np.mean(expected)
    )


def test_cost_is_of_runs_on_what_most_were_trained_on():
    runs = [resolution.resolve("byol", "standard", seed=seed) for seed in range(4)]
    for run, accelerator in zip(runs, ("none", "a GPU", "none"), strict=False):
        config = {
            "seconds": 9.0,
            "images_per_second": 7.0,
            "hardware": {"accelerator": accelerator},
            "precision": "bf16",
        }
        artifacts.write_json(
            artifacts.run_dir("standard", resolution.run_name(run)) / "config.json", config
        )
    usual = benchmark._accelerator(runs)
    values = [benchmark._cost(run, usual).value.tolist() for run in runs]
    assert (
        benchmark._accelerator([resolution.resolve("random", "standard")]) == "none"
    )  # nothing was trained
    assert (
        usual == "none"
        and values[0] == values[2] == [7.0, 9.0]
        and np.isnan(values[1] + values[3]).all()
    )


def test_a_run_without_error_has_no_correctness_auroc_and_stops_nothing(stored, monkeypatch):
    right = np.ones(N, bool)
    monkeypatch.setattr(
        benchmark,
        "scores",
        lambda run: {"file_size": np.arange(N), "linear_correct": right, "knn_correct": ~right},
    )
    found = benchmark._further_correctness(resolution.resolve("simclr", "standard"))
    assert len(found) == 2 and found[["value", "ci_low", "ci_high"]].isna().all(axis=None)


def test_what_is_missing_says_why(stored):
    _, table = stored
    assert (
        table.note[("vi_simsiam", "uncertainty", "corruption_spearman")]
        == "not measured by notebook 50"
    )
    assert table.note[("random", "uncertainty", "training_seconds")] == "not trained"
    assert "battery" in table.note[("dino", "uncertainty", "nll")] and np.isnan(
        table.value[("dino", "uncertainty", "nll")]
    )
    status = table.groupby(level="method").status.first()
    assert (
        status["vicreg"]
        == "not run (budget: 3 runs listed, about 3.0 hours at the median of the methods here)"
    )
    assert status["vi_simsiam_2022"] == "not run (profile standard lists no run of it)"
    assert status["beta_vae"].startswith(
        "not run (in other comparisons alone, such as beta_vae-mnist"
    )


def test_who_is_ranked(stored):
    status = stored[1].groupby(level="method").status.first()
    assert {name: status[name] for name in ACCURACY} == {
        "simsiam": "ranked",
        "vi_simsiam": "ranked",
        "dino": "ranked",
        "simclr": "too few seeds",
        "byol": "under-trained",
        "random": "reference",
        "raw_pixels": "reference",
    }


def test_an_illustration_ranks_nothing(stored, monkeypatch):
    monkeypatch.setattr(benchmark.claims, "ILLUSTRATIONS", ("standard",))
    values, _ = stored
    table = benchmark.table("standard", values)
    assert set(table.status[table.method.isin(["simsiam", "vi_simsiam", "simclr"])]) == {
        "illustration, too few seeds"
    }
    placed, pairwise = benchmark.ranks("standard", values, table)
    assert placed.empty and pairwise.empty


def test_a_profile_without_runs_says_what_to_do(stored):
    with pytest.raises(FileNotFoundError, match="make reproduce PROFILE=quick"):
        benchmark.measurements("quick")


# ---------------------------------------------------------------------------------------------------------------- comparisons
def test_ranks_follow_from_differences_that_exclude_zero(stored):
    values, table = stored
    placed, pairwise = benchmark.ranks("standard", values, table.reset_index())
    assert set(placed.method) == {"simsiam", "vi_simsiam", "dino"} and len(pairwise) == 15
    assert list(pairwise)[:2] == list(placed)[:2] == ["measure", "backbone"], (
        "a page sets what is measured once for all pairs"
    )
    by = placed.set_index(["measure", "method"])[["best", "worst"]]
    assert by.loc[("linear_correctness_auroc", "vi_simsiam")].tolist() == [
        1,
        1,
    ]  # far better at telling which images are right
    assert (
        by.loc[("linear_correctness_auroc", "simsiam")].tolist()
        == by.loc[("linear_correctness_auroc", "dino")].tolist()
        == [2, 3]
    )
    listed = benchmark.runs("standard")
    right = {
        name: np.mean([benchmark.scores(run)["linear_correct"].mean() for run in listed[name]])
        for name in set(placed.method)
    }
    gap = pairwise.set_index(["measure", "method", "minus_method"]).difference["linear_accuracy"]
    assert all(gap[a, b] == pytest.approx(right[a] - right[b]) for a, b in gap.index)
    assert [
        by.loc[("near_ood_auroc", name)].tolist() for name in ("vi_simsiam", "simsiam", "dino")
    ] == [[1, 1], [2, 2], [3, 3]]
    assert (by.loc["far_ood_auroc"] == [1, 3]).all(axis=None)  # the same number for all
    assert (pairwise.p_holm >= 0).all() and set(pairwise.pairing) == {"paired by image", "bound"}
    sure = (pairwise.ci_low > 0) | (pairwise.ci_high < 0)
    assert (pairwise.p_holm[sure] < 0.05).all()
    pairs = pairwise[pairwise.measure == "knn_accuracy"]
    seeds = (
        values[(values.measure == "knn_accuracy") & (values.score == "uncertainty")]
        .astype({"value": float})
        .groupby("method")
        .value
    )
    names = zip(pairs.method, pairs.minus_method, strict=True)
    welch = [
        scipy.stats.ttest_ind(*map(seeds.get_group, pair), equal_var=False).pvalue for pair in names
    ]
    assert pairs.p_seeds.tolist() == pytest.approx(statistics.holm(welch).tolist())
    assert (pairwise.p_seeds[pairwise.measure == "far_ood_auroc"] == 1).all()
    told = pairwise.assign(p_seeds=0.01)  # the seeds tell all apart, then but one pair
    assert benchmark.open_by_seeds(placed, told, "near_ood_auroc", "resnet18") == []
    told.loc[
        (told.measure == "near_ood_auroc")
        & (told[["method", "minus_method"]] != "simsiam").all(axis=1),
        "p_seeds",
    ] = 0.05
    assert benchmark.open_by_seeds(placed, told, "near_ood_auroc", "resnet18") == ["dino"]
    assert benchmark.open_by_seeds(
        placed, told.assign(p_seeds=1.0), "near_ood_auroc", "resnet18"
    ) == ["simsiam", "dino"]  # the better one first
    assert (
        benchmark.open_by_seeds(placed, told.assign(p_seeds=1.0), "far_ood_auroc", "resnet18") == []
    )  # all may be first
    summary, first = table.reset_index(), [placed, told.assign(p_seeds=0.01)]
    assert (
        benchmark.told_first(*first, summary, "near_ood_auroc", "resnet18")
        == "VI-SimSiam (1 to 1) is first"
    )
    open_ = benchmark.told_first(placed, told, summary, "near_ood_auroc", "resnet18")
    assert open_ == "VI-SimSiam (1 to 1) is first, which its seeds alone leave open against DINO"
    below = summary.assign(ci_high=summary.ci_high.mask(summary.method == "dino", 0.4))
    shared = benchmark.told_first(*first, below, "far_ood_auroc", "resnet18")
    assert (
        shared.endswith(" (1 to 3) share the first rank, 1 of these surely below one half")
        and shared.count("; ") == shared.count(" and ") == 1
    )


def test_what_seeds_vary_by_widens_differences_between_methods(stored):
    values, _ = stored
    pair = [(("simsiam", "uncertainty"), ("dino", "uncertainty"))]
    for measure in ("linear_accuracy", "linear_correctness_auroc"):
        here = (
            (values.measure == measure)
            & values.method.isin(["simsiam", "dino"])
            & (values.score == "uncertainty")
        )
        widths = []
        for spread in (0.0, 0.02, 0.04):
            # simsiam's seeds are apart, dino's are not: both vary by the pooled spread at least
            by_seed = values.assign(
                value=values.value.where(
                    ~here, 0.5 + spread * (values.seed - 1) * (values.method == "simsiam")
                )
            )
            found = benchmark.differences("standard", by_seed, measure, pair).iloc[0]
            widths.append(found.ci_high - found.ci_low)
        images, errors = (
            widths[0],
            [spread * np.sqrt((1 + 1 / 2) / 3) for spread in (0.02, 0.04)],
        )  # own 1, pooled √½
        half = scipy.stats.norm.isf(0.025)
        assert widths[1:] == pytest.approx(
            [2 * half * np.hypot(images / 2 / half, 2**0.5 * error) for error in errors], rel=0.25
        )  # t of 4: √2 wider


def test_values_that_differ_by_rounding_alone_have_no_t():
    nearly, same, other = (
        pd.Series(values) for values in ([0.1 + 0.2, 0.3, 0.3], [0.3, 0.3, 0.3], [0.6, 0.6, 0.6])
    )
    assert (
        benchmark._p_over_seeds(nearly, same) == 1 and benchmark._p_over_seeds(nearly, other) == 0
    )


def test_of_foreign_images_standard_errors_are_added_up_and_seeds_drawn(stored):
    values, _ = stored
    pair = [(("vi_simsiam", "uncertainty"), ("simsiam", "uncertainty"))]
    found = benchmark.differences("standard", values, "near_ood_auroc", pair).iloc[0]
    images, seeds = (
        0.04 / (2 * 1.959964),
        0.01 / 3**0.5,
    )  # the same for both: 0.04 wide, seeds 0.01 apart
    assert found.difference == pytest.approx(0.2) and found.seeds == 3 and found.pairing == "bound"
    half = (found.ci_high - found.ci_low) / 2
    normal, student = (
        np.hypot(2 * images, times * seeds) for times in (2**0.5, 2)
    )  # t of 4 degrees of freedom has the variance 4/(4 - 2)
    assert found.ci_low + half == pytest.approx(0.2) and 1.9 * normal < half < 2.1 * student
    wide = values.assign(value=values.value + values.seed * (values.method == "simsiam"))
    found = benchmark.differences("standard", wide, "near_ood_auroc", pair).iloc[0]
    assert [found.ci_low, found.ci_high] == [-1, 1]


def test_scores_of_one_network_differ_by_what_differs_in_each_seed(stored):
    """The seeds of a network move all of its scores: between two of them that cancels, between networks it does not."""
    values, _ = stored
    moved = values.assign(
        value=values.value + 0.2 * (values.seed - 1) * values.measure.eq("near_ood_auroc")
    )
    within = [
        (("vi_simsiam", "uncertainty"), ("vi_simsiam", "feature_norm")),
        (("dino", "uncertainty"), ("dino", "knn_distance")),
    ]
    between = [(one, ("simsiam", "uncertainty")) for one, _ in within]
    still, seeds = (
        benchmark.differences("standard", of, "near_ood_auroc", within) for of in (values, moved)
    )
    pd.testing.assert_frame_equal(still, seeds)
    still, seeds = (
        benchmark.differences("standard", of, "near_ood_auroc", between) for of in (values, moved)
    )
    assert (
        (seeds.ci_high - seeds.ci_low) > 3 * (still.ci_high - still.ci_low)
    ).all() and not seeds.sure.any()


def test_p_of_scores_of_one_network_has_the_seeds_degrees_of_freedom_where_these_are_what_varies(
    stored,
):
    pair, p = [(("vi_simsiam", "uncertainty"), ("vi_simsiam", "feature_norm"))], []
    own = (
        (stored[0].measure == "near_ood_auroc")
        & (stored[0].method == "vi_simsiam")
        & (stored[0].score == "uncertainty")
    )
    for spread in (1e-3, 1.0):
        of = stored[0].assign(value=stored[0].value.mask(own, 0.8 + spread * (stored[0].seed - 1)))
        found = benchmark.differences("standard", of, "near_ood_auroc", pair).iloc[0]
        p.append((found.p_holm, abs(found.difference) / (spread / 3**0.5)))
    assert (
        p[0][0] < 1e-6
    )  # images alone: a normal, where t of the seeds' 2 degrees of freedom would leave 0.02
    assert p[1][0] == pytest.approx(2 * scipy.stats.t.sf(p[1][1], 2), abs=0.01)


def test_what_is_one_in_every_seed_does_not_differ(stored):
    same = stored[0].assign(value=1.0, ci_low=1.0, ci_high=1.0)
    found = benchmark.differences(
        "standard",
        same,
        "near_ood_auroc",
        [(("vi_simsiam", "uncertainty"), ("simsiam", "uncertainty"))],
    ).iloc[0]
    assert found.difference == 0 and found.p_holm == 1 and not found.sure


def test_own_uncertainty_against_scores_of_the_same_network(stored):
    values, table = stored
    found = benchmark.against_trivial("standard", values, table.reset_index())
    assert (
        set(found.method) == {"vi_simsiam", "dino"} and (found.method == found.minus_method).all()
    )
    correctness = found[
        (found.measure == "linear_correctness_auroc") & (found.method == "vi_simsiam")
    ].set_index("minus_score")
    assert set(correctness.index) == set(benchmark.SCORES) - {"uncertainty"}
    own, softmax = (
        table.value[("vi_simsiam", score, "linear_correctness_auroc")]
        for score in ("uncertainty", "max_softmax")
    )
    assert softmax == 1 and correctness.difference["max_softmax"] == pytest.approx(
        own - 1, abs=1e-5
    )  # own: as stored
    assert correctness.ci_high["max_softmax"] < 0 < correctness.ci_low["feature_norm"] and (
        correctness.ci_low["file_size"] > 0
    )
    same = found[
        (found.method == "dino")
        & (found.minus_score == "feature_norm")
        & (found.measure == "linear_correctness_auroc")
    ].iloc[0]
    assert (
        same.difference == same.ci_low == same.ci_high == 0
    )  # the same score: pairing leaves nothing


def test_what_a_method_says_of_itself():
    assert {
        name: methods.own_uncertainty(name)[1]
        for name in (
            "vi_simsiam_2022",
            "ibot",
            "prosmin_vit",
            "cr_vae",
            "supervised",
            "moco_latent",
        )
    } == {
        "vi_simsiam_2022": "-κ",
        "ibot": "softmax entropy",
        "prosmin_vit": "mean log σ",
        "cr_vae": "½ Σ log v",
        "supervised": "negative feature norm (trivial)",
        "moco_latent": "negative feature norm (trivial)",
    }


# ---------------------------------------------------------------------------------------------------------------- images alone
def test_scores_of_images_in_another_order_are_not_merged(stored, monkeypatch):
    run, label = resolution.resolve("simsiam", "standard"), np.arange(N) % 3
    images = {"label": label[::-1], "image_entropy": np.zeros(N)}
    monkeypatch.setattr(image_scores, "stored", lambda *_: images)
    monkeypatch.setattr(
        artifacts, "stored_scores", lambda *_: {"label": label, "feature_norm": np.zeros(N)}
    )
    assert "image_entropy" not in benchmark.scores(run)
    images["label"] = label
    assert "image_entropy" in benchmark.scores(run)


def test_rows_of_unlike_images_are_not_paired(stored, monkeypatch):
    scores = benchmark.scores
    assert "label" not in scores(benchmark.runs("standard")["dino"][0])
    order = {"simsiam": np.arange(N) % 10, "dino": np.arange(N)[::-1] % 10}
    monkeypatch.setattr(
        benchmark,
        "scores",
        lambda run: scores(run) | {"label": order[run["method"]].astype(np.int16)},
    )
    pairs = [(("simsiam", "uncertainty"), ("dino", "uncertainty"))]
    apart = benchmark.differences("standard", stored[0], "linear_accuracy", pairs).iloc[0]
    order["dino"] = order["simsiam"]
    paired = benchmark.differences("standard", stored[0], "linear_accuracy", pairs).iloc[0]
    assert (apart.pairing, paired.pairing) == (
        "images in another order",
        "paired by image",
    ) and apart.difference == pytest.approx(paired.difference)
    # both are right on the same images here, but for a tenth of them: paired, little is left to vary
    assert apart.ci_high - apart.ci_low > 1.2 * (paired.ci_high - paired.ci_low)
    entries, orders = (
        [("simsiam", "uncertainty"), ("dino", "uncertainty")],
        [np.arange(N) % 10, np.arange(N)[::-1] % 10],
    )
    order["dino"] = orders[1]
    _, draws, which = benchmark._image_draws("standard", entries, "linear", "accuracy", 400)
    assert which.tolist() == [0, 1] and abs(np.corrcoef(draws.T)[0, 1]) < 0.15
    order["dino"] = orders[0]
    _, draws, which = benchmark._image_draws("standard", entries, "linear", "accuracy", 400)
    assert which.tolist() == [0, 0] and np.corrcoef(draws.T)[0, 1] > 0.5


def test_images_in_another_order_are_told_and_seeds_of_one_method_have_one(stored, monkeypatch):
    scores, label = benchmark.scores, np.arange(N).astype(np.int16)
    assert not [said for said in benchmark.told_unlike("standard") if "another order" in said]
    monkeypatch.setattr(
        benchmark,
        "scores",
        lambda run: scores(run) | {"label": label[:: -1 if run["method"] == "dino" else 1].copy()},
    )
    assert (
        "Test images in another order than the others': DINO; "
        in benchmark.told_unlike("standard")[-1]
    )
    first = next(iter(benchmark.runs("standard")))
    only = {"label": label[::-1].copy()}
    monkeypatch.setattr(
        benchmark,
        "scores",
        lambda run: only if run["method"] == first else {"label": label} if run["seed"] else {},
    )
    said = benchmark.told_unlike("standard")[-1]
    assert f"than the others': {benchmark.label(first)}; " in said, (
        "the most are the others, and a run without stored scores is of no order"
    )
    with pytest.raises(
        ValueError,
        match="scores of dino are of test images in several orders: measure all its seeds on one copy of the set",
    ):
        benchmark.orders_of_images({"dino": [{"label": label}, {"label": label[::-1]}]})
    assert benchmark.orders_of_images(
        {"a": [{"label": label}], "b": [{"label": label[::-1]}], "c": [{"label": label}]}
    ) == [["a", "c"], ["b"]]


def test_advice_names_the_highest_means_without_labels_with_them_and_of_methods_own_scores():
    """A method's own score that is a trivial one is not named twice, and the supervised network not at all."""
    rows = [
        ("simsiam", benchmark.methods.TRIVIAL[1], "uncertainty", 0.9),
        ("simsiam", benchmark.methods.TRIVIAL[1], "feature_norm", 0.9),
        ("vi_simsiam", "-κ", "uncertainty", 0.7),
        ("vi_simsiam", "-κ", "knn_distance", 0.6),
        ("vi_simsiam", "-κ", "file_size", 0.2),
        ("vi_simsiam", "-κ", "max_softmax", 0.8),
        ("supervised", benchmark.methods.TRIVIAL[1], "max_softmax", 0.99),
    ]
    frame = pd.DataFrame(rows, columns=["method", "uncertainty", "score", "value"])
    frame = pd.concat(
        [
            frame.assign(measure=measure)
            for measure in ("far_ood_auroc", "near_ood_auroc", "linear_accuracy")
        ]
    )
    found = benchmark.advice(frame.assign(ci_low=0.0, ci_high=1.0, seeds=3), top=2)
    assert found.use.tolist() == ["near OOD"] * 4 + ["far OOD"] * 4
    assert found.score.tolist() == ["-feature norm", "-κ", "-max softmax", "-κ"] * 2
    assert (
        found.kind.tolist()
        == ["without labels", "without labels", "with labels", "a method's own"] * 2
    )


def test_advice_has_the_highest_of_three_seeds_too():
    rows = [
        (name, seeds, value)
        for name, seeds, value in (
            ("dino", 1, 0.9),
            ("byol", 1, 0.8),
            ("simclr", 3, 0.7),
            ("vje", 3, 0.6),
        )
    ]
    frame = pd.DataFrame(rows, columns=["method", "seeds", "value"]).assign(
        score="feature_norm", uncertainty="", ci_low=0.0, ci_high=1.0
    )
    found = benchmark.advice(frame.assign(measure="near_ood_auroc"), top=1)
    assert found.method.tolist() == ["dino", "simclr"] and found.seeds.tolist() == [1, 3]
    assert benchmark.advice(frame.assign(measure="near_ood_auroc"), top=3).method.tolist() == [
        "dino",
        "byol",
        "simclr",
    ]


def test_every_measure_stands_in_one_group_of_the_tables_to_read():
    grouped = [name for names in benchmark.GROUPS.values() for name in names]
    assert sorted(grouped) == sorted([*benchmark.MEASURES, *benchmark.ELSEWHERE])
    rows = [
        ("vje", "uncertainty", "nll", 1.25, 3),
        ("simclr", "uncertainty", "nll", 1.5, 2),
        ("vje", "feature_norm", "nll", 9.0, 3),
        ("vje", "uncertainty", "training_seconds", 3060.0, 3),
    ]
    frame = pd.DataFrame(rows, columns=["method", "score", "measure", "value", "seeds"])
    frame = frame.assign(ci_low=[1.2, 1.4, 8.0, np.nan], ci_high=[1.3, 1.6, 9.5, np.nan], n=10_000)
    nll, cost = benchmark.tables_to_read(frame).values()
    assert nll.nll.to_dict() == {
        "SimCLR": "1.5 [1.4, 1.6]",
        "VJE": "1.25 [1.2, 1.3]",
    } and nll.seeds.to_dict() == {"SimCLR": 2, "VJE": 3}
    assert cost.training_seconds.to_dict() == {"VJE": "3,060"}
    alone = frame.assign(
        measure=["nll", "nll", "nll", "ece"],
        seeds=[3, 2, 3, 1],
        method=["vje", "simclr", "vje", "vje"],
    )
    (calibration,) = benchmark.tables_to_read(alone).values()
    assert calibration.ece.to_dict() == {
        "SimCLR": "",
        "VJE": "3,060 (1 seed)",
    } and calibration.seeds.to_dict() == {"SimCLR": 2, "VJE": 3}
    rows = [("near_ood_auroc", 15_000), ("far_ood_auroc", 20_000), ("linear_accuracy", 10_000)]
    near = pd.DataFrame(rows, columns=["measure", "n"]).assign(
        method="vje", score="uncertainty", value=0.5, seeds=3, ci_low=0.4, ci_high=0.6
    )
    assert [
        title for title in benchmark.tables_to_read(near) if "0.33 near, 0.50 far" in title
    ]  # chance, of average precision


def test_what_runs_are_not_alike_in_is_told(stored):
    told = benchmark.told_unlike("standard")
    assert (
        told[0].startswith("Learning rates: ")
        and "SimSiam 0.12" in told[0]
        and told[-1] == "More than two views of an image a step: DINO (6)."
    )


def test_a_method_on_simvaes_encoder_is_called_that():
    assert [benchmark.label(name) for name in ("simclr", "simclr_latent", "vae")] == [
        "SimCLR",
        "SimCLR, SimVAE's encoder",
        "VAE",
    ]


def test_advice_has_what_a_method_says_besides_its_uncertainty_and_what_follows_the_severity():
    rows = [
        ("vje", "mean log v", "uncertainty", "far_ood_auroc", 0.5),
        ("vje", "mean log v", "negative_log_likelihood", "far_ood_auroc", 0.9),
        ("vje", "mean log v", "uncertainty", "blur_spearman", 0.3),
        ("simclr", benchmark.methods.TRIVIAL[1], "uncertainty", "blur_spearman", 0.95),
        ("supervised", benchmark.methods.TRIVIAL[1], "uncertainty", "blur_spearman", 0.99),
    ]
    frame = pd.DataFrame(
        rows, columns=["method", "uncertainty", "score", "measure", "value"]
    ).assign(ci_low=0.0, ci_high=1.0, seeds=3)
    found = benchmark.advice(frame)
    assert found[["use", "kind", "score", "method"]].to_numpy().tolist() == [
        ["far OOD", "without labels", "negative log-likelihood", "vje"],
        ["far OOD", "without labels", "mean log v", "vje"],
        ["far OOD", "a method's own", "negative log-likelihood", "vje"],
        ["far OOD", "a method's own", "mean log v", "vje"],
        ["how far blurred", "without labels", "-feature norm", "simclr"],
        ["how far blurred", "without labels", "mean log v", "vje"],
        ["how far blurred", "a method's own", "mean log v", "vje"],
    ]


def test_what_the_images_alone_tell_is_advised_once_and_of_no_network():
    rows = [
        (name, "-κ", score, value)
        for name in ("simclr", "vi_simsiam")
        for score, value in (("file_size", 0.95), ("knn_distance", 0.6))
    ]
    frame = pd.DataFrame(rows, columns=["method", "uncertainty", "score", "value"]).assign(
        ci_low=0.0, ci_high=1.0, seeds=3
    )
    far, right = (
        benchmark.advice(frame.assign(measure=measure))
        for measure in ("far_ood_auroc", "linear_correctness_auroc")
    )
    assert far[["score", "method"]].to_numpy().tolist() == [
        ["file size", "raw_pixels"],
        ["k-NN distance", "simclr"],
        ["k-NN distance", "vi_simsiam"],
    ]
    assert right.score.tolist() == [
        "file size",
        "file size",
        "k-NN distance",
    ]  # which errors it knows depends on whose they are
