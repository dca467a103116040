"""docs/tour.ipynb: ten cells that run from first to last and are stored without their output."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import pytest

ROOT = Path(__file__).parents[1]
CELLS = json.loads((ROOT / "docs" / "tour.ipynb").read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def test_ten_cells_of_code_stand_each_below_its_prose():
    assert [cell["cell_type"] for cell in CELLS] == ["markdown", "code"] * 10
    assert len({cell["id"] for cell in CELLS}) == len(CELLS)


@pytest.mark.usefixtures("low_resolution")
def test_the_tour_runs_from_top_to_bottom_and_its_own_assertions_hold(monkeypatch):
    matplotlib.use("Agg")  # show() draws nothing
    monkeypatch.chdir(ROOT / "docs")  # where Jupyter runs it
    monkeypatch.syspath_prepend(ROOT)
    names: dict = {"__name__": "__main__"}
    for cell in CODE:
        exec(compile(source(cell), cell["id"], "exec"), names)
    assert names["repaired"].shape == names["truth"].shape


@pytest.mark.parametrize("cell", CODE, ids=lambda cell: cell["id"])
def test_the_notebook_is_stored_without_outputs(cell):
    assert (cell["outputs"], cell["execution_count"]) == ([], None)
