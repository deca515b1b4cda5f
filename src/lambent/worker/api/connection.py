"""One HTTP/1.1 connection of a runtime or an extension: httptools parses, requests are answered one after the other.

The socket is read and written from plain event-loop callbacks: no transport and no task, because `next` and `response`
are part of every invocation. The parser's callbacks only fill a Request; the application hears of it when the parser
has returned, so whatever it does (also closing this connection) it never does inside the parser.

What clients are held to: a bounded head and trailers, one unsent answer, a bounded queue of pipelined requests, and
bodies that are kept only where the application asked for them. Reading pauses rather than that memory grows.
"""

from __future__ import annotations

import asyncio
import collections
import socket
import time
from collections.abc import Callable
from typing import Protocol

import httptools

#: Request line and headers; also trailers, chunk extensions, or whatever else comes without a byte of a body. Go's
#: servers, AWS's among them, take 1 MB; the largest in use is the X-Ray cause of up to 64 KiB.
HEAD_MAX_BYTES = 262_144
#: Of a body that is not kept, so much is still read before the connection is closed: most clients look for an answer
#: only when they have sent everything.
DISCARD_MAX_BYTES = 67_108_864
#: A refused client may go on sending for so long: closing at once would reset the connection, and lose the answer.
LINGER_S = 1.0
LINGER_MAX_BYTES = 16_777_216
#: Requests, and bytes of bodies, that may wait behind one that is being answered.
PIPELINED_MAX = 64
PIPELINED_MAX_BYTES = 262_144
#: Read, and parsed, in one turn of the loop; requests answered in one turn.
_READ_BYTES = 32_768
_BODY_READ_BYTES = 131_072
_TURN_MAX = 32
#: Pieces of a body smaller than this are put together.
_PIECE_BYTES = 4_096
#: Payloads up to this size are copied behind their head: cheaper than a second buffer.
_JOIN_MAX_BYTES = 16_384
_REASONS = {
    200: b"OK", 202: b"Accepted", 400: b"Bad Request", 403: b"Forbidden", 404: b"Not Found",
    405: b"Method Not Allowed", 410: b"Gone", 413: b"Request Entity Too Large",
    431: b"Request Header Fields Too Large", 500: b"Internal Server Error",
}  # fmt: skip
_TRAILERS = frozenset((b"lambda-runtime-function-error-type", b"lambda-runtime-function-error-body"))

_date_s = 0
_date = b""


def date_line() -> bytes:
    """The Date header with its CRLF, made once a second."""
    global _date_s, _date
    now_s = int(time.time())
    if now_s != _date_s:
        _date_s = now_s
        _date = time.strftime("Date: %a, %d %b %Y %H:%M:%S GMT\r\n", time.gmtime(now_s)).encode()
    return _date


class Request:
    """A request, perhaps still on its way. Header names are lower case.

    `limit`, `finish` and the rest are the application's, set when it is told of the head: what to do with the body and
    with the whole. `refusal` is an answer that stands already; the rest of the body is then thrown away.
    """

    __slots__ = (
        "begun", "body_bytes", "chunks", "complete", "data", "finish", "headed", "headers", "keep_alive", "kept",
        "limit", "lost", "method", "oversize", "refusal", "target", "trailers",
    )  # fmt: skip

    def __init__(self) -> None:
        self.method = b""
        self.target = b""
        self.headers: dict[bytes, bytes] = {}
        self.trailers: dict[bytes, bytes] = {}
        self.chunks: list[bytes | bytearray] = []
        self.kept = 0  # of the chunks, so many are put together already
        self.body_bytes = 0
        self.keep_alive = True
        self.headed = self.complete = self.begun = False
        self.limit = 0
        self.refusal: bytes | None = None
        self.finish: Callable[[Connection, Request], None] = _unanswered
        self.data: Callable[[Connection, Request, bytes], None] | None = None  # takes the body as it comes
        self.oversize: Callable[[Connection, Request], None] | None = None
        self.lost: Callable[[Connection, Request], None] | None = None  # the client is gone before it was answered

    @property
    def body(self) -> bytes:
        chunks = self.chunks
        return bytes(chunks[0]) if len(chunks) == 1 else b"".join(chunks)

    def header(self, name: bytes) -> str:
        return self.headers.get(name, b"").decode("utf-8", "replace")


def _unanswered(_connection: Connection, _request: Request) -> None:
    raise AssertionError("a request that nobody took")


class Application(Protocol):
    """What a connection hands requests to. Everything is called outside the parser, on the event-loop thread."""

    def begin_request(self, connection: Connection, request: Request) -> None:
        """The head is there: set `finish`, `limit` and what else applies, or `refusal`."""

    def keep(self, byte_count: int) -> bool:
        """May so many more bytes of bodies be kept (negative: they are not any more)? False: there is no room."""

    def forget(self, connection: Connection) -> None:
        """The connection has closed."""


def error_answer(status: int, error_type: str, message: str, close: bool = False) -> bytes:
    """A whole answer in AWS's form of an error."""
    text = message.replace("\\", "\\\\").replace('"', '\\"')
    text = "".join(character if character >= " " else f"\\u{ord(character):04x}" for character in text)
    body = f'{{"errorMessage":"{text}","errorType":"{error_type}"}}\n'.encode()
    return answer(status, body, close=close)


def answer(
    status: int, body: bytes, headers: bytes = b"", content_type: bytes = b"application/json", close: bool = False
) -> bytes:
    """A whole answer. `headers`: lines, each with its CRLF."""
    return b"HTTP/1.1 %d %b\r\nContent-Type: %b\r\n%b%b%bContent-Length: %d\r\n\r\n%b" % (
        status, _REASONS[status], content_type, headers, date_line(), b"Connection: close\r\n" if close else b"",
        len(body), body,
    )  # fmt: skip


class Connection:
    """Server side of one connection; owns the socket."""

    __slots__ = (
        "_application", "_barren_bytes", "_current", "_descriptor", "_discarded_bytes", "_failure", "_held_bytes",
        "_incoming", "_lingering", "_loop", "_parser", "_processing", "_queue", "_queue_bytes", "_reading",
        "_scheduled", "_socket", "_stream_paused", "_unsent", "closed", "closing", "is_client",
    )  # fmt: skip

    def __init__(self, application: Application, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        """`sock` is connected and non-blocking; it is closed here."""
        self._application = application
        self._loop = loop
        self._socket = sock
        self._descriptor = sock.fileno()
        self._parser = httptools.HttpRequestParser(self)
        self._incoming: Request | None = None  # being received
        self._current: Request | None = None  # whole, being answered
        self._queue: collections.deque[Request] = collections.deque(maxlen=_READ_BYTES)
        self._queue_bytes = 0
        self._held_bytes = 0  # of bodies, as told to the application
        self._barren_bytes = 0  # received since the last bit of progress
        self._discarded_bytes = 0
        self._failure: bytes | None = None  # the answer to what can not be understood
        self._unsent: list[memoryview] = []
        self._lingering: asyncio.TimerHandle | None = None
        self._scheduled: asyncio.Handle | None = None
        self._processing = self._stream_paused = False
        self._reading = True
        self.closed = self.closing = False
        #: Has called a `next`: it is not closed to make room for others.
        self.is_client = False
        loop.add_reader(self._descriptor, self._readable)

    @property
    def is_busy(self) -> bool:
        return self._current is not None or self._incoming is not None

    # --- reading ----------------------------------------------------------------------------------------

    def _readable(self) -> None:
        incoming = self._incoming
        try:
            data = self._socket.recv(_READ_BYTES if incoming is None else _BODY_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._end()
        elif self._lingering is not None:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > LINGER_MAX_BYTES:
                self.close()
        else:
            self._feed(data, incoming)

    def _feed(self, data: bytes, incoming: Request | None) -> None:
        body_bytes = incoming.body_bytes if incoming is not None and incoming.headed else -1
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # answered as what it is without the upgrade, then closed
        except httptools.HttpParserError as error:
            if self._failure is None:
                self._failure = error_answer(400, "InvalidRequestFormat", f"not HTTP/1.1: {error}", close=True)
        now = self._incoming
        if now is None:
            self._barren_bytes = 0
        elif now is incoming and (now.body_bytes if now.headed else -1) == body_bytes:
            # The parser tells a header only when it is whole: heads and trailers that never end are counted here.
            self._count_barren(len(data))
        elif not now.headed:
            self._barren_bytes = 0
            self._count_barren(len(data))
        self._process()

    def _count_barren(self, byte_count: int) -> None:
        self._barren_bytes += byte_count
        if self._barren_bytes > HEAD_MAX_BYTES and self._failure is None:
            message = f"Request line and headers are over {HEAD_MAX_BYTES} bytes."
            self._failure = error_answer(431, "InvalidRequestFormat", message, close=True)

    def pause(self) -> None:
        """StreamSource: stop reading; the client blocks when the kernel's buffers are full."""
        self._stream_paused = True
        self._set_reading()

    def resume(self) -> None:
        """StreamSource."""
        self._stream_paused = False
        self._set_reading()

    def _set_reading(self) -> None:
        wanted = (
            not self._stream_paused and len(self._queue) < PIPELINED_MAX and self._queue_bytes < PIPELINED_MAX_BYTES
        )
        if wanted is self._reading or self.closed:
            return
        self._reading = wanted
        if wanted:
            self._loop.add_reader(self._descriptor, self._readable)
        else:
            self._loop.remove_reader(self._descriptor)

    # --- parser: these only fill the request ------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._incoming = Request()

    def on_url(self, url: bytes) -> None:
        request = self._incoming
        assert request is not None
        request.target = request.target + url if request.target else url

    def on_header(self, name: bytes, value: bytes) -> None:
        request = self._incoming
        assert request is not None
        if not request.headed:
            request.headers[name.lower()] = value
        elif name.lower() in _TRAILERS:
            request.trailers[name.lower()] = value

    def on_headers_complete(self) -> None:
        request = self._incoming
        assert request is not None
        request.headed = True
        request.method = self._parser.get_method()
        request.keep_alive = self._parser.should_keep_alive() and not self._parser.should_upgrade()

    def on_body(self, data: bytes) -> None:
        request = self._incoming
        assert request is not None
        request.body_bytes += len(data)
        if request.refusal is None:
            request.chunks.append(data)

    def on_message_complete(self) -> None:
        request = self._incoming
        assert request is not None
        self._incoming = None
        request.complete = True
        self._queue.append(request)

    # --- one request after the other --------------------------------------------------------------------

    def _process(self) -> None:
        """Hand on what has come, as far as answers allow."""
        self._scheduled = None
        self._processing = True
        queue = self._queue
        turns = _TURN_MAX
        try:
            while self._current is None and not self.closing and not self._unsent and turns:
                request = queue[0] if queue else self._incoming
                if request is None or not request.headed:
                    break
                self._advance(request)
                if not request.complete:
                    break
                turns -= 1
        finally:
            self._processing = False
        if self.closed:
            return
        if not turns:
            self._process_soon()
        if self._failure is not None and not queue and self._current is None and not self._unsent and not self.closing:
            self._refuse(self._failure)
        elif self._failure is not None and self._current is not None:
            self._end()  # in the middle of what comes after a long poll: there is no place for an answer
        elif queue or self._incoming is not None or not self._reading:
            self._bound_queue()

    def _bound_queue(self) -> None:
        held = sum(sum(map(len, request.chunks)) for request in self._queue)
        incoming = self._incoming
        if incoming is not None and not incoming.begun:
            held += sum(map(len, incoming.chunks))
        self._queue_bytes = held
        self._set_reading()

    def _advance(self, request: Request) -> None:
        """The request at the head of the line: begin it, take its body so far, answer it when it is whole."""
        if not request.begun:
            request.begun = True
            self._application.begin_request(self, request)
            if self.closed:
                return
            if not request.complete and request.headers.get(b"expect", b"").lower() == b"100-continue":
                if request.refusal is not None:
                    self._refuse(request.refusal)  # the client will, or will not, send the body: nobody can tell
                    return
                self._write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if request.chunks:
            self._take_body(request)
            if self.closed:
                return
        if not request.complete:
            if request.refusal is not None and request.body_bytes > DISCARD_MAX_BYTES:
                self._refuse(request.refusal)
            return
        self._queue.popleft()
        self._current = request
        self._release()
        if request.refusal is not None:
            self.answer(request, request.refusal)
        else:
            request.finish(self, request)

    def _take_body(self, request: Request) -> None:
        """Keep it, hand it on, or throw it away."""
        if request.refusal is None and request.body_bytes > request.limit:
            request.refusal = error_answer(
                413, "RequestEntityTooLarge", f"Exceeded maximum allowed payload size ({request.limit} bytes)."
            )
            if request.oversize is not None:
                request.chunks = []
                self._release()
                request.oversize(self, request)
        if request.refusal is not None:
            request.chunks = []
            self._release()
        elif request.data is not None:
            data = request.body
            request.chunks = []
            request.data(self, request, data)
        elif not request.complete:
            self._keep(request)

    def _keep(self, request: Request) -> None:
        """The body goes on: put together what came in small pieces, and count it."""
        chunks, kept = request.chunks, request.kept
        if len(chunks) > kept:
            fresh = b"".join(chunks[kept:]) if len(chunks) > kept + 1 else chunks[kept]
            del chunks[kept:]
            last = chunks[-1] if chunks else None
            if isinstance(last, bytearray) and len(last) < _READ_BYTES:
                last += fresh
            else:
                chunks.append(bytearray(fresh) if len(fresh) < _PIECE_BYTES else fresh)
            request.kept = len(chunks)
        if self._application.keep(request.body_bytes - self._held_bytes):
            self._held_bytes = request.body_bytes
            return
        request.refusal = error_answer(500, "InternalServerError", "Internal Server Error")
        request.chunks = []
        self._release()
        if request.lost is not None:
            request.lost(self, request)

    def _release(self) -> None:
        if self._held_bytes:
            self._application.keep(-self._held_bytes)
            self._held_bytes = 0

    # --- answering --------------------------------------------------------------------------------------

    def answer(self, request: Request, head: bytes, payload: bytes = b"") -> bool:
        """Send the answer to `request`: `head` with its empty line, and the body in it or as `payload`. False: the
        request is not the one being answered (its client is gone)."""
        if request is not self._current:
            return False
        self._current = None
        if not request.keep_alive:
            self.closing = True
        if len(payload) <= _JOIN_MAX_BYTES:
            self._write(head + payload if payload else head)
        else:
            self._write(head, payload)
        if self.closing:
            if not self._unsent:
                self.close()
        elif not self._processing and (self._queue or self._incoming is not None):
            self._process_soon()  # what waits may call the owner, and this may be inside one of the owner's commands
        return True

    def _process_soon(self) -> None:
        if self._scheduled is None:
            self._scheduled = self._loop.call_soon(self._process)

    def _write(self, *parts: bytes) -> None:
        if self.closed:
            return
        if self._unsent:
            self._unsent.extend(memoryview(part) for part in parts)
            return
        try:
            sent = self._socket.send(parts[0]) if len(parts) == 1 else self._socket.sendmsg(parts)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            return  # nobody reads any more; the reader will see the end
        if sent < sum(map(len, parts)):
            self._unsent = [memoryview(part) for part in parts]
            self._drop_sent(sent)
            self._loop.add_writer(self._descriptor, self._writable)

    def _drop_sent(self, sent: int) -> None:
        unsent = self._unsent
        while unsent and sent >= len(unsent[0]):
            sent -= len(unsent.pop(0))
        if sent:
            unsent[0] = unsent[0][sent:]

    def _writable(self) -> None:
        try:
            self._drop_sent(self._socket.sendmsg(self._unsent))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._end()
            return
        if not self._unsent:
            self._loop.remove_writer(self._descriptor)
            if self._lingering is not None:
                self._socket.shutdown(socket.SHUT_WR)
            elif self.closing:
                self.close()
            else:
                self._process()

    def _refuse(self, whole: bytes) -> None:
        """Answer what can not be understood or is not wanted, and close: the stream's position is lost."""
        incoming, self._incoming = self._incoming, None
        self.closing = True
        self._stream_paused = False
        self._queue.clear()
        self._queue_bytes = 0
        self._release()
        if incoming is not None and incoming.begun and incoming.refusal is None and incoming.lost is not None:
            incoming.lost(self, incoming)
            if self.closed:
                return
        self._lingering = self._loop.call_later(LINGER_S, self.close)
        self._write(whole)
        self._set_reading()
        if not self._unsent and not self.closed:
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError:
                self.close()

    # --- ending -----------------------------------------------------------------------------------------

    def _end(self) -> None:
        """The client is gone, or has nothing more to say."""
        pending = self._current or self._incoming
        if self._current is None and pending is not None and pending.headed and self._lingering is None:
            truncated = error_answer(400, "TruncatedHTTPRequest", "HTTP request detected as truncated", close=True)
            if not self._unsent:
                self._write(truncated)  # for a client that only closed its side
        self.close()
        if pending is not None and pending.begun and pending.refusal is None and pending.lost is not None:
            pending.lost(self, pending)

    def close(self) -> None:
        """Close at once and tell nobody but the application. Any number of times."""
        if self.closed:
            return
        self.closed = self.closing = True
        if self._reading:
            self._loop.remove_reader(self._descriptor)
        if self._unsent:
            self._loop.remove_writer(self._descriptor)
            self._unsent = []
        if self._lingering is not None:
            self._lingering.cancel()
        if self._scheduled is not None:
            self._scheduled.cancel()
        self._socket.close()
        del self._parser  # it refers back to this
        self._current = self._incoming = None
        self._queue.clear()
        self._release()
        self._application.forget(self)
