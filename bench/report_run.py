"""The report's own training of the transformer, from a file of tokens: time and loss by epoch.

Dim 768, 15 layers, 200 epochs of 7,668 images, in batches of 10 x 10 as in the report and then of
100, with equally many optimiser steps. Estimate for an H100: ten minutes, for 1.5 million images of
120 GFLOP each.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench import common
from utils.io.files import read_rows
from utils.training.token_batches import Tokens
from utils.training.token_cache import cached_tokens
from utils.training.transformer import train_transformer
from utils.weights.store import codes_fingerprint, load_tokenizer

EPOCHS = 200
BATCHES = {"10 x 10": (10, 10), "100 x 1": (100, 1)}  # batch size, batches per step


def write_tokens(data: Path, file: Path) -> None:
    """Tokens of prepared images by the released tokenizer, with its codes, in one .npz file."""
    config = common.preset("cats64", [("data.root", str(data))])
    vqgan = load_tokenizer(common.RELEASED / "vqgan.safetensors", config.tokenizer)
    cache, cpu = config.data.token_cache, torch.device("cpu")
    splits = {
        split: cached_tokens(vqgan, config.data, split, cache, cpu)[:, :2]
        for split in ("train", "val")
    }
    sha256 = codes_fingerprint(vqgan.codebook.embedding.weight)
    np.savez(file, **splits, codes=vqgan.codebook.vectors().cpu().numpy(), sha256=sha256)


def report_run(file: Path, out: Path, epochs: int, device: torch.device) -> dict[str, Any]:
    """Train with both batches, each a run below ``out``, and append a line to bench/results."""
    found = np.load(file)
    codes, sha256 = torch.from_numpy(found["codes"]), str(found["sha256"])
    tokens = Tokens(found["train"], found["val"], codes, sha256)
    result, losses = {}, {}
    for name, (batch_size, accumulate) in BATCHES.items():
        overrides = {
            "run": out / str(batch_size),
            "device": str(device),
            "precision": "auto",
            "training.epochs": epochs,
            "training.validate_every": epochs,
            "training.checkpoint_every": epochs,
            "training.pictures_every": 0,
            "training.batch_size": batch_size,
            "training.accumulate": accumulate,
            "training.compile": device.type == "cuda",
        }
        config, began = common.preset("lab", list(overrides.items())), time.perf_counter()
        train_transformer(config, resume=False, restart=True, tokens=tokens)
        rows = read_rows(config.run / "transformer" / "log.jsonl")
        losses[name] = [row["train_loss"] for row in rows]
        result[name] = {
            "minutes": (time.perf_counter() - began) / 60,
            "images_per_second": rows[-1]["images_per_second"],
            "share_of_peak": rows[-1].get("mfu"),
            "loss": losses[name][-1],
        }
    common.report("report_run", result, {"losses": losses, "epochs": epochs})
    return result
