"""The one writer of Markdown and LaTeX tables."""

from __future__ import annotations

import pytest

from utils.io.tables import latex_table, markdown_table

HEADING, ROWS = ["rule", "FID"], [["listing", "9.50"], ["maskgit", "**8.25**"]]


def test_a_markdown_table_has_a_rule_below_its_heading():
    assert markdown_table(HEADING, ROWS).splitlines() == [
        "| rule | FID |",
        "|---|---|",
        "| listing | 9.50 |",
        "| maskgit | **8.25** |",
    ]


def test_an_aligned_table_pads_each_column_to_its_widest_cell():
    assert markdown_table(HEADING, ROWS, aligned=True).splitlines() == [
        "| rule    | FID      |",
        "| ------- | -------- |",
        "| listing | 9.50     |",
        "| maskgit | **8.25** |",
    ]


def test_a_latex_table_escapes_cells_and_sets_bold_ones_bold():
    text = latex_table(["a_b", "50 %"], [["1 ± 2", "**3 – 4**"]], "Scores & more")
    assert r"\caption{Scores \& more}" in text
    assert r"\begin{tabular}{lr}" in text
    assert r"a\_b & 50 \% \\" in text
    assert r"1 $\pm$ 2 & \textbf{3 -- 4} \\" in text


def test_a_row_of_another_length_is_refused_where_columns_are_aligned():
    with pytest.raises(ValueError, match="zip"):
        markdown_table(HEADING, [["alone"]], aligned=True)


def test_a_latex_table_of_any_file_name_is_still_latex():
    text = latex_table(["a"], [["b"]], r"x\y~z^w")
    assert r"\caption{x\textbackslash{}y\textasciitilde{}z\textasciicircum{}w}" in text
