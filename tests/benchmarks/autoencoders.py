"""Views per second of SimVAE's training.

(a) our loop, from images in memory to updated weights; (b) forward and backward pass of encoder and
decoder, and the optimiser's step, on views that lie ready, with the sum of the outputs as a loss.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from lib import methods, training
from lib.data import views as augmentations
from lib.runs import settings as resolution
from lib.training import optim
from tests.benchmarks import measuring, pretraining

MNIST = {"dataset": "mnist", "views": 10}
CASES = {
    "mnist-b12": MNIST | {"batch_size": 12},
    "mnist-b128": MNIST | {"batch_size": 128},
    "mnist-b256": MNIST | {"batch_size": 256},
    "mnist-b128-float32": MNIST | {"batch_size": 128, "precision": "float32"},
    "cifar10-b64": {"dataset": "cifar10", "batch_size": 64, "views": 2},
}
VIEWS = 12_000  # seen in one repeat, about
AIM = 0.8


def bare(settings: dict, x: torch.Tensor, channels: int, steps: int) -> Callable[[], float]:
    """(b)"""
    device = training.best_device()
    is_bf16 = training.precision_of(settings, device) == "bf16"
    network = methods.build(settings, channels).to(device).train()
    optimizer = optim.make_optimizer(network, settings)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=is_bf16):
            mean, _ = network.posterior(network.backbone(x)).chunk(2, dim=1)
            outputs = network.decoder(mean)
        measuring.update(optimizer, outputs.sum())

    return lambda: len(x) / measuring.seconds_per_call(step, steps)


def run(repeats: int) -> None:
    """Measure all cases; what is measured is written at once."""
    device = training.best_device()
    for name, parameters in CASES.items():
        settings = resolution.resolve("simvae", "standard", epochs=1, **parameters)
        images = pretraining.load(settings["dataset"], settings["image_size"])
        views = settings["views"]
        steps = max(10, VIEWS // (views * settings["batch_size"]))
        batch = images.batch(range(settings["batch_size"])).to(device)
        generator = torch.Generator().manual_seed(0)
        x = torch.cat(augmentations.make_views(batch, settings, generator))  # [J B, C, S, S]

        def ours(settings=settings, images=images, steps=steps, views=views) -> float:
            return views * pretraining.end_to_end(settings, images, steps)

        with measuring.scratch_results():
            arms = {"a": ours, "b": bare(settings, x, images.images.shape[3], steps)}
            ours()  # compiles the views, fills caches
            timings = measuring.interleaved(arms, repeats, name)
        common = {
            "case": name,
            "data": images.title,
            "images": settings["batch_size"],
            "views": views,
            "precision": training.precision_of(settings, device),
            "network": settings["backbone"],
        }
        rows = measuring.speeds_and_ratios(timings, "views/s", common, {"b": AIM})
        measuring.replace_rows("autoencoders", rows, case=name)
