"""The page of all settings is generated and must follow them."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

import config.reference
from config.loading import json_schema
from config.reference import REFERENCE_PAGE, reference
from config.schema import Config


def keys(model: type, path: str = "") -> set[str]:
    found = set()
    for name, field in model.model_fields.items():
        below = getattr(field.annotation, "model_fields", None)
        found |= keys(field.annotation, f"{path}{name}.") if below else {f"{path}{name}"}
    return found


def rows(page: str) -> dict[str, str]:
    """Dotted key -> its line."""
    found, section = {}, ""
    for line in page.splitlines():
        if line.startswith("## "):
            section = "" if line == "## Top level" else line[3:] + "."
        if line.startswith("| `"):
            found[section + line.split("`")[1]] = line
    return found


def test_the_committed_page_is_in_step():
    assert REFERENCE_PAGE.read_text(encoding="utf-8") == reference(), (
        "run `python -m config.reference`"
    )


@pytest.mark.parametrize("name", ["reference.py", "loading.py"])
def test_generated_files_are_written_from_any_folder(tmp_path, monkeypatch, name):
    written = []
    monkeypatch.setattr(Path, "write_text", lambda path, text, **_: written.append(text))
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(Path(config.reference.__file__).with_name(name)), run_name="__main__")
    assert written == [reference() if name == "reference.py" else json_schema()]


def test_every_setting_has_a_line_and_nothing_else_has():
    assert rows(reference()).keys() == keys(Config)


def test_a_line_says_what_is_allowed_the_default_and_the_meaning():
    found = rows(reference())
    assert found["decoding.total_iter"] == (
        "| `total_iter` | integer ≥ 1, ≤ 10000 | `10` | Iterations T of the full schedule. |"
    )
    assert "| `listing`, `maskgit`, `lab`, " in found["decoding.rule"]
    assert "| number > 0.0 or null | `null` |" in found["training.max_grad_norm"]
    assert "| key: {low, high, log, int} | `{}` |" in found["search.space"]
