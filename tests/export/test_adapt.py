"""Kaldi's features mapped to ESPnet's log-mel, in onnxruntime and in sherpa-onnx."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import yaml

from espnet_ext.bin import asr_export
from espnet_ext.errors import UserError
from espnet_ext.export.adapt import Adapter
from espnet_ext.frontend import KaldiFbank, StreamingFrontend
from espnet_ext.streaming.exported import ExportedSpeech2Text, ExportedStep
from export.conftest import MODELS, WHEELS
from export.test_export import run, streamed
from streaming.conftest import write_model
from tiny import FS, speech


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A model on log-mel with its data, exported for sherpa-onnx by the command."""
    folder = tmp_path_factory.mktemp("adapted")
    torch.manual_seed(0)
    write_model(folder, **MODELS["log-mel"])
    config = yaml.safe_load((folder / "config.yaml").read_text())
    for part, seeds in (("train", range(100, 108)), ("valid", range(3))):
        wavs = {f"{part}{seed}": folder / f"{part}{seed}.wav" for seed in seeds}
        for path, seed in zip(wavs.values(), seeds, strict=True):
            soundfile.write(path, speech(4.0, seed), FS, subtype="FLOAT")
        lines = {"wav.scp": wavs, "text": dict.fromkeys(wavs, "ONE TWO")}
        for name, rows in lines.items():
            content = "".join(f"{key} {value}\n" for key, value in rows.items())
            (folder / f"{part}_{name}").write_text(content)
        config[f"{part}_data_path_and_name_and_type"] = [
            [str(folder / f"{part}_wav.scp"), "speech", "sound"],
            [str(folder / f"{part}_text"), "text", "text"],
        ]
    (folder / "one.scp").write_text(f"a {folder}/train100.wav\n")
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    words = [folder, "--inference_asr_model", "model.pth", "--output", folder / "onnx"]
    asr_export.main([*map(str, words), "--adapt_features"])
    certificate = json.loads((folder / "onnx/certificate.json").read_text())
    return SimpleNamespace(folder=folder, path=folder / "onnx", certificate=certificate)


def own_model(folder):
    """The model in PyTorch, and its log-mel without normalisation."""
    from espnet_ext.streaming import StreamingSpeech2Text

    model = StreamingSpeech2Text(folder / "config.yaml", folder / "model.pth")
    return model, StreamingFrontend(model.model.frontend)


@torch.no_grad()
def test_adapted_log_probabilities_are_near_the_models_own(adapted):
    """Nearer than those of Kaldi's features as they are, on recordings not fitted on."""
    model, own = own_model(adapted.folder)
    kaldi = StreamingFrontend(KaldiFbank(FS, 20))
    theirs = ExportedSpeech2Text(asr_model_file=adapted.path / "model.onnx")

    def log_probs(feats):
        feats = model.model.normalize(feats.clone(), torch.tensor([feats.size(1)]))[0]
        encoder = model.model.encoder
        y, _ = encoder.forward_chunk(feats, encoder.init_state(), True)
        return model.model.ctc.log_softmax(y)[0].exp().numpy()

    errors = {"mapped": [], "as they are": []}
    for seed in range(3):
        wave = torch.from_numpy(speech(4.0, seed))[None]
        feats, raw = (f.forward_chunk(wave, f.init_state(), True)[0] for f in (own, kaldi))
        want = log_probs(feats)
        stream = theirs.start()
        got = np.exp(theirs.read(stream, raw[0].numpy(), True))
        n = min(len(want), len(got))
        assert n > 90
        errors["mapped"].append(np.abs(got[:n] - want[:n]).mean())
        errors["as they are"].append(np.abs(log_probs(raw)[:n] - want[:n]).mean())
    assert np.mean(errors["mapped"]) < 0.5 * np.mean(errors["as they are"])


def test_certificate_says_what_was_adapted_and_what_it_costs(adapted):
    found = adapted.certificate["adapted"]
    assert found["recordings"] == 8 and found["seconds"] == 32.0
    assert 0 < found["residual"] < 1
    wer = found["wer"]
    assert (wer["utterances"], wer["words"]) == (3, 6)
    model, _ = own_model(adapted.folder)
    exported = ExportedSpeech2Text(asr_model_file=adapted.path / "model.onnx")
    from espnet_ext.scoring.counting import score, tokenizer

    for name, speaks in (("own", model), ("adapted", exported)):
        texts = {str(i): speaks(speaks.start(), speech(4.0, i), True).text for i in range(3)}
        rows = score(dict.fromkeys(texts, "ONE TWO"), texts, tokenizer("wer"))
        assert wer[name] == pytest.approx(rows.summary()["err"])
    readme = (adapted.path / "README.md").read_text()
    assert f"{wer['own']:.2f} %" in readme and f"{found['residual']:.3f}" in readme
    worst = adapted.certificate["max_error"]["model.onnx"]
    assert worst["log_probs"] < 1e-4 and worst["tokens_differ"] == 0


def test_adapted_stream_does_not_depend_on_its_neighbours(adapted):
    feats = np.random.default_rng(0).normal(size=(3, 100, 20)).astype(np.float32) * 5 - 5
    step = ExportedStep(adapted.path / "model.onnx")
    alone = [streamed(step, row[None], [0])[0] for row in feats]
    for got, want in zip(streamed(step, feats, [0, 1, 4]), alone, strict=True):
        assert np.array_equal(got, want)


@pytest.mark.parametrize("version", WHEELS)
def test_sherpa_onnx_gives_the_tokens_of_the_export(adapted, sherpa, version):
    theirs = ExportedSpeech2Text(asr_model_file=adapted.path / "model.onnx")
    for seed, got in enumerate(sherpa(version, adapted.path, [speech(3.0, s) for s in range(2)])):
        stream = theirs.start()
        theirs.read(stream, stream.features(speech(3.0, seed), True)[:-1])  # its strict rule
        symbols = [theirs.model.tokens[t].replace("\u2581", " ") for t in stream.search.tokens]
        assert got["tokens"] == symbols and len(symbols) > 3


@torch.no_grad()
@pytest.mark.parametrize("centred", [True, False])
def test_mapped_frames_are_the_models_own_of_the_same_time(adapted, centred):
    """From the first one on, or time stamps would be those of other frames."""
    model, own = own_model(adapted.folder)
    model.model.frontend.stft.center = centred
    own = StreamingFrontend(model.model.frontend)
    adapter, kaldi = Adapter(own.front), StreamingFrontend(KaldiFbank(FS, 20))
    adapter.fit(own, sorted(adapted.folder.glob("train*.wav")))
    wave = torch.from_numpy(speech(4.0))[None]
    feats, raw = (f.forward_chunk(wave, f.init_state(), True)[0] for f in (own, kaldi))
    mapped = adapter(raw, raw[:, :1])
    assert mapped.shape == raw.shape and adapter.late == (0 if centred else 2)
    errors = [(mapped[0, i:][:390] - feats[0, :390]).square().mean().sqrt() for i in range(4)]
    assert np.argmin(errors) == adapter.late
    first = (mapped[0, adapter.late] - feats[0, 0]).square().mean().sqrt()
    assert first < 2 * errors[adapter.late]


def changed(adapted, folder, change):
    """The model's directory with another config."""
    config = yaml.safe_load((adapted.folder / "config.yaml").read_text())
    for key, value in change.items():
        config[key] = config[key] | value if isinstance(value, dict) else value
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return ["--asr_train_config", folder / "config.yaml"]


@pytest.mark.parametrize(
    "change,options,words",
    [
        ({"train_data_path_and_name_and_type": [["gone/wav.scp", "speech", "sound"]]}, [],
         "no recordings here to adapt on"),
        ({"frontend": "kaldi_fbank"}, [], "adapt_features: the front end is kaldi_fbank"),
        ({}, ["--client", "onnxruntime"], "adapt_features: onnxruntime is given the model's own"),
        ({"frontend_conf": {"hop_length": 64}}, [], "hop_length: adapt_features needs Kaldi's 80"),
        ({"frontend_conf": {"fs": "16k", "n_fft": 512, "hop_length": 160}}, [],
         "has 8000 Hz, the model needs"),
        ({"frontend_conf": {"n_mels": 128}, "normalize": None}, [], "n_mels: 128 bands at 8000 Hz"),
        ({}, ["--train_scp", "{folder}/one.scp"], "train100.wav, are too few, each half of"),
    ],
)  # fmt: skip
def test_what_cannot_be_adapted_is_one_line(adapted, capsys, tmp_path, change, options, words):
    model = changed(adapted, tmp_path / "exp", change)
    options = [word.format(folder=adapted.folder) for word in options]
    line = run(capsys, *model, "--output", tmp_path / "onnx", "--adapt_features", *options)
    assert words in line
    assert [path.name for path in tmp_path.iterdir()] == ["exp"]


def test_recordings_of_silence_are_refused(adapted, tmp_path):
    model, own = own_model(adapted.folder)
    soundfile.write(tmp_path / "a.wav", np.zeros(5 * FS), FS)
    with pytest.raises(UserError, match="do not say what the model's are"):
        Adapter(own.front).fit(own, [tmp_path / "a.wav"] * 2)
