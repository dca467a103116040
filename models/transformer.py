"""The bidirectional transformer over tokens (spec section 3).

Attribute names are the keys of the lab's checkpoints, so that `load_state_dict(..., strict=True)`
takes them as they are.

Shapes: B batch, N tokens, D width, K codebook size, M hidden tokens of the whole batch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from config.schema import TransformerConfig
from models.attention import MultiHeadSelfAttention
from models.prior import InterpolationPrior

LAYER_NORM_EPS = 1e-12
INIT_STD = 0.02
MASK_BIAS = -12.0  # the mask id is never a target


class Block(nn.Module):
    """Attention and MLP, each with a residual, (B, N, D) -> (B, N, D)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim = config.dim
        self.Attention = MultiHeadSelfAttention(
            dim,
            config.num_heads,
            config.dropout,
            fused=config.attention == "fused",
            qkv_bias=config.qkv_bias,
        )
        self.LayerNorm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.LayerNorm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.MLP = nn.Sequential(
            nn.Linear(dim, config.mlp_dim),
            nn.GELU(),
            nn.Linear(config.mlp_dim, dim),
            nn.Dropout(config.dropout),
        )
        self.dropout = nn.Dropout(config.dropout)
        self.pre_norm = config.norm == "pre"

    def forward(self, x: Tensor) -> Tensor:
        if self.pre_norm:
            x = x + self.dropout(self.Attention(self.LayerNorm1(x)))
            return x + self.MLP(self.LayerNorm2(x))
        x = self.LayerNorm1(x + self.dropout(self.Attention(x)))
        return self.LayerNorm2(x + self.MLP(x))


class BidirectionalTransformer(nn.Module):
    """Token ids with mask ids -> logits for every token, K codes and the mask id."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        dim, vocabulary = config.dim, config.codebook_size + 1
        self.tok_emb = nn.Embedding(vocabulary, dim)
        self.pos_emb = nn.Parameter(torch.zeros(config.num_tokens, dim))
        self.LN = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_norm = (
            nn.LayerNorm(dim, eps=LAYER_NORM_EPS) if config.norm == "pre" else nn.Identity()
        )
        self.Token_Prediction = nn.Sequential(
            nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        )
        self.bias = nn.Parameter(torch.zeros(config.num_tokens, vocabulary))
        if config.prior_dim:
            self.prior = InterpolationPrior(
                config.num_tokens, config.codebook_size, config.prior_dim, dim
            )
        self.apply(_init_weights)
        nn.init.trunc_normal_(self.pos_emb, std=INIT_STD)

    @property
    def mask_token_id(self) -> int:
        """The id that stands for a hidden token: K, one beyond the last code."""
        return self.config.codebook_size

    def forward(self, token_ids: Tensor, token_mask: Tensor | None = None) -> Tensor:
        """Logits (B, N, K + 1); with a token mask only at its True places, (M, K + 1).

        token_ids: (B, N) int, mask ids included. token_mask: (B, N) bool.
        """
        if token_mask is None:
            token_mask = torch.ones_like(token_ids, dtype=torch.bool)
            return self(token_ids, token_mask).unflatten(0, token_ids.shape)
        x = self.tok_emb(token_ids) + self.pos_emb  # (B, N, D)
        if self.config.prior_dim:
            neighbours = self.prior.neighbours(token_ids, self.mask_token_id)  # (B, N, C + 1)
            x = x + self.prior.to_width(neighbours)
        x = self.drop(self.LN(x))
        for block in self.blocks:
            x = block(x)
        x = self.final_norm(x)[token_mask]  # (M, D)
        logits = self.Token_Prediction(x) @ self.tok_emb.weight.T  # tied to the embedding
        logits = logits + self.bias[token_mask.nonzero()[:, 1]]
        if self.config.prior_dim:
            logits = logits + self.prior.logits(x, neighbours[token_mask])
        return logits

    @torch.no_grad()
    def start_from_codebook(self, codes: Tensor, counts: Tensor) -> None:
        """Start where tokens that look alike are alike, and frequent ones likely.

        codes: (K, C) of the tokenizer. counts: (K,) how often training images use each.
        """
        frequency = ((counts + 1) / (counts + 1).sum()).to(codes.dtype)
        centred = codes - codes.mean(0)
        spread = nn.init.orthogonal_(torch.empty(codes.shape[1], self.config.dim))
        embedding = centred @ spread
        self.tok_emb.weight[:-1] = embedding * INIT_STD / embedding.std()
        self.bias[:, :-1] = frequency.log()
        self.bias[:, -1] = MASK_BIAS
        if self.config.prior_dim:
            self.prior.set_codes(codes, frequency)


def _init_weights(module: nn.Module) -> None:
    """Normal, std 0.02, cut at -2 and 2 as in the report, for matrices; biases 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
