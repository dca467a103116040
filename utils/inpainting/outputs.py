"""The files that inpainting leaves for each image, and their exact names (spec section 6).

<output>/test_results/image_{i:03d}.png      the repaired image
<output>/mask_scheduling/final_test_{i}.png  the token mask after every step
<output>/imga/final_test_{i}.png             the masked input, then the image after every step
<output>/comparison/image_{i:03d}.png        masked, inpainted, truth
<output>/animation/image_{i:03d}.gif         the image after every step, animated

With several repairs of an image each name ends in _s0, _s1, ... before its suffix. A picture of
another size than the model's is repaired in windows, which have no common token grid: it gets no
mask picture, and its steps are rounds of windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from config.schema import DecodingConfig
from utils.data.datasets import InpaintingItem
from utils.inpainting.stamps import read_stamp, save_stamped_png
from utils.io.files import atomic, make_folder
from utils.io.images import HOLE_COLOUR
from utils.pictures import comparison_strip, encode_animation, image_grid, mask_grid

RESULTS, MASKS, STEPS = "test_results", "mask_scheduling", "imga"
COMPARISON, ANIMATION = "comparison", "animation"
FOLDERS = (RESULTS, MASKS, STEPS, COMPARISON, ANIMATION)
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Repair:
    """One decoded repair of one image."""

    item: InpaintingItem
    sample: int  # which repair of its image, from 0
    stamp: str  # digest of settings and inputs (utils/inpainting/stamps.py)
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
        wanted = {RESULTS: True, MASKS: self.settings.step_pictures}
        wanted |= {STEPS: self.settings.step_pictures, COMPARISON: self.settings.comparison}
        wanted |= {ANIMATION: self.settings.animation != "none"}
        for name in (name for name, is_wanted in wanted.items() if is_wanted):
            make_folder(self.folder / name)

    @property
    def shows_steps(self) -> bool:
        """Whether images between the first and the last step are wanted."""
        return self.settings.step_pictures or self.settings.animation != "none"

    def result_name(self, index: int, sample: int) -> str:
        return f"image_{index:03d}{self._suffix(sample)}.png"

    def is_done(self, item: InpaintingItem, stamp: str) -> bool:
        """Whether every file of an image exists and has this stamp."""
        samples = range(self.settings.samples)
        paths = [path for sample in samples for path in self._paths(item, sample).values()]
        return all(read_stamp(path) == stamp for path in paths)

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
            save_stamped_png(paths[STEPS], grid, repair.stamp, profile)
        if COMPARISON in paths:
            strip = comparison_strip(masked, result, repair.truth)
            save_stamped_png(paths[COMPARISON], strip, repair.stamp, profile)
        if ANIMATION in paths:
            kind = self.settings.animation
            content = encode_animation([masked, *repair.images], kind, repair.stamp, profile)
            with atomic(paths[ANIMATION]) as temporary:
                temporary.write_bytes(content)
        save_stamped_png(paths[RESULTS], result, repair.stamp, profile)

    def _paths(self, item: InpaintingItem, sample: int) -> dict[str, Path]:
        """Folder name -> path of every file of one repair."""
        settings, suffix = self.settings, self._suffix(sample)
        result, final = self.result_name(item.index, sample), f"final_test_{item.index}{suffix}.png"
        names = {RESULTS: result}
        if settings.step_pictures and item.hole.shape == (self.image_size, self.image_size):
            names |= {MASKS: final, STEPS: final}
        if settings.comparison:
            names[COMPARISON] = result
        if settings.animation != "none":
            names[ANIMATION] = str(Path(result).with_suffix(f".{settings.animation}"))
        return {folder: self.folder / folder / name for folder, name in names.items()}

    def _suffix(self, sample: int) -> str:
        return f"_s{sample}" if self.settings.samples > 1 else ""
