"""Backbones, projectors, predictors and the concentration head."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock

MAX_COSINE = 0.98


def resnet18(width: int = 64, stem: str = "imagenet", channels: int = 3) -> nn.Sequential:
    """ResNet-18 (He et al. 2016) with ``width`` channels in its first stage; ``.features`` = 8 x width outputs after average pooling.

    stem: "imagenet" 7x7 stride 2 and max-pool; "stride2" 3x3 stride 2; "small" 3x3 stride 1 (the CIFAR form).
    """
    stems = {
        "imagenet": lambda: [nn.Conv2d(channels, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(3, 2, 1)],
        "stride2": lambda: [nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()],
        "small": lambda: [nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()],
    }
    if stem not in stems:
        raise ValueError(f"Unknown stem {stem!r}; choose one of {sorted(stems)}.")
    layers, inputs = stems[stem](), width
    for stage, stride in enumerate((1, 2, 2, 2)):
        outputs = width * 2**stage
        shortcut = None
        if stride != 1 or inputs != outputs:
            shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        layers += [BasicBlock(inputs, outputs, stride, shortcut), BasicBlock(outputs, outputs)]
        inputs = outputs
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network.features = inputs
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


BACKBONES = {"resnet18": resnet18}
STEM_STRIDES = {"imagenet": 4, "stride2": 2, "small": 1}


def backbone(settings: dict, channels: int) -> nn.Sequential:
    """The backbone that resolved settings name; ValueError for unknown names and for views too small for it.

    A view must leave more than one pixel for the last stage: less is no image, and in bf16 the CPU library's weight gradient of a strided
    convolution over a single pixel reads memory that nobody wrote (oneDNN 3.10, seen as NaN in some runs and not in others).
    """
    smallest = 4 * STEM_STRIDES.get(settings["stem"], 1) + 1
    for name in ("image_size", "local_size") if settings["local_views"] else ("image_size",):
        if settings[name] < smallest:
            raise ValueError(f"{name} is {settings[name]} px; a resnet18 with stem {settings['stem']!r} needs at least {smallest} px.")
    if settings["backbone"] not in BACKBONES:
        raise ValueError(f"Unknown backbone {settings['backbone']!r}; choose one of {sorted(BACKBONES)}.")
    return BACKBONES[settings["backbone"]](settings["width"], settings["stem"], channels)


def projector(inputs: int, dimension: int, layers: int) -> nn.Sequential:
    """SimSiam's projection MLP (Chen & He 2021, §3): ``layers`` fully connected layers, each with batch norm, ReLU but after the last."""
    widths = [inputs] + [dimension] * layers
    modules: list[nn.Module] = []
    for index in range(layers):
        modules += [nn.Linear(widths[index], widths[index + 1], bias=False), nn.BatchNorm1d(widths[index + 1])]
        modules += [nn.ReLU()] if index < layers - 1 else []
    return nn.Sequential(*modules)


def predictor(dimension: int, hidden: int, outputs: int | None = None) -> nn.Sequential:
    """SimSiam's prediction MLP (Chen & He 2021, §3): a bottleneck with batch norm and ReLU inside, nothing after the output."""
    return nn.Sequential(
        nn.Linear(dimension, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, outputs or dimension)
    )


def concentration_head(inputs: int) -> nn.Sequential:
    """u_theta: backbone features [B, F] -> one raw output [B, 1] (VI-SimSiam 2023, §5; its layers are not published: one hidden layer here)."""
    return nn.Sequential(nn.Linear(inputs, inputs, bias=False), nn.BatchNorm1d(inputs), nn.ReLU(), nn.Linear(inputs, 1))


def start_at_cosine(last: nn.Linear, dimension: int, cosine: float, mapping: str) -> None:
    """Make the last output of ``last`` give, for every input, the κ whose mean cosine κ / (D - 1 + κ) is ``cosine``.

    Early in training the cosine of two views is near zero: a κ that starts at zero gives no gradient to the alignment, a large one explodes.
    """
    kappa = (dimension - 1) * cosine / (1 - cosine)
    start = {
        "natural": lambda: math.log(cosine / (1 - cosine)),
        "softplus": lambda: kappa + math.log(-math.expm1(-kappa)),
        "exp": lambda: math.log(kappa),
    }
    if mapping not in start:
        raise ValueError(f"Unknown concentration_map {mapping!r}; choose one of {sorted(start)}.")
    with torch.no_grad():
        last.weight[-1].zero_()
        last.bias[-1] = start[mapping]()


def to_concentration(raw: Tensor, dimension: int, mapping: str = "natural") -> Tensor:
    """Raw outputs [B] to concentrations κ [B] in float32.

    natural: κ = (D - 1) exp(a), a = logit of the mean cosine ρ of the Power Spherical, smoothly bounded at ρ = 0.98, whatever D is;
    softplus, exp: for comparison. Deviation: neither paper names a positivity map.
    """
    raw = raw.float()
    if mapping == "natural":
        highest = math.log(MAX_COSINE / (1 - MAX_COSINE))
        return (dimension - 1) * torch.exp(highest - F.softplus(highest - raw))
    if mapping == "softplus":
        return F.softplus(raw)
    if mapping == "exp":
        return torch.exp(raw)
    raise ValueError(f"Unknown concentration_map {mapping!r}; choose one of ['exp', 'natural', 'softplus'].")


class PrototypeHead(nn.Module):
    """DINO's head (Caron et al. 2021, §3.2): an MLP with GELU, a normalised bottleneck, and cosines to K unit prototypes: [B, F] -> [B, K]."""

    def __init__(self, inputs: int, hidden: int, bottleneck: int, prototypes: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck))
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.prototypes = nn.Parameter(torch.randn(prototypes, bottleneck))

    def forward(self, features: Tensor, frozen: bool = False) -> Tensor:
        """frozen: the prototypes are constants, as in DINO's first epoch."""
        prototypes = self.prototypes.detach() if frozen else self.prototypes
        return F.linear(F.normalize(self.mlp(features), dim=1), F.normalize(prototypes, dim=1))


def cosine_between(first: float, last: float, progress: float) -> float:
    """From ``first`` at progress 0 to ``last`` at 1 on half a cosine."""
    return last + (first - last) * (1 + math.cos(math.pi * progress)) / 2


@torch.no_grad()
def update_average(target: nn.Module, online: nn.Module, momentum: float) -> None:
    """Exponential moving average of weights, ``target <- m target + (1 - m) online``; buffers are copied."""
    for average, current in zip(target.parameters(), online.parameters(), strict=True):
        average.lerp_(current, 1 - momentum)
    for average, current in zip(target.buffers(), online.buffers(), strict=True):
        average.copy_(current)


# ---------------------------------------------------------------------------------------------------------------- several processes
def gather(values: Tensor) -> Tensor:
    """The rows [B, ...] of all processes in the order of their ranks, with gradients; unchanged in a process of its own."""
    if not torch.distributed.is_initialized():
        return values
    from torch.distributed.nn.functional import all_gather

    return torch.cat(all_gather(values))


def own_rows(batch: int) -> slice:
    """Where the ``batch`` rows of this process are in what ``gather`` returns."""
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    return slice(rank * batch, (rank + 1) * batch)


class SynchronisedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm whose statistics are taken over the batches of all processes, each of the same size; for the CPU, where torch has none.

    Deviation: the running variance is updated with the biased variance times n / (n - 1) in float32, as torch does; sums are taken in float32.
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"Batch norm takes [B, C, ...], got shape {list(input.shape)}.")

    def forward(self, input: Tensor) -> Tensor:
        self._check_input_dim(input)
        if not self.training:
            return super().forward(input)
        from torch.distributed.nn.functional import all_reduce  # differentiable

        x = input.float()
        axes = [0, *range(2, x.ndim)]
        count = x.numel() // x.shape[1] * torch.distributed.get_world_size()
        mean = all_reduce(x.sum(axes)) / count
        shape = [1, -1] + [1] * (x.ndim - 2)
        centred = x - mean.view(shape)
        variance = all_reduce(centred.square().sum(axes)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        normalised = centred * (variance + self.eps).rsqrt().view(shape)
        return (normalised * self.weight.view(shape) + self.bias.view(shape)).to(input.dtype)


def synchronise_batch_norm(network: nn.Module, device: torch.device) -> nn.Module:
    """The network with every batch norm synchronised between the processes of the default group."""
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for name, child in network.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            replacement = SynchronisedBatchNorm(child.num_features, child.eps, child.momentum, child.affine).train(child.training)
            replacement.load_state_dict(child.state_dict())
            setattr(network, name, replacement)
        else:
            synchronise_batch_norm(child, device)
    return network
