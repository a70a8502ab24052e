"""Exported models that the tests share: exporting takes seconds."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("onnxruntime", reason="no onnxruntime: pip install 'espnet-ext[export]'")
pytest.importorskip("sherpa_onnx", reason="no sherpa-onnx: pip install 'espnet-ext[export]'")

from espnet_ext.export.model import export
from espnet_ext.streaming.speech2text import StreamingSpeech2Text
from streaming.conftest import write_model
from tiny import ENCODERS, FS

REPO = Path(__file__).resolve().parents[2]
CLIENT = Path(__file__).with_name("sherpa_client.py")
#: version -> where it is, None for the environment's own; .ci/run puts the other one there
WHEELS = {"2.0.1": None, "2.0.0": REPO / ".sherpa_onnx_2.0.0"}
SIZES = {"output_size": 32, "attention_heads": 4, "causal": True, "chunk_size": 4}
#: layers of every attention with every cache; exporting one takes seconds
LAYERS = {
    "mha": ("mha", None, "kv"),
    "gqa": ("gqa", 2, "kv"),
    "mqa, input cache": ("gqa", 1, "input"),
    "mla": ("mla", None, None),
    "linear": ("linear", None, None),
    "mha, input cache": ("mha", None, "input"),
}


def stack(encoder, layers=LAYERS):
    """Options of a model whose layers have these attentions."""
    attention, n_kv_head, cache = (list(x) for x in zip(*map(LAYERS.get, layers), strict=True))
    conf = {"n_kv_head": n_kv_head, "cache": cache, "kv_lora_rank": 12}
    takes = {"n_kv_head": {"gqa"}, "cache": {"gqa", "mha"}, "kv_lora_rank": {"mla"}}
    conf = {option: x for option, x in conf.items() if takes[option] & set(attention)}
    conf = SIZES | ENCODERS[encoder][1] | {"attention": attention, "attention_conf": conf}
    conf |= {"num_blocks": len(attention), "left_context": 6}
    return {"encoder": f"kv_{encoder}", "encoder_conf": conf}


MODELS = {
    "conformer": stack("conformer", ["mha", "mla", "linear"]),
    "branchformer": stack("branchformer", ["mqa, input cache", "gqa"]),
    "e_branchformer": stack("e_branchformer", ["mha, input cache", "linear"]),
    "linear": {
        "encoder_conf": SIZES
        | {"attention": "linear", "num_blocks": 1, "linear_units": 32, "cnn_module_kernel": 7}
    },
    "no left context, no convolution": {
        "encoder_conf": SIZES
        | {"num_blocks": 1, "linear_units": 32, "left_context": 0, "use_cnn_module": False}
    },
    "log-mel": {
        "frontend": "default",
        "encoder_conf": SIZES
        | {"attention": "mla", "num_blocks": 1, "linear_units": 32, "left_context": 8},
    },
}


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """A function of a name in ``MODELS``: its own streaming, and the directory of its export."""
    made = {}

    def get(name):
        if name not in made:
            torch.manual_seed(0)
            folder = tmp_path_factory.mktemp("export")
            write_model(folder, **{"frontend": "kaldi_fbank"} | MODELS[name])
            files = {
                "asr_train_config": folder / "config.yaml",
                "asr_model_file": folder / "model.pth",
            }
            client = "onnxruntime" if name == "log-mel" else "sherpa-onnx"
            certificate = export(folder / "onnx", files, client=client)
            ours = StreamingSpeech2Text(**files)
            made[name] = SimpleNamespace(
                ours=ours, path=folder / "onnx", files=files, certificate=certificate
            )
        return made[name]

    return get


@pytest.fixture
def sherpa(tmp_path):
    """A function that runs a model in sherpa-onnx, in a process of its own."""

    def run(version, path, waves, way="alone", feature_dim=20):
        wheel = WHEELS[version]
        if wheel is not None and not wheel.is_dir():
            how = f"pip install --no-deps --target {wheel.name} sherpa-onnx=={version}"
            pytest.skip(f"no sherpa-onnx {version}: {how} sherpa-onnx-core=={version}")
        np.savez(tmp_path / "waves.npz", **{str(i): wave for i, wave in enumerate(waves)})
        request = {
            "tokens": f"{path}/tokens.txt",
            "model": f"{path}/model.onnx",
            "rate": FS,
            "feature_dim": feature_dim,
            "recordings": f"{tmp_path}/waves.npz",
            "way": way,
        }
        (tmp_path / "request.json").write_text(json.dumps(request))
        command = [sys.executable, CLIENT, tmp_path / "request.json", tmp_path / "answer.json"]
        env = {"PYTHONPATH": str(wheel or ""), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        answer = json.loads((tmp_path / "answer.json").read_text())
        assert answer["version"] == version
        return answer["results"]

    return run
