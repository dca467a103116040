"""Statistics over seeds: means, standard deviations and significant differences.

Two settings differ significantly if their means differ by more than Tukey's HSD at 95 % for all
pairs of a group (Tukey 1949), whose settings all have the same seeds. The standard deviation over
seeds is pooled over the settings that vary: `scipy.stats.tukey_hsd` pools deterministic ones too,
which makes it too small. It reflects decoding noise only, not other images.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from scipy.stats import studentized_range

CONFIDENCE = 0.95  # that no difference among equal settings is called significant
RESOLUTION = 1e-9  # relative; smaller differences are rounding errors


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
    """Standard deviation over seeds, pooled over a group's settings, and its degrees of freedom.

    Deterministic settings, such as sweet spot 1 of the listing rule, are left out unless all are.
    """
    varying = [s for s in group if len(set(s.values)) > 1] or group
    freedom = sum(len(s.values) - 1 for s in varying)
    squares = sum((value - s.mean) ** 2 for s in varying for value in s.values)
    return (math.sqrt(squares / freedom) if freedom else math.nan), freedom


def real_difference(group: Sequence[Summary]) -> float:
    """Least significant difference of two means of a group; NaN for one seed or one setting."""
    spread, freedom = pooled_spread(group)
    if not freedom or len(group) < 2:
        return math.nan
    quantile = _quantile(len(group), freedom)
    floor = RESOLUTION * max(abs(s.mean) for s in group)
    return max(quantile * spread / math.sqrt(len(group[0].values)), floor)


@cache
def _quantile(settings: int, freedom: int) -> float:
    """Quantile of the studentised range, a slow numerical integral."""
    return float(studentized_range.ppf(CONFIDENCE, settings, freedom))


def statements(group: Sequence[Summary], what: str) -> list[str]:
    """Sentences on the significant differences in a group, e.g. a table's row; lower is better."""
    best, *others = sorted(group, key=lambda s: s.mean)
    if not others:
        return []
    if math.isnan(margin := real_difference(group)):
        return [f"{what}: one seed each, so differences cannot be tested."]
    test = f"Tukey HSD at {100 * CONFIDENCE:g} %: {margin:.3g}, {len(best.values)} seeds"
    behind = [s for s in others if s.mean - best.mean > margin]
    if not behind:
        return [f"{what}: no significant difference ({test})."]
    losses = ", ".join(f"{s.name} (by {s.mean - best.mean:.3g})" for s in behind)
    text = f"{what}: {best.name} is significantly better than {losses}"
    if near := ", ".join(s.name for s in others if s not in behind):
        text += f", but not than {near}"
    return [f"{text}; {test}."]
