"""Recipes of stage 2 side by side: the same tokens, images and validation for each.

    python -m bench.recipes --data data/cats64 [--epochs 1] [--only NAME ...]

Each recipe trains from scratch in its own process: that of config/cats64.yml, the same with one
choice reverted, and the report's. Validation is the mean cross-entropy of hidden tokens over five
mask ratios, unsmoothed. Last line: one JSON object,
{RECIPE: {"val_loss", "val_accuracy", "images_per_second", "minutes"}}.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.common import RELEASED, ROOT, parser_of, report
from utils.io.files import read_rows

FOR_ALL = {
    "transformer.conditioning": "none",
    "masking.hole_share": 0,
    "training.validation_images": 128,
    "training.pictures_every": 0,
}
WIDTH = ("transformer.dim", "transformer.num_heads", "transformer.mlp_dim")
RANDOM_START = {"training.init": "random", "transformer.prior_dim": 0}
NO_CONVOLUTION = {"transformer.conv_kernel": 0}
POST_NORM = {"transformer.norm": "post", "transformer.dropout": 0.1}
ALL_TOKENS, RATIO_OF_BATCH = {"masking.loss_on": "all"}, {"masking.ratio_per": "batch"}
NO_AVERAGE = {"training.ema_half_life": 0}
RECIPES: dict[str, dict[str, object]] = {
    "cats64": {},
    "no start from the codebook": RANDOM_START,
    "no convolution": NO_CONVOLUTION,
    "loss on all tokens": ALL_TOKENS,
    "one mask ratio a batch": RATIO_OF_BATCH,
    "label smoothing 0.1": {"masking.label_smoothing": 0.1},
    "post-norm, dropout 0.1": POST_NORM,
    "last weights, no average": NO_AVERAGE,
    "half as wide": dict(zip(WIDTH, (128, 2, 512), strict=True)),
    "1.5 times as wide": dict(zip(WIDTH, (384, 6, 1536), strict=True)),
    "the report's": {
        **(RANDOM_START | NO_CONVOLUTION | POST_NORM | ALL_TOKENS | RATIO_OF_BATCH | NO_AVERAGE),
        "masking.ratio": "uniform",
        "training.batch_size": 10,
        "training.accumulate": 10,
        "training.learning_rate": 0.000149456302123,
        "training.lr_schedule": "constant",
        "training.warmup_steps": 0,
        "training.betas": "[0.9, 0.96]",
        "training.weight_decay": 0,
        "training.max_grad_norm": "null",
    },
}
SHOWN = ("val_loss", "val_accuracy", "images_per_second")


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="prepared folder of cats")
    parser.add_argument("--epochs", type=int, default=1, help="passes over the images")
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES))
    args = parser.parse_args()
    result = {name: train(name, args.data, args.epochs) for name in args.only}
    details = {"epochs": args.epochs, "for_all": FOR_ALL, "recipes": RECIPES}
    report("recipes", result, details, args.quick)


def train(name: str, data: Path, epochs: int) -> dict[str, float]:
    """Train one recipe in a temporary folder; its last validation and its speed."""
    settings = FOR_ALL | RECIPES[name] | {"training.epochs": epochs}
    with tempfile.TemporaryDirectory() as run:
        command = [sys.executable, "training_transformer.py", "--config", "config/cats64.yml"]
        command += ["--tokenizer", RELEASED / "vqgan.safetensors"]
        command += ["--data", data.resolve(), "--run", run]
        command += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
        began = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True)
        row = read_rows(Path(run) / "transformer" / "log.jsonl")[-1]
    minutes = (time.perf_counter() - began) / 60
    found = {key: round(row[key], 4) for key in SHOWN} | {"minutes": round(minutes, 2)}
    print(f"{name}: {found}", flush=True)
    return found


if __name__ == "__main__":
    main()
