"""Settings of the learning-rate search, and which other settings it may vary."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from config.errors import nearest
from config.section import Finite, NoBool, PositiveInt, Rate, Section, reason_against
from config.transformer import MaskingConfig, TrainingConfig, TransformerConfig

SEARCHED = {"transformer": TransformerConfig, "masking": MaskingConfig, "training": TrainingConfig}
NOT_SEARCHED = {  # fixed by the tokenizer, or part of a trial's budget or objective
    *("transformer.num_tokens", "transformer.codebook_size", "transformer.prior_dim"),
    *("training.epochs", "training.max_minutes", "training.learning_rate"),
    *("training.validation_images", "training.validate_every", "training.checkpoint_every"),
    "training.pictures_every",
}


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
                value = int(value) if whole else value
                if reason := reason_against(section, name, value):
                    raise ValueError(f"{key}: {end} {value}: {reason}")
        return space

    @model_validator(mode="after")
    def _range_is_a_range(self) -> SearchConfig:
        if self.low >= self.high:
            raise ValueError(f"low {self.low} must be below high {self.high}")
        return self


def is_whole(key: str) -> bool:
    """Whether a key of search.space is an integer setting, e.g. training.warmup_steps."""
    return _searchable(key)[2]


def _searchable(key: str) -> tuple[type[Section], str, bool]:
    """Section, name and whether integer, of a numeric setting; `ValueError` for any other key."""
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
    """'integer' or 'number' if a JSON schema describes one, optional or not; else None."""
    kinds = [schema.get("type"), *(option.get("type") for option in schema.get("anyOf", ()))]
    return next((kind for kind in kinds if kind in ("integer", "number")), None)
