"""``import lib``: what it makes reachable, and what it does not import yet."""

import pkgutil
import subprocess
import sys

import lib

# Everything in lib but the pipeline, which people call by the command line.
ROOMS = sorted(
    module.name
    for module in pkgutil.iter_modules(lib.__path__)
    if module.name not in ("__main__", "lazy", "pipeline")
)
SLOW = ("torch", "torchvision", "sklearn", "matplotlib", "scipy", "pandas")


def test_import_lib_loads_nothing_slow_and_makes_every_room_reachable():
    names = [*ROOMS, "data.sets", "methods.vje", "distributions.PowerSpherical"]
    names += ["evaluation.linear_probe"]
    reached = ", ".join(f"lib.{name}" for name in names)
    code = f"""
import sys
import lib
print([name for name in {SLOW} if name in sys.modules])
({reached})
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
