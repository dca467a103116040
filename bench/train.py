"""Side by side: a plain training loop of stage 2, written from the report, and ours.

    python -m bench.train [--quick] [--only lab] [--lab-batch 40] [--cats64-batch 512]

The plain loop is in this file: fp32, the tokenizer at every step, attention written out, logits of
all tokens, batches of 10, an optimiser step every 10 batches. Ours is `TransformerTrainer` over a
token cache, with about as many images an optimiser step and what it has for speed: 16-bit products
where the hardware has them, fused attention, logits of hidden tokens, batches that suit the device;
on a GPU compiled blocks. Weights and images are random, since neither changes the speed. Lab size
is the report's (dim 768, 15 blocks, the lab's VQGAN), cats64 that of config/cats64.yml. Each runs
in a process of its own; memory is the peak that PyTorch allocates on a GPU, or that the process
holds on a CPU.

MFU is the share of the measured peak of a square matrix product in the same arithmetic, taken right
before and after our side, the higher one, since a shared machine's speed drifts; FLOPs are those of
utils/training/throughput.py. Loading is all that a batch costs before its forward pass. Last line,
JSON: {"lab": {"speedup", "memory_ratio", "mfu"}, "cats64": {...}}; memory_ratio is ours over the
plain loop's.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.common import default_device, mean_seconds, peak_memory, report
from config.loading import load_config
from config.schema import Config, TransformerConfig
from models.vqgan import VQGAN
from utils.cli import keep_freed_memory
from utils.data.datasets import normalise
from utils.device import pick_device, pick_dtype
from utils.rng import generator_for, shuffled_batches
from utils.tokens.batches import TokenBatches
from utils.training.compute import Compute
from utils.training.throughput import matmul_peak, training_flops
from utils.training.tokens import Tokens
from utils.training.transformer_step import TransformerTrainer

ROOT = Path(__file__).resolve().parents[1]

PRESETS = {"lab": "MaskGit.yml", "cats64": "cats64.yml"}
IMAGES_A_STEP = 100  # the report's 10 batches of 10; larger batches of ours make a step by one
PLAIN_BATCH = 10
OUR_BATCH = {"cpu": {"lab": 9, "cats64": 10}, "cuda": {"lab": 20, "cats64": 256}}
IMAGES = 12_000  # of the token cache: the lab's training set
SECONDS, QUICK_SECONDS = {"cpu": 40.0, "cuda": 15.0}, 2.0  # of measured batches in each process
WARM_UP = {"cpu": 1, "cuda": 3}  # groups; a GPU compiles and allocates in the first two
LEAST_BATCHES, DRAWS = 2, 50
MIB = 2**20


class PlainAttention(nn.Module):
    """Spec section 3: one product for q, k, v; scores, softmax, dropout, values, projection."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.heads, self.head_dim = config.num_heads, config.dim // config.num_heads
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.out = nn.Linear(config.dim, config.dim)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = self.dropout((q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(-1))
        return self.out((weights @ v).transpose(1, 2).reshape(batch, tokens, dim))


class PlainBlock(nn.Module):
    """Post-norm attention and MLP."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention, self.dropout = PlainAttention(config), nn.Dropout(config.dropout)
        self.norms = nn.ModuleList(nn.LayerNorm(config.dim, eps=1e-12) for _ in range(2))
        self.mlp = nn.Sequential(
            nn.Linear(config.dim, config.mlp_dim),
            nn.GELU(),
            nn.Linear(config.mlp_dim, config.dim),
            nn.Dropout(config.dropout),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](x + self.dropout(self.attention(x)))
        return self.norms[1](x + self.mlp(x))


class PlainTransformer(nn.Module):
    """Token ids (B, N) -> logits (B, N, K + 1)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        tokens, dim, ids = config.num_tokens, config.dim, config.codebook_size + 1
        self.embedding = nn.Embedding(ids, dim)
        self.positions = nn.Parameter(0.02 * torch.randn(tokens, dim))
        self.start = nn.Sequential(nn.LayerNorm(dim, eps=1e-12), nn.Dropout(config.dropout))
        self.blocks = nn.Sequential(*(PlainBlock(config) for _ in range(config.num_layers)))
        norm = nn.LayerNorm(dim, eps=1e-12)
        self.head = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), norm)
        self.bias = nn.Parameter(torch.zeros(tokens, ids))

    def forward(self, token_ids: Tensor) -> Tensor:
        x = self.blocks(self.start(self.embedding(token_ids) + self.positions))
        return self.head(x) @ self.embedding.weight.T + self.bias


@dataclass
class Work:
    """Something that trains: a batch, and an optimiser step after some batches."""

    batch: Callable[[], None]
    step: Callable[[], None]
    batch_size: int
    accumulate: int


def plain_work(config: Config, device: torch.device) -> Work:
    """The report's loop as its text tells it."""
    vqgan = VQGAN(config.tokenizer).eval().requires_grad_(False).to(device)
    network = PlainTransformer(config.transformer).to(device).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, betas=(0.9, 0.96))
    size, codes = config.data.image_size, config.transformer.codebook_size
    pictures = torch.randint(256, (PLAIN_BATCH, 3, size, size), dtype=torch.uint8)

    def batch() -> None:
        images = normalise(pictures, config.data.mean, config.data.std).to(device)
        token_ids = vqgan.encode_to_z(images)[1]
        hidden = torch.rand(token_ids.shape, device=device) < torch.rand(1, device=device)
        logits = network(torch.where(hidden, codes, token_ids))
        loss = F.cross_entropy(logits.flatten(0, 1), token_ids.flatten())
        (loss / (IMAGES_A_STEP // PLAIN_BATCH)).backward()

    def step() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return Work(batch, step, PLAIN_BATCH, IMAGES_A_STEP // PLAIN_BATCH)


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


def compare(name: str, batch: int | None, seconds: float) -> tuple[dict, dict]:
    """Both sides of one size: the result and the details behind it."""
    config = size_config(name, batch, pick_device("auto"))
    network = config.transformer
    with tempfile.TemporaryDirectory() as folder:
        write_cache(Path(folder), config)
        plain, ours = (
            in_child(name, whose, batch, seconds, Path(folder)) for whose in ("plain", "ours")
        )
    rate = ours["images_per_second"]
    result = {
        "speedup": rate / plain["images_per_second"],
        "memory_ratio": ours["peak_mib"] / plain["peak_mib"],
        "mfu": training_flops(network) * rate / ours["peak_flops"],
    }
    settings = config.training.model_dump(include={"batch_size", "accumulate", "compile"})
    return result, {"plain": plain, "ours": ours, "settings": settings}


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
    for name in [args.only] if args.only else PRESETS:
        found, details[name] = compare(name, batches[name], seconds)
        result[name] = {key: float(f"{value:.4g}") for key, value in found.items()}
    report("train", result, details)


if __name__ == "__main__":
    main()
