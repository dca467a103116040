"""The results of a study: results.csv, a table in Markdown and LaTeX, and a plot."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

from utils.io.files import write_text
from utils.io.tables import csv_table, latex_table, markdown_table
from utils.pages import save_figure, subplots
from utils.sweep.cells import Sweep
from utils.sweep.plan import Setting, Study
from utils.sweep.stats import Summary, statements

RESULTS, MARKDOWN, LATEX, PLOT = "results.csv", "table.md", "table.tex", "scores.png"
EMPTY_CELL = "–"


@dataclass(frozen=True)
class SettingResult:
    """One setting, summarised over its seeds."""

    setting: Setting
    score: Summary
    hole_psnr: float | None  # mean over images and seeds, in dB

    @property
    def steps(self) -> int:
        return self.setting.decoding.steps


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
    def winner(self) -> SettingResult:
        return min(self.results, key=lambda result: result.score.mean)

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
                str(result.steps),
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
                | {"steps": result.steps, "images": table.images, "score_name": table.score_name}
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
