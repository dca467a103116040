"""Windows cover every hole, work from the border inward, and touch nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from utils.inpainting import windows
from utils.inpainting.windows import (
    choose_round,
    plan_windows,
    reflect_up,
    repair_in_windows,
    thick_parts,
)

SIDE = 16


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def box(height: int, width: int, rows: slice, columns: slice) -> np.ndarray:
    hole = np.zeros((height, width), bool)
    hole[rows, columns] = True
    return hole


HOLES = {
    "one pixel": box(40, 50, slice(20, 21), slice(30, 31)),
    "as large as a core": box(40, 50, slice(10, 22), slice(3, 15)),
    "larger than a core by one": box(40, 50, slice(10, 23), slice(3, 16)),
    "long": box(90, 120, slice(20, 32), slice(13, 101))
    | box(90, 120, slice(20, 71), slice(13, 25)),
    "thick": box(90, 120, slice(20, 71), slice(13, 101)),
    "a corner": box(40, 50, slice(0, 9), slice(44, 50)),
    "everything": np.ones((40, 33), bool),
    "a line along the edge": box(40, 50, slice(39, 40), slice(0, 50)),
    "two": box(64, 64, slice(2, 6), slice(2, 6)) | box(64, 64, slice(50, 60), slice(40, 64)),
    "scattered": np.random.default_rng(3).random((45, 70)) < 0.03,
    "exactly a window": box(16, 16, slice(4, 9), slice(4, 9)),
}


def every(names=HOLES):
    return pytest.mark.parametrize("hole", list(names.values()), ids=list(names))


def flat(value: int):
    """A decoder that paints every window in one colour, and notes what it was given."""
    calls = []

    def decode(images, holes, numbers):
        calls.append((images, holes, numbers))
        return np.full_like(images, value)

    return decode, calls


@every()
def test_cores_cover_every_hole(hole):
    covered = np.zeros_like(hole)
    for window in plan_windows(hole, SIDE):
        assert hole[window.view].shape == (SIDE, SIDE), "a window lies within the picture"
        covered[window.core] = True
    assert covered[hole].all()


@every()
def test_a_core_keeps_away_from_window_edges_that_are_not_the_pictures(hole):
    for window in plan_windows(hole, SIDE):
        for view, core, size in zip(window.view, window.core, hole.shape, strict=True):
            assert core.start - view.start == (0 if view.start == 0 else SIDE // 8)
            assert view.stop - core.stop == (0 if view.stop == size else SIDE // 8)


@every()
def test_pixels_outside_the_hole_stay_bit_for_bit(hole):
    image = picture(*hole.shape)
    decode, _ = flat(7)
    *_, last = repair_in_windows(image, hole, SIDE, decode, 2.0)
    assert last.shape == image.shape
    assert (last[~hole] == image[~hole]).all()


@every({k: v for k, v in HOLES.items() if not thick_parts(v, SIDE).any()})
def test_a_decoder_that_knows_the_truth_gives_it_back(hole):
    truth = picture(*hole.shape)
    spoilt = np.where(hole[..., None], np.uint8(128), truth)
    planned = {w.number: w for w in plan_windows(hole, SIDE)}

    def decode(images, holes, numbers):
        return np.stack([truth[planned[number].view] for number in numbers])

    *_, last = repair_in_windows(spoilt, hole, SIDE, decode, 4.0)
    assert (last == truth).all()


def test_a_hole_of_the_whole_picture_is_what_the_decoder_painted():
    decode, calls = flat(200)
    *_, last = repair_in_windows(picture(40, 33), np.ones((40, 33), bool), SIDE, decode, 4.0)
    assert (last == 200).all()
    assert len(calls[0][2]) == 1, "with nothing known anywhere, one place begins"
    assert all((~holes).mean((1, 2)).min() > 0 for _, holes, _ in calls[1:])


def test_large_holes_are_repaired_from_the_border_inward():
    hole = HOLES["long"]
    decode, calls = flat(0)
    rounds = list(repair_in_windows(picture(*hole.shape), hole, SIDE, decode, 4.0))
    assert len(rounds) == len(calls) > 2
    for _, holes, _ in calls:
        assert (~holes).mean((1, 2)).min() >= 0.2, "each window knows something around it"


def test_windows_of_a_round_do_not_overlap():
    hole = HOLES["long"]
    chosen = choose_round(plan_windows(hole, SIDE), hole)
    count = np.zeros(hole.shape, int)
    for window in chosen:
        count[window.view] += 1
    assert len(chosen) > 1
    assert count.max() == 1


def test_a_later_window_sees_what_an_earlier_one_decided():
    hole = box(16, 40, slice(2, 14), slice(4, 36))
    seen = []

    def decode(images, holes, numbers):
        seen.extend(images[~holes].tolist())
        return np.full_like(images, 250)

    list(repair_in_windows(np.full((16, 40, 3), 250, np.uint8), hole, SIDE, decode, 1.0))
    assert set(map(tuple, seen)) == {(250, 250, 250)}


def test_a_hole_that_fits_gets_one_window_with_the_hole_in_its_middle():
    (window,) = plan_windows(box(60, 60, slice(30, 34), slice(20, 26)), SIDE)
    assert [s.start for s in window.view] == [24, 15]


def test_joins_of_windows_show_no_seam_when_their_colours_differ():
    hole = box(32, 64, slice(8, 24), slice(8, 56))
    level = iter(range(90, 200, 4))

    def decode(images, holes, numbers):
        return np.stack([np.full((SIDE, SIDE, 3), next(level), np.uint8) for _ in numbers])

    image = np.full((32, 64, 3), 120, np.uint8)
    *_, last = repair_in_windows(image, hole, SIDE, decode, 4.0)
    steps = np.abs(np.diff(last[..., 0].astype(int), axis=1))
    assert np.ptp(last) > 10, "windows did differ"
    assert steps.max() <= 20, "but no join jumps by as much as they do"


@pytest.mark.parametrize("shape", [(1, 1), (5, 40), (16, 3), (15, 15)])
def test_smaller_pictures_are_reflected_up_and_cut_back(shape):
    image, hole = picture(*shape), np.zeros(shape, bool)
    hole[shape[0] // 2, shape[1] // 2] = True
    decode, calls = flat(9)
    *_, last = repair_in_windows(image, hole, SIDE, decode, 1.0)
    assert last.shape == image.shape
    assert calls[0][0].shape[1:] == (SIDE, SIDE, 3)
    assert (last[~hole] == image[~hole]).all()


def test_reflection_repeats_the_edge_pixel_and_hides_what_was_hidden():
    row = np.array([[1, 2, 3]])
    assert reflect_up(row, 7)[0].tolist() == [1, 2, 3, 3, 2, 1, 1]
    assert reflect_up(row == 2, 7)[:, :7].tolist() == [[0, 1, 0, 0, 1, 0, 0]] * 7


def test_a_picture_without_a_hole_is_not_decoded():
    image = picture(20, 30)
    decode, calls = flat(9)
    (last,) = repair_in_windows(image, np.zeros((20, 30), bool), SIDE, decode, 1.0)
    assert (last == image).all()
    assert not calls


def test_thick_holes_are_those_that_no_core_holds():
    for sides, thick in [((12, 12), False), ((13, 13), True), ((12, 80), False), ((13, 80), True)]:
        hole = box(90, 90, slice(5, 5 + sides[0]), slice(5, 5 + sides[1]))
        assert (thick_parts(hole, SIDE) == (hole & thick)).all(), "to the corners, or not at all"
        assert (thick_parts(hole.T, SIDE) == (hole.T & thick)).all()


def test_thin_parts_of_a_thick_hole_are_left_to_windows_but_for_their_roots():
    body, arm = box(90, 90, slice(5, 45), slice(5, 45)), box(90, 90, slice(20, 24), slice(45, 90))
    thick = thick_parts(body | arm, SIDE)
    assert thick[body].all()
    assert not thick[:, 56:].any()


def test_windows_of_thin_parts_leave_the_thick_ones_to_the_shrunk_picture():
    hole = box(90, 90, slice(5, 45), slice(5, 45)) | box(90, 90, slice(20, 24), slice(45, 70))
    image, (decode, _), thick = picture(90, 90), flat(7), thick_parts(hole, SIDE)
    *thin, shrunk = repair_in_windows(image, hole, SIDE, decode, 1.0)
    assert len(thin) > 1
    assert all((frame[thick] == image[thick]).all() for frame in thin)
    assert (shrunk[thick] != image[thick]).any()


def test_holes_less_than_half_as_thick_as_the_thickest_wait_for_their_own_turn():
    small, large, alike = (
        box(200, 200, slice(top, top + side), slice(left, left + side))
        for top, left, side in [(5, 5, 20), (60, 5, 100), (5, 130, 55)]
    )
    assert (thick_parts(small | large, SIDE) == large).all()
    assert (thick_parts(small, SIDE) == small).all()
    assert (thick_parts(alike | large, SIDE) == (alike | large)).all()


def test_each_window_of_a_thick_hole_knows_a_third_or_more_of_what_it_shows():
    hole = box(300, 400, slice(60, 220), slice(100, 300))
    decode, calls = flat(0)
    list(repair_in_windows(picture(*hole.shape), hole, SIDE, decode, 4.0))
    for _, holes, _ in calls:
        assert (~holes).mean((1, 2)).min() > 1 / 3


def draw_ramp_on(images, holes, numbers):
    """A decoder that continues colours which change evenly from left to right."""
    drawn = []
    for image, known in zip(images.astype(float), ~holes, strict=True):
        columns = np.nonzero(known)[1]
        slope, start = np.polyfit(columns, image[known][:, 0], 1)
        drawn.append(np.broadcast_to(start + slope * np.arange(SIDE), (SIDE, SIDE)))
    return np.repeat(np.stack(drawn).clip(0, 255).astype(np.uint8)[..., None], 3, -1)


def test_a_thick_hole_is_filled_from_the_shrunk_picture_without_its_own_colours():
    ramp = np.linspace(0, 150, 160).astype(np.uint8)[None, :, None].repeat(120, 0).repeat(3, 2)
    hole = box(120, 160, slice(30, 90), slice(40, 120))
    spoilt = np.where(hole[..., None], np.uint8(255), ramp)
    *_, last = repair_in_windows(spoilt, hole, SIDE, draw_ramp_on, 4.0)
    assert np.abs(last.astype(int) - ramp).max() <= 12  # pixels of the shrunk picture span ten


def test_rounds_of_the_shrunk_picture_are_enlarged_only_where_they_are_shown(monkeypatch):
    hole, enlarged, plain = box(120, 400, slice(30, 90), slice(20, 380)), [], windows.feather
    image, (decode, calls) = picture(*hole.shape), flat(7)

    def feather(decoded, *more):
        enlarged.append(decoded.shape == image.shape)
        return plain(decoded, *more)

    monkeypatch.setattr(windows, "feather", feather)
    shown = list(repair_in_windows(image, hole, SIDE, decode, 4.0))
    assert sum(enlarged) == len(shown) == len(calls) > 1
    enlarged.clear()
    *others, last = repair_in_windows(image, hole, SIDE, decode, 4.0, shows_rounds=False)
    assert sum(enlarged) == 1
    assert (last == shown[-1]).all()
    assert len(others) == len(shown) - 1, "as many steps for a progress bar"


def test_small_holes_beside_a_thick_one_are_repaired_in_full_size_before_it():
    thick = box(90, 120, slice(5, 65), slice(5, 65))
    small = box(90, 120, slice(75, 79), slice(100, 104))
    image, (decode, calls) = picture(90, 120), flat(7)
    (window,) = plan_windows(small, SIDE)
    first, *_ = repair_in_windows(image, thick | small, SIDE, decode, 1.0)
    images, holes, _ = calls[0]
    assert (holes == (thick | small)[window.view]).all()
    assert (images == image[window.view]).all()
    assert (first[~small] == image[~small]).all()
    assert (first[small] != image[small]).any()
