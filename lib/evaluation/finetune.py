"""Fine-tuning a run's network: on a share of the labels (semi-supervised), and on other data sets.

Every method has the same effort: its learning rate is chosen from the profile's grid on a
validation part of train, by the run of seed 0.
"""

import math
from contextlib import closing, suppress
from copy import deepcopy
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import training
from lib.data import sets, sources, views
from lib.evaluation import probes, uncertainty
from lib.evaluation.embed import Embedded, embed_cached, embed_images
from lib.evaluation.measure import Run, check_classes
from lib.evaluation.suite import metrics_row, value_rows
from lib.runs import store
from lib.runs.settings import EVALUATION_VERSION

# Share of the steps in which the learning rate rises.
WARMUP = {"sgd": 0.0, "adamw": 0.1}
RATE_PREFIX = "learning_rate_"  # of column score in the rows of a search
# Names of the parts of the evaluation suite.
FEW_LABELS = "few_labels"
TRANSFER = "transfer"


# ------------------------------------------------------------------------------------ one network
def fine_tune(
    method: nn.Module,
    labelled: sets.ImageSet,
    test: sets.ImageSet,
    epochs: int,
    learning_rate: float,
    batch_size: int = 256,
    seed: int = 0,
    precision: str = "auto",
    progress_path: Path | None = None,
    optimizer: str = "sgd",
) -> np.ndarray:
    """Class probabilities of the test images, float64 [N, C], after training on ``labelled``.

    A copy of the whole network and a linear classifier on the features of ``method.embed``, zero at
    first, minimise the mean cross-entropy of one random crop and flip of every image an epoch
    (VI-SimSiam 2022, §6.2: all layers, batch 256). ``method`` itself is not changed. What
    pretraining keeps fixed, such as the positions of a vision transformer, is trained too.

    - optimizer "sgd": momentum 0.9, weight decay 1e-4 and a cosine schedule, as that paper
      pretrains (App. 9.1). It gives neither optimiser nor learning rate for fine-tuning.
    - optimizer "adamw", for transformers: weight decay 0.05, the rate rising over the first tenth
      of the steps.
    - An epoch is cut into equal batches of at most batch_size images, of three where two would
      leave one over. No image is dropped and no batch has one image.
    - Order, views and dropout follow from (seed, step) alone.

    Both image sets are uint8, of one size and with the same classes. progress_path: the file that
    lib.training.Progress writes. TrainingStopped if the loss is no longer finite.

    Example:
        probabilities = fine_tune(run.method, labelled, test, epochs=20, learning_rate=0.1)
        accuracy = np.mean(probabilities.argmax(1) == test.labels)
    """
    device = next(method.parameters()).device
    autocast = training.precision_of({"precision": precision}, device) == "bf16"
    network = deepcopy(method).requires_grad_(True)
    labelled = labelled.to(device)
    classifier = _zero_classifier(network, labelled)
    parameters = [*network.parameters(), *classifier.parameters()]
    torch_optimizer = _optimizer(optimizer, parameters, learning_rate)
    strengths = views.recipe("crop_and_flip")
    size = labelled.images.shape[1]
    labels = torch.from_numpy(labelled.labels).to(device)
    generator = torch.Generator()
    batches = []
    for epoch in range(epochs):
        batches += _batches_of_epoch(len(labelled), batch_size, seed, epoch)
    steps = len(batches)
    warmup = round(WARMUP[optimizer] * steps)
    progress = training.Progress(
        progress_path,
        f"fine-tune on {len(labelled):,}",
        steps,
        0,
        min(batch_size, len(labelled)),
        show=False,
    )
    network.train()
    with closing(progress):
        for step, rows in enumerate(batches):
            generator.manual_seed(training.seed_of(seed, "views", step))
            training.seed_noise(training.seed_of(seed, "method", step), device)
            images = views.augment(labelled.batch(rows), size, strengths, generator)
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                logits = classifier(network.embed(images).features)
            loss = F.cross_entropy(logits.float(), labels[rows.to(device)])
            if not math.isfinite(loss.item()):
                raise training.TrainingStopped(
                    f"Fine-tuning's loss is {loss.item()} at step {step}; "
                    f"lower learning_rate ({learning_rate:g})."
                )
            torch_optimizer.zero_grad(set_to_none=True)
            loss.backward()
            factor = training.learning_rate_factor(step, steps, warmup, "cosine")
            torch_optimizer.param_groups[0]["lr"] = learning_rate * factor
            torch_optimizer.step()
            progress.update(step + 1, round(loss.item(), 4))
    features = torch.as_tensor(embed_images(network, test)["features"], device=device)
    with torch.no_grad():
        return torch.softmax(classifier(features).double(), dim=1).cpu().numpy()


def _batches_of_epoch(count: int, batch_size: int, seed: int, epoch: int) -> tuple[Tensor, ...]:
    """The rows of each batch: equal batches of at most batch_size images, none of one image."""
    batches = min(math.ceil(count / batch_size), count // 2)
    generator = torch.Generator().manual_seed(training.seed_of(seed, "order", epoch))
    return torch.randperm(count, generator=generator).tensor_split(batches)


def _zero_classifier(network: nn.Module, images: sets.ImageSet) -> nn.Linear:
    """A linear layer from the network's features to the classes of images, all zero."""
    with torch.no_grad():
        features = network.eval().embed(images.batch([0]).float() / 255).features
    classifier = nn.Linear(features.shape[1], len(images.classes), device=features.device)
    nn.init.zeros_(classifier.weight)
    nn.init.zeros_(classifier.bias)
    return classifier


def _optimizer(name: str, parameters: list[Tensor], learning_rate: float) -> torch.optim.Optimizer:
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=learning_rate, momentum=0.9, weight_decay=1e-4)
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.05)


def fine_tuned_probabilities(
    run: Run, labelled: sets.ImageSet, test: sets.ImageSet, epochs: int, learning_rate: float
) -> np.ndarray:
    """``fine_tune`` of a run's network: probabilities [N, C] in float32, stored with the run."""
    folder = store.run_dir(run.profile, run.name)
    optimizer = run.settings["fine_tune_optimizer"]

    def compute() -> Embedded:
        probabilities = fine_tune(
            run.method,
            labelled,
            test,
            epochs,
            learning_rate,
            seed=run.settings["seed"],
            precision=run.settings["precision"],
            progress_path=folder / "progress.json",
            optimizer=optimizer,
        )
        return {"label": test.labels, "probabilities": probabilities.astype(np.float32)}

    condition = f"fine_tuned_{len(labelled)}_e{epochs}_lr{learning_rate:g}"
    path = folder / "embeddings" / f"{test.name}-{test.split}-{len(test)}-{condition}.npz"
    key = {
        "run": run.hash,
        "labelled": labelled.checksum,
        "data": test.checksum,
        "epochs": epochs,
        "learning_rate": learning_rate,
        "optimizer": optimizer,
        "version": EVALUATION_VERSION,
    }
    return embed_cached(path, key, compute)["probabilities"]


# --------------------------------------------------------------------------------- learning rates
def search_learning_rate(
    run: Run, images: sets.ImageSet, epochs: int, share: float = 1.0
) -> dict[float, float]:
    """Validation accuracy by learning rate of the profile's grid, for a share of the labels.

    One search a method: its run of seed 0, a quarter of the epochs, labels from ``images`` without
    their validation part, accuracy on that part. The test set is never seen. A rate with which the
    loss is no longer finite has accuracy 0. A grid of one rate is not searched: NaN.
    """
    rates = run.settings["fine_tune_learning_rates"]
    if len(rates) == 1:
        return {rates[0]: np.nan}
    if run.settings["seed"] != 0:
        run = Run(run.settings | {"seed": 0})
    train_rows, validation_rows = sets.train_validation_split(images.labels)
    labelled_rows = train_rows[sets.label_subset(images.labels[train_rows], share)]
    labelled = images.subset(labelled_rows)
    validation = images.subset(validation_rows)
    accuracies = dict.fromkeys(rates, 0.0)
    for rate in rates:
        with suppress(training.TrainingStopped):
            probabilities = fine_tuned_probabilities(
                run, labelled, validation, max(1, epochs // 4), rate
            )
            accuracies[rate] = float(np.mean(probabilities.argmax(1) == validation.labels))
    return accuracies


def _rate_of_seed_0(run: Run, part: str, condition: str) -> float | None:
    """The learning rate that the run of seed 0 chose, where it is stored and in today's grid."""
    if run.settings["seed"] == 0:
        return None
    first = Run(run.settings | {"seed": 0})
    rows = store.read_metrics(run.profile, part, first.name)
    rows = rows[(rows.metric == "learning_rate") & (rows.condition == condition)]
    chosen = set(rows.value[rows.run_hash == first.hash])
    in_grid = chosen & set(run.settings["fine_tune_learning_rates"])
    return in_grid.pop() if in_grid else None


def _best_rate(accuracies: dict[float, float]) -> float:
    return max(accuracies, key=accuracies.get)


def rate_searches(metrics: pd.DataFrame) -> pd.DataFrame:
    """The stored searches of measure_few_labels: validation accuracy in per cent.

    One row a search (trained_on, condition, method) and one column a rate, NaN where a method's
    grid lacks it. Empty where nothing was searched.
    """
    rows = metrics[metrics.condition.str.endswith("_validation")]
    if rows.empty:
        return pd.DataFrame()
    rates = rows.score.str.removeprefix(RATE_PREFIX).astype(float)
    rows = rows.assign(learning_rate=rates, percent=100 * rows.value)
    table = rows.pivot_table(
        index=["trained_on", "condition", "method"],
        columns="learning_rate",
        values="percent",
        sort=False,
    )
    return table.sort_index(axis=1)


def end_of_grid(search: pd.Series) -> str:
    """Which end of its grid the best rate of a search is at: "lowest", "highest" or "" (neither).

    search: accuracy by rate, in rising order of rates, NaN where a rate was not tried.
    """
    tried = search.dropna()
    best = tried.idxmax()
    if best == tried.index[-1]:
        return "highest"
    if best == tried.index[0]:
        return "lowest"
    return ""


# ----------------------------------------------------------------------------------------- of a run
def measure_few_labels(run: Run) -> list[dict]:
    """Metrics rows of one run that is fine-tuned and probed with each share of the labels.

    Every method sees the same labelled images for the same seed, those of a smaller share among
    those of a larger one. Classifiers: fine_tuned (all layers; not for a method without weights),
    and on frozen features linear and knn (k = 20).

    - Rows of condition "labels_<share>": accuracy with its 95 % bootstrap interval over test
      images, nll and ece of fine_tuned and linear, labelled_images, and for fine_tuned epochs and
      learning_rate.
    - Rows of "labels_<share>_validation", for seed 0: the search of the learning rate.
    - Scores "<classifier>_<share>" [N]: which test images are classified correctly.
    """
    settings = run.settings
    draws = settings["bootstrap_draws"]
    test = run.test()
    rows = []
    scores = {
        "index": np.arange(len(test), dtype=np.int32),
        "label": test.labels.astype(np.int16),
    }
    for share, epochs in zip(
        settings["fine_tune_shares"], settings["fine_tune_epochs"], strict=True
    ):
        common = {"condition": f"labels_{share:g}", "evaluated_on": test.title, "n": len(test)}
        labelled = run.train.subset(sets.label_subset(run.train.labels, share, settings["seed"]))
        rows.append(common | {"metric": "labelled_images", "value": len(labelled)})
        neighbours, linear = _frozen_classifiers(run, labelled, test, common["condition"])
        probabilities = {"linear": linear}
        if settings["method"] != "raw_pixels":  # which have no weights to fine-tune
            rate = _rate_of_seed_0(run, FEW_LABELS, common["condition"])
            if rate is None:
                search = search_learning_rate(run, run.train, epochs, share)
                rate = _best_rate(search)
                if settings["seed"] == 0 and len(search) > 1:
                    rows += _search_rows(run, share, search)
            probabilities["fine_tuned"] = fine_tuned_probabilities(
                run, labelled, test, epochs, rate
            )
            tuned = common | {"classifier": "fine_tuned"}
            rows += value_rows({"epochs": epochs, "learning_rate": rate}, **tuned)
        predictions = {"knn": neighbours}
        for classifier, values in probabilities.items():
            predictions[classifier] = values.argmax(1)
            calibration = _calibration(values, test.labels)
            rows += value_rows(calibration, classifier=classifier, **common)
        for classifier, predicted in predictions.items():
            correct = predicted == test.labels
            columns = common | {"classifier": classifier}
            rows.append(metrics_row("accuracy", np.mean, correct, draws=draws, **columns))
            scores[f"{classifier}_{share:g}"] = correct
    store.write_scores(run.profile, run.name, f"{settings['dataset']}_few_labels", scores)
    return rows


def _frozen_classifiers(
    run: Run, labelled: sets.ImageSet, test: sets.ImageSet, condition: str
) -> tuple[np.ndarray, np.ndarray]:
    """On frozen features: classes [N] by k-NN and probabilities [N, C] of the linear probe."""
    train = run.embed(labelled, condition)
    test_x = run.embed(test)["features"]
    k = min(probes.NEAREST, len(labelled))
    neighbours, _ = probes.knn_predict(train["features"], train["label"], test_x, k=k)
    probe = probes.linear_probe(train["features"], train["label"])
    return neighbours, probe.probabilities(test_x)


def _search_rows(run: Run, share: float, search: dict[float, float]) -> list[dict]:
    common = {
        "condition": f"labels_{share:g}_validation",
        "evaluated_on": run.train.name,
        "classifier": "fine_tuned",
        "metric": "accuracy",
    }
    rows = []
    for rate, accuracy in search.items():
        rows.append(common | {"score": f"{RATE_PREFIX}{rate:g}", "value": accuracy})
    return rows


def _calibration(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """nll and ece of class probabilities [N, C].

    They are stored in float32. A probability that was rounded to 0 counts as the smallest float32,
    so that nll is finite.
    """
    probabilities = np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).tiny)
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    return {
        "nll": uncertainty.nll_per_image(probabilities, labels).mean(),
        "ece": uncertainty.confidence_calibration_error(confidence, correct),
    }


def measure_transfer(run: Run, dataset: str) -> list[dict]:
    """Metrics rows of a run that is fine-tuned on another set and tested there (ProSMin, §11.1).

    ``transfer_images`` of train (sample), ``transfer_epochs`` epochs. The learning rate is chosen
    on a validation part of those images, by the run of seed 0. Rows of evaluated_on that set:
    accuracy with its 95 % bootstrap interval, nll, ece, images, epochs and learning_rate. Scores
    ``<dataset>_transfer``: which test images are classified correctly.
    """
    settings = run.settings
    size = settings["image_size"]
    train = sets.with_channels(sources.load(dataset, "train", image_size=size), run.channels)
    test = sets.with_channels(sources.load(dataset, "test", image_size=size), run.channels)
    check_classes(train, test)
    labelled = train.sample(settings["transfer_images"])
    epochs = settings["transfer_epochs"]
    rate = _rate_of_seed_0(run, f"{TRANSFER}-{dataset}", "transfer")
    if rate is None:
        rate = _best_rate(search_learning_rate(run, labelled, epochs))
    probabilities = fine_tuned_probabilities(run, labelled, test, epochs, rate)
    correct = probabilities.argmax(1) == test.labels
    common = {
        "condition": "transfer",
        "evaluated_on": test.title,
        "classifier": "fine_tuned",
        "n": len(test),
    }
    effort = {"images": len(labelled), "epochs": epochs, "learning_rate": rate}
    rows = [
        metrics_row("accuracy", np.mean, correct, draws=settings["bootstrap_draws"], **common),
        *value_rows(_calibration(probabilities, test.labels), **common),
        *value_rows(effort, **common),
    ]
    scores = {"index": np.arange(len(test), dtype=np.int32), "fine_tuned_correct": correct}
    store.write_scores(run.profile, run.name, f"{dataset}_transfer", scores)
    return rows
