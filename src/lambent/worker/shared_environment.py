"""An execution environment that serves several requests at once (Lambda Managed Instances).

One runtime with workers of its own (Python: processes), spoken with over the HTTP Runtime API (worker/api/shared.py).
What differs from environment.py: each request is a flight with its own answer, deadline and log lines; a timeout ends
its request and leaves the code running, and the request's place is free when the runtime is done with it; when the
runtime goes away every flight ends in the same way; extensions hear nothing of invocations; nothing is ever frozen.

Flights are begun when the runtime is up. Those that come with `reinit` start one runtime, together.
"""

from __future__ import annotations

import functools
import socket
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from lambent.core.events import EnvironmentReady, InitFailed
from lambent.model.function import VersionSpec
from lambent.model.invocation import InitializationType, Outcome
from lambent.model.limits import RESPONSE_MAX_BYTES
from lambent.worker.answers import ERROR_FAMILIES, TOO_LARGE, Answer
from lambent.worker.api.interface import Admits, ApiFacts
from lambent.worker.api.server import Api
from lambent.worker.api.shared import Call, SharedApi
from lambent.worker.environment import TIME_LEFT_MAX_NS, Environment
from lambent.worker.interface import Invocation, InvocationResult, StreamSource
from lambent.worker.journal import Journal
from lambent.worker.report import error_body, rfc3339, timeout_body
from lambent.worker.shared_journal import SharedJournal

if TYPE_CHECKING:
    from lambent.worker.local import LocalWorker

#: Stands for the request's id in a body that all flights get, each with its own.
_EACH = "00000000-0000-0000-0000-000000000000"


class _Flight:
    """One request. An AnswerOwner."""

    __slots__ = (
        "_environment", "_gathered", "_gathered_bytes", "answer", "call", "deadline_ms", "deadline_ns", "expired",
        "invocation", "since_ms", "since_ns", "stream",
    )  # fmt: skip

    def __init__(self, environment: SharedEnvironment, invocation: Invocation, deadline_ns: int) -> None:
        self._environment = environment
        self.invocation = invocation
        self.since_ns = time.monotonic_ns()
        self.since_ms = time.time_ns() // 1_000_000
        self.deadline_ns = deadline_ns
        self.deadline_ms = self.since_ms + min(deadline_ns - self.since_ns, TIME_LEFT_MAX_NS) // 1_000_000
        #: None until the runtime is up.
        self.call: Call | None = None
        self.answer: Answer | None = None
        #: Its time is over and its caller answered; the function may still run.
        self.expired = False
        self.stream = ""  # "", "sink" or "gathered" while a streamed answer runs
        self._gathered: list[bytes] = []
        self._gathered_bytes = 0

    def _answered(self, answer: Answer) -> None:
        self._environment.answered(self, answer)

    def on_response(self, payload: bytes, content_type: str) -> None:
        self._answered(Answer(Outcome.SUCCESS, payload, None, content_type, False))

    def on_response_too_large(self) -> None:
        self._answered(Answer(Outcome.ERROR, TOO_LARGE, "Function.ResponseSizeTooLarge", "application/json", False))

    def on_error(self, error_type: str, body: bytes) -> None:
        shown = error_type if error_type.startswith("Runtime.") else None
        self._answered(Answer(Outcome.ERROR, body, shown, "application/json", False))

    def on_stream_start(self, content_type: str, source: StreamSource) -> None:
        sink = self.invocation.sink
        if sink is not None:
            self.stream = "sink"
            sink.on_start(content_type, source)
        else:
            self.stream = "gathered"
            self._gathered = [content_type.encode()]

    def on_stream_chunk(self, data: bytes) -> None:
        if self.expired:
            return
        if self.stream == "sink":
            assert self.invocation.sink is not None
            self.invocation.sink.on_chunk(data)
            return
        self._gathered_bytes += len(data)
        if self._gathered_bytes <= RESPONSE_MAX_BYTES:
            self._gathered.append(data)

    def on_stream_end(self, error_type: str | None, error_body: bytes) -> None:
        streamed = self.stream == "sink"
        if error_type is not None:
            self._answered(Answer(Outcome.ERROR, error_body, error_type, "application/json", streamed))
        elif streamed:
            self._answered(Answer(Outcome.SUCCESS, b"", None, "", True))
        elif self._gathered_bytes > RESPONSE_MAX_BYTES:
            self.on_response_too_large()
        else:
            content_type, *chunks = self._gathered
            self.on_response(b"".join(chunks), content_type.decode())

    def spans(self, now_ns: int) -> list[dict[str, Any]]:
        """How long the answer took to begin, and from there to its end (fact sheet 3.4)."""
        began_ns = self.call.answer_began_ns if self.call is not None else 0
        if not began_ns:
            return []
        latency_ns, duration_ns = began_ns - self.since_ns, now_ns - began_ns
        return [
            _span("responseLatency", self.since_ms, latency_ns),
            _span("responseDuration", self.since_ms + latency_ns // 1_000_000, duration_ns),
        ]


def _span(name: str, start_ms: int, duration_ns: int) -> dict[str, Any]:
    return {"name": name, "start": rfc3339(start_ms), "durationMs": round(duration_ns / 1e6, 3)}


class SharedEnvironment(Environment):
    """See the module's head. Made by LocalWorker.start for versions with `is_shared`."""

    __slots__ = ("_flights",)
    _journal_class: ClassVar[type[Journal]] = SharedJournal
    _journal: SharedJournal
    _api: SharedApi | None

    def __init__(self, worker: LocalWorker, number: int, spec: VersionSpec) -> None:
        super().__init__(worker, number, spec, InitializationType.MANAGED_INSTANCES)
        #: By the scheduler's number, in the order of their coming.
        self._flights: dict[int, _Flight] = {}

    def _make_api(
        self,
        listener: socket.socket,
        facts: ApiFacts,
        admits: Admits | None,
        address: str,
        may_deliver: Callable[[tuple[str, int]], bool] | None,
    ) -> Api:
        concurrency = self.spec.concurrency_per_environment
        return SharedApi(self._worker.loop, listener, self, facts, admits, address, may_deliver, concurrency)

    def _ready(self) -> None:
        assert self._api is not None
        self._phase = "ready"
        self._drain_logs()
        self._init_end("success")
        if not self._api.has_subscribers:
            self._journal.telemetry = None
        if not self._reinit:
            self._worker.fact(EnvironmentReady(self.id))
            return
        self._reinit = False
        for flight in list(self._flights.values()):
            if flight.expired:
                self._over(flight)
            else:
                self._begin_flight(flight)

    # --- requests ---------------------------------------------------------------------------------------

    def dispatch(self, invocation: Invocation, deadline_ns: int, cold: bool, reinit: bool) -> None:
        flight = _Flight(self, invocation, deadline_ns)
        self._flights[invocation.request] = flight
        self._journal.enter(invocation.request, invocation.request_id, invocation.wants_tail)
        if self._phase == "ready" and not self._winding_down:
            self._begin_flight(flight)
        elif reinit and self._phase == "gone":
            self._reinit = True
            self._run(None)
        # Else it waits for the runtime that another flight has started, or ends with those that it takes along.

    def _begin_flight(self, flight: _Flight) -> None:
        assert self._api is not None
        invocation = flight.invocation
        self._journal.start(invocation.request_id, invocation.tenant_id)
        over = functools.partial(self._over, flight)
        flight.call = self._api.begin_call(flight, invocation, flight.deadline_ms, over)

    def answered(self, flight: _Flight, answer: Answer) -> None:
        """A flight's: the runtime has answered. Past the deadline it is the scheduler's: see expire."""
        if flight.expired:
            self._over(flight)
            return
        if flight.answer is not None or flight.invocation.request not in self._flights:
            return
        flight.answer = answer
        if time.monotonic_ns() < flight.deadline_ns:
            self._drain_logs()
            result = self._land(flight, answer)
            self._worker.listener.on_ended(self.id, flight.invocation.request, answer.outcome, result)

    def _land(self, flight: _Flight, answer: Answer, duration_ns: int | None = None) -> InvocationResult:
        """REPORT and the result; the flight is over."""
        now_ns = time.monotonic_ns()
        if duration_ns is None:
            duration_ns = now_ns - flight.since_ns
        invocation = flight.invocation
        del self._flights[invocation.request]
        spans = flight.spans(now_ns)
        self._journal.report_call(invocation.request_id, duration_ns, answer.status, answer.error_type, spans)
        failed = answer.outcome is not Outcome.SUCCESS
        tail = self._journal.leave(invocation.request, invocation.request_id)
        return InvocationResult(answer.payload, failed, tail, answer.content_type, answer.streamed, duration_ns)

    def expire(self, request_id: str, timeout_s: float) -> InvocationResult:
        """The function timeout passed for one request. The code goes on."""
        body = timeout_body(request_id, timeout_s)
        flight = next(
            (each for each in self._flights.values() if each.invocation.request_id == request_id and not each.expired),
            None,
        )
        if flight is None:  # its answer crossed the deadline on the way to the scheduler
            return InvocationResult(body, True)
        self._drain_logs()
        flight.expired = True
        if flight.call is None:
            if self._phase == "init" and all(each.expired for each in self._flights.values()):
                self._init_end("timeout")
            self._journal.start(request_id, flight.invocation.tenant_id)
        answer = flight.answer or Answer(
            Outcome.TIMEOUT, body, "Sandbox.Timedout", "application/json", flight.stream == "sink"
        )
        answer.status = "timeout"
        result = self._land(flight, answer, int(timeout_s * 1e9))
        self._flights[flight.invocation.request] = flight
        if flight.call is not None:
            assert self._api is not None
            if self._api.expire(flight.call):
                self._over(flight)
        return result

    def _over(self, flight: _Flight) -> None:
        """The runtime is done with an expired flight: its place is free."""
        request = flight.invocation.request
        if self._flights.pop(request, None) is not None:
            self._worker.listener.on_ended(self.id, request, Outcome.SUCCESS, InvocationResult(b""))

    # --- the runtime's end ------------------------------------------------------------------------------

    def _platform_error(self, kind: str, words: str) -> bytes:
        return error_body(kind, f"RequestId: {_EACH} Error: {words}")

    def _failed(self, in_init: bool, error_type: str, body: bytes) -> None:
        if in_init:
            known = "." in error_type and error_type.split(".")[0] in ERROR_FAMILIES
            error_type = error_type if known else "Runtime.Unknown"
            self._init_end("error", error_type)
            if not self._reinit:
                self._wind_down("failure", lambda: self._worker.fact(InitFailed(self.id)))
                return
            for flight in self._flights.values():
                if not flight.expired:
                    self._journal.start(flight.invocation.request_id, flight.invocation.tenant_id)
        if not self._flights:
            self._wind_down("failure", self._die)
            return
        outcome = Outcome.INIT_ERROR if in_init else Outcome.RUNTIME_EXIT
        if self._phase == "gone" and not self._has_extensions:
            self._lose_all(outcome, error_type, body)
            return
        for flight in self._flights.values():
            if not flight.expired:
                result = InvocationResult(_body_of(flight, body), True)
                self._worker.listener.on_response(self.id, flight.invocation.request, result)
        self._wind_down("failure", lambda: self._lose_all(outcome, error_type, body))

    def _lose_all(self, outcome: Outcome, error_type: str, body: bytes) -> None:
        """Every flight ends as the runtime did."""
        self._reinit = False
        results, over = [], []
        for flight in list(self._flights.values()):
            request = flight.invocation.request
            if flight.expired:
                del self._flights[request]
                over.append((request, InvocationResult(b"")))
                continue
            streamed = flight.stream == "sink"
            answer = Answer(outcome, _body_of(flight, body), error_type, "application/json", streamed)
            results.append((request, self._land(flight, answer)))
        if results or over:
            self._worker.listener.on_all_ended(self.id, outcome, results + over)
        else:
            self._die()

    def _die(self) -> None:
        if self._phase != "dead" and self._flights:
            # The whole sandbox went away under them: out of memory in its first process, or killed from outside.
            kind, words = "Sandbox.Failure", "The execution environment was lost"
            if self._memory.new_oom_kills():
                kind, words = "Runtime.OutOfMemory", "Runtime exited with error: signal: killed"
            self._drain_logs(final=True)
            self._lose_all(Outcome.RUNTIME_EXIT, kind, self._platform_error(kind, words))
        super()._die()

    # --- what does not apply ----------------------------------------------------------------------------

    def freeze(self) -> None:
        """Managed instances are never frozen."""

    @property
    def is_spare(self) -> bool:
        return False


def _body_of(flight: _Flight, body: bytes) -> bytes:
    return body.replace(_EACH.encode(), flight.invocation.request_id.encode())
