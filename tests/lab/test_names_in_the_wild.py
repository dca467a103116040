"""Namings of attention that public code uses: each imports as the same function, or is refused."""

from __future__ import annotations

import pytest
import torch
from lab_reference import LabTransformer, fill_randomly
from torch import Tensor

from config.errors import UserError
from config.loading import load_config, save_config
from utils.weights.description import TRANSFORMER
from utils.weights.import_lab import import_lab, role_map
from utils.weights.lab_keys import read_keys, to_lab
from utils.weights.store import load_transformer

LAYERS = {"q": "query", "k": "key", "v": "value", "o": "output_layer"}
ANN = ("linear_layers.0", "linear_layers.1", "linear_layers.2", "output_linear")
NAMINGS = [  # tensors of a block without their ending -> the rows that they hold
    {"attn.Wqkv.": "qkv", "attn.out_proj.": "o"},
    {"self_attn.in_proj_": "qkv", "self_attn.out_proj.": "o"},
    {"attn.kqv.": "kqv", "attn.proj.": "o"},
    {"qkvAttention.to_vqk.": "vqk", "qkvAttention.proj.": "o"},
    {"attn.key_query_value.": "kqv", "attn.dense.": "o"},
    {"attn.valuesKeysQueries.": "vkq", "attn.toOut.": "o"},
    {"attn.to_q.": "q", "attn.to_kv.": "kv", "attn.to_out.0.": "o"},
    {"attn.q_net.": "q", "attn.vk_net.": "vk", "attn.o_net.": "o"},
    {"attn.qk.": "qk", "attn.v.": "v", "attn.proj.": "o"},
    {"a.q_lin.": "q", "a.k_lin.": "k", "a.v_lin.": "v", "a.out_lin.": "o"},
    {"mha.query.": "q", "mha.key.": "k", "mha.value.": "v", "mha.combine_heads.": "o"},
    {f"layers.0.0.fn.to_{r}.": r for r in "qkv"} | {"layers.0.0.fn.net.": "o"},
    {"a.queryProj.": "q", "a.keyProj.": "k", "a.valueProj.": "v", "a.outProj.": "o"},
    {"a.fc_q.": "q", "a.fc_k.": "k", "a.fc_v.": "v", "fc_out.": "o"},
    {"a.self.query.": "q", "a.self.key.": "k", "a.self.value.": "v", "a.output.dense.": "o"},
    {"att.W_query.": "q", "att.W_key.": "k", "att.W_value.": "v", "att.mix.": "o"},
    {f"key_attention.{r}.0.": r for r in "qkv"} | {"key_attention.proj.0.": "o"},
    {"a.embed_query.": "q", "a.embed_key.": "k", "a.embed_val.": "v", "a.LastLayer.": "o"},
    {"a.xq.": "q", "a.xk.": "k", "a.xv.": "v", "a.xo.": "o"},
    {"a.LQnet.": "q", "a.LKnet.": "k", "a.LVnet.": "v", "a.Lnet.": "o"},
    {"a.que.": "q", "a.key.": "k", "a.val.": "v", "a.fin.": "o"},
    {"a.qkv.0.": "q", "a.qkv.1.": "k", "a.qkv.2.": "v", "a.proj.": "o"},
    {"a.to_kqv.0.": "k", "a.to_kqv.1.": "q", "a.to_kqv.2.": "v", "a.proj.": "o"},
    {"a._orig_mod.QKVLinear.": "qkv", "a._orig_mod.Linear.": "o"},
]
DOUBTFUL = [
    {f"attn.fc{i}.": r for i, r in enumerate("qkvo")},
    {f"attention.{layer}.": r for layer, r in zip(ANN, "qkvo", strict=True)},
    {"attn.theta.": "q", "attn.phi.": "k", "attn.g.": "v", "attn.W.": "o"},
    {"attn.query.": "q", "attn.context.": "kv", "attn.out.": "o"},
    {f"attn.list.{i}.": r for i, r in enumerate("qkv")} | {"attn.proj.": "o"},
]
WRAPPERS = [  # as it is, of several GPUs, compiled, of Lightning
    lambda state: state,
    lambda state: {f"module.{k}": v for k, v in state.items()},
    lambda state: {f"_orig_mod.{k}": v for k, v in state.items()},
    lambda state: {"state_dict": {f"model.{k}": v for k, v in state.items()}},
]


@pytest.fixture
def lab() -> LabTransformer:
    return fill_randomly(LabTransformer(32, 4, 2, 64, 16, 16, "separate"), 5)


@pytest.fixture
def base(config, changed):
    return changed(config, {"transformer.num_heads": 4})


def pieces(lab: LabTransformer, block: int, role: str) -> dict[str, Tensor]:
    layer = getattr(lab.blocks[block].Attention, LAYERS[role])
    return {"weight": layer.weight.detach(), "bias": layer.bias.detach()}


def renamed(lab: LabTransformer, naming: dict[str, str]) -> dict[str, Tensor]:
    """The module's weights as another solution names them."""
    out = {key: value for key, value in lab.state_dict().items() if ".Attention." not in key}
    for block in (0, 1):
        for start, rows in naming.items():
            for last in ("weight", "bias"):
                parts = [pieces(lab, block, role)[last] for role in rows]
                out[f"blocks.{block}.{start}{last}"] = torch.cat(parts)
    return out


def check_same(lab, base, state, tmp_path, roles=None) -> None:
    torch.save(state, tmp_path / "lab.pt")
    config, *_ = import_lab([tmp_path / "lab.pt"], tmp_path / "ours", base, roles=roles)
    ours = load_transformer(config.transformer_weights, config.transformer)
    ids = torch.randint(17, (5, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), lab(ids), rtol=0, atol=1e-4)


@pytest.mark.parametrize("naming", NAMINGS, ids=lambda naming: next(iter(naming)))
def test_a_naming_imports_as_the_same_function(lab, base, tmp_path, naming):
    wrapped = WRAPPERS[NAMINGS.index(naming) % len(WRAPPERS)]
    check_same(lab, base, wrapped(renamed(lab, naming)), tmp_path)


@pytest.mark.parametrize("naming", NAMINGS[:-1], ids=lambda naming: next(iter(naming)))
def test_a_naming_is_written_as_it_was_read(lab, naming, assert_same):
    state = renamed(lab, naming)
    part = read_keys(state, "a.pt").part(TRANSFORMER)
    again = to_lab(TRANSFORMER, part.weights, part.naming)
    assert_same(dict(sorted(again.items())), dict(sorted(state.items())))


@pytest.mark.parametrize("naming", DOUBTFUL, ids=lambda naming: next(iter(naming)))
def test_a_doubtful_naming_is_refused_until_a_map_settles_it(lab, base, tmp_path, naming):
    state = renamed(lab, naming)
    with pytest.raises(UserError, match="candidates are blocks.0.*--map blocks.0") as error:
        import_lab([save(state, tmp_path)], tmp_path / "ours", base)
    assert all(f"blocks.0.{start[:-1]}" in str(error.value) for start in naming)
    text = ",".join(f"blocks.0.{start[:-1]}={rows}" for start, rows in naming.items())
    check_same(lab, base, state, tmp_path, role_map(text))
    twice = role_map(text) | {next(iter(naming))[:-1]: "o"}
    with pytest.raises(UserError, match="names do not tell"):
        import_lab([tmp_path / "lab.pt"], tmp_path / "ours", base, roles=twice)


def save(state, tmp_path):
    torch.save(state, tmp_path / "lab.pt")
    return tmp_path / "lab.pt"


@pytest.mark.parametrize("names", [("qkv.weight", "{}_bias"), ("in_proj_weight", "b_{}.bias")])
@pytest.mark.parametrize("biased", ["qkv", "qv"])
def test_biases_may_stand_apart_and_some_may_be_missing(lab, base, tmp_path, names, biased,
                                                        assert_same):  # fmt: skip
    state = renamed(lab, {"attn.qkv.": "qkv", "attn.proj.": "o"})
    for block in (0, 1):
        state[f"blocks.{block}.attn.{names[0]}"] = state.pop(f"blocks.{block}.attn.qkv.weight")
        del state[f"blocks.{block}.attn.qkv.bias"]
        for role in "qkv":
            bias = pieces(lab, block, role)["bias"]
            if role in biased:
                state[f"blocks.{block}.attn.{names[1].format(role)}"] = bias.clone()
            else:
                bias.zero_()
    check_same(lab, base, state, tmp_path)
    part = read_keys(state, "a.pt").part(TRANSFORMER)
    again = to_lab(TRANSFORMER, part.weights, part.naming)
    assert_same(dict(sorted(again.items())), dict(sorted(state.items())))


def shared(lab, block):
    """One key and value for all heads."""
    layers = {f"{LAYERS[r]}.weight": pieces(lab, block, r)["weight"] for r in "qo"}
    return layers | {f"{LAYERS[r]}.weight": pieces(lab, block, r)["weight"][:8] for r in "kv"}


def by_einsum(lab, block):
    """Parameters (H, d, D)."""
    return {f"W_{r}": pieces(lab, block, r)["weight"].unflatten(0, (4, 8)) for r in "qkvo"}


def gpt2(lab, block):
    """GPT-2's layers, whose matrices are (inputs, outputs), without a word about it."""
    fused = torch.cat([pieces(lab, block, r)["weight"] for r in "qkv"]).T.contiguous()
    return {"c_attn.weight": fused, "c_proj.weight": pieces(lab, block, "o")["weight"].T}


@pytest.mark.parametrize("make", [shared, by_einsum, gpt2])
def test_attention_of_other_shapes_is_refused_and_shown(lab, base, tmp_path, make):
    state = renamed(lab, {})
    for block in (0, 1):
        state |= {f"blocks.{block}.attn.{key}": v for key, v in make(lab, block).items()}
    with pytest.raises(UserError, match=r"attention is not recognised among blocks.0.attn.*\("):
        import_lab([save(state, tmp_path)], tmp_path / "ours", base)
    assert not (tmp_path / "ours").exists()


def test_a_norm_within_attention_is_not_taken_for_a_bias(lab, base, tmp_path):
    state = renamed(lab, {"a.q.": "q", "a.k.": "k", "a.v.": "v", "a.proj.": "o"})
    for block in (0, 1):
        state |= {f"blocks.{block}.a.q_norm.{e}": torch.ones(32) for e in ("weight", "bias")}
    with pytest.raises(UserError, match=r"unexpected: blocks.0.a.q_norm.weight, blocks.0.a.q_norm"):
        import_lab([save(state, tmp_path)], tmp_path / "ours", base)


def test_a_file_taken_directly_notes_the_order_that_was_assumed(lab, base, tmp_path, capsys):
    path = save(renamed(lab, {"attn.fused.": "qkv", "attn.mix.": "o"}), tmp_path)
    load_transformer(path, base.transformer.model_copy(update={"dim": 32}))
    said = capsys.readouterr().err
    assert f"note: {path}: attn.fused: its rows are taken as whole matrices q, k, v; import" in said


@pytest.mark.parametrize(
    ("more", "rule", "schedule"),
    [
        ("--rule lab", "lab", "maskgit_cosine"),
        ("--rule lab_ceil --set decoding.mask_schedule=square", "lab_ceil", "square"),
        ("--rule lab --set decoding.mask_schedule=cosine", "lab", "cosine"),
        ("--rule maskgit", "maskgit", "cosine"),
        ("", "listing", "cosine"),
    ],
)
def test_import_sets_the_rule_that_the_solution_decodes_by(
    lab, base, tmp_path, call, monkeypatch, more, rule, schedule
):
    monkeypatch.chdir(tmp_path)
    save(renamed(lab, NAMINGS[0]), tmp_path)
    save_config(base, tmp_path / "base.yml")
    left = call(f"python -m utils.weights.import_lab lab.pt --config base.yml --out b {more}")
    assert left.code == 0, left.err
    decoding = load_config("b/config.yml").decoding
    assert (decoding.rule, decoding.mask_schedule) == (rule, schedule)
