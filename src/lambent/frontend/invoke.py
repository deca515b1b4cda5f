"""The Invoke operations, from the bytes of a request to the bytes of an answer: the hot path.

Everything here is synchronous. Errors are AWS's (fact sheet 5.1 to 5.4); the payload is checked to be JSON, as AWS
does, and otherwise left as it came.
"""

from __future__ import annotations

import base64
import re
from urllib.parse import parse_qs, unquote

from lambent.dataplane.asynchronous import AsynchronousInvoker
from lambent.dataplane.plane import DataPlane
from lambent.dataplane.routing import RoutingTable, Target
from lambent.dataplane.tenants import require_tenant
from lambent.frontend.connection import Connection, RawRequest
from lambent.frontend.invoke_request import check_payload, client_context, tenant, trace, trace_line
from lambent.frontend.streaming import StreamCall
from lambent.model.errors import ApiError, ServiceUnavailable, ValidationError
from lambent.model.limits import ASYNC_PAYLOAD_MAX_BYTES, SYNC_PAYLOAD_MAX_BYTES
from lambent.model.names import FunctionRef, parse_function_ref
from lambent.wire.codec import Codec
from lambent.worker.interface import Invocation, InvocationResult

_PREFIX = b"/2015-03-31/functions/"
_SUFFIX = b"/invocations"
_STREAM_PREFIX = b"/2021-11-15/functions/"
_STREAM = re.compile(rb"/2021-11-15/functions/([^/?]+)/response-streaming-invocations/?(?:\?|$)")
_ASYNC = re.compile(rb"/2014-11-13/functions/([^/?]+)/invoke-async/?(?:\?|$)")
_CACHE_MAX = 10_000


class InvokeEndpoint:
    """Answers `POST /2015-03-31/functions/NAME/invocations`, its streaming sister and the older invoke-async."""

    def __init__(
        self, plane: DataPlane, routing: RoutingTable, asynchronous: AsynchronousInvoker, errors: Codec
    ) -> None:
        self._plane = plane
        self._routing = routing
        self._asynchronous = asynchronous
        self._errors = errors
        self._refs: dict[tuple[bytes, str, str], FunctionRef] = {}
        self.draining = False

    def matches(self, raw: RawRequest) -> bool:
        target = raw.target
        if raw.method != b"POST":
            return False
        if target.startswith(_PREFIX):
            return target.endswith(_SUFFIX) or target.partition(b"?")[0].rstrip(b"/").endswith(_SUFFIX)
        return _STREAM.match(target) is not None or _ASYNC.match(target) is not None

    def begin(self, connection: Connection, raw: RawRequest) -> None:
        """Answers through the connection, whatever happens."""
        try:
            if self.draining:
                raise ServiceUnavailable("The server is shutting down; send the request elsewhere.")
            ref = self._ref(raw)
            if raw.target.startswith(_PREFIX):
                self._invoke(connection, raw, ref)
            elif raw.target.startswith(_STREAM_PREFIX):
                self._stream(connection, raw, ref)
            else:
                self._accept(raw, ref, 262_144)
                connection.answer(raw, 202, "Content-Type: application/json\r\n", b'{"Status":202}')
        except ApiError as error:
            self.refuse(connection, raw, error)

    def refuse(self, connection: Connection, raw: RawRequest, error: ApiError) -> None:
        response = self._errors.error(error)
        head = "".join(f"{name}: {value}\r\n" for name, value in response.headers)
        connection.answer(raw, response.status, head, response.body)

    def _ref(self, raw: RawRequest) -> FunctionRef:
        who = raw.caller
        key = (raw.target, who.account, who.region)
        ref = self._refs.get(key)
        if ref is None:
            path, _, query = raw.target.decode("latin-1").partition("?")
            name = unquote(path.split("/")[3])
            qualifier = parse_qs(query).get("Qualifier", [None])[0]
            ref = parse_function_ref(name, qualifier, who.account, who.region)
            if len(self._refs) >= _CACHE_MAX:
                self._refs.clear()
            self._refs[key] = ref
        return ref

    def _invoke(self, connection: Connection, raw: RawRequest, ref: FunctionRef) -> None:
        headers = raw.headers
        kind = headers.get(b"x-amz-invocation-type", b"RequestResponse")
        if kind == b"RequestResponse":
            target = self._routing.resolve(ref)
            check_payload(raw, SYNC_PAYLOAD_MAX_BYTES, "RequestResponse")
            call = _Call(self, connection, raw, target)
            self._plane.invoke(target, call.invocation, call, asynchronous=False)
        elif kind == b"Event":
            self._accept(raw, ref, ASYNC_PAYLOAD_MAX_BYTES)
            connection.answer(raw, 202, trace_line(raw), b"")
        elif kind == b"DryRun":
            require_tenant(self._routing.resolve(ref).version.spec, tenant(raw))
            connection.answer(raw, 204, trace_line(raw), b"")
        else:
            raise ValidationError(
                f"1 validation error detected: Value '{kind.decode('latin-1')}' at 'invocationType' failed to satisfy "
                "constraint: Member must satisfy enum value set: [Event, RequestResponse, DryRun]"
            )

    def _stream(self, connection: Connection, raw: RawRequest, ref: FunctionRef) -> None:
        kind = raw.headers.get(b"x-amz-invocation-type", b"RequestResponse")
        if kind == b"RequestResponse":
            target = self._routing.resolve(ref)
            check_payload(raw, SYNC_PAYLOAD_MAX_BYTES, "RequestResponse")
            call = StreamCall(self.refuse, connection, raw, target)
            self._plane.invoke(target, call.invocation, call, asynchronous=False)
        elif kind == b"DryRun":
            require_tenant(self._routing.resolve(ref).version.spec, tenant(raw))
            connection.answer(raw, 204, trace_line(raw), b"")
        else:
            raise ValidationError(
                f"1 validation error detected: Value '{kind.decode('latin-1')}' at 'invocationType' failed to satisfy "
                "constraint: Member must satisfy enum value set: [RequestResponse, DryRun]"
            )

    def _accept(self, raw: RawRequest, ref: FunctionRef, limit_bytes: int) -> None:
        target = self._routing.resolve(ref)
        check_payload(raw, limit_bytes, "Event")
        invocation = Invocation(0, raw.request_id, raw.body or b"{}", target.arn, trace(raw), tenant_id=tenant(raw))
        self._asynchronous.accept(ref, invocation)


class _Call:
    """One synchronous invoke and the client that waits for it; a Caller of the data plane."""

    __slots__ = ("_connection", "_endpoint", "_executed_version", "_raw", "invocation")

    def __init__(self, endpoint: InvokeEndpoint, connection: Connection, raw: RawRequest, target: Target) -> None:
        self._endpoint = endpoint
        self._connection = connection
        self._raw = raw
        self._executed_version = target.version.spec.version
        headers = raw.headers
        context = headers.get(b"x-amz-client-context")
        self.invocation = Invocation(
            0,
            raw.request_id,
            raw.body or b"{}",
            target.arn,
            trace(raw),
            client_context(context) if context else "",
            "",
            tenant(raw),
            headers.get(b"x-amz-log-type") == b"Tail",
        )

    def on_result(self, result: InvocationResult) -> None:
        raw = self._raw
        trace = raw.trace_id
        head = (
            "Content-Type: application/json\r\nx-amzn-Remapped-Content-Length: 0\r\n"
            f"X-Amz-Executed-Version: {self._executed_version}\r\n"
            f"X-Amzn-Trace-Id: root=1-{trace[:8]}-{trace[8:]};parent={trace[:16]};sampled=0\r\n"
        )
        if result.is_function_error:
            head += "X-Amz-Function-Error: Unhandled\r\n"
        if result.log_tail is not None:
            head += f"X-Amz-Log-Result: {base64.b64encode(result.log_tail).decode()}\r\n"
        self._connection.answer(raw, 200, head, result.payload)

    def on_refused(self, error: ApiError) -> None:
        self._endpoint.refuse(self._connection, self._raw, error)
