"""Training starts without the packages that only a search, a plot or an open log needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("optuna", "sqlalchemy", "matplotlib", "tensorboard")


@pytest.mark.parametrize("script", ["training_transformer", "training_vqgan"])
def test_importing_a_training_script_loads_none_of_the_heavy_packages(script):
    code = f"import sys, {script}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "torch" in run.stdout.split()
    assert set(run.stdout.split()) & set(HEAVY) == set()
