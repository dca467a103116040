"""Read a YAML config into `Config`, with errors that name the file, the line and the key."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from config.errors import UserError, shorten
from config.schema import Config
from config.section import Key, dotted
from config.yaml_file import ConfigLoader, read_yaml

SCHEMA_FILE = Path(__file__).with_name("schema.json")
SYNONYMS = {("training", "lr"): ("training", "learning_rate")}
LAB_FORM = "model_param"  # the one key that is read of a config in the lab's own form
PLACES = ("weights", "root", "train", "val")  # keys of paths, which may change

Override = str | tuple[str, Any] | tuple[str, Any, str]


def load_config(path: str | Path, overrides: Sequence[Override] = ()) -> Config:
    """Read a config file and apply overrides in order: ``section.key=value``, or tuples of a dotted
    key, an unparsed value and, optionally, the flag that set it.

    Raises `UserError` with file, line, key, what was found, what is allowed and the nearest name.
    """
    path = Path(path)
    values, lines = read_yaml(path, "config")
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: contains a {type(values).__name__}; allowed are sections of keys")
    if LAB_FORM in values:
        from config.lab_form import from_lab_form

        if not isinstance(values[LAB_FORM], dict):
            raise UserError(f"{path}:{lines[(LAB_FORM,)]}: {LAB_FORM}: expected a section of keys")
        if ignored := [name for name in values if name in Config.model_fields]:
            names = f"{', '.join(ignored)} next to {LAB_FORM}, the lab's form, would be ignored"
            raise UserError(f"{path}:{lines[(ignored[0],)]}: {names}; set keys with --set instead")
        values = from_lab_form(values[LAB_FORM], path)
    sources = {key: f"{path}:{line}" for key, line in lines.items()}
    _rename(values, sources)
    for override in overrides:
        whole, contents, where = _parse_override(override)
        for key, value in _single_settings(whole, contents, where):
            _assign(values, key, value, where)
            sources = {known: at for known, at in sources.items() if known[: len(key)] != key}
            for length in range(1, len(key) + 1):
                sources.setdefault(key[:length], where)
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        from config.mistakes import explain

        raise UserError(explain(error, values, str(path), sources)) from None


def with_settings(config: Config, settings: dict[str, Any]) -> Config:
    """A config with other values of some dotted keys; raises `ValidationError` if they conflict."""
    values = config.model_dump()
    for key, value in settings.items():
        _assign(values, tuple(key.split(".")), value, key)
    return Config.model_validate(values)


def save_config(config: Config, path: Path) -> None:
    """Write a resolved config that `load_config` reads back unchanged."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    path.write_text(text, encoding="utf-8")


def flat(config: Config, *sections: str) -> dict[str, Any]:
    """Dotted keys and plain values of some sections, without file paths."""
    values = dotted(config.model_dump(mode="json", include=set(sections)))
    return {key: value for key, value in values if key.rpartition(".")[2] not in PLACES}


def json_schema() -> str:
    """The text of config/schema.json, which gives editors completion and hover help."""
    return json.dumps(Config.model_json_schema(), indent=1) + "\n"


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


def _rename(values: dict[str, Any], sources: dict[Key, str]) -> None:
    """Replace accepted synonyms by the actual key."""
    for (section, old), (_, new) in SYNONYMS.items():
        inner = values.get(section)
        if not isinstance(inner, dict) or old not in inner:
            continue
        where = sources.get((section, old), sources.get((section,), ""))
        if new in inner:
            raise UserError(f"{where}: {section}.{old} and {section}.{new} are the same; keep one")
        inner[new] = inner.pop(old)
        sources[section, new] = where


def _parse_override(override: Override) -> tuple[Key, Any, str]:
    """``training.lr=1e-4`` -> (("training", "lr"), 1e-4, what to call it)."""
    if isinstance(override, tuple):
        dotted, value, *flag = override
        where = f"{flag[0]} {value}" if flag else f"{dotted}={value}"
        return tuple(dotted.split(".")), value, where
    where, short = f"--set {override}", f"--set {shorten(override)}"
    dotted, equals, raw = override.partition("=")
    key: Key = tuple(dotted.strip().split("."))
    if not equals or not all(key):
        raise UserError(f"{where}: expected section.key=value")
    try:
        value = ConfigLoader(raw, lambda _: short).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError):
        raise UserError(f"{short}: the value is not valid YAML") from None
    if "#" in raw and "#" not in str(value):
        raise UserError(f"{short}: # begins a comment; put the value in quotes")
    return key, value, where


def _single_settings(key: Key, value: Any, where: str) -> Iterator[tuple[Key, Any]]:
    """An override as single settings: keys that a section's mapping leaves out stay as they are."""
    kind: Any = Config
    for name in key:
        field = getattr(kind, "model_fields", {}).get(name)
        kind = field and field.annotation
    is_section = hasattr(kind, "model_fields")
    if is_section and value is None:
        name = ".".join(map(str, key))
        raise UserError(f"{where}: {name} is a section; name the key to change, {name}.key=value")
    if is_section and isinstance(value, dict):
        for name, below in value.items():
            yield from _single_settings((*key, name), below, where)
    else:
        yield SYNONYMS.get(key, key), value


def _assign(values: dict[str, Any], key: Key, value: Any, where: str) -> None:
    for name in key[:-1]:
        below = values.setdefault(name, {})
        if below is None:
            below = values[name] = {}
        if not isinstance(below, dict):
            raise UserError(f"{where}: '{name}' is no section")
        values = below
    values[key[-1]] = value


if __name__ == "__main__":  # python -m config.loading: regenerate config/schema.json
    SCHEMA_FILE.write_text(json_schema())
