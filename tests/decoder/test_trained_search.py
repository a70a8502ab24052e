"""Decoders trained for a moment, whose searches end by themselves."""

import logging

import pytest
import torch
from espnet2.asr.ctc import CTC
from espnet2.legacy.nets.batch_beam_search import BatchBeamSearch
from espnet2.legacy.nets.pytorch_backend.transformer.embedding import PositionalEncoding
from espnet2.legacy.nets.scorers.ctc import CTCPrefixScorer

from espnet_ext.decoder import TransformerDecoder, use_kv_cache

VOCAB, WIDTH, EOS = 9, 32, 8
LENGTHS = torch.tensor([3, 5, 4, 1])  # tokens


def speech(tokens, lengths, noise=0.3):
    """Encoder output, three frames per token that also tell its place, and its lengths."""
    codes = torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(5))
    places = PositionalEncoding(WIDTH, 0.0).pe[0, : tokens.size(1)]
    frames = (codes[tokens] + 2 * places).repeat_interleave(3, dim=1)
    return frames + noise * torch.randn_like(frames), 3 * lengths


def train(decoder, ctc, n_step=150):
    """Joint CTC and attention training on random token strings; returns the last loss."""
    modules = torch.nn.ModuleList((decoder, ctc)).train()
    optimizer = torch.optim.Adam(modules.parameters(), lr=5e-3)
    lengths = torch.tensor([1, 3, 4, 5] * 6)
    for _ in range(n_step):
        tokens = torch.randint(1, EOS, (24, 5))
        memory, n_frame = speech(tokens, lengths)
        sos = torch.full((24, 1), EOS)
        ys = torch.cat((sos, tokens), dim=1)
        target = torch.cat((tokens, sos), dim=1)
        target[torch.arange(24), lengths] = EOS
        scores, _ = decoder(memory, n_frame, ys, lengths + 1)
        ignored = torch.arange(6) > lengths[:, None]
        attention_loss = torch.nn.functional.cross_entropy(
            scores.transpose(1, 2), target.masked_fill(ignored, -100)
        )
        loss = attention_loss + 0.3 * ctc(memory, n_frame, tokens, lengths) / 5
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    modules.eval()
    return attention_loss.item()


@pytest.mark.parametrize(
    ("attention", "conf"),
    [("mha", {}), ("gqa", {"n_kv_head": 1}), ("mla", {"kv_lora_rank": 12})],
    ids=["mha", "gqa", "mla"],
)
def test_trained_decoder_finds_the_reference_and_the_same_nbest_as_without_cache(attention, conf):
    decoder = TransformerDecoder(
        VOCAB,
        WIDTH,
        attention_heads=4,
        linear_units=48,
        num_blocks=2,
        dropout_rate=0.0,
        positional_dropout_rate=0.0,
        self_attention=attention,
        self_attention_conf=conf,
        src_attention=attention,
        src_attention_conf=conf,
    )
    ctc = CTC(VOCAB, WIDTH)
    assert train(decoder, ctc) < 0.3
    tokens = torch.randint(1, EOS, (4, 5))
    memory, n_frame = speech(tokens, LENGTHS)
    logging.disable(logging.WARNING)
    nbests = []
    for kv_cache in (True, False):
        search = BatchBeamSearch(
            {"decoder": decoder, "ctc": CTCPrefixScorer(ctc, EOS, 100)},
            {"decoder": 0.7, "ctc": 0.3},
            beam_size=4,
            vocab_size=VOCAB,
            sos=EOS,
            eos=EOS,
            pre_beam_score_key="full",
        )
        use_kv_cache(search, kv_cache)
        with torch.no_grad():
            batch = search(memory, x_lengths=n_frame)
            alone = [search(x[:n]) for x, n in zip(memory, n_frame, strict=True)]
        nbests.append([*batch, *alone])
    logging.disable(logging.NOTSET)
    for cached, plain in zip(*nbests, strict=True):
        assert [h.yseq.tolist() for h in cached] == [h.yseq.tolist() for h in plain]
        for a, b in zip(cached, plain, strict=True):
            assert abs(a.score - b.score) < 1e-4
    for nbest, reference, n in zip(nbests[0][:4], tokens, LENGTHS, strict=True):
        assert nbest[0].yseq[1:-1].tolist() == reference[:n].tolist()
