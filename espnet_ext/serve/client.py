"""A recording to a server and what its models say of it back; docs/serving.md has the protocol."""

import json
import threading
import time
from collections.abc import Iterable, Iterator

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidURI
from websockets.sync.client import connect

from espnet_ext.errors import UserError


def transcribe(
    url: str,
    packets: Iterable[np.ndarray],
    rate: int,
    token: str | None = None,
    real_time: bool = False,
) -> Iterator[dict]:
    """Send packets of samples and yield what comes back.

    Args:
        url: ``ws://host:port/stream``; without a path that one is meant.
        packets: Samples (n,), floats in [-1, 1], as they come.
        rate: Hz.
        token: What the server wants to hear.
        real_time: Packets come as they are spoken.

    Yields:
        The server's messages, those of type ``started``, ``result`` and ``failed``. Results have
        all their ``words``, not the new ones alone, and a ``text``; in real time each word has
        ``appeared``: the seconds of sound that there were when it came.

    Raises:
        UserError: There is no server, it refuses, or it ends before the last result; or what
            ``packets`` raises.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    scheme, _, rest = url.partition("://")
    url = url if "/" in rest.rstrip("/") else f"{scheme}://{rest.rstrip('/')}/stream"
    try:
        socket = connect(url, additional_headers=headers, max_size=None, compression=None)
    except (OSError, InvalidHandshake, InvalidURI, TimeoutError) as error:
        raise UserError(f"{url}: no server answers ({error})") from None
    with socket:
        socket.send(json.dumps({"type": "start", "rate": rate}))
        yield from _answers(url, socket, _Sender(socket, packets, rate), real_time)


class _Sender(threading.Thread):
    """Sends while the answers are read; keeps what goes wrong, and the seconds sent."""

    def __init__(self, socket, packets, rate):
        super().__init__(daemon=True)
        self.socket, self.packets, self.rate = socket, packets, rate
        self.sent, self.moment, self.error = 0, time.monotonic(), None

    @property
    def clock(self):
        """Seconds of sound that there are by now, if it comes in real time."""
        return self.sent / self.rate + time.monotonic() - self.moment

    def run(self):
        try:
            for samples in self.packets:
                pcm = np.clip(np.rint(samples * 2**15), -(2**15), 2**15 - 1).astype("<i2")
                self.socket.send(pcm.tobytes())
                self.sent += len(samples)
                self.moment = time.monotonic()
            self.socket.send(json.dumps({"type": "finish"}))
        except ConnectionClosed:  # its reason comes with the answers
            pass
        except Exception as error:
            self.error = error
            self.socket.close()


def _answers(url, socket, sender, real_time):
    words, missing = {}, set()
    try:
        for message in map(json.loads, socket):
            name = message.get("model")
            if message["type"] == "error":
                raise UserError(f"{url}: {message['message']}")
            if message["type"] == "started":
                missing = {model["name"] for model in message["models"]}
                sender.start()
            if message["type"] == "failed":
                missing.discard(name)
            if message["type"] == "result":
                old, keep = words.get(name, []), message["keep"]
                for i, word in enumerate(message["words"], keep):
                    same = i < len(old) and old[i]["text"] == word["text"]
                    now = round(sender.clock, 3) if real_time else None
                    word["appeared"] = old[i]["appeared"] if same else now
                words[name] = message["words"] = old[:keep] + message["words"]
                message.setdefault("text", " ".join(word["text"] for word in words[name]))
                if message["is_final"]:
                    missing.discard(name)
            yield message
    except ConnectionClosed:
        pass
    if sender.error:
        raise sender.error
    if missing or not words:
        code, reason = socket.close_code, socket.close_reason
        raise UserError(f"{url}: the server is gone ({reason or code}) before the last result")
