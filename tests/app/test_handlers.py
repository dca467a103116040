"""What the page answers without a browser: opening, holes, uploads, repairs, and refusals."""

from __future__ import annotations

import base64
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from utils.io.images import encode_png

pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[app]'")

from utils.app import layout
from utils.app.checkpoints import Checkpoints
from utils.app.controls import control_values, settings
from utils.app.handlers import MAX_SAMPLES, Handlers
from utils.app.pictures import as_painted, read_painted
from utils.app.records import OVERLAP, Record

SIDE, STEPS = 32, 6


@pytest.fixture(scope="module")
def handlers(tiny: Path) -> Handlers:
    return Handlers(Checkpoints([tiny]), settings())


@pytest.fixture
def held(handlers: Handlers) -> list[Any]:
    """What the controls hold on a fresh page."""
    return control_values(handlers.checkpoints.checkpoint("tiny").config(), handlers.settings)


@pytest.fixture
def painted() -> dict[str, Any]:
    hole = np.zeros((SIDE, SIDE), bool)
    hole[4:20, 6:25] = True
    return as_painted(np.full((SIDE, SIDE, 3), (10, 200, 30), np.uint8), hole)


def pixels(url: str) -> np.ndarray:
    content = base64.b64decode(url.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def changed(handlers: Handlers, held: list[Any], **values: Any) -> list[Any]:
    """The controls with some of them set otherwise."""
    names = [setting.name for setting in handlers.settings]
    return [values.get(name, value) for name, value in zip(names, held, strict=True)]


def test_a_fresh_page_shows_a_picture_and_the_checkpoints_own_settings(handlers, held):
    painter, player, notice, *controls = handlers.open("tiny")
    image, hole = read_painted(painter.value, SIDE, needs_hole=False)
    assert image.shape == (SIDE, SIDE, 3)
    assert not hole.any()
    assert (player, notice) == (None, "")
    assert controls == held + held


def test_a_random_hole_leaves_the_picture_and_hides_some_of_it(handlers, painted):
    answer, notice = handlers.random_hole("box", painted, "tiny")
    image, hole = read_painted(answer, SIDE)
    assert (image == (10, 200, 30)).all()
    assert 0 < hole.sum() < SIDE * SIDE
    assert notice == ""


def test_a_random_hole_needs_a_picture(handlers):
    _, notice = handlers.random_hole("box", None, "tiny")
    assert "no picture yet" in notice


def test_an_upload_becomes_a_picture_without_a_hole(handlers, tmp_path):
    file = tmp_path / "tall.png"
    file.write_bytes(encode_png(np.full((90, 40, 3), 77, np.uint8)))
    answer, notice = handlers.upload(str(file), "tiny")
    image, hole = read_painted(answer, SIDE, needs_hole=False)
    assert (image == 77).all()
    assert not hole.any()
    assert "Picture loaded" in notice


def test_an_upload_that_is_no_picture_is_named_and_gone(handlers, tmp_path):
    file = tmp_path / "words.png"
    file.write_bytes(b"words")
    _, notice = handlers.upload(str(file), "tiny")
    assert "words.png" in notice
    assert "wrong" in notice
    assert not file.exists()


def test_a_repair_ends_with_every_step_and_files_that_agree(handlers, held, painted):
    answers = list(handlers.repair("tiny", painted, 0, 1, False, *held))
    player, notice = answers[-1]
    (record,) = player["records"]
    assert "Repaired" in notice
    assert [step["hidden"] for step in record["steps"]][-1] == 0
    assert len(record["steps"]) == STEPS + 1
    result = pixels(record["files"]["image"])
    _, hole = read_painted(painted, SIDE)
    assert (result[~hole] == (10, 200, 30)).all()
    assert (result == pixels(record["steps"][-1]["image"])).all()
    archive = base64.b64decode(record["files"]["zip"].partition(",")[2])
    with zipfile.ZipFile(io.BytesIO(archive)) as packed:
        assert "repair/input.png" in packed.namelist()
        assert packed.read("repair/command.txt").decode().strip() == record["files"]["command"]


def test_two_settings_and_two_samples_make_four_records(handlers, held, painted):
    other = changed(handlers, held, total_iter=2)
    *_, (player, _) = handlers.repair("tiny", painted, 5, 2, True, *held, *other)
    found = [(one["name"], one["sample"], one["seed"]) for one in player["records"]]
    assert found == [("A", 1, 5), ("B", 1, 5), ("A", 2, 6), ("B", 2, 6)]
    assert player["records"][1]["title"] == "total_iter 2"
    assert player["records"][0]["title"] == "the checkpoint's own settings"


@pytest.mark.parametrize(
    ("values", "samples", "words"),
    [
        ({"total_iter": 0}, 1, "total_iter"),
        ({"total_iter": 65}, 1, "this page allows 1 to 64"),
        ({"sweet_spot": 0}, 1, "sweet_spot"),
        ({}, MAX_SAMPLES + 1, f"this page allows 1 to {MAX_SAMPLES}"),
        ({}, 0, "samples is 0"),
    ],
)
def test_what_no_page_offers_is_refused_in_one_line(
    handlers, held, painted, values, samples, words
):
    controls = changed(handlers, held, **values)
    ((_, notice),) = handlers.repair("tiny", painted, 0, samples, False, *controls)
    assert words in notice
    assert notice.startswith('<p class="wrong">')
    assert "\n" not in notice


def test_news_tell_the_newest_steps_with_some_before(handlers, painted):
    config = handlers.checkpoints.checkpoint("tiny").config([("decoding.total_iter", 40)])
    image, hole = read_painted(painted, SIDE)
    record = Record("A", 1, handlers.checkpoints.checkpoint("tiny"), config, "fp32", image, hole)
    assert (record.page_update()["first"], len(record.page_update()["steps"])) == (0, 1)
    record._shown_steps += [{"hidden": 1}] * 30
    assert record.page_update()["first"] == 0
    record._shown_steps += [{"hidden": 1}] * 2
    news = record.page_update()
    assert news["first"] == 31 - OVERLAP
    assert len(news["steps"]) == 33 - news["first"]


def test_the_page_can_be_laid_out_and_names_what_it_does(tiny):
    page = layout.build_page(Checkpoints([tiny]))
    names = {event.api_name for event in page.fns.values()}
    assert {"open", "upload", "repair"} <= names
