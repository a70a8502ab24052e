"""A step happens or does not; streams of any age share one; states are what they say."""

import copy
import gc
import itertools
import pickle
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from espnet_ext.state import VERSION, StreamState
from tiny import ENCODERS, INPUT_SIZE, VARIANTS, build_encoder, max_error

pytestmark = pytest.mark.filterwarnings("ignore:left_context")

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int8]
NOTHING = torch.zeros(1, 0, INPUT_SIZE)


def encoder(name="conformer", variant="mha", chunk=4, left=8, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = build_encoder(name, variant, causal=True, chunk_size=chunk, **options)
        model.left_context = left
    return model.eval()


class Failure(BaseException):
    """Something that may come at any time, as an interrupt or a full memory does."""


def fail(*_):
    raise Failure


class Stream:
    """A stream of a batch, and the same stream alone."""

    def __init__(self, model, age, dtype=None):
        feats = torch.randn(1, age, INPUT_SIZE)
        self.model, self.ended, self.got, self.want = model, False, [], []
        _, self.alone = model.forward_chunk(feats, model.init_state(dtype=dtype))
        _, self.state = model.forward_chunk(feats, model.init_state(dtype=dtype))

    def feed(self, feats, got, is_final=False):
        y, self.alone = self.model.forward_chunk(feats[None], self.alone, is_final)
        self.want.append(y[0])
        self.got.append(got)

    def error(self):
        return max_error(torch.cat(self.got), torch.cat(self.want)) if self.got else 0.0


def feed(model, batch, streams, feats, lengths, is_final=False):
    before = batch.lengths
    y, batch = model.forward_chunk(feats, batch, is_final, lengths)
    for b, stream in enumerate(streams):
        new = y[b, : batch.lengths[b] - before[b]]
        stream.feed(feats[b, : lengths[b]], new, is_final)
        stream.ended |= lengths[b] < feats.size(1)
        if not stream.ended:  # also call by call
            assert stream.got[-1].shape == stream.want[-1].shape
    return batch


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(list(ENCODERS)),
    variant=st.sampled_from(list(VARIANTS)),
    dtype=st.sampled_from(DTYPES),
    chunk=st.integers(1, 6),
    left=st.sampled_from([-1, 0, 3, 8, 20]),
    ages=st.lists(st.integers(0, 120), min_size=1, max_size=4),
    events=st.lists(
        st.tuples(st.sampled_from(["packet", "join", "leave", "end", "fail"]), st.integers(0, 70)),
        min_size=1,
        max_size=7,
    ),
)
def test_streams_that_join_end_and_fail_equal_themselves_alone(
    name, variant, dtype, chunk, left, ages, events
):
    torch.manual_seed(len(ages) + 10 * len(events))
    model = encoder(name, variant, chunk, left)
    streams = [Stream(model, age, dtype) for age in ages]
    batch, done = StreamState.stack([stream.state for stream in streams]), []
    for what, size in events:
        if what == "join":
            streams.append(Stream(model, size, dtype))
            batch = StreamState.stack([batch, streams[-1].state])
        elif what == "leave" and len(streams) > 1:
            states = batch.unstack()
            done.append((streams.pop(size % len(states)), states.pop(size % len(states))))
            batch = StreamState.stack(states)
        else:
            feats = torch.randn(len(streams), size, INPUT_SIZE)
            lengths = [0 if stream.ended else size for stream in streams]
            if what == "end":
                last = size % len(streams)
                lengths[last] = min(lengths[last], size // 2)
            if what == "fail":
                before = batch.clone()
                hook = model.encoders[-1].register_forward_pre_hook(fail)
                norm = model.encoders[-1].norm_mha.register_forward_pre_hook(fail)
                try:
                    model.forward_chunk(feats, batch, lengths=lengths)
                    batch = before  # no chunk was full
                except Failure:
                    if batch.broken:
                        with pytest.raises(ValueError, match="failed half-way"):
                            model.forward_chunk(feats, batch, lengths=lengths)
                        batch = before
                hook.remove(), norm.remove()
            batch = feed(model, batch, streams, feats, lengths)
    for stream, state in [*done, *zip(streams, batch.unstack(), strict=True)]:
        feed(model, state, [stream], NOTHING, [0], is_final=True)
        # in low precision a rounding apart can become a step of the cache's own grid
        assert stream.error() < {torch.float32: 1e-5, torch.int8: 5e-2}.get(dtype, 2e-2)


def through(model, state, feats):
    """Output of a packet and of what follows at the end."""
    first, state = model.forward_chunk(feats, state)
    rest, _ = model.forward_chunk(NOTHING.expand(len(feats), -1, -1), state, is_final=True)
    return torch.cat([first, rest], dim=1)


def all_tensors(obj):
    """Every tensor of a state, by its place."""
    if isinstance(obj, torch.Tensor):
        return [obj]
    if isinstance(obj, dict):
        return [t for value in obj.values() for t in all_tensors(value)]
    if isinstance(obj, (list, tuple)):
        return [t for value in obj for t in all_tensors(value)]
    return all_tensors(vars(obj)) if hasattr(obj, "__dataclass_fields__") else []


# a step that fails


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_step_that_fails_has_not_happened(name, variant):
    model = encoder(name, variant)
    feats = torch.randn(1, 200, INPUT_SIZE)
    _, state = model.forward_chunk(feats[:, :100], model.init_state())
    want = through(model, state.clone(), feats[:, 100:116])
    before = state.ledger(), state.lengths
    hook = model.after_norm.register_forward_pre_hook(fail)  # after the last layer
    for _ in range(3):
        with pytest.raises(Failure):
            model.forward_chunk(feats[:, 100:116], state)
    hook.remove()
    assert (state.ledger(), state.lengths) == before and not state.broken
    assert max_error(through(model, state, feats[:, 100:116]), want) == 0


def test_packet_that_fails_in_a_later_chunk_marks_the_state():
    model = encoder()
    feats = torch.randn(1, 200, INPUT_SIZE)
    _, state = model.forward_chunk(feats[:, :100], model.init_state())
    chunks = itertools.count()
    hook = model.after_norm.register_forward_pre_hook(lambda *_: fail() if next(chunks) else None)
    with pytest.raises(Failure):
        model.forward_chunk(feats[:, 100:], state)
    hook.remove()
    with pytest.raises(ValueError, match="failed"):
        model.forward_chunk(feats[:, 100:], state)
    with pytest.raises(ValueError, match="failed"):
        StreamState.stack([state])


# positions


def streamed(model, feats, **options):
    return through(model, model.init_state(**options), feats)


def test_streams_share_one_table_and_no_module_keeps_it():
    model = encoder(left=8)

    def kept():
        members = [value for module in model.modules() for value in vars(module).values()]
        return sum(t.numel() for t in all_tensors(members))

    before = kept()
    states = [model.init_state() for _ in range(3)]
    _, states[0] = model.forward_chunk(torch.randn(1, 300, INPUT_SIZE), states[0])
    states.append(model.init_state(left_context=100))  # sees more: all move to the larger table
    assert len({id(state.positions) for state in states}) == 1
    table = states[0].positions.nbytes
    assert all(state.ledger()["positions"] == table > 0 for state in states)
    assert all(sum(s.ledger().values()) == s.nbytes + table for s in states)
    assert kept() == before


def test_table_is_gone_with_its_last_stream():
    model = encoder()
    first = model.init_state()
    table = weakref.ref(first.positions)
    second = model.init_state()
    del first
    assert table() is second.positions
    del second
    gc.collect()
    assert table() is None


def test_model_is_copied_averaged_pickled_and_spawned_while_it_streams():
    model = encoder()
    feats = torch.randn(1, 80, INPUT_SIZE)
    want = streamed(model, feats)
    state = model.init_state()
    for other in (
        copy.deepcopy(model),
        torch.optim.swa_utils.AveragedModel(model).module,
        pickle.loads(pickle.dumps(model)),
    ):
        assert max_error(streamed(other.eval(), feats), want) == 0
        assert max_error(through(other, state.clone(), feats), want) == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_changed_weights_are_met_by_new_positions(variant):
    model, other = encoder("branchformer", variant), encoder("branchformer", variant)
    feats = torch.randn(1, 80, INPUT_SIZE)
    living = model.init_state()
    for ours, theirs in zip(model.parameters(), other.parameters(), strict=True):
        ours.data.copy_(theirs)  # what an optimizer or a moving average does; no version changes
    assert max_error(streamed(model, feats), streamed(other, feats)) == 0
    if hasattr(model.attentions[0], "linear_pos"):
        assert living.positions is not model.init_state().positions


def half_precision():
    return torch.autocast("cpu", torch.bfloat16)


@pytest.mark.parametrize("mode", [half_precision, torch.inference_mode])
def test_mode_of_the_first_stream_does_not_reach_the_next(mode):
    model = encoder()
    feats = torch.randn(1, 80, INPUT_SIZE)
    want = streamed(copy.deepcopy(model), feats)
    with mode():
        living = model.init_state()
        model.forward_chunk(feats, living)
    assert max_error(streamed(model, feats), want) == 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_encoder_and_state_of_inference_mode_work_outside(variant):
    with torch.inference_mode():
        model = encoder(variant=variant)
        feats = torch.randn(1, 80, INPUT_SIZE)
        want = streamed(model, feats)
        state = model.init_state()
        _, state = model.forward_chunk(feats[:, :33], state)
        copied = state.clone()
    feats = feats.clone()
    for half in (state, copied, copied.select([0]), StreamState.stack([copied])):
        got = through(model, half.clone(), feats[:, 33:])
        assert max_error(got, want[:, -got.size(1) :]) < 1e-6


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_dynamically_quantised_model_streams(name, variant):
    model = encoder(name, variant)
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    feats = torch.randn(1, 200, INPUT_SIZE)
    want = streamed(model, feats)
    assert max_error(streamed(quantised, feats), want) < 0.2 * want.abs().max()


def test_threads_share_a_model():
    model = encoder(left=-1)
    feats = torch.randn(4, 400, INPUT_SIZE)
    want = [streamed(copy.deepcopy(model), row[None]) for row in feats]
    with ThreadPoolExecutor(4) as pool:  # each makes or enlarges the table
        for _ in range(5):
            got = list(pool.map(lambda row: streamed(model, row[None]), feats))
            assert all(max_error(a, b) < 1e-6 for a, b in zip(got, want, strict=True))


# sums kept between steps


@pytest.mark.filterwarnings("ignore:.*quantization")
@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_streams_for_minutes(name, variant, dtype):
    """Two minutes, linear attention's sums for five: in float16 they would be past 65504."""
    model = encoder(name, variant, chunk=50, left=25, num_blocks=1)
    if variant == "linear":  # as a trained model's: sums grow by 90 a frame
        nn.init.constant_(model.attentions[0].linear_k.bias, 2.0)
        nn.init.constant_(model.attentions[0].linear_v.bias, 30.0)
    state, full = model.init_state(), model.init_state()
    minutes = 5 if variant == "linear" else 2
    with torch.autocast("cpu", dtype):
        for _ in range(minutes * 10):  # 6 seconds of 150 frames
            feats = torch.randn(1, 600, INPUT_SIZE)
            y, state = model.forward_chunk(feats, state)
            assert torch.isfinite(y).all()
            with torch.autocast("cpu", enabled=False):
                want, full = model.forward_chunk(feats, full)
    assert max_error(y.float(), want) < 0.15 * want.abs().max()


# states


def test_to_copies_on_the_same_device():
    model = encoder()
    _, state = model.forward_chunk(torch.randn(1, 50, INPUT_SIZE), model.init_state())
    for new in (state.to("cpu"), state.to(), state.clone(), state.select([0]), state.unstack()[0]):
        ours = {t.data_ptr() for t in all_tensors(state) if t.numel()}
        assert not ours & {t.data_ptr() for t in all_tensors(new) if t.numel()}


@pytest.mark.parametrize(
    "lengths",
    [[3], [3, 3, 3], [-1, 3], [3, 8], [2.5, 3], [True, 3], ["3", 3], 3, [[3, 3]], [None, 3]],
)
def test_lengths_are_one_integer_per_stream(lengths):
    model = encoder()
    state = model.init_state(2)
    with pytest.raises(ValueError, match=r"lengths: must be 2 integers of 0\.\.7"):
        model.forward_chunk(torch.randn(2, 7, INPUT_SIZE), state, lengths=lengths)
    y, _ = model.forward_chunk(torch.randn(2, 7, INPUT_SIZE), state, lengths=torch.tensor([7, 7]))
    assert y.size(1) == 0


def test_stream_that_has_ended_stays_ended():
    model = encoder()
    state, feats = model.init_state(2), torch.randn(2, 40, INPUT_SIZE)
    _, state = model.forward_chunk(feats, state, lengths=[40, 12])
    for lengths in ([40, 1], [40, 40], None):
        with pytest.raises(ValueError, match="stream 1 has ended"):
            model.forward_chunk(feats, state, lengths=lengths)
    _, state = model.forward_chunk(feats, state, lengths=[40, 0], is_final=True)
    assert state.lengths == [model.output_length(80), model.output_length(12)]
    with pytest.raises(ValueError, match="ended"):
        model.forward_chunk(feats, state)


def test_state_of_another_model_is_refused():
    model, state = encoder(), encoder().init_state()
    feats = torch.randn(1, 40, INPUT_SIZE)
    for stranger in (
        state,
        encoder(variant="mla").init_state(),
        encoder("branchformer").init_state(),
        encoder(num_blocks=1).init_state(),
        None,
    ):
        with pytest.raises(ValueError, match="state: "):
            model.forward_chunk(feats, stranger)


def test_model_that_changed_its_dtype_is_refused():
    model, feats = encoder(), torch.randn(1, 40, INPUT_SIZE)
    state = model.init_state()
    model.double()
    with pytest.raises(ValueError, match="begun in dtype torch.float32.*float64"):
        model.forward_chunk(feats, state)
    assert streamed(model, feats.double()).dtype == torch.float64


@pytest.mark.parametrize(
    "feats,words",
    [
        (np.zeros((1, 40, INPUT_SIZE), np.float32), "feats: must be a tensor, got ndarray"),
        (torch.zeros(1, 40, INPUT_SIZE, dtype=torch.int64), "floating-point.*int64"),
        (torch.zeros(40, INPUT_SIZE), "feats: must be"),
        (torch.full((1, 40, INPUT_SIZE), float("nan")), "finite.*stream 0"),
        (torch.full((1, 40, INPUT_SIZE), float("inf")), "finite.*stream 0"),
        (torch.full((1, 40, INPUT_SIZE), 1e38), "infinite or not a number"),
    ],
)
@pytest.mark.parametrize("variant", ["mha", "linear"])
def test_features_that_cannot_be_right_change_nothing(feats, words, variant):
    model = encoder(variant=variant)
    good = torch.randn(1, 80, INPUT_SIZE)
    want = streamed(model, good)
    _, state = model.forward_chunk(good[:, :40], model.init_state())
    with pytest.raises(ValueError, match=words):
        model.forward_chunk(feats, state)
    got = through(model, state, good[:, 40:])
    assert max_error(got, want[:, -got.size(1) :]) < 1e-5


@pytest.mark.parametrize(
    "indices", [torch.tensor([True, False]), [], torch.tensor([]), [2], [-1], [0.0], [True]]
)
def test_select_takes_numbers_of_streams(indices):
    state = encoder().init_state(2)
    with pytest.raises(ValueError, match=r"indices: must be one or more integers of 0\.\.1"):
        state.select(indices)


def test_stack_names_what_differs():
    model = encoder()
    for other, words in [
        (model.init_state(chunk_size=2), "chunk_size"),
        (model.init_state(left_context=4), "left_context"),
        (model.init_state(dtype=torch.int8), "dtype"),
        (encoder().init_state(), "model"),
        (None, "stream states"),
    ]:
        with pytest.raises(ValueError, match=words):
            StreamState.stack([model.init_state(), other])
    with pytest.raises(ValueError, match="stream states"):
        StreamState.stack([])


def test_load_reads_states_alone(tmp_path):
    model, path = encoder(), tmp_path / "state.pt"
    _, state = model.forward_chunk(torch.randn(1, 40, INPUT_SIZE), model.init_state())
    state.save(path)
    assert torch.load(path, weights_only=True)["version"] == VERSION
    assert StreamState.load(path).lengths == state.lengths
    saved = torch.load(path, weights_only=True)
    for junk in (
        saved | {"version": 99},
        {k: v for k, v in saved.items() if k != "version"},
        {k: v for k, v in saved.items() if k != "layers"},
        saved | {"more": 1},
        saved | {"layers": [1]},
        [1, 2],
        torch.zeros(3),
    ):
        torch.save(junk, path)
        with pytest.raises(ValueError, match="state.pt: "):
            StreamState.load(path)
    for junk in (b"", b"no state at all", pickle.dumps(print)):
        path.write_bytes(junk)
        with pytest.raises(ValueError, match="state.pt: not a saved stream state"):
            StreamState.load(path)
