"""The results of a study: results.csv and a table in Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import statistics
from dataclasses import dataclass
from pathlib import Path

from utils.io.files import write_text
from utils.io.tables import latex_table, markdown_table
from utils.sweep.cells import Sweep
from utils.sweep.plan import Setting, Study
from utils.sweep.stats import Summary, statements

RESULTS, MARKDOWN, LATEX = "results.csv", "table.md", "table.tex"
EMPTY_CELL = "–"


@dataclass(frozen=True)
class SettingResult:
    """One setting, summed up over its seeds."""

    setting: Setting
    score: Summary
    hole_psnr: float | None  # mean over images and seeds, in dB
    seconds: float  # an image, mean over seeds: all steps, and its pixels

    @property
    def steps(self) -> int:
        return self.setting.decoding.steps

    @property
    def text(self) -> str:
        """The score and, with several seeds, its standard deviation over them."""
        spread = self.score.spread
        return f"{self.score.mean:.2f}" + ("" if spread is None else f" ± {spread:.2f}")


@dataclass(frozen=True)
class Table:
    """All results of a study, and which differences between them are real."""

    study: Study
    score_name: str
    images: int
    seeds: list[int]
    results: dict[tuple[str, str], SettingResult]  # by row and column

    def row(self, name: str) -> list[SettingResult]:
        """Results of a row, in the order of the columns."""
        found = [self.results.get((name, column)) for column in self.study.columns]
        return [result for result in found if result]

    def best(self, name: str) -> SettingResult:
        return min(self.row(name), key=lambda result: result.score.mean)

    @property
    def winner(self) -> SettingResult:
        return min(self.results.values(), key=lambda result: result.score.mean)

    @property
    def statements(self) -> list[str]:
        """Which differences within each row are real."""
        return [
            sentence
            for name in self.study.rows
            for sentence in statements([r.score for r in self.row(name)], name or self.study.name)
        ]

    @property
    def caption(self) -> str:
        """What the numbers are."""
        spread = f"mean ± standard deviation over {len(self.seeds)} seeds of decoding noise"
        what = spread if len(self.seeds) > 1 else "one seed"
        compares = "" if self.score_name == "FID" else " It is not FID: compare within the table."
        return (
            f"{self.study.title}. {self.score_name} of {self.images} images to their ground truth, "
            f"{what}; the lower the better, best of each row in bold.{compares}"
        )


def table_of(sweep: Sweep, study: Study) -> Table:
    """Collect the results of a study that is complete."""
    results = {}
    for setting in study.settings:
        rows = sweep.rows_of(setting.decoding)
        errors = [value for row in rows for value in row["hole_psnr"] if value is not None]
        results[setting.row, setting.column] = SettingResult(
            setting,
            Summary(setting.column, tuple(row["score"] for row in rows)),
            statistics.fmean(errors) if errors else None,
            statistics.fmean(row["seconds"] for row in rows),
        )
    return Table(study, rows[0]["score_name"], rows[0]["images"], list(sweep.seeds), results)


def save_table(folder: Path, table: Table) -> None:
    write_text(folder / RESULTS, as_csv(table))
    write_text(folder / MARKDOWN, as_markdown(table))
    write_text(folder / LATEX, as_latex(table))


def as_csv(table: Table) -> str:
    """A line for each setting and seed."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    decoding = list(next(iter(table.results.values())).setting.decoding.model_dump())
    heading = ["row", "column", "seed", "score", "mean", "spread", "hole_psnr", "ms_per_image"]
    writer.writerow([*heading, "steps", "images", "score_name", *decoding])
    for result in table.results.values():
        setting, score = result.setting, result.score
        for seed, value in zip(table.seeds, score.values, strict=True):
            numbers = [value, score.mean, score.spread, result.hole_psnr, 1000 * result.seconds]
            cells = ["" if number is None else f"{number:.6g}" for number in numbers]
            about = [result.steps, table.images, table.score_name]
            values = setting.decoding.model_dump(mode="json").values()
            writer.writerow([setting.row, setting.column, seed, *cells, *about, *values])
    return file.getvalue()


def grid(table: Table) -> list[list[str]]:
    """Heading and rows, as in the report: one column for each value, the best of a row in bold."""
    columns = table.study.columns
    lines = [[f"{table.study.row_name} / {table.study.column_name}".removeprefix(" / "), *columns]]
    for name in table.study.rows:
        cells, best = [], table.best(name)
        for column in columns:
            result = table.results.get((name, column))
            text = result.text if result else EMPTY_CELL
            cells.append(f"**{text}**" if result is best else text)
        lines.append([name or table.score_name, *cells])
    return lines


def details(table: Table) -> list[list[str]]:
    """Heading and a row for each setting: steps, score, error in the hole, time."""
    heading = ["setting", "steps", table.score_name, "PSNR in the hole, dB", "ms an image"]
    return [heading] + [
        [
            result.setting.name,
            str(result.steps),
            result.text,
            EMPTY_CELL if result.hole_psnr is None else f"{result.hole_psnr:.2f}",
            f"{1000 * result.seconds:.1f}",
        ]
        for result in table.results.values()
    ]


def as_markdown(table: Table) -> str:
    """The table, which differences are real, and the settings one by one."""
    cells, by_setting = grid(table), details(table)
    blocks = [
        f"**{table.caption}**",
        markdown_table(cells[0], cells[1:]),
        *table.statements,
        markdown_table(by_setting[0], by_setting[1:]),
        "Times cover the transformer's steps and the pixels, not the encoding, which all share.",
    ]
    return "\n\n".join(blocks) + "\n"


def as_latex(table: Table) -> str:
    heading, *rows = grid(table)
    return latex_table(heading, rows, table.caption)
