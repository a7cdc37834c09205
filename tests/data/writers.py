"""Tiny data sets on disk."""

import gzip

import numpy as np
from PIL import Image

RANDOM = np.random.default_rng(0)


def pixels(n=6, size=8, channels=3):
    return RANDOM.integers(0, 256, (n, size, size, channels), dtype=np.uint8)


def write_npz(path, n=6, **changed):
    """An npz file of a set; ``changed`` replaces arrays, or leaves out those that are None."""
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.arange(n) % 2
    arrays = {"images": pixels(n), "labels": labels, "classes": np.array(["a", "b"]), **changed}
    np.savez(path, **{key: values for key, values in arrays.items() if values is not None})
    return arrays


def write_image(path, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    Image.fromarray(RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


def idx(array):
    """An array of bytes as MNIST's files have it."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


def write_idx(folder, split="train", n=6, packed=True):
    folder.mkdir(parents=True, exist_ok=True)
    prefix = "train" if split == "train" else "t10k"
    images = pixels(n, 28, 1)[..., 0]
    labels = np.arange(n, dtype=np.uint8) % 10
    for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
        path = folder / f"{prefix}-{kind}-ubyte"
        if packed:
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(idx(array)))
        else:
            path.write_bytes(idx(array))
    return images, labels
