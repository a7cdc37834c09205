"""Train one listed run: python -m lib.training NAME --profile standard."""

import argparse
import sys

from lib.runs.settings import find_runs
from lib.training.health import TrainingStopped
from lib.training.loop import train


def main(arguments: list[str] | None = None) -> int:
    """Train the named run and print its folder; 1 with a message where that is not possible."""
    parser = argparse.ArgumentParser(
        prog="python -m lib.training",
        description="Train one run listed in settings/runs.toml.",
    )
    parser.add_argument("name", help="the run's name, <method>-<dataset>-<variant>-seed<k>")
    parser.add_argument("--profile", default="quick")
    options = parser.parse_args(arguments)
    try:
        settings = find_runs([options.name], options.profile)[0]
        print(train(settings, show_progress=True))
    except (ValueError, OSError, TrainingStopped) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
