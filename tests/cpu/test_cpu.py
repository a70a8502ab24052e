"""The faster modules compute what PyTorch's do, gradients included, and can all be taken out."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from espnet_ext import cpu
from espnet_ext.cpu import subsampling
from espnet_ext.cpu.conv import depthwise_conv1d
from espnet_ext.cpu.dropout import Dropout
from tiny import ENCODERS, INPUT_SIZE, build_encoder, max_error


def modules_of(encoder, **options):
    """Names of the classes in an encoder, and where they are defined."""
    modules = build_encoder(encoder, **options).modules()
    return {f"{type(m).__module__}.{type(m).__qualname__}" for m in modules}


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("causal", [False, True])
def test_switch_takes_everything_out(encoder, causal, cpu_switch):
    found = [name for name in modules_of(encoder, causal=causal) if ".cpu." in name]
    assert bool(found) == (cpu_switch == "cpu on"), found


@pytest.mark.parametrize("encoder", ENCODERS)
def test_switch_changes_neither_first_weights_nor_results(encoder):
    feats, lengths = torch.randn(1, 3000, INPUT_SIZE), torch.tensor([3000])
    models, outputs = [], []
    for on in (True, False):
        cpu.enable(on)
        torch.manual_seed(5)
        models.append(build_encoder(encoder).eval())
        with torch.no_grad():  # long enough for blocks, and for attention head by head
            outputs.append(models[-1](feats, lengths)[0])
    cpu.enable()
    for (name, a), (other, b) in zip(*(m.state_dict().items() for m in models), strict=True):
        assert name == other and torch.equal(a, b), name
    assert max_error(*outputs) < 1e-5


@pytest.mark.parametrize(("value", "on"), [("0", False), ("1", True), (None, True)])
def test_switch_is_set_by_the_environment(value, on):
    env = {k: v for k, v in os.environ.items() if k != "ESPNET_EXT_CPU"}
    script = "from espnet_ext import cpu; print(cpu.enabled())"
    out = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True,
        env=env | ({} if value is None else {"ESPNET_EXT_CPU": value}),
    )  # fmt: skip
    assert out.stdout.strip() == str(on), out.stderr


def gradients(function, x, parameters):
    """Result of a function and the gradients of a random sum of it, reproducibly."""
    x = x.clone().requires_grad_()
    y = function(x)
    torch.manual_seed(1)
    loss = (y * torch.randn(y.shape, dtype=y.dtype)).sum()
    return y, *torch.autograd.grad(loss, [x, *parameters])


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3), st.integers(1, 5), st.integers(1, 40), st.integers(0, 9), st.integers(0, 18)
)
def test_depthwise_convolution_equals_pytorch(batch, channels, frames, half, padding):
    width = 2 * half + 1
    padding = max(min(padding, width - 1), (width - frames + 1) // 2)
    ours = nn.Conv1d(channels, channels, width, groups=channels).double()
    x = torch.randn(batch, channels, frames, dtype=torch.float64)
    both = [
        gradients(run, x, ours.parameters())
        for run in (
            lambda x: depthwise_conv1d(x, ours.weight, ours.bias, padding),
            lambda x: nn.functional.conv1d(x, ours.weight, ours.bias, 1, padding, 1, channels),
        )
    ]
    for got, want in zip(*both, strict=True):
        assert max_error(got, want) < 1e-11


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 4),
    st.tuples(st.integers(1, 2), st.integers(1, 3)),
    st.sampled_from([3, 5]),
    st.integers(12, 30),
    st.integers(12, 20),
    st.integers(1, 50),
)
def test_two_convolutions_equal_pytorch(batch, channels, strides, kernel, frames, mels, patches):
    first = nn.Conv2d(1, channels, 3, strides[0])
    second = nn.Conv2d(channels, channels, kernel, strides[1])
    stack = nn.Sequential(first, nn.ReLU(), second).double()
    x = torch.randn(batch, 1, frames, mels, dtype=torch.float64)
    before = subsampling.PATCHES
    subsampling.PATCHES = patches
    try:
        ours = gradients(
            lambda x: subsampling._two_convolutions(first, second, x), x, stack.parameters()
        )
    finally:
        subsampling.PATCHES = before
    for got, want in zip(ours, gradients(stack, x, stack.parameters()), strict=True):
        assert max_error(got, want) < 1e-11


def test_dropout_drops_its_rate_scales_the_rest_and_passes_gradients_of_the_kept():
    layer = Dropout(0.3)
    x = torch.ones(300, 1001, requires_grad=True)
    torch.manual_seed(3)
    y = layer(x)
    y.sum().backward()
    dropped = (y == 0).double().mean().item()
    assert abs(dropped - 0.3) < 4 * (0.3 * 0.7 / x.numel()) ** 0.5
    kept = y[y != 0]
    assert kept.unique().numel() == 1 and abs(kept[0].item() - 1 / 0.7) < 1e-4
    assert torch.equal(x.grad, y.detach())
    torch.manual_seed(3)
    assert torch.equal(layer(x), y)
    assert not torch.equal(layer(x), y)


def test_dropout_of_nothing_all_and_outside_training():
    x = torch.randn(5, 7)
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert not Dropout(1.0)(x).any()
    assert not Dropout(1 - 2**-20)(x).isnan().any()
