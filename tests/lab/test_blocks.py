"""Norms and MLPs under usual names are the lab's; what no file tells about them is noted."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from lab_reference import LabTransformer, fill_randomly
from safetensors.torch import load_file
from torch import Tensor, nn

from config.errors import UserError
from utils.weights.description import TRANSFORMER
from utils.weights.import_lab import import_lab
from utils.weights.lab_keys import read_keys, to_lab
from utils.weights.store import load_transformer

WIDTH, HEADS = 32, 4
OURS = ("LayerNorm1", "LayerNorm2", "MLP.0", "MLP.2")
NAMES = [  # of the first and second norm, and of the MLP's layers, in a block
    ("ln1", "ln2", "mlp.0", "mlp.2"),
    ("norm1", "norm2", "Mlp.fc1", "Mlp.fc2"),
    ("ln_1", "ln_2", "mlp.lin1", "mlp.lin2"),
    ("layernorm1", "layernorm2", "ffn.0", "ffn.3"),
    ("layer_norm1", "layer_norm2", "feed_forward.net.0", "feed_forward.net.2"),
    ("LN1", "LN2", "ff.widen", "ff.back"),
]


@pytest.fixture
def base(config, changed):
    return changed(config, {"transformer.num_heads": HEADS})


def renamed(lab: nn.Module, names: tuple[str, ...]) -> dict[str, Tensor]:
    """A lab solution's weights with other names of norms and MLP."""
    state = dict(lab.state_dict())
    for ours, theirs in zip(OURS, names, strict=True):
        state = {key.replace(f".{ours}.", f".{theirs}."): value for key, value in state.items()}
    return state


def imported(state: dict, base, tmp_path, attention: str | None = None) -> tuple[nn.Module, str]:
    """The imported network, and what was said."""
    torch.save(state, tmp_path / "lab.pt")
    path = tmp_path / "lab.pt"
    config, lines, *_ = import_lab([path], tmp_path / "ours", base, attention=attention)
    return load_transformer(config.transformer_weights, config.transformer), "\n".join(lines)


def check_same(network: nn.Module, lab: nn.Module) -> None:
    ids = torch.randint(17, (5, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network(ids), lab(ids), rtol=0, atol=1e-4)


@pytest.mark.parametrize("hidden", [64, 48])
@pytest.mark.parametrize("names", NAMES, ids=lambda names: names[0])
def test_norms_and_mlps_of_usual_names_import_and_are_written_again(
    base, tmp_path, assert_same, names, hidden
):
    lab = fill_randomly(LabTransformer(WIDTH, HEADS, 2, hidden, 16, 16, "separate"), 5)
    state = renamed(lab, names)
    network, said = imported(state, base, tmp_path)
    check_same(network, lab)
    assert (
        f"{names[0]}, {names[1]}: taken as norms after attention and after the MLP (post-norm), "
        "and LN as that of the embeddings; no file specifies it, and such names often mean pre-norm"
    ) in said
    assert f"{names[2]}, {names[3]}: taken as the MLP, with GELU" in said
    assert f"renamed: blocks.i.{names[0]}.weight -> blocks.i.LayerNorm1.weight (2 times)" in said
    naming = read_keys(state, "a.pt").part(TRANSFORMER).naming
    again = to_lab(TRANSFORMER, load_file(tmp_path / "ours/transformer.safetensors"), naming)
    assert_same(dict(sorted(again.items())), dict(sorted(state.items())))
    assert naming.title == "separate"


def test_numbers_order_the_layers_of_an_mlp_as_wide_as_the_network(base, tmp_path):
    lab = fill_randomly(LabTransformer(WIDTH, HEADS, 2, WIDTH, 16, 16, "separate"), 5)
    check_same(imported(renamed(lab, NAMES[3]), base, tmp_path)[0], lab)
    with pytest.raises(UserError, match="attention is not recognised among"):
        imported(renamed(lab, NAMES[5]), base, tmp_path)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda s: s | {"blocks.0.mlp.gate.weight": torch.zeros(48, WIDTH)}, "missing: blocks.0.M"),
        (lambda s: {k: v for k, v in s.items() if "ln2" not in k}, "missing: blocks.0.LayerNorm1"),
        (lambda s: s | {"blocks.1.LayerNorm1.weight": torch.ones(WIDTH)}, "d: blocks.1.ln1.weight"),
    ],
)
def test_names_that_do_not_tell_norms_and_mlp_are_refused(base, tmp_path, damage, said):
    lab = fill_randomly(LabTransformer(WIDTH, HEADS, 2, 48, 16, 16, "separate"), 5)
    with pytest.raises(UserError, match=said):
        imported(damage(renamed(lab, NAMES[0])), base, tmp_path)


def as_encoder_layers(activation: str) -> LabTransformer:
    """A solution whose blocks are PyTorch's own."""
    lab = LabTransformer(WIDTH, HEADS, 2, 48, 16, 16, "separate")
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 48, 0.0, activation, batch_first=True)
    lab.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    fill_randomly(lab, 5)
    with torch.no_grad():
        for layer in lab.blocks.layers:
            layer.norm1.weight += 1
            layer.norm2.weight += 1
    return lab


@pytest.mark.parametrize("stacked", [True, False])
def test_pytorchs_encoder_layers_are_asked_about_their_activation(base, tmp_path, stacked):
    lab = as_encoder_layers("gelu")
    state = {k if stacked else k.replace(".layers.", "."): v for k, v in lab.state_dict().items()}
    with pytest.raises(UserError) as error:
        imported(state, base, tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/lab.pt: linear1, linear2: nn.TransformerEncoderLayer, which names its MLP so, "
        "uses ReLU unless its activation is given, which no file specifies; say with --attention "
        "of utils.weights.import_lab: standard for GELU, or relu, which is refused, as it gives "
        "other logits here"
    )
    network, said = imported(state, base, tmp_path, attention="standard")
    check_same(network, lab)
    assert "linear1, linear2: taken as the MLP, with GELU" in said


@pytest.mark.parametrize("names", [("fc1", "fc2"), ("lin_1", "lin_2")])
@pytest.mark.parametrize("hidden", [WIDTH, 48])
def test_an_mlp_whose_layers_stand_directly_in_the_block_is_recognised(
    base, tmp_path, names, hidden
):
    lab = fill_randomly(LabTransformer(WIDTH, HEADS, 2, hidden, 16, 16, "separate"), 5)
    network, said = imported(renamed(lab, (*OURS[:2], *names)), base, tmp_path)
    check_same(network, lab)
    assert f"{names[0]}, {names[1]}: taken as the MLP, with GELU" in said


class PreNormBlock(nn.Module):
    """Norms before attention and before the MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.ln1, self.ln2 = (nn.LayerNorm(WIDTH, eps=1e-12) for _ in range(2))
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 48), nn.GELU(), nn.Linear(48, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(self.ln1(x)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        values = F.scaled_dot_product_attention(*heads)  # (B, H, N, d)
        x = x + self.proj(values.transpose(1, 2).flatten(2))
        return x + self.mlp(self.ln2(x))


class PreNorm(LabTransformer):
    """A solution with a norm before the head."""

    def __init__(self) -> None:
        super().__init__(WIDTH, HEADS, 2, 48, 16, 16, "separate")
        self.blocks = nn.Sequential(PreNormBlock(), PreNormBlock())
        self.ln_f = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, indices: Tensor) -> Tensor:
        x = self.ln_f(self.blocks(self.LN(self.tok_emb(indices) + self.pos_emb)))
        return self.Token_Prediction(x) @ self.tok_emb.weight.t() + self.bias


def filled_pre_norm() -> PreNorm:
    """Seeded weights, with norms near 1."""
    lab = fill_randomly(PreNorm(), 5)
    with torch.no_grad():
        for norm in (lab.ln_f, *(n for block in lab.blocks for n in (block.ln1, block.ln2))):
            norm.weight += 1
    return lab


def test_a_norm_before_the_head_makes_pre_norm_possible_if_that_is_asked_for(
    base, changed, tmp_path
):
    lab = filled_pre_norm()
    with pytest.raises(UserError) as error:
        imported(lab.state_dict(), base, tmp_path)
    assert str(error.value).endswith(
        "2 keys unexpected: ln_f.weight, ln_f.bias; ln_f.weight is a norm before the head, as "
        "pre-norm networks have: if this is one, --set transformer.norm=pre"
    )
    network, said = imported(lab.state_dict(), changed(base, {"transformer.norm": "pre"}), tmp_path)
    assert network.config.norm == "pre"
    check_same(network, lab)
    assert "post-norm" not in said
    assert "norm pre" in said


def test_pre_norm_is_not_followed_without_a_norm_before_the_head(base, changed, tmp_path):
    lab = fill_randomly(LabTransformer(WIDTH, HEADS, 2, 48, 16, 16, "separate"), 5)
    asked = changed(base, {"transformer.norm": "pre", "transformer.conv_kernel": 3})
    network, said = imported(lab.state_dict(), asked, tmp_path)
    check_same(network, lab)
    assert (
        "not followed, as the file has no weights for it: transformer.norm=pre, "
        "transformer.conv_kernel=3"
    ) in said
