"""The real listener, connections, endpoints and routing on a real socket; the test plays the worker.

The event loop runs in a thread of its own, as the server's does (uvloop). An invocation arrives in `calls`; the test
answers it through `Call`, whose methods run on the loop, or lets a `Producer` stream without end.
"""

from __future__ import annotations

import asyncio
import http.client
import queue
import random
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Self, TypeVar

import boto3
import msgspec
import uvloop
from botocore.config import Config

from lambent.dataplane.plane import Caller
from lambent.dataplane.routing import FunctionEntry, RoutingTable, UrlEntry, VersionEntry
from lambent.frontend.application import Application
from lambent.frontend.function_urls.endpoint import FunctionUrlEndpoint
from lambent.frontend.invoke import InvokeEndpoint
from lambent.frontend.listener import Listener, bind
from lambent.model.errors import ApiError
from lambent.model.function import VersionSpec
from lambent.model.function_url import Cors, InvokeMode, UrlAuthType, UrlSpec
from lambent.model.names import DEFAULT_ACCOUNT, DEFAULT_REGION, LATEST, FunctionKey
from lambent.telemetry.lambda_metrics import LambdaMetrics
from lambent.wire.rest_json import RestJsonCodec
from lambent.wire.service_model import load
from lambent.worker.interface import Invocation, InvocationResult

T = TypeVar("T")
PATIENCE_S = 10.0
URL_ID = "u" * 32
HOST = f"{URL_ID}.lambda-url.{DEFAULT_REGION}.localhost"
KEY = FunctionKey(DEFAULT_ACCOUNT, DEFAULT_REGION, "f")
_codec = RestJsonCodec(load("lambda"))


class Call:
    """An invocation that reached the worker's side."""

    def __init__(self, frontend: Frontend, invocation: Invocation, caller: Caller) -> None:
        self._frontend = frontend
        self.invocation = invocation
        self.caller = caller

    @property
    def event(self) -> Any:
        return msgspec.json.decode(self.invocation.payload)

    def start(self, content_type: str = "application/octet-stream", source: Any = None) -> None:
        sink = self.invocation.sink
        assert sink is not None
        self._frontend.on_loop(lambda: sink.on_start(content_type, source or Producer(self._frontend, self, 0)))

    def chunk(self, data: bytes) -> None:
        sink = self.invocation.sink
        assert sink is not None
        self._frontend.on_loop(lambda: sink.on_chunk(data))

    def end(self, payload: bytes = b"", **members: Any) -> None:
        result = InvocationResult(payload, **members)
        self._frontend.on_loop(lambda: self.caller.on_result(result))

    def end_stream(self, **members: Any) -> None:
        self.end(streamed=True, **members)

    def refuse(self, error: ApiError) -> None:
        self._frontend.on_loop(lambda: self.caller.on_refused(error))


class Producer:
    """A StreamSource that sends chunks as fast as it is let, as a link to a runtime does. `paused` and `resumed` are
    set when that happened; `ended` when all is sent."""

    def __init__(self, frontend: Frontend, call: Call, total_bytes: int, chunk_bytes: int = 65_536) -> None:
        self._frontend = frontend
        self._call = call
        self._chunk = bytes(chunk_bytes)
        self.left_bytes = total_bytes
        self.total_bytes = total_bytes
        self.pauses = 0
        self.paused = threading.Event()
        self.ended = threading.Event()
        self._flowing = False
        self._held = False

    @property
    def sent_bytes(self) -> int:
        return self.total_bytes - self.left_bytes

    def run(self, content_type: str = "application/octet-stream") -> None:
        self._call.start(content_type, self)
        self._frontend.on_loop(self._flow)

    def pause(self) -> None:
        self._held = True
        self.pauses += 1
        self.paused.set()

    def resume(self) -> None:
        self._held = False
        if not self._flowing:
            self._flowing = True
            asyncio.get_running_loop().call_soon(self._flow)

    def _flow(self) -> None:
        sink = self._call.invocation.sink
        assert sink is not None
        self._flowing = True
        if self._held:
            self._flowing = False
            return
        if self.left_bytes > 0:
            piece = self._chunk[: self.left_bytes]
            self.left_bytes -= len(piece)
            sink.on_chunk(piece)
            asyncio.get_running_loop().call_soon(self._flow)
        elif not self.ended.is_set() and self.total_bytes:
            self._call.caller.on_result(InvocationResult(b"", streamed=True))
            self.ended.set()


class Frontend:
    """A server of function `f`, and of a URL of it."""

    def __init__(self) -> None:
        self.calls: queue.Queue[Call] = queue.Queue()
        self.loop = uvloop.new_event_loop()
        self.secrets: dict[str, str] = {}
        self.routing = RoutingTable(random.Random(1), LambdaMetrics())
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        function = self.routing.functions[KEY] = FunctionEntry(1, KEY)
        function.versions[LATEST] = VersionEntry(
            2,
            function,
            VersionSpec(
                key=KEY,
                version=LATEST,
                runtime="python3.12",
                handler="m.h",
                role="r",
                code_sha256="0",
                memory_mib=128,
                timeout_s=3,
                tmp_mib=512,
            ),
        )

    # DataPlane, as far as the endpoints use it
    def invoke(self, version: VersionEntry, invocation: Invocation, caller: Caller, asynchronous: bool) -> None:
        self.calls.put(Call(self, invocation, caller))

    def set_url(
        self,
        mode: InvokeMode = InvokeMode.BUFFERED,
        auth: UrlAuthType = UrlAuthType.NONE,
        cors: Cors | None = None,
        permits: Callable[[str], bool] = lambda _: True,
        qualifier: str | None = None,
    ) -> None:
        spec = UrlSpec(id=URL_ID, key=KEY, qualifier=qualifier, auth_type=auth, invoke_mode=mode, cors=cors)
        self.routing.urls[URL_ID] = UrlEntry(spec, permits)

    def __enter__(self) -> Self:
        self._thread.start()
        plane: Any = self
        asynchronous: Any = None
        invokes = InvokeEndpoint(plane, self.routing, asynchronous, _codec)
        urls = FunctionUrlEndpoint(plane, self.routing, _codec, self.secrets.get)
        self.listener = Listener(Application(invokes, urls, {}, {}, None))
        sock = bind("127.0.0.1", 0)
        self.port = sock.getsockname()[1]
        self.run(self.listener.start(sock))
        return self

    def __exit__(self, *_: object) -> None:
        self.on_loop(self.listener.stop_accepting)
        self.run(self.listener.close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE_S)
        self.loop.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(PATIENCE_S)

    def on_loop(self, work: Callable[[], T]) -> T:
        async def do() -> T:
            return work()

        return self.run(do())

    def next_call(self) -> Call:
        return self.calls.get(timeout=PATIENCE_S)

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)

    def send(
        self, method: str = "GET", target: str = "/", body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> http.client.HTTPConnection:
        """A request to the function URL, not waited for."""
        connection = self.connection()
        connection.request(method, target, body, {"Host": HOST, **(headers or {})})
        return connection

    def client(self) -> Any:
        return boto3.client(
            "lambda",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            region_name=DEFAULT_REGION,
            aws_access_key_id=DEFAULT_ACCOUNT,
            aws_secret_access_key="x",
            config=Config(retries={"total_max_attempts": 1}, parameter_validation=False, read_timeout=PATIENCE_S),
        )
