"""Every command on a model takes its directory, an unpacked one, or ESPnet's two options."""

import json

import pytest
import soundfile

from convert.models import CHECKPOINT, write_model
from espnet_ext.bin import asr_inference_streaming
from espnet_ext.cli import main
from espnet_ext.errors import UserError
from espnet_ext.model_options import add_costs, add_decoding, read_values
from espnet_ext.packing import find_model
from tiny import FS, speech


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that streams, as trained and as packed and unpacked, and a recording."""
    folder = tmp_path_factory.mktemp("models")
    expdir = write_model(folder / "exp/asr_x", "kv_conformer", {"causal": True, "chunk_size": 4})
    (expdir / "RESULTS.md").write_text("# RESULTS\n")
    soundfile.write(folder / "a.wav", speech(1.0), FS)
    (folder / "wav.scp").write_text(f"a {folder}/a.wav\n")
    assert not main(["pack", str(expdir), "--outpath", str(folder / "x.zip")])
    assert not main(["unpack", str(folder / "x.zip"), str(folder / "unpacked")])
    return folder


@pytest.fixture(params=["exp/asr_x", "unpacked", None])
def model(request, folder):
    """Words that say which model; the last is as ESPnet says it."""
    if request.param:
        return [str(folder / request.param)]
    files = {"--asr_train_config": "config.yaml", "--asr_model_file": CHECKPOINT}
    return [word for k, v in files.items() for word in (k, str(folder / "exp/asr_x" / v))]


def test_archive_of_a_directory_holds_its_results(folder):
    assert list((folder / "unpacked").rglob("RESULTS.md"))


def test_stream_and_decode_give_one_text(folder, model, tmp_path, capsys):
    assert not main(["stream", *model, str(folder / "a.wav"), "--threads", "1"])
    text = capsys.readouterr().out.splitlines()[-1]
    data = ["--data_path_and_name_and_type", f"{folder}/wav.scp,speech,sound"]
    assert not main(["decode", *data, *model, "--output_dir", str(tmp_path)])
    assert (tmp_path / "1best_recog/text").read_text() == f"a {text}\n"


def test_certificate_names_the_files(folder, model, tmp_path):
    data = ["--wav_scp", str(folder / "wav.scp"), "--packet_ms", "70"]
    assert not main(["certify", *model, *data, "--output", str(tmp_path / "e.json")])
    report = json.loads((tmp_path / "e.json").read_text())
    assert report["equal"] and report["asr_model_file"].endswith(CHECKPOINT)


def test_profile_and_conversion(folder, model, tmp_path, capsys):
    assert not main(["profile", *model, "--frames", "8"])
    assert "MB" in capsys.readouterr().out
    if len(model) == 1:  # a conversion has no other way to say it
        words = ["--attention", "mla", "--attention_conf", "kv_lora_rank=8"]
        assert not main(["convert", *model, "--output", str(tmp_path / "mla"), *words])
        assert find_model(tmp_path / "mla") == (
            tmp_path / "mla/config.yaml",
            tmp_path / "mla" / CHECKPOINT,
        )


def test_what_is_no_model_is_named(folder, tmp_path):
    with pytest.raises(UserError, match="has no config.yaml of a training, nor meta.yaml"):
        find_model(tmp_path)
    with pytest.raises(UserError, match=f"none.pth: no such file; .*{CHECKPOINT}"):
        find_model(folder / "exp/asr_x", "none.pth")
    (tmp_path / "meta.yaml").write_text("files: []\n")
    with pytest.raises(UserError, match="names no ASR model"):
        find_model(tmp_path)


def test_values_of_a_file_are_those_of_the_command(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("search: beam\nrescore: true\n")
    values = read_values(add_decoding, path)
    assert (values.search, values.rescore, values.packet_ms) == ("beam", True, 100)
    with pytest.raises(UserError, match="x.yaml: unknown option search"):
        read_values(add_costs, path)


def test_missing_recording_is_named_before_anything_is_decoded(folder, tmp_path, capsys):
    (tmp_path / "keys").write_text("a\nb\n")
    data = ["--data_path_and_name_and_type", f"{folder}/wav.scp,speech,sound"]
    words = [str(folder / "unpacked"), *data, "--key_file", str(tmp_path / "keys")]
    with pytest.raises(SystemExit):
        asr_inference_streaming.main([*words, "--output_dir", str(tmp_path / "out")])
    assert "wav.scp: has no b" in capsys.readouterr().err and not (tmp_path / "out").exists()
