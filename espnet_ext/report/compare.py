"""Rows, statistics and budgets of a comparison, from the evaluation_results.json of each model."""

from functools import cached_property
from pathlib import Path
from typing import Any

from espnet_ext.attention.registry import cache_kind
from espnet_ext.config import read_config
from espnet_ext.errors import UserError, about
from espnet_ext.files import KB
from espnet_ext.report.schema import NAME, read, text
from espnet_ext.report.statistics import paired_bootstrap, read_score
from espnet_ext.results import PUBLISHED, check

#: KB per stream of the equal-byte view
BUDGETS = (32, 64, 128, 256, 512, 1024, 2048, 4096)


#: a model, or what of it stands in a row, by the keys of evaluation_results.json and some more
Row = dict[str, Any]


class Comparison:
    """Everything that the tables, the plots and the page show.

    Args:
        expdir: Directory of the models.
        encoders: Encoders that a row is expected of, such as ``conformer``.
        attentions: Attentions that a row is expected of.
        baselines: YAML of published results, or None.

    Attributes:
        models: Results of the models, of which one file each could be read.
        rows: ``models``, the rows with the lossless input cache, and what is missing. ``tests`` of
            a row is, per test set, the paired bootstrap against MHA.
        notes: What was skipped, and why.
        sets: Test sets.
        published: Published rows, empty unless a test set is the real one.
    """

    def __init__(
        self,
        expdir: str | Path,
        encoders: list[str],
        attentions: list[str],
        baselines: str | Path | None = None,
    ) -> None:
        self.expdir = Path(expdir)
        self.notes: list[str] = []
        self.models = self._read()
        self.sets = sorted({name for model in self.models for name in model["wer"]})
        self._counts: dict[tuple[str, str], Any] = {}
        for model in self.models:
            model["tests"] = self._tests(model)
        self.rows = self._rows(encoders, attentions)
        self.published = self._published(baselines)

    @property
    def measured(self) -> list[Row]:
        """The rows that are not missing."""
        return [row for row in self.rows if row["status"] == "measured"]

    @property
    def own(self) -> list[Row]:
        """The measured rows without those of the lossless input cache."""
        return [row for row in self.measured if row["cache_kind"] != "input"]

    @property
    def frames(self) -> str:
        """After how many encoder frames caches are measured; several if models differ."""
        return (
            "/".join(map(str, sorted({row["cache"]["frames"] for row in self.measured}))) or "all"
        )

    def _read(self) -> list[Row]:
        models = []
        for path in sorted(self.expdir.glob(f"*/{NAME}")):
            try:
                models.append(read(path))
            except UserError as error:
                self.notes.append(f"skipped {error}")
        return models

    def _rows(self, encoders: list[str], attentions: list[str]) -> list[Row]:
        known = {(model["encoder"], model["attention"]) for model in self.models}
        expected = [(e, a) for e in encoders for a in attentions]
        order = expected + sorted(known - set(expected))
        rows: list[Row] = []
        for encoder, attention in order:
            found = [
                m for m in self.models if (m["encoder"], m["attention"]) == (encoder, attention)
            ]
            for model in found:
                if len(found) > 1:
                    model = model | {"variant": model["model"]}
                rows.append({"status": "measured", "cache_kind": _cache_kind(model)} | model)
                if lossless := model.get("input_cache"):
                    rows.append(model | {"status": "measured", "cache_kind": "input"} | lossless)
            if not found:
                row = {"status": "missing", "encoder": encoder, "attention": attention}
                rows.append(row | {"reason": self._reason(encoder, attention)})
        return rows

    def _reason(self, encoder: str, attention: str) -> str:
        """How far a model without results has come."""
        for path in sorted(self.expdir.glob("asr_*/config.yaml")):
            try:
                config = read_config(path)
            except UserError as error:
                if (note := f"skipped {error}") not in self.notes:
                    self.notes.append(note)
                continue
            same = config.get("encoder") == f"kv_{encoder}"
            if same and config.get("encoder_conf", {}).get("attention", "mha") == attention:
                directory = path.parent
                if (directory / NAME).exists():
                    return f"{directory / NAME} is of no use"
                trained = any(directory.glob("valid.*.ave.pth"))
                return f"{directory}: {'not evaluated' if trained else 'training is not done'}"
        return "not trained"

    def baseline(self, model: Row) -> Row | None:
        """The multi-head model that differs from ``model`` in its attention alone, or None."""
        for other in self.models:
            if other["attention"] == "mha" and _rest(other) == _rest(model):
                return other
        return None

    def _score(self, model: Row, name: str) -> Any:
        """What ``read_score`` finds of a model and test set, read once."""
        key = model["model"], name
        if key not in self._counts:
            directory = self.expdir / model["model"] / model["wer"][name]["directory"]
            self._counts[key] = read_score(directory)
        return self._counts[key]

    def _tests(self, model: Row) -> dict[str, Row]:
        """Test set -> whether a model differs from MHA."""
        tests: dict[str, Row] = {}
        baseline = self.baseline(model)
        if baseline is None or baseline is model:
            return tests
        for name in sorted(model["wer"].keys() & baseline["wer"].keys()):
            try:
                own, speakers = self._score(model, name)
                test = paired_bootstrap(own, self._score(baseline, name)[0], speakers)
            except UserError as error:
                self.notes.append(f"no statistics of {model['model']}, {name}: {error}")
                continue
            tests[name] = test | {"baseline": baseline["model"]}
        return tests

    def _published(self, path: str | Path | None) -> list[Row]:
        """The published rows, with what they say of test sets that are the real ones."""
        if path is None:
            return []
        content = read_config(path)
        with about(path):
            check(content, PUBLISHED)
        words = content["reference_words"]
        real = [
            name
            for name in self.sets
            if name in words
            and any(m["wer"].get(name, {}).get("words") == words[name] for m in self.models)
        ]
        return [
            row
            | {"status": "published", "config": row["source"]}
            | {"wer": {name: {"wer": row["wer"].get(name)} for name in real}}
            for row in (content["rows"] if real else [])
        ]

    @cached_property
    def points(self) -> list[Row]:
        """The rows of streaming decodings whose state is measured, with stream and WER per set."""
        return [
            row | {"stream": stream, "stream_wer": decoded["wer"]}
            for row in self.rows
            for decoded in row.get("streaming_wer") or []
            for stream in row["cache"]["streams"]
            if decoded["wer"]
            and all(stream[key] == decoded[key] for key in ("chunk_size", "left_context"))
        ]

    def winners(self) -> dict[tuple[int, str], Row | None]:
        """Per budget in KB and test set, the point of the lowest WER that fits, or None."""

        def fits(point: Row, budget: int, name: str) -> bool:
            return point["stream"]["total_kb"] <= budget and name in point["stream_wer"]

        return {
            (budget, name): min(
                (point for point in self.points if fits(point, budget, name)),
                key=lambda point: (
                    point["stream_wer"][name]["wer"],  # noqa: B023  used at once
                    point["stream"]["total_kb"],
                ),
                default=None,
            )
            for budget in BUDGETS
            for name in self.sets
        }

    @staticmethod
    def affordable(row: Row, budget: float) -> int | None:
        """Encoder frames of left context that a stream's state has room for in ``budget`` KB.

        Returns:
            None where not even the rest of the state fits; -1 where the past takes no room.
        """
        cache = row["cache"]
        stream = cache["streams"][-1]
        room = round(KB * (budget - stream["total_kb"]))  # bytes: the file has 4 decimals of a KB
        if not cache["bytes_per_frame"]:
            return -1 if room >= 0 else None
        kept = stream["left_context"] if stream["left_context"] >= 0 else cache["frames"]
        frames = kept + room // cache["bytes_per_frame"]
        return frames if frames >= 0 else None


def _rest(model: Row) -> tuple[str, Row]:
    conf = model["encoder_conf"]
    own = ("attention", "attention_conf")
    return model["encoder"], {key: conf[key] for key in conf.keys() - set(own)}


def _cache_kind(model: Row) -> str:
    """What a frame leaves in the cache of a model."""
    return cache_kind(model["attention"], model["encoder_conf"].get("attention_conf") or {})


def row_name(row: Row) -> str:
    """Encoder, attention, the directory where several have both, and the lossless input cache.

    Of a published row, its name.
    """
    if row["status"] == "published":
        return text(row["name"])
    variant = f", {text(row['variant'])}" if "variant" in row else ""
    cache = " (input cache)" if row.get("cache_kind") == "input" else ""
    return f"{text(row['encoder'])} {text(row['attention'])}{variant}{cache}"
