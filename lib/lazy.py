"""Modules and names of a package that are imported when they are used, as torch is slow to import.

PEP 562: a package's ``__getattr__`` is asked for what the package does not have yet.
"""

from collections.abc import Callable, Iterable, Mapping
from importlib import import_module


def lazily(
    package: str, modules: Iterable[str], homes: Mapping[str, str] | None = None
) -> tuple[Callable, Callable]:
    """``__getattr__`` and ``__dir__`` of a package whose ``modules`` are imported when used.

    homes: the module of each further name that the package has.

    Example:
        __getattr__, __dir__ = lazily(__name__, ("settings", "store"))
    """
    modules = tuple(modules)
    homes = homes or {}

    def get(name: str):
        if name in homes:
            return getattr(import_module(f"{package}.{homes[name]}"), name)
        if name in modules:
            return import_module(f"{package}.{name}")
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def names() -> list[str]:
        return sorted({*vars(import_module(package)), *modules, *homes})

    return get, names
