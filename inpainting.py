"""Repair masked images: ``python inpainting.py --config config/cats64.yml --data data/cats64``."""

from pathlib import Path

from config.loading import load_config
from models.masking import MASK_SCHEDULES
from utils.cli import ArgumentParser, add_config_arguments, as_overrides, names, run
from utils.data import InpaintingSet
from utils.inpaint import RESULTS, inpaint_set

OPTIONS = {  # flag: key that it overrides, type, help
    "--mask-func": ("decoding.mask_schedule", str, f"schedule: {', '.join(MASK_SCHEDULES)}"),
    "--total-iter": ("decoding.total_iter", int, "iterations T of the schedule"),
    "--sweet-spot": ("decoding.sweet_spot", int, "stop after this many iterations"),
    "--batch-size": ("decoding.batch_size", int, "images at once; the tokens do not depend on it"),
    "--seed": ("seed", int, "seed of the decoding noise"),
    "--device": ("device", str, "auto, cpu, cuda or cuda:N"),
    "--transformer": ("transformer.weights", str, "transformer weights: ours, or a lab .pt"),
    "--tokenizer": ("tokenizer.weights", str, "tokenizer weights: ours, or a lab .pt"),
}


def main() -> None:
    parser = ArgumentParser(description=__doc__)
    add_config_arguments(parser, OPTIONS)
    parser.add_argument(
        "--data", type=Path, help="folder with masked_image/ and mask64/ (default data.root)"
    )
    inputs = {
        "--images": "instead: a folder of images, or one image,",
        "--masks": "with a folder of masks, or one mask",
        "--ground-truth": "folder or csv the scorer compares with",
    }
    for flag, text in inputs.items():
        parser.add_argument(*names(flag), type=Path, help=text)
    parser.add_argument(
        "--output", type=Path, default=Path(), help="where the three folders go (default here)"
    )
    args = parser.parse_args()
    if (args.images is None) != (args.masks is None) or (args.images and args.data):
        parser.error("give either --data, or --images together with --masks")
    config = load_config(args.config, as_overrides(args, OPTIONS))
    source = args.images or args.data or config.data.root
    dataset = InpaintingSet(source, args.masks, args.ground_truth)
    timing = inpaint_set(config, dataset, args.output)
    print(
        f"{len(dataset)} images repaired in {timing['seconds']:.1f} s "
        f"({timing['images_per_second']:.1f} images/s, seed {config.seed}): "
        f"{args.output / RESULTS}"
    )


if __name__ == "__main__":
    run(main)
