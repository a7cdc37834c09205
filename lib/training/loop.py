"""The one training loop of all methods: views, loss, backward, step, target, log.

Every random number of a step is a function of (seed, step) alone, so a run resumed from any
checkpoint equals the uninterrupted run.

    python -m lib.training NAME --profile standard
    torchrun --nproc-per-node 4 -m lib.training NAME --profile standard

The second command shares each batch among four processes. Noise drawn inside a loss then differs,
and on CPUs batch norm uses the statistics of each process's part of the batch.
"""

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn

from lib import methods
from lib.data.sets import ImageSet
from lib.data.views import view_kinds
from lib.runs import store
from lib.runs.settings import run_hash, run_name, trained_with
from lib.training import health
from lib.training.batches import Batches, steps_per_epoch, training_images
from lib.training.checkpoints import (
    is_finished,
    load_checkpoint,
    save_checkpoint,
    with_classes,
)
from lib.training.devices import (
    Processes,
    best_device,
    denormals_as_zero,
    join_processes,
    precision_of,
)
from lib.training.optim import learning_rate_factor, make_optimizer, set_rates
from lib.training.progress import Progress
from lib.training.seeds import seed_noise, seed_of

CHECKPOINT_SECONDS = 30
LOGS_PER_EPOCH = 5
LOG_ROWS = 120  # the most rows of a whole log, but never fewer than one per epoch


# ------------------------------------------------------------------------------------ a whole run
def train(
    settings: dict,
    images: ImageSet | None = None,
    show_progress: bool = False,
    compiled: bool | None = None,
) -> Path:
    """Train one run to its end and return its folder.

    A finished run is left as it is. An interrupted one continues from its checkpoint.

    settings: from ``lib.runs.settings.resolve``. images: those to train on, by default those that
    the settings name. compiled: whether torch.compile builds the loss for its shape; by default on
    a GPU. On a CPU it needs a C++ compiler and a minute, and saves about 5 %.

    Under torchrun every process calls this function. Each takes an equal part of every batch,
    gradients are averaged, and the first process writes the files. On GPUs batch norm uses the
    statistics of the whole batch.

    Raises ValueError before any training for settings or data that cannot work, and TrainingStopped
    if a number is not finite or the outputs collapse.

    Example:
        settings = resolve("vi_simsiam", "smoke", epochs=2)
        folder = train(settings)
    """
    if images is None:
        images = training_images(settings)
    folder = store.run_dir(settings["profile"], run_name(settings))
    identity = run_hash(settings, images.checksum)
    if is_finished(settings["profile"], run_name(settings), identity):
        return folder

    check_trainable(settings, images)
    processes = join_processes()
    check_shares(settings["batch_size"], processes.count)
    precision = precision_of(settings, processes.device)
    network_settings = with_classes(settings, len(images.classes))
    method = methods.build(network_settings, channels=images.images.shape[3])
    method = processes.synchronise_batch_norm(method.to(processes.device).train())

    training = None
    if settings["epochs"]:
        if compiled is None:
            compiled = processes.device.type == "cuda"
        training = Training(method, images, settings, processes, precision, compiled=compiled)
        training.resume(folder, identity)
        training.health_row()  # refuses an answer of embed that cannot be measured

    # Written only after all checks. It does not replace the configuration of an earlier run of
    # this name, whose weights are still there.
    config = _config(settings, images, method, precision, processes.count)
    if processes.is_first and not (folder / "model.safetensors").exists():
        store.write_json(folder / "config.json", config | {"finished": False})
    if training:
        training.run(show_progress)
    if processes.is_first:
        _store(folder, config, method, training)
    processes.wait()
    return folder


def check_trainable(settings: dict, images: ImageSet) -> None:
    """ValueError for settings that cannot be followed on these images."""
    if settings["epochs"]:
        steps_per_epoch(images, settings["batch_size"])
    view_kinds(settings)
    learning_rate_factor(0, 1, warmup=0, schedule=settings["schedule"])


def check_shares(batch_size: int, processes: int) -> None:
    """ValueError if the batch cannot be shared equally, or leaves each process one image."""
    if batch_size % processes:
        raise ValueError(
            f"batch_size {batch_size} cannot be shared equally by {processes} processes; "
            "start a divisor of it."
        )
    if processes > 1 and batch_size < 2 * processes:
        raise ValueError(
            f"batch_size {batch_size} leaves each of {processes} processes one image, which has "
            "no spread; start fewer processes."
        )


def _config(
    settings: dict, images: ImageSet, method: nn.Module, precision: str, processes: int
) -> dict:
    """What config.json says of a run."""
    return {
        "run": run_name(settings),
        "run_hash": run_hash(settings, images.checksum),
        "settings": trained_with(with_classes(settings, len(images.classes))),
        "precision": precision,
        "data": {
            "title": images.title,
            "checksum": images.checksum,
            "images": len(images),
            "source": images.source,
        },
        "parameters": sum(parameter.numel() for parameter in method.parameters()),
        "threads": torch.get_num_threads(),
        "processes": processes,
        **store.provenance(),
    }


def _store(folder: Path, config: dict, method: nn.Module, training: "Training | None") -> None:
    """Write log, configuration and weights; the weights last, as they mark a run as finished."""
    log = pd.DataFrame(columns=["step", "epoch", "loss"])
    seconds = 0.0
    speed = None
    if training:
        log = pd.DataFrame(training.log)
        seconds = training.seconds
        speed = round(training.steps * training.batch_size / seconds, 1)
    finished = {"finished": True, "seconds": round(seconds, 1), "images_per_second": speed}
    info = {"run": config["run"], "run_hash": config["run_hash"]}

    store.write_csv(folder / "log.csv", log, digits=5)
    store.write_json(folder / "config.json", config | finished)
    store.write_tensors(folder / "model.safetensors", method.state_dict(), info)
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)


def first_steps(
    method: nn.Module, images: ImageSet, settings: dict, steps: int
) -> Iterator[dict[str, float]]:
    """Train ``method`` for a few steps as ``train`` would; yields the terms of each step's loss.

    Nothing is stored. It is for measurements along a short training, and for methods that no recipe
    has, such as one with a part removed. The learning rate and the target's momentum end their
    schedules with the last step. Warm-ups and weight decay count whole epochs.

    Example:
        for terms in first_steps(methods.build(settings), images, settings, steps=20):
            print(terms["loss"])
    """
    epochs = -(-steps // steps_per_epoch(images, settings["batch_size"]))
    device = best_device()
    training = Training(
        method.to(device).train(),
        images,
        settings | {"epochs": epochs},
        Processes(device),
        precision_of(settings, device),
        steps=steps,
    )
    for step, (views, labels) in enumerate(training.batches.from_step(0)):
        terms = training.step(views, labels, step)
        yield {name: float(value) for name, value in terms.items()}


# --------------------------------------------------------------------------------------- the loop
class Training:
    """One run under way: the method, its optimiser, its images, and how far it is.

    steps: the length of the run, by default all epochs. done, log and seconds: steps done, rows of
    the log and time spent so far, over all sittings.
    """

    def __init__(
        self,
        method: nn.Module,
        images: ImageSet,
        settings: dict,
        processes: Processes,
        precision: str,
        steps: int | None = None,
        compiled: bool = False,
    ):
        self.method = method
        self.images = images.to(processes.device)
        self.settings = settings
        self.processes = processes
        self.device = processes.device
        self.precision = precision
        self.name = run_name(settings)

        self.batch_size = settings["batch_size"]
        self.epochs = settings["epochs"]
        self.steps_per_epoch = steps_per_epoch(images, self.batch_size)
        self.steps = self.epochs * self.steps_per_epoch if steps is None else steps
        self.warmup_steps = round(settings["warmup_epochs"] * self.steps_per_epoch)
        self.batches = Batches(self.images, settings, processes, self.steps)

        self.optimizer = make_optimizer(method, settings)
        if compiled:
            method.loss = torch.compile(method.loss, dynamic=False)
        self.wrapped = processes.wrap(method)

        self.folder = Path()
        self.identity = ""
        self.done = 0
        self.log: list[dict[str, float]] = []
        self.seconds = 0.0

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    def resume(self, folder: Path, identity: str) -> None:
        """Keep files in ``folder``, and continue from its checkpoint if that is of this run.

        identity: the run's hash. A checkpoint in another precision, from another machine, is not
        continued: half of the run would be in one and half in the other.
        """
        self.folder = folder
        self.identity = identity
        if not self.checkpoint.exists():
            return
        info = store.read_tensors_info(self.checkpoint)
        same_run = info.get("run_hash") == identity
        same_precision = info.get("precision", self.precision) == self.precision
        if same_run and same_precision:
            info = load_checkpoint(self.checkpoint, self.method, self.optimizer)
            self.done = info["step"]
            self.log = info["log"]
            self.seconds = info["seconds"]

    def run(self, show_progress: bool = False) -> None:
        """Train to the last step, with log, checkpoints and progress."""
        progress_path = self.folder / "progress.json" if self.processes.is_first else None
        progress = Progress(
            progress_path,
            self.name,
            self.steps,
            self.done,
            self.batch_size,
            show_progress and self.processes.is_first,
        )
        started = time.perf_counter() - self.seconds
        saved = time.perf_counter()
        terms = []  # of the steps since the last row of the log
        loss = None
        with closing(progress), denormals_as_zero():
            for views, labels in self.batches.from_step(self.done):
                terms.append(self.step(views, labels, self.done))
                self.done += 1
                if self.is_logged(self.done):
                    self.seconds = time.perf_counter() - started
                    row = self.log_row(self.mean_terms(terms))
                    self.log.append(row)
                    terms = []
                    loss = round(row["loss"], 4)
                    if time.perf_counter() - saved > CHECKPOINT_SECONDS:
                        self.save()
                        saved = time.perf_counter()
                progress.update(self.done, loss)
        self.seconds = time.perf_counter() - started

    def step(self, views: list[Tensor], labels: Tensor, step: int) -> dict[str, Tensor]:
        """One step of the optimiser; returns the named terms of its loss, without gradients."""
        epoch = step / self.steps_per_epoch
        rank = self.processes.rank
        purpose = f"method of process {rank}" if rank else "method"
        seed_noise(seed_of(self.settings["seed"], purpose, step), self.device)
        if hasattr(self.method, "set_epoch"):
            self.method.set_epoch(epoch)

        terms = self.loss_terms(views, labels)
        self.optimizer.zero_grad(set_to_none=True)
        terms["loss"].backward()
        if self.settings["clip_norm"]:
            nn.utils.clip_grad_norm_(self.method.parameters(), self.settings["clip_norm"])
        set_rates(self.optimizer, self.settings, self.rate_factor(step), epoch / self.epochs)
        self.optimizer.step()
        if hasattr(self.method, "update_target"):
            self.method.update_target((step + 1) / self.steps)
        return {name: value.detach() for name, value in terms.items()}

    def loss_terms(self, views: list[Tensor], labels: Tensor) -> dict[str, Tensor]:
        """The method's loss and its other named terms; ValueError if they are no scalars."""
        takes_labels = getattr(self.method, "takes_labels", False)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            terms = self.wrapped.loss(views, labels) if takes_labels else self.wrapped.loss(views)
        wanted = (
            f"{self.settings['method']}: loss must return named scalar terms, one of them 'loss'"
        )
        if not isinstance(terms, dict):
            raise ValueError(f"{wanted}, got {type(terms).__name__}.")
        shapes = {name: tuple(value.shape) for name, value in terms.items()}
        if "loss" not in terms or any(shapes.values()):
            raise ValueError(f"{wanted}, got {shapes}.")
        return terms

    def rate_factor(self, step: int) -> float:
        return learning_rate_factor(step, self.steps, self.warmup_steps, self.settings["schedule"])

    def is_logged(self, done: int) -> bool:
        """Whether the log has a row after ``done`` steps."""
        rows = max(1, min(LOGS_PER_EPOCH, self.steps_per_epoch, LOG_ROWS // self.epochs))
        return done * rows // self.steps_per_epoch > (done - 1) * rows // self.steps_per_epoch

    def mean_terms(self, terms: list[dict[str, Tensor]]) -> dict[str, float]:
        """The mean of every term over steps and processes.

        Only here, and in the guards and the health of an epoch, does the loop wait for the device.
        """
        means = []
        for name in terms[0]:
            values = torch.stack([step_terms[name].float() for step_terms in terms])
            means.append(values.mean())
        means = self.processes.mean(torch.stack(means))
        return dict(zip(terms[0], means.tolist(), strict=True))

    def log_row(self, terms: dict[str, float]) -> dict[str, float]:
        """A row of the log; TrainingStopped if the training has diverged or collapsed."""
        health.check_finite(terms, self.method, self.name, self.done, self.checkpoint)
        if self.done >= self.steps_per_epoch:
            health.check_collapse(terms, self.name, self.done)
        row = {
            "step": self.done,
            "epoch": self.done / self.steps_per_epoch,
            "seconds": round(self.seconds, 2),
            "learning_rate": self.settings["learning_rate"] * self.rate_factor(self.done - 1),
        }
        row |= terms
        if self.done % self.steps_per_epoch == 0 and self.processes.is_first:
            row |= self.health_row()
        return row

    def health_row(self) -> dict[str, float]:
        """The log's statistics of the features; TrainingStopped where they are not finite."""
        image_size = self.settings["image_size"]
        embedding = health.embed_health_images(self.method, self.images, image_size)
        health.check_embedding(embedding, self.name, self.done, self.checkpoint)
        row = health.feature_health(embedding.features)
        epoch = self.done // self.steps_per_epoch
        if "kappa" in embedding.native and health.logs_kappa(epoch, self.epochs):
            row |= health.kappa_health(self.method, self.images, image_size)
        return row

    def save(self) -> None:
        """Write a checkpoint, unless the run is at its end."""
        if not self.processes.is_first or self.done == self.steps:
            return
        info = {
            "run_hash": self.identity,
            "precision": self.precision,
            "step": self.done,
            "log": self.log,
            "seconds": self.seconds,
        }
        save_checkpoint(self.checkpoint, self.method, self.optimizer, info)
