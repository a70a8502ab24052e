"""A converted model is its source where it can be, and as near as its rank allows elsewhere."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch
import yaml

from convert.models import CHECKPOINT, write_audio, write_model
from espnet_ext.bin.asr_convert import main
from espnet_ext.convert.weights import Moments, allocate_ranks
from espnet_ext.errors import UserError
from tiny import ENCODERS, N_FEAT, N_HEAD, max_error

LOSSLESS = {
    "mla-full": ["mla", f"kv_lora_rank={N_FEAT}"],
    "mla-padded": ["mla", f"kv_lora_rank={2 * N_FEAT}"],
    "gqa-full": ["gqa", f"n_kv_head={N_HEAD}"],
    "mha-input": ["mha", "cache=input"],
    "stack": ["mla,mha", f"kv_lora_rank={2 * N_FEAT}", "cache=input"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_audio(tmp_path_factory.mktemp("data") / "dev")


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Name of an encoder -> a model's directory, made when first asked for; read only."""
    made, root = {}, tmp_path_factory.mktemp("exp")

    def source(encoder, **encoder_conf):
        name = "_".join([encoder, *encoder_conf])
        if name not in made:
            made[name] = write_model(root / name, encoder, encoder_conf)
        return made[name]

    return source


def convert(source, output, attention, *words, **options):
    arguments = ["--from", str(source), "--output", str(output)]
    arguments += ["--attention", attention] if attention else []
    arguments += ["--attention_conf", *words] if words else []
    for name, value in options.items():
        values = value if isinstance(value, list) else [value]
        arguments += [f"--{name}", *map(str, values)]
    main(arguments)
    return output


def speech_to_text(expdir):
    from espnet_ext.bin.asr_inference import Speech2Text

    return Speech2Text(
        expdir / "config.yaml", expdir / CHECKPOINT, beam_size=3, maxlenratio=0.3, nbest=2
    )


def read(data):
    for line in (data / "wav.scp").read_text().splitlines():
        yield soundfile.read(line.split()[1], dtype="float32")[0]


def encoded(speech2text, wave):
    with torch.no_grad():
        speech = torch.from_numpy(wave)[None]
        return speech2text.asr_model.encode(speech, torch.tensor([len(wave)]))[0]


def mean_error(expdir, other, data):
    """Mean square of the difference of two models' encoder outputs."""
    a, b = speech_to_text(expdir), speech_to_text(other)
    return np.mean([(encoded(a, w) - encoded(b, w)).square().mean().item() for w in read(data)])


@pytest.mark.parametrize("made_by", ["here", "stock"])
@pytest.mark.parametrize("encoder", ENCODERS)
def test_full_rank_gives_the_outputs_and_hypotheses_of_the_source(
    encoder, made_by, sources, data, tmp_path
):
    source = sources(encoder if made_by == "stock" else f"kv_{encoder}")
    original = speech_to_text(source)  # a stock model runs as stock ESPnet runs it
    waves = list(read(data))
    expected = [(encoded(original, wave), original(wave)) for wave in waves]
    assert len({text for _, ((text, *_), *_) in expected}) > 1, "hypotheses say nothing"
    for name, request in LOSSLESS.items():
        converted = speech_to_text(convert(source, tmp_path / name, *request))
        for wave, (y, nbest) in zip(waves, expected, strict=True):
            assert max_error(encoded(converted, wave), y) < 1e-4, name
            assert [h[0] for h in converted(wave)] == [h[0] for h in nbest], name


@pytest.mark.parametrize("rank", [4, 12, 24])
def test_calibrated_keys_and_values_are_nearer_on_the_calibration_recordings(
    rank, sources, data, tmp_path
):
    """The calibrated latent is the best of its rank there: no other may have a smaller error."""
    source = sources("kv_conformer")
    errors = {}
    for name, options in {"plain": {}, "aware": {"calibration_scp": data / "wav.scp"}}.items():
        convert(source, tmp_path / name, "mla", f"kv_lora_rank={rank}", **options)
        original, other = (speech_to_text(e).asr_model for e in (source, tmp_path / name))
        kept = []
        original.encoder.encoders[0].self_attn.register_forward_hook(
            lambda module, args, _, kept=kept: kept.append((args[1], module.attn.sum((0, 1, 2))))
        )
        for wave in read(data):
            original.encode(torch.from_numpy(wave)[None], torch.tensor([len(wave)]))
        pairs = zip(original.encoder.encoders, other.encoder.encoders, strict=True)
        mha, mla = next((a.self_attn, b.self_attn) for a, b in pairs)
        inputs, weights = zip(*kept, strict=True)
        x, attended = torch.cat(inputs, dim=1), torch.cat(weights)
        shares = attended[:, None] / attended.sum()  # a frame counts as much as it is attended to

        def centred(keys, shares=shares):  # a constant error of keys changes nothing
            return keys - (shares * keys).sum(2, keepdim=True)

        def squares(keys, values, shares=shares):
            return sum((shares * t.square()).sum().item() for t in (centred(keys), values))

        keys_values = mha.key_value(mha.record(x))
        made = mla.key_value(mla.record(x))
        errors[name] = squares(*(a - b for a, b in zip(keys_values, made, strict=True)))
    assert 0 < errors["aware"] < errors["plain"]
    report = json.loads((tmp_path / "aware" / "conversion.json").read_text())
    variance = squares(*map(centred, keys_values))
    assert report["lost"][0] == pytest.approx(errors["aware"] / variance, rel=1e-3)


def test_error_falls_with_rank_and_with_groups(sources, data, tmp_path):
    source = sources("kv_branchformer")
    for attention, key, values in [
        ("mla", "kv_lora_rank", [2, 8, 16, 31]),
        ("gqa", "n_kv_head", [1, 2]),
    ]:
        errors = []
        for value in values:
            convert(source, tmp_path / f"{attention}{value}", attention, f"{key}={value}")
            report = json.loads((tmp_path / f"{attention}{value}" / "conversion.json").read_text())
            assert 0 < min(report["lost"]) and max(report["lost"]) < 1
            errors.append(sum(report["lost"]))
        assert errors == sorted(errors, reverse=True)


def test_budget_is_kept_and_spent_where_it_saves_most(sources, data, tmp_path):
    """No rank moved from one layer to another lowers the sum of the layers' relative errors."""
    source = sources("kv_e_branchformer")
    convert(source, tmp_path / "m", "mla", budget_kb=100, calibration_scp=data / "wav.scp")
    report = json.loads((tmp_path / "m" / "conversion.json").read_text())
    config = yaml.safe_load((tmp_path / "m" / "config.yaml").read_text())
    ranks = config["encoder_conf"]["attention_conf"]["kv_lora_rank"]
    assert sum(ranks) == 25 and report["kb_per_1000_frames"] == 25 * 4 * 1000 / 1024 <= 100
    for give, take in ([0, 1], [1, 0]):
        moved = ranks.copy()
        moved[give] -= 1
        moved[take] += 1
        other = tmp_path / f"moved{give}"
        convert(source, other, "mla", f"kv_lora_rank={moved}", calibration_scp=data / "wav.scp")
        other_report = json.loads((other / "conversion.json").read_text())
        assert sum(other_report["lost"]) >= sum(report["lost"])


def test_similar_heads_share_keys_and_values(sources, data, tmp_path):
    """Heads 0 and 2 differ in their biases alone, as do 1 and 3: grouped so, nothing is lost."""
    source = sources("kv_conformer")
    state = torch.load(source / CHECKPOINT)
    for name in [n for n in state if "linear_k.weight" in n or "linear_v.weight" in n]:
        if ".self_attn." in name and not name.startswith("decoder"):
            heads = state[name].unflatten(0, (N_HEAD, -1))
            heads[2:] = heads[:2]
    twins = tmp_path / "twins"
    twins.mkdir()
    torch.save(state, twins / CHECKPOINT)
    (twins / "config.yaml").write_text((source / "config.yaml").read_text())
    similar = convert(twins, tmp_path / "similar", "gqa", "n_kv_head=2", grouping="similar")
    neighbours = convert(twins, tmp_path / "neighbours", "gqa", "n_kv_head=2")
    assert mean_error(twins, similar, data) < 1e-10
    assert mean_error(twins, neighbours, data) > 1e-5


def test_linear_starts_from_the_projections(sources, tmp_path):
    source = sources("kv_conformer")
    convert(source, tmp_path / "linear", "linear")
    before, after = torch.load(source / CHECKPOINT), torch.load(tmp_path / "linear" / CHECKPOINT)
    gone = {n.rsplit(".", 1)[-1] for n in before.keys() - after.keys()}
    assert gone == {"pos_bias_u", "pos_bias_v", "weight"} and not after.keys() - before.keys()
    assert all(torch.equal(after[name], before[name]) for name in after)
    speech_to_text(tmp_path / "linear")


def test_decoder_at_full_rank_gives_the_same_hypotheses(sources, data, tmp_path):
    source = sources("conformer")
    original = speech_to_text(source)
    for name, words in {"mla": ["kv_lora_rank=32"], "gqa": ["n_kv_head=2"]}.items():
        output = tmp_path / name
        options = {"decoder_attention": name, "decoder_attention_conf": words}
        converted = speech_to_text(convert(source, output, None, **options))
        config = yaml.safe_load((output / "config.yaml").read_text())
        assert config["decoder"] == "kv_transformer" and config["encoder"] == "kv_conformer"
        for wave in read(data):
            for ours, theirs in zip(converted(wave), original(wave), strict=True):
                assert ours[0] == theirs[0] and abs(ours[-1].score - theirs[-1].score) < 1e-4


def teacher_forced(model, waves, texts):
    """Arguments and output of every attention of the decoder, which reads these tokens."""
    seen = {}
    for name, module in model.decoder.named_modules():
        if name.endswith(("self_attn", "src_attn")):
            seen[name] = []
            module.register_forward_hook(lambda _, *x, kept=seen[name]: kept.append(x))
    with torch.no_grad():
        for wave, text in zip(waves, texts, strict=True):
            memory, lengths = model.encode(torch.from_numpy(wave)[None], torch.tensor([len(wave)]))
            tokens = torch.tensor([[model.sos, *map(model.token_list.index, text)]])
            model.decoder(memory, lengths, tokens, torch.tensor([tokens.size(1)]))
    return seen


@pytest.mark.parametrize("words", [("mla", "kv_lora_rank=4"), ("gqa", "n_kv_head=1")])
@pytest.mark.parametrize("joint", [False, True], ids=["decoder", "both"])
def test_calibrated_decoder_is_nearer_on_its_transcripts(words, joint, sources, data, tmp_path):
    """Of a few sentences, activations have a low rank: the fitted weights give other outputs."""
    source = shutil.copytree(sources("kv_conformer"), tmp_path / "source")
    config = yaml.safe_load((source / "config.yaml").read_text())
    config["decoder_conf"]["use_sdpa"] = joint  # which says nothing of its weights
    (source / "config.yaml").write_text(yaml.safe_dump(config))
    attention, option = words
    asked = {"decoder_attention": attention, "decoder_attention_conf": option}
    first = [attention, option] if joint else [None]
    aware = {"calibration_scp": data / "wav.scp"}
    plain = convert(source, tmp_path / "plain", *first, **asked)
    fitted = convert(source, tmp_path / "aware", *first, **asked, **aware)
    waves, texts = list(read(data)), ["ABCA"] * 3
    seen = teacher_forced(speech_to_text(source).asr_model, waves, texts)
    assert len(seen) == 4
    others = [speech_to_text(e).asr_model.decoder.get_submodule for e in (plain, fitted)]
    for name, calls in seen.items():
        with torch.no_grad():
            errors = [
                sum((find(name)(*args) - y).square().sum().item() for args, y in calls)
                for find in others
            ]
        # of the means that heads share, only what they are off on average can be mended
        assert errors[1] < (0.5 if attention == "mla" else 1) * errors[0], (name, errors)
    report = json.loads((fitted / "conversion.json").read_text())
    assert (report["calibration_utts"], report["calibration_texts"]) == (3, 3)


def test_decoder_reads_what_ctc_finds_where_a_recording_has_no_text(
    sources, data, tmp_path, capsys
):
    from espnet_ext.convert.calibration import transcripts

    source = sources("kv_conformer")
    some = shutil.copytree(data, tmp_path / "some")
    first, *_ = (data / "text").read_text().splitlines()
    (some / "text").write_text(f"{first}\ns-u1\ns-u2 zz\nanother A\n")  # z is no token
    config = yaml.safe_load((source / "config.yaml").read_text())
    (ids,) = transcripts(config, some / "wav.scp", ["s-u0", "s-u1", "s-u2"]).values()
    assert ids.tolist() == [2, 3, 4, 2]
    asked = {"decoder_attention": "mla", "decoder_attention_conf": "kv_lora_rank=4"}
    losses = set()
    for scp in (data / "wav.scp", some / "wav.scp"):
        output = tmp_path / f"m{len(losses)}"
        convert(source, output, None, **asked, calibration_scp=scp)
        losses.add(str(json.loads((output / "conversion.json").read_text())["decoder_lost"]))
    assert len(losses) == 2, "the text makes no difference"
    *_, line = [ln for ln in capsys.readouterr().out.splitlines() if ln.startswith("fitted")]
    assert line == (
        f"fitted to 3 recordings, {some / 'wav.scp'}; 1 have a text in the model's tokens, "
        "for any other the decoder reads what greedy CTC search finds"
    )
    config |= {"token_type": "bpe", "bpemodel": str(tmp_path / "bpe.model")}
    with pytest.raises(UserError, match=r"bpe\.model: is no sentencepiece model"):
        transcripts(config, some / "wav.scp", ["s-u0"])
    silent = write_model(tmp_path / "silent", "kv_conformer", model_conf={"ctc_weight": 0.0})
    line = refusal(
        capsys, silent, tmp_path / "none", None, **asked, calibration_scp=some / "wav.scp"
    )
    assert "s-u1: has no text beside it for the decoder to read" in line


WRONG = {
    "rank": (
        ["mla", "kv_lora_rank=65"],
        "kv_lora_rank: must be at most 2 * output_size = 64, got 65",
    ),
    "groups": (["gqa", "n_kv_head=3"], "n_kv_head: must divide attention_heads 4, got 3"),
    "layers": (["mla", "kv_lora_rank=[4,4,4]"], "a value for each layer, which are 2, got [4,"),
    "option": (["mla", "n_kv_head=2"], "mla takes kv_lora_rank, q_lora_rank, kv_norm, got n_kv"),
    "word": (["mla", "kv_lora_rank"], "--attention_conf: must be KEY=VALUE, got kv_lora_rank"),
    "norm": (["mla", "kv_norm=true"], "kv_norm: a converted model has none"),
    "name": (["flash"], "--attention: must be one of mha, gqa, mla, linear, got flash"),
}


def refusal(capsys, *args, **options):
    with pytest.raises(SystemExit) as end:
        convert(*args, **options)
    assert end.value.code == 1
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    assert "error: " in line
    return line


@pytest.mark.parametrize("case", WRONG)
def test_impossible_request_is_one_line_and_writes_nothing(case, sources, tmp_path, capsys):
    words, message = WRONG[case]
    assert message in refusal(capsys, sources("kv_conformer"), tmp_path / "out" / "m", *words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "attention, conf, message",
    [
        ("gqa", "n_kv_head=3", "n_kv_head: must divide attention_heads 2, got 3"),
        ("mla", "kv_norm=true", "--decoder_attention_conf: kv_norm: a converted model has none"),
        ("flash", "x=1", "--decoder_attention: must be one of mha, gqa, mla, linear, got flash"),
        ("linear", "x=1", "linear has no decoder form"),
    ],
)
def test_impossible_decoder_request_is_one_line(
    sources, tmp_path, capsys, attention, conf, message
):
    words = {"decoder_attention": attention, "decoder_attention_conf": conf}
    assert message in refusal(capsys, sources("kv_conformer"), tmp_path / "m", None, **words)
    assert not list(tmp_path.iterdir())


def test_moments_of_one_vector_have_a_root():
    """As where the decoder reads nothing but the start of a sentence."""
    for x in (torch.randn(1, 5) * 100, torch.ones(7, 5)):
        moments = Moments(5)
        moments.add(x, torch.ones(len(x)))
        assert moments.root().isfinite().all() and moments.root().abs().max() < 1e-4


def test_budget_below_one_rank_per_layer_is_refused(sources, tmp_path, capsys):
    line = refusal(capsys, sources("kv_conformer"), tmp_path / "m", "mla", budget_kb=5)
    assert "--budget_kb: must be at least 7.8125, which is rank 1 in 2 layers, got 5" in line


@pytest.mark.parametrize("budget", ["nan", "inf"])
def test_budget_that_is_no_number_is_refused(sources, tmp_path, capsys, budget):
    line = refusal(capsys, sources("kv_conformer"), tmp_path / "m", "mla", budget_kb=budget)
    assert f"--budget_kb is a number, not '{budget}'" in line


@pytest.mark.parametrize("attention", [("mla", "kv_lora_rank=4"), ("gqa", "n_kv_head=2")])
def test_of_keys_and_values_that_are_zero_nothing_is_lost(sources, tmp_path, attention):
    source = tmp_path / "asr_zero"
    shutil.copytree(sources("kv_conformer"), source)
    state = torch.load(source / CHECKPOINT)
    for name, value in state.items():
        if "self_attn.linear_k.weight" in name or "self_attn.linear_v.weight" in name:
            value.zero_()
    torch.save(state, source / CHECKPOINT)
    convert(source, tmp_path / "m", *attention)
    assert json.loads((tmp_path / "m" / "conversion.json").read_text())["lost"] == [0, 0]


def test_ranks_are_shared_where_layers_have_none_to_use():
    zero, full = torch.zeros(8, dtype=torch.float64), torch.arange(8, 0, -1).double()
    assert allocate_ranks([zero, zero], 9) == [1, 1]
    assert allocate_ranks([zero, full], 5) == [1, 4]


def test_source_that_cannot_be_converted_is_one_line(sources, tmp_path, capsys):
    good = sources("kv_conformer")
    config = yaml.safe_load((good / "config.yaml").read_text())
    conf = config["encoder_conf"]

    def refused(message, checkpoint=good / CHECKPOINT, **changed):
        bad = tmp_path / "bad"
        bad.mkdir(exist_ok=True)
        (bad / "config.yaml").write_text(yaml.safe_dump(config | changed))
        (bad / CHECKPOINT).write_bytes(checkpoint.read_bytes())
        assert message in refusal(capsys, bad, tmp_path / "m", "mla")
        assert {p.name for p in tmp_path.iterdir()} <= {"bad", "text"}

    refused("which have multi-head attention to convert, got vgg_rnn", encoder="vgg_rnn")
    stock = {k: v for k, v in conf.items() if k != "rel_pos_type"}
    refused("rel_pos_type: must be 'latest'", encoder="conformer", encoder_conf=stock)
    refused("only mha can be converted, got gqa", encoder_conf=conf | {"attention": "gqa"})
    refused("does not fit the model of its config", encoder_conf=conf | {"num_blocks": 3})
    (tmp_path / "text").write_text("not weights")
    refused("no whole checkpoint", checkpoint=tmp_path / "text")
    assert "has no config.yaml" in refusal(capsys, tmp_path / "none", tmp_path / "m", "mla")
    assert "exists already" in refusal(capsys, good, tmp_path / "bad", "mla")


def test_converted_model_is_evaluated_compared_and_packed(tmp_path, monkeypatch, capsys):
    """It streams, its certificate holds, and its measured cache is the formula's."""
    from espnet_ext.bin import asr_compare, asr_evaluate, asr_pack, score

    monkeypatch.chdir(tmp_path)
    data = write_audio(tmp_path / "dump/raw/test", utterances=2, seconds=1)
    streams = {"causal": True, "dynamic_chunk": True}
    source = write_model(tmp_path / "exp/asr_mha", "kv_conformer", streams)
    expdir = convert(source, tmp_path / "exp/asr_mla", "mla", budget_kb=100)
    report = json.loads((expdir / "conversion.json").read_text())
    ranks = report["attention_conf"]["kv_lora_rank"]
    assert sum(ranks) == 25 and len(set(ranks)) == 2  # layers that differ
    tag = "decode_asr_asr_model_valid.acc.ave"
    text = str(data / "text")
    arguments = ["--ref", text, "--hyp", text, "--output", str(expdir / tag / "test")]
    score.main([*arguments, "--token_type", "word"])
    (tmp_path / "profile.yaml").write_text(
        "frames: 40\nchunk_size: 8\nleft_contexts: [16]\nnum_utts: 1\n"
    )
    (tmp_path / "decode.yaml").write_text("beam_size: 1\nctc_weight: 0.5\nmaxlenratio: 0.2\n")
    arguments = ["--profile_config", "profile.yaml", "--inference_config", "decode.yaml"]
    assert asr_evaluate.main(["exp/asr_mla", *arguments]) == 0, capsys.readouterr().err
    results = json.loads((expdir / "evaluation_results.json").read_text())
    assert results["equivalence"]["equal"] and results["cache"]["matches_formula"]
    assert results["kv_cache_kb"] == round(40 * 4 * 25 / 1024, 4)
    assert results["streaming_wer"][0]["wer"]["test"]["words"] == 8
    asr_compare.main(["--encoders", "conformer", "--attentions", "mla"])
    assert "conformer mla" in (tmp_path / "comparison/comparison_table.csv").read_text()
    model = ["--asr_train_config", "exp/asr_mla/config.yaml"]
    model += ["--asr_model_file", f"exp/asr_mla/{CHECKPOINT}"]
    asr_pack.main([*model, "--outpath", "exp/asr_mla/packed.zip"])
    assert (expdir / "packed.zip").stat().st_size > 10000
