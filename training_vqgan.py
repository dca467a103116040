"""Train the tokenizer, stage 1: ``python training_vqgan.py --config config/cats64.yml``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P leaves it out

import utils  # noqa: F401  first: makes failed imports one-line errors
from config.loading import load_config
from utils.cli import (
    ArgumentParser,
    add_config_arguments,
    add_ignored_flags,
    add_start_arguments,
    as_overrides,
    run,
    run_folder,
)

OPTIONS = {  # flag: key that it overrides, type, help
    "--data": ("data.root", str, "prepared folder with train/ and val/"),
    "--run": ("run", run_folder, "folder of the run"),
    "--epochs": ("tokenizer.training.epochs", int, "passes over the training images"),
    "--batch-size": ("tokenizer.training.batch_size", int, "images per step"),
    "--learning-rate": ("tokenizer.training.learning_rate", float, "peak learning rate"),
    "--seed": ("seed", int, "seed of everything random"),
    "--device": ("device", str, "auto, cpu, cuda or cuda:N"),
}


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    add_config_arguments(parser, OPTIONS)
    add_start_arguments(parser)
    add_ignored_flags(parser)
    parser.add_argument("--tokenizer", type=Path, help="weights to start from: ours, or a lab .pt")
    args = parser.parse_args()
    if args.tokenizer and args.resume is True:
        parser.error("--tokenizer is for new runs; leave it out to continue this one")
    config = load_config(args.config, as_overrides(args, OPTIONS))
    from utils.training.tokenizer import train_tokenizer  # PyTorch takes seconds to import

    train_tokenizer(
        config,
        resume=args.resume,
        restart=args.restart,
        allow_config_change=args.allow_config_change,
        start=args.tokenizer,
    )


if __name__ == "__main__":
    run(main)
