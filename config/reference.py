"""Values as a config states them, and docs/configuration.md: ``python -m config.reference``."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from config.schema import Config

REFERENCE_PAGE = Path(__file__).parents[1] / "docs" / "configuration.md"
HEAD = """# Every setting
Written from `config/schema.py` by `python -m config.reference`; do not edit.

A config is a YAML file of these sections; what it leaves out has the default. Any key can be set on
the command line: `--set decoding.total_iter=8`. Unknown keys and wrong values are errors that name
the file and the line; values that do not fit together are errors that name the keys. The defaults
are the run of [the report](from-the-lab.md), except for `precision` and `training.mirror`.
"""


def yaml_word(value: object) -> str:
    """A value as written in a config, on one line; 2^63, beyond int64, as a power of two."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, list):
        return f"[{', '.join(map(yaml_word, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {yaml_word(below)}' for key, below in value.items())}}}"
    return "2^63" if value == 1 << 63 else str(value)


def yaml_text(text: str) -> str:
    """Text that --set reads back unchanged, quoted if necessary: 'lr #1'."""
    dumped = yaml.safe_dump(text, allow_unicode=True, width=math.inf)
    return dumped.removesuffix("\n").removesuffix("\n...")


def reference() -> str:
    """The whole page."""
    root = Config.model_json_schema()
    return "\n".join([HEAD, *_section(root, "", root)])


def _section(schema: dict[str, Any], path: str, root: dict[str, Any]) -> list[str]:
    """A table of a section's keys, then its subsections."""
    lines, below = [f"## {path or 'Top level'}", schema["description"].split("\n\n")[0], ""], []
    lines += ["| key | values | default | meaning |", "|---|---|---|---|"]
    for name, field in schema["properties"].items():
        if "$ref" in field:
            below += _section(_definition(field, root), f"{path}.{name}".lstrip("."), root)
            continue
        values, default = _values(field, root), yaml_word(field.get("default"))
        meaning = " ".join(field["description"].replace("|", r"\|").replace("<", "&lt;").split())
        lines.append(f"| `{name}` | {values} | `{default}` | {meaning} |")
    return [*lines, "", *below]


def _definition(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """The schema that a reference leads to."""
    return root["$defs"][schema["$ref"].rpartition("/")[2]]


def _values(schema: dict[str, Any], root: dict[str, Any]) -> str:
    """The values a JSON schema allows, in words."""
    if "$ref" in schema:
        schema = _definition(schema, root)
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


if __name__ == "__main__":
    REFERENCE_PAGE.write_text(reference(), encoding="utf-8")
