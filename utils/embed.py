"""Pages that need no other file: their templates, and pictures as data URIs."""

from __future__ import annotations

import base64
from pathlib import Path

import jinja2
import numpy as np

from utils.images import encode_png


def template(name: str) -> jinja2.Template:
    """The template of a page beside this file; what it names and is not given is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(name)


def embed_file(path: Path) -> str:
    """A PNG file as a data URI."""
    return _data_uri(path.read_bytes())


def embed(image: np.ndarray) -> str:
    """Pixels (H, W, 3) uint8 as the data URI of a PNG."""
    return _data_uri(encode_png(image))


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
