"""The names that YAML files use. A new variant is one file beside this one and one line here."""

from __future__ import annotations

import inspect
import itertools
from typing import TYPE_CHECKING

from espnet_ext.attention.checks import check_choice
from espnet_ext.registry import Registry

if TYPE_CHECKING:
    from espnet_ext.attention.base import Attention

ATTENTIONS = Registry(
    {
        "mha": "espnet_ext.attention.mha:MultiHeadAttention",
        "gqa": "espnet_ext.attention.gqa:GroupedQueryAttention",
        "mla": "espnet_ext.attention.mla:MultiHeadLatentAttention",
        "linear": "espnet_ext.attention.linear:LinearAttention",
    }
)
RENAMED = {"latent_dim": "kv_lora_rank"}


def layer_attentions(
    attention: str | list[str],
    attention_conf: dict | None = None,
    num_layers: int | None = None,
    key: str = "attention",
) -> list[tuple[str, dict]]:
    """Name and options of each layer's attention.

    A list holds a value for each layer: of names, as in a stack with linear attention below and
    latent attention above, and of any option. A layer takes the options that its attention has.

    Args:
        attention: Name of the attention of all layers, or a list.
        attention_conf: Options, see the classes.
        num_layers: How many layers there are; None where that is not known yet, and the lists say.
        key: What the configuration calls ``attention``, for messages.

    Raises:
        ValueError: An unknown name, a list that is not as long as there are layers, or an option
            that no layer has.
    """
    conf = {} if attention_conf is None else attention_conf
    if not isinstance(conf, dict):
        raise ValueError(f"{key}_conf: must be a mapping, got {conf!r}")
    lists = {key: attention} | {f"{key}_conf: {option}": v for option, v in conf.items()}
    lists = {what: values for what, values in lists.items() if isinstance(values, list)}
    if num_layers is None:
        num_layers = max([1, *map(len, lists.values())])
    for what, values in lists.items():
        if len(values) != num_layers:
            raise ValueError(
                f"{what}: a list has a value for each layer, which are {num_layers}, got {values}"
            )
    names = attention if isinstance(attention, list) else [attention] * num_layers
    for name in names:
        check_choice(key, name, ATTENTIONS)
    known = {name: options_of(name) for name in names}
    for option, value in conf.items():
        if option in RENAMED:
            raise ValueError(f"{key}_conf: use {RENAMED[option]} in place of {option}: {value!r}")
        if not any(option in options for options in known.values()):
            takes = "; ".join(f"{n} takes {', '.join(o) or 'no options'}" for n, o in known.items())
            raise ValueError(f"{key}_conf: {takes}, got {option}: {value!r}")
    return [
        (
            name,
            {
                option: value[layer] if isinstance(value, list) else value
                for option, value in conf.items()
                if option in known[name]
            },
        )
        for layer, name in enumerate(names)
    ]


def options_of(attention: str) -> list[str]:
    """Names of the options that an attention takes."""
    shared = ("self", "n_head", "n_feat", "dropout_rate")
    parameters = inspect.signature(ATTENTIONS[attention].__init__).parameters
    return [name for name in parameters if name not in shared]


def convertible() -> list[str]:
    """Names of the attentions that multi-head attention can become."""
    return [name for name, variant in ATTENTIONS.items() if variant.from_mha is not None]


def conversion_options(attention: str) -> list[str]:
    """What the conversion to an attention can use: ``moments``, ``similar``, both or nothing."""
    return list(inspect.signature(ATTENTIONS[attention].from_mha).parameters)[2:]


def cache_kind(label: str, attention_conf: dict) -> str:
    """What a frame leaves in the cache of a model, by its ``attention_label`` and its options."""
    names = [part.partition("*")[0] for part in label.split("+")]
    kinds = [ATTENTIONS[n].cache_kind(attention_conf) if n in ATTENTIONS else "kv" for n in names]
    return "+".join(dict.fromkeys(kinds))


def attention_label(attention: str | list[str]) -> str:
    """One word for what a model's layers have: ``mla``, or ``linear*6+mla*6`` from below."""
    if isinstance(attention, str):
        return attention
    runs = [(name, len(list(same))) for name, same in itertools.groupby(attention)]
    return runs[0][0] if len(runs) == 1 else "+".join(f"{name}*{n}" for name, n in runs)


def build_attention(
    attention: str,
    n_head: int,
    n_feat: int,
    dropout_rate: float = 0.0,
    attention_conf: dict | None = None,
) -> Attention:
    """Attention of a name and its options.

    Args:
        attention: One of ``ATTENTIONS``.
        n_head: Number of heads.
        n_feat: Width of the model.
        dropout_rate: Dropout of attention weights.
        attention_conf: The variant's own options, see its class.

    Raises:
        ValueError: An unknown name or option, or an impossible value; the message names key, rule
            and value.
    """
    ((name, conf),) = layer_attentions(attention, attention_conf, 1)
    return ATTENTIONS[name](n_head, n_feat, dropout_rate, **conf)
