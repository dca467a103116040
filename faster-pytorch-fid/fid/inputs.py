"""What is scored against what: paths, the manifest that inpainting leaves, masks.

`<predicted-path>/manifest.json` holds {"ground_truth": folder or csv (absolute or relative to the
manifest), "masks": folder or null, "images": [{"image": name, "ground_truth": name (csv: row number
from 0), "mask": name}, ...]}.
"""

from __future__ import annotations

import json
import re
import sys
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from fid.crops import ResizedImages, Size
from fid.files import ScoreError
from fid.images import ImageSet, natural_key
from fid.sources import CsvImages, open_images, select

MAX_BOOTSTRAP_SAMPLES = 100_000  # hours, not days
METRICS = ("fid", "kid", "prc", "density", "ids", "hole", "paired", "bootstrap")
PAIRED = {"ids", "hole", "paired"}  # metrics of an image and its own truth
MANIFEST = "manifest.json"
TRUTH_CSV = "test_gt.csv"
SCORER = Path(__file__).resolve().parents[1]

Source = ImageSet | Path  # images, or an .npz of statistics


@dataclass(frozen=True)
class Settings:
    """Everything that a score depends on, and where it is computed.

    Attributes:
        gt_path: ground truth; None: the one the predicted folder's manifest names.
        weights: a weight file; None: the one in `weights_dir`, downloaded when missing.
        cache_dir: where reference statistics are kept; None: nowhere.
        legacy: the matrix root of pytorch-fid with its eps, to reproduce its scores.
        train_path: images that the network learned from, to see copies; None: not looked for.
        resize: one size to which images are brought; None: they must have one.
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
    recursive: bool = False
    train_path: str | None = None
    resize: Size | None = None


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
    predicted_path: str,
    gt_path: str | None,
    mask_path: str | None,
    need_reference: bool = True,
    need_pairs: bool = False,
    recursive: bool = False,
) -> Inputs:
    """Open everything that the flags and the manifest name.

    A manifest chooses the predicted images; its ground truth is used where no --gt-path is given,
    and without either a test_gt.csv at one of the lab's places.

    Raises:
        ScoreError: a path or a manifest entry that does not fit; no ground truth named anywhere.
    """
    folder = Path(predicted_path)
    manifest = _read_manifest(folder)
    entries = manifest["images"] if manifest else None
    names = [entry["image"] for entry in entries] if entries else None
    predicted = open_source(folder, names, recursive)
    if manifest and len(predicted) < (available := len(open_images(folder, None, recursive))):
        left_out = available - len(predicted)
        print(f"note: {left_out} images are not in {MANIFEST} and left out", file=sys.stderr)
    masks = _masks(predicted, folder, manifest, mask_path)
    if not need_reference:
        return Inputs(predicted, None, masks, paired=False)
    if gt_path is None and manifest is not None:
        if not manifest.get("ground_truth"):
            raise ScoreError(f"{folder}/{MANIFEST}: names no ground truth; give --gt-path")
        truth = folder / manifest["ground_truth"]
        reference = open_source(truth, _column(predicted_path, manifest, "ground_truth"))
        return Inputs(predicted, reference, masks, paired=True)
    reference = open_source(Path(gt_path or _lab_truth(folder)), None, recursive)
    if need_pairs and isinstance(predicted, ImageSet) and isinstance(reference, ImageSet):
        reference = belonging(predicted, reference)
    return Inputs(predicted, reference, masks, paired=False)


def in_one_size(inputs: Inputs, size: Size | None) -> Inputs:
    """The inputs with all images brought to a size; masks stay as they are."""
    if size is None:
        return inputs
    sides = {
        name: ResizedImages(source, size)
        for name in ("predicted", "reference")
        if isinstance(source := getattr(inputs, name), ImageSet)
    }
    return replace(inputs, **sides)


def _lab_truth(predicted: Path) -> Path:
    """The test_gt.csv at one of the places where the lab's files lie."""
    places = [Path(), predicted, predicted.parent, SCORER, Path("cat_face"), Path("../cat_face")]
    for place in places:
        if (path := place / TRUTH_CSV).is_file():
            print(f"note: the ground truth is {path}", file=sys.stderr)
            return path
    raise ScoreError(
        f"{predicted}: has no {MANIFEST} that names the ground truth; give --gt-path "
        f"(no {TRUTH_CSV} was found either)"
    )


def belonging(images: ImageSet, others: ImageSet) -> ImageSet:
    """Of `others` what belongs to each image, as the suite's utils/data/pairs.py pairs files.

    The number at the end of the name decides where both sides have the same numbers, each once,
    else the name without its suffix. Rows of a csv belong by their order; surplus ones are left
    out with a note. Sets of other lengths come back as they are.
    """
    if isinstance(others, CsvImages) or isinstance(images, CsvImages):
        if len(others) <= len(images):
            return others
        print(f"note: {others.path}: the first {len(images)} images are used", file=sys.stderr)
        rows = list(range(len(images)))
        return select(others, rows if isinstance(others, CsvImages) else others.names[: len(rows)])
    if len(images) != len(others):
        return others
    for key in (_trailing_number, _stem):
        by_key = {key(name): name for name in others.names}
        wanted = [key(name) for name in images.names]
        unique = len(by_key) == len(others) == len(set(wanted))
        if unique and None not in by_key and set(wanted) == set(by_key):
            return select(others, [by_key[name] for name in wanted])
    alone = {_stem(name) for name in images.names} ^ {_stem(name) for name in others.names}
    shown = ", ".join(sorted(alone, key=natural_key)[:3]) or "names that occur twice"
    raise ScoreError(
        f"{images.path} and {others.path} do not pair by the number at the end or by name; "
        f"without a partner: {shown}"
    )


def _trailing_number(name: str) -> int | None:
    match = re.search(r"(\d+)$", _stem(name))
    return int(match[1]) if match else None


def _stem(name: str) -> str:
    return unicodedata.normalize("NFC", PurePosixPath(name).stem)


def open_source(path: Path, names: list[str] | None, recursive: bool = False) -> Source:
    """Images of a folder, zip or csv; the path itself of an .npz of statistics."""
    if path.suffix.lower() == ".npz" and not path.is_dir():
        if not path.is_file():
            raise ScoreError(f"{path}: no such file or folder")
        return path
    return open_images(path, names, recursive)


def _masks(
    predicted: Source, folder: Path, manifest: dict[str, Any] | None, given: str | None
) -> ImageSet | None:
    if given is not None:
        masks = open_images(Path(given))
        return belonging(predicted, masks) if isinstance(predicted, ImageSet) else masks
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
