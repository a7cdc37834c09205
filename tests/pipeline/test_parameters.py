"""The parameters of a notebook that was opened; those of the command are in test_bad_input.py."""

import pytest

from lib.pipeline import notebooks

INJECTED = "# Parameters\nprofile = 'smoke'\n"


def test_parameters_have_the_declared_types():
    parsed = notebooks.parse_parameters("method=simsiam seed=1 epochs=2", "10_pretraining")
    assert parsed == {"method": "simsiam", "seed": 1, "epochs": 2}


@pytest.mark.parametrize(
    ("changed", "culprit"),
    [
        ({"sed": 1, "In": ["", INJECTED + "sed = 1\n"]}, "'sed'.*'seed'"),  # injected
        ({"seed": "one"}, "seed"),  # edited by hand
    ],
)
def test_a_parameter_that_is_not_declared_or_of_another_type_is_refused(changed, culprit):
    with pytest.raises(ValueError, match=culprit):
        notebooks.begin("10_pretraining", {"profile": "smoke"} | changed)


def test_other_names_in_a_notebook_are_no_parameters():
    """A startup file of IPython may have set anything before the first cell."""
    namespace = {"profile": "smoke", "DATA_ROOT": "/data", "In": ["", INJECTED, "text = 'mine'"]}
    notebooks.begin("10_pretraining", namespace | {"text": "mine"})
