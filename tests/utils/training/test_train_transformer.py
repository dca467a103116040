"""Stage 2: accumulation, steps, what trains, and a resume that is exact."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import models.transformer
from config.errors import StopRequested, UserError
from config.loading import load_config, save_config
from config.schema import Config
from models.transformer import BidirectionalTransformer
from models.vqgan import VQGAN
from utils.device import Compute
from utils.io import messages
from utils.io.files import alone_in, read_rows
from utils.training import state as place
from utils.training import transformer as stage_2
from utils.training import transformer_step as transformer_trainer
from utils.training.optim import learning_rate
from utils.training.run import Run
from utils.training.state import load_state, previous
from utils.training.throughput import training_flops
from utils.training.token_batches import TokenBatch, Tokens
from utils.training.transformer import load_tokens, train_transformer
from utils.training.transformer_step import TransformerTrainer
from utils.weights.description import read_header
from utils.weights.store import load_transformer, save_weights

NEVER = 10**6
CPU = torch.device("cpu")
PEAK = 1e12  # FLOP/s that the fixture quick states
pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def config(weights, changed) -> Config:
    """Three epochs of 11 images in 6 batches and 3 groups, with everything that draws numbers."""
    return changed(
        weights,
        {
            "training.epochs": 3,
            "training.accumulate": 2,
            "training.warmup_steps": 2,
            "training.lr_schedule": "cosine",
            "training.weight_decay": 0.05,
            "training.max_grad_norm": 1.0,
            "training.ema_half_life": 20.0,
            "transformer.dropout": 0.1,
            "transformer.num_layers": 1,
        },
    )


def folder(config: Config) -> Path:
    return config.run / "transformer"


def log_of(config: Config) -> list[dict]:
    """The rows of a run's log without what tells of time."""
    timing = ("time", "images_per_second", "mfu")
    rows = read_rows(folder(config) / "log.jsonl")
    return [{key: value for key, value in row.items() if key not in timing} for row in rows]


def elsewhere(config: Config, tmp_path: Path) -> Config:
    """The same training in another folder, with the same tokenizer."""
    section = config.tokenizer.model_copy(update={"weights": config.tokenizer_weights})
    return config.model_copy(update={"run": tmp_path / "other", "tokenizer": section})


def trained(config: Config) -> TransformerTrainer:
    """A trainer after the run's last checkpoint."""
    trainer = TransformerTrainer(config, load_tokens(config, CPU), Compute.of(config))
    trainer.load_state_dict(load_state(folder(config) / "state.pt"))
    return trainer


# Exact resume


def test_a_run_stopped_and_resumed_is_the_run_that_never_stopped(
    config, tmp_path, stop_after, assert_same
):
    # three groups an epoch: steps 1 and 5 end in the middle of one, step 3 at its end
    whole = elsewhere(config, tmp_path)
    train_transformer(whole, resume=False)
    for steps in (1, 3, 5):
        stop_after(steps)
        with pytest.raises(
            StopRequested, match=r"stopped in epoch .*, saved; continue with --resume"
        ):
            train_transformer(config, resume=False, restart=True)
        assert load_state(folder(config) / "state.pt")["position"]["step"] == steps
        stop_after(NEVER)
        path = train_transformer(config, resume=True)
        assert_same(*(load_state(folder(c) / "state.pt") for c in (config, whole)))
        assert log_of(config) == log_of(whole)
        assert_same(load_file(path), load_file(folder(whole) / path.name))


def test_a_broken_checkpoint_costs_one_interval_and_nothing_else(
    config, tmp_path, capsys, assert_same
):
    whole = elsewhere(config, tmp_path)
    train_transformer(whole, resume=False)
    train_transformer(config, resume=False)
    state = folder(config) / "state.pt"
    state.write_bytes(state.read_bytes()[:1000])
    assert load_state(previous(state))["position"]["epoch"] == 2
    train_transformer(config, resume=True)
    assert f"{state}: damaged checkpoint, skipped" in capsys.readouterr().err
    assert_same(load_state(state), load_state(folder(whole) / "state.pt"))
    assert log_of(config) == log_of(whole)


def test_a_restart_killed_before_its_first_save_leaves_nothing_to_resume(config):
    train_transformer(config, resume=False)
    state = folder(config) / "state.pt"
    assert previous(state).exists()

    def killed(_trainer: TransformerTrainer) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_transformer(config, resume=False, restart=True, callback=killed)
    assert not state.exists()
    assert not previous(state).exists()


def test_two_broken_checkpoints_end_the_run_with_one_line(config):
    train_transformer(config, resume=False)
    state = folder(config) / "state.pt"
    for path in (state, previous(state)):
        path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match="damaged, and no earlier checkpoint is left"):
        train_transformer(config, resume=True)


def test_a_second_training_in_the_same_folder_is_refused(config, tmp_path):
    with (
        alone_in(folder(config)),
        pytest.raises(UserError, match="another process is at work in this folder"),
    ):
        train_transformer(config, resume=True)


def test_resuming_a_finished_run_changes_nothing(config):
    train_transformer(config, resume=False)
    before = {path.name: path.read_bytes() for path in folder(config).glob("*.[spj]*")}
    path = train_transformer(config, resume=True)
    assert {path.name: path.read_bytes() for path in folder(config).glob("*.[spj]*")} == before
    assert path == folder(config) / "transformer.safetensors"


def test_another_seed_trains_another_network(config, tmp_path, changed):
    train_transformer(config, resume=False)
    other = changed(elsewhere(config, tmp_path), {"seed": 1})
    train_transformer(other, resume=False)
    assert log_of(config) != log_of(other)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("training.batch_size", n) for n in (0, -1)),
        *(("training.accumulate", n) for n in (0, -1)),
        ("training.validate_every", 0),
        ("training.checkpoint_every", 0),
        ("training.pictures_every", -1),
        ("training.max_minutes", 0),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(config, tmp_path, key, value):
    save_config(config, tmp_path / "config.yml")
    with pytest.raises(UserError, match=rf"{key} is {value}: input should be greater than"):
        load_config(tmp_path / "config.yml", [f"{key}={value}"])


def test_a_resumed_run_names_every_setting_that_differs(config, changed):
    train_transformer(config, resume=False)
    other = {"training.learning_rate": 0.02, "masking.loss_on": "hidden", "training.epochs": 4}
    keys = "masking.loss_on, training.epochs, training.learning_rate"
    with pytest.raises(UserError, match=rf"other {keys} \(masking.loss_on was all, is hidden"):
        train_transformer(changed(config, other), resume=True)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("train", np.zeros((11, 2, 16), np.uint16)),
        ("codes_sha256", "another"),
    ],
)
def test_a_run_does_not_go_on_with_other_images_or_another_tokenizer(config, part, value):
    tokens = load_tokens(config, CPU)
    train_transformer(config, resume=False, tokens=tokens)
    other = replace(tokens, **{part: value})
    with pytest.raises(UserError, match=r"other (tokens of the images|codes of the tokenizer)"):
        train_transformer(config, resume=True, tokens=other)


def test_a_run_does_not_go_on_in_another_arithmetic(config, changed):
    train_transformer(changed(config, {"precision": "fp32"}), resume=False)
    with pytest.raises(UserError, match=r"precision was torch.float32, is torch.bfloat16"):
        train_transformer(changed(config, {"precision": "bf16"}), resume=True)


def test_fp16_on_a_cpu_which_scales_no_gradients_becomes_fp32_with_a_note(
    config, changed, capsys, monkeypatch
):
    monkeypatch.setattr(messages, "_told", set())
    config = changed(config, {"precision": "fp16"})
    trainer = TransformerTrainer(config, load_tokens(config, CPU), Compute.of(config))
    assert trainer.dtype == torch.float32
    assert "gradients are scaled in stage 2 on a GPU only" in capsys.readouterr().err


def test_with_smaller_batches_a_run_goes_on_at_the_same_rate_and_ends_fully_decayed(
    config, changed, stop_after
):
    stop_after(4)  # of nine; after the first group of the second epoch
    with pytest.raises(StopRequested):
        train_transformer(config, resume=False)
    stop_after(NEVER)
    seen = []
    other = changed(config, {"training.batch_size": 1, "training.accumulate": 1})
    train_transformer(
        other,
        resume=True,
        allow_config_change=True,
        callback=lambda trainer: seen.append((trainer.position.batch, trainer.rate)),
    )
    rate = learning_rate(config.training, 15, total=3 * 11)
    assert seen[0] == (3, rate)  # two of six batches are 3.7 of eleven, 4 of 9 steps 14.7 of 33
    assert len(seen) == 1 + (11 - 3) + 11
    assert seen[-1][1] == pytest.approx(0.01 * config.training.learning_rate)


def test_a_restarted_run_keeps_no_pictures_of_the_old_one(config, changed):
    train_transformer(changed(config, {"training.pictures_every": 1}), resume=False)
    samples = folder(config) / "samples"
    assert len(list(samples.iterdir())) == 3
    without = changed(config, {"training.pictures_every": 0, "training.epochs": 1})
    train_transformer(without, resume=False, restart=True)
    assert not samples.exists()


# Gradients and steps


@pytest.fixture
def batch() -> TokenBatch:
    """Ten images of 16 tokens, eight of each hidden, so that any batches of them weigh alike."""
    chance = torch.Generator().manual_seed(1)
    token_ids = torch.randint(16, (10, 16), generator=chance)
    token_mask = torch.rand(10, 16, generator=chance).argsort(1) < 8
    return TokenBatch(token_ids, token_ids, token_mask)


def exact(config: Config, changed, batch_size: int, accumulate: int, batches: int, **more):
    """A trainer in float64 without dropout."""
    settings = {"training.batch_size": batch_size, "training.accumulate": accumulate}
    plain = {"transformer.dropout": 0.0, "training.max_grad_norm": None}
    tokens = np.zeros((batch_size * batches, 2, 16), np.uint16)
    data = Tokens(train=tokens, val=tokens, codes=torch.zeros(16, 8), codes_sha256="theirs")
    trainer = TransformerTrainer(changed(config, settings | plain | more), data, Compute.of(config))
    trainer.transformer.double()
    trainer.averaged.double()
    return trainer


def gradients(trainer: TransformerTrainer) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in trainer.transformer.named_parameters()}


def test_ten_batches_of_one_have_the_gradient_and_the_step_of_one_batch_of_ten(
    config, changed, batch
):
    small, large = exact(config, changed, 1, 10, 10), exact(config, changed, 10, 1, 1)
    for row in range(10):
        assert not (small.position.batch and small.group_is_full())
        small.accumulate(batch.rows(slice(row, row + 1)))
    large.accumulate(batch)
    assert small.group_is_full()
    assert large.group_is_full()
    torch.testing.assert_close(gradients(small), gradients(large), rtol=1e-6, atol=1e-9)
    for trainer in (small, large):
        trainer.take_step()
    rate = small.optimizer.param_groups[0]["lr"]
    for a, b in zip(small.transformer.parameters(), large.transformer.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0.01 * rate)
    assert small.means() == pytest.approx(large.means())


def test_the_last_shorter_group_is_divided_by_its_own_count(config, changed, batch):
    # 5 batches of 2 in groups of 3: the second group has 2 batches, 4 images
    trainer = exact(config, changed, 2, 3, 5)
    for row in (0, 2, 4):
        trainer.accumulate(batch.rows(slice(row, row + 2)))
    assert trainer.group_is_full()
    trainer.optimizer.zero_grad()
    trainer.accumulate(batch.rows(slice(6, 8)))
    assert not trainer.group_is_full()
    trainer.accumulate(batch.rows(slice(8, 10)))
    assert trainer.group_is_full()
    found = gradients(trainer)
    alone = exact(config, changed, 4, 1, 1)
    alone.accumulate(batch.rows(slice(6, 10)))
    torch.testing.assert_close(found, gradients(alone), rtol=1e-6, atol=1e-9)


def test_gradients_are_empty_after_a_step_and_the_average_follows(config, changed, batch):
    trainer = exact(config, changed, 10, 1, 1, **{"training.ema_half_life": 0.0})
    trainer.accumulate(batch)
    trainer.take_step()
    assert all(weight.grad is None for weight in trainer.transformer.parameters())
    pairs = zip(trainer.transformer.parameters(), trainer.averaged.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_gradients_are_scaled_down_to_the_configured_norm(config, changed, batch, monkeypatch):
    trainer, norms = exact(config, changed, 10, 1, 1), []
    trainer.settings = trainer.settings.model_copy(update={"max_grad_norm": 0.01})
    trainer.accumulate(batch)
    step = trainer.optimizer.step

    def note(*arguments):
        norms.append(sum(g.square().sum() for g in gradients(trainer).values()).sqrt().item())
        return step(*arguments)

    monkeypatch.setattr(trainer.optimizer, "step", note)
    trainer.take_step()
    assert norms == pytest.approx([0.01], rel=1e-3)


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 18), (4, 6), (10, 3)])
def test_an_epoch_of_6_batches_takes_as_many_steps_as_it_has_groups(
    config, changed, accumulate, steps
):
    config = changed(config, {"training.accumulate": accumulate})
    train_transformer(config, resume=False)
    assert load_state(folder(config) / "state.pt")["position"]["step"] == steps
    assert trained(config).total_steps == steps


def test_the_log_shows_the_rate_that_each_epoch_has_come_to(config):
    train_transformer(config, resume=False)
    rates = [row["learning_rate"] for row in read_rows(folder(config) / "log.jsonl")]
    assert rates == [learning_rate(config.training, step, total=9) for step in (3, 6, 9)]


def test_the_loss_falls(config, changed):
    config = changed(config, {"training.epochs": 6, "training.accumulate": 1})
    train_transformer(config, resume=False)
    losses = [row["train_loss"] for row in read_rows(folder(config) / "log.jsonl")]
    assert losses[-1] < 0.95 * losses[0]


def test_dropout_is_on_in_training_and_off_in_the_average(config, monkeypatch):
    modes = []
    loss = transformer_trainer.token_loss
    monkeypatch.setattr(
        transformer_trainer,
        "token_loss",
        lambda net, *rest: modes.append(net.training) or loss(net, *rest),
    )
    train_transformer(config, resume=False)
    assert set(modes) == {True}


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(
    config, changed, monkeypatch
):
    train_transformer(config, resume=False)
    before = (folder(config) / "state.pt").read_bytes()
    longer = changed(config, {"training.epochs": 4})
    monkeypatch.setattr(
        transformer_trainer, "token_loss", lambda net, *rest: net.bias.square().sum() * float("nan")
    )
    with pytest.raises(
        UserError, match=r"epoch 4, batch 6: the loss is no longer finite at step 12"
    ):
        train_transformer(longer, resume=True, allow_config_change=True)
    assert (folder(config) / "state.pt").read_bytes() == before


def test_averages_count_no_more_images_a_step_than_there_are(config, changed):
    large = changed(config, {"training.accumulate": 100, "training.ema_half_life": 11.0})
    trainer = TransformerTrainer(large, load_tokens(large, CPU), Compute.of(large))
    assert trainer.averaged.decay == pytest.approx(0.5)  # 11 images


def test_weights_that_the_last_step_broke_are_not_kept_or_logged(config):
    def break_last(trainer: TransformerTrainer) -> None:
        if trainer.position.step == trainer.steps_per_epoch:
            trainer.transformer.bias.data.fill_(float("nan"))
            trainer.averaged.module.bias.data.fill_(float("nan"))

    with pytest.raises(UserError, match="epoch 2, batch 0: the loss is no longer finite at step 3"):
        train_transformer(config, resume=False, callback=break_last)
    assert not read_rows(folder(config) / "log.jsonl")
    assert not (folder(config) / "best.safetensors").exists()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {},
            "a training.batch_size below 2 with a training.accumulate above 2, which trains alike; "
            "training.checkpoint_activations: true; transformer.attention: fused; precision: bf16",
        ),
        (
            {
                "training.batch_size": 1,
                "training.checkpoint_activations": True,
                "precision": "bf16",
            },
            "transformer.attention: fused",
        ),
    ],
)
def test_too_little_memory_ends_the_run_with_the_settings_that_need_less(
    config, changed, monkeypatch, settings, expected
):
    def need(*_batch):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(transformer_trainer, "token_loss", need)
    with pytest.raises(UserError) as error:
        train_transformer(changed(config, settings), resume=False)
    assert str(error.value) == f"cpu: out of memory; what needs less: {expected}"


# What is trained, and what is not


def test_the_tokenizer_never_runs_once_its_tokens_are_kept(config, monkeypatch):
    load_tokens(config, CPU)

    def refuse(*_arguments):
        raise AssertionError("the tokenizer ran")

    for name in ("encode", "latents", "decode"):
        monkeypatch.setattr(VQGAN, name, refuse)
    train_transformer(config, resume=False)


def test_the_optimizer_holds_the_transformers_weights_and_no_others(config):
    trainer = TransformerTrainer(config, load_tokens(config, CPU), Compute.of(config))
    held = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in trainer.transformer.parameters()}
    assert not any(isinstance(value, VQGAN) for value in vars(trainer).values())


def tokens_with(codes: torch.Tensor) -> Tokens:
    """Three images of 16 tokens, of which code 0 is the only one, and their mirror images."""
    rows = np.zeros((3, 2, 16), np.uint16)
    return Tokens(rows, rows, codes, "theirs")


def test_every_code_counts_once_more_than_it_is_seen():
    # 3 images and their mirror images, 96 tokens, and one more of each of 4 codes
    frequency = tokens_with(torch.randn(4, 2)).frequency()
    torch.testing.assert_close(frequency, torch.tensor([97.0, 1.0, 1.0, 1.0]) / 100)


def test_codes_of_another_width_than_the_prior_are_refused_before_anything_is_encoded(
    config, changed, monkeypatch
):
    config, path = changed(config, {"transformer.prior_dim": 8}), config.tokenizer_weights
    narrow = VQGAN(config.tokenizer.model_copy(update={"latent_dim": 4}))
    save_weights(path, narrow.state_dict(), narrow.config, {})
    monkeypatch.setattr(stage_2, "cached_tokens", lambda *_: pytest.fail("encoded"))
    said = f"{path}: latent_dim is 4, but transformer.prior_dim is 8; allowed are 0 and 4"
    with pytest.raises(UserError, match=f"^{re.escape(said)}$"):
        load_tokens(config, CPU)


@pytest.mark.parametrize("init", ["random", "codebook"])
def test_a_prior_has_the_codes_however_the_weights_begin(config, changed, init):
    config = changed(config, {"transformer.prior_dim": 8, "training.init": init})
    trainer = TransformerTrainer(config, tokens_with(torch.randn(16, 8)), Compute.of(config))
    for network in (trainer.transformer, trainer.averaged.module):
        assert network.prior.has_codes(trainer.tokens.codes)


def test_weights_made_for_another_tokenizer_take_over_the_codes_of_this_one(config, changed):
    config = changed(config, {"transformer.prior_dim": 8, "training.init": "codebook"})
    old, new = (tokens_with(torch.randn(16, 8)) for _ in range(2))
    network = TransformerTrainer(config, old, Compute.of(config)).transformer
    for tokens in (old, new):
        trainer = TransformerTrainer(config, tokens, Compute.of(config))
        fresh = trainer.transformer.prior.codes.clone()
        trainer.start_from(network)
        for own in (trainer.transformer, trainer.averaged.module):
            assert own.prior.has_codes(tokens.codes)
            torch.testing.assert_close(own.prior.codes, fresh)
            torch.testing.assert_close(own.tok_emb.weight, network.tok_emb.weight)


def test_the_weights_file_holds_the_average(config, assert_same):
    path = train_transformer(config, resume=False)
    loaded = load_transformer(path, config.transformer)
    assert isinstance(loaded, BidirectionalTransformer)
    assert_same(dict(loaded.state_dict()), dict(trained(config).averaged.module.state_dict()))
    live = trained(config).transformer.state_dict()
    assert any(not torch.equal(value, live[key]) for key, value in loaded.state_dict().items())


def test_the_best_weights_are_those_of_the_lowest_validation_loss(config, changed, monkeypatch):
    losses = iter([5.0, 3.0, 4.0, 3.0])
    kept = []
    monkeypatch.setattr(transformer_trainer, "validate", lambda *_: {"val_loss": next(losses)})
    save = TransformerTrainer.save_weights
    monkeypatch.setattr(
        TransformerTrainer,
        "save_weights",
        lambda t, path: kept.append((path.name, t.position.epoch)) or save(t, path),
    )
    train_transformer(changed(config, {"training.epochs": 4}), resume=False)
    assert [epoch for name, epoch in kept if name == "best.safetensors"] == [1, 2]
    assert read_header(folder(config) / "best.safetensors")["epoch"] == "2"
    pixels = read_header(folder(config) / "best.safetensors")["pixels"]
    assert pixels == config.data.normalisation
    assert read_header(folder(config) / "transformer.safetensors")["epoch"] == "4"
    best = [
        (row["best_epoch"], row["best_val_loss"]) for row in read_rows(folder(config) / "log.jsonl")
    ]
    assert best == [(1, 5.0), (2, 3.0), (2, 3.0), (2, 3.0)]


def test_a_resumed_run_remembers_its_best_loss(config, changed, monkeypatch):
    monkeypatch.setattr(transformer_trainer, "validate", lambda *_: {"val_loss": 2.0})
    train_transformer(config, resume=False)
    monkeypatch.setattr(transformer_trainer, "validate", lambda *_: {"val_loss": 3.0})
    longer = changed(config, {"training.epochs": 4})
    train_transformer(longer, resume=True, allow_config_change=True)
    assert read_header(folder(config) / "best.safetensors")["epoch"] == "1"


def test_a_run_that_gives_up_its_average_goes_on_with_the_weights_themselves(config, changed):
    tokens, compute = load_tokens(config, CPU), Compute.of(config)
    averaging = changed(config, {"training.ema_half_life": 5.0})
    before = TransformerTrainer(averaging, tokens, compute)
    with torch.no_grad():
        before.averaged.module.pos_emb.add_(1.0)
    plain = changed(config, {"training.ema_half_life": 0.0})
    after = TransformerTrainer(plain, tokens, compute)
    after.load_state_dict(before.state_dict())
    for network in (after.transformer, after.averaged.module):
        assert torch.equal(network.pos_emb, before.transformer.pos_emb)


def test_both_weights_are_named_when_a_run_ends(config, capsys):
    train_transformer(config, resume=False)
    said = capsys.readouterr().out
    assert f"last weights: {folder(config) / 'transformer.safetensors'}, epoch 3" in said
    assert f"best weights: {folder(config) / 'best.safetensors'}, epoch" in said


def test_mirror_images_are_seen_only_if_wanted(config, changed, monkeypatch):
    train = load_tokens(config, CPU).train
    seen = []
    accumulate = TransformerTrainer.accumulate
    monkeypatch.setattr(
        TransformerTrainer,
        "accumulate",
        lambda self, batch: (
            seen.extend(map(tuple, batch.targets.tolist())) or accumulate(self, batch)
        ),
    )
    as_is, mirrored = ({tuple(row) for row in train[:, side].tolist()} for side in (0, 1))
    train_transformer(changed(config, {"training.mirror": False}), resume=False)
    assert set(seen) == as_is
    assert len(seen) == 3 * 11, "every image once an epoch"
    seen.clear()
    train_transformer(config, resume=False, restart=True)
    assert set(seen) <= as_is | mirrored
    assert set(seen) & (mirrored - as_is)


def test_only_so_many_validation_images_are_used(config, changed):
    assert len(load_tokens(changed(config, {"training.validation_images": 2}), CPU).val) == 2
    assert len(load_tokens(config, CPU).val) == 6


def test_validation_runs_at_its_interval_and_at_the_end(config, changed):
    config = changed(config, {"training.epochs": 5, "training.validate_every": 2})
    train_transformer(config, resume=False)
    rows = read_rows(folder(config) / "log.jsonl")
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["epoch"] for row in rows if "val_loss" in row] == [2, 4, 5]


def test_a_changed_weight_decay_counts_from_the_resume_on(config, changed):
    train_transformer(config, resume=False)
    other = changed(config, {"training.weight_decay": 0.3, "training.betas": [0.5, 0.6]})
    decayed, kept = trained(other).optimizer.param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    assert decayed["betas"] == kept["betas"] == (0.5, 0.6)


def test_settings_that_only_say_when_to_look_may_change_in_a_resumed_run(config, changed, tmp_path):
    train_transformer(changed(config, {"training.checkpoint_every": 3}), resume=False)
    other = {"training.checkpoint_every": 1, "training.validate_every": 2}
    train_transformer(changed(config, other), resume=True)


def test_pictures_of_repairs_are_made_at_their_interval_from_the_weights_just_saved(
    config, changed, monkeypatch
):
    epochs = []

    def note(given: Config) -> torch.Tensor:
        epochs.append(int(read_header(given.transformer_weights)["epoch"]))
        return repairs(given)

    repairs = transformer_trainer.val_repairs
    monkeypatch.setattr(transformer_trainer, "val_repairs", note)
    settings = {"training.epochs": 5, "training.pictures_every": 2, "training.checkpoint_every": 5}
    train_transformer(changed(config, settings), resume=False)
    assert epochs == [2, 4]
    pictures = sorted((folder(config) / "samples").iterdir())
    assert [path.name for path in pictures] == ["repairs_0002.png", "repairs_0004.png"]


def test_no_pictures_are_made_where_none_are_wanted(config, changed):
    train_transformer(changed(config, {"training.pictures_every": 0}), resume=False)
    assert not (folder(config) / "samples").exists()


def test_speed_and_its_share_of_the_peak_are_logged(config):
    train_transformer(config, resume=False)
    for row in read_rows(folder(config) / "log.jsonl"):
        flops = row["images_per_second"] * training_flops(config.transformer)
        assert row["images_per_second"] > 0
        assert row["mfu"] == pytest.approx(flops / PEAK)


def test_the_bar_shows_loss_rate_speed_and_share_of_the_peak(config, capsys):
    train_transformer(config, resume=False)
    found = r"loss \d\.\d{4}, lr \d\.\de-\d\d, [\d,]+ images/s, MFU \d+%"
    assert re.search(found, capsys.readouterr().err)


# Time limits


class Clock:
    """Stands in for the module time; every look at it takes five seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        self.now += 5.0
        return self.now


def test_a_run_with_a_time_limit_ends_in_time_with_its_rate_decayed_and_is_saved(
    config, changed, monkeypatch
):
    monkeypatch.setattr(place, "time", Clock())
    settings = {"training.epochs": 1000, "training.max_minutes": 2.0}
    path = train_transformer(changed(config, settings), resume=False)
    rows = read_rows(folder(config) / "log.jsonl")
    assert path.exists()
    assert rows[-1]["epoch"] < 100
    assert "val_loss" in rows[-1]
    rates = [row["learning_rate"] for row in rows]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.01 * config.training.learning_rate)
    assert load_state(folder(config) / "state.pt")["position"]["seconds"] >= 120


def test_a_limited_run_that_is_resumed_goes_on_with_the_time_that_is_left(
    config, changed, monkeypatch, capsys
):
    monkeypatch.setattr(place, "time", Clock())
    limited = changed(config, {"training.epochs": 1000, "training.max_minutes": 1.0})
    train_transformer(limited, resume=False)
    epochs = load_state(folder(config) / "state.pt")["position"]["epoch"]
    train_transformer(limited, resume=True)
    assert f"{epochs} of 1000 epochs are done; training.max_minutes" in capsys.readouterr().out
    longer = changed(limited, {"training.max_minutes": 1.5})
    train_transformer(longer, resume=True)
    again = load_state(folder(config) / "state.pt")["position"]["epoch"]
    assert epochs < again < 2 * epochs


def test_an_epoch_whose_time_ran_out_while_the_run_was_stopped_is_finished_all_the_same(
    config, changed, monkeypatch, stop_after
):
    monkeypatch.setattr(place, "time", Clock())
    stop_after(1)
    with pytest.raises(StopRequested):
        train_transformer(changed(config, {"training.max_minutes": 10.0}), resume=False)
    stop_after(NEVER)
    train_transformer(changed(config, {"training.max_minutes": 0.01}), resume=True)
    (row,) = read_rows(folder(config) / "log.jsonl")
    assert row["epoch"] == 1
    assert "val_loss" in row
    assert "images_per_second" not in row  # nothing was trained on
    assert load_state(folder(config) / "state.pt")["position"]["step"] == 1


def test_a_warm_up_that_does_not_end_within_the_run_is_refused(config, changed):
    for steps in (9, 100):
        with pytest.raises(UserError, match=f"warmup_steps is {steps}, but the .* has 9 steps"):
            train_transformer(changed(config, {"training.warmup_steps": steps}), resume=False)
    assert not (folder(config) / "log.jsonl").exists()


# Speed


def test_a_compiled_run_has_the_same_numbers_and_keys(config, changed, tmp_path, monkeypatch):
    monkeypatch.setattr(models.transformer, "COMPILER", "aot_eager")
    config = changed(config, {"transformer.dropout": 0.0, "training.batch_size": 11})  # one shape
    plain, compiled = elsewhere(config, tmp_path), changed(config, {"training.compile": True})
    weights = [load_file(train_transformer(c, resume=False)) for c in (plain, compiled)]
    assert weights[0].keys() == weights[1].keys()
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-3, atol=1e-5)


def test_only_the_network_that_trains_is_compiled(config, changed):
    config = changed(config, {"training.compile": True})
    trainer = TransformerTrainer(config, load_tokens(config, CPU), Compute.of(config))
    compiled = [
        any(m._compiled_call_impl is not None for m in network.modules())
        for network in (trainer.transformer, trainer.averaged)
    ]
    assert compiled == [True, False]


def test_a_state_saved_with_another_optimizer_kernel_is_taken(config):
    train_transformer(config, resume=False)
    state = load_state(folder(config) / "state.pt")
    for group in state["optimizer"]["param_groups"]:
        group["fused"] = True
    trainer = TransformerTrainer(config, load_tokens(config, CPU), Compute.of(config))
    trainer.load_state_dict(state)
    assert {group["fused"] for group in trainer.optimizer.param_groups} == {False}


def test_checkpoints_are_written_at_their_interval_and_at_the_end(config, changed, monkeypatch):
    saved = []
    save = Run.save
    monkeypatch.setattr(
        Run, "save", lambda run: saved.append(run.trainer.position.epoch) or save(run)
    )
    settings = {"training.epochs": 5, "training.checkpoint_every": 2}
    train_transformer(changed(config, settings), resume=False)
    assert saved == [2, 4, 5]


# Views and holes


def test_a_run_with_augmented_views_and_holes_resumes_exactly(
    config, tmp_path, changed, stop_after, assert_same
):
    config = changed(
        config,
        {
            "data.views": 4,
            "transformer.conditioning": "pixels",
            "masking.hole_share": 0.5,
            "masking.ratio_per": "sample",
        },
    )
    whole = elsewhere(config, tmp_path)
    train_transformer(whole, resume=False)
    stop_after(4)
    with pytest.raises(StopRequested):
        train_transformer(config, resume=False)
    stop_after(NEVER)
    train_transformer(config, resume=True)
    assert_same(*(load_state(folder(c) / "state.pt") for c in (config, whole)))


def test_what_is_seen_near_holes_reaches_the_network(config, changed, monkeypatch):
    config = changed(config, {"transformer.conditioning": "pixels", "masking.hole_share": 1.0})
    seen, loss = [], transformer_trainer.token_loss

    def note(network, targets, token_mask, masking, inputs, known):
        seen.append((inputs != targets).any().item() and known is not None)
        return loss(network, targets, token_mask, masking, inputs, known)

    monkeypatch.setattr(transformer_trainer, "token_loss", note)
    train_transformer(config, resume=False)
    assert any(seen)


def test_another_fill_of_holes_is_another_run(config, changed):
    config = changed(config, {"transformer.conditioning": "pixels", "masking.hole_share": 0.5})
    train_transformer(config, resume=False)
    other = changed(config, {"decoding.hole_fill": "mean"})
    with pytest.raises(UserError, match=r"was started with other decoding.hole_fill"):
        train_transformer(other, resume=True)


def test_recomputed_activations_train_the_same_network(
    config, tmp_path, changed, assert_same, monkeypatch
):
    monkeypatch.setattr(transformer_trainer, "may_share", lambda *_: False)  # as with recomputing
    path = train_transformer(config, resume=False)
    other = changed(elsewhere(config, tmp_path), {"training.checkpoint_activations": True})
    assert_same(load_file(path), load_file(train_transformer(other, resume=False)))
