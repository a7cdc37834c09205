"""What the papers claim, beside what was measured."""

from importlib import import_module

_MODULES = ("differences", "ledger", "measured", "recipes", "tables")


def __getattr__(name: str):
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
