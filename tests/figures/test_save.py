"""Tables are stored with all digits."""

import numpy as np
import pandas as pd

from lib.figures import save
from lib.runs import store


def test_a_table_is_stored_with_all_digits_and_an_empty_one_says_so(monkeypatch):
    shown = []
    monkeypatch.setattr(save, "_show", lambda *items: shown.extend(items))
    report = save.Report("32_kappa_as_confidence", "smoke")
    report.table("32_x", pd.DataFrame({"value": [0.123456789, np.nan]}))
    stored = store.read_csv(store.results_dir("smoke") / "tables" / "32_x.csv")
    assert stored.value[0] == 0.123456789
    report.table("32_y", pd.DataFrame({"value": []}))
    assert "No stored run" in shown[1].data
