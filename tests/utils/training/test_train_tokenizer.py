"""Stage 1: the step, what trains when, and a resume that is exact."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from config.errors import StopRequested, UserError
from config.schema import Config
from models import parallel, quantizer
from models.vqgan import VQGAN
from utils.data.augment import load_images
from utils.device import Compute
from utils.io.files import read_rows
from utils.training import optim
from utils.training.state import load_state, previous
from utils.training.throughput import tokenizer_flops
from utils.training.tokenizer import tokenizer_to_start_from, train_tokenizer
from utils.training.tokenizer_step import TokenizerTrainer
from utils.weights.description import read_header
from utils.weights.store import load_tokenizer, save_weights

NEVER = 10**6
PEAK = 1e12  # FLOP/s that the fixture quick states
PICTURES = torch.zeros(11, 3, 16, 16, dtype=torch.uint8)
pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def config(config, changed) -> Config:
    """Two epochs of 11 images in 3 batches; a discriminator that joins in the second."""
    return changed(
        config,
        {
            "tokenizer.training.adversarial_weight": 0.1,
            "tokenizer.training.adversarial_start": 0.5,
            "tokenizer.training.ema_half_life": 10.0,
            "tokenizer.training.codebook_decay": 0.5,
        },
    )


@pytest.fixture
def images(config) -> torch.Tensor:
    """Four training images, (4, 3, 16, 16), 0..1."""
    return load_images(config.data.root / "train", config.data.image_size)[:4] / 255


def folder(config: Config) -> Path:
    return config.run / "tokenizer"


def log_of(config: Config) -> list[dict]:
    timing = {"time": None, "images_per_second": None, "mfu": None}
    return [{**row, **timing} for row in read_rows(folder(config) / "log.jsonl")]


def trainer_with(config: Config, changed, **settings) -> TokenizerTrainer:
    keys = {f"tokenizer.training.{name}": value for name, value in settings.items()}
    config = changed(config, keys)
    return TokenizerTrainer(config, PICTURES, PICTURES, Compute.of(config))


def weights_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in network.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


# Exact resume


@pytest.mark.parametrize(
    ("codebook", "stops"), [("ema", (3, 5)), ("loss", (5,))], ids=["ema", "loss"]
)
def test_a_run_stopped_and_resumed_is_the_run_that_never_stopped(
    config, changed, stop_after, assert_same, codebook, stops
):
    config = changed(config, {"tokenizer.training.codebook": codebook})
    whole = config.model_copy(update={"run": config.run / "other"})
    train_tokenizer(whole, resume=False)
    for steps in stops:  # at the end of the first epoch; in the second, with the discriminator
        stop_after(steps)
        with pytest.raises(StopRequested, match=r"stopped in epoch ./2, saved"):
            train_tokenizer(config, resume=False, restart=True)
        assert load_state(folder(config) / "state.pt")["position"]["step"] == steps
        stop_after(NEVER)
        path = train_tokenizer(config, resume=True)
        assert_same(*(load_state(folder(c) / "state.pt") for c in (config, whole)))
        assert log_of(config) == log_of(whole)
        assert_same(load_file(path), load_file(folder(whole) / path.name))


def test_a_broken_checkpoint_costs_one_interval_and_nothing_else(config, capsys, assert_same):
    train_tokenizer(config, resume=False)
    state = folder(config) / "state.pt"
    before, rows = load_state(state), log_of(config)
    state.write_bytes(state.read_bytes()[:1000])
    assert load_state(previous(state))["position"]["epoch"] == 1
    train_tokenizer(config, resume=True)
    assert f"{state}: damaged checkpoint, skipped" in capsys.readouterr().err
    assert_same(load_state(state), before)
    assert log_of(config) == rows


def test_an_epoch_whose_time_ran_out_while_the_run_was_stopped_is_finished_all_the_same(
    config, changed, stop_after
):
    stop_after(1)
    with pytest.raises(StopRequested):
        train_tokenizer(changed(config, {"tokenizer.training.max_minutes": 10.0}), resume=False)
    stop_after(NEVER)
    train_tokenizer(changed(config, {"tokenizer.training.max_minutes": 1e-6}), resume=True)
    (row,) = read_rows(folder(config) / "log.jsonl")
    assert row["epoch"] == 1
    assert "psnr" in row


# What trains when


def test_before_the_warm_up_ends_latents_are_decoded_as_they_are(config, changed, images):
    trainer = trainer_with(config, changed, warmup_steps=1)
    codes = weights_of(trainer.vqgan.codebook)
    trainer.step(images)
    assert trainer.means()["commitment"] == 0
    assert same(weights_of(trainer.vqgan.codebook), codes)
    trainer.step(images)
    assert trainer.position.sums["commitment"] > 0
    assert not same(weights_of(trainer.vqgan.codebook), codes)


def test_codes_move_by_averages_or_by_their_loss_but_not_by_both(config, changed, images):
    by_averages = trainer_with(config, changed, warmup_steps=0, codebook="ema")
    by_loss = trainer_with(config, changed, warmup_steps=0, codebook="loss")
    for trainer in (by_averages, by_loss):
        trainer.step(images)
    for trainer, wanted in ((by_averages, False), (by_loss, True)):
        held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
        assert (id(trainer.vqgan.codebook.embedding.weight) in held) is wanted
    assert "codebook" not in by_averages.position.sums
    assert by_loss.position.sums["codebook"] > 0


def test_the_discriminator_joins_at_its_share_of_the_training(config, changed, images):
    trainer = trainer_with(config, changed, adversarial_start=0.5)
    before = weights_of(trainer.adversary.network)
    trainer.step(images)
    assert same(weights_of(trainer.adversary.network), before)
    trainer.position.step = trainer.total_steps // 2
    trainer.step(images)
    assert {"adversarial", "discriminator"} <= trainer.position.sums.keys()
    assert not same(weights_of(trainer.adversary.network), before)


def test_without_its_weight_the_discriminator_never_joins(config, changed, images):
    trainer = trainer_with(config, changed, adversarial_start=0, adversarial_weight=0.0)
    trainer.step(images)
    assert "discriminator" not in trainer.position.sums


def test_the_loss_is_the_weighted_sum_of_its_terms(config, changed, images):
    trainer = trainer_with(
        config, changed, warmup_steps=0, perceptual_weight=0.3, commitment_weight=0.7
    )
    trainer.step(images)
    sums = {name: value.item() for name, value in trainer.position.sums.items()}
    expected = sums["reconstruction"] + 0.3 * sums["perceptual"] + 0.7 * sums["commitment"]
    assert sums["loss"] == pytest.approx(expected)


def test_the_perceptual_term_sees_images_as_large_as_configured(config, changed):
    assert trainer_with(config, changed, perceptual_size=32).loss.perceptual.size == (32, 32)


# Batches that threads share


@pytest.mark.parametrize(
    "settings",
    [
        {"warmup_steps": 0},
        {"warmup_steps": 0, "codebook": "loss"},
        {"warmup_steps": 1},
        {"decoder_only": True},
    ],
    ids=["averages", "codebook loss", "warm-up", "decoder only"],
)
def test_a_shared_step_is_the_same_with_any_number_of_threads(
    config, changed, images, monkeypatch, settings
):
    monkeypatch.setattr(optim, "PARTS", 3)  # of 1, 1 and 2 images
    trained = {}
    for count in (0, 1, 2, 3):  # 0: the whole batch at once
        for module in (parallel, optim):
            monkeypatch.setattr(module, "workers", lambda count=count: max(1, count))
        trainer = trainer_with(config, changed, adversarial_weight=0.0, **settings)
        assert trainer.shares_batches
        trainer.shares_batches = count > 0
        trainer.step(images)
        gradients = {n: p.grad for n, p in trainer.vqgan.named_parameters() if p.grad is not None}
        trained[count] = gradients | trainer.position.sums
    torch.testing.assert_close(trained[0], trained[1], rtol=1e-3, atol=1e-5)
    assert same(trained[1], trained[2])
    assert same(trained[1], trained[3])


def test_an_adversary_which_weighs_whole_batches_is_not_shared(config, changed):
    assert not trainer_with(config, changed).shares_batches
    assert not trainer_with(config, changed, adversarial_weight=0.0, compile=True).shares_batches


def test_codes_in_use_are_those_chosen_since_the_last_look(config, changed):
    trainer = trainer_with(config, changed)
    trainer.codes.chosen[:4] = True
    assert trainer.codes.in_use() == 0.25
    assert trainer.codes.in_use() == 0.0


def test_the_reconstruction_gets_better(config, changed):
    config = changed(config, {"tokenizer.training.epochs": 6})
    train_tokenizer(config, resume=False)
    rows = read_rows(folder(config) / "log.jsonl")
    assert rows[-1]["reconstruction"] < 0.95 * rows[0]["reconstruction"]


def test_a_run_may_start_from_trained_weights(config, changed, assert_same):
    weights = train_tokenizer(config, resume=False)
    trainer = TokenizerTrainer(config, PICTURES, PICTURES, Compute.of(config))
    trainer.start_from(load_tokenizer(weights, config.tokenizer))
    assert_same(weights_of(trainer.vqgan), weights_of(load_tokenizer(weights, config.tokenizer)))
    codes = trainer.vqgan.codebook.embedding.weight.clone()
    trainer.codes.averages.move(trainer.vqgan.codebook)
    torch.testing.assert_close(trainer.vqgan.codebook.embedding.weight, codes)
    other = changed(config, {"tokenizer.norm": "position", "run": config.run / "other"})
    with pytest.raises(UserError, match="norm is group, but the config says position"):
        train_tokenizer(other, resume=False, start=weights)


def test_an_average_counts_no_more_images_than_there_are(config, changed):
    trainer = trainer_with(config, changed, batch_size=100, ema_half_life=22.0, warmup_steps=0)
    assert trainer.averaged.decay == pytest.approx(0.5**0.5)  # of 11 images


def test_a_start_with_wider_kernels_says_what_the_narrower_ones_did(
    config, changed, images, tmp_path
):
    narrow = changed(config, {"tokenizer.encoder_kernels": [3, 1]})
    before = VQGAN(narrow.tokenizer)
    path = tmp_path / "narrow.safetensors"
    save_weights(path, before.state_dict(), narrow.tokenizer, {})
    after = tokenizer_to_start_from(path, config)
    assert after.config.encoder_kernels == [3, 3]
    torch.testing.assert_close(after.latents(images), before.latents(images))
    torch.testing.assert_close(
        after.decode(after.encode(images)), before.decode(before.encode(images))
    )
    trained = train_tokenizer(config, resume=False, start=path)
    assert load_tokenizer(trained, config.tokenizer).config.encoder_kernels == [3, 3]


def test_a_start_with_narrower_kernels_is_refused(config, changed):
    weights = train_tokenizer(config, resume=False)
    narrow = changed(config, {"tokenizer.encoder_kernels": [3, 1], "run": config.run / "other"})
    with pytest.raises(
        UserError, match=r"encoder_kernels is \[3, 3\], but the config says \[3, 1\]"
    ):
        train_tokenizer(narrow, resume=False, start=weights)


def test_the_decoder_alone_may_be_trained_and_then_every_token_stays(config, changed, assert_same):
    weights = train_tokenizer(config, resume=False)
    before = dict(load_tokenizer(weights, config.tokenizer).state_dict())
    keys = {"tokenizer.training.decoder_only": True, "run": config.run / "refined"}
    refined = train_tokenizer(changed(config, keys), resume=False, start=weights)
    after = dict(load_tokenizer(refined, config.tokenizer).state_dict())
    decoding = ("decoder.", "post_quant_conv.")
    for kept in (name for name in before if not name.startswith(decoding)):
        torch.testing.assert_close(after[kept], before[kept], rtol=0, atol=0)
    moved = [name for name in before if not torch.equal(after[name], before[name])]
    assert moved
    assert all(name.startswith(decoding) for name in moved)


def test_a_decoder_alone_sees_the_tokens_of_repairs_in_bf16_too(
    config, changed, images, monkeypatch
):
    trainer = trainer_with(changed(config, {"precision": "bf16"}), changed, decoder_only=True)
    codebook, seen = trainer.vqgan.codebook, []
    nearest = codebook.nearest

    def watched(latents: torch.Tensor) -> torch.Tensor:
        seen.append(latents)
        return nearest(latents)

    monkeypatch.setattr(codebook, "nearest", watched)
    trainer.step(images)
    (latents,) = seen
    assert torch.equal(latents, trainer.vqgan.latents(trainer.loss.normalised(images)))


def test_a_decoder_alone_needs_weights_to_belong_to(config, changed):
    with pytest.raises(UserError, match="decoder_only trains the decoder of given weights"):
        train_tokenizer(changed(config, {"tokenizer.training.decoder_only": True}), resume=False)


def test_a_restart_removes_the_old_states_before_its_first_step_but_not_for_a_mistake(
    config, changed, monkeypatch
):
    train_tokenizer(config, resume=False)
    state = folder(config) / "state.pt"
    alone = changed(config, {"tokenizer.training.decoder_only": True})
    with pytest.raises(UserError, match="--tokenizer FILE"):
        train_tokenizer(alone, resume=False, restart=True)
    assert state.exists()
    assert previous(state).exists()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TokenizerTrainer, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        train_tokenizer(config, resume=False, restart=True)
    assert not state.exists()
    assert not previous(state).exists()


def test_a_state_with_other_weights_in_training_is_refused_in_one_line(config, changed):
    state = TokenizerTrainer(config, PICTURES, PICTURES, Compute.of(config)).state_dict()
    said = r"^the state's optimizer does not fit .*group.*; undo the change of the config, or .*"
    with pytest.raises(UserError, match=said + r"--restart$"):
        trainer_with(config, changed, decoder_only=True).load_state_dict(state)


# What is left behind


def test_the_weights_file_holds_the_average_and_loads_as_a_tokenizer(config, assert_same):
    path = train_tokenizer(config, resume=False)
    loaded = load_tokenizer(path, config.tokenizer)
    trainer = TokenizerTrainer(config, PICTURES, PICTURES, Compute.of(config))
    trainer.load_state_dict(load_state(folder(config) / "state.pt"))
    assert isinstance(loaded, VQGAN)
    assert_same(dict(loaded.state_dict()), dict(trainer.averaged.module.state_dict()))
    assert not same(weights_of(loaded), weights_of(trainer.vqgan))


def test_every_epoch_has_a_row_and_a_picture(config):
    train_tokenizer(config, resume=False)
    rows = read_rows(folder(config) / "log.jsonl")
    assert [row["epoch"] for row in rows] == [1, 2]
    wanted = {"loss", "reconstruction", "perceptual", "psnr", "ssim", "codes_used", "perplexity"}
    assert wanted <= rows[0].keys()
    for epoch in (1, 2):
        picture = folder(config) / "samples" / f"reconstructions_{epoch:04d}.png"
        assert Image.open(picture).size == (8 * 18 + 2, 2 * 18 + 2), "8 places over 8"


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(
    config, changed, monkeypatch
):
    train_tokenizer(config, resume=False)
    before = (folder(config) / "state.pt").read_bytes()
    nothing = torch.tensor(float("nan"))
    monkeypatch.setattr(quantizer, "commitment_loss", lambda *_: nothing)
    with pytest.raises(UserError, match=r"epoch 3, batch 3: the loss is no longer finite"):
        train_tokenizer(
            changed(config, {"tokenizer.training.epochs": 3}), resume=True, allow_config_change=True
        )
    assert (folder(config) / "state.pt").read_bytes() == before


def test_the_best_weights_are_those_of_the_smallest_distance(config, changed, monkeypatch):
    distances = iter([5.0, 3.0, 4.0])
    monkeypatch.setattr(
        TokenizerTrainer, "validate", lambda self: {"frechet_efficientnet": next(distances)}
    )
    monkeypatch.setattr(TokenizerTrainer, "pictures", lambda self: {})
    train_tokenizer(changed(config, {"tokenizer.training.epochs": 3}), resume=False)
    headers = [read_header(folder(config) / f"{name}.safetensors") for name in ("best", "vqgan")]
    assert [header["epoch"] for header in headers] == ["2", "3"]
    rows = read_rows(folder(config) / "log.jsonl")
    best = [(row["best_epoch"], row["best_frechet_efficientnet"]) for row in rows]
    assert best == [(1, 5.0), (2, 3.0), (2, 3.0)]


def test_speed_and_its_share_of_the_peak_are_logged(config):
    train_tokenizer(config, resume=False)
    for row in read_rows(folder(config) / "log.jsonl"):
        flops = row["images_per_second"] * tokenizer_flops(config.tokenizer, 16, False)
        assert row["images_per_second"] > 0
        assert row["mfu"] == pytest.approx(flops / PEAK)


def test_too_little_memory_ends_the_run_with_the_settings_that_need_less(config, monkeypatch):
    def need(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(TokenizerTrainer, "step", need)
    with pytest.raises(UserError) as error:
        train_tokenizer(config, resume=False)
    advice = "a tokenizer.training.batch_size below 4; precision: bf16"
    assert str(error.value) == f"cpu: out of memory; what needs less: {advice}"


def test_a_collapsing_codebook_is_warned_of_once_the_warm_up_is_over(config, changed, capsys):
    trainer = trainer_with(config, changed)
    for step, warned in ((1, False), (1000, True)):
        trainer.position.step = step
        assert trainer.progress_text() == ["codes 0%"]
        assert ("codebook collapse: 0% of the codes" in capsys.readouterr().out) is warned


# What is shown


def shown_and_stored(trainer: TokenizerTrainer) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of an epoch as they are shown, and as they are stored, (n, 3, H, W) each."""
    trainer.images = torch.randint(0, 256, PICTURES.shape, dtype=torch.uint8)
    shown = torch.cat(list(trainer.batches()))
    assert shown.shape == PICTURES.shape
    return shown, trainer.images


def test_half_of_the_images_are_mirrored_and_none_changed_otherwise(config, changed):
    shown, pictures = shown_and_stored(trainer_with(config, changed))
    is_shown = [
        (shown[:, None] == stored / 255).flatten(2).all(2).any(1)
        for stored in (pictures, pictures.flip(3))
    ]
    assert (is_shown[0] ^ is_shown[1]).all()
    assert 0 < is_shown[1].sum() < len(PICTURES)


def test_without_mirroring_images_are_shown_as_they_are(config, changed):
    shown, pictures = shown_and_stored(trainer_with(config, changed, mirror=False))
    assert (shown[:, None] == pictures / 255).flatten(2).all(2).any(1).all()
