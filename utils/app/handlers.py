"""Event handlers of the web demo; its layout is in utils/app/layout.py."""

from __future__ import annotations

import html
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from config.errors import UserError
from config.loading import Override
from config.schema import Config
from utils.app.checkpoints import Checkpoints
from utils.app.controls import MAX_ITERATIONS, Control, control_values
from utils.app.pictures import Painted, as_painted, drawn, photographs, read_painted, read_upload
from utils.app.records import PINNED, Record, repair
from utils.data.holes import DEFAULT_SHARE, draw_hole
from utils.inpainting.inpainter import Inpainter

MAX_SAMPLES = 4  # per picture and setting
CONFIG_PLACE = re.compile(r"^\S+\.ya?ml(:\d+)?: ")
SEND_SECONDS = 0.1  # between two messages to a browser

Player = dict[str, Any]  # {"run": id, "samples": count, "records": updates}


class Handlers:
    """Handlers of the page's events; they keep no user data."""

    def __init__(self, checkpoints: Checkpoints, settings: list[Control]) -> None:
        self.checkpoints, self.settings = checkpoints, settings
        self._drawn: dict[str, dict[str, np.ndarray]] = {}  # by checkpoint

    def open(self, name: str) -> tuple[Any, ...]:
        """Initial values for a checkpoint: painter, player, notice, settings A, settings B."""
        config, problem = self._default(name), self.checkpoints.problem(name)
        hint = f"{problem}. Or start with another checkpoint: python app.py FOLDER"
        samples = self._samples_of(name)
        patch = config.data.image_size // round(config.transformer.num_tokens**0.5)
        painter = gr.HTML(value=samples[0]["value"], samples=samples, patch=patch)
        own = control_values(config, self.settings)
        return painter, None, error_html(hint) if problem else "", *own, *own

    def upload(self, file: str, name: str) -> tuple[Any, str]:
        """The uploaded picture and a notice."""
        try:
            image = read_upload(Path(file), self._default(name).data.image_size)
        except UserError as error:
            return gr.skip(), error_html(error)
        return as_painted(image), info_html("Picture loaded. Paint a hole on it.")

    def random_hole(self, kind: str, painted: Painted | None, name: str) -> tuple[Any, str]:
        """The picture with a random hole of a kind, and a notice."""
        side = self._default(name).data.image_size
        try:
            image, _ = read_painted(painted, side, needs_hole=False)
        except UserError as error:
            return gr.skip(), error_html(error)
        hole = draw_hole(kind, side, DEFAULT_SHARE, secrets.randbits(32), 0)
        return as_painted(image, hole), ""

    def repair(
        self,
        name: str,
        painted: Painted,
        seed: int | None,
        samples: int,
        compare: bool,
        *controls: Any,
    ) -> Iterator[tuple[Any, str]]:
        """Decode with each requested setting; yields player and notice after each step."""
        try:
            count = len(self.settings)
            held = {"A": controls[:count]} | ({"B": controls[count:]} if compare else {})
            settings = {key: self._overrides(values) for key, values in held.items()}
            records = self._plan(name, painted, seed or 0, samples, settings)
            yield from self._decode(self.checkpoints.inpainter(name), records)
        except UserError as error:
            yield gr.skip(), error_html(error)

    def _decode(self, inpainter: Inpainter, records: list[Record]) -> Iterator[tuple[Player, str]]:
        began = time.perf_counter()
        shared = {"run": secrets.token_hex(8), "samples": records[-1].sample}

        def news_of(*some: Record, notice: str = "Decoding ...") -> tuple[Player, str]:
            return {**shared, "records": [one.page_update() for one in some]}, info_html(notice)

        for record in records:
            yield news_of(record)
            sent_at = time.perf_counter()
            for step in repair(inpainter, record.config, record.image, record.hole):
                record.add(step)
                if time.perf_counter() - sent_at >= SEND_SECONDS:  # a browser needs time to draw
                    yield news_of(record)
                    sent_at = time.perf_counter()
            yield news_of(record)
        seconds = time.perf_counter() - began
        yield news_of(*records, notice=f"Repaired in {seconds:.1f} s. Step through it below.")

    def _overrides(self, values: Sequence[Any]) -> list[Override]:
        return [one.read(value) for one, value in zip(self.settings, values, strict=True)]

    def _plan(
        self,
        name: str,
        painted: object,
        seed: int,
        samples: int,
        settings: dict[str, list[Override]],
    ) -> list[Record]:
        """One record per sample and setting, all validated before the first is decoded."""
        checkpoint = self.checkpoints.checkpoint(name)
        dtype = self.checkpoints.inpainter(name).dtype
        image, hole = read_painted(painted, checkpoint.config().data.image_size)
        _check_count("samples", samples, MAX_SAMPLES)
        records = []
        for sample in range(1, samples + 1):
            for key, overrides in settings.items():
                config = checkpoint.config([*overrides, *PINNED, ("seed", seed + sample - 1)])
                _check_count("total_iter", config.decoding.total_iter, MAX_ITERATIONS)
                records.append(Record(key, sample, checkpoint, config, dtype, image, hole))
        return records

    def _default(self, name: str) -> Config:
        return self.checkpoints.checkpoint(name).config()

    def _samples_of(self, name: str) -> list[dict[str, Any]]:
        """Sample pictures, including generated ones once the model can be loaded."""
        if name not in self._drawn and not self.checkpoints.problem(name):
            self._drawn[name] = drawn(self.checkpoints.inpainter(name))
        side = self._default(name).data.image_size
        pictures = photographs(side) | self._drawn.get(name, {})
        return [{"name": key, "value": as_painted(one)} for key, one in pictures.items()]


def _check_count(what: str, found: int, most: int) -> None:
    if not 1 <= found <= most:
        raise UserError(f"{what} is {found}; this page allows 1 to {most}")


def info_html(text: str) -> str:
    """A notice as HTML."""
    return f"<p>{html.escape(text)}</p>"


def error_html(error: UserError | str) -> str:
    """An error as HTML, without the location in the server's config."""
    return f'<p class="wrong">{html.escape(CONFIG_PLACE.sub("", str(error)))}</p>'
