"""Whether everything works on a GPU, and how fast: one command, ten minutes, no network.

    python -m bench.gpu [--minutes 8] [--out runs/gpu] [--device cpu]
    python -m bench.gpu --report-run --tokens FILE [--epochs 200]

The first runs the tests marked `cuda`, then the benchmarks of training, repairing, the tokenizer
and the scorer, each as far as the time allows, and writes gpu.json and gpu.md. It needs no images.
With `--device cpu` the same programs run in their short form, to see that they work; such figures
say nothing of a GPU. The second trains the report's transformer (bench/report_run.py).
Last line: one JSON object, {"device", "tests", "train", "repair", "tokenizer", "scorer"}.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench.common import machine
from bench.report_run import EPOCHS, report_run, write_tokens

ROOT = Path(__file__).resolve().parents[1]


class Part(NamedTuple):
    """One thing to find out, by a module of ours whose last line is JSON."""

    what: str
    module: str
    on_gpu: tuple[str, ...]
    minutes: float  # on an H100, roughly


PARTS = {
    "train": Part("training, plain loop against ours", "bench.train", ("--seconds", "8"), 2.5),
    "repair": Part("repairing, plain loop against ours", "bench.inpaint", ("--no-growth",), 1.5),
    "tokenizer": Part("encoding and decoding", "bench.tokenizer", ("--quick",), 0.5),
    "scorer": Part("scoring against pytorch-fid", "bench.fid", ("--quick", "--count", "747"), 1),
}
TEST_MINUTES = 2.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=8, help="begin nothing after so long")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of the pages")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--report-run", action="store_true", help="train the report's transformer")
    parser.add_argument("--tokens", type=Path, help="file of tokens for --report-run")
    parser.add_argument("--write-tokens", type=Path, metavar="DATA", help="make that file of DATA")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of --report-run")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA GPU here; --device cpu tries the programs without one")
    if (args.report_run or args.write_tokens) and not args.tokens:
        parser.error("--tokens FILE names the file of tokens")
    if args.write_tokens:
        write_tokens(args.write_tokens, args.tokens)
    elif args.report_run:
        print(json.dumps(report_run(args.tokens, args.out, args.epochs, torch.device(args.device))))
    else:
        examine(args.device, args.minutes, args.out)


def examine(device: str, minutes: float, out: Path) -> None:
    """Run all parts, write both pages, print the result."""
    out.mkdir(parents=True, exist_ok=True)
    total = TEST_MINUTES + sum(part.minutes for part in PARTS.values())
    print(f"On {device_name(device)}: the tests marked cuda, then", flush=True)
    print(*(f"  {name}: {part.what}" for name, part in PARTS.items()), sep="\n")
    print(f"About {total:g} minutes on an H100; nothing begins after {minutes:g}.", flush=True)
    end = time.monotonic() + 60 * minutes
    result: dict[str, Any] = {"device": device_name(device), "tests": tested(device)}
    for name, part in PARTS.items():
        result[name] = measured(part, device) if time.monotonic() < end else "time was up"
        print(f"{name}: {result[name]}", flush=True)
    record = {"result": result, "driver": driver(), "machine": machine()}
    (out / "gpu.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (out / "gpu.md").write_text(page(record), encoding="utf-8")
    print(f"wrote {out / 'gpu.json'} and {out / 'gpu.md'}")
    print(json.dumps(result))


def tested(device: str) -> dict[str, int]:
    """How many tests of the mark cuda passed, failed and were skipped; what failed is printed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-m", "cuda", "tests/utils/test_cuda.py"]
        subprocess.run(
            [*command, "--tb=short", f"--junitxml={report}"],
            cwd=ROOT,
            env={**os.environ, "CUDA_TESTS_DEVICE": device},
            check=False,
        )
        if not report.exists():
            return {"passed": 0, "failed": 1, "skipped": 0}
        suite = ET.parse(report).getroot().find("testsuite")
    counts = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    failed = counts["failures"] + counts["errors"]
    passed = counts["tests"] - failed - counts["skipped"]
    return {"passed": passed, "failed": failed, "skipped": counts["skipped"]}


def measured(part: Part, device: str) -> Any:
    """The last line of a benchmark, or how it ended."""
    flags = part.on_gpu if device == "cuda" else ("--quick",)
    said = subprocess.run(
        [sys.executable, "-m", part.module, *flags],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if said.returncode:
        return f"ended with code {said.returncode}"
    return json.loads(said.stdout.strip().splitlines()[-1])


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


def driver() -> str | None:
    """The version of NVIDIA's driver; None where there is none."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.strip().splitlines()[0]


def page(record: dict[str, Any]) -> str:
    """The result as Markdown: one table of tests, one of figures."""
    result, about = record["result"], record["machine"]
    tests = result["tests"]
    lines = [
        f"# {result['device']}",
        "",
        f"Driver {record['driver'] or 'none'}, torch {about['torch']}, Python {about['python']}. "
        f"Tests: {tests['passed']} passed, {tests['failed']} failed, {tests['skipped']} skipped.",
        "",
        "| part | figure | value |",
        "|---|---|---|",
    ]
    for name in PARTS:
        found = result[name] if isinstance(result[name], dict) else {"": result[name]}
        lines += [f"| {name} | {key} | {value} |" for key, value in flat(found).items()]
    return "\n".join(lines) + "\n"


def flat(tree: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Nested figures under names with spaces: {"lab": {"mfu": 1}} -> {"lab mfu": 1}."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{above} {key}".strip()
        found |= flat(value, name) if isinstance(value, dict) else {name: value}
    return found


if __name__ == "__main__":
    main()
