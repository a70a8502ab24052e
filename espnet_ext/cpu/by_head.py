"""Whole utterances of attention one head at a time, whose scores stay in a CPU's cache.

Letters in shapes are those of ``attention/base.py``.
"""

import itertools
import math

import torch

from espnet_ext import cpu

# From so many keys on, the scores of all heads would leave it.
KEYS = 400


def pays(q_u, spans) -> bool:
    """Whether attention in blocks of these spans, see ``Blocks``, is faster head by head."""
    many = max(hi - lo for _, _, lo, hi in spans) >= KEYS
    floats = q_u.dtype in (torch.float32, torch.float64)
    return many and floats and q_u.device.type == "cpu" and cpu.enabled()


def attend(q_u, q_v, k, v, p, blocks, context):
    """Fill the context (B, T, H, d), see ``attend_in_blocks``.

    Scores are made, added up and exponentiated in one place; their sums divide the output instead.
    """
    batch, n_head, _, d = q_u.shape
    scale, per_group = 1 / math.sqrt(d), n_head // k.size(1)
    for b, h in itertools.product(range(batch), range(n_head)):
        content = q_u[b, h] * scale
        key, value = (x[b, h // per_group].contiguous() for x in (k, v))
        for span in blocks.spans:
            start, stop, lo, hi = span
            scores = blocks.position_scores(q_v[b, h], p[h], span, b)
            scores.addmm_(content[start:stop], key[lo:hi].T)
            scores.sub_(scores.amax(-1, keepdim=True)).exp_()
            sums = scores.sum(-1, keepdim=True)
            torch.div(torch.mm(scores, value[lo:hi]), sums, out=context[b, start:stop, h])
