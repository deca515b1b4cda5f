"""One HTTP/1.1 connection: httptools parses, requests are answered one after the other, invokes without a task.

An answer is whole (`answer`), or a stream: `begin_stream`, any number of `write`, then `end_stream` or `break_off`.
Whoever streams gives a Flow, which is told when the client takes no more for now.

A protocol of our own rather than an ASGI server's: an ASGI hop costs half of the throughput of the invoke path
(docs/performance.md), and AWS's clients need little of HTTP. What it holds clients to: headers of a bounded size within
a bounded time, bodies of a bounded size that keep coming, a bounded number of pipelined requests.
"""

from __future__ import annotations

import asyncio
import collections
import os
import time
from typing import Protocol, cast

import httptools

from lambent.frontend.caller import ANYONE, CallerIdentity, from_authorization, from_query
from lambent.model.limits import CONTROL_REQUEST_MAX_BYTES, HEADERS_MAX_BYTES
from lambent.wire.http import Request, Response

#: The longest pause within a request, headers or body.
BODY_PAUSE_TIMEOUT_S = 20.0
#: Line and headers in all, and a whole request in all, however steadily its bytes drip in.
HEADER_TIMEOUT_S = 30.0
REQUEST_TIMEOUT_S = 600.0
#: An idle connection may be reused for this long (SDKs keep theirs for a minute or so).
KEEP_ALIVE_S = 300.0
#: A refused client may go on sending for this long: closing at once would reset the connection, and the answer with it.
LINGER_S = 2.0
#: Reading pauses when so many requests wait; what one read brought (256 KiB, 18 bytes a request at least) still comes.
_PIPELINED_MAX = 64
_WAITING_MAX = _PIPELINED_MAX + 262_144 // 18
_BODY_MAX_BYTES = CONTROL_REQUEST_MAX_BYTES + 65_536
_REASONS = {
    200: "OK", 201: "Created", 202: "Accepted", 204: "No Content", 301: "Moved Permanently", 302: "Found",
    303: "See Other", 304: "Not Modified", 307: "Temporary Redirect", 308: "Permanent Redirect", 400: "Bad Request",
    401: "Unauthorized", 403: "Forbidden", 404: "Not Found", 405: "Method Not Allowed", 408: "Request Timeout",
    409: "Conflict", 410: "Gone", 412: "Precondition Failed",
    413: "Payload Too Large", 415: "Unsupported Media Type", 429: "Too Many Requests",
    431: "Request Header Fields Too Large", 500: "Internal Server Error", 501: "Not Implemented",
    502: "Bad Gateway", 503: "Service Unavailable", 504: "Gateway Timeout",
}  # fmt: skip


_NOISE_BYTES = 32
_pool: list[str] = []


def _noise() -> str:
    """64 hexadecimal digits nobody can guess; the kernel is asked for many at a time."""
    if not _pool:
        fresh = os.urandom(_NOISE_BYTES * 128).hex()
        _pool.extend(fresh[at : at + 64] for at in range(0, len(fresh), 64))
    return _pool.pop()


class RawRequest:
    """A request as parsed, before anyone looked at it. Header names are lower case; all is bytes."""

    __slots__ = ("body", "body_bytes", "headers", "keep_alive", "method", "request_id", "target", "trace_id")

    def __init__(self) -> None:
        self.method = b""
        self.target = b""
        #: Several values of one name are joined: cookies by "; ", all else by ",".
        self.headers: dict[bytes, bytes] = {}
        self.body: bytes = b""
        #: Counted even where the body was dropped for its size.
        self.body_bytes = 0
        self.keep_alive = True
        self.request_id = ""
        self.trace_id = ""

    @property
    def caller(self) -> CallerIdentity:
        authorization = self.headers.get(b"authorization")
        if authorization is not None:
            return from_authorization(authorization)
        if b"X-Amz-Credential" in self.target:
            return from_query(self.target.partition(b"?")[2].decode("latin-1"))
        return ANYONE

    def whole(self) -> Request:
        """As the services take it."""
        path, _, query = self.target.decode("latin-1").partition("?")
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in self.headers.items()}
        who = self.caller
        return Request(
            self.method.decode("latin-1"), path, query, headers, self.body, who.account, who.region, who.service,
            self.request_id,
        )  # fmt: skip


class Application(Protocol):
    """What the connection hands requests to."""

    def invoke(self, connection: Connection, raw: RawRequest) -> bool:
        """Take an invoke and answer it through `connection.answer`, now or later. False: not an invoke."""

    async def handle(self, raw: RawRequest) -> Response: ...

    def body_limit(self, raw: RawRequest) -> int:
        """Bytes of this request's body that are worth keeping; what is longer is counted and dropped."""


class Flow(Protocol):
    """Where a streamed answer comes from (worker.interface.StreamSource)."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...


class Clock:
    """The Date header's value and the time part of trace ids, renewed once a second."""

    def __init__(self) -> None:
        self.date = ""
        self.epoch_hex = ""
        self.renew()

    def renew(self) -> None:
        self.epoch_hex = f"{int(time.time()):08x}"
        self.date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime())


class Connection(asyncio.Protocol):
    """Server side of one connection."""

    __slots__ = (
        "_application",
        "_beginning",
        "_begun_at",
        "_body",
        "_body_limit",
        "_clock",
        "_connections",
        "_current",
        "_flow",
        "_header_bytes",
        "_lingering",
        "_loop",
        "_parser",
        "_raw",
        "_reading_paused",
        "_stream_framed",
        "_stream_open",
        "_task",
        "_transport",
        "_unfinished_bytes",
        "_waiting",
        "_writing_paused",
        "closing",
        "last_activity",
    )

    def __init__(
        self,
        application: Application,
        connections: set[Connection],
        clock: Clock,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._application = application
        self._connections = connections
        self._clock = clock
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._raw: RawRequest | None = None  # being received
        self._current: RawRequest | None = None  # being answered
        self._waiting: collections.deque[RawRequest] = collections.deque(maxlen=_WAITING_MAX)
        self._body: list[bytes] = []
        self._body_limit = 0
        self._header_bytes = 0
        self._begun_at = 0.0
        self._unfinished_bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._reading_paused = False
        self._beginning = False
        self._writing_paused = False
        self._stream_open = False
        self._stream_framed = True
        self._flow: Flow | None = None  # of the stream that is being answered
        self._lingering: asyncio.TimerHandle | None = None
        self.closing = False
        self.last_activity = loop.time()

    # --- transport --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's has the methods, not the base class
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone. What it asked for goes on, as on AWS; only the answer has nowhere to go."""
        self._connections.discard(self)
        self._transport = None
        self._waiting.clear()
        self._writing_paused = False
        if self._flow is not None:
            self._flow.resume()
        if self._lingering is not None:
            self._lingering.cancel()

    def pause_writing(self) -> None:
        """The transport holds more than its high-water mark: the client reads slower than the answer comes."""
        self._writing_paused = True
        if self._flow is not None:
            self._flow.pause()

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self._flow is not None:
            self._flow.resume()

    def data_received(self, data: bytes) -> None:
        self.last_activity = self._loop.time()
        if self._lingering is not None:
            return
        raw = self._raw
        body_bytes = raw.body_bytes if raw is not None else 0
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # answered as what it is without the upgrade, then closed
        except httptools.HttpParserError as error:
            if not self.closing:
                self._refuse(400, f"The request is not HTTP/1.1: {error}")
        if raw is not None and raw is self._raw and raw.body_bytes == body_bytes:
            # The parser tells a header only when it is whole: headers and trailers that never end are counted here.
            self._unfinished_bytes += len(data)
            if self._unfinished_bytes > HEADERS_MAX_BYTES and not self.closing:
                self._refuse(431, f"Request line and headers are over {HEADERS_MAX_BYTES} bytes.")

    # --- parser -----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._raw = RawRequest()
        self._begun_at = self.last_activity
        self._body = []
        self._header_bytes = 0
        self._unfinished_bytes = 0

    def on_url(self, url: bytes) -> None:
        raw = self._raw
        assert raw is not None
        raw.target += url
        self._header_bytes += len(url)
        if self._header_bytes > HEADERS_MAX_BYTES:
            self._refuse_headers()

    def on_header(self, name: bytes, value: bytes) -> None:
        raw = self._raw
        assert raw is not None
        name = name.lower()
        headers = raw.headers
        if name in headers:
            value = headers[name] + (b"; " if name == b"cookie" else b",") + value
        headers[name] = value
        self._header_bytes += len(name) + len(value)
        if self._header_bytes > HEADERS_MAX_BYTES:
            self._refuse_headers()

    def _refuse_headers(self) -> None:
        if not self.closing:
            self._refuse(431, f"Request line and headers are over {HEADERS_MAX_BYTES} bytes.")

    def on_headers_complete(self) -> None:
        raw = self._raw
        assert raw is not None
        raw.method = self._parser.get_method()
        raw.keep_alive = self._parser.should_keep_alive() and not self._parser.should_upgrade()
        self._body_limit = self._application.body_limit(raw)
        length = raw.headers.get(b"content-length")
        if length is not None and (not length.isdigit() or int(length) > _BODY_MAX_BYTES):
            self._refuse(413, f"Request must be smaller than {_BODY_MAX_BYTES} bytes.")
        elif raw.headers.get(b"expect", b"").lower() == b"100-continue" and self._current is None and self._transport:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        raw = self._raw
        assert raw is not None
        raw.body_bytes += len(body)
        if raw.body_bytes <= self._body_limit:
            self._body.append(body)
        elif raw.body_bytes > _BODY_MAX_BYTES and not self.closing:
            self._refuse(413, f"Request must be smaller than {_BODY_MAX_BYTES} bytes.")

    def on_message_complete(self) -> None:
        raw, self._raw = self._raw, None
        if raw is None or self.closing:
            return
        body = self._body
        raw.body = body[0] if len(body) == 1 else b"".join(body)
        self._body = []
        if self._current is None:
            self._begin(raw)
            return
        self._waiting.append(raw)
        if len(self._waiting) >= _PIPELINED_MAX and self._transport is not None:
            self._reading_paused = True
            self._transport.pause_reading()

    # --- answering --------------------------------------------------------------------------------------

    def _begin(self, raw: RawRequest) -> None:
        self._current = raw
        noise = _noise()
        raw.request_id = f"{noise[:8]}-{noise[8:12]}-4{noise[13:16]}-a{noise[17:20]}-{noise[20:32]}"
        raw.trace_id = self._clock.epoch_hex + noise[40:]
        if not self._application.invoke(self, raw):
            self._task = self._loop.create_task(self._handle(raw))

    async def _handle(self, raw: RawRequest) -> None:
        response = await self._application.handle(raw)
        head = "".join([f"{name}: {value}\r\n" for name, value in response.headers])
        self.answer(raw, response.status, head, response.body)

    def answer(self, raw: RawRequest, status: int, headers: str, body: bytes) -> None:
        """Send the answer to `raw`, which is the request being answered. `headers`: lines, each with its CRLF."""
        if raw is not self._current:
            return
        self._current = None
        self._task = None
        transport = self._transport
        if transport is None:
            return
        close = not raw.keep_alive or self.closing
        length = "" if status == 204 else f"Content-Length: {len(body)}\r\n"
        head = (
            f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}\r\nDate: {self._clock.date}\r\n"
            f"x-amzn-RequestId: {raw.request_id}\r\n{headers}{length}"
            f"Connection: {'close' if close else 'keep-alive'}\r\n\r\n"
        ).encode("latin-1", "replace")
        transport.write(head if raw.method == b"HEAD" else head + body)
        self.last_activity = self._loop.time()
        if close:
            self.closing = True
            transport.close()
        elif self._waiting and not self._beginning:
            self._begin_waiting(transport)

    def _begin_waiting(self, transport: asyncio.Transport) -> None:
        self._beginning = True  # answers that come at once are counted here, not on the stack
        while self._waiting and self._current is None and not self.closing:
            self._begin(self._waiting.popleft())
        self._beginning = False
        if self._reading_paused and len(self._waiting) < _PIPELINED_MAX // 2:
            self._reading_paused = False
            transport.resume_reading()

    # --- streaming --------------------------------------------------------------------------------------

    def begin_stream(self, raw: RawRequest, status: int, headers: str, flow: Flow | None) -> None:
        """Send the head of a streamed answer to `raw`; `flow` may be told to pause before this returns."""
        transport = self._transport
        if raw is not self._current or transport is None:
            return  # nobody to tell; the flow goes on, and what it brings is dropped
        bodiless = raw.method == b"HEAD" or status in (204, 304)
        self._stream_open = not bodiless
        self._stream_framed = self.http_version != "1.0"
        if bodiless:
            framing = ""
        elif not self._stream_framed:  # HTTP/1.0 knows no chunks: the end of the connection is the end of the answer
            raw.keep_alive = False
            framing = ""
        else:
            framing = "Transfer-Encoding: chunked\r\n"
        close = not raw.keep_alive or self.closing
        transport.write(
            (
                f"HTTP/1.1 {status} {_REASONS.get(status, 'Status')}\r\nDate: {self._clock.date}\r\n"
                f"x-amzn-RequestId: {raw.request_id}\r\n{headers}{framing}"
                f"Connection: {'close' if close else 'keep-alive'}\r\n\r\n"
            ).encode("latin-1", "replace")
        )
        self._flow = flow
        if flow is not None and self._writing_paused:
            flow.pause()

    def write(self, raw: RawRequest, data: bytes) -> None:
        """Send a piece of the answer that `begin_stream` began, at once. Without a client it is dropped."""
        transport = self._transport
        if raw is not self._current or transport is None or not data or not self._stream_open:
            return
        if self._stream_framed:
            transport.writelines((b"%x\r\n" % len(data), data, b"\r\n"))
        else:
            transport.write(data)
        self.last_activity = self._loop.time()

    def end_stream(self, raw: RawRequest) -> None:
        """The answer is complete."""
        if raw is not self._current:
            return
        transport = self._transport
        if transport is not None and self._stream_open and self._stream_framed:
            transport.write(b"0\r\n\r\n")
        self._finish_stream(transport, close=not raw.keep_alive or self.closing)

    def break_off(self, raw: RawRequest) -> None:
        """The answer stays incomplete: the missing last chunk and the closed connection tell the client."""
        if raw is not self._current:
            return
        if self._transport is not None and not self._stream_framed:
            self._transport.abort()  # an orderly end would pass for a complete answer
        self._finish_stream(self._transport, close=True)

    def _finish_stream(self, transport: asyncio.Transport | None, close: bool) -> None:
        self._current = None
        self._task = None
        self._flow = None
        self._stream_open = False
        if transport is None:
            return
        self.last_activity = self._loop.time()
        if close:
            self.closing = True
            transport.close()
        elif self._waiting and not self._beginning:
            self._begin_waiting(transport)

    @property
    def http_version(self) -> str:
        """As the client speaks it: of its newest request, but no client changes it within a connection."""
        return str(self._parser.get_http_version())

    @property
    def peer_address(self) -> str:
        """The client's IP address; "" when the connection is gone."""
        peer = self._transport.get_extra_info("peername") if self._transport is not None else None
        return str(peer[0]) if peer else ""

    @property
    def local_port(self) -> int:
        """The port that the client connected to; 0 when the connection is gone."""
        local = self._transport.get_extra_info("sockname") if self._transport is not None else None
        return int(local[1]) if local else 0

    def _refuse(self, status: int, message: str) -> None:
        """Answer what can not be understood, and close: the stream's position is lost."""
        self.closing = True
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._current is None:
            body = b'{"message":"%s"}' % message.replace('"', "'").encode()
            transport.write(
                b"HTTP/1.1 %d %s\r\nDate: %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
                b"Connection: close\r\n\r\n%s"
                % (status, _REASONS[status].encode(), self._clock.date.encode(), len(body), body)
            )
            transport.write_eof()
            self._lingering = self._loop.call_later(LINGER_S, transport.close)

    # --- upkeep -----------------------------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        """Called every few seconds: close what is idle for too long or too slow."""
        if self._current is not None or self._transport is None or self._lingering is not None:
            return
        quiet_s = now - self.last_activity
        if self._raw is not None:
            whole_s = now - self._begun_at
            if quiet_s > BODY_PAUSE_TIMEOUT_S:
                self._refuse(408, f"No byte of the request came for {BODY_PAUSE_TIMEOUT_S:.0f} s.")
            elif not self._raw.method and whole_s > HEADER_TIMEOUT_S:
                self._refuse(408, f"The headers did not come within {HEADER_TIMEOUT_S:.0f} s.")
            elif whole_s > REQUEST_TIMEOUT_S:
                self._refuse(408, f"The request did not come within {REQUEST_TIMEOUT_S:.0f} s.")
        elif quiet_s > KEEP_ALIVE_S and self._writing_paused:
            self._transport.abort()  # it does not even take the answers that it asked for
        elif quiet_s > KEEP_ALIVE_S:
            self._transport.close()

    def finish(self) -> None:
        """The server drains: close now when idle, else after the answer."""
        self.closing = True
        if self._current is None and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
