"""Tables of the report's studies and of grids, from docs/results/sweep/."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from docs.results_files import RESULTS
from utils.io.tables import TableRow, markdown_table
from utils.sweep.plan import STUDIES
from utils.sweep.stats import Summary, statements
from utils.sweep.tables import score_grid

TITLES = {name: title for name, (title, _) in STUDIES.items()} | {
    "grid-borders": "Hole fills and composites",
    "grid-orders": "Orders",
    "grid-settings": "Iterations and temperatures",
}


def study_folders() -> list[Path]:
    """Committed studies, the report's three first."""
    found = {path.parent.name: path.parent for path in (RESULTS / "sweep").glob("*/results.csv")}
    return [found[name] for name in dict.fromkeys([*STUDIES, *sorted(found)]) if name in found]


def groups_of(folder: Path) -> dict[str, list[Summary]]:
    """Row of a study's table -> its settings in the order of the columns."""
    scores: dict[str, dict[str, list[float]]] = {}
    for line in read_csv(folder / "results.csv"):
        row = scores.setdefault(line["row"] or "score", {})
        row.setdefault(line["column"], []).append(float(line["score"]))
    return {
        name: [Summary(column, tuple(values)) for column, values in columns.items()]
        for name, columns in scores.items()
    }


def conditions(folder: Path) -> str:
    """The score and its numbers of images and seeds."""
    lines = read_csv(folder / "results.csv")
    name, images = lines[0]["score_name"], lines[0]["images"]
    seeds = len({line["seed"] for line in lines})
    return f"{name} of {images} images, mean ± standard deviation over {seeds} decoding seeds"


def study_table(folder: Path, more: Sequence[TableRow] = ()) -> str:
    """One study in the report's form."""
    heading, *rows = score_grid(TITLES.get(folder.name, folder.name), groups_of(folder))
    return markdown_table(heading, [*rows, *more])


def studies_in_full() -> str:
    """Every study: table with the report's figures, significant differences, plots."""
    reported: dict[str, list[str]] = {}
    for line in read_csv(RESULTS / "report" / "fid.csv"):
        reported.setdefault(line["study"], ["*the report: FID, other weights*"]).append(line["fid"])
    blocks = []
    for folder in study_folders():
        more = [reported[folder.name]] if folder.name in reported else []
        groups = groups_of(folder).items()
        sentences = [f"- {s}" for name, group in groups for s in statements(group, name)]
        files = sorted(folder.glob("*.png"))
        plots = [f"![{file.stem}](results/sweep/{folder.name}/{file.name})" for file in files]
        blocks += [f"## {TITLES[folder.name]}", f"{conditions(folder)}.", study_table(folder, more)]
        blocks += ["\n".join(sentences), *plots]
    return "\n\n".join(blocks)


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
