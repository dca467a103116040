"""Run every command of the README's tours in a fresh clone: ``python -m docs.tours``.

Each must exit with code 0; times are written to docs/results/tours.json. The web demo, which runs
until stopped, is left out.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.common import ROOT, machine

LEFT_OUT = "pip install"  # and the web demo after it


def commands() -> dict[str, list[str]]:
    """Part of the README's tours -> its commands."""
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("-minute tours\n")[1]
    parts = re.split(r"^### (.*)$", section.split("\n## ")[0], flags=re.MULTILINE)
    names = ["preparation", *(name.removeprefix("A ") for name in parts[1::2])]
    named = dict(zip(names, parts[::2], strict=True))
    return {
        name: [command for command in commands_of(text) if not command.startswith(LEFT_OUT)]
        for name, text in named.items()
    }


def commands_of(text: str) -> list[str]:
    """All lines of a page's shell blocks."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.strip().splitlines()]


def main() -> None:
    seconds: dict[str, dict[str, float]] = {}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
        for name, lines in commands().items():
            for command in lines:
                print(f"+ {command}", flush=True)
                start = time.perf_counter()
                subprocess.run(command, shell=True, cwd=folder, env=environment, check=True)
                seconds.setdefault(name, {})[command] = round(time.perf_counter() - start, 1)
    found = json.dumps({"seconds": seconds, "machine": machine()}, indent=2)
    (ROOT / "docs" / "results" / "tours.json").write_text(found + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
