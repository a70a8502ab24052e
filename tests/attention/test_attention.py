"""Each variant against a naive loop that follows its formula, and the identities between them."""

import math

import pytest
import torch
import torch.nn.functional as F
from espnet2.legacy.nets.pytorch_backend.transformer.attention import (
    RelPositionMultiHeadedAttention,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ext.attention import ATTENTIONS, build_attention
from espnet_ext.attention.base import SoftmaxAttention
from espnet_ext.attention.blocked import CPU_BLOCK_QUERIES as BLOCK
from espnet_ext.attention.blocked import ChunkView
from tiny import N_FEAT, N_HEAD, VARIANTS, max_error, positions, stream_attention
from tiny import build_tiny_attention as make

D_K = N_FEAT // N_HEAD
SOFTMAX = [n for n, (name, _) in VARIANTS.items() if issubclass(ATTENTIONS[name], SoftmaxAttention)]


def visible(i, j, length, chunk, left):
    if chunk is None:
        return True
    start = i - i % chunk
    return j < start + chunk and (left < 0 or j >= start - left)


def naive_softmax(att, x, real, chunk=None, left=-1):
    """The formula of DESIGN, frame by frame and head by head, for one utterance (T, n_feat)."""
    length = x.size(0)
    k, v = (t[0] for t in att.key_value(att.record(x[None])))  # (G, T, d_k)
    q, n_kv_head = att.linear_q(x), len(k)
    p = att.linear_pos(positions(length)[0])  # row r is distance length-1-r
    y = torch.zeros(length, N_FEAT)
    for h in range(N_HEAD):
        g = h // (N_HEAD // n_kv_head)
        head = slice(h * D_K, (h + 1) * D_K)
        for i in range(length):
            seen = [j for j in range(real) if visible(i, j, length, chunk, left)]
            if not seen:
                continue
            scores = torch.stack(
                [
                    (q[i, head] + att.pos_bias_u[h]) @ k[g, j]
                    + (q[i, head] + att.pos_bias_v[h]) @ p[length - 1 - (i - j), head]
                    for j in seen
                ]
            )
            weights = torch.softmax(scores / math.sqrt(D_K), dim=0)
            y[i, head] = (weights[:, None] * v[g, seen]).sum(0)
    return att.linear_out(y)


def naive_linear(att, x, real, chunk=None, left=-1):
    def phi(t):
        return F.elu(t) + 1

    q, k, v = att.linear_q(x), att.linear_k(x), att.linear_v(x)
    y = torch.zeros_like(x)
    for h in range(N_HEAD):
        head = slice(h * D_K, (h + 1) * D_K)
        for i in range(x.size(0)):
            weights = torch.stack(
                [
                    phi(q[i, head]) @ phi(k[j, head])
                    if visible(i, j, x.size(0), chunk, -1)
                    else torch.tensor(0.0)
                    for j in range(real)
                ]
            )
            y[i, head] = (weights[:, None] * v[:real, head]).sum(0) / weights.sum()
    return att.linear_out(y)


@pytest.mark.parametrize("variant", ["mha", "mha_input", "gqa", "gqa_input", "mla"])
def test_keys_and_values_are_those_of_the_formula(variant):
    att, x = make(variant), torch.randn(1, 9, N_FEAT)
    if variant == "mla":
        c = att.linear_kv_down(x)
        want = att.linear_k_up(c), att.linear_v_up(c)
    else:
        want = att.linear_k(x), att.linear_v(x)
    for got, projected in zip(att.key_value(att.record(x)), want, strict=True):
        heads = [projected[0, :, i : i + D_K] for i in range(0, projected.size(-1), D_K)]
        assert max_error(got[0], torch.stack(heads)) < 1e-6


@pytest.mark.parametrize("variant", [*SOFTMAX, "linear"])
@pytest.mark.parametrize("chunk,left", [(None, -1), (4, -1), (4, 6), (1, 0)])
def test_attention_equals_naive_loop(variant, chunk, left):
    att = make(variant)
    x = torch.randn(2, 23, N_FEAT)
    lengths = [23, 17]
    mask = torch.arange(23)[None, None] < torch.tensor(lengths)[:, None, None]
    pos = positions(23)
    pos = pos if chunk is None else ChunkView(pos, chunk, left)
    with torch.no_grad():
        y = att(x, x, x, pos, mask)
        naive = naive_linear if variant == "linear" else naive_softmax
        for b, real in enumerate(lengths):
            want = naive(att, x[b], real, chunk, left)
            assert max_error(y[b, :real], want[:real]) < 1e-5


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("length", [2 * BLOCK - 1, 2 * BLOCK, 3 * BLOCK + 5])
@pytest.mark.parametrize("chunk,left", [(None, -1), (48, 100), (16, -1)])
def test_weights_for_plots_are_those_of_the_output(variant, length, chunk, left):
    """Long inputs run in blocks of queries; the weights are in one piece."""
    att = make(variant).double()
    x = torch.randn(1, length, N_FEAT).double()
    mask = torch.ones(1, 1, length, dtype=torch.bool)
    pos = positions(length).double()
    pos = pos if chunk is None else ChunkView(pos, chunk, left)
    with torch.no_grad():
        y = att(x, x, x, pos, mask)
        assert att.attn is None
        handle = att.register_forward_hook(lambda module, args, output: None)
        att(x, x, x, pos, mask)
        handle.remove()
        softmax = isinstance(att, SoftmaxAttention)
        value = att.key_value(att.record(x))[1] if softmax else att.features(x)[2]
        value = value.repeat_interleave(N_HEAD // value.size(1), dim=1)
        assert max_error(att.linear_out(att.merge_heads(att.attn @ value)), y) < 1e-12
    assert att.attn.shape == (1, N_HEAD, length, length)
    assert max_error(att.attn.sum(-1), torch.ones(1, N_HEAD, length)) < 1e-6


def test_mha_equals_stock_espnet():
    att = make("mha")
    stock = RelPositionMultiHeadedAttention(N_HEAD, N_FEAT, 0.0).eval()
    stock.load_state_dict(att.state_dict(), strict=True)
    x = torch.randn(2, 40, N_FEAT)
    mask = torch.arange(40)[None, None] < torch.tensor([40, 31])[:, None, None]
    assert max_error(att(x, x, x, positions(40), mask), stock(x, x, x, positions(40), mask)) < 1e-5


@pytest.mark.parametrize("length", [1, BLOCK, 2 * BLOCK + 3])
def test_gradients_equal_stock_espnet_in_blocks_or_not(length):
    """In float64: the gradient of a key bias is zero, and rounding is all that is left of it."""
    att = make("mha").double()
    stock = RelPositionMultiHeadedAttention(N_HEAD, N_FEAT, 0.0).eval().double()
    stock.load_state_dict(att.state_dict(), strict=True)
    mask = torch.arange(length)[None, None] < torch.tensor([length, min(length, 40)])[:, None, None]
    weight = torch.randn(2, length, N_FEAT) * mask.transpose(1, 2)
    inputs = torch.randn(2, length, N_FEAT).double()
    grads = []
    for module in (att, stock):
        x = inputs.clone().requires_grad_()
        (module(x, x, x, positions(length).double(), mask) * weight).sum().backward()
        grads.append({"input": x.grad} | {n: p.grad for n, p in module.named_parameters()})
    for name, grad in grads[1].items():
        assert max_error(grads[0][name], grad) < 1e-9, name


def test_blocks_drop_the_same_weights_in_both_passes():
    """Blocks are computed again in the backward pass; dropout must be drawn alike."""
    att = build_attention("mha", N_HEAD, N_FEAT, 0.5).train()
    x = torch.randn(1, 2 * BLOCK, N_FEAT)
    direction = torch.randn(1, 2 * BLOCK, N_FEAT)

    def loss(scale):
        torch.manual_seed(0)
        value = att.linear_v.weight
        with torch.no_grad():
            value.mul_(scale)
        out = (att(x, x, x, positions(2 * BLOCK), None) * direction).sum()
        with torch.no_grad():
            value.div_(scale)
        return out

    base = loss(1.0)
    base.backward()
    # the output is linear in W_V: its gradient along W_V is the part of the output due to W_V
    with torch.no_grad():
        due = (loss(2.0) - loss(1.0)).item()
    assert (att.linear_v.weight.grad * att.linear_v.weight).sum().item() == pytest.approx(
        due, rel=1e-3
    )


def test_gqa_with_all_heads_equals_mha():
    mha, gqa = make("mha"), make("gqa", n_kv_head=N_HEAD)
    gqa.load_state_dict(mha.state_dict(), strict=True)
    x = torch.randn(2, 40, N_FEAT)
    assert max_error(gqa(x, x, x, positions(40), None), mha(x, x, x, positions(40), None)) < 1e-5


@pytest.mark.parametrize("variant", ["mha_input", "gqa_input", "mla"])
@pytest.mark.parametrize("conf", [{}, {"kv_norm": True, "q_lora_rank": 6}])
def test_absorbed_equals_expanded(variant, conf):
    if conf and variant != "mla":
        pytest.skip("an option of mla alone")
    att = make(variant, **conf)
    x = torch.randn(2, 30, N_FEAT)
    outputs = []
    for absorb in (True, False):
        att._absorb = lambda n, w_k, absorb=absorb: absorb
        outputs.append(stream_attention(att, x, chunk_size=6, left_context=12))
    assert max_error(*outputs) < 1e-5


@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_leaves_an_utterance_as_it_is_alone(variant):
    att = make(variant)
    x = torch.randn(3, 50, N_FEAT)
    lengths = [50, 1, 29]
    mask = torch.arange(50)[None, None] < torch.tensor(lengths)[:, None, None]
    y = att(x, x, x, positions(50), mask)
    for b, n in enumerate(lengths):
        alone = att(*[x[b : b + 1, :n]] * 3, positions(n), None)
        assert max_error(y[b : b + 1, :n], alone) < 1e-5


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_amp_stays_finite_and_close(variant, dtype):
    att = make(variant).train()
    x = torch.randn(2, 50, N_FEAT)
    mask = torch.arange(50)[None, None] < torch.tensor([50, 20])[:, None, None]
    view = ChunkView(positions(50), 8, 0)  # padded queries that see no real key at all
    want = att(x, x, x, view, mask)
    with torch.autocast("cpu", dtype=dtype):
        y = att(x, x, x, view, mask)
    y.float().sum().backward()
    assert max_error(y.float()[1, :20], want[1, :20]) < 0.15
    assert all(torch.isfinite(p.grad).all() for p in att.parameters())


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_is_used(variant):
    """A parameter without a gradient would stop distributed training."""
    att = make(variant).train()
    x = torch.randn(2, 20, N_FEAT)
    att(x, x, x, positions(20), None).square().sum().backward()
    for name, parameter in att.named_parameters():
        assert parameter.grad is not None, name


@settings(max_examples=30, deadline=None)
@given(
    variant=st.sampled_from(SOFTMAX),
    length=st.integers(1, 70),
    chunk=st.integers(1, 20),
    left=st.integers(-1, 40),
)
def test_chunk_mask_hides_what_it_must(variant, length, chunk, left):
    """Changing a frame that the mask hides changes nothing; changing a visible one does."""
    torch.manual_seed(length)
    att = make(variant)
    x = torch.randn(1, length, N_FEAT)
    view = ChunkView(positions(length), chunk, left)
    j = length // 2
    changed = x.clone()
    changed[:, j] += 3.0
    with torch.no_grad():
        moved = (att(x, x, x, view, None) - att(*[changed] * 3, view, None)).abs().amax(-1)[0]
    for i in range(length):
        if visible(i, j, length, chunk, left):
            assert moved[i] > 0
        else:
            assert moved[i] == 0


@pytest.mark.parametrize(
    "name,conf,words",
    [
        ("mah", {}, ["attention", "mha", "mah"]),
        ("mha", {"cache": "keys"}, ["cache", "kv", "keys"]),
        ("mha", {"n_kv_head": 2}, ["attention_conf", "cache", "n_kv_head"]),
        ("gqa", {"n_kv_head": 3}, ["n_kv_head", "divide", "3"]),
        ("gqa", {"n_kv_head": 0}, ["n_kv_head", "at least 1", "0"]),
        ("gqa", {"n_kv_head": True}, ["n_kv_head", "integer", "True"]),
        ("mla", {"kv_lora_rank": 2 * N_FEAT + 1}, ["kv_lora_rank", "64", "65"]),
        ("mla", {"kv_lora_rank": "8"}, ["kv_lora_rank", "integer", "'8'"]),
        ("mla", {"latent_dim": 8}, ["latent_dim", "kv_lora_rank"]),
        ("mla", {"kv_norm": "rms"}, ["kv_norm", "true", "rms"]),
        ("linear", {"feature_map": "relu"}, ["feature_map", "elu", "relu"]),
    ],
)
def test_impossible_options_are_named(name, conf, words):
    with pytest.raises(ValueError) as error:
        build_attention(name, N_HEAD, N_FEAT, 0.0, conf)
    for word in words:
        assert word in str(error.value)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="attention_heads.*32.*5"):
        ATTENTIONS["mha"](5, 32)
