"""Every way to find a set, with tiny files and no network; malformed and damaged files; splits; lazy sets; checksums."""

import dataclasses
import gzip
import pickle
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
from PIL import Image

from lib.data import sets as image_sets
from lib.data import sources as data
from lib.data import views as augmentations
from lib.data.sources import (
    ImageSet,
    batches,
    data_table,
    generated,
    image_folder,
    label_subset,
    load,
    styled,
    train_validation_split,
)
from lib.runs import store as artifacts

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def fail(staging, name, split):
        raise OSError("no network")

    monkeypatch.setattr(data, "_torchvision_download", fail)
    monkeypatch.setattr(data, "DEBIAN", {})


def pixels(n=6, size=8, channels=3):
    return RANDOM.integers(0, 256, (n, size, size, channels), dtype=np.uint8)


def write_npz(path, n=6, **other):
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {
        "images": pixels(n),
        "labels": np.arange(n) % 2,
        "classes": np.array(["a", "b"]),
        **other,
    }
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return arrays


def write_image(path, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(path)


def write_idx(folder, split="train", n=6, packed=True):
    folder.mkdir(parents=True, exist_ok=True)
    prefix = {"train": "train", "test": "t10k"}[split]
    images, labels = pixels(n, 28, 1)[..., 0], np.arange(n, dtype=np.uint8) % 10
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        content = (
            bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()
        )
        if packed:
            (folder / f"{prefix}-{kind}-ubyte.gz").write_bytes(gzip.compress(content))
        else:
            (folder / f"{prefix}-{kind}-ubyte").write_bytes(content)
    return images, labels


# ---------------------------------------------------------------------------------------------------------------- where sets are found
def test_npz(tmp_path):
    arrays = write_npz(
        tmp_path / "mine/train.npz",
        hue=np.arange(6),
        hue_names=np.array(list("uvwxyz")),
        scale=np.linspace(0, 1, 6),
    )
    found = load("mine", data_dir=tmp_path)
    np.testing.assert_array_equal(found.images, arrays["images"])
    np.testing.assert_array_equal(found.labels, arrays["labels"])
    assert found.labels.dtype == np.int64 and found.classes == ["a", "b"] and len(found) == 6
    assert set(found.extra) == {"hue", "scale"}
    assert found.source == "npz file DATA_DIR/mine/train.npz" and found.title == "mine (6 images)"


def test_npz_grey_and_without_classes(tmp_path):
    write_npz(
        tmp_path / "mine/test.npz",
        images=pixels(channels=1)[..., 0],
        labels=np.array([0, 3, 1, 0, 0, 1], np.uint8),
        classes=None,
    )
    found = load("mine", "test", tmp_path)
    assert (
        found.images.shape == (6, 8, 8, 1)
        and found.classes == ["0", "1", "2", "3"]
        and found.labels.dtype == np.int64
    )


def test_data_dir_comes_from_the_environment(tmp_path, monkeypatch):
    write_npz(tmp_path / "mine/train.npz")
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    assert len(load("mine")) == 6
    monkeypatch.delenv("DATA_DIR")
    assert data.default_data_dir() == data.artifacts.ROOT / "data"
    monkeypatch.chdir(tmp_path)
    assert (
        load("mine", data_dir=Path(".")).source
        == load("mine", data_dir=tmp_path).source
        == "npz file DATA_DIR/mine/train.npz"
    )


def test_image_folder_with_and_without_classes(tmp_path):
    for file in (
        "pets/train/cat/1.jpg",
        "pets/train/cat/deep/2.PNG",
        "pets/train/ant/1.png",
        "flat/train/b.png",
        "flat/train/a.jpg",
    ):
        write_image(tmp_path / file)
    (tmp_path / "flat/train/notes.txt").write_text("not an image")
    classed, flat = load("pets", data_dir=tmp_path), load("flat", data_dir=tmp_path)
    assert classed.classes == ["ant", "cat"] and classed.labels.tolist() == [0, 1, 1]
    assert (
        flat.classes == ["unlabelled"]
        and flat.labels.tolist() == [0, 0]
        and flat.source == "image folder DATA_DIR/flat/train"
    )
    assert [file.name for file in flat.images.files] == ["a.jpg", "b.png"]
    write_image(tmp_path / "pets/train/lost.png")
    with pytest.raises(
        ValueError,
        match=r"holds 1 image\(s\) beside its sub-folders \(lost.png\): move each into a class",
    ):
        load("pets", data_dir=tmp_path)


@pytest.mark.parametrize("packed", [True, False])
def test_idx_files(tmp_path, packed):
    images, labels = write_idx(tmp_path / "MNIST/raw", "test", packed=packed)
    found = load("mnist", "test", tmp_path)
    np.testing.assert_array_equal(found.images[..., 0], images)
    np.testing.assert_array_equal(found.labels, labels)
    assert found.title == "mnist (6 images)" and found.source.startswith("torchvision layout")
    # torchvision itself reads the unpacked files alike.
    if not packed:
        (
            (tmp_path / "MNIST/raw/train-images-idx3-ubyte").touch(),
            (tmp_path / "MNIST/raw/train-labels-idx1-ubyte").touch(),
        )
        oracle = torchvision.datasets.MNIST(tmp_path, train=False)
        np.testing.assert_array_equal(found.images[..., 0], oracle.data.numpy())


def test_precedence(tmp_path):
    """npz before folder before torchvision layout before downloads."""

    def source():
        return load("mnist", data_dir=tmp_path, image_size=28).source

    write_idx(tmp_path / "MNIST/raw")
    assert source() == "torchvision layout DATA_DIR/MNIST/raw"
    write_image(tmp_path / "mnist/train/0/a.png")
    assert source() == "image folder DATA_DIR/mnist/train"
    write_npz(tmp_path / "mnist/train.npz")
    assert source() == "npz file DATA_DIR/mnist/train.npz"


def torchvision_layouts(root: Path, monkeypatch):
    """Miniature copies of what torchvision unpacks, without its md5 sums. Returns {name: (class names of the images in order)}."""
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    monkeypatch.setattr(torchvision.datasets.flowers102, "check_integrity", lambda *_: True)
    monkeypatch.setattr(torchvision.datasets.STL10, "_check_integrity", lambda _: True)
    monkeypatch.setattr(torchvision.datasets.CelebA, "_check_integrity", lambda _: True)

    cifar = root / "cifar-10-batches-py"
    cifar.mkdir()
    for i in range(1, 6):
        (cifar / f"data_batch_{i}").write_bytes(
            pickle.dumps({"data": np.full((1, 3072), i, np.uint8), "labels": [i % 2]})
        )
    (cifar / "batches.meta").write_bytes(pickle.dumps({"label_names": ["plane", "car"]}))

    stl = root / "stl10_binary"
    stl.mkdir()
    np.arange(2 * 3 * 96 * 96, dtype=np.uint8).tofile(stl / "train_X.bin")
    np.array([2, 1], np.uint8).tofile(stl / "train_y.bin")
    np.zeros(3 * 96 * 96, np.uint8).tofile(stl / "unlabeled_X.bin")
    (stl / "class_names.txt").write_text("airplane\nbird\n")
    (stl / "fold_indices.txt").write_text("0\n")

    celeba = root / "celeba"
    for i in (1, 2, 3):
        write_image(celeba / f"img_align_celeba/{i}.jpg")
    (celeba / "list_eval_partition.txt").write_text("1.jpg 0\n2.jpg 0\n3.jpg 2\n")
    (celeba / "identity_CelebA.txt").write_text("1.jpg 11\n2.jpg 12\n3.jpg 13\n")
    (celeba / "list_bbox_celeba.txt").write_text(
        "3\nimage_id x y\n1.jpg 0 0\n2.jpg 0 0\n3.jpg 0 0\n"
    )
    (celeba / "list_landmarks_align_celeba.txt").write_text(
        "3\nx y\n1.jpg 0 0\n2.jpg 0 0\n3.jpg 0 0\n"
    )
    (celeba / "list_attr_celeba.txt").write_text(
        "3\nMale Smiling\n1.jpg 1 -1\n2.jpg -1 1\n3.jpg -1 1\n"
    )

    for file in ("n03028079/a.JPEG", "n01440764/b.JPEG"):
        write_image(root / "imagenette2-320/train" / file.replace(".JPEG", ".jpeg"), (12, 9))
        write_image(root / "imagewoof2-320/train" / file)
        write_image(root / "imagenet/val" / file)

    flowers = root / "flowers-102"
    for i in (1, 2):
        write_image(flowers / f"jpg/image_{i:05d}.jpg")
    scipy.io.savemat(flowers / "imagelabels.mat", {"labels": [[5, 3]]})
    scipy.io.savemat(flowers / "setid.mat", {"trnid": [[1, 2]], "valid": [[1]], "tstid": [[2]]})

    food = root / "food-101"
    (food / "meta").mkdir(parents=True)
    (food / "meta/train.json").write_text('{"pie": ["pie/1"], "bread": ["bread/2"]}')
    for file in ("pie/1.jpg", "bread/2.jpg"):
        write_image(food / "images" / file)

    textures = root / "dtd/dtd"
    (textures / "labels").mkdir(parents=True)
    (textures / "labels/train1.txt").write_text("zigzag/1.jpg\ndotted/2.jpg\n")
    for file in ("zigzag/1.jpg", "dotted/2.jpg"):
        write_image(textures / "images" / file)

    planes = root / "fgvc-aircraft-2013b/data"
    for i in (1, 2):
        write_image(planes / f"images/{i}.jpg")
    (planes / "variants.txt").write_text("A380\nBoeing 707\n")
    (planes / "images_variant_train.txt").write_text("1 Boeing 707\n2 A380\n")

    sun = root / "SUN397"
    for i in range(10):
        write_image(sun / f"a/abbey/sun_{i}.jpg")
        write_image(sun / f"b/bar/sun_{i}.jpg")
    (sun / "ClassName.txt").write_text("/a/abbey\n/b/bar\n")

    pets = root / "oxford-iiit-pet"
    (pets / "annotations").mkdir(parents=True)
    (pets / "annotations/trainval.txt").write_text("Siamese_1 2 1 1\nbeagle_2 1 2 1\n")
    for file in ("Siamese_1.jpg", "beagle_2.jpg"):
        write_image(pets / "images" / file)

    cars = root / "stanford_cars"
    for i in (1, 2):
        write_image(cars / f"cars_train/{i}.jpg")
    (cars / "devkit").mkdir()
    rows = np.array([("1.jpg", 2), ("2.jpg", 1)], dtype=[("fname", "O"), ("class", "O")])
    scipy.io.savemat(cars / "devkit/cars_train_annos.mat", {"annotations": rows})
    scipy.io.savemat(
        cars / "devkit/cars_meta.mat", {"class_names": np.array(["Audi", "Fiat"], dtype=object)}
    )

    return {
        "cifar10": ["car", "plane", "car", "plane", "car"],
        "stl10": ["bird", "airplane"],
        "celeba": ["male", "not male"],
        "imagenette": ["tench", "church"],
        "imagewoof": ["n01440764", "n03028079"],
        "food101": ["bread", "pie"],
        "dtd": ["dotted", "zigzag"],
        "aircraft": ["Boeing 707", "A380"],
        "pets": ["Siamese", "Beagle"],
        "cars": ["Fiat", "Audi"],
    }


def test_torchvision_layouts(tmp_path, monkeypatch):
    expected = torchvision_layouts(tmp_path, monkeypatch)
    for name, classes in expected.items():
        size = data.DATASETS[name].size or 8
        found = load(name, "train", tmp_path, image_size=size)
        assert sorted(found.classes[label] for label in found.labels) == sorted(classes), name
        assert found.batch(np.arange(len(found))).shape == (len(classes), 3, size, size), name
        assert found.source.startswith("torchvision layout DATA_DIR/"), name
    # Which image has which label, where files were sorted.
    found = load("dtd", "train", tmp_path, image_size=8)
    assert (
        [file.parent.name for file in found.images.files]
        == ["dotted", "zigzag"]
        == [found.classes[label] for label in found.labels]
    )
    np.testing.assert_array_equal(
        load("cifar10", "train", tmp_path).images[:, 0, 0, 0], [1, 2, 3, 4, 5]
    )
    np.testing.assert_array_equal(
        load("flowers102", "train", tmp_path, image_size=8).labels, [4, 2]
    )
    assert (
        load("imagenet", "test", tmp_path, image_size=8).source
        == "torchvision layout DATA_DIR/imagenet"
    )
    celeba = load("celeba", "train", tmp_path, image_size=8)
    assert celeba.extra["Smiling"].tolist() == [0, 1] and celeba.extra["identity"].tolist() == [
        11,
        12,
    ]
    unlabelled = load("stl10", "train+unlabeled", tmp_path)
    assert unlabelled.classes[unlabelled.labels[-1]] == "unlabelled" and len(unlabelled) == 3
    stored = np.fromfile(tmp_path / "stl10_binary/train_X.bin", np.uint8).reshape(2, 3, 96, 96)
    assert (
        load("stl10", "train", tmp_path).images[1, 5, 7, 2] == stored[1, 2, 7, 5]
    )  # column-major on disk
    train, test = (
        load("sun397", "train", tmp_path, image_size=8),
        load("sun397", "test", tmp_path, image_size=8),
    )
    assert np.bincount(train.labels).tolist() == [8, 8] and np.bincount(test.labels).tolist() == [
        2,
        2,
    ]
    assert not set(train.images.files) & set(test.images.files)
    assert load("styled_dtd", "train", tmp_path, image_size=16).images.shape == (2, 16, 16, 3), (
        "of sets without a size of their own too"
    )


@pytest.mark.parametrize(
    "name, file, content",
    [
        ("food101", "food-101/meta/train.json", b'{"pie": ["pi'),
        ("sun397", "SUN397/ClassName.txt", b""),
        ("cars", "stanford_cars/devkit/cars_train_annos.mat", b"MATLAB 5.0 MAT-file"),
    ],
)
def test_damaged_annotations_are_said_to_be_so(name, file, content, tmp_path, monkeypatch):
    torchvision_layouts(tmp_path, monkeypatch)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(
        FileNotFoundError, match=f"{file.split('/')[0]} is incomplete or damaged: .+"
    ):
        load(name, "train", tmp_path, image_size=8, download=False)


def test_hair_is_what_exactly_one_attribute_says():
    attributes = {name: np.zeros(4, np.int64) for name in data.HAIR}
    attributes["Bald"][:2], attributes["Black_Hair"][1:3] = 1, 1
    assert data.hair_colour(attributes).tolist() == [0, -1, 4, -1], (
        "bald, two attributes, black, none"
    )


def test_style_of_celeba_is_hair_and_the_most_balanced_attributes():
    generator, names = (
        np.random.default_rng(0),
        [name for name in data.CELEBA_ATTRIBUTES if name != "Male"],
    )
    shares = dict(zip(names, np.linspace(0.01, 0.6, len(names)), strict=True))
    extra = {
        name: (generator.random(2000) < share).astype(np.int64) for name, share in shares.items()
    }
    extra |= {
        "hair": np.zeros(2000, np.int64),
        "identity": np.arange(2000),
        "Male": np.arange(2000) % 2,
    }
    images = data.ImageSet(
        "celeba",
        "train",
        np.zeros((2000, 8, 8, 3), np.uint8),
        extra["Male"],
        ["not male", "male"],
        extra,
    )
    found = data.style_factors(images)
    nearest = sorted(names, key=lambda name: abs(extra[name].mean() - 0.5))[:20]
    assert found == ["hair", *nearest] and abs(shares[nearest[0]] - 0.5) < 0.05
    assert data.style_factors(dataclasses.replace(images, name="styled_faces")) == [
        name for name in extra if name != "Male"
    ], "the class"
    assert (
        data.has_styles("celeba")
        and data.has_styles("styled_digits")
        and not data.has_styles("cifar10")
    )


def test_sets_of_many_sizes_ask_for_one_before_any_download(tmp_path):
    with pytest.raises(ValueError, match="food101 has images of many sizes: give image_size"):
        load("food101", data_dir=tmp_path)


# ---------------------------------------------------------------------------------------------------------------- fetching
def fetch_idx(n=6):
    calls = []

    def fetch(staging, name, split):
        calls.append(name)
        (staging / "MNIST/raw").mkdir(parents=True)
        time.sleep(0.2)
        write_idx(staging / "MNIST/raw", n=n)

    return fetch, calls


def test_download_lands_whole_and_is_not_repeated(tmp_path, monkeypatch):
    fetch, calls = fetch_idx()
    monkeypatch.setattr(data, "_torchvision_download", fetch)
    assert (
        load("mnist", data_dir=tmp_path).source == "torchvision download, now in DATA_DIR/MNIST/raw"
    )
    assert load("mnist", data_dir=tmp_path).source == "torchvision layout DATA_DIR/MNIST/raw"
    assert calls == ["mnist"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".mnist.lock", "MNIST"]


def test_two_jobs_at_once_fetch_once(tmp_path, monkeypatch):
    fetch, calls = fetch_idx()
    monkeypatch.setattr(data, "_torchvision_download", fetch)
    found = []
    jobs = [
        threading.Thread(target=lambda: found.append(load("mnist", data_dir=tmp_path).checksum))
        for _ in range(4)
    ]
    [job.start() for job in jobs]
    [job.join() for job in jobs]
    assert len(found) == 4 and len(set(found)) == 1 and calls == ["mnist"]


def test_failed_download_leaves_nothing_behind(tmp_path, monkeypatch):
    def half(staging, name, split):
        (staging / "MNIST/raw").mkdir(parents=True)
        (staging / "MNIST/raw/train-images-idx3-ubyte.gz").write_bytes(b"half")
        raise OSError("connection reset")

    monkeypatch.setattr(data, "_torchvision_download", half)
    with pytest.raises(FileNotFoundError, match="torchvision download failed: connection reset"):
        load("mnist", data_dir=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == [".mnist.lock"]


@pytest.mark.parametrize("damage", ["cut gz", "no gz", "cut data", "other file", "fewer labels"])
def test_damaged_idx_is_found_and_fetched_again(tmp_path, monkeypatch, damage):
    raw = tmp_path / "MNIST/raw"
    write_idx(raw, n=9)
    file = raw / "train-images-idx3-ubyte.gz"
    content = file.read_bytes()
    if damage == "cut gz":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "no gz":
        file.write_bytes(b"<html>try later</html>")
    elif damage == "cut data":
        file.write_bytes(gzip.compress(gzip.decompress(content)[:-10]))
    elif damage == "other file":
        file.write_bytes(gzip.compress(b"something else entirely"))
    else:
        (raw / "train-labels-idx1-ubyte.gz").write_bytes(
            gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 2, 1, 1]))
        )
    with pytest.raises(FileNotFoundError, match="MNIST/raw is incomplete or damaged.*train"):
        load("mnist", data_dir=tmp_path, download=False)
    fetch, calls = fetch_idx()
    monkeypatch.setattr(data, "_torchvision_download", fetch)
    with pytest.warns(UserWarning, match="fetching mnist again"):
        assert len(load("mnist", data_dir=tmp_path)) == 6
    assert (
        calls == ["mnist"] and (tmp_path / "MNIST.damaged").is_dir()
    )  # nobody's files are deleted


def test_files_of_ones_own_outlive_two_downloads_into_their_folder(tmp_path):
    (tmp_path / "dtd").mkdir()
    (tmp_path / "dtd/mine.npz").write_text("of one's own")
    for content in ("first", "second"):
        with data._staging(tmp_path, "dtd") as staging:
            (staging / "dtd").mkdir()
            (staging / "dtd/images").write_text(content)
            data._put_in_place(staging, tmp_path)
    assert (tmp_path / "dtd/mine.npz").read_text() == "of one's own" and (
        tmp_path / "dtd/images"
    ).read_text() == "second"
    assert (tmp_path / "dtd.damaged2/images").read_text() == "first"


def test_downloads_have_a_time_limit_and_make_no_noise(tmp_path, monkeypatch, capsys):
    monkeypatch.undo()
    seen = []

    def provider(root, name, split, download):
        seen.append(socket.getdefaulttimeout())
        print("Downloading ...")
        raise OSError("no route")

    monkeypatch.setattr(data, "_provider", provider)
    before = socket.getdefaulttimeout()
    with pytest.raises(FileNotFoundError, match="no route"):
        load("mnist", data_dir=tmp_path)
    assert seen == [data.NETWORK_TIMEOUT] and socket.getdefaulttimeout() == before
    assert capsys.readouterr() == ("", "")


def test_known_set_nowhere_to_be_had(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError) as error:
        load("cars", data_dir=tmp_path, image_size=8)
    for way in (
        "cars (train)",
        "cars/train.npz",
        "<class>/*.jpg",
        "stanford_cars",
        "no network",
        "download no longer exists",
    ):
        assert way in str(error.value)
    monkeypatch.setattr(
        data, "DEBIAN", {"fashion_mnist": ("dataset-fashion-mnist", tmp_path / "none")}
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError) as error:
        load("fashion_mnist", data_dir=tmp_path)
    for way in (
        "no apt-get",
        "apt-get install dataset-fashion-mnist",
        "apt-get update",
        "FashionMNIST/raw",
    ):
        assert way in str(error.value)
    with pytest.raises(FileNotFoundError, match="download=False"):
        load("mnist", data_dir=tmp_path / "empty", download=False)
    assert not (tmp_path / "empty").exists()


def fake_apt(folder, script, monkeypatch):
    folder.mkdir()
    (folder / "apt-get").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{Path('/usr/bin')}:{Path('/bin')}")
    monkeypatch.setattr(
        data,
        "DEBIAN",
        {
            "fashion_mnist": (
                "dataset-fashion-mnist",
                Path("/usr/share/datasets/not-installed-here"),
            )
        },
    )


@pytest.mark.skipif(
    not shutil.which("dpkg-deb"),
    reason="dpkg-deb builds the test package, and is not on this system",
)
def test_debian_package_is_fetched_and_unpacked(tmp_path, monkeypatch):
    package = tmp_path / "package"
    images, _ = write_idx(package / "usr/share/datasets/not-installed-here")
    (package / "DEBIAN").mkdir()
    (package / "DEBIAN/control").write_text(
        "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: d\n"
    )
    subprocess.run(
        ["dpkg-deb", "-b", package, tmp_path / "x_1_all.deb"], check=True, capture_output=True
    )
    fake_apt(
        tmp_path / "bin",
        f'for last; do :; done; [ "$last" = dataset-fashion-mnist ] && cp {tmp_path}/x_1_all.deb .',
        monkeypatch,
    )
    found = load("fashion_mnist", data_dir=tmp_path / "data")
    np.testing.assert_array_equal(found.images[..., 0], images)
    assert found.source == "Debian package dataset-fashion-mnist, now in DATA_DIR/FashionMNIST/raw"
    assert sorted(p.name for p in (tmp_path / "data").iterdir()) == [
        ".fashion_mnist.lock",
        "FashionMNIST",
    ]


@pytest.mark.skipif(not shutil.which("dpkg"), reason="dpkg is not on this system")
def test_debian_without_package_lists_says_apt_get_update(tmp_path, monkeypatch):
    fake_apt(
        tmp_path / "bin",
        'echo "E: Unable to locate package dataset-fashion-mnist" >&2; exit 100',
        monkeypatch,
    )
    with pytest.raises(FileNotFoundError, match=r"run `apt-get update` \(as root\)"):
        load("fashion_mnist", data_dir=tmp_path / "data")


def test_installed_debian_package(tmp_path, monkeypatch):
    write_idx(tmp_path / "share")
    monkeypatch.setattr(
        data, "DEBIAN", {"fashion_mnist": ("dataset-fashion-mnist", tmp_path / "share")}
    )
    assert len(load("fashion_mnist", data_dir=tmp_path / "data", download=False)) == 6


def test_real_fashion_mnist(monkeypatch):
    if not any(
        f.is_dir()
        for f in (
            data.default_data_dir() / "FashionMNIST/raw",
            Path("/usr/share/datasets/fashion-mnist"),
        )
    ):
        pytest.skip(
            "Fashion-MNIST is neither in DATA_DIR nor installed: python -m lib.data.sources fetch fashion_mnist"
        )
    test = load("fashion_mnist", "test", download=False)
    assert (
        test.title == "fashion_mnist"
        and test.images.shape == (10_000, 28, 28, 1)
        and test.checksum == "31f656d43529baa0"
    )
    assert np.bincount(test.labels).tolist() == [1000] * 10 and test.classes[9] == "Ankle boot"


# ---------------------------------------------------------------------------------------------------------------- malformed input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "lacks images .it has labels, classes"),
        ({"labels": None}, "lacks labels"),
        (
            {"images": np.zeros((6, 8, 8, 3), np.float32)},
            "images have dtype float32: store them as uint8",
        ),
        ({"images": np.zeros((6, 8), np.uint8)}, r"images have shape \[6, 8\]"),
        ({"images": np.zeros((6, 3, 8, 8), np.uint8)}, "images have 8 channels"),
        ({"images": np.zeros((6, 8, 8, 2), np.uint8)}, "images have 2 channels"),
        (
            {"images": np.zeros((0, 8, 8, 3), np.uint8), "labels": np.zeros(0, int)},
            "there are no images",
        ),
        ({"labels": np.zeros(5, int)}, r"labels has shape \[5\] but there are 6 images"),
        ({"labels": np.zeros((6, 1), int)}, r"labels has shape \[6, 1\]"),
        ({"labels": np.zeros(6)}, "labels have dtype float64"),
        ({"labels": np.array([0, 1, 0, 1, 0, -1])}, "labels run from -1 to 1"),
        (
            {"labels": np.array([0, 1, 0, 1, 0, 2])},
            "labels run from 0 to 2 but there are 2 classes",
        ),
        ({"labels": -np.ones(6, int), "classes": None}, "labels run from -1"),
        ({"hue": np.zeros(4, int)}, r"hue has shape \[4\]"),
        (
            {"hue": np.array([{}] * 6, dtype=object)},
            "store arrays of numbers and text, not Python objects",
        ),
    ],
)
def test_malformed_npz(tmp_path, change, message):
    write_npz(tmp_path / "mine/train.npz", **change)
    with pytest.raises(ValueError, match=message) as error:
        load("mine", data_dir=tmp_path)
    assert "mine/train" in str(error.value)


@pytest.mark.parametrize("keep", [0, 10, 200, 0.5, 0.99])
def test_truncated_npz(tmp_path, keep):
    file = tmp_path / "mine/train.npz"
    write_npz(file, n=50)
    content = file.read_bytes()
    file.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(ValueError, match="train.npz is truncated or not an npz file .*; delete it"):
        load("mine", data_dir=tmp_path)


def test_flipped_byte_in_npz(tmp_path):
    file = tmp_path / "mine/train.npz"
    write_npz(file, n=50)
    content = bytearray(file.read_bytes())
    content[1000] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="not an npz file"):
        load("mine", data_dir=tmp_path)


def test_pickles_are_never_loaded(tmp_path):
    class Loud:
        def __reduce__(self):
            return (pytest.fail, ("unpickled",))

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/train.npz").write_bytes(pickle.dumps(Loud()))
    with pytest.raises(ValueError, match="not Python objects"):
        load("mine", data_dir=tmp_path)
    np.save(tmp_path / "mine/test.npy", np.zeros(3))
    (tmp_path / "mine/test.npy").rename(tmp_path / "mine/test.npz")
    with pytest.raises(ValueError, match="not an npz file"):
        load("mine", "test", tmp_path)


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "..", ".", "", "/etc", ".hidden", "a b", "a\\b", "x\n"]
)
def test_names_that_leave_the_folder(tmp_path, name):
    for arguments in ((name, "train"), ("mine", name)):
        with pytest.raises(ValueError, match="cannot name a set or split"):
            load(*arguments, data_dir=tmp_path)


def test_unknown_set_and_split(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"no set 'nosuch': choose one of mnist, .*generated_noise.*nosuch/train.npz",
    ):
        load("nosuch", data_dir=tmp_path)
    with pytest.raises(ValueError, match="cifar10 has no split 'valid': it has train, test"):
        load("cifar10", "valid", tmp_path)
    write_npz(tmp_path / "mine/train.npz")
    with pytest.raises(ValueError, match="has no split 'test': it has train"):
        load("mine", "test", tmp_path)
    with pytest.raises(ValueError, match="image_size is 0"):
        load("digits", image_size=0)


def test_folders_that_cannot_be_read(tmp_path):
    write_image(tmp_path / "mixed/train/a.png", (8, 8))
    write_image(tmp_path / "mixed/train/b.png", (9, 8))
    with pytest.raises(ValueError, match="2 sizes.*give image_size"):
        load("mixed", data_dir=tmp_path)
    assert load("mixed", data_dir=tmp_path, image_size=4).images.shape == (2, 4, 4, 3)
    content = (tmp_path / "mixed/train/b.png").read_bytes()
    (tmp_path / "mixed/train/b.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="b.png is not a readable image"):
        load("mixed", data_dir=tmp_path, image_size=4).batch([1])
    (tmp_path / "mixed/train/b.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="b.png is not a readable image"):
        load("mixed", data_dir=tmp_path)
    (tmp_path / "hollow/train/empty").mkdir(parents=True)
    with pytest.raises(ValueError, match="empty holds no images"):
        load("hollow", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        image_folder(tmp_path / "nowhere")
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path / "mixed/train/b.png")
    with pytest.raises(ValueError, match="more than 8 bits"):
        load("mixed", data_dir=tmp_path, image_size=8).batch([1])


# ---------------------------------------------------------------------------------------------------------------- splits
def test_only_all_is_split_80_20_by_class(tmp_path):
    labels = np.repeat([0, 1, 2], [50, 20, 10])
    arrays = write_npz(
        tmp_path / "mine/all.npz",
        n=80,
        labels=labels,
        classes=np.array(list("abc")),
        serial=np.arange(80),
    )
    train, test = load("mine", "train", tmp_path), load("mine", "test", tmp_path)
    assert np.bincount(train.labels).tolist() == [40, 16, 8] and np.bincount(
        test.labels
    ).tolist() == [10, 4, 2]
    assert sorted([*train.index, *test.index]) == list(range(80))
    np.testing.assert_array_equal(test.images, arrays["images"][test.index])
    np.testing.assert_array_equal(test.extra["serial"], test.index)
    np.testing.assert_array_equal(test.index, load("mine", "test", tmp_path).index)
    assert len(load("mine", "all", tmp_path)) == 80 and train.split == "train"
    # With a test file of its own nothing is taken out of "all", which could overlap with it.
    write_npz(tmp_path / "mine/test.npz")
    with pytest.raises(ValueError, match="no split 'train'"):
        load("mine", "train", tmp_path)
    (
        write_image(tmp_path / "folder/all/a/1.png"),
        [write_image(tmp_path / f"folder/all/b/{i}.png") for i in range(5)],
    )
    assert load("folder", "test", tmp_path).labels.tolist() == [1]


def test_validation_split():
    labels = RANDOM.permutation(np.repeat([0, 1, 7], [100, 40, 15]))
    train, validation = train_validation_split(labels)
    assert sorted([*train, *validation]) == list(range(155))
    assert [int((labels[validation] == c).sum()) for c in (0, 1, 7)] == [10, 4, 2]
    again, other = train_validation_split(labels)[1], train_validation_split(labels, seed=1)[1]
    np.testing.assert_array_equal(validation, again)
    assert not np.array_equal(validation, other)
    for arguments in (
        (labels, 0),
        (labels, 1.5),
        (labels, float("nan")),
        (labels, 1.0),
        (labels[:0], 0.1),
        (np.arange(5), 0.1),
    ):
        with pytest.raises(ValueError, match="fraction|one label an image"):
            train_validation_split(*arguments)


def test_label_subset():
    labels = np.repeat([0, 1, 2], [1000, 500, 3])
    chosen = label_subset(labels, 0.01, seed=3)
    assert np.bincount(labels[chosen]).tolist() == [10, 5, 1]
    assert len(set(chosen)) == 16 and np.array_equal(chosen, np.sort(chosen))
    assert not np.array_equal(chosen, label_subset(labels, 0.01, seed=4))
    np.testing.assert_array_equal(label_subset(labels, 1.0), np.arange(1503))
    assert set(chosen) < set(label_subset(labels, 0.1, seed=3))  # fewer labels are some of the more


def test_choice_is_spread_over_the_class():
    """Every member of a class is as likely as any other."""
    counts = sum(
        np.bincount(label_subset(np.zeros(20, int), 0.25, seed), minlength=20)
        for seed in range(400)
    )
    assert (
        counts.sum() == 2000 and counts.min() > 60 and counts.max() < 145
    )  # mean 100, standard deviation 8.7


# ---------------------------------------------------------------------------------------------------------------- image sets
@pytest.fixture
def folder_set(tmp_path):
    for i in range(12):
        write_image(tmp_path / f"set/{'ab'[i % 2]}/{i:02d}.png", (10, 10))
    return image_folder(tmp_path / "set")


def test_batch_is_uint8_channels_first_on_the_device():
    images = ImageSet("x", "train", pixels(), np.zeros(6, int), ["a"])
    batch = images.batch(torch.tensor([4, 0, 4]))
    assert (
        batch.dtype == torch.uint8
        and batch.shape == (3, 3, 8, 8)
        and batch.is_contiguous(memory_format=torch.channels_last)
    )
    np.testing.assert_array_equal(batch.permute(0, 2, 3, 1), images.images[[4, 0, 4]])
    batch.zero_()
    assert images.images.any()  # a batch is a copy
    for wrong in ([6], [-1], [], [0.5], [True], np.arange(6) > 2, 3):
        for take in (images.batch, images.subset):
            with pytest.raises(ValueError, match="indices"):
                take(wrong)


def test_folder_decodes_only_what_is_asked_for(folder_set, monkeypatch):
    opened = []
    real = Image.open
    monkeypatch.setattr(
        Image, "open", lambda file, *rest: (opened.append(Path(file).name), real(file, *rest))[1]
    )
    order = [3, 0]
    batch = folder_set.batch(order)
    assert sorted(opened) == sorted(folder_set.images.files[i].name for i in order)
    direct = [np.asarray(real(folder_set.images.files[i]).convert("RGB")) for i in order]
    np.testing.assert_array_equal(batch.permute(0, 2, 3, 1), np.stack(direct))
    np.testing.assert_array_equal(folder_set.images[3], direct[0])


def test_resize_keeps_the_centre_square(tmp_path):
    wide = np.zeros((40, 100, 3), np.uint8)
    wide[:, :30], wide[:, 30:70], wide[:, 70:] = (
        255,
        np.linspace(0, 200, 40).astype(np.uint8)[None, :, None],
        255,
    )
    Image.fromarray(wide).save(tmp_path / "wide.png")
    small = load_one(tmp_path, 20)
    square = Image.fromarray(wide).resize((50, 20), Image.Resampling.BILINEAR).crop((15, 0, 35, 20))
    assert np.abs(small.astype(int) - np.asarray(square)).max() <= 1  # rounding
    # Grey, transparent and palette files become RGB; a photograph held sideways is turned upright.
    for mode in ("L", "RGBA", "P", "LA", "1"):
        Image.fromarray(wide).convert(mode).save(tmp_path / "wide.png")
        assert load_one(tmp_path, 20).shape == (20, 20, 3)
    Image.new("RGBA", (20, 20), (200, 0, 0, 0)).save(tmp_path / "wide.png")
    assert (load_one(tmp_path, 20) == 255).all()  # what is transparent is put on white
    (tmp_path / "wide.png").unlink()
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise
    Image.fromarray(wide[:, :40]).save(tmp_path / "side.png", exif=exif)
    upright = load_one(tmp_path, 40)
    np.testing.assert_array_equal(upright, np.rot90(wide[:, :40], -1))
    (tmp_path / "side.png").unlink()
    # Without a size the files have their own, as they are seen; a camera may put several pictures into one file (MPO).
    picture = Image.fromarray(wide[:, :30])
    picture.save(tmp_path / "side.jpg", exif=exif)
    picture.save(tmp_path / "two.jpg", "MPO", exif=exif, save_all=True, append_images=[picture])
    turned = image_folder(tmp_path, None)
    assert (
        len(turned) == 2
        and turned.images.shape[1:3] == tuple(turned.batch([0]).shape[2:]) == (30, 40)
        and wide.shape[0] == 40
    )


def load_one(folder, size):
    return image_folder(folder, size).batch([0])[0].permute(1, 2, 0).numpy()


def test_to_makes_small_folder_sets_resident(folder_set, monkeypatch):
    resident = folder_set.to("cpu")
    for file in folder_set.images.files[:3]:
        file.rename(file.with_suffix(".away"))
    np.testing.assert_array_equal(resident.batch([0, 1, 5])[2], folder_set.batch([5])[0])
    assert resident.batch([0]).any()
    for file in folder_set.images.files[:3]:
        file.with_suffix(".away").rename(file)
    assert resident.checksum == folder_set.checksum
    np.testing.assert_array_equal(resident.subset([2, 7]).batch([1]), folder_set.batch([7]))
    monkeypatch.setattr(image_sets, "RESIDENT_BYTES", 100)
    assert folder_set.to("cpu").pixels is None  # too large: still streams


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_on_the_gpu(folder_set):
    for images in (folder_set, ImageSet("x", "train", pixels(12), np.zeros(12, int), ["a"])):
        assert images.to("cuda").batch([3]).device.type == "cuda"
        np.testing.assert_array_equal(images.to("cuda").batch([3, 1]).cpu(), images.batch([3, 1]))


@pytest.mark.parametrize("lazy", [True, False])
def test_prefetched_batches_equal_direct_ones(folder_set, lazy):
    images = folder_set if lazy else folder_set.to("cpu")
    order = [[1, 0], [5], [11, 2, 3]]
    for got, indices in zip(batches(images, iter(order)), order, strict=True):
        np.testing.assert_array_equal(got, images.batch(indices))
    assert list(batches(images, [])) == []
    with pytest.raises(ValueError, match="indices run from 99"):
        list(batches(images, [[0], [99]]))


def test_next_batch_is_decoded_while_this_one_is_used(folder_set, monkeypatch):
    decoded = threading.Event()
    real = ImageSet.batch

    def batch(self, indices):
        result = real(self, indices)
        if indices == [1]:
            decoded.set()
        return result

    monkeypatch.setattr(ImageSet, "batch", batch)
    stream = batches(folder_set, [[0], [1], [2]])
    next(stream)
    assert decoded.wait(10)  # nobody asked for the second batch yet
    stream.close()


def test_subset_is_named_as_one(folder_set):
    digits = load("digits")
    assert digits.title == "digits"
    part = digits.subset(np.arange(1400))
    assert part.title == "digits (1,400 images)" and part.subset([5]).title == "digits (1 image)"
    assert (
        part.subset([7, 3]).index.tolist() == digits.index[[7, 3]].tolist()
    )  # where scikit-learn has them
    assert folder_set.subset([7, 5]).subset([1]).index.tolist() == [5]
    assert (
        part.checksum != digits.checksum and part.labels.tolist() == digits.labels[:1400].tolist()
    )
    some = folder_set.subset([4, 2])
    np.testing.assert_array_equal(some.batch([0]), folder_set.batch([4]))
    assert some.checksum != folder_set.checksum


def test_checksum_sees_every_change(folder_set, monkeypatch):
    images, labels = pixels(), np.array([0, 1, 0, 1, 0, 1])
    base = ImageSet("x", "train", images, labels, ["a", "b"])
    changed = images.copy()
    changed[5, 7, 7, 2] ^= 1
    others = [
        (changed, labels),
        (images, labels[::-1]),
        (images.reshape(6, 4, 16, 3), labels),
        (images[:5], labels[:5]),
    ]
    sums = {base.checksum} | {
        ImageSet("x", "train", *arrays, ["a", "b"]).checksum for arrays in others
    }
    assert len(sums) == 5 and all(len(s) == 16 for s in sums)
    assert (
        ImageSet(
            "other", "test", np.asfortranarray(images), labels.astype(np.int8), ["c", "d"]
        ).checksum
        == base.checksum
    )
    first = folder_set.checksum
    root = folder_set.images.root
    assert image_folder(root).checksum == first and image_folder(root, 5).checksum != first
    assert image_folder(shutil.copytree(root, root.with_name("moved"))).checksum == first
    other = shutil.copytree(root, root.with_name("mended"))
    content = bytearray((other / "a/00.png").read_bytes())
    content[-20] ^= 1
    (other / "a/00.png").write_bytes(content)
    assert image_folder(other).checksum != first, "of the same size, with other content"
    monkeypatch.setattr(image_sets, "RESIDENT_BYTES", 1)
    assert image_folder(other).checksum == image_folder(root).checksum, (
        "sets that are not held in memory are told by names and sizes"
    )
    monkeypatch.undo()
    write_image(root / "a/extra.png", (10, 10))
    assert image_folder(root).checksum != first
    (root / "a/extra.png").rename(root / "b/extra.png")
    assert image_folder(root).checksum != first
    (root / "b/extra.png").unlink()
    assert image_folder(root).checksum == first
    (root / "b").rename(root / "c")
    assert image_folder(root).checksum != first


def test_image_size_resizes_arrays(tmp_path):
    arrays = write_npz(tmp_path / "mine/train.npz")
    found = load("mine", data_dir=tmp_path, image_size=16)
    oracle = np.stack(
        [
            np.asarray(Image.fromarray(image).resize((16, 16), Image.Resampling.BILINEAR))
            for image in arrays["images"]
        ]
    )
    np.testing.assert_array_equal(found.images, oracle)
    assert load("digits", image_size=28).images.shape == (1438, 28, 28, 1)


# ---------------------------------------------------------------------------------------------------------------- sets that need no files
def test_digits(tmp_path):
    train, test = load("digits", "train", tmp_path), load("digits", "test", tmp_path)
    assert (len(train), len(test)) == (1438, 359) and train.title == "digits"
    assert (
        train.images.min() == 0 and train.images.max() == 255 and len(np.unique(train.images)) == 17
    )
    both = np.bincount(train.labels) + np.bincount(test.labels)
    assert np.abs(np.bincount(test.labels) / both - 0.2).max() < 0.003
    assert not set(train.index) & set(test.index) and len(train.index) + len(test.index) == 1797


def test_generated_shapes_show_what_their_labels_say():
    images = generated("shapes", n=300, size=48, seed=5)
    assert (
        images.checksum
        == generated("shapes", 300, 48, 5).checksum
        != generated("shapes", 300, 48, 6).checksum
    )
    assert np.bincount(images.labels).tolist() == [60] * 5 and images.images.dtype == np.uint8
    pixel = images.images.astype(float)
    brightest = pixel.max(axis=(1, 2))  # the colour shows: [N, 3]
    hue = np.array(list(image_sets.COLOURS.values()))[images.extra["colour"]]
    assert np.abs(brightest - hue).mean() < 25
    # The centroid of what is bright is where x and y say, and the covered area grows with the square of scale.
    weight = np.clip(pixel.max(axis=3) - 110, 0, None)
    grid = (np.arange(48) + 0.5) / 48
    total = weight.sum(axis=(1, 2))
    assert np.abs((weight.sum(1) * grid).sum(1) / total - images.extra["x"]).max() < 0.02
    assert np.abs((weight.sum(2) * grid).sum(1) / total - images.extra["y"]).max() < 0.02
    disc = images.labels == 0
    area = (pixel[disc].max(axis=3) > 130).mean(axis=(1, 2))
    np.testing.assert_allclose(area, np.pi * (0.9 * images.extra["scale"][disc]) ** 2, rtol=0.15)


def ramp(n=200, size=28):
    """Grey images of one bright disc in the middle with a darker spot right of it, so that place, size and turn can be read off."""
    grid = (np.arange(size) + 0.5) / size - 0.5
    x, y = np.meshgrid(grid, grid)
    disc, spot = np.hypot(x, y) < 0.4, np.hypot(x - 0.25, y) < 0.1
    image = (200 * disc - 150 * (disc & spot)).astype(np.uint8)
    return ImageSet(
        "ramp", "train", np.repeat(image[None, ..., None], n, 0), np.arange(n) % 3, ["a", "b", "c"]
    )


def test_styled_images_show_what_their_factors_say():
    images = styled(ramp(), size=48)
    pixel, extra = images.images.astype(float), images.extra
    assert (
        images.checksum == styled(ramp(), 48).checksum != styled(ramp(), 48, seed=1).checksum
        and images.name == "styled_ramp"
    )
    assert images.images.shape == (200, 48, 48, 3) and np.array_equal(images.labels, ramp().labels)
    hue = np.array(list(image_sets.HUES.values()))[extra["colour"]]
    assert np.abs(pixel.max(axis=(1, 2)) - hue * 200 / 255).max() <= 1
    level = (
        pixel.sum(3) / hue.sum(1)[:, None, None] * 255 / 200
    )  # [N, 48, 48], 1 on the disc, 0.25 on the spot
    grid = (np.arange(48) + 0.5) / 48 - 0.5
    inside = level > 0.1
    centre_x, centre_y = ((inside.sum(axis) * grid).sum(1) / inside.sum((1, 2)) for axis in (1, 2))
    assert np.abs(centre_x - extra["x"]).max() < 0.01 and np.abs(centre_y - extra["y"]).max() < 0.01
    np.testing.assert_allclose(inside.mean((1, 2)), np.pi * (0.4 * extra["scale"]) ** 2, rtol=0.12)
    away = np.hypot(
        grid[None, None] - extra["x"][:, None, None],
        grid[None, :, None] - extra["y"][:, None, None],
    )
    dark = (level < 0.6) & (away < 0.36 * extra["scale"][:, None, None])  # not the blurred edge
    spot_x, spot_y = ((dark.sum(axis) * grid).sum(1) / dark.sum((1, 2)) for axis in (1, 2))
    turned = np.rad2deg(np.arctan2(spot_y - extra["y"], spot_x - extra["x"]))
    assert (
        np.corrcoef(turned, extra["rotation"])[0, 1] > 0.97
        and np.abs(turned - extra["rotation"]).mean() < 4
    )
    factors = np.stack(
        [extra[name] for name in ("colour", "scale", "rotation", "x", "y")] + [images.labels]
    )
    assert (
        np.abs(np.corrcoef(factors) - np.eye(6)).max() < 0.25
    )  # independent of one another and of the content


def test_styled_by_name(tmp_path):
    train, test = load("styled_digits", "train", tmp_path), load("styled_digits", "test", tmp_path)
    assert (
        train.title == "styled_digits"
        and (len(train), len(test)) == (1438, 359)
        and train.images.shape[1:] == (32, 32, 3)
    )
    assert np.array_equal(test.labels, load("digits", "test", tmp_path).labels)
    assert load("styled_digits", "test", tmp_path, image_size=16).images.shape == (359, 16, 16, 3)
    assert (
        abs(train.extra["scale"][:359] - test.extra["scale"]).mean() > 0.1
    )  # each split has styles of its own


def test_one_class_by_name(tmp_path):
    whole, own = (
        load("digits", "test", tmp_path, image_size=16),
        load("digits_class_3", "test", tmp_path, image_size=16),
    )
    assert own.title == "digits_class_3" and own.classes == ["3"] and not own.labels.any()
    assert np.array_equal(own.images, whole.images[whole.labels == 3]) and np.array_equal(
        own.index, whole.index[whole.labels == 3]
    )
    with pytest.raises(ValueError, match="digits has classes 0 to 9"):
        load("digits_class_10", "test", tmp_path)
    with pytest.raises(ValueError, match="no set 'nothing'"):
        load("nothing_class_1", "train", tmp_path)


def test_images_with_colours_are_tinted_and_keep_their_labels(tmp_path):
    write_npz(
        tmp_path / "faces/train.npz",
        images=np.full((40, 24, 24, 3), 200, np.uint8),
        labels=np.arange(40) % 2,
        age=np.arange(40) % 9,
    )
    found = load("styled_faces", "train", tmp_path)
    assert (
        found.name == "styled_faces"
        and found.images.shape == (40, 24, 24, 3)
        and found.extra["age"].tolist() == [i % 9 for i in range(40)]
    )
    white = (np.array(list(image_sets.HUES.values()))[found.extra["tint"]] + 255) // 2
    assert np.abs(found.images[:, 12, 12].astype(int) - white * 200 / 255).max() <= 1, (
        "the middle is always on the image"
    )
    assert data.style_factors(found) == ["age", "tint", "scale", "rotation", "x", "y"]
    assert load("styled_faces", "train", tmp_path, image_size=16).images.shape == (40, 16, 16, 3)
    write_npz(
        tmp_path / "mine/train.npz",
        images=RANDOM.integers(0, 256, (6, 24, 24, 3), dtype=np.uint8),
        labels=np.arange(6) % 2,
    )
    small = load("styled_mine", "train", tmp_path, image_size=16)
    assert np.array_equal(small.images, styled(load("mine", "train", tmp_path), 16).images), (
        "drawn on images of their own size"
    )
    for kind, size in (("cat", (20, 30)), ("dog", (40, 24))):
        write_image(tmp_path / f"photos/train/{kind}/1.png", size)
    assert load("styled_photos", "train", tmp_path, image_size=16).images.shape == (2, 16, 16, 3), (
        "of a folder with images of several sizes"
    )
    with pytest.raises(ValueError, match="no set 'nothing'"):
        load("styled_nothing", "train", tmp_path)


def test_generated_by_name(tmp_path):
    train, test, noise = (
        load("generated", "train", tmp_path),
        load("generated", "test", tmp_path),
        load("generated_noise", "test", tmp_path),
    )
    assert (
        (len(train), len(test), len(noise)) == (512, 256, 256)
        and train.title == "generated"
        and noise.name == "generated_noise"
    )
    assert train.images.shape[1:] == (32, 32, 3) and not np.array_equal(
        train.images[:256], test.images
    )
    assert load("generated", image_size=16, data_dir=tmp_path).images.shape == (512, 16, 16, 3)
    assert abs(noise.images.mean() - 127.5) < 1
    for wrong in ({"kind": "faces"}, {"n": 0}):
        with pytest.raises(ValueError, match="kind is 'faces'|n = 0"):
            generated(**wrong)


# ---------------------------------------------------------------------------------------------------------------- table and command
def test_data_table(tmp_path):
    write_idx(tmp_path / "MNIST/raw")
    table = data_table(tmp_path).set_index("name")
    assert set(table.index) == set(data.DATASETS) and (table["terms"] != "").all()
    assert (
        load("mnist", data_dir=tmp_path).checksum in table.loc["mnist", "here"]
        and table.loc["cifar10", "here"] == ""
    )
    assert table.loc["food101", "image size"] == "varies" and not table.map(
        lambda cell: str(tmp_path) in cell
    ).any(axis=None)


def test_fetch_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    assert data.main(["fetch", "digits", "generated"]) == 0
    assert "digits/test: 359 images, 8 x 8 x 1, 10 classes, scikit-learn" in capsys.readouterr().out
    assert data.main(["fetch", "food101", "digits"]) == 1
    out, err = capsys.readouterr()
    assert "food101 (train) was not found" in err and "digits/test" in out


# ------------------------------------------------------------------------------------------------------------ channels
def test_sets_change_their_channels_and_keep_everything_else():
    colour = data.generated("shapes", 5, 12)
    grey = image_sets.with_channels(colour, 1)
    expected = augmentations.to_grey(colour.batch(range(5)).float())[:, 0].numpy()
    assert (
        grey.images.shape == (5, 12, 12, 1)
        and np.abs(grey.images[..., 0] - expected).max() <= 0.51
        and np.array_equal(grey.labels, colour.labels)
    )
    again = image_sets.with_channels(grey, 3)
    assert (again.images == grey.images).all() and again.images.shape == (5, 12, 12, 3)
    assert image_sets.with_channels(colour, 3) is colour and grey.checksum != colour.checksum


def test_a_sample_of_a_set_stored_class_by_class_holds_all_classes():
    images = np.arange(300, dtype=np.uint8).repeat(2)[:300].reshape(300, 1, 1, 1)
    ordered = data.ImageSet(
        "ordered", "train", images, np.arange(300) // 30, [str(i) for i in range(10)]
    )
    some = ordered.sample(100)
    assert (
        len(some) == 100 and len(np.unique(some.labels)) == 10 and (np.diff(some.index) > 0).all()
    )
    np.testing.assert_array_equal(some.index, ordered.sample(100).index)
    np.testing.assert_array_equal(some.labels, ordered.labels[some.index])
    mixed = data.ImageSet(
        "mixed",
        "train",
        images,
        np.random.default_rng(0).integers(10, size=300),
        [str(i) for i in range(10)],
    )
    one = data.ImageSet("one", "train", images, np.zeros(300, int), ["only"])
    for found in (mixed, one):
        np.testing.assert_array_equal(found.sample(100).index, np.arange(100))
    assert len(ordered.sample(1000)) == 300
    assert ordered.is_sorted and not mixed.is_sorted and not one.is_sorted
    np.testing.assert_array_equal(ordered.labels[ordered.places(100)], some.labels)
    part = ordered.subset(
        range(60, 240)
    )  # places are within the part, not within the set that it is of
    np.testing.assert_array_equal(part.labels[part.places(50)], part.sample(50).labels)


def test_a_data_folder_that_cannot_be_written_is_a_reason_among_others(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(13, "Permission denied", str(tmp_path))

    monkeypatch.setattr(data.artifacts, "exclusive", refused)
    monkeypatch.setattr(data, "DEBIAN", {})
    with pytest.raises(
        FileNotFoundError, match="DATA_DIR is .* which cannot be written .*Permission denied"
    ):
        data.load("mnist", data_dir=tmp_path)


def test_the_data_page_names_every_set_and_its_terms():
    head, _, *rows = [
        line.strip("| ").split(" | ")
        for line in (artifacts.ROOT / "results" / "DATA.md").read_text().splitlines()
        if line[:1] == "|"
    ]
    assert head[0] == "name" and head[4] == "terms"
    known = [(name, of.terms) for name, of in data.DATASETS.items()]
    assert [(row[0], row[4]) for row in rows] == known, (
        "write it anew: python -m lib.data.sources table"
    )
