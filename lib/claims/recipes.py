"""What a paper prints of its recipe beside what settings/recipes.toml and our classifiers have."""

from functools import cache

import pandas as pd
import torch

from lib import methods, networks
from lib.data import views
from lib.evaluation import generation, probes, style
from lib.runs import settings

# What is compared besides the recipes of settings/recipes.toml and the views of lib.data.views.
CLASSIFIERS = {
    "linear probe": probes.PAPER_PROBE,
    "linear probe to its optimum": probes.OWN_PROBE,
    "mlp probe": style.PAPER_PROBE,
    "nearest neighbours": style.NEIGHBOURS,
    "mixture": style.MIXTURE,
    "decoder of a frozen encoder": generation.PAPER_DECODER,
}


def ours(recipe: str) -> dict:
    """Our settings of what a claim calls a recipe; ValueError for an unknown one.

    recipe: a method of recipes.toml, "views <name>", "networks <data set>" (SimVAE's), or one of
    CLASSIFIERS.
    """
    if recipe in settings.read("recipes"):
        return settings.recipe(recipe)
    kind, _, name = recipe.partition(" ")
    if kind == "views" and name in views.RECIPES:
        return views.RECIPES[name]
    if kind == "networks":
        return _layers(name)
    if recipe in CLASSIFIERS:
        return CLASSIFIERS[recipe]
    choices = [*settings.read("recipes"), *CLASSIFIERS]
    choices += [f"views {name}" for name in views.RECIPES]
    raise ValueError(f"Unknown recipe {recipe!r} in settings/claims.toml; choose from {choices}.")


@cache
def _layers(dataset: str) -> dict[str, list[str]]:
    """What the layers of SimVAE's encoder, to the posterior's mean, and of its decoder put out."""
    run = settings.resolve("simvae", "paper", dataset=dataset)
    channels = 3 if dataset == "celeba" else 1
    network = methods.build(run, channels)
    image = torch.zeros(2, channels, run["image_size"], run["image_size"])
    mean, _ = network.encode(image)
    encoder = networks.layer_outputs(network.backbone, image) + [str(mean.shape[1])]
    return {"encoder": encoder, "decoder": networks.layer_outputs(network.decoder, mean)}


def compare(recipe: str, published: dict) -> pd.DataFrame:
    """Every published setting beside ours: columns setting, published, ours, followed.

    Example:
        compare("simvae", {"learning_rate": 8e-5}).followed.all()
    """
    settings_of_ours = ours(recipe)
    rows = []
    for setting, value in published.items():
        ours_value = settings_of_ours.get(setting)
        if isinstance(ours_value, tuple):  # TOML has no tuples
            ours_value = list(ours_value)
        row = {"setting": setting, "published": value, "ours": ours_value}
        rows.append(row | {"followed": ours_value == value})
    return pd.DataFrame(rows, columns=["setting", "published", "ours", "followed"], dtype=object)
