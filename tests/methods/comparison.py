"""What tests of mathematics share: float64 draws, equality up to a tolerance, an exact density."""

import mpmath
import numpy as np
import pytest
import torch
from torch.nn import functional as F


def f64(x):
    return torch.as_tensor(x, dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def unit(*shape, seed=0):
    return F.normalize(normal(*shape, seed=seed), dim=-1)


def _array(value):
    return value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def close(ours, expected, **tolerance):
    """Fail unless both are equal with the tolerances of pytest.approx."""
    assert _array(ours) == pytest.approx(_array(expected), **tolerance)


def exact_student_t(squared_distance, log_determinant, dim, freedom):
    """Log-density of a Student-t in the working precision of mpmath."""
    nu = mpmath.mpf(freedom)
    constant = mpmath.loggamma((nu + dim) / 2) - mpmath.loggamma(nu / 2)
    constant -= mpmath.mpf(dim) / 2 * mpmath.log(nu * mpmath.pi)
    tail = (nu + dim) / 2 * mpmath.log1p(mpmath.mpf(squared_distance) / nu)
    return constant - mpmath.mpf(log_determinant) / 2 - tail
