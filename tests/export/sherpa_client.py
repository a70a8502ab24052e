"""What a user of sherpa-onnx writes, run in a process of its own: bad files end that process.

    python sherpa_client.py REQUEST.json ANSWER.json

The request names model, tokens, rate and feature_dim, an .npz of recordings, and ``way``:
``alone`` decodes one after the other; ``together`` starts stream i after i steps of the others and
decodes all that are ready in one batch; ``reset`` hears the first second of the last recording and
is reset before each.
"""

import json
import sys

import numpy as np
import sherpa_onnx


def answer(request):
    """Tokens and time stamps of each recording, and the version."""
    recognizer = sherpa_onnx.OnlineRecognizer.from_zipformer2_ctc(
        tokens=request["tokens"],
        model=request["model"],
        num_threads=1,
        sample_rate=request["rate"],
        feature_dim=request["feature_dim"],
    )
    with np.load(request["recordings"]) as arrays:
        waves = [arrays[name] for name in arrays.files]
    ended = [False] * len(waves)
    streams = [recognizer.create_stream() for _ in waves]
    if request["way"] == "reset":
        for stream in streams:
            stream.accept_waveform(request["rate"], waves[-1][: request["rate"]])
            while recognizer.is_ready(stream):
                recognizer.decode_stream(stream)
            recognizer.reset(stream)  # features that no step has read yet stay
    if request["way"] == "together":
        for step in range(10**6):
            if step < len(waves):
                streams[step].accept_waveform(request["rate"], waves[step])
                streams[step].input_finished()
                ended[step] = True
            ready = [stream for stream in streams if recognizer.is_ready(stream)]
            if ready:
                recognizer.decode_streams(ready)
            elif all(ended):
                break
    else:
        for stream, wave in zip(streams, waves, strict=True):
            stream.accept_waveform(request["rate"], wave)
            stream.input_finished()
            while recognizer.is_ready(stream):
                recognizer.decode_stream(stream)
    return [
        {"tokens": recognizer.tokens(s), "timestamps": recognizer.timestamps(s)} for s in streams
    ]


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        found = answer(json.load(file))
    with open(sys.argv[2], "w") as file:
        json.dump({"version": sherpa_onnx.__version__, "results": found}, file)
