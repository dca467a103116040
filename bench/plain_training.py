"""The report's training loop of stage 2, written plainly: the other side of bench.train.

fp32, the tokenizer at every step, attention written out, logits of all tokens, batches of 10, an
optimiser step every 10 batches.
Shapes: B batch, N tokens, D width, K codebook size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config.schema import Config, TransformerConfig
from models.vqgan import VQGAN
from utils.data.datasets import normalise

IMAGES_A_STEP = 100  # the report's 10 batches of 10
PLAIN_BATCH = 10


@dataclass
class Work:
    """A training loop to time: one batch, and one optimiser step per `accumulate` batches."""

    batch: Callable[[], None]
    step: Callable[[], None]
    batch_size: int
    accumulate: int


class PlainAttention(nn.Module):
    """The report: one product for q, k, v; scores, softmax, dropout, values, projection."""

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
