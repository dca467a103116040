"""What a score depends on: its settings, and the images, masks and manifest that they name.

The manifest, which inpainting leaves next to its results, is described in ../README.md; only its
"images" are required.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fid.files import ScoreError, check_limit, note, read_json, user_path
from fid.images import CsvImages, FolderImages, ImageSet, ZipImages
from fid.names import MANIFEST, folder_names
from fid.paired import belonging
from fid.pixels import Size

METRICS = ("fid", "kid", "prc", "density", "ids", "hole", "paired", "bootstrap")
MAX_BOOTSTRAP_SAMPLES = 100_000  # hours, not days
OF_PAIRS = {"ids", "hole", "paired"}  # metrics that compare each image with its own ground truth
OF_MASKS = {"hole", "paired"}  # metrics of the hole
PATHS = ("train_path", "predicted_path", "gt_path", "mask_path", "weights")  # in `Settings`
TRUTH_CSV = "test_gt.csv"
SCORER = Path(__file__).resolve().parents[1]
Source = ImageSet | Path  # images, or an .npz of statistics
MANIFEST_KEYS = {  # optional keys: what they must be
    **dict.fromkeys(("ground_truth", "masks"), (str, "a path")),
    **dict.fromkeys(("ground_truth_bytes", "mask_threshold"), (int, "a whole number")),
    "inverted_masks": (bool, "true, false"),
}


@dataclass(frozen=True)
class Settings:
    """Everything that a score depends on, and where it is computed; None: choose automatically."""

    predicted_path: str
    gt_path: str | None = None  # ground truth; else the one that the manifest names
    mask_path: str | None = None  # else the manifest's
    features: str = "inception"
    dims: int | None = None  # feature size; else the network's
    weights: str | None = None  # a file; else that in weights_dir, downloaded when missing
    weights_dir: Path | None = None  # else where torch.hub keeps checkpoints
    device: str = "auto"
    batch_size: int = 16
    workers: int = 0  # threads that read images for a GPU; a CPU's threads read their own
    metrics: tuple[str, ...] = ("fid",)
    bootstrap_samples: int = 100
    legacy: bool = False  # the matrix root of pytorch-fid with its eps, to reproduce its scores
    seed: int = 2020
    cache_dir: Path | None = None  # of reference statistics; else they are not kept
    recursive: bool = False  # read the folders' sub-folders too
    train_path: str | None = None  # training images of the network, to detect memorisation
    resize: Size | None = None  # resize images to this; else all must have the same size


@dataclass(frozen=True)
class Inputs:
    """The predicted images, their reference, hole masks and the training images.

    paired: image i of one set is known to match image i of the other by name, not just by position.
    """

    predicted: Source
    reference: Source
    masks: ImageSet | None
    train: Source | None
    paired: bool

    @cached_property
    def truths(self) -> list[int] | None:
        """Numbers of the different reference images; None for statistics.

        Several samples of an image have the same truth, which the reference then repeats.
        """
        if isinstance(self.reference, Path):
            return None
        first: dict[str, int] = {}
        for number, name in enumerate(self.reference.names):
            first.setdefault(name, number)
        return list(first.values())


def resolve_inputs(settings: Settings) -> Inputs:
    """Open the inputs named in the settings or the manifest, else the lab's test_gt.csv.

    Raises `ScoreError` for a path or manifest entry that is invalid.
    """
    folder = Path(settings.predicted_path)
    predicted, manifest = open_predicted(settings)
    masks = open_masks(settings, predicted, manifest or {})
    is_stated = settings.gt_path is None and manifest is not None
    if is_stated:
        if not manifest.get("ground_truth"):
            raise ScoreError(f"{folder}/{MANIFEST}: names no ground truth; give --gt-path")
        place = Path(user_path(f"{folder / manifest['ground_truth']}"))
        reference = open_source(place, settings, column_of(folder, manifest, "ground_truth"))
        note_other_truth(reference, manifest)
    else:
        reference = open_source(Path(settings.gt_path or _lab_truth(folder)), settings)
        if OF_PAIRS.intersection(settings.metrics) or settings.train_path:
            reference = belonging(predicted, reference, stated_names(manifest, "ground_truth"))
    train = open_source(Path(settings.train_path), settings) if settings.train_path else None
    is_paired = is_stated and isinstance(reference, ImageSet)
    return Inputs(predicted, reference, masks, train, is_paired)


def open_predicted(settings: Settings) -> tuple[Source, dict[str, Any] | None]:
    """The predicted images (as listed by the manifest, if there is one) and the manifest."""
    folder = Path(settings.predicted_path)
    manifest = read_manifest(folder)
    if manifest is None:
        return open_source(folder, settings), None
    predicted = open_source(folder, settings, column_of(folder, manifest, "image"))
    others = len(open_images(folder, None, settings.recursive)) - len(predicted)
    if others > 0:
        note(f"{others} images are not in {MANIFEST} and left out")
    return predicted, manifest


def open_masks(settings: Settings, predicted: Source, manifest: dict[str, Any]) -> ImageSet | None:
    """The hole masks that --mask-path names or, if a metric needs them, the manifest.

    They are read as the manifest says that inpainting read them.
    """
    folder, given = Path(settings.predicted_path), settings.mask_path
    if given is None and not (manifest.get("masks") and OF_MASKS.intersection(settings.metrics)):
        return None
    place = Path(user_path(f"{folder / manifest['masks']}")) if given is None else Path(given)
    if given is None and not place.exists():  # perhaps another machine's manifest
        note(f"{folder}/{MANIFEST}: its masks are not here; give --mask-path if needed")
        return None
    if place.suffix.lower() in (".csv", ".npz") and not place.is_dir():
        raise ScoreError(f"{place}: masks are read from a folder or a .zip of images")
    if given is None:
        masks = open_images(place, column_of(folder, manifest, "mask"), settings.recursive)
    else:
        masks = open_images(place, None, settings.recursive)
        masks = belonging(predicted, masks, stated_names(manifest, "mask"))
    masks.size, masks.threshold = settings.resize, manifest.get("mask_threshold")
    masks.inverted = manifest.get("inverted_masks") is True
    if masks.inverted:
        note(f"{place}: white is the hole, as {folder}/{MANIFEST} says of the masks")
    return masks


def open_source(
    path: Path, settings: Settings, selection: Sequence[str | int] | None = None
) -> Source:
    """Images of a folder, zip or csv at the requested size; for an .npz, its path."""
    if path.suffix.lower() == ".npz" and path.is_file():
        return path
    images = open_images(path, selection, settings.recursive)
    if size := settings.resize:
        shape = f"--resize {size.width}x{size.height}"
        check_limit("pixels", size.width * size.height, shape)
    images.size = size
    return images


def open_images(
    path: Path, selection: Sequence[str | int] | None = None, recursive: bool = False
) -> ImageSet:
    """Open a folder, a zip or a csv.

    selection: which images, in which order, as file names or (csv) row numbers from 0; None: all,
    in natural order. Raises `ScoreError` if the path does not exist, has fewer than two images, or
    lacks a selected image.
    """
    if not path.exists():
        raise ScoreError(f"{path}: no such file or folder")
    if path.is_dir():
        images: ImageSet = FolderImages(path, folder_names(path, recursive))
    elif not path.is_file():
        raise ScoreError(f"{path}: is neither a file nor a folder")
    elif path.suffix.lower() not in (".csv", ".zip"):
        raise ScoreError(f"{path}: expected a folder, a .zip, a .csv or an .npz of statistics")
    else:
        images = (CsvImages if path.suffix.lower() == ".csv" else ZipImages)(path)
    if selection is not None and len(images) > 0:
        images = images.select(selection)
    if len(images) < 2:
        found = "no images" if len(images) == 0 else "only one image"
        raise ScoreError(f"{path}: {found}; at least two are needed")
    return images


def _lab_truth(predicted: Path) -> Path:
    """Find test_gt.csv in one of the folders where the lab keeps it."""
    places = [Path(), predicted, predicted.parent, SCORER, Path("cat_face"), Path("../cat_face")]
    for place in places:
        if (path := place / TRUTH_CSV).is_file():
            note(f"the ground truth is {path}")
            return path
    raise ScoreError(
        f"{predicted}: has no {MANIFEST} that names the ground truth; give --gt-path "
        f"(no {TRUTH_CSV} was found either)"
    )


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder, or None if it has none."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    manifest = read_json(path)
    entries = manifest.get("images") if isinstance(manifest, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ScoreError(f"{path}: expected an object with a list of objects under 'images'")
    if not entries:
        raise ScoreError(f"{path}: lists no images")
    for key, (kind, what) in MANIFEST_KEYS.items():
        if not isinstance(manifest.get(key), kind | None):
            raise ScoreError(f"{path}: {key!r} must be {what} or null")
    threshold = manifest.get("mask_threshold")
    if threshold is not None and not 1 <= threshold <= 255:
        raise ScoreError(f"{path}: 'mask_threshold' is {threshold}; allowed are 1 to 255")
    return manifest


def column_of(folder: Path, manifest: dict[str, Any], key: str) -> list[Any]:
    """The value of a key in every entry of the manifest."""
    names = stated_names(manifest, key)
    if None in names:
        raise ScoreError(f"{folder}/{MANIFEST}: images[{names.index(None)}] has no {key!r}")
    return names


def stated_names(manifest: dict[str, Any] | None, key: str) -> list[Any]:
    """The value of a key in every entry of the manifest, None where an entry has none."""
    return [entry.get(key) for entry in manifest["images"]] if manifest else []


def note_other_truth(truth: ImageSet | Path, manifest: dict[str, Any]) -> None:
    """Note if the ground truth is not what inpainting saw, e.g. after results were moved."""
    stated = manifest.get("ground_truth_bytes")
    if stated is None or isinstance(truth, Path) or truth.bytes_on_disk() == stated:
        return
    note(
        f"{truth.path}: other files than those that the repairs hid ({stated:,} bytes); were they "
        "moved? else give --gt-path"
    )
