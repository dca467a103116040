"""Attention under any names is the same function; what names leave open is refused."""

from __future__ import annotations

import argparse
from collections import OrderedDict, defaultdict, deque
from datetime import datetime
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from lab_reference import LabTransformer, fill_randomly
from safetensors.torch import load_file
from torch import Tensor

from config.errors import UserError
from config.loading import save_config
from config.schema import Config
from models.vqgan import VQGAN
from utils.weights.description import TRANSFORMER, read_header
from utils.weights.import_lab import import_lab
from utils.weights.lab_file import read_lab_file
from utils.weights.lab_keys import read_keys, to_lab
from utils.weights.lab_naming import Naming, Settled
from utils.weights.store import load_transformer, save_weights

WIDTH, HEADS = 32, 4
SEPARATE = [  # q, k, v, output under blocks.i.
    ("Attention.query", "Attention.key", "Attention.value", "Attention.output_layer"),
    ("Attention.query", "Attention.key", "Attention.value", "Attention.output"),
    ("Attention.query", "Attention.key", "Attention.value", "Attention.proj"),
    ("attn.query_proj", "attn.key_proj", "attn.value_proj", "attn.output_proj"),
    ("Attention.W_Q", "Attention.W_K", "Attention.W_V", "Attention.proj"),
    ("Attention.W_q", "Attention.W_k", "Attention.W_v", "Attention.W_o"),
    ("attn.Wq", "attn.Wk", "attn.Wv", "attn.Wo"),
    ("attn.WQ", "attn.WK", "attn.WV", "attn.WO"),
    ("attn.wq", "attn.wk", "attn.wv", "attn.wo"),
    ("Attention.q_linear", "Attention.k_linear", "Attention.v_linear", "Attention.out_linear"),
    ("Attention.linear_q", "Attention.linear_k", "Attention.linear_v", "Attention.linear_out"),
    ("self_attn.to_q", "self_attn.to_k", "self_attn.to_v", "self_attn.to_out.0"),
    ("mha.queries", "mha.keys", "mha.values", "mha.fc_out"),
    ("tokeys.toqueries", "tokeys.tokeys", "tokeys.tovalues", "tokeys.unifyheads"),
    ("slf_attn.w_qs", "slf_attn.w_ks", "slf_attn.w_vs", "slf_attn.fc"),
    ("attn.q", "attn.k", "attn.v", "attn.o"),
    ("attn.queryLayer", "attn.keyLayer", "attn.valueLayer", "attn.outLayer"),
    ("attn.fc_q.linear", "attn.fc_k.linear", "attn.fc_v.linear", "attn.fc_o.linear"),
    ("q_proj", "k_proj", "v_proj", "out_proj"),
    ("multi_head_attention.Q", "multi_head_attention.K", "multi_head_attention.V",
     "multi_head_attention.dense"),
    ("attn.proj_q", "attn.proj_k", "attn.proj_v", "attn.proj"),
]  # fmt: skip
FUSED = [  # one matrix, output
    ("Attention.to_qkv.", "Attention.proj."),
    ("attn.qkv_proj.", "attn.out_proj."),
    ("attn.Wqkv.", "attn.Wo."),
    ("attn.c_attn.", "attn.c_proj."),
    ("self_attn.in_proj_", "self_attn.out_proj."),
    ("attention.query_key_value.", "attention.dense."),
]


@pytest.fixture
def lab() -> LabTransformer:
    return fill_randomly(LabTransformer(WIDTH, HEADS, 2, 64, 16, 16, "separate"), 5)


@pytest.fixture
def base(config, changed) -> Config:
    return changed(config, {"transformer.num_heads": HEADS})


def renamed(state: dict, names: tuple[str, ...], biases: bool = True, order: str = "qkvo") -> dict:
    """The state with q, k, v and output under other names, each block's in another order."""
    out, own = {}, dict(zip(("query", "key", "value", "output_layer"), names, strict=True))
    for key, value in state.items():
        _, dot, _ = key.partition(".Attention.")
        if not dot:
            out[key] = value
    for block in ("blocks.0", "blocks.1"):
        for letter in order:
            layer = list(own)["qkvo".index(letter)]
            for last in ("weight", "bias") if biases else ("weight",):
                out[f"{block}.{own[layer]}.{last}"] = state[f"{block}.Attention.{layer}.{last}"]
    return out


def fused(state: dict, names: tuple[str, str], rows: str = "qkv") -> dict:
    """The state with q, k and v in one matrix, whose rows stand in the given order."""
    out = {key: value for key, value in state.items() if ".Attention." not in key}
    layers = {"q": "query", "k": "key", "v": "value"}
    for block in ("blocks.0", "blocks.1"):
        for last in ("weight", "bias"):
            pieces = [state[f"{block}.Attention.{layers[r]}.{last}"] for r in rows]
            out[f"{block}.{names[0]}{last}"] = torch.cat(pieces)
            out[f"{block}.{names[1]}{last}"] = state[f"{block}.Attention.output_layer.{last}"]
    return out


def logits_of(state: object, base: Config, tmp_path, **settle) -> tuple[Tensor, Tensor]:
    """Token ids, and the imported network's logits."""
    torch.save(state, tmp_path / "lab.pt")
    config, *_ = import_lab([tmp_path / "lab.pt"], tmp_path / "ours", base, **settle)
    assert config.precision == "fp32"
    network = load_transformer(config.transformer_weights, config.transformer)
    ids = torch.randint(17, (5, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return ids, network(ids)


def check_same(state: object, lab: LabTransformer, base: Config, tmp_path, **settle) -> None:
    ids, found = logits_of(state, base, tmp_path, **settle)
    with torch.no_grad():
        expected = lab(ids)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def exported(tmp_path, naming: Naming) -> dict:
    """The imported transformer under some names."""
    path = tmp_path / "ours/transformer.safetensors"
    return to_lab(TRANSFORMER, load_file(path), naming)


# Names


@pytest.mark.parametrize("names", SEPARATE, ids=lambda names: names[0])
@pytest.mark.parametrize("order", ["qkvo", "ovkq"])
def test_separate_layers_are_recognised_and_named_again(
    lab, base, tmp_path, names, order, assert_same
):
    state = renamed(lab.state_dict(), names, order=order)
    check_same(state, lab, base, tmp_path)
    naming = Naming.from_text(read_header(tmp_path / "ours/transformer.safetensors")["attention"])
    assert_same(dict(sorted(exported(tmp_path, naming).items())), dict(sorted(state.items())))


@pytest.mark.parametrize("names", FUSED, ids=lambda names: names[0])
def test_one_matrix_is_recognised_and_named_again(lab, base, tmp_path, names, assert_same):
    state = fused(lab.state_dict(), names)
    check_same(state, lab, base, tmp_path)
    naming = Naming.from_text(read_header(tmp_path / "ours/transformer.safetensors")["attention"])
    assert_same(dict(sorted(exported(tmp_path, naming).items())), dict(sorted(state.items())))


@pytest.mark.parametrize("rows", ["".join(order) for order in permutations("qkv")])
def test_a_fused_layers_name_says_the_order_of_its_rows(lab, base, tmp_path, rows):
    state = fused(lab.state_dict(), (f"attn.to_{rows}.", "attn.out."), rows)
    attention = "standard" if rows == "qvk" else None  # tests/lab/test_questions.py
    check_same(state, lab, base, tmp_path, attention=attention)


def test_an_output_without_bias_gets_zeros_and_loses_them_again(lab, base, tmp_path):
    state = renamed(lab.state_dict(), SEPARATE[5], biases=False)
    silent = dict(lab.state_dict())
    for key in silent:
        if ".Attention." in key and key.endswith("bias"):
            silent[key] = torch.zeros_like(silent[key])
    lab.load_state_dict(silent)
    check_same(state, lab, base, tmp_path)
    naming = read_keys(state, "a.pt").part(TRANSFORMER).naming
    back = exported(tmp_path, naming)
    assert back.keys() == state.keys()


def test_export_names_attention_as_the_imported_file_did(lab, base, tmp_path, call, monkeypatch):
    state = renamed(lab.state_dict(), SEPARATE[3])
    logits_of(state, base, tmp_path)
    monkeypatch.chdir(tmp_path)
    save_weights(tmp_path / "vqgan.safetensors", VQGAN(base.tokenizer).state_dict(),
                 base.tokenizer, {})  # fmt: skip
    command = "python -m utils.weights.export_lab --config ours/config.yml --out theirs"
    left = call(f"{command} --tokenizer vqgan.safetensors")
    assert left.code == 0, left.err
    assert torch.load("theirs/transformer.pt", weights_only=True).keys() == state.keys()
    assert call(f"{command} --tokenizer vqgan.safetensors --variant separate").code == 0
    theirs = torch.load("theirs/transformer.pt", weights_only=True)
    assert "blocks.1.Attention.query.bias" in theirs
    left = call(f"{command} --tokenizer vqgan.safetensors --like lab.pt")
    assert torch.load("theirs/transformer.pt", weights_only=True).keys() == state.keys()


# Doubt


NAMELESS = ("attn.a", "attn.b", "attn.c", "attn.d")


@pytest.mark.parametrize(
    "names",
    [
        NAMELESS,
        ("attn.linears.0", "attn.linears.1", "attn.linears.2", "attn.linears.3"),
        ("attn.q1", "attn.q2", "attn.q3", "attn.out"),
        ("attn.q", "attn.k", "attn.c", "attn.d"),
    ],
)
def test_names_that_decide_nothing_are_refused_with_candidates(lab, base, tmp_path, names):
    with pytest.raises(UserError) as error:
        logits_of(renamed(lab.state_dict(), names), base, tmp_path)
    for layer in names:
        assert f"blocks.0.{layer}" in str(error.value)
    assert "utils.weights.import_lab --map blocks.0." in str(error.value)
    assert not (tmp_path / "ours").exists()


def test_a_map_settles_which_layer_is_which(lab, base, tmp_path, call, monkeypatch):
    state = renamed(lab.state_dict(), NAMELESS)
    roles = dict(zip(NAMELESS, "qkvo", strict=True))
    check_same(state, lab, base, tmp_path, roles=roles)
    del roles["attn.d"]  # what is left over is clear
    check_same(state, lab, base, tmp_path, roles=roles)
    monkeypatch.chdir(tmp_path)
    save_config(base, tmp_path / "base.yml")
    command = "python -m utils.weights.import_lab lab.pt --config base.yml --out b"
    said = call(f"{command} --map blocks.0.attn.a=q,blocks.0.attn.b=k,blocks.0.attn.c=v")
    assert said.code == 0, said.err
    assert "roles are q, k, v, o, qkv and unused" in call(f"{command} --map attn.a=x").err
    assert "--map names attn.z; candidates are" in call(f"{command} --map attn.z=q").err


def test_attention_that_differs_beyond_names_is_refused_with_the_reason(call):
    left = call("python -m utils.weights.import_lab a.pt --out b --attention query-softmax")
    assert left.code == 2
    assert "its softmax runs over the queries" in left.err
    assert "score its results folder" in left.err
    left = call("python -m utils.weights.import_lab a.pt --out b --attention merged-heads")
    assert "its heads are merged without" in left.err


def test_a_block_named_otherwise_than_the_others_is_an_error(lab, base, tmp_path):
    state = renamed(lab.state_dict(), SEPARATE[0])
    del state["blocks.1.Attention.query.bias"]
    with pytest.raises(UserError, match="missing: blocks.1.Attention.qkv"):
        logits_of(state, base, tmp_path)


# Wrappers


def prefixed(state: dict, prefix: str) -> dict:
    return {prefix + key: value for key, value in state.items()}


WRAPPERS = [
    lambda s: {"model_state": s, "epoch": np.int64(3), "losses": [np.float64(0.5), np.float32(1)]},
    lambda s: {"transformer_state_dict": s, "scheduler_state_dict": None, "loss": 1.2},
    lambda s: {"state_dict": prefixed(s, "model."), "callbacks": {"E": {"wait": 2}}, "loops": {}},
    lambda s: {"state_dict": prefixed(s, "net.transformer."), "pytorch-lightning_version": "2.1"},
    lambda s: {"ema": {"shadow": s, "decay": 0.99}, "best": np.bool_(True)},
    lambda s: {"ckpt": {"weights": OrderedDict(prefixed(s, "module."))}, "scaler": {"scale": 2.0}},
    lambda s: prefixed(s, "_orig_mod.module.model."),
    lambda s: {"net": prefixed(s, "maskgit.transformer.") | {"maskgit.mask_token_tensor":
               torch.tensor(16)}},
    lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}},
]  # fmt: skip


@pytest.mark.parametrize("wrap", WRAPPERS, ids=range(len(WRAPPERS)))
def test_the_one_network_in_any_wrapper_is_found(lab, base, tmp_path, wrap):
    check_same(wrap(dict(lab.state_dict())), lab, base, tmp_path)


def test_what_goes_with_training_is_left_out_and_named(lab):
    content = {"m": dict(lab.state_dict()), "epoch": 3, "all_loss": [1.0], "sched": {"a": 1}}
    notes = read_keys(content, "a.pt").notes
    assert "taken out of 'm'" in notes
    assert "left out, no part of a network: epoch, all_loss, sched" in notes


def test_of_several_networks_entry_chooses_one(lab, base, tmp_path):
    other = fill_randomly(LabTransformer(WIDTH, HEADS, 2, 64, 16, 16, "separate"), 6)
    both = {"model": other.state_dict(), "ema": lab.state_dict()}
    with pytest.raises(
        UserError, match="contains 2 transformers: model, ema; choose one with --entry"
    ):
        logits_of(both, base, tmp_path)
    check_same(both, lab, base, tmp_path, entry="ema")
    check_same(both, other, base, tmp_path, entry="model")
    assert "--entry ema: the transformer of 'ema'" in " ".join(
        read_keys(both, "a", Settled("ema")).notes
    )
    with pytest.raises(UserError, match="no entry best; found are model, ema"):
        logits_of(both, base, tmp_path, entry="best")


def test_two_networks_in_two_entries_are_both_taken(lab, solution):
    content = {"vqgan": solution("report").vqgan.state_dict(), "transformer": lab.state_dict()}
    assert read_keys(content, "a.pt").parts.keys() == {"tokenizer", "transformer"}


class Settings(dict):
    """A trainer's own dictionary."""


class Losses(list):
    """A trainer's own list."""


@pytest.mark.parametrize(
    "extra",
    [
        argparse.Namespace(lr=1, path=Path("a")),
        np.array([1.0, 2.0]),
        defaultdict(list, {"loss": [1.0]}),
        deque([1.0, 2.0], maxlen=3),
        Settings(lr=1.0),
        Losses([1.0, 2.0]),
        datetime.now(),
        np.datetime64("2024-01-01"),
        np.str_("text"),
    ],
)
def test_extras_that_are_no_plain_values_are_left_out_and_named(lab, base, tmp_path, extra):
    state = {"model": lab.state_dict(), "extra": extra, "losses": [np.float64(1.0)]}
    check_same(state, lab, base, tmp_path)
    notes = read_lab_file(tmp_path / "lab.pt").notes
    assert "left out, no part of a network: extra, losses" in notes
    assert notes[-1].startswith("not opened: objects of ")
