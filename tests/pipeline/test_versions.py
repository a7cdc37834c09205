"""The tests under the oldest and the newest versions allowed, each in an environment of its own."""

import os
import subprocess
import sys

import pytest

from lib.runs.store import ROOT

# What is installed is compared with the pins, and what ruff finds depends on its version.
FILES_OF_THE_PINS = ("pipeline/test_environment.py", "pipeline/test_lint.py")
# torch 2.12 draws truncated normal weights differently.
TESTS_OF_THE_PINS = ("methods/test_methods.py::test_first_losses_are_those_of_the_methods_version",)
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
    options = ["--extra", "test", "--resolution", resolution, "--python-version", version]
    uv("pip", "compile", "pyproject.toml", *options, "--output-file", str(listed))
    if not python.exists():
        uv("venv", "--python", sys.executable, str(folder))
    uv("pip", "sync", "--python", str(python), str(listed))
    command = [str(python), "-m", "pytest", "-n", "2", "--dist", "loadfile"]
    command += ["--no-loadscope-reorder", "-m", "not long and not versions"]
    command += ["--override-ini", f"cache_dir={folder}/pytest_cache"]
    command += [f"--ignore=tests/{name}" for name in FILES_OF_THE_PINS]
    command += [f"--deselect=tests/{name}" for name in TESTS_OF_THE_PINS]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-20000:] + done.stderr[-2000:]
