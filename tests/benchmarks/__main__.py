"""make benchmark.

Measure, write results/benchmarks/tables, draw. Rows that are there already stay until they are
measured again.
"""

import argparse
import os

import torch

from lib import figures
from tests.benchmarks import autoencoders, drawing, pretraining

PARTS = [*pretraining.CASES, "autoencoders", "drawing"]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument(
        "--only", nargs="*", default=PARTS, choices=PARTS, metavar="PART", help=", ".join(PARTS)
    )
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error(f"--repeats is {options.repeats}; it must be at least 1.")
    torch.set_num_threads(os.cpu_count() or 1)
    for name in options.only:
        if name in pretraining.CASES:
            pretraining.run(name, options.repeats)
    if "autoencoders" in options.only:
        autoencoders.run(options.repeats)
    figures.use_style()
    drawing.pretraining()
    drawing.page()


if __name__ == "__main__":
    main()
