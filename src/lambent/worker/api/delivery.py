"""Brings telemetry batches to one subscriber: HTTP POST of a JSON array, or newline-delimited JSON over TCP.

Plain event-loop callbacks on one non-blocking socket and one timer, so that `close` leaves nothing behind. One batch is
on its way at a time. A batch that can not be delivered is tried again a few times and then given up; while the
environment is idle its processes may be frozen, and waiting for them counts as nothing.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable

import httptools

#: How long a connection, or the acknowledgement of a batch, may take.
ANSWER_TIMEOUT_S = 5.0
#: Tries of one batch, and the pause before the second; it doubles.
TRIES = 4
RETRY_PAUSE_S = 0.1
#: Of a subscriber's answer, so much is read; then it is no HTTP.
_ANSWER_MAX_BYTES = 262_144
_READ_BYTES = 16_384


class Delivery:
    """`on_done(delivered)` is called once for each `send`, always from an event-loop callback of its own."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        address: tuple[str, int],
        head: bytes | None,
        on_done: Callable[[bool], None],
        is_idle: Callable[[], bool],
        may_deliver: Callable[[tuple[str, int]], bool] | None,
    ) -> None:
        """`head`: request line and headers up to Content-Length's value, or None for TCP. `is_idle`: may the subscriber
        be frozen now? `may_deliver`: asked before each connection, is it the environment that listens there?"""
        self._loop = loop
        self._address = address
        self._head = head
        self._on_done = on_done
        self._is_idle = is_idle
        self._may_deliver = may_deliver
        self._socket: socket.socket | None = None
        self._connecting = False
        self._writing = False
        self._batch = b""
        self._unsent = memoryview(b"")
        self._tries = 0
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._answer_bytes = 0
        self._acknowledged = False
        self.is_busy = False

    def send(self, body: bytes) -> None:
        """One batch; only when not busy."""
        assert not self.is_busy
        self.is_busy = True
        self._tries = 0
        self._batch = body if self._head is None else b"%b%d\r\n\r\n%b" % (self._head, len(body), body)
        self._timer = self._loop.call_soon(self._try)

    def close(self) -> None:
        """Any number of times; a batch on its way is dropped, and `on_done` not called for it."""
        self.is_busy = False
        self._cancel_timer()
        self._disconnect()
        self._batch = b""

    # --- one try ----------------------------------------------------------------------------------------

    def _try(self) -> None:
        self._tries += 1
        self._acknowledged = False
        self._answer_bytes = 0
        self._unsent = memoryview(self._batch)
        self._timer = self._loop.call_later(ANSWER_TIMEOUT_S, self._timed_out)
        if self._socket is not None:
            self._write()
            return
        if self._may_deliver is not None and not self._may_deliver(self._address):
            self._failed()
            return
        sock = socket.socket(socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        error = sock.connect_ex(self._address)
        if error not in (0, errno.EINPROGRESS):
            sock.close()
            self._failed()
            return
        self._socket = sock
        self._parser = httptools.HttpResponseParser(self) if self._head is not None else None
        self._connecting = self._writing = True
        self._loop.add_writer(sock.fileno(), self._writable)
        self._loop.add_reader(sock.fileno(), self._readable)

    def _writable(self) -> None:
        assert self._socket is not None
        if self._connecting:
            self._connecting = False
            if self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._failed()
                return
        self._write()

    def _write(self) -> None:
        assert self._socket is not None
        try:
            sent = self._socket.send(self._unsent) if self._unsent else 0
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._failed()
            return
        self._unsent = self._unsent[sent:]
        if self._unsent and not self._writing:
            self._writing = True
            self._loop.add_writer(self._socket.fileno(), self._writable)
        elif not self._unsent and self._writing:
            self._writing = False
            self._loop.remove_writer(self._socket.fileno())
        if not self._unsent and self._head is None and self.is_busy:
            self._finish_soon()

    def _readable(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if self._connecting:
            return  # the writer's side learns what became of it
        if not data:
            if self.is_busy and (self._head is not None or self._unsent):
                self._failed()
            else:
                self._disconnect()
            return
        if self._parser is None:
            return  # a TCP subscriber has nothing to say
        self._answer_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._failed()
            return
        if self._acknowledged:
            self._answered()
        elif self._answer_bytes > _ANSWER_MAX_BYTES:
            self._failed()

    def on_message_complete(self) -> None:
        """The parser's."""
        self._acknowledged = True

    def _answered(self) -> None:
        parser = self._parser
        assert parser is not None
        self._acknowledged = False
        status = parser.get_status_code()
        if not parser.should_keep_alive():
            self._disconnect()
        if not self.is_busy or self._unsent:
            self._disconnect()  # an answer to nothing
            if self.is_busy:
                self._failed()
        elif 200 <= status < 300:
            self._finish(True)
        else:
            self._failed()

    # --- outcomes ---------------------------------------------------------------------------------------

    def _timed_out(self) -> None:
        if self._is_idle():
            self._timer = self._loop.call_later(ANSWER_TIMEOUT_S, self._timed_out)
        else:
            self._failed()

    def _failed(self) -> None:
        """This try did not get through; a connection that broke off may have been an idle one."""
        self._cancel_timer()
        self._disconnect()
        if not self.is_busy:
            return
        if self._tries < TRIES:
            self._timer = self._loop.call_later(RETRY_PAUSE_S * 2 ** (self._tries - 1), self._try)
        else:
            self._timer = self._loop.call_soon(self._finish, False)

    def _finish_soon(self) -> None:
        self._cancel_timer()
        self._timer = self._loop.call_soon(self._finish, True)

    def _finish(self, delivered: bool) -> None:
        if not self.is_busy:
            return
        self._cancel_timer()
        self.is_busy = False
        self._batch = b""
        self._on_done(delivered)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _disconnect(self) -> None:
        sock, self._socket = self._socket, None
        self._parser = None
        if sock is None:
            return
        self._loop.remove_reader(sock.fileno())
        if self._writing:
            self._writing = False
            self._loop.remove_writer(sock.fileno())
        self._connecting = False
        sock.close()
