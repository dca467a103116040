"""docs/faults.md: all cases of the catalogue, and faults in the middle, with what happened."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from fault_case import Case

TABLE = Path(__file__).parents[2] / "docs" / "faults.md"
WRITE = "FAULTS_TABLE"  # set by `make faults`
PARTS = {  # heading: module with its cases
    "Pictures and masks": "cases_images",
    "Configs": "cases_configs",
    "Checkpoints": "cases_checkpoints",
    "Archives, tables and statistics": "cases_archives",
    "Arguments": "cases_arguments",
    "Sweeps and grids": "cases_sweep",
    "Searches, reports, releases, imports": "cases_tools",
    "Environment, links and names": "cases_surroundings",
    "The page": "cases_page",
}
HEAD = """# Bad inputs and what becomes of them

Written by `make faults` from the catalogue in tests/faults; each case runs in a fresh folder with
the smallest networks. Code 2 is a refusal in one line that leaves every file as it was, code 0 a
correct result, with a note where something of the input was left out. No case may show a traceback,
hang, take 600 MiB more of memory, leave a part of a file, or run a program that the input holds.

{count} cases, {refused} refused, {repaired} done.
"""
MIDDLE = """
## Faults in the middle of the work
Each script is stopped at the third visit of its inner loop, the fault happens, and the script goes
on. Then the same command runs again, with `--resume` where the script has it; "the same" says that
its results are, byte for byte, those of a run in which nothing happened (dates and seconds apart).

"""
LEGEND = """
Code 2 is a refusal in one line, code 130 a clean stop. Half a file is left of training states and
token caches, of studies, of results, of certificates and statistics. Any number of processes may
share a search. {count} cells, {empty} of them cannot happen.
"""
ROW = re.compile(r"^\| (.*?) \| ")

Cells = dict[tuple[str, str], str]  # fault, script: what happened


class Outcome(NamedTuple):
    """What a command left with."""

    code: int
    line: str


def catalogue() -> list[Case]:
    """All cases in the order of the table."""
    return [case for module in PARTS.values() for case in import_module(module).CASES]


def write_table(path: Path, cases: list[Case], outcomes: dict[str, Outcome]) -> None:
    """Write the catalogue's part anew; every case must have run, those of the page too."""
    assert not (missing := [case.name for case in cases if case.name not in outcomes]), missing
    refused = sum(outcome.code == 2 for outcome in outcomes.values())
    text = HEAD.format(count=len(cases), refused=refused, repaired=len(cases) - refused)
    for heading, module in PARTS.items():
        text += f"\n## {heading}\n| case | command | code | line |\n|---|---|---|---|\n"
        for case in import_module(module).CASES:
            outcome = outcomes[case.name]
            cells = (case.name, f"`{_cell(case.command, 60)}`", str(outcome.code))
            text += "| " + " | ".join([*cells, _cell(outcome.line, 160)]) + " |\n"
    path.write_text(text + MIDDLE + _halves(path)[1], encoding="utf-8")


def write_matrix(path: Path, faults: list[str], scripts: list[str], cells: Cells) -> None:
    """Write the part about faults in the middle anew; every cell must have run."""
    rows = [["fault", *scripts], ["---"] * (1 + len(scripts))]
    rows += [[fault, *(cells[fault, script] for script in scripts)] for fault in faults]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    empty = sum(text.startswith("cannot") for text in cells.values())
    text = table + LEGEND.format(count=len(cells), empty=empty)
    path.write_text(_halves(path)[0] + MIDDLE + text, encoding="utf-8")


def cells_in(path: Path) -> tuple[list[str], list[str]]:
    """The faults and scripts that a matrix has."""
    rows = [line.split(" | ") for line in _halves(path)[1].splitlines() if line.startswith("| ")]
    heading, _, *rest = rows
    return [row[0][2:] for row in rest], [name.removesuffix(" |") for name in heading[1:]]


def _halves(path: Path) -> tuple[str, str]:
    """The two parts of the page."""
    catalogue, _, matrix = path.read_text(encoding="utf-8").partition(MIDDLE)
    return catalogue, matrix


def names_in(path: Path) -> list[str]:
    """The cases that a table names."""
    rows = filter(None, map(ROW.match, _halves(path)[0].splitlines()))
    return [row[1] for row in rows if row[1] != "case"]


def _cell(text: str, longest: int) -> str:
    text = text if len(text) <= longest else f"{text[: longest - 3]}..."
    return text.replace("|", "\\|").replace("<", "\\<").replace("*", "\\*")
