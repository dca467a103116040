"""Speed of both tokenizers: images a second of encoding and decoding, and their share of the peak.

    python -m bench.tokenizer [--quick] [--presets lab cats64]

Every cell encodes or decodes batches of 1 or 32 images in fp32 or bf16; the peak is the best 3 x 3
convolution of this machine in the same dtype. Last line: one JSON object,
{"lab": {"encode_fp32_1": {"images_per_second", "share_of_peak"}, ...}, "cats64": {...}}.
"""

from __future__ import annotations

from itertools import product

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.common import PRESETS, ROOT, Figures, best_seconds, conv_peak, parser_of, report
from config.loading import load_config
from models.vqgan import VQGAN
from utils.cli import keep_freed_memory
from utils.device import autocast, pick_device

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BATCHES = (1, 32)
SECONDS, QUICK_SECONDS = 4.0, 0.1  # how long each cell is repeated


def main() -> None:
    """Measure both sizes, report."""
    keep_freed_memory()
    args = parser_of(__doc__, has_presets=True).parse_args()
    device, seconds = pick_device("auto"), QUICK_SECONDS if args.quick else SECONDS
    peaks = {name: conv_peak(dtype) for name, dtype in DTYPES.items()}
    result = {preset: preset_speeds(preset, peaks, seconds, device) for preset in args.presets}
    report("tokenizer", result, {"peak_flops": peaks, "device": str(device)}, args.quick)


def preset_speeds(
    preset: str, peaks: Figures, seconds: float, device: torch.device
) -> dict[str, Figures]:
    """All cells of one preset; its random weights cost the same time as trained ones."""
    alone = ["tokenizer.decoder_conditioning=none"]  # no known pixels
    config, layout = load_config(ROOT / "config" / PRESETS[preset], alone), torch.channels_last
    torch.manual_seed(0)
    vqgan = VQGAN(config.tokenizer).eval().to(device, memory_format=layout)
    side, cells = config.data.image_size, {}
    for batch, direction in product(BATCHES, ("encode", "decode")):
        images = torch.randn(batch, 3, side, side).to(device, memory_format=layout)
        given = images if direction == "encode" else vqgan.encode(images)
        work = getattr(vqgan, direction)
        with FlopCounterMode(display=False) as counter:
            work(given)
        for name, dtype in DTYPES.items():
            with autocast(device, dtype):
                took = best_seconds(lambda work=work, given=given: work(given), seconds)
            cell = {
                "images_per_second": round(batch / took, 2),
                "share_of_peak": round(counter.get_total_flops() / took / peaks[name], 3),
            }
            cells[f"{direction}_{name}_{batch}"] = cell
            print(f"{preset:8} {direction} {name} batch {batch:2}: {cell}", flush=True)
    return cells


if __name__ == "__main__":
    main()
