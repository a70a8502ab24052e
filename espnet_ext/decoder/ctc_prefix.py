"""CTC prefix scores without a loop over frames, equal to those of ESPnet's ``CTCPrefixScorer``.

Two things make it fast. The score of a prefix extended by a label needs the forward variables of
the prefix only, so it is one sum over frames per candidate; the extended prefix's own forward
variables are worked out later, and only for the candidates that the search keeps. Their recursion

    r(t) = logaddexp(r(t-1), phi(t-1)) + x(t)

is a cumulative sum once the label's log-probabilities X(t) = x(1) + ... + x(t) are taken off:
r(t) - X(t) = logcumsumexp(phi(t-1) - X(t-1)). It runs in float64, where that is exact enough.

Watanabe et al., Hybrid CTC/attention architecture for end-to-end speech recognition, 2017.

Letters: U utterances, N hypotheses, S candidate labels of each, V labels, T frames.
"""

from dataclasses import dataclass

import torch
from espnet2.legacy.nets.ctc_prefix_score import CTCPrefixScoreTH
from espnet2.legacy.nets.pytorch_backend.nets_utils import make_pad_mask
from espnet2.legacy.nets.scorers.ctc import CTCPrefixScorer

from espnet_ext.decoder.cache import Handle
from espnet_ext.errors import check_log_probs

BLANK = 0
LOG_ZERO = -1.0e10  # ESPnet's


class Posteriors:
    """CTC log-probabilities of the utterances of a search.

    Args:
        logp: ``(U, T, V)``. float16 and bfloat16 are counted in float32: neither holds LOG_ZERO or
            the sum of a thousand frames.
        lengths: ``(U,)`` frames of each utterance; one without any is silent.
        margin: Frames around the one reached that the recursion is limited to; 0 for no limit.

    Raises:
        UserError: A frame's log-probabilities are not numbers.
    """

    def __init__(self, logp, lengths, margin):
        self.dtype = logp.dtype  # of the scores
        logp = logp.to(torch.promote_types(logp.dtype, torch.float32))
        if logp.size(1) == 0:
            logp = torch.nn.functional.pad(logp, (0, 0, 0, 1))
        if bool((lengths < logp.size(1)).any()):
            pad = make_pad_mask(lengths, maxlen=logp.size(1)).to(logp.device)  # (U, T)
            logp = logp.masked_fill(pad[..., None], LOG_ZERO)
            logp[..., BLANK].masked_fill_(pad, 0.0)  # after its end an utterance is silent
        check_log_probs(logp)
        self.shape = logp.shape
        self.margin = margin
        self.rows = logp.transpose(1, 2).reshape(-1, logp.size(1))  # (U * V, T)
        self.blank = logp[..., BLANK].double()  # (U, T)
        self.end_frame = (lengths.to(logp.device) - 1).clamp_min(0)  # (U,)
        if margin > 0:
            self._heard = (logp.argmax(-1) != BLANK).cumsum(1).cpu()  # (U, T) frames not silent

    def window(self, total, n_label, reached):
        """Decide the frames that a step looks at, by ESPnet's rule.

        Args:
            total: ``(N, T)`` log-probability that a prefix is complete at a frame.
            n_label: Labels in a prefix.
            reached: ``(first, last)`` peak so far.

        Returns:
            ``(start, end)``, and ``reached`` brought up to date.
        """
        n_frame = self.shape[1]
        if self.margin <= 0:
            return (min(max(n_label, 1), n_frame), n_frame), reached
        # in ESPnet's precision, so that ties are its ties
        peaks = _or_log_zero(total).to(self.rows.dtype).argmax(1)
        first, last = max(int(peaks.min()), reached[0]), max(int(peaks.max()), reached[1])
        start = min(reached[1], max(first - self.margin, n_label, 1))
        end = last + self.margin + 1
        if end >= n_frame:
            return (start, n_frame), (first, last)
        # so far on that it holds some frames with a label, if the utterance has them
        wanted = self._heard[:, last] + CTCPrefixScoreTH.WINDOW_LABELS
        there = torch.searchsorted(self._heard, wanted[:, None])[:, 0]
        there = torch.minimum(there, self.end_frame.cpu()) + 1
        return (start, min(max(end, int(there.max())), n_frame)), (first, last)


@dataclass
class Prefixes:
    """Forward variables of N prefixes of equal length; after ``score`` also their candidates.

    Attributes:
        post: The posteriors.
        label: ``(N, T)`` float64, log-probability of the prefix, the frame being its last label.
        blank: ``(N, T)`` float64, the same with the frame blank.
        last: ``(N,)`` last token of each.
        psi: ``(N,)`` float64, log-probability of each prefix.
        n_label: Labels in a prefix.
        reached: First and last frame reached.
    """

    post: Posteriors
    label: torch.Tensor
    blank: torch.Tensor
    last: torch.Tensor
    psi: torch.Tensor
    n_label: int = 0
    reached: tuple = (0, 1)

    @classmethod
    def start(cls, post, last):
        """Make the empty prefixes of N hypotheses, N / U for each utterance."""
        blank = post.blank.cumsum(1).repeat_interleave(len(last) // len(post.blank), dim=0)
        return cls(
            post, torch.full_like(blank, LOG_ZERO), blank, last, torch.zeros_like(blank[:, 0])
        )

    @property
    def utterance(self):
        """``(N,)`` utterance of each hypothesis."""
        n_hyp, n_utt = len(self.last), len(self.post.blank)
        return torch.arange(n_hyp, device=self.last.device) // (n_hyp // n_utt)

    def score(self, ids, eos):
        """Score candidate labels.

        Args:
            ids: ``(N, S)`` candidates; None for all.
            eos: Id of the end of the sentence, which is always scored.

        Returns:
            ``(N, V)`` log-probability that each label adds; a very low one if it is no candidate.
        """
        n_label = self.post.shape[2]
        self.ids = ids
        self.total = torch.logaddexp(self.label, self.blank)  # (N, T)
        self.span, self.reached = self.post.window(self.total, self.n_label, self.reached)
        first_row = self.utterance * n_label  # (N,)
        every = torch.arange(n_label, device=self.last.device)[None]
        if ids is None:  # hypothesis by hypothesis: (N, V, T) would be large
            psi = [
                self._psi(t[None], r + every) for t, r in zip(self.total, first_row, strict=True)
            ]
            ids, psi = every.expand(len(self.last), -1), torch.cat(psi)
        else:
            psi = self._psi(self.total, first_row[:, None] + ids)  # (N, S)
        # a label that repeats the last one needs a blank in between
        repeated = self._psi(self.blank, (first_row + self.last)[:, None])  # (N, 1)
        psi = torch.where(ids == self.last[:, None], repeated, psi)
        end_frame = self.post.end_frame[self.utterance][:, None]
        self.candidates = psi.new_full((len(ids), n_label), LOG_ZERO)
        self.candidates.scatter_(1, ids, _or_log_zero(psi))
        self.candidates[:, eos] = _or_log_zero(self.total.gather(1, end_frame))[:, 0]
        self.candidates[:, BLANK] = LOG_ZERO
        return (self.candidates - self.psi[:, None]).to(self.post.dtype)

    def _psi(self, phi, rows):
        """Sum over frames: a prefix at one (``phi``, (N, T)), then a label (``rows``, (N, S))."""
        start, end = self.span
        x = self.post.rows.index_select(0, rows.flatten()).view(*rows.shape, -1)  # (N, S, T)
        phi = phi[:, start - 1 : end - 1]
        # relative to its peak, the sum is as good in float32
        peak = phi.amax(1, keepdim=True) if end > start else phi.new_zeros(len(phi), 1)
        terms = (phi - peak).to(x.dtype)[:, None] + x[..., start:end]
        if self.n_label == 0:
            terms = torch.cat((x[..., :1] - peak[..., None].to(x.dtype), terms), dim=-1)
        elif end == start:
            terms = torch.full_like(x[..., :1], LOG_ZERO)
        return _logsumexp(terms).double() + peak

    def extend(self, rows, labels):
        """Make the prefixes that the search has kept.

        Args:
            rows: One row of these prefixes per new hypothesis.
            labels: The label that each adds.

        Returns:
            Their ``Prefixes``.
        """
        device = self.last.device
        rows, labels = torch.tensor(rows, device=device), torch.tensor(labels, device=device)
        psi = self.candidates[rows, labels]
        utterance = self.utterance[rows]
        if self.ids is not None:
            # ESPnet goes on with the first candidate in place of a label that was none (of a
            # hypothesis already over); it matters where the window looks at all hypotheses
            ids = self.ids[rows]
            stands_in = torch.where((ids == labels[:, None]).any(1), labels, ids[:, 0])
        else:
            stands_in = labels
        x = self.post.rows[utterance * self.post.shape[2] + stands_in].double()  # (N, T)
        repeat = (stands_in == self.last[rows])[:, None]
        phi = torch.where(repeat, self.blank[rows], self.total[rows])
        label, blank = torch.full_like(phi, LOG_ZERO), torch.full_like(phi, LOG_ZERO)
        if self.n_label == 0:
            label[:, 0] = x[:, 0]
        start, end = self.span
        window, before = slice(start - 1, end), slice(start - 1, end - 1)
        silence = self.post.blank[utterance]
        label[:, window] = _recursion(label[:, start - 1], phi[:, before], x[:, window])
        blank[:, window] = _recursion(blank[:, start - 1], label[:, before], silence[:, window])
        # beyond the window a prefix can only stay silent
        edge = torch.logaddexp(label[:, end - 1], blank[:, end - 1])[:, None]
        blank[:, end:] = edge + silence[:, end:].cumsum(1)
        return Prefixes(self.post, label, blank, labels, psi, self.n_label + 1, self.reached)


def _logsumexp(x):
    """``x.logsumexp(-1)``, many times faster where most terms are far below the largest."""
    largest = x.amax(-1, keepdim=True)
    # a term below exp(-60) of the largest changes nothing, and its exponential is slow to compute
    return (x - largest).clamp_(min=-60).exp_().sum(-1).log_() + largest[..., 0]


def _or_log_zero(psi):
    """Make impossible what is nearly so: the size of such a number means nothing."""
    return psi.masked_fill(psi < LOG_ZERO / 2, LOG_ZERO)


def _recursion(first, phi, x):
    """Solve r(0) = first, r(t) = logaddexp(r(t-1), phi(t-1)) + x(t); x(0) does not matter."""
    total = x.cumsum(1)
    total = total - total[:, :1]
    start = first[:, None]
    return torch.cat((start, phi - total[:, :-1]), dim=1).logcumsumexp(1) + total


class FastCTCPrefixScorer(CTCPrefixScorer):
    """ESPnet's CTC prefix scorer with the same scores and no loop over frames.

    It has no state of its own, so an ESPnet instance becomes one by assigning ``__class__``.
    Block-wise streaming search (``extend_prob``) is not for it.
    """

    @torch.no_grad()
    def batch_init_state(self, x, xs_lengths=None):
        """Take in one utterance (T, n_feat) or several (U, T, n_feat); returns the first state."""
        logp = self.ctc.log_softmax(x if x.dim() == 3 else x[None])
        if xs_lengths is None:
            xs_lengths = torch.full((len(logp),), logp.size(1), device=logp.device)
        return Handle(Posteriors(logp, xs_lengths.long(), self.window_margin), 0)

    @torch.no_grad()
    def batch_score_partial(self, y, ids, state, x):
        """Score candidates.

        Args:
            y: ``(N, L)`` prefixes.
            ids: ``(N, S)`` candidates; None for all.
            state: N states.
            x: Not used.

        Returns:
            Scores ``(N, V)``, and the state to select from.
        """
        owner = state[0].owner
        if isinstance(owner, Posteriors):
            prefixes = Prefixes.start(owner, y[:, -1])
        else:
            prefixes = owner.extend([s.row for s in state], [s.label for s in state])
        return prefixes.score(ids, self.eos), prefixes

    def select_state(self, state, i, new_id=None):
        """Select hypothesis ``i`` of a list of states, or its extension by ``new_id``."""
        return Handle(state, i, label=new_id) if isinstance(state, Prefixes) else state[i]

    def batch_select_state(self, state, best_ids):
        """Select extensions ``(U, beam)``, given as row within the utterance * V + label."""
        n_label = state.post.shape[2]
        per_utt = len(state.last) // len(best_ids)
        offset = torch.arange(len(best_ids), device=best_ids.device)[:, None] * per_utt
        rows = (best_ids // n_label + offset).flatten().tolist()
        return [
            Handle(state, i, label=t)
            for i, t in zip(rows, (best_ids % n_label).flatten().tolist(), strict=True)
        ]
