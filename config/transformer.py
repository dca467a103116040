"""Settings of stage 2: the transformer, what is hidden from it, how it is trained and searched."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from config.errors import nearest
from config.section import (
    Depth,
    Finite,
    LearningRateSchedule,
    MaskSchedule,
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
    reason_against,
)


class TransformerConfig(Section):
    """The bidirectional transformer. The defaults are the report's."""

    dim: Width = 768
    """Width D."""
    num_heads: Width = 16
    """Attention heads H; must divide dim."""
    num_layers: Depth = 15
    """Blocks."""
    mlp_dim: Annotated[int, Field(ge=1, le=65_536, strict=True)] = 1536
    """Width of the hidden layer of each MLP."""
    dropout: Share = 0.1
    """Dropout after the embedding, on attention probabilities, and after attention and MLP."""
    num_tokens: Annotated[int, Field(ge=1, le=65_536, strict=True)] = 256
    """Tokens N per image; must match the tokenizer's grid."""
    codebook_size: Annotated[int, Field(ge=1, le=65535, strict=True)] = 1024
    """Number of codes K; must equal the tokenizer's."""
    attention: Literal["plain", "fused"] = "plain"
    """plain: softmax(q k^T / √d) v, written out. fused: a faster kernel with the same results."""
    norm: Literal["post", "pre"] = "post"
    """Layer normalisation after each residual sum (the report's), or before each sublayer."""
    qkv_bias: bool = False
    """Biases of q, k and v, which the report's attention does not have."""
    prior_dim: NonNegativeInt = 0
    """Set to the tokenizer's latent_dim to add an interpolation of known codes to the logits."""
    conditioning: Literal["none", "pixels"] = "none"
    """pixels: show every position its filled patch, its known-pixel mask, and its latents."""
    patch_size: Width = 4
    """Pixels along a token's patch, for conditioning."""
    conv_kernel: Literal[0, 3] = 0
    """3: a depthwise convolution over the token grid before each block (Chu et al. 2021, PEG)."""

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> TransformerConfig:
        if self.dim % self.num_heads:
            divisors = ", ".join(str(n) for n in range(1, self.dim + 1) if self.dim % n == 0)
            raise ValueError(
                f"dim {self.dim} is not divisible by num_heads {self.num_heads}; "
                f"allowed num_heads: {divisors}"
            )
        return self

    @model_validator(mode="after")
    def _grid_is_square(self) -> TransformerConfig:
        if self.conv_kernel and math.isqrt(self.num_tokens) ** 2 != self.num_tokens:
            raise ValueError(
                f"num_tokens {self.num_tokens} is no square; conv_kernel needs a square token grid"
            )
        return self


class TransformerSection(TransformerConfig):
    """The transformer and its weights."""

    weights: Path | None = None
    """Weights to use. Without it, <run>/transformer/transformer.safetensors."""


class MaskingConfig(Section):
    """Masked visual token modelling: what is hidden in training and what the loss covers."""

    mask_schedule: MaskSchedule = "cosine"
    """The model's gamma(r). Training may draw p from it; the listing decode rule applies it."""
    ratio: Literal["uniform", "schedule"] = "uniform"
    """p is r itself (the report's code), or gamma(r) (its text and MaskGIT); r ~ U(0, 1)."""
    ratio_per: Literal["batch", "sample"] = "batch"
    """One r for the whole batch (the report's code), or one for each image (MaskGIT)."""
    loss_on: Literal["all", "hidden"] = "all"
    """Cross-entropy over all tokens (the report's code), or over the hidden ones (MaskGIT)."""
    label_smoothing: ProperShare = 0.0
    """Share of the target spread over all K + 1 ids (MaskGIT: 0.1)."""
    hole_share: Share = 0.0
    """Share of images with a hole of data.hole_kind, new in each epoch; the others miss whole
    patches. For transformer.conditioning pixels."""


class TrainingConfig(Section):
    """Stage 2: how the transformer is trained. Read by training_transformer.py."""

    init: Literal["random", "codebook"] = "random"
    """Start embeddings at random (the report's), or from the codes and their frequencies."""
    epochs: PositiveInt = 200
    """Passes over the training images."""
    batch_size: PositiveInt = 10
    """Images per forward pass."""
    accumulate: PositiveInt = 10
    """Batches whose gradients are averaged into one optimiser step."""
    learning_rate: Rate = 0.000149456302123
    """Peak learning rate of AdamW; `lr` is accepted too."""
    warmup_steps: NonNegativeInt = 0
    """Optimiser steps over which the learning rate rises linearly from 0."""
    lr_schedule: LearningRateSchedule = "constant"
    """Learning rate after the warm-up: constant, or a cosine down to a hundredth of the peak."""
    betas: tuple[ProperShare, ProperShare] = (0.9, 0.96)
    """AdamW's betas (MaskGIT appendix)."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's weight decay of matrices; none for biases, norms and embeddings."""
    max_grad_norm: PositiveFloat | None = None
    """Clip gradients to this norm; null: no clipping."""
    ema_half_life: NonNegativeFloat = 0.0
    """Half-life, in images, of the weights' moving average; 0: no averaging."""
    mirror: bool = True
    """Train on mirror images too."""
    checkpoint_activations: bool = False
    """Recompute activations in backward (Chen et al. 2016): less memory, slower."""
    compile: bool = False
    """Compile the blocks (torch.compile): a minute at the start, then faster on a GPU."""
    max_minutes: PositiveFloat | None = None
    """Time limit in minutes; the rate is fully decayed then. Such a run is not reproducible."""
    validation_images: PositiveInt = 512
    """Images of val/ to validate on."""
    validate_every: PositiveInt = 1
    """Epochs between validations; the last epoch always has one."""
    checkpoint_every: PositiveInt = 1
    """Epochs between checkpoints; the last epoch always has one."""
    pictures_every: NonNegativeInt = 10
    """Epochs between pictures of repaired val images, each with a checkpoint; 0: none."""

    @property
    def images_per_step(self) -> int:
        """Images per optimiser step."""
        return self.batch_size * self.accumulate


SEARCHED = {"transformer": TransformerConfig, "masking": MaskingConfig, "training": TrainingConfig}
NOT_SEARCHED = {  # fixed by the tokenizer, or part of a trial's budget or objective
    *("transformer.num_tokens", "transformer.codebook_size", "transformer.prior_dim"),
    *("training.epochs", "training.max_minutes", "training.learning_rate"),
    *("training.validation_images", "training.validate_every", "training.checkpoint_every"),
    "training.pictures_every",
}
NUMBERS = {"integer", "number"}  # types in a JSON schema


class SearchRange(Section):
    """The range of one setting that a search varies."""

    low: Annotated[float, Finite, NoBool]
    """Lower end."""
    high: Annotated[float, Finite, NoBool]
    """Upper end."""
    log: bool = False
    """Draw evenly on a logarithmic scale."""
    int: bool = False
    """Whole numbers only; settings that count something are drawn whole in any case."""

    @model_validator(mode="after")
    def _range_is_a_range(self) -> SearchRange:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"log needs a low above 0, found {self.low}")
        if self.int and not (self.low.is_integer() and self.high.is_integer()):
            raise ValueError(f"int needs whole ends, found {self.low} and {self.high}")
        return self


class SearchConfig(Section):
    """Optuna's search for the learning rate (training_transformer.py --lr-search, docs/search.md).

    Ten trials, minimised, one parameter learning_rate (the report).
    """

    trials: Annotated[int, Field(ge=1, le=10_000, strict=True)] = 10
    """Trials of the study; --lr-search N."""
    low: Rate = 1e-5
    """Lower end of the log-uniform range of learning rates."""
    high: Rate = 1e-2
    """Upper end of the range."""
    space: dict[str, SearchRange] = {}
    """Numeric settings to vary as well, e.g. training.weight_decay: {low: 0.0, high: 0.1}."""
    epochs: PositiveInt = 1
    """Epochs each trial trains; its learning-rate schedule ends there too."""
    steps: PositiveInt | None = None
    """Optimiser steps each trial trains at most, instead of epochs."""
    seeds: Annotated[int, Field(ge=0, le=1_000, strict=True)] = 2
    """Other seeds that the best trial is repeated with, to measure the spread over seeds."""

    @field_validator("space")
    @classmethod
    def _space_names_numbers(cls, space: dict[str, SearchRange]) -> dict[str, SearchRange]:
        for key, ends in space.items():
            whole = is_whole(key)
            section, name = key.split(".")
            for end in ("low", "high"):
                value = getattr(ends, end)
                if whole and not value.is_integer():
                    raise ValueError(f"{key} counts something; its {end} {value} is not whole")
                value = int(value) if whole else value
                if reason := reason_against(SEARCHED[section], name, value):
                    raise ValueError(f"{key}: {end} {value}: {reason}")
        return space

    @model_validator(mode="after")
    def _range_is_a_range(self) -> SearchConfig:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        return self


def is_whole(key: str) -> bool:
    """Whether a key of search.space is an integer setting, e.g. training.warmup_steps.

    Raises `ValueError` for a key that is no numeric setting, or that no search may vary.
    """
    kinds = {
        f"{section}.{name}": NUMBERS & {s.get("type") for s in (schema, *schema.get("anyOf", ()))}
        for section, model in SEARCHED.items()
        for name, schema in model.model_json_schema()["properties"].items()
    }
    known = [name for name, kind in kinds.items() if kind and name not in NOT_SEARCHED]
    if key == "training.learning_rate":
        raise ValueError(f"{key} is always searched, from search.low to search.high")
    if key in kinds and not kinds[key]:
        raise ValueError(f"{key} is no number; allowed are {', '.join(known)}")
    if key in NOT_SEARCHED:
        raise ValueError(f"{key} must stay the same in all trials; allowed are {', '.join(known)}")
    if key not in kinds:
        raise ValueError(f"{key} is unknown{nearest(key, known)}; allowed are {', '.join(known)}")
    return "integer" in kinds[key]
