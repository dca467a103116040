"""The page's parts without a browser: what visitors hand in, controls, checkpoints, the guard."""

from __future__ import annotations

import os
import shlex
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from config.errors import UserError
from config.loading import load_config
from config.schema import DecodingConfig
from models.cpu_kernels import IMAGES_AT_ONCE
from utils.io.images import encode_png

pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[app]'")

import gradio

from app import leave_out_foreign
from utils.app import controls, server
from utils.app.checkpoints import Checkpoint, Checkpoints, find_checkpoint
from utils.app.handlers import Handlers, error_html
from utils.app.pictures import (
    CROPS,
    MAX_BODY_BYTES,
    as_painted,
    drawn,
    photographs,
    read_painted,
    read_upload,
)
from utils.app.records import repair
from utils.app.server import HEADERS, Guard
from utils.inpainting.inpainter import Inpainter
from utils.inpainting.outputs import OUTPUT_ONLY

SIDE = 8
IMAGE = np.arange(SIDE * SIDE * 3, dtype=np.uint8).reshape(SIDE, SIDE, 3)
HOLE = np.zeros((SIDE, SIDE), bool)
HOLE[2:5, 3] = True


# What visitors hand in


def test_a_painted_picture_comes_back_as_it_was():
    image, hole = read_painted(as_painted(IMAGE, HOLE), SIDE)
    assert (image == IMAGE).all()
    assert (hole == HOLE).all()


def test_a_drawn_picture_is_the_repair_of_one_that_is_all_hole():
    released = Inpainter.from_pretrained("models/pretrained/cats64")
    first = next(iter(drawn(released).values()))
    anything = np.full((64, 64, 3), 40, np.uint8)
    assert (first == released.repair(anything, np.ones((64, 64), bool))).all()


GOOD = as_painted(IMAGE, HOLE)


@pytest.mark.parametrize(
    ("painted", "words"),
    [
        (None, "no picture yet"),
        ([], "no picture yet"),
        ({**GOOD, "image": ""}, "no picture yet"),
        ({**GOOD, "image": 7}, "own form"),
        ({**GOOD, "hole": [1, 0]}, "own form"),
        ({**GOOD, "image": "data:image/png;base64,???"}, "own form"),
        ({**GOOD, "image": "data:image/png;base64,é"}, "own form"),
        ({**GOOD, "image": "data:image/png;base64,AAAA"}, "the picture"),
        ({**GOOD, "hole": GOOD["hole"][1:]}, "not 8 x 8"),
        ({**GOOD, "hole": "2" * SIDE**2}, "not 8 x 8"),
        ({**GOOD, "hole": "0" * SIDE**2}, "no hole yet"),
        (as_painted(IMAGE[:4, :4], HOLE[:4, :4]), "not 8 x 8"),
    ],
)
def test_what_no_page_of_ours_would_send_is_refused(painted, words):
    with pytest.raises(UserError, match=words):
        read_painted(painted, SIDE)


def test_an_upload_is_gone_once_it_is_read(tmp_path):
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(encode_png(IMAGE))
    bad.write_bytes(b"words")
    assert (read_upload(good, SIDE) == IMAGE).all()
    with pytest.raises(UserError, match="bad.png"):
        read_upload(bad, SIDE)
    assert list(tmp_path.iterdir()) == []


def answer(headers: list[tuple[bytes, bytes]]) -> tuple[int, list[tuple[bytes, bytes]]]:
    """Status and headers that a guarded server gives to a POST."""
    said = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        said.append(message)

    scope = {"type": "http", "method": "POST", "headers": headers}
    with pytest.raises(StopIteration):  # it waits for nothing, so no event loop is needed
        Guard(app)(scope, None, send).send(None)
    return said[0]["status"], said[0]["headers"]


def test_long_bodies_and_bodies_of_unknown_length_are_refused():
    assert answer([(b"content-length", str(MAX_BODY_BYTES + 1).encode())])[0] == 413
    assert answer([(b"transfer-encoding", b"chunked")])[0] == 413
    assert answer([(b"content-length", b"many")])[0] == 413
    status, headers = answer([(b"content-length", str(MAX_BODY_BYTES).encode())])
    assert status == 200
    assert set(HEADERS.items()) <= set(headers)


def test_visitors_who_left_are_forgotten_so_that_memory_stays_flat(monkeypatch):
    monkeypatch.setattr(gradio.Blocks, "block_thread", lambda page: None)
    with gradio.Blocks() as page:
        gradio.HTML()
    server.serve(page, "127.0.0.1", None, {})
    try:
        for number in range(server.REMEMBERED + 9):
            page.state_holder[str(number)]
        last = str(server.REMEMBERED + 8)
        assert len(page.state_holder.session_data) <= server.REMEMBERED
        assert last in page.state_holder
    finally:
        page.close(verbose=False)


# Controls


def test_the_settings_with_a_control_are_those_that_a_stamp_counts():
    shown = [setting.name for setting in controls.settings()]
    assert sorted(shown) == sorted(DecodingConfig.model_fields.keys() - OUTPUT_ONLY)


def test_controls_offer_what_the_schema_allows_in_its_own_words():
    by_name = {setting.name: setting for setting in controls.settings()}
    for setting in by_name.values():
        words = DecodingConfig.model_fields[setting.name].description.split()
        assert setting.help == " ".join(words)  # without line breaks
        control = setting.control()
        assert control.info == setting.help
    schedules = [choice for choice, _ in by_name["mask_schedule"].control().choices]
    assert schedules[:4] == ["cosine", "linear", "square", "maskgit_cosine"]
    assert by_name["sweet_spot"].may_be_empty
    assert not by_name["total_iter"].may_be_empty
    assert by_name["total_iter"].control().minimum == 1


def test_what_a_control_shows_is_read_back_as_the_same_config(tmp_path):
    (tmp_path / "c.yml").write_text("decoding: {rule: {hidden: paced}, sweet_spot: 3}")
    config, asked = load_config(tmp_path / "c.yml"), controls.settings()
    held = controls.control_values(config, asked)
    overrides = [setting.read(value) for setting, value in zip(asked, held, strict=True)]
    (tmp_path / "c.yml").write_text("")
    assert load_config(tmp_path / "c.yml", overrides) == config


def test_aliases_that_a_visitor_types_are_not_expanded(tmp_path):
    rule = next(setting for setting in controls.settings() if setting.name == "rule")
    (tmp_path / "c.yml").write_text("")
    with pytest.raises(UserError, match=r"alias \*a found; write the value out"):
        load_config(tmp_path / "c.yml", [rule.read("{hidden: &a paced, trust: *a}")])


# Checkpoints


def test_a_run_imported_files_and_a_config_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (run := tmp_path / "run" / "transformer").mkdir(parents=True)
    (lab := tmp_path / "lab").mkdir()
    (released := tmp_path / "small").mkdir()
    (tmp_path / "config").mkdir()
    for file in (run, lab):
        (file / "config.yml").write_text("")
    (tmp_path / "config" / "small.yml").write_text("")
    assert find_checkpoint(run.parent).places == (("run", str(run.parent)),)
    assert find_checkpoint(lab) == Checkpoint("lab", lab / "config.yml")
    found = find_checkpoint(released)
    assert found.config().transformer_weights == released / "transformer.safetensors"
    assert find_checkpoint(lab / "config.yml").file == lab / "config.yml"
    with pytest.raises(UserError, match="nowhere: no checkpoint"):
        find_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize("place", [".", "../lab", "link"])
def test_a_checkpoint_has_a_name_wherever_it_is_named_from(tmp_path, monkeypatch, place):
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab/config.yml").write_text("")
    (tmp_path / "lab/link").symlink_to(".")
    monkeypatch.chdir(tmp_path / "lab")
    assert find_checkpoint(Path(place)).name == ("link" if place == "link" else "lab")


def test_imported_files_are_found_where_their_folder_was_moved_to(tmp_path):
    (tmp_path / "config.yml").write_text("tokenizer: {weights: before/vqgan.safetensors}\n")
    (tmp_path / "vqgan.safetensors").touch()
    config = find_checkpoint(tmp_path).config()
    assert config.tokenizer_weights == tmp_path / "vqgan.safetensors"
    assert config.transformer.weights is None, "only what lies there"


def test_a_name_that_is_no_utf8_can_be_shown(tiny, tmp_path):
    place = tmp_path / os.fsdecode(b"r\xe9.yml")
    place.write_bytes(tiny.read_bytes())
    assert Checkpoints([place]).names == ["r\\udce9"]


def test_checkpoints_of_one_name_are_told_apart(tiny):
    assert Checkpoints([tiny, tiny]).names == ["tiny", "tiny (2)"]


def test_missing_weights_are_named_and_the_page_opens_all_the_same(tiny, tmp_path):
    alone = tmp_path / "alone.yml"
    alone.write_text(tiny.read_text().replace(str(tiny.parent), str(tmp_path / "no")))
    handlers = Handlers(Checkpoints([alone]), controls.settings())
    _, player, notice, *held = handlers.open("alone")
    assert "vqgan.safetensors: no such weights file" in notice
    assert player is None
    assert len(held) == 2 * len(handlers.settings)


def test_visitors_are_not_told_where_the_servers_config_lies():
    told = error_html(UserError("/home/me/run.yml:12: decoding: samples 9 would all be <equal>"))
    assert told == '<p class="wrong">decoding: samples 9 would all be &lt;equal&gt;</p>'


@pytest.mark.parametrize(
    ("run", "word"), [("a b", "run=a b"), ("lr #1", "run='lr #1'"), ("{x}", "run='{x}'")]
)
def test_the_arguments_of_a_checkpoint_are_those_of_inpainting(run, word, tiny):
    checkpoint = Checkpoint("run", Path("a b/config.yml"), (("run", run),))
    words = shlex.split(shlex.join(checkpoint.arguments()))
    assert words == ["--config", "a b/config.yml", "--set", word]
    assert load_config(tiny, [word]).run == Path(run)


# Decoding


@pytest.fixture(scope="module")
def inpainter(tiny):
    return Checkpoints([tiny]).inpainter("tiny")


@pytest.fixture(scope="module")
def job() -> tuple[np.ndarray, np.ndarray]:
    hole = np.zeros((32, 32), bool)
    hole[4:20, 6:25] = True
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8), hole


@pytest.fixture(params=[1, 3], ids=["alone", "filled up, as on a GPU"])
def group(request, monkeypatch) -> None:
    """How many images a forward pass holds; from two on, its logits are those of all places."""
    monkeypatch.setitem(IMAGES_AT_ONCE, "cpu", request.param)


@pytest.mark.usefixtures("group")
def test_steps_end_with_what_the_inpainter_makes_at_once(inpainter, job):
    image, hole = job
    steps = list(repair(inpainter, inpainter.config, image, hole))
    trace = inpainter.trace(image[None], hole[None], [0])
    assert len(steps) == len(trace.token_ids) == 6
    for step, token_ids, hidden in zip(steps, trace.token_ids, trace.hidden, strict=True):
        assert (step.hidden == hidden[0].numpy()).all()
        assert (step.image == inpainter.pixels(token_ids, image[None], hole[None])[0]).all()


def test_a_group_that_is_filled_up_changes_no_confidence_beyond_rounding(
    inpainter, job, monkeypatch
):
    alone = [step.confidence for step in repair(inpainter, inpainter.config, *job)]
    monkeypatch.setitem(IMAGES_AT_ONCE, "cpu", 3)
    grouped = [step.confidence for step in repair(inpainter, inpainter.config, *job)]
    np.testing.assert_allclose(grouped, alone, rtol=1e-4)


@pytest.mark.usefixtures("group")
def test_confidences_are_probabilities_of_guessed_tokens_and_then_stay(inpainter, job):
    image, hole = job
    steps = list(repair(inpainter, inpainter.config, image, hole))
    guessed = ~np.isnan(steps[0].confidence)
    assert guessed.sum() == 4 * 6  # the tokens that rows 4 to 19 and columns 6 to 24 touch
    for before, after in pairwise(steps):
        assert (np.isnan(after.confidence) == ~guessed).all()
        assert ((after.confidence[guessed] > 0) & (after.confidence[guessed] <= 1)).all()
        settled = guessed & ~before.hidden
        assert (after.confidence[settled] == before.confidence[settled]).all()


def test_a_mistake_is_raised_where_the_steps_are_asked_for(inpainter, job):
    image, hole = job
    with pytest.raises(Exception, match=r"(?i)shape|size|dimension|broadcast|operands"):
        list(repair(inpainter, inpainter.config, image[:, :20], hole))


def test_a_visitor_who_leaves_ends_the_decoding(inpainter, job, monkeypatch):
    passes, logits_of = [], inpainter.maskgit.logits_of
    monkeypatch.setattr(
        inpainter.maskgit, "logits_of", lambda *shown: passes.append(shown) or logits_of(*shown)
    )
    steps = repair(inpainter, inpainter.config, *job)
    next(steps)
    steps.close()
    assert list(steps) == []
    assert len(passes) == 1


def test_samples_are_the_photographs_in_the_checkpoints_size():
    pictures = photographs(16)
    assert list(pictures) == list(CROPS)
    assert all(one.shape == (16, 16, 3) and one.std() > 10 for one in pictures.values())


def test_an_upload_is_shown_in_the_colours_of_its_profile(tmp_path):
    exchanged = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    places = {bytes(exchanged[i : i + 4]): i for i in range(132, 132 + 12 * exchanged[131], 12)}
    red, green = places[b"rXYZ"], places[b"gXYZ"]
    exchanged[red : red + 4], exchanged[green : green + 4] = b"gXYZ", b"rXYZ"
    profile = bytes(exchanged).replace("sRGB".encode("utf-16-be"), "ours".encode("utf-16-be"))
    path = tmp_path / "a.png"
    Image.new("RGB", (SIDE, SIDE), (200, 30, 60)).save(path, icc_profile=profile)
    assert read_upload(path, SIDE)[0, 0] == pytest.approx((30, 200, 60), abs=2)


def test_proxies_certificates_and_other_pages_settings_are_left_out(monkeypatch):
    monkeypatch.setattr(
        os, "environ", {"HTTP_PROXY": "a", "all_proxy": "b", "GRADIO_SHARE": "True"}
    )
    os.environ |= {"SSL_CERT_FILE": "gone", "PATH": "kept", "proxy_of_mine": "kept"}
    leave_out_foreign()
    assert os.environ == {"PATH": "kept", "proxy_of_mine": "kept"}
