"""What pages hold instead of naming other files, what their templates refuse, and their curves."""

from __future__ import annotations

import base64
import io
from contextlib import suppress

import jinja2
import numpy as np
import pytest
from PIL import Image

from utils.pages import embed, embed_file, save_curves, save_loss_curve, template

ROWS = [
    {"epoch": e, "time": 1.0, "train_loss": 5 - e, "val_loss": 6 - e, "learning_rate": 1e-4}
    for e in (1, 2, 3)
]

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


@pytest.mark.parametrize("save", [save_loss_curve, save_curves])
@pytest.mark.parametrize("count", [1, 3])
def test_a_curve_is_a_picture_from_the_first_epoch_on(tmp_path, save, count):
    save(tmp_path / "curve.png", ROWS[:count])
    assert Image.open(tmp_path / "curve.png").format == "PNG"
    assert [path.name for path in tmp_path.iterdir()] == ["curve.png"]


def test_a_curve_shows_numbers_that_join_later(tmp_path):
    save_curves(tmp_path / "curve.png", [ROWS[0], {**ROWS[1], "adversarial": 0.3}])
    assert (tmp_path / "curve.png").exists()


def test_curves_leave_no_figure_open(tmp_path):
    from matplotlib import pyplot

    pyplot.close("all")  # those of other tests in this process
    save_loss_curve(tmp_path / "a.png", ROWS)
    save_curves(tmp_path / "b.png", ROWS)
    assert pyplot.get_fignums() == []


def test_curves_ignore_the_user_s_matplotlibrc(tmp_path):
    import matplotlib

    with matplotlib.rc_context({"text.usetex": True, "savefig.format": "pdf"}):
        save_loss_curve(tmp_path / "curve.png", ROWS)
        assert not matplotlib.rcParams["text.usetex"]
