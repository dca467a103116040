"""What is scored against what: paths, the manifest that inpainting leaves, masks.

`<predicted-path>/manifest.json` holds {"ground_truth": folder or csv (absolute or relative to the
manifest), "masks": folder or null, "images": [{"image": name, "ground_truth": name (csv: row number
from 0), "mask": name}, ...]}.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fid_errors import ScoreError
from fid_images import ImageSet
from fid_open import open_images

MANIFEST = "manifest.json"

Source = ImageSet | Path  # images, or an .npz of statistics


@dataclass(frozen=True)
class Inputs:
    """The predicted images, their reference (None: only statistics are asked for), hole masks.

    Attributes:
        paired: image i of one set belongs to image i of the other by name, not just by count.
    """

    predicted: Source
    reference: Source | None
    masks: ImageSet | None
    paired: bool


def resolve_inputs(
    predicted_path: str, gt_path: str | None, mask_path: str | None, need_reference: bool = True
) -> Inputs:
    """Open everything that the flags and the manifest name.

    A manifest chooses the predicted images; its ground truth is used where no --gt-path is given.

    Raises:
        ScoreError: a path or a manifest entry that does not fit; no ground truth named anywhere.
    """
    manifest = _read_manifest(Path(predicted_path))
    entries = manifest["images"] if manifest else None
    names = [entry["image"] for entry in entries] if entries else None
    predicted = open_source(Path(predicted_path), names)
    if manifest and len(predicted) < (available := len(open_images(Path(predicted_path)))):
        left_out = available - len(predicted)
        print(f"note: {left_out} images are not in {MANIFEST} and left out", file=sys.stderr)
    masks = _masks(Path(predicted_path), manifest, mask_path)
    if not need_reference:
        return Inputs(predicted, None, masks, paired=False)
    if gt_path is not None:
        return Inputs(predicted, open_source(Path(gt_path), None), masks, paired=False)
    if manifest is None:
        raise ScoreError(
            f"{predicted_path}: has no {MANIFEST} that names the ground truth; give --gt-path"
        )
    if not manifest.get("ground_truth"):
        raise ScoreError(f"{predicted_path}/{MANIFEST}: names no ground truth; give --gt-path")
    truth = Path(predicted_path) / manifest["ground_truth"]
    reference = open_source(truth, _column(predicted_path, manifest, "ground_truth"))
    return Inputs(predicted, reference, masks, paired=True)


def open_source(path: Path, names: list[str] | None) -> Source:
    """Images of a folder, zip or csv; the path itself of an .npz of statistics."""
    if path.suffix.lower() == ".npz" and not path.is_dir():
        if not path.is_file():
            raise ScoreError(f"{path}: no such file or folder")
        return path
    return open_images(path, names)


def _masks(folder: Path, manifest: dict[str, Any] | None, given: str | None) -> ImageSet | None:
    if given is not None:
        return open_images(Path(given))
    if manifest is None or not manifest.get("masks"):
        return None
    return open_images(folder / manifest["masks"], _column(str(folder), manifest, "mask"))


def _column(folder: str, manifest: dict[str, Any], key: str) -> list[Any]:
    """One value of every manifest entry."""
    for number, entry in enumerate(manifest["images"]):
        if entry.get(key) is None:
            raise ScoreError(f"{folder}/{MANIFEST}: images[{number}] has no {key!r}")
    return [entry[key] for entry in manifest["images"]]


def _read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder, None where there is none."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise ScoreError(f"{path}: not readable JSON ({error})") from None
    entries = manifest.get("images") if isinstance(manifest, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ScoreError(f"{path}: expected an object with a list of objects under 'images'")
    for key in ("ground_truth", "masks"):
        if not isinstance(manifest.get(key), str | None):
            raise ScoreError(f"{path}: {key!r} must be a path or null")
    _column(str(folder), manifest, "image")
    return manifest
