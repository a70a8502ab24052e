"""Archives of models: what goes in comes out elsewhere, and nothing else does."""

import base64
import json
import os
import subprocess
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

import espnet_ext
from espnet_ext import packing
from espnet_ext.bin import asr_pack, asr_unpack
from espnet_ext.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture(params=["inside", "outside"])
def trained(request, tmp_path, monkeypatch):
    """A recipe with a model below it, or with one on another disk; options that pack it."""
    recipe = tmp_path / "recipe"
    exp = recipe / "exp" if request.param == "inside" else tmp_path / "disk" / "exp"
    (recipe / "data").mkdir(parents=True)
    (exp / "asr").mkdir(parents=True)
    monkeypatch.chdir(recipe)
    prefix = "exp" if request.param == "inside" else str(exp)
    for path, content in {
        "data/bpe.model": "tokens",
        f"{prefix}/feats_stats.npz": "statistics",
        f"{prefix}/asr/3epoch.pth": "weights",
        f"{prefix}/asr/RESULTS.md": "# RESULTS",
    }.items():
        Path(path).write_text(content)
    Path(prefix, "asr/best.pth").symlink_to("3epoch.pth")
    config = {
        "bpemodel": "data/bpe.model",
        "normalize_conf": {"stats_file": f"{prefix}/feats_stats.npz"},
        "token_list": ["<blank>", "a", "<sos/eos>"],
        "init_param": [],
        "max_epoch": 3,
    }
    Path(prefix, "asr/config.yaml").write_text(yaml.safe_dump(config))
    options = ["--asr_train_config", f"{prefix}/asr/config.yaml"]
    options += ["--asr_model_file", f"{prefix}/asr/best.pth"]
    for path in (f"{prefix}/feats_stats.npz", "data/bpe.model", f"{prefix}/asr/RESULTS.md"):
        options += ["--option", path]
    return options


def test_packed_model_unpacks_elsewhere_with_its_own_files(trained, tmp_path, capsys):
    asr_pack.main([*trained, "--outpath", str(tmp_path / "model.zip")])
    (tmp_path / "recipe").rename(tmp_path / "gone")
    os.chdir(tmp_path)
    asr_unpack.main(["model.zip", "my model"])
    printed = capsys.readouterr()
    assert f"espnet_ext {espnet_ext.__version__}, espnet " in printed.err
    assert printed.out.startswith(f"--asr_train_config '{tmp_path}/my model/")
    (tmp_path / "my model").rename(tmp_path / "x")
    arguments, versions = packing.unpack("model.zip", "my model")
    assert versions["espnet_ext"] == espnet_ext.__version__
    assert Path(arguments["asr_model_file"]).read_text() == "weights"
    config = yaml.safe_load(Path(arguments["asr_train_config"]).read_text())
    assert Path(config["bpemodel"]).read_text() == "tokens"
    assert Path(config["normalize_conf"]["stats_file"]).read_text() == "statistics"
    assert config["token_list"] == ["<blank>", "a", "<sos/eos>"] and config["max_epoch"] == 3
    for path in (*arguments.values(), config["bpemodel"], config["normalize_conf"]["stats_file"]):
        assert Path(path).is_relative_to(tmp_path / "my model")
    assert sorted(p.name for p in tmp_path.glob(".*")) == []


def test_espnet_unpacks_it_as_well(trained, tmp_path):
    from espnet2.main_funcs.pack_funcs import unpack

    asr_pack.main([*trained, "--outpath", str(tmp_path / "model.zip")])
    files = unpack(tmp_path / "model.zip", tmp_path / "there")
    assert files.keys() == {"asr_train_config", "asr_model_file"}
    config = yaml.safe_load(Path(files["asr_train_config"]).read_text())
    for path in (*files.values(), config["bpemodel"], config["normalize_conf"]["stats_file"]):
        assert Path(path).is_file() and Path(path).is_relative_to(tmp_path / "there")


def test_archive_that_espnet_packed_unpacks(trained, tmp_path):
    from espnet2.bin.pack import main

    main(["asr", *trained, "--outpath", str(tmp_path / "model.zip")])
    arguments, versions = packing.unpack(tmp_path / "model.zip", tmp_path / "there")
    assert "espnet_ext" not in versions
    config = yaml.safe_load(Path(arguments["asr_train_config"]).read_text())
    stats = config["normalize_conf"]["stats_file"]
    for path in (*arguments.values(), config["bpemodel"], stats):
        assert Path(path).is_file() and Path(path).is_relative_to(tmp_path / "there")


def test_missing_file_is_named_and_nothing_is_packed(trained, tmp_path, capsys):
    model = Path(trained[3])
    model.unlink()
    with pytest.raises(SystemExit):
        asr_pack.main([*trained, "--outpath", str(tmp_path / "model.zip")])
    assert f"{model}: not there; train and score" in capsys.readouterr().err
    assert not list(tmp_path.glob("*.zip"))


META = {"yaml_files": {"asr_train_config": "c.yaml"}, "files": {"asr_model_file": "m.pth"}}
GOOD = {"meta.yaml": yaml.safe_dump(META), "c.yaml": "max_epoch: 3\n", "m.pth": "x"}
DAMAGED = {
    "no meta": (GOOD | {"meta.yaml": None}, "meta.yaml: ", "cannot be read"),
    "other meta": (GOOD | {"meta.yaml": "- 1"}, "meta.yaml: must be a mapping", ""),
    "no model": (GOOD | {"m.pth": None}, "lacks m.pth", ""),
    "outside": (GOOD | {"../x": "y"}, "../x would be written elsewhere", ""),
    "odd key": (
        GOOD
        | {
            "meta.yaml": yaml.safe_dump(
                META | {"files": META["files"] | {"x; touch pwned #": "m.pth"}}
            )
        },
        "'x; touch pwned #' in files of its meta.yaml is no argument",
        "known are asr_model_file, lm_file",
    ),
    "odd name": (GOOD | {"a\nb": "y"}, "'a\\nb' is no file name", ""),
    "absolute": (GOOD | {"/tmp/x": "y"}, "/tmp/x would be written elsewhere", ""),
}


def write_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            if content is not None:
                archive.writestr(name, content)


@pytest.mark.parametrize("case", [*DAMAGED, "cut", "flipped"])
def test_damaged_archive_is_one_line_and_leaves_nothing(case, tmp_path):
    archive = tmp_path / "model.zip"
    members, *said = DAMAGED.get(case, (GOOD, "damaged or no .zip"))
    write_zip(archive, members)
    content = archive.read_bytes()
    if case == "cut":
        archive.write_bytes(content[: len(content) // 2])
    if case == "flipped":
        archive.write_bytes(content.replace(b"max_epoch", b"min_epoch", 1))
    with pytest.raises(UserError) as refused:
        packing.unpack(archive, tmp_path / "there")
    assert str(archive) in str(refused.value) and all(word in str(refused.value) for word in said)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.zip"]
    assert not (tmp_path.parent / "x").exists()


def test_archive_that_would_fill_a_disk_is_refused(tmp_path):
    archive = tmp_path / "model.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in GOOD.items():
            packed.writestr(name, content)
        with packed.open("more", "w") as member:
            for _ in range(65):
                member.write(bytes(2**20))
    with pytest.raises(UserError, match="would unpack to 65 MB"):
        packing.unpack(archive, tmp_path / "there")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.zip"]


def test_directory_that_is_there_stays(tmp_path):
    write_zip(tmp_path / "model.zip", GOOD)
    (tmp_path / "there").mkdir()
    with pytest.raises(UserError, match="there: is there already"):
        packing.unpack(tmp_path / "model.zip", tmp_path / "there")


class Hub(BaseHTTPRequestHandler):
    """What of the Hugging Face hub's interface an upload of small files uses."""

    def log_message(self, *_):
        pass

    def do_GET(self):  # noqa: N802  (the name http.server calls)
        self.reply({"error": "Repository not found"}, 404)

    def do_POST(self):  # noqa: N802
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["Authorization"] != "Bearer hf_good":
            return self.reply({"error": "Invalid username or password."}, 401)
        if "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = {"uploadMode": "regular", "shouldIgnore": False}
            return self.reply({"files": [{"path": path, **modes} for path in paths]})
        if "/commit/" in self.path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    value = entry["value"]
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
        url = f"http://{self.headers['Host']}/owner/name"
        self.reply({"url": url, "commitUrl": f"{url}/commit/1", "commitOid": "1"})

    def reply(self, answer, status=200):
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def upload(tmp_path):
    """Upload ``model.zip`` with a token; (the finished process, files the hub has then)."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files = {}
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()

    def upload(token):
        environment = {name: v for name, v in os.environ.items() if "TOKEN" not in name}
        environment |= {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
        environment |= {"HF_HOME": str(tmp_path)} | ({"HF_TOKEN": token} if token else {})
        archive = tmp_path / "model.zip"
        write_zip(archive, GOOD | {"exp/RESULTS.md": "# RESULTS\n|5.0|"})
        command = [sys.executable, "-m", "espnet_ext.bin.asr_upload", "--repo", "owner/name"]
        done = subprocess.run(
            [*command, archive], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        return done, server.files

    yield upload
    server.shutdown()
    thread.join()
    server.server_close()


def test_upload_sends_what_was_packed_and_a_page(upload):
    done, files = upload("hf_good")
    assert done.returncode == 0, done.stderr
    assert files.keys() == {"README.md", "meta.yaml", "c.yaml", "m.pth", "exp/RESULTS.md"}
    assert files["c.yaml"].decode() == GOOD["c.yaml"]
    assert b'from_pretrained("owner/name")' in files["README.md"]
    assert b"|5.0|" in files["README.md"]


def test_upload_with_a_wrong_token_is_one_line(upload):
    done, files = upload("hf_bad")
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and files == {}
    assert "owner/name: refused by the hub, or no way to it (" in done.stderr


def test_upload_without_a_token_is_refused(upload):
    done, files = upload(None)
    assert done.returncode == 1 and files == {}
    assert (
        done.stderr == "asr_upload: error: no token: set HF_TOKEN, or keep --skip_upload_hf true\n"
    )
