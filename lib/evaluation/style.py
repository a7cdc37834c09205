"""Content and style in a representation: the measures of SimVAE (Bizeul et al. 2024), App. A.7.

Content is the class of an image, style is what varies within a class (colour, scale, position).
The first functions take arrays of features: MLP probe, k-NN, Gaussian mixture, retention of style,
variance within groups, Fréchet distance. Then a stored run is measured with them.
"""

import contextlib
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy

from lib.data import sources
from lib.data.sets import ImageSet
from lib.evaluation import measure
from lib.evaluation.embed import Embedded
from lib.evaluation.suite import metrics_row, value_rows
from lib.evaluation.uncertainty import (
    UndefinedStatistic,
    centred,
    checked_features,
)
from lib.runs import store

CONTENT = ("content", "age")  # factors that are content; of faces the age is a fine content

# SimVAE, App. A.7.5. The hidden layer is as wide as the representation, as in the authors' code.
PAPER_PROBE = {
    "optimizer": "adam",
    "learning_rate": 3e-4,
    "epochs": 200,
    "batch_size": 128,
    "chosen_epoch": "last",
}
PAPER_MLP = {
    "learning_rate_init": PAPER_PROBE["learning_rate"],
    "batch_size": PAPER_PROBE["batch_size"],
    "alpha": 0.0,
    "max_iter": PAPER_PROBE["epochs"],
    "n_iter_no_change": PAPER_PROBE["epochs"],
    "tol": 0.0,
}
OWN_MLP = {
    "learning_rate_init": 1e-3,
    "max_iter": 100,
    "batch_size": 256,
    "early_stopping": True,
    "n_iter_no_change": 5,
}
HIDDEN = 256  # units of our own MLP probe
SMALLEST_SCALE = 0.3  # of a standardised feature, relative to the root mean square of all scales
NEIGHBOURS = {"most": 15, "chosen": "on a tenth of train"}
MIXTURE = {"covariances": "full", "starts": 10}
CLUSTERED_IMAGES = 10_000  # images that the Gaussian mixture is fitted to
GROUP_VIEWS = 4  # views of each image whose variance is measured


# ------------------------------------------------------------------------------------ classifiers
def mlp_probe(
    train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, recipe: str = "own", seed: int = 0
) -> np.ndarray:
    """Predictions [N] for features [N, D] by a perceptron with one hidden layer.

    It is trained on frozen features [M, D] and their targets train_y [M]. Float targets are
    regressed, all others are classes. Recipes:

    - "own": features (and numeric targets) standardised by training statistics, 256 hidden units,
      Adam at 1e-3, stopped early on a tenth of train.
    - "paper" (SimVAE, App. A.7.5): as many hidden units as features, Adam at 3e-4, batch 128,
      200 epochs, features as they are. Deviation: the last epoch, where the paper's code takes the
      best epoch on test.

    Example:
        predicted = mlp_probe(train["features"], train["label"], test["features"])
        accuracy = skill(predicted, test["label"])
    """
    train_x, train_y = _labelled(train_x, train_y)
    test_x = checked_features(test_x, "test_x", train_x).astype(np.float32)
    from sklearn.exceptions import ConvergenceWarning  # slow to import
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    if recipe == "own":
        options = OWN_MLP | {"hidden_layer_sizes": (HIDDEN,)}
        train_x, test_x = _standardised(train_x, test_x)
    else:
        options = PAPER_MLP | {"hidden_layer_sizes": (train_x.shape[1],)}
    without_held_out = int(0.9 * len(train_x)) or 1  # early stopping holds out a tenth
    options["batch_size"] = min(options["batch_size"], without_held_out)
    options["random_state"] = seed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the recipe gives the epochs
        if train_y.dtype.kind != "f":
            return MLPClassifier(**options).fit(train_x, train_y).predict(test_x)
        mean = train_y.mean()
        deviation = train_y.std()
        network = MLPRegressor(**options).fit(train_x, (train_y - mean) / deviation)
        return network.predict(test_x) * deviation + mean


def _labelled(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, D] in float32 and labels or targets [N]; ValueError for anything else."""
    x = checked_features(x, "features")
    y = np.asarray(y)
    if y.shape != (len(x),) or (y.dtype.kind == "f" and not np.isfinite(y).all()):
        raise ValueError(
            f"labels must be [N] like features {list(x.shape)}, without NaN or infinite values, "
            f"got shape {list(y.shape)}."
        )
    return x.astype(np.float32), y


def _standardised(train_x: np.ndarray, test_x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both centred by the training mean and divided by the training deviation of each feature.

    No feature is divided by less than SMALLEST_SCALE times the typical deviation. Otherwise a pixel
    that is dark in all but a few training images outweighs all others where a test image lights it.
    """
    mean = train_x.mean(0)
    deviation = train_x.std(0)
    smallest = SMALLEST_SCALE * np.sqrt(np.mean(deviation**2))
    if smallest == 0:  # no feature varies
        smallest = 1.0
    scale = np.maximum(deviation, smallest)
    return (train_x - mean) / scale, (test_x - mean) / scale


def knn_chosen(
    train_x: np.ndarray,
    train_y: np.ndarray,
    test_x: np.ndarray,
    largest_k: int = NEIGHBOURS["most"],
) -> tuple[np.ndarray, int]:
    """Classes [N] by majority of the k nearest neighbours (Euclidean), and the k that was chosen.

    k is the one of 1 to largest_k with the highest accuracy on a tenth of train, the smallest of
    several (SimVAE, App. A.7.5). Of tied classes the one with the nearest neighbour wins.
    Deviation: the paper takes the k that is best on test.
    """
    train_x, train_y = _labelled(train_x, train_y)
    test_x = checked_features(test_x, "test_x", train_x).astype(np.float32)
    held_out = np.random.default_rng(0).permutation(len(train_x)) < max(1, len(train_x) // 10)
    fitted = ~held_out
    largest_k = min(largest_k, int(fitted.sum()))
    votes = _majority_votes(train_x[fitted], train_y[fitted], train_x[held_out], largest_k)
    accuracies = np.mean(votes == train_y[held_out], axis=1)  # [largest_k]
    k = int(accuracies.argmax()) + 1
    return _majority_votes(train_x, train_y, test_x, k)[-1], k


def _majority_votes(
    train_x: np.ndarray, train_y: np.ndarray, x: np.ndarray, largest_k: int
) -> np.ndarray:
    """The class of most of the k nearest neighbours of x [N, D] for k = 1 .. K: [K, N]."""
    from sklearn.neighbors import NearestNeighbors  # slow to import

    classes = np.unique(train_y)
    index = NearestNeighbors(n_neighbors=largest_k).fit(train_x)
    neighbours = train_y[index.kneighbors(x, return_distance=False)]  # [N, K], nearest first
    is_class = neighbours[:, :, None] == classes  # [N, K, C]
    counts = np.cumsum(is_class, axis=1).astype(np.float32)  # [N, K, C]
    first_place = is_class.argmax(axis=1)[:, None, :]  # of the class's nearest image: breaks ties
    winners = np.argmax(counts - first_place / (largest_k + 1), axis=2)  # [N, K]
    return classes[winners].T


def skill(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Accuracy of classes, or for float targets R² = 1 - sum (y - ŷ)² / sum (y - ȳ)².

    UndefinedStatistic where all float targets are equal, so that the bootstrap redraws. It is
    called for every draw, and scikit-learn's metrics take many times as long.
    """
    if truth.dtype.kind != "f":
        return float(np.mean(predicted == truth))
    if not np.ptp(truth):
        raise UndefinedStatistic(
            f"All {len(truth)} true values are {truth[0]:g}, so that R² is not defined."
        )
    return float(1 - np.sum((truth - predicted) ** 2) / np.sum((truth - truth.mean()) ** 2))


def chance(train_y: np.ndarray, test_y: np.ndarray) -> float:
    """Skill without features: accuracy of the most frequent training class, or R² = 0."""
    if test_y.dtype.kind == "f":
        return 0.0
    classes, counts = np.unique(train_y, return_counts=True)
    return float(np.mean(test_y == classes[counts.argmax()]))


# ------------------------------------------------------------------------------ retention of style
def retentions(probed: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Retention of every factor by every representation, from the rows of measure_factors.

    ``(skill - chance) / (skill from raw pixels - chance)``: 1 is what a probe of raw pixels has.

    probed: those rows with a column set, the data set whose factors are probed. keys: the columns
    that identify a probe; method, set and condition (the factor) are among them. Returns keys and:

    - chance, skill, pixels: skill of the most frequent class, of the probe, and of a probe of raw
      pixels (the first that the set has)
    - retention, retention_low, retention_high: with its 95 % interval over images, in which pixels
      and chance are taken as known.

    A factor that raw pixels do not predict better than chance is left out.
    """
    keys = list(keys)
    is_chance = probed.metric == "chance"
    chances = probed.loc[is_chance, [*keys, "value"]].rename(columns={"value": "chance"})
    skills = probed.loc[~is_chance, [*keys, "value", "ci_low", "ci_high"]]
    skills = skills.rename(columns={"value": "skill"}).merge(chances, on=keys)
    skills = skills.sort_values(keys, ignore_index=True)
    is_raw = skills.method == "raw_pixels"
    pixels = skills[is_raw].drop_duplicates(["set", "condition"])
    pixels = pixels.rename(columns={"skill": "pixels"})[["set", "condition", "pixels"]]
    table = skills[~is_raw].merge(pixels, on=["set", "condition"])
    table = table[table.pixels > table.chance].reset_index(drop=True)
    range_of_skill = table.pixels - table.chance
    table["retention"] = (table.skill - table.chance) / range_of_skill
    table["retention_low"] = (table.ci_low - table.chance) / range_of_skill
    table["retention_high"] = (table.ci_high - table.chance) / range_of_skill
    return table.drop(columns=["ci_low", "ci_high"])


# ----------------------------------------------------------- clusters, variances and distributions
def clustering_scores(
    train_x: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    clusters: int,
    starts: int = MIXTURE["starts"],
    seed: int = 0,
) -> dict[str, float]:
    """How well the clusters of a Gaussian mixture with full covariances agree with the classes.

    The mixture is fitted to features [M, D] without labels and clusters others [N, D] of classes
    test_y [N]. accuracy: under the best one-to-one assignment; ari: adjusted Rand index; nmi:
    normalised mutual information (SimVAE, App. A.7.5, Tables 5 and 6). Deviation: the best of
    ``starts`` initialisations, where the paper has 200.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score  # slow to import
    from sklearn.mixture import GaussianMixture

    train_x = checked_features(train_x, "train_x").astype(np.float32)
    test_x, test_y = _labelled(test_x, test_y)
    mixture = GaussianMixture(
        clusters, covariance_type=MIXTURE["covariances"], n_init=starts, random_state=seed
    )
    mixture.fit(train_x.astype(np.float64))
    predicted = mixture.predict(test_x.astype(np.float64))
    return {
        "accuracy": hungarian_accuracy(predicted, test_y),
        "ari": adjusted_rand_score(test_y, predicted),
        "nmi": normalized_mutual_info_score(test_y, predicted),
    }


def hungarian_accuracy(clusters: np.ndarray, labels: np.ndarray) -> float:
    """Accuracy under the one-to-one assignment of clusters to classes that is best (Kuhn 1955)."""
    from sklearn.metrics.cluster import contingency_matrix  # slow to import

    counts = contingency_matrix(clusters, labels)  # [classes, clusters]
    assigned = scipy.optimize.linear_sum_assignment(counts, maximize=True)
    return float(counts[assigned].sum() / len(labels))


def variance_within(features: np.ndarray, groups: np.ndarray) -> float:
    """Share of the variance of features [N, D] that is within their G groups [N].

    ``sum_i |x_i - mean of its group|² / (N - G)`` over ``sum_i |x_i - mean|² / (N - 1)``, the
    unbiased variances: 0 if every group is one point, 1 on average if groups are random, whatever
    their size. ValueError where no group has two members, UndefinedStatistic where all features
    are equal up to rounding.
    """
    features, groups = _labelled(features, groups)
    x = centred(features)
    count = len(np.unique(groups))
    if count == len(x):
        raise ValueError(
            f"{count} groups of {len(x)} features: no group has two, so that nothing varies within "
            "one."
        )
    within = x - pd.DataFrame(x).groupby(groups).transform("mean").to_numpy()
    return float(np.sum(within**2) / (len(x) - count) * (len(x) - 1) / np.sum(x**2))


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Distance of Gaussians fitted to two sets of features [N, D] (Dowson & Landau 1982).

    ``|m_1 - m_2|² + tr(S_1 + S_2 - 2 (S_1 S_2)^½)``. Only in the features of Inception-v3 is it the
    FID (Heusel et al. 2017). With S = RᵀR, tr (S_1 S_2)^½ is the sum of the singular values of
    R_1 R_2ᵀ. Unlike a matrix square root this is exact where N <= D leaves S without full rank.
    """
    first = checked_features(first, "features").astype(np.float64)
    second = checked_features(second, "features").astype(np.float64)
    if first.shape[1] != second.shape[1] or min(len(first), len(second)) < 2:
        raise ValueError(
            "Expected two sets of at least two features of one length, "
            f"got {list(first.shape)} and {list(second.shape)}."
        )
    first_root = _covariance_root(first)
    second_root = _covariance_root(second)
    means = np.sum((first.mean(0) - second.mean(0)) ** 2)
    traces = np.sum(first_root**2) + np.sum(second_root**2)
    overlap = np.linalg.svd(first_root @ second_root.T, compute_uv=False).sum()
    return float(means + traces - 2 * overlap)


def _covariance_root(x: np.ndarray) -> np.ndarray:
    """R with RᵀR the covariance of x [N, D]."""
    return np.linalg.qr((x - x.mean(0)) / np.sqrt(len(x) - 1), mode="r")


# ----------------------------------------------------------------------------------------- of a run
def measure_content(run: measure.Run) -> list[dict]:
    """Metrics rows of the content in a run's representation (SimVAE, App. A.7.5).

    Metrics on the test set, by classifier:

    - mlp_paper: accuracy of the paper's MLP probe
    - knn_chosen: accuracy, and k
    - gmm: accuracy, ari and nmi of a mixture fitted to CLUSTERED_IMAGES of train
    - none: variance_within, of condition views (of one image) and classes.

    Scores ``<dataset>_content``: which test images the first two get right.
    """
    test_images = run.test()
    train_images = run.bank
    train = run.embed(train_images)
    test = run.embed(test_images)
    seed = run.settings["seed"]
    common = {"evaluated_on": test_images.title, "condition": "clean", "n": len(test_images)}
    neighbours, k = knn_chosen(train["features"], train["label"], test["features"])
    predictions = {
        "mlp_paper": mlp_probe(train["features"], train["label"], test["features"], "paper", seed),
        "knn_chosen": neighbours,
    }
    rows = [common | {"classifier": "knn_chosen", "metric": "k", "value": k}]
    scores = {"index": np.arange(len(test_images), dtype=np.int32)}
    for classifier, predicted in predictions.items():
        correct = predicted == test["label"]
        columns = common | {"classifier": classifier}
        rows.append(
            metrics_row(
                "accuracy", np.mean, correct, draws=run.settings["bootstrap_draws"], **columns
            )
        )
        scores[f"{classifier}_correct"] = correct
    clustering = clustering_scores(
        train["features"][train_images.places(CLUSTERED_IMAGES)],
        test["features"],
        test["label"],
        clusters=len(run.train.classes),
        seed=seed,
    )
    rows += value_rows(clustering, classifier="gmm", **common)
    rows += _variance_rows(run, test, common)
    store.write_scores(run.profile, run.name, f"{run.settings['dataset']}_content", scores)
    return rows


def measure_variance_within(run: measure.Run) -> list[dict]:
    """Metrics rows of ``variance_within`` views and classes, as measure_content has them."""
    test_images = run.test()
    common = {"evaluated_on": test_images.title, "condition": "clean"}
    return _variance_rows(run, run.embed(test_images), common)


def _variance_rows(run: measure.Run, test: Embedded, common: dict) -> list[dict]:
    """A row for classes of test images and one for views of training images."""
    images, views = measure.embed_views(run, GROUP_VIEWS)
    view_features = np.concatenate([view["features"] for view in views])
    view_groups = np.tile(np.arange(len(images)), GROUP_VIEWS)
    rows = []
    for condition, features, groups in (
        ("classes", test["features"], test["label"]),
        ("views", view_features, view_groups),
    ):
        with contextlib.suppress(UndefinedStatistic):  # a collapsed network has no row
            share = variance_within(features, groups)
            row = {"condition": condition, "metric": "variance_within", "value": share}
            rows.append(common | row | {"n": len(features)})
    return rows


def measure_factors(run: measure.Run, dataset: str) -> list[dict]:
    """Skill of an MLP probe for content and for each style factor of ``dataset``, and chance.

    Rows of condition <factor>, where "content" is the label: metric accuracy, or r2 for a numeric
    factor, and chance. The probe learns from ``factor_images`` of train and is tested on those of
    test; a network that reads grey images sees them grey. Images without a label (-1) are left out.
    """
    train_count, test_count = run.settings["factor_images"]
    image_size = run.settings["image_size"]
    train = sources.load(dataset, "train", image_size=image_size).sample(train_count)
    test = sources.load(dataset, "test", image_size=image_size).sample(test_count)
    train_x = run.embed(train)["features"]
    test_x = run.embed(test)["features"]
    rows = []
    for factor in ("content", *sources.style_factors(train)):
        train_y = truth_of(train, factor)
        test_y = truth_of(test, factor)
        train_known = _is_known(train_y)
        test_known = _is_known(test_y)
        train_y = train_y[train_known]
        test_y = test_y[test_known]
        predicted = mlp_probe(
            train_x[train_known], train_y, test_x[test_known], seed=run.settings["seed"]
        )
        metric = "r2" if test_y.dtype.kind == "f" else "accuracy"
        common = {
            "evaluated_on": test.title,
            "condition": factor,
            "classifier": "mlp",
            "n": len(test_y),
        }
        draws = run.settings["bootstrap_draws"]
        rows.append(metrics_row(metric, skill, predicted, test_y, draws=draws, **common))
        rows += value_rows({"chance": chance(train_y, test_y)}, **common)
    return rows


def truth_of(images: ImageSet, factor: str) -> np.ndarray:
    """The labels of the content, or the values of a style factor, of every image."""
    return images.labels if factor == "content" else images.extra[factor]


def _is_known(labels: np.ndarray) -> np.ndarray:
    """Which images have a label: classes are -1 where it is missing, numbers always known."""
    if labels.dtype.kind == "i":
        return labels >= 0
    return np.full(len(labels), True)
