"""Equality of tensors, arrays and numbers up to a tolerance."""

import numpy as np
import pytest
import torch


def _array(value):
    return value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def close(ours, expected, **tolerance):
    """Fail unless both are equal with the tolerances of pytest.approx."""
    assert _array(ours) == pytest.approx(_array(expected), **tolerance)
