"""What a representation keeps: non-linear probes of classes and factors, style retention, clustering, variance within groups, Fréchet distance.

Functions of plain arrays, so they work on stored embeddings without a network; the last three measure a run by them. Networks and mixtures are
scikit-learn's.
"""

import contextlib
import warnings
from collections.abc import Sequence

import numpy as np
import pandas as pd
import scipy

from lib.data import sources as data
from lib.evaluation import measure as protocol
from lib.evaluation.embed import Embedded
from lib.evaluation.uncertainty import (
    UndefinedStatistic,
    bootstrap_interval,
    centred,
    matrix,
    with_interval,
)
from lib.runs import store as artifacts

CONTENT = (
    "content",
    "age",
)  # of what a set names, what an image shows; of faces the age is a fine content
# SimVAE (Bizeul et al. 2024), App. A.7.5; one hidden layer as long as the representation, as in the authors' code.
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
}
PAPER_MLP |= {
    "max_iter": PAPER_PROBE["epochs"],
    "n_iter_no_change": PAPER_PROBE["epochs"],
    "tol": 0.0,
}
NEIGHBOURS = {"most": 15, "chosen": "on a tenth of train"}
MIXTURE = {"covariances": "full", "starts": 10}
OWN_MLP = {
    "learning_rate_init": 1e-3,
    "max_iter": 100,
    "batch_size": 256,
    "early_stopping": True,
    "n_iter_no_change": 5,
}
HIDDEN = 256
LEAST_SCALE = 0.3  # of the root mean square of the features' standard deviations


def _rows(x: np.ndarray, y: np.ndarray, names: tuple[str, str]) -> tuple[np.ndarray, np.ndarray]:
    """Features [N, D] in float32, and what is known of each [N]."""
    x, y = matrix(x, names[0]), np.asarray(y)
    if y.shape != (len(x),) or (y.dtype.kind == "f" and not np.isfinite(y).all()):
        raise ValueError(
            f"{names[1]} must be [N] like {names[0]} {list(x.shape)}, without NaN or infinite values, got shape {list(y.shape)}."
        )
    return x.astype(np.float32), y


def mlp_probe(
    train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, recipe: str = "own", seed: int = 0
) -> np.ndarray:
    """What a perceptron of one hidden layer, trained on frozen features [M, D], says of others [N, D]: classes [N], or numbers [N] for float targets.

    recipe "own": features (and numeric targets) standardised by training statistics, with a least scale, 256 hidden units, Adam 1e-3, stopped early
    on a tenth of train. recipe "paper" (SimVAE, App. A.7.5): as many hidden units as features, Adam 3e-4, batch 128, 200 epochs, the last epoch,
    features as they are; the paper's code takes the best epoch on test.
    """
    train_x, train_y = _rows(train_x, train_y, ("train_x", "train_y"))
    test_x = matrix(test_x, "test_x", train_x).astype(np.float32)
    if len(np.unique(train_y)) < 2:
        raise ValueError(
            f"train_y holds a single value ({train_y[0]}); a probe needs at least two."
        )
    if recipe not in ("own", "paper"):
        raise ValueError(f'recipe must be "own" or "paper", got {recipe!r}.')
    from sklearn.exceptions import ConvergenceWarning  # slow to import
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    numeric = train_y.dtype.kind == "f"
    scale = (train_y.mean(), train_y.std()) if numeric else (0.0, 1.0)
    options = (
        (PAPER_MLP | {"hidden_layer_sizes": (train_x.shape[1],)})
        if recipe == "paper"
        else (OWN_MLP | {"hidden_layer_sizes": (HIDDEN,)})
    )
    options |= {
        "batch_size": min(options["batch_size"], int(0.9 * len(train_x)) or 1),
        "random_state": seed,
    }  # a tenth may be held out
    network = MLPRegressor(**options) if numeric else MLPClassifier(**options)
    train_x, test_x = _standardised(train_x, test_x) if recipe == "own" else (train_x, test_x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of epochs is the recipe's
        network.fit(train_x, (train_y - scale[0]) / scale[1] if numeric else train_y)
    return network.predict(test_x) * scale[1] + scale[0] if numeric else network.predict(test_x)


def _standardised(train_x: np.ndarray, test_x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both centred and scaled by the training statistics of each feature, a feature that hardly varies by LEAST_SCALE of the typical one.

    A pixel that is dark in all but a few training images would otherwise outweigh all others in the test image that lights it.
    """
    deviation = train_x.std(0)
    scale = np.maximum(deviation, LEAST_SCALE * np.sqrt(np.mean(deviation**2)) or 1.0)
    return (train_x - train_x.mean(0)) / scale, (test_x - train_x.mean(0)) / scale


def knn_chosen(
    train_x: np.ndarray, train_y: np.ndarray, test_x: np.ndarray, most: int = NEIGHBOURS["most"]
) -> tuple[np.ndarray, int]:
    """Classes [N] by majority of the k nearest neighbours (Euclidean), and k of 1 to ``most``, chosen on a tenth of train (the least of the best).

    SimVAE, App. A.7.5. Deviation: the paper takes the k that is best on test. Of tied classes the one with the nearest neighbour wins.
    """
    train_x, train_y = _rows(train_x, train_y, ("train_x", "train_y"))
    held_out = np.random.default_rng(0).permutation(len(train_x)) < max(1, len(train_x) // 10)
    test_x = matrix(test_x, "test_x", train_x).astype(np.float32)
    most = min(most, int(np.sum(~held_out)))
    if most < 1:
        raise ValueError(
            f"{len(train_x)} training images leave {most} neighbours to choose from; pass two or more, and most >= 1."
        )
    judged = np.array(
        [
            np.mean(votes == train_y[held_out])
            for votes in _majorities(
                train_x[~held_out], train_y[~held_out], train_x[held_out], most
            )
        ]
    )
    k = int(judged.argmax()) + 1
    return _majorities(train_x, train_y, test_x, k)[-1], k


def _majorities(train_x: np.ndarray, train_y: np.ndarray, x: np.ndarray, most: int) -> np.ndarray:
    """The class that most of the k nearest neighbours have, for k = 1 .. most: [most, N]."""
    from sklearn.neighbors import NearestNeighbors  # slow to import

    labels = train_y[
        NearestNeighbors(n_neighbors=most).fit(train_x).kneighbors(x, return_distance=False)
    ]  # [N, most]
    counts = np.cumsum(labels[:, :, None] == np.unique(train_y), axis=1).astype(
        np.float32
    )  # [N, most, C]
    first = (labels[:, :, None] == np.unique(train_y)).argmax(axis=1)[
        :, None, :
    ]  # how near the class comes: breaks ties
    return np.unique(train_y)[np.argmax(counts - first / (most + 1), axis=2)].T


def skill(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Share of right classes, or for float values R² = 1 - sum (y - ŷ)² / sum (y - ȳ)²."""
    predicted, truth = np.asarray(predicted), np.asarray(truth)
    if predicted.shape != truth.shape or not len(truth):
        raise ValueError(
            f"predicted {list(predicted.shape)} and truth {list(truth.shape)} must have one shape [N], N > 0."
        )
    if truth.dtype.kind != "f":
        return float(np.mean(predicted == truth))
    if not np.ptp(truth):
        raise UndefinedStatistic(
            f"All {len(truth)} true values are {truth[0]:g}, so that R² is not defined."
        )
    if not np.isfinite(predicted).all():
        raise ValueError(
            f"predicted has {np.sum(~np.isfinite(predicted))} NaN or infinite values of {len(predicted)}; find where they come from."
        )
    return float(1 - np.sum((truth - predicted) ** 2) / np.sum((truth - truth.mean()) ** 2))


def chance(train_y: np.ndarray, test_y: np.ndarray) -> float:
    """The skill of an answer that knows no features: the commonest class of train; for numbers 0, the R² of the mean."""
    if np.asarray(test_y).dtype.kind == "f":
        return 0.0
    values, counts = np.unique(train_y, return_counts=True)
    return float(np.mean(np.asarray(test_y) == values[counts.argmax()]))


def retention(features: float, pixels: float, nothing: float) -> float:
    """Style retention of a factor: (probe - chance) / (raw-pixel probe - chance). ValueError where pixels do not tell the factor either."""
    if not pixels > nothing:
        raise ValueError(
            f"The probe of raw pixels ({pixels:.3f}) does not beat chance ({nothing:.3f}); the factor cannot be measured here."
        )
    return (features - nothing) / (pixels - nothing)


def retentions(probed: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Retention of every factor by every representation, from the metrics of their probes (measure_factors).

    probed: those rows, with a column set (whose factors are asked for); keys: the columns that name a probe, method, set and condition among them.
    Returns keys, chance, skill, pixels (the skill of a probe of raw pixels, the first that the set has), retention, and retention_low and _high:
    its 95 % interval over images, pixels and chance taken as known. A factor that pixels do not tell is left out.
    """
    keys = list(keys)
    chance, told = probed[probed.metric == "chance"], probed[probed.metric != "chance"]
    wide = told[[*keys, "value", "ci_low", "ci_high"]].rename(columns={"value": "skill"})
    wide = wide.merge(
        chance[[*keys, "value"]].rename(columns={"value": "chance"}), on=keys
    ).sort_values(keys, ignore_index=True)
    raw = (
        wide[wide.method == "raw_pixels"]
        .drop_duplicates(["set", "condition"])
        .rename(columns={"skill": "pixels"})
    )
    wide = wide[wide.method != "raw_pixels"].merge(
        raw[["set", "condition", "pixels"]], on=["set", "condition"]
    )
    wide = wide[wide.pixels > wide.chance].reset_index(drop=True)
    for column, end in {
        "retention": "skill",
        "retention_low": "ci_low",
        "retention_high": "ci_high",
    }.items():
        wide[column] = [
            retention(*values) for values in wide[[end, "pixels", "chance"]].itertuples(index=False)
        ]
    return wide.drop(columns=["ci_low", "ci_high"])


def retention_difference(
    told: Sequence[tuple[np.ndarray, ...]], scales: Sequence[float], draws: int = 2000
) -> dict[str, float]:
    """Style retention by one representation minus that by another, mean over factors, with its 95 % bootstrap over images: difference, ci_low,
    ci_high, n.

    told: for each factor its truth and what the probes of the two say, [N] each, of the same images in the same order; an image is drawn with all
    of it. scales: for each factor the raw-pixel probe minus chance, that of all images in every draw.
    """

    def gap(*columns: np.ndarray) -> float:
        triples = zip(columns[::3], columns[1::3], columns[2::3], scales, strict=True)
        return float(
            np.mean(
                [
                    (skill(first, truth) - skill(second, truth)) / scale
                    for truth, first, second, scale in triples
                ]
            )
        )

    columns = [values for factor in told for values in factor]
    low, high = bootstrap_interval(gap, *columns, draws=draws)
    return {"difference": gap(*columns), "ci_low": low, "ci_high": high, "n": len(columns[0])}


def cluster(
    train_x: np.ndarray,
    test_x: np.ndarray,
    test_y: np.ndarray,
    clusters: int,
    starts: int = MIXTURE["starts"],
    seed: int = 0,
) -> dict[str, float]:
    """Fit a Gaussian mixture with full covariances to features [M, D] without labels; compare the clusters of others [N, D] with their classes.

    accuracy: under the best one-to-one assignment; ari: adjusted Rand index; nmi: normalised mutual information. SimVAE, App. A.7.5 and Tables 5
    and 6. Deviation: ``starts`` initialisations, where the paper has 200.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score  # slow to import
    from sklearn.mixture import GaussianMixture

    train_x = matrix(train_x, "train_x").astype(np.float32)
    test_x, test_y = _rows(test_x, test_y, ("test_x", "test_y"))
    if not 2 <= clusters <= len(train_x):
        raise ValueError(
            f"clusters is {clusters}; it must be 2 to {len(train_x)}, the number of images."
        )
    mixture = GaussianMixture(
        clusters, covariance_type=MIXTURE["covariances"], n_init=starts, random_state=seed
    ).fit(train_x.astype(np.float64))
    found = mixture.predict(test_x.astype(np.float64))
    return {
        "accuracy": hungarian_accuracy(found, test_y),
        "ari": adjusted_rand_score(test_y, found),
        "nmi": normalized_mutual_info_score(test_y, found),
    }


def hungarian_accuracy(clusters: np.ndarray, labels: np.ndarray) -> float:
    """Share of images in the cluster assigned to their class, under the one-to-one assignment that makes it largest (Kuhn 1955)."""
    from sklearn.metrics.cluster import contingency_matrix  # slow to import

    table = contingency_matrix(clusters, labels)
    return float(
        table[scipy.optimize.linear_sum_assignment(table, maximize=True)].sum() / len(labels)
    )


def variance_within(features: np.ndarray, groups: np.ndarray) -> float:
    """Variance of features [N, D] within their G groups over total variance, both summed over the coordinates: 0 collapsed, 1 no grouping.

    ``sum_i |x_i - mean of its group|² / (N - G)`` over ``sum_i |x_i - mean|² / (N - 1)``, the unbiased variances: groups at random have 1 whatever
    their size. ValueError where no group has two; UndefinedStatistic where all features are equal up to rounding: a collapse has no share.
    """
    features, groups = _rows(features, groups, ("features", "groups"))
    x = centred(features)
    count = len(np.unique(groups))
    if count == len(x):
        raise ValueError(
            f"{count} groups of {len(x)} features: no group has two, so that nothing varies within one."
        )
    within = x - pd.DataFrame(x).groupby(groups).transform("mean").to_numpy()
    return float(np.sum(within**2) / (len(x) - count) * (len(x) - 1) / np.sum(x**2))


def variance_difference(
    first: np.ndarray, second: np.ndarray, draws: int = 500
) -> dict[str, float]:
    """``variance_within`` of the first minus the second features [V, N, L] of V views of the same N images: difference, ci_low, ci_high and n.

    95 % bootstrap over images.
    """

    def share(features: np.ndarray, drawn: np.ndarray) -> float:
        return variance_within(
            features[:, drawn].reshape(-1, features.shape[2]),
            np.tile(np.arange(len(drawn)), len(features)),
        )

    def apart(drawn: np.ndarray) -> float:
        return share(first, drawn.astype(int)) - share(second, drawn.astype(int))

    found = with_interval(apart, np.arange(first.shape[1]), draws=draws)
    return {"difference": found.pop("value"), "n": first.shape[1]} | found


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """``|m_1 - m_2|² + tr(S_1 + S_2 - 2 (S_1 S_2)^½)`` of Gaussians fitted to two sets of features [N, D] (Dowson & Landau 1982).

    With the features of Inception-v3 this is the FID (Heusel et al. 2017); with any other network's it is not, and must not be called so.
    """
    a, b = (matrix(x, "features").astype(np.float64) for x in (first, second))
    if a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise ValueError(
            f"Expected two sets of at least two features of one length, got {list(a.shape)} and {list(b.shape)}."
        )
    # S = RᵀR, so that tr (S_1 S_2)^½ is the sum of the singular values of R_1 R_2ᵀ: exact where N <= D leaves S without full rank.
    roots = [np.linalg.qr((x - x.mean(0)) / np.sqrt(len(x) - 1), mode="r") for x in (a, b)]
    overlap = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    return float(
        np.sum((a.mean(0) - b.mean(0)) ** 2) + sum(np.sum(root**2) for root in roots) - 2 * overlap
    )


# ---------------------------------------------------------------------------------------------------------------- of a run
CLUSTERED_IMAGES = 10_000  # that the Gaussian mixture is fitted to
GROUP_VIEWS = 4


def measure_content(run: protocol.Run, notebook: str) -> pd.DataFrame:
    """Content in a representation (SimVAE, App. A.7.5): metrics of ``notebook`` on the test set, and the scores of its two classifiers.

    accuracy of mlp_paper (the paper's MLP probe) and of knn_chosen (Euclidean, k of 1 to 15 by a validation part of train, given as metric k);
    accuracy, ari and nmi of gmm (full covariances, fitted to CLUSTERED_IMAGES of train, without labels); variance_within: of views of one image
    (condition views) and of classes (condition classes), over the total variance.
    """
    images, labelled = run.test(), run.bank
    bank, test = run.embed(labelled), run.embed(images)
    common = {"evaluated_on": images.title, "condition": "clean", "n": len(images)}
    predictions = {
        "mlp_paper": mlp_probe(
            bank["features"], bank["label"], test["features"], "paper", run.settings["seed"]
        )
    }
    predictions["knn_chosen"], k = knn_chosen(bank["features"], bank["label"], test["features"])
    rows, scores = (
        [common | {"classifier": "knn_chosen", "metric": "k", "value": k}],
        {"index": np.arange(len(images), dtype=np.int32)},
    )
    for classifier, predicted in predictions.items():
        right = scores[f"{classifier}_correct"] = predicted == test["label"]
        accuracy = with_interval(
            np.mean, right.astype(float), draws=run.settings["bootstrap_draws"]
        )
        rows.append(common | {"classifier": classifier, "metric": "accuracy"} | accuracy)
    classes = len(run.train.classes)
    fitted_to = bank["features"][labelled.places(CLUSTERED_IMAGES)]
    clustering = cluster(
        fitted_to, test["features"], test["label"], classes, seed=run.settings["seed"]
    )
    rows += [
        common | {"classifier": "gmm", "metric": name, "value": value}
        for name, value in clustering.items()
    ]
    rows += _variances_within(run, test, common)
    artifacts.write_scores(run.profile, run.name, f"{run.settings['dataset']}_content", scores)
    return run.write_metrics(rows, notebook)


def measure_within(run: protocol.Run, notebook: str) -> pd.DataFrame:
    """``variance_within`` as measure_content has it, of a run of which no more is asked: metrics of ``notebook``."""
    images = run.test()
    common = {"evaluated_on": images.title, "condition": "clean"}
    return run.write_metrics(_variances_within(run, run.embed(images), common), notebook)


def _variances_within(run: protocol.Run, test: Embedded, common: dict) -> list[dict]:
    few, views = protocol.embed_views(run, GROUP_VIEWS)
    groups = {
        "classes": (test["features"], test["label"]),
        "views": (
            np.concatenate([view["features"] for view in views]),
            np.tile(np.arange(len(few)), GROUP_VIEWS),
        ),
    }
    rows = []
    for condition, (features, group) in groups.items():
        with contextlib.suppress(
            UndefinedStatistic
        ):  # of a collapsed network: it has no share, and no row
            within = variance_within(features, group)
            rows.append(
                common
                | {
                    "condition": condition,
                    "metric": "variance_within",
                    "value": within,
                    "n": len(features),
                }
            )
    return rows


def measure_factors(run: protocol.Run, dataset: str, notebook: str) -> pd.DataFrame:
    """What a frozen representation tells of the content and of each style_factors of ``dataset``: the skill of an MLP probe, and chance.

    Rows of condition <factor> ("content" is the label): metric accuracy, or r2 for a numeric factor, and chance. The probe learns from
    ``factor_images`` of train and is tested on those of test (sample); a network that reads grey images sees them grey. Images without
    a label (-1) are left out.
    """
    parts = []
    for split, most in zip(("train", "test"), run.settings["factor_images"], strict=True):
        parts.append(data.load(dataset, split, image_size=run.settings["image_size"]).sample(most))
    features, rows = [run.embed(part)["features"] for part in parts], []
    for factor in ("content", *data.style_factors(parts[0])):
        labels = [part.labels if factor == "content" else part.extra[factor] for part in parts]
        given = [
            values >= 0 if values.dtype.kind == "i" else np.full(len(values), True)
            for values in labels
        ]
        known, asked = (values[rows] for values, rows in zip(labels, given, strict=True))
        predicted = mlp_probe(
            features[0][given[0]], known, features[1][given[1]], seed=run.settings["seed"]
        )
        common = {
            "evaluated_on": parts[1].title,
            "condition": factor,
            "classifier": "mlp",
            "n": len(asked),
        }
        metric = "r2" if asked.dtype.kind == "f" else "accuracy"
        rows.append(
            common
            | {"metric": metric}
            | with_interval(skill, predicted, asked, draws=run.settings["bootstrap_draws"])
        )
        rows.append(common | {"metric": "chance", "value": chance(known, asked)})
    return run.write_metrics(rows, notebook, dataset)
