"""What a sweep varies: studies as rows and columns of decoding settings, and what they share.

A *cell* is one decoding setting with one seed and has one score. A *walk* is one decoding that
yields several cells: a run of ten iterations also passes the sweet spots 1, 4 and 8.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.errors import UserError, nearest, one_of, shorten
from config.loading import read_yaml
from config.reference import yaml_word
from config.schema import Config, DecodingConfig
from config.section import reason_against, user_path
from utils.inpainting.outputs import OUTPUT_ONLY, settings_digest

AFTER_DECODING = ("sweet_spot", "composite", "feather_width")  # leave the steps unchanged
MAX_SETTINGS = 1000  # of a grid

Changes = dict[str, Any]  # keys of the section decoding and their values


@dataclass(frozen=True)
class Setting:
    """One entry of a table: a decoding that is repeated with every seed."""

    row: str
    column: str
    decoding: DecodingConfig

    @property
    def name(self) -> str:
        """Row and column, as written in plots and sentences."""
        return f"{self.row}, {self.column}" if self.row else self.column


@dataclass(frozen=True)
class Study:
    """A table of settings: rows by columns."""

    name: str
    title: str
    row_name: str
    column_name: str
    settings: tuple[Setting, ...]

    @property
    def rows(self) -> list[str]:
        return list(dict.fromkeys(setting.row for setting in self.settings))


@dataclass(frozen=True)
class Cell:
    """One setting with one seed."""

    decoding: DecodingConfig
    seed: int

    @property
    def steps(self) -> int:
        return self.decoding.steps

    @property
    def walk_key(self) -> str:
        """Equal for all cells that one decoding yields."""
        varied = _plain(self.decoding, AFTER_DECODING)
        return json.dumps([varied, self.seed], sort_keys=True)

    def key(self, fixed: Changes) -> str:
        """Digest of everything the score depends on; `fixed` is common to all cells."""
        return settings_digest({**fixed, "decoding": _plain(self.decoding), "seed": self.seed})


def _plain(decoding: DecodingConfig, without: Iterable[str] = ()) -> Changes:
    return decoding.model_dump(mode="json", exclude={*OUTPUT_ONLY, *without})


def walks(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Cells grouped by the decoding that they share, the longest decoding first."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.walk_key, []).append(cell)
    return sorted(groups.values(), key=lambda group: -max(cell.steps for cell in group))


# The report's studies

Axes = dict[str, dict[str, Changes]]  # axis -> label -> changed keys
_RULES: dict[str, Changes] = {rule: {"rule": rule} for rule in ("listing", "maskgit")}


def _ends_at(total_iter: int, sweet_spot: int) -> Changes:
    return {"total_iter": total_iter, "sweet_spot": sweet_spot}


STUDIES: dict[str, tuple[str, Axes]] = {  # title and axes, with the report's numbers
    "iterations": (
        "Total iterations at sweet spot 8",
        {"rule": _RULES, "total iterations": {str(n): _ends_at(n, 8) for n in (5, 8, 10, 15, 20)}},
    ),
    "sweet-spot": (
        "Sweet spots of 10 iterations",
        {"rule": _RULES, "sweet spot": {str(n): _ends_at(10, n) for n in (1, 4, 8, 10)}},
    ),
    "schedules": (
        "Schedules, 10 of 10 iterations",
        {
            "rule": _RULES,
            "schedule": {
                name: {"mask_schedule": name, **_ends_at(10, 10)}
                for name in ("cosine", "linear", "square")
            },
        },
    ),
}


def plan(config: Config, words: Sequence[str]) -> list[Study]:
    """The studies that a command line names: some of `STUDIES`, or ``grid FILE``.

    Raises `UserError` for an unknown study or an invalid grid file.
    """
    if words[0] == "grid":
        if len(words) != 2:
            raise UserError("grid: name one YAML file of settings and their values")
        return [read_grid(config, user_path(words[1]))]
    for word in words:
        if word not in STUDIES:
            raise one_of("study", word, [*STUDIES, "grid FILE"])
    return [build_study(config, word, *STUDIES[word]) for word in dict.fromkeys(words)]


def build_study(config: Config, name: str, title: str, axes: Axes) -> Study:
    """All combinations of the axes' points; the last axis gives the columns."""
    *over, across = axes
    settings = []
    for point in itertools.product(*(points.items() for points in axes.values())):
        changes = {key: value for _, part in point for key, value in part.items()}
        *labels, column = (label for label, _ in point)
        named = zip(over, labels, strict=True)
        row = ", ".join(label if axis == "rule" else f"{axis} {label}" for axis, label in named)
        values = {**config.decoding.model_dump(), "samples": 1, **changes}
        decoding = DecodingConfig.model_validate(values)
        decoding = decoding.model_copy(update={"sweet_spot": decoding.steps, "stop": "at"})
        settings.append(Setting(row, column, decoding))
    return Study(name, title, ", ".join(over), across, tuple(settings))


def read_grid(config: Config, path: Path) -> Study:
    """The study of a YAML file: keys of the section decoding, each with a list of values.

    The last key gives the columns. Values are checked one by one; any combination is valid.
    """
    known = sorted(DecodingConfig.model_fields.keys() - OUTPUT_ONLY)
    axes: Axes = {}
    lists, lines = read_yaml(path, "grid")
    if not isinstance(lists, dict) or not lists:
        raise UserError(f"{path}: allowed are keys of decoding, each with a list of values")
    for key, values in lists.items():
        where = f"{path}:{lines[(key,)]}"
        if key not in known:
            hint = nearest(key, known)
            raise UserError(f"{where}: unknown key {key}{hint}; allowed are {', '.join(known)}")
        if not isinstance(values, list) or not values:
            found = shorten(repr(values))
            raise UserError(f"{where}: {key} is {found}; allowed is a list of values")
        for value in values:
            if reason := reason_against(DecodingConfig, key, value):
                raise UserError(f"{where}: {key} {shorten(repr(value))}: {reason}")
        axes[key] = {yaml_word(value): {key: value} for value in values}
    count = math.prod(map(len, axes.values()))
    if count > MAX_SETTINGS:
        raise UserError(f"{path}: {count} settings; allowed are up to {MAX_SETTINGS}")
    return build_study(config, f"grid-{path.stem}", f"Grid of {path.name}", axes)
