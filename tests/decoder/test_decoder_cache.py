"""The decoder and the language model: one token at a time from the cache equals all at once."""

import copy
import itertools
import pickle

import pytest
import torch
from espnet2.asr.decoder.transformer_decoder import TransformerDecoder as StockDecoder
from espnet2.lm.transformer_lm import TransformerLM as StockLM

from espnet_ext.attention import registry
from espnet_ext.decoder import TransformerDecoder, TransformerLM

VOCAB, WIDTH, HEADS = 23, 24, 4
CONF = {"mla": {"kv_lora_rank": 10}}
ATTENTIONS = {
    name: (name, CONF.get(name, {}))
    for name, variant in registry.ATTENTIONS.items()
    if variant.has_decoder_form
} | {
    "gqa2": ("gqa", {"n_kv_head": 2}),
    "mha-input": ("mha", {"cache": "input"}),
    "mla-norm-q": ("mla", {"kv_lora_rank": 6, "q_lora_rank": 5, "kv_norm": True}),
}
SIZES = {"attention_heads": HEADS, "linear_units": 32, "num_blocks": 2, "use_flash_attn": False}


def make_decoder(own="mha", source="mha", **options):
    """A decoder whose parameters all matter: biases and norms are random as well."""
    decoder = TransformerDecoder(
        VOCAB,
        WIDTH,
        self_attention=ATTENTIONS[own][0],
        self_attention_conf=ATTENTIONS[own][1],
        src_attention=ATTENTIONS[source][0],
        src_attention_conf=ATTENTIONS[source][1],
        **SIZES,
        **options,
    )
    for parameter in decoder.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return decoder.eval()


def whole(decoder, memory, lengths, ys):
    """Log-probabilities after each token (N, L, V), by the forward pass that training runs."""
    scores, _ = decoder(memory, lengths, ys, torch.full((len(ys),), ys.size(1)))
    return scores.log_softmax(-1).detach()


def steps(decoder, memory, lengths, ys):
    """The same from the cache; utterance u has len(ys) / len(memory) hypotheses."""
    n_beam = len(ys) // len(memory)
    states = [decoder.batch_init_state(memory, lengths)] * len(ys)
    xs = memory.repeat_interleave(n_beam, dim=0)
    scores = []
    for end in range(1, ys.size(1) + 1):
        score, states = decoder.batch_score(ys[:, :end], states, xs)
        scores.append(score)
    return torch.stack(scores, dim=1)


@pytest.mark.parametrize(
    ("own", "source"),
    [
        pair
        for pair in itertools.product(ATTENTIONS, ATTENTIONS)
        if "mha" in pair or pair[0] == pair[1]
    ],
)
def test_decoder_steps_equal_training_forward(own, source):
    decoder = make_decoder(own, source)
    memory, lengths = torch.randn(2, 17, WIDTH), torch.tensor([17, 4])
    ys = torch.randint(VOCAB, (6, 9))
    expected = whole(decoder, memory.repeat_interleave(3, 0), lengths.repeat_interleave(3), ys)
    actual = steps(decoder, memory, lengths, ys)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "options",
    [
        {"normalize_before": False},
        {"concat_after": True},
        {"qk_norm": True},
        {"use_output_layer": True, "use_sdpa": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("own", ["mha", "gqa2"])
def test_decoder_options_of_espnet_are_kept(own, options):
    decoder = make_decoder(own, own, **options)
    memory, lengths = torch.randn(1, 11, WIDTH), torch.tensor([11])
    ys = torch.randint(VOCAB, (3, 6))
    expected = whole(decoder, memory.expand(3, -1, -1), lengths.expand(3), ys)
    torch.testing.assert_close(steps(decoder, memory, lengths, ys), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_decoder_is_copied_and_pickled(name):
    """The class of a variant in a decoder is made when it is needed."""
    decoder = make_decoder(name, name)
    memory, lengths = torch.randn(1, 11, WIDTH), torch.tensor([11])
    ys = torch.randint(VOCAB, (3, 6))
    expected = steps(decoder, memory, lengths, ys)
    for other in (copy.deepcopy(decoder), pickle.loads(pickle.dumps(decoder))):
        assert torch.equal(steps(other, memory, lengths, ys), expected)


def test_decoder_mha_is_espnets_decoder():
    torch.manual_seed(3)
    stock = StockDecoder(VOCAB, WIDTH, **SIZES)
    torch.manual_seed(3)
    ours = TransformerDecoder(VOCAB, WIDTH, **SIZES)
    assert list(ours.state_dict()) == list(stock.state_dict())
    for a, b in zip(ours.state_dict().values(), stock.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    ours.load_state_dict(stock.state_dict())


@pytest.mark.parametrize("name", ATTENTIONS)
def test_decoder_trains_every_parameter(name):
    decoder = make_decoder(name, name).train()
    scores, _ = decoder(
        torch.randn(2, 9, WIDTH),
        torch.tensor([9, 5]),
        torch.randint(VOCAB, (2, 6)),
        torch.tensor([6, 3]),
    )
    scores.square().sum().backward()
    # a key bias is invisible to softmax: its gradient is nothing but rounding
    assert [
        n
        for n, p in decoder.named_parameters()
        if p.grad is None or not (p.grad.abs().max() > 0 or n.endswith("linear_k.bias"))
    ] == []


@pytest.mark.parametrize("name", ATTENTIONS)
def test_decoder_scores_depend_on_prefix_and_memory_only(name):
    """Going back to states already used, reordered and repeated, with a memory that has grown."""
    decoder = make_decoder(name, name)
    memory = torch.randn(19, WIDTH)
    ys = torch.randint(VOCAB, (4, 7))
    state = decoder.batch_init_state(memory[:12])
    _, old = decoder.batch_score(ys[:, :4], [state] * 4, memory[:12].expand(4, -1, -1))
    decoder.batch_score(ys[:, :5], old, memory[:12].expand(4, -1, -1))
    rows = [2, 0, 0]
    for n_frame in (12, 19):
        expanded = memory[:n_frame].expand(3, -1, -1)
        again, _ = decoder.batch_score(ys[rows, :5], [old[i] for i in rows], expanded)
        expected = whole(decoder, expanded, torch.full((3,), n_frame), ys[rows, :5])
        torch.testing.assert_close(again, expected[:, -1], atol=1e-5, rtol=0)


def test_decoder_without_init_state_scores_each_row_with_its_own_memory():
    decoder = make_decoder("gqa2", "mla")
    memory, lengths = torch.randn(3, 8, WIDTH), torch.tensor([8, 3, 6])
    ys = torch.randint(VOCAB, (3, 4))
    mask = (torch.arange(8) < lengths[:, None])[:, None]
    scores, _ = decoder.batch_score(ys, [None] * 3, memory, xs_mask=mask)
    expected = whole(decoder, memory, lengths, ys)
    torch.testing.assert_close(scores, expected[:, -1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "own", "source"),
    [("mha", 2 * 24, 2 * 24), ("gqa2", 2 * 12, 2 * 12), ("gqa", 2 * 6, 2 * 6), ("mla", 10, 10)],
)
def test_ledger_counts_the_tensors_of_a_search(name, own, source):
    ledger = make_decoder(name, name).ledger(n_frames=50, n_tokens=7, n_hyp=3)
    layers, bytes_per_value = 2, 4
    assert ledger == {
        "self_attention": layers * 7 * 3 * own * bytes_per_value,
        "src_attention": layers * 50 * source * bytes_per_value,
    }


@pytest.mark.parametrize("pos_enc", [None, "sinusoidal"])
def test_language_model_steps_equal_espnet(pos_enc):
    stock = StockLM(VOCAB, pos_enc, 8, 16, head=2, unit=32, layer=3).eval()
    ours = copy.deepcopy(stock)
    TransformerLM.adopt(ours)
    assert list(ours.state_dict()) == list(stock.state_dict())
    ys = torch.randint(VOCAB, (5, 12))
    ys[1, 3:6] = 0  # ESPnet hides id 0 from the attention
    ys[:, 0] = VOCAB - 1
    old, states = [None] * 5, [None] * 5
    with torch.no_grad():
        for end in range(1, 13):
            expected, old = stock.batch_score(ys[:, :end], old, None)
            previous = states
            actual, states = ours.batch_score(ys[:, :end], states, None)
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
            order = torch.randint(5, (5,)).tolist()
            ys, old, states = ys[order], [old[i] for i in order], [states[i] for i in order]
        again, _ = ours.batch_score(ys, [previous[i] for i in range(5)], None)
        fresh, _ = ours.batch_score(ys, [None] * 5, None)
    torch.testing.assert_close(again, fresh, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"self_attention": "flash"}, "self_attention: must be one of mha, gqa, mla, got 'flash'"),
        ({"src_attention": "linear"}, "src_attention: linear has no decoder form, use one of mha"),
        (
            {"src_attention": "gqa", "src_attention_conf": {"n_kv_head": 3}},
            "src_attention_conf: n_kv_head: must divide attention_heads 4, got 3",
        ),
        (
            {"self_attention": "mla", "self_attention_conf": {"kv_lora_rank": 49}},
            "self_attention_conf: kv_lora_rank: must be at most .* 48, got 49",
        ),
        (
            {"self_attention": "mla", "self_attention_conf": {"kv_lora_rank": 0}},
            "self_attention_conf: kv_lora_rank: must be an integer of at least 1, got 0",
        ),
        (
            {"self_attention": "mla", "self_attention_conf": {"latent_dim": 8}},
            "self_attention_conf: use kv_lora_rank in place of latent_dim",
        ),
        (
            {"self_attention_conf": {"n_kv_head": 2}},
            "self_attention_conf: mha takes cache, got n_kv_head",
        ),
        (
            {
                "self_attention": "mla",
                "self_attention_conf": {"kv_lora_rank": 8},
                "qk_norm": True,
            },
            "qk_norm: must be false with self_attention mla",
        ),
    ],
)
def test_decoder_refuses_impossible_options(options, message):
    with pytest.raises(ValueError, match=message):
        TransformerDecoder(VOCAB, WIDTH, **SIZES, **options)
