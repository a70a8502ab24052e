"""What a model's layers read while it hears recordings: what a conversion is fitted to."""

from argparse import Namespace
from pathlib import Path

import torch
from espnet2.tasks.asr import ASRTask

from espnet_ext.audio import read_audio, waveform
from espnet_ext.config import building
from espnet_ext.convert.weights import Moments
from espnet_ext.data.kaldi import at_even_distances, normal_space, read_scp, read_wavs
from espnet_ext.data.tokens import load_bpe
from espnet_ext.errors import UserError
from espnet_ext.frontend import known_front_end
from espnet_ext.utterance import encode


def recordings(model, wav_scp, num_utts: int) -> dict[str, torch.Tensor]:
    """Some recordings (n,) of a ``wav.scp`` by id, taken at even distances."""
    if num_utts < 1:
        raise UserError(f"--num_utts: must be at least 1, got {num_utts}")
    if model.frontend is None:
        raise UserError(f"{wav_scp}: the model reads features, not recordings")
    fs = known_front_end(model.frontend).fs
    chosen = at_even_distances(list(read_wavs(wav_scp).items()), num_utts)
    return {utt: waveform(read_audio(path, fs)) for utt, path in chosen}


def transcripts(config: dict, wav_scp, utts) -> dict[str, torch.Tensor]:
    """Token ids (L,) of the recordings that have a text in the file ``text`` beside ``wav.scp``.

    A text of unknown tokens alone, such as one in another case, says nothing and is left out.
    """
    path = Path(wav_scp).with_name("text")
    texts = read_scp(path) if path.is_file() else {}
    with building(path):
        if config.get("token_type") == "bpe":
            load_bpe(config["bpemodel"])
        preprocess = ASRTask.build_preprocess_fn(Namespace(**config), train=False)
    if preprocess is None:
        return {}
    unknown = getattr(preprocess.token_id_converter, "unk_id", -1)  # Hugging Face's has none
    found = {
        utt: torch.from_numpy(preprocess(utt, {"text": normal_space(texts[utt])})["text"])
        for utt in utts
        if texts.get(utt)
    }
    return {utt: tokens for utt, tokens in found.items() if not (tokens == unknown).all()}


@torch.no_grad()
def layer_inputs(
    model, attentions, wav_scp, waves: dict[str, torch.Tensor], texts: dict | None = None
) -> list[Moments]:
    """Moments of what attentions make keys and values of, while a model reads recordings.

    A frame counts as much as it is attended to, by all queries of all heads: what nobody looks at
    may be lost.

    Args:
        model: The model, in eval mode.
        attentions: Of its encoder and its decoder.
        wav_scp: Where the recordings are from, for messages.
        waves: Recordings (n,) by id.
        texts: Token ids (L,) by id, if the decoder is to read too. Where there are none, it reads
            what greedy CTC search finds.
    """
    moments = [Moments(attention.linear_k.in_features) for attention in attentions]

    def listen(attention, known):
        attention.use_sdpa = attention.use_flash_attn = False  # which would keep no weights
        return attention.register_forward_hook(
            lambda _, args, __: known.add(args[1][0], attention.attn[0].sum((0, 1)))
        )

    hooks = [listen(*pair) for pair in zip(attentions, moments, strict=True)]
    for utt, wave in waves.items():
        memory = encode(model, wave)
        if texts is not None and len(memory):
            if utt not in texts and model.ctc is None:
                raise UserError(f"{wav_scp}: {utt}: has no text beside it for the decoder to read")
            tokens = texts[utt] if utt in texts else _greedy(model, memory)
            tokens = torch.cat([torch.tensor([model.sos]), tokens])
            lengths = [torch.tensor([len(x)]) for x in (memory, tokens)]
            model.decoder(memory[None], lengths[0], tokens[None], lengths[1])
    for hook in hooks:
        hook.remove()
    if not moments[0].count:
        raise UserError(f"{wav_scp}: has no recording that is long enough")
    return moments


def _greedy(model, memory):
    """Token ids (L,) by greedy CTC search."""
    best = model.ctc.argmax(memory[None])[0].unique_consecutive()
    return best[best != model.blank_id]
