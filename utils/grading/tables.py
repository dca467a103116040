"""The ranking as a table, and as a page with images."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
from fid.names import partners
from fid.pixels import profile_of

from config.errors import printable
from utils.data.datasets import InpaintingSet
from utils.data.pairs import list_images
from utils.grading.grader import Grade
from utils.io.files import write_text
from utils.io.images import load_rgb, note_profile
from utils.io.pictures import comparison_strip
from utils.io.tables import csv_table, markdown_table
from utils.pages import embed, save_page

PICTURES_SHOWN = 3  # images per solution
COLUMNS = ("rank", "solution", "score", "what", "weights", "attention", "rule", "results", "error")
NOTES = "notes"  # a column of the page and the CSV table; too long for a terminal


def save_tables(output: Path, grades: list[Grade], dataset: InpaintingSet) -> None:
    """Write grades.csv, grades.md, and grades.html with images."""
    rows = []
    for rank, found in enumerate(grades, 1):
        values = asdict(found) | {"rank": None if found.score is None else rank}
        values |= {"results": printable(found.results), NOTES: printable("; ".join(found.notes))}
        rows.append({column: values[column] for column in (*COLUMNS, NOTES)})
    write_text(output / "grades.csv", csv_table(rows))
    shown = [{column: _cell(value) for column, value in row.items()} for row in rows]
    cells = [[row[column] for column in COLUMNS] for row in shown]
    write_text(output / "grades.md", markdown_table(COLUMNS, cells) + "\n")
    columns = [column for column in shown[0] if any(row[column] for row in shown)]
    lines = [
        ([row[column] for column in columns], _pictures(found, dataset))
        for row, found in zip(shown, grades, strict=True)
    ]
    title = "Solutions, ranked"
    save_page(output / "grades.html", "grades.html", title=title, columns=columns, rows=lines)


def _pictures(found: Grade, dataset: InpaintingSet) -> list[str]:
    """A few comparison strips (masked, inpainted, ground truth) as data URIs."""
    if found.error:
        return []
    results = list_images(Path(found.results))
    names = ([path.name for path in side] for side in (dataset.images, results))
    places = partners(*names) or range(len(results))
    strips = []
    for index in sorted({int(i) for i in np.linspace(0, len(dataset) - 1, PICTURES_SHOWN)}):
        item, place = dataset[index], results[places[index]]
        repaired = load_rgb(place)
        note_profile(profile_of(repaired), str(place))
        shown = comparison_strip(item.image, np.asarray(repaired), dataset.ground_truth(index))
        strips.append(embed(shown))
    return strips


def _cell(value: object) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else str("" if value is None else value)
    return text.replace("|", "\\|").replace("\n", " ")
