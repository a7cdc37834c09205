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
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
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
# data set, image size, width, stem, recipe of views, steps that are timed in one repeat, bars of
# the ratios a/b and a/c
CASES = {
    "fashion_mnist-w16": ("fashion_mnist", 28, 16, "stride2", "simsiam_small", 10, 0.9, 3.2),
    "fashion_mnist-w64": ("fashion_mnist", 28, 64, "stride2", "simsiam_small", 3, 0.9, 2.5),
    "cifar10-w16": ("cifar10", 32, 16, "stride2", "simsiam_small", 10, 0.9, 3.2),
    "cifar10-w64": ("cifar10", 32, 64, "stride2", "simsiam_small", 3, 0.9, 2.5),
    "imagenette-w16": ("imagenette", 96, 16, "imagenet", "simsiam", 4, 0.8, 2.5),
    "imagenette-w64": ("imagenette", 96, 64, "imagenet", "simsiam", 2, 0.8, 2.5),
    "cifar10-w64-small": ("cifar10", 32, 64, "small", "simsiam_small", 1, 0.9, 2.5),
    "cifar10-w16-small": ("cifar10", 32, 16, "small", "simsiam_small", 4, 0.9, 2.5),
}


# Floating-point operations a second that the makers give for dense bf16, without sparsity.
DENSE_BF16_PEAK = {"H200": 989.5e12, "H100": 989.5e12, "A100": 312e12, "L4": 121e12}


class Case:
    """One row of CASES with its images.

    every arm is a method that returns images per second of one repeat.
    """

    def __init__(self, name: str):
        dataset, size, width, stem, augmentation, self.steps, self.bar_b, self.bar_c = CASES[name]
        self.name = name
        self.size = size
        self.recipe = augmentations.RECIPES[augmentation]
        self.images = load(dataset, size)
        self.settings = resolution.resolve(
            "simsiam",
            "standard",
            dataset=dataset,
            image_size=size,
            width=width,
            stem=stem,
            augmentation=augmentation,
            batch_size=BATCH,
            epochs=1,
        )
        self.device = training.best_device()
        self.precision = training.precision_of(self.settings, self.device)
        self.channels = self.images.images.shape[3]

    def network(self) -> nn.Module:
        return methods.build(self.settings, self.channels).to(self.device).train()

    def views(self) -> list[torch.Tensor]:
        batch = self.images.batch(np.arange(BATCH)).to(self.device)
        return augmentations.make_views(batch, self.settings, torch.Generator().manual_seed(0))

    # --------------------------------------------------------------- arms
    def ours(self) -> float:
        """(a)"""
        return end_to_end(self.settings, self.images, self.steps)

    def bare(self, compiled: bool = False) -> Callable[[], float]:
        """(b)"""
        network = self.network()
        optimizer = optim.make_optimizer(network, self.settings)
        stacked = torch.cat(self.views())
        forward = torch.compile(network, dynamic=False) if compiled else network

        def step() -> None:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                z, p = forward(stacked)
                loss = (
                    losses.simsiam_loss(p[:BATCH], z[BATCH:])
                    + losses.simsiam_loss(p[BATCH:], z[:BATCH])
                ) / 2
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        step()
        return lambda: BATCH / measuring.seconds_per_call(step, self.steps, warm=1)

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
            with torch.autocast(self.device.type, torch.bfloat16, enabled=bf16):
                z0, p0 = network(first)
                z1, p1 = network(second)
                loss = 0.5 * (criterion(z0.detach(), p1) + criterion(z1.detach(), p0))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

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
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                loss = network.loss(list(stacked.chunk(2)))["loss"]
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        return self._loop(Tensors(self.images, transform), step)

    def _loop(self, dataset: Dataset, step: Callable) -> float:
        """Images per second of a DataLoader's steady state."""
        buffered = BUFFERED if self.steps > 3 else 2
        steps = self.steps + buffered
        repeated = torch.utils.data.Subset(
            dataset, (np.arange(steps * BATCH) % len(self.images)).tolist()
        )
        loader = DataLoader(repeated, BATCH, shuffle=True, drop_last=True, num_workers=WORKERS)
        start = 0.0
        for number, (views, _) in enumerate(loader, start=1):
            step(views)
            if number == buffered:
                measuring.synchronise()
                start = time.perf_counter()
        measuring.synchronise()
        return self.steps * BATCH / (time.perf_counter() - start)

    # --------------------------------------------------------------- beside the arms
    def flops_per_image(self) -> float:
        """Floating-point operations of forward and backward pass for the two views of one image."""
        network = self.network()
        stacked = torch.cat([view[:8] for view in self.views()])
        with FlopCounterMode(display=False) as counter:
            z, p = network(stacked)
            losses.simsiam_loss(p, z).backward()
        return counter.get_total_flops() / 8

    def shares(self) -> dict[str, float]:
        """Seconds of one step by what is done, each timed alone."""
        network = self.network()
        views = self.views()
        generator = torch.Generator()
        optimizer = optim.make_optimizer(network, self.settings)
        batch = self.images.batch(np.arange(BATCH))
        rows = np.random.default_rng(0).integers(0, len(self.images), BATCH)
        draws = augmentations.draw(2 * BATCH, self.size, self.size, self.recipe, generator)
        chosen = torch.arange(BATCH).repeat(2)

        def forward():
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                return network.loss(views)["loss"]

        calls = max(2, self.steps)
        timed = {
            "fetch the batch": measuring.seconds_per_call(lambda: self.images.batch(rows), calls),
            "draw parameters": measuring.seconds_per_call(
                lambda: augmentations.draw(2 * BATCH, self.size, self.size, self.recipe, generator),
                calls,
            ),
            "make the views": measuring.seconds_per_call(
                lambda: augmentations.render(batch.to(self.device), chosen, draws, self.size), calls
            ),
            "forward": measuring.seconds_per_call(forward, calls),
        }
        both = measuring.seconds_per_call(lambda: forward().backward(), calls)
        return timed | {
            "backward": both - timed["forward"],
            "optimiser": measuring.seconds_per_call(optimizer.step, calls),
        }


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
        return self.transform(Image.fromarray(self.images.images[index].squeeze())), int(
            self.images.labels[index]
        )


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
        drawn = data.generated("shapes", 3000, size)
        grey = drawn.images[..., :1] if dataset in ("mnist", "fashion_mnist") else drawn.images
        return dataclasses.replace(drawn, name=f"drawn in place of {dataset}", images=grey)


def measure(name: str, repeats: int, compiled: bool) -> tuple[list[dict], list[dict]]:
    """Rows of the table of speeds and of the table of shares for one case."""
    case = Case(name)
    rate = measuring.matmul_rate(
        case.device, torch.bfloat16 if case.precision == "bf16" else torch.float32
    )
    arms = {
        "a": case.ours,
        "b": case.bare(),
        "c": lambda: case.lightly(bf16=False),
        "c, bf16": lambda: case.lightly(bf16=True),
        "d": case.torchvision,
    }
    if compiled:
        arms["b, compiled"] = case.bare(compiled=True)
    case.ours()  # compiles the views, fills caches
    timings = measuring.interleaved(arms, repeats, name)
    flops = case.flops_per_image()
    common = {
        "case": name,
        "data": case.images.title,
        "image_size": case.size,
        "width": case.settings["width"],
        "stem": case.settings["stem"],
    }
    rows = []
    for arm, values in timings.groupby("arm", sort=False).value:
        speed = measuring.summary(values)
        rows.append(common | {"quantity": "images/s", "arm": arm, "bar": np.nan, **speed})
        rows.append(
            common
            | {
                "quantity": "share of the matrix-multiply rate",
                "arm": arm,
                "bar": 0.65 if (arm, case.settings["width"]) == ("b", 64) else np.nan,
                **{key: speed[key] * flops / rate for key in ("median", "low", "high")},
                "repeats": repeats,
            }
        )
    bars = {"b": case.bar_b, "c": case.bar_c}
    rows += [
        common
        | {
            "quantity": f"ratio a / {arm}",
            "arm": arm,
            "bar": bars.get(arm, np.nan),
            **measuring.paired_ratio(timings, "a", arm),
        }
        for arm in arms
        if arm != "a"
    ]
    rows.append(
        common | {"quantity": "matrix-multiply rate, TFLOP/s", "arm": "", "median": rate / 1e12}
    )
    if case.device.type == "cuda":
        peak = next(
            (
                most
                for card, most in DENSE_BF16_PEAK.items()
                if card in torch.cuda.get_device_name()
            ),
            np.nan,
        )
        speed = measuring.summary(timings[timings.arm == "a"].value)
        used = {key: speed[key] * flops / peak for key in ("median", "low", "high")}
        rows.append(
            common
            | {
                "quantity": "model FLOP utilisation",
                "arm": "a",
                "bar": 0.25,
                **used,
                "repeats": repeats,
            }
        )
        rows.append(
            common
            | {
                "quantity": "peak memory, GiB",
                "arm": "a",
                "median": torch.cuda.max_memory_allocated() / 2**30,
            }
        )
    shares = [
        common | {"part": part, "milliseconds": 1e3 * seconds}
        for part, seconds in case.shares().items()
    ]
    return rows, shares


def run(cases: list[str], repeats: int) -> None:
    """Measure the cases one after the other.

    what is measured is written at once, and other cases' rows stay.
    """
    for name in cases:
        with measuring.scratch_results():
            rows, shares = measure(
                name, repeats, compiled=bool(shutil.which("g++")) and name == "cifar10-w16"
            )
        measuring.replace_rows("pretraining", rows, case=name)
        measuring.replace_rows("pretraining_shares", shares, case=name)
