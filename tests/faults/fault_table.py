"""docs/faults.md: number of cases in each part of the catalogue, and faults during a run."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from fault_case import Case

TABLE = Path(__file__).parents[2] / "docs" / "faults.md"
WRITE = "FAULTS_TABLE"  # set by `make faults`
LONGEST = 120  # characters of a line that is shown
PARTS = {  # heading: module with its cases
    "Pictures and masks": "cases_images",
    "Configs": "cases_configs",
    "Checkpoints": "cases_checkpoints",
    "Archives, tables and statistics": "cases_archives",
    "Arguments": "cases_arguments",
    "Sweeps and grids": "cases_sweep",
    "Searches, reports, releases, imports": "cases_tools",
    "Environment, links and names": "cases_surroundings",
    "The web demo": "cases_page",
}
HEAD = """# How bad inputs are handled

Written by `make faults` from the catalogue in tests/faults; each case runs in a fresh folder with
tiny networks. Code 2 is a one-line refusal that leaves every file unchanged, code 0 a correct
result, with a note if part of the input was ignored. No case may show a traceback, hang, need
600 MiB more memory, leave a partial file, or run a program from the input.

{count} cases, {refused} refused, {repaired} done. Each is an entry of the linked file:
the fault, the command, and part of the expected line.

| part | cases | refused | done | for example |
|---|---|---|---|---|
"""
MIDDLE = """
## Faults during a run
Each script is paused at the third iteration of its inner loop, the fault happens, and the script
continues. Then the same command runs again, with `--resume` where it exists; "the same" means that
its results are byte-identical to those of an undisturbed run (except dates and timings).

"""
LEGEND = """
Code 2 is a one-line refusal, code 130 a clean stop. Half files are training states and token
caches, studies, results, certificates and statistics. Any number of processes may
share a search. {count} cells, {empty} of them cannot happen.
"""
ROW = re.compile(r"^\| \[(.*?)\]\(\.\./tests/faults/\w+\.py\) \| (\d+) \| ", re.MULTILINE)

Cells = dict[tuple[str, str], str]  # fault, script: what happened


class Outcome(NamedTuple):
    """Exit code and last line of a command."""

    code: int
    line: str


def catalogue() -> list[Case]:
    """All cases in the order of the table."""
    return [case for module in PARTS.values() for case in import_module(module).CASES]


def write_table(path: Path, cases: list[Case], outcomes: dict[str, Outcome]) -> None:
    """Rewrite the catalogue's part; every case must have run, including the web demo's."""
    assert not (missing := [case.name for case in cases if case.name not in outcomes]), missing
    refused = sum(outcome.code == 2 for outcome in outcomes.values())
    text = HEAD.format(count=len(cases), refused=refused, repaired=len(cases) - refused)
    for heading, module in PARTS.items():
        text += _row(heading, module, [outcomes[c.name] for c in import_module(module).CASES])
    path.write_text(text + MIDDLE + _halves(path)[1], encoding="utf-8")


def _row(heading: str, module: str, outcomes: list[Outcome]) -> str:
    """A part's row of the table: its counts and its first refusal."""
    lines = [outcome.line for outcome in outcomes if outcome.code == 2]
    part = f"[{heading}](../tests/faults/{module}.py)"
    counts = (len(outcomes), len(lines), len(outcomes) - len(lines))
    return f"| {' | '.join([part, *map(str, counts), _cell(lines[0], LONGEST)])} |\n"


def write_matrix(path: Path, faults: list[str], scripts: list[str], cells: Cells) -> None:
    """Rewrite the part about faults during a run; every cell must have run."""
    rows = [["fault", *scripts], ["---"] * (1 + len(scripts))]
    rows += [[fault, *(cells[fault, script] for script in scripts)] for fault in faults]
    table = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    empty = sum(text.startswith("cannot") for text in cells.values())
    text = table + LEGEND.format(count=len(cells), empty=empty)
    path.write_text(_halves(path)[0] + MIDDLE + text, encoding="utf-8")


def cells_in(path: Path) -> tuple[list[str], list[str]]:
    """The faults and scripts of the matrix."""
    rows = [line.split(" | ") for line in _halves(path)[1].splitlines() if line.startswith("| ")]
    heading, _, *rest = rows
    return [row[0][2:] for row in rest], [name.removesuffix(" |") for name in heading[1:]]


def _halves(path: Path) -> tuple[str, str]:
    """The two parts of the page."""
    catalogue, _, matrix = path.read_text(encoding="utf-8").partition(MIDDLE)
    return catalogue, matrix


def counts_in(path: Path) -> dict[str, int]:
    """Number of cases by part, from a page."""
    return {heading: int(count) for heading, count in ROW.findall(_halves(path)[0])}


def counts_of_catalogue() -> dict[str, int]:
    """Number of cases by part, from the catalogue."""
    return {heading: len(import_module(module).CASES) for heading, module in PARTS.items()}


def _cell(text: str, longest: int) -> str:
    text = text if len(text) <= longest else f"{text[: longest - 3]}..."
    return text.replace("|", "\\|").replace("<", "\\<").replace("*", "\\*")
