"""Train the transformer, stage 2: ``python training_transformer.py --config config/cats64.yml``."""

from config.loading import load_config
from utils.cli import ArgumentParser, add_config_arguments, as_overrides, run
from utils.search import search_learning_rate
from utils.train_transformer import train_transformer

OPTIONS = {  # flag: key that it overrides, type, help
    "--data": ("data.root", str, "prepared folder with train/ and val/"),
    "--run": ("run", str, "folder of the run"),
    "--seed": ("seed", int, "seed of everything random"),
    "--device": ("device", str, "auto, cpu, cuda or cuda:N"),
    "--tokenizer": ("tokenizer.weights", str, "tokenizer weights file"),
}


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    add_config_arguments(parser, OPTIONS)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument(
        "--lr-search",
        action="store_true",
        help="first find training.learning_rate with Optuna (section search), then train with it",
    )
    args = parser.parse_args()
    overrides = as_overrides(args, OPTIONS)
    config = load_config(args.config, overrides)
    if args.lr_search:
        best = search_learning_rate(config)
        config = load_config(args.config, [*overrides, f"training.learning_rate={best}"])
    weights = train_transformer(config, resume=args.resume)
    print(f"transformer weights: {weights}")


if __name__ == "__main__":
    run(main)
