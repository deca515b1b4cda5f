"""What an environment and its APIs say to each other.

The environment (worker/environment.py) decides what happens to processes and requests; the API knows who has
registered, who waits in `next`, and speaks HTTP with them. A runtime on the frame link takes no part in
the HTTP Runtime API; the environment then says `runtime_waiting` in its place, and extensions work all the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from lambent.worker.interface import Invocation, StreamSource

#: (address, port) of a connecting client -> may it speak with this API? False closes the connection unanswered.
Admits = Callable[[tuple[str, int]], bool]


@dataclasses.dataclass(slots=True, frozen=True)
class ApiFacts:
    """What extensions are told about the function on registration."""

    function_name: str
    function_version: str
    handler: str
    account_id: str


class AnswerOwner(Protocol):
    """Who is told what the runtime answers to an invocation."""

    def on_response(self, payload: bytes, content_type: str) -> None:
        """The runtime's whole answer to the invocation of the moment, up to 6,291,556 bytes."""

    def on_response_too_large(self) -> None:
        """A buffered answer over the limit; the runtime was told 413."""

    def on_stream_start(self, content_type: str, source: StreamSource) -> None: ...

    def on_stream_chunk(self, data: bytes) -> None: ...

    def on_stream_end(self, error_type: str | None, error_body: bytes) -> None:
        """The streamed answer is complete, or broke off with what the runtime's trailers say (a client that closed its
        connection in the middle: `Runtime.TruncatedResponse`)."""

    def on_error(self, error_type: str, body: bytes) -> None:
        """The runtime reports that the handler failed. `error_type` is what telemetry shows; `body` goes to the caller.
        Also the platform's own: `Runtime.InvalidResponseModeHeader`, and `Runtime.TruncatedResponse` when the
        connection breaks off within a buffered answer."""


class ApiOwner(AnswerOwner, Protocol):
    """The environment as its API sees it. All calls come on the event-loop thread, never from inside a command, and
    when the API has done its own part: any command may be given from within them."""

    def on_registered(self) -> None:
        """All extensions that were expected have registered: the runtime process may be started."""

    def on_settled(self) -> None:
        """The runtime and every registered extension sit in `next`: Init, or the invocation, is over."""

    def on_init_error(self, error_type: str, body: bytes) -> None: ...

    def on_restore_next(self) -> None:
        """SnapStart: the runtime has run its before-snapshot hooks and waits to be restored."""

    def on_restore_error(self, error_type: str, body: bytes) -> None: ...

    def on_extension_error(self, name: str, error_type: str, in_init: bool) -> None:
        """An extension reported init/error or exit/error."""

    def on_extension_ready(self, name: str, events: Sequence[str]) -> None:
        """An extension called `next` for the first time (platform.extension, state Ready)."""

    def on_subscribed(self, name: str, types: Sequence[str]) -> None:
        """A Telemetry or Logs API subscription was accepted (platform.telemetrySubscription)."""


class EnvironmentApi(Protocol):
    """The API as its environment sees it; made by worker/api/server.py."""

    #: Value of AWS_LAMBDA_RUNTIME_API.
    address: str

    def begin(self, http_runtime: bool) -> None:
        """A new runtime process (and new extension processes) will be started: forget registrations, subscriptions, the
        invocation of the moment and whoever waits; close their connections."""

    def expect(self, extensions: Sequence[str]) -> None:
        """These external extensions are being started; `on_registered` follows when all of them have registered
        (for an empty list in the next turn of the event loop)."""

    @property
    def extensions(self) -> Sequence[str]:
        """Names of the registered extensions, external and internal."""

    @property
    def external(self) -> Sequence[str]:
        """Names of the registered external extensions."""

    def runtime_waiting(self) -> None:
        """A runtime on the frame link is ready for its next invocation (instead of GET .../next)."""

    def invoke(self, invocation: Invocation, deadline_epoch_ms: int) -> None:
        """Hand the invocation to the HTTP runtime (now, or when it calls `next`) and INVOKE events to subscribers.

        Given before `on_settled`, it takes the place of that: `on_settled` then comes after this invocation."""

    def restore(self) -> None:
        """Let the runtime out of restore/next."""

    def shut_down(self, reason: str, deadline_epoch_ms: int) -> Sequence[str]:
        """SHUTDOWN events (`spindown`, `timeout`, `failure`) to the extensions that subscribed; returns their names."""

    def publish(self, source: str, time_ms: int, kind: str, record: Any) -> None:
        """A telemetry record for subscribers of `source` ("platform", "function", "extension"); cheap when there is no
        subscriber. `kind` is the record's `type`, e.g. platform.start or function."""

    @property
    def has_subscribers(self) -> bool:
        """Is `publish` of any use: there are subscribers, or there may still be some that are told what was before?"""

    def forget_extension(self, name: str) -> None:
        """Its process has ended: it is waited for no more. What that settles is told in the next turn of the loop."""

    def close(self) -> None:
        """Stop listening (the socket is closed) and close every connection. Any number of times."""
