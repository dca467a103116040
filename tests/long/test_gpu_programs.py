"""The programs for a GPU run without one, so that they work when somebody has one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bench import gpu, report_run

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
    rng, tokens = np.random.default_rng(0), tmp_path / "tokens.npz"
    for split in ("train", "val"):
        (tmp_path / "data" / split).mkdir(parents=True)
        for index in range(20):
            picture = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            Image.fromarray(picture).save(tmp_path / "data" / split / f"{index}.png")
    monkeypatch.setattr("bench.common.RESULTS", tmp_path)
    monkeypatch.setattr(report_run, "EPOCHS", 1)
    monkeypatch.setattr(report_run, "BATCHES", {"10 x 2": (10, 2), "20 x 1": (20, 1)})
    report_run.write_tokens(tmp_path / "data", tokens)
    result = report_run.report_run(tokens, tmp_path, 1, "cpu")
    assert result["10 x 2"]["loss"] == pytest.approx(result["20 x 1"]["loss"], rel=0.1)
    assert (tmp_path / "report-10" / "transformer" / "transformer.safetensors").exists()
    assert json.loads((tmp_path / "report_run.jsonl").read_text())["result"] == result


@pytest.mark.long
def test_a_gpu_also_measures_training_in_other_precisions(tmp_path):
    command = [sys.executable, "-m", "bench.train", "--quick", "--variants", "--presets", "cats64"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    variants = json.loads(said.stdout.splitlines()[-1])["cats64"]["variants"]
    assert set(variants) == {"fp32", "tf32", "not compiled"}
    assert all(figures["images_per_second"] > 0 for figures in variants.values())
