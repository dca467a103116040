"""Tables of the report's studies and of grids, from docs/results/sweep/."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from docs.results_files import RESULTS, read_csv
from utils.io.tables import TableRow
from utils.io.tables import markdown_table as table
from utils.sweep.plan import STUDIES
from utils.sweep.stats import Summary, statements

GRIDS = {
    "grid-borders": "Hole fills and composites",
    "grid-orders": "Orders",
    "grid-settings": "Iterations and temperatures",
}


def study_folders() -> list[Path]:
    """Committed studies, the report's three first."""
    order = list(STUDIES)
    found = [path.parent for path in (RESULTS / "sweep").glob("*/results.csv")]
    return sorted(found, key=lambda path: ([*order, path.name].index(path.name), path.name))


def title_of(folder: Path) -> str:
    titles = GRIDS | {name: study["title"] for name, study in STUDIES.items()}
    return titles.get(folder.name, folder.name)


def groups_of(folder: Path) -> dict[str, list[Summary]]:
    """TableRow of a study's table -> its settings in the order of the columns."""
    scores: dict[str, dict[str, list[float]]] = {}
    for line in read_csv(folder / "results.csv"):
        row = scores.setdefault(line["row"] or "score", {})
        row.setdefault(line["column"], []).append(float(line["score"]))
    return {
        name: [Summary(column, tuple(values)) for column, values in columns.items()]
        for name, columns in scores.items()
    }


def conditions(folder: Path) -> str:
    """Which score, of how many images and seeds."""
    lines = read_csv(folder / "results.csv")
    name, images = lines[0]["score_name"], lines[0]["images"]
    seeds = len({line["seed"] for line in lines})
    return f"{name} of {images} images, mean ± standard deviation over {seeds} seeds of decoding"


def study_table(folder: Path, more: Sequence[TableRow] = ()) -> str:
    """One study in the report's form, the best of each row in bold."""
    groups = groups_of(folder)
    columns = list(dict.fromkeys(s.name for group in groups.values() for s in group))
    rows = []
    for name, group in groups.items():
        best = min(group, key=lambda s: s.mean)
        cells = {s.name: f"**{shown(s)}**" if s is best else shown(s) for s in group}
        rows.append([name, *(cells.get(column, "–") for column in columns)])
    return table([title_of(folder), *columns], [*rows, *more])


def shown(setting: Summary) -> str:
    spread = "" if setting.spread is None else f" ± {setting.spread:.2f}"
    return f"{setting.mean:.2f}{spread}"


def studies_in_full() -> str:
    """Each study with its differences, its plots, and what the report measured."""
    reported: dict[str, list[str]] = {}
    for line in read_csv(RESULTS / "report" / "fid.csv"):
        reported.setdefault(line["study"], ["*the report: FID, other weights*"]).append(line["fid"])
    blocks = []
    for folder in study_folders():
        more = [reported[folder.name]] if folder.name in reported else []
        sentences = [
            s for name, group in groups_of(folder).items() for s in statements(group, name)
        ]
        files = sorted(folder.glob("*.png"))
        plots = [f"![{file.stem}](results/sweep/{folder.name}/{file.name})" for file in files]
        blocks += [f"## {title_of(folder)}", f"{conditions(folder)}.", study_table(folder, more)]
        blocks += ["\n".join(f"- {sentence}" for sentence in sentences), *plots]
    return "\n\n".join(blocks)
