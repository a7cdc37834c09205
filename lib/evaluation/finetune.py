"""Fine-tuning a run's network: on a share of the labels (semi-supervised, low-shot) and on other sets (transfer)."""

import math
from collections.abc import Iterable
from contextlib import closing, suppress
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F

from lib.data import sets as image_sets
from lib.data import sources as data
from lib.data import views as augmentations
from lib.evaluation import probes as evaluation
from lib.evaluation import uncertainty
from lib.evaluation.measure import Run
from lib.runs import settings as resolution
from lib.runs import store as artifacts
from lib.training import loop as training

# Each optimiser with the share of the steps in which its learning rate rises.
FINE_TUNING = {
    "sgd": (partial(torch.optim.SGD, momentum=0.9, weight_decay=1e-4), 0.0),
    "adamw": (partial(torch.optim.AdamW, weight_decay=0.05), 0.1),
}


def fine_tune(
    method: nn.Module,
    labelled: data.ImageSet,
    test: data.ImageSet,
    epochs: int,
    learning_rate: float,
    batch_size: int = 256,
    seed: int = 0,
    precision: str = "auto",
    progress_path: Path | None = None,
    optimizer: str = "sgd",
) -> np.ndarray:
    """Class probabilities in float64 [N, C] of the images of `test`, after a copy of the whole network learned from `labelled`.

    A linear classifier, zero at first, on `method.embed`'s features; mean cross-entropy of one random crop and flip of every image an epoch
    (VI-SimSiam 2022, §6.2: all layers, batch 256). SGD with momentum 0.9, weight decay 1e-4 and a cosine schedule, as that paper pretrains
    (App. 9.1); it gives neither optimiser nor learning rate for fine-tuning. With `optimizer` "adamw", for transformers, AdamW with weight decay
    0.05, its rate rising over the first tenth of the steps. `method` itself is left as it is. Both image sets are uint8 of one size and with the
    same classes. An epoch is cut into equal batches of at most batch_size (of three images where two would leave one over): no image is dropped, no
    batch is a rest of one. What a network keeps fixed in pretraining, as a vit its positions, learns too. Order, views and
    dropout follow from (seed, step) alone. progress_path: the file that lib.training.loop.Progress writes.

    Raises ValueError for input that cannot work, and TrainingStopped if the loss is no longer finite.
    """
    if next(method.parameters(), None) is None:
        raise ValueError(
            f"{type(method).__name__} has no weights to fine-tune; train linear_probe on its features."
        )
    if len(labelled) < 2 or list(labelled.classes) != list(test.classes):
        raise ValueError(
            f"labelled must be at least 2 images of the {len(test.classes)} classes of {test.title}, got {labelled.title}."
        )
    if epochs < 1 or not 0 < learning_rate < math.inf or batch_size < 2:
        raise ValueError(
            f"epochs, learning_rate and batch_size must be >= 1, > 0 and >= 2, got {epochs}, {learning_rate}, {batch_size}."
        )
    if optimizer not in FINE_TUNING:
        raise ValueError(f"optimizer is {optimizer!r}; choose from {list(FINE_TUNING)}.")
    device = next(method.parameters()).device
    autocast = training.precision_of({"precision": precision}, device) == "bf16"
    network, labelled = deepcopy(method).requires_grad_(True), labelled.to(device)
    with torch.no_grad():
        dimension = network.eval().embed(labelled.batch([0]).float() / 255).features.shape[1]
    classifier = nn.Linear(dimension, len(labelled.classes), device=device)
    nn.init.zeros_(classifier.weight), nn.init.zeros_(classifier.bias)
    create, rising = FINE_TUNING[optimizer]
    optimizer = create([*network.parameters(), *classifier.parameters()], lr=learning_rate)

    strengths, generator = augmentations.recipe("crop_and_flip"), torch.Generator()
    labels, size = torch.from_numpy(labelled.labels).to(device), labelled.images.shape[1]
    batches = min(-(-len(labelled) // batch_size), len(labelled) // 2)
    steps, step = epochs * batches, 0
    warmup = round(rising * steps)
    network.train()
    with closing(
        training.Progress(
            progress_path,
            f"fine-tune on {len(labelled):,}",
            steps,
            0,
            min(batch_size, len(labelled)),
            False,
        )
    ) as progress:
        for epoch in range(epochs):
            order = torch.randperm(
                len(labelled),
                generator=generator.manual_seed(training.seed_of(seed, "order", epoch)),
            )
            for rows in order.tensor_split(batches):
                generator.manual_seed(training.seed_of(seed, "views", step))
                torch.manual_seed(training.seed_of(seed, "method", step))
                views = augmentations.augment(labelled.batch(rows), size, strengths, generator)
                with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                    logits = classifier(network.embed(views).features)
                loss = F.cross_entropy(logits.float(), labels[rows.to(device)])
                if not math.isfinite(loss.item()):
                    raise training.TrainingStopped(
                        f"Fine-tuning's loss is {loss.item()} at step {step}; lower learning_rate ({learning_rate:g})."
                    )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.param_groups[0]["lr"] = learning_rate * training.learning_rate_factor(
                    step, steps, warmup, "cosine"
                )
                optimizer.step()
                step += 1
                progress.update(step, round(loss.item(), 4))
    features = torch.as_tensor(evaluation.embed(network, test)["features"], device=device)
    with torch.no_grad():
        return torch.softmax(classifier(features).double(), dim=1).cpu().numpy()


def fine_tuned(
    run: Run, labelled: data.ImageSet, test: data.ImageSet, epochs: int, learning_rate: float
) -> evaluation.Embedded:
    """Label [N] and class probabilities [N, C] of ``test`` after fine-tuning a copy of the run's network; stored with the run."""
    folder = artifacts.run_dir(run.profile, run.name)

    def compute():
        found = fine_tune(
            run.method,
            labelled,
            test,
            epochs,
            learning_rate,
            seed=run.settings["seed"],
            precision=run.settings["precision"],
            progress_path=folder / "progress.json",
            optimizer=run.settings["fine_tune_optimizer"],
        )
        return {"label": test.labels, "probabilities": found.astype(np.float32)}

    path = (
        folder
        / "embeddings"
        / f"{test.name}-{test.split}-{len(test)}-fine_tuned_{len(labelled)}_e{epochs}_lr{learning_rate:g}.npz"
    )
    key = {
        "run": run.hash,
        "labelled": labelled.checksum,
        "data": test.checksum,
        "epochs": epochs,
        "learning_rate": learning_rate,
    }
    key |= {
        "optimizer": run.settings["fine_tune_optimizer"],
        "version": resolution.EVALUATION_VERSION,
    }
    return evaluation.embed_cached(path, key, compute)


def search_rate(
    run: Run, images: data.ImageSet, epochs: int, share: float = 1.0
) -> dict[float, float]:
    """Validation accuracy of every learning rate of the profile's grid for fine-tuning on ``share`` of the labels, the same effort for all.

    One search a method: its seed-0 run, a quarter of the epochs, labels from ``images`` without their validation part, judged on that part. The
    test set is never seen. A rate with which the loss is no longer finite gets no image right: 0. A grid of one rate is not searched: NaN.
    """
    rates = run.settings["fine_tune_learning_rates"]
    if len(rates) == 1:
        return {rates[0]: np.nan}
    run = Run(run.settings | {"seed": 0}) if run.settings["seed"] else run
    fitted, held_out = data.train_validation_split(images.labels)
    labelled, held_out = (
        images.subset(fitted[data.label_subset(images.labels[fitted], share)]),
        images.subset(held_out),
    )
    found = dict.fromkeys(rates, 0.0)
    for rate in rates:
        with suppress(training.TrainingStopped):
            table = fine_tuned(run, labelled, held_out, max(1, epochs // 4), rate)
            found[rate] = float(np.mean(table["probabilities"].argmax(1) == table["label"]))
    return found


def stored_search(run: Run, notebook: str, share: float) -> dict[float, float]:
    """What ``search_rate`` found by the run of seed 0, if that run and this grid are what was searched; else empty. It needs no weights."""
    rows = _rows_of_seed_0(run, notebook, "accuracy")
    rows = rows[rows.condition == f"labels_{share:g}_validation"]
    found = dict(
        zip(rows.score.str.removeprefix("learning_rate_").astype(float), rows.value, strict=True)
    )
    return found if set(found) == set(run.settings["fine_tune_learning_rates"]) else {}


def _rows_of_seed_0(run: Run, notebook: str, metric: str) -> pd.DataFrame:
    """The rows of one metric that a notebook stored of the same run with seed 0, as its settings are today."""
    first = Run(run.settings | {"seed": 0})
    rows = artifacts.read_metrics(run.profile, notebook, first.name)
    return rows[(rows.metric == metric) & (rows.run_hash == first.hash)]


def end_of_grid(search: pd.Series) -> str:
    """Whether the best rate of a search (rate -> accuracy, NaN where not tried) is the "lowest" or the "highest" that was tried; else ""."""
    tried = search.dropna()
    return {tried.index[0]: "lowest", tried.index[-1]: "highest"}.get(tried.idxmax(), "")


def searched_rates(metrics: pd.DataFrame, profile: str) -> tuple[pd.DataFrame, str]:
    """The stored searches of fine-tuning's learning rate, and in words which ended at an end of the grid: validation accuracy in per cent, one row
    a search (trained_on, condition, method), one column a rate; empty where nothing was searched."""
    search = metrics[metrics.condition.str.endswith("_validation")]
    if search.empty:
        rates = resolution.profile_settings(profile)["fine_tune_learning_rates"]
        return pd.DataFrame(), f"This profile takes the rate {rates[0]:g} as given." if len(
            rates
        ) == 1 else "No stored search."
    search = search.assign(
        learning_rate=search.score.str.removeprefix("learning_rate_").astype(float),
        percent=100 * search.value,
    )
    table = search.pivot_table(
        index=["trained_on", "condition", "method"],
        columns="learning_rate",
        values="percent",
        sort=False,
    ).sort_index(axis=1)
    ends = {}  # methods may have grids of their own
    for (dataset, share, method), row in table.iterrows():
        if end := end_of_grid(row):
            ends.setdefault(end, []).append(f"{method} ({dataset}, {share.split('_')[1]})")
    named = "; ".join(f"the {end} for {', '.join(searches)}" for end, searches in ends.items())
    count = f"The best rate lies at an end of the grid for {sum(map(len, ends.values()))} of {len(table)} searches"
    return (
        table,
        f"{count} ({named}): there a wider grid might find more, which would help those methods alone."
        if named
        else f"{count}.",
    )


def transfer_rates_at_an_end(metrics: pd.DataFrame, runs: Iterable[dict]) -> str:
    """In words, which of the rates that a search chose for transfer lie at an end of the method's grid: of it the choice alone is stored."""
    grids = {run["method"]: run["fine_tune_learning_rates"] for run in runs}
    chosen = (
        metrics[metrics.metric == "learning_rate"]
        .groupby(["evaluated_on", "method"])
        .value.unique()
    )
    chosen = {key: rates for key, rates in chosen.items() if len(grids[key[1]]) > 1}
    if not chosen:
        return "For transfer no rate was searched."
    named = {
        key: f"{key[1]} ({key[0]}, {' and '.join(f'{rate:g}' for rate in rates)})"
        for key, rates in chosen.items()
    }
    ends = [
        named[key]
        for key, rates in chosen.items()
        if {min(grids[key[1]]), max(grids[key[1]])} & set(rates)
    ]
    apart = [named[key] for key, rates in chosen.items() if len(rates) > 1]
    return (
        f"For transfer {len(ends)} of {len(chosen)} searches chose a rate at an end of their grid{': ' * bool(ends)}{', '.join(ends)}."
        + f" Seeds of one method have rates of their own: {', '.join(apart)}." * bool(apart)
    )


def measure_few_labels(run: Run, notebook: str) -> pd.DataFrame:
    """Fine-tune and probe one run with each share of the labels, write metrics and per-image correctness, and return the metrics rows.

    Every method sees the same labelled images for the same seed, those of a smaller share among those of a larger one. Classifiers: fine_tuned
    (all layers; not for a method without weights), and on frozen features linear and knn (k = 20). Rows of condition "labels_<share>" hold the
    accuracy with its 95 % bootstrap interval over test images, nll and ece of the first two, the number of labelled images, epochs and learning
    rate; of "labels_<share>_validation", for seed 0, the search of the learning rate. Scores "<classifier>_<share>" [N] say which test images are
    right.
    """
    settings, test = run.settings, run.test()
    whole = run.embed(test)
    scores, rows = (
        {"index": np.arange(len(test), dtype=np.int32), "label": test.labels.astype(np.int16)},
        [],
    )
    for share, epochs in zip(
        settings["fine_tune_shares"], settings["fine_tune_epochs"], strict=True
    ):
        common = {"condition": f"labels_{share:g}", "evaluated_on": test.title, "n": len(test)}
        labelled = run.train.subset(data.label_subset(run.train.labels, share, settings["seed"]))
        few = run.embed(labelled, common["condition"])
        probabilities = {
            "linear": evaluation.linear_probe(few["features"], few["label"]).probabilities(
                whole["features"]
            )
        }
        predictions = {
            "knn": evaluation.knn_predict(
                few["features"],
                few["label"],
                whole["features"],
                k=min(evaluation.NEAREST, len(labelled)),
            )[0]
        }
        rows.append(common | {"metric": "labelled_images", "value": len(labelled)})
        if settings["method"] != "raw_pixels":
            known = stored_search(run, notebook, share) if settings["seed"] else {}
            search = known or search_rate(run, run.train, epochs, share)
            rate = max(search, key=search.get)
            probabilities["fine_tuned"] = fine_tuned(run, labelled, test, epochs, rate)[
                "probabilities"
            ]
            used = {"epochs": epochs, "learning_rate": rate}
            rows += [
                common | {"classifier": "fine_tuned", "metric": name, "value": value}
                for name, value in used.items()
            ]
            tried = {
                "condition": f"labels_{share:g}_validation",
                "evaluated_on": run.train.name,
                "classifier": "fine_tuned",
                "metric": "accuracy",
            }
            if settings["seed"] == 0 and len(search) > 1:
                rows += [
                    tried | {"score": f"learning_rate_{rate:g}", "value": value}
                    for rate, value in search.items()
                ]
        for classifier, shares in probabilities.items():
            calibration = _calibration(shares, test.labels).items()
            rows += [
                common | {"classifier": classifier, "metric": name, "value": value}
                for name, value in calibration
            ]
        for classifier, prediction in (
            predictions | {name: shares.argmax(1) for name, shares in probabilities.items()}
        ).items():
            right = scores[f"{classifier}_{share:g}"] = prediction == test.labels
            accuracy = evaluation.with_interval(
                np.mean, right.astype(float), draws=settings["bootstrap_draws"]
            )
            rows.append(common | {"classifier": classifier, "metric": "accuracy"} | accuracy)
    artifacts.write_scores(run.profile, run.name, f"{settings['dataset']}_few_labels", scores)
    return run.write_metrics(rows, notebook)


def _calibration(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """nll and ece of class probabilities [N, C], stored in float32: what that rounds to 0 counts as its smallest number, so that nll is finite."""
    probabilities = np.maximum(probabilities.astype(np.float64), np.finfo(np.float32).tiny)
    measured = {
        "nll": uncertainty.negative_log_likelihood,
        "ece": uncertainty.expected_calibration_error,
    }
    return {name: measure(probabilities, labels) for name, measure in measured.items()}


def measure_transfer(run: Run, dataset: str, notebook: str) -> pd.DataFrame:
    """Fine-tune a run on another set and test it there (ProSMin, §11.1), write metrics and per-image correctness, and return the metrics rows.

    ``transfer_images`` of train (sample), ``transfer_epochs`` epochs; the learning rate is chosen on a validation part of those images, by the
    run of seed 0. Rows of evaluated_on that set: accuracy with its 95 % bootstrap interval, nll, ece, images, epochs and learning rate.
    """
    settings, size = run.settings, run.settings["image_size"]
    train, test = (
        image_sets.with_channels(data.load(dataset, split, image_size=size), run.channels)
        for split in ("train", "test")
    )
    labelled = train.sample(settings["transfer_images"])
    epochs = settings["transfer_epochs"]
    chosen = (
        _rows_of_seed_0(run, f"{notebook}-{dataset}", "learning_rate").value
        if settings["seed"]
        else []
    )
    if set(chosen) & set(settings["fine_tune_learning_rates"]):
        (rate,) = chosen
    else:
        search = search_rate(run, labelled, epochs)
        rate = max(search, key=search.get)
    probabilities = fine_tuned(run, labelled, test, epochs, rate)["probabilities"]
    right = probabilities.argmax(1) == test.labels
    common = {
        "condition": "transfer",
        "evaluated_on": test.title,
        "classifier": "fine_tuned",
        "n": len(test),
    }
    rows = [
        common
        | {"metric": "accuracy"}
        | evaluation.with_interval(np.mean, right.astype(float), draws=settings["bootstrap_draws"])
    ]
    values = _calibration(probabilities, test.labels) | {
        "images": len(labelled),
        "epochs": epochs,
        "learning_rate": rate,
    }
    rows += [common | {"metric": name, "value": value} for name, value in values.items()]
    artifacts.write_scores(
        run.profile,
        run.name,
        f"{dataset}_transfer",
        {"index": np.arange(len(test), dtype=np.int32), "fine_tuned_correct": right},
    )
    return run.write_metrics(rows, notebook, dataset)
