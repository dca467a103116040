"""Every case of the catalogue, and their numbers in docs/faults.md."""

from __future__ import annotations

import hashlib
import os
import resource
from pathlib import Path

import pytest
from fault_case import CANARY, REFUSED, Case
from fault_table import (
    TABLE,
    WRITE,
    Outcome,
    catalogue,
    counts_in,
    counts_of_catalogue,
    write_table,
)

from utils.io.images import load_rgb

LEFTOVERS = ("*.tmp", "*.part", "*.partial", "*.old")
FLOOD = 600 * 1024  # kB by which one command may raise the memory of this process
CASES = catalogue()

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    """What happened in each case."""
    return {}


def fingerprints(folder: Path) -> dict[Path, str]:
    """All files of a folder and their contents, links unresolved."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    small = [path for path in files if path.stat().st_size < 1 << 24]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in small}


def warning(case: Case, err: str) -> str:
    """The line on stderr that a correct result comes with."""
    if not case.says:
        return ""
    lines = [line.rpartition("\r")[2] for line in err.splitlines()]
    return next((line for line in lines if case.says in line), "")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[pytest.mark.long] if case.flags else [])
        for case in CASES
    ],
)
def test_a_bad_input(case: Case, workspace: Path, shell, outcomes, monkeypatch):
    case.make(workspace)
    if case.command.startswith("app.py") and not case.code:  # the page opens
        reason = "gradio is not installed: pip install '.[app]'"
        pytest.importorskip("gradio", reason=reason)  # here: it would meet the case's variables
    for name, value in {"INPUT_LIMITS": case.limits, **case.environment}.items():
        monkeypatch.setenv(name, value)
    before = fingerprints(workspace)
    before.pop(workspace / case.replaced, None)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = shell(case.command, case.flags)
    line = said.last if case.code else warning(case, said.err)
    line = line.replace(f"{workspace}/", "").replace(str(workspace), ".")
    outcomes[case.name] = Outcome(said.code, line)

    assert said.code == case.code, said
    assert "Traceback" not in said.err
    if case.code == REFUSED:
        assert "error: " in said.last
        assert sum("error: " in text for text in said.err.splitlines()) == 1
        assert said.last.isprintable()
    assert case.says in line
    after = fingerprints(workspace)
    assert {path: after.get(path) for path in before} == before, "a good file changed"
    assert not [p for pattern in LEFTOVERS for p in workspace.rglob(pattern)], "a part was left"
    assert not (workspace / CANARY).exists(), "a program in the input was run"
    for path in (after.keys() - before.keys()) & set(workspace.rglob("*.png")):
        load_rgb(path)  # whole
    assert len(list(workspace.glob("out/test_results/*.png"))) >= case.results
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    assert grown < FLOOD, f"memory grew by {grown >> 10} MiB"


def test_the_catalogue_is_large_and_its_names_are_unique():
    assert len({case.name for case in CASES}) == len(CASES) >= 80


def test_the_committed_table_counts_exactly_the_cases(outcomes):
    if os.environ.get(WRITE):
        write_table(TABLE, CASES, outcomes)
    assert counts_in(TABLE) == counts_of_catalogue()
