"""Files of trained weights: whole or not at all, and of this network only."""

import pytest
import torch

from lib import methods
from lib.training.checkpoints import fill, load_trained
from lib.training.loop import train
from tests.training.tiny_runs import equal, interrupted, tiny, weights

pytestmark = pytest.mark.usefixtures("data_dir")


@pytest.mark.parametrize("file", ["checkpoint.safetensors", "model.safetensors"])
def test_a_truncated_file_is_an_error_that_names_it(file):
    settings = tiny(epochs=1)
    folder = interrupted(settings, 5)
    whole = (folder / "checkpoint.safetensors").read_bytes()
    (folder / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=file):
        train(settings)


def test_load_trained_gives_the_stored_weights_in_evaluation_mode():
    settings = tiny(epochs=1)
    with pytest.raises(FileNotFoundError, match="python -m lib.training"):
        load_trained(settings, 1)
    train(settings)
    method = load_trained(settings, 1)
    assert not method.training
    assert equal(method.state_dict(), weights(settings))


def test_fill_refuses_what_does_not_fit_and_can_do_with_parts(tmp_path):
    method = methods.build(tiny(), 1)
    state = method.state_dict()
    backbone = {name: value + 1 for name, value in state.items() if name.startswith("backbone.")}
    misshapen = {name: value.reshape(1, *value.shape) for name, value in state.items()}
    for tensors in (backbone, misshapen, state | {"another": torch.ones(1)}):
        with pytest.raises(ValueError, match="of_another"):
            fill(method, tensors, tmp_path / "of_another.safetensors")
    fill(method, backbone, tmp_path, parts=["backbone"])
    for name, value in backbone.items():
        assert torch.equal(method.state_dict()[name], value)
