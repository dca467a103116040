"""Screenshots of the web demo with the released weights: ``python -m docs.draw_app``.

Needs ``make test-app``'s environment, which has Playwright and a Chromium. repaired.png: the page
after a repair; compare.png: two settings side by side; narrow.png: dark, on a phone.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from docs.draw_decoding import FOLDER
from utils.cli import ArgumentParser, first_line, run
from utils.io.images import save_png

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PORT = 7899
STROKES = (((0.52, 0.36), (0.95, 0.46)), ((0.58, 0.55), (0.92, 0.46)))  # over an eye, in shares
WIDE, PHONE = {"width": 1000, "height": 900}, {"width": 390, "height": 1000}
Point = tuple[float, float]
GAP = 20  # grey pixels between the parts of narrow.png


def main() -> None:
    ArgumentParser(description=first_line(__doc__)).parse_args()
    from playwright.sync_api import sync_playwright

    server = subprocess.Popen([sys.executable, "app.py", "--port", str(PORT)], stdout=-1, text=True)
    try:
        server.stdout.readline()  # the address, once the page is ready
        with sync_playwright() as driver:
            browser = driver.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox"]
            )
            draw_wide(browser)
            draw_narrow(browser)
    finally:
        server.terminate()
        server.wait()


def draw_wide(browser: Browser) -> None:
    """Save the whole page, and the steps of two settings, in the middle of a repair."""
    page = painted(browser, viewport=WIDE)
    repair(page)
    page.locator("#player [data-go=back]").click(click_count=2)
    save("repaired", page.screenshot(full_page=True))
    page.get_by_label("compare two settings").check()
    page.locator("#setting-B").get_by_label("total iter").fill("10")
    repair(page, records=2)
    page.locator("#player [data-go=back]").click(click_count=6)
    save("compare", page.locator("#player").screenshot())


def draw_narrow(browser: Browser) -> None:
    """Save the top of the page and the steps, next to each other."""
    page = painted(browser, viewport=PHONE, color_scheme="dark")
    top = page.screenshot()
    repair(page)
    page.locator("#player").evaluate("element => element.scrollIntoView()")
    parts = [np.asarray(Image.open(io.BytesIO(part))) for part in (top, page.screenshot())]
    gap = np.full((PHONE["height"], GAP, 3), 96, np.uint8)
    save_png(FOLDER / "app" / "narrow.png", np.concatenate([parts[0], gap, parts[1]], axis=1))


def painted(browser: Browser, **options: object) -> Page:
    """The page in a window of its own, with a hole painted on its picture."""
    page = browser.new_context(**options).new_page()
    page.goto(f"http://127.0.0.1:{PORT}")
    page.wait_for_selector("#painter .has-picture canvas")
    for stroke in STROKES:
        paint(page, *stroke)
    return page


def paint(page: Page, start: Point = (0.25, 0.4), end: Point = (0.6, 0.6)) -> None:
    """Draw one stroke with the mouse, in shares of the picture."""
    page.locator("#painter canvas").scroll_into_view_if_needed()
    box = page.locator("#painter canvas").bounding_box()
    (x, y), (to_x, to_y) = (
        (box["x"] + a * box["width"], box["y"] + b * box["height"]) for a, b in (start, end)
    )
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(to_x, to_y, steps=4)
    page.mouse.up()


def repair(page: Page, records: int = 1) -> None:
    """Press Repair and wait for the files of every record."""
    page.locator("#repair").click()
    finish(page, records)


def finish(page: Page, records: int = 1) -> None:
    """Wait for the files of every record."""
    page.wait_for_function(
        """count => {
          const files = [...document.querySelectorAll("#player .files")];
          return files.length === count && files.every(one => one.childElementCount)
            && document.querySelector("#notice").innerText.includes("Repaired");
        }""",
        arg=records,
    )


def save(name: str, content: bytes) -> None:
    save_png(FOLDER / "app" / f"{name}.png", np.asarray(Image.open(io.BytesIO(content))))


if __name__ == "__main__":
    run(main)
