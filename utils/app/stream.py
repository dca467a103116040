"""Repair one image and yield every step as soon as it is decoded.

Shapes: N tokens, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from queue import Queue
from threading import Event, Thread

import numpy as np

from config.schema import Config
from models.decode import StepResult
from utils.inpainting.inpainter import Inpainter


@dataclass(frozen=True)
class DecodedStep:
    """Pixels and tokens after one decode step."""

    image: np.ndarray  # the decoded image, uint8 (H, W, 3)
    hidden: np.ndarray  # tokens that are still hidden, bool (N,)
    confidence: np.ndarray
    """Probability of each token when last predicted, 0 to 1, (N,); NaN where known."""


class GoneError(Exception):
    """The consumer of the steps has stopped."""


def repair(
    inpainter: Inpainter, config: Config, image: np.ndarray, hole: np.ndarray
) -> Iterator[DecodedStep]:
    """Decode image (H, W, 3) uint8 with hole (H, W) bool with the settings of ``config``.

    The networks run in their own thread, which stops within a step when the iterator is closed.
    """
    steps: Queue[DecodedStep | Exception | None] = Queue()
    gone, variant = Event(), inpainter.with_config(config)
    is_log = config.decoding.choices.trust == "log p"

    def send(step: StepResult) -> None:
        if gone.is_set():
            raise GoneError
        pixels = variant.pixels(step.token_ids, image[None], hole[None])[0]
        probability = step.confidence.exp() if is_log else step.confidence
        hidden, confidence = (part[0].cpu().numpy() for part in (step.hidden, probability))
        steps.put(DecodedStep(pixels, hidden, confidence))

    def work() -> None:
        try:
            variant.trace(image[None], hole[None], [0], send)
            steps.put(None)
        except GoneError:
            pass
        except Exception as error:  # raised again in the consumer
            steps.put(error)

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        while (step := steps.get()) is not None:
            if isinstance(step, Exception):
                raise step
            yield step
    finally:
        gone.set()
        thread.join()
