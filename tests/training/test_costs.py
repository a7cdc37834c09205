"""What a training step costs."""

import pandas as pd
import pytest

from lib import methods
from lib.training import costs
from lib.training.batches import training_images
from tests.training.tiny_runs import tiny

pytestmark = pytest.mark.usefixtures("data_dir")


def test_step_costs_of_every_run_in_every_round():
    runs = [tiny("simsiam"), tiny("vi_simsiam"), tiny("simsiam", batch_size=32)]
    measured = costs.step_costs(runs, training_images(runs[0]), rounds=2, steps=1)
    assert measured["round"].tolist() == [0, 0, 0, 1, 1, 1]

    plain, probabilistic, double = [measured.iloc[place] for place in range(3)]
    parameters = sum(p.numel() for p in methods.build(runs[0], 1).parameters())
    assert plain.backbone_parameters + plain.head_parameters == parameters
    assert plain.backbone_parameters == probabilistic.backbone_parameters
    assert probabilistic.head_parameters > plain.head_parameters
    assert double.saved_bytes / plain.saved_bytes == pytest.approx(2, rel=0.05)


def test_ratios_are_taken_round_by_round():
    exact = {
        "prosmin": {"backbone_parameters": 10, "head_parameters": 5, "saved_bytes": 40},
        "dino": {"backbone_parameters": 10, "head_parameters": 15, "saved_bytes": 120},
    }
    speeds = {"prosmin": [90.0, 80.0, 30.0], "dino": [100.0, 100.0, 40.0]}
    rows = []
    for method in exact:
        for number, speed in enumerate(speeds[method]):
            row = {"method": method, "round": number, "images_per_second": speed}
            rows.append(row | exact[method])
    ratios = costs.cost_ratios(pd.DataFrame(rows), "prosmin", "dino").set_index("measure")
    speed = ratios.loc["images per second", ["value", "ci_low", "ci_high", "n"]]
    assert speed.tolist() == pytest.approx([0.8, 0.75, 0.9, 3])
    assert ratios.value["head parameters"] == pytest.approx(1 / 3)
    assert ratios.value["trained parameters"] == 0.6
