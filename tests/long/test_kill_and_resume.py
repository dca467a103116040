"""Training that is killed at twenty random moments ends as training that was left in peace."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from config.loading import save_config
from config.schema import Config
from utils.io.files import read_rows
from utils.training.state import load_state

ROOT = Path(__file__).parents[2]
KILLS = 20
MOST_EPOCHS = 2  # that a killed process may finish, so that no run ends before its last kill
PATIENCE = 300  # seconds for one process
TIMES = ("time", "images_per_second", "mfu")

pytestmark = pytest.mark.long


@pytest.fixture
def config(weights, changed) -> Config:
    """Short epochs with a checkpoint each, and all that draws numbers or keeps a state."""
    return changed(
        weights,
        {
            "training.epochs": KILLS * (MOST_EPOCHS + 1) + 5,
            "training.accumulate": 2,
            "training.lr_schedule": "cosine",
            "training.warmup_steps": 20,
            "training.max_grad_norm": 1.0,
            "training.weight_decay": 0.05,
            "training.ema_half_life": 50.0,
            "training.pictures_every": 20,
            "transformer.dropout": 0.1,
            "masking.ratio_per": "sample",
            "masking.loss_on": "hidden",
        },
    )


def start(config: Config, file: Path) -> subprocess.Popen[bytes]:
    save_config(config, file)
    script = [ROOT / "training_transformer.py", "--config", file, "--resume", "auto"]
    return subprocess.Popen(
        [sys.executable, *map(str, script)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def epochs_done(config: Config) -> int:
    rows = read_rows(config.run / "transformer" / "log.jsonl")
    return rows[-1]["epoch"] if rows else 0


def wait(process: subprocess.Popen[bytes], reached: Callable[[], bool]) -> None:
    """Until a condition holds; the process must be alive by then."""
    until = time.monotonic() + PATIENCE
    while not reached():
        assert process.poll() is None, "ended before it was killed"
        assert time.monotonic() < until, "took too long"
        time.sleep(0.002)


def kill_at_a_random_moment(config: Config, file: Path, chance: random.Random) -> int:
    """Start, kill after up to two epochs and a bit; the epochs that were logged by then."""
    before, more = epochs_done(config), chance.randint(0, MOST_EPOCHS)
    process = start(config, file)
    wait(process, lambda: epochs_done(config) >= before + more)
    time.sleep(chance.uniform(0, 0.2 if more else 6))  # without an epoch: mostly while starting
    process.kill()
    process.wait()
    return epochs_done(config)


def test_twenty_kills_change_no_bit(config, changed, tmp_path, assert_same):
    section = config.tokenizer.model_copy(update={"weights": config.tokenizer_weights})
    whole = config.model_copy(update={"run": tmp_path / "whole", "tokenizer": section})
    assert start(whole, tmp_path / "whole.yml").wait(PATIENCE) == 0
    chance = random.Random()
    moments = [kill_at_a_random_moment(config, tmp_path / "c.yml", chance) for _ in range(KILLS)]
    assert moments[-1] < config.training.epochs
    assert len(set(moments)) > KILLS // 4, "the kills fell into different epochs"
    assert start(config, tmp_path / "c.yml").wait(PATIENCE) == 0
    folders = [c.run / "transformer" for c in (config, whole)]
    assert_same(*(load_state(folder / "state.pt") for folder in folders))
    for name in ("transformer.safetensors", "best.safetensors"):
        assert_same(*(load_file(folder / name) for folder in folders))
    logs = [read_rows(folder / "log.jsonl") for folder in folders]
    assert_same(*([{k: v for k, v in r.items() if k not in TIMES} for r in log] for log in logs))
    assert [row["epoch"] for row in logs[0]] == [*range(1, config.training.epochs + 1)]
