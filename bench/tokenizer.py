"""Speed of both tokenizers: images a second for encoding and decoding, and how close to the bound.

    python -m bench.tokenizer [--quick]

Every cell encodes or decodes batches of 1 or 32 images in fp32 or bf16 and is held against the best
3 x 3 convolution that this machine reaches in the same dtype. Last line: one JSON object,
{"lab": {"encode_fp32_1": {"images_per_second", "share_of_peak"}, ...}, "cats64": {...}}.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench.common import conv_peak, report
from config.loading import load_config
from models.vqgan import VQGAN
from utils.cli import keep_freed_memory
from utils.device import autocast, pick_device

ROOT = Path(__file__).resolve().parents[1]

PRESETS = {"lab": "MaskGit.yml", "cats64": "cats64.yml"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
BATCHES = (1, 32)
SECONDS, QUICK_SECONDS = 10.0, 1.0  # how long each cell is repeated


def main() -> None:
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short check, not for reporting")
    seconds = QUICK_SECONDS if parser.parse_args().quick else SECONDS
    device = pick_device("auto")
    peaks = {name: conv_peak(dtype) for name, dtype in DTYPES.items()}
    print("convolution peak:", {name: f"{peak / 1e9:.0f} GFLOP/s" for name, peak in peaks.items()})
    result = {
        preset: preset_speeds(ROOT / "config" / file, peaks, seconds, device)
        for preset, file in PRESETS.items()
    }
    report("tokenizer", result, {"peak_flops": peaks, "device": str(device)})


def preset_speeds(
    path: Path, peaks: dict[str, float], seconds: float, device: torch.device
) -> dict[str, dict[str, float]]:
    """All cells of one preset; its random weights cost the same time as trained ones."""
    config = load_config(path)
    torch.manual_seed(0)
    vqgan = VQGAN(config.tokenizer).eval().to(device, memory_format=torch.channels_last)
    cells = {}
    for batch in BATCHES:
        images = torch.randn(batch, 3, config.data.image_size, config.data.image_size)
        images = images.to(device, memory_format=torch.channels_last)
        inputs = {"encode": images, "decode": vqgan.encode(images)}
        for direction, given in inputs.items():
            work = getattr(vqgan, direction)
            flops = count_flops(work, given)
            for name, dtype in DTYPES.items():
                with autocast(device, dtype):
                    took = best_seconds(work, given, seconds)
                cell = {
                    "images_per_second": round(batch / took, 2),
                    "share_of_peak": round(flops / took / peaks[name], 3),
                }
                cells[f"{direction}_{name}_{batch}"] = cell
                print(f"{path.stem:8} {direction} {name} batch {batch:2}: {cell}")
    return cells


def count_flops(work: Callable[[Tensor], Tensor], given: Tensor) -> int:
    """Floating point operations of one call."""
    with FlopCounterMode(display=False) as counter:
        work(given)
    return counter.get_total_flops()


@torch.inference_mode()
def best_seconds(work: Callable[[Tensor], Tensor], given: Tensor, seconds: float) -> float:
    """Shortest of the repetitions that fit into ``seconds``; the first one only warms up."""
    best, end = float("inf"), time.perf_counter() + seconds
    work(given)
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        work(given)
        if given.device.type == "cuda":
            torch.cuda.synchronize(given.device)
        best = min(best, time.perf_counter() - start)
    return best


if __name__ == "__main__":
    main()
