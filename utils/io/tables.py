"""Tables as text: Markdown for pages and terminals, LaTeX for the report, CSV for programs.

A cell may be ``**bold**``, as in Markdown.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence

LATEX = {c: f"\\{c}" for c in "&%$#_{}"} | {"–": "--", "±": r"$\pm$"}
LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX_SPECIAL = str.maketrans(LATEX)
BOLD = re.compile(r"\*\*(.*)\*\*")

TableRow = Sequence[str]


def markdown_table(heading: TableRow, rows: Sequence[TableRow], *, aligned: bool = False) -> str:
    """A Markdown table without a trailing newline; aligned: with padded columns."""
    if not aligned:
        lines = [f"| {' | '.join(row)} |" for row in (heading, *rows)]
        return "\n".join([lines[0], "|" + "---|" * len(heading), *lines[1:]])
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    rule = ["-" * width for width in widths]
    padded = (map(str.ljust, row, widths) for row in (heading, rule, *rows))
    return "\n".join(f"| {' | '.join(row)} |" for row in padded)


def latex_table(heading: TableRow, rows: Sequence[TableRow], caption: str) -> str:
    """A LaTeX table environment without extra packages; all columns but the first are numbers."""
    lines = [" & ".join(map(_latex_cell, row)) + r" \\" for row in (heading, *rows)]
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption.translate(LATEX_SPECIAL)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(heading) - 1)}}}",
            r"\hline",
            lines[0],
            r"\hline",
            *lines[1:],
            r"\hline",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def _latex_cell(cell: str) -> str:
    bold = BOLD.fullmatch(cell)
    text = (bold[1] if bold else cell).translate(LATEX_SPECIAL)
    return rf"\textbf{{{text}}}" if bold else text


def csv_table(rows: Sequence[dict[str, object]]) -> str:
    """Rows with equal keys as CSV, with a header."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
