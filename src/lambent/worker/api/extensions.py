"""The Extensions API, 2020-01-01: who has registered, what each is doing, and the events that wait for it.

    STARTED ─register─> REGISTERED ─next─> READY <─next── RUNNING
                            │                └──event──────^
                            └─init/error─> INIT_ERROR   any of the three: ─exit/error─> EXIT_ERROR

External extensions are processes that the environment started and named before (`expect`); any other name is an
internal extension, part of the runtime process. Texts and error types are those of AWS's Runtime Interface.
"""

from __future__ import annotations

import dataclasses
import enum
import re
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from lambent.worker.api.connection import Connection, Request, answer, error_answer
from lambent.worker.api.interface import ApiFacts, ApiOwner
from lambent.worker.interface import Invocation

EXTENSIONS_MAX = 10
#: In AWS's code for Managed Instances; nothing that fits the API comes near.
BODY_MAX_BYTES = 1_048_576
INVOKE, SHUTDOWN = "INVOKE", "SHUTDOWN"
NOT_ALLOWED = "State transition is not allowed"
_OK = b'{"status":"OK"}\n'
_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_ERROR_TYPE_HEADER = b"lambda-extension-function-error-type"


class State(enum.Enum):
    """The values are the names that error texts show."""

    STARTED = "Started"
    REGISTERED = "Registered"
    READY = "Ready"
    RUNNING = "Running"
    INIT_ERROR = "InitError"
    EXIT_ERROR = "ExitError"


class Event(enum.Enum):
    """The values are the names of the states that are asked for."""

    REGISTER = "Registered"
    NEXT = "Ready"
    DELIVERED = "Running"
    INIT_ERROR = "InitError"
    EXIT_ERROR = "ExitError"


TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.STARTED, Event.REGISTER): State.REGISTERED,
    (State.REGISTERED, Event.NEXT): State.READY,
    (State.REGISTERED, Event.INIT_ERROR): State.INIT_ERROR,
    (State.REGISTERED, Event.EXIT_ERROR): State.EXIT_ERROR,
    (State.READY, Event.DELIVERED): State.RUNNING,
    (State.READY, Event.EXIT_ERROR): State.EXIT_ERROR,
    (State.RUNNING, Event.NEXT): State.READY,
    (State.RUNNING, Event.EXIT_ERROR): State.EXIT_ERROR,
}


class Surroundings(Protocol):
    """What the extensions' side needs of the API as a whole."""

    @property
    def is_registration_open(self) -> bool: ...

    def check_settled(self) -> None: ...


@dataclasses.dataclass(slots=True, eq=False)
class Extension:
    """One extension. `pending` is the event it has not fetched yet; it has one at the most, a newer one counts."""

    name: str
    is_external: bool
    identifier: str = dataclasses.field(default_factory=lambda: str(uuid.uuid4()))
    state: State = State.STARTED
    events: tuple[str, ...] = ()
    pending: bytes | None = None
    waiter: Connection | None = None
    waiting: Request | None = None

    def apply(self, event: Event) -> bool:
        """The one door to `state`. False: not in this state; nothing has changed."""
        state = TRANSITIONS.get((self.state, event))
        if state is None:
            return False
        self.state = state
        return True

    @property
    def is_settled(self) -> bool:
        return self.state is State.READY and self.pending is None

    def refusal(self, event: Event) -> bytes:
        message = (
            f"State transition from {self.state.value} to {event.value} failed for extension {self.name}. "
            f"Error: {NOT_ALLOWED}"
        )
        return error_answer(403, "Extension.InvalidExtensionState", message)

    def offer(self, event: bytes) -> None:
        """Hand the event over, now or with the next `next`."""
        self.pending = event
        connection, request = self.waiter, self.waiting
        if connection is not None and request is not None:
            self.waiter = self.waiting = None
            self.fetch(connection, request)

    def fetch(self, connection: Connection, request: Request) -> None:
        body, self.pending = self.pending, None
        assert body is not None
        self.apply(Event.DELIVERED)
        head = b"Lambda-Extension-Event-Identifier: %b\r\n" % str(uuid.uuid4()).encode()
        connection.answer(request, answer(200, body, head))

    def lose(self, connection: Connection, request: Request) -> None:
        if self.waiting is request:
            self.waiter = self.waiting = None


class Extensions:
    """All extensions of the environment of the moment. `owner` is called last in whatever this does."""

    __slots__ = (
        "_around", "_by_identifier", "_by_name", "_expected", "_facts", "_owner", "_registered_told",
        "hears_invocations",
    )  # fmt: skip

    def __init__(self, owner: ApiOwner, facts: ApiFacts, around: Surroundings) -> None:
        self._owner = owner
        self._facts = facts
        self._around = around
        #: False in environments that serve several requests at once: INVOKE can not be subscribed to.
        self.hears_invocations = True
        self.begin()

    def begin(self) -> None:
        self._by_name: dict[str, Extension] = {}
        self._by_identifier: dict[bytes, Extension] = {}
        self._expected: set[str] = set()
        self._registered_told = True

    # --- commands ---------------------------------------------------------------------------------------

    def expect(self, names: Sequence[str]) -> None:
        self._expected = set(names)
        self._registered_told = False

    def forget(self, name: str) -> None:
        self._expected.discard(name)
        extension = self._by_name.pop(name, None)
        if extension is None:
            return
        del self._by_identifier[extension.identifier.encode()]
        if extension.waiter is not None and extension.waiting is not None:
            extension.waiter.close()

    def invoke(self, invocation: Invocation, deadline_ms: int) -> None:
        event = None
        for extension in list(self._by_name.values()):
            if INVOKE in extension.events:
                event = event or _invoke_event(invocation, deadline_ms)
                extension.offer(event)

    def shut_down(self, reason: str, deadline_ms: int) -> Sequence[str]:
        event = msgspec.json.encode({"eventType": SHUTDOWN, "shutdownReason": reason, "deadlineMs": deadline_ms})
        told = [extension for extension in self._by_name.values() if SHUTDOWN in extension.events]
        for extension in told:
            extension.offer(event)
        return [extension.name for extension in told]

    @property
    def names(self) -> Sequence[str]:
        return list(self._by_name)

    @property
    def external(self) -> Sequence[str]:
        return [extension.name for extension in self._by_name.values() if extension.is_external]

    @property
    def are_settled(self) -> bool:
        """Every one sits in `next`, and none is still to register."""
        if not self._by_name and not self._expected:
            return True
        return self._expected <= self._by_name.keys() and all(each.is_settled for each in self._by_name.values())

    def check_registered(self) -> None:
        if not self._registered_told and self._expected <= self._by_name.keys():
            self._registered_told = True
            self._owner.on_registered()

    # --- register ---------------------------------------------------------------------------------------

    def register(self, connection: Connection, request: Request) -> None:
        """POST /extension/register."""
        name = request.header(b"lambda-extension-name")
        if not name:
            connection.answer(request, error_answer(403, "Extension.InvalidExtensionName", "Empty extension name"))
            return
        events, refusal = _read_events(request.body)
        if refusal is None:
            refusal = self._registration_refusal(name, events)
        if refusal is not None:
            connection.answer(request, refusal)
            return
        extension = Extension(name, name in self._expected)
        extension.apply(Event.REGISTER)
        extension.events = events
        self._by_name[name] = extension
        self._by_identifier[extension.identifier.encode()] = extension
        facts = self._facts
        body = {
            "functionName": facts.function_name,
            "functionVersion": facts.function_version,
            "handler": facts.handler,
        }
        features = request.header(b"lambda-extension-accept-feature").split(",")
        if "accountId" in (feature.strip() for feature in features):
            body["accountId"] = facts.account_id
        head = b"Lambda-Extension-Identifier: %b\r\n" % extension.identifier.encode()
        connection.answer(request, answer(200, msgspec.json.encode(body), head))
        self.check_registered()

    def _registration_refusal(self, name: str, events: tuple[str, ...]) -> bytes | None:
        known = self._by_name.get(name)
        if known is not None:
            return known.refusal(Event.REGISTER)
        if INVOKE in events and not self.hears_invocations:
            message = "INVOKE event is not supported for Lambda Managed Instances functions"
            return error_answer(403, "Extension.InvalidEventType", message)
        if not self._around.is_registration_open:
            return error_answer(403, "Extension.RegistrationClosed", "Extension registration closed already")
        if name not in self._expected:
            if SHUTDOWN in events:
                message = "SHUTDOWN event is not supported for internal extensions"
                return error_answer(403, "ShutdownEventNotSupportedForInternalExtension", message)
            count = len(self._expected | self._by_name.keys())
        else:
            count = len(self._by_name)
        if count >= EXTENSIONS_MAX:
            message = f"Extension limit ({EXTENSIONS_MAX}) reached"
            return error_answer(403, "Extension.TooManyExtensions", message)
        return None

    # --- calls of a registered extension ----------------------------------------------------------------

    def identify(self, request: Request) -> Extension | bytes:
        """The extension that calls, or the answer that says why it can not be known."""
        identifier = request.headers.get(b"lambda-extension-identifier")
        if not identifier:
            message = "Missing Lambda-Extension-Identifier header"
            return error_answer(403, "Extension.MissingExtensionIdentifier", message)
        text = identifier.decode("utf-8", "replace")
        if not _UUID.fullmatch(text):
            message = "Invalid Lambda-Extension-Identifier"
            return error_answer(403, "Extension.InvalidExtensionIdentifier", message)
        extension = self._by_identifier.get(identifier.lower())
        if extension is None:
            return error_answer(403, "Extension.UnknownExtensionIdentifier", f"Unknown extension {text}")
        return extension

    def next(self, connection: Connection, request: Request) -> None:
        """GET /extension/event/next."""
        extension = self.identify(request)
        if isinstance(extension, bytes):
            connection.answer(request, extension)
            return
        is_first = extension.state is State.REGISTERED
        # A client whose connection broke while it waited comes again.
        again = extension.state is State.READY and extension.waiter is None
        if not again and not extension.apply(Event.NEXT):
            connection.answer(request, extension.refusal(Event.NEXT))
            return
        connection.is_client = True
        if extension.pending is not None:
            extension.fetch(connection, request)
        else:
            request.lost = extension.lose
            extension.waiter, extension.waiting = connection, request
        if is_first:
            self._owner.on_extension_ready(extension.name, extension.events)
        self._around.check_settled()

    def init_error(self, connection: Connection, request: Request) -> None:
        self._report(connection, request, Event.INIT_ERROR)

    def exit_error(self, connection: Connection, request: Request) -> None:
        self._report(connection, request, Event.EXIT_ERROR)

    def _report(self, connection: Connection, request: Request, event: Event) -> None:
        extension = self.identify(request)
        if isinstance(extension, bytes):
            connection.answer(request, extension)
            return
        error_type = request.header(_ERROR_TYPE_HEADER)
        if not error_type:
            message = "Lambda-Extension-Function-Error-Type not found"
            connection.answer(request, error_answer(403, "Extension.MissingHeader", message))
            return
        if not extension.apply(event):
            connection.answer(request, extension.refusal(event))
            return
        connection.answer(request, answer(202, _OK))
        self._owner.on_extension_error(extension.name, error_type, event is Event.INIT_ERROR)


def _invoke_event(invocation: Invocation, deadline_ms: int) -> bytes:
    return msgspec.json.encode(
        {
            "eventType": INVOKE,
            "deadlineMs": deadline_ms,
            "requestId": invocation.request_id,
            "invokedFunctionArn": invocation.arn,
            "tracing": {"type": "X-Amzn-Trace-Id", "value": invocation.trace_id},
        }
    )


def _read_events(body: bytes) -> tuple[tuple[str, ...], bytes | None]:
    """The events of a registration, or the answer that says what is wrong with the body."""
    try:
        told: Any = msgspec.json.decode(body)
    except (ValueError, RecursionError) as error:
        return (), error_answer(403, "InvalidRequestFormat", str(error)[:200])
    events = told.get("events", []) if isinstance(told, dict) else None
    if not isinstance(events, list) or not all(isinstance(event, str) for event in events):
        return (), error_answer(403, "InvalidRequestFormat", "events must be an array of strings")
    for event in events:
        if event not in (INVOKE, SHUTDOWN):
            return (), error_answer(403, "Extension.InvalidEventType", f"Invalid event type: {event[:100]}")
    return tuple(dict.fromkeys(events)), None
