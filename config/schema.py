"""Every setting of a run, typed, ranged and documented; the single source of the YAML format.

`config/loading.py` reads files into these classes; `config/schema.json` is generated from them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
Rate = Annotated[float, Field(gt=0.0, le=1.0)]
Channel = tuple[float, float, float]


class Section(BaseModel):
    """A group of settings: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True
    )


class TokenizerConfig(Section):
    """The VQGAN. The defaults are the lab's network; the token grid has `grid` x `grid` places."""

    encoder_channels: list[PositiveInt] = [128, 128, 128, 256, 256, 512]
    """Width after the first convolution, then after each level of the encoder."""
    encoder_kernels: list[Literal[1, 3]] = [3, 3, 3, 3, 3]
    """Convolution size at each level; 1 keeps a token from seeing beyond what lower levels saw."""
    encoder_blocks: PositiveInt = 2
    """Residual blocks at each encoder level."""
    downsample_after: list[int] = [2, 4]
    """Encoder levels, counted from 0, after which the grid is halved."""
    downsample_kernel: Literal[2, 3] = 3
    """3 is the lab's padded convolution; 2 keeps the token's patch apart from its neighbours'."""
    encoder_attention: bool = True
    """Attention at the token grid in the encoder."""
    decoder_channels: list[PositiveInt] = [128, 128, 256, 256, 512]
    """Width of each decoder level, from the image (first) to the token grid (last)."""
    decoder_blocks: PositiveInt = 3
    """Residual blocks at each decoder level."""
    upsample_after: list[int] = [4, 2]
    """Decoder levels, counted from the image, after which the grid is doubled."""
    decoder_attention: bool = True
    """Attention at the token grid in the decoder."""
    norm: Literal["group", "position"] = "group"
    """Group normalisation over the image (the lab's), or at each position by itself."""
    latent_dim: PositiveInt = 256
    """Channels C of a code."""
    codebook_size: PositiveInt = 1024
    """Number of codes K."""
    normalize_codes: bool = False
    """Compare and decode codes and latents at unit length."""


class MaskGITConfig(Section):
    tokenizer: TokenizerConfig = TokenizerConfig()
