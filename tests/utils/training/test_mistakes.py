"""Mistakes that once went unnoticed: full disks, foreign states, settings that cannot work."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from config.errors import StopRequested, UserError
from config.loading import load_config, save_config
from utils.device import Compute
from utils.io.files import write_text
from utils.training.run import RunLog
from utils.training.state import Position, load_state, save_state
from utils.training.token_cache import cached_tokens
from utils.training.tokenizer import train_tokenizer
from utils.training.tokenizer_step import TokenizerTrainer
from utils.training.transformer import load_tokens, train_transformer
from utils.training.transformer_step import TransformerTrainer
from utils.training.validate_tokenizer import reconstruction_grid
from utils.weights.store import save_weights

CPU = torch.device("cpu")


@pytest.mark.parametrize("count", [1, 5, 15])
def test_any_number_of_validation_images_makes_a_picture(count):
    images = torch.zeros(count, 4, 4, 3, dtype=torch.uint8)
    assert reconstruction_grid(images, images).ndim == 3


def test_a_folder_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_text(tmp_path / "file" / "a.txt", "x")


def test_a_run_folder_that_is_a_file_is_one_line(tmp_path, config):
    (tmp_path / "file").write_text("")
    trainer = SimpleNamespace(config=config, device=CPU, position=Position())
    with pytest.raises(UserError):
        RunLog(tmp_path / "file" / "run", trainer)


@pytest.fixture
def small(tmp_path):
    import subprocess

    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_while_saving_a_state_is_one_line(small):
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        save_state(small / "state.pt", {"w": torch.zeros(100_000)})


def test_a_full_disk_while_saving_weights_is_one_line(small, tokenizer):
    with pytest.raises(UserError, match="cannot be written"):
        save_weights(small / "w.safetensors", {"w": torch.zeros(100_000)}, tokenizer.config, {})


@pytest.mark.usefixtures("quick")
def test_resuming_with_another_network_is_one_line(weights, changed):
    train_transformer(weights, resume=False)
    with pytest.raises(UserError):
        train_transformer(
            changed(weights, {"transformer.mlp_dim": 64, "training.epochs": 3}), resume=True
        )


@pytest.mark.usefixtures("quick")
def test_resuming_with_another_batch_size_is_refused(weights, changed, stop_after):
    stop_after(1)
    with pytest.raises(StopRequested):
        train_transformer(weights, resume=False)
    stop_after(10**6)
    with pytest.raises(UserError):
        train_transformer(changed(weights, {"training.batch_size": 5}), resume=True)


@pytest.mark.usefixtures("quick")
def test_starting_anew_does_not_destroy_a_finished_run_silently(weights):
    train_transformer(weights, resume=False)
    with pytest.raises(UserError):
        train_transformer(weights, resume=False)


@pytest.mark.usefixtures("quick")
def test_weights_whose_states_are_gone_are_not_replaced_silently(weights):
    train_transformer(weights, resume=False)
    kept = weights.transformer_weights.read_bytes()
    for path in weights.transformer_weights.parent.glob("state*"):
        path.unlink()
    for resume in (False, True, "auto"):
        with pytest.raises(UserError, match="--restart"):
            train_transformer(weights, resume=resume)
        assert weights.transformer_weights.read_bytes() == kept


@pytest.mark.parametrize("content", [{"anything": 1}, {"settings": [], "position": 1}])
def test_a_state_of_something_else_is_one_line(weights, content):
    path = weights.run / "transformer" / "state.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    with pytest.raises(UserError, match="is not a training state of this program"):
        train_transformer(weights, resume=True)


def test_a_state_of_another_version_is_one_line(weights):
    trainer = TransformerTrainer(weights, load_tokens(weights, CPU), Compute.of(weights))
    state = trainer.state_dict()
    state["position"]["luck"] = state.pop("scaler")
    with pytest.raises(UserError, match="the state has no scaler, position.luck: another version"):
        trainer.load_state_dict(state)
    del state["position"]["luck"], state["optimizer"]["param_groups"]
    with pytest.raises(UserError, match="the state's optimizer does not fit"):
        trainer.load_state_dict({**state, "scaler": {}})


def test_the_cache_knows_the_network_not_only_its_weights(tokenizer, config, tmp_path):
    cache = tmp_path / "cache"
    cached_tokens(tokenizer, config.data, "train", cache, CPU)
    from models.vqgan import VQGAN

    other = VQGAN(tokenizer.config.model_copy(update={"norm": "position"})).eval()
    other.load_state_dict(tokenizer.state_dict())
    cached_tokens(other, config.data, "train", cache, CPU)
    assert len(list(cache.iterdir())) == 2


def test_equal_weights_make_equal_files(tmp_path, tokenizer):
    notes = {"epoch": "1", "seed": "0"}
    contents = set()
    for i in range(12):
        save_weights(tmp_path / f"{i}.safetensors", tokenizer.state_dict(), tokenizer.config, notes)
        contents.add((tmp_path / f"{i}.safetensors").read_bytes())
    assert len(contents) == 1


def test_a_flag_takes_any_text_as_its_value(tmp_path, config):
    from utils.cli import ArgumentParser, add_config_arguments, as_overrides

    save_config(config, tmp_path / "c.yml")
    options = {"--run": ("run", str, "folder")}
    for text in ("2024", "null", "yes", "a # b", "1e3", "x: y"):
        parser = ArgumentParser()
        add_config_arguments(parser, options)
        overrides = as_overrides(parser.parse_args(["--run", text]), options)
        assert load_config(tmp_path / "c.yml", overrides).run == Path(text), text


@pytest.mark.usefixtures("quick")
def test_a_warm_up_longer_than_the_run_is_refused_or_shortened(config, changed):
    config = changed(config, {"tokenizer.training.warmup_steps": 100})
    try:
        train_tokenizer(config, resume=False)
    except UserError:
        return
    state = load_state(config.run / "tokenizer" / "state.pt")
    assert state["averages"]["use"].sum() > 0, "no code was ever trained"


@pytest.mark.usefixtures("quick")
def test_without_restarts_unused_codes_keep_their_place(config, changed):
    keys = {"tokenizer.training.warmup_steps": 0, "tokenizer.training.restart_until": 0.0}
    config, pictures = changed(config, keys), torch.zeros(11, 3, 16, 16, dtype=torch.uint8)
    trainer = TokenizerTrainer(config, pictures, pictures, Compute.of(config))
    trainer.step(torch.rand(4, 3, 16, 16))
    weight = trainer.vqgan.codebook.embedding.weight
    assert not (weight == 0).all(1).any(), "codes fell into the origin"


@pytest.mark.usefixtures("quick")
def test_weights_that_broke_in_the_last_step_never_replace_a_checkpoint(weights, monkeypatch):
    step = TransformerTrainer.take_step

    def breaking(self):
        step(self)
        if self.position.step == 6:  # the last step of the second epoch
            with torch.no_grad():
                for p in self.transformer.parameters():
                    p.fill_(float("nan"))
                for p in self.averaged.parameters():
                    p.fill_(float("nan"))

    monkeypatch.setattr(TransformerTrainer, "take_step", breaking)
    with pytest.raises(UserError):
        train_transformer(weights, resume=False)
    state = load_state(weights.run / "transformer" / "state.pt")
    assert all(torch.isfinite(w).all() for w in state["transformer"].values())


def test_dropout_and_masks_draw_different_numbers(weights):
    trainer = TransformerTrainer(weights, load_tokens(weights, CPU), Compute.of(weights))
    trainer.accumulate(trainer.token_batches(torch.arange(2), 0, 0))
    assert torch.initial_seed() != trainer.token_batches.generator.initial_seed()


def test_a_flipped_byte_in_a_state_is_noticed(tmp_path):
    path, bad = tmp_path / "state.pt", []
    save_state(path, {"w": torch.zeros(4096)})
    whole = path.read_bytes()
    for place in range(0, len(whole), 97):
        broken = bytearray(whole)
        broken[place] ^= 0x55
        path.write_bytes(broken)
        try:
            state = load_state(path)
            if not torch.equal(state["w"], torch.zeros(4096)):
                bad.append((place, "accepted"))
        except UserError:
            pass
        except Exception as error:
            bad.append((place, repr(error)[:60]))
    assert not bad, (len(bad), bad[:5])


@pytest.mark.usefixtures("quick")
def test_resuming_where_nothing_is_says_so(weights, capsys):
    train_transformer(weights, resume=True)
    assert "nothing to resume" in capsys.readouterr().out
