"""Count multiply-adds, and leave out no kind of product."""

import re

import torch
from torch.utils.flop_counter import FlopCounterMode

from espnet_ext.errors import UserError

aten = torch.ops.aten


def _added(_, a_shape, b_shape, *args, **kwargs):
    return 2 * a_shape.numel() * b_shape[-1]


def _vector(a_shape, *args, **kwargs):
    """A matrix, or a vector, times a vector."""
    return 2 * a_shape.numel()


def _added_vector(_, a_shape, *args, **kwargs):
    return 2 * a_shape.numel()


def _outer(*args, out_shape=None, **kwargs):
    return 2 * out_shape.numel()


#: operation -> floating-point operations from its shapes, of those that PyTorch's counter leaves
#: out: products with a vector, and what is added to in place
FORMULAS = {
    aten.addmm_: _added,
    aten._addmm_activation: _added,
    aten.baddbmm_: _added,
    aten.addbmm: _added,
    aten.addbmm_: _added,
    aten.mv: _vector,
    aten.addmv: _added_vector,
    aten.addmv_: _added_vector,
    aten.dot: _vector,
    aten.vdot: _vector,
    aten.addr: _outer,
    aten.addr_: _outer,
}
#: a word of the name of whatever multiplies matrices
PRODUCT = re.compile(
    r"(b?add)?b?m[mv]|addb?m[mv]|v?dot|matmul|einsum|addr|(bi|tri)?linear|conv\w*|attention|lstm|gru|rnn"
)


class ProductCounter(FlopCounterMode):
    """Context that counts the multiply-adds of matrix products and convolutions.

    An operation that is one by its name, or is not PyTorch's own, and has no formula is an error:
    a count that leaves something out looks like any other.
    """

    def __init__(self):
        super().__init__(display=False, custom_mapping=FORMULAS)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds so far."""
        return self.get_total_flops() // 2

    def _count_flops(self, func_packet, out, args, kwargs):
        namespace, _, name = str(func_packet).rpartition(".")
        if func_packet not in self.flop_registry and (
            namespace not in ("aten", "prim", "prims")
            or any(PRODUCT.fullmatch(word) for word in name.split("_"))
        ):
            raise UserError(f"multiply-adds: {func_packet} has no formula in {__name__}")
        return super()._count_flops(func_packet, out, args, kwargs)
