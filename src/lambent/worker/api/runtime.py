"""The Runtime API, 2018-06-01: the state of the runtime process, and what it may ask in which state.

    STARTED ─next─> READY ─invoked─> RUNNING ─response, error─> RESPONDING ─whole─> RESPONSE_SENT ─next─> READY
       ├─restore/next─> RESTORE_READY ─restored─> RESTORING ─next─> READY
       └─init/error─> INIT_ERROR                     └─restore/error─> RESTORE_ERROR

A runtime on the frame link is in the same states, told by `link_waiting`; over HTTP it may then ask for nothing. State
names, texts and limits are those of AWS's own Runtime Interface.
"""

from __future__ import annotations

import base64
import binascii
import enum
import os
import re
from typing import Any, Protocol

import msgspec

from lambent.model.limits import RESPONSE_MAX_BYTES
from lambent.worker.api.connection import Connection, Request, answer, date_line, error_answer
from lambent.worker.api.interface import ApiOwner
from lambent.worker.interface import Invocation

#: A streamed response (quotas page, since July 2025).
STREAM_MAX_BYTES = 209_715_200
#: What is kept of Lambda-Runtime-Function-XRay-Error-Cause.
XRAY_CAUSE_MAX_BYTES = 65_536
NOT_ALLOWED = "State transition is not allowed"
_INVOCATION = b"/2018-06-01/runtime/invocation/"
_OK = b'{"status":"OK"}\n'
_ACCEPTED_HEAD = b"HTTP/1.1 202 Accepted\r\nContent-Type: application/json\r\n"
_ACCEPTED_BODY = b"Content-Length: %d\r\n\r\n%b" % (len(_OK), _OK)
_ERROR_WITH_CAUSE = b"application/vnd.aws.lambda.error.cause+json"
_ERROR_TYPE = re.compile(r"(?:Runtime|Function)\.[A-Z][a-zA-Z]+")
_UNSAFE = re.compile(r"[\r\n\0]+")
_NONCES = 256


class State(enum.Enum):
    """The values are the names that error texts show."""

    __hash__ = object.__hash__  # as good, and no Python call

    STARTED = "Started"
    INIT_ERROR = "InitError"
    READY = "Ready"
    RUNNING = "Running"
    RESPONDING = "InvocationResponse"
    RESPONDING_ERROR = "InvocationErrorResponse"
    RESPONSE_SENT = "ResponseSent"
    RESTORE_READY = "RestoreReady"
    RESTORING = "Restoring"
    RESTORE_ERROR = "RestoreError"


class Event(enum.Enum):
    """The values are the names of the states that the runtime wants to reach, as error texts show them."""

    __hash__ = object.__hash__

    NEXT = "Ready"
    INVOKED = "Running"
    RESPONSE = "InvocationResponse"
    ERROR = "InvocationErrorResponse"
    WHOLE = "ResponseSent"
    INIT_ERROR = "InitError"
    RESTORE_NEXT = "RestoreReady"
    RESTORED = "Restoring"
    RESTORE_ERROR = "RestoreError"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.STARTED, Event.NEXT): State.READY,
    (State.STARTED, Event.INIT_ERROR): State.INIT_ERROR,
    (State.STARTED, Event.RESTORE_NEXT): State.RESTORE_READY,
    (State.RESTORE_READY, Event.RESTORED): State.RESTORING,
    (State.RESTORING, Event.NEXT): State.READY,
    (State.RESTORING, Event.RESTORE_ERROR): State.RESTORE_ERROR,
    (State.READY, Event.INVOKED): State.RUNNING,
    (State.RUNNING, Event.RESPONSE): State.RESPONDING,
    (State.RUNNING, Event.ERROR): State.RESPONDING_ERROR,
    (State.RESPONDING, Event.WHOLE): State.RESPONSE_SENT,
    (State.RESPONDING_ERROR, Event.WHOLE): State.RESPONSE_SENT,
    (State.RESPONSE_SENT, Event.NEXT): State.READY,
}

_nonces: list[str] = []


def _nonce() -> str:
    """A UUID nobody can guess; the kernel is asked for many at a time."""
    if not _nonces:
        fresh = os.urandom(16 * _NONCES).hex()
        _nonces.extend(fresh[at : at + 32] for at in range(0, len(fresh), 32))
    digits = _nonces.pop()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


def shown_error_type(told: str) -> str:
    """The error type as telemetry shows it: the runtime's where it has the form, else a stand-in."""
    if _ERROR_TYPE.fullmatch(told):
        return told
    return "Function.Unknown" if told.startswith("Function.") else "Runtime.Unknown"


def crop_cause(cause: bytes) -> bytes:
    """The X-Ray error cause, at most XRAY_CAUSE_MAX_BYTES: first without its paths, then with fewer and shorter stacks
    and messages. Empty when it is not a JSON object."""
    try:
        parsed: Any = msgspec.json.decode(cause)
        if not isinstance(parsed, dict):
            return b""
        if len(cause) <= XRAY_CAUSE_MAX_BYTES:
            return cause
        parsed.pop("paths", None)
        for kept in (64, 16, 4, 1, 0):
            for exception in parsed.get("exceptions") or ():
                exception["stack"] = (exception.get("stack") or [])[:kept]
                exception["message"] = str(exception.get("message", ""))[: 100 * (kept + 1)]
            parsed["exceptions"] = (parsed.get("exceptions") or [])[: kept + 1]
            cropped = msgspec.json.encode(parsed)
            if len(cropped) <= XRAY_CAUSE_MAX_BYTES:
                return cropped
    except (ValueError, TypeError, AttributeError, RecursionError):
        pass
    return b""


def error_json(error_type: str, message: str) -> bytes:
    """The body of an error that the platform makes in the runtime's place."""
    return f'{{"errorType":"{error_type}","errorMessage":"{message}"}}'.encode()


def _accepted() -> bytes:
    return _ACCEPTED_HEAD + date_line() + _ACCEPTED_BODY


def _line(name: str, value: str) -> str:
    if "\n" in value or "\r" in value or "\0" in value:  # JSON over several lines; a header has one
        value = _UNSAFE.sub(" ", value)
    return f"{name}: {value}\r\n"


class Surroundings(Protocol):
    """What the runtime's side needs of the API as a whole."""

    def on_runtime_next(self) -> None:
        """The runtime is about to wait for an invocation: registration of extensions ends with the first time."""

    def check_settled(self) -> None: ...


class _Source:
    """StreamSource of one response: of no effect on the connection once the response has ended."""

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection: Connection | None = connection

    def pause(self) -> None:
        if self._connection is not None:
            self._connection.pause()

    def resume(self) -> None:
        if self._connection is not None:
            self._connection.resume()

    def end(self) -> None:
        self.resume()
        self._connection = None


class Runtime:
    """The runtime of the moment. `owner` is called last in whatever it does: it may come back with any command."""

    __slots__ = (
        "_around", "_deadline_ms", "_http", "_invocation", "_nonce", "_owner", "_restored", "_source", "_waiter",
        "_waiting",
        "last_cause", "state",
    )  # fmt: skip

    def __init__(self, owner: ApiOwner, around: Surroundings) -> None:
        self._owner = owner
        self._around = around
        self.begin(True)

    def begin(self, http: bool) -> None:
        self.state = State.STARTED
        self._http = http
        self._invocation: Invocation | None = None
        self._deadline_ms = 0
        self._nonce = ""
        self._restored = False
        self._source: _Source | None = None
        self._waiter: Connection | None = None
        self._waiting: Request | None = None
        #: Of the last error reported: its X-Ray cause, JSON, or nothing.
        self.last_cause = b""

    def _apply(self, event: Event) -> bool:
        """The one door to `state`."""
        state = TRANSITIONS.get((self.state, event))
        if state is None:
            return False
        self.state = state
        return True

    def _refusal(self, event: Event) -> bytes:
        message = f"State transition from {self.state.value} to {event.value} failed for runtime. Error: {NOT_ALLOWED}"
        return error_answer(403, "InvalidStateTransition", message)

    @property
    def is_waiting(self) -> bool:
        """Sits in `next`, with no invocation on its way."""
        return self.state is State.READY and self._invocation is None

    # --- commands ---------------------------------------------------------------------------------------

    def invoke(self, invocation: Invocation, deadline_ms: int) -> None:
        self._invocation = invocation
        self._deadline_ms = deadline_ms
        if self.state is State.READY:
            if not self._http:
                self._apply(Event.INVOKED)
            elif self._waiter is not None:
                self._deliver(self._waiter, self._waiting)

    def link_waiting(self) -> None:
        """The runtime on the frame link waits: whatever it did before is over."""
        self._invocation = None
        self.state = State.READY

    def restore(self) -> None:
        self._restored = True
        if self.state is State.RESTORE_READY and self._waiter is not None and self._waiting is not None:
            connection, request = self._waiter, self._waiting
            self._waiter = self._waiting = None
            self._apply(Event.RESTORED)
            connection.answer(request, answer(200, b""))

    def _deliver(self, connection: Connection, request: Request | None) -> None:
        invocation = self._invocation
        assert invocation is not None
        assert request is not None
        self._waiter = self._waiting = None
        self._apply(Event.INVOKED)
        nonce = self._nonce = _nonce()
        payload = invocation.payload
        head = (
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            f"Lambda-Runtime-Aws-Request-Id: {invocation.request_id}\r\n"
            f"Lambda-Runtime-Deadline-Ms: {self._deadline_ms}\r\n"
            f"Lambda-Runtime-Invocation-Id: {nonce}\r\n"
            + _line("Lambda-Runtime-Invoked-Function-Arn", invocation.arn)
        )  # fmt: skip
        if invocation.trace_id:
            head += _line("Lambda-Runtime-Trace-Id", invocation.trace_id)
        if invocation.client_context:
            head += _line("Lambda-Runtime-Client-Context", invocation.client_context)
        if invocation.cognito_identity:
            head += _line("Lambda-Runtime-Cognito-Identity", invocation.cognito_identity)
        if invocation.tenant_id:
            head += _line("Lambda-Runtime-Aws-Tenant-Id", invocation.tenant_id)
        rest = b"%bContent-Length: %d\r\n\r\n" % (date_line(), len(payload))
        connection.answer(request, head.encode("utf-8", "replace") + rest, payload)

    # --- next -------------------------------------------------------------------------------------------

    def next(self, connection: Connection, request: Request) -> None:
        """GET /runtime/invocation/next."""
        # A client whose connection broke while it waited comes again.
        again = self.state is State.READY and self._waiter is None
        if not self._http or not (again or self._apply(Event.NEXT)):
            connection.answer(request, self._refusal(Event.NEXT))
            return
        connection.is_client = True
        self._around.on_runtime_next()
        if self._invocation is not None:
            self._deliver(connection, request)
            return
        request.lost = self._waiter_lost
        self._waiter, self._waiting = connection, request
        self._around.check_settled()

    def _waiter_lost(self, connection: Connection, request: Request) -> None:
        if self._waiting is request:
            self._waiter = self._waiting = None

    def restore_next(self, connection: Connection, request: Request) -> None:
        again = self.state is State.RESTORE_READY and self._waiter is None
        if not self._http or not (again or self._apply(Event.RESTORE_NEXT)):
            connection.answer(request, self._refusal(Event.RESTORE_NEXT))
            return
        connection.is_client = True
        request.lost = self._waiter_lost
        self._waiter, self._waiting = connection, request
        if self._restored:
            self.restore()
        if not again:
            self._owner.on_restore_next()

    # --- response and error -----------------------------------------------------------------------------

    def begin_answer(self, connection: Connection, request: Request, path: bytes) -> None:
        """The head of POST /runtime/invocation/{id}/response or /error has come."""
        request_id, _, verb = path[len(_INVOCATION) :].rpartition(b"/")
        is_error = verb == b"error"
        event = Event.ERROR if is_error else Event.RESPONSE
        refusal = self._answer_refusal(request, request_id, event)
        if refusal is not None:
            request.refusal = refusal
            return
        self._apply(event)
        request.limit = RESPONSE_MAX_BYTES
        request.oversize = self._oversize
        request.lost = self._answer_lost
        request.finish = self._finish_error if is_error else self._finish_response
        if is_error:
            return
        mode = request.headers.get(b"lambda-runtime-function-response-mode")
        if mode is None:
            length = request.headers.get(b"content-length", b"")
            if length.isdigit() and int(length[:20]) > RESPONSE_MAX_BYTES:
                message = f"Exceeded maximum allowed payload size ({RESPONSE_MAX_BYTES} bytes)."
                request.refusal = error_answer(413, "RequestEntityTooLarge", message)
                self._oversize(connection, request)
        elif mode.lower() == b"streaming":
            self._begin_stream(connection, request)
        else:
            message = "Invalid function response mode"
            request.refusal = error_answer(400, "InvalidFunctionResponseMode", message)
            self._close_invocation()
            kind = "Runtime.InvalidResponseModeHeader"
            self._owner.on_error(kind, error_json(kind, message))

    def _answer_refusal(self, request: Request, request_id: bytes, event: Event) -> bytes | None:
        invocation = self._invocation
        state = self.state
        if self._http:
            running = state is State.RUNNING or state is State.RESPONDING or state is State.RESPONDING_ERROR
            if invocation is None or not running or request_id != invocation.request_id.encode():
                return error_answer(400, "InvalidRequestID", "Invalid request ID")
            echo = request.headers.get(b"lambda-runtime-invocation-id")
            if echo and echo != self._nonce.encode():
                return error_answer(410, "InvokeTimeout", "Invoke timeout")
            if (state, event) in TRANSITIONS:
                return None
        return self._refusal(event)

    def _close_invocation(self) -> None:
        """It is answered: what comes next for it is refused."""
        self._invocation = None
        self._apply(Event.WHOLE)

    def _finish_response(self, connection: Connection, request: Request) -> None:
        self._close_invocation()
        self._owner.on_response(request.body, request.header(b"content-type") or "application/json")
        connection.answer(request, _accepted())

    def _finish_error(self, connection: Connection, request: Request) -> None:
        self._close_invocation()
        error_type, body = self._read_error(request)
        self._owner.on_error(error_type, body)
        connection.answer(request, _accepted())

    def _oversize(self, connection: Connection, request: Request) -> None:
        self._close_invocation()
        self._owner.on_response_too_large()

    def _answer_lost(self, connection: Connection, request: Request) -> None:
        """The connection broke off in the middle of the body."""
        self._close_invocation()
        kind = "Runtime.TruncatedResponse"
        self._owner.on_error(kind, error_json(kind, "HTTP request detected as truncated"))

    def _read_error(self, request: Request) -> tuple[str, bytes]:
        """Type for telemetry, body for the caller; the X-Ray cause is set aside."""
        body = request.body
        cause = request.headers.get(b"lambda-runtime-function-xray-error-cause", b"")
        if request.headers.get(b"content-type", b"").lower() == _ERROR_WITH_CAUSE:
            try:
                parsed: Any = msgspec.json.decode(body)
                cause = cause or msgspec.json.encode(parsed.pop("errorCause", None))
                body = msgspec.json.encode(parsed)
            except (ValueError, TypeError, AttributeError, RecursionError):
                pass  # the caller gets what the runtime sent
        self.last_cause = crop_cause(cause) if cause else b""
        return shown_error_type(request.header(b"lambda-runtime-function-error-type")), body

    # --- streaming --------------------------------------------------------------------------------------

    def _begin_stream(self, connection: Connection, request: Request) -> None:
        request.limit = STREAM_MAX_BYTES
        request.data = self._stream_data
        request.finish = self._finish_stream
        request.oversize = self._stream_oversize
        request.lost = self._stream_lost
        self._source = _Source(connection)
        content_type = request.header(b"content-type") or "application/octet-stream"
        self._owner.on_stream_start(content_type, self._source)

    def _stream_data(self, connection: Connection, request: Request, data: bytes) -> None:
        self._owner.on_stream_chunk(data)

    def _close_stream(self) -> None:
        if self._source is not None:
            self._source.end()
            self._source = None
        self._close_invocation()

    def _finish_stream(self, connection: Connection, request: Request) -> None:
        self._close_stream()
        told = request.trailers.get(b"lambda-runtime-function-error-type")
        body = request.trailers.get(b"lambda-runtime-function-error-body", b"")
        if body:
            try:
                body = base64.b64decode(body, validate=True)
            except binascii.Error:
                body = b""
        error_type = shown_error_type((told or b"").decode("utf-8", "replace")) if told or body else None
        self._owner.on_stream_end(error_type, body)
        connection.answer(request, _accepted())

    def _stream_oversize(self, connection: Connection, request: Request) -> None:
        self._close_stream()
        kind = "Function.ResponseSizeTooLarge"
        message = f"Response payload size exceeded maximum allowed payload size ({STREAM_MAX_BYTES} bytes)."
        self._owner.on_stream_end(kind, error_json(kind, message))

    def _stream_lost(self, connection: Connection, request: Request) -> None:
        self._close_stream()
        kind = "Runtime.TruncatedResponse"
        self._owner.on_stream_end(kind, error_json(kind, "HTTP request detected as truncated"))

    # --- init/error, restore/error ----------------------------------------------------------------------

    def init_error(self, connection: Connection, request: Request) -> None:
        self._report(connection, request, Event.INIT_ERROR)

    def restore_error(self, connection: Connection, request: Request) -> None:
        self._report(connection, request, Event.RESTORE_ERROR)

    def _report(self, connection: Connection, request: Request, event: Event) -> None:
        if not self._http or not self._apply(event):
            connection.answer(request, self._refusal(event))
            return
        error_type, body = self._read_error(request)
        connection.answer(request, _accepted())
        if event is Event.INIT_ERROR:
            self._owner.on_init_error(error_type, body)
        else:
            self._owner.on_restore_error(error_type, body)
