"""Rows, statistics and budgets of a comparison, from the evaluation_results.json of each model."""

import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from espnet_ext.attention.registry import cache_kind
from espnet_ext.config import read_config
from espnet_ext.errors import UserError, about
from espnet_ext.files import KB
from espnet_ext.report.schema import NAME, read, text
from espnet_ext.report.statistics import paired_bootstrap, read_score, seeds_bootstrap, spread
from espnet_ext.results import GRID as CELLS
from espnet_ext.results import PUBLISHED, check, read_json

GRID = "grid.json"
#: how asr.sh writes the seed of a training into the name of a directory
SEED = re.compile(r"_seed(\d+)(?=_|$)")
#: what cells cost -> what their Pareto fronts are called
COSTS = {"kb": "bytes", "latency_ms": "latency"}
#: KB per stream of the equal-byte view
BUDGETS = (32, 64, 128, 256, 512, 1024, 2048, 4096)


#: a model, or what of it stands in a row, by the keys of evaluation_results.json and some more
Row = dict[str, Any]


class Comparison:
    """Everything that the tables, the plots and the page show.

    Args:
        expdir: Directory of the models, or several, of several machines: each a directory of
            models, that of a model, or an ``evaluation_results.json``.
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

    Raises:
        UserError: A model is there twice, or seeds of a model differ in more than the seed.
    """

    def __init__(
        self,
        expdir: str | Path | Iterable[str | Path],
        encoders: list[str],
        attentions: list[str],
        baselines: str | Path | None = None,
    ) -> None:
        expdirs = [expdir] if isinstance(expdir, (str, Path)) else expdir
        self.expdirs = [Path(path) for path in expdirs]
        self.notes: list[str] = []
        self.models = self._read()
        self.seeds = self._by_seed()
        self.sets = sorted({name for model in self.models for name in model["wer"]})
        self._counts: dict[Path, Any] = {}
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
        """The measured rows without those of a model as it would be with another cache."""
        return [row for row in self.measured if not row.get("is_view")]

    @property
    def frames(self) -> str:
        """After how many encoder frames caches are measured; several if models differ."""
        return (
            "/".join(map(str, sorted({row["cache"]["frames"] for row in self.measured}))) or "all"
        )

    def _read(self) -> list[Row]:
        models = []
        for expdir in self.expdirs:
            below = sorted(expdir.glob(f"*/{NAME}"))
            paths = [expdir] if expdir.is_file() else [expdir / NAME, *below]
            paths = [path for path in paths if path.is_file()]
            if not paths and len(self.expdirs) > 1:
                self.notes.append(f"{expdir}: no {NAME} in it")
            # a directory may have been renamed since; the name of a lone file says nothing
            names = [{} if path == expdir else {"model": path.parent.name} for path in paths]
            found = (self._model(*each) for each in zip(paths, names, strict=True))
            models += [model for model in found if model]
        return models

    def _model(self, path: Path, name: Row) -> Row | None:
        """A model's results, with ``cells`` of its grid, if it has one."""
        try:
            model = read(path) | name
        except UserError as error:
            self.notes.append(f"skipped {error}")
            return None
        named = SEED.search(model["model"])
        seed = model.get("seed")
        seed = int(named[1]) if seed is None and named else seed
        model |= {"path": path, "stem": SEED.sub("", model["model"]), "seed": seed}
        try:
            grid = path.with_name(GRID)
            return model | {"cells": read_json(grid, CELLS)["cells"] if grid.is_file() else []}
        except UserError as error:
            self.notes.append(f"skipped {error}")
            return model | {"cells": []}

    def _by_seed(self) -> dict[str, dict[Any, Row]]:
        """Models that differ in the seed alone, by what their names have in common."""
        found: dict[str, dict[Any, Row]] = {}
        for model in self.models:
            same = found.setdefault(model["stem"], {})
            if other := same.get(model["seed"]):
                raise UserError(
                    f"{model['path']}: is {model['stem']}, seed {model['seed']}, "
                    f"as {other['path']} is: give one of them"
                )
            first = next(iter(same.values()), model)
            for key in ("encoder", "attention", "encoder_conf", "parameters"):
                if first[key] != model[key]:
                    raise UserError(
                        f"{model['path']}: is a seed of {first['path']} by its name, "
                        f"but not by its {key}: rename one of them"
                    )
            same[model["seed"]] = model
        return found

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
                if len({other["stem"] for other in found}) > 1:
                    model = model | {"variant": model["stem"]}
                if len(self.seeds[model["stem"]]) > 1:
                    model = model | {"row_seed": model["seed"]}
                model |= {"status": "measured"}
                rows.append(model | {"cache_kind": _cache_kind(model)})
                if lossless := model.get("input_cache"):
                    rows.append(model | {"cache_kind": "input", "is_view": True} | lossless)
            if not found:
                row = {"status": "missing", "encoder": encoder, "attention": attention}
                rows.append(row | {"reason": self._reason(encoder, attention)})
        return rows

    def _reason(self, encoder: str, attention: str) -> str:
        """How far a model without results has come."""
        found = (path for expdir in self.expdirs for path in expdir.glob("asr_*/config.yaml"))
        for path in sorted(found):
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
        """The multi-head model that differs from ``model`` in its attention alone, or None.

        Of several, one of the same seed.
        """
        found = (m for m in self.models if m["attention"] == "mha" and _rest(m) == _rest(model))
        return min(found, key=lambda other: other["seed"] != model["seed"], default=None)

    def _score(self, model: Row, directory: str) -> Any:
        """What ``read_score`` finds of a decoding of a model, read once."""
        path = model["path"].parent / directory
        if path not in self._counts:
            self._counts[path] = read_score(path)
        return self._counts[path]

    def _tests(self, model: Row) -> dict[str, Row]:
        """Test set -> whether a model differs from MHA."""
        tests: dict[str, Row] = {}
        baseline = self.baseline(model)
        if baseline is None or baseline is model:
            return tests
        for name in sorted(model["wer"].keys() & baseline["wer"].keys()):
            try:
                own, speakers = self._score(model, model["wer"][name]["directory"])
                other, _ = self._score(baseline, baseline["wer"][name]["directory"])
                test = paired_bootstrap(own, other, speakers)
            except UserError as error:
                self.notes.append(f"no statistics of {model['model']}, {name}: {error}")
                continue
            tests[name] = test | {"baseline": baseline["model"]}
        return tests

    @cached_property
    def over_seeds(self) -> list[Row]:
        """Models with several seeds, a row per decoding: ``spread`` and ``tests`` per test set."""
        rows = []
        for row in self.own:
            models = self.seeds[row["stem"]]
            if len(models) == 1 or row["seed"] != next(iter(models)):
                continue
            baseline = self.baseline(row)
            against = self.seeds[baseline["stem"]] if baseline else {}
            for view, first in _decodings(row).items():
                spreads, tests = {}, {}
                for name in first:
                    own, other = (_of_view(found, view, name) for found in (models, against))
                    spreads[name] = spread([wer["wer"] for _, wer in own.values()])
                    if against and against is not models:
                        tests[name] = self._over_seeds(own, other, row, name)
                rows.append(
                    row
                    | {"row_seed": None, "view": view, "spread": spreads}
                    | {"tests": {name: test for name, test in tests.items() if test}}
                    | {"seeds": list(models)}
                )
        return rows

    def _over_seeds(
        self, own: dict[int, Any], other: dict[int, Any], row: Row, name: str
    ) -> Row | None:
        """``seeds_bootstrap`` of the decodings of two models by seed; see ``_of_view``."""
        try:
            mine, theirs = (
                {s: self._score(m, wer["directory"])[0] for s, (m, wer) in found.items()}
                for found in (own, other)
            )
            model, wer = next(iter(own.values()))
            speakers = self._score(model, wer["directory"])[1]
            baseline = next((m["stem"] for m, _ in other.values()), None)
            return seeds_bootstrap(mine, theirs, speakers) | {"baseline": baseline}
        except UserError as error:
            self.notes.append(f"no statistics over seeds of {row['stem']}, {name}: {error}")
            return None

    @cached_property
    def cells(self) -> list[Row]:
        """Cells of the grids; see ``grid_cells``."""
        return grid_cells(self.measured)

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


def grid_cells(rows: Iterable[Row]) -> list[Row]:
    """What models do at each chunk size and left context.

    Args:
        rows: Models, with the ``cells`` of their grid.json; seeds of a model share ``stem``. Where
            ``is_view``, as they would be with the lossless input cache.

    Returns:
        A row per cell of a model: its ``cell`` has ``kb``, ``wer`` per test set as the mean over
        seeds, and ``front`` per test set: the costs of which no other cell has less without more
        errors.
    """
    found: dict[tuple[Any, ...], list[tuple[Row, Row]]] = {}
    for row in rows:
        for cell in row["cells"]:
            place = cell["chunk_size"], cell["left_context"]
            found.setdefault((row["stem"], row["cache_kind"], *place), []).append((row, cell))
    made = []
    for same in found.values():
        row, cell = same[0]
        size = cell.get("input_cache_bytes") if row.get("is_view") else cell["bytes"]
        if size is None:
            continue
        own = {"seeds": len(same), "kb": round(size / KB, 4), "front": {}}
        own["wer"] = {
            name: spread([c["wer"][name]["wer"] for _, c in same if name in c["wer"]])["mean"]
            for name in cell["wer"]
        }
        made.append(row | {"row_seed": None if len(same) > 1 else row.get("row_seed")})
        made[-1]["cell"] = cell | own
    cells = [row["cell"] for row in made]
    for cell in cells:
        for name, wer in cell["wer"].items():
            rivals = [other for other in cells if name in other["wer"]]
            cell["front"][name] = [
                title
                for cost, title in COSTS.items()
                if not any(
                    other["wer"][name] <= wer
                    and other[cost] <= cell[cost]
                    and (other["wer"][name], other[cost]) != (wer, cell[cost])
                    for other in rivals
                )
            ]
    return made


def _decodings(model: Row) -> dict[str, Row]:
    """Error rates per test set of each decoding, by what the reader calls it."""
    found = {"offline": model["wer"]}
    for stream in model["streaming_wer"]:
        left = "all" if stream["left_context"] == -1 else stream["left_context"]
        found[f"chunk {stream['chunk_size']}, left context {left}"] = stream["wer"]
    return found


def _of_view(models: dict[Any, Row], view: str, name: str) -> dict[Any, tuple[Row, Row]]:
    """Seed -> model and its error rate of a decoding and test set, of those that have it."""
    return {
        seed: (model, wers[name])
        for seed, model in models.items()
        if name in (wers := _decodings(model).get(view, {}))
    }


def _rest(model: Row) -> tuple[str, Row]:
    conf = model["encoder_conf"]
    own = ("attention", "attention_conf")
    return model["encoder"], {key: conf[key] for key in conf.keys() - set(own)}


def _cache_kind(model: Row) -> str:
    """What a frame leaves in the cache of a model."""
    return cache_kind(model["attention"], model["encoder_conf"].get("attention_conf") or {})


def row_name(row: Row) -> str:
    """Encoder, attention, what else tells it from others, and the lossless input cache.

    Of a published row, its name.
    """
    if row["status"] == "published":
        return text(row["name"])
    variant = f", {text(row['variant'])}" if "variant" in row else ""
    seed = "" if row.get("row_seed") is None else f", seed {text(row['row_seed'])}"
    cache = " (input cache)" if row.get("cache_kind") == "input" else ""
    return f"{text(row['encoder'])} {text(row['attention'])}{variant}{seed}{cache}"
