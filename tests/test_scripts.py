"""Whole scripts in processes of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import cycle
from pathlib import Path

import numpy as np
import pytest

from config.loading import save_config
from utils.io.images import encode_png

ROOT = Path(__file__).parents[1]


def test_inpainting_repairs_a_folder_and_says_so(weights, tmp_path):
    for part, name in (("masked_image", "image"), ("mask64", "mask")):
        (tmp_path / "job" / part).mkdir(parents=True)
        for index in range(2):
            content = np.full((16, 16), 255, np.uint8)
            content[4:9, 4:9] = 0
            (tmp_path / "job" / part / f"{name}_{index}.png").write_bytes(encode_png(content))
    save_config(weights, tmp_path / "c.yml")
    flags = ["--mask-func", "square", "--total-iter", "4", "--sweet-spot", "3"]
    done = subprocess.run(
        [sys.executable, ROOT / "inpainting.py", "--config", "c.yml", "--data", "job", *flags],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("2 images repaired in ")
    assert "inpainting, listing square 3/4" in done.stderr
    names = {"image_000.png", "image_001.png", "manifest.json"}
    assert {path.name for path in (tmp_path / "test_results").iterdir()} == names
    decoding = json.loads((tmp_path / "test_results" / "manifest.json").read_text())["config"][
        "decoding"
    ]
    assert (decoding["mask_schedule"], decoding["sweet_spot"]) == ("square", 3)
    assert {path.name for path in (tmp_path / "imga").iterdir()} == {
        "final_test_0.png",
        "final_test_1.png",
    }


@pytest.mark.long
def test_every_script_explains_itself_without_docstrings():
    modules = ("utils.report", "utils.training.release", "utils.weights.import_lab")
    modules += ("utils.weights.export_lab",)
    programs = [path for folder in ("bench", "docs") for path in ROOT.glob(f"{folder}/*.py")]
    programs = [path for path in programs if "__doc__" in path.read_text(encoding="utf-8")]
    modules += tuple(f"{path.parent.name}.{path.stem}" for path in programs)
    scripts = [path.name for path in ROOT.glob("*.py")]
    program = (
        "import importlib, runpy, sys; sys.argv = ['script', '--help']\n"
        f"places = [runpy.run_path(name) for name in {scripts!r}]\n"
        f"places += [vars(importlib.import_module(name)) for name in {modules!r}]\n"
        "for place in places:\n"
        "    try: place['main']()\n"
        "    except SystemExit as left: assert not left.code\n"
    )
    said = subprocess.run(
        [sys.executable, "-OO", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.count("usage: script") == len(scripts) + len(modules)


def test_a_script_behind_a_link_imports_nothing_that_lies_next_to_the_link(tmp_path):
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils/__init__.py").touch()  # of the user's own project, as is fid.py
    (tmp_path / "fid.py").touch()
    scripts = (*ROOT.glob("*.py"), ROOT / "faster-pytorch-fid/fid_score_gpu.py")
    for place, flag in zip(scripts, cycle(["-B", "-I"]), strict=False):
        link = tmp_path / "script.py"
        link.symlink_to(place)
        said = subprocess.run(
            [sys.executable, flag, link, "--help"], capture_output=True, text=True, check=False
        )
        assert (said.returncode, said.stderr) == (0, ""), place
        link.unlink()
