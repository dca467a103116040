"""HTML pages and the plots in them; Jinja and matplotlib are imported on demand."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from config.schema import Config
from utils.io.files import atomic, write_text
from utils.io.images import encode_png
from utils.io.pictures import ENLARGED, GAP, IMAGES_PER_ROW, MASKS_PER_ROW

if TYPE_CHECKING:
    import jinja2
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).with_name("templates")
MASK_ENLARGED = 4  # scale factor of masks on a page


def subplots(
    rows: int = 1, columns: int = 1, *, figsize: tuple[float, float], squeeze: bool = True
) -> tuple[Figure, Any]:
    """A figure and its axes, without pyplot, which would need a display and keep every figure.

    ``figsize`` is (width, height) in inches. Imports matplotlib on demand, most of a second. The
    user's matplotlibrc is ignored: with text.usetex figures would need LaTeX.
    """
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcdefaults()
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
