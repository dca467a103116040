"""What a score depends on: its settings, and the images, masks and manifest that they name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fid.files import ScoreError, check_limit, composed, note
from fid.images import CsvImages, FolderImages, ImageSet, ZipImages
from fid.manifest import column_of, note_other_truth, path_in, read_manifest, stated_names
from fid.names import MANIFEST, folder_names, natural_key, partners, rows_by_name, stem
from fid.pixels import Size

METRICS = ("fid", "kid", "prc", "density", "ids", "hole", "paired", "bootstrap")
MAX_BOOTSTRAP_SAMPLES = 100_000  # hours, not days
OF_PAIRS = {"ids", "hole", "paired"}  # metrics that compare each image with its own ground truth
OF_MASKS = {"hole", "paired"}  # metrics of the hole
PATHS = ("train_path", "predicted_path", "gt_path", "mask_path", "weights")  # in `Settings`
TRUTH_CSV = "test_gt.csv"
SCORER = Path(__file__).resolve().parents[1]
Source = ImageSet | Path  # images, or an .npz of statistics


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
        names = column_of(folder, manifest, "ground_truth")
        reference = open_source(path_in(folder, manifest["ground_truth"]), settings, names)
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
    place = path_in(folder, manifest["masks"]) if given is None else Path(given)
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


def belonging(
    images: ImageSet | Path, others: ImageSet | Path, names: Sequence[Any] = ()
) -> ImageSet | Path:
    """The partner in `others` of each image, matched by name (names.py).

    names: what the manifest calls the partners, used if all are there, else the images' own names.
    Rows of a csv else match by the images' numbers or by position (`rows_by_name`). Unmatched ones
    are dropped with a note. Sets of different length and files of statistics are returned
    unchanged.
    """
    if isinstance(images, Path) or isinstance(others, Path):
        return others
    wanted = next((each for each in (names, images.names) if each and _has(others, each)), None)
    if wanted is None and not (images.has_names and others.has_names):
        rows: Sequence[int] = range(min(len(images), len(others)))
        if (surplus := len(others) - len(images)) > 0:
            how = "they have the first rows, in order"
            if images.has_names:
                rows, how = rows_by_name(images.names, len(others))
            note(f"{others.path}: {surplus} rows more than images are left out; {how}")
        return others.named(others.names[row] for row in rows)
    if wanted is None:
        places = partners(images.names, others.names, spare=len(others) > len(images))
        wanted = places and [others.names[place] for place in places]
    if wanted is not None:
        if (count := len(set(wanted))) < len(others):
            text = f"{count} of the {len(others)} images have a partner"
            note(f"{others.path}: {text}; the others are not used")
        return others.select(wanted)
    if len(images) != len(others):
        return others
    alone = {stem(name) for name in images.names} ^ {stem(name) for name in others.names}
    shown = ", ".join(sorted(alone, key=natural_key)[:3]) or "names that occur twice"
    raise ScoreError(
        f"{images.path} and {others.path} do not pair by the number at the end or by name; "
        f"without a partner: {shown}"
    )


def _has(images: ImageSet, names: Sequence[Any]) -> bool:
    """Whether names from a manifest are those of images, or numbers, as a csv has them."""
    if not images.has_names:
        return all(type(name) is int for name in names)  # True is an int too
    return {composed(str(name)) for name in names}.issubset(map(composed, images.names))


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
