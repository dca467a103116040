"""Two plots of a study: score by steps, and score by time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from utils.pictures import pyplot, save_figure
from utils.sweep.stats import pareto_front
from utils.sweep.tables import Table


def save_study_plots(folder: Path, table: Table) -> None:
    for name, draw in STUDY_PLOTS.items():
        save_figure(folder / name, draw(table))


def score_by_step(table: Table) -> Figure:
    """Score against the steps that were run, a line for each row; bars are the seeds' spread."""
    figure, axes = pyplot().subplots(figsize=(6.4, 4), layout="constrained")
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
    figure, axes = pyplot().subplots(figsize=(6.4, 4), layout="constrained")
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


STUDY_PLOTS: dict[str, Callable[[Table], Figure]] = {
    "score_by_step.png": score_by_step,
    "score_by_time.png": score_by_time,
}
