"""How the cost of pretraining grows with images, views, image size and seeds, and whether memory
stays flat over epochs and runs.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from lib import training
from lib.data import sources as data
from lib.runs import settings as resolution
from tests.benchmarks import measuring

IMAGES = (2_560, 5_120, 10_240, 20_480)
VIEWS = (2, 3, 4, 6, 8)
SIZES = (16, 24, 32, 48, 64, 96)
EPOCHS = 8
RUNS = 4
STEPS = 10  # of 256 images, where one step's time is the question


def seconds_of(images: data.ImageSet, **parameters) -> tuple[float, pd.DataFrame]:
    """Seconds per epoch of one short run, read off its log."""
    settings = resolution.resolve(
        "simsiam", "standard", dataset=images.name, image_size=images.images.shape[1], **parameters
    )
    log = pd.read_csv(training.train(settings, images) / "log.csv")
    first = log.iloc[0]
    last = log.iloc[-1]
    return (last.seconds - first.seconds) / (last.epoch - first.epoch), log


def run(repeats: int) -> None:
    drawn = {size: data.generated("shapes", 256, size) for size in SIZES}

    def images(count: int, size: int = 32, name: str = "") -> data.ImageSet:
        return dataclasses.replace(drawn[size].subset(np.arange(count) % 256), name=name)

    rows: list[dict] = []
    with measuring.scratch_results():
        seconds_of(images(1024, name="warm"), epochs=1)
        for turn in range(repeats):
            for count in IMAGES:
                seconds, _ = seconds_of(images(count, name=f"n{count}_{turn}"), epochs=1)
                rows.append(
                    {
                        "against": "images",
                        "at": count,
                        "unit": "s/epoch",
                        "round": turn,
                        "value": seconds,
                    }
                )
            for views in VIEWS:
                seconds, _ = seconds_of(
                    images(256 * STEPS, name=f"v{views}_{turn}"),
                    epochs=1,
                    local_views=views - 2,
                    local_size=32,
                )
                rows.append(
                    {
                        "against": "views",
                        "at": views,
                        "unit": "ms/step",
                        "round": turn,
                        "value": 1e3 * seconds / STEPS,
                    }
                )
            for size in SIZES:
                seconds, _ = seconds_of(images(256 * STEPS, size, f"s{size}_{turn}"), epochs=1)
                rows.append(
                    {
                        "against": "image size",
                        "at": size,
                        "unit": "ms/step",
                        "round": turn,
                        "value": 1e3 * seconds / STEPS,
                    }
                )
        start = measuring.megabytes()
        for seed in range(RUNS):
            before = measuring.megabytes()
            seconds, _ = seconds_of(images(2_560, name="memory"), epochs=EPOCHS, seed=seed)
            rows.append(
                {
                    "against": "seeds",
                    "at": seed + 1,
                    "unit": "s/epoch",
                    "round": 0,
                    "value": seconds,
                }
            )
            rows.append(
                {
                    "against": "runs in one process",
                    "at": seed + 1,
                    "unit": "MB more",
                    "round": 0,
                    "value": measuring.megabytes() - start,
                }
            )
            rows.append(
                {
                    "against": "epochs of one run",
                    "at": EPOCHS,
                    "unit": "MB more",
                    "round": seed,
                    "value": measuring.megabytes() - before,
                }
            )
    measuring.replace_rows("growth", [row | {"part": "growth"} for row in rows], part="growth")
