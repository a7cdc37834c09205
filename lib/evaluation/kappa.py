"""What κ says of training images, other data sets, classes, augmented images and labelled subsets.

The measures of VI-SimSiam's tables and figures, as parts of the evaluation suite: of a run that
predicts a concentration, each returns metrics rows and stores an array for every image. And the
runs that the notebooks on κ show.
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from lib import training
from lib.data import views
from lib.data.sets import ImageSet
from lib.evaluation import theory
from lib.evaluation.embed import Embedded, Transform, input_transform, square_crop
from lib.evaluation.measure import Run, kappa_of_views
from lib.evaluation.probes import linear_probe
from lib.evaluation.results import required, stacked
from lib.evaluation.suite import metrics_row, ood_rows_of_sets, value_rows
from lib.evaluation.uncertainty import checked_values, rank_correlation, with_interval
from lib.runs import settings as run_settings
from lib.runs import store

FORMS = ("vi_simsiam", "vi_simsiam_2022")  # of VI-SimSiam
# What SimSiam and VI-SimSiam have in common where they are compared.
SAME_IMAGES = ("dataset", "epochs", "local_views")
SAME_RATE = ("learning_rate", "batch_size")
OTHER_SETS = "other_sets"  # the scores with κ of other data sets: kappa_<set>

# One part of SimSiam's augmentation, applied for certain (VI-SimSiam 2022, Fig. 9).
IDENTITY = {
    "scale": (1.0, 1.0),
    "ratio": (1.0, 1.0),
    "flip": 0.0,
    "jitter": 0.0,
    "grey": 0.0,
    "blur": 0.0,
}
AUGMENTATIONS = {
    "blur": {"blur": 1.0},
    "colour jitter": {"jitter": 1.0},
    "flip": {"flip": 1.0},
    "greyscale": {"grey": 1.0},
    "random crop": {"scale": (0.05, 1.0), "ratio": (3 / 4, 4 / 3)},
}
VIEWS_PER_AUGMENTATION = 5  # of an image, over which κ is averaged
# Top and left of squares of half the image's side, as shares of the side.
PLACES = {
    "centre": (0.25, 0.25),
    "right": (0.25, 0.5),
    "top left": (0, 0),
    "top right": (0, 0.5),
    "bottom left": (0.5, 0),
    "bottom right": (0.5, 0.5),
}
AUGMENTED_VIEWS = 8  # of a training image (VI-SimSiam 2022, Table 1)
COSINE_PAIRS = 8  # pairs of views over which the cosine of an image is averaged
COSINE_BATCH = 500  # images at a time; part of the seeds of their views

SHARES = (0.1, 0.25, 0.5)  # of the labelled images, in data selection
SELECTION_RULES = (
    "highest κ",
    "lowest κ",
    "random",
    "highest κ in each class",
    "lowest κ in each class",
    "random, classes as highest κ",
)


# --------------------------------------------------------------------------- which runs are shown
def shown_runs(profile: str) -> list[dict]:
    """The measured runs of VI-SimSiam that the notebooks on κ show: one form and length a data set.

    On the profile's own set it is the form of 2023, on other sets that of 2022, each only if it is
    measured, otherwise the other. Of several lengths it is the longest. FileNotFoundError with the
    command that makes them where there is none.
    """
    usual = [run for run in _listed(profile, *FORMS) if not run_settings.differences(run)]
    by_set: dict[str, list[dict]] = {}
    for run in required(usual, profile):
        by_set.setdefault(run["dataset"], []).append(run)
    own_set = run_settings.profile_settings(profile)["dataset"]
    shown = []
    for dataset, runs in by_set.items():
        preferred = FORMS if dataset == own_set else FORMS[::-1]
        form = min((run["method"] for run in runs), key=preferred.index)
        of_form = [run for run in runs if run["method"] == form]
        longest = max(run["epochs"] for run in of_form)
        shown += [run for run in of_form if run["epochs"] == longest]
    return shown


def median_runs(images: pd.DataFrame) -> pd.Series:
    """The run whose mean κ is the median of the seeds (the lower of two), by data set.

    images: of ``results.read_scores``. For figures of one seed, as seeds differ in κ.

    Example:
        images = results.read_scores(shown_runs("standard"))
        drawn = images[images.run.isin(median_runs(images))]
    """
    mean = images.groupby(["dataset", "run"]).kappa.mean().sort_values().reset_index()
    return mean.groupby("dataset").run.agg(lambda names: names.iloc[(len(names) - 1) // 2])


def simsiam_beside(runs: list[dict]) -> list[dict]:
    """The measured SimSiam runs with the data, length and views of these runs.

    Their learning rate and batch are the same too, or what the profile gives to SimSiam.
    """

    def same(names: tuple[str, ...], run: dict) -> list[dict]:
        return [other for other in runs if all(other[name] == run[name] for name in names)]

    simsiam = []
    for run in _listed(runs[0]["profile"], "simsiam"):
        is_usual = set(run_settings.differences(run)) <= {"local_views"}
        if same(SAME_IMAGES if is_usual else SAME_IMAGES + SAME_RATE, run):
            simsiam.append(run)
    return required(simsiam, runs[0]["profile"])


def _listed(profile: str, *methods: str) -> list[dict]:
    """Runs of these methods on the profile's own set and on other data."""
    listed = []
    for group in (run_settings.PROTOCOL, "datasets"):
        listed += run_settings.runs(profile, group=group)
    return [run for run in listed if run["method"] in methods]


def read_by_set(runs: Iterable[dict]) -> pd.DataFrame:
    """Stored κ of test images of each run's own set and of other sets, a row a run and image.

    Columns: run, method, seed, dataset (that the run is trained on), epochs, kappa, evaluated_on.
    Runs without κ of other sets are left out; FileNotFoundError with the command that makes them
    where none has it.
    """

    def of_run(run: dict) -> pd.DataFrame:
        name = run_settings.run_name(run)
        dataset = run["dataset"]
        others = store.stored_scores(run["profile"], name, f"{dataset}_{OTHER_SETS}")
        if not others:
            return pd.DataFrame()
        test = store.read_scores(run["profile"], name, dataset, ("kappa",))
        by_set = {f"kappa_{dataset}": test["kappa"]} | others
        frames = []
        for key, values in by_set.items():
            frame = pd.DataFrame({"kappa": values.astype(float)})
            frames.append(frame.assign(evaluated_on=key.removeprefix("kappa_")))
        return pd.concat(frames, ignore_index=True)

    return stacked(runs, of_run, "κ of other data sets")


# -------------------------------------------------------------------- training images, other sets
def measure_distribution(run: Run) -> list[dict]:
    """κ of training images, other sets and classes, and of correct and wrong predictions.

    VI-SimSiam 2022, §6 and §7.

    - conditions train and "train, augmented" (AUGMENTED_VIEWS views of an image, Table 1): mean
      and std of κ; κ of all views is stored as scores ``<dataset>_views``
    - condition "other set", by set: mean and std of κ, and ood_auroc of the uncertainty -κ; κ of
      each image is stored as scores ``<dataset>_other_sets``
    - condition "class <name>": within_class_cosine, the mean cosine of two test images of a class;
      neighbour_purity, the share of images whose nearest neighbour has their label; median_kappa
    - condition "over classes": spearman of the median κ with both, over classes
    - condition "right against wrong", by classifier: mean_difference of κ (Welch), its p value,
      the Mann-Whitney p value and Cohen's d.
    """
    scores = pd.DataFrame(store.read_scores(run.profile, run.name, run.settings["dataset"]))
    scores = scores.astype({"kappa": float})
    by_class = _class_rows(run, scores)
    return [
        *_training_rows(run),
        *other_set_rows(run, scores.kappa.to_numpy()),
        *by_class,
        *_over_classes(by_class),
        *_correctness_rows(run, scores),
    ]


def _training_rows(run: Run) -> list[dict]:
    few, kappa_views = kappa_of_views(run, AUGMENTED_VIEWS)
    array = {"kappa": kappa_views.ravel().astype(np.float32)}
    store.write_scores(run.profile, run.name, f"{run.settings['dataset']}_views", array)
    rows = _mean_and_std("train", run.bank, run.embed(run.bank)["kappa"])
    return rows + _mean_and_std("train, augmented", few, kappa_views.ravel())


def _mean_and_std(condition: str, images: ImageSet, kappa: np.ndarray) -> list[dict]:
    common = {
        "evaluated_on": images.title,
        "condition": condition,
        "score": "kappa",
        "n": len(kappa),
    }
    return value_rows({"mean": kappa.mean(), "std": kappa.std()}, **common)


def other_set_rows(run: Run, kappa: np.ndarray) -> list[dict]:
    """Rows of the condition "other set", and the scores behind them; kappa: of the test set.

    The sets are those that count as out-of-distribution for the run. One that is not available has
    no rows.
    """
    rows = []
    arrays = {}
    for name in (*run.settings["ood_near"], *run.settings["ood_far"]):
        if name == run.settings["dataset"]:
            continue
        try:
            images = run.other(name)
        except FileNotFoundError:
            continue
        other = run.embed(images)["kappa"]
        arrays[f"kappa_{name}"] = other.astype(np.float32)
        rows += [row | {"evaluated_on": name} for row in _mean_and_std("other set", images, other)]
        rows += ood_rows_of_sets(
            {"uncertainty": -kappa},
            {"uncertainty": -other},
            draws=run.settings["bootstrap_draws"] // 4,
            names=("ood_auroc",),
            evaluated_on=name,
            condition="other set",
        )
    if arrays:
        scores = f"{run.settings['dataset']}_{OTHER_SETS}"
        store.write_scores(run.profile, run.name, scores, arrays)
    return rows


def _class_rows(run: Run, scores: pd.DataFrame) -> list[dict]:
    test = run.test()
    features = run.embed(test)["features"].astype(float)
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    directions = features / np.maximum(lengths, np.finfo(float).tiny)  # [N, D]
    rows = []
    for label, name in enumerate(test.classes):
        members = (scores.label == label).to_numpy()
        measured = {
            "within_class_cosine": _mean_pair_cosine(directions[members]),
            "neighbour_purity": scores.nearest_neighbour_correct[members].mean(),
            "median_kappa": scores.kappa[members].median(),
        }
        common = {"evaluated_on": test.title, "condition": f"class {name}", "n": members.sum()}
        rows += value_rows(measured, **common)
    return rows


def _mean_pair_cosine(directions: np.ndarray) -> float:
    """Mean cosine over all pairs of unit vectors [N, D]; NaN of fewer than two."""
    count = len(directions)
    if count < 2:
        return np.nan
    total = directions.sum(axis=0)
    return float((total @ total - count) / (count * (count - 1)))


def _over_classes(by_class: list[dict]) -> list[dict]:
    classes = pd.DataFrame(by_class).pivot_table("value", "condition", "metric", sort=False)
    classes = classes.dropna()
    rows = []
    for measure in ("within_class_cosine", "neighbour_purity"):
        row = metrics_row(
            "spearman",
            rank_correlation,
            classes.median_kappa.to_numpy(),
            classes[measure].to_numpy(),
            draws=1000,
            evaluated_on=by_class[0]["evaluated_on"],
            condition="over classes",
            score=measure,
        )
        rows.append(row)
    return rows


def _correctness_rows(run: Run, scores: pd.DataFrame) -> list[dict]:
    kappa = scores.kappa.to_numpy()
    rows = []
    for classifier in ("linear", "knn"):
        is_correct = scores[f"{classifier}_correct"].to_numpy(bool)
        correct = kappa[is_correct]
        wrong = kappa[~is_correct]
        if min(len(correct), len(wrong)) < 2 or not (np.ptp(correct) and np.ptp(wrong)):
            continue
        welch = stats.ttest_ind(correct, wrong, equal_var=False)
        difference = correct.mean() - wrong.mean()
        common = {
            "evaluated_on": run.test().title,
            "condition": "right against wrong",
            "classifier": classifier,
            "score": "kappa",
            "n": len(kappa),
        }
        values = {
            "welch_p": welch.pvalue,
            "mann_whitney_p": stats.mannwhitneyu(correct, wrong).pvalue,
            "cohens_d": difference / _pooled_deviation(correct, wrong),
        }
        rows += value_rows(values, **common)
        rows.append(common | _mean_difference(difference, welch))
    return rows


def _mean_difference(difference: float, test) -> dict:
    """Columns of a difference of means with the 95 % interval of its t-test by scipy."""
    low, high = test.confidence_interval(0.95)
    return {"metric": "mean_difference", "value": difference, "ci_low": low, "ci_high": high}


def _pooled_deviation(first: np.ndarray, second: np.ndarray) -> float:
    variances = [first.var(ddof=1), second.var(ddof=1)]
    return float(np.sqrt(np.average(variances, weights=[len(first) - 1, len(second) - 1])))


# -------------------------------------------------------------------------------- augmentations
def random_view(augmentation: str, seed: int, draw: int = 0, **strengths) -> Transform:
    """One random view of every image of a batch under one of AUGMENTATIONS.

    strengths: in place of those of the augmentation.

    Example:
        small_crops = random_view("random crop", seed=0, scale=(0.05, 0.2))(images)
    """
    strengths = views.recipe("simsiam") | IDENTITY | AUGMENTATIONS[augmentation] | strengths
    generator = torch.Generator()
    generator.manual_seed(training.seed_of(seed, f"31 {augmentation}", draw))

    def view(images: Tensor) -> Tensor:
        return views.augment(images, images.shape[-1], strengths, generator)

    return view


def fixed_crops(images: Tensor) -> dict[str, Tensor]:
    """Images [B, C, S, S] plain and cropped at each of PLACES, by the names of their stored κ."""
    crops = {"plain": images}
    for place, corner in PLACES.items():
        crops[f"{place} square"] = square_crop(*corner)(images)
    return crops


def measure_augmentation(run: Run) -> list[dict]:
    """κ of test images under one augmentation at a time (VI-SimSiam 2022, Fig. 8; 2023, Table 3).

    Each augmentation is drawn VIEWS_PER_AUGMENTATION times and κ averaged within an image. Scores
    ``<dataset>_augmented``: κ of the plain image, its mean and std ("<augmentation> within") over
    draws, and κ of a square crop at each of PLACES.

    - condition <augmentation>: mean; std over images and draws; std_ratio to the plain images;
      mean_difference, paired by image
    - condition "random crop against the others": mean_difference to the lowest of the others, plain
      images among them, and std_ratio to the widest
    - condition "centre against right": share_higher, of images whose centre has the higher κ
    - condition "<place> square": mean.
    """
    test = run.test()
    few = test.sample(run.settings["condition_images"])
    kappa = _augmented_kappa(run, few)
    rows = _augmentation_rows(kappa)
    higher = kappa["centre square"] > kappa["right square"]
    share = {"condition": "centre against right", "metric": "share_higher"}
    rows.append(share | with_interval(np.mean, higher, draws=run.settings["bootstrap_draws"]))
    rows += _crop_rows(kappa)
    for place in PLACES:
        condition = f"{place} square"
        rows.append({"condition": condition, "metric": "mean", "value": kappa[condition].mean()})
    common = {"evaluated_on": test.title, "score": "kappa", "n": len(few)}
    return [row | common for row in rows]


def _augmented_kappa(run: Run, images: ImageSet) -> Embedded:
    seed = run.settings["seed"]
    arrays = {
        "index": images.index.astype(np.int32),
        "label": images.labels.astype(np.int16),
        "plain": run.embed_unstored(images)["kappa"].astype(np.float32),
    }
    for augmentation in AUGMENTATIONS:
        draws = []
        for draw in range(VIEWS_PER_AUGMENTATION):
            view = random_view(augmentation, seed, draw)
            draws.append(run.embed_unstored(images, transform=view)["kappa"])
        arrays[augmentation] = np.mean(draws, axis=0).astype(np.float32)
        arrays[f"{augmentation} within"] = np.std(draws, axis=0).astype(np.float32)
    for place, corner in PLACES.items():
        kappa = run.embed_unstored(images, transform=square_crop(*corner))["kappa"]
        arrays[f"{place} square"] = kappa.astype(np.float32)
    store.write_scores(run.profile, run.name, f"{run.settings['dataset']}_augmented", arrays)
    return {name: values.astype(float) for name, values in arrays.items()}


def _augmentation_rows(kappa: Embedded) -> list[dict]:
    plain = kappa["plain"]
    rows = []
    for augmentation in ("plain", *AUGMENTATIONS):
        other = kappa[augmentation]
        moments = _moments(kappa, augmentation)
        values = {"mean": other.mean(), "std": _deviation(moments)}
        rows += value_rows(values, condition=augmentation)
        if np.allclose(other, plain, rtol=1e-5):
            continue  # nothing to test
        ratio = with_interval(_std_ratio, moments, _moments(kappa, "plain"), draws=500)
        rows.append({"condition": augmentation, "metric": "std_ratio"} | ratio)
        paired = stats.ttest_rel(other, plain)
        difference = _mean_difference((other - plain).mean(), paired)
        rows.append({"condition": augmentation} | difference)
    return rows


def _moments(kappa: Embedded, augmentation: str) -> np.ndarray:
    """Mean and standard deviation over the draws of each image, [N, 2]."""
    mean = kappa[augmentation]
    return np.stack([mean, kappa.get(f"{augmentation} within", np.zeros_like(mean))], axis=1)


def _deviation(moments: np.ndarray) -> float:
    """Standard deviation over all images and draws.

    The mean over an image's draws would narrow it, most where draws differ most.
    """
    mean, within = moments.T
    return np.sqrt(mean.var() + np.mean(within**2))


def relative_change(rows: pd.DataFrame) -> pd.DataFrame:
    """How much each augmentation changes the mean κ of a run, as a share of that of plain images.

    rows: of the part "augmentation", one run a dataset and seed. Returns the rows mean_difference
    under AUGMENTATIONS with value, ci_low and ci_high as shares: -0.1 is a tenth lower.
    """
    plain = rows[(rows.condition == "plain") & (rows.metric == "mean")]
    plain = plain[["dataset", "seed", "value"]].rename(columns={"value": "plain"})
    change = rows[(rows.metric == "mean_difference") & rows.condition.isin(AUGMENTATIONS)]
    change = change.merge(plain, on=["dataset", "seed"])
    columns = ["value", "ci_low", "ci_high"]
    change[columns] = change[columns].div(change.plain, axis=0)
    return change.drop(columns="plain")


def _crop_rows(kappa: Embedded) -> list[dict]:
    """The random crop against the lowest mean and the widest spread of the others."""

    crop = _moments(kappa, "random crop")
    others = [_moments(kappa, name) for name in ("plain", *AUGMENTATIONS) if name != "random crop"]
    rows = []
    for metric, statistic in (
        ("mean_difference", _difference_from_lowest),
        ("std_ratio", _std_ratio),
    ):
        row = {"condition": "random crop against the others", "metric": metric}
        rows.append(row | with_interval(statistic, crop, *others, draws=500))
    return rows


def _difference_from_lowest(crop: np.ndarray, *others: np.ndarray) -> float:
    return crop[:, 0].mean() - min(other[:, 0].mean() for other in others)


def _std_ratio(crop: np.ndarray, *others: np.ndarray) -> float:
    """Standard deviation over the largest of the others."""
    return _deviation(crop) / max(_deviation(other) for other in others)


# ------------------------------------------------------------------------------- data selection
def select(kappa: np.ndarray, labels: np.ndarray, share: float, rule: str, seed: int) -> np.ndarray:
    """Indices of the share of images that one of SELECTION_RULES keeps.

    kappa, labels: [N], labels from 0. A rule "in each class" keeps the same share of every class;
    "random, classes as highest κ" keeps random images, as many of each class as "highest κ". Ties
    in κ keep the order of the set. ValueError for another rule.

    Example:
        >>> select(np.array([3.0, 1.0, 2.0]), np.zeros(3, int), 1 / 3, "highest κ", seed=0)
        array([0])
    """
    if rule not in SELECTION_RULES:
        raise ValueError(f"Unknown rule {rule!r}; choose one of {SELECTION_RULES}.")
    kappa = checked_values(kappa, "kappa")
    labels = np.asarray(labels)
    if rule.startswith("random"):
        order = np.random.default_rng(seed).permutation(len(kappa))
    else:
        order = np.argsort(-kappa if rule.startswith("highest") else kappa, kind="stable")
    if rule == "random, classes as highest κ":
        kept = select(kappa, labels, share, "highest κ", seed)
        counts = np.bincount(labels[kept], minlength=labels.max() + 1)
    elif rule.endswith("in each class"):
        counts = [round(share * count) for count in np.bincount(labels)]
    else:
        return order[: round(share * len(kappa))]
    by_class = [order[labels[order] == label][:count] for label, count in enumerate(counts)]
    return np.concatenate(by_class)


def measure_selection(run: Run) -> list[dict]:
    """Linear probes on parts of the labelled images chosen by κ (VI-SimSiam 2023, §6.4).

    Condition "<rule> <share>": accuracy; largest_class_share and smallest_class_share of what was
    chosen; kappa_between_classes, the share of the variance of log κ between classes. Scores
    ``<dataset>_selection``: which test images each probe gets right.
    """
    bank = run.embed(run.bank)
    test = run.embed(run.test())
    arrays = {"index": np.arange(len(test["label"]), dtype=np.int32)}
    rows = []
    for share in SHARES:
        for rule in SELECTION_RULES:
            kept = select(bank["kappa"], bank["label"], share, rule, run.settings["seed"])
            probe = linear_probe(bank["features"][kept], bank["label"][kept])
            correct = probe.predict(test["features"]) == test["label"]
            arrays[f"{rule} {share:g}"] = correct
            common = {
                "evaluated_on": run.settings["dataset"],
                "condition": f"{rule} {share:g}",
                "classifier": "linear",
            }
            draws = run.settings["bootstrap_draws"]
            rows.append(metrics_row("accuracy", np.mean, correct, draws=draws, **common))
            described = _describe_selection(bank, kept, len(run.train.classes))
            rows += value_rows(described, n=len(kept), **common)
    store.write_scores(run.profile, run.name, f"{run.settings['dataset']}_selection", arrays)
    return rows


def _describe_selection(bank: Embedded, kept: np.ndarray, classes: int) -> dict[str, float]:
    labels = bank["label"][kept]
    shares = np.bincount(labels, minlength=classes) / len(kept)
    log_kappa = pd.Series(np.log(bank["kappa"][kept]))
    class_means = log_kappa.groupby(labels).transform("mean")
    return {
        "largest_class_share": shares.max(),
        "smallest_class_share": shares.min(),
        "kappa_between_classes": class_means.var() / log_kappa.var(),
    }


# ------------------------------------------------------------------------- cosine between views
def measure_cosine(run: Run) -> list[dict]:
    """The cosine of prediction and target between views, and the one that κ expects (2023, §4).

    Scores ``<dataset>_cosine`` [N]: cosine, the mean over COSINE_PAIRS pairs of views; expected,
    κ/(D - 1 + κ) of the same views (methods with κ only). Metrics rows: the means of both. A
    committed encoder has no predictor; of it the stored cosines are kept.
    """
    settings = run.settings
    name = f"{settings['dataset']}_cosine"
    is_whole = training.is_finished(run.profile, run.name, run.hash)
    stored = {} if is_whole else store.read_scores(run.profile, run.name, name)
    few = run.test().sample(settings["condition_images"])
    fitted = input_transform(settings, run.channels)
    recipe = views.recipe(settings["augmentation"])
    parts = []
    for start in range(0, len(few), COSINE_BATCH):
        indices = np.arange(start, min(start + COSINE_BATCH, len(few)))
        batch = fitted(few.batch(indices).float() / 255)
        generators = [_pair_generator(settings["seed"], start, i) for i in range(COSINE_PAIRS)]
        parts.append(theory.view_cosines(run.method, batch, recipe, generators, is_whole))
    arrays = stored | {"index": few.index.astype(np.int32)}
    for key in parts[0]:
        together = torch.cat([part[key] for part in parts])
        arrays[key] = together.numpy(force=True).astype(np.float32)
    store.write_scores(run.profile, run.name, name, arrays)
    common = {"evaluated_on": run.test().title, "condition": "random views", "n": len(few)}
    means = {}
    for key in ("cosine", "expected"):
        if key in arrays:
            means[key] = float(arrays[key].mean())
    return value_rows(means, **common)


def _pair_generator(seed: int, start: int, pair: int) -> torch.Generator:
    return torch.Generator().manual_seed(training.seed_of(seed, f"33 pair {start}", pair))
