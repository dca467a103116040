"""Grade solutions of one task: repair, score with a certificate each, and rank in one table."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from fid import certificate
from fid.inputs import Settings
from fid.names import is_hidden
from fid.process import Ranks
from fid.scoring import score
from fid_score_gpu import default_cache_dir
from tqdm import tqdm

from config.errors import StopRequested, UserError, printable
from config.loading import Override
from config.schema import Config
from utils.data.datasets import InpaintingSet
from utils.data.pairs import check_same_size, list_images
from utils.grading.solution import Solution, files_of
from utils.inpainting.job import inpaint_set
from utils.inpainting.outputs import RESULTS
from utils.io.files import content_hash, make_folder, write_text
from utils.io.images import load_rgb
from utils.io.messages import as_user_error, line_about, message_of, raise_if_machine
from utils.weights.description import TRANSFORMER
from utils.weights.import_lab import import_lab
from utils.weights.lab_naming import Settled

READERS = 4  # threads that read images for a GPU
DIGITS = 4  # of a score, as the scorer prints it
NO_SOLUTIONS = {".md", ".txt", ".db", ".ini"}  # as README.md, Thumbs.db and desktop.ini
CERTIFICATE, RECORD = "certificate.json", "grade.json"


@dataclass(frozen=True)
class Grade:
    """The result of grading one solution."""

    solution: str
    fingerprint: str  # of its files, the data and the settings; a change means grading again
    notes: list[str]  # what was assumed or left out; a record without them is of an earlier version
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
        found = (path for path in found if path.is_dir() or path.suffix.lower() not in NO_SOLUTIONS)
        solutions = sorted(path for path in found if os.path.realpath(path) != own)
        if not solutions:
            raise UserError(f"{folder}: contains no solution")
        grades = []
        for solution in solutions:
            tqdm.write(printable(f"{solution.name}:"), file=sys.stderr)
            grades.append(self.grade(solution))
            for text in grades[-1].notes:
                tqdm.write(printable(f"  note: {text}"), file=sys.stderr)
            if grades[-1].error:
                tqdm.write(f"  failed: {grades[-1].error}", file=sys.stderr)
        return sorted(grades, key=lambda found: (found.score is None, found.score, found.solution))

    def grade(self, path: Path) -> Grade:
        """The recorded grade if nothing has changed, otherwise a new one."""
        place, fingerprint, notes = self.output / path.name, "", []
        recorded = _recorded(place / RECORD)
        try:
            solution = Solution.of(path)
            names = [solution.name_of(file) for file in solution.files]  # they tell which is best
            fingerprint = f"{content_hash(solution.files)} {names} {self._task}"
            if recorded and recorded.fingerprint == fingerprint and not recorded.error:
                return recorded
            found = self._repaired(solution, place, notes)
            found |= self._scored(Path(found["results"]), place)
        except StopRequested:
            raise
        except Exception as error:  # grade the others anyway
            found = {"error": _reason(error)}
        grade = Grade(path.name, fingerprint, notes, **found)
        write_text(place / RECORD, json.dumps(asdict(grade)) + "\n")
        return grade

    @cached_property
    def _task(self) -> str:
        """What all grades depend on: settings, and the contents of the data and the tokenizer."""
        dataset, weights = self.dataset, self.base.tokenizer.weights
        files = [*dataset.images, *dataset.masks, *files_of(dataset.truth.location)]
        files += [weights] if weights and weights.is_file() else []
        return f"{self.base.model_dump_json()} {self.overrides} {content_hash(files)}"

    def _repaired(self, solution: Solution, place: Path, notes: list[str]) -> dict[str, str]:
        """Repair with a solution's networks, or find its images; returns fields of `Grade`.

        Adds notes on the choice of files and on the import.
        """
        if solution.weights:
            config = solution.config(self.base, self.overrides, notes)
            found = solution.networks(Settled(heads=config.transformer.num_heads), notes)
            if any(TRANSFORMER in some for some in found):
                fields = self._repaired_by(config, *found, place, notes)
                names = [solution.name_of(path) for some in found for path in some.values()]
                return fields | {"weights": ", ".join(dict.fromkeys(names))}
        dataset = self.dataset
        results = solution.results(len(dataset))
        images = list_images(results)
        if len(images) != len(dataset):
            raise UserError(f"{results}: {len(images)} images, not {len(dataset)}")
        first = np.asarray(load_rgb(images[0]))  # the scorer checks that the others have its size
        check_same_size(dataset.images[0], dataset[0].image, images[0], first)
        return {"results": str(results)}

    def _repaired_by(
        self,
        config: Config,
        ours: dict[str, Path],
        foreign: dict[str, Path],
        place: Path,
        notes: list[str],
    ) -> dict[str, str]:
        """Repair with networks in our form and others; returns fields of `Grade`."""
        attention = ""
        for kind, path in ours.items():  # imported before
            section = getattr(config, kind).model_copy(update={"weights": path})
            config = config.model_copy(update={kind: section})
        if foreign:
            files = sorted(set(foreign.values()))
            found = import_lab(files, place / "imported", config, choice=ours | foreign)
            config, attention = found.config, found.attention
            notes += found.notes
        if config.tokenizer.weights is None:
            raise UserError("brings no tokenizer; give one to all with --tokenizer")
        inpaint_set(config, self.dataset, place)
        return {
            "attention": attention,
            "rule": f"{config.decoding.rule} {config.decoding.mask_schedule}",
            "results": str(place / RESULTS),
        }

    def _scored(self, results: Path, place: Path) -> dict[str, Any]:
        """Score the images and write a certificate; returns the score and its name."""
        scoring = self.base.scoring
        settings = Settings(
            predicted_path=str(results),
            gt_path=str(self.dataset.truth.location),
            features=scoring.features,
            device=self.base.device,
            batch_size=scoring.batch_size,
            workers=READERS,
            cache_dir=default_cache_dir(),
        )
        make_folder(place)
        with as_user_error():
            outcome = score(settings, Ranks())
            certificate.write(place / CERTIFICATE, certificate.build(settings, outcome, place))
        backend = outcome.backend
        found = round(outcome.scores[backend.key("fid")], DIGITS)
        return {"score": found, "what": backend.distance}


def _reason(error: Exception) -> str:
    """One line about why a solution failed; names the type of an error that is not foreseen."""
    if isinstance(error, UserError):
        return str(error)
    return line_about(error) or printable(f"{type(error).__name__}: {message_of(error)}")


def _recorded(path: Path) -> Grade | None:
    """The grade in a file, if it is readable and its images still exist."""
    try:
        grade = Grade(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        if not isinstance(error, FileNotFoundError):
            raise_if_machine(error, path)
        return None
    return grade if Path(grade.results).is_dir() else None
