"""Settings of inpainting by iterative decoding."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from config.section import (
    MaskSchedule,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
)


class DecodingConfig(Section):
    """Inpainting by iterative decoding (Chang et al. 2022, section 3.2). Read by inpainting.py."""

    rule: Literal["listing", "maskgit"] = "listing"
    """listing: the report's code, two curves on top of each other. maskgit: the paper's."""
    mask_schedule: MaskSchedule = "cosine"
    """The schedule of --mask-func: how fast tokens are revealed."""
    total_iter: Annotated[int, Field(ge=1, le=10_000, strict=True)] = 10
    """Iterations T that the schedule is stretched over."""
    sweet_spot: PositiveInt | None = None
    """Stop after this many iterations, or after total_iter if those are fewer; null: run all."""
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

    @property
    def steps(self) -> int:
        """Iterations that are run."""
        return min(self.sweet_spot or self.total_iter, self.total_iter)

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
