"""Streams with states of their own in one step: each as if alone, and no cache copied."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ext.state import FrameCache
from tiny import ENCODERS, INPUT_SIZE, VARIANTS, build_encoder, forgets

CHUNK = 4


def build(variant="mha", left=-1, encoder="conformer"):
    model = build_encoder(encoder, variant, causal=True, chunk_size=CHUNK, left_context=left)
    return model.eval()


def alone(encoder, feats, **options):
    """The output of a stream that gets all at once."""
    return encoder.forward_chunk(feats, encoder.init_state(**options), is_final=True)[0]


def together(encoder, streams, begins, packet, **options):
    """Outputs of streams that begin in different rounds and get a packet a round."""
    states = [encoder.init_state(**options) for _ in streams]
    given_, outputs, rounds = [0] * len(streams), [[] for _ in streams], 0
    while not all(state.finished for state in states):
        for i, (feats, state) in enumerate(zip(streams, states, strict=True)):
            if rounds >= begins[i] and not state.ended[0]:
                stop = given_[i] + packet
                encoder.take(feats[:, given_[i] : stop], state, stop >= feats.size(1))
                given_[i] = stop
        while due := [i for i, state in enumerate(states) if encoder.ready(state)]:
            for i, y in zip(due, encoder.step_together([states[i] for i in due]), strict=True):
                outputs[i].append(y)
        rounds += 1
    none = torch.zeros(1, 0, encoder.output_size())
    return [torch.cat([none, *ys], dim=1) for ys in outputs], states


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("left", [0, 8, -1])
def test_streams_of_different_ages_are_each_as_if_alone(encoder, variant, left):
    if left >= 0 and not forgets(variant):
        left = -1
    model = build(variant, left, encoder)
    streams = [torch.randn(1, n, INPUT_SIZE) for n in (90, 61, 30)]
    outputs, _ = together(model, streams, begins=(0, 1, 3), packet=23)
    for feats, y in zip(streams, outputs, strict=True):
        want = alone(model, feats)
        assert y.shape == want.shape
        assert torch.allclose(y, want, rtol=0, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_lengths_packets_and_joins(data):
    variant = data.draw(st.sampled_from(["mha", "mla", "linear"]))
    model = build(variant)
    lengths = data.draw(st.lists(st.integers(0, 90), min_size=1, max_size=4))
    begins = data.draw(st.lists(st.integers(0, 4), min_size=4, max_size=4))
    packet = data.draw(st.integers(1, 60))
    streams = [torch.randn(1, n, INPUT_SIZE) for n in lengths]
    outputs, states = together(model, streams, begins, packet)
    for feats, y, state in zip(streams, outputs, states, strict=True):
        want = alone(model, feats)
        assert state.produced == (want.size(1),) and y.shape == want.shape
        assert torch.allclose(y, want, rtol=0, atol=1e-5)


def test_hybrid_stack():
    hybrid = ENCODERS["conformer"][0](
        INPUT_SIZE, output_size=32, attention_heads=4, num_blocks=2, linear_units=32,
        attention=["linear", "mla"], attention_conf={"kv_lora_rank": 8}, causal=True,
        chunk_size=CHUNK, left_context=8,
    ).eval()  # fmt: skip
    streams = [torch.randn(1, n, INPUT_SIZE) for n in (80, 50)]
    outputs, _ = together(hybrid, streams, begins=(0, 2), packet=17)
    for feats, y in zip(streams, outputs, strict=True):
        assert (y - alone(hybrid, feats)).abs().max() < 1e-5


def test_rings_stay_where_they_are():
    model = build(left=8)
    states = [model.init_state() for _ in range(3)]

    def rings():
        return [
            buffer.data_ptr()
            for state in states
            for layer in state.layers
            if isinstance(layer.attention, FrameCache)
            for buffer in layer.attention.buffers.values()
        ]

    before = rings()
    for state in states:
        model.take(torch.randn(1, 40, INPUT_SIZE), state)
    model.step_together(states)
    assert len(before) == 12 and rings() == before


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_stream_pins_no_tensor_of_its_neighbours(variant):
    model = build(variant)
    states = [model.init_state() for _ in range(3)]
    for state in states:
        model.take(torch.randn(1, 40, INPUT_SIZE), state)
    model.step_together(states)
    for state in states:
        for layer in state.layers:
            tensors = [c.past for c in layer.convolution.values()]
            if not isinstance(layer.attention, FrameCache):
                tensors += vars(layer.attention).values()
            for tensor in (*tensors, *state.pending):
                assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_stream_that_fails_costs_the_others_nothing(variant):
    model = build(variant)
    feats = [torch.randn(1, 60, INPUT_SIZE) for _ in range(3)]
    states = [model.init_state() for _ in feats]
    for own, state in zip(feats, states, strict=True):
        model.take(own, state)
    good = model.step_together(states)
    states[1].pending = (states[1].pending[0] * 1e38,)
    before = states[1].clone()
    outputs = model.step_together(states)
    assert outputs[1] is None and states[1].produced == before.produced
    for i in (0, 2):
        want = alone(model, feats[i])[:, : 2 * CHUNK]
        assert (torch.cat([good[i], outputs[i]], dim=1) - want).abs().max() < 1e-5


def test_take_refuses_what_forward_chunk_refuses():
    model = build(left=8)
    state = model.init_state()
    with pytest.raises(ValueError, match="finite"):
        model.take(torch.full((1, 3, INPUT_SIZE), float("nan")), state)
    with pytest.raises(ValueError, match="must be"):
        model.take(torch.zeros(1, 3, INPUT_SIZE + 1), state)
    model.take(torch.zeros(1, 1, INPUT_SIZE), state, is_final=True)
    assert state.finished  # too short for a frame
    with pytest.raises(ValueError, match="ended"):
        model.take(torch.zeros(1, 3, INPUT_SIZE), state)
