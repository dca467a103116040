"""Repairing a set: names, picture grids, the manifest, composites, and what cannot matter."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import utils.scoring  # noqa: F401  puts the scorer's folder on the path
from config.errors import UserError
from models.cpu_kernels import IMAGES_AT_ONCE
from models.vqgan import VQGAN
from utils.data.datasets import InpaintingSet
from utils.inpainting.job import Inpainter, inpaint_set
from utils.io.images import load_rgb
from utils.io.pictures import GAP
from utils.weights.store import save_weights

SIDE, COUNT = 16, 5
STEP = SIDE + GAP


def pixels(path: Path) -> np.ndarray:
    return np.asarray(load_rgb(path))


def files(folder: Path) -> dict[str, bytes]:
    """Every picture below a folder by its name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.png")}


def cell(grid: np.ndarray, place: int, per_row: int, side: int) -> np.ndarray:
    top, left = (GAP + index * (side + GAP) for index in divmod(place, per_row))
    return grid[top : top + side, left : left + side]


# Names and grids


def test_the_reports_three_folders_and_the_comparisons_hold_a_file_for_every_image(repair):
    names = [f"test_results/image_{i:03d}.png" for i in range(COUNT)]
    names += [f"mask_scheduling/final_test_{i}.png" for i in range(COUNT)]
    names += [f"imga/final_test_{i}.png" for i in range(COUNT)]
    names += [f"comparison/image_{i:03d}.png" for i in range(COUNT)]
    assert files(repair()).keys() == set(names)


def test_results_have_the_images_size(repair):
    results = (repair() / "test_results").glob("*.png")
    assert [pixels(path).shape for path in results] == [(SIDE, SIDE, 3)] * COUNT


@pytest.mark.parametrize("rule", ["listing", "maskgit"])
def test_mask_tiles_show_known_white_hidden_black_10_a_row(repair, rule):
    output = repair({"decoding.rule": rule, "decoding.total_iter": 12})
    for index, hidden_at_start in enumerate([0, 1, 2, 4, 16]):
        grid = pixels(output / "mask_scheduling" / f"final_test_{index}.png")
        assert grid.shape == (2 * (4 + GAP) + GAP, 10 * (4 + GAP) + GAP, 3)
        assert set(np.unique(grid)) <= {0, 255}
        hidden = [(cell(grid, t, 10, 4)[..., 0] == 0).sum() for t in range(12)]
        assert hidden == sorted(hidden, reverse=True)
        assert hidden[0] <= hidden_at_start
        assert hidden[-1] == 0


def test_image_tiles_begin_with_the_masked_input_and_end_with_the_result(repair, job):
    output = repair({"decoding.total_iter": 7})
    for index in range(COUNT):
        grid = pixels(output / "imga" / f"final_test_{index}.png")
        assert grid.shape == (2 * STEP + GAP, 7 * STEP + GAP, 3)
        masked = pixels(job / "masked_image" / f"image_{index:03d}.png")
        assert (cell(grid, 0, 7, SIDE) == masked).all()
        result = pixels(output / "test_results" / f"image_{index:03d}.png")
        assert (cell(grid, 7, 7, SIDE) == result).all()


def test_steps_after_the_sweet_spot_stay_black(repair):
    output = repair({"decoding.total_iter": 6, "decoding.sweet_spot": 2})
    masks = pixels(output / "mask_scheduling" / "final_test_0.png")  # nothing hidden: all white
    images = pixels(output / "imga" / "final_test_0.png")
    assert [cell(masks, t, 10, 4).any() for t in range(6)] == [True] * 2 + [False] * 4
    assert [cell(images, t, 7, SIDE).any() for t in range(7)] == [True] * 3 + [False] * 4


def test_step_pictures_can_be_left_out(repair):
    output = repair({"decoding.step_pictures": False, "decoding.comparison": False})
    assert {name.split("/")[0] for name in files(output)} == {"test_results"}


# The manifest


def test_the_manifest_leads_the_scorer_to_the_truth_and_the_masks(repair, job):
    from fid.inputs import Settings, resolve_inputs

    found = resolve_inputs(Settings(str(repair() / "test_results"), metrics=("paired",)))
    assert found.paired
    for index in range(COUNT):
        truth = pixels(job / "test" / f"image_{index:03d}.png")
        assert (found.reference.pixels(index) == truth).all()
        mask = pixels(job / "mask64" / f"mask_{index:03d}.png")
        assert (found.masks.pixels(index) == mask).all()
        assert found.predicted.names[index] == f"image_{index:03d}.png"


def test_the_manifest_leads_the_scorer_to_the_rows_of_a_table(repair, job):
    from fid.inputs import Settings, resolve_inputs

    rows = [pixels(path).ravel() for path in sorted((job / "test").iterdir())]
    lines = [",".join(map(str, range(768))), *(",".join(map(str, row)) for row in rows)]
    (job / "test_gt.csv").write_text("\n".join(lines))
    for path in (job / "test").iterdir():
        path.unlink()
    (job / "test").rmdir()
    found = resolve_inputs(Settings(str(repair() / "test_results")))
    assert all((found.reference.pixels(i).ravel() == row).all() for i, row in enumerate(rows))


def test_the_manifest_says_what_made_the_images(repair, weights):
    from utils.io.files import content_hash

    stated = json.loads((repair({"seed": 7}) / "test_results" / "manifest.json").read_text())
    assert stated["seed"] == 7
    assert stated["config"]["decoding"]["total_iter"] == 3
    assert stated["tokenizer_sha256"] == content_hash([weights.tokenizer_weights])
    assert stated["transformer_sha256"] == content_hash([weights.transformer_weights])
    assert stated["images"][2] == {
        "image": "image_002.png",
        "source": "image_002.png",
        "mask": "mask_002.png",
        "ground_truth": "image_002.png",
    }


def test_without_a_truth_the_manifest_names_none(repair, job):
    source = InpaintingSet(job / "masked_image", job / "mask64")
    stated = json.loads((repair(source=source) / "test_results" / "manifest.json").read_text())
    assert stated["ground_truth"] is None
    assert "ground_truth" not in stated["images"][0]


# Composites


def test_a_hard_composite_keeps_known_pixels_bit_by_bit_and_none_does_not(repair, job):
    hard, none = (repair({"decoding.composite": kind}) for kind in ("hard", "none"))
    for index in range(COUNT):
        name = f"test_results/image_{index:03d}.png"
        masked = pixels(job / "masked_image" / f"image_{index:03d}.png")
        known = pixels(job / "mask64" / f"mask_{index:03d}.png") == 255
        assert (pixels(hard / name)[known] == masked[known]).all()
        assert (pixels(hard / name)[~known] == pixels(none / name)[~known]).all()
        if known.any():
            assert (pixels(none / name)[known] != masked[known]).any()


def test_an_image_without_a_hole_is_unchanged_under_a_hard_composite(repair, job):
    output = repair({"decoding.composite": "hard"})
    masked = pixels(job / "masked_image" / "image_000.png")
    assert (pixels(output / "test_results" / "image_000.png") == masked).all()


# What matters and what does not


@pytest.mark.parametrize(
    ("rule", "precision"), [("listing", "fp32"), ("maskgit", "fp32"), ("maskgit", "bf16")]
)
def test_the_batch_size_changes_no_byte_of_any_picture(repair, rule, precision):
    settings = {"decoding.rule": rule, "decoding.samples": 2, "decoding.composite": "feather"}
    settings["precision"] = precision
    sizes = (1, 7, 64, "auto", 2)
    outputs = [files(repair({**settings, "decoding.batch_size": size})) for size in sizes]
    assert len(outputs[0]) == 2 * 4 * COUNT
    assert all(output == outputs[0] for output in outputs[1:])


def test_weights_are_rounded_once_as_autocast_would_in_every_forward_pass(
    repair, weights, changed, monkeypatch
):
    maskgit = Inpainter(changed(weights, {"precision": "bf16"})).maskgit
    assert maskgit.transformer.blocks[0].MLP[0].weight.dtype == torch.bfloat16
    assert maskgit.tokenizer.quant_conv.weight.dtype == torch.float32, "tokens stay exact"
    once = files(repair({"precision": "bf16"}))
    monkeypatch.setattr("utils.inpainting.inpainter.cast_weights", lambda *_: None)
    assert files(repair({"precision": "bf16"})) == once


def test_groups_that_are_filled_up_change_no_pixel_beyond_rounding(repair, monkeypatch):
    alone = repair()
    monkeypatch.setitem(IMAGES_AT_ONCE, "cpu", 3)  # as on a GPU: 5 images in two groups of 3
    grouped = repair({"decoding.batch_size": 4})
    assert files(alone).keys() == files(grouped).keys()
    for name in files(alone):
        first, other = (pixels(output / name).astype(int) for output in (alone, grouped))
        assert np.abs(first - other).max() <= 1, name


def test_a_narrow_decoder_in_bf16_takes_four_images_a_pass(repair, monkeypatch):
    taken, decode = [], VQGAN.decode
    monkeypatch.setattr(
        VQGAN, "decode", lambda net, ids: taken.append(len(ids)) or decode(net, ids)
    )
    repair({"precision": "bf16", "decoding.step_pictures": False})
    assert taken == [4, 4], "five images, the last three zero-padded"


def test_two_runs_are_equal_and_another_seed_is_not(repair):
    first, again, other = (files(repair({"seed": seed})) for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_each_hole_fill_makes_its_own_input(repair):
    outputs = [files(repair({"decoding.hole_fill": fill})) for fill in ("grey", "biharmonic")]
    assert outputs[0] != outputs[1]


@pytest.mark.parametrize("fill", ["grey", "mean", "harmonic", "biharmonic"])
def test_what_the_hole_held_does_not_leak_into_the_result(repair, job, fill):
    settings = {"decoding.hole_fill": fill, "decoding.step_pictures": False}
    before = files(repair(settings))
    for path in (job / "masked_image").iterdir():
        path.write_bytes((job / "test" / path.name).read_bytes())
    assert files(repair(settings)) == before


def test_one_image_with_one_mask_is_a_job(repair, job):
    source = InpaintingSet(job / "masked_image" / "image_003.png", job / "mask64" / "mask_003.png")
    output = repair(source=source)
    assert "test_results/image_000.png" in files(output)
    assert len(files(output)) == 4


def test_two_folders_are_a_job_like_the_prepared_one(repair, job):
    source = InpaintingSet(job / "masked_image", job / "mask64", job / "test")
    assert files(repair(source=source)) == files(repair())


def test_neither_network_gets_gradients_or_trains(weights):
    maskgit = Inpainter(weights).maskgit
    assert not maskgit.training
    assert not any(p.requires_grad for p in maskgit.tokenizer.parameters())


def test_any_thread_may_ask_for_the_next_step_and_stays_as_it_was(weights, job, changed):
    inpainter, item = Inpainter(changed(weights, {"precision": "bf16"})), InpaintingSet(job)[3]
    shown = inpainter.fill_all(item.image[None], item.hole[None]), item.hole[None]
    steps, found = inpainter.finish(inpainter.start(*shown), [3]), []

    def settings() -> tuple[int, bool, bool]:
        is_cast, has_grad = torch.is_autocast_enabled("cpu"), torch.is_grad_enabled()
        return torch.get_num_threads(), is_cast, has_grad

    def ask() -> None:
        torch.set_num_threads(2)
        found.append(next(steps).token_ids)
        assert settings() == (2, False, True)

    expected, before = inpainter.decode(*shown, [3], 1).token_ids, settings()
    for _ in expected:
        with ThreadPoolExecutor(1) as another:
            another.submit(ask).result()
        assert settings() == before
    assert all(map(torch.equal, found, expected))
    assert list(steps) == []


# Mistakes


def test_a_transformer_of_another_codebook_is_one_line(repair, weights, transformer):
    other = transformer.config.model_copy(update={"codebook_size": 32})
    state = type(transformer)(other).state_dict()
    save_weights(weights.transformer_weights, state, other, {})
    with pytest.raises(UserError, match=r"transformer.codebook_size is 32, but the config says 16"):
        repair()


def test_missing_weights_are_one_line(repair, weights):
    weights.transformer_weights.unlink()
    with pytest.raises(UserError, match=r"transformer.safetensors: no such weights file"):
        repair()


def test_an_output_that_is_a_file_is_one_line(weights, job, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match=r"out: cannot be made: File exists"):
        inpaint_set(weights, InpaintingSet(job), tmp_path / "out")


def test_timing_counts_every_image(weights, job, tmp_path):
    timing = inpaint_set(weights, InpaintingSet(job), tmp_path / "out")
    assert timing["images_per_second"] * timing["seconds"] == pytest.approx(COUNT)
    assert torch.is_grad_enabled()


def test_a_picture_at_hand_keeps_its_colour_profile(weights):
    image, mask = Image.new("RGB", (16, 16), (9, 8, 7)), np.full((16, 16), 255, np.uint8)
    mask[4:8, 4:8] = 0
    inpainter, profile = Inpainter(weights), b"." * 16 + b"RGB " + b"." * 200
    assert inpainter(image, Image.fromarray(mask)).info == {}
    image.info["icc_profile"] = profile
    assert inpainter(image, Image.fromarray(mask)).info == {"icc_profile": profile}


@pytest.mark.parametrize("kind", ["folder", "table"])
def test_results_next_to_another_truth_than_their_own_are_noted(
    repair, job, tmp_path, capsys, kind
):
    from fid.inputs import Settings, resolve_inputs

    if kind == "table":
        rows = [",".join(map(str, pixels(path).ravel())) for path in sorted(job.glob("test/*"))]
        (job / "test_gt.csv").write_text("\n".join([",".join(map(str, range(768))), *rows]))
        shutil.rmtree(job / "test")
    output = repair(output=job / "out")
    shutil.copytree(job, tmp_path / "moved whole")
    resolve_inputs(Settings(str(tmp_path / "moved whole/out/test_results")))
    assert "moved" not in capsys.readouterr().err
    shutil.copytree(job, other := tmp_path / "other")
    for path in (*other.glob("test/*"), *other.glob("test_gt.csv")):
        path.write_bytes(path.read_bytes() + b"\n")  # of another size
    shutil.rmtree(other / "out")
    shutil.move(output, other / "out")
    resolve_inputs(Settings(str(other / "out/test_results")))
    assert "other files than those that the repairs hid" in capsys.readouterr().err
