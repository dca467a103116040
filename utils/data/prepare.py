"""Write a data set in the lab's layout, atomically.

DIR/train/image_00000.png, DIR/val/image_00000.png   training and validation images
DIR/test/image_000.png                               ground truth of the masked images
DIR/masked_image/image_000.png                       test images, holes painted (128, 128, 128)
DIR/mask64/mask_000.png                              255 known, 0 hole
DIR/dataset.json                                     source, settings, statistics
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from fid.files import KEPT
from tqdm import tqdm

from config.errors import UserError
from utils.data.holes import DEFAULT_SHARE, check_holes, draw_hole
from utils.data.photos import Photos
from utils.data.sources import SPLIT_NAMES, Counts, ImageFiles, Splits, too_few
from utils.io.files import read_ahead
from utils.io.images import HOLE, HOLE_COLOUR, KNOWN, encode_png
from utils.io.messages import check_limit, raise_if_machine

DESCRIPTION = "dataset.json"
OWN = re.compile(  # files that may be deleted with a data set; the last two are the system's
    r"dataset\.json|(train|val|test|masked_image)/image_\d+\.png|mask64/mask_\d+\.png"
    r"|token_cache/.*|(.*/)?(\.DS_Store|Thumbs\.db)"
)
RECIPE = 1  # increase when the same source and settings would give other pixels
SIZE_LIMITS = (16, 1024)  # pixels of an image's side
WRITTEN_AHEAD = 64  # images queued for writing
SKIPPED_SHOWN = 5  # skipped files printed; all are in dataset.json


@dataclass(frozen=True)
class Preparation:
    """The settings that determine a data set's content, together with its source."""

    split: tuple[int, int, int]  # images in train, val and test
    image_size: int = 64
    seed: int = 0
    holes: str = "lab"
    hole_share: tuple[float, float] = DEFAULT_SHARE

    def check(self) -> None:
        """Raise UserError for a setting out of its range."""
        check_holes(self.holes, self.hole_share)
        if min(self.split) < 1:
            raise UserError(f"--split: {min(self.split)}; each part needs at least 1 image")
        if self.seed < 0:
            raise UserError(f"--seed: {self.seed}; allowed are 0 and more")
        low, high = SIZE_LIMITS
        if not low <= self.image_size <= high:
            raise UserError(f"--image-size: {self.image_size}; allowed are {low} to {high}")
        check_limit("held_bytes", sum(self.split) * 3 * self.image_size**2, "--split")

    @property
    def counts(self) -> Counts:
        return dict(zip(SPLIT_NAMES, self.split, strict=True))


def prepare(
    source: Photos | ImageFiles,
    out: Path,
    settings: Preparation,
    *,
    workers: int = 4,
    force: bool = False,
) -> None:
    """Write the data set of `source` to the folder `out`, unless it is already there.

    `force` replaces a different data set in `out`; any other folder, or one with other files, is
    never replaced. `out` appears only once everything is written.
    """
    settings.check()
    out = Path(os.path.realpath(out))
    _check_out(out, source.path)
    if isinstance(source, ImageFiles) and sum(settings.split) > len(source.files):
        number = len(source.files)  # before any is read
        raise too_few(source.label, f"{number} files", settings.counts, number)
    origin = {
        "recipe": RECIPE,
        "kind": source.kind,
        "source_sha256": source.fingerprint(),
        **asdict(settings),
        "split": settings.counts,
        "hole_share": list(settings.hole_share),
    }
    if (out / DESCRIPTION).is_file():
        if not force and _is_same(out, origin):
            print(f"{out} already contains this data set; reused")
            return
        if not force:
            raise UserError(f"{out}: contains a different data set; name another or add --force")
    _check_replaceable(out)
    with _published(out) as folder:
        splits = source.splits(settings.counts, settings.image_size, settings.seed, workers)
        content = _write_images(folder, splits, settings, workers)
        description = {"source": source.name, **origin, **content}
        description |= {"files": source.report, "skipped": source.skipped}
        text = json.dumps(description, indent=2) + "\n"
        (folder / DESCRIPTION).write_text(text, encoding="utf-8")
    _print_summary(out, source, settings)


def _write_images(
    folder: Path, splits: Splits, settings: Preparation, workers: int
) -> dict[str, object]:
    """Write all images; return the content hash and the channel statistics over train."""
    files: list[tuple[str, np.ndarray]] = []
    for split, digits in zip(SPLIT_NAMES, (5, 5, 3), strict=True):
        images = enumerate(splits[split])
        files += [(f"{split}/image_{i:0{digits}d}.png", image) for i, image in images]
    for i, image in enumerate(splits["test"]):
        hole = draw_hole(settings.holes, settings.image_size, settings.hole_share, settings.seed, i)
        masked = np.where(hole[..., None], np.uint8(HOLE_COLOUR), image)
        files.append((f"masked_image/image_{i:03d}.png", masked))
        mask = np.where(hole, np.uint8(HOLE), np.uint8(KNOWN))
        files.append((f"mask64/mask_{i:03d}.png", mask))
    for part in (*SPLIT_NAMES, "masked_image", "mask64"):
        (folder / part).mkdir()

    digest = hashlib.sha256()

    def write(file: tuple[str, np.ndarray]) -> None:
        (folder / file[0]).write_bytes(encode_png(file[1]))

    with closing(read_ahead(write, files, workers, WRITTEN_AHEAD)) as written:
        bar = tqdm(written, total=len(files), desc="writing", unit="file")
        for (name, pixels), _ in zip(files, bar, strict=True):
            digest.update(name.encode() + b"\0" + pixels.tobytes())
    mean, std = channel_statistics(splits["train"])
    return {"content_sha256": digest.hexdigest(), "mean": mean, "std": std}


def channel_statistics(images: Iterable[np.ndarray]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, in 0..1, over all pixels of uint8 (H, W, 3).

    The sums are integers, so the result does not depend on the images' order.
    """
    count, total, squares = 0, np.zeros(3, np.int64), np.zeros(3, np.int64)
    for image in images:
        pixels = image.reshape(-1, 3).astype(np.int64)
        count += len(pixels)
        total += pixels.sum(axis=0)
        squares += (pixels**2).sum(axis=0)
    mean = total / count
    std = np.sqrt(squares / count - mean**2)
    return (mean / 255).tolist(), (std / 255).tolist()


def _check_out(out: Path, source: Path | None) -> None:
    """Raise `UserError` if `out` exists and is not a data set; it could be the user's home."""
    if source and (source.is_relative_to(out) or out.is_relative_to(source)):
        raise UserError(f"{out}: overlaps the source {source}; name another folder for --out")
    if os.path.lexists(out) and not out.is_dir():
        raise UserError(f"{out}: is not a folder; name another for --out")
    try:
        if out.is_dir() and any(out.iterdir()) and not (out / DESCRIPTION).is_file():
            raise UserError(
                f"{out}: contains files but no {DESCRIPTION}; name a new or empty folder for --out"
            )
    except PermissionError:
        raise UserError(f"{out}: no permission to read this folder") from None


def _check_replaceable(out: Path) -> None:
    """Raise `UserError` if `out` cannot be moved, or contains a file that is not the data set's."""
    if os.path.ismount(out):
        raise UserError(f"{out}: is a mount point, which cannot be replaced; name a folder in it")
    places = (Path(place, name) for place, _, names in os.walk(out) for name in names)
    others = sorted(p for p in places if not OWN.fullmatch(p.relative_to(out).as_posix()))
    if others:
        text = "is not of the data set, with which it would be deleted; move it"
        raise UserError(f"{others[0]}: {text}, or name another folder for --out")


def _is_same(out: Path, origin: dict[str, object]) -> bool:
    """Whether `out` was made from the same source and settings and still has all its files."""
    try:
        found = json.loads((out / DESCRIPTION).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError, RecursionError):
        return False
    except OSError as error:
        raise_if_machine(error, out / DESCRIPTION)
        raise
    if not isinstance(found, dict) or any(found.get(key) != origin[key] for key in origin):
        return False
    counts = dict(found["split"])
    counts["masked_image"] = counts["mask64"] = counts["test"]
    return all(len(list((out / part).glob("*.png"))) == n for part, n in counts.items())


@contextmanager
def _published(out: Path) -> Iterator[Path]:
    """Yield a hidden folder next to `out` that becomes `out` if the block succeeds.

    An older `out` is moved aside first and deleted last, so that one of the two is always
    complete; if the block fails or is interrupted, the hidden folder is deleted.
    """
    unique = f"{os.getpid()}-{secrets.token_hex(4)}"  # process ids of containers may be equal
    short = f".{out.name[:KEPT]}.{unique}"  # stays within the system's name limit
    partial, aside = out.with_name(f"{short}.partial"), out.with_name(f"{short}.old")
    try:
        partial.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{out.parent}: cannot be written ({error.strerror or error})") from error
    try:
        yield partial
        if out.exists():
            out.rename(aside)
        try:
            partial.rename(out)
        except BaseException:
            if aside.exists():
                aside.rename(out)
            raise
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(aside, ignore_errors=True)


def _print_summary(out: Path, source: Photos | ImageFiles, settings: Preparation) -> None:
    counts = ", ".join(f"{number} {split}" for split, number in settings.counts.items())
    found = ", ".join(f"{number} {what}" for what, number in source.report.items())
    print(f"{out}: {counts} images from {source.label} ({found})")
    if source.skipped:
        print(f"skipped {len(source.skipped)} files, all named in {DESCRIPTION}; for example")
        for line in source.skipped[:SKIPPED_SHOWN]:
            print(f"  {line}")
