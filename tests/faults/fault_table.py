"""docs/faults.md: all cases of the catalogue with what happened in them."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from fault_case import Case

PARTS = {  # heading: module with its cases
    "Pictures and masks": "cases_images",
    "Configs": "cases_configs",
    "Checkpoints": "cases_checkpoints",
    "Archives, tables and statistics": "cases_archives",
    "Arguments": "cases_arguments",
}
HEAD = """# Bad inputs and what becomes of them

Written by `make faults` from the catalogue in tests/faults; each case runs in a fresh folder with
the smallest networks. Code 2 is a refusal in one line that leaves every file as it was, code 0 a
correct result, with a note where something of the input was left out. No case may show a traceback,
hang, take 600 MiB more of memory, leave a part of a file, or run a program that the input holds.

{count} cases, {refused} refused, {repaired} done.
"""
ROW = re.compile(r"^\| (.*?) \| ")


class Outcome(NamedTuple):
    """What a command left with."""

    code: int
    line: str


def catalogue() -> list[Case]:
    """All cases in the order of the table."""
    return [case for module in PARTS.values() for case in import_module(module).CASES]


def write_table(path: Path, cases: list[Case], outcomes: dict[str, Outcome]) -> None:
    """Write the table anew."""
    refused = sum(outcome.code == 2 for outcome in outcomes.values())
    text = HEAD.format(count=len(cases), refused=refused, repaired=len(cases) - refused)
    for heading, module in PARTS.items():
        text += f"\n## {heading}\n| case | command | code | line |\n|---|---|---|---|\n"
        for case in import_module(module).CASES:
            outcome = outcomes[case.name]
            cells = (case.name, f"`{_cell(case.command, 60)}`", str(outcome.code))
            text += "| " + " | ".join([*cells, _cell(outcome.line, 160)]) + " |\n"
    path.write_text(text, encoding="utf-8")


def names_in(path: Path) -> list[str]:
    """The cases that a table names."""
    rows = filter(None, map(ROW.match, path.read_text(encoding="utf-8").splitlines()))
    return [row[1] for row in rows if row[1] != "case"]


def _cell(text: str, longest: int) -> str:
    text = text if len(text) <= longest else f"{text[: longest - 3]}..."
    return text.replace("|", "\\|").replace("<", "\\<").replace("*", "\\*")
