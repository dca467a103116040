"""Two plots of a study: score by steps, and score by time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes

from utils.pictures import pyplot, save_figure
from utils.sweep.stats import pareto_front
from utils.sweep.tables import Table


def save_study_plots(folder: Path, table: Table) -> None:
    for name, draw in STUDY_PLOTS.items():
        figure, axes = pyplot().subplots(figsize=(6.4, 4), layout="constrained")
        draw(axes, table)
        title = table.study.title.replace("$", r"\$")  # not a formula
        axes.set(ylabel=f"{table.score_name} (lower is better)", title=title)
        axes.grid(alpha=0.3)
        axes.legend()
        save_figure(folder / name, figure)


def score_by_step(axes: Axes, table: Table) -> None:
    """Score against steps run, one line per row; error bars are one standard deviation."""
    varied = len({result.steps for result in table.results}) > 1
    for name in table.study.rows:
        found = table.row(name)
        x = [result.steps if varied else result.setting.column for result in found]
        y = [result.score.mean for result in found]
        spread = [result.score.spread or 0 for result in found]
        axes.errorbar(x, y, spread, marker="o", capsize=3, label=name or table.study.column_name)
        if varied and len(set(x)) < len(x):
            for result, *place in zip(found, x, y, strict=True):
                _name(axes, result.setting.column, tuple(place))
    axes.set_xlabel("steps run" if varied else table.study.column_name)


def score_by_time(axes: Axes, table: Table) -> None:
    """Score against time per image, with the Pareto front."""
    points = [(1000 * result.seconds, result.score.mean) for result in table.results]
    named = list(zip(points, [result.setting for result in table.results], strict=True))
    for name in table.study.rows:
        mine = [point for point, setting in named if setting.row == name]
        axes.scatter(*zip(*mine, strict=True), label=name or None)
    for point, setting in named:
        _name(axes, setting.column, point)
    front = [points[index] for index in pareto_front(points)]
    axes.plot(*zip(*front, strict=True), color="grey", ls="--", lw=1, label="Pareto front")
    axes.set_xlabel("ms per image")


def _name(axes: Axes, text: str, point: tuple[float, float]) -> None:
    axes.annotate(text, point, fontsize=8, xytext=(4, 4), textcoords="offset points")


STUDY_PLOTS: dict[str, Callable[[Axes, Table], None]] = {
    "score_by_step.png": score_by_step,
    "score_by_time.png": score_by_time,
}
