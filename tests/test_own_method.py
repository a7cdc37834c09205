"""A method of one's own: what README asks for is enough, and what is missing is said before anything is trained."""

import pytest
import torch

from lib import losses, methods, training
from lib.evaluation import measure as protocol
from lib.methods.base import TwoViews
from lib.pipeline import jobs as reproduction
from lib.runs import settings
from lib.runs import store as artifacts


class Mine(TwoViews):
    """A person's own method: the projections of the two views are drawn together, and kept apart from those of other images."""

    def loss(self, views):
        first, second = self.projections(views)
        return {"loss": losses.info_nce_loss(first, second, 0.5)}


def own_method(monkeypatch, cls, **changes):
    """Its class and its recipe, as README says."""
    monkeypatch.setitem(methods.METHODS, "mine", cls)
    monkeypatch.setitem(settings.read("recipes"), "mine", {"inherits": "simclr"})
    return settings.resolve("mine", "smoke", **changes)


def test_a_method_of_ones_own_is_trained_and_measured_like_the_others(monkeypatch):
    run = own_method(monkeypatch, Mine)
    assert reproduction.parse_parameters("method=mine", "10_pretraining") == {"method": "mine"}
    training.train(run)
    frame = protocol.measure_run(protocol.Run(run))
    assert {"accuracy", "correctness_auroc", "ood_auroc"} <= set(frame.metric) and set(
        frame.method
    ) == {"mine"}
    namespace: dict = {}
    for cell in reproduction.cells(
        "10_pretraining"
    ):  # here, as another process does not know the method
        if cell["cell_type"] == "code":
            exec(cell["source"], namespace)
        if "parameters" in cell["metadata"].get("tags", []):
            namespace |= {
                "profile": "smoke",
                "method": "mine",
                "train_missing": False,
                "_parameters": ["profile", "method", "train_missing"],
            }
    assert (artifacts.results_dir("smoke") / "figures" / "10_training_mine.png").exists()


def test_a_method_without_a_class_is_refused_before_a_notebook_runs(monkeypatch):
    monkeypatch.setitem(settings.read("recipes"), "mine", {"inherits": "simclr"})
    with pytest.raises(ValueError, match="Unknown method 'mine'; .*add its class to METHODS"):
        reproduction.parse_parameters("method=mine", "10_pretraining")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"loss": lambda self, views: self.projections(views)[0].mean()},
            "mine: loss must return named scalar terms, one of them .*, got Tensor",
        ),
        (
            {"loss": lambda self, views: {"total": torch.ones(3)}},
            r"one of them 'loss', got \{'total': \(3,\)\}",
        ),
        (
            {"embeds_with": ("backbone", "head")},
            r"Mine has no \['head'\]; lib/methods/__init__.py says",
        ),
        (
            {"embed": lambda self, images: self.backbone(images)},
            "method.embed must return an Embedding .* got Tensor",
        ),
        (
            {
                "embed": lambda self, images: methods.Embedding(
                    self.backbone(images), torch.zeros(1), {}
                )
            },
            r"uncertainty .* B = 256, got .*\(1,\)",
        ),
        (
            {"embed": lambda self, images: methods.Embedding(*[self.backbone(images)] * 2, {})},
            r"uncertainty \[B\] with B = 256, got \(256, 32\) and",
        ),
    ],
)
def test_what_a_method_of_ones_own_lacks_is_said_before_it_is_trained(monkeypatch, parts, message):
    run = own_method(monkeypatch, type("Mine", (Mine,), parts), train_images=256)
    with pytest.raises(ValueError, match=message):
        training.train(run)
    assert not (artifacts.run_dir("smoke", settings.run_name(run)) / "log.csv").exists()
