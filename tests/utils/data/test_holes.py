"""Hole masks: how much they hide, what they look like, where their chance comes from."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from config.errors import UserError
from utils.data.holes import (
    BOX_TOLERANCE,
    DEFAULT_SHARE,
    HOLE_KINDS,
    MAX_WALKS,
    SHARE_LIMITS,
    draw_hole,
)

KINDS = sorted(HOLE_KINDS)
FILLING = """
import os, signal, time
import numpy as np
from utils.data import holes

def fill():
    images, none = np.zeros((2, 16, 16, 3), np.uint8), np.zeros((2, 16, 16), bool)
    return holes.begin_filling(images, none, np.arange(2), how, in_processes=True)()

how, received = ("box", "mean", 0), []
signal.signal(signal.SIGTERM, lambda *_: received.append(True))
os.sched_getaffinity = lambda _: range(1)
fill()
print(*holes._pool()._processes, flush=True)
while not received:
    time.sleep(0.05)
fill()
print("filled again", flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("share", [*SHARE_LIMITS, 0.25])
def test_a_mask_hides_the_asked_share(kind, size, share):
    tolerance = 0.5 if kind in ("lab", "brush") else BOX_TOLERANCE * size * size + 1
    for seed in range(10):
        mask = HOLE_KINDS[kind](np.random.default_rng(seed), size, share)
        assert mask.shape == (size, size)
        assert mask.dtype == bool
        assert abs(mask.sum() - share * size * size) <= tolerance


@pytest.mark.parametrize("kind", KINDS)
def test_shares_fill_their_range_and_hide_about_a_quarter_by_default(kind):
    shares = np.array([draw_hole(kind, 64, DEFAULT_SHARE, 0, i).mean() for i in range(200)])
    low, high = DEFAULT_SHARE
    assert shares.min() >= low - BOX_TOLERANCE
    assert shares.max() <= high + BOX_TOLERANCE
    assert shares.mean() == pytest.approx(0.25, abs=0.02)
    assert shares.std() == pytest.approx((high - low) / np.sqrt(12), abs=0.01)  # uniform


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_depends_on_seed_and_index_alone(kind):
    mask = draw_hole(kind, 64, DEFAULT_SHARE, 3, 7)
    draw_hole(kind, 64, DEFAULT_SHARE, 3, 8)
    assert (draw_hole(kind, 64, DEFAULT_SHARE, 3, 7) == mask).all()
    assert (draw_hole(kind, 64, DEFAULT_SHARE, 3, 8) != mask).any()
    assert (draw_hole(kind, 64, DEFAULT_SHARE, 4, 7) != mask).any()


def edge_length(mask: np.ndarray) -> int:
    """Number of neighbouring pixels of which one is hidden."""
    return int((mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum())


def test_lab_holes_are_more_ragged_than_strokes_and_strokes_than_boxes():
    edges = {
        kind: np.mean([edge_length(draw_hole(kind, 64, (0.25, 0.25), 0, i)) for i in range(30)])
        for kind in ("lab", "brush", "box")
    }
    assert edges["lab"] > 1.5 * edges["brush"] > 1.5**2 * edges["box"]


def test_lab_holes_have_pinholes_inside_and_outside_the_walks():
    masks = [draw_hole("lab", 64, DEFAULT_SHARE, 0, i) for i in range(30)]
    lone = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])
    known_neighbours = [ndimage.convolve(~mask, lone, int, mode="nearest") for mask in masks]
    inside = [(~m & (near == 0)).sum() for m, near in zip(masks, known_neighbours, strict=True)]
    outside = [(m & (near == 4)).sum() for m, near in zip(masks, known_neighbours, strict=True)]
    assert np.mean(inside) > 3
    assert 0.5 < np.mean(outside) < 6


def test_lab_holes_are_a_few_connected_walks_besides_the_pinholes():
    for i in range(30):
        pieces, number = ndimage.label(draw_hole("lab", 64, DEFAULT_SHARE, 0, i))
        areas = ndimage.sum_labels(pieces > 0, pieces, range(1, number + 1))
        assert (areas > 4).sum() <= 2 * MAX_WALKS


def test_a_mix_holds_every_kind():
    rngs = [np.random.default_rng(i) for i in range(30)]
    edges = [edge_length(HOLE_KINDS["mix"](rng, 64, 0.25)) for rng in rngs]
    assert min(edges) < 250 < 700 < max(edges)


@pytest.mark.parametrize("share", [(0.3, 0.2), (0.0, 0.2), (0.1, 0.95), (float("nan"), 0.2)])
def test_a_share_that_cannot_be_drawn_is_refused(share):
    with pytest.raises(UserError, match=r"hole share: .*; allowed are two rising numbers"):
        draw_hole("lab", 64, share, 0, 0)


def test_an_unknown_kind_names_the_known_ones():
    with pytest.raises(UserError, match=r"'labs' is unknown.*did you mean 'lab'"):
        draw_hole("labs", 64, DEFAULT_SHARE, 0, 0)


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="Windows has no process groups")
def test_a_worker_outlives_a_signal_to_the_group_but_not_its_parent():
    command = [sys.executable, "-c", FILLING]
    pipe = {"stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, cwd=Path(__file__).parents[3], **pipe) as program:
        worker = int(program.stdout.readline())
        try:
            os.killpg(program.pid, signal.SIGTERM)  # as torchrun does
            assert program.stdout.readline() == "filled again\n"
            program.kill()
            program.communicate(timeout=20)  # until nobody holds its output any longer
        finally:
            for number in (program.pid, worker):
                with suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
