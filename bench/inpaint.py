"""Side by side with a plain loop: seconds, memory and share of the peak of repairing an image.

    python -m bench.inpaint [--presets lab cats64] [--quick] [--no-growth]

`plain` is the report's decoding as spec section 6 reads: one image at a time, fp32, logits of every
token at every step, a picture of every step. `ours` is `inpaint_set`, from files to files, with and
without those pictures. Both have the same seeded random weights, since speed does not depend on
their values, and the same crops of photographs with the lab's holes. Every figure comes from a
process of its own, after a pass that warms up; the sides take turns. Growth is measured at cats64
size.

Its last line is {PRESET: {"speedup", "speedup_with_pictures", "mfu"}, ...}, each the median of the
rounds with the lowest and the highest. Speed-ups are seconds an image, plain over ours; mfu is the
share of the best matrix product of all rounds in the same dtype.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch.utils.flop_counter import FlopCounterMode

from bench.common import in_turns, load, peak_memory, ratios, report, spread, too_wide
from bench.plain_repair import plain
from config.loading import load_config
from config.schema import Config
from models import parallel
from models.transformer import BidirectionalTransformer
from models.vqgan import VQGAN
from utils.cli import keep_freed_memory
from utils.data.datasets import InpaintingSet
from utils.device import pick_device, pick_dtype
from utils.inpainting.job import inpaint_set
from utils.training.throughput import matmul_peak
from utils.weights.store import save_weights

ROOT = Path(__file__).resolve().parents[1]

PRESETS = {"lab": "MaskGit.yml", "cats64": "cats64.yml"}
COMMON = ("decoding.rule=listing", "decoding.choice_temperature=4.5", "decoding.hole_fill=grey")
COMMON += ("decoding.composite=none", "decoding.mask_schedule=cosine", "decoding.sweet_spot=null")
COMMON += ("decoding.order=confidence", "decoding.token_choice=rule", "decoding.comparison=false")
COMMON += ("transformer.conditioning=none", "tokenizer.decoder_conditioning=none")
COMMON += ("masking.hole_share=0",)
TOTAL_ITER = 10
ROUNDS = 3
WARM_UP = 1  # images


Rounds = dict[str, list[dict[str, float]]]  # what each side found in each round


class Counts(NamedTuple):
    """Images of each measurement."""

    plain: dict[str, int]
    ours: dict[str, int]
    batch: tuple[int, ...]  # batch sizes, of growth images
    total_iter: tuple[int, ...]  # T, of growth images
    images: tuple[int, ...]
    growth: int


ON_CPU = Counts(
    {"lab": 1, "cats64": 4}, {"lab": 4, "cats64": 16}, (1, 4, 16), (5, 10, 20), (16, 64, 256), 32
)
ON_CUDA = Counts(
    {"lab": 8, "cats64": 8},
    {"lab": 256, "cats64": 512},
    (16, 64, 256),
    (5, 10, 20, 40),
    (64, 256, 1024),
    256,
)
QUICK = Counts({"lab": 1, "cats64": 1}, {"lab": 2, "cats64": 4}, (), (), (), 4)


def main() -> None:
    """Prepare weights and images, compare, report."""
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--quick", action="store_true", help="few images, not for reporting")
    parser.add_argument("--no-growth", action="store_true", help="leave out how cost grows")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.task:
        print(json.dumps(run_task(args.work, json.loads(args.task))))
        return
    device = pick_device("auto")
    counts = QUICK if args.quick else ON_CUDA if device.type == "cuda" else ON_CPU
    rounds, before = 1 if args.quick else ROUNDS, load()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        prepare(
            work, max(*counts.plain.values(), *counts.ours.values(), *counts.images, counts.growth)
        )
        found = {preset: compare(work, preset, counts, rounds) for preset in args.presets}
        grows = "cats64" in args.presets and not args.no_growth
        grown = growth(work, counts) if grows else {}
    result = {preset: shares(cells) for preset, cells in found.items()}
    details = {"tasks": found, "growth": grown, "device": str(device), "quick": args.quick}
    details |= {"load_before": before, "load_after": load()}
    report("inpaint", result, details, too_wide(result))


def prepare(work: Path, count: int) -> None:
    """Crops of photographs with holes, and random weights for each preset."""
    command = [sys.executable, str(ROOT / "prepare_data.py"), "photos", "--out", str(work / "data")]
    command += ["--split", "1", "1", str(count)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    for preset in PRESETS:
        config = config_of(work, preset)
        torch.manual_seed(0)
        networks = {
            config.tokenizer_weights: (VQGAN, config.tokenizer),
            config.transformer_weights: (BidirectionalTransformer, config.transformer),
        }
        for path, (network, description) in networks.items():
            path.parent.mkdir(parents=True)
            save_weights(path, network(description).state_dict(), description, {})


def config_of(work: Path, preset: str, **decoding: object) -> Config:
    """The preset with the report's decoding; only the networks differ."""
    overrides = [*COMMON, ("run", work / preset), ("data.root", work / "data")]
    overrides += [(f"decoding.{key}", value) for key, value in decoding.items()]
    return load_config(ROOT / "config" / PRESETS[preset], overrides)


def compare(work: Path, preset: str, counts: Counts, rounds: int) -> Rounds:
    """Plain, ours, and ours with a picture of every step, in turns."""
    ours: dict[str, Any] = {"preset": preset, "images": counts.ours[preset]}
    tasks = {
        "plain": {"preset": preset, "images": counts.plain[preset], "plain": True},
        "ours": ours | {"flops": True},
        "ours_with_pictures": ours | {"pictures": True},
    }
    return in_turns({side: partial(in_child, work, task) for side, task in tasks.items()}, rounds)


def growth(work: Path, counts: Counts) -> dict[str, dict[int, dict[str, float]]]:
    """How cost grows with the batch, with T and with the number of images."""
    swept = {"batch": counts.batch, "total_iter": counts.total_iter, "images": counts.images}
    common = {"preset": "cats64", "images": counts.growth}
    return {
        key: {value: in_child(work, common | {key: value}) for value in values}
        for key, values in swept.items()
    }


def shares(found: Rounds) -> dict[str, dict[str, float]]:
    """The result of a preset from what each side found in each round."""
    seconds = {side: [one["seconds_an_image"] for one in each] for side, each in found.items()}
    reached = [one["gflop_s"] for one in found["ours"]]
    peak = max(*reached, *(one["peak_gflop_s"] for one in found["ours"]))
    return {
        "speedup": ratios(seconds["plain"], seconds["ours"]),
        "speedup_with_pictures": ratios(seconds["plain"], seconds["ours_with_pictures"]),
        "mfu": spread([gflop_s / peak for gflop_s in reached]),
    }


def in_child(work: Path, task: dict[str, Any]) -> dict[str, float]:
    """Run one task in a process of its own; its figures with its peak memory."""
    command = [sys.executable, "-m", "bench.inpaint"]
    command += ["--task", json.dumps(task), "--work", str(work)]
    peak, output = peak_memory(command)
    found = json.loads(output.strip().splitlines()[-1])
    found["peak_mib"] = round(peak / 2**20, 1)
    print(f"{json.dumps(task)}: {json.dumps(found)}", flush=True)
    return found


def run_task(work: Path, task: dict[str, Any]) -> dict[str, float]:
    """Repair so many images after a few to warm up; seconds an image and a GPU's peak memory."""
    config = config_of(
        work,
        task["preset"],
        total_iter=task.get("total_iter", TOTAL_ITER),
        batch_size=task.get("batch", "auto"),
        step_pictures=task.get("pictures", False),
    )
    repair = plain if task.get("plain") else ours
    with tempfile.TemporaryDirectory(dir=work) as folder:
        repair(config, first(config, WARM_UP), Path(folder))
    with tempfile.TemporaryDirectory(dir=work) as folder:
        seconds = repair(config, first(config, task["images"]), Path(folder))
    found = {"seconds_an_image": seconds / task["images"]}
    if torch.cuda.is_available():
        found["gpu_peak_mib"] = torch.cuda.max_memory_allocated() / 2**20
    if task.get("flops"):
        found |= share_of_peak(config, first(config, task["images"]), work, seconds)
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def share_of_peak(
    config: Config, dataset: InpaintingSet, work: Path, seconds: float
) -> dict[str, float]:
    """Matrix products and convolutions of a run against the best matrix product of the device."""
    device = pick_device(config.device)
    peak = matmul_peak(device, pick_dtype(config.precision, device))
    counter = FlopCounterMode(display=False)  # sees no other thread
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
    """This system from files to files, weights already read; seconds."""
    return inpaint_set(config, dataset, output)["seconds"]


if __name__ == "__main__":
    main()
