"""The programs for a GPU run without one, so that they work when somebody has one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bench import gpu, report_run
from bench.report_run import report_run as train_both

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


@pytest.mark.long
def test_the_reports_training_runs_from_a_file_of_tokens(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    tokens = {name: rng.integers(0, 1024, (20, 2, 256), np.uint16) for name in ("train", "val")}
    codes = rng.normal(size=(1024, 32)).astype(np.float32)
    np.savez(tmp_path / "tokens.npz", **tokens, codes=codes, sha256="theirs")
    monkeypatch.setattr("bench.common.RESULTS", tmp_path)
    monkeypatch.setattr(report_run, "BATCHES", {"10 x 2": (10, 2), "20 x 1": (20, 1)})
    result = train_both(tmp_path / "tokens.npz", tmp_path, 1, torch.device("cpu"))
    assert result["10 x 2"]["loss"] == pytest.approx(result["20 x 1"]["loss"], rel=0.1)
    assert (tmp_path / "10" / "transformer" / "transformer.safetensors").exists()
