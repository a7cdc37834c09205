"""One class a method: its networks, its loss and what it says of an image.

``METHODS`` maps each recipe's name to its class. A method is a module with

- ``loss(views) -> dict``: named scalar terms, one of them "loss"; a method that ``takes_labels`` is
  given labels too, ``loss(views, labels)``;
- ``embed(images) -> Embedding``; ``embeds_with`` names the parts that it needs;
- where it has them, ``set_epoch(epoch)``, called before every step (epoch a float, steps
  included), and ``update_target(progress)``, called after it (progress in 0..1).

In the examples ``first`` and ``second`` are two views of a batch, [B, 3, 16, 16], and ``settings``
is lib.runs.settings.

To add one: its class in a file of this folder, a line in ``METHODS``, a recipe in
settings/recipes.toml, and its runs in settings/runs.toml.
"""

import torch
from torch import nn

from lib.methods.base import Embedding, forward_by_size, spread, view_pairs
from lib.methods.contrastive import BarlowTwins, MoCo, SimCLR, VICReg
from lib.methods.distillation import BYOL, DINO, IBOT, DirectPred, MoCoV3
from lib.methods.prosmin import ProSMin
from lib.methods.references import RandomInitialisation, RawPixels, Supervised
from lib.methods.simsiam import SimSiam, VISimSiam
from lib.methods.simvae import CRVAE, VAE, SimVAE
from lib.methods.vje import VJE
from lib.runs import settings

__all__ = [
    "GENERATIVE",
    "METHODS",
    "Embedding",
    "RandomInitialisation",
    "RawPixels",
    "SimSiam",
    "VISimSiam",
    "build",
    "forward_by_size",
    "spread",
    "view_pairs",
]

METHODS = {
    "simsiam": SimSiam,
    "vi_simsiam": VISimSiam,
    "vi_simsiam_undivided": VISimSiam,
    "vi_simsiam_2022": VISimSiam,
    "vi_simsiam_detached": VISimSiam,
    "vi_simsiam_read_out": VISimSiam,
    "vi_simsiam_fixed": VISimSiam,
    "simclr": SimCLR,
    "barlow_twins": BarlowTwins,
    "vicreg": VICReg,
    "byol": BYOL,
    "byol_without_average": BYOL,
    "directpred": DirectPred,
    "moco_v2": MoCo,
    "moco_v3": MoCoV3,
    "dino": DINO,
    "dino_two_views": DINO,
    "dino_vit": DINO,
    "ibot": IBOT,
    "prosmin": ProSMin,
    "prosmin_public_code": ProSMin,
    "prosmin_vit": ProSMin,
    "vje": VJE,
    "supervised": Supervised,
    "random": RandomInitialisation,
    "random_vit": RandomInitialisation,
    "random_latent": RandomInitialisation,
    "raw_pixels": RawPixels,
    "vae": VAE,
    "beta_vae": VAE,
    "cr_vae": CRVAE,
    "simvae": SimVAE,
    "simvae_public_code": SimVAE,
    "simclr_latent": SimCLR,
    "moco_latent": MoCo,
    "moco_v2_latent": MoCo,
    "vicreg_latent": VICReg,
}

# Methods with a decoder of their own
GENERATIVE = tuple(name for name, kind in METHODS.items() if issubclass(kind, VAE))

# A method's own uncertainty: the native quantity it comes from, and its name in words.
# All other methods have minus the norm of their features.
UNCERTAINTIES = {
    VISimSiam: ("kappa", "-κ"),
    DINO: ("entropy", "softmax entropy"),
    ProSMin: ("log_sigma", "mean log σ"),
    VAE: ("log_volume", "½ Σ log v"),
    VJE: ("log_variance", "mean log v"),
}
TRIVIAL = ("", "negative feature norm (trivial)")


def own_uncertainty(method: str) -> tuple[str, str]:
    """The native quantity that a method's uncertainty comes from, "" if none, and its name.

    Example:
        >>> own_uncertainty("vi_simsiam")
        ('kappa', '-κ')
    """
    for kind, named in UNCERTAINTIES.items():
        if issubclass(METHODS[method], kind):
            return named
    return TRIVIAL


def check_known(name: str) -> None:
    """ValueError for a method that has no class; it names the nearest one that has."""
    settings.check_known(name, METHODS, "method", "Add its class to METHODS of lib/methods.")


def build(run: dict, channels: int = 3) -> nn.Module:
    """The method of a run's settings, initialised with their seed, channels last.

    Example:
        >>> from lib.runs import settings
        >>> network = build(settings.resolve("simsiam", "smoke"), channels=1)
    """
    check_known(run["method"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run["seed"])
        method = METHODS[run["method"]](run, channels)
    needed = ["embed", "embeds_with", *getattr(method, "embeds_with", ())]
    if run["epochs"]:
        needed.append("loss")
    missing = [name for name in needed if not hasattr(method, name)]
    if missing:
        raise ValueError(
            f"{type(method).__name__} has no {missing}; "
            "lib/methods/__init__.py says what a method must have."
        )
    return method.to(memory_format=torch.channels_last)
