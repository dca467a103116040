"""Results of a search: numbers as JSON, a table, two plots, and whether the winner stands out.

Optuna and matplotlib are imported where used, so reading results needs neither.
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from config.schema import Config
from utils.device import environment, pick_device
from utils.io.files import write_text
from utils.io.tables import markdown_table
from utils.pages import save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from optuna import Study
    from optuna.trial import FrozenTrial

SEARCH_JSON, SEARCH_TABLE = "search.json", "search.md"
SLICES, HISTORY = SEARCH_PLOTS = ("learning_rate.png", "history.png")
STANDS_OUT = 2.0  # standard deviations between the winner and the runner-up
LOSS = "validation loss in nats"
TrialRow = dict[str, Any]  # one trial
SearchResult = dict[str, Any]  # what search.json contains


def describe_search(
    config: Config,
    trials: list[FrozenTrial],
    best: FrozenTrial,
    repeats: list[FrozenTrial],
    images: int,
) -> SearchResult:
    """The content of search.json.

    repeats: the best values with other seeds. images: number seen over a trial's whole training.
    """
    rows, repeated = ([_row(trial, config.seed) for trial in each] for each in (trials, repeats))
    winner = next(row for row in rows if row["trial"] == best.number)
    deviation = noise(winner["loss"], repeated)
    return {
        "direction": "minimize",
        "settings": config.search.model_dump(mode="json"),
        "images": images,
        "seed": config.seed,
        "trials": rows,
        "best": winner,
        "repeats": repeated,
        "noise": deviation,
        "standing": standing(rows, winner, deviation),
        "environment": environment(pick_device(config.device)),
    }


def _row(trial: FrozenTrial, seed: int) -> TrialRow:
    """The numbers of a trial; seed: of trials that did not choose their own."""
    looks, noted = trial.intermediate_values, trial.user_attrs
    return {
        "trial": trial.number,
        "params": trial.params,
        "state": trial.state.name.lower(),
        "loss": trial.value if trial.state.name == "COMPLETE" else None,
        "looks": {str(look): value for look, value in looks.items() if math.isfinite(value)},
        "share": noted.get("share", 0.0),
        "seconds": noted.get("seconds", 0.0),
        "seed": noted.get("seed", seed),
        "reason": noted.get("reason", ""),
    }


def noise(loss: float, repeats: list[TrialRow]) -> dict[str, float] | None:
    """Mean and standard deviation over seeds of the best values' loss; None without repeats."""
    losses = [loss, *(row["loss"] for row in repeats if row["loss"] is not None)]
    if len(losses) < 2:
        return None
    deviation = statistics.stdev(losses)
    return {"mean": statistics.fmean(losses), "deviation": deviation, "seeds": len(losses)}


def standing(rows: list[TrialRow], best: TrialRow, spread: dict[str, float] | None) -> str:
    """A sentence: is the winner better than the runners-up beyond the spread over seeds?"""
    rivals = [row for row in rows if row["loss"] is not None and row["trial"] != best["trial"]]
    rivals.sort(key=lambda row: row["loss"])
    if not rivals:
        return "No other trial reached its end; all fell behind, or diverged."
    gap = rivals[0]["loss"] - best["loss"]
    behind = f"the runner-up, trial {rivals[0]['trial']}, is {gap:.4f} nats behind"
    if spread is None:
        return f"Whether the winner stands out is not known without other seeds; {behind}."
    limit = STANDS_OUT * spread["deviation"]
    noise_text = f"{spread['deviation']:.4f} nats over {spread['seeds']} seeds"
    if gap > limit:
        return (
            f"The winner stands out: {behind}, more than {STANDS_OUT:g} standard deviations of a "
            f"change of seed ({noise_text})."
        )
    near = [row for row in rivals if row["loss"] - best["loss"] <= limit]
    named = ", ".join(f"trial {row['trial']} ({_values(row)})" for row in near)
    return (
        f"The winner does not stand out: within {STANDS_OUT:g} standard deviations of a change of "
        f"seed ({noise_text}) lie {named}."
    )


def _values(row: TrialRow) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in row["params"].items())


def cells(result: SearchResult) -> list[list[str]]:
    """Heading and rows of the table: complete trials by loss, then pruned ones."""
    names = list(result["best"]["params"])
    heading = ["trial", *names, "val loss", "trained", "seconds", "how it ended"]
    rows = sorted(
        result["trials"],
        key=lambda row: (row["loss"] is None, row["loss"] or 0, -row["share"], row["trial"]),
    )
    best = result["best"]["trial"]
    return [heading] + [
        [
            str(row["trial"]),
            *(f"{row['params'][name]:.4g}" if name in row["params"] else "" for name in names),
            "" if row["loss"] is None else f"{row['loss']:.4f}",
            f"{row['share']:.0%}",
            f"{row['seconds']:.1f}",
            (row["reason"] or "complete") + (", best" if row["trial"] == best else ""),
        ]
        for row in rows
    ]


def search_notes(result: SearchResult) -> list[str]:
    """Sentences below the table: repeats, whether the winner stands out, time taken."""
    lines, spread = [], result["noise"]
    if result["repeats"]:
        losses = ", ".join(
            f"{row['reason'] if row['loss'] is None else format(row['loss'], '.4f')} "
            f"(seed {row['seed']})"
            for row in result["repeats"]
        )
        mean = spread and (
            f"; mean of all {spread['seeds']} {spread['mean']:.4f}, "
            f"standard deviation {spread['deviation']:.4f}"
        )
        lines.append(f"The best again with other seeds: {losses}{mean or ''}.")
    trials, repeats = result["trials"], result["repeats"]
    seconds, more = (sum(row["seconds"] for row in rows) for rows in (trials, repeats))
    took = f"{len(trials)} trials took {seconds:.0f} s, the repeats after them {more:.0f} s."
    return [*lines, result["standing"], took]


def save_search(folder: Path, result: SearchResult, study: Study) -> None:
    """Write numbers, table and plots, and print the table."""
    heading, *rows = cells(result)
    table, notes = markdown_table(heading, rows, aligned=True), "\n".join(search_notes(result))
    text = f"{table}\n\n{notes}\n"
    print(text, end="", flush=True)
    write_text(folder / SEARCH_TABLE, text)
    save_plots(folder, study)
    write_text(folder / SEARCH_JSON, json.dumps(result, indent=1) + "\n")


def save_plots(folder: Path, study: Study) -> None:
    """Optuna's plots: loss against each searched setting, and by trial."""
    from matplotlib import pyplot as plt
    from optuna.visualization.matplotlib import plot_optimization_history, plot_slice

    with plt.style.context("default"):  # Optuna changes the style
        slices = plot_slice(study, target_name=LOSS)
        _mark_pruned(slices, study)
        shown = {SLICES: plt.gcf()}
        plot_optimization_history(study, target_name=LOSS)
        shown[HISTORY] = plt.gcf()
        for name, figure in shown.items():
            plt.close(figure)  # which pyplot would keep
            save_figure(folder / name, figure, bbox_inches="tight")


def _mark_pruned(slices: Axes | np.ndarray, study: Study) -> None:
    """Add pruned trials, which Optuna leaves out, as crosses at their last reported loss."""
    pruned = [t for t in study.trials if t.state.name == "PRUNED" and t.value is not None]
    for axes in np.atleast_1d(slices):
        name = axes.get_xlabel()
        points = [(trial.params[name], trial.value) for trial in pruned if name in trial.params]
        if points:
            axes.scatter(*zip(*points, strict=True), marker="x", color="C0", label="pruned")
            axes.autoscale()
            axes.legend()
