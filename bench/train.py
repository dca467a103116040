"""Side by side: a plain training loop of stage 2, written from the report, and ours.

    python -m bench.train [--quick] [--presets lab cats64]

The plain loop is the report's: fp32, the tokenizer at every step, attention written out, logits of
all tokens, batches of 10, an optimiser step every 10 batches. Ours is `TransformerTrainer` over a
token cache, with about as many images per optimiser step and its options for speed: 16-bit products
where the hardware has them, fused attention, logits of hidden tokens only, a batch size to suit the
device; on a GPU compiled blocks. Weights and images are random, since neither affects speed. Each
side runs in its own process; memory is PyTorch's peak on a GPU, the process's on a CPU.

MFU is the share of the best square matrix product in the same dtype, measured right before and
after our side in each round; FLOPs are those of utils/training/throughput.py. Last line, JSON:
{"lab": {"speedup", "memory_ratio", "mfu"}, "cats64": {...}}, each a median over rounds with minimum
and maximum; memory_ratio is ours over the plain loop's.
Shapes: B batch, N tokens, K codebook size.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench import common
from bench.common import Figures
from config.schema import Config, TransformerConfig
from models.parallel import one_thread
from models.vqgan import VQGAN
from utils.cli import keep_freed_memory
from utils.data.datasets import normalise
from utils.device import Compute, pick_device, pick_dtype
from utils.training.throughput import matmul_peak, training_flops
from utils.training.token_batches import TokenBatch, Tokens
from utils.training.transformer_step import TransformerTrainer

IMAGES_A_STEP = 100  # the report's 10 batches of 10; for us one larger batch
PLAIN_BATCH = 10
OUR_BATCH = {"cpu": {"lab": 9, "cats64": 10}, "cuda": {"lab": 20, "cats64": 256}}
IMAGES = 12_000  # of the token cache: the lab's training set
SECONDS, QUICK_SECONDS = {"cpu": 15.0, "cuda": 8.0}, 2.0  # of measured batches in each process
WARM_UP = {"cpu": 1, "cuda": 3}  # groups; a GPU compiles and allocates in the first two


@dataclass
class Work:
    """A training loop to time: one batch, and one optimiser step per `accumulate` batches."""

    batch: Callable[[], None]
    step: Callable[[], None]
    batch_size: int
    accumulate: int


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


def compare(preset: str, seconds: float, rounds: int) -> tuple[dict, dict]:
    """Both sides of one size: the result and the details behind it."""
    config = size_config(preset, pick_device("auto"))
    with tempfile.TemporaryDirectory() as folder:
        task = {"cache": Path(folder), "preset": preset, "seconds": seconds}
        write_cache(task["cache"], config)
        sides = {side: task | {"side": side} for side in ("plain", "ours")}
        found = common.side_by_side(run_task, sides, rounds)
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
    return result, found


def main() -> None:
    args = common.parser_of(__doc__, has_presets=True).parse_args()
    device = pick_device("auto")
    seconds = QUICK_SECONDS if args.quick else SECONDS[device.type]
    result, details = {}, {"dtype": str(pick_dtype("auto", device))}
    rounds = 1 if args.quick else common.ROUNDS
    for preset in args.presets:
        result[preset], details[preset] = compare(preset, seconds, rounds)
    common.report("train", result, details, args.quick)


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


def plain_work(config: Config, device: torch.device) -> Work:
    """The report's training loop."""
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


if __name__ == "__main__":
    main()
