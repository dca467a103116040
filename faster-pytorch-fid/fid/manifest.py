"""The manifest, which inpainting leaves next to its results.

`<predicted-path>/manifest.json` holds {"ground_truth": folder or csv (absolute or relative to the
manifest), "ground_truth_bytes": size of its files, "masks": folder or null, "mask_threshold":
values below are a hole, "inverted_masks": whether the others are it instead, "images": [{"image":
name, "ground_truth": name (csv: row number from 0), "mask": name}, ...]}. Only "images" is
required.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fid.files import ScoreError, note, read_json, user_path
from fid.images import ImageSet
from fid.names import MANIFEST

KEYS = {  # optional keys: what they must be
    **dict.fromkeys(("ground_truth", "masks"), (str, "a path")),
    **dict.fromkeys(("ground_truth_bytes", "mask_threshold"), (int, "a whole number")),
    "inverted_masks": (bool, "true, false"),
}


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
    for key, (kind, what) in KEYS.items():
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


def path_in(folder: Path, place: str) -> Path:
    """A path in a manifest, relative to its folder; may have been written on another system."""
    return Path(user_path(str(folder / place)))


def note_other_truth(truth: ImageSet | Path, manifest: dict[str, Any]) -> None:
    """Note if the ground truth is not what inpainting saw, e.g. after results were moved."""
    stated = manifest.get("ground_truth_bytes")
    if stated is None or isinstance(truth, Path) or truth.bytes_on_disk() == stated:
        return
    note(
        f"{truth.path}: other files than those that the repairs hid ({stated:,} bytes); were they "
        "moved? else give --gt-path"
    )
