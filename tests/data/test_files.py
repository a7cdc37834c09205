"""Which files of a folder are read, and the one way from a path to pixels."""

import os
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from lib import data
from lib.data import files, sets, sources
from tests.data.writers import write_image

WIDE = np.zeros((40, 100, 3), np.uint8)
WIDE[:, :30] = 255
WIDE[:, 30:70] = np.linspace(0, 200, 40).astype(np.uint8)[None, :, None]
WIDE[:, 70:] = 255
QUARTER_TURN = Image.Exif()
QUARTER_TURN[files.ORIENTATION] = 6  # by 90° clockwise


# ------------------------------------------------------------------------------------- a folder
@pytest.fixture
def untidy(tmp_path):
    """Two images of a class beside everything that is left out."""
    folder = tmp_path / "obst/train/birne"
    write_image(folder / "1.png")
    write_image(folder / "3.png/deep/2.JPG")  # a folder whose name is like a file's
    write_image(folder / ".thumbs/1.png")
    write_image(folder / "deep/.cache/1.png")
    write_image(folder / ".hidden.png")
    (folder / "notes.txt").write_text("not an image")
    (folder / "phone.heic").write_bytes(b"?")
    write_image(tmp_path / "elsewhere/secret.png")
    (folder / "link.png").symlink_to(tmp_path / "elsewhere/secret.png")
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(folder / "pipe.png")
    return folder


def test_regular_image_files_are_read_and_the_rest_is_named(untidy):
    entries = files.walk(untidy)
    kinds = {entry.path.relative_to(untidy).as_posix(): entry.kind for entry in entries}
    assert kinds == {
        "1.png": "image",
        "3.png/deep/2.JPG": "image",
        ".thumbs": "hidden",
        "deep/.cache": "hidden",
        ".hidden.png": "hidden",
        "notes.txt": "other",
        "phone.heic": "other",
        "link.png": "link",
        "linked": "link",
        "pipe.png": "other",
    }
    assert all(entry.note for entry in entries if not entry.is_image)
    assert [entry.path for entry in entries] == sorted(entry.path for entry in entries)


def test_a_training_folder_follows_the_same_rule_and_names_what_is_left_out(untidy):
    root = untidy.parents[2]
    with pytest.warns(UserWarning, match="8 left out: birne/.*and 3 more"):
        images = sources.load("obst", data_dir=root)
    assert [path.name for path in images.images.files] == ["1.png", "2.JPG"]
    assert images.batch([0, 1]).shape == (2, 3, 8, 8)
    for path in ("1.png", "3.png/deep/2.JPG"):
        (untidy / path).unlink()
    with pytest.raises(ValueError, match=r"birne holds no images \(8 left out"):
        sources.load("obst", data_dir=root)


def test_a_tidy_folder_gives_no_warning_and_a_class_folder_may_be_a_link(tmp_path):
    write_image(tmp_path / "elsewhere/1.png")
    write_image(tmp_path / "set/b/1.png")
    (tmp_path / "set/a").symlink_to(tmp_path / "elsewhere")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images = sets.image_folder(tmp_path / "set")
    assert images.classes == ["a", "b"] and images.labels.tolist() == [0, 1]


def test_no_file_starts_another_program(tmp_path):
    """Pillow gives EPS to Ghostscript, whatever the file is called."""
    assert ".eps" not in files.SUFFIXES
    path = tmp_path / "1.png"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n")
    with pytest.raises(ValueError, match="not a readable image"):
        files.read_image(path, 20)


# ------------------------------------------------------------------------------------- an image
def read(path, size=20):
    """As bytes [H, W, 3]."""
    image = files.read_image(path, size)
    assert image.dtype == torch.float32 and 0 <= image.min() and image.max() <= 1
    return (255 * image).round().byte().movedim(0, -1).numpy()


def test_an_image_is_the_centre_square_of_its_shorter_side(tmp_path):
    Image.fromarray(WIDE).save(tmp_path / "wide.png")
    resized = Image.fromarray(WIDE).resize((50, 20), Image.Resampling.BILINEAR)
    square = np.asarray(resized.crop((15, 0, 35, 20)), int)
    assert np.abs(read(tmp_path / "wide.png") - square).max() <= 1  # rounding


def test_training_folders_and_single_images_are_read_alike(tmp_path):
    """A photograph of 4:3, a turned one, a transparent one, 16 bits, grey, and a large one."""
    photo = Image.fromarray(WIDE).resize((64, 48))
    clear = photo.convert("RGBA")
    clear.putalpha(100)
    deep = Image.fromarray(np.asarray(photo.convert("L"), np.uint16) * 257)
    photo.save(tmp_path / "a.jpg")
    photo.save(tmp_path / "b.jpg", exif=QUARTER_TURN)
    clear.save(tmp_path / "c.png")
    deep.save(tmp_path / "d.png")
    photo.convert("P").save(tmp_path / "e.gif")
    photo.resize((1600, 1200)).save(tmp_path / "f.jpg")
    folder = sets.image_folder(tmp_path, 20)
    batch = folder.batch(range(6)).float() / 255
    single = [data.read_image(path, 20) for path in sorted(tmp_path.iterdir())]
    assert torch.equal(batch, torch.stack(single))
    assert np.abs(read(tmp_path / "a.jpg").astype(int) - read(tmp_path / "f.jpg")).max() < 12


def test_transparency_is_put_on_white(tmp_path):
    Image.new("RGBA", (20, 20), (200, 0, 0, 0)).save(tmp_path / "1.png")
    assert (read(tmp_path / "1.png") == 255).all()


def test_16_bits_are_scaled_by_their_full_range_and_floats_by_their_own(tmp_path):
    Image.fromarray(np.full((20, 20), 257 * 100, np.uint16)).save(tmp_path / "1.png")
    assert (read(tmp_path / "1.png") == 100).all()
    ramp = np.linspace(3, 5, 400, dtype=np.float32).reshape(20, 20)
    Image.fromarray(ramp).save(tmp_path / "1.tif")
    scaled = read(tmp_path / "1.tif")[..., 0]
    assert np.abs(scaled - 255 * (ramp - 3) / 2).max() <= 0.51
    ramp[0, 0] = np.nan
    Image.fromarray(ramp).save(tmp_path / "1.tif")
    with pytest.raises(ValueError, match="1.tif .*not finite"):
        files.read_image(tmp_path / "1.tif", 20)


def test_a_photograph_held_sideways_is_turned_upright(tmp_path):
    sideways = Image.fromarray(WIDE[:, :40])
    sideways.save(tmp_path / "1.png", exif=QUARTER_TURN)
    np.testing.assert_array_equal(read(tmp_path / "1.png", 40), np.rot90(WIDE[:, :40], -1))


def test_without_a_size_files_have_their_own_as_they_are_seen(tmp_path):
    """A camera may put several pictures into one file (MPO)."""
    picture = Image.fromarray(WIDE[:, :30])
    picture.save(tmp_path / "1.jpg", exif=QUARTER_TURN)
    picture.save(tmp_path / "2.mpo", exif=QUARTER_TURN, save_all=True, append_images=[picture])
    images = sets.image_folder(tmp_path)
    assert images.images.shape == (2, 30, 40, 3)
    assert images.batch([0, 1]).shape == (2, 3, 30, 40)


def test_a_damaged_file_is_named(tmp_path):
    write_image(tmp_path / "a/1.png")
    write_image(tmp_path / "a/2.png")
    whole = (tmp_path / "a/2.png").read_bytes()
    (tmp_path / "a/2.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="2.png is not a readable image"):
        sets.image_folder(tmp_path, 4).batch([1])
    (tmp_path / "a/2.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match="2.png is not a readable image"):
        sets.image_folder(tmp_path)


def test_images_of_several_sizes_need_one(tmp_path):
    write_image(tmp_path / "1.png", (8, 8))
    write_image(tmp_path / "2.png", (9, 8))
    with pytest.raises(ValueError, match="2 sizes.*give image_size"):
        sets.image_folder(tmp_path)
    assert sets.image_folder(tmp_path, 4).images.shape == (2, 4, 4, 3)
