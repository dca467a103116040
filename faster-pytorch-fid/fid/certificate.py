"""A score's certificate: a JSON file that says what was computed from what, and its verification.

Paths in it are relative to its own folder, so images and certificate can move together.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import scipy
import torch

from fid import MAX_BOOTSTRAP_SAMPLES, METRICS, Settings
from fid.features import BACKENDS
from fid.files import ScoreError, read_json, replacing, sha256_of_file
from fid.images import FILTERS, ImageSet
from fid.inputs import Source
from fid.metrics import kind_of
from fid.scoring import Outcome, notes

FORMAT = 1
RELATIVE_TOLERANCE = 1e-4  # next to that of the number's kind
PATHS = ("predicted_path", "gt_path", "mask_path", "weights")
ALL_PATHS = (*PATHS, "train_path")
SETTINGS = ("features", "dims", "metrics", "bootstrap_samples", "legacy", "seed", "batch_size")
LATER_SETTINGS = {"recursive": False, "train_path": None, "resize": None}  # once there were none


def build_certificate(settings: Settings, outcome: Outcome, folder: Path) -> dict[str, Any]:
    """Everything that the score depends on; `folder` is where the certificate will lie."""
    backend, inputs = outcome.backend, outcome.inputs
    counts = outcome.counts
    return {
        "format": FORMAT,
        "score_name": backend.distance,
        "scores": outcome.scores,
        "notes": notes(outcome),
        "route": outcome.route,
        "kernel_subset_size": outcome.subset_size,
        "predicted": _described(inputs.predicted, counts[0], folder),
        "reference": _described(inputs.reference, counts[1], folder),
        "masks": _described(inputs.masks, None, folder),
        "train": _described(inputs.train, None, folder),
        "weights_sha256": backend.weights_sha256,
        "dims": backend.dims,
        "resize": backend.resize,
        "settings": {name: getattr(settings, name) for name in (*SETTINGS, *LATER_SETTINGS)}
        | {name: _relative(getattr(settings, name), folder) for name in ALL_PATHS},
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


def write_certificate(path: Path, certificate: dict[str, Any]) -> None:
    """Write the JSON at once or not at all."""
    with replacing(path) as file:
        file.write(json.dumps(certificate, indent=2, allow_nan=False).encode() + b"\n")


def read_certificate(path: Path) -> dict[str, Any]:
    """Read a certificate; its paths come back usable from the current folder."""
    certificate = read_json(path)
    if not isinstance(certificate, dict) or certificate.get("format") != FORMAT:
        raise ScoreError(f"{path}: not a score certificate of format {FORMAT}")
    expected = {"scores", "predicted", "reference", "weights_sha256", "settings"}
    missing = expected - certificate.keys()
    settings = certificate.get("settings")
    missing |= {*SETTINGS, *PATHS} - (settings.keys() if isinstance(settings, dict) else set())
    if missing:
        raise ScoreError(f"{path}: {sorted(missing)[0]!r} is missing")
    certificate["settings"] = LATER_SETTINGS | settings
    _check_types(path, certificate)
    for name in ALL_PATHS:
        if certificate["settings"][name] is not None:
            certificate["settings"][name] = str(path.parent / certificate["settings"][name])
    return certificate


def _check_types(path: Path, certificate: dict[str, Any]) -> None:
    """Refuse a certificate whose values the scorer cannot have written."""
    settings, scores = certificate["settings"], certificate["scores"]
    fits = {
        "scores": isinstance(scores, dict) and all(map(_is_number, scores.values())),
        "predicted": isinstance(certificate["predicted"], dict),
        "reference": isinstance(certificate["reference"], dict),
        "masks": isinstance(certificate.get("masks"), dict | None),
        "features": settings["features"] in tuple(BACKENDS),
        "metrics": isinstance(settings["metrics"], list)
        and all(name in METRICS for name in settings["metrics"]),
        "legacy": isinstance(settings["legacy"], bool),
        "recursive": isinstance(settings["recursive"], bool),
        "dims": isinstance(settings["dims"], int | None),
    }
    fits |= {name: isinstance(settings[name], str | None) for name in ALL_PATHS}
    fits["resize"] = settings["resize"] is None or _is_size(settings["resize"])
    ranges = {
        "bootstrap_samples": range(1, MAX_BOOTSTRAP_SAMPLES + 1),
        "batch_size": range(1, 2**32),
        "seed": range(2**32),
    }
    fits |= {k: type(settings[k]) is int and settings[k] in r for k, r in ranges.items()}
    for name, fit in fits.items():
        if not fit:
            raise ScoreError(f"{path}: {name!r} has a value that no certificate can have")


def _is_size(value: object) -> bool:
    is_list = isinstance(value, list) and len(value) == 3
    return (
        is_list
        and all(type(side) is int and side > 0 for side in value[:2])
        and value[2] in FILTERS
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def tolerance(key: str, value: float) -> float:
    """By how much a number of that key may differ where nothing but the machine does."""
    return kind_of(key).tolerance + RELATIVE_TOLERANCE * abs(value)


def differences(stated: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """One line for everything in which two certificates disagree, beyond rounding."""
    lines = []
    for part in ("predicted", "reference", "masks", "train"):
        for key in ("n", "sha256"):
            old, new = ((c.get(part) or {}).get(key) for c in (stated, found))
            if old != new:
                lines.append(f"{part} {key}: certificate {old}, found {new}")
    for key in ("weights_sha256", "dims", "resize", "route", "kernel_subset_size"):
        if stated.get(key) != found.get(key):
            lines.append(f"{key}: certificate {stated.get(key)}, found {found.get(key)}")
    for key in sorted({*stated["scores"], *found["scores"]}):
        old, new = stated["scores"].get(key), found["scores"].get(key)
        if old is None or new is None or abs(old - new) > tolerance(key, old):
            lines.append(f"{key}: certificate {old}, recomputed {new}")
    return lines


def _described(source: Source | None, count: int | None, folder: Path) -> dict[str, Any] | None:
    if source is None:
        return None
    path = source.path if isinstance(source, ImageSet) else source
    return {
        "path": _relative(str(path), folder),
        "kind": "images" if isinstance(source, ImageSet) else "statistics",
        "n": len(source) if isinstance(source, ImageSet) else count,
        "sha256": source.sha256() if isinstance(source, ImageSet) else sha256_of_file(source),
    }


def _relative(path: str | None, folder: Path) -> str | None:
    if path is None:
        return None
    try:
        found = os.path.relpath(path, folder)
        if os.path.realpath(folder / found) == os.path.realpath(path):
            return found
        return os.path.relpath(os.path.realpath(path), os.path.realpath(folder))  # past a link
    except ValueError:  # another drive on Windows
        return os.path.abspath(path)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return f"cpu ({platform.processor() or platform.machine()})"
