"""Benchmarks: sides take turns, ratios are of rounds, what varies too much is not appended."""

from __future__ import annotations

import pytest

from bench import common
from bench.common import in_turns, ratios, report, spread, too_wide


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
    figures = {"repair": spread([1.0, 1.2, high])}
    report("some", figures, {}, too_wide({"nested": figures}))
    said = capsys.readouterr()
    assert said.out.splitlines()[-1].startswith('{"repair": {"median": 1.2')
    assert (tmp_path / "some.jsonl").exists() == appended
    assert ("nested repair" in said.err) == (not appended)
