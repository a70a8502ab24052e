"""The CTC prefix scorer without a loop against ESPnet's."""

import pytest
import torch
from espnet2.asr.ctc import CTC
from espnet2.legacy.nets.scorers.ctc import CTCPrefixScorer
from hypothesis import given, settings
from hypothesis import strategies as st

from espnet_ext.decoder import FastCTCPrefixScorer


def make_scorer(kind, n_label, margin, dtype):
    """A scorer of a CTC layer that takes the encoder output for its scores."""
    ctc = CTC(n_label, n_label).to(dtype).eval().requires_grad_(False)
    torch.nn.init.eye_(ctc.ctc_lo.weight)
    torch.nn.init.zeros_(ctc.ctc_lo.bias)
    return kind(ctc, n_label - 1, margin)


def search(stock, fast, logits, lengths, n_beam, n_step, n_candidate, tolerance):
    """Compare all scores of both along a random search; each takes logits of its own precision."""
    n_utt, _, n_label = logits.shape
    n_hyp = n_utt * n_beam
    states = []
    for scorer in (stock, fast):
        x = logits.to(scorer.ctc.ctc_lo.weight.dtype)
        if n_utt == 1:
            states.append([scorer.batch_init_state(x[0, : lengths[0]])] * n_hyp)
        else:
            states.append([scorer.batch_init_state(x, xs_lengths=lengths)] * n_hyp)
    ys = torch.full((n_hyp, 1), n_label - 1)
    possible = torch.ones(n_hyp, dtype=torch.bool)
    for step in range(n_step):
        ids = None
        if n_candidate < n_label:
            ids = torch.stack([torch.randperm(n_label)[:n_candidate] for _ in range(n_hyp)])
        expected, old = stock.batch_score_partial(ys, ids, states[0], None)
        actual, new = fast.batch_score_partial(ys, ids, states[1], None)
        # what continues an impossible prefix has no meaning
        finite = (expected > -1e8) & possible[:, None]
        assert torch.equal(finite, (actual > -1e8) & possible[:, None])
        assert torch.all((actual - expected)[finite].abs() <= tolerance)
        # any hypothesis of the same utterance, any of its candidates
        rows = torch.randint(n_beam, (n_utt, n_beam))
        flat = (rows + torch.arange(n_utt)[:, None] * n_beam).flatten()
        labels = torch.randint(1, n_label, (n_hyp,))
        if ids is not None:
            labels = ids[flat].gather(1, torch.randint(n_candidate, (n_hyp, 1)))[:, 0]
        possible = finite[flat, labels]
        if stock.window_margin > 0 and not possible.all():
            return  # ESPnet's window now follows the rounding errors of an impossible prefix
        if step % 2:
            best = rows * n_label + labels.view(n_utt, n_beam)
            states = [s.batch_select_state(t, best) for s, t in ((stock, old), (fast, new))]
        else:
            pairs = list(zip(flat.tolist(), labels.tolist(), strict=True))
            states = [
                [s.select_state(t, i, label) for i, label in pairs]
                for s, t in ((stock, old), (fast, new))
            ]
        ys = torch.cat((ys[flat], labels[:, None]), dim=1)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    n_label=st.integers(3, 12),
    n_beam=st.integers(1, 4),
    n_candidate=st.integers(2, 12),
    margin=st.sampled_from([0, 3, 100]),
    sharpness=st.sampled_from([0.1, 1.0, 5.0, 20.0]),
    blank=st.sampled_from([0.0, 5.0, 30.0]),
)
def test_ctc_scores_equal_espnet_in_float64(
    seed, lengths, n_label, n_beam, n_candidate, margin, sharpness, blank
):
    torch.manual_seed(seed)
    if margin > 0:
        # where a blank is certain, as it is in padding, frames tie for the peak that the window is
        # centred on, and rounding decides
        lengths = [max(lengths)] * len(lengths)
        sharpness, blank = min(sharpness, 3.0), min(blank, 3.0)
    logits = sharpness * torch.randn(len(lengths), max(lengths), n_label, dtype=torch.float64)
    logits[..., 0] += blank
    stock = make_scorer(CTCPrefixScorer, n_label, margin, torch.float64)
    fast = make_scorer(FastCTCPrefixScorer, n_label, margin, torch.float64)
    lengths = torch.tensor(lengths)
    search(stock, fast, logits, lengths, n_beam, 6, min(n_candidate, n_label), 1e-6)


@pytest.mark.parametrize("margin", [0, 100])
@pytest.mark.parametrize("n_frame", [5, 250, 1000])
def test_ctc_scores_in_float32_equal_espnet(n_frame, margin):
    """Peaked as a trained CTC is: a label, then silence; one silence is longer than the window.

    ESPnet runs in float64: in float32 it rounds its own scores by more than 1e-4 at 1000 frames.
    """
    n_label = 20
    logits = torch.randn(1, n_frame, n_label)
    logits[..., 0] += 10
    for t in [*range(0, n_frame // 3, 7), *range(n_frame // 2, n_frame, 5)]:
        logits[0, t, int(torch.randint(1, n_label - 1, ()))] += 14
    stock = make_scorer(CTCPrefixScorer, n_label, margin, torch.float64)
    fast = make_scorer(FastCTCPrefixScorer, n_label, margin, torch.float32)
    search(stock, fast, logits, torch.tensor([n_frame]), 3, 8, 6, 1e-4)
