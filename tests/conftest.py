"""Tiny networks and settings that every test may build on: 16 tokens, 16 codes, 16 x 16 pixels."""

from __future__ import annotations

import pytest
import torch

from config.schema import TokenizerConfig, TransformerConfig
from models.maskgit import MaskGIT
from models.transformer import BidirectionalTransformer
from models.vqgan import VQGAN

torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def tokenizer_config() -> TokenizerConfig:
    """16 x 16 pixels -> 4 x 4 tokens of 4 x 4 pixels."""
    return TokenizerConfig(
        encoder_channels=[8, 8, 8],
        encoder_kernels=[3, 3],
        encoder_blocks=1,
        downsample_after=[0, 1],
        decoder_channels=[8, 8],
        decoder_blocks=1,
        upsample_after=[1, 0],
        latent_dim=8,
        codebook_size=16,
    )


@pytest.fixture
def transformer_config() -> TransformerConfig:
    return TransformerConfig(
        dim=16, num_heads=4, num_layers=2, mlp_dim=32, dropout=0.0, num_tokens=16, codebook_size=16
    )


@pytest.fixture
def tokenizer(tokenizer_config: TokenizerConfig) -> VQGAN:
    """An untrained tokenizer; its codes are latents of noise, so that images use many of them."""
    torch.manual_seed(0)
    vqgan = VQGAN(tokenizer_config).eval()
    with torch.no_grad():
        latents = vqgan.latents(torch.randn(16, 3, 16, 16)).flatten(0, 2)
        vqgan.codebook.embedding.weight.copy_(latents[:: len(latents) // 16])
    return vqgan


@pytest.fixture
def transformer(transformer_config: TransformerConfig) -> BidirectionalTransformer:
    """An untrained transformer with weights large enough for opinions."""
    torch.manual_seed(0)
    model = BidirectionalTransformer(transformer_config)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)
    return model.eval()


@pytest.fixture
def maskgit(tokenizer: VQGAN, transformer: BidirectionalTransformer) -> MaskGIT:
    return MaskGIT(tokenizer, transformer, "cosine").eval()
