"""The APIs of an environment that serves several requests at once (Lambda Managed Instances).

Any number of the runtime's workers may wait in `next`, each invocation goes to the one that has waited longest, and
Init is over when the first one waits. An invocation that was handed over is a `Call`: a Runtime of its own, which is in
the states, speaks the texts and streams as that of an ordinary environment, and reports to an owner of its own.
Extensions hear nothing of invocations.
"""

from __future__ import annotations

import asyncio
import collections
import socket
import time
from collections.abc import Callable
from typing import cast

from lambent.model.limits import RESPONSE_MAX_BYTES
from lambent.worker.api.connection import Connection, Request, error_answer
from lambent.worker.api.interface import Admits, AnswerOwner, ApiFacts, ApiOwner
from lambent.worker.api.runtime import Event, Runtime, State, Surroundings
from lambent.worker.api.server import BODIES_MAX_BYTES, CONNECTIONS_MAX, Api
from lambent.worker.interface import Invocation

_INVOCATION = b"/2018-06-01/runtime/invocation/"
#: Unfinished bodies: a largest response from so many workers at a time.
_BODIES_AT_ONCE = 16


class Call(Runtime):
    """One invocation, from `next` to the end of its answer. `owner` is told what becomes of it."""

    __slots__ = ("_runtime", "answer_began_ns", "expired", "on_over", "request_id")

    def __init__(
        self,
        runtime: SharedRuntime,
        around: Surroundings,
        owner: AnswerOwner,
        invocation: Invocation,
        deadline_ms: int,
        on_over: Callable[[], None],
    ) -> None:
        super().__init__(cast(ApiOwner, owner), around)  # nothing else is told of a call
        self._runtime = runtime
        self._invocation = invocation
        self._deadline_ms = deadline_ms
        self.state = State.READY
        self.request_id = invocation.request_id
        self.expired = False
        #: Called when the runtime is done with an expired invocation.
        self.on_over = on_over
        #: When the head of the answer came (CLOCK_MONOTONIC); 0 before.
        self.answer_began_ns = 0

    @property
    def nonce(self) -> bytes:
        return self._nonce.encode()

    def begin_answer(self, connection: Connection, request: Request, path: bytes) -> None:
        self.answer_began_ns = time.monotonic_ns()
        super().begin_answer(connection, request, path)

    def _close_invocation(self) -> None:
        super()._close_invocation()
        self._runtime.over(self)


class SharedRuntime(Runtime):
    """The runtime of the moment, all its workers together."""

    __slots__ = ("_calls", "_queue", "_waiters")

    def begin(self, http: bool) -> None:
        super().begin(http)
        #: In `next`, longest first.
        self._waiters: dict[Request, Connection] = {}
        #: Invocations for which no worker waits yet.
        self._queue: collections.deque[Call] = collections.deque()
        #: Handed over and not answered: request id -> those with it (a retry has the id of the first try).
        self._calls: dict[bytes, list[Call]] = {}

    @property
    def is_waiting(self) -> bool:
        return self.state is State.READY

    # --- commands ---------------------------------------------------------------------------------------

    def begin_call(
        self, owner: AnswerOwner, invocation: Invocation, deadline_ms: int, on_over: Callable[[], None]
    ) -> Call:
        """Hand the invocation to a worker, now or when one asks. `owner` hears of the answer; after `expire`, `on_over`
        is called instead."""
        call = Call(self, self._around, owner, invocation, deadline_ms, on_over)
        if self._waiters:
            request = next(iter(self._waiters))
            self._hand_over(call, self._waiters.pop(request), request)
        else:
            self._queue.append(call)
        return call

    def expire(self, call: Call) -> bool:
        """The invocation has no more time: its answer is refused from now on. True: no worker has ever had it, or all
        of its answer is there, so it is over already."""
        call.expired = True
        if call in self._queue:
            self._queue.remove(call)
            return True
        return call not in self._calls.get(call.request_id.encode(), ())

    def over(self, call: Call) -> None:
        """A call's: it is answered."""
        key = call.request_id.encode()
        same = self._calls.get(key, [])
        if call in same:
            same.remove(call)
            if not same:
                del self._calls[key]
        self.last_cause = call.last_cause or self.last_cause

    def _hand_over(self, call: Call, connection: Connection, request: Request) -> None:
        self._calls.setdefault(call.request_id.encode(), []).append(call)
        call._deliver(connection, request)

    # --- next -------------------------------------------------------------------------------------------

    def next(self, connection: Connection, request: Request) -> None:
        """GET /runtime/invocation/next."""
        if self.state is not State.READY and not self._apply(Event.NEXT):
            connection.answer(request, self._refusal(Event.NEXT))
            return
        connection.is_client = True
        self._around.on_runtime_next()
        if self._queue:
            self._hand_over(self._queue.popleft(), connection, request)
        else:
            request.lost = self._waiter_lost
            self._waiters[request] = connection
        self._around.check_settled()

    def _waiter_lost(self, connection: Connection, request: Request) -> None:
        self._waiters.pop(request, None)

    def restore_next(self, connection: Connection, request: Request) -> None:
        """There is no SnapStart here."""
        connection.answer(request, self._refusal(Event.RESTORE_NEXT))

    # --- response and error -----------------------------------------------------------------------------

    def begin_answer(self, connection: Connection, request: Request, path: bytes) -> None:
        request_id = path[len(_INVOCATION) :].rpartition(b"/")[0]
        calls = self._calls.get(request_id)
        if not calls:
            request.refusal = error_answer(400, "InvalidRequestID", "Invalid request ID")
            return
        echo = request.headers.get(b"lambda-runtime-invocation-id")
        call = next((each for each in calls if each.nonce == echo), None) if echo else calls[0]
        if call is not None and not call.expired:
            call.begin_answer(connection, request, path)
            return
        request.refusal = error_answer(410, "InvokeTimeout", "Invoke timeout")
        if call is not None:
            self.over(call)
            call.on_over()


class SharedApi(Api):
    """Implements EnvironmentApi, but for `invoke`, `restore` and `runtime_waiting`: see `begin_call`."""

    __slots__ = ()
    _runtime: SharedRuntime

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        listener: socket.socket,
        owner: ApiOwner,
        facts: ApiFacts,
        admits: Admits | None,
        sandbox_address: str,
        may_deliver: Callable[[tuple[str, int]], bool] | None,
        concurrency: int,
    ) -> None:
        """`concurrency`: requests at once; a worker of the runtime has a connection or two for each."""
        super().__init__(loop, listener, owner, facts, admits, sandbox_address, may_deliver)
        self._connections_max = CONNECTIONS_MAX + 2 * concurrency
        self._bodies_max_bytes = BODIES_MAX_BYTES + min(concurrency, _BODIES_AT_ONCE) * RESPONSE_MAX_BYTES
        self._extensions.hears_invocations = False

    def _make_runtime(self, owner: ApiOwner) -> Runtime:
        return SharedRuntime(owner, self)

    def is_idle(self) -> bool:
        """Its processes are never frozen."""
        return False

    def begin_call(
        self, owner: AnswerOwner, invocation: Invocation, deadline_epoch_ms: int, on_over: Callable[[], None]
    ) -> Call:
        """See SharedRuntime."""
        return self._runtime.begin_call(owner, invocation, deadline_epoch_ms, on_over)

    def expire(self, call: Call) -> bool:
        """See SharedRuntime."""
        return self._runtime.expire(call)
