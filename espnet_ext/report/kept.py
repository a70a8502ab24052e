"""Results that a repository keeps: small files from which every table can be made again.

    results/data/<test set>/{text,utt2spk}      the references, once
    results/seed<N>/<model>/                    one trained model
        config.yaml                             of its training, with the seed
        train.log                               the lines about its epochs, and the last ones
        evaluation_results.json  grid.json      what was measured
        <decoding>/<test set>/text              what was recognised
        valid.acc.ave.pth  feats_stats.npz      the weights, of few models

A directory of a model is one of ``exp`` without what is large, so commands that take a trained
model take it where it has weights; ``restore`` scores the texts again for those that take scores.
"""

import re
from functools import cached_property
from pathlib import Path

from espnet_ext.attention.registry import ATTENTIONS, cache_kind
from espnet_ext.data.kaldi import read_scp
from espnet_ext.errors import UserError
from espnet_ext.files import KB, write_atomic
from espnet_ext.register import ENCODERS
from espnet_ext.report import schema
from espnet_ext.report.compare import GRID, Row, grid_cells
from espnet_ext.report.statistics import Errors, paired_bootstrap, seeds_bootstrap, spread
from espnet_ext.results import GRID as CELLS
from espnet_ext.results import read_json
from espnet_ext.scoring import Score, score, write_score

REFERENCES = ("text", "utt2spk")
#: chunk size of the live streams whose tables are made, as evaluation decodes them
CHUNK = 16
MARK = re.compile(r"<!-- table: (\w+) -->\n*(?:(?:\|[^\n]*\n)+\n?)?")


class Kept:
    """One trained model of the kept results.

    Args:
        results: Directory of the kept results.
        directory: Of the model in it.
    """

    def __init__(self, results, directory):
        self.results, self.directory = Path(results), Path(directory)

    @property
    def name(self) -> str:
        """Encoder and attention, as the YAML is called."""
        return self.directory.name

    @cached_property
    def evaluation(self) -> dict | None:
        """What ``evaluation_results.json`` holds, if it is there."""
        path = self.directory / schema.NAME
        return schema.read(path) if path.is_file() else None

    @cached_property
    def grid(self) -> dict | None:
        """What ``grid.json`` holds, if it is there."""
        path = self.directory / GRID
        return read_json(path, CELLS) if path.is_file() else None

    def cells(self, dataset: str) -> dict[tuple[int, int], dict]:
        """The cells of ``grid`` by chunk size and left context, ``CHUNK`` with -1 among them.

        Raises:
            UserError: It has not decoded the test set, or lacks that cell.
        """
        cells = {(c["chunk_size"], c["left_context"]): c for c in self.grid["cells"]}
        if (CHUNK, -1) not in cells or any(dataset not in c["wer"] for c in cells.values()):
            raise UserError(
                f"{self.directory / GRID}: lacks {dataset}, or its chunk size {CHUNK} with all of "
                "the left context; run espnet-ext grid and keep again"
            )
        return cells

    def streamed(self, dataset: str) -> tuple[int, int]:
        """The one of ``cells`` that pages show first: 64 frames of left context; linear has all.

        Raises:
            UserError: There are others, and it is not among them.
        """
        cells = self.cells(dataset)
        if (CHUNK, 64) not in cells and any(left >= 0 for _, left in cells):
            raise UserError(
                f"{self.directory / GRID}: lacks chunk size {CHUNK} with left context 64; run "
                "espnet-ext grid and keep again"
            )
        return (CHUNK, 64) if (CHUNK, 64) in cells else (CHUNK, -1)

    def errors(self, dataset: str, cell: tuple[int, int]) -> tuple[Errors, dict[str, str]]:
        """Errors and words, and the speaker, of each utterance in one of ``cells``."""
        own, data = self.cells(dataset)[cell]["wer"][dataset]["errors"], self.grid["sets"][dataset]
        ids, words, speakers = (data[key] for key in ("utterances", "words", "speakers"))
        if not len(own) == len(ids) == len(words) == len(speakers):
            raise UserError(f"{self.directory / GRID}: {dataset} has too few errors; make it again")
        pairs = zip(own, words, strict=True)
        return dict(zip(ids, pairs, strict=True)), dict(zip(ids, speakers, strict=True))

    @cached_property
    def scores(self) -> dict[str, Score]:
        """Words of each recognised text against the references, by ``<decoding>/<test set>``."""
        found = {}
        for path in sorted(self.directory.glob("*/**/text")):
            place = path.parent.relative_to(self.directory)
            references = read_scp(self.references(place) / "text")
            try:
                found[str(place)] = score(references, read_scp(path), str.split)
            except UserError as error:
                raise UserError(f"{path}: {error}") from None
        return found

    def offline(self, dataset: str) -> str | None:
        """The first ``<decoding>/<test set>`` of whole recordings, if there is one."""
        places = (place for place in self.scores if not place.startswith("streaming_"))
        return next((place for place in places if place.partition("/")[2] == dataset), None)

    def references(self, place) -> Path:
        """Directory of the references of ``<decoding>/<test set>``."""
        return self.results.joinpath("data", *Path(place).parts[1:])

    def speakers(self, place) -> dict[str, str]:
        """Speaker of each utterance of ``<decoding>/<test set>``."""
        path = self.references(place) / "utt2spk"
        speakers = read_scp(path)
        if missing := set(self.scores[place].ids) - speakers.keys():
            raise UserError(f"{path}: has no {min(missing)}; keep the results again")
        return speakers

    def counts(self, place) -> dict[str, tuple[int, int]]:
        """Errors and words of each utterance of ``<decoding>/<test set>``."""
        counted = self.scores[place]
        errors, words = counted.counts[:, 1:].sum(1), counted.counts[:, :3].sum(1)
        pairs = zip(errors.tolist(), words.tolist(), strict=True)
        return dict(zip(counted.ids, pairs, strict=True))


def read_kept(results) -> dict[int, dict[str, Kept]]:
    """The kept models by seed and name, in the order of tables."""

    encoders = [name.removeprefix("kv_") for name in ENCODERS]
    known = [f"{encoder}_{attention}" for encoder in encoders for attention in ATTENTIONS]

    def order(path):
        return known.index(path.name) if path.name in known else len(known), path.name

    found = {}
    for path in sorted(Path(results).glob("seed*")):
        if path.name[4:].isdecimal():
            directories = sorted((file.parent for file in path.glob("*/config.yaml")), key=order)
            found[int(path.name[4:])] = {d.name: Kept(results, d) for d in directories}
    return dict(sorted(found.items()))


def restore(models: dict[str, Kept], expdir) -> None:
    """Write directories of models as evaluation leaves them, for ``asr_compare --expdir``.

    Those without ``evaluation_results.json`` are left out.

    Raises:
        UserError: There are no others.
    """
    evaluated = {name: model for name, model in models.items() if model.evaluation}
    if not evaluated:
        raise UserError(
            f"{expdir}: no kept model of this seed has {schema.NAME}; run espnet-ext evaluate and "
            "keep again"
        )
    for name, model in evaluated.items():
        target = Path(expdir) / name
        for place, counted in model.scores.items():
            write_score(target / place / "score_wer", counted, model.speakers(place))
        for file in ("config.yaml", schema.NAME):
            write_atomic(target / file, (model.directory / file).read_bytes())


# tables


def label(model: dict) -> str:
    """A model as a reader knows it, such as ``Conformer GQA, 2 key-value heads``."""
    name, options = model["attention"], model["attention_conf"]
    heads, rank = options.get("n_kv_head"), options.get("kv_lora_rank")
    detail = f", {heads} key-value heads" if heads else f", rank {rank}" if rank else ""
    name = name.upper() if name in ("mha", "gqa", "mla") else name
    return f"{model['encoder'].replace('_', '-').title()} {name}{detail}"


def markdown(header, rows) -> str:
    """A table as Markdown has it."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in row)}|\n" for row in lines)


def _to(interval):
    return f"{interval[0]:.2f} to {interval[1]:.2f}"


def table_models(models: dict[str, Kept], dataset: str) -> str:
    """Error rates offline and streaming, caches, states, and the difference from MHA."""
    header = ["model", "offline", "interval", "streaming, 64", "interval", "streaming, 16"]
    header += ["cache KB", "MHA / this", "state KB", "difference", "p"]
    rows, mha = [], {}
    for model in models.values():
        place = model.offline(dataset)
        if model.grid is None or place is None:
            continue
        encoder, speakers = model.grid["encoder"], model.speakers(place)
        cells = model.cells(dataset)
        own, lossless = _sizes(model, dataset)
        narrow = cells.get((CHUNK, 16), {"wer": {}})["wer"].get(dataset)
        counted = model.scores[place]
        streamed = cells[model.streamed(dataset)]["wer"][dataset]
        rates = [f"{counted.summary()['err']:.2f}", _to(counted.interval(speakers))]
        rates += [f"{streamed['wer']:.2f}", _to(streamed["interval_95"])]
        rates += [f"{narrow['wer']:.2f}" if narrow else ""]
        test = None
        if model.grid["attention"] == "mha":
            mha[encoder] = own | {"counts": model.counts(place)}
        elif encoder in mha:
            test = paired_bootstrap(model.counts(place), mha[encoder]["counts"], speakers)
        whole = mha.get(encoder, own)["cache"]
        rows.append([label(model.grid), *rates, *_costs(own, whole), *_difference(test)])
        if lossless:
            rows.append(["the same, input cache", *rates, *_costs(lossless, whole), "", ""])
    return markdown(header, rows)


def _sizes(model, dataset):
    """Bytes of the cache after 1000 frames and of a stream, and with the input cache, if MHA."""
    cells = model.cells(dataset)
    longest = min((c for (_, left), c in cells.items() if left < 0), key=lambda c: c["frames"])
    stream = cells[model.streamed(dataset)]
    own = {"cache": longest["ledger"]["attention"], "state": stream["bytes"]}
    if "input_cache_bytes" not in stream:
        return own, None
    less = longest["bytes"] - longest["input_cache_bytes"]
    return own, {"cache": own["cache"] - less, "state": stream["input_cache_bytes"]}


def _costs(own, whole):
    ratio = whole / own["cache"]
    cache, state = _kb(own)
    return [cache, f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.3g}", state]


def _kb(sizes):
    return f"{sizes['cache'] / KB:.0f}", f"{sizes['state'] / KB:.1f}"


def table_grid(models: dict[str, Kept], dataset: str) -> str:
    """Error rates and states of every cell, a row for each model and chunk size."""
    grids = [model.grid for model in models.values() if model.grid and model.cells(dataset)]
    lefts = sorted({c["left_context"] for g in grids for c in g["cells"]}, key=lambda n: n % 2**32)
    names = ["all" if left < 0 else str(left) for left in lefts]
    header = ["model", "chunk", "latency ms", *names]
    rows = []
    for found in grids:
        for size in sorted({cell["chunk_size"] for cell in found["cells"]}):
            cells = {c["left_context"]: c for c in found["cells"] if c["chunk_size"] == size}
            latency = next(iter(cells.values()))["latency_ms"]
            shown = [_cell(cells[left], dataset) if left in cells else "" for left in lefts]
            rows.append([label(found), str(size), f"{latency:.0f}", *shown])
    return markdown(header, rows)


def _cell(cell, dataset):
    mark = "" if cell["in_trained_range"] else "*"
    return f"{cell['wer'][dataset]['wer']:.2f}{mark} ({cell['bytes'] / KB:.0f})"


def table_dtypes(models: dict[str, Kept], dataset: str) -> str:
    """Error rates and states of streams with narrower caches, and how many texts are the same."""
    found = []
    for model in models.values():
        for cell in model.cells(dataset).values() if model.grid else ():
            lives = cell.get("cache_dtypes") or {}
            if any(dataset in live["wer"] for live in lives.values()):
                found.append((label(model.grid), cell))
    dtypes = list(dict.fromkeys(dtype for _, cell in found for dtype in cell["cache_dtypes"]))
    header = ["model", "chunk", "left context", "float32"]
    header += [word for dtype in dtypes for word in (dtype, "same text")]
    rows = []
    for name, cell in found:
        left = "all" if cell["left_context"] < 0 else str(cell["left_context"])
        row = [name, str(cell["chunk_size"]), left, _cell(cell, dataset)]
        for live in map(cell["cache_dtypes"].get, dtypes):
            row += [_cell(cell | live, dataset), str(live["same_text"])] if live else ["", ""]
        rows.append(row)
    return markdown(header, rows)


def table_seeds(kept: dict[int, dict[str, Kept]], dataset: str) -> str:
    """Mean and spread over the seeds of two cells, and in the second the difference from MHA."""
    header = ["model", "seeds"]
    for cell in ("64", "all"):
        header += [f"chunk {CHUNK}, {cell}", "deviation", "of each seed"]
    header += ["difference", "p", "that is"]
    rows = []
    for found, test in _over_seeds(kept, dataset, lambda model: (CHUNK, -1)):
        row = [label(next(iter(found.values())).grid), " ".join(map(str, found))]
        for left in (64, -1):
            cells = [one.cells(dataset).get((CHUNK, left)) for one in found.values()]
            row += _spread([cell["wer"][dataset]["wer"] for cell in cells if cell])
        rows.append([*row, *_difference(test), test["verdict"] if test else ""])
    return markdown(header, rows)


def table_summary(kept: dict[int, dict[str, Kept]], dataset: str) -> str:
    """Of models with several seeds: mean, spread and difference of a stream, and what it keeps."""
    header = ["model", "WER, mean", "deviation", "difference from MHA", "that is"]
    header += ["cache, KB per 1000 frames", "state of a stream, KB"]
    rows = []
    for found, test in _over_seeds(kept, dataset, lambda model: model.streamed(dataset)):
        if len(found) == 1:
            continue
        cells = [one.cells(dataset)[one.streamed(dataset)] for one in found.values()]
        mean, deviation, _ = _spread([cell["wer"][dataset]["wer"] for cell in cells])
        said = test["verdict"].partition(":")[0] if test else ""
        rates = [mean, deviation, _difference(test)[0], said]
        first = next(iter(found.values()))
        own, lossless = _sizes(first, dataset)
        for name, sizes in ((label(first.grid), own), ("the same, input cache", lossless)):
            if sizes:
                rows.append([name, *rates, *_kb(sizes)])
    return markdown(header, rows)


def _over_seeds(kept, dataset, cell):
    """Per model its trainings by seed, and the difference from MHA's in a cell, of most of them.

    The cell is that of ``cell(model)``.
    """
    mha = {}
    for name in dict.fromkeys(name for models in kept.values() for name in models):
        found = {s: models[name] for s, models in kept.items() if name in models}
        found = {seed: one for seed, one in found.items() if one.grid and one.cells(dataset)}
        if not found:
            continue
        counts = {seed: one.errors(dataset, cell(one)) for seed, one in found.items()}
        errors = {seed: own for seed, (own, _) in counts.items()}
        first, test = next(iter(found.values())).grid, None
        if first["attention"] == "mha":
            mha[first["encoder"]] = errors
        elif first["encoder"] in mha:
            speakers = next(iter(counts.values()))[1]
            test = seeds_bootstrap(errors, mha[first["encoder"]], speakers)
        yield found, test


def _spread(rates):
    if not rates:
        return ["", "", ""]
    made = spread(rates)
    deviation = "" if made["deviation"] is None else f"{made['deviation']:.2f}"
    return [f"{made['mean']:.2f}", deviation, " ".join(f"{rate:.2f}" for rate in rates)]


def _difference(test):
    if test is None:
        return ["", ""]
    return [f"{test['difference']:.2f} ({_to(test['interval_95'])})", f"{test['p']:.2g}"]


def grid_rows(models: dict[str, Kept], dataset: str) -> list[Row]:
    """The cells of models, also with the lossless input cache; see ``grid_cells``."""
    rows = []
    for name, model in models.items():
        if model.grid and model.cells(dataset):
            row = {"status": "measured", "stem": name, **model.grid}
            kind = cache_kind(row["attention"], row["attention_conf"])
            lossless = [c for c in row["cells"] if c.get("input_cache_bytes") is not None]
            rows.append(row | {"cache_kind": kind})
            rows.append(row | {"cache_kind": "input", "is_view": True, "cells": lossless})
    return grid_cells(rows)


def tables(results, dataset: str, seed: int = 1) -> dict[str, str]:
    """Every table of a page of results, as Markdown, by name."""
    kept = read_kept(results)
    models = kept.get(seed, {})
    return {
        "models": table_models(models, dataset),
        "grid": table_grid(models, dataset),
        "dtypes": table_dtypes(models, dataset),
        "seeds": table_seeds(kept, dataset),
        "summary": table_summary(kept, dataset),
    }


def updated(page: str, made: dict[str, str]) -> str:
    """A page with the table after each ``<!-- table: NAME -->`` as it was made now."""

    def table(match):
        if match[1] not in made:
            raise UserError(f"no table is called {match[1]}; there are {', '.join(made)}")
        return f"<!-- table: {match[1]} -->\n\n{made[match[1]]}\n"

    page, number = MARK.subn(table, page)
    if not number:
        raise UserError(f"has no <!-- table: NAME -->; tables are {', '.join(made)}")
    return page
