"""lib.evaluation.style against closed forms, scikit-learn and torchmetrics, and on data whose answer is known."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import scipy
import sklearn.mixture
import sklearn.neural_network
import torch
import torchvision
from PIL import Image
from sklearn.metrics import r2_score
from sklearn.neighbors import KNeighborsClassifier
from torchmetrics.image.fid import _compute_fid

from lib.claims import differences as comparisons
from lib.data import sources as data
from lib.evaluation import measure as protocol
from lib.evaluation import style as factors
from lib.evaluation import uncertainty
from lib.runs import store as artifacts


def rings(n=1500, seed=0):
    """Two classes that no line separates: points within and around a circle; and their angle, a number."""
    generator = np.random.default_rng(seed)
    label, angle = generator.integers(2, size=n), generator.uniform(-1.5, 1.5, n)
    radius = 1 + label + 0.1 * generator.normal(size=n)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1), label, angle


def blobs(n=600, apart=8.0, seed=0):
    generator = np.random.default_rng(seed)
    label = np.arange(n) % 3
    stretched = generator.normal(size=(n, 2)) * [1.0, 3.0]
    return stretched + apart * np.stack([label == 1, label == 2], 1) * [[1, 0]] + apart * 2 * (
        label == 2
    )[:, None] * [[1, 0]], label


@pytest.mark.parametrize("recipe", ["own", "paper"])
def test_mlp_probe_learns_what_a_line_cannot(recipe):
    (x, y, _), (test_x, test_y, _) = rings(), rings(seed=1)
    predicted = factors.mlp_probe(
        x if recipe == "own" else np.c_[x, x**2, x**3, -x, -(x**2)],
        y,
        test_x if recipe == "own" else np.c_[test_x, test_x**2, test_x**3, -test_x, -(test_x**2)],
        recipe,
    )
    assert predicted.dtype.kind == "i" and factors.skill(predicted, test_y) > 0.97
    assert 0.4 < factors.chance(y, test_y) < 0.6


def test_mlp_probe_of_numbers_is_a_regression():
    (x, _, angle), (test_x, _, test_angle) = rings(), rings(seed=1)
    predicted = factors.mlp_probe(x, angle * 100 + 7, test_x)
    assert factors.skill(predicted, test_angle * 100 + 7) == pytest.approx(
        r2_score(test_angle * 100 + 7, predicted), rel=1e-9
    )
    assert (
        factors.skill(predicted, test_angle * 100 + 7) > 0.95
        and factors.chance(angle, test_angle) == 0
    )
    shuffled = factors.mlp_probe(np.random.default_rng(0).normal(size=x.shape), angle, test_x)
    assert factors.skill(shuffled, test_angle) < 0.05


def test_a_feature_that_hardly_varies_in_training_does_not_outweigh_the_others():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(2000, 8))
    y, rare = x @ np.arange(8.0), np.zeros((2000, 1))
    rare[:3] = 1e-2  # a pixel that three training images light a little, and every test image fully
    predicted = factors.mlp_probe(np.c_[x, rare][:1000], y[:1000], np.c_[x, rare + 1][1000:])
    assert factors.skill(predicted, y[1000:]) > 0.9


def test_features_are_standardised_by_what_the_training_images_say():
    generator = np.random.default_rng(0)
    x, other = generator.normal(2.0, 3.0, (50, 4)), generator.normal(-5.0, 0.1, (7, 4))
    train, test = factors._standardised(x, other)
    np.testing.assert_allclose(test, (other - x.mean(0)) / x.std(0))
    np.testing.assert_allclose(train, (x - x.mean(0)) / x.std(0))


def test_the_papers_settings_of_its_probes_are_these():
    """SimVAE, App. A.7.5: Adam at 3e-4 in batches of 128 for 200 epochs, without weight decay or early stopping; k of 1 to 15."""
    assert factors.PAPER_MLP == {
        "learning_rate_init": 3e-4,
        "batch_size": 128,
        "alpha": 0.0,
        "max_iter": 200,
        "n_iter_no_change": 200,
        "tol": 0.0,
    }
    assert (
        factors.NEIGHBOURS["most"] == 15
        and factors.MIXTURE["covariances"] == "full"
        and factors.OWN_MLP["early_stopping"]
    )


def test_probes_follow_their_seed():
    x, y, _ = rings(300)
    assert np.array_equal(factors.mlp_probe(x, y, x, seed=3), factors.mlp_probe(x, y, x, seed=3))


def test_retention_is_one_for_pixels_and_zero_for_chance():
    assert factors.retention(0.8, 0.8, 0.2) == 1 and factors.retention(0.2, 0.8, 0.2) == 0
    assert factors.retention(0.5, 0.8, 0.2) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="cannot be measured here"):
        factors.retention(0.5, 0.1, 0.2)


def test_a_mixture_finds_blobs_whatever_their_shape_and_number():
    (x, _), (test_x, test_y) = blobs(), blobs(seed=1)
    found = factors.cluster(x, test_x, test_y, 3, starts=3)
    assert min(found.values()) > 0.97 and max(found.values()) <= 1
    nothing = factors.cluster(
        np.random.default_rng(0).normal(size=x.shape),
        test_x,
        np.random.default_rng(1).permutation(test_y),
        3,
        starts=1,
    )
    assert nothing["accuracy"] < 0.45 and abs(nothing["ari"]) < 0.05 and nothing["nmi"] < 0.05


def test_hungarian_accuracy_is_the_best_over_all_assignments():
    generator = np.random.default_rng(0)
    clusters, labels = generator.integers(4, size=(2, 200))
    best = max(np.mean(np.array(order)[clusters] == labels) for order in permutations(range(4)))
    assert factors.hungarian_accuracy(clusters, labels) == pytest.approx(best)
    assert factors.hungarian_accuracy(clusters * 7 + 3, labels) == pytest.approx(
        best
    )  # names do not matter
    assert factors.hungarian_accuracy(np.arange(200), labels) == pytest.approx(
        4 / 200
    )  # one cluster an image: one image a class


def test_variance_difference_is_taken_over_images():
    """Views lie 1 around images that lie 2 apart for the first features, 3 apart for the second: shares of 1 / 5 and 1 / 10 of the variance."""
    generator = np.random.default_rng(0)
    first, second = (
        generator.normal(size=(2, 800, 30)) + apart * generator.normal(size=(1, 800, 30))
        for apart in (2, 3)
    )
    found = factors.variance_difference(first, second, draws=200)
    by_hand = [
        factors.variance_within(np.concatenate(features), np.tile(np.arange(800), 2))
        for features in (first, second)
    ]
    assert (
        found["difference"]
        == pytest.approx(by_hand[0] - by_hand[1])
        == pytest.approx(0.1, abs=0.01)
        and found["n"] == 800
    )
    assert found["ci_low"] < 0.1 < found["ci_high"] and found["ci_high"] - found["ci_low"] < 0.02
    assert factors.variance_difference(first, 5 * first, draws=20)["difference"] == pytest.approx(
        0, abs=1e-8
    ), "a scale is no spread"


def test_variance_within_is_the_analysis_of_variance():
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(50), 8)
    x = 3 * generator.normal(size=(50, 4))[groups] + generator.normal(size=(400, 4))
    within = sum(np.sum((x[groups == g] - x[groups == g].mean(0)) ** 2) for g in range(50))
    between = sum(8 * np.sum((x[groups == g].mean(0) - x.mean(0)) ** 2) for g in range(50))
    assert factors.variance_within(x, groups) == pytest.approx(
        within / (400 - 50) / ((within + between) / (400 - 1)), rel=1e-5
    )
    assert factors.variance_within(
        3 * generator.normal(size=(50, 4))[groups], groups
    ) == pytest.approx(0, abs=1e-6)
    assert factors.variance_within(
        x @ np.linalg.qr(generator.normal(size=(4, 4)))[0] * 5 + 2, groups
    ) == pytest.approx(factors.variance_within(x, groups), rel=1e-4)
    for noise in (
        0,
        3e-8,
    ):  # the latter is what float32 leaves of a network that says one thing of all images
        with pytest.raises(uncertainty.UndefinedStatistic, match="has collapsed"):
            factors.variance_within(
                (1 + noise * generator.normal(size=(400, 8))).astype(np.float32), groups
            )
    with pytest.raises(ValueError, match="4 groups of 4 features"):
        factors.variance_within(np.eye(4), np.arange(4))


def test_groups_that_mean_nothing_have_all_of_the_variance_whatever_their_size():
    x = np.random.default_rng(0).normal(size=(2000, 16))
    for members in (2, 4, 200):
        assert factors.variance_within(x, np.arange(2000) // members) == pytest.approx(1, abs=0.02)


def probes(method, seed, told, on="set"):
    """The metrics of probes as factors.measure_factors writes them: skills by factor, each 0.02 either way, chance 0.2."""
    common = {"method": method, "seed": seed, "set": on}
    rows = [
        {
            "condition": factor,
            "metric": "r2",
            "value": value,
            "ci_low": value - 0.02,
            "ci_high": value + 0.02,
        }
        for factor, value in told.items()
    ]
    return [
        common | row
        for row in rows
        + [{"condition": factor, "metric": "chance", "value": 0.2} for factor in told]
    ]


def test_retentions_are_of_the_pixels_of_their_set_and_carry_the_interval_of_the_probe():
    rows = probes("raw_pixels", 0, {"colour": 0.7, "turn": 0.6, "noise": 0.1}) + probes(
        "raw_pixels", 0, {"colour": 1.2}, "other set"
    )
    rows += probes("simvae", 0, {"colour": 0.7, "turn": 0.4, "noise": 0.5}) + probes(
        "simvae", 0, {"colour": 0.7}, "other set"
    )
    found = factors.retentions(
        pd.DataFrame(rows), ["method", "seed", "set", "condition"]
    ).set_index(["set", "condition"])
    assert list(found.index) == [
        ("other set", "colour"),
        ("set", "colour"),
        ("set", "turn"),
    ] and set(found.method) == {"simvae"}  # no noise
    assert found.retention.tolist() == pytest.approx([0.5, 1, 0.5]) and found.pixels.tolist() == [
        1.2,
        0.7,
        0.6,
    ]
    assert (found.retention - found.retention_low).tolist() == pytest.approx([0.02, 0.04, 0.05])
    assert (found.retention_high - found.retention).tolist() == pytest.approx([0.02, 0.04, 0.05])


def test_retention_is_paired_by_seed_and_one_seed_has_the_interval_of_its_images():
    rows = probes("raw_pixels", 0, {"colour": 0.7, "turn": 0.6})
    for seed, less in enumerate((0.1, 0.2, 0.3)):
        rows += probes("simvae", seed, {"colour": 0.7, "turn": 0.6}) + probes(
            "simclr", seed, {"colour": 0.7 - less, "turn": 0.6 - less}
        )
    rows += probes("simclr", 3, {"colour": 0.2, "turn": 0.2})  # without a partner
    found = factors.retentions(pd.DataFrame(rows), ["method", "seed", "set", "condition"])
    per_seed = [less * (1 / 0.5 + 1 / 0.4) / 2 for less in (0.1, 0.2, 0.3)]
    paired = comparisons.paired_retention(found, "simvae", "simclr")
    reference = scipy.stats.ttest_1samp(per_seed, 0).confidence_interval()
    assert paired["difference"] == pytest.approx(np.mean(per_seed)) and paired["seeds"] == 3
    assert (paired["ci_low"], paired["ci_high"]) == pytest.approx((reference.low, reference.high))
    single = comparisons.paired_retention(found[found.seed == 1], "simvae", "simclr")
    assert single["difference"] == pytest.approx(per_seed[1]) and single["seeds"] == 1
    fewer = comparisons.paired_retention(
        found[(found.method == "simvae") | (found.condition == "turn")], "simvae", "simclr"
    )
    assert fewer["difference"] == pytest.approx(0.2 / 0.4), "of the factors of both alone"
    with pytest.raises(ValueError, match="simvae and simclr have no seed and factor"):
        comparisons.paired_retention(
            found[(found.method == "simvae") ^ (found.seed == 1)], "simvae", "simclr"
        )
    wide = (0.04 + 0.05) / 2 * 2  # half a width of each, mean over factors
    assert (single["ci_low"], single["ci_high"]) == pytest.approx(
        (per_seed[1] - wide, per_seed[1] + wide)
    )


def test_a_difference_of_retention_is_that_of_its_factors_and_is_paired_by_image():
    generator = np.random.default_rng(0)
    label, number = generator.integers(5, size=400), generator.normal(size=400)
    near, far = number + 0.3 * generator.normal(size=400), number + 0.9 * generator.normal(size=400)
    guess = lambda share: np.where(generator.uniform(size=400) < share, label, 9)  # noqa: E731
    told, pixels, nothing = (
        [(label, guess(0.6), guess(0.5)), (number, near, far)],
        [0.9, 0.95],
        [0.2, 0.0],
    )
    scales = np.subtract(pixels, nothing)
    found = factors.retention_difference(told, scales, draws=400)
    skills = [[factors.skill(predicted, truth) for predicted in others] for truth, *others in told]
    by_factor = [
        factors.retention(own, raw, base) - factors.retention(other, raw, base)
        for (own, other), raw, base in zip(skills, pixels, nothing, strict=True)
    ]
    assert found["difference"] == pytest.approx(np.mean(by_factor)) and found["n"] == 400
    assert found["ci_low"] < found["difference"] < found["ci_high"]
    same = factors.retention_difference(
        [(truth, first, first) for truth, first, _ in told], scales, draws=20
    )
    assert same["difference"] == same["ci_low"] == same["ci_high"] == 0  # paired


def test_frechet_distance_is_torchmetrics_and_that_of_known_gaussians():
    generator = np.random.default_rng(0)
    a, b = (
        generator.normal(size=(500, 6)),
        generator.normal(size=(700, 6)) @ generator.normal(size=(6, 6)) + 1,
    )
    single = [torch.tensor(x.astype(np.float32)).double() for x in (a, b)]
    theirs = _compute_fid(*(moment for x in single for moment in (x.mean(0), x.T.cov())))
    assert factors.frechet_distance(a, b) == pytest.approx(theirs.item(), rel=1e-6)
    assert factors.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert factors.frechet_distance(a, a + 2) == pytest.approx(4 * 6, rel=1e-5)
    assert factors.frechet_distance(a, 3 * a) == pytest.approx(
        np.sum(a.mean(0) ** 2) * 4 + 4 * np.trace(np.cov(a.T)), rel=1e-5
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: factors.mlp_probe(np.zeros((3, 2)), np.zeros(4, int), np.zeros((1, 2))),
            r"train_y must be \[N\] like train_x .*\[4\]",
        ),
        (
            lambda: factors.mlp_probe(np.zeros((3, 2)), np.arange(3), np.zeros((1, 5))),
            r"test_x must be \[N, 2\], .*\(1, 5\)",
        ),
        (
            lambda: factors.mlp_probe(np.zeros((3, 2)), np.zeros(3, int), np.zeros((1, 2))),
            "a single value",
        ),
        (
            lambda: factors.mlp_probe(np.full((3, 2), np.nan), np.arange(3), np.zeros((1, 2))),
            "NaN or infinite",
        ),
        (
            lambda: factors.mlp_probe(np.zeros((3, 2)), np.arange(3), np.zeros((1, 2)), "best"),
            'recipe must be "own" or "paper"',
        ),
        (
            lambda: factors.cluster(np.zeros((3, 2)), np.zeros((3, 2)), np.arange(3), 9),
            "clusters is 9",
        ),
        (lambda: factors.skill(np.arange(3), np.arange(4)), "must have one shape"),
        (
            lambda: factors.frechet_distance(np.zeros((3, 2)), np.zeros((3, 4))),
            "features of one length",
        ),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_knn_chosen_is_scikit_learns_with_a_k_that_validation_likes():
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(5, 4))
    y, test_y = generator.integers(5, size=400), generator.integers(5, size=300)
    x, test_x = (
        centres[y] + generator.normal(size=(400, 4)),
        centres[test_y] + generator.normal(size=(300, 4)),
    )
    predicted, k = factors.knn_chosen(x, y, test_x)
    theirs = KNeighborsClassifier(k).fit(x.astype(np.float32), y)
    votes = theirs.predict_proba(test_x.astype(np.float32))
    untied = np.sort(votes, axis=1)[:, -1] > np.sort(votes, axis=1)[:, -2]
    assert (
        1 < k <= 15
        and np.array_equal(predicted[untied], votes[untied].argmax(1))
        and untied.mean() > 0.5
    )
    one = KNeighborsClassifier(1).fit(x.astype(np.float32), y).predict(test_x.astype(np.float32))
    assert np.array_equal(factors.knn_chosen(x, y, test_x, most=1)[0], one)
    assert np.mean(predicted == test_y) > np.mean(one == test_y)


def test_ties_between_classes_go_to_the_nearest():
    x = np.array([[0.0], [1.0], [2.0], [3.0], [-1.5]])
    votes = factors._majorities(
        x.astype(np.float32), np.array([7, 3, 3, 7, 3]), np.array([[-0.2], [2.6]], np.float32), 4
    )
    assert votes[:, 0].tolist() == [7, 7, 3, 3]  # nearest 7, then 3, 3, 3
    assert votes[:, 1].tolist() == [7, 7, 3, 7]  # nearest 7, 3, 3, 7


def test_a_draw_without_variance_is_drawn_again():
    rare = np.zeros(6)
    rare[0] = 1
    with pytest.raises(ValueError, match="All 2 true values are 1"):
        factors.skill([1.0, 2.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="predicted has 1 NaN"):
        factors.skill([1.0, np.nan], [1.0, 2.0])
    found = factors.retention_difference([(rare, rare, 0 * rare)], [0.5], draws=100)
    assert np.isfinite(list(found.values())).all()


def test_the_distance_of_a_set_of_few_images_to_itself_is_zero():
    few = 10 * np.random.default_rng(0).standard_normal((50, 200))
    assert factors.frechet_distance(few, few) == pytest.approx(0, abs=1e-9)


# ---------------------------------------------------------------------------------------------------------------- of a run
def tiny_celeba(folder, generator):
    """200 drawn images in CelebA's layout; hair is darker the lower its class, and every fourth image has none."""
    names = [*data.HAIR, "Male", "Smiling", "Young", "Identity_Free"]
    given = {name: generator.integers(0, 2, 200) for name in names}
    hair = np.where(np.arange(200) % 4 == 3, -1, np.arange(200) % 3)
    given |= {name: (hair == place).astype(int) for place, name in enumerate(data.HAIR)}
    (folder / "img_align_celeba").mkdir(parents=True)
    for i in range(200):
        pixels = generator.integers(0, 60, (22, 18, 3)) + 60 * (hair[i] + 1)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "img_align_celeba" / f"{i:03}.png")
    lines = [
        f"{i:03}.png " + " ".join(str(2 * given[name][i] - 1) for name in names) for i in range(200)
    ]
    (folder / "list_attr_celeba.txt").write_text("\n".join(["200", " ".join(names), *lines]) + "\n")
    (folder / "list_eval_partition.txt").write_text(
        "".join(f"{i:03}.png {2 * (i >= 160)}\n" for i in range(200))
    )
    (folder / "identity_CelebA.txt").write_text("".join(f"{i:03}.png {i}\n" for i in range(200)))
    for name in ("list_bbox_celeba.txt", "list_landmarks_align_celeba.txt"):
        (folder / name).write_text(
            "\n".join(["200", "x y", *(f"{i:03}.png 0 0" for i in range(200))]) + "\n"
        )


def test_style_of_celeba_is_probed_where_it_is_labelled(run, tmp_path, monkeypatch):
    tiny_celeba(tmp_path / "celeba", np.random.default_rng(0))
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.setattr(torchvision.datasets.CelebA, "_check_integrity", lambda _: True)
    frame = factors.measure_factors(run, "celeba", "40_test").set_index(["condition", "metric"])
    assert set(frame.index.get_level_values(0)) == {"content", "hair", "Bald", "Smiling", "Young"}
    assert frame.n["hair", "accuracy"] == 30 and frame.n["content", "accuracy"] == 40, (
        "the images without hair are left out"
    )
    assert frame.value["hair", "accuracy"] > frame.value["hair", "chance"]


def test_content_is_measured_as_its_functions_say(vae_run):
    frame = factors.measure_content(vae_run, "40_test").set_index(
        ["condition", "classifier", "metric"]
    )
    bank, test = vae_run.embed(vae_run.bank), vae_run.embed(vae_run.test())
    predicted, k = factors.knn_chosen(bank["features"], bank["label"], test["features"])
    stored = artifacts.read_scores("smoke", vae_run.name, "digits_content")
    assert (
        frame.value["clean", "knn_chosen", "accuracy"]
        == np.mean(predicted == test["label"])
        == stored["knn_chosen_correct"].mean()
    )
    assert (
        frame.value["clean", "knn_chosen", "k"] == k
        and 0.1 < frame.value["clean", "mlp_paper", "accuracy"] <= 1
    )
    asked = factors.mlp_probe(
        bank["features"], bank["label"], test["features"], "paper", vae_run.settings["seed"]
    )
    assert frame.value["clean", "mlp_paper", "accuracy"] == np.mean(asked == test["label"])
    low, high = frame.loc[("clean", "mlp_paper", "accuracy"), ["ci_low", "ci_high"]]
    assert low < frame.value["clean", "mlp_paper", "accuracy"] < high
    clustered = factors.cluster(bank["features"], test["features"], test["label"], 10)
    assert {
        name: frame.value["clean", "gmm", name] for name in ("accuracy", "ari", "nmi")
    } == pytest.approx(clustered)
    within = frame.xs("variance_within", level="metric").value.droplevel("classifier")
    assert within["classes"] == pytest.approx(
        factors.variance_within(test["features"], test["label"])
    )
    views = np.stack(
        [view["features"] for view in protocol.embed_views(vae_run, factors.GROUP_VIEWS)[1]]
    ).astype(np.float64)  # [V, N, D]
    of_views, images, _ = views.shape
    among = ((views - views.mean(0)) ** 2).sum() / (images * (of_views - 1))
    total = ((views - views.mean((0, 1))) ** 2).sum() / (images * of_views - 1)
    assert within["views"] == pytest.approx(among / total, rel=1e-5) and 0 < within["views"] < 1
    alone = factors.measure_within(vae_run, "44_test").set_index("condition").value
    assert alone.to_dict() == within[["classes", "views"]].to_dict()
    stored = artifacts.read_metrics("smoke", "40_test", vae_run.name)
    assert len(stored) == len(frame) and set(stored.run_hash) == {vae_run.hash}


def test_factors_are_probed_with_chance_beside_them(vae_run):
    enough = protocol.Run(vae_run.settings | {"factor_images": [400, 200]})
    frame = (
        factors.measure_factors(enough, "styled_digits", "40_test")
        .set_index(["condition", "metric"])
        .value
    )
    assert set(frame.index.get_level_values(0)) == {
        "content",
        "colour",
        "scale",
        "rotation",
        "x",
        "y",
    }
    assert {metric for name, metric in frame.index if name in ("content", "colour")} == {
        "accuracy",
        "chance",
    }
    assert {metric for name, metric in frame.index if name not in ("content", "colour")} == {
        "r2",
        "chance",
    }
    parts = [
        data.load("styled_digits", split, image_size=vae_run.settings["image_size"]).sample(most)
        for split, most in (("train", 400), ("test", 200))
    ]
    assert frame["content", "chance"] == pytest.approx(
        factors.chance(*(part.labels for part in parts))
    )
    assert (
        frame["scale", "r2"] > 0.05 > frame["scale", "chance"] == 0
        and 0.05 < frame["content", "chance"] < 0.2
    )
    assert len(artifacts.read_metrics("smoke", "40_test-styled_digits", vae_run.name)) == 12


def test_chance_is_how_often_the_commonest_class_of_train_is_right_on_test():
    assert (
        factors.chance([0, 0, 0, 1], [1, 1, 0])
        == pytest.approx(1 / 3)
        != factors.chance([1, 1, 0], [1, 1, 0])
    )


def test_the_papers_mlp_probe_is_as_wide_as_the_features_and_takes_them_as_they_are(monkeypatch):

    class Seen(sklearn.neural_network.MLPClassifier):
        def fit(self, x, y):
            seen.append((self.hidden_layer_sizes, x))
            return super().fit(x, y)

    seen, (x, y, _) = [], rings(200)
    monkeypatch.setattr(sklearn.neural_network, "MLPClassifier", Seen)
    monkeypatch.setitem(factors.PAPER_MLP, "max_iter", 2)
    factors.mlp_probe(x, y, x, "paper")
    factors.mlp_probe(x, y, x, "own")
    assert [size for size, _ in seen] == [(2,), (factors.HIDDEN,)]
    np.testing.assert_array_equal(seen[0][1], x.astype(np.float32))
    np.testing.assert_allclose(seen[1][1].std(0), 1, rtol=1e-3)


def test_a_mixture_has_as_many_starts_as_asked_for(monkeypatch):

    asked, mixture = [], sklearn.mixture.GaussianMixture
    monkeypatch.setattr(
        sklearn.mixture,
        "GaussianMixture",
        lambda *rest, **options: asked.append(options) or mixture(*rest, **options),
    )
    x, y = blobs(90)
    factors.cluster(x, x, y, 3, starts=4)
    factors.cluster(x, x, y, 3)
    assert [options["n_init"] for options in asked] == [4, factors.MIXTURE["starts"]] and {
        o["covariance_type"] for o in asked
    } == {"full"}
