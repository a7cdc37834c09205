"""Equality up to a tolerance, and an exact density that several tests compare with."""

import mpmath
import numpy as np
import pytest
import torch


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
