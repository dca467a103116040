"""Weights and training states: round trips, and one line for each file that is not right."""

from __future__ import annotations

import errno
import json
import os
import pickle
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from config.errors import MachineError, UserError
from config.schema import TokenizerConfig
from utils.training.state import Opening, clear_run, load_state, open_state, previous, save_state
from utils.weights.description import HEADER, read_header
from utils.weights.lab_file import read_lab_file
from utils.weights.store import load_tokenizer, load_transformer, save_weights, write_tensors


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "vqgan.safetensors"


@pytest.fixture
def saved(path, tokenizer) -> Path:
    save_weights(path, tokenizer.state_dict(), tokenizer.config, {"epoch": "3"})
    return path


def message(load, *arguments) -> str:
    with pytest.raises(UserError) as error:
        load(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


# Round trips


def test_a_tokenizer_comes_back_bit_by_bit_frozen_and_in_eval_mode(saved, tokenizer, assert_same):
    loaded = load_tokenizer(saved, tokenizer.config)
    assert_same(dict(loaded.state_dict()), dict(tokenizer.state_dict()))
    assert not loaded.training
    assert not any(weight.requires_grad for weight in loaded.parameters())


def test_a_transformer_comes_back_bit_by_bit(path, transformer, assert_same):
    save_weights(path, transformer.state_dict(), transformer.config, {})
    loaded = load_transformer(path, transformer.config)
    assert_same(dict(loaded.state_dict()), dict(transformer.state_dict()))
    assert not loaded.training


def test_loading_draws_no_initial_values(tmp_path, saved, transformer, tokenizer):
    other = tmp_path / "transformer.safetensors"
    save_weights(other, transformer.state_dict(), transformer.config, {})
    before = torch.get_rng_state()
    load_transformer(other, transformer.config)
    load_tokenizer(saved, tokenizer.config)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_header_describes_the_network_and_keeps_the_notes(saved, tokenizer):
    header = read_header(saved)
    assert TokenizerConfig(**header["config"]) == tokenizer.config
    assert header["epoch"] == "3"


def test_a_disk_that_does_not_answer_is_not_a_file_of_another_kind(saved, monkeypatch):
    def fail(*_: object, **__: object) -> None:
        raise OSError("Input/output error (os error 5)")

    monkeypatch.setattr("utils.weights.description.safe_open", fail)
    with pytest.raises(MachineError, match=r"cannot be read: Input/output error; it stays"):
        read_header(saved)


def test_settings_around_the_network_stay_out_of_the_header(path, config, tokenizer):
    save_weights(path, tokenizer.state_dict(), config.tokenizer, {})
    assert read_header(path)["config"].keys() == TokenizerConfig.model_fields.keys()


def test_the_file_not_the_config_says_what_to_build(saved, tokenizer, changed, config):
    wider = changed(config, {"tokenizer.decoder_channels": [16, 16]}).tokenizer
    assert load_tokenizer(saved, wider).config == tokenizer.config


def test_how_attention_is_computed_is_the_configs_choice(path, transformer):
    save_weights(path, transformer.state_dict(), transformer.config, {})
    fused = transformer.config.model_copy(update={"attention": "fused"})
    assert load_transformer(path, fused).config.attention == "fused"


def test_a_plain_dictionary_in_a_pt_file_is_taken_strictly(tmp_path, tokenizer, assert_same):
    path = tmp_path / "VQGAN.pt"
    torch.save(tokenizer.state_dict(), path)
    loaded = load_tokenizer(path, tokenizer.config)
    assert_same(dict(loaded.state_dict()), dict(tokenizer.state_dict()))
    weights = tokenizer.state_dict()
    weights["extra"] = weights.pop("quant_conv.bias")
    torch.save(weights, path)
    found = message(load_tokenizer, path, tokenizer.config)
    assert "2 of" in found
    assert "extra: found (8,), needed none" in found


def test_half_precision_weights_become_single(tmp_path, tokenizer):
    path = tmp_path / "VQGAN.pt"
    torch.save({key: value.half() for key, value in tokenizer.state_dict().items()}, path)
    loaded = load_tokenizer(path, tokenizer.config)
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}


# Files that are not right


def test_a_missing_file_is_named(tmp_path, tokenizer_config):
    path = tmp_path / "none.safetensors"
    assert message(load_tokenizer, path, tokenizer_config).startswith(f"{path}: no such weights")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_truncated_file_is_called_damaged(tmp_path, tokenizer, share, suffix):
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(tokenizer.state_dict(), path)
    else:
        save_weights(path, tokenizer.state_dict(), tokenizer.config, {})
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "damaged" in message(load_tokenizer, path, tokenizer.config)


def test_a_file_without_a_description_is_refused(path, tokenizer):
    save_file(tokenizer.state_dict(), path)
    assert "no description of a tokenizer" in message(load_tokenizer, path, tokenizer.config)


def test_the_weights_of_the_other_network_are_refused(saved, transformer_config):
    found = message(load_transformer, saved, transformer_config)
    assert found == f"{saved}: contains a tokenizer, but no transformer"


@pytest.mark.parametrize(
    ("key", "value"), [("codebook_size", 32), ("num_tokens", 64)], ids=["codes", "tokens"]
)
def test_a_transformer_of_another_codebook_or_grid_is_refused(path, transformer, key, value):
    save_weights(path, transformer.state_dict(), transformer.config, {})
    other = transformer.config.model_copy(update={key: value})
    found = message(load_transformer, path, other)
    assert found == f"{path}: transformer.{key} is 16, but the config says {value}"


def test_weights_that_do_not_fit_their_description_are_refused(path, tokenizer):
    weights = tokenizer.state_dict()
    weights["quant_conv.bias"] = torch.zeros(9)
    save_weights(path, weights, tokenizer.config, {})
    found = message(load_tokenizer, path, tokenizer.config)
    assert "1 of" in found
    assert "quant_conv.bias: found (9,), needed (8,)" in found


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(path, tokenizer, value):
    weights = {key: tensor.clone() for key, tensor in tokenizer.state_dict().items()}
    weights["quant_conv.bias"][3] = value
    assert "quant_conv.bias is no longer finite" in message(
        save_weights, path, weights, tokenizer.config, {}
    )
    save_file(weights, path, {HEADER: json.dumps({"config": tokenizer.config.model_dump()})})
    assert "quant_conv.bias contains values that are not finite" in message(
        load_tokenizer, path, tokenizer.config
    )


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("save", [torch.save, lambda x, p: p.write_bytes(pickle.dumps(x, 2))])
def test_a_program_in_a_weights_file_does_not_run(tmp_path, tokenizer_config, save):
    path, mark = tmp_path / "weights.pt", tmp_path / "mark"
    save({"quant_conv.bias": Hostile(mark)}, path)
    assert "contains more than tensors" in message(load_tokenizer, path, tokenizer_config)
    assert not mark.exists()


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"model": {}}])
def test_a_pt_file_of_anything_but_tensors_is_refused(tmp_path, tokenizer_config, content):
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    found = message(load_tokenizer, path, tokenizer_config)
    cure = "torch.save(model.state_dict(), 'transformer.pt') makes one"
    assert found == f"{path}: expected a dictionary of tensors with their names; {cure}"


# Training states


def test_a_state_comes_back_and_the_one_before_it_is_kept(tmp_path):
    path = tmp_path / "state.pt"
    assert load_state(path) is None
    save_state(path, {"step": 1, "w": torch.ones(2)})
    save_state(path, {"step": 2, "w": torch.zeros(2)})
    assert load_state(path)["step"] == 2
    assert load_state(previous(path))["step"] == 1


def test_a_state_that_was_read_is_no_longer_open(tmp_path, monkeypatch):
    opened, plain = [], zipfile.ZipFile.__init__
    monkeypatch.setattr(
        zipfile.ZipFile, "__init__", lambda self, file: opened.append(self) or plain(self, file)
    )
    save_state(tmp_path / "state.pt", {"step": 1})
    assert load_state(tmp_path / "state.pt") == {"step": 1}
    assert [archive.fp for archive in opened] == [None]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_state_falls_back_to_the_previous_one_and_says_so(tmp_path, capsys, share):
    path = tmp_path / "state.pt"
    for step in (1, 2):
        save_state(path, {"step": step, "w": torch.zeros(100)})
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert load_state(path)["step"] == 1
    said = f"{path}: damaged checkpoint, skipped, the one before it is taken\n"
    assert capsys.readouterr().err == said


def test_a_damaged_state_never_takes_the_place_of_the_previous_one(tmp_path):
    path = tmp_path / "state.pt"
    for step in (1, 2, 3, 4):
        save_state(path, {"step": step})
        if step > 1:
            path.write_bytes(b"cut off")
            assert load_state(path)["step"] == 1
    assert path.with_name("state.damaged.pt").read_bytes() == b"cut off"


def test_a_state_lost_between_two_renames_falls_back_too(tmp_path):
    path = tmp_path / "state.pt"
    for step in (1, 2):
        save_state(path, {"step": step})
    path.unlink()
    assert load_state(path)["step"] == 1


def test_a_run_of_which_only_the_previous_state_is_left_is_not_overwritten_unasked(tmp_path):
    path = tmp_path / "state.pt"
    for step in (1, 2):
        save_state(path, {"step": step})
    path.unlink()
    begin = partial(open_state, path, {})
    assert "already contains a run" in message(partial(begin, Opening()))
    assert begin(Opening(restart=True)) is None


@pytest.mark.parametrize(("resume", "said"), [(True, "nothing to resume"), ("auto", "")])
def test_where_nothing_can_be_resumed_auto_begins_without_a_word(tmp_path, capsys, resume, said):
    state = open_state(tmp_path / "state.pt", {}, Opening(resume))
    assert state is None
    out = capsys.readouterr().out
    assert said in out
    assert bool(out) == bool(said)


def test_two_broken_states_are_one_line(tmp_path, capsys):
    path = tmp_path / "state.pt"
    for step in (1, 2):
        save_state(path, {"step": step})
    for file in (path, previous(path)):
        file.write_bytes(b"nonsense")
    assert message(load_state, path).startswith(f"{path}: damaged, and no earlier checkpoint")
    assert capsys.readouterr().err.count("skipped") == 2


def test_a_broken_state_without_a_later_one_is_one_line_and_nothing_begins(tmp_path):
    path = tmp_path / "state.pt"
    previous(path).write_bytes(b"nonsense")
    resume = partial(open_state, path, {}, Opening(resume=True))
    assert message(resume).startswith(f"{previous(path)}: damaged, and no earlier checkpoint")


def test_the_main_process_alone_removes_states(tmp_path, monkeypatch, become):
    path = tmp_path / "state.pt"
    for step in (1, 2):
        save_state(path, {"step": step})
    become(1, 2)
    clear_run(path)
    assert (path.exists(), previous(path).exists()) == (True, True)
    monkeypatch.setenv("RANK", "0")
    clear_run(path)
    assert not any(tmp_path.iterdir())


def test_a_program_in_a_state_does_not_run(tmp_path):
    path, mark = tmp_path / "state.pt", tmp_path / "mark"
    torch.save({"step": Hostile(mark)}, path)
    assert "damaged" in message(load_state, path)
    assert not mark.exists()


def test_a_crash_while_saving_leaves_both_states(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    for step in (1, 2):
        save_state(path, {"step": step})

    def half(_state, temporary):
        temporary.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        save_state(path, {"step": 3})
    monkeypatch.undo()
    assert (load_state(path)["step"], load_state(previous(path))["step"]) == (2, 1)
    assert {file.name for file in tmp_path.iterdir()} == {"state.pt", "state.previous.pt"}


def test_a_crash_while_saving_weights_leaves_the_old_ones(saved, tokenizer, monkeypatch):
    before = saved.read_bytes()

    def half(temporary, content):
        temporary.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(KeyboardInterrupt):
        save_weights(saved, tokenizer.state_dict(), tokenizer.config, {})
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_memory_that_runs_out_while_a_labs_file_is_read_is_no_damage(tmp_path, monkeypatch):
    path = tmp_path / "a.pt"
    torch.save({"pos_emb": torch.zeros(3)}, path)

    def fail(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(torch, "load", fail)
    assert message(read_lab_file, path).startswith(f"out of memory while reading {path}")


def test_weights_that_may_not_be_opened_are_not_called_missing(saved, tokenizer, monkeypatch):
    foreign = saved.with_name("theirs.safetensors")
    save_file({"pos_emb": torch.zeros(3)}, foreign)

    def refuse(path: Path, *_: object) -> None:  # root may open every file
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "open", refuse)
    reason = "cannot be read: Permission denied; it stays as it is"
    assert message(load_tokenizer, saved, tokenizer.config) == f"{saved}: {reason}"
    assert message(read_lab_file, foreign) == f"{foreign}: {reason}"


def test_a_failed_write_of_tensors_says_the_systems_reason():
    with pytest.raises(OSError, match="No space left on device"):
        write_tensors(Path("/dev/full"), {"w": torch.zeros(100_000)})
