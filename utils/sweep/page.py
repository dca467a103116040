"""One self-contained HTML page of a study: table, plots, figures, and a replay of the decoding.

Pictures are decoded once and kept in <output>/pictures; the page asks for nothing outside itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from config.errors import UserError
from utils.device import environment
from utils.inpainting.stamps import settings_digest
from utils.io.files import write_text
from utils.io.images import HOLE_COLOUR, load_rgb, save_png
from utils.pictures import (
    GAP,
    IMAGES_PER_ROW,
    MASKS_PER_ROW,
    embed,
    embed_file,
    image_grid,
    mask_grid,
    template,
    tile,
)
from utils.sweep.cells import Sweep
from utils.sweep.plan import Cell, Setting
from utils.sweep.plots import STUDY_PLOTS
from utils.sweep.tables import Table, details, grid

PAGE_TEMPLATE = "sweep.html"
PAGE_FILE = "report.html"
COMPARED, CASES = 10, 5  # images in the three-row comparison, and in each of best and worst
REPLAYED = 12  # settings that are shown step by step, the best ones
ENLARGED, MASK_ENLARGED = 2, 4  # factors of small pictures
LOSS_CURVE = "loss_curve.png"

Rows = list[tuple[str, str]]  # name and picture of each row of a comparison


class Pictures:
    """The decoding of single images, step by step, from the traces of a sweep's first seed."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep, self.inputs = sweep, sweep.inputs
        self.folder = sweep.output / "pictures"

    def masked(self, place: int) -> np.ndarray:
        """An image with its hole painted grey, whatever pixels the file has there."""
        hole = self.inputs.holes[place][..., None]
        return np.where(hole, np.uint8(HOLE_COLOUR), self.inputs.images[place])

    def frames(self, setting: Setting, place: int) -> list[np.ndarray]:
        """The masked image, then the image after every step; decoded unless a file has them."""
        cell = Cell(setting.decoding, self.sweep.seeds[0])
        key = settings_digest({"cell": cell.key(self.sweep.fixed), "place": place})
        path = self.folder / f"{key}.png"
        try:
            strip = np.asarray(load_rgb(path))
        except UserError:  # there is none, or a damaged one
            strip = np.concatenate([self.masked(place), *self._decode(cell, place)], 1)
            save_png(path, strip)
        return np.split(strip, cell.steps + 1, 1)

    def masks(self, setting: Setting, place: int) -> np.ndarray:
        """Which tokens are hidden after every step, (T, N) bool."""
        return self.sweep.trace(Cell(setting.decoding, self.sweep.seeds[0]))[1][:, place]

    def _decode(self, cell: Cell, place: int) -> list[np.ndarray]:
        decoder, decoding = self.sweep.decoder, cell.decoding
        token_ids = torch.from_numpy(self.sweep.trace(cell)[0][:, place].astype(np.int64))
        steps = [ids[None].to(self.sweep.device) for ids in token_ids]
        shown = decoder.known(decoding)
        shown = shown if shown is None else shown[place, None]
        images = decoder.inpainter.decoded_steps(steps, shown)[:, 0]
        known = self.inputs.images[place], self.inputs.holes[place]
        return [decoder.under(decoding).join(image, *known) for image in images]


def save_page(folder: Path, sweep: Sweep, table: Table) -> Path:
    """Write <folder>/report.html and return its path."""
    pictures, winner = Pictures(sweep), table.winner.setting
    ranked = _by_error(sweep, winner)
    shown = _spread(ranked, 2)
    replayed = _best_settings(table)
    evenly = np.linspace(0, len(ranked) - 1, min(COMPARED, len(ranked))).astype(int)
    compared = [sorted(ranked)[index] for index in evenly]
    figures = [(s.name, *_figure(pictures, s, shown[-1])) for s in replayed]
    curve = sweep.config.transformer_weights.parent / LOSS_CURVE
    side, tokens = sweep.config.data.image_size, sweep.config.transformer.num_tokens
    page = template(PAGE_TEMPLATE).render(
        title=table.study.title,
        caption=table.caption.removeprefix(f"{table.study.title}. "),
        table=grid(table),
        statements=table.statements,
        details=details(table),
        plots=[(name, embed_file(folder / name)) for name in STUDY_PLOTS],
        winner=winner.name,
        comparison=_rows(pictures, winner, compared),
        best=_rows(pictures, winner, ranked[:CASES]),
        worst=_rows(pictures, winner, ranked[-CASES:][::-1]),
        figures=figures,
        mask_width=MASK_ENLARGED * MASKS_PER_ROW * (round(tokens**0.5) + GAP),
        step_width=ENLARGED * IMAGES_PER_ROW * (side + GAP),
        replay=_replay(pictures, replayed, shown),
        loss_curve=embed_file(curve) if curve.exists() else None,
        config=yaml.safe_dump(sweep.config.model_dump(mode="json"), sort_keys=False),
        environment=json.dumps(environment(sweep.device), indent=1),
        provenance=json.dumps({k: v for k, v in sweep.fixed.items() if k != "data"}, indent=1),
    )
    write_text(folder / PAGE_FILE, page)
    return folder / PAGE_FILE


def _by_error(sweep: Sweep, setting: Setting) -> list[int]:
    """Places of the images with a hole, the best repaired first; of all where none has one."""
    psnr = sweep.rows_of(setting.decoding)[0]["hole_psnr"]
    with_hole = [place for place, value in enumerate(psnr) if value is not None]
    return sorted(with_hole, key=lambda place: -psnr[place]) or list(range(len(psnr)))


def _spread(ranked: Sequence[int], count: int) -> list[int]:
    """The first, last and middle ones of a ranking, each once."""
    middle = (len(ranked) - count) // 2
    chosen = [*ranked[:count], *ranked[-count:], *ranked[max(0, middle) : middle + count]]
    return list(dict.fromkeys(chosen))


def _best_settings(table: Table) -> list[Setting]:
    """The best-scoring settings, as many as are replayed, in the table's order."""
    results = sorted(table.results.values(), key=lambda result: result.score.mean)[:REPLAYED]
    kept = {result.setting for result in results}
    return [setting for setting in table.study.settings if setting in kept]


def _rows(pictures: Pictures, setting: Setting, places: Sequence[int]) -> Rows:
    """Masked, inpainted and true images, one picture for each of the three rows."""
    rows = {
        "masked": [pictures.masked(place) for place in places],
        "inpainted": [pictures.frames(setting, place)[-1] for place in places],
        "truth": [pictures.inputs.truths[place] for place in places],
    }
    return [
        (name, embed(_enlarged(tile(images, len(images), len(images)))))
        for name, images in rows.items()
    ]


def _figure(pictures: Pictures, setting: Setting, place: int) -> tuple[str, str]:
    """Mask evolution and images by step, in the report's form."""
    steps = setting.decoding.total_iter
    masks = mask_grid(list(pictures.masks(setting, place)), steps)
    return embed(masks), embed(image_grid(pictures.frames(setting, place), steps))


def _replay(
    pictures: Pictures, settings: Sequence[Setting], places: Sequence[int]
) -> dict[str, Any]:
    """What the page's slider needs: for each setting and image a strip of frames and of masks."""
    side = round(pictures.sweep.config.transformer.num_tokens**0.5)
    strips = []
    for setting in settings:
        for place in places:
            frames, masks = pictures.frames(setting, place), pictures.masks(setting, place)
            tiles = np.where(masks, 0, 255).astype(np.uint8).reshape(-1, side, side)
            mask = np.repeat(np.concatenate(list(tiles), 1)[..., None], 3, 2)
            counts = masks.sum(1).tolist()
            strips.append([embed(np.concatenate(frames, 1)), embed(mask), counts])
    return {
        "settings": [setting.name for setting in settings],
        "images": [f"image {pictures.inputs.indices[place]}" for place in places],
        "side": pictures.sweep.config.data.image_size,
        "grid": side,
        "strips": strips,  # setting by setting, image by image
    }


def _enlarged(image: np.ndarray) -> np.ndarray:
    return image.repeat(ENLARGED, 0).repeat(ENLARGED, 1)
