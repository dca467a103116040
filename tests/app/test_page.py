"""The page in a headless Chromium: paint, run, step, compare, take away, and what may go wrong."""

from __future__ import annotations

import base64
import io
import json
import re
import shlex
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from docs.draw_app import finish, paint
from docs.draw_app import repair as run
from utils.io.images import encode_png

pytestmark = pytest.mark.app

ROOT = Path(__file__).parents[2]
SIDE, STEPS = 32, 6
QUEUE_LENGTH = 8
SLIDER = "#player .stepper input"
NARROW = {"width": 360, "height": 720}


def upload(page, name: str, content: bytes) -> None:
    with page.expect_file_chooser() as waiting:
        page.locator("#upload").click()
    waiting.value.set_files([{"name": name, "mimeType": "image/png", "buffer": content}])


def picture(url: str) -> np.ndarray:
    content = base64.b64decode(url.partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def shown_picture(page) -> np.ndarray:
    return picture(page.locator("#player .record img").first.get_attribute("src"))


def download(page, words: str, folder: Path) -> Path:
    with page.expect_download() as waiting:
        page.get_by_role("link", name=words, exact=True).first.click()
    target = folder / waiting.value.suggested_filename
    waiting.value.save_as(target)
    return target


def test_a_painted_hole_is_repaired_step_by_step(visit):
    page = visit()
    assert "No hole yet" in page.locator("#painter .share").inner_text()
    assert page.locator("#player .empty").is_visible()
    paint(page)
    assert "Hole: " in page.locator("#painter .share").inner_text()
    run(page)
    slider = page.locator(SLIDER)
    assert slider.get_attribute("max") == str(STEPS)
    assert slider.input_value() == str(STEPS)
    words = page.locator("#player output")
    assert words.inner_text().startswith(f"Step {STEPS} of {STEPS} · 0 of ")
    pictures, dots = [], page.locator("#player .dots circle")
    page.locator("#player [data-go=first]").click()
    for _ in range(STEPS + 1):
        pictures.append(shown_picture(page))
        page.locator("#player [data-go=on]").click()
    assert dots.count() == STEPS + 1
    hole = (pictures[0] == 128).all(2)
    assert hole.any()
    assert all((one[~hole] == pictures[0][~hole]).all() for one in pictures)  # hard composite
    assert (pictures[-1][hole] != 128).any()
    slider.focus()
    for key in ("Home", "ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
    assert words.inner_text().startswith(f"Step 1 of {STEPS}")
    assert (shown_picture(page) == pictures[1]).all()


def test_what_is_taken_away_comes_out_of_the_command_line_again(visit, tmp_path):
    page = visit()
    page.get_by_role("button", name="box", exact=True).click()
    page.get_by_label("total iter").first.fill("4")
    page.get_by_label("choice temperature").first.fill("2.5")
    page.get_by_label("seed").fill("7")
    page.wait_for_function("document.querySelector('#painter .share').innerText.includes('Hole')")
    run(page)
    result = download(page, "Image", tmp_path).read_bytes()
    animation = download(page, "GIF", tmp_path).read_bytes()
    with zipfile.ZipFile(download(page, "All files and the command", tmp_path)) as archive:
        archive.extractall(tmp_path)
    command = (tmp_path / "repair" / "command.txt").read_text().strip()
    page.locator("#player summary").click()
    assert page.locator("#player code").inner_text() == command
    _, script, *arguments = shlex.split(command)
    subprocess.run([sys.executable, ROOT / script, *arguments], cwd=tmp_path, check=True)
    taken, again = tmp_path / "repair", tmp_path / "repair" / "again"
    assert (again / "test_results" / "image_000.png").read_bytes() == result
    assert (again / "animation" / "image_000.gif").read_bytes() == animation
    made = [path for path in again.rglob("*.*") if path.name not in ("manifest.json", ".lock")]
    assert len(made) > 3
    for path in made:
        assert (taken / path.relative_to(again)).read_bytes() == path.read_bytes(), path.name


def test_two_settings_stand_side_by_side_on_the_same_hole_and_seed(visit):
    page = visit()
    paint(page)
    page.get_by_label("compare two settings").check()
    page.locator("#setting-B").get_by_label("total iter").fill("3")
    run(page, 2)
    first, second = page.locator("#player .record").all()
    assert "total_iter 3" in second.locator("h3").inner_text()
    assert "seed 0" in first.locator("h3").inner_text()
    page.locator("#player [data-go=first]").click()
    sources = [one.locator("img").get_attribute("src") for one in (first, second)]
    assert sources[0] == sources[1]  # the same masked picture
    words = page.locator("#player output").inner_text()
    counts = [part.split(": ")[1] for part in words.split(" · ")[1:]]
    assert counts[0] == counts[1]


def test_samples_differ_and_can_be_chosen_between(visit):
    page = visit()
    paint(page)
    page.get_by_label("samples").first.fill("2")
    run(page)
    choices = page.locator("#player .choices button")
    page.wait_for_function("document.querySelectorAll('#player .choices button').length === 2")
    first = shown_picture(page)
    choices.nth(1).click()
    finish(page)
    assert (shown_picture(page) != first).any()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("notes.png", b"these are words, no picture", "notes.png"),
        ("huge.png", encode_png(np.zeros((4, 4, 3), np.uint8))[:16] + b"\0\1\x86\xa0" * 2, "huge"),
        ("cut.png", encode_png(np.zeros((64, 64, 3), np.uint8))[:60], "cut.png"),
    ],
)
def test_a_file_that_is_no_picture_is_refused_in_one_line(visit, name, content, words):
    page = visit()
    upload(page, name, content)
    page.wait_for_selector("#notice .wrong")
    assert words in page.locator("#notice .wrong").inner_text()
    paint(page)
    run(page)  # the page goes on with the picture that it had


def test_an_uploaded_picture_is_cut_to_a_square_and_can_be_painted_on(visit):
    page = visit()
    tall = np.full((90, 40, 3), (10, 200, 30), np.uint8)
    upload(page, "tall.png", encode_png(tall))
    page.wait_for_function("document.querySelector('#notice').innerText.includes('loaded')")
    paint(page)
    run(page)
    page.locator("#player [data-go=first]").click()
    shown = shown_picture(page)
    assert shown.shape == (SIDE, SIDE, 3)
    assert {tuple(pixel) for pixel in shown.reshape(-1, 3)} == {(10, 200, 30), (128, 128, 128)}


def test_two_visitors_at_once_get_each_their_own(visit):
    pages = [visit(), visit()]
    pages[1].locator("#painter .samples button").nth(2).click()
    for page in pages:
        paint(page)
        page.locator("#repair").click()
    for page in pages:
        finish(page)
        page.locator("#player [data-go=first]").click()
    first, second = map(shown_picture, pages)
    known = (first != 128).any(2)
    assert (first[known] != second[known]).any()


def test_a_reload_in_the_middle_leaves_a_page_that_works(visit):
    page = visit()
    paint(page)
    page.get_by_label("total iter").first.fill("64")
    page.get_by_label("samples").first.fill("4")
    page.locator("#repair").click()
    page.wait_for_function(f"Number(document.querySelector('{SLIDER}').value) >= 1")
    page.reload()
    page.wait_for_selector("#painter .has-picture canvas")
    assert page.locator("#player .empty").is_visible()
    paint(page)
    run(page)


def test_the_whole_way_goes_by_keyboard(visit):
    page = visit()
    page.locator("#painter canvas").focus()
    page.keyboard.down("Space")
    for _ in range(5):
        page.keyboard.press("ArrowRight")
    page.keyboard.up("Space")
    share = page.locator("#painter .share")
    painted = share.inner_text()
    assert "Hole: " in painted
    page.keyboard.press("i")
    assert share.inner_text() != painted
    page.keyboard.press("z")
    assert share.inner_text() == painted
    page.locator("#repair").focus()
    page.keyboard.press("Enter")
    finish(page)
    page.locator("#player [data-go=back]").focus()
    page.keyboard.press("Enter")
    assert page.locator("#player output").inner_text().startswith(f"Step {STEPS - 1} of")


def test_without_a_hole_the_page_says_what_to_do(visit):
    page = visit()
    page.locator("#repair").click()
    page.wait_for_selector("#notice .wrong")
    assert "paint on the picture" in page.locator("#notice").inner_text()


def test_a_setting_that_is_not_allowed_is_named(visit):
    page = visit()
    paint(page)
    page.get_by_text("More settings").first.click()
    page.get_by_label("feather width").first.fill("0")
    page.locator("#repair").click()
    page.wait_for_selector("#notice .wrong")
    assert "decoding.feather_width is 0" in page.locator("#notice").inner_text()


JOIN = """
async ([body, count]) => {
  const ask = i => fetch("gradio_api/queue/join", {
    method: "POST",
    headers: {"Content-Type": "application/json"},
    body: JSON.stringify({...JSON.parse(body), session_hash: "crowd" + i}),
  });
  const answers = await Promise.all([...Array(count).keys()].map(ask));
  return answers.map(answer => answer.status);
}
"""


def test_a_crowd_is_told_that_the_queue_is_full(visit):
    page, bodies = visit(), []
    page.on("request", lambda one: "queue/join" in one.url and bodies.append(one.post_data))
    paint(page)
    run(page)
    answers = page.evaluate(JOIN, [bodies[-1], 4 * QUEUE_LENGTH])
    assert set(answers) == {200, 503}
    assert QUEUE_LENGTH <= answers.count(200) <= 2 * QUEUE_LENGTH
    run(page)  # and then the page goes on


def test_nothing_is_asked_of_any_other_server(browser, address):
    context = browser.new_context()
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.wait_for_selector("#painter .has-picture canvas")
    paint(page)
    run(page)
    context.close()
    own = (address, "data:", "blob:")
    assert len(asked) > 10
    assert [url for url in asked if not url.startswith(own)] == []


def test_the_server_calls_nobody_and_writes_to_its_own_folder_alone(visit, audit):
    page = visit()
    upload(page, "grey.png", encode_png(np.full((40, 40, 3), 99, np.uint8)))
    page.wait_for_function("document.querySelector('#notice').innerText.includes('loaded')")
    paint(page)
    run(page)
    events = [line.split(maxsplit=1) for line in audit.read_text().splitlines()]
    called = {what for kind, what in events if kind == "connect"}
    wrote = {what for kind, what in events if kind == "write"}
    assert called <= {"127.0.0.1", "::1"}
    own = str(Path(tempfile.gettempdir()) / "maskgit-page-")
    probe = re.escape(tempfile.gettempdir()) + "/[a-z0-9_]{8}"  # tempfile tries the folder once
    assert any(path.startswith(own) for path in wrote)
    others = [path for path in wrote if not path.startswith((own, "/dev/"))]
    assert [path for path in others if not re.fullmatch(probe, path)] == []


CONTRAST = (Path(__file__).with_name("contrast.js")).read_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("screen", [NARROW, {"width": 1200, "height": 900}])
def test_every_text_is_readable_and_nothing_sticks_out(visit, scheme, screen):
    page = visit(color_scheme=scheme, viewport=screen)
    paint(page)
    page.get_by_label("compare two settings").check()
    run(page, 2)
    assert page.evaluate("document.documentElement.scrollWidth") <= screen["width"]
    faint = json.loads(page.evaluate(CONTRAST))
    assert faint == []
