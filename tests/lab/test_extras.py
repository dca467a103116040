"""What solutions store besides parameters is left out where it cannot matter, else refused."""

from __future__ import annotations

import re

import pytest
import torch
from lab_reference import LabTransformer, fill_randomly
from torch import Tensor, nn

from config.errors import UserError
from utils.weights.import_lab import import_lab
from utils.weights.lab_keys import read_keys
from utils.weights.lab_naming import Settled
from utils.weights.store import load_transformer

WIDTH, HEADS, TOKENS, CODES = 32, 4, 16, 16
HEAD = WIDTH // HEADS


@pytest.fixture
def lab() -> LabTransformer:
    return fill_randomly(LabTransformer(WIDTH, HEADS, 2, 64, TOKENS, CODES, "fused"), 5)


@pytest.fixture
def base(config, changed):
    return changed(config, {"transformer.num_heads": HEADS})


def imported(state: object, base, tmp_path, **settle: str | None) -> tuple[Tensor, Tensor, str]:
    """Token ids, the imported network's logits, and what was said."""
    torch.save(state, tmp_path / "lab.pt")
    config, lines, *_ = import_lab([tmp_path / "lab.pt"], tmp_path / "ours", base, **settle)
    ids = torch.randint(CODES + 1, (5, TOKENS), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = load_transformer(config.transformer_weights, config.transformer)(ids)
    return ids, logits, "\n".join(lines)


def in_attention(**tensors: Tensor):
    """Tensors in the attention of both blocks."""
    return lambda state: {
        f"blocks.{block}.Attention.{key}": value
        for block in (0, 1)
        for key, value in tensors.items()
    }


HARMLESS = {
    "the scale": (in_attention(scale=torch.tensor(HEAD**-0.5)), "the factor of the scores"),
    "its inverse": (in_attention(scale=torch.full((1,), HEAD**0.5).half()), "the factor of the"),
    "positions": (lambda _: {"position_ids": torch.arange(TOKENS)[None]}, "numbers of the pos"),
    "no mask": (in_attention(mask=torch.ones(16, 16, dtype=torch.bool)), "a mask that hides noth"),
    "the mask's id": (lambda _: {"mask_token_id": torch.tensor([CODES])}, "since 16 is the mask's"),
    "a tied head": (
        lambda s: {"head.weight": s["tok_emb.weight"]},
        "equal to tok_emb.weight: head",
    ),
}
HARMFUL = {
    "of two heads": (
        in_attention(scale=torch.tensor((WIDTH / 2) ** -0.5)),
        "blocks.0.Attention.scale is 0.25; allowed is the factor of the scores of 4 heads, 0.3536 "
        "or 2.828; of 2 heads it is: --set transformer.num_heads=2",
    ),
    "of one head": (
        in_attention(scale=torch.tensor(WIDTH**-0.5)),
        "0.3536 or 2.828; of 1 heads it is: --set transformer.num_heads=1, or, of several, "
        "--attention root-of-width of utils.weights.import_lab$",
    ),
    "learned": (in_attention(temperature=torch.tensor(0.7)), "0.3536 or 2.828$"),
    "one": (in_attention(temperature=torch.tensor(1.0)), "0.3536 or 2.828$"),
    "causal": (in_attention(mask=torch.ones(16, 16).tril()), "2 keys unexpected: blocks.0.Att"),
    "a hidden score": (in_attention(masked_bias=torch.tensor(-1e4)), "2 keys unexpected: blocks.0."
                       "Attention.masked_bias, blocks.1.Attention.masked_bias$"),
    "another mask id": (lambda _: {"mask_id": torch.tensor(0)}, "mask_id is 0; allowed is the la"),
    "an untied head": (lambda s: {"head.weight": s["tok_emb.weight"] + 1}, "unexpected: head.weig"),
    "quantised": (in_attention(**{"qkv.zero_point": torch.tensor(1)}), "undoing the quantisation"),
    "one position more": (lambda s: {"pos_emb": torch.zeros(17, WIDTH)}, r"1 keys of another shape:"
                          r" pos_emb \(17, 32\), needed \(16, 32\)"),
    "one row more": (lambda s: {"tok_emb.weight": torch.zeros(18, WIDTH)}, r"1 keys of another sha"
                     r"pe: tok_emb.weight \(18, 32\), needed \(17, 32\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", HARMLESS)
def test_what_does_not_change_the_logits_is_left_out_with_a_note(lab, base, tmp_path, case):
    more, said = HARMLESS[case]
    ids, found, lines = imported(lab.state_dict() | more(lab.state_dict()), base, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(found, lab(ids), rtol=0, atol=1e-4)
    assert said in lines


@pytest.mark.parametrize("case", HARMFUL)
def test_what_may_change_the_logits_is_refused(lab, base, tmp_path, case):
    more, said = HARMFUL[case]
    with pytest.raises(UserError) as error:
        imported(lab.state_dict() | more(lab.state_dict()), base, tmp_path)
    assert re.search(said, str(error.value))
    assert not (tmp_path / "ours").exists()


OTHER_TENSORS = {  # how matrices are stored, what is said
    "int8": (
        lambda v: (v * 100).to(torch.int8),
        " has values of torch.int8; allowed are fl",
    ),
    "complex": (lambda v: v.to(torch.complex64), " has values of torch.complex64; allowed"),
    "sparse": (
        lambda v: v.to_sparse(),
        " is a torch.sparse_coo tensor on cpu; allowed are d",
    ),
    "meta": (lambda v: v.to("meta"), " is a torch.strided tensor on meta; allowed are dense"),
}


@pytest.mark.parametrize("case", OTHER_TENSORS)
def test_tensors_of_other_than_dense_floating_point_numbers_are_refused(lab, solution, case):
    change, said = OTHER_TENSORS[case]
    whole_model = lab.state_dict() | {"mask_token_tensor": torch.tensor(CODES)}
    for state in (whole_model, solution("report").vqgan.state_dict()):
        changed = {k: change(v) if v.ndim == 2 or case == "meta" else v for k, v in state.items()}
        with pytest.raises(UserError, match=said):
            read_keys(changed, "a.pt")


def test_floats_of_8_bits_are_read_as_those_of_32(lab, assert_same):
    short = {key: value.to(torch.float8_e4m3fn) for key, value in lab.state_dict().items()}
    found = read_keys(short, "a.pt").part("transformer").weights
    assert_same(dict(found), {key: value.float() for key, value in short.items()})


@pytest.mark.parametrize("shape", [(), (17,), (1, 17), (1, 1, 17), (16, 1), (1, 16, 17)])
def test_a_bias_of_fewer_values_is_spread_over_positions_and_codes(lab, base, tmp_path, shape):
    lab.bias = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    ids, found, _ = imported(lab.state_dict(), base, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(found, lab(ids), rtol=0, atol=1e-4)


BIASES = [  # endings of keys that a solution does not have, what is said
    (("MLP.0.bias", "MLP.2.bias"), "MLP.0, MLP.2: no bias: zeros, which an export contains"),
    (("LN.bias", "LayerNorm1.bias", "LayerNorm2.bias"), "LN, LayerNorm1, LayerNorm2: no bias"),
    (("Token_Prediction.0.bias", "Token_Prediction.2.bias"), "Token_Prediction.2: no bias: zeros"),
    ((".bias",), "MLP.2, Token_Prediction.0, Token_Prediction.2: no bias: zeros"),
]


@pytest.mark.parametrize(("endings", "said"), BIASES, ids=lambda value: str(value))
def test_biases_that_no_block_has_are_zeros(lab, base, tmp_path, endings, said):
    state = {key: value for key, value in lab.state_dict().items() if not key.endswith(endings)}
    with torch.no_grad():
        for key, value in lab.named_parameters():
            if key not in state:
                value.zero_()
    attention = None
    if "MLP.0.bias" not in endings:
        attention = "standard"
        with pytest.raises(UserError, match="norms without biases may be RMSNorm, .* rms-norm, wh"):
            imported(state, base, tmp_path)
    ids, found, lines = imported(state, base, tmp_path, attention=attention)
    with torch.no_grad():
        torch.testing.assert_close(found, lab(ids), rtol=0, atol=1e-4)
    assert said in lines


@pytest.mark.parametrize("leading", [(), (1,)])
def test_a_head_without_a_bias_has_one_of_zeros(lab, base, tmp_path, leading):
    lab.bias.data.zero_()
    state = {key: value for key, value in lab.state_dict().items() if key != "bias"}
    state["pos_emb"] = state["pos_emb"].expand(*leading, TOKENS, WIDTH)
    ids, found, lines = imported(state, base, tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(found, lab(ids), rtol=0, atol=1e-4)
    assert "the head: no bias: zeros" in lines


def test_a_bias_that_one_block_lacks_is_an_error(lab, base, tmp_path):
    state = dict(lab.state_dict())
    del state["blocks.1.LayerNorm2.bias"]
    with pytest.raises(UserError, match="1 keys missing: blocks.1.LayerNorm2.bias"):
        imported(state, base, tmp_path)


def test_positions_may_be_an_embedding_and_blocks_wrapped(lab, base, tmp_path, assert_same):
    own = dict(lab.state_dict())
    state = {key.replace("blocks.", "blocks.module."): value for key, value in own.items()}
    state["pos_emb.weight"] = state.pop("pos_emb")
    assert_same(dict(sorted(read_keys(state, "a").part("transformer").weights.items())),
                dict(sorted(own.items())))  # fmt: skip


@pytest.mark.parametrize("prefix", ["encoder.", "decoder.", "model.encoder.", "bias."])
def test_a_network_may_be_called_like_a_part_of_another(lab, prefix, assert_same):
    own = dict(lab.state_dict())
    part = read_keys({prefix + key: value for key, value in own.items()}, "a").part("transformer")
    assert_same(dict(part.weights), own)


def test_an_entry_leaves_out_what_is_beside_it(lab, base, tmp_path):
    state = {f"model.{key}": value for key, value in lab.state_dict().items()}
    state |= {"criterion.weight": torch.ones(CODES + 1), "mean": torch.zeros(3)}
    with pytest.raises(UserError, match="unexpected keys: .*--entry .*leaves out what is next to"):
        imported(state, base, tmp_path)
    _, _, lines = imported(state, base, tmp_path, entry="model")
    assert "left out, not in an entry: criterion.weight" in lines


@pytest.mark.parametrize("key", ["pos_emb", "tok_emb.weight"])
def test_a_number_in_place_of_a_table_is_refused(lab, base, tmp_path, key):
    state = lab.state_dict() | {key: torch.tensor(0.5)}
    with pytest.raises(UserError, match=rf"{key} \(\), needed"):
        imported(state, base, tmp_path)


def whole(lab: LabTransformer, vqgan: nn.Module) -> dict[str, Tensor]:
    """A module that holds a transformer's parts themselves, and a tokenizer as one more part."""
    parts = {f"vqgan.{key}": value for key, value in vqgan.state_dict().items()}
    return {**parts, **lab.state_dict()}


def test_a_tokenizer_beside_the_parts_of_a_transformer_is_a_network_of_its_own(
    lab, solution, assert_same
):
    vqgan = solution("report").vqgan
    for prefix in ("", "model."):
        state = {prefix + key: value for key, value in whole(lab, vqgan).items()}
        parts = read_keys(state, "a.pt").parts
        assert_same(dict(parts["transformer"].weights), dict(lab.state_dict()))
        assert_same(dict(parts["tokenizer"].weights), dict(vqgan.state_dict()))
    parts = read_keys({**vqgan.state_dict(), **lab.state_dict()}, "a.pt").parts
    assert_same(dict(parts["transformer"].weights), dict(lab.state_dict()))
    assert_same(dict(parts["tokenizer"].weights), dict(vqgan.state_dict()))


def test_losses_beside_the_parts_of_a_network_are_left_out_by_an_entry(lab, solution, assert_same):
    state = whole(lab, solution("report").vqgan)
    state |= {f"loss.discriminator.main.{i}.weight": torch.ones(2) for i in range(7)}
    with pytest.raises(UserError) as error:
        read_keys(state, "a.pt")
    assert str(error.value) == (
        "a.pt: 7 unexpected keys: loss.discriminator.main.0.weight, "
        "loss.discriminator.main.1.weight, loss.discriminator.main.2.weight, "
        "loss.discriminator.main.3.weight, loss.discriminator.main.4.weight, ...; known are a "
        "lab's networks; --entry transformer of utils.weights.import_lab leaves out what is next "
        "to one"
    )
    file = read_keys(state, "a.pt", Settled("transformer"))
    assert_same(dict(file.parts["transformer"].weights), dict(lab.state_dict()))
    assert any(note.startswith("left out, not in an entry: loss.disc") for note in file.notes)


def test_an_average_beside_the_parts_of_a_transformer_is_chosen_by_an_entry(lab, assert_same):
    own = dict(lab.state_dict())
    state = {**own, **{f"ema.{key}": value + 1 for key, value in own.items()}}
    with pytest.raises(UserError, match="contains 2 transformers: transformer, ema; choose one"):
        read_keys(state, "a.pt")
    for entry, added in (("transformer", 0), ("ema", 1)):
        found = read_keys(state, "a.pt", Settled(entry)).part("transformer").weights
        assert_same(dict(found), {key: value + added for key, value in own.items()})


def test_an_entry_does_not_leave_out_what_may_be_part_of_the_network(lab, base, tmp_path):
    state = {"model": lab.state_dict() | {"head.weight": torch.ones(17, WIDTH)}}
    with pytest.raises(UserError, match="1 keys unexpected: head.weight"):
        imported(state, base, tmp_path, entry="model")
