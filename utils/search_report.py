"""What a search saw: numbers as JSON, a table, two plots, and whether the winner stands out."""

from __future__ import annotations

import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from optuna.trial import FrozenTrial, TrialState

from config.schema import Config
from utils.checkpoint import load_tokenizer
from utils.device import pick_device
from utils.files import atomic, write_text
from utils.runlog import environment

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NUMBERS, TABLE = "search.json", "search.md"
ENCODE_BATCH, ENCODE_REPEATS = 16, 3  # images; the quickest of so many counts
STANDS_OUT = 2.0  # standard deviations between the winner and the runner-up
Result = dict[str, Any]  # what search.json holds


def describe(
    config: Config,
    trials: list[FrozenTrial],
    best: FrozenTrial,
    checks: list[FrozenTrial],
    seeds: list[FrozenTrial],
    images: int,
) -> Result:
    """Everything that is worth keeping of a finished search.

    trials: in the order of their places. checks: the report's rate, if it was pruned among them.
    seeds: the best with other seeds. images: what a trial sees over its whole training.
    """
    contenders = [*trials, *checks]
    rows = [_row(place, trial, config) for place, trial in enumerate(contenders)]
    winner = next(row for row, trial in zip(rows, contenders, strict=True) if trial is best)
    repeats = [_row(place, trial, config) for place, trial in enumerate(seeds)]
    rows, extra = rows[: len(trials)], rows[len(trials) :]
    result = {
        "direction": "minimize",
        "settings": config.search.model_dump(mode="json"),
        "images": images,
        "seed": config.seed,
        "workers": len({trial.user_attrs.get("worker") for trial in trials}),
        "trials": rows,
        "report": extra,
        "best": winner,
        "repeats": repeats,
        "noise": noise(winner["loss"], repeats),
        "cost": cost(rows, [*extra, *repeats], images * encode_seconds(config)),
        "environment": environment(pick_device(config.device)),
    }
    result["standing"] = standing(result)
    return result


def _row(place: int, trial: FrozenTrial, config: Config) -> dict[str, Any]:
    complete = trial.state == TrialState.COMPLETE
    looks = {str(look): value for look, value in trial.intermediate_values.items()}
    last = trial.intermediate_values.get(trial.last_step) if looks else None
    return {
        "trial": place,
        "params": trial.params,
        "state": trial.state.name.lower(),
        "loss": trial.value if complete else None,
        "last_look": last if last is not None and math.isfinite(last) else None,
        "looks": {look: value for look, value in looks.items() if math.isfinite(value)},
        "share": trial.user_attrs.get("share", 1.0 if complete else 0.0),
        "seconds": trial.user_attrs.get("seconds", 0.0),
        "seed": trial.user_attrs.get("seed", config.seed),
        "reason": trial.user_attrs.get("reason", ""),
        "attempts": 1 + len(trial.system_attrs.get("retry_history", [])),
    }


def noise(loss: float, repeats: list[dict[str, Any]]) -> dict[str, float] | None:
    """Mean and standard deviation over the seeds of the best values; None without repeats."""
    losses = [loss, *(row["loss"] for row in repeats if row["loss"] is not None)]
    if len(losses) < 2:
        return None
    deviation = statistics.stdev(losses)
    return {"mean": statistics.fmean(losses), "deviation": deviation, "seeds": len(losses)}


def standing(result: Result) -> str:
    """Whether the winner stands out from the runners-up, in a sentence."""
    best, spread = result["best"], result["noise"]
    rows = [*result["trials"], *result["report"]]
    rivals = [row for row in rows if row["loss"] is not None and row["trial"] != best["trial"]]
    rivals.sort(key=lambda row: row["loss"])
    if not rivals:
        return "No other trial was trained to its end; all were behind, or diverged, on the way."
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


def cost(
    rows: list[dict[str, Any]], checks: list[dict[str, Any]], encode: float
) -> dict[str, float]:
    """What the trials took, in seconds and in trials trained to their end.

    checks: what was trained after the trials; not part of their cost.
    encode: seconds that the tokenizer would add to a whole trial without the token cache.
    """
    whole = [row["seconds"] for row in [*rows, *checks] if row["loss"] is not None]
    full, total = statistics.fmean(whole), sum(row["seconds"] for row in rows)
    return {
        "trials": len(rows),
        "seconds": total,
        "full_trial_seconds": full,
        "full_trials": total / full if full else math.nan,
        "encode_seconds": encode,
        "full_trials_without_cache": total / (full + encode) if full + encode else math.nan,
        "check_seconds": sum(row["seconds"] for row in checks),
    }


def encode_seconds(config: Config) -> float:
    """Seconds that the tokenizer takes for an image on this machine."""
    device = pick_device(config.device)
    vqgan = load_tokenizer(config.tokenizer_weights, config.tokenizer).to(device)
    side = config.data.image_size
    images = torch.zeros(ENCODE_BATCH, 3, side, side, device=device)
    seconds = []
    for _ in range(1 + ENCODE_REPEATS):  # the first one warms up
        began = time.perf_counter()
        vqgan.encode(images).cpu()
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:]) / ENCODE_BATCH


def save_search(folder: Path, result: Result) -> None:
    """Write numbers, table and plots, and print the table."""
    text = "\n".join(table(result)) + "\n\n" + "\n".join(notes(result)) + "\n"
    print(text, end="", flush=True)
    write_text(folder / TABLE, text)
    save_plots(folder, result)
    write_text(folder / NUMBERS, json.dumps(result, indent=1) + "\n")


def save_plots(folder: Path, result: Result) -> None:
    """Loss against each searched setting, and by trial."""
    for name, draw in PLOTS.items():
        figure = draw(result)
        with atomic(folder / name) as temporary:
            figure.savefig(temporary, format="png", dpi=120)
        plt.close(figure)


def cells(result: Result) -> list[list[str]]:
    """Heading and rows of the table, the best loss first and the pruned after the complete."""
    names = list(result["best"]["params"])
    heading = ["trial", *names, "val loss", "trained", "seconds", "how it ended"]
    order = sorted(
        [*result["trials"], *result["report"]],
        key=lambda row: (row["loss"] is None, row["loss"] or 0, -row["share"], row["trial"]),
    )
    rows = [
        [
            str(row["trial"]),
            *(f"{row['params'][name]:.4g}" if name in row["params"] else "" for name in names),
            "" if row["loss"] is None else f"{row['loss']:.4f}",
            f"{row['share']:.0%}",
            f"{row['seconds']:.1f}",
            _ending(row, result),
        ]
        for row in order
    ]
    return [heading, *rows]


def _ending(row: dict[str, Any], result: Result) -> str:
    words = [row["reason"] or "complete"]
    if row in result["report"]:
        words = ["the report's rate to its end"]
    if row["trial"] == result["best"]["trial"]:
        words.append("best")
    return ", ".join(words)


def table(result: Result) -> list[str]:
    """Lines of a table that is Markdown and reads as text."""
    rows = cells(result)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    rows.insert(1, ["-" * width for width in widths])
    return [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]


def notes(result: Result) -> list[str]:
    """Sentences below the table: the seeds, the winner's standing, what the search cost."""
    lines, spent = [], result["cost"]
    if result["noise"]:
        losses = ", ".join(
            f"{row['loss']:.4f} (seed {row['seed']})" if row["loss"] is not None else row["reason"]
            for row in result["repeats"]
        )
        lines.append(
            f"The best again with other seeds: {losses}; mean of all {result['noise']['seeds']} "
            f"{result['noise']['mean']:.4f}, standard deviation {result['noise']['deviation']:.4f}."
        )
    lines.append(result["standing"])
    lines.append(
        f"{spent['trials']} trials took {spent['seconds']:.0f} s, as long as "
        f"{spent['full_trials']:.2f} trained to their end ({spent['full_trial_seconds']:.1f} s "
        f"each), or {spent['full_trials_without_cache']:.2f} of those without the token cache "
        f"({spent['encode_seconds']:.1f} s more each). Checks afterwards: "
        f"{spent['check_seconds']:.0f} s."
    )
    return lines


def plot_settings(result: Result) -> plt.Figure:
    """Loss against each searched setting; pruned trials at the loss of their last look."""
    names = list(result["best"]["params"])
    figure, grid = plt.subplots(
        1, len(names), figsize=(1.5 + 5 * len(names), 4), squeeze=False, layout="constrained"
    )
    for name, axes in zip(names, grid[0], strict=True):
        _scatter(axes, result, [row["params"].get(name) for row in result["trials"]])
        best = result["best"]
        deviation = (result["noise"] or {}).get("deviation", 0.0)
        for row in result["report"]:
            rate = row["params"].get(name)
            axes.scatter(rate, row["loss"], marker="D", color="C2", label="the report's rate")
        axes.errorbar(
            best["params"][name], best["loss"], deviation, color="C1", marker="*", markersize=14,
            capsize=4, ls="", label="best, ± deviation over seeds",
        )  # fmt: skip
        space = result["settings"]["space"]
        if name not in space or space[name]["log"]:
            axes.set_xscale("log")
        axes.set(xlabel=name, ylabel="validation loss in nats")
    grid[0][0].legend(fontsize=8)
    return figure


def plot_history(result: Result) -> plt.Figure:
    """Loss of each trial in turn, and the best so far."""
    figure, axes = plt.subplots(figsize=(6.5, 4), layout="constrained")
    rows = result["trials"]
    _scatter(axes, result, [row["trial"] for row in rows])
    so_far, best = [], math.inf
    for row in rows:
        best = min(best, row["loss"] if row["loss"] is not None else math.inf)
        so_far.append(best if math.isfinite(best) else math.nan)
    axes.step([row["trial"] for row in rows], so_far, where="post", color="C1", label="best so far")
    axes.set(xlabel="trial", ylabel="validation loss in nats")
    axes.legend(fontsize=8)
    return figure


def _scatter(axes: Axes, result: Result, places: list[float | None]) -> None:
    """Complete trials, pruned ones by their last look, and at the top those without any."""
    rows = list(zip(places, result["trials"], strict=True))
    kinds = {
        "complete": ([(x, row["loss"]) for x, row in rows if row["loss"] is not None], "o", "C0"),
        "pruned, at its last look": (
            [(x, row["last_look"]) for x, row in rows if _was_pruned(row, seen=True)], "x", "C3",
        ),
    }  # fmt: skip
    for label, (points, marker, color) in kinds.items():
        if points:
            axes.scatter(*zip(*points, strict=True), marker=marker, color=color, label=label)
    top = axes.get_ylim()[1]
    unseen = [x for x, row in rows if _was_pruned(row, seen=False) and x is not None]
    if unseen:
        axes.scatter(unseen, [top] * len(unseen), marker="^", color="C3", label="diverged")
    axes.grid(alpha=0.3)


def _was_pruned(row: dict[str, Any], *, seen: bool) -> bool:
    return row["loss"] is None and (row["last_look"] is not None) == seen


def _values(row: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in row["params"].items())


PLOTS = {"learning_rate.png": plot_settings, "history.png": plot_history}
