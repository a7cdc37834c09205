"""A script for torchrun: train_tiny.py METHOD KILL_AT, a short run without batch norm.

On CPUs each process has a batch norm of its own, so the runs of one and of two processes are only
comparable without it: each image is normalised by itself. With KILL_AT > 0 the second process kills
itself at that step, at the first start.
"""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from lib import methods
from lib.runs.settings import resolve
from lib.training import loop


class NormalisedByImage(nn.GroupNorm):
    def __init__(self, channels, eps=1e-5, momentum=None, affine=True):
        super().__init__(1, channels, eps, affine)


def tiny_run(method):
    settings = {"train_images": 640, "batch_size": 64, "epochs": 1, "learning_rate": 1e-3}
    return resolve(method, "smoke", precision="float32", **settings)


def kill_at_step(method, step):
    loss = methods.METHODS[method].loss
    calls = []

    def killed(self, *views_and_labels):
        calls.append(1)
        if len(calls) == step:
            Path("was_killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(self, *views_and_labels)

    methods.METHODS[method].loss = killed


def main():
    method = sys.argv[1]
    step = int(sys.argv[2])
    torch.set_num_threads(1)
    nn.BatchNorm1d = nn.BatchNorm2d = NormalisedByImage
    loop.CHECKPOINT_SECONDS = 0
    is_second = os.environ.get("RANK") == "1"
    if step and is_second and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        kill_at_step(method, step)
    loop.train(tiny_run(method))


if __name__ == "__main__":
    main()
