"""Images per second of pretraining with SimSiam.

(a) our loop, (b) the bare network, (c) lightly's documented loop, (d) a careful plain one.

(a) lib.training.train from images in memory to updated weights, log and progress included. (b)
forward, backward and optimiser step of the same network on views that lie ready, and nothing else.
(c) a DataLoader with one worker a core, lightly's transform and default collate, two forward
passes, its loss, float32; (c, bf16) the same under autocast. (d) torchvision's transforms (v2) on
tensors in the same workers, both views in one forward pass, bf16, channels last. All use the same
network, recipe of views, batch size and optimiser. Images per second count each image once,
although two views of it pass the network.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from lightly.loss import NegativeCosineSimilarity
from lightly.transforms import SimSiamTransform
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchvision.transforms import v2

from lib import losses, methods, training
from lib.data import sources as data
from lib.data import views as augmentations
from lib.runs import settings as resolution
from lib.training import loop, optim
from tests.benchmarks import measuring

BATCH = 256
WORKERS = os.cpu_count() or 1
# Batches that workers may have ready before the clock starts; fewer where a step takes seconds.
BUFFERED = 6
SMALL = {"image_size": 32, "stem": "stride2", "augmentation": "simsiam_small"}
LARGE = {"image_size": 96, "stem": "imagenet", "augmentation": "simsiam"}
CASES = {
    "fashion_mnist-w16": SMALL | {"dataset": "fashion_mnist", "image_size": 28, "width": 16},
    "fashion_mnist-w64": SMALL | {"dataset": "fashion_mnist", "image_size": 28, "width": 64},
    "cifar10-w16": SMALL | {"dataset": "cifar10", "width": 16},
    "cifar10-w64": SMALL | {"dataset": "cifar10", "width": 64},
    "imagenette-w16": LARGE | {"dataset": "imagenette", "width": 16},
    "imagenette-w64": LARGE | {"dataset": "imagenette", "width": 64},
}
STEPS = {16: 10, 64: 3}  # timed in one repeat, by the width


class Case:
    """One of CASES with its images; every arm returns images per second of one repeat."""

    def __init__(self, name: str):
        self.settings = resolution.resolve(
            "simsiam", "standard", batch_size=BATCH, epochs=1, **CASES[name]
        )
        self.size = self.settings["image_size"]
        self.steps = STEPS[self.settings["width"]]
        self.recipe = augmentations.RECIPES[self.settings["augmentation"]]
        self.images = load(self.settings["dataset"], self.size)
        self.channels = self.images.images.shape[3]
        self.device = training.best_device()
        self.is_bf16 = training.precision_of(self.settings, self.device) == "bf16"

    def autocast(self, enabled: bool) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def network(self) -> nn.Module:
        return methods.build(self.settings, self.channels).to(self.device).train()

    def views(self) -> list[torch.Tensor]:
        batch = self.images.batch(np.arange(BATCH)).to(self.device)
        return augmentations.make_views(batch, self.settings, torch.Generator().manual_seed(0))

    # --------------------------------------------------------------- arms
    def ours(self) -> float:
        """(a)"""
        return end_to_end(self.settings, self.images, self.steps)

    def bare(self) -> Callable[[], float]:
        """(b)"""
        network = self.network()
        optimizer = optim.make_optimizer(network, self.settings)
        stacked = torch.cat(self.views())

        def step() -> None:
            with self.autocast(self.is_bf16):
                z, p = network(stacked)
                first = losses.simsiam_loss(p[:BATCH], z[BATCH:])
                second = losses.simsiam_loss(p[BATCH:], z[:BATCH])
            measuring.update(optimizer, (first + second) / 2)

        return lambda: BATCH / measuring.seconds_per_call(step, self.steps)

    def lightly(self, bf16: bool) -> float:
        """(c)"""
        plain = {"mean": [0.0] * self.channels, "std": [1.0] * self.channels}
        transform = SimSiamTransform(
            self.size,
            min_scale=self.recipe["scale"][0],
            gaussian_blur=self.recipe["blur"],
            sigmas=self.recipe["sigma"],
            normalize=plain,
        )
        network = self.network().to(memory_format=torch.contiguous_format)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.06)
        criterion = NegativeCosineSimilarity()

        def step(views: list[torch.Tensor]) -> None:
            first, second = (view.to(self.device) for view in views)
            with self.autocast(bf16):
                z0, p0 = network(first)
                z1, p1 = network(second)
                loss = 0.5 * (criterion(z0.detach(), p1) + criterion(z1.detach(), p0))
            measuring.update(optimizer, loss)

        return self._loop(Pictures(self.images, transform), step)

    def torchvision(self) -> float:
        """(d)"""
        parts = [self.recipe[name] for name in ("brightness", "contrast", "saturation", "hue")]
        steps = [
            v2.RandomResizedCrop(self.size, self.recipe["scale"], antialias=True),
            v2.RandomHorizontalFlip(self.recipe["flip"]),
            v2.RandomApply([v2.ColorJitter(*parts)], self.recipe["jitter"]),
            v2.RandomGrayscale(self.recipe["grey"]),
            v2.RandomApply([v2.GaussianBlur(9, self.recipe["sigma"])], self.recipe["blur"]),
            v2.ToDtype(torch.float32, scale=True),
        ]
        transform = v2.Compose(steps)
        network = self.network()
        optimizer = optim.make_optimizer(network, self.settings)

        def step(views: list[torch.Tensor]) -> None:
            stacked = torch.cat(views).to(self.device).contiguous(memory_format=torch.channels_last)
            with self.autocast(self.is_bf16):
                loss = network.loss(list(stacked.chunk(2)))["loss"]
            measuring.update(optimizer, loss)

        return self._loop(Tensors(self.images, transform), step)

    def _loop(self, dataset: Dataset, step: Callable) -> float:
        """Images per second of a DataLoader's steady state."""
        buffered = BUFFERED if self.steps > 3 else 2
        places = np.arange((self.steps + buffered) * BATCH) % len(self.images)
        repeated = Subset(dataset, places.tolist())
        loader = DataLoader(repeated, BATCH, shuffle=True, drop_last=True, num_workers=WORKERS)
        start = 0.0
        for number, (views, _) in enumerate(loader, start=1):
            step(views)
            if number == buffered:
                measuring.synchronise()
                start = time.perf_counter()
        measuring.synchronise()
        return self.steps * BATCH / (time.perf_counter() - start)

    def shares(self) -> dict[str, float]:
        """Seconds of each part of a step, timed alone."""
        network = self.network()
        views = self.views()
        generator = torch.Generator()
        optimizer = optim.make_optimizer(network, self.settings)
        batch = self.images.batch(np.arange(BATCH))
        rows = np.random.default_rng(0).integers(0, len(self.images), BATCH)
        draws = augmentations.draw(2 * BATCH, self.size, self.size, self.recipe, generator)
        chosen = torch.arange(BATCH).repeat(2)

        def forward():
            with self.autocast(self.is_bf16):
                return network.loss(views)["loss"]

        def draw():
            augmentations.draw(2 * BATCH, self.size, self.size, self.recipe, generator)

        def render():
            augmentations.render(batch.to(self.device), chosen, draws, self.size)

        parts = {
            "fetch the batch": lambda: self.images.batch(rows),
            "draw parameters": draw,
            "make the views": render,
            "forward": forward,
            "backward": lambda: forward().backward(),
            "optimiser": optimizer.step,
        }
        seconds = {}
        for name, part in parts.items():
            seconds[name] = measuring.seconds_per_call(part, self.steps)
        seconds["backward"] -= seconds["forward"]
        return seconds


def end_to_end(settings: dict, images: data.ImageSet, steps: int) -> float:
    """Images per second of our loop, from the first to the last row of the log of a real run.

    Start, compilation and the writing of weights do not count.
    """
    batch = settings["batch_size"]
    steps = steps + max(1, (steps + 1) // loop.LOGS_PER_EPOCH)
    few = dataclasses.replace(
        images.subset(np.arange(steps * batch) % len(images)),
        name=f"{images.name}_{time.time_ns()}",
    )
    folder = training.train(settings | {"dataset": few.name}, few)
    log = pd.read_csv(folder / "log.csv")
    shutil.rmtree(folder)
    first = log.iloc[0]
    last = log.iloc[-1]
    return (last.step - first.step) * batch / (last.seconds - first.seconds)


class Pictures(Dataset):
    """PIL images, as torchvision's data sets hand them to a transform."""

    def __init__(self, images: data.ImageSet, transform: Callable):
        self.images = images
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int):
        image = Image.fromarray(self.images.images[index].squeeze())
        return self.transform(image), int(self.images.labels[index])


class Tensors(Pictures):
    """uint8 tensors, two views each."""

    def __getitem__(self, index: int):
        image = torch.from_numpy(self.images.images[index].copy()).permute(2, 0, 1)
        return [self.transform(image), self.transform(image)], int(self.images.labels[index])


def load(dataset: str, size: int) -> data.ImageSet:
    """The named set, or drawn images of its shape where it is not at hand.

    What the pixels show does not change the time.
    """
    try:
        return data.load(dataset, "train", image_size=size, download=False)
    except (FileNotFoundError, ValueError):
        drawn = data.generated(3000, size)
        grey = drawn.images[..., :1] if dataset in ("mnist", "fashion_mnist") else drawn.images
        return dataclasses.replace(drawn, name=f"drawn in place of {dataset}", images=grey)


def run(name: str, repeats: int) -> None:
    """Measure one case and write it at once; other cases' rows stay."""
    case = Case(name)
    arms = {
        "a": case.ours,
        "b": case.bare(),
        "c": lambda: case.lightly(bf16=False),
        "c, bf16": lambda: case.lightly(bf16=True),
        "d": case.torchvision,
    }
    with measuring.scratch_results():
        case.ours()  # compiles the views, fills caches
        timings = measuring.interleaved(arms, repeats, name)
    common = {"case": name, "data": case.images.title}
    common |= {key: case.settings[key] for key in ("image_size", "width", "stem")}
    aims = {"b": 0.9, "c": 2.5}
    if case.size == LARGE["image_size"]:
        aims["b"] = 0.8
    elif case.settings["width"] == 16:
        aims["c"] = 3.2
    speeds = measuring.speeds_and_ratios(timings, "images/s", common, aims)
    shares = []
    for part, seconds in case.shares().items():
        shares.append(common | {"part": part, "milliseconds": 1e3 * seconds})
    measuring.replace_rows("pretraining", speeds, case=name)
    measuring.replace_rows("pretraining_shares", shares, case=name)
