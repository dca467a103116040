"""Controls made from the settings' own descriptions, so that a new setting appears by itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr
import yaml
from pydantic import BaseModel

from config.errors import UserError
from config.loading import yaml_word
from config.schema import Config, DecodingConfig
from utils.app.checkpoints import Pair
from utils.inpainting.stamps import OUTPUT_ONLY

FIRST = (  # settings shown at once, in this order; all others lie under "More settings"
    *("mask_schedule", "rule", "order", "total_iter", "sweet_spot"),
    *("choice_temperature", "composite"),
)
NUMBER_STEPS = {"integer": (1, 0), "number": (0.1, None)}  # type: step, digits
MAX_ITERATIONS = 64  # for a visitor; scripts have no such limit


@dataclass(frozen=True)
class Control:
    """One key of the decoding section, as its JSON schema describes it."""

    name: str
    kind: str
    """Type in JSON's words: string, integer, number, boolean; other types are written as YAML."""
    choices: list[str]
    limits: dict[str, float]
    may_be_empty: bool
    takes_yaml: bool  # whether the choices may be replaced by a section of keys
    help: str

    def control(self) -> gr.components.Component:
        texts = {"label": self.name.replace("_", " "), "info": self.help}
        if self.choices:
            return gr.Dropdown(
                self.choices, filterable=False, allow_custom_value=self.takes_yaml, **texts
            )
        if self.kind == "boolean":
            return gr.Checkbox(**texts)
        if self.kind in NUMBER_STEPS:
            step, digits = NUMBER_STEPS[self.kind]
            empty = "null" if self.may_be_empty else None
            return gr.Number(step=step, precision=digits, placeholder=empty, **self.limits, **texts)
        return gr.Textbox(**texts)

    def show(self, value: Any) -> Any:
        """The control's value for a value of the config."""
        if isinstance(value, BaseModel):
            return yaml_word(value.model_dump(mode="json"))
        return value if self._is_plain() else yaml.safe_dump(value).strip("\n.")

    def read(self, value: Any) -> Pair:
        """The config key with its control's value."""
        if not self._is_plain() or (self.takes_yaml and value not in self.choices):
            try:
                value = yaml.safe_load(value)
            except yaml.YAMLError:
                raise UserError(f"{self.name} is {value!r}, which is no YAML value") from None
        return f"decoding.{self.name}", value

    def _is_plain(self) -> bool:
        return bool(self.choices) or self.kind == "boolean" or self.kind in NUMBER_STEPS


def settings() -> list[Control]:
    """All settings of decoding that change a picture, those of `FIRST` first."""
    described = DecodingConfig.model_json_schema()["properties"]
    order = [name for name in FIRST if name in described]
    order += [name for name in described if name not in (*order, *OUTPUT_ONLY)]
    return [_setting(name, described[name]) for name in order]


def control_values(config: Config, asked: Sequence[Control]) -> list[Any]:
    return [setting.show(getattr(config.decoding, setting.name)) for setting in asked]


def _setting(name: str, described: dict[str, Any]) -> Control:
    options = described.get("anyOf") or described.get("oneOf") or [described]
    real = [o for o in options if o.get("type") != "null" and "$ref" not in o]  # no sections
    main = real[0] if len(real) == 1 else {}  # a choice of types is written as YAML
    limits = {key: main[key] for key in ("minimum", "maximum") if key in main}
    if name == "total_iter":
        limits["maximum"] = MAX_ITERATIONS
    return Control(
        name=name,
        kind=main.get("type", ""),
        choices=main.get("enum", []),
        limits=limits,
        may_be_empty=any(option.get("type") == "null" for option in options),
        takes_yaml=any("$ref" in option for option in options),
        help=described.get("description", ""),
    )
