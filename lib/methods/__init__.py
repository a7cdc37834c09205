"""One class per method: its networks, its loss and what it says of an image. ``METHODS`` maps each recipe's name to its class.

A method is a module with ``loss(views) -> named scalar terms with "loss"`` and ``embed(images) -> Embedding``; ``embeds_with`` names the parts
that ``embed`` needs. Where a method has them, the training loop calls ``set_epoch(epoch)`` before every step (epoch a float, steps included)
and ``update_target(progress)`` after it (progress in 0..1); a method with ``classes`` is given labels too, ``loss(views, labels)``.
"""

import torch
from torch import nn

from lib.methods import baselines, prosmin, vje
from lib.methods import simvae as vae
from lib.methods.base import Embedding, forward_by_size, spread, view_pairs
from lib.methods.baselines import RandomInitialisation, RawPixels
from lib.methods.simsiam import SimSiam, VISimSiam

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
    "simclr": baselines.SimCLR,
    "barlow_twins": baselines.BarlowTwins,
    "vicreg": baselines.VICReg,
    "byol": baselines.BYOL,
    "byol_without_average": baselines.BYOL,
    "directpred": baselines.DirectPred,
    "moco_v2": baselines.MoCo,
    "dino": baselines.DINO,
    "dino_two_views": baselines.DINO,
    "dino_vit": baselines.DINO,
    "ibot": baselines.IBOT,
    "moco_v3": baselines.MoCoV3,
    "prosmin": prosmin.ProSMin,
    "prosmin_public_code": prosmin.ProSMin,
    "prosmin_vit": prosmin.ProSMin,
    "vje": vje.VJE,
    "supervised": baselines.Supervised,
    "random": RandomInitialisation,
    "raw_pixels": RawPixels,
    "random_latent": RandomInitialisation,
    "random_vit": RandomInitialisation,
    "vae": vae.VAE,
    "beta_vae": vae.VAE,
    "cr_vae": vae.CRVAE,
    "simvae": vae.SimVAE,
    "simvae_public_code": vae.SimVAE,
    "simclr_latent": baselines.SimCLR,
    "moco_latent": baselines.MoCo,
    "moco_v2_latent": baselines.MoCo,
    "vicreg_latent": baselines.VICReg,
}
GENERATIVE = tuple(
    name for name, kind in METHODS.items() if issubclass(kind, vae.VAE)
)  # with a decoder of their own

# What a method's own uncertainty is: the native quantity it comes from, and its name. All others have the negative norm of their features.
UNCERTAINTIES = {
    VISimSiam: ("kappa", "-κ"),
    baselines.DINO: ("entropy", "softmax entropy"),
    prosmin.ProSMin: ("log_sigma", "mean log σ"),
    vae.VAE: ("log_volume", "½ Σ log v"),
    vje.VJE: ("log_variance", "mean log v"),
}
TRIVIAL = "", "negative feature norm (trivial)"


def own_uncertainty(method: str) -> tuple[str, str]:
    """The native quantity that a method's uncertainty comes from ("" if it has none of its own), and its name in words."""
    return next(
        (named for kind, named in UNCERTAINTIES.items() if issubclass(METHODS[method], kind)),
        TRIVIAL,
    )


def check_known(name: str) -> None:
    """ValueError for a method that has no class."""
    if name not in METHODS:
        raise ValueError(
            f"Unknown method {name!r}; choose one of {sorted(METHODS)}, or add its class to METHODS of lib/methods/__init__.py."
        )


def build(settings: dict, channels: int = 3) -> nn.Module:
    """The method named in resolved settings, initialised with their seed, in channels-last memory."""
    check_known(settings["method"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings["seed"])
        method = METHODS[settings["method"]](settings, channels).to(
            memory_format=torch.channels_last
        )
    needs = ("embed", "embeds_with") + (("loss",) if settings["epochs"] else ())
    if missing := [
        name
        for name in needs + tuple(getattr(method, "embeds_with", ()))
        if not hasattr(method, name)
    ]:
        raise ValueError(
            f"{type(method).__name__} has no {missing}; lib/methods/__init__.py says what a method must have."
        )
    return method
