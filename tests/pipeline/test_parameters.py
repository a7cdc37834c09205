"""The parameters of a notebook that was opened; those of the command are in test_bad_input.py."""

import pytest

from lib.pipeline import notebooks


def test_parameters_have_the_declared_types():
    parsed = notebooks.parse_parameters("method=simsiam seed=1 epochs=2", "10_pretraining")
    assert parsed == {"method": "simsiam", "seed": 1, "epochs": 2}


def test_a_parameter_that_was_edited_to_another_type_is_refused():
    with pytest.raises(ValueError, match="seed"):
        notebooks.begin("10_pretraining", {"profile": "smoke", "seed": "one"})


def test_other_names_in_a_notebook_are_no_parameters():
    """A startup file of IPython may have set anything before the first cell."""
    notebooks.begin("10_pretraining", {"profile": "smoke", "DATA_ROOT": "/data"})
