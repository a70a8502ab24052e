"""Switch a beam search that ESPnet has built to cached scorers."""

import logging

from espnet2.asr.decoder.transformer_decoder import TransformerDecoder as StockDecoder
from espnet2.legacy.nets.batch_beam_search import BatchBeamSearch
from espnet2.legacy.nets.beam_search import BeamSearch
from espnet2.legacy.nets.scorers.ctc import CTCPrefixScorer
from espnet2.lm.transformer_lm import TransformerLM as StockLM

from espnet_ext.decoder.ctc_prefix import FastCTCPrefixScorer
from espnet_ext.decoder.lm import TransformerLM
from espnet_ext.decoder.transformer import TransformerDecoder


def _cap_beam(search):
    """Keep a beam below the vocabulary: more would go on with the blank, which is impossible."""
    if isinstance(search, BeamSearch) and search.beam_size > search.n_vocab - 1:
        logging.warning(f"beam_size: {search.beam_size} is capped to {search.n_vocab - 1} tokens")
        search.beam_size = search.n_vocab - 1


def use_kv_cache(search, kv_cache=True, ctc_prefix="fast"):
    """Switch the scorers of a beam search to the cached ones, in place; its results stay the same.

    A Transformer decoder (``transformer`` or ``kv_transformer``), a Transformer language model and
    the CTC prefix scorer are switched; other scorers, and searches other than ESPnet's
    ``BatchBeamSearch`` (block-wise, time-synchronous, transducer), are left as they are. A beam of
    the vocabulary or more, with which ESPnet's search finds no text, is capped below it.

    Args:
        search: ESPnet's ``Speech2Text`` or its beam search.
        kv_cache: False to leave all as ESPnet's; a ``kv_transformer`` then scores as its decoder.
        ctc_prefix: ``fast``, or ``espnet`` to leave the CTC scorer.

    Returns:
        Names of the scorers that cache, for a log line.

    Raises:
        ValueError: If ``ctc_prefix`` is neither.
    """
    if ctc_prefix not in ("fast", "espnet"):
        raise ValueError(f"ctc_prefix must be fast or espnet, got {ctc_prefix!r}")
    search = getattr(search, "beam_search", search)
    _cap_beam(search)
    scorers = getattr(search, "scorers", {})
    if not kv_cache or type(search) is not BatchBeamSearch:
        for scorer in scorers.values():
            if isinstance(scorer, TransformerDecoder):
                scorer.kv_cache = False
        return []
    switched = []
    for name, scorer in scorers.items():
        if type(scorer) is StockDecoder:
            TransformerDecoder.adopt(scorer)
        elif type(scorer) is StockLM:
            TransformerLM.adopt(scorer)
        elif type(scorer) is CTCPrefixScorer and ctc_prefix == "fast":
            scorer.__class__ = FastCTCPrefixScorer
        if isinstance(scorer, TransformerDecoder):
            scorer.kv_cache = True
        if isinstance(scorer, (TransformerDecoder, TransformerLM, FastCTCPrefixScorer)):
            switched.append(name)
    return switched
