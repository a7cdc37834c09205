r"""Distributions on the unit sphere S^{D-1} in R^D, D >= 2.

HypersphericalUniform, PowerSpherical, VonMisesFisher and DirectionalStudentT.

Power Spherical and von Mises-Fisher tilt the uniform density by a function g of the cosine
t = loc·x:

    p(x) = exp(κ g(t)) / (M(κ) |S^{D-1}|),     M(κ) = E_uniform[exp(κ g(t))],
    H(p) = H(U) + log M(κ) - κ E_p[g(t)],      KL(p || U) = κ E_p[g(t)] - log M(κ),
    log M(0) = 0,                              d log M / dκ = E_p[g(t)].

Power Spherical has g(t) = log(1 + t), von Mises-Fisher g(t) = t; κ = 0 is the uniform in both,
without a special case. All densities are with respect to surface area and all logarithms are
natural (nats).

Precision: of these two, terms of one number per element (cosine, log M, entropy) are computed in
float64 and cast back. With float64 arguments, log-densities, entropies, means and divergences from
the uniform are right to 1e-8 relative for D from 2 to 4096 and κ from 0 to MOST_CONCENTRATION. A
larger κ, where lgamma cancels, is refused. Half-precision directions are cast up to float32 first,
and everything is elementwise operations and sums, which autocast leaves in the precision of their
arguments; DirectionalStudentT is computed in that precision throughout.

Vectors may be 1e-4 off the sphere: they are divided by their norms, as κ multiplies what is left.
With validate_args=False nothing is checked, and vectors are taken as they are.
"""

import math

import torch
import torch.nn.functional as F
from numpy.polynomial import Polynomial
from numpy.polynomial.legendre import leggauss
from numpy.polynomial.polynomial import polyval
from torch import Tensor
from torch.distributions import Dirichlet, Distribution, constraints, register_kl

MOST_CONCENTRATION = 4e6  # of Power Spherical and von Mises-Fisher
MOST_FREEDOM = 1e9  # of a Student-t: 1e6 is Gaussian enough
NEGLIGIBLE = -200.0  # logarithm of a squared distance that is zero


class _UnitSphere(constraints.Constraint):
    """Vectors of norm 1, up to 1e-4 (1e-2 in half precision)."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        return (value.float().norm(dim=-1) - 1).abs() < (
            1e-2 if value.dtype.itemsize == 2 else 1e-4
        )


_unit_sphere = _UnitSphere()


def _unit_vectors(vectors: Tensor, name: str, validate: bool) -> Tensor:
    """``vectors`` in float32 or float64, whole numbers too, divided by their norms.

    Without ``validate`` only half-precision vectors are, as rounding moves them off the sphere.
    """
    if not vectors.is_floating_point():
        vectors = vectors.float()
    if validate:
        on_sphere = _unit_sphere.check(vectors)
        if not on_sphere.all():
            norm = vectors[~on_sphere][0].norm().item()
            raise ValueError(
                f"{name} must hold unit vectors in its last dimension, but one has norm "
                f"{norm:.6g}; normalise it first, for example with "
                "torch.nn.functional.normalize(..., dim=-1)"
            )
    dtype = torch.promote_types(vectors.dtype, torch.float32)
    if validate:
        return F.normalize(vectors.double(), dim=-1).to(dtype)
    return F.normalize(vectors.to(dtype), dim=-1) if vectors.dtype != dtype else vectors


def _cosine(first: Tensor, second: Tensor, normalise: bool) -> Tensor:
    """first · second in float64, over the last axis; ``normalise`` divides by their norms."""
    if normalise:
        first = F.normalize(first.double(), dim=-1)
        second = F.normalize(second.double(), dim=-1)
    return (first * second).sum(-1, dtype=torch.float64)


class _Spherical(Distribution):
    """What all distributions on the sphere share: support and the check of a shape."""

    support = _unit_sphere

    def _check_value(self, value: Tensor) -> Tensor:
        expected = self.batch_shape + self.event_shape
        if value.shape[max(0, value.dim() - len(expected)) :] != expected:
            raise ValueError(
                f"value has shape {tuple(value.shape)}, which does not end with batch shape + "
                f"event shape {tuple(expected)}; nothing is broadcast here: reshape the value, "
                "or expand the distribution"
            )
        return _unit_vectors(value, "value", self._validate_args)


class HypersphericalUniform(_Spherical):
    """Uniform distribution on S^{D-1}: log p(x) = -H = -(log 2 + D/2 log π - log Γ(D/2)).

    Args: dim is D >= 2; dtype and device are those of samples. Batch shape [], event shape [D].
    Raises ValueError for dim < 2 and, in log_prob, for values of another shape or (unless
    validate_args=False) off the sphere.

    Example:
        >>> HypersphericalUniform(3).entropy()  # log 4 π
        tensor(2.5310)
    """

    arg_constraints: dict[str, constraints.Constraint] = {}
    has_rsample = True

    def __init__(
        self,
        dim: int,
        validate_args: bool | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ):
        if dim < 2:
            raise ValueError(f"dim is {dim}, but the sphere needs at least 2 dimensions")
        self.dim = dim
        self._zero = torch.zeros((), dtype=dtype, device=device)
        super().__init__(event_shape=torch.Size([dim]), validate_args=validate_args)

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(HypersphericalUniform, _instance)
        new.dim = self.dim
        new._zero = self._zero
        Distribution.__init__(
            new, torch.Size(batch_shape), self.event_shape, validate_args=self._validate_args
        )
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        value = self._check_value(value)
        return value.new_full(value.shape[:-1], -log_sphere_area(self.dim))

    def rsample(self, sample_shape=()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        return F.normalize(
            torch.randn(shape, dtype=self._zero.dtype, device=self._zero.device), dim=-1
        )

    def entropy(self) -> Tensor:
        return (self._zero + log_sphere_area(self.dim)).expand(self.batch_shape)

    @property
    def mean(self) -> Tensor:
        return self._zero.expand(self.batch_shape + self.event_shape)


def log_sphere_area(dim: int) -> float:
    """Logarithm of the area of S^{dim-1}, dim >= 1.

    The entropy of the uniform distribution on it, in nats.

    Example:
        >>> round(log_sphere_area(3), 4)  # log 4 π
        2.531
    """
    return math.log(2) + dim / 2 * math.log(math.pi) - math.lgamma(dim / 2)


class _TiltedUniform(_Spherical):
    """p(x) ∝ exp(κ g(loc·x)).

    A subclass gives κ g(t), log M(κ), E_p[g(t)] and E_p[t], all in float64.
    """

    arg_constraints = {"loc": _unit_sphere, "concentration": constraints.nonnegative}

    def __init__(
        self, loc: Tensor, concentration: Tensor | float, validate_args: bool | None = None
    ):
        validate = Distribution._validate_args if validate_args is None else validate_args
        if loc.dim() < 1 or loc.shape[-1] < 2:
            raise ValueError(
                f"loc has shape {tuple(loc.shape)}, but it must be [..., D] with D >= 2"
            )
        loc = _unit_vectors(loc, "loc", validate)
        if isinstance(concentration, int | float):
            concentration = loc.new_full(loc.shape[:-1], concentration)
        if concentration.shape != loc.shape[:-1]:
            raise ValueError(
                f"concentration has shape {tuple(concentration.shape)}, but loc of shape "
                f"{tuple(loc.shape)} needs {tuple(loc.shape[:-1])}, one number per direction; "
                "squeeze or expand it (nothing is broadcast here)"
            )
        if validate:
            valid = (concentration >= 0) & (concentration <= MOST_CONCENTRATION)
            if not valid.all():
                raise ValueError(
                    f"concentration must lie in 0 … {MOST_CONCENTRATION:g}, but one is "
                    f"{concentration[~valid][0].item()}; map the network's output to a positive "
                    "number, or look for NaN upstream"
                )
        dtype = torch.promote_types(loc.dtype, concentration.dtype)
        self.loc = loc.to(dtype)
        self.concentration = concentration.to(dtype)
        # Checked above, with clearer errors.
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)
        self._validate_args = validate

    def expand(self, batch_shape, _instance=None):
        new = self._get_checked_instance(type(self), _instance)
        new.loc = self.loc.expand(torch.Size(batch_shape) + self.event_shape)
        new.concentration = self.concentration.expand(batch_shape)
        Distribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def dim(self) -> int:
        return self.event_shape[0]

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of unit vectors [sample shape + batch shape, D]."""
        value = self._check_value(value)
        cosine = _cosine(self.loc, value, normalise=self._validate_args)
        log_prob = self._log_tilt(cosine) - self._log_m() - log_sphere_area(self.dim)
        return log_prob.to(torch.promote_types(self.loc.dtype, value.dtype))

    def entropy(self) -> Tensor:
        """Differential entropy [batch shape]."""
        return (log_sphere_area(self.dim) - self._kl_from_uniform()).to(self.loc.dtype)

    @property
    def mean(self) -> Tensor:
        """E[x] = loc · E[t], [batch shape, D]; its norm is the mean resultant length."""
        return self.loc * self._mean_cosine().to(self.loc.dtype)[..., None]

    def _kl_from_uniform(self) -> Tensor:
        return self.concentration.double() * self._mean_g() - self._log_m()


class PowerSpherical(_TiltedUniform):
    r"""Power Spherical distribution, p(x) ∝ (1 + loc·x)^κ on S^{D-1}.

    With β = (D-1)/2 and α = β + κ:

        (1 + loc·x)/2 ~ Beta(α, β),               M(κ) = 2^κ Γ(α) Γ(2β) / (Γ(α+β) Γ(β)),
        E[log(1+t)] = log 2 + ψ(α) - ψ(α+β),      E[x] = loc κ/(D-1+κ).

    Args:
        loc: mean directions [..., D], D >= 2, unit vectors (checked to 1e-4 and normalised, unless
            validate_args=False; half precision is checked to 1e-2 and cast to float32).
        concentration: κ in 0 … MOST_CONCENTRATION, of exactly the shape loc[..., 0], or a Python
            number shared by all; κ = 0 is the uniform.

    log_prob is -inf at -loc when κ > 0; its gradient there is that of the normaliser alone
    (finite), since the true one does not exist. Samples are differentiable in loc and concentration
    (implicit gradient of the Beta marginal). Raises ValueError for any other shape of concentration
    or value, for vectors off the sphere and for κ that is negative or not finite.

    Source: De Cao and Aziz, The Power Spherical distribution (2020), arXiv:2006.04437; the p(z | x)
    of VI-SimSiam, Nakamura et al., Representation Uncertainty in Self-Supervised Learning as
    Variational Inference (ICCV 2023), Eq. 32.
    Deviation: their sampler reflects e1 onto loc, which is 0/0 at loc = e1; here e1 goes to ±loc,
    whichever is further from it.

    Example:
        >>> mu = F.normalize(torch.randn(8, 128), dim=-1)
        >>> log_p = PowerSpherical(mu, 50.0).log_prob(mu)  # [8]
    """

    has_rsample = True

    def rsample(self, sample_shape=()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))  # [..., D]
        alpha, beta = self._alpha_beta()
        # Dirichlet and not Beta: it returns B and 1 - B, so that sqrt(1 - t²) keeps its digits when
        # κ is large.
        marginal = Dirichlet(torch.stack([alpha, beta], -1), validate_args=False)
        near, far = marginal.rsample(torch.Size(sample_shape)).unbind(-1)
        cosine = near - far
        sine = 2 * (near * far).sqrt()
        noise = torch.randn(
            shape[:-1] + (self.dim - 1,), dtype=self.loc.dtype, device=self.loc.device
        )
        tangent = F.normalize(noise, dim=-1)  # [..., D - 1]
        along = cosine[..., None].to(tangent)
        across = sine[..., None].to(tangent) * tangent
        around_e1 = torch.cat([along, across], -1)  # [..., D]
        # The reflection along u sends e1 to -side · loc.
        side = torch.where(self.loc[..., :1] < 0, -1.0, 1.0).to(self.loc)
        u = torch.cat([self.loc[..., :1] + side, self.loc[..., 1:]], -1)
        projection = 2 * u * (u * around_e1).sum(-1, keepdim=True)
        reflected = around_e1 - projection / (u * u).sum(-1, keepdim=True)
        return -side * reflected

    @property
    def variance(self) -> Tensor:
        """Diagonal of Var[t] ((1-ρ) loc locᵀ + ρ I), ρ = (α+β)/(2β): [batch shape, D]."""
        alpha, beta = self._alpha_beta()
        total = alpha + beta
        variance = (4 * alpha * beta / (total**2 * (total + 1)))[..., None]
        rho = (total / (2 * beta))[..., None]
        squares = self.loc.double() ** 2
        return (variance * (squares + rho * (1 - squares))).to(self.loc.dtype)

    def _kl_from_uniform(self) -> Tensor:
        """``∫_0^κ s Var_s(g) ds``, where κ E[g] - log M cancels: for κ below D - 1."""
        kappa = self.concentration.double()
        near = kappa < self.dim - 1
        small = torch.where(near, kappa, 0)
        nodes, weights = _gauss_legendre(kappa)
        beta = (self.dim - 1) / 2
        alpha = beta + small[..., None] * nodes
        variance = _trigamma(alpha) - _trigamma(alpha + beta)  # of g, at each s
        integral = small**2 * (weights * nodes * variance).sum(-1)
        return torch.where(near, integral, super()._kl_from_uniform())

    def _alpha_beta(self) -> tuple[Tensor, Tensor]:
        beta = torch.full_like(self.concentration, (self.dim - 1) / 2, dtype=torch.float64)
        return beta + self.concentration, beta

    def _log_tilt(self, cosine: Tensor) -> Tensor:
        antipode = cosine <= -1
        tilt = self.concentration * torch.log1p(torch.where(antipode, 0.0, cosine))
        return torch.where(antipode, torch.where(self.concentration > 0, -math.inf, 0.0), tilt)

    def _log_m(self) -> Tensor:
        alpha, beta = self._alpha_beta()
        return (
            (alpha - beta) * math.log(2)
            + (torch.lgamma(alpha) - torch.lgamma(beta))
            - (torch.lgamma(alpha + beta) - torch.lgamma(2 * beta))
        )

    def _mean_g(self) -> Tensor:
        alpha, beta = self._alpha_beta()
        return math.log(2) + torch.digamma(alpha) - torch.digamma(alpha + beta)

    def _mean_cosine(self) -> Tensor:
        return mean_cosine(self.concentration.double(), self.dim)


def _gauss_legendre(like: Tensor) -> tuple[Tensor, Tensor]:
    """16 nodes and weights of an integral over (0, 1)."""
    nodes, weights = leggauss(16)
    return torch.as_tensor((nodes + 1) / 2).to(like), torch.as_tensor(weights / 2).to(like)


def _trigamma(x: Tensor) -> Tensor:
    """ψ'(x) by its recurrence from x + 10 on: torch's own is right to 1e-9 for small x."""
    steps = torch.arange(10, dtype=x.dtype, device=x.device)
    return (x[..., None] + steps).pow(-2).sum(-1) + torch.polygamma(1, x + 10)


def mean_cosine(kappa: Tensor, dim: int) -> Tensor:
    """E[μᵀz] = κ/(D - 1 + κ) of a Power Spherical distribution; κ: a number, tensor or array.

    Example:
        >>> mean_cosine(127.0, dim=128)
        0.5
    """
    return kappa / (dim - 1 + kappa)


def concentration_of(cosine: float, dim: int) -> float:
    """κ = (D - 1) ρ/(1 - ρ), which gives a Power Spherical distribution the mean cosine ρ.

    ValueError unless 0 <= ρ < 1.

    Example:
        >>> concentration_of(0.5, dim=128)
        127.0
    """
    if not 0 <= cosine < 1:
        raise ValueError(
            f"A mean cosine of {cosine:g} belongs to no concentration; "
            "give one of at least 0 and below 1."
        )
    return (dim - 1) * cosine / (1 - cosine)


def best_concentration(cosine: Tensor, dim: int) -> Tensor:
    """The κ that gives a sample at cosine s the highest Power Spherical density.

    ``κ*(s) ≈ (D - 1) s/(1 - s) + ½``, zero where that is negative: the root of
    ψ(D - 1 + κ) - ψ((D - 1)/2 + κ) + log((1 + s)/2), with ψ(x) ≈ log(x - ½).
    Relative error below 0.1 % for D >= 64 and s >= 0.05; 6 % at D = 4 and s = 0.05. cosine: any
    shape, below 1 (held 1e-6 away from it).

    Example:
        >>> best_concentration(torch.tensor(0.5), dim=128)
        tensor(127.5000)
    """
    return torch.clamp((dim - 1) * cosine / (1 - cosine).clamp(min=1e-6) + 0.5, min=0)


class VonMisesFisher(_TiltedUniform):
    r"""Von Mises-Fisher distribution, p(x) ∝ exp(κ loc·x) on S^{D-1}.

    With ν = D/2 - 1:  M(κ) = Γ(ν+1) (2/κ)^ν I_ν(κ),  E[x] = loc A(κ) with the mean resultant length
    A(κ) = I_{ν+1}(κ)/I_ν(κ) = d log M/dκ. Tested for D from 2 to 4096 and κ from 0 to 4e6 (log M to
    about 1e-12 relative). Differentiable twice in concentration.

    Args and errors: as PowerSpherical. There is no sampling.
    Source: Mardia and Jupp, Directional Statistics (2000), section 9.3.2.

    Example:
        >>> mu = F.normalize(torch.ones(8, 128), dim=-1)
        >>> VonMisesFisher(mu, 50.0).log_prob(mu).shape
        torch.Size([8])
    """

    def _log_tilt(self, cosine: Tensor) -> Tensor:
        return self.concentration * cosine

    def _log_m(self) -> Tensor:
        return _von_mises_fisher_terms(self.concentration.double(), self.dim)[0]

    def _mean_g(self) -> Tensor:
        return self._mean_cosine()

    def _mean_cosine(self) -> Tensor:
        return _von_mises_fisher_terms(self.concentration.double(), self.dim)[1]


class DirectionalStudentT(_Spherical):
    r"""Student-t around a direction, on the tangent space of the sphere.

    An anisotropic, heavy-tailed sub-density on S^{D-1}.

    With u = exp_loc(e), |e| = arccos(loc·u) the angle, e orthogonal to loc, p = D - 1, V = diag(v)
    and ν degrees of freedom:

        log p(u) = log Γ((ν+p)/2) - log Γ(ν/2) - p/2 log(νπ)
                   - ½ Σ_k log v_k + ½ log Σ_k loc_k² v_k
                   - (ν+p)/2 log(1 + (1/ν) Σ_k e_k²/v_k).

    It is the p-dimensional elliptical Student-t that V⁻¹ makes of the tangent space at loc, where ½
    Σ log v_k - ½ log(loc·V loc) is half the log-determinant of its scale matrix, carried to the
    sphere as it is. That map shrinks area by (sin|e| / |e|)^{D-2} <= 1 and leaves out |e| > π, so
    that the mass over the sphere is at most one, whatever ν and V, and close to one where the scale
    is small: a bound on the evidence of this sub-density is one on that of a density too. As ν
    grows the t becomes a Gaussian.

    Args: loc [..., D], unit vectors, D >= 2; squared_scale [..., D], the v_k, positive;
    degrees_of_freedom ν > 0, one number. intrinsic False: the D-dimensional Student-t of e = u -
    loc as it stands in R^D, which is no sub-density on the sphere: its mass exceeds one for small
    scales. Raises ValueError for other shapes, vectors off the sphere, scales or ν that are not
    positive, and ν above 1e9.

    Source: our formulation of VJE's directional factor (Oji and Fieguth, Joint Embedding
    Variational Bayes, TMLR 2026, abstract: "operates on the unit sphere, yielding a valid
    variational bound for the associated spherical subdensity model"); the paper's formula is not
    available to us.

    Example:
        >>> mu = F.normalize(torch.ones(8, 128), dim=-1)
        >>> DirectionalStudentT(mu, torch.full((8, 128), 0.01), 64.0).log_prob(mu).shape
        torch.Size([8])
    """

    arg_constraints = {
        "loc": _unit_sphere,
        "squared_scale": constraints.independent(constraints.positive, 1),
    }

    def __init__(
        self,
        loc: Tensor,
        squared_scale: Tensor,
        degrees_of_freedom: float,
        intrinsic: bool = True,
        validate_args: bool | None = None,
    ):
        validate = Distribution._validate_args if validate_args is None else validate_args
        if loc.dim() < 1 or loc.shape[-1] < 2 or squared_scale.shape != loc.shape:
            raise ValueError(
                f"loc has shape {tuple(loc.shape)} and squared_scale "
                f"{tuple(squared_scale.shape)}; both must be [..., D] with D >= 2"
            )
        if not 0 < degrees_of_freedom <= MOST_FREEDOM:
            raise ValueError(
                f"degrees_of_freedom is {degrees_of_freedom}; it must be positive, and 1e6 is "
                "Gaussian enough (at most 1e9)"
            )
        if validate:
            valid = (squared_scale > 0) & (squared_scale < math.inf)
            if not valid.all():
                raise ValueError(
                    "squared_scale must be finite and positive, but one is "
                    f"{squared_scale[~valid][0].item()}"
                )
        self.loc = _unit_vectors(loc, "loc", validate)
        self.squared_scale = squared_scale
        self.degrees_of_freedom = float(degrees_of_freedom)
        self.intrinsic = intrinsic
        super().__init__(loc.shape[:-1], loc.shape[-1:], validate_args=False)  # checked above
        self._validate_args = validate

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density, by surface area, of unit vectors [sample shape + batch shape, D]."""
        value = self._check_value(value)
        return directional_student_t_log_prob(
            value, self.loc, self.squared_scale.log(), self.degrees_of_freedom, self.intrinsic
        )


def directional_student_t_log_prob(
    value: Tensor,
    loc: Tensor,
    log_scale: Tensor,
    degrees_of_freedom: float,
    intrinsic: bool = True,
) -> Tensor:
    """Log-density of a DirectionalStudentT with squared scales exp(log_scale) [..., D].

    The scales stay logarithms, which may be of any size. value, loc: unit vectors, unchecked.
    """
    dim = loc.shape[-1]
    residual = value - loc
    log_determinant = log_scale.sum(-1)
    if intrinsic:
        dim -= 1
        residual = _tangent(loc, residual)
        log_determinant = log_determinant - log_sum_of_squares(loc, log_scale)
    log_distance = log_sum_of_squares(residual, -log_scale)
    return student_t_log_prob(log_distance, log_determinant, dim, degrees_of_freedom)


def log_sum_of_squares(vector: Tensor, log_weight: Tensor) -> Tensor:
    """``log Σ_k vector_k² exp(log_weight_k)`` over the last axis.

    A coordinate that is zero counts as e^NEGLIGIBLE, and has a gradient of zero.

    Example:
        >>> log_sum_of_squares(torch.tensor([3.0, 4.0]), torch.zeros(2))  # log 25
        tensor(3.2189)
    """
    is_zero = vector == 0
    log_square = 2 * torch.where(is_zero, 1.0, vector).abs().log()
    return torch.where(is_zero, NEGLIGIBLE, log_square + log_weight).logsumexp(-1)


def student_t_log_prob(
    log_distance: Tensor, log_determinant: Tensor, dim: int, degrees_of_freedom: float
) -> Tensor:
    """Log-density of a Student-t in ``dim`` dimensions.

    log_distance: the logarithm of the squared Mahalanobis distance eᵀ Σ⁻¹ e; log_determinant: log
    det Σ of its scale matrix; both of any one shape. ValueError unless the degrees of freedom are
    positive and at most MOST_FREEDOM.

    Example:
        >>> student_t_log_prob(torch.tensor(0.0), torch.tensor(0.0), 1, 1.0)  # Cauchy at 1
        tensor(-1.8379)
    """
    nu = degrees_of_freedom
    if not 0 < nu <= MOST_FREEDOM:
        raise ValueError(
            f"Degrees of freedom must be positive and at most {MOST_FREEDOM:g}, got {nu:g}; 1e6 is "
            "Gaussian enough."
        )
    constant = _log_gamma_ratio(nu / 2, dim / 2) - dim / 2 * math.log(nu * math.pi)
    log_ratio = log_distance - math.log(nu)
    log_tail = torch.logaddexp(log_ratio, torch.zeros_like(log_ratio))  # log(1 + distance/ν)
    return constant - log_determinant / 2 - (nu + dim) / 2 * log_tail


def _log_gamma_ratio(a: float, b: float) -> float:
    """log Γ(a + b) - log Γ(a): by Stirling's series where a is so large that they cancel."""
    if a < 1e3:
        return math.lgamma(a + b) - math.lgamma(a)
    leading = (a - 0.5) * math.log1p(b / a) + b * (math.log(a + b) - 1)
    return leading + (1 / (a + b) - 1 / a) / 12 - ((a + b) ** -3 - a**-3) / 360


def _tangent(loc: Tensor, chord: Tensor) -> Tensor:
    """The logarithm map: from u - loc to the tangent vector at loc that points to u.

    Its length is the angle θ between them. The part of u - loc along the tangent space has length
    sin θ. It is stretched by θ / sin θ, near zero by its series in q = sin²(θ/2),
    1 + 2q/3 + 8q²/15 + 16q³/35, whose gradient exists where that of the square root does not. To
    the antipode itself all ways are as long: it is reached along the axis to which loc is the
    most orthogonal.
    """
    q = chord.square().sum(-1, keepdim=True) / 4
    along = chord - (loc * chord).sum(-1, keepdim=True) * loc
    near = q < 1e-3
    sine = (
        torch.where(near, 1.0, along.square().sum(-1, keepdim=True))
        .clamp(min=torch.finfo(chord.dtype).tiny)
        .sqrt()
    )
    stretch = torch.where(
        near, 1 + q * (2 / 3 + q * (8 / 15 + q * 16 / 35)), torch.atan2(sine, 1 - 2 * q) / sine
    )
    axis = F.one_hot(loc.detach().abs().argmin(-1), loc.shape[-1]).to(loc)
    anywhere = F.normalize(axis - (loc * axis).sum(-1, keepdim=True) * loc, dim=-1)
    return torch.where(
        ~near & (sine < 4 * torch.finfo(chord.dtype).eps), math.pi * anywhere, stretch * along
    )


def _debye_polynomials(terms: int) -> list[Polynomial]:
    """U_0 ... U_{terms-1} of the expansion of I_ν(νz) for large ν (NIST DLMF 10.41.9)."""
    p = Polynomial([0, 1])
    polynomials = [Polynomial([1])]
    while len(polynomials) < terms:
        last = polynomials[-1]
        polynomials.append(
            p**2 * (1 - p**2) / 2 * last.deriv() + ((1 - 5 * p**2) * last).integ() / 8
        )
    return polynomials


_DEBYE = _debye_polynomials(9)
_DEBYE_ORDER = 32  # nine terms are exact to 1e-14 from this order on


def _von_mises_fisher_terms(kappa: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """log M(κ) and the mean resultant length A(κ) of von Mises-Fisher in `dim` dimensions, for
    float64 κ >= 0 of any shape.

    Let M_k be M for order k, and ρ_k = M_{k+1}/M_k = 2(k+1)/κ · I_{k+1}(κ)/I_k(κ), which is 1 at κ
    = 0 where the Bessel functions vanish. Both come from Debye's expansion (NIST DLMF 10.41.3) at
    an order n large enough, minus its value at κ = 0, where log M is 0; the three-term recurrence
    (DLMF 10.29.1), stable downwards, ρ_{k-1} = 1/(1 + κ² ρ_k/(4k(k+1))), leads from n to ν = dim/2
    - 1.
    """
    order = dim / 2 - 1
    steps = max(0, math.ceil(_DEBYE_ORDER - order))
    n = order + steps
    series = sum((u / n**k for k, u in enumerate(_DEBYE)), Polynomial([0]))
    z_squared = (kappa / n) ** 2
    w = torch.sqrt(1 + z_squared)
    p = 1 / w
    w_minus_1 = z_squared / (1 + w)
    at_p = polyval(p, series.coef)  # Horner's scheme is plain arithmetic, so it takes tensors
    log_m = n * (w_minus_1 - torch.log1p(w_minus_1 / 2))
    log_m = log_m - torch.log1p(w_minus_1) / 2 + torch.log(at_p / float(series(1)))
    correction = p**2 / (2 * n) + p**3 * polyval(p, series.deriv().coef) / (n * at_p)
    rho = 2 * (n + 1) / n * (1 / (1 + w) - correction)
    for k in (n - step for step in range(steps)):
        inverse_minus_1 = kappa**2 * rho / (4 * k * (k + 1))
        log_m = log_m + torch.log1p(inverse_minus_1)
        rho = 1 / (1 + inverse_minus_1)
    log_m = torch.where(kappa < 1, _log_m_near_uniform(kappa.clamp(max=1), dim), log_m)
    return log_m, kappa * rho / dim


def _log_m_near_uniform(kappa: Tensor, dim: int) -> Tensor:
    """log M(κ) of von Mises-Fisher for κ up to 1 (NIST DLMF 10.25.2).

    ``M(κ) = Σ_k (κ²/4)^k / (k! (D/2)_k)``; the term k = 0 is 1, and is left to log1p.
    """
    quarter = kappa**2 / 4
    term = torch.ones_like(kappa)
    excess = torch.zeros_like(kappa)
    for k in range(1, 13):
        term = term * quarter / (k * (dim / 2 + k - 1))
        excess = excess + term
    return torch.log1p(excess)


def _check_same_space(p: Distribution, q: Distribution) -> None:
    if p.event_shape != q.event_shape or q.batch_shape not in (torch.Size(), p.batch_shape):
        raise ValueError(
            "KL divergence needs distributions on one sphere with equal batch shapes, but they "
            f"are {tuple(p.batch_shape)} x {tuple(p.event_shape)} and {tuple(q.batch_shape)} x "
            f"{tuple(q.event_shape)}; expand one of them"
        )


@register_kl(_TiltedUniform, HypersphericalUniform)
def _kl_tilted_uniform(p, q):
    """KL(p || U) = H(U) - H(p)."""
    _check_same_space(p, q)
    return p._kl_from_uniform().to(p.loc.dtype)


@register_kl(PowerSpherical, VonMisesFisher)
def _kl_power_spherical_von_mises_fisher(p, q):
    """KL(p || q) = KL(p || U) + log M_q - κ_q (loc_q·loc_p) E_p[t]."""
    _check_same_space(p, q)
    alignment = _cosine(p.loc, q.loc, normalise=p._validate_args)
    cross = q.concentration * alignment * p._mean_cosine() - q._log_m()
    return (p._kl_from_uniform() - cross).to(torch.promote_types(p.loc.dtype, q.loc.dtype))
