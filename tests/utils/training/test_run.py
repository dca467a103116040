"""What a run's folder holds, and how a log goes on after a run was cut short."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

import utils.training.transformer_step
from config.errors import StopRequested, UserError
from config.loading import load_config
from config.schema import Config
from utils.device import environment
from utils.io.files import read_rows
from utils.training.run import STATE, RunLog, run_alone
from utils.training.state import Position
from utils.training.transformer import train_transformer


def opened(folder: Path, config: Config, after_epoch: int = 0, device: str = "cpu") -> RunLog:
    """The log of a run that stands after an epoch."""
    place = Position(epoch=after_epoch)
    trainer = SimpleNamespace(config=config, device=torch.device(device), position=place)
    return RunLog(folder / "log", trainer)


def epochs(log: RunLog) -> list[int]:
    return [row["epoch"] for row in log.rows()]


def test_the_folder_says_with_what_the_run_was_made(tmp_path, config):
    opened(tmp_path, config).board.close()
    assert load_config(tmp_path / "log" / "config.yml") == config
    stated = json.loads((tmp_path / "log" / "environment.json").read_text())
    assert stated == environment(torch.device("cpu"))
    assert stated["torch"] == torch.__version__


def test_the_gpu_that_is_named_is_the_run_s_own(tmp_path, config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device="the current": f"at {device}")
    named = {}
    for device in ("cpu", "cuda", "cuda:2"):
        opened(tmp_path, config, device=device).board.close()
        stated = json.loads((tmp_path / "log" / "environment.json").read_text())
        named[device] = stated["gpu"]
    assert named == {"cpu": "none", "cuda": "at cuda", "cuda:2": "at cuda:2"}


def test_rows_come_back_as_they_were_written(tmp_path, config):
    log = opened(tmp_path, config)
    log.epoch(1, {"loss": 0.1 + 0.2, "psnr": 21.5})
    log.epoch(2, {"loss": 1e-30})
    log.board.close()
    rows = [{k: v for k, v in row.items() if k != "time"} for row in log.rows()]
    assert rows == [{"epoch": 1, "loss": 0.1 + 0.2, "psnr": 21.5}, {"epoch": 2, "loss": 1e-30}]


def test_epochs_after_the_checkpoint_are_dropped(tmp_path, config):
    log = opened(tmp_path, config)
    for epoch in (1, 2, 3):
        log.epoch(epoch, {"loss": 1.0})
    log.board.close()
    log = opened(tmp_path, config, after_epoch=2)
    assert epochs(log) == [1, 2]
    log.epoch(3, {"loss": 2.0})
    log.board.close()
    assert epochs(log) == [1, 2, 3]


def test_a_line_cut_off_by_a_crash_is_passed_over(tmp_path, config):
    log = opened(tmp_path, config)
    log.epoch(1, {"loss": 1.0})
    log.board.close()
    with log.path.open("a") as file:
        file.write('{"epoch": 2, "lo')
    assert epochs(log) == [1]
    log = opened(tmp_path, config, after_epoch=1)
    log.epoch(2, {"loss": 1.0})
    log.board.close()
    assert epochs(log) == [1, 2]


def test_a_missing_log_has_no_rows(tmp_path):
    assert read_rows(tmp_path / "log.jsonl") == []


def test_tensorboard_gets_the_same_numbers(tmp_path, config):
    log = opened(tmp_path, config)
    log.epoch(1, {"loss": 0.5})
    log.epoch(2, {"loss": 0.25})
    log.board.close()
    events = EventAccumulator(str(tmp_path / "log" / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("loss")] == [(1, 0.5), (2, 0.25)]


def test_a_picture_is_kept_by_its_epoch(tmp_path, config):
    log = opened(tmp_path, config)
    image = torch.randint(256, (4, 6, 3), dtype=torch.uint8)
    log.picture("sample", image, 7)
    log.board.close()
    found = Image.open(tmp_path / "log" / "samples" / "sample_0007.png")
    assert (np.asarray(found) == image.numpy()).all()


def test_files_that_a_killed_run_was_writing_are_removed_by_the_next(tmp_path):
    killed = tmp_path / ".state.pt.123-0123abcd.tmp"
    for path in (killed, tmp_path / ".notes.tmp"):
        path.touch()
    with run_alone(tmp_path, torch.device("cpu")):
        assert {path.name for path in tmp_path.iterdir()} == {".lock", ".notes.tmp"}


@pytest.mark.usefixtures("quick")
def test_tensorboard_is_closed_although_the_run_ends_early(weights, monkeypatch):
    def stop(_trainer: object) -> None:
        raise StopRequested

    closed: list[SummaryWriter] = []
    monkeypatch.setattr(SummaryWriter, "close", lambda board: closed.append(board))
    with pytest.raises(StopRequested):
        train_transformer(weights, resume=False, callback=stop)
    assert len(closed) == 1


@pytest.mark.usefixtures("quick")
def test_an_epoch_is_saved_although_its_curve_cannot_be_drawn(weights, monkeypatch):
    def fail(_path: Path, _rows: list[dict]) -> None:
        raise UserError("no room for a curve")

    monkeypatch.setattr(utils.training.transformer_step, "save_loss_curve", fail)
    with pytest.raises(UserError, match="no room"):
        train_transformer(weights, resume=False)
    assert (weights.run / "transformer" / STATE).exists()
