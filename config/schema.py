"""Every setting of a run, typed, ranged and documented; the single source of the YAML format.

`config/loading.py` reads files into these classes; `config/schema.json` is generated from them.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from config.errors import nearest

Finite = Field(allow_inf_nan=False)
PositiveInt = Annotated[int, Field(ge=1, strict=True)]
Width = Annotated[int, Field(ge=1, le=16_384, strict=True)]
Depth = Annotated[int, Field(ge=1, le=512, strict=True)]
NonNegativeInt = Annotated[int, Field(ge=0, strict=True)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
ProperShare = Annotated[float, Field(ge=0.0, lt=1.0)]
Rate = Annotated[float, Field(gt=0.0, le=1.0)]
PositiveFloat = Annotated[float, Field(gt=0.0), Finite]
NonNegativeFloat = Annotated[float, Field(ge=0.0), Finite]
MaskSchedule = Literal["cosine", "linear", "square", "maskgit_cosine"]
LearningRateSchedule = Literal["constant", "cosine"]

MAX_CODES_BESIDE_A_BIT = 1 << 15  # two bytes hold a token and whether a hole hides it


class Section(BaseModel):
    """A group of settings: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, values: object) -> object:
        """A section whose keys are all commented out reads as null and keeps its defaults."""
        return {} if values is None else values


class TokenizerConfig(Section):
    """The VQGAN. The defaults are the lab's network; the token grid has `grid` x `grid` places."""

    encoder_channels: list[Width] = [128, 128, 128, 256, 256, 512]
    """Width after the first convolution, then after each level of the encoder."""
    encoder_kernels: list[Literal[1, 3]] = [3, 3, 3, 3, 3]
    """Convolution size at each level; 1 keeps a token from seeing beyond what lower levels saw."""
    encoder_blocks: Depth = 2
    """Residual blocks at each encoder level."""
    downsample_after: list[int] = [2, 4]
    """Encoder levels, counted from 0, after which the grid is halved."""
    downsample_kernel: Literal[2, 3] = 3
    """3 is the lab's padded convolution; 2 keeps the token's patch apart from its neighbours'."""
    encoder_attention: bool = True
    """Attention at the token grid in the encoder."""
    decoder_channels: list[Width] = [128, 128, 256, 256, 512]
    """Width of each decoder level, from the image (first) to the token grid (last)."""
    decoder_blocks: Depth = 3
    """Residual blocks at each decoder level."""
    upsample_after: list[int] = [4, 2]
    """Decoder levels, counted from the image, after which the grid is doubled."""
    decoder_attention: bool = True
    """Attention at the token grid in the decoder."""
    norm: Literal["group", "position"] = "group"
    """Group normalisation over the image (the lab's), or at each position by itself."""
    latent_dim: Width = 256
    """Channels C of a code."""
    codebook_size: Annotated[int, Field(ge=1, le=65535, strict=True)] = 1024
    """Number of codes K; two bytes hold a token."""
    normalize_codes: bool = False
    """Compare and decode codes and latents at unit length."""

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
    """Stage 1: how the tokenizer is trained (spec eq. 2). Read by training_vqgan.py."""

    epochs: PositiveInt = 50
    """Passes over the training images."""
    batch_size: PositiveInt = 32
    """Images a step."""
    learning_rate: Rate = 1e-3
    """Peak learning rate of AdamW."""
    warmup_steps: NonNegativeInt = 200
    """Steps over which the learning rate rises from 0 and the latents are not quantised yet."""
    lr_schedule: LearningRateSchedule = "cosine"
    """Learning rate after the warm-up: constant, or a cosine down to a hundredth of the peak."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this norm."""
    mirror: bool = True
    """Show each image mirrored half of the time."""
    augment: Share = 0.0
    """Share of the images shown in a view of their own each time (utils/augment.py)."""
    perceptual: Literal["efficientnet-lite0", "lpips-vgg"] = "efficientnet-lite0"
    """Features of the perceptual term; lpips-vgg needs the package lpips and a network once."""
    perceptual_weight: NonNegativeFloat = 0.2
    """Weight of the perceptual term beside the L1 reconstruction."""
    codebook: Literal["ema", "loss"] = "ema"
    """Codes follow moving averages of their latents, or a loss of their own."""
    codebook_decay: ProperShare = 0.99
    """Decay of the moving averages (van den Oord et al. 2017, appendix A.1)."""
    commitment_weight: NonNegativeFloat = 0.25
    """Beta of van den Oord et al. 2017, eq. 3."""
    restart_below: NonNegativeFloat = 0.1
    """A code used less than this share of the mean use is moved onto a latent of the batch."""
    restart_until: Share = 0.8
    """Share of the training after which codes are left alone."""
    adversarial_weight: NonNegativeFloat = 0.0
    """Weight of the PatchGAN term, on top of the adaptive weight (VQGAN eq. 7); 0 leaves it out."""
    adversarial_start: Share = 0.5
    """Share of the training after which the discriminator joins."""
    ema_half_life: PositiveFloat = 10_000.0
    """Images after which half of the averaged weights are new; the averages are what is used."""
    compile: bool = False
    """Compile the networks (torch.compile): a minute at the start, then faster on a GPU."""
    max_minutes: PositiveFloat | None = None
    """End after this much time, schedules included; such a run cannot be repeated bit by bit."""
    validation_images: PositiveInt = 747
    """Images of val/ that figures are computed on."""
    validate_every: PositiveInt = 1
    """Epochs between validations."""
    checkpoint_every: PositiveInt = 1
    """Epochs between checkpoints."""


class TokenizerSection(TokenizerConfig):
    """The tokenizer, where its weights lie and how they are trained."""

    weights: Path | None = None
    """Weights to use: .safetensors, or a lab .pt. Without it, <run>/tokenizer/vqgan.safetensors."""
    training: TokenizerTraining = TokenizerTraining()


class TransformerConfig(Section):
    """The bidirectional transformer. The defaults are the report's."""

    dim: Width = 768
    """Width D."""
    num_heads: Width = 16
    """Attention heads H; dim must be a multiple of it."""
    num_layers: Depth = 15
    """Blocks."""
    mlp_dim: Annotated[int, Field(ge=1, le=65_536, strict=True)] = 1536
    """Width of the hidden layer of each MLP."""
    dropout: Share = 0.1
    """Dropout after the embedding, on attention probabilities, and after attention and MLP."""
    num_tokens: Annotated[int, Field(ge=1, le=65_536, strict=True)] = 256
    """Tokens N an image; the tokenizer's grid must have as many places."""
    codebook_size: Annotated[int, Field(ge=1, le=65535, strict=True)] = 1024
    """Number of codes K; must equal the tokenizer's."""
    attention: Literal["plain", "fused"] = "plain"
    """plain: written out, q k^T, softmax, v. fused: PyTorch's kernel, the same numbers."""
    norm: Literal["post", "pre"] = "post"
    """Layer normalisation after each residual sum (the report's), or before each sublayer."""
    qkv_bias: bool = False
    """Give q, k and v biases, which the report's attention does without."""
    prior_dim: NonNegativeInt = 0
    """The tokenizer's latent_dim adds an interpolation of known codes to the logits; 0: none."""
    conv_kernel: Literal[0, 3] = 0
    """3: a depthwise convolution over the token grid opens each block (Chu et al. 2021, PEG)."""
    relative_bias: bool = False
    """Add a learned bias per head and 2-D distance to the attention scores (Liu et al. 2021)."""

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> TransformerConfig:
        if self.dim % self.num_heads:
            raise ValueError(
                f"dim {self.dim} is not divisible by num_heads {self.num_heads}; "
                f"allowed num_heads: {_divisors(self.dim)}"
            )
        return self

    @model_validator(mode="after")
    def _grid_is_square(self) -> TransformerConfig:
        square = math.isqrt(self.num_tokens) ** 2 == self.num_tokens
        if (self.conv_kernel or self.relative_bias) and not square:
            raise ValueError(
                f"num_tokens {self.num_tokens} is no square; conv_kernel and relative_bias "
                "need a square token grid"
            )
        return self


class TransformerSection(TransformerConfig):
    """The transformer and where its weights lie."""

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
    min_ratio: Share = 0.0
    """p is at least this, as min_masking_rate in aMUSEd (Patil et al. 2024); the report: 0."""
    shape: Literal["random", "blocks"] = "random"
    """Hide each token by itself (the report, MaskGIT), or rectangles like BEiT's (section 2.3)."""
    hole_share: Share = 0.0
    """Share of images seen as in inpainting, holed and filled; above 0 needs data.hole_views."""


class TrainingConfig(Section):
    """Stage 2: how the transformer is trained. Read by training_transformer.py."""

    init: Literal["random", "codebook"] = "random"
    """Start embeddings at random (the report's), or from the codes and their frequencies."""
    epochs: PositiveInt = 200
    """Passes over the training images."""
    batch_size: PositiveInt = 10
    """Images a forward pass."""
    accumulate: PositiveInt = 10
    """Batches whose gradients are averaged into one optimiser step."""
    learning_rate: Rate = 0.000149456302123
    """Peak learning rate of AdamW; `lr` is accepted too."""
    warmup_steps: NonNegativeInt = 0
    """Optimiser steps over which the learning rate rises linearly from 0."""
    lr_schedule: Literal["constant", "cosine", "step"] = "constant"
    """Rate after the warm-up: constant, a cosine to a hundredth of the peak, or falls by steps."""
    lr_step_epochs: PositiveInt = 50
    """Epochs between two falls of lr_schedule step."""
    lr_step_factor: Rate = 0.1
    """What the rate is multiplied by at each of them."""
    betas: tuple[ProperShare, ProperShare] = (0.9, 0.96)
    """AdamW's averages (MaskGIT appendix)."""
    weight_decay: NonNegativeFloat = 0.0
    """AdamW's decay of matrices; biases, norms and embeddings never decay."""
    max_grad_norm: PositiveFloat | None = None
    """Gradients are scaled down to this norm; null leaves them."""
    ema_half_life: NonNegativeFloat = 0.0
    """Images after which half of the averaged weights are new; 0 keeps the last weights."""
    mirror: bool = True
    """Train on the mirror images too."""
    checkpoint_activations: bool = False
    """Compute activations twice instead of keeping them (Chen et al. 2016): less memory, slower."""
    compile: bool = False
    """Compile the blocks (torch.compile): a minute at the start, then faster on a GPU."""
    max_minutes: PositiveFloat | None = None
    """End after this time, the rate fully decayed; such a run cannot be repeated bit by bit."""
    validation_images: PositiveInt = 512
    """Images of val/ that figures are computed on."""
    validate_every: PositiveInt = 1
    """Epochs between validations; the last epoch always has one."""
    checkpoint_every: PositiveInt = 1
    """Epochs between checkpoints; the last epoch always has one."""
    pictures_every: NonNegativeInt = 10
    """Epochs between pictures of repaired val images, each with a checkpoint; 0 makes none."""

    @property
    def images_a_step(self) -> int:
        """Images an optimiser step."""
        return self.batch_size * self.accumulate


class SearchRange(Section):
    """The range of one setting that a search varies."""

    low: Annotated[float, Finite]
    """Lower end."""
    high: Annotated[float, Finite]
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

    trials: PositiveInt = 10
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
    subset: Rate = 1.0
    """Share of the training images that the trials use, the same ones in each."""
    rungs: NonNegativeInt = 4
    """Looks at a trial before its end, at a half of its training, a quarter, and so on."""
    cost: Rate = 0.3
    """Share of the trials' full training to spend; beyond, only a trial ahead of all goes on."""
    seeds: NonNegativeInt = 2
    """Other seeds that the best trial is repeated with, to tell merit from chance."""

    @field_validator("space")
    @classmethod
    def _space_names_numbers(cls, space: dict[str, SearchRange]) -> dict[str, SearchRange]:
        for key, ends in space.items():
            section, name, whole = _searchable(key)
            for end in ("low", "high"):
                value = getattr(ends, end)
                if whole and not value.is_integer():
                    raise ValueError(f"{key} counts something; its {end} {value} is not whole")
                _within(section, name, int(value) if whole else value, f"{key}: {end}")
        return space

    @model_validator(mode="after")
    def _range_is_a_range(self) -> SearchConfig:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        return self


class DecodingConfig(Section):
    """Inpainting by iterative decoding (spec section 6). Read by inpainting.py."""

    rule: Literal["listing", "maskgit"] = "listing"
    """listing: the report's code, two curves on top of each other. maskgit: the paper's."""
    mask_schedule: MaskSchedule = "cosine"
    """The schedule of --mask-func: how fast tokens are revealed."""
    total_iter: Annotated[int, Field(ge=1, le=10_000, strict=True)] = 10
    """Iterations T that the schedule is stretched over."""
    sweet_spot: PositiveInt | None = None
    """Stop after this many iterations, at most total_iter; null runs them all."""
    choice_temperature: NonNegativeFloat = 4.5
    """Scale of the Gumbel noise on confidences at the start; it falls to 0."""
    order: Literal["confidence", "random", "halton", "revise"] = "confidence"
    """Which tokens are revealed first; revise may decide anew what it chose, never known ones."""
    token_choice: Literal["rule", "argmax", "sample"] = "rule"
    """The most probable token or one drawn; rule: listing takes argmax, maskgit draws."""
    temperature: PositiveFloat = 1.0
    """Divides the logits where tokens are drawn; confidences are the model's own."""
    top_k: PositiveInt | None = None
    """Draw among so many of the most probable tokens; null draws among all."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Draw among the fewest tokens of this total probability (Holtzman et al. 2020)."""
    dilate: NonNegativeInt = 0
    """Tokens by which the hidden area grows on all sides; bench/leak.py suggests a number."""
    hole_fill: Literal["grey", "mean", "harmonic", "biharmonic"] = "grey"
    """What holes hold before encoding: the lab's grey, the known mean, or a smooth fill."""
    composite: Literal["none", "hard", "feather"] = "none"
    """hard: known pixels pasted back; feather: and no seam, as always in other sizes' pictures."""
    feather_width: PositiveFloat = 8.0
    """Pixels into the hole over which feather fades out; two tokens."""
    samples: Annotated[int, Field(ge=1, le=1_000, strict=True)] = 1
    """Different repairs of each image, encoded once; beyond one, names end in _s0, _s1, ..."""
    step_pictures: bool = True
    """Write the token masks and the image after every step beside the result."""
    comparison: bool = True
    """Write a strip for each image: masked, inpainted and, where it is known, the truth."""
    animation: Literal["none", "gif", "webp"] = "none"
    """Write the image after every step as an animation."""
    batch_size: PositiveInt | Literal["auto"] = "auto"
    """Images in one go; auto: by the device. No pixel depends on it."""

    @model_validator(mode="after")
    def _sweet_spot_within_total(self) -> DecodingConfig:
        if self.sweet_spot is not None and self.sweet_spot > self.total_iter:
            raise ValueError(
                f"sweet_spot {self.sweet_spot} lies beyond total_iter {self.total_iter}; "
                f"allowed are 1 to {self.total_iter}"
            )
        return self

    @model_validator(mode="after")
    def _samples_differ(self) -> DecodingConfig:
        draws = self.token_choice == "sample" or (
            self.token_choice == "rule" and self.rule == "maskgit"
        )
        is_noisy = self.order in ("confidence", "revise") and self.choice_temperature > 0
        if self.samples > 1 and not (draws or is_noisy or self.order == "random"):
            raise ValueError(
                f"samples {self.samples} would all be equal, since nothing is drawn; allowed is 1, "
                "or choice_temperature above 0, or token_choice sample"
            )
        return self


class DataConfig(Section):
    """The prepared folder (prepare_data.py) and how pixels become numbers."""

    root: Path = Path("data/cats64")
    """Folder with train/, val/, masked_image/ and mask64/."""
    train: Path | None = None
    """Folder of the training images, where it is not <root>/train."""
    val: Path | None = None
    """Folder of the validation images, where it is not <root>/val."""
    image_size: Annotated[int, Field(ge=1, le=4_096, strict=True)] = 64
    """Side of the square images in pixels."""
    mean: tuple[Share, Share, Share] = (0.4868, 0.4341, 0.3844)
    """Channel means, 0 to 1 (spec section 1)."""
    std: tuple[Rate, Rate, Rate] = (0.2620, 0.2527, 0.2543)
    """Channel standard deviations, 0 to 1."""
    views: Annotated[int, Field(ge=2, le=256, strict=True)] = 2
    """Kept encodings of each training image: itself, its mirror image, then augmented ones."""
    hole_views: Annotated[int, Field(ge=0, le=256, strict=True)] = 0
    """Kept encodings of each training image with a hole, filled as decoding.hole_fill says."""
    hole_kind: Literal["lab", "brush", "box", "mix"] = "lab"
    """Shape of those holes, as in prepare_data.py --holes; they cover 15 to 35 % of the image."""

    def folder(self, split: Literal["train", "val"]) -> Path:
        """The folder of a split's images."""
        return getattr(self, split) or self.root / split


class ScoringConfig(Section):
    """How reports score repaired images (faster-pytorch-fid)."""

    features: Literal["inception", "efficientnet-lite0"] = "efficientnet-lite0"
    """inception gives FID and needs its weights; efficientnet-lite0 works offline, is not FID."""
    batch_size: PositiveInt = 32
    """Images a feature batch."""


class Config(Section):
    """One run: everything a script reads. A run is a folder that can be traced to this file."""

    run: Path = Path("runs/maskgit")
    """Folder of the run: weights, logs, curves, samples."""
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 0
    """Seed of everything random."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """auto (CUDA if there is one, else the CPU), cpu, cuda or cuda:N."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of matrix products; auto takes bf16 where the hardware has it."""
    data: DataConfig = DataConfig()
    tokenizer: TokenizerSection = TokenizerSection()
    transformer: TransformerSection = TransformerSection()
    masking: MaskingConfig = MaskingConfig()
    training: TrainingConfig = TrainingConfig()
    search: SearchConfig = SearchConfig()
    decoding: DecodingConfig = DecodingConfig()
    scoring: ScoringConfig = ScoringConfig()

    @model_validator(mode="after")
    def _stages_fit(self) -> Config:
        patch = 2 ** len(self.tokenizer.downsample_after)
        grid = self.data.image_size // patch
        if self.data.image_size % patch:
            raise ValueError(
                f"data.image_size {self.data.image_size} is no multiple of a token's {patch} pixels"
            )
        if grid * grid != self.transformer.num_tokens:
            raise ValueError(
                f"transformer.num_tokens {self.transformer.num_tokens} does not match the token "
                f"grid: data.image_size {self.data.image_size} halved "
                f"{len(self.tokenizer.downsample_after)} times gives {grid} x {grid} = {grid**2}"
            )
        if self.tokenizer.codebook_size != self.transformer.codebook_size:
            raise ValueError(
                f"transformer.codebook_size {self.transformer.codebook_size} differs from "
                f"tokenizer.codebook_size {self.tokenizer.codebook_size}; they must be equal"
            )
        if self.transformer.prior_dim not in (0, self.tokenizer.latent_dim):
            raise ValueError(
                f"transformer.prior_dim {self.transformer.prior_dim} differs from "
                f"tokenizer.latent_dim; allowed are 0 and {self.tokenizer.latent_dim}"
            )
        return self

    @model_validator(mode="after")
    def _views_fit(self) -> Config:
        if self.data.views > 2 and not self.training.mirror:
            raise ValueError(
                f"data.views {self.data.views} beside training.mirror false: augmented views are "
                "mirrored half of the time; allowed are 2 views, or mirror true"
            )
        if self.masking.hole_share > 0 and self.data.hole_views == 0:
            raise ValueError(
                f"masking.hole_share {self.masking.hole_share} needs encodings of holed images; "
                "set data.hole_views to at least 1"
            )
        if self.data.hole_views and self.tokenizer.codebook_size > MAX_CODES_BESIDE_A_BIT:
            raise ValueError(
                f"tokenizer.codebook_size {self.tokenizer.codebook_size} leaves no bit for holes; "
                f"with data.hole_views at most {MAX_CODES_BESIDE_A_BIT}"
            )
        return self

    @property
    def tokenizer_weights(self) -> Path:
        """The tokenizer's weights: as configured, or where stage 1 of this run leaves them."""
        return self.tokenizer.weights or self.run / "tokenizer" / "vqgan.safetensors"

    @property
    def transformer_weights(self) -> Path:
        """The transformer's weights: as configured, or where stage 2 of this run leaves them."""
        return self.transformer.weights or self.run / "transformer" / "transformer.safetensors"


SEARCHED = {"transformer": TransformerConfig, "masking": MaskingConfig, "training": TrainingConfig}
NOT_SEARCHED = {  # what the tokenizer fixes, and what a trial's budget and its measure are made of
    *("transformer.num_tokens", "transformer.codebook_size", "transformer.prior_dim"),
    *("training.epochs", "training.max_minutes", "training.learning_rate"),
    *("training.validation_images", "training.validate_every", "training.checkpoint_every"),
    "training.pictures_every",
}


def is_whole(key: str) -> bool:
    """Whether a key of search.space is a whole number by itself, e.g. training.warmup_steps."""
    return _searchable(key)[2]


def _searchable(key: str) -> tuple[type[Section], str, bool]:
    """Section, name and wholeness of a numeric setting; a `ValueError` for any other key."""
    kinds = {
        f"{section}.{name}": _number_kind(schema)
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
    section, name = key.split(".")
    return SEARCHED[section], name, kinds[key] == "integer"


def _number_kind(schema: dict) -> str | None:
    """'integer' or 'number' if that is what a JSON schema describes, perhaps beside null."""
    kinds = [schema.get("type"), *(option.get("type") for option in schema.get("anyOf", ()))]
    return next((kind for kind in kinds if kind in ("integer", "number")), None)


def _within(section: type[Section], name: str, value: float, what: str) -> None:
    """Raise a `ValueError` if a section does not allow this value by itself."""
    try:
        section.model_validate({name: value})
    except ValidationError as error:
        for problem in error.errors():
            if problem["loc"] == (name,):
                message = problem["msg"][0].lower() + problem["msg"][1:]
                raise ValueError(f"{what} {value}: {message}") from None


def _divisors(number: int) -> str:
    return ", ".join(str(n) for n in range(1, number + 1) if number % n == 0)
