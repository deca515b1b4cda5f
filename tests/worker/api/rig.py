"""An Api on a real socket with its event loop in a thread, an owner that writes down what it is told, raw clients."""

from __future__ import annotations

import asyncio
import json
import queue
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import uvloop

from lambent.worker.api.interface import Admits, ApiFacts
from lambent.worker.api.server import Api
from lambent.worker.interface import Invocation, StreamSource

PATIENCE_S = 5.0
FACTS = ApiFacts("orders", "$LATEST", "app.handler", "000000000000")
REQUEST_ID = "8476a536-e9f4-11e8-9739-2dfe598c3fcd"
ARN = "arn:aws:lambda:us-east-1:000000000000:function:orders"
TRACE = "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Parent=9a9197af755a6419;Sampled=1"
NEXT = "/2018-06-01/runtime/invocation/next"
REGISTER = "/2020-01-01/extension/register"
EVENT_NEXT = "/2020-01-01/extension/event/next"


def invocation(payload: bytes = b'{"key":"value"}', request_id: str = REQUEST_ID, **more: Any) -> Invocation:
    return Invocation(1, request_id, payload, ARN, **{"trace_id": TRACE, **more})


def response_path(request_id: str = REQUEST_ID) -> str:
    return f"/2018-06-01/runtime/invocation/{request_id}/response"


def error_path(request_id: str = REQUEST_ID) -> str:
    return f"/2018-06-01/runtime/invocation/{request_id}/error"


class Recorder:
    """The owner. `react` maps a call's name to what is to be done within it."""

    def __init__(self) -> None:
        self.calls: queue.Queue[tuple[Any, ...]] = queue.Queue()
        self.react: dict[str, Callable[..., None]] = {}
        self.stream_bytes = 0
        self.keep_chunks = True
        self.source: StreamSource | None = None
        self.on_bytes: Callable[[int], None] | None = None

    def _note(self, name: str, *told: Any) -> None:
        self.calls.put((name, *told))
        reaction = self.react.get(name)
        if reaction is not None:
            reaction(*told)

    def on_registered(self) -> None:
        self._note("registered")

    def on_settled(self) -> None:
        self._note("settled")

    def on_response(self, payload: bytes, content_type: str) -> None:
        assert type(payload) is bytes
        self._note("response", payload, content_type)

    def on_response_too_large(self) -> None:
        self._note("too_large")

    def on_stream_start(self, content_type: str, source: StreamSource) -> None:
        self.source = source
        self._note("stream_start", content_type)

    def on_stream_chunk(self, data: bytes) -> None:
        assert type(data) is bytes
        self.stream_bytes += len(data)
        if self.on_bytes is not None:
            self.on_bytes(self.stream_bytes)
        if self.keep_chunks:
            self._note("chunk", data)

    def on_stream_end(self, error_type: str | None, error_body: bytes) -> None:
        self._note("stream_end", error_type, error_body)

    def on_error(self, error_type: str, body: bytes) -> None:
        self._note("error", error_type, body)

    def on_init_error(self, error_type: str, body: bytes) -> None:
        self._note("init_error", error_type, body)

    def on_restore_next(self) -> None:
        self._note("restore_next")

    def on_restore_error(self, error_type: str, body: bytes) -> None:
        self._note("restore_error", error_type, body)

    def on_extension_error(self, name: str, error_type: str, in_init: bool) -> None:
        self._note("extension_error", name, error_type, in_init)

    def on_extension_ready(self, name: str, events: Sequence[str]) -> None:
        self._note("extension_ready", name, tuple(events))

    def on_subscribed(self, name: str, types: Sequence[str]) -> None:
        self._note("subscribed", name, tuple(types))

    # --- for tests --------------------------------------------------------------------------------------

    def take(self) -> tuple[Any, ...]:
        """The next call, waited for."""
        return self.calls.get(timeout=PATIENCE_S)

    def wait_for(self, name: str) -> tuple[Any, ...]:
        """The next call of that name; what comes before is passed over."""
        while True:
            call = self.take()
            if call[0] == name:
                return call

    @property
    def silent(self) -> bool:
        return self.calls.empty()


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Sends exactly the bytes it is told to, reads one answer at a time."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.socket = socket.create_connection(address, timeout=PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> None:
        self.send(wire(method, path, body, **headers))

    def call(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        self.ask(method, path, body, **headers)
        return self.answer()

    def _more(self) -> None:
        data = self.socket.recv(262_144)
        if not data:
            raise EOFError(self.buffer[:200])
        self.buffer += data

    def answer(self) -> Answer:
        while b"\r\n\r\n" not in self.buffer:
            self._more()
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {line.partition(": ")[0].lower(): line.partition(": ")[2] for line in lines}
        status = int(first.split(" ")[1])
        length = int(headers.get("content-length", "0"))
        while len(self.buffer) < length:
            self._more()
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        return Answer(status, headers, body)

    @property
    def is_cut(self) -> bool:
        """Wait for the server's end to close."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self.socket.close()


def wire(method: str, path: str, body: bytes | None = None, **headers: str) -> bytes:
    """A request as bytes; header names with _ for -."""
    lines = [f"{method} {path} HTTP/1.1", "Host: api"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b"")


class Rig:
    """Everything runs on the loop's thread through `do`, as in the server."""

    def __init__(
        self,
        use_uvloop: bool = True,
        admits: Admits | None = None,
        make_admits: Callable[[tuple[str, int]], Admits | None] | None = None,
        may_deliver: Callable[[tuple[str, int]], bool] | None = None,
        http_runtime: bool = True,
    ) -> None:
        self.loop = uvloop.new_event_loop() if use_uvloop else asyncio.new_event_loop()
        self.owner = Recorder()
        self.failures: list[dict[str, Any]] = []
        self.loop.set_exception_handler(lambda _loop, context: self.failures.append(context))
        self.clients: list[Client] = []
        listener = socket.create_server(("127.0.0.1", 0), backlog=1_024)
        listener.setblocking(False)
        self.address: tuple[str, int] = listener.getsockname()
        if make_admits is not None:
            admits = make_admits(self.address)
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.api: Api = self.do(self.make_api, listener, admits, may_deliver)
        self.do(self.api.begin, http_runtime)

    def make_api(
        self,
        listener: socket.socket,
        admits: Admits | None,
        may_deliver: Callable[[tuple[str, int]], bool] | None,
    ) -> Api:
        return Api(self.loop, listener, self.owner, FACTS, admits, "127.0.0.1", may_deliver=may_deliver)

    def do(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Call on the loop's thread, and wait for what it gives."""

        async def run() -> Any:
            return call(*arguments)

        return asyncio.run_coroutine_threadsafe(run(), self.loop).result(PATIENCE_S)

    def client(self) -> Client:
        client = Client(self.address)
        self.clients.append(client)
        return client

    def close(self) -> None:
        self.do(self.api.close)
        for client in self.clients:
            client.close()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE_S)
        self.loop.close()
        assert not self.failures, self.failures

    # --- the usual --------------------------------------------------------------------------------------

    def runtime(self) -> Client:
        """A runtime that sits in its first `next`, with Init settled."""
        client = self.client()
        client.ask("GET", NEXT)
        assert self.owner.take() == ("settled",)
        return client

    def running(self, **more: Any) -> Client:
        """A runtime that has an invocation."""
        client = self.runtime()
        self.do(self.api.invoke, invocation(**more), 1_700_000_000_000)
        assert client.answer().status == 200
        return client

    def extension(self, name: str = "inner", events: Sequence[str] = ("INVOKE",)) -> tuple[Client, str]:
        """A registered extension and its identifier."""
        client = self.client()
        body = json.dumps({"events": list(events)}).encode()
        answer = client.call("POST", REGISTER, body, Lambda_Extension_Name=name)
        assert answer.status == 200, answer
        return client, answer.headers["lambda-extension-identifier"]
