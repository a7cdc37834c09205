"""Tables as they are shown: short numbers, nothing for what is missing."""

import numpy as np
import pandas as pd
import pytest

from lib.figures import save


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.1235"),
        (-930.1333, "-930.1"),
        (12345.6, "12,346"),
        (3.0, "3"),
        (np.int64(10000), "10,000"),
        (np.float32(0.5), "0.5"),
        (True, "True"),
        ("κ", "κ"),
    ],
)
def test_a_cell_is_short(value, text):
    assert save._readable(value) == text


def test_a_table_is_stored_with_all_digits_and_shown_with_few(monkeypatch):
    shown = []
    monkeypatch.setattr(save, "_show", lambda *items: shown.extend(items))
    report = save.Report("32_kappa_as_confidence", "smoke")
    report.table("32_x", pd.DataFrame({"value": [0.123456789, np.nan]}))
    stored = (save.store.results_dir("smoke") / "tables" / "32_x.csv").read_text()
    assert "0.123456789" in stored
    html = shown[0].to_html()
    assert "0.1235" in html and "nan" not in html.lower().replace("font", "")
    report.table("32_y", pd.DataFrame({"value": []}))
    assert "No stored run" in shown[1].data
