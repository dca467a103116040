"""Checkpoints of the web demo: released weights, run folders, imported lab files, configs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config.errors import UserError, one_of
from config.loading import Override, load_config
from config.reference import yaml_text
from config.schema import Config
from utils.inpainting.inpainter import Inpainter
from utils.inpainting.pretrained import or_pretrained
from utils.io.files import of_project
from utils.weights.description import WEIGHTS_FILES

RELEASED = Path("models/pretrained/cats64")
CONFIGS = ("config.yml", "transformer/config.yml")  # of imported lab files, of a run

Pair = tuple[str, Any]  # a dotted key and its value


@dataclass(frozen=True)
class Checkpoint:
    """A config file and the overrides that locate its weights."""

    name: str
    file: Path
    places: tuple[Pair, ...] = ()

    def config(self, overrides: Sequence[Override] = ()) -> Config:
        """The config with overrides; raises `UserError` for invalid values."""
        return or_pretrained(load_config(self.file, [*self.places, *overrides]))

    def arguments(self) -> list[str]:
        """The equivalent arguments of inpainting.py."""
        words = ["--config", str(self.file)]
        for key, value in self.places:
            words += ["--set", f"{key}={yaml_text(value)}"]
        return words


def find_checkpoint(place: Path) -> Checkpoint:
    """The checkpoint in a folder of weights, a run folder, imported lab files or a config file.

    Raises `UserError` for any other path.
    """
    if place == RELEASED:
        place = of_project(place)
    if place.is_file():
        return Checkpoint(place.stem, place)
    title = Path(os.path.abspath(place)).name  # resolves . and ..
    files = tuple((f"{kind}.weights", str(place / name)) for kind, name in WEIGHTS_FILES.items())
    for name in CONFIGS:  # whose own paths predate any move of the folder
        if (place / name).is_file():
            found = tuple(pair for pair in files if os.path.isfile(pair[1]))
            places = (("run", str(place)),) if "/" in name else found
            return Checkpoint(title, place / name, places)
    if (preset := of_project(f"config/{title}.yml")).is_file() and place.is_dir():
        return Checkpoint(title, preset, files)
    raise UserError(
        f"{place}: no checkpoint; allowed are a run folder, a folder of imported lab files, "
        f"{RELEASED}, or a config file"
    )


class Checkpoints:
    """Checkpoints by name, each loaded on first use."""

    def __init__(self, places: Sequence[Path]) -> None:
        found = [find_checkpoint(place) for place in places or [RELEASED]]
        self.checkpoints = {encodable(_unlike(found[:i], one)): one for i, one in enumerate(found)}
        self._loaded: dict[str, Inpainter] = {}
        for checkpoint in found:
            checkpoint.config()  # reports a bad config at startup

    @property
    def names(self) -> list[str]:
        return list(self.checkpoints)

    def checkpoint(self, name: str) -> Checkpoint:
        """The checkpoint of a name; raises `UserError` for an unknown one."""
        if name not in self.checkpoints:
            raise one_of("checkpoint", name, self.checkpoints)
        return self.checkpoints[name]

    def inpainter(self, name: str) -> Inpainter:
        """The loaded networks; raises `UserError` while weights are missing or do not fit."""
        if name not in self._loaded:
            self._loaded[name] = Inpainter(self.checkpoint(name).config())
        return self._loaded[name]

    def problem(self, name: str) -> str:
        """Why a checkpoint cannot be used, on one line; empty if it can."""
        try:
            self.inpainter(name)
        except UserError as error:
            return str(error)
        return ""


def encodable(text: str) -> str:
    """Text that a page can show: undecodable bytes of file names are escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _unlike(others: list[Checkpoint], one: Checkpoint) -> str:
    """The name of a checkpoint, numbered if another has the same."""
    same = sum(other.name == one.name for other in others)
    return f"{one.name} ({same + 1})" if same else one.name
