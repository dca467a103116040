"""The students' notebook runs from its first cell to its last; its own assertions hold."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.long


def test_the_tour_runs_from_top_to_bottom(monkeypatch):
    matplotlib.use("Agg")  # show() draws nothing
    monkeypatch.chdir(ROOT / "docs")  # where Jupyter runs it
    monkeypatch.syspath_prepend(ROOT)
    cells = json.loads((ROOT / "docs" / "tour.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict = {"__name__": "__main__"}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    assert names["repaired"].shape == names["truth"].shape
