"""Settings of stage 1: the VQGAN, its weights, and how it is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from config.section import (
    Depth,
    LearningRateSchedule,
    NoBool,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ProperShare,
    Rate,
    Section,
    Share,
    Width,
)

Level = Annotated[int, Field(strict=True)]


class TokenizerConfig(Section):
    """The VQGAN. The defaults are the lab's network."""

    encoder_channels: list[Width] = [128, 128, 128, 256, 256, 512]
    """Width after the first convolution, then after each level of the encoder."""
    encoder_kernels: list[Annotated[Literal[1, 3], NoBool]] = [3, 3, 3, 3, 3]
    """Kernel size at each level; 1 does not widen a token's receptive field."""
    encoder_blocks: Depth = 2
    """Residual blocks at each encoder level."""
    downsample_after: list[Level] = [2, 4]
    """Encoder levels, counted from 0, after which the grid is halved."""
    downsample_kernel: Literal[2, 3] = 3
    """3: the lab's padded convolution; 2: unpadded, patches do not overlap."""
    encoder_attention: bool = True
    """Attention at the token grid in the encoder."""
    decoder_channels: list[Width] = [128, 128, 256, 256, 512]
    """Width of each decoder level, from the image (first) to the token grid (last)."""
    decoder_blocks: Depth = 3
    """Residual blocks at each decoder level."""
    upsample_after: list[Level] = [4, 2]
    """Decoder levels, counted from the image, after which the grid is doubled."""
    decoder_attention: bool = True
    """Attention at the token grid in the decoder."""
    norm: Literal["group", "position"] = "group"
    """Group normalisation over the image (the lab's), or layer normalisation at each position."""
    latent_dim: Width = 256
    """Channels C of a code."""
    codebook_size: Annotated[int, Field(ge=1, le=65535, strict=True)] = 1024
    """Number of codes K; must equal the transformer's."""

    decoder_conditioning: Literal["none", "pixels"] = "none"
    """pixels: show the decoder the filled image and which of its pixels are known."""

    @property
    def conditioned(self) -> bool:
        """Whether the decoder sees known pixels."""
        return self.decoder_conditioning == "pixels"

    @model_validator(mode="after")
    def _levels_agree(self) -> TokenizerConfig:
        widths, levels = len(self.encoder_channels), len(self.encoder_kernels)
        if widths != levels + 1:
            raise ValueError(
                f"encoder_channels has {widths} entries and encoder_kernels {levels}; allowed is "
                "one width more than kernels"
            )
        counts = {"downsample_after": levels, "upsample_after": len(self.decoder_channels)}
        for key, count in counts.items():
            found = getattr(self, key)
            if len(set(found)) != len(found) or not all(0 <= level < count for level in found):
                raise ValueError(f"{key} is {found}; allowed are different levels 0 to {count - 1}")
        if len(self.downsample_after) != len(self.upsample_after):
            raise ValueError(
                f"downsample_after {self.downsample_after} and upsample_after "
                f"{self.upsample_after} must name equally many levels"
            )
        return self


class TokenizerTraining(Section):
    """Stage 1: how the tokenizer is trained (VQGAN, eq. 6). Read by training_vqgan.py."""

    epochs: PositiveInt = 50
    """Passes over the training images."""
    batch_size: PositiveInt = 32
    """Images per step."""
    learning_rate: Rate = 1e-3
    """Peak learning rate of AdamW."""
    warmup_steps: NonNegativeInt = 200
    """Steps over which the learning rate rises from 0 and the latents are not quantised yet."""
    lr_schedule: LearningRateSchedule = "cosine"
    """Learning rate after the warm-up: constant, or a cosine down to a hundredth of the peak."""
    max_grad_norm: PositiveFloat = 1.0
    """Clip gradients to this norm."""
    mirror: bool = True
    """Show each image mirrored half of the time."""
    perceptual_size: Annotated[int, Field(ge=32, le=1024, strict=True)] = 128
    """Side in pixels to which images are resized for the perceptual term, whose network
    (EfficientNet-Lite0) was trained on 224."""
    perceptual_weight: NonNegativeFloat = 0.2
    """Weight of the perceptual term relative to the L1 reconstruction."""
    codebook: Literal["ema", "loss"] = "ema"
    """Update codes by moving averages of their latents, or by a codebook loss."""
    codebook_decay: ProperShare = 0.99
    """Decay of the moving averages (van den Oord et al. 2017, appendix A.1)."""
    commitment_weight: NonNegativeFloat = 0.25
    """Beta of van den Oord et al. 2017, eq. 3."""
    restart_below: NonNegativeFloat = 0.1
    """A code used less than this share of the mean use is moved onto a latent of the batch."""
    restart_until: Share = 0.8
    """Share of the training after which codes are no longer restarted."""
    adversarial_weight: NonNegativeFloat = 0.0
    """Weight of the PatchGAN term, on top of the adaptive weight (VQGAN eq. 7); 0 leaves it out."""
    adversarial_start: Share = 0.5
    """Share of the training after which the discriminator joins."""
    decoder_only: bool = False
    """Train only the decoder of given weights: tokens do not change, so transformers stay valid."""
    transformer: Path | None = None
    """Transformer weights that sample hidden tokens, for decoder_conditioning pixels."""
    sampled_share: Share = 0.5
    """Share of the images whose hidden tokens it samples; the others are decoded from true ones."""
    ema_half_life: PositiveFloat = 10_000.0
    """Half-life, in images, of the weights' moving average; the averaged weights are used."""
    compile: bool = False
    """Compile the networks (torch.compile): a minute at the start, then faster on a GPU."""
    max_minutes: PositiveFloat | None = None
    """Time limit in minutes, which schedules follow; such a run is not reproducible."""
    validation_images: PositiveInt = 747
    """Images of val/ to validate on."""
    validate_every: PositiveInt = 1
    """Epochs between validations."""
    checkpoint_every: PositiveInt = 1
    """Epochs between checkpoints."""


class TokenizerSection(TokenizerConfig):
    """The tokenizer, its weights and how they are trained."""

    weights: Path | None = None
    """Weights to use: .safetensors, or a lab .pt. Without it, <run>/tokenizer/vqgan.safetensors."""
    training: TokenizerTraining = TokenizerTraining()
