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
        assert [specifier.operator for specifier in pin.specifier] == ["=="], (
            f"{line}: not pinned exactly"
        )
        assert "*" not in version_of(pin), f"{line}: a prefix, not a version"
        assert pin.url is None and "://" not in line and not line.startswith("-"), (
            f"{line}: an address or an option"
        )
    assert list(PINS) == sorted(PINS), "requirements.txt is not sorted by name"


def test_every_declared_dependency_is_pinned_within_its_range():
    for requirement in DECLARED:
        pin = PINS[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version_of(pin)), (
            f"pyproject.toml asks for {requirement}, requirements.txt pins {pin}"
        )


def test_pinned_setuptools_builds_the_project():
    # make setup installs the project without build isolation, that is, with the pinned setuptools.
    (build,) = map(
        Requirement,
        tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"],
    )
    assert build.specifier.contains(version_of(PINS[build.name]))


def test_installed_environment_equals_the_pins():
    pins = {name: version_of(pin) for name, pin in active_pins(default_environment()).items()}
    installed = {
        canonicalize_name(found.name): found.version for found in importlib.metadata.distributions()
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


def test_source_only_pins_are_pure_python():
    for name in SOURCE_ONLY:
        assert "Root-Is-Purelib: true" in importlib.metadata.distribution(name).read_text(
            "WHEEL"
        ), f"{name} needs a compiler"


def test_conda_environment_is_the_same_set():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    *provided, with_pip = conda["dependencies"]
    assert conda["name"] == PROJECT["name"] and conda["channels"] == ["conda-forge"]
    assert [line.partition("=")[0] for line in provided] == ["python", "pip"]
    assert SpecifierSet(PROJECT["requires-python"]).contains(provided[0].removeprefix("python="))
    assert with_pip == {"pip": ["-r requirements.txt", "-e ."]}


def test_python_range_is_the_same_everywhere():
    supported = [
        f"3.{minor}"
        for minor in range(20)
        if SpecifierSet(PROJECT["requires-python"]).contains(f"3.{minor}")
    ]
    assert supported == ["3.11", "3.12", "3.13"]
    makefile = (ROOT / "Makefile").read_text()
    assert "(3, 11) <= sys.version_info[:2] <= (3, 13)" in makefile
    assert all(f"python{version}" in makefile for version in supported)
    assert "Python 3.11 to 3.13" in (ROOT / "requirements.txt").read_text()
    assert SpecifierSet(PROJECT["requires-python"]).contains(
        f"{sys.version_info.major}.{sys.version_info.minor}"
    )


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
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--ignore-installed",
        "--no-deps",
        "--only-binary=:all:",
        "--quiet",
    ]
    command += [
        "--disable-pip-version-check",
        "--no-input",
        "--retries=1",
        f"--python-version={version}",
        "--implementation=cp",
    ]
    command += [f"--platform={tag}" for tag in tags]
    command += [
        "--target",
        str(tmp_path / "target"),
        "--report",
        str(tmp_path / "report.json"),
        "-r",
        str(tmp_path / "pins.txt"),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and any(
        error in done.stderr
        for error in ("NewConnectionError", "NameResolutionError", "ProxyError")
    ):
        pytest.skip("the package index cannot be reached from here")
    assert done.returncode == 0, done.stderr[-2000:]

    report = [
        item["metadata"] for item in json.loads((tmp_path / "report.json").read_text())["install"]
    ]
    assert {canonicalize_name(metadata["name"]) for metadata in report} == wheels
    for metadata in report:
        wanted = metadata.get("requires_python", "")
        assert SpecifierSet(wanted).contains(f"{version}.0"), (
            f"{metadata['name']} needs Python {wanted}"
        )
    requires = {
        canonicalize_name(metadata["name"]): metadata.get("requires_dist", [])
        for metadata in report
    }
    requires |= {name: importlib.metadata.requires(name) or [] for name in SOURCE_ONLY}
    assert needed(requires, environment) == set(pins)
