"""Benchmarks: turns, ratios of rounds, tasks in processes, and what is appended."""

from __future__ import annotations

import importlib
import json

import pytest

from bench import common
from bench.common import in_process, in_turns, ratios, report, spread


def test_sides_take_turns_and_every_other_round_begins_with_the_last():
    asked: list[str] = []
    found = in_turns({side: lambda side=side: asked.append(side) or len(asked) for side in "ab"}, 3)
    assert asked == list("abbaab")
    assert found == {"a": [1, 4, 5], "b": [2, 3, 6]}


def test_a_ratio_is_the_median_of_the_rounds_with_its_range():
    assert ratios([2.0, 9.0, 8.0], [1.0, 3.0, 1.0]) == {"median": 3.0, "low": 2.0, "high": 8.0}


@pytest.mark.parametrize(("high", "appended"), [(1.4, True), (1.6, False)])
def test_rounds_that_differ_too_much_are_printed_but_not_appended(
    tmp_path, monkeypatch, capsys, high, appended
):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    report("some", {"nested": {"repair": spread([1.0, 1.2, high]), "images": 2}})
    said = capsys.readouterr()
    assert said.out.splitlines()[-1].startswith('{"nested": {"repair": {"median": 1.2')
    assert (tmp_path / "some.jsonl").exists() == appended
    assert ("nested repair" in said.err) == (not appended)


def test_only_what_is_said_to_vary_is_left_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    repair, score = {"old": spread([1, 9])}, {"old": spread([1, 1])}
    report("some", {"repair": repair, "score": score}, varied=["score"])
    assert json.loads((tmp_path / "some.jsonl").read_text())["result"] == {"repair": repair}
    said = capsys.readouterr()
    assert json.loads(said.out) == {"repair": repair, "score": score}
    assert "1.5 times in score" in said.err
    report("other", {"repair": repair}, varied=["repair"])
    assert not (tmp_path / "other.jsonl").exists()


def test_a_quick_run_appends_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    report("some", {"speedup": 2.0}, quick=True)
    assert capsys.readouterr().out == '{"speedup": 2.0}\n'
    assert not list(tmp_path.iterdir())


def test_a_task_runs_in_a_process_of_its_own_which_says_its_peak_memory(tmp_path, monkeypatch):
    (tmp_path / "some_task.py").write_text(
        "def taken(mib): return {'size': len(bytearray(mib << 20)) >> 20}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    taken = importlib.import_module("some_task").taken
    small, large = (in_process(taken, mib=mib) for mib in (1, 300))
    assert (small["size"], large["size"]) == (1, 300)
    assert 250 < large["peak_mib"] - small["peak_mib"] < 350
