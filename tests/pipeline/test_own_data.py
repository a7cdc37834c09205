"""A data set of one's own: its classes are counted, and what cannot be measured is not trained."""

import numpy as np
import pytest
from PIL import Image

from lib import evaluation, training
from lib.evaluation import measure
from lib.runs import settings, store

pytestmark = pytest.mark.usefixtures("data_dir")


def write_set(name, labels, split="train"):
    """A drawn set with these labels, where training looks for it."""
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 16, 16, 3), dtype=np.uint8)
    folder = store.default_data_dir() / name
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"{split}.npz", images=images, labels=np.array(labels))


def test_supervised_training_counts_the_classes_of_the_data():
    labels = np.arange(192) % 3
    write_set("shapes", labels)
    write_set("shapes", labels, "test")
    run = settings.resolve("supervised", "smoke", dataset="shapes", image_size=16)
    folder = training.train(run)
    assert store.read_json(folder / "config.json")["settings"]["classes"] == 3
    network = training.load_trained(run, 3)
    assert network.projector.out_features == 3
    assert evaluation.Run(run).name == folder.name


def test_copied_files_are_found_by_what_they_hold():
    images = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    for number, pixels in enumerate(images):
        split = "train" if number < 5 else "test"
        folder = store.default_data_dir() / "files" / split / ("even", "odd")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    Image.fromarray(images[0]).save(folder / "copy of 0.png")
    run = settings.resolve("simsiam", "smoke", dataset="files", image_size=16)
    (row,) = measure.copied_images([run]).itertuples()
    assert (row.test_images, row.copies) == (4, 1)


def test_a_set_with_one_image_a_class_is_refused_before_training():
    write_set("people", np.arange(40))
    write_set("people", np.arange(40), "test")
    run = settings.resolve("simsiam", "smoke", dataset="people", image_size=16)
    (reason,) = measure.missing_sets([run])
    assert "people" in reason and "40 classes" in reason
