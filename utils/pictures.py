"""Pictures and pages: image grids, comparison strips, loss curves, HTML templates.

Images are (H, W, 3) uint8, token masks (T, N) bool, True = hidden.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from fid.pixels import PROFILE, to_srgb
from PIL import Image

from config.schema import Config
from utils.io.files import atomic, write_text
from utils.io.images import encode_png

if TYPE_CHECKING:
    import jinja2
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).with_name("templates")
MASKS_PER_ROW = 10
IMAGES_PER_ROW = 7
GAP = 2  # pixels between tiles
ENLARGED, MASK_ENLARGED = 2, 4  # scale factors of small images on a page
FRAME_MS, LAST_FRAME_MS = 300, 1500  # durations in an animation
ANIMATION_SIDE = 256  # pixels up to which small images are enlarged


def mask_images(token_masks: np.ndarray) -> np.ndarray:
    """Token masks (T, N) as images (T, h, w, 3) uint8, white known, black hidden."""
    side = math.isqrt(token_masks.shape[1])
    grey = np.where(token_masks, 0, 255).astype(np.uint8)
    return grey.reshape(-1, side, side, 1).repeat(3, -1)


def mask_grid(token_masks: np.ndarray, steps: int) -> np.ndarray:
    """The masks (T, N) after each step, 10 per row; steps not run are black."""
    return tile(mask_images(token_masks), steps, MASKS_PER_ROW)


def image_grid(images: Sequence[np.ndarray], steps: int) -> np.ndarray:
    """The masked input, then the image after each step, 7 per row; steps not run are black."""
    return tile(images, 1 + steps, IMAGES_PER_ROW)


def comparison_strip(
    masked: np.ndarray, inpainted: np.ndarray, truth: np.ndarray | None
) -> np.ndarray:
    """Masked, inpainted and, if known, ground truth, side by side."""
    images = [masked, inpainted, *([] if truth is None else [truth])]
    return tile(images, len(images), len(images))


def comparison(
    masked: Sequence[np.ndarray],
    inpainted: Sequence[np.ndarray],
    truth: Sequence[np.ndarray | None],
) -> dict[str, np.ndarray]:
    """The rows masked, inpainted and, if known, truth, as one enlarged image each."""
    rows = {"masked": masked, "inpainted": inpainted, "truth": truth}
    return {
        name: enlarged(tile(images, len(images), len(images)))
        for name, images in rows.items()
        if all(image is not None for image in images)
    }


def enlarged(image: np.ndarray, factor: int = ENLARGED) -> np.ndarray:
    """Enlarge an image (H, W, 3) by an integer factor, nearest neighbour."""
    return image.repeat(factor, 0).repeat(factor, 1)


def encode_animation(
    images: Sequence[np.ndarray], kind: str, stamp: str, profile: bytes | None = None
) -> bytes:
    """A looping GIF or lossless WebP of the decoding, enlarged if small; the last frame is longer.

    kind: "gif" or "webp". stamp: ASCII text stored in the file (utils/inpainting/stamps.py).
    profile: ICC profile; a WebP embeds it, for a GIF the colours are converted to sRGB.
    """
    factor = max(1, ANIMATION_SIDE // max(images[0].shape[:2]))
    frames = [Image.fromarray(enlarged(image, factor)) for image in images]
    if profile and kind == "gif":
        for frame in frames:
            frame.info[PROFILE] = profile
        frames = [to_srgb(frame) for frame in frames]
    options: dict[str, Any] = {
        "gif": {"optimize": False, "disposal": 1, "comment": stamp.encode()},
        "webp": {"lossless": True, "xmp": stamp.encode(), PROFILE: profile},
    }[kind]
    options["duration"] = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    buffer = io.BytesIO()
    frames[0].save(buffer, format=kind, save_all=True, append_images=frames[1:], loop=0, **options)
    return buffer.getvalue()


def tile(images: Sequence[np.ndarray] | np.ndarray, places: int, per_row: int) -> np.ndarray:
    """Images in a grid with black gaps and black empty places, (height, width, 3) uint8."""
    height, width, _ = images[0].shape
    rows, columns = -(-places // per_row), min(places, per_row)
    cells = np.zeros((rows * columns, height + GAP, width + GAP, 3), np.uint8)
    cells[: len(images), GAP:, GAP:] = images
    grid = cells.reshape(rows, columns, *cells.shape[1:]).swapaxes(1, 2)
    grid = grid.reshape(rows * (height + GAP), columns * (width + GAP), 3)
    return np.pad(grid, ((0, GAP), (0, GAP), (0, 0)))


def subplots(
    rows: int = 1, columns: int = 1, *, figsize: tuple[float, float], squeeze: bool = True
) -> tuple[Figure, Any]:
    """A figure and its axes, without pyplot, which would need a display and keep every figure.

    ``figsize`` is (width, height) in inches. Imports matplotlib on demand, most of a second.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=figsize, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=squeeze)


def save_figure(path: Path, figure: Figure, dpi: int = 120, **options: str) -> None:
    """Write a figure as PNG atomically."""
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", dpi=dpi, **options)


def save_loss_curve(path: Path, rows: Sequence[dict[str, float]]) -> None:
    """Plot training and validation loss and the learning rate by epoch, from a log's rows."""
    figure, axes = subplots(figsize=(7, 4))
    _plot(axes, rows, "train_loss", label="train", marker=".")
    _plot(axes, rows, "val_loss", label="val (mean over ratios)", marker=".")
    axes.set(xlabel="epoch", ylabel="cross-entropy in nats", title="Transformer loss")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    rate = axes.twinx()
    _plot(rate, rows, "learning_rate", color="grey", ls=":", lw=1)
    rate.set_ylabel("learning rate (dotted)", color="grey")
    axes.legend(loc="upper right")
    save_figure(path, figure)


def save_curves(path: Path, rows: Sequence[dict[str, float]]) -> None:
    """Plot every number of a log by epoch, in one small plot each."""
    names = [n for n in dict.fromkeys(n for row in rows for n in row) if n not in ("epoch", "time")]
    columns, lines = 4, -(-len(names) // 4)
    size = (3 * columns, 2.2 * lines)
    figure, grid = subplots(lines, columns, figsize=size, squeeze=False)
    for axes, name in zip(grid.flat, names, strict=False):
        _plot(axes, rows, name, marker=".")
        axes.set_title(name, fontsize=9)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    for axes in grid.flat[len(names) :]:
        axes.axis("off")
    save_figure(path, figure, dpi=110)


def _plot(axes: Axes, rows: Sequence[dict[str, float]], name: str, **style: Any) -> None:
    """Plot one number of a log against the epoch."""
    points = [(row["epoch"], row[name]) for row in rows if name in row]
    axes.plot(*zip(*points, strict=True), **style)


def save_page(path: Path, name: str, **values: Any) -> Path:
    """Render a template as a self-contained page; returns its path."""
    write_text(path, template(name).render(**values))
    return path


def about_run(
    config: Config, environment: dict[str, str], weights: dict[str, Any]
) -> dict[str, Any]:
    """Template values shared by a run's pages: config, environment, weights, grid widths."""
    grid, side = math.isqrt(config.transformer.num_tokens), config.data.image_size
    return {
        "config": yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False),
        "environment": json.dumps(environment, indent=1),
        "weights": json.dumps(weights, indent=1),
        "mask_width": MASK_ENLARGED * MASKS_PER_ROW * (grid + GAP),
        "step_width": ENLARGED * IMAGES_PER_ROW * (side + GAP),
    }


def template(name: str) -> jinja2.Template:
    """A template of utils/templates; undefined names raise an error."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(name)


def data_uri(content: bytes, kind: str = "image/png") -> str:
    """A file's bytes as a data URI, to embed in a page."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def embed_file(path: Path) -> str:
    return data_uri(path.read_bytes())


def embed(image: np.ndarray) -> str:
    """Pixels (H, W, 3) uint8 as the data URI of a PNG."""
    return data_uri(encode_png(image))
