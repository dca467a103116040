"""The manifest next to the results: what was done, with what, and where the truth lies.

Each of several processes leaves its part of the times in a hidden file next to it, since they
exchange nothing else; the one that finds all parts there is the last.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from config.schema import Config
from utils.data.datasets import InpaintingSet
from utils.device import environment, pick_device
from utils.distributed import own_device
from utils.inpainting.outputs import Outputs
from utils.io.files import relative, write_text
from utils.io.images import composed


def write_manifest(
    path: Path,
    config: Config,
    dataset: InpaintingSet,
    outputs: Outputs,
    settings: dict[str, Any],
    timing: dict[str, float],
) -> None:
    """Write everything needed to trace a result, and to find its ground truth.

    settings: of stamps.py; a rerun compares them. Paths are relative to the manifest.
    """
    truth = dataset.truth
    content = {
        "ground_truth": relative(truth.location, path.parent) if truth else None,
        "masks": _masks(path.parent, dataset),
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
        "environment": environment(own_device(pick_device(config.device))),
        **timing,
    }
    write_text(path, json.dumps(content, indent=1) + "\n")


def part_path(manifest: Path, rank: int) -> Path:
    """Where one of several processes leaves its part."""
    return manifest.with_name(f".process-{rank}.json")


def leave_part(manifest: Path, rank: int, part: dict[str, Any]) -> None:
    """Write what a process did: digest of the settings, seconds, images repaired and skipped, and
    the times in the manifest that it found, which count if nothing was left to repair.
    """
    write_text(part_path(manifest, rank), json.dumps(part) + "\n")


def read_parts(manifest: Path, digest: str, world: int) -> list[dict[str, Any]]:
    """The parts of all processes with these settings; [] while one has not left its own."""
    parts = [_read(part_path(manifest, rank)) for rank in range(world)]
    return parts if all(part.get("digest") == digest for part in parts) else []


def timing_of(parts: list[dict[str, Any]], world: int) -> dict[str, float]:
    """Times of processes that ran side by side, and the images of all."""
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
    """What an earlier run left, with at least its settings; {} if there is none to be read."""
    content = _read(path)
    return content if isinstance(content.get("settings"), dict) else {}


def sources_of(manifest: dict[str, Any]) -> dict[str, str]:
    """File names of the results that a manifest lists: those of the pictures they repair."""
    try:
        names = ((str(entry["image"]), str(entry["source"])) for entry in manifest["images"])
        return {image: composed(source) for image, source in names}
    except (KeyError, TypeError):  # another program's
        return {}


def _read(path: Path) -> dict[str, Any]:
    """What a JSON file holds; {} if that is no dictionary, or there is none to be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _masks(folder: Path, dataset: InpaintingSet) -> str | None:
    """Where the masks lie; None for those that a scorer would read otherwise."""
    return (
        None
        if dataset.invert_masks or dataset.from_alpha
        else relative(dataset.masks[0].parent, folder)
    )
