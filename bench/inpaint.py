"""Repairs side by side with a plain loop: seconds, memory and share of the peak.

    python -m bench.inpaint [--presets lab cats64] [--quick]

`plain` is the decoding of the report: one image at a time, fp32, logits of every token at every
step, a picture of every step. `ours` is `inpaint_set`, from files to files, with and without those
pictures. Both use the same seeded random weights, since speed does not depend on
their values, and the same crops of photographs with lab-like holes. Every figure comes from its own
process, after a warm-up; the sides take turns. The growth of cost with the batch, the iterations
and the number of images is measured on a CPU, at cats64 size.

Its last line is {PRESET: {"speedup", "speedup_with_pictures", "mfu"}, ...}, each a median over
rounds with minimum and maximum. Speed-ups are seconds per image, plain over ours; mfu is the share
of the best matrix product of all rounds in the same dtype.
"""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from bench import common
from bench.common import Figures
from config.schema import Config
from models import parallel
from models.transformer import BidirectionalTransformer
from models.vqgan import VQGAN
from utils.cli import keep_freed_memory
from utils.data.datasets import InpaintingSet, normalise, to_uint8
from utils.device import Compute, pick_device
from utils.inpainting.job import inpaint_set
from utils.io.images import save_png
from utils.training.throughput import matmul_peak
from utils.weights.store import load_tokenizer, load_transformer, save_weights

COMMON = [  # what the plain loop does
    *("decoding.rule=listing", "decoding.choice_temperature=4.5", "decoding.hole_fill=grey"),
    *("decoding.composite=none", "decoding.mask_schedule=cosine", "decoding.sweet_spot=null"),
    *("decoding.order=confidence", "decoding.token_choice=rule", "decoding.comparison=false"),
    *("transformer.conditioning=none", "tokenizer.decoder_conditioning=none"),
    "masking.hole_share=0",
]
SETTINGS = {"total_iter": 10, "batch_size": "auto", "step_pictures": False}
WARM_UP = 1  # images
IMAGES = {  # of each measurement
    "cpu": {"plain": {"lab": 2, "cats64": 8}, "ours": {"lab": 8, "cats64": 32}},
    "cuda": {"plain": {"lab": 8, "cats64": 8}, "ours": {"lab": 256, "cats64": 512}},
    "quick": {"plain": {"lab": 1, "cats64": 1}, "ours": {"lab": 2, "cats64": 4}},
}
GROWTH = {"batch_size": (1, 4, 16), "total_iter": (5, 10, 20), "images": (16, 64, 256)}
GROWTH_IMAGES = 32


def main() -> None:
    args = common.parser_of(__doc__, has_presets=True).parse_args()
    device = pick_device("auto")
    counts = IMAGES["quick" if args.quick else device.type]
    rounds = 1 if args.quick else common.ROUNDS
    grows = device.type == "cpu" and "cats64" in args.presets and not args.quick
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        most = max(max(of.values()) for of in counts.values())
        prepare(work, max(most, *GROWTH["images"]) if grows else most)
        found = {preset: compare(work, preset, counts, rounds) for preset in args.presets}
        grown = growth(work) if grows else {}
    result = {preset: shares(sides) for preset, sides in found.items()}
    details = {"tasks": found, "growth": grown, "device": str(device)}
    common.report("inpaint", result, details, args.quick)


def prepare(work: Path, count: int) -> None:
    """Crops of photographs with holes, and random weights for each preset."""
    common.prepare_photographs(work / "data", count)
    for preset in common.PRESETS:
        config = config_of(work, preset)
        torch.manual_seed(0)
        networks = {
            config.tokenizer_weights: (VQGAN, config.tokenizer),
            config.transformer_weights: (BidirectionalTransformer, config.transformer),
        }
        for path, (network, description) in networks.items():
            path.parent.mkdir(parents=True)
            save_weights(path, network(description).state_dict(), description, {})


def config_of(work: Path, preset: str, **decoding: Any) -> Config:
    """The preset with the report's decoding; only the networks differ."""
    overrides = [*COMMON, ("run", work / preset), ("data.root", work / "data")]
    overrides += [(f"decoding.{key}", value) for key, value in decoding.items()]
    return common.preset(preset, overrides)


def compare(
    work: Path, preset: str, counts: dict[str, dict[str, int]], rounds: int
) -> dict[str, list[Figures]]:
    """Plain, ours, and ours with a picture of every step, in turns."""
    shared = {"work": work, "preset": preset}
    plainly, fast = (shared | {"images": counts[side][preset]} for side in ("plain", "ours"))
    sides = {
        "plain": plainly | {"side": "plain"},
        "ours": fast | {"flops": True},
        "ours_with_pictures": fast | {"step_pictures": True},
    }
    return common.side_by_side(run_task, sides, rounds)


def growth(work: Path) -> dict[str, dict[int, Figures]]:
    """Cost by batch size, iterations and number of images."""
    shared = {"work": work, "preset": "cats64", "images": GROWTH_IMAGES}
    return {
        key.removesuffix("_size"): {
            value: common.in_process(run_task, **shared | {key: value}) for value in values
        }
        for key, values in GROWTH.items()
    }


def shares(found: dict[str, list[Figures]]) -> dict[str, Figures]:
    """The result of a preset from the figures of each round."""
    seconds = common.column(found, "seconds_an_image")
    reached = [figures["gflop_s"] for figures in found["ours"]]
    peak = max(*reached, *(figures["peak_gflop_s"] for figures in found["ours"]))
    return {
        "speedup": common.ratios(seconds["plain"], seconds["ours"]),
        "speedup_with_pictures": common.ratios(seconds["plain"], seconds["ours_with_pictures"]),
        "mfu": common.spread([gflop_s / peak for gflop_s in reached]),
    }


def run_task(
    work: Path, preset: str, images: int, side: str = "ours", flops: bool = False, **decoding: Any
) -> Figures:
    """Seconds per image after a warm-up, and the share of the peak on request."""
    keep_freed_memory()
    config = config_of(work, preset, **SETTINGS | decoding)
    repair = plain if side == "plain" else ours
    for count in (WARM_UP, images):
        with tempfile.TemporaryDirectory(dir=work) as folder:
            seconds = repair(config, first(config, count), Path(folder))
    found = {"seconds_an_image": seconds / images}
    if flops:
        found |= share_of_peak(config, first(config, images), work, seconds)
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def share_of_peak(config: Config, dataset: InpaintingSet, work: Path, seconds: float) -> Figures:
    """FLOPs of a run's matrix products and convolutions, their rate, and the device's peak."""
    compute = Compute.of(config)
    peak = matmul_peak(compute.device, compute.dtype)
    counter = FlopCounterMode(display=False)  # counts this thread only
    alone = patch.object(parallel, "workers", lambda: 1)
    with tempfile.TemporaryDirectory(dir=work) as folder, alone, counter:
        ours(config, dataset, Path(folder))
    flops = counter.get_total_flops()
    return {
        "gflop_an_image": flops / len(dataset) / 1e9,
        "gflop_s": flops / seconds / 1e9,
        "peak_gflop_s": peak / 1e9,
    }


def first(config: Config, count: int) -> InpaintingSet:
    """The first images of the prepared set."""
    dataset = InpaintingSet(config.data.root)
    assert len(dataset) >= count, f"{len(dataset)} images are fewer than {count}"
    dataset.images, dataset.masks = dataset.images[:count], dataset.masks[:count]
    return dataset


def ours(config: Config, dataset: InpaintingSet, output: Path) -> float:
    """Seconds of `inpaint_set` from files to files, weights already loaded."""
    return inpaint_set(config, dataset, output)["seconds"]


@torch.no_grad()
def plain(config: Config, dataset: InpaintingSet, output: Path) -> float:
    """Seconds of the report's decoding as a plain loop, weights already loaded."""
    device = pick_device("auto")
    tokenizer = load_tokenizer(config.tokenizer_weights, config.tokenizer).to(device)
    transformer = load_transformer(config.transformer_weights, config.transformer).to(device)
    began = time.perf_counter()
    for item in dataset:
        image = normalise(item.image[None].copy(), config.data.mean, config.data.std).to(device)
        token_ids = tokenizer.encode(image)[0]
        grid = math.isqrt(len(token_ids))
        patches = item.hole.reshape(grid, item.hole.shape[0] // grid, grid, -1)
        hidden = torch.from_numpy(patches.any(axis=(1, 3)).ravel()).to(device)
        pictures, masks, hidden_at_start = [item.image], [], int(hidden.sum())
        for t in range(config.decoding.total_iter):
            progress = (t + 1) / config.decoding.total_iter
            token_ids, hidden = plain_step(
                transformer, token_ids, hidden, hidden_at_start, progress
            )
            decoded = tokenizer.decode(token_ids[None])
            pictures.append(to_uint8(decoded, config.data.mean, config.data.std)[0].cpu().numpy())
            masks.append(255 * (~hidden).view(grid, grid).byte().cpu().numpy())
        save_png(output / f"image_{item.index:03d}.png", pictures[-1])
        save_png(output / f"steps_{item.index}.png", np.concatenate(pictures, axis=1))
        save_png(output / f"masks_{item.index}.png", np.concatenate(masks, axis=1))
    return time.perf_counter() - began


def plain_step(
    transformer: BidirectionalTransformer,
    token_ids: Tensor,
    hidden: Tensor,
    hidden_at_start: int,
    progress: float,
) -> tuple[Tensor, Tensor]:
    """One step of the report's rule, cosine on cosine, for one image, (N,) and (N,)."""
    r = (1 + math.cos(math.pi * (1 - progress))) / 2
    shown = torch.where(hidden, transformer.mask_token_id, token_ids)
    probabilities = transformer(shown[None])[0, :, : transformer.mask_token_id].softmax(-1)
    best, tokens = probabilities.max(-1)
    noise = -(-torch.rand_like(best).log()).log()
    confidence = torch.where(hidden, best + 4.5 * (1 - r) * noise, torch.inf)
    stay = math.ceil((1 + math.cos(math.pi * r)) / 2 * hidden_at_start - 1e-11)
    still_hidden = torch.zeros_like(hidden)
    still_hidden[confidence.argsort()[:stay]] = True
    return torch.where(hidden, tokens, token_ids), still_hidden & hidden


if __name__ == "__main__":
    main()
