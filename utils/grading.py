"""Solutions of one task, repaired, scored with a certificate each, and ranked in one table."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from config.errors import UserError
from config.loading import Override, load_config
from config.schema import Config
from utils.data.datasets import InpaintingSet
from utils.inpainting.job import inpaint_set
from utils.inpainting.outputs import RESULTS
from utils.io.files import content_hash, write_text
from utils.io.images import is_image_name, list_images, load_rgb
from utils.io.tables import markdown_table
from utils.pictures import comparison_strip, embed, template
from utils.weights.description import described
from utils.weights.import_lab import import_lab

SCORE_PROGRAM = Path(__file__).resolve().parents[1] / "faster-pytorch-fid" / "fid_score_gpu.py"
WEIGHTS_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
CERTIFICATE, RECORD = "certificate.json", "grade.json"
PICTURES_SHOWN = 3  # pictures of each solution
COLUMNS = ("rank", "solution", "score", "what", "attention", "rule", "error")


@dataclass(frozen=True)
class Grade:
    """What became of one solution."""

    solution: str
    fingerprint: str  # of its files, the data and the settings; another one is graded again
    score: float | None = None
    what: str = ""  # name of the score
    attention: str = ""
    rule: str = ""  # how it was decoded; empty for a folder of results
    results: str = ""  # folder of the repaired images
    error: str = ""


def grade(
    folder: Path, dataset: InpaintingSet, output: Path, base: Config, overrides: Sequence[Override]
) -> list[Grade]:
    """Grade every solution in a folder, the best first; those that fail stand at the end.

    base: config of solutions that bring none; overrides hold for all. Raises `UserError` for a
    folder without solutions and data without ground truth.
    """
    if dataset.truth is None:
        raise UserError("the data has no ground truth; grading needs test_gt.csv or test/")
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of solutions")
    solutions = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if not solutions:
        raise UserError(f"{folder}: contains no solution")
    grades = []
    for solution in solutions:
        tqdm.write(f"{solution.name}:", file=sys.stderr)
        grades.append(_grade_or_reuse(solution, dataset, output / solution.name, base, overrides))
        if grades[-1].error:
            tqdm.write(f"  failed: {grades[-1].error}", file=sys.stderr)
    return sorted(grades, key=lambda found: (found.score is None, found.score, found.solution))


def save_tables(output: Path, grades: list[Grade], dataset: InpaintingSet) -> None:
    rows = [
        {"rank": rank if found.score is not None else "", **asdict(found)}
        for rank, found in enumerate(grades, 1)
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(output / "grades.csv", text.getvalue())
    shown = [[_cell(row[column]) for column in COLUMNS] for row in rows]
    write_text(output / "grades.md", markdown_table(COLUMNS, shown) + "\n")
    pictures = [_pictures(found, dataset) for found in grades]
    page = template("grades.html").render(
        title="Solutions, ranked", columns=COLUMNS, rows=list(zip(shown, pictures, strict=True))
    )
    write_text(output / "grades.html", page)


def _grade_or_reuse(
    solution: Path, dataset: InpaintingSet, place: Path, base: Config, overrides: Sequence[Override]
) -> Grade:
    """The recorded grade if nothing has changed, else a new one."""
    files = [path for path in sorted(solution.rglob("*")) if path.is_file()]
    settings = base.model_dump_json() + str(dataset.images) + str(overrides)
    fingerprint = f"{content_hash(files or [solution])} {settings}"
    try:
        recorded = Grade(**json.loads((place / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        recorded = None
    if recorded and recorded.fingerprint == fingerprint and not recorded.error:
        return recorded
    try:
        found = _grade(solution, dataset, place, base, overrides)
        result = Grade(solution.name, fingerprint, **found)
    except (UserError, RuntimeError, OSError) as error:  # one must not stop the others
        line = (str(error).splitlines() or [type(error).__name__])[0]
        result = Grade(solution.name, fingerprint, error=line)
    write_text(place / RECORD, json.dumps(asdict(result)) + "\n")
    return result


def _grade(
    solution: Path, dataset: InpaintingSet, place: Path, base: Config, overrides: Sequence[Override]
) -> dict[str, Any]:
    """Repair and score one solution."""
    files = [solution] if solution.is_file() else sorted(solution.rglob("*"))
    weights = [path for path in files if path.suffix.lower() in WEIGHTS_SUFFIXES]
    found: dict[str, Any] = {}
    if weights:
        results = place / RESULTS
        configs = [path for path in files if path.suffix in (".yml", ".yaml")]
        config = load_config(configs[0], overrides) if configs else base
        foreign = [path for path in weights if not described(path)]
        for path in weights:
            if kind := described(path):  # imported before
                section = getattr(config, kind).model_copy(update={"weights": path})
                config = config.model_copy(update={kind: section})
        config, lines = import_lab(foreign, place / "imported", config) if foreign else (config, [])
        if config.tokenizer.weights is None:
            raise UserError("brings no tokenizer; give one to all with --tokenizer")
        inpaint_set(config, dataset, place)
        variant = [line.split("attention variant ")[1] for line in lines if "attention var" in line]
        found["attention"] = variant[0].rpartition(", ")[0] if variant else ""
        found["rule"] = f"{config.decoding.rule} {config.decoding.mask_schedule}"
    else:
        images = [path for path in files if is_image_name(path.name)]
        if not images:
            raise UserError(f"{solution}: contains neither checkpoints nor images")
        results = solution / RESULTS if (solution / RESULTS).is_dir() else images[0].parent
        if len(list_images(results)) != len(dataset):
            raise UserError(f"{results}: {len(list_images(results))} images, not {len(dataset)}")
    return found | {"results": str(results)} | _score(results, dataset, place, base)


def _score(results: Path, dataset: InpaintingSet, place: Path, config: Config) -> dict[str, Any]:
    """Let the scorer write a certificate, and read the score from it."""
    assert dataset.truth is not None
    certificate = place / CERTIFICATE
    place.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, SCORE_PROGRAM, "--predicted-path", results, "--json", certificate]
    command += ["--gt-path", dataset.truth.location, "--features", config.scoring.features]
    command += ["--device", config.device, "--batch-size", config.scoring.batch_size]
    ended = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if ended.returncode:
        raise UserError((ended.stderr.strip().splitlines() or ["the scorer failed"])[-1])
    name, value = ended.stdout.splitlines()[0].rsplit(": ", 1)
    return {"score": float(value), "what": name}


def _pictures(found: Grade, dataset: InpaintingSet) -> list[str]:
    """A few repairs next to what they began with and the truth, as data URIs."""
    if found.error:
        return []
    results = list_images(Path(found.results))
    strips = []
    for index in sorted({int(i) for i in np.linspace(0, len(dataset) - 1, PICTURES_SHOWN)}):
        item = dataset[index]
        repaired = np.asarray(load_rgb(results[index]))
        strips.append(embed(comparison_strip(item.image, repaired, dataset.ground_truth(index))))
    return strips


def _cell(value: object) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else str("" if value is None else value)
    return text.replace("|", "\\|").replace("\n", " ")
