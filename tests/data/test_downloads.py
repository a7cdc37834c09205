"""Fetching sets: complete or not at all, checked, within its folder, and never unpickled."""

import gzip
import hashlib
import io
import pickle
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gdown
import numpy as np
import pytest
import torchvision
from PIL import Image

from lib.data import downloads
from lib.data.catalogue import DATASETS
from lib.data.sources import load
from lib.runs import store
from tests.data.writers import idx, write_idx, write_npz


# --------------------------------------------------------------------------------- whole or not
@pytest.fixture
def fetched(no_network, monkeypatch):
    """The names of the sets that were fetched: each gets six images of MNIST's format."""
    names = []

    def fetch(staging, name, split):
        names.append(name)
        (staging / "MNIST/raw").mkdir(parents=True)
        time.sleep(0.2)
        write_idx(staging / "MNIST/raw")

    monkeypatch.setattr(downloads, "torchvision_download", fetch)
    return names


def test_download_lands_whole_and_is_not_repeated(tmp_path, fetched):
    first = load("mnist", data_dir=tmp_path)
    assert first.source == "torchvision download, now in DATA_DIR/MNIST/raw"
    assert load("mnist", data_dir=tmp_path).source == "torchvision layout DATA_DIR/MNIST/raw"
    assert fetched == ["mnist"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mnist.lock", "MNIST"]


def test_two_jobs_at_once_fetch_once(tmp_path, fetched):
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(lambda _: load("mnist", data_dir=tmp_path), range(4)))
    assert len({images.checksum for images in loaded}) == 1 and fetched == ["mnist"]


DAMAGES = {
    "cut gz": lambda content: content[: len(content) // 2],
    "cut data": lambda content: gzip.compress(gzip.decompress(content)[:-10]),
    "fewer images": lambda content: gzip.compress(idx(np.ones((2, 28, 28), np.uint8))),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_idx_is_found_and_fetched_again(tmp_path, fetched, damage):
    raw = tmp_path / "MNIST/raw"
    write_idx(raw, n=9)
    file = raw / "train-images-idx3-ubyte.gz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(FileNotFoundError, match="MNIST/raw is incomplete or damaged.*train"):
        load("mnist", data_dir=tmp_path, download=False)
    with pytest.warns(UserWarning, match="fetching mnist again"):
        assert len(load("mnist", data_dir=tmp_path)) == 6
    assert fetched == ["mnist"]
    assert (tmp_path / "MNIST.damaged").is_dir()  # nobody's files are deleted


def test_own_files_outlive_two_downloads_into_their_folder(tmp_path):
    (tmp_path / "dtd").mkdir()
    (tmp_path / "dtd/mine.npz").write_text("mine")
    for content in ("first", "second"):
        with downloads.staging_folder(tmp_path, "dtd") as staging:
            (staging / "dtd").mkdir()
            (staging / "dtd/images").write_text(content)
            downloads.put_in_place(staging, tmp_path)
    assert (tmp_path / "dtd/mine.npz").read_text() == "mine"
    assert (tmp_path / "dtd/images").read_text() == "second"
    assert (tmp_path / "dtd.damaged2/images").read_text() == "first"


# --------------------------------------------------------------------------------------- Debian
PACKAGE = "dataset-fashion-mnist"


def test_an_installed_debian_package_is_used_without_a_download(tmp_path, no_network, monkeypatch):
    write_idx(tmp_path / "share")
    monkeypatch.setattr(downloads, "DEBIAN", {"fashion_mnist": (PACKAGE, tmp_path / "share")})
    assert len(load("fashion_mnist", data_dir=tmp_path / "data", download=False)) == 6


def test_the_real_fashion_mnist():
    downloaded = store.default_data_dir() / "FashionMNIST/raw"
    places = (downloaded, downloads.DEBIAN["fashion_mnist"][1])
    if not any(place.is_dir() for place in places):
        pytest.skip("no Fashion-MNIST: python -m lib.data.sources fetch fashion_mnist")
    test = load("fashion_mnist", "test", download=False)
    assert test.checksum == "31f656d43529baa0"


# ------------------------------------------------------------------------------------- security
class Loud:
    """A pickle that fails the test when it is loaded."""

    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


def test_a_tampered_cifar_is_refused_before_it_is_unpickled(tmp_path):
    """CIFAR comes as pickles; torchvision compares their MD5 sums first."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("batches.meta", "test_batch", *(f"data_batch_{i}" for i in range(1, 6))):
        (folder / name).write_bytes(pickle.dumps(Loud()))
    with pytest.raises(FileNotFoundError, match="cifar-10-batches-py is incomplete or damaged"):
        load("cifar10", "train", tmp_path, download=False)


@pytest.mark.parametrize("member", ["images", "hue"])
def test_a_pickle_within_an_npz_file_is_refused(tmp_path, member):
    path = tmp_path / "mine/train.npz"
    write_npz(path, **{member: np.array([Loud(), None], object)})
    with pytest.raises(ValueError, match="it holds pickled objects, which are never loaded"):
        load("mine", data_dir=tmp_path)


def archive(**members) -> bytes:
    """A tar.gz of files, or of (kind, target) links, by name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, tuple):
                info.type, info.linkname = content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


class Server:
    """Answers every address with ``content``; beside ``folder`` nothing may appear."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.content = b""
        self.asked = []

    def send(self, url, path, *_, **__):
        self.asked.append(str(url))
        Path(path).write_bytes(self.content)

    def drive(self, *arguments, output=None, **options):
        url = arguments[0] if arguments else options.get("id")
        self.send(url, output or arguments[1])


@pytest.fixture
def server(tmp_path, monkeypatch):
    server = Server(tmp_path / "here" / "data")
    utils = torchvision.datasets.utils
    monkeypatch.setattr(utils, "_get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr(utils, "_urlretrieve", server.send)
    monkeypatch.setattr(downloads.urllib.request, "urlopen", lambda *_, **__: io.BytesIO())
    monkeypatch.setattr(gdown, "download", server.drive)
    monkeypatch.setattr(downloads, "DEBIAN", {})
    return server


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


NOT_FETCHED = ("", "ImageFolder", "StanfordCars")
FETCHED = [name for name, known in DATASETS.items() if known.provider not in NOT_FETCHED]


@pytest.mark.parametrize("name", FETCHED)
def test_a_download_with_another_checksum_is_refused_and_leaves_nothing(name, server, tmp_path):
    """Every provider's; the archive would even have everything in its place."""
    files = ("a", "data/b", "../../outside")
    server.content = archive(**{f"{DATASETS[name].folder}/{file}": b"x" for file in files})
    split = next(iter(DATASETS[name].splits))
    with pytest.raises(FileNotFoundError, match="download failed: .*(corrupted|MD5|md5)"):
        load(name, split, server.folder, image_size=8)
    assert server.asked
    assert names_in(tmp_path) == sorted(["here", "data", f".{name}.lock"])


@pytest.mark.parametrize("name", ["imagewoof", "imagenet", "cars"])
def test_sets_without_a_checksum_of_their_own_are_never_downloaded(name, server):
    with pytest.raises(FileNotFoundError, match="torchvision download failed"):
        load(name, "train", server.folder, image_size=8)
    assert server.asked == []


@pytest.mark.parametrize(
    "members",
    [
        {"fgvc-aircraft-2013b/../../../outside": b"x"},
        {"link": (tarfile.SYMTYPE, "../../.."), "link/outside": b"x"},
        {"link": (tarfile.LNKTYPE, "../../../secret")},
    ],
)
def test_an_archive_never_leaves_its_folder(members, server, tmp_path, monkeypatch):
    """Not even one whose checksum is right."""
    (tmp_path / "secret").write_text("secret")
    server.content = archive(**members)
    monkeypatch.setattr(downloads, "AIRCRAFT_MD5", hashlib.md5(server.content).hexdigest())
    with pytest.raises(FileNotFoundError, match="torchvision download failed"):
        load("aircraft", "train", server.folder, image_size=8)
    assert names_in(tmp_path) == sorted(["here", "data", ".aircraft.lock", "secret"])


def test_a_good_archive_is_unpacked(server, monkeypatch):
    """So that the tests above refuse what is wrong, and not everything."""
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, "jpeg")
    folder = "fgvc-aircraft-2013b/data"
    members = {
        f"{folder}/images/1.jpg": picture.getvalue(),
        f"{folder}/variants.txt": b"A380\n",
        f"{folder}/images_variant_train.txt": b"1 A380\n",
    }
    server.content = archive(**members)
    monkeypatch.setattr(downloads, "AIRCRAFT_MD5", hashlib.md5(server.content).hexdigest())
    assert len(load("aircraft", "train", server.folder, image_size=8)) == 1
