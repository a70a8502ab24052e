"""Real servers, real clients: each text that of a stream alone, whatever the others do."""

import asyncio
import contextlib
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from chromium import CHROMIUM, Chromium
from espnet_ext.bin import asr_export, serve, stream
from espnet_ext.pretrained import PRETRAINED, RECORDING
from espnet_ext.serve.picture import picture
from espnet_ext.serve.server import CODES, Service
from espnet_ext.streaming.pool import StreamPool
from espnet_ext.streaming.speech2text import StreamingSpeech2Text
from streaming.conftest import write_model

TEXT = "SEVEN FOUR FIVE NINE TWO"
TOKEN = "open sesame"


class Server:
    """``espnet-ext serve`` in a process of its own."""

    def __init__(self, *options):
        command = [sys.executable, "-m", "espnet_ext", "serve", *map(str, options), "--port", "0"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        lines = iter(self.process.stdout.readline, "")
        opened = next((line for line in lines if line.startswith("Open ")), None)
        assert opened, self.process.stderr.read()
        self.page = opened.split()[1]
        self.url = re.sub("^http(.*/).*", r"ws\1stream", self.page)

    @property
    def alive(self):
        return self.process.poll() is None

    def stop(self):
        """End it as a service manager does; its exit status and what it complained of."""
        self.process.send_signal(signal.SIGTERM)
        _, complaints = self.process.communicate(timeout=120)
        return self.process.returncode, complaints


def kept(*options):
    """A function that gives a running server of these options, always the same while it lives."""
    servers = []

    def give():
        if not servers or not servers[-1].alive:
            servers.append(Server(*options))
        return servers[-1]

    yield give
    if servers and servers[-1].alive:
        assert servers[-1].stop() == (0, "")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Directory of a tiny model of 16 kHz."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    path.mkdir()
    front = {"fs": 16000, "n_fft": 512, "win_length": 400, "hop_length": 160, "n_mels": 20}
    write_model(path, frontend_conf=front)
    return shutil.move(path / "model.pth", path / "valid.acc.ave.pth").parent


@pytest.fixture(scope="module")
def models(tiny):
    """The served models, here."""
    folders = {PRETRAINED: RECORDING.parent, "tiny": tiny}
    return {name: StreamingSpeech2Text.from_pretrained(path) for name, path in folders.items()}


@pytest.fixture(scope="module")
def open_server(tiny):
    yield from kept(RECORDING.parent, tiny)


@pytest.fixture(scope="module")
def strict_server():
    yield from kept(
        *("--token", TOKEN, "--budget_mb", "0.3", "--max_clients", "3", "--max_seconds", "5"),
        *("--idle_seconds", "5", "--allowed_origins", "https://example.org/"),
        *("--endpoint", "0.2"),
    )


def recording(seed, rate, times=3):
    """int16 samples (n,) of the package's recording several times, begun somewhere."""
    samples, fs = soundfile.read(RECORDING, dtype="float32")
    samples = np.roll(np.tile(samples, times), 4001 * seed)
    return np.rint(2**15 * soxr.resample(samples, fs, rate).clip(-1, 0.9999)).astype(np.int16)


def alone(speech2text, samples, rate):
    """Final result of samples as a stream of its own, without a server."""
    samples = soxr.resample(samples.astype(np.float32) / 2**15, rate, speech2text.fs)
    own = speech2text.start()
    speech2text(own, samples)
    return speech2text(own, is_final=True)


async def read(socket):
    """Messages until the server closes, and its code."""
    messages = []
    with contextlib.suppress(ConnectionClosed):
        async for message in socket:
            messages.append(json.loads(message))
    await socket.wait_closed()
    return messages, socket.close_code


async def speak(url, samples, rate, packet, pause=0.0, **options):
    """One good client; the server's messages and close code."""
    async with connect(url, max_size=None, **options) as socket:
        await socket.send(json.dumps({"type": "start", "rate": rate}))
        reading = asyncio.create_task(read(socket))
        for start in range(0, len(samples), packet):
            await socket.send(samples[start : start + packet].tobytes())
            await asyncio.sleep(pause)
        await socket.send(json.dumps({"type": "finish"}))
        return await reading


def test_packets_of_more_than_a_chunk_and_less_than_the_first_needs_are_heard(open_server, models):
    samples = recording(0, 8000)[: 3 * 5200]
    messages, code = asyncio.run(
        asyncio.wait_for(speak(open_server().url, samples, 8000, 5200), 60)
    )
    finals = {m["model"]: m["text"] for m in messages if m.get("is_final")}
    assert code == 1000 and finals[PRETRAINED] == alone(models[PRETRAINED], samples, 8000).text


def test_exports_are_served_without_pytorch(tmp_path):
    folder = tmp_path / "exported"
    asr_export.main([str(RECORDING.parent), "--output", str(folder), "--client", "onnxruntime"])
    server = Server(folder, "--runtime", "onnxruntime")
    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    samples = recording(0, 8000)
    messages, code = asyncio.run(speak(server.url, samples, 8000, 777))
    assert server.stop() == (0, "")
    own = StreamingSpeech2Text.from_pretrained(folder, runtime="onnxruntime")
    assert code == 1000 and messages[-1]["text"] == alone(own, samples, 8000).text
    assert messages[0]["models"][0]["attention"] == "mla" == own.attention
    assert "onnxruntime" in maps and "libtorch" not in maps
    *_, last = (m for m in messages if not m.get("is_final"))
    eager = StreamingSpeech2Text.from_pretrained()
    stream_ = eager.start()
    eager(stream_, np.zeros(8000 * 9, np.float32))
    want = stream_.ledger()
    for kind in ("attention", "convolution"):
        assert last["bytes"][kind] == want[kind]


async def misbehave(url, *said, wait=False, headers=None, **start):
    """A client that begins and then says anything; the last message and the close code."""
    async with connect(url, max_size=None, additional_headers=headers or {}) as socket:
        with contextlib.suppress(ConnectionClosed):  # refused before all was said
            if start:
                await socket.send(json.dumps({"type": "start", **start}))
            for message in said:
                await socket.send(message)
        if not wait:
            return None
        messages, code = await read(socket)
        return messages[-1], code


def texts(messages):
    return {m["model"]: m["text"] for m in messages if m.get("is_final")}


def test_forty_clients_each_get_the_text_of_a_stream_alone(open_server, models):
    """35 that speak for ten seconds, 5 that do all else."""
    url, kinds = open_server().url, [(seed, rate) for seed in range(4) for rate in (8000, 48000)]
    spoken = {kind: recording(*kind) for kind in kinds}
    want = {
        kind: {n: alone(m, spoken[kind], kind[1]).text for n, m in models.items()} for kind in kinds
    }
    assert len({tuple(each.values()) for each in want.values()}) >= 4
    samples = spoken[0, 8000]

    async def everybody():
        rng = np.random.default_rng(0)
        good = []
        for i in range(35):
            rate = kinds[i % 8][1]
            packet = int(rate * rng.uniform(0.05, 0.3))
            good.append(speak(url, spoken[kinds[i % 8]], rate, packet, packet / rate))
        bad = [
            misbehave(url, samples[:8000].tobytes(), rate=8000),  # and is gone
            misbehave(url, rng.bytes(999), wait=True, rate=8000),
            misbehave(url, samples[:8000].tobytes(), "text", wait=True, rate=8000),
            misbehave(url, bytes(2**17), wait=True, rate=8000),
            misbehave(url),
        ]
        return await asyncio.gather(*good), await asyncio.gather(*bad)

    good, bad = asyncio.run(everybody())
    for i, (messages, code) in enumerate(good):
        assert code == 1000
        assert texts(messages) == want[kinds[i % 8]]
        heard = [m["heard"] for m in messages if m.get("model") == PRETRAINED]
        assert heard == sorted(heard) and len(heard) > 10
    assert [got and got[1] for got in bad] == [None, 4400, 4400, 4413, None]
    assert [got[0]["reason"] for got in bad if got] == ["bad_data", "bad_data", "too_much"]
    with urllib.request.urlopen(f"{open_server().page}health") as answer:
        assert json.load(answer) == {"status": "ok", "clients": 0, "streams": 0}


def test_words_come_with_times_and_what_a_chunk_took(open_server, models):
    samples = recording(0, 8000, times=1)
    messages, _ = asyncio.run(speak(open_server().url, samples, 8000, 800))
    started, *messages = messages
    described = {model["name"]: model for model in started["models"]}
    for name, model in models.items():
        words, results = [], [m for m in messages if m["model"] == name]
        for message in results:
            assert message["keep"] <= len(words)
            words[message["keep"] :] = message["words"]
            assert message["ms"] > 0 and message["batch"] >= 1
            assert message["bytes"]["attention"] > 0
            used = sum(n for kind, n in message["bytes"].items() if kind != "positions")
            assert used <= described[name]["stream_bytes"]
        result = alone(model, samples, 8000)
        assert [word["text"] for word in words] == [word.text for word in result.words]
        for word, own in zip(words, result.words, strict=True):
            assert [word["start"], word["end"]] == pytest.approx([own.start, own.end], abs=1e-3)
            assert word["confidence"] == pytest.approx(own.confidence, abs=2e-3)
    budget = described[PRETRAINED]["budget"]
    assert described[PRETRAINED]["max_streams"] == budget // described[PRETRAINED]["stream_bytes"]


def test_client_of_the_command_line(open_server, tmp_path, capsys, monkeypatch):
    url = open_server().url.removesuffix("/stream")
    stream.main(["--server", url, "--picture", str(tmp_path / "picture.html")])
    lines = capsys.readouterr().out.splitlines()
    assert f"{PRETRAINED}: {TEXT}" in lines and lines[-1].startswith("tiny: ")
    first = next(line for line in lines if f"{PRETRAINED}: " in line)  # the other may come before
    assert re.fullmatch(rf" +\d\.\d\d s +[\d.]+ KB  {PRETRAINED}: SEVEN", first)
    page = (tmp_path / "picture.html").read_text()
    drawn = json.loads(re.search('id="recording">(.*)</script>', page)[1])
    assert [model["name"] for model in drawn["models"]] == [PRETRAINED, "tiny"]
    assert [word["text"] for word in drawn["models"][0]["words"]] == TEXT.split()
    assert drawn["seconds"] == pytest.approx(24439 / 8000, abs=1e-3)
    assert page.count("</script>") == picture().count("</script>")
    pcm = recording(0, 16000, times=1).tobytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(pcm)))
    stream.main(["--server", url, "-", "--output", "json"])
    finals = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert texts(finals)[PRETRAINED] == TEXT


def test_picture_of_a_stream_without_a_server(tmp_path, models):
    stream.main(["--picture", str(tmp_path / "picture.html"), "--output", "json"])
    page = (tmp_path / "picture.html").read_text()
    (model,) = json.loads(re.search('id="recording">(.*)</script>', page)[1])["models"]
    assert [model["name"], model["text"]] == [PRETRAINED, TEXT]
    samples, _ = soundfile.read(RECORDING, dtype="float32")
    own = models[PRETRAINED].start()
    for start in range(0, len(samples), 800):
        models[PRETRAINED](own, samples[start : start + 800])
    models[PRETRAINED](own, is_final=True)
    assert model["chunks"][-1]["bytes"] == {
        kind: n for kind, n in own.ledger().items() if kind != "positions"
    }
    assert all(0 <= word["appeared"] - word["end"] < 1 for word in model["words"])


REFUSALS = {
    "no token": ({"headers": {}, "rate": 8000}, "wrong_token"),
    "another token": ({"headers": {"Authorization": "Bearer open barley"}}, "wrong_token"),
    "another origin": ({"headers": {"Origin": "https://evil.example"}}, "wrong_origin"),
    "no start": ({"said": [b"\0\0"]}, "bad_data"),
    "no JSON": ({"said": ["{"]}, "bad_data"),
    "deep JSON": ({"said": ["[" * 60000]}, "bad_data"),
    "no rate": ({"models": [PRETRAINED]}, "bad_data"),
    "a rate of no sound": ({"rate": 1}, "bad_data"),
    "no number": ({"rate": True}, "bad_data"),
    "no model": ({"rate": 8000, "models": ["another"]}, "bad_data"),
    "models of no kind": ({"rate": 8000, "models": [{}]}, "bad_data"),
    "no sample": ({"rate": 8000, "said": [b""]}, "bad_data"),
    "half a sample": ({"rate": 8000, "said": [b"\0" * 801]}, "bad_data"),
    "text for sound": ({"rate": 8000, "said": ["hello"]}, "bad_data"),
    "sound after the end": ({"rate": 8000, "said": ['{"type": "finish"}', b"\0\0"]}, None),
    "a long message": ({"rate": 8000, "said": [b"\0" * 2**17]}, "too_much"),
    "a long stream": ({"rate": 1000, "said": [b"\0" * 10002]}, "too_much"),
    "many messages": ({"rate": 8000, "said": [b"\0\0"] * 900}, "too_many"),
    "nothing": ({}, "idle"),
    "nothing more": ({"rate": 8000, "said": [b"\0\0"]}, "idle"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_say_why(strict_server, case):
    options, reason = REFUSALS[case]
    options = {"headers": {"Authorization": f"Bearer {TOKEN}"}} | options
    said = options.pop("said", [])
    message, code = asyncio.run(misbehave(strict_server().url, *said, wait=True, **options))
    if reason is None:  # whichever is first
        assert message.get("is_final") or message["reason"] == "bad_data"
        return
    assert message["type"] == "error" and message["reason"] == reason
    assert message["message"] and code == CODES[reason]


def test_token_may_be_in_the_address_and_origins_may_be_allowed(strict_server):
    url, samples = strict_server().url, recording(0, 8000, times=1)
    assert strict_server().page.endswith(f"#token={TOKEN.replace(' ', '%20')}")
    given = f"{url}?token=open%20sesame"
    for origin in ("https://example.org", url.replace("ws:", "http:").removesuffix("/stream")):
        messages, code = asyncio.run(speak(given, samples, 8000, 800, origin=origin))
        assert texts(messages) == {PRETRAINED: TEXT} and code == 1000
        words = []  # of several utterances, as every gap ends one
        for message in messages[1:]:
            words[message["keep"] :] = [word["text"] for word in message["words"]]
        assert " ".join(words) == TEXT
        assert messages[-1]["keep"] >= 3 and len(messages) > 4
    page = strict_server().page.partition("#")[0]
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{page}models")
    asked = urllib.request.Request(f"{page}models", headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(asked) as answer:
        assert json.load(answer)["models"][0]["max_streams"] == 2
    with urllib.request.urlopen(page) as answer:
        assert "frame-ancestors 'none'" in answer.headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    ("origin", "host", "same"),
    [
        ("http://127.0.0.1:8000", "127.0.0.1:8000", True),
        ("http://localhost:8000", "localhost:8000", True),
        ("https://[::1]:8000", "[::1]:8000", True),
        ("http://127.0.0.1:8001", "127.0.0.1:8000", False),
        ("http://rebound.example:8000", "rebound.example:8000", False),
        ("http://localhost.example:8000", "localhost.example:8000", False),
        ("null", "", False),
        ("file://", "", False),
        ("http://[::1", "[::1", False),
    ],
)
def test_same_origin_is_an_address_or_localhost(origin, host, same):
    assert Service.same_origin(origin, host) is same


def test_full_server_refuses_and_what_is_begun_ends_well_when_it_stops(strict_server):
    """Two streams fill the budget, three connections the server; then SIGTERM."""
    server, samples = strict_server(), recording(0, 8000, times=1)
    options = {"max_size": None, "additional_headers": {"Authorization": f"Bearer {TOKEN}"}}
    start = json.dumps({"type": "start", "rate": 8000})

    async def scene():
        async with contextlib.AsyncExitStack() as stack:
            sockets = [
                await stack.enter_async_context(connect(server.url, **options)) for _ in range(4)
            ]
            for socket in sockets[:2]:
                await socket.send(start)
                assert json.loads(await socket.recv())["type"] == "started"
                await socket.send(samples.tobytes())
            await sockets[2].send(start)
            full = await read(sockets[2])
            too_many = await read(sockets[3])
            results = [json.loads(await socket.recv()) for socket in sockets[:2]]
            server.process.send_signal(signal.SIGTERM)
            return full, too_many, results, [await read(socket) for socket in sockets[:2]]

    (full, too_many, results, ends) = asyncio.run(scene())
    assert (full[0][-1]["reason"], full[1]) == ("budget_full", CODES["budget_full"])
    assert "2 streams" in full[0][-1]["message"]
    assert (too_many[0][-1]["reason"], too_many[1]) == ("too_many", CODES["too_many"])
    for first, (messages, code) in zip(results, ends, strict=True):
        assert not first["is_final"]
        assert texts(messages) == {PRETRAINED: TEXT} and code == CODES["stopping"]
    assert server.process.communicate(timeout=60)[1] == "" and server.process.returncode == 0


def test_options_that_cannot_be(open_server, capsys):
    port = open_server().page.rstrip("/").rpartition(":")[2]
    for words, said in (
        (["--budget_mb", "0.01"], "hold no stream"),
        (["--port", "70000"], "port is a port, 0 to 65535"),
        (["--port", port], "cannot be listened on"),
        (["nowhere"], "nowhere: has no config.yaml"),
    ):
        with pytest.raises(SystemExit):
            serve.main(words)
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    for words, said in (
        (["--server", "ws://127.0.0.1:1"], "no server answers"),
        (["--server", "nonsense"], "no server answers"),
        (["--server", f"ws://127.0.0.1:{port}", "a", "b"], "has its own models"),
        (["--server", f"ws://127.0.0.1:{port}", "nowhere.wav"], "nowhere.wav: cannot be read"),
    ):
        with pytest.raises(SystemExit):
            stream.main(words)
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


# what the page sent, which the browser's microphone alone knows
KEEP = """
const send = Session.prototype.send, kept = [];
Session.prototype.send = function (packet) {
  kept.push(...packet);
  return send.call(this, packet);
};
"""
COLUMNS = """
Object.fromEntries([...document.querySelectorAll('article')].map(card => [card.dataset.model, {
  text: card.querySelector('.text').innerText.trim(),
  bars: Object.fromEntries([...card.querySelectorAll('.bar i')].map(
    bar => [bar.dataset.kind, Number(bar.dataset.bytes)])),
}]))
"""
DENY = """
navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', 'NotAllowedError'); }
"""
WIDTHS = """
[...document.querySelectorAll('.bar i')].map(bar => parseFloat(bar.style.width) / bar.dataset.bytes)
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")
def test_page_in_a_browser(open_server, models, tmp_path):
    """A microphone, a recording, a refusal and the server's end, as a reader sees them."""
    quiet = np.random.default_rng(0).normal(size=48000).round().astype(np.int16)
    sound = np.concatenate([quiet, recording(0, 48000, times=1), quiet])
    soundfile.write(tmp_path / "speech.wav", sound, 48000)
    switches = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    switches += [f"--use-file-for-fake-audio-capture={tmp_path / 'speech.wav'}"]
    state = "document.querySelector('#status')?.innerText"
    with Chromium(tmp_path / "profile", *switches) as browser:
        browser.resize(390, 844)
        browser.call("Page.navigate", url=open_server().page)
        browser.until(f"{state} === 'Ready'")
        browser.run(KEEP)
        assert browser.run("document.documentElement.scrollWidth") <= 390

        browser.call("Input.dispatchKeyEvent", type="keyDown", key="m")
        browser.until("columns.get('" + PRETRAINED + "').text.includes('NINE TWO')")
        assert browser.run(state) == "Listening"
        browser.run("document.querySelector('#microphone').click()")
        browser.until(f"{state} === 'Done'")
        check_page(browser, models, np.array(browser.run("kept"), np.int16))
        assert TEXT in browser.run(f"columns.get('{PRETRAINED}').text")

        browser.run("kept.length = 0; document.querySelector('#sample').click()")
        browser.until(f"session.title === 'Five digits' && {state} === 'Done'")
        check_page(browser, models, np.array(browser.run("kept"), np.int16))
        assert browser.run(f"columns.get('{PRETRAINED}').text") == TEXT
        drawn = browser.run("picture()")
        data = json.dumps(browser.run("recording()"))
        assert json.loads(re.search('id="recording">(.*)</script>', drawn)[1]) == json.loads(data)
        assert re.sub('id="recording">.*<', 'id="recording">null<', drawn) == picture()
        (tmp_path / "picture.html").write_text(drawn)

        browser.run(DENY)
        browser.run("document.querySelector('#microphone').click()")
        browser.until(f"{state}.startsWith('No permission for the microphone')")
        assert open_server().stop() == (0, "")
        browser.run("look()")
        browser.until(f"{state}.startsWith('The server is gone')")
        assert browser.run("document.querySelector('#microphone').disabled")
        assert [c for c in browser.complaints if "exceptionDetails" in c] == []

        browser.call("Page.navigate", url=f"file://{tmp_path / 'picture.html'}")
        browser.until("document.querySelectorAll('svg').length === 2")
        assert browser.run("document.querySelector('svg').textContent").count("TWO") >= 1
        assert browser.run("document.documentElement.scrollWidth") <= 390


def check_page(browser, models, samples):
    """Each column: the text of what was sent, and bars of the bytes that its state holds."""
    rate, shown = browser.run("session.rate"), browser.run(COLUMNS)
    assert list(shown) == list(models)
    for name, model in models.items():
        held = {kind: n for kind, n in ledger(model, samples, rate).items() if n}
        assert shown[name] == {"text": alone(model, samples, rate).text, "bars": held}
    widths = browser.run(WIDTHS)
    assert max(widths) == pytest.approx(min(widths), rel=1e-3)  # one scale


def ledger(speech2text, samples, rate):
    """What a stream of a pool holds in the end, the shared positions apart."""
    samples = soxr.resample(samples.astype(np.float32) / 2**15, rate, speech2text.fs)
    pool = StreamPool(speech2text)
    own, size = pool.start(), speech2text.samples(speech2text.chunk_seconds)
    for start in range(0, len(samples), size):
        pool.push(own, samples[start : start + size])
        pool.step()
    pool.finish(own)
    while own in pool.streams:
        pool.step()
    return {kind: n for kind, n in own.stream.ledger().items() if kind != "positions"}
