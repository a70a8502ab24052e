"""A recording's picture: words over time, and what the models held and took for them."""

from collections.abc import Iterable

import numpy as np

from espnet_ext.resources import RESOURCES

LEVELS = 20  # of loudness, in a second


class Recording:
    """What models said of one recording, chunk by chunk; docs/serving.md has its JSON.

    Args:
        title: Of the picture.
    """

    def __init__(self, title: str) -> None:
        self.title, self.seconds = title, 0.0
        self.levels: list[float] = []
        self.models: dict[str, dict] = {}

    def expect(self, names: Iterable[str]) -> None:
        """Draw these models in this order, whichever speaks first."""
        for name in names:
            self.models.setdefault(name, {"name": name, "chunks": [], "text": "", "words": []})

    def hear(self, samples: np.ndarray, fs: int) -> None:
        """Note the loudness of samples (n,), floats in [-1, 1] of one packet."""
        self.seconds += len(samples) / fs
        part = fs // LEVELS
        for start in range(0, len(samples), part):
            self.levels.append(round(float(abs(samples[start : start + part]).max()), 3))

    def add(
        self, name: str, text: str, words: list[dict], at: float, ms: float, nbytes: dict
    ) -> None:
        """Note what a chunk gave, or what changed after it.

        Args:
            name: Of the model, which may be new.
            text: All text so far.
            words: All words so far: ``text``, ``start``, ``end``, ``confidence``, ``appeared``
                (seconds of sound that there were when it was there; None where that is not known).
            at: Seconds heard when it was there.
            ms: Milliseconds that it took.
            nbytes: State by kind, as ``Stream.ledger`` gives it.
        """
        self.expect([name])
        model = self.models[name]
        model["text"], model["words"] = text, words
        own = {kind: n for kind, n in nbytes.items() if kind != "positions"}
        model["chunks"].append({"at": round(at, 3), "ms": round(ms, 3), "bytes": own})

    def as_json(self) -> dict:
        """The whole of it."""
        return {
            "title": self.title,
            "seconds": round(self.seconds, 3),
            "levels": self.levels,
            "models": list(self.models.values()),
        }


def picture(recording: Recording | None = None) -> str:
    """A page that needs nothing else; without a recording, one that the live page fills in."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # a client needs none of it

    environment = Environment(
        loader=FileSystemLoader(RESOURCES), autoescape=True, undefined=StrictUndefined
    )
    data = None if recording is None else recording.as_json()
    return environment.get_template("serve/picture.html.j2").render(recording=data)
