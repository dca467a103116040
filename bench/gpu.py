"""Tests and benchmarks on a GPU: one command, ten minutes, no network.

    python -m bench.gpu [--minutes 8] [--out runs/gpu] [--device cpu]
    python -m bench.gpu --report-run --tokens FILE [--epochs 200]

The first runs the tests marked `cuda`, then the benchmarks of training, repairing, the tokenizer
and the scorer, as far as time allows, and writes gpu.json and gpu.md. It needs no images.
`--device cpu` checks the same programs in their short form; its figures say nothing about a GPU.
The second trains the report's transformer on tokens that `--write-tokens` has made.
Last line: one JSON object, {"device", "tests", "train", "repair", "tokenizer", "scorer"}.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from bench.common import ROOT, machine
from bench.report_run import EPOCHS, report_run, write_tokens
from utils.cli import first_line
from utils.io.tables import markdown_table

PARTS = {  # benchmark, minutes on an H100, roughly
    "train": ("bench.train", 4.5),
    "repair": ("bench.inpaint", 1.5),
    "tokenizer": ("bench.tokenizer", 1.5),
    "scorer": ("bench.fid", 3.0),
}
TEST_MINUTES = 2.5


def main() -> None:
    parser = argparse.ArgumentParser(description=first_line(__doc__))
    parser.add_argument("--minutes", type=float, default=8, help="start no part after this time")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="output folder")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--report-run", action="store_true", help="train the report's transformer")
    parser.add_argument("--tokens", type=Path, help="tokens for --report-run, a file .npz")
    parser.add_argument("--write-tokens", type=Path, metavar="DATA", help="make them from DATA")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of --report-run")
    args = parser.parse_args()
    if (args.report_run or args.write_tokens) and not args.tokens:
        parser.error("--report-run and --write-tokens need --tokens FILE")
    if args.write_tokens:
        write_tokens(args.write_tokens, args.tokens)
        return
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA GPU here; --device cpu tries the programs without one")
    if args.report_run:
        report_run(args.tokens, args.out, args.epochs, args.device)
    else:
        examine(args.device, args.minutes, args.out)


def examine(device: str, minutes: float, out: Path) -> None:
    """Run all parts, write both files, print the result."""
    out.mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    total = TEST_MINUTES + sum(minutes for _, minutes in PARTS.values())
    print(f"On {name}: the tests marked cuda, then", flush=True)
    print(*(f"  {key}: python -m {module}" for key, (module, _) in PARTS.items()), sep="\n")
    print(f"About {total:g} minutes on an H100; nothing begins after {minutes:g}.", flush=True)
    end = time.monotonic() + 60 * minutes
    result: dict[str, Any] = {"device": name, "tests": tested(device)}
    for key, (module, _) in PARTS.items():
        is_time = time.monotonic() < end
        result[key] = measured(module, device) if is_time else "time was up"
        print(f"{key}: {result[key]}", flush=True)
    record = {"result": result, "driver": driver(), "machine": machine()}
    (out / "gpu.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (out / "gpu.md").write_text(page(record), encoding="utf-8")
    print(f"wrote {out / 'gpu.json'} and {out / 'gpu.md'}")
    print(json.dumps(result))


def tested(device: str) -> dict[str, int]:
    """Run the tests marked cuda and print their output; how many passed, failed, were skipped."""
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "tests/utils/test_cuda.py"]
    environment = os.environ | {"CUDA_TESTS_DEVICE": device}
    pipe = {"stdout": subprocess.PIPE, "text": True}
    said = subprocess.run([*command, "--tb=short"], cwd=ROOT, env=environment, check=False, **pipe)
    print(said.stdout)
    counts = re.findall(r"(\d+) (passed|failed|error|skipped)", said.stdout[-100:])
    found = Counter({how: int(count) for count, how in counts})
    failed = found["failed"] + found["error"] or int(not counts)
    return {"passed": found["passed"], "failed": failed, "skipped": found["skipped"]}


def measured(module: str, device: str) -> Any:
    """The result of a benchmark, or its exit code as text."""
    flags = () if device == "cuda" else ("--quick",)
    command = [sys.executable, "-m", module, *flags]
    said = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if said.returncode:
        return f"ended with code {said.returncode}"
    return json.loads(said.stdout.strip().splitlines()[-1])


def driver() -> str | None:
    """The version of NVIDIA's driver; None without one."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.strip().splitlines()[0]


def page(record: dict[str, Any]) -> str:
    """The result as Markdown: a line about the machine and the tests, a table of figures."""
    result, about = record["result"], record["machine"]
    tests = ", ".join(f"{count} {how}" for how, count in result["tests"].items())
    rows = [[name, key, str(v)] for name in PARTS for key, v in flat(result[name]).items()]
    return (
        f"# {result['device']}\n\nDriver {record['driver'] or 'none'}, torch {about['torch']}, "
        f"Python {about['python']}. Tests: {tests}.\n\n"
        f"{markdown_table(['part', 'figure', 'value'], rows)}\n"
    )


def flat(figures: Any, name: str = "") -> dict[str, Any]:
    """Nested figures under names with spaces: {"lab": {"mfu": 1}} -> {"lab mfu": 1}."""
    if not isinstance(figures, dict):
        return {name: figures}
    parts = (flat(value, f"{name} {key}".strip()) for key, value in figures.items())
    return {key: value for part in parts for key, value in part.items()}


if __name__ == "__main__":
    main()
