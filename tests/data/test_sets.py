"""Sets in memory and in files: batches, subsets, checksums, splits, and drawn sets."""

import shutil

import numpy as np
import pytest
import torch

from lib.data import drawn, sets, sources, views
from lib.data.drawn import generated, styled
from lib.data.sets import ImageSet, batches, image_folder
from tests.data.writers import RANDOM, pixels, write_image


@pytest.fixture
def folder_set(tmp_path):
    for i in range(12):
        write_image(tmp_path / f"set/{'ab'[i % 2]}/{i:02d}.png", (10, 10))
    return image_folder(tmp_path / "set")


def in_memory():
    return ImageSet("x", "train", pixels(), np.zeros(6, int), ["a"])


# -------------------------------------------------------------------------------------- batches
def test_batch_is_uint8_channels_first_and_a_copy():
    images = in_memory()
    batch = images.batch(torch.tensor([4, 0, 4]))
    assert batch.dtype == torch.uint8 and batch.shape == (3, 3, 8, 8)
    assert batch.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_array_equal(batch.permute(0, 2, 3, 1), images.images[[4, 0, 4]])
    batch.zero_()
    assert images.images.any()


@pytest.mark.parametrize("wrong", [[6], [-1], [], [0.5], [True], np.arange(6) > 2, 3])
def test_indices_outside_the_set_are_errors(wrong):
    with pytest.raises(ValueError, match="indices"):
        in_memory().batch(wrong)
    with pytest.raises(ValueError, match="indices"):
        in_memory().subset(wrong)


@pytest.mark.parametrize("resident", [True, False])
def test_prefetched_batches_equal_direct_ones(folder_set, resident):
    images = folder_set.to("cpu") if resident else folder_set
    assert images.checksum == folder_set.checksum
    order = [[1, 0], [5], [11, 2, 3]]
    streamed = list(batches(images, iter(order)))
    for batch, indices in zip(streamed, order, strict=True):
        assert torch.equal(batch, images.batch(indices))
    assert list(batches(images, [])) == []
    with pytest.raises(ValueError, match="indices run from 99"):
        list(batches(images, [[0], [99]]))


# -------------------------------------------------------------------------------------- subsets
def test_a_subset_of_a_subset_knows_its_images(folder_set):
    digits = sources.load("digits")
    part = digits.subset(np.arange(1400))
    np.testing.assert_array_equal(part.labels, digits.labels[:1400])
    np.testing.assert_array_equal(part.subset([7, 3]).index, digits.index[[7, 3]])
    assert folder_set.subset([7, 5]).subset([1]).index.tolist() == [5]
    assert torch.equal(folder_set.subset([4, 2]).batch([0]), folder_set.batch([4]))


def test_a_sample_of_a_set_sorted_by_class_holds_all_classes():
    images = pixels(300, 1, 1)
    classes = [str(i) for i in range(10)]
    ordered = ImageSet("ordered", "train", images, np.arange(300) // 30, classes)
    some = ordered.sample(100)
    assert len(some) == 100 and len(np.unique(some.labels)) == 10
    np.testing.assert_array_equal(some.index, ordered.places(100))
    np.testing.assert_array_equal(some.index, np.sort(some.index))
    assert len(ordered.sample(1000)) == 300
    # places are within the part, not within the set that it is of
    part = ordered.subset(range(60, 240))
    np.testing.assert_array_equal(part.labels[part.places(50)], part.sample(50).labels)
    mixed = ImageSet("mixed", "train", images, RANDOM.integers(10, size=300), classes)
    one = ImageSet("one", "train", images, np.zeros(300, int), ["only"])
    assert ordered.is_sorted and not mixed.is_sorted and not one.is_sorted
    np.testing.assert_array_equal(mixed.sample(100).index, np.arange(100))
    np.testing.assert_array_equal(one.sample(100).index, np.arange(100))


def test_checksum_sees_every_change_of_arrays():
    images = pixels()
    labels = np.array([0, 1, 0, 1, 0, 1])
    changed = images.copy()
    changed[5, 7, 7, 2] ^= 1

    def checksum(images, labels, name="x", classes="ab"):
        return ImageSet(name, "train", images, labels, list(classes)).checksum

    base = checksum(images, labels)
    assert checksum(changed, labels) != base
    assert checksum(images, labels[::-1]) != base
    assert checksum(images.reshape(6, 4, 16, 3), labels) != base
    assert checksum(images[:5], labels[:5]) != base
    assert checksum(np.asfortranarray(images), labels.astype(np.int8), "other", "cd") == base


def test_checksum_sees_every_change_of_files(folder_set, monkeypatch):
    root = folder_set.images.root
    first = folder_set.checksum
    assert image_folder(root).checksum == first
    assert image_folder(root, 5).checksum != first
    assert image_folder(shutil.copytree(root, root.with_name("moved"))).checksum == first
    other = shutil.copytree(root, root.with_name("changed"))
    content = bytearray((other / "a/00.png").read_bytes())
    content[-20] ^= 1
    (other / "a/00.png").write_bytes(content)
    assert image_folder(other).checksum != first  # of the same size, with other content
    with monkeypatch.context() as patch:
        patch.setattr(sets, "RESIDENT_BYTES", 1)  # then only names and sizes count
        assert image_folder(other).checksum == image_folder(root).checksum
    write_image(root / "a/extra.png", (10, 10))
    assert image_folder(root).checksum != first
    (root / "a/extra.png").unlink()
    (root / "b").rename(root / "c")
    assert image_folder(root).checksum != first


def test_a_set_changes_its_channels_and_keeps_everything_else():
    colour = generated(5, 12)
    grey = sets.with_channels(colour, 1)
    luma = views.to_grey(colour.batch(range(5)).float())[:, 0].numpy()
    assert grey.images.shape == (5, 12, 12, 1) and np.abs(grey.images[..., 0] - luma).max() <= 0.51
    np.testing.assert_array_equal(grey.labels, colour.labels)
    again = sets.with_channels(grey, 3)
    assert again.images.shape == (5, 12, 12, 3) and (again.images == grey.images).all()
    assert sets.with_channels(colour, 3) is colour


# --------------------------------------------------------------------------------------- splits
def test_validation_has_the_same_fraction_of_every_class():
    labels = RANDOM.permutation(np.repeat([0, 1, 7], [100, 40, 15]))
    train, validation = sets.train_validation_split(labels)
    assert sorted([*train, *validation]) == list(range(155))
    assert np.bincount(labels[validation], minlength=8)[[0, 1, 7]].tolist() == [10, 4, 2]
    np.testing.assert_array_equal(validation, sets.train_validation_split(labels)[1])
    assert not np.array_equal(validation, sets.train_validation_split(labels, seed=1)[1])


def test_label_subset_has_at_least_one_image_a_class():
    labels = np.repeat([0, 1, 2], [1000, 500, 3])
    chosen = sets.label_subset(labels, 0.01, seed=3)
    assert np.bincount(labels[chosen]).tolist() == [10, 5, 1] and len(set(chosen)) == 16
    assert not np.array_equal(chosen, sets.label_subset(labels, 0.01, seed=4))
    np.testing.assert_array_equal(sets.label_subset(labels, 1.0), np.arange(1503))
    assert set(chosen) < set(sets.label_subset(labels, 0.1, seed=3))  # fewer are some of the more


# ----------------------------------------------------------------------------------- drawn sets
def centroid(mask, grid):
    """x and y [N] of the middle of a mask [N, S, S]."""
    total = mask.sum((1, 2))
    return (mask.sum(1) * grid).sum(1) / total, (mask.sum(2) * grid).sum(1) / total


def marked_disc():
    """A bright disc with a darker spot right of its centre: place, size and turn can be read."""
    grid = (np.arange(28) + 0.5) / 28 - 0.5
    x, y = np.meshgrid(grid, grid)
    disc = np.hypot(x, y) < 0.4
    spot = np.hypot(x - 0.25, y) < 0.1
    image = (200 * disc - 150 * (disc & spot)).astype(np.uint8)
    images = np.repeat(image[None, ..., None], 200, 0)
    return ImageSet("disc", "train", images, np.arange(200) % 3, ["a", "b", "c"])


def test_styled_images_show_what_their_factors_say():
    images = styled(marked_disc(), size=48)
    extra = images.extra
    assert images.checksum == styled(marked_disc(), 48).checksum
    assert images.checksum != styled(marked_disc(), 48, seed=1).checksum
    np.testing.assert_array_equal(images.labels, marked_disc().labels)
    bytes_ = images.images.astype(float)
    hue = np.array(list(drawn.HUES.values()))[extra["colour"]]
    assert np.abs(bytes_.max(axis=(1, 2)) - hue * 200 / 255).max() <= 1
    # 1 on the disc, 0.25 on the spot
    level = bytes_.sum(3) / hue.sum(1)[:, None, None] * 255 / 200
    grid = (np.arange(48) + 0.5) / 48 - 0.5
    disc = level > 0.1
    x, y = centroid(disc, grid)
    assert np.abs(x - extra["x"]).max() < 0.01 and np.abs(y - extra["y"]).max() < 0.01
    np.testing.assert_allclose(disc.mean((1, 2)), np.pi * (0.4 * extra["scale"]) ** 2, rtol=0.12)
    # The direction of the spot, without the disc's blurred edge
    columns = grid[None, None] - extra["x"][:, None, None]
    rows = grid[None, :, None] - extra["y"][:, None, None]
    within = np.hypot(columns, rows) < 0.36 * extra["scale"][:, None, None]
    spot_x, spot_y = centroid((level < 0.6) & within, grid)
    turned = np.rad2deg(np.arctan2(spot_y - extra["y"], spot_x - extra["x"]))
    assert np.corrcoef(turned, extra["rotation"])[0, 1] > 0.97
    assert np.abs(turned - extra["rotation"]).mean() < 4


def test_images_with_colours_are_tinted_and_keep_their_labels():
    bright = np.full((40, 24, 24, 3), 200, np.uint8)
    age = {"age": np.arange(40) % 9}
    faces = ImageSet("faces", "train", bright, np.arange(40) % 2, ["a", "b"], extra=age)
    images = styled(faces, 24)
    np.testing.assert_array_equal(images.extra["age"], faces.extra["age"])
    assert sources.style_factors(images) == ["age", "tint", "scale", "rotation", "x", "y"]
    tint = (np.array(list(drawn.HUES.values()))[images.extra["tint"]] + 255) // 2
    middle = images.images[:, 12, 12].astype(int)  # always on the image
    assert np.abs(middle - tint * 200 / 255).max() <= 1
