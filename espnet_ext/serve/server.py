"""WebSocket and page: what clients send goes to the models, what the models find out goes back.

docs/serving.md has the protocol. The event loop only passes things on; models run in the engine's
thread.
"""

import asyncio
import contextlib
import hmac
import ipaddress
import json
import logging
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from urllib.parse import quote, urlsplit

import numpy as np
import soxr
import uvicorn
from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

from espnet_ext.audio import RATES
from espnet_ext.errors import UserError
from espnet_ext.pretrained import RECORDING
from espnet_ext.resources import RESOURCES
from espnet_ext.serve.engine import Engine, Outcome, ServedModel
from espnet_ext.serve.limits import Limits
from espnet_ext.serve.picture import picture
from espnet_ext.streaming.pool import PooledStream, PoolFull

#: reason of a refusal -> close code of the WebSocket, HTTP's codes after a 4
CODES = {
    "bad_data": 4400,
    "wrong_token": 4401,
    "wrong_origin": 4403,
    "idle": 4408,
    "too_much": 4413,
    "too_many": 4429,
    "failed": 4500,
    "budget_full": 4503,
    "stopping": 1001,
}
#: results that may wait for a client that does not read them
BACKLOG = 64
SECURITY = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Refusal(Exception):
    """Why a client is sent away: a reason of ``CODES`` and a sentence."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Service:
    """The application: page, health, models, streams.

    Args:
        models: What is served.
        limits: What clients may do.
    """

    def __init__(self, models: list[ServedModel], limits: Limits) -> None:
        self.models, self.limits = models, limits
        self.engine = Engine(models)
        self.clients: set[Client] = set()
        self.stopping = asyncio.Event()
        static = RESOURCES / "serve"
        page = (static / "index.html").read_text(encoding="utf-8")
        routes = [
            Route("/", lambda request: HTMLResponse(page, headers=SECURITY)),
            Route("/health", self.health),
            Route("/models", self.list_models),
            Route("/picture", lambda request: HTMLResponse(picture(), headers=SECURITY)),
            Route("/sample", lambda request: FileResponse(RECORDING, headers=SECURITY)),
            WebSocketRoute("/stream", self.stream),
            Mount("/static", StaticFiles(directory=static)),
        ]
        self.app = Starlette(routes=routes)

    async def health(self, request: Request) -> JSONResponse:
        """Whether it works, and how much of it."""
        state = "stopping" if self.stopping.is_set() else "ok"
        streams = sum(len(model.pool.streams) for model in self.models)
        return JSONResponse({"status": state, "clients": len(self.clients), "streams": streams})

    async def list_models(self, request: Request) -> JSONResponse:
        """What the models are."""
        try:
            self.let_in(request)
        except Refusal as error:
            code = CODES[error.reason] - 4000
            return JSONResponse({"error": error.reason, "message": str(error)}, code)
        return JSONResponse(self.describe(self.models), headers=SECURITY)

    def describe(self, models: Iterable[ServedModel]) -> dict:
        """Models and limits, for clients."""
        limits = asdict(self.limits)
        for secret in ("token", "allowed_origins"):
            del limits[secret]
        return {"models": [model.describe() for model in models], "limits": limits}

    def let_in(self, request: HTTPConnection) -> None:
        """Refuse a page of another origin, and who does not know the token."""
        origin = request.headers.get("origin")
        if origin is not None and not self.same_origin(origin, request.headers.get("host", "")):
            if not {"*", origin} & set(self.limits.allowed_origins):
                raise Refusal(
                    "wrong_origin", f"{origin}: is not of this server; --allowed_origins may let it"
                )
        if self.limits.token is not None:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            given = given if scheme.lower() == "bearer" else request.query_params.get("token", "")
            if not hmac.compare_digest(given.encode(), self.limits.token.encode()):
                raise Refusal("wrong_token", "token: is missing or wrong; the server printed it")

    @staticmethod
    def same_origin(origin: str, host: str) -> bool:
        """Whether the page came from here; anyone may let a name point to this address."""
        if origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower()):
            return False
        try:
            name = urlsplit(origin).hostname
            return name == "localhost" or bool(ipaddress.ip_address(name))
        except ValueError:
            return False

    async def stream(self, websocket: WebSocket) -> None:
        """A WebSocket from its beginning to its end."""
        await websocket.accept()
        client = Client(self, websocket)
        try:
            self.let_in(websocket)
            if self.stopping.is_set():
                raise Refusal("stopping", "the server is stopping")
            if len(self.clients) >= self.limits.max_clients:
                raise Refusal(
                    "too_many", f"{self.limits.max_clients} clients are connected, no more may be"
                )
            self.clients.add(client)
            await client.run()
            code, reason = (1001, "stopping") if self.stopping.is_set() else (1000, "")
            await websocket.close(code, reason)
        except Refusal as error:
            await self._refuse(websocket, error)
        except (WebSocketDisconnect, TimeoutError):  # it is gone, or does not read
            pass
        except Exception:  # a bug
            logging.exception("a client's connection failed")
            await self._refuse(websocket, Refusal("failed", "the server's log says why"))
        finally:
            self.clients.discard(client)
            client.drop()

    async def _refuse(self, websocket, refusal):
        message = {"type": "error", "reason": refusal.reason, "message": str(refusal)}
        with contextlib.suppress(WebSocketDisconnect, TimeoutError, RuntimeError):
            async with asyncio.timeout(self.limits.idle_seconds):
                await websocket.send_json(message)
                await websocket.close(CODES[refusal.reason], refusal.reason)

    async def stop(self) -> None:
        """Take no more, and give every stream that has begun its final result, within a bound."""
        self.stopping.set()
        for client in self.clients:
            client.hurry()
        end = time.monotonic() + self.limits.stop_seconds
        while self.clients and time.monotonic() < end:
            await asyncio.sleep(0.02)


class Client:
    """One connection: a recording on its way to the models."""

    def __init__(self, service: Service, websocket: WebSocket) -> None:
        self.service, self.limits, self.websocket = service, service.limits, websocket
        self.engine, self.loop = service.engine, asyncio.get_running_loop()
        self.streams: dict[ServedModel, PooledStream] = {}
        self.outbox: asyncio.Queue[tuple[ServedModel, Outcome]] = asyncio.Queue()
        self.second, self.messages = 0, 0
        self.patience: asyncio.Timeout | None = None

    async def run(self) -> None:
        """Hear the client and answer until every model has said its last."""
        rate = await self._begin()
        tasks = [self.loop.create_task(task) for task in (self._listen(rate), self._answer())]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def drop(self) -> None:
        """Forget what is under way."""
        for model, stream in self.streams.items():
            self.engine.drop(model, stream)

    async def _begin(self):
        """Read the first message and open the streams; the rate of what will come."""
        message = await self._receive()
        if message is None:
            raise Refusal("stopping", "the server is stopping")
        start = _json(message, "start")
        rate, names = start.get("rate"), start.get("models")
        if type(rate) is not int or not RATES[0] <= rate <= RATES[1]:
            raise Refusal(
                "bad_data", f"rate: must be a whole number of Hz, {RATES[0]} to {RATES[1]}"
            )
        known = {model.name: model for model in self.service.models}
        names = list(known) if names is None else names
        if not isinstance(names, list) or not names or any(str(n) not in known for n in names):
            raise Refusal("bad_data", f"models: must be some of {', '.join(known)}")
        for name in dict.fromkeys(map(str, names)):
            model = known[name]
            try:
                self.streams[model] = self.engine.start(model, self._listener(model))
            except PoolFull as error:
                raise Refusal("budget_full", f"{name}: {error}") from None
        await self.websocket.send_json({"type": "started"} | self.service.describe(self.streams))
        return rate

    def _listener(self, model):
        def listen(outcome):
            self.loop.call_soon_threadsafe(self.outbox.put_nowait, (model, outcome))

        return listen

    async def _receive(self):
        """The next message; None when the server stops and nothing has come yet."""
        idle = self.limits.idle_seconds
        try:
            stopping = self.service.stopping.is_set()
            async with asyncio.timeout(0 if stopping else idle) as self.patience:
                return self._checked(await self.websocket.receive())
        except TimeoutError:
            if self.service.stopping.is_set():
                return None
            raise Refusal("idle", f"nothing came for {idle:g} s") from None
        finally:
            self.patience = None

    def hurry(self) -> None:
        """Wait for no more messages: the server stops."""
        if self.patience and not self.patience.expired():
            self.patience.reschedule(self.loop.time())

    def _checked(self, message):
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        size = len(message.get("bytes") or message.get("text") or "")
        if size > self.limits.max_message:
            raise Refusal(
                "too_much", f"a message of {size} bytes, {self.limits.max_message} at most"
            )
        second = int(time.monotonic())
        self.messages = self.messages + 1 if second == self.second else 1
        self.second = second
        if self.messages > self.limits.max_messages:
            raise Refusal("too_many", f"more than {self.limits.max_messages} messages a second")
        return message

    async def _listen(self, rate):
        """Pass on what comes until the client says that nothing more does, or the server stops."""
        resamplers = {model.speech2text.fs: None for model in self.streams}
        for fs in resamplers:
            if fs != rate:
                resamplers[fs] = soxr.ResampleStream(rate, fs, 1, dtype="float32")
        began, heard = time.monotonic(), 0
        while (message := await self._receive()) is not None:
            data = message.get("bytes")
            if data is None:
                _json(message, "finish")
                break
            if not data or len(data) % 2:
                raise Refusal("bad_data", f"{len(data)} bytes are no 16-bit samples")
            samples = np.frombuffer(data, "<i2").astype(np.float32) / 2**15
            heard += len(samples)
            lasted = time.monotonic() - began - self.limits.idle_seconds  # of a trickle as well
            if max(heard / rate, lasted) > self.limits.max_seconds:
                raise Refusal("too_much", f"longer than {self.limits.max_seconds:g} s")
            await self._push(resamplers, samples)
            early = began + (heard / rate - 1) / self.limits.max_speed - time.monotonic()
            if early > 0:
                await asyncio.sleep(early)
        await self._push(resamplers, np.zeros(0, np.float32), last=True)
        for model, stream in self.streams.items():
            self.engine.finish(model, stream)
        while (await self.websocket.receive())["type"] != "websocket.disconnect":
            if not self.service.stopping.is_set():
                raise Refusal("bad_data", "a message after finish")
        raise WebSocketDisconnect(1005)

    async def _push(self, resamplers, samples, last=False):
        """Give the models samples (n,), each at its rate, as soon as each has room for them."""
        parts = {
            fs: samples if own is None else own.resample_chunk(samples, last=last)
            for fs, own in resamplers.items()
        }
        for model, stream in self.streams.items():
            left = parts[model.speech2text.fs]
            while len(left) and stream in model.pool.streams:  # not where the model has failed
                if (room := model.pool.room(stream)) < 1:
                    await self._round()
                    continue
                part, left = left[:room], left[room:]
                with contextlib.suppress(UserError):  # it has failed in this moment
                    self.engine.push(model, stream, part)

    async def _round(self):
        """Wait until each pool was stepped once more."""
        done = self.loop.create_future()
        self.engine.after_round(lambda: self.loop.call_soon_threadsafe(_settle, done))
        await done

    async def _answer(self):
        """Send results until each model has given its last."""
        said = {model: [] for model in self.streams}  # words of the utterance that the client has
        ended = dict.fromkeys(self.streams, 0)  # how many words came before it
        texts = {model: [] for model in self.streams}  # of the utterances before it
        while said:
            model, outcome = await self.outbox.get()
            if self.outbox.qsize() > BACKLOG:
                raise WebSocketDisconnect(1008)  # it would not read a refusal either
            result = outcome.result
            if isinstance(result, UserError):
                del said[model]
                message = {"type": "failed", "model": model.name, "message": str(result)}
            else:
                before = [word for one in result.utterances for word in one.words]
                words, same = before + result.words, 0
                for word, known in zip(words, said[model], strict=False):
                    if word is not known and _word(word) != _word(known):
                        break
                    same += 1
                message = {
                    "type": "result",
                    "model": model.name,
                    "is_final": result.is_final,
                    "keep": ended[model] + same,
                    "words": [_word(word) for word in words[same:]],
                    "heard": round(outcome.heard, 3),
                    "ms": round(outcome.ms, 3),
                    "batch": outcome.batch,
                    "bytes": outcome.ledger,
                    "open_streams": len(model.pool.streams),
                }
                said[model] = words[len(before) :]
                ended[model] += len(before)
                texts[model] += [one.text for one in result.utterances]
                if result.is_final:
                    message["text"] = " ".join(filter(None, [*texts[model], result.text]))
                    del said[model]
            async with asyncio.timeout(self.limits.idle_seconds):
                await self.websocket.send_json(message)


def _settle(future):
    if not future.done():
        future.set_result(None)


def _word(word):
    """A word as a client gets it; when it appeared the client knows best."""
    return {
        "text": word.text,
        "start": round(word.start, 3),
        "end": round(word.end, 3),
        "confidence": round(word.confidence, 3),
    }


def _json(message, kind):
    """A message of text as an object of a type."""
    try:
        value = json.loads(message.get("text") or "")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or value.get("type") != kind:
        raise Refusal("bad_data", f'here {{"type": "{kind}", ...}} must come, see docs/serving.md')
    return value


class _Server(uvicorn.Server):
    """Uvicorn's, which finishes the streams before it stops; a second signal stops at once."""

    def __init__(self, config, service, started):
        super().__init__(config)
        self._service, self._started, self._stop = service, started, None

    async def startup(self, sockets=None):
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._started()

    def handle_exit(self, sig, frame):
        if self._service.stopping.is_set():
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._begin_to_stop)

    def _begin_to_stop(self):
        self._stop = self._loop.create_task(self._finish())

    async def _finish(self):
        await self._service.stop()
        self.should_exit = True


def check_certificate(certfile: str | None, keyfile: str | None) -> None:
    """Refuse files that are no certificate and its key.

    Raises:
        UserError: The message says which.
    """
    if not certfile:
        if keyfile:
            raise UserError(f"{keyfile}: --keyfile needs --certfile, the certificate of the key")
        return
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certfile, keyfile)
    except (OSError, ValueError) as error:  # ssl's own is an OSError
        names = " and ".join(filter(None, [certfile, keyfile]))
        raise UserError(f"{names}: no certificate with its key in PEM ({error})") from None


def serve(
    models: list[ServedModel],
    limits: Limits,
    host: str = "127.0.0.1",
    port: int = 8000,
    certfile: str | None = None,
    keyfile: str | None = None,
    announce: Callable[[str], None] = print,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        models: What is served.
        limits: What clients may do.
        host: Address to listen on.
        port: TCP port, 0 for any that is free.
        certfile: PEM file, for https and wss.
        keyfile: Its key.
        announce: Called with the page's address when the server is there.

    Raises:
        UserError: The address cannot be had.
    """
    try:
        family = socket.getaddrinfo(host, port)[0][0]
        listening = socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{host}:{port}: cannot be listened on ({why})") from None
    service = Service(models, limits)
    config = uvicorn.Config(
        service.app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        ssl_certfile=certfile,
        ssl_keyfile=keyfile,
        ws_max_size=4 * limits.max_message,  # up to there the refusal has a reason
        ws_ping_interval=None,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=2,
    )
    shown = f"[{host}]" if ":" in host else host
    url = f"{'https' if certfile else 'http'}://{shown}:{listening.getsockname()[1]}/"
    url += f"#token={quote(limits.token)}" if limits.token else ""
    try:
        _Server(config, service, lambda: announce(url)).run(sockets=[listening])
    finally:
        service.engine.close()
