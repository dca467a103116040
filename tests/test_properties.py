"""What must hold for every input, tried on inputs that hypothesis draws."""

from __future__ import annotations

import math
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from fid.statistics import FeatureStatistics
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from config.decoding import RULES
from config.errors import UserError
from config.loading import load_config, save_config
from config.schema import Config, DecodingConfig
from config.section import MaskSchedule
from models.decode import decode
from models.masking import MASK_SCHEDULES, gamma, token_mask_from_holes
from models.orders import ORDERS
from utils.data.fill import COMPOSITES, composite
from utils.data.sources import deal
from utils.inpainting.windows import repair_in_windows
from utils.io.images import load_mask, load_rgb, save_png

quickly = settings(
    max_examples=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# Configs

shares = st.floats(0, 1, allow_nan=False)
words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
schedules = st.sampled_from(get_args(MaskSchedule))
configs = st.fixed_dictionaries(
    {},
    optional={
        "run": words,
        "seed": st.integers(0, 2**63 - 1),
        "precision": st.sampled_from(["auto", "fp32", "bf16", "fp16"]),
        "data": st.fixed_dictionaries({"root": words, "mean": st.tuples(shares, shares, shares)}),
        "masking": st.fixed_dictionaries({"mask_schedule": schedules}),
        "training": st.fixed_dictionaries(
            {
                "epochs": st.integers(1, 10**9),
                "learning_rate": st.floats(1e-300, 1, exclude_min=True),
                "max_grad_norm": st.none() | st.floats(1e-9, 1e9),
            }
        ),
        "decoding": st.fixed_dictionaries(
            {"mask_schedule": schedules, "choice_temperature": st.floats(0, 1e6)}
        ),
    },
)


@quickly
@given(configs)
def test_a_saved_config_reads_back_as_the_same(values):
    config = Config.model_validate(values)
    with tempfile.TemporaryDirectory() as folder:
        save_config(config, Path(folder) / "c.yml")
        assert load_config(Path(folder) / "c.yml") == config


@quickly
@given(st.text(max_size=60))
def test_any_text_is_a_config_or_one_line(text):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.yml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        said = ""
        try:
            load_config(path)
        except UserError as error:
            said = str(error)
    assert not said or said.isprintable()


# Schedules and decoding


@pytest.mark.parametrize("name", MASK_SCHEDULES)
@quickly
@given(a=shares, b=shares)
def test_schedules_never_rise_and_stay_within_0_and_1(name, a, b):
    low, high = sorted((a, b))
    early, late = float(gamma(name, low)), float(gamma(name, high))
    assert 0 <= late <= early <= 1
    assert (float(gamma(name, 0.0)), float(gamma(name, 1.0))) == (1, 0)


@quickly
@given(
    holes=arrays(bool, (2, 8, 8)),
    grid=st.sampled_from([1, 2, 4, 8]),
)
def test_a_token_is_hidden_exactly_when_its_patch_has_a_hole(holes, grid):
    side = 8 // grid
    found = token_mask_from_holes(torch.from_numpy(holes), grid)
    for image, row in zip(holes, found.tolist(), strict=True):
        blocks = image.reshape(grid, side, grid, side).any((1, 3))
        assert row == blocks.ravel().tolist()


TOKENS, CODES = 16, 5


@pytest.mark.parametrize("rule", RULES)
@quickly
@given(
    order=st.sampled_from([*ORDERS]),
    masks=arrays(bool, (3, TOKENS)),
    total=st.integers(1, 20),
    share=shares,
    temperature=st.floats(0, 100),
    schedule=schedules,
    choice=st.sampled_from(["rule", "argmax", "sample"]),
    seed=st.integers(0, 2**63 - 1),
)
def test_decoding_fills_all_holes_and_touches_nothing_known(
    rule, order, masks, total, share, temperature, schedule, choice, seed
):
    sweet_spot = max(1, round(share * total))
    options = DecodingConfig(
        rule=rule,
        order=order,
        token_choice=choice,
        mask_schedule=schedule,
        total_iter=total,
        sweet_spot=sweet_spot,
        choice_temperature=temperature,
    )
    start = torch.arange(3 * TOKENS).view(3, TOKENS) % CODES
    hidden, seen = torch.from_numpy(masks), []

    def logits_of(token_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        assert (token_ids[mask] == CODES).all(), "the model sees no hidden token"
        return torch.sin(torch.arange(int(mask.sum()) * CODES).float()).view(-1, CODES) * 3

    steps = decode(
        logits_of,
        start,
        hidden,
        options,
        model_schedule=schedule,
        mask_token_id=CODES,
        seed=seed,
        image_ids=torch.arange(3),
    )
    for step in steps:
        token_ids, left = step.token_ids, step.hidden
        assert torch.equal(token_ids[~hidden], start[~hidden]), "a known token changed"
        assert not (left & ~hidden).any(), "a known token was hidden"
        assert ((token_ids >= 0) & (token_ids < CODES)).all(), "a mask id was predicted"
        if seen and order != "revise":
            assert not (left & ~seen[-1]).any(), "a revealed token was hidden again"
        seen.append(left)
    assert len(seen) == sweet_spot
    if sweet_spot == total and rule != "lab_from_zero":  # whose progress never reaches 1
        assert not seen[-1].any(), "a token stayed hidden after the last step"


# Statistics


@quickly
@given(
    rows=arrays(np.float64, st.tuples(st.integers(2, 30), st.just(3)), elements=st.floats(-9, 9)),
    cuts=st.lists(st.integers(0, 30), max_size=4),
    order=st.randoms(use_true_random=False),
)
def test_statistics_do_not_depend_on_how_and_in_which_order_parts_are_merged(rows, cuts, order):
    parts = np.split(rows, sorted(cut for cut in cuts if cut < len(rows)))
    order.shuffle(parts)
    total = FeatureStatistics(3)
    for part in parts:
        statistics = FeatureStatistics(3)
        if len(part):
            statistics.update(torch.from_numpy(part.copy()))
        total.merge(statistics)
    assert total.count == len(rows)
    assert np.allclose(total.mean(), rows.mean(0), atol=1e-12)
    assert np.allclose(total.covariance(), np.cov(rows.T), atol=1e-10)


# Pictures

pictures = arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)))


@quickly
@given(pictures)
def test_a_saved_picture_reads_back_as_the_same(pixels):
    with tempfile.TemporaryDirectory() as folder:
        save_png(Path(folder) / "a.png", pixels)
        assert np.array_equal(np.asarray(load_rgb(Path(folder) / "a.png")), pixels)


@quickly
@given(arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_a_saved_mask_reads_back_as_the_same(hole):
    with tempfile.TemporaryDirectory() as folder:
        save_png(Path(folder) / "m.png", np.where(hole, 0, 255).astype(np.uint8))
        assert np.array_equal(load_mask(Path(folder) / "m.png"), hole)


@quickly
@given(st.binary(max_size=200))
def test_any_bytes_are_a_picture_or_one_line(content):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.png"
        path.write_bytes(content)
        with suppress(UserError):
            load_rgb(path)


@pytest.mark.parametrize("name", [name for name in COMPOSITES if name != "none"])
@quickly
@given(hole=arrays(bool, (8, 8)), width=st.floats(0.5, 20), seed=st.integers(0, 99))
def test_pasting_leaves_every_known_pixel_as_it_was(name, hole, width, seed):
    image, decoded = np.random.default_rng(seed).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    out = composite(decoded, image, hole, name, width)
    assert np.array_equal(out[~hole], image[~hole])


@quickly
@given(
    hole=arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))),
    width=st.floats(0.5, 20),
    value=st.integers(0, 255),
)
def test_windows_change_no_pixel_outside_the_holes(hole, width, value):
    image = np.random.default_rng(value).integers(0, 256, (*hole.shape, 3), dtype=np.uint8)

    def decoded(images: np.ndarray, holes: np.ndarray, numbers: list[int]) -> np.ndarray:
        assert images.shape[1:] == (16, 16, 3)
        return np.full_like(images, value)

    *_, out = repair_in_windows(image, hole, 16, decoded, width)
    assert out.shape == image.shape
    assert np.array_equal(out[~hole], image[~hole])


# Splits


@quickly
@given(
    copies=st.dictionaries(words, st.integers(1, 4), min_size=1, max_size=12),
    train=st.integers(1, 9),
    val=st.integers(1, 4),
    test=st.integers(1, 4),
)
def test_no_picture_is_ever_dealt_into_two_splits(copies, train, val, test):
    dealt = deal(copies, {"train": train, "val": val, "test": test})
    if dealt is None:
        assert len(copies) < train + val + test
        return
    assert [len(dealt[name]) for name in ("train", "val", "test")] == [train, val, test]
    splits = [set(names) for names in dealt.values()]
    assert sum(map(len, splits)) == len(set().union(*splits))
    assert math.prod(len(dealt[name]) == len(set(dealt[name])) for name in ("val", "test"))
