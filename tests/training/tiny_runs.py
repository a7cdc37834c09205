"""Runs that train within a second, and what they store."""

import pandas as pd
import pytest
import torch

from lib.runs import store
from lib.runs.settings import resolve, run_name
from lib.training import loop
from lib.training.progress import Progress

# 10 steps an epoch, a log row every second step.
TINY = {
    "width": 2,
    "dimension": 8,
    "predictor_hidden": 4,
    "image_size": 9,
    "batch_size": 16,
    "train_images": 160,
    "epochs": 2,
    "precision": "float32",
}
OF_METHOD = {
    "vi_simsiam": {"concentration_warmup_epochs": 0.5},
    "vi_simsiam_2022": {"local_views": 1},
}


def tiny(method="simsiam", **other):
    return resolve(method, "smoke", **(TINY | OF_METHOD.get(method, {}) | other))


def folder_of(settings):
    return store.run_dir("smoke", run_name(settings))


def weights(settings):
    return store.read_tensors(folder_of(settings) / "model.safetensors")[0]


def log_of(settings):
    return pd.read_csv(folder_of(settings) / "log.csv")


def equal(first, second):
    """Whether two state dicts are the same bit for bit."""
    if first.keys() != second.keys():
        return False
    return all(torch.equal(first[name], second[name]) for name in first)


def interrupted(settings, *steps, images=None):
    """Train with a checkpoint at every log row, and Ctrl-C after each of ``steps``."""
    left = list(steps)
    update = Progress.update

    def interrupt(self, step, loss):
        update(self, step, loss)
        if left and step == left[0]:
            left.pop(0)
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SECONDS", -1)
        patch.setattr(Progress, "update", interrupt)
        for _ in steps:
            with pytest.raises(KeyboardInterrupt):
                loop.train(settings, images)
    return folder_of(settings)
