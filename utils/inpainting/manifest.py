"""The manifest next to the results: inputs, settings, timing, and where the ground truth is.

With several processes, each writes its timing to a hidden file next to the manifest, since they
do not communicate otherwise; the one that finds all of these files is the last.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fid.files import naming, relative
from fid.names import composed

from config.errors import UserError
from config.schema import Config
from utils.data.datasets import InpaintingSet
from utils.device import Compute, environment
from utils.inpainting.outputs import Outputs
from utils.inpainting.stamps import differences, read_stamp
from utils.io.files import write_text
from utils.io.messages import note


def write_manifest(
    path: Path,
    config: Config,
    dataset: InpaintingSet,
    outputs: Outputs,
    settings: dict[str, Any],
    timing: dict[str, float],
) -> None:
    """Write everything needed to trace a result, and to find its ground truth.

    settings: `settings_of` in stamps.py; a rerun compares them. Paths are relative to the manifest.
    """
    truth, folder = dataset.truth, path.parent
    is_plain = not (dataset.invert_masks or dataset.from_alpha)  # as a scorer would read them
    content = {
        "ground_truth": relative(truth.location, folder) if truth else None,
        "ground_truth_bytes": truth.bytes_on_disk() if truth else None,
        "masks": relative(dataset.masks[0].parent, folder) if is_plain else None,
        "inverted_masks": dataset.invert_masks,
        "mask_threshold": dataset.mask_threshold,
        "images": [
            {
                "image": outputs.result_name(index, sample),
                "source": dataset.images[index].name,
                "mask": dataset.masks[index].name,
                **({"ground_truth": truth.name(index)} if truth else {}),
                **({"sample": sample} if config.decoding.samples > 1 else {}),
            }
            for index in range(len(dataset))
            for sample in range(config.decoding.samples)
        ],
        "seed": config.seed,
        "tokenizer_sha256": settings["tokenizer_sha256"],
        "transformer_sha256": settings["transformer_sha256"],
        "settings": settings,
        "config": config.model_dump(mode="json"),
        "environment": environment(Compute.of(config).device),
        **timing,
    }
    write_text(path, json.dumps(content, indent=1) + "\n")


def part_path(manifest: Path, rank: int) -> Path:
    """The hidden file with the timing of one of several processes (job.py)."""
    return manifest.with_name(f".process-{rank}.json")


def read_parts(manifest: Path, digest: str, world: int) -> list[dict[str, Any]]:
    """The parts of all processes with these settings; [] while one is missing."""
    parts = [_read(part_path(manifest, rank)) for rank in range(world)]
    return parts if all(part.get("digest") == digest for part in parts) else []


def timing_of(parts: list[dict[str, Any]], world: int) -> dict[str, float]:
    """Overall timing of processes that ran in parallel, and their total images."""
    seconds = max(part["seconds"] for part in parts)
    repaired = sum(part["repaired"] for part in parts)
    timing = {
        "seconds": seconds,
        "images_per_second": repaired / seconds,
        "processes": world,
    }
    before = next((part["before"] for part in parts if part["before"]), None)
    if not repaired and before:
        timing = {key: before[key] for key in timing}  # of the run that made the images
    return timing | {"repaired": repaired, "skipped": sum(part["skipped"] for part in parts)}


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of an earlier run, with at least its settings; {} if there is none."""
    content = _read(path)
    return content if isinstance(content.get("settings"), dict) else {}


def _read(path: Path) -> dict[str, Any]:
    """The dictionary in a JSON file; {} if it contains none, is invalid or does not exist."""
    try:
        with naming(path):
            content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def say_what_changed(
    folder: Path, before: dict[str, Any], settings: dict[str, Any], digest: str
) -> None:
    """Print why images of an earlier run are repaired again, if they are."""
    if before:
        changes = differences(before["settings"], settings)
    else:  # a run cut short left no manifest, but stamps
        stamps = (read_stamp(path) for path in folder.glob("image_*.png"))
        others = [stamp for stamp in stamps if stamp and not stamp.startswith(digest)]
        changes = [f"{len(others)} images of a run that did not end"] if others else []
    if changes:
        changed = "; ".join(changes)
        note(f"{folder} was made with other settings ({changed}): its images are made again")


def refuse_inputs(folders: Iterable[Path], dataset: InpaintingSet) -> None:
    """Raise `UserError` if an input lies in a folder that is written to."""
    written = {os.path.realpath(folder) for folder in folders}
    truth = [dataset.truth.location / "x"] if dataset.truth else []
    for path in (dataset.images[0], dataset.masks[0], *truth):
        if os.path.realpath(path.parent) in written:
            raise UserError(f"{path.parent}: its pictures would be replaced; name another --output")


def refuse_to_replace(folder: Path, before: dict[str, Any], planned: dict[str, str]) -> None:
    """Raise `UserError` where the repair of a picture that is not in the job would be lost.

    planned: file name of every result: that of the picture it repairs.
    """
    try:
        entries = ((str(entry["image"]), str(entry["source"])) for entry in before["images"])
        made = {image: composed(source) for image, source in entries}
    except (KeyError, TypeError):  # another program's
        return
    pictures = set(planned.values())
    lost = [name for name in planned if made.get(name, planned[name]) not in pictures]
    if lost:
        raise UserError(
            f"{folder / lost[0]}: is the repair of {made[lost[0]]}, not of {planned[lost[0]]}; "
            "name another --output, or replace it with --restart"
        )


def is_complete(folder: Path, names: Iterable[str], digest: str) -> bool:
    """Whether the results of all processes exist and were made with these settings."""
    return all((read_stamp(folder / name) or "").startswith(digest) for name in names)
