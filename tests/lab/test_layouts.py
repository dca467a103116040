"""Attention whose matrices lie in another way is converted where the file or the user says how."""

from __future__ import annotations

import re

import pytest
import torch
from lab_reference import LabTransformer, fill_randomly
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from config.errors import UserError
from config.loading import save_config
from models.vqgan import VQGAN
from utils.weights.description import TRANSFORMER, read_header
from utils.weights.import_lab import import_lab
from utils.weights.lab_keys import read_keys, to_lab
from utils.weights.lab_naming import Naming, Settled
from utils.weights.store import load_transformer, save_weights

WIDTH, HEADS = 32, 4


def attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Heads (B, H, N, d) -> (B, N, D), the first head's values first."""
    scores = torch.einsum("bhid,bhjd->bhij", q, k) / q.shape[-1] ** 0.5
    values = torch.einsum("bhij,bhjd->bhid", scores.softmax(-1), v)
    return torch.cat(list(values.unbind(1)), dim=-1)


class RowsByHead(nn.Module):
    """Megatron's: one head's q, k and v, then the next head's."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(x).view(*x.shape[:2], HEADS, -1).transpose(1, 2)  # (B, H, N, 3 d)
        return self.proj(attended(*heads.chunk(3, dim=-1)))


class RowsInterleaved(RowsByHead):
    """einops' b n (h d qkv), as a well-known tutorial has it."""

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(x).view(*x.shape[:2], HEADS, -1, 3).transpose(1, 2)
        return self.proj(attended(*heads.unbind(-1)))


class InputsFirst(nn.Module):
    """GPT-2's: x @ W + b."""

    def __init__(self) -> None:
        super().__init__()
        self.c_attn, self.c_proj = (nn.ParameterDict() for _ in range(2))
        for layer, width in ((self.c_attn, 3 * WIDTH), (self.c_proj, WIDTH)):
            layer["weight"] = nn.Parameter(torch.zeros(WIDTH, width))
            layer["bias"] = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        fused = x @ self.c_attn["weight"] + self.c_attn["bias"]
        q, k, v = (
            torch.stack(part.split(WIDTH // HEADS, dim=2), dim=1) for part in fused.split(WIDTH, 2)
        )
        return attended(q, k, v) @ self.c_proj["weight"] + self.c_proj["bias"]


class Bare(nn.Module):
    """Parameters without layers, x @ W."""

    def __init__(self) -> None:
        super().__init__()
        for role in "qkvo":
            setattr(self, f"W_{role}", nn.Parameter(torch.zeros(WIDTH, WIDTH)))
            setattr(self, f"b_{role}", nn.Parameter(torch.zeros(WIDTH)))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            torch.stack((x @ weight + bias).split(WIDTH // HEADS, dim=2), dim=1)
            for weight, bias in ((self.W_q, self.b_q), (self.W_k, self.b_k), (self.W_v, self.b_v))
        )
        return attended(q, k, v) @ self.W_o + self.b_o


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH // HEADS) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return attended(*(f(x)[:, None] for f in (self.query, self.key, self.value)))


class HeadsInAList(nn.Module):
    """minGPT lectures': a list of heads, each with layers of d rows."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(Head() for _ in range(HEADS))
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(torch.cat([head(x) for head in self.heads], dim=-1))


class FusedHeadsInAList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH // HEADS) for _ in range(HEADS))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        heads = [attended(*layer(x)[:, None].chunk(3, dim=-1)) for layer in self.qkv]
        return self.out(torch.cat(heads, dim=-1))


class BareWithLayer(nn.Module):
    """Bare parameters for x @ W next to a layer, whose matrix is for x @ W.T."""

    def __init__(self) -> None:
        super().__init__()
        for role in "qkv":
            setattr(self, f"W_{role}", nn.Parameter(torch.zeros(WIDTH, WIDTH)))
        self.fc = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            torch.stack((x @ weight).split(WIDTH // HEADS, dim=2), dim=1)
            for weight in (self.W_q, self.W_k, self.W_v)
        )
        return self.fc(attended(q, k, v))


class HeadsByName(nn.Module):
    """Layers of each head as attributes q0, k0, v0, q1, ..."""

    def __init__(self) -> None:
        super().__init__()
        for name in (f"{role}{head}" for head in range(HEADS) for role in "qkv"):
            setattr(self, name, nn.Linear(WIDTH, WIDTH // HEADS))
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        heads = ([getattr(self, f"{role}{head}") for role in "qkv"] for head in range(HEADS))
        heads = [attended(*(layer(x)[:, None] for layer in layers)) for layers in heads]
        return self.out(torch.cat(heads, dim=-1))


class Convolutions(nn.Module):
    """1 x 1 convolutions over the tokens, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Conv1d(WIDTH, 3 * WIDTH, 1), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(x.transpose(1, 2)).transpose(1, 2).chunk(3, dim=-1)
        q, k, v = (torch.stack(part.split(WIDTH // HEADS, dim=2), dim=1) for part in parts)
        return self.proj(attended(q, k, v))


class RootOfWidth(RowsByHead):
    """Whole matrices; scores are divided by the root of the width."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(attended(q / HEADS**0.5, k, v))


class SharedHeads(nn.Module):
    """One layer of d rows each for q, k and v of all heads."""

    divisor = 1.0

    def __init__(self) -> None:
        super().__init__()
        head = WIDTH // HEADS
        self.query, self.key = nn.Linear(head, head), nn.Linear(head, head)
        self.value, self.fc = nn.Linear(head, head, bias=False), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        heads = x.unflatten(2, (HEADS, -1)).transpose(1, 2)  # (B, H, N, d)
        q, k, v = self.query(heads) / self.divisor, self.key(heads), self.value(heads)
        return self.fc(attended(q, k, v))


class SharedHeadsByRootOfWidth(SharedHeads):
    """A well-known tutorial's."""

    divisor = HEADS**0.5


KINDS = [
    (RowsByHead, "rows-by-head"),
    (RowsInterleaved, "rows-interleaved"),
    (InputsFirst, "inputs-first"),
    (Bare, "inputs-first"),
    (HeadsInAList, None),
    (FusedHeadsInAList, None),
    (BareWithLayer, "inputs-first"),
    (HeadsByName, None),
    (Convolutions, None),
    (RootOfWidth, "root-of-width"),
]


class Einsum(nn.Module):
    """Bare parameters of q, k and v with an axis of heads, in separate tensors."""

    shape, inputs = (HEADS, WIDTH, WIDTH // HEADS), "hid"

    def __init__(self) -> None:
        super().__init__()
        for role in "qkv":
            setattr(self, f"W_{role}", nn.Parameter(torch.zeros(self.shape)))
        self.fc = nn.Linear(WIDTH, WIDTH)

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        equation = f"bni,{self.inputs}->bhnd"
        return tuple(torch.einsum(equation, x, w) for w in (self.W_q, self.W_k, self.W_v))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(attended(*self.heads(x)))


class EinsumInputsFirst(Einsum):
    shape, inputs = (WIDTH, HEADS, WIDTH // HEADS), "ihd"


class EinsumOutput(Einsum):
    """An output with an axis of heads, too."""

    def __init__(self) -> None:
        super().__init__()
        del self.fc
        self.W_o = nn.Parameter(torch.zeros(HEADS, WIDTH // HEADS, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        values = attended(*self.heads(x)).unflatten(2, (HEADS, -1))
        return torch.einsum("bnhd,hdo->bno", values, self.W_o)


class EinsumFused(Einsum):
    shape, equation = (3, HEADS, WIDTH, WIDTH // HEADS), "bni,rhid->rbhnd"

    def __init__(self) -> None:
        super().__init__()
        del self.W_q, self.W_k, self.W_v
        self.qkv = nn.Parameter(torch.zeros(self.shape))

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.einsum(self.equation, x, self.qkv))


class EinsumStacked(EinsumFused):
    """Whole matrices on one another."""

    shape = (3, WIDTH, WIDTH)

    def heads(self, x: Tensor) -> tuple[Tensor, ...]:
        parts = torch.einsum("bni,rio->rbno", x, self.qkv)
        return tuple(part.unflatten(2, (HEADS, -1)).transpose(1, 2) for part in parts)


EINSUMS = {Einsum: 16, EinsumInputsFirst: 16, EinsumOutput: 16, EinsumFused: 16, EinsumStacked: 4}


@pytest.fixture
def make():
    """A lab transformer with some kind of attention."""

    def build(kind: type[nn.Module]) -> LabTransformer:
        lab = LabTransformer(WIDTH, HEADS, 2, 64, 16, 16, "separate")
        for block in lab.blocks:
            block.Attention = kind()
        return fill_randomly(lab, 5)

    return build


@pytest.fixture
def base(config, changed):
    return changed(config, {"transformer.num_heads": HEADS})


def imported(state: object, base, tmp_path, attention: str | None):
    torch.save(state, tmp_path / "lab.pt")
    path = tmp_path / "lab.pt"
    config, lines, *_ = import_lab([path], tmp_path / "ours", base, attention=attention)
    return config, "\n".join(lines)


@pytest.mark.parametrize(("kind", "attention"), KINDS, ids=lambda value: getattr(value, "__name__"
                         , value))  # fmt: skip
def test_another_layout_is_the_same_function_and_is_written_again(
    make, base, tmp_path, assert_same, kind, attention
):
    lab = make(kind)
    config, said = imported(lab.state_dict(), base, tmp_path, attention)
    ours = load_transformer(config.transformer_weights, config.transformer)
    ids = torch.randint(17, (5, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = lab(ids)
        torch.testing.assert_close(ours(ids), expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.1
    if attention and attention.startswith("rows"):
        assert f"in the order q, k, v ({attention})" in said
    naming = Naming.from_text(read_header(config.transformer_weights)["attention"])
    again = to_lab(TRANSFORMER, load_file(config.transformer_weights), naming)
    assert_same(dict(sorted(again.items())), dict(sorted(lab.state_dict().items())))


def test_a_list_of_heads_tells_their_number(make, base, changed, tmp_path):
    state = make(HeadsInAList).state_dict()
    other = changed(base, {"transformer.num_heads": 8})
    config, said = imported(state, other, tmp_path, None)
    assert config.transformer.num_heads == HEADS
    assert "4 heads, counted in Attention.heads.*.query" in said
    own = changed(other, {"transformer.dim": WIDTH, "transformer.mlp_dim": 64}).transformer
    assert load_transformer(tmp_path / "lab.pt", own).config.num_heads == HEADS


def listed(lab: LabTransformer, heads: int) -> dict[str, Tensor]:
    """The weights of separate q, k and v, with each head's rows in layers of its own."""
    state = {}
    for key, value in lab.state_dict().items():
        if match := re.fullmatch(r"(.*Attention)\.((?:query|key|value)\..*)", key):
            parts = enumerate(value.chunk(heads))
            state |= {f"{match[1]}.heads.{i}.{match[2]}": part.clone() for i, part in parts}
        else:
            state[key] = value
    return state


def test_heads_in_a_list_need_not_divide_the_width_of_the_config(base, tmp_path):
    lab = fill_randomly(LabTransformer(20, 5, 2, 64, 16, 16, "separate"), 5)  # the config's is 16
    state = listed(lab, 5)
    config, _ = imported(state, base, tmp_path, None)
    assert (config.transformer.dim, config.transformer.num_heads) == (20, 5)
    ids = torch.randint(17, (5, 16), generator=torch.Generator().manual_seed(0))
    ours = load_transformer(config.transformer_weights, config.transformer)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), lab(ids), rtol=0, atol=1e-4)
    with pytest.raises(UserError, match="1 keys missing: pos_emb"):
        imported({k: v for k, v in state.items() if k != "pos_emb"}, base, tmp_path, None)


def test_a_list_whose_length_does_not_divide_the_width_is_refused(make, base, tmp_path):
    state = dict(make(FusedHeadsInAList).state_dict())
    for block in (0, 1):
        start = f"blocks.{block}.Attention.qkv"
        for last in ("weight", "bias"):
            rows = torch.cat([state.pop(f"{start}.{head}.{last}") for head in range(HEADS)])
            state |= {f"{start}.{i}.{last}": part for i, part in enumerate(rows.chunk(6))}
    with pytest.raises(UserError, match="width 32 does not divide into 6 heads"):
        imported(state, base, tmp_path, None)


@pytest.mark.parametrize(
    ("kind", "attention"), [(SharedHeads, None), (SharedHeadsByRootOfWidth, "root-of-width")]
)
def test_layers_that_all_heads_share_are_written_out_for_each(
    make, base, changed, tmp_path, kind, attention
):
    lab = make(kind)
    other = changed(base, {"transformer.num_heads": 8})
    config, said = imported(lab.state_dict(), other, tmp_path, attention)
    assert config.transformer.num_heads == HEADS
    assert "Attention.query, Attention.key, Attention.value: shared by 4 heads; exports con" in said
    ids = torch.randint(17, (5, 16), generator=torch.Generator().manual_seed(0))
    ours = load_transformer(config.transformer_weights, config.transformer)
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), lab(ids), rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", EINSUMS)
def test_parameters_of_an_einsum_are_matrices_of_heads(make, base, changed, tmp_path, kind):
    lab = make(kind)
    other = changed(base, {"transformer.num_heads": EINSUMS[kind]})  # counted where shapes tell
    with pytest.raises(UserError, match="; --attention inputs-first of .* turns them$"):
        read_keys(lab.state_dict(), "a.pt")
    config, said = imported(lab.state_dict(), other, tmp_path, "inputs-first")
    ours = load_transformer(config.transformer_weights, config.transformer)
    ids = torch.randint(17, (5, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), lab(ids), rtol=0, atol=1e-4)
    what = "whole matrices" if kind is EinsumStacked else "those of 4 heads"
    assert f": taken as {what}; exports contain matrices for x @ W" in said


def test_queries_whose_inputs_come_last_are_not_turned(make, base, tmp_path):
    state = make(Einsum).state_dict()
    turned = {k: v.transpose(1, 2) if v.ndim == 3 else v for k, v in state.items()}
    with pytest.raises(UserError, match="attention is not recognised among blocks.0.Attention"):
        imported(turned, base, tmp_path, "inputs-first")


def test_two_layers_of_a_heads_width_are_no_attention(make, base, tmp_path):
    state = {k: v for k, v in make(SharedHeads).state_dict().items() if "value" not in k}
    with pytest.raises(UserError, match="attention is not recognised among blocks.0.Attention"):
        imported(state, base, tmp_path, None)


@pytest.mark.parametrize("lost", ["heads.3.query", "heads.1.key"])
def test_a_list_that_lacks_a_head_is_refused(make, base, tmp_path, lost):
    state = {k: v for k, v in make(HeadsInAList).state_dict().items() if lost not in k}
    with pytest.raises(UserError, match="attention is not recognised among blocks.0.Attention"):
        imported(state, base, tmp_path, None)


def test_heads_of_two_numbers_are_refused(make, base, tmp_path):
    state = dict(make(HeadsInAList).state_dict())
    for block in (0, 1):
        start = f"blocks.{block}.Attention.heads"
        for number in (0, 1):
            pair = [state.pop(f"{start}.{2 * number + i}.key.weight") for i in (0, 1)]
            state[f"{start}.{number}.key.weight"] = torch.cat(pair)
    with pytest.raises(UserError, match="attention is not recognised"):
        imported(state, base, tmp_path, None)


@pytest.mark.parametrize("names", ["W_{}", "{}_weight"])
def test_a_bare_parameter_is_refused_until_its_use_is_said(make, base, tmp_path, names):
    old = make(Bare).state_dict()
    state = {
        key.replace(f"W_{key[-1]}", names.format(key[-1])) if "W_" in key else key: value
        for key, value in old.items()
    }
    with pytest.raises(UserError, match="bare parameter.*--attention.*inputs-first for x @ W"):
        imported(state, base, tmp_path, None)
    turned = {
        key: value.T.contiguous() if "W_" in was else value
        for (key, value), was in zip(state.items(), old, strict=True)
    }
    first, _ = imported(state, base, tmp_path, "inputs-first")
    weights = load_file(first.transformer_weights)
    second, _ = imported(turned, base, tmp_path, "standard")
    again = load_file(second.transformer_weights)
    assert all(torch.equal(weights[key], again[key]) for key in weights)


@pytest.mark.parametrize("name", ["b{}", "bias_{}", "B_{}"])
def test_biases_of_bare_parameters_are_recognised(make, name):
    old = make(Bare).state_dict()
    new = {re.sub(r"\bb_(\w)", lambda m: name.format(m[1]), key): key for key in old}
    settled = Settled(layout="inputs-first")
    expected = read_keys(dict(old), "a.pt", settled).part(TRANSFORMER).weights
    found = read_keys({key: old[was] for key, was in new.items()}, "a.pt", settled)
    weights = found.part(TRANSFORMER).weights
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[key], expected[key]) for key in expected)


def test_rows_by_head_need_a_number_of_heads_that_divides_the_width(make, base, changed, tmp_path):
    state = make(RowsByHead).state_dict()
    three = changed(base, {"transformer.dim": 33, "transformer.num_heads": 3})
    with pytest.raises(
        UserError, match="width 32 does not divide into 3 heads; name transformer.num"
    ):
        imported(state, three, tmp_path, "rows-by-head")


def test_the_command_line_converts_and_writes_again(make, base, tmp_path, call, monkeypatch,
                                                    assert_same):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    state = make(RowsByHead).state_dict()
    torch.save(state, "lab.pt")
    save_config(base, tmp_path / "base.yml")
    save_weights(tmp_path / "vqgan.safetensors", VQGAN(base.tokenizer).state_dict(),
                 base.tokenizer, {})  # fmt: skip
    flags = "--config base.yml --attention rows-by-head"
    left = call(f"python -m utils.weights.import_lab lab.pt --out ours {flags}")
    assert left.code == 0, left.err
    export = "python -m utils.weights.export_lab --config ours/config.yml"
    for more in ("", "--like lab.pt --attention rows-by-head"):
        left = call(f"{export} --tokenizer vqgan.safetensors --out theirs {more}")
        assert left.code == 0, left.err
        assert_same(torch.load("theirs/transformer.pt", weights_only=True), dict(state))


# What else files hold


def lab_state(make) -> dict[str, Tensor]:
    return dict(fill_randomly(LabTransformer(WIDTH, HEADS, 2, 64, 16, 16, "fused"), 5).state_dict())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {f"module.{k}": v for k, v in s.items()} | {"n_averaged": torch.tensor(3)},
        lambda s: {"models": [s]},
        lambda s: (s, 3),
        lambda s: s | {key: s[key][None] for key in ("pos_emb", "bias")},
        lambda s: {"model": s, "ema": {"decay": 0.9, "shadow_params": list(s.values())}},
    ],
    ids=["counter", "list", "tuple", "leading axis", "nameless average"],
)
def test_the_network_is_found_in_further_wrappers(make, base, tmp_path, assert_same, wrap):
    state = lab_state(make)
    config, _ = imported(wrap(state), base, tmp_path, None)
    assert_same(dict(load_file(config.transformer_weights)), state)


@pytest.mark.parametrize(
    ("wrap", "said"),
    [
        (lambda s: {"shadow_params": list(s.values())}, r"with their names; torch.save\(model"),
        (
            lambda s: {k.replace("qkv.weight", "qkv.weight_v"): v for k, v in s.items()},
            "is only a part of a weight; save again after",
        ),
        (
            lambda s: {
                k.replace("0.weight", "0.parametrizations.weight.original"): v for k, v in s.items()
            },
            "is only a part of a weight; save again after",
        ),
        (lambda s: s | {"scale": torch.tensor(2.0)}, "1 keys unexpected: scale"),
    ],
    ids=["nameless", "weight norm", "parametrised", "scale"],
)
def test_what_is_no_whole_network_is_refused_with_the_cure(make, base, tmp_path, wrap, said):
    with pytest.raises(UserError, match=said):
        imported(wrap(lab_state(make)), base, tmp_path, None)
    assert not (tmp_path / "ours").exists()


def test_safetensors_of_a_solution_are_converted_but_not_taken_directly(
    make, base, tmp_path, assert_same
):
    state, path = lab_state(make), tmp_path / "lab.safetensors"
    save_file(state, path)
    config, *_ = import_lab([path], tmp_path / "ours", base)
    assert_same(dict(load_file(config.transformer_weights)), state)
    with pytest.raises(UserError, match=r"converted first: python -m utils.weights.import_lab .*l"):
        load_transformer(path, base.transformer)
    path.rename(tmp_path / "lab.pt")  # the content tells, not the suffix
    config, *_ = import_lab([tmp_path / "lab.pt"], tmp_path / "ours", base)
    torch.save(state, path)
    config, *_ = import_lab([path], tmp_path / "ours", base)
    assert_same(dict(load_file(config.transformer_weights)), state)
    path.write_bytes((tmp_path / "lab.pt").read_bytes()[:100])
    with pytest.raises(UserError, match="damaged or no weights file"):
        import_lab([path], tmp_path / "ours", base)


def test_an_import_does_not_replace_the_file_that_it_reads(make, base, tmp_path):
    path = tmp_path / "transformer.safetensors"
    save_file(lab_state(make), path)
    (tmp_path / "link").symlink_to(tmp_path)
    before = path.read_bytes()
    for out in (tmp_path, tmp_path / "link"):
        with pytest.raises(UserError, match="transformer.safetensors: would be replaced; name ano"):
            import_lab([path], out, base)
    assert path.read_bytes() == before


def test_a_prior_of_ours_is_not_expected_in_a_solution(make, changed, base, tmp_path):
    shown = {"transformer.conv_kernel": 3, "transformer.norm": "pre"}
    config, _ = imported(lab_state(make), changed(base, shown), tmp_path, None)
    assert (config.transformer.conv_kernel, config.transformer.norm) == (0, "post")


def test_read_keys_counts_heads_for_the_naming(make):
    naming = read_keys(make(HeadsInAList).state_dict(), "a.pt").part(TRANSFORMER).naming
    assert (naming.heads, naming.weights["Attention.heads.*.value.weight"]) == (HEADS, "v")
