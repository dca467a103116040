"""The report's own training of the transformer, from a file of tokens: time and loss by epoch.

Dim 768, 15 layers, 200 epochs of 7,668 images, in batches of 10 x 10 as in the report and then in
one batch of 100, which makes the same optimiser steps. By arithmetic an H100 needs about ten
minutes: 1.5 million images, 120 GFLOP each.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.common import RELEASED, ROOT, report
from config.loading import load_config
from config.schema import Config
from utils.device import Compute
from utils.training.throughput import matmul_peak, training_flops
from utils.training.token_batches import Tokens
from utils.training.token_cache import cached_tokens
from utils.training.transformer_step import TransformerTrainer
from utils.weights.store import codes_fingerprint, load_tokenizer, save_weights

EPOCHS = 200
BATCHES = {"10 x 10": (10, 10), "100 x 1": (100, 1)}  # images of a batch, batches of a step


def write_tokens(data: Path, file: Path) -> None:
    """Tokens of prepared images by the released tokenizer, with its codes, in one .npz file."""
    config = load_config(ROOT / "config" / "cats64.yml", [("data.root", str(data))])
    vqgan = load_tokenizer(RELEASED / "vqgan.safetensors", config.tokenizer)
    cache, cpu = config.data.token_cache, torch.device("cpu")
    splits = {
        split: cached_tokens(vqgan, config.data, split, cache, cpu)[:, :2]
        for split in ("train", "val")
    }
    sha256 = codes_fingerprint(vqgan.codebook.embedding.weight)
    np.savez(file, **splits, codes=vqgan.codebook.vectors().cpu().numpy(), sha256=sha256)


def report_run(file: Path, out: Path, epochs: int, device: torch.device) -> dict[str, Any]:
    """Train in both batches, save the weights to ``out``, append a line to bench/results."""
    found = np.load(file)
    codes, sha256 = torch.from_numpy(found["codes"]), str(found["sha256"])
    tokens = Tokens(found["train"], found["val"], codes, sha256)
    result, details = {}, {}
    for name, (batch_size, accumulate) in BATCHES.items():
        overrides = {
            "device": str(device),
            "precision": "auto",
            "training.epochs": epochs,
            "training.batch_size": batch_size,
            "training.accumulate": accumulate,
            "training.compile": device.type == "cuda",
        }
        config = load_config(ROOT / "config" / "MaskGit.yml", list(overrides.items()))
        result[name], details[name] = train(config, tokens, out / f"{batch_size}.safetensors")
    report("report_run", result, {"losses": details, "epochs": epochs})
    return result


def train(config: Config, tokens: Tokens, path: Path) -> tuple[dict[str, float], list[float]]:
    """One training: its figures and the mean loss of each epoch."""
    torch.manual_seed(config.seed)
    trainer = TransformerTrainer(config, tokens, Compute.of(config))
    count, losses = len(tokens.train), []
    began = time.perf_counter()
    for epoch in range(config.training.epochs):
        for batch in trainer.batches():
            trainer.step(batch)
        losses.append(trainer.means()["loss"])
        trainer.position.next_epoch()
        print(f"epoch {epoch + 1}: loss {losses[-1]:.4f}", flush=True)
    seconds = time.perf_counter() - began
    rate = count * config.training.epochs / seconds
    reached = training_flops(config.transformer) * rate
    peak = max(reached, matmul_peak(trainer.device, trainer.dtype))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(path, trainer.transformer.state_dict(), config.transformer, {})
    figures = {
        "minutes": seconds / 60,
        "images_per_second": rate,
        "share_of_peak": reached / peak,
        "loss": losses[-1],
    }
    return figures, losses


if __name__ == "__main__":
    raise SystemExit("run `python -m bench.gpu --report-run --tokens FILE`")
