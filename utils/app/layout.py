"""Layout of the web demo; its behaviour is in handlers.py, painter.js and player.js."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
from fid.names import EXTENSIONS

from utils.app.checkpoints import Checkpoints
from utils.app.controls import FIRST, Control, settings
from utils.app.handlers import MAX_SAMPLES, Handlers, info_html
from utils.app.pictures import MAX_FILE_BYTES
from utils.app.server import FORGET_SECONDS
from utils.data.holes import HOLE_KINDS

HERE = Path(__file__).parent
TITLE = "MaskGIT inpainting"
INTRODUCTION = (
    "Paint a hole on a picture and watch MaskGIT fill it in a few parallel steps, most certain "
    "tokens first. Everything runs on this machine; nothing is stored or sent elsewhere."
)
FONTS = {
    "font": ["system-ui", "-apple-system", "Segoe UI", "sans-serif"],
    "font_mono": ["ui-monospace", "Consolas", "monospace"],
}
THEME = gr.themes.Default(primary_hue="teal", neutral_hue="stone", **FONTS).set(
    body_text_color_subdued="*neutral_600",  # the theme's greys have too little contrast
    body_text_color_subdued_dark="*neutral_300",
    block_info_text_color="*neutral_600",
    block_info_text_color_dark="*neutral_300",
    block_title_text_color="*neutral_800",
    block_title_text_color_dark="*neutral_100",
    input_placeholder_color="*neutral_500",
    input_placeholder_color_dark="*neutral_400",
    button_primary_background_fill="*primary_700",
    button_primary_background_fill_hover="*primary_800",
    button_primary_background_fill_dark="*primary_700",
    button_primary_background_fill_hover_dark="*primary_800",
)
PAGE_STYLE = {"theme": THEME, "css": (HERE / "page.css").read_text(encoding="utf-8")}

Controls = list[gr.components.Component]


def build_page(checkpoints: Checkpoints) -> gr.Blocks:
    handlers = Handlers(checkpoints, settings())
    handlers.open(checkpoints.names[0])  # loads the networks before the first visit
    with gr.Blocks(
        title=TITLE, analytics_enabled=False, delete_cache=(60, FORGET_SECONDS), fill_width=True
    ) as page:
        gr.HTML(f'<div class="page-head"><h1>{TITLE}</h1><p>{INTRODUCTION}</p></div>')
        name = _checkpoint_choice(checkpoints)
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                painter = _part("painter", samples=[], patch=1)
                upload, kinds = _picture_buttons()
                with gr.Row():
                    start = gr.Button("Repair", variant="primary", elem_id="repair")
                    stop = gr.Button("Stop", elem_id="stop")
                notice = gr.HTML(elem_id="notice", elem_classes="notice", apply_default_css=False)
            with gr.Column(scale=3, min_width=320):
                first, second, extras = _all_controls(handlers)
        player = _part("player")
        opened = [painter, player, notice, *first, *second]
        for event in (page.load, name.input):
            event(handlers.open, name, opened, queue=False, show_progress="hidden")
        upload.upload(handlers.upload, [upload, name], [painter, notice])
        for kind, button in kinds.items():
            draw = partial(handlers.random_hole, kind)
            button.click(draw, [painter, name], [painter, notice], queue=False)
        asked = [name, painter, *extras, *first, *second]
        run = start.click(handlers.repair, asked, [player, notice], show_progress="hidden")
        ended = stop.click(None, cancels=run, queue=False)
        ended.then(lambda: info_html("Stopped."), None, notice, queue=False)
    return page


def _part(name: str, **props: Any) -> gr.HTML:
    """A component with its own HTML template and script."""
    return gr.HTML(
        None,
        html_template=(HERE / f"{name}.html").read_text(encoding="utf-8"),
        js_on_load=(HERE / f"{name}.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        elem_id=name,
        **props,
    )


def _checkpoint_choice(checkpoints: Checkpoints) -> gr.Dropdown:
    return gr.Dropdown(
        checkpoints.names,
        value=checkpoints.names[0],
        label="checkpoint",
        info="The tokenizer and the transformer that repair the picture.",
        filterable=False,
        visible=len(checkpoints.names) > 1,
        elem_id="checkpoint",
    )


def _picture_buttons() -> tuple[gr.UploadButton, dict[str, gr.Button]]:
    """The upload button and a random-hole button for each kind."""
    gr.HTML("<p>Random hole:</p>", apply_default_css=False)
    with gr.Row():
        kinds = {kind: gr.Button(kind, size="sm", min_width=60) for kind in HOLE_KINDS}
    upload = gr.UploadButton(
        f"Upload a picture (up to {MAX_FILE_BYTES // 1_000_000} MB)",
        file_types=sorted(EXTENSIONS),
        size="sm",
        elem_id="upload",
    )
    return upload, kinds


def _all_controls(handlers: Handlers) -> tuple[Controls, Controls, Controls]:
    """Settings A, settings B (shown when comparing), and seed, samples, compare."""
    with gr.Row():
        with gr.Column(min_width=240, elem_id="setting-A"):
            heading = gr.HTML("<h2>Setting</h2>", apply_default_css=False)
            first = _controls(handlers.settings)
        with gr.Column(min_width=240, elem_id="setting-B", visible=False) as other:
            gr.HTML("<h2>Setting B</h2>", apply_default_css=False)
            second = _controls(handlers.settings)
    with gr.Row():
        seed = gr.Number(
            0, label="seed", info="The same seed gives the same noise.", precision=0, minimum=0
        )
        samples = gr.Slider(
            1,
            MAX_SAMPLES,
            1,
            step=1,
            label="samples",
            info="Number of repairs, with this seed and the next ones.",
        )
    compare = gr.Checkbox(
        False,
        label="compare two settings",
        info="Same hole, same seed, side by side.",
        elem_id="compare",
    )
    compare.change(
        lambda on: (gr.Column(visible=on), f"<h2>Setting{' A' if on else ''}</h2>"),
        compare,
        [other, heading],
        queue=False,
    )
    return first, second, [seed, samples, compare]


def _controls(asked: list[Control]) -> Controls:
    """One control per setting, those not in `FIRST` in an accordion."""
    made = [setting.control() for setting in asked if setting.name in FIRST]
    with gr.Accordion("More settings", open=False):
        return made + [setting.control() for setting in asked if setting.name not in FIRST]
