"""What the tests of training share."""

import pytest

from lib.runs import store


@pytest.fixture
def fresh_results(tmp_path, monkeypatch):
    """Call it with a name to continue in another, empty results folder."""

    def go(name):
        monkeypatch.setattr(store, "RESULTS", tmp_path / name)

    return go
