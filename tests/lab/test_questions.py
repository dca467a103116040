"""What no file tells about attention is asked, or assumed with a note."""

from __future__ import annotations

import argparse
import re

import pytest
import torch
from lab_reference import LabTransformer, fill_randomly
from torch import Tensor, nn

from config.errors import UserError
from utils.weights.import_lab import import_lab
from utils.weights.lab_file import read_lab_file
from utils.weights.lab_keys import read_keys
from utils.weights.lab_naming import Settled
from utils.weights.store import load_transformer

WIDTH, HEADS = 32, 4
HEAD = WIDTH // HEADS


class Fused(nn.Module):
    """q, k and v in one layer, whose rows are whole matrices or those of one head after another."""

    def __init__(self, names: tuple[str, str], by_head: bool) -> None:
        super().__init__()
        self.names, self.by_head = names, by_head
        setattr(self, names[0], nn.Linear(WIDTH, 3 * WIDTH))
        setattr(self, names[1], nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        fused, output = (getattr(self, name) for name in self.names)
        rows = fused(x)  # (B, N, 3 D)
        if self.by_head:
            parts = rows.reshape(*x.shape[:2], HEADS, 3 * HEAD).transpose(1, 2).chunk(3, dim=-1)
        else:
            parts = [
                part.reshape(*x.shape[:2], HEADS, HEAD).transpose(1, 2) for part in rows.chunk(3, 2)
            ]
        q, k, v = parts  # (B, H, N, d)
        weights = (q @ k.transpose(2, 3) / HEAD**0.5).softmax(-1)
        return output((weights @ v).transpose(1, 2).reshape(x.shape))


class DimensionsFirst(nn.Module):
    """AI Summer's: the rows of its layer to_qvk are (d 3 heads), in the order q, k, v."""

    def __init__(self) -> None:
        super().__init__()
        self.to_qvk = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.W_0 = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qvk(x).unflatten(2, (HEAD, 3, HEADS)).unbind(3)  # (B, N, d, H)
        weights = (torch.einsum("bidh,bjdh->bhij", q, k) / HEAD**0.5).softmax(-1)
        return self.W_0(torch.einsum("bhij,bjdh->bihd", weights, v).flatten(2))


class WholeMatrices(DimensionsFirst):
    """A layer of this name that really holds the matrices of q, v and k."""

    def forward(self, x: Tensor) -> Tensor:
        q, v, k = (part.unflatten(2, (HEADS, HEAD)) for part in self.to_qvk(x).chunk(3, dim=2))
        weights = (torch.einsum("bihd,bjhd->bhij", q, k) / HEAD**0.5).softmax(-1)
        return self.W_0(torch.einsum("bhij,bjhd->bihd", weights, v).flatten(2))


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, HEAD) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.q(x), self.k(x), self.v(x)
        return (q @ k.transpose(1, 2) / HEAD**0.5).softmax(dim=2) @ v


class NamedHeads(nn.Module):
    """Heads named as in dome272's MaskGIT, whose softmax runs over the keys."""

    def __init__(self) -> None:
        super().__init__()
        self.self_attention_heads = nn.ModuleList(Head() for _ in range(HEADS))
        self.projector = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.projector(torch.cat([head(x) for head in self.self_attention_heads], dim=2))


@pytest.fixture
def base(config, changed):
    return changed(config, {"transformer.num_heads": HEADS})


def built(attention: type[nn.Module], *arguments: object) -> LabTransformer:
    """A lab transformer with some attention."""
    lab = LabTransformer(WIDTH, HEADS, 2, 64, 16, 16, "separate")
    for block in lab.blocks:
        block.Attention = attention(*arguments)
    return fill_randomly(lab, 5)


def imported(lab: LabTransformer, base, tmp_path, **settle) -> tuple[nn.Module, str]:
    """The imported network, and what was said."""
    torch.save(lab.state_dict(), tmp_path / "lab.pt")
    config, lines, *_ = import_lab([tmp_path / "lab.pt"], tmp_path / "ours", base, **settle)
    return load_transformer(config.transformer_weights, config.transformer), "\n".join(lines)


def check_same(network: nn.Module, lab: LabTransformer) -> None:
    ids = torch.randint(17, (5, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network(ids), lab(ids), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "names",
    [
        ("qkv", "proj"),
        ("make_qkv", "output_linear"),
        ("linear_in", "output"),
        ("qkv_proj", "o_proj"),
    ],
)
def test_a_fused_layer_is_taken_as_whole_matrices_with_a_note_of_the_other_layout(
    base, tmp_path, names
):
    lab = built(Fused, names, False)
    network, said = imported(lab, base, tmp_path)
    check_same(network, lab)
    assert (
        f"Attention.{names[0]}: its rows are taken as whole matrices q, k, v; import_lab "
        "--attention rows-by-head is for solutions that reshape to (B, N, heads, 3 d) first"
    ) in said
    lab = built(Fused, names, True)
    network, said = imported(lab, base, tmp_path, attention="rows-by-head")
    check_same(network, lab)
    assert "whole matrices" not in said
    assert "whole matrices" not in imported(lab, base, tmp_path, attention="standard")[1]


def test_a_layer_to_qvk_is_refused_until_its_layout_or_order_is_said(base, tmp_path):
    lab = built(DimensionsFirst)
    with pytest.raises(UserError) as error:
        imported(lab, base, tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/lab.pt: blocks.0.Attention.to_qvk: the public source that names its layer so "
        "splits the rows into (d 3 heads), in the order q, k, v; say so with --attention "
        "dimensions-first of utils.weights.import_lab, or, if the rows are whole matrices q, v, k, "
        "--map blocks.0.Attention.to_qvk=qvk"
    )
    check_same(imported(lab, base, tmp_path, attention="dimensions-first")[0], lab)
    lab = built(WholeMatrices)
    check_same(imported(lab, base, tmp_path, roles={"Attention.to_qvk": "qvk"})[0], lab)
    check_same(imported(lab, base, tmp_path, attention="standard")[0], lab)


def test_heads_named_as_where_the_softmax_runs_over_queries_are_asked_about(base, tmp_path):
    lab = built(NamedHeads)
    with pytest.raises(UserError) as error:
        imported(lab, base, tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/lab.pt: blocks.0.Attention.self_attention_heads.*.q: the public solution that "
        "names its heads so takes the softmax over the queries (dim=1), which no file specifies; "
        "say with --attention of utils.weights.import_lab: standard for a softmax over the keys "
        "(dim=-1), or query-softmax, which is refused, as it gives other logits here"
    )
    check_same(imported(lab, base, tmp_path, attention="standard")[0], lab)


class Separate(nn.Module):
    """q, k, v and output in layers of their own; scores are divided by some root."""

    def __init__(self, names: str, root: float = HEAD**0.5) -> None:
        super().__init__()
        self.names, self.root = names.split(), root
        for name in self.names:
            setattr(self, name, nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        *roles, output = (getattr(self, name) for name in self.names)
        q, k, v = (layer(x).unflatten(2, (HEADS, HEAD)).transpose(1, 2) for layer in roles)
        weights = (q @ k.transpose(2, 3) / self.root).softmax(-1)
        return output((weights @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("names", ["LQ LK LV projection", "queries keys values fc_out"])
def test_scores_divided_by_the_root_of_the_width_are_the_same_function(base, tmp_path, names):
    lab = built(Separate, names, WIDTH**0.5)
    layers = ", ".join(f"blocks.0.Attention.{name}" for name in names.split())
    with pytest.raises(UserError) as error:
        imported(lab, base, tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/lab.pt: {layers}: the public solution of these names divides scores by √D "
        "instead of √d, which no file specifies; say with utils.weights.import_lab --attention "
        "root-of-width or, if this one does not, --attention standard"
    )
    network, said = imported(lab, base, tmp_path, attention="root-of-width")
    check_same(network, lab)
    assert "  assumed: scores / sqrt(width), softmax over keys, heads split" in said
    own = built(Separate, names)
    network, said = imported(own, base, tmp_path, attention="standard")
    check_same(network, own)
    assert "  assumed: scores / sqrt(width / heads), softmax over keys, heads split" in said


def test_a_stored_root_of_the_width_is_left_out_where_it_is_what_is_computed(base, tmp_path):
    lab = built(Separate, "q k v out", WIDTH**0.5)
    state = dict(lab.state_dict())
    state |= {f"blocks.{i}.Attention.scale": torch.tensor(WIDTH**0.5) for i in (0, 1)}
    torch.save(state, tmp_path / "lab.pt")
    path, out = tmp_path / "lab.pt", tmp_path / "ours"
    config, lines, *_ = import_lab([path], out, base, attention="root-of-width")
    check_same(load_transformer(config.transformer_weights, config.transformer), lab)
    assert "left out, the factor of the scores, as here: blocks.0" in "\n".join(lines)


REFUSED = {  # layers of attention, what is said of their source
    "mul_W_Q mul_W_K mul_W_V mul_W_O": "multiplies scores by √d, which no .* merged-heads, which",
    "wq wk wv linear_out": "takes no softmax, which no .* --attention no-softmax, which is refused",
}


@pytest.mark.parametrize("names", REFUSED)
def test_names_of_a_source_that_computes_something_else_are_asked_about(base, tmp_path, names):
    lab = built(Separate, names)
    with pytest.raises(UserError, match=REFUSED[names]):
        imported(lab, base, tmp_path)
    check_same(imported(lab, base, tmp_path, attention="standard")[0], lab)


@pytest.mark.parametrize("names", [("linear_in", "linear_out"), ("generate_qkv", "output_linear")])
def test_names_of_a_source_whose_rows_are_by_head_are_asked_about(base, tmp_path, names):
    for by_head, attention in ((True, "rows-by-head"), (False, "standard")):
        lab = built(Fused, names, by_head)
        with pytest.raises(UserError, match=r"reshapes to \(B, N, H, 3 d\) .* rows-by-head or, if"):
            imported(lab, base, tmp_path)
        check_same(imported(lab, base, tmp_path, attention=attention)[0], lab)


class ListedHeads(NamedHeads):
    """Heads named as in a public solution whose softmax runs over the queries."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_list, self.out_layer = self.self_attention_heads, self.projector
        del self.self_attention_heads, self.projector

    def forward(self, x: Tensor) -> Tensor:
        return self.out_layer(torch.cat([head(x) for head in self.attention_list], dim=2))


def test_listed_heads_of_a_source_whose_softmax_runs_over_queries_are_asked_about(base, tmp_path):
    lab = built(ListedHeads)
    with pytest.raises(UserError, match=r"list\.\*\.q, .* query-softmax, which is refused"):
        imported(lab, base, tmp_path)
    check_same(imported(lab, base, tmp_path, attention="standard")[0], lab)


MERGED = [("to_qkv", "W_o.0"), ("transfer_qkv", "projection"), ("qkv_layer", "out_proj")]


@pytest.mark.parametrize("names", MERGED)
def test_fused_names_of_a_source_that_computes_something_else_are_asked_about(
    base, tmp_path, names
):
    lab = built(Fused, ("qkv", "proj"), False)
    state = {
        key.replace(".qkv.", f".{names[0]}.").replace(".proj.", f".{names[1]}."): value
        for key, value in lab.state_dict().items()
    }
    torch.save(state, tmp_path / "lab.pt")
    path, out = tmp_path / "lab.pt", tmp_path / "ours"
    with pytest.raises(UserError, match="which no .* --attention merged-heads, which is refused"):
        import_lab([path], out, base)
    config, *_ = import_lab([path], out, base, attention="standard")
    check_same(load_transformer(config.transformer_weights, config.transformer), lab)


def test_a_source_of_one_head_is_asked_about_its_heads(base, changed, tmp_path):
    lab = built(Separate, "q k v out")
    names = {"q": "attention.W_q", "k": "attention.W_k", "v": "attention.W_v", "out": "linear_proj"}
    state = dict(lab.state_dict())
    for old, new in names.items():
        state = {key.replace(f".{old}.", f".{new}."): value for key, value in state.items()}
    torch.save(state, tmp_path / "lab.pt")
    path, out = tmp_path / "lab.pt", tmp_path / "ours"
    with pytest.raises(UserError, match="has one head, which no .* --set transformer.num_heads=1"):
        import_lab([path], out, base)
    one = changed(base, {"transformer.num_heads": 1})
    assert import_lab([path], out, one)[0].transformer.num_heads == 1
    config, *_ = import_lab([path], out, base, attention="standard")
    check_same(load_transformer(config.transformer_weights, config.transformer), lab)


@pytest.mark.parametrize("kind", [(Fused, ("qkv", "proj"), False), (NamedHeads,)])
def test_a_layer_that_the_forward_pass_does_not_use_can_be_left_out(base, tmp_path, kind):
    lab = built(*kind)
    for block in lab.blocks:
        block.Attention.spare = nn.Linear(WIDTH, WIDTH)
    with pytest.raises(UserError, match=r"; --map blocks.0.LAYER=unused of .*does not use$"):
        imported(lab, base, tmp_path, attention="standard")
    roles = {"Attention.spare": "unused"}
    network, said = imported(lab, base, tmp_path, attention="standard", roles=roles)
    check_same(network, lab)
    assert "left out, also of exports, as --map calls it unused: Attention.spare" in said
    with pytest.raises(UserError, match=r"lab.pt: --map names Attention.no, which no block has$"):
        imported(lab, base, tmp_path, roles={"Attention.no": "unused"})


def test_attention_without_its_matrices_is_refused_without_useless_advice(base, tmp_path):
    state = dict(built(Fused, ("qkv", "proj"), False).state_dict())
    torch.save({k: v for k, v in state.items() if "proj" not in k}, tmp_path / "lab.pt")
    with pytest.raises(UserError, match="an output, all of 32 columns$"):
        import_lab([tmp_path / "lab.pt"], tmp_path / "ours", base)
    turned = {k: v.T if "Attention" in k and v.ndim == 2 else v for k, v in state.items()}
    torch.save(turned, tmp_path / "lab.pt")
    with pytest.raises(UserError, match="columns; --attention inputs-first of .* turns them$"):
        import_lab([tmp_path / "lab.pt"], tmp_path / "ours", base)


def test_one_head_in_a_list_is_one_head(base, tmp_path):
    class OneHead(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.ModuleList([nn.ModuleDict({r: nn.Linear(WIDTH, WIDTH) for r in "qkv"})])
            self.proj = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (self.heads[0][role](x) for role in "qkv")
            return self.proj((q @ k.transpose(1, 2) / WIDTH**0.5).softmax(-1) @ v)

    lab = built(OneHead)
    network, said = imported(lab, base, tmp_path)
    check_same(network, lab)
    assert network.config.num_heads == 1
    assert "1 head, counted in Attention.heads.*.q" in said


@pytest.mark.parametrize("name", ["qkv", "to_qkv", "qkv_list"])
def test_three_layers_in_a_list_may_be_three_fused_heads(name):
    lab = LabTransformer(48, 3, 2, 64, 16, 16, "separate")
    state = lab.state_dict()
    for number, role in enumerate(("query", "key", "value")):
        new = f"{name}.{number}"
        state = {key.replace(f".{role}.", f".{new}."): value for key, value in state.items()}
    start = f"blocks.0.Attention.{name}"
    with pytest.raises(UserError) as error:
        read_keys(state, "a.pt", Settled(heads=3))
    assert str(error.value) == (
        f"a.pt: {start}.0, {start}.1, {start}.2 are q, k and v, or three heads with the rows of q, "
        f"k and v in each, which no file specifies; say --map {start}.0=q,{start}.1=k,{start}.2=v "
        "of utils.weights.import_lab, or save the heads concatenated, as one layer, for "
        "--attention rows-by-head"
    )
    roles = {f"Attention.{name}.{number}": role for number, role in enumerate("qkv")}
    for settled in (Settled(heads=3, roles=roles), Settled(heads=4)):
        weights = read_keys(state, "a.pt", settled).part("transformer").weights
        assert weights["blocks.0.Attention.qkv.weight"][:48].equal(state[f"{start}.0.weight"])


def test_lists_that_may_contain_one_head_are_noted():
    state = built(Separate, "q k v out").state_dict()
    listed = {re.sub(r"\.([qkv])\.", r".\1s.0.", key): value for key, value in state.items()}
    said = "Attention.qs.0, Attention.ks.0, Attention.vs.0: if lists of one head, --set transformer"
    for heads, is_said in ((HEADS, True), (1, False)):
        notes = read_keys(listed, "a.pt", Settled(heads=heads)).notes
        assert any(note.startswith(said) for note in notes) == is_said


def test_an_output_that_unifies_heads_is_no_list_of_heads(base, tmp_path):
    lab = built(Fused, ("qkv", "proj"), False)
    state = {
        key.replace("proj.", "unifyheads.0."): value for key, value in lab.state_dict().items()
    }
    torch.save(state, tmp_path / "lab.pt")
    config, *_ = import_lab([tmp_path / "lab.pt"], tmp_path / "ours", base)
    assert config.transformer.num_heads == HEADS
    check_same(load_transformer(config.transformer_weights, config.transformer), lab)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"hyper_parameters": {"n_heads": 4}}, "hyper_parameters.n_heads"),
        ({"num_heads": 4, "epoch": 3}, "num_heads"),
        ({"args": argparse.Namespace(model={"nhead": 4})}, "args.model.nhead"),
    ],
)
def test_a_number_of_heads_among_the_settings_is_asked_about_if_another_is_assumed(
    tmp_path, settings, key
):
    path = tmp_path / "lab.pt"
    torch.save({"state_dict": built(Fused, ("qkv", "proj"), False).state_dict()} | settings, path)
    with pytest.raises(UserError) as error:
        read_lab_file(path, Settled(heads=16))
    assert str(error.value) == (
        f"{path}: the file says {key} 4, but transformer.num_heads is 16; say --set "
        "transformer.num_heads=4 or, if these are not its heads, --attention standard of "
        "utils.weights.import_lab"
    )
    for settled in (Settled(heads=8), Settled(heads=16, layout="standard")):  # said by the user
        said = f"the file says {key} 4; taken are {settled.heads} heads"
        file = read_lab_file(path, settled)
        assert said in file.notes
        assert said in file.part("transformer").notes
    assert "the file says" not in " ".join(read_lab_file(path, Settled(heads=4)).notes)


def test_heads_counted_in_a_list_need_no_answer():
    state = {"state_dict": built(ListedHeads).state_dict(), "args": {"heads": HEADS}}
    file = read_keys(state, "a.pt", Settled(heads=16, layout="standard"))
    assert "the file says" not in " ".join(file.notes)
