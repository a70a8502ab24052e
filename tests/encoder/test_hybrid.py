"""Stacks whose layers have different attentions."""

import pytest
import torch

from espnet_ext.attention import attention_label
from espnet_ext.evaluate.cache import measure_cache
from espnet_ext.evaluate.models import describe
from espnet_ext.state import FrameCache, RunningSums, StreamState
from tiny import ENCODERS, INPUT_SIZE, N_FEAT, N_HEAD, max_error, randomize

STACKS = {
    "linear-below": (["linear", "linear", "mla"], {"kv_lora_rank": 12}),
    "linear-above": (["gqa", "mha", "linear"], {"n_kv_head": 2, "cache": "input"}),
    "ranks": (["mla", "linear", "mla"], {"kv_lora_rank": [4, 0, 12], "kv_norm": True}),
}


def build(encoder, stack, **options):
    cls, conf = ENCODERS[encoder]
    attention, attention_conf = STACKS[stack]
    model = cls(
        INPUT_SIZE,
        output_size=N_FEAT,
        attention_heads=N_HEAD,
        num_blocks=3,
        causal=True,
        chunk_size=4,
        left_context=8,
        **(conf | {"attention": attention, "attention_conf": attention_conf} | options),
    )
    return randomize(model).eval()


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("stack", STACKS)
def test_streaming_equals_masked_offline(encoder, stack):
    model = build(encoder, stack)
    feats = torch.randn(2, 150, INPUT_SIZE)
    with torch.no_grad():
        want, _, _ = model(feats, torch.tensor([150, 150]))
    states = [model.init_state() for _ in range(2)]
    heads = [model.forward_chunk(feats[b : b + 1, :70], states[b])[0] for b in range(2)]
    y, state = model.forward_chunk(feats[:, 70:], StreamState.stack(states), is_final=True)
    assert max_error(torch.cat([torch.cat(heads), y], dim=1), want) < 1e-5
    assert state.lengths == [want.size(1)] * 2


def test_each_layer_keeps_what_its_attention_keeps():
    model = build("conformer", "ranks")
    _, state = model.forward_chunk(torch.randn(1, 150, INPUT_SIZE), model.init_state())
    kinds = [type(layer.attention) for layer in state.layers]
    assert kinds == [FrameCache, RunningSums, FrameCache]
    d_k = N_FEAT // N_HEAD
    sizes = [layer.attention.nbytes // 4 for layer in state.layers]
    assert sizes == [8 * 4, N_HEAD * (d_k * d_k + d_k), 8 * 12]


def test_profile_counts_a_stack_and_names_it():
    attention, attention_conf = STACKS["linear-below"]
    conf = ENCODERS["conformer"][1] | {
        "output_size": N_FEAT,
        "attention_heads": N_HEAD,
        "num_blocks": 3,
        "attention": attention,
        "attention_conf": attention_conf,
    }
    config = {"encoder": "kv_conformer", "encoder_conf": conf, "input_size": INPUT_SIZE}
    cache = measure_cache(config, 100, 4, [8, -1])
    assert not cache["differences"]
    d_k = N_FEAT // N_HEAD
    assert cache["bytes"] == 4 * (2 * N_HEAD * (d_k * d_k + d_k) + 100 * 12)
    assert [stream["left_context"] for stream in cache["streams"]] == [8, -1]
    assert describe(config, "x.yaml")["attention"] == "linear*2+mla*1"
    assert attention_label("mla") == attention_label(["mla", "mla"]) == "mla"


@pytest.mark.parametrize(
    "options,words",
    [
        ({"attention": ["mla", "linear"]}, ["attention", "each layer", "3"]),
        ({"attention": ["mha", "linear", "mal"]}, ["attention", "mha", "mal"]),
        ({"attention_conf": {"n_kv_head": 2}}, ["n_kv_head", "linear takes", "mla takes"]),
        ({"attention_conf": {"kv_lora_rank": [4, 4]}}, ["kv_lora_rank", "each layer", "3"]),
        ({"attention": []}, ["attention", "each layer"]),
    ],
)
def test_impossible_stacks_are_named(options, words):
    with pytest.raises(ValueError) as error:
        build("conformer", "linear-below", **options)
    for word in words:
        assert word in str(error.value)
