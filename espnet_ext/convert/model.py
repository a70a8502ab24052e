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
from espnet_ext.checkpoint import load_model
from espnet_ext.convert.calibration import layer_inputs, recordings, transcripts
from espnet_ext.convert.weights import Moments, allocate_ranks
from espnet_ext.errors import UserError
from espnet_ext.files import KB, whole
from espnet_ext.register import ENCODERS
from espnet_ext.relocate import read_training_config
from espnet_ext.results import to_json

#: what the report and the profiler count a cache over
FRAMES = 1000
#: both attentions of a decoder layer, in a config and as attributes
DECODER = {"self_attention": "self_attn", "src_attention": "src_attn"}


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
        calibration_scp: ``wav.scp`` of recordings whose layer inputs the new weights fit best,
            those of the decoder with the ``text`` beside it; None fits the weights as they are.
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
    _check_request(request)
    # an option that is impossible shows before anything is computed
    encoder = _encoder_places(model, request, request.attention_conf)
    decoder = _decoder_places(model, config, request)
    report = {
        "version": 1,
        "source": str(source),
        "checkpoint": checkpoint,
        "similar_heads": request.similar,
        "calibration": request.calibration_scp and str(request.calibration_scp),
    }
    if request.calibration_scp:
        report |= _calibrate(model, config, encoder, decoder, request)
    if encoder:
        report |= _convert_encoder(model, config, encoder, request)
    if decoder:
        report |= _convert_decoder(config, decoder, request)
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


@dataclass
class Place:
    """An attention of a model, and the one that takes its place.

    Attributes:
        layer: That has it.
        attribute: As which.
        name: Of the new one.
        new: The new one, its weights random until ``fill``.
        moments: Of what goes into the old one, where that is known.
    """

    layer: torch.nn.Module
    attribute: str
    name: str
    new: torch.nn.Module
    moments: Moments | None = None

    @property
    def old(self):
        """The attention that is there."""
        return getattr(self.layer, self.attribute)

    def fill(self, similar: bool) -> float | None:
        """Give the new attention the weights that come nearest to the old one's, and put it there.

        Returns:
            The share of keys and values that is lost (squares), None where they are only a start.
        """
        given = {"similar": similar, "moments": self.moments}
        options = {key: given[key] for key in conversion_options(self.name)}
        state, lost = self.new.from_mha(self.old, **options)
        self.new.load_state_dict(state)
        setattr(self.layer, self.attribute, self.new)
        return lost


def _check_request(request):
    asked = {
        "attention": (request.attention, request.attention_conf),
        "decoder_attention": (request.decoder_attention, request.decoder_attention_conf),
    }
    asked = {option: pair for option, pair in asked.items() if pair[0]}
    every = []
    for option, (name, conf) in asked.items():
        names = name if isinstance(name, list) else [name]
        if not set(names) <= set(convertible()):
            raise UserError(f"--{option}: must be one of {', '.join(convertible())}, got {name}")
        for key in [key for n in names for key in ATTENTIONS[n].not_from_mha if conf.get(key)]:
            raise UserError(f"--{option}_conf: {key}: a converted model has none, leave it out")
        every += names

    def check(option, what, takes, names=every):
        if not any(takes(name) for name in names):
            able = ", ".join(filter(takes, convertible()))
            got = " and ".join(f"--{option} is {name}" for option, (name, _) in asked.items())
            raise UserError(f"--{option}: {what} {able}, {got}")

    if request.similar:
        check("grouping similar", "groups heads of", lambda n: "similar" in conversion_options(n))
    if request.calibration_scp:
        check("calibration_scp", "is for", lambda n: "moments" in conversion_options(n))
    if request.budget_kb is not None:
        if not math.isfinite(request.budget_kb):
            raise UserError(f"--budget_kb: must be a number of KB, got {request.budget_kb:g}")
        name, conf = request.attention, request.attention_conf
        names = name if isinstance(name, list) else [name] if name else []
        check("budget_kb", "chooses a rank of", lambda n: ATTENTIONS[n].ranked, names)
        ranked = ATTENTIONS[names[0]].ranked
        if len(set(names)) > 1 or ranked in conf:
            raise UserError(f"--budget_kb: chooses {ranked} of every layer, so leave that out")


def _encoder_places(model, request, conf) -> list[Place]:
    """The attentions of the encoder, if they are to be others."""
    if not request.attention:
        return []
    encoder, olds = model.encoder, model.encoder.attentions
    try:
        layers = layer_attentions(request.attention, conf, len(olds))
        return [
            Place(
                layer,
                encoder.attention_name,
                name,
                build_attention(name, old.h, old.n_feat, old.dropout_rate, own),
            )
            for layer, old, (name, own) in zip(encoder.encoders, olds, layers, strict=True)
        ]
    except ValueError as error:
        message = str(error).removeprefix("attention_conf: ")
        raise UserError(f"--attention_conf: {message}") from None


def _decoder_places(model, config, request) -> list[Place]:
    """Both attentions of every decoder layer, if they are to be others."""
    name, kind = request.decoder_attention, config.get("decoder")
    if not name:
        return []
    if model.decoder is None or kind not in ("transformer", "kv_transformer"):
        raise UserError(
            f"--decoder_attention: the decoder must be transformer or kv_transformer, got {kind}"
            f"{', which the model does not use' if model.decoder is None else ''}"
        )
    conf = config.get("decoder_conf") or {}
    if any(conf.get(key, "mha") != "mha" for key in DECODER):
        raise UserError("--decoder_attention: the decoder has another attention than mha already")
    try:
        return [
            Place(
                layer,
                attribute,
                name,
                decoder_attention(
                    key, name, request.decoder_attention_conf, getattr(layer, attribute)
                ),
            )
            for layer in model.decoder.decoders
            for key, attribute in DECODER.items()
        ]
    except ValueError as error:
        raise UserError(f"--decoder_attention_conf: {error}") from None


def _calibrate(model, config, encoder, decoder, request):
    """Let the source read recordings, so that what goes into each place is known."""
    scp, places = request.calibration_scp, encoder + decoder
    waves = recordings(model, scp, request.num_utts)
    texts = transcripts(config, scp, waves) if decoder else None
    moments = layer_inputs(model, [place.old for place in places], scp, waves, texts)
    for place, known in zip(places, moments, strict=True):
        place.moments = known
    return {
        "calibration_utts": len(waves),
        "calibration_texts": None if texts is None else len(texts),
    }


def _convert_encoder(model, config, places, request):
    """Swap the attentions of the encoder; the config is changed with them."""
    conf = dict(request.attention_conf)
    if request.budget_kb is not None:
        conf[places[0].new.ranked] = _ranks(places, request.budget_kb)
        for place, chosen in zip(places, _encoder_places(model, request, conf), strict=True):
            place.new = chosen.new
    config["encoder_conf"] |= {"attention": request.attention, "attention_conf": conf}
    return {
        "attention": attention_label(request.attention),
        "attention_conf": conf,
        "kb_per_1000_frames": 4 * sum(place.new.cache_values(FRAMES) for place in places) / KB,
        "lost": [place.fill(request.similar) for place in places],
    }


def _ranks(places, budget_kb):
    """A rank for each layer, so that together they keep to a budget."""
    total = int(budget_kb * KB / FRAMES / 4)
    if total < len(places):
        raise UserError(
            f"--budget_kb: must be at least {4 * FRAMES * len(places) / KB:g}, which is rank 1 "
            f"in {len(places)} layers, got {budget_kb:g}"
        )
    spectra = [place.new.spectrum(place.old, place.moments) for place in places]
    return allocate_ranks(spectra, total)


def _convert_decoder(config, places, request):
    """Swap both attentions of every decoder layer; the config is changed with them."""
    name, conf = request.decoder_attention, dict(request.decoder_attention_conf)
    both = {key: name for key in DECODER} | {f"{key}_conf": dict(conf) for key in DECODER}
    decoder_conf = (config.get("decoder_conf") or {}) | both
    config |= {"decoder": "kv_transformer", "decoder_conf": decoder_conf}
    lost = [place.fill(request.similar) for place in places]
    return {"decoder_attention": name, "decoder_attention_conf": conf, "decoder_lost": lost}
