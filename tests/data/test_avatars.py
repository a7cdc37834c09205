"""Avatars: the same faces from a seed, attributes that are to be seen, drawn once."""

import importlib.metadata
from dataclasses import replace

import numpy as np
import pytest

from lib.data import avatars, sources
from lib.data.catalogue import DATASETS, Split


@pytest.fixture(scope="module")
def faces():
    return avatars.draw(avatars.CHECKED, avatars.SEEDS["train"])


def test_the_pixels_are_the_pinned_ones(faces):
    """Only with the versions that they are pinned for."""
    drawn_by = {name: importlib.metadata.version(name) for name in avatars.VERSIONS}
    if drawn_by != avatars.VERSIONS:
        pytest.skip(f"drawn by {drawn_by}")
    assert avatars.digest_of(faces) == avatars.PINNED["train"]


def test_fewer_faces_are_the_first_of_more(faces):
    fewer = avatars.draw(10, avatars.SEEDS["train"])
    np.testing.assert_array_equal(fewer.images, faces.images[:10])
    np.testing.assert_array_equal(fewer.extra["mouth"], faces.extra["mouth"][:10])


def test_what_cannot_be_seen_has_no_label(faces):
    no_beard = faces.extra["beard"] == avatars.ATTRIBUTES["beard"].index("NONE")
    np.testing.assert_array_equal(faces.extra["beard_colour"] == avatars.UNKNOWN, no_beard)
    sunglasses = faces.extra["glasses"] == avatars.ATTRIBUTES["glasses"].index("SUNGLASSES")
    np.testing.assert_array_equal(faces.extra["eyes"] == avatars.UNKNOWN, sunglasses)


def test_a_split_is_drawn_once(monkeypatch, tmp_path):
    few = replace(DATASETS["avatars"], splits={"test": Split(120)})
    monkeypatch.setitem(DATASETS, "avatars", few)
    drawn = sources.load("avatars", "test", data_dir=tmp_path)
    monkeypatch.setattr(avatars, "draw", None)
    read = sources.load("avatars", "test", data_dir=tmp_path)
    assert read.images.shape == (120, 64, 64, 3)
    assert read.checksum == drawn.checksum
    assert read.classes == drawn.classes
    assert sources.style_factors(read) == list(avatars.ATTRIBUTES)


def test_faces_of_other_versions_are_refused(faces, monkeypatch):
    monkeypatch.setitem(avatars.PINNED, "train", "0" * 64)
    with pytest.warns(UserWarning, match="processor"):
        avatars.check_pixels(faces)
    monkeypatch.setitem(avatars.VERSIONS, "skia-python", "0.1")
    with pytest.raises(ValueError, match="skia-python 0.1"):
        avatars.check_pixels(faces)
