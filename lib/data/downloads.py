"""Fetching known sets: torchvision's downloads, Debian's package, and Inception's weights.

A set is fetched into a folder of its own and moved into DATA_DIR when it is complete. Every
download is checked: by torchvision against its checksums, by apt against its signed lists, and
Inception's weights against their SHA-256.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
import subprocess
import tarfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from lib.data.catalogue import DATASETS
from lib.data.layouts import torchvision_class, torchvision_set
from lib.runs import store

NETWORK_TIMEOUT = 20  # seconds without an answer
# Debian's packages and where they install their files
DEBIAN = {"fashion_mnist": ("dataset-fashion-mnist", Path("/usr/share/datasets/fashion-mnist"))}
# As its authors give it; torchvision checks every other archive, but has no checksum for this one.
AIRCRAFT_MD5 = "d4acdd33327262359767eeaa97a4f732"
# Inception-v3, the network that the FID is defined in, as torch-fidelity converted it. The name
# ends with the beginning of the file's SHA-256.
INCEPTION = "weights-inception-2015-12-05-6726825d.pth"


# --------------------------------------------------------------------------------------- routes
def routes(name: str, download: bool) -> dict[str, Callable[[Path, str, str], None]]:
    """The ways to fetch a set: functions of an empty folder, the set's name and the split.

    An installed Debian package is a way even where nothing may be downloaded.
    """
    ways = {}
    if download:
        ways["torchvision download"] = torchvision_download
    if name in DEBIAN:
        package, folder = DEBIAN[name]
        if download or folder.is_dir():
            ways[f"Debian package {package}"] = debian_package
    return ways


def torchvision_download(staging: Path, name: str, split: str) -> None:
    # No member of an archive may leave the folder it is unpacked in, by its path or by a link.
    # Python does this by itself from 3.14 on; the filter is there since 3.11.4.
    if hasattr(tarfile, "data_filter"):
        tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    with time_limit():
        if name == "aircraft":
            from torchvision.datasets.utils import download_and_extract_archive  # slow to import

            url = torchvision_class(name)._URL
            download_and_extract_archive(url, str(staging), md5=AIRCRAFT_MD5)
        if name == "celeba":
            # gdown has no time limit of its own: find out first whether the server answers.
            urllib.request.urlopen("https://drive.google.com").close()
        with contextlib.redirect_stdout(io.StringIO()):
            torchvision_set(staging, name, split, download=True)


def debian_package(staging: Path, name: str, split: str) -> None:
    """Copy the files of the installed package, or fetch and unpack it, which needs no root."""
    package, folder = DEBIAN[name]
    if not folder.is_dir():
        _unpack_debian_package(staging, package)
        folder = staging / "unpacked" / folder.relative_to("/")
    raw = staging / DATASETS[name].folder
    # What a torchvision download that failed half-way left here must not be mixed in.
    shutil.rmtree(raw.parent, ignore_errors=True)
    raw.mkdir(parents=True)
    for file in folder.glob("*.gz"):
        shutil.copyfile(file, raw / file.name)
    shutil.rmtree(staging / "unpacked", ignore_errors=True)


def _unpack_debian_package(staging: Path, package: str) -> None:
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise OSError("this system has no apt-get and dpkg")
    command = ["apt-get", "-o", "Acquire::Retries=1"]
    command += ["-o", f"Acquire::http::Timeout={NETWORK_TIMEOUT}"]
    command += ["-o", f"Acquire::https::Timeout={NETWORK_TIMEOUT}"]
    done = subprocess.run(
        [*command, "download", package],
        cwd=staging,
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise OSError(_apt_error(package, done.stderr))
    (archive,) = staging.glob("*.deb")
    subprocess.run(
        ["dpkg", "-x", archive.name, "unpacked"], cwd=staging, check=True, capture_output=True
    )
    archive.unlink()


def _apt_error(package: str, output: str) -> str:
    errors = " ".join(line for line in output.splitlines() if line.startswith("E:"))
    if "Unable to locate" in errors or "No packages found" in errors:
        return f"apt does not know {package}: run `apt-get update` (as root) and try again"
    return errors or output


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    """No server is waited for longer than NETWORK_TIMEOUT, by downloaders without a limit too."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


# --------------------------------------------------------------------------------------- places
@contextlib.contextmanager
def staging_folder(root: Path, name: str) -> Iterator[Path]:
    """An empty folder on the disk of ``root`` for one download of a set; other jobs wait."""
    staging = root / f".{name}.download"
    with store.exclusive(root / f".{name}.lock"):
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def put_in_place(staging: Path, root: Path) -> None:
    """Move what was fetched into ``root`` by renaming.

    What was there is kept as <name>.damaged; a person's own npz files stay in place.
    """
    for entry in staging.iterdir():
        target = root / entry.name
        if not target.exists():
            entry.rename(target)
            continue
        aside = _unused_name(root, f"{entry.name}.damaged")
        target.rename(aside)
        entry.rename(target)
        for npz in aside.glob("*.npz"):
            npz.rename(target / npz.name)


def _unused_name(root: Path, name: str) -> Path:
    path = root / name
    number = 2
    while path.exists():
        path = root / f"{name}{number}"
        number += 1
    return path


# ------------------------------------------------------------------------------------ Inception
def inception_weights(download: bool = False) -> Path | None:
    """DATA_DIR's file of Inception-v3's weights, or None if it is absent and not to be fetched.

    ValueError for a damaged file; FileNotFoundError if it cannot be fetched.
    """
    path = store.default_data_dir() / INCEPTION
    expected = path.stem.rsplit("-", 1)[1]
    if download and not path.exists():
        _fetch_inception(path, expected)
    if not path.exists():
        return None
    if not store.sha256(path).startswith(expected):
        raise ValueError(
            f"{path} is damaged: its sha256 does not begin with {expected}. "
            "Delete it, and fetch it again: python -m lib.data.sources fetch inception"
        )
    return path


def _fetch_inception(path: Path, expected: str) -> None:
    from torch.hub import download_url_to_file  # slow to import
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with time_limit():
            download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix=expected)  # atomic
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"Could not fetch {URL_INCEPTION_V3} ({store.one_line(error)}); "
            f"put that file at {path} by hand."
        ) from error
