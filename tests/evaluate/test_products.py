"""Multiply-adds against formulas, for every kind of product and across the kernels' switches."""

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from espnet_ext.attention.blocked import CPU_BLOCK_QUERIES as BLOCK
from espnet_ext.errors import UserError
from espnet_ext.evaluate.products import ProductCounter
from tiny import INPUT_SIZE, N_FEAT, VARIANTS, build_encoder


def counted(function):
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), ProductCounter() as counter:
        function()
    return counter.multiply_adds


a, b, v, w = torch.ones(3, 4), torch.ones(4, 5), torch.ones(4), torch.ones(3)
x, y = torch.ones(2, 3, 4), torch.ones(2, 4, 5)


class InPlace(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y):
        return torch.zeros(3, 5).addmm_(x, y)


PRODUCTS = {
    "mm": (lambda: a @ b, 60),
    "mm out": (lambda: torch.mm(a, b, out=torch.empty(3, 5)), 60),
    "addmm": (lambda: torch.addmm(torch.zeros(3, 5), a, b), 60),
    "addmm_": (lambda: torch.zeros(3, 5).addmm_(a, b), 60),
    "bmm": (lambda: x @ y, 120),
    "baddbmm": (lambda: torch.baddbmm(torch.zeros(2, 3, 5), x, y), 120),
    "baddbmm_": (lambda: torch.zeros(2, 3, 5).baddbmm_(x, y), 120),
    "addbmm": (lambda: torch.addbmm(torch.zeros(3, 5), x, y), 120),
    "addbmm_": (lambda: torch.zeros(3, 5).addbmm_(x, y), 120),
    "mv": (lambda: a @ v, 12),
    "addmv": (lambda: torch.addmv(torch.zeros(3), a, v), 12),
    "addmv_": (lambda: torch.zeros(3).addmv_(a, v), 12),
    "dot": (lambda: v @ v, 4),
    "vdot": (lambda: torch.vdot(v, v), 4),
    "addr": (lambda: torch.addr(torch.zeros(3, 4), w, v), 12),
    "addr_": (lambda: torch.zeros(3, 4).addr_(w, v), 12),
    "einsum": (lambda: torch.einsum("bij,bjk->ik", x, y), 120),
    "tensordot": (lambda: torch.tensordot(x, y, dims=([2], [1])), 240),
    "linear": (lambda: F.linear(x, b.T, torch.ones(5)), 120),
    "convolution": (lambda: F.conv1d(torch.ones(1, 4, 7), torch.ones(6, 4, 3)), 5 * 6 * 12),
    "attention": (lambda: F.scaled_dot_product_attention(x, x, x), 2 * 2 * 3 * 3 * 4),
    "autograd function": (lambda: InPlace.apply(a, b), 60),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_every_form_of_product_is_counted(name):
    function, expected = PRODUCTS[name]
    assert counted(function) == expected


def test_product_without_a_formula_is_an_error_not_zero():
    with pytest.raises(UserError, match="has no formula"):
        counted(lambda: F.bilinear(a, a, torch.ones(2, 4, 4)))


@pytest.mark.parametrize("length", [100, 399, 400, 700])
@pytest.mark.parametrize("variant", ["mha", "gqa", "mla"])
def test_attention_is_counted_by_its_formula_at_any_length(variant, length):
    """From 400 keys on a CPU attends head by head, with ``addmm_``."""
    attention = build_encoder("conformer", variant, num_blocks=1).encoders[0].self_attn
    inputs, positions = torch.ones(1, length, N_FEAT), torch.ones(1, 2 * length - 1, N_FEAT)
    projections = [m for m in attention.modules() if isinstance(m, torch.nn.Linear)]
    weights = sum(m.weight.numel() for m in projections if m is not attention.linear_pos)
    sizes = [min(BLOCK, length - start) for start in range(0, length, BLOCK)]
    expected = length * weights + (2 * length - 1) * N_FEAT**2
    # content, values, and positions from the last query's first key to the first query's last
    expected += sum(n * (2 * length + length + n - 1) * N_FEAT for n in sizes)
    assert counted(lambda: attention(inputs, inputs, inputs, positions, None)) == expected


@pytest.mark.parametrize(
    ("encoder", "variant"),
    [*(("conformer", v) for v in VARIANTS), ("branchformer", "mha"), ("e_branchformer", "mha")],
)
def test_encoder_s_count_has_no_step_where_a_kernel_switches(encoder, variant):
    model = build_encoder(encoder, variant, num_blocks=1)

    def count(frames):
        feats = torch.ones(1, 4 * frames + 3, INPUT_SIZE)
        return counted(lambda: model(feats, torch.tensor([feats.size(1)])))

    # as many blocks each, so the count is a polynomial of degree two across the 400
    first, second, third, fourth = (count(frames) for frames in (394, 398, 402, 406))
    assert third - 2 * second + first == fourth - 2 * third + second >= 0
    assert second > first
