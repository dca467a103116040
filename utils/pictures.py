"""Pictures and pages: grids, comparison strips, loss curves (spec 5 and 6), HTML templates.

Images are (H, W, 3) uint8, token masks (N,) bool, True = hidden.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from utils.io.colour import PROFILE, to_srgb
from utils.io.files import atomic
from utils.io.images import encode_png

if TYPE_CHECKING:
    import jinja2
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).with_name("templates")
MASKS_PER_ROW = 10
IMAGES_PER_ROW = 7
GAP = 2  # pixels between tiles
FRAME_MS, LAST_FRAME_MS = 300, 1500  # of an animation
ANIMATION_SIDE = 256  # pixels that small images are enlarged towards


def mask_grid(token_masks: Sequence[np.ndarray], steps: int) -> np.ndarray:
    """One tile a step, white known, black hidden, 10 a row; steps not run stay black."""
    side = math.isqrt(len(token_masks[0]))
    tiles = [np.where(mask, 0, 255).astype(np.uint8).reshape(side, side) for mask in token_masks]
    return tile([np.repeat(t[..., None], 3, 2) for t in tiles], steps, MASKS_PER_ROW)


def image_grid(images: Sequence[np.ndarray], steps: int) -> np.ndarray:
    """The masked input, then the image after every step, 7 a row; steps not run stay black."""
    return tile(images, 1 + steps, IMAGES_PER_ROW)


def comparison_strip(
    masked: np.ndarray, inpainted: np.ndarray, truth: np.ndarray | None
) -> np.ndarray:
    """Masked, inpainted and, where it is known, the truth, side by side."""
    images = [masked, inpainted, *([] if truth is None else [truth])]
    return tile(images, len(images), len(images))


def encode_animation(
    images: Sequence[np.ndarray], kind: str, stamp: str, profile: bytes | None = None
) -> bytes:
    """An endless GIF or lossless WebP of the decoding; small images are enlarged, the last rests.

    kind: "gif" or "webp". stamp: ASCII text that is kept in the file (utils/inpainting/stamps.py).
    profile: of the colours; a WebP keeps it, a GIF shows them as sRGB.
    """
    factor = max(1, ANIMATION_SIDE // max(images[0].shape[:2]))
    frames = [Image.fromarray(image.repeat(factor, 0).repeat(factor, 1)) for image in images]
    if profile and kind == "gif":
        for frame in frames:
            frame.info[PROFILE] = profile
        frames = [to_srgb(frame) for frame in frames]
    times = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    note = {"comment": stamp.encode()} if kind == "gif" else {"xmp": stamp.encode()}
    shape: dict[str, Any] = {"gif": {"optimize": False, "disposal": 1}, "webp": {"lossless": True}}[
        kind
    ]
    if profile and kind == "webp":
        shape[PROFILE] = profile
    buffer = io.BytesIO()
    frames[0].save(
        buffer,
        format=kind,
        save_all=True,
        append_images=frames[1:],
        duration=times,
        loop=0,
        **shape,
        **note,
    )
    return buffer.getvalue()


def tile(images: Sequence[np.ndarray], places: int, per_row: int) -> np.ndarray:
    """Images side by side on black, with black gaps around them, (rows, columns, 3) uint8."""
    height, width, _ = images[0].shape
    rows, columns = -(-places // per_row), min(places, per_row)
    cells = np.zeros((rows * columns, height + GAP, width + GAP, 3), np.uint8)
    cells[: len(images), GAP:, GAP:] = images
    grid = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2)
    grid = grid.reshape(rows * (height + GAP), columns * (width + GAP), 3)
    return np.pad(grid, ((0, GAP), (0, GAP), (0, 0)))


def save_figure(path: Path, figure: Figure, dpi: int = 120, **options: str) -> None:
    """Write a figure as PNG, wholly or not at all, and close it."""
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi, **options)
    pyplot().close(figure)


def save_loss_curve(path: Path, rows: Sequence[dict[str, float]]) -> None:
    """Training and validation loss and the learning rate by epoch, from the rows of a log."""
    figure, axes = pyplot().subplots(figsize=(7, 4), layout="constrained")
    for name, label in (("train_loss", "train"), ("val_loss", "val (mean over ratios)")):
        points = [(row["epoch"], row[name]) for row in rows if name in row]
        axes.plot(*zip(*points, strict=True), label=label, marker=".")
    axes.set(xlabel="epoch", ylabel="cross-entropy in nats", title="Transformer loss")
    axes.grid(alpha=0.3)
    rate = axes.twinx()
    rates = [(row["epoch"], row["learning_rate"]) for row in rows]
    rate.plot(*zip(*rates, strict=True), color="grey", ls=":", lw=1)
    rate.set_ylabel("learning rate (dotted)", color="grey")
    axes.legend(loc="upper right")
    save_figure(path, figure)


def save_curves(path: Path, rows: Sequence[dict[str, float]]) -> None:
    """Every number of a log by epoch, one small plot each."""
    names = [n for n in dict.fromkeys(n for row in rows for n in row) if n not in ("epoch", "time")]
    per_row = 4
    figure, grid = pyplot().subplots(
        -(-len(names) // per_row),
        per_row,
        figsize=(3 * per_row, 2.2 * -(-len(names) // per_row)),
        squeeze=False,
        layout="constrained",
    )
    for axes, name in zip(grid.flat, names, strict=False):
        points = [(row["epoch"], row[name]) for row in rows if name in row]
        axes.plot(*zip(*points, strict=True), marker=".")
        axes.set_title(name, fontsize=9)
        axes.grid(alpha=0.3)
    for axes in grid.flat[len(names) :]:
        axes.axis("off")
    save_figure(path, figure, dpi=110)


def pyplot() -> ModuleType:
    """Matplotlib without a screen; loading it takes most of a second, so only curves do."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot

    return matplotlib.pyplot


def template(name: str) -> jinja2.Template:
    """A template of utils/templates; a name that it uses and is not given is an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(name)


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """A file's bytes as an address, so that a page shows them without asking for a file."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def embed_file(path: Path) -> str:
    return data_uri(path.read_bytes())


def embed(image: np.ndarray) -> str:
    """Pixels (H, W, 3) uint8 as the data URI of a PNG."""
    return data_uri(encode_png(image))
