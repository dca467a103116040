"""Attention against torch.nn.MultiheadAttention, and where its dropout falls."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.attention import MultiHeadSelfAttention, relative_offsets

BATCH, TOKENS, DIM, HEADS = 3, 7, 12, 4


def attention_and_reference(fused: bool) -> tuple[MultiHeadSelfAttention, nn.MultiheadAttention]:
    """Ours and PyTorch's with the same weights, float64; PyTorch's q, k, v biases are 0."""
    torch.manual_seed(0)
    ours = MultiHeadSelfAttention(DIM, HEADS, dropout=0.0, fused=fused).double()
    theirs = nn.MultiheadAttention(DIM, HEADS, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.zero_()
        theirs.out_proj.weight.copy_(ours.proj.weight)
        theirs.out_proj.bias.copy_(ours.proj.bias)
    return ours, theirs


def inputs() -> Tensor:
    torch.manual_seed(1)
    return (3 * torch.randn(BATCH, TOKENS, DIM, dtype=torch.float64)).requires_grad_()


@pytest.mark.parametrize("fused", [False, True])
def test_attention_equals_multihead_attention_with_the_same_weights(fused):
    ours, theirs = attention_and_reference(fused)
    x = inputs()
    torch.testing.assert_close(ours(x), theirs(x, x, x)[0])


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_equal_those_of_multihead_attention(fused):
    ours, theirs = attention_and_reference(fused)
    x, y = inputs(), inputs()
    toward = torch.randn(BATCH, TOKENS, DIM, dtype=torch.float64)
    (ours(x) * toward).sum().backward()
    (theirs(y, y, y)[0] * toward).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(ours.qkv.weight.grad, theirs.in_proj_weight.grad)
    torch.testing.assert_close(ours.proj.weight.grad, theirs.out_proj.weight.grad)
    torch.testing.assert_close(ours.proj.bias.grad, theirs.out_proj.bias.grad)


def test_plain_and_fused_are_one_formula_in_single_precision():
    plain, _ = attention_and_reference(fused=False)
    fused, _ = attention_and_reference(fused=True)
    x = inputs().float()
    torch.testing.assert_close(plain.float()(x), fused.float()(x))


def test_two_tokens_by_hand():
    # One head of width 1, q = k = v = x: scores [[0, 0], [0, 1]], so token 0 averages 0 and 1,
    # and token 1 weighs them 1 to e.
    attention = MultiHeadSelfAttention(1, 1, dropout=0.0)
    with torch.no_grad():
        attention.qkv.weight.fill_(1)
        attention.proj.weight.fill_(1)
        attention.proj.bias.zero_()
    e = torch.e
    attended = attention(torch.tensor([[[0.0], [1.0]]])).flatten().tolist()
    assert attended == pytest.approx([0.5, e / (1 + e)])


def test_swapping_tokens_swaps_their_outputs_since_attention_knows_no_positions():
    attention, _ = attention_and_reference(fused=False)
    x, order = inputs(), torch.randperm(TOKENS)
    torch.testing.assert_close(attention(x[:, order]), attention(x)[:, order])


def passes_values_through(fused: bool) -> MultiHeadSelfAttention:
    """Attention whose values are the inputs, projected by the identity, dropout one half."""
    attention = MultiHeadSelfAttention(DIM, HEADS, dropout=0.5, fused=fused)
    with torch.no_grad():
        attention.qkv.weight[2 * DIM :] = torch.eye(DIM)
        attention.proj.weight.copy_(torch.eye(DIM))
        attention.proj.bias.zero_()
    return attention


@pytest.mark.parametrize("fused", [False, True])
def test_dropout_falls_on_probabilities_so_a_lone_token_keeps_or_loses_whole_heads(fused):
    # A lone token attends to itself with probability 1; dropout turns that 1 into 0 or 1 / 0.5,
    # separately for each head. Dropout on values or outputs would split the width of a head.
    torch.manual_seed(0)
    attended = passes_values_through(fused).train()(torch.ones(200, 1, DIM))
    heads = attended.view(200, HEADS, DIM // HEADS)
    assert set(heads.flatten().tolist()) == {0.0, 2.0}
    assert (heads == heads[..., :1]).all()
    assert 0.4 < heads.mean() / 2 < 0.6


@pytest.mark.parametrize("fused", [False, True])
def test_dropout_rests_outside_training(fused):
    attention = passes_values_through(fused).eval()
    x = torch.ones(1, TOKENS, DIM)
    torch.testing.assert_close(attention(x), x)
    torch.testing.assert_close(attention(x), attention(x), rtol=0, atol=0)


def test_only_the_output_projection_has_a_bias():
    names = {name for name, _ in MultiHeadSelfAttention(DIM, HEADS, 0.0).named_parameters()}
    assert names == {"qkv.weight", "proj.weight", "proj.bias"}


def test_offsets_are_numbered_by_rows_and_columns_between_query_and_key():
    # a 2 x 2 grid has 3 x 3 offsets, numbered from (-1, -1) to (1, 1); 4 is no offset at all
    assert relative_offsets(2).tolist() == [
        [4, 5, 7, 8],
        [3, 4, 6, 7],
        [1, 2, 4, 5],
        [0, 1, 3, 4],
    ]


@pytest.mark.parametrize("fused", [False, True])
def test_relative_bias_is_added_to_the_scores_of_its_head(fused):
    # With q = k = 0 the scores are the bias alone: token 0 attends by its softmax over offsets.
    torch.manual_seed(0)
    attention = MultiHeadSelfAttention(DIM, HEADS, 0.0, fused=fused, bias_grid=2).double()
    with torch.no_grad():
        attention.qkv.weight[: 2 * DIM] = 0
        attention.qkv.weight[2 * DIM :] = torch.eye(DIM)
        attention.proj.weight.copy_(torch.eye(DIM))
        attention.proj.bias.zero_()
    x = torch.randn(1, 4, DIM, dtype=torch.float64)
    bias = attention.relative_bias.weight[[4, 5, 7, 8]]  # (4, H): from token 0 to each token
    heads = x.view(4, HEADS, -1)
    expected = torch.einsum("nh,nhd->hd", bias.softmax(0), heads).flatten()
    torch.testing.assert_close(attention(x)[0, 0], expected)


def test_gradients_of_the_relative_bias_do_not_depend_on_the_kernel():
    gradients = []
    for fused in (False, True):
        torch.manual_seed(0)
        attention = MultiHeadSelfAttention(DIM, HEADS, 0.0, fused=fused, bias_grid=3).double()
        attention(torch.randn(2, 9, DIM, dtype=torch.float64)).square().sum().backward()
        gradients.append(attention.relative_bias.weight.grad)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(*gradients)


def test_on_a_cpu_the_fused_kernel_is_used_where_there_is_nothing_to_drop(monkeypatch):
    calls, kernel = [], nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(
        nn.functional,
        "scaled_dot_product_attention",
        lambda *given, **more: calls.append(1) or kernel(*given, **more),
    )
    for dropout, training, expected in ((0.5, True, 0), (0.5, False, 1), (0.0, True, 1)):
        calls.clear()
        attention = MultiHeadSelfAttention(DIM, HEADS, dropout, fused=True).train(training)
        attention(torch.ones(1, TOKENS, DIM))
        assert len(calls) == expected, (dropout, training)
