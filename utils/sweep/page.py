"""The self-contained HTML page of a study: table, plot, figures and a replay of the decoding.

Pictures are decoded once and cached in <output>/pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from config.errors import MachineError, UserError
from utils.device import environment
from utils.inpainting.outputs import settings_digest
from utils.io.images import HOLE_COLOUR, load_rgb, save_png
from utils.io.pictures import comparison, image_grid, mask_grid, mask_images
from utils.pages import about_run, embed, embed_file, save_page
from utils.sweep.cells import Sweep
from utils.sweep.plan import Cell, Setting
from utils.sweep.tables import PLOT, Table

COMPARED, CASES = 10, 5  # images in the three-row comparison, and in each of best and worst
REPLAYED = 12  # best settings, shown step by step
LOSS_CURVE = "loss_curve.png"


class Pictures:
    """Single images after each decode step, from the traces of a sweep's first seed."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep, self.inputs = sweep, sweep.inputs
        self.folder = sweep.output / "pictures"

    def masked(self, place: int) -> np.ndarray:
        """An image with its hole painted grey, whatever pixels the file has there."""
        hole = self.inputs.holes[place][..., None]
        return np.where(hole, np.uint8(HOLE_COLOUR), self.inputs.images[place])

    def frames(self, setting: Setting, place: int) -> list[np.ndarray]:
        """The masked image, then the image after every step; cached as one PNG strip."""
        cell = Cell(setting.decoding, self.sweep.seeds[0])
        key = settings_digest({"cell": cell.key(self.sweep.fixed), "place": place})
        path = self.folder / f"{key}.png"
        try:
            strip = np.asarray(load_rgb(path))
        except MachineError:
            raise
        except UserError:  # missing or damaged
            strip = np.concatenate([self.masked(place), *self._decode(cell, place)], 1)
            save_png(path, strip)
        return np.split(strip, cell.steps + 1, 1)

    def masks(self, setting: Setting, place: int) -> np.ndarray:
        """Which tokens are hidden after every step, (T, N) bool."""
        return self.sweep.trace(Cell(setting.decoding, self.sweep.seeds[0]))[1][:, place]

    def compared(self, setting: Setting, places: Sequence[int]) -> list[tuple[str, str]]:
        """Names and embedded pictures of the rows masked, inpainted and truth."""
        rows = comparison(
            [self.masked(place) for place in places],
            [self.frames(setting, place)[-1] for place in places],
            [self.inputs.truths[place] for place in places],
        )
        return [(name, embed(row)) for name, row in rows.items()]

    def _decode(self, cell: Cell, place: int) -> list[np.ndarray]:
        decoder = self.sweep.decoder
        token_ids = torch.from_numpy(self.sweep.trace(cell)[0][:, place].astype(np.int64))
        steps = [ids[None].to(self.sweep.device) for ids in token_ids]
        shown = decoder.known(cell)
        shown = shown if shown is None else shown[place, None]
        images = decoder.inpainter.decoded_steps(steps, shown)[:, 0]
        known = self.inputs.images[place], self.inputs.holes[place]
        return [decoder.inpainter_for(cell).join(image, *known) for image in images]


def save_study_page(folder: Path, sweep: Sweep, table: Table) -> Path:
    """Write <folder>/report.html and return its path."""
    best_first = sorted(table.results, key=lambda result: result.score.mean)
    replayed = [result.setting for result in best_first[:REPLAYED]]
    pictures, winner = Pictures(sweep), replayed[0]
    ranked = _by_error(sweep, winner)
    shown = _spread(ranked, 2)
    evenly = np.linspace(0, len(ranked) - 1, min(COMPARED, len(ranked))).astype(int)
    curve = sweep.config.transformer_weights.parent / LOSS_CURVE
    weights = {key: value for key, value in sweep.fixed.items() if key != "data"}
    return save_page(
        folder / "report.html",
        "sweep.html",
        title=table.study.title,
        caption=table.caption.removeprefix(f"{table.study.title}. "),
        table=table.grid,
        statements=table.statements,
        details=table.details,
        plot=embed_file(folder / PLOT),
        winner=winner.name,
        comparison=pictures.compared(winner, [sorted(ranked)[index] for index in evenly]),
        best=pictures.compared(winner, ranked[:CASES]),
        worst=pictures.compared(winner, ranked[-CASES:][::-1]),
        figures=[(s.name, *_figure(pictures, s, shown[-1])) for s in replayed],
        replay=_replay(pictures, replayed, shown),
        loss_curve=embed_file(curve) if curve.exists() else None,
        **about_run(sweep.config, environment(sweep.device), weights),
    )


def _by_error(sweep: Sweep, setting: Setting) -> list[int]:
    """Positions of images with a hole, highest PSNR first; all images if none has a hole."""
    psnr = sweep.rows_of(setting.decoding)[0]["hole_psnr"]
    with_hole = [place for place, value in enumerate(psnr) if value is not None]
    return sorted(with_hole, key=lambda place: -psnr[place]) or list(range(len(psnr)))


def _spread(ranked: Sequence[int], count: int) -> list[int]:
    """The first, last and middle `count` of a ranking, without duplicates."""
    middle = (len(ranked) - count) // 2
    chosen = [*ranked[:count], *ranked[-count:], *ranked[max(0, middle) : middle + count]]
    return list(dict.fromkeys(chosen))


def _figure(pictures: Pictures, setting: Setting, place: int) -> tuple[str, str]:
    """Token masks and images by step, laid out as in the report."""
    steps = setting.decoding.total_iter
    masks = mask_grid(pictures.masks(setting, place), steps)
    return embed(masks), embed(image_grid(pictures.frames(setting, place), steps))


def _replay(
    pictures: Pictures, settings: Sequence[Setting], places: Sequence[int]
) -> dict[str, Any]:
    """Data of the replay: strips of frames and masks for each setting and image."""
    side = round(pictures.sweep.config.transformer.num_tokens**0.5)
    strips = []
    for setting in settings:
        for place in places:
            frames, masks = pictures.frames(setting, place), pictures.masks(setting, place)
            strip = np.concatenate(list(mask_images(masks)), 1)
            counts = masks.sum(1).tolist()
            strips.append([embed(np.concatenate(frames, 1)), embed(strip), counts])
    return {
        "settings": [setting.name for setting in settings],
        "images": [f"image {pictures.inputs.indices[place]}" for place in places],
        "side": pictures.sweep.config.data.image_size,
        "grid": side,
        "strips": strips,  # setting by setting, image by image
    }
