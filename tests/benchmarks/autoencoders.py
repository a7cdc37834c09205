"""Views per second of SimVAE's training.

(a) our loop, from images in memory to updated weights, and (b) its bare networks.

(b) is forward and backward pass of encoder and decoder, and the optimiser's step, on views that lie
ready, with the sum of the outputs as a loss. A batch is so many images of J views; the paper's is
128 views.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from lib import methods, training
from lib.data import views as augmentations
from lib.runs import settings as resolution
from lib.training import optim
from tests.benchmarks import measuring, pretraining

# data set, images in a batch, views J, precision, steps that are timed in one repeat
CASES = {
    "mnist-b12": ("mnist", 12, 10, "auto", 100),
    "mnist-b128": ("mnist", 128, 10, "auto", 15),
    "mnist-b256": ("mnist", 256, 10, "auto", 10),
    "mnist-b128-float32": ("mnist", 128, 10, "float32", 10),
    "cifar10-b64": ("cifar10", 64, 2, "auto", 10),
}
BAR = 0.8


class Case:
    def __init__(self, name: str):
        dataset, batch, views, precision, self.steps = CASES[name]
        self.settings = resolution.resolve(
            "simvae",
            "standard",
            dataset=dataset,
            batch_size=batch,
            views=views,
            precision=precision,
            epochs=1,
        )
        self.images = pretraining.load(dataset, self.settings["image_size"])
        self.channels = self.images.images.shape[3]
        self.device = training.best_device()
        self.precision = training.precision_of(self.settings, self.device)
        self.views = batch * views

    def ours(self) -> float:
        """(a)"""
        return self.settings["views"] * pretraining.end_to_end(
            self.settings, self.images, self.steps
        )

    def bare(self) -> Callable[[], float]:
        """(b)"""
        network = methods.build(self.settings, self.channels).to(self.device).train()
        optimizer = optim.make_optimizer(network, self.settings)
        batch = self.images.batch(range(self.settings["batch_size"])).to(self.device)
        x = torch.cat(
            augmentations.make_views(batch, self.settings, torch.Generator().manual_seed(0))
        )  # [J B, C, S, S]

        def step() -> None:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                mean, _ = network.posterior(network.backbone(x)).chunk(2, dim=1)
                outputs = network.decoder(mean)
            optimizer.zero_grad(set_to_none=True)
            outputs.sum().backward()
            optimizer.step()

        return lambda: self.views / measuring.seconds_per_call(step, self.steps, warm=1)


def run(repeats: int) -> None:
    """Measure all cases; what is measured is written at once."""
    for name in CASES:
        case = Case(name)
        with measuring.scratch_results():
            arms = {"a": case.ours, "b": case.bare()}
            case.ours()  # compiles the views, fills caches
            timings = measuring.interleaved(arms, repeats, name)
        common = {
            "case": name,
            "data": case.images.title,
            "images": case.settings["batch_size"],
            "views": case.settings["views"],
            "precision": case.precision,
            "network": case.settings["backbone"],
        }
        rows = [
            common
            | {"quantity": "views/s", "arm": arm}
            | measuring.summary(timings[timings.arm == arm].value)
            for arm in arms
        ]
        rows.append(
            common
            | {"quantity": "ratio a / b", "arm": "b", "bar": BAR}
            | measuring.paired_ratio(timings, "a", "b")
        )
        measuring.replace_rows("autoencoders", rows, case=name)
