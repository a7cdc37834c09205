"""Backbones, projectors, predictors, the concentration head and decoders."""

import math
from contextlib import contextmanager
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib.distributions import concentration_of

MAX_COSINE = 0.98


@cache
def residual_block() -> type[nn.Module]:
    """torchvision's BasicBlock, imported when a network is built: it is slow to import."""
    from torchvision.models.resnet import BasicBlock

    return BasicBlock


class NarrowShortcut(nn.Conv2d):
    """A 1 x 1 convolution with a stride, as a choice of pixels and a convolution without.

    The values are the same. On a CPU with AVX2 only, oneDNN (3.10) writes past its memory in the
    backward pass of the former where the input has fewer than 8 channels.
    """

    def forward(self, x: Tensor) -> Tensor:
        vertical, horizontal = self.stride
        return F.conv2d(x[:, :, ::vertical, ::horizontal], self.weight, self.bias)


# ------------------------------------------------------------------------------------- backbones
STEMS = {"imagenet": (7, 2), "stride2": (3, 2), "small": (3, 1)}  # kernel and stride
STEM_STRIDES = {"imagenet": 4, "stride2": 2, "small": 1}  # with the max-pool


def resnet18(width: int = 64, stem: str = "imagenet", channels: int = 3) -> nn.Sequential:
    """ResNet-18 (He et al. 2016) with ``width`` channels in its first stage.

    stem: "imagenet" 7x7 stride 2 and max-pool; "stride2" 3x3 stride 2; "small" 3x3 stride 1 (the
    CIFAR form). After average pooling it has ``.features`` = 8 x width outputs.

    Example:
        >>> resnet18(width=16, stem="small")(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 128])
    """
    if stem not in STEMS:
        raise ValueError(f"Unknown stem {stem!r}; choose one of {sorted(STEMS)}.")
    kernel, stride = STEMS[stem]
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    if stem == "imagenet":
        layers.append(nn.MaxPool2d(3, 2, 1))
    inputs = width
    for stage, stride in enumerate((1, 2, 2, 2)):
        outputs = width * 2**stage
        shortcut = None
        if stride != 1 or inputs != outputs:
            convolution = nn.Conv2d if inputs >= 8 else NarrowShortcut
            shortcut = nn.Sequential(
                convolution(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        layers.append(residual_block()(inputs, outputs, stride, shortcut))
        layers.append(residual_block()(outputs, outputs))
        inputs = outputs
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network.features = inputs
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def mlp(channels: int, image_size: int) -> nn.Sequential:
    """SimVAE's fully connected encoder without its last layer (Table 3a).

    Pixels -> 500 -> 500 -> 2000, a ReLU after each.
    """
    pixels = channels * image_size**2
    network = nn.Sequential(nn.Flatten(), *_relu_layers(pixels, 500, 500, 2000))
    network.features = 2000
    return network


def _relu_layers(*widths: int) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return layers


def resnet_simvae(channels: int, image_size: int) -> nn.Sequential:
    """SimVAE's convolutional encoder without its last layer (Table 4a).

    One residual block a stage, 32 to 256 channels, flattened.

    Deviation: the table's sizes hold for 64 px. For smaller views the stem has no max-pool, so
    that 32 px end in 4 x 4 as well.
    """
    if image_size < 16:
        raise ValueError(f"image_size is {image_size} px; resnet_simvae needs at least 16 px.")
    has_pool = image_size >= 64
    layers: list[nn.Module] = [
        nn.ZeroPad2d((1, 2, 1, 2)),
        nn.Conv2d(channels, 16, 4, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
    ]
    if has_pool:
        layers.append(nn.MaxPool2d(3, 2, 1))
    for inputs, outputs, stride in ((16, 32, 1), (32, 64, 2), (64, 128, 2), (128, 256, 2)):
        shortcut = nn.Sequential(
            nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
        )
        layers.append(residual_block()(inputs, outputs, stride, shortcut))
    network = nn.Sequential(*layers, nn.Flatten())
    halvings = 4 if has_pool else 3
    side = math.ceil(image_size / 2**halvings)
    network.features = 256 * side**2
    return network


def vit(
    width: int, depth: int, heads: int, patch_size: int, image_size: int, channels: int = 3
) -> nn.Module:
    """Vision transformer (Dosovitskiy et al. 2021; timm's).

    Images [B, C, H, W], of any side that patches divide, -> class token [B, width].
    ``encode(images, mask)`` gives the tokens of class and patches, [B, 1 + N, width]; patches
    where mask [B, 1 + N] is true are hidden behind a learned token.

    Deviation: positions are fixed sines and cosines, resampled for views of another side, and no
    block is dropped.
    """
    from lightly.models.modules import MaskedVisionTransformerTIMM  # slow to import
    from timm.models.vision_transformer import VisionTransformer  # slow to import

    if width % heads or width % 4:
        raise ValueError(
            "A vit's width must be a multiple of 4 and of its heads, "
            f"got width {width} and {heads} heads."
        )
    transformer = VisionTransformer(
        image_size,
        patch_size,
        channels,
        num_classes=0,
        global_pool="token",
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        dynamic_img_size=True,
    )
    network = MaskedVisionTransformerTIMM(transformer)
    network.mask_token.requires_grad_(False)  # learned by the method that hides patches
    # torch's fused attention saves memory where patches are many; on a CPU a step with up to 144
    # takes it almost twice as long as plain products.
    has_many_patches = network.vit.patch_embed.num_patches > 144
    for block in network.vit.blocks:
        block.attn.fused_attn &= has_many_patches
    network.features = width
    return network


class Binarise(nn.Module):
    """1 where a pixel exceeds the threshold, else 0."""

    def __init__(self, threshold: float):
        super().__init__()
        self.threshold = threshold

    def forward(self, images: Tensor) -> Tensor:
        return (images > self.threshold).to(images.dtype)


def _resnet18(settings: dict, channels: int) -> nn.Sequential:
    return resnet18(settings["width"], settings["stem"], channels)


def _mlp(settings: dict, channels: int) -> nn.Sequential:
    return mlp(channels, settings["image_size"])


def _resnet_simvae(settings: dict, channels: int) -> nn.Sequential:
    return resnet_simvae(channels, settings["image_size"])


def _vit(settings: dict, channels: int) -> nn.Module:
    return vit(
        settings["vit_width"],
        settings["vit_depth"],
        settings["vit_heads"],
        settings["patch_size"],
        settings["image_size"],
        channels,
    )


BACKBONES = {
    "resnet18": _resnet18,
    "mlp": _mlp,
    "resnet_simvae": _resnet_simvae,
    "vit": _vit,
}


def backbone(settings: dict, channels: int) -> nn.Module:
    """The backbone that resolved settings name; ``.features`` is the length of its output.

    Where a recipe has them, ``binarise`` > 0 puts a threshold on the pixels in front, and
    ``representation`` > 0 one more linear layer behind: the features are then that many numbers,
    as in SimVAE's comparisons. ValueError for unknown names and for views too small.
    """
    name = settings["backbone"]
    if name not in BACKBONES:
        raise ValueError(f"Unknown backbone {name!r}; choose one of {sorted(BACKBONES)}.")
    _check_view_sizes(settings)
    network = BACKBONES[name](settings, channels)
    threshold = settings.get("binarise")
    representation = settings.get("representation")
    if not threshold and not representation:
        return network
    before = [Binarise(threshold)] if threshold else []
    after = [nn.Linear(network.features, representation)] if representation else []
    whole = nn.Sequential(*before, *network, *after)
    whole.features = representation or network.features
    return whole


def _check_view_sizes(settings: dict) -> None:
    """ValueError for views that the backbone cannot take.

    A view must leave a resnet18 more than one pixel for the last stage: less is no image, and in
    bf16 the CPU library's weight gradient of a strided convolution over a single pixel reads
    memory that nobody wrote (oneDNN 3.10, seen as NaN in some runs and not in others).
    """
    name = settings["backbone"]
    if name == "vit" and "patch_size" not in settings:
        raise ValueError(
            f"The recipe of {settings['method']} says nothing of a vit; "
            "take one that does, such as prosmin, dino_vit or ibot."
        )
    if name not in ("resnet18", "vit") and settings["local_views"]:
        raise ValueError(
            f"A {name} takes views of one size; "
            f"set local_views to 0, not {settings['local_views']}."
        )
    sizes = ["image_size", "local_size"] if settings["local_views"] else ["image_size"]
    for size in sizes:
        pixels = settings[size]
        if name == "resnet18":
            smallest = 4 * STEM_STRIDES.get(settings["stem"], 1) + 1
            if pixels < smallest:
                raise ValueError(
                    f"{size} is {pixels} px; a resnet18 with stem {settings['stem']!r} "
                    f"needs at least {smallest} px."
                )
        elif name == "vit" and pixels % settings["patch_size"]:
            raise ValueError(
                f"{size} is {pixels} px; "
                f"a vit needs a multiple of its patch_size {settings['patch_size']}."
            )


# -------------------------------------------------------------------------------------- decoders
class UpsamplingBlock(nn.Module):
    """A residual block that doubles the side where stride is 2 (SimVAE, Table 4b).

    [B, C, H, W] -> [B, outputs, stride H, stride W]. The first 3x3 convolution and the shortcut
    are transposed where they double.

    Deviation: the table says neither how a stride of 2 goes up nor whether there are shortcuts.
    """

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.residual = nn.Sequential(
            self._convolution(inputs, outputs, kernel=3, stride=stride),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential(
            self._convolution(inputs, outputs, kernel=1, stride=stride), nn.BatchNorm2d(outputs)
        )

    @staticmethod
    def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Module:
        padding = kernel // 2
        if stride == 1:
            return nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=False)
        return nn.ConvTranspose2d(
            inputs, outputs, kernel, stride, padding, output_padding=1, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.residual(x) + self.shortcut(x))


def decoder(inputs: int, channels: int, image_size: int, backbone: str) -> nn.Sequential:
    """Latents [B, L] -> parameters of the likelihood [B, C, S, S], unbounded.

    A sigmoid makes them a mean in 0..1. For the backbone "mlp" Table 3b of SimVAE: L -> 2000 ->
    500 -> 500 -> pixels. For any other Table 4b: a linear layer to 256 channels of S / 2^k px,
    four residual blocks of 128, 64, 32 and 16 channels of which the first k double the side, and
    a 5x5 convolution.

    Deviation: k is 4 at 64 px, as printed, and 3 at 32 px, which the table does not have.

    Example:
        >>> decoder(10, 3, 32, "resnet18")(torch.randn(8, 10)).shape
        torch.Size([8, 3, 32, 32])
    """
    if backbone == "mlp":
        shape = (channels, image_size, image_size)
        return nn.Sequential(
            *_relu_layers(inputs, 2000, 500, 500),
            nn.Linear(500, math.prod(shape)),
            nn.Unflatten(1, shape),
        )
    doublings = _doublings(image_size)
    side = image_size // 2**doublings
    widths = (256, 128, 64, 32, 16)
    blocks = []
    for k, (before, after) in enumerate(pairwise(widths)):
        blocks.append(UpsamplingBlock(before, after, stride=2 if k < doublings else 1))
    return nn.Sequential(
        nn.Linear(inputs, widths[0] * side**2),
        nn.Unflatten(1, (widths[0], side, side)),
        *blocks,
        nn.Conv2d(widths[-1], channels, 5, padding=2),
    )


def _doublings(image_size: int) -> int:
    """How often a decoder doubles the side, from 4 px or more: at most four times."""
    for k in (4, 3, 2, 1):
        if image_size % 2**k == 0 and image_size // 2**k >= 4:
            return k
    raise ValueError(
        f"image_size is {image_size} px; the decoder doubles at least once from 4 px or more: "
        "use a multiple of 2 from 8 on."
    )


@torch.no_grad()
def layer_outputs(network: nn.Sequential, x: Tensor) -> list[str]:
    """What the main parts of a network put out for a batch x, as "length" or "channels@HxW".

    The main parts are fully connected layers (reshaped where they are), residual blocks,
    max-pools, and a last convolution.
    """
    shapes: list[str] = []
    main_parts = nn.Linear | nn.MaxPool2d | UpsamplingBlock | residual_block()
    for place, layer in enumerate(network):
        x = layer(x)
        shape = f"{x.shape[1]}@{x.shape[2]}×{x.shape[3]}" if x.ndim == 4 else str(x.shape[1])
        is_last_convolution = place == len(network) - 1 and isinstance(layer, nn.Conv2d)
        if isinstance(layer, main_parts) or is_last_convolution:
            shapes.append(shape)
        elif isinstance(layer, nn.Unflatten):
            shapes[-1] = shape
    return shapes


# ----------------------------------------------------------------------------------------- heads
def projector(inputs: int, dimension: int, layers: int, ends_in_norm: bool = True) -> nn.Sequential:
    """SimSiam's projection MLP (Chen & He 2021, §3): ``layers`` layers with batch norm and ReLU.

    No ReLU follows the last layer. ends_in_norm false: it has no batch norm either, as in the
    projectors of Barlow Twins (§2.2) and VICReg (§4.2).

    Example:
        >>> projector(128, 256, layers=2)(torch.randn(8, 128)).shape
        torch.Size([8, 256])
    """
    modules: list[nn.Module] = []
    for before, after in pairwise([inputs, *[dimension] * layers]):
        modules += [nn.Linear(before, after, bias=False), nn.BatchNorm1d(after), nn.ReLU()]
    modules = modules[:-1] if ends_in_norm else modules[:-2]
    return nn.Sequential(*modules)


def predictor(dimension: int, hidden: int, outputs: int | None = None) -> nn.Sequential:
    """SimSiam's prediction MLP (Chen & He 2021, §3): a hidden layer with batch norm and ReLU.

    Example:
        >>> predictor(256, hidden=64)(torch.randn(8, 256)).shape
        torch.Size([8, 256])
    """
    return nn.Sequential(
        nn.Linear(dimension, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, outputs or dimension),
    )


CONCENTRATION_MAPS = ("natural", "softplus", "exp")


def start_at_cosine(last: nn.Linear, dimension: int, cosine: float, mapping: str) -> None:
    """Make the last output of ``last`` give the κ whose mean cosine is ``cosine``, for any input.

    Early in training the cosine of two views is near zero: a κ that starts at zero gives no
    gradient to the alignment, a large one explodes. The smooth bound of the natural map is not
    inverted, so that κ starts at 0.98 of its value at a cosine of 0.5, and at 0.84 of it at 0.9.
    """
    kappa = concentration_of(cosine, dimension)
    if mapping == "natural":
        raw = math.log(cosine / (1 - cosine))
    elif mapping == "softplus":
        raw = kappa + math.log(-math.expm1(-kappa))
    elif mapping == "exp":
        raw = math.log(kappa)
    else:
        raise ValueError(
            f"Unknown concentration_map {mapping!r}; choose one of {CONCENTRATION_MAPS}."
        )
    with torch.no_grad():
        last.weight[-1].zero_()
        last.bias[-1] = raw


def to_concentration(raw: Tensor, dimension: int, mapping: str = "natural") -> Tensor:
    """Raw outputs a [B] to concentrations κ [B], in float32.

    natural: κ = (D - 1) exp(a), where a is the logit of the mean cosine ρ of the Power Spherical
    distribution, smoothly bounded at ρ = 0.98, whatever D is; softplus, exp: for comparison.

    Deviation: the papers' main texts do not name a positivity map.

    Example:
        >>> to_concentration(torch.zeros(1), dimension=128)  # a cosine of about ½: κ near D - 1
        tensor([124.4600])
    """
    raw = raw.float()
    if mapping == "natural":
        highest = math.log(MAX_COSINE / (1 - MAX_COSINE))
        return (dimension - 1) * torch.exp(highest - F.softplus(highest - raw))
    if mapping == "softplus":
        return F.softplus(raw)
    if mapping == "exp":
        return torch.exp(raw)
    raise ValueError(f"Unknown concentration_map {mapping!r}; choose one of {CONCENTRATION_MAPS}.")


class PrototypeHead(nn.Module):
    """DINO's head (Caron et al. 2021, §3.2): features [..., F] -> cosines [..., K].

    An MLP with GELU, a normalised bottleneck, and cosines to K unit prototypes. batch_norm:
    between each hidden layer and its GELU, over all tokens.
    """

    def __init__(
        self, inputs: int, hidden: int, bottleneck: int, prototypes: int, batch_norm: bool = False
    ):
        super().__init__()
        self.mlp = nn.Sequential(
            *_gelu_layer(inputs, hidden, batch_norm),
            *_gelu_layer(hidden, hidden, batch_norm),
            nn.Linear(hidden, bottleneck),
        )
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.prototypes = nn.Parameter(torch.randn(prototypes, bottleneck))

    def forward(self, features: Tensor, frozen: bool = False) -> Tensor:
        """frozen: the prototypes are constants, as in DINO's first epoch."""
        prototypes = self.prototypes.detach() if frozen else self.prototypes
        hidden = self.mlp(features.flatten(0, -2)).unflatten(0, features.shape[:-1])
        return F.linear(F.normalize(hidden, dim=-1), F.normalize(prototypes, dim=1))


def _gelu_layer(inputs: int, outputs: int, batch_norm: bool) -> list[nn.Module]:
    norm = [nn.BatchNorm1d(outputs)] if batch_norm else []
    return [nn.Linear(inputs, outputs), *norm, nn.GELU()]


class GaussianPredictor(nn.Module):
    """ProSMin's predictor (§5): projections [B, K] -> mean [B, K] and log σ [B, K].

    Two layers with GELU in between, normalised, then a linear layer for each; hidden 0: those two
    layers only. σ starts at ``deviation``.

    Deviation: the paper does not say what lies between the two layers and those of the mean and
    of log σ. In the authors' code what is normalised is also cut at zero, which left no unit
    alive in our narrow predictors, and σ starts at 1, sixteen times the deviation of a target's
    coordinates.
    """

    def __init__(self, dimension: int, hidden: int, deviation: float, batch_norm: bool = False):
        super().__init__()
        self.mlp = None
        if hidden:
            first = _gelu_layer(dimension, hidden, batch_norm)
            self.mlp = nn.Sequential(*first, nn.Linear(hidden, hidden))
        self.mean = nn.Linear(hidden or dimension, dimension, bias=False)
        self.log_sigma = nn.Linear(hidden or dimension, dimension)
        nn.init.zeros_(self.log_sigma.weight)
        nn.init.constant_(self.log_sigma.bias, math.log(deviation))

    def forward(self, projection: Tensor) -> tuple[Tensor, Tensor]:
        hidden = F.normalize(self.mlp(projection), dim=1) if self.mlp else projection
        return self.mean(hidden), self.log_sigma(hidden)


# ------------------------------------------------------------------------ averages and statistics
def cosine_between(first: float, last: float, progress: float) -> float:
    """From ``first`` at progress 0 to ``last`` at 1 on half a cosine.

    Example:
        >>> cosine_between(0.996, 1.0, progress=1.0)
        1.0
    """
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2


@torch.no_grad()
def update_average(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """``target <- m target + (1 - m) online``, as in BYOL, MoCo and DINO.

    Buffers stay the target's own: it passes standard views in training mode, so its batch norm
    has running statistics of its own activations, which a target that embeds images later (DINO,
    iBOT, ProSMin) uses.

    Example:
        >>> target, online = nn.Linear(2, 2), nn.Linear(2, 2)
        >>> update_average(target, online, momentum=0.99)
    """
    for average, current in zip(target.parameters(), online.parameters(), strict=True):
        average.lerp_(current, 1 - momentum)


@contextmanager
def keep_running_statistics(network: nn.Module):
    """Let batch norm use the statistics of its batches without adding them to its running ones."""
    tracking = []
    for module in network.modules():
        is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if is_norm and module.track_running_stats:
            tracking.append(module)
    for module in tracking:
        module.track_running_stats = False
    try:
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


# ----------------------------------------------------------------------------- several processes
def gather(values: Tensor) -> Tensor:
    """The rows [B, ...] of all processes in the order of their ranks, with gradients."""
    if not torch.distributed.is_initialized():
        return values
    from torch.distributed.nn.functional import all_gather  # slow to import

    return torch.cat(all_gather(values))


def own_rows(batch: int) -> slice:
    """Where the ``batch`` rows of this process are in what ``gather`` returns."""
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    return slice(rank * batch, (rank + 1) * batch)
