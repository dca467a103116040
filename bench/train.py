"""Side by side: a plain training loop of stage 2, written from the report, and ours.

    python -m bench.train [--quick] [--presets lab cats64] [--variants]

The plain loop is the report's (bench/plain_training.py). Ours is `TransformerTrainer` over a
token cache, with about as many images per optimiser step and its options for speed: 16-bit products
where the hardware has them, fused attention, logits of hidden tokens only, a batch size to suit the
device; on a GPU compiled blocks. Weights and images are random, since neither affects speed. Each
side runs in its own process; memory is PyTorch's peak on a GPU, the process's on a CPU.

MFU is the share of the best square matrix product in the same dtype, measured right before and
after our side in each round; FLOPs are those of utils/training/throughput.py. Last line, JSON:
{"lab": {"speedup", "memory_ratio", "mfu"}, "cats64": {...}}, each a median over rounds with minimum
and maximum; memory_ratio is ours over the plain loop's. On a GPU, "variants" has
the speed and memory of ours in fp32, in TF32 and without compilation.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from bench import common
from bench.common import Figures
from bench.plain_training import IMAGES_A_STEP, Work, plain_work
from config.loading import with_settings
from config.schema import Config
from models.parallel import one_thread
from utils.cli import keep_freed_memory
from utils.device import Compute, pick_device, pick_dtype
from utils.training.throughput import matmul_peak, training_flops
from utils.training.token_batches import TokenBatch, Tokens
from utils.training.transformer_step import TransformerTrainer

OUR_BATCH = {"cpu": {"lab": 9, "cats64": 10}, "cuda": {"lab": 20, "cats64": 256}}
IMAGES = 12_000  # of the token cache: the lab's training set
SECONDS, QUICK_SECONDS = {"cpu": 15.0, "cuda": 8.0}, 2.0  # of measured batches in each process
VARIANTS = (
    "fp32",
    "tf32",
    "not compiled",
)  # of our side, measured once, the first two not compiled
WARM_UP = {"cpu": 1, "cuda": 3}  # groups; a GPU compiles and allocates in the first two


def our_work(config: Config, cache: Path) -> tuple[Work, TransformerTrainer]:
    """A trainer over a token cache, driven as by `train_transformer`."""
    rows = np.load(cache / "views.npy", mmap_mode="c")  # as `cached_tokens` gives them
    rows = rows[: len(rows) // config.training.batch_size * config.training.batch_size]
    codes = torch.randn(config.tokenizer.codebook_size, config.tokenizer.latent_dim)
    tokens = Tokens(rows, rows[:1], codes, "random")
    trainer = TransformerTrainer(config, tokens, Compute.of(config))
    batches, settings = endless(trainer), config.training

    def batch() -> None:
        trainer.accumulate(next(batches))

    return Work(batch, trainer.take_step, settings.batch_size, settings.accumulate), trainer


def endless(trainer: TransformerTrainer) -> Iterator[TokenBatch]:
    """Batches of one epoch after another."""
    while True:
        yield from trainer.batches()
        trainer.position.next_epoch()


def seconds_an_image(work: Work, seconds: float, device: torch.device) -> float:
    """Seconds per image, including its share of an optimiser step."""
    for _ in range(WARM_UP[device.type]):
        once = common.mean_seconds(work.batch, 1)
        common.mean_seconds(work.step, 1)
    batch = common.mean_seconds(work.batch, max(2, round(seconds / once)))
    step = common.mean_seconds(work.step, 1)
    return (batch + step / work.accumulate) / work.batch_size


def write_cache(cache: Path, config: Config) -> None:
    """Random tokens in the shape and type of a cache of the lab's training set."""
    network = config.transformer
    size = (IMAGES, config.data.views, network.num_tokens)
    rows = np.random.default_rng(0).integers(network.codebook_size, size=size, dtype=np.uint16)
    np.save(cache / "views.npy", rows)


def size_config(name: str, device: torch.device, batch_size: int | None = None) -> Config:
    """A preset with our options for speed on this device."""
    size = batch_size or OUR_BATCH[device.type][name]
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
    return common.preset(name, list(fast.items()))


def run_task(cache: Path, preset: str, side: str, seconds: float) -> Figures:
    """One side of one size, in this process."""
    keep_freed_memory()
    device = pick_device("auto")
    config = size_config(preset, device)
    if side in VARIANTS:
        precision = "auto" if side == "not compiled" else "fp32"
        config = with_settings(config, {"precision": precision, "training.compile": False})
        torch.set_float32_matmul_precision("high" if side == "tf32" else "highest")
    torch.manual_seed(0)
    if side == "plain":
        work = plain_work(config, device)
        return {"images_per_second": 1 / seconds_an_image(work, seconds, device)}
    work, trainer = our_work(config, cache)
    before = matmul_peak(device, trainer.dtype)
    with one_thread() if trainer.shares_batches else nullcontext():
        rate = 1 / seconds_an_image(work, seconds, device)
    peak = max(before, matmul_peak(device, trainer.dtype))
    return {"images_per_second": rate, "peak_flops": peak}


def compare(preset: str, seconds: float, rounds: int, variants: Iterable[str]) -> tuple[dict, dict]:
    """Both sides of one size, and variants of ours: the result and the details behind it."""
    config = size_config(preset, pick_device("auto"))
    with tempfile.TemporaryDirectory() as folder:
        task = {"cache": Path(folder), "preset": preset, "seconds": seconds}
        write_cache(task["cache"], config)
        sides = {side: task | {"side": side} for side in ("plain", "ours")}
        found = common.side_by_side(run_task, sides, rounds)
        varied = {side: common.in_process(run_task, **task, side=side) for side in variants}
    on_gpu = "gpu_peak_mib" in found["ours"][0]
    memory = common.column(found, "gpu_peak_mib" if on_gpu else "peak_mib")
    rates = common.column(found, "images_per_second")
    reached = [training_flops(config.transformer) * rate for rate in rates["ours"]]
    peak = max(*reached, *(figures["peak_flops"] for figures in found["ours"]))
    result = {
        "speedup": common.ratios(rates["ours"], rates["plain"]),
        "memory_ratio": common.ratios(memory["ours"], memory["plain"]),
        "mfu": common.spread([flops / peak for flops in reached]),
    }
    if varied:
        result["variants"] = varied
    return result, found


def main() -> None:
    parser = common.parser_of(__doc__, has_presets=True)
    parser.add_argument(
        "--variants", action="store_true", help="measure ours in fp32, TF32, uncompiled"
    )
    args, device = parser.parse_args(), pick_device("auto")
    variants = VARIANTS if args.variants or device.type == "cuda" else ()
    seconds = QUICK_SECONDS if args.quick else SECONDS[device.type]
    result, details = {}, {"dtype": str(pick_dtype("auto", device))}
    rounds = 1 if args.quick else common.ROUNDS
    for preset in args.presets:
        result[preset], details[preset] = compare(preset, seconds, rounds, variants)
    common.report("train", result, details, args.quick)


if __name__ == "__main__":
    main()
