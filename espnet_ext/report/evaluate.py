"""Evaluate trained models: what is not measured yet is measured, then it is all put together."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from espnet_ext.data.kaldi import read_scp, write_atomic, write_scp
from espnet_ext.errors import UserError, about, no_checkpoint
from espnet_ext.jobs.markers import BESIDE
from espnet_ext.options import writable
from espnet_ext.profiling import config as profiling
from espnet_ext.profiling.config import read_model_config
from espnet_ext.profiling.process import commit
from espnet_ext.profiling.training import read_training
from espnet_ext.report.schema import NAME, VERSION, rounded
from espnet_ext.results import EQUIVALENCE, PROFILE, read_json, to_json
from espnet_ext.scoring import read_numbers

KIB = 1024


class Evaluation:
    """One trained model in its recipe; paths are relative to the recipe's directory.

    Args:
        expdir: Directory of the model.
        args: Options of ``asr_evaluate``.

    Raises:
        UserError: The model is not trained, or was not decoded.
    """

    def __init__(self, expdir, args):
        self.expdir, self.args = Path(expdir), args
        self.config_path = self.expdir / "config.yaml"
        self.checkpoint = self.expdir / args.inference_asr_model
        if not self.checkpoint.is_file():
            raise no_checkpoint(self.checkpoint)
        self.config = read_model_config(self.config_path)
        decoded = self.expdir / args.inference_tag
        found = (path.parent.parent for path in decoded.glob("**/score_wer/score.json"))
        self.sets = sorted(  # org/dev is a set too
            str(path.relative_to(decoded)) for path in found if BESIDE not in path.parts
        )
        if not self.sets:
            raise UserError(
                f"{expdir}: nothing is scored in {args.inference_tag}: run stages 12 and 13"
            )

    @property
    def causal(self):
        """Whether the model was trained to stream."""
        return bool(self.config["encoder_conf"].get("causal"))

    def _fresh(self, name, *sources):
        """Whether a file was made from the present model, and from other files as they are."""
        path = self.expdir / name
        made_from = [self.checkpoint, self.config_path]
        made_from += [Path(source) for source in sources if source and Path(source).is_file()]
        newest = max(source.stat().st_mtime_ns for source in made_from)
        return path.is_file() and path.stat().st_mtime_ns >= newest

    def _profiled(self, wavs):
        """Whether ``profile.json`` is fresh, and its keys mean what they mean now."""
        if not self._fresh(
            "profile.json", self.args.profile_config, self.args.inference_config, wavs
        ):
            return False
        found = read_json(self.expdir / "profile.json")
        return isinstance(found, dict) and found.get("version") == profiling.VERSION

    def data(self, name):
        """A test set's directory."""
        return Path(self.args.dumpdir) / "raw" / name

    def profile(self):
        """Measured costs; see ``espnet_ext.profiling.cost.profile``."""
        return read_json(self.expdir / "profile.json", PROFILE)

    def measure(self, announce):
        """Measure, announce the results so far, certify and decode as streams what is not there."""
        options = ["--asr_train_config", str(self.config_path)]
        options += ["--asr_model_file", str(self.checkpoint), "--device", self.args.device]
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.args.nj, mp_context=context) as workers:
            wavs = self.data(self.sets[0]) / "wav.scp"
            if not self._profiled(wavs):
                workers.submit(_profile, self._profile_arguments()).result()
            announce(self.results())
            if not self.causal:
                return
            jobs = []
            if not self._fresh("equivalence.json", wavs):
                jobs.append(workers.submit(_certify, [*options, *self._certify_arguments()]))
            undone = [
                (tag, name, stream)
                for tag, stream in self.streams().items()
                for name in self.sets
                if not self._fresh(
                    f"{tag}/{name}/score_wer/score.json",
                    self.args.streaming_config,
                    *(self.data(name) / table for table in ("wav.scp", "text")),
                )
            ]
            for tag, name, stream in undone:
                for arguments in self._decode_arguments(tag, name, stream):
                    jobs.append(workers.submit(_decode, [*options, *arguments]))
            for job in jobs:
                job.result()
        for tag, name, _ in undone:
            self._score(tag, name)

    def streams(self):
        """Directory name -> chunk size and left context that the model is decoded with."""
        return {
            f"streaming_C{s['chunk_size']}_L{s['left_context']}": s
            for s in self.profile()["cache"]["streams"]
        }

    def _profile_arguments(self):
        arguments = ["--measure", "all", "--config", str(self.config_path)]
        arguments += ["--asr_model_file", str(self.checkpoint), "--device", self.args.device]
        arguments += ["--wav_scp", str(self.data(self.sets[0]) / "wav.scp")]
        arguments += ["--output", str(self.expdir / "profile.json")]
        for name in ("profile_config", "inference_config"):
            if value := getattr(self.args, name):
                arguments += [f"--{name}", value]
        return arguments

    def _certify_arguments(self):
        stream = list(self.streams().values())[-1]
        arguments = ["--wav_scp", str(self.data(self.sets[0]) / "wav.scp")]
        arguments += ["--chunk_size", str(stream["chunk_size"])]
        arguments += ["--left_context", str(stream["left_context"])]
        return [*arguments, "--output", str(self.expdir / "equivalence.json")]

    def _parts(self, tag, name):
        """Where the jobs of a test set put their hypotheses, and the ids that each decodes."""
        ids = list(read_scp(self.data(name) / "wav.scp"))
        count = min(self.args.nj, len(ids))
        logdir = self.expdir / tag / name / "logdir"
        return {logdir / f"output.{n + 1}": ids[n::count] for n in range(count)}

    def _decode_arguments(self, tag, name, stream):
        """Arguments of each job that decodes a test set."""
        shared = ["--data_path_and_name_and_type", f"{self.data(name) / 'wav.scp'},speech,sound"]
        if self.args.streaming_config:
            shared += ["--config", self.args.streaming_config]
        shared += ["--chunk_size", str(stream["chunk_size"]), "--log_level", "WARNING"]
        shared += ["--left_context", str(stream["left_context"])]
        for output, ids in self._parts(tag, name).items():
            keys = output.with_name(f"{output.name}.keys")
            write_atomic(keys, "".join(f"{i}\n" for i in ids).encode())
            yield [*shared, "--key_file", str(keys), "--output_dir", str(output)]

    def _score(self, tag, name):
        from espnet_ext.bin.score import main

        directory, data = self.expdir / tag / name, self.data(name)
        texts = {}
        for output in self._parts(tag, name):
            texts |= read_scp(output / "1best_recog" / "text")
        write_scp(directory / "text", texts)
        arguments = ["--ref", str(data / "text"), "--hyp", str(directory / "text")]
        arguments += ["--utt2spk", str(data / "utt2spk"), "--output", str(directory)]
        arguments += ["--token_type", self.config["token_type"]]
        if self.config["token_type"] == "bpe":
            arguments += ["--bpemodel", self.config["bpemodel"]]
        _run(main, arguments)

    def results(self) -> dict:
        """The content of ``evaluation_results.json``; see docs/report.md."""
        profile = self.profile()
        training = read_training(self.expdir, self.config)
        return {
            "version": VERSION,
            "model": self.expdir.name,
            "encoder": profile["encoder"],
            "attention": profile["attention"],
            "encoder_conf": self.config["encoder_conf"],
            **_costs(profile),
            "wer": self._wer(self.args.inference_tag),
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
            "equivalence": self._equivalence(),
            "inference": self.args.inference_tag,
            "config": str(self.config.get("config") or self.config_path),
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
                found[name] = {
                    "wer": rounded(score["err"], 2),
                    "interval_95": [rounded(v, 2) for v in score["err_interval_95"]],
                    "drawn": score["drawn"],
                    "words": score["wrd"],
                    "utterances": score["snt"],
                    "directory": str(path.parent.relative_to(self.expdir)),
                }
        return found

    def _streaming_wer(self):
        if not self.causal:
            return []
        return [
            {key: stream[key] for key in ("chunk_size", "left_context")} | {"wer": self._wer(tag)}
            for tag, stream in self.streams().items()
        ]

    def _equivalence(self):
        path = self.expdir / "equivalence.json"
        if not self.causal or not path.is_file():
            return None
        return read_json(path, EQUIVALENCE)


def _costs(profile):
    """What a cache, own or input, costs."""
    cache, streaming = profile["cache"], profile["streaming"]
    streams = [
        {
            "chunk_size": s["chunk_size"],
            "left_context": s["left_context"],
            "kb": {kind: rounded(n / KIB, 4) for kind, n in s["ledger"].items()},
            "total_kb": rounded(s["bytes"] / KIB, 4),
            "allocated_kb": rounded(s["capacity_bytes"] / KIB, 4),
        }
        for s in cache["streams"]
    ]
    costs = {
        "kv_cache_kb": rounded(cache["bytes"] / KIB, 4),
        "compression_ratio": rounded(cache["mha_bytes"] / cache["bytes"], 4),
        "cache": {
            "frames": cache["frames"],
            "dtype": cache["dtype"],
            "bytes_per_frame": cache["bytes_per_frame"],
            "formula_kb": rounded(cache["formula_bytes"] / KIB, 4),
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


def _run(main, arguments):
    """Run a command line in this process; its failure becomes an error that the caller can name."""
    try:
        return main(arguments)
    except SystemExit as end:
        if end.code:
            raise UserError("a measurement failed, see above") from None
    return 0


def _profile(arguments):
    from espnet_ext.bin.asr_profile import measure, parse, report

    args = parse(arguments)
    report([measure(args, path) for path in args.config], args.output)


def _certify(arguments):
    from espnet_ext.bin.asr_certify import main

    _run(main, arguments)


def _decode(arguments):
    from espnet_ext.bin.asr_inference_streaming import main

    _run(main, arguments)


def evaluate(expdir, args, announce=lambda results: None) -> dict:
    """Evaluate one model and write its ``evaluation_results.json``.

    Args:
        expdir: Directory of the model.
        args: Options of ``asr_evaluate``.
        announce: Called with the results as soon as only the figures of streams may be missing.

    Returns:
        What was written.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    writable(Path(expdir, NAME))
    evaluation = Evaluation(expdir, args)
    evaluation.measure(announce)
    results = evaluation.results()
    with about(evaluation.expdir):
        content = to_json(results, indent=1).encode()
    path = evaluation.expdir / NAME
    if not path.is_file() or path.read_bytes() != content:
        write_atomic(path, content)
    return results
