"""A method of one's own: the README's steps suffice, and what it lacks is named at once."""

import pytest
import torch

from lib import losses, methods, training
from lib.methods.base import TwoViews
from lib.pipeline import notebooks
from lib.runs import settings, store

NOTEBOOK = "10_pretraining"


class Mine(TwoViews):
    """The projections of two views attract each other and repel those of other images."""

    def loss(self, views):
        first, second = self.projections(views)
        return {"loss": losses.info_nce_loss(first, second, 0.5)}


@pytest.fixture
def recipe(monkeypatch):
    """The recipe of a method called mine."""
    monkeypatch.setitem(settings.read("recipes"), "mine", {"inherits": "simclr"})


def run_here(notebook, **parameters):
    """Run a notebook in this process, which knows the method, and return its names."""
    namespace = {}
    for cell in notebooks.cells(notebook):
        if cell["cell_type"] == "code":
            exec(cell["source"], namespace)
        if "parameters" in cell["metadata"].get("tags", []):
            namespace |= parameters
    return namespace


def test_ten_lines_make_a_method_that_is_in_table_and_figure(recipe, monkeypatch):
    monkeypatch.setitem(methods.METHODS, "mine", Mine)
    assert notebooks.parse_parameters("method=mine", NOTEBOOK) == {"method": "mine"}
    shown = run_here(NOTEBOOK, profile="smoke", method="mine", train_missing=True)
    assert set(shown["accuracy"].method) == {"mine"}
    assert {"accuracy", "correctness_auroc", "ood_auroc"} <= set(shown["metrics"].metric)
    assert (store.results_dir("smoke") / "figures" / "10_training_mine.png").exists()


def test_a_method_without_a_class_is_refused_before_a_notebook_runs(recipe):
    with pytest.raises(ValueError, match="'mine'.*METHODS"):
        notebooks.parse_parameters("method=mine", NOTEBOOK)


def embed_with_one_uncertainty(self, images):
    return methods.Embedding(self.backbone(images), torch.zeros(1), {})


@pytest.mark.parametrize(
    ("parts", "culprit"),
    [
        ({"loss": lambda self, views: {"total": torch.ones(3)}}, "loss.*'total'"),
        ({"embeds_with": ("backbone", "head")}, "'head'"),
        ({"embed": embed_with_one_uncertainty}, r"uncertainty.*\(1,\)"),
    ],
    ids=["no scalar", "no such part", "one value"],
)
def test_what_a_method_lacks_is_named_before_it_is_trained(parts, culprit, recipe, monkeypatch):
    monkeypatch.setitem(methods.METHODS, "mine", type("Mine", (Mine,), parts))
    run = settings.resolve("mine", "smoke", train_images=256)
    with pytest.raises(ValueError, match=culprit):
        training.train(run)
    assert not (store.run_dir("smoke", settings.run_name(run)) / "log.csv").exists()
