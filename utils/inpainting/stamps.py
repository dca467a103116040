"""Stamps: digests of settings and inputs in every output file, so that reruns skip finished images.

A stamp is two SHA-256 digests: of all settings that affect the pixels, and of the known pixels and
the hole. It is stored as PNG text, GIF comment or WebP XMP.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from config.errors import MachineError, UserError
from config.schema import Config
from utils.io.files import atomic, content_hash
from utils.io.images import opened

if TYPE_CHECKING:
    import torch  # takes seconds

KEY = "maskgit"  # of the text in a PNG
OUTPUT_ONLY = {  # keys of decoding that do not affect the result's pixels
    *("step_pictures", "comparison", "animation", "batch_size", "samples"),
}
DIGITS = 32  # of each digest, in hexadecimal; 128 bits


def settings_of(config: Config, dtype: torch.dtype) -> dict[str, Any]:
    """Everything besides the image that the pixels of its repair depend on, as plain data."""
    return {
        "seed": config.seed,
        "tokenizer_sha256": content_hash([config.tokenizer_weights]),
        "transformer_sha256": content_hash([config.transformer_weights]),
        "decoding": config.decoding.model_dump(mode="json", exclude=OUTPUT_ONLY),
        "masking": {"mask_schedule": config.masking.mask_schedule},
        "data": config.data.model_dump(mode="json", include={"image_size", "mean", "std"}),
        "arithmetic": str(dtype).removeprefix("torch."),
    }


def settings_digest(settings: dict[str, Any]) -> str:
    """The first half of a stamp."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:DIGITS]


def input_digest(image: np.ndarray, hole: np.ndarray, profile: bytes | None = None) -> str:
    """The second half of a stamp: size, hole, known pixels and the colour profile, if any."""
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.packbits(hole).tobytes())
    digest.update(np.where(hole[..., None], np.uint8(0), image).tobytes())
    digest.update(profile or b"")
    return digest.hexdigest()[:DIGITS]


def read_stamp(path: Path) -> str | None:
    """The stamp of a picture; None if it has none, or is missing or damaged."""
    try:
        with opened(path, str(path)) as image:
            found = image.info.get(KEY) or image.info.get("comment") or image.info.get("xmp")
    except MachineError:
        raise
    except UserError:
        return None
    return found.decode("ascii", "replace") if isinstance(found, bytes) else found


def save_stamped_png(
    path: Path, image: np.ndarray, stamp: str, profile: bytes | None = None
) -> None:
    """Write a PNG (H, W, 3) uint8 with its stamp and colour profile, wholly or not at all."""
    text, buffer = PngInfo(), io.BytesIO()
    text.add_text(KEY, stamp)
    Image.fromarray(image).save(buffer, format="PNG", pnginfo=text, icc_profile=profile)
    with atomic(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def differences(before: dict[str, Any], now: dict[str, Any], where: str = "") -> list[str]:
    """Each setting that changed, as ``key before, now value``; keys are dotted."""
    found = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += differences(old, new, f"{where}{key}.")
        elif old != new:
            found.append(
                f"other {where}{key}" if "sha256" in key else f"{where}{key} {old}, now {new}"
            )
    return found
