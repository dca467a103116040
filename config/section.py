"""Base class and value types of all config sections, and the settings that were removed."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from config.errors import UserError


def _no_truth_value(value: object) -> object:
    """YAML reads yes and on as true, which would count as 1; strict floats would refuse 1e-4."""
    if isinstance(value, bool):
        raise ValueError("input should be a valid number")
    return value


NoBool = BeforeValidator(_no_truth_value)
Finite = Field(allow_inf_nan=False)
PositiveInt = Annotated[int, Field(ge=1, strict=True)]
Width = Annotated[int, Field(ge=1, le=16_384, strict=True)]
Depth = Annotated[int, Field(ge=1, le=512, strict=True)]
NonNegativeInt = Annotated[int, Field(ge=0, strict=True)]
Share = Annotated[float, Field(ge=0.0, le=1.0), NoBool]
ProperShare = Annotated[float, Field(ge=0.0, lt=1.0), NoBool]
Rate = Annotated[float, Field(gt=0.0, le=1.0), NoBool]
PositiveFloat = Annotated[float, Field(gt=0.0), Finite, NoBool]
NonNegativeFloat = Annotated[float, Field(ge=0.0), Finite, NoBool]
NOTHING = ("none", "nil", "null")  # words for null, which YAML and Python read as text
Key = tuple[str | int, ...]  # path of a value, e.g. ("training", "learning_rate")
MaskSchedule = Literal[  # functions of models/masking.py
    "cosine", "linear", "square", "maskgit_cosine", "sqrt", "constant"
]
LearningRateSchedule = Literal["constant", "cosine"]


class Removed(NamedTuple):
    """A removed setting."""

    off: Any
    """The value without effect, which earlier versions wrote into every config."""
    advice: str
    """What to do if it had another value."""


REMOVED = {
    "tokenizer.normalize_codes": Removed(
        False, "codes of unit length used fewer codes; train such a tokenizer again"
    ),
    "tokenizer.training.perceptual": Removed(
        "efficientnet-lite0", "it is always efficientnet-lite0; leave the key out"
    ),
    "tokenizer.training.augment": Removed(
        0.0, "augmented views did not improve stage 1 (docs/tokenizer.md); leave the key out"
    ),
    "tokenizer.training.adversarial_rate": Removed(
        1.0, "the discriminator learns at the rate of the other networks; leave the key out"
    ),
    "training.lr_step_epochs": Removed(50, "use training.lr_schedule: cosine instead"),
    "training.lr_step_factor": Removed(0.1, "use training.lr_schedule: cosine instead"),
    "data.hole_views": Removed(
        0, "holes are drawn for each image and epoch, with transformer.conditioning pixels"
    ),
    "transformer.relative_bias": Removed(
        False, "use transformer.conv_kernel: 3 instead, and train such weights again"
    ),
    "masking.shape": Removed("random", "tokens are hidden one by one; leave the key out"),
    "masking.min_ratio": Removed(0.0, "leave the key out"),
    "decoding.dilate": Removed(
        0, "the tokenizer's decoder repairs pixels around holes (docs/tokenizer.md)"
    ),
    "decoding.top_k": Removed(None, "lower decoding.temperature instead"),
    "decoding.top_p": Removed(1.0, "lower decoding.temperature instead"),
    "search.subset": Removed(1.0, "shorten the trials with search.steps instead"),
    "search.rungs": Removed(4, "trials are always compared at four points; leave the key out"),
    "search.cost": Removed(0.3, "Optuna's median pruner saves time instead; leave the key out"),
}

REMOVED_VALUES = {  # removed values of settings that still exist
    ("training.lr_schedule", "step"): "use cosine, which falls to a hundredth by itself",
}


def user_path(text: str | Path) -> Path:
    """Resolve a path as a user writes it: expands ~, which no shell does after = or :, and finds
    accented names in either Unicode normalisation form.

    Raises `UserError` for ~ if the user has no home folder, as in some containers.
    """
    expanded = os.path.expanduser(text)
    if expanded.split(os.sep)[0] == "~":
        raise UserError(f"{text}: this user has no home folder; set HOME, or write it without ~")
    path = Path(expanded)
    if str(path).isascii() or os.path.exists(path) or path == path.parent:
        return path
    folder = user_path(path.parent)
    with suppress(OSError):
        for name in os.listdir(folder):
            if unicodedata.normalize("NFC", name) == unicodedata.normalize("NFC", path.name):
                return folder / name
    return folder / path.name


def schedule_name(text: str) -> str:
    """The mask schedule that the lab means: a name in any case, or 0 for cosine."""
    return "cosine" if text == "0" else text.lower()


class Section(BaseModel):
    """A group of settings: unknown keys are errors, values are immutable after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, use_attribute_docstrings=True
    )

    @model_validator(mode="before")
    @classmethod
    def _may_be_empty_or_old(cls, values: object) -> object:
        """A section whose keys are all commented out reads as null and keeps its defaults. Removed
        settings in configs of earlier versions are accepted if they are switched off."""
        if not isinstance(values, dict):
            return {} if values is None else values
        own = cls.__name__.removesuffix("Config").removesuffix("Section")  # TokenizerTraining
        places = ((key.rpartition("."), removed.off) for key, removed in REMOVED.items())
        off = {name: off for (at, _, name), off in places if at.title().replace(".", "") == own}
        return {key: v for key, v in values.items() if key not in off or v != off[key]}

    @field_validator("*")
    @classmethod
    def _home_is_found(cls, value: object, info: ValidationInfo) -> object:
        if not isinstance(value, Path):
            return value
        may_be_null = cls.model_fields[info.field_name].annotation == Path | None
        if may_be_null and str(value).lower() in NOTHING:
            raise ValueError("expected a path")
        return user_path(value)


def reason_against(section: type[Section], name: str, value: object) -> str | None:
    """Why a section rejects a value of a key, regardless of its other keys; None if it does not."""
    try:
        section.model_validate({name: value})
    except ValidationError as error:
        found = next((e["msg"] for e in error.errors() if e["loc"][:1] == (name,)), None)
        found = found and found.removeprefix("Value error, ")
        return found and found[0].lower() + found[1:]
    return None


def dotted(values: dict[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of all leaves."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from dotted(value, f"{place}{name}.")
        else:
            yield f"{place}{name}", value
