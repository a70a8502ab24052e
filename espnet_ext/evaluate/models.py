"""Models from a YAML of conf/ or from the config.yaml of a training run."""

from pathlib import Path

from espnet_ext import register
from espnet_ext.config import building, check_options
from espnet_ext.errors import UserError
from espnet_ext.register import ENCODERS
from espnet_ext.registry import Registry
from espnet_ext.relocate import read_training_config
from espnet_ext.scoring import scored

FRONTENDS = Registry(
    {"default": "espnet2.asr.frontend.default:DefaultFrontend"} | register.FRONTENDS.data
)

#: of profile.json; changes when a key changes its meaning
VERSION = 2


def read_model_config(path) -> dict:
    """A training config whose encoder is one of this package's; see ``read_config``."""
    config = read_training_config(path)
    if config.get("encoder") not in ENCODERS:
        raise UserError(
            f"{path}: encoder: must be one of {', '.join(ENCODERS)}, got {config.get('encoder')}"
        )
    return config


def scored_sets(expdir, inference_tag: str) -> dict[str, Path]:
    """``score.json`` of each test set that a model was decoded on; ``UserError`` without any."""
    found = scored(Path(expdir, inference_tag))
    if not found:
        raise UserError(f"{expdir}: nothing is scored in {inference_tag}: run stages 12 and 13")
    return found


def describe(config: dict, path) -> dict:
    """What names a model in every table."""
    from espnet_ext.attention import attention_label

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


def with_input_cache(config: dict) -> dict | None:
    """The config of a multi-head model with the lossless input cache; None of any other model."""
    conf = config.get("encoder_conf", {}).get("attention_conf") or {}
    if describe(config, "")["attention"] != "mha" or conf.get("cache", "kv") != "kv":
        return None
    return with_encoder_conf(config, attention_conf=conf | {"cache": "input"})


def build_encoder(config: dict):
    """The encoder of a config alone, with random weights, in eval mode."""
    input_size = config.get("input_size") or config.get("frontend_conf", {}).get("n_mels", 80)
    cls, conf = ENCODERS[config["encoder"]], config.get("encoder_conf", {})
    check_options(cls, conf, "encoder")
    with building("encoder_conf"):
        return cls(input_size, **conf).eval()


def build_frontend(config: dict):
    """The front end of a config alone.

    Raises:
        ValueError: The config has none, for it reads features, one that cannot stream, or one
            whose options are impossible.
    """
    if config.get("input_size"):
        raise ValueError("input_size: the model reads features")
    kind = config.get("frontend") or "default"
    if kind not in FRONTENDS:
        raise ValueError(f"frontend: must be one of {', '.join(FRONTENDS)}, got {kind}")
    conf = config.get("frontend_conf", {})
    check_options(FRONTENDS[kind], conf, "frontend")
    with building("frontend_conf"):
        return FRONTENDS[kind](**conf)


def complete(config: dict, vocab_size: int) -> dict:
    """The config of a model that ESPnet can build.

    A training run's config is returned as it is. One of conf/ gets ESPnet's defaults,
    ``vocab_size`` made-up tokens and no normalisation, whose statistics it lacks.
    """
    if config.get("token_list"):
        return config
    if vocab_size < 4:
        raise UserError(f"vocab_size: must be at least 4, got {vocab_size}")
    from espnet2.tasks.asr import ASRTask

    tokens = ["<blank>", "<unk>", *(f"t{i}" for i in range(vocab_size - 3)), "<sos/eos>"]
    made_up = {"token_list": tokens, "token_type": "word", "bpemodel": None, "normalize": None}
    defaults = ASRTask.get_default_config()
    # the options that ESPnet's own choice has by default are not those of the config's
    chosen = {f"{key}_conf": {} for key in config if f"{key}_conf" in defaults}
    return defaults | chosen | config | made_up
