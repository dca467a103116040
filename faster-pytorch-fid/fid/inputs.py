"""What is scored against what: paths, the manifest that inpainting leaves, masks.

`<predicted-path>/manifest.json` holds {"ground_truth": folder or csv (absolute or relative to the
manifest), "masks": folder or null, "images": [{"image": name, "ground_truth": name (csv: row number
from 0), "mask": name}, ...]}.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fid.files import ScoreError
from fid.images import FolderImages, ImageSet, ZipImages, folder_names, zip_names
from fid.tables import CsvImages, open_csv

MAX_BOOTSTRAP_SAMPLES = 100_000  # hours, not days
METRICS = ("fid", "kid", "prc", "paired", "bootstrap")
MANIFEST = "manifest.json"

Source = ImageSet | Path  # images, or an .npz of statistics


@dataclass(frozen=True)
class Settings:
    """Everything that a score depends on, and where it is computed.

    Attributes:
        gt_path: ground truth; None: the one the predicted folder's manifest names.
        weights: a weight file; None: the one in `weights_dir`, downloaded when missing.
        cache_dir: where reference statistics are kept; None: nowhere.
        legacy: the matrix root of pytorch-fid with its eps, to reproduce its scores.
    """

    predicted_path: str
    gt_path: str | None
    mask_path: str | None
    features: str
    dims: int | None
    weights: str | None
    weights_dir: Path
    device: str
    batch_size: int
    workers: int
    metrics: tuple[str, ...]
    bootstrap_samples: int
    legacy: bool
    seed: int
    cache_dir: Path | None


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


def open_images(path: Path, selection: Sequence[str | int] | None = None) -> ImageSet:
    """Open a folder, a zip or a csv.

    Args:
        selection: the images wanted and their order, file names or (csv) row numbers from 0.
            None: all of them, sorted by name.

    Raises:
        ScoreError: nothing there, fewer than two images, or a selected image is missing.
    """
    if not path.exists():
        raise ScoreError(f"{path}: no such file or folder")
    if path.is_dir():
        images: ImageSet = FolderImages(path, folder_names(path))
    elif not path.is_file():
        raise ScoreError(f"{path}: is neither a file nor a folder")
    elif path.suffix.lower() == ".csv":
        images = open_csv(path)
    elif path.suffix.lower() == ".zip":
        images = ZipImages(path, zip_names(path))
    else:
        raise ScoreError(f"{path}: expected a folder, a .zip, a .csv or an .npz of statistics")
    if selection is not None and len(images) > 0:
        images = _select(images, selection)
    if len(images) < 2:
        found = "no images" if len(images) == 0 else "only one image"
        raise ScoreError(f"{path}: {found}; at least two are needed")
    return images


def _select(images: ImageSet, selection: Sequence[str | int]) -> ImageSet:
    """The named images in the named order."""
    if isinstance(images, CsvImages):
        rows = range(len(images))
        for row in selection:
            if type(row) is not int or row not in rows:  # True is an int too
                raise ScoreError(f"{images.path}: no row {row!r}, it has rows 0 to {rows[-1]}")
        chosen = CsvImages(images.path, [images.spans[row] for row in selection], images.side)
        chosen.names = [str(row) for row in selection]
        return chosen
    known = set(images.names)
    for name in selection:
        if not isinstance(name, str) or name not in known:
            raise ScoreError(f"{images.path}: no image {name!r}, though the manifest names it")
    return type(images)(images.path, selection)


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
