"""Read committed measurements: docs/results/ and bench/results/."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS, BENCHES = ROOT / "docs" / "results", ROOT / "bench" / "results"

Record = dict[str, Any]


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def latest(name: str) -> list[Record]:
    """The last full measurement of a benchmark on each machine; none if it was never run."""
    path, found = BENCHES / f"{name}.jsonl", {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        record = json.loads(line)
        if not record["details"].get("quick"):
            found.pop(machine(record), None)  # the newest last
            found[machine(record)] = record
    return list(found.values())


def machine(record: Record) -> str:
    """What the numbers were measured on."""
    of = record["machine"]
    threads = "1 thread" if of["threads"] == 1 else f"{of['threads']} threads"
    return ", ".join(of["gpus"]) or f"{of['cpu']}, {threads}"
