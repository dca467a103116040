"""Which differences are significant."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import tukey_hsd

from utils.sweep.tables import Summary, pooled_spread, real_difference, statements


def summaries(*values: tuple[float, ...]) -> list[Summary]:
    return [Summary("abc"[place], v) for place, v in enumerate(values)]


def differs(first: Summary, second: Summary, group: list[Summary]) -> bool:
    return abs(first.mean - second.mean) > real_difference(group)


def test_a_difference_is_real_where_tukeys_test_of_scipy_says_so():
    rng = np.random.default_rng(0)
    verdicts = set()
    for _ in range(20):
        values = rng.normal(rng.uniform(0, 3, (3, 1)), 1, (3, 4))
        group = summaries(*map(tuple, values))
        expected = tukey_hsd(*values).pvalue[0, 1] < 0.05
        assert differs(group[0], group[1], group) == expected
        verdicts.add(bool(expected))
    assert verdicts == {True, False}


def test_equal_settings_have_a_difference_called_real_in_about_one_group_of_twenty():
    rng, found = np.random.default_rng(1), 0
    for values in rng.normal(30, 0.5, (400, 3, 3)):
        group = summaries(*map(tuple, values))
        pairs = ((0, 1), (0, 2), (1, 2))
        found += any(differs(group[a], group[b], group) for a, b in pairs)
    assert 8 <= found <= 34  # 20 expected, +- 3 standard deviations


def test_a_gap_within_the_seeds_spread_is_not_called_real():
    group = summaries((28.0, 29.0, 30.0), (28.4, 29.4, 30.4))
    assert not differs(*group, group)
    assert statements(group, "maskgit")[0].startswith(
        "maskgit: no significant difference (Tukey HSD at 95 %: "
    )


def test_a_gap_beyond_the_seeds_spread_is_called_real_and_only_that_one():
    group = summaries((28.0, 28.1, 28.2), (28.1, 28.2, 28.3), (35.0, 35.1, 35.2))
    assert not differs(group[0], group[1], group)
    (sentence,) = statements(group, "listing")
    assert sentence.startswith("listing: a is significantly better than c (by 7), but not than b; ")


def test_settings_that_draw_nothing_differ_by_any_gap_but_rounding():
    group = summaries((3.0, 3.0), (3.1, 3.1), (3.0 + 1e-12, 3.0 + 1e-12))
    assert differs(group[0], group[1], group)
    assert not differs(group[0], group[2], group)


def test_a_setting_that_draws_nothing_does_not_lower_the_spread_of_the_others():
    varying = summaries((28.0, 30.0), (29.0, 31.0))
    fixed = Summary("fixed", (28.5, 28.5))
    assert pooled_spread([*varying, fixed]) == pooled_spread(varying)
    assert pooled_spread(varying) == (pytest.approx(2**0.5), 2)


def test_one_seed_allows_no_statement():
    group = summaries((1.0,), (50.0,))
    assert not differs(*group, group)
    assert np.isnan(real_difference(group))
    assert statements(group, "x") == ["x: one seed each, so differences cannot be tested."]


def test_a_single_setting_is_compared_with_nothing():
    assert statements(summaries((1.0, 2.0)), "x") == []
