"""Side by side: a plain training loop of stage 2, written from the report, and ours.

    python -m bench.train [--quick] [--only lab] [--lab-batch 40] [--cats64-batch 512]

The plain loop is that of bench/plain_training.py. Ours is `TransformerTrainer` over a
token cache, with about as many images an optimiser step and what it has for speed: 16-bit products
where the hardware has them, fused attention, logits of hidden tokens, batches that suit the device;
on a GPU compiled blocks. Weights and images are random, since neither changes the speed. Lab size
is the report's (dim 768, 15 blocks, the lab's VQGAN), cats64 that of config/cats64.yml. Each runs
in a process of its own; memory is the peak that PyTorch allocates on a GPU, or that the process
holds on a CPU.

MFU is the share of the best square matrix product in the same dtype, taken right before and after
our side in each round; FLOPs are those of utils/training/throughput.py. Loading is all that a batch
costs before its forward pass. Last line, JSON: {"lab": {"speedup", "memory_ratio", "mfu"},
"cats64": {...}}, each the median of the rounds, in which the sides take turns, with the lowest and
the highest; memory_ratio is ours over the plain loop's.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch

from bench.common import (
    default_device,
    in_turns,
    load,
    mean_seconds,
    peak_memory,
    ratios,
    report,
    spread,
    too_wide,
)
from bench.plain_training import IMAGES_A_STEP, Work, plain_work
from config.loading import load_config
from config.schema import Config
from models.parallel import one_thread
from utils.cli import keep_freed_memory
from utils.device import pick_device, pick_dtype
from utils.rng import generator_for, shuffled_batches
from utils.tokens.batches import TokenBatches
from utils.training.compute import Compute
from utils.training.throughput import matmul_peak, training_flops
from utils.training.tokens import Tokens
from utils.training.transformer_step import TransformerTrainer

ROOT = Path(__file__).resolve().parents[1]

PRESETS = {"lab": "MaskGit.yml", "cats64": "cats64.yml"}
OUR_BATCH = {"cpu": {"lab": 9, "cats64": 10}, "cuda": {"lab": 20, "cats64": 256}}
IMAGES = 12_000  # of the token cache: the lab's training set
SECONDS, QUICK_SECONDS = {"cpu": 15.0, "cuda": 8.0}, 2.0  # of measured batches in each process
ROUNDS = 3
WARM_UP = {"cpu": 1, "cuda": 3}  # groups; a GPU compiles and allocates in the first two
LEAST_BATCHES, DRAWS = 2, 50
MIB = 2**20


def our_work(config: Config, cache: Path) -> tuple[Work, TransformerTrainer]:
    """A trainer over a token cache, as `train_transformer` drives it."""
    rows = mapped(cache)
    codes = torch.randn(config.tokenizer.codebook_size, config.tokenizer.latent_dim)
    tokens = Tokens(rows, rows[:1], codes, "random")
    trainer = TransformerTrainer(config, tokens, Compute.of(config))
    trainer.transformer.train()
    place, size = trainer.position, config.training.batch_size
    order = generator_for(config.seed, 0)
    batches = list(shuffled_batches(len(rows), size, order))[:-1]  # whole ones

    def batch() -> None:
        if place.batch == len(batches):
            place.next_epoch()
        images = batches[place.batch]
        trainer.accumulate(trainer.token_batches(images, place.epoch, place.batch))

    return Work(batch, trainer.take_step, size, config.training.accumulate), trainer


def seconds_an_image(work: Work, seconds: float, device: torch.device) -> float:
    """Time of an image, its part of an optimiser step included."""
    once = seconds
    for _ in range(WARM_UP[device.type]):
        once = mean_seconds(work.batch, 1)
        mean_seconds(work.step, 1)
    batch = mean_seconds(work.batch, max(LEAST_BATCHES, round(seconds / once)))
    step = mean_seconds(work.step, 1)
    return (batch + step / work.accumulate) / work.batch_size


def write_cache(cache: Path, config: Config) -> None:
    """Random tokens in the shape and type of a cache of the lab's training set."""
    network = config.transformer
    size = (IMAGES, config.data.views, network.num_tokens)
    rows = np.random.default_rng(0).integers(network.codebook_size, size=size, dtype=np.uint16)
    np.save(cache / "views.npy", rows)


def mapped(cache: Path) -> np.ndarray:
    """Views as `cached_tokens` gives them."""
    return np.load(cache / "views.npy", mmap_mode="c")


def loading(trainer: TransformerTrainer, cache: Path) -> dict[str, float]:
    """Seconds that a batch costs beyond its training, and that a first epoch waits for one."""
    config, device = trainer.config, trainer.device
    images = torch.arange(config.training.batch_size)

    def first_batch() -> None:
        rows = mapped(cache)
        made = TokenBatches(rows, config.masking, mirror=True, seed=0, device=device)
        first = next(shuffled_batches(len(rows), len(images), generator_for(0, 0)))
        made(first, 0, 0)

    draw = mean_seconds(lambda: trainer.token_batches(images, 0, 0), DRAWS)
    return {"draw_s": draw, "epoch_start_s": mean_seconds(first_batch, 1)}


def size_config(name: str, batch: int | None, device: torch.device) -> Config:
    """A preset with what makes our training fast on this device."""
    size = batch or OUR_BATCH[device.type][name]
    fast = {
        "precision": "auto",  # the plain loop stays in fp32
        "transformer.attention": "fused",
        "transformer.conditioning": "none",  # from the token cache alone
        "masking.hole_share": 0,
        "masking.loss_on": "hidden",
        "training.compile": device.type == "cuda",
        "training.batch_size": size,
        "training.accumulate": -(-IMAGES_A_STEP // size),
    }
    return load_config(ROOT / "config" / PRESETS[name], list(fast.items()))


def run_task(name: str, whose: str, batch: int | None, seconds: float, cache: Path) -> dict:
    """One side of one size, in this process."""
    device = default_device()
    config = size_config(name, batch, device)
    torch.manual_seed(0)
    found = {}
    if whose == "plain":
        found["image_s"] = seconds_an_image(plain_work(config, device), seconds, device)
    else:
        work, trainer = our_work(config, cache)
        before = matmul_peak(device, trainer.dtype)
        with one_thread() if trainer.shares_batches else nullcontext():
            found["image_s"] = seconds_an_image(work, seconds, device)
        found["peak_flops"] = max(before, matmul_peak(device, trainer.dtype))
        found |= loading(trainer, cache)
        found["loading_share"] = found["draw_s"] / work.batch_size / found["image_s"]
    if device.type == "cuda":
        found["gpu_mib"] = torch.cuda.max_memory_allocated() / MIB
    return found


def in_child(name: str, whose: str, batch: int | None, seconds: float, cache: Path) -> dict:
    """The same in a process of its own, with its peak memory."""
    options = ["--task", f"{name}-{whose}", "--cache", str(cache), "--seconds", str(seconds)]
    options += [f"--{name}-batch", str(batch)] if batch else []
    peak, output = peak_memory([sys.executable, "-m", "bench.train", *options])
    found = json.loads(output.strip().splitlines()[-1])
    found["peak_mib"] = found.pop("gpu_mib", peak / MIB)
    found["images_per_second"] = 1 / found.pop("image_s")
    figures = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
    print(f"{name:6} {whose:5} {figures}", flush=True)
    return found


def compare(name: str, batch: int | None, seconds: float, rounds: int) -> tuple[dict, dict]:
    """Both sides of one size: the result and the details behind it."""
    config = size_config(name, batch, pick_device("auto"))
    network = config.transformer
    with tempfile.TemporaryDirectory() as folder:
        write_cache(Path(folder), config)
        run = partial(in_child, name, batch=batch, seconds=seconds, cache=Path(folder))
        found = in_turns({whose: partial(run, whose) for whose in ("plain", "ours")}, rounds)
    rates, memory = (
        {whose: [one[key] for one in each] for whose, each in found.items()}
        for key in ("images_per_second", "peak_mib")
    )
    reached = [training_flops(network) * rate for rate in rates["ours"]]
    peak = max(*reached, *(one["peak_flops"] for one in found["ours"]))
    result = {
        "speedup": ratios(rates["ours"], rates["plain"]),
        "memory_ratio": ratios(memory["ours"], memory["plain"]),
        "mfu": spread([flops / peak for flops in reached]),
    }
    settings = config.training.model_dump(include={"batch_size", "accumulate", "compile"})
    return result, {**found, "settings": settings}


def main() -> None:
    """Measure the peak, compare both sizes, report."""
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few batches, not for reporting")
    parser.add_argument("--only", choices=PRESETS, help="one of the two sizes")
    for name in PRESETS:
        parser.add_argument(f"--{name}-batch", type=int, help="images a batch of ours has")
    parser.add_argument("--seconds", type=float, help="measured time of each process")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    parser.add_argument("--cache", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = pick_device("auto")
    batches = {name: getattr(args, f"{name}_batch") for name in PRESETS}
    seconds = args.seconds or (QUICK_SECONDS if args.quick else SECONDS[device.type])
    if args.task:
        name, whose = args.task.split("-")
        print(json.dumps(run_task(name, whose, batches[name], seconds, args.cache)))
        return
    result, details = {}, {"dtype": str(pick_dtype("auto", device)), "quick": args.quick}
    details["load_before"], rounds = load(), 1 if args.quick else ROUNDS
    for name in [args.only] if args.only else PRESETS:
        result[name], details[name] = compare(name, batches[name], seconds, rounds)
    details["load_after"] = load()
    report("train", result, details, too_wide(result))


if __name__ == "__main__":
    main()
