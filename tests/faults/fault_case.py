"""What a case of the catalogue is, and small makers of bad files.

A case changes a good workspace, runs one command in it and states what must happen. All paths of
cases are relative to the workspace (conftest.py says what lies in it).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

REFUSED, REPAIRED = 2, 0  # exit codes of the two things that may happen
CANARY = "canary"  # file that hostile input would make, if any of it were run

Maker = Callable[[Path], object]

INPAINT = "inpainting.py --config tiny.yml --data job --output out"
TOKENIZER = "training_vqgan.py --config tiny.yml"
TRANSFORMER = "training_transformer.py --config tiny.yml"
PREPARE = "prepare_data.py images pictures --out prepared --image-size 16 --split 6 3 2"
ZIPPED = PREPARE.replace("pictures", "bad.zip")
SCORE = (
    "faster-pytorch-fid/fid_score_gpu.py --device cpu --dims 64 --weights stem.pth --no-cache "
    "--num-workers 0 --predicted-path results"
)
SWEEP = "sweep.py schedules --config tiny.yml --data job --output out --seeds 1"
PAGE = "app.py"
SEARCH = f"{TRANSFORMER} --lr-search"
IMPORT = "-m utils.weights.import_lab bad.pt --config tiny.yml --out ours"
EXPORT = "-m utils.weights.export_lab --config tiny.yml --out theirs"
RELEASE = "-m utils.training.release {} --config tiny.yml --out released"
REPORT = "-m utils.report --config tiny.yml --set data.root=job"


@dataclass(frozen=True)
class Case:
    """One bad input."""

    name: str
    """Says what is wrong; unique."""
    command: str
    """What the user types, without python."""
    says: str
    """Part of the line of a refusal, or of the warning beside a correct result; may be empty."""
    make: Maker = lambda folder: None
    """Changes the workspace."""
    code: int = REFUSED
    results: int = 0
    """Pictures that must stand in out/test_results afterwards."""
    replaced: str = ""
    """A bad file in the place of one of ours, which a correct result may replace."""
    limits: str = ""
    """Value of INPUT_LIMITS."""
    environment: dict[str, str] = field(default_factory=dict)
    """More variables of the environment."""
    flags: str = ""
    """Flags of a Python of its own; without any, the command runs in this process."""
    sibling: bool = False
    """Ends where another case of its script ends, so that `make test` leaves it out."""


def put(name: str, content: bytes | str) -> Maker:
    """Write one file, in place of the good one if there is one."""

    def make(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def moved(name: str, new: str) -> Maker:
    """Give a file another name."""
    return lambda folder: (folder / name).rename(folder / new)


def copied(name: str, place: str) -> Maker:
    """Put one good file in the place of another."""
    return lambda folder: (folder / place).write_bytes((folder / name).read_bytes())


def removed(name: str) -> Maker:
    """Take a file away."""
    return lambda folder: (folder / name).unlink()


def cut(name: str, share: float) -> Maker:
    """Keep only the first part of a file."""

    def make(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return make


def manifest_with(**values: object) -> Maker:
    """State more in the manifest of the results."""

    def make(folder: Path) -> None:
        path = folder / "results/manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return make


def linked(name: str, target: str) -> Maker:
    """Replace a file by a symbolic link."""

    def make(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(target)

    return make


def sparse(name: str, size: int, start: bytes = b"") -> Maker:
    """A file of that many bytes, zeros but for its start, which takes no room on the disk."""

    def make(folder: Path) -> None:
        with open(folder / name, "wb") as file:
            file.write(start)
            file.truncate(size)

    return make


def both(*makers: Maker) -> Maker:
    """Several changes, in their order."""
    return lambda folder: [make(folder) for make in makers]
