"""The manifest beside the results: what was done, with what, and where the truth lies."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from config.schema import Config
from utils.data import InpaintingSet
from utils.device import pick_device
from utils.distributed import own_device
from utils.files import write_text
from utils.inpaint_outputs import Outputs
from utils.runlog import environment


def write_manifest(
    path: Path,
    config: Config,
    dataset: InpaintingSet,
    outputs: Outputs,
    settings: dict[str, Any],
    timing: dict[str, float],
) -> None:
    """Write everything needed to trace a result, and to find its ground truth.

    settings: of utils/stamps.py; a rerun compares them. Paths are relative to the manifest.
    """
    truth = dataset.truth
    content = {
        "ground_truth": os.path.relpath(truth.location, path.parent) if truth else None,
        "masks": _masks(path.parent, dataset),
        "inverted_masks": dataset.invert_masks,
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


def read_manifest(path: Path) -> dict[str, Any]:
    """What an earlier run left, with at least its settings; {} if there is none to be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    is_ours = isinstance(content, dict) and isinstance(content.get("settings"), dict)
    return content if is_ours else {}


def _masks(folder: Path, dataset: InpaintingSet) -> str | None:
    """Where the masks lie; None for inverted ones, which a scorer would take the wrong way."""
    return None if dataset.invert_masks else os.path.relpath(dataset.masks[0].parent, folder)
