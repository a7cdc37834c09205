"""Every way to find a set, with tiny files and no network; malformed and damaged files."""

import dataclasses
import pickle

import numpy as np
import pytest
import scipy.io
import torchvision
from PIL import Image

from lib import data
from lib.data import sources
from lib.data.drawn import styled
from lib.data.sets import ImageSet, image_folder
from lib.data.sources import load
from tests.data.writers import RANDOM, pixels, write_idx, write_image, write_npz

pytestmark = pytest.mark.usefixtures("no_network")


# -------------------------------------------------------------------------------------- own files
def test_npz(tmp_path):
    factors = {"hue": np.arange(6), "hue_names": np.array(list("uvwxyz"))}
    arrays = write_npz(tmp_path / "mine/train.npz", scale=np.linspace(0, 1, 6), **factors)
    images = load("mine", data_dir=tmp_path)
    np.testing.assert_array_equal(images.images, arrays["images"])
    np.testing.assert_array_equal(images.labels, arrays["labels"])
    assert images.labels.dtype == np.int64 and images.classes == ["a", "b"]
    assert set(images.extra) == {"hue", "scale"}
    assert images.title == "mine (6 images)"
    labels = np.array([0, 3, 1, 0, 0, 1], np.uint8)
    grey = pixels(channels=1)[..., 0]
    write_npz(tmp_path / "mine/test.npz", images=grey, labels=labels, classes=None)
    images = load("mine", "test", tmp_path)
    assert images.images.shape == (6, 8, 8, 1) and images.classes == ["0", "1", "2", "3"]


def test_image_folder_with_and_without_classes(tmp_path):
    for file in ("animals/train/cat/deep/2.PNG", "animals/train/ant/1.png", "flat/train/a.jpg"):
        write_image(tmp_path / file)
    classed = load("animals", data_dir=tmp_path)
    assert classed.classes == ["ant", "cat"] and classed.labels.tolist() == [0, 1]
    assert load("flat", data_dir=tmp_path).classes == ["unlabelled"]
    write_image(tmp_path / "animals/train/lost.png")
    with pytest.raises(ValueError, match=r"beside its sub-folders \(lost.png\)"):
        load("animals", data_dir=tmp_path)
    (tmp_path / "hollow/train/empty").mkdir(parents=True)
    with pytest.raises(ValueError, match="empty holds no images"):
        load("hollow", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        image_folder(tmp_path / "nowhere")


def test_test_images_may_be_called_val_where_a_set_has_no_others(tmp_path):
    write_npz(tmp_path / "mine/train.npz", 6)
    write_npz(tmp_path / "mine/val.npz", 4)
    test = load("mine", "test", tmp_path)
    assert len(test) == 4 and test.split == "test" and "DATA_DIR/mine/val" in test.source
    assert len(load("mine", "val", tmp_path)) == 4
    assert len(load("styled_mine", "test", tmp_path, image_size=8)) == 4
    write_npz(tmp_path / "mine/test.npz", 5)
    assert len(load("mine", "test", tmp_path)) == 5
    # DTD has both.
    write_npz(tmp_path / "dtd/val.npz")
    with pytest.raises(FileNotFoundError):
        load("dtd", "test", tmp_path, image_size=8, download=False)


def test_a_set_without_splits_is_split_80_20_by_class(tmp_path):
    labels = np.repeat([0, 1, 2], [50, 20, 10])
    classes = np.array(list("abc"))
    path = tmp_path / "mine/all.npz"
    arrays = write_npz(path, 80, labels=labels, classes=classes, serial=np.arange(80))
    train = load("mine", "train", tmp_path)
    test = load("mine", "test", tmp_path)
    assert train.split == "train" and np.bincount(train.labels).tolist() == [40, 16, 8]
    assert np.bincount(test.labels).tolist() == [10, 4, 2]
    assert sorted([*train.index, *test.index]) == list(range(80))
    np.testing.assert_array_equal(test.images, arrays["images"][test.index])
    np.testing.assert_array_equal(test.extra["serial"], test.index)
    assert len(load("mine", "all", tmp_path)) == 80


def test_nothing_is_taken_out_of_all_beside_a_test_file(tmp_path):
    """It could overlap with it."""
    write_npz(tmp_path / "mine/all.npz", 80)
    write_npz(tmp_path / "mine/val.npz")
    with pytest.raises(ValueError, match="no split 'train'"):
        load("mine", "train", tmp_path)


def test_image_size_resizes_arrays(tmp_path):
    arrays = write_npz(tmp_path / "mine/train.npz")
    images = load("mine", data_dir=tmp_path, image_size=16).images
    for image, original in zip(images, arrays["images"], strict=True):
        resized = Image.fromarray(original).resize((16, 16), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(image, np.asarray(resized))


# ------------------------------------------------------------------------------ malformed input
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "lacks images .it has labels, classes"),
        ({"images": np.zeros((6, 8, 8, 3), np.float32)}, "images have dtype float32"),
        ({"images": np.zeros((6, 3, 8, 8), np.uint8)}, "images have 8 channels"),
        ({"labels": np.zeros(5, int)}, r"labels has shape \[5\] but there are 6 images"),
        ({"labels": np.array([0, 1, 0, 1, 0, -1])}, "labels run from -1 to 1"),
        ({"labels": np.array([0, 1, 0, 1, 0, 2])}, "from 0 to 2 but there are 2 classes"),
        ({"hue": np.zeros(4, int)}, r"hue has shape \[4\]"),
    ],
)
def test_malformed_npz(tmp_path, change, message):
    write_npz(tmp_path / "mine/train.npz", **change)
    with pytest.raises(ValueError, match=message) as error:
        load("mine", data_dir=tmp_path)
    assert "mine/train" in str(error.value)


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "", "/etc", ".hidden", "a\\b", "x\n"])
def test_names_that_leave_the_folder(tmp_path, name):
    with pytest.raises(ValueError, match="cannot name a set or split"):
        load(name, data_dir=tmp_path)
    with pytest.raises(ValueError, match="cannot name a set or split"):
        load("mine", name, data_dir=tmp_path)


def test_unknown_set_split_and_size(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no set 'nosuch': .*mnist.*nosuch/train.npz"):
        load("nosuch", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="no set 'nosuch'"):
        load("styled_nosuch_class_1", data_dir=tmp_path)
    with pytest.raises(ValueError, match="cifar10 has no split 'valid': it has train, test"):
        load("cifar10", "valid", tmp_path)
    write_npz(tmp_path / "mine/train.npz")
    with pytest.raises(ValueError, match="has no split 'test': it has train"):
        load("mine", "test", tmp_path)
    with pytest.raises(ValueError, match="image_size is 0"):
        load("digits", image_size=0)
    with pytest.raises(ValueError, match="food101 has images of many sizes: give image_size"):
        load("food101", data_dir=tmp_path)


# -------------------------------------------------------------------------- torchvision's layouts
@pytest.mark.parametrize("packed", [True, False])
def test_idx_files(tmp_path, packed):
    images, labels = write_idx(tmp_path / "MNIST/raw", "test", packed=packed)
    test = load("mnist", "test", tmp_path)
    np.testing.assert_array_equal(test.images[..., 0], images)
    np.testing.assert_array_equal(test.labels, labels)


def test_npz_comes_before_folder_before_torchvisions_layout(tmp_path):
    def source():
        return load("mnist", data_dir=tmp_path, image_size=28).source

    write_idx(tmp_path / "MNIST/raw")
    assert source() == "torchvision layout DATA_DIR/MNIST/raw"
    write_image(tmp_path / "mnist/train/0/a.png")
    assert source() == "image folder DATA_DIR/mnist/train"
    write_npz(tmp_path / "mnist/train.npz")
    assert source() == "npz file DATA_DIR/mnist/train.npz"


# What torchvision unpacks
IMAGES = [
    *(f"imagenette2-320/train/{folder}/a.jpeg" for folder in ("n03028079", "n01440764")),
    *(f"imagewoof2-320/train/{folder}/a.JPEG" for folder in ("n03028079", "n01440764")),
    *(f"imagewoof2-320/val/{folder}/a.JPEG" for folder in ("n03028079", "n01440764")),
    *(f"food-101/images/{file}.jpg" for file in ("pie/1", "bread/2")),
    *(f"dtd/dtd/images/{file}.jpg" for file in ("zigzag/1", "dotted/2")),
    *(f"SUN397/a/abbey/sun_{i}.jpg" for i in range(10)),
    *(f"SUN397/b/bar/sun_{i}.jpg" for i in range(10)),
    *(f"flowers-102/jpg/image_0000{i}.jpg" for i in (1, 2)),
    *(f"fgvc-aircraft-2013b/data/images/{i}.jpg" for i in (1, 2)),
    *(f"oxford-iiit-pet/images/{name}.jpg" for name in ("Siamese_1", "beagle_2")),
    *(f"stanford_cars/cars_train/{i}.jpg" for i in (1, 2)),
    *(f"celeba/img_align_celeba/{i}.jpg" for i in (1, 2, 3)),
]
ANNOTATIONS = {
    "food-101/meta/train.json": '{"pie": ["pie/1"], "bread": ["bread/2"]}',
    "dtd/dtd/labels/train1.txt": "zigzag/1.jpg\ndotted/2.jpg\n",
    "SUN397/ClassName.txt": "/a/abbey\n/b/bar\n",
    "fgvc-aircraft-2013b/data/variants.txt": "A380\nBoeing 707\n",
    "fgvc-aircraft-2013b/data/images_variant_train.txt": "1 Boeing 707\n2 A380\n",
    "oxford-iiit-pet/annotations/trainval.txt": "Siamese_1 2 1 1\nbeagle_2 1 2 1\n",
    "stl10_binary/class_names.txt": "airplane\nbird\n",
    "stl10_binary/fold_indices.txt": "0\n",
    "celeba/list_eval_partition.txt": "1.jpg 0\n2.jpg 0\n3.jpg 2\n",
    "celeba/identity_CelebA.txt": "1.jpg 11\n2.jpg 12\n3.jpg 13\n",
    "celeba/list_bbox_celeba.txt": "3\nimage_id x y\n1.jpg 0 0\n2.jpg 0 0\n3.jpg 0 0\n",
    "celeba/list_landmarks_align_celeba.txt": "3\nx y\n1.jpg 0 0\n2.jpg 0 0\n3.jpg 0 0\n",
    "celeba/list_attr_celeba.txt": "3\nMale Smiling\n1.jpg 1 -1\n2.jpg -1 1\n3.jpg -1 1\n",
}


def write_binary_files(root):
    """CIFAR-10, STL-10, and the MATLAB files of Flowers-102 and Stanford Cars."""
    cifar = root / "cifar-10-batches-py"
    cifar.mkdir()
    for i in range(1, 6):
        batch = {"data": np.full((1, 3072), i, np.uint8), "labels": [i % 2]}
        (cifar / f"data_batch_{i}").write_bytes(pickle.dumps(batch))
    (cifar / "batches.meta").write_bytes(pickle.dumps({"label_names": ["plane", "car"]}))
    stl = root / "stl10_binary"
    (stl / "train_X.bin").write_bytes(np.arange(2 * 3 * 96 * 96, dtype=np.uint8).tobytes())
    (stl / "train_y.bin").write_bytes(bytes([2, 1]))
    (stl / "unlabeled_X.bin").write_bytes(bytes(3 * 96 * 96))
    setid = {"trnid": [[1, 2]], "valid": [[1]], "tstid": [[2]]}
    scipy.io.savemat(root / "flowers-102/imagelabels.mat", {"labels": [[5, 3]]})
    scipy.io.savemat(root / "flowers-102/setid.mat", setid)
    devkit = root / "stanford_cars/devkit"
    devkit.mkdir()
    rows = np.array([("1.jpg", 2), ("2.jpg", 1)], dtype=[("fname", "O"), ("class", "O")])
    makers = np.array(["Audi", "Fiat"], dtype=object)
    scipy.io.savemat(devkit / "cars_train_annos.mat", {"annotations": rows})
    scipy.io.savemat(devkit / "cars_meta.mat", {"class_names": makers})


@pytest.fixture
def layouts(tmp_path, monkeypatch):
    """Miniature copies of what torchvision unpacks, without its md5 sums."""
    torchvision_sets = torchvision.datasets
    monkeypatch.setattr(torchvision_sets.cifar, "check_integrity", lambda *_: True)
    monkeypatch.setattr(torchvision_sets.flowers102, "check_integrity", lambda *_: True)
    monkeypatch.setattr(torchvision_sets.STL10, "_check_integrity", lambda _: True)
    monkeypatch.setattr(torchvision_sets.CelebA, "_check_integrity", lambda _: True)
    for path in IMAGES:
        write_image(tmp_path / path)
    for path, text in ANNOTATIONS.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    write_binary_files(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        ("cifar10", ["car", "plane", "car", "plane", "car"]),
        ("stl10", ["bird", "airplane"]),
        ("celeba", ["male", "not male"]),
        ("imagenette", ["tench", "church"]),
        ("imagewoof", ["n01440764", "n03028079"]),
        ("food101", ["bread", "pie"]),
        ("dtd", ["dotted", "zigzag"]),
        ("aircraft", ["Boeing 707", "A380"]),
        ("pets", ["Siamese", "Beagle"]),
        ("cars", ["Fiat", "Audi"]),
    ],
)
def test_torchvision_layouts(name, classes, layouts):
    size = sources.DATASETS[name].size or 8
    images = load(name, "train", layouts, image_size=size)
    assert sorted(images.classes[label] for label in images.labels) == sorted(classes)
    assert images.batch(np.arange(len(images))).shape == (len(classes), 3, size, size)


def test_what_is_special_of_single_layouts(layouts):
    def small(name, split="train"):
        return load(name, split, layouts, image_size=8)

    textures = small("dtd")
    folders = [file.parent.name for file in textures.images.files]
    assert folders == [textures.classes[label] for label in textures.labels]
    assert load("cifar10", "train", layouts).images[:, 0, 0, 0].tolist() == [1, 2, 3, 4, 5]
    assert small("flowers102").labels.tolist() == [4, 2]
    assert small("imagewoof", "test").source == "torchvision layout DATA_DIR/imagewoof2-320"
    faces = small("celeba")
    assert faces.extra["Smiling"].tolist() == [0, 1]
    assert faces.extra["identity"].tolist() == [11, 12]
    unlabelled = load("stl10", "train+unlabeled", layouts)
    assert unlabelled.classes[unlabelled.labels[-1]] == "unlabelled" and len(unlabelled) == 3
    stored = np.fromfile(layouts / "stl10_binary/train_X.bin", np.uint8).reshape(2, 3, 96, 96)
    # column-major on disk
    assert load("stl10", "train", layouts).images[1, 5, 7, 2] == stored[1, 2, 7, 5]
    train = small("sun397")
    test = small("sun397", "test")
    assert np.bincount(train.labels).tolist() == [8, 8]
    assert np.bincount(test.labels).tolist() == [2, 2]
    assert not set(train.images.files) & set(test.images.files)
    # styles are drawn on sets of many sizes too
    assert load("styled_dtd", "train", layouts, image_size=16).images.shape == (2, 16, 16, 3)


# ------------------------------------------------------------------------- sets made from others
def test_digits_are_split_20_to_80_by_class(tmp_path):
    train = load("digits", "train", tmp_path)
    test = load("digits", "test", tmp_path)
    assert (len(train), len(test)) == (1438, 359)
    assert train.images.max() == 255
    counts = np.bincount(test.labels)
    assert np.abs(counts / (np.bincount(train.labels) + counts) - 0.2).max() < 0.003
    assert sorted([*train.index, *test.index]) == list(range(1797))


def test_styled_by_name(tmp_path):
    write_npz(tmp_path / "mine/train.npz", 40, images=pixels(40, 24))
    write_npz(tmp_path / "mine/test.npz", 40, images=pixels(40, 24))
    train = load("styled_mine", "train", tmp_path, image_size=16)
    test = load("styled_mine", "test", tmp_path, image_size=16)
    # Drawn on images of their own size, for each split anew
    plain = load("mine", "train", tmp_path)
    np.testing.assert_array_equal(train.images, styled(plain, 16).images)
    np.testing.assert_array_equal(train.labels, plain.labels)
    assert abs(train.extra["scale"] - test.extra["scale"]).mean() > 0.1


def test_one_class_by_name(tmp_path):
    whole = load("digits", "test", tmp_path, image_size=16)
    threes = load("digits_class_3", "test", tmp_path, image_size=16)
    assert threes.title == "digits_class_3" and threes.classes == ["3"] and not threes.labels.any()
    np.testing.assert_array_equal(threes.images, whole.images[whole.labels == 3])
    np.testing.assert_array_equal(threes.index, whole.index[whole.labels == 3])
    with pytest.raises(ValueError, match="digits has classes 0 to 9"):
        load("digits_class_10", "test", tmp_path)


# ---------------------------------------------------------------------------------------- style
def test_hair_is_what_exactly_one_attribute_says():
    attributes = {name: np.zeros(4, np.int64) for name in data.catalogue.HAIR}
    attributes["Bald"][:2] = 1
    attributes["Black_Hair"][1:3] = 1
    # bald, two attributes, black, none
    assert data.catalogue.hair_colour(attributes).tolist() == [0, -1, 4, -1]


def test_style_of_celeba_is_hair_and_the_most_balanced_attributes():
    names = [name for name in sources.CELEBA_ATTRIBUTES if name != "Male"]
    male = np.arange(2000) % 2
    extra = {"hair": np.zeros(2000, int), "identity": np.arange(2000), "Male": male}
    for name, share in zip(names, np.linspace(0.01, 0.6, len(names)), strict=True):
        extra[name] = (RANDOM.random(2000) < share).astype(int)
    images = np.zeros((2000, 8, 8, 3), np.uint8)
    faces = ImageSet("celeba", "train", images, male, ["not male", "male"], extra=extra)
    nearest = sorted(names, key=lambda name: abs(extra[name].mean() - 0.5))[:20]
    assert sources.style_factors(faces) == ["hair", *nearest]
    others = sources.style_factors(dataclasses.replace(faces, name="styled_faces"))
    assert others == [name for name in extra if name != "Male"]  # which is the class
    assert sources.has_styles("celeba") and sources.has_styles("styled_digits")
    assert not sources.has_styles("cifar10")


# ---------------------------------------------------------------------------------- the command
def test_fetch_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DATA_DIR", str(tmp_path))
    assert sources.main(["fetch", "digits", "generated"]) == 0
    assert "digits/test: 359 images, 8 x 8 x 1, 10 classes" in capsys.readouterr().out
    assert sources.main(["fetch", "food101", "digits"]) == 1
    output = capsys.readouterr()
    assert "food101 (train) was not found" in output.err and "digits/test" in output.out
