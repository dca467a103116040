"""Attention against torch.nn.MultiheadAttention, and where its dropout falls."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.attention import MultiHeadSelfAttention
from models.cpu_kernels import AttentionInParts, _parts, draw_margins, split_heads

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


def test_the_kernel_for_gpus_has_the_formula_written_out():
    attention, _ = attention_and_reference(fused=True)
    q, k, v = split_heads(attention.qkv(inputs()), 3, HEADS)
    torch.testing.assert_close(attention._fused(q, k, v), attention._plain(q, k, v))


@pytest.mark.parametrize(
    ("dropout", "training", "dtype", "kernel"),
    [
        (0.5, True, torch.float32, False),  # which the kernel would drop by a slow stand-in
        (0.5, False, torch.float32, True),
        (0.0, True, torch.float32, True),
        (0.0, True, torch.bfloat16, False),
        (0.5, False, torch.bfloat16, False),
    ],
)
def test_a_cpu_gets_the_kernel_where_it_is_fast(monkeypatch, dropout, training, dtype, kernel):
    calls, fused = [], MultiHeadSelfAttention._fused
    monkeypatch.setattr(
        MultiHeadSelfAttention, "_fused", lambda *given: calls.append(1) or fused(*given)
    )
    attention = MultiHeadSelfAttention(DIM, HEADS, dropout, fused=True).train(training).to(dtype)
    assert attention(torch.ones(1, TOKENS, DIM, dtype=dtype)).isfinite().all()
    assert bool(calls) == kernel


DROPOUT = 0.2


def dropped_attention(qkv: Tensor) -> Tensor:
    """The formula over the whole batch, with what `AttentionInParts` loses after the same seed."""
    q, k, v = split_heads(qkv, 3, HEADS)
    margins = []
    torch.manual_seed(2)
    scores = q @ k.transpose(-2, -1) / (DIM / HEADS) ** 0.5
    for part in _parts(BATCH, HEADS, TOKENS):
        margins.append(draw_margins(scores[part].shape, DROPOUT))
    probabilities = scores.softmax(-1)
    kept = probabilities * (torch.cat(margins) >= 0) / (1 - DROPOUT)
    return (kept @ v).transpose(1, 2).flatten(2)


def in_parts(qkv: Tensor) -> Tensor:
    torch.manual_seed(2)
    return AttentionInParts.apply(qkv, HEADS, DROPOUT)


def with_gradients(attend, dtype: torch.dtype) -> list[Tensor]:
    """Output and gradient of q, k, v, in double precision."""
    torch.manual_seed(1)
    qkv = (2 * torch.randn(BATCH, TOKENS, 3 * DIM)).bfloat16().to(dtype).requires_grad_()
    toward = torch.randn(BATCH, TOKENS, DIM).bfloat16().to(dtype)
    out = attend(qkv)
    (out * toward).sum().backward()
    return [out.detach().double(), qkv.grad.double()]


@pytest.mark.parametrize("images", [1, 2, BATCH])
def test_attention_in_parts_is_the_formula_and_its_gradient(images, monkeypatch):
    monkeypatch.setattr("models.cpu_kernels.SCORES_AT_ONCE", images * HEADS * TOKENS**2)
    found, expected = (
        with_gradients(attend, torch.float64) for attend in (in_parts, dropped_attention)
    )
    torch.testing.assert_close(found, expected)


def test_attention_in_parts_rounds_in_bf16_as_little_as_autograd_does():
    exact = with_gradients(dropped_attention, torch.float64)
    ours, autograd = (
        with_gradients(attend, torch.bfloat16) for attend in (in_parts, dropped_attention)
    )
    for wanted, own, other in zip(exact, ours, autograd, strict=True):
        assert (own - wanted).norm() < 1.3 * (other - wanted).norm()


def test_attention_in_parts_keeps_one_number_of_each_probability():
    def kept_bytes(fused: bool) -> int:
        storages = {}
        attention = MultiHeadSelfAttention(DIM, HEADS, 0.5, fused=fused)
        x = torch.randn(2, 64, DIM, requires_grad=True)

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = tensor, storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            attention(x)
        return sum(size for _, size in storages.values())

    probabilities = 4 * 2 * HEADS * 64 * 64  # bytes
    assert kept_bytes(fused=False) > 3 * probabilities  # before and after dropout, and the mask
    assert kept_bytes(fused=True) < 1.5 * probabilities
