"""Which files of lib a notebook depends on."""

import ast
import itertools
from functools import cache
from pathlib import Path

from lib.runs.store import ROOT

# They start every notebook and change no number in it.
IGNORED = {"pipeline.jobs", "pipeline.notebooks"}


def imported_files(source: str) -> list[Path]:
    """The files of the lib modules that Python source imports, and of those that these import."""
    files: dict[str, list[Path]] = {}
    waiting = set(imported_modules(source))
    while waiting:
        name = min(waiting)
        files[name] = module_files(name)
        for path in files[name]:
            waiting |= imported_modules(path.read_text())
        waiting -= set(files)
    return list(itertools.chain.from_iterable(files[name] for name in sorted(files)))


def module_files(name: str) -> list[Path]:
    """The files of lib.<name>: one of a module, all of a room; none where there is no such one."""
    path = ROOT / "lib" / name.replace(".", "/")
    module = path.with_suffix(".py")
    return [module] if module.exists() else sorted(path.glob("*.py"))


@cache
def imported_modules(source: str) -> frozenset[str]:
    """The lib modules that the source itself imports; a room where it imports that as a whole."""
    imported = set()  # dotted names
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            imported |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
    inside = [name.removeprefix("lib.") for name in imported if name.startswith("lib.")]
    # of a name that is no module, the module that has it
    modules = {name if module_files(name) else name.rpartition(".")[0] for name in inside}
    return frozenset(modules - {""}) - IGNORED
