"""Read a YAML config into `Config`, with errors that name the file, the line and the key."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from config.errors import UserError, shorten
from config.schema import Config
from config.section import Key, dotted

SCHEMA_FILE = Path(__file__).with_name("schema.json")
SYNONYMS = {("training", "lr"): ("training", "learning_rate")}
LAB_FORM = "model_param"  # the one key that is read of a config in the lab's own form
PLACES = ("weights", "root", "train", "val")  # keys of paths, which may change
MAX_CONFIG_BYTES = 1 << 16
MAX_NESTING = 10
SLIPS = {  # of typing, which YAML notices on a later line, if at all: what to say of each
    re.compile(r"\s*(\w+:)[^\s:]"): "a space must follow the colon of {}",
    re.compile(r"\s*(\w+)\s*="): "write {0}: instead of {0} =",
    re.compile(r"\s*\w*:?([^\S \t])"): "a space that is no plain one, such as a no-break space",
}
ODD_NUMBER = re.compile(r"[-+]?(0[0-7_]+|[0-9_]+(:[0-5]?[0-9])+(\.[0-9_]*)?)")  # 010 is 8, 1:30 90
STRING_TAG = "tag:yaml.org,2002:str"

Override = str | tuple[str, Any] | tuple[str, Any, str]


def load_config(path: str | Path, overrides: Sequence[Override] = ()) -> Config:
    """Read a config file and apply overrides in order: ``section.key=value``, or tuples of a dotted
    key, an unparsed value and, optionally, the flag that set it.

    Raises `UserError` with file, line, key, what was found, what is allowed and the nearest name.
    """
    path = Path(path)
    values, lines = read_yaml(path, "config")
    values = {} if values is None else values
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


def read_yaml(path: Path, kind: str) -> tuple[Any, dict[Key, int]]:
    """The contents of a YAML file, and the line of each key; kind: its name in errors.

    Raises `UserError` for a file that is missing, too large, invalid or unsafe YAML, or has
    duplicate keys.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(
                f"{path}: cannot be read as text (not a regular file)"
            )  # a pipe would hang
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise UserError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes, not a {kind}")
        text = path.read_text(encoding="utf-8")
        loader = ConfigLoader(text, lambda line: f"{path}:{line}")
        root = loader.get_single_node()
        lines: dict[Key, int] = {}
        _note_lines(path, root, (), lines)
        return (None if root is None else loader.construct_document(root)), lines
    except FileNotFoundError:
        raise UserError(f"{path}: no such {kind} file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(_explain_yaml(error, path, text)) from None


def _explain_yaml(error: Exception, path: Path, text: str) -> str:
    """One-line YAML error; points out the last slip of typing, which breaks later lines."""
    mark = getattr(error, "problem_mark", None)
    number = mark.line + 1 if mark else 0
    for line, row in reversed(list(enumerate(text.splitlines()[:number], 1))):
        for slip, advice in SLIPS.items():
            if found := slip.match(row):
                return f"{path}:{line}: not valid YAML: {advice.format(found[1])}"
    where = f"{path}:{number}" if mark else str(path)
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{where}: not valid YAML ({what})"


class ConfigLoader(yaml.SafeLoader):
    """PyYAML's safe loader without aliases and deep nesting, with which a few lines can expand
    without bound, without null bytes, and without the numbers of YAML 1.1 that surprise.
    """

    def __init__(self, text: str, place: Callable[[int], str]) -> None:
        """place: names a line, counted from 1, in errors."""
        super().__init__(text)
        self.place, self.depth = place, 0

    def resolve(self, kind: type[yaml.Node], value: Any, implicit: Any) -> str:
        if kind is yaml.ScalarNode and ODD_NUMBER.fullmatch(value):
            return STRING_TAG
        return super().resolve(kind, value, implicit)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        where = self.place(event.start_mark.line + 1)
        is_inner = isinstance(event, yaml.CollectionStartEvent)
        if isinstance(event, yaml.ScalarEvent) and "\0" in event.value:
            raise UserError(f"{where}: a zero byte found; no name or number contains one")
        if isinstance(event, yaml.AliasEvent):
            raise UserError(f"{where}: alias *{event.anchor} found; write the value out")
        if self.depth + is_inner > MAX_NESTING:
            raise UserError(f"{where}: nested deeper than {MAX_NESTING} levels, not a config")
        self.depth += is_inner
        node = super().compose_node(parent, index)
        self.depth -= is_inner
        return node


def _note_lines(path: Path, node: yaml.Node, key: Key, lines: dict[Key, int]) -> None:
    """Record the line of every key below ``node``; a key given twice is an error."""
    if isinstance(node, yaml.SequenceNode):
        for index, child in enumerate(node.value):
            lines[(*key, index)] = child.start_mark.line + 1
    if not isinstance(node, yaml.MappingNode):
        return
    for name, child in node.value:
        below, line = (*key, name.value), name.start_mark.line + 1
        if name.tag != STRING_TAG:
            raise UserError(f"{path}:{line}: key {name.value} must be a plain word")
        if below in lines:
            dotted = ".".join(map(str, below))
            raise UserError(
                f"{path}:{line}: {dotted} is given twice, first on line {lines[below]}; keep one"
            )
        lines[below] = line
        _note_lines(path, child, below, lines)


if __name__ == "__main__":  # python -m config.loading: regenerate config/schema.json
    SCHEMA_FILE.write_text(json_schema())
