"""The program for a GPU runs without one, so that it works when somebody has one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench import gpu

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_one_command_tests_measures_and_writes_two_pages(tmp_path):
    command = [sys.executable, "-m", "bench.gpu", "--device", "cpu", "--minutes", "0"]
    said = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr
    result = json.loads(said.stdout.splitlines()[-1])
    assert result["tests"]["failed"] == 0
    assert result["tests"]["passed"] >= 15
    assert {result[name] for name in gpu.PARTS} == {"time was up"}
    assert json.loads((tmp_path / "gpu.json").read_text())["result"] == result
    assert "| train |  | time was up |" in (tmp_path / "gpu.md").read_text()
