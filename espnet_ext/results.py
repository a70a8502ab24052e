"""The one door for result files: JSON in which every number is one, and its schemas.

A schema is a type, a tuple of types, ``{key: schema}``, ``{...: schema}`` for any keys,
``[schema]`` for a list, ``[schema, ...]`` for one that is not empty, ``[schema, schema]`` for one
of two, or ``Maybe(schema)`` for what may be null or missing. Other keys may hold anything.
"""

import json
import math
from dataclasses import dataclass
from typing import Any

from espnet_ext.errors import UserError, about, floats, short
from espnet_ext.files import MB, read_bytes

MOST_BYTES = 64 * MB


@dataclass(frozen=True)
class Maybe:
    """What may be null or missing."""

    schema: Any


NUMBER = (int, float)
#: what the bytes of a stream are made of, as every table lists them
KINDS = ("attention", "convolution", "subsampling", "frontend")
_RATES = dict.fromkeys(("corr", "sub", "del", "ins", "err", "s_err"), NUMBER)
SCORE = {"snt": int, "wrd": int, **_RATES, "err_interval_95": [NUMBER, NUMBER], "drawn": Maybe(str)}
CONVERSION = {
    "source": str,
    "checkpoint": str,
    "similar_heads": Maybe(bool),
    "calibration": Maybe(str),
}
CERTIFICATE = {
    "equal": bool,
    "text_identical": bool,
    "utterances": int,
    "max_error": {
        **dict.fromkeys(("features", "encoder", "logits"), Maybe(NUMBER)),
        "layers": [Maybe(NUMBER)],
    },
    "max_error_float64": Maybe({"logits": Maybe(NUMBER)}),
}
_VIEW = {"chunk_size": int, "left_context": int}
_STREAMING = {
    **_VIEW,
    **dict.fromkeys(("ms_per_chunk_median", "ms_per_chunk_p95", "real_time_factor"), NUMBER),
    "rebuilt_causal": bool,
    "first_token_ms": {"compute": NUMBER, "total": NUMBER},
}
_ADDS = {"offline": NUMBER, "streaming": NUMBER}
_DECODER = Maybe(
    {
        **dict.fromkeys(("hypotheses", "tokens", "frames"), int),
        **dict.fromkeys(("self_attention", "src_attention"), NUMBER),
    }
)
_MEMORY = {"peak_mb": Maybe(NUMBER), "cuda_peak_mb": Maybe(NUMBER)}
_MEASURED = {
    "cache": {
        **dict.fromkeys(("frames", "bytes_per_frame", "bytes", "mha_bytes"), NUMBER),
        "formula_bytes": NUMBER,
        "dtype": str,
        "differences": list,
        "rebuilt_causal": bool,
        "streams": [
            {**_VIEW, "ledger": {...: NUMBER}, "bytes": NUMBER, "capacity_bytes": NUMBER},
            ...,
        ],
    },
    "streaming": Maybe({**_STREAMING, "memory": {"peak_mb": Maybe(NUMBER)}}),
    "multiply_adds": _ADDS,
}
PROFILE = {
    **_MEASURED,
    **dict.fromkeys(("encoder", "attention", "device", "torch"), str),
    "parameters": {"model": int, "encoder": int},
    "offline": {"ms_per_utterance": NUMBER, "real_time_factor": NUMBER, "memory": _MEMORY},
    "decoder": _DECODER,
    "input_cache": Maybe(_MEASURED),
    "threads": int,
    "load_average": NUMBER,
}
_WER = {
    ...: {
        **dict.fromkeys(("wer", "words"), NUMBER),
        "interval_95": [NUMBER, NUMBER],
        "directory": str,
        "drawn": str,
    }
}
WORDS = dict.fromkeys(("confidence_error", "word_delay_ms", "word_delay_ms_p95"), Maybe(NUMBER))
_COSTS = {
    "kv_cache_kb": NUMBER,
    "compression_ratio": NUMBER,
    "cache": {
        "frames": NUMBER,
        "bytes_per_frame": NUMBER,
        "streams": [
            {
                **_VIEW,
                "kb": dict.fromkeys(KINDS, NUMBER),
                "total_kb": NUMBER,
                "allocated_kb": NUMBER,
            },
            ...,
        ],
    },
    "multiply_adds_per_second": _ADDS,
    "streaming": Maybe({**_STREAMING, "memory_mb": Maybe(NUMBER)}),
}
EVALUATION = {
    **_COSTS,
    **dict.fromkeys(("model", "encoder", "attention", "config", "commit", "device"), str),
    "encoder_conf": {"attention_conf": Maybe(dict)},
    "wer": _WER,
    "streaming_wer": [{**_VIEW, "wer": _WER}],
    "inference_time_ms": NUMBER,
    "real_time_factor": NUMBER,
    "memory_mb": Maybe(NUMBER),
    "parameters": int,
    "training_seconds": Maybe(NUMBER),
    "decoder_cache": _DECODER,
    "input_cache": Maybe(_COSTS),
    "equivalence": Maybe(CERTIFICATE),
    "seed": Maybe(int),
}
_SAME = dict.fromkeys(("utterances", "same_text"), int)
_RATES = {...: {"wer": NUMBER, "interval_95": [NUMBER, NUMBER], "errors": [int]}}
#: of grid.json
GRID = {
    **dict.fromkeys(("encoder", "attention"), str),
    "attention_conf": dict,
    "sets": {...: {"utterances": [str], "speakers": [str], "words": [int]}},
    "cells": [
        {
            **_VIEW,
            **dict.fromkeys(("frames", "bytes", "latency_ms"), NUMBER),
            "ledger": {"attention": NUMBER},
            "in_trained_range": bool,
            "input_cache_bytes": Maybe(NUMBER),
            "streamed": Maybe(_SAME),
            "cache_dtypes": Maybe({...: {**_SAME, "bytes": NUMBER, "wer": _RATES}}),
            "wer": _RATES,
        }
    ],
}
#: of others, in YAML
PUBLISHED = {
    "reference_words": {...: int},
    "rows": [
        {
            **dict.fromkeys(("name", "source"), str),
            "wer": {...: NUMBER},
            "parameters_m": Maybe(NUMBER),
            "note": Maybe(str),
        }
    ],
}


def to_json(value, indent=None) -> str:
    """A result as JSON; a number that is not finite is a ``UserError`` that names its keys."""
    for keys, number in floats(value):
        if not math.isfinite(number):
            raise UserError(f"{'.'.join(keys)}: the measurement is not a number ({number})")
    return f"{json.dumps(value, indent=indent)}\n"


def read_json(path, schema=None):
    """What a result file holds; without a schema, see the module, it may be anything.

    Raises:
        UserError: It is unreadable, not JSON, larger or deeper than any result, not of the schema,
            or holds a number that is not finite; the message names the file and the key.
    """

    def number(written):
        value = float(written)
        if not math.isfinite(value):
            raise ValueError(f"{written[:40]} is not a number")
        return value

    def whole(written):
        return int(number(written)) if len(written) > 15 else int(written)

    content = read_bytes(path, MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise UserError(f"{path}: is larger than {MOST_BYTES // MB} MB, so it is no result")
    try:
        value = json.loads(
            content.decode("utf-8"), parse_constant=number, parse_float=number, parse_int=whole
        )
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON of numbers ({error}); make it again") from None
    with about(path):
        check(value, schema)
    return value


def check(value, schema, key=""):
    """Compare a result with a schema, see the module; ``UserError`` names the key."""
    if isinstance(schema, Maybe):
        schema = None if value is None else schema.schema
    if schema is None:
        return
    where = f"{key[1:]}: " if key else ""
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            raise UserError(f"{where}is {short(repr(value))}, not a mapping; make it again")
        for name, inner in schema.items():
            if name is ...:
                for own, entry in value.items():
                    check(entry, inner, f"{key}.{own}")
            elif name in value or not isinstance(inner, Maybe):
                if name not in value:
                    raise UserError(f"{where}has no {name}; make it again")
                check(value[name], inner, f"{key}.{name}")
    elif isinstance(schema, list):
        pair = len(schema) > 1 and schema[1] is not ...
        many = len(value) if isinstance(value, list) else -1
        if many < 0 or (pair and many != len(schema)) or (many == 0 and schema[1:] == [...]):
            raise UserError(f"{where}is {short(repr(value))}, not a list of so many; make it again")
        for n, entry in enumerate(value):
            check(entry, schema[n if pair else 0], f"{key}.{n}")
    elif not isinstance(value, schema) or (isinstance(value, bool) and schema is not bool):
        raise UserError(f"{where}is {short(repr(value))}; make it again")
