"""Help comes at once: no script imports PyTorch, nor what is heavier, before it has work to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from utils.io.images import FORMATS

ROOT = Path(__file__).parents[1]
OPTIONAL = {"optuna", "sqlalchemy", "matplotlib", "tensorboard", "pandas", "gradio", "torchvision"}
HEAVY = {"torch", "scipy", "sklearn", "skimage", *OPTIONAL}
SCRIPTS = sorted(path.name for path in ROOT.glob("*.py"))
SCRIPTS += ["faster-pytorch-fid/fid_score_gpu.py"]
HELP = """
import runpy, sys
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit:
    pass
"""
MARK = "loaded:"
STATE_MODULES = f"\nprint('{MARK}', *{{name.partition('.')[0] for name in sys.modules}})\n"


def loaded_after(*parts: str, arguments: tuple[str, ...] = ()) -> list[set[str]]:
    """Packages that are loaded after each part of the code."""
    command = [sys.executable, "-c", "".join(part + STATE_MODULES for part in parts), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    stated = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    return [set(line.split()) for line in stated]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_imports_nothing_heavy(script):
    (found,) = loaded_after(HELP, arguments=(script,))
    assert found & HEAVY == set()


def test_work_imports_only_what_it_computes_with():
    config = "from config.loading import load_config; config = load_config('config/cats64.yml')"
    shapes = "from utils.weights.description import network_shapes"
    read = "network_shapes(config.tokenizer); network_shapes(config.transformer)"
    repair, train = "import utils.inpainting.job", "import utils.training.tokenizer"
    reads, repairs, trains = loaded_after(
        f"import sys; {config}; {shapes}; {read}", repair, f"{train}, utils.training.transformer"
    )
    assert "torch" in reads
    assert "sympy" not in reads  # of the compiler
    assert repairs & (OPTIONAL | {"sklearn", "skimage"}) == set()
    assert trains & OPTIONAL == set()


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
def test_reading_a_picture_imports_no_format_that_is_not_read(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    Image.new("RGB", (2, 2)).save(path)
    read = "import sys, utils; from utils.io.images import load_rgb; load_rgb(sys.argv[1])"
    formats = f"{read}; from PIL import Image; print(*Image.OPEN); sys.exit()"
    command = [sys.executable, "-c", formats, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {*FORMATS, "DIB", "MPO"}
