"""A script for torchrun: train_folder.py FOLDER HOW, with HOW "memory" or "stream"."""

import sys
from pathlib import Path

import torch
from torch import nn

from lib.data import sets
from lib.runs.settings import resolve
from lib.training.loop import train
from tests.training.train_tiny import NormalisedByImage

if __name__ == "__main__":
    torch.set_num_threads(1)
    nn.BatchNorm1d = nn.BatchNorm2d = NormalisedByImage
    if sys.argv[2] == "stream":
        sets.RESIDENT_BYTES = 0
    settings = resolve("simsiam", "smoke", precision="float32", batch_size=32, learning_rate=1e-3)
    train(settings, sets.image_folder(Path(sys.argv[1]), 16, "folder"))
