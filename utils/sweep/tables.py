"""What a study leaves: results.csv, a table in Markdown and LaTeX, and two plots."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

from utils.io.files import atomic, write_text
from utils.sweep.cells import Sweep
from utils.sweep.plan import Setting, Study
from utils.sweep.stats import Summary, pareto_front, statements

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS, MARKDOWN, LATEX = "results.csv", "table.md", "table.tex"
SCORE_PLOT, TIME_PLOT = "score_by_step.png", "score_by_time.png"
EMPTY = "–"
LATEX_SPECIAL = {c: f"\\{c}" for c in "&%$#_{}"} | {"–": "--", "±": r"$\pm$"}


@dataclass(frozen=True)
class Result:
    """One setting, summed up over its seeds."""

    setting: Setting
    score: Summary
    hole_psnr: float | None
    """Mean over images and seeds, in dB."""
    seconds: float
    """An image, mean over seeds: all steps, and its pixels."""

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
    """All results of a study, and what may be said about them."""

    study: Study
    score_name: str
    images: int
    seeds: list[int]
    results: dict[tuple[str, str], Result]  # by row and column

    def row(self, name: str) -> list[Result]:
        """Results of a row, in the order of the columns."""
        found = [self.results.get((name, column)) for column in self.study.columns]
        return [result for result in found if result]

    def best(self, name: str) -> Result:
        """The lowest score of a row."""
        return min(self.row(name), key=lambda result: result.score.mean)

    @property
    def winner(self) -> Result:
        """The lowest score of all."""
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
        results[setting.row, setting.column] = Result(
            setting,
            Summary(setting.column, tuple(row["score"] for row in rows)),
            statistics.fmean(errors) if errors else None,
            statistics.fmean(row["seconds"] for row in rows),
        )
    return Table(study, rows[0]["score_name"], rows[0]["images"], list(sweep.seeds), results)


def save_table(folder: Path, table: Table) -> None:
    """Write the numbers and the table in its three forms, and the plots."""
    write_text(folder / RESULTS, as_csv(table))
    write_text(folder / MARKDOWN, as_markdown(table))
    write_text(folder / LATEX, as_latex(table))
    for name, draw in PLOTS.items():
        figure = draw(table)
        with atomic(folder / name) as temporary:
            figure.savefig(temporary, format="png", dpi=120)
        plt.close(figure)


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


def grid(table: Table, bold: Callable[[str], str]) -> list[list[str]]:
    """Heading and rows, as in the report: one column for each value."""
    columns = table.study.columns
    lines = [[f"{table.study.row_name} / {table.study.column_name}".removeprefix(" / "), *columns]]
    for name in table.study.rows:
        cells, best = [], table.best(name)
        for column in columns:
            result = table.results.get((name, column))
            text = result.text if result else EMPTY
            cells.append(bold(text) if result is best else text)
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
            EMPTY if result.hole_psnr is None else f"{result.hole_psnr:.2f}",
            f"{1000 * result.seconds:.1f}",
        ]
        for result in table.results.values()
    ]


def as_markdown(table: Table) -> str:
    """The table, what may be said about it, and the settings one by one."""
    blocks = [
        f"**{table.caption}**",
        _markdown_rows(grid(table, lambda text: f"**{text}**")),
        *table.statements,
        _markdown_rows(details(table)),
        "Times hold the transformer's steps and the pixels, not the encoding, which all share.",
    ]
    return "\n\n".join(blocks) + "\n"


def _markdown_rows(rows: list[list[str]]) -> str:
    heading, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([heading, "|---" * len(rows[0]) + "|", *body])


def as_latex(table: Table) -> str:
    """A table environment that needs no package."""
    rows = [[_escaped(cell) for cell in row] for row in grid(table, lambda text: f"\0{text}")]
    rows = [[rf"\textbf{{{c[1:]}}}" if c.startswith("\0") else c for c in row] for row in rows]
    lines = [" & ".join(row) + r" \\" for row in rows]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_escaped(table.caption)}}}",
            rf"\begin{{tabular}}{{l{'r' * len(table.study.columns)}}}",
            r"\hline",
            lines[0],
            r"\hline",
            *lines[1:],
            r"\hline",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _escaped(text: str) -> str:
    return "".join(LATEX_SPECIAL.get(character, character) for character in text)


def score_by_step(table: Table) -> Figure:
    """Score against the steps that were run, a line for each row; bars are the seeds' spread."""
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    varied = len({result.steps for result in table.results.values()}) > 1
    for name in table.study.rows:
        found = table.row(name)
        x = [result.steps if varied else result.setting.column for result in found]
        y = [result.score.mean for result in found]
        spread = [result.score.spread or 0 for result in found]
        axes.errorbar(x, y, spread, marker="o", capsize=3, label=name or table.study.column_name)
        if varied and len(set(x)) < len(x):
            for result, place in zip(found, zip(x, y, strict=True), strict=True):
                axes.annotate(result.setting.column, place, fontsize=8, xytext=(4, 4),
                              textcoords="offset points")  # fmt: skip
    axes.set_xlabel("steps run" if varied else table.study.column_name)
    axes.set(ylabel=f"{table.score_name} (lower is better)", title=table.study.title)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def score_by_time(table: Table) -> Figure:
    """Score against time an image; a line joins the settings that nothing beats in both."""
    results = list(table.results.values())
    points = [(1000 * result.seconds, result.score.mean) for result in results]
    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    for name in table.study.rows:
        mine = [p for p, result in zip(points, results, strict=True) if result.setting.row == name]
        axes.scatter(*zip(*mine, strict=True), label=name or None)
    for result, point in zip(results, points, strict=True):
        axes.annotate(result.setting.column, point, fontsize=8, xytext=(4, 4),
                      textcoords="offset points")  # fmt: skip
    front = [points[index] for index in pareto_front(points)]
    axes.plot(*zip(*front, strict=True), color="grey", ls="--", lw=1, label="Pareto front")
    axes.set(xlabel="ms an image", ylabel=f"{table.score_name} (lower is better)")
    axes.set_title(table.study.title)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


PLOTS: dict[str, Callable[[Table], Figure]] = {
    SCORE_PLOT: score_by_step,
    TIME_PLOT: score_by_time,
}
