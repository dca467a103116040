"""What a sweep varies: studies as rows and columns of decoding settings, and what they share.

A *cell* is one decoding setting with one seed: one score. A *walk* is one decoding that passes
through several cells, since a run of ten iterations has been through the sweet spots 1, 4 and 8.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.errors import UserError, nearest, one_of
from config.loading import read_yaml, shorten, yaml_word
from config.schema import Config, DecodingConfig
from config.section import reason_against
from utils.inpainting.stamps import OUTPUT_ONLY, settings_digest

REPORT_SWEET_SPOT, REPORT_ITERATIONS = 8, 10  # of the report's tables (spec section 8)
COMPARED_RULES = ("listing", "maskgit")
AFTER_DECODING = ("sweet_spot", "composite", "feather_width")  # do not change the steps before
MAX_SETTINGS = 1000  # of a grid

Changes = dict[str, Any]  # keys of the section decoding and their values


@dataclass(frozen=True)
class Axis:
    """One direction of a table: a name, and what each of its labels changes."""

    name: str
    points: dict[str, Changes]


@dataclass(frozen=True)
class Setting:
    """One place of a table: the decoding that is repeated with every seed."""

    row: str
    column: str
    decoding: DecodingConfig

    @property
    def name(self) -> str:
        """Row and column, as a plot or a sentence calls it."""
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

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(setting.column for setting in self.settings))


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
        """The same for all cells that one decoding passes through."""
        varied = _plain(self.decoding, AFTER_DECODING)
        return json.dumps([varied, self.seed], sort_keys=True)

    def key(self, fixed: Changes) -> str:
        """Digest of everything that decides over the score; `fixed` is common to all cells."""
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


def _by_rule(name: str, title: str, column_name: str, points: dict[str, Changes]) -> dict[str, Any]:
    rules = Axis("rule", {rule: {"rule": rule} for rule in COMPARED_RULES})
    return {"name": name, "title": title, "axes": (rules, Axis(column_name, points))}


def _ends_at(total_iter: int, sweet_spot: int) -> Changes:
    return {"total_iter": total_iter, "sweet_spot": sweet_spot}


STUDIES = {
    "iterations": _by_rule(
        "iterations",
        f"Total iterations at sweet spot {REPORT_SWEET_SPOT}",
        "total iterations",
        {str(n): _ends_at(n, REPORT_SWEET_SPOT) for n in (5, 8, 10, 15, 20)},
    ),
    "sweet-spot": _by_rule(
        "sweet-spot",
        f"Sweet spots of {REPORT_ITERATIONS} iterations",
        "sweet spot",
        {str(n): _ends_at(REPORT_ITERATIONS, n) for n in (1, 4, 8, 10)},
    ),
    "schedules": _by_rule(
        "schedules",
        f"Schedules, {REPORT_ITERATIONS} of {REPORT_ITERATIONS} iterations",
        "schedule",
        {
            name: {"mask_schedule": name, **_ends_at(REPORT_ITERATIONS, REPORT_ITERATIONS)}
            for name in ("cosine", "linear", "square")
        },
    ),
}


def plan(config: Config, words: Sequence[str]) -> list[Study]:
    """The studies that a command line names: some of `STUDIES`, or ``grid FILE``.

    Raises `UserError` for an unknown study, or a grid that cannot be read or does not fit.
    """
    if words[0] == "grid":
        if len(words) != 2:
            raise UserError("grid: name one YAML file of settings and their values")
        return [read_grid(config, Path(words[1]))]
    for word in words:
        if word not in STUDIES:
            raise one_of("study", word, [*STUDIES, "grid FILE"])
    return [build_study(config, **STUDIES[word]) for word in dict.fromkeys(words)]


def build_study(config: Config, name: str, title: str, axes: Sequence[Axis]) -> Study:
    """All combinations of the axes' points; the last axis gives the columns."""
    *over, across = axes
    settings = []
    for point in itertools.product(*(axis.points.items() for axis in axes)):
        changes = {key: value for _, part in point for key, value in part.items()}
        labels = [label for label, _ in point]
        row = ", ".join(_labelled(axis, label) for axis, label in zip(over, labels, strict=False))
        values = {**config.decoding.model_dump(), "samples": 1, **changes}
        decoding = DecodingConfig.model_validate(values)
        decoding = decoding.model_copy(update={"sweet_spot": decoding.steps, "stop": "at"})
        settings.append(Setting(row, labels[-1], decoding))
    row_name = ", ".join(axis.name for axis in over)
    return Study(name, title, row_name, across.name, tuple(settings))


def _labelled(axis: Axis, label: str) -> str:
    return label if axis.name == "rule" else f"{axis.name} {label}"


# A grid of the user's own


def read_grid(config: Config, path: Path) -> Study:
    """The study of a YAML file: keys of the section decoding, each with a list of values.

    The last key gives the columns. Values are checked one by one; all of them go together.
    """
    known = sorted(DecodingConfig.model_fields.keys() - OUTPUT_ONLY)
    axes = []
    lists, _ = read_yaml(path, "grid")
    if not isinstance(lists, dict) or not lists:
        raise UserError(f"{path}: allowed are keys of decoding, each with a list of values")
    for key, values in lists.items():
        if key not in known:
            hint = nearest(key, known)
            raise UserError(f"{path}: unknown key {key}{hint}; allowed are {', '.join(known)}")
        if not isinstance(values, list) or not values:
            raise UserError(
                f"{path}: {key} is {shorten(repr(values))}; allowed is a list of values"
            )
        for value in values:
            if reason := reason_against(DecodingConfig, key, value):
                raise UserError(f"{path}: {key} {shorten(repr(value))}: {reason}")
        axes.append(Axis(key, {yaml_word(value): {key: value} for value in values}))
    count = math.prod(len(axis.points) for axis in axes)
    if count > MAX_SETTINGS:
        raise UserError(f"{path}: {count} settings; allowed are up to {MAX_SETTINGS}")
    return build_study(config, f"grid-{path.stem}", f"Grid of {path.name}", axes)
