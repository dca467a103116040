"""Read committed measurements: docs/results/ and bench/results/."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

from utils.io.files import read_rows

ROOT = Path(__file__).resolve().parents[1]
RESULTS, BENCHES = ROOT / "docs" / "results", ROOT / "bench" / "results"

Record = dict[str, Any]


def records(name: str) -> list[Record]:
    """All measurements of a benchmark, the newest last; none if it was never run."""
    return read_rows(BENCHES / f"{name}.jsonl")


def latest(name: str) -> list[Record]:
    """The last measurement of a benchmark on each machine, the newest last.

    One without a dtype is superseded by any later one of the same processor.
    """
    found: dict[str, Record] = {}
    for record in records(name):
        found.pop(machine(record), None)
        found.pop(processor(record), None)
        found[machine(record)] = record
    return list(found.values())


def recent(name: str, days: int) -> list[Record]:
    """Measurements of the machines in `latest`, of each one's newest day and the days before it."""
    newest = {machine(record): day(record) for record in latest(name)}
    found = [record for record in records(name) if machine(record) in newest]
    return [record for record in found if (newest[machine(record)] - day(record)).days < days]


def day(record: Record) -> date:
    return date.fromisoformat(record["date"][:10])


def latest_sizes(name: str) -> list[Record]:
    """`latest`, with the sizes that a machine's last run left out taken from its earlier runs."""
    found: dict[str, Record] = {}
    for record in records(name):
        sizes = found.setdefault(machine(record), {"result": {}, "details": {}})
        for part, by_size in sizes.items():
            by_size |= record[part]
    return [last | found[machine(last)] for last in latest(name)]


def machine(record: Record) -> str:
    """What the numbers were measured on; before 2026-11-28 only some records state the dtype."""
    dtype = record["machine"].get("dtype") or record["details"].get("dtype")
    is_known = dtype and not record["machine"]["gpus"]
    return processor(record) + (f", {dtype.removeprefix('torch.')}" if is_known else "")


def processor(record: Record) -> str:
    """The GPUs, or the CPU and its threads."""
    of = record["machine"]
    threads = "1 thread" if of["threads"] == 1 else f"{of['threads']} threads"
    return ", ".join(of["gpus"]) or f"{of['cpu']}, {threads}"
