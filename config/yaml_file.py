"""Read YAML without aliases, duplicate keys or deep nesting, with errors that name the line."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from config.errors import UserError
from config.section import Key

MAX_CONFIG_BYTES = 1 << 16
MAX_NESTING = 10
SLIPS = {  # of typing, which YAML notices on a later line, if at all: what to say of each
    re.compile(r"\s*(\w+:)[^\s:]"): "a space must follow the colon of {}",
    re.compile(r"\s*(\w+)\s*="): "write {0}: instead of {0} =",
    re.compile(r"\s*\w*:?([^\S \t])"): "a space that is no plain one, such as a no-break space",
}
ODD_NUMBER = re.compile(r"[-+]?(0[0-7_]+|[0-9_]+(:[0-5]?[0-9])+(\.[0-9_]*)?)")  # 010 is 8, 1:30 90
STRING_TAG = "tag:yaml.org,2002:str"


def read_yaml(path: Path, kind: str) -> tuple[Any, dict[Key, int]]:
    """The contents of a YAML file, and the line of each key; kind: its name in errors.

    Raises `UserError` for a file that is missing, too large, invalid or unsafe YAML, or has
    duplicate keys.
    """
    try:
        if path.exists() and not path.is_file():
            raise UserError(f"{path}: cannot be read as text (is no file)")  # a pipe would hang
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
            raise UserError(f"{path}:{line}: key {name.value} is no plain word")
        if below in lines:
            dotted = ".".join(map(str, below))
            raise UserError(
                f"{path}:{line}: {dotted} is given twice, first on line {lines[below]}; keep one"
            )
        lines[below] = line
        _note_lines(path, child, below, lines)
