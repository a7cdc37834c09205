"""A network that is not there, for the tests of this room."""

import pytest

from lib.data import downloads


@pytest.fixture
def no_network(monkeypatch):
    def fail(staging, name, split):
        raise OSError("no network")

    monkeypatch.setattr(downloads, "torchvision_download", fail)
    monkeypatch.setattr(downloads, "DEBIAN", {})
