"""lib.evaluation.likelihood: what a VJE run's variances follow. The mass over the sphere is tested in test_vje."""

import numpy as np
import pytest
import torch
from scipy import stats

from lib import training
from lib.evaluation import likelihood
from lib.evaluation import measure as protocol
from lib.runs import settings
from lib.runs import store as artifacts


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "RESULTS", tmp_path)
    found = settings.resolve("vje", "smoke", train_images=256) | {"condition_images": 60}
    training.train(found)
    return protocol.Run(found)


def test_variances_are_compared_with_the_residual_of_the_other_view(run, monkeypatch):
    monkeypatch.setattr(
        artifacts, "MOST_BITS", 24
    )  # all of a float32: rounded, neighbours could change places
    monkeypatch.setattr(artifacts, "TIED", -1)
    with torch.no_grad():
        torch.nn.init.normal_(
            run.method.inference[-1].weight, std=0.3
        )  # one epoch leaves the variances all but equal
    likelihood.measure_variances(run, "60_test")
    stored = artifacts.read_scores("smoke", run.name, "digits_variances")
    found = artifacts.read_metrics("smoke", "60_test-variances", run.name).set_index(
        ["condition", "metric"]
    )
    _, (first, second) = protocol.embed_views(run, 2)
    with torch.no_grad():
        mean, log_v = run.method.posterior(torch.from_numpy(first["features"]))
    target = second["features"] / np.linalg.norm(second["features"], axis=1, keepdims=True)
    expected = target.shape[1] * (target - (mean / mean.norm(dim=1, keepdim=True)).numpy()) ** 2
    assert stored["features_residual"] == pytest.approx(expected.mean(0), rel=1e-4)
    assert stored["images_residual"] == pytest.approx(expected.mean(1), rel=1e-4)
    assert stored["features_log_variance"] == pytest.approx(log_v.mean(0).numpy(), rel=1e-4)
    for condition, count in (("features", run.method.dimension), ("images", 60)):
        own, apart = stored[f"{condition}_log_variance"], stored[f"{condition}_residual"]
        spread, following = (
            found.loc[(condition, metric)] for metric in ("spread", "residual_spearman")
        )
        assert spread.n == following.n == count == len(own)
        assert spread.value == pytest.approx(own.std(), rel=1e-4)
        assert following.value == pytest.approx(stats.spearmanr(own, apart).statistic, abs=1e-6)
        assert following.ci_low <= following.value <= following.ci_high
