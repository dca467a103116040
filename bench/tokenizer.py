"""Speed of both tokenizers: images encoded and decoded per second.

    python -m bench.tokenizer [--quick] [--presets lab cats64]

Every cell encodes or decodes batches of 1 or 32 images in fp32 or bf16. Last line: one JSON object,
{"lab": {"encode_fp32_1": {"images_per_second"}, ...}, "cats64": {...}}.
"""

from __future__ import annotations

import time
from functools import partial
from itertools import product

import torch

from bench import common
from bench.common import DTYPES, Figures
from models.vqgan import VQGAN
from utils.cli import keep_freed_memory
from utils.device import autocast, pick_device

BATCHES = (1, 32)
SECONDS, QUICK_SECONDS = 4.0, 0.1  # how long each cell is repeated


def main() -> None:
    keep_freed_memory()
    args = common.parser_of(__doc__, has_presets=True).parse_args()
    device, seconds = pick_device("auto"), QUICK_SECONDS if args.quick else SECONDS
    result = {preset: preset_speeds(preset, seconds, device) for preset in args.presets}
    common.report("tokenizer", result, {"device": str(device)}, args.quick)


def preset_speeds(preset: str, seconds: float, device: torch.device) -> dict[str, Figures]:
    """All cells of one preset; random weights are as fast as trained ones."""
    config = common.preset(preset, ["tokenizer.decoder_conditioning=none"])  # no known pixels
    layout, side, cells = torch.channels_last, config.data.image_size, {}
    torch.manual_seed(0)
    vqgan = VQGAN(config.tokenizer).eval().to(device, memory_format=layout)
    for batch, direction in product(BATCHES, ("encode", "decode")):
        images = torch.randn(batch, 3, side, side).to(device, memory_format=layout)
        given = images if direction == "encode" else vqgan.encode(images)
        for name, dtype in DTYPES.items():
            with autocast(device, dtype):
                took = best_seconds(partial(getattr(vqgan, direction), given), seconds)
            cell = {"images_per_second": round(batch / took, 2)}
            cells[f"{direction}_{name}_{batch}"] = cell
            print(f"{preset:8} {direction} {name} batch {batch:2}: {cell}", flush=True)
    return cells


@torch.inference_mode()
def best_seconds(work: partial, seconds: float) -> float:
    """The shortest repetition within a time."""
    common.mean_seconds(work, 1)  # the first call chooses kernels and allocates
    best, end = common.mean_seconds(work, 1), time.perf_counter() + seconds
    while time.perf_counter() < end:
        best = min(best, common.mean_seconds(work, 1))
    return best


if __name__ == "__main__":
    main()
