"""Pictures of docs/decoding.md: ``python -m docs.draw_decoding``; no trained weights needed.

A stand-in for the transformer predicts a photograph's own tokens, with more confidence the nearer
known tokens are. Which tokens are decided when comes from models/decode.py itself.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor

from config.schema import DecodingConfig
from models.decode import decode
from models.masking import MASK_SCHEDULES, gamma, token_mask_from_holes
from utils.cli import ArgumentParser, first_line, run
from utils.data.holes import draw_hole
from utils.data.photos import photo_path
from utils.data.sources import square_crop
from utils.io.images import HOLE_COLOUR, load_rgb
from utils.io.pictures import enlarged, tile
from utils.pages import save_figure, subplots

FOLDER = Path(__file__).with_name("pictures")
SIDE, GRID, STEPS = 64, 16, 10
FACE = (120, 20, 400, 300)  # of Chelsea, a cat by Stefan van der Walt, CC0
HOLE_SHARE, HOLE_INDEX = 0.3, 1

ROWS = {
    "listing, cosine": {"rule": "listing"},
    "maskgit, cosine": {},
    "maskgit, linear": {"mask_schedule": "linear"},
    "maskgit, square": {"mask_schedule": "square"},
    "order random": {"order": "random"},
    "order halton": {"order": "halton"},
}


def curves() -> None:
    """The schedules, and the share of tokens hidden after each step with both rules."""
    figure, (left, right) = subplots(1, 2, figsize=(9, 3.6))
    r = torch.linspace(0, 1, 200, dtype=torch.float64)
    for name in MASK_SCHEDULES:
        left.plot(r, gamma(name, r), label=name)
    steps = torch.arange(STEPS + 1)
    for name in ("cosine", "linear", "square"):
        maskgit = gamma(name, steps.double() / STEPS)
        listing = gamma("cosine", 1 - maskgit)  # the model's own gamma on top
        (line,) = right.plot(steps, maskgit, marker=".", label=name)
        right.plot(steps, listing, marker=".", ls="--", color=line.get_color())
    left.set(title="mask schedules", xlabel="progress r", ylabel="share that stays hidden")
    right.set(title=f"{STEPS} steps: listing (dashed) and maskgit", xlabel="step")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    save_figure(FOLDER / "schedules.png", figure, dpi=100)


def masks() -> None:
    """A photograph as its tokens are decided, one row per entry of `ROWS`."""
    image = square_crop(load_rgb(photo_path("chelsea.png")).crop(FACE), SIDE)
    hole = draw_hole("lab", SIDE, (HOLE_SHARE, HOLE_SHARE), seed=0, image_index=HOLE_INDEX)
    token_mask = token_mask_from_holes(torch.from_numpy(hole)[None], GRID)
    figure, axes = subplots(len(ROWS), 1, figsize=(9, 1.05 * len(ROWS)))
    for place, (name, changes) in zip(axes, ROWS.items(), strict=True):
        frames = [_shown(image, mask) for mask in [token_mask, *walk(token_mask, changes)]]
        place.imshow(tile(frames, len(frames), len(frames)), interpolation="nearest")
        place.set_ylabel(name.replace(", ", "\n"), rotation=0, ha="right", va="center", fontsize=9)
        place.set(xticks=[], yticks=[])
        place.spines[:].set_visible(False)
    save_figure(FOLDER / "decoding.png", figure, dpi=100)


def walk(token_mask: Tensor, changes: dict[str, str]) -> list[Tensor]:
    """Token masks after every step, with a stand-in for the transformer."""
    settings = DecodingConfig.model_validate(
        {"rule": "maskgit", "total_iter": STEPS, "choice_temperature": 0.5, **changes}
    )
    token_ids = torch.arange(GRID**2)[None]

    def logits_of(masked_ids: Tensor, hidden: Tensor) -> Tensor:
        depth = torch.from_numpy(distance_transform_edt(hidden.view(GRID, GRID).numpy()))
        sure = 12 / depth.flatten()[hidden[0]].float()
        logits = torch.zeros(len(sure), GRID**2)
        logits[torch.arange(len(sure)), token_ids[hidden]] = sure
        return logits

    steps = decode(
        logits_of,
        token_ids,
        token_mask,
        settings,
        model_schedule="cosine",
        mask_token_id=GRID**2,
        seed=0,
        image_ids=torch.zeros(1, dtype=torch.long),
    )
    return [step.hidden for step in steps]


def _shown(image: np.ndarray, mask: Tensor) -> np.ndarray:
    """The photograph with hidden tokens grey, enlarged."""
    hidden = enlarged(mask.view(GRID, GRID).numpy(), SIDE // GRID)
    return enlarged(np.where(hidden[..., None], np.uint8(HOLE_COLOUR), image))


def main() -> None:
    ArgumentParser(description=first_line(__doc__)).parse_args()
    curves()
    masks()
    print(f"wrote {FOLDER.relative_to(Path.cwd())}")


if __name__ == "__main__":
    run(main)
