"""docs/tour.ipynb as it is stored: ten cells that compile, import what exists, and have no output.

tests/long/test_tour.py runs it.
"""

from __future__ import annotations

import ast
import importlib
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CELLS = json.loads((ROOT / "docs" / "tour.ipynb").read_text(encoding="utf-8"))["cells"]
CODE = [cell for cell in CELLS if cell["cell_type"] == "code"]


def source(cell: dict) -> str:
    return "".join(cell["source"])


def test_ten_cells_of_code_stand_each_below_its_prose():
    assert [cell["cell_type"] for cell in CELLS] == ["markdown", "code"] * 10
    assert len({cell["id"] for cell in CELLS}) == len(CELLS)


@pytest.mark.parametrize("cell", CODE, ids=lambda cell: cell["id"])
def test_a_cell_compiles_and_the_names_that_it_imports_exist(cell):
    for node in ast.walk(compile(source(cell), cell["id"], "exec", ast.PyCF_ONLY_AST)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert [a.name for a in node.names if not hasattr(module, a.name)] == []


@pytest.mark.parametrize("cell", CODE, ids=lambda cell: cell["id"])
def test_the_notebook_is_stored_without_outputs(cell):
    assert (cell["outputs"], cell["execution_count"]) == ([], None)
