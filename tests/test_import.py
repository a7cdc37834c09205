"""``import lib``: what it makes reachable, and what it does not import yet."""

import json
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


def in_a_fresh_python(code: str):
    """What the code prints, as JSON, in a Python that has imported nothing of ours."""
    printed = subprocess.run(
        [sys.executable, "-c", f"import json, sys\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(printed.stdout)


def test_import_is_fast():
    code = f"import lib\nprint(json.dumps([name for name in {SLOW} if name in sys.modules]))"
    assert in_a_fresh_python(code) == []


def test_rooms_and_what_is_in_them_are_reachable_after_import_lib():
    names = [*ROOMS, "data.sets", "methods.vje", "distributions.PowerSpherical"]
    names += ["evaluation.linear_probe"]
    reached = ", ".join(f"lib.{name}" for name in names)
    loaded = "[name for name in ('torchvision', 'sklearn') if name in sys.modules]"
    assert in_a_fresh_python(f"import lib\n({reached})\nprint(json.dumps({loaded}))") == []
