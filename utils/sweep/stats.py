"""Statistics over seeds: means, spreads, and which differences are real.

Two settings differ only where their means lie further apart than a change of seeds explains: beyond
Tukey's honest significant difference at 95 % for all pairs of a group, with the spread over seeds
pooled over its settings that vary (Tukey 1949, Kramer 1956). It says nothing about other images.
`scipy.stats.tukey_hsd` pools settings that draw nothing, too, which makes the spread too small.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from scipy.stats import studentized_range

CONFIDENCE = 0.95  # that a group of equal settings has no difference called real
RESOLUTION = 1e-9  # relative; scores of equal pictures differ by rounding alone


@dataclass(frozen=True)
class Summary:
    """Scores of one setting over its seeds."""

    name: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None for one seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        return f"{self.mean:.2f}" + ("" if self.spread is None else f" ± {self.spread:.2f}")


def pooled_spread(group: Sequence[Summary]) -> tuple[float, int]:
    """Standard deviation over seeds, common to a group's settings, and its degrees of freedom.

    Settings that draw nothing, such as sweet spot 1 of the listing rule, would make it too small
    for the others: they are left out where any setting varies.
    """
    varying = [s for s in group if len(set(s.values)) > 1] or group
    freedom = sum(len(s.values) - 1 for s in varying)
    squares = sum((value - s.mean) ** 2 for s in varying for value in s.values)
    return (math.sqrt(squares / freedom) if freedom else math.nan), freedom


def real_difference(first: Summary, second: Summary, group: Sequence[Summary]) -> float:
    """How far apart two means of a group must at least be; NaN where no seed was repeated."""
    spread, freedom = pooled_spread(group)
    if not freedom or len(group) < 2:
        return math.nan
    share = (1 / len(first.values) + 1 / len(second.values)) / 2
    floor = RESOLUTION * max(abs(first.mean), abs(second.mean))
    return max(_quantile(len(group), freedom) * spread * math.sqrt(share), floor)


@cache
def _quantile(settings: int, freedom: int) -> float:
    """Of the studentised range; a numerical integral that takes a noticeable part of a second."""
    return float(studentized_range.ppf(CONFIDENCE, settings, freedom))


def differs(first: Summary, second: Summary, group: Sequence[Summary]) -> bool:
    """Whether the seeds allow to call two settings of a group different."""
    return abs(first.mean - second.mean) > real_difference(first, second, group)


def statements(group: Sequence[Summary], what: str) -> list[str]:
    """Sentences on a group of settings whose lowest score is the best, e.g. one row of a table."""
    best, *others = sorted(group, key=lambda s: s.mean)
    if not others:
        return []
    if not pooled_spread(group)[1]:
        return [f"{what}: one seed each, so nothing can be said about differences."]
    margin = max(real_difference(best, other, group) for other in others)
    counts = sorted({len(s.values) for s in group})
    number = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    seeds = f"means of {number} seeds differ beyond chance from {margin:.3g} on"
    behind = [s for s in others if differs(best, s, group)]
    if not behind:
        return [f"{what}: no setting is better than another beyond the seeds' spread ({seeds})."]
    losses = ", ".join(f"{s.name} (by {s.mean - best.mean:.3g})" for s in behind)
    text = f"{what}: {best.name} is better than {losses}"
    if near := ", ".join(s.name for s in others if s not in behind):
        text += f"; between {best.name} and {near} the seeds' spread allows no choice"
    return [f"{text} ({seeds})."]


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of (cost, score) that no other point beats in one without losing in the other.

    Both the lower the better; in the order of cost.
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: points[i]):
        if not front or points[index][1] < points[front[-1]][1]:
            front.append(index)
    return front
