"""Train the transformer, stage 2: ``python training_transformer.py --config config/cats64.yml``."""

from pathlib import Path

from config.loading import load_config
from utils.cli import (
    ArgumentParser,
    add_config_arguments,
    add_start_arguments,
    as_overrides,
    names,
    run,
)
from utils.search import search_learning_rate
from utils.train_transformer import starting_point, train_transformer

OPTIONS = {  # flag: key that it overrides, type, help
    "--data": ("data.root", str, "prepared folder with train/ and val/"),
    "--train": ("data.train", str, "folder of training images, if not in the prepared folder"),
    "--val": ("data.val", str, "folder of validation images, likewise"),
    "--run": ("run", str, "folder of the run"),
    "--epochs": ("training.epochs", int, "passes over the training images"),
    "--batch-size": ("training.batch_size", int, "images a forward pass"),
    "--accumulate": ("training.accumulate", int, "batches averaged into one optimiser step"),
    "--learning-rate": ("training.learning_rate", float, "peak learning rate"),
    "--checkpoint-every": ("training.checkpoint_every", int, "epochs between checkpoints"),
    "--seed": ("seed", int, "seed of everything random"),
    "--device": ("device", str, "auto, cpu, cuda or cuda:N"),
    "--tokenizer": ("tokenizer.weights", str, "tokenizer weights: ours, or a lab .pt"),
}


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    add_config_arguments(parser, OPTIONS)
    add_start_arguments(parser)
    parser.add_argument(
        "--start-from-epoch",
        type=int,
        metavar="N",
        help="go on from the checkpoint after epoch N, which must be the run's last; 0: begin anew",
    )
    parser.add_argument(
        *names("--transformer"), type=Path, help="start from these weights: ours, or a lab .pt"
    )
    parser.add_argument(
        "--lr-search",
        action="store_true",
        help="first find training.learning_rate with Optuna (section search), then train with it",
    )
    args = parser.parse_args()
    overrides = as_overrides(args, OPTIONS)
    config = load_config(args.config, overrides)
    if args.transformer and args.lr_search:
        parser.error("--lr-search trains fresh networks; give it or --transformer")
    start = None
    if args.transformer:
        config, start = starting_point(config, args.transformer)
    if args.lr_search:
        best = search_learning_rate(config)
        config = load_config(args.config, [*overrides, f"training.learning_rate={best}"])
    weights = train_transformer(
        config,
        resume=args.resume or bool(args.start_from_epoch),
        restart=args.restart or args.start_from_epoch == 0,
        allow_config_change=args.allow_config_change,
        from_epoch=args.start_from_epoch,
        start=start,
    )
    print(f"transformer weights: {weights}")


if __name__ == "__main__":
    run(main)
