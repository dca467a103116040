"""Train the transformer, stage 2: ``python training_transformer.py --config config/cats64.yml``."""

import sys
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P leaves it out

import utils  # noqa: F401  first: makes failed imports one-line errors
from config.loading import load_config, with_settings
from utils.cli import (
    ArgumentParser,
    add_config_arguments,
    add_ignored_flags,
    add_start_arguments,
    as_overrides,
    run,
    run_folder,
    schedule_name,
    whole,
)

OPTIONS = {  # flag: key that it overrides, type, help
    "--data": ("data.root", str, "prepared folder with train/ and val/"),
    "--train": ("data.train", str, "folder of training images, if not in the prepared folder"),
    "--val": ("data.val", str, "folder of validation images, likewise"),
    "--run": ("run", run_folder, "folder of the run"),
    "--epochs": ("training.epochs", int, "passes over the training images"),
    "--batch-size": ("training.batch_size", int, "images per forward pass"),
    "--accumulate": ("training.accumulate", int, "batches averaged into one optimiser step"),
    "--learning-rate": ("training.learning_rate", float, "peak learning rate"),
    "--checkpoint-every": ("training.checkpoint_every", int, "epochs between checkpoints"),
    "--warmup-steps": ("training.warmup_steps", int, "steps until the peak learning rate"),
    "--weight-decay": ("training.weight_decay", float, "weight decay of the optimiser"),
    "--mask-func": ("masking.mask_schedule", schedule_name, "mask schedule in training"),
    "--seed": ("seed", int, "seed of everything random"),
    "--device": ("device", str, "auto, cpu, cuda or cuda:N"),
    "--tokenizer": ("tokenizer.weights", str, "tokenizer weights: ours, or a lab .pt"),
}
TRIALS_OF_CONFIG = 0  # --lr-search without a number


def argument_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    add_config_arguments(parser, OPTIONS)
    add_start_arguments(parser)
    add_ignored_flags(parser)
    parser.add_argument(
        "--start-from-epoch",
        type=whole(0),
        metavar="N",
        help="resume from the run's last checkpoint, which must be after epoch N; 0: --restart",
    )
    parser.add_flag("--transformer", type=Path, help="weights to start from: ours, or a lab .pt")
    parser.add_argument(
        "--lr-search",
        nargs="?",
        type=whole(1),
        const=TRIALS_OF_CONFIG,
        metavar="N",
        help="search the learning rate, and what search.space names, in N Optuna trials (default "
        "search.trials), then train with the best",
    )
    parser.add_argument(
        "--lr-search-only", action="store_true", help="like --lr-search, without the training"
    )
    parser.add_argument(
        "--storage",
        metavar="URL",
        help="database of --lr-search, shared by its workers: an sqlite, postgresql or mysql URL "
        "(default: SQLite in the run folder)",
    )
    return parser


def check_start(parser: ArgumentParser, args: Namespace) -> None:
    """Refuse contradictory arguments about where to start."""
    epoch = args.start_from_epoch
    if args.resume and epoch == 0:
        parser.error("--start-from-epoch 0 starts again, --resume does not; give one of them")
    if args.restart and epoch:
        parser.error(f"--start-from-epoch {epoch} resumes, --restart does not; give one of them")
    if args.transformer and (args.resume is True or epoch):
        parser.error("--transformer is for new runs; leave it out to continue this one")


def check_search(parser: ArgumentParser, args: Namespace) -> bool:
    """Whether to search first. Refuses arguments that cannot be combined with a search."""
    from utils.device import world_size  # PyTorch takes seconds to import

    searching = args.lr_search is not None or args.lr_search_only
    if searching and world_size() > 1:
        parser.error("--lr-search runs in one process; more of them share one --storage")
    if args.storage and not searching:
        parser.error("--storage is where a search keeps its study; give --lr-search too")
    if args.transformer and searching:
        parser.error("--lr-search trains fresh networks; give it or --transformer")
    return searching


def main() -> None:
    parser = argument_parser()
    args = parser.parse_args()
    check_start(parser, args)
    overrides = as_overrides(args, OPTIONS)
    if args.lr_search not in (None, TRIALS_OF_CONFIG):
        overrides.append(("search.trials", args.lr_search))
    config = load_config(args.config, overrides)
    searching = check_search(parser, args)
    resume = args.resume or bool(args.start_from_epoch)
    restart = args.restart or args.start_from_epoch == 0
    from utils.training.state import Opening
    from utils.training.transformer import as_in_start, check_opening, train_transformer

    if args.transformer:
        config = as_in_start(config, args.transformer)
    if searching:
        if not args.lr_search_only:  # now, not after hours of search
            opening = Opening(resume, restart, args.allow_config_change, args.start_from_epoch)
            check_opening(config, opening)
        from utils.search.search import search_learning_rate  # Optuna takes seconds to import

        config = with_settings(config, search_learning_rate(config, args.storage))
    if args.lr_search_only:
        return
    train_transformer(
        config,
        resume=resume,
        restart=restart,
        allow_config_change=args.allow_config_change,
        from_epoch=args.start_from_epoch,
        start=args.transformer,
    )


if __name__ == "__main__":
    run(main)
