"""Whole utterances in blocks of queries: as stock in values and gradients, and never T x T."""

import math

import pytest
import torch
from espnet2.legacy.nets.pytorch_backend.transformer.attention import (
    RelPositionMultiHeadedAttention,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from espnet_ext.attention import build_attention
from espnet_ext.attention.blocked import CPU_BLOCK_QUERIES, ChunkView, block_size
from espnet_ext.cpu import by_head
from tiny import N_FEAT, N_HEAD, VARIANTS, max_error, positions
from tiny import build_tiny_attention as make


def padded(length, batch):
    """Mask (B, 1, T) of utterances of length T, about T/2, about T/3, ..."""
    lengths = torch.tensor([max(1, length // (b + 1)) for b in range(batch)])
    return torch.arange(length)[None, None] < lengths[:, None, None]


def run(attention, x, mask, pos):
    """Output and gradients of everything, of a loss that real frames alone go into."""
    x = x.clone().requires_grad_()
    y = attention(x, x, x, pos, mask)
    y = y * mask.transpose(1, 2)
    attention.zero_grad()
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return {"y": y, "x": x.grad} | {n: p.grad for n, p in attention.named_parameters()}


def small_blocks(attention, queries, batch, length):
    """Allow so little memory that a block has about so many queries."""
    attention.attention_memory_mb = 5 * 8 * batch * N_HEAD * length * queries / 2**20


@pytest.fixture(params=[1, 10**9], ids=["by head", "by block"], scope="module")
def way(request):
    """Both ways to go through blocks, whatever their size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(by_head, "KEYS", request.param)
        yield


@settings(max_examples=12, deadline=None)
@given(
    length=st.integers(1, 150),
    batch=st.integers(1, 3),
    queries=st.integers(1, 60),
)
def test_blocks_of_any_size_equal_stock_in_values_and_gradients(way, length, batch, queries):
    torch.manual_seed(length)
    att = make("mha").double()
    small_blocks(att, queries, batch, length)
    stock = RelPositionMultiHeadedAttention(N_HEAD, N_FEAT, 0.0).eval().double()
    stock.load_state_dict(att.state_dict(), strict=True)
    x, mask = torch.randn(batch, length, N_FEAT).double(), padded(length, batch)
    ours, want = (run(m, x, mask, positions(length, torch.float64)) for m in (att, stock))
    for name in want:
        scale = max(1.0, want[name].abs().max().item())
        assert max_error(ours[name], want[name]) < 1e-9 * scale, name


@pytest.mark.parametrize("length", [CPU_BLOCK_QUERIES + 1, 3000])
def test_long_utterances_equal_stock_in_float32(length):
    att = make("mha")
    stock = RelPositionMultiHeadedAttention(N_HEAD, N_FEAT, 0.0, use_sdpa=True).eval()
    stock.load_state_dict(att.state_dict(), strict=True)
    x, mask = torch.randn(1, length, N_FEAT), torch.ones(1, 1, length, dtype=torch.bool)
    mask[..., -7:] = False
    with torch.no_grad():
        y, want = (m(x, x, x, positions(length), mask) for m in (att, stock))
    assert max_error(y * mask.transpose(1, 2), want * mask.transpose(1, 2)) < 1e-5


@pytest.mark.parametrize("variant", ["gqa", "mla", "mha_input"])
@pytest.mark.parametrize("chunk,left", [(None, -1), (7, 20), (5, -1)])
def test_small_blocks_equal_one_block_in_every_gradient(way, variant, chunk, left):
    length = 90
    att = make(variant).double()
    x, mask = torch.randn(2, length, N_FEAT).double(), padded(length, 2)
    pos = positions(length, torch.float64)
    pos = pos if chunk is None else ChunkView(pos, chunk, left)
    whole = run(att, x, mask, pos)
    small_blocks(att, 16, 2, length)
    for name, grad in run(att, x, mask, pos).items():
        assert max_error(grad, whole[name]) < 1e-9, name


@pytest.mark.parametrize("length", [60, CPU_BLOCK_QUERIES + 40])
def test_bfloat16_is_as_close_as_stock(length):
    att = make("mha")
    stock = RelPositionMultiHeadedAttention(N_HEAD, N_FEAT, 0.0).eval()
    stock.load_state_dict(att.state_dict(), strict=True)
    x, mask, pos = torch.randn(2, length, N_FEAT), padded(length, 2), positions(length)
    exact = run(att, x, mask, pos)
    errors = []
    for module in (att, stock):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = run(module, x, mask, pos)
        errors.append({n: (got[n].float() - exact[n]).norm().item() for n in exact})
    for name, error in errors[1].items():
        if name != "linear_k.bias":  # zero but for rounding: any key bias gives the same weights
            assert errors[0][name] < 2 * error + 1e-4, name


class Sizes(TorchDispatchMode):
    """Elements of the largest tensor that any operation returns, and of all of them together."""

    def __init__(self):
        super().__init__()
        self.largest = self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(t, torch.Tensor) and not t._is_view():
                self.largest = max(self.largest, t.numel())
                self.total += t.numel()
        return out


def sizes(att, length, chunk, left):
    x = torch.randn(1, length, N_FEAT)
    pos = positions(length)
    if chunk is not None:
        needed = ChunkView.needed_positions(length, chunk, left)
        pos = ChunkView(pos[:, length - needed : length + needed - 1], chunk, left)
    with Sizes() as seen:
        att(x, x, x, pos, None).sum().backward()
    return seen


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("chunk,left", [(None, -1), (1, 0), (16, 64)])
def test_memory_grows_with_the_length_and_not_its_square(variant, chunk, left):
    """Time as well where a frame sees a bounded number of others."""
    att = make(variant).train()
    short, long = (sizes(att, length, chunk, left) for length in (700, 1400))
    assert long.largest < 2.2 * short.largest
    assert long.largest < 1400 * 1400
    if chunk is not None:
        assert long.total < 2.2 * short.total


@settings(max_examples=200, deadline=None)
@given(
    length=st.integers(1, 100_000),
    score_bytes=st.integers(4, 4096),
    chunk=st.integers(0, 200),
    left=st.integers(-1, 3000),
    memory=st.floats(1, 4096),
    device=st.sampled_from(["cpu", "cuda"]),
)
def test_a_block_keeps_to_its_memory(length, score_bytes, chunk, left, memory, device):
    view = ChunkView(None, chunk, left) if chunk else None
    size = block_size(length, score_bytes, view, memory, device)
    assert 1 <= size <= length
    if size > 1:
        start = length // size // 2 * size
        stop = min(start + size, length)
        lo, hi = view.visible_range(start, stop, length) if view else (0, length)
        keys = min(hi - lo, length)
        # a block that is not whole chunks may see the rest of its last one
        slack = chunk * size if chunk and size < chunk else 0
        assert (size * keys - slack) * score_bytes <= memory * 2**20 * 1.001
        if view and left >= 0:  # positions are at hand for every distance that it asks for
            needed = ChunkView.needed_positions(length, chunk, left)
            assert stop - lo <= needed and hi - start <= needed


def test_dropout_drops_the_share_it_is_asked_to():
    att = build_attention("mha", N_HEAD, N_FEAT, 0.25).train()
    with torch.no_grad():  # all weights alike, all values one: an output is the share that is kept
        for parameter in att.parameters():
            parameter.zero_()
        att.linear_v.bias.fill_(1.0)
        att.linear_out.weight.copy_(torch.eye(N_FEAT))
    x = torch.randn(1, 300, N_FEAT)
    y = att(x, x, x, positions(300), None)[0, :, :: N_FEAT // N_HEAD]  # (T, H)
    draws = 300 * 300 * N_HEAD
    assert abs(y.mean().item() - 1) < 5 * math.sqrt(0.25 / 0.75 / draws)
    assert y.std().item() == pytest.approx(math.sqrt(0.25 / 0.75 / 300), rel=0.1)


@pytest.mark.parametrize("chunk", [1, 3, 64, 70])
def test_linear_attention_in_blocks_equals_its_weights(chunk):
    att = make("linear").double()
    x = torch.randn(2, 150, N_FEAT).double()
    q, k, v = att.features(x)
    want = torch.matmul(att._weights(q, k, chunk), v)
    assert max_error(att._chunked(q, k, v, chunk), want) < 1e-9


def test_weights_for_plots_need_no_more_positions_than_blocks_do():
    length, chunk, left = 400, 4, 8
    needed = ChunkView.needed_positions(length, chunk, left)
    assert needed < length
    view = ChunkView(positions(length)[:, length - needed : length + needed - 1], chunk, left)
    att = make("gqa")
    x = torch.randn(1, length, N_FEAT)
    with torch.no_grad():
        y = att(x, x, x, view, None)
        att.register_forward_hook(lambda module, args, output: None)
        assert max_error(att(x, x, x, view, None), y) < 1e-5
    assert max_error(att.attn.sum(-1), torch.ones(1, N_HEAD, length)) < 1e-4
    assert att.attn[0, 0, 200].count_nonzero() == left + chunk
