"""Read a trained model, give it another attention, and write it as a training run's directory."""

import inspect
import math
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from espnet2.tasks.asr import encoder_choices

from espnet_ext.attention import ATTENTIONS, attention_label, build_attention, layer_attentions
from espnet_ext.attention.decoder import decoder_attention
from espnet_ext.attention.registry import conversion_options, convertible
from espnet_ext.audio import read_audio, waveform
from espnet_ext.checkpoint import load_model
from espnet_ext.convert.weights import Moments, allocate_ranks
from espnet_ext.data.kaldi import read_wavs
from espnet_ext.errors import UserError
from espnet_ext.files import KB, whole
from espnet_ext.frontend import known_front_end
from espnet_ext.register import ENCODERS
from espnet_ext.relocate import read_training_config
from espnet_ext.results import to_json
from espnet_ext.utterance import encode

#: what the report and the profiler count a cache over
FRAMES = 1000


@dataclass
class Request:
    """What is asked of a conversion.

    Attributes:
        attention: One that says how it comes from multi-head attention, a list of one for each
            layer, or None to leave the encoder as it is.
        attention_conf: Its options.
        budget_kb: In place of ``kv_lora_rank``: KB that all layers together may keep of 1000
            frames, in float32.
        similar: Group heads that are similar, not neighbours, where heads are grouped.
        calibration_scp: ``wav.scp`` of recordings whose layer inputs the new weights fit best;
            None fits the weights as they are.
        num_utts: How many of them.
        decoder_attention: One for both attentions of the decoder, or None.
        decoder_attention_conf: Its options.
    """

    attention: str | list[str] | None = None
    attention_conf: dict = field(default_factory=dict)
    budget_kb: float | None = None
    similar: bool = False
    calibration_scp: str | Path | None = None
    num_utts: int = 50
    decoder_attention: str | None = None
    decoder_attention_conf: dict = field(default_factory=dict)


def convert_model(source, output, request: Request, checkpoint="valid.acc.ave.pth") -> dict:
    """Convert a model and write its directory, whole or not at all.

    Args:
        source: Directory with ``config.yaml`` and the checkpoint, of this package's encoders with
            multi-head attention or of stock ESPnet's.
        output: Directory to write; it must not exist.
        request: What is asked.
        checkpoint: File name of the checkpoint, in both.

    Returns:
        What ``conversion.json`` in ``output`` holds.

    Raises:
        UserError: The source cannot be converted, or the request is impossible; nothing is written.
    """
    source, output = Path(source), Path(output)
    if output.exists():
        raise UserError(f"{output}: exists already; remove it or give another --output")
    config = mha_config(source / "config.yaml")
    model = load(config, source / checkpoint)
    report = {"version": 1, "source": str(source), "checkpoint": checkpoint}
    if request.attention:
        report |= _convert_encoder(model, config, request)
    if request.decoder_attention:
        report |= _convert_decoder(model, config, request)
    config["output_dir"] = str(output)
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    with whole(output) as directory:
        directory.mkdir()
        torch.save(model.state_dict(), directory / checkpoint)
        (directory / "conversion.json").write_text(to_json(report, indent=1), "utf-8")
        (directory / "config.yaml").write_text(text, "utf-8")
    return report


def mha_config(path) -> dict:
    """The config of a training run, its encoder named as this package does.

    Args:
        path: ``config.yaml`` of a model with multi-head attention, of this package or stock.

    Raises:
        UserError: It has another encoder or another attention.
    """
    config = read_training_config(path)
    stock = {name.removeprefix("kv_"): name for name in ENCODERS}
    encoder = config.get("encoder")
    if encoder not in (*stock, *stock.values()):
        raise UserError(
            f"{path}: encoder: must be one of {', '.join((*stock.values(), *stock))}, "
            f"which have multi-head attention to convert, got {encoder}"
        )
    conf = config.get("encoder_conf") or {}
    if encoder in stock:
        config["encoder"] = stock[encoder]
        options = inspect.signature(encoder_choices.get_class(encoder)).parameters
        conf = {"rel_pos_type": options["rel_pos_type"].default} | conf
    elif conf.get("attention", "mha") != "mha":
        raise UserError(
            f"{path}: attention: only mha can be converted, got {conf['attention']}; "
            "give --from the model that it was converted from"
        )
    return config | {"encoder_conf": conf}


def load(config: dict, checkpoint):
    """The model of a training run's config with the weights of a checkpoint, in eval mode.

    Raises:
        UserError: The config is impossible here, or the checkpoint is not its model's.
    """
    return load_model(config, checkpoint.with_name("config.yaml"), checkpoint)[0].eval()


def _convert_encoder(model, config, request):
    """Swap the attentions of the encoder; the config is changed with them."""
    _check_encoder_request(request)
    encoder = model.encoder
    olds = encoder.attentions
    conf = dict(request.attention_conf)
    try:  # an option that is impossible shows before anything is computed
        news = _new_attentions(olds, request.attention, conf)
    except ValueError as error:
        message = str(error).removeprefix("attention_conf: ")
        raise UserError(f"--attention_conf: {message}") from None
    moments = [None] * len(olds)
    if request.calibration_scp:
        linears = [old.linear_k for old in olds]
        moments = layer_inputs(model, linears, request.calibration_scp, request.num_utts)
    if request.budget_kb is not None:
        total = int(request.budget_kb * KB / FRAMES / 4)
        if total < len(olds):
            raise UserError(
                f"--budget_kb: must be at least {4 * FRAMES * len(olds) / KB:g}, which is rank 1 "
                f"in {len(olds)} layers, got {request.budget_kb:g}"
            )
        spectra = [news[0].spectrum(*pair) for pair in zip(olds, moments, strict=True)]
        conf[news[0].ranked] = allocate_ranks(spectra, total)
        news = _new_attentions(olds, request.attention, conf)
    lost = []
    names = [name for name, _ in layer_attentions(request.attention, conf, len(olds))]
    every = zip(encoder.encoders, olds, news, names, moments, strict=True)
    for layer, old, new, name, known in every:
        given = {"similar": request.similar, "moments": known}
        lost.append(_fill(new, old, **{key: given[key] for key in conversion_options(name)}))
        setattr(layer, encoder.attention_name, new)
    config["encoder_conf"] |= {"attention": request.attention, "attention_conf": conf}
    return {
        "attention": attention_label(request.attention),
        "attention_conf": conf,
        "similar_heads": request.similar,
        "calibration": request.calibration_scp and str(request.calibration_scp),
        "kb_per_1000_frames": 4 * sum(new.cache_values(FRAMES) for new in news) / KB,
        "lost": lost,
    }


def _check_encoder_request(request):
    name, conf = request.attention, request.attention_conf
    names = name if isinstance(name, list) else [name]
    if not set(names) <= set(convertible()):
        raise UserError(f"--attention: must be one of {', '.join(convertible())}, got {name}")

    def check(option, what, takes):
        if not any(takes(name) for name in names):
            able = ", ".join(filter(takes, convertible()))
            raise UserError(f"--{option}: {what} {able}, --attention is {name}")

    if request.similar:
        check("grouping similar", "groups heads of", lambda n: "similar" in conversion_options(n))
    if request.calibration_scp:
        check("calibration_scp", "is for", lambda n: "moments" in conversion_options(n))
    if request.budget_kb is not None:
        if not math.isfinite(request.budget_kb):
            raise UserError(f"--budget_kb: must be a number of KB, got {request.budget_kb:g}")
        ranked = ATTENTIONS[names[0]].ranked
        check("budget_kb", "chooses a rank of", lambda n: ATTENTIONS[n].ranked)
        if len(set(names)) > 1 or ranked in conf:
            raise UserError(f"--budget_kb: chooses {ranked} of every layer, so leave that out")
    for key in [key for n in names for key in ATTENTIONS[n].not_from_mha if conf.get(key)]:
        raise UserError(f"--attention_conf: {key}: a converted model has none, leave it out")


def _new_attentions(olds, attention, conf):
    layers = layer_attentions(attention, conf, len(olds))
    return [
        build_attention(name, old.h, old.n_feat, old.dropout_rate, own)
        for old, (name, own) in zip(olds, layers, strict=True)
    ]


def _fill(new, old, **options):
    """Give an attention the weights that come nearest to multi-head attention's.

    Returns:
        The share of keys and values that is lost (squares), None where they are only a start.
    """
    state, lost = new.from_mha(old, **options)
    new.load_state_dict(state)
    return lost


def recordings(model, wav_scp, num_utts: int) -> list[torch.Tensor]:
    """Some recordings (n,) of a ``wav.scp``, taken at even distances."""
    if num_utts < 1:
        raise UserError(f"--num_utts: must be at least 1, got {num_utts}")
    if model.frontend is None:
        raise UserError(f"{wav_scp}: the model reads features, not recordings")
    fs = known_front_end(model.frontend).fs
    paths = list(read_wavs(wav_scp).values())
    chosen = paths[:: max(1, len(paths) // num_utts)][:num_utts]
    return [waveform(read_audio(path, fs)) for path in chosen]


def layer_inputs(model, linears, wav_scp, num_utts: int) -> list[Moments]:
    """Moments of what goes into ``linears`` while the encoder reads recordings."""
    moments = [Moments(linear.in_features) for linear in linears]
    hooks = [
        linear.register_forward_pre_hook(lambda _, args, m=m: m.add(args[0]))
        for linear, m in zip(linears, moments, strict=True)
    ]
    for wave in recordings(model, wav_scp, num_utts):
        encode(model, wave)
    for hook in hooks:
        hook.remove()
    if not moments[0].count:
        raise UserError(f"{wav_scp}: has no recording that is long enough")
    return moments


def _convert_decoder(model, config, request):
    """Swap both attentions of every decoder layer; the config is changed with them."""
    name, options = request.decoder_attention, request.decoder_attention_conf
    kind = config.get("decoder")
    if model.decoder is None or kind not in ("transformer", "kv_transformer"):
        raise UserError(
            f"--decoder_attention: the decoder must be transformer or kv_transformer, got {kind}"
            f"{', which the model does not use' if model.decoder is None else ''}"
        )
    conf = config.get("decoder_conf") or {}
    if any(conf.get(key, "mha") != "mha" for key in ("self_attention", "src_attention")):
        raise UserError("--decoder_attention: the decoder has another attention than mha already")
    lost = []
    for layer in model.decoder.decoders:
        for key, attribute in (("self_attention", "self_attn"), ("src_attention", "src_attn")):
            old = getattr(layer, attribute)
            try:
                new = decoder_attention(key, name, options, old)
            except ValueError as error:
                raise UserError(f"--decoder_attention_conf: {error}") from None
            if new.from_mha is None:
                raise UserError(
                    f"--decoder_attention: must be one of {', '.join(convertible())}, got {name}"
                )
            if new is not old:
                lost.append(_fill(new, old))
            setattr(layer, attribute, new)
            conf |= {key: name, f"{key}_conf": dict(options)}
    config |= {"decoder": "kv_transformer", "decoder_conf": conf}
    return {"decoder_attention": name, "decoder_attention_conf": options, "decoder_lost": lost}
