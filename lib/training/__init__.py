"""Training: one loop for all methods, exact resume, and what a step costs.

``train`` runs a whole training and returns its folder. ``load_trained`` gives the network of a
finished run. ``first_steps`` trains a method for a few steps without storing anything.
"""

from lib.training.batches import training_images
from lib.training.checkpoints import fill, is_finished, load_trained
from lib.training.costs import cost_ratios, step_costs
from lib.training.devices import best_device, precision_of
from lib.training.health import TrainingStopped
from lib.training.loop import first_steps, train
from lib.training.optim import learning_rate_factor
from lib.training.progress import Progress
from lib.training.seeds import seed_noise, seed_of

__all__ = [
    "Progress",
    "TrainingStopped",
    "best_device",
    "cost_ratios",
    "fill",
    "first_steps",
    "is_finished",
    "learning_rate_factor",
    "load_trained",
    "precision_of",
    "seed_noise",
    "seed_of",
    "step_costs",
    "train",
    "training_images",
]
