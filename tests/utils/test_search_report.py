"""What a search leaves behind: table, plots, the winner's standing, and what it cost."""

from __future__ import annotations

import re
from pathlib import Path

import jinja2
import matplotlib.pyplot as plt
import pytest

from utils import report
from utils.search_report import (
    cost,
    noise,
    notes,
    plot_history,
    plot_settings,
    save_search,
    standing,
    table,
)


def row(trial, rate, loss, **more):
    """A row of the result: complete with a loss, else pruned at its first look."""
    values = {
        "trial": trial,
        "params": {"learning_rate": rate},
        "state": "pruned" if loss is None else "complete",
        "loss": loss,
        "last_look": None,
        "looks": {},
        "share": 1.0 if loss is not None else 0.125,
        "seconds": 8.0 if loss is not None else 1.0,
        "seed": 0,
        "reason": "",
    }
    return values | more


@pytest.fixture
def result():
    trials = [
        row(0, 1e-3, 6.5),
        row(1, 1e-4, None, last_look=6.8, reason="loss 6.8000 behind the median"),
        row(2, 2e-3, 6.4),
        row(3, 1e-1, None, reason="NaN: the loss is no longer finite"),
    ]
    repeats = [row(0, 2e-3, 6.41, seed=1), row(1, 2e-3, 6.39, seed=2)]
    values = {"trials": trials, "best": trials[2], "repeats": repeats, "report": []}
    values |= {"settings": {"space": {}}, "noise": noise(6.4, repeats)}
    values |= {"cost": cost(trials, repeats, 2.0)}
    return values | {"standing": standing(values)}


def test_the_deviation_over_seeds_is_that_of_the_sample(result):
    # 6.39, 6.40, 6.41: squares of 0.01, 0, 0.01 over n - 1 = 2
    assert result["noise"]["deviation"] == pytest.approx(0.01)
    assert result["noise"]["mean"] == pytest.approx(6.4)


def test_a_seed_that_diverged_is_left_out_of_the_deviation():
    assert noise(6.4, [row(0, 1, None), row(1, 1, 6.42)])["seeds"] == 2
    assert noise(6.4, [row(0, 1, None)]) is None


def test_a_winner_ahead_by_more_than_two_deviations_stands_out(result):
    assert "The winner stands out: the runner-up, trial 0, is 0.1000 nats" in standing(result)


def test_a_winner_within_two_deviations_does_not_and_its_equals_are_named(result):
    result["trials"][0]["loss"] = 6.419
    said = standing(result)
    assert said.startswith("The winner does not stand out")
    assert said.endswith("lie trial 0 (learning_rate 0.001).")


def test_without_other_seeds_nothing_is_claimed(result):
    assert "is not known" in standing(result | {"noise": None})


def test_a_winner_that_alone_came_to_its_end_is_said_to(result):
    result["trials"][0]["loss"] = None
    assert standing(result).startswith("No other trial was trained to its end")


def test_the_cost_is_counted_in_trials_trained_to_their_end(result):
    spent = result["cost"]  # 8 + 1 + 8 + 1 s for the trials, 16 s for the two seeds
    assert spent["seconds"] == 18.0
    assert spent["full_trials"] == 18 / 8
    assert spent["full_trials_without_cache"] == 18 / 10
    assert spent["check_seconds"] == 16.0


def test_the_table_is_markdown_with_the_best_first(result):
    lines = table(result)
    assert [cell.strip() for cell in lines[2].strip("|").split("|")] == [
        *("2", "0.002", "6.4000", "100%", "8.0", "complete, best")
    ]
    assert set(lines[1]) == set("|- ")
    assert len({len(line) for line in lines}) == 1, "reads as text too"
    assert "NaN: the loss is no longer finite" in lines[-1]


def test_the_notes_name_every_seed_and_the_cost(result):
    text = " ".join(notes(result))
    assert "6.4100 (seed 1), 6.3900 (seed 2); mean of all 3 6.4000" in text
    assert "as long as 2.25 trained to their end (8.0 s each)" in text


def test_the_rate_is_on_a_logarithmic_axis_and_pruned_trials_are_marked(result):
    figure = plot_settings(result)
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    points = {c.get_label(): c.get_offsets().tolist() for c in axes.collections if c.get_label()}
    assert points["complete"] == [[1e-3, 6.5], [2e-3, 6.4]]
    assert points["pruned, at its last look"] == [[1e-4, 6.8]]
    assert points["diverged"][0][0] == 1e-1
    plt.close(figure)


def test_the_reports_rate_is_shown_where_it_was_trained_apart(result):
    apart = {**result["trials"][0], "params": {"learning_rate": 3e-4}, "loss": 6.7}
    figure = plot_settings({**result, "report": [apart]})
    points = {c.get_label(): c.get_offsets().tolist() for c in figure.axes[0].collections}
    assert points["the report's rate"] == [[3e-4, 6.7]]
    plt.close(figure)


def test_the_history_keeps_the_best_so_far(result):
    figure = plot_history(result)
    (line,) = figure.axes[0].lines
    assert line.get_ydata().tolist() == [6.5, 6.5, 6.4, 6.4]
    plt.close(figure)


def test_a_wider_search_has_a_plot_for_each_setting(result):
    for number, trial in enumerate(result["trials"]):
        trial["params"]["training.weight_decay"] = 0.01 * number
    result["settings"]["space"] = {"training.weight_decay": {"log": False}}
    figure = plot_settings(result)
    assert [axes.get_xscale() for axes in figure.axes] == ["log", "linear"]
    plt.close(figure)


def test_everything_lies_in_the_folder(result, tmp_path, capsys):
    save_search(tmp_path, result)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"search.json", "search.md", "learning_rate.png", "history.png"}
    assert capsys.readouterr().out == (tmp_path / "search.md").read_text()


def test_the_report_of_the_run_shows_the_search(result, tmp_path):
    save_search(tmp_path / "search", result)
    template = Path(report.__file__).with_name(report.TEMPLATE)
    part = template.read_text(encoding="utf-8").partition("{% if search %}")[2]
    part = part.partition("<h2>Provenance")[0].rpartition("{% endif %}")[0]
    page = jinja2.Template(part, autoescape=True).render(search=report._search(tmp_path / "search"))
    cells = re.findall(r'class="best"><td>(\d)</td><td>([\d.]+)</td>', page)
    assert cells == [("2", "0.002")]
    assert "The winner stands out" in page
    assert page.count('src="data:image/png;base64,') == 2


def test_a_run_without_a_search_has_no_such_part(tmp_path):
    assert report._search(tmp_path / "search") is None
