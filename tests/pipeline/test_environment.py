"""The pinned environment: exact, installed, the same for pip, conda and all Pythons."""

import importlib.metadata
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from lib.runs.store import ROOT
from tests.pipeline.test_versions import UNREACHABLE

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LINES = [
    line
    for line in (ROOT / "requirements.txt").read_text().splitlines()
    if not line.startswith("#")
]
PINS = {canonicalize_name(pin.name): pin for pin in map(Requirement, LINES)}

# Published without wheels at these versions; both are pure Python and need no compiler.
SOURCE_ONLY = {
    "antlr4-python3-runtime": "omegaconf 2.3 (of torch-uncertainty) needs 4.9, without a wheel",
    "connection-pool": "snakemake needs it; 0.0.3 has no wheel",
}
SYSTEMS = {
    "x86_64-unknown-linux-gnu": ("Linux", "x86_64"),
    "aarch64-unknown-linux-gnu": ("Linux", "aarch64"),
    "aarch64-apple-darwin": ("Darwin", "arm64"),
}


def version_of(pin: Requirement) -> str:
    return next(iter(pin.specifier)).version


def active_pins(environment: dict[str, str]) -> dict[str, Requirement]:
    return {
        name: pin
        for name, pin in PINS.items()
        if pin.marker is None or pin.marker.evaluate(environment)
    }


def test_installed_environment_equals_the_pins():
    pins = {name: version_of(pin) for name, pin in active_pins(default_environment()).items()}
    installed = {
        canonicalize_name(package.name): package.version
        for package in importlib.metadata.distributions()
    }
    different = {
        name: (version, installed.get(name))
        for name, version in pins.items()
        if installed.get(name) != version
    }
    assert not different, f"pinned and installed differ: {different}; run make setup"


def test_conda_environment_is_the_same_set():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, _, with_pip = conda["dependencies"]
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.removeprefix("python="))
    assert with_pip == {"pip": ["-r requirements.txt", "-e ."]}


@pytest.mark.versions
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
@pytest.mark.parametrize("system", SYSTEMS)
def test_pins_resolve_as_wheels_and_none_is_superfluous(version, system, tmp_path):
    command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--extra", "test"]
    command += ["--constraints", "requirements.txt", "--no-annotate", "--no-header", "--quiet"]
    command += ["--python-version", version, "--python-platform", system]
    command += ["--only-binary", ":all:", "--output-file", str(tmp_path / "resolved.txt")]
    for name in SOURCE_ONLY:
        command += ["--no-binary", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode and any(error in done.stderr for error in UNREACHABLE):
        pytest.skip("the package index cannot be reached from here")
    assert done.returncode == 0, done.stderr[-2000:]
    resolved = set((tmp_path / "resolved.txt").read_text().splitlines())
    platform_system, machine = SYSTEMS[system]
    environment = {
        **default_environment(),
        "python_version": version,
        "python_full_version": f"{version}.0",
        "platform_system": platform_system,
        "platform_machine": machine,
        "sys_platform": platform_system.lower(),
        "os_name": "posix",
    }
    pins = active_pins(environment)
    assert resolved == {f"{name}=={version_of(pin)}" for name, pin in pins.items()}
