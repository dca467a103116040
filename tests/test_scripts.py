"""Whole scripts in processes of their own: killed, stopped and resumed runs, and a repair."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

import utils.training.tokenizer_step
from config.loading import save_config
from config.schema import Config
from utils.io.files import read_rows
from utils.io.images import encode_png
from utils.training.state import load_state
from utils.training.tokenizer import train_tokenizer
from utils.training.transformer import train_transformer

ROOT = Path(__file__).parents[1]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}  # as here: sums are rounded by their order
PATIENCE = 120  # seconds for a script to reach its first checkpoint on a busy machine
LONG = 400  # epochs, more than a script trains before the signal comes


def start(script: str, config: Config, *arguments: str | Path) -> subprocess.Popen:
    path = config.data.root.parent / f"{config.run.name}.yml"
    save_config(config, path)
    command = [sys.executable, script, "--config", path, *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=ONE_THREAD, stderr=subprocess.PIPE, text=True)


def signalled(process: subprocess.Popen, state: Path, number: int) -> tuple[int, str]:
    """Send a signal once there is a checkpoint; the exit code and the last line on stderr."""
    deadline = time.monotonic() + PATIENCE
    while not state.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(number)
    said = process.communicate(timeout=PATIENCE)[1]
    return process.returncode, said.splitlines()[-1]


def finish(train, config: Config, stage: str, changed, state: dict) -> Config:
    """Resume in this process until two epochs after the checkpoint; returns the config."""
    key = "tokenizer.training.epochs" if stage == "tokenizer" else "training.epochs"
    config = changed(config, {key: state["position"]["epoch"] + 2})
    train(config, resume=True, allow_config_change=True)
    return config


def log_of(folder: Path) -> list[dict]:
    """The rows of a log without what tells of time."""
    timing = {"time": None, "images_per_second": None, "mfu": None}
    return [{**row, **timing} for row in read_rows(folder / "log.jsonl")]


@pytest.mark.usefixtures("quick")
def test_stage_2_killed_and_resumed_is_the_run_that_was_never_killed(weights, changed, assert_same):
    config = changed(weights, {"training.epochs": LONG, "transformer.dropout": 0.1})
    folder = config.run / "transformer"
    process = start("training_transformer.py", config)
    code, _ = signalled(process, folder / "state.pt", signal.SIGKILL)
    assert code == -signal.SIGKILL
    finished = finish(
        train_transformer, config, "transformer", changed, load_state(folder / "state.pt")
    )
    values = {"run": config.run / "whole", "tokenizer.weights": config.tokenizer_weights}
    whole = changed(finished, values)
    train_transformer(whole, resume=False)
    assert_same(*(load_state(c.run / "transformer" / "state.pt") for c in (finished, whole)))
    assert log_of(folder) == log_of(whole.run / "transformer")


def test_stage_1_stopped_and_resumed_is_the_run_that_was_never_stopped(
    config, changed, assert_same, monkeypatch
):
    monkeypatch.setattr(utils.training.tokenizer_step, "save_curves", lambda path, rows: None)
    settings = {"epochs": LONG, "validation_images": 2, "ema_half_life": 10.0}
    settings |= {"lr_schedule": "constant", "restart_until": 1.0}  # the rest depends on epochs
    config = changed(config, {f"tokenizer.training.{k}": v for k, v in settings.items()})
    folder = config.run / "tokenizer"
    process = start("training_vqgan.py", config)
    code, said = signalled(process, folder / "state.pt", signal.SIGTERM)
    assert code == 130
    assert said.startswith("stopped in epoch ")
    assert said.endswith("saved; continue with --resume")
    finished = finish(
        train_tokenizer, config, "tokenizer", changed, load_state(folder / "state.pt")
    )
    whole = changed(finished, {"run": config.run / "whole"})
    path = train_tokenizer(whole, resume=False)
    assert_same(*(load_state(c.run / "tokenizer" / "state.pt") for c in (finished, whole)))
    assert_same(load_file(folder / path.name), load_file(path))
    assert log_of(folder) == log_of(path.parent)


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


@pytest.mark.parametrize("flag", ["-B", "-I"])
def test_a_script_behind_a_link_imports_nothing_that_lies_next_to_the_link(tmp_path, flag):
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils/__init__.py").touch()  # of the user's own project, as is fid.py
    (tmp_path / "fid.py").touch()
    for place in (*ROOT.glob("*.py"), ROOT / "faster-pytorch-fid/fid_score_gpu.py"):
        link = tmp_path / "script.py"
        link.symlink_to(place)
        said = subprocess.run(
            [sys.executable, flag, link, "--help"], capture_output=True, text=True, check=False
        )
        assert (said.returncode, said.stderr) == (0, ""), place
        link.unlink()
