"""What depends on the device: precision, and batch norm of several processes."""

import pytest
import torch
from torch import nn

from lib.runs import store
from lib.training.devices import Processes, precision_of


@pytest.mark.parametrize(
    ("processor", "capabilities", "expected"),
    [
        # Products of matrices of 1,024 took 0.51 times as long in float32 as in bf16 on a Xeon
        # with AVX512_BF16 and without AMX (torch 2.11, one thread).
        ("Intel(R) Xeon(R) Processor", ["avx512_bf16"], "float32"),
        ("Intel(R) Xeon(R) Platinum 8480+", ["avx512_bf16", "amx_bf16"], "bf16"),
        ("AMD EPYC", ["avx2"], "float32"),
    ],
)
def test_bf16_is_chosen_where_it_is_faster(processor, capabilities, expected, monkeypatch):
    able = dict.fromkeys(capabilities, True)
    monkeypatch.setattr(store, "processor", lambda: processor)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    cpu = torch.device("cpu")
    assert precision_of({"precision": "auto"}, cpu) == expected
    assert precision_of({"precision": "bf16"}, cpu) == "bf16"


@pytest.mark.parametrize(("device", "kind"), [("cuda", nn.SyncBatchNorm), ("cpu", nn.BatchNorm1d)])
def test_batch_norm_is_synchronised_on_gpus(device, kind):
    processes = Processes(torch.device(device), count=2, fabric=object())
    method = processes.synchronise_batch_norm(nn.Sequential(nn.BatchNorm1d(3)))
    assert type(method[0]) is kind
