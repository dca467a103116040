"""The results of a study: results.csv, a table in Markdown and LaTeX, a plot, what differs.

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
from pathlib import Path

from scipy.stats import studentized_range

from utils.io.files import write_text
from utils.io.tables import csv_table, latex_table, markdown_table
from utils.pages import save_figure, subplots
from utils.sweep.cells import Sweep
from utils.sweep.plan import Setting, Study

RESULTS, MARKDOWN, LATEX, PLOT = "results.csv", "table.md", "table.tex", "scores.png"
EMPTY_CELL = "–"
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


@dataclass(frozen=True)
class SettingResult:
    """One setting, summarised over its seeds."""

    setting: Setting
    score: Summary
    hole_psnr: float | None  # mean over images and seeds, in dB


@dataclass(frozen=True)
class Table:
    """All results of a study and their significant differences."""

    study: Study
    score_name: str
    images: int
    seeds: list[int]
    results: list[SettingResult]  # in the order of the study's settings

    def row(self, name: str) -> list[SettingResult]:
        """Results of a row, in the order of the columns."""
        return [result for result in self.results if result.setting.row == name]

    @property
    def grid(self) -> list[list[str]]:
        """Heading and rows, as in the report: one column for each value."""
        corner = f"{self.study.row_name} / {self.study.column_name}".removeprefix(" / ")
        rows = {name or self.score_name: self.row(name) for name in self.study.rows}
        return score_grid(corner, {name: [r.score for r in row] for name, row in rows.items()})

    @property
    def details(self) -> list[list[str]]:
        """Heading and a row for each setting: steps, score, PSNR in the hole."""
        heading = ["setting", "steps", self.score_name, "PSNR in the hole, dB"]
        return [heading] + [
            [
                result.setting.name,
                str(result.setting.decoding.steps),
                str(result.score),
                EMPTY_CELL if result.hole_psnr is None else f"{result.hole_psnr:.2f}",
            ]
            for result in self.results
        ]

    @property
    def statements(self) -> list[str]:
        """Significant differences within each row."""
        return [
            sentence
            for name in self.study.rows
            for sentence in statements([r.score for r in self.row(name)], name or self.study.name)
        ]

    @property
    def caption(self) -> str:
        """What the numbers mean."""
        spread = f"mean ± standard deviation over {len(self.seeds)} decoding seeds"
        what = spread if len(self.seeds) > 1 else "one seed"
        compares = "" if self.score_name == "FID" else " Not FID: compare only within this table."
        return (
            f"{self.study.title}. {self.score_name} of {self.images} images to their ground truth, "
            f"{what}; lower is better, best of each row in bold.{compares}"
        )


def score_grid(corner: str, rows: dict[str, list[Summary]]) -> list[list[str]]:
    """Heading and rows of scores, a column for each setting's name, the best of a row in bold."""
    columns = list(dict.fromkeys(score.name for row in rows.values() for score in row))
    lines = [[corner, *columns]]
    for name, row in rows.items():
        best = min(row, key=lambda score: score.mean)
        cells = {score.name: f"**{score}**" if score is best else str(score) for score in row}
        lines.append([name, *(cells.get(column, EMPTY_CELL) for column in columns)])
    return lines


def table_of(sweep: Sweep, study: Study) -> Table:
    """Collect the results of a complete study."""
    results = []
    for setting in study.settings:
        rows = sweep.rows_of(setting.decoding)
        errors = [value for row in rows for value in row["hole_psnr"] if value is not None]
        score = Summary(setting.column, tuple(row["score"] for row in rows))
        psnr = statistics.fmean(errors) if errors else None
        results.append(SettingResult(setting, score, psnr))
    return Table(study, rows[0]["score_name"], rows[0]["images"], list(sweep.seeds), results)


def save_table(folder: Path, table: Table) -> None:
    """Write results.csv, table.md (with differences and every setting), table.tex, scores.png."""
    (heading, *rows), (titles, *settings) = table.grid, table.details
    blocks = [
        f"**{table.caption}**",
        markdown_table(heading, rows),
        *table.statements,
        markdown_table(titles, settings),
    ]
    write_text(folder / MARKDOWN, "\n\n".join(blocks) + "\n")
    write_text(folder / LATEX, latex_table(heading, rows, table.caption))
    write_text(folder / RESULTS, as_csv(table))
    save_plot(folder / PLOT, table)


def as_csv(table: Table) -> str:
    """One line per setting and seed."""
    lines = []
    for result in table.results:
        score, setting = result.score, result.setting
        for seed, value in zip(table.seeds, score.values, strict=True):
            numbers = {"score": value, "mean": score.mean, "spread": score.spread}
            numbers["hole_psnr"] = result.hole_psnr
            lines.append(
                {"row": setting.row, "column": setting.column, "seed": seed}
                | {name: None if n is None else f"{n:.6g}" for name, n in numbers.items()}
                | {"steps": setting.decoding.steps, "images": table.images}
                | {"score_name": table.score_name}
                | setting.decoding.model_dump(mode="json")
            )
    return csv_table(lines)


def save_plot(path: Path, table: Table) -> None:
    """Plot the scores, one line for each row; error bars are one standard deviation."""
    figure, axes = subplots(figsize=(7.4, 4.4))
    for name in table.study.rows:
        scores = [result.score for result in table.row(name)]
        means, spreads = zip(*((score.mean, score.spread or 0) for score in scores), strict=True)
        names = [score.name for score in scores]
        axes.errorbar(names, means, spreads, marker="o", capsize=3, label=name or None)
    title = table.study.title.replace("$", r"\$")  # not a formula
    label = f"{table.score_name} (lower is better)"
    axes.set(xlabel=table.study.column_name, ylabel=label, title=title)
    axes.grid(alpha=0.3)
    if len(table.study.rows) > 1:
        figure.legend(loc="outside right upper")
    save_figure(path, figure)


# Significant differences


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
