"""make benchmark: measure, write results/benchmarks/tables, draw. Rows that are there already stay until they are measured again."""

import argparse
import os

import torch

from lib import figures as plotting
from tests.benchmarks import autoencoders, drawing, evaluation, growth, pretraining

STEPS = {"autoencoders": autoencoders.run, "growth": growth.run, "evaluation": evaluation.run}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "--only",
        nargs="*",
        default=[*pretraining.CASES, *STEPS],
        choices=[*pretraining.CASES, *STEPS, "drawing"],
        metavar="PART",
        help=f"{', '.join([*pretraining.CASES, *STEPS, 'drawing'])} (default: all)",
    )
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error(f"--repeats is {options.repeats}; it must be at least 1.")
    torch.set_num_threads(os.cpu_count() or 1)
    pretraining.run([name for name in options.only if name in pretraining.CASES], options.repeats)
    for name, step in STEPS.items():
        if name in options.only:
            step(options.repeats)
    plotting.use_style()
    drawing.pretraining()
    drawing.growth()
    drawing.page()


if __name__ == "__main__":
    main()
