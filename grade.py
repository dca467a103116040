"""Rank solutions: ``python grade.py FOLDER_OF_SOLUTIONS --data cat_face --tokenizer VQGAN.pt``.

Each file or folder in FOLDER is one solution: a checkpoint, a folder with checkpoints (and a
config), or a folder of repaired images. A failed solution is listed with its error. Running the
same command again grades only what is new, changed or failed.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P leaves it out

import utils  # noqa: F401  first: makes failed imports one-line errors
from config.loading import load_config
from utils.cli import ArgumentParser, add_config_arguments, as_overrides, first_line, run

OPTIONS = {  # flag: overridden key, type, help
    "--tokenizer": ("tokenizer.weights", str, "tokenizer of solutions that bring none"),
    "--features": ("scoring.features", str, "efficientnet-lite0, or inception for FID"),
    "--seed": ("seed", int, "seed of the decoding noise"),
    "--device": ("device", str, "auto, cpu, cuda or cuda:N"),
}


def main() -> None:
    parser = ArgumentParser(description=first_line(__doc__))
    parser.add_argument("folder", type=Path, help="folder of solutions")
    add_config_arguments(parser, OPTIONS)
    parser.add_argument(
        "--data", type=Path, help="prepared folder with ground truth (default data.root)"
    )
    parser.add_flag(
        "--output", type=Path, default=Path("grades"), help="folder for results (default grades)"
    )
    args = parser.parse_args()
    overrides = as_overrides(args, OPTIONS)
    config = load_config(args.config, overrides)
    from utils.data.datasets import InpaintingSet  # imports PyTorch, which takes seconds
    from utils.device import world_size
    from utils.grading.grader import Grader
    from utils.grading.tables import save_tables

    if world_size() > 1:
        parser.error("grading runs in one process; start it without torchrun, unset WORLD_SIZE")
    dataset = InpaintingSet(args.data or config.data.root)
    grades = Grader(dataset, args.output, config, overrides).grade_all(args.folder)
    save_tables(args.output, grades, dataset)
    print((args.output / "grades.md").read_text(encoding="utf-8"))
    print(f"report: {args.output / 'grades.html'}")


if __name__ == "__main__":
    run(main)
