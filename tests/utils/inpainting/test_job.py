"""Jobs as a whole: reruns, processes, several repairs, other sizes, mistakes, full disks."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageCms

import inpainting
import utils.data.datasets
import utils.inpainting.job
from config.errors import UserError
from config.loading import save_config
from models.maskgit import MaskGIT
from models.vqgan import VQGAN
from utils.cli import run
from utils.data.datasets import InpaintingSet
from utils.inpainting.inpainter import Inpainter
from utils.inpainting.outputs import Outputs
from utils.io.files import WriteBehind, alone_in
from utils.io.images import encode_png, load_rgb

ROOT, COUNT, SIDE = Path(__file__).parents[3], 5, 16
ANEW = "images are made again"


def pixels(path: Path) -> np.ndarray:
    return np.asarray(load_rgb(path))


def files(folder: Path) -> dict[str, bytes]:
    """Every picture below a folder by its name."""
    pictures = (path for path in folder.rglob("[!.]*.*") if path.suffix != ".json")
    return {str(path.relative_to(folder)): path.read_bytes() for path in pictures}


def times(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.png")}


def stated(output: Path) -> dict:
    return json.loads((output / "test_results" / "manifest.json").read_text())


def put(path: Path, content: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(content))
    return path


# Reruns


def test_a_rerun_repairs_nothing_and_leaves_every_file_alone(repair, monkeypatch):
    output = repair()
    before = times(output)
    monkeypatch.setattr(MaskGIT, "finish", lambda *a, **k: pytest.fail("decoded again"))
    made = stated(output)
    repair(output=output)
    assert times(output) == before
    assert (stated(output)["repaired"], stated(output)["skipped"]) == (0, COUNT)
    assert stated(output)["seconds"] == made["seconds"], "the time it took to make them"


def test_a_manifest_without_times_is_written_anew(repair):
    output = repair()
    path = output / "test_results" / "manifest.json"
    path.write_text(json.dumps({"settings": stated(output)["settings"]}))
    repair(output=output)
    assert stated(output)["skipped"] == COUNT
    assert stated(output)["processes"] == 1


def test_a_rerun_repairs_what_is_missing_or_damaged(repair):
    output = repair()
    whole, folder = files(output), output / "test_results"
    (folder / "image_001.png").unlink()
    (folder / "image_002.png").write_bytes(whole["test_results/image_002.png"][:60])
    (output / "imga" / "final_test_3.png").unlink()
    repair(output=output)
    assert files(output) == whole
    assert stated(output)["repaired"] == 3


def test_restart_repairs_all_anew(repair):
    output = repair()
    repair(output=output, restart=True)
    assert (stated(output)["repaired"], stated(output)["skipped"]) == (COUNT, 0)


def test_other_settings_are_told_and_repair_all_anew(repair, capsys):
    output = repair({"decoding.total_iter": 3})
    capsys.readouterr()
    repair({"decoding.total_iter": 4, "seed": 1}, output=output)
    told = capsys.readouterr().err
    assert f"(decoding.total_iter 3, now 4; seed 0, now 1): its {ANEW}" in told
    assert stated(output)["repaired"] == COUNT
    assert files(output) == files(repair({"decoding.total_iter": 4, "seed": 1}))


def alone(photo: Path, name: str) -> InpaintingSet:
    """One picture of the user's own, under a name."""
    (photo.parent / name).write_bytes(photo.read_bytes())
    return InpaintingSet(photo.parent / name, photo.parent / "h.png")


def test_the_repair_of_another_picture_is_not_replaced_unasked(repair, photo):
    output = repair(source=alone(photo[0], "anna.png"))
    before = files(output), stated(output)
    with pytest.raises(UserError) as caught:
        repair(source=alone(photo[0], "bert.png"), output=output)
    result = output / "test_results" / "image_000.png"
    assert str(caught.value) == (
        f"{result}: is the repair of anna.png, not of bert.png; "
        "name another --output, or replace it with --restart"
    )
    assert (files(output), stated(output)) == before
    repair(source=alone(photo[0], "bert.png"), output=output, restart=True)
    assert stated(output)["images"][0]["source"] == "bert.png"


def test_a_picture_of_another_program_is_not_replaced_unasked(repair, tmp_path):
    output = tmp_path / "lab"
    theirs = put(output / "test_results" / "image_002.png", np.zeros((64, 64, 3), np.uint8))
    before = theirs.read_bytes()
    with pytest.raises(UserError) as caught:
        repair(output=output)
    assert str(caught.value) == (
        f"{theirs}: was not made by this program; "
        "name another --output, or replace it with --restart"
    )
    assert files(output) == {"test_results/image_002.png": before}
    repair(output=output, restart=True)
    assert files(output) == files(repair())
    theirs.write_bytes(before)  # the manifest says that it was ours
    repair(output=output)
    assert files(output) == files(repair())


@pytest.mark.parametrize("was_finished", [False, True])
def test_the_repairs_of_a_run_that_was_cut_short_are_not_replaced_unasked(
    repair, job, photo, tmp_path, monkeypatch, was_finished
):
    output = repair() if was_finished else tmp_path / "cut"
    decode, calls = MaskGIT.finish, []

    def killed(*arguments, **named):
        calls.append(1)
        if len(calls) == 3:
            raise SystemExit  # nothing is written after it, as after SIGKILL
        return decode(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(MaskGIT, "finish", killed)
        with pytest.raises(SystemExit):
            repair({"decoding.batch_size": 1, "seed": 4}, output=output)
    assert not (output / "test_results" / "manifest.json").exists()
    before = files(output)
    with pytest.raises(UserError, match=r"image_000.png: is the repair of image_000.png, not of b"):
        repair(source=alone(photo[0], "bert.png"), output=output)
    assert files(output) == before
    repair(output=output)
    assert files(output) == files(repair())
    repair(source=alone(photo[0], "bert.png"), output=output, restart=True)
    with pytest.raises(UserError, match="is the repair of bert.png, not of image_000.png"):
        repair(output=output)


def test_a_picture_that_stopped_a_job_may_be_taken_out_of_it(repair, job, tmp_path):
    output, broken = tmp_path / "out", job / "masked_image" / "image_002.png"
    whole = broken.read_bytes()
    broken.write_bytes(b"")
    with pytest.raises(UserError, match="2 of 5 images are finished"):
        repair({"decoding.batch_size": 1}, output=output)
    for part in ("masked_image/image", "mask64/mask", "test/image"):
        (job / f"{part}_002.png").unlink()
    repair(output=output)
    assert stated(output)["skipped"] == 2
    broken.write_bytes(whole)


def test_a_folder_may_grow_by_a_picture_that_comes_first(repair, job):
    first = list(job.rglob("*_000.png"))
    held = [path.read_bytes() for path in first]
    for path in first:
        path.unlink()
    output = repair()
    for path, content in zip(first, held, strict=True):
        path.write_bytes(content)
    repair(output=output)
    assert files(output) == files(repair())


def test_other_weights_are_told(repair, weights, transformer, capsys):
    from utils.weights.store import save_weights

    output = repair()
    state = {key: value + 0.01 for key, value in transformer.state_dict().items()}
    save_weights(weights.transformer_weights, state, transformer.config, {})
    repair(output=output)
    assert f"(other transformer_sha256): its {ANEW}" in capsys.readouterr().err
    assert stated(output)["repaired"] == COUNT


def test_the_manifest_states_the_networks_that_ran_and_a_note_what_the_config_said(
    repair, weights, capsys
):
    settings = {"transformer.num_layers": 7, "transformer.dropout": 0.3}
    output = repair({**settings, "tokenizer.norm": "position"})
    networks = stated(output)["config"]
    assert (networks["transformer"]["num_layers"], networks["tokenizer"]["norm"]) == (2, "group")
    notes = [line for line in capsys.readouterr().err.splitlines() if "note: " in line]
    assert notes == [
        f"note: {weights.tokenizer_weights}: overrides the config: tokenizer.norm group, "
        "not position",
        f"note: {weights.transformer_weights}: overrides the config: transformer.num_layers 2, "
        "not 7",
    ]
    assert files(output) == files(repair())


def test_a_config_that_says_nothing_of_its_networks_is_not_contradicted(weights, capsys):
    held = {"codebook_size": 16, "num_tokens": 16}
    silent = weights.transformer.model_validate(held)
    inpainter = Inpainter(weights.model_copy(update={"transformer": silent}))
    assert inpainter.config.transformer.num_layers == 2
    assert capsys.readouterr().err == ""


def test_a_changed_image_or_mask_is_repaired_anew_and_a_changed_hole_colour_is_not(repair, job):
    output = repair()
    known, mask = job / "masked_image" / "image_001.png", job / "mask64" / "mask_002.png"
    image = pixels(known).copy()
    image[15, 15] ^= 255
    put(known, image)
    put(mask, np.where(pixels(mask)[..., 0] == 0, 255, 0).astype(np.uint8))
    put(job / "masked_image" / "image_003.png", pixels(job / "test" / "image_003.png"))
    repair(output=output)
    assert (stated(output)["repaired"], stated(output)["skipped"]) == (2, COUNT - 2)


def test_a_run_that_did_not_end_is_told_too(repair, capsys):
    output = repair()
    (output / "test_results" / "manifest.json").unlink()
    (output / "test_results" / "image_000.png").unlink()
    capsys.readouterr()
    repair({"seed": 1}, output=output)
    assert f"(4 images of a run that did not end): its {ANEW}" in capsys.readouterr().err


def test_more_outputs_than_before_are_made_and_fewer_skip_all(repair):
    output = repair({"decoding.comparison": False})
    repair(output=output)
    assert stated(output)["repaired"] == COUNT
    repair({"decoding.comparison": False, "decoding.batch_size": 2}, output=output)
    assert stated(output)["repaired"] == 0


def test_an_interrupted_job_leaves_finished_images_and_no_manifest(repair, monkeypatch):
    whole, output = files(repair()), repair({"seed": 3})
    decode, calls = MaskGIT.finish, []

    def interrupted(*arguments, **named):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return decode(*arguments, **named)

    monkeypatch.setattr(MaskGIT, "finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        repair({"decoding.batch_size": 1}, output=output)
    assert not (output / "test_results" / "manifest.json").exists(), "it would be of seed 3"
    repair(output=output)
    assert files(output) == whole
    assert 1 <= stated(output)["skipped"] <= 2


# Several processes


def test_two_processes_leave_what_one_does(repair, weights, job, in_copies, tmp_path):
    save_config(weights, tmp_path / "c.yml")
    output = tmp_path / "shared"
    command = ROOT / "inpainting.py", "--config", tmp_path / "c.yml", "--data", job
    ends = in_copies(*command, "--output", output)
    assert [end.code for end in ends] == [0, 0], ends
    assert sorted(end.out.split()[0] for end in ends) == ["2", "3"]
    alone = repair()
    assert files(output) == files(alone)
    assert stated(output)["images"] == stated(alone)["images"]
    assert stated(output)["processes"] == 2
    ends = in_copies(*command, "--output", output, torchrun=False)
    text = "all results exist already (--restart repairs them again): "
    assert any(end.out.startswith(text) for end in ends), ends


def test_a_second_run_at_once_is_refused(repair, tmp_path):
    output, second = tmp_path / "shared", pytest.raises(UserError, match="another process is at")
    with alone_in(output), second:
        repair(output=output)
    assert files(output) == {}


def test_a_result_that_another_run_replaces_meanwhile_is_told(repair, tmp_path, monkeypatch):
    place = Path("test_results", "image_001.png")  # on a disk without locks
    output, others, plain = (
        tmp_path / "shared",
        repair({"seed": 1}),
        utils.inpainting.job._repair_all,
    )

    def repair_all(*arguments: object) -> None:
        plain(*arguments)
        shutil.copy(others / place, output / place)

    monkeypatch.setattr(utils.inpainting.job, "_repair_all", repair_all)
    with pytest.raises(UserError, match="another process replaced or removed results"):
        repair(output=output)
    assert not (output / "test_results" / "manifest.json").exists()
    monkeypatch.undo()
    repair(output=output)
    assert files(output) == files(repair())


def test_a_process_that_is_not_the_last_writes_no_manifest(repair, become):
    for rank, is_last in ((1, False), (0, True)):
        become(rank, 2)
        output = repair(output=None if rank == 1 else output)  # noqa: F821
        assert (output / "test_results" / "manifest.json").exists() == is_last


def test_a_process_without_an_image_does_not_say_that_results_exist(
    weights, photo, tmp_path, monkeypatch, become, capsys
):
    save_config(weights, tmp_path / "c.yml")
    command = f"inpainting.py --config {tmp_path / 'c.yml'} --images {photo[0]} --masks {photo[1]}"
    monkeypatch.setattr(sys, "argv", [*command.split(), "--output", str(tmp_path / "out")])
    become(1, 2)
    inpainting.main()
    assert capsys.readouterr().out == "nothing to do, process 2 of 2: fewer images than processes\n"


def share(config, job, output, monkeypatch, become, rank: int, seconds: float) -> dict:
    """Be one of two processes whose clock shows so many seconds at the end."""
    clock = iter([0.0, seconds])
    monkeypatch.setattr(
        utils.inpainting.job, "time", SimpleNamespace(perf_counter=lambda: next(clock))
    )
    become(rank, 2)
    return utils.inpainting.job.inpaint_set(config, InpaintingSet(job), output)


def test_the_manifest_of_several_processes_states_the_time_and_images_of_all(
    weights, job, tmp_path, monkeypatch, become
):
    slow, fast = (
        share(weights, job, tmp_path, monkeypatch, become, *of) for of in ((1, 8.0), (0, 2.0))
    )
    assert [(own["seconds"], own["repaired"]) for own in (slow, fast)] == [(8.0, 2), (2.0, 3)]
    found = [stated(tmp_path)[key] for key in ("seconds", "images_per_second", "repaired")]
    assert found == [8.0, 5 / 8.0, 5]
    for rank in (0, 1):  # nothing is left to do
        share(weights, job, tmp_path, monkeypatch, become, rank, 1.0)
    assert (stated(tmp_path)["seconds"], stated(tmp_path)["repaired"]) == (8.0, 0)
    assert stated(tmp_path)["skipped"] == 5


def test_what_a_process_left_earlier_does_not_count_once_it_has_begun_again(
    weights, job, tmp_path, monkeypatch, become
):
    for rank in (0, 1):
        share(weights, job, tmp_path, monkeypatch, become, rank, 1.0)
    with monkeypatch.context() as patch:
        patch.setattr(utils.inpainting.job, "_repair_all", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            share(weights, job, tmp_path, monkeypatch, become, 0, 1.0)
    share(weights, job, tmp_path, monkeypatch, become, 1, 1.0)
    assert not (tmp_path / "test_results" / "manifest.json").exists()


def test_repairs_written_by_several_threads_are_all_counted(weights, job, tmp_path, monkeypatch):
    class Slow(utils.inpainting.job.Job):
        """Leaves time between reading its count and writing it."""

        count = 0

        @property
        def written(self) -> int:
            found = self.count
            time.sleep(0.02)
            return found

        @written.setter
        def written(self, count: int) -> None:
            self.count = count

    slow = Slow(Inpainter(weights), InpaintingSet(job), tmp_path, False)
    monkeypatch.setattr(Outputs, "write", lambda *_: None)
    task = slow.read(0)
    with ThreadPoolExecutor(4) as pool:
        for _ in range(8):
            pool.submit(slow._write, task, 0, [task.item.image])
    assert slow.count == 8


def test_an_image_is_decoded_once_for_its_repair_and_its_comparison(repair, job, monkeypatch):
    read, plain = [], utils.data.datasets.load_rgb
    monkeypatch.setattr(
        utils.data.datasets, "load_rgb", lambda path: read.append(path) or plain(path)
    )
    repair()
    assert sorted(read) == sorted([*(job / "masked_image").iterdir(), *(job / "test").iterdir()])


def test_large_pictures_after_an_icon_are_not_read_ahead_together(repair, job, monkeypatch):
    for index in range(1, COUNT):
        put(job / f"masked_image/image_{index:03d}.png", np.zeros((43, 61, 3), np.uint8))
        put(job / f"mask64/mask_{index:03d}.png", np.full((43, 61), 255, np.uint8))
    source, begun, seen = InpaintingSet(job / "masked_image", job / "mask64"), [], []
    read, plain = utils.inpainting.job.Job.read, utils.inpainting.job.Job.repair_in_windows
    monkeypatch.setattr(
        utils.inpainting.job.Job, "read", lambda j, i: begun.append(i) or read(j, i)
    )
    monkeypatch.setattr(
        utils.inpainting.job.Job,
        "repair_in_windows",
        lambda j, task, *more: seen.append(len(begun)) or plain(j, task, *more),
    )
    monkeypatch.setattr(utils.inpainting.job, "HELD_BYTES", 3 * 43 * 61 - 1)
    repair(source=source)
    assert seen == [2, 3, 4, 5]


def test_large_pictures_do_not_pile_up_before_they_are_written(repair, photo, monkeypatch):
    handed, plain = [], WriteBehind.submit
    monkeypatch.setattr(
        WriteBehind, "submit", lambda w, job, size: handed.append(size) or plain(w, job, size)
    )
    repair({"decoding.animation": "gif"}, InpaintingSet(*photo[:2]))
    repair({"decoding.animation": "gif", "decoding.total_iter": 4})
    large, *small = handed
    assert large >= 3 * photo[2].nbytes, "the picture and two rounds or more"
    assert small == [4 * SIDE * SIDE * 3] * COUNT


# Several repairs


def test_samples_are_different_repairs_and_the_first_is_the_only_one(repair):
    settings = {"decoding.rule": "maskgit", "decoding.choice_temperature": 4.5}
    one, three = repair(settings), repair({**settings, "decoding.samples": 3})
    results = three / "test_results"
    names = [f"image_{i:03d}_s{s}.png" for i in range(COUNT) for s in range(3)]
    assert sorted(path.name for path in results.glob("*.png")) == names
    for index in range(COUNT):
        first = (results / f"image_{index:03d}_s0.png").read_bytes()
        assert first == (one / "test_results" / f"image_{index:03d}.png").read_bytes()
    whole_hole = [pixels(results / f"image_004_s{s}.png") for s in range(3)]
    assert all((a != b).any() for a, b in pairwise(whole_hole))


def test_samples_are_in_the_manifest_with_their_truth(repair):
    from fid.inputs import Settings, resolve_inputs

    output = repair({"decoding.samples": 2})
    entry = stated(output)["images"][5]
    assert (entry["image"], entry["sample"]) == ("image_002_s1.png", 1)
    found = resolve_inputs(Settings(str(output / "test_results")))
    assert (found.reference.pixels(4) == found.reference.pixels(5)).all()


def test_each_image_is_encoded_once_however_many_repairs(repair, monkeypatch):
    encoded = []
    latents = VQGAN.latents
    monkeypatch.setattr(
        VQGAN, "latents", lambda net, images: encoded.append(len(images)) or latents(net, images)
    )
    repair({"decoding.samples": 4})
    assert sum(encoded) == COUNT


def test_intermediate_images_are_not_decoded_unless_asked_for(repair, monkeypatch):
    decoded = []
    decode = VQGAN.decode
    monkeypatch.setattr(
        VQGAN, "decode", lambda net, ids: decoded.append(len(ids)) or decode(net, ids)
    )
    repair({"decoding.step_pictures": False, "decoding.total_iter": 9})
    assert sum(decoded) == COUNT
    decoded.clear()
    repair({"decoding.total_iter": 9, "decoding.rule": "maskgit"})
    # No hole: one picture. Nothing is decoded twice from the same tokens.
    assert COUNT < sum(decoded) < 9 * COUNT


# Comparisons and animations


def test_a_comparison_shows_masked_inpainted_and_truth(repair, job):
    output = repair()
    strip = pixels(output / "comparison" / "image_003.png")
    shown = [strip[2:18, left : left + SIDE] for left in (2, 20, 38)]
    assert strip.shape == (20, 56, 3)
    assert (shown[0] == pixels(job / "masked_image" / "image_003.png")).all()
    assert (shown[1] == pixels(output / "test_results" / "image_003.png")).all()
    assert (shown[2] == pixels(job / "test" / "image_003.png")).all()


def test_a_comparison_without_a_truth_has_two_parts(repair, job):
    output = repair(source=InpaintingSet(job / "masked_image", job / "mask64"))
    assert pixels(output / "comparison" / "image_003.png").shape == (20, 38, 3)


def test_a_comparison_is_made_again_with_another_truth(repair, job):
    parts = job / "masked_image", job / "mask64"
    output = repair(source=InpaintingSet(*parts))
    repair(source=InpaintingSet(*parts, job / "test"), output=output)
    assert files(output) == files(repair(source=InpaintingSet(*parts, job / "test")))
    put(job / "test" / "image_003.png", np.zeros((SIDE, SIDE, 3), np.uint8))
    repair(source=InpaintingSet(*parts, job / "test"), output=output)
    assert (stated(output)["repaired"], stated(output)["skipped"]) == (1, COUNT - 1)


def test_a_truth_of_another_size_is_refused_though_all_is_repaired(repair, job):
    output = repair()
    put(job / "test" / "image_003.png", np.zeros((8, 8, 3), np.uint8))
    told = r"test/image_003.png: 8 x 8 pixels, but .*image_003.png has 16 x 16"
    with pytest.raises(UserError, match=told):
        repair(output=output)


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_an_animation_begins_with_the_hole_and_ends_with_the_result(repair, kind):
    settings = {"decoding.animation": kind, "decoding.step_pictures": False}
    output = repair({**settings, "decoding.total_iter": 4})
    moving = Image.open(output / "animation" / f"image_004.{kind}")
    assert moving.n_frames > 1
    frames, time = [], 0
    for index in range(moving.n_frames):
        moving.seek(index)
        frames.append(np.asarray(moving.convert("RGB")).astype(int))
        time += moving.info["duration"]
    assert time == 4 * 300 + 1500, "equal images may share a frame, but not their time"
    assert (frames[0] == 128).all()
    result = pixels(output / "test_results" / "image_004.png").repeat(16, 0).repeat(16, 1)
    assert np.abs(frames[-1] - result).mean() < (8 if kind == "gif" else 1e-9)
    before = times(output)
    repair({**settings, "decoding.total_iter": 4}, output=output)
    assert times(output) == before


@pytest.mark.parametrize(("kind", "side"), [("webp", 16_384), ("gif", 65_536)])
def test_a_picture_too_large_for_an_animation_is_repaired_without_one(
    repair, tmp_path, capsys, kind, side, monkeypatch
):
    monkeypatch.setattr("utils.io.messages._told", set())
    image, mask = np.full((1, side, 3), 90, np.uint8), np.full((1, side), 255, np.uint8)
    mask[0, 3:5] = 0
    source = InpaintingSet(put(tmp_path / "p.png", image), put(tmp_path / "h.png", mask))
    output = repair({"decoding.animation": kind}, source)
    assert pixels(output / "test_results/image_000.png").shape == image.shape
    assert list((output / "animation").iterdir()) == []
    said = f"note: p.png: no animation; {side} x 1 pixels, {kind} has up to {side - 1}"
    assert said in capsys.readouterr().err
    repair({"decoding.animation": kind}, source, output)
    assert stated(output)["skipped"] == 1


def test_verbose_counts_hidden_tokens_after_each_step(repair, capsys):
    repair({"decoding.total_iter": 4, "decoding.sweet_spot": 3}, verbose=True)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("image_004")]
    (line,) = lines
    counts = [int(count) for count in line.split("step ")[1].split()]
    assert len(counts) == 3
    assert counts == sorted(counts, reverse=True)
    assert 0 < counts[-1] < counts[0] <= 16


# Other sizes


@pytest.fixture
def photo(tmp_path: Path) -> tuple[Path, Path, np.ndarray, np.ndarray]:
    """A picture of 43 x 61 pixels with a large and a small hole, and its mask."""
    image = np.random.default_rng(0).integers(0, 256, (43, 61, 3), dtype=np.uint8)
    hole = np.zeros((43, 61), bool)
    hole[5:38, 20:50] = True
    hole[40, 3] = True
    mask = np.where(hole, 0, 255).astype(np.uint8)
    return put(tmp_path / "p.png", image), put(tmp_path / "h.png", mask), image, hole


@pytest.mark.parametrize("composite", ["none", "feather"])
def test_a_picture_of_any_size_keeps_all_pixels_outside_the_hole(repair, photo, composite):
    output = repair({"decoding.composite": composite}, InpaintingSet(*photo[:2]))
    image, hole = photo[2:]
    result = pixels(output / "test_results" / "image_000.png")
    assert result.shape == image.shape
    assert (result[~hole] == image[~hole]).all()
    assert (result[hole] != image[hole]).mean() > 0.9


def test_a_picture_beyond_pillows_own_limit_is_repaired_where_ours_allows_it(
    repair, photo, monkeypatch
):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4)  # twice as many are refused
    output = repair(source=InpaintingSet(*photo[:2]))
    assert pixels(output / "test_results" / "image_000.png").shape == photo[2].shape


def test_one_picture_is_decoded_once_however_many_samples_a_job_makes(
    weights, changed, monkeypatch
):
    inpainter, plain, rows = (
        Inpainter(changed(weights, {"decoding.samples": 3})),
        MaskGIT.finish,
        [],
    )
    monkeypatch.setattr(
        MaskGIT, "finish", lambda *a, **how: rows.append(how["samples"]) or plain(*a, **how)
    )
    inpainter(np.zeros((SIDE, SIDE, 3), np.uint8), np.ones((SIDE, SIDE), bool))
    assert rows == [1]


def test_rounds_of_a_picture_of_any_size_are_kept_for_its_animation_alone(
    repair, photo, monkeypatch
):
    kept, plain = [], Outputs.write
    monkeypatch.setattr(Outputs, "write", lambda o, r: plain(o, r) or kept.append(len(r.images)))
    for animation in ("none", "gif"):
        repair({"decoding.animation": animation}, InpaintingSet(*photo[:2]))
    assert kept[0] == 1
    assert kept[1] > 1


def test_a_picture_of_any_size_does_not_hang_on_the_batch_size(repair, photo):
    source = InpaintingSet(*photo[:2])
    one, many = (repair({"decoding.batch_size": n}, source) for n in (1, 16))
    assert files(one) == files(many)
    assert files(one).keys() == {"test_results/image_000.png", "comparison/image_000.png"}


def test_what_the_hole_of_a_picture_held_does_not_leak(repair, photo):
    before = files(repair(source=InpaintingSet(*photo[:2])))
    put(photo[0], np.where(photo[3][..., None], np.uint8(3), photo[2]))
    assert files(repair(source=InpaintingSet(*photo[:2]))) == before


def test_samples_and_seeds_of_a_picture_of_any_size_differ(repair, photo):
    source = InpaintingSet(*photo[:2])
    drawn = {"decoding.rule": "maskgit"}
    results = repair({**drawn, "decoding.samples": 2}, source) / "test_results"
    other = repair({**drawn, "seed": 5}, source) / "test_results"
    first, second = (pixels(results / f"image_000_s{s}.png") for s in range(2))
    assert (first != second).any()
    assert (first != pixels(other / "image_000.png")).any()


@pytest.mark.parametrize("shape", [(1, 1), (7, 30), (15, 16)])
def test_pictures_smaller_than_the_model_are_repaired_too(repair, tmp_path, shape):
    image = np.full((*shape, 3), 90, np.uint8)
    mask = np.full(shape, 255, np.uint8)
    mask[shape[0] // 2, shape[1] // 2] = 0
    source = InpaintingSet(put(tmp_path / "p.png", image), put(tmp_path / "h.png", mask))
    result = pixels(repair(source=source) / "test_results" / "image_000.png")
    assert result.shape == image.shape
    assert (result[mask == 255] == 90).all()


def test_sizes_may_be_mixed_in_a_folder(repair, job):
    alone = files(repair())
    for part, name, content in (
        ("masked_image", "image", np.full((20, 24, 3), 7, np.uint8)),
        ("mask64", "mask", np.full((20, 24), 255, np.uint8)),
        ("test", "image", np.full((20, 24, 3), 7, np.uint8)),
    ):
        put(job / part / f"{name}_002.png", content)
    mixed = files(repair())
    name = "test_results/image_003.png"
    assert mixed[name] == alone[name]
    assert len(mixed) == 4 * COUNT - 2, "no step pictures of the picture of another size"


# Mistakes


def test_inverted_masks_are_told_once_and_can_be_flipped(repair, job, capsys):
    before = files(repair())
    for path in (job / "mask64").iterdir():
        put(path, 255 - pixels(path)[..., 0])
    capsys.readouterr()
    repair()
    told = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(told) == 1
    assert told[0].endswith("if white marks the holes in your masks, give --invert-masks")
    source = InpaintingSet(job, invert_masks=True)
    output = repair(source=source)
    assert files(output) == before
    assert stated(output)["inverted_masks"]
    masks = output / "test_results" / stated(output)["masks"]
    assert masks.resolve() == (job / "mask64").resolve()


def test_a_full_disk_is_one_line_and_finished_images_stay(repair, monkeypatch, tmp_path):
    left, output = [1 + 9], tmp_path / "full"  # the names of the pictures come first

    def fsync(number):
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(utils.io.files.os, "fsync", fsync)
        patch.setattr(utils.inpainting.job, "THREADS", 1)
        with pytest.raises(UserError) as caught:
            repair(output=output)
    line = str(caught.value)
    assert "imga/final_test_2.png: cannot be written: No space left on device" in line
    assert line.endswith("2 of 5 images are finished and stay")
    assert not list(output.rglob("*.tmp"))
    results = sorted(path.name for path in (output / "test_results").glob("[!.]*"))
    assert results == ["image_000.png", "image_001.png"]
    repair(output=output)
    assert stated(output)["skipped"] == 2
    assert files(output) == files(repair())


def test_a_mask_of_another_size_stops_the_job_where_it_stands(repair, job):
    put(job / "mask64" / "mask_003.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(
        UserError, match=r"mask_003.png: 8 x 8 pixels, but .* has 16 x 16.*; 3 of 5"
    ):
        repair({"decoding.batch_size": 1})


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--samples", "0"), "decoding.samples"),
        (("--batch-size", "many"), "--batch-size"),
        (("--composite", "soft"), "'feather'"),
        (("--animation", "mp4"), "'webp'"),
        (("--total-iter", "0"), "decoding.total_iter"),
        (("--sweet-spot", "0"), "decoding.sweet_spot"),
    ],
)
def test_bad_flags_are_one_line(weights, job, tmp_path, monkeypatch, capsys, flags, line):
    save_config(weights, tmp_path / "c.yml")
    command = ["inpainting.py", "--config", str(tmp_path / "c.yml"), "--data", str(job), *flags]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as left:
        run(inpainting.main)
    said = capsys.readouterr().err
    assert (left.value.code, len(said.splitlines())) == (2, 1), said
    assert line in said


# What stands around the pictures: links, colour profiles, accents


@pytest.mark.parametrize("part", ["masked_image/image", "mask64/mask", "test/image"])
def test_a_link_into_the_results_is_not_written_through(repair, job, tmp_path, part):
    link, output = job / f"{part}_002.png", tmp_path / "out"
    shutil.copytree(job / "masked_image", output / "test_results")
    link.unlink()
    link.symlink_to(output / "test_results" / "image_002.png")
    before = files(output)
    with pytest.raises(UserError, match=f"{part}_002.png: would be replaced where it leads"):
        repair(output=output, restart=True)
    assert files(output) == before


def test_a_manifest_behind_a_link_names_the_jobs_own_truth_and_masks(repair, job, tmp_path):
    (tmp_path / "scratch/deep/runs").mkdir(parents=True)
    shutil.copytree(job, tmp_path / "scratch/deep/job")  # of that name, but not the job's
    (tmp_path / "runs").symlink_to("scratch/deep/runs")
    output = repair(output=tmp_path / "runs")
    for key, part in (("ground_truth", "test"), ("masks", "mask64")):
        found = output / "test_results" / stated(output)[key]
        assert found.resolve() == (job / part).resolve()


def with_profile(path: Path, profile: bytes | None) -> None:
    Image.fromarray(pixels(path)).save(path, icc_profile=profile)


def test_a_repair_keeps_the_colour_profile_of_its_picture(repair, job):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    with_profile(job / "masked_image/image_001.png", profile)
    output = repair({"decoding.comparison": True})
    for name in ("test_results/image_001", "comparison/image_001", "imga/final_test_1"):
        assert Image.open(output / f"{name}.png").info["icc_profile"] == profile
    assert "icc_profile" not in Image.open(output / "mask_scheduling/final_test_1.png").info
    assert "icc_profile" not in Image.open(output / "test_results/image_000.png").info


def test_a_picture_with_another_profile_is_repaired_anew(repair, job):
    output = repair()
    before = times(output)
    with_profile(job / "masked_image/image_001.png", b"." * 16 + b"RGB " + b"." * 200)
    repair(output=output)
    changed = {name for name, time in times(output).items() if time != before[name]}
    assert changed == {"image_001.png", "final_test_1.png"}


def test_a_manifest_that_writes_an_accent_otherwise_is_of_the_same_picture(repair, job):
    composed, taken_apart = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    for path in sorted(job.rglob("*.png")):
        path.rename(path.with_name(f"{composed} {path.stem[-1]}.png"))
    output = repair()
    for path in sorted(job.rglob("*.png")):
        path.rename(path.with_name(f"{taken_apart} {path.stem[-1]}.png"))
    repair(output=output)  # else refused, as the repair of another picture
    assert taken_apart in stated(output)["images"][0]["source"]


def test_the_manifest_states_where_masks_were_split(repair, job):
    output = repair(source=InpaintingSet(job, mask_threshold=255))
    assert stated(output)["mask_threshold"] == 255
    assert stated(repair())["mask_threshold"] == 128
