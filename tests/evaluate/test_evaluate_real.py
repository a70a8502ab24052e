"""A real model on real files, through every measurement of the evaluation."""

import json
import shutil

from convert.models import write_audio, write_model
from espnet_ext.bin.asr_evaluate import main
from espnet_ext.bin.score import main as score
from espnet_ext.evaluate.evaluation import Settings, evaluate

TAG = "decode_asr_asr_model_valid.acc.ave"
CAUSAL = {"causal": True, "dynamic_chunk": True}
MLA = {"attention": "mla", "attention_conf": {"kv_lora_rank": 4}}


def test_what_is_missing_is_measured_and_what_is_there_is_kept(tmp_path, capsys):
    expdir, data = tmp_path / "exp" / "asr_x", tmp_path / "dump" / "raw" / "test"
    write_model(expdir, "kv_conformer", CAUSAL | MLA)
    write_audio(data, seconds=1)
    offline = expdir / TAG / "test"
    text = str(data / "text")
    score(["--ref", text, "--hyp", text, "--output", str(offline), "--token_type", "word"])
    options = tmp_path / "profile.yaml"
    options.write_text("frames: 40\nchunk_size: 8\nleft_contexts: [8, 16]\nnum_utts: 2\n")
    decoding = tmp_path / "decode.yaml"
    decoding.write_text("beam_size: 2\nctc_weight: 0.5\n")
    arguments = [str(expdir), "--dumpdir", str(tmp_path / "dump"), "--nj", "1"]
    arguments += ["--profile_config", str(options), "--inference_config", str(decoding)]
    early = []
    files = {"profile_config": str(options), "inference_config": str(decoding)}
    log = tmp_path / "log"
    evaluate(expdir, Settings(dumpdir=str(tmp_path / "dump"), **files), early.append, log)
    assert log.is_file()
    results = json.loads((expdir / "evaluation_results.json").read_text())
    assert results["kv_cache_kb"] == 40 * 2 * 4 * 4 / 1024
    assert results["wer"]["test"]["wer"] == 0.0  # the "decoding" is the reference
    assert results["equivalence"]["equal"] and results["equivalence"]["utterances"] == 3
    assert [s["left_context"] for s in results["streaming_wer"]] == [8, 16]
    for stream in results["streaming_wer"]:
        found = stream["wer"]["test"]
        assert found["words"] == 12 and found["wer"] > 0
        decoded = (expdir / found["directory"]).parent / "text"
        assert len(decoded.read_text().splitlines()) == 3
    assert results["streaming"]["ms_per_chunk_median"] > 0
    assert results["inference_time_ms"] > 0
    assert results["training_seconds"] is None
    # announced once, before the streams are decoded
    streams = ("equivalence", "streaming_wer")
    assert [{**results, **{key: r[key] for key in streams}} for r in early] == early
    assert [stream["wer"] for stream in early[0]["streaming_wer"]] == [{}, {}]

    kept = {p: p.stat().st_mtime_ns for p in expdir.rglob("*.json")}
    shutil.rmtree(expdir / "streaming_C8_L16" / "test" / "score_wer")
    assert main(arguments) == 0
    assert "WER test 0.0 [0.0, 0.0] (utterances drawn)" in capsys.readouterr().out
    changed = {p for p in expdir.rglob("*.json") if p.stat().st_mtime_ns != kept[p]}
    assert {p.relative_to(expdir).parts[0] for p in changed} == {"streaming_C8_L16"}
