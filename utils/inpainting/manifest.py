"""The manifest next to the results: inputs, settings, timing, and where the ground truth is.

Before the first repair, a hidden file states which picture each result is of, since a run that is
cut short leaves no manifest; later runs add theirs.

With several processes, each writes its timing to a hidden file next to the manifest, since they
do not communicate otherwise; the one that finds all of these files is the last.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from fid.files import composed, naming, relative

from config.errors import UserError
from config.schema import Config
from utils.data.datasets import InpaintingSet
from utils.device import Compute, environment, is_main, rank, world_size
from utils.inpainting.outputs import (
    FOLDERS,
    MANIFEST,
    RESULTS,
    Outputs,
    is_unstamped,
    read_stamp,
    settings_digest,
)
from utils.io.files import write_text
from utils.io.messages import note

SOURCES = ".sources.json"  # file name of every result: that of the picture it repairs
TIMES = ("seconds", "images_per_second", "processes")  # keys that describe the images' own run


class Manifest:
    """The manifest of a job: compares it with an earlier run, and records what it did."""

    def __init__(
        self, config: Config, dataset: InpaintingSet, outputs: Outputs, settings: dict[str, Any]
    ) -> None:
        """settings: `settings_of` in outputs.py; a rerun compares them."""
        self.config, self.dataset, self.outputs, self.settings = config, dataset, outputs, settings
        self.digest = settings_digest(settings)
        self.path = outputs.folder / RESULTS / MANIFEST
        self.before: dict[str, Any] = {}  # an earlier run's, with at least its settings
        self.results = {  # file name of every result -> that of the picture it repairs
            outputs.result_name(index, sample): composed(path.name)
            for index, path in enumerate(dataset.images)
            for sample in range(config.decoding.samples)
        }

    def begin(self, restart: bool) -> None:
        """Make the folders, and remove an earlier manifest, which would no longer be true.

        Raises `UserError` where without ``restart`` the repair of a picture that is not in the job
        or another program's picture would be replaced.
        """
        self.outputs.make_folders()
        before = _read(self.path)
        self.before = before if isinstance(before.get("settings"), dict) else {}
        made = self._made()
        if not restart:
            self._refuse_to_replace(made)
            if is_main():
                self._say_what_changed()
        write_text(self.path.with_name(SOURCES), json.dumps(made | self.results, indent=1) + "\n")
        self.path.unlink(missing_ok=True)
        self._part_path(rank()).unlink(missing_ok=True)

    def finish(self, repaired: int, skipped: int, seconds: float) -> dict[str, float]:
        """Return this process's timing; the last process writes the manifest with that of all.

        Raises `UserError` if the only process does not find its results.
        """
        is_same = self.before.get("settings") == self.settings and self.before.keys() >= set(TIMES)
        part = {
            "digest": self.digest,
            "seconds": seconds,
            "repaired": repaired,
            "skipped": skipped,
            "before": {key: self.before[key] for key in TIMES} if is_same else None,
        }
        parts, world = [part], world_size()
        if world > 1:
            write_text(self._part_path(rank()), json.dumps(part) + "\n")
            parts = [_read(self._part_path(other)) for other in range(world)]
        if all(p.get("digest") == self.digest for p in parts) and self._is_whole():
            self._write(_timing(parts, world))
        elif world == 1:  # on a disk without locks
            text = "another process replaced or removed results meanwhile; repeat the command"
            raise UserError(f"{self.path.parent}: {text}")
        return _timing([part], world)

    def _write(self, timing: dict[str, float]) -> None:
        """Write everything needed to trace a result, and to find its ground truth.

        Paths are relative to the manifest.
        """
        dataset, truth, folder = self.dataset, self.dataset.truth, self.path.parent
        samples = self.config.decoding.samples
        content = {
            "ground_truth": relative(truth.location, folder) if truth else None,
            "ground_truth_bytes": truth.bytes_on_disk() if truth else None,
            "masks": None if dataset.from_alpha else relative(dataset.masks[0].parent, folder),
            "inverted_masks": dataset.invert_masks,
            "mask_threshold": dataset.mask_threshold,
            "images": [
                {
                    "image": self.outputs.result_name(index, sample),
                    "source": dataset.images[index].name,
                    "mask": dataset.masks[index].name,
                    **({"ground_truth": truth.name(index)} if truth else {}),
                    **({"sample": sample} if samples > 1 else {}),
                }
                for index in range(len(dataset))
                for sample in range(samples)
            ],
            "seed": self.config.seed,
            "tokenizer_sha256": self.settings["tokenizer_sha256"],
            "transformer_sha256": self.settings["transformer_sha256"],
            "settings": self.settings,
            "config": self.config.model_dump(mode="json"),
            "environment": environment(Compute.of(self.config).device),
            **timing,
        }
        write_text(self.path, json.dumps(content, indent=1) + "\n")
        sources = self.path.with_name(SOURCES)
        if _read(sources).keys() <= self.results.keys():  # the manifest says the same
            sources.unlink(missing_ok=True)

    def _part_path(self, number: int) -> Path:
        """The hidden file with the timing of one of several processes."""
        return self.path.with_name(f".process-{number}.json")

    def _is_whole(self) -> bool:
        """Whether the results of all processes exist and were made with these settings."""
        stamps = (read_stamp(self.path.with_name(name)) for name in self.results)
        return all((stamp or "").startswith(self.digest) for stamp in stamps)

    def refuse_inputs(self) -> None:
        """Raise `UserError` if an input lies in, or is a link into, a folder that is written to."""
        written = {os.path.realpath(self.outputs.folder / name) for name in FOLDERS}
        truths = self.dataset.truth.files if self.dataset.truth else ()
        files = [*self.dataset.images, *self.dataset.masks, *truths]
        for folder in dict.fromkeys(path.parent for path in files):
            if os.path.realpath(folder) in written:
                raise UserError(f"{folder}: its pictures would be replaced; name another --output")
        for path in files:
            if os.path.dirname(os.path.realpath(path)) in written:
                raise UserError(f"{path}: would be replaced where it leads; name another --output")

    def _made(self) -> dict[str, str]:
        """File name of every result of earlier runs -> that of the picture it repairs."""
        made = {name: str(source) for name, source in _read(self.path.with_name(SOURCES)).items()}
        with suppress(KeyError, TypeError):  # no earlier manifest, or another program's
            entries = [(str(e["image"]), str(e["source"])) for e in self.before["images"]]
            made |= {name: composed(source) for name, source in entries}
        return made

    def _refuse_to_replace(self, made: dict[str, str]) -> None:
        """Raise `UserError` where the repair of a picture that is not in the job would be lost,
        or a picture that this program did not make.
        """
        pictures = set(self.results.values())
        for name, picture in self.results.items():
            path, advice = self.path.with_name(name), "name another --output, or replace it with"
            if made.get(name, picture) not in pictures and path.exists():
                found = f"is the repair of {made[name]}, not of {picture}"
                raise UserError(f"{path}: {found}; {advice} --restart")
            if name not in made and is_unstamped(path):
                raise UserError(f"{path}: was not made by this program; {advice} --restart")

    def _say_what_changed(self) -> None:
        """Print why images of an earlier run are repaired again, if they are."""
        folder = self.path.parent
        if self.before:
            changes = changed_settings(self.before["settings"], self.settings)
        else:  # a run cut short left no manifest, but stamps
            stamps = (read_stamp(path) for path in folder.glob("image_*.png"))
            others = [stamp for stamp in stamps if stamp and not stamp.startswith(self.digest)]
            changes = [f"{len(others)} images of a run that did not end"] if others else []
        if changes:
            changed = "; ".join(changes)
            note(f"{folder} was made with other settings ({changed}): its images are made again")


def changed_settings(before: dict[str, Any], now: dict[str, Any], where: str = "") -> list[str]:
    """Each setting that changed, as ``key before, now value``; keys are dotted."""
    found = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += changed_settings(old, new, f"{where}{key}.")
        elif old != new:
            found.append(
                f"other {where}{key}" if "sha256" in key else f"{where}{key} {old}, now {new}"
            )
    return found


def _timing(parts: list[dict[str, Any]], world: int) -> dict[str, float]:
    """Overall timing of processes that ran in parallel, and their total images."""
    seconds = max(part["seconds"] for part in parts)
    repaired = sum(part["repaired"] for part in parts)
    timing = dict(zip(TIMES, (seconds, repaired / seconds, world), strict=True))
    before = next((part["before"] for part in parts if part["before"]), None)
    if not repaired and before:
        timing = before  # of the run that made the images
    return timing | {"repaired": repaired, "skipped": sum(part["skipped"] for part in parts)}


def _read(path: Path) -> dict[str, Any]:
    """The dictionary in a JSON file; {} if it contains none, is invalid or does not exist."""
    try:
        with naming(path):
            content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
