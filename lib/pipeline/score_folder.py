"""make score: the checks before a folder is scored, and the notebook run on it."""

import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from lib.pipeline import notebooks, reproduce
from lib.runs import store

NOTEBOOK = "70"
SOURCE_FILE = "scored_folder.txt"  # in the output folder: the folder that was scored


@dataclass(frozen=True)
class Output:
    """The folder that the results of a scored folder go to."""

    folder: Path

    @property
    def page(self) -> Path:
        return self.folder / "index.html"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def source(self) -> Path:
        return self.folder / SOURCE_FILE

    def check_free_for(self, images: Path) -> None:
        """ValueError if the folder holds another folder's results, or files not of make score."""
        has_results = self.page.exists() or any(self.folder.glob("*/runs/*"))
        if self.source.exists():
            other = self.source.read_text()
            if has_results and other != str(images):
                raise ValueError(
                    f"{self.folder} holds the results of {other}: give another place, OUT=folder, "
                    "or remove it first."
                )
            return
        foreign = [path.name for path in (self.page, self.log) if path.exists()]
        if foreign:
            raise ValueError(
                f"{self.folder} holds {' and '.join(foreign)}, not of make score: give another "
                "place, OUT=folder."
            )


def score_folder(
    images: str, profile: str, encoder: str = "", epochs: int = 0, out: str = ""
) -> int:
    """Order the images of a folder by κ, print where the page is, and return an exit status.

    Everything goes to ``out`` (default: results/own/<folder>): page, tables, contact sheets, the
    run and the executed notebook.
    """
    from lib.pipeline import score  # slow to import

    folder = checked_folder(images)
    output = Output(checked_output(folder, out))
    score.check_encoder(encoder)
    command = notebook_command(folder, profile, encoder, epochs, output)
    output.folder.mkdir(parents=True, exist_ok=True)
    output.check_free_for(folder)
    busy = f"{output.folder} is being written by another make score; wait for it."
    with store.exclusive(output.folder / ".lock", busy):
        output.check_free_for(folder)  # another may have begun since
        store.write_text(output.source, str(folder))
        written_before = modified(output.page)
        doing = f"with the committed encoder {encoder}" if encoder else "by training on it"
        print(f"Scoring {folder} {doing}")
        environment = os.environ | {"RESULTS_DIR": str(output.folder)}
        with open(output.log, "w") as log:
            status = reproduce.run_watched(
                command, log, {}, output.folder / profile, env=environment, cwd=store.ROOT
            )
    if status is None:
        return reproduce.INTERRUPTED
    if status or modified(output.page) == written_before:
        print_failure(output.log)
        return status or 1
    print(f"Done. Open the page: {output.page}")
    return 0


def checked_folder(images: str) -> Path:
    """The folder of images, if it is one whose name can be written down."""
    folder = Path(images).expanduser().resolve()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not a folder: give one that holds images, IMAGES=folder."
        )
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"The name {str(folder)!r} is not UTF-8, and files that name it are: rename the folder."
        ) from error
    return folder


def checked_output(folder: Path, out: str) -> Path:
    """Where the results go, if that is not inside the folder of images and not a file."""
    if out:
        output = Path(out).expanduser().resolve()
    else:
        output = (store.results_dir("own") / (folder.name or "images")).resolve()
    if output.is_relative_to(folder):
        raise ValueError(
            f"The results would go to {output}, inside the folder that is scored: give another "
            "place, OUT=folder."
        )
    if output.exists() and not output.is_dir():
        raise ValueError(
            f"The results would go to {output}, which is not a folder: give another place, "
            "OUT=folder."
        )
    return output


def notebook_command(
    folder: Path, profile: str, encoder: str, epochs: int, output: Output
) -> list[str]:
    """The command that runs the notebook on the folder, its parameters checked."""
    name = notebooks.find_notebook(NOTEBOOK)
    parameters = {
        "images": str(folder),
        "encoder": encoder,
        "epochs": epochs,
        "out": str(output.folder),
    }
    notebooks.check_parameters(name, parameters | {"profile": profile})
    typed = " ".join(shlex.quote(f"{key}={value}") for key, value in parameters.items())
    command = [sys.executable, "-m", "lib", "notebook", name]
    return [*command, "--profile", profile, "--params", typed]


def modified(path: Path) -> int:
    """When a file was written, in ns; 0 if it is not there."""
    return path.stat().st_mtime_ns if path.exists() else 0


def print_failure(log: Path) -> None:
    """Print why the notebook failed, as it said in its log."""
    causes = reproduce.causes(log.read_text())
    cause = causes[-1].partition("failed: ")[2] if causes else "It gave no cause."
    print(f"{cause} The log is {log}.", file=sys.stderr)
