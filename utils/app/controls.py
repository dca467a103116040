"""Controls generated from the settings' JSON schema, so new settings appear automatically."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
from pydantic import BaseModel

from config.loading import Override
from config.reference import yaml_word
from config.schema import Config, DecodingConfig
from utils.inpainting.outputs import OUTPUT_ONLY

FIRST = (  # always visible, in this order; all others are under "More settings"
    *("mask_schedule", "rule", "order", "total_iter", "sweet_spot"),
    *("choice_temperature", "composite"),
)
NUMBER_STEPS = {"integer": (1, 0), "number": (0.1, None)}  # type: step, digits
MAX_ITERATIONS = 64  # in the web demo only


@dataclass(frozen=True)
class Control:
    """One key of the decoding section, as its JSON schema describes it."""

    name: str
    kind: str
    """JSON type: string, integer or number."""
    choices: list[str]
    limits: dict[str, float]
    may_be_empty: bool
    takes_yaml: bool  # whether a YAML section may replace the choices
    help: str

    def control(self) -> gr.components.Component:
        texts = {"label": self.name.replace("_", " "), "info": self.help}
        if self.choices:
            return gr.Dropdown(
                self.choices,
                filterable=self.takes_yaml,
                allow_custom_value=self.takes_yaml,
                **texts,
            )
        step, digits = NUMBER_STEPS[self.kind]
        empty = "null" if self.may_be_empty else None
        return gr.Number(step=step, precision=digits, placeholder=empty, **self.limits, **texts)

    def show(self, value: Any) -> Any:
        """The control's value for a value of the config."""
        return yaml_word(value.model_dump()) if isinstance(value, BaseModel) else value

    def read(self, value: Any) -> Override:
        """Override of the config by the control; what is typed is parsed there, without aliases."""
        key, is_typed = f"decoding.{self.name}", self.takes_yaml and value not in self.choices
        return f"{key}={value}" if is_typed else (key, value)


def settings() -> list[Control]:
    """All decoding settings that affect the picture, those of `FIRST` first."""
    described = DecodingConfig.model_json_schema()["properties"]
    rest = (name for name in described if name not in (*FIRST, *OUTPUT_ONLY))
    return [_setting(name, described[name]) for name in (*FIRST, *rest)]


def control_values(config: Config, asked: Sequence[Control]) -> list[Any]:
    return [setting.show(getattr(config.decoding, setting.name)) for setting in asked]


def _setting(name: str, described: dict[str, Any]) -> Control:
    options = described.get("anyOf") or described.get("oneOf") or [described]
    (main,) = (o for o in options if o.get("type") != "null" and "$ref" not in o)  # no section
    limits = {key: main[key] for key in ("minimum", "maximum") if key in main}
    if name == "total_iter":
        limits["maximum"] = MAX_ITERATIONS
    return Control(
        name=name,
        kind=main["type"],
        choices=main.get("enum", []),
        limits=limits,
        may_be_empty=any(option.get("type") == "null" for option in options),
        takes_yaml=any("$ref" in option for option in options),
        help=" ".join(described.get("description", "").split()),
    )
