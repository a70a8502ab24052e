"""Rows, statistics and budgets of a comparison, from the evaluation_results.json of each model."""

from pathlib import Path

from espnet_ext.config import read_config
from espnet_ext.errors import UserError
from espnet_ext.report.schema import NAME, read, text
from espnet_ext.report.statistics import paired_bootstrap, read_score

#: KB per stream of the equal-byte view
BUDGETS = (32, 64, 128, 256, 512, 1024, 2048, 4096)


class Comparison:
    """Everything that the tables, the plots and the page show.

    Args:
        expdir: Directory of the models.
        encoders: Encoders that a row is expected of, such as ``conformer``.
        attentions: Attentions that a row is expected of.
        baselines: YAML of published results, or None.

    Attributes:
        models: Results of the models, of which one file each could be read.
        rows: ``models``, the rows with the lossless input cache, and what is missing.
        notes: What was skipped, and why.
        sets: Test sets.
        statistics: Per row name and test set, the paired bootstrap against MHA.
        published: Published rows, empty unless a test set is the real one.
    """

    def __init__(self, expdir, encoders, attentions, baselines=None):
        self.expdir = Path(expdir)
        self.notes = []
        self.models = self._read()
        self.sets = sorted({name for model in self.models for name in model["wer"]})
        self.rows = self._rows(encoders, attentions)
        self.statistics = self._statistics()
        self.published, self.published_sets = self._published(baselines)

    def _read(self):
        models = []
        for path in sorted(self.expdir.glob(f"*/{NAME}")):
            try:
                models.append(read(path))
            except UserError as error:
                self.notes.append(f"skipped {error}")
        return models

    def _rows(self, encoders, attentions):
        known = {(model["encoder"], model["attention"]) for model in self.models}
        expected = [(e, a) for e in encoders for a in attentions]
        order = expected + sorted(known - set(expected))
        rows = []
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

    def _reason(self, encoder, attention):
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

    def baseline(self, model):
        """The multi-head model that differs from ``model`` in its attention alone, or None."""
        for other in self.models:
            if other["attention"] == "mha" and _rest(other) == _rest(model):
                return other
        return None

    def _statistics(self):
        found, counted = {}, {}

        def counts(model, name):
            key = model["model"], name
            if key not in counted:
                directory = self.expdir / model["model"] / model["wer"][name]["directory"]
                counted[key] = read_score(directory)
            return counted[key]

        for model in self.models:
            baseline = self.baseline(model)
            if baseline is None or baseline is model:
                continue
            for name in model["wer"].keys() & baseline["wer"].keys():
                try:
                    own, speakers = counts(model, name)
                    test = paired_bootstrap(own, counts(baseline, name)[0], speakers)
                except UserError as error:
                    self.notes.append(f"no statistics of {model['model']}, {name}: {error}")
                    continue
                found[model["model"], name] = test | {"baseline": baseline["model"]}
        return found

    def _published(self, path):
        if path is None:
            return [], []
        content = read_config(path)
        real = [
            name
            for name in self.sets
            if any(
                model["wer"].get(name, {}).get("words") == content["reference_words"].get(name)
                for model in self.models
                if name in model["wer"]
            )
        ]
        return (content["rows"] if real else []), real

    def points(self):
        """(row, stream, WER per set) of every streaming decoding, whose state size is measured."""
        points = []
        for row in self.rows:
            for decoded in row.get("streaming_wer") or []:
                for stream in row["cache"]["streams"]:
                    same = all(stream[k] == decoded[k] for k in ("chunk_size", "left_context"))
                    if same and decoded["wer"]:
                        points.append((row, stream, decoded["wer"]))
        return points

    def winners(self):
        """Per budget in KB and test set, the point of the lowest WER that fits, or None."""
        points = self.points()
        return {
            (budget, name): min(
                (p for p in points if p[1]["total_kb"] <= budget and name in p[2]),
                key=lambda p: (p[2][name]["wer"], p[1]["total_kb"]),
                default=None,
            )
            for budget in BUDGETS
            for name in self.sets
        }

    def affordable(self, row, budget):
        """Encoder frames of left context that a stream's state has room for in ``budget`` KB.

        Returns:
            None where not even the rest of the state fits; -1 where the past takes no room.
        """
        cache = row["cache"]
        stream = cache["streams"][-1]
        room = round(1024 * (budget - stream["total_kb"]))  # bytes: the file has 4 decimals of a KB
        if not cache["bytes_per_frame"]:
            return -1 if room >= 0 else None
        kept = stream["left_context"] if stream["left_context"] >= 0 else cache["frames"]
        frames = kept + room // cache["bytes_per_frame"]
        return frames if frames >= 0 else None


def _rest(model):
    conf = model["encoder_conf"]
    own = ("attention", "attention_conf")
    return model["encoder"], {key: conf[key] for key in conf.keys() - set(own)}


def _cache_kind(model):
    """What a frame leaves in the cache of a model."""
    conf = model["encoder_conf"].get("attention_conf") or {}
    kinds = {"mla": "latent", "linear": "sums"}
    return kinds.get(model["attention"], conf.get("cache", "kv"))


def row_name(row) -> str:
    """Encoder, attention, the directory where several have both, and the lossless input cache."""
    variant = f", {text(row['variant'])}" if "variant" in row else ""
    cache = " (input cache)" if row.get("cache_kind") == "input" else ""
    return f"{text(row['encoder'])} {text(row['attention'])}{variant}{cache}"
