"""What a search leaves behind: table, plots, and whether the winner stands out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jinja2
import optuna
import pytest

from utils import report
from utils.pages import TEMPLATES
from utils.search.report import cells, noise, save_plots, save_search, search_notes, standing


def row(trial, rate, loss, **more):
    """A row of the result: complete with a loss, else pruned at its first look."""
    values = {
        "trial": trial,
        "params": {"learning_rate": rate},
        "state": "pruned" if loss is None else "complete",
        "loss": loss,
        "looks": {},
        "share": 1.0 if loss is not None else 0.125,
        "seconds": 8.0 if loss is not None else 1.0,
        "seed": 0,
        "reason": "",
    }
    return values | more


def judged(result) -> str:
    return standing(result["trials"], result["best"], result["noise"])


@pytest.fixture
def result():
    trials = [
        row(0, 1e-3, 6.5),
        row(1, 1e-4, None, reason="loss 6.8000 behind the median"),
        row(2, 2e-3, 6.4),
        row(3, 1e-1, None, reason="NaN: the loss is no longer finite"),
    ]
    repeats = [row(0, 2e-3, 6.41, seed=1), row(1, 2e-3, 6.39, seed=2)]
    spread = noise(6.4, repeats)
    values = {"trials": trials, "best": trials[2], "repeats": repeats, "noise": spread}
    return values | {"standing": standing(trials, trials[2], spread)}


pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.fixture
def study() -> optuna.Study:
    """Two complete trials, a pruned one, one that diverged at once and one that was cut short."""
    study = optuna.create_study()
    rates = {"learning_rate": optuna.distributions.FloatDistribution(1e-5, 1e-1, log=True)}
    ends = {1e-3: ("COMPLETE", 6.5), 1e-4: ("PRUNED", 6.8), 2e-3: ("COMPLETE", 6.4)}
    for rate, (state, value) in (ends | {1e-1: ("PRUNED", None), 5e-2: ("FAIL", None)}).items():
        study.add_trial(
            optuna.trial.create_trial(
                state=optuna.trial.TrialState[state],
                value=value,
                params={"learning_rate": rate},
                distributions=rates,
            )
        )
    return study


def test_the_deviation_over_seeds_is_that_of_the_sample(result):
    # 6.39, 6.40, 6.41: squares of 0.01, 0, 0.01 over n - 1 = 2
    assert result["noise"]["deviation"] == pytest.approx(0.01)
    assert result["noise"]["mean"] == pytest.approx(6.4)


def test_a_seed_that_diverged_is_left_out_of_the_deviation():
    assert noise(6.4, [row(0, 1, None), row(1, 1, 6.42)])["seeds"] == 2
    assert noise(6.4, [row(0, 1, None)]) is None


def test_a_winner_ahead_by_more_than_two_deviations_stands_out(result):
    assert "The winner stands out: the runner-up, trial 0, is 0.1000 nats" in judged(result)


def test_a_winner_within_two_deviations_does_not_and_its_equals_are_named(result):
    result["trials"][0]["loss"] = 6.419
    said = judged(result)
    assert said.startswith("The winner does not stand out")
    assert said.endswith("lie trial 0 (learning_rate 0.001).")


def test_without_other_seeds_nothing_is_claimed(result):
    assert "is not known" in judged(result | {"noise": None})


def test_a_winner_that_alone_came_to_its_end_is_said_to(result):
    result["trials"][0]["loss"] = None
    assert judged(result).startswith("No other trial reached its end")


def test_the_table_has_the_best_first_and_the_pruned_last(result):
    _, *rows = cells(result)
    assert rows[0] == ["2", "0.002", "6.4000", "100%", "8.0", "complete, best"]
    assert "NaN: the loss is no longer finite" in rows[-1]


def test_the_notes_name_every_seed_and_the_time(result):
    text = " ".join(search_notes(result))
    assert "6.4100 (seed 1), 6.3900 (seed 2); mean of all 3 6.4000" in text
    assert text.endswith("4 trials took 18 s, the repeats after them 16 s.")


def drawn(folder: Path, study: optuna.Study, monkeypatch) -> list:
    """The figures of both plots, before they are saved."""
    from matplotlib import pyplot

    figures: list[pyplot.Figure] = []

    def keep(figure: pyplot.Figure, path: Path, **_: object) -> None:
        figures.append(figure)
        path.write_text("")

    monkeypatch.setattr(pyplot.Figure, "savefig", keep)
    pyplot.close("all")
    save_plots(folder, study)
    assert pyplot.get_fignums() == []
    return figures


def test_the_plots_show_complete_trials_and_crosses_for_pruned_ones(study, tmp_path, monkeypatch):
    slices, history = drawn(tmp_path, study, monkeypatch)
    axes = slices.axes[0]
    assert axes.get_xscale() == "log"
    points = [c.get_offsets().tolist() for c in axes.collections if len(c.get_offsets())]
    assert points == [[[1e-3, 6.5], [2e-3, 6.4]], [[1e-4, 6.8]]]
    low, high = axes.get_xlim()
    assert low < 1e-4 < 2e-3 < high
    (line,) = history.axes[0].lines
    assert line.get_ydata()[-1] == 6.4, "the best so far"


def test_a_wider_search_has_a_plot_for_each_setting(study, tmp_path, monkeypatch):
    wider = optuna.create_study()
    for trial in study.trials:
        trial.params["training.weight_decay"] = 0.01 * trial.number
        decay = optuna.distributions.FloatDistribution(0.0, 0.1)
        trial.distributions["training.weight_decay"] = decay
        wider.add_trial(trial)
    slices, _ = drawn(tmp_path, wider, monkeypatch)
    assert [axes.get_xscale() for axes in slices.axes[:2]] == ["log", "linear"]


def test_the_committed_study_can_be_read():
    folder = Path(__file__).parents[3] / "docs" / "results" / "search"
    result = json.loads((folder / "search.json").read_text())
    written = (folder / "search.md").read_text()
    for row in cells(result)[1:]:
        assert f"| {row[0]:<5} | {row[1]:<13} |" in written
    assert all(note in written for note in search_notes(result)[:2])


def test_everything_lies_in_the_folder(result, study, tmp_path, capsys):
    save_search(tmp_path, result, study)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"search.json", "search.md", "learning_rate.png", "history.png"}
    assert capsys.readouterr().out == (tmp_path / "search.md").read_text()


def test_the_report_of_the_run_shows_the_search(result, study, tmp_path):
    save_search(tmp_path / "search", result, study)
    template = TEMPLATES / report.REPORT_TEMPLATE
    part = template.read_text(encoding="utf-8").partition("{% if search %}")[2]
    part = part.partition("<h2>Provenance")[0].rpartition("{% endif %}")[0]
    page = jinja2.Template(part, autoescape=True).render(search=report._search(tmp_path / "search"))
    cells = re.findall(r'class="best"><td>(\d)</td><td>([\d.]+)</td>', page)
    assert cells == [("2", "0.002")]
    assert "The winner stands out" in page
    assert page.count('src="data:image/png;base64,') == 2


def test_a_run_without_a_search_has_no_such_part(tmp_path):
    assert report._search(tmp_path / "search") is None
