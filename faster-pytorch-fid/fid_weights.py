"""Find, download and check the FID InceptionV3's weight file.

The file is the public release of pytorch-fid; its name carries the first 8 hex digits of its
SHA-256. A download is written to `NAME.part`, goes on where an earlier one stopped (HTTP Range), is
checked, and only then takes the file's name.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import sys
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

import torch
from fid_errors import ScoreError
from torch import Tensor

FID_WEIGHTS_URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)
FID_HASH_PREFIX = "6726825d"
TIMEOUT_SECONDS = 30
CHUNK_BYTES = 1 << 20
HASH_IN_NAME = re.compile(r"-([0-9a-f]{8,64})\.pth$")


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def default_weights_dir() -> Path:
    """Where torch.hub keeps checkpoints (moves with TORCH_HOME)."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def find_weights(given: str | None, folder: Path, url: str = FID_WEIGHTS_URL) -> Path:
    """The weight file: the given one, the one in the cache folder, or a fresh download into it."""
    if given is not None:
        path = Path(given)
        if not path.is_file():
            raise ScoreError(f"{path}: no such weight file")
        return path
    path = folder / url.rpartition("/")[2]
    if not path.is_file():
        download(url, path)
    return path


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """Tensors by name and the file's SHA-256; only tensors are unpickled, never code.

    Raises:
        ScoreError: the hash in the file's name is another one, or torch cannot read the file.
    """
    sha256 = sha256_of_file(path)
    named = HASH_IN_NAME.search(path.name)
    if named and not sha256.startswith(named[1]):
        raise ScoreError(
            f"{path}: wrong or truncated: its sha256 begins {sha256[:8]}, its name says "
            f"{named[1]}; delete it to have it downloaded again"
        )
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, OSError):
        weights = None
    if not isinstance(weights, dict) or not all(isinstance(t, Tensor) for t in weights.values()):
        raise ScoreError(
            f"{path}: not a PyTorch weight file or truncated (sha256 begins {sha256[:8]}, the FID "
            f"weights' begins {FID_HASH_PREFIX})"
        )
    return weights, sha256


def download(url: str, target: Path) -> None:
    """Fetch `url` to `target`, resuming `target.part`, and check the hash the file name carries.

    Raises:
        ScoreError: no network, a broken transfer (the part stays for the next try), or a file
            with another hash (deleted).
    """
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        print(f"downloading {url} to {target}", file=sys.stderr)
        _fetch(url, part)
    except (OSError, HTTPException) as error:  # urllib's URLError is an OSError
        reason = getattr(error, "reason", None) or error
        raise ScoreError(
            f"cannot download the weights ({reason}): fetch {url} by hand and put it at {target}, "
            "or name the file with --weights"
        ) from error
    sha256 = sha256_of_file(part)
    expected = HASH_IN_NAME.search(target.name)
    if expected and not sha256.startswith(expected[1]):
        part.unlink()
        raise ScoreError(
            f"{url}: the download's sha256 begins {sha256[:8]}, expected {expected[1]}; it was "
            "deleted, run again or name a file with --weights"
        )
    os.replace(part, target)


def _fetch(url: str, part: Path) -> None:
    """Append what is missing of `url` to `part`; start over when the server cannot resume."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing after `have`: the part is whole, its hash will tell
            return
        raise
    with response, open(part, "ab" if response.status == 206 else "wb") as file:
        expected = response.headers.get("Content-Length")
        received = 0
        while chunk := response.read(CHUNK_BYTES):
            file.write(chunk)
            received += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    if expected is not None and received < int(expected):
        raise OSError(f"the connection broke after {have + received} bytes")
