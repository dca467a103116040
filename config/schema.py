"""A run's config: every setting, typed, ranged and documented; the source of the YAML format.

The settings of stage 1 stand in tokenizer.py, those of stage 2 in transformer.py, those of repairs
in decoding.py. `config/loading.py` reads files into these classes; config/schema.json is generated
from them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from config.decoding import DecodingConfig
from config.section import NoBool, PositiveInt, Section, Share
from config.tokenizer import TokenizerConfig, TokenizerSection, TokenizerTraining
from config.transformer import (
    MaskingConfig,
    SearchConfig,
    TrainingConfig,
    TransformerConfig,
    TransformerSection,
)

__all__ = [
    "Config",
    "DataConfig",
    "DecodingConfig",
    "MaskingConfig",
    "ScoringConfig",
    "SearchConfig",
    "TokenizerConfig",
    "TokenizerSection",
    "TokenizerTraining",
    "TrainingConfig",
    "TransformerConfig",
    "TransformerSection",
]

# A quarter of a grey level; far smaller ones overflow in fp16
Deviation = Annotated[float, Field(ge=1e-3, le=1.0), NoBool]


class DataConfig(Section):
    """The prepared folder (prepare_data.py) and how pixels become numbers."""

    root: Path = Path("data/cats64")
    """Folder with train/, val/, masked_image/ and mask64/."""
    train: Path | None = None
    """Folder of the training images, if not <root>/train."""
    val: Path | None = None
    """Folder of the validation images, if not <root>/val."""
    image_size: Annotated[int, Field(ge=1, le=4_096, strict=True)] = 64
    """Side of the square images in pixels."""
    mean: tuple[Share, Share, Share] = (0.4868, 0.4341, 0.3844)
    """Channel means, 0 to 1 (the lab's)."""
    std: tuple[Deviation, Deviation, Deviation] = (0.2620, 0.2527, 0.2543)
    """Channel standard deviations, 0 to 1."""
    views: Annotated[int, Field(ge=2, le=256, strict=True)] = 2
    """Cached encodings of each training image: itself, its mirror image, then augmented ones."""
    hole_kind: Literal["lab", "brush", "box", "mix"] = "lab"
    """Shape of holes in training, as in prepare_data.py --holes; 5 to 60 % of the image."""

    def folder(self, split: Literal["train", "val"]) -> Path:
        """The folder of a split's images."""
        return getattr(self, split) or self.root / split

    @property
    def normalisation(self) -> str:
        """What weights files state about the pixels that they were trained on."""
        return f"data.mean {list(self.mean)} and data.std {list(self.std)}"

    @property
    def token_cache(self) -> Path:
        """Folder of cached tokens: next to the folder of training images."""
        return self.folder("train").parent / "token_cache"


class ScoringConfig(Section):
    """How reports score repaired images (faster-pytorch-fid)."""

    features: Literal["inception", "efficientnet-lite0", "efficientnet-lite2"] = (
        "efficientnet-lite0"
    )
    """inception gives FID and needs its weights; the others work offline and are not FID."""
    batch_size: PositiveInt = 32
    """Images per batch of features."""


class Config(Section):
    """One run: everything a script reads. Every result in a run's folder can be traced to it."""

    run: Path = Path("runs/maskgit")
    """Folder of the run: weights, logs, curves, samples."""
    pretrained: Path | None = None
    """Folder of released networks, used for repairs while the run has none, never for training."""
    seed: Annotated[int, Field(ge=0, lt=2**63, strict=True)] = 0
    """Seed of everything random."""
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    """auto (CUDA if there is one, else the CPU), cpu, cuda or cuda:N."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """dtype of matrix products; auto takes bf16 where the hardware has it."""
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
        if self.transformer.conditioning == "pixels" and self.transformer.patch_size != patch:
            raise ValueError(
                f"transformer.patch_size {self.transformer.patch_size} with conditioning pixels: "
                f"a token of this tokenizer has {patch} pixels a side; the two must be equal"
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
                f"data.views {self.data.views} with training.mirror false: augmented views are "
                "mirrored half of the time; allowed are 2 views, or mirror true"
            )
        if self.masking.hole_share > 0 and self.transformer.conditioning == "none":
            raise ValueError(
                f"masking.hole_share {self.masking.hole_share} with transformer.conditioning none: "
                "holes are shown to a transformer that sees known pixels; set it to pixels, or "
                "hole_share to 0"
            )
        return self

    @property
    def tokenizer_weights(self) -> Path:
        """The tokenizer's weights: as configured, or those of stage 1 of this run."""
        return self.tokenizer.weights or self.run / "tokenizer" / "vqgan.safetensors"

    @property
    def transformer_weights(self) -> Path:
        """The transformer's weights: as configured, or those of stage 2 of this run."""
        return self.transformer.weights or self.run / "transformer" / "transformer.safetensors"
