"""Models from a YAML of conf/ or from the config.yaml of a training run."""

import importlib
from pathlib import Path

import yaml

from espnet_ext.attention import attention_label
from espnet_ext.errors import UserError
from espnet_ext.register import CHOICES
from espnet_ext.relocate import beside

ENCODERS = CHOICES["espnet2.tasks.asr"]["encoder_choices"]
FRONTENDS = {
    "default": "espnet2.asr.frontend.default:DefaultFrontend",
    **CHOICES["espnet2.tasks.asr"]["frontend_choices"],
}

#: of profile.json; changes when a key changes its meaning
VERSION = 2
#: what the bytes of a stream are made of, as every table lists them
KINDS = ("attention", "convolution", "subsampling", "frontend")


def read_yaml(path) -> dict:
    """Mapping in a YAML file.

    Raises:
        UserError: The file is unreadable or no mapping.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must be a mapping of options")
    return content


def read_model_config(path) -> dict:
    """A training config whose encoder is one of this package's; see ``read_yaml``."""
    config = read_yaml(path)
    if config.get("encoder") not in ENCODERS:
        raise UserError(
            f"{path}: encoder: must be one of {', '.join(ENCODERS)}, got {config.get('encoder')}"
        )
    return beside(config, Path(path).parent)


def describe(config: dict, path) -> dict:
    """What names a model in every table."""
    conf = config.get("encoder_conf", {})
    return {
        "config": str(path),
        "encoder": config["encoder"].removeprefix("kv_"),
        "attention": attention_label(conf.get("attention", "mha")),
        "attention_conf": conf.get("attention_conf") or {},
        "causal": conf.get("causal", False),
    }


def with_encoder_conf(config: dict, **options) -> dict:
    """Copy of a config with other encoder options."""
    return config | {"encoder_conf": config.get("encoder_conf", {}) | options}


def _class(target):
    """The class of module:class, imported when it is asked for."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(module), name)


def build_encoder(config: dict):
    """The encoder of a config alone, with random weights, in eval mode.

    Raises:
        UserError: An option of the encoder is impossible.
    """
    input_size = config.get("input_size") or config.get("frontend_conf", {}).get("n_mels", 80)
    try:
        encoder = _class(ENCODERS[config["encoder"]])(input_size, **config.get("encoder_conf", {}))
    except (TypeError, ValueError) as error:
        raise UserError(f"encoder_conf: {error}") from None
    return encoder.eval()


def build_frontend(config: dict):
    """The front end of a config alone.

    Raises:
        ValueError: The config has none, for it reads features, or one that cannot stream.
        TypeError: It has an option that there is not.
    """
    if config.get("input_size"):
        raise ValueError("input_size: the model reads features")
    kind = config.get("frontend") or "default"
    if kind not in FRONTENDS:
        raise ValueError(f"frontend: must be default or kaldi_fbank, got {kind}")
    return _class(FRONTENDS[kind])(**(config.get("frontend_conf") or {}))


def complete(config: dict, vocab_size: int) -> dict:
    """The config of a model that ESPnet can build.

    Args:
        config: A training run's config is returned as it is. One of conf/ gets ESPnet's defaults,
            ``vocab_size`` made-up tokens and no normalisation, whose statistics it lacks.
        vocab_size: Tokens, blank and sentence ends included.
    """
    if config.get("token_list"):
        return config
    from espnet2.tasks.asr import ASRTask

    tokens = ["<blank>", "<unk>", *(f"t{i}" for i in range(vocab_size - 3)), "<sos/eos>"]
    made_up = {"token_list": tokens, "token_type": "word", "bpemodel": None, "normalize": None}
    defaults = ASRTask.get_default_config()
    # the options that ESPnet's own choice has by default are not those of the config's
    chosen = {f"{key}_conf": {} for key in config if f"{key}_conf" in defaults}
    return defaults | chosen | config | made_up
