"""The bidirectional transformer over tokens (MaskGIT section 3.1).

Attribute names match the keys of the lab's checkpoints, so that they load with
`load_state_dict(..., strict=True)`.

Shapes: B batch, N tokens, D width, K codebook size, M hidden tokens of the whole batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from config.schema import TransformerConfig
from models.attention import MultiHeadSelfAttention
from models.conditioning import InterpolationPrior, known_width
from models.cpu_kernels import Dropout, padded_hidden_positions

LAYER_NORM_EPS = 1e-12
INIT_STD = 0.02
COMPILER = "inductor"
MASK_BIAS = -12.0  # the mask id is never a target


class GridConvolution(nn.Module):
    """Depthwise 3 x 3 convolution over the token grid with a residual, (B, N, D) -> (B, N, D).

    It encodes a token's position by its neighbourhood (Chu et al. 2021, section 3.2).
    """

    def __init__(self, dim: int, grid: int, kernel: int) -> None:
        super().__init__()
        self.grid = grid
        self.conv = nn.Conv2d(dim, dim, kernel, padding=kernel // 2, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.transpose(1, 2).unflatten(2, (self.grid, self.grid))  # (B, D, h, w)
        return x + self.conv(pixels).flatten(2).transpose(1, 2)  # (B, N, D)


class Block(nn.Module):
    """Attention and MLP, each with a residual, (B, N, D) -> (B, N, D)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim, grid = config.dim, math.isqrt(config.num_tokens)
        self.surroundings = (
            GridConvolution(dim, grid, config.conv_kernel) if config.conv_kernel else nn.Identity()
        )
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
            Dropout(config.dropout),
        )
        self.dropout = Dropout(config.dropout)
        self.pre_norm = config.norm == "pre"

    def forward(self, x: Tensor) -> Tensor:
        x = self.surroundings(x)
        if self.pre_norm:
            x = x + self.dropout(self.Attention(self.LayerNorm1(x)))
            return x + self.MLP(self.LayerNorm2(x))
        x = self.LayerNorm1(x + self.dropout(self.Attention(x)))
        return self.LayerNorm2(x + self.MLP(x))


class BidirectionalTransformer(nn.Module):
    """Token ids with mask ids -> logits for every token, over K codes and the mask id.

    `checkpoint_activations` saves only the inputs of each block and recomputes the rest in
    backward: less memory for about a third more time.
    """

    checkpoint_activations = False

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        dim, vocabulary = config.dim, config.codebook_size + 1
        self.tok_emb = nn.Embedding(vocabulary, dim)
        self.pos_emb = nn.Parameter(torch.zeros(config.num_tokens, dim))
        self.LN = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.drop = Dropout(config.dropout)
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
        if config.conditioning == "pixels":
            self.known = _zero_map(known_width(config), dim)
            if config.prior_dim:
                self.known_mean = _zero_map(known_width(config), config.prior_dim + 1)
        self.apply(_start_without_effect)

    @property
    def mask_token_id(self) -> int:
        """The id of hidden tokens: K, one beyond the last code."""
        return self.config.codebook_size

    def forward(
        self, token_ids: Tensor, token_mask: Tensor | None = None, known: Tensor | None = None
    ) -> Tensor:
        """Logits (B, N, K + 1); with a token mask only at its True positions, (M, K + 1).

        token_ids: (B, N) int, mask ids included. token_mask: (B, N) bool; it costs a sync with a
        GPU and breaks a compiled graph, unlike logits at all positions. known:
        (B, N, F) of `known_features`, for a network with conditioning.
        """
        assert (known is not None) == (self.config.conditioning == "pixels")
        neighbours = None
        if self.config.prior_dim:
            neighbours = self.prior.neighbours(token_ids, self.mask_token_id)  # (B, N, C + 1)
            if known is not None:
                # a partly known token's own code
                neighbours = neighbours + self.known_mean(known)  # (B, N, C + 1)
        x, bias = self.body(token_ids, neighbours, known), self.bias  # (B, N, D), (N, K + 1)
        if token_mask is None:
            return self.head(x, bias, neighbours)  # (B, N, K + 1)
        places = padded_hidden_positions(token_mask)  # (P,), P >= M, see cpu_kernels.py
        x, bias = x.flatten(0, 1)[places], bias[places % len(bias)]  # (P, D), (P, K + 1)
        if neighbours is not None:
            neighbours = neighbours.flatten(0, 1)[places]  # (P, C + 1)
        return self.head(x, bias, neighbours)[: token_mask.sum()]  # (M, K + 1)

    def body(self, token_ids: Tensor, neighbours: Tensor | None, known: Tensor | None) -> Tensor:
        """Features before the head, (B, N), (B, N, C + 1) and (B, N, F) -> (B, N, D)."""
        x = self.tok_emb(token_ids) + self.pos_emb  # (B, N, D)
        if neighbours is not None:
            x = x + self.prior.to_width(neighbours)  # (B, N, D)
        if known is not None:
            x = x + self.known(known)  # (B, N, D)
        x = self.drop(self.LN(x))  # (B, N, D)
        recompute = self.checkpoint_activations and self.training and torch.is_grad_enabled()
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
        return self.final_norm(x)

    def head(self, x: Tensor, bias: Tensor, neighbours: Tensor | None) -> Tensor:
        """Logits of features, (..., D), (..., K + 1) and (..., C + 1) -> (..., K + 1)."""
        logits = self.Token_Prediction(x) @ self.tok_emb.weight.T  # tied to the embedding
        logits = logits + bias
        return logits if neighbours is None else logits + self.prior.logits(x, neighbours)

    def compile_parts(self, device: torch.device) -> None:
        """Compile blocks and head in place, which keeps the weights' names; blocks share a graph.

        Compiling the whole network would take longer than a short training run. On a CPU the head
        gets a varying number of rows (the hidden tokens), so it is not compiled.
        """
        for block in self.blocks:
            block.compile(dynamic=False, backend=COMPILER)
        if device.type == "cuda":
            self.head = torch.compile(self.head, dynamic=False, backend=COMPILER)

    @torch.no_grad()
    def start_from_codebook(self, codes: Tensor, frequency: Tensor) -> None:
        """Initialise embeddings with a projection of the codes and biases with log frequencies.

        codes: (K, C) of the tokenizer. frequency: (K,), their shares in training images, above 0.
        """
        centred = codes - codes.mean(0)
        spread = nn.init.orthogonal_(torch.empty(codes.shape[1], self.config.dim))
        embedding = centred @ spread
        self.tok_emb.weight[:-1] = embedding * INIT_STD / embedding.std()
        self.bias[:, :-1] = frequency.log()
        self.bias[:, -1] = MASK_BIAS
        if self.config.prior_dim:
            self.prior.set_codes(codes, frequency)
            nn.init.zeros_(self.prior.correction.weight)


def with_conditioning(
    network: BidirectionalTransformer, patch_size: int
) -> BidirectionalTransformer:
    """The same network with zero-initialised maps of known pixels, which change no logit.

    patch_size: pixels along a token's patch; a network without conditioning has none of its own.
    """
    shown = {"conditioning": "pixels", "patch_size": patch_size}
    config = network.config.model_copy(update=shown)
    grown = BidirectionalTransformer(config)
    grown.load_state_dict(grown.state_dict() | network.state_dict())
    return grown.train(network.training)


def _zero_map(inputs: int, outputs: int) -> nn.Linear:
    """A zero-initialised linear map."""
    linear = nn.Linear(inputs, outputs)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def _init_weights(module: nn.Module) -> None:
    """Matrices: normal with std 0.02, truncated at -2 and 2 as in the report; biases: 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.trunc_normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def _start_without_effect(module: nn.Module) -> None:
    """Zero-initialise additions to the report's block, so that training starts from that block."""
    if isinstance(module, GridConvolution):
        nn.init.zeros_(module.conv.weight)
        nn.init.zeros_(module.conv.bias)
