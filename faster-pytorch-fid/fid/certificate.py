"""Report a score: its table, notes, and certificate, a JSON file that can be verified.

Paths in a certificate are relative to its folder, so images and certificate can move together.
"""

from __future__ import annotations

import datetime
import json
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import scipy
import torch

from fid.extraction import size_of
from fid.features import BACKENDS, FID_HASH_PREFIX
from fid.files import ScoreError, read_json, relative, replacing, sha256_of_file, user_path
from fid.images import ImageSet
from fid.inputs import MAX_BOOTSTRAP_SAMPLES, METRICS, PATHS, Settings, Source
from fid.metrics import KERNEL_SUBSET_SIZE
from fid.pixels import FILTERS, Size
from fid.scoring import Outcome, kind_of
from fid.statistics import has_array

FORMAT = 1
RELATIVE_TOLERANCE = 1e-4  # in addition to the metric's absolute tolerance
MAX_FLOAT = sys.float_info.max  # no score is nan or infinite
SOURCES = ("predicted", "reference", "masks", "train")
COMPARED = ("score_name", "weights_sha256", "dims", "resize", "route", "kernel_subset_size")
LATER_SETTINGS = {"recursive": False, "train_path": None, "resize": None}  # added later


def _is_size(value: Any) -> bool:
    is_list = isinstance(value, list) and len(value) == 3
    return is_list and all(map(_whole(1), value[:2])) and value[2] in FILTERS


def _whole(low: int, high: int = 2**32) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value < high  # True is an int too


def _is(kind: Any) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kind)


SETTINGS: dict[str, Callable[[Any], bool]] = {  # in a certificate, and which values are valid
    "features": lambda value: value in tuple(BACKENDS),
    "dims": _is(int | None),
    "metrics": lambda value: isinstance(value, list) and all(name in METRICS for name in value),
    "bootstrap_samples": _whole(1, MAX_BOOTSTRAP_SAMPLES + 1),
    "legacy": _is(bool),
    "seed": _whole(0),
    "batch_size": _whole(1),
    "recursive": _is(bool),
    **dict.fromkeys(PATHS, _is(str | None)),
    "predicted_path": _is(str),
    "resize": lambda value: value is None or _is_size(value),
}


def table(outcome: Outcome) -> list[str]:
    """One line per score: value, better direction and meaning; the distance has its full name."""
    key, name = outcome.backend.key("fid"), outcome.backend.distance
    if len(outcome.scores) == 1:
        return [f"{name}: {outcome.scores[key]:.4f}"]
    names = {found: f"{name if found == key else found}:" for found in outcome.scores}
    width = max(map(len, names.values()))
    lines = [f"{'score':<{width}}  {'value':>12}  better  meaning"]
    for found, value in outcome.scores.items():
        kind = kind_of(found)
        line = f"{names[found]:<{width}}  {value:>12.6g}  {kind.better:<6}  {kind.meaning}"
        lines.append(line.rstrip())
    return lines


def notes(outcome: Outcome) -> list[str]:
    """What to know before these scores are compared with others."""
    found, backend, scores = [], outcome.backend, outcome.scores
    key, dims, sha256 = backend.key, backend.dims, backend.weights_sha256
    known = [count for count in outcome.counts if count is not None]
    if known and min(known) < dims:
        found.append(
            f"{min(known)} images are fewer than the {dims} feature dimensions: the distance is "
            "biased upward, compare it only with scores of as many images"
        )
    if key("u_ids") in scores and sum(known) < 2 * dims:  # Cover 1965
        found.append(
            f"a hyperplane separates nearly any {sum(known)} images in {dims} features, so P-IDS "
            "and U-IDS are low for any images"
        )
    if key("u_ids") in scores and key("p_ids") not in scores:
        found.append("P-IDS is left out: the images do not pair with the ground truth")
    if scores.get(key("kid") + "_mean", 0) < 0:
        found.append(
            "the kernel distance may be negative near 0: it is unbiased for independent sets, and "
            "repairs that resemble their own ground truth lower it"
        )
    if outcome.route == "legacy" and f"{key('fid')}_low" in scores:
        found.append("the interval is that of the distance without --legacy")
    if outcome.subset_size not in (None, KERNEL_SUBSET_SIZE):
        found.append(f"the kernel distance is of subsets of {outcome.subset_size} images")
    sides = outcome.inputs.predicted, outcome.inputs.reference
    files = [side for side in sides if isinstance(side, Path)]
    text = f"does not say how its features were made; taken for {backend.name}, resized as here"
    found += [f"{file} {text}" for file in files if not has_array(file, "backend")]  # pytorch-fid's
    if files and key("p_ids") in scores:
        found.append(f"P-IDS takes the rows of {files[0]} for those of the other side, in order")
    found += _unequal(outcome)
    if backend.name == "inception" and not sha256.startswith(FID_HASH_PREFIX):
        found.append(
            f"not the public FID weights (sha256 begins {sha256[:8]}, theirs {FID_HASH_PREFIX})"
            ": compare only with scores of the same weights"
        )
    return found


def _unequal(outcome: Outcome) -> list[str]:
    """Notes about a number or size that differs between images and ground truth."""
    found, (count1, count2), reference = [], outcome.counts, outcome.inputs.reference
    if None not in outcome.counts and count1 != count2:
        how, more = "are compared with", ""
        if isinstance(reference, ImageSet) and len(reference) == count1:  # it repeats some
            how = "share"
            more = ", which count once in KID, precision, recall, density and coverage"
        found.append(f"{count1} images {how} {count2} of ground truth{more}")
    size1, size2 = size_of(outcome.inputs.predicted), size_of(reference)
    if None not in (size1, size2) and size1 != size2:
        found.append(
            f"the images have {size1} pixels, the ground truth {size2}: the distance is of that "
            "too (see --resize)"
        )
    return found


def build(settings: Settings, outcome: Outcome, folder: Path) -> dict[str, Any]:
    """Everything that the score depends on; `folder` is where the certificate will be written."""
    backend, counts = outcome.backend, dict(zip(SOURCES, outcome.counts, strict=False))
    stated = {name: getattr(settings, name) for name in SETTINGS}
    if not outcome.inputs.paired and isinstance(reference := outcome.inputs.reference, ImageSet):
        stated["gt_path"] = str(reference.path)  # perhaps a test_gt.csv that was found
    paths = {name: relative(stated[name], folder) for name in PATHS if stated[name] is not None}
    return {
        "format": FORMAT,
        "score_name": backend.distance,
        "scores": outcome.scores,
        "notes": notes(outcome),
        "route": outcome.route,
        "kernel_subset_size": outcome.subset_size,
        **{
            name: _described(getattr(outcome.inputs, name), counts.get(name), folder)
            for name in SOURCES
        },
        "weights_sha256": backend.weights_sha256,
        "dims": backend.dims,
        "resize": backend.resize,
        "settings": stated | paths,
        "device": _device_name(outcome.device),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "scipy": scipy.__version__,
            "pillow": PIL.__version__,
        },
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def write(path: Path, certificate: dict[str, Any]) -> None:
    """Write the JSON file atomically."""
    with replacing(path) as file:
        file.write(json.dumps(certificate, indent=2, allow_nan=False).encode() + b"\n")


def read(path: Path) -> dict[str, Any]:
    """Read a certificate; returns paths in its settings relative to the current folder.

    Raises `ScoreError` for contents that the scorer cannot have written.
    """
    certificate = read_json(path)
    if not isinstance(certificate, dict) or certificate.get("format") != FORMAT:
        raise ScoreError(f"{path}: not a score certificate of format {FORMAT}")
    missing = {"scores", "predicted", "reference", "weights_sha256"} - certificate.keys()
    settings = certificate.get("settings")
    settings = LATER_SETTINGS | (settings if isinstance(settings, dict) else {})
    if missing := missing | (SETTINGS.keys() - settings.keys()):
        raise ScoreError(f"{path}: {min(missing)!r} is missing")
    scores = certificate["scores"]
    fits = {
        "scores": isinstance(scores, dict)
        and "".join(scores).isprintable()
        and all(type(s) in (int, float) and abs(s) <= MAX_FLOAT for s in scores.values()),
        **{name: isinstance(certificate.get(name), dict | None) for name in SOURCES},
        **{name: can_be(settings[name]) for name, can_be in SETTINGS.items()},
    }
    if name := next((name for name, is_fit in fits.items() if not is_fit), None):
        raise ScoreError(f"{path}: {name!r} has a value that no certificate can have")
    places, folder = [settings[name] for name in PATHS if settings[name]], path.parent
    if path.is_symlink() and not all((folder / place).exists() for place in places):
        folder = path.resolve().parent  # perhaps they start where the link leads
    given = {name: settings[name] and user_path(f"{folder / settings[name]}") for name in PATHS}
    given["metrics"] = tuple(settings["metrics"])
    given["resize"] = settings["resize"] and Size(*settings["resize"])
    return certificate | {"settings": {name: settings[name] for name in SETTINGS} | given}


def differences(stated: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """One line for each difference between two certificates beyond rounding."""
    lines = []
    # Earlier versions stated masks that no score needs.
    for part in (part for part in SOURCES if part != "masks" or found.get(part)):
        for key in ("n", "sha256"):
            old, new = ((c.get(part) or {}).get(key) for c in (stated, found))
            if old != new:
                lines.append(f"{part} {key}: certificate {old}, found {new}")
    for key in COMPARED:
        if stated.get(key) != found.get(key):
            lines.append(f"{key}: certificate {stated.get(key)}, found {found.get(key)}")
    for key in sorted({*stated["scores"], *found["scores"]}):
        old, new = stated["scores"].get(key), found["scores"].get(key)
        rounding = kind_of(key).tolerance + RELATIVE_TOLERANCE * abs(old or 0)
        if old is None or new is None or abs(old - new) > rounding:
            lines.append(f"{key}: certificate {old}, recomputed {new}")
    return lines


def _described(source: Source | None, count: int | None, folder: Path) -> dict[str, Any] | None:
    if source is None:
        return None
    is_set = isinstance(source, ImageSet)
    return {
        "path": relative(source.path if is_set else source, folder),
        "kind": "images" if is_set else "statistics",
        "n": len(source) if is_set else count,
        "sha256": source.sha256() if is_set else sha256_of_file(source),
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({platform.processor() or platform.machine()})"
