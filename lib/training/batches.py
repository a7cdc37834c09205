"""The images of a run, and the batches of views and labels that its steps see."""

from collections.abc import Iterator
from contextlib import nullcontext
from itertools import tee

import torch
from torch import Tensor

from lib.data import sources
from lib.data.sets import ImageSet, batches, train_validation_split
from lib.data.views import make_views
from lib.networks import own_rows
from lib.training.devices import Processes
from lib.training.seeds import seed_of


def training_images(settings: dict) -> ImageSet:
    """The images a run trains on.

    All of train, or with split "fit" train without its validation part; of these ``train_images``,
    if that is not 0.
    """
    images = sources.load(settings["dataset"], "train", image_size=settings["image_size"])
    if settings["split"] == "fit":
        fit, _ = train_validation_split(images.labels)
        images = images.subset(fit)
    elif settings["split"] != "train":
        raise ValueError(
            f"Unknown split {settings['split']!r}; a run trains on 'train' or on 'fit' "
            "(train without validation)."
        )
    if settings["train_images"]:
        images = images.sample(settings["train_images"])
    return images


def steps_per_epoch(images: ImageSet, batch_size: int) -> int:
    """Whole batches in an epoch; ValueError if there is none."""
    if len(images) < batch_size:
        raise ValueError(
            f"{images.title} has {len(images)} images, fewer than one batch of {batch_size}: give "
            "more images, or a smaller batch_size for this set in settings/profiles.toml, "
            f"[<profile>.datasets.{images.name}]."
        )
    return len(images) // batch_size


class Batches:
    """Views and labels of every step of a run: this process's part of each batch.

    images: on the device of the processes. steps: the length of the run.
    """

    def __init__(self, images: ImageSet, settings: dict, processes: Processes, steps: int):
        self.images = images
        self.labels = torch.from_numpy(images.labels)
        self.settings = settings
        self.processes = processes
        self.steps = steps
        self.steps_per_epoch = steps_per_epoch(images, settings["batch_size"])

    def from_step(self, first_step: int) -> Iterator[tuple[list[Tensor], Tensor]]:
        """(views, labels) of ``first_step`` and all later steps, each made one step ahead."""
        return one_ahead(self._make(first_step), self.processes.device)

    def _make(self, first_step: int) -> Iterator[tuple[list[Tensor], Tensor]]:
        generator = torch.Generator()
        of_images, of_labels = tee(self._indices(first_step))
        image_batches = batches(self.images, of_images)
        step = first_step
        for images, indices in zip(image_batches, of_labels, strict=True):
            generator.manual_seed(seed_of(self.settings["seed"], "views", step))
            views = make_views(
                images, self.settings, generator, self.processes.rank, self.processes.count
            )
            yield views, self.labels[indices].to(self.processes.device, non_blocking=True)
            step += 1

    def _indices(self, first_step: int) -> Iterator[Tensor]:
        """Which images each step sees; every epoch goes through all of them in a new order."""
        batch_size = self.settings["batch_size"]
        rows = own_rows(batch_size // self.processes.count)
        generator = torch.Generator()
        order = None
        for step in range(first_step, self.steps):
            epoch, place = divmod(step, self.steps_per_epoch)
            if order is None or place == 0:
                generator.manual_seed(seed_of(self.settings["seed"], "order", epoch))
                order = torch.randperm(len(self.images), generator=generator)
            start = place * batch_size
            yield order[start : start + batch_size][rows]


def one_ahead(
    batches: Iterator[tuple[list[Tensor], Tensor]], device: torch.device
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """The same views and labels, each batch begun before the one before it is handed out.

    On a GPU they are computed on a stream of their own, beside the work on the one handed out.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    if stream:
        # The images may still be on their way to the device.
        stream.wait_stream(torch.cuda.current_stream(device))

    def begin():
        with torch.cuda.stream(stream) if stream else nullcontext():
            batch = next(batches, None)
            return batch, stream.record_event() if stream else None

    batch, ready = begin()
    while batch is not None:
        following, following_ready = begin()
        if stream:
            _hand_over(batch, ready, torch.cuda.current_stream(device))
        yield batch
        batch = following
        ready = following_ready


def _hand_over(batch, ready: torch.cuda.Event, stream: torch.cuda.Stream) -> None:
    """Let ``stream`` use a batch that was computed on another stream."""
    views, labels = batch
    stream.wait_event(ready)
    for tensor in (*views, labels):
        tensor.record_stream(stream)
