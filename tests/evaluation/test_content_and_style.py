"""lib.evaluation.style against closed forms, scikit-learn and torchmetrics."""

from itertools import permutations

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from PIL import Image
from sklearn.metrics import r2_score
from sklearn.neighbors import KNeighborsClassifier
from torchmetrics.image.fid import _compute_fid

from lib.data import sources
from lib.evaluation import measure, style, uncertainty
from lib.runs import store


def rings(count=1500, seed=0):
    """Points of two classes that no line separates, the classes, and their angle, a number."""
    generator = np.random.default_rng(seed)
    label = generator.integers(2, size=count)
    angle = generator.uniform(-1.5, 1.5, count)
    radius = 1 + label + 0.1 * generator.normal(size=count)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1), label, angle


def blobs(count=600, seed=0):
    """Three elongated clusters in a row, and their labels."""
    label = np.arange(count) % 3
    points = np.random.default_rng(seed).normal(size=(count, 2)) * [1.0, 3.0]
    points[:, 0] += np.array([0, 8, 24])[label]
    return points, label


# ------------------------------------------------------------------------------------ classifiers
def test_mlp_probe_learns_classes_that_no_line_separates():
    x, y, _ = rings()
    test_x, test_y, _ = rings(seed=1)
    predicted = style.mlp_probe(x, y, test_x)
    assert predicted.dtype.kind == "i"
    assert style.skill(predicted, test_y) > 0.97
    assert 0.4 < style.chance(y, test_y) < 0.6
    np.testing.assert_array_equal(style.mlp_probe(x, y, test_x), predicted)


def test_the_papers_mlp_probe_is_as_wide_as_the_features():
    x, y, _ = rings()
    test_x, test_y, _ = rings(seed=1)
    wide_x = np.c_[x, x**2, x**3, -x, -(x**2)]
    wide_test_x = np.c_[test_x, test_x**2, test_x**3, -test_x, -(test_x**2)]
    assert style.skill(style.mlp_probe(wide_x, y, wide_test_x, "paper"), test_y) > 0.97
    assert style.skill(style.mlp_probe(x, y, test_x, "paper"), test_y) < 0.97, "two units"


def test_mlp_probe_of_numbers_is_a_regression():
    x, _, angle = rings()
    test_x, _, test_angle = rings(seed=1)
    target = 100 * test_angle + 7
    predicted = style.mlp_probe(x, 100 * angle + 7, test_x)
    assert style.skill(predicted, target) == pytest.approx(r2_score(target, predicted), rel=1e-9)
    assert style.skill(predicted, target) > 0.95
    assert style.chance(angle, test_angle) == 0
    noise = np.random.default_rng(0).normal(size=x.shape)
    assert style.skill(style.mlp_probe(noise, angle, test_x), test_angle) < 0.05


def test_a_feature_that_hardly_varies_in_training_does_not_dominate():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(2000, 8))
    y = x @ np.arange(8.0)
    rare = np.zeros((2000, 1))
    rare[:3] = 1e-2  # a pixel that three training images light a little, every test image fully
    train_x = np.c_[x, rare][:1000]
    test_x = np.c_[x, rare + 1][1000:]
    assert style.skill(style.mlp_probe(train_x, y[:1000], test_x), y[1000:]) > 0.9


def test_chance_is_the_accuracy_of_the_most_frequent_training_class():
    assert style.chance([0, 0, 0, 1], [1, 1, 0]) == pytest.approx(1 / 3)
    assert style.chance([1, 1, 0], [1, 1, 0]) == pytest.approx(2 / 3)


def test_knn_chosen_is_scikit_learns_with_a_k_chosen_on_train():
    generator = np.random.default_rng(0)
    centres = generator.normal(size=(5, 4))
    y = generator.integers(5, size=400)
    test_y = generator.integers(5, size=300)
    x = (centres[y] + generator.normal(size=(400, 4))).astype(np.float32)
    test_x = (centres[test_y] + generator.normal(size=(300, 4))).astype(np.float32)
    predicted, k = style.knn_chosen(x, y, test_x)
    votes = KNeighborsClassifier(k).fit(x, y).predict_proba(test_x)
    ordered = np.sort(votes, axis=1)
    untied = ordered[:, -1] > ordered[:, -2]
    assert 1 < k <= 15
    assert untied.mean() > 0.5
    np.testing.assert_array_equal(predicted[untied], votes[untied].argmax(1))
    nearest = KNeighborsClassifier(1).fit(x, y).predict(test_x)
    np.testing.assert_array_equal(style.knn_chosen(x, y, test_x, largest_k=1)[0], nearest)
    assert np.mean(predicted == test_y) > np.mean(nearest == test_y)


def test_ties_between_classes_go_to_the_nearest():
    x = np.array([[0.0], [1.0], [2.0], [3.0], [-1.5]], np.float32)
    y = np.array([7, 3, 3, 7, 3])
    votes = style._majority_votes(x, y, np.array([[-0.2], [2.6]], np.float32), 4)
    assert votes[:, 0].tolist() == [7, 7, 3, 3]  # nearest 7, then 3, 3, 3
    assert votes[:, 1].tolist() == [7, 7, 3, 7]  # nearest 7, 3, 3, 7


# ------------------------------------------------------------------------------ retention of style
def probe_rows(method, seed, skills, dataset="set"):
    """Rows of style.measure_factors with skills by factor, each ± 0.02, and chance 0.2."""
    rows = []
    for factor, skill in skills.items():
        common = {"method": method, "seed": seed, "set": dataset, "condition": factor}
        interval = {"ci_low": skill - 0.02, "ci_high": skill + 0.02}
        rows.append(common | {"metric": "r2", "value": skill} | interval)
        rows.append(common | {"metric": "chance", "value": 0.2})
    return rows


KEYS = ["method", "seed", "set", "condition"]


def test_retentions_are_relative_to_the_pixels_of_their_set():
    rows = probe_rows("raw_pixels", 0, {"colour": 0.7, "turn": 0.6, "noise": 0.1})
    rows += probe_rows("raw_pixels", 0, {"colour": 1.2}, "other set")
    rows += probe_rows("simvae", 0, {"colour": 0.7, "turn": 0.4, "noise": 0.5})
    rows += probe_rows("simvae", 0, {"colour": 0.7}, "other set")
    table = style.retentions(pd.DataFrame(rows), KEYS)
    places = list(zip(table.set, table.condition, strict=True))
    assert places == [("other set", "colour"), ("set", "colour"), ("set", "turn")]  # no noise
    assert set(table.method) == {"simvae"}
    assert table.pixels.tolist() == [1.2, 0.7, 0.6]
    assert table.retention.tolist() == pytest.approx([0.5, 1, 0.5])
    half_widths = [0.02, 0.04, 0.05]
    assert (table.retention - table.retention_low).tolist() == pytest.approx(half_widths)
    assert (table.retention_high - table.retention).tolist() == pytest.approx(half_widths)


def test_a_difference_of_retention_is_the_mean_over_factors_and_paired_by_image():
    generator = np.random.default_rng(0)
    label = generator.integers(5, size=400)
    number = generator.normal(size=400)
    often = np.where(generator.uniform(size=400) < 0.6, label, 9)
    seldom = np.where(generator.uniform(size=400) < 0.5, label, 9)
    near = number + 0.3 * generator.normal(size=400)
    far = number + 0.9 * generator.normal(size=400)
    factors = [
        style.ProbedFactor(truth=label, first=often, second=seldom, scale=0.7),
        style.ProbedFactor(truth=number, first=near, second=far, scale=0.95),
    ]
    result = style.retention_difference(factors, draws=400)
    of_classes = (np.mean(often == label) - np.mean(seldom == label)) / 0.7
    of_numbers = (r2_score(number, near) - r2_score(number, far)) / 0.95
    assert result["difference"] == pytest.approx((of_classes + of_numbers) / 2)
    assert result["ci_low"] < result["difference"] < result["ci_high"]
    assert result["n"] == 400
    same = [style.ProbedFactor(truth=number, first=near, second=near, scale=0.95)]
    result = style.retention_difference(same, draws=20)
    assert result["difference"] == result["ci_low"] == result["ci_high"] == 0


def test_a_draw_without_variance_is_redrawn():
    rare = np.zeros(6)
    rare[0] = 1
    factor = style.ProbedFactor(truth=rare, first=rare, second=0 * rare, scale=0.5)
    result = style.retention_difference([factor], draws=100)
    assert np.isfinite(list(result.values())).all()
    with pytest.raises(uncertainty.UndefinedStatistic, match="All 2 true values are 1"):
        style.skill([1.0, 2.0], [1.0, 1.0])


# ----------------------------------------------------------- clusters, variances and distributions
def test_a_mixture_finds_elongated_clusters():
    x, _ = blobs()
    test_x, test_y = blobs(seed=1)
    scores = style.clustering_scores(x, test_x, test_y, 3, starts=3)
    assert min(scores.values()) > 0.97
    assert max(scores.values()) <= 1
    noise = np.random.default_rng(0).normal(size=x.shape)
    shuffled = np.random.default_rng(1).permutation(test_y)
    scores = style.clustering_scores(noise, test_x, shuffled, 3, starts=1)
    assert scores["accuracy"] < 0.45
    assert abs(scores["ari"]) < 0.05
    assert scores["nmi"] < 0.05


def test_hungarian_accuracy_is_the_best_over_all_assignments():
    clusters, labels = np.random.default_rng(0).integers(4, size=(2, 200))
    accuracies = [np.mean(np.array(order)[clusters] == labels) for order in permutations(range(4))]
    best = pytest.approx(max(accuracies))
    assert style.hungarian_accuracy(clusters, labels) == best
    assert style.hungarian_accuracy(clusters * 7 + 3, labels) == best, "names do not matter"
    singles = style.hungarian_accuracy(np.arange(200), labels)
    assert singles == pytest.approx(4 / 200), "of one-image clusters one is assigned to a class"


def test_variance_within_is_the_analysis_of_variance():
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(50), 8)
    x = 3 * generator.normal(size=(50, 4))[groups] + generator.normal(size=(400, 4))
    means = np.stack([x[groups == group].mean(0) for group in range(50)])
    within = np.sum((x - means[groups]) ** 2)
    total = within + 8 * np.sum((means - x.mean(0)) ** 2)
    share = pytest.approx(within / (400 - 50) / (total / (400 - 1)), rel=1e-4)
    assert style.variance_within(x, groups) == share
    rotation = np.linalg.qr(generator.normal(size=(4, 4)))[0]
    assert style.variance_within(x @ rotation * 5 + 2, groups) == share
    assert style.variance_within(means[groups], groups) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("members", [2, 4, 200])
def test_random_groups_have_all_of_the_variance(members):
    x = np.random.default_rng(0).normal(size=(2000, 16))
    assert style.variance_within(x, np.arange(2000) // members) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("noise", [0, 3e-8])  # the latter: the rounding of float32
def test_a_collapsed_network_has_no_share_of_variance(noise):
    x = 1 + noise * np.random.default_rng(0).normal(size=(400, 8))
    with pytest.raises(uncertainty.UndefinedStatistic, match="has collapsed"):
        style.variance_within(x.astype(np.float32), np.arange(400) // 8)


def test_variance_difference_is_taken_over_images():
    """Views lie 1 around images that lie 2 or 3 apart: shares of 1 / 5 and 1 / 10."""
    generator = np.random.default_rng(0)
    views = generator.normal(size=(2, 2, 800, 30))
    images = generator.normal(size=(2, 1, 800, 30))
    first = views[0] + 2 * images[0]
    second = views[1] + 3 * images[1]
    groups = np.tile(np.arange(800), 2)
    shares = [style.variance_within(np.concatenate(x), groups) for x in (first, second)]
    result = style.variance_difference(first, second, draws=200)
    assert result["difference"] == pytest.approx(shares[0] - shares[1])
    assert result["difference"] == pytest.approx(0.1, abs=0.01)
    assert result["ci_low"] < 0.1 < result["ci_high"] < result["ci_low"] + 0.02
    assert result["n"] == 800
    rescaled = style.variance_difference(first, 5 * first, draws=20)
    assert rescaled["difference"] == pytest.approx(0, abs=1e-8)


def test_frechet_distance_is_torchmetrics_and_that_of_known_gaussians():
    generator = np.random.default_rng(0)
    first = generator.normal(size=(500, 6))
    second = generator.normal(size=(700, 6)) @ generator.normal(size=(6, 6)) + 1
    moments = []
    for x in (torch.from_numpy(first), torch.from_numpy(second)):
        moments += [x.mean(0), x.T.cov()]
    theirs = _compute_fid(*moments).item()
    assert style.frechet_distance(first, second) == pytest.approx(theirs, rel=1e-6)
    assert style.frechet_distance(first, first + 2) == pytest.approx(4 * 6, rel=1e-5)
    scaled = 4 * np.sum(first.mean(0) ** 2) + 4 * np.trace(np.cov(first.T))
    assert style.frechet_distance(first, 3 * first) == pytest.approx(scaled, rel=1e-5)


def test_fewer_images_than_features_have_distance_zero_to_themselves():
    few = 10 * np.random.default_rng(0).standard_normal((50, 200))
    assert style.frechet_distance(few, few) == pytest.approx(0, abs=1e-9)


POINTS = np.zeros((3, 2))


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (style.mlp_probe, (POINTS, np.zeros(4, int), POINTS), "train_y must be"),
        (style.mlp_probe, (POINTS, np.arange(3), np.zeros((1, 5))), "test_x must be"),
        (style.mlp_probe, (POINTS, np.zeros(3, int), POINTS), "a single value"),
        (style.mlp_probe, (POINTS * np.nan, np.arange(3), POINTS), "NaN or infinite"),
        (style.mlp_probe, (POINTS, np.arange(3), POINTS, 0.5), "recipe must be"),
        (style.clustering_scores, (POINTS, POINTS, np.arange(3), 9), "clusters is 9"),
        (style.variance_within, (POINTS + np.eye(3, 2), np.arange(3)), "3 groups of 3 features"),
        (style.skill, (np.arange(3), np.arange(4)), "must have one shape"),
        (style.skill, ([1.0, np.nan], [1.0, 2.0]), "predicted has 1 NaN"),
        (style.frechet_distance, (POINTS, np.zeros((3, 4))), "features of one length"),
    ],
)
def test_wrong_arguments_are_refused(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)


# ----------------------------------------------------------------------------------------- of a run
def test_content_is_measured_on_the_runs_features(vae_run):
    frame = pd.DataFrame(style.measure_content(vae_run)).fillna({"classifier": ""})
    values = frame.set_index(["condition", "classifier", "metric"]).value
    train = vae_run.embed(vae_run.bank)
    test = vae_run.embed(vae_run.test())
    predicted, k = style.knn_chosen(train["features"], train["label"], test["features"])
    correct = store.read_scores("smoke", vae_run.name, "digits_content")["knn_chosen_correct"]
    np.testing.assert_array_equal(correct, predicted == test["label"])
    assert values["clean", "knn_chosen", "accuracy"] == correct.mean()
    assert values["clean", "knn_chosen", "k"] == k
    predicted = style.mlp_probe(
        train["features"], train["label"], test["features"], "paper", vae_run.settings["seed"]
    )
    assert values["clean", "mlp_paper", "accuracy"] == np.mean(predicted == test["label"])
    clustering = style.clustering_scores(train["features"], test["features"], test["label"], 10)
    for metric, value in clustering.items():
        assert values["clean", "gmm", metric] == pytest.approx(value)


def test_variance_within_views_and_classes_of_a_run(vae_run):
    shares = pd.DataFrame(style.measure_variance_within(vae_run)).set_index("condition").value
    test = vae_run.embed(vae_run.test())
    of_classes = style.variance_within(test["features"], test["label"])
    _, embedded = measure.embed_views(vae_run, style.GROUP_VIEWS)
    views = np.stack([view["features"] for view in embedded]).astype(np.float64)  # [V, N, D]
    count, images, _ = views.shape
    within = np.sum((views - views.mean(0)) ** 2) / (images * (count - 1))
    total = np.sum((views - views.mean((0, 1))) ** 2) / (images * count - 1)
    assert shares["classes"] == pytest.approx(of_classes)
    assert shares["views"] == pytest.approx(within / total, rel=1e-5)


def test_factors_are_probed_with_chance_beside_them(vae_run):
    run = measure.Run(vae_run.settings | {"factor_images": [400, 200]})
    frame = pd.DataFrame(style.measure_factors(run, "styled_digits"))
    values = frame.set_index(["condition", "metric"]).value
    metrics = {factor: "r2" for factor in ("scale", "rotation", "x", "y")}
    metrics |= {"content": "accuracy", "colour": "accuracy"}
    places = set(metrics.items()) | {(factor, "chance") for factor in metrics}
    assert set(values.index) == places
    train = sources.load("styled_digits", "train", image_size=16).sample(400)
    test = sources.load("styled_digits", "test", image_size=16).sample(200)
    chance = style.chance(train.labels, test.labels)
    assert values["content", "chance"] == pytest.approx(chance)
    assert values["scale", "r2"] > 0.05
    assert values["scale", "chance"] == 0


def write_celeba(folder, generator):
    """200 noise images in CelebA's layout, brighter by hair class; every fourth has no hair."""
    names = [*sources.HAIR, "Male", "Smiling", "Young", "Identity_Free"]
    hair = np.where(np.arange(200) % 4 == 3, -1, np.arange(200) % 3)
    attributes = {name: generator.integers(0, 2, 200) for name in names}
    for label, name in enumerate(sources.HAIR):
        attributes[name] = (hair == label).astype(int)
    files = [f"{i:03}.png" for i in range(200)]
    (folder / "img_align_celeba").mkdir(parents=True)
    for file, label in zip(files, hair, strict=True):
        pixels = generator.integers(0, 60, (22, 18, 3)) + 60 * (label + 1)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "img_align_celeba" / file)
    signs = pd.DataFrame(attributes, index=files)[names] * 2 - 1
    boxes = pd.DataFrame(0, index=files, columns=["x", "y"])
    tables = {"list_attr": signs, "list_bbox": boxes, "list_landmarks_align": boxes}
    for name, table in tables.items():
        lines = ["200", " ".join(table.columns)]
        lines += [f"{row.Index} " + " ".join(map(str, row[1:])) for row in table.itertuples()]
        (folder / f"{name}_celeba.txt").write_text("\n".join(lines) + "\n")
    splits = [f"{file} {2 * (i >= 160)}\n" for i, file in enumerate(files)]
    (folder / "list_eval_partition.txt").write_text("".join(splits))
    identities = [f"{file} {i}\n" for i, file in enumerate(files)]
    (folder / "identity_CelebA.txt").write_text("".join(identities))


def test_style_of_celeba_is_probed_where_it_is_labelled(run, tmp_path, monkeypatch):
    write_celeba(tmp_path / "celeba", np.random.default_rng(0))
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    monkeypatch.setattr(torchvision.datasets.CelebA, "_check_integrity", lambda _: True)
    frame = pd.DataFrame(style.measure_factors(run, "celeba"))
    frame = frame.set_index(["condition", "metric"])
    factors = set(frame.index.get_level_values("condition"))
    assert factors == {"content", "hair", "Bald", "Smiling", "Young"}
    assert frame.n["content", "accuracy"] == 40
    assert frame.n["hair", "accuracy"] == 30, "images without hair are left out"
    assert frame.value["hair", "accuracy"] > frame.value["hair", "chance"]


# --------------------------------------------------------------------------- similarities of SimCLR
def test_layers_are_probed_after_short_trainings_by_each_similarity():
    measured = style.measure_similarities("smoke")
    layers = measured.layers.set_index(["similarity", "layer", "factor"])
    names = list(style.SIMILARITIES)
    assert layers.index.is_unique
    assert set(layers.index.unique("layer")) == {"encoder", "projector"}
    share = (layers.skill - layers.chance) / (layers.pixels - layers.chance)
    measurable = layers.pixels > layers.chance
    np.testing.assert_allclose(layers.retention[measurable], share[measurable])
    assert layers.retention[~measurable].isna().all()

    differences = measured.differences.set_index("question")
    accuracy = layers.skill.xs("encoder", level="layer").xs(style.KNN, level="factor")
    expected = accuracy[names[0]] - accuracy[names[1]]
    assert differences.difference["cosine minus dot product"] == pytest.approx(expected)
    variance = layers.variance_within.groupby(["similarity", "layer"]).first()[names[0]]
    rows = differences.loc["variance among views, encoder minus projector"]
    row = rows[rows.similarity == names[0]].iloc[0]
    assert row.difference == pytest.approx(variance["encoder"] - variance["projector"], abs=1e-6)
    gains = differences[differences.index.str.endswith("minus untrained")]
    counts = (gains.ci_low > 0).all()
    assert differences.counts["cosine minus dot product"] == counts
