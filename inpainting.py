"""Repair masked images: ``python inpainting.py --config config/cats64.yml --data data/cats64``."""

import sys
from argparse import ArgumentTypeError
from pathlib import Path
from typing import get_args

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P leaves it out

import utils  # noqa: F401  first: makes failed imports one-line errors
from config.loading import load_config
from config.section import MaskSchedule
from utils.cli import (
    ArgumentParser,
    add_config_arguments,
    add_ignored_flags,
    as_overrides,
    run,
    run_folder,
    schedule_name,
    steps_or_all,
    weights_or_run,
    whole,
)
from utils.io.images import KNOWN, MASK_THRESHOLD


def count_or_auto(text: str) -> int | str:
    """The value of --batch-size, for argparse."""
    if text != "auto" and not (text.isdecimal() and int(text)):
        raise ArgumentTypeError(f"'{text}' is neither auto nor a whole number from 1")
    return text if text == "auto" else int(text)


OPTIONS = {  # flag: key that it overrides, type, help
    "--mask-func": (
        "decoding.mask_schedule",
        schedule_name,
        f"schedule: {', '.join(get_args(MaskSchedule))}",
    ),
    "--total-iter": ("decoding.total_iter", int, "iterations T of the schedule"),
    "--sweet-spot": (
        "decoding.sweet_spot",
        steps_or_all,
        "stop after this many iterations; -1: run all",
    ),
    "--samples": ("decoding.samples", int, "different repairs of each image, image_000_s0.png ..."),
    "--composite": ("decoding.composite", str, "known pixels: none, hard or feather"),
    "--animation": ("decoding.animation", str, "animate the decoding of each image: gif or webp"),
    "--batch-size": (
        "decoding.batch_size",
        count_or_auto,
        "images at once; results do not depend on it",
    ),
    "--seed": ("seed", int, "seed of the decoding noise"),
    "--device": ("device", str, "auto, cpu, cuda or cuda:N"),
    "--transformer": (
        "transformer.weights",
        weights_or_run,
        "transformer weights: ours, or a lab .pt",
    ),
    "--tokenizer": ("tokenizer.weights", str, "tokenizer weights: ours, or a lab .pt"),
    "--run": ("run", run_folder, "folder of the run, with its weights"),
}


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(description=__doc__)
    parser.add_flag(
        "--output",
        type=Path,
        default=Path(),
        help="folder for test_results/ and the other outputs (default: current folder)",
    )
    add_config_arguments(parser, OPTIONS)
    parser.add_argument(
        "--data", type=Path, help="folder with masked_image/ and mask64/ (default data.root)"
    )
    inputs = {
        "--images": "instead of --data: a folder of images, or one image, of any size",
        "--masks": "their masks, a folder or one file (255 known, 0 hole), or alpha",
        "--ground-truth": "folder or csv that the scorer compares with",
    }
    for flag, text in inputs.items():
        parser.add_flag(flag, type=Path, help=text)
    add_ignored_flags(parser)
    parser.add_argument(
        "--mask-threshold",
        type=whole(1, 255),
        help=f"mask values below are holes (default {MASK_THRESHOLD}, {KNOWN} for alpha; "
        f"{KNOWN} reads as the lab does)",
    )
    parser.add_argument(
        "--pair-by",
        choices=("name", "order"),
        default="name",
        help="pair masks with images by number or name (default), or by sorted order",
    )
    switches = {
        "--invert-masks": "255 is a hole and 0 is known",
        "--restart": "repair images again that are already done",
        "--verbose": "print the number of hidden tokens of each image after each step",
    }
    for flag, text in switches.items():
        parser.add_argument(flag, action="store_true", help=text)
    return parser


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    if (args.images is None) != (args.masks is None) or (args.images and args.data):
        parser.error("give either --data, or --images together with --masks")
    config = load_config(args.config, as_overrides(args, OPTIONS))
    from utils.data.datasets import InpaintingSet  # PyTorch takes seconds to import
    from utils.device import rank, world_size
    from utils.inpainting.job import inpaint_set
    from utils.inpainting.outputs import RESULTS
    from utils.inpainting.pretrained import or_pretrained

    config = or_pretrained(config)
    source = args.images or args.data or config.data.root
    dataset = InpaintingSet(
        source,
        args.masks,
        args.ground_truth,
        args.invert_masks,
        args.mask_threshold,
        args.pair_by == "order",
    )
    share = f", process {rank() + 1} of {world_size()}" if world_size() > 1 else ""
    output = args.output.parent if args.output.name == RESULTS else args.output  # as the lab's
    timing = inpaint_set(config, dataset, output, restart=args.restart, verbose=args.verbose)
    results = output / RESULTS
    if rank() >= len(dataset):
        print(f"nothing to do{share}: fewer images than processes")
        return
    if not timing["repaired"]:
        print(f"all results exist already (--restart repairs them again): {results}")
        return
    skipped = f", {timing['skipped']} existed already (--restart repairs them again)"
    images = "1 image" if timing["repaired"] == 1 else f"{timing['repaired']} images"
    print(
        f"{images} repaired in {timing['seconds']:.1f} s "
        f"({timing['images_per_second']:.2g} images/s, seed {config.seed}{share}): "
        f"{results}{skipped if timing['skipped'] else ''}"
    )


if __name__ == "__main__":
    run(main)
