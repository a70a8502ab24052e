"""Cached scorers in ESPnet's beam search find ESPnet's own hypotheses."""

import copy
import gc
import logging
import weakref

import pytest
import torch
from espnet2.asr.ctc import CTC
from espnet2.asr.decoder.transformer_decoder import TransformerDecoder as StockDecoder
from espnet2.legacy.nets.batch_beam_search import BatchBeamSearch
from espnet2.legacy.nets.batch_beam_search_online_sim import BatchBeamSearchOnlineSim
from espnet2.legacy.nets.beam_search import BeamSearch
from espnet2.legacy.nets.scorers.ctc import CTCPrefixScorer
from espnet2.legacy.nets.scorers.length_bonus import LengthBonus
from espnet2.lm.transformer_lm import TransformerLM as StockLM

from espnet_ext.decoder import TransformerDecoder, TransformerLM, use_kv_cache
from espnet_ext.decoder.cache import PrefixCache
from espnet_ext.decoder.ctc_prefix import Posteriors, Prefixes

VOCAB, WIDTH, EOS = 50, 16, 49
LENGTHS = (5, 36, 200, 1000)


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable(logging.WARNING)
    with torch.no_grad():
        yield
    logging.disable(logging.NOTSET)


def make_search(
    beam=10, ctc=0.3, lm=0.0, margin=0, pos_enc=None, decoder=None, dtype=torch.float32
):
    """Random, but peaked like trained models: their scores tell hypotheses apart."""
    torch.manual_seed(1)
    decoder = decoder or StockDecoder(
        VOCAB, WIDTH, attention_heads=2, linear_units=32, num_blocks=2, use_flash_attn=False
    )
    ctc_layer = CTC(VOCAB, WIDTH)
    language_model = StockLM(VOCAB, pos_enc, WIDTH, WIDTH, head=2, unit=32, layer=2)
    for parameter in [*decoder.parameters(), *language_model.parameters()]:
        parameter.data.mul_(2)
    ctc_layer.ctc_lo.weight.data.mul_(8)
    ctc_layer.ctc_lo.bias.data[0] += 8
    search = BatchBeamSearch(
        scorers={
            "decoder": decoder,
            "ctc": CTCPrefixScorer(ctc_layer.to(dtype).eval(), EOS, margin),
            "lm": language_model,
            "length_bonus": LengthBonus(VOCAB),
        },
        weights={"decoder": 1 - ctc, "ctc": ctc, "lm": lm, "length_bonus": 0.2},
        beam_size=beam,
        vocab_size=VOCAB,
        sos=EOS,
        eos=EOS,
        pre_beam_score_key=None if ctc == 1.0 else "full",
    )
    return search.to(dtype=dtype).eval()


def assert_same(ours, stock, tolerance=1e-4):
    """Same tokens in the same order; ESPnet's -1e10 for the impossible is left out."""
    ours, stock = ([h for h in nbest if h.score > -1e8] for nbest in (ours, stock))
    assert len(stock) > 0
    assert [h.yseq.tolist() for h in ours] == [h.yseq.tolist() for h in stock]
    for a, b in zip(ours, stock, strict=True):
        assert a.scores.keys() == b.scores.keys()
        for name in b.scores:
            assert abs(a.scores[name] - b.scores[name]) <= tolerance
        assert abs(a.score - b.score) <= tolerance


def pair(**options):
    stock, ours = make_search(**options), make_search(**options)
    use_kv_cache(ours)
    return stock, ours


@pytest.mark.parametrize("beam", [1, 10, 20])
@pytest.mark.parametrize("lm", [0.0, 0.3], ids=["nolm", "lm"])
@pytest.mark.parametrize("ctc", [0.0, 0.3], ids=["att", "joint"])
def test_search_one_utterance_equals_espnet(ctc, lm, beam):
    stock, ours = pair(beam=beam, ctc=ctc, lm=lm, margin=100)
    for n_frame in LENGTHS:
        memory = torch.randn(n_frame, WIDTH)
        ratio = 0.0 if n_frame < 50 else -8.0
        assert_same(ours(memory, maxlenratio=ratio), stock(memory, maxlenratio=ratio))


@pytest.mark.parametrize("beam", [1, 10, 20])
@pytest.mark.parametrize("lm", [0.0, 0.3], ids=["nolm", "lm"])
@pytest.mark.parametrize("ctc", [0.0, 0.3], ids=["att", "joint"])
def test_search_batch_equals_espnet(ctc, lm, beam):
    stock, ours = pair(beam=beam, ctc=ctc, lm=lm, margin=100 if lm else 0)
    lengths = torch.tensor([36, 300, 5, 180])
    memory = torch.randn(4, 300, WIDTH)
    options = {"maxlenratio": -7.0, "x_lengths": lengths}
    for a, b in zip(ours(memory, **options), stock(memory, **options), strict=True):
        assert_same(a, b)


@pytest.mark.parametrize("margin", [0, 20])
def test_search_in_float64_equals_espnet_to_rounding(margin):
    options = {"beam": 5, "lm": 0.3, "margin": margin, "dtype": torch.float64}
    stock, ours = pair(**options)
    memory = torch.randn(2, 400, WIDTH, dtype=torch.float64)
    options = {"maxlenratio": -12.0, "x_lengths": torch.tensor([400, 150])}
    for a, b in zip(ours(memory, **options), stock(memory, **options), strict=True):
        assert_same(a, b, 1e-9)


def test_search_batch_equals_one_by_one():
    _, ours = pair(beam=5, lm=0.3)
    lengths = [30, 8, 55]
    memory = torch.randn(3, 55, WIDTH)
    batch = ours(memory, maxlenratio=-9.0, x_lengths=torch.tensor(lengths))
    for x, n_frame, nbest in zip(memory, lengths, batch, strict=True):
        assert_same(nbest, ours(x[:n_frame], maxlenratio=-9.0))


def test_search_ctc_alone_equals_espnet():
    stock, ours = pair(beam=4, ctc=1.0)
    memory = torch.randn(30, WIDTH)
    assert_same(ours(memory), stock(memory))


def test_search_longer_than_the_first_capacity_equals_espnet():
    stock, ours = pair(beam=3, ctc=0.0, lm=0.3)
    for search in (stock, ours):
        search.scorers["decoder"].output_layer.bias[EOS] = -100.0
    steps = 2 * PrefixCache.TOKENS + 3
    memory = torch.randn(20, WIDTH)
    assert_same(*(s(memory, maxlenratio=-float(steps)) for s in (ours, stock)), 1e-3)


def test_search_with_positions_in_the_language_model_equals_espnet():
    stock, ours = pair(beam=5, lm=0.5, pos_enc="sinusoidal")
    memory = torch.randn(40, WIDTH)
    assert_same(*(s(memory, maxlenratio=-10.0) for s in (ours, stock)))


def test_search_with_primer_and_hidden_states_equals_espnet():
    stock, ours = pair(beam=4, lm=0.3)
    memory = torch.randn(40, WIDTH)
    for search in (stock, ours):
        search.set_hyp_primer([EOS, 7, 3, 11])
        search.return_hs = True
    a, b = (s(memory, maxlenratio=-8.0) for s in (ours, stock))
    assert_same(a, b)
    torch.testing.assert_close(torch.stack(a[0].hs), torch.stack(b[0].hs), atol=1e-4, rtol=0)


def test_search_state_is_freed_while_the_nbest_list_is_kept(monkeypatch):
    _, ours = pair(beam=5, lm=0.3)
    alive = []
    for cls in (PrefixCache, Posteriors, Prefixes):

        def tracked(self, *inputs, _init=cls.__init__, **options):
            alive.append(weakref.ref(self))
            _init(self, *inputs, **options)

        monkeypatch.setattr(cls, "__init__", tracked)
    gc.disable()  # freed at once, not at the next collection
    try:
        one = ours(torch.randn(30, WIDTH))
        several = ours(torch.randn(2, 30, WIDTH), x_lengths=torch.tensor([30, 12]))
        assert len(alive) > 20
        assert [ref() for ref in alive if ref() is not None] == []
    finally:
        gc.enable()
    assert len(one) > 0 and all(len(nbest) > 0 for nbest in several)


def test_search_keeps_one_memory_for_all_hypotheses():
    _, ours = pair(beam=20, ctc=0.0)
    decoder = ours.scorers["decoder"]
    calls = []
    for layer in decoder.decoders:
        layer.src_attn.linear_k.register_forward_hook(lambda m, x, y: calls.append(x[0].shape))
    ours(torch.randn(30, WIDTH), maxlenratio=-6.0)
    assert calls == [(1, 30, WIDTH)] * len(decoder.decoders)


def test_switch_names_what_caches_and_can_be_left_out():
    search = make_search(lm=0.3)
    assert use_kv_cache(search, kv_cache=False) == []
    assert type(search.scorers["decoder"]) is StockDecoder
    assert use_kv_cache(search, ctc_prefix="espnet") == ["decoder", "lm"]
    assert type(search.scorers["ctc"]) is CTCPrefixScorer
    assert type(search.scorers["lm"]) is TransformerLM
    assert use_kv_cache(search) == use_kv_cache(search) == ["decoder", "ctc", "lm"]
    with pytest.raises(ValueError, match="ctc_prefix.*'quick'"):
        use_kv_cache(search, ctc_prefix="quick")


@pytest.mark.parametrize("kind", [BeamSearch, BatchBeamSearchOnlineSim])
def test_switch_leaves_other_searches_as_they_are(kind):
    search = make_search(lm=0.3)
    search.__class__ = kind
    assert use_kv_cache(search) == []
    assert type(search.scorers["ctc"]) is CTCPrefixScorer


@pytest.mark.parametrize("conf", [("gqa", {"n_kv_head": 1}), ("mla", {"kv_lora_rank": 6})])
def test_search_of_other_attentions_equals_the_same_without_a_cache(conf):
    name, options = conf
    torch.manual_seed(2)
    decoder = TransformerDecoder(
        VOCAB,
        WIDTH,
        attention_heads=2,
        linear_units=32,
        num_blocks=2,
        self_attention=name,
        self_attention_conf=options,
        src_attention=name,
        src_attention_conf=options,
    )
    plain, cached = make_search(decoder=copy.deepcopy(decoder)), make_search(decoder=decoder)
    use_kv_cache(plain, kv_cache=False)
    use_kv_cache(cached)
    memory = torch.randn(3, 60, WIDTH)
    options = {"maxlenratio": -9.0, "x_lengths": torch.tensor([60, 7, 33])}
    for a, b in zip(cached(memory, **options), plain(memory, **options), strict=True):
        assert_same(a, b)
