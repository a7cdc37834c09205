"""The pinned environment: exact, complete, installed, the same for pip, conda and all Pythons."""

import importlib.metadata
import json
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

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DECLARED = [
    Requirement(line) for line in PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
]
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
LINUX_TAGS = [f"manylinux_2_{minor}" for minor in range(5, 29)] + ["manylinux2014"]
SYSTEMS = {
    "linux-x86_64": ("Linux", "x86_64", [f"{tag}_x86_64" for tag in LINUX_TAGS]),
    "linux-aarch64": ("Linux", "aarch64", [f"{tag}_aarch64" for tag in LINUX_TAGS]),
    "macos-arm64": ("Darwin", "arm64", ["macosx_14_0_arm64"]),
}
# 3.11 and 3.13 bound the range: elsewhere a wheel for both and none for 3.12 would be odd.
TARGETS = [("3.12", "linux-x86_64"), ("3.13", "linux-x86_64")] + [
    (version, system) for system in ("linux-aarch64", "macos-arm64") for version in ("3.11", "3.13")
]


def version_of(pin: Requirement) -> str:
    return next(iter(pin.specifier)).version


def active_pins(environment: dict[str, str]) -> dict[str, Requirement]:
    return {
        name: pin
        for name, pin in PINS.items()
        if pin.marker is None or pin.marker.evaluate(environment)
    }


def needed(requires: dict[str, list[str]], environment: dict[str, str]) -> set[str]:
    """Names reachable from pyproject.toml, each pinned within the range that asks for it.

    requires: the Requires-Dist lines of each name. An extra is walked as a node of its own.
    """
    pins = active_pins(environment)
    seen: set[tuple[str, str]] = set()
    queue = [(requirement, "", "pyproject.toml") for requirement in DECLARED]
    while queue:
        requirement, extra, parent = queue.pop()
        if requirement.marker is not None and not requirement.marker.evaluate(
            {**environment, "extra": extra}
        ):
            continue
        name = canonicalize_name(requirement.name)
        assert name in pins, f"{parent} needs {requirement}, which requirements.txt does not pin"
        assert requirement.specifier.contains(version_of(pins[name]), prereleases=True), (
            f"{parent} needs {requirement}, pinned is {pins[name]}"
        )
        for node in {(name, ""), *((name, wanted) for wanted in requirement.extras)} - seen:
            seen.add(node)
            queue += [(Requirement(line), node[1], name) for line in requires[name]]
    return {name for name, _ in seen}


def test_every_requirement_is_pinned_exactly_and_names_no_address():
    for line, pin in zip(LINES, PINS.values(), strict=True):
        assert [specifier.operator for specifier in pin.specifier] == ["=="], line
        assert "*" not in version_of(pin), f"{line}: a prefix, not a version"
        assert pin.url is None, f"{line}: an address"


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


def test_pins_are_complete_and_none_is_superfluous_here():
    environment = default_environment()
    requires = {name: importlib.metadata.requires(name) or [] for name in active_pins(environment)}
    assert needed(requires, environment) == set(active_pins(environment))


def test_conda_environment_is_the_same_set():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, _, with_pip = conda["dependencies"]
    assert SpecifierSet(PROJECT["requires-python"]).contains(python.removeprefix("python="))
    assert with_pip == {"pip": ["-r requirements.txt", "-e ."]}


@pytest.mark.versions
@pytest.mark.parametrize(
    ("version", "system"), TARGETS, ids=["-".join(target) for target in TARGETS]
)
def test_pins_resolve_as_wheels(version, system, tmp_path):
    platform_system, machine, tags = SYSTEMS[system]
    # Version .0 of each Python, so that a pin which needs a later patch release is refused.
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
    wheels = {name for name in pins if name not in SOURCE_ONLY}
    # pip evaluates markers for the Python it runs on: they are resolved here instead.
    (tmp_path / "pins.txt").write_text(
        "\n".join(f"{name}=={version_of(pins[name])}" for name in wheels)
    )
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed"]
    command += ["--no-deps", "--only-binary=:all:", "--quiet", "--no-input", "--retries=1"]
    command += ["--implementation=cp", f"--python-version={version}"]
    command += [f"--platform={tag}" for tag in tags]
    report_path = tmp_path / "report.json"
    command += ["--target", str(tmp_path / "target"), "--report", str(report_path)]
    command += ["-r", str(tmp_path / "pins.txt")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and any(
        error in done.stderr
        for error in ("NewConnectionError", "NameResolutionError", "ProxyError")
    ):
        pytest.skip("the package index cannot be reached from here")
    assert done.returncode == 0, done.stderr[-2000:]

    installed = json.loads(report_path.read_text())["install"]
    requires = {name: importlib.metadata.requires(name) or [] for name in SOURCE_ONLY}
    for metadata in (item["metadata"] for item in installed):
        wanted = SpecifierSet(metadata.get("requires_python", ""))
        assert wanted.contains(f"{version}.0"), f"{metadata['name']} needs Python {wanted}"
        requires[canonicalize_name(metadata["name"])] = metadata.get("requires_dist", [])
    assert set(requires) == set(pins)
    assert needed(requires, environment) == set(pins)
