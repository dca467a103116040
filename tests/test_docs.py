"""The pages of docs/: their code runs, their links lead somewhere, their pictures are ours."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
import torch

import utils.scoring  # noqa: F401  puts the scorer's folder on the path
from config.schema import Config
from docs.draw_decoding import GRID, ROWS, STEPS, walk
from utils.sweep_plan import STUDIES, read_grid

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "docs" / f"{name}.md" for name in ("configuration", "decoding", "extending", "scorer")
]


def blocks(name: str, language: str) -> list[str]:
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_code_on_extending_runs_as_it_stands(monkeypatch):
    from features import BACKENDS

    from models.masking import MASK_SCHEDULES
    from models.orders import ORDERS

    code = blocks("extending.md", "python")
    assert len(code) == 3
    assert all("assert" in block for block in code)
    names: dict = {}
    try:
        for block in code:
            exec(compile(block, "docs/extending.md", "exec"), names)
    finally:
        for table, name in (
            (MASK_SCHEDULES, "cubic"), (ORDERS, "from_the_left"), (BACKENDS, "mean-colour"),
        ):  # fmt: skip
            table.pop(name)


def test_the_grid_on_decoding_is_one_that_sweep_reads(tmp_path):
    (text,) = blocks("decoding.md", "yaml")
    (tmp_path / "grid.yml").write_text(text)
    study = read_grid(Config(), tmp_path / "grid.yml")
    assert (len(study.rows), len(study.columns)) == (2, 3)


def test_the_studies_on_decoding_exist():
    first, second = [shlex.split(line) for line in blocks("decoding.md", "sh")[0].splitlines()]
    assert first[:2] == second[:2] == ["python", "sweep.py"]
    assert first[2 : first.index("--config")] == list(STUDIES)
    assert second[2] == "grid"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_names_is_there(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    files = re.findall(r"`((?:config|models|utils|tests|faster-pytorch-fid)/[\w./-]+)`", text)
    assert all((page.parent / link).exists() for link in links), links
    assert all((ROOT / file).exists() for file in files), files


@pytest.mark.parametrize("changes", ROWS.values(), ids=ROWS)
def test_the_decoding_picture_shows_masks_that_only_shrink_to_nothing(changes):
    token_mask = torch.zeros(1, GRID**2, dtype=torch.bool)
    token_mask[0, 40:100] = True
    masks = [token_mask, *walk(token_mask, changes)]
    assert len(masks) == STEPS + 1
    assert all(not (after & ~before).any() for before, after in pairwise(masks))
    assert masks[1].any()
    assert not masks[-1].any()
