"""The report's own training of stage 2, from a file of tokens: time, speed and loss by epoch.

Dim 768, 15 layers, 200 epochs of 7,668 images, in batches of 10 with a step every 10 batches as in
the report, then in batches of 100. An H100 needs about ten minutes for each by arithmetic:
1.5 million images of 120 GFLOP at 400 TFLOP/s. Started by bench.gpu.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import common
from utils.data.augment import PLAIN_VIEWS
from utils.io.files import read_rows
from utils.training.token_batches import Tokens
from utils.training.transformer import load_tokens, train_transformer

EPOCHS = 200
BATCHES = {"10 x 10": (10, 10), "100 x 1": (100, 1)}  # batch size, batches per step


def write_tokens(data: Path, file: Path) -> None:
    """Tokens of prepared images by the released tokenizer, with its codes, in one .npz file."""
    overrides = {
        "data.root": str(data),
        "data.views": PLAIN_VIEWS,
        "tokenizer.weights": str(common.RELEASED / "vqgan.safetensors"),
    }
    tokens = load_tokens(common.preset("lab", list(overrides.items())), torch.device("cpu"))
    codes = tokens.codes.numpy()
    np.savez(file, train=tokens.train, val=tokens.val, codes=codes, sha256=tokens.codes_sha256)


def report_run(file: Path, out: Path, epochs: int, device: str) -> dict[str, Any]:
    """Train with both batches, each a run below ``out``; append it unless epochs are left out."""
    with np.load(file) as found:
        codes, sha256 = torch.from_numpy(found["codes"]), str(found["sha256"])
        tokens = Tokens(found["train"], found["val"], codes, sha256)
    result, losses = {}, {}
    for name, (batch_size, accumulate) in BATCHES.items():
        overrides = {
            "run": out / f"report-{batch_size}",
            "device": device,
            "precision": "auto",
            "transformer.attention": "fused",
            "training.epochs": epochs,
            "training.validate_every": epochs,
            "training.checkpoint_every": epochs,
            "training.pictures_every": 0,
            "training.batch_size": batch_size,
            "training.accumulate": accumulate,
            "training.compile": device == "cuda",
        }
        config, began = common.preset("lab", list(overrides.items())), time.perf_counter()
        train_transformer(config, resume=False, restart=True, tokens=tokens)
        rows = read_rows(config.run / "transformer" / "log.jsonl")
        losses[name] = [row["train_loss"] for row in rows]
        result[name] = {
            "minutes": (time.perf_counter() - began) / 60,
            "images_per_second": rows[-1]["images_per_second"],
            "mfu": rows[-1].get("mfu"),
            "loss": losses[name][-1],
        }
    common.report("report_run", result, {"losses": losses}, quick=epochs < EPOCHS)
    return result
