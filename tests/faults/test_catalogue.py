"""Every case of the catalogue, and their numbers in docs/faults.md."""

from __future__ import annotations

import hashlib
import os
import resource
from collections.abc import Iterable
from pathlib import Path
from stat import S_ISREG

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

LEFTOVERS = (".tmp", ".part", ".partial", ".old")
FLOOD = 600 * 1024  # kB by which one command may raise the memory of this process
CASES = catalogue()

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    """What happened in each case."""
    return {}


def fingerprints(paths: Iterable[Path]) -> dict[Path, str]:
    """The contents of files, links unresolved."""
    stats = ((path, path.lstat()) for path in paths)
    small = [path for path, stat in stats if S_ISREG(stat.st_mode) and stat.st_size < 1 << 24]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in small}


def warning(case: Case, err: str) -> str:
    """The line on stderr that a correct result comes with."""
    if not case.says:
        return ""
    lines = [line.rpartition("\r")[2] for line in err.splitlines()]
    return next((line for line in lines if case.says in line), "")


def param(case: Case) -> object:
    """A case, which is long where it starts a Python or has a sibling."""
    is_long = case.flags or case.sibling
    return pytest.param(case, id=case.name, marks=[pytest.mark.long] if is_long else [])


@pytest.mark.parametrize("case", [*map(param, CASES)])
def test_a_bad_input(case: Case, workspace: Path, shell, outcomes, monkeypatch):
    case.make(workspace)
    if case.command.startswith("app.py") and not case.code:  # the page opens
        reason = "gradio is not installed: pip install '.[app]'"
        pytest.importorskip("gradio", reason=reason)  # here: it would meet the case's variables
    for name, value in {"INPUT_LIMITS": case.limits, **case.environment}.items():
        monkeypatch.setenv(name, value)
    before = fingerprints(workspace.rglob("*"))
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
    found = list(workspace.rglob("*"))
    after = fingerprints(found)
    assert {path: after.get(path) for path in before} == before, "a good file changed"
    assert not [path for path in found if path.suffix in LEFTOVERS], "a part was left"
    assert not (workspace / CANARY).exists(), "a program in the input was run"
    for path in after.keys() - before.keys():
        if path.suffix == ".png":
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
