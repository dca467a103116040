"""Coverage by folder, from what `coverage run` left: python tests/branch_coverage.py

Prints a table of lines and branches and ends with code 1 if fewer than `REQUIRED` of any folder's
branches are taken by the tests.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

FOLDERS = ("models", "utils", "faster-pytorch-fid")
REQUIRED = 0.90  # share of branches


def totals() -> dict[str, Counter[str]]:
    """Numbers of statements and branches, and how many of them are covered, by folder."""
    found = {folder: Counter[str]() for folder in FOLDERS}
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "coverage.json"
        subprocess.run([sys.executable, "-m", "coverage", "json", "-q", "-o", path], check=True)
        files = json.loads(path.read_text(encoding="utf-8"))["files"]
    for name, file in files.items():
        found[Path(name).parts[0]].update(
            {key: value for key, value in file["summary"].items() if isinstance(value, int)}
        )
    return found


def main() -> int:
    enough = True
    print("| folder | lines | branches |\n|---|---|---|")
    for folder, count in totals().items():
        lines = count["covered_lines"] / count["num_statements"]
        branches = count["covered_branches"] / count["num_branches"]
        enough &= branches >= REQUIRED
        print(f"| `{folder}` | {lines:.1%} | {branches:.1%} |")
    return 0 if enough else 1


if __name__ == "__main__":
    sys.exit(main())
