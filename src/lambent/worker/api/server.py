"""The APIs of one execution environment, behind one listening socket: accepts, routes, and ties the parts together.

A cold start pays for an Api: making one is a few objects and one add_reader. What happens, happens in callbacks of the
event loop; the owner is called from these only, as the last thing each does, and may come back with any command at
once. What a command brings about (a frame-link runtime that waits was the last to be waited for) is told in the next
turn of the loop.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Any

from lambent.model.limits import RESPONSE_MAX_BYTES
from lambent.worker.api.connection import Connection, Request, answer
from lambent.worker.api.extensions import BODY_MAX_BYTES, Extension, Extensions
from lambent.worker.api.interface import Admits, ApiFacts, ApiOwner
from lambent.worker.api.runtime import Runtime
from lambent.worker.api.telemetry import Telemetry
from lambent.worker.interface import Invocation

#: Beyond it the longest-open connection of no known client makes room, or the new one is closed.
CONNECTIONS_MAX = 256
#: Unfinished bodies of all connections: two largest responses, and some.
BODIES_MAX_BYTES = 16_777_216
#: Of calls whose body means nothing.
_IGNORED_BODY_MAX_BYTES = 65_536
_ACCEPTED_A_TURN = 16
#: How long to leave new connections alone when the process has no descriptor left.
_ACCEPT_PAUSE_S = 0.1
_INVOCATION = b"/2018-06-01/runtime/invocation/"
_NOT_FOUND = b"404 page not found\n"


class Api:
    """Implements EnvironmentApi."""

    __slots__ = (
        "_admits", "_awaits_settled", "_bodies_max_bytes", "_body_bytes", "_connections", "_connections_max",
        "_deferred", "_descriptor", "_extensions",
        "_idle", "_in_init", "_listener", "_loop", "_owner", "_pausing", "_registration_open", "_routes", "_runtime",
        "_telemetry", "address", "closed",
    )  # fmt: skip

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listener: socket.socket,
        owner: ApiOwner,
        facts: ApiFacts,
        admits: Admits | None,
        sandbox_address: str,
        may_deliver: Callable[[tuple[str, int]], bool] | None = None,
    ) -> None:
        """`listener` listens already, does not block, and is closed with this. `admits`: None for everybody.
        `sandbox_address`: where subscribers of telemetry listen. `may_deliver`: is it the environment that listens on
        this address and port of it? None: nobody else can."""
        self._loop = loop
        self._listener = listener
        self._descriptor = listener.fileno()
        self._owner = owner
        self._admits = admits
        host, port = listener.getsockname()[:2]
        #: Value of AWS_LAMBDA_RUNTIME_API.
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.closed = False
        self._connections: dict[Connection, None] = {}  # in the order of their coming
        self._body_bytes = 0
        self._connections_max, self._bodies_max_bytes = CONNECTIONS_MAX, BODIES_MAX_BYTES
        self._deferred: asyncio.Handle | None = None
        self._pausing: asyncio.TimerHandle | None = None
        self._registration_open = self._in_init = self._awaits_settled = True
        self._idle = False
        runtime = self._runtime = self._make_runtime(owner)
        extensions = self._extensions = Extensions(owner, facts, self)
        telemetry = self._telemetry = Telemetry(loop, owner, self, sandbox_address, port, may_deliver)
        # path -> method, what answers, bytes of the body that are kept
        self._routes: dict[bytes, tuple[bytes, Callable[[Connection, Request], None], int]] = {
            b"/2018-06-01/runtime/invocation/next": (b"GET", runtime.next, _IGNORED_BODY_MAX_BYTES),
            b"/2018-06-01/runtime/init/error": (b"POST", runtime.init_error, RESPONSE_MAX_BYTES),
            b"/2018-06-01/runtime/restore/next": (b"GET", runtime.restore_next, _IGNORED_BODY_MAX_BYTES),
            b"/2018-06-01/runtime/restore/error": (b"POST", runtime.restore_error, RESPONSE_MAX_BYTES),
            b"/2018-06-01/ping": (b"GET", _ping, _IGNORED_BODY_MAX_BYTES),
            b"/2020-01-01/extension/register": (b"POST", extensions.register, BODY_MAX_BYTES),
            b"/2020-01-01/extension/event/next": (b"GET", extensions.next, _IGNORED_BODY_MAX_BYTES),
            b"/2020-01-01/extension/init/error": (b"POST", extensions.init_error, BODY_MAX_BYTES),
            b"/2020-01-01/extension/exit/error": (b"POST", extensions.exit_error, BODY_MAX_BYTES),
            b"/2022-07-01/telemetry": (b"PUT", telemetry.subscribe_telemetry, BODY_MAX_BYTES),
            b"/2020-08-15/logs": (b"PUT", telemetry.subscribe_logs, BODY_MAX_BYTES),
        }
        loop.add_reader(self._descriptor, self._acceptable)

    def _make_runtime(self, owner: ApiOwner) -> Runtime:
        return Runtime(owner, self)

    # --- connections ------------------------------------------------------------------------------------

    def _acceptable(self) -> None:
        for _ in range(_ACCEPTED_A_TURN):
            try:
                sock, peer = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:
                self._loop.remove_reader(self._descriptor)
                self._pausing = self._loop.call_later(_ACCEPT_PAUSE_S, self._accept_again)
                return
            if (self._admits is not None and not self._admits(peer[:2])) or not self._make_room():
                sock.close()
                continue
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections[Connection(self, self._loop, sock)] = None

    def _accept_again(self) -> None:
        self._pausing = None
        self._loop.add_reader(self._descriptor, self._acceptable)

    def _make_room(self) -> bool:
        if len(self._connections) < self._connections_max:
            return True
        for connection in self._connections:
            if not connection.is_client and not connection.is_busy:
                connection.close()
                return True
        return False

    def begin_request(self, connection: Connection, request: Request) -> None:
        """Connection's: the head of a request has come."""
        path = request.target
        if b"?" in path:
            path = path.partition(b"?")[0]
        route = self._routes.get(path)
        if route is not None:
            method, request.finish, request.limit = route
            if request.method != method:
                request.refusal = answer(405, b"")
        elif request.method == b"HEAD":
            request.refusal = answer(405, b"")  # any other answer would have a body
        elif not path.startswith(_INVOCATION) or not path.endswith((b"/response", b"/error")):
            request.refusal = answer(404, _NOT_FOUND, content_type=b"text/plain; charset=utf-8")
        elif request.method != b"POST":
            request.refusal = answer(405, b"")
        else:
            self._runtime.begin_answer(connection, request, path)

    def keep(self, byte_count: int) -> bool:
        """Connection's: may so many more bytes of unfinished bodies be kept?"""
        if byte_count > 0 and self._body_bytes + byte_count > self._bodies_max_bytes:
            return False
        self._body_bytes += byte_count
        return True

    def forget(self, connection: Connection) -> None:
        """Connection's: it has closed."""
        self._connections.pop(connection, None)

    # --- what the parts ask of the whole ----------------------------------------------------------------

    @property
    def is_registration_open(self) -> bool:
        """Until the runtime asks for its first invocation."""
        return self._registration_open

    @property
    def is_subscription_open(self) -> bool:
        """Until Init is over: an extension that registered in time may be slower than the runtime."""
        return self._in_init

    def is_idle(self) -> bool:
        """Nothing is to be done: the processes of the environment may be frozen."""
        return self._idle

    def identify(self, request: Request) -> Extension | bytes:
        return self._extensions.identify(request)

    def on_runtime_next(self) -> None:
        self._registration_open = False

    def check_settled(self) -> None:
        if self._awaits_settled and self._runtime.is_waiting and self._extensions.are_settled:
            self._awaits_settled = False
            self._idle = True
            if self._in_init:
                self._in_init = False
                self._telemetry.subscription_closed()
            self._owner.on_settled()

    def _check_soon(self) -> None:
        """After a command: the owner is not called from inside it."""
        if self._deferred is None and not self.closed:
            self._deferred = self._loop.call_soon(self._check)

    def _check(self) -> None:
        self._deferred = None
        self._extensions.check_registered()
        self.check_settled()

    # --- commands: see EnvironmentApi -------------------------------------------------------------------

    def begin(self, http_runtime: bool) -> None:
        self._disconnect()
        self._registration_open = self._in_init = self._awaits_settled = True
        self._idle = False
        self._runtime.begin(http_runtime)
        self._extensions.begin()
        self._telemetry.begin()

    def expect(self, extensions: Sequence[str]) -> None:
        self._extensions.expect(extensions)
        self._check_soon()

    @property
    def extensions(self) -> Sequence[str]:
        return self._extensions.names

    @property
    def external(self) -> Sequence[str]:
        return self._extensions.external

    def runtime_waiting(self) -> None:
        self._runtime.link_waiting()
        self.on_runtime_next()
        self._check_soon()

    def invoke(self, invocation: Invocation, deadline_epoch_ms: int) -> None:
        self._awaits_settled = True
        self._idle = False
        self._runtime.invoke(invocation, deadline_epoch_ms)
        self._extensions.invoke(invocation, deadline_epoch_ms)

    def restore(self) -> None:
        self._idle = False
        self._runtime.restore()

    def shut_down(self, reason: str, deadline_epoch_ms: int) -> Sequence[str]:
        self._idle = self._awaits_settled = False
        self._telemetry.flush()
        return self._extensions.shut_down(reason, deadline_epoch_ms)

    def publish(self, source: str, time_ms: int, kind: str, record: Any) -> None:
        if self._telemetry.wants_records:
            self._telemetry.publish(source, time_ms, kind, record)

    @property
    def has_subscribers(self) -> bool:
        return self._telemetry.wants_records

    @property
    def last_error_cause(self) -> bytes:
        """The X-Ray cause of the last error that the runtime reported, JSON of up to 64 KiB, or nothing."""
        return self._runtime.last_cause

    def forget_extension(self, name: str) -> None:
        self._extensions.forget(name)
        self._telemetry.forget(name)
        self._check_soon()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        if self._pausing is None:
            self._loop.remove_reader(self._descriptor)
        else:
            self._pausing.cancel()
        self._listener.close()
        self._disconnect()
        self._telemetry.close()
        self._runtime.begin(True)
        self._extensions.begin()
        self._awaits_settled = False

    def _disconnect(self) -> None:
        """Close every connection and forget what was to be told."""
        if self._deferred is not None:
            self._deferred.cancel()
            self._deferred = None
        for connection in list(self._connections):
            connection.close()


def _ping(connection: Connection, request: Request) -> None:
    connection.answer(request, answer(200, b"pong", content_type=b"text/plain; charset=utf-8"))
