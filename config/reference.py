"""Generate docs/configuration.md from the schema: ``python -m config.reference``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel

from config.loading import yaml_word
from config.schema import Config
from config.section import Section

REFERENCE_PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
HEAD = """# Every setting
Written from `config/schema.py` by `python -m config.reference`; do not edit.

A config is a YAML file of these sections; what it leaves out has the default. Any key can be set on
the command line: `--set decoding.total_iter=8`. Unknown keys and wrong values are errors that name
the file and the line; values that do not fit together are errors that name the keys. The defaults
are the run of [the report](from-the-lab.md), except for `precision` and `training.mirror`.
"""


def reference() -> str:
    """The whole page."""
    return "\n".join([HEAD, *_section(Config, "", Config.model_json_schema())])


def _section(model: type[Section], path: str, schema: dict[str, Any]) -> list[str]:
    """A table of a section's keys, then its subsections."""
    own = schema if model is Config else schema["$defs"][model.__name__]
    fields, below = model.model_fields, []
    lines = [f"## {path or 'Top level'}", (model.__doc__ or "").split("\n\n")[0].strip(), ""]
    lines += ["| key | values | default | meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            below.append((kind, f"{path}.{name}".lstrip(".")))
            continue
        values = _values(own["properties"][name], schema)
        default = yaml_word(own["properties"][name].get("default"))
        lines.append(f"| `{name}` | {values} | `{default}` | {_one_line(field.description)} |")
    lines.append("")
    return lines + [line for kind, name in below for line in _section(kind, name, schema)]


def _values(schema: dict[str, Any], root: dict[str, Any]) -> str:
    """The values a JSON schema allows, in words."""
    if "$ref" in schema:
        schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    if options := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(_values(option, root) for option in options)
    if "enum" in schema or "const" in schema:
        return ", ".join(
            f"`{yaml_word(value)}`" for value in schema.get("enum", [schema.get("const")])
        )
    kind = schema.get("type", "any")
    if kind == "array":
        inner = schema.get("items") or schema["prefixItems"][0]
        count = f"{schema['minItems']} x " if "prefixItems" in schema else "list of "
        return count + _values(inner, root)
    if kind == "object":
        if isinstance(schema.get("additionalProperties"), dict):
            return f"key: {_values(schema['additionalProperties'], root)}"
        return f"{{{', '.join(schema['properties'])}}}"
    if "pattern" in schema:
        return "text, `" + schema["pattern"].replace("|", r"\|") + "`"
    names = {
        "string": "path" if schema.get("format") == "path" else "text",
        "boolean": "true, false",
    }
    return names.get(kind, kind) + _bounds(schema)


def _bounds(schema: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    found = [f"{sign} {yaml_word(schema[key])}" for key, sign in signs.items() if key in schema]
    return f" {', '.join(found)}" if found else ""


def _one_line(text: str | None) -> str:
    return " ".join((text or "").replace("|", r"\|").replace("<", "&lt;").split())


if __name__ == "__main__":
    REFERENCE_PAGE.write_text(reference(), encoding="utf-8")
