"""Recordings of any length through offline decoding, in bounded memory.

Features are made in packets, the encoder attends to the whole recording in blocks, and its output
is cut where the CTC layer hears no speech, so that beam search meets pieces as long as it was
trained on: an attention decoder fails on a whole hour, and its time grows with the square of it.
"""

from typing import Any

import torch
from espnet2.legacy.nets.beam_search import Hypothesis
from tqdm import tqdm

from espnet_ext.encoder.streaming import StreamingEncoder
from espnet_ext.errors import UserError
from espnet_ext.frontend import StreamingFrontend, front_end
from espnet_ext.register import ENCODERS
from espnet_ext.utterance import check_finite

#: longest recording, in seconds, for a model whose memory grows with the square of the length
MAX_WHOLE = 600
PACKET_SECONDS = 30  # whose features are made at once
CTC_BLOCK_FRAMES = 1000  # whose log probabilities are held at once
PAUSE_FRAMES = 10  # of a pause that a cut looks for


def cut_points(blank: torch.Tensor, longest: int) -> list[tuple[int, int]]:
    """Cut encoder frames into pieces at pauses.

    Args:
        blank: Probability of the CTC blank of every frame (T,).
        longest: Most frames of a piece, at least 2.

    Returns:
        (start, stop) of pieces that follow one another. Where there are several, each has
        ``longest / 2`` to ``longest`` frames, and all but the last end in the middle of the
        likeliest pause that leaves enough for the rest.
    """
    ends = PAUSE_FRAMES // 2, (PAUSE_FRAMES - 1) // 2
    around = torch.nn.functional.pad(blank[None], ends)
    pause = torch.nn.functional.avg_pool1d(around, PAUSE_FRAMES, 1)[0]  # (T,), mean around
    pieces, start, length, half = [], 0, blank.numel(), (longest + 1) // 2
    while length - start > longest:
        first, last = start + half, min(start + longest, length - half)
        stop = first + int(pause[first : last + 1].argmax())
        pieces.append((start, stop))
        start = stop
    return [*pieces, (start, length)]


class LongAudio:
    """Decodes what is longer than a model's utterances, with the model and search of ESPnet.

    Args:
        speech2text: ESPnet's ``Speech2Text``.
        max_segment: Seconds of the longest piece given to beam search; recordings up to this length
            are decoded as ESPnet does. 0 never cuts.
    """

    def __init__(self, speech2text: Any, max_segment: float) -> None:
        if not (max_segment == 0 or max_segment >= 1):  # not-a-number is neither
            raise UserError(f"max_segment: must be 0 or at least 1 second, got {max_segment:g}")
        self.speech2text = speech2text
        self.model = speech2text.asr_model
        self.max_segment = max_segment
        self.frontend: StreamingFrontend | None = None
        self.obstacle: str | None = None
        try:
            self.frontend = self._frontend()
        except ValueError as error:
            self.obstacle = str(error)
        front = front_end(self.model.frontend)
        self.fs = 16000 if front is None else front.fs

    def _frontend(self) -> StreamingFrontend:
        model, s2t = self.model, self.speech2text
        if not self.max_segment:
            raise ValueError("max_segment: 0 decodes every recording in one piece")
        if not isinstance(model.encoder, StreamingEncoder):
            raise ValueError(
                f"encoder: {type(model.encoder).__name__} of ESPnet needs memory that grows with "
                f"the square of the length; {', '.join(ENCODERS)} do not"
            )
        if s2t.enh_s2t_task or s2t.multi_asr or model.preencoder or model.postencoder:
            raise ValueError("preencoder, postencoder, several speakers: cannot be cut")
        if getattr(model, "ctc", None) is None:
            raise ValueError("ctc_weight: cutting at pauses needs a CTC output")
        for option in ("interctc_use_conditioning", "ctc_trim"):
            if getattr(model.encoder, option, False):
                raise ValueError(f"{option}: needs all CTC log probabilities at once")
        return StreamingFrontend(model.frontend, model.normalize)

    def takes(self, samples: int) -> bool:
        """Whether a recording of so many samples is decoded here rather than by ESPnet.

        Raises:
            UserError: Neither can: the message says why.
        """
        seconds = samples / self.fs
        if self.obstacle is None:
            return seconds > self.max_segment
        if seconds > MAX_WHOLE:
            raise UserError(
                f"recording of {seconds:.0f} s: more than {MAX_WHOLE} s cannot be decoded in one "
                f"piece ({self.obstacle}); change that or cut the recording"
            )
        return False

    @torch.no_grad()
    def __call__(self, samples: torch.Tensor) -> list[tuple]:
        """Decode one recording (n,) of samples; ESPnet's n-best list, of one hypothesis.

        Raises:
            UserError: The encoder's output is not a number.
        """
        s2t = self.speech2text
        dtype = getattr(torch, s2t.dtype)
        encoded = self.encode(samples.to(s2t.device, dtype))  # (T, n_feat)
        check_finite(encoded)
        blank = torch.cat(
            [
                self.model.ctc.softmax(block[None])[0, :, self.model.blank_id].float()
                for block in encoded.split(CTC_BLOCK_FRAMES)
            ]
        )
        per_second = encoded.size(0) * self.fs / samples.numel()
        tokens: list[str] = []
        texts: list[str] = []
        score = 0.0
        space = getattr(s2t.tokenizer, "space_symbol", None)
        pieces = cut_points(blank, max(2, int(self.max_segment * per_second)))
        total = round(encoded.size(0) / per_second)
        with tqdm(total=total, unit="s", desc="decoding", disable=None) as bar:
            for start, stop in pieces:
                text, token, _, hyp = s2t._decode_single_sample(encoded[start:stop])[0]
                if token and tokens and space is not None:
                    tokens.append(space)
                tokens += token
                texts += [text] if text else []
                score += float(hyp.score)
                bar.update(round(stop / per_second) - bar.n)
        ids = s2t.converter.tokens2ids(tokens)
        hyp = Hypothesis(yseq=torch.tensor(ids), score=score)
        text = None if s2t.tokenizer is None else " ".join(texts)
        return [(text, tokens, ids, hyp)]

    def encode(self, samples: torch.Tensor) -> torch.Tensor:
        """Encoder output (T, n_feat) of a whole recording (n,)."""
        assert self.frontend is not None, self.obstacle
        state, parts = self.frontend.init_state(), []
        packets = samples.split(PACKET_SECONDS * self.fs)
        for i, packet in enumerate(packets):
            final = i == len(packets) - 1
            try:
                made, _, state = self.frontend.forward_chunk(packet[None], state, final)
            except ValueError as error:
                raise UserError(str(error)) from None
            parts.append(made)
        feats = torch.cat(parts, dim=1)
        layers = self.model.encoder.encoders
        with tqdm(total=len(layers), unit="layer", desc="encoding", disable=None) as bar:

            def layer_done(*_: Any) -> None:
                bar.update()

            hooks = [layer.register_forward_hook(layer_done) for layer in layers]
            try:
                lengths = torch.tensor([feats.size(1)], device=feats.device)
                encoded = self.model.encoder(feats, lengths)[0]
            finally:
                for hook in hooks:
                    hook.remove()
        return (encoded[0] if isinstance(encoded, tuple) else encoded)[0]
