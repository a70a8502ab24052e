"""Evaluate a trained model: what is not measured yet is measured, then it is all put together."""

from dataclasses import dataclass
from pathlib import Path

from espnet_ext.data.kaldi import WORD_ENDS, read_scp, read_wavs, write_scp
from espnet_ext.errors import about
from espnet_ext.evaluate import models
from espnet_ext.evaluate.models import read_model_config, scored_sets
from espnet_ext.evaluate.process import commit, workers
from espnet_ext.evaluate.training import read_training
from espnet_ext.evaluate.words import word_figures
from espnet_ext.files import KB, write_atomic
from espnet_ext.jobs import markers
from espnet_ext.model_options import add_costs, add_decoding, read_values, stream_options
from espnet_ext.options import writable
from espnet_ext.packing import CHECKPOINT, find_model
from espnet_ext.report.schema import NAME, VERSION, rounded
from espnet_ext.results import CERTIFICATE, PROFILE, WORDS, read_json, to_json
from espnet_ext.scoring import read_numbers, score_files

#: markers of what is measured, the first also of stage 16
PROFILED, CERTIFIED = ".profiled", ".certified"


@dataclass(frozen=True)
class Settings:
    """How the models of a recipe are decoded and measured.

    Attributes:
        inference_config: YAML of the decoding of whole recordings.
        inference_asr_model: File name of the checkpoint.
        inference_tag: Name of the directory of that decoding.
        streaming_config: YAML of the decoding of streams; greedy CTC search without it.
        profile_config: YAML of what is measured; see ``model_options.add_costs``.
        dumpdir: Formatted data.
        nj: Processes that decode streams.
        device: ``cpu`` or ``cuda``, for streams and measurements.
        threads: Of a process on the CPU.
    """

    inference_config: str | None = None
    inference_asr_model: str = CHECKPOINT
    inference_tag: str = f"decode_asr_asr_model_{CHECKPOINT.removesuffix('.pth')}"
    streaming_config: str | None = None
    profile_config: str | None = None
    dumpdir: str = "dump"
    nj: int = 1
    device: str = "cpu"
    threads: int = 1


class Evaluation:
    """A trained and decoded model of the recipe, which is the current directory.

    Raises:
        UserError: The model is not trained, or was not decoded.
    """

    def __init__(self, expdir, settings: Settings):
        self.expdir, self.settings = Path(expdir), settings
        self.config_path, self.checkpoint = find_model(expdir, settings.inference_asr_model)
        self.config = read_model_config(self.config_path)
        self.sets = list(scored_sets(self.expdir, settings.inference_tag))  # org/dev is one too

    @property
    def causal(self):
        """Whether the model was trained to stream."""
        return bool(self.config.get("encoder_conf", {}).get("causal"))

    def _due(self, marker, outputs, *sources, outdated=False):
        """The work of a result that is not up to date, for its marker; None where it is."""
        inputs = [self.config_path, self.checkpoint, *filter(None, sources)]
        work = markers.prepare("", map(str, inputs), outputs)
        current = not outdated and markers.up_to_date(self.expdir / marker, work)
        return None if current else work

    def _profile_due(self, wavs):
        """The work of stage 16, whose marker this is; also where keys meant something else."""
        found = self.expdir / "profile.json"
        version = read_json(found, {}).get("version") if found.is_file() else None
        files = (self.settings.profile_config, self.settings.inference_config)
        sources = [*(f"@{file}" for file in files if file), wavs]
        return self._due(PROFILED, [found.name], *sources, outdated=version != models.VERSION)

    def _decoding_due(self, tag, name):
        """The work of a test set decoded as streams."""
        config = self.settings.streaming_config
        tables = [self.data(name) / table for table in ("wav.scp", "text", "utt2spk", WORD_ENDS)]
        sources = [path for path in tables if path.exists()]
        outputs = ["text", "words.json", "score_wer/score.json"]
        return self._due(f"{tag}/{name}/.done", outputs, config and f"@{config}", *sources)

    def data(self, name):
        """A test set's directory."""
        return Path(self.settings.dumpdir) / "raw" / name

    def profile(self):
        """Measured costs; see ``espnet_ext.evaluate.cost.profile``."""
        return read_json(self.expdir / "profile.json", PROFILE)

    def measure(self, announce, log=None):
        """Measure, announce the results so far, certify and decode as streams what is not there."""
        settings, wavs = self.settings, self.data(self.sets[0]) / "wav.scp"
        with workers(settings.nj, log) as pool:
            if work := self._profile_due(wavs):
                from espnet_ext.evaluate.cost import profile

                costs = pool.submit(profile, **self._profile_options(wavs)).result()
                self._write("profile.json", to_json(costs), PROFILED, work)
            announce(self.results())
            if not self.causal:
                return
            certificate = None
            if certified := self._due(CERTIFIED, ["equivalence.json"], wavs):
                from espnet_ext.evaluate.streams import certify

                model = self._model(list(self.streams().values())[-1])
                certificate = pool.submit(certify, model, wavs, threads=settings.threads)
            decoded = [
                (tag, name, work, list(self._decode(pool, tag, name, stream)))
                for tag, stream in self.streams().items()
                for name in self.sets
                if (work := self._decoding_due(tag, name))
            ]
            if certificate:
                content = to_json(certificate.result(), indent=1)
                self._write("equivalence.json", content, CERTIFIED, certified)
            for tag, name, work, parts in decoded:
                self._score(tag, name, [part.result() for part in parts])
                markers.write(self.expdir / tag / name / ".done", work)

    def _write(self, name, content, marker, work):
        write_atomic(self.expdir / name, content.encode())
        markers.write(self.expdir / marker, work)

    def streams(self):
        """Directory name -> chunk size and left context that the model is decoded with."""
        return {
            f"streaming_C{s['chunk_size']}_L{s['left_context']}": s
            for s in self.profile()["cache"]["streams"]
        }

    def _model(self, stream):
        """Arguments of ``StreamingSpeech2Text`` for one of ``streams``."""
        model = {"asr_train_config": str(self.config_path), "asr_model_file": str(self.checkpoint)}
        sizes = {key: stream[key] for key in ("chunk_size", "left_context")}
        return model | sizes | {"device": self.settings.device}

    def _profile_options(self, wavs):
        settings = self.settings
        chosen = vars(read_values(add_costs, settings.profile_config)) | {"wav_scp": wavs}
        if settings.inference_config:
            chosen["inference_config"] = settings.inference_config
        files = {"path": self.config_path, "model_file": self.checkpoint}
        return chosen | files | {"device": settings.device, "threads": settings.threads}

    def _decode(self, pool, tag, name, stream):
        """Start the processes that decode a test set as streams, each a part of it."""
        from espnet_ext.evaluate.streams import decode

        options = read_values(add_decoding, self.settings.streaming_config)
        wavs, logdir = self.data(name) / "wav.scp", self.expdir / tag / name / "logdir"
        ids = list(read_wavs(wavs))
        number = min(self.settings.nj, len(ids))
        for n in range(number):
            yield pool.submit(
                decode,
                stream_options(options) | self._model(stream),
                wavs,
                logdir / f"output.{n + 1}",
                ids[n::number],
                options.packet_ms,
                options.offline,
                self.settings.threads,
            )

    def _score(self, tag, name, parts):
        directory, data = self.expdir / tag / name, self.data(name)
        texts = {utt: result.text.strip() for part in parts for utt, result in part.items()}
        write_scp(directory / "text", texts)
        ends = data / WORD_ENDS
        figures = word_figures(
            read_scp(data / "text"),
            {utt: result.words for part in parts for utt, result in part.items()},
            {utt: list(map(float, line.split())) for utt, line in read_scp(ends).items()}
            if ends.exists()
            else None,
        )
        write_atomic(directory / "words.json", to_json(figures).encode())
        kind = self.config.get("token_type", "bpe")
        bpemodel = self.config.get("bpemodel") if kind == "bpe" else None
        files = data / "text", directory / "text", directory, data / "utt2spk"
        score_files(*files, kind, bpemodel)

    def results(self) -> dict:
        """The content of ``evaluation_results.json``; see docs/report.md."""
        profile = self.profile()
        training = read_training(self.expdir, self.config)
        return {
            "version": VERSION,
            "model": self.expdir.name,
            "encoder": profile["encoder"],
            "attention": profile["attention"],
            "encoder_conf": self.config.get("encoder_conf", {}),
            **_costs(profile),
            "wer": self._wer(self.settings.inference_tag),
            "streaming_wer": self._streaming_wer(),
            "inference_time_ms": rounded(profile["offline"]["ms_per_utterance"], 2),
            "real_time_factor": rounded(profile["offline"]["real_time_factor"], 4),
            "memory_mb": rounded(profile["offline"]["memory"]["peak_mb"], 2),
            "cuda_memory_mb": rounded(profile["offline"]["memory"]["cuda_peak_mb"], 2),
            "parameters": profile["parameters"]["model"],
            "encoder_parameters": profile["parameters"]["encoder"],
            "training_seconds": training and rounded(training["seconds"], 1),
            "training": training
            and {k: rounded(v, 2) for k, v in training.items() if k != "seconds"},
            "decoder_cache": profile["decoder"],
            "input_cache": profile.get("input_cache") and _costs(profile["input_cache"]),
            "equivalence": self._certificate(),
            "inference": self.settings.inference_tag,
            "config": str(self.config.get("config") or self.config_path),
            "seed": self.config.get("seed"),
            "commit": commit(),
            "device": profile["device"],
            "threads": profile["threads"],
            "load_average": rounded(profile["load_average"], 2),
            "torch": profile["torch"],
        }

    def _wer(self, tag):
        """Test set -> error rate and its interval, per test set that is scored."""
        found = {}
        for name in self.sets:
            path = self.expdir / tag / name / "score_wer" / "score.json"
            if path.is_file():
                score = read_numbers(path)
                words = self.expdir / tag / name / "words.json"
                figures = read_json(words, WORDS) if words.is_file() else {}
                found[name] = {
                    "wer": rounded(score["err"], 2),
                    "interval_95": [rounded(v, 2) for v in score["err_interval_95"]],
                    "drawn": score["drawn"],
                    "words": score["wrd"],
                    "utterances": score["snt"],
                    "directory": str(path.parent.relative_to(self.expdir)),
                } | {key: rounded(value, 4) for key, value in figures.items()}
        return found

    def _streaming_wer(self):
        if not self.causal:
            return []
        return [
            {key: stream[key] for key in ("chunk_size", "left_context")} | {"wer": self._wer(tag)}
            for tag, stream in self.streams().items()
        ]

    def _certificate(self):
        path = self.expdir / "equivalence.json"
        if not self.causal or not path.is_file():
            return None
        return read_json(path, CERTIFICATE)


def _costs(profile):
    """What a cache, own or input, costs."""
    cache, streaming = profile["cache"], profile["streaming"]
    streams = [
        {
            "chunk_size": s["chunk_size"],
            "left_context": s["left_context"],
            "kb": {kind: rounded(n / KB, 4) for kind, n in s["ledger"].items()},
            "total_kb": rounded(s["bytes"] / KB, 4),
            "allocated_kb": rounded(s["capacity_bytes"] / KB, 4),
        }
        for s in cache["streams"]
    ]
    costs = {
        "kv_cache_kb": rounded(cache["bytes"] / KB, 4),
        "compression_ratio": rounded(cache["mha_bytes"] / cache["bytes"], 4),
        "cache": {
            "frames": cache["frames"],
            "dtype": cache["dtype"],
            "bytes_per_frame": cache["bytes_per_frame"],
            "formula_kb": rounded(cache["formula_bytes"] / KB, 4),
            "matches_formula": not cache["differences"],
            "rebuilt_causal": cache["rebuilt_causal"],
            "streams": streams,
        },
        "multiply_adds_per_second": profile["multiply_adds"],
        "streaming": None,
        "streaming_missing": profile.get("streaming_missing"),
    }
    if streaming:
        token = streaming["first_token_ms"]
        costs["streaming"] = {
            "chunk_size": streaming["chunk_size"],
            "left_context": streaming["left_context"],
            "rebuilt_causal": streaming["rebuilt_causal"],
            "ms_per_chunk_median": rounded(streaming["ms_per_chunk_median"], 2),
            "ms_per_chunk_p95": rounded(streaming["ms_per_chunk_p95"], 2),
            "real_time_factor": rounded(streaming["real_time_factor"], 4),
            "first_token_ms": {key: rounded(ms, 2) for key, ms in token.items()},
            "memory_mb": rounded(streaming["memory"]["peak_mb"], 2),
        }
    return costs


def evaluate(expdir, settings: Settings, announce=lambda results: None, log=None) -> dict:
    """Evaluate a decoded and scored model; write and return its ``evaluation_results.json``.

    Args:
        expdir: Directory of the model.
        settings: How it is decoded and measured.
        announce: Called with the results as soon as only the figures of streams may be missing.
        log: File that gets what the processes print; their own outputs without it.
    """
    writable(Path(expdir, NAME))
    evaluation = Evaluation(expdir, settings)
    evaluation.measure(announce, log)
    results = evaluation.results()
    with about(evaluation.expdir):
        content = to_json(results, indent=1).encode()
    path = evaluation.expdir / NAME
    if not path.is_file() or path.read_bytes() != content:
        write_atomic(path, content)
    return results
