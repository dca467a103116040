"""Grade solutions of one task: repair, score with a certificate each, and rank in one table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from fid.names import is_hidden, is_picture, partners
from fid.pixels import profile_of
from tqdm import tqdm

from config.errors import UserError, printable
from config.loading import Override, load_config
from config.schema import Config
from utils.data.datasets import InpaintingSet
from utils.data.pairs import check_same_size, list_images
from utils.inpainting.job import inpaint_set
from utils.inpainting.outputs import RESULTS
from utils.io.files import content_hash, make_folder, write_text
from utils.io.images import load_rgb, tell_of_profile
from utils.io.messages import line_about, message_of, raise_if_machine
from utils.io.pictures import comparison_strip
from utils.io.tables import csv_table, markdown_table
from utils.pages import embed, save_page
from utils.weights.description import described
from utils.weights.import_lab import import_lab
from utils.weights.lab_file import WEIGHTS_SUFFIXES, pick_files
from utils.weights.lab_naming import Settled

SCORE_PROGRAM = Path(__file__).resolve().parents[1] / "faster-pytorch-fid" / "fid_score_gpu.py"
CERTIFICATE, RECORD = "certificate.json", "grade.json"
PICTURES_SHOWN = 3  # images per solution
COLUMNS = ("rank", "solution", "score", "what", "weights", "attention", "rule", "error")


@dataclass(frozen=True)
class Grade:
    """The result of grading one solution."""

    solution: str
    fingerprint: str  # of its files, the data and the settings; a change means grading again
    score: float | None = None
    what: str = ""  # name of the score
    weights: str = ""  # names of the files that were imported
    attention: str = ""
    rule: str = ""  # how it was decoded; empty for a folder of results
    results: str = ""  # folder of the repaired images
    error: str = ""


@dataclass(frozen=True)
class Grader:
    """Repair a set's images with each solution, and score the results.

    base: config of solutions without their own; overrides apply to all.
    """

    dataset: InpaintingSet
    output: Path
    base: Config
    overrides: Sequence[Override]

    def grade_all(self, folder: Path) -> list[Grade]:
        """Grade every solution in a folder, best first, failed ones last.

        Raises `UserError` for a folder without solutions or data without ground truth.
        """
        if self.dataset.truth is None:
            raise UserError("the data has no ground truth; grading needs test_gt.csv or test/")
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder of solutions")
        own = os.path.realpath(self.output)  # the output folder may be among the solutions
        found = (path for path in folder.iterdir() if not is_hidden(path.name))
        solutions = sorted(path for path in found if os.path.realpath(path) != own)
        if not solutions:
            raise UserError(f"{folder}: contains no solution")
        grades = []
        for solution in solutions:
            tqdm.write(printable(f"{solution.name}:"), file=sys.stderr)
            grades.append(self.grade(solution))
            if grades[-1].error:
                tqdm.write(f"  failed: {grades[-1].error}", file=sys.stderr)
        return sorted(grades, key=lambda found: (found.score is None, found.score, found.solution))

    def grade(self, solution: Path) -> Grade:
        """The recorded grade if nothing has changed, otherwise a new one."""
        settings = self.base.model_dump_json() + str(self.dataset.images) + str(self.overrides)
        place, fingerprint = self.output / solution.name, ""
        try:
            recorded = Grade(**json.loads((place / RECORD).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            if not isinstance(error, FileNotFoundError):
                raise_if_machine(error, place / RECORD)
            recorded = None
        try:
            files = _files(solution)
            fingerprint = f"{content_hash(files)} {settings}"
            if recorded and recorded.fingerprint == fingerprint and not recorded.error:
                return recorded
            found = self._repaired(solution, files, place)
            found |= self._scored(Path(found["results"]), place)
        except (UserError, RuntimeError, OSError, MemoryError) as error:  # grade the others anyway
            found = {"error": line_about(error) or message_of(error)}
        grade = Grade(solution.name, fingerprint, **found)
        write_text(place / RECORD, json.dumps(asdict(grade)) + "\n")
        return grade

    def _repaired(self, solution: Path, files: list[Path], place: Path) -> dict[str, str]:
        """Repair with a solution's networks, or find its images; returns fields of `Grade`."""
        weights = [path for path in files if path.suffix.lower() in WEIGHTS_SUFFIXES]
        if weights:
            return self._repaired_by(weights, files, place) | {"results": str(place / RESULTS)}
        images = [path for path in files if is_picture(path.name)]
        if not images:
            raise UserError(f"{solution}: contains neither checkpoints nor images")
        results = solution / RESULTS if (solution / RESULTS).is_dir() else images[0].parent
        images, dataset = list_images(results), self.dataset
        if len(images) != len(dataset):
            raise UserError(f"{results}: {len(images)} images, not {len(dataset)}")
        first = np.asarray(load_rgb(images[0]))  # the scorer checks that the others have its size
        check_same_size(dataset.images[0], dataset[0].image, images[0], first)
        return {"results": str(results)}

    def _repaired_by(self, weights: list[Path], files: list[Path], place: Path) -> dict[str, str]:
        """Repair with a solution's networks; returns their files, attention and decode rule."""
        configs = [path for path in files if path.suffix in (".yml", ".yaml")]
        config = load_config(configs[0], self.overrides) if configs else self.base
        foreign, lines = [], []
        for path in weights:
            if kind := described(path):  # imported before
                section = getattr(config, kind).model_copy(update={"weights": path})
                config = config.model_copy(update={kind: section})
            else:
                foreign.append(path)
        if len(foreign) > 1:
            foreign = pick_files(foreign, Settled(heads=config.transformer.num_heads))
        if foreign:
            config, lines = import_lab(foreign, place / "imported", config)
        if config.tokenizer.weights is None:
            raise UserError("brings no tokenizer; give one to all with --tokenizer")
        inpaint_set(config, self.dataset, place)
        variant = [line.split("attention variant ")[1] for line in lines if "attention var" in line]
        return {
            "weights": ", ".join(path.name for path in foreign),
            "attention": variant[0].rpartition(", ")[0] if variant else "",
            "rule": f"{config.decoding.rule} {config.decoding.mask_schedule}",
        }

    def _scored(self, results: Path, place: Path) -> dict[str, Any]:
        """Run the scorer, which writes a certificate; returns the score and its name."""
        config, certificate = self.base, place / CERTIFICATE
        make_folder(place)
        given = {
            "predicted-path": results,
            "json": certificate,
            "gt-path": self.dataset.truth.location,
            "features": config.scoring.features,
            "device": config.device,
            "batch-size": config.scoring.batch_size,
        }
        words = [f"--{flag}={value}" for flag, value in given.items()]  # a name may start with -
        command = [sys.executable, str(SCORE_PROGRAM), *words]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise UserError((ended.stderr.strip().splitlines() or ["the scorer failed"])[-1])
        name, value = ended.stdout.splitlines()[0].rsplit(": ", 1)
        return {"score": float(value), "what": name}


def _files(solution: Path) -> list[Path]:
    """The solution's file, or the files of its folder and of linked ones, except hidden ones."""
    if solution.is_file():
        return [solution]
    found, seen = [], set()
    for place, folders, names in os.walk(solution, followlinks=True):
        if (real := os.path.realpath(place)) in seen:  # a link to a folder above, or to another
            folders.clear()
            continue
        seen.add(real)
        found += [path for name in names if (path := Path(place, name)).is_file()]
    return sorted(p for p in found if not is_hidden(p.relative_to(solution).as_posix()))


def save_tables(output: Path, grades: list[Grade], dataset: InpaintingSet) -> None:
    """Write grades.csv, grades.md, and grades.html with images."""
    rows = []
    for rank, found in enumerate(grades, 1):
        values = asdict(found) | {"rank": None if found.score is None else rank}
        rows.append({column: values[column] for column in COLUMNS})
    write_text(output / "grades.csv", csv_table(rows))
    shown = [{column: _cell(value) for column, value in row.items()} for row in rows]
    cells = [list(row.values()) for row in shown]
    write_text(output / "grades.md", markdown_table(COLUMNS, cells) + "\n")
    columns = [column for column in COLUMNS if any(row[column] for row in shown)]
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
        tell_of_profile(profile_of(repaired), str(place))
        shown = comparison_strip(item.image, np.asarray(repaired), dataset.ground_truth(index))
        strips.append(embed(shown))
    return strips


def _cell(value: object) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else str("" if value is None else value)
    return text.replace("|", "\\|").replace("\n", " ")
