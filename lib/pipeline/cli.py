"""The command line, ``python -m lib``, which the Makefile and the Snakefile call.

Example:
    python -m lib reproduce --profile quick --paper vs2
    python -m lib notebook 10 --profile smoke --params "method=simsiam seed=1"
    python -m lib progress standard
"""

import argparse
import errno
import os
import sys
from collections.abc import Sequence

from lib.pipeline import execution, jobs, notebooks, progress, publish, reproduce, score_folder
from lib.runs import store

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; an error is one sentence on stderr."""
    options = parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except KeyboardInterrupt:
        print(reproduce.TO_CONTINUE, file=sys.stderr)
        return reproduce.INTERRUPTED
    except (ValueError, OSError, RuntimeError) as error:
        print(sentence(error, getattr(options, "job", "")), file=sys.stderr)
        return 1


def sentence(error: Exception, job: str = "") -> str:
    """An error as the command prints it; whatever ends a job, the job is named."""
    text = f"{type(error).__name__}: {error}"
    if job and "failed: " not in text:
        text = f"{job} failed: {text}"
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        text += f". {store.NEXT_STEP}"
    return text


# ------------------------------------------------------------------------- the arguments
def parser() -> argparse.ArgumentParser:
    """The arguments of every command."""
    top = argparse.ArgumentParser(prog="python -m lib", description="Run the companion.")
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND")

    command = commands.add_parser("reproduce", help="pretrain, evaluate and draw a profile")
    command.add_argument("--profile", default="quick")
    command.add_argument("--paper", default="all", help=f"one of {', '.join(jobs.PAPERS)}")
    command.add_argument("--executor", default="", help="e.g. slurm, dryrun; empty: this machine")
    command.add_argument("--jobs", default="", help="jobs at once; empty: by cores and memory")
    command.add_argument("--gpus", default="0", help="GPUs that a training asks a cluster for")
    command.set_defaults(run=run_reproduce)

    command = commands.add_parser("job", help="run one job (what the Snakefile calls)")
    command.add_argument("job")
    command.add_argument("--profile", default="quick")
    command.add_argument("--paper", default="all")
    command.add_argument("--stamp", default="", help="the stamp to write")
    command.add_argument("--threads", type=int, default=0)
    command.set_defaults(run=run_job)

    command = commands.add_parser("notebook", help="run one notebook, by its name or number")
    command.add_argument("notebook")
    command.add_argument("--profile", default="quick")
    command.add_argument("--params", default="", help='"method=simsiam seed=1"')
    command.set_defaults(run=run_notebook)

    command = commands.add_parser("score", help="order a folder of images by κ")
    command.add_argument("images")
    command.add_argument("--profile", default="standard")
    command.add_argument("--encoder", default="", help="a committed encoder; empty: train one")
    command.add_argument("--epochs", default="0", help="0: by the number of images")
    command.add_argument("--out", default="", help="empty: results/own/<folder>")
    command.set_defaults(run=run_score)

    command = commands.add_parser("figures", help="copy figures of a profile to figures/")
    command.add_argument("--profile", default="standard")
    command.add_argument("--ids", nargs="*", default=[], help="default: those published now")
    command.set_defaults(run=run_figures)

    command = commands.add_parser("site", help="build results/<profile>/site")
    command.add_argument("--profile", default="standard")
    command.set_defaults(run=run_site)

    command = commands.add_parser("progress", help="write results/<profile>/README.md")
    command.add_argument("profile")
    command.set_defaults(run=run_progress)
    return top


def whole_number(text: str, name: str, least: int) -> int:
    """A number typed on the command line; ValueError that names the variable of make."""
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{name}={text} is not valid; give a whole number, {least} or more.")
    return int(text)


# ------------------------------------------------------------------------- the commands
def run_reproduce(options: argparse.Namespace) -> int:
    gpus = whole_number(options.gpus, "GPUS", least=0)
    at_once = whole_number(options.jobs, "JOBS", least=1) if options.jobs else None
    return reproduce.reproduce(options.profile, options.paper, options.executor, at_once, gpus)


def run_job(options: argparse.Namespace) -> None:
    if options.threads:
        os.environ.update(reproduce.thread_limits(options.threads))
    execution.run_job(options.profile, options.paper, options.job, options.stamp)


def run_notebook(options: argparse.Namespace) -> None:
    name = notebooks.find_notebook(options.notebook)
    parameters = notebooks.parse_parameters(f"profile={options.profile} {options.params}", name)
    job = jobs.Job(name, name, notebooks.computing(name) | parameters)
    print(execution.execute(job))


def run_score(options: argparse.Namespace) -> int:
    epochs = whole_number(options.epochs, "EPOCHS", least=0)
    if options.encoder and epochs:
        raise ValueError(
            f"EPOCHS={epochs} trains, and ENCODER={options.encoder} is trained: leave one out."
        )
    return score_folder.score_folder(
        options.images, options.profile, options.encoder, epochs, options.out
    )


def run_figures(options: argparse.Namespace) -> None:
    files = publish.publish(options.profile, options.ids)
    print(f"{len(files)} files copied to figures/.")


def run_site(options: argparse.Namespace) -> None:
    from lib.pipeline import site  # slow to import

    print(f"Open {site.build(options.profile)} in a browser.")


def run_progress(options: argparse.Namespace) -> None:
    print(progress.write_readme(options.profile))
