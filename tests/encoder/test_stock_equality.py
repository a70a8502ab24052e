"""With ``attention: mha`` our encoders are ESPnet's: names, outputs, gradients."""

import pytest
import torch
from espnet2.legacy.nets.pytorch_backend.transformer.subsampling import TooShortUttError

from espnet_ext.cpu import layers
from tiny import ENCODERS, INPUT_SIZE, N_FEAT, N_HEAD, build_encoder, max_error, stock


def pair(encoder, **options):
    ours = build_encoder(encoder, **options)
    theirs = stock(encoder)(
        INPUT_SIZE,
        output_size=N_FEAT,
        attention_heads=N_HEAD,
        rel_pos_type="latest",
        **(ENCODERS[encoder][1] | {"num_blocks": 2} | options),
    )
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours, theirs


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("frames", [7, 63, 1100])
def test_mha_encoder_equals_stock(encoder, frames, cpu_switch):
    ours, stock = (model.eval() for model in pair(encoder))
    feats = torch.randn(3, frames, INPUT_SIZE)
    lengths = torch.tensor([frames, max(7, frames // 2), frames])
    y, olens, _ = ours(feats, lengths)
    want, want_olens, _ = stock(feats, lengths)
    assert olens.tolist() == want_olens.tolist()
    assert max_error(y, want) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("input_layer", ["conv2d", "conv2d2", "conv2d6", "conv2d8", "linear"])
def test_recordings_in_blocks_equal_stock(encoder, input_layer):
    """Without gradients the subsampling runs in blocks, and long utterances attend in blocks."""
    ours, stock = (m.eval() for m in pair(encoder, input_layer=input_layer, num_blocks=1))
    for frames in (15, 60, 1403):
        feats = torch.randn(2, frames, INPUT_SIZE)
        lengths = torch.tensor([frames, max(15, frames // 3)])
        y, olens, _ = ours(feats, lengths)
        want, want_olens, _ = stock(feats, lengths)
        assert olens.tolist() == want_olens.tolist()
        assert max_error(y, want) < 1e-5


@torch.no_grad()
def test_a_long_recording_equals_stock():
    ours, stock = (m.eval() for m in pair("conformer", num_blocks=1))
    feats, lengths = torch.randn(1, 12003, INPUT_SIZE), torch.tensor([12003])
    y, olens, _ = ours(feats, lengths)
    assert olens.tolist() == [3000]
    assert max_error(y, stock(feats, lengths)[0]) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("causal", [False, True])
def test_wide_layers_in_blocks_equal_one_piece(encoder, causal, monkeypatch):
    ours = build_encoder(encoder, causal=causal).eval()
    feats, lengths = torch.randn(2, 400, INPUT_SIZE), torch.tensor([400, 211])
    whole = ours(feats, lengths)[0]
    monkeypatch.setattr(layers, "BLOCK_FRAMES", 32)
    assert max_error(ours(feats, lengths)[0], whole) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("encoder", ENCODERS)
def test_memory_bound_changes_nothing_and_an_impossible_one_is_named(encoder):
    ours = build_encoder(encoder).eval()
    bounded = build_encoder(encoder, attention_memory_mb=1).eval()
    bounded.load_state_dict(ours.state_dict(), strict=True)
    feats, lengths = torch.randn(1, 3000, INPUT_SIZE), torch.tensor([3000])
    assert max_error(ours(feats, lengths)[0], bounded(feats, lengths)[0]) < 1e-5
    with pytest.raises(ValueError, match="attention_memory_mb.*at least 1.*0"):
        build_encoder(encoder, attention_memory_mb=0)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_too_short_utterances_are_refused_as_espnet_does(encoder):
    with pytest.raises(TooShortUttError):
        build_encoder(encoder)(torch.randn(1, 6, INPUT_SIZE), torch.tensor([6]))


@pytest.mark.parametrize("encoder", ENCODERS)
def test_mha_encoder_gradients_equal_stock(encoder):
    ours, stock = (model.eval() for model in pair(encoder))
    feats = torch.randn(2, 1100, INPUT_SIZE)
    lengths = torch.tensor([1100, 600])
    weight = torch.randn(2, 274, N_FEAT) / 10
    for model in (ours, stock):
        y, olens, _ = model(feats, lengths)
        keep = torch.arange(y.size(1)) < olens[:, None]
        (y * weight * keep[..., None]).sum().backward()
    grads = dict(stock.named_parameters())
    assert grads.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        scale = max(1.0, grads[name].grad.abs().max().item())
        assert max_error(parameter.grad, grads[name].grad) < 1e-5 * scale, name


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("autocast", [False, True])
def test_training_equals_stock(encoder, autocast, cpu_switch):
    """Values, gradients, and the statistics that a padded batch leaves in the batch norm."""
    still = dict.fromkeys(("dropout_rate", "positional_dropout_rate"), 0.0)
    models = [model.train() for model in pair(encoder, **still)]
    feats, lengths = torch.randn(3, 500, INPUT_SIZE), torch.tensor([500, 420, 70])
    results = []
    for model in models:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = model(feats, lengths)[0]
        (y.float() * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
        grads = {name: p.grad for name, p in model.named_parameters()}
        buffers = {name: b for name, b in model.named_buffers() if "running" in name}
        results.append({"y": y.float()} | grads | buffers)
    ours, stock = results
    assert ours.keys() == stock.keys()
    relative = 0.1 if autocast else 1e-3
    for name in ours:
        # zero but for rounding: these change neither attention weights nor what batch norm returns
        if name.endswith(("linear_k.bias", "conv_module.depthwise_conv.bias")):
            continue
        scale = stock[name].norm().item() + 1e-3
        assert (ours[name] - stock[name]).norm().item() < relative * scale, name


def test_intermediate_ctc_equals_stock():
    ours, stock = (model.eval() for model in pair("conformer", interctc_layer_idx=[1]))
    feats, lengths = torch.randn(2, 80, INPUT_SIZE), torch.tensor([80, 55])
    (y, inner), _, _ = ours(feats, lengths)
    (want, want_inner), _, _ = stock(feats, lengths)
    assert max_error(y, want) < 1e-5
    assert [i for i, _ in inner] == [i for i, _ in want_inner] == [1]
    assert max_error(inner[0][1], want_inner[0][1]) < 1e-5
