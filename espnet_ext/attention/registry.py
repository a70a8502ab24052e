"""The names that YAML files use. A new variant is one file beside this one and one line here."""

import inspect

from espnet_ext.attention.base import Attention, check_choice
from espnet_ext.attention.gqa import GroupedQueryAttention
from espnet_ext.attention.linear import LinearAttention
from espnet_ext.attention.mha import MultiHeadAttention
from espnet_ext.attention.mla import MultiHeadLatentAttention

ATTENTIONS = {
    "mha": MultiHeadAttention,
    "gqa": GroupedQueryAttention,
    "mla": MultiHeadLatentAttention,
    "linear": LinearAttention,
}

RENAMED = {"latent_dim": "kv_lora_rank"}


def layer_conf(attention_conf: dict | None, layer: int, num_layers: int | None = None):
    """Options of one layer, where a list of an option holds a value for each layer.

    Args:
        attention_conf: Options of the encoder's attention.
        layer: Which layer, from 0.
        num_layers: How many there are; None if that is not known yet.

    Raises:
        ValueError: A list is not as long as there are layers.
    """
    if not isinstance(attention_conf, dict):
        return attention_conf
    conf = dict(attention_conf)
    for key, value in conf.items():
        if isinstance(value, list):
            if not value or num_layers not in (None, len(value)):
                layers = "" if num_layers is None else f", which are {num_layers}"
                raise ValueError(
                    f"attention_conf: {key}: a list has a value for each layer{layers}, got {value}"
                )
            conf[key] = value[layer]
    return conf


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
    check_choice("attention", attention, ATTENTIONS)
    cls = ATTENTIONS[attention]
    conf = {} if attention_conf is None else attention_conf
    if not isinstance(conf, dict):
        raise ValueError(f"attention_conf: must be a mapping, got {conf!r}")
    shared = ("self", "n_head", "n_feat", "dropout_rate")
    options = [name for name in inspect.signature(cls.__init__).parameters if name not in shared]
    for key, value in conf.items():
        if key in RENAMED:
            raise ValueError(f"attention_conf: use {RENAMED[key]} in place of {key}: {value!r}")
        if key not in options:
            raise ValueError(
                f"attention_conf: {attention} takes {', '.join(options) or 'no options'}, "
                f"got {key}: {value!r}"
            )
    return cls(n_head, n_feat, dropout_rate, **conf)
