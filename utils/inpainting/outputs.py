"""The files that inpainting leaves for each image, and their exact names in the report.

<output>/test_results/image_{i:03d}.png      the repaired image
<output>/mask_scheduling/final_test_{i}.png  the token mask after every step
<output>/imga/final_test_{i}.png             the masked input, then the image after every step
<output>/comparison/image_{i:03d}.png        masked, inpainted, truth
<output>/animation/image_{i:03d}.gif         the image after every step, animated

With several repairs of an image each name ends in _s0, _s1, ... before its suffix. A picture of
another size than the model's is repaired in windows, which have no common token grid: it gets no
mask picture, and its steps are rounds of windows.

Each file contains a stamp, so that reruns skip finished images: two SHA-256 digests, of all
settings that affect the pixels, and of the known pixels and the hole; in a comparison a third one,
of the ground truth. It is stored as PNG text, GIF comment or WebP XMP.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from config.errors import MachineError, UserError
from config.schema import Config, DecodingConfig
from utils.io.files import atomic, content_hash, make_folder
from utils.io.images import HOLE_COLOUR, opened, read_image
from utils.io.messages import note_once
from utils.io.pictures import comparison_strip, encode_animation, image_grid, mask_grid

if TYPE_CHECKING:
    import torch  # takes seconds

    from utils.data.datasets import InpaintingItem

RESULTS, MASKS, STEPS = "test_results", "mask_scheduling", "imga"
COMPARISON, ANIMATION = "comparison", "animation"
FOLDERS = (RESULTS, MASKS, STEPS, COMPARISON, ANIMATION)
MANIFEST = "manifest.json"
KEY = "maskgit"  # of the text in a PNG
OUTPUT_ONLY = {  # keys of decoding that do not affect the result's pixels
    *("step_pictures", "comparison", "animation", "batch_size", "samples"),
}
ANIMATION_SIDES = {"gif": 65_535, "webp": 16_383}  # most pixels along a side
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
        "dtype": str(dtype).removeprefix("torch."),
        **_not_in_weights(config),
    }


def _not_in_weights(config: Config) -> dict[str, dict[str, Any]]:
    """Settings that change pixels; our weights state them, other files leave them to the config."""
    found: dict[str, dict[str, Any]] = {}
    if config.tokenizer_weights.suffix != ".safetensors":
        found["tokenizer"] = {"norm": config.tokenizer.norm}
    if config.transformer_weights.suffix != ".safetensors":
        found["transformer"] = {"num_heads": config.transformer.num_heads}
    return found


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


def comparison_stamp(stamp: str, truth: np.ndarray | None) -> str:
    """The stamp of a comparison, which shows the ground truth (H, W, 3) too, if it is known."""
    return stamp if truth is None else stamp + hashlib.sha256(truth.tobytes()).hexdigest()[:DIGITS]


def read_stamp(path: Path) -> str | None:
    """The stamp of a picture; None if it has none, or is missing or damaged."""
    try:
        with opened(path, str(path)) as image:
            found = image.info.get(KEY) or image.info.get("comment") or image.info.get("xmp")
            image.verify()  # the stamp of a PNG stands before its pixels, which may be cut off
    except MachineError:
        raise
    except UserError:
        return None
    return found.decode("ascii", "replace") if isinstance(found, bytes) else found


def is_unstamped(path: Path) -> bool:
    """Whether a path has a whole picture, but not one that this program wrote as a PNG."""
    try:
        return KEY not in read_image(path, str(path)).info
    except MachineError:
        raise
    except UserError:  # missing or damaged
        return False


def save_stamped_png(
    path: Path, image: np.ndarray, stamp: str, profile: bytes | None = None, level: int = -1
) -> None:
    """Write a PNG (H, W, 3) uint8 with its stamp and colour profile, wholly or not at all.

    level: of the compression; 1 is four times as fast as the default, a fifth larger.
    """
    text, buffer = PngInfo(), io.BytesIO()
    text.add_text(KEY, stamp)
    options = {"pnginfo": text, "icc_profile": profile, "compress_level": level}
    Image.fromarray(image).save(buffer, format="PNG", **options)
    with atomic(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


@dataclass(frozen=True)
class Repair:
    """One decoded repair of one image."""

    item: InpaintingItem
    sample: int  # which repair of its image, from 0
    stamp: str
    images: Sequence[np.ndarray]
    """The image after every step that is shown, the result last, uint8 (H, W, 3)."""
    token_masks: np.ndarray | None
    """The masks after every step, (T, N) bool; None where there is no one token grid."""
    truth: np.ndarray | None


class Outputs:
    """Names and writes the files of a job's images below one folder."""

    def __init__(self, folder: Path, settings: DecodingConfig, image_size: int) -> None:
        self.folder, self.settings, self.image_size = folder, settings, image_size

    def make_folders(self) -> None:
        """Make the folders that the settings ask for. Raises `UserError` where that fails."""
        for name in self._folders():
            make_folder(self.folder / name)

    @property
    def shows_steps(self) -> bool:
        """Whether images between the first and the last step are wanted."""
        return self.settings.step_pictures or self.settings.animation != "none"

    def is_animated(self, item: InpaintingItem) -> bool:
        """Whether an image gets an animation; a note says so where it is too large for one."""
        kind = self.settings.animation
        if kind == "none":
            return False
        side = ANIMATION_SIDES[kind]
        fits = max(item.hole.shape) <= side
        if not fits:
            height, width = item.hole.shape
            text = f"{item.name}: no animation; {width} x {height} pixels, {kind} has up to {side}"
            note_once(f"too large for {kind}", text)
        return fits

    def result_name(self, index: int, sample: int) -> str:
        return f"image_{index:03d}{self._suffix(sample)}.png"

    def is_done(self, item: InpaintingItem, stamp: str, truth: np.ndarray | None) -> bool:
        """Whether every file of an image exists and has this stamp, the comparison its own."""
        others = {COMPARISON: comparison_stamp(stamp, truth)}
        return all(
            read_stamp(path) == others.get(folder, stamp)
            for sample in range(self.settings.samples)
            for folder, path in self._paths(item, sample).items()
        )

    def write(self, repair: Repair) -> None:
        """Write all files of one repair, the result last: where it is, the others are."""
        paths = self._paths(repair.item, repair.sample)
        image, hole, steps = repair.item.image, repair.item.hole, self.settings.total_iter
        masked = np.where(hole[..., None], np.uint8(HOLE_COLOUR), image)  # inputs may not be grey
        result, profile = repair.images[-1], repair.item.profile
        if MASKS in paths:
            grid = mask_grid(repair.token_masks, steps)
            save_stamped_png(paths[MASKS], grid, repair.stamp)
        if STEPS in paths:
            grid = image_grid([masked, *repair.images], steps)
            save_stamped_png(paths[STEPS], grid, repair.stamp, profile, level=1)
        if COMPARISON in paths:
            strip = comparison_strip(masked, result, repair.truth)
            stamp = comparison_stamp(repair.stamp, repair.truth)
            save_stamped_png(paths[COMPARISON], strip, stamp, profile, level=1)
        if ANIMATION in paths:
            kind = self.settings.animation
            content = encode_animation([masked, *repair.images], kind, repair.stamp, profile)
            with atomic(paths[ANIMATION]) as temporary:
                temporary.write_bytes(content)
        save_stamped_png(paths[RESULTS], result, repair.stamp, profile)

    def _folders(self) -> list[str]:
        """Names of the folders that the settings ask for."""
        settings = self.settings
        wanted = {RESULTS: True, MASKS: settings.step_pictures, STEPS: settings.step_pictures}
        wanted |= {COMPARISON: settings.comparison, ANIMATION: settings.animation != "none"}
        return [name for name in FOLDERS if wanted[name]]

    def _paths(self, item: InpaintingItem, sample: int) -> dict[str, Path]:
        """Folder name -> path of every file of one repair."""
        result = self.result_name(item.index, sample)
        final = f"final_test_{item.index}{self._suffix(sample)}.png"
        animation = str(Path(result).with_suffix(f".{self.settings.animation}"))
        names = {MASKS: final, STEPS: final, ANIMATION: animation}
        left_out = set() if self.is_animated(item) else {ANIMATION}
        if item.hole.shape != (self.image_size, self.image_size):
            left_out |= {MASKS, STEPS}
        return {
            folder: self.folder / folder / names.get(folder, result)
            for folder in self._folders()
            if folder not in left_out
        }

    def _suffix(self, sample: int) -> str:
        return f"_s{sample}" if self.settings.samples > 1 else ""
