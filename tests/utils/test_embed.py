"""What pages hold instead of naming other files, and what their templates refuse."""

from __future__ import annotations

import base64
import io
from contextlib import suppress

import jinja2
import numpy as np
import pytest
from PIL import Image

from utils.pictures import embed, embed_file, template

HEAD = "data:image/png;base64,"


def bytes_of(uri: str) -> bytes:
    assert uri.startswith(HEAD)
    return base64.b64decode(uri.removeprefix(HEAD), validate=True)


def test_pixels_come_back_from_the_page():
    image = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert (np.asarray(Image.open(io.BytesIO(bytes_of(embed(image))))) == image).all()


def test_a_file_is_embedded_as_it_is(tmp_path):
    content = bytes(range(256))
    (tmp_path / "a.png").write_bytes(content)
    assert bytes_of(embed_file(tmp_path / "a.png")) == content


def test_a_page_shows_a_title_as_text_and_refuses_to_go_without():
    page = template("head.html").render(title="cats < dogs")
    assert "<title>cats &lt; dogs</title>" in page
    with pytest.raises(jinja2.UndefinedError, match="'title' is undefined"):
        template("head.html").render()


@pytest.mark.parametrize("name", ["report.html", "sweep.html"])
def test_both_pages_begin_with_the_same_head(name):
    parts = []
    with suppress(jinja2.UndefinedError):  # at the first figure that it is not given
        parts.extend(template(name).generate(title="any"))
    assert "".join(parts).startswith(template("head.html").render(title="any"))
