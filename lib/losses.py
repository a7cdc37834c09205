"""Training objectives: one pure function of tensors each, in the letters of its paper.

The losses of the methods for comparison have the values of lightly's, which the tests compare. They
are written out because lightly's keep state (queues, centres), return only a sum where the terms
are logged, or compute in the precision of autocast.

A NaN or an infinite value makes a loss NaN or infinite, at which training stops with a sentence:
to ask each loss would wait for the device.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lib.distributions import (
    PowerSpherical,
    directional_student_t_log_prob,
    log_sum_of_squares,
    student_t_log_prob,
)

LOG_2PI = math.log(2 * math.pi)
TINY = 1e-24  # of a squared distance: below it two points are one
ROUNDING = 1e-3  # by which resized pixels may leave 0..1


# --------------------------------------------------------------------------- shapes and precision
def _precise(tensor: Tensor) -> Tensor:
    """In float32, or in float64 where it comes in float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _scaled(vectors: Tensor) -> Tensor:
    """Vectors [..., D] times the power of two that brings their largest value to 0.5 … 1.

    The scaling is exact and leaves directions unchanged. Without it norms overflow at 1e19 in
    float32, and vectors shorter than 1e-12 count as zero. A vector of zeros stays.
    """
    vectors = _precise(vectors)
    largest = vectors.detach().abs().amax(-1, keepdim=True)
    exponent = torch.frexp(largest).exponent.clamp(-126, 126)  # of float32's normal numbers
    return vectors * torch.ldexp(torch.ones_like(largest), -exponent)


def _unit(vectors: Tensor) -> Tensor:
    """The directions of vectors [..., D], in float32 or float64; zero where a vector is zero."""
    return F.normalize(_scaled(vectors), dim=-1)


def _same_shape(form: str = "[B, D]", least: int = 1, **tensors: Tensor) -> None:
    """ValueError unless all tensors have one shape with the axes of ``form``."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    axes = form.count(",") + 1
    if len(set(shapes.values())) != 1 or any(len(shape) != axes for shape in shapes.values()):
        raise ValueError(f"Expected tensors of one shape {form}, got {shapes}.")
    if any(shape[0] < least or 0 in shape for shape in shapes.values()):
        raise ValueError(f"Expected tensors {form} of at least {least} row(s), got {shapes}.")


def _positive(**numbers: Tensor | float) -> None:
    """ValueError for a number that is not positive and finite.

    A learned tensor is not checked: its method keeps it positive.
    """
    for name, value in numbers.items():
        if not isinstance(value, Tensor) and not 0 < value < math.inf:
            raise ValueError(f"{name} is {value}; it must be positive and finite.")


def _non_negative(concentration: Tensor) -> Tensor:
    """The concentration, with NaN where it is negative; on a CPU that is a ValueError."""
    negative = concentration < 0
    if concentration.device.type == "cpu" and not torch.compiler.is_compiling() and negative.any():
        raise ValueError(
            f"A concentration is {concentration[negative][0].item():g}; it must be at least 0: map "
            "the network's output to a positive number."
        )
    return torch.where(negative, math.nan, concentration)


# ------------------------------------------------------------------------- SimSiam and VI-SimSiam
def simsiam_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean negative cosine similarity, the target a constant (SimSiam, Eq. 1 and 3).

    ``-mean_b p_b . z_b / (|p_b| |z_b|)``

    prediction, target: [B, D], of any length. Returns a scalar in [-1, 1]. ValueError if the
    shapes differ.

    Example:
        >>> simsiam_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 0.0]]))
        tensor(-1.)
    """
    _same_shape(prediction=prediction, target=target)
    return -F.cosine_similarity(_scaled(prediction), _scaled(target.detach())).mean()


def vi_simsiam_loss(direction: Tensor, concentration: Tensor, target: Tensor) -> Tensor:
    """Mean negative log-density of the target under the predicted Power Spherical, in nats.

    ``-mean_b [ log C(κ_b) + κ_b log(1 + μ_b . z_b) ]`` with μ = direction / |direction| and
    z = target / |target|, the target a constant (VI-SimSiam 2023, Eq. 33; 2022, Eq. 12, whose
    second sign is misprinted).

    direction, target: [B, D]; concentration κ: [B], at least 0; above 4e6 the loss is finite, but
    right to a few κ 1e-16 nats only. Returns a scalar. ValueError for other shapes, [B, 1]
    included, and for a negative κ; on a GPU and in a compiled step, where asking would wait for
    the device, a negative κ makes the loss NaN.

    Example:
        >>> mu, z = torch.randn(2, 8, 128)
        >>> loss = vi_simsiam_loss(mu, torch.full((8,), 50.0), z)
    """
    _same_shape(direction=direction, target=target)
    if concentration.shape != direction.shape[:1]:
        raise ValueError(
            f"The concentration must have shape [B] = {list(direction.shape[:1])}, got "
            f"{list(concentration.shape)}; a trailing dimension of one would broadcast to [B, B]: "
            "squeeze it."
        )
    concentration = _non_negative(concentration)
    with torch.autocast(direction.device.type, enabled=False):
        mu = _unit(direction)
        z = _unit(target.detach())
        density = PowerSpherical(mu, _precise(concentration), validate_args=False)
        return -density.log_prob(z).mean()


# ----------------------------------------------------------------------------- contrastive methods
def info_nce_loss(
    first: Tensor,
    second: Tensor,
    temperature: float = 0.5,
    same_view_negatives: bool = True,
    rows: slice = slice(None),
    similarity: str = "cosine",
) -> Tensor:
    """SimCLR's NT-Xent (Chen et al. 2020, Eq. 1), mean over the 2 B anchors, in nats.

    ``-log exp(z_i . z_j / τ) / sum_{k != i} exp(z_i . z_k / τ)`` for the two views i, j of one
    image, z normalised. k runs over the views of both kinds, or, without
    ``same_view_negatives``, over the other kind only: the cross-view InfoNCE that VI-SimSiam
    2023 (Claim 4.5) means.

    first, second: [B, D]. rows: the images whose views are anchors (those of this process; the
    others are negatives only). similarity "dot" leaves z as it is: the unbounded similarity that
    SimVAE (A.5) compares with the cosine.

    Example:
        >>> z = torch.eye(4)
        >>> info_nce_loss(z, z, temperature=0.5)
        tensor(0.5944)
    """
    _same_shape(first=first, second=second)
    _positive(temperature=temperature)
    if similarity not in ("cosine", "dot"):
        raise ValueError(f"Unknown similarity {similarity!r}; choose 'cosine' or 'dot'.")
    with torch.autocast(first.device.type, enabled=False):
        prepared = _unit if similarity == "cosine" else _precise
        a = prepared(first)
        b = prepared(second)
        anchors = torch.arange(len(a), device=a.device)[rows]
        terms = []
        for own, other in ((a, b), (b, a)):
            logits = own[anchors] @ other.T / temperature  # [B', B]
            if same_view_negatives:
                same = own[anchors] @ own.T / temperature
                same = same.scatter(1, anchors[:, None], float("-inf"))  # not with itself
                logits = torch.cat([logits, same], 1)  # [B', 2 B]
            terms.append(F.cross_entropy(logits, anchors))
        return (terms[0] + terms[1]) / 2


def moco_loss(query: Tensor, key: Tensor, queue: Tensor, temperature: float = 0.2) -> Tensor:
    """A query against its key and a queue (MoCo, He et al. 2020, Eq. 1; τ of MoCo v2).

    ``-log exp(q . k / τ) / (exp(q . k / τ) + sum_n exp(q . n / τ))``, keys and queue constants.

    query, key: [B, D]; queue: [K, D], normalised.

    Example:
        >>> z = torch.eye(4)
        >>> moco_loss(z[:1], z[:1], queue=z[1:])
        tensor(0.0200)
    """
    _same_shape(query=query, key=key)
    _positive(temperature=temperature)
    with torch.autocast(query.device.type, enabled=False):
        q = _unit(query)
        k = _unit(key.detach())
        positive = (q * k).sum(1, keepdim=True)  # [B, 1]
        negative = q @ queue.detach().to(q).T  # [B, K]
        logits = torch.cat([positive, negative], 1) / temperature
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))


def moco_v3_loss(
    query: Tensor, key: Tensor, temperature: float = 0.2, rows: slice = slice(None)
) -> Tensor:
    """MoCo v3's loss (Chen et al. 2021, Algorithm 1), mean over the queries, keys constants.

    ``-2 τ log exp(q_i . k_i / τ) / sum_j exp(q_i . k_j / τ)``

    query: [B', D], the ``rows`` of a batch whose keys are key [B, D]; both are normalised here.

    Example:
        >>> z = torch.eye(4)
        >>> moco_v3_loss(z, z)
        tensor(0.0080)
    """
    _positive(temperature=temperature)
    with torch.autocast(query.device.type, enabled=False):
        q = _unit(query)
        k = _unit(key.detach())
        positive = torch.arange(len(k), device=k.device)[rows]
        _same_shape(query=q, key=k[positive])
        return 2 * temperature * F.cross_entropy(q @ k.T / temperature, positive)


def barlow_twins_loss(first: Tensor, second: Tensor, redundancy_weight: float = 0.0051) -> Tensor:
    """``sum_i (1 - C_ii)² + λ sum_{i != j} C_ij²`` (Zbontar et al. 2021, Eq. 1 and 2).

    C is the cross-correlation of the two views over the batch. first, second: [B, D]; each
    coordinate is centred and divided by its standard deviation over the batch (biased; 1e-5,
    batch norm's constant, is added to every variance).

    Example:
        >>> first, second = torch.randn(2, 64, 16)
        >>> barlow_twins_loss(first, second).shape
        torch.Size([])
    """
    _same_shape(first=first, second=second)
    with torch.autocast(first.device.type, enabled=False):
        a = F.batch_norm(_precise(first), None, None, training=True)
        b = F.batch_norm(_precise(second), None, None, training=True)
        correlation = a.T @ b / len(first)  # [D, D]
        diagonal = torch.diagonal(correlation)
        off_diagonal = correlation.square().sum() - diagonal.square().sum()
        return (1 - diagonal).square().sum() + redundancy_weight * off_diagonal


def vicreg_loss(
    first: Tensor,
    second: Tensor,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
) -> dict[str, Tensor]:
    """``λ s(Z, Z') + μ [v(Z) + v(Z')] + ν [c(Z) + c(Z')]`` (Bardes et al. 2022, Eq. 1 to 6).

    s: mean squared distance over batch and coordinates; v: mean over coordinates of
    max(0, 1 - sqrt(Var + 1e-4)); c: sum of the squared off-diagonal covariances over D.

    first, second: [B, D], B > 1. Returns the terms, and under "loss" their weighted sum.

    Deviation: s is divided by D (the paper's Eq. 5 is not) and the two v are averaged (Eq. 6 adds
    them), as in the authors' code, for which the published weights were chosen.

    Example:
        >>> z = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
        >>> vicreg_loss(z, z)["loss"]
        tensor(0.)
    """
    _same_shape(least=2, first=first, second=second)
    with torch.autocast(first.device.type, enabled=False):
        a = _precise(first)
        b = _precise(second)
        terms = {
            "invariance": F.mse_loss(a, b),
            "variance": (_hinged_deviation(a) + _hinged_deviation(b)) / 2,
            "covariance": _squared_covariances(a) + _squared_covariances(b),
        }
        loss = (
            invariance * terms["invariance"]
            + variance * terms["variance"]
            + covariance * terms["covariance"]
        )
        return {"loss": loss} | terms


def _hinged_deviation(z: Tensor) -> Tensor:
    """VICReg's v(Z): how far the deviations of the coordinates are below one."""
    return F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean()


def _squared_covariances(z: Tensor) -> Tensor:
    """VICReg's c(Z): the squared off-diagonal covariances, summed, over D."""
    centred = z - z.mean(0)
    matrix = centred.T @ centred / (len(z) - 1)  # [D, D]
    off_diagonal = matrix.square().sum() - torch.diagonal(matrix).square().sum()
    return off_diagonal / z.shape[1]


# ---------------------------------------------------------------------------- distilling methods
def byol_loss(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean squared distance of the normalised vectors, ``2 - 2 cos(p, z)``, [B, D] each.

    The target is a constant (BYOL, Grill et al. 2020, Eq. 2).

    Example:
        >>> p, z = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
        >>> byol_loss(p, z)
        tensor(2.)
    """
    return 2 + 2 * simsiam_loss(prediction, target)


def dino_loss(
    student: Tensor,
    teacher: Tensor,
    centre: Tensor,
    student_temperature: float = 0.1,
    teacher_temperature: float | Tensor = 0.04,
) -> Tensor:
    """``-mean_b sum_k P_t(k) log P_s(k)`` (Caron et al. 2021, Eq. 2 and §3.1).

    P_t = softmax((teacher - c) / τ_t), a constant, and P_s = softmax(student / τ_s).

    student, teacher: [B, K] outputs of the heads for different views; centre: [K]. A teacher's
    temperature that is a tensor (so that a compiled step may change it) is not checked.

    Example:
        >>> even = torch.zeros(1, 4)
        >>> dino_loss(even, even, torch.zeros(4))  # log 4
        tensor(1.3863)
    """
    _same_shape(student=student, teacher=teacher)
    _positive(student_temperature=student_temperature, teacher_temperature=teacher_temperature)
    with torch.autocast(student.device.type, enabled=False):
        return _distillation(
            student, teacher, centre, student_temperature, teacher_temperature
        ).mean()


def _distillation(
    student: Tensor,
    teacher: Tensor,
    centre: Tensor,
    student_temperature: float,
    teacher_temperature: float | Tensor,
) -> Tensor:
    """``-sum_k P_t(k) log P_s(k)`` over the last axis: [..., K] -> [...]."""
    target = torch.softmax((_precise(teacher.detach()) - centre) / teacher_temperature, dim=-1)
    return -(target * torch.log_softmax(_precise(student) / student_temperature, dim=-1)).sum(-1)


def ibot_patch_loss(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor,
    centre: Tensor,
    student_temperature: float = 0.1,
    teacher_temperature: float | Tensor = 0.04,
) -> Tensor:
    """DINO's cross-entropy at the hidden patches (iBOT, Zhou et al. 2022, Eq. 3).

    The mean over the hidden patches of an image, then over the images. student, teacher:
    [B, N, K] outputs of the heads for the patches of one view; mask: [B, N], true at patches that
    are hidden from the student.

    Deviation: the mean over patches is the authors' code's, where Eq. 3 has a sum. As in that
    code, an image without hidden patches counts as zero.

    Example:
        >>> even, mask = torch.zeros(1, 3, 4), torch.tensor([[True, False, False]])
        >>> ibot_patch_loss(even, even, mask, torch.zeros(4))  # log 4
        tensor(1.3863)
    """
    if student.shape != teacher.shape or student.ndim != 3 or mask.shape != student.shape[:2]:
        shapes = [list(tensor.shape) for tensor in (student, teacher, mask)]
        raise ValueError(f"Expected student and teacher [B, N, K] and a mask [B, N], got {shapes}.")
    _positive(student_temperature=student_temperature, teacher_temperature=teacher_temperature)
    with torch.autocast(student.device.type, enabled=False):
        cross_entropy = _distillation(
            student, teacher, centre, student_temperature, teacher_temperature
        )  # [B, N]
        hidden = mask.sum(1).clamp(min=1)  # [B]
        return ((cross_entropy * mask).sum(1) / hidden).mean()


# ------------------------------------------------------------------------- ProSMin's scoring rules
def critical_trade_off(beta: float) -> float:
    """λ at and below which the λ-weighted score of a Gaussian has no minimum in σ.

    ``1 / (1 + 2^(1 - β/2))``: as σ grows, ``2 λ E|z - t|^β - (1 - λ) E|z - z'|^β`` goes as
    ``[2 λ - (1 - λ) 2^(β/2)] σ^β``, which falls without bound below it. For the energy and the
    per-coordinate score.

    Example:
        >>> round(critical_trade_off(1.0), 4)
        0.4142
    """
    return 1 / (1 + 2 ** (1 - beta / 2))


def best_dispersion(trade_off: float, beta: float) -> float:
    """σ/τ at which the λ-weighted score is smallest; infinite if there is none.

    For a Gaussian of the right mean and targets of deviation τ. ``E|z - t|^β`` goes as
    ``(σ² + τ²)^(β/2)`` and ``E|z - z'|^β`` as ``(2 σ²)^(β/2)`` with one factor, so that the
    derivative in σ² vanishes at ``(σ/τ)² = q/(1 - q)`` with
    ``q = [(1 - λ)/λ · 2^(β/2 - 1)]^(2/(2 - β))``: 1 at λ = ½, the weight of a proper score.
    ValueError unless 0 < λ <= 1 and 0 < β < 2.

    Example:
        >>> round(best_dispersion(0.5, beta=1.0), 6)
        1.0
    """
    if not (0 < trade_off <= 1 and 0 < beta < 2):
        raise ValueError(f"trade_off {trade_off} must be in (0, 1] and beta {beta} in (0, 2).")
    if trade_off <= critical_trade_off(beta):
        return math.inf
    ratio = (1 - trade_off) / trade_off * 2 ** (beta / 2 - 1)
    q = ratio ** (2 / (2 - beta))  # below 1 where λ is above its critical value
    return (q / (1 - q)) ** 0.5 if q < 1 else math.inf


def scoring_rule(
    samples: Tensor,
    target: Tensor,
    trade_off: float = 0.5,
    beta: float = 1.0,
    kernel: str = "energy",
    bandwidth: float | None = None,
) -> Tensor:
    """The λ-weighted score of each predicted distribution, from R of its samples.

    ``2 λ / R sum_j m(z_j - t) - (1 - λ) / (R (R - 1)) sum_{j != k} m(z_j - z_k)`` with
    λ = trade_off (ProSMin, Eq. 2, 4 to 6; §10.5.1, §10.5.2) and, by kernel:

    - "energy": m(d) = |d|_2^β;
    - "crps": m(d) = mean over coordinates of |d_i|^β, which scores the marginals only;
    - "gaussian": m(d) = -exp(-|d|_2² / (2 γ²)), γ = bandwidth.

    At λ = ½ this is E|z - t|^β - ½ E|z - z'|^β, half the energy score of Eq. 4. That is a proper
    score, and its estimate is unbiased. With λ = 1 the second term is gone, and one sample (the
    mean) will do.

    samples: [R, B, D], drawn so that gradients pass; target: [B, D], a constant. Returns [B]; the
    batch mean is ProSMin's objective. ValueError for other shapes, λ outside (0, 1], β outside
    (0, 2], an unknown kernel, no bandwidth.

    Deviation: where two points meet, |d|^β has no gradient for β <= 1; there it is zero here.
    β = 2 is taken too: it scores the mean only.

    Example:
        >>> samples = torch.tensor([[[0.0]], [[4.0]]])  # [R, B, D] = [2, 1, 1]
        >>> scoring_rule(samples, torch.tensor([[4.0]]))  # 2 - 4/2
        tensor([0.])
    """
    _check_score(samples, target, trade_off, beta, kernel, bandwidth)

    def m(difference: Tensor) -> Tensor:
        """[..., D] -> [...]"""
        if kernel == "crps":
            return difference.square().clamp(min=TINY).pow(beta / 2).mean(-1)
        squared = difference.square().sum(-1)
        if kernel == "gaussian":
            return -torch.exp(squared / (-2 * bandwidth**2))
        return squared.clamp(min=TINY).pow(beta / 2)

    with torch.autocast(samples.device.type, enabled=False):
        z = _precise(samples)
        t = _precise(target.detach())
        score = 2 * trade_off * m(z - t).mean(0)
        if trade_off == 1:
            return score
        # Every pair counts twice in the sum over j != k: [R (R - 1) / 2, B, D].
        first, second = torch.triu_indices(len(z), len(z), 1, device=z.device)
        return score - (1 - trade_off) * m(z[first] - z[second]).mean(0)


def _check_score(
    samples: Tensor,
    target: Tensor,
    trade_off: float,
    beta: float,
    kernel: str,
    bandwidth: float | None,
) -> None:
    if samples.ndim != 3 or samples.shape[1:] != target.shape or 0 in samples.shape:
        raise ValueError(
            "Expected samples [R, B, D] and a target [B, D], none of them empty, "
            f"got {list(samples.shape)} and {list(target.shape)}."
        )
    if not 0 < trade_off <= 1 or not 0 < beta <= 2:
        raise ValueError(
            f"trade_off is {trade_off} and beta {beta}; they must be in (0, 1] and in (0, 2]."
        )
    if len(samples) < 2 and trade_off < 1:
        raise ValueError(
            "One sample has no pair to compare: draw at least two, or set trade_off to 1."
        )
    if kernel not in ("energy", "crps", "gaussian"):
        raise ValueError(f"Unknown kernel {kernel!r}; choose 'energy', 'crps' or 'gaussian'.")
    if kernel == "gaussian" and not (bandwidth and bandwidth > 0):
        raise ValueError(f"The Gaussian kernel needs a positive bandwidth, got {bandwidth}.")


# ------------------------------------------------------------------------ variational autoencoders
def log_shared_mean(
    z: Tensor,
    prior_variance: float = 0.15,
    mean_prior: str = "uniform",
    mean_prior_variance: float = 1.0,
) -> Tensor:
    """log s(z_1 .. z_J), [B], in nats (SimVAE, Eq. 6 and A.4).

    The prior of latents z [J, B, L] of views that share a mean ψ, integrated out. With
    z_j ~ N(ψ, σ² I), σ² = prior_variance and z̄ the mean of the z_j,
    ``log s = - L (J - 1)/2 log(2 π σ²) - L/2 log J - sum_j |z_j - z̄|² / (2 σ²) + log r(z̄)``,
    where mean_prior says what r is:

    - "uniform": ψ has the flat density 1 (the paper's choice; improper); r = 1.
    - "normal": ψ ~ N(0, γ² I), γ² = mean_prior_variance; r = N(0, (γ² + σ²/J) I).
    - "public_code": r = N(0, I), as in the authors' code: a prior on z̄, which is the marginal of
      a ψ ~ N(0, γ² I) only if γ² + σ²/J = 1.

    ValueError for other shapes, an unknown mean_prior, and variances that are not positive.

    Example:
        >>> z = torch.zeros(2, 1, 3)  # [J, B, L]
        >>> log_shared_mean(z)
        tensor([-0.9509])
    """
    if z.ndim != 3:
        raise ValueError(f"Expected latents [J, B, L], got {list(z.shape)}.")
    _positive(prior_variance=prior_variance, mean_prior_variance=mean_prior_variance)
    views, _, latents = z.shape
    centre = z.mean(0)  # [B, L]
    scatter = (z - centre).square().sum((0, 2)) / (2 * prior_variance)  # [B]
    log_variance = LOG_2PI + math.log(prior_variance)
    log_s = -latents * ((views - 1) / 2 * log_variance + math.log(views) / 2) - scatter
    if mean_prior == "uniform":
        return log_s
    if mean_prior == "normal":
        width = mean_prior_variance + prior_variance / views
    elif mean_prior == "public_code":
        width = 1.0
    else:
        raise ValueError(
            f"Unknown mean_prior {mean_prior!r}; choose 'uniform', 'normal' or 'public_code'."
        )
    squared_length = centre.square().sum(1) / width
    return log_s - (squared_length + latents * (LOG_2PI + math.log(width))) / 2


def simvae_loss(
    reconstruction: Tensor,
    images: Tensor,
    mean: Tensor,
    log_variance: Tensor,
    sample: Tensor,
    likelihood: str = "gaussian",
    variance: float = 0.02,
    prior_variance: float = 0.15,
    mean_prior: str = "uniform",
    mean_prior_variance: float = 1.0,
    entropy_weight: float = 1.0,
) -> dict[str, Tensor]:
    """``-ELBO_SSL`` of J views of each image, in nats with all constants, mean over the images.

    ``- sum_j [ log p(x_j | z_j) + H(q(z_j | x_j)) ] - log s(z_1 .. z_J)`` with one sample z_j of
    q(z_j | x_j) = N(mean_j, diag exp(log_variance_j)), and s of log_shared_mean (SimVAE, §3
    "ELBO_SSL", A.2). Under "uniform" s is improper, and the bound one up to a constant. With
    J = 1 this is a VAE with prior N(0, (γ² + σ²) I) under "normal", N(0, I) under "public_code",
    and none under "uniform".

    reconstruction, images: [J, B, ...]; reconstruction holds the mean of a Gaussian of
    ``variance``, or for likelihood "bernoulli" the logits. mean, log_variance, sample: [J, B, L].
    Returns scalars "loss" and its terms "reconstruction", "entropy", "prior". ValueError for
    other shapes, unknown names, variances that are not positive, and a Bernoulli likelihood of
    images outside 0..1.

    Deviation: Algorithm 1 adds the posterior's log-determinant to a loss that is minimised, and
    divides the squared error by the number of pixels and not by its variance; here are the signs
    and constants of ELBO_SSL. The entropy has weight 1, in the authors' code 2 π.

    Example:
        >>> x, z = torch.zeros(2, 1, 4), torch.zeros(2, 1, 3)  # two views of one image
        >>> sorted(simvae_loss(x, x, mean=z, log_variance=z, sample=z))
        ['entropy', 'loss', 'prior', 'reconstruction']
    """
    _same_shape("[J, B, L]", mean=mean, log_variance=log_variance, sample=sample)
    if reconstruction.shape != images.shape or images.shape[:2] != mean.shape[:2]:
        raise ValueError(
            f"reconstruction {list(reconstruction.shape)} and images {list(images.shape)} must "
            f"have one shape [J, B, ...], and J, B those of the latents {list(mean.shape)}."
        )
    with torch.autocast(mean.device.type, enabled=False):
        nll = _pixel_nll(reconstruction, images, likelihood, variance)  # [J, B]
        entropy = (1 + LOG_2PI + _precise(log_variance)).sum(2) / 2  # [J, B]
        log_s = log_shared_mean(_precise(sample), prior_variance, mean_prior, mean_prior_variance)
        return _summed(
            {
                "reconstruction": nll.sum(0).mean(),
                "entropy": -entropy_weight * entropy.sum(0).mean(),
                "prior": -log_s.mean(),
            }
        )


def vae_loss(
    reconstruction: Tensor,
    images: Tensor,
    mean: Tensor,
    log_variance: Tensor,
    likelihood: str = "gaussian",
    variance: float = 0.02,
    beta: float = 1.0,
) -> dict[str, Tensor]:
    """``- log p(x | z) + β KL( q(z | x) || N(0, I) )``, in nats, mean over the images.

    Kingma & Welling 2014, Eq. 10; β: Higgins et al. 2017, Eq. 4. reconstruction, images:
    [B, ...], as in simvae_loss; mean, log_variance: [B, L]. Returns "loss" and its terms
    "reconstruction", "kl".

    Example:
        >>> x, z = torch.zeros(1, 4), torch.zeros(1, 3)
        >>> vae_loss(x, x, mean=z, log_variance=z)["kl"]
        tensor(0.)
    """
    _same_shape(mean=mean, log_variance=log_variance)
    if reconstruction.shape != images.shape or len(images) != len(mean):
        raise ValueError(
            f"reconstruction {list(reconstruction.shape)} and images {list(images.shape)} must be "
            f"alike and as many as the {len(mean)} means."
        )
    with torch.autocast(mean.device.type, enabled=False):
        kl = kl_to_prior(mean, log_variance).mean()
        nll = _pixel_nll(reconstruction, images, likelihood, variance, axes=1).mean()
        return _summed({"reconstruction": nll, "kl": beta * kl})


def gaussian_kl(
    mean: Tensor, log_variance: Tensor, other_mean: Tensor, other_log_variance: Tensor
) -> Tensor:
    """KL between diagonal Gaussians [B, L], in nats: [B].

    ``KL( N(mean, exp log_variance) || N(other_mean, exp other_log_variance) )``

    Example:
        >>> zero = torch.zeros(1, 2)
        >>> gaussian_kl(zero + 1, zero, zero, zero)
        tensor([1.])
    """
    _same_shape(
        mean=mean,
        log_variance=log_variance,
        other_mean=other_mean,
        other_log_variance=other_log_variance,
    )
    log_ratio = _precise(log_variance) - _precise(other_log_variance)
    # The root of the precision, as the precision itself overflows float32 at a log-variance of -89.
    deviations = (_precise(mean) - _precise(other_mean)) * (-_precise(other_log_variance) / 2).exp()
    return (torch.expm1(log_ratio) - log_ratio + deviations.square()).sum(1) / 2


def kl_to_prior(mean: Tensor, log_variance: Tensor, prior_variance: float = 1.0) -> Tensor:
    """``KL( N(mean, exp log_variance) || N(0, prior_variance I) )``, [B, L] -> [B], in nats.

    Example:
        >>> kl_to_prior(torch.ones(1, 2), torch.zeros(1, 2))
        tensor([1.])
    """
    prior_log_variance = torch.full_like(mean, math.log(prior_variance))
    return gaussian_kl(mean, log_variance, torch.zeros_like(mean), prior_log_variance)


def _pixel_nll(
    reconstruction: Tensor, images: Tensor, likelihood: str, variance: float, axes: int = 2
) -> Tensor:
    """``-log p(x | z)`` summed over all but the first ``axes`` axes."""
    x = _precise(images)
    r = _precise(reconstruction)
    if likelihood == "bernoulli":
        inside = (x >= -ROUNDING) & (x <= 1 + ROUNDING)
        if not inside.all():  # NaN included
            raise ValueError(
                f"Pixels lie in [{x.min():g}, {x.max():g}]; "
                "a Bernoulli likelihood is of images in 0..1."
            )
        error = F.binary_cross_entropy_with_logits(r, x, reduction="none")
        return error.flatten(axes).sum(axes)
    if likelihood != "gaussian":
        raise ValueError(f"Unknown likelihood {likelihood!r}; choose 'gaussian' or 'bernoulli'.")
    _positive(variance=variance)
    error = F.mse_loss(r, x, reduction="none").flatten(axes)  # one pass over the pixels
    pixels = error.shape[axes]
    return (error.sum(axes) / variance + pixels * (LOG_2PI + math.log(variance))) / 2


def _summed(terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"loss": torch.stack(list(terms.values())).sum()} | terms


# -------------------------------------------------------------------------------------------- VJE
def vje_loss(
    target: Tensor,
    mean: Tensor,
    log_variance: Tensor,
    sample: Tensor,
    directional_freedom: float = 4.0,
    radial_freedom: float = 4.0,
    radial_scale: Tensor | float = 1.0,
    likelihood: str = "polar",
    scale_directions: bool = True,
    log_radius: bool = False,
    prior_variance: float = 1.0,
    kl_weight: Tensor | float = 1.0,
    radial_weight: float = 1.0,
) -> dict[str, Tensor]:
    """``-ELBO`` of one view's embedding given the other's, in nats, mean over the batch.

    VJE in our own formulation. The model of a target embedding s' = r' u' (r' its length, u' its
    direction) has a latent z ~ N(0, prior_variance I), and
    ``log p(s' | s) >= E_q[ log p(u' | z/|z|, v) + log p(r' | |z|) ] - KL( q(z | s) || p(z) )``
    with q(z | s) = N(mean, diag v), v = exp(log_variance), whose variances are the directional
    squared scales too, and one sample z of q. The density is of (u', r'): surface area times
    length. likelihood:

    - "polar": p(u' | .) is distributions.DirectionalStudentT with ``directional_freedom``, a
      sub-density, so that the bound holds. p(r' | .) is a Student-t in r' of ``radial_scale`` and
      ``radial_freedom`` (what it gives to r' < 0 is lost: a sub-density again); with log_radius
      in log r'.
    - "product": one Student-t a coordinate of u' - z/|z| in R^D instead: no bound.
    - "ambient": the elliptical one, normalised in R^D, not on the sphere: no bound.
    - "euclidean": one Student-t in R^D on s' itself, with squared scales v: nothing keeps length
      and direction apart.

    With scale_directions the squared scales of directions are v / D, that is, v is the squared
    scale on a sphere of radius sqrt(D), where a coordinate is of order 1 as under the prior.

    target, mean, log_variance, sample: [B, D]. Returns scalars "loss" and its terms
    "directional", "radial" and "kl", the last two weighted. ValueError for other shapes, an
    unknown likelihood, a scale or variance that is not positive and finite, or degrees of freedom
    that are not positive and at most 1e9.

    Source: Oji and Fieguth, Joint Embedding Variational Bayes (TMLR 2026), of which only the
    abstract is available to us. Deviation: unknown; every argument is a choice that the abstract
    leaves open, and kl_weight and radial_weight other than 1 leave the bound.

    Example:
        >>> s, m = torch.randn(2, 8, 128)
        >>> sorted(vje_loss(s, m, torch.zeros(8, 128), sample=m))
        ['directional', 'kl', 'loss', 'radial']
    """
    _same_shape(target=target, mean=mean, log_variance=log_variance, sample=sample)
    _positive(prior_variance=prior_variance)
    with torch.autocast(target.device.type, enabled=False):
        log_v = _precise(log_variance)
        kl = kl_to_prior(_precise(mean), log_v, prior_variance).mean()
        log_directional, log_radial = vje_likelihood(
            _precise(target),
            _precise(sample),
            log_v,
            directional_freedom=directional_freedom,
            radial_freedom=radial_freedom,
            radial_scale=radial_scale,
            likelihood=likelihood,
            scale_directions=scale_directions,
            log_radius=log_radius,
        )
        return _summed(
            {
                "directional": -log_directional.mean(),
                "radial": -radial_weight * log_radial.mean(),
                "kl": kl_weight * kl,
            }
        )


def vje_likelihood(
    target: Tensor,
    latent: Tensor,
    log_variance: Tensor,
    directional_freedom: float,
    radial_freedom: float,
    radial_scale: Tensor | float,
    likelihood: str = "polar",
    scale_directions: bool = True,
    log_radius: bool = False,
) -> tuple[Tensor, Tensor]:
    """log p(u' | z) and log p(r' | z) of vje_loss, [B] each, for targets and latents [B, D].

    Under "euclidean" all is in the first.

    Example:
        >>> s, z = torch.randn(2, 8, 128)
        >>> direction, length = vje_likelihood(s, z, torch.zeros(8, 128), 64.0, 64.0, 1.0)
        >>> direction.shape, length.shape
        (torch.Size([8]), torch.Size([8]))
    """
    if likelihood not in ("polar", "product", "ambient", "euclidean"):
        raise ValueError(
            f"Unknown likelihood {likelihood!r}; "
            "choose 'polar', 'product', 'ambient' or 'euclidean'."
        )
    _positive(
        directional_freedom=directional_freedom,
        radial_freedom=radial_freedom,
        radial_scale=radial_scale,
    )
    dimension = target.shape[1]
    radius = target.norm(dim=1)
    expected_radius = latent.norm(dim=1)
    if likelihood == "euclidean":
        log_distance = log_sum_of_squares(target - latent, -log_variance)
        log_determinant = log_variance.sum(1)
        log_p = student_t_log_prob(log_distance, log_determinant, dimension, directional_freedom)
        return log_p, torch.zeros_like(radius)

    log_scale = log_variance
    if scale_directions:
        log_scale = log_scale - math.log(dimension)
    direction = _unit(target)
    expected_direction = _unit(latent)
    if likelihood == "product":
        residual = direction - expected_direction
        log_distance = log_sum_of_squares(residual[..., None], -log_scale[..., None])  # [B, D]
        log_directional = student_t_log_prob(log_distance, log_scale, 1, directional_freedom).sum(1)
    else:
        log_directional = directional_student_t_log_prob(
            direction,
            expected_direction,
            log_scale,
            directional_freedom,
            intrinsic=likelihood == "polar",
        )

    value = radius.log() if log_radius else radius
    centre = expected_radius.log() if log_radius else expected_radius
    scale = torch.as_tensor(radial_scale, dtype=value.dtype, device=value.device)
    log_radial_scale = 2 * scale.log()
    difference = (value - centre)[:, None]
    log_distance = log_sum_of_squares(difference, -log_radial_scale)
    log_radial = student_t_log_prob(log_distance, log_radial_scale, 1, radial_freedom)
    if log_radius:
        log_radial = log_radial - value  # of r', not of log r'
    return log_directional, log_radial
