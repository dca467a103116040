"""Recipes of stage 2 side by side: the same tokens, images and validation for each.

    python -m bench.recipes --data data/cats64 [--epochs 1] [--only NAME ...]

Each recipe trains by itself from fresh weights, in a process of its own: the one of
config/cats64.yml, the same with one choice undone, and the report's. Validation is the same too:
mean cross-entropy of hidden tokens over five mask ratios, unsmoothed. Last line: one JSON
object, {RECIPE: {"val_loss", "val_accuracy", "images_per_second", "minutes"}}.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.common import report
from utils.io.files import read_rows

ROOT = Path(__file__).resolve().parents[1]

TOKENIZER = ROOT / "models/pretrained/cats64/vqgan.safetensors"
FOR_ALL = {
    "transformer.conditioning": "none",
    "masking.hole_share": 0,
    "training.validation_images": 128,
    "training.pictures_every": 0,
}
RECIPES: dict[str, dict[str, object]] = {
    "cats64": {},
    "no start from the codebook": {"training.init": "random", "transformer.prior_dim": 0},
    "no convolution": {"transformer.conv_kernel": 0},
    "loss on all tokens": {"masking.loss_on": "all"},
    "one mask ratio a batch": {"masking.ratio_per": "batch"},
    "label smoothing 0.1": {"masking.label_smoothing": 0.1},
    "post-norm, dropout 0.1": {"transformer.norm": "post", "transformer.dropout": 0.1},
    "last weights, no average": {"training.ema_half_life": 0},
    "half as wide": {
        "transformer.dim": 128,
        "transformer.num_heads": 2,
        "transformer.mlp_dim": 512,
    },
    "1.5 times as wide": {
        "transformer.dim": 384,
        "transformer.num_heads": 6,
        "transformer.mlp_dim": 1536,
    },
    "the report's": {
        "training.init": "random",
        "transformer.prior_dim": 0,
        "transformer.conv_kernel": 0,
        "transformer.norm": "post",
        "transformer.dropout": 0.1,
        "masking.loss_on": "all",
        "masking.ratio": "uniform",
        "masking.ratio_per": "batch",
        "training.batch_size": 10,
        "training.accumulate": 10,
        "training.learning_rate": 0.000149456302123,
        "training.lr_schedule": "constant",
        "training.warmup_steps": 0,
        "training.betas": "[0.9, 0.96]",
        "training.weight_decay": 0,
        "training.max_grad_norm": "null",
        "training.ema_half_life": 0,
    },
}
SHOWN = ("val_loss", "val_accuracy", "images_per_second")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="prepared folder of cats")
    parser.add_argument("--tokenizer", type=Path, default=TOKENIZER)
    parser.add_argument("--epochs", type=int, default=1, help="passes over the images")
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES))
    args = parser.parse_args()
    result = {name: train(name, args.data, args.tokenizer, args.epochs) for name in args.only}
    report("recipes", result, {"epochs": args.epochs, "for_all": FOR_ALL, "recipes": RECIPES})


def train(name: str, data: Path, tokenizer: Path, epochs: int) -> dict[str, float]:
    """Train one recipe in a folder that is thrown away; its last validation and its speed."""
    settings = FOR_ALL | RECIPES[name] | {"training.epochs": epochs}
    with tempfile.TemporaryDirectory() as run:
        command = [sys.executable, str(ROOT / "training_transformer.py")]
        command += ["--config", str(ROOT / "config/cats64.yml"), "--run", run]
        command += ["--data", str(data), "--tokenizer", str(tokenizer)]
        command += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        began = time.perf_counter()
        subprocess.run(command, check=True)
        row = read_rows(Path(run) / "transformer" / "log.jsonl")[-1]
    minutes = (time.perf_counter() - began) / 60
    found = {key: round(row[key], 4) for key in SHOWN} | {"minutes": round(minutes, 2)}
    print(f"{name}: {found}", flush=True)
    return found


if __name__ == "__main__":
    main()
