"""Requests to `ID.lambda-url.REGION.DOMAIN`: from the bytes of a request to an invocation, and back.

Synchronous like Invoke. In BUFFERED mode the function's answer is taken apart (`answer`); in RESPONSE_STREAM mode it
goes through as it comes, after the prelude. The status and texts of errors are AWS's (fact sheet of events, 2.8).
"""

from __future__ import annotations

import logging
import re
import time

import msgspec

from lambent.dataplane.plane import DataPlane
from lambent.dataplane.routing import RoutingTable, UrlEntry
from lambent.frontend.connection import Connection, RawRequest
from lambent.frontend.function_urls.answer import (
    PRELUDE_CONTENT_TYPE,
    HttpAnswer,
    MalformedAnswer,
    PreludeReader,
    from_payload,
    without_prelude,
)
from lambent.frontend.function_urls.cors import is_preflight, preflight_headers, with_cors
from lambent.frontend.function_urls.event import Client, make_event
from lambent.frontend.function_urls.signature import SecretLookup, Signer, check_signature
from lambent.frontend.invoke_request import trace
from lambent.model.errors import ApiError, RequestTooLarge, ResourceNotFound, ServiceUnavailable
from lambent.model.function_url import HOST_MARKER, Cors, InvokeMode, UrlAuthType
from lambent.model.limits import SYNC_PAYLOAD_MAX_BYTES
from lambent.model.names import FunctionRef
from lambent.wire.codec import Codec
from lambent.wire.sigv4 import SignatureError
from lambent.worker.interface import Invocation, InvocationResult, StreamSource

_log = logging.getLogger("lambent.frontend")
_HOST = re.compile(
    rb"([a-z0-9]{32})" + re.escape(HOST_MARKER.encode()) + rb"([a-z0-9-]+)\.[a-z0-9.-]+?\.?(?::\d+)?", re.IGNORECASE
)
#: No host of a function URL is this short.
URL_HOST_MIN_BYTES = 32 + len(HOST_MARKER)
_FORBIDDEN = (
    "Forbidden. For troubleshooting Function URL authorization issues, see: "
    "https://docs.aws.amazon.com/lambda/latest/dg/urls-auth.html"
)
_ANYBODY = "*"
_DENIED = [("Content-Type", "application/json"), ("x-amzn-ErrorType", "AccessDeniedException")]
_BROKEN = HttpAnswer(502, [("Content-Type", "application/json")], b"Internal Server Error")


def is_url_host(host: bytes) -> bool:
    """Whether a Host header names a function URL, of this server or not."""
    return len(host) > URL_HOST_MIN_BYTES and _HOST.fullmatch(host) is not None


def _know_no_secret(_: str) -> str | None:
    return None


class FunctionUrlEndpoint:
    """Answers what comes to the hosts of function URLs. `secret_of` is how signatures can be verified."""

    def __init__(
        self, plane: DataPlane, routing: RoutingTable, errors: Codec, secret_of: SecretLookup = _know_no_secret
    ) -> None:
        self._plane = plane
        self._routing = routing
        self._errors = errors
        self._secret_of = secret_of
        self.draining = False

    def begin(self, connection: Connection, raw: RawRequest) -> bool:
        """Answers through the connection, whatever happens. False: the host is no function URL's."""
        match = _HOST.fullmatch(raw.headers[b"host"])
        if match is None:
            return False
        entry = self._routing.urls.get(match[1].lower().decode())
        if entry is None or entry.spec.key.region.encode() != match[2].lower():
            _send(connection, raw, HttpAnswer(403, _DENIED, b'{"Message":null}'), None)
            return True
        cors = entry.spec.cors
        if cors is not None and is_preflight(raw):
            _send(connection, raw, HttpAnswer(200, preflight_headers(cors, raw), b""), None)
            return True
        try:
            self._invoke(connection, raw, entry)
        except SignatureError as error:
            headers = [("Content-Type", "application/json"), ("x-amzn-ErrorType", error.code)]
            body = msgspec.json.encode({"message": error.message})
            _send(connection, raw, HttpAnswer(403, headers, body), cors)
        except ApiError as error:
            self.refuse(connection, raw, error, cors)
        return True

    def _invoke(self, connection: Connection, raw: RawRequest, entry: UrlEntry) -> None:
        """Raises ApiError and SignatureError."""
        spec = entry.spec
        if self.draining:
            raise ServiceUnavailable("The server is shutting down; send the request elsewhere.")
        if raw.body_bytes > SYNC_PAYLOAD_MAX_BYTES:
            raise _too_large(raw.body_bytes)
        now_ns = time.time_ns()
        signer: Signer | None = None
        if spec.auth_type is UrlAuthType.AWS_IAM:
            signer = check_signature(raw, spec.key.region, self._secret_of, now_ns)
            # What an account lets its own users do is not known here, and taken as given.
            allowed = signer is not None and (signer.account == spec.key.account or entry.permits(signer.account))
        else:
            allowed = entry.permits(_ANYBODY)
        if not allowed:
            _send(connection, raw, _forbidden(), spec.cors)
            return
        target = self._routing.resolve(FunctionRef(spec.key, spec.qualifier))
        host = raw.headers[b"host"].decode("latin-1").partition(":")[0].lower()
        client = Client(connection.peer_address, connection.local_port, f"HTTP/{connection.http_version}")
        event = make_event(raw, spec, host, client, signer, now_ns)
        if len(event) > SYNC_PAYLOAD_MAX_BYTES:
            raise _too_large(len(event))
        invocation = Invocation(0, raw.request_id, event, target.arn, trace(raw))
        raw.body = b""  # it is in the event now
        if spec.invoke_mode is InvokeMode.RESPONSE_STREAM:
            streamed = _StreamedCall(self, connection, raw, spec.cors)
            invocation.sink = streamed
            self._plane.invoke(target, invocation, streamed, asynchronous=False)
        else:
            self._plane.invoke(target, invocation, _BufferedCall(self, connection, raw, spec.cors), asynchronous=False)

    def refuse(self, connection: Connection, raw: RawRequest, error: ApiError, cors: Cors | None) -> None:
        if isinstance(error, ResourceNotFound):  # the alias is gone, or has no version
            _send(connection, raw, _forbidden(), cors)
            return
        response = self._errors.error(error)
        _send(connection, raw, HttpAnswer(response.status, response.headers, response.body), cors)


class _BufferedCall:
    """A request whose answer is sent when it is whole; a Caller of the data plane."""

    __slots__ = ("_connection", "_cors", "_endpoint", "_raw")

    def __init__(
        self, endpoint: FunctionUrlEndpoint, connection: Connection, raw: RawRequest, cors: Cors | None
    ) -> None:
        self._endpoint = endpoint
        self._connection = connection
        self._raw = raw
        self._cors = cors

    def on_result(self, result: InvocationResult) -> None:
        answer = _BROKEN
        if not result.is_function_error:
            try:
                answer = from_payload(result.payload, result.content_type)
            except MalformedAnswer as error:
                _log.warning("function URL, request %s: %s", self._raw.request_id, error)
        _send(self._connection, self._raw, answer, self._cors)

    def on_refused(self, error: ApiError) -> None:
        self._endpoint.refuse(self._connection, self._raw, error, self._cors)


class _StreamedCall:
    """A request whose answer goes through as it comes; a Caller of the data plane and the worker's StreamSink."""

    __slots__ = ("_connection", "_cors", "_dropping", "_endpoint", "_prelude", "_raw", "_source", "_started")

    def __init__(
        self, endpoint: FunctionUrlEndpoint, connection: Connection, raw: RawRequest, cors: Cors | None
    ) -> None:
        self._endpoint = endpoint
        self._connection = connection
        self._raw = raw
        self._cors = cors
        self._source: StreamSource | None = None
        self._prelude: PreludeReader | None = None
        self._started = False
        #: The client has its answer already; what the function still sends is taken and dropped.
        self._dropping = False

    def on_start(self, content_type: str, source: StreamSource) -> None:
        self._source = source
        if content_type == PRELUDE_CONTENT_TYPE:
            self._prelude = PreludeReader()
        else:
            self._start(without_prelude(content_type))

    def _start(self, answer: HttpAnswer) -> None:
        self._started = True
        head = _head(answer, self._raw, self._cors)
        self._connection.begin_stream(self._raw, answer.status, head, self._source)

    def on_chunk(self, data: bytes) -> None:
        if self._dropping:
            return
        if self._prelude is not None:
            try:
                found = self._prelude.feed(data)
            except MalformedAnswer as error:
                self._give_up(str(error))
                return
            if found is None:
                return
            self._prelude = None
            answer, data = found
            self._start(answer)
        self._connection.write(self._raw, data)

    def _give_up(self, why: str) -> None:
        _log.warning("function URL, request %s: %s", self._raw.request_id, why)
        self._dropping = True
        _send(self._connection, self._raw, _BROKEN, self._cors)

    def on_result(self, result: InvocationResult) -> None:
        if self._dropping:
            return
        if self._started:
            if result.is_function_error:
                self._connection.break_off(self._raw)
            else:
                self._connection.end_stream(self._raw)
        elif result.is_function_error:
            _send(self._connection, self._raw, _BROKEN, self._cors)
        elif self._prelude is not None:
            self._give_up("the stream ended within its prelude")
        elif result.streamed:  # and empty
            self._start(without_prelude(result.content_type))
            self._connection.end_stream(self._raw)
        else:
            # A runtime that does not stream: its payload is the body, whatever it says about a status.
            answer = without_prelude(result.content_type)._replace(body=result.payload)
            _send(self._connection, self._raw, answer, self._cors)

    def on_refused(self, error: ApiError) -> None:
        if self._started:
            self._connection.break_off(self._raw)
        elif not self._dropping:
            self._endpoint.refuse(self._connection, self._raw, error, self._cors)


def _too_large(size_bytes: int) -> RequestTooLarge:
    return RequestTooLarge(
        f"{size_bytes} byte payload is too large for the RequestResponse invocation type "
        f"(limit {SYNC_PAYLOAD_MAX_BYTES} bytes)"
    )


def _forbidden() -> HttpAnswer:
    return HttpAnswer(403, _DENIED, msgspec.json.encode({"Message": _FORBIDDEN}))


def _head(answer: HttpAnswer, raw: RawRequest, cors: Cors | None) -> str:
    lines = [f"{name}: {value}\r\n" for name, value in with_cors(answer.headers, cors, raw)]
    trace_id = raw.trace_id
    lines.append(f"X-Amzn-Trace-Id: Root=1-{trace_id[:8]}-{trace_id[8:]};Parent={trace_id[:16]};Sampled=0\r\n")
    return "".join(lines)


def _send(connection: Connection, raw: RawRequest, answer: HttpAnswer, cors: Cors | None) -> None:
    connection.answer(raw, answer.status, _head(answer, raw, cors), answer.body)
