"""Compare decoding settings: ``python sweep.py schedules --config config/cats64.yml``.

Studies: iterations (5, 8, 10, 15, 20 at sweet spot 8), sweet-spot (1, 4, 8, 10 of 10), schedules
(cosine, linear, square), each for both decode rules; several may be named at once. Or: grid FILE,
a YAML file of decoding keys, each with a list of values. An interrupted sweep continues.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P leaves it out

import utils  # noqa: F401  first: makes failed imports one-line errors
from config.loading import load_config
from utils.cli import ArgumentParser, add_config_arguments, as_overrides, run, whole
from utils.sweep.plan import STUDIES, plan

OPTIONS = {  # flag: key that it overrides, type, help
    "--transformer": ("transformer.weights", str, "transformer weights: ours, or a lab .pt"),
    "--run": ("run", str, "folder of the run"),
    "--tokenizer": ("tokenizer.weights", str, "tokenizer weights: ours, or a lab .pt"),
    "--features": ("scoring.features", str, "efficientnet-lite0, or inception for FID"),
    "--seed": ("seed", int, "first seed of the decoding noise"),
    "--device": ("device", str, "auto, cpu, cuda or cuda:N"),
}
SEEDS, MAX_SEEDS = 3, 1000


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "study", nargs="+", help=f"{', '.join(STUDIES)}: one or several; or: grid FILE"
    )
    parser.add_flag("--output", type=Path, help="folder for results (default <run>/sweep)")
    add_config_arguments(parser, OPTIONS)
    parser.add_argument(
        "--data", type=Path, help="prepared folder with ground truth (default data.root)"
    )
    text = f"repeat each setting (default {SEEDS})"
    parser.add_argument("--seeds", type=whole(1, MAX_SEEDS), default=SEEDS, help=text)
    parser.add_argument("--images", type=whole(1), help="images, spread evenly (default all)")
    args = parser.parse_args()
    config = load_config(args.config, as_overrides(args, OPTIONS))
    from utils.data.datasets import InpaintingSet  # PyTorch takes seconds to import
    from utils.device import is_main
    from utils.inpainting.pretrained import or_pretrained
    from utils.sweep.cells import open_sweep
    from utils.sweep.page import save_study_page
    from utils.sweep.tables import MARKDOWN, save_table, table_of

    config = or_pretrained(config)
    if config.seed + args.seeds > 2**63:
        parser.error(f"--seeds {args.seeds}: counted from seed {config.seed} they pass 2^63 - 1")
    studies = plan(config, args.study)
    dataset = InpaintingSet(args.data or config.data.root)
    output = args.output or config.run / "sweep"
    with open_sweep(config, dataset, output, seeds=args.seeds, images=args.images) as sweep:
        computed = sweep.run(studies)
        if not is_main():
            return
        pages = []
        for study in studies:  # all are saved before one is printed, perhaps to a reader that left
            folder, table = output / study.name, table_of(sweep, study)
            save_table(folder, table)
            pages.append(save_study_page(folder, sweep, table))
        for page in pages:
            print((page.parent / MARKDOWN).read_text(encoding="utf-8"))
            print(f"report: {page}")
        print(f"{computed} cells computed now, any others reused: {output}")


if __name__ == "__main__":
    run(main)
