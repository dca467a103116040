"""Stage 1 with a decoder that sees known pixels: what it is shown, what trains, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from config.errors import StopRequested, UserError
from config.schema import Config
from models.conditioning import known_pixels
from models.maskgit import MaskGIT
from models.vqgan import VQGAN
from utils.data.augment import load_images
from utils.data.datasets import InpaintingSet, normalise
from utils.data.fill import fill_hole
from utils.device import Compute
from utils.inpainting.inpainter import Inpainter
from utils.inpainting.job import inpaint_set
from utils.inpainting.outputs import RESULTS
from utils.io.files import read_rows
from utils.io.images import load_rgb, save_png
from utils.rng import generator_for
from utils.training.holed import ITERATIONS, HoledBatches
from utils.training.release import release_tokenizer
from utils.training.state import load_state
from utils.training.tokenizer import tokenizer_to_start_from, train_tokenizer
from utils.training.tokenizer_step import TokenizerTrainer
from utils.weights.store import load_tokenizer, load_transformer, save_weights

pytestmark = pytest.mark.usefixtures("quick")
FP32, NEVER = Compute(torch.device("cpu"), torch.float32), 10**9
PIXELS = {"tokenizer.decoder_conditioning": "pixels", "tokenizer.training.decoder_only": True}


@pytest.fixture
def seeing(weights, changed, tmp_path) -> Config:
    """A run of its own that trains such a decoder, with a transformer that draws tokens."""
    return changed(
        weights,
        {
            **PIXELS,
            "run": tmp_path / "seeing",
            "tokenizer.training.transformer": weights.transformer_weights,
            "decoding.rule": "maskgit",
            "decoding.hole_fill": "mean",
            "decoding.composite": "hard",
        },
    )


@pytest.fixture
def images(config) -> torch.Tensor:
    """Four training images, (4, 3, 16, 16), 0..1."""
    return load_images(config.data.root / "train", config.data.image_size)[:4] / 255


def trained(seeing: Config, weights: Config, **flags) -> VQGAN:
    start = weights.tokenizer_weights
    path = train_tokenizer(seeing, resume=False, start=start, **flags)
    return load_tokenizer(path, seeing.tokenizer)


def test_it_is_trained_and_validated_in_bf16(seeing, weights, changed):
    trained(changed(seeing, {"precision": "bf16"}), weights)
    *_, row = read_rows(seeing.run / "tokenizer" / "log.jsonl")
    assert row["hole_mae"] > 0


def test_the_same_config_first_trains_a_tokenizer_without_it(seeing, changed, capsys):
    settings = {"tokenizer.training.decoder_only": False, "tokenizer.training.transformer": None}
    first = changed(seeing, {**settings, "run": seeing.run.parent / "first"})
    path = train_tokenizer(first, resume=False)
    assert "decoder_conditioning pixels is left out" in capsys.readouterr().err
    assert not load_tokenizer(path, first.tokenizer).config.conditioned
    train_tokenizer(first, resume=True)  # the settings did not change
    settings = {"tokenizer.training.transformer": None}
    network = load_tokenizer(
        train_tokenizer(changed(seeing, settings), resume=False, start=path), seeing.tokenizer
    )
    assert network.config.conditioned


# What is shown


def test_a_batch_is_images_with_filled_holes_and_their_true_tokens(seeing, tokenizer, images):
    holed = HoledBatches(seeing, FP32, 0.0)(tokenizer, images, range(4), generator_for(1))
    data, pixels = seeing.data, (255 * images).byte()
    shares = holed.holes.float().mean((1, 2))
    assert (shares >= 0.04).all()
    assert (shares <= 0.61).all()
    shown = zip(pixels.permute(0, 2, 3, 1).numpy(), holed.holes.numpy(), strict=True)
    filled = np.stack([fill_hole(image, hole, "mean") for image, hole in shown])
    expected = known_pixels(normalise(filled, data.mean, data.std), holed.holes)
    assert torch.equal(holed.known, expected)
    true = tokenizer.encode(normalise(pixels, data.mean, data.std))
    assert torch.equal(holed.token_ids.flatten(1), true)


def test_sampled_tokens_are_those_of_a_repair_in_few_iterations(
    seeing, tokenizer, transformer, images, inpaint
):
    holed = HoledBatches(seeing, FP32, 1.0)(tokenizer, images, range(4), generator_for(1))
    maskgit = MaskGIT(tokenizer, transformer, "cosine").eval()
    settings = seeing.decoding.model_copy(update={"total_iter": ITERATIONS})
    seed, numbers = generator_for(1).initial_seed(), torch.arange(4)
    expected = inpaint(
        maskgit, holed.known[:, :3], holed.holes, settings, seed=seed, image_ids=numbers
    )
    assert torch.equal(holed.token_ids.flatten(1), expected)


def test_holes_and_tokens_follow_from_the_generator_alone(seeing, tokenizer, images):
    draw = HoledBatches(seeing, FP32, 0.5)
    first, again, other = (draw(tokenizer, images, range(4), generator_for(n)) for n in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.holes, other.holes)


def test_an_image_is_the_same_whichever_others_of_its_batch_are_there(seeing, tokenizer, images):
    draw = HoledBatches(seeing, FP32, 0.5)
    whole = draw(tokenizer, images, range(4), generator_for(3))
    part = draw(tokenizer, images[1::2], range(1, 4, 2), generator_for(3))
    assert all(torch.equal(a[1::2], b) for a, b in zip(whole, part, strict=True))


# Training


def test_training_it_moves_the_decoder_alone_and_its_maps_too(seeing, weights, tokenizer):
    after, before = trained(seeing, weights).state_dict(), tokenizer.state_dict()
    decoding = ("decoder.", "post_quant_conv.")
    for name in (name for name in before if not name.startswith(decoding)):
        assert torch.equal(after[name], before[name]), name
    maps = [name for name in after if name.startswith("decoder.known.") and ".last." in name]
    assert len(maps) == 6
    assert all(after[name].abs().sum() > 0 for name in maps)
    row = read_rows(seeing.run / "tokenizer" / "log.jsonl")[-1]
    assert row["hole_mae"] > 0


def test_codes_of_images_with_holes_count_as_in_use(seeing, images):
    pictures = (images * 255).byte()
    trainer = TokenizerTrainer(seeing, pictures, pictures, FP32)
    trainer.step(images)
    assert 0 < trainer.codes.in_use() <= 1


def test_such_a_run_resumes_exactly(seeing, weights, stop_after, tmp_path, assert_same):
    whole = seeing.model_copy(update={"run": tmp_path / "whole"})
    trained(whole, weights)
    stop_after(4)
    with pytest.raises(StopRequested):
        trained(seeing, weights)
    stop_after(NEVER)
    train_tokenizer(seeing, resume=True)
    assert_same(*(load_state(c.run / "tokenizer" / "state.pt") for c in (seeing, whole)))


def another_transformer(weights: Config) -> None:
    network = load_transformer(weights.transformer_weights, weights.transformer)
    torch.nn.init.normal_(network.bias)
    save_weights(weights.transformer_weights, network.state_dict(), network.config, {})


def another_image(weights: Config, split: str) -> Callable[[], int]:
    """Change an image; returns what undoes it."""
    path = next((weights.data.root / split).glob("*.png"))
    undo = partial(path.write_bytes, path.read_bytes())
    save_png(path, np.zeros((16, 16, 3), np.uint8))
    return undo


def test_such_a_run_resumes_only_with_what_it_was_begun_with(seeing, weights, changed):
    trained(seeing, weights)
    moved = weights.run / "moved.safetensors"
    moved.write_bytes(weights.transformer_weights.read_bytes())
    train_tokenizer(changed(seeing, {"tokenizer.training.transformer": moved}), resume=True)

    def refused(config: Config, said: str) -> None:
        with pytest.raises(UserError, match=f"started with other {said}"):
            train_tokenizer(config, resume=True)

    sampling = "weights of the sampling transformer"
    refused(changed(seeing, {"decoding.hole_fill": "grey"}), "decoding.hole_fill")
    refused(changed(seeing, {"decoding.rule": "listing"}), "decoding.rule")
    refused(changed(seeing, {"masking.mask_schedule": "square"}), "masking.mask_schedule")
    refused(changed(seeing, {"tokenizer.training.transformer": None}), sampling)
    another_transformer(weights)
    refused(seeing, sampling)
    weights.transformer_weights.write_bytes(moved.read_bytes())
    undo = another_image(weights, "train")
    refused(seeing, "pixels of the images")
    undo()
    another_image(weights, "val")
    refused(seeing, "pixels of the validation images")


def test_a_fresh_start_decodes_as_the_weights_it_came_from(seeing, weights, tokenizer):
    network = tokenizer_to_start_from(weights.tokenizer_weights, seeing)
    token_ids, known = torch.randint(16, (2, 16)), torch.randn(2, 4, 16, 16)
    assert torch.equal(network.eval().decode(token_ids, known), tokenizer.decode(token_ids))


# Repairs


@pytest.fixture
def repairing(seeing, weights, changed) -> Config:
    """The weights with a decoder on which known pixels have a large effect."""
    torch.manual_seed(0)
    network = tokenizer_to_start_from(weights.tokenizer_weights, seeing)
    for scale in network.decoder.known.values():
        torch.nn.init.normal_(scale.last.weight, std=0.3)
    save_weights(seeing.tokenizer_weights, network.state_dict(), network.config, {})
    return changed(seeing, {"transformer.weights": weights.transformer_weights})


def holed_pictures() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    holes = np.zeros((3, 16, 16), bool)
    holes[:, 4:9, 3:12] = True
    return rng.integers(0, 256, (3, 16, 16, 3), dtype=np.uint8), holes


def test_a_repair_shows_the_decoder_the_filled_picture_and_its_hole(repairing):
    images, holes = holed_pictures()
    inpainter, data = Inpainter(repairing), repairing.data
    trace = inpainter.trace(images, holes, [0, 1, 2])
    filled = np.stack([fill_hole(*pair, "mean") for pair in zip(images, holes, strict=True)])
    known = known_pixels(normalise(filled, data.mean, data.std), torch.from_numpy(holes))
    assert torch.equal(trace.known, known)
    assert torch.equal(inpainter.known(images, holes), known)
    whole = inpainter.decoded(trace.token_ids[-1], known)
    other = inpainter.decoded(trace.token_ids[-1], known.flip(0))
    assert (whole != other).any()
    for row in range(3):
        alone = inpainter.decoded(trace.token_ids[-1][row, None], known[row, None])
        assert (alone[0] == whole[row]).all()


def test_steps_are_decoded_each_with_its_own_pictures_pixels(repairing):
    images, holes = holed_pictures()
    inpainter = Inpainter(repairing)
    trace = inpainter.trace(images, holes, [0, 1, 2])
    steps = inpainter.decoded_steps(trace.token_ids, trace.known)
    for token_ids, pixels in zip(trace.token_ids, steps, strict=True):
        assert (inpainter.decoded(token_ids, trace.known) == pixels).all()


@pytest.mark.parametrize("side", [16, 24])  # the model's size; windows
def test_a_job_hands_pixels_and_holes_to_the_decoder(repairing, changed, tmp_path, side):
    rng, folder = np.random.default_rng(1), tmp_path / "job"
    for name in ("masked_image", "mask64"):
        (folder / name).mkdir(parents=True)
    hole = np.zeros((side, side), np.uint8)
    hole[6:10, 5:9] = 255
    picture = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
    save_png(folder / "masked_image" / "image_000.png", picture)
    save_png(folder / "mask64" / "mask_000.png", 255 - hole)
    plain = repairing.model_copy(update={"run": repairing.run.parent / "run"})
    config = changed(plain, {"tokenizer.decoder_conditioning": "none"})
    for name, one in {"seeing": repairing, "plain": config}.items():
        inpaint_set(one, InpaintingSet(folder), tmp_path / name)
    found = [
        np.asarray(load_rgb(tmp_path / name / RESULTS / "image_000.png"))
        for name in ("seeing", "plain")
    ]
    assert (found[0] != found[1]).any()
    assert (found[0][hole == 0] == picture[hole == 0]).all()


def test_weights_overrule_a_config_that_says_none_with_a_note(repairing, changed, capsys):
    config = changed(repairing, {"tokenizer.decoder_conditioning": "none"})
    inpainter = Inpainter(config)
    assert inpainter.config.tokenizer.conditioned
    assert "tokenizer.decoder_conditioning pixels, not none" in capsys.readouterr().err


def test_other_settings_leave_networks_as_they_were_loaded(repairing, changed):
    config = changed(repairing, {"tokenizer.decoder_conditioning": "none"})
    (image, *_), (hole, *_) = holed_pictures()
    inpainter = Inpainter(config)
    again = inpainter.with_config(config).repair(image, hole)  # as the web demo does
    assert (again == inpainter.repair(image, hole)).all()


def test_weights_without_it_overrule_a_config_that_says_pixels(seeing, weights, changed, capsys):
    found = {
        "tokenizer.weights": weights.tokenizer_weights,
        "transformer.weights": weights.transformer_weights,
    }
    inpainter = Inpainter(changed(seeing, found))
    assert "tokenizer.decoder_conditioning none, not pixels" in capsys.readouterr().err
    images, holes = holed_pictures()
    assert inpainter.trace(images, holes, [0, 1, 2]).known is None


def test_a_released_decoder_still_sees_known_pixels(repairing, tmp_path):
    release_tokenizer(repairing, tmp_path)
    network = load_tokenizer(tmp_path / "vqgan.safetensors", repairing.tokenizer)
    assert network.config.conditioned


# What is refused


def test_conditioned_weights_do_not_start_a_run_without_it(repairing, changed):
    config = changed(repairing, {"tokenizer.decoder_conditioning": "none"})
    with pytest.raises(UserError, match="says none, or trains more than the decoder"):
        tokenizer_to_start_from(repairing.tokenizer_weights, config)


def test_a_transformer_samples_given_tokens_only(seeing, changed):
    config = changed(seeing, {"tokenizer.training.decoder_only": False})
    with pytest.raises(UserError, match=r"set tokenizer.training.decoder_only to true"):
        train_tokenizer(config, resume=False)


def test_a_transformer_for_holes_that_nobody_draws_is_refused(seeing, changed):
    config = changed(seeing, {"tokenizer.decoder_conditioning": "none"})
    with pytest.raises(UserError, match="set tokenizer.decoder_conditioning to pixels"):
        train_tokenizer(config, resume=False)


def test_a_transformer_of_other_tokens_is_refused(seeing, tokenizer, transformer, images):
    notes = {"codes_sha256": "0" * 64}
    path = seeing.tokenizer.training.transformer
    save_weights(path, transformer.state_dict(), transformer.config, notes)
    with pytest.raises(UserError, match="was trained on the tokens of another tokenizer"):
        HoledBatches(seeing, FP32, 1.0)(tokenizer, images, range(4), generator_for(1))
