"""The folder of a run: its config, environment, numbers by epoch and curves."""

from __future__ import annotations

import json
import time
from pathlib import Path

import torch
from torch import Tensor

from config.loading import save_config
from config.schema import Config
from utils.device import environment
from utils.io.files import atomic, make_folder, read_rows, write_text
from utils.io.images import save_png


class RunLog:
    """Writes what a stage has to say into its folder: log.jsonl, TensorBoard, pictures."""

    def __init__(
        self, folder: Path, config: Config, device: torch.device, after_epoch: int
    ) -> None:
        """Continue the log after an epoch; later lines, from a run cut short, are dropped."""
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        make_folder(folder)
        with atomic(folder / "config.yml") as temporary:
            save_config(config, temporary)
        stated = environment(device)
        write_text(folder / "environment.json", json.dumps(stated, indent=1) + "\n")
        self.folder = folder
        self.path = folder / "log.jsonl"
        kept = [row for row in self.rows() if row["epoch"] <= after_epoch]
        write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        self.board = SummaryWriter(folder / "tensorboard", purge_step=after_epoch + 1)

    def rows(self) -> list[dict]:
        """All rows so far, one an epoch; a line cut off by a crash is left out."""
        return [row for row in read_rows(self.path) if isinstance(row.get("epoch"), int)]

    def epoch(self, epoch: int, numbers: dict[str, float]) -> None:
        """Add the numbers of an epoch, counted from 1."""
        row = {"epoch": epoch, "time": round(time.time(), 1), **numbers}
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in numbers.items():
            self.board.add_scalar(name, value, epoch)

    def picture(self, name: str, image: Tensor, epoch: int) -> None:
        """Keep an image (H, W, 3) uint8 in samples/ and show it in TensorBoard."""
        save_png(self.folder / "samples" / f"{name}_{epoch:04d}.png", image.numpy())
        self.board.add_image(name, image, epoch, dataformats="HWC")

    def close(self) -> None:
        self.board.close()
