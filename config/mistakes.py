"""Explain a config error on one line: where, which key, what was found, what is allowed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from config.errors import closest, nearest, shorten
from config.schema import Config
from config.section import NOTHING, REMOVED, REMOVED_VALUES, Key
from config.transformer import SEARCHED

EXAMPLE_RANGE = "training.weight_decay: {low: 0.0, high: 0.1}"
PLAIN_MESSAGES = {  # instead of pydantic's, which use Python terms
    "model_type": "expected a section of keys",
    "path_type": "expected a path",
    "dict_type": f"expected dotted keys and their ranges, such as {EXAMPLE_RANGE}",  # search.space
    "string_pattern_mismatch": "allowed are auto, cpu, cuda and cuda:N",  # only of device
}

Mistake = Any  # pydantic's dictionary that describes an error


def explain(error: ValidationError, values: Any, file: str, sources: dict[Key, str]) -> str:
    """One line for the first mistake in the values of a file; sources: where each key was set."""
    mistakes = [(_key(mistake["loc"], values), mistake) for mistake in error.errors()]
    key, first = mistakes[0]
    where = next((sources[key[:n]] for n in range(len(key), 0, -1) if key[:n] in sources), file)
    dotted = ".".join(map(str, key))
    if first["type"] == "extra_forbidden":
        if dotted in REMOVED:
            return f"{where}: {dotted} was removed; {REMOVED[dotted].advice}"
        section, _, name = dotted.rpartition(".")
        sections = {setting.rpartition(".")[0] for setting in _settings(Config)}
        if "." in str(key[-1]) and section in sections:
            advice = f"write {name} below {section}:, indented"
            return f"{where}: {key[-1]} is written with a dot; {advice}"
        known = _known_names(key[:-1])
        hint = _nearest_key(str(key[-1]), known)
        return f"{where}: unknown key {dotted}{hint}; known: {', '.join(known)}"
    value = str(first["input"])  # hashable, unlike a list
    if first["type"] == "literal_error" and (dotted, value) in REMOVED_VALUES:
        return f"{where}: {dotted}: {value} was removed; {REMOVED_VALUES[dotted, value]}"
    alternatives = [_message(mistake, key) for other, mistake in mistakes if other == key]
    message = ", or ".join(dict.fromkeys(alternatives))
    if not key or isinstance(first["input"], dict | BaseModel):
        if first["type"] == "value_error":  # keys that do not fit together
            flags = dict.fromkeys(flag for flag in _flags(key, file, sources) if flag != where)
            where += f" with {' and '.join(flags)}" if flags else ""
        return f"{where}: {dotted}: {message}" if dotted else f"{where}: {message}"
    others = len({other for other, _ in mistakes}) - 1
    more = f" (and {others} more)" if others else ""
    return f"{where}: {dotted} is {shorten(repr(first['input']))}: {message}{_hint(first)}{more}"


def _flags(section: Key, file: str, sources: dict[Key, str]) -> list[str]:
    """The flags that set keys of a section, or for () of any."""
    return [
        place
        for key, place in sources.items()
        if len(key) > 1 and key[: len(section)] == section and not place.startswith(f"{file}:")
    ]


def _key(place: Key, values: Any) -> Key:
    """The key of an error's location, without names of union branches and missing list items."""
    branches: set[int] = set()
    for depth, part in enumerate(place):
        if isinstance(values, dict) and part not in values and depth + 1 < len(place):
            branches.add(depth)  # a union branch has no level in the values
        elif isinstance(values, dict):
            values = values.get(part)
        elif isinstance(values, list) and part in range(len(values)):
            values = values[part]
        else:
            place = place[:depth]
            break
    return tuple(part for depth, part in enumerate(place) if depth not in branches)


def _message(mistake: Mistake, key: Key) -> str:
    """What is allowed instead."""
    kind, is_lacking = mistake["type"], len(mistake["loc"]) > len(key)
    if kind in ("list_type", "tuple_type", "too_long") or (kind == "missing" and is_lacking):
        example = list(reduce(getattr, key, Config()))
        count = "" if kind == "list_type" else f"{len(example)} "
        return f"expected {count}values in brackets, such as {example}"
    if key[:2] == ("search", "space") and key[2:3] and key[2] in SEARCHED:
        return f"expected a dotted key, such as {EXAMPLE_RANGE}"
    message = PLAIN_MESSAGES.get(kind, mistake["msg"].removeprefix("Value error, "))
    return message[0].lower() + message[1:]


def _hint(mistake: Mistake) -> str:
    """Suggest the closest allowed word, or null for "none" and the like."""
    found = mistake["input"]
    if mistake["type"] == "literal_error":
        choices = mistake["ctx"]["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        is_quoted = str(found) in choices
        return " (write it without quotes)" if is_quoted else nearest(str(found), choices)
    is_nothing = isinstance(found, str) and found.lower() in NOTHING
    return " (write null for nothing)" if is_nothing else ""


def _nearest_key(found: str, known: list[str]) -> str:
    """Suggest the closest name in the section or among all other settings."""
    places: dict[str, list[str]] = {}
    for dotted in _settings(Config):
        places.setdefault(dotted.rpartition(".")[2], []).append(dotted)
    places.update((name, [name]) for name in known)
    name = closest(found.lower().replace("-", "_"), places)
    return f" (did you mean {' or '.join(map(repr, places[name]))}?)" if name else ""


def _settings(section: Any, place: str = "") -> Iterator[str]:
    """Dotted key of every setting in a section and its subsections."""
    for name, field in section.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            yield from _settings(field.annotation, f"{place}{name}.")
        else:
            yield f"{place}{name}"


def _known_names(section: Key) -> list[str]:
    """Keys of a section, found by walking the schema's classes."""
    model: Any = Config
    for name in section:
        if name not in model.model_fields:  # a user-defined key, in search.space
            continue
        annotation = model.model_fields[name].annotation
        model = next((a for a in get_args(annotation) if hasattr(a, "model_fields")), annotation)
    return sorted(model.model_fields)
