"""With ``attention: mha`` our encoders are ESPnet's: names, outputs, gradients."""

import pytest
import torch
from espnet2.asr.encoder.branchformer_encoder import BranchformerEncoder as StockBranchformer
from espnet2.asr.encoder.conformer_encoder import ConformerEncoder as StockConformer
from espnet2.asr.encoder.e_branchformer_encoder import EBranchformerEncoder as StockEBranchformer

from tiny import ENCODERS, INPUT_SIZE, N_FEAT, N_HEAD, build_encoder, max_error

STOCK = {
    "conformer": StockConformer,
    "branchformer": StockBranchformer,
    "e_branchformer": StockEBranchformer,
}


def pair(encoder, **options):
    ours = build_encoder(encoder, **options)
    stock = STOCK[encoder](
        INPUT_SIZE,
        output_size=N_FEAT,
        attention_heads=N_HEAD,
        num_blocks=2,
        rel_pos_type="latest",
        **(ENCODERS[encoder][1] | options),
    )
    stock.load_state_dict(ours.state_dict(), strict=True)
    return ours, stock


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("frames", [7, 63, 1100])
def test_mha_encoder_equals_stock(encoder, frames):
    ours, stock = (model.eval() for model in pair(encoder))
    feats = torch.randn(3, frames, INPUT_SIZE)
    lengths = torch.tensor([frames, max(7, frames // 2), frames])
    y, olens, _ = ours(feats, lengths)
    want, want_olens, _ = stock(feats, lengths)
    assert olens.tolist() == want_olens.tolist()
    assert max_error(y, want) < 1e-5


@pytest.mark.parametrize("encoder", ENCODERS)
def test_mha_encoder_gradients_equal_stock(encoder):
    ours, stock = (model.eval() for model in pair(encoder))
    feats = torch.randn(2, 100, INPUT_SIZE)
    lengths = torch.tensor([100, 60])
    weight = torch.randn(2, 24, N_FEAT)
    for model in (ours, stock):
        y, olens, _ = model(feats, lengths)
        keep = torch.arange(y.size(1)) < olens[:, None]
        (y * weight * keep[..., None]).sum().backward()
    grads = dict(stock.named_parameters())
    assert grads.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        scale = max(1.0, grads[name].grad.abs().max().item())
        assert max_error(parameter.grad, grads[name].grad) < 1e-5 * scale, name


def test_intermediate_ctc_equals_stock():
    ours, stock = (model.eval() for model in pair("conformer", interctc_layer_idx=[1]))
    feats, lengths = torch.randn(2, 80, INPUT_SIZE), torch.tensor([80, 55])
    (y, inner), _, _ = ours(feats, lengths)
    (want, want_inner), _, _ = stock(feats, lengths)
    assert max_error(y, want) < 1e-5
    assert [i for i, _ in inner] == [i for i, _ in want_inner] == [1]
    assert max_error(inner[0][1], want_inner[0][1]) < 1e-5
