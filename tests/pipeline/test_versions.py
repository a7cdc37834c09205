"""The tests under the oldest and the newest versions allowed, each in an environment of its own."""

import os
import subprocess
import sys

import pytest

from lib.runs.store import ROOT

OF_THE_PINS = ("methods/test_methods.py::test_first_losses_are_those_of_the_methods_version",)
UNREACHABLE = ("Failed to fetch", "error sending request", "dns error", "client error (Connect)")


def uv(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "uv", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode and any(error in done.stderr for error in UNREACHABLE):
        pytest.skip(
            f"the package index cannot be reached from here: {done.stderr.strip().splitlines()[-1]}"
        )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.versions
@pytest.mark.parametrize("resolution", ["lowest-direct", "highest"])
def test_the_tests_pass_with_other_versions(resolution):
    """lowest-direct: every package that pyproject.toml names, at the oldest version it allows."""
    folder = ROOT / ".versions" / resolution
    listed = folder.with_suffix(".txt")
    python = folder / "bin" / "python"
    folder.parent.mkdir(exist_ok=True)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    uv(
        "pip",
        "compile",
        "pyproject.toml",
        "--extra",
        "test",
        "--resolution",
        resolution,
        "--python-version",
        version,
        "--output-file",
        str(listed),
    )
    if not python.exists():
        uv("venv", "--python", sys.executable, str(folder))
    uv("pip", "sync", "--python", str(python), str(listed))
    # Two files are about the pins: one compares what is installed with them, and what the other
    # finds depends on the version of ruff.
    chosen = [
        "-m",
        "not long and not versions",
        "--ignore",
        "tests/pipeline/test_environment.py",
        "--ignore",
        "tests/pipeline/test_lint.py",
        "--override-ini",
        f"cache_dir={folder}/pytest_cache",
    ]
    # torch 2.12 draws truncated normal weights differently: these numbers are of the pins.
    chosen += [f"--deselect=tests/{test}" for test in OF_THE_PINS]
    command = [
        str(python),
        "-m",
        "pytest",
        "-n",
        "2",
        "--dist",
        "loadfile",
        "--no-loadscope-reorder",
        *chosen,
    ]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    print(
        f"{resolution}:",
        *[
            line
            for line in listed.read_text().splitlines()
            if line.startswith(("torch==", "torchvision==", "numpy=="))
        ],
    )
    print(done.stdout[-6000:])
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]
